"""Workers that die again and again: started later and later, then not at all, and at once not where nothing would help."""

import re
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
import trio

from mlxsup.protocol.client.aio import Client
from mlxsup.protocol.errors import ErrorKind, RpcError
from scripts.faulty_worker.answers import faulty_text
from scripts.faulty_worker.script import Fault, FaultKind, Script
from tests.process.recovery.asking import Watch, ask, entry, state
from tests.process.recovery.conftest import StartStand
from tests.process.recovery.setting import LIMIT_S, ONE, OTHER
from tests.process.recovery.stand import Stand

pytestmark = pytest.mark.slow

# For processes that all want to run just then.
_NOISE_S = 5.0
_BASE_S, _MAX_S = 0.3, 0.6
# What the formula bounds each wait by: the first restart at once, then base * 2**(n - 1), at most max.
_CEILINGS_S = [0.0, _BASE_S, 2 * _BASE_S, _MAX_S]
_FORMULA = {
    "restart_backoff_base_s": _BASE_S,
    "restart_backoff_max_s": _MAX_S,
    "restart_healthy_s": 600.0,
    "restarts_max": len(_CEILINGS_S),
}
_ALWAYS = Fault(kind=FaultKind.ABORT)

Provoke = Callable[[Client], Awaitable[RpcError]]


async def load_by_hand(client: Client) -> RpcError:
    with trio.fail_after(LIMIT_S), pytest.raises(RpcError) as raised:
        await client.call("model/load", {"model": ONE})
    return raised.value


async def ask_again_and_again(client: Client) -> RpcError:
    """Each request kills two workers, until the model is given up."""
    for seed in range(100):
        with pytest.raises(RpcError) as raised:
            await ask(client, Script(seed=seed, fault=_ALWAYS), 10)
        if raised.value.kind is not ErrorKind.QUARANTINED:
            return raised.value
    raise AssertionError("it goes on for ever")


@pytest.mark.parametrize(
    ("options", "provoke", "phase", "ceilings_s"),
    [
        (["--only", ONE, "--load", _ALWAYS.encode()], load_by_hand, "loading", _CEILINGS_S),
        (["--only", ONE, "--warm", _ALWAYS.encode()], load_by_hand, "warming", _CEILINGS_S),
        # Each request's second death, of which it is found guilty, costs the model nothing.
        ([], ask_again_and_again, "ready", [ceiling_s for ceiling_s in _CEILINGS_S for _ in range(2)]),
    ],
    ids=["at load", "in warm-up", "at each request"],
)
async def test_a_crash_loop_restarts_as_the_formula_says_and_then_the_model_is_quarantined_with_its_reason(
    start: StartStand, options: list[str], provoke: Provoke, phase: str, ceilings_s: list[float]
) -> None:
    stand = start(*options, recovery=_FORMULA)
    async with stand.watched() as (client, watch):
        beside = await ask(client, Script(seed=1), 20, model=OTHER)
        error = await provoke(client)
        given_up = await watch.until(state("quarantined"))
        with pytest.raises(RpcError) as raised:
            await ask(client, Script(seed=1000), 1)
        refused = raised.value
        still_beside = await ask(client, Script(seed=2), 20, model=OTHER)
        shown = await entry(client)

    stand.end()
    reports = stand.deaths()
    assert len(stand.strikes) == len(reports) == len(ceilings_s) + 1
    assert [report["phase"] for report in reports] == [phase] * len(reports)
    # The last death takes the request with it, and who waits for a load is told what comes of it.
    assert error.kind is (ErrorKind.WORKER_DIED if phase == "ready" else ErrorKind.CIRCUIT_OPEN)
    assert refused.kind is ErrorKind.CIRCUIT_OPEN
    reason = given_up.detail["reason"]
    assert "died too often" in reason
    assert re.search(rf"aborted \(signal SIGABRT.*\) while {phase}", reason)
    assert (shown.state, shown.reason) == ("quarantined", reason)
    assert refused.message == reason
    assert (beside.text, still_beside.text) == (faulty_text(1, 20), faulty_text(2, 20))
    assert beside.result.worker == still_beside.result.worker

    waited_s, apart_s = waits_s(watch), strikes_apart_s(stand)
    decided_s = [_decided_s(report["action"]) for report in reports]
    assert decided_s.pop() is None
    assert len(waited_s) == len(decided_s) == len(ceilings_s)
    for waited, apart, decided, ceiling in zip(waited_s, apart_s, decided_s, ceilings_s, strict=True):
        assert decided is not None
        # The report gives it to a tenth of a second.
        assert 0.0 <= decided <= ceiling + 0.05
        assert apart >= decided - 0.05
        assert waited <= decided + 0.05 + _NOISE_S


def waits_s(watch: Watch) -> list[float]:
    """From each backoff to the next spawn, as the events came."""
    backoffs, spawns = watch.moments(state("backoff")), watch.moments(state("spawning"))
    return [min(spawn for spawn in spawns if spawn >= backoff) - backoff for backoff in backoffs]


def strikes_apart_s(stand: Stand) -> list[float]:
    """As the workers themselves noted them, on one clock."""
    moments_s = [strike.at_s for strike in stand.strikes]
    return [after - before for before, after in pairwise(moments_s)]


def _decided_s(action: str) -> float | None:
    found = re.search(r"restart after ([\d.]+) s", action)
    return None if found is None else float(found[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--load", Fault(kind=FaultKind.BAD_WEIGHTS, words="the weights are cut off").encode()], "cut off"),
        (["--load", Fault(kind=FaultKind.EXIT, number=64).encode()], "bad_configuration"),
        (["--load", Fault(kind=FaultKind.EXIT, number=78).encode()], "protocol_error"),
        (["--start", Fault(kind=FaultKind.EXIT, number=78).encode()], "protocol_error"),
        (
            ["--start", Fault(kind=FaultKind.DEFECT, words="ImportError: libmlx.so: no such file").encode()],
            "import_error",
        ),
        (
            ["--load", Fault(kind=FaultKind.DEFECT, words="No Metal device available").encode()],
            "no_metal",
        ),
    ],
    ids=["refused load", "status 64", "status 78 at load", "status 78 at start", "import error", "no device"],
)
async def test_a_fault_of_the_configuration_is_told_to_everybody_and_never_loops_however_often_they_ask(
    start: StartStand, options: list[str], words: str
) -> None:
    hold_s = 0.6
    stand = start(*options, recovery={"failed_hold_s": hold_s})
    async with stand.watched() as (client, watch):
        error = await load_by_hand(client)
        failed = await watch.until(state("failed"))
        refusals = []
        with trio.fail_after(LIMIT_S):
            while len(watch.moments(state("spawning"))) < 3:
                with pytest.raises(RpcError) as raised:
                    await ask(client, Script(seed=1), 1)
                refusals.append(raised.value)

    assert error.kind is ErrorKind.MODEL_LOAD_FAILED
    assert words in error.message
    assert failed.detail["reason"] == error.message
    assert {(refusal.kind, refusal.message) for refusal in refusals} == {(error.kind, error.message)}
    # Whoever asks meanwhile starts nothing, and each time it is twice as long.
    first_s, second_s = strikes_apart_s(stand)
    assert first_s >= hold_s
    assert second_s >= 2 * hold_s
