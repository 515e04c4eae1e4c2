"""The table of methods: name, parameters, result. Endpoints, clients and the OpenRPC document read it."""

from typing import Any

import msgspec

from mlxsup.protocol import generation, service
from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.self_test import SelfTestResult

PROTOCOL_VERSION = 1

CANCEL = "$/cancelRequest"
PROGRESS = "$/progress"
DELTA = "stream/delta"
EVENT = "event"


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """One method; `errors` are those beyond the standard's own."""

    name: str
    params: type[Any]
    result: type[Any]
    summary: str
    errors: tuple[ErrorKind, ...] = ()


_MODEL = (ErrorKind.MODEL_NOT_FOUND,)
_WORKER = (*_MODEL, ErrorKind.MODEL_LOAD_FAILED, ErrorKind.WORKER_DIED, ErrorKind.SHUTTING_DOWN)
_GENERATION = (
    *_WORKER,
    ErrorKind.OVERLOADED,
    ErrorKind.DEADLINE_EXCEEDED,
    ErrorKind.LIMIT_EXCEEDED,
    ErrorKind.UNSUPPORTED,
)

_TABLE = (
    Method(
        name="server/info",
        params=service.NoParams,
        result=service.ServerInfo,
        summary="Names, versions, the device and the limits that a client can run into.",
    ),
    Method(
        name="server/health",
        params=service.NoParams,
        result=service.Health,
        summary="Whether requests are answered, and the state of each model with its reason.",
    ),
    Method(
        name="server/stats",
        params=service.NoParams,
        result=service.Stats,
        summary="Counters, gauges and latency quantiles: overall, by model, by priority.",
    ),
    Method(
        name="server/subscribe",
        params=service.SubscribeParams,
        result=service.SubscribeResult,
        summary="From now on this connection receives `event` notifications of these topics.",
    ),
    Method(
        name="server/shutdown",
        params=service.ShutdownParams,
        result=service.NoResult,
        summary="Let running requests end within drain_ms, then end the process with status 0.",
    ),
    Method(
        name="rpc.discover",
        params=service.NoParams,
        result=dict[str, Any],
        summary="This document.",
    ),
    Method(
        name="model/list",
        params=service.NoParams,
        result=service.ModelList,
        summary="Every configured, pulled or loaded model.",
    ),
    Method(
        name="model/load",
        params=service.LoadParams,
        result=service.ModelEntry,
        summary="Load a model; answered once it is ready, with `$/progress` meanwhile.",
        errors=(*_WORKER, ErrorKind.LIMIT_EXCEEDED),
    ),
    Method(
        name="model/unload",
        params=service.UnloadParams,
        result=service.NoResult,
        summary="End a model's worker once its requests have ended; with force, at once.",
        errors=_MODEL,
    ),
    Method(
        name="model/recycle",
        params=service.RecycleParams,
        result=service.ModelEntry,
        summary="Replace a model's worker and lose nothing; answered once the new one serves, with `$/progress` meanwhile.",
        errors=_WORKER,
    ),
    Method(
        name="model/selftest",
        params=service.SelfTestParams,
        result=SelfTestResult,
        summary="Load a model if need be, and compare its texts with each feature of the engine and without any; what differs is "
        "switched off.",
        errors=(*_WORKER, ErrorKind.OVERLOADED, ErrorKind.LIMIT_EXCEEDED, ErrorKind.UNSUPPORTED),
    ),
    Method(
        name="model/breaker",
        params=service.BreakerParams,
        result=service.ModelEntry,
        summary="Set a model's circuit breaker by hand.",
        errors=_MODEL,
    ),
    Method(
        name="model/forgive",
        params=service.ForgiveParams,
        result=service.ForgiveResult,
        summary="Let quarantined requests try again.",
    ),
    Method(
        name="model/pull",
        params=service.PullParams,
        result=service.PullResult,
        summary="Fetch, verify and store a model, with `$/progress` meanwhile.",
        errors=(*_MODEL, ErrorKind.MODEL_LOAD_FAILED, ErrorKind.SHUTTING_DOWN),
    ),
    Method(
        name="chat",
        params=generation.ChatParams,
        result=generation.GenerationResult,
        summary="Continue a conversation; with stream, `stream/delta` notifications come first.",
        errors=_GENERATION,
    ),
    Method(
        name="generate",
        params=generation.GenerateParams,
        result=generation.GenerationResult,
        summary="Continue a text or a list of tokens.",
        errors=_GENERATION,
    ),
    Method(
        name="embed",
        params=service.EmbedParams,
        result=service.EmbedResult,
        summary="A vector for each text.",
        errors=_GENERATION,
    ),
    Method(
        name="tokenize",
        params=service.TokenizeParams,
        result=service.TokenizeResult,
        summary="The tokens of a text, without special ones added.",
        errors=(*_WORKER, ErrorKind.LIMIT_EXCEEDED),
    ),
    Method(
        name="detokenize",
        params=service.DetokenizeParams,
        result=service.DetokenizeResult,
        summary="The text of tokens.",
        errors=_WORKER,
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _TABLE}
NOTIFICATIONS_FROM_CLIENT: dict[str, type[Any]] = {CANCEL: service.CancelParams}
NOTIFICATIONS_FROM_SERVER: dict[str, type[Any]] = {
    DELTA: generation.StreamDelta,
    PROGRESS: service.Progress,
    EVENT: service.Event,
}
