"""The losses of samples, from the outputs of the network for them."""

import numpy as np

from fastbp.codegen.jit import cached_jit
from fastbp.codegen.memory import pointer, store_scalar
from fastbp.codegen.target import lanes
from fastbp.losses import LOSSES, CompiledLoss, loss_of_row


@cached_jit
def _set_row_losses(code, parameters, eps, multiclass, outputs, y, losses):
    loss = CompiledLoss(code, pointer(parameters, 0), eps)
    n = y.shape[1]
    for i in range(y.shape[0]):
        value = loss_of_row(loss, multiclass, n, pointer(y, i * n), pointer(outputs, i * n))
        store_scalar(pointer(losses, 0), i, value)


def row_losses(loss, multiclass, outputs, y):
    """Return the loss of each sample.

    Parameters
    ----------
    loss : Loss
        The loss.
    multiclass : bool
        Whether the outputs are a softmax.
    outputs, y : ndarray of shape (n_samples, n_outputs)
        Outputs and targets, of the network's type, C-ordered.

    Returns
    -------
    ndarray of shape (n_samples,), float64
    """
    padding = lanes(outputs.itemsize)  # the kernel loads whole vectors
    padded = np.zeros(outputs.size + padding, outputs.dtype)
    padded[: outputs.size] = outputs.ravel()
    parameters = np.zeros(len(loss.parameters) + padding, outputs.dtype)
    parameters[: len(loss.parameters)] = loss.parameters
    losses = np.empty(len(y))
    eps = float(np.finfo(outputs.dtype).eps)
    _set_row_losses(LOSSES[loss.name], parameters, eps, bool(multiclass), padded, y, losses)
    return losses * loss.scale
