"""How far training is: what a model keeps of it, so that training can go on."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastbp.stopping import watch_loss


@dataclass
class Shuffling:
    """How the samples of the next epoch are drawn, where `partial_fit` goes on.

    Attributes
    ----------
    seed : int or None
        The parameter `random_state`, if it is an integer.
    generator : numpy.random.RandomState or None
        The generator from that seed, as the last epoch has left it. Without a seed it is the user's or NumPy's own,
        which goes on by itself.
    order : ndarray of int
        The order of the samples in the last epoch.
    """

    seed: int | None
    generator: np.random.RandomState | None
    order: np.ndarray


@dataclass
class TrainingState:
    """What training needs, beside the model with its optimizer and `Progress`, to go on after an epoch.

    Attributes
    ----------
    generator : numpy.random.RandomState
        As the epoch has left it.
    order : ndarray of int
        The order of the samples in the epoch.
    held_out : ndarray of int or None
        The samples that early stopping has held out, in their order.
    best : tuple of coefs and intercepts, or None
        With early stopping, the parameters of the best score so far.
    data : str
        A digest of the samples.
    """

    generator: np.random.RandomState
    order: np.ndarray
    held_out: np.ndarray | None
    best: tuple | None
    data: str


class Curve:
    """Numbers, one for each epoch, to which more are added.

    A copy shares the list of numbers until both have grown: `partial_fit` makes one in each call, which would take
    longer and longer, as it must change nothing where it fails.

    Parameters
    ----------
    numbers : iterable of float
        The first numbers.
    """

    def __init__(self, numbers=()):
        self._numbers = list(numbers)
        self._n = len(self._numbers)  # those of the list that are in this curve

    def __len__(self):
        return self._n

    def __iter__(self):
        return iter(self._numbers[: self._n])

    def append(self, number):
        """Add a number."""
        numbers = self._numbers
        numbers.append(number)
        if len(numbers) != self._n + 1:  # a copy has grown before, or does at this moment in another thread
            self._numbers = [*numbers[: self._n], number]
        self._n += 1

    def copy(self):
        """Return an independent copy."""
        other = Curve()
        other._numbers, other._n = self._numbers, self._n
        return other


@dataclass
class Progress:
    """The progress of training; `partial_fit` and `warm_start` continue from it.

    Attributes
    ----------
    loss_curve, lr_curve : Curve
        Mean loss of each epoch, over the batches as they were trained on; the learning rate of its first batch.
    loss, best_loss : float
        The last and the lowest of the losses; before the first there is no last.
    validation_scores, validation_losses : list of float or None
        Score and mean loss of the validation samples after each epoch, NaN where Ctrl-C came before; None if there
        are no samples.
    best_score : float
        With early stopping, the highest of the scores.
    best_epoch : int or None
        Its epoch, as `loss_curve` counts them from 1 on; None without early stopping.
    scoring : object
        The parameter that tells what the scores are.
    no_improvement : int
        Epochs since the loss last fell, or the score last rose, by more than `tol`.
    samples_seen : int
        Samples in all calls.
    epochs : int
        Epochs of the last call.
    """

    loss_curve: Curve = field(default_factory=Curve)
    lr_curve: Curve = field(default_factory=Curve)
    loss: float | None = None
    best_loss: float = np.inf
    validation_scores: list | None = None
    validation_losses: list | None = None
    best_score: float = -np.inf
    best_epoch: int | None = None
    scoring: Any = None
    no_improvement: int = 0
    samples_seen: int = 0
    epochs: int = 0

    def copy(self):
        """Return an independent copy."""
        values: dict[str, Any] = {
            name: value.copy() if isinstance(value, list | Curve) else value for name, value in vars(self).items()
        }  # fmt: skip
        return Progress(**values)

    def plain(self):
        """Return the attributes as a dict, with lists in the place of curves; `Progress.restore` takes it."""
        return {name: list(value) if isinstance(value, Curve) else value for name, value in vars(self).items()}

    @classmethod
    def restore(cls, plain):
        """Return the progress that `plain` has described."""
        return cls(**(plain | {name: Curve(plain[name]) for name in ("loss_curve", "lr_curve")}))

    def begin(self, *, validates, early_stopping, scoring=None):
        """Begin a call of training: other scores than before do not continue those that there are."""
        self.epochs = 0
        if not early_stopping or scoring != self.scoring:
            self.best_epoch = None
        if not validates:
            self.validation_scores = self.validation_losses = None
        elif self.validation_scores is None or scoring != self.scoring or (early_stopping and self.best_epoch is None):
            self.validation_scores, self.validation_losses = [], []
        if early_stopping and self.best_epoch is None:
            self.best_epoch, self.best_score, self.no_improvement = len(self.loss_curve), -np.inf, 0
        self.scoring = scoring

    def add_epoch(self, loss, rate, n_samples):
        """Take note of an epoch."""
        self.add_loss(loss)
        self.samples_seen += n_samples
        self.lr_curve.append(rate)

    def add_loss(self, loss):
        """Take note of the loss of an epoch, of which there is no score yet."""
        self.epochs += 1
        self.loss = loss
        self.loss_curve.append(loss)
        if self.validation_scores is not None and self.validation_losses is not None:
            self.validation_losses.append(math.nan)
            self.validation_scores.append(math.nan)

    def watch_loss(self, tol):
        """Compare the last loss with the best."""
        assert self.loss is not None
        count, self.best_loss = watch_loss(self.loss, self.best_loss, self.no_improvement, tol)
        self.no_improvement = int(count)

    def add_validation(self, loss, score):
        """Take note of the validation samples after the last epoch."""
        assert self.validation_scores is not None and self.validation_losses is not None
        self.validation_losses[-1], self.validation_scores[-1] = loss, score

    def watch_score(self, score, tol):
        """Compare a score with the best; return whether it is a new best."""
        self.no_improvement = self.no_improvement + 1 if score < self.best_score + tol else 0
        if not score > self.best_score:  # NaN is no improvement
            return False
        self.best_score, self.best_epoch = score, len(self.loss_curve)
        return True
