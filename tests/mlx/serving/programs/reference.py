"""What mlx-lm's own BatchGenerator makes of prompts, in a process without any of mlxsup's serving.

Reads {"model", "prompts", "max_tokens", "streams"} on stdin, writes a list of texts: greedy, `streams` at a time.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer


def main() -> None:
    order = json.load(sys.stdin)
    folder = Path(order["model"])
    model, _ = load_model(folder)
    if mx.default_device() == mx.cpu:
        model.set_dtype(mx.float32)
        dequantize_model(model)
    tokenizer = load_tokenizer(folder)
    prompts = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True) for messages in order["prompts"]
    ]
    texts = []
    for start in range(0, len(prompts), order["streams"]):
        generator = BatchGenerator(model, stop_tokens=[[token] for token in tokenizer.eos_token_ids])
        uids = generator.insert(
            prompts[start : start + order["streams"]], max_tokens=[order["max_tokens"]] * order["streams"]
        )
        tokens: dict[int, list[int]] = {uid: [] for uid in uids}
        open_uids = set(uids)
        while open_uids:
            for response in generator.next_generated():
                if response.finish_reason != "stop":
                    tokens[response.uid].append(response.token)
                if response.finish_reason is not None:
                    open_uids.discard(response.uid)
        texts += [tokenizer.decode(tokens[uid]) for uid in uids]
    json.dump(texts, sys.stdout)


main()
