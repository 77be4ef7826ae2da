"""Products of a matrix A that is mostly zero: bit masks of its non-zeros, index lists, and tiles over the lists.

A bit mask says which of MASK_BITS neighbouring numbers in a row of A are not zero. The masks of one group of columns
are contiguous over the rows: masks[group * n_rows + i].

A tile of the forward pass leaves out the columns of A that are zero in all rows of the tile, a tile of the weight
gradient the rows that are zero in all of its columns.
"""

import numpy as np

from fastbp.codegen.bitmask import MASK_BITS, append_set_bits, append_where_any, nonzero_mask
from fastbp.codegen.jit import called_by_address, inlined, jit
from fastbp.codegen.memory import lane_count, load_scalar, offset, store_scalar
from fastbp.codegen.tiles import NV, micro_kernel_indexed
from fastbp.kernels.matmul import ONE, REPEATED, cut_into_tiles, tile_height

# Places in the table of `kernel_addresses`, after those of `matmul`.
MATMUL_SPARSE, INDEX_BLOCK, MULTIPLY_INDEXED_BLOCK = range(6, 9)


@jit
def set_masks(row, k, masks, n_rows, i):
    """Set the masks of row i of k numbers; MASK_BITS numbers after them may be read."""
    n_groups = (k + MASK_BITS - 1) // MASK_BITS
    for group in range(n_groups):
        inside = (1 << min(MASK_BITS, k - group * MASK_BITS)) - 1
        store_scalar(masks, group * n_rows + i, nonzero_mask(offset(row, group * MASK_BITS)) & inside)


@jit
def index_columns(masks, n_rows, k, first, rows, out):
    """List the columns in which any of some rows is not zero: at least one column. Return their number."""
    n_groups = (k + MASK_BITS - 1) // MASK_BITS
    count = 0
    for group in range(n_groups):
        bits = np.int64(0)
        for i in range(group * n_rows + first, group * n_rows + first + rows):
            bits |= np.int64(load_scalar(masks, i))
        count = append_set_bits(bits, group * MASK_BITS, out, count)
    return _at_least_one(out, count)


@jit
def index_rows(masks, bits, m, out):
    """List the rows below m whose masks, of one group of columns, have any of the bits: at least one row."""
    count = 0
    for i in range(0, m, MASK_BITS):
        count = append_where_any(offset(masks, i), bits, m - i, i, out, count)
    return _at_least_one(out, count)


@inlined
def _at_least_one(out, count):
    # The micro-kernel does at least one step; with a zero factor it adds nothing.
    if count == 0:
        store_scalar(out, 0, 0)
        count = 1
    return count


@jit
def _multiply_indexed_tile(rows, nv, k, indices, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Compute one register tile over a list of indices; see `micro_kernel_indexed`."""
    micro_kernel_indexed(rows, nv, k, indices, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@called_by_address
def matmul_sparse(m, n, k, a, a_row, masks, n_rows, first, panels, panel_rows, d, c, c_row, indices):
    """Compute what `matmul` does, without the columns of A that are zero in all rows of a tile; set A's masks.

    Parameters
    ----------
    masks, n_rows, first : pointer to uint16, int64, int64
        Memory for the masks, the rows that it holds, and the first row of A among them.
    indices : pointer to int32
        Workspace of `k` + MASK_BITS numbers.
    """
    for i in range(m):
        set_masks(offset(a, i * a_row), k, masks, n_rows, first + i)
    width = lane_count(c)
    tiling = cut_into_tiles(m)
    i = 0
    for tile in range(tiling.n_tiles):
        rows = tile_height(tiling, tile)
        count = index_columns(masks, n_rows, k, first + i, rows, indices)
        for j in range(0, n, NV * width):
            nv = min(NV, (n - j + width - 1) // width)
            _multiply_indexed_tile(
                rows, nv, count, indices, offset(a, i * a_row), a_row, ONE, offset(panels, j * panel_rows), nv * width,
                offset(d, j), REPEATED, offset(c, i * c_row + j), c_row,
            )  # fmt: skip
        i += rows


@called_by_address
def index_block(masks, m, count, out, capacity):
    """List, for each tile of a block of `count` columns of A, the rows below m in which it is not all zero.

    Parameters
    ----------
    masks : pointer to uint16
        Masks of the block's columns.
    out, capacity : pointer to int32, int64
        The first MASK_BITS numbers become the lengths of the lists. The lists follow, `capacity` numbers each.
    """
    tiling = cut_into_tiles(count)
    i = 0
    for tile in range(tiling.n_tiles):
        rows = tile_height(tiling, tile)
        bits = ((1 << rows) - 1) << i
        store_scalar(out, tile, index_rows(masks, bits, m, offset(out, MASK_BITS + tile * capacity)))
        i += rows


@called_by_address
def multiply_indexed_block(count, nv, a, a_row, b, b_row, d, d_row, c, c_row, indices, capacity):
    """Compute one panel of C = D + A^T B for a block of `count` columns of A, with the lists of `index_block`."""
    tiling = cut_into_tiles(count)
    i = 0
    for tile in range(tiling.n_tiles):
        rows = tile_height(tiling, tile)
        n_indices, begin = np.int64(load_scalar(indices, tile)), MASK_BITS + tile * capacity
        _multiply_indexed_tile(
            rows, nv, n_indices, offset(indices, begin), offset(a, i), ONE, a_row, b, b_row,
            offset(d, i * d_row), d_row, offset(c, i * c_row), c_row,
        )  # fmt: skip
        i += rows
