"""Questions to a worker, beside requests that are to be computed alone: both end, whoever gives up."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Model
from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.jsonrpc import Call
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.memory_worker import MemoryWorker, Plan, full_text, question_tokens
from tests.fakes.requests import make_request
from tests.unit.pool.conftest import OpenStage, Stage, until

PLAN = Plan(answers_questions=True)


async def tokenize(stage: Stage) -> link.Tokenized:
    return await stage.runner.call(link.TOKENIZE, link.Tokenize(text="q"), link.Tokenized)


def hold_back(worker: MemoryWorker, method: str) -> list[Call]:
    """Calls of this method are heard, and not obeyed."""
    obey, held = worker._obey, []

    async def obey_others(call: Call) -> None:
        if call.method == method:
            held.append(call)
        else:
            await obey(call)

    worker._obey = obey_others  # type: ignore[method-assign]
    return held


async def test_a_question_that_nobody_waits_for_any_more_holds_a_suspect_up_until_it_is_answered(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(PLAN) as stage:
        sinks = [CollectingSink(), CollectingSink()]
        await stage.runner.ensure_ready()
        for prompt, sink in zip("ab", sinks, strict=True):
            stage.runner.submit(make_request(sink, prompt=prompt, tokens=40))
        obey: Any = stage.worker._obey
        held = hold_back(stage.worker, link.TOKENIZE)
        with trio.move_on_after(0.5):
            await tokenize(stage)
        worker = stage.worker
        suspect, again = CollectingSink(), make_request(CollectingSink(), prompt="c", tokens=40)
        stage.runner._scheduler._poison.note_death([again], "aborted", trio.current_time())
        stage.runner.submit(make_request(suspect, prompt="c", tokens=40))
        await until(lambda: all(sink.outcomes for sink in sinks))
        await trio.sleep(2)
        assert suspect.pieces == []
        await obey(held[0])
        await trio.sleep(10)

    assert suspect.text == full_text("c", 40)
    assert stage.worker is worker


async def test_a_question_that_waits_for_a_suspect_is_put_when_the_worker_is_taken_away_from_it(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    answers: list[link.Tokenized] = []
    async with open_stage(PLAN) as stage, trio.open_nursery() as nursery:
        await stage.runner.ensure_ready()
        request = make_request(CollectingSink(), prompt="a", tokens=400)
        stage.runner.submit(request)
        await trio.sleep(1.05)
        stage.worker.die(-11)
        await stage.wait_entered("ready", 2)
        hold_back(stage.worker, link.CANCEL)

        async def ask() -> None:
            answers.append(await tokenize(stage))

        nursery.start_soon(ask)
        await trio.sleep(0.1)
        stage.runner.expire(request)
        await stage.runner.unload(force=True)
        await trio.sleep(30)

    assert [answer.tokens for answer in answers] == [question_tokens("q")]


async def test_who_gives_up_waiting_to_ask_leaves_nothing_behind(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(PLAN) as stage:
        await stage.runner.ensure_ready()
        stage.runner.submit(make_request(CollectingSink(), prompt="a", tokens=400))
        await trio.sleep(1.05)
        stage.worker.die(-11)
        await stage.wait_entered("ready", 2)
        with trio.move_on_after(0.1) as patience:
            await tokenize(stage)

        assert patience.cancelled_caught
        assert not len(stage.runner._scheduler.askers)


async def test_a_worker_owes_so_many_answers_at_most_also_to_those_who_have_given_up(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    model = Model(batch_sequences_max=1, queue_requests_max=2)
    async with open_stage(PLAN, model=model) as stage:
        await stage.runner.ensure_ready()
        hold_back(stage.worker, link.TOKENIZE)
        for _ in range(3):
            with trio.move_on_after(0.1):
                await tokenize(stage)
        with pytest.raises(RpcError) as refused:
            await tokenize(stage)

    assert refused.value.kind is ErrorKind.OVERLOADED
