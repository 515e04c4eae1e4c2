"""Whoever waits while the model is down, loads or is recycled can leave, run out of time, or be sent away: once."""

import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Recovery
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, GenerationResult
from mlxsup.supervisor.generation.request import GenerationRequest
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.memory_worker import Plan, full_text
from tests.fakes.requests import make_request
from tests.unit.pool.conftest import OpenStage, Stage

# Its second restart waits for many seconds.
SLOW = Recovery(restart_backoff_base_s=1000.0, restart_backoff_max_s=1000.0)


def submit(stage: Stage, tokens: int = 100) -> tuple[GenerationRequest, CollectingSink]:
    sink = CollectingSink()
    request = make_request(sink, tokens=tokens)
    stage.runner.submit(request)
    return request, sink


async def into_backoff(stage: Stage) -> None:
    """Ready, dead, ready again, dead again: now it waits."""
    await stage.runner.ensure_ready()
    stage.worker.die(-9)
    await trio.sleep(0.1)
    await stage.wait_state("ready")


async def test_a_request_cancelled_while_the_model_is_down_keeps_its_text_and_is_not_taken_up_again(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=SLOW) as stage:
        await into_backoff(stage)
        request, sink = submit(stage)
        await trio.sleep(1.05)
        stage.worker.die(-9)
        await trio.sleep(1)
        assert stage.runner.snapshot().state == "backoff"
        stage.runner.cancel(request)
        stage.runner.cancel(request)
        (outcome,) = sink.outcomes
        await trio.sleep(2000)
        assert stage.runner.snapshot().state == "ready"
        assert stage.worker._sequences == {}

    assert isinstance(outcome, GenerationResult)
    assert outcome.finish_reason is FinishReason.CANCELLED
    assert outcome.text == "".join(sink.pieces) == full_text("p", len(sink.pieces)) != ""
    assert outcome.usage.completion_tokens == len(sink.pieces)
    assert len(sink.outcomes) == 1


async def test_a_cancel_that_the_worker_did_not_live_to_answer_is_answered(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        request, sink = submit(stage)
        await trio.sleep(1.05)
        stage.runner.cancel(request)
        stage.worker.die(-9)
        await trio.sleep(30)

    (outcome,) = sink.outcomes
    assert isinstance(outcome, GenerationResult)
    assert outcome.finish_reason is FinishReason.CANCELLED


async def test_a_deadline_passes_also_while_the_model_is_down(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=SLOW) as stage:
        await into_backoff(stage)
        request, sink = submit(stage)
        await trio.sleep(1.05)
        stage.worker.die(-9)
        await trio.sleep(1)
        stage.runner.expire(request)
        assert sink.failure.kind is ErrorKind.DEADLINE_EXCEEDED
        await trio.sleep(2000)

    assert sink.failure.data.tokens_delivered == len(sink.pieces) > 0


async def test_a_load_by_hand_waits_for_no_backoff(autojump_clock: MockClock, open_stage: OpenStage) -> None:
    async with open_stage(recovery=SLOW) as stage:
        await into_backoff(stage)
        _, sink = submit(stage)
        stage.worker.die(-9)
        await trio.sleep(1)
        began_s = trio.current_time()
        await stage.runner.load(pin=None, options=None, on_progress=lambda _: None)
        assert trio.current_time() - began_s < 4
        await trio.sleep(20)

    assert sink.text == full_text("p", 100)


async def test_a_load_by_hand_at_the_very_moment_of_the_death_waits_for_no_backoff_either(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=SLOW) as stage, trio.open_nursery() as nursery:
        await into_backoff(stage)

        async def load() -> None:
            await stage.runner.load(pin=None, options=None, on_progress=lambda _: None)

        stage.reactions["backoff"] = lambda: nursery.start_soon(load)
        stage.worker.die(-9)
        await trio.sleep(4)

        assert stage.runner.snapshot().state == "ready"


async def test_unloading_while_nobody_waits_ends_the_backoff(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=SLOW) as stage:
        await into_backoff(stage)
        stage.worker.die(-9)
        await trio.sleep(1)
        await stage.runner.unload(force=False)
        assert stage.runner.snapshot().state == "stopped"
        await trio.sleep(3000)

        assert stage.runner.snapshot().state == "stopped"
        assert len(stage.shop.workers) == 2


async def test_unloading_in_backoff_loses_nobody_who_waits(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=SLOW) as stage:
        await into_backoff(stage)
        _, sink = submit(stage)
        stage.worker.die(-9)
        await trio.sleep(1)
        await stage.runner.unload(force=False)
        await trio.sleep(2000)

    assert sink.text == full_text("p", 100)


async def test_unloading_by_force_in_backoff_tells_who_waits(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=SLOW) as stage:
        await into_backoff(stage)
        _, sink = submit(stage)
        stage.worker.die(-9)
        await trio.sleep(1)
        await stage.runner.unload(force=True)
        assert sink.failure.kind is ErrorKind.CANCELLED
        await trio.sleep(2000)

        assert stage.runner.snapshot().state == "stopped"


async def test_a_death_while_it_drains_for_an_unload_reaches_no_client(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        _, sink = submit(stage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stage.runner.unload(force=False))
            await trio.sleep(1)
            stage.worker.die(-9)
        await trio.sleep(30)

    assert sink.text == full_text("p", 100)
    assert stage.classes == ["killed"]


@pytest.mark.parametrize("force", [True, False])
async def test_unloading_an_idle_worker_is_no_death(
    autojump_clock: MockClock, open_stage: OpenStage, force: bool
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        await stage.runner.unload(force=force)
        await trio.sleep(100)

        assert (stage.runner.snapshot().state, stage.notes.deaths) == ("stopped", [])


async def closed(stage: Stage, drain_s: float = 30.0) -> float:
    """How long it took; all workers have ended then."""
    began_s = trio.current_time()
    await stage.runner.close(drain_s, trio.Event())
    assert all(worker.returncode is not None for worker in stage.shop.workers)
    with pytest.raises(RpcError, match="shutting down"):
        await stage.runner.ensure_ready()
    return trio.current_time() - began_s


@pytest.mark.parametrize("returncode", [-15, 71])
async def test_a_worker_that_gets_the_signal_that_stops_the_supervisor_is_no_death_once_it_has_answered_all(
    autojump_clock: MockClock, open_stage: OpenStage, returncode: int
) -> None:
    """As where a service manager signals the whole group: one by one, in whatever order."""

    class LastWords(CollectingSink):
        def result(self, result: GenerationResult) -> None:
            super().result(result)
            stage.worker.die(returncode)

    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        sink = LastWords()
        stage.runner.submit(make_request(sink, tokens=10))
        await trio.sleep(0.5)
        await closed(stage)

    assert sink.text == full_text("p", 10)
    assert stage.notes.deaths == []


async def test_an_idle_worker_that_gets_the_signal_that_stops_the_supervisor_is_no_death(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        stage.worker.die(-15)
        await closed(stage)

    assert stage.notes.deaths == []


async def test_closing_in_backoff_waits_for_nothing(autojump_clock: MockClock, open_stage: OpenStage) -> None:
    async with open_stage(recovery=SLOW) as stage:
        await into_backoff(stage)
        _, sink = submit(stage)
        stage.worker.die(-9)
        await trio.sleep(1)
        assert await closed(stage) < 0.1
        assert sink.failure.kind is ErrorKind.SHUTTING_DOWN
        await trio.sleep(3000)

        assert (stage.runner.snapshot().state, len(stage.shop.workers)) == ("stopped", 2)


@pytest.mark.parametrize("at_s", [0.0, 0.2, 1.0])
async def test_closing_during_a_load_ends_the_worker_and_tells_who_waits(
    autojump_clock: MockClock, open_stage: OpenStage, at_s: float
) -> None:
    async with open_stage(Plan(load_s=3.0)) as stage:
        _, sink = submit(stage)
        await trio.sleep(at_s)
        assert await closed(stage) < 30
        await trio.sleep(100)

        assert stage.runner.snapshot().state == "stopped"
    assert sink.failure.kind is ErrorKind.SHUTTING_DOWN
    assert stage.notes.deaths == []


async def test_closing_during_a_recycle_drains_the_old_one_and_ends_both(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        _, sink = submit(stage)
        async with trio.open_nursery() as nursery:

            async def recycle() -> None:
                with pytest.raises(RpcError) as raised:
                    await stage.runner.recycle()
                assert raised.value.kind is ErrorKind.SHUTTING_DOWN

            nursery.start_soon(recycle)
            await trio.sleep(1)
            assert 8 < await closed(stage) < 12
            assert len(stage.shop.workers) == 2

    assert sink.text == full_text("p", 100)


async def test_a_death_while_the_supervisor_shuts_down_starts_nothing_and_tells_who_was_served(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        _, sink = submit(stage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed, stage)
            await trio.sleep(1)
            stage.worker.die(-9)
        await trio.sleep(100)

        assert (stage.runner.snapshot().state, len(stage.shop.workers)) == ("stopped", 1)
    assert sink.failure.kind is ErrorKind.SHUTTING_DOWN


async def test_a_load_that_somebody_stops_waiting_for_tells_them_nothing_more(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    from mlxsup.protocol.jsonrpc import encode_notification
    from mlxsup.protocol.worker_link import PROGRESS, LoadProgress

    heard: list[str] = []
    progress = LoadProgress(phase="weights", bytes_done=1, bytes_total=2)
    async with open_stage(Plan(load_s=50)) as stage, trio.open_nursery() as nursery:
        leaving = trio.CancelScope()

        async def wait(who: str, scope: trio.CancelScope) -> None:
            with scope:
                await stage.runner.ensure_ready(lambda _: heard.append(who))

        nursery.start_soon(wait, "leaving", leaving)
        nursery.start_soon(wait, "staying", trio.CancelScope())
        await trio.sleep(5)
        await stage.worker._say(encode_notification(PROGRESS, progress))
        await trio.sleep(1)
        leaving.cancel()
        await trio.sleep(1)
        await stage.worker._say(encode_notification(PROGRESS, progress))

    assert sorted(heard[:2]) == ["leaving", "staying"]
    assert heard[2:] == ["staying"]
