"""Compiled predictors: the bits of `predict_proba` and `predict`, from compiled code, C and many threads."""

import copy
import ctypes
import gc
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numba import njit, prange, typeof
from numba.core.errors import NumbaWarning, TypingError
from scipy.sparse import csr_array
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError

import fastbp
from fastbp import BackpropClassifier, BackpropRegressor, compiled
from fastbp.activations import ACTIVATIONS, Logistic

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
DTYPES = ["float32", "float64"]


@njit
def call(predictor, x):
    return predictor(x)


@njit
def call_with_out(predictor, x, out):
    predictor(x, out)


@njit
def row_by_row(predictor, X, out):
    for i in range(len(X)):
        predictor(X[i], out[i])


@njit(parallel=True)
def in_parallel(predictor, X, out):
    for i in prange(len(X)):
        predictor(X[i], out[i])


def call_from_c(predictor, X):
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)(predictor.address)
    out = np.full((len(X), predictor.n_outputs), 7, predictor.dtype)
    function(X.ctypes.data, len(X), out.ctypes.data)
    return out


def samples(n, n_features, dtype="float64"):
    return np.random.RandomState(0).randn(n, n_features).astype(dtype)


def expected_of(model, X):
    return model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)


def check(model, X, predictor=None, from_c=True, parallel=False):
    """Compare ways of calling with the prediction, bit for bit. A C function is compiled for each predictor."""
    predictor, expected = predictor or model.compiled_predictor(), expected_of(model, X)
    assert (predictor.n_features, predictor.dtype) == (X.shape[1], expected.dtype)
    is_vector = expected.ndim == 1
    assert predictor.n_outputs == (1 if is_vector else expected.shape[1])
    for found in (predictor(X), call(predictor, X)):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    out = np.full_like(expected, 7)
    call_with_out(predictor, X, out)
    np.testing.assert_array_equal(out, expected)
    assert predictor(X, out) is out
    for i in {0, len(X) - 1}:
        for found in (predictor(X[i]), call(predictor, X[i])):
            assert np.ndim(found) == (not is_vector)
            np.testing.assert_array_equal(found, expected[i])
    for function in (row_by_row, in_parallel) if parallel else (row_by_row,):
        out = np.full((len(X), predictor.n_outputs), 7, expected.dtype)
        function(predictor, X, out)
        np.testing.assert_array_equal(out, expected.reshape(out.shape))
    if from_c:
        found = call_from_c(predictor, X.astype(predictor.dtype))
        np.testing.assert_array_equal(found, expected.reshape(out.shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_as_predict_proba(dtype):
    y = np.arange(300) % 3
    clf = BackpropClassifier((31, 9), random_state=0, max_iter=2).fit(samples(300, 13, dtype), y)
    predictor = clf.compiled_predictor()
    for n in (1, 2, 7, 96, 97, 300):
        check(clf, samples(n, 13, dtype), predictor, parallel=dtype == "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("units", [(), (1,), (1100, 3), (700, 700)], ids=str)
def test_any_shape(units, dtype):
    # The last is beyond the L2 cache: one row reads the weights as several do.
    clf = BackpropClassifier(units, dtype=dtype, random_state=0).initialize(5, range(17))
    check(clf, samples(40, 5, dtype))


@pytest.mark.parametrize("activation", [*ACTIVATIONS.values(), Logistic(slope=2.0)], ids=repr)
def test_every_activation(activation):
    clf = BackpropClassifier((10, 6), activation, dtype="float64", random_state=0).initialize(4, range(3))
    check(clf, samples(50, 4), from_c=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("output_activation", ["auto", "identity", "relu"])
@pytest.mark.parametrize("n_classes", [1, 2, 3, 12])
def test_outputs_that_are_no_probabilities(n_classes, output_activation, dtype):
    clf = BackpropClassifier(
        (8,), loss="squared_error", output_activation=output_activation, dtype=dtype, random_state=3
    ).initialize(5, range(n_classes))  # fmt: skip
    clf.coefs_[-1] *= 3
    clf.intercepts_[-1] -= 0.5
    X = samples(400, 5, dtype)
    if output_activation == "relu" and n_classes > 2:
        assert (np.ptp(clf.predict_proba(X), axis=1) == 0).any()  # all outputs are 0
    check(clf, X, from_c=output_activation == "auto")


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_multilabel(loss):
    X = samples(60, 4)
    check(BackpropClassifier((8,), loss=loss, random_state=0, max_iter=3).fit(X, X[:, :3] > 0), X)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_targets", [1, 3])
@pytest.mark.parametrize("loss", ["squared_error", "poisson", "quantile"])
def test_regressors(loss, n_targets, dtype):
    X = samples(100, 6, dtype)
    Y = np.exp(X[:, :n_targets]).astype(dtype)
    Y = Y.ravel() if n_targets == 1 else Y
    check(BackpropRegressor(loss, (9,), random_state=0, max_iter=3).fit(X, Y), X)
    if loss == "quantile" and n_targets == 1:
        check(BackpropRegressor(loss, (9,), quantile=[0.1, 0.9], random_state=0, max_iter=3).fit(X, Y), X)


def test_a_network_that_was_trained_with_sparse_input():
    X = np.where(samples(100, 50) > 1, samples(100, 50), 0)
    clf = BackpropClassifier((8,), random_state=0, max_iter=3).fit(csr_array(X), X[:, 0] > 0)
    check(clf, X)
    np.testing.assert_array_equal(clf.compiled_predictor()(X), clf.predict_proba(csr_array(X)))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_input_of_other_types_and_layouts(dtype):
    clf = BackpropClassifier((8,), dtype=dtype, random_state=0).initialize(6, range(3))
    predictor = clf.compiled_predictor()
    X = (samples(40, 12) * 3).round()
    parts = [X[:, :6].astype(kind) for kind in ("float32", "float64", "int8", "bool")]
    parts += [X[::2, 1:7], X[::-1, ::2], np.asfortranarray(X[:, :6]), X[::2, 1:7].astype(dtype)]
    for part in parts:
        expected = clf.predict_proba(part)
        np.testing.assert_array_equal(predictor(part), expected)
        np.testing.assert_array_equal(call(predictor, part), expected)
        np.testing.assert_array_equal(call(predictor, part[0]), expected[0])
    frozen = X[:, :6].astype(dtype)
    frozen.flags.writeable = False
    np.testing.assert_array_equal(call(predictor, frozen), predictor(frozen))
    np.testing.assert_array_equal(predictor(frozen), clf.predict_proba(frozen))
    np.testing.assert_array_equal(predictor(X[:3, :6].tolist()), clf.predict_proba(X[:3, :6]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_not_finite(dtype):
    clf = BackpropClassifier((8,), dtype=dtype, random_state=0).initialize(4, range(3))
    predictor = clf.compiled_predictor()
    X = samples(200, 4, dtype)
    expected = clf.predict_proba(X)
    X[3, 0], X[100, 2], X[101, 3], X[199] = np.nan, np.inf, -np.inf, np.nan
    bad = [3, 100, 101, 199]
    expected[bad] = np.nan
    for found in (predictor(X), call(predictor, X), call_from_c(predictor, X)):
        np.testing.assert_array_equal(found, expected)
    for i in range(98, 103):
        np.testing.assert_array_equal(call(predictor, X[i]), expected[i])


def test_no_rows():
    clf = BackpropClassifier((8,), random_state=0).initialize(4, range(3))
    predictor, X = clf.compiled_predictor(), np.zeros((0, 4), np.float32)
    assert predictor(X).shape == call(predictor, X).shape == call_from_c(predictor, X).shape == (0, 3)


def test_it_is_a_snapshot_and_keeps_its_weights():
    X, y = load_iris(return_X_y=True)
    clf = BackpropClassifier(random_state=0, max_iter=5).fit(X, y)
    predictor, expected = clf.compiled_predictor(), clf.predict_proba(X)
    clf.coefs_[0][...] = 0
    assert (clf.predict_proba(X) != expected).any()
    clf.fit(X, y == 0)
    del clf
    gc.collect()
    filler = [np.full(n, np.nan) for n in range(1, 500)]  # which takes the memory that was given back
    for found in (predictor(X), call(predictor, X), call_from_c(predictor, X)):
        np.testing.assert_array_equal(found, expected)
    assert len(filler) == 499


def make_closure(predictor):
    @njit
    def function(X):
        return predictor(X)

    return function


def test_as_a_constant_it_lives_as_long_as_the_code():
    X, y = load_iris(return_X_y=True)
    clf = BackpropClassifier(random_state=0, max_iter=5).fit(X, y)
    function = make_closure(clf.compiled_predictor())
    expected = clf.predict_proba(X)
    np.testing.assert_array_equal(function(X), expected)
    del clf
    function.py_func.__closure__[0].cell_contents = None
    gc.collect()
    filler = [np.full(n, np.nan) for n in range(1, 500)]
    np.testing.assert_array_equal(function(X), expected)
    assert len(filler) == 499


@pytest.mark.parametrize("parallel", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_as_a_constant(parallel):
    X, y = load_iris(return_X_y=True)
    clf = BackpropClassifier(random_state=0, max_iter=5).fit(X, y)
    predictor = clf.compiled_predictor()

    @njit(parallel=parallel)
    def function(X):
        out = np.empty((len(X), 3))
        for i in prange(len(X)):
            out[i] = predictor(X[i])
        return out

    np.testing.assert_array_equal(function(X), clf.predict_proba(X))


def test_one_compilation_for_all_networks_of_a_type():
    @njit
    def function(predictor, x):
        return predictor(x).argmax()

    for dtype in DTYPES:
        for units in ((3,), (4, 5)):
            clf = BackpropClassifier(units, dtype=dtype, random_state=0).initialize(4, range(3))
            x = samples(1, 4, dtype)
            assert function(clf.compiled_predictor(), x[0]) == clf.predict(x)[0]
    assert len(function.signatures) == 2


def test_many_threads_at_once():
    X = samples(500, 8)
    models = [BackpropClassifier((20,), random_state=i, dtype="float64").initialize(8, range(3)) for i in range(4)]
    pairs = [(model.compiled_predictor(), model.predict_proba(X)) for model in models]

    @njit(nogil=True)
    def work(predictor, X, expected, n):
        n_wrong = 0
        for _ in range(n):
            n_wrong += (predictor(X) != expected).any()
            for i in range(0, len(X), 50):
                n_wrong += (predictor(X[i]) != expected[i]).any()
        return n_wrong

    work(*pairs[0][:1], X, pairs[0][1], 1)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(work, predictor, X, expected, 100) for predictor, expected in pairs * 4]
        assert [future.result() for future in futures] == [0] * 16


SCRIPT = """
import sys
import numpy as np
from numba import njit
from fastbp import BackpropClassifier

clf = BackpropClassifier((5,), random_state=int(sys.argv[1]), dtype="float64").initialize(3, [0, 1, 2])
predictor = clf.compiled_predictor()
x = np.arange(3.0)

@njit(cache=True)
def argument(predictor, x):
    return predictor(x)

@njit(cache=True)
def constant(x):
    return predictor(x)

assert (argument(predictor, x) == clf.predict_proba(x[None])[0]).all()
assert (constant(x) == clf.predict_proba(x[None])[0]).all()
print(sum(argument.stats.cache_hits.values()), sum(constant.stats.cache_hits.values()))
"""


def test_functions_that_numba_keeps_on_disk(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    # The package's own code is not compiled again: only the cache of the script is new.
    env = {**os.environ, "PYTHONPATH": str(Path(fastbp.__file__).parents[1])}
    said = []
    for seed in ("1", "2"):  # another network, at other addresses
        command = [sys.executable, "script.py", seed]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        said.append((done.stdout, 'Cannot cache compiled function "constant"' in done.stderr))
        assert 'Cannot cache compiled function "argument"' not in done.stderr
    assert said == [("0 0\n", True), ("1 0\n", True)]


def test_machine_code_of_another_version_is_not_used(monkeypatch):
    predictor = BackpropClassifier((8,), random_state=0).initialize(4, range(3)).compiled_predictor()
    kind = typeof(predictor)
    assert typeof(predictor) == kind
    monkeypatch.setattr(compiled, "source_stamp", lambda: "that of another version")
    assert typeof(predictor) != kind


def test_what_is_refused():
    clf = BackpropClassifier((8,), dtype="float64", random_state=0)
    with pytest.raises(NotFittedError):
        clf.compiled_predictor()
    predictor = clf.initialize(4, range(3)).compiled_predictor()
    X = np.zeros((5, 4))
    for x in (np.zeros(3), np.zeros((5, 3)), np.zeros((4, 5)), np.zeros(0), np.zeros((0, 3))):
        with pytest.raises(ValueError, match=r"x must have the shape \(4,\) or \(n_samples, 4\), got"):
            predictor(x)
        with pytest.raises(ValueError, match="x must have as many features"):
            call(predictor, x)
    for x, out in (
        (X, np.zeros((4, 3))), (X, np.zeros((5, 4))), (X, np.zeros((3, 5))), (X, np.zeros((15, 1))),
        (X[0], np.zeros(4)), (X[0], np.zeros(0)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="out must be a C-ordered array of float64"):
            predictor(x, out)
        with pytest.raises(ValueError, match="out must have a row for each sample"):
            call_with_out(predictor, x, out)
    frozen = np.zeros((5, 3))
    frozen.flags.writeable = False
    for out in (np.zeros((5, 3), np.float32), np.zeros((3, 5)).T, np.zeros(15), frozen):
        with pytest.raises(ValueError, match="out must be a C-ordered array of float64"):
            predictor(X, out)
        with pytest.raises(TypingError, match="out must be a C-ordered array of float64"):
            call_with_out(predictor, X, out)
    for x in (1.0, (1.0, 2.0), np.zeros((2, 2, 4)), np.zeros(4, complex)):
        with pytest.raises(TypingError, match="x must be an array of"):
            call(predictor, x)
    for function in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"Pickle or copy the estimator"):
            function(predictor)
    assert repr(predictor) == "CompiledPredictor(n_features=4, n_outputs=3, dtype=float64)"


def test_numba_says_nothing_else():
    clf = BackpropClassifier((8,), dtype="float64", random_state=0).initialize(4, range(3))
    predictor = clf.compiled_predictor()
    with warnings.catch_warnings():
        warnings.simplefilter("error", NumbaWarning)
        call(predictor, np.zeros(4))
        make_closure(predictor)(np.zeros((2, 4)))


def test_c_functions_of_predictors_that_are_no_more_are_used_again():
    X, y = samples(20, 4), np.arange(20) % 3
    networks = [BackpropClassifier((5,), max_iter=1, random_state=seed).fit(X, y) for seed in range(3)]
    predictors = [network.compiled_predictor() for network in networks[:2]]
    addresses = {predictor.address for predictor in predictors}
    assert len(addresses) == 2
    predictors[1] = networks[2].compiled_predictor()
    assert {predictor.address for predictor in predictors} == addresses
    for network, predictor in zip(networks[::2], predictors, strict=True):
        np.testing.assert_array_equal(call_from_c(predictor, X), network.predict_proba(X))
