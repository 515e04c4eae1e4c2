"""What gets nowhere is found in time, and what is only slow is left alone."""

import msgspec
import pytest

from scripts.faulty_worker.answers import faulty_text
from scripts.faulty_worker.script import Fault, FaultKind, Script
from tests.process.recovery.asking import ask, beside
from tests.process.recovery.conftest import StartStand
from tests.process.recovery.hangs import (
    HEARTBEAT_S,
    KINDS,
    SILENCE_S,
    Found,
    budget_s,
    find_hangs,
    noticed_after_s,
)

pytestmark = pytest.mark.slow

# For processes that all want to run just then. It is only seen here that a fault is found by its own budget and by no
# longer one; how exactly, the mock clock shows (tests/unit/pool/test_stalls.py).
_NOISE_S = 5.0


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    return find_hangs(tmp_path_factory.mktemp("stand"), [*KINDS, FaultKind.HANG_WITH_GIL], lambda _: None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hang_in_native_code_is_found_within_its_phases_budget(found: list[Found], kind: FaultKind) -> None:
    hangs = [one for one in found if one.kind is kind]

    assert len(hangs) >= 1
    for hang in hangs:
        assert (hang.death_class, hang.exact) == ("hung", True)
        assert hang.after_s <= budget_s(kind) + _NOISE_S


async def test_a_stopped_worker_is_noticed_before_its_silence_would_tell(start: StartStand) -> None:
    heartbeat_s = 0.2
    stand = start(worker={"heartbeat_interval_s": heartbeat_s}, recovery={"silence_s": 30.0})
    async with stand.watched() as (client, watch):
        async with beside(client) as other:
            for number in range(4):
                # At another moment between two heartbeats each time.
                fault = Fault(kind=FaultKind.STOP, at_token=5 + 6 * number, times=1, name=str(number))
                answer = await ask(client, Script(seed=number, token_ms=10, fault=fault), 30)
                assert answer.text == faulty_text(number, 30)
        told = watch.of("death")

    stand.end()
    other.assert_undisturbed()
    after_s = [noticed_after_s(stand, strike) for strike in stand.strikes]
    assert [event.what for event in told] == ["stopped"] * 4
    assert len(after_s) == 4
    assert max(after_s) <= 3 * heartbeat_s + _NOISE_S, after_s


async def test_half_a_frame_and_then_silence_is_found_as_any_silence_is(start: StartStand) -> None:
    stand = start(recovery={"silence_s": SILENCE_S})
    async with stand.watched() as (client, watch):
        fault = Fault(kind=FaultKind.TORN_FRAME_THEN_SILENCE, at_token=10, times=1)
        answer = await ask(client, Script(seed=1, token_ms=1, fault=fault), 30)
        (told,) = watch.of("death")

    assert answer.text == faulty_text(1, 30)
    assert told.what == "hung"
    assert noticed_after_s(stand, stand.strikes[0]) <= SILENCE_S + HEARTBEAT_S + _NOISE_S


async def test_a_prefill_at_a_fifth_of_the_measured_speed_is_left_alone_and_one_at_a_hundredth_is_not(
    start: StartStand,
) -> None:
    # A chunk of 256 tokens takes 0.5 s. At a fifth of that speed it takes 2.5 s, longer than step_s, and may take step_s and
    # the 5 s of a tenth.
    usual = Script(seed=1, prompt_tokens=512, prefill_ms=0.5 / 256 * 1000, token_ms=1)
    slow = msgspec.structs.replace(usual, seed=2, fault=Fault(kind=FaultKind.SLOW, number=5))
    crawl = Fault(kind=FaultKind.SLOW, number=100, times=1, name="crawl")
    stuck = msgspec.structs.replace(usual, seed=3, prompt_tokens=64, fault=crawl)
    stand = start(recovery={"step_s": 1.5})
    async with stand.watched() as (client, watch):
        # Long enough for a heartbeat to tell of the speed.
        answers = [await ask(client, usual, 300), await ask(client, slow, 300)]
        told_of_slow = watch.of("death")
        answers.append(await ask(client, stuck, 300))
        told_of_stuck = watch.of("death")

    assert [answer.text for answer in answers] == [faulty_text(seed, 300) for seed in (1, 2, 3)]
    assert answers[0].result.worker == answers[1].result.worker
    assert told_of_slow == []
    assert [event.what for event in told_of_stuck] == ["hung"]
