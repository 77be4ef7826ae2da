"""The stopping rule of training without held-out samples, for Python and for compiled code."""


def watch_loss(loss, best, count, tol):
    """Compare the loss of an epoch with the lowest before, as scikit-learn does.

    Parameters
    ----------
    loss, best : float
        Loss of the epoch; the lowest of those before, or infinity.
    count : float
        Epochs since the loss last fell by more than `tol`.
    tol : float
        What counts as an improvement.

    Returns
    -------
    count, best : float
        Both after this epoch. A loss that is not a number is no new best.
    """
    return count + 1.0 if loss > best - tol else 0.0, loss if loss < best else best
