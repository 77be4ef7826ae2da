"""Training: the loop over epochs, the order of samples, stopping rules, history, Ctrl-C."""

import copy
import math
import time
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from fastbp.kernels.session import Watch
from fastbp.kernels.shuffle import twister_of
from fastbp.progress import Progress  # noqa: F401  # pickles of 0.1.0 name it here
from fastbp.schedules import FINITE_SCHEDULES, after_epoch, after_plateau, step_rates
from fastbp.user_warnings import MaxTimeWarning, warn_user


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
    early_stopping: bool = False
    scoring: Any = None
    max_time: float | None = None
    deadline: float = math.inf  # the time of `time.perf_counter` when `max_time` is over
    stop: Event | None = None  # set by another thread to end training after the epoch

    @property
    def is_stopped(self):
        """Whether another thread has ended training."""
        return self.stop is not None and self.stop.is_set()


def fit(
    session, data, settings, progress, random_state, *, one_epoch=False, validation=None, callbacks=None, resume=None
):  # fmt: skip
    """Train until a stopping rule applies.

    Parameters
    ----------
    session : Session
        The network; its parameters are changed in place.
    data : Data
        Samples; their order is changed in place.
    settings : Settings
        How to train.
    progress : progress.Progress
        Changed in place.
    random_state : numpy.random.RandomState
        Shuffles as scikit-learn does.
    one_epoch : bool, default=False
        Whether to stop after one epoch without a warning, as `partial_fit` does.
    validation : callable, default=None
        Returns the mean loss and the score of validation samples from `coefs` and `intercepts`; see `Validation`.
    callbacks : FitCallbacks, default=None
        They may end training after an epoch.
    resume : progress.TrainingState, default=None
        Go on after the last epoch of `progress`, in the same call of training.

    Returns
    -------
    coefs, intercepts : list of ndarray
        The parameters after the last epoch; with early stopping those of the best score.

    Warns
    -----
    ConvergenceWarning
        If `max_iter` epochs were not enough, for schedules that do not end by themselves.
    UserWarning
        On Ctrl-C, and after `max_time`; both keep what the network has learned. If no score was a number.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C before the first batch: there is nothing to keep. With `one_epoch` what was learned is kept, too, and
        `Interrupts` raises it when the estimator has it: the user wants to end a loop of such calls.
    """
    if resume is None:
        progress.begin(
            validates=validation is not None, early_stopping=settings.early_stopping, scoring=settings.scoring
        )  # fmt: skip
    steps_before = session.optimizer.steps
    loop = _Loop(session, data, settings, progress, random_state, validation, callbacks, resume)
    try:
        session.interrupts.hold()
        stopped = loop.run(1 if one_epoch else settings.max_iter)
        if loop.is_late:
            warn_user(_late_message(settings, progress), MaxTimeWarning)
        elif not (stopped or one_epoch or settings.schedule in FINITE_SCHEDULES):
            warn_user(
                f"Stochastic Optimizer: Maximum iterations ({settings.max_iter}) reached and the "
                "optimization hasn't converged yet.",
                ConvergenceWarning,
            )
    except KeyboardInterrupt:
        if session.optimizer.steps == steps_before:
            raise
        if one_epoch:
            session.interrupts.raise_at_end()
        else:
            warn_user("Training interrupted by user.")
    if loop.best is not None and loop.is_scored and progress.best_score == -math.inf:
        warn_user(
            f"No validation score was a number with scoring={settings.scoring!r}: the weights are those from before "
            "the training. The validation samples may lack a class, or the network may have diverged."
        )
    return loop.kept()


# Seconds of compiled code up to which it is entered for more epochs the next time: verbose output is not late, and
# rates are not computed for many epochs that never come.
_SHORT = 0.02


class _Loop:
    """The loop over epochs. Compiled code trains for some at a time; what follows each of them is in `_end_epoch`.

    Parameters
    ----------
    session, data, settings, progress, random_state, validation, callbacks, resume
        See `fit`.

    Attributes
    ----------
    best : tuple of coefs and intercepts, or None
        With early stopping, the parameters of the best score; those of a warm start are the best so far.
    is_scored : bool
        Whether there has been a score, be it NaN.
    is_late : bool
        Whether the time is over, and epochs are left.
    """

    def __init__(self, session, data, settings, progress, random_state, validation, callbacks, resume):
        self._session, self._data, self._settings, self._progress = session, data, settings, progress
        self._random_state, self._validation, self._callbacks = random_state, validation, callbacks
        self._twister = twister_of(random_state) if settings.shuffle else None
        self._n_samples = data.order.size
        self._n_batches = -(-self._n_samples // session.settings.batch_size)
        self.best = session.parameters() if settings.early_stopping else None
        self.is_scored = progress.best_score > -math.inf  # by the warm start
        self.is_late = False
        self._n_epochs = 0
        self._resumes = resume is not None
        if resume is not None and settings.early_stopping:
            self.best, self.is_scored = copy.deepcopy(resume.best), True

    def kept(self):
        """Return the parameters to keep: the best, or those of the last batch."""
        # Training may end before there is a score, on Ctrl-C for example.
        return self.best if self.best is not None and self.is_scored else self._session.parameters()

    def run(self, n_epochs):
        """Train for so many epochs, or until a stopping rule applies; return whether one does."""
        self._n_epochs = n_epochs
        try:
            return self._run(n_epochs)
        finally:
            if self._callbacks is not None:
                self._callbacks.close()

    def _run(self, n_epochs):
        # Python has something to do between the epochs if it scores or shuffles, or if there are callbacks.
        watched = self._validation is not None or self._callbacks is not None
        one_by_one = watched or (self._settings.shuffle and self._twister is None)
        if self._resumes and self._stops():  # by the rules of now, which may be others
            return True
        at_once = 1
        while self._progress.epochs < n_epochs:
            begin = time.perf_counter()
            if self._train(min(n_epochs - self._progress.epochs, at_once)) or self._settings.is_stopped:
                return True
            if self._progress.epochs < n_epochs and time.perf_counter() >= self._settings.deadline:
                self.is_late = True
                return True
            if time.perf_counter() - begin < _SHORT and not one_by_one:
                at_once *= 2
        return False

    def _train(self, n_epochs):
        """Train on all samples, at most `n_epochs` times; return whether training stops."""
        if self._callbacks is not None:
            self._callbacks.begin_epoch()
        if self._settings.shuffle and self._twister is None:
            self._random_state.shuffle(self._data.order)  # the order that sklearn.utils.shuffle would give
        rates = self._rates(n_epochs)
        try:
            self._session.run(
                self._data, rates, twister=self._twister, watch=self._watch(), deadline=self._settings.deadline
            )  # fmt: skip
        except KeyboardInterrupt:
            self._take_notes(rates, scores=False)  # who presses Ctrl-C does not wait for a score
            raise
        return self._take_notes(rates)

    def _rates(self, n_epochs):
        """Return the learning rate of each step of some epochs, as far as no plateau changes it."""
        settings, optimizer = self._settings, self._session.optimizer
        if settings.schedule != "invscaling":
            total = settings.max_iter * self._n_batches
            return step_rates(settings.schedule, optimizer.rate, optimizer.steps, n_epochs * self._n_batches, total)
        later = [self._rate_after(self._progress.samples_seen + i * self._n_samples) for i in range(1, n_epochs)]
        return np.repeat([optimizer.rate, *later], self._n_batches)

    def _watch(self):
        """Return the rule that compiled code applies after an epoch; None where none does, or a score is watched."""
        settings, progress = self._settings, self._progress
        if settings.early_stopping or settings.schedule in FINITE_SCHEDULES:
            return None
        return Watch(progress.best_loss, progress.no_improvement, settings.tol, settings.n_iter_no_change)

    def _take_notes(self, rates, *, scores=True):
        """Take note of the epochs that compiled code has done; return whether training stops."""
        stops = False
        for loss, rate in zip(self._session.losses.tolist(), rates[:: self._n_batches].tolist(), strict=False):
            stops = self._end_epoch(loss, rate, scores=scores)
        return stops

    def _end_epoch(self, loss, rate, *, scores):
        """Do what follows an epoch; return whether training stops."""
        settings, progress = self._settings, self._progress
        progress.add_epoch(loss, rate, self._n_samples)
        if settings.verbose:
            print(f"Iteration {progress.epochs}, loss = {loss:.8f}")
        # All notes are taken before code of the user runs, which Ctrl-C can end; only a score has to be there before.
        stops = False
        if not settings.early_stopping:
            progress.watch_loss(settings.tol)
            stops = self._stops()
        if self._validation is not None and scores:
            self._validate()
        if settings.early_stopping:
            stops = self._stops()
        if self._has_diverged():
            return True
        # Who presses Ctrl-C does not wait for what callbacks do with the model.
        if self._callbacks is None or not scores:
            return stops
        is_last = stops or progress.epochs == self._n_epochs
        return self._callbacks.end_epoch(self._model, progress.epochs, is_last) or stops

    def _model(self):
        """Return the model that callbacks see."""
        models = self._callbacks.models
        if not self._callbacks.keeps_state:
            return models.model(*self._session.peek())
        # Rows of weights that wait for their feature do so no more, as in training that goes on from the checkpoint.
        return models.checkpoint(*self._session.parameters(), self.best)

    def _validate(self):
        """Take loss and score of the parameters; with early stopping, keep them if the score is the highest."""
        early_stopping = self._settings.early_stopping
        parameters = self._session.parameters() if early_stopping else self._session.peek()
        with self._session.interrupts.let_through():
            loss, value = self._validation(*parameters)
        self._progress.add_validation(loss, value)
        self.is_scored = True
        if self._settings.verbose:
            print(f"Validation score: {value:f}")
        if early_stopping and self._progress.watch_score(value, self._settings.tol):
            self.best = parameters

    def _has_diverged(self):
        """Whether the parameters have become infinite, so that training cannot continue; the estimator says so.

        With early stopping it goes on, as in scikit-learn, and the parameters of the best score are kept.
        """
        if self._settings.early_stopping or math.isfinite(self._progress.loss):
            return False
        return not np.isfinite(self._session.params).all()

    def _stops(self):
        """Set the learning rate of the next epoch; return whether training stops instead."""
        settings, progress, optimizer = self._settings, self._progress, self._session.optimizer
        optimizer.rate = self._rate_after(progress.samples_seen)
        if progress.no_improvement <= settings.n_iter_no_change:
            return False
        if not settings.early_stopping and settings.schedule in FINITE_SCHEDULES:
            return False  # the loss falls most where the rate does, at the end
        rate = after_plateau(settings.schedule, optimizer.rate)
        if settings.verbose:
            print(_plateau_message(settings, rate, "Validation score" if settings.early_stopping else "Training loss"))
        if rate is None:
            return True
        optimizer.rate = rate
        progress.no_improvement = 0
        return False

    def _rate_after(self, samples_seen):
        """Return the learning rate of the epoch that begins after so many samples."""
        settings, rate = self._settings, self._session.optimizer.rate
        return after_epoch(settings.schedule, rate, settings.learning_rate_init, samples_seen, settings.power_t)


def _late_message(settings, progress):
    """Return the text of the warning that the time is over."""
    return (
        f"Training stopped after max_time={settings.max_time} seconds, in epoch {progress.epochs} of "
        f"{settings.max_iter}. Increase max_time to train longer, or continue with partial_fit, warm_start=True or, "
        "from a checkpoint, resume_from."
    )


def _plateau_message(settings, rate, watched):
    message = (
        f"{watched} did not improve more than tol={settings.tol:f} for {settings.n_iter_no_change} consecutive epochs."
    )
    if rate is not None:
        return f"{message} Setting learning rate to {rate:f}"
    if settings.schedule == "adaptive":
        return f"{message} Learning rate too small. Stopping."
    return f"{message} Stopping."
