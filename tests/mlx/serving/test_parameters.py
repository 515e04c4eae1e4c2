"""Parameters do what they say, and what can't be honoured is refused by name."""

from typing import Any

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason
from tests.mlx.serving.conftest import Serving

TOOL = {"type": "function", "function": {"name": "f"}}
COUNT = {"prompt": "1, 2, 3, 4, 5, 6,", "temperature": 0}


def refusal(serving: Serving, method: str, **params: Any) -> RpcError:
    with pytest.raises(RpcError) as raised:
        serving.ask(method, **params)
    assert "/" not in raised.value.message.replace("/10", "")
    return raised.value


def test_a_stop_string_that_is_split_over_tokens_ends_the_text_and_is_not_shown(serving: Serving) -> None:
    whole = serving.ask("generate", **COUNT, max_tokens=16)
    assert ", 9, 1" in whole.text

    stopped = serving.ask("generate", **COUNT, max_tokens=16, stop=["never", ", 9, 1"])

    assert stopped.text == whole.text[: whole.text.index(", 9, 1")]
    assert stopped.finish_reason is FinishReason.STOP


def test_a_held_back_beginning_of_a_stop_string_is_shown_at_the_end(serving: Serving) -> None:
    whole = serving.ask("generate", **COUNT, max_tokens=8)

    held = serving.ask("generate", **COUNT, max_tokens=8, stop=[whole.text[-2:] + "never"])

    assert held.text == whole.text
    assert held.finish_reason is FinishReason.LENGTH


def test_logit_bias_can_forbid_and_force_a_token(serving: Serving) -> None:
    (token,) = serving.ask("tokenize", text=" Paris").tokens
    question = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}

    forbidden = serving.ask("chat", **question, max_tokens=12, logit_bias={str(token): -100})
    forced = serving.ask("chat", **question, max_tokens=3, logit_bias={str(token): 100})

    assert "Paris" not in forbidden.text
    assert forced.text == " Paris Paris Paris"


@pytest.mark.parametrize(
    "penalty", [{"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"repetition_penalty": 1.5}]
)
def test_each_penalty_breaks_a_repetition(serving: Serving, penalty: dict[str, float]) -> None:
    loop = {"prompt": "na na na na na na na na", "temperature": 0, "max_tokens": 24}

    plain = serving.ask("generate", **loop)
    penalised = serving.ask("generate", **loop, **penalty)

    assert penalised.text.count(" na") < plain.text.count(" na")


def test_min_p_of_1_leaves_the_likeliest_token_only(serving: Serving) -> None:
    greedy = serving.ask("generate", **COUNT, max_tokens=8)

    hot = serving.ask("generate", prompt=COUNT["prompt"], temperature=2.0, min_p=1.0, seed=5, max_tokens=8)
    top_1 = serving.ask("generate", prompt=COUNT["prompt"], temperature=2.0, top_k=1, seed=6, max_tokens=8)

    assert hot.text == greedy.text
    assert top_1.text == greedy.text


def test_tokens_and_text_convert_both_ways(serving: Serving) -> None:
    text = "Größe 42, 日本 👍"
    tokens = serving.ask("tokenize", text=text).tokens

    assert serving.ask("detokenize", tokens=tokens).text == text
    assert serving.ask("generate", prompt_tokens=tokens, max_tokens=1).usage.prompt_tokens == len(tokens)


def test_a_cancelled_request_is_answered_with_the_text_so_far(serving: Serving) -> None:
    with serving.connect() as client:
        stream = client.stream("generate", {"model": "smollm2-135m", **COUNT, "max_tokens": 4000})
        pieces = []
        for piece in stream:
            pieces.append(piece)
            if len(pieces) == 3:
                stream.cancel()

    assert stream.result is not None
    assert stream.result.finish_reason is FinishReason.CANCELLED
    assert stream.result.text == "".join(pieces)
    assert stream.result.usage.completion_tokens < 100


def test_a_prompt_over_the_context_is_refused_with_both_numbers(serving: Serving) -> None:
    error = refusal(serving, "generate", prompt="word " * 9000)

    assert error.kind is ErrorKind.LIMIT_EXCEEDED
    assert "8192" in error.message
    assert "shorten" in error.message


def test_a_prompt_far_over_the_context_is_refused_without_tokenising_it(serving: Serving) -> None:
    error = refusal(serving, "chat", messages=[{"role": "user", "content": "x" * 4_000_000}])

    assert error.kind is ErrorKind.LIMIT_EXCEEDED
    assert "characters" in error.message


@pytest.mark.parametrize(
    ("params", "kind", "path"),
    [
        ({"temperature": -1}, ErrorKind.INVALID_PARAMS, "$.temperature"),
        ({"max_tokens": 0}, ErrorKind.INVALID_PARAMS, "$.max_tokens"),
        ({"temprature": 1}, ErrorKind.INVALID_PARAMS, "$.temprature"),
        ({"logit_bias": {"99999": 1}}, ErrorKind.INVALID_PARAMS, "$.logit_bias"),
        ({"prompt_tokens": [1]}, ErrorKind.INVALID_PARAMS, "$.prompt"),
        ({"tools": [{}]}, ErrorKind.INVALID_PARAMS, "$.tools[0].type"),
        ({"tools": [TOOL]}, ErrorKind.UNSUPPORTED, "$.tools"),
        ({"tool_choice": "required"}, ErrorKind.INVALID_PARAMS, "$.tool_choice"),
        ({"logprobs": 20, "max_tokens": 20_000}, ErrorKind.LIMIT_EXCEEDED, "$.logprobs"),
        ({"adapter": "nobody's"}, ErrorKind.INVALID_PARAMS, "$.adapter"),
    ],
)
def test_a_bad_parameter_is_named(
    serving: Serving, params: dict[str, Any], kind: ErrorKind, path: str
) -> None:
    error = refusal(serving, "generate", prompt="x", **params)

    assert (error.kind, error.data.path) == (kind, path)


def test_logprobs_come_with_each_token_in_the_stream_and_in_the_result(serving: Serving) -> None:
    params = {"model": "smollm2-135m", **COUNT, "max_tokens": 12, "logprobs": 3}
    with serving.connect() as client:
        stream = client.stream("generate", params)
        deltas = []
        while (delta := stream.next_delta()) is not None:
            deltas.append(delta)

    assert stream.result is not None
    logprobs = stream.result.logprobs
    assert logprobs is not None
    assert len(logprobs) == stream.result.usage.completion_tokens == 12
    assert [entry for delta in deltas for entry in delta.logprobs] == logprobs
    assert [token for delta in deltas for token in delta.tokens] == [entry.token for entry in logprobs]
    assert "".join(entry.text for entry in logprobs) == stream.result.text
    for entry in logprobs:
        # The likeliest is the one that is chosen at temperature 0.
        assert (entry.top[0].token, entry.top[0].logprob) == (entry.token, entry.logprob)
        assert [other.logprob for other in entry.top] == sorted(
            (other.logprob for other in entry.top), reverse=True
        )
        assert len(entry.top) == 3


def test_a_deadline_that_passes_ends_the_request_and_frees_its_place(serving: Serving) -> None:
    error = refusal(serving, "generate", prompt="Once", max_tokens=4000, deadline_ms=500)

    assert error.kind is ErrorKind.DEADLINE_EXCEEDED
    assert serving.ask("generate", **COUNT, max_tokens=2).usage.completion_tokens == 2


def test_an_image_for_a_text_model_is_unsupported(serving: Serving) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    error = refusal(serving, "chat", messages=[{"role": "user", "content": [part]}])

    assert (error.kind, error.data.path) == (ErrorKind.UNSUPPORTED, "$.messages[0].content[0]")
