"""Prediction: which kernel, how many rows at a time, on how many threads."""

import numpy as np

from fastbp.kernels import prediction, threads
from fastbp.kernels.addresses import kernel_addresses
from fastbp.kernels.csr import csr_matrix_of
from fastbp.kernels.network import make_network
from fastbp.kernels.plan import MAX_PREDICTION_ROWS, forward_work, is_mostly_zero, prediction_rows
from fastbp.kernels.workspace import allocate_net

# Up to so many rows, or floating point operations, go through the network row by row (`benchmarks/choices.py`).
FEW_ROWS = 3
LITTLE_WORK = 150_000
# From so many rows on it is worth to pack the weights, and from the next on to look whether most inputs are zero.
PACKED_ROWS = 48
MANY_ROWS = 2000


class Predictor:
    """The outputs of one network, from the arrays of weights that the user sees and may edit.

    Parameters
    ----------
    coefs, intercepts : list of ndarray
        Weights of shape (fan_in, fan_out) and biases of each layer. They are used in place, or packed in each call, so
        that edits take effect.
    activations : list of Activation
        One for each layer.
    n_features : int
        Features of the samples.

    Raises
    ------
    ValueError
        If the shapes or types do not fit together.
    """

    def __init__(self, coefs, intercepts, activations, n_features):
        units = check_shapes(coefs, intercepts, n_features, activations)
        self._coefs, self._intercepts = list(coefs), list(intercepts)
        self.network = make_network(units, activations, coefs[0].dtype)
        self.dtype = self.network.dtype
        arrays = [*coefs, *intercepts]
        self._shapes = [array.shape for array in arrays]
        self._is_in_place = all(array.flags.c_contiguous and array.dtype == self.dtype for array in arrays)
        self._strides = [self.network.row_stride(n) for n in units]
        self._layers: dict = {}  # what `_plain_layers` returns
        self._widest = self.network.widest
        self._work = forward_work(units)
        self._kernels = None
        self._n_outputs = units[-1]
        self._addresses = {}  # of the kernel for each type of samples

    def uses(self, coefs, intercepts):
        """Whether these are the same arrays as before, of the same shapes, whatever their values."""
        if len(coefs) != len(self._coefs) or len(intercepts) != len(self._intercepts):
            return False
        if not (all(map(_is, self._coefs, coefs)) and all(map(_is, self._intercepts, intercepts))):
            return False
        return self._shapes == [array.shape for array in (*coefs, *intercepts)]  # `resize` works in place

    def _plain_layers(self, *, packs, csr=False):
        """Return what `prediction.plain_layers` does, and the arrays whose addresses are in the table."""
        if not self._is_in_place:  # copies, made in each call, so that edits take effect
            coefs, intercepts = (
                [np.ascontiguousarray(part, self.dtype) for part in parts] for parts in (self._coefs, self._intercepts)
            )
            return *prediction.plain_layers(self.network, coefs, intercepts, packs=packs, csr=csr), (coefs, intercepts)
        if (packs, csr) not in self._layers:
            arrays = self._coefs, self._intercepts
            self._layers[packs, csr] = *prediction.plain_layers(self.network, *arrays, packs=packs, csr=csr), arrays
        return self._layers[packs, csr]

    def outputs(self, x, n_jobs):
        """Compute the outputs for all rows of x.

        Parameters
        ----------
        x : ndarray of shape (n_samples, n_features), or scipy CSR matrix
            float32, float64 or uint8, C-ordered, at least one row; a sparse one is finite.
        n_jobs : int or None
            See `threads.thread_count`.

        Returns
        -------
        out : ndarray of shape (n_samples, n_outputs), of the network's dtype
            A row's outputs do not depend on the other rows.
        finite : bool
            Whether all inputs are finite numbers in the network's dtype; if not, `out` has no meaning.
        """
        n, n_features = x.shape
        if n_features != self.network.units[0]:  # `n_features_in_` was edited, or another thread is fitting
            raise ValueError(f"X has {n_features} features, but the network has {self.network.units[0]} inputs.")
        out = np.empty((n, self._n_outputs), self.dtype)
        if not isinstance(x, np.ndarray):
            self._predict_csr(csr_matrix_of(x, self.dtype), out, n_jobs)
            return out, True
        if (n <= FEW_ROWS or n * self._work <= LITTLE_WORK) and self._is_in_place:
            with np.errstate(over="ignore"):  # infinity is noticed
                x = x.astype(self.dtype, copy=False)
            space = np.empty((2, self._widest), self.dtype)
            layers, _, _ = self._plain_layers(packs=False)
            return out, prediction.predict_few(x, layers, self.network.coefficients, space, out)
        if n >= MANY_ROWS and is_mostly_zero(x):
            return out, self._predict_indexed(x, out, n_jobs)
        bad = self._predict(prediction.predict, x, out, n_jobs, self._work, x.dtype)
        return out, not bad.any()

    def _predict_csr(self, csr, out, n_jobs):
        units = self.network.units
        work = forward_work([csr.indices.size / len(out), *units[1:]])
        self._predict(prediction.predict_csr, csr, out, n_jobs, work, "csr")

    def _predict(self, kernel, x, out, n_jobs, work, kind):
        """Set `out` by a kernel that uses the weights in place, or packs them; return its `bad`."""
        n = len(out)
        packs = n >= PACKED_ROWS
        layers, n_packed, _arrays = self._plain_layers(packs=packs, csr=kind == "csr")
        n_threads = threads.thread_count(n_jobs, work * n, threads.MIN_WORK_AFTER_PAUSE)
        block = prediction_rows(n, n_threads)
        n_threads = min(n_threads, -(-n // block))
        if self._kernels is None:
            self._kernels = kernel_addresses(self.dtype, prefetch_write=False)
        packed = np.empty(n_packed, self.dtype)
        row = max(self._strides[1:] if kind == "csr" else self._strides)
        space = np.empty((n_threads, 2, block * row), self.dtype)
        bad = np.zeros(n_threads, np.int64)
        args = (x, layers, self.network.coefficients, self._kernels, packed, space, out, bad, block, packs)
        if n_threads > 1 and kind not in self._addresses:
            self._addresses[kind] = threads.addresses_for(kernel, args)
        threads.run(kernel, args, n_threads, self._addresses.get(kind))
        return bad

    def _predict_indexed(self, x, out, n_jobs):
        """Set `out`, leaving out zero inputs; return whether all inputs are finite."""
        network, n = self.network, len(out)
        n_threads = min(threads.thread_count(n_jobs, self._work * n), -(-n // MAX_PREDICTION_ROWS))
        kernels = kernel_addresses(network.dtype, prefetch_write=False, index_lists=True)
        params = network.pack(self._coefs, self._intercepts)
        arrays = allocate_net(network, params, MAX_PREDICTION_ROWS * n_threads, n_threads, kernels, sparse=True)
        bad = np.zeros(n_threads, np.int64)
        args = (x, np.arange(n), arrays, out, bad, MAX_PREDICTION_ROWS)
        threads.run(prediction.predict_indexed, args, n_threads)
        return not bad.any()


def check_shapes(coefs, intercepts, n_features, activations):
    """Check that weights, which users may edit, fit together; return the units of all layers."""
    n_layers = len(activations)
    if len(coefs) != n_layers or len(intercepts) != n_layers:
        raise ValueError(
            f"coefs_ and intercepts_ must have one array for each of {n_layers} layers, got {len(coefs)} and "
            f"{len(intercepts)}."
        )
    units = [n_features]
    for index, (coef, intercept) in enumerate(zip(coefs, intercepts, strict=True)):
        for name, array in (("coefs_", coef), ("intercepts_", intercept)):
            if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
                kind = getattr(array, "dtype", type(array).__name__)
                raise ValueError(f"{name}[{index}] must be an array of float32 or float64, got {kind}.")
        if coef.ndim != 2 or coef.shape[0] != units[-1] or coef.shape[1] == 0:
            raise ValueError(f"coefs_[{index}] must have the shape ({units[-1]}, n_units), got {coef.shape}.")
        if intercept.shape != (coef.shape[1],):
            raise ValueError(f"intercepts_[{index}] must have the shape ({coef.shape[1]},), got {intercept.shape}.")
        units.append(coef.shape[1])
    return units


def _is(a, b):
    return a is b
