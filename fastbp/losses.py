"""Losses: the value for one sample, and the delta of the output layer.

References
----------
A. J. Maren, "Backpropagation" (2020): Eqs. 6.5, 6.17, 6.21, 6.23.
A. Lopez Davila, "Neural Networks: The Backpropagation Algorithm": secs. 4, 5.
"""

import numpy as np

from fastbp.codegen.elementary import log
from fastbp.codegen.jit import inlined, typed_inlined
from fastbp.codegen.memory import lane_count
from fastbp.codegen.vectors import first_lanes, load, load_first, select, splat, store, total

LOSSES = {"log_loss": 0, "squared_error": 1}
LOG_LOSS, SQUARED_ERROR = range(2)


@typed_inlined
def loss_terms(code, multiclass, y, a, eps):
    """Compare outputs with their targets.

    - squared_error: 1/2 (y_o - a_o)^2 (Maren 2020, Eq. 6.5), dC/da = a - y. Maren's Eq. 6.16 prints its left
      side as 1/2 dx^2/dx = 2 1/2 x where d(x^2/2)/dx = x is meant; Lopez Davila's sec. 5 has C = (a - y)^2, and so a
      factor of 2 that the 1/2 of sec. 4 takes away.
    - log_loss, softmax outputs: -y_o log a_o; with logistic outputs -[y_o log a_o + (1 - y_o) log(1 - a_o)]. Lopez
      Davila prints it without the minus and with y and a exchanged. Its dC/dz = a - y for both. As in scikit-learn,
      probabilities are clipped to [eps, 1 - eps] in the loss, not in the delta.

    Parameters
    ----------
    code : int64
        A value of `LOSSES`.
    multiclass : bool
        Whether the outputs are a softmax; else each is a logistic unit with a loss of its own.
    y, a : vector
        Targets and outputs.
    eps : float64
        The machine epsilon of the network's type.

    Returns
    -------
    vector
        The share of each output in the loss of its sample.
    """
    if code == SQUARED_ERROR:
        difference = a - y
        return difference * difference * 0.5
    p = select(a < eps, eps, a)
    p = select(p > 1.0 - eps, 1.0 - eps, p)
    value = y * log(p)
    if not multiclass:
        value = value + (1.0 - y) * log(1.0 - p)
    return -value


@inlined
def set_residual(n, y, a, residual):
    """Set a - y for one sample.

    Parameters
    ----------
    n : int64
        Number of outputs.
    y, a, residual : pointer
        Targets, outputs, and the memory for a - y. The last two are padded to whole vectors; the padding
        of the residual becomes 0.
    """
    for j in range(0, n, lane_count(a)):
        output = load(a, j)
        store(residual, j, select(first_lanes(output, n - j), output - load_first(y, j, n - j), 0.0))


@inlined
def loss_of_row(code, multiclass, n, y, a, eps):
    """Return the loss of one sample: the sum of its `loss_terms`, with pointers to its n targets and outputs."""
    sums = splat(a, 0.0)
    for j in range(0, n, lane_count(a)):
        output = load(a, j)
        terms = loss_terms(code, multiclass, load_first(y, j, n - j), output, eps)
        sums = sums + select(first_lanes(output, n - j), terms, 0.0)
    return np.float64(total(sums))


@inlined
def losses_of_columns(code, multiclass, n, y, a, eps):
    """Return the losses of several samples, whose targets and outputs are n columns (see `codegen.transpose`)."""
    width = lane_count(a)
    sums = splat(a, 0.0)
    for j in range(0, n * width, width):
        sums = sums + loss_terms(code, multiclass, load(y, j), load(a, j), eps)
    return sums
