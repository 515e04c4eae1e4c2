"""What a worker's death does to a model's requests: which go on, which end, and who is told."""

import logging
from typing import Protocol

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.life import Ending, Life
from mlxsup.supervisor.recovery.aftermath import Aftermath, decide_aftermath
from mlxsup.supervisor.recovery.classify import Evidence
from mlxsup.supervisor.recovery.gate import Gate
from mlxsup.supervisor.recovery.poison import PoisonWatch, QuarantinedRequest
from mlxsup.supervisor.recovery.restart_policy import RestartPolicy
from mlxsup.supervisor.scheduling.scheduler import Scheduler

_log = logging.getLogger(__name__)


class Witness(Protocol):
    """Is told of each death and of each request that is quarantined, at once."""

    def worker_died(self, model: str, life: Life, evidence: Evidence, aftermath: Aftermath) -> None: ...

    def request_quarantined(self, entry: QuarantinedRequest) -> None: ...

    def requests_forgiven(self, model: str | None) -> None:
        """Of the model, or of all."""
        ...


class Casualties:
    def __init__(
        self,
        model: str,
        scheduler: Scheduler,
        gate: Gate,
        policy: RestartPolicy,
        poison: PoisonWatch,
        witness: Witness,
        *,
        fruitless_resumes_max: int,
        crowded_s: float,
    ) -> None:
        """`crowded_s`: for so long fewer are computed together after memory ran out."""
        self._model = model
        self._scheduler = scheduler
        self._gate = gate
        self._policy = policy
        self._poison = poison
        self._witness = witness
        self._fruitless_resumes_max = fruitless_resumes_max
        self._crowded_s = crowded_s

    def settle(
        self,
        life: Life,
        ending: Ending,
        lost: list[GenerationRequest],
        *,
        questions: int,
        another: bool,
        restarts: bool,
        closing: RpcError | None,
        now_s: float,
    ) -> Aftermath:
        """Each of `lost`, which `life` had not answered, goes back to the queue or ends, if it has not ended yet.

        Beside them it had so many other `questions`.

        `another`: a worker of the model is there or on its way, whatever this death means; `restarts`: this death decides
        when the next one may be started, and counts in the budget and the breaker. `closing` is what requests
        are refused with while the supervisor shuts down.
        """
        assert ending.death is not None
        aftermath = decide_aftermath(
            ending.death,
            ending.why,
            lost,
            questions=questions,
            poison=self._poison,
            policy=self._policy if restarts else None,
            another=another,
            fruitless_resumes_max=self._fruitless_resumes_max,
            ready_s=life.ready_s,
            now_s=now_s,
        )
        verdict = aftermath.verdict
        _log.error("%s: the worker died: %s: %s", self._model, aftermath.reason, aftermath.action)
        self._gate.worker_died(counts=restarts and aftermath.weight > 0, machine=verdict.machine, now_s=now_s)
        self._witness.worker_died(self._model, life, ending.death, aftermath)
        if aftermath.batch_max is not None:
            self._scheduler.limit_crowd(aftermath.batch_max, now_s + self._crowded_s)
        for request in aftermath.quarantined:
            self._quarantine(request, aftermath, now_s)
        for request in aftermath.failed:
            self._scheduler.fail(request, aftermath.error, now_s)
        nowhere = closing or self._gate.why_shut(now_s)
        if nowhere is None:
            self._scheduler.resume(aftermath.resumed, now_s)
        else:
            for request in aftermath.resumed:
                self._scheduler.fail(request, nowhere, now_s)
        return aftermath

    def _quarantine(self, request: GenerationRequest, aftermath: Aftermath, now_s: float) -> None:
        entry = self._poison.find(self._model, request.order)
        if entry is not None:
            self._witness.request_quarantined(entry)
        if request.ended:
            return
        self._scheduler.fail(
            request,
            RpcError(
                ErrorKind.QUARANTINED,
                f"this request was in flight when two workers died and is refused from now on; {aftermath.reason}",
                death=aftermath.death,
            ),
            now_s,
        )
