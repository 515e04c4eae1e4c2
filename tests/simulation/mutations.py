"""Defects, put into the supervisor while a test runs, each of which the checks have to find."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import msgspec
import trio

from mlxsup.protocol.worker_link import Delta, Step
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.hatchery import Hatchery
from mlxsup.supervisor.pool.replacement import Replacement
from mlxsup.supervisor.pool.runner import ModelRunner
from mlxsup.supervisor.pool.stderr_tail import StderrTail
from mlxsup.supervisor.pool.stop_ladder import StopLadder
from mlxsup.supervisor.pool.succession import Succession
from mlxsup.supervisor.pool.turn import Turn
from mlxsup.supervisor.recovery import aftermath
from mlxsup.supervisor.recovery.breaker import CircuitBreaker
from mlxsup.supervisor.recovery.gate import Gate
from mlxsup.supervisor.recovery.poison import PoisonWatch
from mlxsup.supervisor.recovery.restart_policy import RestartPolicy
from mlxsup.supervisor.recovery.watchdog import Watchdog
from mlxsup.supervisor.residency.ledger import Ledger
from mlxsup.supervisor.scheduling import refusals
from mlxsup.supervisor.scheduling.batch_limit import BatchLimit
from mlxsup.supervisor.scheduling.scheduler import Scheduler
from mlxsup.supervisor.scheduling.waiting_room import WaitingRoom

Change = Callable[[Callable[..., Any]], Callable[..., Any]]


class Mutation(msgspec.Struct, frozen=True):
    """`change` makes a worse function of the right one."""

    name: str
    owner: Any
    attribute: str
    change: Change

    @contextmanager
    def applied(self) -> Iterator[None]:
        worse = self.change(getattr(self.owner, self.attribute))
        with mock.patch.object(self.owner, self.attribute, worse):
            yield


def _instead(answer: Any = None) -> Change:
    """It does nothing, and says `answer`."""
    return lambda _: lambda *_args, **_more: answer


def _wait_not(_: Callable[..., Any]) -> Callable[..., Any]:
    async def return_at_once(*_: Any) -> None:
        await trio.lowlevel.checkpoint()

    return return_at_once


def _twice(right: Callable[..., Any]) -> Callable[..., Any]:
    def do(*args: Any) -> Any:
        right(*args)
        return right(*args)

    return do


def _forget_the_last(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda book, requests, now_s: right(book, requests[:-1], now_s)


def _never_the_last(right: Callable[..., Any]) -> Callable[..., Any]:
    """Of a step that has several, the last delta is lost."""
    return lambda book, port, step, now_s: right(book, port, Step(deltas=step.deltas[:1]), now_s)


def _swap(right: Callable[..., Any]) -> Callable[..., Any]:
    def take(book: Any, port: Any, step: Step, now_s: float) -> None:
        texts = [delta.text for delta in step.deltas]
        swapped = [
            Delta(delta.id, text, delta.tokens)
            for delta, text in zip(step.deltas, reversed(texts), strict=True)
        ]
        right(book, port, Step(deltas=swapped), now_s)

    return take


def _from_the_beginning(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda request: request.order


def _with_all_text(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda request: msgspec.structs.replace(right(request), delivered_chars=0)


def _one_more(right: Callable[..., Any]) -> Callable[..., Any]:
    def make(limit: Any, sequences_max: int, targets_s: Any) -> None:
        right(limit, sequences_max + 1, targets_s)

    return make


def _one_more_waits(right: Callable[..., Any]) -> Callable[..., Any]:
    def make(room: Any, bounds: Any, **more: Any) -> None:
        right(room, msgspec.structs.replace(bounds, requests_max=bounds.requests_max + 1), **more)

    return make


def _all_who_were_there(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _watch, in_flight, *_: list(in_flight)


def _always_once_more(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: right(*args) or 0.0


def _and_one_for_nobody(right: Callable[..., Any]) -> Callable[..., Any]:
    async def add(hatchery: Any) -> Any:
        added = await right(hatchery)
        await hatchery._new()
        return added

    return add


def _one_token_more(right: Callable[..., Any]) -> Callable[..., Any]:
    def tell(error: Any, request: Any) -> Any:
        told = right(error, request)
        if told.data.tokens_delivered is not None:
            told.data = msgspec.structs.replace(told.data, tokens_delivered=told.data.tokens_delivered + 1)
        return told

    return tell


def _at_once(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda runner, _drain_s, hurry: right(runner, 0.0, hurry)


def _a_third(_: Callable[..., Any]) -> Callable[..., Any]:
    """Of lives, whoever else drains."""

    def recycle(replacement: Any, why: str | None) -> None:
        lives = replacement._lives
        if why is not None and lives.current is not None and lives.successor is None:
            replacement.replace(lives.current)

    return recycle


MUTATIONS: tuple[Mutation, ...] = (
    Mutation("a resumed request is forgotten", Scheduler, "resume", _forget_the_last),
    Mutation("who gives way is forgotten", Scheduler, "_go_behind", _instead()),
    Mutation("a delta is lost", Scheduler, "on_step", _never_the_last),
    Mutation("deltas of two requests are swapped", Scheduler, "on_step", _swap),
    Mutation("a delta is delivered twice", GenerationRequest, "deliver", _twice),
    Mutation("a resumed request begins again", GenerationRequest, "remaining_order", _from_the_beginning),
    Mutation("a resumed text begins again", GenerationRequest, "remaining_order", _with_all_text),
    Mutation("who wants no resume is resumed", aftermath, "_may_resume", _instead(True)),
    Mutation("deadlines are ignored", ModelRunner, "expire", _instead()),
    Mutation("cancels do not reach the worker", Scheduler, "_stop_computing", _instead()),
    Mutation("the batch is one too large", BatchLimit, "__init__", _one_more),
    Mutation("the queue is one too long", WaitingRoom, "__init__", _one_more_waits),
    Mutation("nobody is ever suspected", PoisonWatch, "note_death", _instead([])),
    Mutation("neighbours of poison are quarantined", PoisonWatch, "note_death", _all_who_were_there),
    Mutation("suspects are not computed alone", PoisonWatch, "is_loner", _instead(False)),
    Mutation("quarantine is forgotten", PoisonWatch, "find", _instead()),
    Mutation("restarts wait for nothing", Turn, "delay", _instead()),
    Mutation("the budget of restarts is endless", RestartPolicy, "note_death", _always_once_more),
    Mutation("a third worker while one drains", Replacement, "_recycle", _a_third),
    Mutation("memory is given twice", Ledger, "free_bytes", _instead(10**15)),
    Mutation("a shutdown drains nothing", ModelRunner, "close", _at_once),
    Mutation("an unload waits for nobody", Succession, "draining", _instead(False)),
    Mutation("hangs are not seen", Watchdog, "check", _instead()),
    Mutation("nobody is killed", StopLadder, "kill", _wait_not),
    Mutation("what a worker wrote is not read", StderrTail, "feed", _instead([])),
    Mutation("a spare belongs to nobody", Hatchery, "_add_spare", _and_one_for_nobody),
    Mutation("a breaker is not held open", CircuitBreaker, "force_open", _instead()),
    Mutation("admissions are kept for ever", Gate, "left", _instead()),
    Mutation("one token more is told than delivered", refusals, "with_progress", _one_token_more),
)
