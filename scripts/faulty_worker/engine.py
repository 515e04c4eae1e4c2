"""An engine that computes no model: text, tokens and pace are what a request's `Script` says, and so are its faults.

The whole answer is known beforehand, so that anybody can tell whether a stream had all of it, once. Where it goes on
after another worker's death it does so as the real engine does: the position follows from the delivered tokens, the
text from the delivered characters, and likewise all else. Some tokens say nothing before the next one has come, as half a
character does.
"""

import time
from collections.abc import Sequence

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, TokenLogprob
from mlxsup.protocol.worker_link import Embed, Generate, Loaded, Tune
from mlxsup.worker.engine.features import LOGPROBS, refuse_unsupported
from mlxsup.worker.engine.interface import Emission, IsWanted, Lease, Prepared, PreparedTexts
from scripts.faulty_worker.answers import (
    VOCABULARY_TOKENS,
    Said,
    faulty_answer,
    faulty_tokens,
    logprob_at,
    said_at,
    token_at,
)
from scripts.faulty_worker.faults import Faults
from scripts.faulty_worker.script import FaultKind, Script

CONTEXT_TOKENS = 1 << 24
_ABLE = frozenset({LOGPROBS})
# Of every so many tokens one holds its text back until the next one.
_HELD_EVERY = 5


def faulty_embedding(seed: int) -> list[float]:
    """Of a text that is a script with this seed."""
    return [seed + 0.5, 1.0]


class _Texts(msgspec.Struct):
    """Of a request for embeddings; so many are done."""

    scripts: list[Script]
    done: int = 0


class _Sequence(msgspec.Struct):
    """`held` is what tokens say that are delivered, which is not; `struck` once its fault has, here.

    `prefill_ms` is the time of one of the `prefill_left` tokens of its prompt.
    """

    script: Script
    max_tokens: int
    tokens: int
    held: Said
    logprobs: int | None
    prefill_left: int
    prefill_ms: float
    struck: bool = False


class FaultyEngine:
    def __init__(self, faults: Faults, weights: bytes, *, prefill_chunk_tokens: int, load_s: float) -> None:
        self.loaded = Loaded(
            model_type="faulty",
            context_tokens=CONTEXT_TOKENS,
            weights_bytes=len(weights),
            vocabulary_tokens=VOCABULARY_TOKENS,
            load_s=load_s,
        )
        self._faults = faults
        self._weights = weights
        self._prefill_chunk_tokens = prefill_chunk_tokens
        self._running: dict[int, _Sequence] = {}
        self._texts: dict[int, _Texts] = {}

    @property
    def sequences(self) -> int:
        return len(self._running) + len(self._texts)

    def prepare(self, request: Generate) -> Prepared:
        refuse_unsupported(request, _ABLE)
        script = _script(request.prompt or "", "$.prompt")
        delivered = request.delivered_tokens
        if delivered != faulty_tokens(script.seed, len(delivered)):
            raise RpcError(ErrorKind.INTERNAL, "the delivered tokens are not those of this request")
        said = faulty_answer(script, len(delivered))
        if (
            request.delivered_chars > len(said.text)
            or request.delivered_reasoning_chars > len(said.reasoning)
            or request.delivered_tool_calls > len(said.tool_calls)
        ):
            raise RpcError(ErrorKind.INTERNAL, "more was delivered than its tokens have")
        if script.fault is not None:
            self._faults.check(script.fault)
        return Prepared([0] * script.prompt_tokens, request)

    def submit(self, id: int, prepared: Prepared) -> Emission | None:
        request = prepared.request
        script = _script(request.prompt or "", "$.prompt")
        done = len(request.delivered_tokens)
        held = faulty_answer(script, done).behind(
            request.delivered_chars, request.delivered_reasoning_chars, request.delivered_tool_calls
        )
        if done >= request.max_tokens:
            return _emission(id, held, FinishReason.LENGTH)
        sequence = _Sequence(
            script,
            request.max_tokens,
            done,
            held,
            request.logprobs,
            script.prompt_tokens + done,
            script.prefill_ms,
        )
        fault = script.fault
        if fault is not None and fault.kind is FaultKind.SLOW:
            sequence.struck = True
            sequence.prefill_ms *= fault.number if self._faults.strike(fault) else 1
        self._running[id] = sequence
        return None

    def prepare_texts(self, request: Embed) -> PreparedTexts:
        for place, text in enumerate(request.texts):
            fault = _script(text, request.path(place)).fault
            if fault is not None:
                self._faults.check(fault)
        return PreparedTexts([[0]] * len(request.texts), request)

    def submit_texts(self, id: int, prepared: PreparedTexts) -> None:
        self._texts[id] = _Texts([_script(text, "") for text in prepared.request.texts])

    def cancel(self, id: int) -> Emission:
        if self._texts.pop(id, None) is not None:
            return Emission(id, "", [], FinishReason.CANCELLED)
        return _emission(id, self._running.pop(id).held, FinishReason.CANCELLED)

    give_way = cancel

    def rest(self, is_wanted: IsWanted) -> None:
        pass

    def forget(self, id: int) -> None:
        """Nothing is kept."""

    def share(self, lease: Lease) -> None:
        """Its prompts cost no computing."""

    def tune(self, order: Tune) -> None:
        if order.prefill_chunk_tokens is not None:
            self._prefill_chunk_tokens = order.prefill_chunk_tokens

    @property
    def prefill_tokens(self) -> int:
        return sum(map(self._chunk, self._running.values()))

    def _chunk(self, sequence: _Sequence) -> int:
        return min(self._prefill_chunk_tokens, sequence.prefill_left)

    def step(self, _: IsWanted) -> list[Emission]:
        """A chunk of every prompt, a token for every sequence whose prompt was done before, and a text of all to be embedded."""
        embedded = [emission for id in list(self._texts) for emission in self._embed(id)]
        decoding = {id: sequence for id, sequence in self._running.items() if not sequence.prefill_left}
        self._prefill()
        for sequence in decoding.values():
            fault = sequence.script.fault
            if fault is not None and not sequence.struck and sequence.tokens >= fault.at_token:
                sequence.struck = True
                self._faults.strike(fault)
        self._faults.take_part(len(decoding))
        _pause(max((sequence.script.token_ms for sequence in decoding.values()), default=0.0))
        return embedded + [self._advance(id, sequence) for id, sequence in decoding.items()]

    def _embed(self, id: int) -> list[Emission]:
        """The next text, whose fault strikes before; the end behind the last one."""
        texts = self._texts[id]
        script = texts.scripts[texts.done]
        if script.fault is not None:
            self._faults.strike(script.fault)
        _pause(script.token_ms)
        texts.done += 1
        if texts.done < len(texts.scripts):
            return []
        del self._texts[id]
        vectors = [msgspec.json.encode(faulty_embedding(each.seed)) for each in texts.scripts]
        return [Emission(id, "", [], FinishReason.STOP, embeddings=vectors)]

    def _prefill(self) -> None:
        for sequence in self._running.values():
            if sequence.prefill_left:
                chunk = self._chunk(sequence)
                sequence.prefill_left -= chunk
                _pause(sequence.prefill_ms * chunk)

    def _advance(self, id: int, sequence: _Sequence) -> Emission:
        seed, number = sequence.script.seed, sequence.tokens
        tokens = [token_at(seed, number)]
        logprobs = [] if sequence.logprobs is None else [logprob_at(seed, number, sequence.logprobs)]
        said = sequence.held + said_at(sequence.script, number)
        sequence.tokens += 1
        if sequence.tokens >= sequence.max_tokens:
            del self._running[id]
            return _emission(id, said, FinishReason.LENGTH, tokens, logprobs)
        if (seed + number) % _HELD_EVERY == 0:
            sequence.held = said
            return _emission(id, Said(), None, tokens, logprobs)
        sequence.held = Said()
        return _emission(id, said, None, tokens, logprobs)

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def detokenize(self, tokens: list[int]) -> str:
        return bytes(token % 256 for token in tokens).decode(errors="replace")


def _emission(
    id: int,
    said: Said,
    finish: FinishReason | None,
    tokens: Sequence[int] = (),
    logprobs: Sequence[TokenLogprob] = (),
) -> Emission:
    return Emission(
        id,
        said.text,
        list(tokens),
        finish,
        reasoning=said.reasoning,
        tool_calls=said.tool_calls,
        logprobs=list(logprobs),
    )


def _script(text: str, path: str) -> Script:
    try:
        return msgspec.json.decode(text, type=Script)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise RpcError(ErrorKind.INVALID_PARAMS, f"`{path}` is no script: {error}", path=path) from None


def _pause(milliseconds: float) -> None:
    if milliseconds > 0:
        time.sleep(milliseconds / 1000)
