"""Those who wait for a model to be ready: they all learn the same, once."""

from collections.abc import Callable

import trio

from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.worker_link import LoadProgress

OnProgress = Callable[[LoadProgress], None]


class Attempt:
    def __init__(self) -> None:
        self.waiters = 0
        self._done = trio.Event()
        self._error: RpcError | None = None
        self._listeners: list[OnProgress] = []

    def settle(self, error: RpcError | None) -> None:
        if not self._done.is_set():
            self._error = error
            self._done.set()

    def report(self, progress: LoadProgress) -> None:
        for listener in tuple(self._listeners):
            listener(progress)

    async def wait(self, on_progress: OnProgress | None) -> None:
        """Raises RpcError when it failed."""
        self.waiters += 1
        if on_progress is not None:
            self._listeners.append(on_progress)
        try:
            await self._done.wait()
        finally:
            self.waiters -= 1
            if on_progress is not None:
                self._listeners.remove(on_progress)
        if self._error is not None:
            raise self._error
