"""Losses: the value for one sample, and its derivative by the outputs.

To add one, write its terms, its derivative and its entry in `LOSSES`, all in this file.

References
----------
A. J. Maren, "Backpropagation" (2020): Eqs. 6.5, 6.17, 6.21, 6.23.
A. Lopez Davila, "Neural Networks: The Backpropagation Algorithm": secs. 4, 5.
P. McCullagh and J. A. Nelder, "Generalized Linear Models" (1989): sec. 2.3, the deviance of Poisson counts.
P. J. Huber, "Robust estimation of a location parameter", 1964.
R. Koenker and G. Bassett, "Regression quantiles", 1978.
C. Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016: sec. 7, label smoothing.
"""

from typing import Any, NamedTuple

import numpy as np

from fastbp.codegen.elementary import log
from fastbp.codegen.jit import inlined, typed_inlined
from fastbp.codegen.memory import lane_count, load_scalar
from fastbp.codegen.vectors import any_lane, first_lanes, load, load_first, select, splat, store, total

LOSSES = {"log_loss": 0, "squared_error": 1, "poisson": 2, "absolute_error": 3, "huber": 4, "quantile": 5}
LOG_LOSS, SQUARED_ERROR, POISSON, ABSOLUTE_ERROR, HUBER, QUANTILE = range(6)
# With the output activation that belongs to them (a logistic or softmax, an exponential) dC/dz is a - y.
CANONICAL_ACTIVATIONS = {"log_loss": ("logistic", "softmax"), "poisson": ("exp",)}


class Loss(NamedTuple):
    """A loss and its parameters.

    Attributes
    ----------
    name : str
        A key of `LOSSES`.
    parameters : tuple of float
        One number for each output: the `delta` of "huber", the levels of "quantile", else zeros.
    scale : float
        Factor of the value that users see; the gradient does not have it.
    """

    name: str
    parameters: tuple
    scale: float = 1.0


class CompiledLoss(NamedTuple):
    """A `Loss` in compiled code."""

    code: int  # a value of LOSSES
    parameters: Any  # pointer to one number for each output, padded to whole vectors
    eps: float  # the machine epsilon of the network's type


@typed_inlined
def loss_terms(loss, multiclass, y, a, parameter):
    """Compare outputs with their targets.

    - squared_error: 1/2 (y_o - a_o)^2 (Maren 2020, Eq. 6.5), dC/da = a - y. Maren's Eq. 6.16 prints its left
      side as 1/2 dx^2/dx = 2 1/2 x where d(x^2/2)/dx = x is meant; Lopez Davila's sec. 5 has C = (a - y)^2, and so a
      factor of 2 that the 1/2 of sec. 4 takes away.
    - log_loss, softmax outputs: -y_o log a_o; with logistic outputs -[y_o log a_o + (1 - y_o) log(1 - a_o)]. Lopez
      Davila prints it without the minus and with y and a exchanged. Its dC/dz = a - y for both. As in scikit-learn,
      probabilities are clipped to [eps, 1 - eps] in the loss, not in the delta.
    - poisson: y_o log(y_o / a_o) - y_o + a_o, half the Poisson deviance; with outputs exp(z) dC/dz = a - y.
    - absolute_error: |y_o - a_o|.
    - huber: 1/2 (y_o - a_o)^2 up to |y_o - a_o| = delta, from there on the straight line that continues it
      (Huber 1964).
    - quantile: q (y_o - a_o) where the output is below its target, (1 - q) (a_o - y_o) where it is above (Koenker and
      Bassett 1978).

    Parameters
    ----------
    loss : CompiledLoss
        The loss.
    multiclass : bool
        Whether the outputs are a softmax; else each is a unit with a loss of its own.
    y, a : vector
        Targets and outputs.
    parameter : vector
        The parameters of the loss for these outputs.

    Returns
    -------
    vector
        The share of each output in the loss of its sample.
    """
    difference = a - y
    if loss.code == LOG_LOSS:
        p = select(a < loss.eps, loss.eps, a)
        p = select(p > 1.0 - loss.eps, 1.0 - loss.eps, p)
        value = y * log(p)
        if not multiclass:
            value = value + (1.0 - y) * log(1.0 - p)
        return -value
    if loss.code == POISSON:
        value = y * log(y / a)
        return select(y > 0.0, value, select(y < 0.0, value, 0.0)) + difference
    if loss.code == SQUARED_ERROR:
        return difference * difference * 0.5
    size = select(difference < 0.0, -difference, difference)
    if loss.code == HUBER:
        return select(size > parameter, parameter * (size - parameter * 0.5), size * size * 0.5)
    if loss.code == QUANTILE:
        return select(difference < 0.0, parameter * size, (1.0 - parameter) * size)
    return size


@inlined
def is_canonical(loss):
    """Whether `derivative_terms` are dC/dz, as the derivative of the output activation cancels."""
    return loss.code == LOG_LOSS or loss.code == POISSON


@typed_inlined
def derivative_terms(loss, y, a, parameter):
    """Return dC/da for each output; dC/dz if the loss `is_canonical`."""
    difference = a - y
    if loss.code == HUBER:
        difference = select(difference > parameter, parameter, difference)
        difference = select(difference < -parameter, -parameter, difference)
    if loss.code == ABSOLUTE_ERROR:  # 0 where both are equal
        return select(difference > 0.0, 1.0, select(difference < 0.0, -1.0, difference))
    if loss.code == QUANTILE:
        return select(difference > 0.0, 1.0 - parameter, select(difference < 0.0, -parameter, difference))
    return difference


@inlined
def set_derivative(loss, n, y, a, derivative):
    """Set the `derivative_terms` of one sample.

    Parameters
    ----------
    loss : CompiledLoss
        The loss.
    n : int64
        Number of outputs.
    y, a, derivative : pointer
        Targets, outputs, and the memory for the result. The last two are padded to whole vectors; the padding
        of the result becomes 0.
    """
    for j in range(0, n, lane_count(a)):
        output = load(a, j)
        terms = derivative_terms(loss, load_first(y, j, n - j), output, load(loss.parameters, j))
        store(derivative, j, select(first_lanes(output, n - j), terms, 0.0))


@inlined
def loss_of_row(loss, multiclass, n, y, a):
    """Return the loss of one sample: the sum of its `loss_terms`, with pointers to its n targets and outputs."""
    sums = splat(a, 0.0)
    if multiclass and loss.code == LOG_LOSS:  # most terms are 0; a softmax is NaN in all outputs or in none
        for j in range(0, n, lane_count(a)):
            targets = load_first(y, j, n - j)
            if any_lane(targets > 0.0):
                sums = sums + _terms_of_vector(loss, multiclass, n, j, targets, a)
    else:
        for j in range(0, n, lane_count(a)):
            sums = sums + _terms_of_vector(loss, multiclass, n, j, load_first(y, j, n - j), a)
    return np.float64(total(sums))


@inlined
def _terms_of_vector(loss, multiclass, n, j, targets, a):
    """Return the `loss_terms` of the outputs from j on, 0 after the last of n."""
    output = load(a, j)
    return select(
        first_lanes(output, n - j), loss_terms(loss, multiclass, targets, output, load(loss.parameters, j)), 0.0
    )  # fmt: skip


@inlined
def losses_of_columns(loss, multiclass, n, y, a):
    """Return the losses of several samples, whose targets and outputs are n columns (see `codegen.transpose`)."""
    width = lane_count(a)
    sums = splat(a, 0.0)
    for j in range(n):
        parameter = splat(a, load_scalar(loss.parameters, j))
        sums = sums + loss_terms(loss, multiclass, load(y, j * width), load(a, j * width), parameter)
    return sums


def smooth_targets(y, smoothing, n_classes):
    """Spread a part of each target over all classes (Szegedy et al. 2016, sec. 7).

    Parameters
    ----------
    y : ndarray
        Targets, 0 and 1.
    smoothing : float
        The part s.
    n_classes : int
        Number of classes K; 2 where each output is a problem of its own.

    Returns
    -------
    ndarray
        y (1 - s) + s / K, of the type of y.
    """
    return y * (1 - smoothing) + smoothing / n_classes
