"""A worker is replaced by another one, and nobody who is served by them notices."""

from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Model, Recovery
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import GenerationResult
from mlxsup.supervisor.pool.succession import Succession
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.memory_worker import Plan, full_text
from tests.fakes.requests import make_request
from tests.unit.pool.conftest import OpenStage, Stage

REFUSAL = RpcError(ErrorKind.MODEL_LOAD_FAILED, "cannot load the model: no")


def submit(stage: Stage, tokens: int = 100) -> CollectingSink:
    sink = CollectingSink()
    stage.runner.submit(make_request(sink, tokens=tokens))
    return sink


def whole(sinks: list[CollectingSink], tokens: int = 100) -> bool:
    return [sink.text for sink in sinks] == [full_text("p", tokens)] * len(sinks)


def generations(sinks: list[CollectingSink]) -> list[tuple[int, int]]:
    """Of each result: the generation that served it, and how often it was resumed."""
    served = []
    for sink in sinks:
        (outcome,) = sink.outcomes
        assert isinstance(outcome, GenerationResult)
        assert outcome.worker is not None
        served.append((outcome.worker.generation, outcome.worker.resumed))
    return served


async def die_later(stage: Stage, number: int) -> None:
    await trio.sleep(1)
    stage.shop.workers[number].die(-9)


async def test_with_memory_for_two_the_old_one_goes_on_until_the_new_one_serves(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        before = submit(stage)
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.runner.recycle)
            await trio.sleep(1)
            assert stage.runner.snapshot().state == "ready"
            assert (stage.runner.snapshot().pid, stage.runner.snapshot().generation) == (1000, 1)
            meanwhile = submit(stage)
        assert (stage.runner.snapshot().pid, stage.runner.snapshot().generation) == (1001, 2)
        after = submit(stage)
        await trio.sleep(60)
        assert stage.shop.workers[0].returncode == 0
        assert stage.shop.workers[1].returncode is None

    assert whole([before, meanwhile, after])
    assert generations([before, meanwhile, after]) == [(1, 0), (1, 0), (2, 0)]
    assert stage.notes.deaths == []
    assert stage.states[3:] == ["ready", "stopping", "stopped"]


async def test_without_memory_for_two_the_old_one_drains_first_and_what_comes_meanwhile_waits(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=Recovery(headroom_bytes=50)) as stage:
        await stage.runner.ensure_ready()
        before = submit(stage, 40)
        await trio.sleep(1.5)
        stage.memory["available"] = 149
        stage.reactions["stopped"] = lambda: stage.memory.update(available=249)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.runner.recycle)
            await trio.sleep(0.5)
            assert stage.runner.snapshot().state == "draining"
            meanwhile = submit(stage, 40)
            assert len(stage.shop.workers) == 1
        assert stage.runner.snapshot().state == "ready"
        await trio.sleep(10)

    assert whole([before, meanwhile], 40)
    assert generations([before, meanwhile]) == [(1, 0), (2, 0)]
    assert stage.shop.workers[0].returncode == 0


async def test_recycling_what_is_not_there_is_loading_it(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.recycle()

        assert stage.runner.snapshot().state == "ready"
        assert len(stage.shop.workers) == 1


async def test_recycling_twice_at_once_is_recycling_once(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.runner.recycle)
            nursery.start_soon(stage.runner.recycle)

        assert len(stage.shop.workers) == 2


async def test_when_the_old_one_dies_first_its_requests_go_on_in_the_successor(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        sink = submit(stage)
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.runner.recycle)
            await trio.sleep(1)
            stage.shop.workers[0].die(-9)
            await trio.sleep(0.1)
            assert (stage.runner.snapshot().state, stage.runner.snapshot().pid) == ("loading", 1001)
        await trio.sleep(20)
        assert len(stage.shop.workers) == 2

    assert whole([sink])
    assert generations([sink]) == [(2, 1)]


async def test_a_death_beyond_the_budget_leaves_the_successor_alone(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=Recovery(restarts_max=0)) as stage:
        await stage.runner.ensure_ready()
        sink = submit(stage)
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.runner.recycle)
            await trio.sleep(1)
            stage.shop.workers[0].die(-9)
        await trio.sleep(20)
        assert stage.runner.snapshot().state == "ready"

    assert whole([sink])


async def test_when_the_old_one_dies_while_it_drains_its_requests_go_on_in_the_new_one(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        sink = submit(stage)
        await stage.runner.recycle()
        await trio.sleep(1)
        stage.shop.workers[0].die(-11)
        await trio.sleep(0.1)
        assert stage.runner.snapshot().state == "ready"
        await trio.sleep(20)
        assert len(stage.shop.workers) == 2

    assert whole([sink])
    assert generations([sink]) == [(2, 1)]


async def test_when_the_successor_dies_the_old_one_goes_on_and_who_asked_is_told(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        sink = submit(stage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(die_later, stage, 1)
            with pytest.raises(RpcError) as raised:
                await stage.runner.recycle()
        assert raised.value.kind is ErrorKind.WORKER_DIED
        await trio.sleep(20)
        assert (stage.runner.snapshot().pid, stage.runner.snapshot().state) == (1000, "ready")

    assert whole([sink])
    assert generations([sink]) == [(1, 0)]


async def test_when_the_successor_cannot_load_the_old_one_goes_on_and_who_asked_is_told(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(Plan(), Plan(load_error=REFUSAL)) as stage:
        await stage.runner.ensure_ready()
        sink = submit(stage)
        with pytest.raises(RpcError, match="cannot load the model: no"):
            await stage.runner.recycle()
        await trio.sleep(20)
        assert stage.runner.snapshot().pid == 1000

    assert whole([sink])


async def test_when_both_die_a_third_one_serves(autojump_clock: MockClock, open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        sink = submit(stage)
        async with trio.open_nursery() as nursery:

            async def recycle() -> None:
                with pytest.raises(RpcError):
                    await stage.runner.recycle()

            nursery.start_soon(recycle)
            await trio.sleep(1)
            for worker in stage.shop.workers:
                worker.die(-9)
        await trio.sleep(30)
        assert len(stage.shop.workers) == 3

    assert whole([sink])


@pytest.mark.parametrize(
    ("second", "first", "told"), [(64, -9, ErrorKind.MODEL_LOAD_FAILED), (-9, -9, None), (-9, 64, None)]
)
async def test_when_the_new_one_dies_before_the_old_one_has_drained_nobody_is_forgotten(
    autojump_clock: MockClock, open_stage: OpenStage, second: int, first: int, told: ErrorKind | None
) -> None:
    async with open_stage(recovery=Recovery(restart_backoff_base_s=5)) as stage:
        await stage.runner.ensure_ready()
        sink = submit(stage)
        await stage.runner.recycle()
        stage.shop.workers[1].die(second)
        await trio.sleep(0.5)
        stage.shop.workers[0].die(first)
        await trio.sleep(60)

    if told is None:
        assert whole([sink])
    else:
        assert sink.failure.kind is told


async def test_when_both_are_unloaded_and_the_one_that_drains_dies_its_requests_go_on(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        sink = submit(stage)
        await stage.runner.recycle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stage.runner.unload(force=False))
            await trio.sleep(0.5)
            assert stage.runner.snapshot().state == "stopped"
            stage.shop.workers[0].die(-9)
        await trio.sleep(30)

    assert whole([sink])


async def test_unloading_during_a_recycle_ends_both(autojump_clock: MockClock, open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        sink = submit(stage)
        async with trio.open_nursery() as nursery:

            async def recycle() -> None:
                with pytest.raises(RpcError, match="unloaded"):
                    await stage.runner.recycle()

            nursery.start_soon(recycle)
            await trio.sleep(1)
            await stage.runner.unload(force=False)
        assert [worker.returncode for worker in stage.shop.workers] == [0, 0]
        assert stage.runner.snapshot().state == "stopped"

    assert whole([sink])


@pytest.mark.parametrize("recovery", [Recovery(recycle_requests=3), Recovery(recycle_tokens=30)])
async def test_a_worker_is_recycled_after_so_much_work_and_no_request_notices(
    autojump_clock: MockClock, open_stage: OpenStage, recovery: Recovery
) -> None:
    async with open_stage(recovery=recovery) as stage:
        await stage.runner.ensure_ready()
        sinks = []
        for _ in range(9):
            sinks.append(submit(stage, 10))
            await trio.sleep(5)
        assert [worker.returncode for worker in stage.shop.workers] == [0, 0, 0, None]

    assert whole(sinks, 10)
    assert [generation for generation, _ in generations(sinks)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


async def test_a_recycle_of_its_own_accord_also_drains_first_where_memory_is_short(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    most = 0
    async with open_stage(recovery=Recovery(recycle_requests=1, headroom_bytes=50)) as stage:
        await stage.runner.ensure_ready()
        await trio.sleep(2)
        stage.memory["available"] = 149
        stage.reactions["stopped"] = lambda: stage.memory.update(available=249)
        stage.reactions["ready"] = lambda: stage.memory.update(available=149)
        sinks = [submit(stage, 10), submit(stage, 60)]
        for _ in range(300):
            await trio.sleep(0.1)
            most = max(most, sum(worker.returncode is None for worker in stage.shop.workers))
        assert len(stage.shop.workers) >= 2

    assert whole(sinks[:1], 10)
    assert whole(sinks[1:], 60)
    assert most == 1


async def test_a_worker_that_leaks_is_recycled(autojump_clock: MockClock, open_stage: OpenStage) -> None:
    recovery = Recovery(leak_bytes_per_hour_max=3600, leak_window_s=120.0, leak_recycle_interval_s=1000.0)
    async with open_stage(recovery=recovery) as stage:
        stage.reactions["ready"] = lambda: stage.memory.update(resident=10**9)
        await stage.runner.ensure_ready()
        # What the load took is no leak.
        await trio.sleep(300)
        assert len(stage.shop.workers) == 1
        for _ in range(900):
            stage.memory["resident"] += 2
            await trio.sleep(1)
        assert len(stage.shop.workers) == 2
        for _ in range(600):
            stage.memory["resident"] += 2
            await trio.sleep(1)
        assert len(stage.shop.workers) == 3


async def test_a_recycle_that_fails_is_not_tried_again_at_each_request(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    recovery = Recovery(recycle_requests=1, restart_backoff_max_s=60)
    async with open_stage(Plan(), Plan(load_error=REFUSAL), recovery=recovery) as stage:
        await stage.runner.ensure_ready()
        sinks = []
        for _ in range(20):
            sinks.append(submit(stage, 2))
            await trio.sleep(5)
        assert len(stage.shop.workers) == 3
        assert stage.runner.snapshot().pid == 1000

    assert whole(sinks, 2)


async def test_there_are_never_more_than_two_however_long_the_first_one_drains(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    most = 0
    async with open_stage(recovery=Recovery(recycle_requests=2)) as stage, trio.open_nursery() as nursery:
        long = submit(stage, 300)
        await stage.runner.ensure_ready()
        sinks = []
        for second in range(60):
            sinks.append(submit(stage, 5))
            if second == 10:
                nursery.start_soon(stage.runner.recycle)
            await trio.sleep(1)
            most = max(most, sum(worker.returncode is None for worker in stage.shop.workers))
        assert stage.shop.workers[0].returncode == 0
        assert len(stage.shop.workers) > 3

    assert most == 2
    assert whole([long], 300)
    assert whole(sinks, 5)


async def test_a_successor_that_is_told_to_end_is_none_when_the_worker_after_it_dies(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    plans = [Plan(), Plan(load_s=10, ends_when_told_s=100, obeys_sigterm=False), Plan(load_s=3), Plan()]
    async with open_stage(*plans) as stage, trio.open_nursery() as nursery:

        async def recycle() -> None:
            with pytest.raises(RpcError):
                await stage.runner.recycle()

        await stage.runner.ensure_ready()
        nursery.start_soon(recycle)
        await trio.sleep(1)
        nursery.start_soon(partial(stage.runner.unload, force=False))
        await stage.wait_state("stopped")
        sink = submit(stage, 10)
        await trio.sleep(2)
        stage.shop.workers[2].die(-9)
        await trio.sleep(4)
        # The second one still climbs the stop ladder.
        assert stage.shop.workers[1].returncode is None
        assert (stage.runner.snapshot().state, stage.runner.snapshot().pid) == ("ready", 1003)

    assert whole([sink], 10)


async def test_a_request_that_comes_with_the_last_answer_of_a_worker_that_is_to_drain_is_not_lost(
    autojump_clock: MockClock, open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory for one worker only, and before the task that drains it has run."""
    async with open_stage(recovery=Recovery(recycle_requests=1)) as stage:
        await stage.runner.ensure_ready()
        await trio.sleep(2)
        stage.memory["available"] = 50
        last: list[CollectingSink] = []
        take_answer = Succession.take_answer

        def submit_then(self: Succession, *answer: Any) -> None:
            take_answer(self, *answer)
            if not last:
                last.append(submit(stage))

        monkeypatch.setattr(Succession, "take_answer", submit_then)
        first = submit(stage)
        await trio.sleep(60)

    assert whole([first, *last])


async def test_a_shutdown_starts_no_worker_although_one_is_due_for_its_replacement(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(model=Model(batch_sequences_max=1), recovery=Recovery(recycle_requests=1)) as stage:
        await stage.runner.ensure_ready()
        submit(stage)
        waiting = submit(stage)
        await stage.runner.close(5.0, trio.Event())

    assert waiting.failure.kind is ErrorKind.SHUTTING_DOWN
    assert len(stage.shop.workers) == 1


async def test_replacements_that_die_in_their_load_cost_the_one_that_serves_nothing(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    recovery = Recovery(restart_healthy_s=600.0, restarts_max=2)
    async with open_stage(recovery=recovery) as stage:
        await stage.runner.ensure_ready()
        await trio.sleep(700)
        for number in (1, 2, 3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(die_later, stage, number)
                with pytest.raises(RpcError):
                    await stage.runner.recycle()
        sink = submit(stage)
        await trio.sleep(1)
        stage.shop.workers[0].die(-9)
        await trio.sleep(30)

        assert whole([sink])
        assert stage.notes.deaths[-1][2].wait_s == 0.0
        assert stage.notes.deaths[0][2].action == "another worker is there"
