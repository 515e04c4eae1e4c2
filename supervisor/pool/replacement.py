"""The worker that serves is replaced while it serves: another one loads beside it, takes over, and then the old one drains."""

import logging
from collections.abc import Callable

import trio

from mlxsup.config.schema import Recovery
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.life import Life
from mlxsup.supervisor.pool.lives import Lives
from mlxsup.supervisor.pool.worker_memory import WorkerMemory
from mlxsup.supervisor.recovery.recycling import RecyclePolicy

_log = logging.getLogger(__name__)


class Replacement:
    """Asked for, or by the bounds of `[recovery]`. `begin` gives another life, `is_settled` says whether the model may be
    recycled without being asked: it is ready, and is to stay so.
    """

    def __init__(
        self,
        name: str,
        lives: Lives,
        memory: WorkerMemory,
        recovery: Recovery,
        *,
        begin: Callable[[], Life],
        is_settled: Callable[[], bool],
    ) -> None:
        self._name = name
        self._lives = lives
        self._memory = memory
        self._policy = RecyclePolicy(recovery)
        self._begin = begin
        self._is_settled = is_settled

    def replace(self, old: Life) -> Life | None:
        """Another one takes over from the worker that serves; None when `old` has to end first."""
        lives = self._lives
        if lives.successor is not None:
            return lives.successor
        if not self._memory.may_double(old):
            _log.info("%s: not enough memory for two workers: draining first", self._name)
            old.stop(at_once=False)
        elif not old.stopping:
            lives.successor = self._begin()
        return lives.successor

    def note_ready(self, now_s: float) -> None:
        """Another worker serves from now on."""
        self._policy.note_ready(now_s)

    def note_refused(self, now_s: float) -> None:
        """The one that was to take over could not be had."""
        self._policy.note_refused(now_s)

    def request_ended(self, request: GenerationRequest) -> None:
        if request.marks.dispatched_s is not None:
            self._recycle(self._policy.after_request(len(request.tokens), trio.current_time()))

    def sampled(self, life: Life) -> None:
        """There is another sample of its memory."""
        if life is self._lives.current and life.ready_s is not None:
            self._recycle(self._policy.after_sample(life.samples[-1], trio.current_time()))

    def _recycle(self, why: str | None) -> None:
        old = self._lives.current
        if why is None or old is None or len(self._lives) > 1 or not self._is_settled():
            return
        _log.info("%s: recycling the worker: %s", self._name, why)
        self.replace(old)
