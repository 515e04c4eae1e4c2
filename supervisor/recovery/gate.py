"""Who may come in: a model's breaker, the machine's, its quarantine, and why it is down. Pure."""

import math

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.recovery.breaker import Admission, BreakerState, CircuitBreaker, Refusal
from mlxsup.supervisor.recovery.poison import PoisonWatch, quarantined_error

_MACHINE = "the machine's GPU is in trouble"
_MODEL = "this model's workers keep dying"


class Pass(msgspec.Struct, frozen=True):
    """Through both breakers."""

    machine: Admission
    model: Admission

    @property
    def probe(self) -> bool:
        return self.machine.probe or self.model.probe


class Gate:
    """One for each model; `machine` is shared by all. A probe has gone well once it has got `probe_tokens`."""

    def __init__(
        self, breaker: CircuitBreaker, machine: CircuitBreaker, poison: PoisonWatch, probe_tokens: int
    ) -> None:
        self.breaker = breaker
        self._machine = machine
        self._poison = poison
        self._probe_tokens = probe_tokens
        self._admissions: dict[int, Pass] = {}
        # Others are refused until they are settled.
        self._probes: dict[int, GenerationRequest] = {}
        self._shut: RpcError | None = None
        self._shut_until_s = -math.inf

    def shut(self, error: RpcError, until_s: float) -> None:
        """Everybody is refused with `error` until then, or until `open`."""
        self._shut = error
        self._shut_until_s = until_s

    def open(self) -> None:
        """By hand: what was held against the model, or the machine, is forgiven."""
        self._shut = None
        self.breaker.forgive()
        self._machine.forgive()

    def why_shut(self, now_s: float) -> RpcError | None:
        if self._shut is not None and now_s >= self._shut_until_s:
            self._shut = None
        return self._shut

    def why_refused(self, now_s: float) -> RpcError | None:
        """For what is no request and probes nothing, but would start a worker."""
        if (shut := self.why_shut(now_s)) is not None:
            return shut
        for what, breaker in ((_MACHINE, self._machine), (_MODEL, self.breaker)):
            if (refusal := breaker.refusal(now_s)) is not None:
                return _circuit_open(what, refusal)
        return None

    def enter(self, request: GenerationRequest, now_s: float) -> None:
        """Let it in; `left` follows, once.

        Raises:
            RpcError: QUARANTINED, CIRCUIT_OPEN, or what the gate was shut with.
        """
        if (shut := self.why_shut(now_s)) is not None:
            raise shut
        if (entry := self._poison.find(request.model, request.order)) is not None:
            raise quarantined_error(entry)
        machine = self._machine.admit(now_s)
        if isinstance(machine, Refusal):
            raise _circuit_open(_MACHINE, machine)
        model = self.breaker.admit(now_s)
        if isinstance(model, Refusal):
            self._machine.settle(machine, fault=None, now_s=now_s)
            raise _circuit_open(_MODEL, model)
        admitted = Pass(machine, model)
        self._admissions[request.id] = admitted
        if admitted.probe:
            self._probes[request.id] = request

    def note_step(self, now_s: float) -> None:
        """Requests have got tokens: a probe's end may be long in coming."""
        for request in list(self._probes.values()):
            if len(request.tokens) >= self._probe_tokens:
                self._settle(request, fault=False, now_s=now_s)

    def left(self, request: GenerationRequest, error: RpcError | None, now_s: float) -> None:
        # A death is counted once, by itself, however many requests end with it; other errors are the client's own.
        fault = False if error is None and not request.cancel_asked else None
        self._settle(request, fault=fault, now_s=now_s)

    def _settle(self, request: GenerationRequest, *, fault: bool | None, now_s: float) -> None:
        self._probes.pop(request.id, None)
        admitted = self._admissions.pop(request.id, None)
        if admitted is None:
            return
        self.breaker.settle(admitted.model, fault=fault, now_s=now_s)
        self._machine.settle(admitted.machine, fault=fault, now_s=now_s)

    def worker_died(self, *, counts: bool, machine: bool, now_s: float) -> None:
        if counts:
            self.breaker.note_fault(now_s)
        if machine:
            self._machine.note_fault(now_s)

    def breaker_state(self, now_s: float) -> BreakerState:
        return self.breaker.state(now_s)


def _circuit_open(what: str, refusal: Refusal) -> RpcError:
    if refusal.retry_after_s is None:
        return RpcError(
            ErrorKind.CIRCUIT_OPEN,
            "this model refuses requests: its breaker was opened by hand; `mlxsup breaker MODEL reset` closes it",
            retriable=False,
        )
    return RpcError(
        ErrorKind.CIRCUIT_OPEN,
        f"{what}: new requests are refused for a while; see `mlxsup deaths`",
        retry_after_ms=max(1, round(refusal.retry_after_s * 1000)),
    )
