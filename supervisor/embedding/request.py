"""One accepted request for embeddings. It waits, runs and is counted as one for text does, but has no text.

Rule 1 of `generation.request` holds. Nothing is delivered before the end, so another worker begins it again.
"""

from collections.abc import Callable

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, GenerationResult, Priority, Usage
from mlxsup.protocol.worker_link import Embed, Generated
from mlxsup.supervisor.generation.extras import Extras
from mlxsup.supervisor.generation.request import GenerationRequest, Observer


class Embedded(msgspec.Struct, frozen=True, kw_only=True):
    """An `EmbedResult`, its embeddings as the worker wrote them: JSON arrays of numbers."""

    embeddings: list[msgspec.Raw]
    usage: Usage


Settle = Callable[[Embedded | RpcError], None]
"""Called once, with the request's end."""


class _Sink:
    """There is no text, and its end is told by the request itself; all that is left are its errors."""

    def __init__(self, settle: Settle) -> None:
        self.error = settle

    def delta(self, text: str, extras: Extras | None) -> None:  # noqa: ARG002
        raise AssertionError("an embedding has no text")

    def result(self, _: GenerationResult) -> None:
        raise AssertionError("an embedding has no text")


class EmbedRequest(GenerationRequest):
    def __init__(
        self,
        *,
        id: int,
        model: str,
        order: Embed,
        priority: Priority,
        client: str,
        settle: Settle,
        observer: Observer,
        now_s: float,
        deadline_s: float | None,
    ) -> None:
        super().__init__(
            id=id,
            model=model,
            order=order,
            priority=priority,
            client=client,
            stream=False,
            sink=_Sink(settle),
            observer=observer,
            now_s=now_s,
            deadline_s=deadline_s,
        )
        self._settle = settle

    def finish(self, answer: Generated, generation: int, now_s: float) -> None:  # noqa: ARG002
        self.prompt_tokens = answer.prompt_tokens
        if answer.finish_reason is FinishReason.CANCELLED:
            self.finish_cancelled(now_s)
            return
        self._end(answer.finish_reason.value)
        usage = Usage(prompt_tokens=answer.prompt_tokens, completion_tokens=0)
        self._settle(Embedded(embeddings=answer.embeddings, usage=usage))

    def finish_cancelled(self, now_s: float) -> None:  # noqa: ARG002
        self._end(FinishReason.CANCELLED.value)
        self._settle(RpcError(ErrorKind.CANCELLED, "cancelled"))
