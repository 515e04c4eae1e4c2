"""Names are of files that installed packages really have."""

import subprocess
import sys

import pytest

from mlxsup.supervisor.recovery.source_files import is_source_file


@pytest.mark.parametrize("name", ["mlx_lm/generate.py", "mlxsup/worker/batch_loop.py", "threading.py"])
def test_a_file_of_an_installed_package_is_one(name: str) -> None:
    assert is_source_file(name)


@pytest.mark.parametrize(
    "name",
    [
        "mlx_lm/my_password.py",
        "mlx_lm/generate",
        "no_such_package/x.py",
        "mlx_lm.py",
        f"mlx_lm/{'x' * 9999}.py",
    ],
)
def test_what_no_package_has_is_none(name: str) -> None:
    assert not is_source_file(name)


def test_nothing_is_imported_to_find_out() -> None:
    script = (
        "import sys; from mlxsup.supervisor.recovery.source_files import is_source_file; "
        "assert is_source_file('mlx_lm/generate.py'); assert 'mlx_lm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
