"""A call of `fit`: what is passed beside the samples, and where its training begins."""

import time
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import numpy as np

from fastbp.fit_callbacks import FitCallbacks
from fastbp.interrupts import Interrupts
from fastbp.progress import Progress, TrainingState


@dataclass
class Call:
    """A call of `fit` or `partial_fit`, beside its samples.

    Attributes
    ----------
    X_val, y_val
        Validation samples of the user.
    weight_val : array-like or None
        Their weights.
    incremental : bool
        Whether it is `partial_fit`: one epoch, with the optimizer's state of the last call.
    knows_classes : bool
        Whether the classes have been learned already.
    callbacks : FitCallbacks or None
        Those of this call.
    stop : threading.Event or None
        Ends training after the epoch in which another thread sets it.
    resume_from : BaseBackprop or None
        A checkpoint, of whose fit this is the rest.
    interrupts : Interrupts
        Holds back Ctrl-C from the first batch on.
    begin : float
        The time of `time.perf_counter` from which `max_time` counts.
    """

    X_val: Any = None
    y_val: Any = None
    weight_val: Any = None
    incremental: bool = False
    knows_classes: bool = False
    callbacks: FitCallbacks | None = None
    stop: Event | None = None
    resume_from: Any = None
    interrupts: Interrupts = field(default_factory=Interrupts)
    begin: float = field(default_factory=lambda: time.perf_counter())


@dataclass
class Start:
    """Where a training begins.

    Attributes
    ----------
    coefs, intercepts : list of ndarray
        The parameters.
    progress : Progress
        What the training changes.
    random_state : numpy.random.RandomState
        The generator.
    order : ndarray of int64
        The order of the samples.
    memory : dict or None
        What `OptimizerState.store` returned; None for a new optimizer.
    state : TrainingState or None
        Of the checkpoint from which it goes on.
    """

    coefs: list
    intercepts: list
    progress: Progress
    random_state: np.random.RandomState
    order: np.ndarray
    memory: dict | None = None
    state: TrainingState | None = None
