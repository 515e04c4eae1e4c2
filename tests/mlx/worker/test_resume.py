"""Another worker goes on with a text at any token as if nothing had happened: the real engine on the real model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlxsup import native

_PROGRAM = Path(__file__).with_name("programs") / "resumes.py"
_RUN_S = 240.0
_TEMPLATE = """\
{{- "Today Date: " + strftime_now("%d %b %Y") + "\\n" }}
{%- for message in messages %}{{ message["content"] + "\\n" }}{% endfor %}
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a model whose template names the day."""
    folder = tmp_path_factory.mktemp("models") / "dated"
    shutil.copytree(model_folder, folder, copy_function=os.symlink)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    done = subprocess.run(
        [sys.executable, "-P", str(_PROGRAM), str(folder)],
        env={**os.environ, **native.preload_environment(1)},
        stdout=subprocess.PIPE,
        timeout=_RUN_S,
        check=True,
    )
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize(
    ("name", "finish"),
    [
        ("plain", "length"),
        ("penalties", "length"),
        ("seeded, penalties, letters of several tokens", "length"),
        ("stop string", "stop"),
        ("conversation of another day", "length"),
    ],
)
def test_a_text_that_is_cut_at_any_token_and_goes_on_is_the_same_text(
    found: dict[str, Any], name: str, finish: str
) -> None:
    whole, cuts = found[name]["whole"], found[name]["cuts"]

    assert whole["finish"] == finish
    assert len(cuts) > 4
    assert [cut for cut in cuts if cut != whole] == []


def test_the_cases_are_what_they_are_called(found: dict[str, Any]) -> None:
    texts = {name: answers["whole"]["text"] for name, answers in found.items()}

    assert found["plain"]["whole"]["text"].startswith(texts["stop string"])
    assert texts["plain"][len(texts["stop string"]) :].startswith("f Nov")
    assert max(texts["seeded, penalties, letters of several tokens"]) > "\uffff"
    assert found["conversation of another day"]["prompt"].startswith("Today Date: 09 Sep 2001\n")
