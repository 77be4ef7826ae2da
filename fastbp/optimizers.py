"""Optimizers: how a gradient becomes a step, as a pair of step size and update.

`step_sizes` is plain NumPy, once for many steps; `update` is compiled and works on a
stretch of parameters while its gradient is still in the cache.
"""

import numpy as np

from fastbp.kernels.intrinsics import get, lane_count
from fastbp.kernels.jit import jit
from fastbp.kernels.simd import fma, load, splat, sqrt, store, total

SOLVERS = {"sgd": 0, "adam": 1}
SGD, ADAM = range(2)
NO_UPDATE = -1


def step_sizes(solver, rates, first_step, beta_1, beta_2):
    """Return the factor of each step that does not depend on the parameter.

    Parameters
    ----------
    solver : {"sgd", "adam"}
        Adam's two corrections of the bias towards zero are part of the factor:
        rate * sqrt(1 - beta_2^t) / (1 - beta_1^t) (Kingma and Ba 2015, end of sec. 2).
    rates : ndarray of shape (n_steps,)
        Learning rates.
    first_step : int
        Steps taken before.
    beta_1, beta_2 : float
        Adam's decay rates.

    Returns
    -------
    ndarray of shape (n_steps,), float64
        Step sizes.
    """
    if solver == "adam":
        t = first_step + 1.0 + np.arange(len(rates))
        return rates * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
    return np.asarray(rates, dtype=np.float64)


@jit
def update(solver, settings, size, penalty, divisor, n, params, grads, first, second):
    """Take one step with a stretch of parameters.

    The gradient is (grads + penalty * params) / divisor: the sum over a batch, the L2
    term, and the average (Lopez Davila, sec. 5).

    - sgd: v = momentum v - size g, params += v; Nesterov: params += momentum v - size g with the new v
      (Sutskever et al. 2013).
    - adam: m = beta_1 m + (1 - beta_1) g, v = beta_2 v + (1 - beta_2) g^2,
      params -= size m / (sqrt(v) + epsilon) (Kingma and Ba 2015).

    Parameters
    ----------
    solver : int64
        A value of `SOLVERS`, or `NO_UPDATE`, which changes nothing.
    settings : pointer to float64
        For sgd: momentum, 1 for Nesterov or 0. For adam: beta_1, beta_2, epsilon.
    size : float64
        The step size, from `step_sizes`.
    penalty, divisor : float64
        As in the equation above.
    n : int64
        Number of parameters, a multiple of the lanes.
    params, grads, first, second : pointer
        Parameters, summed gradients, and the optimizer's memory: the velocity, or Adam's m and v. All but
        `grads` are changed.

    Returns
    -------
    float64
        The sum of the squares of the parameters before the step.
    """
    step = lane_count(params)
    scale = 1.0 / divisor
    squares = splat(params, 0.0)
    if solver == ADAM:
        beta_1, beta_2, epsilon = get(settings, 0), get(settings, 1), get(settings, 2)
        rest_1, rest_2 = 1.0 - beta_1, 1.0 - beta_2
        for i in range(0, n, step):
            w = load(params, i)
            squares = fma(w, w, squares)
            g = fma(w, penalty, load(grads, i)) * scale
            m = fma(load(first, i), beta_1, g * rest_1)
            v = fma(load(second, i), beta_2, g * g * rest_2)
            store(first, i, m)
            store(second, i, v)
            store(params, i, w - m * size / (sqrt(v) + epsilon))
    elif solver == SGD:
        momentum = get(settings, 0)
        nesterov = get(settings, 1) != 0
        for i in range(0, n, step):
            w = load(params, i)
            squares = fma(w, w, squares)
            g = fma(w, penalty, load(grads, i)) * (scale * size)
            v = fma(load(first, i), momentum, -g)
            store(first, i, v)
            store(params, i, w + (fma(v, momentum, -g) if nesterov else v))
    else:
        for i in range(0, n, step):
            w = load(params, i)
            squares = fma(w, w, squares)
    return np.float64(total(squares))
