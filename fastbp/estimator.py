"""What the estimators share: parameters, checks of the input, fitted attributes."""

import copy
import math
from contextlib import contextmanager
from functools import cache, lru_cache
from numbers import Integral, Real
from operator import is_
from weakref import ref

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from fastbp import lbfgs, training
from fastbp.activations import ACTIVATIONS, SHARED, Activation, check_can_learn, get_activation
from fastbp.calls import Start
from fastbp.checkpoints import Models, check_checkpoint, check_same_training, compact, digest_of
from fastbp.compat import (
    CallbackSupportMixin,
    Interval,
    Options,
    StrOptions,
    check_feature_names,
    check_parameters,
)
from fastbp.compiled import CompiledPredictor
from fastbp.dropout import Dropout
from fastbp.fit_callbacks import FitCallbacks
from fastbp.initializers import WEIGHT_INITS, initial_parameters, scaled_parameters
from fastbp.inputs import keep_float64, need_no_checks, plain_numbers, ravel_column, targets_and_weights
from fastbp.kernels.csr_matrix import split_inputs
from fastbp.kernels.network import make_network
from fastbp.kernels.plan import is_mostly_zero
from fastbp.kernels.records import Data, declare_writeable
from fastbp.kernels.session import OptimizerState, Session, StepSettings
from fastbp.losses import CANONICAL_ACTIVATIONS
from fastbp.optimizers import SOLVERS
from fastbp.prediction import ArraysMovedError, Predictor, check_shapes
from fastbp.progress import Progress, Shuffling, TrainingState
from fastbp.schedules import SCHEDULES, SGD_SCHEDULES
from fastbp.state import PlainStateMixin
from fastbp.user_warnings import warn_user
from fastbp.validation import Validation, ValidationSamples

# The predictor of each estimator, and what removes it with the estimator. Kept outside of the estimators, whose
# attributes prediction must not change; by id, as a subclass with `__eq__` may have no hash.
_PREDICTORS: dict[int, tuple[Predictor, ref]] = {}

# Parameters that are known to be valid, of each estimator that goes on with `partial_fit`; kept as predictors are.
_CHECKED: dict[int, tuple[list, ref]] = {}

# What training sets beside the attributes that end with an underscore.
_PRIVATE_FITTED = {
    "_activations", "_binarizer", "_is_untrained", "_loss", "_n_targets", "_optimizer", "_progress", "_shuffling",
    "_training_state",
}  # fmt: skip


class NotSupportedError(ValueError, NotImplementedError):
    """What a method does not do with these parameters; scikit-learn raises the first, its checks know the second."""


class BaseBackprop(PlainStateMixin, CallbackSupportMixin, BaseEstimator):
    """Base of the estimators that are trained by backpropagation."""

    _parameter_constraints: dict = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS)), Activation, list, tuple],
        "output_activation": [StrOptions({"auto", *ACTIVATIONS}), Activation],
        "solver": [StrOptions(set(SOLVERS))],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions(set(SCHEDULES))],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left"), "array-like"],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
        "scoring": [str, callable, None],
        "max_time": [Interval(Real, 0, None, closed="neither"), None],
        "weight_init": [StrOptions(set(WEIGHT_INITS))],
        "dtype": [StrOptions({"auto", "float32", "float64"})],
        "n_jobs": [Interval(Integral, 1, None, closed="left"), Interval(Integral, None, -1, closed="right"), None],
    }

    coefs_: list[np.ndarray]
    intercepts_: list[np.ndarray]
    _progress: Progress
    _training_state: TrainingState
    _optimizer: dict
    _activations: list[Activation]
    # Whether targets must be numbers.
    _numeric_targets = False

    def compiled_predictor(self) -> CompiledPredictor:
        """Return the fitted network as a function that compiled code calls.

        A function compiled by Numba, or C, calls it for a sample or for some, without the interpreter. It returns what
        `predict_proba` of a classifier, or `predict` of a regressor, returns, with the same bits.

        Returns
        -------
        predictor : CompiledPredictor
            Called as ``predictor(x)`` or ``predictor(x, out)``. It has a copy of the weights: training or editing this
            estimator does not change it.

        Examples
        --------
        >>> from fastbp import BackpropRegressor
        >>> from numba import njit
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True)
        >>> predictor = BackpropRegressor(max_iter=500, random_state=0).fit(X, y).compiled_predictor()
        >>> @njit
        ... def effect(predictor, x, j, step):
        ...     changed = x.copy()
        ...     changed[j] += step
        ...     return predictor(changed) - predictor(x)
        >>> bool(effect(predictor, X[0], 2, 0.01) > 0)
        True
        """
        model = self._as_it_is()
        check_is_fitted(model)
        return CompiledPredictor(
            model.coefs_, model.intercepts_, model._activations, model.n_features_in_, is_pair=model._has_pair(),
            rule=model._probability_rule(), is_vector=model._is_vector(),
        )  # fmt: skip

    @property
    def loss_curve_(self) -> list[float]:
        """Mean loss of each epoch, of all calls of `partial_fit` and warm starts."""
        return self._curve("loss_curve")

    @property
    def lr_curve_(self) -> list[float] | None:
        """Learning rate of each epoch, at its first batch; None for the solver "lbfgs"."""
        curve = self._curve("lr_curve")
        return None if self._optimizer["solver"] == "lbfgs" else curve

    def _curve(self, name):
        # Made when somebody asks for it: in each call of `partial_fit` it would take longer and longer.
        if "_progress" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute '{name}_': it is not fitted.")
        return list(getattr(self._progress, name))

    def _check_X(self, X, y="no_validation", *, reset, dtype=None):
        """Check the input.

        Parameters
        ----------
        X, y
            As the user gave them.
        reset : bool
            Whether this is the first training; else X must have the features of that time.
        dtype : dtype, default=None
            The network's, where it is known but not there yet.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), C-ordered, or scipy CSR matrix
            Its type can differ from the network's: the kernels convert each sample when they gather it.
        y : ndarray, if it was given
        dtype : dtype
            The network's: that of the first training.
        """
        if dtype is None:
            dtype = np.dtype(np.float32 if self.dtype == "auto" else self.dtype) if reset else self.coefs_[0].dtype
        has_targets = not isinstance(y, str)
        if reset or "feature_names_in_" in self.__dict__ or not need_no_checks(X, y, self.n_features_in_):
            X, y = self._validate(X, y, has_targets, reset, dtype)
        if reset and self.dtype == "auto" and X.dtype == np.float64:
            dtype = X.dtype
        values = X.data if issparse(X) else X
        if (
            values.dtype.itemsize > dtype.itemsize
            and values.size
            and max(values.max(), -values.min()) > np.finfo(dtype).max
        ):
            raise ValueError(f"Input X contains infinity or a value too large for {dtype!r}.")
        X = X if issparse(X) else declare_writeable(X)
        return (X, ravel_column(y), dtype) if has_targets else (X, dtype)

    def _validate(self, X, y, has_targets, reset, dtype):
        """Return X and y as scikit-learn's checks leave them."""
        X, sources = keep_float64(X, dtype)
        options = {"multi_output": True, "y_numeric": self._numeric_targets} if has_targets else {}
        try:
            checked = validate_data(
                self, X, y, reset=reset, dtype=sources, order="C", accept_sparse="csr", **options
            )  # fmt: skip
        except OverflowError as error:
            raise ValueError(f"The input has a number that is too large for a float: {error}.") from error
        if not has_targets:
            return checked, y
        X, y = checked
        if issparse(y) and (self._numeric_targets or y.shape[1] == 1):
            raise TypeError(
                "Sparse data was passed for y, but dense data is required. Use '.toarray()' to convert to a dense "
                "numpy array."
            )
        return X, y

    def _check_solver(self):
        if self.solver == "lbfgs":
            raise AttributeError(
                f"partial_fit is only available for stochastic optimizers. {self.solver} is not stochastic."
            )
        return True

    def _check_parameters_again(self):
        """Validate parameters that have changed: scikit-learn does not in `partial_fit` of a fitted estimator."""
        values = [getattr(self, name) for name in self._parameter_constraints]
        known, _ = _CHECKED.get(id(self), ((), None))
        if len(known) != len(values) or not all(map(is_, values, known)):
            check_parameters(self)
            _keep(_CHECKED, self, values)

    def _fit(self, X, y, sample_weight, call):
        """Check the input and train. If anything fails, the estimator is as it was before."""
        if call.incremental:
            self._check_parameters_again()
        else:
            # On this object, not on the copy: after an error scikit-learn takes down the callbacks that it finds here.
            call.callbacks = FitCallbacks.of(self, X, y, sample_weight, call.interrupts)
        with call.interrupts, self._all_at_once() as model:
            model._learn(X, y, sample_weight, call)
        if call.callbacks is not None:
            call.callbacks.end()
        return self

    def _learn(self, X, y, sample_weight, call):
        """Do the work of `_fit` on this very object, which a failure leaves half changed."""
        if call.resume_from is not None:
            check_checkpoint(self, call.resume_from)
        if self.__dict__.pop("_is_untrained", False):
            check_feature_names(self, X, reset=True)  # `initialize` does not know them
        goes_on = call.incremental or (self.warm_start and call.resume_from is None)
        first = not (hasattr(self, "coefs_") and goes_on)
        fitted_units = None
        if not first:  # the user may have edited them
            fitted_units = check_shapes(self.coefs_, self.intercepts_, self.n_features_in_, self._activations)
        X, y, dtype = self._check_X(X, y, reset=first)
        Y = self._check_targets(y, reset=first and not call.knows_classes)
        if self.early_stopping and call.incremental:
            raise NotSupportedError(
                "partial_fit does not support early_stopping=True. Use early_stopping=False, or call fit."
            )
        sample_weight = self._combine_weights(X, y, sample_weight, incremental=call.incremental)
        Y, weight = targets_and_weights(X, Y, sample_weight, self._work_dtype(dtype))
        samples = None
        if call.X_val is not None or call.y_val is not None:
            samples = self._check_validation(call.X_val, call.y_val, call.weight_val, dtype)
        self._fit_network(X, y, Y, weight, dtype, call, fitted_units, samples)

    def _check_validation(self, X, y, weight, dtype):
        """Check the validation samples that the user, or an ensemble, passes."""
        if X is None or y is None:
            raise ValueError("X_val and y_val must be passed together.")
        try:
            X, y, _ = self._check_X(X, y, reset=False, dtype=dtype)
            Y, weight = targets_and_weights(X, self._encode_targets(y), weight, self._work_dtype(dtype))
        except ValueError as error:
            raise ValueError(f"X_val and y_val do not fit the training data: {error}") from error
        return ValidationSamples(X, y, Y, weight if weight.size else None)

    def _combine_weights(self, X, y, sample_weight, *, incremental):
        """Return the weights of the samples, those by class included."""
        return sample_weight

    def _training_targets(self, Y):
        """Return the targets of training; those of scores are Y."""
        return Y

    def _work_dtype(self, dtype):
        """Return the type in which a network is trained."""
        # The line search of lbfgs compares losses that differ by less than the precision of float32.
        return np.dtype(np.float64) if self.solver == "lbfgs" else dtype

    def _encode(self, X, y, sample_weight=None):
        """Check data of a fitted estimator; return inputs, targets and weights as the kernels take them."""
        check_is_fitted(self)
        X, y, dtype = self._check_X(X, y, reset=False)
        return X, *targets_and_weights(X, self._encode_targets(y), sample_weight, dtype)

    def _fit_network(self, X, y, Y, weight, dtype, call, fitted_units=None, samples=None):
        """Train, and set the fitted attributes.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features), or scipy CSR matrix
            Checked inputs.
        y
            Checked labels or targets.
        Y : ndarray of shape (n_samples, n_outputs)
            Targets, of the type in which the network is trained.
        weight : ndarray of shape (n_samples,) or (0,)
            Weights of the samples, or nothing.
        dtype : dtype
            Type of the network's numbers.
        call : Call
            What else was passed.
        fitted_units : list of int, default=None
            The units of the network whose weights to begin with; None for new weights, or those of a checkpoint.
        samples : ValidationSamples, default=None
            Those of the user.
        """
        units, activations = self._layout(X.shape[1], Y.shape[1])
        check_can_learn(activations)
        dropout = self._hidden_dropout(len(units) - 2)
        self._check_solver_options(dropout)
        work_dtype = self._work_dtype(dtype)
        x, csr = split_inputs(X, work_dtype)  # before scipy takes samples from X: it does not check its index arrays
        keeps_state = call.callbacks is not None and call.callbacks.keeps_state
        digest = ""
        if keeps_state or call.resume_from is not None:
            inputs = [dtype.name, units[0], x, *(csr or ())]
            digest = digest_of({"X": inputs, "y": [Y], "sample_weight": [weight], "X_val/y_val": samples or ()})
        start = self._begin(call, units, activations, dtype, fitted_units, X.shape[0], digest)
        held_out = start.state.held_out if start.state else None
        if samples is None and self.early_stopping and self.solver != "lbfgs":
            if held_out is None:
                start.order, held_out = self._hold_out(Y, start.random_state)
            samples = self._held_out_samples(X, y, Y, weight, held_out)
        data = Data(x, self._training_targets(Y), weight, start.order)
        step_settings = self._step_settings(data.order.size, Y.shape[1])
        network = _network_of(
            units, activations, work_dtype, step_settings.batch_size, csr is not None, tuple(dropout)
        )  # fmt: skip
        optimizer = self._optimizer_of(start, network)
        params, is_sparse = network.pack(start.coefs, start.intercepts), csr is None and is_mostly_zero(X)
        settings, progress = self._loop_settings(call), start.progress
        session = Session(
            network, params, optimizer, step_settings, data.order.size, one_epoch=call.incremental, sparse=is_sparse,
            csr=csr, interrupts=call.interrupts,
        )  # fmt: skip

        def set_fitted(model, coefs, intercepts):
            model._set_fitted(network, coefs, intercepts, dtype, optimizer.copy(), progress.copy())

        models = Models(self, set_fitted, start.random_state, data.order, held_out, digest)
        if call.callbacks is not None:
            call.callbacks.models = models
        validation = None
        if samples is not None:
            score, loss = self._score_function(samples, models.model), step_settings.loss
            validation = Validation(samples, start.coefs, start.intercepts, activations, loss, self.n_jobs, score)
        if self.solver == "lbfgs":
            coefs, intercepts = lbfgs.fit(session, data, settings, progress, self.max_fun, validation, call.callbacks)
        else:
            coefs, intercepts = training.fit(
                session, data, settings, progress, start.random_state, one_epoch=call.incremental,
                validation=validation, callbacks=call.callbacks, resume=start.state,
            )  # fmt: skip
        if not all(np.isfinite(values).all() for values in [*coefs, *intercepts]):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need "
                "to be preprocessed."
            )
        self._set_fitted(network, coefs, intercepts, dtype, optimizer, progress)
        if call.incremental:
            self._keep_shuffling(start.random_state, data.order)

    def _begin(self, call, units, activations, dtype, fitted_units, n_samples, digest):
        """Return where a training begins: with new weights, those of the last call, or at a checkpoint."""
        if call.resume_from is not None:
            checkpoint = call.resume_from
            check_same_training(self, checkpoint, digest)
            progress, state = checkpoint._progress.copy(), checkpoint._training_state
            n_held_out = 0 if state.held_out is None else len(state.held_out)
            fitted_units = check_shapes(
                checkpoint.coefs_, checkpoint.intercepts_, checkpoint.n_features_in_, checkpoint._activations
            )  # fmt: skip
            if fitted_units != units or len(state.order) + n_held_out != n_samples:
                raise ValueError("The parts of the checkpoint resume_from do not fit together.")
            progress.scoring = self.scoring  # files do not hold code
            return Start(
                checkpoint.coefs_, checkpoint.intercepts_, progress, copy.deepcopy(state.generator),
                state.order.astype(np.int64), checkpoint._optimizer, state,
            )  # fmt: skip
        random_state, order = self._begin_shuffling(n_samples, resume=call.incremental and fitted_units is not None)
        if fitted_units is None:
            coefs, intercepts = self._draw_parameters(units, activations, random_state, dtype)
            return Start(coefs, intercepts, Progress(), random_state, order)
        if fitted_units != units:
            raise ValueError(
                f"The fitted network has layers of {fitted_units} units, this call needs {units}. Training can "
                "continue only in the same shape: set warm_start=False and call fit to start anew."
            )
        memory = self._optimizer if call.incremental else None
        return Start(self.coefs_, self.intercepts_, self._progress.copy(), random_state, order, memory)

    def _optimizer_of(self, start, network):
        """Return the optimizer: as it was where training goes on, if it is of the same kind; else a new one."""
        optimizer = None if start.memory is None else OptimizerState.restore(start.memory, network, self.solver)
        if optimizer is None:
            optimizer = OptimizerState.empty(network, self.solver, float(self.learning_rate_init))
        if network.has_dropout and optimizer.seed is None:
            optimizer.seed = int(start.random_state.randint(np.iinfo(np.int64).max, dtype=np.int64))
        return optimizer

    def _begin_shuffling(self, n_samples, *, resume):
        """Return the random generator and the order of the samples, those of the last call if training goes on."""
        last = self.__dict__.get("_shuffling") if resume else None
        if last is None or last.seed != self._seed():
            return check_random_state(self.random_state), np.arange(n_samples)
        # A copy, as training may fail.
        random_state = check_random_state(self.random_state) if last.seed is None else _copied(last.generator)
        same = self.shuffle and last.order.size == n_samples
        return random_state, last.order.astype(np.int64) if same else np.arange(n_samples)

    def _keep_shuffling(self, random_state, order):
        """Keep what `_begin_shuffling` returns the next time."""
        seed = self._seed()
        self._shuffling = Shuffling(seed, None if seed is None else random_state, compact(order))

    def _seed(self):
        return int(self.random_state) if isinstance(self.random_state, Integral) else None

    def _hold_out(self, Y, random_state):
        """Choose the samples of early stopping, with scikit-learn's draws.

        Returns
        -------
        order, held_out : ndarray of int64
            The samples to train on, and the others.
        """
        from sklearn.model_selection import train_test_split  # which takes long to import

        train, held_out = train_test_split(
            np.arange(Y.shape[0]), random_state=random_state, test_size=self.validation_fraction,
            stratify=self._strata(Y),
        )  # fmt: skip
        if len(held_out) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        return train, held_out

    def _held_out_samples(self, X, y, Y, weight, held_out):
        """Return the samples that are held out."""
        weight = weight[held_out] if weight.size else None
        if weight is not None and not weight.any():
            raise ValueError(
                "Sample weights must contain at least one non-zero number, also those of the samples that "
                f"early_stopping holds out. Increase validation_fraction={self.validation_fraction} or leave out "
                "samples of weight 0."
            )
        return ValidationSamples(X[held_out], y[held_out], Y[held_out], weight)

    def _score_function(self, samples, model_of):
        """Return what early stopping watches; see `Validation`."""
        if self.scoring is None:
            return lambda outputs, loss, coefs, intercepts: self._score_outputs(outputs, samples.Y, samples.weight)
        if self.scoring == "loss":
            return lambda outputs, loss, coefs, intercepts: -loss
        from sklearn.metrics import get_scorer

        scorer = get_scorer(self.scoring)
        weighted = samples.weight is not None and isinstance(self.scoring, str)
        kwargs = {"sample_weight": samples.weight} if weighted else {}

        def score(outputs, loss, coefs, intercepts):
            if not np.isfinite(outputs).all():
                return np.nan
            model = model_of(coefs, intercepts)
            model.__dict__.pop("feature_names_in_", None)  # which the checked inputs have no more
            value = scorer(model, samples.X, samples.y, **kwargs)
            try:
                return float(value)
            except (TypeError, ValueError):
                raise ValueError(f"scoring={self.scoring!r} must return a number, got {value!r}.") from None

        return score

    def _check_solver_options(self, dropout):
        """Refuse what the solver does not know."""
        if self.weight_decay and self.solver != "adamw":
            raise ValueError(
                f"weight_decay={self.weight_decay} is for solver='adamw', got solver={self.solver!r}. Use "
                "solver='adamw', or weight_decay=0 and the L2 term alpha."
            )
        if any(part.rate for part in dropout) and self.solver == "lbfgs":
            raise ValueError(
                f"dropout={self.dropout} is not for solver='lbfgs', whose line search needs a loss without chance. Use "
                "another solver, or dropout=0."
            )
        if self.max_grad_norm is not None and self.solver == "lbfgs":
            raise ValueError(
                f"max_grad_norm={self.max_grad_norm} is not for solver='lbfgs', whose line search needs the whole "
                "gradient. Use another solver, or max_grad_norm=None."
            )

    def _layout(self, n_features, n_outputs):
        """Return the units of all layers, and the activations of those after the inputs."""
        hidden = _hidden_units(self.hidden_layer_sizes)
        activations = [*self._hidden_activations(len(hidden)), self._output_activation(n_outputs)]
        return [n_features, *hidden, n_outputs], activations

    def _output_activation(self, n_outputs):
        """Return the activation of the output layer."""
        if self.output_activation == "auto":
            return self._default_output_activation(n_outputs)
        if self.loss in CANONICAL_ACTIVATIONS:
            raise ValueError(
                f"output_activation={self.output_activation!r} is not supported with loss={self.loss!r}, whose outputs "
                f"are {' or '.join(CANONICAL_ACTIVATIONS[self.loss])}. Use output_activation='auto'."
            )
        return get_activation(self.output_activation)

    def _draw_parameters(self, units, activations, random_state, dtype):
        if self.weight_init != "auto":
            return scaled_parameters(self.weight_init, units, random_state, dtype)
        # As in scikit-learn the output layer takes the factor of the last hidden one, or of the parameter `activation`
        # where there is none.
        factors = [act.init_factor for act in activations[:-1]]
        factors.append(factors[-1] if factors else self._factor_without_hidden_layers())
        return initial_parameters(units, factors, random_state, dtype)

    def _initialize_network(self, n_features, n_outputs):
        """Draw random weights, and set the fitted attributes as they are before the first step."""
        dtype = np.dtype(np.float32 if self.dtype == "auto" else self.dtype)
        units, activations = self._layout(n_features, n_outputs)
        random_state = check_random_state(self.random_state)
        coefs, intercepts = self._draw_parameters(units, activations, random_state, dtype)
        network = make_network(units, activations, dtype)
        optimizer = OptimizerState.empty(network, self.solver, float(self.learning_rate_init))
        self.n_features_in_ = n_features
        self._set_fitted(network, coefs, intercepts, dtype, optimizer, Progress())
        self._keep_shuffling(random_state, np.empty(0, np.int64))
        self._is_untrained = True

    def _set_fitted(self, network, coefs, intercepts, dtype, optimizer, progress):
        self.coefs_, self.intercepts_ = (
            [part.astype(dtype, copy=False) for part in parts] for parts in (coefs, intercepts)
        )  # fmt: skip
        self._optimizer = optimizer.store(network, self.solver)
        self._progress = progress
        self._activations = list(network.activations)
        self._loss = self._loss_of(network.units[-1])
        for name in ("_shuffling", "_training_state"):  # which belong to other weights
            self.__dict__.pop(name, None)
        self._set_results()

    def _set_results(self):
        """Set the public attributes that follow from the others."""
        progress = self._progress
        stops_early = progress.best_epoch is not None
        self.n_iter_ = progress.epochs
        self.t_ = progress.samples_seen
        self.n_layers_ = len(self.coefs_) + 1
        self.n_outputs_ = self.coefs_[-1].shape[1]
        self.out_activation_ = self._activations[-1].name
        self.best_loss_ = None if stops_early else progress.best_loss
        scores, losses = progress.validation_scores, progress.validation_losses
        self.validation_scores_ = None if scores is None else list(scores)
        self.validation_loss_curve_ = None if losses is None else list(losses)
        self.best_validation_score_ = progress.best_score if stops_early else None
        self.best_iter_ = progress.best_epoch
        self.__dict__.pop("loss_", None)
        if progress.loss is not None:
            self.loss_ = progress.loss

    # NumPy's numbers become Python's: others would keep few digits, or turn arrays of float32 into float64.

    def _step_settings(self, n_samples, n_outputs):
        return StepSettings(
            loss=self._loss_of(n_outputs), solver=self.solver, alpha=float(self.alpha),
            batch_size=self._clip_batch_size(n_samples), momentum=float(self.momentum),
            nesterovs_momentum=self.nesterovs_momentum, beta_1=float(self.beta_1), beta_2=float(self.beta_2),
            epsilon=float(self.epsilon), weight_decay=float(self.weight_decay),
            max_grad_norm=None if self.max_grad_norm is None else float(self.max_grad_norm), n_jobs=self.n_jobs,
        )  # fmt: skip

    def _loop_settings(self, call):
        # scikit-learn's own schedules apply to "sgd" only.
        constant = self.solver != "sgd" and self.learning_rate in SGD_SCHEDULES
        deadline = math.inf if call.incremental or self.max_time is None else call.begin + float(self.max_time)
        return training.Settings(
            schedule="constant" if constant else self.learning_rate, learning_rate_init=float(self.learning_rate_init),
            power_t=float(self.power_t), max_iter=int(self.max_iter), shuffle=self.shuffle, tol=float(self.tol),
            n_iter_no_change=self.n_iter_no_change, verbose=self.verbose, early_stopping=self.early_stopping,
            scoring=self.scoring, max_time=self.max_time, deadline=deadline, stop=call.stop,
        )  # fmt: skip

    def _clip_batch_size(self, n_samples):
        """Return the samples of a batch, at most those that there are; warn where the parameter is larger."""
        if self.solver == "lbfgs":
            return n_samples
        if self.batch_size == "auto":
            return min(200, n_samples)
        if self.batch_size > n_samples:
            warn_user("Got `batch_size` less than 1 or larger than sample size. It is going to be clipped")
        return min(int(self.batch_size), n_samples)

    def _hidden_activations(self, n):
        """Return one activation object for each hidden layer."""
        if isinstance(self.activation, list | tuple):
            if len(self.activation) != n:
                raise ValueError(
                    f"activation has {len(self.activation)} entries for {n} hidden layers; give one for each "
                    "layer, or a single one for all."
                )
            return [get_activation(entry) for entry in self.activation]
        return [get_activation(self.activation)] * n

    def _hidden_dropout(self, n):
        """Return the dropout of each of n hidden layers."""
        rates = [self.dropout] * n if isinstance(self.dropout, Real) else _as_list(self.dropout)
        if len(rates) != n:
            raise ValueError(
                f"dropout has {len(rates)} entries for {n} hidden layers; give one for each layer, or a "
                "single one for all."
            )
        if not all(isinstance(rate, Real) and 0 <= float(rate) < 1 for rate in rates):
            raise ValueError(f"dropout must be rates in [0, 1), got {self.dropout}. 0 is a layer without dropout.")
        return [Dropout(float(rate)) for rate in rates]

    def _factor_without_hidden_layers(self):
        several = isinstance(self.activation, list | tuple)
        return Activation.init_factor if several else get_activation(self.activation).init_factor

    def _as_it_is(self):
        """Return an estimator with the present attributes, also when another thread has fitted this one."""
        model = object.__new__(type(self))
        model.__dict__ = self.__dict__
        return model

    def _predictor_for(self, model):
        predictor, _ = _PREDICTORS.get(id(self), (None, None))
        if predictor is None or not predictor.uses(model.coefs_, model.intercepts_):
            check_is_fitted(model)
            predictor = Predictor(
                model.coefs_, model.intercepts_, model._activations, model.n_features_in_, is_pair=model._has_pair()
            )
            _keep(_PREDICTORS, self, predictor)
            if self.__dict__ is not model.__dict__:  # a fit has ended meanwhile: this would keep the old weights
                _forget_predictor(self)
        return predictor

    def _has_pair(self):
        """Whether the one output is the probability of the second of two classes, and those of both are wanted."""
        return False

    def _probability_rule(self):
        """How outputs become probabilities: None as they are, "clip" to [0, 1], "shares" divided by their sum, too."""
        return None

    def _is_vector(self):
        """Whether predictions for some samples have one dimension."""
        return False

    def _outputs(self, X):
        """Compute the activations of the output layer.

        Returns
        -------
        outputs : ndarray of shape (n_samples, n_outputs)
            Or (n_samples, 2), where `_has_pair` says so.
        model : BaseBackprop
            With the attributes to which they belong, also where another thread has fitted this estimator meanwhile.
        """
        model = self._as_it_is()
        if "coefs_" not in model.__dict__:
            check_is_fitted(model)
        try:
            return model._outputs_by(self._predictor_for(model), X), model
        except ArraysMovedError:
            _forget_predictor(self)
            return model._outputs_by(self._predictor_for(model), X), model

    def _outputs_by(self, predictor, X):
        # scikit-learn's checks take longer than the network for a few rows. Numbers of the right shape need only the
        # check that they are finite, which the kernel does; if it fails, scikit-learn's checks raise the error.
        if "feature_names_in_" not in self.__dict__:
            numbers = plain_numbers(X, predictor.dtype)
            if numbers is not None and numbers.shape[1] == self.n_features_in_:
                outputs, finite = predictor.outputs(declare_writeable(numbers), self.n_jobs)
                if finite:
                    return outputs
        if isinstance(X, list | tuple | np.ndarray) and np.asarray(X).dtype.kind in "SU":
            check_array(X)  # which refuses strings; a conversion to numbers would not
        X, _ = self._check_X(X, reset=False)
        return predictor.outputs(X, self.n_jobs)[0]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    @contextmanager
    def _all_at_once(self):
        """Yield a copy to change; this estimator has its attributes when the block ends, and none if it fails.

        Until then other threads predict with the old ones. What they set meanwhile remains, save fitted attributes:
        those belong together.
        """
        before = self.__dict__.copy()
        model = object.__new__(type(self))
        model.__dict__ = before.copy()
        yield model
        after, now = model.__dict__, self.__dict__.copy()
        others = {
            name: value
            for name, value in now.items()
            if not _is_fitted(name) and (name in after or name not in before)
        }  # fmt: skip
        changed = {
            name: value
            for name, value in after.items()
            if _is_fitted(name) or name not in before or value is not before[name]
        }
        self.__dict__ = others | changed
        _forget_predictor(self)  # it would keep the old weights


def _network_of(units, activations, *options):
    """Return what `make_network` does, as it is made of the same names only once."""
    names = tuple(activation.name for activation in activations)
    if all(map(is_, activations, map(SHARED.get, names))):
        return _network_of_names(tuple(units), names, *options)
    return make_network(units, activations, *options)  # whose coefficients the user may change


@lru_cache(maxsize=256)  # it would take a tenth of the time of a call of `partial_fit` for a few samples
def _network_of_names(units, names, *options):
    return make_network(units, [SHARED[name] for name in names], *options)


def _copied(generator):
    """Return a copy of a random generator of a seed, in less time than `copy.deepcopy`."""
    copied = np.random.RandomState(0)
    copied.set_state(generator.get_state(legacy=False))
    return copied


@cache  # as it is asked for all attributes in each call
def _is_fitted(name):
    """Whether training sets the attribute, so that it belongs together with the weights."""
    return name.endswith("_") or name in _PRIVATE_FITTED


def _keep(kept, estimator, value):
    key, remove = id(estimator), kept.pop
    kept[key] = value, ref(estimator, lambda _: remove(key, None))


def _forget_predictor(estimator):
    _PREDICTORS.pop(id(estimator), None)


def _as_list(values):
    try:
        return list(values)
    except TypeError:  # a number, or an array without a dimension
        return [values]


def _hidden_units(hidden_layer_sizes):
    sizes = _as_list(hidden_layer_sizes)
    if not all(isinstance(size, Integral) for size in sizes):
        raise ValueError(f"hidden_layer_sizes must be integers, got {sizes}.")
    if any(size <= 0 for size in sizes):
        raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
    return [int(size) for size in sizes]
