"""The estimators inside those of scikit-learn; wherever the result is determined it is that of scikit-learn's MLP."""

import warnings

import numpy as np
import pytest
import sklearn
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    BaggingRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import RFECV, SequentialFeatureSelector
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_validate,
    learning_curve,
    validation_curve,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier, MultiOutputRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastbp import BackpropClassifier, BackpropRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:.*batch_size")

OPTIONS = dict(hidden_layer_sizes=(6,), max_iter=8, batch_size=30, learning_rate_init=0.02, random_state=0)


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return (X - X.mean(axis=0)) / X.std(axis=0), y


@pytest.fixture(scope="module")
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X[:120] * 20, (y[:120] - y.mean()) / y.std()


def labels_of(y):
    return np.stack([y == 0, y > 0], axis=1).astype(int)


def both(make, classifier=True):
    """What `make` returns for our estimator, and for scikit-learn's."""
    pair = (BackpropClassifier, MLPClassifier) if classifier else (BackpropRegressor, MLPRegressor)
    return [make(cls(**OPTIONS)) for cls in pair]


CLASSIFIERS = {
    "calibrated": lambda clf: CalibratedClassifierCV(clf, cv=3),
    "calibrated, isotonic": lambda clf: CalibratedClassifierCV(clf, cv=3, method="isotonic"),
    "voting": lambda clf: VotingClassifier([("mlp", clf), ("linear", LogisticRegression())], voting="soft"),
    "stacking": lambda clf: StackingClassifier([("mlp", clf)], LogisticRegression(), cv=3),
    "bagging": lambda clf: BaggingClassifier(clf, 3, max_features=3, random_state=0),
    "boosting": lambda clf: AdaBoostClassifier(clf, n_estimators=3, random_state=0),
    "one against all": OneVsRestClassifier,
    "one against one": OneVsOneClassifier,
    "pipeline": lambda clf: make_pipeline(StandardScaler(), clf),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name, iris):
    X, y = iris
    ours, theirs = [model.fit(X, y) for model in both(CLASSIFIERS[name])]
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    if hasattr(theirs, "predict_proba"):
        np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-5, atol=1e-8)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    assert set(CLASSIFIERS[name](BackpropClassifier(**OPTIONS)).fit(X, names).predict(X)) <= set(names)


@pytest.mark.parametrize("make", [MultiOutputClassifier, ClassifierChain, lambda clf: clf])
def test_several_labels(make, iris):
    X, y = iris
    ours, theirs = [model.fit(X, labels_of(y)) for model in both(make)]
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


REGRESSORS = {
    "transformed target": lambda reg: TransformedTargetRegressor(reg, transformer=StandardScaler()),
    "voting": lambda reg: VotingRegressor([("mlp", reg), ("linear", RidgeCV())]),
    "stacking": lambda reg: StackingRegressor([("mlp", reg)], RidgeCV(), cv=3),
    "bagging": lambda reg: BaggingRegressor(reg, 3, random_state=0),
    "pipeline": lambda reg: make_pipeline(StandardScaler(), reg),
}


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors(name, diabetes):
    X, y = diabetes
    ours, theirs = [model.fit(X, y) for model in both(REGRESSORS[name], classifier=False)]
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-5, atol=1e-8)


def test_several_targets(diabetes):
    X, y = diabetes
    Y = np.stack([y, X[:, 0]], axis=1)
    ours, theirs = [model.fit(X, Y) for model in both(MultiOutputRegressor, classifier=False)]
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-5, atol=1e-8)


GRID = {"solver": ["lbfgs", "sgd", "adam"], "activation": ["tanh", "relu"], "early_stopping": [False, True]}
SEARCHES = {
    "grid": lambda model: GridSearchCV(model, GRID, cv=3),
    "random": lambda model: RandomizedSearchCV(model, GRID, n_iter=5, cv=3, random_state=0),
    "halving": lambda model: HalvingGridSearchCV(model, GRID, cv=3, random_state=0, min_resources=60),
}


@pytest.mark.parametrize("classifier", [True, False], ids=["classifier", "regressor"])
@pytest.mark.parametrize("name", SEARCHES)
def test_searches(name, classifier, iris, diabetes):
    X, y = iris if classifier else diabetes
    found = []
    for search in both(SEARCHES[name], classifier):
        search.set_params(error_score="raise").fit(X, y)
        found.append(search.cv_results_["mean_test_score"])
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def test_selection_of_features(iris):
    X, y = iris
    ours, theirs = both(lambda clf: SequentialFeatureSelector(clf, n_features_to_select=2, cv=2).fit(X, y))
    np.testing.assert_array_equal(ours.get_support(), theirs.get_support())
    for clf in both(lambda clf: clf):  # neither has one coefficient for each feature
        with pytest.raises(ValueError, match="importance_getter"):
            RFECV(clf).fit(X, y)
    # With a function that makes them of the first layer it works.
    getter = lambda clf: np.abs(clf.coefs_[0]).sum(axis=1)  # noqa: E731
    ours, theirs = both(lambda clf: RFECV(clf, cv=2, importance_getter=getter).fit(X, y))
    np.testing.assert_array_equal(ours.ranking_, theirs.ranking_)


def test_inspection(iris, diabetes):
    X, y = iris
    ours, theirs = both(lambda clf: permutation_importance(clf.fit(X, y), X, y, n_repeats=2, random_state=0))
    np.testing.assert_allclose(ours.importances, theirs.importances, atol=1e-12)
    X, y = diabetes
    ours, theirs = both(lambda reg: partial_dependence(reg.fit(X, y), X, [0]), classifier=False)
    np.testing.assert_allclose(ours["average"], theirs["average"], rtol=1e-6)


def test_curves(iris):
    X, y = iris
    ours, theirs = both(
        lambda clf: learning_curve(clf, X, y, cv=3, train_sizes=[0.5, 1.0], shuffle=True, random_state=0)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b)
    ours, theirs = both(lambda clf: validation_curve(clf, X, y, param_name="alpha", param_range=[1e-4, 10.0], cv=3))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b)
    # Training that goes on: partial_fit, which in scikit-learn does not continue the shuffling.
    options = dict(cv=3, exploit_incremental_learning=True, shuffle=True, random_state=0)
    ours, theirs = both(lambda clf: learning_curve(clf.set_params(shuffle=False), X, y, **options))
    np.testing.assert_allclose(ours[2], theirs[2])


@pytest.mark.parametrize("classifier", [True, False], ids=["classifier", "regressor"])
def test_sample_weights_are_routed(classifier, iris, diabetes):
    X, y = iris if classifier else diabetes
    weight = np.random.RandomState(0).rand(len(X))

    def scores(model):
        model.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        search = GridSearchCV(make_pipeline(scaler, model), {}, cv=3)
        found = cross_validate(search, X, y, cv=3, params={"sample_weight": weight}, error_score="raise")
        return found["test_score"]

    with sklearn.config_context(enable_metadata_routing=True):
        ours, theirs = both(scores, classifier)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert not np.allclose(ours, cross_validate(both(lambda model: model, classifier)[0], X, y, cv=3)["test_score"])


def test_workers_give_the_same_results(iris):
    X, y = iris
    results = []
    for n_jobs in (None, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            search = GridSearchCV(BackpropClassifier(**OPTIONS), {"alpha": [1e-4, 0.1]}, cv=3, n_jobs=n_jobs).fit(X, y)
        results.append(search.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(*results)
