"""What is in the sdist and in the wheel that is built from it. Needs no network: the build's requirements are in
the dev extra."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROOMS = ("supervisor", "worker", "protocol", "config", "native")

# -S keeps the editable install out of the way: what is imported is what was unpacked.
IMPORT_UNPACKED = """
from mlxsup.native import parts
missing = [part for part in parts() if not part.present]
print([part.name for part in missing])
"""


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_tells_type_checkers_that_it_is_typed(room: str) -> None:
    assert (ROOT / room / "py.typed").is_file()


@pytest.mark.parametrize("room", ROOMS)
def test_the_link_root_has_every_room(room: str) -> None:
    link = ROOT / "scripts" / "pkgroot" / "mlxsup" / room
    assert link.is_symlink()
    assert link.resolve() == (ROOT / room).resolve()
    assert not link.readlink().is_absolute()


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-P", "-c", build, folder], cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("mlxsup-*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "--wheel-dir", folder, sdist], check=True
    )
    (path,) = folder.glob("mlxsup-*.whl")
    return path


def sources() -> set[str]:
    """What a wheel has to hold: everything in the rooms but the C and what the tools left there."""
    files = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    return {name for name in files if not name.startswith(("native/src/", "native/CMakeLists.txt"))}


@pytest.mark.slow
def test_the_sdist_has_the_sources_once(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert sources() <= names
    assert {"LICENSE", "pyproject.toml", "native/CMakeLists.txt", "native/src/orphan_watch.c"} <= names
    assert not any(name.startswith(("scripts/pkgroot", ".venv", ".git/")) for name in names)


@pytest.mark.slow
def test_the_wheel_from_the_sdist_has_every_source_and_nothing_outside_the_namespace(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packaged = {name for name in names if ".dist-info/" not in name}
    compiled = {name for name in packaged if name.endswith(".so")}
    assert packaged - compiled == {f"mlxsup/{name}" for name in sources()}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler on this machine")
def test_the_wheel_is_for_any_python_3_of_the_platform_and_its_compiled_parts_work(
    wheel: Path, tmp_path: Path
) -> None:
    python, abi, platform = wheel.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none")
    assert platform != "any"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    child = subprocess.run(
        [sys.executable, "-S", "-P", "-c", IMPORT_UNPACKED],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    # Without site-packages only OpenBLAS's package is out of sight.
    assert child.stdout.strip() == ("['openblas']" if sys.platform == "linux" else "[]")
