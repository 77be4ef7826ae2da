"""Validation samples: the user's and early stopping's, their loss and score, and what early stopping watches."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, make_multilabel_classification
from sklearn.metrics import balanced_accuracy_score, log_loss, mean_absolute_error
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.inspection import mean_loss
from fastbp.kernels.evaluation import row_losses
from fastbp.losses import Loss

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def _digits():
    X, y = load_digits(return_X_y=True)
    return X[:200] / 16, y[:200]


def _diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X[:200] * 20, (y[:200] - y.mean()) / y.std()


PROBLEMS = {
    "binary": (BackpropClassifier(), *_digits()),
    "multiclass": (BackpropClassifier(), *_digits()),
    "multilabel": (BackpropClassifier(), *make_multilabel_classification(200, n_classes=3, random_state=0)),
    "squared": (BackpropClassifier(loss="squared_error"), *_digits()),
    "regression": (BackpropRegressor(), *_diabetes()),
    "outputs": (BackpropRegressor(), _diabetes()[0], np.stack([_diabetes()[1], _diabetes()[0][:, 2]], axis=1)),
    "huber": (BackpropRegressor("huber", delta=0.3), *_diabetes()),
    "levels": (BackpropRegressor("quantile", quantile=[0.2, 0.5, 0.7]), *_diabetes()),
    "poisson": (BackpropRegressor("poisson"), _diabetes()[0], np.exp(_diabetes()[1])),
}
PROBLEMS["binary"] = (*PROBLEMS["binary"][:2], np.where(PROBLEMS["binary"][2] > 4, "high", "low"))
OPTIONS = dict(hidden_layer_sizes=(7,), batch_size=30, learning_rate_init=0.01, max_iter=6, random_state=0)


def problem(name, **options):
    model, X, y = PROBLEMS[name]
    return clone(model).set_params(**OPTIONS | options), X[:140], y[:140], X[140:], y[140:]


def same(one, other):
    pairs = zip([*one.coefs_, *one.intercepts_], [*other.coefs_, *other.intercepts_], strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def epochs(model, X, y, n):
    """The model after each epoch."""
    for i in range(1, n + 1):
        yield clone(model).set_params(max_iter=i).fit(X, y)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_validation_is_recorded_and_changes_nothing(name, dtype, sparse):
    model, X, y, X_val, y_val = problem(name, dtype=dtype)
    kind = csr_array if sparse else np.asarray
    recorded = clone(model).fit(kind(X), y, X_val=kind(X_val), y_val=y_val)
    alone = clone(model).fit(kind(X), y)
    assert same(recorded, alone) and recorded.loss_curve_ == alone.loss_curve_
    assert alone.validation_loss_curve_ is None and alone.validation_scores_ is None
    assert len(recorded.validation_loss_curve_) == len(recorded.validation_scores_) == 6
    assert recorded.best_iter_ is None and recorded.best_validation_score_ is None
    assert recorded.best_loss_ == alone.best_loss_
    rtol = 1e-5 if dtype == "float32" else 1e-12
    factor = 1 / y.shape[1] if name == "outputs" else 1  # as in loss_, which is scikit-learn's
    for i, after in enumerate(epochs(model, kind(X), y, 6)):
        loss, score = recorded.validation_loss_curve_[i], recorded.validation_scores_[i]
        np.testing.assert_allclose(loss, mean_loss(after, kind(X_val), y_val), rtol=rtol)
        np.testing.assert_allclose(score, after.score(kind(X_val), y_val), rtol=rtol, atol=rtol)
    if name == "multiclass":
        np.testing.assert_allclose(loss, log_loss(y_val, after.predict_proba(X_val), labels=range(10)), rtol=1e-5)
    if name in ("regression", "outputs"):
        squares = ((after.predict(X_val) - y_val) ** 2).reshape(60, -1).sum(axis=1).mean() / 2 * factor
        np.testing.assert_allclose(loss, squares, rtol=1e-5)


@pytest.mark.parametrize("name", ["binary", "multiclass", "regression"])
def test_iterations_of_lbfgs_are_recorded(name):
    model, X, y, X_val, y_val = problem(name, solver="lbfgs")
    recorded = clone(model).fit(X, y, X_val=X_val, y_val=y_val)
    assert same(recorded, clone(model).fit(X, y))
    assert len(recorded.validation_loss_curve_) == len(recorded.loss_curve_) == 6
    for i, after in enumerate(epochs(model, X, y, 6)):
        np.testing.assert_allclose(recorded.validation_loss_curve_[i], mean_loss(after, X_val, y_val), rtol=1e-12)
        np.testing.assert_allclose(recorded.validation_scores_[i], after.score(X_val, y_val), rtol=1e-12)


@pytest.mark.parametrize("name", ["binary", "multiclass", "multilabel", "regression", "levels"])
def test_early_stopping_on_the_samples_that_it_would_hold_out(name):
    """Passed as X_val, they are those that it watches; and none are held out."""
    model, X, y, X_val, y_val = problem(name, early_stopping=True, max_iter=60, n_iter_no_change=3, tol=0.01)
    model.fit(X, y, X_val=X_val, y_val=y_val)
    assert model.n_iter_ < 60 and model.t_ == model.n_iter_ * len(X)
    scores = model.validation_scores_
    assert len(scores) == len(model.validation_loss_curve_) == model.n_iter_
    assert model.best_validation_score_ == max(scores) and model.best_loss_ is None
    assert model.best_iter_ == 1 + scores.index(max(scores))
    # The weights are those of the best epoch.
    model.set_params(early_stopping=False, n_iter_no_change=np.inf, max_iter=model.best_iter_)
    without = clone(model).fit(X, y)
    assert same(model, without)


@pytest.mark.parametrize("name", ["binary", "multiclass", "regression", "levels"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_the_samples_that_early_stopping_holds_out(name, weighted):
    model, X, y, _, _ = problem(name, early_stopping=True, scoring="loss", validation_fraction=0.3)
    weight = np.random.RandomState(1).rand(len(X)) if weighted else None
    model.fit(X, y, sample_weight=weight)
    np.testing.assert_array_equal(model.validation_scores_, -np.array(model.validation_loss_curve_))
    assert model.best_validation_score_ == -min(model.validation_loss_curve_)
    draws = np.random.RandomState(0)
    model._draw_parameters([X.shape[1], 7, model.n_outputs_], model._activations, draws, np.float64)
    rows = train_test_split(
        np.arange(140), random_state=draws, test_size=0.3, stratify=y if name == "binary" else None
    )[1]  # fmt: skip
    weights = np.ones(len(rows)) if weight is None else weight[rows]
    losses = [mean_loss(model, X[i : i + 1], y[i : i + 1]) for i in rows]
    expected = np.average(losses, weights=weights)
    np.testing.assert_allclose(model.validation_loss_curve_[model.best_iter_ - 1], expected, rtol=1e-9)


def test_early_stopping_by_the_loss_stops_sooner_than_by_the_accuracy():
    model, X, y, X_val, y_val = problem("multiclass", early_stopping=True, max_iter=400, learning_rate_init=0.05)
    best = {}
    for scoring in (None, "loss"):
        fitted = clone(model).set_params(scoring=scoring, alpha=0.0).fit(X, y, X_val=X_val, y_val=y_val)
        best[scoring] = min(fitted.validation_loss_curve_), fitted.validation_loss_curve_[fitted.best_iter_ - 1]
    assert best["loss"][0] == best["loss"][1]  # the epoch of the least loss is kept
    assert best[None][0] < best[None][1]


@pytest.mark.parametrize("name", ["binary", "multiclass", "multilabel"])
def test_of_epochs_of_the_same_accuracy_the_one_with_the_lower_loss_is_best(name):
    model, X, y, X_val, y_val = problem(name, early_stopping=True, max_iter=60, n_iter_no_change=np.inf)
    by_accuracy = clone(model).fit(X, y, X_val=X_val, y_val=y_val)
    by_both = clone(model).set_params(scoring="accuracy_then_loss").fit(X, y, X_val=X_val, y_val=y_val)
    accuracies, losses = np.array(by_accuracy.validation_scores_), np.array(by_both.validation_loss_curve_)
    np.testing.assert_array_equal(by_both.validation_loss_curve_, by_accuracy.validation_loss_curve_)
    best = np.flatnonzero(accuracies == accuracies.max())
    assert len(best) > 1
    assert by_both.best_iter_ == 1 + best[losses[best].argmin()] != by_accuracy.best_iter_
    np.testing.assert_allclose(by_both.validation_scores_, accuracies - losses / (1 + losses) / len(X_val), rtol=1e-12)


SCORERS = [
    ("binary", "roc_auc", None),
    ("binary", "balanced_accuracy", lambda model, X, y: balanced_accuracy_score(y, model.predict(X))),
    ("multiclass", "neg_log_loss", lambda model, X, y: -log_loss(y, model.predict_proba(X), labels=model.classes_)),
    ("multilabel", "f1_macro", None),
    ("regression", "neg_mean_absolute_error", lambda model, X, y: -mean_absolute_error(y, model.predict(X))),
]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("name", "scoring", "function"), SCORERS)
def test_scorers_get_the_model_of_the_moment(name, scoring, function, own):
    model, X, y, X_val, y_val = problem(
        name, early_stopping=True, scoring=scoring, n_iter_no_change=5, validation_fraction=0.4
    )
    validation = {} if own else dict(X_val=X_val, y_val=y_val)
    by_name = clone(model).fit(X, y, **validation)
    if function is not None:
        by_function = clone(model).set_params(scoring=function).fit(X, y, **validation)
        assert by_function.validation_scores_ == by_name.validation_scores_ and same(by_function, by_name)
    if not own:
        from sklearn.metrics import get_scorer

        after = epochs(model.set_params(early_stopping=False), X, y, by_name.n_iter_)
        expected = [get_scorer(scoring)(fitted, X_val, y_val) for fitted in after]
        np.testing.assert_allclose(by_name.validation_scores_, expected, rtol=1e-12)


def test_a_scorer_sees_a_fitted_estimator():
    model, X, y, X_val, y_val = problem("multiclass")
    seen = []

    def scorer(estimator, inputs, labels):
        assert estimator is not model and type(estimator) is type(model)
        np.testing.assert_array_equal(inputs, X_val)
        np.testing.assert_array_equal(labels, y_val)
        seen.append((estimator.n_iter_, len(estimator.loss_curve_), estimator.predict(inputs)))
        return len(seen)

    model.set_params(scoring=scorer).fit(X, y, X_val=X_val, y_val=y_val)
    assert [entry[:2] for entry in seen] == [(i, i) for i in range(1, 7)]
    np.testing.assert_array_equal(seen[-1][2], model.predict(X_val))
    assert model.validation_scores_ == [1, 2, 3, 4, 5, 6]


def test_named_scorers_weight_the_held_out_samples():
    model, X, y, _, _ = problem("binary", early_stopping=True, scoring="accuracy", validation_fraction=0.5)
    weight = np.random.RandomState(0).rand(len(X))
    named = clone(model).fit(X, y, sample_weight=weight)
    assert named.validation_scores_ == clone(model).set_params(scoring=None).fit(X, y, weight).validation_scores_
    callables = clone(model).set_params(scoring=lambda model, X, y: (model.predict(X) == y).mean())
    assert named.validation_scores_ != callables.fit(X, y, sample_weight=weight).validation_scores_


def test_frames():
    pd = pytest.importorskip("pandas")
    model, X, y, X_val, y_val = problem("regression", scoring="neg_mean_absolute_error")
    names = [f"column {i}" for i in range(10)]
    frames = pd.DataFrame(X, columns=names), pd.DataFrame(X_val, columns=names)
    expected = clone(model).fit(X, y, X_val=X_val, y_val=y_val).validation_scores_
    assert clone(model).fit(frames[0], y, X_val=frames[1], y_val=y_val).validation_scores_ == expected
    held_out = clone(model).set_params(early_stopping=True).fit(frames[0], y)
    assert list(held_out.feature_names_in_) == names
    with pytest.raises(ValueError, match=r"X_val and y_val do not fit the training data: .*feature names"):
        model.fit(frames[0], y, X_val=frames[1][names[::-1]], y_val=y_val)


def test_in_a_pipeline():
    model, X, y, X_val, y_val = problem("multiclass")
    pipeline = make_pipeline(StandardScaler(), model)
    scaled = StandardScaler().fit(X).transform(X_val)
    pipeline.fit(X, y, backpropclassifier__X_val=scaled, backpropclassifier__y_val=y_val)
    assert pipeline[-1].validation_scores_[-1] == pipeline.score(X_val, y_val)


def test_warm_start_goes_on_with_the_same_scores_only():
    model, X, y, X_val, y_val = problem("multiclass", early_stopping=True, warm_start=True)
    validation = dict(X_val=X_val, y_val=y_val)
    model.fit(X, y, **validation).fit(X, y, **validation)
    assert len(model.validation_scores_) == len(model.loss_curve_) == 12 >= model.best_iter_ > 6
    model.set_params(scoring="loss").fit(X, y, **validation)
    assert len(model.validation_scores_) == 6 and model.best_iter_ > 12
    assert model.best_validation_score_ == max(model.validation_scores_) < 0
    model.set_params(early_stopping=False).fit(X, y, **validation)
    assert len(model.validation_scores_) == 12 and model.best_iter_ is None
    model.fit(X, y)
    assert model.validation_scores_ is None and model.validation_loss_curve_ is None


def test_nan_is_no_score():
    model, X, y, X_val, y_val = problem("regression", early_stopping=True, scoring=lambda *args: np.nan)
    with pytest.warns(UserWarning, match="No validation score was a number with scoring=<function"):
        model.fit(X, y, X_val=X_val, y_val=y_val)
    assert model.best_iter_ == 0 and np.isnan(model.validation_scores_).all()
    begun = clone(model).set_params(dtype="float64").initialize(10)
    assert same(model, begun)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 3, 4, 9, 17])
def test_losses_do_not_mix_the_rows(n, dtype):
    rng = np.random.RandomState(0)
    y, outputs = rng.rand(5, n).astype(dtype), rng.rand(5, n).astype(dtype)
    losses = row_losses(Loss("absolute_error", (0.0,) * n, 0.5), False, outputs, y)
    np.testing.assert_allclose(losses, np.abs(y - outputs).sum(axis=1) / 2, rtol=1e-5)


@pytest.mark.parametrize("value", [None, "good", {"a": 1.0}, np.zeros(2)])
def test_scores_that_are_no_numbers_are_refused(value):
    X, y = np.random.RandomState(0).randn(40, 3), np.arange(40) % 2
    clf = BackpropClassifier(early_stopping=True, scoring=lambda estimator, X, y: value)
    with pytest.raises(ValueError, match=r"^scoring=.* must return a number, got "):
        clf.fit(X, y)
    assert not hasattr(clf, "coefs_")
