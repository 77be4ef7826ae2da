"""Validation: the loss and the score of samples on which a network is not trained."""

from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import issparse

from fastbp.kernels.csr_matrix import csr_matrix_of
from fastbp.kernels.evaluation import row_losses
from fastbp.prediction import Predictor


class ValidationSamples(NamedTuple):
    """Samples that early stopping holds out, or that the user passes."""

    X: Any  # checked inputs: ndarray or scipy CSR matrix
    y: Any  # labels or targets, as scorers take them
    Y: np.ndarray  # (n_samples, n_outputs): targets, of the type in which the network is trained
    weight: np.ndarray | None


class Validation:
    """Computes loss and score of some samples again and again, with the parameters of the moment.

    Parameters
    ----------
    samples : ValidationSamples
        The samples.
    coefs, intercepts : list of ndarray
        Parameters of the shapes of the network.
    activations : list of Activation
        One for each layer.
    loss : Loss
        The loss.
    n_jobs : int or None
        See `threads.thread_count`.
    score : callable
        Returns a number, of which higher is better, from the outputs of the samples, their mean loss, and the
        parameters.
    """

    def __init__(self, samples, coefs, intercepts, activations, loss, n_jobs, score):
        # To make a predictor, or to check sparse rows, takes longer than a small epoch: here once, for all of them.
        X, self._Y, self._weight = samples.X, samples.Y, samples.weight
        self._arrays = [np.array(part, self._Y.dtype, order="C") for part in (*coefs, *intercepts)]
        n = len(coefs)
        self._predictor = Predictor(self._arrays[:n], self._arrays[n:], activations, X.shape[1])
        self._rows = csr_matrix_of(X, self._Y.dtype) if issparse(X) else X
        self._loss, self._multiclass = loss, activations[-1].by_rows
        self._n_jobs, self._score = n_jobs, score

    def __call__(self, coefs, intercepts):
        """Return the mean loss, without the L2 term, and the score."""
        for mine, part in zip(self._arrays, (*coefs, *intercepts), strict=True):
            mine[...] = part
        outputs, _ = self._predictor.outputs(self._rows, self._n_jobs)
        losses = row_losses(self._loss, self._multiclass, outputs, self._Y)
        loss = float(np.average(losses, weights=self._weight))
        return loss, self._score(outputs, loss, coefs, intercepts)
