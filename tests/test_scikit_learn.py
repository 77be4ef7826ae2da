"""The same model as scikit-learn's own MLP, for every parameter that both have."""

import inspect
import os
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import sklearn
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris, make_multilabel_classification
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils.fixes import parse_version

import fastbp
from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.codegen.target import lanes
from fastbp.codegen.tiles import NV
from fastbp.kernels.network import make_network
from fastbp.kernels.online import is_small

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore::UserWarning")

# scikit-learn 1.7 knows no sample weights with early stopping and names of classes, and other things that 1.9 does.
IS_CURRENT = parse_version(sklearn.__version__) >= parse_version("1.9")


def _digits():
    X, y = load_digits(return_X_y=True)
    return X[:150] / 16, y[:150]


def _diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X[:150] * 20, (y[:150] - y.mean()) / y.std()


def _multilabel():
    return make_multilabel_classification(n_samples=120, n_features=12, n_classes=4, random_state=0)


PROBLEMS = {
    "binary": lambda: (_digits()[0], _digits()[1] > 4),
    "multiclass": _digits,
    "multilabel": _multilabel,
    "squared_error": _diabetes,
    "squared_error, outputs": lambda: (_diabetes()[0], np.stack([_diabetes()[1], _diabetes()[0][:, 2]], axis=1)),
    "poisson": lambda: (_diabetes()[0], np.exp(_diabetes()[1])),
    "poisson, outputs": lambda: (_diabetes()[0], np.exp(np.stack([_diabetes()[1], _diabetes()[0][:, 2]], axis=1))),
}
SOLVERS = {
    "plain": dict(solver="sgd", momentum=0.0, learning_rate_init=0.05),
    "momentum": dict(solver="sgd", momentum=0.8, nesterovs_momentum=False, learning_rate_init=0.02),
    "nesterov": dict(solver="sgd", learning_rate_init=0.01),
    "invscaling": dict(solver="sgd", learning_rate="invscaling", learning_rate_init=0.02, power_t=0.3),
    "adaptive": dict(solver="sgd", learning_rate="adaptive", learning_rate_init=0.02, tol=0.02, n_iter_no_change=2),
    "adam": dict(solver="adam", learning_rate_init=0.005),
    "lbfgs": dict(solver="lbfgs"),
}
ACTIVATIONS = ["identity", "logistic", "tanh", "relu"]


def pair(problem, **options):
    """Both estimators, not fitted, for a problem."""
    if problem in ("binary", "multiclass", "multilabel"):
        return BackpropClassifier(**options), MLPClassifier(**options)
    loss = problem.split(",")[0]
    return BackpropRegressor(loss, **options), MLPRegressor(loss, **options)


def difference(ours, theirs):
    """The largest difference of weights, relative to the largest weight of the array."""
    arrays = zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True)
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in arrays)


def assert_same(ours, theirs, X, rtol=1e-6):
    assert difference(ours, theirs) < rtol
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(ours, name) == getattr(theirs, name), name
    np.testing.assert_allclose(ours.loss_, theirs.loss_, rtol=rtol)
    if ours.solver != "lbfgs":
        np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=rtol)
        np.testing.assert_allclose(
            np.array(ours.best_loss_, float), np.array(theirs.best_loss_, float), rtol=rtol
        )  # fmt: skip
        for name in ("validation_scores_", "best_validation_score_"):
            mine, other = getattr(ours, name), getattr(theirs, name)
            assert (mine is None) == (other is None), name
            if other is not None:
                np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-9)
    predict = "predict_proba" if hasattr(theirs, "predict_proba") else "predict"
    mine, other = getattr(ours, predict)(X), getattr(theirs, predict)(X)
    assert mine.shape == other.shape and mine.dtype == other.dtype
    np.testing.assert_allclose(mine, other, rtol=10 * rtol, atol=1e-9 if rtol < 1e-5 else 1e-4)


def _cases():
    """Every pair of problem and solver, with activation, early stopping and sparse input in turn."""
    for number, (problem, solver) in enumerate(product(PROBLEMS, SOLVERS)):
        for shift in range(2):
            turn = number + shift
            yield problem, solver, ACTIVATIONS[(number // 7 + turn) % 4], turn % 2 == 0, turn % 3 == 0


@pytest.mark.parametrize(("problem", "solver", "activation", "early", "sparse"), list(_cases()))
def test_the_same_model(problem, solver, activation, early, sparse):
    X, y = PROBLEMS[problem]()
    X = csr_array(X) if sparse else X
    options = dict(hidden_layer_sizes=(13,), activation=activation, max_iter=12, batch_size=40, random_state=1)
    ours, theirs = pair(problem, early_stopping=early, **(options | SOLVERS[solver]))
    assert_same(ours.fit(X, y), theirs.fit(X, y), X, 1e-3 if solver == "lbfgs" else 1e-6)
    if solver == "lbfgs":
        assert len(ours.loss_curve_) == ours.n_iter_ and ours.lr_curve_ is None
    else:
        assert len(ours.lr_curve_) == len(ours.loss_curve_)


OPTIONS = {
    "no shuffling": dict(shuffle=False),
    "no hidden layer": dict(hidden_layer_sizes=()),
    "deep": dict(hidden_layer_sizes=(9, 8, 7), activation="tanh"),
    "one sample": dict(batch_size=1, max_iter=2),
    "all samples": dict(batch_size=150),
    "large alpha": dict(alpha=1.0),
    "no alpha": dict(alpha=0.0),
    "betas": dict(beta_1=0.5, beta_2=0.9, epsilon=1e-3),
    "stops by itself": dict(tol=0.05, n_iter_no_change=2, max_iter=200),
    "stops early": dict(tol=0.05, n_iter_no_change=2, max_iter=200, early_stopping=True, validation_fraction=0.3),
    "adaptive": dict(solver="sgd", learning_rate="adaptive", tol=0.1, n_iter_no_change=1, max_iter=200),
    "adaptive, early": dict(
        solver="sgd", learning_rate="adaptive", tol=0.1, n_iter_no_change=1, max_iter=200, early_stopping=True
    ),
    "lbfgs, few evaluations": dict(solver="lbfgs", max_fun=7),
    "lbfgs, large tolerance": dict(solver="lbfgs", tol=0.5),
}


@pytest.mark.parametrize(
    "problem", ["binary", "multiclass", "multilabel", "squared_error", "squared_error, outputs", "poisson, outputs"]
)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_model_with_other_options(name, problem):
    X, y = PROBLEMS[problem]()
    options = dict(hidden_layer_sizes=(10,), max_iter=6, batch_size=32, random_state=2) | OPTIONS[name]
    if problem == "poisson, outputs":
        options["alpha"] = options.get("alpha", 0.1)
    ours, theirs = pair(problem, **options)
    with np.errstate(all="ignore"):
        assert_same(ours.fit(X, y), theirs.fit(X, y), X, 1e-3 if ours.solver == "lbfgs" else 1e-6)


@pytest.mark.parametrize("solver", ["plain", "nesterov", "adam"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_same_model_where_single_samples_have_a_kernel_of_their_own(problem, solver):
    X, y = PROBLEMS[problem]()
    n = min(6, NV * lanes(8))
    X, y = X[:, 2 : n + 2], y % 3 if problem == "multiclass" else y
    options = dict(hidden_layer_sizes=(n,), batch_size=1, max_iter=3, random_state=2) | SOLVERS[solver]
    ours, theirs = pair(problem, **(options | dict(learning_rate_init=0.003)))
    assert_same(ours.fit(X, y), theirs.fit(X, y), X)
    assert is_small(make_network([n, n, ours.n_outputs_], ours._activations, np.float64, 1))


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("problem", ["binary", "multiclass", "multilabel", "squared_error, outputs", "poisson"])
def test_the_same_model_with_sample_weights(problem, negative, early):
    X, y = PROBLEMS[problem]()
    weight = np.random.RandomState(0).rand(len(X)) - (0.05 if negative else 0)
    for solver in ("adam", "lbfgs"):
        options = dict(hidden_layer_sizes=(10,), solver=solver, max_iter=6, random_state=2, early_stopping=early)
        ours, theirs = pair(problem, **options)
        ours.fit(X, y, sample_weight=weight), theirs.fit(X, y, sample_weight=weight)
        assert_same(ours, theirs, X, 1e-3 if solver == "lbfgs" else 1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("problem", ["multiclass", "squared_error"])
def test_warm_start(problem, solver):
    X, y = PROBLEMS[problem]()
    options = dict(hidden_layer_sizes=(10,), max_iter=4, random_state=2, warm_start=True) | SOLVERS[solver]
    ours, theirs = pair(problem, **options)
    for n_iter in (4, 3, 5):
        ours.set_params(max_iter=n_iter).fit(X, y), theirs.set_params(max_iter=n_iter).fit(X, y)
        assert_same(ours, theirs, X, 1e-3 if solver == "lbfgs" else 1e-6)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "lbfgs"])
@pytest.mark.parametrize("problem", ["multiclass", "multilabel", "squared_error", "poisson, outputs"])
def test_partial_fit(problem, solver):
    """Parts of different sizes, with a generator that goes on: scikit-learn begins the order of samples anew."""
    X, y = PROBLEMS[problem]()
    ours, theirs = pair(problem, hidden_layer_sizes=(10,), **SOLVERS[solver])
    for model in (ours, theirs):
        model.set_params(random_state=np.random.RandomState(2))
    is_classifier = problem in ("multiclass", "multilabel")
    classes = {"classes": np.unique(y) if problem == "multiclass" else np.arange(4)} if is_classifier else {}
    for part in (slice(0, 50), slice(50, 110), slice(0, 40), slice(100, None)):
        ours.partial_fit(X[part], y[part], **classes), theirs.partial_fit(X[part], y[part], **classes)
    assert_same(ours, theirs, X)


@pytest.mark.parametrize("solver", ["lbfgs", "adam"])
def test_partial_fit_is_there_for_stochastic_solvers_only(solver):
    for estimator in (BackpropClassifier(solver=solver), BackpropRegressor(solver=solver)):
        assert hasattr(estimator, "partial_fit") == (solver == "adam")
    with pytest.raises(AttributeError, match="partial_fit"):
        BackpropClassifier(solver="lbfgs").partial_fit([[0.0]], [0])


@pytest.mark.parametrize("labels", [["no", "yes", "maybe"], [True, False], [3, -1, 7], [1.0, 2.0]], ids=str)
def test_labels_of_any_kind(labels):
    X, y = load_iris(return_X_y=True)
    X, y = X[y < len(labels)], y[y < len(labels)]
    for kind in (None, object) if isinstance(labels[0], str) else (None,):
        names = np.array(labels, dtype=kind)[y]
        options = dict(early_stopping=IS_CURRENT, max_iter=20, random_state=0)
        ours, theirs = BackpropClassifier(**options).fit(X, names), MLPClassifier(**options).fit(X, names)
        assert_same(ours, theirs, X)
        np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
        assert ours.predict(X).dtype == theirs.predict(X).dtype
        np.testing.assert_array_equal(ours.classes_, theirs.classes_)


def test_a_single_class():
    X = np.random.RandomState(0).rand(20, 3)
    for early in (False, True):
        options = dict(hidden_layer_sizes=(4,), max_iter=5, random_state=0, early_stopping=early)
        ours, theirs = (cls(**options).fit(X, np.full(20, 7)) for cls in (BackpropClassifier, MLPClassifier))
        assert_same(ours, theirs, X)
        np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


def _messages(estimator, X, y):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator.fit(X, y)
    return [(w.category, str(w.message)) for w in caught if w.category is not RuntimeWarning]


@pytest.mark.parametrize(
    "options",
    [
        dict(max_iter=3),
        dict(max_iter=3, batch_size=1000),
        dict(max_iter=3, early_stopping=True),
        dict(solver="lbfgs", max_iter=3),
        dict(solver="lbfgs", max_fun=4),
        dict(tol=10.0, n_iter_no_change=2),
        dict(tol=10.0, n_iter_no_change=2, early_stopping=True),
        dict(solver="sgd", learning_rate="adaptive", tol=10.0, n_iter_no_change=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("problem", ["multiclass", "squared_error"])
def test_the_same_warnings_and_lines(problem, options, capsys):
    X, y = PROBLEMS[problem]()
    said = []
    for estimator in pair(problem, hidden_layer_sizes=(5,), random_state=0, verbose=True, **options):
        messages = _messages(estimator, X, y)
        lines = capsys.readouterr().out.splitlines()
        # For lbfgs scikit-learn leaves the output to scipy, whose newer versions print nothing.
        said.append((messages, [] if estimator.solver == "lbfgs" else lines))
    assert said[0] == said[1]
    assert said[0][0] or "tol" in options
    assert said[0][1] or options.get("solver") == "lbfgs"


def test_lbfgs_is_verbose(capsys):
    X, y = PROBLEMS["multiclass"]()
    clf = BackpropClassifier((5,), solver="lbfgs", max_iter=3, verbose=True, random_state=0).fit(X, y)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Iteration")]
    assert lines == [f"Iteration {i}, loss = {loss:.8f}" for i, loss in enumerate(clf.loss_curve_, 1)]


ERRORS = [
    (dict(early_stopping=True), "too small", 5),
    (dict(early_stopping=True, validation_fraction=0.0), "test_size", 50),
    (dict(hidden_layer_sizes=(3, 0)), "hidden_layer_sizes must be > 0", 50),
]


@pytest.mark.parametrize(("options", "message", "n"), ERRORS)
def test_the_same_errors(options, message, n):
    X, y = PROBLEMS["squared_error"]()
    texts = []
    for estimator in pair("squared_error", **options):
        with pytest.raises(ValueError, match=message) as error:
            estimator.fit(X[:n], y[:n])
        texts.append(str(error.value))
    assert texts[0] == texts[1]


def test_early_stopping_keeps_the_best_weights():
    X, y = PROBLEMS["squared_error"]()
    reg = BackpropRegressor(early_stopping=True, max_iter=60, learning_rate_init=0.05, random_state=0).fit(X, y)
    assert reg.best_validation_score_ == max(reg.validation_scores_) > reg.validation_scores_[-1]
    # A warm start whose scores are all lower keeps them.
    before, best = [coef.copy() for coef in reg.coefs_], reg.best_validation_score_
    reg.set_params(warm_start=True, max_iter=2, learning_rate_init=0.5).fit(X, y)
    assert max(reg.validation_scores_[-2:]) < best == reg.best_validation_score_
    for a, b in zip(reg.coefs_, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_parameters_of_scikit_learn_are_taken():
    for ours, theirs in ((BackpropClassifier, MLPClassifier), (BackpropRegressor, MLPRegressor)):
        names = list(theirs().get_params(deep=False))
        estimator = ours(**theirs().get_params())
        assert {name: estimator.get_params()[name] for name in names} == theirs().get_params()
        # And those that may be given by position in the same order.
        positional = [
            [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
            for cls in (ours, theirs)
        ]
        assert positional[0] == positional[1]
        assert isinstance(estimator.fit(*load_iris(return_X_y=True)), ours)


@pytest.mark.parametrize("problem", ["binary", "multiclass", "multilabel", "squared_error, outputs", "poisson"])
def test_weights_can_be_copied_both_ways(problem):
    X, y = PROBLEMS[problem]()
    ours, theirs = pair(problem, hidden_layer_sizes=(6,), max_iter=5, random_state=0)
    ours.fit(X, y), theirs.set_params(random_state=1).fit(X, y)
    predict = "predict_proba" if hasattr(theirs, "predict_proba") else "predict"
    for source, target in ((ours, clone(theirs)), (theirs, clone(ours))):
        target.fit(X[:30], y[:30])
        target.coefs_, target.intercepts_ = list(source.coefs_), list(source.intercepts_)
        expected = getattr(source, predict)(X)
        np.testing.assert_allclose(getattr(target, predict)(X), expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(target.predict(X).astype(float), source.predict(X).astype(float), rtol=1e-9)


PRIVATE = ["_optimizer", "_no_improvement_count", "_loss_grad_lbfgs", "_coef_grads"]
# Tests of scikit-learn that read private attributes: they are part of no interface.
READ_PRIVATE = [
    "test_fit", "test_gradient", "test_learning_rate_warmstart", "test_adaptive_learning_rate",
    "test_n_iter_no_change", "test_n_iter_no_change_inf",
]  # fmt: skip
RUN = """
import sys
import pytest
import sklearn.neural_network
import fastbp

sklearn.neural_network.MLPClassifier = fastbp.BackpropClassifier
sklearn.neural_network.MLPRegressor = fastbp.BackpropRegressor
names = "sklearn.neural_network.tests.test_mlp"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--pyargs", names, *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_scikit_learns_own_tests_pass(tmp_path):
    folder = Path(sklearn.__file__).parent / "neural_network" / "tests"
    if not IS_CURRENT or not (folder / "test_mlp.py").exists():
        pytest.skip("needs the tests of scikit-learn 1.9")
    source = (folder / "test_mlp.py").read_text(encoding="utf-8")
    tests = {part.split("(")[0]: part for part in source.split("\ndef ")[1:]}
    for name in READ_PRIVATE:  # so that none is left out without a reason
        assert any(private in tests[name] for private in PRIVATE), name
    deselected = " or ".join(f"({name} and not {name}_)" for name in READ_PRIVATE)
    command = [sys.executable, "-c", RUN, "-k", f"not ({deselected})", f"--rootdir={tmp_path}", "-c", os.devnull]
    env = {**os.environ, "PYTHONPATH": str(Path(fastbp.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
