"""How right predictions have been, and by how much those to come are corrected. Pure.

Waits are corrected by how much longer than predicted they were, by tier. A request with a deadline is let in with so much
caution that one in fifty of those let in comes too late: the caution rises with each that does, and falls with each
that does not, in that proportion (Robbins and Monro, A Stochastic Approximation Method, 1951).
"""

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest

_LEARNING = 0.05
_CORRECTION_MAX = 4.0
# How long a wait has to be to teach anything.
_TELLING_S = 0.5
_LATE_SHARE = 0.02
_CAUTION_STEP = 0.1
_CAUTION_MAX = 4.0


class TrackRecord:
    """`caution` multiplies the time that a request with a deadline is expected to take."""

    def __init__(self) -> None:
        # By the request's id: the wait that was predicted for it, in seconds, as it was before it was corrected.
        self._predicted_s: dict[int, float] = {}
        self._correction = dict.fromkeys(Priority, 1.0)
        self.caution = 1.0

    def correct(self, wait_s: float, tier: Priority) -> float:
        return wait_s * self._correction[tier]

    def note_admitted(self, request: GenerationRequest, corrected_s: float) -> None:
        self._predicted_s[request.id] = corrected_s / self._correction[request.priority]

    def note_start(self, request: GenerationRequest, now_s: float) -> None:
        """It has waited for its first turn."""
        predicted_s = self._predicted_s.get(request.id, 0.0)
        if predicted_s < _TELLING_S:
            return
        factor = (now_s - request.marks.accepted_s) / predicted_s
        factor = min(_CORRECTION_MAX, max(1 / _CORRECTION_MAX, factor))
        before = self._correction[request.priority]
        self._correction[request.priority] = before + _LEARNING * (factor - before)

    def note_end(self, request: GenerationRequest, error: RpcError | None) -> None:
        """With a result where `error` is None."""
        known = self._predicted_s.pop(request.id, None) is not None
        if not known or request.deadline_s is None or request.cancel_asked:
            return
        if error is None:
            self.caution -= _CAUTION_STEP * _LATE_SHARE
        elif error.kind is ErrorKind.DEADLINE_EXCEEDED:
            self.caution += _CAUTION_STEP * (1 - _LATE_SHARE)
        self.caution = min(_CAUTION_MAX, max(1.0, self.caution))
