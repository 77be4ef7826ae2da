"""Weight decay, clipping and dropout as parameters of the estimators; the kernels' share is in test_backprop.py."""

from itertools import product

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.base import clone

from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.inspection import loss_and_gradient
from fastbp.schedules import step_rates

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def samples(n=120, k=17, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, k))
    return X, X[:, 0] * X[:, 1] + rng.normal(size=n) > 0


def estimators(**options):
    """Both estimators, small and quick."""
    options = {"hidden_layer_sizes": (9, 8), "max_iter": 5, "batch_size": 32, "random_state": 0} | options
    return BackpropClassifier(**options), BackpropRegressor(**options)


def parameters(model):
    return np.concatenate([part.ravel() for part in (*model.coefs_, *model.intercepts_)])


def partial_fit(model, X, y):
    """One epoch; the classifier must be told the classes at first."""
    return model.partial_fit(X, y, **({"classes": [False, True]} if isinstance(model, BackpropClassifier) else {}))


def assert_same_fit(one, other):
    assert parameters(one).tobytes() == parameters(other).tobytes()
    assert one.loss_curve_ == other.loss_curve_


# --- adamw ---


def test_adamw_without_decay_is_adam():
    X, y = samples()
    for adam, adamw in zip(estimators(), estimators(solver="adamw"), strict=True):
        assert_same_fit(adam.fit(X, y), adamw.fit(X, y))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_the_decay_follows_the_schedule(schedule):
    """Where the features are zero, the weights of the first layer have no gradient and only decay; biases do not."""
    X, y = samples()
    X[:, 3:5] = 0
    for model in estimators(solver="adamw", weight_decay=2.0, alpha=0.0, learning_rate=schedule, shuffle=False):
        model.set_params(learning_rate_init=0.01)
        start = clone(model).set_params(max_iter=1, learning_rate_init=1e-300, learning_rate="constant").fit(X, y)
        for _ in range(5):  # partial_fit continues the schedule
            partial_fit(model, X, y)
        left = np.prod(1 - 2.0 * step_rates(schedule, 0.01, 0, 20, 20))  # 5 epochs of 4 batches
        np.testing.assert_allclose(model.coefs_[0][3:5], start.coefs_[0][3:5] * left, rtol=1e-12)
        whole = clone(model).fit(X, y)
        np.testing.assert_allclose(whole.coefs_[0][3:5], model.coefs_[0][3:5], rtol=1e-12)


def test_weights_decay_for_all_kinds_of_input():
    X, y = samples(k=40)
    X[np.random.default_rng(1).random(X.shape) < 0.9] = 0  # mostly zero: the first layer leaves them out
    X[:, 5] = 0
    for model in estimators(solver="adamw", weight_decay=0.5, alpha=0.0):
        dense = clone(model).fit(X, y)
        sparse = clone(model).fit(csr_array(X), y)
        np.testing.assert_allclose(parameters(sparse), parameters(dense), rtol=1e-9, atol=1e-12)


# --- clipping ---


def gradient_norm(model, X, y):
    _, gradient = loss_and_gradient(model, X, y)
    return np.linalg.norm(gradient)


def test_one_step_of_a_clipped_gradient():
    """With plain gradient descent of rate 1 the step is the gradient itself."""
    X, y = samples(n=40)
    for alpha, model in product((0.0, 5.0), estimators(solver="sgd", momentum=0.0, learning_rate_init=1.0)):
        model.set_params(alpha=alpha, batch_size=40, max_iter=1)
        start = clone(model).set_params(learning_rate_init=1e-300).fit(X, y)
        whole = clone(model).fit(X, y)
        norm = gradient_norm(start, X, y)
        np.testing.assert_allclose(np.linalg.norm(parameters(whole) - parameters(start)), norm, rtol=1e-10)
        for max_norm in (1e-3, 0.5 * norm, 1.001 * norm, 100):
            clipped = clone(model).set_params(max_grad_norm=max_norm).fit(X, y)
            step, expected = (parameters(m) - parameters(start) for m in (clipped, whole))
            np.testing.assert_allclose(step, expected * min(1, max_norm / norm), rtol=1e-9, atol=1e-15)
            assert clipped.loss_ == whole.loss_
            if max_norm > norm:
                assert_same_fit(clipped, whole)


def test_clipping_for_all_kinds_of_input():
    X, y = samples(k=40)
    X[np.random.default_rng(1).random(X.shape) < 0.9] = 0
    X[:, 5] = 0
    for alpha, batch_size, solver in product((0.0, 0.1), (1, 32, 120), ("adam", "sgd")):
        for model in estimators(alpha=alpha, batch_size=batch_size, solver=solver, max_grad_norm=0.1):
            dense = clone(model).fit(X, y)
            sparse = clone(model).fit(csr_array(X), y)
            np.testing.assert_allclose(parameters(sparse), parameters(dense), rtol=1e-7, atol=1e-10)
            whole = clone(model).set_params(max_grad_norm=None).fit(X, y)
            assert abs(parameters(whole) - parameters(dense)).max() > 1e-6  # Adam hardly feels a factor


def test_clipping_tames_gradients_whose_squares_are_infinite():
    X, y = samples()
    X = X.astype(np.float32) * 1e12
    model = BackpropRegressor(hidden_layer_sizes=(), solver="sgd", momentum=0.0, max_grad_norm=1.0, alpha=0.0)
    model.set_params(batch_size=len(X), learning_rate_init=0.1, max_iter=1, random_state=0)
    start = clone(model).set_params(learning_rate_init=1e-300).fit(X, y)
    step = parameters(model.fit(X, y)).astype(np.float64) - parameters(start)
    np.testing.assert_allclose(np.linalg.norm(step), 0.1, rtol=1e-5)


# --- dropout ---


def test_no_dropout_is_no_dropout():
    X, y = samples()
    for plain, none in zip(estimators(), estimators(dropout=[0.0, 0]), strict=True):
        assert_same_fit(plain.fit(X, y), none.fit(X, y))


def test_dropout_is_off_outside_of_training():
    X, y = samples()
    for model in estimators(dropout=0.5, early_stopping=True, validation_fraction=0.3):
        model.fit(X, y)
        plain = clone(model).set_params(dropout=0.0).fit(X, y)
        assert abs(parameters(model) - parameters(plain)).max() > 1e-3
        # The same network without the parameter.
        expected, loss = model.predict(X), loss_and_gradient(model, X, y)[0]
        plain.coefs_, plain.intercepts_ = model.coefs_, model.intercepts_
        np.testing.assert_array_equal(plain.predict(X), expected)
        assert loss_and_gradient(plain, X, y)[0] == loss
        assert model.score(X, y) == plain.score(X, y)


def test_dropout_of_one_layer():
    """A rate near 1 in one layer leaves the gradient of the others' weights almost nothing; 0 is no dropout."""
    X, y = samples()
    for first, second in zip(estimators(dropout=[0.5, 0.0]), estimators(dropout=[0.0, 0.5]), strict=True):
        both = [parameters(model.fit(X, y)) for model in (first, second)]
        assert abs(both[0] - both[1]).max() > 1e-3
    for model in estimators(hidden_layer_sizes=(), dropout=0.5):  # nothing to leave out
        assert_same_fit(model.fit(X, y), clone(model).set_params(dropout=0).fit(X, y))


def test_dropout_continues_with_partial_fit():
    X, y = samples()
    for model in estimators(dropout=0.4, shuffle=False, max_iter=6, n_iter_no_change=np.inf):
        whole = clone(model).fit(X, y)
        for _ in range(6):
            partial_fit(model, X, y)
        assert_same_fit(model, whole)


def test_dropout_begins_and_ends_with_the_parameter():
    X, y = samples()
    for model in estimators(shuffle=False):
        partial_fit(model, X, y)
        seed = partial_fit(model.set_params(dropout=0.4), X, y)._optimizer["seed"]
        assert seed is not None
        partial_fit(partial_fit(model.set_params(dropout=0), X, y).set_params(dropout=0.4), X, y)
        assert model._optimizer["seed"] == seed


def test_masks_differ_by_the_random_state():
    X, y = samples()
    for model in estimators(dropout=0.4, shuffle=False):
        fits = []
        for seed in (0, 0, 1, None):
            copy = clone(model).set_params(random_state=0, max_iter=1).fit(X, y)
            copy.set_params(random_state=seed, warm_start=True).fit(X, y)
            fits.append(parameters(copy))
        assert (fits[0] == fits[1]).all() and (fits[0] != fits[2]).any() and (fits[0] != fits[3]).any()


@pytest.mark.parametrize("batch_size", [1, 32, 120])
def test_dropout_for_all_kinds_of_input(batch_size):
    X, y = samples(k=40)
    X[np.random.default_rng(1).random(X.shape) < 0.9] = 0
    for alpha, max_norm in product((0.0, 0.1), (None, 0.1)):
        for model in estimators(dropout=0.3, alpha=alpha, max_grad_norm=max_norm, batch_size=batch_size):
            dense = clone(model).fit(X, y)
            sparse = clone(model).fit(csr_array(X), y)
            np.testing.assert_allclose(parameters(sparse), parameters(dense), rtol=1e-6, atol=1e-9)
