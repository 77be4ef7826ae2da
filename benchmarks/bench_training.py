"""A whole epoch of the workloads, in float32, against plain NumPy and scikit-learn's MLPClassifier.

Run: ``pytest benchmarks/bench_training.py``, or a part of it with ``-k mnist``.

All three train the same network on the same samples in the same batches, in a new order each
epoch. Measured are the marginal seconds of an epoch: a fit of several epochs minus a fit of one,
so that checks of the input, first weights and compilation do not count; of plain NumPy, which
does nothing but the epochs, those. Each test first checks, on a small problem in float64, that
from the same random state all three arrive at the same outputs. scikit-learn has no squared
error in its classifier: where the workload has it, scikit-learn trains with log loss, and is checked
against fastbp with log loss.

The data are real MNIST where fastbp.datasets.load_mnist finds it, else random dense numbers; the table
says which. It matters: fastbp leaves out work on inputs that are zero, and most of MNIST is.
"""

import math
import time
import warnings
from functools import cache

import common
import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.utils import shuffle

from fastbp import BackpropClassifier
from fastbp.activations import get_activation
from fastbp.datasets import load_mnist
from fastbp.network import initial_parameters
from fastbp.plain import PlainNetwork

WORKLOADS = ("mnist-128", "mnist-100", "digits-100", "tabular-64x2", "online-16", "seed-30")
TURNS = 3
SECONDS = 0.3  # that the epochs of one timed fit shall take at least


def options(workload):
    """Return the parameters that fastbp and scikit-learn share."""
    chosen = {
        "hidden_layer_sizes": workload.units[1:-1], "activation": workload.activation,
        "solver": workload.solver, "batch_size": workload.batch_size, "tol": 0.0, "n_iter_no_change": np.inf,
        "random_state": 0,
    }  # fmt: skip
    if workload.solver == "sgd":
        chosen |= {"learning_rate_init": 0.1, "momentum": 0.0, "nesterovs_momentum": False}
    return chosen


def plain_network(workload, random_state, dtype):
    """Return the same network in plain NumPy, with the first weights that the estimators draw."""
    chosen = options(workload)
    factor = get_activation(workload.activation).init_factor
    start = initial_parameters(workload.units, [factor] * (len(workload.units) - 1), random_state, dtype)
    # Anything but these two names gives logistic outputs whose delta is a - y: log loss on one output unit.
    loss = workload.loss if workload.units[-1] > 1 else "log_loss of one logistic unit"
    return PlainNetwork(
        *start, activation=workload.activation, loss=loss, solver=workload.solver,
        learning_rate=chosen.get("learning_rate_init", 1e-3),
    )  # fmt: skip


def make_data(workload, n_samples, dtype):
    """Return inputs, labels, and targets as a matrix; random, but with all classes."""
    rng = np.random.default_rng(0)
    n_classes = max(workload.units[-1], 2)
    X = rng.random((n_samples, workload.units[0])).astype(dtype)
    y = rng.permutation(np.arange(n_samples) % n_classes)
    mnist = real_mnist() if workload.units[0] == 784 else None
    if mnist is not None:
        X, y = (mnist[0][:n_samples] / 255).astype(dtype), mnist[1][:n_samples]
    Y = y[:, None] if n_classes == 2 else np.eye(n_classes)[y]
    return X, y, Y.astype(dtype)


@cache
def real_mnist():
    """Return the training images and labels of MNIST, or None where there are none."""
    try:
        return load_mnist()[:2]
    except FileNotFoundError:
        return None


def fit(estimator, X, y, epochs):
    """Fit for a number of epochs; it is meant to end before it converges."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.set_params(max_iter=epochs).fit(X, y)


def fit_plain(network, X, Y, batch_size, epochs, random_state):
    """Train for a number of epochs, shuffled as the estimators do."""
    order = np.arange(len(X))
    for _ in range(epochs):
        order = shuffle(order, random_state=random_state)
        network.epoch(X, Y, order, batch_size)
    return network


@cache
def check_same_training(name):
    """Check that all three do the same work: the same outputs after five epochs, in float64."""
    full = common.WORKLOADS[name]
    units = [min(n, 20) for n in full.units]
    workload = full._replace(units=tuple(units), batch_size=min(full.batch_size, 16))
    rng = np.random.default_rng(1)
    n_classes = max(units[-1], 2)
    X, y = rng.standard_normal((100, units[0])), np.arange(100) % n_classes
    Y = y[:, None].astype(float) if n_classes == 2 else np.eye(n_classes)[y]

    def proba(loss):
        clf = BackpropClassifier(**options(workload), loss=loss)
        return fit(clf, X, y, 5).predict_proba(X)

    random_state = np.random.RandomState(0)
    network = plain_network(workload, random_state, np.float64)
    plain = fit_plain(network, X, Y, workload.batch_size, 5, random_state).predict_proba(X)
    if n_classes == 2:
        plain = np.hstack([1 - plain, plain])
    elif workload.loss == "squared_error":
        plain /= plain.sum(axis=1, keepdims=True)
    sklearn = fit(MLPClassifier(**options(workload)), X, y, 5).predict_proba(X)
    # Rounding, 1e-16, is amplified by Adam's division by small gradients, but not by nine orders.
    np.testing.assert_allclose(proba(workload.loss), plain, rtol=1e-7)
    np.testing.assert_allclose(proba("log_loss"), sklearn, rtol=1e-7)


def epoch_seconds(runs, threads):
    """Time epochs in turns.

    Parameters
    ----------
    runs : dict of str to callable
        Functions of the number of epochs.
    threads : int
        How many the runs use.

    Returns
    -------
    seconds : dict of str to float
        Marginal seconds of an epoch.
    peak : float
        The FMA peak in the same turns, GFLOP/s.
    quiet : bool
        As from `common.best_of_turns`.
    """
    peak, _ = common.register_work("float32", threads)
    more = {}
    for name, run in runs.items():
        one, three = (min(seconds_of(run, epochs) for _ in range(2)) for epochs in (1, 3))
        more[name] = min(5_000, max(2, math.ceil(2 * SECONDS / max(three - one, 1e-6))))
    measurements = {
        (name, epochs): lambda run=run, epochs=epochs: seconds_of(run, epochs)
        for name, run in runs.items()
        for epochs in (1, 1 + more[name])
    }
    measurements["peak"] = lambda: min(common.timed(peak) for _ in range(5))
    best, quiet = common.best_of_turns(measurements, threads=threads, turns=TURNS, patience=20.0)
    seconds = {name: (best[name, 1 + n] - best[name, 1]) / n for name, n in more.items()}
    return seconds, common.peak_gflops("float32", threads, best["peak"]), quiet


def seconds_of(run, epochs):
    """Time one run, after a rest in which the threads of the one before go to sleep."""
    time.sleep(common.REST)
    return common.timed(lambda: run(epochs))


@pytest.mark.parametrize("threads", common.thread_counts())
@pytest.mark.parametrize("name", WORKLOADS)
def test_epoch(benchmark, name, threads):
    check_same_training(name)
    workload = common.WORKLOADS[name]
    n = workload.n_samples if not benchmark.disabled else 4 * workload.batch_size
    X, y, Y = make_data(workload, n, np.float32)
    fast = BackpropClassifier(**options(workload), loss=workload.loss, n_jobs=threads)
    sklearn = MLPClassifier(**options(workload))

    def run_plain(epochs):
        random_state = np.random.RandomState(0)
        network = plain_network(workload, random_state, np.float32)
        fit_plain(network, X, Y, workload.batch_size, epochs, random_state)

    runs = {
        "fastbp": lambda epochs: fit(fast, X, y, epochs),
        "plain": run_plain,
        "sklearn": lambda epochs: fit(sklearn, X, y, epochs),
    }
    benchmark.group = f"one epoch by partial_fit, {threads} thread(s)"
    with common.all_threads_limited(threads):
        compiled = common.first_call(("fit", threads), lambda: fit(fast, X, y, 1))
        if not benchmark.disabled:
            seconds, peak, quiet = epoch_seconds(runs, threads)
            rates = [n / seconds[library] for library in ("fastbp", "plain", "sklearn")]
            real = workload.units[0] == 784 and real_mnist() is not None
            note = "real MNIST" if real else "random data"
            if workload.loss == "squared_error":
                note += ", sklearn with log_loss"
            row = common.TrainingRow(name, "float32", threads, peak, quiet, *rates, *compiled, note)
            common.training_rows.append(row)
            benchmark.extra_info.update(row._asdict())
        benchmark.pedantic(fast.partial_fit, (X, y), rounds=3, warmup_rounds=1)
