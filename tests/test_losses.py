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
from fastbp.losses import LOG_LOSS, LOSSES, SQUARED_ERROR, loss_of_row, losses_of_columns, set_residual

DTYPES = [np.float32, np.float64]
KINDS = ["squared_error", "logistic", "softmax"]
CANARY = -12345.0


@njit
def run_loss(code, multiclass, n, y, y_at, a, residual, at, eps):
    y, a, residual = pointer(y, y_at), pointer(a, at), pointer(residual, at)
    set_residual(n, y, a, residual)
    return loss_of_row(code, multiclass, n, y, a, eps)


def run(kind, y, a):
    """Loss and residual, with the rows in the middle of buffers."""
    n, width = a.size, lanes(a.itemsize)
    padding = -n % width
    outputs = np.full(width + n + padding + width, CANARY, a.dtype)
    outputs[width : width + n] = a
    # The padding of the outputs may be anything, that of the targets may not even be read: it is another row.
    outputs[width + n : width + n + padding] = np.nan
    targets = np.append(np.array([np.nan] * 3), np.append(y, [np.nan] * 3)).astype(a.dtype)
    residual = np.full_like(outputs, CANARY)
    code = SQUARED_ERROR if kind == "squared_error" else LOG_LOSS
    loss = run_loss(code, kind == "softmax", n, targets, 3, outputs, residual, width, np.finfo(a.dtype).eps)
    assert (residual[:width] == CANARY).all() and (residual[-width:] == CANARY).all()
    assert not residual[width + n : width + n + padding].any()
    return loss, residual[width : width + n]


def naive(kind, y, a):
    loss = "squared_error" if kind == "squared_error" else "log_loss"
    y, a = y.astype(np.float64)[None], a.astype(np.float64)[None]
    return reference.loss_naive(loss, kind, y, a, np.ones(1))


def rows(kind, n, dtype, seed=0):
    """Targets and outputs of one sample."""
    rng = np.random.default_rng(seed)
    if kind == "softmax":
        return np.eye(n)[n // 2].astype(dtype), softmax_of(rng.normal(size=n)).astype(dtype)
    return rng.integers(0, 2, n).astype(dtype), expit(rng.normal(size=n)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_residual(kind, dtype):
    for n in range(1, 40):
        for seed in range(3):
            y, a = rows(kind, n, dtype, seed)
            loss, residual = run(kind, y, a)
            # Each term and their sum are rounded; and certainty, as of one softmax unit alone, is clipped at
            # the precision of the outputs.
            eps = np.finfo(dtype).eps
            np.testing.assert_allclose(loss, naive(kind, y, a), rtol=20 * eps, atol=4 * eps)
            np.testing.assert_array_equal(residual, a - y)


@njit
def run_columns(code, multiclass, n, y, a, eps, out):
    y, a, width = pointer(y, 0), pointer(a, 0), a.shape[1]
    targets, outputs = stack_square(y), stack_square(a)
    m = out.size
    to_columns(y, width, m, n, targets)
    to_columns(a, width, m, n, outputs)
    square = stack_square(a)
    store(square, 0, losses_of_columns(code, multiclass, n, targets, outputs, eps))
    for i in range(m):
        out[i] = load_scalar(square, i)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_several_samples_at_once(kind, dtype):
    width, eps = lanes(np.dtype(dtype).itemsize), np.finfo(dtype).eps
    code = SQUARED_ERROR if kind == "squared_error" else LOG_LOSS
    for n, m in product(range(1, width + 1), (1, 2, width - 1, width)):
        samples = [rows(kind, n, dtype, seed) for seed in range(m)]
        padded = np.full((2, width, width), np.nan, dtype)  # what pads a row, and other rows, may be anything
        padded[:, :m, :n] = np.swapaxes(samples, 0, 1)
        out = np.zeros(m)
        run_columns(code, kind == "softmax", n, *padded, eps, out)
        expected = [naive(kind, *sample) for sample in samples]
        np.testing.assert_allclose(out, expected, rtol=20 * eps, atol=4 * eps)


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
    loss, residual = run(kind, y, a)
    assert np.isnan(residual).any()
    assert np.isnan(loss)


@pytest.mark.parametrize("kind", KINDS)
def test_residual_is_the_derivative(kind):
    """With respect to the outputs for squared_error, to the pre-activations of the outputs for log_loss."""
    of = {"squared_error": lambda z: z, "logistic": expit, "softmax": softmax_of}[kind]
    rng = np.random.default_rng(0)
    y, _ = rows(kind, 4, np.float64)
    z = rng.normal(size=4)
    _, residual = run(kind, y, of(z))
    h = 1e-5
    for j in range(4):
        step = h * np.eye(4)[j]
        difference = (run(kind, y, of(z + step))[0] - run(kind, y, of(z - step))[0]) / (2 * h)
        np.testing.assert_allclose(difference, residual[j], rtol=1e-6, atol=1e-9)


def test_codes():
    assert {name: getattr(losses, name.upper()) for name in LOSSES} == LOSSES
