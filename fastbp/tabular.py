"""Tables: frames with gaps and categories in, strong defaults, several networks that answer together.

`make_tabular_classifier` and `make_tabular_regressor` are what most users need. What they return has three parts, each
of which can be inspected, replaced or used alone: a transformer from the columns of a table to the inputs of a network
(`make_table_transformer`), the parameters of the network, and the ensemble that trains several of them.
"""

import datetime
import re
import time
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from fastbp.classifier import BackpropClassifier
from fastbp.compat import Interval, Options, check_feature_names_in, check_sample_weight, fit_context
from fastbp.estimator import BaseBackprop
from fastbp.kernels.threads import wanted_threads
from fastbp.regressor import BackpropRegressor

__all__ = [
    "PiecewiseLinearEncoder", "TabularClassifier", "TabularRegressor", "make_table_transformer",
    "make_tabular_classifier", "make_tabular_regressor",
]  # fmt: skip


# --- from columns to inputs of a network ---


class PiecewiseLinearEncoder(TransformerMixin, BaseEstimator):
    """Encode each feature by how far it reaches into each of its quantile bins.

    A feature x with the edges b_0 < b_1 < ... < b_T becomes T features, one for each bin t:

        e_t = (x - b_{t-1}) / (b_t - b_{t-1}), clipped to [0, 1]

    All bins below x are 1, all above it 0, and that of x is between. So a linear function of the e_t is a continuous
    function of x that is linear in each bin, and the first layer of a network begins with bends where the data are.

    Parameters
    ----------
    n_bins : int, default=8
        The number of bins of each feature, with about the same number of samples in each. Edges that coincide are
        merged: a feature with few different values has fewer bins. A constant feature has none, and no output.
    clip : bool, default=True
        Whether values outside of the range seen in `fit` are encoded as its ends. If False, the first and the last bin
        go on linearly, as in the paper.
    dtype : {numpy.float32, numpy.float64}, default=None
        The type of the output. None is that of the input: float32 for float32, float64 for all others.

    Attributes
    ----------
    bin_edges_ : list of ndarray of shape (n_bins_[j] + 1,)
        The edges of each feature, in increasing order. All are values of the training data.
    n_bins_ : ndarray of shape (n_features,)
        The number of bins of each feature.
    n_features_in_ : int
        Number of features seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of features seen during fit. Defined only when X has feature names that are all strings.

    See Also
    --------
    sklearn.preprocessing.KBinsDiscretizer : Encodes only in which bin a value is.
    sklearn.preprocessing.SplineTransformer : Encodes by smooth functions, each of which is local.

    References
    ----------
    Y. Gorishniy, I. Rubachev and A. Babenko, "On embeddings for numerical features in tabular deep learning", NeurIPS
    2022, Eqs. 1 and 2.

    Examples
    --------
    >>> from fastbp.tabular import PiecewiseLinearEncoder
    >>> PiecewiseLinearEncoder(n_bins=2).fit_transform([[0.0], [1.0], [4.0]])
    array([[0., 0.],
           [1., 0.],
           [1., 1.]])
    """

    _parameter_constraints: dict = {
        "n_bins": [Interval(Integral, 1, None, closed="left")],
        "clip": ["boolean"],
        "dtype": [Options(type, {np.float32, np.float64}), None],
    }

    def __init__(self, n_bins: int = 8, *, clip: bool = True, dtype: type | None = None) -> None:
        self.n_bins = n_bins
        self.clip = clip
        self.dtype = dtype

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Find the edges of the bins.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The data: finite numbers.
        y : None
            Ignored.

        Returns
        -------
        self : PiecewiseLinearEncoder
            The fitted transformer.
        """
        values = validate_data(self, X, dtype=[np.float64, np.float32])
        levels = np.linspace(0, 1, self.n_bins + 1)
        # By "nearest" the edges are values of the data: an integer feature has no edge between two integers.
        self.bin_edges_ = [np.unique(np.quantile(column, levels, method="nearest")) for column in values.T]
        self.n_bins_ = np.array([len(edges) - 1 for edges in self.bin_edges_])
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Encode the data.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The data: finite numbers.

        Returns
        -------
        ndarray of shape (n_samples, n_bins_.sum())
            The bins of the first feature, those of the second, and so on.
        """
        check_is_fitted(self)
        values = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        out = np.empty((len(values), self.n_bins_.sum()), self.dtype or values.dtype)
        ends = np.cumsum(self.n_bins_)
        for column, edges, end in zip(values.T, self.bin_edges_, ends, strict=True):
            if len(edges) > 1:
                self._encode(column, edges, out[:, end - len(edges) + 1 : end])
        return out

    def _encode(self, column, edges, out):
        widths = np.diff(edges)  # of the type of `fit`: in float32 two edges may be the same number
        np.subtract(column[:, None], edges[:-1].astype(column.dtype), out=out, casting="same_kind")
        np.divide(out, widths, out=out, casting="same_kind")
        inner = out if self.clip else out[:, 1:]
        np.maximum(inner, 0, out=inner)
        inner = out if self.clip else out[:, :-1]
        np.minimum(inner, 1, out=inner)

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> np.ndarray:
        """Return the names of the output features, such as "age_bin0".

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the input features. None for those seen in `fit`, or "x0", "x1", ... if there were none.

        Returns
        -------
        ndarray of str objects
            The names.
        """
        check_is_fitted(self)
        names = check_feature_names_in(self, input_features)
        return np.array(
            [f"{name}_bin{t}" for name, n in zip(names, self.n_bins_, strict=True) for t in range(n)], object
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def make_table_transformer(*, n_bins: int = 8, min_frequency: int | float = 5):
    """Make a transformer from the columns of a table to the inputs of a network.

    Constant columns are left out. Numbers are filled with the median where they are missing, divided by the distance of
    their quartiles, and clipped smoothly, z / sqrt(1 + (z / 3)^2). Beside that they are encoded by
    `PiecewiseLinearEncoder`, and where a column has gaps, one input says where. Categories become one input each; rare
    ones and those not seen in training share one. A missing category is a category of its own.

    Parameters
    ----------
    n_bins : int, default=8
        See `PiecewiseLinearEncoder`.
    min_frequency : int or float, default=5
        Categories with fewer rows are rare: see `sklearn.preprocessing.OneHotEncoder`.

    Returns
    -------
    sklearn.compose.ColumnTransformer
        Takes frames of pandas and polars, and arrays. Columns of numbers and booleans are numbers; columns of strings,
        and those of the types "category", "Categorical" and "Enum", are categories. Its output is float32.
    """
    # These take long to import.
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, RobustScaler

    def apply(function):
        return FunctionTransformer(function, feature_names_out=_same_names)

    def fill():
        return SimpleImputer(strategy="median")

    scaled = make_pipeline(apply(_to_numbers), fill(), RobustScaler(), apply(_clip_smoothly))
    pieces = make_pipeline(apply(_to_numbers), fill(), PiecewiseLinearEncoder(n_bins, dtype=np.float32))
    missing = make_pipeline(apply(_to_numbers), MissingIndicator(error_on_new=False))
    one_hot = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=min_frequency, dtype=np.float32)
    return ColumnTransformer(
        [
            ("scaled", scaled, _numbers_of),
            ("pieces", pieces, _numbers_of),
            ("missing", missing, _gaps_of),
            ("categories", make_pipeline(apply(_to_labels), one_hot), _categories_of),
        ]
    )


def _same_names(transformer, names):
    """Return the names of the features of a `FunctionTransformer` that keeps them.

    Its own "one-to-one" returns no array before `fit`, with which the HTML representation of scikit-learn 1.9 fails.
    """
    if names is None:
        raise NotFittedError("The names of the features are known after fit.")
    return names


def _clip_smoothly(z):
    """Return z / sqrt(1 + (z / 3)^2), which is near z around 0 and never beyond -3 and 3, in float32."""
    with np.errstate(over="ignore"):
        return (z / np.sqrt(1 + np.square(z / 3))).astype(np.float32)


def _as_table(X):
    """Return a frame as it is, all else as a checked array of two dimensions."""
    if hasattr(X, "columns"):
        if not len(X):
            raise ValueError(f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
        return X
    if not (hasattr(X, "shape") or hasattr(X, "__array__")):
        X = np.array(X, dtype=object)  # of numbers and strings NumPy would make strings
    return check_array(X, dtype=None, ensure_all_finite=False)


def _columns_of(X):
    """Return the names, or numbers, of the columns, and the columns."""
    if hasattr(X, "iloc"):
        return list(X.columns), [X.iloc[:, j] for j in range(X.shape[1])]
    if hasattr(X, "columns"):
        return list(X.columns), [X[name] for name in X.columns]
    return list(range(X.shape[1])), list(X.T)


def _numbers_of(X):
    """Return the places of the columns of numbers that are not constant. `ColumnTransformer` calls this in `fit`."""
    return [j for j, found in _number_columns(X) if found.size and found.min() < found.max()]


def _gaps_of(X):
    """Return the places of the columns of numbers of which some are missing."""
    return [j for j, found in _number_columns(X) if 0 < found.size < len(X)]


def _number_columns(X):
    """Yield the place of each column of numbers, and those of its values that are not missing."""
    for j, (kind, column) in enumerate(zip(_kinds_of(X), _columns_of(X)[1], strict=True)):
        if kind == "number":
            values = _to_numbers(column)
            yield j, values[~np.isnan(values)]


def _categories_of(X):
    """Return the places of the columns that hold categories."""
    return [j for j, kind in enumerate(_kinds_of(X)) if kind == "category"]


def _kinds_of(X):
    """Return "number" or "category" for each column; refuse all else."""
    if not hasattr(X, "columns") and X.dtype.kind in "biuf":
        return ["number"] * X.shape[1]
    return [_kind_of(name, column) for name, column in zip(*_columns_of(X), strict=True)]


_DATES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64)
_MISSING = "missing"


def _kind_of(name, column):
    if str(column.dtype).startswith(("category", "Categorical", "Enum")):
        return "category"
    kind = getattr(column.dtype, "kind", "O")  # polars' types have none
    values = np.asarray(column) if kind == "O" else column
    kind = kind if kind != "O" else values.dtype.kind
    if kind in "biuf":
        return "number"
    if kind in "mM":
        raise _refusal_of_dates(name)
    types = {str} if kind in "SUT" else {type(value) for value in values if not _is_missing(value)}
    if any(issubclass(cls, _DATES) for cls in types):
        raise _refusal_of_dates(name)
    if all(issubclass(cls, Real | Decimal | np.bool_) for cls in types):
        return "number"
    if not all(issubclass(cls, str | Real) for cls in types):
        names = ", ".join(sorted(cls.__name__ for cls in types))
        raise TypeError(
            f"Column {name!r} holds values of type {names}; each argument must be a string or a number, or be missing. "
            "Convert the column or drop it."
        )
    _check_strings(name, [str(value) for value in values if not _is_missing(value)])
    return "category"


def _is_missing(value):
    """Whether a value is None, NaN, or pandas' NA or NaT."""
    if isinstance(value, str):
        return False
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real | Decimal) and bool(value != value)


def _refusal_of_dates(name):
    return ValueError(
        f"Column {name!r} holds dates or times. Replace it by numbers that matter for the target, such as the year, "
        "the month, the day of the week, or the days since an event."
    )


_DATE = re.compile(r"\s*(\d{4}[-/]\d\d?[-/]\d\d?|\d\d?[-/.]\d\d?[-/.]\d{4})\b")
# A column of strings is not categories if it has more different values than this, and than half of its rows.
_FEW = 20


def _check_strings(name, strings):
    """Refuse strings that are dates, numbers or text; each is better served by another treatment."""
    different = set(strings)
    if different and all(_DATE.match(value) for value in different):
        raise _refusal_of_dates(name)
    if len(different) <= max(_FEW, len(strings) / 2):
        return
    found = f"Column {name!r} has {len(different)} different strings in {len(strings)} rows"
    escape = 'If they are categories all the same, convert the column to the type "category" (polars: Categorical).'
    if sum(map(_is_number, different)) > len(different) / 2:
        raise ValueError(f"{found}, most of which are numbers. Convert the column to numbers. {escape}")
    if sum(len(value.split()) for value in different) >= 3 * len(different):
        raise ValueError(
            f"{found}, of three words or more on average: text. Drop the column, or turn it into numbers first, for "
            f"example with sklearn.feature_extraction.text.TfidfVectorizer and TruncatedSVD. {escape}"
        )


def _is_number(string):
    try:
        float(string)
    except ValueError:
        return False
    return True


def _to_numbers(X):
    """Return columns of numbers as an array of floats; what is missing is NaN."""
    if hasattr(X, "iloc"):
        return X.to_numpy(dtype=np.float64, na_value=np.nan)
    X = np.asarray(X)
    if X.dtype == object:
        numbers = [np.nan if _is_missing(value) else value for value in X.ravel()]
        return np.array(numbers, np.float64).reshape(X.shape)
    return X if X.dtype == np.float32 else X.astype(np.float64, copy=False)


def _to_labels(X):
    """Return columns of categories as an array of strings, also what is missing."""
    _, columns = _columns_of(X)
    labels = np.empty((len(X), len(columns)), dtype=object)
    for j, column in enumerate(columns):
        labels[:, j] = [_label_of(value) for value in np.asarray(column, dtype=object)]
    return labels


def _label_of(value):
    if isinstance(value, str):
        return str(value)
    if _is_missing(value):
        return _MISSING
    # pandas turns integers into floats where some are missing.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


# --- several networks ---


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
        inputs = transformer.fit_transform(X, y)
        if not inputs.shape[1]:
            raise ValueError("All columns are constant: there is nothing to learn from.")
        return transformer, _as_inputs(inputs), y, weight

    def _network(self, make):
        """Return the network to train, not fitted: that of `make` where the user has given none."""
        return clone(make().estimator if self.estimator is None else self.estimator)

    def _transform(self, X):
        """Return what the networks see of a table."""
        check_is_fitted(self)
        X = _as_table(X)
        validate_data(self, X, skip_check_array=True, reset=False)
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
            w = None if weight is None else weight[kept]
            if held_out.any():
                member.fit(X[kept], targets[kept], w, X_val=X[held_out], y_val=targets[held_out])
            else:  # fewer samples than folds, or each is the only one of its class
                member.set_params(early_stopping=False).fit(X[kept], targets[kept], w)
            return member.set_params(n_jobs=self.n_jobs)

        return Parallel(n_threads, backend="threading")(delayed(train)(k) for k in range(self.n_members))

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
        The network. None for that of `make_tabular_classifier`. The ensemble sets its `random_state`, `n_jobs` and, if
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
        """
        X = _as_table(X)
        random_state = check_random_state(self.random_state)
        transformer, inputs, labels, weight = self._prepare(X, y, sample_weight)
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"TabularClassifier needs two classes or more, but y has only 1 class, {classes.tolist()}."
            )
        network = self._network(make_tabular_classifier)
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
        y = column_or_1d(y, warn=True)
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
        The network. None for that of `make_tabular_regressor`. It learns targets of mean 0 and variance 1; with
        ``loss="poisson"`` they are only divided by their standard deviation. The ensemble sets its `random_state`,
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
        From targets to what the networks learn.
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
        """
        X = _as_table(X)
        random_state = check_random_state(self.random_state)
        transformer, inputs, targets, weight = self._prepare(X, y, sample_weight)
        network = self._network(make_tabular_regressor)
        columns = targets.reshape(len(targets), -1)
        scaler = StandardScaler(with_mean=network.loss != "poisson").fit(columns, sample_weight=weight)
        scaled = scaler.transform(columns).astype(np.float32).reshape(targets.shape)
        folds = _deal_folds(columns[:, 0], max(self.n_members, _MIN_FOLDS), random_state)
        members = self._train(network, inputs, scaled, weight, folds, random_state)
        validate_data(self, X, skip_check_array=True)  # sets the names of the features
        self.transformer_, self.members_, self.target_scaler_ = transformer, members, scaler
        self.target_range_ = np.stack([columns.min(axis=0), columns.max(axis=0)])
        return self

    def _check_y(self, y):
        y = y.astype(np.float64, copy=False)
        return column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

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

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


# --- strong defaults ---

_NETWORK = dict(
    hidden_layer_sizes=(128, 128), activation="relu", weight_init="he_normal", solver="adamw", alpha=0.0,
    learning_rate="cosine", learning_rate_init=3e-3, max_iter=80, early_stopping=True, scoring="loss",
    n_iter_no_change=np.inf, dtype="float32",
)  # fmt: skip
_CLASSIFIER = _NETWORK | dict(dropout=0.15, weight_decay=0.1, label_smoothing=0.05)
_REGRESSOR = _NETWORK | dict(dropout=0.15, weight_decay=0.3)


def make_tabular_classifier(**overrides: Any) -> TabularClassifier:
    """Make a classifier for tables with gaps and categories.

    Two hidden layers of 128 units learn from scaled and piecewise-linear encoded numbers and from one-hot encoded
    categories, with label smoothing and a learning rate that decreases to 0. Four such networks, each of which has held
    out other samples, predict together.

    Parameters
    ----------
    **overrides
        Any parameter of `TabularClassifier`, such as `random_state`, `max_time`, `n_jobs` and `n_members`, and any of
        `BackpropClassifier`, for the network.

    Returns
    -------
    TabularClassifier
        Not fitted. In a grid, the parameters of the network are `estimator__dropout` and so on.

    Examples
    --------
    >>> from fastbp import make_tabular_classifier
    >>> from sklearn.datasets import load_breast_cancer
    >>> X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    >>> clf = make_tabular_classifier(random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """
    return _make(TabularClassifier, BackpropClassifier, _CLASSIFIER, overrides)


def make_tabular_regressor(**overrides: Any) -> TabularRegressor:
    """Make a regressor for tables with gaps and categories.

    Two hidden layers of 128 units learn from scaled and piecewise-linear encoded numbers and from one-hot encoded
    categories, with dropout, decoupled weight decay and a learning rate that decreases to 0. Four such networks, each
    of which has held out other samples, predict together.

    Parameters
    ----------
    **overrides
        Any parameter of `TabularRegressor`, such as `random_state`, `max_time`, `n_jobs` and `n_members`, and any of
        `BackpropRegressor`, for the network.

    Returns
    -------
    TabularRegressor
        Not fitted. In a grid, the parameters of the network are `estimator__dropout` and so on.

    Examples
    --------
    >>> from fastbp import make_tabular_regressor
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
    >>> reg = make_tabular_regressor(random_state=0).fit(X, y)
    >>> reg.score(X, y) > 0.5
    True
    """
    return _make(TabularRegressor, BackpropRegressor, _REGRESSOR, overrides)


def _make(ensemble_class, network_class, defaults, overrides):
    """Make an ensemble; each of the overrides goes to the one whose parameter it is."""
    of_ensemble, of_network = ensemble_class().get_params(deep=False), network_class().get_params()
    if unknown := sorted(overrides.keys() - of_ensemble.keys() - of_network.keys()):
        raise TypeError(
            f"{', '.join(unknown)}: no parameter of {ensemble_class.__name__} or {network_class.__name__}. The "
            f"first has {', '.join(of_ensemble)}."
        )
    parameters = {name: value for name, value in overrides.items() if name in of_ensemble}
    changes = {name: value for name, value in overrides.items() if name not in of_ensemble}
    parameters.setdefault("estimator", network_class(**defaults | changes))
    return ensemble_class(**parameters)
