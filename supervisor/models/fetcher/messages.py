"""The lines that the fetcher writes. Pure.

Any number of Progress, then one Done or Failed, then the end of the stream.
"""

from enum import StrEnum

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError

LINE_BYTES_MAX = 64 * 1024


class Phase(StrEnum):
    """What a pull is doing. WAIT: another process pulls the same model."""

    WAIT = "wait"
    RESOLVE = "resolve"
    DOWNLOAD = "download"
    VERIFY = "verify"
    CONVERT = "convert"
    STORE = "store"


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress", tag_field="type"):
    """How far `phase` is; a phase that isn't counted in bytes has `bytes_total` None and `bytes_done` 0."""

    phase: Phase
    bytes_done: int = 0
    bytes_total: int | None = None


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done", tag_field="type"):
    """The model is in the store."""

    path: str
    digest: str


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed", tag_field="type"):
    """The model could not be pulled."""

    kind: ErrorKind
    message: str
    retriable: bool

    @classmethod
    def of(cls, error: RpcError) -> "Failed":
        return cls(kind=error.kind, message=error.message, retriable=error.data.retriable)

    def to_error(self) -> RpcError:
        return RpcError(self.kind, self.message, retriable=self.retriable)


Message = Progress | Done | Failed
