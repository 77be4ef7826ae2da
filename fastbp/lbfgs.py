"""The solver "lbfgs": scipy's driver over the compiled loss and gradient.

References
----------
D. C. Liu and J. Nocedal, "On the limited memory BFGS method for large scale optimization", 1989.
"""

import time

import numpy as np
import scipy.optimize
from sklearn.exceptions import ConvergenceWarning

from fastbp.user_warnings import MaxTimeWarning, warn_user


class _TimeIsOverError(Exception):
    """Ends scipy's driver, after `max_time`."""


class _StoppedError(Exception):
    """Ends scipy's driver, where a callback wants that."""


def fit(session, data, settings, progress, max_fun, validation=None, callbacks=None):
    """Minimize the loss of all samples.

    Parameters
    ----------
    session : Session
        The network, in float64, with one batch of all samples; its parameters are changed in place.
    data : Data
        Samples.
    settings : training.Settings
        How many iterations, and the tolerance of the gradient.
    progress : progress.Progress
        Changed in place.
    max_fun : int
        The most evaluations of the loss.
    validation : callable, default=None
    callbacks : FitCallbacks, default=None
        See `training.fit`.

    Returns
    -------
    coefs, intercepts : list of ndarray
        The parameters at the end.

    Warns
    -----
    ConvergenceWarning
        If `max_iter` iterations or `max_fun` evaluations were not enough, or no better point was found.
    UserWarning
        On Ctrl-C, and after `max_time`; both keep the parameters of the last iteration.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C before the end of the first iteration: there is nothing to keep.
    """
    progress.begin(validates=validation is not None, early_stopping=False, scoring=settings.scoring)
    start = np.concatenate([part.ravel() for parts in session.parameters() for part in parts])
    last = {"loss": None, "params": start}
    total_weight = data.total_weight()

    def loss_and_gradient(params):
        if time.perf_counter() >= settings.deadline:
            raise _TimeIsOverError
        if settings.is_stopped:
            raise _StoppedError
        if callbacks is not None:
            callbacks.begin_epoch()
        last["loss"], gradient = session.loss_and_gradient(data, params, total_weight, settings.deadline)
        if last["loss"] is None:
            raise _TimeIsOverError
        return last["loss"], gradient

    def model():
        return callbacks.models.model(*session.parameters())

    def after_iteration(params):
        last["params"] = params.copy()
        progress.add_loss(last["loss"])  # a line search ends with the point that it accepts
        progress.best_loss = min(progress.best_loss, progress.loss)
        if settings.verbose:
            print(f"Iteration {progress.epochs}, loss = {last['loss']:.8f}")
        if validation is not None:  # the parameters of the session are those that the line search ends with, too
            with session.interrupts.let_through():
                value = validation(*session.parameters())
            progress.add_validation(*value)
        if callbacks is not None and callbacks.end_epoch(model, progress.epochs, progress.epochs == settings.max_iter):
            raise _StoppedError

    try:
        session.interrupts.hold()
        result = scipy.optimize.minimize(
            loss_and_gradient, start, method="L-BFGS-B", jac=True, callback=after_iteration,
            options={"maxfun": max_fun, "maxiter": settings.max_iter, "gtol": settings.tol},
        )  # fmt: skip
        session.set_parameters(result.x)
        progress.loss = float(result.fun)
        progress.epochs = min(result.nit, settings.max_iter)
        if result.status != 0:
            warn_user(_warning(result, progress.epochs, settings.max_iter), ConvergenceWarning)
    except KeyboardInterrupt:
        if progress.epochs == 0:
            raise
        session.set_parameters(last["params"])
        warn_user("Training interrupted by user.")
    except _StoppedError:
        session.set_parameters(last["params"])
    except _TimeIsOverError:
        session.set_parameters(last["params"])
        warn_user(
            f"Training stopped after max_time={settings.max_time} seconds, in iteration {progress.epochs} of "
            f"{settings.max_iter}. Increase max_time to train longer.",
            MaxTimeWarning,
        )
    finally:
        if callbacks is not None:
            callbacks.close()
    return session.parameters()


def _warning(result, n_iter, max_iter):
    """Return the text that scikit-learn has for a result that is not a minimum."""
    text = f"lbfgs failed to converge after {n_iter} iteration(s) (status={result.status}):\n{result.message}\n"
    if n_iter == max_iter:
        text += f"\nIncrease the number of iterations to improve the convergence (max_iter={max_iter})."
    return (
        f"{text}\nYou might also want to scale the data as shown in:\n"
        "    https://scikit-learn.org/stable/modules/preprocessing.html"
    )
