"""Losses: the value for one sample, and the delta of the output layer.

References
----------
A. J. Maren, "Backpropagation" (2020): Eqs. 6.5, 6.17, 6.21, 6.23.
A. Lopez Davila, "Neural Networks: The Backpropagation Algorithm": secs. 4, 5.
"""

from math import log

import numpy as np

from fastbp.kernels.jit import jit

LOSSES = {"log_loss": 0, "squared_error": 1}
LOG_LOSS, SQUARED_ERROR = range(2)


@jit
def loss_and_residual(code, multiclass, y, a, residual):
    """Compare one row of outputs with its targets.

    - squared_error: 1/2 sum_o (y_o - a_o)^2 (Maren 2020, Eq. 6.5), dC/da = a - y.
    - log_loss, softmax outputs: -sum_o y_o log a_o; with logistic outputs
      -sum_o [y_o log a_o + (1 - y_o) log(1 - a_o)]. Lopez Davila prints it without the minus and with
      y and a exchanged. Its dC/dz = a - y for both. As in scikit-learn, probabilities are
      clipped to [eps, 1 - eps] in the loss, not in the delta.

    Parameters
    ----------
    code : int64
        A value of `LOSSES`.
    multiclass : bool
        Whether the outputs are a softmax.
    y, a, residual : ndarray of shape (n_outputs,)
        Targets, outputs, and where a - y goes.

    Returns
    -------
    float64
        The loss of this row.
    """
    total = 0.0
    if code == SQUARED_ERROR:
        for j in range(a.size):
            residual[j] = a[j] - y[j]
            total += 0.5 * np.float64(residual[j]) * np.float64(residual[j])
        return total
    eps = np.float64(np.finfo(a.dtype).eps)
    for j in range(a.size):
        residual[j] = a[j] - y[j]
        p = min(max(np.float64(a[j]), eps), 1.0 - eps)
        if y[j] != 0:
            total -= np.float64(y[j]) * log(p)
        if not multiclass and y[j] != 1:
            total -= (1.0 - np.float64(y[j])) * log(1.0 - p)
    return total
