"""Tells whoever subscribed what happens to models and workers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mlxsup.protocol.service import Event

Listener = Callable[[Event], None]


class EventBus:
    """Listeners are called at once and may not wait."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def publish(self, topic: str, model: str, what: str, **detail: Any) -> None:
        event = Event(topic=topic, model=model, what=what, detail=detail)
        for listener in tuple(self._listeners):
            listener(event)

    def subscribe(self, listener: Listener) -> None:
        """For as long as there is this bus."""
        self._listeners.append(listener)

    @contextmanager
    def subscribed(self, listener: Listener) -> Iterator[None]:
        self.subscribe(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)
