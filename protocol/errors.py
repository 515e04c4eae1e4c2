"""Error kinds, their codes, and the one exception that carries them to a client.

    RpcError            anything that a client is told, with a kind of the table below
    ├── ParseError           the bytes are not JSON                              -32700
    └── InvalidRequestError  JSON, but not a JSON-RPC 2.0 request                -32600

Whatever else is raised inside mlxsup is a defect and reaches a client as `internal`, without its text.
"""

from enum import StrEnum
from typing import Any

import msgspec


class ErrorKind(StrEnum):
    """Stable names of what can go wrong; clients match on these, not on messages."""

    PARSE_ERROR = "parse_error"
    INVALID_REQUEST = "invalid_request"
    METHOD_NOT_FOUND = "method_not_found"
    INVALID_PARAMS = "invalid_params"
    INTERNAL = "internal"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_LOAD_FAILED = "model_load_failed"
    WORKER_DIED = "worker_died"
    OVERLOADED = "overloaded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CIRCUIT_OPEN = "circuit_open"
    QUARANTINED = "quarantined"
    LIMIT_EXCEEDED = "limit_exceeded"
    UNSUPPORTED = "unsupported"
    SHUTTING_DOWN = "shutting_down"
    CANCELLED = "cancelled"

    @classmethod
    def _missing_(cls, _value: object) -> "ErrorKind":
        """A kind of a later version of the protocol: a client that doesn't know it still gets the error."""
        return cls.INTERNAL


ERROR_CODES: dict[ErrorKind, int] = {
    ErrorKind.PARSE_ERROR: -32700,
    ErrorKind.INVALID_REQUEST: -32600,
    ErrorKind.METHOD_NOT_FOUND: -32601,
    ErrorKind.INVALID_PARAMS: -32602,
    ErrorKind.INTERNAL: -32603,
    ErrorKind.MODEL_NOT_FOUND: -32001,
    ErrorKind.MODEL_LOAD_FAILED: -32002,
    ErrorKind.WORKER_DIED: -32003,
    ErrorKind.OVERLOADED: -32004,
    ErrorKind.DEADLINE_EXCEEDED: -32005,
    ErrorKind.CIRCUIT_OPEN: -32006,
    ErrorKind.QUARANTINED: -32007,
    ErrorKind.LIMIT_EXCEEDED: -32008,
    ErrorKind.UNSUPPORTED: -32009,
    ErrorKind.SHUTTING_DOWN: -32010,
    # The Language Server Protocol's RequestCancelled: its clients know what to make of it.
    ErrorKind.CANCELLED: -32800,
}

_QUOTED_CHARS_MAX = 200

# Whether the same request, sent again later, may succeed.
_RETRIABLE = frozenset(
    {ErrorKind.WORKER_DIED, ErrorKind.OVERLOADED, ErrorKind.CIRCUIT_OPEN, ErrorKind.SHUTTING_DOWN}
)


class Death(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a worker ended: the class, and the facts that it was derived from."""

    death_class: str = msgspec.field(name="class")
    phase: str
    exit_status: int | None = None
    signal: str | None = None


class ErrorData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`error.data` of every error response.

    `path` is the JSON path of a bad parameter; `detail` says more where the standard fixes the message.
    """

    kind: ErrorKind
    retriable: bool
    detail: str | None = None
    retry_after_ms: int | None = None
    path: str | None = None
    tokens_delivered: int | None = None
    death: Death | None = None


class ErrorObject(msgspec.Struct, frozen=True, kw_only=True):
    """The `error` member of a JSON-RPC response."""

    code: int
    message: str
    data: ErrorData


class RpcError(Exception):
    """An error that a client is told.

    `message` says what is wrong, where, and what to do; it never holds a path of the host, a
    traceback or another request's text.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        retriable: bool | None = None,
        detail: str | None = None,
        retry_after_ms: int | None = None,
        path: str | None = None,
        tokens_delivered: int | None = None,
        death: Death | None = None,
    ) -> None:
        # It may quote a name that is no text, as of a file; an error that can't be sent would be the end of its sender.
        message = message.encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.data = ErrorData(
            kind=kind,
            retriable=kind in _RETRIABLE if retriable is None else retriable,
            detail=detail,
            retry_after_ms=retry_after_ms,
            path=path,
            tokens_delivered=tokens_delivered,
            death=death,
        )

    @property
    def code(self) -> int:
        return ERROR_CODES[self.kind]

    def to_object(self) -> ErrorObject:
        return ErrorObject(code=self.code, message=self.message, data=self.data)

    @classmethod
    def from_object(cls, error: ErrorObject) -> "RpcError":
        """The exception that a client or the supervisor raises for an error that it received."""
        return cls(error.data.kind, error.message, **_data_fields(error.data))


def _data_fields(data: ErrorData) -> dict[str, Any]:
    return {name: getattr(data, name) for name in data.__struct_fields__ if name != "kind"}


def shorten(text: str) -> str:
    """`text` as an error quotes it: a client's own megabytes are not sent back to it."""
    return text if len(text) <= _QUOTED_CHARS_MAX else f"{text[:_QUOTED_CHARS_MAX]}…"


class ParseError(RpcError):
    def __init__(self, detail: str) -> None:
        super().__init__(ErrorKind.PARSE_ERROR, "Parse error", detail=detail)


class InvalidRequestError(RpcError):
    def __init__(self, detail: str) -> None:
        super().__init__(ErrorKind.INVALID_REQUEST, "Invalid Request", detail=detail)
