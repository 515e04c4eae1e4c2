from typing import Any

import msgspec
import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.worker_link import Generate
from mlxsup.worker.engine.features import ABLE, FEATURES, Feature, refuse_unsupported
from tests.fakes.requests import GREEDY

TOOL = {"type": "function", "function": {"name": "f"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
TEXT = {"type": "text", "text": "a"}
ASKS: dict[str, dict[str, Any]] = {
    "images": {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": [TEXT, IMAGE]}]},
    "any JSON object": {"format": {"type": "json_object"}},
    "JSON by a schema": {"format": {"type": "json_schema", "json_schema": {"schema": {}}}},
    "text by a regular expression": {"format": {"type": "regex", "pattern": "a"}},
    "one of several texts": {"format": {"type": "choice", "choices": ["a"]}},
    "tools": {"tools": [TOOL]},
    "a tool that has to be called": {"tools": [TOOL], "tool_choice": "required"},
    "logprobs": {"logprobs": 0},
    "LoRA adapters": {"adapter": "a"},
}


def asks(**params: Any) -> Generate:
    return msgspec.convert({"max_tokens": 1, "sampling": msgspec.to_builtins(GREEDY), **params}, Generate)


def features() -> list[Any]:
    return [pytest.param(feature, id=feature.name) for feature in FEATURES]


@pytest.mark.parametrize("feature", features())
def test_a_feature_that_an_engine_lacks_is_refused_by_the_path_of_its_parameter(feature: Feature) -> None:
    request = asks(**ASKS[feature.name])
    refuse_unsupported(request, frozenset(FEATURES))
    with pytest.raises(RpcError) as caught:
        refuse_unsupported(request, frozenset(FEATURES) - {feature})
    assert caught.value.kind is ErrorKind.UNSUPPORTED
    path = caught.value.data.path or ""
    assert path in caught.value.message
    assert feature.name in caught.value.message
    assert path == ("$.messages[1].content[1]" if feature.name == "images" else feature.path)


@pytest.mark.parametrize(
    "params",
    [
        {"prompt": "a"},
        {"messages": [{"role": "user", "content": [TEXT]}]},
        {"format": {"type": "text"}},
        {"tools": [TOOL], "tool_choice": "none"},
        {"tool_choice": "auto"},
    ],
    ids=str,
)
def test_a_request_that_asks_for_no_feature_is_taken_by_every_engine(params: dict[str, Any]) -> None:
    refuse_unsupported(asks(**params), frozenset())


def test_no_two_features_have_one_name_and_engines_have_none_but_these() -> None:
    assert len({feature.name for feature in FEATURES}) == len(FEATURES)
    assert frozenset().union(*ABLE.values()) <= set(FEATURES)
