"""Who may import what. The rest of the rules are contracts of import-linter, in pyproject.toml: it can forbid
modules, but not name the only ones that are allowed, and it cannot see what happens at run time.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# All that these rooms may import, besides the standard library and themselves.
ALLOWED = {
    "protocol": {"msgspec"},
    "config": {"msgspec", "mlxsup.protocol"},
    "native": set[str](),
}
EXCEPTIONS = {"protocol/client/aio.py": {"trio"}}  # the client for programs that run Trio


def imported_modules(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from mlxsup import worker` names its room only there.
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "mlxsup" else (module,)


def room_or_package(module: str) -> str:
    first, _, rest = module.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first == "mlxsup" else first


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    strangers = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        allowed = ALLOWED[room] | EXCEPTIONS.get(name, set()) | sys.stdlib_module_names | {f"mlxsup.{room}"}
        imported = {room_or_package(module) for module in imported_modules(path.read_text(encoding="utf-8"))}
        if not imported <= allowed:
            strangers[name] = imported - allowed
    assert strangers == {}


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import mlx.core as mx", ["mlx"]),
        ("from mlxsup.worker.engine import text", ["mlxsup.worker"]),
        ("from mlxsup import worker", ["mlxsup.worker"]),
        ("def lazily():\n    import trio", ["trio"]),
    ],
)
def test_every_form_of_import_is_seen(source: str, modules: list[str]) -> None:
    assert [room_or_package(module) for module in imported_modules(source)] == modules


IMPORT_ALL = """
import importlib, json, pkgutil, sys
for room in sys.argv[1:]:
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(".__main__"):  # importing that is running it
            importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def modules_loaded_by(*rooms: str) -> set[str]:
    child = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT_ALL, *rooms], stdout=subprocess.PIPE, check=True
    )
    return {room_or_package(module) for module in json.loads(child.stdout)}


def test_importing_the_whole_supervisor_loads_nothing_of_mlx() -> None:
    loaded = modules_loaded_by("mlxsup.supervisor", "mlxsup.config", "mlxsup.protocol", "mlxsup.native")
    computing = {
        "mlx",
        "mlx_lm",
        "mlx_vlm",
        "transformers",
        "outlines",
        "outlines_core",
        "numpy",
        "mlxsup.worker",
    }
    assert "mlxsup.supervisor" in loaded
    assert not loaded & computing


@pytest.mark.slow
def test_importing_the_whole_worker_loads_nothing_of_the_supervisor() -> None:
    loaded = modules_loaded_by("mlxsup.worker")
    assert "mlxsup.worker" in loaded
    # Not looked for here: trio, click and psutil, which mlx-lm's own dependencies load where they are installed.
    assert not loaded & {"mlxsup.supervisor", "mlxsup.config"}
