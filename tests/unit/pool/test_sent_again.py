"""A request that kills workers and is sent again under another id: it is found, and the model goes on."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from mlxsup.protocol.errors import ErrorKind, RpcError
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.memory_worker import MemoryWorker, full_text
from tests.fakes.requests import make_request
from tests.unit.pool.conftest import OpenStage, Stage, until

POISON = "poison"
TOO_BIG = b"RuntimeError: [metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum\n"
SENT_MAX = 30

Effect = Callable[[MemoryWorker], Awaitable[None]]


async def abort(worker: MemoryWorker) -> None:
    worker.die(-6)


async def ask_too_much(worker: MemoryWorker) -> None:
    await worker.complaints.send_all(TOO_BIG)
    worker.die(-6)


async def hang(worker: MemoryWorker) -> None:
    worker.plan = replace(worker.plan, stuck_s=0.0)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[Effect], None]:
    """What a worker does at the second token of the poison."""
    step = MemoryWorker._step

    def set_effect(effect: Effect) -> None:
        async def take_effect(self: MemoryWorker) -> None:
            poisons = [id for id, order in self._sequences.items() if order.prompt == POISON]
            if any(self._done[id] == 1 for id in poisons):
                await effect(self)
            else:
                await step(self)

        monkeypatch.setattr(MemoryWorker, "_step", take_effect)

    return set_effect


async def send_until_refused(stage: Stage, *, resume: bool = True, patience_s: float = 3600.0) -> RpcError:
    """The poison, again and again, as a client does that waits so long for an answer."""
    for _ in range(SENT_MAX):
        sink = CollectingSink()
        request = make_request(sink, prompt=POISON, tokens=5)
        request.resume = resume
        try:
            stage.runner.submit(request)
        except RpcError as error:
            return error
        with trio.move_on_after(patience_s):
            await until(lambda sink=sink: bool(sink.outcomes))  # type: ignore[misc]
        stage.runner.expire(request)
    pytest.fail("it was never refused")


async def expect_that_others_are_served(stage: Stage) -> None:
    sink = CollectingSink()
    stage.runner.submit(make_request(sink, tokens=3))
    await until(lambda: bool(sink.outcomes))
    assert sink.text == full_text("p", 3)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("effect", [abort, ask_too_much])
async def test_what_fails_with_its_worker_and_is_sent_again_is_refused_while_others_are_served(
    open_stage: OpenStage,
    poisoned: Callable[[Effect], None],
    effect: Effect,
    resume: bool,
    autojump_clock: MockClock,
) -> None:
    poisoned(effect)
    async with open_stage() as stage:
        error = await send_until_refused(stage, resume=resume)

        assert error.kind is ErrorKind.QUARANTINED
        assert len(stage.notes.deaths) == 2
        assert len(stage.notes.quarantined) == 1
        await expect_that_others_are_served(stage)


@pytest.mark.parametrize("patience_s", [10.0, 30.0])
async def test_what_hangs_is_found_though_its_client_gives_up_before_the_hang_is_seen(
    open_stage: OpenStage,
    poisoned: Callable[[Effect], None],
    patience_s: float,
    autojump_clock: MockClock,
) -> None:
    poisoned(hang)
    async with open_stage() as stage:
        error = await send_until_refused(stage, patience_s=patience_s)

        assert error.kind is ErrorKind.QUARANTINED
        assert stage.classes == ["hung", "hung"]
        await expect_that_others_are_served(stage)


async def test_who_was_there_when_it_killed_is_served_when_it_is_sent_again(
    open_stage: OpenStage, poisoned: Callable[[Effect], None], autojump_clock: MockClock
) -> None:
    poisoned(abort)
    async with open_stage() as stage:
        for _ in range(3):
            neighbour = make_request(CollectingSink(), prompt="neighbour", tokens=50)
            neighbour.resume = False
            stage.runner.submit(neighbour)
            error = None
            try:
                stage.runner.submit(make_request(CollectingSink(), prompt=POISON, tokens=5))
            except RpcError as refusal:
                error = refusal
            await until(lambda n=neighbour: n.ended)  # type: ignore[misc]
        sink = CollectingSink()
        stage.runner.submit(make_request(sink, prompt="neighbour", tokens=50))
        await until(lambda: bool(sink.outcomes))

        assert error is not None
        assert error.kind is ErrorKind.QUARANTINED
        assert sink.text == full_text("neighbour", 50)
        assert len(stage.notes.quarantined) == 1
