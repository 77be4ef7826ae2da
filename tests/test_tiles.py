from itertools import product

import numpy as np
import pytest
from exact import fma_naive
from numba import njit

from fastbp.codegen.memory import pointer
from fastbp.codegen.rows import ROW_VECTORS, row_kernel, short_row_kernel
from fastbp.codegen.target import lanes
from fastbp.codegen.tiles import (
    MR,
    NV,
    micro_kernel,
    micro_kernel_indexed,
    micro_kernel_prefetch,
    micro_kernel_prefetch_write,
)

DTYPES = [np.float32, np.float64]
# What lies around the outputs: no kernel computes it.
CANARY = -12345.0


def tile_naive(a, b, d):
    """C = D + A B, each element one chain of fused multiply-adds."""
    c = d.copy()
    for i, j in np.ndindex(c.shape):
        for p in range(a.shape[1]):
            c[i, j] = fma_naive(a[i, p], b[p, j], c[i, j], c.dtype.type)
    return c


@njit
def run_tile(mr, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_at, c_row):
    a, b, d, c = pointer(a, 0), pointer(b, 0), pointer(d, 0), pointer(c, c_at)
    micro_kernel(mr, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


def tile(mr, nv, a, b, d, *, transposed=False, gap=3):
    """Run the kernel on padded copies, check that it writes only its tile, and return that."""
    dtype = b.dtype
    n = nv * lanes(dtype.itemsize)
    k = a.shape[1]
    a = np.pad(a[:mr].T if transposed else a[:mr], ((0, 1), (0, gap)), constant_values=np.nan)
    a_row, a_col = (1, a.shape[1]) if transposed else (a.shape[1], 1)
    b = np.pad(b[:, :n], ((0, 1), (0, gap)), constant_values=np.nan)
    d_row = 0 if d.ndim == 1 else n + gap + 1
    d = d[:n] if d.ndim == 1 else np.pad(d[:mr, :n], ((0, 0), (0, gap + 1)), constant_values=np.nan)
    c = np.full((mr + 2, n + gap), CANARY, dtype)
    place = (c.ravel(), n + gap, n + gap)
    run_tile(mr, nv, k, a.ravel(), a_row, a_col, b.ravel(), n + gap, d.ravel(), d_row, *place)
    inside = c[1:-1, :n].copy()
    c[1:-1, :n] = CANARY
    assert (c == CANARY).all()
    return inside


def operands(dtype, k, seed=0):
    rng = np.random.default_rng(seed)
    n = NV * lanes(np.dtype(dtype).itemsize)
    return [rng.normal(size=shape).astype(dtype) for shape in [(MR, k), (k, n), (MR, n)]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_tile_is_a_chain_of_fused_multiply_adds(dtype, k):
    a, b, d = operands(dtype, k)
    expected = tile_naive(a, b, d)
    for mr in range(1, MR + 1):
        for nv in range(1, NV + 1):
            n = nv * lanes(b.itemsize)
            for transposed in (False, True):
                np.testing.assert_array_equal(tile(mr, nv, a, b, d, transposed=transposed), expected[:mr, :n])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_the_same_bits_in_tiles_of_any_shape(dtype):
    a, b, d = operands(dtype, 300)
    alone = np.vstack([tile(1, NV, a[i:], b, d[i:]) for i in range(MR)])
    for mr in range(1, MR + 1):
        for nv in range(1, NV + 1):
            n = nv * lanes(b.itemsize)
            for gap in (0, 5):
                np.testing.assert_array_equal(tile(mr, nv, a, b, d, gap=gap), alone[:mr, :n])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reduction_may_be_cut_and_continued(dtype):
    a, b, d = operands(dtype, 41)
    whole = tile(MR, NV, a, b, d)
    for cut in (1, 16, 40):
        begun = tile(MR, NV, a[:, :cut], b[:cut], d)
        np.testing.assert_array_equal(tile(MR, NV, a[:, cut:], b[cut:], begun), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tile_starts_from_one_row_or_from_itself(dtype):
    a, b, d = operands(dtype, 7)
    n = d.shape[1]
    expected = tile(MR, NV, a, b, np.tile(d[0], (MR, 1)))
    np.testing.assert_array_equal(tile(MR, NV, a, b, d[0]), expected)
    c = np.tile(d[0], (MR, 1))
    run_tile(MR, NV, 7, a.ravel(), 7, 1, b.ravel(), n, c.ravel(), n, c.ravel(), 0, n)
    np.testing.assert_array_equal(c, expected)


@njit
def run_indexed(mr, nv, indices, a, a_row, a_col, b, b_row, d, d_row, c, c_at, c_row):
    k, indices = indices.size, pointer(indices, 0)
    a, b, d, c = pointer(a, 0), pointer(b, 0), pointer(d, 0), pointer(c, c_at)
    micro_kernel_indexed(mr, nv, k, indices, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tile_over_a_list_of_indices(dtype):
    a, b, d = operands(dtype, 50)
    row = b.shape[1]
    for indices in ([0], [49], [3, 4, 20, 41], range(50)):
        numbers = np.array(indices, np.int32)
        for mr in range(1, MR + 1):
            for nv in range(1, NV + 1):
                n = nv * lanes(b.itemsize)
                expected = np.full((mr + 2, n + 3), CANARY, dtype)
                expected[1:-1, :n] = tile(mr, nv, a[:, numbers], b[numbers], d)
                for values, a_row, a_col in [(a, 50, 1), (np.ascontiguousarray(a.T), 1, MR)]:
                    c = np.full_like(expected, CANARY)
                    place = (c.ravel(), n + 3, n + 3)
                    args = (numbers, values.ravel(), a_row, a_col, b.ravel(), row, d.ravel(), row)
                    run_indexed(mr, nv, *args, *place)
                    np.testing.assert_array_equal(c, expected)


@njit
def run_lines(mr, nv, k, lines, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    n_lines, lines = lines.size, pointer(lines, 0)
    a, b, d, c = pointer(a, 0), pointer(b, 0), pointer(d, 0), pointer(c, 0)
    micro_kernel_prefetch(mr, nv, k, lines, n_lines, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@njit
def run_lines_write(mr, nv, k, lines, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    n_lines, lines = lines.size, pointer(lines, 0)
    a, b, d, c = pointer(a, 0), pointer(b, 0), pointer(d, 0), pointer(c, 0)
    micro_kernel_prefetch_write(mr, nv, k, lines, n_lines, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", [run_lines, run_lines_write])
def test_tile_that_prefetches(run, dtype):
    a, b, d = operands(dtype, 50)
    row = b.shape[1]
    for n_lines in (1, 7, 50, 60):
        # A prefetch neither reads nor writes: any address will do.
        lines = np.arange(n_lines) * 64
        for mr in range(1, MR + 1):
            for nv in range(1, NV + 1):
                c = np.zeros((mr, nv * lanes(b.itemsize)), dtype)
                args = (lines, a.ravel(), 50, 1, b.ravel(), row, d.ravel(), row)
                run(mr, nv, 50, *args, c.ravel(), c.shape[1])
                np.testing.assert_array_equal(c, tile(mr, nv, a, b, d))


@njit
def run_row(n, k, x, w, w_row, d, out, out_at):
    row_kernel(n, k, pointer(x, 0), pointer(w, 0), w_row, pointer(d, 0), pointer(out, out_at))


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_kernel_has_the_bits_of_the_tile(dtype):
    width = lanes(np.dtype(dtype).itemsize)
    rng = np.random.default_rng(4)
    most = ROW_VECTORS * width
    x = rng.normal(size=(1, 50)).astype(dtype)
    w = rng.normal(size=(50, most)).astype(dtype)
    d = rng.normal(size=(1, most)).astype(dtype)
    for k in (1, 50):
        expected = np.hstack([tile(1, 1, x[:, :k], w[:k, j:], d[:, j:]) for j in range(0, most, width)])[0]
        for n in range(1, most + 1):
            written = -(-n // width) * width
            out = np.full(written + 2, CANARY, dtype)
            run_row(n, k, x.ravel(), w[:, :n].ravel(), n, d[0, :n].copy(), out, 1)
            np.testing.assert_array_equal(out, [CANARY, *expected[:n], *[0] * (written - n), CANARY])


@njit
def run_short_row(n, k, x, w, d, out, out_at):
    short_row_kernel(n, k, pointer(x, 0), pointer(w, 0), pointer(d, 0), pointer(out, out_at))


@pytest.mark.parametrize("dtype", DTYPES)
def test_short_row_kernel(dtype):
    width = lanes(np.dtype(dtype).itemsize)
    rng = np.random.default_rng(4)
    for vectors, k in product(range(1, NV + 1), range(1, 23)):
        n = vectors * width
        # Sums of whole numbers are exact in any order.
        x, w, d = (rng.integers(-9, 10, shape).astype(dtype) for shape in (k, (k, n), n))
        out = np.full(n + 2, CANARY, dtype)
        run_short_row(n, k, x, w.ravel(), d, out, 1)
        np.testing.assert_array_equal(out, [CANARY, *(d + x @ w), CANARY])
