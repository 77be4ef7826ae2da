"""Operands and layouts that the tests of the matrix products share."""

import numpy as np

from fastbp.codegen.target import lanes
from fastbp.codegen.tiles import NV

# Around the outputs; no kernel computes it.
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
    """A buffer for `rows` rows with a row of canaries before and after; row i begins at (i + 1) * row."""
    return np.full((rows + 2, row), CANARY, dtype)
