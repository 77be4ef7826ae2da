"""Prediction: which kernel, how many rows at a time, on how many threads."""

import numpy as np

from fastbp.kernels import prediction, threads
from fastbp.kernels.addresses import kernel_addresses
from fastbp.kernels.csr import csr_matrix_of
from fastbp.kernels.network import make_network
from fastbp.kernels.plan import forward_work, is_mostly_zero
from fastbp.kernels.records import declare_writeable
from fastbp.kernels.workspace import allocate_net

# Up to so many rows the weights are used as they are; more rows pay for packing them.
FEW_ROWS = 8
# Rows that go through the network together: enough to use each weight many times while it is in the cache.
BLOCK_ROWS = 96
# From so many rows on it is worth to look whether most inputs are zero.
MANY_ROWS = 2000


class Predictor:
    """The outputs of one network, from the arrays of weights that the user sees and may edit.

    Parameters
    ----------
    coefs, intercepts : list of ndarray
        Weights of shape (fan_in, fan_out) and biases of each layer. They are used in place for a few rows, and packed
        in each call for many, so that edits take effect.
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
        self._can_skip_packing = all(array.flags.c_contiguous and array.dtype == self.dtype for array in arrays)
        self._layers = np.array(
            [
                prediction.UnpackedLayer(
                    coef.ctypes.data, intercept.ctypes.data, coef.shape[0], coef.shape[1],
                    activation.forward_address(self.dtype), int(activation.by_rows),
                )
                for coef, intercept, activation in zip(coefs, intercepts, activations, strict=True)
            ],
            dtype=np.int64,
        )  # fmt: skip
        self._widest = self.network.widest
        self._addresses = {}  # of the kernel for each type of samples

    def uses(self, coefs, intercepts):
        """Whether these are the same arrays as before, whatever their values."""
        if len(coefs) != len(self._coefs) or len(intercepts) != len(self._intercepts):
            return False
        return all(map(_is, self._coefs, coefs)) and all(map(_is, self._intercepts, intercepts))

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
        n = x.shape[0]
        out = np.empty((n, self.network.units[-1]), self.dtype)
        if not isinstance(x, np.ndarray):
            self._predict_csr(csr_matrix_of(x, self.dtype), out, n_jobs)
            return out, True
        if n <= FEW_ROWS and self._can_skip_packing:
            x = x.astype(self.dtype, copy=False)
            space = np.empty((2, self._widest), self.dtype)
            return out, prediction.predict_few(x, self._layers, self.network.coefficients, space, out)
        return out, self._predict_many(x, out, n_jobs)

    def _predict_many(self, x, out, n_jobs):
        """Set `out`; return whether all inputs are finite."""
        network = self.network
        n = x.shape[0]
        block = min(n, BLOCK_ROWS)
        n_threads = min(threads.thread_count(n_jobs, forward_work(network.units) * n), -(-n // block))
        sparse = n >= MANY_ROWS and is_mostly_zero(x)
        kernels = kernel_addresses(network.dtype, prefetch_write=False, index_lists=sparse)
        params = network.pack(self._coefs, self._intercepts)
        arrays = allocate_net(network, params, block * n_threads, n_threads, kernels, sparse=sparse)
        bad = np.zeros(n_threads, np.int64)
        args = (x, np.arange(n), arrays, out, bad, block)
        if n_threads > 1 and x.dtype not in self._addresses:
            self._addresses[x.dtype] = threads.address_for(prediction.predict, args)
        address = self._addresses.get(x.dtype)
        threads.run(prediction.predict, prediction.predict_on_threads, args, n_threads, address)
        return not bad.any()

    def _predict_csr(self, csr, out, n_jobs):
        """Set `out`. The weights of the first layer, which can be large, are used in place."""
        units = self.network.units
        network = make_network([0, *units[1:]], self.network.activations, self.dtype)
        n = len(out)
        block = min(n, BLOCK_ROWS)
        work = forward_work([csr.indices.size / n, *units[1:]]) * n
        n_threads = min(threads.thread_count(n_jobs, work), -(-n // block))
        params = network.pack([self._coefs[0][:0], *self._coefs[1:]], self._intercepts)
        kernels = kernel_addresses(self.dtype, prefetch_write=False)
        arrays = allocate_net(network, params, block * n_threads, n_threads, kernels)
        weights = declare_writeable(np.ascontiguousarray(self._coefs[0], self.dtype))
        args = (csr, weights, arrays, out, block)
        address = threads.address_for(prediction.predict_csr, args) if n_threads > 1 else None
        threads.run(prediction.predict_csr, prediction.predict_csr_on_threads, args, n_threads, address)


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
