"""Learning rate schedules: the rate as a function of the step, or of the course of training.

References
----------
L. N. Smith, "A disciplined approach to neural network hyper-parameters", arXiv:1803.09820, 2018.
I. Loshchilov and F. Hutter, "SGDR: Stochastic gradient descent with warm restarts", ICLR 2017.
"""

import numpy as np

# scikit-learn's own schedules; they apply to the solver "sgd" only.
SGD_SCHEDULES = ("constant", "invscaling", "adaptive")
# These reach their end after max_iter epochs, by design.
FINITE_SCHEDULES = ("cosine", "one_cycle")
SCHEDULES = (*SGD_SCHEDULES, *FINITE_SCHEDULES)
# Smith's shape as it is commonly used: the rate rises over the first 30 percent of the steps from 1/25 of the highest,
# and falls to 1e-4 of where it began.
_RISE, _FIRST, _LAST = 0.3, 1 / 25, 1 / 25 * 1e-4
# "adaptive" divides the rate by this when the loss stops to improve, as long as the rate is above the smallest.
_DIVISOR, _SMALLEST = 5.0, 1e-6


def step_rates(schedule, rate, first_step, n_steps, total_steps):
    """Return the learning rates of some steps.

    Parameters
    ----------
    schedule : str
        "cosine" falls from `rate` to 0 along half a cosine (Loshchilov and Hutter 2017, Eq. 5); "one_cycle" rises
        to `rate` and falls to almost nothing, along half a cosine each (Smith 2018). For the others the rate
        does not change from step to step.
    rate : float
        The rate now, or the highest of the cycle.
    first_step, n_steps : int
        First step and number of steps; after the end of the schedule its last rate continues.
    total_steps : int
        Steps of the whole training.

    Returns
    -------
    ndarray of shape (n_steps,), float64
    """
    if schedule not in FINITE_SCHEDULES:
        return np.full(n_steps, rate)
    done = np.minimum((first_step + np.arange(n_steps)) / max(1.0, total_steps - 1.0), 1.0)
    if schedule == "cosine":
        return rate * _half_cosine(done, 1.0, 0.0)
    rising = _half_cosine(np.minimum(done / _RISE, 1.0), _FIRST, 1.0)
    falling = _half_cosine(np.maximum(done - _RISE, 0.0) / (1 - _RISE), 1.0, _LAST)
    return rate * np.where(done < _RISE, rising, falling)


def _half_cosine(done, start, end):
    return end + (start - end) * (1 + np.cos(np.pi * done)) / 2


def after_epoch(schedule, rate, initial, samples_seen, power_t):
    """Return the rate of the next epoch: "invscaling" is initial / (samples_seen + 1)^power_t."""
    return initial / (samples_seen + 1) ** power_t if schedule == "invscaling" else rate


def after_plateau(schedule, rate):
    """Return the rate to continue with when the loss has stopped to improve, or None to stop."""
    return rate / _DIVISOR if schedule == "adaptive" and rate > _SMALLEST else None
