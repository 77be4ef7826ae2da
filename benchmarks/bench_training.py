"""Training speed against plain NumPy and scikit-learn's MLP: whole fits, and single epochs.

**Whole fits.** ``python benchmarks/bench_training.py`` (4 to 12 minutes) prints a Markdown table of the speed that a
scikit-learn user sees. It times a complete `fit`, checks of the input included, of `BackpropClassifier` and
`MLPClassifier` with the same parameters, the same `random_state` and the same float64 arrays. Everything else is left
at its default: `n_jobs=None` in fastbp, and as many BLAS threads as NumPy chooses for `MLPClassifier`. Before a pair is
timed, the script checks that both stop after the same number of epochs, and compares `coefs_` and `intercepts_`.
``--estimator regressor`` does the same for `BackpropRegressor` and `MLPRegressor`. ``--threads 1`` limits both to one
thread. ``--turns 3`` takes less than half the time.

**Single epochs.** ``pytest benchmarks/bench_training.py`` (5 minutes), or a part of it with ``-k mnist``, compares
the time of one epoch in float32, also with plain NumPy (`fastbp.plain`). All three train the same network on the same
samples in the same batches, in a new order each epoch. The time of an epoch is the time of a fit of several epochs
minus the time of a fit of one epoch, divided by the number of additional epochs. So the checks of the input, the
initialization and the compilation do not count. Plain NumPy does nothing but epochs. Each test first checks, on a
small problem in float64, that all three compute the same outputs from the same random state. `MLPClassifier` has no
squared error: on workloads with squared error it trains with log loss, and is checked against fastbp with log loss.

The tests use real MNIST if `fastbp.datasets.load_mnist` finds it, and random dense numbers otherwise; the table says
which. This matters because fastbp skips inputs that are zero, and most of MNIST is zero.
"""

import argparse
import math
import sys
import time
import warnings
from functools import cache
from typing import Any, NamedTuple

if __name__ == "__main__":
    import conftest  # noqa: F401  # before NumPy: this sets the import path and the environment of its BLAS

import common
import joblib
import numpy as np
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.utils import shuffle

from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.activations import get_activation
from fastbp.datasets import load_mnist
from fastbp.initializers import initial_parameters
from fastbp.plain import PlainNetwork

WORKLOADS = ("mnist-128", "mnist-100", "digits-100", "tabular-64x2", "online-16", "seed-30")
TURNS = 3
SECONDS = 0.3  # least duration of the epochs in one timed fit


class Comparison(NamedTuple):
    """Whole fits of two estimators.

    Attributes
    ----------
    ours, theirs : type
        The classes of the estimators.
    data : dict of str to (callable, int)
        How to load the data, and `max_iter`. With 200, the default, small data are trained as a user would train them;
        larger data get fewer epochs, so that no fit of scikit-learn takes much longer than a second.
    configurations : dict of str to dict
        Parameters of both.
    """

    ours: Any
    theirs: Any
    data: dict
    configurations: dict


COMPARISONS = {
    "classifier": Comparison(
        BackpropClassifier,
        MLPClassifier,
        {
            "iris": (datasets.load_iris, 200),
            "wine": (datasets.load_wine, 200),
            "breast cancer": (datasets.load_breast_cancer, 200),
            "digits": (datasets.load_digits, 50),
            "make_classification": (lambda **chosen: made_classification(5_000, 20), 20),
            "make_classification, larger": (lambda **chosen: made_classification(20_000, 40), 5),
        },
        {
            "default": {},
            "`(50, 50)`, tanh": {"hidden_layer_sizes": (50, 50), "activation": "tanh"},
            "sgd with momentum": {"solver": "sgd"},
            "logistic, `batch_size=32`": {"activation": "logistic", "batch_size": 32},
        },
    ),
    "regressor": Comparison(
        BackpropRegressor,
        MLPRegressor,
        {
            "diabetes": (datasets.load_diabetes, 200),
            "make_regression": (lambda **chosen: made_regression(5_000, 20), 20),
            "make_regression, larger": (lambda **chosen: made_regression(20_000, 40), 5),
        },
        {
            "default": {},
            "sgd with momentum": {"solver": "sgd"},
            "lbfgs": {"solver": "lbfgs"},
            "early stopping": {"early_stopping": True},
        },
    ),
}
ATTEMPTS = 4  # at a measurement that other programs disturb
SAME = 1e-6  # largest difference of coefs_ and intercepts_ that is rounding, relative to the largest parameter


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
    """Return the same network in plain NumPy, with the initial weights that the estimators draw."""
    chosen = options(workload)
    factor = get_activation(workload.activation).init_factor
    start = initial_parameters(workload.units, [factor] * (len(workload.units) - 1), random_state, dtype)
    # Any other name than these two gives logistic outputs with delta a - y, which is the log loss of one output unit.
    loss = workload.loss if workload.units[-1] > 1 else "log_loss of one logistic unit"
    return PlainNetwork(
        *start, activation=workload.activation, loss=loss, solver=workload.solver,
        learning_rate=chosen.get("learning_rate_init", 1e-3),
    )  # fmt: skip


def make_data(workload, n_samples, dtype):
    """Return inputs, labels, and one-hot targets: real MNIST or random numbers, with all classes."""
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
    """Return the training images and labels of MNIST, or None if they are not found."""
    try:
        return load_mnist()[:2]
    except FileNotFoundError:
        return None


def fit(estimator, X, y, epochs):
    """Fit for a number of epochs, without a warning that this did not converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.set_params(max_iter=epochs).fit(X, y)


def fit_plain(network, X, Y, batch_size, epochs, random_state):
    """Train for a number of epochs, with the estimators' order of samples."""
    order = np.arange(len(X))
    for _ in range(epochs):
        order = shuffle(order, random_state=random_state)
        network.epoch(X, Y, order, batch_size)
    return network


@cache
def check_same_training(name):
    """Check that all three compute the same outputs after five epochs in float64."""
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
    # Adam divides by small gradients, which amplifies rounding errors of 1e-16, but not by nine orders of magnitude.
    np.testing.assert_allclose(proba(workload.loss), plain, rtol=1e-7)
    np.testing.assert_allclose(proba("log_loss"), sklearn, rtol=1e-7)


def epoch_seconds(runs, threads):
    """Time epochs of several libraries alternately.

    Parameters
    ----------
    runs : dict of str to callable
        Functions that train for the number of epochs that they are given.
    threads : int
        Number of threads that each run uses.

    Returns
    -------
    seconds : dict of str to float
        Seconds of one epoch, without what a fit does only once.
    peak : float
        The FMA peak that was measured between the runs, in GFLOP/s.
    quiet : bool
        As in `common.best_of_turns`.
    """
    more = {}
    for name, run in runs.items():
        one, three = (min(seconds_of(run, epochs) for _ in range(2)) for epochs in (1, 3))
        more[name] = min(5_000, max(2, math.ceil(2 * SECONDS / max(three - one, 1e-6))))
    measurements = {
        (name, epochs): lambda run=run, epochs=epochs: seconds_of(run, epochs)
        for name, run in runs.items()
        for epochs in (1, 1 + more[name])
    }
    measurements["peak"] = lambda: common.register_seconds("float32", threads)[0]
    best, quiet = common.best_of_turns(measurements, threads=threads, turns=TURNS, patience=20.0)
    seconds = {name: (best[name, 1 + n] - best[name, 1]) / n for name, n in more.items()}
    return seconds, common.peak_gflops("float32", threads, best["peak"]), quiet


def seconds_of(run, epochs):
    """Time one run, after a pause in which the threads of the previous run go to sleep."""
    time.sleep(common.REST)
    return common.timed(lambda: run(epochs))


def pytest_generate_tests(metafunc):
    """Run the test for each workload and number of threads; a decorator would need pytest for `main` too."""
    metafunc.parametrize("name", WORKLOADS)
    metafunc.parametrize("threads", common.thread_counts())


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


def made_classification(n_samples, n_features):
    """Return scikit-learn's artificial classification data, half of the features informative."""
    return datasets.make_classification(n_samples, n_features, n_informative=n_features // 2, random_state=0)


def made_regression(n_samples, n_features):
    """Return scikit-learn's artificial regression data, half of the features informative, with noise."""
    return datasets.make_regression(n_samples, n_features, n_informative=n_features // 2, noise=10.0, random_state=0)


def standardized(comparison, name):
    """Return the samples of a data set with mean 0 and variance 1 in float64, the targets, and `max_iter`.

    The targets of a regressor are standardized too.
    """
    load, max_iter = comparison.data[name]
    X, y = load(return_X_y=True)
    if comparison is COMPARISONS["regressor"]:
        y = (y - y.mean()) / y.std()
    return StandardScaler().fit_transform(X.astype(np.float64)), y, max_iter


def compare_models(first, second):
    """Return the largest difference between the parameters of two models, relative to the largest of each array.

    Raises
    ------
    AssertionError
        If the models were not trained for the same number of epochs.
    """
    assert first.n_iter_ == second.n_iter_, f"{first.n_iter_} and {second.n_iter_} epochs"
    pairs = zip(first.coefs_ + first.intercepts_, second.coefs_ + second.intercepts_, strict=True)
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)


def check_same_model(comparison, name, configuration):
    """Fit both estimators; return the number of epochs and the difference as from `compare_models`."""
    X, y, max_iter = standardized(comparison, name)
    models = []
    for estimator in both(comparison, configuration).values():
        time.sleep(common.REST)  # fastbp remembers which number of threads was faster in the first fit
        models.append(fit(estimator, X, y, max_iter))
    return models[0].n_iter_, compare_models(*models)


def both(comparison, configuration):
    """Return both estimators, with the same parameters."""
    chosen = comparison.configurations[configuration] | {"random_state": 0}
    return {"fastbp": comparison.ours(**chosen), "sklearn": comparison.theirs(**chosen)}


def whole_fit(comparison, name, configuration, threads, turns):
    """Time complete fits of both estimators alternately, and return the result of `common.best_of_turns`."""
    X, y, max_iter = standardized(comparison, name)
    measurements = {
        library: lambda estimator=estimator: seconds_of(lambda epochs: fit(estimator, X, y, epochs), max_iter)
        for library, estimator in both(comparison, configuration).items()
    }
    return common.best_of_turns(measurements, threads=threads, turns=turns, patience=30.0)


def measure_whole_fits(comparison, threads, turns):
    """Measure all data sets and configurations, again those that other programs have disturbed.

    Returns
    -------
    found : dict
        (name, configuration) -> the result of `whole_fit`.
    """
    found = {(name, chosen): (None, False) for name in comparison.data for chosen in comparison.configurations}
    for number in range(ATTEMPTS):
        for key, (_, quiet) in found.items():
            if not quiet:
                print(f"attempt {number + 1}: {', '.join(key)}", file=sys.stderr, flush=True)
                found[key] = whole_fit(comparison, *key, threads, turns)
    return found


def whole_fit_table(comparison, threads, turns):
    """Yield the lines of the Markdown table of whole fits."""
    configurations = comparison.configurations
    # These fits also compile, or load compiled code.
    checked = {
        (name, chosen): check_same_model(comparison, name, chosen)
        for name in comparison.data
        for chosen in configurations
    }
    found = measure_whole_fits(comparison, threads, turns)
    ratios = {key: seconds["sklearn"] / seconds["fastbp"] for key, (seconds, _) in found.items()}
    yield f"| data | samples x features | max_iter | {' | '.join(configurations)} |"
    yield "|---|---:|---:" + "|---:" * len(configurations) + "|"
    for name in comparison.data:
        X, _, max_iter = standardized(comparison, name)
        cells = []
        for configuration in configurations:
            seconds, quiet = found[name, configuration]
            n_iter, _ = checked[name, configuration]
            cell = f"{ratios[name, configuration]:.1f}{'*' * (not quiet)} "
            cell += f"({seconds['sklearn'] * 1e3:,.0f} → {seconds['fastbp'] * 1e3:.0f} ms"
            cells.append(cell + (f", {n_iter} epochs)" if n_iter < max_iter else ")"))
        yield f"| {name} | {len(X):,} x {X.shape[1]} | {max_iter} | {' | '.join(cells)} |"
    yield ""
    ours, theirs = comparison.ours.__name__, comparison.theirs.__name__
    yield f"Each cell: time of {theirs} divided by time of {ours}, and the two times."
    counting = [ratios[key] for key, (_, quiet) in found.items() if quiet]
    if counting:
        yield (
            f"Geometric mean of {len(counting)} ratios: {np.exp(np.mean(np.log(counting))):.1f}; "
            f"smallest: {min(counting):.1f}; largest: {max(counting):.1f}."
        )
    if len(counting) < len(ratios):
        yield "`*`: other programs used the cores. These ratios are unreliable, and not in the mean."
    yield (
        "Both estimators trained for the same number of epochs in all fits. Largest relative difference of `coefs_` "
        f"and `intercepts_`: {max(difference for _, difference in checked.values()):.0e}."
    )
    other = [f"{', '.join(key)}: {difference:.0e}" for key, (_, difference) in checked.items() if difference > SAME]
    if other:
        yield f"More than {SAME:.0e}: {'; '.join(other)}."


def main(arguments=None):
    """Print the table of whole fits."""
    parser = argparse.ArgumentParser(description="Compare whole fits of fastbp and scikit-learn.")
    parser.add_argument("--estimator", choices=COMPARISONS, default="classifier", help="default: classifier")
    parser.add_argument("--threads", type=int, help="limit both estimators; by default each uses its own default")
    parser.add_argument("--turns", type=int, default=7, help="fits of each, of which the fastest counts (default: 7)")
    options = parser.parse_args(arguments)
    threads = options.threads or joblib.cpu_count()
    comparison = COMPARISONS[options.estimator]

    def report():
        print(f"Complete `fit` of both estimators in float64, the best of {options.turns}, measured alternately.")
        print(*common.machine(), sep="\n")
        what = f"by default, up to {threads}" if options.threads is None else f"limited to {threads}"
        print(f"Threads of BLAS in scikit-learn, and of fastbp: {what}.\n")
        for line in whole_fit_table(comparison, threads, options.turns):
            print(line, flush=True)

    if options.threads is None:
        report()
    else:
        with common.all_threads_limited(options.threads):
            report()


if __name__ == "__main__":
    main()
