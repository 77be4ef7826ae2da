"""Initial weights and biases.

References
----------
Y. LeCun, L. Bottou, G. B. Orr and K.-R. Müller, "Efficient BackProp", 1998, sec. 4.6.
X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
Eqs. 12 and 16.
K. He, X. Zhang, S. Ren and J. Sun, "Delving deep into rectifiers", ICCV 2015, Eq. 10.
"""

from itertools import pairwise

import numpy as np

# The variance of the weights of a layer, as a function of its inputs and outputs.
_VARIANCES = {
    "glorot": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he": lambda fan_in, fan_out: 2 / fan_in,
    "lecun": lambda fan_in, fan_out: 1 / fan_in,
}
# "auto" is scikit-learn's, `initial_parameters`; the others are drawn by `scaled_parameters`.
WEIGHT_INITS = ("auto", *(f"{name}_{shape}" for name in _VARIANCES for shape in ("uniform", "normal")))


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


def scaled_parameters(weight_init, units, random_state, dtype):
    """Draw weights of a variance that depends on the size of the layer, with biases of 0.

    Parameters
    ----------
    weight_init : str
        One of `WEIGHT_INITS`, but "auto". The variance of the weights is 2 / (fan_in + fan_out) for "glorot" (Glorot
        and Bengio 2010, Eq. 12), 2 / fan_in for "he" (He et al. 2015, Eq. 10) and 1 / fan_in for "lecun" (LeCun et al.
        1998). "uniform" is U(-b, b) with b = sqrt(3 variance), "normal" a normal distribution that is not truncated.
    units, random_state, dtype
        As in `initial_parameters`.

    Returns
    -------
    coefs : list of ndarray of shape (fan_in, fan_out)
    intercepts : list of ndarray of shape (fan_out,)
    """
    name, shape = weight_init.split("_")
    coefs, intercepts = [], []
    for fan_in, fan_out in pairwise(units):
        variance = _VARIANCES[name](fan_in, fan_out)
        if shape == "normal":
            weights = random_state.normal(0.0, np.sqrt(variance), (fan_in, fan_out))
        else:
            bound = np.sqrt(3 * variance)
            weights = random_state.uniform(-bound, bound, (fan_in, fan_out))
        coefs.append(weights.astype(dtype, copy=False))
        intercepts.append(np.zeros(fan_out, dtype))
    return coefs, intercepts
