"""Several networks that hold out different samples, and predict together."""

import time
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral, Real
from threading import Event
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from fastbp.calls import Call
from fastbp.classifier import BackpropClassifier
from fastbp.compat import Interval, check_sample_weight, fit_context
from fastbp.estimator import BaseBackprop
from fastbp.inputs import ravel_column
from fastbp.kernels.threads import wanted_threads
from fastbp.regressor import BackpropRegressor
from fastbp.tabular.columns import as_table, make_table_transformer
from fastbp.tabular.networks import network_for_classes, network_for_numbers
from fastbp.user_warnings import MaxTimeWarning, held_warnings, warn_user

# `fit` of a network, for weights of the held-out samples and with a way to stop it.
_fit = fit_context(prefer_skip_nested_validation=True)(BaseBackprop._fit)


class _TabularEnsemble(BaseEstimator):
    """Base of the estimators for tables."""

    _parameter_constraints: dict = {
        "estimator": [BaseBackprop, None],
        "transformer": "no_validation",
        "n_members": [Interval(Integral, 1, None, closed="left")],
        "max_updates": [Interval(Integral, 1, None, closed="left"), None],
        "max_time": [Interval(Real, 0, None, closed="neither"), None],
        "random_state": ["random_state"],
        "n_jobs": [Interval(Integral, 1, None, closed="left"), Interval(Integral, None, -1, closed="right"), None],
    }

    members_: list

    def __init__(
        self,
        estimator: BaseBackprop | None = None,
        transformer: Any = None,
        *,
        n_members: int = 4,
        max_updates: int | None = 4000,
        max_time: float | None = None,
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.estimator = estimator
        self.transformer = transformer
        self.n_members = n_members
        self.max_updates = max_updates
        self.max_time = max_time
        self.random_state = random_state
        self.n_jobs = n_jobs

    def _prepare(self, X, y, sample_weight):
        """Check the input, and fit the transformer.

        Returns
        -------
        transformer : transformer
            Fitted.
        inputs : ndarray or scipy CSR matrix of shape (n_samples, n_inputs)
            What the networks see.
        y : ndarray
            As scikit-learn's checks return it.
        weight : ndarray of shape (n_samples,) or None
            Sample weights.
        """
        name = type(self).__name__
        if y is None:
            raise ValueError(f"{name} requires y to be passed, but the target y is None.")
        y = self._check_y(check_array(y, dtype=None, ensure_2d=False, input_name="y"))
        if len(y) == 1:
            raise ValueError(f"{name} needs two samples or more, got n_samples = 1.")
        check_consistent_length(X, y)
        weight = None if sample_weight is None else check_sample_weight(sample_weight, X, dtype=np.float64)
        transformer = make_table_transformer() if self.transformer is None else clone(self.transformer)
        with config_context(transform_output="default"):  # whatever the user wants to see elsewhere
            inputs = transformer.fit_transform(X, y)
        if not inputs.shape[1]:
            raise ValueError("All columns are constant: there is nothing to learn from.")
        return transformer, _as_inputs(inputs), y, weight

    def _network(self, make):
        """Return the network to train, not fitted: that of `make` where the user has given none."""
        return clone(make() if self.estimator is None else self.estimator)

    def _transform(self, X):
        """Return what the networks see of a table."""
        check_is_fitted(self)
        X = as_table(X)
        validate_data(self, X, skip_check_array=True, reset=False)
        with config_context(transform_output="default"):
            return _as_inputs(self.transformer_.transform(X))

    def _train(self, network, X, targets, weight, folds, random_state):
        """Train the members side by side.

        Parameters
        ----------
        network : BaseBackprop
            With the parameters of all members.
        X, targets, weight
            All samples.
        folds : ndarray of shape (n_samples,)
            Which member holds out each sample.
        random_state : RandomState
            Draws the seeds of the members.

        Returns
        -------
        list of BaseBackprop
            Fitted. The result does not depend on the number of threads.
        """
        n_threads = min(wanted_threads(self.n_jobs), self.n_members)
        seeds = random_state.randint(np.iinfo(np.int32).max, size=self.n_members)
        end = None if self.max_time is None else time.monotonic() + self.max_time

        def train(k):
            # One thread for each member: where they train side by side, each thread of its own is worth most.
            member = clone(network).set_params(n_jobs=1, random_state=int(seeds[k]))
            if end is not None:  # members that come later on the same thread have their share
                turns = -(-(self.n_members - k) // n_threads)
                member.set_params(max_time=max((end - time.monotonic()) / turns, 1e-3))
            kept, held_out = folds != k, folds == k
            if member.batch_size == "auto":
                member.batch_size = _batch_size(np.count_nonzero(kept))
            if self.max_updates is not None:
                per_epoch = -(-np.count_nonzero(kept) // member.batch_size)
                member.max_iter = min(member.max_iter, -(-self.max_updates // per_epoch))
            w, w_val = (None, None) if weight is None else (weight[kept], weight[held_out])
            with held_warnings() as held:
                if held_out.any() and (w_val is None or w_val.any()):
                    call = Call(X_val=X[held_out], y_val=targets[held_out], weight_val=w_val, stop=stop)
                    _fit(member, X[kept], targets[kept], w, call)
                else:  # fewer samples than folds, or each is the only one of its class
                    _fit(member.set_params(early_stopping=False), X[kept], targets[kept], w, Call(stop=stop))
            return member.set_params(n_jobs=self.n_jobs), held

        # A single thread is one of its own, too: Ctrl-C comes here, not to the member, which would end only its own
        # training.
        stop, pool = Event(), ThreadPoolExecutor(n_threads)
        try:
            results = list(pool.map(train, range(self.n_members)))
        except BaseException:
            stop.set()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        members = [member for member, _ in results]
        self._warn_once([warning for _, held in results for warning in held], members)
        return members

    def _warn_once(self, held, members):
        """Issue the warnings of all members, each text once."""
        for message, category in dict.fromkeys(held):
            if category is not MaxTimeWarning:
                warn_user(message, category)
        if any(category is MaxTimeWarning for _, category in held):
            epochs = [member.n_iter_ for member in members]
            warn_user(
                f"Training stopped after max_time={self.max_time} seconds: the networks have trained for {epochs} "
                "epochs. Increase max_time to train longer.",
                MaxTimeWarning,
            )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags


def _as_inputs(X):
    """Return the output of a transformer as float32: the networks need no more, and train twice as fast."""
    if hasattr(X, "tocsr"):
        return X.tocsr().astype(np.float32, copy=False)
    return np.ascontiguousarray(X, dtype=np.float32)


def _batch_size(n_samples):
    """Return the size of minibatches: small tables need many steps in few epochs."""
    return min(int(np.clip(n_samples // 32, 16, 256)), n_samples)


def _deal_folds(strata, n_folds, random_state):
    """Deal samples out to folds, so that each has its share of each class, or of low and high targets.

    Parameters
    ----------
    strata : ndarray of shape (n_samples,)
        Class labels or targets.
    n_folds : int
        The number of folds.
    random_state : RandomState
        Chooses among equals.

    Returns
    -------
    ndarray of shape (n_samples,)
        The fold of each sample.
    """
    n = len(strata)
    order = np.lexsort((random_state.permutation(n), strata))
    folds = np.empty(n, int)
    folds[order] = np.arange(n) % n_folds
    return folds


# A hold-out has a fifth of the samples, or less where there are more members than five.
_MIN_FOLDS = 5


class TabularClassifier(ClassifierMixin, _TabularEnsemble):
    """Classifier for tables: a transformer of columns, and several networks with different hold-outs.

    Each network trains without a part of the samples, keeps the weights of its best epoch on them, and no two have a
    part in common. Together they predict by the mean of their probabilities, after all logits were divided by one
    temperature: the one that gives the samples the lowest log loss, each by the network that has not seen it (Guo et
    al. 2017).
    `make_tabular_classifier` makes one with strong defaults.

    Parameters
    ----------
    estimator : BackpropClassifier, default=None
        The network. None for that of `make_tabular_classifier`. It learns the places of the labels in `classes_`, which
        is what a scorer in its parameter `scoring` sees. The ensemble sets its `random_state`, `n_jobs` and, if
        given, `max_time`; with ``batch_size="auto"`` a batch is 1/32 of the training samples, but not below 16 nor
        above 256.
    transformer : transformer, default=None
        Makes the inputs of the network from the columns of X. None for `make_table_transformer()`.
    n_members : int, default=4
        The number of networks. Each holds out a fifth of the samples; with more than five, a share of `1 / n_members`.
    max_updates : int or None, default=4000
        The most steps of each network, rounded up to whole epochs: with a large table there are fewer epochs than the
        `max_iter` of the network. None for no limit.
    max_time : float, default=None
        Seconds for the training of all networks, approximately; None for no limit. Results then depend on the speed of
        the machine.
    random_state : int, RandomState instance or None, default=None
        Determines which samples are held out, and the initial weights and the shuffling of each network. Pass an int
        for reproducible results across calls.
    n_jobs : int or None, default=None
        The number of threads. None and -1 mean all cores that this process may use. In training each network has one;
        the results are exactly the same for any number.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The class labels.
    transformer_ : transformer
        The fitted transformer; ``transformer_.get_feature_names_out()`` are the names of the networks' inputs.
    members_ : list of BackpropClassifier
        The fitted networks. Their classes are the places of the labels in `classes_`.
    temperature_ : float
        By which the logits are divided. Below 1, the networks were less certain than they should be.
    n_features_in_ : int
        Number of features seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of features seen during fit. Defined only when X has feature names that are all strings.

    References
    ----------
    C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017.
    J. C. Platt, "Probabilistic outputs for support vector machines", 1999.
    D. Holzmüller, L. Grinsztajn and I. Steinwart, "Better by default: Strong pre-tuned MLPs and boosted trees on
    tabular data", NeurIPS 2024.

    Examples
    --------
    >>> from fastbp.tabular import make_tabular_classifier
    >>> X = [[21, "red"], [None, "blue"], [35, "red"], [64, None]] * 10
    >>> clf = make_tabular_classifier(random_state=0).fit(X, ["no", "yes", "no", "yes"] * 10)
    >>> clf.predict([[30, "red"], [50, "green"]]).shape
    (2,)
    """

    _parameter_constraints: dict = {**_TabularEnsemble._parameter_constraints, "estimator": [BackpropClassifier, None]}

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the transformer and the networks.

        Parameters
        ----------
        X : DataFrame of pandas or polars, or array-like, of shape (n_samples, n_features)
            The table. Numbers and categories may be missing.
        y : array-like of shape (n_samples,)
            The class labels, two or more.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights. If None, samples are equally weighted.

        Returns
        -------
        self : TabularClassifier
            The fitted estimator.

        Raises
        ------
        ValueError
            If a column holds dates or text, or the input is invalid otherwise.
        KeyboardInterrupt
            On Ctrl-C: the estimator is as it was before.
        """
        X = as_table(X)
        random_state = check_random_state(self.random_state)
        transformer, inputs, labels, weight = self._prepare(X, y, sample_weight)
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"TabularClassifier needs two classes or more, but y has only 1 class, {classes.tolist()}."
            )
        network = self._network(network_for_classes)
        class_weight = network.get_params().get("class_weight")
        if class_weight is not None:  # here, since its keys are labels, and the members know only their places
            weight = compute_sample_weight(class_weight, labels) * (1.0 if weight is None else weight)
            network.set_params(class_weight=None)
        folds = _deal_folds(codes, max(self.n_members, _MIN_FOLDS), random_state)
        folds[np.bincount(codes)[codes] == 1] = -1  # every member must know every class
        members = self._train(network, inputs, codes, weight, folds, random_state)
        temperature = _temperature_of(members, inputs, codes, weight, folds)
        validate_data(self, X, skip_check_array=True)  # sets the names of the features
        self.temperature_ = temperature
        self.transformer_, self.members_, self.classes_ = transformer, members, classes
        return self

    def _check_y(self, y):
        y = column_or_1d(ravel_column(y))
        check_classification_targets(y)
        return y

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability estimates.

        Parameters
        ----------
        X : DataFrame of pandas or polars, or array-like, of shape (n_samples, n_features)
            The table.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            The probability of each class, in the order of `classes_`.
        """
        inputs = self._transform(X)
        logits = [_log_proba(member, inputs) / self.temperature_ for member in self.members_]
        return np.mean([softmax(z, axis=1) for z in logits], axis=0)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the log of probability estimates.

        Parameters
        ----------
        X : DataFrame of pandas or polars, or array-like, of shape (n_samples, n_features)
            The table.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            The logarithms of the probabilities.
        """
        return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """Predict class labels.

        Parameters
        ----------
        X : DataFrame of pandas or polars, or array-like, of shape (n_samples, n_features)
            The table.

        Returns
        -------
        ndarray of shape (n_samples,)
            The most probable classes.
        """
        places = self.predict_proba(X).argmax(axis=1)
        return self.classes_[places]


def _log_proba(member, X):
    """Return logits, up to a number for each sample that makes no difference."""
    probabilities = member.predict_proba(X).astype(np.float64)
    return np.log(np.maximum(probabilities, np.finfo(np.float32).eps))


def _temperature_of(members, X, codes, weight, folds):
    """Return the temperature that gives the held-out samples the lowest log loss, each by the member that held it out.

    As Platt did, the labels are taken for a little less than certain, or the temperature of a table that can be
    separated would be 0.
    """
    places = [np.flatnonzero(folds == k) for k in range(len(members))]
    order = np.concatenate(places)
    if not len(order) or not (weight is None or weight[order].any()):
        return 1.0
    pairs = zip(members, places, strict=True)
    logits = np.concatenate([_log_proba(member, X[rows]) for member, rows in pairs if len(rows)])
    labels, weights = codes[order], None if weight is None else weight[order]
    doubt = 1 / (len(order) + 2)

    def loss(log_inverse):
        log_proba = log_softmax(np.exp(log_inverse) * logits, axis=1)
        right = log_proba[np.arange(len(labels)), labels]
        return -np.average((1 - doubt) * right + doubt * log_proba.mean(axis=1), weights=weights)

    return float(np.exp(-minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


class TabularRegressor(RegressorMixin, _TabularEnsemble):
    """Regressor for tables: a transformer of columns, and several networks with different hold-outs.

    Each network trains without a part of the samples, and keeps the weights of its best epoch on them; no two have a
    part in common. Together they predict by their mean, within the range of the targets seen in training.
    `make_tabular_regressor` makes one with strong defaults.

    Parameters
    ----------
    estimator : BackpropRegressor, default=None
        The network. None for that of `make_tabular_regressor`. It learns targets of mean 0 and variance 1, so that
        `delta` of the loss "huber" counts standard deviations; with ``loss="poisson"`` they are divided by their mean.
        The ensemble sets its `random_state`,
        `n_jobs` and, if given, `max_time`; with ``batch_size="auto"`` a batch is 1/32 of the training samples, but not
        below 16 nor above 256.
    transformer : transformer, default=None
        Makes the inputs of the network from the columns of X. None for `make_table_transformer()`.
    n_members : int, default=4
        The number of networks. Each holds out a fifth of the samples; with more than five, a share of `1 / n_members`.
    max_updates : int or None, default=4000
        The most steps of each network, rounded up to whole epochs: with a large table there are fewer epochs than the
        `max_iter` of the network. None for no limit.
    max_time : float, default=None
        Seconds for the training of all networks, approximately; None for no limit. Results then depend on the speed of
        the machine.
    random_state : int, RandomState instance or None, default=None
        Determines which samples are held out, and the initial weights and the shuffling of each network. Pass an int
        for reproducible results across calls.
    n_jobs : int or None, default=None
        The number of threads. None and -1 mean all cores that this process may use. In training each network has one;
        the results are exactly the same for any number.

    Attributes
    ----------
    transformer_ : transformer
        The fitted transformer; ``transformer_.get_feature_names_out()`` are the names of the networks' inputs.
    target_scaler_ : sklearn.preprocessing.StandardScaler
        From targets to what the networks learn; with ``loss="poisson"``, `scale_` is their mean.
    target_range_ : ndarray of shape (2, n_targets)
        The lowest and the highest targets of training.
    members_ : list of BackpropRegressor
        The fitted networks.
    n_features_in_ : int
        Number of features seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of features seen during fit. Defined only when X has feature names that are all strings.

    References
    ----------
    D. Holzmüller, L. Grinsztajn and I. Steinwart, "Better by default: Strong pre-tuned MLPs and boosted trees on
    tabular data", NeurIPS 2024.

    Examples
    --------
    >>> from fastbp.tabular import make_tabular_regressor
    >>> X = [[21, "red"], [None, "blue"], [35, "red"], [64, None]] * 10
    >>> reg = make_tabular_regressor(random_state=0).fit(X, [1.0, 2.5, 1.5, 3.0] * 10)
    >>> reg.predict([[30, "red"], [50, "green"]]).shape
    (2,)
    """

    _parameter_constraints: dict = {**_TabularEnsemble._parameter_constraints, "estimator": [BackpropRegressor, None]}

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the transformer and the networks.

        Parameters
        ----------
        X : DataFrame of pandas or polars, or array-like, of shape (n_samples, n_features)
            The table. Numbers and categories may be missing.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            The targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights. If None, samples are equally weighted.

        Returns
        -------
        self : TabularRegressor
            The fitted estimator.

        Raises
        ------
        ValueError
            If a column holds dates or text, or the input is invalid otherwise.
        KeyboardInterrupt
            On Ctrl-C: the estimator is as it was before.
        """
        X = as_table(X)
        random_state = check_random_state(self.random_state)
        transformer, inputs, targets, weight = self._prepare(X, y, sample_weight)
        network = self._network(network_for_numbers)
        columns = targets.reshape(len(targets), -1)
        scaler = _target_scaler(network.loss, columns, weight)
        scaled = scaler.transform(columns).astype(np.float32).reshape(targets.shape)
        folds = _deal_folds(columns[:, 0], max(self.n_members, _MIN_FOLDS), random_state)
        members = self._train(network, inputs, scaled, weight, folds, random_state)
        validate_data(self, X, skip_check_array=True)  # sets the names of the features
        self.transformer_, self.members_, self.target_scaler_ = transformer, members, scaler
        self.target_range_ = np.stack([columns.min(axis=0), columns.max(axis=0)])
        return self

    def _check_y(self, y):
        return ravel_column(y.astype(np.float64, copy=False))

    def predict(self, X: Any) -> np.ndarray:
        """Predict targets.

        Parameters
        ----------
        X : DataFrame of pandas or polars, or array-like, of shape (n_samples, n_features)
            The table.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_targets)
            The predicted targets.
        """
        inputs = self._transform(X)
        outputs = sum(member.predict(inputs).astype(np.float64) for member in self.members_) / len(self.members_)
        scaler = self.target_scaler_
        targets = outputs * scaler.scale_ + (scaler.mean_ if scaler.with_mean else 0)
        return np.clip(targets, *self.target_range_)

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the coefficient of determination R² of the prediction.

        With a list of levels in the `quantile` of the network it is the mean of D², as `BackpropRegressor.score`.

        Parameters
        ----------
        X : DataFrame of pandas or polars, or array-like, of shape (n_samples, n_features)
            The table.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            True values for `X`.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Returns
        -------
        score : float
            At most 1; 0 for a constant that is the best for `y`.
        """
        check_is_fitted(self)
        return self.members_[0]._score_predictions(y, self.predict(X), sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _target_scaler(loss, columns, weight):
    """Return the fitted scaler from targets to what the networks learn with a loss."""
    if loss != "poisson":
        return StandardScaler().fit(columns, sample_weight=weight)
    means = np.average(columns, axis=0, weights=weight)
    if not (columns.min() >= 0 and means.min() > 0):
        raise ValueError(
            f"loss='poisson' needs targets that are not negative and not all 0, got targets from {columns.min()} to "
            f"{columns.max()}. Use loss='squared_error', or shift the targets."
        )
    scaler = StandardScaler(with_mean=False).fit(columns, sample_weight=weight)
    scaler.scale_ = means  # the outputs begin near exp(0) = 1
    return scaler
