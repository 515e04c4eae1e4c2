"""The MLX thread's loop: take what is in the inbox, compute one step, send what it gave. Repeat.

No timed windows: a lone token leaves at once, and under load the frame of one step carries many.
Every request that came in is answered exactly once: by its last emission, by a cancel, or by the
preparation that refused it.
"""

import time

import msgspec

from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.exit_codes import ExitCode
from mlxsup.protocol.generation import FinishReason
from mlxsup.protocol.jsonrpc import encode_error, encode_result
from mlxsup.worker.engine.interface import Embeds, Emission, Engine, Prepared, PreparedTexts, TestsItself
from mlxsup.worker.inbox import Command, EndOfInput, Inbox
from mlxsup.worker.lease import Lease
from mlxsup.worker.outbox import Outbox
from mlxsup.worker.preparation import Preparation, Ready
from mlxsup.worker.vitals import Vitals

# A worker that waits for its turn with nothing to compute looks up so often, and is seen to live.
_LEASE_LOOK_S = 1.0
# Of fewer tokens what they are read beside takes the time.
_MEASURED_TOKENS_MIN = 32


class _Counts(msgspec.Struct):
    """Of one sequence in the batch, in tokens."""

    prompt: int
    completion: int = 0


class BatchLoop:
    def __init__(self, engine: Engine, inbox: Inbox, outbox: Outbox, vitals: Vitals) -> None:
        self._engine = engine
        self._inbox = inbox
        self._outbox = outbox
        self._vitals = vitals
        self._lease = Lease(outbox.send)
        engine.share(self._lease)
        self._preparation = Preparation(engine, outbox, vitals, inbox.put)
        # False once its cancel has come.
        self._preparing: dict[int, bool] = {}
        self._running: dict[int, _Counts] = {}
        # Who asked for the self-test that is under way.
        self._self_test_ids: list[int] = []
        self._steps = 0
        self._prefill_tokens_per_s = 0.0
        # Spent on the step that is being computed, which may be put aside now and then.
        self._step_s = 0.0

    def run(self) -> ExitCode:
        """Until the supervisor says to end, or its pipe closes."""
        while True:
            idle = not (self._running or self._self_test_ids)
            if idle:
                self._engine.rest(self._inbox.has_items)
                self._vitals.advance("idle", self._steps)
            end = self._take(wait=idle)
            # What arrived together begins together: one prefill of several prompts costs far less than several.
            arrived = set(self._preparing) if idle else set()
            while end is None and not arrived.isdisjoint(self._preparing):
                end = self._take(wait=True)
            if end is not None:
                return end
            if self._running and (end := self._step()) is not None:
                return end
            if self._self_test_ids:
                self._step_self_test()

    def _step(self) -> ExitCode | None:
        prefill_tokens = self._engine.prefill_tokens
        self._vitals.advance(
            "batch",
            self._steps,
            sequences=len(self._running),
            prefill_tokens=prefill_tokens,
            prefill_tokens_per_s=self._prefill_tokens_per_s,
        )
        began_s = time.monotonic()
        emissions = self._engine.step(self._inbox.has_items)
        self._step_s += time.monotonic() - began_s
        self._steps += 1
        if emissions is None:
            return None
        if prefill_tokens >= _MEASURED_TOKENS_MIN:
            self._prefill_tokens_per_s = prefill_tokens / max(self._step_s, 1e-6)
        self._step_s = 0.0
        self._send(emissions)
        if not emissions and self._lease.is_waiting:
            return self._take(wait=True, timeout_s=_LEASE_LOOK_S)
        return None

    def _step_self_test(self) -> None:
        """In turns with the steps of what runs."""
        assert isinstance(self._engine, TestsItself)
        self._vitals.advance("batch", self._steps, sequences=len(self._running))
        result = self._engine.step_self_test(self._inbox.has_items)
        if result is not None:
            ids, self._self_test_ids = self._self_test_ids, []
            self._outbox.send_step((), [encode_result(id, result) for id in ids])

    def _take(self, *, wait: bool, timeout_s: float | None = None) -> ExitCode | None:
        for item in self._inbox.take(wait=wait, timeout_s=timeout_s):
            end = self._handle(item)
            if end is not None:
                return end
        return None

    def _handle(self, item: Command | Ready | EndOfInput) -> ExitCode | None:
        match item:
            case Ready():
                self._begin(item)
            case EndOfInput(fault=fault):
                return ExitCode.CLEAN if fault is None else ExitCode.PROTOCOL_ERROR
            case Command(params=link.Shutdown()):
                return ExitCode.CLEAN
            case Command(params=link.Cancel(id=id, goes_on=goes_on)):
                self._cancel(id, goes_on=goes_on)
            case Command(params=link.Tune() as order):
                self._engine.tune(order)
                if order.lease_tokens_min is not None:
                    self._lease.bound(order.lease_tokens_min)
            case Command(params=link.LeaseTurn()):
                self._lease.grant()
            case Command(params=link.Load()):
                return ExitCode.PROTOCOL_ERROR
            case Command(id=id, params=link.Generate() | link.Embed()):
                self._preparing[id] = True
                self._preparation.put(item)
            case Command(id=id, params=link.SelfTest()):
                self._begin_self_test(id)
            case Command():
                self._preparation.put(item)
        return None

    def _begin_self_test(self, id: int) -> None:
        """Whoever asks while one is under way has the result of that."""
        if isinstance(self._engine, TestsItself):
            self._self_test_ids.append(id)
        else:
            error = RpcError(ErrorKind.UNSUPPORTED, "this model's engine has no self-test")
            self._outbox.send(encode_error(id, error))

    def _begin(self, ready: Ready) -> None:
        wanted = self._preparing.pop(ready.id)
        if ready.prepared is None:
            return
        self._running[ready.id] = _counts(ready.prepared)
        only = self._submit(ready.id, ready.prepared) if wanted else _cancelled(ready.id)
        if only is not None:
            self._send([only])

    def _submit(self, id: int, prepared: Prepared | PreparedTexts) -> Emission | None:
        if isinstance(prepared, PreparedTexts):
            assert isinstance(self._engine, Embeds)
            self._engine.submit_texts(id, prepared)
            return None
        try:
            return self._engine.submit(id, prepared)
        except RpcError as error:
            return Emission(id, "", [], error=error)

    def _cancel(self, id: int, *, goes_on: bool) -> None:
        """An unknown id is one that has just ended: the race is normal."""
        if id in self._running:
            if goes_on:
                held = self._engine.give_way(id)
                self._send([msgspec.structs.replace(held, text="", reasoning="", tool_calls=[])])
            else:
                self._send([self._engine.cancel(id)])
        else:
            self._engine.forget(id)
            if id in self._preparing:
                self._preparing[id] = False

    def _send(self, emissions: list[Emission]) -> None:
        deltas = []
        answers = []
        for emission in emissions:
            counts = self._running[emission.id]
            counts.completion += len(emission.tokens)
            if emission.tokens or emission.text or emission.reasoning or emission.tool_calls:
                deltas.append(
                    link.Delta(
                        emission.id,
                        emission.text,
                        emission.tokens,
                        emission.reasoning,
                        emission.tool_calls,
                        emission.logprobs,
                    )
                )
            if emission.error is not None:
                del self._running[emission.id]
                answers.append(encode_error(emission.id, emission.error))
            elif emission.finish is not None:
                del self._running[emission.id]
                answer = link.Generated(
                    finish_reason=emission.finish,
                    prompt_tokens=counts.prompt,
                    completion_tokens=counts.completion,
                    cached_tokens=emission.cached_tokens,
                    embeddings=[msgspec.Raw(vector) for vector in emission.embeddings],
                )
                answers.append(encode_result(emission.id, answer))
        if deltas or answers:
            self._outbox.send_step(deltas, answers)


def _cancelled(id: int) -> Emission:
    return Emission(id, "", [], FinishReason.CANCELLED)


def _counts(prepared: Prepared | PreparedTexts) -> _Counts:
    if isinstance(prepared, PreparedTexts):
        return _Counts(sum(map(len, prepared.texts)))
    return _Counts(len(prepared.prompt_tokens), len(prepared.request.delivered_tokens))
