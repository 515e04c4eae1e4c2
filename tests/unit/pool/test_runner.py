"""The model runner, on the mock clock with workers in memory."""

import errno
import signal

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from mlxsup.config.schema import Model, Recovery
from mlxsup.protocol import worker_link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, GenerationResult
from mlxsup.protocol.service import LoadOptions
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.memory_worker import Plan, full_text
from tests.fakes.requests import make_request
from tests.unit.pool.conftest import OpenStage, Stage


async def test_a_request_starts_the_worker_and_is_answered(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    sink = CollectingSink()
    async with open_stage() as stage:
        stage.runner.submit(make_request(sink, tokens=3))
        await trio.sleep(10)

    assert sink.text == full_text("p", 3)
    assert "".join(sink.pieces) == sink.text
    assert sink.counted == ["length"]
    assert stage.states[:3] == ["spawning", "loading", "ready"]


async def test_many_waiters_share_one_load(autojump_clock: MockClock, open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(stage.runner.ensure_ready)

        assert len(stage.shop.workers) == 1
        assert stage.states.count("ready") == 1


async def test_no_more_than_the_batch_is_computed_at_a_time_and_the_rest_waits_in_order(
    autojump_clock: MockClock,
    open_stage: OpenStage,
) -> None:
    sinks = [CollectingSink() for _ in range(5)]
    ends: list[int] = []
    async with open_stage(model=Model(batch_sequences_max=2)) as stage:
        await stage.runner.ensure_ready()
        for number, sink in enumerate(sinks):
            sink.request_ended = lambda *_, number=number: ends.append(number)  # type: ignore[method-assign]
            stage.runner.submit(make_request(sink, tokens=4))
        assert stage.runner.queued == 3
        await trio.sleep(5)

    assert ends == [0, 1, 2, 3, 4]


async def test_a_full_queue_refuses_with_a_hint_and_keeps_what_it_has(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    sinks = [CollectingSink() for _ in range(3)]
    async with open_stage(model=Model(queue_requests_max=2)) as stage:
        stage.runner.submit(make_request(sinks[0]))
        stage.runner.submit(make_request(sinks[1]))
        with pytest.raises(RpcError) as raised:
            stage.runner.submit(make_request(sinks[2]))
        await trio.sleep(10)

    assert raised.value.kind is ErrorKind.OVERLOADED
    assert (raised.value.data.retry_after_ms or 0) > 0
    assert [len(sink.outcomes) for sink in sinks] == [1, 1, 0]


async def test_a_failed_load_answers_all_with_its_reason_and_a_request_after_the_hold_tries_again(
    autojump_clock: MockClock,
    open_stage: OpenStage,
) -> None:
    first, second = CollectingSink(), CollectingSink()
    refusal = RpcError(ErrorKind.MODEL_LOAD_FAILED, "cannot load the model: no")
    async with open_stage(Plan(load_error=refusal), Plan()) as stage:
        stage.runner.submit(make_request(first))
        with pytest.raises(RpcError, match="cannot load the model: no"):
            await stage.runner.ensure_ready()
        await trio.sleep(1)
        assert (stage.runner.snapshot().state, stage.runner.snapshot().reason) == ("failed", refusal.message)
        with pytest.raises(RpcError, match="cannot load the model: no"):
            stage.runner.submit(make_request(CollectingSink()))
        assert len(stage.shop.workers) == 1
        await trio.sleep(5)
        stage.runner.submit(make_request(second))
        await trio.sleep(10)

    assert first.failure.kind is ErrorKind.MODEL_LOAD_FAILED
    assert second.text == full_text("p", 3)


@pytest.mark.parametrize("obeys", [True, False])
@pytest.mark.parametrize("plan", [Plan(hello_s=1000), Plan(load_s=10_000)])
async def test_a_worker_that_is_not_ready_in_time_is_ended_and_the_key_is_named(
    autojump_clock: MockClock, open_stage: OpenStage, plan: Plan, obeys: bool
) -> None:
    async with open_stage(replace(plan, obeys_sigterm=obeys)) as stage:
        with pytest.raises(RpcError, match=r"worker\.(hello|load)_timeout_s") as raised:
            await stage.runner.ensure_ready()
        await trio.sleep(1)

        assert raised.value.kind is ErrorKind.MODEL_LOAD_FAILED
        assert stage.worker.returncode == (-signal.SIGTERM if obeys else -signal.SIGKILL)
        # Its stacks come first, so that somebody can see what took so long.
        assert stage.worker.signals[0] is signal.SIGUSR1


async def test_a_spawn_that_fails_is_a_failed_load(autojump_clock: MockClock, open_stage: OpenStage) -> None:
    sink = CollectingSink()
    async with open_stage() as stage:
        stage.shop.spawn_errors.append(OSError(errno.ENOENT, "No such file or directory"))
        stage.runner.submit(make_request(sink))
        await trio.sleep(1)

    assert "No such file" in sink.failure.message


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EMFILE, errno.ENOMEM])
async def test_a_machine_that_has_no_room_for_a_process_for_a_moment_is_asked_again(
    autojump_clock: MockClock, open_stage: OpenStage, number: int
) -> None:
    sink = CollectingSink()
    async with open_stage() as stage:
        stage.shop.spawn_errors += [OSError(number, "no room")] * 3
        stage.runner.submit(make_request(sink, tokens=20))
        await trio.sleep(60)

    assert sink.text == full_text("p", 20)


async def test_a_machine_that_never_has_room_for_a_process_is_not_asked_for_ever(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    sink = CollectingSink()
    async with open_stage() as stage:
        stage.shop.spawn_errors += [OSError(errno.ENOMEM, "no room")] * 100
        stage.runner.submit(make_request(sink))
        await trio.sleep(600)

        assert "no room" in sink.failure.message
        assert stage.runner.snapshot().state == "failed"


async def test_an_unload_by_force_ends_a_load_that_somebody_waits_for(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(Plan(load_s=100)) as stage, trio.open_nursery() as nursery:

        async def wait_load() -> None:
            with pytest.raises(RpcError, match="unloaded"):
                await stage.runner.ensure_ready()

        nursery.start_soon(wait_load)
        await trio.sleep(20)
        await stage.runner.unload(force=True)
        await trio.sleep(100)

        assert (stage.runner.snapshot().state, len(stage.shop.workers)) == ("stopped", 1)


async def test_a_queued_request_is_cancelled_at_once_and_a_running_one_keeps_its_text(
    autojump_clock: MockClock,
    open_stage: OpenStage,
) -> None:
    running, queued = CollectingSink(), CollectingSink()
    async with open_stage(model=Model(batch_sequences_max=1)) as stage:
        await stage.runner.ensure_ready()
        requests = [make_request(running, tokens=1000), make_request(queued, prompt="q")]
        for request in requests:
            stage.runner.submit(request)
        await trio.sleep(1.05)
        stage.runner.cancel(requests[1])
        assert queued.text == ""
        stage.runner.cancel(requests[0])
        stage.runner.cancel(requests[0])
        await trio.sleep(1)
        stage.runner.cancel(requests[0])

    (outcome,) = running.outcomes
    assert isinstance(outcome, GenerationResult)
    assert outcome.finish_reason is FinishReason.CANCELLED
    assert outcome.text == "".join(running.pieces) == full_text("p", len(running.pieces))


async def test_unload_lets_what_runs_end_first_and_force_does_not(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    drained, forced = CollectingSink(), CollectingSink()
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        stage.runner.submit(make_request(drained, tokens=20))
        await stage.runner.unload(force=False)
        assert drained.text == full_text("p", 20)
        assert stage.worker.returncode == 0

        stage.runner.submit(make_request(forced, tokens=1000))
        await trio.sleep(5)
        await stage.runner.unload(force=True)

    assert forced.failure.kind is ErrorKind.CANCELLED
    assert stage.runner.snapshot().state == "stopped"


async def test_what_waits_while_a_worker_drains_is_served_by_the_next(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    first, second = CollectingSink(), CollectingSink()
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        stage.runner.submit(make_request(first, tokens=20))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stage.runner.unload(force=False))
            await trio.sleep(0.5)
            stage.runner.submit(make_request(second, tokens=2))
        await trio.sleep(10)

    assert (first.text, second.text) == (full_text("p", 20), full_text("p", 2))
    assert len(stage.shop.workers) == 2


async def test_who_wants_the_model_while_it_drains_gets_the_next_worker(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        stage.runner.submit(make_request(CollectingSink(), tokens=20))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stage.runner.unload(force=False))
            await trio.sleep(0.5)
            assert stage.runner.snapshot().state == "draining"
            await stage.runner.ensure_ready()

        assert len(stage.shop.workers) == 2


async def test_a_pinned_model_is_unloaded_by_force_only(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(model=Model(pin=True)) as stage:
        await stage.runner.ensure_ready()
        with pytest.raises(RpcError, match="pinned"):
            await stage.runner.unload(force=False)
        await stage.runner.unload(force=True)

        assert stage.worker.returncode == 0


async def test_closing_drains_for_so_long_and_no_longer(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    short, long, late = CollectingSink(), CollectingSink(), CollectingSink()
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        stage.runner.submit(make_request(short, tokens=20))
        stage.runner.submit(make_request(long, tokens=100_000))
        began_s = trio.current_time()
        await stage.runner.close(30.0, trio.Event())
        with pytest.raises(RpcError, match="shutting down"):
            stage.runner.submit(make_request(late))

        assert trio.current_time() - began_s == pytest.approx(30.0, abs=0.5)
    assert short.text == full_text("p", 20)
    assert long.failure.kind is ErrorKind.SHUTTING_DOWN


async def test_a_second_signal_cuts_the_draining_short(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    sink = CollectingSink()
    hurry = trio.Event()
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        stage.runner.submit(make_request(sink, tokens=100_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.runner.close, 3600.0, hurry)
            await trio.sleep(1)
            hurry.set()
            began_s = trio.current_time()

        assert trio.current_time() - began_s < 1
    assert sink.failure.kind is ErrorKind.SHUTTING_DOWN


async def test_a_request_that_is_cancelled_while_its_worker_drains_ends_and_so_does_the_draining(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    sink = CollectingSink()
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        request = make_request(sink, tokens=10_000)
        stage.runner.submit(request)
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stage.runner.unload(force=False))
            await trio.sleep(1)
            stage.runner.cancel(request)

        assert trio.current_time() - began_s < 3
    assert sink.counted == ["cancelled"]


async def test_who_waits_for_the_next_worker_is_answered_at_a_shutdown(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    errors: list[RpcError] = []

    async def wait_ready(stage: Stage) -> None:
        with pytest.raises(RpcError) as raised:
            await stage.runner.ensure_ready()
        errors.append(raised.value)

    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        stage.runner.submit(make_request(CollectingSink(), tokens=100))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stage.runner.unload(force=False))
            await trio.sleep(1)
            nursery.start_soon(wait_ready, stage)
            await trio.sleep(1)
            nursery.start_soon(stage.runner.close, 0.0, trio.Event())

    assert [error.kind for error in errors] == [ErrorKind.SHUTTING_DOWN]


async def test_requests_that_never_reached_a_dead_worker_are_served_by_the_next(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    running, queued = CollectingSink(), CollectingSink()
    async with open_stage(model=Model(batch_sequences_max=1)) as stage:
        await stage.runner.ensure_ready()
        lost = make_request(running, tokens=1000)
        lost.resume = False
        stage.runner.submit(lost)
        stage.runner.submit(make_request(queued, tokens=2))
        await trio.sleep(1)
        stage.worker.die(-9)
        await trio.sleep(10)

    assert running.failure.kind is ErrorKind.WORKER_DIED
    assert queued.text == full_text("p", 2)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(load_answer=b'{"jsonrpc":"2.0","id":%d,"result":{}}'),
        Plan(closes_output_s=4.0),
    ],
    ids=["a load answer of the wrong shape", "an output that is closed"],
)
async def test_a_worker_that_lives_and_can_not_be_talked_to_is_ended_and_what_it_had_goes_on(
    autojump_clock: MockClock, open_stage: OpenStage, plan: Plan
) -> None:
    sink = CollectingSink()
    async with open_stage(plan, Plan()) as stage:
        stage.runner.submit(make_request(sink, tokens=100))
        await trio.sleep(30)

        assert stage.shop.workers[0].returncode == -signal.SIGKILL
        assert stage.classes == ["protocol_broken"]
    assert sink.text == full_text("p", 100)


async def test_a_request_too_large_for_the_link_is_refused_and_the_worker_lives(
    autojump_clock: MockClock, open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = CollectingSink(), CollectingSink()
    monkeypatch.setattr(worker_link, "FRAME_BYTES_MAX", 1000)
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        stage.runner.submit(make_request(small, tokens=20))
        stage.runner.submit(make_request(large, prompt="x" * 1000))
        with pytest.raises(RpcError, match="too large"):
            await stage.runner.call("tokenize", {"text": "x" * 1000}, dict)
        # Nothing was sent that the worker would have to take up.
        await trio.sleep(2 * Recovery().pickup_s)
        assert len(stage.shop.workers) == 1

    assert large.failure.kind is ErrorKind.LIMIT_EXCEEDED
    assert small.text == full_text("p", 20)


@pytest.mark.parametrize(("asked", "bound"), [(None, 64), (10**9, 64), (32, 32)])
async def test_a_client_can_lower_the_configured_context_and_never_raise_it(
    autojump_clock: MockClock, open_stage: OpenStage, asked: int | None, bound: int
) -> None:
    async with open_stage(model=Model(context_tokens_max=64)) as stage:
        options = LoadOptions(context_tokens_max=asked)
        await stage.runner.load(pin=None, options=options, on_progress=lambda _: None)

        assert stage.worker.order is not None
        assert stage.worker.order.context_tokens_max == bound
