"""The largest difference between the weights of fastbp and those of scikit-learn, for what both have in common.

Run: ``python benchmarks/differences.py [--problem NAME] [--solver NAME]``

Every solver, activation, loss and kind of target, with and without early stopping, dense and sparse, in float64. A
difference is that of the most different number, relative to the largest of its array. An asterisk marks what is above
1e-6; above 1e-3 for "lbfgs", whose line search decides by the last digits, and which runs 25 iterations. Differences in
the number of epochs or in the curves of loss and score are marked too, with an exclamation mark.
"""

import argparse
import sys
import warnings
from itertools import product

import numpy as np
from scipy.sparse import csr_array
from sklearn.datasets import load_diabetes, load_digits, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor

from fastbp import BackpropClassifier, BackpropRegressor

SOLVERS = {
    "sgd, plain": dict(solver="sgd", momentum=0.0, learning_rate_init=0.05),
    "sgd, momentum": dict(solver="sgd", momentum=0.8, nesterovs_momentum=False, learning_rate_init=0.02),
    "sgd, Nesterov": dict(solver="sgd", learning_rate_init=0.01),
    "sgd, invscaling": dict(solver="sgd", learning_rate="invscaling", learning_rate_init=0.05, power_t=0.2),
    "sgd, adaptive": dict(solver="sgd", learning_rate="adaptive", learning_rate_init=0.02, tol=0.1, n_iter_no_change=1),
    "adam": dict(solver="adam", learning_rate_init=0.005),
    "lbfgs": dict(solver="lbfgs", max_iter=25),
}
ACTIVATIONS = ["identity", "logistic", "tanh", "relu"]
COLUMNS = {
    f"{kind}{', early stopping' if early else ''}": (kind == "sparse", early)
    for kind, early in product(("dense", "sparse"), (False, True))
}  # fmt: skip
CURVES = ("loss_curve_", "validation_scores_")


def digits():
    """Return images of digits, most of whose pixels are 0, and what they show."""
    X, y = load_digits(return_X_y=True)
    return X[:300] / 16, y[:300]


def diabetes(n_outputs):
    """Return measures of patients with many zeros, and targets of about unit variance."""
    X, y = load_diabetes(return_X_y=True)
    X, y = X[:300] * 20, (y[:300] - y.mean()) / y.std()
    return np.where(abs(X) < 0.5, 0, X), np.stack([y, X[:, 2], -y], axis=1)[:, :n_outputs].squeeze()


def counts(n_outputs):
    """Return the same with positive targets."""
    X, y = diabetes(n_outputs)
    return X, np.round(np.exp(y))


def multilabel():
    """Return counts of words, and several labels for each text."""
    X, y = make_multilabel_classification(n_samples=300, n_features=12, n_classes=4, random_state=0)
    return X / X.max(), y


PROBLEMS = {
    "log_loss, binary": lambda: (digits()[0], digits()[1] > 4),
    "log_loss, multiclass": digits,
    "log_loss, multilabel": multilabel,
    "squared_error, one output": lambda: diabetes(1),
    "squared_error, three outputs": lambda: diabetes(3),
    "poisson, one output": lambda: counts(1),
    "poisson, three outputs": lambda: counts(3),
}


def estimators(problem, options):
    """Return one of fastbp and one of scikit-learn."""
    loss = problem.split(",")[0]
    if loss == "log_loss":
        return BackpropClassifier(**options), MLPClassifier(**options)
    return BackpropRegressor(loss, **options), MLPRegressor(loss, **options)


def difference(ours, theirs):
    """Return the largest relative difference of weights and intercepts."""
    arrays = zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True)
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in arrays)


def same_course(ours, theirs):
    """Whether both have trained for as long, with the same losses and scores."""
    if ours.n_iter_ != theirs.n_iter_ or ours.t_ != theirs.t_:
        return False
    if ours.solver == "lbfgs":  # scikit-learn has the last loss only
        return np.isclose(ours.loss_, theirs.loss_, rtol=1e-3)
    pairs = [(getattr(ours, name), getattr(theirs, name)) for name in CURVES]
    return all(a is b is None or np.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in pairs)


def compare(problem, solver, activation, sparse, early):
    """Train both; return the difference of weights, and whether they have trained alike."""
    X, y = PROBLEMS[problem]()
    options = dict(hidden_layer_sizes=(20, 10), max_iter=15, batch_size=64, random_state=1) | SOLVERS[solver]
    if problem.startswith("poisson") and solver != "lbfgs":  # whose outputs, exponentials, grow quickly
        options["learning_rate_init"] /= 4
    pair = estimators(problem, options | dict(activation=activation, early_stopping=early))
    for model in pair:
        model.fit(csr_array(X) if sparse else X, y)
    return difference(*pair), same_course(*pair)


def main():
    """Print the table; return 1 if a difference is too large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=PROBLEMS, help="only this one")
    parser.add_argument("--solver", choices=SOLVERS, help="only this one")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"| loss, targets | solver | activation | {' | '.join(COLUMNS)} |")
    print("|---|---|---|" + "---:|" * len(COLUMNS))
    n_marked, n_rows, largest = 0, 0, {}
    problems, solvers = [args.problem] if args.problem else PROBLEMS, [args.solver] if args.solver else SOLVERS
    for problem, solver, activation in product(problems, solvers, ACTIVATIONS):
        cells = []
        for sparse, early in COLUMNS.values():
            found, alike = compare(problem, solver, activation, sparse, early)
            mark = "" if found <= (1e-3 if solver == "lbfgs" else 1e-6) else " *"
            mark += "" if alike else " !"
            cells.append(f"{found:.0e}{mark}")
            n_marked, n_rows = n_marked + bool(mark), n_rows + 1
            largest[solver] = max(found, largest.get(solver, 0.0))
        print(f"| {problem} | {solver} | {activation} | {' | '.join(cells)} |", flush=True)
    print("\nLargest: " + "; ".join(f"{solver} {found:.0e}" for solver, found in largest.items()))
    print(f"{n_marked} of {n_rows} configurations are marked.")
    return n_marked > 0


if __name__ == "__main__":
    sys.exit(main())
