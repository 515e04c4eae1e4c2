"""Two models at once whose workers take turns at reading prompts: each says what it says alone."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.mlx.serving.conftest import BLAS_THREADS, MODEL, PROGRAMS, Serving, running

MODELS = ("one", "two")
TOKENS = 8
# Of several chunks each.
PROMPTS = [
    f"{number} apples and {number + 3} pears lie on a table. " * 8 + "How many are there?"
    for number in range(3)
]
CHUNK_TOKENS = 80


class Sharing(msgspec.Struct, frozen=True):
    serving: Serving
    ledger: Path

    def turns(self) -> list[str]:
        """The process id of who had it, of each turn."""
        return self.ledger.read_text().split() if self.ledger.exists() else []


@pytest.fixture(scope="module")
def sharing(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    folder = tmp_path_factory.mktemp("sharing")
    ledger = folder / "turns"
    command = [sys.executable, "-P", str(PROGRAMS / "leased_worker.py"), str(ledger)]
    config = f"""
[worker]
blas_threads = {BLAS_THREADS}
command = {json.dumps(command)}
prefill_lease = "on"
"""
    for name in MODELS:
        config += f'[models.{name}]\nsource = "{MODEL}"\nprefill_chunk_tokens = {CHUNK_TOKENS}\nprefix_bytes_max = 0\n'
    with running(config, folder, model_folder) as serving:
        yield Sharing(serving, ledger)


def call(model: str, prompt: str) -> dict[str, Any]:
    return {
        "method": "generate",
        "model": model,
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
    }


def test_texts_of_two_models_that_take_turns_are_those_of_one_alone(sharing: Sharing) -> None:
    serving = sharing.serving
    alone = [serving.ask_together([call("one", prompt)])[0].text for prompt in PROMPTS]
    # Nobody to take turns with, yet.
    assert sharing.turns() == []
    serving.ask_together([call("two", "hello")])

    together = serving.ask_together([call(model, prompt) for prompt in PROMPTS for model in MODELS])

    assert [result.text for result in together] == [text for text in alone for _ in MODELS]
    turns = Counter(sharing.turns())
    assert len(turns) == len(MODELS)
    # No prompt is read in one chunk.
    assert min(turns.values()) >= 2
