"""Forward and backward passes, and training over many batches in one call.

A batch goes through in two phases. In the first each thread takes rows of the batch from
the input to the deltas of all layers; in the second each thread takes rows of the weights,
sums their gradient over the whole batch and updates them while it is in the cache. No sum
is split between threads, so that the result has the same bits for any number of them.

Notation (Lopez Davila, secs. 2 to 5; Maren 2020): ::

    z^l = a^(l-1) W^l + b^l,  a^l = f_l(z^l)
    delta^L = dC/da^L f_L'(z^L)
    delta^l = (delta^(l+1) (W^(l+1))^T) f_l'(z^l)
    dC/dW^l = (a^(l-1))^T delta^l / n,  dC/db^l = sum of delta^l / n
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from fastbp.activations import SOFTMAX, activate, softmax, times_derivative
from fastbp.kernels.intrinsics import (
    MARKED,
    NV,
    call_at,
    flush_subnormals,
    lane_count,
    part,
    pointer,
    restore_subnormals,
    shift,
    view,
)
from fastbp.kernels.jit import cached_jit, inlined
from fastbp.kernels.matmul import (
    NONE,
    ONE,
    list_block,
    mark_row,
    matmul_nn,
    matmul_sparse,
    multiply_block,
    multiply_panel,
    pack_transposed,
)
from fastbp.kernels.threads import join_team, share, wait_for_team
from fastbp.losses import SQUARED_ERROR, loss_and_residual
from fastbp.network import FIELD
from fastbp.optimizers import NO_UPDATE, update

# Rows of a weight matrix whose gradient is summed and used at once. With the widest panel the gradient,
# the parameters and two moments fill 16 KiB, so that all are in the L1 cache when they are updated. A
# multiple of every number of lanes, and fixed, as the sums of squares are taken over these blocks.
BLOCK_ROWS = 16

FAN_IN, FAN_OUT = FIELD.fan_in, FIELD.fan_out
ROWS, PADDED = FIELD.rows, FIELD.padded
WEIGHTS, BIAS, TRANSPOSED = FIELD.weights, FIELD.bias, FIELD.transposed
SOURCE, SOURCE_ROW = FIELD.source, FIELD.source_row
Z, A, DELTA, ROW, ACTIVATION = FIELD.z, FIELD.a, FIELD.delta, FIELD.row, FIELD.activation


class Data(NamedTuple):
    """Samples, and the order in which they are seen."""

    x: np.ndarray  # (n_samples, n_features), C-ordered
    y: np.ndarray  # (n_samples, n_outputs), C-ordered
    weight: np.ndarray  # (n_samples,), or empty where all count the same
    order: np.ndarray  # (n_seen,) int64: the samples of an epoch, batch after batch


class State(NamedTuple):
    """The network, and the memory that training it needs."""

    table: np.ndarray  # (n_layers, len(FIELD)) int64, from Network.workspace
    coefficients: np.ndarray  # (n_layers, 2) float64: parameters of the activations
    params: np.ndarray  # packed parameters
    transposed: np.ndarray  # packed transposes of the weights from the second layer on
    first: np.ndarray  # the optimizer's memory: velocity, or Adam's m
    second: np.ndarray  # Adam's v, or empty
    grads: np.ndarray  # packed gradients, or empty where each batch is one chunk
    space: np.ndarray  # activations and deltas of one chunk of rows
    row_loss: np.ndarray  # (chunk,) float64
    squares: np.ndarray  # (n_blocks,) float64: sums of squared weights
    marks: np.ndarray  # (n_groups * chunk,) uint16: which inputs are not zero; empty where all are used
    listed: np.ndarray  # int32, a part for each thread: lists of them


class Plan(NamedTuple):
    """What one call has to do."""

    loss: int
    solver: int
    settings: np.ndarray  # float64, see optimizers.update
    sizes: np.ndarray  # (last_batch - first_batch,) float64: step size of each batch
    alpha: float
    batch_size: int
    chunk: int  # rows that the workspace holds
    first_batch: int
    last_batch: int  # one past


@inlined
def take_sample(x, sample, space, layer, i):
    """Copy a sample into row i of the network's input, as numbers of the network's type."""
    row = part(space, layer[SOURCE] + i * layer[SOURCE_ROW], layer[FAN_IN])
    values = x[sample]
    for j in range(row.size):
        row[j] = values[j]


@inlined
def forward(table, coefficients, params, space, first, last, marks, n_marked, listed):
    """Compute the activations of rows [first, last), layer by layer (Maren 2020, Eqs. 6.3, 6.4, 6.9, 6.10).

    Where there is room for marks, `n_marked` rows, inputs that are zero are left out.
    """
    m = last - first
    if marks.size:
        layer = table[0]
        for i in range(first, last):
            row = pointer(space, layer[SOURCE] + i * layer[SOURCE_ROW])
            mark_row(row, layer[FAN_IN], pointer(marks, 0), n_marked, i)
    for index in range(table.shape[0]):
        layer = table[index]
        row = layer[ROW]
        z = pointer(space, layer[Z] + first * row)
        source = pointer(space, layer[SOURCE] + first * layer[SOURCE_ROW])
        weights = pointer(params, layer[WEIGHTS])
        bias = pointer(params, layer[BIAS])
        if index == 0 and marks.size:
            matmul_sparse(
                m, layer[FAN_OUT], layer[FAN_IN], source, layer[SOURCE_ROW], pointer(marks, 0), n_marked, first,
                weights, layer[ROWS], bias, z, row, listed,
            )  # fmt: skip
        else:
            matmul_nn(m, layer[FAN_OUT], layer[FAN_IN], source, layer[SOURCE_ROW], weights, layer[ROWS], bias, z, row)
        if layer[ACTIVATION] == SOFTMAX:
            for i in range(m):
                softmax(shift(z, i * row), layer[FAN_OUT])
        else:
            c = coefficients[index]
            activate(layer[ACTIVATION], c[0], c[1], z, pointer(space, layer[A] + first * row), m * row)


@inlined
def _output_delta(data, state, plan, position, first, last):
    """Set row losses and delta^L; with sample weights both are multiplied by them."""
    index = state.table.shape[0] - 1
    layer = state.table[index]
    n = layer[FAN_OUT]
    code = layer[ACTIVATION]
    c = state.coefficients[index]
    eps = np.finfo(state.space.dtype).eps
    for i in range(first, last):
        sample = data.order[position + i]
        z = pointer(state.space, layer[Z] + i * layer[ROW])
        a = pointer(state.space, layer[A] + i * layer[ROW])
        delta = pointer(state.space, layer[DELTA] + i * layer[ROW])
        y = pointer(data.y, sample * n)
        loss = loss_and_residual(plan.loss, code == SOFTMAX, n, y, a, delta, eps)
        if plan.loss == SQUARED_ERROR:
            times_derivative(code, c[0], c[1], z, a, delta, layer[PADDED])
        if data.weight.size:
            loss *= data.weight[sample]
            for j in range(n):
                delta_row = view(delta, n)
                delta_row[j] *= data.weight[sample]
        state.row_loss[i] = loss


@inlined
def _backward(state, first, last):
    """Carry the deltas of rows [first, last) back to the first layer."""
    for index in range(state.table.shape[0] - 1, 0, -1):
        layer = state.table[index]
        below = state.table[index - 1]
        row = below[ROW]
        delta = pointer(state.space, below[DELTA] + first * row)
        zeros = pointer(state.space, 0)
        matmul_nn(
            last - first, below[FAN_OUT], layer[FAN_OUT],
            pointer(state.space, layer[DELTA] + first * layer[ROW]), layer[ROW],
            pointer(state.transposed, layer[TRANSPOSED]), layer[PADDED], zeros, delta, row,
        )  # fmt: skip
        n = (last - first) * row
        c = state.coefficients[index - 1]
        z = pointer(state.space, below[Z] + first * row)
        a = pointer(state.space, below[A] + first * row)
        times_derivative(below[ACTIVATION], c[0], c[1], z, a, delta, n)


@inlined
def _step(state, plan, batch, alpha, divisor, offset, grads, n):
    """Update n parameters from `offset` on; return the sum of their squares before."""
    return update(
        plan.solver, plan.settings, plan.sizes[batch - plan.first_batch], alpha, divisor, n,
        pointer(state.params, offset), grads, pointer(state.first, offset), pointer(state.second, offset),
    )  # fmt: skip


@inlined
def _descend(state, plan, batch, m, divisor, begins, ends, rank, size, scratch, listed):
    """Sum this thread's part of the gradient over m rows, and update with it.

    A batch of more rows than the workspace holds comes in chunks: each continues the sums of the one before,
    and the last one updates.
    """
    width = lane_count(scratch)
    nr = NV * width
    in_place = begins and ends and plan.solver != NO_UPDATE  # the gradient is needed here and now only
    zeros = pointer(state.space, 0)
    one = view(scratch, 1)
    one[0] = 1
    tile = shift(scratch, width)
    block = 0
    for index in range(state.table.shape[0]):
        layer = state.table[index]
        fan_in, padded, rows = layer[FAN_IN], layer[PADDED], layer[ROWS]
        first, last = share(fan_in, BLOCK_ROWS, rank, size)
        source = pointer(state.space, layer[SOURCE])
        sparse = index == 0 and state.marks.size > 0
        p, j = first, 0
        while p < last and j < padded:
            nv = min(NV, (padded - j) // width)
            count = min(BLOCK_ROWS, last - p)
            n = count * nv * width
            offset = layer[WEIGHTS] + j * rows + p * nv * width
            delta = pointer(state.space, layer[DELTA] + j)
            out = tile if in_place else pointer(state.grads, offset)
            start, start_row = (zeros, 0) if begins else (out, nv * width)
            if sparse:
                if j == 0:
                    list_block(pointer(state.marks, p // MARKED * plan.chunk), m, count, listed, plan.chunk + MARKED)
                multiply_block(
                    count, nv, shift(source, p), layer[SOURCE_ROW], delta, layer[ROW], start, start_row, out,
                    nv * width, listed, plan.chunk + MARKED,
                )  # fmt: skip
            else:
                multiply_panel(
                    count, nv, m, shift(source, p), ONE, layer[SOURCE_ROW], delta, layer[ROW], start, start_row, out,
                    nv * width,
                )  # fmt: skip
            if ends:
                place = block + j // nr * ((fan_in + BLOCK_ROWS - 1) // BLOCK_ROWS) + p // BLOCK_ROWS
                state.squares[place] = _step(state, plan, batch, plan.alpha, divisor, offset, out, n)
            # One panel of columns after the other; but all of them for one block of rows where rows are listed.
            if sparse:
                j += nr
                if j >= padded:
                    p, j = p + BLOCK_ROWS, 0
            else:
                p += BLOCK_ROWS
                if p >= last:
                    p, j = first, j + nr
        block += ((fan_in + BLOCK_ROWS - 1) // BLOCK_ROWS) * ((padded + nr - 1) // nr)
        # The bias is the weight of an input that is always one.
        left, right = share(padded, width, rank, size)
        for j in range(left, right, width):
            offset = layer[BIAS] + j
            out = tile if in_place else pointer(state.grads, offset)
            multiply_panel(
                ONE, ONE, m, scratch, NONE, NONE, pointer(state.space, layer[DELTA] + j), layer[ROW],
                zeros if begins else out, NONE, out, NONE,
            )  # fmt: skip
            if ends:
                _step(state, plan, batch, 0.0, divisor, offset, out, width)
        if ends and plan.solver != NO_UPDATE:
            _transpose(state, layer, first, last)


@inlined
def _transpose(state, layer, first, last):
    if layer[TRANSPOSED] >= 0:
        width = lane_count(pointer(state.params, 0))
        pack_transposed(
            first, (last + width - 1) // width * width, layer[PADDED], pointer(state.params, layer[WEIGHTS]),
            layer[ROWS], pointer(state.transposed, layer[TRANSPOSED]), layer[PADDED],
        )  # fmt: skip


@inlined
def _divisor(data, start, stop):
    """Return the number of samples in a batch, or the sum of their weights."""
    if data.weight.size == 0:
        return np.float64(stop - start)
    total = 0.0
    for i in range(start, stop):
        total += data.weight[data.order[i]]
    return total


@cached_jit
def train(data, state, plan, losses, scratch, team, wanted):
    """Train on batches [first_batch, last_batch); on each thread of a team this does the thread's share.

    Parameters
    ----------
    data : Data
        Samples and their order.
    state : State
        The network and its memory; changed in place.
    plan : Plan
        What to do.
    losses : ndarray of shape (n_batches,), float64
        The mean loss of each batch, before its update, is put here.
    scratch : ndarray
        (1 + BLOCK_ROWS * NV) * lanes numbers for each thread.
    team : ndarray of int64
        From `threads.new_team`, new for each call.
    wanted : int64
        Threads in the team.
    """
    rank, size = join_team(team, wanted)
    if rank < 0:
        return
    mode = flush_subnormals()
    mine = pointer(scratch, rank * (scratch.size // wanted))
    listed = pointer(state.listed, rank * (state.listed.size // wanted))
    for index in range(1, state.table.shape[0]):
        layer = state.table[index]
        first, last = share(layer[FAN_IN], BLOCK_ROWS, rank, size)
        _transpose(state, layer, first, last)
    wait_for_team(team, size)
    for batch in range(plan.first_batch, plan.last_batch):
        start = batch * plan.batch_size
        stop = min(start + plan.batch_size, data.order.size)
        divisor = _divisor(data, start, stop)
        if divisor == 0:  # all samples of the batch have the weight 0: nothing to learn from
            losses[batch] = 0
            continue
        total = 0.0
        for position in range(start, stop, plan.chunk):
            m = min(plan.chunk, stop - position)
            first, last = share(m, 1, rank, size)
            if first < last:
                for i in range(first, last):
                    take_sample(data.x, data.order[position + i], state.space, state.table[0], i)
                forward(
                    state.table, state.coefficients, state.params, state.space, first, last, state.marks, plan.chunk,
                    listed,
                )  # fmt: skip
                _output_delta(data, state, plan, position, first, last)
                _backward(state, first, last)
            wait_for_team(team, size)
            if rank == 0:
                for i in range(m):
                    total += state.row_loss[i]
            _descend(state, plan, batch, m, divisor, position == start, position + m == stop, rank, size, mine, listed)
            wait_for_team(team, size)
        if rank == 0:
            squares = 0.0
            if plan.alpha != 0:
                for i in range(state.squares.size):
                    squares += state.squares[i]
            losses[batch] = (total + 0.5 * plan.alpha * squares) / divisor
    restore_subnormals(mode)


@cached_jit(parallel=True)
def train_on_threads(address, data, state, plan, losses, scratch, team, wanted):
    """Call `train`, whose machine code is at `address`, on each thread."""
    for _ in prange(wanted):
        call_at(address, (data, state, plan, losses, scratch, team, wanted))
