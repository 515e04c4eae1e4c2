"""One accepted request for text, from its arrival to its one end.

Rule 1: a request ends exactly once, by `finish` or `fail`, and whoever takes it away ends it.
Rule 2: what was delivered is kept, since only the supervisor outlives a worker.
Rule 3: nothing is delivered after the end; what comes late is dropped.
"""

from array import array
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import msgspec

from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import (
    FinishReason,
    GenerationResult,
    ImagePart,
    Message,
    Priority,
    ServedBy,
    TextPart,
    Timings,
    TokenLogprob,
    Usage,
)
from mlxsup.protocol.logprobs import EncodedLogprobs
from mlxsup.protocol.worker_link import Embed, Generate, Generated, Order
from mlxsup.supervisor.generation.extras import Extras, JoinedExtras

# To tell of every token of a thousand streams would take longer than to pass it on.
_STRETCH_TOKENS = 16


class Sink(Protocol):
    """Where a request's output goes. Calls come in order, `delta` any number of times, then one end."""

    def delta(self, text: str, extras: Extras | None) -> None:
        """A piece of text, which may be empty, and what has come with it, if anything has."""
        ...

    def result(self, result: GenerationResult) -> None: ...

    def error(self, error: RpcError) -> None: ...


class Observer(Protocol):
    """Is told how a request gets on, and of its one end, to count it."""

    def request_progressed(self, request: "GenerationRequest", now_s: float) -> None:
        """With its first token, and then with each stretch of tokens that is long enough to measure."""
        ...

    def request_ended(self, request: "GenerationRequest", outcome: str) -> None: ...


class Marks(msgspec.Struct):
    """Moments of a request on the monotonic clock, in seconds."""

    accepted_s: float
    dispatched_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None


class GenerationRequest:
    def __init__(
        self,
        *,
        id: int,
        model: str,
        order: Order,
        priority: Priority,
        client: str,
        stream: bool,
        sink: Sink,
        observer: Observer,
        now_s: float,
        deadline_s: float | None,
        resume: bool = True,
    ) -> None:
        """`now_s` and `deadline_s` are moments of the monotonic clock."""
        self.id = id
        self.model = model
        self.order = order
        self.priority = priority
        self.client = client
        self.marks = Marks(now_s)
        self.deadline_s = deadline_s
        # An object of its own for each token and each piece of text would take more than all else of a request.
        self.tokens = array("i")
        self.resume = resume
        # Tokens that each worker began with.
        self._tokens_at_resumes: list[int] = []
        self.chars = 0
        self.prompt_tokens = 0
        self._tell_at_tokens = 1
        self.cancel_asked = False
        # So often it has given way to a more urgent one.
        self.preempted = 0
        self.ended = False
        self._stream = stream
        self._sink = sink
        self._observer = observer
        self._utf8 = bytearray()
        # Only once there are any: most have none.
        self._extras: JoinedExtras | None = None

    @cached_property
    def prompt_chars(self) -> int:
        """Of its text; counted once, since messages can have hundreds of thousands of parts. 0 where tokens are given."""
        order = self.order
        if isinstance(order, Embed):
            return sum(map(len, order.texts))
        if order.prompt is not None:
            return len(order.prompt)
        return sum(map(_message_chars, order.messages or ())) + _tools_chars(order)

    @cached_property
    def prompt_images(self) -> int:
        """How many are in its messages."""
        messages = None if isinstance(self.order, Embed) else self.order.messages
        return sum(map(_message_images, messages or ()))

    def remaining_order(self) -> Order:
        """The order for the next worker: what was delivered counts as done."""
        if not self.tokens and not self.chars:
            return self.order
        order = msgspec.structs.replace(
            self.order, delivered_tokens=list(self.tokens), delivered_chars=self.chars
        )
        if self._extras is None:
            return order
        return msgspec.structs.replace(
            order,
            delivered_reasoning_chars=len(self._extras.reasoning),
            delivered_tool_calls=len(self._extras.tool_calls),
        )

    def fruitless_resumes(self, tokens_min: int) -> int:
        """How many workers in a row have taken it over, up to now, and given it fewer tokens than that."""
        fruitless, tokens = 0, len(self.tokens)
        for before in reversed(self._tokens_at_resumes):
            if tokens - before >= tokens_min:
                break
            fruitless, tokens = fruitless + 1, before
        return fruitless

    @property
    def resumed(self) -> int:
        """So many other workers went on with it, or are to."""
        return len(self._tokens_at_resumes)

    @property
    def text(self) -> str:
        """What was delivered up to now."""
        return self._utf8.decode()

    @property
    def extras(self) -> Extras | None:
        """What was delivered up to now beside the text."""
        return None if self._extras is None else self._extras.copy()

    def note_resume(self) -> None:
        """Another worker is to go on with it."""
        self._tokens_at_resumes.append(len(self.tokens))

    def deliver(self, text: str, tokens: list[int], now_s: float, extras: Extras | None = None) -> None:
        """Text and tokens that the worker produced at `now_s`, and what came with them."""
        if self.ended:
            return
        if tokens:
            self.tokens.extend(tokens)
            marks = self.marks
            if marks.first_token_s is None:
                marks.first_token_s = now_s
            marks.last_token_s = now_s
            if len(self.tokens) >= self._tell_at_tokens:
                self._tell_at_tokens = self._next_tell()
                self._observer.request_progressed(self, now_s)
        if text:
            self.chars += len(text)
            self._utf8 += text.encode()
        if extras is not None:
            if self._extras is None:
                self._extras = JoinedExtras()
            self._extras.add(extras)
        if self._stream and (text or extras is not None):
            self._sink.delta(text, extras)

    def _next_tell(self) -> int:
        """A stretch further on; streams that began together are told of at different tokens."""
        tokens = len(self.tokens)
        return tokens + _STRETCH_TOKENS + (self.id % _STRETCH_TOKENS if tokens == 1 else 0)

    def finish(self, answer: Generated, generation: int, now_s: float) -> None:
        self.prompt_tokens = answer.prompt_tokens
        self._end(answer.finish_reason.value)
        usage = Usage(
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            cached_tokens=answer.cached_tokens,
        )
        served_by = ServedBy(generation=generation, resumed=self.resumed)
        self._sink.result(self._result(answer.finish_reason, usage, served_by, now_s))

    def finish_cancelled(self, now_s: float) -> None:
        """Cancelled before a worker had it, or after its worker had gone."""
        self._end(FinishReason.CANCELLED.value)
        self._sink.result(self.cancelled_result(now_s))

    def cancelled_result(self, now_s: float) -> GenerationResult:
        """What somebody gets who wants no more of it now."""
        usage = Usage(prompt_tokens=0, completion_tokens=len(self.tokens))
        return self._result(FinishReason.CANCELLED, usage, None, now_s)

    def fail(self, error: RpcError) -> None:
        self._end(error.kind.value)
        self._sink.error(error)

    def _end(self, outcome: str) -> None:
        assert not self.ended, "a request ends once"
        self.ended = True
        self._observer.request_ended(self, outcome)

    def _result(
        self, finish: FinishReason, usage: Usage, worker: ServedBy | None, now_s: float
    ) -> GenerationResult:
        marks = self.marks
        decode_s = (marks.last_token_s or 0.0) - (marks.first_token_s or 0.0)
        decoded = len(self.tokens) - 1
        extras = self._extras
        return GenerationResult(
            text=self.text,
            finish_reason=finish,
            usage=usage,
            timings=Timings(
                queue_ms=_ms((marks.dispatched_s or now_s) - marks.accepted_s),
                ttft_ms=None if marks.first_token_s is None else _ms(marks.first_token_s - marks.accepted_s),
                total_ms=_ms(now_s - marks.accepted_s),
                tokens_per_second=round(decoded / decode_s, 2) if decoded > 0 and decode_s > 0 else 0.0,
            ),
            worker=worker,
            reasoning=None if extras is None else extras.reasoning or None,
            tool_calls=None if extras is None else list(extras.tool_calls) or None,
            logprobs=self._logprobs(),
        )

    def _logprobs(self) -> Sequence[TokenLogprob] | None:
        if not isinstance(self.order, Generate) or self.order.logprobs is None:
            return None
        return EncodedLogprobs(b"") if self._extras is None else self._extras.logprobs


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _message_images(message: Message) -> int:
    parts = message.content if isinstance(message.content, list) else []
    return sum(isinstance(part, ImagePart) for part in parts)


def _message_chars(message: Message) -> int:
    calls = sum(len(call.function.name) + len(call.function.arguments) for call in message.tool_calls or ())
    content = message.content
    if content is None:
        return calls
    if isinstance(content, str):
        return calls + len(content)
    return calls + sum(len(part.text) for part in content if isinstance(part, TextPart))


def _tools_chars(order: Generate) -> int:
    """A template shows them to the model, as JSON or much like it, unless it may call none."""
    return len(msgspec.json.encode(order.tools)) if order.tools and order.tool_choice != "none" else 0
