"""A conversation of several turns on a long system prompt: what the last turn takes to its first token, beside a prompt that
has nothing but that turn's new tokens; in the worker that computed the turns before, and in the next one after a kill -9.
"""

import random
import signal
import time

import msgspec

from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.generation import GenerationResult
from scripts.benchmarks.figures import Spread, paired_ratio
from scripts.benchmarks.prompts import PROMPTS
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import MODEL, Say, SupervisorChild, supervisor_child, wait_quiet

GOAL_WARM_RATIO = 1.3
GOAL_RESTARTED_RATIO = 2.0
# Of a usual vocabulary: words, whatever they say.
_TOKENS = range(1000, 40_000)
# Of a sentence of PROMPTS.
_SENTENCE_TOKENS = 22
_LOAD_S = 60.0
_LOOK_S = 0.05


class PrefixSizes(msgspec.Struct, frozen=True):
    rounds: int
    turns: int
    system_tokens: int
    turn_tokens: int
    answer_tokens: int


class LastTurn(msgspec.Struct, frozen=True):
    """`new_tokens` are those behind the turn before; of all `prompt_tokens` so many were `cached_tokens`. Times to the first
    token in milliseconds, `bare_ms` of a prompt of as many tokens as are new.
    """

    prompt_tokens: int
    new_tokens: int
    cached_tokens: int
    ttft_ms: float
    bare_ms: float


class PrefixFigures(msgspec.Struct, frozen=True):
    sizes: PrefixSizes
    warm: list[LastTurn]
    restarted: list[LastTurn]
    warm_ratio: Spread
    restarted_ratio: Spread


def measure_prefix(sizes: PrefixSizes, seed: int, say: Say) -> Section:
    chance = random.Random(f"prefix {seed}")
    model = {"prefix_bytes_max": 1 << 30}
    with supervisor_child(model=model) as child:
        child.load_model(say)
        _bare_ms(child, sizes.turn_tokens, chance)
        warm, restarted = [], []
        for number in range(1, sizes.rounds + 1):
            warm.append(_Chat(child, sizes, chance).play(kills=False))
            restarted.append(_Chat(child, sizes, chance).play(kills=True))
            say(
                f"round {number} of {sizes.rounds}: {warm[-1].ttft_ms:.0f} ms warm, {restarted[-1].ttft_ms:.0f} ms after a "
                f"restart, {warm[-1].bare_ms:.0f} and {restarted[-1].bare_ms:.0f} ms bare"
            )
    figures = PrefixFigures(sizes, warm, restarted, _ratio(warm), _ratio(restarted))
    name = f"TTFT of turn {sizes.turns}, beside that of its new tokens alone"
    goals = [
        Goal(name, figures.warm_ratio.median, GOAL_WARM_RATIO, at_least=False),
        Goal(
            f"{name}, after a restart", figures.restarted_ratio.median, GOAL_RESTARTED_RATIO, at_least=False
        ),
    ]
    return Section("prefix", figures, [_table(figures)], goals)


class _Chat:
    def __init__(self, child: SupervisorChild, sizes: PrefixSizes, chance: random.Random) -> None:
        self._child = child
        self._sizes = sizes
        self._chance = chance
        # No two begin alike.
        system = f"{chance.getrandbits(64)}. {self._words(sizes.system_tokens)}"
        self._messages = [{"role": "system", "content": system}]

    def play(self, *, kills: bool) -> LastTurn:
        before = 0
        for _ in range(self._sizes.turns - 1):
            result, _ = self._turn()
            before = result.usage.prompt_tokens + result.usage.completion_tokens
        if kills:
            _kill(self._child)
        result, ttft_ms = self._turn()
        usage = result.usage
        new_tokens = usage.prompt_tokens - before
        # The same worker, which has been asked by now.
        bare_ms = _bare_ms(self._child, new_tokens, self._chance)
        return LastTurn(usage.prompt_tokens, new_tokens, usage.cached_tokens, ttft_ms, bare_ms)

    def _turn(self) -> tuple[GenerationResult, float]:
        self._messages.append({"role": "user", "content": self._words(self._sizes.turn_tokens)})
        params = {"messages": self._messages, "max_tokens": self._sizes.answer_tokens}
        result, ttft_ms = _ask(self._child, "chat", params)
        self._messages.append({"role": "assistant", "content": result.text})
        return result, ttft_ms

    def _words(self, tokens: int) -> str:
        count = max(1, round(tokens / _SENTENCE_TOKENS))
        return " ".join(self._chance.choice(PROMPTS) for _ in range(count))


def _bare_ms(child: SupervisorChild, tokens: int, chance: random.Random) -> float:
    prompt = [chance.choice(_TOKENS) for _ in range(tokens)]
    return _ask(child, "generate", {"prompt_tokens": prompt, "max_tokens": 2})[1]


def _ask(child: SupervisorChild, method: str, params: dict[str, object]) -> tuple[GenerationResult, float]:
    """The result, and milliseconds to the first piece of its text, or its end."""
    wait_quiet([child.process, *child.workers()])
    with Client.connect(child.socket) as client:
        sent_s = time.perf_counter()
        stream = client.stream(method, {"model": MODEL, "temperature": 0, **params})
        first_s = None
        for _ in stream:
            first_s = first_s or time.perf_counter()
        ended_s = time.perf_counter()
    assert stream.result is not None
    return stream.result, ((first_s or ended_s) - sent_s) * 1000


def _kill(child: SupervisorChild) -> None:
    """The worker, and wait until another one has loaded the model."""
    killed = child.serving()
    killed.send_signal(signal.SIGKILL)
    with Client.connect(child.socket) as client:
        deadline_s = time.monotonic() + _LOAD_S
        while time.monotonic() < deadline_s:
            (entry,) = [entry for entry in client.call("model/list").models if entry.name == MODEL]
            if entry.state == "ready" and entry.pid != killed.pid:
                return
            time.sleep(_LOOK_S)
    raise RuntimeError("no other worker took over")


def _ratio(turns: list[LastTurn]) -> Spread:
    return paired_ratio([turn.ttft_ms for turn in turns], [turn.bare_ms for turn in turns])


def _table(figures: PrefixFigures) -> Table:
    sizes = figures.sizes
    rows = [
        (
            name,
            str(number),
            str(turn.prompt_tokens),
            str(turn.cached_tokens),
            str(turn.new_tokens),
            f"{turn.bare_ms:.0f}",
            f"{turn.ttft_ms:.0f}",
            f"{turn.ttft_ms / turn.bare_ms:.2f}",
        )
        for name, turns in (("warm", figures.warm), ("after kill -9", figures.restarted))
        for number, turn in enumerate(turns, 1)
    ]
    return Table(
        f"Turn {sizes.turns} of a conversation on a system prompt of about {sizes.system_tokens} tokens; time to the first token",
        ("", "round", "prompt tokens", "cached", "new", "new ones alone, ms", "turn, ms", "ratio"),
        rows,
    )
