"""Models that share a budget: who is loaded, who makes room, and that no request notices but by waiting."""

import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Memory, Model
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import Priority
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.memory_worker import Plan, full_text
from tests.unit.residency.conftest import GB, SIZE, House, OpenHouse

THREE = {"a": Model(), "b": Model(), "c": Model()}
MINUTE_TOKENS = 600
"""At a tenth of a second each."""


def whole(tokens: int, *sinks: CollectingSink) -> bool:
    return [sink.text for sink in sinks] == [full_text("p", tokens)] * len(sinks)


def error_of(sink: CollectingSink) -> RpcError:
    (outcome,) = sink.outcomes
    assert isinstance(outcome, RpcError)
    return outcome


async def keep_busy(house: House, model: str, sinks: list[CollectingSink], tokens: int = 50) -> None:
    """There is always one that runs and, soon, one more."""
    while True:
        sinks.append(house.ask(model, tokens))
        await trio.sleep(tokens / 20)


async def test_who_was_used_longest_ago_makes_room_and_comes_back_when_it_is_asked_for(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=2, **THREE) as house:
        for model in "abc":
            await house.answered(house.ask(model))
        assert [house.state(model) for model in "abc"] == ["stopped", "ready", "ready"]
        sink = house.ask("a")
        await house.answered(sink)

        assert whole(10, sink)
        assert [house.state(model) for model in "abc"] == ["ready", "stopped", "ready"]
        assert house.held_bytes_max[0] <= 2 * SIZE
        assert house.shops["a"].workers[0].returncode == 0


async def test_a_model_that_is_there_is_not_stalled_by_another_ones_load(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=2, a=Model(), b=Model()) as house:
        await house.ready("a")
        began_s = trio.current_time()
        house.ask("b")
        sink = house.ask("a")
        await house.answered(sink)

        assert trio.current_time() - began_s < 1.2
        assert house.state("b") != "ready"


async def test_a_stream_that_runs_is_whole_and_only_then_its_model_makes_room(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=1, a=Model(), b=Model()) as house:
        long = house.ask("a", MINUTE_TOKENS)
        await house.wait_state("a", "ready")
        sink = house.ask("b")
        await trio.sleep(40)
        assert (house.state("a"), house.loads("b")) == ("ready", 0)
        assert house.reason("b") == "waits for memory, about 2000 MB: held by `a`"
        await house.answered(long, sink)

        assert whole(MINUTE_TOKENS, long)
        assert whole(10, sink)
        assert house.held_bytes_max[0] <= SIZE


async def test_who_waits_behind_a_model_that_is_never_idle_has_its_turn_and_nothing_is_lost(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    memory = Memory(swap_wait_s=60, residency_min_s=20)
    async with open_house(places=1, memory=memory, a=Model(), b=Model()) as house:
        await house.ready("a")
        sinks: list[CollectingSink] = []
        async with trio.open_nursery() as asking:
            asking.start_soon(keep_busy, house, "a", sinks)
            await trio.sleep(5)
            began_s = trio.current_time()
            other = house.ask("b")
            await house.answered(other)
            waited_s = trio.current_time() - began_s
            await trio.sleep(200)
            asking.cancel_scope.cancel()
        await house.answered(*sinks)

        assert 60 <= waited_s <= 60 + 5 + 5
        assert whole(50, *sinks)
        assert house.held_bytes_max[0] <= SIZE
        assert house.loads("a") == 2


async def test_an_interactive_request_does_not_wait_that_long_for_a_model_that_works_in_the_background(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=1, a=Model(batch_sequences_max=1), b=Model()) as house:
        await house.ready("a")
        await trio.sleep(30)
        slow = [house.ask("a", 100, Priority.BACKGROUND) for _ in range(5)]
        await trio.sleep(0.5)
        began_s = trio.current_time()
        urgent = house.ask("b", 10, Priority.INTERACTIVE)
        await house.answered(urgent)
        assert trio.current_time() - began_s < 10 + 5
        await house.answered(*slow)

        assert whole(100, *slow)


async def test_two_that_take_turns_are_served_in_bursts(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=1, a=Model(), b=Model()) as house:
        sinks = []
        for _ in range(100):
            for model in "ab":
                sinks.append(house.ask(model, 5))
                await trio.sleep(1)
        await house.answered(*sinks)

        assert whole(5, *sinks)
        # In 200 s, each of them for half a minute at a time.
        assert house.loads("a") + house.loads("b") <= 8


async def test_many_that_wait_for_a_model_are_one_load(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=1, a=Model(), b=Model()) as house:
        await house.ready("a")
        sinks = [house.ask("b") for _ in range(20)]
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(house.ready, "b")
        await house.answered(*sinks)

        assert house.loads("b") == 1


async def test_what_a_dead_worker_held_is_kept_for_the_next_one_though_another_model_waits(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=1, a=Model(), b=Model()) as house:
        long = house.ask("a", MINUTE_TOKENS)
        await house.wait_state("a", "ready")
        sink = house.ask("b")
        await trio.sleep(5)
        house.shops["a"].workers[0].die(-11)
        await trio.sleep(10)
        assert (house.loads("a"), house.loads("b")) == (2, 0)
        await house.answered(long, sink)

        assert whole(MINUTE_TOKENS, long)
        assert whole(10, sink)
        assert house.held_bytes_max[0] <= SIZE


async def test_a_worker_that_dies_while_it_makes_room_does_so_and_what_it_had_goes_on_later(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    memory = Memory(swap_wait_s=20, residency_min_s=5)
    async with open_house(places=1, memory=memory, a=Model(), b=Model()) as house:
        long = house.ask("a", MINUTE_TOKENS)
        await house.wait_state("a", "ready")
        sink = house.ask("b", 50)
        await house.wait_state("a", "draining")
        await trio.sleep(3)
        house.shops["a"].workers[0].die(-9)
        await house.answered(sink)
        assert (house.loads("a"), long.outcomes) == (1, [])
        await house.answered(long)

        assert whole(50, sink)
        assert whole(MINUTE_TOKENS, long)


async def test_a_model_that_is_unloaded_by_hand_leaves_its_memory_to_who_waits(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=1, a=Model(), b=Model()) as house:
        house.ask("a", MINUTE_TOKENS)
        await house.wait_state("a", "ready")
        sink = house.ask("b")
        await trio.sleep(1)
        await house.runners["a"].unload(force=True)
        began_s = trio.current_time()
        await house.answered(sink)

        assert trio.current_time() - began_s < 5
        assert house.state("a") == "stopped"


async def test_nobody_who_waits_no_more_is_loaded_for(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=1, a=Model(), b=Model()) as house:
        long = house.ask("a", MINUTE_TOKENS)
        await house.wait_state("a", "ready")
        request, sink = house.send("b")
        await trio.sleep(1)
        house.runners["b"].cancel(request)
        await house.answered(sink, long)
        await trio.sleep(300)

        assert (house.state("a"), house.state("b")) == ("ready", "stopped")
        assert house.loads("b") == 0


async def test_a_model_that_made_room_and_is_not_asked_for_does_not_come_back(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    memory = Memory(swap_wait_s=20, residency_min_s=5)
    async with open_house(places=1, memory=memory, a=Model(), b=Model()) as house:
        long = house.ask("a", MINUTE_TOKENS)
        await house.wait_state("a", "ready")
        sink = house.ask("b")
        await house.wait_state("a", "draining")
        request, _ = house.send("a")
        house.runners["a"].cancel(request)
        await house.answered(long, sink)
        await trio.sleep(300)

        assert (house.state("a"), house.state("b")) == ("stopped", "ready")


async def test_a_pinned_model_stays_and_who_has_no_room_beside_it_is_told(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=1, a=Model(pin=True), b=Model()) as house:
        await house.ready("a")
        sink = house.ask("b")
        await house.answered(sink)
        error = error_of(sink)
        assert error.kind is ErrorKind.MODEL_LOAD_FAILED
        assert error.data.retriable
        assert "beside `a`, which stay loaded, at most 0 MB could be free" in error.message
        await house.runners["a"].unload(force=True)
        await house.runners["b"].load(pin=None, options=None, on_progress=lambda _: None)

        assert (house.state("a"), house.state("b")) == ("stopped", "ready")


async def test_a_model_that_is_pinned_meanwhile_stays(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=2, **THREE) as house:
        await house.ready("a")
        await house.runners["a"].load(pin=True, options=None, on_progress=lambda _: None)
        await house.ready("b")
        await house.ready("c")

        assert [house.state(model) for model in "abc"] == ["ready", "stopped", "ready"]


async def test_a_preloaded_model_makes_room_last(autojump_clock: MockClock, open_house: OpenHouse) -> None:
    async with open_house(places=2, a=Model(preload=True), b=Model(), c=Model()) as house:
        for model in "abc":
            await house.ready(model)
            await trio.sleep(5)

        assert [house.state(model) for model in "abc"] == ["ready", "stopped", "ready"]


async def test_a_model_that_is_alone_too_large_is_refused_at_once_with_the_numbers(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=0.9, a=Model()) as house:
        began_s = trio.current_time()
        sink = house.ask("a")
        await house.answered(sink)
        error = error_of(sink)

        assert trio.current_time() - began_s < 0.1
        assert (error.kind, error.data.retriable) == (ErrorKind.MODEL_LOAD_FAILED, False)
        assert "needs about 2000 MB of memory, and 1800 MB are the budget for models" in error.message
        assert house.state("a") == "failed"
        assert house.loads("a") == 0


async def test_without_memory_for_two_workers_of_it_a_model_is_recycled_one_after_the_other_and_keeps_its_place(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=1.5, a=Model(), b=Model()) as house:
        running = house.ask("a", 100)
        await house.wait_state("a", "ready")
        sink = house.ask("b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.runners["a"].recycle)
            await house.wait_state("a", "draining")
            meanwhile = house.ask("a", 100)
        assert (house.loads("a"), house.loads("b")) == (2, 0)
        await house.answered(running, meanwhile, sink)

        assert whole(100, running, meanwhile)
        assert house.held_bytes_max[0] <= SIZE


async def test_with_memory_for_two_workers_of_it_a_model_is_recycled_at_once_and_both_count(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=2, a=Model(), b=Model()) as house:
        running = house.ask("a", MINUTE_TOKENS)
        await house.wait_state("a", "ready")
        await house.runners["a"].recycle()
        assert len(house.alive("a")) == 2
        sink = house.ask("b")
        await trio.sleep(10)
        assert house.loads("b") == 0
        await house.answered(running, sink)

        assert len(house.alive("a")) == 1
        assert house.held_bytes_max[0] <= 2 * SIZE


async def test_an_idle_model_is_unloaded_after_its_time_and_one_that_works_is_not(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=2, a=Model(idle_ttl_s=20), b=Model(idle_ttl_s=20, pin=True)) as house:
        await house.ready("b")
        long = house.ask("a", MINUTE_TOKENS)
        await house.answered(long)
        ended_s = trio.current_time()
        assert house.state("a") == "ready"
        await house.wait_state("a", "stopped")
        assert 19.9 <= trio.current_time() - ended_s < 21
        sink = house.ask("a")
        await house.answered(sink)

        assert whole(10, sink)
        assert house.state("b") == "ready"


async def test_one_that_grew_beyond_the_budget_makes_idle_ones_go(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=2, a=Model(), b=Model()) as house:
        await house.ready("a")
        long = house.ask("b", MINUTE_TOKENS)
        await house.wait_state("b", "ready")
        house.sizes["b"] = SIZE + GB
        await house.wait_state("a", "stopped")
        await house.answered(long)

        assert whole(MINUTE_TOKENS, long)


async def test_without_a_budget_one_model_is_loaded_however_little_the_machine_has(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=None, available=lambda _: 0, a=Model()) as house:
        sink = house.ask("a")
        await house.answered(sink)

        assert whole(10, sink)
        assert house.shops["a"].workers[0].signals == []


async def test_without_a_budget_an_idle_model_goes_when_the_machine_has_no_room_for_another(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(
        places=None, available=lambda held: max(0, 3 * GB - held), a=Model(), b=Model()
    ) as house:
        await house.answered(house.ask("a"))
        await house.answered(house.ask("b"))

        assert (house.state("a"), house.state("b")) == ("stopped", "ready")
        assert house.held_bytes_max[0] <= SIZE


async def test_all_who_wait_are_told_when_the_supervisor_ends(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(places=1, a=Model(), b=Model()) as house:
        running = house.ask("a", 50)
        await house.wait_state("a", "ready")
        sink = house.ask("b")
        await trio.sleep(1)
        async with trio.open_nursery() as closing:
            for runner in house.runners.values():
                closing.start_soon(runner.close, 30.0, trio.Event())

        assert whole(50, running)
        assert error_of(sink).kind is ErrorKind.SHUTTING_DOWN
        assert house.loads("b") == 0


@pytest.mark.parametrize("model", ["a", "b"])
async def test_a_load_that_fails_leaves_the_memory_to_others(
    autojump_clock: MockClock, open_house: OpenHouse, model: str
) -> None:
    failing = Plan(load_error=RpcError(ErrorKind.MODEL_LOAD_FAILED, "cannot load the model: no"))
    async with open_house(places=1, plan=failing, a=Model(), b=Model()) as house:
        first, second = house.ask("a"), house.ask("b")
        await house.answered(first, second)

        assert [error_of(sink).message for sink in (first, second)] == ["cannot load the model: no"] * 2
        assert house.residency.ledger.free_bytes() == SIZE
        assert house.state(model) == "failed"
