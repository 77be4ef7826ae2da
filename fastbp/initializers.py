"""Initial weights and biases.

References
----------
Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010, Eq. 16.
"""

import numpy as np


def initial_parameters(units, factors, random_state, dtype):
    """Draw weights and biases from U(-b, b), b = sqrt(factor / (fan_in + fan_out)).

    Parameters
    ----------
    units : sequence of int
        Units of each layer, inputs and outputs included.
    factors : sequence of float
        The factor of each layer after the inputs: the `init_factor` of its activation.
    random_state : numpy.random.RandomState
        Source of randomness. It is used in scikit-learn's order, so that the same seed gives the same weights.
    dtype : {float32, float64}
        Type of the result.

    Returns
    -------
    coefs : list of ndarray of shape (fan_in, fan_out)
    intercepts : list of ndarray of shape (fan_out,)
    """
    coefs, intercepts = [], []
    for fan_in, fan_out, factor in zip(units[:-1], units[1:], factors, strict=True):
        bound = np.sqrt(factor / (fan_in + fan_out))
        coefs.append(random_state.uniform(-bound, bound, (fan_in, fan_out)).astype(dtype, copy=False))
        intercepts.append(random_state.uniform(-bound, bound, fan_out).astype(dtype, copy=False))
    return coefs, intercepts
