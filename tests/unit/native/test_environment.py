"""What a worker's environment is given, and what `mlxsup doctor` is told."""

import sys
from pathlib import Path

import pytest

from mlxsup.native import Part, blas, inventory, parts, preload_environment

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="there is nothing to preload but on Linux")


class Finder:
    """Stands in for a function that looks for a file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __call__(self, *_name: str) -> Path | None:
        return self.path


@pytest.fixture
def both_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    for module in (blas, inventory):
        monkeypatch.setattr(module, "blas_bridge_path", Finder(Path("/lib/bridge.so")))
        monkeypatch.setattr(module, "openblas_library_path", Finder(Path("/lib/openblas.so")))


@linux_only
@pytest.mark.usefixtures("both_present")
def test_the_environment_preloads_the_bridge_and_names_openblas() -> None:
    assert preload_environment(threads=3) == {
        "LD_PRELOAD": "/lib/bridge.so",
        "MLXSUP_OPENBLAS": "/lib/openblas.so",
        "OPENBLAS_NUM_THREADS": "3",
    }


@linux_only
@pytest.mark.usefixtures("both_present")
def test_what_was_preloaded_before_stays_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/lib/other.so")
    assert preload_environment(threads=1)["LD_PRELOAD"] == "/lib/bridge.so:/lib/other.so"


@pytest.mark.usefixtures("both_present")
@pytest.mark.parametrize(
    ("function", "path"),
    [
        ("blas_bridge_path", None),
        ("openblas_library_path", None),
        ("blas_bridge_path", Path("/my lib/bridge.so")),
        ("blas_bridge_path", Path("/my:lib/bridge.so")),
    ],
)
def test_nothing_is_preloaded_that_could_not_work(
    monkeypatch: pytest.MonkeyPatch, function: str, path: Path | None
) -> None:
    monkeypatch.setattr(blas, function, Finder(path))
    assert preload_environment(threads=1) == {}


def test_openblas_needs_a_thread() -> None:
    with pytest.raises(ValueError, match="0 threads"):
        preload_environment(threads=0)


@linux_only
@pytest.mark.usefixtures("both_present")
@pytest.mark.parametrize(
    ("function", "path", "names", "reason"),
    [
        ("shared_object_path", None, ["orphan_watch", "signal_origin"], "not built"),
        ("blas_bridge_path", None, ["blas_bridge"], "not built"),
        ("blas_bridge_path", Path("/my lib/bridge.so"), ["blas_bridge"], "a space or a colon"),
        ("openblas_library_path", None, ["openblas"], "no library"),
    ],
)
def test_a_missing_part_comes_with_its_reason_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch, function: str, path: Path | None, names: list[str], reason: str
) -> None:
    monkeypatch.setattr(inventory, "shared_object_path", Finder(Path("/lib/watch.so")))
    monkeypatch.setattr(inventory, function, Finder(path))
    missing = [part for part in parts() if not part.present]
    assert [part.name for part in missing] == names
    assert all(reason in str(part.reason) for part in missing)
    assert all(part.remedy for part in missing)


def test_a_platform_is_told_only_of_the_parts_that_it_has_a_use_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert [part.name for part in parts()] == ["orphan_watch", "signal_origin"]
    assert preload_environment(threads=1) == {}


def test_a_part_is_present_when_nothing_speaks_against_it() -> None:
    assert Part("name", "purpose").present
