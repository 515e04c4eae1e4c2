"""Spare workers: used when one is needed, replaced once used, ended with the rest."""

import itertools

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from mlxsup.protocol.errors import ErrorKind
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.memory_worker import Plan, full_text
from tests.fakes.requests import make_request
from tests.unit.pool.conftest import CONFIG, OpenStage, until

ONE = replace(CONFIG, spares=1)


async def test_a_spare_saves_the_start_of_the_next_worker(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    sink = CollectingSink()
    async with open_stage(Plan(hello_s=20.0), config=ONE) as stage:
        await stage.runner.ensure_ready()
        await trio.sleep(30)
        stage.runner.submit(make_request(sink, tokens=100))
        await trio.sleep(1)
        pid = stage.runner.snapshot().pid
        assert pid is not None
        stage.shop.by_pid(pid).die(-9)
        died_s = trio.current_time()
        ready_s = await stage.wait_entered("ready", 2)
        assert ready_s - died_s == pytest.approx(2.0, abs=0.1)
        await trio.sleep(50)

    assert sink.text == full_text("p", 100)


async def test_a_spare_that_is_taken_is_replaced(autojump_clock: MockClock, open_stage: OpenStage) -> None:
    async with open_stage(config=replace(CONFIG, spares=2)) as stage:
        await trio.sleep(10)
        assert len(stage.shop.workers) == 2
        await stage.runner.ensure_ready()
        await trio.sleep(10)

        assert len(stage.shop.workers) == 3
        assert all(worker.returncode is None for worker in stage.shop.workers)


async def test_a_spare_that_is_still_being_started_is_taken_before_another_one_is_started(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(Plan(hello_s=20.0), config=ONE) as stage:
        await trio.sleep(15)
        began_s = trio.current_time()
        await stage.runner.ensure_ready()
        assert trio.current_time() - began_s == pytest.approx(5.0 + 2.0, abs=0.1)
        assert stage.runner.snapshot().pid == stage.shop.workers[0].pid
        await trio.sleep(30)

        # And it is replaced.
        assert len(stage.shop.workers) == 2
        assert all(worker.returncode is None for worker in stage.shop.workers)


async def test_a_spare_that_is_taken_while_it_starts_and_dies_is_its_takers_death(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    sink = CollectingSink()
    async with open_stage(Plan(hello_s=20.0), Plan(), config=ONE) as stage:
        await trio.sleep(5)
        stage.runner.submit(make_request(sink, tokens=5))
        await stage.wait_entered("spawning")
        await trio.testing.wait_all_tasks_blocked()
        stage.shop.workers[0].die(-9)
        await trio.sleep(60)

        assert stage.classes == ["killed"]
        assert sum(worker.returncode is None for worker in stage.shop.workers) == 2

    assert sink.text == full_text("p", 5)


async def test_a_spare_that_is_taken_while_it_starts_and_hangs_is_ended_once_and_replaced(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    sink = CollectingSink()
    async with open_stage(Plan(hello_s=1000.0), Plan(), config=ONE) as stage:
        await trio.sleep(5)
        stage.runner.submit(make_request(sink, tokens=5))
        await trio.sleep(200)

        assert stage.runner.snapshot().state == "failed"
        assert [worker.returncode is None for worker in stage.shop.workers] == [False, True]

    assert sink.failure.kind is ErrorKind.MODEL_LOAD_FAILED


async def test_a_spare_is_not_started_before_the_load_and_the_first_step_that_streams_wait_for(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    sink = CollectingSink()
    async with open_stage(Plan(), Plan(load_s=9.0, token_s=4.0), config=ONE) as stage:
        await trio.sleep(5)
        stage.runner.submit(make_request(sink, tokens=1000))
        await stage.wait_entered("ready")
        await trio.sleep(10)
        pid = stage.runner.snapshot().pid
        assert pid is not None
        stage.shop.by_pid(pid).die(-9)
        await stage.wait_entered("ready", 2)
        delivered = len(sink.pieces)
        assert len(stage.shop.workers) == 2
        await until(lambda: len(stage.shop.workers) == 3)

        assert len(sink.pieces) > delivered
        assert trio.current_time() > stage.times_s("ready")[1] + 0.5


async def test_a_spare_waits_for_no_first_step_that_nobody_asks_for(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(config=replace(CONFIG, spares=2)) as stage:
        await trio.sleep(5)
        await stage.runner.ensure_ready()
        await trio.sleep(10)

        assert len(stage.shop.workers) == 3


async def test_a_load_that_takes_long_does_not_keep_the_spare_away(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(Plan(load_s=1000.0), config=ONE) as stage:
        stage.runner.submit(make_request(CollectingSink()))
        await trio.sleep(60)

        assert stage.runner.snapshot().state == "loading"
        assert len(stage.shop.workers) == 2


async def test_spares_end_with_the_rest_and_in_good_order(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(config=replace(CONFIG, spares=2)) as stage:
        await stage.runner.ensure_ready()
        await trio.sleep(20)

    assert [worker.returncode for worker in stage.shop.workers] == [0] * len(stage.shop.workers)
    assert len(stage.shop.workers) >= 3


async def test_a_spare_that_is_just_being_started_ends_with_the_rest(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(Plan(hello_s=20.0, ends_when_told_s=0.0), config=ONE) as stage:
        await trio.sleep(1)

    assert [worker.returncode is not None for worker in stage.shop.workers] == [True]


async def test_a_dead_spare_is_never_handed_out(autojump_clock: MockClock, open_stage: OpenStage) -> None:
    async with open_stage(config=ONE) as stage:
        await trio.sleep(10)
        stage.shop.workers[0].die(-9)
        await stage.runner.ensure_ready()

        assert stage.notes.deaths == []
        assert stage.runner.snapshot().pid != stage.shop.workers[0].pid


async def test_spares_that_keep_dying_are_replaced_more_and_more_slowly(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(config=ONE) as stage:
        born_s: list[float] = []
        for number in range(8):
            await until(lambda: len(stage.shop.workers) > number)  # noqa: B023  (awaited at once)
            born_s.append(trio.current_time())
            await trio.sleep(1)
            stage.shop.workers[number].die(-9)

    pauses_s = [round(b - a - 1, 1) for a, b in itertools.pairwise(born_s)]
    assert pauses_s == pytest.approx([1, 2, 4, 8, 16, 32, 60], abs=0.2)


@pytest.mark.parametrize("plan", [Plan(hello_s=1000.0), None], ids=["hangs", "cannot be spawned"])
async def test_a_spare_that_does_not_start_is_ended_and_tried_again_later(
    autojump_clock: MockClock, open_stage: OpenStage, plan: Plan | None
) -> None:
    async with open_stage(*([plan, Plan()] if plan else []), config=ONE) as stage:
        if plan is None:
            stage.shop.spawn_errors = [OSError(12, "Cannot allocate memory") for _ in range(3)]
        await trio.sleep(200)

        living = [worker for worker in stage.shop.workers if worker.returncode is None]
        assert len(living) == 1
        assert living == stage.shop.workers[-1:]


async def test_without_spares_none_is_started(autojump_clock: MockClock, open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        await trio.sleep(100)

        assert stage.shop.workers == []
