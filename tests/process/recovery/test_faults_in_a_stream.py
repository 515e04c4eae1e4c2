"""Whatever a worker does to itself in the middle of a text, the text goes on to its end, and the report says what died.

All the faults strike one supervisor, one after the other, while a text of another model is made: each test looks at one
of them.
"""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from mlxsup.protocol.service import Event
from scripts.faulty_worker.answers import faulty_text
from scripts.faulty_worker.faults import METAL_WORDS
from scripts.faulty_worker.ledger import Strike
from scripts.faulty_worker.script import Fault, FaultKind, Script
from tests.process.recovery.asking import Answer, Beside, ask, beside
from tests.process.recovery.setting import ONE, OTHER
from tests.process.recovery.stand import Stand, start_stand

pytestmark = pytest.mark.slow

TOKENS = 60
AT_TOKEN = 25


class Case(msgspec.Struct, frozen=True, kw_only=True):
    fault: Fault
    death_class: str
    signal: str | None = None
    exit_status: int | None = None

    def __str__(self) -> str:
        return self.fault.name


def _case(kind: FaultKind, death_class: str, *, number: int = 0, words: str = "", **end: Any) -> Case:
    name = f"{kind} {death_class}"
    fault = Fault(kind=kind, at_token=AT_TOKEN, times=1, name=name, number=number, words=words)
    return Case(fault=fault, death_class=death_class, **end)


CASES = [
    _case(FaultKind.ABORT, "aborted", signal="SIGABRT"),
    _case(FaultKind.SEGFAULT, "segmentation_fault", signal="SIGSEGV"),
    _case(FaultKind.BUS_ERROR, "bus_error", signal="SIGBUS"),
    _case(FaultKind.SIGNAL, "killed", number=signal.SIGKILL, signal="SIGKILL"),
    _case(FaultKind.SIGNAL, "illegal_instruction", number=signal.SIGILL, signal="SIGILL"),
    _case(FaultKind.SIGNAL, "terminated", number=signal.SIGTERM, exit_status=71),
    _case(FaultKind.EXIT, "clean_unexpected", number=0, exit_status=0),
    _case(FaultKind.EXIT, "protocol_error", number=78, exit_status=78),
    _case(FaultKind.DEFECT, "defect", exit_status=69),
    _case(FaultKind.POISONED_CONTEXT, "gpu_hang", exit_status=70),
    _case(FaultKind.ABORT, "gpu_hang", words=METAL_WORDS, signal="SIGABRT"),
    _case(FaultKind.GARBAGE, "protocol_broken", signal="SIGKILL"),
    _case(FaultKind.TORN_FRAME_THEN_DEATH, "killed", signal="SIGKILL"),
    _case(FaultKind.HUGE_FRAME, "protocol_broken", signal="SIGKILL"),
]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """`beside` is what went on from before the first fault until after the last."""

    answers: dict[str, Answer]
    strikes: dict[str, Strike]
    told: list[Event]
    told_of_other: list[Event]
    reports: list[dict[str, Any]]
    beside: Beside


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder: Path = tmp_path_factory.mktemp("stand")
    with start_stand(folder, []) as stand:
        yield trio.run(_strike_all, stand)


async def _strike_all(stand: Stand) -> Seen:
    answers: dict[str, Answer] = {}
    async with stand.watched() as (client, watch):
        async with beside(client) as other:
            for number, case in enumerate(CASES):
                # With a pause a token, so that the text is being read when the fault strikes.
                script = Script(seed=number, token_ms=1, fault=case.fault)
                answers[case.fault.name] = await ask(client, script, TOKENS)
        told, told_of_other = watch.of("death", ONE), watch.of("death", OTHER)
    stand.end()
    return Seen(
        answers=answers,
        strikes={strike.name: strike for strike in stand.strikes},
        told=told,
        told_of_other=told_of_other,
        reports=stand.deaths(),
        beside=other,
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_text_goes_on_exactly_in_the_next_worker(seen: Seen, case: Case) -> None:
    answer = seen.answers[case.fault.name]

    assert answer.text == faulty_text(CASES.index(case), TOKENS)
    assert answer.text == answer.result.text
    assert answer.result.usage.completion_tokens == TOKENS
    assert answer.result.worker is not None
    assert answer.result.worker.resumed == 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_death_of_its_class_is_told_and_kept(seen: Seen, case: Case) -> None:
    pid = seen.strikes[case.fault.name].pid
    (report,) = (report for report in seen.reports if report["pid"] == pid)
    (told,) = (event for event in seen.told if event.detail["pid"] == pid)
    end = (case.death_class, case.signal, case.exit_status)

    assert (report["model"], report["phase"]) == (ONE, "ready")
    assert (report["death_class"], report["signal"], report["exit_status"]) == end
    assert (told.what, told.detail["signal"], told.detail["exit_status"]) == end
    assert [shape["tokens_delivered"] for shape in report["in_flight"]] == [AT_TOKEN]


def test_nothing_else_has_died(seen: Seen) -> None:
    assert len(seen.reports) == len(seen.told) == len(CASES)


def test_the_other_models_worker_and_its_text_are_not_disturbed(seen: Seen) -> None:
    seen.beside.assert_undisturbed()
    assert seen.told_of_other == []
