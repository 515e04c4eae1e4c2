"""A day of requests on the mock clock: nothing is done where all is well, and what is done elsewhere is undone."""

import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Model, Qos, Slo
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.qos.watch import SloWatch
from tests.fakes.levers import FakeLevers
from tests.unit.qos.simulated_day import HOUR_S, Day, Trouble

QOS = Qos()
MODEL = Model(
    slo={
        Priority.INTERACTIVE: Slo(
            ttft_s=2.0,
            inter_token_s=0.2,
            error_share_max=0.02,
            tokens_per_s_min=4.0,
            actions=("event", "batch", "chunk", "recycle"),
        )
    }
)


async def spend(day: Day, hours: float) -> FakeLevers:
    levers = FakeLevers()
    watch = SloWatch({"m": MODEL}, QOS, levers, trio.current_time())
    await day.run(watch, hours, QOS.interval_s)
    return levers


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
async def test_a_day_in_which_all_is_well_sees_nothing_done(autojump_clock: MockClock, seed: int) -> None:
    day = Day(seed)
    levers = await spend(day, 24)
    # There was something to be calm about.
    assert day.requests > 5_000
    assert day.bad > 5
    assert levers.told == []
    assert levers.pulled == []


@pytest.mark.slow
async def test_an_hour_of_such_a_day_in_which_all_is_slow_sees_everything_done_and_undone(
    autojump_clock: MockClock,
) -> None:
    trouble = Trouble(11 * HOUR_S, 12 * HOUR_S, times=10.0)
    levers = await spend(Day(1, trouble), 14)
    told = [(what, detail["objective"], detail["action"]) for what, detail in levers.told]
    done, undone = ([told[1:] for told in told if told[0] == what] for what in ("done", "undone"))
    assert {action.split()[0] for _, action in done} == {"event", "batch", "chunk", "recycle"}
    assert sorted(undone) == sorted(told for told in done if told[1] != "recycle")
    assert levers.neutral
