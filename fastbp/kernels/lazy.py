"""Rows of the first layer's weights that wait, as no sample of a batch has their feature: how they catch up.

A row that has missed j steps has no gradient in them. Plain momentum moves it by a geometric sum. For Adam, with
rho = sqrt(beta_2) and s_i the sizes of the missed steps, it moves by ::

    -sum_i s_i beta_1^i m / (sqrt(v) rho^i + epsilon)
        = -m / d  sum_k x^k B_k,   d = sqrt(v) + epsilon,  x = sqrt(v) / d,
    B_k = sum_i s_i beta_1^i (1 - rho^i)^k,

as 1 / (d - sqrt(v) (1 - rho^i)) is a geometric series in x (1 - rho^i). As x is at most 1 it converges for all v and
epsilon alike. The B_k do not depend on the row, only on the step since when it waits; they follow from those of one
step later, with (1 - rho^(i+1)) = (1 - rho) + rho (1 - rho^i), by sums of positive numbers.

The kernels take a `csr._Csr`, of which they use what `workspace` made.
"""

from math import comb

import numpy as np

from fastbp.codegen.jit import jit
from fastbp.codegen.memory import lane_count, load_scalar, offset, store_scalar
from fastbp.codegen.vectors import fma, load, sqrt, store
from fastbp.optimizers import ADAM, NO_UPDATE, SGD, SOLVERS

# Steps after which all rows are caught up, which bounds the tables.
MAX_STEPS = 4096
# Terms B_0 to B_7 of the series. The first that is left out, relative to B_0, must be below these if all steps have one
# size.
N_TERMS = 8
MAX_RELATIVE_ERROR = {np.dtype(np.float32): 3e-8, np.dtype(np.float64): 1e-13}
# Steps that a term of the series looks back, at most: beta_1 to this power is below this.
NEGLIGIBLE = 1e-22


def has_closed_form(settings, dtype):
    """Whether the movement of rows without a gradient has a closed form of full precision."""
    solver = SOLVERS[settings.solver]
    if settings.alpha != 0 or settings.weight_decay != 0 or solver == NO_UPDATE:
        return False
    if solver == SGD or settings.beta_1 == 0:
        return True
    rest = 1 - np.sqrt(settings.beta_2) ** np.arange(1, MAX_STEPS)
    weights = settings.beta_1 ** np.arange(1, MAX_STEPS)
    return (weights * rest**N_TERMS).sum() <= MAX_RELATIVE_ERROR[dtype] * weights.sum()


def workspace(settings, n_features, is_lazy):
    """Return what the kernels need of rows that wait.

    Parameters
    ----------
    settings : session.StepSettings
        Of the training.
    n_features : int
        How many rows there are.
    is_lazy : bool
        Whether they wait; else the arrays are not used.

    Returns
    -------
    memory : int
        Steps that a term of the series looks back.
    arrays : dict of ndarray
        Those of `csr._Table`, by name.
    """
    n_rows, n_steps = (n_features, MAX_STEPS + 1) if is_lazy else (0, 0)
    memory, powers = _series(settings)
    arrays = {
        "last": np.zeros(n_rows, np.int32),
        "clock": np.zeros(1, np.int64),
        "log": np.zeros(n_steps),
        "moments": np.zeros((n_steps, N_TERMS)),
        "decays": _decays(settings, n_steps),
        "powers": powers,
    }
    return memory, arrays


def _series(settings):
    """Return how many steps a term of the series looks back, and the factors of `look_back`."""
    if SOLVERS[settings.solver] != ADAM or settings.beta_1 == 0:
        return 0, np.zeros((N_TERMS, N_TERMS))
    rho = np.sqrt(settings.beta_2)
    powers = [
        [comb(k, j) * (1 - rho) ** (k - j) * rho**j * settings.beta_1 if j <= k else 0.0 for j in range(N_TERMS)]
        for k in range(N_TERMS)
    ]
    return int(np.ceil(np.log(NEGLIGIBLE) / np.log(settings.beta_1))), np.array(powers)


def _decays(settings, n):
    """Return what is left of the optimizer's state after 0 to n - 1 steps without a gradient.

    For Adam beta_1^j and beta_2^j; for sgd momentum^j, and the distance that the velocity covers in these steps.
    """
    j = np.arange(n)
    if SOLVERS[settings.solver] == ADAM:
        return np.stack([settings.beta_1**j, settings.beta_2**j], axis=1)
    velocity = float(settings.momentum) ** j
    distance = np.cumsum(velocity) - 1
    return np.stack([velocity, distance * settings.momentum if settings.nesterovs_momentum else distance], axis=1)


@jit
def catch_up(csr, solver, constants, feature, now, row, weights, first, second):
    """Take a row through the steps that it has missed up to the step `now`, all without a gradient."""
    since = np.int64(load_scalar(csr.last, feature))
    if since >= now:
        return
    w, m, v = offset(weights, feature * row), offset(first, feature * row), offset(second, feature * row)
    width, missed = lane_count(weights), now - since
    decay_1, decay_2 = load_scalar(csr.decays, 2 * missed), load_scalar(csr.decays, 2 * missed + 1)
    if solver == ADAM:
        b = offset(csr.moments, since * N_TERMS)
        epsilon = load_scalar(constants, 2)
        for j in range(0, row, width):
            moment, square = load(m, j), load(v, j)
            inverse = 1.0 / (sqrt(square) + epsilon)
            x = 1.0 - inverse * epsilon  # not sqrt(v) * inverse, which is NaN where v has become infinite
            total = fma(x, load_scalar(b, 7), load_scalar(b, 6))
            for k in range(5, -1, -1):
                total = fma(x, total, load_scalar(b, k))
            store(w, j, load(w, j) - moment * inverse * total)
            store(m, j, moment * decay_1)
            store(v, j, square * decay_2)
    else:
        for j in range(0, row, width):
            velocity = load(m, j)
            store(w, j, fma(velocity, decay_2, load(w, j)))
            store(m, j, velocity * decay_1)


@jit
def look_back(csr, size):
    """Write a step of this size into the log, and renew the B_k of the rows that wait."""
    now = load_scalar(csr.clock, 0)
    store_scalar(csr.log, now, size)
    now += 1
    store_scalar(csr.clock, 0, now)
    if csr.memory == 0:
        return
    for k in range(N_TERMS):
        store_scalar(csr.moments, now * N_TERMS + k, 0.0)
    for step in range(now - 1, max(-1, now - 1 - csr.memory), -1):
        later, here = offset(csr.moments, (step + 1) * N_TERMS), offset(csr.moments, step * N_TERMS)
        size = load_scalar(csr.log, step)
        for k in range(N_TERMS):
            factors = offset(csr.powers, k * N_TERMS)
            total = load_scalar(factors, 0) * size
            for j in range(k + 1):
                total += load_scalar(factors, j) * load_scalar(later, j)
            store_scalar(here, k, total)
