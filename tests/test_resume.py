"""k calls of `partial_fit` are one `fit` of k epochs, bit for bit."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.sparse import csr_array, random
from sklearn.base import clone

from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.kernels.session import PackedParts
from fastbp.progress import Curve

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.RandomState(0)
X = RNG.randn(130, 12)
Y = {
    BackpropClassifier: (X[:, 0] + 0.3 * RNG.randn(130) > 0) + (X[:, 1] > 0).astype(int),
    BackpropRegressor: X @ RNG.randn(12, 2),
}
# So many units that the memory of the optimizer stays packed; of fewer there is more padding.
OPTIONS = dict(hidden_layer_sizes=(48,), batch_size=40, max_iter=6, tol=0.0, n_iter_no_change=np.inf)


def first_call(model, y):
    return {"classes": np.unique(y)} if isinstance(model, BackpropClassifier) else {}


def assert_same_weights(one, other, atol=0.0):
    for a, b in zip([*one.coefs_, *one.intercepts_], [*other.coefs_, *other.intercepts_], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def assert_same(one, other):
    assert_same_weights(one, other)
    assert one.loss_curve_ == other.loss_curve_ and one.lr_curve_ == other.lr_curve_
    assert (one.t_, one.best_loss_, one.loss_) == (other.t_, other.best_loss_, other.loss_)
    for mine, theirs in zip(one._optimizer["parts"], other._optimizer["parts"], strict=True):
        for a, b in zip([*mine[0], *mine[1]], [*theirs[0], *theirs[1]], strict=True):
            np.testing.assert_array_equal(a, b)


KINDS = {
    "adam": {},
    "float32": {"dtype": "float32"},
    "online": {"batch_size": 1, "hidden_layer_sizes": (4,)},
    "no shuffling": {"shuffle": False},
    "momentum": {"solver": "sgd", "momentum": 0.8, "nesterovs_momentum": False},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.05},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 0.1},
    "cosine": {"learning_rate": "cosine"},
    "one cycle": {"learning_rate": "one_cycle", "solver": "sgd"},
}


@pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
@pytest.mark.parametrize("seed", [3, "RandomState"])
@pytest.mark.parametrize("kind", KINDS)
def test_single_epochs_are_one_fit(kind, seed, estimator):
    y = Y[estimator]
    model = estimator(**OPTIONS | {"learning_rate_init": 0.01} | KINDS[kind])

    def new():
        return clone(model).set_params(random_state=seed if seed == 3 else np.random.RandomState(3))

    whole = new().fit(X, y)
    parts = new()
    for _ in range(6):
        parts.partial_fit(X, y, **first_call(model, y))
    assert_same(parts, whole)
    assert whole.n_iter_ == 6 and parts.n_iter_ == 1


@pytest.mark.parametrize("alpha", [0.0, 1e-3])
@pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
def test_with_sparse_rows_and_weights(estimator, alpha):
    y, weight = Y[estimator], RNG.rand(130)
    rows = csr_array(random(130, 300, density=0.05, random_state=0))
    whole = estimator(**OPTIONS, alpha=alpha, random_state=0).fit(rows, y, sample_weight=weight)
    parts = estimator(**OPTIONS, alpha=alpha, random_state=0)
    for _ in range(6):
        parts.partial_fit(rows, y, sample_weight=weight, **first_call(parts, y))
    if alpha:
        assert_same(parts, whole)
    else:  # weights of absent features wait within a call only, and rounding depends on how long they wait
        assert_same_weights(parts, whole, atol=1e-11)


@pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
def test_a_saved_model_goes_on(estimator):
    y = Y[estimator]
    whole = estimator(**OPTIONS, random_state=0).fit(X, y)
    parts = estimator(**OPTIONS, random_state=0)
    for _ in range(6):
        parts = pickle.loads(pickle.dumps(parts.partial_fit(X, y, **first_call(parts, y))))
    assert_same(parts, whole)


@pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
def test_after_initialize(estimator):
    y = Y[estimator]
    model = estimator(**OPTIONS, random_state=0, dtype="float64")
    whole = clone(model).fit(X, y)
    model.initialize(12, np.unique(y)) if estimator is BackpropClassifier else model.initialize(12, 2)
    for _ in range(6):
        model.partial_fit(X, y)
    assert_same(model, whole)


def test_a_call_that_fails_draws_nothing():
    y = Y[BackpropRegressor]
    parts, whole = (BackpropRegressor(**OPTIONS, random_state=0) for _ in range(2))
    for i in range(6):
        if i:
            with pytest.raises(ValueError, match="non-finite"), np.errstate(all="ignore"):
                parts.partial_fit(X * 1e200, y)
        parts.partial_fit(X, y)
    assert_same(parts, whole.fit(X, y))


def test_where_the_number_of_samples_changes_the_order_begins_anew():
    """The generator goes on: parts of different sizes are as scikit-learn trains with a RandomState."""
    y = Y[BackpropRegressor]
    by_seed = BackpropRegressor(**OPTIONS, random_state=0)
    by_instance = BackpropRegressor(**OPTIONS, random_state=np.random.RandomState(0))
    for n in (100, 60, 130):
        by_seed.partial_fit(X[:n], y[:n]), by_instance.partial_fit(X[:n], y[:n])
        assert len(by_seed._shuffling.order) == n
    assert_same(by_seed, by_instance)


def test_another_seed_begins_anew():
    y = Y[BackpropRegressor]
    one = BackpropRegressor(**OPTIONS, random_state=0).partial_fit(X, y)
    other = pickle.loads(pickle.dumps(one))
    one.set_params(random_state=1).partial_fit(X, y)
    del other._shuffling
    assert_same(one, other.set_params(random_state=1).partial_fit(X, y))


def test_fit_keeps_no_order():
    """It would be larger than most networks."""
    y = Y[BackpropRegressor]
    model = BackpropRegressor(**OPTIONS, random_state=0)
    assert model.partial_fit(X, y)._shuffling.order.dtype.itemsize == 1
    assert not hasattr(model.fit(X, y), "_shuffling")


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_go_on_by_themselves(way):
    y = Y[BackpropRegressor]
    model = BackpropRegressor(**OPTIONS, random_state=0).partial_fit(X, y)
    other = COPIES[way](model)
    curves = model.loss_curve_, model.lr_curve_
    for _ in range(2):
        other.partial_fit(X, y)
    assert (model.loss_curve_, model.lr_curve_) == curves and len(other.loss_curve_) == 3
    assert_same(other, model.partial_fit(X, y).partial_fit(X, y))


def test_edited_curves_change_nothing():
    y = Y[BackpropRegressor]
    model = BackpropRegressor(**OPTIONS, random_state=0).partial_fit(X, y)
    model.loss_curve_.clear(), model.lr_curve_.append(None)
    assert len(model.partial_fit(X, y).loss_curve_) == len(model.lr_curve_) == 2
    pickle.loads(pickle.dumps(model))


def test_curves_fit_the_model_where_several_threads_train_it():
    y = Y[BackpropRegressor]
    model = BackpropRegressor(**OPTIONS, random_state=0).partial_fit(X, y)
    found = []

    def train(_):
        model.partial_fit(X, y)
        seen = copy.copy(model)
        found.append((len(seen.loss_curve_), len(seen.lr_curve_), seen.t_ / len(X)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(train, range(200)))
    assert len(found) == 200 and all(a == b == c for a, b, c in found)


def test_an_error_at_the_end_changes_no_curve():
    class Late(BackpropRegressor):
        def _keep_shuffling(self, random_state, order):
            if self.t_ > len(X):
                raise TimeoutError

    y = Y[BackpropRegressor]
    model = Late(**OPTIONS, random_state=0).partial_fit(X, y)
    before = pickle.dumps(model.__getstate__())
    for _ in range(2):
        with pytest.raises(TimeoutError):
            model.partial_fit(X, y)
        assert pickle.dumps(model.__getstate__()) == before


def test_a_curve_and_its_copies():
    one = Curve([1.0])
    other = one.copy()
    other.append(2.0)  # in the list of both
    assert (list(one), list(other), len(one), len(other)) == ([1.0], [1.0, 2.0], 1, 2)
    assert other._numbers is one._numbers
    one.append(3.0)
    third = one.copy()
    one.append(4.0), other.append(5.0), third.append(6.0)
    assert (list(one), list(other), list(third)) == ([1.0, 3.0, 4.0], [1.0, 2.0, 5.0], [1.0, 3.0, 6.0])


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("hidden", [(48,), (3, 2)])
def test_another_layout_goes_on_with_the_same_memory(solver, hidden):
    """Batches of one sample pack narrow layers in another way, and so does sparse input."""
    y = Y[BackpropRegressor]
    model = BackpropRegressor(hidden_layer_sizes=hidden, solver=solver, random_state=0, shuffle=False)
    other = clone(model)
    for batch_size, inputs in ((1, X), (40, X), (1, X), (40, csr_array(X)), (40, X)):
        model.set_params(batch_size=batch_size).partial_fit(inputs, y)
        other.set_params(batch_size=batch_size).partial_fit(inputs, y)
        other = pickle.loads(pickle.dumps(other))  # which has no layout
        assert_same(model, other)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("inputs", "hidden"), [(X, (48,)), (csr_array(X), ())])
def test_memory_of_another_type(inputs, hidden, dtype):
    """The network takes the type of edited weights, and the memory of the optimizer with it.

    Without hidden layers, and with 16 outputs, sparse inputs have the same layout in both types.
    """
    model = BackpropRegressor(hidden_layer_sizes=hidden, random_state=0).partial_fit(inputs, np.tile(X, 2)[:, :16])
    model.coefs_, model.intercepts_ = (
        [part.astype(dtype) for part in parts] for parts in (model.coefs_, model.intercepts_)
    )  # fmt: skip
    other = pickle.loads(pickle.dumps(model))
    for each in (model, other):
        each.partial_fit(inputs, np.tile(X, 2)[:, :16])
    assert_same(model, other)
    assert {part.dtype for coefs, _ in model._optimizer["parts"] for part in coefs} == {np.dtype(dtype)}


@pytest.mark.parametrize("outputs", [1, 3])
def test_memory_is_not_mostly_padding(outputs):
    """The weights of sparse input are padded to whole vectors: those of one output would be 16 times as large."""
    inputs = random(20, 5000, 0.01, "csr", random_state=0)
    model = BackpropRegressor(hidden_layer_sizes=(), max_iter=1, dtype="float32").fit(
        inputs, np.squeeze(RNG.randn(20, outputs))
    )
    parts = model._optimizer["parts"]
    arrays = parts.vectors if isinstance(parts, PackedParts) else [array for coefs, _ in parts for array in coefs]
    assert sum(array.nbytes for array in arrays) < 4.1 * model.coefs_[0].nbytes


def test_models_of_a_scorer_stay_as_they_were():
    """Each has the optimizer and the curves of its epoch, while training changes both."""
    seen = []

    def state_of(model):
        return pickle.dumps([model.__getstate__()["_optimizer"], model.coefs_, model.loss_curve_, model.lr_curve_])

    def score(model, X, y):
        seen.append((model, state_of(model)))
        return -len(seen)

    y = Y[BackpropRegressor]
    BackpropRegressor(**OPTIONS, early_stopping=True, scoring=score).fit(X, y)
    assert len(seen) == 6
    for index, (model, state) in enumerate(seen, 1):
        assert state_of(model) == state
        assert len(model.loss_curve_) == index and model._optimizer["steps"] == index * 3


def test_memory_is_packed_until_it_is_read():
    model = BackpropRegressor(**OPTIONS, random_state=0).partial_fit(X, Y[BackpropRegressor])
    parts = model._optimizer["parts"]
    assert isinstance(parts, PackedParts)
    other = pickle.loads(pickle.dumps(model))._optimizer["parts"]
    assert isinstance(other, list) and len(other) == len(list(parts)) == 2
