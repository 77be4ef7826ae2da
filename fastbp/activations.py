"""Activation functions: the name, the value and the derivative of each.

To add one, write its forward and its backward kernel, its dataclass with its `formula`, and its entry in `ACTIVATIONS`,
all in this file.

Conventions for the kernels:

- `z` is the pre-activation, `a = f(z)` the activation, `delta` the derivative dC/da, which becomes dC/dz. All are
  pointers to n numbers, padded to whole vectors. `c0` and `c1` are the `coefficients` of the function.
- `_forward` sets a = f(z); `z` and `a` may be the same memory. `_backward` multiplies delta by f'(z).
- A softmax, whose units depend on each other (`by_rows`), takes m rows of n numbers with the stride `row`.
- Only the kernels that a network needs are compiled; `backprop` calls them by their addresses.

References
----------
A. J. Maren, "Backpropagation", ch. 6 of *Statistical Mechanics, Neural Networks, and
Artificial Intelligence* (draft, 2020): Eqs. 6.1, 6.2, 6.4, 6.10.
A. Lopez Davila, "Neural Networks: The Backpropagation Algorithm": the table of sec. 3.
Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", 2013. Clevert et al.,
arXiv:1511.07289. Klambauer et al., arXiv:1706.02515. Hendrycks and Gimpel, arXiv:1606.08415. Elfwing et al.,
arXiv:1702.03118.
"""

import math
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numba import from_dtype, types

from fastbp.codegen.elementary import erf, exp, expm1, tanh
from fastbp.codegen.jit import address_of, cached_jit, call_at, called_by_address, inlined
from fastbp.codegen.memory import lane_count, offset, pointer, stack_square
from fastbp.codegen.target import lanes
from fastbp.codegen.transpose import to_columns, to_rows
from fastbp.codegen.vectors import first_lanes, fma, largest, load, select, splat, store, total

__all__ = [
    "ACTIVATIONS", "Activation", "Elu", "Exp", "Gaussian", "Gelu", "Identity", "LeakyRelu", "Logistic",
    "PiecewiseLinear", "Relu", "Selu", "Silu", "Softmax", "Tanh", "Threshold", "get_activation",
]  # fmt: skip


def _is_finite(value):
    try:
        return isinstance(value, Real) and math.isfinite(float(value))
    except OverflowError:  # a whole number beyond all floats
        return False


def _check_finite(activation, **parameters):
    for name, value in parameters.items():
        if not _is_finite(value):
            raise ValueError(f"The {name} of {type(activation).__name__} must be a finite number, got {value!r}.")


def _check_above_zero(activation, **parameters):
    for name, value in parameters.items():
        if not (_is_finite(value) and value > 0):
            raise ValueError(
                f"The {name} of {type(activation).__name__} must be a finite number above 0, got {value!r}."
            )


def _check_coefficients(activation):
    """Check the coefficient c1, which can overflow where each parameter is valid by itself."""
    with np.errstate(over="ignore", under="ignore"):
        factor = np.float32(activation.coefficients[1])
    if not (np.isfinite(factor) and factor > 0):
        raise ValueError(f"{activation!r} is too steep, or too flat, for float32.")


@cache
def _address(kernel, n_pointers, n_counts, dtype):
    if kernel is None:
        return 0
    values = types.CPointer(from_dtype(dtype))
    return address_of(kernel, (types.float64, types.float64, *[values] * n_pointers, *[types.int64] * n_counts))


@dataclass(frozen=True)
class Activation:
    """What all activation functions share.

    Attributes
    ----------
    name : str
        The name that estimators take.
    init_factor : float
        Weights are drawn from U(-b, b) with b = sqrt(init_factor / (fan_in + fan_out))
        (Glorot and Bengio 2010; 2 for logistic units, as scikit-learn does).
    keeps_z : bool
        Whether the backward kernel needs z; if not, `a` overwrites it.
    by_rows : bool
        Whether the units of a sample depend on each other, as in a softmax.
    is_rectifier : bool
        Whether output and derivative both tend to 0, or nearly, far below z = 0: such a unit is called inactive there.
        A unit of any other activation is called saturated where its derivative is close to 0.
    """

    name: ClassVar[str] = ""
    init_factor: ClassVar[float] = 6.0
    keeps_z: ClassVar[bool] = False
    by_rows: ClassVar[bool] = False
    is_rectifier: ClassVar[bool] = False
    # The kernels; None for the identity and its derivative 1.
    _forward: ClassVar[Any] = None
    _backward: ClassVar[Any] = None

    @property
    def coefficients(self):
        """The parameters of the function, as the floats c0 and c1 of its kernels."""
        return (0.0, 0.0)

    @property
    def max_derivative(self):
        """The largest absolute value of the derivative; saturation is measured against it."""
        return 1.0

    def formula(self, z, xp):
        """Return f(z), written with the functions of a namespace: for arrays, or for the nodes of a graph.

        Parameters
        ----------
        z : array
            Pre-activations, of the namespace.
        xp : namespace
            Has `exp`, `expm1`, `tanh`, `where`, `minimum` and `maximum`, as NumPy; `erf` and `expit`, as
            `scipy.special`; and `softmax`, of the last axis. Its arrays have the operators of numbers.

        Returns
        -------
        array
        """
        raise NotImplementedError(f"{type(self).__name__} has no formula: it cannot be exported.")

    def forward_address(self, dtype):
        """Compile or load the forward kernel and return its address; 0 if there is none, as f(z) = z."""
        return _address(type(self)._forward, 2, 3 if self.by_rows else 1, np.dtype(dtype))

    def backward_address(self, dtype):
        """Compile or load the backward kernel and return its address; 0 if there is none, as f'(z) = 1."""
        return _address(self._backward_kernel(), 3, 1, np.dtype(dtype))

    def _backward_kernel(self):
        return type(self)._backward

    def __call__(self, z):
        """Return f(z).

        Parameters
        ----------
        z : array-like
            Pre-activations; for a softmax the last axis holds the units of one sample.

        Returns
        -------
        ndarray of the same shape
            float32 for float32, else float64.
        """
        z = _as_floats(z)
        if self.by_rows and z.size:
            rows = z.reshape(-1, z.shape[-1] if z.ndim else 1)
            return np.concatenate([_apply(self, row) for row in rows]).reshape(z.shape)
        return _apply(self, z)

    def derivative(self, z):
        """Return f'(z), as training uses it: for a `Threshold` the derivative of its surrogate.

        Parameters
        ----------
        z : array-like
            Pre-activations.

        Returns
        -------
        ndarray of the same shape
            float32 for float32, else float64.

        Raises
        ------
        TypeError
            For a softmax, whose derivative is a matrix for each sample.
        """
        if self.by_rows:
            raise TypeError(f"{self!r} has a matrix of derivatives, not one for each unit.")
        return _apply(self, _as_floats(z), derivative=True)


@inlined
def activate(forward, by_rows, c0, c1, z, a, n, row, m):
    """Set a = f(z) for m rows of n units with the stride `row`, by the forward kernel at an address."""
    if by_rows:
        call_at(forward, (c0, c1, z, a, n, row, m))
    else:
        call_at(forward, (c0, c1, z, a, m * row))


def _as_floats(z):
    z = np.asarray(z)
    return z if z.dtype in (np.float32, np.float64) else z.astype(np.float64)


def _apply(activation, z, *, derivative=False):
    """Return f(z), or f'(z) if there is one for each unit, in the shape of z."""
    n, width = z.size, lanes(z.itemsize)
    rows = np.zeros((3, -(-max(n, 1) // width) * width), z.dtype)
    rows[0, :n] = z.ravel()
    rows[1] = rows[0]
    rows[2] = 1
    addresses = activation.forward_address(z.dtype), activation.backward_address(z.dtype) if derivative else 0
    apply_kernels(*addresses, *map(float, activation.coefficients), rows, n if activation.by_rows else -1)
    return rows[2 if derivative else 1, :n].reshape(z.shape)


@cached_jit
def apply_kernels(forward, backward, c0, c1, rows, n):
    """Turn the rows z, a, delta of an array into z, f(z), delta f'(z); n is the units of a softmax, else negative."""
    z, a, delta = pointer(rows, 0), pointer(rows, rows.shape[1]), pointer(rows, 2 * rows.shape[1])
    if forward != 0:
        activate(forward, n >= 0, c0, c1, z, a, n, rows.shape[1], np.int64(1))
    if backward != 0:
        call_at(backward, (c0, c1, z, a, delta, rows.shape[1]))


@inlined
def _clip(x, bound):
    """Clip to [-bound, bound], where a product of 0 and infinity would be NaN beyond; NaN stays NaN."""
    x = select(x > bound, bound, x)
    return select(x < -bound, -bound, x)


@dataclass(frozen=True)
class Identity(Activation):
    """f(z) = z, with f' = 1. A stack of such layers is one linear map (Lopez Davila, sec. 3)."""

    name = "identity"

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        return z


@called_by_address
def _logistic_forward(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        store(a, i, 1.0 / (1.0 + exp(load(z, i) * -c0)))


@called_by_address
def _logistic_backward(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        y = load(a, i)
        store(delta, i, load(delta, i) * (c0 * y * (1.0 - y)))


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
    init_factor = 2.0
    _forward, _backward = _logistic_forward, _logistic_backward

    def __post_init__(self):
        _check_above_zero(self, slope=self.slope)

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        return xp.expit(z * float(self.slope))

    @property
    def coefficients(self):
        """c0 is the slope."""
        return (float(self.slope), 0.0)

    @property
    def max_derivative(self):
        """A quarter of the slope, at z = 0."""
        return self.slope / 4


@called_by_address
def _tanh_forward(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        store(a, i, tanh(load(z, i)))


@called_by_address
def _tanh_backward(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        y = load(a, i)
        store(delta, i, load(delta, i) * (1.0 - y * y))


@called_by_address
def _exp_forward(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        store(a, i, exp(load(z, i)))


@called_by_address
def _exp_backward(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        store(delta, i, load(delta, i) * load(a, i))


@dataclass(frozen=True)
class Exp(Activation):
    """f(z) = exp(z), with f' = a: the outputs of the loss "poisson", which are means of counts."""

    name = "exp"
    _forward, _backward = _exp_forward, _exp_backward

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        return xp.exp(z)

    @property
    def max_derivative(self):
        """Infinity: there is no largest one."""
        return math.inf


@dataclass(frozen=True)
class Tanh(Activation):
    """f(z) = tanh(z), with f' = 1 - a^2 (Lopez Davila, sec. 3)."""

    name = "tanh"
    _forward, _backward = _tanh_forward, _tanh_backward

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        return xp.tanh(z)


@called_by_address
def _relu_forward(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        x = load(z, i)
        # The order of the comparison lets NaN through.
        store(a, i, select(x < 0.0, 0.0, x))


@called_by_address
def _relu_backward(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        store(delta, i, select(load(a, i) > 0.0, load(delta, i), 0.0))


@dataclass(frozen=True)
class Relu(Activation):
    """f(z) = max(0, z), with f' = 1 where z > 0, else 0 (Lopez Davila, sec. 3)."""

    name = "relu"
    is_rectifier = True
    _forward, _backward = _relu_forward, _relu_backward

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        return xp.maximum(z, 0.0)


@called_by_address
def _piecewise_linear_forward(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        x = (load(z, i) - c0) * c1
        x = select(x < 0.0, 0.0, x)
        store(a, i, select(x > 1.0, 1.0, x))


@called_by_address
def _piecewise_linear_backward(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        y = load(a, i)
        inside = select(y > 0.0, load(delta, i) * c1, 0.0)
        store(delta, i, select(y < 1.0, inside, 0.0))


@dataclass(frozen=True)
class PiecewiseLinear(Activation):
    """f(z) = 0 below x_min, 1 above x_max, a straight line between (Lopez Davila, sec. 3).

    The derivative is 1 / (x_max - x_min) strictly inside, 0 outside.

    Parameters
    ----------
    x_min, x_max : float, default=-1.0, 1.0
        Where the line begins and ends; x_min is the smaller.
    """

    x_min: float = -1.0
    x_max: float = 1.0

    name = "piecewise_linear"
    _forward, _backward = _piecewise_linear_forward, _piecewise_linear_backward

    def __post_init__(self):
        _check_finite(self, x_min=self.x_min, x_max=self.x_max)
        if not self.x_min < self.x_max:
            raise ValueError(
                f"PiecewiseLinear needs x_min below x_max, got x_min={self.x_min!r} and x_max={self.x_max!r}."
            )
        _check_coefficients(self)

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        x_min, factor = self.coefficients
        return xp.minimum(xp.maximum((z - x_min) * factor, 0.0), 1.0)

    @property
    def coefficients(self):
        """c0 is x_min; c1 is the derivative between x_min and x_max."""
        return (float(self.x_min), self.max_derivative)

    @property
    def max_derivative(self):
        """The derivative between x_min and x_max."""
        return 1.0 / (float(self.x_max) - float(self.x_min))


@called_by_address
def _gaussian_forward(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        t = (load(z, i) - c0) * c1
        store(a, i, exp(t * t * -0.5) * (c1 * 0.3989422804014327))


@called_by_address
def _gaussian_backward(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        t = _clip((load(z, i) - c0) * c1, 40.0)
        store(delta, i, load(delta, i) * (load(a, i) * t * -c1))


@dataclass(frozen=True)
class Gaussian(Activation):
    """f(z) = exp(-(z - mu)^2 / (2 sigma^2)) / (sigma sqrt(2 pi)), with f' = -(z - mu) / sigma^2 a.

    Parameters
    ----------
    mu : float, default=0.0
        Location of the maximum.
    sigma : float, default=1.0
        Width, above 0.

    Notes
    -----
    Lopez Davila (sec. 3) prints the factor as 1 / sqrt(2 pi sigma): the same for sigma = 1, and no density for
    any other.
    """

    mu: float = 0.0
    sigma: float = 1.0

    name = "gaussian"
    keeps_z = True
    _forward, _backward = _gaussian_forward, _gaussian_backward

    def __post_init__(self):
        _check_finite(self, mu=self.mu)
        _check_above_zero(self, sigma=self.sigma)
        _check_coefficients(self)

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        mu, factor = self.coefficients
        t = (z - mu) * factor
        return xp.exp(t * t * -0.5) * (factor * 0.3989422804014327)

    @property
    def coefficients(self):
        """c0 is mu; c1 is 1 / sigma."""
        return (float(self.mu), 1.0 / float(self.sigma))

    @property
    def max_derivative(self):
        """The derivative at mu - sigma."""
        return float(np.exp(-0.5) / (np.sqrt(2 * np.pi) * self.sigma**2))


@called_by_address
def _threshold_forward(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        x = load(z, i)
        # Both comparisons are false for NaN, which stays NaN.
        store(a, i, select(x >= 0.0, 1.0, select(x < 0.0, 0.0, x)))


@called_by_address
def _threshold_backward(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        store(delta, i, splat(delta, 0.0))


@called_by_address
def _threshold_backward_logistic(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        y = 1.0 / (1.0 + exp(-load(z, i)))
        store(delta, i, load(delta, i) * (y * (1.0 - y)))


@called_by_address
def _threshold_backward_tanh(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        y = tanh(load(z, i))
        store(delta, i, load(delta, i) * (1.0 - y * y))


@dataclass(frozen=True)
class Threshold(Activation):
    """f(z) = 1 where z >= 0, else 0: the unit of the perceptron (Lopez Davila, sec. 3).

    Its derivative is 0 wherever it exists: such a unit can predict, with weights set by hand, but cannot learn. With a
    surrogate, training uses the derivative of that function instead (the straight-through estimator).

    Parameters
    ----------
    surrogate : {"logistic", "tanh", "identity"} or None, default=None
        The function whose derivative at z training uses; with None `fit` raises an error.

    References
    ----------
    Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons for conditional
    computation", arXiv:1308.3432, 2013.
    """

    surrogate: str | None = None

    name = "threshold"
    keeps_z = True
    _forward = _threshold_forward
    _surrogates: ClassVar[dict] = {
        None: (_threshold_backward, 0.0),
        "logistic": (_threshold_backward_logistic, 0.25),
        "tanh": (_threshold_backward_tanh, 1.0),
        "identity": (None, 1.0),
    }

    def __post_init__(self):
        if not isinstance(self.surrogate, str | None) or self.surrogate not in self._surrogates:
            known = [name for name in self._surrogates if name]
            raise ValueError(f"The surrogate of Threshold must be None or one of {known}, got {self.surrogate!r}.")

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        return xp.where(z >= 0.0, 1.0, 0.0)

    @property
    def max_derivative(self):
        """The largest derivative of the surrogate; 0 without one."""
        return self._surrogates[self.surrogate][1]

    def _backward_kernel(self):
        return self._surrogates[self.surrogate][0]


@called_by_address
def _leaky_relu_forward(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        x = load(z, i)
        store(a, i, select(x < 0.0, x * c0, x))


@called_by_address
def _leaky_relu_backward(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        d = load(delta, i)
        store(delta, i, select(load(z, i) > 0.0, d, d * c0))


@dataclass(frozen=True)
class LeakyRelu(Activation):
    """f(z) = z above 0, negative_slope z below (Maas et al. 2013).

    Parameters
    ----------
    negative_slope : float, default=0.01
        The derivative below 0; any finite number.
    """

    negative_slope: float = 0.01

    name = "leaky_relu"
    is_rectifier = True
    keeps_z = True
    _forward, _backward = _leaky_relu_forward, _leaky_relu_backward

    def __post_init__(self):
        _check_finite(self, negative_slope=self.negative_slope)

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        return xp.where(z < 0.0, z * float(self.negative_slope), z)

    @property
    def coefficients(self):
        """c0 is the derivative below 0."""
        return (float(self.negative_slope), 0.0)

    @property
    def max_derivative(self):
        """1, or the absolute derivative below 0 if that is larger."""
        return max(1.0, abs(self.negative_slope))


# c1 z above zero, c0 (exp(z) - 1) below.
@called_by_address
def _elu_forward(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        x = load(z, i)
        below = expm1(select(x > 0.0, 0.0, x)) * c0
        store(a, i, select(x > 0.0, x * c1, below))


@called_by_address
def _elu_backward(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        y, d = load(a, i), load(delta, i)
        store(delta, i, select(y > 0.0, d * c1, d * (y + c0)))


def _elu_formula(z, xp, below, above):
    return xp.where(z > 0.0, z * above, xp.expm1(xp.minimum(z, 0.0)) * below)


@dataclass(frozen=True)
class Elu(Activation):
    """f(z) = z above 0, alpha (exp(z) - 1) below, with f' = a + alpha there (Clevert et al. 2016).

    Parameters
    ----------
    alpha : float, default=1.0
        The function tends to -alpha far below 0; above 0.
    """

    alpha: float = 1.0

    name = "elu"
    _forward, _backward = _elu_forward, _elu_backward

    def __post_init__(self):
        _check_above_zero(self, alpha=self.alpha)

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        return _elu_formula(z, xp, *self.coefficients)

    @property
    def coefficients(self):
        """c0 is the factor below 0, c1 the factor above."""
        return (float(self.alpha), 1.0)

    @property
    def max_derivative(self):
        """1, or alpha if that is larger."""
        return max(1.0, self.alpha)


@dataclass(frozen=True)
class Selu(Activation):
    """f(z) = 1.0507 z above 0, 1.7581 (exp(z) - 1) below (Klambauer et al. 2017)."""

    name = "selu"
    _forward, _backward = _elu_forward, _elu_backward

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        return _elu_formula(z, xp, *self.coefficients)

    @property
    def coefficients(self):
        """c0 and c1 are lambda alpha and lambda of the paper."""
        return (1.0507009873554805 * 1.6732632423543772, 1.0507009873554805)

    @property
    def max_derivative(self):
        """The derivative just below 0."""
        return self.coefficients[0]


@called_by_address
def _gelu_forward(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        x = load(z, i)
        x = select(x < -1000.0, -1000.0, x)
        store(a, i, x * fma(erf(x * 0.7071067811865476), 0.5, 0.5))


@called_by_address
def _gelu_backward(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        x = _clip(load(z, i), 1000.0)
        below = fma(erf(x * 0.7071067811865476), 0.5, 0.5)
        density = exp(x * x * -0.5) * 0.3989422804014327
        store(delta, i, load(delta, i) * fma(x, density, below))


@dataclass(frozen=True)
class Gelu(Activation):
    """f(z) = z P(z), P the normal distribution: (1 + erf(z / sqrt 2)) / 2 (Hendrycks and Gimpel 2016).

    Far below 0, where erf is close to -1, the value is accurate absolutely, not relatively.
    """

    name = "gelu"
    is_rectifier = True
    keeps_z = True
    _forward, _backward = _gelu_forward, _gelu_backward

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        return z * (xp.erf(z * 0.7071067811865476) * 0.5 + 0.5)

    @property
    def max_derivative(self):
        """The derivative at z = sqrt 2."""
        return 1.1289042


@called_by_address
def _silu_forward(c0, c1, z, a, n):
    for i in range(0, n, lane_count(z)):
        x = load(z, i)
        x = select(x < -1000.0, -1000.0, x)
        store(a, i, x / (1.0 + exp(-x)))


@called_by_address
def _silu_backward(c0, c1, z, a, delta, n):
    for i in range(0, n, lane_count(z)):
        x = _clip(load(z, i), 1000.0)
        s = 1.0 / (1.0 + exp(-x))
        store(delta, i, load(delta, i) * (s * fma(x, 1.0 - s, 1.0)))


@dataclass(frozen=True)
class Silu(Activation):
    """f(z) = z / (1 + exp(-z)), also known as swish (Elfwing et al. 2018)."""

    name = "silu"
    is_rectifier = True
    keeps_z = True
    _forward, _backward = _silu_forward, _silu_backward

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        return z * xp.expit(z)

    @property
    def max_derivative(self):
        """The derivative at z = 2.4."""
        return 1.0998394


@called_by_address
def _softmax_forward(c0, c1, z, a, n, row, m):
    """Set m rows of n outputs with the stride `row`; their padding to whole vectors becomes 0."""
    width = lane_count(z)
    if n <= width:
        columns = stack_square(z)
        for i in range(0, m, width):
            n_rows = min(width, m - i)
            to_columns(offset(z, i * row), row, n_rows, n, columns)
            _softmax_of_columns(columns, n)
            to_rows(columns, n_rows, n, offset(a, i * row), row)
    else:
        for i in range(0, m * row, row):
            _softmax_of_many(offset(z, i), offset(a, i), n)


@inlined
def _softmax_of_columns(columns, n):
    end, width = n * lane_count(columns), lane_count(columns)
    top = load(columns, 0)
    for j in range(width, end, width):
        x = load(columns, j)
        top = select(x > top, x, top)
    sums = splat(columns, 0.0)
    for j in range(0, end, width):
        x = exp(load(columns, j) - top)
        store(columns, j, x)
        sums = sums + x
    for j in range(0, end, width):
        store(columns, j, load(columns, j) / sums)


@inlined
def _softmax_of_many(z, a, n):
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
class Softmax(Activation):
    """f(z)_j = exp(z_j) / sum_k exp(z_k), over the units of the output layer.

    Only with the loss "log_loss", whose output delta is a - y.
    """

    name = "softmax"
    by_rows = True
    _forward = _softmax_forward

    def formula(self, z, xp):
        """Return f(z), see `Activation.formula`."""
        return xp.softmax(z)


ACTIVATIONS = {
    cls.name: cls()
    for cls in (
        Identity, Logistic, Tanh, Relu, PiecewiseLinear, Gaussian, Threshold, LeakyRelu, Elu, Selu, Gelu, Silu,
    )
}  # fmt: skip
# Of output layers only: no parameter can name them.
SOFTMAX, EXP = Softmax(), Exp()
# The activations of networks whose user has passed no object.
SHARED = ACTIVATIONS | {SOFTMAX.name: SOFTMAX, EXP.name: EXP}


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
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; the known ones are {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[activation]


def check_can_learn(activations):
    """Check that all activations have a derivative to learn by.

    Raises
    ------
    ValueError
        For `Threshold` without a surrogate.
    """
    if any(isinstance(activation, Threshold) and activation.surrogate is None for activation in activations):
        raise ValueError(
            "A threshold has no derivative, so that its layer cannot learn by backpropagation. Use "
            'Threshold(surrogate="logistic") from fastbp.activations, which learns with the derivative of a smooth '
            "function, or a smooth activation such as 'logistic'. To predict with weights set by hand, call "
            "`initialize` instead of `fit`."
        )
