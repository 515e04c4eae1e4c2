"""A model that can't be loaded gives a typed error that says what to do; the supervisor and its other models live on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.errors import ErrorKind, RpcError
from tests.mlx.serving.conftest import WAIT_S


def truncate_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])


def remove_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


BAD = {
    "truncated": (truncate_weights, "pull"),
    "no-tokenizer": (remove_tokenizer, "tokenizer"),
    "architecture": (edit_config(model_type="unheard_of"), "architecture"),
    "pickle-only": (only_pickle, "safetensors"),
    "remote-code": (edit_config(auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "model-file": (edit_config(model_file="evil.py"), "model_file"),
    "wrong-shape": (edit_config(hidden_size=64), "model"),
    "broken-tokenizer": (break_tokenizer, "tokenizer"),
}


@pytest.fixture(scope="module")
def bad_models(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A supervisor that has one bad model of each kind configured, each in a folder of its own."""
    root = tmp_path_factory.mktemp("bad")
    toml = ""
    for name, (spoil, _) in BAD.items():
        shutil.copytree(model_folder, root / name)
        (root / name / "mlxsup.json").unlink()
        spoil(root / name)
        toml += f'[models.{name}]\nsource = "./{name}"\n'
    (root / "config.toml").write_text(toml)
    socket = root / "s.sock"
    command = [sys.executable, "-P", "-m", "mlxsup.supervisor", "start"]
    arguments = ["--config", str(root / "config.toml"), "--socket", str(socket)]
    environment = {**os.environ, "MLXSUP_STATE": str(root / "state")}
    with subprocess.Popen([*command, *arguments], env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert any(b"listening" in line for line in process.stderr)
        try:
            yield socket
        finally:
            process.terminate()
            process.communicate(timeout=30)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_is_refused_with_what_to_do_and_no_path(bad_models: Path, name: str) -> None:
    with Client.connect(bad_models, timeout_s=WAIT_S) as client:
        with pytest.raises(RpcError) as raised:
            client.call("generate", {"model": name, "prompt": "x"})
        health = client.call("server/health")

    assert raised.value.kind is ErrorKind.MODEL_LOAD_FAILED
    assert BAD[name][1] in raised.value.message
    assert str(bad_models.parent) not in raised.value.message
    assert health.models[name].state == "failed"
    assert health.models[name].reason == raised.value.message
    print(raised.value.message)


def test_an_unknown_model_is_not_found_and_says_how_to_get_one(bad_models: Path) -> None:
    with Client.connect(bad_models, timeout_s=WAIT_S) as client, pytest.raises(RpcError) as raised:
        client.call("generate", {"model": "nobody/nothing", "prompt": "x"})

    assert raised.value.kind is ErrorKind.MODEL_NOT_FOUND
    assert "mlxsup pull nobody/nothing" in raised.value.message


def test_a_folder_can_not_be_named_by_a_client(bad_models: Path) -> None:
    with Client.connect(bad_models, timeout_s=WAIT_S) as client, pytest.raises(RpcError) as raised:
        client.call("generate", {"model": "../truncated", "prompt": "x"})

    assert (raised.value.kind, raised.value.data.path) == (ErrorKind.INVALID_PARAMS, "$.model")
