"""Tells of deaths: an event at once, a report on disk a moment later. Task."""

import logging
from datetime import UTC, datetime

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

# Deaths come in bursts, and the disk may be slow; beyond it a report is lost, and the log says so.
_WAITING_MAX = 200


class _Forgiven(msgspec.Struct, frozen=True):
    """The quarantined requests of a model, or of all."""

    model: str | None


class DeathRecorder:
    def __init__(self, book: DeathBook, events: EventBus) -> None:
        self._book = book
        self._events = events
        self._send, self._receive = trio.open_memory_channel[DeathReport | QuarantinedRequest | _Forgiven](
            _WAITING_MAX
        )

    async def run(self) -> None:
        """Write what has happened, in order; until cancelled, and then what is left."""
        try:
            async for item in self._receive:
                # Whoever took it out writes it.
                with trio.CancelScope(shield=True):
                    await self._write(item)
        finally:
            with trio.CancelScope(shield=True):
                while True:
                    try:
                        item = self._receive.receive_nowait()
                    except trio.WouldBlock:
                        break
                    await self._write(item)

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
        self._put(_Forgiven(model))

    def _put(self, item: DeathReport | QuarantinedRequest | _Forgiven) -> None:
        try:
            self._send.send_nowait(item)
        except trio.WouldBlock:
            _log.error("too many deaths at once: one report is lost")

    async def _write(self, item: DeathReport | QuarantinedRequest | _Forgiven) -> None:
        try:
            if isinstance(item, DeathReport):
                await trio.to_thread.run_sync(self._book.write, item)
            elif isinstance(item, QuarantinedRequest):
                await trio.to_thread.run_sync(self._book.write_quarantined, item, _now())
            else:
                await trio.to_thread.run_sync(self._book.forget_quarantined, item.model)
        except (DeathBookError, RuntimeError) as error:
            # RuntimeError: there is no thread left to write in.
            _log.error("cannot keep a death report: %s", error)


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
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
