"""A call of `fit`: what is passed beside the samples, and where its training begins, be it at a checkpoint."""

import hashlib
import time
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import numpy as np
from scipy.sparse import issparse

from fastbp.fit_callbacks import FitCallbacks
from fastbp.interrupts import Interrupts
from fastbp.progress import Progress, TrainingState


@dataclass
class Call:
    """A call of `fit` or `partial_fit`, beside its samples.

    Attributes
    ----------
    X_val, y_val
        Validation samples of the user.
    weight_val : array-like or None
        Their weights.
    incremental : bool
        Whether it is `partial_fit`: one epoch, with the optimizer's state of the last call.
    knows_classes : bool
        Whether the classes have been learned already.
    callbacks : FitCallbacks or None
        Those of this call.
    stop : threading.Event or None
        Ends training after the epoch in which another thread sets it.
    resume_from : BaseBackprop or None
        A checkpoint, of whose fit this is the rest.
    interrupts : Interrupts
        Holds back Ctrl-C from the first batch on.
    begin : float
        The time of `time.perf_counter` from which `max_time` counts.
    """

    X_val: Any = None
    y_val: Any = None
    weight_val: Any = None
    incremental: bool = False
    knows_classes: bool = False
    callbacks: FitCallbacks | None = None
    stop: Event | None = None
    resume_from: Any = None
    interrupts: Interrupts = field(default_factory=Interrupts)
    begin: float = field(default_factory=lambda: time.perf_counter())


@dataclass
class Start:
    """Where a training begins.

    Attributes
    ----------
    coefs, intercepts : list of ndarray
        The parameters.
    progress : Progress
        What the training changes.
    random_state : numpy.random.RandomState
        The generator.
    order : ndarray of int64
        The order of the samples.
    memory : dict or None
        What `OptimizerState.store` returned; None for a new optimizer.
    state : TrainingState or None
        Of the checkpoint from which it goes on.
    """

    coefs: list
    intercepts: list
    progress: Progress
    random_state: np.random.RandomState
    order: np.ndarray
    memory: dict | None = None
    state: TrainingState | None = None


# --- checkpoints ---

# Parameters that may be others: they do not matter for the result, or only for the epochs that are left.
_FREE = {"max_iter", "max_time", "n_iter_no_change", "n_jobs", "tol", "verbose", "warm_start"}


def check_checkpoint(estimator, checkpoint):
    """Check that training can go on at what the user passed.

    Raises
    ------
    TypeError, ValueError
        If it is no checkpoint of such an estimator.
    """
    name = type(estimator).__name__
    if type(checkpoint) is not type(estimator):
        raise TypeError(
            f"resume_from must be a {name}, what fastbp.load returns for a file of fastbp.callbacks.Checkpoint, got "
            f"{checkpoint!r}."
        )
    if not hasattr(checkpoint, "_training_state"):
        raise ValueError(
            f"resume_from={checkpoint!r} is a {name} but no checkpoint. Pass what fastbp.load returns for a file of "
            "fastbp.callbacks.Checkpoint; to go on from any other model use warm_start=True or partial_fit."
        )


def check_same_training(estimator, checkpoint, digest):
    """Check that parameters and samples are those of the training that a checkpoint is from.

    Parameters
    ----------
    estimator : estimator
        The one that is fitted now; it knows its classes.
    checkpoint : estimator
        The other.
    digest : str
        That of the samples now.

    Raises
    ------
    ValueError
        If they are not.
    """
    for name, value in estimator.get_params(deep=False).items():
        other = getattr(checkpoint, name)
        if name in _FREE or _is_unknown(name, value):
            continue
        if not np.array_equal(value, other):
            raise ValueError(
                f"{name}={value!r}, but the checkpoint resume_from has {name}={other!r}. Set the parameters with which "
                "its training began, or leave out resume_from to begin anew."
            )
    mine, its = (getattr(model, "classes_", ()) for model in (estimator, checkpoint))
    if digest != checkpoint._training_state.data or not np.array_equal(mine, its):
        raise ValueError(
            "The samples are not those with which the training of the checkpoint resume_from began: X, y, "
            "sample_weight, X_val and y_val must be the same, of the same types. Use warm_start=True or partial_fit to "
            "train a model with other samples."
        )


def _is_unknown(name, value):
    """Whether a parameter cannot be compared: code, which files do not hold; a generator, which has changed since."""
    return (name == "scoring" and callable(value)) or isinstance(value, np.random.RandomState)


def digest_of(parts):
    """Return a text that is the same in another process if, and only if, the values are.

    Parameters
    ----------
    parts : iterable
        Arrays, sparse matrices, and values with a `repr` of their own.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if issparse(part):
            part = digest_of([part.shape, part.indptr, part.indices, part.data])
        if isinstance(part, np.ndarray) and part.dtype != object:
            digest.update(f"{part.dtype.str} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            digest.update(repr(part.tolist() if isinstance(part, np.ndarray) else part).encode())
    return digest.hexdigest()


def compact(order):
    """Return numbers of samples in the smallest type that holds them, which makes small files."""
    return order.astype(np.min_scalar_type(order.max(initial=0)))
