from itertools import product

import numpy as np
import pytest
from numba import njit

from fastbp.codegen.memory import pointer
from fastbp.codegen.target import lanes
from fastbp.codegen.transpose import FEW_COLUMNS, to_columns, to_rows, transpose_tile

DTYPES = [np.float32, np.float64]
CANARY = -12345.0


@njit
def run_to_columns(rows, at, row, m, n, columns):
    to_columns(pointer(rows, at), row, m, n, pointer(columns, 0))


@njit
def run_to_rows(columns, m, n, rows, at, row):
    to_rows(pointer(columns, 0), m, n, pointer(rows, at), row)


def shapes(dtype):
    width = lanes(np.dtype(dtype).itemsize)
    sizes = {1, 2, width - 1, width}
    return width, product(sizes, sizes, (0, width))


@pytest.mark.parametrize("dtype", DTYPES)
def test_to_columns(dtype):
    width, cases = shapes(dtype)
    for m, n, gap in cases:
        row = width + gap
        rows = np.random.default_rng(0).normal(size=(m, row)).astype(dtype)
        memory = np.concatenate([np.full(3, np.nan), rows.ravel(), np.full(width * row, np.nan)]).astype(dtype)
        columns = np.full((width, width), CANARY, dtype)
        run_to_columns(memory, 3, row, m, n, columns.ravel())
        np.testing.assert_array_equal(columns[:n, :m], rows[:, :n].T)
        assert not columns[:n, m:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_to_rows(dtype):
    width, cases = shapes(dtype)
    for m, n, gap in cases:
        row = width + gap
        columns = np.random.default_rng(1).normal(size=(width, width)).astype(dtype)
        expected = np.full((m + 2, row), CANARY, dtype)
        rows = expected.copy()
        expected[1:-1, :width] = 0
        expected[1:-1, :n] = columns[:n, :m].T
        run_to_rows(columns.ravel(), m, n, rows.ravel(), row, row)
        np.testing.assert_array_equal(rows, expected)


@njit
def run_transpose(n, source, at, source_row, out, out_at, out_row):
    transpose_tile(n, pointer(source, at), source_row, pointer(out, out_at), out_row)


@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose_tile(dtype):
    width = lanes(np.dtype(dtype).itemsize)
    rows = [(width, width), (width + 3, width), (width, width + 5), (4 * width, 3 * width)]
    for (source_row, out_row), n in product(rows, range(1, width + 3)):
        source = np.arange(1.0, source_row * (width + 1) + 1, dtype=dtype).reshape(width + 1, source_row)
        out = np.full((width + 2, out_row), CANARY, dtype)
        run_transpose(n, source.ravel(), 0, source_row, out.ravel(), out_row, out_row)
        expected = np.full_like(out, CANARY)
        written = min(FEW_COLUMNS, width) if n <= FEW_COLUMNS else width
        expected[1 : 1 + written, :width] = source[:width, :written].T
        np.testing.assert_array_equal(out, expected)
