"""BackpropClassifier: the multilayer perceptron classifier."""

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.base import ClassifierMixin
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_scalar
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import is_multilabel, unique_labels

from fastbp.activations import ACTIVATIONS, SOFTMAX, Activation
from fastbp.calls import Call
from fastbp.compat import Interval, StrOptions, check_partial_fit_first_call, check_sample_weight, fit_context
from fastbp.estimator import BaseBackprop
from fastbp.losses import Loss, smooth_targets


class BackpropClassifier(ClassifierMixin, BaseBackprop):
    """Multilayer perceptron classifier, trained by backpropagation in compiled code.

    All parameters and attributes of `sklearn.neural_network.MLPClassifier` are there, with the same names, defaults and
    meanings; the parameters from `loss` on, and some attributes, are additions. In float64 the same `random_state`
    gives the same model, up to rounding.

    Parameters
    ----------
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
        Whether to stop when the accuracy on held-out samples does not improve, instead of the training loss. `fit`
        sets aside `validation_fraction` of the training data, in the proportions of the classes in binary
        classification, or takes the `X_val` that it is given, and at the end restores the weights of the best score.
        `scoring` replaces the accuracy. Not for "lbfgs".

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

    loss : {"log_loss", "squared_error"}, default="log_loss"
        The loss function. "squared_error" is half the sum over the outputs of (target - output)^2, with targets 0
        and 1 (Maren 2020, Eq. 6.5).

    output_activation : "auto", str or activation object, default="auto"
        Activation function of the output layer. "auto" is softmax (multiclass) or logistic (binary, multilabel) for
        "log_loss", and logistic for "squared_error". Anything but "auto" requires `loss="squared_error"`.

    class_weight : dict, list of dict, "balanced" or None, default=None
        Weights of the classes, with which the weights of their samples are multiplied: `{label: weight}`, where classes
        that are not mentioned have the weight 1, or "balanced", n_samples / (n_classes * np.bincount(y)). In multilabel
        classification a list with a dict for each column of y, of the weights of 0 and 1, or "balanced"; the weights
        of the columns are multiplied. The result is that of the same weights in `sample_weight`. `partial_fit` does
        not support "balanced".

    label_smoothing : float, default=0.0
        The part s of each target that is spread over all classes, in [0, 1): targets y become y (1 - s) + s / K, where
        K is the number of classes, 2 for each label in multilabel classification (Szegedy et al. 2016). Only for
        `loss="log_loss"`. It changes the loss that is minimized; scores and losses of validation samples use the true
        labels.

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
        What `early_stopping` watches, and what `validation_scores_` records: None is the accuracy; "loss" the
        mean loss without the L2 term, as a score with a minus; "accuracy_then_loss" the accuracy, less a part
        of the weight of one sample that grows with the loss, so that the lower loss decides between epochs of
        the same accuracy, as many have where samples are few; or the name of a scorer of scikit-learn, as
        "roc_auc", or a callable `scorer(estimator, X, y)` that returns a number, of which higher is better. The
        estimator predicts with the weights of the moment; X and y are arrays, or X a CSR matrix. With
        `sample_weight` or class weights, all but callables weight the samples that `early_stopping` holds out.

    max_time : float or None, default=None
        Seconds after which `fit` ends, above 0: training stops after the batch that is under way then, or without it
        if it is a large one, with a warning, and keeps what the network has learned as on Ctrl-C. An evaluation of
        "lbfgs" is a batch of all samples. The checks of the input and the compilation of kernels count; the first
        batch is always trained. `partial_fit` ignores it.

    dtype : {"auto", "float32", "float64"}, default="auto"
        Data type of the weights and of all computation. "auto" is float64 for float64 input, longer floats and
        objects, and float32 for all other input: float32, float16, integers and booleans, also those of pandas.
        `MLPClassifier` takes float64 for all of these but float32. float32 is about twice as fast as float64.

    n_jobs : int or None, default=None
        Maximum number of threads. None and -1 mean all cores that this process may use, -2 all but one, and so on. In
        most of scikit-learn None means 1; pass 1 here for a single thread, under joblib's threading back end for
        example. The processes of joblib's default back end, loky, take no more than their share of the cores even with
        None. The results are exactly the same for any number of threads.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
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
        out or `X_val`: the accuracy, or what `scoring` says; higher is better, "loss" has a minus. NaN if
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
        Number of outputs: 1 for two classes.
    out_activation_ : str
        Name of the output activation function.

    See Also
    --------
    BackpropRegressor : The regressor.
    fastbp.inspection : The gradient, and the factors of the chain rule.
    sklearn.neural_network.MLPClassifier : Scikit-learn's classifier.

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
    C. Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016.

    Examples
    --------
    >>> from fastbp import BackpropClassifier
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = BackpropClassifier(max_iter=300, random_state=0).fit(X, y)
    >>> clf.predict(X[:2])
    array([0, 0])
    """

    _parameter_constraints: dict = {
        **BaseBackprop._parameter_constraints,
        "loss": [StrOptions({"log_loss", "squared_error"})],
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
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
        loss: str = "log_loss",
        output_activation: str | Activation = "auto",
        class_weight: dict | list[dict] | str | None = None,
        label_smoothing: float = 0.0,
        dropout: float | Sequence[float] = 0.0,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        weight_init: str = "auto",
        scoring: str | Callable | None = None,
        max_time: float | None = None,
        dtype: str = "auto",
        n_jobs: int | None = None,
    ) -> None:
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
        self.loss = loss
        self.output_activation = output_activation
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
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
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            The target values: class labels, or an indicator matrix of 0 and 1 in multilabel classification.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights. If None, samples are equally weighted. A batch whose weights sum to 0 is left out.
        X_val : {array-like, sparse matrix} of shape (n_val_samples, n_features), default=None
            Validation data: their loss and score are recorded after each epoch, and `early_stopping` watches them
            instead of holding out a part of X. They have no weights; `sample_weight` is for X only.
        y_val : array-like of shape (n_val_samples,) or (n_val_samples, n_labels), default=None
            The labels of the validation data.

        resume_from : BackpropClassifier, default=None
            A checkpoint: what `fastbp.load` returns for a file that `fastbp.callbacks.Checkpoint` has written. Training
            goes on after its epoch, and ends with the same bits as if it had not been interrupted. X, y, the weights,
            the validation data and the parameters must be those with which it began; `max_iter`, `max_time`, `tol`,
            `n_iter_no_change`, `n_jobs`, `verbose` and `warm_start` may be others.

        Returns
        -------
        self : BackpropClassifier
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
    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ) -> Self:
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
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights. If None, samples are equally weighted.
        classes : array-like of shape (n_classes,), default=None
            Classes across all calls to partial_fit. Required for the first call, optional later.

        Returns
        -------
        self : BackpropClassifier
            The updated estimator. If training fails, it is as it was before.

        Raises
        ------
        ValueError
            If the input is invalid, y has labels that are not in `classes`, or `early_stopping` is True.
        KeyboardInterrupt
            On Ctrl-C, which so ends a loop of calls. The estimator keeps what it has learned up to the last batch.
        """
        self._check_parameters_again()
        call = Call(incremental=True, knows_classes=True)
        with call.interrupts, self._all_at_once() as model:
            with np.errstate(invalid="ignore"):  # scikit-learn casts NaN before it refuses it
                if check_partial_fit_first_call(model, classes):
                    model._binarizer = LabelBinarizer().fit(y if is_multilabel(y) else classes)
            model._learn(X, y, sample_weight, call)
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def initialize(self, n_features: int, classes: ArrayLike) -> Self:
        """Initialize the model with random weights, without training.

        The weights are those with which `fit` starts for the same `random_state` and dtype. Use it to set weights by
        hand, to inspect a network before training, or before the first `partial_fit`, which goes on as `fit` would.
        Multilabel classification is not supported.

        Parameters
        ----------
        n_features : int
            Number of features.
        classes : array-like of shape (n_classes,)
            Class labels.

        Returns
        -------
        self : BackpropClassifier
            The estimator, as after zero epochs of training. With ``dtype="auto"`` its weights are float32.
        """
        n_features = check_scalar(n_features, "n_features", Integral, min_val=1)
        classes = np.asarray(classes)
        if classes.ndim != 1 or classes.size == 0:
            raise ValueError(f"classes must be an array of shape (n_classes,) with a label or more, got {classes!r}.")
        with self._all_at_once() as model:
            for name in ("coefs_", "classes_", "feature_names_in_"):
                model.__dict__.pop(name, None)
            with np.errstate(invalid="ignore"):  # as in `partial_fit`
                model._binarizer = LabelBinarizer().fit(classes)
            model.classes_ = model._binarizer.classes_
            n_outputs = model._binarizer.transform(model.classes_).shape[1]
            model._initialize_network(int(n_features), n_outputs)
        return self

    def _check_targets(self, y, *, reset):
        """Check the labels and learn the classes, or compare with those known; return the labels as 0 and 1."""
        if reset:
            self._binarizer, Y = _fit_binarizer(y)
            self.classes_ = self._binarizer.classes_
            return Y
        if not self.warm_start:
            return self._encode_targets(y)
        places = self._known_places(y)
        if places is not None and np.bincount(places, minlength=len(self.classes_)).all():
            return _columns_of(places, len(self.classes_))
        labels = unique_labels(y)
        if set(labels) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                f"Previously got {self.classes_}, `y` has {labels}"
            )
        return self._binarizer.transform(y)

    def _encode_targets(self, y):
        """Check that y has no other classes than those of the first training; return the labels as 0 and 1."""
        places = self._known_places(y)
        if places is not None:
            return _columns_of(places, len(self.classes_))
        labels = unique_labels(y)
        several = self._binarizer.y_type_ == "multilabel-indicator"
        if several != (y.ndim == 2) or len(np.setdiff1d(labels, self.classes_, assume_unique=True)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {labels}."
            )
        return self._binarizer.transform(y)

    def _known_places(self, y):
        """Return the places of plain labels in `classes_`; None if y has others, or is for scikit-learn to encode."""
        several = self._binarizer.y_type_ == "multilabel-indicator"
        if several or not _is_plain(y) or y.dtype.kind != self.classes_.dtype.kind:
            return None
        places = np.searchsorted(self.classes_, y)
        return places if np.array_equal(self.classes_.take(places, mode="clip"), y) else None

    def _combine_weights(self, X, y, sample_weight, *, incremental):
        if self.class_weight is None:
            return sample_weight
        weight = self._weights_by_class(y, incremental)
        return weight if sample_weight is None else weight * check_sample_weight(sample_weight, X, dtype=np.float64)

    def _weights_by_class(self, y, incremental):
        """Return the weights of samples that `class_weight` means."""
        if isinstance(self.class_weight, str):
            if incremental:
                raise ValueError(
                    "class_weight='balanced' is not supported by partial_fit, which does not know the other samples. "
                    "Pass the dict of the weights of all classes: those of compute_class_weight('balanced', "
                    "classes=classes, y=y) in sklearn.utils.class_weight, with all labels or a large part of them as y."
                )
            return compute_sample_weight("balanced", y)
        if y.ndim == 1:
            if not isinstance(self.class_weight, dict):
                raise ValueError(
                    "class_weight must be a dict or 'balanced', as y has one column of labels, got "
                    f"{self.class_weight!r}."
                )
            # By all classes, not as `compute_sample_weight` by those in y: partial_fit may see some only.
            weights = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
            return weights[np.searchsorted(self.classes_, y)]
        if not isinstance(self.class_weight, list) or len(self.class_weight) != y.shape[1]:
            raise ValueError(
                f"class_weight must be 'balanced' or a list with a dict for each of the {y.shape[1]} columns of y in "
                f"multilabel classification, got {self.class_weight!r}."
            )
        columns = (y.toarray() if issparse(y) else np.asarray(y)).astype(int).T
        weight = np.ones(y.shape[0])
        for weights, column in zip(self.class_weight, columns, strict=True):
            weight *= compute_class_weight(weights, classes=np.arange(2), y=column)[column]
        return weight

    def _training_targets(self, Y):
        if self.label_smoothing == 0:
            return Y
        if self.loss != "log_loss":
            raise ValueError(
                f"label_smoothing={self.label_smoothing} is not supported with loss={self.loss!r}. Use "
                "loss='log_loss', or label_smoothing=0."
            )
        is_multiclass = Y.shape[1] > 1 and self._binarizer.y_type_ == "multiclass"
        return smooth_targets(Y, float(self.label_smoothing), Y.shape[1] if is_multiclass else 2)

    def _loss_of(self, n_outputs):
        return Loss(self.loss, (0.0,) * n_outputs)

    def _strata(self, Y):
        # As in scikit-learn: by class where there is one output, and not where there are several.
        return Y.astype(bool) if Y.shape[1] == 1 else None

    def _score_outputs(self, outputs, Y, weight):
        """Return the accuracy; in multilabel classification a sample counts if all its labels are right."""
        if self._binarizer.y_type_ == "multiclass" and Y.shape[1] > 1:
            correct = outputs.argmax(axis=1) == Y.argmax(axis=1)
        elif len(self.classes_) == 1:
            correct = np.ones(len(Y))
        else:
            correct = ((outputs > 0.5) == (Y > 0.5)).all(axis=1)
        return float(np.average(correct, weights=weight))

    def _score_function(self, samples, model_of):
        if self.scoring != "accuracy_then_loss":
            return super()._score_function(samples, model_of)
        n = len(samples.Y)

        def score(outputs, loss, coefs, intercepts):
            # loss / (1 + loss), also of an infinite one
            return self._score_outputs(outputs, samples.Y, samples.weight) - (1 - 1 / (1 + loss)) / n

        return score

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Predict using the multilayer perceptron classifier.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The input data.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_labels)
            The predicted classes; in multilabel classification an indicator matrix of 0 and 1, sparse if y was.
        """
        outputs, model = self._outputs(X)
        if model._binarizer.y_type_ == "multilabel-indicator":
            return model._binarizer.inverse_transform(outputs)  # sparse where y was
        if len(model.classes_) == 1:
            return np.repeat(model.classes_, len(outputs))
        if model.n_outputs_ == 1:
            return model.classes_[(outputs[:, 1] > 0.5).view(np.uint8)]
        return model.classes_[outputs.argmax(axis=1)]

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probability estimates.

        With the loss "squared_error" the outputs of the network are not probabilities. They are clipped to [0, 1] and,
        in multiclass classification, divided by their sum.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The input data.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            The predicted probability of each sample for each class, in the order of `classes_`; the dtype is that of
            the weights.
        """
        outputs, model = self._outputs(X)
        rule = model._probability_rule()
        if rule is not None:
            np.clip(outputs, 0, 1, out=outputs)
        if rule == "shares":
            total = outputs.cumsum(axis=1)[:, -1:]  # one after the other, as compiled predictors do
            # Where all outputs are 0, all classes are equally likely.
            outputs[total[:, 0] == 0] = 1
            total[total == 0] = model.n_outputs_
            outputs /= total
        return outputs

    def predict_log_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the log of probability estimates.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The input data.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            The predicted log-probability of each sample for each class; -inf where the probability is 0.
        """
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def _has_pair(self):
        return self.n_outputs_ == 1 and self._binarizer.y_type_ != "multilabel-indicator"

    def _probability_rule(self):
        if self._loss.name != "squared_error":
            return None
        is_multiclass = self.n_outputs_ > 1 and self._binarizer.y_type_ != "multilabel-indicator"
        return "shares" if is_multiclass else "clip"

    def _default_output_activation(self, n_outputs):
        is_softmax = self.loss == "log_loss" and n_outputs > 1 and self._binarizer.y_type_ == "multiclass"
        return SOFTMAX if is_softmax else ACTIVATIONS["logistic"]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _fit_binarizer(y):
    """Return a fitted `LabelBinarizer`, and the labels as 0 and 1.

    For one column of numbers or strings, scikit-learn's own way takes longer than a small network takes to train.
    """
    binarizer = LabelBinarizer()
    if not _is_plain(y):
        return binarizer, binarizer.fit_transform(y)
    classes, places = np.unique(y, return_inverse=True)
    binarizer.classes_, binarizer.sparse_input_ = classes, False
    binarizer.y_type_ = "multiclass" if len(classes) > 2 else "binary"
    return binarizer, _columns_of(places, len(classes))


def _is_plain(y):
    """Whether y is one column of whole numbers, booleans or strings."""
    return type(y) is np.ndarray and y.ndim == 1 and y.dtype.kind in "biuU"


def _columns_of(places, n_classes):
    """Return the targets, 0 and 1, of samples whose classes have these places among all."""
    return places[:, None] == (np.arange(n_classes) if n_classes > 2 else np.ones(1, int))
