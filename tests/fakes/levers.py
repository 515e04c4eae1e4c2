"""Levers that move nothing, and remember how they stand and every pull."""

from typing import Any

from mlxsup.protocol.generation import Priority


class FakeLevers:
    """`pulled` has each pull in order. Pulling one to where it stands already is a defect, and fails."""

    def __init__(self) -> None:
        self.ready = True
        self.shed_tiers: set[Priority] = set()
        self.sequences_max: int | None = None
        self.chunk_tokens: int | None = None
        self.recycled = 0
        self.pulled: list[tuple[Any, ...]] = []
        self.told: list[tuple[str, dict[str, Any]]] = []

    @property
    def neutral(self) -> bool:
        return (self.shed_tiers, self.sequences_max, self.chunk_tokens) == (set(), None, None)

    def shed(self, _: str, tier: Priority, on: bool) -> None:
        assert (tier in self.shed_tiers) != on
        self.shed_tiers ^= {tier}
        self.pulled.append(("shed", tier, on))

    def batch(self, _: str, sequences_max: int | None) -> None:
        assert sequences_max != self.sequences_max
        self.sequences_max = sequences_max
        self.pulled.append(("batch", sequences_max))

    def chunk(self, _: str, tokens: int | None) -> None:
        assert tokens != self.chunk_tokens
        self.chunk_tokens = tokens
        self.pulled.append(("chunk", tokens))

    def recycle(self, _: str) -> None:
        assert self.ready
        self.recycled += 1
        self.pulled.append(("recycle",))

    def serves(self, _: str) -> bool:
        return self.ready

    def tell(self, _: str, what: str, detail: dict[str, Any]) -> None:
        self.told.append((what, detail))
