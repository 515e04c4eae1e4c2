"""What a model's self-tests have found, for as long as the supervisor lives: no worker after the first is tested again."""

import logging
from collections.abc import Callable

import msgspec

from mlxsup.protocol.self_test import Feature, SelfTestResult
from mlxsup.supervisor.events import EventBus

_log = logging.getLogger(__name__)

EVENT = "self_test"


class SelfTests:
    """Of one model. `changed` is called when other features than before are switched off."""

    def __init__(self, model: str, events: EventBus, changed: Callable[[], None]) -> None:
        self._model = model
        self._events = events
        self._changed = changed
        self.last: SelfTestResult | None = None
        # How many there were.
        self.count = 0

    @property
    def switched_off(self) -> list[Feature]:
        return [] if self.last is None else self.last.switched_off

    def note(self, result: SelfTestResult) -> None:
        """One is over. What it finds wrong is off already in the worker that it was done by."""
        before, self.last = self.switched_off, result
        self.count += 1
        for check in result.checks:
            if check.outcome in ("switched_off", "failed"):
                _log.error("%s: self-test: %s: %s: %s", self._model, check.feature, check.outcome, check.why)
        if result.passed:
            _log.info("%s: self-test passed in %.1f s", self._model, result.seconds)
        self._events.publish("model", self._model, EVENT, **msgspec.to_builtins(result))
        if self.switched_off != before:
            self._changed()

    def forget(self) -> None:
        """The next worker is tested again if anything was found wrong."""
        if self.last is not None and not self.last.passed:
            self.last = None
            self._changed()
