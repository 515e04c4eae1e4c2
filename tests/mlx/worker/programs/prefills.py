"""The real engine by itself: `prefills.py FOLDER CHUNK LENGTH...` prefills prompts of these lengths together.

It prints one JSON text: of each step the prompt tokens that it computed, as the engine had said before it, and who got
text; and the answers.
"""

import json
import sys

from mlxsup.protocol.worker_link import Generate, Load, Sampling
from mlxsup.worker.engine.text import TextEngine

TOKENS = 6


def main(folder: str, chunk_tokens: int, lengths: list[int]) -> None:
    order = Load(
        model_path=folder,
        context_tokens_max=None,
        batch_sequences_max=16,
        prefill_chunk_tokens=chunk_tokens,
        float32=None,
        wired_limit_bytes=0,
        cache_limit_bytes=None,
        heartbeat_interval_s=1.0,
    )
    engine = TextEngine.load(order, lambda *_: None)
    sampling = Sampling(
        temperature=0,
        top_p=1,
        top_k=0,
        min_p=0,
        repetition_penalty=1,
        presence_penalty=0,
        frequency_penalty=0,
        seed=0,
    )
    for id, length in enumerate(lengths):
        prompt = [100 + id + 7 * number for number in range(length)]
        engine.submit(
            id, engine.prepare(Generate(max_tokens=TOKENS, sampling=sampling, prompt_tokens=prompt))
        )
    steps = []
    answers: dict[int, list[int]] = {id: [] for id in range(len(lengths))}
    running = set(answers)
    while running:
        prefill_tokens = engine.prefill_tokens
        emissions = engine.step(lambda: False) or []
        for emission in emissions:
            answers[emission.id] += emission.tokens
            if emission.finish is not None:
                running.discard(emission.id)
        steps.append((prefill_tokens, sorted(emission.id for emission in emissions)))
    print(json.dumps({"steps": steps, "answers": list(answers.values())}))


main(sys.argv[1], int(sys.argv[2]), list(map(int, sys.argv[3:])))
