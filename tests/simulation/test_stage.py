"""The stage itself: time jumps, order follows from the seed, and what hangs is ended and described."""

import itertools

import pytest
import trio

from tests.simulation.stage import HungError, run_by_seed


def order_of_three(seed: int) -> list[int]:
    order: list[int] = []

    async def note(number: int) -> None:
        await trio.sleep(1)
        order.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(note, number)

    run_by_seed(seed, main, 10.0)
    return order


def test_what_is_due_together_happens_in_an_order_that_the_seed_decides() -> None:
    orders = [tuple(order_of_three(seed)) for seed in range(50)]

    assert len(set(orders)) == 6
    assert [tuple(order_of_three(seed)) for seed in range(50)] == orders


async def wait_shielded() -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def sleep_and_sleep() -> None:
    for _ in itertools.count():
        await trio.sleep(1)


async def turn_in_a_circle() -> None:
    while True:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("main", "why"),
    [
        (wait_shielded, "something waits for ever"),
        (sleep_and_sleep, "it is not over at 100 s"),
        (turn_in_a_circle, "something turns in a circle at 0.000 s"),
    ],
)
def test_what_hangs_is_ended_and_its_tasks_are_named(main: object, why: str) -> None:
    with pytest.raises(HungError, match=why) as raised:
        run_by_seed(1, main, 100.0)  # type: ignore[arg-type]

    assert main.__name__ in str(raised.value)  # type: ignore[attr-defined]
