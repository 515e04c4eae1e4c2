"""A worker that produces what nobody asked for is ended before it fills anything, and its requests go on elsewhere."""

from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from mlxsup.protocol import worker_link as link
from mlxsup.protocol.generation import CalledFunction, GenerationResult, ToolCall
from mlxsup.protocol.jsonrpc import encode_notification
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.output_bound import TOKEN_CHARS_MAX, OutputBound
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.memory_worker import LOADED, Plan, full_text
from tests.fakes.requests import GREEDY, make_request
from tests.fakes.saying import call, logprob
from tests.unit.pool.conftest import OpenStage, Stage

TOKENS = 40
# It is ready by then, and computes nothing by itself.
STUCK_S = 2.5


def submit(stage: Stage, prompt: str, tokens: int = TOKENS) -> tuple[GenerationRequest, CollectingSink]:
    sink = CollectingSink()
    request = make_request(sink, prompt=prompt, tokens=tokens)
    stage.runner.submit(request)
    return request, sink


async def say(stage: Stage, *deltas: link.Delta) -> None:
    await stage.worker._say(encode_notification(link.STEP, link.Step(deltas=list(deltas))))


TOO_LONG = "x" * (TOKEN_CHARS_MAX * 5 + 1)
CALL = ToolCall(id="1", function=CalledFunction(name="f", arguments=TOO_LONG))
WHOLE = logprob(7)
BARE = msgspec.structs.replace(WHOLE, top=[])


@pytest.mark.parametrize(
    ("logprobs", "told"),
    [
        (None, {"reasoning": TOO_LONG}),
        (None, {"tool_calls": [CALL]}),
        (None, {"logprobs": [BARE]}),
        (0, {"logprobs": [BARE] * 6}),
        (0, {"logprobs": [WHOLE]}),
        (1, {"logprobs": [msgspec.structs.replace(WHOLE, top=WHOLE.top * 2)]}),
        (0, {"logprobs": [msgspec.structs.replace(BARE, text="x" * (TOKEN_CHARS_MAX * 10 + 1))]}),
    ],
    ids=["reasoning", "a call", "unasked", "more than tokens", "top unasked", "more top", "texts"],
)
def test_too_much_beside_the_text_is_found_and_as_much_as_tokens_can_have_is_not(
    logprobs: int | None, told: dict[str, Any]
) -> None:
    bound = OutputBound()
    bound.context_tokens = 100
    order = link.Generate(max_tokens=50, sampling=GREEDY, prompt="p", logprobs=logprobs)
    bound.grant(1, order)
    fits = [] if logprobs is None else [WHOLE if logprobs else BARE] * 5
    usual = link.Delta(1, "text", [7] * 5, "why", [call("f")], fits)
    assert not any(bound.is_exceeded(link.Step(deltas=[usual])) for _ in range(5))
    bound.grant(1, order)
    assert bound.is_exceeded(link.Step(deltas=[link.Delta(1, "", [7] * 5, **told)]))


@pytest.mark.parametrize(
    ("text", "tokens", "asked"),
    [
        ("", TOKENS + 1, TOKENS),
        ("", LOADED.context_tokens + 1, 10**9),
        ("x" * (TOKEN_CHARS_MAX * TOKENS), 1, TOKENS),
    ],
    ids=["more tokens than asked for", "more than its context holds", "more text than its tokens can be"],
)
async def test_too_much_for_one_request_ends_the_worker_and_all_requests_go_on_with_what_they_had(
    autojump_clock: MockClock, open_stage: OpenStage, text: str, tokens: int, asked: int
) -> None:
    async with open_stage(Plan(), Plan()) as stage:
        await stage.runner.ensure_ready()
        bad, bad_sink = submit(stage, "a", asked)
        _, beside = submit(stage, "b")
        await trio.sleep(1.05)
        had = list(bad.tokens)
        await say(stage, link.Delta(bad.id, text, [7] * tokens))
        await trio.sleep(0.001)
        kept = list(bad.tokens)
        await trio.sleep(60)

    assert stage.classes == ["protocol_broken"]
    assert "more than it was asked for" in (stage.notes.deaths[0][2].reason or "")
    assert 5 < len(had) < 20
    assert kept == had
    assert beside.text == full_text("b", TOKENS)
    assert "".join(bad_sink.pieces).startswith(full_text("a", TOKENS))
    assert bad.resumed == 1


async def test_many_small_steps_beyond_the_bound_are_found_as_one_large_one_is(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(Plan(stuck_s=STUCK_S), Plan()) as stage:
        await stage.runner.ensure_ready()
        request, sink = submit(stage, "a")
        for _ in range(TOKENS):
            await say(stage, link.Delta(request.id, "", [7]))
        await trio.sleep(0.01)
        before = stage.classes.copy()
        await say(stage, link.Delta(request.id, "", [7]))
        await trio.sleep(60)

    assert before == []
    assert stage.classes == ["protocol_broken"]
    assert len(request.tokens) == TOKENS
    (outcome,) = sink.outcomes
    assert isinstance(outcome, GenerationResult)


async def test_what_goes_on_in_another_worker_has_what_is_left_of_its_bound(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(Plan(), Plan(stuck_s=STUCK_S), Plan()) as stage:
        await stage.runner.ensure_ready()
        request, _ = submit(stage, "a")
        await trio.sleep(1.05)
        stage.worker.die(-11)
        await stage.wait_entered("ready", 2)
        left = TOKENS - len(request.tokens)
        await say(stage, link.Delta(request.id, "", [7] * left))
        await trio.sleep(0.01)
        before = len(stage.classes)
        await say(stage, link.Delta(request.id, "", [7]))
        await trio.sleep(60)

    assert 0 < left < TOKENS
    assert before == 1
    assert stage.classes[1:] == ["protocol_broken"]
    assert len(request.tokens) == TOKENS
