"""Who gives way keeps its cache for when it goes on, within a bound, and its text is the same: the real model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlxsup import native

_PROGRAM = Path(__file__).with_name("programs") / "parks.py"
_RUN_S = 300.0
_CHUNK_TOKENS = 32

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[1 << 30, 0], ids=["room for caches", "no room"])
def found(request: pytest.FixtureRequest, model_folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", str(_PROGRAM), str(model_folder), str(request.param)],
        env={**os.environ, **native.preload_environment(1)},
        stdout=subprocess.PIPE,
        timeout=_RUN_S,
        check=True,
    )
    answers: dict[str, Any] = json.loads(done.stdout)
    # Of each prompt that had begun with its answer all; of the long one the chunk that it had read.
    begun = [min(tokens, _CHUNK_TOKENS) for tokens in answers["prompts"]]
    answers["expected"] = begun if request.param else [0] * len(begun)
    return answers


def test_greedy_seeded_and_penalised_texts_are_what_they_are_undisturbed(found: dict[str, Any]) -> None:
    assert found["gave_way"] == list(range(len(found["prompts"])))
    assert found["broken"] == found["undisturbed"]


def test_how_much_of_a_prompt_came_from_the_cache_is_told(found: dict[str, Any]) -> None:
    assert found["cached"] == found["expected"]


def test_a_token_takes_as_much_memory_as_the_engine_says(found: dict[str, Any]) -> None:
    assert found["seen_bytes_per_token"] == pytest.approx(found["kv_bytes_per_token"], rel=0.02)
