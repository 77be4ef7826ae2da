"""Activation functions: one place for the name, the value and the derivative of each.

To add one, write its dataclass, its place in `ACTIVATIONS` and among the codes, and its loops in `activate` and
`times_derivative`: all in this file.

Conventions: `z` is what a unit receives, `a = f(z)` what it gives on. Both are stretches of a layer's
values, padded to whole vectors; the codes and the two coefficients come from `Activation`.

References
----------
A. J. Maren, "Backpropagation", ch. 6 of *Statistical Mechanics, Neural Networks, and
Artificial Intelligence* (draft, 2020): Eqs. 6.1, 6.2, 6.4, 6.10.
A. Lopez Davila, "Neural Networks: The Backpropagation Algorithm": the table of sec. 3.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastbp.kernels.elementary import exp, tanh
from fastbp.kernels.intrinsics import lane_count
from fastbp.kernels.jit import jit
from fastbp.kernels.simd import first_lanes, largest, load, select, splat, store, total


@dataclass(frozen=True)
class Activation:
    """What all activation functions share.

    Attributes
    ----------
    name : str
        The name by which estimators know it.
    code : int
        The number by which compiled code knows it.
    init_factor : float
        Weights are drawn from U(-b, b) with b = sqrt(init_factor / (fan_in + fan_out))
        (Glorot and Bengio 2010; 2 for logistic units, as scikit-learn does).
    keeps_z : bool
        Whether the derivative needs z; if not, `a` is written over it.
    """

    name: ClassVar[str] = ""
    code: ClassVar[int]
    init_factor: ClassVar[float] = 6.0
    keeps_z: ClassVar[bool] = False

    @property
    def coefficients(self):
        """The parameters of the function, as the two floats that compiled code takes."""
        return (0.0, 0.0)


@dataclass(frozen=True)
class Identity(Activation):
    """f(z) = z."""

    name = "identity"
    code = 0


@dataclass(frozen=True)
class Logistic(Activation):
    """f(z) = 1 / (1 + exp(-slope z)), with f' = slope a (1 - a) (Maren 2020, Eqs. 6.1, 6.2).

    Parameters
    ----------
    slope : float, default=1.0
        Steepness, above 0: Maren's alpha, Lopez Davila's beta.
    """

    slope: float = 1.0

    name = "logistic"
    code = 1
    init_factor = 2.0

    def __post_init__(self):
        if not (np.isfinite(self.slope) and self.slope > 0):
            raise ValueError(f"The slope of Logistic must be a finite number above 0, got {self.slope!r}.")

    @property
    def coefficients(self):
        """The slope, and nothing."""
        return (float(self.slope), 0.0)


@dataclass(frozen=True)
class Tanh(Activation):
    """f(z) = tanh(z), with f' = 1 - a^2."""

    name = "tanh"
    code = 2


@dataclass(frozen=True)
class Relu(Activation):
    """f(z) = max(0, z), with f' = 1 where z > 0, else 0."""

    name = "relu"
    code = 3


@dataclass(frozen=True)
class Softmax(Activation):
    """f(z)_j = exp(z_j) / sum_k exp(z_k), over the units of the output layer.

    Only with the loss "log_loss", whose output delta is a - y.
    """

    name = "softmax"
    code = 4


ACTIVATIONS = {cls.name: cls() for cls in (Identity, Logistic, Tanh, Relu)}
IDENTITY, LOGISTIC, TANH, RELU, SOFTMAX = range(5)


def get_activation(activation):
    """Return the activation object for a name; an object is returned as it is.

    Raises
    ------
    ValueError
        If there is no activation of that name.
    """
    if isinstance(activation, Activation):
        if type(activation).name not in ACTIVATIONS:
            raise ValueError(f"{activation!r} is for the outputs of output_activation='auto' only.")
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; the known ones are {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[activation]


@jit
def activate(code, c0, c1, z, a, n):
    """Set a = f(z) for n numbers, a multiple of the lanes; both are pointers, and may be the same."""
    step = lane_count(z)
    if code == RELU:
        for i in range(0, n, step):
            x = load(z, i)
            # The order of the comparison lets NaN through.
            store(a, i, select(x < 0.0, 0.0, x))
    elif code == LOGISTIC:
        for i in range(0, n, step):
            store(a, i, 1.0 / (1.0 + exp(load(z, i) * -c0)))
    elif code == TANH:
        for i in range(0, n, step):
            store(a, i, tanh(load(z, i)))
    elif code == IDENTITY:
        for i in range(0, n, step):
            store(a, i, load(z, i))


@jit
def times_derivative(code, c0, c1, z, a, delta, n):
    """Set delta = delta * f'(z) for n numbers, a multiple of the lanes; the others are pointers."""
    step = lane_count(z)
    if code == RELU:
        for i in range(0, n, step):
            store(delta, i, select(load(a, i) > 0.0, load(delta, i), 0.0))
    elif code == LOGISTIC:
        for i in range(0, n, step):
            y = load(a, i)
            store(delta, i, load(delta, i) * (c0 * y * (1.0 - y)))
    elif code == TANH:
        for i in range(0, n, step):
            y = load(a, i)
            store(delta, i, load(delta, i) * (1.0 - y * y))


@jit
def softmax(row, n):
    """Set the first n numbers behind a pointer to their softmax, and what pads them to a whole vector to 0."""
    step = lane_count(row)
    top = splat(row, -np.inf)
    for j in range(0, n, step):
        x = load(row, j)
        x = select(first_lanes(x, n - j), x, -np.inf)
        top = select(x > top, x, top)
    highest = largest(top)
    sums = splat(row, 0.0)
    for j in range(0, n, step):
        x = load(row, j)
        x = select(first_lanes(x, n - j), exp(x - highest), 0.0)
        store(row, j, x)
        sums = sums + x
    scale = total(sums)
    for j in range(0, n, step):
        store(row, j, load(row, j) / scale)
