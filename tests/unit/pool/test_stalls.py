"""A worker that lives and gets nowhere is ended, and what it had goes on in the next."""

import math
import signal

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from mlxsup.config.schema import Recovery
from mlxsup.protocol import worker_link as link
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.memory_worker import Plan, full_text, question_tokens
from tests.fakes.requests import make_request
from tests.unit.pool.conftest import OpenStage, Stage, until

RECOVERY = Recovery(silence_s=10.0, step_s=60.0, load_stall_s=300.0, pickup_s=30.0)


def go_silent(stage: Stage) -> None:
    stage.worker.plan = replace(stage.worker.plan, silent_s=0.0)


def get_stuck(stage: Stage) -> None:
    stage.worker.plan = replace(stage.worker.plan, stuck_s=0.0)


def be_stopped(stage: Stage) -> None:
    stage.worker.stopped = True
    go_silent(stage)


def stop_taking_up(stage: Stage) -> None:
    """It says that it is idle, whatever it is sent."""
    stage.worker._sequences = _NothingEver()
    stage.worker._phase = "idle"


class _NothingEver(dict):  # type: ignore[type-arg]
    def __setitem__(self, _: object, __: object) -> None:
        pass


@pytest.mark.parametrize(
    ("fault", "budget_s", "death_class"),
    [(go_silent, 10.0, "hung"), (get_stuck, 60.0, "hung"), (be_stopped, 2.0, "stopped")],
    ids=["silent", "stuck", "stopped"],
)
async def test_a_worker_that_stalls_in_a_batch_is_found_in_time_and_its_requests_go_on(
    autojump_clock: MockClock, open_stage: OpenStage, fault: object, budget_s: float, death_class: str
) -> None:
    assert callable(fault)
    sinks = [CollectingSink() for _ in range(2)]
    async with open_stage(recovery=RECOVERY) as stage:
        await stage.runner.ensure_ready()
        for sink in sinks:
            stage.runner.submit(make_request(sink, tokens=100))
        await trio.sleep(3.05)
        fault(stage)
        began_s = trio.current_time()
        took_s = await stage.wait_entered("stopping") - began_s
        # A beat may be on its way, the look comes once a heartbeat, and the stacks are dumped first.
        assert budget_s - 1.0 <= took_s <= budget_s + 2.5
        assert stage.shop.workers[0].signals[:3] == [signal.SIGUSR1, signal.SIGCONT, signal.SIGTERM]
        await trio.sleep(60)

    assert [sink.text for sink in sinks] == [full_text("p", 100)] * 2
    assert stage.classes == [death_class]
    assert len(stage.shop.workers) == 2


async def test_work_that_is_not_taken_up_is_found_and_goes_on_in_the_next(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    sink = CollectingSink()
    async with open_stage(recovery=RECOVERY) as stage:
        await stage.runner.ensure_ready()
        await trio.sleep(5)
        stop_taking_up(stage)
        stage.runner.submit(make_request(sink, tokens=30))
        await trio.sleep(29)
        assert stage.classes == []
        await trio.sleep(20)

    assert sink.text == full_text("p", 30)
    assert stage.classes == ["hung"]


async def test_a_question_that_is_not_taken_up_is_found_and_put_to_the_next(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    plans = [Plan(), Plan(answers_questions=True)]
    async with open_stage(*plans, recovery=RECOVERY) as stage:
        await stage.runner.ensure_ready()
        await trio.sleep(100)
        with trio.fail_after(40):
            answer = await stage.runner.call(link.TOKENIZE, link.Tokenize(text="hi"), link.Tokenized)

    assert answer.tokens == question_tokens("hi")
    assert stage.classes == ["hung"]


async def test_a_question_is_owed_also_when_nobody_waits_for_it_any_more(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=RECOVERY) as stage:
        await stage.runner.ensure_ready()
        with trio.move_on_after(5):
            await stage.runner.call(link.TOKENIZE, link.Tokenize(text="hi"), link.Tokenized)
        await trio.sleep(1000)

    assert stage.classes == ["hung"]


@pytest.mark.parametrize(
    ("plan", "at_s"), [(Plan(load_s=500, stuck_s=1), 300.0), (Plan(load_s=500, silent_s=3), 10.0)]
)
async def test_a_load_that_stalls_is_found_and_the_next_worker_serves(
    autojump_clock: MockClock, open_stage: OpenStage, plan: Plan, at_s: float
) -> None:
    sink = CollectingSink()
    async with open_stage(plan, Plan(), recovery=RECOVERY) as stage:
        stage.runner.submit(make_request(sink))
        assert await stage.wait_entered("stopping") == pytest.approx(at_s + 2, abs=2.5)
        await trio.sleep(10)

    ((_, evidence, aftermath),) = stage.notes.deaths
    assert (evidence.phase, aftermath.verdict.name) == ("loading", "hung")
    assert sink.text == full_text("p", 3)


async def test_a_worker_that_ignores_sigterm_while_it_hangs_is_killed_after_the_grace(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(Plan(obeys_sigterm=False, silent_s=5.0), Plan(), recovery=RECOVERY) as stage:
        await stage.runner.ensure_ready()
        await trio.sleep(60)
        first = stage.shop.workers[0]
        assert first.signals[:4] == [signal.SIGUSR1, signal.SIGCONT, signal.SIGTERM, signal.SIGKILL]
        assert stage.runner.snapshot().state == "ready"


async def test_slow_is_not_stalled(autojump_clock: MockClock, open_stage: OpenStage) -> None:
    sink = CollectingSink()
    # The worker in memory says that it is idle until its first step.
    async with open_stage(Plan(token_s=50.0), recovery=replace(RECOVERY, pickup_s=60.0)) as stage:
        await stage.runner.ensure_ready()
        stage.runner.submit(make_request(sink, tokens=20))
        await trio.sleep(1100)

    assert sink.text == full_text("p", 20)
    assert stage.notes.deaths == []


async def test_an_idle_worker_is_left_alone(autojump_clock: MockClock, open_stage: OpenStage) -> None:
    async with open_stage(Plan(token_s=20.0), recovery=RECOVERY) as stage:
        await stage.runner.ensure_ready()
        await trio.sleep(1000)

        assert stage.notes.deaths == []
        assert stage.runner.snapshot().generation == 1


async def test_a_hang_weighs_twice_in_the_budget(autojump_clock: MockClock, open_stage: OpenStage) -> None:
    recovery = replace(RECOVERY, restarts_max=5)
    async with open_stage(Plan(silent_s=4.0), recovery=recovery) as stage:
        await stage.runner.ensure_ready()
        await stage.wait_state("quarantined")

        assert len(stage.shop.workers) == 3


async def test_a_worker_that_goes_on_while_it_is_ended_for_a_stall_gets_nothing_any_more(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    sinks = [CollectingSink(), CollectingSink()]
    async with open_stage(Plan(obeys_sigterm=False), Plan(), recovery=RECOVERY) as stage:
        await stage.runner.ensure_ready()
        stage.runner.submit(make_request(sinks[0], tokens=100))
        await trio.sleep(1)
        be_stopped(stage)
        await until(lambda: signal.SIGCONT in stage.worker.signals)
        stage.worker.plan = replace(stage.worker.plan, silent_s=math.inf)
        request = make_request(sinks[1], tokens=200)
        request.resume = False
        stage.runner.submit(request)
        await trio.sleep(100)

    assert [sink.text for sink in sinks] == [full_text("p", 100), full_text("p", 200)]
    assert stage.classes == ["stopped"]


async def test_a_load_that_goes_on_while_it_is_ended_for_a_stall_makes_no_worker_ready(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    sink = CollectingSink()
    async with open_stage(
        Plan(load_s=12.0, silent_s=1.0, obeys_sigterm=False), Plan(), recovery=RECOVERY
    ) as stage:
        stage.runner.submit(make_request(sink))
        await until(lambda: bool(stage.shop.workers) and signal.SIGCONT in stage.worker.signals)
        stage.worker.plan = replace(stage.worker.plan, silent_s=math.inf)
        await trio.sleep(60)

    assert sink.text == full_text("p", 3)
    assert stage.states.count("ready") == 1
    assert stage.classes == ["hung"]
