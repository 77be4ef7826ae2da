"""Distributions of the initial weights."""

import numpy as np
import pytest

from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.initializers import WEIGHT_INITS, scaled_parameters

UNITS = [300, 500, 40, 7]
VARIANCES = {"glorot": lambda m, n: 2 / (m + n), "he": lambda m, n: 2 / m, "lecun": lambda m, n: 1 / m}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight_init", [name for name in WEIGHT_INITS if name != "auto"])
def test_moments_and_shape_of_the_distribution(weight_init, dtype):
    coefs, intercepts = scaled_parameters(weight_init, UNITS, np.random.RandomState(0), dtype)
    name, shape = weight_init.split("_")
    assert not any(intercept.any() for intercept in intercepts)
    for coef, intercept, m, n in zip(coefs, intercepts, UNITS[:-1], UNITS[1:], strict=True):
        assert coef.dtype == intercept.dtype == dtype and coef.shape == (m, n) and intercept.shape == (n,)
        deviation, expected = coef.std(dtype=np.float64), np.sqrt(VARIANCES[name](m, n))
        np.testing.assert_allclose(deviation, expected, rtol=4 / np.sqrt(2 * m * n))
        assert abs(coef.mean(dtype=np.float64)) < 5 * expected / np.sqrt(m * n)
        largest = np.abs(coef).max() / expected
        assert largest <= np.sqrt(3) * (1 + 1e-6) if shape == "uniform" else largest > np.sqrt(3)


@pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
@pytest.mark.parametrize("weight_init", WEIGHT_INITS)
def test_training_begins_with_them(estimator, weight_init):
    rng = np.random.RandomState(0)
    X, y = rng.randn(50, 6), rng.randint(0, 2, 50)
    model = estimator(hidden_layer_sizes=(9,), weight_init=weight_init, dtype="float64", random_state=3)
    begun = model.initialize(6, [0, 1]) if estimator is BackpropClassifier else model.initialize(6)
    start = [part.copy() for part in (*begun.coefs_, *begun.intercepts_)]
    if weight_init != "auto":
        coefs, intercepts = scaled_parameters(weight_init, [6, 9, 1], np.random.RandomState(3), np.float64)
        for a, b in zip(start, [*coefs, *intercepts], strict=True):
            np.testing.assert_array_equal(a, b)
    model.set_params(solver="sgd", learning_rate_init=1e-100, max_iter=1, n_iter_no_change=np.inf)
    with pytest.warns(Warning, match="Maximum iterations"):
        model.fit(X, y)
    for a, b in zip(start, [*model.coefs_, *model.intercepts_], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-90)
