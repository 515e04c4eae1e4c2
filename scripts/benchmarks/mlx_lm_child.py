"""mlx-lm without mlxsup around it: its BatchGenerator, with weights as a worker loads them."""

import os
import time
from pathlib import Path
from typing import Any

import msgspec

from mlxsup.protocol.descriptors import claim_pipes
from scripts.benchmarks.mlx_lm_messages import (
    Goes,
    GoesDone,
    Order,
    Rates,
    RatesDone,
    Start,
    Started,
    Texts,
    TextsDone,
)

# Any token that is no end of a text; what is computed for one costs as much as for another.
_FILLER_TOKEN = 1000
# For streams of which only the decoding is of interest: so little prefill that it is soon over.
_SHORT_PROMPT = [_FILLER_TOKEN, _FILLER_TOKEN]


class _Bench:
    def __init__(self, order: Start) -> None:
        from mlx_lm.generate import BatchGenerator

        from mlxsup.worker.engine import loading

        self._model, config = loading.load_weights(Path(order.folder), None, lambda *_: None)
        self._tokenizer = loading.load_codec_tokenizer(Path(order.folder), config)
        loading.warm_up(self._model, lambda *_: None)
        self._order = order
        self._make_generator = BatchGenerator

    def _generator(self, **options: Any) -> Any:
        return self._make_generator(
            self._model,
            completion_batch_size=self._order.batch_sequences_max,
            prefill_step_size=self._order.prefill_chunk_tokens,
            **options,
        )

    def answer(self, order: Texts | Rates | Goes) -> TextsDone | RatesDone | GoesDone:
        match order:
            case Texts():
                return self.texts(order)
            case Rates():
                return self.rates(order)
            case Goes():
                return self.goes(order)

    def texts(self, order: Texts) -> TextsDone:
        generator = self._generator(stop_tokens=[[token] for token in self._tokenizer.eos_token_ids])
        started_s = time.perf_counter()
        prompts = [self._tokenizer.encode(prompt) for prompt in order.prompts]
        uids = generator.insert(prompts, max_tokens=[order.max_tokens] * len(prompts))
        answers: dict[int, list[int]] = {uid: [] for uid in uids}
        running = len(uids)
        while running:
            for response in generator.next_generated():
                if response.finish_reason != "stop":
                    answers[response.uid].append(response.token)
                running -= response.finish_reason is not None
        texts = [self._tokenizer.decode(answers[uid]) for uid in uids]
        seconds = time.perf_counter() - started_s
        return TextsDone(seconds, sum(map(len, answers.values())), texts)

    def rates(self, order: Rates) -> RatesDone:
        prefill_s = self._prefill_s(order.prompt_tokens)
        decode_s = self._decode_s(order.streams, order.steps)
        return RatesDone(order.prompt_tokens / prefill_s, order.streams * order.steps / decode_s)

    def goes(self, order: Goes) -> GoesDone:
        import mlx.core as mx
        from mlx_lm.generate import generate_step
        from mlx_lm.models.cache import make_prompt_cache

        caches = make_prompt_cache(self._model)
        self._model(mx.full((1, order.cached_tokens), _FILLER_TOKEN), cache=caches)
        mx.eval([cache.state for cache in caches])
        started_s = time.perf_counter()
        next(generate_step(mx.full((order.new_tokens,), _FILLER_TOKEN), self._model, prompt_cache=caches))
        return GoesDone(time.perf_counter() - started_s)

    def _prefill_s(self, prompt_tokens: int) -> float:
        generator = self._generator()
        generator.insert([[_FILLER_TOKEN] * prompt_tokens], max_tokens=[1])
        started_s = time.perf_counter()
        while not generator.next_generated():
            pass
        return time.perf_counter() - started_s

    def _decode_s(self, streams: int, steps: int) -> float:
        generator = self._generator()
        # As many steps as it takes to bring all streams together come on top.
        generator.insert([_SHORT_PROMPT] * streams, max_tokens=[steps + 2 * streams] * streams)
        while len(generator.next_generated()) < streams:
            pass
        started_s = time.perf_counter()
        for _ in range(steps):
            generator.next_generated()
        return time.perf_counter() - started_s


def run() -> None:
    pipes = claim_pipes()

    from mlxsup import native
    from mlxsup.worker.mlx_policy import apply_limits

    # What a worker does, too.
    apply_limits(wired_limit_bytes=0, cache_limit_bytes=None)
    bench: _Bench | None = None
    with os.fdopen(pipes.incoming, "rb") as incoming, os.fdopen(pipes.outgoing, "wb") as outgoing:
        for line in incoming:
            order: Order = msgspec.json.decode(line, type=Order)
            answer: Any
            if isinstance(order, Start):
                bench = _Bench(order)
                answer = Started(native.blas_bridge_active())
            else:
                assert bench is not None, "Start comes first"
                answer = bench.answer(order)
            outgoing.write(msgspec.json.encode(answer) + b"\n")
            outgoing.flush()
