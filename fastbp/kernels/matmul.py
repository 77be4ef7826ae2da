"""The matrix products of backpropagation, made of one register tile.

Layouts (all row strides in elements):

- Activations and deltas are row-major, (n_samples, units), with a row stride of at least `units` rounded up to whole
  vectors; the padding between is zero or ignored.
- Weights are packed in panels: NR = NV vectors of columns, row after row, so that the micro-kernel reads them in one
  stream. The last panel has as many vectors as it needs; columns that pad it are zero. Panel j begins at the element
  j * NR * rows.

The forward pass and the backward pass differ only in the packed matrix that they multiply with, W or its transpose.

References
----------
Van Zee and van de Geijn, "BLIS: A framework for rapidly instantiating BLAS functionality", ACM TOMS 41(3), 2015.
"""

from typing import NamedTuple

import numpy as np

from fastbp.codegen.jit import call_at, called_by_address, inlined, jit, typed_inlined
from fastbp.codegen.memory import itemsize, lane_count, load_scalar, offset, stack_square
from fastbp.codegen.tiles import (
    FEW_ROWS,
    MR,
    NV,
    few_panels,
    micro_kernel,
    micro_kernel_few,
    micro_kernel_prefetch,
    micro_kernel_prefetch_write,
)
from fastbp.codegen.transpose import transpose_tile
from fastbp.codegen.vectors import fma, load, splat, store
from fastbp.kernels.plan import FEW_TRANSPOSED, PANEL_BYTES, piece_columns, reduction_block, transposed_size

# Arguments that are int64 variables: Numba would compile a function once more for a literal.
NONE, ONE = np.int64(0), np.int64(1)
# The stride of a row, or of a number, that is repeated: biases, zeros, an input that is always one.
REPEATED = np.int64(0)
# Places in the table of `kernel_addresses`; `sparse`, `csr` and `few` have the others.
MULTIPLY, MULTIPLY_PREFETCH, MULTIPLY_PREFETCH_WRITE, MULTIPLY_FEW, MULTIPLY_TRANSPOSED, MULTIPLY_ROW = range(6)


class Tiling(NamedTuple):
    """Rows cut into as few tiles as possible, of nearly equal height."""

    n_tiles: int
    low: int  # height of the lower tiles
    n_high: int  # the first tiles have one row more


@inlined
def cut_into_tiles(m):
    """Cut m rows into tiles: 13 are 5 + 4 + 4, not 6 + 6 + 1, as one row is too few sums for the FMA units."""
    n_tiles = (m + MR - 1) // MR
    low = m if n_tiles == 1 else m // n_tiles
    return Tiling(n_tiles, low, m - low * n_tiles)


@inlined
def tile_height(tiling, tile):
    """Return the rows of one tile. The tiles follow each other from the first row on."""
    return tiling.low + np.int64(tile < tiling.n_high)


@called_by_address
def multiply_panel(m, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Compute one panel of nv vectors of columns, C = D + A B.

    Parameters are those of `micro_kernel`, for any number of rows `m`.
    """
    tiling = cut_into_tiles(m)
    i = 0
    for tile in range(tiling.n_tiles):
        rows = tile_height(tiling, tile)
        micro_kernel(
            rows, nv, k, offset(a, i * a_row), a_row, a_col, b, b_row, offset(d, i * d_row), d_row,
            offset(c, i * c_row), c_row,
        )  # fmt: skip
        i += rows


@called_by_address
def multiply_tile_prefetch(rows, nv, k, lines, n_lines, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Compute one register tile, and prefetch memory to read; see `micro_kernel_prefetch`."""
    micro_kernel_prefetch(rows, nv, k, lines, n_lines, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@called_by_address
def multiply_panel_prefetch_write(m, nv, k, lines, n_lines, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Compute one panel as `multiply_panel`, and prefetch memory to write to: `lines` holds at least one address."""
    tiling = cut_into_tiles(m)
    i = 0
    for tile in range(tiling.n_tiles):
        rows = tile_height(tiling, tile)
        first, last = n_lines * tile // tiling.n_tiles, n_lines * (tile + 1) // tiling.n_tiles
        micro_kernel_prefetch_write(
            rows, nv, k, offset(lines, first), last - first, offset(a, i * a_row), a_row, a_col, b, b_row,
            offset(d, i * d_row), d_row, offset(c, i * c_row), c_row,
        )  # fmt: skip
        i += rows


@called_by_address
def multiply_few(m, n, k, a, a_row, panels, panel_rows, d, d_row, c, c_row, multiply):
    """Do as `matmul` for 1 to FEW_ROWS rows, some panels at a time; `multiply` is the address of `multiply_panel`."""
    width = lane_count(c)
    columns = (n + width - 1) // width * width
    step = _few_panels(m) * NV * width
    whole = columns // step * step
    for j in range(0, whole, step):
        b = offset(panels, j * panel_rows)
        micro_kernel_few(
            m, k, a, a_row, ONE, b, NV * width, panel_rows * NV * width, offset(d, j), d_row, offset(c, j), c_row
        )  # fmt: skip
    for j in range(whole, columns, NV * width):
        nv = min(NV, (columns - j) // width)
        args = (
            m, nv, k, a, a_row, ONE, offset(panels, j * panel_rows), nv * width, offset(d, j), d_row, offset(c, j),
            c_row,
        )  # fmt: skip
        call_at(multiply, args)


# Rows of B that `multiply_row` takes at a time.
ROWS_TOGETHER = 8


@called_by_address
def multiply_row(n, k, a, a_col, b, b_row, c, multiply):
    """Compute one row, C = A B, for a B that is not packed: it is read along its rows, as it lies in memory.

    Parameters
    ----------
    n, k : int64
        A has k numbers, and B n columns, a multiple of the lanes; both at least 1.
    a, a_col : pointer, int64
        A, and the stride of its numbers.
    b, b_row : pointer, int64
        Row-major B and its row stride.
    c : pointer
        n numbers.
    multiply : int64
        The address of `multiply_panel`.
    """
    width = lane_count(c)
    step = _few_panels(1) * NV * width
    whole = n // step * step
    for j in range(0, n, width):
        store(c, j, splat(c, 0.0))
    for i in range(0, k, ROWS_TOGETHER):
        rows = min(ROWS_TOGETHER, k - i)
        for j in range(0, whole, step):
            x, y, z = offset(a, i * a_col), offset(b, i * b_row + j), offset(c, j)
            micro_kernel_few(ONE, rows, x, REPEATED, a_col, y, b_row, NV * width, z, REPEATED, z, REPEATED)
    for j in range(whole, n, NV * width):
        z = offset(c, j)
        args = (ONE, min(NV, (n - j) // width), k, a, REPEATED, a_col, offset(b, j), b_row, z, REPEATED, z, REPEATED)
        call_at(multiply, args)


_reduction_block, _few_panels = inlined(reduction_block), inlined(few_panels)
_piece_columns, _transposed_size = inlined(piece_columns), inlined(transposed_size)


@jit
def matmul(kernels, m, n, k, a, a_row, panels, panel_rows, d, d_row, c, c_row):
    """Compute C = A B + D for a packed B.

    Panel after panel is multiplied with all rows of A, which should not be more than the L2 cache holds.

    Parameters
    ----------
    kernels : pointer
        From `kernel_addresses`.
    m, n, k : int64
        C is (m, n), A is (m, k), B is (k, n); all at least 1.
    a, a_row : pointer, int64
        Row-major A and its row stride.
    panels, panel_rows : pointer, int64
        Packed B and the rows of its panels, `k` or more.
    d, d_row : pointer, int64
        Row-major D and its row stride; 0 repeats one row, a bias or zeros. May be C.
    c, c_row : pointer, int64
        Row-major C and its row stride; columns up to the next whole vector are written too.
    """
    width = lane_count(c)
    longest = _reduction_block(PANEL_BYTES)
    if m <= FEW_ROWS and load_scalar(kernels, MULTIPLY_FEW) != 0:
        few_args = (m, n, k, a, a_row, panels, panel_rows, d, d_row, c, c_row, load_scalar(kernels, MULTIPLY))
        call_at(load_scalar(kernels, MULTIPLY_FEW), few_args)
        return
    for p in range(0, k, longest):
        for j in range(0, n, NV * width):
            nv = min(NV, (n - j + width - 1) // width)
            start, start_row = (offset(d, j), d_row) if p == 0 else (offset(c, j), c_row)
            args = (
                m, nv, min(longest, k - p), offset(a, p), a_row, ONE, offset(panels, j * panel_rows + p * nv * width),
                nv * width, start, start_row, offset(c, j), c_row,
            )  # fmt: skip
            call_at(load_scalar(kernels, MULTIPLY), args)


@inlined
def pack_transpose(n, first, last, panels, panel_rows, columns, top, out):
    """Pack the transpose of some rows and columns of a packed matrix.

    Parameters
    ----------
    n : int64
        Rows of the source: columns of the transpose.
    first, last : int64
        Columns of the source; `first` is that of a panel. Those up to the next multiple of the number of lanes may be
        packed too, and are room for it in the transpose.
    panels, panel_rows, columns : pointer, int64, int64
        Packed source, the rows of its panels and its columns, with their padding.
    top : int64
        The first row of the source, a multiple of the number of lanes.
    out : pointer
        Packed transpose.
    """
    width = lane_count(out)
    nr = NV * width
    length = (last - first + width - 1) // width * width
    for p in range(0, n, width):
        place = p // nr * nr
        row = min(nr, (n - place + width - 1) // width * width)
        for j in range(first, last, width):
            panel = j // nr * nr
            source_row = min(nr, columns - panel)
            source = offset(panels, panel * panel_rows + (top + p) * source_row + j - panel)
            target = offset(out, place * length + (j - first) * row + p - place)
            if row == nr and source_row == nr and j + width <= last:  # the strides are constants
                transpose_tile(width, source, nr, target, nr)
            else:
                transpose_tile(last - j, source, source_row, target, row)


@typed_inlined
def _multiply_squares(m, n, first, last, a, a_row, panels, panel_rows, columns, top, d, c, c_row):
    """Do as `multiply_transposed` for a few rows of A, with squares of B that are used at once."""
    width = lane_count(c)
    square = stack_square(c)
    for panel in range(first, last, NV * width):
        row = min(NV * width, columns - panel)
        source = offset(panels, panel * panel_rows + top * row)
        for p in range(0, n, width):
            for j in range(panel, min(panel + row, last), width):
                transpose_tile(width, offset(source, p * row + j - panel), row, square, width)
                for i in range(m):
                    sums = load(c, i * c_row + p) if j > 0 else load(d, p)
                    for q in range(min(width, last - j)):
                        sums = fma(load(square, q * width), load_scalar(a, i * a_row + j + q), sums)
                    store(c, i * c_row + p, sums)


@called_by_address
def multiply_transposed(
    kernels, m, n, first, last, a, a_row, panels, panel_rows, columns, top, d, c, c_row, space
):  # fmt: skip
    """Compute C = A B^T + d for some rows and columns of a packed B, which are transposed, or continue it.

    The bits are those of `matmul`, if all columns of A and B are added in their order.

    Parameters
    ----------
    kernels : pointer
        From `kernel_addresses`.
    m, n : int64
        C is (m, n).
    first, last : int64
        The columns of A and B that are added, at most `plan.piece_columns`; `first` is that of a panel. Where it is 0,
        the sum begins with d, else with C.
    a, a_row : pointer, int64
        Row-major A and its row stride.
    panels, panel_rows, columns : pointer, int64, int64
        Packed B, the rows of its panels and its columns, with their padding.
    top : int64
        The first of the n rows of B, a multiple of the number of lanes.
    d : pointer
        A row that is added to each row of the product, as long as a row of C.
    c, c_row : pointer, int64
        Row-major C and its row stride; columns up to the next whole vector are written too.
    space : pointer
        Workspace of `plan.transposed_size` numbers.
    """
    if m <= FEW_TRANSPOSED:
        _multiply_squares(m, n, first, last, a, a_row, panels, panel_rows, columns, top, d, c, c_row)
        return
    width = lane_count(c)
    length = (last - first + width - 1) // width * width
    most = _transposed_size(itemsize(c)) // length // (NV * width) * NV * width
    for begin in range(0, n, most):
        n_rows = min(most, n - begin)
        pack_transpose(n_rows, first, last, panels, panel_rows, columns, top + begin, space)
        out = offset(c, begin)
        start, start_row = (offset(d, begin), REPEATED) if first == 0 else (out, c_row)
        matmul(
            kernels, m, n_rows, last - first, offset(a, first), a_row, space, length, start, start_row, out, c_row
        )  # fmt: skip


@jit
def matmul_transposed(kernels, m, n, k, a, a_row, panels, panel_rows, columns, d, c, c_row, space):
    """Compute C = A B^T + d for a packed B, which is (n, k); parameters are those of `multiply_transposed`."""
    step = _piece_columns(itemsize(c))
    for first in range(0, k, step):
        args = (
            kernels, m, n, first, min(first + step, k), a, a_row, panels, panel_rows, columns, NONE, d, c, c_row, space
        )  # fmt: skip
        call_at(load_scalar(kernels, MULTIPLY_TRANSPOSED), args)
