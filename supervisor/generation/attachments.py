"""Requests with an idempotency key: whoever sends one again gets what the one that runs gives. Pure.

Rule 1: a key belongs to a model and to the `client` that the params name, if they do, whatever the connection; with it
the same has to be asked for each time. Rule 2: each that is attached is answered once: with the request's end, or that of
its own cancel or deadline. One that has left gets nothing more. Rule 3: a stream is sent all so far in one piece, and then
the rest as it comes: joined, its pieces are the text of its result, and what that has beside it. Rule 4: the cancel of the
last that is attached cancels the request; its key is free from then on. Rule 5: when the last has left, or was too late, the
request goes on for `reattach_s`, and is cancelled then unless somebody has attached meanwhile. Rule 6: a result is kept for
`result_kept_s`, and given to whoever sends its request again; where there are too many the oldest go first. What was
cancelled is not kept, and no error is: who sends it again has it computed.

Of what is computed, all but the text's way out is as the first one asked: priority, `resume`, and to whom it is charged; the
first one's deadline decides whether it is let in and when its turn comes, and then ends nobody but the first.
"""

import itertools
import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, GenerationResult
from mlxsup.protocol.service import KeyedStats
from mlxsup.supervisor.generation.extras import Extras
from mlxsup.supervisor.generation.request import GenerationRequest, Sink
from mlxsup.supervisor.scheduling import refusals
from mlxsup.supervisor.scheduling.indexed_heap import IndexedHeap

# What a result takes besides its text, with its key: measured, and rounded up.
_RESULT_BYTES = 2048


class Key(msgspec.Struct, frozen=True):
    """Whoever connects is the same one: the socket admits nobody but its owner and root. Who names another's `client` and
    key, and asks for the very same, gets that one's answer.
    """

    model: str
    client: str | None
    key: str


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """`attached_max` is for each request. The text of a result and what else it takes count as its bytes."""

    reattach_s: float
    attached_max: int
    results_kept_max: int
    results_kept_bytes_max: int
    result_kept_s: float


class Effects(Protocol):
    def cancel(self, request: GenerationRequest) -> None:
        """It ends soon, perhaps at once."""
        ...

    def look_again(self) -> None:
        """`next_look_s` may be sooner now."""
        ...


class Attachment(msgspec.Struct, eq=False):
    """One who waits for an answer that others may wait for, too. Moments are of the monotonic clock."""

    sink: Sink
    stream: bool
    attached_s: float
    deadline_s: float | None
    shared: "_Shared | None" = None
    ended: bool = False


class _Shared:
    """The sink of the one request that is computed, for all that are attached to it."""

    request: GenerationRequest

    def __init__(
        self, key: Key, digest: str, on_end: Callable[["_Shared", GenerationResult | None], list[Attachment]]
    ) -> None:
        self.key = key
        self.digest = digest
        self._on_end = on_end
        # In the order of their coming.
        self.attached: dict[Attachment, None] = {}

    def delta(self, text: str, extras: Extras | None) -> None:
        for attachment in self.attached:
            if attachment.stream:
                attachment.sink.delta(text, extras)

    def result(self, result: GenerationResult) -> None:
        for attachment in self._on_end(self, result):
            attachment.sink.result(_since(attachment, self.request.marks.accepted_s, result))

    def error(self, error: RpcError) -> None:
        for attachment in self._on_end(self, None):
            attachment.sink.error(error)


class _Kept(msgspec.Struct, eq=False):
    key: Key
    digest: str
    accepted_s: float
    result: GenerationResult
    extras: Extras | None
    bytes_held: int


class Attachments:
    """`tick` it at `next_look_s`, which is infinite while nothing is due."""

    def __init__(self, limits: Limits, effects: Effects) -> None:
        self._limits = limits
        self._effects = effects
        self._running: dict[Key, _Shared] = {}
        self._attached = 0
        # Oldest first.
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._kept_bytes = 0
        # Deadlines of attachments, ends of the wait for another one, ends of keeping.
        self._due: IndexedHeap[Attachment | _Shared | _Kept] = IndexedHeap()
        self._numbers = itertools.count()
        self._duplicates = 0
        self._closing = False

    @property
    def next_look_s(self) -> float:
        first = self._due.first()
        return math.inf if first is None else first[0][0]

    def stats(self) -> KeyedStats:
        return KeyedStats(
            running=len(self._running),
            abandoned=sum(not shared.attached for shared in self._running.values()),
            attached=self._attached,
            duplicates_total=self._duplicates,
            results_kept=len(self._kept),
            results_kept_bytes=self._kept_bytes,
        )

    # What clients do.

    def join(self, key: Key, digest: str, attachment: Attachment, now_s: float) -> bool:
        """Attach it to what runs under this key, or give it the result that was kept; whether there was either.

        `digest` tells apart what is asked for.

        Raises:
            RpcError: INVALID_PARAMS, where the key stands for something else; LIMIT_EXCEEDED.
        """
        self.tick(now_s)
        shared = self._running.get(key)
        if shared is not None:
            self._check_same(digest, shared.digest)
            self._check_room(shared)
            self._due.discard(shared)
            self._attach(attachment, shared)
            if attachment.stream:
                _send_so_far(attachment, shared.request.text, shared.request.extras)
        else:
            kept = self._kept.get(key)
            if kept is None:
                return False
            self._check_same(digest, kept.digest)
            attachment.ended = True
            if attachment.stream:
                _send_so_far(attachment, kept.result.text, kept.extras)
            attachment.sink.result(_since(attachment, kept.accepted_s, kept.result))
        self._duplicates += 1
        return True

    def begin(
        self, key: Key, digest: str, attachment: Attachment, make: Callable[[Sink], GenerationRequest]
    ) -> GenerationRequest:
        """What `make` gives runs under this key from now on, with one attached; `join` has found nothing there."""
        assert key not in self._running
        shared = _Shared(key, digest, self._end)
        shared.request = make(shared)
        self._running[key] = shared
        self._attach(attachment, shared)
        return shared.request

    def withdraw(self, attachment: Attachment) -> None:
        """What has begun with this one was refused, and nobody has been told yet."""
        if attachment.shared is not None and not attachment.ended:
            self._forget(attachment.shared)
            self._detach(attachment)

    def cancel(self, attachment: Attachment, now_s: float) -> None:
        """Its client wants no more of it. Others go on; where there is none it is answered when the request has ended."""
        shared = attachment.shared
        if attachment.ended or shared is None:
            return
        if len(shared.attached) == 1:
            self._give_up(shared)
            return
        self._detach(attachment)
        so_far = shared.request.cancelled_result(now_s)
        attachment.sink.result(_since(attachment, shared.request.marks.accepted_s, so_far))

    def leave(self, attachment: Attachment, now_s: float) -> None:
        """Its client has gone, and may come back."""
        shared = attachment.shared
        if attachment.ended or shared is None:
            return
        self._detach(attachment)
        self._wait_for_another(shared, now_s)

    # What time does.

    def tick(self, now_s: float) -> None:
        while (first := self._due.first()) is not None and first[0][0] <= now_s:
            due = first[1]
            self._due.discard(due)
            match due:
                case Attachment():
                    self._expire(due, now_s)
                case _Shared():
                    self._give_up(due)
                case _Kept():
                    self._drop(due)

    def close(self) -> None:
        """Nobody comes any more: what nobody is attached to is cancelled, now and from now on."""
        self._closing = True
        for shared in [shared for shared in self._running.values() if not shared.attached]:
            self._give_up(shared)

    # How it is done.

    def _check_same(self, digest: str, running: str) -> None:
        if digest != running:
            raise RpcError(
                ErrorKind.INVALID_PARAMS,
                "`$.idempotency_key` stands for another request of this client; take a new one for each request",
                path="$.idempotency_key",
            )

    def _check_room(self, shared: _Shared) -> None:
        if len(shared.attached) >= self._limits.attached_max:
            raise RpcError(
                ErrorKind.LIMIT_EXCEEDED,
                f"{len(shared.attached)} wait for the answer to this request already; wait with them",
                retriable=True,
            )

    def _attach(self, attachment: Attachment, shared: _Shared) -> None:
        attachment.shared = shared
        shared.attached[attachment] = None
        self._attached += 1
        if attachment.deadline_s is not None:
            self._put_due(attachment, attachment.deadline_s)

    def _detach(self, attachment: Attachment) -> None:
        assert attachment.shared is not None
        del attachment.shared.attached[attachment]
        self._attached -= 1
        attachment.ended = True
        self._due.discard(attachment)

    def _expire(self, attachment: Attachment, now_s: float) -> None:
        shared = attachment.shared
        assert shared is not None
        self._detach(attachment)
        attachment.sink.error(refusals.with_progress(refusals.late(), shared.request))
        self._wait_for_another(shared, now_s)

    def _wait_for_another(self, shared: _Shared, now_s: float) -> None:
        if shared.attached or self._running.get(shared.key) is not shared:
            return
        if self._closing:
            self._give_up(shared)
        else:
            self._put_due(shared, now_s + self._limits.reattach_s)

    def _give_up(self, shared: _Shared) -> None:
        """At most once, since it is not found again."""
        if self._forget(shared):
            self._effects.cancel(shared.request)

    def _forget(self, shared: _Shared) -> bool:
        if self._running.get(shared.key) is not shared:
            return False
        del self._running[shared.key]
        self._due.discard(shared)
        return True

    def _end(self, shared: _Shared, result: GenerationResult | None) -> list[Attachment]:
        """The request has ended; those who are to be told."""
        wanted = self._forget(shared)
        if wanted and result is not None and result.finish_reason is not FinishReason.CANCELLED:
            self._keep(shared, result)
        attached = list(shared.attached)
        for attachment in attached:
            self._detach(attachment)
        return attached

    def _keep(self, shared: _Shared, result: GenerationResult) -> None:
        limits = self._limits
        extras = shared.request.extras
        bytes_held = sys.getsizeof(result.text) + _RESULT_BYTES
        if extras is not None:
            # Once as the result has it, and once as a stream is sent it.
            bytes_held += 2 * extras.bytes_held
        if bytes_held > limits.results_kept_bytes_max:
            return
        accepted_s = shared.request.marks.accepted_s
        kept = _Kept(shared.key, shared.digest, accepted_s, result, extras, bytes_held)
        self._kept[kept.key] = kept
        self._kept_bytes += bytes_held
        self._put_due(kept, accepted_s + result.timings.total_ms / 1000 + limits.result_kept_s)
        while len(self._kept) > limits.results_kept_max or self._kept_bytes > limits.results_kept_bytes_max:
            self._drop(next(iter(self._kept.values())))

    def _drop(self, kept: _Kept) -> None:
        del self._kept[kept.key]
        self._kept_bytes -= kept.bytes_held
        self._due.discard(kept)

    def _put_due(self, due: Attachment | _Shared | _Kept, at_s: float) -> None:
        self._due.put(due, (at_s, next(self._numbers)))
        self._effects.look_again()


def _send_so_far(attachment: Attachment, text: str, extras: Extras | None) -> None:
    if text or extras is not None:
        attachment.sink.delta(text, extras)


def _since(attachment: Attachment, accepted_s: float, result: GenerationResult) -> GenerationResult:
    """With times from the attachment's own arrival, 0 for what was over then; the rate is that of the computation."""
    late_ms = (attachment.attached_s - accepted_s) * 1000
    if late_ms <= 0:
        return result
    timings = result.timings

    def since(ms: float) -> float:
        return round(max(0.0, ms - late_ms), 3)

    return msgspec.structs.replace(
        result,
        timings=msgspec.structs.replace(
            timings,
            queue_ms=since(timings.queue_ms),
            ttft_ms=None if timings.ttft_ms is None else since(timings.ttft_ms),
            total_ms=since(timings.total_ms),
        ),
    )
