"""What follows a death, decided in one place from what is known of it. Pure.

The order is that of caution: first who is found guilty, and who may be; then when the next worker may start; then who
goes on in it. Nobody ends for what it may have suffered from others: who has used up its tries beside others is computed
alone, and ends only when a worker dies that has nothing else to do.
"""

import msgspec

from mlxsup.protocol.errors import Death, ErrorKind, RpcError
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.recovery.classify import Evidence, classify, origin_of_end, signal_name
from mlxsup.supervisor.recovery.poison import PoisonWatch
from mlxsup.supervisor.recovery.restart_policy import RestartPolicy
from mlxsup.supervisor.recovery.signal_origin import Origin
from mlxsup.supervisor.recovery.verdicts import Restart, Verdict


class Aftermath(msgspec.Struct, frozen=True, kw_only=True):
    """`wait_s` is None when no other worker is to be started; `reason` then says why, unless there is `another`.

    `weight` is what the death counts: nothing where it is known which request did it. After one for want of memory no more
    than `batch_max` are to be computed together for a while.
    Each lost request is in one list, but for those that had ended before and are not quarantined.
    """

    verdict: Verdict
    weight: int
    death: Death
    origin: Origin | None
    another: bool
    wait_s: float | None
    reason: str
    batch_max: int | None
    resumed: list[GenerationRequest]
    failed: list[GenerationRequest]
    quarantined: list[GenerationRequest]

    @property
    def given_up(self) -> WorkerState | None:
        """The state that the model is left in until somebody does something about it, where no other worker is to come."""
        if self.another or self.wait_s is not None:
            return None
        never = self.verdict.restart is Restart.NEVER
        return WorkerState.FAILED if never else WorkerState.QUARANTINED

    @property
    def error(self) -> RpcError:
        """For the requests that end with this death."""
        return RpcError(ErrorKind.WORKER_DIED, f"the worker died: {self.reason}", death=self.death)

    @property
    def action(self) -> str:
        """For the report: what was done."""
        counts = (("resumed", self.resumed), ("failed", self.failed), ("quarantined", self.quarantined))
        done = [f"{len(requests)} {what}" for what, requests in counts if requests]
        if self.batch_max is not None:
            done.append(f"at most {self.batch_max} at once for a while")
        if self.another:
            return ", ".join([*done, "another worker is there"])
        restart = "no restart" if self.wait_s is None else f"restart after {self.wait_s:.1f} s"
        return ", ".join([*done, restart])


def decide_aftermath(
    evidence: Evidence,
    why: str | None,
    lost: list[GenerationRequest],
    *,
    questions: int,
    poison: PoisonWatch,
    policy: RestartPolicy | None,
    another: bool,
    fruitless_resumes_max: int,
    ready_s: float | None,
    now_s: float,
) -> Aftermath:
    """`lost` are the requests that the worker had not answered, beside so many other `questions`; `why` is what the
    supervisor itself saw; `ready_s` when the worker became ready, None if it did not. `policy` is None where this death
    asks for no restart.

    `another`: there is another worker of the model, or one is on its way, whatever this death means. A request that more
    than `fruitless_resumes_max` workers in a row have taken over without getting it far ends: what kills without a word,
    as the system does for want of memory, can't be told from bad luck otherwise. The last of them has it alone.
    """
    verdict = classify(evidence)
    name = signal_name(evidence.returncode)
    death = Death(
        death_class=verdict.name,
        phase=evidence.phase,
        exit_status=None if name else evidence.returncode,
        signal=name,
    )
    quarantined = poison.note_death(lost, verdict.name, now_s, questions) if verdict.blames_request else []
    survivors = [request for request in lost if not request.ended and request not in quarantined]
    in_company = len(lost) + questions > 1
    spent = [
        request
        for request in survivors
        if _is_spent(request, verdict, poison, fruitless_resumes_max - (1 if in_company else 0))
    ]
    excused = bool(quarantined or (spent and not in_company))
    wait_s = None if policy is None else _wait_s(policy, verdict, ready_s, now_s, excused=excused)
    resumed = []
    if another or wait_s is not None:
        resumed = [request for request in survivors if _may_resume(request, [] if in_company else spent)]
    for request in spent:
        if in_company:
            poison.isolate(request)
        else:
            poison.note_failed_alone(request, verdict.name, now_s)
    origin = origin_of_end(evidence)
    return Aftermath(
        verdict=verdict,
        weight=0 if excused else verdict.weight,
        batch_max=_batch_max(lost, verdict),
        death=death,
        wait_s=wait_s,
        origin=origin,
        another=another,
        reason=_describe(death, origin, verdict, why),
        resumed=resumed,
        failed=[request for request in survivors if request not in resumed],
        quarantined=quarantined,
    )


def _is_spent(request: GenerationRequest, verdict: Verdict, poison: PoisonWatch, fruitless_max: int) -> bool:
    """Whether it has used up its tries."""
    return (
        (verdict.resumes_max is not None and request.resumed >= verdict.resumes_max)
        or request.fruitless_resumes(poison.clear_tokens) >= fruitless_max
        or (not verdict.blames_request and poison.has_failed_alone(request, verdict.name))
    )


def _may_resume(request: GenerationRequest, guilty: list[GenerationRequest]) -> bool:
    return request.resume and request not in guilty


def _batch_max(lost: list[GenerationRequest], verdict: Verdict) -> int | None:
    """Half of what was too much."""
    return len(lost) // 2 if verdict.resumes_max is not None and len(lost) > 1 else None


def _wait_s(
    policy: RestartPolicy, verdict: Verdict, ready_s: float | None, now_s: float, *, excused: bool
) -> float | None:
    wait_s = policy.note_death(verdict.weight, now_s, ready_s, excused=excused)
    if verdict.restart is Restart.NEVER:
        return None
    if verdict.restart is Restart.AT_ONCE and verdict.weight and wait_s is not None:
        # Within its budget; what weighs nothing has none, and is slowed down by the policy.
        return 0.0
    return wait_s


def _describe(death: Death, origin: Origin | None, verdict: Verdict, why: str | None) -> str:
    how = f"signal {death.signal}" if death.signal else f"exit status {death.exit_status}"
    if origin is not None:
        how += f" {origin}" if death.signal else f", {signal_name(-origin.number)} {origin}"
    seen = f", {why}" if why else ""
    return f"{death.death_class} ({how}) while {death.phase}{seen}; {verdict.advice}"
