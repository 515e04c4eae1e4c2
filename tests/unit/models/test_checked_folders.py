"""A folder that has not changed is not read again, and every change is found."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.models import checked_folders
from mlxsup.supervisor.models.checked_folders import CheckedFolders
from mlxsup.supervisor.models.folder_check import FolderFacts, check_folder
from tests.fakes.model_folder import CONFIG, make_model_folder

# Every file of a test is older than this.
LATER_S = 3600.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model_folder(tmp_path / "model")


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were read."""
    read: list[Path] = []

    def check(folder: Path) -> FolderFacts:
        read.append(folder)
        return check_folder(folder)

    monkeypatch.setattr(checked_folders, "check_folder", check)
    return read


def later() -> float:
    return time.time() + LATER_S


def test_a_folder_that_has_not_changed_is_read_once(model: Path, checks: list[Path]) -> None:
    folders = CheckedFolders(later)
    facts = [folders.check(model) for _ in range(3)]
    assert facts == [check_folder(model)] * 3
    assert checks == [model]


def test_a_folder_that_changed_a_moment_ago_is_read_again_since_it_may_have_changed_twice(
    model: Path, checks: list[Path]
) -> None:
    folders = CheckedFolders()
    os.utime(model / "config.json", (later(), later()))
    for _ in range(2):
        folders.check(model)
    assert checks == [model] * 2


def write_in_place(model: Path) -> None:
    """Of the same size, and with the time that it had."""
    file = model / "tokenizer.json"
    before = file.stat()
    file.write_text("[]")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(model: Path) -> None:
    other = model.parent / "other"
    other.write_text("{}")
    other.replace(model / "tokenizer.json")


def link(model: Path) -> None:
    (model / "tokenizer.json").rename(model / "shared.json")
    (model / "tokenizer.json").symlink_to("shared.json")


def remove(model: Path) -> None:
    (model / "shared.txt").unlink()


def add(model: Path) -> None:
    (model / "more.txt").write_text("")


@pytest.mark.parametrize("change", [write_in_place, replace, link, remove, add])
def test_a_change_of_any_file_is_found(
    model: Path, checks: list[Path], change: Callable[[Path], None]
) -> None:
    (model / "shared.txt").write_text("")
    folders = CheckedFolders(later)
    folders.check(model)
    change(model)
    folders.check(model)
    folders.check(model)
    assert checks == [model] * 2


def test_what_a_link_leads_to_is_seen_through_it(model: Path, checks: list[Path]) -> None:
    link(model)
    folders = CheckedFolders(later)
    folders.check(model)
    (model / "shared.json").write_text("[]")
    folders.check(model)
    assert checks == [model] * 2


def test_a_folder_that_became_bad_is_refused_and_each_time_it_is_asked_for(model: Path) -> None:
    folders = CheckedFolders(later)
    folders.check(model)
    config = json.dumps({**CONFIG, "auto_map": {"AutoModel": "code.Model"}})
    (model / "config.json").write_text(config)
    for _ in range(2):
        with pytest.raises(RpcError, match="code"):
            folders.check(model)
    (model / "config.json").write_text(json.dumps(CONFIG))
    folders.check(model)


def test_a_folder_that_went_away_is_refused(model: Path) -> None:
    folders = CheckedFolders(later)
    folders.check(model)
    model.rename(model.parent / "elsewhere")
    with pytest.raises(RpcError, match="isn't there"):
        folders.check(model)
