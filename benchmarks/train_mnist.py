"""Train on real MNIST, epoch by epoch: loss, test accuracy, seconds, samples per second.

Run: ``python benchmarks/train_mnist.py DIR``, where DIR holds the four IDX files of MNIST; without
it they are looked for where FASTBP_DATA says, then in ``datasets/``. ``--help`` lists the options.

Seconds are those of `partial_fit`, with its checks of the input; evaluation is not in them, nor is the first
call of the compiled code, which is made on one batch before and stated apart.
"""

import argparse
import time

import numpy as np

from fastbp import BackpropClassifier
from fastbp.activations import ACTIVATIONS
from fastbp.datasets import load_mnist
from fastbp.optimizers import SOLVERS


def arguments():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", nargs="?", metavar="DIR", help="folder of the IDX files")
    parser.add_argument("--hidden", type=int, nargs="*", default=[128], help="units of each hidden layer")
    parser.add_argument("--activation", choices=sorted(ACTIVATIONS), default="relu")
    parser.add_argument("--solver", choices=sorted(SOLVERS), default="adam")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--n-jobs", type=int, default=None, help="threads; all cores if left out")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_classifier(args):
    """Return the classifier, not trained yet."""
    return BackpropClassifier(
        hidden_layer_sizes=args.hidden,
        activation=args.activation,
        solver=args.solver,
        batch_size=args.batch_size,
        learning_rate_init=args.learning_rate,
        dtype=args.dtype,
        n_jobs=args.n_jobs,
        # A generator, not a number: with a number each call of partial_fit would shuffle alike.
        random_state=np.random.RandomState(args.seed),
    )


def main():
    """Train, and print a line for each epoch and a summary."""
    args = arguments()
    try:
        X, y, X_test, y_test = load_mnist(args.data)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    X, X_test = ((images / 255).astype(args.dtype) for images in (X, X_test))
    classes = np.unique(y)

    begin = time.perf_counter()
    trial = make_classifier(args).partial_fit(X[: args.batch_size], y[: args.batch_size], classes=classes)
    first_training = time.perf_counter() - begin
    begin = time.perf_counter()
    trial.score(X_test, y_test)
    first_prediction = time.perf_counter() - begin

    clf = make_classifier(args)
    units = "-".join(map(str, [X.shape[1], *args.hidden, len(classes)]))
    print(f"{units}, {args.activation}, {args.solver}, batches of {args.batch_size}, {args.dtype}")
    print(f"{'epoch':>5}{'loss':>10}{'accuracy':>10}{'seconds':>9}{'samples/s':>12}")
    seconds, accuracies = [], []
    for epoch in range(1, args.epochs + 1):
        begin = time.perf_counter()
        clf.partial_fit(X, y, classes=classes)
        seconds.append(time.perf_counter() - begin)
        accuracies.append(clf.score(X_test, y_test))
        rate = len(X) / seconds[-1]
        print(f"{epoch:5}{clf.loss_:10.5f}{accuracies[-1]:10.4f}{seconds[-1]:9.3f}{rate:12,.0f}")
    if seconds:
        print(f"test accuracy {accuracies[-1]:.4f} at the end, {max(accuracies):.4f} at best")
        print(f"training      {sum(seconds):.2f} s, {len(seconds) * len(X) / sum(seconds):,.0f} samples/s")
    print(f"first call    training {first_training:.2f} s, prediction {first_prediction:.2f} s")
    print("              (compiled, or loaded from the disk cache; not in the seconds above)")


if __name__ == "__main__":
    main()
