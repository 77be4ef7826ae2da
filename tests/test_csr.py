"""Inputs in compressed sparse rows: the products, the gradient, and rows that wait for their update."""

import mmap
import sys
from dataclasses import replace
from itertools import chain, product

import numpy as np
import pytest
from guards import run_alone
from numba import njit
from reference import lazy_adam_naive, lazy_sgd_naive
from scipy.sparse import csr_array

from fastbp.activations import Logistic, Relu, Softmax, Tanh
from fastbp.codegen.memory import pointer
from fastbp.codegen.rows import ROW_VECTORS, row_kernel, row_kernel_indexed
from fastbp.codegen.target import lanes
from fastbp.initializers import initial_parameters
from fastbp.kernels import csr, lazy, session
from fastbp.kernels.csr_matrix import csr_matrix_of
from fastbp.kernels.network import make_network
from fastbp.kernels.plan import BLOCK_ROWS, chunk_rows
from fastbp.kernels.records import Data
from fastbp.kernels.session import OptimizerState, Session, StepSettings
from fastbp.losses import Loss
from fastbp.optimizers import step_sizes
from fastbp.prediction import Predictor
from fastbp.schedules import step_rates

DTYPES = [np.float32, np.float64]
CANARY = -12345.0


# --- a row of a product ---


@njit
def run_row(n, k, x, w, w_row, d, out, out_at):
    row_kernel(n, k, pointer(x, 0), pointer(w, 0), w_row, pointer(d, 0), pointer(out, out_at))


@njit
def run_row_indexed(n, k, x, indices, w, w_row, d, out, out_at):
    row_kernel_indexed(
        n, k, pointer(x, 0), pointer(indices, 0), pointer(w, 0), w_row, pointer(d, 0), pointer(out, out_at)
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_kernel_indexed_has_the_bits_of_row_kernel(dtype):
    rng = np.random.default_rng(0)
    width = lanes(np.dtype(dtype).itemsize)
    k, most = 60, ROW_VECTORS * width
    w, d = rng.normal(size=(k, most + 3)).astype(dtype), rng.normal(size=most).astype(dtype)
    for n, share in product(range(1, most + 1), (0, 0.3, 1)):
        x = (rng.normal(size=k) * (rng.random(k) < share)).astype(dtype)
        places = np.flatnonzero(x).astype(np.int32)
        written = -(-n // width) * width
        out, whole = np.full((2, written + 2), CANARY, dtype)
        run_row_indexed(n, len(places), x[places], places, w.ravel(), most + 3, d[:n].copy(), out, 1)
        run_row(n, k, x, w.ravel(), most + 3, d[:n].copy(), whole, 1)
        np.testing.assert_array_equal(out, whole)
        np.testing.assert_array_equal(out[[0, -1]], CANARY)
        exact, sizes = (part(d[:n]) + part(x.astype(np.float64)) @ part(w[:, :n]) for part in (np.array, np.abs))
        assert (np.abs(out[1 : n + 1] - exact) <= k * np.finfo(dtype).eps * sizes).all()


def test_row_kernel_indexed_takes_rows_in_any_order_and_more_than_once():
    w = np.arange(12.0).reshape(4, 3)
    places = np.array([3, 0, 3], np.int32)
    out = np.zeros(8)
    run_row_indexed(3, 3, np.array([1.0, 10, 100]), places, w.ravel(), 3, np.ones(3), out, 0)
    np.testing.assert_array_equal(out[:3], 1 + 101 * w[3] + 10 * w[0])


# --- training ---


def sparse_rows(n, k, seed=0, per_row=3):
    """Features of very different frequencies; there are rows and columns without entries."""
    rng = np.random.default_rng(seed)
    often = np.minimum(1, per_row / np.arange(1, k + 1))
    X = rng.normal(size=(n, k)) * (rng.random((n, k)) < often)
    X[rng.random(n) < 0.1] = 0
    X[:, rng.random(k) < 0.1] = 0
    return csr_array(X[:, rng.permutation(k)])


def start(X, units, settings, dtype, is_csr, *, activation=None, n_outputs=None):
    """Return a session, and the samples for it."""
    n, k = X.shape
    rng = np.random.default_rng(1)
    units = [k, *units]
    activations = [activation or Relu()] * (len(units) - 2) + [Softmax()]
    network = make_network(units, activations, dtype, settings.batch_size, is_csr)
    params = network.pack(*initial_parameters(units, [6.0] * len(activations), np.random.RandomState(0), dtype))
    Y = np.eye(units[-1], dtype=dtype)[rng.integers(0, units[-1], n)]
    optimizer = OptimizerState.empty(network, settings.solver, 0.01)
    matrix = csr_matrix_of(X, np.dtype(dtype)) if is_csr else None
    x = np.empty((n, 0), dtype) if is_csr else X.toarray().astype(dtype)
    trained = Session(network, params, optimizer, settings, n, csr=matrix)
    return trained, Data(x, Y, np.empty(0, dtype), np.arange(n))


def log_loss(n_outputs):
    return Loss("log_loss", (0.0,) * n_outputs)


def settings_for(units, solver, batch_size, **kwargs):
    return StepSettings(log_loss(units[-1]), solver, kwargs.pop("alpha", 0.0), batch_size, **kwargs)


def run_epochs(trained, data, n_epochs=3, rates=None):
    """Train, or only compute gradients; return the losses and all that changes."""
    rng = np.random.default_rng(2)
    batch_size = trained.settings.batch_size
    n_batches = -(-data.order.size // batch_size)
    losses, gradients = [], []
    flat = np.concatenate([part.ravel() for parts in trained.parameters() for part in parts])
    for epoch in range(n_epochs):
        rng.shuffle(data.order)
        if trained.settings.solver == "lbfgs":
            loss, gradient = trained.loss_and_gradient(data, flat, data.total_weight())
            gradients.append(gradient)
            flat = flat - trained.params.dtype.type(0.1) * gradient
            trained.set_parameters(flat)
        else:
            some = np.full(n_batches, 0.01) if rates is None else rates[epoch * n_batches :][:n_batches]
            trained.run(data, some)
            (loss,) = trained.losses
        losses.append(loss)
    coefs, intercepts = trained.parameters()
    state = [part for part in (trained.optimizer.first, trained.optimizer.second) if part.size]
    parts = [array for part in state for arrays in trained._network.unpack(part) for array in arrays]
    return losses, [*coefs, *intercepts, *parts, *gradients]


def assert_same_bits(a, b):
    # The loss is summed over other blocks of weights where there is an L2 term.
    np.testing.assert_allclose(a[0], b[0], rtol=1e-6)
    for x, y in zip(a[1], b[1], strict=True):
        np.testing.assert_array_equal(x, y)


SOLVERS = [
    ("adam", {}), ("sgd", {"momentum": 0.9}), ("sgd", {"momentum": 0.9, "nesterovs_momentum": False}), ("lbfgs", {}),
    ("adamw", {"weight_decay": 0.3}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver, options", SOLVERS)
def test_the_bits_of_dense_training(solver, options, dtype, monkeypatch):
    # Dense training on single samples adds the sums of small networks up in another order.
    monkeypatch.setattr("fastbp.kernels.online.is_small", lambda network: False)
    X = sparse_rows(90, 70)
    widths = [*range(1, 18), 31, 33, 100]  # with every remainder of the lanes
    for units in [[width, 3] for width in widths] + [[3], [7, 5, 3]]:
        for batch_size in (90,) if solver == "lbfgs" else (90, 32, 1):
            settings = settings_for(units, solver, batch_size, alpha=1e-3, n_jobs=1, **options)
            sparse, dense = (start(X, units, settings, dtype, is_csr) for is_csr in (True, False))
            assert not sparse[0]._csr.is_lazy
            assert_same_bits(run_epochs(*sparse), run_epochs(*dense))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver, options", SOLVERS)
def test_batches_larger_than_the_workspace(solver, options, dtype, monkeypatch):
    X, units = sparse_rows(90, 70), [20, 3]
    for alpha, batch_size in product((0.0, 1e-3), (90,) if solver == "lbfgs" else (90, 40)):
        settings = settings_for(units, solver, batch_size, alpha=alpha, n_jobs=1, **options)
        dense = run_epochs(*start(X, units, settings, dtype, False))
        for chunk in (7, batch_size - 1):
            with monkeypatch.context() as patch:
                patch.setattr(session, "workspace_rows", lambda network, work, chunk=chunk: chunk)
                trained, data = start(X, units, settings, dtype, True)
            assert trained._chunk == chunk_rows(batch_size, chunk, 1, in_cache=False) < batch_size
            assert not trained._csr.is_lazy
            assert_same_bits(run_epochs(trained, data), dense)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver, options", [case for case in SOLVERS if case[0] != "lbfgs"])
def test_clipping(solver, options, dtype, monkeypatch):
    """As in dense training, where rows wait, where all are updated, and in chunks."""
    X, units = sparse_rows(90, 70), [20, 3]
    for alpha, batch_size in product((0.0, 1e-3), (90, 40, 1)):
        settings = settings_for(units, solver, batch_size, alpha=alpha, max_grad_norm=0.05, n_jobs=1, **options)
        losses, dense = run_epochs(*start(X, units, settings, dtype, False))
        for chunk in {batch_size, min(7, batch_size)}:
            with monkeypatch.context() as patch:
                patch.setattr(session, "workspace_rows", lambda network, work, chunk=chunk: chunk)
                trained, data = start(X, units, settings, dtype, True)
            waits = alpha == 0 and chunk == batch_size and "weight_decay" not in options
            assert trained._chunk == chunk and trained._csr.is_lazy == waits
            result = run_epochs(trained, data)
            tolerance = 1e-11 if dtype == np.float64 else 1e-4
            np.testing.assert_allclose(result[0], losses, rtol=tolerance)
            for a, b in zip(result[1], dense, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def _edge_cases():
    yield "one sample", csr_array(np.array([[0, 2.0, 0, -1]]))
    yield "one feature", csr_array(np.array([[1.0], [0], [-2], [0], [3]]))
    yield "one number", csr_array(np.array([[2.0]]))
    yield "all zero", csr_array((9, 40))
    yield "one entry", csr_array(([3.0], ([5], [BLOCK_ROWS])), shape=(9, 2 * BLOCK_ROWS + 1))
    yield "all entries", csr_array(np.random.default_rng(0).normal(size=(9, 2 * BLOCK_ROWS)))
    yield "the last feature only", csr_array((np.arange(1.0, 10), (range(9), [999] * 9)), shape=(9, 1000))


@pytest.mark.parametrize("solver, options", SOLVERS)
def test_edge_cases(solver, options):
    for name, X in _edge_cases():
        n = X.shape[0]
        for alpha, batch_size in product((0.0, 0.1), {n} if solver == "lbfgs" else {n, -(-n // 2), 1}):
            settings = settings_for([4, 3], solver, batch_size, alpha=alpha, n_jobs=1, **options)
            sparse, dense = (run_epochs(*start(X, [4, 3], settings, np.float64, c), 5) for c in (True, False))
            for a, b in zip(sparse[1], dense[1], strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14, err_msg=name)
            np.testing.assert_allclose(sparse[0], dense[0], rtol=1e-11, err_msg=name)


def test_a_batch_without_weight_changes_nothing():
    X, n = sparse_rows(90, 70), 90
    for solver, alpha in product(("adam", "sgd"), (0.0, 1e-3)):
        settings = settings_for([20, 3], solver, 30, alpha=alpha, n_jobs=1)
        results = []
        for is_csr in (True, False):
            trained, data = start(X, [20, 3], settings, np.float64, is_csr)
            weight = np.linspace(0.5, 1.5, n)
            weight[30:60] = 0
            data = data._replace(weight=weight)
            trained.run(data, np.full(12, 0.01))  # four epochs, not shuffled
            results.append([*chain(*trained.parameters()), trained.losses])
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


# --- rows that wait ---

N_EPOCHS, N_BATCHES = 300, 10
# Reached: 1e-14 by Adam and by sgd, 4e-14 with momentum 1; 2e-13 where the series is just precise enough.
BOUND = 1e-12


def _rates(schedule):
    """Return the rates of 3000 steps; those of "cosine" and "one_cycle" end near 0, and the last ones are 0."""
    n_steps = N_EPOCHS * N_BATCHES
    rates = [step_rates(schedule, 0.01, step, N_BATCHES, n_steps) for step in range(0, n_steps, N_BATCHES)]
    rates = np.concatenate(rates)
    if schedule != "constant":
        assert rates.min() < 1e-3 * rates.max()
        rates[-200:] = 0
    return rates


def _difference(X, units, settings, rates, activation):
    """Return the largest difference of lazy and dense training, relative to each layer's largest weight."""
    results = []
    for is_csr in (True, False):
        trained, data = start(X, units, settings, np.float64, is_csr, activation=activation)
        before = [w.copy() for w in trained.parameters()[0]]
        assert not is_csr or trained._csr.is_lazy
        results.append(run_epochs(trained, data, N_EPOCHS, rates)[1][: 2 * len(units)])
    moved = np.abs(results[1][0] - before[0]).max(axis=1)
    assert (moved > 0).sum() > 0.5 * len(moved)
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
@pytest.mark.parametrize("epsilon", [1e-300, 1e-12, 1e-8, 1e-3, 1.0])
def test_waiting_rows_move_as_in_dense_training_by_adam(schedule, epsilon):
    X = sparse_rows(200, 400, per_row=1)
    settings = settings_for([12, 3], "adam", 20, epsilon=epsilon, n_jobs=1)
    assert _difference(X, [12, 3], settings, _rates(schedule), Tanh()) <= BOUND


@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("nesterovs_momentum", [False, True])
def test_waiting_rows_move_as_in_dense_training_by_sgd(schedule, momentum, nesterovs_momentum):
    X = sparse_rows(200, 400, per_row=1)
    settings = settings_for(
        [12, 3], "sgd", 20, momentum=momentum, nesterovs_momentum=nesterovs_momentum, n_jobs=1
    )  # fmt: skip
    # With momentum 1 the velocity never ends: at larger rates the network would be chaotic.
    rates = _rates(schedule) * (1e-3 if momentum == 1 else 1)
    assert _difference(X, [12, 3], settings, rates, Tanh()) <= BOUND


# With tanh at the lower rate only: of units that saturate, 1 - a^2 has a large relative error, and Adam makes steps of
# the same size of it.
@pytest.mark.parametrize(("activation", "rate"), [(Logistic(), 1.0), (Tanh(), 0.1)], ids=str)
@pytest.mark.parametrize("betas", [(0, 0), (0, 0.999), (0.1, 0.99), (0.5, 0.999), (0.9, 0.9999), (0.99, 0.99999)])
def test_waiting_rows_for_other_decay_rates(betas, activation, rate):
    settings = settings_for([12, 3], "adam", 20, beta_1=betas[0], beta_2=betas[1], n_jobs=1)
    X = sparse_rows(200, 400, per_row=1)
    assert _difference(X, [12, 3], settings, rate * _rates("constant"), activation) <= BOUND


NOT_LAZY = [
    {"beta_2": 0.9},
    {"beta_1": 0.999},
    {"beta_1": 0.999, "beta_2": 0.9},
    {"alpha": 1e-300},
    {"beta_2": 0.0, "epsilon": 0.1},
    {"solver": "adamw", "weight_decay": 1e-3},
]


@pytest.mark.parametrize("options", NOT_LAZY)
def test_where_the_series_is_not_precise_no_row_waits(options):
    settings = settings_for([12, 3], options.pop("solver", "adam"), 20, n_jobs=1, **options)
    X = sparse_rows(200, 150, per_row=1)
    for dtype in DTYPES:
        assert not lazy.has_closed_form(settings, np.dtype(dtype))
        sparse, dense = (start(X, [12, 3], settings, dtype, is_csr) for is_csr in (True, False))
        assert not sparse[0]._csr.is_lazy
        assert_same_bits(run_epochs(*sparse), run_epochs(*dense))


def test_when_rows_wait():
    usual = settings_for([3], "adam", 20)
    for dtype in map(np.dtype, DTYPES):
        assert lazy.has_closed_form(usual, dtype)
        assert lazy.has_closed_form(replace(usual, solver="adamw"), dtype)
        assert not lazy.has_closed_form(replace(usual, solver="adamw", weight_decay=1e-300), dtype)
        assert lazy.has_closed_form(replace(usual, beta_1=0.0, beta_2=0.5), dtype)
        assert lazy.has_closed_form(replace(usual, solver="sgd", beta_2=0.5), dtype)
        assert not lazy.has_closed_form(replace(usual, solver="lbfgs"), dtype)
        assert not lazy.has_closed_form(replace(usual, solver="sgd", alpha=1e-300), dtype)
    # Precise enough for float32 only.
    assert [lazy.has_closed_form(replace(usual, beta_1=0.95), np.dtype(dtype)) for dtype in DTYPES] == [True, False]


def _sizes(n):
    """Rates that stay, grow, fall to 0, begin with 0, and jump."""
    rng = np.random.default_rng(0)
    yield np.full(n, 0.01)
    yield np.geomspace(1e-4, 1, n)
    yield 0.01 * (1 - np.arange(n) / n) * (np.arange(n) < 0.8 * n)
    yield 0.01 * (np.arange(n) >= 0.5 * n)
    yield 0.01 * 10.0 ** rng.uniform(-3, 0, n)


def _wait(settings, dtype, rates, state):
    """Let rows wait for as many steps as there are rates; return their weights and state before and after."""
    n_waiting, width = state[0].shape
    X = csr_array(([1.0], ([0], [n_waiting])), shape=(1, n_waiting + 1))
    trained, data = start(X, [width], settings, dtype, True)
    row = trained._layers[0].padded_out
    parts = [trained.params, trained.optimizer.first, trained.optimizer.second]
    parts = [part[: n_waiting * row].reshape(n_waiting, row)[:, :width] for part in parts if part.size]
    for part, values in zip(parts[1:], state, strict=False):
        part[...] = values
    before = [part.copy() for part in parts]
    assert trained._csr.is_lazy
    trained.run(data._replace(order=np.zeros(len(rates), np.int64)), rates)
    trained.parameters()
    return before, parts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.999), (0, 0.9), (0.99, 0.99999)])
def test_waiting_rows_against_a_loop_of_adam(betas, dtype):
    limits = np.finfo(dtype)
    scale = 140 if dtype == np.float64 else 12
    roots = [0, *10.0 ** np.linspace(-scale, scale, 25)]
    # m has at most some ten times the size of sqrt(v), and may be anything less; both signs.
    shares = np.array([3.0, -1, 1e-3, 0, -1e-9, 1])
    squares = np.repeat(np.square(roots)[:, None], len(shares), 1)
    moments = shares * np.array(roots)[:, None]
    if betas[1] > 0.99:  # v may have become infinite; 0.9^3000 times that would be 0 times infinity
        squares, moments = np.vstack([squares, np.full((1, 6), np.inf)]), np.vstack([moments, moments[-1:]])
    squares[0, 3:] = limits.tiny / 4  # lost on the way to the processor
    for n, epsilon in product((1, 2, 9, 250, 3000), (1e-8, 1e-3 * 10.0**-scale, 1.0, 1e300)):
        for rates in _sizes(n):
            settings = settings_for([6], "adam", 1, beta_1=betas[0], beta_2=betas[1], epsilon=epsilon, n_jobs=1)
            (w, m, v), after = _wait(settings, dtype, rates, (moments, squares))
            v[v < limits.tiny] = 0  # as the processor takes them
            m[np.abs(m) < limits.tiny] = 0
            moved, *expected = (np.array(part, np.longdouble) for part in (np.zeros_like(w), m, v))
            sizes = step_sizes("adam", rates, 0, *betas)
            epsilon = settings.constants(dtype)[2]
            lazy_adam_naive(moved, *expected, sizes, *betas, epsilon)
            eps = limits.eps
            close = {"rtol": 30 * eps, "atol": limits.tiny}
            # The series is cut off where the rest is small against steps of one size: here, the largest.
            step = max(sizes) * np.abs(m) / (np.sqrt(v) + epsilon)
            # All steps have the sign of m, so that `moved` is also the length of the way.
            bound = 2 * eps * np.abs(w) + 30 * eps * np.abs(moved) + (1e-13 if dtype == np.float64 else 0) * step
            assert (np.abs(after[0] - (w + moved)) <= bound).all()
            np.testing.assert_allclose(after[1], expected[0].astype(dtype), **close)
            np.testing.assert_allclose(after[2], expected[1].astype(dtype), **close)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nesterov", [False, True])
def test_waiting_rows_against_a_loop_of_sgd(nesterov, dtype):
    velocities = 10.0 ** np.linspace(-9, 3, 30).reshape(5, 6) * [1, -1, 1, -1, 1, -1]
    eps = np.finfo(dtype).eps
    for n, momentum in product((1, 2, 9, 250, 3000), (0.0, 1e-5, 0.5, 0.9, 0.999, 1.0)):
        settings = settings_for([6], "sgd", 1, momentum=momentum, nesterovs_momentum=nesterov, n_jobs=1)
        (w, velocity), after = _wait(settings, dtype, np.full(n, 0.01), (velocities,))
        expected = np.array(w, np.longdouble), np.array(velocity, np.longdouble)
        lazy_sgd_naive(*expected, n, momentum, nesterov)
        error = np.abs(after[0] - expected[0])
        assert (error <= 2 * eps * (np.abs(w) + np.abs(velocity)) + 30 * eps * np.abs(expected[0] - w)).all()
        np.testing.assert_allclose(
            after[1], expected[1].astype(dtype), rtol=30 * eps, atol=np.finfo(dtype).tiny
        )  # fmt: skip


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_more_steps_than_the_tables_hold(solver, monkeypatch):
    """All rows are caught up when the tables are full, in the middle of an epoch."""
    X = sparse_rows(200, 150, per_row=1)
    settings = settings_for([12, 3], solver, 4, n_jobs=1)
    expected = run_epochs(*start(X, [12, 3], settings, np.float64, False))[1]
    times, whole = [], session.catch_up_all
    monkeypatch.setattr(session, "catch_up_all", lambda *args: times.append(1) or whole(*args))
    for most in (1, 2, 7, 50):
        monkeypatch.setattr(lazy, "MAX_STEPS", most)
        times.clear()
        result = run_epochs(*start(X, [12, 3], settings, np.float64, True))[1]
        assert len(times) == -(-150 // most)
        for a, b in zip(result, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=BOUND * np.abs(b).max())


def test_ctrl_c_during_a_catch_up_catches_no_row_up_twice(monkeypatch):
    """The signal is handled when compiled code returns: rows were caught up, and nobody took note of it in Python."""
    X = sparse_rows(200, 150, per_row=1)
    settings = settings_for([12, 3], "adam", 20, n_jobs=1)
    trained, data = start(X, [12, 3], settings, np.float64, True)
    expected = run_epochs(trained, data)[1]
    trained, data = start(X, [12, 3], settings, np.float64, True)
    whole = session.catch_up_all

    def interrupted(*args):
        whole(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session, "catch_up_all", interrupted)
        run_epochs(trained, data)
    for a, b in zip(trained.parameters()[0] + trained.parameters()[1], expected, strict=False):
        np.testing.assert_array_equal(a, b)


def test_parameters_may_be_read_at_any_time():
    X = sparse_rows(200, 150, per_row=1)
    settings = settings_for([12, 3], "adam", 20, n_jobs=1)
    results = []
    for reads in (False, True):
        trained, data = start(X, [12, 3], settings, np.float64, True)
        for _ in range(20):
            trained.run(data, np.full(10, 0.01))
            if reads:
                first, second = trained.parameters(), trained.parameters()
                for a, b in zip(first[0] + first[1], second[0] + second[1], strict=True):
                    np.testing.assert_array_equal(a, b)
        results.append([*chain(*trained.parameters())])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=BOUND * np.abs(b).max())


# --- the index arrays ---


def test_the_matrix_of_any_csr():
    dense = np.array([[0, 2.0, 0, 5], [0, 0, 0, 0], [7, 0, 1, 0]])
    for dtype, kind, place, order in product(DTYPES, (np.float32, np.float64), (np.int32, np.int64), (1, -1)):
        X = csr_array(dense.astype(kind))
        places = np.concatenate([X.indices[a:b][::order] for a, b in zip(X.indptr[:-1], X.indptr[1:], strict=True)])
        values = np.concatenate([X.data[a:b][::order] for a, b in zip(X.indptr[:-1], X.indptr[1:], strict=True)])
        X.indices, X.data, X.indptr = places.astype(place), values, X.indptr.astype(place)
        before = [array.tobytes() for array in (X.indptr, X.indices, X.data)]
        matrix = csr_matrix_of(X, np.dtype(dtype))
        assert [array.dtype for array in matrix[:3]] == [np.int64, np.int32, dtype]
        np.testing.assert_array_equal(matrix.indptr, [0, 2, 2, 4])
        np.testing.assert_array_equal(matrix.indices, [1, 3, 0, 2])
        np.testing.assert_array_equal(matrix.values, [2, 5, 7, 1])
        assert matrix.n_features == 4
        assert before == [array.tobytes() for array in (X.indptr, X.indices, X.data)]


def _edited(**arrays):
    X = csr_array(np.array([[0, 2.0, 0, 5], [0, 0, 0, 0], [7, 0, 1, 0]]))
    for name, values in arrays.items():
        setattr(X, name, values)
    return X


def test_entries_after_the_last_row_do_not_count():
    """They may be anything: features that there are not."""
    for extra in (4, 10**6, -1):
        X = _edited(indices=np.array([1, 3, 0, 2, extra], np.int32), data=np.array([2, 5, 7, 1, np.nan]))
        matrix = csr_matrix_of(X, np.dtype(np.float64))
        assert len(matrix.indices) == len(matrix.values) == 4
        settings = settings_for([2], "adam", 3)
        bounds = start(X, [2], settings, np.float64, True)[0]._csr._keep[0]["bounds"]
        assert bounds.max() == 4


def test_unsigned_places_are_checked_too():
    """Differences of unsigned numbers are never negative."""
    for kind in (np.uint8, np.uint16, np.uint32, np.uint64):
        X = _edited(indices=np.array([3, 1, 2, 0], kind))
        matrix = csr_matrix_of(X, np.dtype(np.float64))
        np.testing.assert_array_equal(matrix.indices, [1, 3, 0, 2])
        np.testing.assert_array_equal(matrix.values, [5, 2, 1, 7])
        with pytest.raises(ValueError, match="inconsistent"):
            csr_matrix_of(_edited(indptr=np.array([0, 3, 2, 4], kind)), np.dtype(np.float64))


BAD_ARRAYS = [
    {"indptr": np.array([0, 2, 2, 5])}, {"indptr": np.array([0, 3, 2, 4])}, {"indptr": np.array([1, 2, 2, 4])},
    {"indptr": np.array([0, -1, 2, 4])}, {"indptr": np.array([0, 2, 4])}, {"indptr": np.array([0, 2, 2, 2, 4])},
    {"indptr": np.array([0, 2, 2, -4])}, {"indptr": np.array([], int)}, {"indices": np.array([1, 4, 0, 2])},
    {"indices": np.array([1, 3, -1, 2])}, {"indices": np.array([1, 3, 0])}, {"data": np.ones(3)},
    {"indices": np.array([1, 2**32 + 3, 0, 2])},
]  # fmt: skip


@pytest.mark.parametrize("arrays", BAD_ARRAYS)
def test_inconsistent_index_arrays_are_refused(arrays):
    with pytest.raises(ValueError, match="index arrays of the sparse X are inconsistent"):
        csr_matrix_of(_edited(**arrays), np.dtype(np.float64))


def test_too_many_features_are_refused():
    X = csr_array(([1.0], [2**31 - 1], [0, 1]), shape=(1, 2**31))
    with pytest.raises(ValueError, match=r"2147483648 features; the largest number .* 2\*\*31 - 1"):
        csr_matrix_of(X, np.dtype(np.float64))


def test_duplicates_are_summed_as_in_a_dense_array():
    rng = np.random.default_rng(0)
    values, places = rng.normal(size=90), rng.integers(0, 5, 90)
    X = csr_array((values, places, np.arange(0, 91, 10)), shape=(9, 5))
    matrix = csr_matrix_of(X, np.dtype(np.float32))
    whole = csr_array((matrix.values, matrix.indices, matrix.indptr), shape=X.shape).toarray()
    np.testing.assert_array_equal(whole, X.toarray().astype(np.float32))
    for value, dtype in ((1e308, np.float64), (3e38, np.float32)):
        X.data[:] = value
        with pytest.raises(ValueError, match="duplicate entries of X contain infinity or a value too large"):
            csr_matrix_of(X, np.dtype(dtype))


def test_each_feature_has_one_thread():
    for k, is_lazy, n_threads in product((1, 15, 16, 17, 1000), (True, False), (1, 2, 3, 8)):
        for X in (sparse_rows(50, k), csr_array((50, k))):
            bounds = csr._bounds(csr_matrix_of(X, np.dtype(np.float64)), 5, n_threads, is_lazy)
            for size in range(1, n_threads + 1):
                cuts = bounds[size, : size + 1]
                assert cuts[0] == 0 and cuts[-1] == k and (np.diff(cuts) >= 0).all()
                assert (cuts[:-1] % BLOCK_ROWS == 0).all()


# --- prediction ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_predictions_have_the_bits_of_dense_ones(dtype):
    for units in [[width, 3] for width in (1, 3, 8, 17, 100)] + [[3], [7, 5, 1]]:
        units = [70, *units]
        activations = [Tanh()] * (len(units) - 2) + [Softmax()]
        parameters = initial_parameters(units, [6.0] * len(activations), np.random.RandomState(0), dtype)
        predictor = Predictor(*parameters, activations, 70)
        for n in (1, 8, 9, 95, 97, 300):
            X = sparse_rows(n, 70, seed=n)
            dense, _ = predictor.outputs(X.toarray().astype(dtype), 1)
            for rows in (X, csr_matrix_of(X, np.dtype(dtype))):
                outputs, _ = predictor.outputs(rows, 1)
                np.testing.assert_array_equal(outputs, dense)


# --- more weights than an int32 counts ---


def _untouched(n, dtype):
    """Zeros that take no memory before they are written to."""
    no_reserve = 0x4000  # MAP_NORESERVE, of which Python has no name before 3.13
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return np.frombuffer(mmap.mmap(-1, n * np.dtype(dtype).itemsize, flags=flags), dtype)


def _check_large_places():
    """A first layer of more than 2**31 numbers, of which only some rows are touched."""
    width, dtype = 4096, np.float32
    k = 2**31 // width + 100
    some = np.array([0, 1, k // 2, k - 60, k - 2, k - 1])
    dense = sparse_rows(40, len(some), per_row=6).toarray()
    X = csr_array(dense)
    X = csr_array((X.data, some[X.indices], X.indptr), shape=(40, k))
    few, units = csr_array(dense), [width, 3]
    for solver in ("adam", "sgd"):
        settings = settings_for(units, solver, 8, n_jobs=2)
        small, data = start(few, units, settings, dtype, True)
        network = make_network([k, *units], [Relu(), Softmax()], dtype, 8, csr_input=True)
        params, first = _untouched(network.n_params, dtype), _untouched(network.n_params, dtype)
        second = _untouched(network.n_params, dtype) if solver == "adam" else np.empty(0, dtype)
        rows = params[: k * width].reshape(k, width)
        n_first = len(some) * width
        rows[some] = small.params[:n_first].reshape(-1, width)
        params[k * width :] = small.params[n_first:]
        optimizer = OptimizerState(first, second, 0.01)
        large = Session(network, params, optimizer, settings, 40, csr=csr_matrix_of(X, np.dtype(dtype)))
        for _ in range(3):
            large.run(data, np.full(5, 0.01))
            small.run(data, np.full(5, 0.01))
            assert large.losses == small.losses
        np.testing.assert_array_equal(rows[some], small.params[:n_first].reshape(-1, width))
        np.testing.assert_array_equal(params[k * width :], small.params[n_first:])
        assert not rows[2:100].any() and not rows[k - 50 : k - 10].any()
    print("far")


@pytest.mark.skipif(sys.platform != "linux", reason="needs MAP_NORESERVE")
def test_more_than_two_to_the_31_weights(tmp_path):
    assert run_alone("test_csr._check_large_places()", tmp_path) == "far\n"
