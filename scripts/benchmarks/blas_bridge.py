"""MLX's CPU backend with OpenBLAS under it, and with the BLAS of its wheel, in turns.

Without the bridge a token takes as long in any batch and at any length, so that side does little, and rates for each
token are compared. Each run is a process of its own: a preloaded library can't be taken out again.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from mlxsup import native
from scripts.benchmarks.figures import Spread, paired_ratio
from scripts.benchmarks.mlx_lm_messages import Rates, RatesDone
from scripts.benchmarks.mlx_lm_process import mlx_lm_process
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import Say, supervisor_child

GOAL_RATIO = 15.0


class BridgeSizes(msgspec.Struct, frozen=True, kw_only=True):
    rounds: int
    threads: int
    streams: int
    prompt_tokens: int
    steps: int
    prompt_tokens_without: int
    steps_without: int


class Gain(msgspec.Struct, frozen=True):
    """Rates in tokens a second."""

    what: str
    without: Spread
    bridged: Spread
    ratio: Spread


class BridgeFigures(msgspec.Struct, frozen=True):
    sizes: BridgeSizes
    gains: list[Gain]


def measure_bridge(sizes: BridgeSizes, say: Say) -> Section:
    preload = native.preload_environment(sizes.threads)
    if not preload:
        raise SystemExit("there is no BLAS bridge on this machine: `mlxsup doctor` says why")
    with supervisor_child() as child:
        folder = child.load_model(say)
    without = Rates(sizes.prompt_tokens_without, sizes.streams, sizes.steps_without)
    bridged = Rates(sizes.prompt_tokens, sizes.streams, sizes.steps)
    slow, fast = [], []
    for number in range(1, sizes.rounds + 1):
        slow.append(_run(folder, without, {}, sizes.streams))
        say(f"round {number} of {sizes.rounds}, without the bridge: {_words(slow[-1])}")
        fast.append(_run(folder, bridged, preload, sizes.streams))
        say(f"round {number} of {sizes.rounds}, with it: {_words(fast[-1])}")
    gains = [
        _gain("prefill", [r.prefill_tokens_per_s for r in slow], [r.prefill_tokens_per_s for r in fast]),
        _gain("decode", [r.decode_tokens_per_s for r in slow], [r.decode_tokens_per_s for r in fast]),
    ]
    figures = BridgeFigures(sizes, gains)
    goals = [
        Goal(f"{gain.what} with the bridge, times without", gain.ratio.median, GOAL_RATIO) for gain in gains
    ]
    return Section("blas_bridge", figures, [_table(figures)], goals)


def _run(folder: Path, order: Rates, preload: Mapping[str, str], streams: int) -> RatesDone:
    with mlx_lm_process(preload) as mlx_lm:
        started = mlx_lm.start(folder, streams)
        if started.blas_bridge != bool(preload):
            raise RuntimeError(f"the bridge is active: {started.blas_bridge}, wanted: {bool(preload)}")
        return mlx_lm.rates(order)


def _gain(what: str, without: list[float], bridged: list[float]) -> Gain:
    return Gain(what, Spread.of(without), Spread.of(bridged), paired_ratio(bridged, without))


def _words(rates: RatesDone) -> str:
    return f"prefill {rates.prefill_tokens_per_s:.1f} tokens/s, decode {rates.decode_tokens_per_s:.1f}"


def _table(figures: BridgeFigures) -> Table:
    sizes = figures.sizes
    return Table(
        f"MLX on the CPU, float32, {sizes.threads} BLAS threads with the bridge; prefill of {sizes.prompt_tokens} tokens "
        f"({sizes.prompt_tokens_without} without the bridge), decoding of {sizes.streams} streams for {sizes.steps} "
        f"steps ({sizes.steps_without})",
        ("", "without tokens/s", "with tokens/s", "ratio", "pair by pair"),
        [
            (
                gain.what,
                f"{gain.without.median:.2f}",
                f"{gain.bridged.median:.2f}",
                f"{gain.ratio.median:.1f}",
                f"{gain.ratio.min:.1f} to {gain.ratio.max:.1f}",
            )
            for gain in figures.gains
        ],
    )
