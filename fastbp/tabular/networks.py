"""The networks for tables, with their defaults."""

from typing import Any

import numpy as np

from fastbp.classifier import BackpropClassifier
from fastbp.regressor import BackpropRegressor

_NETWORK: dict[str, Any] = dict(
    hidden_layer_sizes=(128, 128), activation="relu", weight_init="he_normal", solver="adamw", alpha=0.0,
    learning_rate="cosine", learning_rate_init=3e-3, max_iter=80, early_stopping=True, scoring="loss",
    n_iter_no_change=np.inf, dtype="float32",
)  # fmt: skip
# The loss of held-out samples is lowest early, before the network has learned all it can; the temperature makes up for
# what it loses later.
_CLASSIFIER = _NETWORK | dict(dropout=0.15, weight_decay=0.1, label_smoothing=0.05, scoring="accuracy_then_loss")
_REGRESSOR = _NETWORK | dict(dropout=0.15, weight_decay=0.3)


def network_for_classes(**changes):
    """Return a classifier with the defaults for tables, but for some changes, and for what these exclude."""
    return BackpropClassifier(**_without_conflicts(_CLASSIFIER, changes))


def network_for_numbers(**changes):
    """Return a regressor with the defaults for tables, but for some changes, and for what these exclude."""
    return BackpropRegressor(**_without_conflicts(_REGRESSOR, changes))


def _without_conflicts(defaults, changes):
    parameters = defaults | changes
    excluded = set()
    if parameters["solver"] != "adamw":
        excluded.add("weight_decay")
    if parameters["solver"] == "lbfgs":
        excluded.add("dropout")
    if parameters.get("loss", "log_loss") != "log_loss":
        excluded.add("label_smoothing")
    return {name: value for name, value in parameters.items() if name in changes or name not in excluded}
