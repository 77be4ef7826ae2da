import subprocess
import sys
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
import reference
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import BaggingClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.activations import ACTIVATIONS, Logistic, Threshold
from fastbp.inspection import (
    flatten,
    gradient_flow,
    gradient_terms,
    loss_and_gradient,
    loss_plane,
    loss_slice,
    mean_loss,
)

rng = np.random.default_rng(0)
X = rng.normal(size=(40, 5))
LABELS = {"two": rng.integers(0, 2, 40), "three": rng.integers(0, 3, 40), "several": rng.integers(0, 2, (40, 3))}


def make(hidden=(7, 4), kind="three", *, activation="tanh", fit=True, **kwargs):
    y = LABELS[kind]
    clf = BackpropClassifier(hidden, activation, random_state=0, max_iter=3, alpha=0.1, dtype="float64", **kwargs)
    with pytest.warns(UserWarning):  # it has not converged
        clf.fit(X, y)
    return clf, y


def naive(clf, y, weight=None):
    Y = clf._binarizer.transform(y)
    pairs = [(f.name, asdict(f)) for f in clf._activations]
    value, coefs, intercepts = reference.backprop_naive(
        clf.coefs_, clf.intercepts_, pairs, clf.loss, X, Y, clf.alpha, weight
    )
    return value, flatten(coefs, intercepts)


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_loss_and_gradient(loss, kind):
    clf, y = make(kind=kind, loss=loss)
    before = flatten(clf.coefs_, clf.intercepts_)
    for weight in (None, rng.uniform(0, 2, 40)):
        value, gradient = loss_and_gradient(clf, X, y, weight)
        expected, expected_gradient = naive(clf, y, weight)
        assert value == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-14)
    assert (flatten(clf.coefs_, clf.intercepts_) == before).all()


def test_order_of_the_gradient():
    clf, y = make(hidden=(2,), kind="two")
    _, gradient = loss_and_gradient(clf, X, y)
    assert gradient.shape == (5 * 2 + 2 + 2 * 1 + 1,)
    # A small change of each parameter in that order changes the loss by as much.
    h = 1e-6
    parts = [part for pair in zip(clf.coefs_, clf.intercepts_, strict=True) for part in pair]
    places = [(part, index) for part in parts for index in np.ndindex(part.shape)]
    for (part, index), slope in zip(places, gradient, strict=True):
        before = part[index]
        part[index] = before + h
        above, _ = loss_and_gradient(clf, X, y)
        part[index] = before - h
        below, _ = loss_and_gradient(clf, X, y)
        part[index] = before
        assert (above - below) / (2 * h) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_gradient_is_what_training_steps_by():
    clf, y = make(solver="sgd", momentum=0.0, shuffle=False, batch_size=40, learning_rate_init=0.25)
    _, gradient = loss_and_gradient(clf, X, y)
    before = flatten(clf.coefs_, clf.intercepts_)
    clf.partial_fit(X, y)
    np.testing.assert_array_equal(flatten(clf.coefs_, clf.intercepts_), before - 0.25 * gradient)


def test_gradient_of_many_samples():
    """A batch of more samples than fit into the workspace, which is processed in chunks."""
    clf, _ = make(hidden=(300, 200), kind="two", activation="relu")
    many = np.random.default_rng(1).normal(size=(20_000, 5))
    labels = (many[:, 0] > 0).astype(int)
    clf.alpha = 0.0
    value, gradient = loss_and_gradient(clf, many, labels)
    parts = [loss_and_gradient(clf, many[part], labels[part]) for part in (slice(0, 10_000), slice(10_000, None))]
    assert value == pytest.approx((parts[0][0] + parts[1][0]) / 2, rel=1e-12)
    np.testing.assert_allclose(gradient, (parts[0][1] + parts[1][1]) / 2, rtol=1e-9, atol=1e-15)


TORCH = {
    "identity": "Identity", "logistic": "Sigmoid", "tanh": "Tanh", "relu": "ReLU", "leaky_relu": "LeakyReLU",
    "elu": "ELU", "selu": "SELU", "gelu": "GELU", "silu": "SiLU",
}  # fmt: skip


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
@pytest.mark.parametrize("name", TORCH)
def test_gradient_is_that_of_autograd(name, loss):
    torch = pytest.importorskip("torch")
    for kind in LABELS:
        clf, y = make(hidden=(7, 4, 6), kind=kind, activation=name, loss=loss)
        value, gradient = loss_and_gradient(clf, X, y)
        pairs = zip(clf.coefs_, clf.intercepts_, strict=True)
        params = [torch.tensor(part, requires_grad=True) for pair in pairs for part in pair]
        a = torch.tensor(X)
        for k in range(0, len(params), 2):
            z = a @ params[k] + params[k + 1]
            a = getattr(torch.nn, TORCH[name])()(z) if k < len(params) - 2 else z
        Y = torch.tensor(clf._binarizer.transform(y), dtype=torch.float64)
        if loss == "squared_error":
            cost = 0.5 * ((Y - torch.sigmoid(a)) ** 2).sum() / len(Y)
        elif kind == "three":
            cost = -(Y * torch.log_softmax(a, dim=1)).sum() / len(Y)
        else:
            cost = torch.nn.functional.binary_cross_entropy_with_logits(a, Y, reduction="sum") / len(Y)
        cost = cost + clf.alpha / 2 * sum((W**2).sum() for W in params[::2]) / len(Y)
        cost.backward()
        expected = np.concatenate([p.grad.numpy().ravel() for p in params])
        assert value == pytest.approx(cost.item(), rel=1e-12)
        np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


# --- the factors of the chain rule ---


@pytest.mark.parametrize("activation", [*ACTIVATIONS.values(), Threshold("logistic")], ids=repr)
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_product_of_the_terms_is_the_gradient(loss, kind, activation):
    clf = BackpropClassifier((7, 4, 6), activation, loss=loss, alpha=0.1, dtype="float64", random_state=0)
    y = LABELS[kind]
    if kind == "several":
        clf = make((7, 4, 6), kind, activation="tanh", loss=loss)[0].set_params(activation=activation)
        clf._activations = [activation] * 3 + clf._activations[3:]
    else:
        clf.initialize(5, np.unique(y))
    terms = gradient_terms(clf, X, y)
    below = X
    for k, term in enumerate(terms):
        np.testing.assert_array_equal(term.d_node_input_d_weight, below)
        np.testing.assert_allclose(term.node_input, below @ clf.coefs_[k] + clf.intercepts_[k], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(term.activation, clf._activations[k](term.node_input), rtol=1e-14, atol=1e-15)
        delta = term.delta
        if "d_loss_d_activation" in term:
            product = term.d_loss_d_activation * term.d_activation_d_node_input
            np.testing.assert_allclose(delta, product, rtol=1e-14, atol=1e-300)
        if "error" in term:  # Maren's four factors, 6.17, 6.21, 6.23 and 6.27
            assert (term.d_error_d_activation == -1).all()
            np.testing.assert_array_equal(term.d_loss_d_error, clf._binarizer.transform(y) - term.activation)
            delta = term.d_loss_d_error * term.d_error_d_activation * term.d_activation_d_node_input
        # Equal up to rounding in float64: sums of 40 products, in another order.
        product = term.d_node_input_d_weight.T @ delta
        expected = (product + clf.alpha * clf.coefs_[k]) / 40
        scale = (np.abs(term.d_node_input_d_weight).T @ np.abs(delta)).max() / 40 + np.abs(expected).max()
        np.testing.assert_allclose(term.gradient, expected, rtol=0, atol=50 * np.finfo(float).eps * scale)
        np.testing.assert_allclose(term.intercept_gradient, delta.mean(axis=0), rtol=1e-12, atol=1e-16)
        np.testing.assert_allclose(term.d_loss_d_input, delta @ clf.coefs_[k].T, rtol=1e-12, atol=1e-15)
        if k:
            np.testing.assert_array_equal(term.d_loss_d_input, terms[k - 1].d_loss_d_activation)
        below = term.activation
    assert ("error" in terms[-1]) == (loss == "squared_error")
    # The gradient is that of training, bit for bit.
    _, gradient = loss_and_gradient(clf, X, y)
    whole = flatten([term.gradient for term in terms], [term.intercept_gradient for term in terms])
    np.testing.assert_array_equal(whole, gradient)


def test_gradient_by_the_inputs():
    clf, y = make(activation="silu", loss="squared_error")
    found = gradient_terms(clf, X, y)[0].d_loss_d_input
    h = 1e-6
    for i, j in [(0, 0), (3, 4), (39, 2)]:
        ends = []
        for step in (h, -h):
            moved = X.copy()
            moved[i, j] += step
            ends.append(loss_and_gradient(clf, moved, y)[0] * len(X))
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(found[i, j], rel=1e-6, abs=1e-8)


# --- saturation, slices, planes ---


def test_gradient_flow_of_a_deep_logistic_network():
    clf = BackpropClassifier((10,) * 5, "logistic", dtype="float64", random_state=0).initialize(5, [0, 1, 2])
    y = LABELS["three"]
    flow = gradient_flow(clf, X, y)
    terms = gradient_terms(clf, X, y)
    np.testing.assert_allclose(flow.delta, [np.abs(term.delta).mean() for term in terms], rtol=1e-12)
    np.testing.assert_allclose(flow.gradient_norm, [np.linalg.norm(term.gradient) for term in terms], rtol=1e-12)
    np.testing.assert_allclose(flow.ratio_to_last, flow.delta / flow.delta[-1])
    # The gradient shrinks in each layer.
    assert (np.diff(flow.delta) > 0).all() and flow.ratio_to_last[0] < 1e-2
    assert (flow.saturated[:-1] == 0).all() and np.isnan(flow.saturated[-1])
    clf.coefs_[0] *= 1000
    assert gradient_flow(clf, X, y).saturated[0] > 0.9


def test_steep_units_saturate():
    y = LABELS["two"]
    shares = []
    for slope in (0.5, 5.0, 50.0):
        clf = BackpropClassifier((50,), Logistic(slope), random_state=0).initialize(5, [0, 1])
        shares.append(gradient_flow(clf, X, y).saturated[0])
    assert shares[0] < shares[1] < shares[2]


@pytest.mark.parametrize(("layer", "i", "j"), [(0, 1, 2), (-1, 3, 0), (1, None, 1)])
def test_loss_slice(layer, i, j):
    clf, y = make(loss="squared_error")
    array, place = (clf.intercepts_[layer], (j,)) if i is None else (clf.coefs_[layer], (i, j))
    before = array[place]
    values = np.linspace(-2, 2, 9)
    found = loss_slice(clf, X, y, layer, i, j, values)
    assert array[place] == before == found.weight
    np.testing.assert_array_equal(found.weights, values)
    assert found.loss == loss_and_gradient(clf, X, y)[0]
    for value, loss in zip(values, found.losses, strict=True):
        array[place] = value
        assert loss == loss_and_gradient(clf, X, y)[0]
    h = 1e-6
    ends = []
    for step in (h, -h):
        array[place] = before + step
        ends.append(loss_and_gradient(clf, X, y)[0])
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(found.derivative, rel=1e-5)


def test_loss_plane():
    clf, y = make(activation="tanh")
    coefs, intercepts = ([np.zeros_like(part) for part in parts] for parts in (clf.coefs_, clf.intercepts_))
    other = [part.copy() for part in coefs]
    coefs[0][1, 2] = other[2][3, 1] = 1
    plane = loss_plane(clf, X, y, [(coefs, intercepts), (other, intercepts)], [-1, 0, 1], [0, 2], n_steps=30, rate=0.5)
    assert plane.losses.shape == (2, 3) and plane.path.shape == (31, 2)
    assert plane.losses[0, 1] == loss_and_gradient(clf, X, y)[0]
    assert plane.losses[0, 2] == loss_slice(clf, X, y, 0, 1, 2, [clf.coefs_[0][1, 2] + 1]).losses[0]
    assert plane.losses[1, 1] == loss_slice(clf, X, y, 2, 3, 1, [clf.coefs_[2][3, 1] + 2]).losses[0]
    np.testing.assert_array_equal(plane.path[0], [-1, 0])
    assert (np.diff(plane.path_losses) < 0).all()


# --- regressors ---

REGRESSION = {
    "squared_error": {}, "poisson": {}, "absolute_error": {}, "huber": {"delta": 0.5}, "quantile": {"quantile": 0.3},
    "levels": {"loss": "quantile", "quantile": [0.2, 0.5, 0.9]}, "tanh": {"loss": "huber", "output_activation": "tanh"},
}  # fmt: skip


def make_regressor(name, n_outputs):
    """Return a regressor with random weights, targets, and the derivatives dC/da of the naive twin."""
    options = {"loss": name, **REGRESSION[name]}
    reg = BackpropRegressor(
        hidden_layer_sizes=(7, 4), activation="tanh", random_state=0, alpha=0.1, dtype="float64", **options
    )
    y = np.random.default_rng(2).poisson(1.5, (40, n_outputs)).astype(float)
    y = y[:, 0] if n_outputs == 1 else y
    reg.initialize(5, n_outputs)
    parameter = np.array(options.get("delta", options.get("quantile", 1.0)))
    return reg, y, lambda a: reference.SLOPES[reg.loss](y.reshape(40, -1), a, parameter)


CASES = [(name, n) for name in REGRESSION for n in (1, 3) if (name, n) != ("levels", 3)]


@pytest.mark.parametrize(("name", "n_outputs"), CASES)
def test_terms_of_a_regressor(name, n_outputs):
    reg, y, slope = make_regressor(name, n_outputs)
    terms = gradient_terms(reg, X, y)
    below = X
    for k, term in enumerate(terms):
        np.testing.assert_array_equal(term.d_node_input_d_weight, below)
        np.testing.assert_allclose(term.node_input, below @ reg.coefs_[k] + reg.intercepts_[k], rtol=1e-12, atol=1e-14)
        if "d_loss_d_activation" in term:
            product = term.d_loss_d_activation * term.d_activation_d_node_input
            np.testing.assert_allclose(term.delta, product, rtol=1e-14, atol=1e-300)
        expected = (below.T @ term.delta + reg.alpha * reg.coefs_[k]) / 40
        np.testing.assert_allclose(term.gradient, expected, rtol=1e-10, atol=1e-14)
        below = term.activation
    last = terms[-1]
    assert ("error" in last) == (name == "squared_error")
    if name == "poisson":  # the two factors cancel
        assert "d_loss_d_activation" not in last
        np.testing.assert_allclose(last.delta, last.activation - y.reshape(40, -1), rtol=1e-13, atol=1e-14)
    else:
        np.testing.assert_allclose(last.d_loss_d_activation, slope(last.activation), rtol=1e-13)
    whole = flatten([term.gradient for term in terms], [term.intercept_gradient for term in terms])
    np.testing.assert_array_equal(whole, loss_and_gradient(reg, X, y)[1])


@pytest.mark.parametrize(("name", "n_outputs"), CASES)
def test_flow_and_slices_of_a_regressor(name, n_outputs):
    reg, y, _ = make_regressor(name, n_outputs)
    flow = gradient_flow(reg, X, y)
    np.testing.assert_allclose(flow.delta, [np.abs(term.delta).mean() for term in gradient_terms(reg, X, y)])
    assert np.isnan(flow.saturated[-1]) == (name == "poisson") and np.isfinite(flow.saturated[:-1]).all()
    for place in ((-1, 1, 0), (0, 2, 3), (-1, None, 0)):
        found = loss_slice(reg, X, y, *place, [0.3])
        assert found.loss == loss_and_gradient(reg, X, y)[0]
        h = 1e-6
        ends = loss_slice(reg, X, y, *place, [found.weight + h, found.weight - h]).losses
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(found.derivative, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("make_estimator", [
    lambda: make_regressor("huber", 3)[:2], lambda: make_regressor("squared_error", 1)[:2], make,
], ids=["outputs", "regressor", "classifier"])  # fmt: skip
def test_sparse_input(make_estimator):
    estimator, y = make_estimator()
    dense = X * (np.random.default_rng(3).random(X.shape) < 0.4)
    sparse = csr_array(dense)
    value, gradient = loss_and_gradient(estimator, dense, y)
    found, sparse_gradient = loss_and_gradient(estimator, sparse, y)
    assert found == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(sparse_gradient, gradient, rtol=1e-10, atol=1e-14)
    for one, other in zip(gradient_terms(estimator, dense, y), gradient_terms(estimator, sparse, y), strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_allclose(other[key], one[key], rtol=1e-10, atol=1e-13, err_msg=key)
    np.testing.assert_allclose(gradient_flow(estimator, sparse, y).delta, gradient_flow(estimator, dense, y).delta)
    slices = [loss_slice(estimator, data, y, 0, 1, 2, [-1, 1]).losses for data in (dense, sparse)]
    np.testing.assert_allclose(*slices, rtol=1e-12)


# --- what is refused ---


def test_indices_out_of_range():
    clf, y = make()
    for place in [(3, 0, 0), (-4, 0, 0)]:
        with pytest.raises(ValueError, match=f"layer={place[0]} is out of range: the network has 3 layers"):
            loss_slice(clf, X, y, *place, [0])
    for place in [(0, 5, 0), (0, 0, 7), (0, None, 7)]:
        with pytest.raises(
            ValueError, match=f"i={place[1]}, j={place[2]} is out of range: layer 0 has 5 inputs and 7 units"
        ):
            loss_slice(clf, X, y, *place, [0])
    with pytest.raises(TypeError, match="j must be an instance of int"):
        loss_slice(clf, X, y, 0, 0, 1.5, [0])


@pytest.mark.parametrize("function", [loss_and_gradient, gradient_terms, gradient_flow])
def test_not_fitted(function):
    with pytest.raises(NotFittedError):
        function(BackpropClassifier(), X, LABELS["two"])


def refusal(clf):
    found = set()
    for function in (loss_and_gradient, gradient_terms, gradient_flow, mean_loss):
        with pytest.raises(TypeError) as caught:
            function(clf, X, LABELS["three"])
        found.add(str(caught.value))
    (message,) = found
    return message


def test_refused_pipelines_name_their_parts():
    clf, y = make()
    pipe = make_pipeline(StandardScaler(), clf)
    assert refusal(pipe) == (
        "Expected a BackpropClassifier or BackpropRegressor, got Pipeline. Pass the last step, pipe[-1], and the "
        "transformed data, pipe[:-1].transform(X)."
    )
    pipe[:1].fit(X)
    loss_and_gradient(pipe[-1], pipe[:-1].transform(X), y)  # the advice works


@pytest.mark.parametrize("search", [
    GridSearchCV(BackpropClassifier((3,), max_iter=1), {"alpha": [0.1]}, cv=2),
    RandomizedSearchCV(BackpropClassifier((3,), max_iter=1), {"alpha": [0.1]}, n_iter=1, cv=2),
], ids=lambda search: type(search).__name__)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_refused_searches_name_their_best_estimator(search):
    advice = "Pass the best estimator, search.best_estimator_, which is available after fit with refit=True."
    expected = f"Expected a BackpropClassifier or BackpropRegressor, got {type(search).__name__}. {advice}"
    assert refusal(search) == expected
    search = clone(search).fit(X, LABELS["three"])
    assert refusal(search) == expected
    loss_and_gradient(search.best_estimator_, X, LABELS["three"])


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_refused_searches_over_pipelines_name_the_parts_of_the_best_pipeline():
    pipe = make_pipeline(StandardScaler(), BackpropClassifier((3,), max_iter=1))
    search = GridSearchCV(pipe, {"backpropclassifier__alpha": [0.1]}, cv=2).fit(X, LABELS["three"])
    assert refusal(search) == (
        "Expected a BackpropClassifier or BackpropRegressor, got GridSearchCV. Pass the last step of the best "
        "pipeline, search.best_estimator_[-1], and the data search.best_estimator_[:-1].transform(X)."
    )
    loss_and_gradient(search.best_estimator_[-1], search.best_estimator_[:-1].transform(X), LABELS["three"])


def test_refused_meta_estimators():
    clf = BackpropClassifier()
    for meta in (OneVsRestClassifier(clf), VotingClassifier([("net", clf)]), BaggingClassifier(clf)):
        expected = f"Expected a BackpropClassifier or BackpropRegressor, got {type(meta).__name__}."
        assert refusal(meta) == f"{expected} Pass one of the fitted BackpropClassifiers in it."
    meta = TransformedTargetRegressor(BackpropRegressor())
    expected = "Expected a BackpropClassifier or BackpropRegressor, got TransformedTargetRegressor."
    assert refusal(meta) == f"{expected} Pass one of the fitted BackpropRegressors in it."


def test_refused_objects_of_other_kinds():
    # They contain no network: there is no advice to give.
    for other in (MLPClassifier(), BaggingClassifier(), OneVsRestClassifier(MLPClassifier()), None, "pipe", X):
        assert refusal(other) == f"Expected a BackpropClassifier or BackpropRegressor, got {type(other).__name__}."
    assert refusal(BackpropClassifier) == "BackpropClassifier is a class, not an instance."


def test_checking_a_network_imports_nothing():
    code = "import sys; from fastbp import inspection; print('sklearn.model_selection' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_data_is_checked():
    clf, y = make()
    with pytest.raises(ValueError, match="features"):
        loss_and_gradient(clf, X[:, :3], y)
    with pytest.raises(ValueError, match="NaN"):
        loss_and_gradient(clf, np.full_like(X, np.nan), y)


def test_weights_that_do_not_fit_together():
    clf, y = make(kind="two")
    wrong = [np.zeros((3, 7)), *clf.coefs_[1:]]
    clf.coefs_ = wrong
    for function in (loss_and_gradient, gradient_terms, gradient_flow):
        with pytest.raises(ValueError, match=r"coefs_\[0\] must have the shape \(5, n_units\)"):
            function(clf, X, y)
    clf, y = make(kind="two")
    clf.coefs_[-1], clf.intercepts_[-1] = np.zeros((4, 3)), np.zeros(3)
    with pytest.raises(ValueError, match=r"coefs_\[-1\] has 3 units for 1 outputs"):
        loss_and_gradient(clf, X, y)
    clf, y = make()
    directions = [([np.zeros(3)] * 3, clf.intercepts_), (clf.coefs_, clf.intercepts_)]
    with pytest.raises(ValueError, match="of the shapes of coefs_ and intercepts_"):
        loss_plane(clf, X, y, directions, [0], [0])


def test_unknown_labels():
    clf, _ = make()
    with pytest.raises(ValueError, match="classes not in"):
        loss_and_gradient(clf, X, np.full(40, 3))
    several, _ = make(kind="several")
    with pytest.raises(ValueError, match="classes not in"):
        loss_and_gradient(several, X, LABELS["two"])


def test_terms_are_the_users_own():
    clf, y = make()
    before = X.copy()
    first = gradient_terms(clf, X, y)[0]
    first.d_node_input_d_weight *= 2
    assert (before == X).all()


def test_mean_loss_has_no_penalty():
    clf, y = make()
    assert mean_loss(clf, X, y) == loss_and_gradient(clf.set_params(alpha=0.0), X, y)[0]


# --- initialize ---


def test_initialize_is_where_fit_begins():
    y = LABELS["three"]
    kwargs = {"random_state": 3, "shuffle": False, "solver": "sgd", "dtype": "float64", "batch_size": 40}
    begun = BackpropClassifier((7,), max_iter=1, learning_rate_init=1e-300, **kwargs)
    with pytest.warns(UserWarning):
        begun.fit(X, y)
    clf = BackpropClassifier((7,), **kwargs).initialize(5, [0, 1, 2])
    for a, b in zip(begun.coefs_ + begun.intercepts_, clf.coefs_ + clf.intercepts_, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (clf.n_iter_, clf.t_, clf.loss_curve_) == (0, 0, [])
    assert clf.predict(X).shape == (40,)
    # partial_fit continues from there.
    clf.partial_fit(X, y)
    assert clf.t_ == 40 and not hasattr(clf, "feature_names_in_")


def test_initialize_takes_the_names_of_the_first_training():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcde"))
    clf = BackpropClassifier((7,), random_state=0).initialize(5, [0, 1, 2]).partial_fit(frame, LABELS["three"])
    assert list(clf.feature_names_in_) == list("abcde")
    clf.partial_fit(frame, LABELS["three"]).predict(frame)


def test_initialize_again_forgets():
    clf, _ = make()
    clf.initialize(2, ["a", "b"])
    assert clf.coefs_[0].shape == (2, 7) and list(clf.classes_) == ["a", "b"] and not hasattr(clf, "loss_")


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"n_features": 0, "classes": [0, 1]}, "n_features == 0, must be >= 1"),
    ({"n_features": 2, "classes": []}, "classes must be an array"),
])  # fmt: skip
def test_initialize_refuses(kwargs, message):
    clf, _ = make()
    before = clf.__dict__.copy()
    with pytest.raises(ValueError, match=message):
        clf.initialize(**kwargs)
    assert clf.__dict__ == before


def test_perceptrons_compute_xor():
    """Threshold units with weights set by hand: one is OR, one AND, and the output is one without the other."""
    clf = BackpropClassifier((2,), "threshold", loss="squared_error", output_activation="threshold", dtype="float64")
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    clf.initialize(2, [0, 1])
    clf.coefs_ = [np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([[1.0], [-1.0]])]
    clf.intercepts_ = [np.array([-0.5, -1.5]), np.array([-0.5])]
    assert clf.predict(corners).tolist() == [0, 1, 1, 0]
    assert clf.predict(corners[[1]]).tolist() == [1]
    # The derivative of a threshold is 0, except at 0 where it has none: the network cannot learn.
    assert not loss_and_gradient(clf.set_params(alpha=0.0), corners, [0, 0, 0, 0])[1].any()
    before = [part.copy() for part in clf.coefs_]
    for train in (clf.fit, clf.partial_fit):
        with pytest.raises(ValueError, match=r'cannot learn by backpropagation.*Threshold\(surrogate="logistic"\)'):
            train(corners, [0, 1, 1, 0])
    assert all((a == b).all() for a, b in zip(before, clf.coefs_, strict=True))


@pytest.mark.parametrize("surrogate", ["logistic", "tanh"])
def test_thresholds_learn_xor_with_a_surrogate(surrogate):
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 8, dtype=np.float64)
    labels = (corners.sum(axis=1) == 1).astype(int)
    found = []
    for seed in range(5):
        clf = BackpropClassifier(
            (16,), Threshold(surrogate), max_iter=300, learning_rate_init=0.02, random_state=seed, n_iter_no_change=300,
            tol=0.0,
        )  # fmt: skip
        with pytest.warns(UserWarning):
            found.append(clf.fit(corners, labels).score(corners, labels))
    assert max(found) == 1.0


def test_every_activation_trains_and_predicts():
    """A single row has a kernel of its own, whose outputs must agree with those for many rows."""
    y = LABELS["three"]
    for name, dtype in product(ACTIVATIONS, ["float32", "float64"]):
        activation = Threshold("logistic") if name == "threshold" else name
        clf = BackpropClassifier((9, 6), activation, max_iter=2, random_state=0, dtype=dtype)
        with pytest.warns(UserWarning):
            clf.fit(X, y)
        together = clf.predict_proba(X)
        alone = np.vstack([clf.predict_proba(row[None].astype(dtype)) for row in X])
        np.testing.assert_allclose(together, alone, rtol=1e-5 if dtype == "float32" else 1e-13)
    mixed = BackpropClassifier((9, 6), ["gelu", Logistic(2.0)], max_iter=2, random_state=0)
    with pytest.warns(UserWarning):
        mixed.fit(X, y)
    assert [f.name for f in mixed._activations] == ["gelu", "logistic", "softmax"]
