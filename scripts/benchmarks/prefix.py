"""A conversation of several turns on a long system prompt: what the last turn takes to its first token, in the worker that
computed the turns before, and in the next one after a kill -9.

It is held against a bare prefill of the turn's new tokens: mlx-lm in one process, which has all tokens before them in a cache of
its own, and reads these. What as many tokens take on the same server with nothing before them is told besides: there is less
to look back at.
"""

import random
import signal
import time

import msgspec

from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.generation import GenerationResult
from scripts.benchmarks.figures import Spread, paired_ratio
from scripts.benchmarks.mlx_lm_messages import Goes
from scripts.benchmarks.mlx_lm_process import MlxLmProcess, mlx_lm_process
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
    token in milliseconds: `bare_ms` of mlx-lm for the new ones, `short_ms` of a prompt that has as many tokens.
    """

    prompt_tokens: int
    new_tokens: int
    cached_tokens: int
    ttft_ms: float
    bare_ms: float
    short_ms: float


class PrefixFigures(msgspec.Struct, frozen=True):
    sizes: PrefixSizes
    warm: list[LastTurn]
    restarted: list[LastTurn]
    warm_ratio: Spread
    restarted_ratio: Spread


def measure_prefix(sizes: PrefixSizes, seed: int, say: Say) -> Section:
    model = {"prefix_bytes_max": 1 << 30, "prefix_disk_bytes_max": 1 << 31}
    warm: list[LastTurn] = []
    restarted: list[LastTurn] = []
    with supervisor_child(model=model) as child:
        folder = child.load_model(say)
        with mlx_lm_process(child.preload()) as mlx_lm:
            mlx_lm.start(folder, batch_sequences_max=1)
            bench = _Bench(child, mlx_lm, sizes, random.Random(f"prefix {seed}"))
            bench.warm_up()
            for number in range(1, sizes.rounds + 1):
                warm.append(bench.play(kills=False))
                restarted.append(bench.play(kills=True))
                say(
                    f"round {number} of {sizes.rounds}: {_words(warm[-1])}; after a restart {_words(restarted[-1])}"
                )
    figures = PrefixFigures(sizes, warm, restarted, _ratio(warm), _ratio(restarted))
    name = f"TTFT of turn {sizes.turns}, beside a bare prefill of its new tokens"
    goals = [
        Goal(name, figures.warm_ratio.median, GOAL_WARM_RATIO, at_least=False),
        Goal(
            f"{name}, after a restart", figures.restarted_ratio.median, GOAL_RESTARTED_RATIO, at_least=False
        ),
    ]
    return Section("prefix", figures, [_table(figures)], goals)


class _Bench:
    def __init__(
        self, child: SupervisorChild, mlx_lm: MlxLmProcess, sizes: PrefixSizes, chance: random.Random
    ) -> None:
        self._child = child
        self._mlx_lm = mlx_lm
        self._sizes = sizes
        self._chance = chance

    def warm_up(self) -> None:
        self._short_ms(self._sizes.turn_tokens)
        self._bare_ms(self._sizes.system_tokens, self._sizes.turn_tokens)

    def play(self, *, kills: bool) -> LastTurn:
        """One conversation, which begins like no other."""
        system = f"{self._chance.getrandbits(64)}. {self._said(self._sizes.system_tokens)}"
        messages = [{"role": "system", "content": system}]
        before = 0
        for _ in range(self._sizes.turns - 1):
            result, _ = self._turn(messages)
            before = result.usage.prompt_tokens + result.usage.completion_tokens
        if kills:
            _kill(self._child)
        result, ttft_ms = self._turn(messages)
        usage = result.usage
        new_tokens = usage.prompt_tokens - before
        return LastTurn(
            usage.prompt_tokens,
            new_tokens,
            usage.cached_tokens,
            ttft_ms,
            self._bare_ms(before, new_tokens),
            self._short_ms(new_tokens),
        )

    def _turn(self, messages: list[dict[str, str]]) -> tuple[GenerationResult, float]:
        messages.append({"role": "user", "content": self._said(self._sizes.turn_tokens)})
        answered = self._ask("chat", {"messages": messages, "max_tokens": self._sizes.answer_tokens})
        messages.append({"role": "assistant", "content": answered[0].text})
        return answered

    def _said(self, tokens: int) -> str:
        count = max(1, round(tokens / _SENTENCE_TOKENS))
        return " ".join(self._chance.choice(PROMPTS) for _ in range(count))

    def _bare_ms(self, cached_tokens: int, new_tokens: int) -> float:
        self._wait_quiet()
        return self._mlx_lm.goes(Goes(cached_tokens, new_tokens)).seconds * 1000

    def _short_ms(self, tokens: int) -> float:
        prompt = [self._chance.choice(_TOKENS) for _ in range(tokens)]
        return self._ask("generate", {"prompt_tokens": prompt, "max_tokens": 2})[1]

    def _ask(self, method: str, params: dict[str, object]) -> tuple[GenerationResult, float]:
        """The result, and milliseconds to the first piece of its text, or its end."""
        self._wait_quiet()
        with Client.connect(self._child.socket) as client:
            sent_s = time.perf_counter()
            stream = client.stream(method, {"model": MODEL, "temperature": 0, **params})
            first_s = None
            for _ in stream:
                first_s = first_s or time.perf_counter()
            ended_s = time.perf_counter()
        assert stream.result is not None
        return stream.result, ((first_s or ended_s) - sent_s) * 1000

    def _wait_quiet(self) -> None:
        wait_quiet([self._child.process, *self._child.workers(), self._mlx_lm.process])


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


def _words(turn: LastTurn) -> str:
    return f"{turn.ttft_ms:.0f} ms, {turn.bare_ms:.0f} bare, {turn.short_ms:.0f} with nothing before"


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
            f"{turn.ttft_ms:.0f}",
            f"{turn.bare_ms:.0f}",
            f"{turn.ttft_ms / turn.bare_ms:.2f}",
            f"{turn.short_ms:.0f}",
            f"{turn.ttft_ms / turn.short_ms:.2f}",
        )
        for name, turns in (("warm", figures.warm), ("after kill -9", figures.restarted))
        for number, turn in enumerate(turns, 1)
    ]
    return Table(
        f"Turn {sizes.turns} of a conversation on a system prompt of about {sizes.system_tokens} tokens; to the first token, ms",
        (
            *("", "round", "prompt tokens", "cached", "new", "turn", "new ones bare", "ratio"),
            *("as many with nothing before", "ratio"),
        ),
        rows,
    )
