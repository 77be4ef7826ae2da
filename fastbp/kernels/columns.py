"""Samples side by side: rows of a few numbers turned into columns and back.

A vector register that holds one row of 10 outputs is only partly used, and their sum takes a chain of shuffles. One
that holds the same output of several samples is used fully, and no sum goes across it.
"""

from fastbp.kernels.intrinsics import lane_count, square_like
from fastbp.kernels.jit import jit
from fastbp.kernels.simd import load, splat, store
from fastbp.kernels.tiles import transpose_tile


@jit
def to_columns(rows, row, m, n, columns):
    """Set n columns of a square, a vector each, from m rows; no more of either than the square has.

    Parameters
    ----------
    rows, row : pointer, int64
        The rows, padded to whole vectors, and their stride.
    m, n : int64
        Samples, and numbers of each.
    columns : pointer
        From `square_like`. The places of samples that are not there become zero; other columns may be written.
    """
    width = lane_count(rows)
    if m == width:
        transpose_tile(n, rows, row, columns, width)
        return
    whole = square_like(rows)
    for i in range(width):
        store(whole, i * width, load(rows, i * row) if i < m else splat(rows, 0.0))
    transpose_tile(n, whole, width, columns, width)


@jit
def to_rows(columns, m, n, rows, row):
    """Set m rows from n columns; what pads the rows to whole vectors becomes zero, and so do the other columns."""
    width = lane_count(rows)
    for j in range(n, width):
        store(columns, j * width, splat(rows, 0.0))
    if m == width:
        transpose_tile(width, columns, width, rows, row)
        return
    whole = square_like(rows)
    transpose_tile(m, columns, width, whole, width)
    for i in range(m):
        store(rows, i * row, load(whole, i * width))
