"""BackpropRegressor: the multilayer perceptron regressor."""

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import RegressorMixin
from sklearn.utils import check_scalar
from sklearn.utils.metaestimators import available_if

from fastbp.activations import ACTIVATIONS, EXP, Activation
from fastbp.calls import Call
from fastbp.compat import Interval, StrOptions, fit_context
from fastbp.estimator import BaseBackprop
from fastbp.losses import Loss


class BackpropRegressor(RegressorMixin, BaseBackprop):
    """Multilayer perceptron regressor, trained by backpropagation in compiled code.

    All parameters and attributes of `sklearn.neural_network.MLPRegressor` are there, with the same names, defaults and
    meanings; three values of `loss`, the parameters from `delta` on, and some attributes are additions. In float64 the
    same `random_state` gives the same model, up to rounding.

    Parameters
    ----------
    loss : {"squared_error", "poisson", "absolute_error", "huber", "quantile"}, default="squared_error"
        The loss function, y being a target and a the output for it:

        - "squared_error" is half the squared error, 1/2 (y - a)^2, the mean over the outputs. As in scikit-learn its
          gradient is that of the sum over the outputs.
        - "poisson" is half the Poisson deviance, y log(y / a) - y + a. The outputs are exp(z), positive.
        - "absolute_error" is |y - a|: the outputs estimate the median.
        - "huber" is half the squared error up to the distance `delta`, and linear beyond (Huber 1964): outliers count
          less.
        - "quantile" is the pinball loss (Koenker and Bassett 1978): the outputs estimate the level `quantile` of the
          distribution of y.

        All but "squared_error" are summed over the outputs.

    hidden_layer_sizes : int or array-like of int, default=(100,)
        The ith element is the number of units in the ith hidden layer; `()` for none.

    activation : str, activation object, or a list of them, default="relu"
        Activation function of the hidden layers, the same for all or one for each: "identity", "logistic", "tanh",
        "relu", "piecewise_linear", "gaussian", "threshold", "leaky_relu", "elu", "selu", "gelu", "silu",
        or an object such as `fastbp.activations.Logistic(slope=2.0)`.

    solver : {"adam", "sgd", "lbfgs", "adamw"}, default="adam"
        The solver for weight optimization: "sgd" is stochastic gradient descent, "adam" the optimizer of Kingma and
        Ba (2015), "lbfgs" a quasi-Newton method that uses all samples in each iteration. "lbfgs" computes in float64
        also where the weights are float32, and has no `partial_fit`. "adamw" is "adam" with `weight_decay`.

    alpha : float, default=1e-4
        Strength of the L2 regularization term: alpha / 2 times the sum of squared weights, divided by the number of
        samples in the batch, is added to the loss. Biases are not regularized.

    batch_size : int or "auto", default="auto"
        Size of minibatches; "auto" is min(200, n_samples). 1 is online learning; `n_samples` is gradient descent on
        all samples at once. Not for "lbfgs", which uses all samples in each iteration.

    learning_rate : {"constant", "invscaling", "adaptive", "cosine", "one_cycle"}, default="constant"
        Learning rate schedule for weight updates:

        - "constant" is `learning_rate_init`.
        - "invscaling" is `learning_rate_init / (t + 1) ** power_t`, t being the samples seen. Only for "sgd".
        - "adaptive" is `learning_rate_init` as long as the training loss decreases. It is divided by 5 each time the
          loss does not decrease by at least `tol` for `n_iter_no_change` epochs, or with `early_stopping` the score
          does not increase. Only for "sgd".
        - "cosine" decreases from `learning_rate_init` to 0 over `max_iter` epochs.
        - "one_cycle" increases to `learning_rate_init` over the first 30 percent of `max_iter` epochs and decreases to
          almost 0 over the others (Smith 2018).

        Calls of `partial_fit` count as epochs of these two; after `max_iter` of them the last, lowest rate remains.

    learning_rate_init : float, default=0.001
        The initial learning rate; the highest one of "cosine" and "one_cycle". Not for "lbfgs".

    power_t : float, default=0.5
        The exponent for the inverse scaling learning rate. Only for `learning_rate="invscaling"`.

    max_iter : int, default=200
        Maximum number of epochs: how many times each sample is used. For "lbfgs", of iterations.

    shuffle : bool, default=True
        Whether to shuffle the samples in each epoch. Not for "lbfgs".

    random_state : int, RandomState instance or None, default=None
        Determines random number generation for the initial weights and biases, for the samples that
        `early_stopping` holds out, for shuffling and for `dropout`. Pass an int for reproducible results across calls.

    tol : float, default=1e-4
        Tolerance for the optimization: training stops when the loss, or with `early_stopping` the score, does not
        improve by at least `tol` for `n_iter_no_change` consecutive epochs, unless `learning_rate` is "adaptive".
        With "cosine" and "one_cycle" all `max_iter` epochs are trained, unless `early_stopping` ends them. For
        "lbfgs", the tolerance of the gradient.

    verbose : bool or int, default=False
        Whether to print the loss, and with `early_stopping` the score, of each epoch or iteration to stdout.

    warm_start : bool, default=False
        Whether `fit` reuses the solution of the previous call as initialization. As in scikit-learn, each call begins
        with a new state of the optimizer, `learning_rate_init` and `random_state`; `partial_fit` continues with all of
        them. With `early_stopping` the best weights of all calls are kept.

    momentum : float, default=0.9
        Momentum for the gradient descent update, between 0 and 1. Only for "sgd".

    nesterovs_momentum : bool, default=True
        Whether to use Nesterov's momentum. Only for "sgd" with momentum above 0.

    early_stopping : bool, default=False
        Whether to stop when the coefficient of determination R² on held-out samples does not
        improve, instead of the training loss. `fit` sets aside `validation_fraction` of the training data, or takes the
        `X_val` that it is given, and at the end restores the weights of the best score. `scoring` replaces the R².
        Not for "lbfgs".

    validation_fraction : float, default=0.1
        The proportion of the training data that `early_stopping` holds out, in [0, 1).

    beta_1, beta_2 : float, default=0.9, 0.999
        Exponential decay rates of Adam's estimates of the first and second moment, in [0, 1).

    epsilon : float, default=1e-8
        Value for numerical stability in Adam.

    n_iter_no_change : int, default=10
        Maximum number of consecutive epochs without an improvement of at least `tol`; `numpy.inf` to run all
        `max_iter` epochs. Not for "lbfgs".

    max_fun : int, default=15000
        Maximum number of evaluations of the loss. Only for "lbfgs", which evaluates it at least once in each
        iteration.

    delta : float, default=1.0
        Where the loss "huber" becomes linear, in the units of y, above 0.

    quantile : float or list of float, default=0.5
        The level of the loss "quantile", between 0 and 1. A list of two or more levels, for a single target, gives one
        output for each: the prediction has the shape (n_samples, n_levels). The curves of two levels may cross.

    output_activation : "auto", str or activation object, default="auto"
        Activation function of the output layer. "auto" is the identity, or the exponential for the loss "poisson",
        which takes nothing but "auto".

    dropout : float or list of float, default=0.0
        The probability, in [0, 1), with which a unit of a hidden layer is left out for a sample of a training step
        (Srivastava et al. 2014), the same for all hidden layers or one for each. The activations of the others are
        divided by 1 - dropout; prediction, scores and `fastbp.inspection` use all units as they are. `loss_curve_` has
        the loss with dropout. Not for "lbfgs".

    weight_decay : float, default=0.0
        Decoupled weight decay (Loshchilov and Hutter 2019): each step takes the share learning rate * weight_decay from
        the weights, besides the step of Adam, which does not see it. Biases do not decay. Only for "adamw"; 0.01 is a
        usual value, with alpha=0.

    max_grad_norm : float or None, default=None
        The largest L2 norm of the gradient of a batch: of the mean gradient, L2 term included, of all weights and
        biases together. A gradient that is longer is shortened to it before the update (Pascanu et al. 2013). None for
        no clipping. Not for "lbfgs".

    weight_init : str, default="auto"
        Distribution of the initial weights: "auto" is scikit-learn's, a uniform one whose width depends on the size of
        the layer and on its activation, for the biases too. "glorot_uniform" and "glorot_normal" have the variance
        2 / (fan_in + fan_out) (Glorot and Bengio 2010), "he_uniform" and "he_normal" 2 / fan_in (He et al. 2015),
        "lecun_uniform" and "lecun_normal" 1 / fan_in (LeCun et al. 1998), all with biases of 0.

    scoring : str, callable or None, default=None
        What `early_stopping` watches, and what `validation_scores_` records: None is the R²; "loss" the mean loss
        without the L2 term, as a score with a minus; or the name of a scorer of scikit-learn, as
        "neg_mean_absolute_error", or a callable `scorer(estimator, X, y)` that returns a number, of which higher is
        better. The estimator predicts with the weights of the moment; X and y are arrays, or X a CSR matrix. With
        `sample_weight`, None, "loss" and named scorers weight the samples that `early_stopping` holds out.

    max_time : float or None, default=None
        Seconds after which `fit` ends, above 0: training stops after the batch that is under way then, or without it
        if it is a large one, with a warning, and keeps what the network has learned as on Ctrl-C. An evaluation of
        "lbfgs" is a batch of all samples. The checks of the input and the compilation of kernels count; the first
        batch is always trained. `partial_fit` ignores it.

    dtype : {"auto", "float32", "float64"}, default="auto"
        Data type of the weights and of all computation. "auto" is float64 for float64 input, longer floats and
        objects, and float32 for all other input: float32, float16, integers and booleans, also those of pandas.
        `MLPRegressor` takes float64 for all of these but float32. float32 is about twice as fast as float64.

    n_jobs : int or None, default=None
        Maximum number of threads. None and -1 mean all cores that this process may use, -2 all but one, and so on. In
        most of scikit-learn None means 1; pass 1 here for a single thread, under joblib's threading back end for
        example. The processes of joblib's default back end, loky, take no more than their share of the cores even with
        None. The results are exactly the same for any number of threads.

    Attributes
    ----------
    coefs_ : list of ndarray of shape (fan_in, fan_out)
        The ith element is the weight matrix of layer i. Changes to it take effect in predictions.
    intercepts_ : list of ndarray of shape (fan_out,)
        The ith element is the bias vector of layer i + 1.
    loss_ : float
        The loss of the last epoch; for "lbfgs" the loss at the end. It is not there before the first epoch.
    best_loss_ : float or None
        The minimum loss of an epoch, or of an iteration of "lbfgs". None with `early_stopping`.
    loss_curve_ : list of float
        The ith element is the loss of the ith epoch: the mean over its samples, each with the weights before its
        update, plus the L2 term. For "lbfgs", the loss after the ith iteration. A warm start and `partial_fit` add to
        it.
    lr_curve_ : list of float or None
        The ith element is the learning rate with which the ith epoch began. None for "lbfgs".
    validation_scores_ : list of float or None
        The ith element is the score of the validation samples after the ith epoch, those that `early_stopping` holds
        out or `X_val`: the R², or what `scoring` says; higher is better, "loss" has a minus. NaN if
        Ctrl-C came before the score. None without validation samples.
    best_validation_score_ : float or None
        The best of them, whose weights are kept. None without `early_stopping`.
    validation_loss_curve_ : list of float or None
        The ith element is the mean loss of the validation samples after the ith epoch, without the L2 term. None
        without validation samples.
    best_iter_ : int or None
        The epoch whose weights are kept, counted from 1 as in `loss_curve_`; 0 if no epoch had a score. None without
        `early_stopping`, as then the weights are those of the last epoch.
    n_iter_ : int
        The number of epochs, or of iterations, of the last call.
    t_ : int
        The number of training samples seen by the solver during fitting; 0 for "lbfgs".
    n_features_in_ : int
        Number of features seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of features seen during fit. Defined only when X has feature names that are all strings.
    n_layers_ : int
        Number of layers, input and output layer included.
    n_outputs_ : int
        Number of outputs of the network: of targets, or of levels in `quantile`.
    out_activation_ : str
        Name of the output activation function.

    See Also
    --------
    BackpropClassifier : The classifier.
    fastbp.inspection : The gradient, and the factors of the chain rule.
    sklearn.neural_network.MLPRegressor : Scikit-learn's regressor.

    References
    ----------
    A. J. Maren, "Backpropagation", ch. 6 of *Statistical Mechanics, Neural Networks, and Artificial
    Intelligence* (draft, 2020).
    A. Lopez Davila, "Neural Networks: The Backpropagation Algorithm".
    D. C. Liu and J. Nocedal, "On the limited memory BFGS method for large scale optimization", 1989.
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.
    K. He, X. Zhang, S. Ren and J. Sun, "Delving deep into rectifiers", ICCV 2015.
    Y. LeCun, L. Bottou, G. B. Orr and K.-R. Müller, "Efficient BackProp", 1998.
    L. N. Smith, "A disciplined approach to neural network hyper-parameters", arXiv:1803.09820, 2018.
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014.
    Kingma and Ba, "Adam: A method for stochastic optimization", ICLR 2015.
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.
    P. J. Huber, "Robust estimation of a location parameter", 1964.
    R. Koenker and G. Bassett, "Regression quantiles", 1978.

    Examples
    --------
    >>> from fastbp import BackpropRegressor
    >>> from sklearn.datasets import make_regression
    >>> X, y = make_regression(n_samples=200, n_features=20, random_state=1)
    >>> reg = BackpropRegressor(max_iter=2000, tol=0.1, random_state=1).fit(X, y)
    >>> reg.predict(X[:2]).shape
    (2,)
    """

    _parameter_constraints: dict = {
        **BaseBackprop._parameter_constraints,
        "loss": [StrOptions({"squared_error", "poisson", "absolute_error", "huber", "quantile"})],
        "delta": [Interval(Real, 0, None, closed="neither")],
        "quantile": [Interval(Real, 0, 1, closed="neither"), "array-like"],
    }
    _numeric_targets = True

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: int | Sequence[int] | np.ndarray = (100,),
        activation: str | Activation | Sequence[str | Activation] = "relu",
        *,
        solver: str = "adam",
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 1e-3,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        delta: float = 1.0,
        quantile: float | Sequence[float] = 0.5,
        output_activation: str | Activation = "auto",
        dropout: float | Sequence[float] = 0.0,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        weight_init: str = "auto",
        scoring: str | Callable | None = None,
        max_time: float | None = None,
        dtype: str = "auto",
        n_jobs: int | None = None,
    ) -> None:
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.delta = delta
        self.quantile = quantile
        self.output_activation = output_activation
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.weight_init = weight_init
        self.scoring = scoring
        self.max_time = max_time
        self.dtype = dtype
        self.n_jobs = n_jobs

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        X_val: ArrayLike | None = None,
        y_val: ArrayLike | None = None,
        resume_from: Self | None = None,
    ) -> Self:
        """Fit the model to data matrix X and target(s) y.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The input data: finite numbers, best scaled to mean 0 and variance 1, or to [0, 1].
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            The target values.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights. If None, samples are equally weighted. A batch whose weights sum to 0 is left out.
        X_val : {array-like, sparse matrix} of shape (n_val_samples, n_features), default=None
            Validation data: their loss and score are recorded after each epoch, and `early_stopping` watches them
            instead of holding out a part of X. They have no weights; `sample_weight` is for X only.
        y_val : array-like of shape (n_val_samples,) or (n_val_samples, n_outputs), default=None
            The targets of the validation data.

        resume_from : BackpropRegressor, default=None
            A checkpoint: what `fastbp.load` returns for a file that `fastbp.callbacks.Checkpoint` has written. Training
            goes on after its epoch, and ends with the same bits as if it had not been interrupted. X, y, the weights,
            the validation data and the parameters must be those with which it began; `max_iter`, `max_time`, `tol`,
            `n_iter_no_change`, `n_jobs`, `verbose` and `warm_start` may be others.

        Returns
        -------
        self : BackpropRegressor
            The fitted estimator. If training fails, it is as it was before.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If `max_iter` epochs, or iterations of "lbfgs", were not enough.
        UserWarning
            On Ctrl-C and after `max_time`, which end training and keep what the network has learned.

        Raises
        ------
        ValueError
            If the input is invalid, or the weights became infinite; if it is not that of `resume_from`.
        KeyboardInterrupt
            On Ctrl-C before the first batch, or the first iteration of "lbfgs": the estimator is as it was before. On
            Ctrl-C after the last one: the estimator is fitted.
        """
        return self._fit(X, y, sample_weight, Call(X_val=X_val, y_val=y_val, resume_from=resume_from))

    @available_if(lambda self: self._check_solver())
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Update the model with a single epoch over the given data.

        Weights, optimizer state, learning rate, random generator and the order of the samples continue from the last
        call: k calls with the same samples are one `fit` of k epochs, bit for bit, if no stopping rule ends it and
        `max_iter` is the same for "cosine" and "one_cycle"; up to rounding for sparse X with `alpha=0`. After `fit`,
        and where the number of samples changes, the order begins anew. Estimators with the solver "lbfgs" do not have
        this method.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The input data.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            The target values.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights. If None, samples are equally weighted.

        Returns
        -------
        self : BackpropRegressor
            The updated estimator. If training fails, it is as it was before.

        Raises
        ------
        ValueError
            If the input is invalid, or `early_stopping` is True.
        KeyboardInterrupt
            On Ctrl-C, which so ends a loop of calls. The estimator keeps what it has learned up to the last batch.
        """
        return self._fit(X, y, sample_weight, Call(incremental=True))

    @fit_context(prefer_skip_nested_validation=True)
    def initialize(self, n_features: int, n_outputs: int = 1) -> Self:
        """Initialize the model with random weights, without training.

        The weights are those with which `fit` starts for the same `random_state` and dtype. Use it to set weights by
        hand, to inspect a network before training, or before the first `partial_fit`, which goes on as `fit` would.

        Parameters
        ----------
        n_features : int
            Number of features.
        n_outputs : int, default=1
            Number of targets; with a list of levels in `quantile` there is one target, and an output for each level.

        Returns
        -------
        self : BackpropRegressor
            The estimator, as after zero epochs of training. With ``dtype="auto"`` its weights are float32.
        """
        n_features = check_scalar(n_features, "n_features", Integral, min_val=1)
        n_outputs = check_scalar(n_outputs, "n_outputs", Integral, min_val=1)
        with self._all_at_once() as model:
            for name in ("coefs_", "feature_names_in_"):
                model.__dict__.pop(name, None)
            n_levels = len(model._levels(n_outputs))
            model._n_targets = int(n_outputs)
            model._initialize_network(int(n_features), model._n_targets if n_levels == 1 else n_levels)
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Predict using the multilayer perceptron regressor.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The input data.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
            The predicted values, of the dtype of the weights.
        """
        outputs, _ = self._outputs(X)
        return outputs.ravel() if outputs.shape[1] == 1 else outputs

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the coefficient of determination R² of the prediction.

        With a list of levels in `quantile`, the mean over the levels of D², the share of the pinball loss of a
        constant prediction that the model explains (`sklearn.metrics.d2_pinball_score`).

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Test samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            True values for `X`.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Returns
        -------
        score : float
            At most 1; 0 for a constant that is the best for `y`.
        """
        return self._score_predictions(y, self.predict(X), sample_weight)

    def _score_predictions(self, y, predictions, sample_weight):
        from sklearn.metrics import r2_score  # which takes long to import

        levels = self._levels()
        if len(levels) == 1:
            return r2_score(y, predictions, sample_weight=sample_weight)
        return _mean_d2(y, predictions, levels, sample_weight)

    def _levels(self, n_targets=1):
        """Return the levels of the loss "quantile", one number for another loss."""
        if self.loss != "quantile":
            return [0.5]
        try:
            levels = np.atleast_1d(np.asarray(self.quantile, dtype=np.float64))
        except (TypeError, ValueError):  # no numbers
            levels = np.empty(0)
        if levels.ndim != 1 or levels.size == 0 or not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"quantile must be a number between 0 and 1, or a list of them, got {self.quantile!r}.")
        if len(levels) > 1 and n_targets > 1:
            raise ValueError(
                f"quantile={self.quantile!r} gives one output for each level of a single target, but y has {n_targets} "
                "columns. Pass a single level, or fit one estimator for each column."
            )
        return levels.tolist()

    def _check_targets(self, y, *, reset):
        """Learn the number of targets, or compare with that known; return them, one column for each output."""
        if reset:
            self._n_targets = 1 if y.ndim == 1 else y.shape[1]
        return self._encode_targets(y)

    def _encode_targets(self, y):
        """Check that y has as many columns as in the first training; return one column for each output."""
        Y = y.reshape(len(y), -1)
        if Y.shape[1] != self._n_targets:
            raise ValueError(f"y has {Y.shape[1]} columns; the estimator was fitted with {self._n_targets}.")
        n_levels = len(self._levels(Y.shape[1]))
        return Y if n_levels == 1 else np.repeat(Y, n_levels, axis=1)

    def _loss_of(self, n_outputs):
        if self.loss == "quantile":
            levels = self._levels()
            return Loss(self.loss, tuple(levels if len(levels) > 1 else levels * n_outputs))
        parameter = float(self.delta) if self.loss == "huber" else 0.0
        # scikit-learn's value is the mean over the outputs, its gradient that of the sum.
        return Loss(self.loss, (parameter,) * n_outputs, 1 / n_outputs if self.loss == "squared_error" else 1.0)

    def _strata(self, Y):
        return None

    def _is_vector(self):
        return self.n_outputs_ == 1

    def _score_outputs(self, outputs, Y, weight):
        """Return what `score` does; NaN where an output is not finite."""
        if not np.isfinite(outputs).all():
            return np.nan
        levels = self._levels()
        if len(levels) > 1:
            return _mean_d2(Y[:, 0], outputs, levels, weight)
        return _r2(Y, outputs, weight)

    def _default_output_activation(self, n_outputs):
        return EXP if self.loss == "poisson" else ACTIVATIONS["identity"]


def _r2(Y, outputs, weight):
    """Return R², the mean over the outputs: `sklearn.metrics.r2_score`, whose checks take longer than many epochs."""
    Y, outputs = Y.astype(np.float64), outputs.astype(np.float64)
    weights = np.ones(len(Y)) if weight is None else weight.astype(np.float64)
    unexplained = weights @ (Y - outputs) ** 2
    total = weights @ (Y - weights @ Y / weights.sum()) ** 2
    # Of a constant target nothing can be explained: 1 where the prediction is right, else 0.
    constant = total == 0
    return float(np.mean(np.where(constant, unexplained == 0, 1 - unexplained / np.where(constant, 1, total))))


def _mean_d2(y, predictions, levels, weight):
    from sklearn.metrics import d2_pinball_score

    scores = [
        d2_pinball_score(y, prediction, alpha=level, sample_weight=weight)
        for prediction, level in zip(predictions.T, levels, strict=True)
    ]
    return float(np.mean(scores))
