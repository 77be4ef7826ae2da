"""Columns of a table, of whatever kind, as inputs of a network."""

import datetime
import re
from decimal import Decimal
from numbers import Real

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_array

from fastbp.tabular.encoding import PiecewiseLinearEncoder
from fastbp.user_warnings import warn_user


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


def as_table(X):
    """Return a frame as it is, all else as a checked array of two dimensions."""
    if hasattr(X, "collect"):
        raise TypeError(f"{type(X).__name__} holds no rows yet. Pass X.collect().")
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
    for j, (kind, name, column) in enumerate(zip(_kinds_of(X), *_columns_of(X), strict=True)):
        if kind == "number":
            values = _as_floats(column)
            _refuse_infinity(name, values)
            yield j, values[~np.isnan(values)]


def _categories_of(X):
    """Return the places of the columns that hold categories. `ColumnTransformer` calls this in `fit`."""
    places = [j for j, kind in enumerate(_kinds_of(X)) if kind == "category"]
    names, columns = _columns_of(X)
    for j in places:
        if _is_categorical(columns[j]):
            continue  # it was said that it holds categories
        values = np.asarray(columns[j], dtype=object)
        different = len({value for value in values if isinstance(value, str)})
        if different > max(_FEW, len(values) / 2):
            warn_user(
                f"Column {names[j]!r} has {different} different categories in {len(values)} rows. Most are rare, and "
                "share one input, which says little. Drop the column, or replace it by what its values have in common."
            )
    return places


def _kinds_of(X):
    """Return "number" or "category" for each column; refuse all else."""
    if not hasattr(X, "columns") and X.dtype.kind in "biuf":
        return ["number"] * X.shape[1]
    return [_kind_of(name, column) for name, column in zip(*_columns_of(X), strict=True)]


_DATES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64)
_MISSING = "missing"


def _is_categorical(column):
    """Whether pandas or polars call a column so."""
    return str(column.dtype).startswith(("category", "Categorical", "Enum"))


def _kind_of(name, column):
    if _is_categorical(column):
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


# Also as people write them: "1,234.50", "12 %", "0.98 €".
_NUMBER = re.compile(r"\s*[^\w\s]{0,2}\s*[-+]?(\d[\d,' ]*)?([.,]\d*)?([eE][-+]?\d+)?\s*[^\w\s]{0,2}\s*")


def _is_number(string):
    return any(map(str.isdigit, string)) and _NUMBER.fullmatch(string) is not None


def _to_numbers(X):
    """Return columns of numbers as an array of floats; what is missing is NaN.

    In prediction a column can hold what it did not hold in `fit`.
    """
    names, _ = _columns_of(X)
    for name, kind in zip(names, _kinds_of(X), strict=True):
        if kind != "number":
            raise ValueError(f"Column {name!r} held numbers in fit, and holds strings or categories now.")
    numbers = _as_floats(X)
    for name, values in zip(names, numbers.T, strict=True):
        _refuse_infinity(name, values)
    return numbers


def _as_floats(values):
    """Return a frame, a column or an array of numbers as an array of floats; what is missing is NaN."""
    if hasattr(values, "iloc"):
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    values = np.asarray(values)
    if values.dtype == object:
        numbers = [np.nan if _is_missing(value) else value for value in values.ravel()]
        return np.array(numbers, np.float64).reshape(values.shape)
    return values if values.dtype == np.float32 else values.astype(np.float64, copy=False)


def _refuse_infinity(name, values):
    if np.isinf(values).any():
        raise ValueError(
            f"Column {name!r} contains infinity. Replace it by a number, or by NaN where the value is missing."
        )


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
