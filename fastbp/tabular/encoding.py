"""Numbers as the bins that they reach: the piecewise-linear encoding."""

from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from fastbp.compat import Interval, Options, check_feature_names_in, fit_context


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
        with np.errstate(over="ignore"):  # far outside of the bins
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
