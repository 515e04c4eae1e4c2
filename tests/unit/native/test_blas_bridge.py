"""The bridge against numpy, called directly, and under a real MLX, preloaded."""

import ctypes
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mlxsup.native import openblas_library_path, preload_environment

ROW_MAJOR, COL_MAJOR = 101, 102
NO_TRANS, TRANS, CONJ_TRANS = 111, 112, 113

Matrix = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def bridge(blas_bridge: Path) -> Iterator[ctypes.CDLL]:
    openblas = openblas_library_path()
    assert openblas is not None, "scipy-openblas32 is a dependency on Linux"
    with pytest.MonkeyPatch.context() as monkeypatch:
        # Read by the bridge at its first product.
        monkeypatch.setenv("MLXSUP_OPENBLAS", str(openblas))
        library = ctypes.CDLL(str(blas_bridge))
        multiply(library, np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))
        yield library


def multiply(library: ctypes.CDLL, a: Matrix, b: Matrix) -> Matrix:
    c = np.full((a.shape[0], b.shape[1]), np.nan, np.float32)
    gemm(
        library.cblas_sgemm,
        ROW_MAJOR,
        NO_TRANS,
        NO_TRANS,
        c.shape + b.shape[:1],
        ctypes.c_float(1),
        a,
        b,
        ctypes.c_float(0),
        c,
    )
    return c


def gemm(
    function: Callable[..., object],
    order: int,
    trans_a: int,
    trans_b: int,
    sizes: tuple[int, ...],
    alpha: object,
    a: npt.NDArray[np.generic],
    b: npt.NDArray[np.generic],
    beta: object,
    c: npt.NDArray[np.generic],
) -> None:
    m, n, k = sizes
    function(
        order, trans_a, trans_b, m, n, k,
        alpha, ctypes.c_void_p(a.ctypes.data), max(1, a.shape[1]), ctypes.c_void_p(b.ctypes.data), max(1, b.shape[1]),
        beta, ctypes.c_void_p(c.ctypes.data), max(1, c.shape[1]),
    )  # fmt: skip


def stored(matrix: Matrix, order: int, trans: int, padding: int) -> Matrix:
    """The bytes that BLAS would be given for a matrix: transposed or not, its rows apart by more than they hold."""
    rows = matrix if (order == ROW_MAJOR) == (trans == NO_TRANS) else matrix.T
    return np.pad(rows, ((0, 0), (0, padding)), constant_values=np.nan).copy()


@pytest.mark.parametrize("order", [ROW_MAJOR, COL_MAJOR])
@pytest.mark.parametrize(
    "shape",
    # A row, a column, both, neither; then with nothing in them: each goes through the bridge in its own way.
    [
        (1, 6, 5),
        (6, 1, 5),
        (1, 1, 5),
        (7, 6, 5),
        (1, 6, 1),
        (1, 6, 0),
        (6, 1, 0),
        (4, 6, 0),
        (0, 1, 5),
        (1, 0, 5),
    ],
)
def test_sgemm_agrees_with_numpy(bridge: ctypes.CDLL, order: int, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    random = np.random.default_rng(7)
    transpositions = (NO_TRANS, TRANS, CONJ_TRANS)
    factors = ((1.0, 0.0), (1.0, 1.0), (-0.5, 2.0), (0.0, 2.0), (0.0, 0.0))
    for trans_a, trans_b, (alpha, beta), padding in itertools.product(
        transpositions, transpositions, factors, (0, 3)
    ):
        a, b, c = (random.standard_normal(size, np.float32) for size in ((m, k), (k, n), (m, n)))
        expected = stored(alpha * (a @ b) + beta * c, order, NO_TRANS, padding)
        if beta == 0:
            c[:] = np.nan  # uninitialised memory, at its worst
        actual = stored(c, order, NO_TRANS, padding)
        stored_a, stored_b = stored(a, order, trans_a, padding), stored(b, order, trans_b, padding)
        gemm(
            bridge.cblas_sgemm, order, trans_a, trans_b, shape,
            ctypes.c_float(alpha), stored_a, stored_b, ctypes.c_float(beta), actual,
        )  # fmt: skip
        case = f"{trans_a=} {trans_b=} {alpha=} {beta=} {padding=}"
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5, err_msg=case)


@pytest.mark.parametrize("shape", [(1, 5, 700), (5, 1, 700), (6, 7, 8)])
def test_dgemm_and_cgemm_agree_with_numpy(bridge: ctypes.CDLL, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    random = np.random.default_rng(7)
    a, b = random.standard_normal((m, k)), random.standard_normal((k, n))
    c = np.full((m, n), np.nan)
    gemm(
        bridge.cblas_dgemm,
        ROW_MAJOR,
        NO_TRANS,
        NO_TRANS,
        shape,
        ctypes.c_double(2),
        a,
        b,
        ctypes.c_double(0),
        c,
    )
    np.testing.assert_allclose(c, 2 * (a @ b))

    complex_a = (a + 1j * a[::-1]).astype(np.complex64)
    complex_b = (b - 1j * b[::-1]).astype(np.complex64)
    complex_c = np.full((m, n), np.nan, np.complex64)
    two, zero = (ctypes.c_float * 2)(2, 0), (ctypes.c_float * 2)(0, 0)
    gemm(bridge.cblas_cgemm, ROW_MAJOR, NO_TRANS, NO_TRANS, shape, two, complex_a, complex_b, zero, complex_c)
    np.testing.assert_allclose(complex_c, 2 * (complex_a @ complex_b), rtol=1e-4, atol=1e-4)


MLX_PRODUCT = """
from pathlib import Path
import mlx.core as mx
from mlxsup.native import blas_bridge_active
print(blas_bridge_active())
left = mx.arange(12, dtype=mx.float32).reshape(3, 4)
right = mx.arange(20, dtype=mx.float32).reshape(4, 5)
print((left @ right).tolist())
print((left[:1] @ right).tolist())
print("scipy_openblas" in Path("/proc/self/maps").read_text())
"""


def mlx_product(environment: dict[str, str]) -> tuple[list[str], str]:
    child = subprocess.run(
        [sys.executable, "-P", "-c", MLX_PRODUCT],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return child.stdout.splitlines(), child.stderr


def expected_product() -> list[str]:
    left, right = np.arange(12.0).reshape(3, 4), np.arange(20.0).reshape(4, 5)
    return [str((left @ right).tolist()), str((left[:1] @ right).tolist())]


@pytest.mark.usefixtures("blas_bridge")
def test_a_preloaded_mlx_multiplies_with_openblas() -> None:
    lines, stderr = mlx_product(preload_environment(threads=1))
    assert lines == ["True", *expected_product(), "True"]
    assert stderr == ""


@pytest.mark.usefixtures("blas_bridge")
def test_without_openblas_mlx_multiplies_with_its_own_blas_and_says_so_once() -> None:
    environment = preload_environment(threads=1) | {"MLXSUP_OPENBLAS": "missing.so"}
    lines, stderr = mlx_product(environment)
    assert lines == ["False", *expected_product(), "False"]
    assert stderr.count("mlxsup blas_bridge: cannot use OpenBLAS") == 1
    assert "missing.so" in stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_without_the_bridge_says_so() -> None:
    lines, _ = mlx_product({"LD_PRELOAD": ""})
    assert lines == ["False", *expected_product(), "False"]
