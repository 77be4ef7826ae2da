"""Training: the loop over epochs, the order of samples, stopping rules, history, Ctrl-C."""

from dataclasses import dataclass, field, replace

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from fastbp.kernels.shuffle import shuffle
from fastbp.schedules import FINITE_SCHEDULES, after_epoch, after_plateau, step_rates
from fastbp.user_warnings import warn_user


@dataclass
class Settings:
    """What the loop over epochs depends on; names and meanings are those of `BackpropClassifier`."""

    schedule: str  # the `learning_rate` that applies to the solver
    learning_rate_init: float
    power_t: float
    max_iter: int
    shuffle: bool
    tol: float
    n_iter_no_change: int
    verbose: bool


@dataclass
class Progress:
    """The progress of training; `partial_fit` and `warm_start` continue from it.

    Attributes
    ----------
    loss_curve : list of float
        Mean loss of each epoch, over the batches as they were trained on.
    best_loss : float
        Lowest of them.
    no_improvement : int
        Epochs since the loss last fell by more than `tol`.
    samples_seen : int
        Samples in all calls.
    epochs : int
        Epochs of the last call.
    """

    loss_curve: list = field(default_factory=list)
    best_loss: float = np.inf
    no_improvement: int = 0
    samples_seen: int = 0
    epochs: int = 0

    def copy(self):
        """Return an independent copy."""
        return replace(self, loss_curve=list(self.loss_curve))

    def add_epoch(self, loss, n_samples, tol):
        """Take note of an epoch."""
        self.epochs += 1
        self.samples_seen += n_samples
        self.loss_curve.append(loss)
        self.no_improvement = self.no_improvement + 1 if loss > self.best_loss - tol else 0
        self.best_loss = min(self.best_loss, loss)


def fit(session, data, settings, progress, random_state, *, one_epoch=False):
    """Train until a stopping rule applies.

    Parameters
    ----------
    session : Session
        The network; its parameters are changed in place.
    data : Data
        Samples; their order is changed in place.
    settings : Settings
        How to train.
    progress : Progress
        Changed in place.
    random_state : numpy.random.RandomState
        Shuffles as scikit-learn does.
    one_epoch : bool, default=False
        Whether to stop after one epoch without a warning, as `partial_fit` does.

    Warns
    -----
    ConvergenceWarning
        If `max_iter` epochs were not enough, for schedules that do not end by themselves.
    UserWarning
        On Ctrl-C, which keeps what the network has learned.
    """
    progress.epochs = 0
    try:
        for _ in range(1 if one_epoch else settings.max_iter):
            _run_epoch(session, data, settings, progress, random_state)
            if _diverged(session, progress) or _stops(session.optimizer, settings, progress):
                break
        else:
            if not one_epoch and settings.schedule not in FINITE_SCHEDULES:
                warn_user(
                    f"Stochastic Optimizer: Maximum iterations ({settings.max_iter}) reached and the "
                    "optimization hasn't converged yet.",
                    ConvergenceWarning,
                )
    except KeyboardInterrupt:
        warn_user("Training interrupted by user.")


def _run_epoch(session, data, settings, progress, random_state):
    """Train on all samples once."""
    optimizer, n_samples = session.optimizer, data.order.size
    if settings.shuffle:
        shuffle(data.order, random_state)  # the order that sklearn.utils.shuffle would give
    n_batches = -(-n_samples // session.settings.batch_size)
    rates = step_rates(
        settings.schedule, optimizer.rate, optimizer.steps, n_batches, settings.max_iter * n_batches
    )  # fmt: skip
    loss = session.run(data, rates)
    progress.add_epoch(loss, n_samples, settings.tol)
    if settings.verbose:
        print(f"Iteration {progress.epochs}, loss = {loss:.8f}")


def _diverged(session, progress):
    """Whether the parameters have become infinite, so that training cannot continue; the estimator says so."""
    return not np.isfinite(progress.loss_curve[-1]) and not np.isfinite(session.params).all()


def _stops(optimizer, settings, progress):
    """Set the learning rate of the next epoch; return whether training stops instead."""
    schedule, init = settings.schedule, settings.learning_rate_init
    optimizer.rate = after_epoch(schedule, optimizer.rate, init, progress.samples_seen, settings.power_t)
    if progress.no_improvement <= settings.n_iter_no_change:
        return False
    rate = after_plateau(schedule, optimizer.rate)
    if settings.verbose:
        print(_plateau_message(settings, rate))
    if rate is None:
        return True
    optimizer.rate = rate
    progress.no_improvement = 0
    return False


def _plateau_message(settings, rate):
    message = (
        f"Training loss did not improve more than tol={settings.tol:f} for {settings.n_iter_no_change} consecutive "
        "epochs."
    )
    if rate is not None:
        return f"{message} Setting learning rate to {rate:f}"
    if settings.schedule == "adaptive":
        return f"{message} Learning rate too small. Stopping."
    return f"{message} Stopping."
