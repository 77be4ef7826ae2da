"""Activation functions: one place for the name, the value and the derivative of each.

To add one, write its dataclass and its two lines in `activate` and `times_derivative`.

Conventions: `z` is what a unit receives, `a = f(z)` what it gives on. Arrays are flat
stretches of a layer's values; the codes and the two coefficients come from `Activation`.

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
from fastbp.kernels.jit import jit


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

    name: ClassVar[str]
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
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; the known ones are {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[activation]


@jit
def activate(code, c0, c1, z, a):
    """Set a = f(z), element by element; `a` may be `z`."""
    one = z.dtype.type(1)
    if code == RELU:
        for i in range(z.size):
            # The order of the comparison lets NaN through.
            a[i] = z.dtype.type(0) if z[i] < 0 else z[i]
    elif code == LOGISTIC:
        slope = z.dtype.type(c0)
        for i in range(z.size):
            a[i] = one / (one + exp(-slope * z[i]))
    elif code == TANH:
        for i in range(z.size):
            a[i] = tanh(z[i])
    elif code == IDENTITY:
        for i in range(z.size):
            a[i] = z[i]


@jit
def times_derivative(code, c0, c1, z, a, delta):
    """Set delta = delta * f'(z), element by element."""
    one = z.dtype.type(1)
    if code == RELU:
        for i in range(delta.size):
            delta[i] = delta[i] if a[i] > 0 else z.dtype.type(0)
    elif code == LOGISTIC:
        slope = z.dtype.type(c0)
        for i in range(delta.size):
            delta[i] *= slope * a[i] * (one - a[i])
    elif code == TANH:
        for i in range(delta.size):
            delta[i] *= one - a[i] * a[i]


@jit
def softmax(row):
    """Set one row of output units to its softmax."""
    largest = row[0]
    for j in range(1, row.size):
        largest = row[j] if row[j] > largest else largest
    for j in range(row.size):
        row[j] = exp(row[j] - largest)
    total = row[0]
    for j in range(1, row.size):
        total += row[j]
    for j in range(row.size):
        row[j] /= total
