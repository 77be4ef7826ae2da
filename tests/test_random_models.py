"""Random parameters and random data: only what is documented is raised, and what must hold does hold."""

import io
import os
import pickle
import warnings
from contextlib import redirect_stdout
from unittest import mock

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refused import OWN_PARAMETERS, PARAMETERS
from scipy.sparse import csr_array, csr_matrix, issparse
from sklearn.base import clone, is_classifier

from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.activations import ACTIVATIONS, Logistic, Softmax, Threshold
from fastbp.initializers import WEIGHT_INITS
from fastbp.kernels import threads

# Examples of each estimator: in the default tests the same ones each time, in the slow ones others.
N_EXAMPLES = 25
N_SLOW = int(os.environ.get("FASTBP_EXAMPLES", "2000"))

# --- parameters ---


def some_of(*values):
    return st.sampled_from(values)


units = st.integers(1, 12)
activation = some_of(*ACTIVATIONS, Logistic(slope=2.0), Threshold(surrogate="logistic"))
no_activation = some_of(Softmax(), "swish", 3, ["relu"])
shares = st.floats(0, 1, exclude_max=True)
# Values that are valid by themselves, most of them also with the others, and some that no one would take.
VALUES = {
    "hidden_layer_sizes": st.lists(units, max_size=3).map(tuple) | units | some_of((0,), (3, 2.5), np.array([4, 3])),
    "activation": activation | activation | st.lists(activation | no_activation, max_size=2),
    "solver": some_of("adam", "sgd", "adamw", "lbfgs"),
    "alpha": st.floats(0, 10) | some_of(0, 1e-300, 1e30, 1e300),
    "batch_size": st.integers(1, 50) | some_of(1, "auto", 10**30),
    "learning_rate": some_of("constant", "invscaling", "adaptive", "cosine", "one_cycle"),
    "power_t": st.floats(0, 3) | some_of(0, 1e300),
    "learning_rate_init": st.floats(1e-6, 0.1) | some_of(1, 1e-300, 1e3, 1e30, 1e300),
    "max_iter": st.integers(1, 5),
    "shuffle": st.booleans(),
    "random_state": st.integers(0, 2**32 - 1) | st.builds(np.random.RandomState, st.integers(0, 9)) | st.none(),
    "tol": st.floats(0, 1) | some_of(0, 1e300),
    "verbose": some_of(False, True, 0, 2),
    "warm_start": st.booleans(),
    "momentum": st.floats(0, 1) | some_of(0, 1),
    "nesterovs_momentum": st.booleans(),
    "early_stopping": st.booleans(),
    "validation_fraction": st.floats(0, 0.9) | some_of(0.5),
    "beta_1": shares | some_of(0, 1 - 1e-16),
    "beta_2": shares | some_of(0, 1 - 1e-16),
    "epsilon": st.floats(1e-10, 1) | some_of(1e-300, 1e300),
    "n_iter_no_change": st.integers(1, 5) | some_of(np.inf, 10**30),
    "max_fun": st.integers(1, 20) | some_of(10**30),
    "dropout": shares | st.lists(shares, max_size=2) | some_of(0, 1 - 1e-16),
    "weight_decay": st.floats(0, 10) | some_of(0, 1e300),
    "max_grad_norm": st.floats(1e-3, 10) | some_of(None, 1e-300, 1e300),
    "weight_init": some_of(*WEIGHT_INITS),
    "scoring": some_of(None, "loss", "accuracy", "r2", "precise"),
    "max_time": some_of(None, 1e6, 10**6),
    "dtype": some_of("auto", "float32", "float64"),
    "n_jobs": some_of(None, 1, 2, -1, -2, 10**30, -(10**30)),
}
OWN_VALUES = {
    BackpropClassifier: {
        "loss": some_of("log_loss", "squared_error"),
        "output_activation": activation | some_of("auto", Softmax()),
        "class_weight": some_of(None, "balanced", {0: 2.0, 1: 1, 2: 0.5}, [{0: 1, 1: 2}] * 2),
        "label_smoothing": shares,
    },
    BackpropRegressor: {
        "loss": some_of("squared_error", "poisson", "absolute_error", "huber", "quantile"),
        "output_activation": activation | some_of("auto", Softmax()),
        "delta": st.floats(1e-3, 10) | some_of(1, 1e-300, 1e300),
        "quantile": st.floats(0.01, 0.99) | st.lists(shares, max_size=3),
    },
}
REFUSED = {
    BackpropClassifier: PARAMETERS | OWN_PARAMETERS["classifier"],
    BackpropRegressor: PARAMETERS | OWN_PARAMETERS["regressor"],
}


@st.composite
def parameters(draw, estimator):
    """Return parameters, and the name of one that is refused, or None."""
    values = VALUES | OWN_VALUES[estimator]
    chosen = draw(st.lists(some_of(*values), max_size=8, unique=True))
    params = {"hidden_layer_sizes": (5,), "max_iter": 3, "random_state": 0}
    params |= {name: draw(values[name]) for name in chosen}
    refused = draw(some_of(None, None, None, *REFUSED[estimator])) if draw(st.booleans()) else None
    if refused is not None:
        params[refused] = draw(some_of(*REFUSED[estimator][refused]))
    return params, refused


# --- data ---


@st.composite
def inputs(draw, n, k, rng):
    X = rng.normal(size=(n, k)) * draw(some_of(1.0, 1.0, 1.0, 0.0, 1e-30, 1e3, 1e30))
    X *= rng.random((n, k)) < draw(some_of(1.0, 1.0, 0.3))
    X = X.astype(draw(some_of(np.float32, np.float64)))
    return draw(some_of(np.asarray, np.asfortranarray, csr_array, csr_matrix))(X)


@st.composite
def labels(draw, n, rng):
    """Return labels, and all classes."""
    kinds = {
        "numbers": np.arange(3), "two": np.array([-5, 250]), "names": np.array(["b", "a", "ccc"]), "one": np.array([7]),
        "truth": np.array([False, True]), "floats": np.array([1.0, 2.0]), "several": np.arange(2),
    }  # fmt: skip
    kind = draw(some_of(*kinds))
    classes = kinds[kind]
    if kind == "several":
        return rng.integers(0, 2, (n, 2)), classes
    return classes[rng.integers(0, len(classes), n)], classes


@st.composite
def targets(draw, n, rng):
    Y = rng.normal(size=(n, draw(st.integers(1, 3)))) * draw(some_of(1.0, 1.0, 0.0, 1e3, 1e30))
    Y = np.abs(Y) if draw(st.booleans()) else Y
    return (Y[:, 0] if Y.shape[1] == 1 else Y), None


@st.composite
def problems(draw, estimator):
    """Return all that a call gets beside the parameters."""
    n, k, rng = draw(st.integers(1, 40)), draw(st.integers(1, 12)), np.random.default_rng(draw(st.integers(0, 2**32)))
    X = draw(inputs(n, k, rng))
    y, classes = draw((labels if estimator is BackpropClassifier else targets)(n, rng))
    weight = draw(some_of(None, None, np.ones(n), rng.random(n), rng.integers(0, 2, n), rng.random(n) - 0.3, 2.0))
    n_validation = draw(some_of(0, 0, 0, 1, 5))
    validation = {"X_val": X[:n_validation], "y_val": y[:n_validation]} if n_validation else {}
    return X, y, classes, weight, validation


# --- what may be raised ---

# Why valid parameters are refused, together with others or with the data.
REASONS = [
    "hidden_layer_sizes must be", "entries for", "is unknown; the known ones are", "is for the outputs of",
    "A threshold has no derivative", "is for solver='adamw'", "is not for solver='lbfgs'",
    "is not supported with loss=",
    "quantile must be a number between 0 and 1", "gives one output for each level", "class_weight must be",
    "are not in class_weight", "class_weight='balanced' is not supported by partial_fit",
    "partial_fit does not support early_stopping", "has no attribute 'partial_fit'", "is not a valid scoring value",
    "The validation set is too small", "should be greater or equal to the number of classes", "least populated class",
    "With n_samples=", "test_size", "Sample weights must", "`y` has the same classes as in the previous call",
    "Solver produced non-finite parameter weights",
]  # fmt: skip
# Of scikit-learn's accuracy, for targets of a regressor.
NO_ACCURACY = ["continuous is not supported", "Classification metrics can't handle"]


def learn(model, method, problem):
    X, y, classes, weight, validation = problem
    np.random.seed(0)
    with redirect_stdout(io.StringIO()):
        if method == "fit":
            return model.fit(X, y, weight, **validation)
        some = {} if classes is None else {"classes": classes}
        for _ in range(2 if method == "partial_fit, twice" else 1):
            model.partial_fit(X, y, weight, **some)
    return model


def is_refused(model, method, problem, refused):
    """Train; return whether that was refused as it should be, with nothing changed."""
    before = dict(vars(model))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            learn(model, method, problem)
        except (ValueError, TypeError, AttributeError) as error:
            message = str(error)
            if method != "partial_fit, twice":
                after = vars(model)
                assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
            no_accuracy = NO_ACCURACY if not is_classifier(model) and model.scoring == "accuracy" else []
            reasons = [f"'{refused}' parameter", *REASONS, *no_accuracy]
            assert any(reason in message for reason in reasons), repr(error)
            return True
    assert refused is None or method != "fit", f"{getattr(model, refused)!r} is no value of {refused}"
    # scikit-learn's own warnings of convergence, and of scores of few samples, are of this kind too.
    assert all(issubclass(warning.category, UserWarning) for warning in caught), [str(w.message) for w in caught]
    return False


# --- what must hold ---


def two_threads(n_jobs, work, min_work=0.0):
    return 2 if numba.config.NUMBA_NUM_THREADS > 1 and threads._parallel_is_safe() else 1


def predictions(model, X):
    found = [model.predict_proba(X), model.predict(X)] if is_classifier(model) else [model.predict(X)]
    return [part.toarray() if issparse(part) else part for part in found]


def bits(model, X):
    """Return all that a model has learned, and what it predicts, as bytes."""
    return [
        np.asarray(part).tobytes()
        for part in (*model.coefs_, *model.intercepts_, model.loss_curve_, *predictions(model, X))
    ]


def check_predictions(model, X):
    """Check the numbers, and that those of a row do not depend on the other rows."""
    whole = predictions(model, X)
    n = X.shape[0]
    # Where a network computes infinities from its finite weights, there are no numbers.
    with np.errstate(over="ignore"):
        largest = np.prod([max(1.0, np.abs(coef).sum(dtype=np.float64)) for coef in model.coefs_]) * max(
            1.0, abs(X).max()
        )
    if is_classifier(model) and largest < 1e30:
        proba = whole[0]
        assert proba.min() >= 0 and proba.max() <= 1
        if model._binarizer.y_type_ != "multilabel-indicator" and len(model.classes_) > 1:
            eps = np.finfo(proba.dtype).eps
            np.testing.assert_allclose(proba.sum(axis=1, dtype=np.float64), 1, rtol=0, atol=4 * eps * proba.shape[1])
            assert set(whole[1]) <= set(model.classes_)
    order = np.random.default_rng(0).permutation(n)
    for rows in (order, order[: n // 2 + 1], order[:1]):
        for part, expected in zip(predictions(model, X[rows]), whole, strict=True):
            assert part.tobytes() == expected[rows].tobytes()


def check(model, method, problem, refused):
    X = problem[0]
    twin, other = clone(model), clone(model)
    if is_refused(model, method, problem, refused):
        return
    assert all(np.isfinite(part).all() for part in (*model.coefs_, *model.intercepts_))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_predictions(model, X)
        expected = bits(model, X)
        assert bits(learn(twin, method, problem), X) == expected
        with mock.patch.object(threads, "thread_count", two_threads):
            assert bits(learn(other, method, problem), X) == expected
        copy = pickle.loads(pickle.dumps(model))
        assert bits(copy, X) == expected
        if method != "fit":  # and it goes on in the same way
            results = []
            for some in (model, copy):
                try:
                    results.append(bits(learn(some, method, problem), X))
                except ValueError as error:  # it diverges
                    results.append(str(error))
            assert results[0] == results[1]


@pytest.mark.parametrize("count", [N_EXAMPLES, pytest.param(N_SLOW, marks=pytest.mark.slow)])
@pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
def test_random_models(estimator, count):
    @settings(
        max_examples=count, derandomize=count == N_EXAMPLES, deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(parameters(estimator), problems(estimator), some_of("fit", "fit", "partial_fit", "partial_fit, twice"))
    def check_one(params, problem, method):
        check(estimator(**params[0]), method, problem, params[1])

    check_one()
