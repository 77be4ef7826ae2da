"""Training: the loop over epochs, the order of samples, stopping rules, history, Ctrl-C."""

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from fastbp.kernels.session import Watch
from fastbp.kernels.shuffle import twister_of
from fastbp.schedules import FINITE_SCHEDULES, after_epoch, after_plateau, step_rates
from fastbp.stopping import watch_loss
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
    loss_curve, lr_curve : list of float
        Mean loss of each epoch, over the batches as they were trained on; the learning rate of its first batch.
    loss, best_loss : float
        The last and the lowest of the losses; before the first there is no last.
    validation_scores : list of float or None
        Score of the held-out samples after each epoch; None without early stopping.
    best_score : float
        Highest of them.
    no_improvement : int
        Epochs since the loss last fell, or the score last rose, by more than `tol`.
    samples_seen : int
        Samples in all calls.
    epochs : int
        Epochs of the last call.
    """

    loss_curve: list = field(default_factory=list)
    lr_curve: list = field(default_factory=list)
    loss: float | None = None
    best_loss: float = np.inf
    validation_scores: list | None = None
    best_score: float = -np.inf
    no_improvement: int = 0
    samples_seen: int = 0
    epochs: int = 0

    def copy(self):
        """Return an independent copy."""
        scores = None if self.validation_scores is None else list(self.validation_scores)
        return replace(
            self, loss_curve=list(self.loss_curve), lr_curve=list(self.lr_curve), validation_scores=scores
        )  # fmt: skip

    def add_epoch(self, loss, rate, n_samples):
        """Take note of an epoch."""
        self.epochs += 1
        self.samples_seen += n_samples
        self.loss = loss
        self.loss_curve.append(loss)
        self.lr_curve.append(rate)

    def watch_loss(self, tol):
        """Compare the last loss with the best."""
        assert self.loss is not None
        count, self.best_loss = watch_loss(self.loss, self.best_loss, self.no_improvement, tol)
        self.no_improvement = int(count)

    def watch_score(self, score, tol):
        """Compare a score with the best; return whether it is a new best."""
        assert self.validation_scores is not None
        self.validation_scores.append(score)
        self.no_improvement = self.no_improvement + 1 if score < self.best_score + tol else 0
        if not score > self.best_score:  # NaN is no improvement
            return False
        self.best_score = score
        return True


def fit(session, data, settings, progress, random_state, *, one_epoch=False, score=None):
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
    score : callable, default=None
        For early stopping: returns the score of held-out samples from `coefs` and `intercepts`.

    Returns
    -------
    coefs, intercepts : list of ndarray
        The parameters after the last epoch; with early stopping those of the best score.

    Warns
    -----
    ConvergenceWarning
        If `max_iter` epochs were not enough, for schedules that do not end by themselves.
    UserWarning
        On Ctrl-C, which keeps what the network has learned.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C before the first batch: there is nothing to keep.
    """
    progress.epochs = 0
    best = None
    if score is not None:
        best = session.parameters()  # of a warm start, the best so far
        if progress.validation_scores is None:
            progress.validation_scores, progress.best_score, progress.no_improvement = [], -np.inf, 0
    steps_before = session.optimizer.steps
    remaining, at_once = 1 if one_epoch else settings.max_iter, 1
    twister = twister_of(random_state) if settings.shuffle else None
    try:
        while remaining > 0:
            n_epochs = min(remaining, at_once)
            begin = time.perf_counter()
            stops, best = _run_epochs(session, data, settings, progress, random_state, twister, n_epochs, score, best)
            if stops:
                break
            remaining -= len(session.losses)
            if time.perf_counter() - begin < _SHORT and score is None and (twister or not settings.shuffle):
                at_once *= 2  # else Python has something to do between the epochs
        else:
            if not one_epoch and settings.schedule not in FINITE_SCHEDULES:
                warn_user(
                    f"Stochastic Optimizer: Maximum iterations ({settings.max_iter}) reached and the "
                    "optimization hasn't converged yet.",
                    ConvergenceWarning,
                )
    except KeyboardInterrupt:
        if session.optimizer.steps == steps_before:
            raise
        warn_user("Training interrupted by user.")
        if not progress.validation_scores:
            best = None
    return session.parameters() if best is None else best


# Seconds of compiled code up to which it is entered for more epochs the next time: verbose output is not late, and
# rates are not computed for many epochs that never come.
_SHORT = 0.02


def _rates(schedule, session, settings, progress, n_samples, n_batches, n_epochs):
    """Return the learning rate of each step of some epochs, as far as no plateau changes it."""
    optimizer = session.optimizer
    if schedule != "invscaling":
        total = settings.max_iter * n_batches
        return step_rates(schedule, optimizer.rate, optimizer.steps, n_epochs * n_batches, total)
    init, power = settings.learning_rate_init, settings.power_t
    later = [
        after_epoch(schedule, optimizer.rate, init, progress.samples_seen + i * n_samples, power)
        for i in range(1, n_epochs)
    ]
    return np.repeat([optimizer.rate, *later], n_batches)


def _run_epochs(session, data, settings, progress, random_state, twister, n_epochs, score, best):
    """Train on all samples, at most `n_epochs` times; return whether training stops, and the best parameters."""
    n_samples = data.order.size
    n_batches = -(-n_samples // session.settings.batch_size)
    if settings.shuffle and twister is None:
        random_state.shuffle(data.order)  # the order that sklearn.utils.shuffle would give
    rates = _rates(settings.schedule, session, settings, progress, n_samples, n_batches, n_epochs)
    watch = None
    if score is None and settings.schedule not in FINITE_SCHEDULES:
        watch = Watch(progress.best_loss, progress.no_improvement, settings.tol, settings.n_iter_no_change)
    stops, interrupted = False, True
    try:
        session.run(data, rates, twister=twister, watch=watch)
        interrupted = False
    finally:  # after Ctrl-C too
        for i, loss in enumerate(session.losses.tolist()):
            progress.add_epoch(loss, float(rates[i * n_batches]), n_samples)
            if settings.verbose:
                print(f"Iteration {progress.epochs}, loss = {loss:.8f}")
            if score is None:
                progress.watch_loss(settings.tol)
            elif not interrupted:
                best = _validate(session, settings, progress, score, best)
            stops = _diverged(session, progress, score) or _stops(session.optimizer, settings, progress, score)
    return stops, best


def _validate(session, settings, progress, score, best):
    """Take the score of the parameters; return them if it is the highest, else the best before."""
    parameters = session.parameters()
    value = score(*parameters)
    if settings.verbose:
        print(f"Validation score: {value:f}")
    return parameters if progress.watch_score(value, settings.tol) else best


def _diverged(session, progress, score):
    """Whether the parameters have become infinite, so that training cannot continue; the estimator says so.

    With early stopping it goes on, as in scikit-learn, and the parameters of the best score are kept.
    """
    return score is None and not math.isfinite(progress.loss) and not np.isfinite(session.params).all()


def _stops(optimizer, settings, progress, score):
    """Set the learning rate of the next epoch; return whether training stops instead."""
    schedule, init = settings.schedule, settings.learning_rate_init
    optimizer.rate = after_epoch(schedule, optimizer.rate, init, progress.samples_seen, settings.power_t)
    if progress.no_improvement <= settings.n_iter_no_change:
        return False
    if score is None and schedule in FINITE_SCHEDULES:
        return False  # the loss falls most where the rate does, at the end
    rate = after_plateau(schedule, optimizer.rate)
    if settings.verbose:
        print(_plateau_message(settings, rate, score))
    if rate is None:
        return True
    optimizer.rate = rate
    progress.no_improvement = 0
    return False


def _plateau_message(settings, rate, score):
    watched = "Training loss" if score is None else "Validation score"
    message = (
        f"{watched} did not improve more than tol={settings.tol:f} for {settings.n_iter_no_change} consecutive epochs."
    )
    if rate is not None:
        return f"{message} Setting learning rate to {rate:f}"
    if settings.schedule == "adaptive":
        return f"{message} Learning rate too small. Stopping."
    return f"{message} Stopping."
