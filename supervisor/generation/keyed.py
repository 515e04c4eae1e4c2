"""Requests with an idempotency key, in time: `attachments` decides, and here is the clock."""

from collections.abc import Callable

import msgspec
import trio

from mlxsup.config.schema import Server
from mlxsup.protocol.service import KeyedStats
from mlxsup.supervisor.generation.attachments import Attachment, Attachments, Key, Limits
from mlxsup.supervisor.generation.request import GenerationRequest, Sink


class Attached(msgspec.Struct, frozen=True):
    """One client's part in a request, for whoever speaks with that client."""

    attachment: Attachment
    attachments: Attachments

    @property
    def ended(self) -> bool:
        return self.attachment.ended

    def cancel(self) -> None:
        self.attachments.cancel(self.attachment, trio.current_time())

    def leave(self) -> None:
        self.attachments.leave(self.attachment, trio.current_time())


class KeyedRequests:
    """`run` it; until then nothing is due."""

    def __init__(self, server: Server, cancel: Callable[[GenerationRequest], None]) -> None:
        self._cancel = cancel
        self._changed = trio.Event()
        self._attachments = Attachments(
            Limits(
                reattach_s=server.reattach_s,
                attached_max=server.attached_max,
                results_kept_max=server.results_kept_max,
                results_kept_bytes_max=server.results_kept_bytes_max,
                result_kept_s=server.result_kept_s,
            ),
            self,
        )

    async def run(self, closing: trio.Event) -> None:
        """Until cancelled. Once `closing` is set, no request goes on that nobody is attached to."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close, closing)
            while True:
                self._changed = trio.Event()
                with trio.move_on_at(self._attachments.next_look_s):
                    await self._changed.wait()
                self._attachments.tick(trio.current_time())

    async def _close(self, closing: trio.Event) -> None:
        await closing.wait()
        self._attachments.close()

    def generate(
        self,
        key: Key,
        digest: str,
        attachment: Attachment,
        make: Callable[[Sink], GenerationRequest],
        submit: Callable[[GenerationRequest], None],
    ) -> Attached:
        """Attach it to what there is under this key; else to what `make` gives, which `submit` then accepts.

        Raises:
            RpcError: it is refused.
        """
        attached = Attached(attachment, self._attachments)
        if self._attachments.join(key, digest, attachment, trio.current_time()):
            return attached
        request = self._attachments.begin(key, digest, attachment, make)
        try:
            submit(request)
        except BaseException:
            self._attachments.withdraw(attachment)
            raise
        # It has told whether there is any use in beginning; others who attach may have more time.
        request.deadline_s = None
        return attached

    def stats(self) -> KeyedStats:
        return self._attachments.stats()

    # As the effects of `Attachments`:

    def cancel(self, request: GenerationRequest) -> None:
        self._cancel(request)

    def look_again(self) -> None:
        self._changed.set()
