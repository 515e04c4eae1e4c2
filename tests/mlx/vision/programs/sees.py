"""The real engine by itself, with a model of random weights that sees: `sees.py FAMILY FOLDER`.

It prints one JSON text: what some requests are answered, each alone and in other ways that are to make no difference, what
mlx-vlm's own generation gives for the first of them, and what refused ones are told.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
from mlx_vlm.generate import generate_step
from mlx_vlm.models.phi3_v.vision import VisionModel
from msgspec.structs import replace

from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import ImagePart, Message, TextPart
from mlxsup.protocol.worker_link import Generate, Load
from mlxsup.worker.engine.load import load_engine
from mlxsup.worker.engine.vision.engine import VisionEngine
from tests.fakes.requests import GREEDY
from tests.mlx.vision.folders import MAKERS
from tests.mlx.vision.pictures import part

TOKENS = 10
# Phi-3-Vision's tower, with fewer and thinner layers than the one size that it has.
_TOWER = VisionModel.CLIP_VIT_LARGE_PATCH14_336_CONFIG
VisionModel.CLIP_VIT_LARGE_PATCH14_336_CONFIG = SimpleNamespace(
    **{**vars(_TOWER), "num_hidden_layers": 2, "intermediate_size": 64}
)

Parts = list[TextPart | ImagePart]
ONE: Parts = [part(1), TextPart("What is it?")]
ORDERS: dict[str, Parts] = {
    "one": ONE,
    "another": [part(2), TextPart("What is it?")],
    "none": [TextPart("What is it?")],
    "two": [TextPart("This: "), part(1), TextPart(" and this: "), part(3, (60, 90), "JPEG"), TextPart("?")],
    "two the other way": [
        TextPart("This: "),
        part(3, (60, 90), "JPEG"),
        TextPart(" and this: "),
        part(1),
        TextPart("?"),
    ],
}


def order(parts: Parts, **fields: Any) -> Generate:
    messages = [Message(role="user", content=parts)]
    return Generate(
        **{"max_tokens": TOKENS, "sampling": GREEDY, "messages": messages, "accepted_unix_s": 0.0, **fields}
    )


def load(folder: Path, chunk_tokens: int = 2048, prefix_bytes_max: int = 0) -> VisionEngine:
    engine = load_engine(
        Load(
            model_path=str(folder),
            context_tokens_max=None,
            batch_sequences_max=8,
            prefill_chunk_tokens=chunk_tokens,
            float32=None,
            wired_limit_bytes=0,
            cache_limit_bytes=None,
            heartbeat_interval_s=1.0,
            parked_bytes_max=1 << 30,
            prefix_bytes_max=prefix_bytes_max,
            images_max=8,
            image_bytes_max=1 << 20,
            image_pixels_max=1 << 20,
        ),
        lambda *_: None,
    )
    found = engine._text
    assert isinstance(found, VisionEngine)
    return found


def run(engine: VisionEngine, orders: dict[str, Generate]) -> dict[str, list[int]]:
    """The tokens of each, all at once."""
    names = list(orders)
    tokens: dict[str, list[int]] = {name: list(orders[name].delivered_tokens) for name in names}
    left = set()
    for id, name in enumerate(names):
        if engine.submit(id, engine.prepare(orders[name])) is None:
            left.add(id)
    while left:
        for emission in engine.step(lambda: False) or []:
            assert emission.error is None, getattr(emission.error, "__notes__", emission.error)
            tokens[names[emission.id]] += emission.tokens
            if emission.finish is not None:
                left.discard(emission.id)
    return tokens


def interrupted(engine: VisionEngine, parts: Parts, steps: int) -> list[int]:
    """It gives way after so many steps, and comes again."""
    asked = order(parts)
    engine.submit(1, engine.prepare(asked))
    tokens: list[int] = []
    for _ in range(steps):
        for emission in engine.step(lambda: False) or []:
            tokens += emission.tokens
    engine.give_way(1)
    return run_one(engine, replace(asked, delivered_tokens=tokens, delivered_chars=0), id=1)


def run_one(engine: VisionEngine, asked: Generate, id: int = 0) -> list[int]:
    tokens = list(asked.delivered_tokens)
    if engine.submit(id, engine.prepare(asked)) is not None:
        return tokens
    while True:
        for emission in engine.step(lambda: False) or []:
            tokens += emission.tokens
            if emission.finish is not None:
                return tokens


def reference(engine: VisionEngine, parts: Parts) -> list[int]:
    """By mlx-vlm's own generation of the same prompt."""
    prepared = engine.prepare(order(parts))
    sight = prepared.sight
    assert sight is not None
    family = engine._family
    tokens = list(prepared.prompt_tokens)
    for place, picture in zip(sight.places, sight.pictures, strict=True):
        tokens[place : place + picture.tokens] = [family.token] * picture.tokens
    (picture,) = sight.pictures
    arrays = {name: mx.array(values) for name, values in picture.arrays.items()}
    steps = generate_step(
        mx.array([tokens]),
        engine._sighted.sighted,
        arrays.pop("pixel_values"),
        None,
        max_tokens=TOKENS,
        temperature=0.0,
        **arrays,
    )
    return [int(token) for token, _ in steps]


def refusal(engine: VisionEngine, asked: Generate) -> list[str | None]:
    try:
        engine.prepare(asked)
    except RpcError as error:
        return [error.kind.value, error.data.path]
    return []


def main(family: str, folder: Path) -> None:
    MAKERS[family](folder)
    engine = load(folder)
    orders = {name: order(parts) for name, parts in ORDERS.items()}
    alone = {name: run(engine, {name: asked})[name] for name, asked in orders.items()}
    keeping = load(folder, prefix_bytes_max=1 << 28)
    run(keeping, {"one": orders["one"]})
    whole = alone["one"]
    mark = "".join(family.mark(1) for family in [engine._family])
    found = {
        "alone": alone,
        "together": run(engine, orders),
        "in small chunks": run(load(folder, chunk_tokens=16), orders),
        "with what was kept": run(keeping, orders),
        "cut": [
            run_one(engine, replace(orders["one"], delivered_tokens=whole[:at])) for at in range(len(whole))
        ],
        "interrupted": [interrupted(engine, ONE, steps) for steps in (0, 1, 2, 5)],
        "reference": reference(engine, ONE),
        "refusals": {
            "nine": refusal(engine, order([part(1)] * 9)),
            "mark": refusal(engine, order([part(1), TextPart(mark)])),
            "adapter": refusal(engine, replace(orders["none"], adapter="a")),
            "many tokens": refusal(engine, order([part(1), TextPart("x" * 2100)])),
        },
    }
    print(json.dumps(found))


main(sys.argv[1], Path(sys.argv[2]))
