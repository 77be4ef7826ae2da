from itertools import product

import numpy as np
import pytest
from numba import njit

from fastbp.kernels.intrinsics import lanes, pointer
from fastbp.kernels.matmul import (
    kernel_addresses,
    index_block,
    nonzero_columns,
    set_masks,
    matmul_nn,
    matmul_sparse,
    multiply_indexed_block,
    multiply_panel,
    multiply_panel_prefetch_write,
    pack_transposed,
)
from fastbp.codegen.tiles import MASK_BITS, MR, NV

DTYPES = [np.float32, np.float64]
# What lies around the outputs: no kernel computes it.
CANARY = -12345.0


def whole_numbers(rng, *shape, dtype):
    """Numbers whose products and sums are exact, so that results are right or wrong."""
    return rng.integers(-9, 10, shape).astype(dtype)


def pack_naive(matrix, rows, dtype):
    """Panels of NV vectors of columns, each with `rows` rows, padded with zeros."""
    width = lanes(np.dtype(dtype).itemsize)
    columns = -(-matrix.shape[1] // width) * width
    padded = np.zeros((rows, columns), dtype)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return np.concatenate([padded[:, j : j + NV * width].ravel() for j in range(0, columns, NV * width)])


def guarded(rows, row, dtype):
    """A buffer for `rows` rows with a band of canaries before and behind; row i begins at (i + 1) * row."""
    return np.full((rows + 2, row), CANARY, dtype)


@njit
def run_matmul_nn(kernels, m, n, k, a, a_row, panels, panel_rows, d, c, c_at, c_row):
    a, panels, d, c = pointer(a, 0), pointer(panels, 0), pointer(d, 0), pointer(c, c_at)
    matmul_nn(pointer(kernels, 0), m, n, k, a, a_row, panels, panel_rows, d, c, c_row)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul_nn(dtype):
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
        run_matmul_nn(kernel_addresses(dtype), m, n, k, wide.ravel(), k + a_gap, panels, k + b_gap, d, *place)
        np.testing.assert_array_equal(c, expected, err_msg=f"{m=} {n=} {k=}")


@njit
def run_multiply_panel(kernels, m, nv, k, a, a_row, a_col, b, b_row, d, d_at, d_row, c, c_at, c_row):
    a, b, d, c = pointer(a, 0), pointer(b, 0), pointer(d, d_at), pointer(c, c_at)
    multiply_panel(m, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@njit
def run_multiply_panel_writing(kernels, m, nv, k, a, a_row, a_col, b, b_row, d, d_at, d_row, c, c_at, c_row):
    lines = 64 * np.arange(1 + m * m)  # what is asked for is not read: any address will do
    a, b, d, c, ahead = pointer(a, 0), pointer(b, 0), pointer(d, d_at), pointer(c, c_at), pointer(lines, 0)
    kernels = pointer(kernels, 0)
    multiply_panel_prefetch_write(kernels, m, nv, k, ahead, lines.size, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("run", [run_multiply_panel, run_multiply_panel_writing])
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
            args = (kernel_addresses(dtype), m, nv, k, wide.ravel(), *strides, rows.ravel(), n + gap)
            place = (c.ravel(), n + gap, n + gap)
            run(*args, d, 0, 0, *place)
            np.testing.assert_array_equal(c, expected, err_msg=f"{m=} {nv=} {k=}")
            # The sums of one chunk of samples go on in the next.
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
        run_multiply_panel(
            kernel_addresses(dtype), len(rows), NV, k, rows.ravel(), k, 1, b.ravel(), n, d, 0, 0, c.ravel(), 0, n
        )
        return c

    alone = np.vstack([multiply(a[i : i + 1]) for i in range(most)])
    np.testing.assert_allclose(alone, d + a.astype(np.float64) @ b, rtol=0, atol=1e4 * np.finfo(dtype).eps)
    for m in range(1, most + 1):
        np.testing.assert_array_equal(multiply(a[most - m :]), alone[most - m :])


@njit
def run_pack_transposed(first, last, left, right, panels, panel_rows, columns, out, out_at):
    pack_transposed(first, last, left, right, pointer(panels, 0), panel_rows, columns, pointer(out, out_at))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_transposed(dtype):
    rng = np.random.default_rng(3)
    width = lanes(np.dtype(dtype).itemsize)
    nr = NV * width
    sizes = [1, width - 1, width, width + 1, 2 * width + 1, nr - 1, nr, nr + 1, nr + width, 2 * nr + width]
    for k, n in product(sizes, sizes):
        rows, columns = (-(-size // width) * width for size in (k, n))
        matrix = whole_numbers(rng, k, n, dtype=dtype)
        panels = pack_naive(matrix, rows, dtype)
        whole = pack_naive(matrix.T, columns, dtype)
        # Which rows of the source each number comes from, to see that a part writes only its own.
        origin = pack_naive(np.tile(np.arange(rows), (columns, 1)), columns, dtype)
        column = pack_naive(np.tile(np.arange(columns)[:, None], (1, rows)), columns, dtype)
        for first, last in {(0, rows), (0, width), (rows // width // 2 * width, rows)}:
            for left, right in {(0, n), (0, columns), (0, min(width, n)), (columns // width // 2 * width, n)}:
                out = np.full(whole.size + 2 * width, CANARY, dtype)
                expected = out.copy()
                taken = -(-right // width) * width
                mine = (origin >= first) & (origin < last) & (column >= left) & (column < taken)
                expected[width:-width][mine] = whole[mine]
                run_pack_transposed(first, last, left, right, panels, rows, columns, out, width)
                behind = np.flatnonzero(mine & (column >= right)) + width
                assert np.isin(out[behind], (0, CANARY)).all()
                out[behind] = 0
                np.testing.assert_array_equal(out, expected, err_msg=f"{k=} {n=} {first=} {last=} {left=} {right=}")


# --- products that leave out what is zero ---


def sparse_numbers(rng, rows, columns, dtype):
    """Whole numbers, most of them zero: rows, columns and squares of them."""
    a = whole_numbers(rng, rows, columns, dtype=dtype)
    a[rng.random((rows, columns)) < 0.6] = 0
    a[rng.random(rows) < 0.2] = 0
    a[:, rng.random(columns) < 0.4] = 0
    a[:MR, :MASK_BITS] = 0
    return a


def marks_naive(a, room):
    """Bit j of masks[group, i] says whether a[i, group * MASK_BITS + j] is not zero."""
    groups = -(-a.shape[1] // MASK_BITS)
    masks = np.zeros((groups, room), np.uint16)
    for i, j in np.argwhere(a):
        masks[j // MASK_BITS, i] |= 1 << (j % MASK_BITS)
    return masks


@njit
def run_mark_row(row, k, masks, n_rows, i):
    set_masks(pointer(row, 0), k, pointer(masks, 0), n_rows, i)


@njit
def run_list_columns(masks, n_rows, k, first, rows, out):
    return nonzero_columns(pointer(masks, 0), n_rows, k, first, rows, pointer(out, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_marks_and_lists_of_columns(dtype):
    rng = np.random.default_rng(4)
    for k in [*range(1, 2 * MASK_BITS + 2), 100]:
        a = sparse_numbers(rng, 9, k, dtype)
        expected = marks_naive(a, 11)
        masks = np.full_like(expected, 0xAAAA)
        for i, row in enumerate(a):
            run_mark_row(np.append(row, np.ones(MASK_BITS, dtype)), k, masks.ravel(), 11, i)
        expected[:, 9:] = 0xAAAA
        np.testing.assert_array_equal(masks, expected)
        for first, rows in [(0, 9), (0, 1), (4, 5), (8, 1)]:
            out = np.full(k + MASK_BITS + 1, -1, np.int32)
            count = run_list_columns(masks.ravel(), 11, k, first, rows, out)
            # At least one, which then adds zeros.
            columns = np.flatnonzero(a[first : first + rows].any(axis=0)).tolist() or [0]
            assert out[:count].tolist() == columns
            assert out[-1] == -1


@njit
def run_matmul_sparse(m, n, k, a, a_at, masks, n_rows, first, panels, d, c, c_at, c_row, indices):
    a, panels, d, c = pointer(a, a_at), pointer(panels, 0), pointer(d, 0), pointer(c, c_at)
    masks, indices = pointer(masks, 0), pointer(indices, 0)
    matmul_sparse(m, n, k, a, k, masks, n_rows, first, panels, k, d, c, c_row, indices)


def test_matmul_sparse():
    dtype = np.float32
    rng = np.random.default_rng(5)
    width = lanes(np.dtype(dtype).itemsize)
    nr = NV * width
    columns = [1, width - 1, width, width + 1, nr - 1, nr, nr + 1, nr + width + 1, 2 * nr + 1]
    for count, (m, n) in enumerate(product(range(1, 2 * MR + 2), columns)):
        k = count % 40 + 1
        first, room = count % 3, m + 4
        a = sparse_numbers(rng, room, k, dtype)
        b = whole_numbers(rng, k, n, dtype=dtype)
        written = -(-n // width) * width
        d = whole_numbers(rng, written, dtype=dtype)
        c = guarded(m, written + count % 5, dtype)
        expected = c.copy()
        expected[1:-1, :written] = d
        expected[1:-1, :n] += a[first : first + m] @ b
        indices = np.full(k + MASK_BITS + 1, -1, np.int32)
        place = (c.ravel(), c.shape[1], c.shape[1])
        masks = marks_naive(a, room).ravel()
        panels = pack_naive(b, k, dtype)
        run_matmul_sparse(m, n, k, a.ravel(), first * k, masks, room, first, panels, d, *place, indices)
        np.testing.assert_array_equal(c, expected, err_msg=f"{m=} {n=} {k=}")
        assert indices[-1] == -1


@njit
def run_block(count, nv, m, masks, a, a_row, b, b_row, d, d_row, c, c_at, c_row, indices, room):
    indices = pointer(indices, 0)
    index_block(pointer(masks, 0), m, count, indices, room)
    a, b, d, c = pointer(a, 0), pointer(b, 0), pointer(d, 0), pointer(c, c_at)
    multiply_indexed_block(count, nv, a, a_row, b, b_row, d, d_row, c, c_row, indices, room)


def test_gradient_of_a_block_over_listed_rows():
    dtype = np.float32
    rng = np.random.default_rng(6)
    width = lanes(np.dtype(dtype).itemsize)
    for count, nv in product(range(1, MASK_BITS + 1), range(1, NV + 1)):
        for m in (1, MASK_BITS - 1, MASK_BITS, MASK_BITS + 1, 3 * MASK_BITS + 5):
            n = nv * width
            a = sparse_numbers(rng, m, count, dtype)
            b = whole_numbers(rng, m, n, dtype=dtype)
            d = whole_numbers(rng, n, dtype=dtype)
            c = guarded(count, n + 3, dtype)
            expected = c.copy()
            expected[1:-1, :n] = d + a.T @ b
            # Behind the last mark others are read, but do not count.
            masks = np.append(marks_naive(a, m), np.full(MASK_BITS, 0xFFFF, np.uint16))
            room = m + MASK_BITS
            indices = np.full(MASK_BITS + -(-count // MR) * room + 1, -1, np.int32)
            place = (c.ravel(), n + 3, n + 3)
            run_block(count, nv, m, masks, a.ravel(), count, b.ravel(), n, d, 0, *place, indices, room)
            np.testing.assert_array_equal(c, expected, err_msg=f"{count=} {nv=} {m=}")
            assert indices[-1] == -1
            # For each tile of columns the rows in which it is not zero, at least one.
            tiles = -(-count // MR)
            for tile in range(tiles):
                columns = a[:, count * tile // tiles : count * (tile + 1) // tiles]
                rows = np.flatnonzero(columns.any(axis=1)).tolist() or [0]
                begin = MASK_BITS + tile * room
                assert indices[begin : begin + indices[tile]].tolist() == rows
