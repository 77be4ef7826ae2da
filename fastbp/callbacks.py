"""Callbacks: what happens between the epochs of a training.

They need scikit-learn 1.9 or newer, whose own callbacks fit the estimators too.
"""

import copy
import os
from numbers import Integral
from pathlib import Path

import numpy as np
from sklearn.utils.validation import check_scalar

from fastbp.classifier import BackpropClassifier
from fastbp.files import prepare
from fastbp.persistence import check_can_save, save
from fastbp.regressor import BackpropRegressor
from fastbp.user_warnings import warn_user


class Checkpoint:
    """Save the training to a file, from which it goes on if the process ends.

    The file is what `fastbp.save` writes, with what training needs beside the model: the optimizer, the random
    generator, the order of the samples, the best weights of early stopping. It is replaced as a whole, so that at any
    moment there is the old one or the new one. `fit` with ``resume_from=fastbp.load(path)`` goes on, and ends with the
    same bits as a training that was not interrupted.

    It needs scikit-learn 1.9 or newer, and the extra "save": ``pip install "fastbp[save]"``.

    Parameters
    ----------
    path : path-like
        The file; by custom its name ends with ".safetensors". Each training needs a file of its own: do not set a
        checkpoint on an estimator that a search or an ensemble clones.
    every : int, default=1
        Save after each so many epochs, and after the last. A file has three times the size of the weights after
        training with Adam, and the disk has to have it before training goes on.

    Warns
    -----
    UserWarning
        If the file cannot be written after some epoch, as on a full disk: training goes on, with the file of before.
        A path that cannot be written at all is an error before training begins.

    See Also
    --------
    fastbp.load : Load the file: a model like any other, with the weights of that epoch.

    Notes
    -----
    Ctrl-C and `max_time` end training within an epoch: `fit` returns that model, and the file has the one of the last
    epoch that was saved. `partial_fit` has no callbacks: its models go on when they are loaded. Where X is sparse and
    `alpha` is 0, weights of absent features are brought up to date before each file, so that the results with and
    without checkpoints differ by rounding.

    Examples
    --------
    >>> from pathlib import Path
    >>> import fastbp
    >>> from fastbp.callbacks import Checkpoint
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> path = Path("digits.safetensors")
    >>> clf = fastbp.BackpropClassifier(max_iter=50, random_state=0)
    >>> clf = clf.set_callbacks(Checkpoint(path, every=10))  # doctest: +SKIP
    >>> clf.fit(X, y, resume_from=fastbp.load(path) if path.exists() else None)  # doctest: +SKIP
    BackpropClassifier(max_iter=50, random_state=0)
    """

    keeps_state = True  # so that the models that it is shown are those from which training goes on

    def __init__(self, path: str | os.PathLike, every: int = 1):
        if isinstance(every, bool):
            raise TypeError(f"every must be a number of epochs, got {every}.")
        self.path = Path(path)
        self.every = check_scalar(every, "every", Integral, min_val=1)
        self._is_due = False  # in the epoch that ends now
        self._fails = False  # whether the last file could not be written

    def __repr__(self):
        return f"Checkpoint({str(self.path)!r}, every={self.every})"

    def setup(self, estimator, context):
        """Check that the estimator can be saved; scikit-learn calls this when `fit` begins."""
        if type(estimator) not in (BackpropClassifier, BackpropRegressor):
            raise TypeError(
                f"Checkpoint saves BackpropClassifier and BackpropRegressor, got {type(estimator).__name__}. In a "
                "pipeline set it on the network, its last step; a subclass cannot be saved."
            )
        if estimator.solver == "lbfgs":
            raise ValueError(
                "Checkpoint is not for solver='lbfgs', whose state is inside of SciPy. Use another solver, or save the "
                "model after fit and train it further with warm_start=True."
            )
        check_can_save(_without_code(estimator))
        self.path = self.path.absolute()  # also where the program changes its folder while it trains
        try:
            prepare(self.path)
        except OSError as error:
            raise type(error)(f"Checkpoint cannot write path={str(self.path)!r}: {error}") from error

    def on_fit_task_begin(self, estimator, context):
        """Do nothing."""

    def is_due(self, n_epochs, is_last):
        """Whether to save the model after so many epochs; asked before it is made."""
        self._is_due = is_last or n_epochs % self.every == 0
        return self._is_due

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        """Save the model after an epoch."""
        # The end of `fit` itself, and of an epoch that is not complete, are tasks too.
        if not hasattr(fitted_estimator, "_training_state") or not self._is_due:
            return
        # A network that has diverged cannot go on.
        if not all(np.isfinite(array).all() for array in (*fitted_estimator.coefs_, *fitted_estimator.intercepts_)):
            return
        try:
            save(_without_code(fitted_estimator), self.path)
            self._fails = False
        except OSError as error:  # a full disk, say, is no reason to lose the training
            if not self._fails:
                warn_user(
                    f"Checkpoint could not write {str(self.path)!r} after epoch {fitted_estimator.n_iter_}: {error}. "
                    "Training goes on, and tries again; until then the file is that of an earlier epoch."
                )
            self._fails = True

    def teardown(self, estimator, context):
        """Do nothing."""


def _without_code(estimator):
    """Return an estimator whose parameters a file holds: `resume_from` takes them from the one that is fitted."""
    return copy.copy(estimator).set_params(scoring=None) if callable(estimator.scoring) else estimator
