"""Input and parameters that are refused: by which error, in which words, and that nothing changes."""

import copy
import re
from contextlib import contextmanager
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from refused import OWN_PARAMETERS, PARAMETERS
from scipy import sparse
from sklearn.base import is_classifier
from sklearn.exceptions import NotFittedError

from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.activations import Softmax

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:The number of unique classes"),  # of scikit-learn before 1.9
    pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning"),
]

N, K = 60, 4
X = np.random.default_rng(0).normal(size=(N, K))
LABELS = np.arange(N) % 3
NUMBERS = X @ [1.0, -2.0, 0.5, 0.0]
SEVERAL = np.eye(3, dtype=int)[LABELS]
ESTIMATORS = {"classifier": (BackpropClassifier, LABELS), "regressor": (BackpropRegressor, NUMBERS)}
both = pytest.mark.parametrize("kind", ESTIMATORS)


def new(kind, **options):
    return ESTIMATORS[kind][0](**{"hidden_layer_sizes": (5,), "max_iter": 2, "random_state": 0, "n_jobs": 1, **options})


def fitted(kind, X=X, y=None, **options):
    return new(kind, **options).fit(X, ESTIMATORS[kind][1] if y is None else y)


def outputs(model, X):
    return (model.predict_proba if is_classifier(model) else model.predict)(X)


def memory(model):
    """Return the bytes of all arrays that training changes; none of a new estimator."""
    state = vars(model)
    moments = [part for parts in state["_optimizer"]["parts"] for part in parts] if "coefs_" in state else []
    lists = [state.get("coefs_", []), state.get("intercepts_", []), *moments]
    return [array.tobytes() for arrays in lists for array in arrays]


@contextmanager
def refused(model, error, message, inputs=X):
    """Check that a block ends with an error, and leaves the estimator as it was, to the last bit."""
    before, arrays = dict(vars(model)), memory(model)
    expected = outputs(model, inputs).tobytes() if arrays else None
    with pytest.raises(error, match=message):
        yield
    after = vars(model)
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert memory(model) == arrays
    if arrays:
        assert outputs(model, inputs).tobytes() == expected


def learn(model, method, X, y, weight=None):
    """Call `fit` or `partial_fit`."""
    if method == "partial_fit" and is_classifier(model) and not hasattr(model, "classes_"):
        return model.partial_fit(X, y, weight, classes=np.unique(LABELS))
    return getattr(model, method)(X, y, weight)


LEARNING = ["fit", "partial_fit"]


def asking(model):
    """Return what can be asked of a fitted estimator, as functions of inputs."""
    y = LABELS if is_classifier(model) else NUMBERS
    names = ["predict", "predict_proba", "predict_log_proba"] if is_classifier(model) else ["predict"]
    calls = {name: getattr(model, name) for name in names}
    return calls | {"score": lambda X: model.score(X, y)}


# --- inputs ---


def spoiled(value, convert=lambda X: X):
    def spoil(X):
        X = convert(X).copy()
        X[3, 2] = value
        return X

    return spoil


def csr_with(value):
    def spoil(X):
        X = sparse.csr_array(X)
        X.data[5] = value
        return X

    return spoil


class Case(NamedTuple):
    """What is refused, and how."""

    make: Any
    message: str
    error: type = ValueError
    asked: str | None = None  # the message where a prediction is asked for, if that is another
    dtypes: tuple = ("float32", "float64")  # of the networks that refuse it


INFINITE = "Input X contains infinity or a value too large for dtype"
NO_NUMBER = "could not convert string to float"
INPUTS = {
    "NaN": Case(spoiled(np.nan), "Input X contains NaN"),
    "NaN, sparse": Case(csr_with(np.nan), "Input X contains NaN"),
    "NaN, float16": Case(spoiled(np.nan, lambda X: X.astype(np.float16)), "Input X contains NaN"),
    "NaN, lists": Case(lambda X: spoiled(np.nan)(X).tolist(), "Input X contains NaN"),
    "NaN, frame": Case(lambda X: pd.DataFrame(spoiled(np.nan)(X)), "Input X contains NaN"),
    "NA": Case(lambda X: pd.DataFrame(spoiled(np.nan)(X)).astype("Float64"), "Input X contains NaN"),
    "None": Case(spoiled(None, lambda X: X.astype(object)), "Input X contains NaN"),
    "infinity": Case(spoiled(np.inf), INFINITE),
    "minus infinity": Case(spoiled(-np.inf, lambda X: X.astype(np.float32)), INFINITE),
    "infinity, sparse": Case(csr_with(-np.inf), INFINITE),
    "infinity, objects": Case(spoiled(np.inf, lambda X: X.astype(object)), INFINITE),
    "infinity in float32": Case(spoiled(1e300), INFINITE, dtypes=("float32",)),
    "infinity in float32, sparse": Case(csr_with(-1e300), INFINITE, dtypes=("float32",)),
    "infinity in float32, objects": Case(spoiled(1e300, lambda X: X.astype(object)), INFINITE, dtypes=("float32",)),
    "infinity in float32, lists": Case(lambda X: spoiled(1e300)(X).tolist(), INFINITE, dtypes=("float32",)),
    "infinity in float64": Case(spoiled(np.longdouble("1e4000"), lambda X: X.astype(np.longdouble)), INFINITE),
    "whole number beyond all floats": Case(spoiled(10**400, lambda X: X.astype(object)), "too large"),
    "complex": Case(lambda X: X + 0j, "Complex data not supported"),
    "complex, sparse": Case(lambda X: sparse.csr_array(X + 0j), "Complex data not supported"),
    "complex, objects": Case(spoiled(1j, lambda X: X.astype(object)), "complex", TypeError),
    "strings": Case(lambda X: np.full(X.shape, "a"), NO_NUMBER, asked="not compatible with arrays of bytes/strings"),
    "strings, lists": Case(lambda X: [["a"] * K] * N, NO_NUMBER, asked="not compatible with arrays of bytes/strings"),
    "strings, objects": Case(spoiled("a", lambda X: X.astype(object)), NO_NUMBER),
    "strings, frame": Case(lambda X: pd.DataFrame(X).assign(e="a").iloc[:, 1:].set_axis(range(K), axis=1), NO_NUMBER),
    "categories of strings": Case(lambda X: pd.DataFrame({i: pd.Categorical(["a"] * N) for i in range(K)}), NO_NUMBER),
    "no numbers": Case(spoiled(object(), lambda X: X.astype(object)), "must be a string or a", TypeError),
    "lists in an array": Case(spoiled([1.0], lambda X: X.astype(object)), "setting an array element with a sequence"),
    "nothing": Case(lambda X: None, "Expected 2D array, got scalar array instead"),
    "a number": Case(lambda X: 1.0, "Expected 2D array, got scalar array instead"),
    "one dimension": Case(lambda X: X[0], "Expected 2D array, got 1D array instead"),
    "one dimension, list": Case(lambda X: X[0].tolist(), "Expected 2D array, got 1D array instead"),
    "one dimension, series": Case(lambda X: pd.Series(X[0]), "Expected a 2-dimensional container"),
    "one dimension, sparse": Case(lambda X: sparse.coo_array(X[0]), "Expected 2D"),
    "three dimensions": Case(lambda X: X[None], "Found array with dim 3"),
    "rows of different lengths": Case(lambda X: [[1.0] * K, [1.0]] * (N // 2), "inhomogeneous shape"),
    "a matrix": Case(lambda X: np.asmatrix(X), "np.matrix is not supported", TypeError),
    "no samples": Case(lambda X: X[:0], r"Found array with 0 sample\(s\)"),
    "no samples, list": Case(lambda X: [], "Expected 2D array, got 1D array instead"),
    "no samples, sparse": Case(lambda X: sparse.csr_array(X[:0]), r"Found array with 0 sample\(s\)"),
    "no features": Case(lambda X: X[:, :0], r"Found array with 0 feature\(s\)"),
    "no features, lists": Case(lambda X: [[]] * N, r"Found array with 0 feature\(s\)"),
    "no features, sparse": Case(lambda X: sparse.csr_array(X[:, :0]), r"Found array with 0 feature\(s\)"),
}  # fmt: skip


def broken(edit):
    def make(X):
        X = sparse.csr_array(X)
        edit(X)
        return X

    return make


BROKEN = {
    "a row ends after the data": lambda X: X.indptr.__setitem__(-1, X.nnz + 5),
    "rows end far after the data": lambda X: X.indptr.__setitem__(slice(5, None), 2**31 - 1),
    "a negative end": lambda X: X.indptr.__setitem__(5, -3),
    "ends that fall": lambda X: X.indptr.__setitem__(20, X.indptr[40]),
    "a begin after 0": lambda X: X.indptr.__setitem__(0, 1),
    "a feature too many": lambda X: X.indices.__setitem__(11, K),
    "a feature far too many": lambda X: X.indices.__setitem__(11, 2**31 - 1),
    "a negative feature": lambda X: X.indices.__setitem__(11, -1),
    "missing values": lambda X: setattr(X, "data", X.data[:-1]),
    "missing features": lambda X: setattr(X, "indices", X.indices[:-1]),
    "missing rows": lambda X: setattr(X, "indptr", X.indptr[:-1]),
}
INPUTS |= {name: Case(broken(edit), "inconsistent|index pointer|indices") for name, edit in BROKEN.items()}


@pytest.fixture(scope="module")
def models():
    """Fitted estimators, which nothing that is refused changes."""
    made = {}

    def model(kind, **options):
        key = kind, *options.items()
        if key not in made:
            made[key] = fitted(kind, **options)
        return made[key]

    return model


@both
@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name, kind, models):
    case = INPUTS[name]
    bad, y = case.make(X), ESTIMATORS[kind][1]
    for dtype, early_stopping in product(case.dtypes, (False, True)):
        model = models(kind, dtype=dtype, early_stopping=early_stopping)
        for method in LEARNING[: 1 if early_stopping else 2]:
            for some in (new(kind, dtype=dtype, early_stopping=early_stopping), model):
                with refused(some, case.error, case.message):
                    learn(some, method, bad, y)
        if not early_stopping:
            for call in asking(model).values():
                with refused(model, case.error, case.asked or case.message):
                    call(bad)


@both
def test_inputs_for_validation(kind, models):
    model, y = models(kind, dtype="float32"), ESTIMATORS[kind][1]
    for name in ("NaN", "infinity in float32", "strings", "one dimension", "no samples"):
        with refused(
            model, INPUTS[name].error, f"X_val and y_val do not fit the training data: .*{INPUTS[name].message}"
        ):
            model.fit(X, y, X_val=INPUTS[name].make(X), y_val=y)
    with refused(model, ValueError, INPUTS["a negative feature"].message):
        model.fit(X, y, X_val=INPUTS["a negative feature"].make(X), y_val=y)
    for some in ({"X_val": X}, {"y_val": y}):
        with refused(model, ValueError, "X_val and y_val must be passed together"):
            model.fit(X, y, **some)
    for X_val, y_val, message in ((X[:, :3], y, "X has 3 features"), (X, y[1:], ROWS)):
        with refused(model, ValueError, f"X_val and y_val do not fit the training data: .*{message}"):
            model.fit(X, y, X_val=X_val, y_val=y_val)


@both
@pytest.mark.parametrize("n_features", [K - 1, K + 1, 2 * K])
def test_another_number_of_features(n_features, kind, models):
    model, y = models(kind, warm_start=True), ESTIMATORS[kind][1]
    dense = np.ones((N, n_features))
    message = rf"X has {n_features} features, but {type(model).__name__} is expecting {K} features as input"
    for bad in (dense, dense.astype(np.float32), dense.astype(int), dense.tolist(), sparse.csr_array(dense)):
        for method in LEARNING:
            with refused(model, ValueError, message):
                learn(model, method, bad, y)
        for call in asking(model).values():
            with refused(model, ValueError, message):
                call(bad)


@both
def test_columns_of_other_names(kind):
    frame, y = pd.DataFrame(X, columns=list("abcd")), ESTIMATORS[kind][1]
    model = fitted(kind, frame, warm_start=True)
    for bad in (frame[list("bacd")], frame.rename(columns={"a": "e"}), frame[list("abc")], frame.assign(e=1.0)):
        for method in LEARNING:
            with refused(model, ValueError, "The feature names should match those that were passed", frame):
                learn(model, method, bad, y)
        for call in asking(model).values():
            with refused(model, ValueError, "The feature names should match those that were passed", frame):
                call(bad)
    mixed = frame.set_axis(["a", "b", "c", 4], axis=1)
    for some in (new(kind), model):
        for method in LEARNING:
            with refused(
                some, TypeError, "Feature names are only supported if all input features have string names", frame
            ):
                learn(some, method, mixed, y)
    for call in asking(model).values():
        with pytest.warns(UserWarning, match=r"X does not have valid feature names, but Backprop\w+ was fitted with"):
            call(X)


@both
def test_before_there_is_a_model(kind):
    model = new(kind)
    for call in asking(model).values():
        with refused(model, NotFittedError, f"This {type(model).__name__} instance is not fitted yet"):
            call(X)


# --- targets ---


def with_one(y, value, dtype=None):
    y = y.astype(dtype or y.dtype)
    y[7] = value
    return y


ROWS = "inconsistent numbers of samples"
TARGETS = {
    "classifier": {
        "too few": (LABELS[:5], ROWS, ValueError),
        "too many": (np.append(LABELS, 0), ROWS, ValueError),
        "nothing": (None, "requires y to be passed|should be a 1d array|Expected array-like", ValueError),
        "NaN": (with_one(LABELS, np.nan, float), "Input y contains NaN", ValueError),
        "infinity": (with_one(LABELS, np.inf, float), "Input y contains infinity", ValueError),
        "NaN, objects": (with_one(LABELS.astype(str).astype(object), np.nan), "Input (y )?contains NaN", ValueError),
        "continuous": (LABELS + 0.5, "Unknown label type", ValueError),
        "complex": (LABELS + 0j, "Complex data not supported", ValueError),
        "labels that do not sort": (np.array(["a", 1] * (N // 2), dtype=object), "not supported between", TypeError),
        "labels without an order": (np.full(N, None), "not supported between", TypeError),
        "several columns": (np.stack([LABELS, LABELS], 1), "Multioutput target data|Unknown label type", ValueError),
        "three dimensions": (LABELS.reshape(N, 1, 1), "Found array with dim 3", ValueError),
        "rows of different lengths": ([[1, 0], [1]] * (N // 2), "inhomogeneous shape", ValueError),
    },
    "regressor": {
        "too few": (NUMBERS[:5], ROWS, ValueError),
        "too many": (np.append(NUMBERS, 0), ROWS, ValueError),
        "nothing": (None, "requires y to be passed|should be a 1d array|Expected array-like", ValueError),
        "NaN": (with_one(NUMBERS, np.nan), "Input y contains NaN", ValueError),
        "infinity": (with_one(NUMBERS, np.inf), "Input y contains infinity", ValueError),
        "infinity, objects": (with_one(NUMBERS, np.inf, object), "Input y contains infinity", ValueError),
        "NaN, objects": (with_one(NUMBERS, np.nan, object), "Input (y )?contains NaN", ValueError),
        "NaN, several columns": (np.stack([NUMBERS, with_one(NUMBERS, np.nan)], 1), "Input y contains NaN", ValueError),
        "NA": (pd.Series(with_one(NUMBERS, np.nan)).astype("Float64"), "Input y contains NaN", ValueError),
        "strings": (np.full(N, "a"), NO_NUMBER, ValueError),
        "strings, objects": (np.full(N, "a", object), NO_NUMBER, ValueError),
        "complex": (NUMBERS + 0j, "Complex data not supported", ValueError),
        "three dimensions": (NUMBERS.reshape(N, 1, 1), "Found array with dim 3", ValueError),
        "no columns": (np.empty((N, 0)), "0 feature", ValueError),
        "sparse": (sparse.csr_array(np.stack([NUMBERS, NUMBERS], 1)), "Sparse data was passed for y", TypeError),
        "sparse column": (sparse.csr_array(NUMBERS[:, None]), "Sparse data was passed for y", TypeError),
    },
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in TARGETS for name in TARGETS[kind]])
def test_targets(kind, name, models):
    bad, message, error = TARGETS[kind][name]
    for dtype in ("float32", "float64"):
        for some, method in product((new(kind, dtype=dtype), models(kind, dtype=dtype)), LEARNING):
            with refused(some, error, message):
                learn(some, method, X, bad)
        model = models(kind, dtype=dtype)
        # scikit-learn's metrics cast what is not finite to integers, before they refuse it.
        with np.errstate(invalid="ignore"), refused(model, (ValueError, TypeError), "."):
            model.score(X, bad)


def test_targets_that_are_infinite_in_float32(models):
    message = r"Input y contains infinity or a value too large for dtype\('float32'\)"
    for bad in (with_one(NUMBERS, 1e300), with_one(NUMBERS, -1e39), np.stack([NUMBERS, with_one(NUMBERS, 1e300)], 1)):
        y = bad if bad.ndim == 1 else np.ones_like(bad)
        for some, method in product(
            (new("regressor", dtype="float32"), fitted("regressor", y=y / 1e300, dtype="float32")), LEARNING
        ):
            with refused(some, ValueError, message):
                learn(some, method, X, bad)
    model = models("regressor", dtype="float32")
    with refused(model, ValueError, f"X_val and y_val do not fit the training data: {message}"):
        model.fit(X, NUMBERS, X_val=X, y_val=with_one(NUMBERS, 1e300))


def test_another_number_of_targets(models):
    pair = np.stack([NUMBERS, NUMBERS], 1)
    for model, bad, message in (
        (models("regressor", warm_start=True), pair, "y has 2 columns; the estimator was fitted with 1"),
        (fitted("regressor", y=pair, warm_start=True), NUMBERS, "y has 1 columns; the estimator was fitted with 2"),
    ):
        for method in LEARNING:
            with refused(model, ValueError, message):
                learn(model, method, X, bad)
    levels = new("regressor", loss="quantile", quantile=[0.1, 0.9])
    for method in LEARNING:
        with refused(levels, ValueError, r"quantile=\[0.1, 0.9\] gives one output for each level of a single target"):
            learn(levels, method, X, pair)


def test_other_classes(models):
    model, warm = models("classifier"), models("classifier", warm_start=True)
    with refused(model, ValueError, r"`y` has classes not in `self.classes_`. `self.classes_` has \[0 1 2\]. 'y' has"):
        model.partial_fit(X, LABELS + 1)
    with refused(model, ValueError, "`y` has classes not in `self.classes_`"):
        model.partial_fit(X, np.eye(3, dtype=int)[LABELS])
    for y in (LABELS > 0, LABELS + 1, np.minimum(LABELS, 1)):
        with refused(warm, ValueError, "warm_start can only be used where `y` has the same classes"):
            warm.fit(X, y)
    several = fitted("classifier", y=np.eye(3, dtype=int)[LABELS])
    for bad in (LABELS, np.eye(4, dtype=int)[LABELS]):
        with refused(several, ValueError, "`y` has classes not in `self.classes_`|different numbers? of"):
            several.partial_fit(X, bad)
    with refused(model, ValueError, "X_val and y_val do not fit the training data: `y` has classes not in"):
        model.fit(X, LABELS, X_val=X, y_val=LABELS + 1)


def test_classes(models):
    first = new("classifier")
    with refused(first, ValueError, "classes must be passed on the first call to partial_fit"):
        first.partial_fit(X, LABELS)
    for classes, message in (
        ([0, 1], "`y` has classes not in `self.classes_`"),
        ([], "y has 0 samples|[Aa]t least one|classes must be"),
        ([0.0, 1.0, np.nan], "Input contains NaN"),
        ([0.5, 1.0, 2.0], "Unknown label type"),
        (3, "Expected array-like"),
        (["a", 1, 2], "Mix of label input types|`y` has classes not in"),
        (np.array(["a", 1, 2], object), "not supported between"),
    ):
        with refused(first, (ValueError, TypeError), message):
            first.partial_fit(X, LABELS, classes=classes)
    model = models("classifier")
    for classes in ([0, 1], [0, 1, 2, 3], ["a", "b", "c"]):
        with refused(model, ValueError, "is not the same as on last call to partial_fit"):
            model.partial_fit(X, LABELS, classes=classes)


# --- sample weights ---

FINITE_WEIGHTS = "Input sample_weight contains infinity or a value too large for dtype"
WEIGHTS = {
    "all zero": (np.zeros(N), "Sample weights must contain at least one non-zero number", ValueError),
    "zero": (0.0, "Sample weights must contain at least one non-zero number", ValueError),
    "sum of zero": (np.tile([1.0, -1.0], N // 2), "Sample weights must not sum to zero", ValueError),
    "too few": (np.ones(3), r"sample_weight.shape == \(3,\), expected \(60,\)", ValueError),
    "two dimensions": (np.ones((N, 1)), "Sample weights must be 1D array or scalar", ValueError),
    "NaN": (with_one(np.ones(N), np.nan), "Input sample_weight contains NaN", ValueError),
    "NaN for all": (np.nan, "Input sample_weight contains NaN", ValueError),
    "infinity": (with_one(np.ones(N), np.inf), FINITE_WEIGHTS, ValueError),
    "infinity for all": (np.inf, FINITE_WEIGHTS, ValueError),
    "None": (with_one(np.ones(N), None, object), "Input sample_weight contains NaN", ValueError),
    "strings": (np.full(N, "a"), NO_NUMBER, ValueError),
    "a string": ("balanced", NO_NUMBER, ValueError),
    "complex": (np.ones(N) + 0j, "Complex data not supported", ValueError),
    "sparse": (sparse.csr_array(np.ones((N, 1))), "Sparse data was passed", TypeError),
}


@both
@pytest.mark.parametrize("name", WEIGHTS)
def test_sample_weights(name, kind, models):
    bad, message, error = WEIGHTS[name]
    for dtype in ("float32", "float64"):
        for some, method in product((new(kind, dtype=dtype), models(kind, dtype=dtype)), LEARNING):
            with refused(some, error, message):
                learn(some, method, X, ESTIMATORS[kind][1], bad)


@both
def test_sample_weights_that_are_infinite_in_float32(kind, models):
    for some, method in product((new(kind, dtype="float32"), models(kind, dtype="float32")), LEARNING):
        for bad in (with_one(np.ones(N), 1e300), 1e300):
            with refused(some, ValueError, FINITE_WEIGHTS):
                learn(some, method, X, ESTIMATORS[kind][1], bad)
    clf = new("classifier", dtype="float32", class_weight={0: 1e300, 1: 1, 2: 1})
    for method in LEARNING:
        with refused(clf, ValueError, FINITE_WEIGHTS):
            learn(clf, method, X, LABELS)


@both
def test_held_out_samples_without_weight(kind):
    weight = np.zeros(N)
    weight[20] = 1
    model = new(kind, early_stopping=True)
    with refused(model, ValueError, r"at least one non-zero number, also those .* Increase validation_fraction=0.1"):
        model.fit(X, ESTIMATORS[kind][1], weight)


# --- parameters ---


@both
def test_all_parameters_are_in_the_catalogue(kind):
    assert {*PARAMETERS, *OWN_PARAMETERS[kind]} == {*new(kind).get_params()}


@both
@pytest.mark.parametrize("name", [*PARAMETERS, *OWN_PARAMETERS["classifier"], *OWN_PARAMETERS["regressor"]])
def test_parameters(name, kind):
    for value in (PARAMETERS | OWN_PARAMETERS[kind]).get(name, ()):
        message = rf"The '{name}' parameter of Backprop{kind.title()} must be .*{re.escape(f'Got {value!r} instead')}"
        _check_options(kind, {name: value}, "(?s)" + message, LEARNING)


@cache
def _fitted(kind, n_dimensions):
    return fitted(kind, y=SEVERAL if n_dimensions == 2 else None)


def _check_options(kind, options, message, methods, error=ValueError, y=None):
    """Check that a new and a fitted estimator are refused."""
    y = ESTIMATORS[kind][1] if y is None else y
    for some, method in product((new(kind), copy.deepcopy(_fitted(kind, np.ndim(y)))), methods):
        some.set_params(**options)
        if method == "partial_fit" and options.get("solver") == "lbfgs":
            continue
        with refused(some, error, message):
            if method == "partial_fit" and np.ndim(y) == 2 and kind == "classifier":
                some.partial_fit(X, y, classes=np.arange(y.shape[1]))
            else:
                learn(some, method, X, y)


NO_RATES = r"dropout must be rates in \[0, 1\), got"
NO_LEVELS = "quantile must be a number between 0 and 1, or a list of them, got"
# What has to fit together.
TOGETHER = [
    ({"hidden_layer_sizes": (5, 0)}, r"hidden_layer_sizes must be > 0, got \[5, 0\]"),
    ({"hidden_layer_sizes": [-3]}, r"hidden_layer_sizes must be > 0, got \[-3\]"),
    ({"hidden_layer_sizes": (5.5,)}, r"hidden_layer_sizes must be integers, got \[5.5\]"),
    ({"hidden_layer_sizes": ["a"]}, r"hidden_layer_sizes must be integers, got \['a'\]"),
    ({"hidden_layer_sizes": [[5]]}, r"hidden_layer_sizes must be integers, got \[\[5\]\]"),
    ({"hidden_layer_sizes": np.ones((2, 2), int)}, "hidden_layer_sizes must be integers, got"),
    ({"hidden_layer_sizes": np.array(2.5)}, "hidden_layer_sizes must be integers, got"),
    ({"activation": ["relu", "tanh"]}, "activation has 2 entries for 1 hidden layers; give one for each layer"),
    ({"activation": []}, "activation has 0 entries for 1 hidden layers; give one for each layer"),
    ({"activation": ["swish"]}, r"activation='swish' is unknown; the known ones are \['elu'"),
    ({"activation": [["relu"]]}, r"activation=\['relu'\] is unknown; the known ones are \['elu'"),
    ({"activation": [None]}, "activation=None is unknown; the known ones are"),
    ({"activation": Softmax()}, r"Softmax\(\) is for the outputs of output_activation='auto' only"),
    ({"activation": "threshold"}, "A threshold has no derivative, so that its layer cannot learn"),
    ({"dropout": [0.5, 0.5]}, "dropout has 2 entries for 1 hidden layers; give one for each layer"),
    ({"dropout": []}, "dropout has 0 entries for 1 hidden layers; give one for each layer"),
    ({"dropout": [1.0]}, NO_RATES),
    ({"dropout": [-0.1]}, NO_RATES),
    ({"dropout": [np.nan]}, NO_RATES),
    ({"dropout": ["a"]}, NO_RATES),
    ({"dropout": [[0.5]]}, NO_RATES),
    ({"dropout": np.array(1.5)}, NO_RATES),
    ({"solver": "lbfgs", "dropout": 0.5}, r"dropout=0.5 is not for solver='lbfgs'.* or dropout=0"),
    ({"solver": "lbfgs", "max_grad_norm": 1.0}, r"max_grad_norm=1.0 is not for solver='lbfgs'.* or max_grad_norm=None"),
    *(
        ({"solver": solver, "weight_decay": 0.1}, r"weight_decay=0.1 is for solver='adamw'.*Use solver='adamw'")
        for solver in ("adam", "sgd", "lbfgs")
    ),
]  # fmt: skip
OWN_TOGETHER = {
    "classifier": [
        ({"output_activation": "tanh"}, "output_activation='tanh' is not supported with loss='log_loss', whose"),
        ({"loss": "squared_error", "output_activation": Softmax()}, r"Softmax\(\) is for the outputs of"),
        ({"loss": "squared_error", "label_smoothing": 0.1}, "label_smoothing=0.1 is not supported with loss='squared"),
        ({"class_weight": [{0: 1, 1: 1}]}, "class_weight must be a dict or 'balanced', as y has one column"),
        ({"class_weight": {0: 1, 7: 2}}, r"The classes, \[1, 2\], are not in class_weight"),
        ({"class_weight": {0: 0, 1: 0, 2: 0}}, "at least one non-zero number"),
        ({"class_weight": {0: np.nan, 1: 1, 2: 1}}, "NaN"),
        ({"class_weight": {0: "a", 1: 1, 2: 1}}, NO_NUMBER),
    ],
    "regressor": [
        ({"loss": "poisson", "output_activation": "relu"}, "output_activation='relu' is not supported with loss='pois"),
        ({"loss": "quantile", "quantile": [0.5, 2.0]}, NO_LEVELS),
        ({"loss": "quantile", "quantile": []}, NO_LEVELS),
        ({"loss": "quantile", "quantile": [np.nan]}, NO_LEVELS),
        ({"loss": "quantile", "quantile": [[0.1], [0.2, 0.3]]}, NO_LEVELS),
        ({"loss": "quantile", "quantile": [[0.1, 0.9]]}, NO_LEVELS),
        ({"loss": "quantile", "quantile": ["a"]}, NO_LEVELS),
        ({"loss": "quantile", "quantile": [1j]}, NO_LEVELS),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [(kind, *case) for kind in ESTIMATORS for case in (*TOGETHER, *OWN_TOGETHER[kind])], ids=str,
)  # fmt: skip
def test_parameters_that_do_not_fit_together(kind, options, message):
    _check_options(kind, options, message, LEARNING)


def test_parameters_that_do_not_fit_the_targets():
    for class_weight in ({0: 1, 1: 2}, [{0: 1, 1: 2}]):
        message = "class_weight must be 'balanced' or a list with a dict for each of the 3 columns"
        _check_options("classifier", {"class_weight": class_weight}, message, LEARNING, y=SEVERAL)
    message = "class_weight='balanced' is not supported by partial_fit.*compute_class_weight"
    _check_options("classifier", {"class_weight": "balanced"}, message, ["partial_fit"])


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": "precise"}, "'precise' is not a valid scoring value"),
        ({"validation_fraction": 0.0}, "test_size"),
        ({"validation_fraction": 1e-9}, "The validation set is too small. Increase 'validation_fraction'"),
    ],
    ids=str,
)
def test_early_stopping(options, message, kind):
    _check_options(kind, {"early_stopping": True, **options}, message, ["fit"])
    message = "partial_fit does not support early_stopping=True. Use early_stopping=False, or call fit"
    _check_options(kind, {"early_stopping": True}, message, ["partial_fit"])


@both
def test_another_network(kind, models):
    model = copy.deepcopy(models(kind, warm_start=True)).set_params(hidden_layer_sizes=(6,))
    for method in LEARNING:
        with refused(model, ValueError, "Training can continue only in the same shape: set warm_start=False"):
            learn(model, method, X, ESTIMATORS[kind][1])


@both
def test_lbfgs_has_no_partial_fit(kind):
    model = new(kind, solver="lbfgs")
    with refused(model, AttributeError, "has no attribute 'partial_fit'"):
        model.partial_fit(X, ESTIMATORS[kind][1])


@both
def test_what_diverges(kind):
    options = {"solver": "sgd", "learning_rate_init": 1e30, "activation": "identity", "max_iter": 50}
    for some in (new(kind, **options), fitted(kind).set_params(**options)):
        with refused(
            some, ValueError, "Solver produced non-finite parameter weights. The input data may contain large"
        ):
            some.fit(X, ESTIMATORS[kind][1])


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    [
        ("classifier", (0, [0, 1]), ValueError, "n_features == 0, must be >= 1"),
        ("classifier", (2.5, [0, 1]), TypeError, "n_features must be an instance of int"),
        ("classifier", (3, []), ValueError, r"classes must be an array of shape \(n_classes,\) with a label or more"),
        ("classifier", (3, [[0, 1]]), ValueError, r"classes must be an array of shape \(n_classes,\)"),
        ("classifier", (3, 2), ValueError, r"classes must be an array of shape \(n_classes,\)"),
        ("classifier", (3, [0.5, 1]), ValueError, "Unknown label type"),
        ("classifier", (3, [0.0, np.nan]), ValueError, "NaN"),
        ("regressor", (0,), ValueError, "n_features == 0, must be >= 1"),
        ("regressor", ("3",), TypeError, "n_features must be an instance of int"),
        ("regressor", (3, 0), ValueError, "n_outputs == 0, must be >= 1"),
        ("regressor", (3, None), TypeError, "n_outputs must be an instance of int"),
    ],
    ids=str,
)
def test_initialize(kind, arguments, error, message):
    for some in (new(kind), fitted(kind)):
        with refused(some, error, message):
            some.initialize(*arguments)
