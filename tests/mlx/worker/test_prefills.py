"""Prompts that come together are prefilled so that the first of them has its text soon, and the texts stay the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlxsup import native

_PROGRAM = Path(__file__).with_name("programs") / "prefills.py"
_RUN_S = 120.0

pytestmark = pytest.mark.slow


def prefill(folder: Path, chunk_tokens: int, *lengths: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", str(_PROGRAM), str(folder), str(chunk_tokens), *map(str, lengths)],
        env={**os.environ, **native.preload_environment(1)},
        stdout=subprocess.PIPE,
        timeout=_RUN_S,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def first_steps(steps: list[tuple[int, list[int]]], prompts: int) -> list[int]:
    """In which step each prompt had its first token."""
    return [
        next(number for number, (_, ids) in enumerate(steps) if prompt in ids) for prompt in range(prompts)
    ]


def test_prompts_that_begin_together_share_one_chunk_and_the_first_text_waits_for_no_other(
    model_folder: Path,
) -> None:
    lengths = (50, 40, 30, 60, 20, 10)
    found = prefill(model_folder, 64, *lengths)

    # One more token for the end of each prompt that was read before.
    assert all(tokens <= 64 + len(lengths) for tokens, _ in found["steps"])
    first = first_steps(found["steps"], len(lengths))
    assert first == sorted(first)
    assert sum(tokens for tokens, _ in found["steps"][: first[0] + 1]) <= 50 + 1
    assert found["answers"][0] == prefill(model_folder, 64, lengths[0])["answers"][0]


def test_short_prompts_that_fit_into_a_chunk_are_read_in_one_step(model_folder: Path) -> None:
    found = prefill(model_folder, 64, 10, 12, 16)

    assert found["steps"][0][0] == 38
    assert len(set(first_steps(found["steps"], 3))) == 1


def test_more_prompts_than_the_batch_holds_are_all_answered_in_their_order(model_folder: Path) -> None:
    found = prefill(model_folder, 64, *[20] * 19)

    first = first_steps(found["steps"], 19)
    assert first == sorted(first)


def test_a_prompt_of_many_chunks_keeps_no_other_one_away(model_folder: Path) -> None:
    found = prefill(model_folder, 64, 400, 10)

    first = first_steps(found["steps"], 2)
    assert first[1] < first[0]
