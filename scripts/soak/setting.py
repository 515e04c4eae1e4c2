"""How a soak is set up: of which the fake and the real one differ, and what the supervisor's configuration says."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import trio

from mlxsup.config.locations import locate
from mlxsup.config.schema import DEFAULT_MODEL
from mlxsup.supervisor.models.pull import pull
from scripts.soak.causes import NATURES, Cause
from scripts.soak.striker import Pace

PROGRAM = "scripts/chaos"
MODEL = "struck"
OTHER = "other"

FOLDER = Path(__file__).resolve().parent

_LOAD_MS = 60
_WARM_S = 0.03

# A thousand deaths within minutes are what the limits of [recovery] are there against.
RECOVERY: dict[str, Any] = {
    "restart_backoff_base_s": 0.001,
    "restart_backoff_max_s": 0.001,
    "restart_healthy_s": 0.001,
    "restarts_max": 1_000_000,
    "breaker_deaths": 1_000_000,
    "machine_deaths": 1_000_000,
    # One new token clears a suspect: the next blow waits for that, or it would quarantine the innocent.
    "fruitless_resumes_max": 1_000_000,
    "suspect_tokens": 1,
    "reports_max": 1_000_000,
}


class Soak(msgspec.Struct, frozen=True, kw_only=True):
    """`model` is a real one's name, None for the faulty worker's engine."""

    model: str | None
    deaths: int
    causes: tuple[Cause, ...]
    streams: int
    other_streams: int
    seed: int

    @property
    def pace(self) -> Pace:
        return _FAKE if self.model is None else _REAL

    @property
    def bare_every(self) -> int:
        """Deaths between two bare starts."""
        return 50 if self.model is None else 5

    @property
    def heartbeat_interval_s(self) -> float:
        return 0.25 if self.model is None else 1.0

    @property
    def arguments(self) -> str:
        """Of the command that runs it again."""
        words = [f"--deaths {self.deaths}", f"--seed {self.seed}", f"--streams {self.streams}"]
        words += [f"--model {self.model}"] if self.model else []
        words += [f"--cause {cause}" for cause in self.causes]
        words += [] if self.other_streams else ["--no-second-model"]
        return " ".join(words)

    @property
    def command(self) -> str:
        return f"{PROGRAM} {self.arguments}"

    def worker_keys(self, orders: Path) -> dict[str, Any]:
        """Of `[worker]`. A real model's worker is the real program, unless it has to obey."""
        # The same for every worker: with other threads a product is summed up in another order.
        keys: dict[str, Any] = {
            "blas_threads": max(1, ((os.cpu_count() or 1) - 1) // 2),
            "heartbeat_interval_s": self.heartbeat_interval_s,
        }
        command = [sys.executable, "-P", str(FOLDER), "worker", str(orders)]
        if self.model is None:
            faulty = ["--faulty", "--warm-s", str(_WARM_S), "--", "--load-ms", str(_LOAD_MS)]
            return keys | {"command": [*command, *faulty]}
        if any(NATURES[cause].inside for cause in self.causes):
            return keys | {"command": command}
        return keys

    def watching_tables(self, orders: Path, margins: Path, folder: Path) -> dict[str, dict[str, Any]]:
        """For a supervisor whose worker finds the texts that rounding decides."""
        command = [sys.executable, "-P", str(FOLDER), "worker", str(orders), "--margins", str(margins)]
        keys = self.worker_keys(orders) | {"command": command, "spares": 0}
        return {"worker": keys, f"models.{MODEL}": {"source": str(folder)}}

    def tables(self, orders: Path, folder: Path) -> dict[str, dict[str, Any]]:
        """The supervisor's whole configuration; both models are the one in `folder`."""
        model = {"source": str(folder)}
        models = {f"models.{MODEL}": model} | ({f"models.{OTHER}": model} if self.other_streams else {})
        return {"worker": self.worker_keys(orders), "recovery": RECOVERY, **models}


_FAKE = Pace(decode_s=0.3, prefill_s=0.1, load_s=0.06, warm_s=0.03, drain_s=0.5, double_s=0.1, limit_s=60.0)
_REAL = Pace(decode_s=4.0, prefill_s=1.0, load_s=2.0, warm_s=0.1, drain_s=5.0, double_s=0.5, limit_s=300.0)


def find_model(soak: Soak) -> Path:
    """The folder of the model, pulled if it is not here; the faulty worker's engine reads none, but one is checked."""
    cache = locate(sys.platform, os.environ, Path.home()).cache

    async def fetch() -> Path:
        return (await pull(soak.model or DEFAULT_MODEL, store_root=cache, on_progress=lambda _: None)).path

    return trio.run(fetch)


def numbered(seed: int, count: int) -> Iterator[int]:
    """A seed of its own for each stream."""
    return (seed * 1000 + number for number in range(count))
