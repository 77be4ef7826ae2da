"""Models of a training under way, and what must be the same where training goes on from one."""

import copy
import hashlib

import numpy as np
from scipy.sparse import issparse

from fastbp.progress import TrainingState
from fastbp.schedules import FINITE_SCHEDULES

# What files hold in the place of a scorer, which is code; no parameter can be equal to it.
A_CALLABLE = "a callable"


class Models:
    """Makes models of a training under way, for callbacks and scorers.

    Parameters
    ----------
    estimator : estimator
        The one that is fitted; a model is a copy of it, with what training has set.
    fitted : callable
        Sets what is fitted on the copy, from `coefs` and `intercepts`.
    random_state : numpy.random.RandomState
        The generator of the training.
    order, held_out : ndarray of int64
        Those of `TrainingState`; training changes the order in place.
    digest : str
        That of the samples; empty if there are no checkpoints.
    """

    def __init__(self, estimator, fitted, random_state, order, held_out, digest):
        self._estimator, self._fitted = estimator, fitted
        self._random_state, self._order, self._held_out, self._digest = random_state, order, held_out, digest

    def model(self, coefs, intercepts):
        """Return a model with these parameters."""
        model = object.__new__(type(self._estimator))
        model.__dict__ = self._estimator.__dict__.copy()
        self._fitted(model, coefs, intercepts)
        return model

    def checkpoint(self, coefs, intercepts, best):
        """Return a model from which training goes on: `best` are the parameters of the best score, or None."""
        model = self.model(coefs, intercepts)
        held_out = None if self._held_out is None else compact(self._held_out)
        model._training_state = TrainingState(
            copy.deepcopy(self._random_state), compact(self._order), held_out, copy.deepcopy(best), self._digest
        )
        return model


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
            f"resume_from must be a {name}, what fastbp.load(path) returns for a file of fastbp.callbacks.Checkpoint, "
            f"got {checkpoint!r}."
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
        The one that is fitted now; it knows its classes and the names of its features.
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
        other = checkpoint._progress.scoring if name == "scoring" else getattr(checkpoint, name)
        equal = _may_be_same_scoring if name == "scoring" else _may_be_equal
        if not _is_free(name, estimator) and not equal(value, other):
            raise ValueError(
                f"{name}={value!r}, but the checkpoint resume_from has {name}={other!r}. Set the parameters with which "
                "its training began, or leave out resume_from to begin anew."
            )
    others = _different_parts(digest, checkpoint._training_state.data)
    for name, what in (("classes_", "the classes of y"), ("feature_names_in_", "the names of the features")):
        if not np.array_equal(getattr(estimator, name, ()), getattr(checkpoint, name, ())):
            others.append(what)
    if others:
        raise ValueError(
            "The samples are not those with which the training of the checkpoint resume_from began, by their values, "
            f"their order, their number or their types. Others are: {', '.join(others)}. Pass the samples of that "
            "time, or use warm_start=True or partial_fit to train a model with other ones."
        )


def _is_free(name, estimator):
    # These schedules are made for `max_iter` epochs.
    return name in _FREE and not (name == "max_iter" and estimator.learning_rate in FINITE_SCHEDULES)


def _may_be_equal(value, other):
    """Whether two values of a parameter are equal, as far as that can be known."""
    if isinstance(value, np.random.RandomState):  # it has drawn since
        return isinstance(other, np.random.RandomState)
    return np.array_equal(value, other)


def _may_be_same_scoring(value, other):
    if callable(value):
        return callable(other) or other == A_CALLABLE
    return value == other


def digest_of(samples):
    """Return a text that is the same in another process if, and only if, the samples are.

    Parameters
    ----------
    samples : dict of str to iterable
        Under a name without spaces, arrays, sparse matrices, and values with a `repr` of their own.
    """
    return " ".join(f"{name} {_digest(parts)}" for name, parts in samples.items())


def _different_parts(digest, other):
    """Return the names of what is different by two digests."""
    mine, its = digest.split(), other.split()
    if mine[::2] != its[::2] or len(its) != len(mine):
        return mine[::2]
    return [name for name, a, b in zip(mine[::2], mine[1::2], its[1::2], strict=True) if a != b]


def _digest(parts):
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if issparse(part):
            part = _digest([part.shape, part.indptr, part.indices, part.data])
        if isinstance(part, np.ndarray) and part.dtype != object:
            digest.update(f"{part.dtype.str} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            digest.update(repr(part.tolist() if isinstance(part, np.ndarray) else part).encode())
    return digest.hexdigest()


def compact(order):
    """Return numbers of samples in the smallest type that holds them, which makes small files."""
    return order.astype(np.min_scalar_type(order.max(initial=0)))
