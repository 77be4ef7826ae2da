"""Faults of edited, refitted and oddly weighted estimators."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.sparse import csr_matrix, issparse

from fastbp import estimator, training
from fastbp.activations import LeakyRelu
from fastbp.classifier import BackpropClassifier
from fastbp.kernels.session import Session
from fastbp.prediction import Predictor
from fastbp.validation import Validation

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.RandomState(0)
X = RNG.randn(60, 10)
Y = (X[:, 0] > 0).astype(int)


@pytest.mark.parametrize("n_rows", [1, 60])
@pytest.mark.parametrize("kind", [np.asarray, csr_matrix])
def test_features_that_the_network_lacks_are_refused(n_rows, kind):
    """As they reach prediction where `n_features_in_` was edited, or another thread has begun to fit."""
    clf = BackpropClassifier(hidden_layer_sizes=(3,), max_iter=1).fit(X, Y)
    clf.predict(X)
    clf.n_features_in_ = 5000
    with pytest.raises(ValueError, match="X has 5000 features"):
        clf.predict(kind(np.zeros((n_rows, 5000))))


def test_a_number_of_outputs_that_the_network_lacks_is_refused():
    clf = BackpropClassifier(hidden_layer_sizes=(3,), max_iter=1).fit(X, np.arange(60) % 3)
    clf.n_outputs_ = 1
    with pytest.raises(ValueError, match="n_outputs_ is 1, but coefs_ and intercepts_ are those of 3 outputs"):
        clf.predict_proba(X)


def test_best_score_is_one_of_the_scores():
    clf = BackpropClassifier(max_iter=20, early_stopping=True, warm_start=True, random_state=0).fit(X, Y)
    clf.set_params(early_stopping=False).fit(X, Y)
    clf.set_params(early_stopping=True, max_iter=2).fit(X, 1 - Y)
    assert clf.best_validation_score_ == max(clf.validation_scores_)


def in_another_thread(function, *args):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


OTHER_X, OTHER_Y = np.hstack([X, X]), np.array(["a", "b", "c"])[Y + (X[:, 1] > 0)]


@pytest.mark.parametrize("method", ["fit", "partial_fit", "initialize"])
def test_a_thread_predicts_with_the_old_model_while_another_fits(method, monkeypatch):
    clf = BackpropClassifier((3,), max_iter=3, random_state=0).fit(X, Y)
    labels, outputs = clf.predict(X), clf.predict_proba(X)
    seen = []

    def and_look(function):
        def call(*args, **kwargs):
            seen.extend(in_another_thread(ask, X) for ask in (clf.predict, clf.predict_proba))
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(training, "fit", and_look(training.fit))
    monkeypatch.setattr(estimator, "Progress", and_look(estimator.Progress))
    if method == "fit":
        clf.fit(OTHER_X, OTHER_Y)
    elif method == "partial_fit":
        clf.partial_fit(X, Y)
    else:
        clf.initialize(20, ["a", "b", "c"])
    assert seen
    for got in seen:
        np.testing.assert_array_equal(got, labels if got.ndim == 1 else outputs)
    new_X = X if method == "partial_fit" else OTHER_X
    assert set(clf.predict(new_X)) <= set(Y if method == "partial_fit" else OTHER_Y)
    assert method == "initialize" or not np.array_equal(clf.predict_proba(new_X), outputs)


@pytest.mark.parametrize("ask", ["predict", "predict_proba"])
@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_a_fit_that_ends_during_a_prediction_does_not_mix_with_it(loss, ask, monkeypatch):
    clf = BackpropClassifier((3,), max_iter=3, random_state=0, loss=loss).fit(X, Y)
    expected = getattr(clf, ask)(X)
    outputs = Predictor.outputs

    def and_fit(self, *args):
        computed = outputs(self, *args)
        monkeypatch.undo()
        in_another_thread(clf.fit, OTHER_X, OTHER_Y)
        return computed

    monkeypatch.setattr(Predictor, "outputs", and_fit)
    np.testing.assert_array_equal(getattr(clf, ask)(X), expected)
    assert clf.n_features_in_ == 20 and clf.predict_proba(OTHER_X).shape == (60, 3)


@pytest.mark.parametrize("n_rows", [60, 600])
def test_early_stopping_is_the_same_for_sparse_rows(n_rows):
    """Their prediction has the bits of dense rows of which none is zero."""
    rng = np.random.RandomState(1)
    dense = rng.uniform(0.5, 1, (n_rows, 10))
    y = rng.randint(0, 3, n_rows)
    kwargs = dict(hidden_layer_sizes=(5,), learning_rate_init=0.1, max_iter=8, random_state=0)
    kwargs |= dict(early_stopping=True, validation_fraction=0.5)
    clf = BackpropClassifier(**kwargs).fit(csr_matrix(dense), y)
    twin = BackpropClassifier(**kwargs).fit(dense, y)
    assert clf.validation_scores_ == twin.validation_scores_
    assert len(set(clf.validation_scores_)) > 1


@pytest.mark.parametrize("edit", [lambda w: w.astype(int), lambda w: w.tolist(), lambda w: w[:, 1:]])
def test_edited_weights_are_checked_before_training(edit):
    clf = BackpropClassifier(max_iter=1).fit(X, Y)
    clf.coefs_[0] = edit(clf.coefs_[0])
    with pytest.raises(ValueError, match=r"(coefs|intercepts)_\[0\] must"):
        clf.partial_fit(X, Y)


def test_predict_is_sparse_where_y_was():
    labels = np.column_stack([Y, 1 - Y])
    dense = BackpropClassifier(max_iter=3, random_state=0).fit(X, labels).predict(X)
    predicted = BackpropClassifier(max_iter=3, random_state=0).fit(X, csr_matrix(labels)).predict(X)
    assert issparse(predicted)
    np.testing.assert_array_equal(predicted.toarray(), dense)


def test_feature_names_are_checked_after_lbfgs():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcdefghij"))
    clf = BackpropClassifier(solver="lbfgs", max_iter=2).fit(frame, Y).set_params(solver="adam")
    with pytest.raises(ValueError, match="feature names"):
        clf.partial_fit(frame[list("jihgfedcba")], Y)


def interrupt(monkeypatch, owner, name, n_calls):
    """Let Ctrl-C come at the end of one of the calls of a method."""
    function, calls = getattr(owner, name), []

    def interrupted(*args, **kwargs):
        result = function(*args, **kwargs)
        calls.append(1)
        if len(calls) == n_calls:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, interrupted)


def test_feature_names_are_checked_after_ctrl_c_in_the_first_epoch(monkeypatch):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcdefghij"))
    clf, call = BackpropClassifier(batch_size=10), Session._call

    def interrupted(self, data, rates, first, last, *others):
        call(self, data, rates, first, min(last, 1), *others)
        if last:  # else it only compiles
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "_call", interrupted)
    with pytest.warns(UserWarning, match="interrupted"):
        clf.fit(frame, Y)
    monkeypatch.undo()
    assert clf.t_ == 0 and not hasattr(clf, "loss_")
    with pytest.raises(ValueError, match="feature names"):
        clf.partial_fit(frame[list("jihgfedcba")], Y)


@pytest.mark.parametrize("warm", [False, True])
def test_feature_names_are_learned_after_initialize(warm):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcdefghij"))
    clf = BackpropClassifier(max_iter=2, warm_start=warm).initialize(10, [0, 1])
    (clf.fit if warm else clf.partial_fit)(frame, Y)
    assert list(clf.feature_names_in_) == list(frame)
    with pytest.raises(ValueError, match="feature names"):
        clf.partial_fit(frame[list("jihgfedcba")], Y)


@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        ("early_stopping", "epoch"), ("X_val", "epoch"),
        ("early_stopping", "score"), ("X_val", "score"), ("lbfgs", "score"),
    ],
)  # fmt: skip
def test_ctrl_c_does_not_shift_the_scores(kind, moment, monkeypatch):
    validation = {} if kind == "early_stopping" else {"X_val": X, "y_val": Y}
    clf = BackpropClassifier((3,), max_iter=3, warm_start=True, random_state=0, early_stopping=not validation)
    clf.set_params(solver="lbfgs" if kind == "lbfgs" else "adam")
    owner, name = (Session, "run") if moment == "epoch" else (Validation, "__call__")
    interrupt(monkeypatch, owner, name, 2)
    with pytest.warns(UserWarning, match="interrupted"):
        clf.fit(X, Y, **validation)
    monkeypatch.undo()
    assert len(clf.loss_curve_) == 2
    clf.fit(X, Y, **validation)
    for curve in (clf.validation_scores_, clf.validation_loss_curve_):
        assert np.isnan(curve).tolist() == [False, True, False, False, False]
    assert len(clf.loss_curve_) == 5


@pytest.mark.parametrize("moment", ["epoch", "score"])
def test_ctrl_c_before_the_first_score_keeps_what_was_learned(moment, monkeypatch):
    clf = BackpropClassifier((3,), max_iter=3, random_state=0, early_stopping=True)
    begun = BackpropClassifier((3,), random_state=0, dtype="float64").initialize(10, [0, 1])
    owner, name = (Session, "run") if moment == "epoch" else (Validation, "__call__")
    interrupt(monkeypatch, owner, name, 1)
    with pytest.warns(UserWarning, match="interrupted"):
        clf.fit(X, Y)
    assert np.isnan(clf.validation_scores_).all() and len(clf.validation_scores_) == clf.n_iter_ == 1
    assert not np.array_equal(clf.coefs_[0], begun.coefs_[0])


def test_what_other_threads_set_during_a_fit_remains(monkeypatch):
    clf = BackpropClassifier((3,), max_iter=2).fit(X, Y)
    clf.note, clf.gone = "old", 1

    def change():
        clf.set_params(alpha=0.5)
        clf.note, clf.another = "new", 2
        del clf.gone

    def and_change(*args, **kwargs):
        in_another_thread(change)
        return fit(*args, **kwargs)

    fit = training.fit
    monkeypatch.setattr(training, "fit", and_change)
    clf.fit(X, Y)
    assert (clf.alpha, clf.note, clf.another) == (0.5, "new", 2) and not hasattr(clf, "gone")


def test_fitted_attributes_of_fits_at_the_same_time_do_not_mix(monkeypatch):
    pd = pytest.importorskip("pandas")
    clf = BackpropClassifier((3,), max_iter=2).fit(X, Y)

    def and_fit(*args, **kwargs):
        monkeypatch.undo()
        in_another_thread(clf.fit, pd.DataFrame(OTHER_X).add_prefix("x"), OTHER_Y)
        return fit(*args, **kwargs)

    fit = training.fit
    monkeypatch.setattr(training, "fit", and_fit)
    clf.fit(X, Y)
    assert clf.n_features_in_ == 10 and not hasattr(clf, "feature_names_in_")
    assert clf.predict_proba(X).shape == (60, 2)


def test_a_prediction_that_began_before_a_fit_ended_keeps_no_old_weights(monkeypatch):
    clf = BackpropClassifier((3,), max_iter=1).fit(X, Y)
    old = weakref.ref(clf.coefs_[0])

    def and_fit(self, *args, **kwargs):
        monkeypatch.undo()
        init(self, *args, **kwargs)
        in_another_thread(clf.fit, X, Y)

    init = Predictor.__init__
    monkeypatch.setattr(Predictor, "__init__", and_fit)
    clf.predict(X)
    assert old() is None


class Comparable(BackpropClassifier):
    def __eq__(self, other):
        return type(self) is type(other) and self.get_params() == other.get_params()


def test_estimators_without_a_hash_predict(monkeypatch):
    one, other = (Comparable((3,), max_iter=1, random_state=0).fit(inputs, Y) for inputs in (X, 1 - X))
    assert one == other
    expected = BackpropClassifier((3,), max_iter=1, random_state=0).fit(X, Y).predict_proba(X)
    assert not np.array_equal(other.predict_proba(X), expected)
    np.testing.assert_array_equal(one.predict_proba(X), expected)
    with monkeypatch.context() as patch:  # which are kept: no call makes another
        patch.setattr(Predictor, "__init__", None)
        np.testing.assert_array_equal(one.predict_proba(X), expected)
    weights = weakref.ref(one.coefs_[0])
    del one
    gc.collect()
    assert weights() is None


def test_old_weights_are_freed():
    clf = BackpropClassifier(max_iter=1).fit(X, Y)
    clf.predict(X)
    old = weakref.ref(clf.coefs_[0])
    clf.fit(X, Y)
    assert old() is None


@pytest.mark.parametrize("n_rows", [1, 2, 9, 60])
def test_weights_that_numpy_has_moved_are_noticed(n_rows):
    clf = BackpropClassifier(hidden_layer_sizes=(300,), max_iter=1, random_state=0).fit(X, Y)
    clf.coefs_ = [coef.copy() for coef in clf.coefs_]  # NumPy moves arrays that own their memory
    expected = clf.predict_proba(X[:n_rows])
    weights = clf.coefs_[0].copy()
    clf.coefs_[0].resize((5, 3), refcheck=False)
    with pytest.raises(ValueError, match=r"coefs_\[0\] must have the shape"):
        clf.predict_proba(X[:n_rows])
    clf.coefs_[0].resize(weights.shape, refcheck=False)
    clf.coefs_[0][:] = weights
    np.testing.assert_array_equal(clf.predict_proba(X[:n_rows]), expected)
    clf.coefs_[0].resize((5000, 300), refcheck=False)  # to another place, and back to its shape
    clf.coefs_[0].resize(weights.shape, refcheck=False)
    clf.coefs_[0][:] = 0
    constant = clf.predict_proba(X[:n_rows])
    assert (constant == constant[0]).all()
    clf.intercepts_[1].resize(0, refcheck=False)
    with pytest.raises(ValueError, match=r"intercepts_\[1\] must have the shape"):
        clf.predict_proba(X[:n_rows])


@pytest.mark.parametrize("n_rows", [1, 2, 9, 60])
def test_edits_count_at_the_next_prediction(n_rows):
    clf = BackpropClassifier(hidden_layer_sizes=(40,), max_iter=1, random_state=0).fit(X, Y)
    other = BackpropClassifier(hidden_layer_sizes=(40,), max_iter=1, random_state=1).fit(X, Y)
    assert (clf.predict_proba(X[:n_rows]) != other.predict_proba(X[:n_rows])).any()
    for ours, theirs in zip([*clf.coefs_, *clf.intercepts_], [*other.coefs_, *other.intercepts_], strict=True):
        ours[...] = theirs
    np.testing.assert_array_equal(clf.predict_proba(X[:n_rows]), other.predict_proba(X[:n_rows]))
    clf.coefs_[1] = -clf.coefs_[1]
    other.coefs_[1] *= -1
    np.testing.assert_array_equal(clf.predict_proba(X[:n_rows]), other.predict_proba(X[:n_rows]))


def test_several_threads_predict_with_one_model():
    clf = BackpropClassifier(hidden_layer_sizes=(40,), max_iter=1, random_state=0).fit(X, Y)
    parts = [X[:n] for n in (1, 5, 30, 60)] * 50
    expected = [clf.predict_proba(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(clf.predict_proba, parts), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_need_not_be_checked_is_predicted_as_if_it_were(dtype):
    clf = BackpropClassifier(hidden_layer_sizes=(5,), max_iter=1, dtype=dtype, random_state=0).fit(X, Y)
    whole = np.arange(30).reshape(3, 10) - 9
    for inputs in (X[:3], whole, whole.astype(np.int16), whole > 0, np.asfortranarray(X), X[::2]):
        converted = np.array(inputs, np.float64 if inputs.dtype == np.float64 else dtype, order="C")
        expected = clf.predict_proba(converted)
        np.testing.assert_array_equal(clf.predict_proba(inputs), expected)
        np.testing.assert_array_equal(clf.predict_proba(inputs.tolist()), expected)
        np.testing.assert_array_equal(clf.predict_proba(tuple(map(tuple, inputs.tolist()))), expected)
    for wrong in (
        [],
        [[]],
        [1.0] * 10,
        [[1.0] * 9],
        [[1.0] * 10, [1.0]],
        [[np.nan] * 10],
        [["a"] * 10],
    ):
        with pytest.raises(ValueError):
            clf.predict_proba(wrong)


def networks_of(monkeypatch, *models):
    """Return the networks that are trained."""
    found = []

    class Noted(Session):
        def __init__(self, network, *args, **kwargs):
            found.append(network)
            super().__init__(network, *args, **kwargs)

    monkeypatch.setattr(estimator, "Session", Noted)
    for model in models:
        model.fit(X, Y)
    return found


def test_networks_of_the_same_names_are_laid_out_once(monkeypatch):
    parameters = dict(hidden_layer_sizes=(4,), max_iter=1)
    first, *others = networks_of(
        monkeypatch,
        *(
            BackpropClassifier(**parameters | change)
            for change in (
                {},
                {"alpha": 0.1},
                {"hidden_layer_sizes": (5,)},
                {"dtype": "float32"},
                {"batch_size": 1},
                {"dropout": 0.5},
                {"activation": "tanh"},
                {"activation": LeakyRelu(0.3)},
            )
        ),
    )
    assert others[0] is first and all(other is not first for other in others[1:])
    assert [other.activations[0].name for other in others[-2:]] == ["tanh", "leaky_relu"]


def test_the_network_of_an_activation_of_the_user_is_not_kept(monkeypatch):
    """Its coefficients may be others the next time, and it may hold a lot of memory."""
    activation = LeakyRelu(0.3)
    model = BackpropClassifier((4,), activation, max_iter=1)
    (first,) = networks_of(monkeypatch, model)
    object.__setattr__(activation, "negative_slope", 0.4)
    (second,) = networks_of(monkeypatch, model)
    assert [network.activations[0] is activation for network in (first, second)] == [True, True]
    assert not np.array_equal(first.coefficients, second.coefficients)
    kept = weakref.ref(activation)
    del activation, model, first, second
    monkeypatch.undo()
    gc.collect()
    assert kept() is None
