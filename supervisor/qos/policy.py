"""What is done about one objective of one tier of one model, and when it is undone. Pure.

    ok ── broken ──▶ acting ── calm ──▶ recovering ── all undone ──▶ ok
                        ◀── no longer calm ──┘

Rule 1: while the objective is broken, the actions of its list are tried in their order; the first that can change
anything is done. Shedding is tried again, a tier higher each time, before the next action is. Rule 2: between any two
changes, done or undone, at least `cooldown_s` pass, also across a recovery. Rule 3: once it has been calm for
`cooldown_s`, the last step that is in force is undone, and after as long again the one before. Rule 4: broken again, or no
longer calm, nothing more is undone; broken again, it goes on from what is still in force. Rule 5: every step is undone
once, but for another worker, which stays. Rule 6: each change is kept with the figure before it and, a cooldown later,
the figure of what came in between.
"""

import math
from collections import deque
from collections.abc import Callable
from enum import StrEnum

import msgspec

from mlxsup.config.schema import Qos, SloAction
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.qos.burn import Burn, BurnMeter
from mlxsup.supervisor.qos.levers import Board, Sight, Step
from mlxsup.supervisor.qos.objective import Objective

_CHANGES_MAX = 32


class State(StrEnum):
    OK = "ok"
    ACTING = "acting"
    RECOVERING = "recovering"


class Change(msgspec.Struct):
    """`before` and `after` are figures of the objective; None where nobody got anything, or it is not known yet."""

    at_s: float
    step: Step
    undone: bool
    before: float | None
    after: float | None = None
    measured: bool = False


class Policy:
    def __init__(
        self, tier: Priority, objective: Objective, actions: tuple[SloAction, ...], board: Board, qos: Qos
    ) -> None:
        self.tier = tier
        self.objective = objective
        self.state = State.OK
        self.meter = BurnMeter(objective, qos)
        # The newest last.
        self.changes: deque[Change] = deque(maxlen=_CHANGES_MAX)
        self._actions = actions
        self._board = board
        self._cooldown_s = qos.cooldown_s
        self._steps: list[Step] = []
        self._changed_s = -math.inf
        self._calm_since_s: float | None = None

    @property
    def in_force(self) -> list[Step]:
        """In the order in which they were taken."""
        return list(self._steps)

    def measure(self, now_s: float) -> Change | None:
        """The last change, when what it changed has just become known."""
        last = self.changes[-1] if self.changes else None
        if last is None or last.measured or now_s - last.at_s < self._cooldown_s:
            return None
        last.measured = True
        last.after = self.meter.figure_since_mark()
        return last

    def consider(self, burn: Burn, see: Callable[[], Sight], now_s: float) -> Change | None:
        """Do or undo what is due, at most one thing; call `measure` before. `see` is called where it matters."""
        if not burn.calm:
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        if burn.broken:
            self.state = State.ACTING
            return self._escalate(burn, see, now_s)
        if self.state is State.OK:
            return None
        self.state = State.RECOVERING if burn.calm else State.ACTING
        return self._recover(burn, now_s) if burn.calm else None

    def _escalate(self, burn: Burn, see: Callable[[], Sight], now_s: float) -> Change | None:
        if now_s - self._changed_s < self._cooldown_s:
            return None
        sight = see()
        first = 0
        if self._steps:
            last = self._steps[-1]
            first = last.index if last.action == "shed" else last.index + 1
        for index in range(first, len(self._actions)):
            step = self._board.next_step(self, self.tier, self._actions[index], index, sight, now_s)
            if step is not None:
                self._steps.append(step)
                self._board.take(self, step, now_s)
                return self._note(step, burn, now_s, undone=False)
        return None

    def _recover(self, burn: Burn, now_s: float) -> Change | None:
        while self._steps and not self._steps[-1].undoable:
            self._steps.pop()
        change = None
        assert self._calm_since_s is not None
        if self._steps and now_s - max(self._calm_since_s, self._changed_s) >= self._cooldown_s:
            step = self._steps.pop()
            self._board.release(self, step)
            change = self._note(step, burn, now_s, undone=True)
        if not self._steps:
            self.state = State.OK
        return change

    def _note(self, step: Step, burn: Burn, now_s: float, *, undone: bool) -> Change:
        self._changed_s = now_s
        self.meter.mark()
        change = Change(now_s, step, undone, burn.figure)
        self.changes.append(change)
        return change
