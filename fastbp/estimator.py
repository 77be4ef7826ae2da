"""What the estimators share: parameters, checks of the input, fitted attributes."""

from contextlib import contextmanager
from numbers import Integral, Real
from weakref import WeakKeyDictionary

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from fastbp import training
from fastbp.activations import ACTIVATIONS, Activation, check_can_learn, get_activation
from fastbp.compat import Interval, Options, StrOptions, check_sample_weight
from fastbp.initializers import initial_parameters
from fastbp.kernels.network import make_network
from fastbp.kernels.plan import is_mostly_zero
from fastbp.kernels.records import Data
from fastbp.kernels.session import OptimizerState, Session, StepSettings
from fastbp.losses import LOSSES
from fastbp.optimizers import SOLVERS
from fastbp.prediction import Predictor, check_shapes
from fastbp.schedules import SCHEDULES, SGD_SCHEDULES
from fastbp.user_warnings import warn_user

# Types of input that the kernels read without conversion; everything else is converted to the first of the list.
_SOURCES = {
    np.dtype(np.float32): [np.float32, np.float64, np.uint8],
    np.dtype(np.float64): [np.float64, np.float32, np.uint8],
}


# Kept outside of the estimators, whose attributes prediction must not change.
_PREDICTORS: WeakKeyDictionary = WeakKeyDictionary()


class BaseBackprop(BaseEstimator):
    """Base of the estimators that are trained by backpropagation."""

    _parameter_constraints: dict = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS)), Activation, list, tuple],
        "loss": [StrOptions(set(LOSSES))],
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
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
        "dtype": [StrOptions({"auto", "float32", "float64"})],
        "n_jobs": [Interval(Integral, 1, None, closed="left"), Interval(Integral, None, -1, closed="right"), None],
    }

    coefs_: list[np.ndarray]
    intercepts_: list[np.ndarray]
    _progress: training.Progress
    _optimizer: dict
    _activations: list[Activation]

    def _check_X(self, X, y="no_validation", *, reset):
        """Check the input.

        Parameters
        ----------
        X, y
            As the user gave them.
        reset : bool
            Whether this is the first training; else X must have the features of that time.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), C-ordered
            Its type can differ from the network's: the kernels convert each sample when they gather it.
        y : ndarray, if it was given
        dtype : dtype
            The network's: that of the first training.
        """
        if isinstance(X, list | tuple):
            X = np.asarray(X)  # so that Python's floats count as float64, as they do elsewhere
        if isinstance(X, np.ndarray) and X.dtype.kind == "f" and X.dtype.itemsize >= 8 and X.dtype != np.float64:
            X = X.astype(np.float64)  # of another byte order, or longer
        dtype = np.dtype(np.float32 if self.dtype == "auto" else self.dtype) if reset else self.coefs_[0].dtype
        targets = {} if isinstance(y, str) else {"multi_output": True}
        checked = validate_data(self, X, y, reset=reset, dtype=_SOURCES[dtype], order="C", **targets)
        X, *y = checked if targets else (checked,)
        if reset and self.dtype == "auto" and X.dtype == np.float64:
            dtype = X.dtype
        if X.dtype.itemsize > dtype.itemsize and max(X.max(), -X.min()) > np.finfo(dtype).max:
            raise ValueError(f"Input X contains infinity or a value too large for {dtype!r}.")
        return _writeable(X), *y, dtype

    def _fit_network(self, X, Y, sample_weight, dtype, *, first, one_epoch):
        """Train, and set the fitted attributes.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            Checked inputs.
        Y : ndarray of shape (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,) or None
            Weights of the samples.
        dtype : dtype
            Type of the network's numbers.
        first : bool
            Whether to begin with new weights.
        one_epoch : bool
            Whether this is `partial_fit`: one epoch, with the optimizer's state of the last call.
        """
        Y, weight = targets_and_weights(X, Y, sample_weight, dtype)
        n_samples = X.shape[0]
        units, activations = self._layout(X.shape[1], Y.shape[1])
        check_can_learn(activations)
        random_state = check_random_state(self.random_state)
        if first:
            coefs, intercepts = self._draw_parameters(units, activations, random_state, dtype)
            progress = training.Progress()
        else:
            coefs, intercepts = self.coefs_, self.intercepts_
            self._check_shapes(units)
            progress = self._progress.copy()
        step_settings = self._step_settings(n_samples)
        network = make_network(units, activations, dtype, step_settings.batch_size)
        optimizer = OptimizerState.empty(network, self.solver, self.learning_rate_init)
        if one_epoch and not first:
            optimizer = OptimizerState.restore(self._optimizer, network, self.solver) or optimizer
        params = network.pack(coefs, intercepts)
        session = Session(network, params, optimizer, step_settings, n_samples, sparse=is_mostly_zero(X))
        data = Data(X, Y, weight, np.arange(n_samples))
        training.fit(session, data, self._loop_settings(), progress, random_state, one_epoch=one_epoch)
        coefs, intercepts = network.unpack(params)
        if not all(np.isfinite(values).all() for values in [*coefs, *intercepts]):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need "
                "to be preprocessed."
            )
        self._set_fitted(network, coefs, intercepts, optimizer, progress)

    def _layout(self, n_features, n_outputs):
        """Return the units of all layers, and the activations of those after the inputs."""
        hidden = _hidden_units(self.hidden_layer_sizes)
        activations = [*self._hidden_activations(len(hidden)), self._output_activation(n_outputs)]
        return [n_features, *hidden, n_outputs], activations

    def _draw_parameters(self, units, activations, random_state, dtype):
        # As in scikit-learn the output layer takes the factor of the last hidden one, or of the parameter `activation`
        # where there is none.
        factors = [act.init_factor for act in activations[:-1]]
        factors.append(factors[-1] if factors else self._factor_without_hidden_layers())
        return initial_parameters(units, factors, random_state, dtype)

    def _initialize_network(self, n_features, n_outputs):
        """Draw random weights, and set the fitted attributes as they are before the first step."""
        dtype = np.dtype(np.float32 if self.dtype == "auto" else self.dtype)
        units, activations = self._layout(n_features, n_outputs)
        coefs, intercepts = self._draw_parameters(units, activations, check_random_state(self.random_state), dtype)
        network = make_network(units, activations, dtype)
        optimizer = OptimizerState.empty(network, self.solver, self.learning_rate_init)
        self.n_features_in_ = n_features
        self._set_fitted(network, coefs, intercepts, optimizer, training.Progress())

    def _set_fitted(self, network, coefs, intercepts, optimizer, progress):
        self.coefs_, self.intercepts_ = coefs, intercepts
        self._optimizer = optimizer.store(network, self.solver)
        self._progress = progress
        self._activations = network.activations
        self._loss = self.loss
        self.n_iter_ = progress.epochs
        self.t_ = progress.samples_seen
        self.n_layers_ = len(network.units)
        self.n_outputs_ = network.units[-1]
        self.out_activation_ = network.activations[-1].name
        self.loss_curve_ = list(progress.loss_curve)
        self.best_loss_ = progress.best_loss
        if self.loss_curve_:
            self.loss_ = self.loss_curve_[-1]

    def _step_settings(self, n_samples):
        return StepSettings(
            loss=self.loss, solver=self.solver, alpha=self.alpha, batch_size=self._clip_batch_size(n_samples),
            momentum=self.momentum, nesterovs_momentum=self.nesterovs_momentum, beta_1=self.beta_1, beta_2=self.beta_2,
            epsilon=self.epsilon, n_jobs=self.n_jobs,
        )  # fmt: skip

    def _loop_settings(self):
        # scikit-learn's own schedules apply to "sgd" only.
        constant = self.solver != "sgd" and self.learning_rate in SGD_SCHEDULES
        return training.Settings(
            schedule="constant" if constant else self.learning_rate, learning_rate_init=self.learning_rate_init,
            power_t=self.power_t, max_iter=self.max_iter, shuffle=self.shuffle, tol=self.tol,
            n_iter_no_change=self.n_iter_no_change, verbose=self.verbose,
        )  # fmt: skip

    def _clip_batch_size(self, n_samples):
        """Return the samples of a batch, at most those that there are; warn where the parameter is larger."""
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

    def _factor_without_hidden_layers(self):
        several = isinstance(self.activation, list | tuple)
        return Activation.init_factor if several else get_activation(self.activation).init_factor

    def _check_shapes(self, units):
        have = check_shapes(self.coefs_, self.intercepts_, self.n_features_in_, self._activations)
        if have != units:
            raise ValueError(
                f"The fitted network has layers of {have} units, this call needs {units}. Training can continue only "
                "in the same shape: set warm_start=False and call fit to start anew."
            )

    def _predictor(self):
        predictor = _PREDICTORS.get(self)
        if predictor is None or not predictor.uses(self.coefs_, self.intercepts_):
            predictor = Predictor(self.coefs_, self.intercepts_, self._activations, self.n_features_in_)
            _PREDICTORS[self] = predictor
        return predictor

    def _outputs(self, X):
        """Return the activations of the output layer, of shape (n_samples, n_outputs)."""
        check_is_fitted(self)
        predictor = self._predictor()
        # scikit-learn's checks take longer than the network for a few rows. An array of the right type and shape needs
        # only the check for finite numbers, which the kernel does; if it fails, scikit-learn's checks raise the error.
        if (
            type(X) is np.ndarray
            and X.dtype in _SOURCES[predictor.dtype]
            and X.flags.c_contiguous
            and X.ndim == 2
            and X.shape[0] > 0
            and X.shape[1] == self.n_features_in_
            and "feature_names_in_" not in self.__dict__
        ):
            outputs, finite = predictor.outputs(X, self.n_jobs)
            if finite:
                return outputs
        X, _ = self._check_X(X, reset=False)
        return predictor.outputs(X, self.n_jobs)[0]

    @contextmanager
    def _all_or_nothing(self):
        """Restore all attributes when the block fails."""
        before = self.__dict__.copy()
        try:
            yield
        except BaseException:
            self.__dict__.update(before)
            for name in self.__dict__.keys() - before.keys():
                del self.__dict__[name]
            raise


def targets_and_weights(X, Y, sample_weight, dtype):
    """Return targets and sample weights as the kernels take them; the weights are empty if there are none."""
    weight = np.empty(0, dtype)
    if sample_weight is not None:
        weight = check_sample_weight(sample_weight, X, dtype=dtype, ensure_non_negative=True)
        if not weight.any():  # scikit-learn before 1.9 lets these pass
            raise ValueError("Sample weights must contain at least one non-zero number.")
    return np.ascontiguousarray(Y, dtype=dtype), weight


def _hidden_units(hidden_layer_sizes):
    sizes = [hidden_layer_sizes] if isinstance(hidden_layer_sizes, Integral) else list(hidden_layer_sizes)
    if not all(isinstance(size, Integral) for size in sizes):
        raise ValueError(f"hidden_layer_sizes must be integers, got {sizes}.")
    if any(size <= 0 for size in sizes):
        raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
    return [int(size) for size in sizes]


class _WriteableMemory:
    """The memory of an array, declared as writeable."""

    def __init__(self, array):
        self._array = array
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def _writeable(X):
    """Return a view that is declared as writeable; the kernels do not write to it.

    Numba compiles once more for read-only arrays, such as those that joblib shares with its workers.
    """
    return X if X.flags.writeable else np.asarray(_WriteableMemory(X))
