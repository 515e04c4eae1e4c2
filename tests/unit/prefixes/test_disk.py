"""The folder of stretches: below its quota, private, shared by workers, and never believed."""

import os
import stat
import time
from pathlib import Path

import pytest

from mlxsup.protocol.worker_link import REQUEST_MARK
from mlxsup.worker.engine.prefixes import disk as disk_module
from mlxsup.worker.engine.prefixes.disk import Disk
from tests.unit.prefixes.written import IDENTITY, file_of, label_of, tensors_of, tokens_of

MUCH = 1 << 30
WAIT_S = 20.0
SIZE = len(file_of("a" * 20))


def open_disk(folder: Path, *, bytes_max: int = MUCH, identity: str = IDENTITY) -> Disk:
    return Disk(folder, identity, bytes_max)


def write(disk: Disk, text: str, start: int = 0) -> None:
    assert disk.write("", tokens_of(text), label_of(text, start, identity=disk.identity), tensors_of(text))
    assert disk.wait(WAIT_S)


def read(disk: Disk, text: str, known: int = 0) -> str:
    """The characters of what was read, with the tensors that only this text has."""
    found = disk.read("", tokens_of(text), known)
    for stored in found:
        before = text[: stored.label.start]
        own = "".join(map(chr, stored.label.tokens.tolist()))
        assert [bytes(t.data) for t in stored.tensors] == [bytes(t.data) for t in tensors_of(before + own)]
    return "".join(chr(token) for stored in found for token in stored.label.tokens.tolist())


def test_what_one_worker_wrote_the_next_one_reads(tmp_path: Path) -> None:
    first = open_disk(tmp_path / "model")
    write(first, "hello ")
    write(first, "hello world", 6)

    second = open_disk(tmp_path / "model")
    assert second.reach("", tokens_of("hello world!")) == 11
    assert read(second, "hello world!") == "hello world"
    assert read(second, "hello world!", known=6) == "world"
    assert read(second, "another") == ""
    assert second.bytes == first.bytes == sum(path.stat().st_size for path in (tmp_path / "model").iterdir())


def test_only_the_user_reads_them(tmp_path: Path) -> None:
    write(open_disk(tmp_path / "model"), "hello")

    (path,) = (tmp_path / "model").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o700


def test_a_worker_that_is_there_already_sees_what_another_one_writes(tmp_path: Path) -> None:
    old, new = open_disk(tmp_path), open_disk(tmp_path)
    write(old, "hello")

    assert read(new, "hello") == "hello"


def test_what_another_model_or_engine_wrote_is_deleted(tmp_path: Path) -> None:
    write(open_disk(tmp_path, identity="another"), "hello")

    assert read(open_disk(tmp_path), "hello") == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [3, 40, -1], ids=["length", "header", "data"])
def test_one_that_is_damaged_is_deleted_and_said_and_never_used(
    tmp_path: Path, place: int, capfd: pytest.CaptureFixture[str]
) -> None:
    write(open_disk(tmp_path), "hello")
    disk = open_disk(tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)

    assert read(disk, "hello") == ""
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err.startswith(f"{REQUEST_MARK}prefix cache: cannot use ")
    write(disk, "hello")
    assert read(disk, "hello") == "hello"


def test_one_that_is_cut_off_is_gone_before_anybody_asks(tmp_path: Path) -> None:
    write(open_disk(tmp_path), "hello")
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])

    assert open_disk(tmp_path).bytes == 0
    assert list(tmp_path.iterdir()) == []


def test_behind_one_that_is_damaged_nothing_is_used(tmp_path: Path) -> None:
    disk = open_disk(tmp_path)
    write(disk, "hello ")
    write(disk, "hello world", 6)
    name = next(path for path in tmp_path.iterdir() if file_of("hello ") == path.read_bytes())
    name.write_bytes(file_of("hello ")[:-1] + b"?")

    assert read(disk, "hello world") == ""


def test_one_that_somebody_deleted_is_no_trouble(tmp_path: Path) -> None:
    disk = open_disk(tmp_path)
    write(disk, "hello")
    for path in tmp_path.iterdir():
        path.unlink()

    assert read(disk, "hello") == ""
    assert disk.bytes == 0


def test_over_its_quota_the_one_used_longest_ago_goes_also_after_a_restart(tmp_path: Path) -> None:
    first = open_disk(tmp_path, bytes_max=2 * SIZE + 10)
    write(first, "a" * 20)
    write(first, "b" * 20)
    _age(tmp_path)
    assert read(first, "a" * 20) == "a" * 20

    second = open_disk(tmp_path, bytes_max=2 * SIZE + 10)
    write(second, "c" * 20)
    assert [read(second, letter * 20) for letter in "abc"] == ["a" * 20, "", "c" * 20]
    assert second.bytes <= 2 * SIZE + 10
    assert len(list(tmp_path.iterdir())) == 2


def test_a_smaller_quota_is_kept_from_the_start(tmp_path: Path) -> None:
    first = open_disk(tmp_path)
    for letter in "abc":
        write(first, letter * 20)
        _age(tmp_path)

    assert open_disk(tmp_path, bytes_max=SIZE).bytes == SIZE
    assert len(list(tmp_path.iterdir())) == 1


def test_what_alone_is_over_the_quota_is_not_written(tmp_path: Path) -> None:
    disk = open_disk(tmp_path, bytes_max=100)
    write(disk, "a" * 100)

    assert list(tmp_path.iterdir()) == []


def test_while_too_much_waits_to_be_written_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = open_disk(tmp_path)
    monkeypatch.setattr(disk_module, "QUEUED_BYTES_MAX", 10)

    assert not disk.write("", tokens_of("hello"), label_of("hello"), tensors_of("hello"))


def test_a_full_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = open_disk(tmp_path)
    monkeypatch.setattr(disk_module, "FREE_BYTES_MIN", 1 << 62)
    write(disk, "hello")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_had_is_said_and_costs_no_request(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    disk = open_disk(tmp_path / "file" / "model")
    write(disk, "hello")

    assert read(disk, "hello") == ""
    assert REQUEST_MARK in capfd.readouterr().err


def test_what_a_killed_worker_did_not_finish_is_swept_away_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    (tmp_path / f"a.safetensors.{dead}.tmp").write_bytes(b"half")
    (tmp_path / f"b.safetensors.{os.getpid()}.tmp").write_bytes(b"half")
    open_disk(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == [f"b.safetensors.{os.getpid()}.tmp"]


def test_the_same_stretch_is_written_once(tmp_path: Path) -> None:
    disk = open_disk(tmp_path)
    write(disk, "hello")
    (path,) = tmp_path.iterdir()
    inode = path.stat().st_ino
    write(disk, "hello")

    assert [path.stat().st_ino for path in tmp_path.iterdir()] == [inode]


def _age(folder: Path) -> None:
    """Every file was used a while before now."""
    for path in folder.iterdir():
        moment_s = path.stat().st_mtime - 10
        os.utime(path, (time.time(), moment_s))
