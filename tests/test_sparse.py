from itertools import product

import numpy as np
import pytest
from numba import njit
from products import guarded, pack_naive, whole_numbers

from fastbp.codegen.bitmask import MASK_BITS
from fastbp.codegen.memory import pointer
from fastbp.codegen.target import lanes
from fastbp.codegen.tiles import MR, NV
from fastbp.kernels.sparse import index_block, index_columns, matmul_sparse, multiply_indexed_block, set_masks

DTYPES = [np.float32, np.float64]


def sparse_numbers(rng, rows, columns, dtype):
    """Whole numbers, most of them zero: rows, columns and squares of them."""
    a = whole_numbers(rng, rows, columns, dtype=dtype)
    a[rng.random((rows, columns)) < 0.6] = 0
    a[rng.random(rows) < 0.2] = 0
    a[:, rng.random(columns) < 0.4] = 0
    a[:MR, :MASK_BITS] = 0
    return a


def masks_naive(a, capacity):
    """Bit j of masks[group, i] says whether a[i, group * MASK_BITS + j] is not zero."""
    groups = -(-a.shape[1] // MASK_BITS)
    masks = np.zeros((groups, capacity), np.uint16)
    for i, j in np.argwhere(a):
        masks[j // MASK_BITS, i] |= 1 << (j % MASK_BITS)
    return masks


@njit
def run_set_masks(row, k, masks, n_rows, i):
    set_masks(pointer(row, 0), k, pointer(masks, 0), n_rows, i)


@njit
def run_index_columns(masks, n_rows, k, first, rows, out):
    return index_columns(pointer(masks, 0), n_rows, k, first, rows, pointer(out, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_and_lists_of_columns(dtype):
    rng = np.random.default_rng(4)
    for k in [*range(1, 2 * MASK_BITS + 2), 100]:
        a = sparse_numbers(rng, 9, k, dtype)
        expected = masks_naive(a, 11)
        masks = np.full_like(expected, 0xAAAA)
        for i, row in enumerate(a):
            run_set_masks(np.append(row, np.ones(MASK_BITS, dtype)), k, masks.ravel(), 11, i)
        expected[:, 9:] = 0xAAAA
        np.testing.assert_array_equal(masks, expected)
        for first, rows in [(0, 9), (0, 1), (4, 5), (8, 1)]:
            out = np.full(k + MASK_BITS + 1, -1, np.int32)
            count = run_index_columns(masks.ravel(), 11, k, first, rows, out)
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
        first, capacity = count % 3, m + 4
        a = sparse_numbers(rng, capacity, k, dtype)
        b = whole_numbers(rng, k, n, dtype=dtype)
        written = -(-n // width) * width
        d = whole_numbers(rng, written, dtype=dtype)
        c = guarded(m, written + count % 5, dtype)
        expected = c.copy()
        expected[1:-1, :written] = d
        expected[1:-1, :n] += a[first : first + m] @ b
        indices = np.full(k + MASK_BITS + 1, -1, np.int32)
        place = (c.ravel(), c.shape[1], c.shape[1])
        masks = masks_naive(a, capacity).ravel()
        panels = pack_naive(b, k, dtype)
        run_matmul_sparse(m, n, k, a.ravel(), first * k, masks, capacity, first, panels, d, *place, indices)
        np.testing.assert_array_equal(c, expected, err_msg=f"{m=} {n=} {k=}")
        assert indices[-1] == -1


@njit
def run_block(count, nv, m, masks, a, a_row, b, b_row, d, d_row, c, c_at, c_row, indices, capacity):
    indices = pointer(indices, 0)
    index_block(pointer(masks, 0), m, count, indices, capacity)
    a, b, d, c = pointer(a, 0), pointer(b, 0), pointer(d, 0), pointer(c, c_at)
    multiply_indexed_block(count, nv, a, a_row, b, b_row, d, d_row, c, c_row, indices, capacity)


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
            # Masks after the last one are read, but do not count.
            masks = np.append(masks_naive(a, m), np.full(MASK_BITS, 0xFFFF, np.uint16))
            capacity = m + MASK_BITS
            indices = np.full(MASK_BITS + -(-count // MR) * capacity + 1, -1, np.int32)
            place = (c.ravel(), n + 3, n + 3)
            run_block(count, nv, m, masks, a.ravel(), count, b.ravel(), n, d, 0, *place, indices, capacity)
            np.testing.assert_array_equal(c, expected, err_msg=f"{count=} {nv=} {m=}")
            assert indices[-1] == -1
            # For each tile of columns the rows in which it is not all zero: at least one.
            tiles = -(-count // MR)
            ends = np.cumsum([0, *(len(part) for part in np.array_split(np.arange(count), tiles))])
            for tile in range(tiles):
                columns = a[:, ends[tile] : ends[tile + 1]]
                rows = np.flatnonzero(columns.any(axis=1)).tolist() or [0]
                begin = MASK_BITS + tile * capacity
                assert indices[begin : begin + indices[tile]].tolist() == rows
