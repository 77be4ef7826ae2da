"""Input as users have it, and as the kernels take it."""

from numbers import Number

import numpy as np
from scipy.sparse import issparse
from sklearn.exceptions import DataConversionWarning

from fastbp.compat import check_sample_weight
from fastbp.kernels.records import declare_writeable
from fastbp.user_warnings import warn_user

# Types of input that the kernels read without conversion; everything else is converted to the first of the list.
_SOURCES = {
    np.dtype(np.float32): [np.float32, np.float64, np.uint8],
    np.dtype(np.float64): [np.float64, np.float32, np.uint8],
}
_READ_TYPES = {np.dtype(kind) for kinds in _SOURCES.values() for kind in kinds}


def plain_numbers(X, dtype):
    """Return X as scikit-learn's checks would, if it is an array, a list or a tuple that holds rows of numbers.

    Parameters
    ----------
    X
        As the user gave it.
    dtype : dtype
        The network's.

    Returns
    -------
    ndarray of shape (n_samples, n_features), C-ordered, or None
        At least one row, of a type that the kernels read; None where X must be checked.
    """
    if type(X) is not np.ndarray:
        if type(X) is not list and type(X) is not tuple:
            return None
        try:
            X = np.asarray(X)
        except Exception:  # rows of different lengths, or what an object in them raises: the checks say it better
            return None
    if X.ndim != 2 or X.shape[0] == 0:
        return None
    if X.dtype not in _READ_TYPES:
        if X.dtype.kind not in "biu":
            return None
        X = X.astype(dtype)
    return X if X.flags.c_contiguous else np.ascontiguousarray(X)


def need_no_checks(X, y, n_features):
    """Whether scikit-learn's checks of samples and targets would change nothing, and refuse nothing.

    Parameters
    ----------
    X, y
        As the user gave them.
    n_features : int
        Those of the network.

    Returns
    -------
    bool
        True for arrays of finite numbers of the right shape, of types that the kernels read, and for labels of text.
        Sums that overflow are left to the checks.
    """
    return (
        type(X) is type(y) is np.ndarray
        and X.ndim == 2
        and X.shape[1] == n_features
        and X.dtype in _READ_TYPES
        and X.flags.c_contiguous
        and (y.ndim == 1 or (y.ndim == 2 and y.shape[1] > 1))
        and y.dtype.kind in "biufU"
        and len(X) == len(y) > 0
        and _sum_is_finite(X)
        and _sum_is_finite(y)
    )


def _sum_is_finite(array):
    if array.dtype.kind != "f":
        return True
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum()))


def keep_float64(X, dtype):
    """See that float64 input of any kind remains float64, as scikit-learn's checks do for arrays and pandas only.

    Parameters
    ----------
    X
        As the user gave it.
    dtype : dtype
        The network's.

    Returns
    -------
    X, sources
        What the checks take: the input, and the types that they leave as they are; others become the first of them.
    """
    sources = _SOURCES[dtype]
    if isinstance(X, np.ndarray) or issparse(X):
        # Of another byte order, or longer.
        if X.dtype.kind == "f" and X.dtype.itemsize >= 8 and X.dtype != np.float64:
            with np.errstate(over="ignore"):  # the checks refuse what becomes infinite
                X = X.astype(np.float64)
        # Objects are mostly Python's numbers.
        return X, [np.float64] if X.dtype == object else sources
    if hasattr(X, "iloc"):
        return X, [np.float64] if _holds_float64(X) else sources
    converted = np.asarray(X)  # of lists, and of frames and arrays of other libraries, which may have names of features
    X = converted if isinstance(X, list | tuple) else X
    return X, [np.float64] if converted.dtype == np.float64 else sources


def _holds_float64(frame):
    """Whether the numbers of a pandas object need float64, also those of its own types and Python's."""
    kinds = map(_numpy_type, frame.dtypes if frame.ndim == 2 else [frame.dtype])
    numbers = [kind for kind in kinds if isinstance(kind, np.dtype) and kind.kind in "biufO"]  # the checks see the rest
    common = np.result_type(*numbers) if numbers else np.dtype(bool)
    return common.kind == "O" or (common.kind == "f" and common.itemsize >= 8)


def _numpy_type(kind):
    """Return NumPy's type of the numbers in a pandas column: categorical, sparse, nullable or NumPy's own."""
    if getattr(kind, "categories", None) is not None:
        kind = kind.categories.dtype
    return getattr(kind, "subtype", getattr(kind, "numpy_dtype", kind))


def targets_and_weights(X, Y, sample_weight, dtype):
    """Return targets and sample weights as the kernels take them; the weights are empty if there are none.

    Raises
    ------
    ValueError
        If weights are invalid, or numbers are infinite in this type.
    """
    weight = np.empty(0, dtype)
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        if sample_weight is not None:
            if isinstance(sample_weight, Number):  # which scikit-learn would not check
                sample_weight = np.full(X.shape[0], sample_weight)
            weight = check_sample_weight(sample_weight, X, dtype=dtype)
        targets = np.ascontiguousarray(Y, dtype=dtype)
    if Y.dtype.kind not in "biu" and not np.isfinite(targets).all():
        raise ValueError(f"Input y contains infinity or a value too large for {dtype!r}.")
    if sample_weight is not None:
        if not weight.any():  # scikit-learn before 1.9 lets these pass
            raise ValueError("Sample weights must contain at least one non-zero number.")
        if weight.sum(dtype=np.float64) == 0:
            raise ValueError("Sample weights must not sum to zero.")
    return declare_writeable(targets), declare_writeable(weight)


def ravel_column(y):
    """Return a single column as a vector, with scikit-learn's warning; all else as it is."""
    if y.ndim != 2 or y.shape[1] != 1:
        return y
    # In the words of scikit-learn's `column_or_1d`, whose own warning would point at this line.
    warn_user(
        "A column-vector y was passed when a 1d array was expected. Please change the shape of y to (n_samples, ), "
        "for example using ravel().",
        DataConversionWarning,
    )
    return y.ravel()
