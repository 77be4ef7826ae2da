"""Train on real MNIST, epoch by epoch: loss, test accuracy, seconds, samples per second.

Run: ``python benchmarks/train_mnist.py DIR``, where DIR contains the four IDX files of MNIST. Without DIR they are
read from the folder in the environment variable FASTBP_DATA, or from ``datasets/``. ``--help`` lists the options.

The seconds are those of `partial_fit`, including its checks of the input, without the evaluation. The first call of
the compiled code is made before, on one batch, and its duration is printed separately.

``--to 0.98`` measures the time to a test accuracy, averaged over ``--seeds`` seeds, with a fixed recipe: 784-128-10,
relu, adam, batch_size=128, seven epochs of learning_rate="one_cycle" with learning_rate_init=0.01. If PyTorch is
installed, the same recipe is also run with PyTorch. The time starts with the images as bytes in memory and ends with
the predicted classes of the test set. It includes scaling, the fit with all its checks and the prediction, but not
the compilation.
"""

import argparse
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from multiprocessing import get_context

import numpy as np
from sklearn.exceptions import ConvergenceWarning

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
    parser.add_argument("--n-jobs", type=int, default=None, help="number of threads; all cores by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=float, metavar="ACCURACY", help="measure the time to a test accuracy")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds that --to averages over")
    return parser.parse_args()


def make_classifier(args):
    """Return the classifier, not fitted yet."""
    return BackpropClassifier(
        hidden_layer_sizes=args.hidden,
        activation=args.activation,
        solver=args.solver,
        batch_size=args.batch_size,
        learning_rate_init=args.learning_rate,
        dtype=args.dtype,
        n_jobs=args.n_jobs,
        random_state=args.seed,
    )


RECIPE = {"hidden": (128,), "batch_size": 128, "rate": 0.01, "epochs": 7}


def scaled(images):
    """Return pixels in [0, 1], float32."""
    return np.multiply(images, np.float32(1 / 255), dtype=np.float32)


def train_recipe(X, y, X_test, seed, n_jobs):
    """Scale, train and predict with fastbp."""
    clf = BackpropClassifier(
        RECIPE["hidden"], batch_size=RECIPE["batch_size"], learning_rate="one_cycle", max_iter=RECIPE["epochs"],
        learning_rate_init=RECIPE["rate"], alpha=0.0, n_iter_no_change=np.inf, random_state=seed, n_jobs=n_jobs,
    )  # fmt: skip
    return clf.fit(scaled(X), y).predict(scaled(X_test))


def train_recipe_torch(X, y, X_test, seed, n_jobs):
    """Scale, train and predict with PyTorch: fused Adam, OneCycleLR, and the data as one tensor."""
    import torch

    if n_jobs is not None:
        torch.set_num_threads(n_jobs)
    torch.manual_seed(seed)
    X, y, X_test = torch.from_numpy(scaled(X)), torch.from_numpy(y), torch.from_numpy(scaled(X_test))
    layers = []
    units = [X.shape[1], *RECIPE["hidden"]]
    for fan_in, fan_out in pairwise(units):
        layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(units[-1], 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=RECIPE["rate"], fused=True)
    n_batches = -(-len(X) // RECIPE["batch_size"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RECIPE["rate"], total_steps=n_batches * RECIPE["epochs"], cycle_momentum=False
    )
    loss_function = torch.nn.CrossEntropyLoss()
    for _ in range(RECIPE["epochs"]):
        for batch in torch.randperm(len(X)).split(RECIPE["batch_size"]):
            optimizer.zero_grad(set_to_none=True)
            loss_function(model(X[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return model(X_test).argmax(dim=1).numpy()


def open_data(folder):
    """Load the data in the process of a contestant, and silence convergence warnings."""
    global DATA
    warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed
    DATA = load_mnist(folder)


def time_recipe(train, seed, n_jobs, n_samples=None):
    """Return the duration of a recipe in seconds, and its test accuracy."""
    X, y, X_test, y_test = DATA
    begin = time.perf_counter()
    predicted = train(X[:n_samples], y[:n_samples], X_test, seed, n_jobs)
    seconds = time.perf_counter() - begin
    return seconds, (predicted == y_test).mean()


def race_to(args):
    """Print the seconds and the test accuracy of the recipe for each seed, and the averages."""
    recipes = {"fastbp": train_recipe}
    if find_spec("torch"):
        recipes[f"PyTorch {version('torch')}"] = train_recipe_torch
    else:
        print("PyTorch is not installed: only fastbp is measured")
    print(
        f"784-{'-'.join(map(str, RECIPE['hidden']))}-10, batch_size={RECIPE['batch_size']}, {RECIPE['epochs']} epochs, "
        f"one_cycle with learning_rate_init={RECIPE['rate']}"
    )
    results = {name: [] for name in recipes}
    with ExitStack() as stack:
        # One process for each library, because waiting threads of one would slow down the other.
        spawn = get_context("spawn")
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, spawn, open_data, (args.data,))) for name in recipes}
        for name, pool in pools.items():
            pool.submit(time_recipe, recipes[name], 0, args.n_jobs, 2000).result()  # compile, start threads
        for seed in range(args.seeds):
            for name, pool in pools.items():
                seconds, accuracy = pool.submit(time_recipe, recipes[name], seed, args.n_jobs).result()
                results[name].append((seconds, accuracy))
                print(f"  seed {seed}  {name:>16}  {seconds:6.3f} s  test accuracy {accuracy:.4f}")
    for name, pairs in results.items():
        seconds, accuracy = np.mean(pairs, axis=0)
        reached = sum(found >= args.to for _, found in pairs)
        print(f"{name}: {seconds:.3f} s on average, accuracy {accuracy:.4f}")
        print(f"{'':>{len(name)}}  {reached} of {len(pairs)} seeds reach {args.to}")


def main():
    """Train, and print one line for each epoch and a summary."""
    args = arguments()
    try:
        X, y, X_test, y_test = load_mnist(args.data)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    if args.to is not None:
        race_to(args)
        return
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
    print(f"{units}, {args.activation}, {args.solver}, batch_size={args.batch_size}, {args.dtype}")
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
    print("              (compiled, or loaded from the cache on disk; not included above)")


if __name__ == "__main__":
    main()
