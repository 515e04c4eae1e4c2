"""Tells of deaths: an event at once, a report on disk a moment later. Task."""

import logging
from collections import deque
from datetime import UTC, datetime
from itertools import islice

import msgspec
import trio

from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.pool.life import Life
from mlxsup.supervisor.recovery.aftermath import Aftermath
from mlxsup.supervisor.recovery.classify import Evidence
from mlxsup.supervisor.recovery.death_report import DeathBook, DeathBookError, DeathReport, RequestShape
from mlxsup.supervisor.recovery.poison import QuarantinedRequest, request_digest
from mlxsup.supervisor.recovery.redact import redact_stderr
from mlxsup.supervisor.recovery.source_files import is_source_file

_log = logging.getLogger(__name__)

# Deaths come in bursts, and the disk may be slow; beyond it entries are lost, and the log says so.
_WAITING_MAX = 200


class _Forgiven(msgspec.Struct, frozen=True):
    """The quarantined requests of a model, or of all."""

    model: str | None


_Entry = DeathReport | QuarantinedRequest | _Forgiven


class DeathRecorder:
    def __init__(self, book: DeathBook, events: EventBus, flush_s: float) -> None:
        self._book = book
        self._events = events
        self._flush_s = flush_s
        self._waiting: deque[_Entry] = deque()
        self._changed = trio.Event()
        self._lost = 0
        self._ending = False
        # What is begun is finished, for as long as the end may wait for it.
        self._writing = trio.CancelScope(shield=True)

    async def run(self) -> None:
        """Write what has happened, in order; once cancelled, what is left, for at most `flush_s` in all."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_all)
            try:
                await trio.sleep_forever()
            finally:
                self._ending = True
                self._writing.deadline = trio.current_time() + self._flush_s
                self._changed.set()

    async def _write_all(self) -> None:
        with self._writing:
            while not self._ending or self._waiting:
                if self._waiting:
                    await self._write(self._waiting[0])
                    self._waiting.popleft()
                    continue
                if self._lost:
                    _log.error("%d entries of the death book are lost", self._lost)
                    self._lost = 0
                self._changed = trio.Event()
                await self._changed.wait()
        if lost := len(self._waiting) + self._lost:
            _log.error("the end waits no longer for the death book: %d entries are lost", lost)

    def worker_died(self, model: str, life: Life, evidence: Evidence, aftermath: Aftermath) -> None:
        report = _make_report(model, life, evidence, aftermath)
        self._events.publish(
            "death",
            model,
            report.death_class,
            pid=report.pid,
            generation=report.generation,
            phase=report.phase,
            signal=report.signal,
            exit_status=report.exit_status,
            advice=report.advice,
            action=report.action,
        )
        self._put(report)

    def request_quarantined(self, entry: QuarantinedRequest) -> None:
        self._events.publish("death", entry.model, "request_quarantined", digest=entry.digest)
        self._put(entry)

    def requests_forgiven(self, model: str | None) -> None:
        # What waits and is about them is void; the first of all is being written.
        for entry in list(islice(self._waiting, 1, None)):
            if not isinstance(entry, DeathReport) and model in (None, entry.model):
                self._waiting.remove(entry)
        self._put(_Forgiven(model))

    def _put(self, entry: _Entry) -> None:
        if len(self._waiting) < _WAITING_MAX:
            self._waiting.append(entry)
            self._changed.set()
            return
        if not self._lost:
            _log.error("the death book can't be written as fast as it grows: entries are lost")
        self._lost += 1

    async def _write(self, entry: _Entry) -> None:
        try:
            await trio.to_thread.run_sync(self._keep, entry, abandon_on_cancel=True)
        except (DeathBookError, RuntimeError) as error:
            # RuntimeError: there is no thread left to write in.
            _log.error("cannot keep a death report: %s", error)

    def _keep(self, entry: _Entry) -> None:
        if isinstance(entry, DeathReport):
            self._book.write(entry)
        elif isinstance(entry, QuarantinedRequest):
            self._book.write_quarantined(entry, _now())
        else:
            self._book.forget_quarantined(entry.model)


def _make_report(model: str, life: Life, evidence: Evidence, aftermath: Aftermath) -> DeathReport:
    lost = (*aftermath.resumed, *aftermath.failed, *aftermath.quarantined)
    return DeathReport(
        at=_now(),
        model=model,
        generation=life.generation,
        pid=life.worker.pid if life.worker is not None else 0,
        death_class=aftermath.death.death_class,
        phase=evidence.phase,
        exit_status=aftermath.death.exit_status,
        signal=aftermath.death.signal,
        reason=aftermath.reason,
        lived_s=round(trio.current_time() - life.began_s, 3),
        in_flight=[
            RequestShape(
                digest=request_digest(request.model, request.order),
                tokens_delivered=len(request.tokens),
                max_tokens=request.order.max_tokens,
                resumed=request.resumed,
            )
            for request in lost
        ],
        memory=life.samples[-60:],
        stderr=redact_stderr(evidence.stderr, is_source_file),
        advice=aftermath.verdict.advice,
        action=aftermath.action,
        origin=aftermath.origin,
        given_up=aftermath.given_up,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
