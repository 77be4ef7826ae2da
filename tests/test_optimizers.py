import numpy as np
import pytest
import reference
from numba import njit

from fastbp import optimizers
from fastbp.codegen.memory import pointer
from fastbp.optimizers import ADAM, SGD, SOLVERS, decay_rates, step_sizes, update

N = 48  # several vectors of any machine
BEGIN = 3
ALPHA, DIVISOR = 0.3, 7.0
CANARY = -12345.0


@njit
def run_update(solver, constants, size, decay, alpha, divisor, begin, n, params, grads, first, second):
    constants, params, grads = pointer(constants, 0), pointer(params, begin), pointer(grads, begin)
    first, second = pointer(first, begin), pointer(second, begin)
    return update(solver, constants, size, decay, alpha, divisor, n, params, grads, first, second)


def guarded(values, dtype):
    """The values in an array of canaries, from BEGIN on."""
    whole = np.full(N + 2 * BEGIN, CANARY, dtype)
    whole[BEGIN:-BEGIN] = values
    return whole


def check_canaries(*wholes):
    for whole in wholes:
        assert (whole[:BEGIN] == CANARY).all() and (whole[-BEGIN:] == CANARY).all()


def steps(dtype, seed=0):
    """First parameters, and summed gradients of ten steps, some parameters with none."""
    rng = np.random.default_rng(seed)
    params = rng.normal(size=N).astype(dtype)
    grads = rng.normal(size=(10, N)).astype(dtype)
    grads[:, ::9] = 0
    return params, grads


def tolerance(dtype):
    # Ten steps of some roundings each.
    return {"rtol": 200 * np.finfo(dtype).eps, "atol": 20 * np.finfo(dtype).eps}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [0.0, ALPHA])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_against_naive(momentum, nesterov, alpha, dtype):
    start, grads = steps(dtype)
    rates = np.linspace(0.5, 0.1, len(grads))
    params, velocity = guarded(start, dtype), guarded(0, dtype)
    constants = np.array([momentum, nesterov, 0.0])
    expected, v = start.astype(np.float64), np.zeros(N)
    for grad, rate, size in zip(grads, rates, step_sizes("sgd", rates, 0, 0.9, 0.999), strict=True):
        sums = guarded(grad, dtype)
        squares = (params[BEGIN:-BEGIN].astype(np.float64) ** 2).sum()
        arrays = (params, sums, velocity, np.zeros(0, dtype))
        got = run_update(SGD, constants, size, 0.0, alpha, DIVISOR, BEGIN, N, *arrays)
        np.testing.assert_allclose(got, squares, rtol=N * np.finfo(dtype).eps)
        np.testing.assert_array_equal(sums, guarded(grad, dtype))
        g = (grad.astype(np.float64) + alpha * expected) / DIVISOR
        reference.sgd_naive([expected], [g], [v], rate, momentum, nesterov)
        np.testing.assert_allclose(params[BEGIN:-BEGIN], expected, **tolerance(dtype))
        np.testing.assert_allclose(velocity[BEGIN:-BEGIN], v, **tolerance(dtype))
    check_canaries(params, velocity)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [0.0, ALPHA])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize(("beta_1", "beta_2", "epsilon"), [(0.9, 0.999, 1e-8), (0.0, 0.5, 1e-3)])
def test_adam_against_naive(beta_1, beta_2, epsilon, weight_decay, alpha, dtype):
    start, grads = steps(dtype)
    params, first, second = guarded(start, dtype), guarded(0, dtype), guarded(0, dtype)
    constants = np.array([beta_1, beta_2, epsilon])
    rates = np.linspace(0.1, 0.02, len(grads))
    sizes = step_sizes("adam", rates, 0, beta_1, beta_2)
    decays = decay_rates("adamw", rates, weight_decay)
    expected, m, v = start.astype(np.float64), np.zeros(N), np.zeros(N)
    for t, (grad, rate, size, decay) in enumerate(zip(grads, rates, sizes, decays, strict=True), 1):
        sums = guarded(grad, dtype)
        squares = (params[BEGIN:-BEGIN].astype(np.float64) ** 2).sum()
        got = run_update(
            ADAM, constants, size, decay, alpha, DIVISOR, BEGIN, N, params, sums, first, second
        )  # fmt: skip
        np.testing.assert_allclose(got, squares, rtol=N * np.finfo(dtype).eps)
        np.testing.assert_array_equal(sums, guarded(grad, dtype))
        g = (grad.astype(np.float64) + alpha * expected) / DIVISOR
        reference.adam_naive([expected], [g], [m], [v], t, rate, beta_1, beta_2, epsilon, weight_decay)
        np.testing.assert_allclose(params[BEGIN:-BEGIN], expected, **tolerance(dtype))
        np.testing.assert_allclose(first[BEGIN:-BEGIN], m, **tolerance(dtype))
        np.testing.assert_allclose(second[BEGIN:-BEGIN], v, **tolerance(dtype))
    if not alpha:  # no gradient: only the decay moves anything, and nothing is divided by zero
        left = np.prod(1 - rates * weight_decay)
        np.testing.assert_allclose(params[BEGIN:-BEGIN][::9], start[::9] * left, rtol=10 * np.finfo(dtype).eps)
        assert weight_decay or (params[BEGIN:-BEGIN][::9] == start[::9]).all()
    check_canaries(params, first, second)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("solver", "constants"), [(SGD, [0.9, 1.0, 0.0]), (ADAM, [0.9, 0.999, 1e-8])])
def test_same_bits_in_any_stretch(solver, constants, dtype):
    """The parameters may be updated in any pieces: they do not share anything."""
    start, grads = steps(dtype)

    def run(pieces):
        params, first, second = start.copy(), np.zeros(N, dtype), np.zeros(N, dtype)
        for grad in grads:
            for left, right in pieces:
                arrays = (params, grad, first, second)
                run_update(solver, np.array(constants), 0.05, 0.01, ALPHA, DIVISOR, left, right - left, *arrays)
        return params.tobytes(), first.tobytes(), second.tobytes()

    whole = run([(0, N)])
    for pieces in ([(0, 16), (16, N)], [(0, 32), (32, N)], [(32, N), (16, 32), (0, 16)]):
        assert run(pieces) == whole


def test_step_sizes():
    rates = np.array([0.5, 0.25, 0.125])
    np.testing.assert_array_equal(step_sizes("sgd", rates, 5, 0.9, 0.999), rates)
    for first_step in (0, 41):
        t = first_step + np.arange(1, 4)
        expected = rates * np.sqrt(1 - 0.99**t) / (1 - 0.8**t)
        np.testing.assert_allclose(step_sizes("adam", rates, first_step, 0.8, 0.99), expected, rtol=1e-14)
    # Steps of one call and of several are the same.
    many = step_sizes("adam", np.ones(6), 0, 0.9, 0.999)
    np.testing.assert_array_equal(step_sizes("adam", np.ones(2), 4, 0.9, 0.999), many[4:])
    for solver in SOLVERS:
        sizes = step_sizes(solver, np.ones(3, np.float32), 0, 0.9, 0.999)
        assert sizes.dtype == np.float64 and sizes.shape == (3,)


def test_decay_rates():
    rates = np.array([0.5, 0.25, 0.0], np.float32)
    np.testing.assert_array_equal(decay_rates("adamw", rates, 0.5), [0.25, 0.125, 0.0])
    for solver in SOLVERS:
        decays = decay_rates(solver, rates, 0.5)
        assert decays.dtype == np.float64 and decays.any() == (solver == "adamw")


def test_codes():
    assert SOLVERS == {
        "sgd": optimizers.SGD, "adam": optimizers.ADAM, "adamw": optimizers.ADAM, "lbfgs": optimizers.NO_UPDATE
    }  # fmt: skip
    assert len({optimizers.SGD, optimizers.ADAM, optimizers.NO_UPDATE}) == 3
