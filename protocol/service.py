"""Parameters and results of the methods that are not text generation."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mlxsup.protocol.generation import ClientName, DeadlineMs, Priority, TokenId, Usage
from mlxsup.protocol.self_test import SelfTestResult

ModelName = Annotated[str, Meta(min_length=1, max_length=256)]

EMBED_INPUTS_MAX = 2048

TOPICS = ("worker", "death", "model", "slo")


class _Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    pass


class NoParams(_Params, frozen=True):
    pass


class NoResult(_Result, frozen=True):
    pass


class Limits(_Result, frozen=True):
    """The bounds that a client can run into."""

    frame_bytes_max: int
    batch_calls_max: int
    in_flight_requests_max: int
    queue_requests_max: int
    max_tokens_default: int
    embed_inputs_max: int


class ServerInfo(_Result, frozen=True):
    name: str
    version: str
    protocol_version: int
    platform: str
    device: str | None
    mlx_version: str | None
    mlx_lm_version: str | None
    limits: Limits


class ModelHealth(_Result, frozen=True):
    """`ready`: a request would be answered now, or once the worker has loaded; `reason` says why not. `switched_off` are
    features of the engine that gave other texts in the last `self_test`, None: there was none yet.
    """

    state: str
    reason: str | None
    ready: bool
    switched_off: list[str] = []
    self_test: SelfTestResult | None = None


class Health(_Result, frozen=True):
    """`ready`: at least one model is, and the supervisor is not shutting down."""

    live: bool
    ready: bool
    models: dict[str, ModelHealth]


class Quantiles(_Result, frozen=True):
    count: int
    p50: float
    p90: float
    p99: float
    max: float


class Recent(_Result, frozen=True):
    """Of what came within the last `window_s`: first tokens, and the mean time between tokens over a stretch of them."""

    window_s: float
    ttft_ms: Quantiles
    inter_token_ms: Quantiles


class Counters(_Result, frozen=True):
    """Requests by how they ended, and tokens, since the supervisor started.

    `requests_resumed`: of those that have ended, the ones that went on in another worker when theirs had died. `refused`:
    by the error, those that were never accepted. Tokens of answers count as they come, those of prompts once their request
    has ended.
    """

    requests_total: int
    requests_active: int
    requests_queued: int
    requests_resumed: int
    ended: dict[str, int]
    prompt_tokens_total: int
    completion_tokens_total: int
    ttft_ms: Quantiles
    queue_ms: Quantiles
    inter_token_ms: Quantiles
    refused: dict[str, int] = {}
    recent: Recent | None = None


class SupervisorStats(_Result, frozen=True):
    uptime_s: float
    resident_bytes: int
    connections: int


class WorkerCounters(_Result, frozen=True):
    """Deaths by class, and how many workers were started in place of one that had died, since the supervisor started."""

    deaths: dict[str, int]
    restarts: int


class SloChange(_Result, frozen=True):
    """Something done about an objective, or undone: its figure before, and over the time since, once that is known."""

    ago_s: float
    action: str
    undone: bool
    before: float | None
    after: float | None


class SloStats(_Result, frozen=True):
    """One objective of a model and tier. `figure` and `samples` are of the short window; `limit` and all figures have the
    unit of the objective's key in the configuration. `state`: ok, acting or recovering. The newest change comes last.
    """

    objective: str
    limit: float
    figure: float | None
    samples: int
    burn_short: float
    burn_long: float
    state: str
    in_force: list[str]
    changes: list[SloChange]


class Activity(_Result, frozen=True):
    """What a model does now: requests that are computed and that wait, by tier. So many as `queued_again` of those that wait
    were computed before, and gave way or lost their worker. `reserved_bytes` of the memory are kept for its workers;
    `residency` says how it stands with that: out, waiting, loading, resident, restarting or leaving. So many as
    `quarantined_requests` are refused, since workers died of them.
    """

    running: dict[str, int]
    queued: dict[str, int]
    queued_again: int
    reserved_bytes: int
    residency: str
    quarantined_requests: int


class MemoryStats(_Result, frozen=True):
    """What models may have of the memory, and what of it is kept for them. `free_bytes`, which nobody has a claim to, is
    less than the difference where others use the machine, and below zero when somebody holds more than was thought.
    """

    capacity_bytes: int
    reserved_bytes: int
    free_bytes: int


class KeyedStats(_Result, frozen=True):
    """Requests with an idempotency key: `running` of them wait or are computed, each counted once among all requests, for
    `attached` clients together; with so many as `abandoned` nobody waits for the answer. `duplicates_total` came for what
    was there already, running or kept.
    """

    running: int
    abandoned: int
    attached: int
    duplicates_total: int
    results_kept: int
    results_kept_bytes: int


class Stats(_Result, frozen=True):
    """`workers`, `activity`: of each model. `slo`: of each model and tier that has objectives."""

    supervisor: SupervisorStats
    overall: Counters
    models: dict[str, Counters]
    priorities: dict[str, Counters]
    workers: dict[str, WorkerCounters]
    slo: dict[str, dict[str, list[SloStats]]] = {}
    activity: dict[str, Activity] = {}
    memory: MemoryStats | None = None
    keyed: KeyedStats | None = None


class SubscribeParams(_Params, frozen=True):
    topics: Annotated[list[str], Meta(min_length=1, max_length=16)]


class SubscribeResult(_Result, frozen=True):
    topics: list[str]


class ShutdownParams(_Params, frozen=True):
    drain_ms: Annotated[int, Meta(ge=0, le=24 * 3600 * 1000)] | None = None


class ModelEntry(_Result, frozen=True):
    """`switched_off` and `self_test` are as in the `ModelHealth`."""

    name: str
    state: str
    reason: str | None
    pid: int | None
    generation: int
    memory_bytes: int | None
    pinned: bool
    pulled: bool
    breaker: str
    switched_off: list[str] = []
    self_test: SelfTestResult | None = None


class ModelList(_Result, frozen=True):
    models: list[ModelEntry]


class LoadOptions(_Params, frozen=True):
    """What a load may ask for beyond the model's configuration."""

    context_tokens_max: Annotated[int, Meta(ge=16)] | None = None


class LoadParams(_Params, frozen=True):
    """`forgive`: what is held against the model, such as its quarantine, is forgotten, since a person asks."""

    model: ModelName
    pin: bool | None = None
    options: LoadOptions | None = None
    forgive: bool = True


class UnloadParams(_Params, frozen=True):
    model: ModelName
    force: bool = False


class RecycleParams(_Params, frozen=True):
    model: ModelName


class SelfTestParams(_Params, frozen=True):
    model: ModelName


class BreakerParams(_Params, frozen=True):
    """`reset` closes it, `force_open` refuses everything, `disable` lets everything through."""

    model: ModelName
    action: Literal["reset", "force_open", "disable"]


class ForgiveParams(_Params, frozen=True):
    """Of one model, or of all."""

    model: ModelName | None = None


class ForgiveResult(_Result, frozen=True):
    """How many requests may try again."""

    requests: int


class PullParams(_Params, frozen=True):
    model: ModelName


class PullResult(_Result, frozen=True):
    path: str
    digest: str


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """`$/progress` of a load or a pull; `token` is the id of the request that it belongs to."""

    token: int | str | None
    value: dict[str, Any]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """`event`: something that happened, under a topic that the client has subscribed to."""

    topic: str
    model: str
    what: str
    detail: dict[str, Any]


class EmbedParams(_Params, frozen=True):
    """With `normalize` each embedding has the length 1. No text is ever truncated: one that is too long is refused."""

    model: ModelName
    input: str | Annotated[list[str], Meta(min_length=1, max_length=EMBED_INPUTS_MAX)]
    normalize: bool = True
    priority: Priority | None = None
    deadline_ms: DeadlineMs | None = None
    client: ClientName | None = None

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class EmbedResult(_Result, frozen=True):
    """One embedding for each text, in their order."""

    embeddings: list[list[float]]
    usage: Usage


class TokenizeParams(_Params, frozen=True):
    model: ModelName
    text: str


class TokenizeResult(_Result, frozen=True):
    tokens: list[int]


class DetokenizeParams(_Params, frozen=True):
    model: ModelName
    tokens: list[TokenId]


class DetokenizeResult(_Result, frozen=True):
    text: str


class CancelParams(_Params, frozen=True):
    id: int | str
