"""The state of a fitted estimator in plain types, and its checks.

Pickles, skops files and those of `fastbp.save` hold this state. Kernels check nothing: what comes from a file goes
through `check_state` first.
"""

import inspect
import math
import reprlib
from dataclasses import asdict, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from fastbp.activations import SHARED, Activation
from fastbp.compat import mersenne_twister_of
from fastbp.kernels.network import aligned
from fastbp.kernels.session import memory_fits
from fastbp.losses import LOSSES, Loss
from fastbp.optimizers import SOLVERS
from fastbp.prediction import check_shapes
from fastbp.progress import Progress, Shuffling, TrainingState

_ACTIVATION_TYPES: dict[str, Any] = {known.name: type(known) for known in SHARED.values()}


class FormatError(ValueError):
    """A file is no model of fastbp, is damaged, or was written by a newer version."""


class PlainStateMixin(BaseEstimator):
    """Pickles and copies of an estimator: they hold its state in plain types, and what is restored is checked."""

    coefs_: list[np.ndarray]

    def __getstate__(self):
        """Return the attributes; of a fitted estimator in plain types, which tools that load files know."""
        state = super().__getstate__()
        return plain_state(state) if "_progress" in state else state

    def __setstate__(self, state):
        """Restore what was pickled, by this version or by 0.1.0, which had fewer parameters.

        Raises
        ------
        FormatError
            If the weights, the memory of the optimizer, or other parts of a fitted estimator do not fit together.
        """
        self._restore(state)
        if "coefs_" in vars(self):
            self.coefs_ = [aligned(coef) for coef in self.coefs_]  # as after fit, see `Network.unpack`

    def __copy__(self):
        """Return a shallow copy: it has the same arrays."""
        model = object.__new__(type(self))
        model._restore(self.__getstate__())
        return model

    def _restore(self, state):
        defaults = inspect.signature(type(self).__init__).parameters
        state = {name: defaults[name].default for name in self._get_param_names() if name not in state} | state
        for name in ("loss_curve_", "lr_curve_"):  # which earlier versions kept beside the progress
            state.pop(name, None)
        if "_memory" in state:
            state = plain_state(_state_of_0_1_0(state))
        if "coefs_" in state:
            activations, loss = check_state(state)
            progress = Progress.restore(state["_progress"])
            state |= {"_activations": activations, "_loss": loss, "_progress": progress}
            if "_shuffling" in state:
                state["_shuffling"] = Shuffling(**state["_shuffling"])
            if "_training_state" in state:
                state["_training_state"] = TrainingState(**state["_training_state"])
        super().__setstate__(state)


def _state_of_0_1_0(state):
    """Return the state of a fitted estimator of version 0.1.0 as this version has it."""
    old = vars(state["_progress"])
    losses = old["loss_curve"]
    rates = [np.nan] * len(losses)  # which it did not keep
    progress = Progress.restore(old | {"lr_curve": rates, "loss": losses[-1] if losses else None})
    others = {name: value for name, value in state.items() if name != "_memory"}
    return others | {
        "_optimizer": {"seed": None} | state["_memory"], "_progress": progress,
        "_is_untrained": not losses and state["_memory"]["steps"] == 0,
        "_loss": Loss(state["_loss"], (0.0,) * state["n_outputs_"]),
        "validation_scores_": None, "best_validation_score_": None, "validation_loss_curve_": None, "best_iter_": None,
    }  # fmt: skip


def plain_state(state):
    """Return the state of a fitted estimator with dicts, lists and arrays in the place of objects of fastbp.

    Parameters
    ----------
    state : dict
        The attributes.

    Returns
    -------
    dict
        Activations that are not those of fastbp remain objects. The optimizer's memory is left out where the user has
        set weights of another shape: it could not be used.
    """
    plain = dict(state)
    plain["_activations"] = [describe_activation(activation) for activation in state["_activations"]]
    plain["_loss"] = state["_loss"]._asdict()
    plain["_progress"] = state["_progress"].plain()
    for name in {"_shuffling", "_training_state"} & state.keys():
        plain[name] = dict(vars(state[name]))
    units = [state["n_features_in_"], *map(np.size, state["intercepts_"])]
    optimizer = plain["_optimizer"] = dict(state["_optimizer"])
    optimizer["parts"] = list(optimizer["parts"]) if memory_fits(optimizer, units) else None
    return plain


def describe_activation(activation):
    """Return name and parameters of an activation as a dict; one that is not of fastbp is returned as it is."""
    if _ACTIVATION_TYPES.get(activation.name) is not type(activation):
        return activation
    return {"name": activation.name, **asdict(activation)}


def activation_of(description):
    """Return the activation that `describe_activation` has described.

    Raises
    ------
    FormatError
        If there is no such activation.
    """
    if isinstance(description, Activation):
        return description
    _require(isinstance(description, dict), "an activation", description)
    parameters = dict(description)
    name = parameters.pop("name", None)
    kind = _ACTIVATION_TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise FormatError(f"There is no activation {name!r}; the known ones are {sorted(_ACTIVATION_TYPES)}.")
    _require_names(parameters, {field.name for field in fields(kind)}, f"the activation {name!r}")
    try:
        return kind(**parameters)
    except ValueError as error:
        raise FormatError(str(error)) from error


def check_state(state):
    """Check that the parts of a plain state fit together.

    Parameters
    ----------
    state : dict
        What `plain_state` returns, from a source that is not trusted.

    Returns
    -------
    activations : list of Activation
    loss : Loss

    Raises
    ------
    FormatError
        If they do not.
    """
    missing = _NEEDED - state.keys()
    if missing:
        raise FormatError(f"The state of the estimator lacks {sorted(missing)}.")
    _require(_is_list(state["_activations"]), "_activations", state["_activations"])
    activations = [activation_of(description) for description in state["_activations"]]
    if not activations or any(activation.by_rows for activation in activations[:-1]):
        raise FormatError("A network has one activation or more, and a softmax for its outputs only.")
    n_features = state["n_features_in_"]
    _require(_is_count(n_features) and n_features > 0, "n_features_in_", n_features)
    units = _units_of(state["coefs_"], state["intercepts_"], n_features, activations)
    for name, expected in (("n_outputs_", units[-1]), ("n_layers_", len(units))):
        if state.get(name, expected) != expected:
            raise FormatError(f"{name} is {state[name]!r}, but the weights are those of {expected}.")
    loss = _loss_of(state["_loss"], units[-1])
    _check_section(state["_progress"], _PROGRESS, "_progress")
    scores, losses = (state["_progress"][f"validation_{name}"] for name in ("scores", "losses"))
    if (scores is None) != (losses is None) or len(scores or ()) != len(losses or ()):
        raise FormatError("_progress must have a loss for each score of the validation samples.")
    _check_optimizer(state["_optimizer"], units, activations)
    if "_shuffling" in state:
        _check_shuffling(state["_shuffling"])
    if "_training_state" in state:
        _check_training_state(state["_training_state"], units, activations)
    if isinstance(state.get("random_state"), np.random.RandomState):
        _check_random_state(state["random_state"])
    if "_binarizer" in state:
        _check_classes(state.get("classes_"), state["_binarizer"], units[-1])
    if "feature_names_in_" in state:
        _check_names(state["feature_names_in_"], n_features)
    n_targets = state.get("_n_targets", units[-1])
    _require(_is_count(n_targets) and n_targets in (1, units[-1]), "_n_targets", n_targets)
    _require(isinstance(state.get("_is_untrained", False), bool), "_is_untrained", state.get("_is_untrained"))
    return activations, loss


_NEEDED = {"n_features_in_", "coefs_", "intercepts_", "_activations", "_loss", "_optimizer", "_progress"}


def _is_list(value):
    return isinstance(value, list | tuple)


def _is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_count(value):
    """Whether compiled code can take the value as a count."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < 2**63


def _is_curve(value):
    return isinstance(value, list) and all(map(_is_number, value))


def _or_none(holds):
    return lambda value: value is None or holds(value)


_PROGRESS = {
    "loss_curve": _is_curve, "lr_curve": _is_curve, "loss": _or_none(_is_number), "best_loss": _is_number,
    "validation_scores": _or_none(_is_curve), "validation_losses": _or_none(_is_curve), "best_score": _is_number,
    "best_epoch": _or_none(_is_count), "no_improvement": _is_count, "samples_seen": _is_count, "epochs": _is_count,
    "scoring": lambda value: value is None or isinstance(value, str) or callable(value),
}  # fmt: skip
_OPTIMIZER = {
    "solver": lambda value: isinstance(value, str) and value in SOLVERS, "steps": _is_count,
    "rate": lambda value: _is_number(value) and 0 <= value < math.inf, "parts": _or_none(_is_list),
    "seed": _or_none(_is_count),
}  # fmt: skip
_SHUFFLING = {
    "seed": _or_none(_is_count), "order": lambda value: isinstance(value, np.ndarray),
    "generator": lambda value: value is None or isinstance(value, np.random.RandomState),
}  # fmt: skip
_TRAINING_STATE = {
    "generator": lambda value: isinstance(value, np.random.RandomState),
    "order": lambda value: isinstance(value, np.ndarray),
    "held_out": _or_none(lambda value: isinstance(value, np.ndarray)),
    "best": _or_none(lambda value: _is_list(value) and len(value) == 2), "data": lambda value: isinstance(value, str),
}  # fmt: skip
_LOSS = {
    "name": lambda value: isinstance(value, str) and value in LOSSES,
    "parameters": lambda value: _is_list(value) and all(map(_is_number, value)), "scale": _is_number,
}  # fmt: skip


def _require(holds, name, value):
    if not holds:
        raise FormatError(f"{name} cannot be {reprlib.repr(value)}.")


def _require_names(section, names, what):
    if section.keys() != names:
        raise FormatError(f"{what} has the entries {sorted(map(str, section))}, not {sorted(names)}.")


def _check_section(section, checks, what):
    """Check that a dict has certain entries and no others, each with its own check."""
    _require(isinstance(section, dict), what, section)
    _require_names(section, checks.keys(), what)
    for name, holds in checks.items():
        _require(holds(section[name]), f"{what}: {name}", section[name])


def _units_of(coefs, intercepts, n_features, activations):
    for name, value in (("coefs_", coefs), ("intercepts_", intercepts)):
        _require(_is_list(value), name, value)
    try:
        return check_shapes(coefs, intercepts, n_features, activations)
    except ValueError as error:
        raise FormatError(str(error)) from error


def _loss_of(plain, n_outputs):
    _check_section(plain, _LOSS, "_loss")
    if len(plain["parameters"]) != n_outputs:
        raise FormatError(f"The loss has {len(plain['parameters'])} parameters, the network {n_outputs} outputs.")
    return Loss(plain["name"], tuple(plain["parameters"]), plain["scale"])


def _check_optimizer(optimizer, units, activations):
    _check_section(optimizer, _OPTIMIZER, "_optimizer")
    if optimizer["parts"] is None:
        return
    for part in optimizer["parts"]:
        _require(_is_list(part) and len(part) == 2, "_optimizer: a part", part)
        coefs, intercepts = part
        _units_of(coefs, intercepts, units[0], activations)
    if not memory_fits(optimizer, units):
        raise FormatError(f"The memory of the optimizer {optimizer['solver']!r} does not fit the weights.")


def _check_shuffling(shuffling):
    _check_section(shuffling, _SHUFFLING, "_shuffling")
    order, generator = shuffling["order"], shuffling["generator"]
    _check_order([order], "_shuffling: order")
    if (generator is None) != (shuffling["seed"] is None):
        raise FormatError("_shuffling must have a seed and a generator, or neither.")
    if generator is not None:
        _check_random_state(generator)


def _check_training_state(state, units, activations):
    _check_section(state, _TRAINING_STATE, "_training_state")
    _check_random_state(state["generator"])
    orders = [order for order in (state["order"], state["held_out"]) if order is not None]
    _check_order(orders, "_training_state: order and held_out")
    if state["best"] is not None:
        coefs, intercepts = state["best"]
        if _units_of(coefs, intercepts, units[0], activations) != units:
            raise FormatError("The best weights of the checkpoint are not of the shape of the last ones.")


def _check_order(parts, what):
    """Check that arrays have the number of each sample once: compiled code reads the samples in this order."""
    are_numbers = all(part.ndim == 1 and part.dtype.kind in "iu" for part in parts)
    if not are_numbers or not np.array_equal(np.sort(np.concatenate(parts)), np.arange(sum(map(len, parts)))):
        raise FormatError(f"{what} must have each number from 0 on once.")


def _check_random_state(random_state):
    generator = mersenne_twister_of(random_state)
    if generator is not None:
        check_generator(**generator.state["state"])


def check_generator(key, pos):
    """Check the state of a Mersenne Twister. NumPy takes any: it would read beyond its memory, or draw for ever.

    Raises
    ------
    FormatError
        If no generator can be in this state.
    """
    if not 0 <= pos <= len(key):
        raise FormatError(f"A random generator cannot be at the position {pos}.")
    if key[0] < 2**31 and not key[1:].any():  # of the first word only the highest bit counts
        raise FormatError("A random generator whose state is 0 draws nothing but 0.")


def _check_classes(classes, binarizer, n_outputs):
    known: Any = getattr(binarizer, "classes_", None)
    kind = getattr(binarizer, "y_type_", None)
    for labels in (classes, known):
        _require(isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.size > 0, "classes_", labels)
    _require(kind in ("binary", "multiclass", "multilabel-indicator"), "y_type_", kind)
    sparse = getattr(binarizer, "sparse_input_", None)
    _require(isinstance(sparse, bool), "sparse_input_", sparse)
    expected = len(classes) if kind == "multilabel-indicator" or len(classes) > 2 else 1
    if len(known) != len(classes) or expected != n_outputs:
        raise FormatError(f"{len(classes)} classes do not fit a network of {n_outputs} outputs.")


def _check_names(names, n_features):
    _require(isinstance(names, np.ndarray) and names.ndim == 1, "feature_names_in_", names)
    if len(names) != n_features or not all(isinstance(name, str) for name in names):
        raise FormatError(f"feature_names_in_ must be {n_features} strings.")
