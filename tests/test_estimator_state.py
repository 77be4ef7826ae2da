"""Faults of edited, refitted and oddly weighted estimators."""

import weakref

import numpy as np
import pytest
from scipy.sparse import csr_matrix, issparse

from fastbp.classifier import BackpropClassifier
from fastbp.regressor import BackpropRegressor

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


def test_best_score_is_one_of_the_scores():
    clf = BackpropClassifier(max_iter=20, early_stopping=True, warm_start=True, random_state=0).fit(X, Y)
    clf.set_params(early_stopping=False).fit(X, Y)
    clf.set_params(early_stopping=True, max_iter=2).fit(X, 1 - Y)
    assert clf.best_validation_score_ == max(clf.validation_scores_)


@pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
def test_held_out_samples_without_weight_are_refused(estimator):
    weight = np.zeros(60)
    weight[:2] = 1
    with pytest.raises(ValueError, match=r"at least one non-zero number.*validation_fraction=0.1"):
        estimator(early_stopping=True, random_state=0).fit(X, Y, sample_weight=weight)


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


def test_old_weights_are_freed():
    clf = BackpropClassifier(max_iter=1).fit(X, Y)
    clf.predict(X)
    old = weakref.ref(clf.coefs_[0])
    clf.fit(X, Y)
    assert old() is None
