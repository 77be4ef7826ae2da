"""The first layer for inputs in compressed sparse rows (CSR): its product, its weight gradient and its update.

The weights of the first layer are stored row by row, one row for each feature. The product of a sample adds the rows of
its features. For the gradient each thread has some features: it collects the entries of the batch that belong to them,
feature by feature, so that the gradient of a row is again a sum of rows, of the deltas. Both sums have the order of the
dense kernels, and so their bits.

The update is that of dense training, exactly:

- With L2 regularization, weight decay, or decay rates of Adam far from the usual, every weight changes in every step:
  all rows are updated, in one pass.
- Else the rows of absent features are *lazy*: they are caught up when a batch needs them, and before anyone reads them
  (see `lazy`).
"""

from typing import Any, NamedTuple

import numpy as np

from fastbp.codegen.jit import cached_jit, called_by_address, inlined, jit
from fastbp.codegen.memory import (
    itemsize,
    lane_count,
    load_scalar,
    offset,
    pointer,
    pointer_at,
    prefetch,
    prefetch_for_write,
    record_loader,
    store_scalar,
)
from fastbp.codegen.processor import flush_subnormals, restore_subnormals
from fastbp.codegen.rows import ROW_VECTORS, row_kernel_indexed
from fastbp.codegen.target import CACHE_LINE
from fastbp.codegen.vectors import load, store
from fastbp.kernels import lazy
from fastbp.kernels.lazy import catch_up, look_back
from fastbp.kernels.plan import BLOCK_ROWS
from fastbp.optimizers import square_norm, update

# Places in the table of `kernel_addresses`, after those of `sparse`.
MULTIPLY_CSR, COLLECT_CSR, UPDATE_CSR = range(9, 12)
# What `update_csr` does: clipping takes the norm of the whole gradient between its halves.
SUM_AND_UPDATE, SUM, UPDATE = range(3)

# Rows between the one that is updated and the one that is prefetched: they come from memory, in no order.
PREFETCH_ROWS = 8


class _Table(NamedTuple):
    """What the kernels know of the input and its workspace; all are int64, and those of arrays are addresses."""

    indptr: int  # int64
    indices: int  # int32
    values: int  # of the network's type
    bounds: int  # int64: features of each thread, for each size of a team
    max_threads: int
    counts: int  # int32 (n_features,): entries of the batch, or 0
    begins: int  # int32 (n_features,): where they begin among those of the thread
    capacity: int  # most entries of a batch
    touched: int  # int32 (capacity + 1) for each thread: the number of features in the batch, and these
    rows: int  # int32 (capacity,) for each thread: the rows of the entries, feature by feature
    entries: int  # (capacity,) for each thread: their values
    is_lazy: int
    last: int  # int32 (n_features,): the step that a row has reached
    clock: int  # int64 (1,): steps done
    log: int  # float64 (lazy.MAX_STEPS,): size of each step
    moments: int  # float64 (lazy.MAX_STEPS + 1, lazy.N_TERMS): B_k of a row that waits since this step
    memory: int  # steps that a B_k looks back
    decays: int  # float64 (lazy.MAX_STEPS + 1, 2): of the optimizer's state after so many steps, see `lazy`
    powers: int  # float64 (lazy.N_TERMS, lazy.N_TERMS): factors of `lazy.look_back`


class _Csr(NamedTuple):
    """A `_Table` as pointers, with one thread's part."""

    indptr: Any
    indices: Any
    values: Any
    counts: Any
    begins: Any
    touched: Any
    rows: Any
    entries: Any
    is_lazy: bool
    last: Any
    clock: Any
    log: Any
    moments: Any
    memory: int
    decays: Any
    powers: Any


class Csr:
    """The input of one training in compressed sparse rows, and its workspace.

    Parameters
    ----------
    matrix : CsrMatrix
        The input.
    settings : session.StepSettings
        Of the training.
    chunk : int
        Rows that go through the network together.
    n_threads : int
        The most threads.

    Attributes
    ----------
    table : ndarray of int64
        For the kernels.
    is_lazy : bool
        Whether rows of absent features wait.
    waiting : tuple of ndarray
        Since when.
    """

    def __init__(self, matrix, settings, chunk, n_threads):
        dtype = matrix.values.dtype
        sizes = np.diff(matrix.indptr)
        capacity = int(np.partition(sizes, -chunk)[-chunk:].sum()) if chunk < len(sizes) else int(sizes.sum())
        self.is_lazy = chunk == settings.batch_size and lazy.has_closed_form(settings, dtype)
        n_batches = -(-len(sizes) // settings.batch_size)
        memory, waiting = lazy.workspace(settings, matrix.n_features, self.is_lazy)
        arrays = {
            "bounds": _bounds(matrix, n_batches, n_threads, self.is_lazy),
            "counts": np.zeros(matrix.n_features, np.int32),
            "begins": np.zeros(matrix.n_features, np.int32),
            "touched": np.zeros(n_threads * (capacity + 1), np.int32),
            "rows": np.zeros(n_threads * capacity, np.int32),
            "entries": np.zeros(n_threads * capacity, dtype),
            **waiting,
        }
        self._keep = arrays, matrix  # the table has their addresses only
        self._clock = arrays["clock"]
        self.waiting = arrays["last"], arrays["clock"]  # what changes when all rows are caught up
        addresses = {name: array.ctypes.data for name, array in arrays.items()}
        self.table = np.array(
            _Table(
                indptr=matrix.indptr.ctypes.data, indices=matrix.indices.ctypes.data, values=matrix.values.ctypes.data,
                max_threads=n_threads, capacity=capacity, is_lazy=self.is_lazy, memory=memory, **addresses,
            ),
            dtype=np.int64,
        )  # fmt: skip

    def steps_left(self):
        """Return how many steps may follow before all rows must be caught up."""
        return lazy.MAX_STEPS - int(self._clock[0]) if self.is_lazy else np.iinfo(np.int64).max

    def has_waiting_rows(self):
        """Whether any row may wait."""
        return self.is_lazy and self._clock[0] > 0


def _bounds(matrix, n_batches, n_threads, is_lazy):
    """Cut the features into parts of about equal work, for teams of 1 to n_threads; results do not depend on it."""
    counts = np.bincount(matrix.indices, minlength=matrix.n_features).astype(np.float64)
    # The update of a row takes about as long as four entries.
    work = np.cumsum(counts + 4 * (np.minimum(counts, n_batches) if is_lazy else n_batches))
    bounds = np.zeros((n_threads + 1, n_threads + 1), np.int64)
    for size in range(1, n_threads + 1):
        cuts = np.searchsorted(work, work[-1] * np.arange(1, size) / size)
        # Sums of squares are taken over blocks of rows.
        bounds[size, 1:size] = cuts // BLOCK_ROWS * BLOCK_ROWS
        bounds[size, size:] = matrix.n_features
    return bounds


# --- inside compiled code; `ints`, `floats` and `like` are any pointers to int32, float64 and the network's type ---

_load_table = record_loader(_Table)


@inlined
def _part(table, rank, ints, floats, like):
    """Turn a `_Table` into pointers, with one thread's part."""
    t = _load_table(table, 0)
    return _Csr(
        pointer_at(table, t.indptr), pointer_at(ints, t.indices), pointer_at(like, t.values),
        pointer_at(ints, t.counts), pointer_at(ints, t.begins),
        offset(pointer_at(ints, t.touched), rank * (t.capacity + 1)),
        offset(pointer_at(ints, t.rows), rank * t.capacity), offset(pointer_at(like, t.entries), rank * t.capacity),
        t.is_lazy != 0, pointer_at(ints, t.last), pointer_at(table, t.clock), pointer_at(floats, t.log),
        pointer_at(floats, t.moments), t.memory, pointer_at(floats, t.decays), pointer_at(floats, t.powers),
    )  # fmt: skip


@inlined
def _features_of(table, rank, size):
    """Return the bounds of one thread's features."""
    t = _load_table(table, 0)
    bounds, place = pointer_at(table, t.bounds), size * (t.max_threads + 1) + rank
    return load_scalar(bounds, place), load_scalar(bounds, place + 1)


@called_by_address
def multiply_csr(table, ints, order, position, first, last, weights, row, bias, z, z_row):
    """Compute rows [first, last) of Z = X W + b: one row of W for each entry of X.

    Parameters
    ----------
    table : pointer to int64
        From `Csr`.
    ints : pointer to int32
        Any.
    order, position : pointer to int64, int64
        Row i is the sample order[position + i].
    weights, row : pointer, int64
        One row of `row` numbers for each feature, padded to whole vectors.
    bias : pointer
        `row` numbers.
    z, z_row : pointer, int64
        The result, and its row stride.
    """
    t = _load_table(table, 0)
    indptr, indices, values = pointer_at(table, t.indptr), pointer_at(ints, t.indices), pointer_at(z, t.values)
    for i in range(first, last):
        sample = load_scalar(order, position + i)
        begin, end = load_scalar(indptr, sample), load_scalar(indptr, sample + 1)
        sum_rows(
            row, end - begin, offset(values, begin), offset(indices, begin), weights, row, bias, offset(z, i * z_row)
        )  # fmt: skip


@inlined
def sum_rows(n, count, factors, indices, matrix, stride, start, out):
    """Set out = start + sum of factors[e] matrix[indices[e]], rows of n numbers."""
    step = ROW_VECTORS * lane_count(out)
    for j in range(0, n, step):
        row_kernel_indexed(
            min(step, n - j), count, factors, indices, offset(matrix, j), stride, offset(start, j), offset(out, j)
        )  # fmt: skip


@jit
def _first_entry(indices, begin, end, feature):
    """Return the first entry of a row, in [begin, end], whose feature is not below `feature`."""
    while begin < end:
        middle = (begin + end) // 2
        if load_scalar(indices, middle) < feature:
            begin = middle + 1
        else:
            end = middle
    return begin


@jit
def _collect(csr, order, position, m, low, high):
    """Sort the entries of m samples that belong to features [low, high) by feature; return how many features."""
    n_touched = 0
    for i in range(m):
        sample = load_scalar(order, position + i)
        begin, end = load_scalar(csr.indptr, sample), load_scalar(csr.indptr, sample + 1)
        for e in range(_first_entry(csr.indices, begin, end, low), end):
            feature = np.int64(load_scalar(csr.indices, e))
            if feature >= high:
                break
            count = load_scalar(csr.counts, feature)
            if count == 0:
                store_scalar(csr.touched, 1 + n_touched, feature)
                n_touched += 1
            store_scalar(csr.counts, feature, count + 1)
    start = 0
    for k in range(n_touched):
        feature = np.int64(load_scalar(csr.touched, 1 + k))
        store_scalar(csr.begins, feature, start)
        start += load_scalar(csr.counts, feature)
        store_scalar(csr.counts, feature, 0)
    for i in range(m):
        sample = load_scalar(order, position + i)
        begin, end = load_scalar(csr.indptr, sample), load_scalar(csr.indptr, sample + 1)
        for e in range(_first_entry(csr.indices, begin, end, low), end):
            feature = np.int64(load_scalar(csr.indices, e))
            if feature >= high:
                break
            count = load_scalar(csr.counts, feature)
            place = np.int64(load_scalar(csr.begins, feature)) + count
            store_scalar(csr.rows, place, i)
            store_scalar(csr.entries, place, load_scalar(csr.values, e))
            store_scalar(csr.counts, feature, count + 1)
    store_scalar(csr.touched, 0, n_touched)
    return n_touched


@inlined
def _prefetch_row(csr, k, n_touched, row, weights, first, second):
    """Prefetch what the row of a feature of the batch needs, PREFETCH_ROWS after the k-th."""
    feature = np.int64(load_scalar(csr.touched, 1 + min(k + PREFETCH_ROWS, n_touched - 1)))
    prefetch_for_write(csr.counts, feature)
    prefetch(csr.begins, feature)
    if csr.is_lazy:
        prefetch_for_write(csr.last, feature)
    for i in range(feature * row, (feature + 1) * row, CACHE_LINE // itemsize(weights)):
        prefetch_for_write(weights, i)
        prefetch_for_write(first, i)
        prefetch_for_write(second, i)


@called_by_address
def collect_csr(
    table, ints, floats, order, position, m, rank, size, solver, constants, row, weights, first, second
):  # fmt: skip
    """Collect the entries of m samples for this thread's features, and catch up the rows of these features.

    Parameters
    ----------
    table, ints, floats : pointer to int64, int32, float64
        From `Csr`; any; any.
    order, position, m : pointer to int64, int64, int64
        Row i is the sample order[position + i].
    rank, size : int64
        The thread's, and its team's.
    solver, constants
        See `optimizers.update`.
    row : int64
        Numbers in a row of the weights, whole vectors.
    weights, first, second : pointer
        The weights, and the optimizer's state.
    """
    csr = _part(table, rank, ints, floats, weights)
    low, high = _features_of(table, rank, size)
    n_touched = _collect(csr, order, position, m, low, high)
    if not csr.is_lazy:
        return
    now = load_scalar(csr.clock, 0)
    for k in range(n_touched):
        _prefetch_row(csr, k, n_touched, row, weights, first, second)
        feature = np.int64(load_scalar(csr.touched, 1 + k))
        catch_up(csr, solver, constants, feature, now, row, weights, first, second)
        store_scalar(csr.last, feature, now + 1)  # it takes part in the next step


@called_by_address
def update_csr(
    table, ints, floats, rank, team_size, deltas, delta_row, stage, begins, ends, in_place, solver, constants, size,
    decay, alpha, divisor, row, weights, first, second, grads, squares, norms, zeros, scratch,
):  # fmt: skip
    """Sum the gradient of this thread's rows over a chunk, and update them.

    Parameters
    ----------
    table, ints, floats, rank
        As in `collect_csr`, which was called for this chunk.
    team_size : int64
        Threads in the team.
    deltas, delta_row : pointer, int64
        dC/dz of the first layer, and its row stride.
    stage : int64
        SUM_AND_UPDATE, SUM or UPDATE.
    begins, ends, in_place : int64
        See `gradient.Step`.
    solver, constants, size, decay, alpha, divisor
        See `optimizers.update`.
    row : int64
        Numbers in a row of the weights, whole vectors.
    weights, first, second, grads : pointer
        The weights, the optimizer's state, and the sums of the gradient, which are not used if `in_place`.
    squares : pointer to float64
        Becomes the sums of squared weights of blocks of rows; not where rows wait.
    norms : pointer to float64
        In the stage SUM, becomes the sums of squares of the gradient, L2 term included, of blocks of rows.
    zeros, scratch : pointer
        `row` zeros; workspace for `row` numbers.
    """
    csr = _part(table, rank, ints, floats, weights)
    low, high = _features_of(table, rank, team_size)
    rule = _Rule(solver, constants, size, decay, alpha, divisor, row, weights, first, second)
    if csr.is_lazy:
        if stage == SUM_AND_UPDATE:
            _update_present(csr, rule, deltas, delta_row, zeros, scratch)
        elif stage == SUM:
            _sum_present(csr, rule, low, high, deltas, delta_row, zeros, grads, norms)
        else:
            _update_present_with(csr, rule, grads)
        if rank == 0 and stage != SUM:
            look_back(csr, size)
    elif stage == UPDATE:
        _update_with(rule, low, high, grads, squares)
    elif in_place:
        _update_all(csr, rule, low, high, deltas, delta_row, squares, zeros, scratch)
    else:
        if begins:
            for i in range(low * row, high * row, lane_count(grads)):
                store(grads, i, load(zeros, 0))
        _add_gradients(csr, row, deltas, delta_row, grads)
        if ends and stage == SUM:
            _take_norms(rule, low, high, grads, norms)
        elif ends:
            _update_with(rule, low, high, grads, squares)


class _Rule(NamedTuple):
    """How rows are updated; see `optimizers.update`."""

    solver: int
    constants: Any
    size: float
    decay: float
    alpha: float
    divisor: float
    row: int
    weights: Any
    first: Any
    second: Any


@inlined
def _update_row(rule, feature, gradient):
    """Update the row of a feature; return the sum of its squares before."""
    place = feature * rule.row
    return update(
        rule.solver, rule.constants, rule.size, rule.decay, rule.alpha, rule.divisor, rule.row,
        offset(rule.weights, place),
        gradient, offset(rule.first, place), offset(rule.second, place),
    )  # fmt: skip


@jit
def _update_present(csr, rule, deltas, delta_row, zeros, scratch):
    """Update the rows of this thread's features that the batch has."""
    n_touched = np.int64(load_scalar(csr.touched, 0))
    for k in range(n_touched):
        _prefetch_row(csr, k, n_touched, rule.row, rule.weights, rule.first, rule.second)
        feature = np.int64(load_scalar(csr.touched, 1 + k))
        _sum_gradient(csr, feature, rule.row, deltas, delta_row, zeros, scratch)
        _update_row(rule, feature, scratch)


@jit
def _sum_present(csr, rule, low, high, deltas, delta_row, zeros, grads, norms):
    """Sum the gradients of the rows of this thread's features that the batch has, and take their squares."""
    for begin in range(low, high, BLOCK_ROWS):
        store_scalar(norms, begin // BLOCK_ROWS, 0.0)
    # Features of one block are in the order in which the batch has them, whatever features the thread has.
    for k in range(np.int64(load_scalar(csr.touched, 0))):
        feature = np.int64(load_scalar(csr.touched, 1 + k))
        gradient, block = offset(grads, feature * rule.row), feature // BLOCK_ROWS
        _sum_gradient(csr, feature, rule.row, deltas, delta_row, zeros, gradient)
        square = square_norm(0.0, rule.row, gradient, gradient)
        store_scalar(norms, block, load_scalar(norms, block) + square)


@jit
def _update_present_with(csr, rule, grads):
    """Update the rows of this thread's features that the batch has with the sums of their gradients."""
    n_touched = np.int64(load_scalar(csr.touched, 0))
    for k in range(n_touched):
        _prefetch_row(csr, k, n_touched, rule.row, rule.weights, rule.first, rule.second)
        feature = np.int64(load_scalar(csr.touched, 1 + k))
        _update_row(rule, feature, offset(grads, feature * rule.row))


@jit
def _update_all(csr, rule, low, high, deltas, delta_row, squares, zeros, scratch):
    """Update all rows of this thread's features, in one pass."""
    for begin in range(low, high, BLOCK_ROWS):
        total = 0.0
        for feature in range(begin, min(begin + BLOCK_ROWS, high)):
            if load_scalar(csr.counts, feature) > 0:
                _sum_gradient(csr, feature, rule.row, deltas, delta_row, zeros, scratch)
                total += _update_row(rule, feature, scratch)
            else:
                total += _update_row(rule, feature, zeros)
        store_scalar(squares, begin // BLOCK_ROWS, total)


@jit
def _add_gradients(csr, row, deltas, delta_row, grads):
    """Add the gradients of the rows of this thread's features that the chunk has to their sums."""
    for k in range(np.int64(load_scalar(csr.touched, 0))):
        feature = np.int64(load_scalar(csr.touched, 1 + k))
        gradient = offset(grads, feature * row)
        _sum_gradient(csr, feature, row, deltas, delta_row, gradient, gradient)


@jit
def _take_norms(rule, low, high, grads, norms):
    """Take the sums of squares of the gradient for all rows of this thread's features."""
    for begin in range(low, high, BLOCK_ROWS):
        n = (min(begin + BLOCK_ROWS, high) - begin) * rule.row
        place = begin * rule.row
        square = square_norm(rule.alpha, n, offset(rule.weights, place), offset(grads, place))
        store_scalar(norms, begin // BLOCK_ROWS, square)


@jit
def _update_with(rule, low, high, grads, squares):
    """Update all rows of this thread's features with the sums of their gradients."""
    for begin in range(low, high, BLOCK_ROWS):
        total = 0.0
        for feature in range(begin, min(begin + BLOCK_ROWS, high)):
            total += _update_row(rule, feature, offset(grads, feature * rule.row))
        store_scalar(squares, begin // BLOCK_ROWS, total)


@inlined
def _sum_gradient(csr, feature, row, deltas, delta_row, start, out):
    """Add the gradient of a row to `start`; the batch's entries of its feature are used up."""
    begin = np.int64(load_scalar(csr.begins, feature))
    count = np.int64(load_scalar(csr.counts, feature))
    sum_rows(row, count, offset(csr.entries, begin), offset(csr.rows, begin), deltas, delta_row, start, out)
    store_scalar(csr.counts, feature, 0)


@cached_jit
def catch_up_all(table, ints, floats, solver, constants, row, params, first, second):
    """Catch up all rows of the weights, which begin the parameters, with their optimizer state; count steps anew.

    Ctrl-C is raised when compiled code returns: both are done then, so that no row is caught up twice.

    Parameters
    ----------
    table : ndarray of int64
        From `Csr`.
    ints, floats : ndarray of int32, float64
        Any, not empty.
    solver, constants
        See `optimizers.update`; `constants` is an array.
    row : int64
        Numbers in a row of the weights.
    params, first, second : ndarray
        Packed parameters, and the optimizer's state.
    """
    mode = flush_subnormals()
    weights = pointer(params, 0)
    csr = _part(pointer(table, 0), 0, pointer(ints, 0), pointer(floats, 0), weights)
    now = load_scalar(csr.clock, 0)
    low, high = _features_of(pointer(table, 0), 0, 1)
    for feature in range(low, high):
        catch_up(
            csr, solver, pointer(constants, 0), feature, now, row, weights, pointer(first, 0), pointer(second, 0)
        )  # fmt: skip
        store_scalar(csr.last, feature, 0)
    store_scalar(csr.clock, 0, 0)
    restore_subnormals(mode)
