"""Sixteen requests of all kinds in one batch of the real model: each says what it says alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlxsup import native
from tests.mlx.outputs.tokenizers import HERMES

_PROGRAM = Path(__file__).with_name("programs") / "mixes.py"
_RUN_S = 400.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a model whose template tells of tools."""
    folder = tmp_path_factory.mktemp("models") / "calling"
    shutil.copytree(model_folder, folder, copy_function=os.symlink)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").write_text(HERMES)
    done = subprocess.run(
        [sys.executable, "-P", str(_PROGRAM), str(folder), str(tmp_path_factory.mktemp("adapters"))],
        env={**os.environ, **native.preload_environment(1)},
        stdout=subprocess.PIPE,
        timeout=_RUN_S,
        check=True,
    )
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def flat(chances: list[list[float]]) -> list[float]:
    return [each for entry in chances for each in entry]


def test_each_of_sixteen_says_in_the_batch_what_it_says_alone(found: dict[str, Any]) -> None:
    assert len(found["alone"]) == 16
    for name, said in found["together"].items():
        alone = found["alone"][name]
        assert {**said, "chances": 0} == {**alone, "chances": 0}, name
        assert flat(said["chances"]) == pytest.approx(flat(alone["chances"]), abs=1e-3)


def test_each_kind_is_what_it_says_it_is(found: dict[str, Any]) -> None:
    said = found["together"]

    assert not any(answer["errors"] for answer in said.values())
    for name in ("json schema", "json schema, seeded", "logprobs, schema"):
        assert set(json.loads(said[name]["text"])) == {"name", "age", "languages"}
    (call,) = said["tool call"]["calls"]
    assert call["function"]["name"] == "get_weather"
    assert "city" in json.loads(call["function"]["arguments"])
    assert (said["tool call"]["finish"], said["tool call"]["text"]) == ("tool_calls", "")
    assert said["stop string"]["finish"] == "stop"
    assert said["cancelled"]["finish"] == "cancelled"
    chances = found["alone"]["logprobs"]["chances"]
    assert len(chances) == len(said["logprobs"]["tokens"])
    assert all(len(entry) == 4 for entry in chances)
    assert len({said[name]["text"] for name in ("greedy", "first adapter", "second adapter")}) == 3
