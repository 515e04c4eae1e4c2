"""The configuration's recovery section, in the terms of those who obey it. Pure."""

from mlxsup.config.schema import Recovery
from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.supervisor.recovery.breaker import BreakerLimits
from mlxsup.supervisor.recovery.memory_truth import MemoryLimits
from mlxsup.supervisor.recovery.restart_policy import RestartLimits
from mlxsup.supervisor.recovery.watchdog import WatchdogLimits


def restart_limits(recovery: Recovery) -> RestartLimits:
    return RestartLimits(
        backoff_base_s=recovery.restart_backoff_base_s,
        backoff_max_s=recovery.restart_backoff_max_s,
        healthy_s=recovery.restart_healthy_s,
        restarts_max=recovery.restarts_max,
        window_s=recovery.restart_window_s,
    )


def breaker_limits(recovery: Recovery) -> BreakerLimits:
    """A model's."""
    return BreakerLimits(
        consecutive_max=recovery.breaker_deaths,
        sample_min=max(5, recovery.breaker_deaths),
        open_s=recovery.breaker_open_s,
        open_max_s=recovery.breaker_open_max_s,
    )


def machine_limits(recovery: Recovery) -> BreakerLimits:
    """Those of the breaker that all models share: what goes well between two faults of a machine does not mend it."""
    return BreakerLimits(
        window_s=recovery.machine_window_s,
        faults_max=recovery.machine_deaths,
        open_s=recovery.breaker_open_s,
        open_max_s=recovery.breaker_open_max_s,
    )


def memory_limits(recovery: Recovery) -> MemoryLimits:
    return MemoryLimits(stranded_share=recovery.stranded_share, headroom_bytes=recovery.headroom_bytes)


def watchdog_limits(config: WorkerConfig, recovery: Recovery) -> WatchdogLimits:
    return WatchdogLimits(
        heartbeat_interval_s=config.heartbeat_interval_s,
        silence_s=recovery.silence_s,
        load_stall_s=recovery.load_stall_s,
        step_s=recovery.step_s,
        pickup_s=recovery.pickup_s,
        preparation_s=recovery.preparation_s,
        prefill_tokens_per_s_min=recovery.prefill_tokens_per_s_min,
    )
