"""The engine for text models: continuous batching with mlx-lm's BatchGenerator."""

import time
from pathlib import Path

import mlx.nn as nn
import msgspec
from mlx_lm.generate import BatchGenerator, GenerationBatch, StopSequences

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason
from mlxsup.protocol.worker_link import Generate, Load, Loaded, Tune
from mlxsup.worker.engine import loading
from mlxsup.worker.engine.codec import TextCodec, TokenStream
from mlxsup.worker.engine.interface import Emission, Prepared, ReportLoad
from mlxsup.worker.engine.sampling import make_logits_processors, make_sampler
from mlxsup.worker.engine.stop_strings import StopStrings

# mlx-lm's own bound on prompts that are prefilled together.
_PREFILL_SEQUENCES_MAX = 8
# No token of a usual vocabulary stands for more characters; it only saves tokenising what can't fit.
_CHARS_PER_TOKEN_MAX = 128


class _Sequence(msgspec.Struct):
    """A request in the batch."""

    id: int
    uid: int
    stream: TokenStream
    stops: StopStrings
    # Of text that an earlier worker showed and that shows again; nothing is sent twice.
    skip_chars: int
    prefill_done: int
    prefill_tokens: int
    has_text: bool = False


class TextEngine:
    def __init__(
        self,
        model: nn.Module,
        codec: TextCodec,
        loaded: Loaded,
        *,
        batch_sequences_max: int,
        prefill_chunk_tokens: int,
    ) -> None:
        self.loaded = loaded
        self._codec = codec
        self._prefill_sequences_max = min(_PREFILL_SEQUENCES_MAX, batch_sequences_max)
        self._prefill_chunk_tokens = prefill_chunk_tokens
        self._generator = BatchGenerator(
            model,
            completion_batch_size=batch_sequences_max,
            prefill_batch_size=self._prefill_sequences_max,
            prefill_step_size=prefill_chunk_tokens,
        )
        self._end_tokens = StopSequences([(token,) for token in codec.eos_tokens])
        self._by_uid: dict[int, _Sequence] = {}
        self._uid_of: dict[int, int] = {}

    @classmethod
    def load(cls, order: Load, report: ReportLoad) -> "TextEngine":
        started_s = time.monotonic()
        folder = Path(order.model_path)
        model, config = loading.load_weights(folder, order.float32, report)
        report("tokenizer", 0, 1)
        codec = TextCodec(loading.load_codec_tokenizer(folder, config))
        report("tokenizer", 1, 1)
        loading.warm_up(model, report)
        loaded = Loaded(
            model_type=str(config.get("model_type", "")),
            context_tokens=loading.context_tokens(config, order.context_tokens_max),
            weights_bytes=loading.parameter_bytes(model),
            vocabulary_tokens=loading.vocabulary_tokens(config),
            load_s=time.monotonic() - started_s,
        )
        return cls(
            model,
            codec,
            loaded,
            batch_sequences_max=order.batch_sequences_max,
            prefill_chunk_tokens=order.prefill_chunk_tokens,
        )

    def prepare(self, request: Generate) -> Prepared:
        tokens = self._prompt_tokens(request)
        context = self.loaded.context_tokens
        if not tokens:
            raise RpcError(
                ErrorKind.INVALID_PARAMS, "the prompt has no tokens: send some text", path="$.prompt"
            )
        if len(tokens) >= context:
            raise _too_long(f"{len(tokens)} tokens", context)
        vocabulary = self.loaded.vocabulary_tokens
        _check_tokens(tokens, vocabulary, "$.prompt_tokens")
        _check_tokens(list(request.sampling.logit_bias), vocabulary, "$.logit_bias")
        return Prepared(tokens, request)

    def _prompt_tokens(self, request: Generate) -> list[int]:
        if request.prompt_tokens is not None:
            return request.prompt_tokens
        context = self.loaded.context_tokens
        if request.messages is not None:
            text = self._codec.render_chat(request.messages, request.accepted_unix_s)
        else:
            text = request.prompt or ""
        if len(text) > context * _CHARS_PER_TOKEN_MAX:
            raise _too_long(f"{len(text)} characters", context)
        return self._codec.encode(text, special=request.messages is None)

    def submit(self, id: int, prepared: Prepared) -> Emission | None:
        request = prepared.request
        prompt, delivered = prepared.prompt_tokens, request.delivered_tokens
        stream, stops = self._codec.stream(), StopStrings(request.stop)
        replayed_chars = 0
        for token in delivered:
            text, stopped = stops.feed(stream.add(token))
            replayed_chars += len(text)
            if stopped:
                return Emission(id, "", [], FinishReason.STOP)
        tokens_left = min(request.max_tokens, self.loaded.context_tokens - len(prompt)) - len(delivered)
        if tokens_left <= 0:
            return Emission(id, "", [], FinishReason.LENGTH)
        (uid,) = self._generator.insert(
            [prompt + delivered],
            max_tokens=[tokens_left],
            samplers=[make_sampler(request.sampling, self.loaded.vocabulary_tokens, position=len(delivered))],
            logits_processors=[make_logits_processors(request.sampling, len(prompt))],
            stop_sequences=[self._end_tokens],
        )
        self._by_uid[uid] = _Sequence(
            id=id,
            uid=uid,
            stream=stream,
            stops=stops,
            skip_chars=max(0, request.delivered_chars - replayed_chars),
            prefill_done=0,
            prefill_tokens=len(prompt) + len(delivered),
        )
        self._uid_of[id] = uid
        return None

    @property
    def prefill_tokens(self) -> int:
        return sum(map(self._chunk, self._next_prefills()))

    def _chunk(self, sequence: _Sequence) -> int:
        return min(self._prefill_chunk_tokens, sequence.prefill_tokens - sequence.prefill_done)

    def _next_prefills(self) -> list[_Sequence]:
        """Whose prompts the next step computes. Those that begin share one chunk, and the first text of all is waited for
        before more begin, so that it comes soon. Beside a prompt of several chunks as many as may be begin, or it would
        keep them away.
        """
        sequences = self._by_uid.values()
        unread = [s for s in sequences if s.prefill_done < s.prefill_tokens]
        begun = [s for s in unread if s.prefill_done]
        waiting = [s for s in unread if not s.prefill_done][: self._prefill_sequences_max - len(begun)]
        if any(self._chunk(s) > 1 for s in begun):
            return begun + waiting
        if any(s.prefill_done for s in sequences) and not any(s.has_text for s in sequences):
            return begun
        together = waiting[:1]
        for sequence in waiting[1:]:
            # The shorter ones of a batch are padded.
            longest = max(map(self._chunk, [*together, sequence]))
            if longest * (len(together) + 1) > self._prefill_chunk_tokens:
                break
            together.append(sequence)
        return begun + together

    def cancel(self, id: int) -> Emission:
        sequence = self._by_uid[self._uid_of[id]]
        self._generator.remove([sequence.uid])
        text, _ = sequence.stops.feed(sequence.stream.flush())
        return self._end(sequence, text + sequence.stops.flush(), [], FinishReason.CANCELLED)

    def tune(self, order: Tune) -> None:
        if order.prefill_chunk_tokens is not None:
            self._prefill_chunk_tokens = self._generator.prefill_step_size = order.prefill_chunk_tokens
        if order.batch_sequences_max is not None:
            self._prefill_sequences_max = min(_PREFILL_SEQUENCES_MAX, order.batch_sequences_max)
            self._generator.completion_batch_size = order.batch_sequences_max

    def step(self) -> list[Emission]:
        self._generator.prefill_batch_size = len(self._next_prefills())
        prefills, responses = self._generator.next()
        for prefill in prefills:
            sequence = self._by_uid[prefill.uid]
            sequence.prefill_done = sequence.prefill_tokens if prefill.end_of_prompt else prefill.progress[0]
        return [self._emission(response) for response in responses]

    def _emission(self, response: GenerationBatch.Response) -> Emission:
        sequence = self._by_uid[response.uid]
        sequence.has_text = True
        if response.finish_reason == "stop":
            # The end token itself is neither text nor counted.
            text, _ = sequence.stops.feed(sequence.stream.flush())
            return self._end(sequence, text + sequence.stops.flush(), [], FinishReason.STOP)
        text, stopped = sequence.stops.feed(sequence.stream.add(response.token))
        if stopped:
            if response.finish_reason is None:
                self._generator.remove([sequence.uid])
            return self._end(sequence, text, [response.token], FinishReason.STOP)
        if response.finish_reason == "length":
            rest, stopped = sequence.stops.feed(sequence.stream.flush())
            text += rest if stopped else rest + sequence.stops.flush()
            return self._end(sequence, text, [response.token], FinishReason.LENGTH)
        return Emission(sequence.id, _unseen(sequence, text), [response.token])

    def _end(self, sequence: _Sequence, text: str, tokens: list[int], finish: FinishReason) -> Emission:
        text = _unseen(sequence, text)
        del self._by_uid[sequence.uid]
        del self._uid_of[sequence.id]
        return Emission(sequence.id, text, tokens, finish)

    def tokenize(self, text: str) -> list[int]:
        context = self.loaded.context_tokens
        if len(text) > context * _CHARS_PER_TOKEN_MAX:
            raise RpcError(
                ErrorKind.LIMIT_EXCEEDED,
                f"the text is too long: {len(text)} characters are more than any prompt of this model; send less at once",
                path="$.text",
            )
        return self._codec.encode(text, special=False)

    def detokenize(self, tokens: list[int]) -> str:
        _check_tokens(tokens, self.loaded.vocabulary_tokens, "$.tokens")
        return self._codec.decode(tokens)


def _unseen(sequence: _Sequence, text: str) -> str:
    if not sequence.skip_chars:
        return text
    seen = min(sequence.skip_chars, len(text))
    sequence.skip_chars -= seen
    return text[seen:]


def _too_long(what: str, context_tokens: int) -> RpcError:
    return RpcError(
        ErrorKind.LIMIT_EXCEEDED,
        f"the prompt is too long: {what} do not fit into the model's context of {context_tokens} tokens with room "
        "for an answer; shorten it",
    )


def _check_tokens(tokens: list[int], vocabulary_tokens: int, path: str) -> None:
    if tokens and max(tokens) >= vocabulary_tokens:
        bad = next(token for token in tokens if token >= vocabulary_tokens)
        raise RpcError(
            ErrorKind.INVALID_PARAMS,
            f"`{path}` has token {bad}, but the model's vocabulary has {vocabulary_tokens}",
            path=path,
        )
