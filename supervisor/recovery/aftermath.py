"""What follows a death, decided in one place from what is known of it. Pure.

The order is that of caution: what another worker could not do better is failed; what may have been the request's own
doing makes suspects; only then comes the question when the next worker may start.
"""

import msgspec

from mlxsup.protocol.errors import Death, ErrorKind, RpcError
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.recovery.classify import Evidence, classify, origin_of_end, signal_name
from mlxsup.supervisor.recovery.poison import PoisonWatch
from mlxsup.supervisor.recovery.restart_policy import RestartPolicy
from mlxsup.supervisor.recovery.signal_origin import Origin
from mlxsup.supervisor.recovery.verdicts import Restart, Verdict


class Aftermath(msgspec.Struct, frozen=True, kw_only=True):
    """`wait_s` is None when no other worker is to be started; `reason` then says why, unless there is `another`.

    Each lost request is in one list, but for those that had ended before and are not quarantined.
    """

    verdict: Verdict
    death: Death
    origin: Origin | None
    another: bool
    wait_s: float | None
    reason: str
    resumed: list[GenerationRequest]
    failed: list[GenerationRequest]
    quarantined: list[GenerationRequest]

    @property
    def error(self) -> RpcError:
        """For the requests that end with this death."""
        return RpcError(ErrorKind.WORKER_DIED, f"the worker died: {self.reason}", death=self.death)

    @property
    def action(self) -> str:
        """For the report: what was done."""
        counts = (("resumed", self.resumed), ("failed", self.failed), ("quarantined", self.quarantined))
        done = [f"{len(requests)} {what}" for what, requests in counts if requests]
        if self.another:
            return ", ".join([*done, "another worker is there"])
        restart = "no restart" if self.wait_s is None else f"restart after {self.wait_s:.1f} s"
        return ", ".join([*done, restart])


def decide_aftermath(
    evidence: Evidence,
    why: str | None,
    lost: list[GenerationRequest],
    *,
    poison: PoisonWatch,
    policy: RestartPolicy | None,
    another: bool,
    fruitless_resumes_max: int,
    ready_s: float | None,
    now_s: float,
) -> Aftermath:
    """`lost` are the requests that the worker had not answered; `why` is what the supervisor itself saw; `ready_s` when
    the worker became ready, None if it did not. `policy` is None where this death asks for no restart.

    `another`: there is another worker of the model, or one is on its way, whatever this death means. A request that so
    many workers in a row have taken over without giving it a token ends: what kills without a word, as the system does
    for want of memory, can't be told from bad luck otherwise.
    """
    verdict = classify(evidence)
    name = signal_name(evidence.returncode)
    death = Death(
        death_class=verdict.name,
        phase=evidence.phase,
        exit_status=None if name else evidence.returncode,
        signal=name,
    )
    wait_s = None if policy is None else _wait_s(policy, verdict, ready_s, now_s)
    quarantined = poison.note_death(lost, verdict.name, now_s) if verdict.blames_request else []
    survivors = [request for request in lost if not request.ended and request not in quarantined]
    resumable = another or wait_s is not None
    resumed = [
        request
        for request in survivors
        if resumable and _may_resume(request, verdict) and request.fruitless_resumes < fruitless_resumes_max
    ]
    origin = origin_of_end(evidence)
    return Aftermath(
        verdict=verdict,
        death=death,
        wait_s=wait_s,
        origin=origin,
        another=another,
        reason=_describe(death, origin, verdict, why),
        resumed=resumed,
        failed=[request for request in survivors if request not in resumed],
        quarantined=quarantined,
    )


def _wait_s(policy: RestartPolicy, verdict: Verdict, ready_s: float | None, now_s: float) -> float | None:
    wait_s = policy.note_death(verdict.weight, now_s, ready_s)
    if verdict.restart is Restart.NEVER:
        return None
    if verdict.restart is Restart.AT_ONCE and verdict.weight and wait_s is not None:
        # Within its budget; what weighs nothing has none, and is slowed down by the policy.
        return 0.0
    return wait_s


def _may_resume(request: GenerationRequest, verdict: Verdict) -> bool:
    return request.resume and (verdict.resumes_max is None or request.resumed < verdict.resumes_max)


def _describe(death: Death, origin: Origin | None, verdict: Verdict, why: str | None) -> str:
    how = f"signal {death.signal}" if death.signal else f"exit status {death.exit_status}"
    if origin is not None:
        how += f" {origin}" if death.signal else f", {signal_name(-origin.number)} {origin}"
    seen = f", {why}" if why else ""
    return f"{death.death_class} ({how}) while {death.phase}{seen}; {verdict.advice}"
