"""`class_weight` is the sample weights that it means; `label_smoothing` is the targets that it means."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.datasets import make_classification, make_multilabel_classification
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

from fastbp import BackpropClassifier
from fastbp.losses import smooth_targets

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, THREE = make_classification(150, 8, n_informative=5, n_classes=3, weights=[0.7, 0.2], random_state=0)
LABELS = {
    "two": THREE > 0,
    "three": THREE,
    "names": np.array(["no", "perhaps", "yes"])[THREE],
    "several": make_multilabel_classification(150, n_classes=3, random_state=0)[1],
}
WEIGHTS = {
    "two": {True: 5.0, False: 0.5},
    "three": {0: 0.1, 2: 3.0},  # class 1 has the weight 1
    "names": {"no": 0.1, "perhaps": 1, "yes": 3.0},
    "several": [{0: 1, 1: 5.0}, {0: 0.3, 1: 1}, {0: 1, 1: 1}],
}
OPTIONS = dict(hidden_layer_sizes=(6,), max_iter=5, batch_size=20, learning_rate_init=0.01, random_state=0)


def assert_same_bits(one, other):
    for a, b in zip([*one.coefs_, *one.intercepts_], [*other.coefs_, *other.intercepts_], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert one.loss_curve_ == other.loss_curve_
    assert one.validation_scores_ == other.validation_scores_


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"early_stopping": True}, {"solver": "lbfgs"}], ids=str)
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("labels", LABELS)
def test_equals_the_sample_weights_that_it_means(labels, balanced, options, dtype, weighted):
    y, class_weight = LABELS[labels], "balanced" if balanced else WEIGHTS[labels]
    sample_weight = np.random.RandomState(0).rand(len(y)) if weighted else None
    options = OPTIONS | options | {"dtype": dtype}
    clf = BackpropClassifier(class_weight=class_weight, **options).fit(X, y, sample_weight)
    meant = compute_sample_weight(class_weight, y) * (1 if sample_weight is None else sample_weight)
    assert_same_bits(clf, BackpropClassifier(**options).fit(X, y, sample_weight=meant))
    assert not np.array_equal(clf.coefs_[0], BackpropClassifier(**options).fit(X, y, sample_weight).coefs_[0])


def test_rare_classes_are_found():
    rare = THREE == 2
    recall = [
        BackpropClassifier(max_iter=60, class_weight=class_weight, random_state=0).fit(X, rare).predict(X)[rare].mean()
        for class_weight in (None, {True: 20.0})
    ]
    assert recall[1] > recall[0]


@pytest.mark.parametrize("labels", LABELS)
def test_partial_fit_takes_a_dict(labels):
    y = LABELS[labels]
    classes = np.arange(3) if labels == "several" else np.unique(y)
    ours, other = BackpropClassifier(class_weight=WEIGHTS[labels], **OPTIONS), BackpropClassifier(**OPTIONS)
    whole = compute_sample_weight(WEIGHTS[labels], y)
    one_class = np.flatnonzero((y == y[0]).reshape(len(y), -1).all(axis=1))  # the others are in later batches
    for rows in (one_class, np.arange(40), np.arange(40, 150)):
        ours.partial_fit(X[rows], y[rows], classes=classes)
        other.partial_fit(X[rows], y[rows], whole[rows], classes=classes)
    assert_same_bits(ours, other)


def test_partial_fit_refuses_balanced():
    clf = BackpropClassifier(class_weight="balanced", **OPTIONS)
    with pytest.raises(ValueError, match="class_weight='balanced' is not supported by partial_fit") as error:
        clf.partial_fit(X, THREE, classes=[0, 1, 2])
    assert not hasattr(clf, "coefs_") and "compute_class_weight" in str(error.value)
    weights = compute_class_weight("balanced", classes=np.arange(3), y=THREE)
    by_hand = BackpropClassifier(class_weight=dict(enumerate(weights)), **OPTIONS).fit(X, THREE)
    assert_same_bits(by_hand, clf.fit(X, THREE))


def test_sparse_labels():
    y = LABELS["several"]
    for class_weight in ("balanced", WEIGHTS["several"]):
        clf = BackpropClassifier(class_weight=class_weight, **OPTIONS)
        dense = [coef.copy() for coef in clf.fit(X, y).coefs_]
        for a, b in zip(dense, clf.fit(X, csr_array(y)).coefs_, strict=True):
            np.testing.assert_array_equal(a, b)


def test_smoothed_targets():
    y = np.eye(4, dtype=np.float32)[[0, 2]]
    smoothed = smooth_targets(y, 0.2, 4)
    assert smoothed.dtype == np.float32
    np.testing.assert_allclose(smoothed, [[0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]], rtol=1e-6)
    np.testing.assert_allclose(smooth_targets(np.array([0.0, 1.0]), 0.2, 2), [0.1, 0.9])


@pytest.mark.parametrize("labels", LABELS)
def test_label_smoothing_trains_with_the_smoothed_targets(labels):
    """Full-batch training until the outputs are the targets: the loss has its minimum there."""
    y, s = LABELS[labels], 0.3
    rng = np.random.RandomState(0)
    inputs = rng.randn(20, 60)  # more features than samples: every target can be reached
    clf = BackpropClassifier((), solver="lbfgs", alpha=0.0, max_iter=2000, tol=1e-9, label_smoothing=s, random_state=0)
    clf.fit(inputs, y[:20])
    outputs = clf.predict_proba(inputs)
    Y = clf._binarizer.transform(y[:20])
    if labels == "two":
        np.testing.assert_allclose(outputs[:, 1], Y[:, 0] * (1 - s) + s / 2, atol=1e-4)
    else:
        n_classes = 2 if labels == "several" else 3
        np.testing.assert_allclose(outputs, Y * (1 - s) + s / n_classes, atol=1e-4)


@pytest.mark.parametrize("labels", LABELS)
def test_scores_use_the_true_labels(labels):
    y = LABELS[labels]
    clf = BackpropClassifier(early_stopping=True, label_smoothing=0.6, max_iter=1, random_state=0).fit(X, y)
    again = BackpropClassifier(early_stopping=True, max_iter=1, random_state=0).fit(X, y)
    assert clf.loss_ != again.loss_
    from sklearn.model_selection import train_test_split

    draws = np.random.RandomState(0)
    clf._draw_parameters([8, 100, clf.n_outputs_], clf._activations, draws, np.float64)
    _, X_val, _, y_val = train_test_split(
        X, y, random_state=draws, test_size=0.1, stratify=y if labels == "two" else None
    )  # fmt: skip
    assert clf.validation_scores_ == [clf.score(X_val, y_val)]
