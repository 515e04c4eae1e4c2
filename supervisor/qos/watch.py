"""Looks at every objective in turn, has done what is due, and tells of it."""

import logging
from collections.abc import Callable, Iterator, Mapping

import msgspec
import trio

from mlxsup.config.schema import Model, Qos
from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.generation import Priority
from mlxsup.protocol.service import SloChange, SloStats
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.qos.burn import Burn
from mlxsup.supervisor.qos.levers import Board, Levers, Sight
from mlxsup.supervisor.qos.objective import Kind, objectives
from mlxsup.supervisor.qos.policy import Change, Policy
from mlxsup.supervisor.qos.samples import Record, TierSamples

_log = logging.getLogger(__name__)


class _Tier(msgspec.Struct, frozen=True):
    samples: TierSamples
    policies: dict[Kind, Policy]


class _Model(msgspec.Struct, frozen=True):
    board: Board
    tiers: dict[Priority, _Tier]
    open: dict[int, GenerationRequest]

    def sight(self) -> Sight:
        requests = self.open.values()
        return Sight(
            frozenset(request.priority for request in requests),
            sum(request.marks.dispatched_s is not None for request in requests),
        )


class SloWatch:
    """Is told of each request's beginning and end; `run` it, or `look` at every interval."""

    def __init__(self, models: Mapping[str, Model], qos: Qos, levers: Levers, now_s: float) -> None:
        self._qos = qos
        self._levers = levers
        self._models = {
            name: _watched(name, model, qos, levers, now_s) for name, model in models.items() if model.slo
        }

    async def run(self) -> None:
        """Until cancelled."""
        if not self._models:
            return
        while True:
            await trio.sleep(self._qos.interval_s)
            for _ in self._look(trio.current_time):
                # Streams are not held up by all of it at once.
                await trio.lowlevel.checkpoint()

    def request_began(self, request: GenerationRequest) -> None:
        """Before anybody else has it; `request_ended` follows."""
        model = self._models.get(request.model)
        if model is None:
            return
        model.open[request.id] = request
        tier = model.tiers.get(request.priority)
        if tier is not None:
            tier.samples.begin(request)

    def request_refused(self, request: GenerationRequest, kind: ErrorKind, now_s: float) -> None:
        """It has begun and was not even accepted."""
        self.request_ended(request, kind.value, now_s)

    def request_ended(self, request: GenerationRequest, outcome: str, now_s: float) -> None:
        model = self._models.get(request.model)
        if model is None:
            return
        model.open.pop(request.id, None)
        tier = model.tiers.get(request.priority)
        if tier is not None:
            tier.samples.end(request, outcome, now_s, shed=model.board.is_shed(request.priority))

    def look(self, now_s: float) -> None:
        for _ in self._look(lambda: now_s):
            pass

    def _look(self, clock: Callable[[], float]) -> Iterator[None]:
        """In pieces that are short even with a thousand streams."""
        for name, model in self._models.items():
            for tier in model.tiers.values():
                tier.samples.look(clock())
                yield
            for tier in model.tiers.values():
                for policy in tier.policies.values():
                    self._consider(name, model, policy, clock())
                    yield

    def read(self, now_s: float) -> dict[str, dict[str, list[SloStats]]]:
        """How all objectives stand, by model and tier."""
        return {
            name: {
                priority.value: [_stats(policy, now_s) for policy in tier.policies.values()]
                for priority, tier in model.tiers.items()
            }
            for name, model in self._models.items()
        }

    def _consider(self, name: str, model: _Model, policy: Policy, now_s: float) -> None:
        measured = policy.measure(now_s)
        if measured is not None:
            _log.info(
                "%s: after `%s` was %s for %s: %s of %s is %s, from %s",
                *(name, measured.step, _done(measured), policy.tier.value),
                *(policy.objective.kind.value, policy.objective.limit, measured.after, measured.before),
            )
        burn = policy.meter.read(now_s)
        change = policy.consider(burn, model.sight, now_s)
        if change is not None:
            self._tell(name, policy, change, burn)

    def _tell(self, name: str, policy: Policy, change: Change, burn: Burn) -> None:
        _log.log(
            logging.INFO if change.undone else logging.WARNING,
            "%s: %s of %s is %s at %s, burning %.2g and %.2g: `%s` is %s",
            *(name, policy.tier.value, policy.objective.kind.value, policy.objective.limit),
            *(change.before, burn.short, burn.long, change.step, _done(change)),
        )
        detail = {
            "tier": policy.tier.value,
            "objective": policy.objective.kind.value,
            "limit": policy.objective.limit,
            "action": str(change.step),
            "state": policy.state.value,
            "in_force": [str(step) for step in policy.in_force],
            "figure": change.before,
            "burn_short": round(burn.short, 3),
            "burn_long": round(burn.long, 3),
        }
        self._levers.tell(name, _done(change), detail)


def _watched(name: str, model: Model, qos: Qos, levers: Levers, now_s: float) -> _Model:
    board = Board(
        name,
        levers,
        batch_sequences_max=model.batch_sequences_max,
        prefill_chunk_tokens=model.prefill_chunk_tokens,
        recycle_interval_s=qos.long_window_s,
    )
    tiers = {}
    for tier in Priority:
        slo = model.slo.get(tier)
        if slo is None:
            continue
        found = objectives(slo)
        policies = {objective.kind: Policy(tier, objective, slo.actions, board, qos) for objective in found}
        tiers[tier] = _Tier(TierSamples(found, _recorder(policies), qos.interval_s, now_s), policies)
    return _Model(board, tiers, {})


def _recorder(policies: dict[Kind, Policy]) -> Record:
    def record(kind: Kind, value: float, now_s: float) -> None:
        policies[kind].meter.record(value, now_s)

    return record


def _done(change: Change) -> str:
    return "undone" if change.undone else "done"


def _stats(policy: Policy, now_s: float) -> SloStats:
    burn = policy.meter.read(now_s)
    return SloStats(
        objective=policy.objective.kind.value,
        limit=policy.objective.limit,
        figure=burn.figure,
        burn_short=round(burn.short, 3),
        burn_long=round(burn.long, 3),
        samples=burn.samples,
        state=policy.state.value,
        in_force=[str(step) for step in policy.in_force],
        changes=[
            SloChange(
                ago_s=round(now_s - change.at_s, 3),
                action=str(change.step),
                undone=change.undone,
                before=change.before,
                after=change.after,
            )
            for change in policy.changes
        ],
    )
