"""What a self-test finds is known for as long as the supervisor lives: no worker after the first is tested again."""

import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Model
from mlxsup.protocol.self_test import Check, SelfTestResult
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.memory_worker import Plan
from tests.fakes.requests import make_request
from tests.unit.pool.conftest import OpenStage, Stage, until

PASSED = SelfTestResult(checks=[Check(feature="model", outcome="ok", tokens=3)], seconds=1.0)
LOSES_BATCH = SelfTestResult(
    checks=[Check(feature="batch", outcome="switched_off", why="another text")], seconds=1.0
)
LOAD_S = 2.0


def plan(result: SelfTestResult = LOSES_BATCH) -> Plan:
    return Plan(load_s=LOAD_S, self_test=result)


def orders(stage: Stage) -> list[tuple[bool, list[str]]]:
    """Of each worker: whether it was to test itself, and what it was to do without."""
    found = [worker.order for worker in stage.shop.workers]
    return [(order.self_test, list(order.switched_off)) for order in found if order is not None]


@pytest.mark.parametrize("result", [PASSED, LOSES_BATCH])
async def test_a_worker_after_a_death_is_not_tested_again_and_does_without_what_was_wrong(
    autojump_clock: MockClock, open_stage: OpenStage, result: SelfTestResult
) -> None:
    async with open_stage(plan(result)) as stage:
        await stage.runner.ensure_ready()
        first_s = stage.times_s("ready")[0] - stage.times_s("loading")[0]
        stage.worker.die(-9)
        again_s = await stage.wait_entered("ready", 2) - stage.times_s("loading")[1]

        assert orders(stage) == [(True, []), (False, list(result.switched_off))]
        assert stage.runner.snapshot().self_test == result
        assert first_s - again_s == pytest.approx(LOAD_S)


async def test_what_is_wrong_in_a_batch_is_computed_one_at_a_time_whatever_policies_say(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    sinks = [CollectingSink() for _ in range(3)]
    async with open_stage(plan()) as stage:
        await stage.runner.ensure_ready()
        stage.runner.limit_batch(8)
        stage.runner.limit_batch(None)
        for sink in sinks:
            stage.runner.submit(make_request(sink, tokens=3))
        assert stage.runner.queued == 2
        await trio.sleep(10)

    assert [len(sink.outcomes) for sink in sinks] == [1, 1, 1]


async def test_without_it_by_configuration_only_who_asks_has_one(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(plan(), model=Model(self_test=False)) as stage:
        await stage.runner.ensure_ready()
        assert stage.runner.snapshot().self_test is None
        assert await stage.runner.self_test() == LOSES_BATCH
        assert stage.runner.snapshot().self_test == LOSES_BATCH
        await stage.runner.recycle()

        assert orders(stage) == [(False, []), (False, ["batch"])]


async def test_who_asks_of_a_model_that_is_not_loaded_has_the_result_of_its_load(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(plan(PASSED)) as stage:
        assert await stage.runner.self_test() == PASSED
        assert stage.worker.tests_asked == 0
        assert await stage.runner.self_test() == PASSED
        assert stage.worker.tests_asked == 1


async def test_a_worker_that_loads_while_another_one_finds_something_is_told(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    slow = Plan(load_s=100.0, self_test=LOSES_BATCH)
    async with (
        open_stage(plan(), slow, model=Model(self_test=False)) as stage,
        trio.open_nursery() as nursery,
    ):
        await stage.runner.ensure_ready()
        nursery.start_soon(stage.runner.recycle)
        await until(lambda: len(stage.shop.workers) == 2 and stage.worker.order is not None)
        await stage.runner.self_test()
        assert stage.worker.order is not None
        assert stage.worker.order.switched_off == []
        await until(lambda: bool(stage.worker.tuned))

        assert stage.worker.tuned[0].switched_off == ["batch"]


async def test_a_load_by_hand_tests_again_what_was_found_wrong_and_nothing_else(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(plan(), plan(PASSED)) as stage:
        for _ in range(3):
            await stage.runner.load(pin=None, options=None, on_progress=lambda _: None)
            await stage.runner.unload(force=False)

        assert orders(stage) == [(True, []), (True, []), (False, [])]
        assert stage.runner.snapshot().self_test == PASSED
