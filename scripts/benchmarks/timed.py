"""A batch of fixed speed: what it computes takes the time that its orders say, and nothing is computed.

Rule 1: a chunk of the most urgent prompt is read, then each answer gets a token; while that prompt is more urgent than
every answer, they wait for it. Rule 2: whatever takes time is put aside when somebody comes, and what was
spent on it is not spent again. Rule 3: a sequence that gave way has read its prompt when it comes again.
"""

import time

import msgspec

from mlxsup.worker.engine.interface import IsWanted

_CHUNK_TOKENS = 256
_SLICE_S = 0.002
_CHARS_PER_TOKEN = 4


class Speed(msgspec.Struct, frozen=True):
    """Milliseconds: of a step and of each answer in it, and of each token of a prompt."""

    step_ms: float
    answer_ms: float
    prompt_token_ms: float


class Timed(msgspec.Struct, frozen=True, tag=True):
    """A text that only depends on its seed, at the pace of `speed`; `padding` makes the order as long as its prompt is."""

    seed: int
    prompt_tokens: int
    speed: Speed
    padding: str = ""


def timed_prompt(seed: int, prompt_tokens: int, speed: Speed) -> str:
    """An order as a prompt, with about as many characters as a prompt of so many tokens has."""
    bare = Timed(seed, prompt_tokens, speed)
    lacking = prompt_tokens * _CHARS_PER_TOKEN - len(msgspec.json.encode(bare))
    order = msgspec.structs.replace(bare, padding="-" * max(0, lacking))
    return msgspec.json.encode(order).decode()


class _Work:
    """What takes time, and may be put aside."""

    def __init__(self) -> None:
        self._left_s: float | None = None

    def do(self, seconds: float, is_wanted: IsWanted) -> bool:
        """Whether it is done. `seconds` counts where it begins."""
        end_s = time.monotonic() + (seconds if self._left_s is None else self._left_s)
        while (left_s := end_s - time.monotonic()) > 0:
            if is_wanted():
                self._left_s = left_s
                return False
            time.sleep(min(_SLICE_S, left_s))
        self._left_s = None
        return True


class _Member:
    def __init__(self, order: Timed, turn: int, unread: int) -> None:
        self.speed = order.speed
        # As in worker/engine/batch.py: even for those whose prompt is read before answers that are as urgent.
        self.turn = turn if unread <= _CHUNK_TOKENS else turn | 1
        self.unread = unread
        self.reading = _Work()

    @property
    def chunk(self) -> int:
        return min(_CHUNK_TOKENS, self.unread)


class TimedBatch:
    def __init__(self) -> None:
        self._members: dict[int, _Member] = {}
        self._parked: set[int] = set()
        self._answering = _Work()
        # Every answer has got a token since a chunk was read.
        self._told = False

    def add(self, id: int, order: Timed, turn: int, delivered: int) -> int:
        """`delivered` are tokens of its answer, which are read like its prompt; how many of all need not be read."""
        tokens = order.prompt_tokens + delivered
        cached = tokens if id in self._parked else 0
        self._parked.discard(id)
        self._members[id] = _Member(order, turn, tokens - cached)
        return min(cached, order.prompt_tokens)

    def remove(self, id: int, *, keeps: bool = False) -> None:
        """Ids that were never added are removed already."""
        member = self._members.pop(id, None)
        if keeps and member is not None and not member.unread:
            self._parked.add(id)

    def forget(self, id: int) -> None:
        self._parked.discard(id)

    @property
    def prefill_tokens(self) -> int:
        member = self._reads_next()
        return 0 if member is None else member.chunk

    def step(self, is_wanted: IsWanted) -> list[int] | None:
        """Who gets a token; None: put aside."""
        member = self._reads_next()
        if member is not None:
            if not member.reading.do(member.chunk * member.speed.prompt_token_ms / 1000, is_wanted):
                return None
            member.unread -= member.chunk
            self._told = False
            return []
        answers = self._answers()
        speed = next(iter(answers.values())).speed
        if not self._answering.do((speed.step_ms + speed.answer_ms * len(answers)) / 1000, is_wanted):
            return None
        self._told = True
        return list(answers)

    def _answers(self) -> dict[int, _Member]:
        return {id: member for id, member in self._members.items() if not member.unread}

    def _reads_next(self) -> _Member | None:
        """None: the answers go on."""
        unread = (member for member in self._members.values() if member.unread)
        member = min(unread, key=lambda member: member.turn, default=None)
        answers = self._answers().values()
        if member is None or self._told or all(member.turn < answer.turn | 1 for answer in answers):
            return member
        return None
