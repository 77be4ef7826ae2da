"""Activation functions: one place for the name, the value and the derivative of each.

To add one, write its two kernels, its dataclass and its place in `ACTIVATIONS`: all in this file.

Conventions: `z` is what a unit receives, `a = f(z)` what it gives on, `delta` what comes back. All are pointers to
n numbers of a layer's values, padded to whole vectors; `c0` and `c1` are the parameters of the function. A kernel named
after a function sets a = f(z), where both may be the same place; its `_slope` multiplies delta by f'(z). They are
compiled for the functions that a network has, and called by their addresses.

References
----------
A. J. Maren, "Backpropagation", ch. 6 of *Statistical Mechanics, Neural Networks, and
Artificial Intelligence* (draft, 2020): Eqs. 6.1, 6.2, 6.4, 6.10.
A. Lopez Davila, "Neural Networks: The Backpropagation Algorithm": the table of sec. 3.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype

from fastbp.kernels.elementary import exp, tanh
from fastbp.kernels.intrinsics import lane_count
from fastbp.kernels.jit import address_of, called_by_address
from fastbp.kernels.simd import first_lanes, largest, load, select, splat, store, total


@called_by_address
def _logistic(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        store(a, i, 1.0 / (1.0 + exp(load(z, i) * -c0)))


@called_by_address
def _logistic_slope(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        y = load(a, i)
        store(delta, i, load(delta, i) * (c0 * y * (1.0 - y)))


@called_by_address
def _tanh(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        store(a, i, tanh(load(z, i)))


@called_by_address
def _tanh_slope(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        y = load(a, i)
        store(delta, i, load(delta, i) * (1.0 - y * y))


@called_by_address
def _relu(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        x = load(z, i)
        # The order of the comparison lets NaN through.
        store(a, i, select(x < 0.0, 0.0, x))


@called_by_address
def _relu_slope(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        store(delta, i, select(load(a, i) > 0.0, load(delta, i), 0.0))


@called_by_address
def _softmax(c0, c1, z, a, n):
    """Set one row of n outputs; what pads it to whole vectors becomes 0."""
    step = lane_count(z)
    top = splat(z, -np.inf)
    for j in range(0, n, step):
        x = load(z, j)
        x = select(first_lanes(x, n - j), x, -np.inf)
        top = select(x > top, x, top)
    highest = largest(top)
    sums = splat(z, 0.0)
    for j in range(0, n, step):
        x = load(z, j)
        x = select(first_lanes(x, n - j), exp(x - highest), 0.0)
        store(a, j, x)
        sums = sums + x
    scale = total(sums)
    for j in range(0, n, step):
        store(a, j, load(a, j) / scale)


@dataclass(frozen=True)
class Activation:
    """What all activation functions share.

    Attributes
    ----------
    name : str
        The name by which estimators know it.
    value_kernel, slope_kernel : numba.core.dispatcher.Dispatcher or None
        The kernels; None where nothing is to be done.
    by_rows : bool
        Whether `value_kernel` takes one sample's units at a time, as they depend on each other.
    init_factor : float
        Weights are drawn from U(-b, b) with b = sqrt(init_factor / (fan_in + fan_out))
        (Glorot and Bengio 2010; 2 for logistic units, as scikit-learn does).
    keeps_z : bool
        Whether the derivative needs z; if not, `a` is written over it.
    """

    name: ClassVar[str] = ""
    value_kernel: ClassVar[Any] = None
    slope_kernel: ClassVar[Any] = None
    by_rows: ClassVar[bool] = False
    init_factor: ClassVar[float] = 6.0
    keeps_z: ClassVar[bool] = False

    @property
    def coefficients(self):
        """The parameters of the function, as the two floats that its kernels take."""
        return (0.0, 0.0)

    @classmethod
    @cache
    def addresses(cls, dtype):
        """Return where the two kernels for numbers of a type are, compiled now if need be; 0 for None."""
        number, values = types.float64, types.CPointer(from_dtype(np.dtype(dtype)))
        kernels = (
            (cls.value_kernel, (number, number, values, values, types.int64)),
            (cls.slope_kernel, (number, number, values, values, values, types.int64)),
        )
        return tuple(0 if kernel is None else address_of(kernel, kinds) for kernel, kinds in kernels)


@dataclass(frozen=True)
class Identity(Activation):
    """f(z) = z."""

    name = "identity"


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
    value_kernel, slope_kernel = _logistic, _logistic_slope
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
    value_kernel, slope_kernel = _tanh, _tanh_slope


@dataclass(frozen=True)
class Relu(Activation):
    """f(z) = max(0, z), with f' = 1 where z > 0, else 0."""

    name = "relu"
    value_kernel, slope_kernel = _relu, _relu_slope


@dataclass(frozen=True)
class Softmax(Activation):
    """f(z)_j = exp(z_j) / sum_k exp(z_k), over the units of the output layer.

    Only with the loss "log_loss", whose output delta is a - y.
    """

    name = "softmax"
    value_kernel = _softmax
    by_rows = True


ACTIVATIONS = {cls.name: cls() for cls in (Identity, Logistic, Tanh, Relu)}


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
