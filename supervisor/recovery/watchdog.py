"""Finds a worker that is alive and gets nowhere. Pure.

A heartbeat attests what the MLX thread last finished; it comes from another thread, so it keeps coming while the MLX
thread hangs, and stops when the whole process does: stopped, frozen, or with the interpreter lock held by native
code. Each phase has its own budget: a load must read bytes, a step must end in time for the prompt tokens that it
computes at a tenth of the measured rate, and what was sent must be taken up. An idle worker owes nothing. And nobody
is blamed for the time in which the supervisor itself was away, frozen with its machine or starved.
"""

import math

import msgspec

from mlxsup.protocol.worker_link import Heartbeat

# Of a process that is stopped. Whoever looks once a heartbeat finds it within three: the last look at two may have come
# a moment too early.
_BEATS_MISSED_MAX = 2
# Between two looks; beyond that the supervisor was away.
_LOOKS_MISSED_MAX = 3
_RATE_SHARE = 0.1
_RATE_WEIGHT = 0.2


class WatchdogLimits(msgspec.Struct, frozen=True, kw_only=True):
    heartbeat_interval_s: float
    silence_s: float
    load_stall_s: float
    step_s: float
    pickup_s: float
    preparation_s: float
    prefill_tokens_per_s_min: float


class Stall(msgspec.Struct, frozen=True):
    """Why a worker is given up, and the budget that it overran."""

    reason: str
    budget_s: float
    stopped: bool = False


class Watchdog:
    """For one worker, from its load on. `check` at `deadline_s`, and once every `heartbeat_interval_s`."""

    def __init__(
        self, limits: WatchdogLimits, now_s: float, prefill_tokens_per_s: float | None = None
    ) -> None:
        """`prefill_tokens_per_s`: as measured with an earlier worker of the model, if there was one."""
        self._limits = limits
        self._heard_s = now_s
        self._beat: Heartbeat | None = None
        # When its MLX thread last finished something.
        self._moved_s = now_s
        self.prefill_tokens_per_s = prefill_tokens_per_s
        self._looked_s = now_s
        # What has not happened before this moment is not held against it.
        self._excused_s = now_s
        self._owed = 0
        # When it was last heard to prepare a request.
        self._preparing_s = -math.inf
        # Since when what it owes may wait to be taken up.
        self._sent_s = now_s

    def note_heartbeat(self, beat: Heartbeat, now_s: float) -> None:
        measured = beat.prefill_tokens_per_s
        if measured > 0 and (self._beat is None or measured != self._beat.prefill_tokens_per_s):
            # Else it is the last one, said again.
            old = self.prefill_tokens_per_s
            self.prefill_tokens_per_s = measured if old is None else old + _RATE_WEIGHT * (measured - old)
        if beat.preparing_s > 0:
            self._preparing_s = now_s
        self._beat = beat
        self._heard_s = now_s
        self._moved_s = now_s - beat.still_s

    def note_frame(self, now_s: float) -> None:
        """Anything else it said: it lives, and works."""
        self._heard_s = self._moved_s = self._sent_s = now_s

    def note_sent(self, now_s: float) -> None:
        """It was given work, for which it owes an answer."""
        if not self._owed:
            self._sent_s = now_s
        self._owed += 1

    def note_answer(self, now_s: float) -> None:
        self._owed -= 1
        self.note_frame(now_s)

    def note_look(self, now_s: float) -> None:
        """The supervisor looks again; after a long while it was away itself, and has not read what came meanwhile."""
        if now_s - self._looked_s > _LOOKS_MISSED_MAX * self._limits.heartbeat_interval_s:
            self._excused_s = now_s
        self._looked_s = now_s

    def check(self, now_s: float, *, process_stopped: bool) -> Stall | None:
        """`process_stopped`: the kernel says that it is stopped by a signal."""
        limits = self._limits
        silent_s = now_s - self._counted(self._heard_s)
        stopped_s = _BEATS_MISSED_MAX * limits.heartbeat_interval_s
        if process_stopped and silent_s >= stopped_s:
            return Stall("its process is stopped", stopped_s, stopped=True)
        # By the very sums of `deadline_s`: a difference may round to a moment later, and nobody looks again before.
        if now_s >= self._silent_from_s:
            return Stall(f"nothing was heard of it for {silent_s:.1f} s", limits.silence_s)
        if now_s >= self._stuck_from_s:
            still_s = now_s - self._counted(self._moved_s)
            return Stall(f"its MLX thread has finished nothing for {still_s:.1f} s", self._budget_s())
        if now_s >= self._idle_from_s:
            return Stall("it does not take up what it was sent", self._pickup_s())
        return None

    @property
    def deadline_s(self) -> float:
        """When `check` finds something if nothing changes until then; a stop of the process apart."""
        return min(self._silent_from_s, self._stuck_from_s, self._idle_from_s)

    @property
    def _silent_from_s(self) -> float:
        return self._counted(self._heard_s) + self._limits.silence_s

    @property
    def _stuck_from_s(self) -> float:
        return self._counted(self._moved_s) + self._budget_s()

    @property
    def _idle_from_s(self) -> float:
        return self._counted(self._waiting_since_s()) + self._pickup_s()

    def _counted(self, moment_s: float) -> float:
        return max(moment_s, self._excused_s)

    def _waiting_since_s(self) -> float:
        """What it was sent waits for its turn while another request is being prepared, each for its own time."""
        beat = self._beat
        if beat is not None and beat.preparing_s > 0:
            return self._preparing_s - beat.preparing_s
        return max(self._sent_s, self._preparing_s)

    def _pickup_s(self) -> float:
        beat = self._beat
        if beat is None or beat.phase != "idle" or not self._owed:
            return math.inf
        return self._limits.preparation_s if beat.preparing_s > 0 else self._limits.pickup_s

    def _budget_s(self) -> float:
        """Of what its MLX thread does, as the last heartbeat said."""
        limits, beat = self._limits, self._beat
        if beat is None or beat.phase == "idle":
            return math.inf
        if beat.phase != "batch":
            return limits.load_stall_s
        measured = self.prefill_tokens_per_s or 0.0
        rate = max(limits.prefill_tokens_per_s_min, measured * _RATE_SHARE)
        return limits.step_s + beat.prefill_tokens / rate
