"""The estimators for tables that most users need."""

from typing import Any

from fastbp.tabular.ensembles import TabularClassifier, TabularRegressor
from fastbp.tabular.networks import network_for_classes, network_for_numbers


def make_tabular_classifier(**overrides: Any) -> TabularClassifier:
    """Make a classifier for tables with gaps and categories.

    Two hidden layers of 128 units learn from scaled and piecewise-linear encoded numbers and from one-hot encoded
    categories, with label smoothing and a learning rate that decreases to 0. Four such networks, each of which has held
    out other samples, predict together.

    Parameters
    ----------
    **overrides
        Any parameter of `TabularClassifier`, such as `random_state`, `max_time`, `n_jobs` and `n_members`, and any of
        `BackpropClassifier`, for the network.

    Returns
    -------
    TabularClassifier
        Not fitted. In a grid, the parameters of the network are `estimator__dropout` and so on.

    Examples
    --------
    >>> from fastbp import make_tabular_classifier
    >>> from sklearn.datasets import load_breast_cancer
    >>> X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    >>> clf = make_tabular_classifier(random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """
    return _make(TabularClassifier, network_for_classes, overrides)


def make_tabular_regressor(**overrides: Any) -> TabularRegressor:
    """Make a regressor for tables with gaps and categories.

    Two hidden layers of 128 units learn from scaled and piecewise-linear encoded numbers and from one-hot encoded
    categories, with dropout, decoupled weight decay and a learning rate that decreases to 0. Four such networks, each
    of which has held out other samples, predict together.

    Parameters
    ----------
    **overrides
        Any parameter of `TabularRegressor`, such as `random_state`, `max_time`, `n_jobs` and `n_members`, and any of
        `BackpropRegressor`, for the network.

    Returns
    -------
    TabularRegressor
        Not fitted. In a grid, the parameters of the network are `estimator__dropout` and so on.

    Examples
    --------
    >>> from fastbp import make_tabular_regressor
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
    >>> reg = make_tabular_regressor(random_state=0).fit(X, y)
    >>> reg.score(X, y) > 0.5
    True
    """
    return _make(TabularRegressor, network_for_numbers, overrides)


def _make(ensemble_class, network, overrides):
    """Make an ensemble; each of the overrides goes to the one whose parameter it is."""
    of_ensemble, of_network = ensemble_class().get_params(deep=False), network().get_params()
    if unknown := sorted(overrides.keys() - of_ensemble.keys() - of_network.keys()):
        raise TypeError(
            f"{', '.join(unknown)}: no parameter of {ensemble_class.__name__} or {type(network()).__name__}. The "
            f"first has {', '.join(of_ensemble)}."
        )
    parameters = {name: value for name, value in overrides.items() if name in of_ensemble}
    changes = {name: value for name, value in overrides.items() if name not in of_ensemble}
    parameters.setdefault("estimator", network(**changes))
    return ensemble_class(**parameters)
