"""A model of random weights, at temperature 1, through the whole engine: what it says validates all the same."""

import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, JsonSchemaFormat, Message, NamedSchema
from mlxsup.protocol.worker_link import Generate, Load, Sampling
from mlxsup.worker.engine.interface import Emission
from mlxsup.worker.engine.text import TextEngine
from tests.mlx.outputs.tokenizers import HERMES, make_folder
from tests.unit.grammar.schemas import REAL, draw_schema

TOKENS_MAX = 250
BATCH = 16

pytestmark = pytest.mark.slow
HOT = Sampling(
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    seed=0,
)
SCHEMAS = {**{f"random {seed}": draw_schema(random.Random(seed)) for seed in range(200)}, **REAL}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TextEngine:
    folder = make_folder(tmp_path_factory.mktemp("model"), HERMES)
    order = Load(
        model_path=str(folder),
        context_tokens_max=None,
        batch_sequences_max=BATCH,
        prefill_chunk_tokens=64,
        float32=None,
        wired_limit_bytes=0,
        cache_limit_bytes=None,
        heartbeat_interval_s=1,
        grammar_compile_s=60.0,
    )
    return TextEngine.load(order, lambda *_: None)


def order(schema: dict[str, Any], seed: int, tokens_max: int = TOKENS_MAX) -> Generate:
    return Generate(
        max_tokens=tokens_max,
        sampling=Sampling(
            **{field: getattr(HOT, field) for field in HOT.__struct_fields__ if field != "seed"}, seed=seed
        ),
        prompt="Say it:",
        format=JsonSchemaFormat(json_schema=NamedSchema(schema=schema)),
    )


def compute(engine: TextEngine, orders: list[Generate]) -> list[list[Emission]]:
    said: list[list[Emission]] = [[] for _ in orders]
    for id, each in enumerate(orders):
        only = engine.submit(id, engine.prepare(each))
        said[id] += [] if only is None else [only]
    left = {id for id, emissions in enumerate(said) if not emissions}
    while left:
        for emission in engine.step(lambda: False) or []:
            said[emission.id].append(emission)
            if emission.finish is not None or emission.error is not None:
                left.discard(emission.id)
    return said


def text_of(emissions: list[Emission]) -> str:
    assert emissions[-1].error is None, emissions[-1].error
    return "".join(emission.text for emission in emissions)


def test_every_answer_validates(engine: TextEngine) -> None:
    names = list(SCHEMAS)
    finishes = []
    for first in range(0, len(names), BATCH):
        batch = names[first : first + BATCH]
        said = compute(engine, [order(SCHEMAS[name], seed) for seed, name in enumerate(batch, first)])
        for name, emissions in zip(batch, said, strict=True):
            text = text_of(emissions)
            assert Draft202012Validator(SCHEMAS[name]).is_valid(json.loads(text)), (name, text)
            finishes.append(emissions[-1].finish)

    assert set(finishes) <= {FinishReason.STOP, FinishReason.LENGTH}


def test_an_answer_that_is_cut_short_validates_and_says_so_and_one_that_can_not_be_is_refused(
    engine: TextEngine,
) -> None:
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 3}
    (emissions,) = compute(engine, [order(schema, 1, tokens_max=30)])

    assert Draft202012Validator(schema).is_valid(json.loads(text_of(emissions)))
    assert emissions[-1].finish in {FinishReason.STOP, FinishReason.LENGTH}
    assert sum(len(emission.tokens) for emission in emissions) <= 30
    with pytest.raises(RpcError, match="the shortest answer") as raised:
        engine.prepare(order(schema, 1, tokens_max=5))
    assert (raised.value.kind, raised.value.data.path) == (ErrorKind.INVALID_PARAMS, "$.max_tokens")


def test_a_forced_call_is_one_of_the_tools_and_another_worker_goes_on_with_it_at_any_token(
    engine: TextEngine,
) -> None:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": REAL["weather tool"]}}
        for name in ("one", "other")
    ]
    choices: list[str | dict[str, Any]] = [
        "required",
        {"type": "function", "function": {"name": "other"}},
    ]
    for seed, choice in enumerate(choices):
        request = Generate(
            max_tokens=400,
            sampling=order({}, seed).sampling,
            messages=[Message(role="user", content="hi")],
            tools=tools,
            tool_choice=choice,
        )
        (emissions,) = compute(engine, [request])
        (call,) = [call for emission in emissions for call in emission.tool_calls]

        assert emissions[-1].finish is FinishReason.TOOL_CALLS
        assert text_of(emissions) == ""
        assert call.function.name in ({"one", "other"} if choice == "required" else {"other"})
        assert Draft202012Validator(REAL["weather tool"]).is_valid(json.loads(call.function.arguments))
        tokens = [token for emission in emissions for token in emission.tokens]
        for cut in range(0, len(tokens), 7):
            rest = Generate(
                **{
                    field: getattr(request, field)
                    for field in request.__struct_fields__
                    if field != "delivered_tokens"
                },
                delivered_tokens=tokens[:cut],
            )
            (after,) = compute(engine, [rest])
            assert tokens[:cut] + [token for emission in after for token in emission.tokens] == tokens
            assert [call for emission in after for call in emission.tool_calls] == [call]


@pytest.mark.parametrize("name", ["random 3", "random 60", "OpenAI's user interface", "Stripe's charge"])
def test_an_answer_by_a_schema_is_the_same_wherever_another_worker_takes_it_up(
    engine: TextEngine, name: str
) -> None:
    whole = order(SCHEMAS[name], 5, tokens_max=150)
    (emissions,) = compute(engine, [whole])
    tokens = [token for emission in emissions for token in emission.tokens]
    for cut in range(0, len(tokens), max(1, len(tokens) // 12)):
        rest = Generate(
            **{
                field: getattr(whole, field)
                for field in whole.__struct_fields__
                if field != "delivered_tokens"
            },
            delivered_tokens=tokens[:cut],
        )
        (after,) = compute(engine, [rest])
        assert tokens[:cut] + [token for emission in after for token in emission.tokens] == tokens
