"""The command line ``fastbp``: a demonstration, compilation ahead of time, and information on the installation."""

import argparse
import time
import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.utils import shuffle

from fastbp import BackpropClassifier, show_versions, warmup
from fastbp.activations import get_activation
from fastbp.codegen.jit import all_code_is_kept
from fastbp.initializers import initial_parameters
from fastbp.kernels import backprop
from fastbp.plain import PlainNetwork


def demo(epochs=40, hidden=100, batch_size=32):
    """Train the same network with fastbp, scikit-learn and plain NumPy, and print accuracy and speed.

    Parameters
    ----------
    epochs : int, default=40
        Epochs of training.
    hidden : int, default=100
        Units of the hidden layer.
    batch_size : int, default=32
        Samples in each update.
    """
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X / 16, y, test_size=0.25, stratify=y, random_state=0)
    n_classes = len(np.unique(y))
    print(
        f"Data: handwritten digits of 8 x 8 pixels, {len(X)} samples for training, {len(X_test)} for testing.\n"
        f"Network: {X.shape[1]}-{hidden}-{n_classes}, relu, adam, batch_size={batch_size}, {epochs} epochs, float64.\n"
    )
    options = dict(
        hidden_layer_sizes=(hidden,), batch_size=batch_size, n_iter_no_change=np.inf, random_state=0
    )  # fmt: skip
    begin = time.perf_counter()
    _fit(BackpropClassifier(max_iter=1, **options), X, y)
    print(f"Compiled code is ready after {time.perf_counter() - begin:.1f} s (compiled once, then loaded from disk).")

    contestants = {
        "fastbp, BackpropClassifier": lambda: _fit(BackpropClassifier(max_iter=epochs, **options), X, y),
        "scikit-learn, MLPClassifier": lambda: _fit(MLPClassifier(max_iter=epochs, **options), X, y),
        "plain NumPy": lambda: _fit_plain(X, y, epochs, hidden, batch_size),
    }
    models, seconds = _best_in_turns(contestants)
    print(f"\n{'':28}{'test accuracy':>14}{'training':>13}{'samples/s':>13}")
    for name, model in models.items():
        accuracy = np.mean(model.predict_proba(X_test).argmax(axis=1) == y_test)
        rate = epochs * len(X) / seconds[name]
        print(f"{name:28}{accuracy:14.4f}{seconds[name] * 1e3:10.1f} ms{rate:13,.0f}")
    fast, sklearn, plain = seconds.values()
    print(
        "\nAll three start from the same weights and use the same batches, so they compute the same model.\n"
        f"fastbp is {sklearn / fast:.1f} times as fast as scikit-learn "
        f"and {plain / fast:.1f} times as fast as plain NumPy."
    )


def _best_in_turns(contestants, rounds=3, limit=12.0):
    """Return the model and the shortest training time of each contestant.

    They train alternately, as other programs may slow down one of the rounds. No round begins after `limit` seconds.
    """
    models, best, begin = {}, dict.fromkeys(contestants, np.inf), time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - begin > limit:
            break
        for name, train in contestants.items():
            start = time.perf_counter()
            models[name] = train()
            best[name] = min(best[name], time.perf_counter() - start)
    return models, best


def _fit(estimator, X, y):
    with warnings.catch_warnings():
        # The number of epochs is chosen here, whether or not training has converged by then.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(X, y)


def _fit_plain(X, y, epochs, hidden, batch_size):
    # The same draws as in the estimators: first the initial weights, then the order of samples in each epoch.
    random_state = np.random.RandomState(0)
    n_classes = len(np.unique(y))
    units = [X.shape[1], hidden, n_classes]
    factor = get_activation("relu").init_factor
    network = PlainNetwork(*initial_parameters(units, [factor] * 2, random_state, X.dtype))
    Y = np.eye(n_classes, dtype=X.dtype)[y]
    order = np.arange(len(X))
    for _ in range(epochs):
        order = shuffle(order, random_state=random_state)
        network.epoch(X, Y, order, batch_size)
    return network


def compile_ahead():
    """Compile the kernels; end with an error where the machine code could not be kept."""
    print(f"Total: {warmup(report=print):.1f} s")
    if not all_code_is_kept():
        raise SystemExit("Nothing could be kept on disk: see the warning above.")


def info():
    """Print what a bug report should contain and, if no compiled code can be kept on disk, how to change that."""
    show_versions()
    if backprop.train.stats.cache_path is None:
        print(
            "\nNo cache folder can be written to. fastbp compiles in memory, anew in each process.\n"
            "Set the environment variable NUMBA_CACHE_DIR to a folder that can be written to."
        )


def main(arguments=None):
    """Run the command line: the console script ``fastbp``, or ``python -m fastbp``.

    Parameters
    ----------
    arguments : list of str, default=None
        Arguments of the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="fastbp", description="Fast multilayer perceptrons for scikit-learn users: demo, compilation, versions."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("demo", help="train on handwritten digits, beside scikit-learn and plain NumPy")
    command.add_argument("--epochs", type=int, default=40, help="epochs of training (default: 40)")
    command.set_defaults(run=lambda options: demo(epochs=options.epochs))
    command = commands.add_parser("warmup", help="compile the kernels now, or load them from the cache on disk")
    command.set_defaults(run=lambda options: compile_ahead())
    command = commands.add_parser("info", help="print versions, the machine as fastbp sees it, and the cache folder")
    command.set_defaults(run=lambda options: info())
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
