"""Models that see, one of each family, by the real mlx-vlm code: what they say depends on the pictures, and on nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx_vlm", reason="mlx-vlm comes with mlxsup[vision]")

from mlxsup import native
from mlxsup.worker.engine.vision.families import FAMILIES
from mlxsup.worker.engine.vision.sight import KINDS

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parents[3]
_PROGRAM = Path(__file__).with_name("programs") / "sees.py"
_RUN_S = 300.0


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(_PROGRAM), request.param, str(tmp_path_factory.mktemp(request.param))],
        env={**os.environ, **native.preload_environment(1), "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        timeout=_RUN_S,
        check=True,
    )
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_every_family_that_is_known_has_its_code() -> None:
    assert set(FAMILIES) == KINDS


def test_it_says_what_mlx_vlm_itself_says(found: dict[str, Any]) -> None:
    assert found["alone"]["one"] == found["reference"]


def test_each_picture_and_their_order_make_another_text(found: dict[str, Any]) -> None:
    texts = [tuple(tokens) for tokens in found["alone"].values()]

    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("way", ["together", "in small chunks", "with what was kept"])
def test_neither_company_nor_chunks_nor_what_was_kept_change_a_text(found: dict[str, Any], way: str) -> None:
    assert found[way] == found["alone"]


@pytest.mark.parametrize("way", ["cut", "interrupted"])
def test_a_text_that_goes_on_in_another_worker_or_gave_way_is_the_same(
    found: dict[str, Any], way: str
) -> None:
    whole = found["alone"]["one"]

    assert len(found[way]) >= 4
    assert [tokens for tokens in found[way] if tokens != whole] == []


def test_what_it_cannot_take_is_refused_by_name(found: dict[str, Any]) -> None:
    assert found["refusals"] == {
        "nine": ["limit_exceeded", "$.messages[0].content[8]"],
        "mark": ["invalid_params", "$.messages"],
        "adapter": ["unsupported", "$.adapter"],
        "many tokens": ["limit_exceeded", None],
    }
