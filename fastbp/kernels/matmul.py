"""The three matrix products of backpropagation, on one register tile.

Layouts (all row strides in elements):

- Activations and deltas are row-major, (n_samples, units), with a row stride of at
  least `units` rounded up to whole vectors; what lies between is zero or ignored.
- Weights are packed in panels: NR = NV vectors of columns, row after row, so that the
  micro-kernel reads them in one stream. The last panel is as wide as it needs to be, in
  whole vectors; columns that pad it are zero. Panel j begins at element j * NR * rows.

The product of the forward pass and the one that carries deltas back differ only in
which packed matrix they are given, W or its transpose.

References
----------
Van Zee and van de Geijn, "BLIS: A framework for rapidly instantiating BLAS
functionality", ACM TOMS 41(3), 2015.
"""

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype

from fastbp.kernels.intrinsics import call_at, get, lane_count, shift, view
from fastbp.kernels.jit import address_of, called_by_address, inlined, jit
from fastbp.kernels.tiles import (
    MARKED,
    MR,
    NV,
    append_marked,
    append_set_bits,
    micro_kernel,
    micro_kernel_listed,
    micro_kernel_reading,
    micro_kernel_writing,
    nonzero_bits,
    transpose_tile,
)

# As arguments these are numbers like any other; a literal would have its function compiled once more.
NONE, ONE = np.int64(0), np.int64(1)
# Places in the table of `kernel_addresses`.
MULTIPLY, MULTIPLY_READING, MULTIPLY_WRITING, MATMUL_SPARSE, LIST_BLOCK, MULTIPLY_BLOCK = range(6)


@inlined
def tile_heights(m):
    """Cut m rows into as few tiles as can be, of nearly equal height.

    13 are 5 + 4 + 4, not 6 + 6 + 1, as a tile of one row keeps the multipliers half idle. Returned are the
    height of the lower ones, and how many have one row more.
    """
    tiles = (m + MR - 1) // MR
    low = m // tiles
    return low, m - low * tiles


@called_by_address
def multiply_panel(m, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Compute one panel of nv vectors of columns, C = D + A B.

    Parameters are those of `micro_kernel`, for any number of rows `m`.
    """
    if m <= MR:
        micro_kernel(m, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_row)
        return
    low, higher = tile_heights(m)
    i, rows = 0, low + 1
    while i < m:
        if higher == 0:
            rows = low
        higher -= 1
        micro_kernel(
            rows, nv, k, shift(a, i * a_row), a_row, a_col, b, b_row, shift(d, i * d_row), d_row,
            shift(c, i * c_row), c_row,
        )  # fmt: skip
        i += rows


@called_by_address
def multiply_reading(rows, nv, k, ahead, n_ahead, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Compute one register tile, and ask for memory that will be read; see `tiles.micro_kernel_reading`."""
    micro_kernel_reading(rows, nv, k, ahead, n_ahead, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@called_by_address
def multiply_writing(rows, nv, k, ahead, n_ahead, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Compute one register tile, and ask for memory that will be written; see `tiles.micro_kernel_writing`."""
    micro_kernel_writing(rows, nv, k, ahead, n_ahead, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@inlined
def multiply_panel_writing(kernels, m, nv, k, ahead, n_ahead, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Do as `multiply_panel`, and ask for memory that will be written: at least one line, addresses as for a tile."""
    tiles = (m + MR - 1) // MR
    low, higher = tile_heights(m)
    i = np.int64(0)
    for tile in range(tiles):
        rows = low + 1 if tile < higher else low
        begin, end = n_ahead * tile // tiles, n_ahead * (tile + 1) // tiles
        args = (
            rows, nv, k, shift(ahead, begin), end - begin, shift(a, i * a_row), a_row, a_col, b, b_row,
            shift(d, i * d_row), d_row, shift(c, i * c_row), c_row,
        )  # fmt: skip
        call_at(get(kernels, MULTIPLY_WRITING), args)
        i += rows


@inlined
def matmul_nn(kernels, m, n, k, a, a_row, panels, panel_rows, d, c, c_row):
    """Compute C = A B + d for a packed B.

    Parameters
    ----------
    kernels : pointer
        From `kernel_addresses`.
    m, n, k : int64
        C is (m, n), A is (m, k), B is (k, n); all at least 1.
    a, a_row : pointer, int64
        Row-major A and its row stride.
    panels, panel_rows : pointer, int64
        Packed B and the number of rows, `k` or more, that each panel holds.
    d : pointer
        A row that is added to each row of the product, as long as a row of C.
    c, c_row : pointer, int64
        Row-major C and its row stride; columns up to the next whole vector are written too.
    """
    width = lane_count(c)
    for j in range(0, n, NV * width):
        nv = min(NV, (n - j + width - 1) // width)
        args = (
            m, nv, k, a, a_row, ONE, shift(panels, j * panel_rows), nv * width, shift(d, j), NONE, shift(c, j), c_row
        )  # fmt: skip
        call_at(get(kernels, MULTIPLY), args)


@inlined
def pack_transposed(first, last, left, right, panels, panel_rows, columns, out):
    """Pack the transpose of rows [first, last) and columns [left, right) of a packed matrix.

    Parameters
    ----------
    first, last : int64
        Rows of the source; multiples of the number of lanes.
    left, right : int64
        Columns of the source; `left` is such a multiple. Up to the next one, more may be taken than are asked for.
    panels, panel_rows : pointer, int64
        Packed source and the rows in each of its panels; as many columns has the transpose.
    columns : int64
        Columns of the source, with their padding; as many rows has each panel of the transpose.
    out : pointer
        Packed transpose.
    """
    width = lane_count(out)
    nr = NV * width
    for j in range(left, right, width):
        panel = j // nr * nr
        source_row = min(nr, columns - panel)
        source = shift(panels, panel * panel_rows + j - panel)
        for p in range(first, last, width):
            top = p // nr * nr
            out_row = min(nr, panel_rows - top)
            transpose_tile(
                right - j, shift(source, p * source_row), source_row,
                shift(out, top * columns + j * out_row + p - top), out_row,
            )  # fmt: skip


# Products with an A that is mostly zero. A mark is MARKED bits that say which of as many neighbours in a row
# are not zero. Marks of one group of columns lie side by side for all rows: marks[group * n_rows + i].


@jit
def mark_row(row, k, marks, n_rows, i):
    """Set the marks of row i of k numbers; MARKED numbers behind them may be read."""
    n_groups = (k + MARKED - 1) // MARKED
    groups = view(marks, n_groups * n_rows)
    for group in range(n_groups):
        inside = (1 << min(MARKED, k - group * MARKED)) - 1
        groups[group * n_rows + i] = nonzero_bits(shift(row, group * MARKED)) & inside


@jit
def list_columns(marks, n_rows, k, first, rows, out):
    """List the columns in which any of some rows is not zero; at least one column, and return their number."""
    n_groups = (k + MARKED - 1) // MARKED
    groups = view(marks, n_groups * n_rows)
    count = 0
    for group in range(n_groups):
        bits = np.int64(0)
        for i in range(group * n_rows + first, group * n_rows + first + rows):
            bits |= np.int64(groups[i])
        count = append_set_bits(bits, group * MARKED, out, count)
    return _at_least_one(out, count)


@jit
def list_rows(marks, bits, m, out):
    """List the rows below m whose marks, of one group of columns, have any of the bits."""
    count = 0
    for i in range(0, m, MARKED):
        count = append_marked(shift(marks, i), bits, m - i, i, out, count)
    return _at_least_one(out, count)


@inlined
def _at_least_one(out, count):
    # The micro-kernel does at least one step; with a zero factor it adds nothing.
    if count == 0:
        view(out, 1)[0] = 0
        count = 1
    return count


@jit
def multiply_listed(rows, nv, k, listed, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Compute one register tile over listed indices; see `micro_kernel_listed`."""
    micro_kernel_listed(rows, nv, k, listed, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@inlined
def _cut(m, tile, tiles):
    """Return where a tile begins, if m rows are cut into so many of nearly equal height."""
    return m * tile // tiles


@called_by_address
def matmul_sparse(m, n, k, a, a_row, marks, n_rows, first, panels, panel_rows, d, c, c_row, listed):
    """Compute what `matmul_nn` does, without the columns of A that are zero in all rows of a tile; set A's marks.

    Parameters
    ----------
    marks, n_rows, first
        Where the marks of A go, the rows they have room for, and the first row of A among them.
    listed : pointer to int32
        Room for `k` + MARKED numbers.
    """
    for i in range(m):
        mark_row(shift(a, i * a_row), k, marks, n_rows, first + i)
    width = lane_count(c)
    tiles = (m + MR - 1) // MR
    for tile in range(tiles):
        i = _cut(m, tile, tiles)
        rows = _cut(m, tile + 1, tiles) - i
        count = list_columns(marks, n_rows, k, first + i, rows, listed)
        for j in range(0, n, NV * width):
            nv = min(NV, (n - j + width - 1) // width)
            multiply_listed(
                rows, nv, count, listed, shift(a, i * a_row), a_row, ONE, shift(panels, j * panel_rows), nv * width,
                shift(d, j), NONE, shift(c, i * c_row + j), c_row,
            )  # fmt: skip


@called_by_address
def list_block(marks, m, count, out, room):
    """List, for each tile of a block of `count` columns of A, the rows below m in which it is not all zero.

    Parameters
    ----------
    marks : pointer
        Marks of the block's columns.
    out, room : pointer to int32, int64
        The lengths of the lists go to the first MARKED numbers, the lists behind them, `room` apart.
    """
    tiles = (count + MR - 1) // MR
    lengths = view(out, tiles)
    for tile in range(tiles):
        bits = (1 << _cut(count, tile + 1, tiles)) - (1 << _cut(count, tile, tiles))
        lengths[tile] = list_rows(marks, bits, m, shift(out, MARKED + tile * room))


@called_by_address
def multiply_block(count, nv, a, a_row, b, b_row, d, d_row, c, c_row, listed, room):
    """Compute one panel of C = D + A^T B for a block of `count` columns of A, with the lists of `list_block`."""
    tiles = (count + MR - 1) // MR
    lengths = view(listed, tiles)
    for tile in range(tiles):
        i = _cut(count, tile, tiles)
        multiply_listed(
            _cut(count, tile + 1, tiles) - i, nv, np.int64(lengths[tile]), shift(listed, MARKED + tile * room),
            shift(a, i), ONE, a_row, b, b_row, shift(d, i * d_row), d_row, shift(c, i * c_row), c_row,
        )  # fmt: skip


def kernel_addresses(dtype, *, dense=True, writing=True, sparse=False):
    """Return where the kernels are that other kernels call, compiled now if need be.

    Compiled into each of their callers, the register tiles took a quarter of the time of a first fit.

    Parameters
    ----------
    dtype : dtype
        float32 or float64.
    dense, writing, sparse : bool
        Whether the products of matrices are needed, those that ask for memory to write, and those for inputs that are
        mostly zero.

    Returns
    -------
    ndarray of int64
        Addresses at the places `MULTIPLY` to `MULTIPLY_BLOCK`; 0 for what is not needed.
    """
    values = types.CPointer(from_dtype(np.dtype(dtype)))
    marks, listed, n = types.CPointer(types.uint16), types.CPointer(types.int32), types.int64
    tile = (values, n, n, values, n, values, n, values, n)
    kinds = {
        MULTIPLY: (multiply_panel, (n, n, n, *tile)),
        MULTIPLY_READING: (multiply_reading, (n, n, n, types.CPointer(n), n, *tile)),
        MULTIPLY_WRITING: (multiply_writing, (n, n, n, types.CPointer(n), n, *tile)),
        MATMUL_SPARSE: (matmul_sparse, (n, n, n, values, n, marks, n, n, values, n, values, values, n, listed)),
        LIST_BLOCK: (list_block, (marks, n, n, listed, n)),
        MULTIPLY_BLOCK: (multiply_block, (n, n, values, n, values, n, values, n, values, n, listed, n)),
    }
    addresses = np.zeros(len(kinds), dtype=np.int64)
    needed = {MULTIPLY: dense, MULTIPLY_READING: dense, MULTIPLY_WRITING: dense and writing}
    for place, (kernel, types_of_arguments) in kinds.items():
        if needed.get(place, sparse):
            addresses[place] = address_of(kernel, types_of_arguments)
    return addresses
