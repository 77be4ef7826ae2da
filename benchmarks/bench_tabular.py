"""Tables with default settings: accuracy, log loss, calibration and seconds, against other estimators.

`python benchmarks/bench_tabular.py`

The sets are those of scikit-learn and, where FASTBP_DATA names their folder, those of `fastbp.datasets`. Each is cut
into five folds; every estimator trains on four of them and is tested on the fifth, with its default settings and all
cores. The plain networks and the linear models have a StandardScaler before them. RealMLP-TD-S takes part where
pytabkit is installed. Ranks are 1 for the best of a set; estimators that are equal share the mean of their ranks.

With --ablation, fastbp's estimators for tables compete with themselves, each time without one ingredient.
"""

import argparse
import time
import warnings
from functools import partial
from importlib.util import find_spec

import numpy as np
from scipy.stats import rankdata
from sklearn import datasets
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import accuracy_score, log_loss, r2_score, root_mean_squared_error
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastbp import BackpropClassifier, BackpropRegressor, make_tabular_classifier, make_tabular_regressor
from fastbp.datasets import load_tabular
from fastbp.tabular import make_table_transformer


def read(name, column=None):
    """Return X and y of a set of `fastbp.datasets`; a column of several targets."""
    data = load_tabular(name)
    return data.X, data.y if column is None else data.y[:, column]


def as_numbers(name):
    X, y = read(name)
    return X, y.astype(float)


# Left out: Proben1's diabetes, which is pima; its heart sets, which share rows; optdigits, which contains digits; the
# other targets of building1.
CLASSIFICATION = {
    "iris": partial(datasets.load_iris, return_X_y=True),
    "wine": partial(datasets.load_wine, return_X_y=True),
    "breast_cancer": partial(datasets.load_breast_cancer, return_X_y=True),
    "digits": partial(datasets.load_digits, return_X_y=True),
} | {
    name: partial(read, name)
    for name in (
        "banknote", "cancer1", "card1", "isolet", "pendigits", "phoneme", "pima", "robot_wall", "satimage",
        "sonar", "thyroid1", "wine_quality", "wine_quality_red",
    )
}  # fmt: skip
REGRESSION = {"diabetes": partial(datasets.load_diabetes, return_X_y=True)} | {
    "wine_quality": partial(as_numbers, "wine_quality"),
    "wine_quality_red": partial(as_numbers, "wine_quality_red"),
    "building1": partial(read, "building1", 0),
}


def scaled(estimator):
    return make_pipeline(StandardScaler(), estimator)


CLASSIFIERS = {
    "tabular": lambda: make_tabular_classifier(random_state=0),
    "Backprop": lambda: scaled(BackpropClassifier(random_state=0)),
    "MLP": lambda: scaled(MLPClassifier(random_state=0)),
    "HistGB": lambda: HistGradientBoostingClassifier(random_state=0),
    "Logistic": lambda: scaled(LogisticRegression(max_iter=1000)),
}
REGRESSORS = {
    "tabular": lambda: make_tabular_regressor(random_state=0),
    "Backprop": lambda: scaled(BackpropRegressor(random_state=0)),
    "MLP": lambda: scaled(MLPRegressor(random_state=0)),
    "HistGB": lambda: HistGradientBoostingRegressor(random_state=0),
    "Ridge": lambda: scaled(RidgeCV()),
}


def real_mlp(name):
    import pytabkit

    return getattr(pytabkit, f"RealMLP_TD_S_{name}")(device="cpu", random_state=0)


if find_spec("pytabkit"):
    CLASSIFIERS["RealMLP-TD-S"] = partial(real_mlp, "Classifier")
    REGRESSORS["RealMLP-TD-S"] = partial(real_mlp, "Regressor")


def without(part):
    """Return a transformer without one of its parts."""
    return make_table_transformer().set_params(**{part: "drop"})


def without_temperature(estimator, X, y):
    estimator.fit(X, y).temperature_ = 1.0
    return estimator


def ablation(make, options):
    """Return estimators that lack one ingredient each."""
    return {"all": partial(make, random_state=0)} | {
        f"no {label}": partial(make, random_state=0, **changes) for label, changes in options.items()
    }


COMMON = {
    "pieces": {"transformer": without("pieces")},
    "scaled": {"transformer": without("scaled")},
    "members": {"n_members": 1},
    "cosine": {"learning_rate": "constant"},
    "best epoch": {"early_stopping": False},
    "He": {"weight_init": "auto"},
    "second layer": {"hidden_layer_sizes": (128,)},
    "dropout": {"dropout": 0.0},
    "decay": {"weight_decay": 0.0},
}


def calibration_error(y, probabilities, classes, n_bins=15):
    """Return the expected calibration error of the predicted classes (Guo et al. 2017, Eq. 5)."""
    confidence = probabilities.max(axis=1)
    right = classes[probabilities.argmax(axis=1)] == y
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, confidence - right, n_bins)
    return np.abs(gaps).sum() / len(y)


def measure_classifier(make, X, y, X_test, y_test, fit=None):
    begin = time.perf_counter()
    estimator = fit(make(), X, y) if fit else make().fit(X, y)
    seconds = time.perf_counter() - begin
    probabilities = np.asarray(estimator.predict_proba(X_test), float)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    classes = np.asarray(estimator.classes_)
    return {
        "accuracy": accuracy_score(y_test, classes[probabilities.argmax(axis=1)]),
        "log loss": log_loss(y_test, probabilities, labels=classes),
        "calibration error": calibration_error(y_test, probabilities, classes),
        "seconds": seconds,
    }


def measure_regressor(make, X, y, X_test, y_test, fit=None):
    begin = time.perf_counter()
    estimator = fit(make(), X, y) if fit else make().fit(X, y)
    seconds = time.perf_counter() - begin
    predicted = np.asarray(estimator.predict(X_test)).ravel()
    return {
        "R2": r2_score(y_test, predicted), "RMSE": root_mean_squared_error(y_test, predicted), "seconds": seconds
    }  # fmt: skip


def folds_of(X, y, task, n_splits):
    """Yield the rows of training and test. A class with fewer samples than folds is missing in some of them."""
    cut = StratifiedKFold if task == "classification" else KFold
    yield from list(cut(5, shuffle=True, random_state=0).split(X, y))[:n_splits]


def run(task, sets, contestants, n_splits):
    """Return the mean figures over the splits: {metric: {set: {contestant: value}}}."""
    measure = measure_classifier if task == "classification" else measure_regressor
    found = {}
    for name, load in sets.items():
        try:
            X, y = load()
        except FileNotFoundError as error:
            print(f"skipped: {str(error).split('. ')[0]}")
            continue
        if task == "classification":  # without classes that a fold may lack
            labels, counts = np.unique(y, return_counts=True)
            keep = np.isin(y, labels[counts >= 10])
            X, y = X[keep], y[keep]
        for train, test in folds_of(X, y, task, n_splits):
            for label, make in contestants.items():
                fit = without_temperature if label == "no temperature" else None
                for metric, value in measure(make, X[train], y[train], X[test], y[test], fit).items():
                    found.setdefault(metric, {}).setdefault(name, {}).setdefault(label, []).append(value)
        print(f"{name}: {X.shape[0]} x {X.shape[1]}", flush=True)
    return {
        metric: {name: {label: np.mean(values) for label, values in row.items()} for name, row in rows.items()}
        for metric, rows in found.items()
    }


def print_table(metric, rows, labels, reference=None):
    """Print the figures of all sets, and the mean ranks; or geometric means of the ratios to a reference."""
    values = np.array([[row[label] for label in labels] for row in rows.values()])
    width = max(map(len, rows)) + 2
    columns = [max(len(label), 9) + 2 for label in labels]
    print(f"\n{metric}\n{'':{width}}" + "".join(f"{label:>{w}}" for label, w in zip(labels, columns, strict=True)))
    for name, row in zip(rows, values, strict=True):
        print(f"{name:{width}}" + "".join(f"{value:>{w}.4f}" for value, w in zip(row, columns, strict=True)))
    if metric == "seconds" or reference is not None:
        base = values[:, [labels.index(reference or labels[0])]]
        title, summary = "ratio", np.exp(np.log(np.maximum(values, 1e-9) / np.maximum(base, 1e-9)).mean(axis=0))
    else:
        sign = -1 if metric in ("accuracy", "R2") else 1
        title, summary = "mean rank", np.mean([rankdata(sign * row) for row in values], axis=0)
    print(f"{title:{width}}" + "".join(f"{value:>{w}.3f}" for value, w in zip(summary, columns, strict=True)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["classification", "regression", "both"], default="both")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="of these sets only")
    parser.add_argument("--contestants", nargs="+", metavar="NAME", help="of these estimators only")
    parser.add_argument(
        "--splits", type=int, default=5, choices=range(1, 6), help="how many of the five folds to test on"
    )
    parser.add_argument("--ablation", action="store_true", help="leave out one ingredient at a time")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.filterwarnings("ignore", message=".*batch_size")
    for task in ("classification", "regression"):
        if options.task not in (task, "both"):
            continue
        if task == "classification":
            sets, contestants, make = CLASSIFICATION, CLASSIFIERS, make_tabular_classifier
            own = {"label smoothing": {"label_smoothing": 0.0}, "temperature": {}}
        else:
            sets, contestants, make = REGRESSION, REGRESSORS, make_tabular_regressor
            own = {}
        if options.ablation:
            contestants = ablation(make, COMMON | own)
        sets = {name: load for name, load in sets.items() if not options.sets or name in options.sets}
        contestants = {k: v for k, v in contestants.items() if not options.contestants or k in options.contestants}
        if not sets or not contestants:
            continue
        X, y = datasets.load_iris(return_X_y=True)
        for label in contestants:  # so that no figure contains compilation
            clone(contestants[label]()).fit(X, y)
        print(f"\n{task}, {options.splits} of 5 folds")
        for metric, rows in run(task, sets, contestants, options.splits).items():
            print_table(metric, rows, list(contestants), "all" if options.ablation and metric != "accuracy" else None)


if __name__ == "__main__":
    main()
