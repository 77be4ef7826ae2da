from itertools import product

import numpy as np
import pytest
import reference
from numba import njit
from scipy.special import expit
from scipy.special import softmax as softmax_of

from fastbp import losses
from fastbp.codegen.memory import load_scalar, pointer, stack_square
from fastbp.codegen.target import lanes
from fastbp.codegen.transpose import to_columns
from fastbp.codegen.vectors import store
from fastbp.losses import LOSSES, CompiledLoss, loss_of_row, losses_of_columns, set_derivative

DTYPES = [np.float32, np.float64]
# The losses, and log_loss with both of its output activations.
REGRESSION = ["squared_error", "poisson", "absolute_error", "huber", "quantile"]
KINDS = [*REGRESSION, "logistic", "softmax"]
CANARY = -12345.0


def code_of(kind):
    return LOSSES[kind if kind in LOSSES else "log_loss"]


def parameters_of(kind, n):
    """What distinguishes the outputs: bounds of huber, levels of quantile."""
    return np.linspace(0.2, 0.9, n) if kind in ("huber", "quantile") else np.zeros(n)


@njit
def run_loss(code, parameters, multiclass, n, y, y_at, a, derivative, at, eps):
    loss = CompiledLoss(code, pointer(parameters, 0), eps)
    y, a, derivative = pointer(y, y_at), pointer(a, at), pointer(derivative, at)
    set_derivative(loss, n, y, a, derivative)
    return loss_of_row(loss, multiclass, n, y, a)


def run(kind, y, a):
    """Loss and derivative, with the rows in the middle of buffers."""
    n, width = a.size, lanes(a.itemsize)
    padding = -n % width
    outputs = np.full(width + n + padding + width, CANARY, a.dtype)
    outputs[width : width + n] = a
    # The padding of the outputs may be anything, that of the targets may not even be read: it is another row.
    outputs[width + n : width + n + padding] = np.nan
    targets = np.append(np.array([np.nan] * 3), np.append(y, [np.nan] * 3)).astype(a.dtype)
    derivative = np.full_like(outputs, CANARY)
    parameters = np.append(parameters_of(kind, n), np.full(padding, np.nan)).astype(a.dtype)
    eps = float(np.finfo(a.dtype).eps)
    loss = run_loss(
        code_of(kind), parameters, kind == "softmax", n, targets, 3, outputs, derivative, width, eps
    )  # fmt: skip
    assert (derivative[:width] == CANARY).all() and (derivative[-width:] == CANARY).all()
    assert not derivative[width + n : width + n + padding].any()
    return loss, derivative[width : width + n]


def naive(kind, y, a):
    loss = kind if kind in LOSSES else "log_loss"
    parameters = parameters_of(kind, y.size).astype(a.dtype).astype(np.float64)
    y, a = y.astype(np.float64)[None], a.astype(np.float64)[None]
    return reference.loss_naive(loss, kind, y, a, np.ones(1), parameters)


def rows(kind, n, dtype, seed=0):
    """Targets and outputs of one sample."""
    rng = np.random.default_rng(seed)
    if kind == "softmax":
        return np.eye(n)[n // 2].astype(dtype), softmax_of(rng.normal(size=n)).astype(dtype)
    if kind == "poisson":
        return rng.poisson(1.5, n).astype(dtype), np.exp(rng.normal(size=n)).astype(dtype)
    if kind in REGRESSION:
        return rng.normal(size=n).astype(dtype), rng.normal(size=n).astype(dtype)
    return rng.integers(0, 2, n).astype(dtype), expit(rng.normal(size=n)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_derivative(kind, dtype):
    for n in range(1, 40):
        for seed in range(3):
            y, a = rows(kind, n, dtype, seed)
            loss, derivative = run(kind, y, a)
            # Each term and their sum are rounded; and certainty, as of one softmax unit alone, is clipped at
            # the precision of the outputs. The terms of poisson cancel.
            eps = np.finfo(dtype).eps
            atol = (4 if kind != "poisson" else 4 * n * (y.max() + a.max())) * eps
            np.testing.assert_allclose(loss, naive(kind, y, a), rtol=20 * eps, atol=atol)
            if kind in ("absolute_error", "huber", "quantile"):
                expected = reference.SLOPES[kind](y, a, parameters_of(kind, n).astype(dtype))
            else:
                expected = a - y
            np.testing.assert_allclose(derivative, expected, rtol=2 * eps)


@njit
def run_columns(code, parameters, multiclass, n, y, a, eps, out):
    loss = CompiledLoss(code, pointer(parameters, 0), eps)
    y, a, width = pointer(y, 0), pointer(a, 0), a.shape[1]
    targets, outputs = stack_square(y), stack_square(a)
    m = out.size
    to_columns(y, width, m, n, targets)
    to_columns(a, width, m, n, outputs)
    square = stack_square(a)
    store(square, 0, losses_of_columns(loss, multiclass, n, targets, outputs))
    for i in range(m):
        out[i] = load_scalar(square, i)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_several_samples_at_once(kind, dtype):
    width, eps = lanes(np.dtype(dtype).itemsize), float(np.finfo(dtype).eps)
    for n, m in product(range(1, width + 1), (1, 2, width - 1, width)):
        samples = [rows(kind, n, dtype, seed) for seed in range(m)]
        padded = np.full((2, width, width), np.nan, dtype)  # what pads a row, and other rows, may be anything
        padded[:, :m, :n] = np.swapaxes(samples, 0, 1)
        out = np.zeros(m)
        run_columns(code_of(kind), parameters_of(kind, n).astype(dtype), kind == "softmax", n, *padded, eps, out)
        expected = [naive(kind, *sample) for sample in samples]
        atol = (4 if kind != "poisson" else 4 * n * np.max(samples)) * eps
        np.testing.assert_allclose(out, expected, rtol=20 * eps, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_between_zero_and_one(kind):
    a = np.array([0.2, 0.5, 0.3])
    y = np.array([0.6, 0.3, 0.1])
    np.testing.assert_allclose(run(kind, y, a)[0], naive(kind, y, a), rtol=1e-13)


def test_squared_error_by_hand():
    # Maren 2020, Eq. 6.5, one half of the sum of squares.
    loss, residual = run("squared_error", np.array([1.0, 0.0, 3.0]), np.array([0.5, 2.0, 2.0]))
    assert loss == 0.5 * (0.25 + 4 + 1)
    np.testing.assert_array_equal(residual, [-0.5, 2, -1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping(dtype):
    eps = float(np.finfo(dtype).eps)
    largest = -np.log(eps)
    y, a = np.array([[1, 0], [0, 1]], dtype)
    for kind, factor in [("softmax", 1), ("logistic", 2)]:
        loss, residual = run(kind, y, a)
        np.testing.assert_allclose(loss, factor * largest, rtol=4 * eps)
        np.testing.assert_array_equal(residual, [-1, 1])
        # Where the outputs are right the loss is all but nothing, and not below it.
        assert 0 <= run(kind, y, y)[0] <= 3 * eps
    # Just inside the bounds nothing is clipped.
    inside = np.array([2 * eps, 0.5], dtype)
    np.testing.assert_allclose(run("softmax", y, inside)[0], -np.log(2 * eps), rtol=4 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_seen(kind, dtype):
    y, a = rows(kind, 3, dtype)
    a[np.argmax(y)] = np.nan
    loss, derivative = run(kind, y, a)
    assert np.isnan(derivative).any()
    assert np.isnan(loss)
    y, a = rows(kind, 100, dtype)
    a[:] = np.nan  # as a softmax is then
    assert np.isnan(run(kind, y, a)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_is_one(kind):
    """With respect to the outputs; for log_loss and poisson to their pre-activations."""
    of = {"logistic": expit, "softmax": softmax_of, "poisson": np.exp}.get(kind, lambda z: z)
    rng = np.random.default_rng(5)
    y, _ = rows(kind, 4, np.float64)
    z = rng.normal(size=4)
    _, derivative = run(kind, y, of(z))
    h = 1e-5
    for j in range(4):
        step = h * np.eye(4)[j]
        difference = (run(kind, y, of(z + step))[0] - run(kind, y, of(z - step))[0]) / (2 * h)
        np.testing.assert_allclose(difference, derivative[j], rtol=1e-6, atol=1e-9)


def test_what_happens_at_equality():
    """Where target and output are equal the kinked losses pull nowhere; a count of 0 has a loss."""
    for kind in ("absolute_error", "quantile", "huber"):
        loss, derivative = run(kind, np.array([1.0, -2.0]), np.array([1.0, -2.0]))
        assert loss == 0 and not derivative.any()
    assert run("poisson", np.zeros(1), np.array([0.25]))[0] == 0.25


def test_codes():
    assert {name: getattr(losses, name.upper()) for name in LOSSES} == LOSSES
