"""The supervisor's eye on one worker: its memory curve, and whether it gets anywhere."""

from collections.abc import Callable

import trio

from mlxsup.supervisor.pool.process import Observation
from mlxsup.supervisor.recovery.memory_truth import MemorySample
from mlxsup.supervisor.recovery.watchdog import Stall, Watchdog, WatchdogLimits

# Of the memory curve; at one a heartbeat, the last minutes.
_SAMPLES_MAX = 300


class Watch:
    """`watchdog` is told what the worker says and is given; `observe` takes a pid."""

    def __init__(
        self,
        limits: WatchdogLimits,
        observe: Callable[[int], Observation],
        prefill_tokens_per_s: float | None,
    ) -> None:
        self._heartbeat_interval_s = limits.heartbeat_interval_s
        self._observe = observe
        self.watchdog = Watchdog(limits, trio.current_time(), prefill_tokens_per_s)
        self.samples: list[MemorySample] = []
        self.stall: Stall | None = None

    async def run(self, pid: int, on_sample: Callable[[], None]) -> Stall:
        """From its load on, until it gets nowhere: look once a heartbeat, and when its budget is spent."""
        sample_s = trio.current_time()
        self.watchdog.note_frame(sample_s)
        while self.stall is None:
            await trio.sleep_until(min(sample_s, self.watchdog.deadline_s))
            now_s = trio.current_time()
            seen = self._observe(pid)
            # Without any memory it has just ended, and a sample would say that it held nothing.
            if now_s >= sample_s and seen.resident_bytes:
                self.samples.append(MemorySample(now_s, seen.resident_bytes, seen.available_bytes))
                del self.samples[:-_SAMPLES_MAX]
                on_sample()
            if now_s >= sample_s:
                sample_s = now_s + self._heartbeat_interval_s
            self.watchdog.note_look(now_s)
            self.stall = self.watchdog.check(now_s, process_stopped=seen.stopped)
        return self.stall
