"""Epochs in compiled code: the order of the samples, the mean loss, and the rule that stops.

A small network trains for many epochs in a millisecond: a call from Python for each would take longer than the epoch.
"""

import numpy as np

from fastbp.codegen.jit import inlined, jit
from fastbp.codegen.memory import load_scalar, pointer, store_scalar
from fastbp.kernels.shuffle import shuffle
from fastbp.kernels.threads import barrier
from fastbp.stopping import watch_loss

# Places in `Epochs.watch`: the lowest loss, the epochs without improvement, and whether the rule has stopped training.
BEST, COUNT, STOPPED, N_WATCHED = range(4)

_watch_loss = inlined(watch_loss)


@jit
def begin_epoch(epochs, order, cells, team):
    """Draw the order of the samples, before the first batch of an epoch.

    Parameters
    ----------
    epochs : Epochs
        Its arrays are changed in place.
    order : ndarray of int64
        Changed in place.
    cells, team
        As in `threads`: the first thread draws.
    """
    if epochs.twister.size == 0:
        return
    if team.rank == 0:
        shuffle(pointer(order, 0), order.size, pointer(epochs.twister, 0), pointer(epochs.draws, 0))
    barrier(cells, team)


@jit
def end_epoch(batch, epochs, losses, batch_size, n_seen, cells, team):
    """Take the mean loss after the last batch of an epoch; return whether training stops.

    Parameters
    ----------
    batch : int64
        Number of the batch, over all epochs.
    epochs, cells, team
        As in `begin_epoch`.
    losses : pointer to float64
        Mean loss of each batch.
    batch_size, n_seen : int64
        Samples of a batch, and of an epoch.
    """
    watch = pointer(epochs.watch, 0)
    if team.rank == 0:
        first = batch + 1 - epochs.n_batches
        total = 0.0
        for i in range(epochs.n_batches):
            total += load_scalar(losses, first + i) * min(batch_size, n_seen - i * batch_size)
        loss = total / n_seen
        count, best = _watch_loss(loss, load_scalar(watch, BEST), load_scalar(watch, COUNT), epochs.tol)
        store_scalar(pointer(epochs.losses, 0), batch // epochs.n_batches, loss)
        store_scalar(watch, BEST, best)
        store_scalar(watch, COUNT, count)
        store_scalar(watch, STOPPED, 1.0 if count > epochs.patience or not np.isfinite(loss) else 0.0)
    barrier(cells, team)
    return load_scalar(watch, STOPPED) != 0
