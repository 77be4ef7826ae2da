"""Optimizers: the step sizes and the update of each, and the norm of the gradient.

`step_sizes` and `decay_rates` are plain NumPy, computed once for many steps. The others are compiled: `update` updates
a block of parameters while their gradient is in the cache.
"""

from typing import NamedTuple

import numpy as np

from fastbp.codegen.jit import inlined, jit
from fastbp.codegen.memory import lane_count, load_scalar
from fastbp.codegen.vectors import fma, load, splat, sqrt, store, total

SGD, ADAM, NO_UPDATE = 0, 1, -1
# "adamw" is Adam with a decay of the weights. The compiled code of "lbfgs" computes the gradient only: scipy has the
# update.
SOLVERS = {"sgd": SGD, "adam": ADAM, "adamw": ADAM, "lbfgs": NO_UPDATE}
# How many numbers an optimizer remembers of each parameter: a velocity, or Adam's two moments.
N_MOMENTS = {SGD: 1, ADAM: 2, NO_UPDATE: 0}


def step_sizes(solver, rates, first_step, beta_1, beta_2):
    """Return the size of each step: the factor that all parameters share.

    Parameters
    ----------
    solver : {"sgd", "adam", "adamw"}
        Adam's two bias corrections are part of the step size:
        rate * sqrt(1 - beta_2^t) / (1 - beta_1^t) (Kingma and Ba 2015, end of sec. 2).
    rates : ndarray of shape (n_steps,)
        Learning rates.
    first_step : int
        Number of steps before these.
    beta_1, beta_2 : float
        Adam's decay rates.

    Returns
    -------
    ndarray of shape (n_steps,), float64
        Step sizes.
    """
    if SOLVERS[solver] == ADAM:
        t = first_step + 1.0 + np.arange(len(rates))
        return rates * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
    return np.asarray(rates, dtype=np.float64)


def decay_rates(solver, rates, weight_decay):
    """Return by which share of themselves the weights shrink in each step: rate * weight_decay.

    Only for "adamw" (Loshchilov and Hutter 2019, Algorithm 2, line 12): the decay is no part of the gradient, and does
    not have the bias corrections of the step size.

    Parameters
    ----------
    solver : str
        A key of `SOLVERS`.
    rates : ndarray of shape (n_steps,)
        Learning rates.
    weight_decay : float
        The decay at a rate of 1.

    Returns
    -------
    ndarray of shape (n_steps,), float64
    """
    return np.asarray(rates, dtype=np.float64) * (weight_decay if solver == "adamw" else 0.0)


class Rule(NamedTuple):
    """What all parameters share in a step of an optimizer; see `update`."""

    first: float  # momentum; Adam's beta_1
    second: float  # Nesterov's momentum if it is not 0; Adam's beta_2
    epsilon: float
    scale: float  # the factor that makes the mean gradient of a sum
    size: float
    decay: float


@inlined
def rule_of(constants, size, decay, divisor):
    """Return what `update_vector` needs; see `update`."""
    return Rule(
        load_scalar(constants, 0), load_scalar(constants, 1), load_scalar(constants, 2), 1.0 / divisor, size, decay
    )


@inlined
def update_vector(solver, has_velocity, is_last, rule, i, w, g, params, first, second):
    """Update the vector `w` of the parameters from `i` on, whose summed gradient is `g`; see `update`.

    Parameters
    ----------
    solver : int64
        `ADAM` or `SGD`.
    has_velocity, is_last : bool
        If the momentum is zero, `has_velocity` may be false: the velocity is then not read, and only written in the
        last step. With sample weights each step may be the last: those after it may have the weight 0.
    rule : Rule
        See there.
    i : int64
        Where the vector begins.
    w, g : vector
        The parameters, and the gradient of the L2 term and of the loss, summed over the batch.
    params, first, second : pointer
        As in `update`.
    """
    if solver == ADAM:
        g = g * rule.scale
        m = fma(load(first, i), rule.first, g * (1.0 - rule.first))
        v = fma(load(second, i), rule.second, g * g * (1.0 - rule.second))
        store(first, i, m)
        store(second, i, v)
        store(params, i, w - fma(w, rule.decay, m * rule.size / (sqrt(v) + rule.epsilon)))
    elif has_velocity:
        g = g * (rule.scale * rule.size)
        v = fma(load(first, i), rule.first, -g)
        store(first, i, v)
        store(params, i, w + (fma(v, rule.first, -g) if rule.second != 0 else v))
    else:
        g = g * (rule.scale * rule.size)
        if is_last:
            store(first, i, 0.0 - g)
        store(params, i, w - g)


@jit
def update(solver, constants, size, decay, alpha, divisor, n, params, grads, first, second):
    """Update a block of parameters: one step of an optimizer.

    The gradient is g = (grads + alpha * params) / divisor: the sum over a batch, the L2
    term, and the average (Lopez Davila, sec. 5).

    - sgd: v = momentum v - size g, params += v; Nesterov: params += momentum v - size g with the new v
      (Sutskever et al. 2013).
    - adam: m = beta_1 m + (1 - beta_1) g, v = beta_2 v + (1 - beta_2) g^2,
      params -= size m / (sqrt(v) + epsilon) (Kingma and Ba 2015).
    - adamw: params -= size m / (sqrt(v) + epsilon) + decay params (Loshchilov and Hutter 2019).

    Parameters
    ----------
    solver : int64
        A value of `SOLVERS`; `NO_UPDATE` changes nothing.
    constants : pointer to float64
        For sgd: momentum, 1 for Nesterov or 0. For adam: beta_1, beta_2, epsilon.
    size, decay : float64
        The step size, from `step_sizes`; from `decay_rates`, 0 for biases.
    alpha, divisor : float64
        As in the equation above.
    n : int64
        Number of parameters, a multiple of the lanes.
    params, grads, first, second : pointer
        Parameters, summed gradients, and the optimizer's state: the velocity, or Adam's m and v. All but
        `grads` are changed in place.

    Returns
    -------
    float64
        The sum of squares of the parameters before the step, for the L2 term of the loss.
    """
    step = lane_count(params)
    rule = rule_of(constants, size, decay, divisor)
    squares = splat(params, 0.0)
    for i in range(0, n, step):
        w = load(params, i)
        squares = fma(w, w, squares)
        if solver != NO_UPDATE:
            update_vector(solver, True, True, rule, i, w, fma(w, alpha, load(grads, i)), params, first, second)
    return np.float64(total(squares))


# --- clipping ---


@jit
def square_norm(alpha, n, params, grads):
    """Return the sum of squares of grads + alpha * params, for a block of n parameters; see `update`."""
    step = lane_count(params)
    squares = splat(params, 0.0)
    for i in range(0, n, step):
        g = fma(load(params, i), alpha, load(grads, i))
        squares = fma(g, g, squares)
    result = np.float64(total(squares))
    if result < np.inf:
        return result
    # Squares of large numbers are infinite in float32.
    exact = 0.0
    for i in range(n):
        g = np.float64(load_scalar(grads, i)) + alpha * load_scalar(params, i)
        exact += g * g
    return exact


@inlined
def clipped_divisor(square, divisor, max_norm):
    """Return by what the summed gradient is divided so that the norm of the mean gradient is at most `max_norm`.

    A mean gradient whose norm is larger is multiplied by max_norm / norm (Pascanu et al. 2013, Algorithm 1).

    Parameters
    ----------
    square : float64
        The sum of the squares of the summed gradient, L2 term included, of all parameters.
    divisor : float64
        Samples of the batch, or the sum of their weights.
    max_norm : float64
        The largest norm.

    Returns
    -------
    float64
        The divisor for `update`.
    """
    norm = np.sqrt(square) / abs(divisor)
    return divisor * (norm / max_norm) if norm > max_norm else divisor
