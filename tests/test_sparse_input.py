"""Sparse X, as users of scikit-learn have it: the same model as from a dense X, whatever the format."""

import json
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_multilabel_classification
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import fastbp
from fastbp import BackpropClassifier, BackpropRegressor, inspection
from fastbp.kernels.session import Session

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning",
    "ignore:scipy.optimize:DeprecationWarning",  # of an option that scikit-learn 1.7 passes
)
both = pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
N, K = 120, 50
# scipy's own sums are those of another layout of the weights.
LBFGS = 1e-11


def samples(n=N, k=K, seed=0):
    """Return a sparse X that has empty rows and columns, classes, and numbers."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, k)) * (rng.random((n, k)) < np.minimum(1, 2 / np.arange(1, k + 1)))
    X[:7] = 0
    X = sparse.csr_array(X)
    hidden = X @ rng.normal(size=(k, 3))
    return X, hidden.argmax(axis=1), hidden[:, 0] + 0.1 * rng.normal(size=n)


def targets(estimator, n=N):
    X, labels, numbers = samples(n)
    return X, labels if estimator is BackpropClassifier else numbers


def new(estimator, **kwargs):
    return estimator(**{"hidden_layer_sizes": (9,), "max_iter": 4, "batch_size": 32, "random_state": 0, **kwargs})


def arrays_of(model):
    return [*model.coefs_, *model.intercepts_]


def assert_same_model(a, b, X=None, rtol=0.0):
    for x, y in zip(arrays_of(a), arrays_of(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max())
    np.testing.assert_allclose(a.loss_curve_, b.loss_curve_, rtol=max(rtol, 1e-5 if x.dtype == np.float32 else 1e-12))
    assert (a.n_iter_, a.t_, a.n_features_in_) == (b.n_iter_, b.t_, b.n_features_in_)
    if X is not None:
        np.testing.assert_allclose(a.predict(X), b.predict(X), rtol=10 * rtol, atol=rtol)


def unsorted(X):
    X = X.copy()
    for begin, end in pairwise(X.indptr):
        X.indices[begin:end] = X.indices[begin:end][::-1].copy()
        X.data[begin:end] = X.data[begin:end][::-1].copy()
    X.has_sorted_indices = False
    return X


def with_duplicates(X):
    """Each entry becomes three, whose sum it is: its number, and one that is added and taken away."""
    data = np.repeat(X.data, 3).reshape(-1, 3) * [1, 1, -1]
    return sparse.csr_array((data.ravel(), np.repeat(X.indices, 3), 3 * X.indptr), shape=X.shape)


def with_zeros(X):
    whole = np.where(X.toarray() == 0, 7.0, X.toarray())
    result = sparse.csr_array(whole)
    result.data[result.data == 7] = 0
    assert result.nnz == N * K
    return result


def with_entries_after_the_last(X):
    X = X.copy()
    X.indices, X.data = np.append(X.indices, [-1, 10**6]).astype(X.indices.dtype), np.append(X.data, [1.0, 2.0])
    return X


def with_places(kind):
    def convert(X):
        X = X.copy()
        X.indices, X.indptr = X.indices.astype(kind), X.indptr.astype(kind)
        return X

    return convert


def read_only(X):
    X = X.copy()
    for array in (X.data, X.indices, X.indptr):
        array.flags.writeable = False
    return X


FORMS = {
    **{name: lambda X, name=name: X.asformat(name) for name in ("csr", "csc", "coo", "lil", "dok", "bsr", "dia")},
    "csr_matrix": sparse.csr_matrix, "csc_matrix": sparse.csc_matrix, "coo_matrix": sparse.coo_matrix,
    "unsorted": unsorted, "duplicates": with_duplicates, "unsorted duplicates": lambda X: unsorted(with_duplicates(X)),
    "explicit zeros": with_zeros, "entries after the last": with_entries_after_the_last,
    "int64": with_places(np.int64), "uint16": with_places(np.uint16), "unsorted uint16":
    lambda X: unsorted(with_places(np.uint16)(X)), "read-only": read_only,
    "read-only, unsorted": lambda X: read_only(unsorted(X)), "frame": pd.DataFrame.sparse.from_spmatrix,
}  # fmt: skip


@both
@pytest.mark.parametrize("form", FORMS)
def test_any_form_is_the_same_model_as_dense(estimator, form):
    X, y = targets(estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sparse.SparseEfficiencyWarning)  # a matrix of many diagonals
        other = FORMS[form](X)
    before = None if form == "frame" else other.copy().toarray()
    dense, model = (new(estimator, dtype="float64") for _ in range(2))
    if form == "frame":
        X = pd.DataFrame(X.toarray())
        X.columns = other.columns = [f"x{i}" for i in range(K)]
    else:
        X = X.toarray()
    for method in ("fit", "partial_fit"):
        getattr(dense, method)(X, y)
        getattr(model, method)(other, y)
        assert_same_model(model, dense)
    for name in ["predict", "predict_proba"] if estimator is BackpropClassifier else ["predict"]:
        np.testing.assert_array_equal(getattr(model, name)(other), getattr(dense, name)(X))
        if getattr(other, "format", None) in ("csr", "csc", "lil"):
            np.testing.assert_array_equal(getattr(model, name)(other[9:10]), getattr(dense, name)(X[9:10]))
    assert model.score(other, y) == dense.score(X, y)
    if before is not None:
        np.testing.assert_array_equal(other.toarray(), before)


@both
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize(
    "kind", ["float32", "float64", "int64", "int8", "uint8", "bool", ">f8", "longdouble", "float16"]
)
def test_any_type_of_numbers(estimator, solver, kind):
    X, y = targets(estimator)
    dense = (X.toarray() * 3).astype(kind)
    X = (
        sparse.csr_array(dense.astype(np.float64))
        if kind in (">f8", "longdouble", "float16")
        else sparse.csr_array(dense)
    )
    X.data = X.data.astype(kind)
    a, b = (new(estimator, solver=solver).fit(inputs, y) for inputs in (X, dense))
    assert a.coefs_[0].dtype == (np.float64 if np.dtype(kind).itemsize >= 8 and kind != "int64" else np.float32)
    assert_same_model(a, b, X, LBFGS if solver == "lbfgs" else 0)


@both
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [
    {}, {"solver": "sgd"}, {"solver": "lbfgs"}, {"early_stopping": True, "validation_fraction": 0.2, "max_iter": 12},
    {"batch_size": 1}, {"batch_size": N}, {"hidden_layer_sizes": ()}, {"hidden_layer_sizes": (5, 4)},
    {"learning_rate": "cosine"}, {"learning_rate": "one_cycle"}, {"shuffle": False}, {"epsilon": 1e300},
    {"beta_2": 0.9}, {"solver": "sgd", "momentum": 1.0, "learning_rate_init": 1e-5},
    {"solver": "sgd", "momentum": 0.0}, {"solver": "sgd", "nesterovs_momentum": False},
])  # fmt: skip
def test_any_training(estimator, options, dtype):
    X, y = targets(estimator)
    weight = np.random.default_rng(0).uniform(0, 2, N)
    weight[32:64] = 0  # without shuffling, a whole batch
    tolerance = 1e-11 if dtype == "float64" else 1e-4
    for alpha, sample_weight in ((1e-4, weight), (0.0, weight), (0.0, None)):
        a, b = (
            new(estimator, dtype=dtype, alpha=alpha, **options).fit(inputs, y, sample_weight=sample_weight)
            for inputs in (X, X.toarray())
        )  # fmt: skip
        has_same_bits = alpha and a.solver != "lbfgs"
        assert_same_model(a, b, X, 0.0 if has_same_bits else tolerance)


@both
def test_several_outputs(estimator):
    X, labels, numbers = samples()
    y = np.stack([labels == 0, labels == 1], 1) if estimator is BackpropClassifier else np.stack([numbers, -numbers], 1)
    a, b = (new(estimator).fit(inputs, y) for inputs in (X, X.toarray()))
    assert_same_model(a, b, X)


@both
@pytest.mark.parametrize("alpha", [0.0, 1e-4])
def test_sparse_and_dense_may_take_turns(estimator, alpha):
    X, y = targets(estimator)
    tolerance = 0.0 if alpha else 1e-11
    classes = {"classes": np.unique(y)} if estimator is BackpropClassifier else {}
    for options, method, kwargs in (({"warm_start": True}, "fit", {}), ({}, "partial_fit", classes)):
        turns, dense = (new(estimator, alpha=alpha, **options) for _ in range(2))
        for i in range(6):
            getattr(turns, method)(X if i % 2 else X.toarray(), y, **kwargs)
            getattr(dense, method)(X.toarray(), y, **kwargs)
            assert_same_model(turns, dense, X, tolerance)


@both
def test_parts_that_have_other_features_each(estimator):
    """Rows that a call does not touch move on by the state of the calls before."""
    X, y = targets(estimator)
    for solver in ("adam", "sgd"):
        models = [new(estimator, alpha=0.0, solver=solver, batch_size="auto") for _ in range(2)]
        kwargs = {"classes": np.unique(y)} if estimator is BackpropClassifier else {}
        for i in range(20):
            part = slice(6 * i, 6 * i + 6)
            models[0].partial_fit(X[part], y[part], **kwargs)
            models[1].partial_fit(X[part].toarray(), y[part], **kwargs)
        assert_same_model(*models, X, 1e-11)


@both
@pytest.mark.parametrize("alpha", [0.0, 1e-4])
def test_any_number_of_threads(estimator, alpha):
    X, y = targets(estimator, 600)
    X = sparse.hstack([X] * 8).tocsr()  # enough work for three threads
    for solver in ("adam", "sgd", "lbfgs"):
        options = {"hidden_layer_sizes": (40,), "batch_size": 300, "alpha": alpha, "solver": solver}
        models = [new(estimator, n_jobs=n_jobs, **options).fit(X, y) for n_jobs in (1, 2, 3, None)]
        for model in models[1:]:
            assert_same_model(model, models[0])
            np.testing.assert_array_equal(model.predict(X), models[0].predict(X))


@both
def test_nothing_but_zeros(estimator):
    _, y = targets(estimator)
    for X in (sparse.csr_array((N, K)), with_zeros(sparse.csr_array((N, K)))):
        for alpha in (0.0, 1e-4):
            a, b = (new(estimator, alpha=alpha).fit(inputs, y) for inputs in (X, X.toarray()))
            assert_same_model(a, b, X)


@both
def test_one_sample_and_one_feature(estimator):
    X = sparse.csr_array(np.array([[3.0]]))
    a, b = (new(estimator, batch_size="auto").fit(inputs, [1]) for inputs in (X, X.toarray()))
    assert_same_model(a, b, X, 1e-6)


@both
def test_ctrl_c_keeps_what_was_learned(estimator, monkeypatch):
    """Between two calls, in the middle of an epoch: rows that wait are caught up."""
    X, y = targets(estimator)
    whole, calls = Session._call, []

    def call(self, data, rates, first_batch, last_batch, *args):
        whole(self, data, rates, first_batch, last_batch, *args)
        calls.append(last_batch - first_batch)
        if sum(calls) >= 30:
            raise KeyboardInterrupt

    models = []
    for inputs in (X, X.toarray()):
        calls.clear()
        with monkeypatch.context() as patch, pytest.warns(UserWarning, match="interrupted by user"):
            patch.setattr(Session, "_call", call)
            patch.setattr("fastbp.kernels.tuner.ThreadTuner.choose", lambda self: (1, 1))
            models.append(new(estimator, alpha=0.0, batch_size=20, max_iter=99, dtype="float64").fit(inputs, y))
        assert sum(calls) == 30
    assert_same_model(*models, X, 1e-11)


# --- beside the estimators ---


@both
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inspection(estimator, dtype):
    X, y = targets(estimator)
    model = new(estimator, dtype=dtype).fit(X, y)
    dense = X.toarray()
    assert inspection.mean_loss(model, X, y) == inspection.mean_loss(model, dense, y)
    (loss, gradient), (dense_loss, dense_gradient) = (
        inspection.loss_and_gradient(model, inputs, y) for inputs in (X, dense)
    )  # fmt: skip
    np.testing.assert_allclose(loss, dense_loss, rtol=1e-6)
    np.testing.assert_array_equal(gradient, dense_gradient)
    for layers in zip(*(inspection.gradient_terms(model, inputs[:9], y[:9]) for inputs in (X, dense)), strict=True):
        assert layers[0].keys() == layers[1].keys()
        for name in layers[0]:
            np.testing.assert_array_equal(layers[0][name], layers[1][name])
    flow, dense_flow = (inspection.gradient_flow(model, inputs, y) for inputs in (X, dense))
    assert repr(flow) == repr(dense_flow)


def test_memory_maps(tmp_path):
    """What joblib's workers get: read-only arrays in files."""
    X, y, _ = samples()
    joblib.dump(X, tmp_path / "X")
    mapped = joblib.load(tmp_path / "X", mmap_mode="r")
    assert not mapped.data.flags.writeable
    assert_same_model(new(BackpropClassifier).fit(mapped, y), new(BackpropClassifier).fit(X, y))
    for form in (unsorted, with_duplicates):
        joblib.dump(form(X), tmp_path / "X")
        mapped = joblib.load(tmp_path / "X", mmap_mode="r")
        model = new(BackpropClassifier, early_stopping=True).fit(mapped, y)
        assert_same_model(model, new(BackpropClassifier, early_stopping=True).fit(form(X), y))


def test_meta_estimators():
    X, y, _ = samples()
    model = new(BackpropClassifier)
    dense = X.toarray()
    np.testing.assert_array_equal(cross_val_score(model, X, y, cv=3), cross_val_score(model, dense, y, cv=3))
    search = GridSearchCV(model, {"alpha": [0.0, 1e-4], "solver": ["adam", "lbfgs"]}, cv=2, error_score="raise")
    assert search.fit(X, y).best_params_ == clone(search).fit(dense, y).best_params_
    several = MultiOutputClassifier(model).fit(X, np.stack([y == 0, y == 1], 1))
    assert several.predict(X).shape == (N, 2)


def test_one_hot_encoder():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({name: rng.choice(list("abcdefgh"), 300) for name in ("first", "second", "third")})
    y = (frame["first"] == frame["second"]) | (frame["third"] == "a")
    make = lambda kind: make_pipeline(  # noqa: E731
        OneHotEncoder(sparse_output=kind, handle_unknown="ignore"), new(BackpropClassifier, max_iter=200, batch_size=20)
    )
    a, b = make(True).fit(frame, y), make(False).fit(frame, y)
    assert sparse.issparse(a[0].transform(frame))
    np.testing.assert_allclose(a.predict_proba(frame), b.predict_proba(frame), rtol=0, atol=1e-5)
    assert a.score(frame, y) > 0.95
    unknown = pd.DataFrame({name: ["z"] for name in frame})  # a row without entries
    np.testing.assert_allclose(a.predict_proba(unknown), b.predict_proba(unknown), rtol=0, atol=1e-5)


TEXTS = [
    "the cat sat on the mat", "a cat and a kitten", "kittens purr on mats", "the cat purrs",
    "stocks fell on monday", "the market and the bank", "banks sold stocks", "a bank fell",
]  # fmt: skip


def test_tfidf_vectorizer():
    y = [0] * 4 + [1] * 4
    for estimator in (BackpropClassifier, BackpropRegressor):
        model = new(estimator, max_iter=200, batch_size="auto", learning_rate_init=0.01, alpha=0.0)
        pipe = make_pipeline(TfidfVectorizer(), model)
        pipe.fit(TEXTS, y)
        assert pipe.score(TEXTS, y) > 0.99
        assert (pipe.predict(["the kitten purrs on the mat", "the bank sold stocks"]) > 0.5).tolist() == [False, True]
        assert np.isfinite(pipe.predict(["", "words that were never seen"])).all()


# --- scikit-learn's own networks ---

SETTINGS = [
    {}, {"alpha": 0.0}, {"alpha": 0.0, "epsilon": 1e-3}, {"early_stopping": True, "max_iter": 20},
    {"alpha": 0.0, "early_stopping": True, "max_iter": 20}, {"activation": "tanh", "hidden_layer_sizes": (7, 5)},
    {"solver": "sgd"}, {"solver": "sgd", "alpha": 0.0}, {"solver": "sgd", "momentum": 0.0},
    {"solver": "sgd", "alpha": 0.0, "nesterovs_momentum": False}, {"solver": "sgd", "learning_rate": "invscaling"},
    {"solver": "sgd", "alpha": 0.0, "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 2, "max_iter": 30},
    {"solver": "lbfgs"}, {"solver": "lbfgs", "alpha": 0.0, "activation": "logistic"},
]  # fmt: skip


@both
@pytest.mark.parametrize("options", SETTINGS)
def test_same_weights_as_scikit_learn(estimator, options):
    X, y = targets(estimator)
    theirs = MLPClassifier if estimator is BackpropClassifier else MLPRegressor
    kwargs = {"hidden_layer_sizes": (9,), "max_iter": 8, "batch_size": 32, "random_state": 0, **options}
    a, b = (kind(**kwargs).fit(X, y) for kind in (estimator, theirs))
    for x, z in zip(arrays_of(a), arrays_of(b), strict=True):
        assert np.abs(x - z).max() <= 1e-6 * np.abs(z).max()
    assert a.n_iter_ == b.n_iter_ and a.t_ == b.t_
    assert getattr(a, "validation_scores_", None) is None or a.validation_scores_ == pytest.approx(b.validation_scores_)
    np.testing.assert_allclose(a.predict(X), b.predict(X), rtol=1e-5, atol=1e-6)
    if hasattr(a, "predict_proba"):
        np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), rtol=1e-5, atol=1e-8)


def test_labels_as_a_sparse_indicator_matrix():
    X, Y = make_multilabel_classification(n_samples=60, n_features=8, n_classes=3, random_state=0)
    options = dict(hidden_layer_sizes=(5,), max_iter=20, random_state=0)
    ours, theirs = BackpropClassifier(**options), MLPClassifier(**options)
    for labels in (sparse.csr_matrix(Y), Y):
        found, expected = (model.fit(X, labels).predict(X) for model in (ours, theirs))
        assert sparse.issparse(found) == sparse.issparse(expected) == sparse.issparse(labels)
        difference = found - expected
        assert not difference.any() if isinstance(difference, np.ndarray) else difference.nnz == 0
        assert ours.score(X, labels) == theirs.score(X, labels)


# --- memory ---

MEMORY = """
import json, tracemalloc, warnings
import numpy as np
from scipy import sparse
import fastbp

warnings.simplefilter("ignore")
N, K = 2000, 100_000
rng = np.random.default_rng(0)
X = sparse.csr_array((rng.random(20 * N), rng.integers(0, K, 20 * N), np.arange(0, 20 * N + 1, 20)), shape=(N, K))
X = X.astype(np.float32)
y = rng.integers(0, 2, N)
few = sparse.csr_array((200, 50), dtype=np.float32), y[:200]
peaks = {}
for name in ("BackpropClassifier", "BackpropRegressor"):
    for options in ({}, {"alpha": 0.0}, {"early_stopping": True}, {"solver": "lbfgs"}):
        options = {"hidden_layer_sizes": (2,), "max_iter": 2, "n_jobs": 1, **options}
        getattr(fastbp, name)(**options).fit(*few).predict(few[0])  # compiling takes memory too
        tracemalloc.start()
        model = getattr(fastbp, name)(**options).fit(X, y)
        if model.solver != "lbfgs" and not model.early_stopping:
            model.partial_fit(X, y)
        model.predict(X), model.score(X, y)
        peaks[f"{name} {options}"] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
print(json.dumps(peaks))
"""


def test_memory_does_not_grow_with_samples_times_features():
    """A dense X would have 800 megabytes of float32. What is needed is some copies of the weights."""
    root = str(Path(fastbp.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout)
    assert len(peaks) == 8
    # Rows of two units are padded to a vector, of 64 bytes at most. scipy's lbfgs has some 25 copies.
    for name, peak in peaks.items():
        copies = 35 if "lbfgs" in name else 9
        assert peak < copies * 100_000 * 64, (name, peak)
