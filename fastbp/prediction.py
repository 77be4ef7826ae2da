"""Prediction: which kernel, how many rows at a time, on how many threads."""

from itertools import chain
from operator import is_

import numpy as np

from fastbp.kernels import prediction, threads, workers
from fastbp.kernels.addresses import gather_address, kernel_addresses
from fastbp.kernels.csr_matrix import CsrMatrix, csr_matrix_of
from fastbp.kernels.network import aligned_zeros, make_network
from fastbp.kernels.plan import (
    MAX_PREDICTION_ROWS,
    MIN_PREDICTION_ROWS,
    READING_ROWS,
    SHARING_CYCLES,
    WAKING_CYCLES,
    forward_work,
    is_mostly_zero,
    prediction_capacity,
    prediction_rows,
    shares_columns,
    sharing_threads,
    work_of_cycles,
)
from fastbp.kernels.short_calls import short_calls
from fastbp.kernels.workspace import allocate_net

# From so many rows on it is worth to look whether most inputs are zero.
MANY_ROWS = 2000
# Bytes of workspaces that are kept for the next calls: to allocate more is little beside the work.
MAX_KEPT = 2**24


class _Workspace:
    """What one call at a time may use: a table for the kernels, and memory for so many rows and threads."""

    def __init__(self, predictor, rows, n_threads, source):
        network = predictor.network
        coefs, intercepts = self._arrays = predictor.parameters()  # whose addresses are in the table
        self.rows, self.n_threads = rows, n_threads
        self.table = prediction.table_of(
            network, coefs, intercepts, predictor.kernels, source, n_threads, is_pair=predictor.is_pair
        )  # fmt: skip
        size = prediction.lay_out(self.table, rows, network, csr=source == "csr")
        self.space = aligned_zeros(n_threads * size, predictor.dtype)
        self.team = threads.new_team(n_threads, threads.FEW_SPINS)  # whose cells are used again


class Predictor:
    """The outputs of one network, from the arrays of weights that the user sees and may edit.

    Parameters
    ----------
    coefs, intercepts : list of ndarray
        Weights of shape (fan_in, fan_out) and biases of each layer. They are used in place, so that edits take effect.
    activations : list of Activation
        One for each layer.
    n_features : int
        Features of the samples.
    is_pair : bool, default=False
        Whether the one output is the probability of the second of two classes, and those of both are wanted.

    Raises
    ------
    ValueError
        If the shapes or types do not fit together.
    """

    def __init__(self, coefs, intercepts, activations, n_features, *, is_pair=False):
        units = check_shapes(coefs, intercepts, n_features, activations)
        if is_pair and units[-1] != 1:
            raise ValueError(f"n_outputs_ is 1, but coefs_ and intercepts_ are those of {units[-1]} outputs.")
        self._n_layers, self._arrays = len(coefs), [*coefs, *intercepts]
        self.network = make_network(units, activations, coefs[0].dtype)
        self.dtype, self.is_pair = self.network.dtype, is_pair
        self._is_in_place = all(array.flags.c_contiguous and array.dtype == self.dtype for array in self._arrays)
        self.kernels = kernel_addresses(self.dtype, prefetch_write=False)
        self._work = forward_work(units)
        self._n_bytes = sum(coef.nbytes for coef in coefs)
        self._min_work, self._min_work_awake = (
            work_of_cycles(cycles, self.dtype.itemsize) for cycles in (WAKING_CYCLES, SHARING_CYCLES)
        )  # fmt: skip
        self.n_features, self._n_columns = units[0], 2 if is_pair else units[-1]
        self._sharing: dict[int, int] = {}  # how many of so many threads can share columns
        # Those that no call uses at the moment, for each type of inputs.
        self._workspaces: dict[str, list] = {}

    def uses(self, coefs, intercepts):
        """Whether these are the same arrays as before, whatever their values."""
        return (
            len(coefs) == len(intercepts) == self._n_layers
            and all(map(is_, self._arrays, chain(coefs, intercepts)))
        )  # fmt: skip

    def parameters(self):
        """Return coefs and intercepts as the kernels take them: copies where the user's are of another layout."""
        arrays, n = self._arrays, self._n_layers
        if check_shapes(arrays[:n], arrays[n:], self.n_features, self.network.activations) != self.network.units:
            raise ArraysMovedError
        if not self._is_in_place:
            arrays = [np.ascontiguousarray(array, self.dtype) for array in arrays]
        return arrays[:n], arrays[n:]

    def outputs(self, x, n_jobs):
        """Compute the outputs for all rows of x.

        Parameters
        ----------
        x : ndarray of shape (n_samples, n_features), scipy CSR matrix or CsrMatrix
            float32, float64 or uint8, C-ordered, at least one row; a sparse one is finite, and a `CsrMatrix` has the
            network's type.
        n_jobs : int or None
            See `threads.thread_count`.

        Returns
        -------
        out : ndarray of shape (n_samples, n_outputs), of the network's dtype
            A row's outputs do not depend on the other rows, if the weights are finite.
        finite : bool
            Whether all inputs are finite numbers in the network's dtype; if not, `out` has no meaning.

        Raises
        ------
        ArraysMovedError
            If the arrays of weights have been resized since.
        """
        n, n_features = x.shape
        if n_features != self.n_features:  # `n_features_in_` was edited, or another thread is fitting
            raise ValueError(f"X has {n_features} features, but the network has {self.n_features} inputs.")
        out = np.empty((n, self._n_columns), self.dtype)
        if not isinstance(x, np.ndarray):
            csr = x if isinstance(x, CsrMatrix) else csr_matrix_of(x, self.dtype)
            return out, self._predict_csr(csr, out, n_jobs)
        if n >= MANY_ROWS and is_mostly_zero(x):
            return out, self._predict_indexed(x, out, n_jobs)
        return out, self._predict(prediction.predict, x, out, n_jobs, self._work, self._min_work, x.dtype.char)

    def _predict_csr(self, csr, out, n_jobs):
        """Set `out` from sparse rows; return whether all inputs are finite."""
        work = forward_work([csr.indices.size / len(out), *self.network.units[1:]])
        return self._predict(prediction.predict_csr, csr, out, n_jobs, work, threads.MIN_WORK_AFTER_PAUSE, "csr")

    def _predict(self, kernel, x, out, n_jobs, work, min_work, source):
        """Set `out` by a kernel that uses the weights in place; return whether all inputs are finite.

        `work` is that of a row, `min_work` that from which on a thread pays that may be asleep, and `source` the type
        of the inputs, as `prediction.table_of` takes it.
        """
        n = len(out)
        work *= max(n, READING_ROWS)
        # Whether several threads can share columns is asked for two: networks of three panels alone are left out.
        if n_jobs == 1 or work < 2 * self._min_work_awake or (n == 1 and self._sharing_threads(2) == 1):
            return self._call(kernel, x, out, 1, source)
        if work >= 2 * min_work and not self._shares_columns(n, 2):
            return self._call(kernel, x, out, _thread_count(n_jobs, work, min_work), source, wakes=True)
        calls = short_calls()
        n_threads, streak = calls.begin(n_jobs, work, self._min_work_awake, source)
        try:
            return self._call(kernel, x, out, n_threads, source)
        finally:
            if streak is not None:
                calls.end(streak)

    def _call(self, kernel, x, out, n_threads, source, *, wakes=False):
        """Do that on `n_threads` threads at most, which are awake, or for which it is worth to wake or start them."""
        n = len(out)
        if n_threads > 1 and not wakes and self._shares_columns(n, n_threads):
            n_threads, rows, block = self._sharing_threads(n_threads), n, 0
        else:
            n_threads = max(1, min(n_threads, n // MIN_PREDICTION_ROWS if wakes else n))
            rows = block = prediction_rows(n, n_threads)
            n_threads = min(n_threads, -(-n // block))
        free = self._workspaces.setdefault(source, [])
        workspace = self._take_workspace(free, rows, n_threads, source)
        table = workspace.table
        table[prediction.BLOCK] = block
        args = (x, out, table, workspace.space, workspace.team)
        if n_threads == 1:
            kernel(*args, 1, 0)
        else:
            team = workers.take_workers()
            if wakes:
                team.start(n_threads)
            kernel(*args, n_threads, team.address)
            if wakes:
                workers.long_calls.note(team)
            workers.give_back(team)
        status = table.item(prediction.STATUS)
        if status >= prediction.CHANGED:
            raise ArraysMovedError
        if self._is_in_place and (len(free) + 1) * workspace.space.nbytes <= MAX_KEPT:
            table[prediction.STATUS] = 0
            free.append(workspace)
        return not status

    def _shares_columns(self, n, n_threads):
        # All rows then go through the network together, for which workspaces are not larger than these.
        if n > MAX_PREDICTION_ROWS:
            return False
        return shares_columns(n, n_threads, self._sharing_threads(n_threads), self._n_bytes)

    def _sharing_threads(self, n_threads):
        if n_threads not in self._sharing:
            self._sharing[n_threads] = sharing_threads(self.network.units, self.dtype.itemsize, n_threads)
        return self._sharing[n_threads]

    def _take_workspace(self, free, block, n_threads, source):
        """Return a workspace that no other call uses."""
        rows = prediction_capacity(block)
        try:
            workspace = free.pop()  # which Python does in one step, whatever other threads do
        except IndexError:
            return _Workspace(self, rows, n_threads, source)
        if workspace.rows >= block and workspace.n_threads >= n_threads:
            return workspace
        # One that also serves calls as those before, or they would replace each other's.
        both = max(rows, workspace.rows), max(n_threads, workspace.n_threads)
        if workspace.space.nbytes * both[0] * both[1] <= MAX_KEPT * workspace.rows * workspace.n_threads:
            rows, n_threads = both
        else:
            free.append(workspace)
        return _Workspace(self, rows, n_threads, source)

    def _predict_indexed(self, x, out, n_jobs):
        """Set `out`, leaving out zero inputs; return whether all inputs are finite."""
        network, n = self.network, len(out)
        coefs, intercepts = self.parameters()
        outputs = np.empty((n, 1), self.dtype) if self.is_pair else out
        n_threads = min(_thread_count(n_jobs, self._work * n, self._min_work), -(-n // MAX_PREDICTION_ROWS))
        kernels = kernel_addresses(network.dtype, prefetch_write=False, index_lists=True)
        params = network.pack(coefs, intercepts)
        arrays = allocate_net(network, params, MAX_PREDICTION_ROWS * n_threads, n_threads, kernels, sparse=True)
        bad = np.zeros(n_threads, np.int64)
        gather_rows = gather_address(x.dtype, network.dtype)
        args = (x.view(np.uint8), np.arange(n), arrays, outputs, bad, MAX_PREDICTION_ROWS, gather_rows)
        workers.run(prediction.predict_indexed, args, n_threads)
        if self.is_pair:
            np.subtract(1, outputs[:, 0], out=out[:, 0])
            out[:, 1] = outputs[:, 0]
        return not bad.any()


def _thread_count(n_jobs, work, min_work):
    """Return on how many threads to make a call for which they may have to be woken."""
    return threads.python_thread_count(n_jobs, work, min_work) if workers.long_calls.are_shared() else 1


class ArraysMovedError(Exception):
    """The arrays of weights are no longer where they were: a new predictor must look at them."""


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
