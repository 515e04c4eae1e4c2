"""What a client is told whose request is not computed, or not to its end. Pure."""

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.scheduling.forecast import Outlook
from mlxsup.supervisor.scheduling.waiting_room import Overfull

_FULL = {
    "model": "the queue of this model is full ({bound} requests wait)",
    "tier": "the queue of this model is full for this priority ({bound} requests wait)",
    "client": "this client has as many requests waiting for this model as it may have ({bound})",
}


def full(overfull: Overfull, retry_after_ms: int) -> RpcError:
    return _overloaded(_FULL[overfull.which].format(bound=overfull.bound), retry_after_ms)


def displaced(retry_after_ms: int) -> RpcError:
    return _overloaded(
        "the queue of this model is full, and a request came that is more urgent, or whose client has fewer waiting",
        retry_after_ms,
    )


def shed_for_wait(retry_after_ms: int) -> RpcError:
    return _overloaded("this model has had more to do than it can for too long", retry_after_ms)


def tier_is_shed(tier: Priority, away_s: float, retry_after_ms: int) -> RpcError:
    """`retry_after_ms` is what it would be if the tier were not shed, which it is for `away_s` at least."""
    return _overloaded(
        f"requests of priority `{tier.value}` are refused for now, for the sake of more urgent ones",
        max(retry_after_ms, round(away_s * 1000)),
    )


def would_be_late(outlook: Outlook, left_s: float, retry_after_ms: int) -> RpcError:
    return _overloaded(
        f"the answer would come too late: it would wait for about {outlook.wait_s:.1f} s and take {outlook.service_s:.1f} s, "
        f"and its deadline is in {left_s:.1f} s",
        retry_after_ms,
    )


def cache_too_large(needed_bytes: int, bytes_max: int) -> RpcError:
    return RpcError(
        ErrorKind.LIMIT_EXCEEDED,
        f"the request's KV cache can grow to {needed_bytes} bytes, and this model's `kv_bytes_max` is {bytes_max}; shorten "
        "the prompt, or ask for fewer `max_tokens`",
    )


def late() -> RpcError:
    return RpcError(
        ErrorKind.DEADLINE_EXCEEDED,
        "the deadline passed before the answer was complete; allow more time or fewer tokens",
    )


def hopeless() -> RpcError:
    return RpcError(
        ErrorKind.DEADLINE_EXCEEDED,
        "the deadline leaves no time for the first token any more; allow more time",
    )


def _overloaded(what: str, retry_after_ms: int) -> RpcError:
    return RpcError(ErrorKind.OVERLOADED, f"{what}; try again later", retry_after_ms=retry_after_ms)


# Of these a client wants to know how far it got.
_PARTLY_DELIVERED = frozenset(
    {
        ErrorKind.WORKER_DIED,
        ErrorKind.DEADLINE_EXCEEDED,
        ErrorKind.QUARANTINED,
        ErrorKind.CIRCUIT_OPEN,
        ErrorKind.MODEL_LOAD_FAILED,
    }
)


def with_progress(error: RpcError, request: GenerationRequest) -> RpcError:
    if error.kind not in _PARTLY_DELIVERED:
        return error
    return RpcError(
        error.kind,
        error.message,
        retriable=error.data.retriable,
        tokens_delivered=len(request.tokens),
        retry_after_ms=error.data.retry_after_ms,
        death=error.data.death,
    )
