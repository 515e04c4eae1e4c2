"""Whose caches they are: the model's and the engine's that computed them."""

from pathlib import Path

import pytest

from mlxsup.worker.engine.prefixes import identity
from mlxsup.worker.engine.prefixes.identity import folder_identity

WEIGHTS = b"0123456789" * 100_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"layers": 2}')
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "README.md").write_text("hello")
    return tmp_path


def test_it_stays_what_it_is(folder: Path) -> None:
    before = folder_identity(folder, "cpu")
    (folder / "README.md").write_text("something else")

    assert folder_identity(folder, "cpu") == before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.json").write_text('{"layers": 3}'),
        lambda folder: (folder / "model.safetensors").write_bytes(WEIGHTS + b"0"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" + WEIGHTS[1:]),
        lambda folder: (folder / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"x"),
        lambda folder: (folder / "model-2.safetensors").write_bytes(b""),
    ],
    ids=["configuration", "size", "header", "end", "one more file"],
)
def test_another_model_is_another_one(folder: Path, change: object) -> None:
    before = folder_identity(folder, "cpu")
    assert callable(change)
    change(folder)

    assert folder_identity(folder, "cpu") != before


def test_another_engine_is_another_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = folder_identity(folder, "cpu")
    assert folder_identity(folder, "gpu") != before
    monkeypatch.setattr(identity, "version", lambda _: "99")
    assert folder_identity(folder, "cpu") != before
