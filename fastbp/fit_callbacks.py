"""scikit-learn's callbacks, which it has from version 1.9 on, during a call of `fit`."""

import inspect
from typing import Any

from fastbp.compat import begin_callbacks, callbacks_of


class FitCallbacks:
    """Tells the callbacks of an estimator when its training and each epoch begin and end.

    Parameters
    ----------
    estimator : BackpropClassifier or BackpropRegressor
        The estimator on which they are set.
    context : sklearn.callback.CallbackContext
        That of the call of `fit`.
    arguments : dict
        What the callbacks get to know of this call.
    task_name : str
        What they call an epoch.
    interrupts : Interrupts
        Lets Ctrl-C interrupt them.

    Attributes
    ----------
    keeps_state : bool
        Whether any of them saves models from which training goes on; see `fastbp.callbacks.Checkpoint`.
    models : checkpoints.Models
        Makes the models that they see; to be set before the first epoch ends.
    """

    def __init__(self, estimator, context, arguments, task_name, interrupts):
        self._arguments = {"estimator": estimator, **arguments}
        self._fit, self._task_name, self._interrupts = context, task_name, interrupts
        self._epoch: Any = None
        self.models: Any = None
        callbacks = callbacks_of(estimator)
        self.keeps_state = any(getattr(callback, "keeps_state", False) for callback in callbacks)
        self._viewers = [callback for callback in callbacks if _sees_models(callback)]
        context.call_on_fit_task_begin(**self._arguments)

    @classmethod
    def of(cls, estimator, X, y, sample_weight, interrupts):
        """Set up the callbacks of an estimator; None if it has none.

        scikit-learn takes them down at the end of `fit`, whatever happens: by what it finds on this very object.
        """
        context = begin_callbacks(estimator, estimator.max_iter)
        if context is None:
            return None
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        arguments = {"X": X, "y": y, "metadata": metadata}
        name = "iteration" if estimator.solver == "lbfgs" else "epoch"
        return cls(estimator, context, arguments, name, interrupts)

    def begin_epoch(self):
        """Begin an epoch, unless one has begun."""
        if self._epoch is None:
            with self._interrupts.let_through():
                self._epoch = self._fit.subcontext(task_name=self._task_name)
                self._epoch.call_on_fit_task_begin(**self._arguments)

    def end_epoch(self, model, n_epochs, is_last):
        """End the epoch.

        Parameters
        ----------
        model : callable
            Returns the model of this moment; called if a callback wants to see it.
        n_epochs : int
            Epochs of this fit.
        is_last : bool
            Whether training ends with it, unless a callback ends it.

        Returns
        -------
        bool
            Whether a callback wants to end training.
        """
        epoch, self._epoch = self._epoch, None  # an error, or Ctrl-C, in a callback ends it too

        def attributes():
            if not any([getattr(viewer, "is_due", _always)(n_epochs, is_last) for viewer in self._viewers]):
                return None
            # scikit-learn copies the estimator and sets these: the copy becomes the model, with no attribute of before.
            return {"__dict__": vars(model())}

        with self._interrupts.let_through():
            return epoch.call_on_fit_task_end(**self._arguments, reconstruction_attributes=attributes)

    def close(self):
        """End an epoch that is not complete, of which the callbacks get no model."""
        if self._epoch is not None:
            epoch, self._epoch = self._epoch, None
            with self._interrupts.let_through():
                epoch.call_on_fit_task_end(**self._arguments)

    def end(self):
        """End the call of `fit`: the estimator itself is the model."""
        self._fit.call_on_fit_task_end(**self._arguments, reconstruction_attributes={})


def _sees_models(callback):
    return "fitted_estimator" in inspect.signature(callback.on_fit_task_end).parameters


def _always(n_epochs, is_last):
    return True
