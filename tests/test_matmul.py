from itertools import product

import numpy as np
import pytest
from numba import njit
from products import CANARY, guarded, pack_naive, whole_numbers

from fastbp.codegen.memory import pointer
from fastbp.codegen.target import lanes
from fastbp.codegen.tiles import MR, NV
from fastbp.kernels.addresses import kernel_addresses
from fastbp.kernels.matmul import (
    matmul,
    matmul_transposed,
    multiply_panel,
    multiply_panel_prefetch_write,
    multiply_transposed,
    pack_transpose,
)
from fastbp.kernels.plan import BLOCK_ROWS, TRANSPOSED_BLOCKS, piece_columns, reduction_block, transposed_size

DTYPES = [np.float32, np.float64]


@njit
def run_matmul(kernels, m, n, k, a, a_row, panels, panel_rows, d, d_row, c, c_at, c_row):
    a, panels, d, c = pointer(a, 0), pointer(panels, 0), pointer(d, 0), pointer(c, c_at)
    matmul(pointer(kernels, 0), m, n, k, a, a_row, panels, panel_rows, d, d_row, c, c_row)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul(dtype):
    rng = np.random.default_rng(0)
    width = lanes(np.dtype(dtype).itemsize)
    # Every number of vectors, just filled, one short and one over; two panels and the beginning of a third.
    columns = {n for vectors in range(2 * NV + 1) for n in (vectors * width + i for i in (-1, 0, 1)) if n > 0}
    for count, (m, n) in enumerate(product(range(1, 2 * MR + 2), sorted(columns))):
        k = count % 40 + 1
        a_gap, b_gap, c_gap = count % 3, count % 4, count % 5
        a = whole_numbers(rng, m, k, dtype=dtype)
        b = whole_numbers(rng, k, n, dtype=dtype)
        written = -(-n // width) * width
        d = whole_numbers(rng, written, dtype=dtype)
        c = guarded(m, written + c_gap, dtype)
        expected = c.copy()
        # Columns that pad B are zero, so that what pads d comes through.
        expected[1:-1, :written] = d
        expected[1:-1, :n] += a @ b
        wide = np.pad(a, ((0, 0), (0, a_gap)), constant_values=np.nan)
        panels = pack_naive(np.vstack([b, np.full((b_gap, n), np.nan)]), k + b_gap, dtype)
        place = (c.ravel(), c.shape[1], c.shape[1])
        for kernels in (kernel_addresses(dtype), kernel_addresses(dtype, few_rows=True)):
            c[1:-1, :written] = np.nan
            run_matmul(kernels, m, n, k, wide.ravel(), k + a_gap, panels, k + b_gap, d, 0, *place)
            np.testing.assert_array_equal(c, expected, err_msg=f"{m=} {n=} {k=}")
            # The sum is continued from C.
            c[1:-1, :written] = d
            run_matmul(kernels, m, n, k, wide.ravel(), k + a_gap, panels, k + b_gap, c[1:].ravel(), c.shape[1], *place)
            np.testing.assert_array_equal(c, expected, err_msg=f"{m=} {n=} {k=}")


@njit
def run_matmul_transposed(kernels, m, n, k, a, a_row, panels, panel_rows, columns, d, c, c_at, c_row, space):
    a, panels, d, c = pointer(a, 0), pointer(panels, 0), pointer(d, 0), pointer(c, c_at)
    space = pointer(space, 0)
    matmul_transposed(pointer(kernels, 0), m, n, k, a, a_row, panels, panel_rows, columns, d, c, c_row, space)


@njit
def run_multiply_transposed(
    kernels, m, n, first, last, a, a_row, panels, panel_rows, columns, top, d, c, c_at, c_row, space
):  # fmt: skip
    a, panels, d, c = pointer(a, 0), pointer(panels, 0), pointer(d, 0), pointer(c, c_at)
    multiply_transposed(
        pointer(kernels, 0), m, n, first, last, a, a_row, panels, panel_rows, columns, top, d, c, c_row,
        pointer(space, 0),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul_transposed(dtype):
    """A whole product, and the same for some rows of B, whose columns are added piece by piece."""
    rng = np.random.default_rng(0)
    width = lanes(np.dtype(dtype).itemsize)
    size = np.dtype(dtype).itemsize
    piece, space = piece_columns(size), guarded(1, transposed_size(size), dtype)
    some, most = kernel_addresses(dtype, transposes=True), kernel_addresses(dtype, transposes=True, few_rows=True)
    together = TRANSPOSED_BLOCKS * BLOCK_ROWS
    n_rows = {*range(1, 2 * width + 2), NV * width + 1, (2 * NV + 1) * width - 1, together - 1, together, together + 1}
    lengths = {*n_rows, piece - 1, piece, piece + 1, 2 * piece + 3}
    for count, (n, k) in enumerate(product(n_rows, lengths)):
        m, gap = count % (2 * MR + 1) + 1, count % 3
        kernels = (some, most)[count // 2 % 2]
        a, b = whole_numbers(rng, m, k, dtype=dtype), whole_numbers(rng, n, k, dtype=dtype)
        written, columns = -(-n // width) * width, -(-k // width) * width
        d = whole_numbers(rng, written, dtype=dtype)
        c = guarded(m, written + gap, dtype)
        expected = c.copy()
        expected[1:-1, :written] = d
        expected[1:-1, :n] += a @ b.T
        wide = np.pad(a, ((0, 0), (0, gap)), constant_values=np.nan).ravel()
        panels = pack_naive(np.pad(b, ((0, written - n), (0, 0))), written, dtype)
        place = (c.ravel(), c.shape[1], c.shape[1], space[1])
        run_matmul_transposed(kernels, m, n, k, wide, k + gap, panels, written, columns, d, *place)
        np.testing.assert_array_equal(c, expected, err_msg=f"{m=} {n=} {k=}")
        c[1:-1, :written] = np.nan
        step = width * (count % (2 * together // width) + 1)
        length = (piece, NV * width)[count // 4 % 2]
        for top, first in product(range(0, n, step), range(0, k, length)):
            run_multiply_transposed(
                kernels, m, min(step, n - top), first, min(first + length, k), wide, k + gap, panels, written, columns,
                top, d[top:], c.ravel(), c.shape[1] + top, c.shape[1], space[1],
            )  # fmt: skip
        np.testing.assert_array_equal(c, expected, err_msg=f"{m=} {n=} {k=}")
        assert (space[0] == CANARY).all() and (space[2] == CANARY).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul_with_a_long_reduction(dtype):
    rng = np.random.default_rng(0)
    width = lanes(np.dtype(dtype).itemsize)
    longest = reduction_block(NV * width * np.dtype(dtype).itemsize)
    m, n = MR + 1, NV * width + 1
    for k in (longest, longest + 1, 2 * longest, 2 * longest + 3):
        a, b = rng.normal(size=(m, k)).astype(dtype), rng.normal(size=(k, n)).astype(dtype)
        written = -(-n // width) * width
        d = rng.normal(size=written).astype(dtype)
        c = guarded(m, written, dtype)
        whole = c.copy()
        panels, kernels = pack_naive(b, k, dtype), kernel_addresses(dtype)
        run_matmul(kernels, m, n, k, a.ravel(), k, panels, k, d, 0, c.ravel(), written, written)
        # Without cutting, a panel after the other: the same chain of multiply-adds.
        for j, nv in ((0, NV), (NV * width, 1)):
            run_multiply_panel(
                m, nv, k, a.ravel(), k, 1, panels[j * k :], nv * width, d, j, 0, whole.ravel(), written + j, written
            )  # fmt: skip
        np.testing.assert_array_equal(c, whole, err_msg=f"{k=}")


@njit
def run_multiply_panel(m, nv, k, a, a_row, a_col, b, b_row, d, d_at, d_row, c, c_at, c_row):
    a, b, d, c = pointer(a, 0), pointer(b, 0), pointer(d, d_at), pointer(c, c_at)
    multiply_panel(m, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@njit
def run_multiply_panel_prefetch_write(m, nv, k, a, a_row, a_col, b, b_row, d, d_at, d_row, c, c_at, c_row):
    addresses = 64 * np.arange(1 + m * m)  # a prefetch reads nothing: any address will do
    n_lines = addresses.size
    a, b, d, c, lines = pointer(a, 0), pointer(b, 0), pointer(d, d_at), pointer(c, c_at), pointer(addresses, 0)
    multiply_panel_prefetch_write(m, nv, k, lines, n_lines, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("run", [run_multiply_panel, run_multiply_panel_prefetch_write])
def test_multiply_panel(run, dtype, transposed):
    """With A transposed it is the gradient of the weights: units by samples, times samples by units."""
    rng = np.random.default_rng(1)
    width = lanes(np.dtype(dtype).itemsize)
    for count, (m, nv) in enumerate(product(range(1, 3 * MR + 2), range(1, NV + 1))):
        for k in {count % 40 + 1, 1, 2}:
            n = nv * width
            gap = count % 4
            a = whole_numbers(rng, m, k, dtype=dtype)
            b = whole_numbers(rng, k, n, dtype=dtype)
            d = whole_numbers(rng, n, dtype=dtype)
            c = guarded(m, n + gap, dtype)
            expected = c.copy()
            expected[1:-1, :n] = d + a @ b
            wide = np.pad(a.T if transposed else a, ((0, 0), (0, gap)), constant_values=np.nan)
            strides = (1, m + gap) if transposed else (k + gap, 1)
            rows = np.pad(b, ((0, 0), (0, gap)), constant_values=np.nan)
            args = (m, nv, k, wide.ravel(), *strides, rows.ravel(), n + gap)
            place = (c.ravel(), n + gap, n + gap)
            run(*args, d, 0, 0, *place)
            np.testing.assert_array_equal(c, expected, err_msg=f"{m=} {nv=} {k=}")
            # The sums of one chunk of samples continue in the next.
            expected[1:-1, :n] += a @ b
            run(*args, *place, *place)
            np.testing.assert_array_equal(c, expected, err_msg=f"{m=} {nv=} {k=}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_the_same_bits_among_any_others(dtype):
    rng = np.random.default_rng(2)
    n = NV * lanes(np.dtype(dtype).itemsize)
    most, k = 2 * MR + 1, 300
    a = rng.normal(size=(most, k)).astype(dtype)
    b = rng.normal(size=(k, n)).astype(dtype)
    d = rng.normal(size=n).astype(dtype)

    def multiply(rows):
        c = np.empty((len(rows), n), dtype)
        run_multiply_panel(len(rows), NV, k, rows.ravel(), k, 1, b.ravel(), n, d, 0, 0, c.ravel(), 0, n)
        return c

    alone = np.vstack([multiply(a[i : i + 1]) for i in range(most)])
    np.testing.assert_allclose(alone, d + a.astype(np.float64) @ b, rtol=0, atol=1e4 * np.finfo(dtype).eps)
    for m in range(1, most + 1):
        np.testing.assert_array_equal(multiply(a[most - m :]), alone[most - m :])


@njit
def run_pack_transpose(n, first, last, panels, panel_rows, columns, top, out, out_at):
    pack_transpose(n, first, last, pointer(panels, 0), panel_rows, columns, top, pointer(out, out_at))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_transpose(dtype):
    rng = np.random.default_rng(3)
    width = lanes(np.dtype(dtype).itemsize)
    nr = NV * width
    sizes = [1, width - 1, width, width + 1, 2 * width + 1, nr - 1, nr, nr + 1, nr + width, 2 * nr + width]
    for k, n in product(sizes, sizes):
        rows, columns = (-(-size // width) * width for size in (k, n))
        matrix = whole_numbers(rng, k, n, dtype=dtype)
        packed = pack_naive(matrix, rows, dtype)
        # The whole matrix, and a part of it.
        for first, last, top in ((0, n, 0), (n // nr * nr * (n % nr > 0), n, k // 2 // width * width)):
            n_rows, length = -(-(k - top) // width) * width, -(-(last - first) // width) * width
            part = np.pad(matrix[top:, first:last], ((0, n_rows - k + top), (0, length - last + first)))
            out = np.full(n_rows * length + 2 * width, CANARY, dtype)
            expected = out.copy()
            expected[width:-width] = pack_naive(part.T, length, dtype)
            # Rows that pad the transpose may be written or not.
            is_padding = pack_naive(np.tile(np.arange(length)[:, None] >= last - first, (1, n_rows)), length, dtype)
            run_pack_transpose(n_rows, first, last, packed, rows, columns, top, out, width)
            padding = np.flatnonzero(is_padding) + width
            assert np.isin(out[padding], (0, CANARY)).all()
            out[padding] = 0
            np.testing.assert_array_equal(out, expected, err_msg=f"{k=} {n=} {first=} {top=}")
