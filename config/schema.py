"""The typed configuration: every bound and default of mlxsup, with its unit in its name.

`default.toml` beside this file documents each key; a test holds the two together.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mlxsup.protocol.generation import Priority
from mlxsup.protocol.service import EMBED_INPUTS_MAX

DEFAULT_MODEL = "smollm2-135m"

KIB = 1024
MIB = 1024 * KIB

Seconds = Annotated[float, Meta(ge=0.0, le=86_400.0)]
PositiveSeconds = Annotated[float, Meta(gt=0.0, le=86_400.0)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Server(_Section, frozen=True):
    socket: Annotated[str, Meta(min_length=1)] | None = None
    frame_bytes_max: Annotated[int, Meta(ge=4 * KIB, le=16 * MIB)] = 8 * MIB
    batch_calls_max: Annotated[int, Meta(ge=1, le=10_000)] = 100
    connections_max: Annotated[int, Meta(ge=1, le=10_000)] = 256
    in_flight_requests_max: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    params_bytes_max: Annotated[int, Meta(ge=64 * KIB)] = 256 * MIB
    pulls_max: Annotated[int, Meta(ge=1, le=64)] = 2
    outbox_bytes_max: Annotated[int, Meta(ge=64 * KIB)] = 64 * MIB
    reattach_s: Seconds = 60.0
    attached_max: Annotated[int, Meta(ge=1, le=10_000)] = 64
    results_kept_max: Annotated[int, Meta(ge=0, le=1_000_000)] = 256
    results_kept_bytes_max: Annotated[int, Meta(ge=0)] = 16 * MIB
    result_kept_s: Seconds = 300.0
    embed_inputs_max: Annotated[int, Meta(ge=1, le=EMBED_INPUTS_MAX)] = 256
    drain_s: Seconds = 30.0
    log_lines_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    log_flush_s: Seconds = 2.0


class Generation(_Section, frozen=True):
    """What a request takes where it says nothing; the bounds are those of the parameters themselves."""

    max_tokens: Annotated[int, Meta(ge=1)] = 1024
    temperature: Annotated[float, Meta(ge=0.0, le=5.0)] = 0.7
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Meta(ge=0)] = 0
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10.0)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0


class Worker(_Section, frozen=True):
    command: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    hello_timeout_s: PositiveSeconds = 60.0
    load_timeout_s: PositiveSeconds = 600.0
    heartbeat_interval_s: Annotated[float, Meta(ge=0.05, le=60.0)] = 1.0
    blas_threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    wired_limit_bytes: Annotated[int, Meta(ge=0)] = 0
    cache_limit_bytes: Annotated[int, Meta(ge=0)] | None = None
    parked_bytes_max: Annotated[int, Meta(ge=0)] = 1024 * MIB
    prefill_lease: Literal["auto", "on", "off"] = "auto"
    grammar_compile_s: Annotated[float, Meta(ge=0.01, le=600.0)] = 5.0
    exit_grace_s: Seconds = 5.0
    term_grace_s: Seconds = 15.0
    kill_grace_s: PositiveSeconds = 5.0
    spares: Annotated[int, Meta(ge=0, le=16)] = 1
    stderr_lines_max: Annotated[int, Meta(ge=1, le=100_000)] = 200
    stderr_line_bytes_max: Annotated[int, Meta(ge=80, le=1 * MIB)] = 4 * KIB
    last_words_s: PositiveSeconds = 10.0


class Recovery(_Section, frozen=True):
    """What follows when a worker dies, hangs or leaks."""

    restart_backoff_base_s: PositiveSeconds = 1.0
    restart_backoff_max_s: PositiveSeconds = 60.0
    restart_healthy_s: PositiveSeconds = 600.0
    restarts_max: Annotated[int, Meta(ge=0, le=1_000_000)] = 5
    restart_window_s: PositiveSeconds = 300.0
    failed_hold_s: Seconds = 5.0
    failed_hold_max_s: Seconds = 300.0
    silence_s: PositiveSeconds = 10.0
    load_stall_s: PositiveSeconds = 300.0
    step_s: PositiveSeconds = 60.0
    pickup_s: PositiveSeconds = 30.0
    preparation_s: PositiveSeconds = 120.0
    prefill_tokens_per_s_min: Annotated[float, Meta(gt=0.0)] = 5.0
    breaker_deaths: Annotated[int, Meta(ge=1, le=1_000_000)] = 3
    breaker_open_s: PositiveSeconds = 10.0
    breaker_open_max_s: PositiveSeconds = 300.0
    machine_deaths: Annotated[int, Meta(ge=1, le=1_000_000)] = 3
    machine_window_s: PositiveSeconds = 600.0
    panics_max: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    panic_window_s: PositiveSeconds = 86400.0
    panic_hold_s: PositiveSeconds = 3600.0
    fruitless_resumes_max: Annotated[int, Meta(ge=0, le=1_000_000)] = 3
    suspect_tokens: Annotated[int, Meta(ge=1, le=10_000)] = 8
    suspect_memory_s: PositiveSeconds = 3600.0
    quarantine_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    reports_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    reports_flush_s: Seconds = 5.0
    stranded_share: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.5
    memory_wait_s: Seconds = 10.0
    headroom_bytes: Annotated[int, Meta(ge=0)] = 256 * MIB
    leak_bytes_per_hour_max: Annotated[int, Meta(ge=1)] | None = None
    leak_window_s: PositiveSeconds = 3600.0
    leak_recycle_interval_s: PositiveSeconds = 21600.0
    recycle_requests: Annotated[int, Meta(ge=1)] | None = None
    recycle_tokens: Annotated[int, Meta(ge=1)] | None = None


class Scheduling(_Section, frozen=True):
    """Which of a model's requests goes next, who gives way and who is refused."""

    age_step_s: PositiveSeconds = 30.0
    quantum_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    shortest_first: bool = False
    preempt: bool = True
    preemptions_soft_max: Annotated[int, Meta(ge=0, le=1000)] = 8
    preempt_tokens_min: Annotated[int, Meta(ge=1, le=10_000)] = 8
    sojourn_target_s: PositiveSeconds = 30.0
    sojourn_interval_s: PositiveSeconds = 60.0


class Memory(_Section, frozen=True):
    """How the models share the machine's memory."""

    budget_bytes: Annotated[int, Meta(ge=64 * MIB)] | None = None
    residency_min_s: Seconds = 30.0
    swap_wait_s: Seconds = 120.0
    read_ahead: bool = True


class Qos(_Section, frozen=True):
    """When an objective of `[models.NAME.slo.TIER]` counts as broken, and as kept again."""

    interval_s: Annotated[float, Meta(ge=0.05, le=3600.0)] = 5.0
    short_window_s: PositiveSeconds = 60.0
    long_window_s: PositiveSeconds = 600.0
    burn_rate_max: Annotated[float, Meta(ge=1.0, le=1000.0)] = 6.0
    recover_share: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.5
    cooldown_s: PositiveSeconds = 30.0
    samples_min: Annotated[int, Meta(ge=1, le=100_000)] = 10


SloAction = Literal["event", "shed", "batch", "chunk", "recycle"]


class Slo(_Section, frozen=True):
    """`[models.NAME.slo.TIER]`: what that tier's requests are to get of that model, and what is done when they don't."""

    ttft_s: PositiveSeconds | None = None
    inter_token_s: PositiveSeconds | None = None
    error_share_max: Annotated[float, Meta(gt=0.0, lt=1.0)] | None = None
    tokens_per_s_min: Annotated[float, Meta(ge=0.001)] | None = None
    target_share: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.95
    actions: Annotated[tuple[SloAction, ...], Meta(max_length=16)] = ("event",)


AdapterName = Annotated[str, Meta(min_length=1, max_length=128)]


class Model(_Section, frozen=True):
    """`[models.NAME]`; with no `source` the name itself is the source."""

    source: Annotated[str, Meta(min_length=1)] | None = None
    preload: bool = False
    pin: bool = False
    idle_ttl_s: PositiveSeconds | None = None
    context_tokens_max: Annotated[int, Meta(ge=16)] | None = None
    batch_sequences_max: Annotated[int, Meta(ge=1, le=1024)] = 16
    queue_requests_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 512
    queue_tier_requests_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 384
    queue_client_requests_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    kv_bytes_max: Annotated[int, Meta(ge=64 * KIB)] | None = None
    prefill_chunk_tokens: Annotated[int, Meta(ge=16, le=65_536)] = 2048
    prefill_target_s: Annotated[float, Meta(ge=0.01, le=3600.0)] = 0.5
    prefix_bytes_max: Annotated[int, Meta(ge=0)] | None = None
    prefix_disk_bytes_max: Annotated[int, Meta(ge=0)] = 2048 * MIB
    prefix_disk_tokens_min: Annotated[int, Meta(ge=16, le=1_000_000)] = 256
    float32: bool | None = None
    kv_bits: Literal[4, 8] | None = None
    lookup: bool = True
    draft: Annotated[str, Meta(min_length=1)] | None = None
    images_max: Annotated[int, Meta(ge=0, le=256)] = 8
    image_bytes_max: Annotated[int, Meta(ge=1 * KIB, le=16 * MIB)] = 6 * MIB
    image_pixels_max: Annotated[int, Meta(ge=1024, le=1 << 28)] = 1 << 24
    adapters: dict[AdapterName, Annotated[str, Meta(min_length=1)]] = msgspec.field(default_factory=dict)
    adapters_bytes_max: Annotated[int, Meta(ge=0)] = 1024 * MIB
    self_test: bool = True
    slo: dict[Priority, Slo] = msgspec.field(default_factory=dict)


class Config(_Section, frozen=True):
    server: Server = msgspec.field(default_factory=Server)
    generation: Generation = msgspec.field(default_factory=Generation)
    worker: Worker = msgspec.field(default_factory=Worker)
    recovery: Recovery = msgspec.field(default_factory=Recovery)
    scheduling: Scheduling = msgspec.field(default_factory=Scheduling)
    memory: Memory = msgspec.field(default_factory=Memory)
    qos: Qos = msgspec.field(default_factory=Qos)
    models: dict[str, Model] = msgspec.field(default_factory=dict)


class Relation(msgspec.Struct, frozen=True):
    """The value of `key` is at least `times` that of `of`; both are paths, and not None. `why` if it is not plain."""

    key: str
    of: str
    times: int = 1
    why: str = ""


RELATIONS = (
    Relation("recovery.restart_backoff_max_s", "recovery.restart_backoff_base_s"),
    Relation("recovery.failed_hold_max_s", "recovery.failed_hold_s"),
    Relation("recovery.breaker_open_max_s", "recovery.breaker_open_s"),
    Relation(
        "recovery.silence_s",
        "worker.heartbeat_interval_s",
        times=3,
        why="workers that are well would be ended between two heartbeats",
    ),
    Relation(
        "qos.short_window_s", "qos.interval_s", times=4, why="a window has to be looked at while it lasts"
    ),
    Relation(
        "qos.long_window_s", "qos.short_window_s", times=2, why="two windows that are alike say the same"
    ),
)
