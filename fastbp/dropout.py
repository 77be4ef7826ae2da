"""Dropout: in training, each unit of a layer is left out with some probability.

The activations that the next layer receives, and the deltas that it gives back, are ::

    d = m a / (1 - rate),   m = 1 with probability 1 - rate, else 0
    delta = m / (1 - rate) (delta^(l+1) (W^(l+1))^T) f'(z)

(Srivastava et al. 2014, sec. 4; the division, by which prediction has nothing to do, is in sec. 10.) The mask m is a
function of the seed, the step, the layer, the row of the batch and the unit, so that the backward pass computes it once
more instead of reading it, and results do not depend on the threads.

References
----------
N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014.
"""

from typing import NamedTuple

import numpy as np
from numba import from_dtype, types

from fastbp.codegen.jit import address_of, called_by_address
from fastbp.codegen.memory import lane_count, offset
from fastbp.codegen.random_bits import random_at_least, split
from fastbp.codegen.vectors import load, select, store

# How many values 32 random bits have.
_N_VALUES = 2**32


class Dropout(NamedTuple):
    """The dropout of a layer, with a rate in [0, 1)."""

    rate: float

    @property
    def threshold(self):
        """Below which number 32 random bits drop a unit; 0 for no dropout."""
        return min(round(self.rate * _N_VALUES), _N_VALUES - 1)

    def address(self, dtype):
        """Compile or load `drop` and return its address; 0 if nothing is dropped."""
        values, n = types.CPointer(from_dtype(np.dtype(dtype))), types.int64
        return address_of(drop, (n, n, n, n, n, n, values, values, n)) if self.threshold else 0


@called_by_address
def drop(key, first_row, threshold, m, left, right, x, out, row):
    """Multiply units [left, right) of m rows by mask / (1 - rate).

    Parameters
    ----------
    key : int64
        Of the seed, step and layer.
    first_row : int64
        Row of the batch that is the first of these.
    threshold : int64
        See `Dropout`.
    m : int64
        Rows.
    left, right : int64
        The first of the units, a multiple of the number of lanes, and one past the last.
    x, out : pointer
        Activations or deltas, padded to whole vectors; the result, which may be the same memory.
    row : int64
        Row stride of both.
    """
    scale = _N_VALUES / (_N_VALUES - threshold)
    for i in range(m):
        row_key = split(key, first_row + i)
        values, results = offset(x, i * row), offset(out, i * row)
        for j in range(left, right, lane_count(x)):
            kept = random_at_least(x, row_key, j, threshold)
            store(results, j, select(kept, load(values, j) * scale, 0.0))
