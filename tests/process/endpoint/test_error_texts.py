"""What a client is told when things go wrong: sentences, and nothing about the host."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlxsup.protocol.errors import ERROR_CODES
from tests.process.endpoint.conftest import User, request

CONFIG = """
[models.nowhere]
source = "./nowhere"
[models.empty]
source = "./empty"
[models.broken]
source = "./broken"
[models.unpulled]
source = "owner/unpulled"
"""
REQUESTS: dict[str, tuple[str, Any]] = {
    "a folder that is not there": ("model/load", {"model": "nowhere"}),
    "an empty folder": ("model/load", {"model": "empty"}),
    "a broken folder": ("model/load", {"model": "broken"}),
    "a model that is not pulled": ("model/load", {"model": "unpulled"}),
    "a model nobody knows": ("model/load", {"model": "owner/unknown"}),
    "a path": ("model/load", {"model": "/etc/passwd"}),
    "a path upwards": ("model/load", {"model": "../../etc/passwd"}),
    "a path to pull": ("model/pull", {"model": "../../etc/passwd"}),
    "text of a broken model": ("generate", {"model": "broken", "prompt": "my secret prompt"}),
    "tokens of a broken model": ("tokenize", {"model": "broken", "text": "my secret prompt"}),
    "an unknown topic": ("server/subscribe", {"topics": ["nothing"]}),
    "an unknown param": ("server/info", {"x": 1}),
    "an unknown method": ("no/method", {}),
    "an unload of what is not loaded": ("model/unload", {"model": "owner/unknown"}),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each request's answer from one real process."""
    with ExitStack() as stack:
        user = User(tmp_path_factory.mktemp("user"), stack)
        user.config.write_text(CONFIG)
        (user.folder / "empty").mkdir()
        (user.folder / "broken").mkdir()
        (user.folder / "broken" / "config.json").write_text("{")
        finished = user.run(
            "stdio", stdin=b"".join(request(name, *asked) for name, asked in REQUESTS.items())
        )
        assert "Traceback" not in finished.stderr
        told = {answer["id"]: answer for answer in finished.messages if "id" in answer}
        told["folder"] = user.folder
        return told


@pytest.mark.parametrize("name", REQUESTS)
def test_an_error_says_what_is_wrong_and_nothing_about_the_host(answers: dict[str, Any], name: str) -> None:
    error = answers[name]["error"]
    assert error["code"] == {kind.value: code for kind, code in ERROR_CODES.items()}[error["data"]["kind"]]
    assert error["data"]["kind"] != "internal"
    text = msgspec.json.encode(error).decode()
    for secret in (answers["folder"], Path.home(), sys.prefix, sys.base_prefix):
        assert str(secret) not in text
    for trace in ("Traceback", "Errno", ".py", "secret prompt"):
        assert trace not in text


def test_a_model_that_is_not_pulled_is_told_how_to_fetch_it(answers: dict[str, Any]) -> None:
    error = answers["a model that is not pulled"]["error"]
    assert error["data"]["kind"] == "model_not_found"
    assert "mlxsup pull owner/unpulled" in error["message"]
