import pickle
from dataclasses import FrozenInstanceError, asdict
from fractions import Fraction
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import reference
from numba import njit
from scipy import special

from fastbp import activations
from fastbp.activations import (
    ACTIVATIONS,
    Activation,
    Elu,
    Exp,
    Gaussian,
    LeakyRelu,
    Logistic,
    PiecewiseLinear,
    Relu,
    Softmax,
    Threshold,
    get_activation,
)
from fastbp.codegen.jit import call_at
from fastbp.codegen.memory import pointer
from fastbp.codegen.target import lanes

DTYPES = [np.float32, np.float64]
# What lies around a row, and is not written.
CANARY = -12345.0
OBJECTS = [
    *ACTIVATIONS.values(), Logistic(slope=2.5), PiecewiseLinear(-0.5, 2.0), Gaussian(0.25, 0.75),
    Threshold("logistic"), Threshold("tanh"), Threshold("identity"), LeakyRelu(0.25), LeakyRelu(-0.5), Elu(0.5),
    Exp(),
]  # fmt: skip
# What `Activation.formula` is written with.
FUNCTIONS = SimpleNamespace(
    exp=np.exp, expm1=np.expm1, tanh=np.tanh, where=np.where, minimum=np.minimum, maximum=np.maximum,
    erf=special.erf, expit=special.expit, softmax=lambda z: special.softmax(z, axis=-1),
)  # fmt: skip
# Where the value or the derivative jumps.
KINKS = {
    PiecewiseLinear(): (-1, 1), PiecewiseLinear(-0.5, 2.0): (-0.5, 2),
    **{f: (0,) for f in OBJECTS if f.name in ("relu", "leaky_relu", "elu", "selu", "threshold")},
}  # fmt: skip


@njit
def run_value(address, c0, c1, z, a, at, n):
    call_at(address, (c0, c1, pointer(z, at), pointer(a, at), n))


@njit
def run_rows(address, a, at, n, row, m):
    call_at(address, (0.0, 0.0, pointer(a, at), pointer(a, at), n, row, m))


@njit
def run_backward(address, c0, c1, z, a, delta):
    call_at(address, (c0, c1, pointer(z, 0), pointer(a, 0), pointer(delta, 0), z.size))


def padded(values):
    """Fill up to whole vectors, as the kernels take them, with numbers that do not count."""
    width = lanes(values.itemsize)
    return np.append(values, np.ones(-values.size % width, values.dtype))


def value(activation, z):
    whole = padded(z)
    a = np.full_like(whole, -7)
    activate(activation, whole, a)
    return a[: z.size]


def activate(activation, z, a):
    address = activation.forward_address(z.dtype)
    if address:
        run_value(address, *activation.coefficients, z, a, 0, z.size)
    else:
        a[:] = z


def times(activation, z, a, delta):
    """Return delta * f'(z)."""
    delta = padded(delta)
    address = activation.backward_address(z.dtype)
    if address:
        run_backward(address, *activation.coefficients, padded(z), padded(a), delta)
    return delta[: z.size]


def derivative(activation, z, a):
    return times(activation, z, a, np.ones_like(z))


def softmax_of(z):
    """The softmax of each row of a matrix in the middle of a buffer; what pads a row must become zero."""
    z = np.atleast_2d(z)
    (m, n), width = z.shape, lanes(z.itemsize)
    whole = -(-n // width) * width
    buffer = np.full((m + 2, whole + width), CANARY, z.dtype)
    buffer[1:-1, :n] = z
    run_rows(Softmax().forward_address(z.dtype), buffer.ravel(), buffer.shape[1], n, buffer.shape[1], m)
    assert (buffer[[0, -1]] == CANARY).all() and (buffer[:, whole:] == CANARY).all()
    assert np.isnan(z).any() or not buffer[1:-1, n:whole].any()
    return buffer[1:-1, :n]


def value_naive(activation, z):
    return reference.VALUE[activation.name](z.astype(np.float64), **asdict(activation))


def derivative_naive(activation, z):
    return reference.DERIVATIVE[activation.name](z.astype(np.float64), **asdict(activation))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", OBJECTS, ids=repr)
def test_value(activation, dtype):
    eps = np.finfo(dtype).eps
    for n in (1, 2, 37, 1000):
        z = np.linspace(-8, 9, n).astype(dtype)
        a = value(activation, z)
        # exp errs by one unit, and each of the few roundings around it by half a unit; the slope multiplies
        # the rounding of its product by the size of that.
        # Far below 0 the erf of gelu is all but -1, and the difference has only its absolute accuracy.
        atol = eps if activation.name == "gelu" else 0
        # And exp multiplies the rounding of the square in a gaussian by the size of that.
        rtol = 200 * eps if activation.name == "gaussian" else 40 * eps
        np.testing.assert_allclose(a, value_naive(activation, z), rtol=rtol, atol=atol)
        in_place = padded(z)
        activate(activation, in_place, in_place)
        np.testing.assert_array_equal(in_place[:n], a)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", OBJECTS, ids=repr)
def test_value_far_out(activation, dtype):
    big = np.finfo(dtype).max
    z = np.array([-big, big, -1000, 1000, -np.inf, np.inf], dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = value_naive(activation, z).astype(dtype)
    if activation.name in ("gelu", "silu"):
        expected[4] = 0  # the limit, which the plain product of infinity and 0 is not
    slopes = derivative(activation, z, value(activation, z))
    if activation == Exp():
        np.testing.assert_array_equal(slopes, expected)  # it is its own derivative, and infinite too
    else:
        assert np.isfinite(slopes).all()
    np.testing.assert_allclose(value(activation, z), expected, rtol=np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", OBJECTS, ids=repr)
def test_nan_comes_through(activation, dtype):
    assert np.isnan(value(activation, np.full(37, np.nan, dtype))).all()


@pytest.mark.parametrize("activation", OBJECTS, ids=repr)
def test_derivative_against_central_differences(activation):
    z = np.linspace(-4, 4, 83)
    h = 1e-5
    for kink in KINKS.get(activation, ()):
        z = z[np.abs(z - kink) > 2 * h]
    a = value(activation, z)
    np.testing.assert_allclose(derivative(activation, z, a), derivative_naive(activation, z), rtol=1e-13, atol=1e-15)
    if activation.name != "threshold":
        differences = (value(activation, z + h) - value(activation, z - h)) / (2 * h)
        np.testing.assert_allclose(derivative(activation, z, a), differences, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("activation", OBJECTS, ids=repr)
def test_max_derivative(activation):
    if activation == Exp():
        assert activation.max_derivative == np.inf
        return
    derivatives = np.abs(activation.derivative(np.linspace(-10, 10, 200_001)))
    assert derivatives.max() == pytest.approx(activation.max_derivative, rel=1e-4)


@pytest.mark.parametrize("activation", [*OBJECTS, Softmax()], ids=repr)
def test_objects_are_functions(activation):
    z = np.linspace(-3, 3, 35).reshape(5, 7)
    expected = value_naive(activation, z)
    np.testing.assert_allclose(activation(z), expected, rtol=1e-13, atol=1e-15)
    assert activation(z.astype(np.float32)).dtype == np.float32
    assert activation([-1, 1]).dtype == np.float64
    if activation != Softmax():
        assert activation(0.5).shape == ()
        np.testing.assert_allclose(activation.derivative(z), derivative_naive(activation, z), rtol=1e-13, atol=1e-15)


def test_softmax_has_no_derivative_of_each_unit():
    with pytest.raises(TypeError, match="matrix of derivatives"):
        Softmax().derivative([1.0, 2.0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", OBJECTS, ids=repr)
def test_derivative_multiplies_what_is_there(activation, dtype):
    rng = np.random.default_rng(0)
    for n in (1, 37):
        z, delta = rng.normal(size=(2, n)).astype(dtype)
        a = value(activation, z)
        expected = delta * derivative(activation, z, a)
        np.testing.assert_allclose(times(activation, z, a, delta), expected, rtol=4 * np.finfo(dtype).eps)


def test_relu_has_no_derivative_at_its_kink():
    z = np.array([-0.0, 0.0, 5e-324, -5e-324])
    np.testing.assert_array_equal(derivative(Relu(), z, value(Relu(), z)), [0, 0, 1, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(dtype):
    rng = np.random.default_rng(0)
    eps = np.finfo(dtype).eps
    width = lanes(np.dtype(dtype).itemsize)
    for n, m in product(range(1, 70), (1, 3, width - 1, width, width + 1, 2 * width + 3)):
        z = (3 * rng.normal(size=(m, n))).astype(dtype)
        a = softmax_of(z)
        np.testing.assert_array_equal(a[-1], softmax_of(z[-1])[0])  # the same bits among other rows
        expected = reference.VALUE["softmax"](z.astype(np.float64))
        np.testing.assert_allclose(a, expected, rtol=50 * eps)
        np.testing.assert_allclose(a.sum(axis=1, dtype=np.float64), 1, rtol=n * eps)
    for z in ([1e30, -1e30, 1e30], [-1e30, -1e30, -3e38], [80, -80, 80], [-3e38]):
        expected = np.equal(z, max(z)) / np.equal(z, max(z)).sum()
        np.testing.assert_allclose(softmax_of(np.array(z, dtype))[0], expected, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [5, 37])
def test_nan_comes_through_softmax(n, dtype):
    for m, row, place in product((3, 40), (1, -1), (0, n - 1)):
        rows = np.zeros((m, n), dtype)
        rows[row, place] = np.nan
        a = softmax_of(rows)
        assert np.isnan(a[row]).all() and np.isfinite(np.delete(a, row, axis=0)).all()


def test_names_are_those_of_the_table():
    assert all(activation.name == name for name, activation in ACTIVATIONS.items())


@pytest.mark.parametrize("activation", [*OBJECTS, Softmax()], ids=repr)
def test_objects_are_values(activation):
    again = pickle.loads(pickle.dumps(activation))
    assert again == activation and hash(again) == hash(activation)
    assert eval(repr(activation), vars(activations)) == activation
    with pytest.raises(FrozenInstanceError):
        activation.slope = 3.0
    assert len(activation.coefficients) == 2
    assert all(isinstance(number, float) for number in activation.coefficients)


def test_objects_differ_by_class_and_parameters():
    objects = [*OBJECTS, Softmax()]
    assert len(set(objects)) == len(objects)
    assert Logistic(slope=2) == Logistic(slope=2.0) != Logistic()


@pytest.mark.parametrize("bad", [0, -1.0, np.nan, np.inf, "1", None])
@pytest.mark.parametrize(("cls", "name"), [(Logistic, "slope"), (Gaussian, "sigma"), (Elu, "alpha")])
def test_parameters_that_must_be_above_zero(cls, name, bad):
    with pytest.raises(ValueError, match=rf"The {name} of {cls.__name__} must be a finite number above 0, got"):
        cls(**{name: bad})


def test_bad_parameters_are_refused():
    for cls, name in [(Gaussian, "mu"), (PiecewiseLinear, "x_min"), (LeakyRelu, "negative_slope")]:
        for bad in (np.nan, np.inf, "1"):
            with pytest.raises(ValueError, match=rf"The {name} of {cls.__name__} must be a finite number, got"):
                cls(**{name: bad})
    with pytest.raises(ValueError, match=r"x_min below x_max, got x_min=2\.0 and x_max=2\.0"):
        PiecewiseLinear(2.0, 2.0)
    with pytest.raises(ValueError, match=r"must be None or one of \['logistic', 'tanh', 'identity'\], got 'relu'"):
        Threshold(surrogate="relu")


def test_parameters_of_any_number_type():
    z = np.linspace(-2, 2, 9)
    for one, two in [
        (Gaussian(0.0, np.float32(0.5)), Gaussian(0.0, 0.5)),
        (PiecewiseLinear(np.float32(-1), np.float32(2)), PiecewiseLinear(-1, 2)),
        (Logistic(Fraction(1, 2)), Logistic(0.5)),
    ]:
        np.testing.assert_array_equal(one(z), two(z))
        np.testing.assert_array_equal(one.derivative(z), two.derivative(z))
    with pytest.raises(ValueError, match="finite number above 0"):
        Logistic(10**400)
    for extreme in (lambda: PiecewiseLinear(0.0, 1e-310), lambda: PiecewiseLinear(-1e300, 1e300)):
        with pytest.raises(ValueError, match="too steep, or too flat"):
            extreme()
    with pytest.raises(ValueError, match="surrogate of Threshold"):
        Threshold([])


def test_softmax_of_any_shape():
    assert Softmax()(0.5) == 1.0
    assert Softmax()(np.empty((0, 3))).shape == (0, 3)


def test_get_activation():
    for name, activation in ACTIVATIONS.items():
        assert get_activation(name) is activation
    mine = Logistic(slope=0.5)
    assert get_activation(mine) is mine
    assert isinstance(mine, Activation)
    for unknown in ("swish", "softmax", None):
        with pytest.raises(ValueError, match=r"is unknown; the known ones are \['elu', 'gaussian'"):
            get_activation(unknown)


@pytest.mark.parametrize("activation", [*OBJECTS, Softmax()], ids=repr)
def test_the_formula_is_the_function(activation):
    z = np.concatenate([np.linspace(-30, 30, 4001), [0.0, 1e-9, -1e-9]]).reshape(2, -1)
    found = activation.formula(z, FUNCTIONS)
    np.testing.assert_allclose(found, value_naive(activation, z), rtol=1e-13, atol=1e-14)


def test_an_activation_without_a_formula_says_so():
    class Other(Activation):
        name = "other"

    with pytest.raises(NotImplementedError, match="Other has no formula"):
        Other().formula(np.zeros(3), FUNCTIONS)
