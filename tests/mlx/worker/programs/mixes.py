"""The real engine by itself: `mixes.py FOLDER ADAPTERS` computes sixteen requests of all kinds alone, and then in one batch.

It prints one JSON text: by their names what each was alone and what in the batch. `ADAPTERS` is an empty folder.
"""

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mlx_lm.utils import load_model
from msgspec.structs import replace

from mlxsup.protocol.generation import (
    ChoiceFormat,
    JsonSchemaFormat,
    Message,
    NamedSchema,
    RegexFormat,
)
from mlxsup.protocol.worker_link import Generate, Load, Sampling
from mlxsup.worker.engine.interface import Emission
from mlxsup.worker.engine.text import TextEngine

TOKENS = 24
CANCELLED_AT_TOKENS = 5
GREEDY = Sampling(
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    seed=1,
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "languages": {"type": "array", "items": {"enum": ["German", "French"]}, "maxItems": 2},
    },
    "required": ["name", "age", "languages"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 16},
                "days": {"type": "integer", "maximum": 9},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
STORY = Generate(max_tokens=TOKENS, sampling=GREEDY, prompt="Once upon a time")
ORDERS = {
    "greedy": STORY,
    "greedy, repeating": replace(STORY, prompt="one two three one two three one two three one"),
    "greedy, long": replace(STORY, prompt="The history of the lighthouse begins " * 12),
    "seeded": replace(STORY, seeded=True, sampling=replace(GREEDY, temperature=0.9, seed=7)),
    "seeded, penalties": replace(
        STORY, sampling=replace(GREEDY, temperature=0.7, seed=9, repetition_penalty=1.2, top_p=0.9)
    ),
    "json schema": replace(
        STORY, max_tokens=60, format=JsonSchemaFormat(json_schema=NamedSchema(schema=SCHEMA))
    ),
    "json schema, seeded": replace(
        STORY,
        max_tokens=60,
        sampling=replace(GREEDY, temperature=1.0, seed=4),
        format=JsonSchemaFormat(json_schema=NamedSchema(schema=SCHEMA)),
    ),
    "tool call": replace(
        STORY,
        max_tokens=60,
        prompt=None,
        messages=[Message(role="user", content="What is the weather in Paris?")],
        accepted_unix_s=0.0,
        tools=[WEATHER],
        tool_choice="required",
    ),
    "regex": replace(STORY, format=RegexFormat(pattern="(red|green|blue)(, (red|green|blue)){3}")),
    "choice": replace(STORY, format=ChoiceFormat(choices=["yes, always", "no, never", "perhaps"])),
    "stop string": replace(STORY, stop=("time", "was")),
    "logprobs": replace(STORY, logprobs=3),
    "logprobs, schema": replace(
        STORY, max_tokens=60, logprobs=1, format=JsonSchemaFormat(json_schema=NamedSchema(schema=SCHEMA))
    ),
    "first adapter": replace(STORY, adapter="first"),
    "second adapter": replace(STORY, adapter="second"),
    "cancelled": replace(
        STORY, prompt=None, messages=[Message(role="user", content="Tell me all.")], accepted_unix_s=0.0
    ),
}


def make_adapter(folder: Path, model_folder: str, seed: int) -> None:
    """As `mlx_lm.lora` leaves it, with weights that change what is said."""
    model, _ = load_model(Path(model_folder), lazy=True)
    mx.random.seed(seed)
    deltas = {}
    for number in (0, len(model.layers) - 1):
        inputs = model.args.hidden_size
        name = f"model.layers.{number}.self_attn.q_proj"
        deltas[f"{name}.lora_a"] = mx.random.normal((inputs, 4))
        deltas[f"{name}.lora_b"] = mx.random.normal((4, inputs)) * 0.5
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), deltas)
    (folder / "adapter_config.json").write_text(
        '{"fine_tune_type": "lora", "lora_parameters": {"scale": 1.0}}'
    )


def compute(engine: TextEngine, orders: dict[str, Generate]) -> dict[str, dict[str, Any]]:
    names = dict(enumerate(orders))
    said: dict[int, list[Emission]] = {id: [] for id in names}
    for id, name in names.items():
        ended = engine.submit(id, engine.prepare(orders[name]))
        assert ended is None
    left = set(names)
    while left:
        for emission in engine.step(lambda: False) or []:
            if emission.id in left:
                said[emission.id].append(emission)
            if emission.finish is not None or emission.error is not None:
                left.discard(emission.id)
        for id in [id for id in left if names[id] == "cancelled"]:
            if sum(len(emission.tokens) for emission in said[id]) >= CANCELLED_AT_TOKENS:
                said[id].append(engine.cancel(id))
                left.discard(id)
    return {names[id]: told(emissions) for id, emissions in said.items()}


def told(emissions: list[Emission]) -> dict[str, Any]:
    errors = [str(emission.error) for emission in emissions if emission.error is not None]
    return {
        "text": "".join(emission.text for emission in emissions),
        "tokens": [token for emission in emissions for token in emission.tokens],
        "finish": emissions[-1].finish,
        "errors": errors,
        "calls": [msgspec.to_builtins(call) for emission in emissions for call in emission.tool_calls],
        "chances": [
            [chance.logprob for chance in (entry, *entry.top)]
            for emission in emissions
            for entry in emission.logprobs
        ],
    }


def main(folder: str, adapters: str) -> None:
    for seed, name in enumerate(("first", "second")):
        make_adapter(Path(adapters) / name, folder, seed)
    load = Load(
        model_path=folder,
        context_tokens_max=512,
        batch_sequences_max=16,
        prefill_chunk_tokens=64,
        float32=None,
        wired_limit_bytes=0,
        cache_limit_bytes=None,
        heartbeat_interval_s=1.0,
        adapters={name: str(Path(adapters) / name) for name in ("first", "second")},
        adapters_bytes_max=1 << 30,
        grammar_compile_s=60.0,
    )
    engine = TextEngine.load(load, lambda *_: None)
    alone: dict[str, Any] = {}
    for name, order in ORDERS.items():
        alone |= compute(engine, {name: order})
    sys.stdout.buffer.write(msgspec.json.encode({"alone": alone, "together": compute(engine, ORDERS)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
