"""An objective that a slow engine breaks: what is configured is done, seen, and undone when the engine is fast again."""

import pytest

from mlxsup.protocol.client.aio import Client
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.service import Event, SloStats
from scripts.faulty_worker.script import Script
from tests.process.recovery.asking import Told, ask, endless
from tests.process.recovery.conftest import StartStand
from tests.process.recovery.setting import ONE

pytestmark = pytest.mark.slow

# As long a stall as this is none of a busy machine.
GAP_S = 0.5
FAST_MS, SLOW_MS = 1, 700
QOS = {"short_window_s": 4.0, "long_window_s": 8.0, "interval_s": 0.25, "cooldown_s": 0.5, "samples_min": 3}
SLO = {"normal": {"inter_token_s": GAP_S, "actions": ["event", "shed"]}}


def told(what: str, action: str) -> Told:
    def is_it(event: Event) -> bool:
        return event.topic == "slo" and event.what == what and event.detail["action"] == action

    return is_it


async def objective(client: Client) -> SloStats:
    stats = await client.call("server/stats")
    (found,) = stats.slo[ONE]["normal"]
    assert isinstance(found, SloStats)
    return found


async def ask_background(client: Client) -> RpcError | None:
    """The refusal, if it is one."""
    params = {"model": ONE, "prompt": Script(seed=1).prompt(), "max_tokens": 2, "priority": "background"}
    try:
        await client.call("generate", params)
    except RpcError as error:
        return error
    return None


async def test_a_slow_engine_breaks_an_objective_and_what_is_done_about_it_is_undone(
    start: StartStand,
) -> None:
    stand = start(qos=QOS, slo=SLO)
    async with stand.watched() as (client, watch), stand.client() as other:
        await ask(client, Script(seed=1, token_ms=FAST_MS), 500)
        assert (await objective(client)).state == "ok"
        assert await ask_background(client) is None

        background = endless(ONE, Script(seed=4, token_ms=FAST_MS)) | {"priority": "background"}
        slow = endless(ONE, Script(seed=2, token_ms=SLOW_MS))
        async with (
            client.stream("generate", background) as waiting,
            client.stream("generate", slow) as stream,
        ):
            await watch.until(told("done", "event"))
            await watch.until(told("done", "shed background"))
            refused = await ask_background(other)
            assert refused is not None
            assert refused.kind is ErrorKind.OVERLOADED
            assert refused.data.retry_after_ms is not None
            assert refused.data.retry_after_ms >= QOS["cooldown_s"] * 1000
            broken = await objective(client)
            assert (broken.state, broken.in_force) == ("acting", ["event", "shed background"])
            assert broken.figure is not None
            assert broken.figure > GAP_S
            for each in (stream, waiting):
                each.cancel()
                async for _ in each:
                    pass

        async with client.stream("generate", endless(ONE, Script(seed=3, token_ms=FAST_MS))) as fast:
            await watch.until(told("undone", "event"))
            fast.cancel()
            async for _ in fast:
                pass
        assert await ask_background(other) is None
        mended = await objective(client)
    stand.end()

    assert (mended.state, mended.in_force) == ("ok", [])
    assert [(change.action, change.undone) for change in mended.changes] == [
        *(("event", False), ("shed background", False), ("shed background", True), ("event", True))
    ]
    assert [event.what for event in watch.of("slo")] == ["done", "done", "undone", "undone"]
    assert "`shed background` is done" in stand.log_text
