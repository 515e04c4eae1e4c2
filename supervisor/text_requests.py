"""The one admission path for text and its embeddings: from a client's parameters to a request that ends through its sink, and
is counted.
"""

import secrets
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
import trio

from mlxsup.config.schema import Config
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import ChatParams, GenerateParams, GenerationParams, Priority
from mlxsup.protocol.service import EmbedParams, KeyedStats
from mlxsup.protocol.worker_link import Embed, Generate
from mlxsup.supervisor.embedding.request import EmbedRequest, Settle
from mlxsup.supervisor.generation.attachments import Attachment, Key
from mlxsup.supervisor.generation.keyed import KeyedRequests
from mlxsup.supervisor.generation.request import GenerationRequest, Sink
from mlxsup.supervisor.generation.translate import make_order
from mlxsup.supervisor.measure.counters import RequestCounters
from mlxsup.supervisor.pool.pool import Pool
from mlxsup.supervisor.pool.runner import ModelRunner
from mlxsup.supervisor.qos.watch import SloWatch
from mlxsup.supervisor.recovery.poison import request_digest

_SEED_BITS = 63


class Accepted(Protocol):
    """A request for text, for whoever speaks with the client that sent it."""

    @property
    def ended(self) -> bool: ...

    def cancel(self) -> None:
        """The client wants no more of it: it gets the text so far."""
        ...

    def leave(self) -> None:
        """The client has gone."""
        ...


class _Running(msgspec.Struct, frozen=True):
    """One that ends with its client."""

    request: GenerationRequest
    runner: ModelRunner

    @property
    def ended(self) -> bool:
        return self.request.ended

    def cancel(self) -> None:
        self.runner.cancel(self.request)

    def leave(self) -> None:
        self.cancel()


class TextRequests:
    """`hold_params` is told how many more bytes of params are held, and how many fewer.

    Those that have an idempotency key are held here, as long as their request runs: its client may go before. Those of the
    others are their connections' affair. Once `closing` is set nothing is accepted.
    """

    def __init__(
        self,
        config: Config,
        pool: Pool,
        slos: SloWatch,
        nursery: trio.Nursery,
        *,
        closing: trio.Event,
        hold_params: Callable[[int], None],
    ) -> None:
        self._config = config
        self._pool = pool
        self._slos = slos
        self._nursery = nursery
        self._closing = closing
        self._hold_params = hold_params
        self.counters = RequestCounters()
        self._deadlines: dict[int, trio.CancelScope] = {}
        self._params_bytes: dict[int, int] = {}
        self._last_id = 0
        self._keyed = KeyedRequests(config.server, self._cancel)
        nursery.start_soon(self._keyed.run, closing)

    def generate(
        self, params: ChatParams | GenerateParams, client: str, sink: Sink, params_bytes: int
    ) -> Accepted:
        """Accept a request for text; from then on it ends through `sink`. `params_bytes` is the length of its params.

        Raises:
            RpcError: it is refused.
        """
        self._check_open()
        order = make_order(params, self._config.generation, secrets.randbits(_SEED_BITS), time.time())
        runner = self._pool.runner(params.model)

        def make(sink: Sink, *, stream: bool = True) -> GenerationRequest:
            return self._make_request(params, order, client, sink, stream=stream)

        if params.idempotency_key is not None:
            return self._keyed.generate(
                Key(params.model, params.client, params.idempotency_key),
                request_digest(params.model, order),
                Attachment(sink, params.stream, trio.current_time(), _deadline_s(params.deadline_ms)),
                make,
                lambda request: self._submit_holding(runner, request, params_bytes),
            )
        return self._run(runner, make(sink, stream=params.stream))

    def embed(self, params: EmbedParams, client: str, settle: Settle) -> Accepted:
        """Accept a request for embeddings; from then on it ends through `settle`.

        Raises:
            RpcError: it is refused.
        """
        self._check_open()
        runner = self._pool.runner(params.model)
        self._last_id += 1
        request = EmbedRequest(
            id=self._last_id,
            model=params.model,
            order=Embed(
                texts=params.texts, normalize=params.normalize, is_list=isinstance(params.input, list)
            ),
            priority=params.priority or Priority.NORMAL,
            client=params.client or client,
            settle=settle,
            observer=self,
            now_s=trio.current_time(),
            deadline_s=_deadline_s(params.deadline_ms),
        )
        return self._run(runner, request)

    def keyed_stats(self) -> KeyedStats:
        return self._keyed.stats()

    # As the observer of requests:

    def request_progressed(self, request: GenerationRequest, now_s: float) -> None:
        self.counters.request_progressed(request, now_s)

    def request_ended(self, request: GenerationRequest, outcome: str) -> None:
        now_s = trio.current_time()
        self.counters.request_ended(request, outcome, now_s)
        self._slos.request_ended(request, outcome, now_s)
        self._release_params(request)
        deadline = self._deadlines.pop(request.id, None)
        if deadline is not None:
            deadline.cancel()

    # How it is done.

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise RpcError(ErrorKind.SHUTTING_DOWN, "the supervisor is shutting down")

    def _run(self, runner: ModelRunner, request: GenerationRequest) -> _Running:
        """It ends with its client, or at its deadline."""
        self._submit(runner, request)
        if request.deadline_s is not None and not request.ended:
            self._deadlines[request.id] = scope = trio.CancelScope(deadline=request.deadline_s)
            self._nursery.start_soon(self._expire, runner, request, scope)
        return _Running(request, runner)

    def _make_request(
        self, params: GenerationParams, order: Generate, client: str, sink: Sink, *, stream: bool
    ) -> GenerationRequest:
        self._last_id += 1
        return GenerationRequest(
            id=self._last_id,
            model=params.model,
            order=order,
            priority=params.priority or Priority.NORMAL,
            client=params.client or client,
            stream=stream,
            sink=sink,
            observer=self,
            now_s=trio.current_time(),
            resume=params.resume,
            deadline_s=_deadline_s(params.deadline_ms),
        )

    def _submit(self, runner: ModelRunner, request: GenerationRequest) -> None:
        self._slos.request_began(request)
        try:
            runner.submit(request)
        except RpcError as error:
            self.counters.request_refused(request, error.kind)
            self._slos.request_refused(request, error.kind, trio.current_time())
            raise
        self.counters.request_accepted(request)

    def _submit_holding(self, runner: ModelRunner, request: GenerationRequest, params_bytes: int) -> None:
        self._params_bytes[request.id] = params_bytes
        self._hold_params(params_bytes)
        try:
            self._submit(runner, request)
        except BaseException:
            self._release_params(request)
            raise

    def _release_params(self, request: GenerationRequest) -> None:
        params_bytes = self._params_bytes.pop(request.id, 0)
        if params_bytes:
            self._hold_params(-params_bytes)

    def _cancel(self, request: GenerationRequest) -> None:
        self._pool.runner(request.model).cancel(request)

    async def _expire(
        self, runner: ModelRunner, request: GenerationRequest, deadline: trio.CancelScope
    ) -> None:
        with deadline:
            await trio.sleep_forever()
        # Does nothing to a request whose end has cancelled the scope.
        runner.expire(request)


def _deadline_s(deadline_ms: int | None) -> float | None:
    """As a moment of the monotonic clock."""
    return None if deadline_ms is None else trio.current_time() + deadline_ms / 1000
