"""Logprobs as a sequence tells of them."""

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import msgspec
import pytest

from mlxsup.protocol.generation import LOGPROB_MIN
from mlxsup.protocol.worker_link import Delta, Generate
from mlxsup.worker.engine.member import Chances, Choice
from mlxsup.worker.engine.sequence import Sequence
from tests.fakes.requests import GREEDY


class Letters:
    """A codec whose tokens are letters."""

    eos_tokens = (0,)

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(96 + token) for token in tokens)

    def stream(self) -> Any:
        return SimpleNamespace(add=lambda token: self.decode([token]), flush=lambda: "")


@pytest.mark.parametrize("ruled_out", [float("-inf"), float("nan"), -1e30])
def test_a_chance_that_json_can_not_write_is_told_as_the_least_there_is(ruled_out: float) -> None:
    request = Generate(max_tokens=5, sampling=GREEDY, prompt="p", logprobs=2)
    codec: Any = Letters()
    sequence = Sequence(1, request, codec, None, 5)
    chances = Chances(
        chosen=mx.array([ruled_out]), top_tokens=mx.array([2, 3]), top=mx.array([-0.5, ruled_out])
    )
    emission = sequence.tell([Choice(1, 1, chances)])

    (entry,) = emission.logprobs
    assert (entry.token, entry.text, entry.logprob) == (1, "a", LOGPROB_MIN)
    assert [(other.text, other.logprob) for other in entry.top] == [("b", -0.5), ("c", LOGPROB_MIN)]
    delta = Delta(1, emission.text, emission.tokens, "", [], emission.logprobs)
    assert msgspec.json.decode(msgspec.json.encode(delta), type=Delta) == delta
