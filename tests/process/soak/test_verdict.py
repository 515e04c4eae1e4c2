"""Which findings are failures, and what the tables say of them."""

from typing import Any

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.service import Event
from scripts.benchmarks.report import Section
from scripts.soak.bare_start import BareStart
from scripts.soak.causes import Cause
from scripts.soak.history import History, Target
from scripts.soak.run import Findings
from scripts.soak.schedule import Aim, Blow
from scripts.soak.setting import MODEL, OTHER, Soak
from scripts.soak.sight import Holdings
from scripts.soak.verdict import judge
from tests.process.soak.test_history import ORDER, answer

QUIET = Holdings(descriptors=20, children=3, zombies=0, resident_bytes=50_000_000)


def soak(*causes: Cause, model: str | None = None) -> Soak:
    return Soak(model=model, deaths=1, causes=causes or (Cause.KILL,), streams=1, other_streams=1, seed=7)


def findings() -> Findings:
    """One kill, one recovery with a spare in 2 s, one request on each model: nothing to complain of."""
    history = History(MODEL)
    found = Findings(history=history, before=QUIET, after=QUIET, other_pids=[5, 5], reported=1)
    state(history, "ready", 0.0)
    number = history.sent(MODEL, ORDER)
    history.piece(number, "one ", 1.0)
    strike(found, 10, spares=frozenset({11}), at_s=2.0)
    death(history, 10, 2.5)
    for at_s, what in enumerate(("backoff", "spawning", "loading", "warming", "ready")):
        state(history, what, 3.0 + at_s / 10)
    history.serves(11)
    history.piece(number, "two three", 4.0)
    history.answered(number, answer(resumed=1))
    other = history.sent(OTHER, ORDER)
    history.piece(other, ORDER.text, 4.0)
    history.answered(other, answer())
    return found


def state(history: History, what: str, at_s: float) -> None:
    history.event(Event(topic="worker", model=MODEL, what=what, detail={}), at_s)


def death(history: History, pid: int, at_s: float, what: str = "killed") -> None:
    history.event(Event(topic="death", model=MODEL, what=what, detail={"pid": pid, "phase": "ready"}), at_s)


def strike(found: Findings, pid: int, **more: Any) -> None:
    cause = more.pop("cause", Cause.KILL)
    blow = Blow(cause=cause, inside=False, moment=0.0, metal="gpu_hang")
    target = more.pop("target", Target.SERVING)
    given = {"spares": frozenset(), "at_s": 5.0, **more}
    found.history.struck(
        blow, Aim.DECODE, target, pid, spares=given["spares"], now_s=given["at_s"], wall_s=100.0
    )


def missed(section: Section) -> list[str]:
    return [goal.name for goal in section.goals if not goal.met]


def test_where_nothing_was_wrong_everything_is_met() -> None:
    section = judge(soak(), findings())

    assert missed(section) == []
    assert section.figures.counts["resumed"] == 1
    assert section.figures.recovery["with a spare"].median == 2.0
    assert section.figures.detection["kill"].median == 0.5


def wrong_text(found: Findings) -> None:
    number = found.history.sent(MODEL, ORDER)
    found.history.piece(number, "one one two three", 5.0)
    found.history.answered(number, answer("one one two three", tokens=4))


def lost(found: Findings) -> None:
    found.history.refused(found.history.sent(MODEL, ORDER), RpcError(ErrorKind.WORKER_DIED, "it died"))


def other_resumed(found: Findings) -> None:
    number = found.history.sent(OTHER, ORDER)
    found.history.piece(number, ORDER.text, 5.0)
    found.history.answered(number, answer(resumed=1))


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (
            wrong_text,
            [
                "texts that are not the undisturbed ones, byte for byte",
                "requests with tokens missing or twice",
            ],
        ),
        (lost, ["requests lost, to the model whose workers died", "errors"]),
        (lambda f: f.history.sent(MODEL, ORDER), ["ids that nobody settled"]),
        (lambda f: setattr(f, "active_at_end", 1), ["requests still active in the supervisor"]),
        (lambda f: strike(f, 12), ["deaths that were not told"]),
        (lambda f: strike(f, 12, target=Target.OLD), ["deaths that were not told"]),
        (lambda f: death(f.history, 77, 5.0), ["deaths that nobody caused"]),
        (lambda f: setattr(f, "reported", 0), ["death reports too few or too many"]),
        (lambda f: setattr(f, "leftovers", [42]), ["leftover processes"]),
        (lambda f: setattr(f, "trouble", "stuck"), ["what went wrong with the soak itself"]),
        (
            lambda f: setattr(
                f, "after", Holdings(descriptors=21, children=4, zombies=1, resident_bytes=50_000_000)
            ),
            ["descriptors leaked", "zombies", "child processes too many"],
        ),
        (other_resumed, ["requests of the other model that were disturbed"]),
        (lambda f: setattr(f, "other_pids", [5, 6]), ["restarts of the other model's worker"]),
    ],
)
def test_each_thing_that_is_wrong_is_a_missed_goal(spoil: Any, names: list[str]) -> None:
    found = findings()
    spoil(found)

    assert missed(judge(soak(), found)) == names


def test_a_death_that_is_told_as_another_one_is_wrong() -> None:
    found = findings()
    strike(found, 12, cause=Cause.TERM)
    death(found.history, 12, 5.5, what="hung")
    found.reported = 2

    assert missed(judge(soak(Cause.TERM), found)) == ["deaths of another class than their cause's"]


def test_the_end_of_a_spare_and_of_a_worker_that_was_ending_need_not_be_told() -> None:
    found = findings()
    strike(found, 12, target=Target.SPARE)
    strike(found, 13, target=Target.OLD)
    found.history.strikes[-1].too_late = True

    assert missed(judge(soak(), found)) == []


@pytest.mark.parametrize(("last_mb", "grows"), [(50, False), (54, False), (56, True)])
def test_a_supervisor_that_grows_from_the_second_quarter_to_the_last_is_found(
    last_mb: int, grows: bool
) -> None:
    found = findings()
    for pid in range(100, 140):
        strike(found, pid, target=Target.SPARE)
    megabytes = [40] * 10 + [50] * 20 + [last_mb] * 10
    found.resident = [(deaths, size * 1_000_000) for deaths, size in enumerate(megabytes)]

    assert bool(missed(judge(soak(), found))) is grows


@pytest.mark.parametrize(("noticed_s", "late"), [(100.7, False), (100.8, True)])
def test_a_stopped_worker_is_to_be_noticed_within_three_heartbeats(noticed_s: float, late: bool) -> None:
    found = findings()
    strike(found, 12, cause=Cause.STOP)
    death(found.history, 12, 6.0, what="stopped")
    found.reported = 2
    found.noticed = [(12, noticed_s)]

    assert missed(judge(soak(Cause.STOP), found)) == (
        ["heartbeats until a stopped worker is noticed"] if late else []
    )


@pytest.mark.parametrize(("bare_s", "slow"), [(1.6, False), (1.5, True)])
def test_a_real_models_recovery_is_held_against_the_bare_start_nearest_to_it(
    bare_s: float, slow: bool
) -> None:
    found = findings()
    found.bare = [
        BareStart(at_s=1.0, import_s=0.3, load_s=1.0, first_token_s=bare_s - 1.3),
        BareStart(at_s=50.0, import_s=9.0, load_s=9.0, first_token_s=9.0),
    ]
    section = judge(soak(model="a real one"), found)

    assert bool(missed(section)) is slow
    assert section.figures.ratios["load"].median == 2.0


def test_the_tables_say_what_went_wrong_and_how_to_run_it_again() -> None:
    found = findings()
    wrong_text(found)
    found.trouble = "SoakStuckError: the streams go on: not within 60 s"
    text = "\n".join(map(str, judge(soak(), found).tables))

    assert "scripts/chaos --deaths 1 --seed 7 --streams 1 --cause kill" in text
    assert "the stream differs from character 4 on" in text
    assert "not within 60 s" in text
