"""``python -m fastbp``: a demonstration, compiling ahead of time, and what is installed."""

import argparse
import time
import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from fastbp import BackpropClassifier, show_versions, warmup
from fastbp.activations import get_activation
from fastbp.initializers import initial_parameters
from fastbp.plain import PlainNetwork


def demo(epochs=40, hidden=100, batch_size=32):
    """Train on scikit-learn's digits and print accuracy, speed, and the ratio to plain NumPy."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
    n_classes = len(np.unique(y))
    print(
        f"Handwritten digits, 8 x 8 pixels: {len(X)} to train, {len(X_test)} to test.\n"
        f"Network {X.shape[1]}-{hidden}-{n_classes}, relu, adam, batches of {batch_size}, {epochs} epochs, "
        "float32.\n"
    )
    options = dict(
        hidden_layer_sizes=(hidden,), batch_size=batch_size, n_iter_no_change=np.inf, random_state=0
    )  # fmt: skip
    with warnings.catch_warnings():
        # It is meant to stop after a number of epochs, converged or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        begin = time.perf_counter()
        BackpropClassifier(max_iter=1, **options).fit(X, y)
        print(f"Compiled code ready after {time.perf_counter() - begin:.1f} s (done once, then kept on disk).")
        times = []
        for turn in range(3):  # the best of three, as other programs may have the cores for a moment
            clf = BackpropClassifier(max_iter=epochs, verbose=turn == 0, **options)
            begin = time.perf_counter()
            clf.fit(X, y)
            times.append(time.perf_counter() - begin)
    seconds = min(times)
    rate = epochs * len(X) / seconds
    print(f"\nfastbp       test accuracy {clf.score(X_test, y_test):.4f}   {_speed(seconds, rate)}")

    turns = [_train_plain(X, y, X_test, y_test, epochs, hidden, batch_size) for _ in range(3)]
    accuracy, plain_seconds = turns[0][0], min(taken for _, taken in turns)
    print(f"plain NumPy  test accuracy {accuracy:.4f}   {_speed(plain_seconds, epochs * len(X) / plain_seconds)}")
    print(f"\nThe same training is {plain_seconds / seconds:.1f} times as fast as in plain NumPy.")


def _train_plain(X, y, X_test, y_test, epochs, hidden, batch_size):
    random_state = np.random.RandomState(0)
    n_classes = len(np.unique(y))
    units = [X.shape[1], hidden, n_classes]
    factor = get_activation("relu").init_factor
    network = PlainNetwork(*initial_parameters(units, [factor] * 2, random_state, X.dtype))
    Y = np.eye(n_classes, dtype=X.dtype)[y]
    begin = time.perf_counter()
    for _ in range(epochs):
        network.epoch(X, Y, random_state.permutation(len(X)), batch_size)
    seconds = time.perf_counter() - begin
    return (network.predict_proba(X_test).argmax(axis=1) == y_test).mean(), seconds


def _speed(seconds, rate):
    return f"{seconds:7.3f} s   {rate:11,.0f} samples/s"


def main(arguments=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m fastbp", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("demo", help="train on embedded real data and compare with plain NumPy")
    command.add_argument("--epochs", type=int, default=40, help="epochs of training (default: 40)")
    command.set_defaults(run=lambda options: demo(epochs=options.epochs))
    command = commands.add_parser("warmup", help="compile the kernels now, or load them from the disk cache")
    command.set_defaults(run=lambda options: print(f"All: {warmup(report=print):.1f} s"))
    command = commands.add_parser("info", help="print versions, and what the kernels make of this machine")
    command.set_defaults(run=lambda options: show_versions())
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
