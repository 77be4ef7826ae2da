"""BackpropClassifier: labels in, labels out."""

from numbers import Integral

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_scalar
from sklearn.utils.multiclass import type_of_target, unique_labels
from sklearn.utils.validation import check_is_fitted, column_or_1d

from fastbp.activations import Logistic, Softmax, get_activation
from fastbp.compat import check_feature_names, check_partial_fit_first_call, fit_context
from fastbp.estimator import BaseBackprop, targets_and_weights


class BackpropClassifier(ClassifierMixin, BaseBackprop):
    """Multilayer perceptron classifier, trained by backpropagation in compiled code.

    Parameters, attributes and results are those of `sklearn.neural_network.MLPClassifier`
    wherever both have the thing: in float64 the same `random_state` gives the same model up to
    rounding.

    Parameters
    ----------
    hidden_layer_sizes : int or array-like of int, default=(100,)
        Units of each hidden layer; `()` for none.

    activation : str, activation object, or a list of them, default="relu"
        Activation of the hidden layers, one for all or one for each: "identity", "logistic", "tanh",
        "relu", "piecewise_linear", "gaussian", "threshold", "leaky_relu", "elu", "selu", "gelu", "silu",
        or an object as `fastbp.activations.Logistic(slope=2.0)`.

    solver : {"adam", "sgd"}, default="adam"
        "adam" is the method of Kingma and Ba; "sgd" is gradient descent with momentum.

    alpha : float, default=1e-4
        Strength of the L2 penalty: alpha / 2 times the sum of squared weights, divided by the number of
        samples in the batch, is added to the loss. Biases are not penalised.

    batch_size : int or "auto", default="auto"
        Samples in each step; "auto" is min(200, n_samples). 1 is online learning, `n_samples` or more gradient
        descent on the whole set.

    learning_rate : {"constant", "invscaling", "adaptive", "cosine", "one_cycle"}, default="constant"
        How the step size changes. "invscaling" and "adaptive", only for "sgd", are scikit-learn's: divided by
        t^power_t after each epoch, or by 5 whenever training would stop. "cosine" falls from `learning_rate_init`
        to 0 over `max_iter` epochs; "one_cycle" rises to `learning_rate_init` over the first 30 percent of them and
        falls to almost nothing over the others (Smith 2018).

    learning_rate_init : float, default=0.001
        Step size; the highest one of "cosine" and "one_cycle".

    power_t : float, default=0.5
        Exponent of "invscaling".

    max_iter : int, default=200
        Most epochs: how often each sample is used.

    shuffle : bool, default=True
        Whether the samples are put in a new order before each epoch.

    random_state : int, RandomState instance or None, default=None
        Decides the first weights and the order of samples.

    tol : float, default=1e-4
        Training ends when the loss has not fallen by `tol` for `n_iter_no_change` epochs.

    verbose : bool or int, default=False
        Whether to print the loss of each epoch.

    warm_start : bool, default=False
        Whether `fit` goes on from the weights of the last call.

    momentum : float, default=0.9
        Share of the last step that is added to this one, 0 to 1; only for "sgd".

    nesterovs_momentum : bool, default=True
        Whether to use Nesterov's form of it.

    beta_1, beta_2 : float, default=0.9, 0.999
        Decay rates of Adam's two moments, from 0 to below 1.

    epsilon : float, default=1e-8
        Keeps Adam's divisor above 0.

    n_iter_no_change : int, default=10
        Epochs without improvement that are borne; `numpy.inf` for any number.

    loss : {"log_loss", "squared_error"}, default="log_loss"
        "squared_error" is half the sum over the outputs of (target - output)^2, targets 0 and 1
        (Maren 2020, Eq. 6.5).

    output_activation : "auto", str or activation object, default="auto"
        "auto" is softmax (several classes) or logistic (two classes, several labels) for "log_loss", and
        logistic for "squared_error". Others only for "squared_error".

    dtype : {"auto", "float32", "float64"}, default="auto"
        Type of all arithmetic. "auto": float32 and float64 input stay as they are, everything else becomes
        float32, which is about twice as fast as float64.

    n_jobs : int or None, default=None
        Threads. None: all cores that this process may use, as far as they help; 1: no thread is started.
        The results have the same bits for any number.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    coefs_ : list of ndarray of shape (fan_in, fan_out)
        Weights of each layer; changing them changes predictions.
    intercepts_ : list of ndarray of shape (fan_out,)
        Biases of each layer.
    loss_ : float
        Loss of the last epoch.
    best_loss_ : float
        Lowest loss of an epoch.
    loss_curve_ : list of float
        Loss of each epoch: the mean over its samples, each at the time it was used.
    n_iter_ : int
        Epochs of the last call.
    t_ : int
        Samples seen in training.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of features, if X had any.
    n_layers_ : int
        Number of layers, inputs and outputs included.
    n_outputs_ : int
        Number of output units: 1 for two classes.
    out_activation_ : str
        Name of the activation of the outputs.

    References
    ----------
    A. J. Maren, "Backpropagation", ch. 6 of *Statistical Mechanics, Neural Networks, and Artificial
    Intelligence* (draft, 2020).
    A. Lopez Davila, "Neural Networks: The Backpropagation Algorithm".
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.
    L. N. Smith, "A disciplined approach to neural network hyper-parameters", arXiv:1803.09820, 2018.
    Kingma and Ba, "Adam: A method for stochastic optimization", ICLR 2015.

    Examples
    --------
    >>> from fastbp import BackpropClassifier
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = BackpropClassifier(max_iter=300, random_state=0).fit(X, y)
    >>> clf.predict(X[:2])
    array([0, 0])
    """

    def __init__(
        self,
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=1e-4,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=1e-3,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        loss="log_loss",
        output_activation="auto",
        dtype="auto",
        n_jobs=None,
    ):
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
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.loss = loss
        self.output_activation = output_activation
        self.dtype = dtype
        self.n_jobs = n_jobs

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Inputs: finite numbers, best scaled to mean 0 and variance 1, or to [0, 1].
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Class labels, or an indicator matrix of 0 and 1 for several labels.
        sample_weight : array-like of shape (n_samples,), default=None
            How much each sample counts, not negative; None for all the same.

        Returns
        -------
        self : BackpropClassifier
            The trained estimator. If training fails, it is as it was before.

        Raises
        ------
        ValueError
            For input that cannot be learned from, or if the weights became infinite.
        """
        with self._all_or_nothing():
            first = not (self.warm_start and hasattr(self, "coefs_"))
            X, y, dtype = self._check_X(X, y, reset=first)
            y = _check_labels(y)
            if first:
                self._binarizer = LabelBinarizer().fit(y)
                self.classes_ = self._binarizer.classes_
                if self._binarizer.y_type_ != "multilabel-indicator" and len(self.classes_) < 2:
                    raise ValueError(
                        f"The number of classes has to be greater than one; got {len(self.classes_)} class."
                    )
            elif set(unique_labels(y)) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                    f"Previously got {self.classes_}, `y` has {unique_labels(y)}"
                )
            self._fit_network(X, self._binarizer.transform(y), sample_weight, dtype, first=first, one_epoch=False)
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Train for one epoch over the given samples, from where the last call ended.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Inputs.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            How much each sample counts.
        classes : array-like of shape (n_classes,), default=None
            All classes of all calls; needed in the first call, may be left out later.

        Returns
        -------
        self : BackpropClassifier
            The estimator, trained further. If training fails, it is as it was before.

        Raises
        ------
        ValueError
            For input that cannot be learned from, or labels that are not in `classes`.
        """
        with self._all_or_nothing():
            first = not hasattr(self, "coefs_")
            if not first and self.t_ == 0:
                check_feature_names(self, X, reset=True)  # `initialize` does not know them
            if check_partial_fit_first_call(self, classes):
                multilabel = type_of_target(y).startswith("multilabel")
                self._binarizer = LabelBinarizer().fit(y if multilabel else classes)
            X, y, dtype = self._check_X(X, y, reset=first)
            y = _check_labels(y)
            self._check_known(y)
            self._fit_network(X, self._binarizer.transform(y), sample_weight, dtype, first=first, one_epoch=True)
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def initialize(self, n_features, classes):
        """Set random weights, those that `fit` with the same `random_state` and dtype begins with, and learn nothing.

        For weights that are set by hand afterwards, for a look at a network before training, or as a beginning
        for `partial_fit`. Not for several labels at once.

        Parameters
        ----------
        n_features : int
            Features of the samples.
        classes : array-like of shape (n_classes,)
            All classes.

        Returns
        -------
        self : BackpropClassifier
            The estimator, as if trained for no epoch. With ``dtype="auto"`` its numbers are float32.
        """
        n_features = check_scalar(n_features, "n_features", Integral, min_val=1)
        with self._all_or_nothing():
            for name in ("coefs_", "classes_", "feature_names_in_", "loss_"):
                self.__dict__.pop(name, None)
            self._binarizer = LabelBinarizer().fit(column_or_1d(classes))
            self.classes_ = self._binarizer.classes_
            if len(self.classes_) < 2:
                raise ValueError(f"The number of classes has to be greater than one; got {len(self.classes_)} class.")
            n_outputs = self._binarizer.transform(self.classes_).shape[1]
            self._initialize_network(int(n_features), n_outputs)
        return self

    def _check_known(self, y):
        """Check that there are no other classes in y than those of the first training."""
        labels = unique_labels(y)
        several = self._binarizer.y_type_ == "multilabel-indicator"
        if several != (y.ndim == 2) or len(np.setdiff1d(labels, self.classes_, assume_unique=True)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {labels}."
            )

    def _encode(self, X, y, sample_weight=None):
        """Check data of a fitted estimator; return inputs, targets and weights as the kernels take them."""
        check_is_fitted(self)
        X, y, dtype = self._check_X(X, y, reset=False)
        y = _check_labels(y)
        self._check_known(y)
        return X, *targets_and_weights(X, self._binarizer.transform(y), sample_weight, dtype)

    def predict(self, X):
        """Predict the class of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Inputs.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_labels)
            Class labels; for several labels a matrix of 0 and 1.
        """
        outputs = self._outputs(X)
        if self._binarizer.y_type_ == "multilabel-indicator":
            return (outputs > 0.5).astype(int)
        if len(self.classes_) == 1:
            return np.repeat(self.classes_, len(outputs))
        if self.n_outputs_ == 1:
            return self.classes_[(outputs[:, 0] > 0.5).astype(int)]
        return self.classes_[outputs.argmax(axis=1)]

    def predict_proba(self, X):
        """Estimate the probability of each class.

        With the loss "squared_error" the outputs are no probabilities by themselves: they are cut to
        [0, 1] and, for several classes, divided by their sum.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Inputs.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of `classes_`; the network's dtype.
        """
        outputs = self._outputs(X)
        exclusive = self._binarizer.y_type_ != "multilabel-indicator"
        if self._loss == "squared_error":
            np.clip(outputs, 0, 1, out=outputs)
            if exclusive and self.n_outputs_ > 1:
                total = outputs.sum(axis=1, keepdims=True)
                # Where no class gets anything, all are equally likely.
                outputs[total[:, 0] == 0] = 1
                total[total == 0] = self.n_outputs_
                outputs /= total
        if exclusive and self.n_outputs_ == 1:
            return np.hstack([1 - outputs, outputs])
        return outputs

    def predict_log_proba(self, X):
        """Return the logarithm of `predict_proba`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Inputs.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            -inf where the probability is 0.
        """
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def _output_activation(self, n_outputs):
        several = n_outputs > 1 and self._binarizer.y_type_ == "multiclass"
        if self.loss == "squared_error":
            return Logistic() if self.output_activation == "auto" else get_activation(self.output_activation)
        if self.output_activation != "auto":
            raise ValueError(
                f"output_activation={self.output_activation!r} goes with loss='squared_error' only; with "
                "loss='log_loss' it must be 'auto'."
            )
        return Softmax() if several else Logistic()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _check_labels(y):
    return column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
