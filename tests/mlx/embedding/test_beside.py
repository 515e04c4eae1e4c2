"""When texts are embedded beside streams of text: by their urgency, and never for longer than the streams may pause."""

from collections.abc import Callable
from typing import cast

import pytest

from mlxsup.protocol.generation import FinishReason
from mlxsup.protocol.worker_link import Embed, Generate, Load
from mlxsup.worker.engine.embedding.embedder import Embedder
from mlxsup.worker.engine.embedding.engine import EmbeddingEngine
from mlxsup.worker.engine.embedding.pooling import Pooling
from mlxsup.worker.engine.interface import Emission, Prepared, PreparedTexts
from mlxsup.worker.engine.text import TextEngine
from tests.fakes.requests import GREEDY
from tests.mlx.embedding.models import make_model, make_trunk, text

CHUNK = 40
ORDER = Load(
    model_path="",
    context_tokens_max=None,
    batch_sequences_max=4,
    prefill_chunk_tokens=CHUNK,
    float32=None,
    wired_limit_bytes=0,
    cache_limit_bytes=None,
    heartbeat_interval_s=1.0,
)


class Streams:
    """As a `TextEngine`: each step gives each of them a token."""

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        self.prefill_tokens = 0

    def submit(self, id: int, prepared: Prepared) -> None:
        self.left[id] = prepared.request.max_tokens

    def step(self, _: Callable[[], bool]) -> list[Emission]:
        emissions = []
        for id in list(self.left):
            self.left[id] -= 1
            if not self.left[id]:
                del self.left[id]
            emissions.append(Emission(id, "", [1], None if id in self.left else FinishReason.LENGTH))
        return emissions

    def cancel(self, id: int) -> Emission:
        del self.left[id]
        return Emission(id, "", [], FinishReason.CANCELLED)

    def forget(self, id: int) -> None:
        pass

    def share(self, lease: object) -> None:
        pass


class Turns:
    """A lease that is granted when told."""

    def __init__(self) -> None:
        self.granted = False
        self.asked: list[tuple[int, int]] = []

    def allows(self, tokens: int) -> bool:  # noqa: ARG002
        return self.granted

    def ask(self, tokens: int, urgency: int) -> None:
        self.asked.append((tokens, urgency))

    def over(self) -> None:
        self.granted = False


class Bench:
    def __init__(self) -> None:
        embedder = Embedder(make_trunk(make_model()), Pooling.MEAN)
        self.engine = EmbeddingEngine(cast("TextEngine", Streams()), embedder, "", ORDER)

    def stream(self, id: int, tokens: int, urgency: int = 2) -> None:
        order = Generate(max_tokens=tokens, sampling=GREEDY, prompt="p", urgency=urgency)
        self.engine.submit(id, Prepared([1], order))

    def embed(self, id: int, chunks: int, urgency: int = 2, *, reads_first: bool = False) -> None:
        order = Embed(texts=["x"] * chunks, urgency=urgency, reads_first=reads_first)
        self.engine.submit_texts(id, PreparedTexts([text(at, CHUNK) for at in range(chunks)], order))

    def steps(self, count: int) -> str:
        """What each of the next steps that came to their end did: a token `t`, or a chunk of texts `e`."""
        done = ""
        while len(done) < count:
            reads = self.engine.prefill_tokens
            emissions = self.engine.step(lambda: False)
            if emissions is not None:
                done += "e" if reads else "t"
        return done


@pytest.mark.parametrize(
    ("urgency", "done"),
    [(0, "eeetttt"), (2, "tetetet"), (3, "tetetet")],
)
def test_texts_are_read_before_or_between_the_tokens_of_streams(urgency: int, done: str) -> None:
    bench = Bench()
    bench.stream(1, 20)
    bench.embed(2, 3, urgency)

    assert bench.steps(7) == done


def test_who_has_less_than_its_share_is_read_first_if_that_is_one_chunk() -> None:
    bench = Bench()
    bench.stream(1, 20)
    bench.embed(2, 3, reads_first=True)
    bench.embed(3, 1, reads_first=True)

    assert bench.steps(4) == "etet"


def test_less_urgent_texts_are_put_aside_when_a_token_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxsup.worker.engine.embedding.engine.STAGE_S", 0.0)
    monkeypatch.setattr("mlxsup.worker.engine.stages.STAGE_S", 1e-9)
    bench = Bench()
    # Of how long a chunk takes nothing is known before the first.
    bench.embed(1, 1)
    assert bench.steps(1) == "e"
    bench.stream(2, 20)
    bench.embed(3, 1, 3)
    bench.engine.step(lambda: False)
    aside = [bench.engine.step(lambda: False) is None for _ in range(4)]

    assert any(aside)
    assert not all(aside)


def test_without_a_turn_of_the_lease_streams_go_on_and_texts_wait() -> None:
    bench, turns = Bench(), Turns()
    bench.engine.share(turns)
    bench.stream(1, 4)
    bench.embed(2, 1, 0)

    assert bench.steps(3) == "ttt"
    assert turns.asked[0] == (CHUNK, 0)
    turns.granted = True
    assert bench.steps(2) == "et"
    assert not turns.granted


def test_one_that_gives_way_goes_on_where_it_was_and_one_that_is_forgotten_does_not() -> None:
    bench = Bench()
    for forgets, steps in ((False, 1), (True, 2)):
        bench.embed(1, 2)
        assert bench.engine.step(lambda: False) == []
        assert bench.engine.give_way(1).finish is FinishReason.CANCELLED
        if forgets:
            bench.engine.forget(1)
        bench.embed(1, 2)
        ends = [bench.engine.step(lambda: False) for _ in range(steps)]

        assert [len(end or ()) for end in ends] == [0] * (steps - 1) + [1]
