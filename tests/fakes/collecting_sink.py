"""A sink that keeps what a request gave, and counts its ends."""

from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import GenerationResult
from mlxsup.supervisor.generation.extras import Extras
from mlxsup.supervisor.generation.request import GenerationRequest


class CollectingSink:
    """Also an observer: `outcomes` has one entry for each end, so a second one shows."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.extras: list[Extras] = []
        self.outcomes: list[GenerationResult | RpcError] = []
        self.counted: list[str] = []

    def delta(self, text: str, extras: Extras | None) -> None:
        assert not self.outcomes, "a delta after the end"
        self.pieces.append(text)
        if extras is not None:
            self.extras.append(extras)

    def result(self, result: GenerationResult) -> None:
        self.outcomes.append(result)

    def error(self, error: RpcError) -> None:
        self.outcomes.append(error)

    def request_progressed(self, _: GenerationRequest, now_s: float) -> None:
        pass

    def request_ended(self, _: GenerationRequest, outcome: str) -> None:
        self.counted.append(outcome)

    @property
    def text(self) -> str:
        (outcome,) = self.outcomes
        assert isinstance(outcome, GenerationResult), outcome
        return outcome.text

    @property
    def failure(self) -> RpcError:
        (outcome,) = self.outcomes
        assert isinstance(outcome, RpcError), outcome
        return outcome
