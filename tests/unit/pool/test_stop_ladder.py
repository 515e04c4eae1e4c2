"""Each rung of the ladder is climbed once, and only after the grace of the one below."""

import signal

import pytest
import trio
from trio.testing import MockClock

from tests.fakes.memory_worker import Plan
from tests.unit.pool.conftest import CONFIG, OpenStage


async def stop_takes_s(open_stage: OpenStage, plan: Plan) -> tuple[float, list[signal.Signals]]:
    async with open_stage(plan) as stage:
        await stage.runner.ensure_ready()
        began_s = trio.current_time()
        await stage.runner.unload(force=True)
        took_s = trio.current_time() - began_s
        # After its end its group gets a last SIGKILL, for what it may have forked.
        assert stage.worker.signals[-1] is signal.SIGKILL
        return took_s, stage.worker.signals[:-1]


async def test_a_worker_that_ends_when_told_gets_no_signal(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    took_s, signals = await stop_takes_s(open_stage, Plan(ends_when_told_s=1.0))

    assert signals == []
    assert took_s == pytest.approx(1.0, abs=0.5)


async def test_a_worker_that_does_not_listen_gets_sigterm_after_the_exit_grace(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    took_s, signals = await stop_takes_s(open_stage, Plan(ends_when_told_s=1000.0))

    assert signals == [signal.SIGCONT, signal.SIGTERM]
    assert took_s == pytest.approx(CONFIG.exit_grace_s, abs=0.5)


async def test_a_worker_that_ignores_sigterm_is_killed_after_both_graces(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    took_s, signals = await stop_takes_s(open_stage, Plan(ends_when_told_s=1000.0, obeys_sigterm=False))

    assert signals == [signal.SIGCONT, signal.SIGTERM, signal.SIGKILL]
    assert took_s == pytest.approx(CONFIG.exit_grace_s + CONFIG.term_grace_s, abs=0.5)
