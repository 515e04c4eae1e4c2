"""This worker's turns at reading prompts, where several workers share one GPU: the supervisor grants them.

They are a courtesy: whoever is not answered in time goes on without one.
"""

import time
from collections.abc import Callable

from mlxsup.protocol import worker_link as link
from mlxsup.protocol.jsonrpc import encode_notification

# Longer than a turn of every other worker is likely to take, short of what a watchdog allows for a step.
WAIT_S_MAX = 15.0


class Lease:
    """For the MLX thread alone. `say` sends a frame to the supervisor."""

    def __init__(self, say: Callable[[bytes], None]) -> None:
        self._say = say
        self._tokens_min = 0
        self._asked_s: float | None = None
        self._held = False

    @property
    def is_waiting(self) -> bool:
        return self._asked_s is not None

    def bound(self, tokens_min: int) -> None:
        """Turns are for chunks of at least so many tokens; 0: for none."""
        self._tokens_min = tokens_min
        if not tokens_min:
            self.over()

    def allows(self, tokens: int) -> bool:
        if self._held or not self._tokens_min or tokens < self._tokens_min:
            return True
        return self._asked_s is not None and time.monotonic() >= self._asked_s + WAIT_S_MAX

    def ask(self, tokens: int, urgency: int) -> None:
        """Once: until it is granted or `over`, asking again changes nothing."""
        if self._asked_s is None:
            self._asked_s = time.monotonic()
            self._say(encode_notification(link.LEASE_ASK, link.LeaseAsk(tokens=tokens, urgency=urgency)))

    def grant(self) -> None:
        if self._asked_s is None:
            # Nobody wants it any more.
            self._say(_DONE)
        else:
            self._asked_s, self._held = None, True

    def over(self) -> None:
        """The chunk is read, or there is none any more."""
        if self._held or self._asked_s is not None:
            self._asked_s, self._held = None, False
            self._say(_DONE)


_DONE = encode_notification(link.LEASE_DONE, link.LeaseTurn())
