"""A book of attachments with requests that a test computes by hand, on a clock that it sets."""

import itertools
from collections.abc import Callable

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, Priority
from mlxsup.protocol.worker_link import Generate, Generated
from mlxsup.supervisor.generation.attachments import Attachment, Attachments, Key, Limits
from mlxsup.supervisor.generation.extras import Extras
from mlxsup.supervisor.generation.request import GenerationRequest, Sink
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import GREEDY

LIMITS = Limits(
    reattach_s=10.0, attached_max=3, results_kept_max=2, results_kept_bytes_max=1 << 20, result_kept_s=100.0
)


class Client:
    """One who has sent a request: what it got, and its attachment."""

    def __init__(self, key: str, prompt: str, attachment: Attachment, sink: CollectingSink) -> None:
        self.key = key
        self.prompt = prompt
        self.attachment = attachment
        self.sink = sink
        self.request: GenerationRequest | None = None
        self.has_left = False

    @property
    def got(self) -> str:
        return "".join(self.sink.pieces)


class Desk:
    """`cancelled` are the requests that the book has cancelled: they end when the test says so."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.book = Attachments(limits, self)
        self.now_s = 1000.0
        self.requests: list[GenerationRequest] = []
        self.cancelled: list[GenerationRequest] = []
        self.looks = 0
        self._ids = itertools.count(1)

    def cancel(self, request: GenerationRequest) -> None:
        assert request not in self.cancelled, "cancelled twice"
        self.cancelled.append(request)

    def look_again(self) -> None:
        self.looks += 1

    def send(
        self,
        prompt: str = "p",
        *,
        key: str = "k",
        client: str | None = None,
        model: str = "m",
        stream: bool = True,
        deadline_s: float | None = None,
    ) -> Client:
        """Raises RpcError where it is refused. `deadline_s` is from now."""
        sink = CollectingSink()
        until_s = None if deadline_s is None else self.now_s + deadline_s
        attachment = Attachment(sink, stream, self.now_s, until_s)
        sent = Client(key, prompt, attachment, sink)
        where = Key(model, client, key)
        if not self.book.join(where, prompt, attachment, self.now_s):
            self.requests.append(self.book.begin(where, prompt, attachment, self._maker(prompt)))
        if attachment.shared is not None:
            sent.request = attachment.shared.request
        return sent

    def _maker(self, prompt: str) -> Callable[[Sink], GenerationRequest]:
        def make(sink: Sink) -> GenerationRequest:
            return GenerationRequest(
                id=next(self._ids),
                model="m",
                order=Generate(max_tokens=100, sampling=GREEDY, prompt=prompt),
                priority=Priority.NORMAL,
                client="c",
                stream=True,
                sink=sink,
                observer=CollectingSink(),
                now_s=self.now_s,
                deadline_s=None,
            )

        return make

    def deliver(
        self, text: str, request: GenerationRequest | None = None, extras: Extras | None = None
    ) -> None:
        """To the newest one, unless one is named."""
        (request or self.requests[-1]).deliver(text, [1], self.now_s, extras)

    def finish(self, request: GenerationRequest | None = None) -> None:
        done = Generated(finish_reason=FinishReason.STOP, prompt_tokens=5, completion_tokens=3)
        (request or self.requests[-1]).finish(done, 1, self.now_s)

    def fail(self, request: GenerationRequest | None = None) -> None:
        (request or self.requests[-1]).fail(RpcError(ErrorKind.WORKER_DIED, "it died"))

    def end_cancelled(self, request: GenerationRequest | None = None) -> None:
        (request or self.requests[-1]).finish_cancelled(self.now_s)

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.book.tick(self.now_s)
