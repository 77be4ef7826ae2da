"""Inputs in compressed sparse rows (CSR), as the kernels read them."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from fastbp.kernels.records import declare_writeable


class CsrMatrix(NamedTuple):
    """Inputs in compressed sparse rows; the features of each row are in ascending order, each once."""

    indptr: np.ndarray  # (n_samples + 1,) int64
    indices: np.ndarray  # (n_entries,) int32: features
    values: np.ndarray  # (n_entries,), of the network's type
    n_features: int

    @property
    def shape(self):
        """Samples and features."""
        return len(self.indptr) - 1, self.n_features


def csr_matrix_of(X, dtype):
    """Return a scipy matrix as the kernels read it.

    Parameters
    ----------
    X : scipy.sparse CSR matrix or array
        Not changed. It may have unsorted and duplicate entries, whose sum counts, and explicit zeros.
    dtype : {float32, float64}
        Type of the values.

    Returns
    -------
    CsrMatrix
        Without copies of what has the right type and order.

    Raises
    ------
    ValueError
        If the index arrays do not describe a matrix, it has too many features, or sums of duplicates are not finite.
    """
    n_samples, n_features = X.shape
    if n_features > np.iinfo(np.int32).max:
        raise ValueError(f"X has {n_features} features; the largest number for sparse input is 2**31 - 1.")
    indptr, indices, values = X.indptr, X.indices, X.data
    n_entries = int(indptr[-1]) if len(indptr) else 0
    # Numbers are compared, not subtracted, as unsigned ones have no negative differences.
    if (
        len(indptr) != n_samples + 1 or indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any()
        or n_entries > min(len(indices), len(values))
        or (n_entries and (indices[:n_entries].min() < 0 or indices[:n_entries].max() >= n_features))
    ):  # fmt: skip
        raise ValueError("The index arrays of the sparse X are inconsistent; see its method check_format.")
    indices, values = indices[:n_entries], values[:n_entries]  # there may be more, which do not count
    ascending = indices[1:] > indices[:-1]
    starts = indptr[1:-1]
    ascending[starts[(starts > 0) & (starts < n_entries)] - 1] = True  # where a row begins
    if not ascending.all():
        # The sums have the type that they have in a dense array, where that is not narrower than the network's.
        values = values.astype(np.promote_types(values.dtype, dtype))
        kinds = indices.astype(np.int32), indptr.astype(np.int64)
        summed = csr_array((values, *kinds), shape=X.shape)
        summed.sum_duplicates()
        indptr, indices, values = summed.indptr, summed.indices, summed.data
        if values.size and not max(values.max(), -values.min()) <= np.finfo(dtype).max:
            raise ValueError(f"The sums of duplicate entries of X contain infinity or a value too large for {dtype!r}.")
    return CsrMatrix(
        _as_kind(indptr, np.int64), _as_kind(indices, np.int32), _as_kind(values, dtype), n_features
    )  # fmt: skip


def _as_kind(array, dtype):
    return declare_writeable(np.ascontiguousarray(array, dtype))


def split_inputs(X, dtype):
    """Return inputs as a `Data` has them, and the `CsrMatrix` of sparse ones, or None."""
    if isinstance(X, np.ndarray):
        return X, None
    return np.empty((X.shape[0], 0), dtype), csr_matrix_of(X, dtype)
