"""BackpropRegressor: what it has beside scikit-learn's regressor, and what users of scikit-learn expect."""

import pickle

import numpy as np
import pytest
import reference
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import QuantileRegressor
from sklearn.metrics import d2_pinball_score, r2_score

from fastbp import BackpropRegressor
from fastbp.inspection import loss_and_gradient

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

LOSSES = {
    "squared_error": {},
    "poisson": {},
    "absolute_error": {},
    "huber": dict(delta=0.4),
    "quantile": dict(quantile=0.3),
}


@pytest.fixture(scope="module")
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X * 20, (y - y.mean()) / y.std()


def targets(loss, y, n_outputs):
    Y = np.stack([y, y[::-1], y**2], axis=1)[:, :n_outputs]
    Y = np.round(np.exp(Y / 2)) if loss == "poisson" else Y
    return Y[:, 0] if n_outputs == 1 else Y


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_the_naive_twin(loss, n_outputs, diabetes):
    X, y = diabetes
    X, Y = X[:50], targets(loss, y[:50], n_outputs)
    weight = np.random.RandomState(0).rand(50)
    reg = BackpropRegressor(
        loss, (7, 5), ["tanh", "relu"], alpha=0.1, dtype="float64", random_state=0, **LOSSES[loss]
    ).initialize(X.shape[1], n_outputs)  # fmt: skip
    value, gradient = loss_and_gradient(reg, X, Y, sample_weight=weight)
    names = [("tanh", {}), ("relu", {}), ("exp" if loss == "poisson" else "identity", {})]
    parameter = next(iter(LOSSES[loss].values()), 0.0)
    expected, coef_grads, intercept_grads = reference.backprop_naive(
        reg.coefs_, reg.intercepts_, names, loss, X, Y.reshape(50, -1), 0.1, weight, parameter
    )
    if loss == "squared_error":  # the value, as in scikit-learn, is the mean over the outputs; the L2 term is not
        penalty = 0.05 * sum((W**2).sum() for W in reg.coefs_) / weight.sum()
        expected = (expected - penalty) / n_outputs + penalty
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    naive = np.concatenate([np.append(W.ravel(), b) for W, b in zip(coef_grads, intercept_grads, strict=True)])
    np.testing.assert_allclose(gradient, naive, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_training_lowers_every_loss(loss, n_outputs, solver, diabetes):
    X, y = diabetes
    Y = targets(loss, y, n_outputs)
    rates = {"adam": 0.01, "sgd": 0.002, "lbfgs": 0.001}
    reg = BackpropRegressor(
        loss, (20,), solver=solver, learning_rate_init=rates[solver], max_iter=40, random_state=0, **LOSSES[loss]
    ).fit(X, Y)
    assert reg.loss_curve_[-1] < 0.8 * reg.loss_curve_[0]
    assert reg.predict(X).shape == Y.shape


def test_the_median_and_robust_losses_resist_outliers():
    rng = np.random.RandomState(0)
    x = rng.uniform(-1, 1, (600, 1))
    y = 2 * x[:, 0]
    spoiled = y + 200 * (rng.rand(600) < 0.1)
    errors = {}
    for loss in ("squared_error", "absolute_error", "huber", "quantile"):
        reg = BackpropRegressor(loss, (20,), "tanh", max_iter=400, learning_rate_init=0.02, tol=0, random_state=0)
        errors[loss] = np.abs(reg.fit(x, spoiled).predict(x) - y).mean()
    assert errors.pop("squared_error") > 5
    assert max(errors.values()) < 1


def test_huber_with_a_large_delta_is_the_squared_error(diabetes):
    X, y = diabetes
    options = dict(hidden_layer_sizes=(10,), max_iter=5, random_state=0)
    huber = BackpropRegressor("huber", delta=1e6, **options).fit(X, y)
    squared = BackpropRegressor(**options).fit(X, y)
    for a, b in zip(huber.coefs_, squared.coefs_, strict=True):
        np.testing.assert_array_equal(a, b)


def test_levels_cover_their_share(diabetes):
    X, y = diabetes
    levels = [0.1, 0.5, 0.9]
    reg = BackpropRegressor(
        "quantile", (20,), quantile=levels, max_iter=300, learning_rate_init=0.01, tol=0, random_state=0
    ).fit(X, y)  # fmt: skip
    predictions = reg.predict(X)
    assert predictions.shape == (len(X), 3)
    np.testing.assert_allclose((y[:, None] < predictions).mean(axis=0), levels, atol=0.06)
    expected = np.mean([d2_pinball_score(y, p, alpha=q) for p, q in zip(predictions.T, levels, strict=True)])
    np.testing.assert_allclose(reg.score(X, y), expected, rtol=1e-12)
    # Each output is what a regressor of that level alone is trained on; without hidden layers they are independent.
    linear = dict(hidden_layer_sizes=(), solver="lbfgs", alpha=0.0, max_iter=500, random_state=0)
    together = BackpropRegressor("quantile", quantile=levels, **linear).fit(X, y).predict(X)
    for column, level in enumerate(levels):
        ours = BackpropRegressor("quantile", quantile=level, **linear).fit(X, y).predict(X)
        theirs = QuantileRegressor(quantile=level, alpha=0).fit(X, y).predict(X)
        for found in (ours, together[:, column]):
            assert d2_pinball_score(y, found, alpha=level) > d2_pinball_score(y, theirs, alpha=level) - 0.02


def test_early_stopping_watches_the_levels(diabetes):
    X, y = diabetes
    reg = BackpropRegressor("quantile", (5,), quantile=[0.2, 0.8], early_stopping=True, max_iter=5, random_state=0)
    reg.fit(X, y)
    assert len(reg.validation_scores_) == reg.n_iter_ and np.isfinite(reg.validation_scores_).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_validation_scores_are_r2(weighted, diabetes):
    X, y = diabetes
    Y = np.stack([y, np.full(len(y), 3.0)], axis=1)  # a constant output can only be right or wrong
    weight = np.random.RandomState(0).rand(len(y)) if weighted else None
    reg = BackpropRegressor(hidden_layer_sizes=(5,), early_stopping=True, max_iter=1, random_state=0)
    reg.fit(X, Y, sample_weight=weight)
    held_out = np.random.RandomState(0)
    for shape in ((10, 5), 5, (5, 2), 2):  # the initial weights are drawn before
        held_out.uniform(size=shape)
    from sklearn.model_selection import train_test_split

    _, rows = train_test_split(np.arange(len(X)), random_state=held_out, test_size=0.1)
    expected = r2_score(Y[rows], reg.predict(X[rows]), sample_weight=None if weight is None else weight[rows])
    np.testing.assert_allclose(reg.validation_scores_, [expected], rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types_and_shapes_of_predictions(dtype, diabetes):
    X, y = diabetes
    X = X.astype(dtype)
    for solver in ("adam", "lbfgs"):
        options = dict(hidden_layer_sizes=(5,), solver=solver, max_iter=3, random_state=0)
        one = BackpropRegressor(**options).fit(X, y)
        assert one.predict(X).shape == (len(X),) and one.predict(X[:1]).shape == (1,)
        two = BackpropRegressor(**options).fit(X, np.stack([y, -y], axis=1))
        assert two.predict(X).shape == (len(X), 2)
        for reg in (one, two):
            assert reg.predict(X).dtype == dtype
            assert all(part.dtype == dtype for part in [*reg.coefs_, *reg.intercepts_])


def test_initialize_is_where_fit_begins(diabetes):
    X, y = diabetes
    reg = BackpropRegressor(
        hidden_layer_sizes=(5,), dtype="float64", shuffle=False, random_state=3, learning_rate_init=1e-12
    )
    begun = clone(reg).initialize(X.shape[1], 2)
    assert begun.n_iter_ == 0 and not hasattr(begun, "loss_") and begun.predict(X).shape == (len(X), 2)
    fitted = clone(reg).set_params(max_iter=1).fit(X, np.stack([y, y], axis=1))
    for a, b in zip(begun.coefs_, fitted.coefs_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    begun.partial_fit(X, np.stack([y, y], axis=1))
    np.testing.assert_array_equal(begun.coefs_[0], fitted.coefs_[0])
    assert BackpropRegressor("quantile", quantile=[0.1, 0.9]).initialize(3).predict(np.zeros((2, 3))).shape == (2, 2)


def test_pickle_continues(diabetes):
    X, y = diabetes
    reg = BackpropRegressor("huber", (5,), max_iter=3, random_state=0).fit(X, y)
    copy = pickle.loads(pickle.dumps(reg))
    np.testing.assert_array_equal(copy.predict(X), reg.predict(X))
    for model in (reg, copy):
        model.partial_fit(X, y)
    np.testing.assert_array_equal(copy.coefs_[0], reg.coefs_[0])


def test_warns_at_the_end():
    X, y = np.random.RandomState(0).rand(30, 2), np.arange(30.0)
    with pytest.warns(ConvergenceWarning, match="Maximum iterations"):
        BackpropRegressor(hidden_layer_sizes=(3,), max_iter=2).fit(X, y)
