"""BackpropClassifier as scikit-learn's users know their estimators."""

import pickle
import signal
import threading

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelBinarizer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastbp import BackpropClassifier
from fastbp.activations import Logistic
from fastbp.classifier import _fit_binarizer
from fastbp.kernels import threads
from fastbp.kernels.tuner import ThreadTuner

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:330] / 16, y[:330]  # 330 is no multiple of the batch sizes below


CHECKS = parametrize_with_checks(
    [
        BackpropClassifier(),
        # With a lower rate it has not converged when the check of class weights looks.
        BackpropClassifier(hidden_layer_sizes=(), solver="sgd", learning_rate_init=0.01),
        BackpropClassifier((7, 5), "tanh", loss="squared_error", learning_rate_init=0.01),
        BackpropClassifier(activation=["logistic"], dtype="float64", n_jobs=1),
        BackpropClassifier(label_smoothing=0.1, weight_init="he_normal", max_time=100.0),
    ]
).mark


# scikit-learn 1.7 passes a generator on, which pytest deprecates from 9.1 on: a list is good for all versions.
@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)
def test_follows_the_conventions_of_scikit_learn(estimator, check):
    check(estimator)


def assert_same_model(ours, theirs, X, rtol=1e-7):
    for a, b in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=rtol)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=rtol, atol=1e-12)
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.t_ == theirs.t_
    assert ours.out_activation_ == theirs.out_activation_
    assert ours.n_layers_ == theirs.n_layers_
    assert ours.n_outputs_ == theirs.n_outputs_


SOLVERS = {
    "plain": dict(solver="sgd", momentum=0.0, learning_rate_init=0.05),
    "momentum": dict(solver="sgd", momentum=0.8, nesterovs_momentum=False, learning_rate_init=0.02),
    "nesterov": dict(solver="sgd", momentum=0.9, nesterovs_momentum=True, learning_rate_init=0.01),
    "adam": dict(solver="adam", learning_rate_init=0.003),
}


@pytest.mark.parametrize("binary", [False, True], ids=["multiclass", "binary"])
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_same_seed_same_model_as_scikit_learn(digits, solver, activation, binary):
    X, y = digits
    y = y > 4 if binary else y
    options = dict(activation=activation, hidden_layer_sizes=(30, 11), batch_size=64, max_iter=10, random_state=3)
    options |= SOLVERS[solver]
    ours = BackpropClassifier(**options).fit(X, y)
    assert_same_model(ours, MLPClassifier(**options).fit(X, y), X)
    assert ours.coefs_[0].dtype == np.float64


@pytest.mark.parametrize(
    "options",
    [
        dict(shuffle=False),
        dict(hidden_layer_sizes=()),
        dict(hidden_layer_sizes=(), activation="logistic"),
        dict(batch_size=1, max_iter=2),
        dict(batch_size=330),
        dict(alpha=0.5),
        dict(alpha=0.0),
        dict(beta_1=0.5, beta_2=0.9, epsilon=1e-3),
        dict(max_iter=300, tol=0.01, n_iter_no_change=3),  # stops by itself
        dict(solver="sgd", learning_rate="invscaling", learning_rate_init=0.5, power_t=0.3),
        dict(solver="sgd", learning_rate="adaptive", tol=0.05, n_iter_no_change=2, max_iter=60),
        dict(solver="adam", learning_rate="adaptive", tol=0.05, n_iter_no_change=2, max_iter=60),
    ],
    ids=str,
)
def test_same_seed_same_model_with_other_options(digits, options):
    X, y = digits
    options = dict(hidden_layer_sizes=(20,), batch_size=50, max_iter=10, random_state=0) | options
    ours, theirs = BackpropClassifier(**options).fit(X, y), MLPClassifier(**options).fit(X, y)
    assert_same_model(ours, theirs, X)
    if "tol" in options:
        assert ours.n_iter_ < 300


@pytest.mark.parametrize("learning_rate", ["cosine", "one_cycle"])
@pytest.mark.parametrize(("solver", "rate"), [("sgd", 0.2), ("adam", 0.02)])
def test_a_schedule_over_the_steps(digits, solver, rate, learning_rate):
    X, y = digits
    options = dict(hidden_layer_sizes=(20,), solver=solver, batch_size=50, learning_rate_init=rate, random_state=0)
    scheduled = BackpropClassifier(learning_rate=learning_rate, max_iter=20, **options).fit(X, y)
    constant = BackpropClassifier(max_iter=20, **options).fit(X, y)
    assert scheduled.loss_ != constant.loss_
    assert scheduled.score(X, y) > 0.95
    # Single epochs give the same: the schedule continues.
    parts = BackpropClassifier(learning_rate=learning_rate, max_iter=3, **options)
    whole = clone(parts).fit(X, y)
    for _ in range(3):
        parts.partial_fit(X, y, classes=np.arange(10))
    np.testing.assert_array_equal(parts.coefs_[0], whole.coefs_[0])


def test_same_model_with_sample_weights(digits):
    X, y = digits
    weight = np.random.RandomState(0).rand(len(y))
    options = dict(hidden_layer_sizes=(20,), batch_size=50, max_iter=5, random_state=0)
    ours = BackpropClassifier(**options).fit(X, y, sample_weight=weight)
    assert_same_model(ours, MLPClassifier(**options).fit(X, y, sample_weight=weight), X)


def test_a_batch_without_weight_teaches_nothing(digits):
    X, y = digits
    weight = np.ones(len(y))
    weight[50:150] = 0
    options = dict(hidden_layer_sizes=(20,), batch_size=50, max_iter=1, random_state=0, shuffle=False, solver="sgd")
    options |= dict(momentum=0.0)
    with_zeros = BackpropClassifier(**options).fit(X, y, sample_weight=weight)
    without = BackpropClassifier(**options).fit(X[weight > 0], y[weight > 0])
    np.testing.assert_array_equal(with_zeros.coefs_[0], without.coefs_[0])


def test_same_model_with_partial_fit_and_warm_start(digits):
    X, y = digits
    options = dict(hidden_layer_sizes=(20,), batch_size=50, max_iter=3, warm_start=True)
    ours, theirs = BackpropClassifier(**options), MLPClassifier(**options)
    for model in (ours, theirs):
        model.set_params(random_state=np.random.RandomState(0))  # an int would begin anew in each call of theirs
        for part in (slice(0, 100), slice(100, 330), slice(0, 330)):
            model.partial_fit(X[part], y[part], classes=np.arange(10))
        model.fit(X, y).fit(X, y)
        model.partial_fit(X, y)
    assert_same_model(ours, theirs, X)


def test_same_model_with_several_labels():
    X, Y = make_multilabel_classification(n_samples=120, n_classes=4, random_state=0)
    options = dict(hidden_layer_sizes=(20,), batch_size=50, max_iter=10, random_state=0)
    ours, theirs = BackpropClassifier(**options).fit(X, Y), MLPClassifier(**options).fit(X, Y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-7)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


def test_an_epsilon_below_the_numbers_of_the_type(digits):
    X, y = digits
    clf = BackpropClassifier((5,), epsilon=1e-60, max_iter=5, random_state=0).fit(X.astype(np.float32), y)
    assert clf.n_iter_ == 5
    assert np.isfinite(clf.loss_curve_).all()


def test_float32_differs_by_rounding_only(digits):
    X, y = digits
    options = dict(hidden_layer_sizes=(30,), batch_size=64, max_iter=10, random_state=3, activation="tanh")
    ours = BackpropClassifier(**options).fit(X.astype(np.float32), y)
    assert ours.coefs_[0].dtype == ours.predict_proba(X).dtype == np.float32
    theirs = MLPClassifier(**options).fit(X, y)
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "source", "expected"),
    [
        ("auto", np.float32, np.float32),
        ("auto", np.float64, np.float64),
        ("auto", np.int64, np.float32),
        ("auto", np.uint8, np.float32),
        ("auto", np.float16, np.float32),
        ("auto", bool, np.float32),
        ("float32", np.float64, np.float32),
        ("float64", np.float32, np.float64),
    ],
)
def test_dtype(dtype, source, expected, digits):
    X, y = digits
    clf = BackpropClassifier((5,), dtype=dtype, max_iter=2).fit((X * 16).astype(source), y)
    assert clf.coefs_[0].dtype == expected
    assert clf.predict_proba(X).dtype == expected


@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_the_kernels_convert_the_input(digits, kind):
    X, y = digits
    X = (X * 16).astype(kind)
    options = dict(hidden_layer_sizes=(9,), max_iter=3, random_state=0, dtype="float32")
    as_it_is = BackpropClassifier(**options).fit(X, y)
    copied = BackpropClassifier(**options).fit(X.astype(np.float32), y)
    np.testing.assert_array_equal(as_it_is.coefs_[0], copied.coefs_[0])
    np.testing.assert_array_equal(as_it_is.predict_proba(X), copied.predict_proba(X.astype(np.float32)))


def test_batches_split_over_many_calls_give_the_same_bits(digits, monkeypatch):
    X, y = digits
    options = dict(hidden_layer_sizes=(9,), batch_size=7, max_iter=3, random_state=0, n_jobs=1)
    expected = BackpropClassifier(**options).fit(X, y)
    monkeypatch.setattr(ThreadTuner, "choose", lambda self: (1, 3))
    clf = BackpropClassifier(**options).fit(X, y)
    np.testing.assert_array_equal(clf.coefs_[0], expected.coefs_[0])
    assert clf.loss_curve_ == expected.loss_curve_


def test_a_prediction_does_not_depend_on_other_rows(digits):
    X, y = digits
    clf = BackpropClassifier((33, 17), max_iter=5, random_state=0).fit(X, y)
    together = clf.predict_proba(X)
    order = np.random.RandomState(0).permutation(len(X))
    np.testing.assert_array_equal(clf.predict_proba(X[order]), together[order])
    for size in (1, 2, 5, 97, 193):
        parts = [clf.predict_proba(X[i : i + size]) for i in range(0, len(X), size)]
        np.testing.assert_array_equal(np.vstack(parts), together)


@pytest.mark.parametrize("labels", [["no", "yes"], ["a", "b", "c"], [-3, 7], [10, 20, 30], [True, False]])
def test_labels_of_any_kind(labels):
    X, y = load_iris(return_X_y=True)
    keep = y < len(labels)
    X, y = X[keep], np.array(labels)[y[keep]]
    clf = BackpropClassifier((20,), max_iter=200, random_state=0, learning_rate_init=0.01).fit(X, y)
    np.testing.assert_array_equal(clf.classes_, np.unique(y))
    assert clf.predict(X).dtype == y.dtype
    assert clf.score(X, y) > 0.9
    proba = clf.predict_proba(X)
    assert proba.shape == (len(X), len(labels))
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_array_equal(clf.classes_[proba.argmax(axis=1)], clf.predict(X))
    np.testing.assert_allclose(np.exp(clf.predict_log_proba(X)), proba)


@pytest.mark.parametrize("output_activation", ["auto", "tanh", "identity", Logistic(slope=3.0)], ids=str)
def test_squared_error_learns(digits, output_activation):
    X, y = digits
    clf = BackpropClassifier(
        (30,), loss="squared_error", output_activation=output_activation, max_iter=200, random_state=0,
        learning_rate_init=0.003,
    ).fit(X, y)  # fmt: skip
    assert clf.score(X, y) > 0.97
    assert clf.loss_curve_[-1] < clf.loss_curve_[0] / 4
    proba = clf.predict_proba(X)
    assert proba.min() >= 0
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_one_activation_for_each_layer(digits):
    X, y = digits
    mixed = BackpropClassifier((8, 6), ["tanh", Logistic(slope=2.0)], max_iter=5, random_state=0).fit(X, y)
    single = BackpropClassifier((8, 6), "tanh", max_iter=5, random_state=0).fit(X, y)
    assert mixed.loss_ != single.loss_
    same = BackpropClassifier((8, 6), ["tanh", "tanh"], max_iter=5, random_state=0).fit(X, y)
    np.testing.assert_array_equal(same.coefs_[0], single.coefs_[0])


def test_in_pipeline_search_and_cross_validation():
    X, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), BackpropClassifier(max_iter=100, batch_size=20, random_state=0))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.9
    grid = {"backpropclassifier__hidden_layer_sizes": [(3,), (30,)], "backpropclassifier__alpha": [1e-4, 1e-2]}
    search = GridSearchCV(pipeline, grid, cv=3, n_jobs=2).fit(X, y)
    assert search.best_score_ > 0.9


def test_clone_and_pickle(digits):
    X, y = digits
    clf = BackpropClassifier((9,), Logistic(slope=2.0), max_iter=3, random_state=0).fit(X, y)
    copy = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(copy.predict_proba(X), clf.predict_proba(X))
    np.testing.assert_array_equal(copy.partial_fit(X, y).coefs_[0], clf.partial_fit(X, y).coefs_[0])
    again = clone(clf)
    assert again.get_params() == clf.get_params()
    assert not hasattr(again, "coefs_")


def test_feature_names(digits):
    X, y = digits
    frame = pd.DataFrame(X, columns=[f"pixel{i}" for i in range(X.shape[1])])
    clf = BackpropClassifier((5,), max_iter=2).fit(frame, y)
    assert list(clf.feature_names_in_) == list(frame.columns)
    assert clf.n_features_in_ == 64
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        clf.predict(X)
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(frame.rename(columns={"pixel0": "other"}))


def test_edited_weights_change_predictions(digits):
    X, y = digits
    clf = BackpropClassifier((5,), max_iter=2, random_state=0).fit(X, y)
    before = clf.predict_proba(X)
    clf.coefs_[1][:, 3] += 1
    clf.intercepts_ = [b + 0.5 for b in clf.intercepts_]
    hidden = np.maximum(X @ clf.coefs_[0] + clf.intercepts_[0], 0)
    z = hidden @ clf.coefs_[1] + clf.intercepts_[1]
    expected = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(clf.predict_proba(X), expected, rtol=1e-12)
    assert not np.allclose(expected, before)


def test_warnings_as_in_scikit_learn(digits, capsys):
    X, y = digits
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        BackpropClassifier((5,), max_iter=2).fit(X, y)
    with pytest.warns(UserWarning, match="larger than sample size"):
        BackpropClassifier((5,), max_iter=2, batch_size=1000).fit(X, y)
    assert capsys.readouterr().out == ""
    BackpropClassifier((5,), max_iter=40, tol=10.0, n_iter_no_change=2, verbose=True).fit(X, y)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Iteration 1, loss = ")
    assert printed[-1] == ("Training loss did not improve more than tol=10.000000 for 2 consecutive epochs. Stopping.")


@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda clf: clf.coefs_.__setitem__(0, clf.coefs_[0][:10].copy()),
        lambda clf: clf.coefs_.__setitem__(1, np.zeros((3000, 10))),
        lambda clf: clf.intercepts_.__setitem__(0, np.zeros(3)),
        lambda clf: clf.coefs_.__setitem__(0, clf.coefs_[0].astype(int)),
        lambda clf: (clf.coefs_.pop(), clf.intercepts_.pop()),
    ],
)
def test_edited_weights_that_do_not_fit_are_refused(digits, spoil, n):
    X, y = digits
    clf = BackpropClassifier((5,), max_iter=2, random_state=0).fit(X, y)
    clf.predict(X[:n])
    spoil(clf)
    with pytest.raises(ValueError, match=r"coefs_|intercepts_"):
        clf.predict(X[:n])


def test_binary_without_hidden_layers_starts_as_scikit_learn_does(digits):
    X, y = digits
    for activation in ("relu", "logistic"):
        options = dict(hidden_layer_sizes=(), activation=activation, max_iter=3, random_state=0)
        assert_same_model(BackpropClassifier(**options).fit(X, y > 4), MLPClassifier(**options).fit(X, y > 4), X)


def test_other_byte_orders_and_one_class(digits):
    X, y = digits
    clf = BackpropClassifier((5,), max_iter=2, random_state=0).fit(X.astype(">f8"), y)
    np.testing.assert_array_equal(
        clf.coefs_[0], BackpropClassifier((5,), max_iter=2, random_state=0).fit(X, y).coefs_[0]
    )
    one = BackpropClassifier((5,)).partial_fit(X, np.full(len(X), 7), classes=[7])
    np.testing.assert_array_equal(one.predict(X[:3]), [7, 7, 7])


def test_probabilities_belong_to_the_loss_of_the_fit(digits):
    X, y = digits
    clf = BackpropClassifier((5,), loss="squared_error", output_activation="identity", max_iter=2).fit(X, y)
    before = clf.predict_proba(X)
    np.testing.assert_array_equal(clf.set_params(loss="log_loss").predict_proba(X), before)


def test_steps_are_counted_when_interrupted(digits, monkeypatch):
    X, y = digits
    run = threads.run
    calls = []

    def interrupted(*args, **options):
        run(*args, **options)
        task = args[1][3]
        calls.append(task.last_batch - task.first_batch)
        if sum(calls) > 50:
            raise KeyboardInterrupt

    monkeypatch.setattr(threads, "run", interrupted)
    clf = BackpropClassifier((5,), batch_size=10, max_iter=50, random_state=0)
    with pytest.warns(UserWarning, match="interrupted"):
        clf.fit(X, y)
    assert clf._optimizer["steps"] == sum(calls)


def test_ctrl_c_keeps_the_model(digits, ctrl_c_interrupts):
    X, y = digits
    clf = BackpropClassifier((50,), max_iter=10**6, n_iter_no_change=np.inf, random_state=0)
    timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        clf.fit(X, y)
    timer.join()
    assert 0 < clf.n_iter_ < 10**6
    assert len(clf.loss_curve_) == clf.n_iter_
    assert clf.score(X, y) > 0.9


@pytest.mark.parametrize(
    "y",
    [
        np.arange(30), np.arange(30) % 3, np.arange(30) % 2 - 5, np.zeros(30, int), np.arange(30) % 3 == 0,
        np.array(list("cab") * 10),
        np.array(list("ab") * 15, object), (np.arange(30) % 3).astype(float), np.arange(30, dtype=np.uint8) % 5 + 250,
        np.array(["é", "z", "a", "ß"] * 9)[:30],
    ],
    ids=lambda y: f"{y.dtype}-{len(set(y))}",
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The number of unique classes")  # of scikit-learn before 1.9
def test_labels_are_encoded_as_by_scikit_learn(y):
    ours, Y = _fit_binarizer(y)
    theirs = LabelBinarizer()
    np.testing.assert_array_equal(Y, theirs.fit_transform(y))
    assert ours.classes_.dtype == theirs.classes_.dtype
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    assert {**vars(ours), "classes_": 0} == {**vars(theirs), "classes_": 0}
    np.testing.assert_array_equal(ours.transform(y[::-1]), theirs.transform(y[::-1]))
    np.testing.assert_array_equal(ours.inverse_transform(Y.astype(int)), y)
