"""The real engine by itself: `resumes.py FOLDER` cuts each of some requests at every token and goes on with it.

It prints one JSON text: of each request its whole answer, and the answers with each cut; an answer is its text, its
tokens and how it ended.
"""

import json
import sys
from typing import Any

from msgspec.structs import replace

from mlxsup.protocol.generation import Message
from mlxsup.protocol.worker_link import Generate, Load, Sampling
from mlxsup.worker.engine.interface import Emission
from mlxsup.worker.engine.text import TextEngine

TOKENS = 8
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
PENALTIES = replace(GREEDY, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=1.0)
STORY = Generate(max_tokens=TOKENS, sampling=GREEDY, prompt="Once upon a time")
ORDERS = {
    "plain": STORY,
    "penalties": replace(STORY, sampling=PENALTIES, prompt="la la la la la"),
    "seeded, penalties, letters of several tokens": replace(
        STORY,
        sampling=replace(PENALTIES, repetition_penalty=1.0, temperature=0.5, seed=3),
        prompt="\N{GRINNING FACE}\N{WOMAN}" * 6,
    ),
    # It begins within a token and ends within another one.
    "stop string": replace(STORY, stop=("f Nov",)),
    "conversation of another day": replace(
        STORY,
        prompt=None,
        messages=[Message(role="user", content="What day is it?")],
        accepted_unix_s=1_000_000_000.0,
    ),
}


def generate(engine: TextEngine, order: Generate) -> list[Emission]:
    ended = engine.submit(1, engine.prepare(order))
    emissions = [] if ended is None else [ended]
    while not emissions or emissions[-1].finish is None:
        emissions += engine.step(lambda: False) or []
    return emissions


def answer(emissions: list[Emission]) -> dict[str, Any]:
    return {
        "text": "".join(emission.text for emission in emissions),
        "tokens": [token for emission in emissions for token in emission.tokens],
        "finish": emissions[-1].finish if emissions else None,
    }


def resume(engine: TextEngine, order: Generate, before: list[Emission]) -> dict[str, Any]:
    done = answer(before)
    rest = replace(order, delivered_tokens=done["tokens"], delivered_chars=len(done["text"]))
    return answer(before + generate(engine, rest))


def main(folder: str) -> None:
    load = Load(
        model_path=folder,
        context_tokens_max=256,
        batch_sequences_max=4,
        prefill_chunk_tokens=256,
        float32=None,
        wired_limit_bytes=0,
        cache_limit_bytes=None,
        heartbeat_interval_s=1.0,
    )
    engine = TextEngine.load(load, lambda *_: None)
    found = {}
    for name, order in ORDERS.items():
        emissions = generate(engine, order)
        found[name] = {
            "prompt": engine.detokenize(engine.prepare(order).prompt_tokens),
            "whole": answer(emissions),
            # With the last one all tokens were delivered, and only the word of the end was lost.
            "cuts": [resume(engine, order, emissions[:cut]) for cut in range(len(emissions) + 1)],
        }
    print(json.dumps(found))


main(sys.argv[1])
