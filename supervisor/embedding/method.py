"""What the method `embed` does, whatever the transport."""

import trio

from mlxsup.config.schema import Config
from mlxsup.protocol import service
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.embedding.request import Embedded
from mlxsup.supervisor.model_methods import Caller
from mlxsup.supervisor.text_requests import TextRequests


class EmbedMethod:
    def __init__(self, config: Config, texts: TextRequests) -> None:
        self._inputs_max = config.server.embed_inputs_max
        self._texts = texts

    async def __call__(self, params: service.EmbedParams, caller: Caller) -> Embedded:
        """Cancelled, or its client gone, the request ends too."""
        texts = params.texts
        if len(texts) > self._inputs_max:
            raise RpcError(
                ErrorKind.LIMIT_EXCEEDED,
                f"`$.input` has {len(texts)} texts, and {self._inputs_max} are allowed; send less at once",
                path="$.input",
            )
        ended = trio.Event()
        outcome: list[Embedded | RpcError] = []

        def settle(end: Embedded | RpcError) -> None:
            outcome.append(end)
            ended.set()

        accepted = self._texts.embed(params, caller.client, settle)
        try:
            await ended.wait()
        finally:
            accepted.cancel()
        if isinstance(outcome[0], RpcError):
            raise outcome[0]
        return outcome[0]
