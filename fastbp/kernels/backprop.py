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

Arrays come in, and go on as pointers: Numba counts the references to an array with an atomic
operation wherever one changes hands, which took more than half the time of a small network.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from fastbp.activations import set_value
from fastbp.kernels.intrinsics import (
    MARKED,
    MR,
    NV,
    VECTOR_BITS,
    address,
    call_at,
    flush_subnormals,
    get,
    itemsize,
    lane_count,
    pointer,
    prefetch,
    put,
    reader_of,
    restore_subnormals,
    shift,
)
from fastbp.kernels.jit import cached_jit, inlined, jit
from fastbp.kernels.matmul import (
    LIST_BLOCK,
    MATMUL_SPARSE,
    MULTIPLY,
    MULTIPLY_AHEAD,
    MULTIPLY_BLOCK,
    NONE,
    ONE,
    matmul_nn,
    multiply_panel_ahead,
    pack_transposed,
    tile_heights,
)
from fastbp.kernels.simd import first_lanes, load, load_converted, select, store
from fastbp.kernels.threads import join_team, share, wait_for_team
from fastbp.losses import SQUARED_ERROR, loss_and_residual
from fastbp.network import Layer
from fastbp.optimizers import NO_UPDATE, update

# Rows of a weight matrix whose gradient is summed and used at once. With the widest panel the gradient,
# the parameters and two moments fill 16 KiB, so that all are in the L1 cache when they are updated. A
# multiple of every number of lanes, and fixed, as the sums of squares are taken over these blocks.
BLOCK_ROWS = 16
# Bytes of a cache line, and how many lines of a sample are asked for at once, before it is needed.
LINE, FEW_LINES = 64, 4
# Rows between the sample that is in work and the one that is asked for: time enough for it to arrive, and not so much
# that it is pushed out of the cache again.
ROWS_AHEAD = 2 * MR
# Bytes of parameters and the optimizer's memory from which on they are asked for too: less than that stays in the
# second level of the cache from one batch to the next.
LARGE = 2**21


class Data(NamedTuple):
    """Samples, and the order in which they are seen."""

    x: np.ndarray  # (n_samples, n_features), C-ordered
    y: np.ndarray  # (n_samples, n_outputs), C-ordered
    weight: np.ndarray  # (n_samples,), or empty where all count the same
    order: np.ndarray  # (n_seen,) int64: the samples of an epoch, batch after batch


class State(NamedTuple):
    """The network, and the memory that training it needs."""

    table: np.ndarray  # (n_layers, fields of Layer) int64, from Network.workspace
    coefficients: np.ndarray  # (n_layers, 2) float64: parameters of the activations
    params: np.ndarray  # packed parameters
    transposed: np.ndarray  # packed transposes of what `params` has of the layers from the second on
    first: np.ndarray  # the optimizer's memory: velocity, or Adam's m
    second: np.ndarray  # Adam's v, or empty
    grads: np.ndarray  # packed gradients, or empty where each batch is one chunk
    space: np.ndarray  # activations and deltas of one chunk of rows
    row_loss: np.ndarray  # (chunk,) float64
    squares: np.ndarray  # (n_blocks,) float64: sums of squared weights
    kernels: np.ndarray  # int64, from matmul.kernel_addresses
    marks: np.ndarray  # (n_groups * chunk + MARKED,) uint16: which inputs are not zero
    listed: np.ndarray  # int32, a part for each thread: lists of them
    ahead: np.ndarray  # int64, a part for each thread: addresses that will soon be read
    done: np.ndarray  # (1,) int64: batches of this call that are done


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


class Net(NamedTuple):
    """A network and its workspace, as pointers."""

    n_layers: int
    table: Any
    coefficients: Any
    params: Any
    transposed: Any
    space: Any
    kernels: Any
    sparse: bool  # whether inputs that are zero are left out
    marks: Any
    n_marked: int  # rows that the marks have room for
    listed: Any  # this thread's part


class Samples(NamedTuple):
    """A `Data`, as pointers."""

    x: Any
    n_inputs: int
    y: Any
    n_outputs: int
    weight: Any
    weighted: bool
    order: Any
    n_seen: int
    ahead: Any  # this thread's part of a `State`'s


class Training(NamedTuple):
    """The rest of a `State`, as pointers, and the steps of a `Plan`."""

    first: Any
    second: Any
    grads: Any
    row_loss: Any
    squares: Any
    settings: Any
    scratch: Any  # this thread's part
    n_ahead: int  # arrays of parameters, and of what is kept of them, that have to come from afar; 0 if they are near


_read_layer = reader_of(Layer)


@inlined
def get_layer(net, index):
    """Read one row of the table."""
    return _read_layer(net.table, index)


@inlined
def weights_of(net, layer):
    """Return a layer's packed weights."""
    return shift(net.transposed, layer.transposed) if layer.flipped else shift(net.params, layer.weights)


@inlined
def transpose_of(net, layer):
    """Return the packed transpose of a layer's weights."""
    return shift(net.params, layer.weights) if layer.flipped else shift(net.transposed, layer.transposed)


@inlined
def take_sample(x, n, source):
    """Copy n inputs of a sample, as numbers of the network's type, padded with zeros to whole vectors."""
    for j in range(0, n, lane_count(source)):
        store(source, j, load_converted(x, j, n - j, source))


@inlined
def take(net, layer, samples, position, first, last):
    """Copy the inputs of samples [position + first, position + last) of the order to rows [first, last)."""
    n = samples.n_inputs
    for i in range(first, last):
        sample = get(samples.order, position + i)
        take_sample(shift(samples.x, sample * n), n, shift(net.space, layer.source + i * layer.source_row))


@inlined
def _ask_for_targets(samples, sample):
    """Ask for the first and the last cache line of the targets of a sample."""
    prefetch(samples.y, sample * samples.n_outputs)
    prefetch(samples.y, (sample + 1) * samples.n_outputs - 1)


@inlined
def ask_for(samples, begin, end):
    """Ask for the targets, and the first and last lines of the inputs, of samples [begin, end) of the order."""
    line = LINE // itemsize(samples.x)
    for i in range(begin, end):
        sample = get(samples.order, min(i, samples.n_seen - 1))
        _ask_for_targets(samples, sample)
        for j in range(0, min(samples.n_inputs, FEW_LINES * line), line):
            prefetch(samples.x, sample * samples.n_inputs + j)
        prefetch(samples.x, (sample + 1) * samples.n_inputs - 1)


@inlined
def is_streamed(net, samples, n_rows):
    """Whether there are steps enough, about one for each line, to ask for samples during the product of others."""
    return not net.sparse and n_rows >= MR and samples.n_inputs >= 2 * MR


@inlined
def _list_lines(samples, begin, end, room):
    """List up to `room` cache lines of the inputs of samples [begin, end) of the order; return how many."""
    bytes_each = samples.n_inputs * itemsize(samples.x)
    count = np.int64(0)  # not the literal 0, for which what takes it would be compiled once more
    for i in range(begin, end):
        sample = get(samples.order, min(i, samples.n_seen - 1))
        _ask_for_targets(samples, sample)
        begins = address(samples.x, sample * samples.n_inputs)
        n_lines = min((begins % LINE + bytes_each + LINE - 1) // LINE, room - count)
        for j in range(n_lines):
            put(samples.ahead, count + j, begins + LINE * j)
        count += n_lines
    return count


@inlined
def take_and_multiply(net, samples, position, first, last, stride):
    """Copy inputs to rows [first, last) and compute z^1, while the inputs of the next rows are on their way.

    Parameters
    ----------
    net, samples : Net, Samples
        The network, and what it learns from.
    position : int64
        Where in the order row 0 is.
    first, last : int64
        Rows of this thread.
    stride : int64
        How far in the order it is to the same rows of the next batch.
    """
    layer = get_layer(net, 0)
    width = lane_count(net.space)
    k, row = layer.fan_in, layer.source_row
    source = shift(net.space, layer.source)
    weights, bias = shift(net.params, layer.weights), shift(net.params, layer.bias)
    nv = min(NV, layer.padded // width)
    low, higher = tile_heights(last - first)
    i = first
    while i < last:
        rows = low + 1 if higher > 0 else low
        higher -= 1
        take(net, layer, samples, position, i, i + rows)
        # Rows behind the last one are, but for some at the border, those of this thread in the batches that follow.
        batches, row_ahead = divmod(i - first + ROWS_AHEAD, last - first)
        upcoming = position + first + batches * stride + row_ahead
        n_ahead = _list_lines(samples, upcoming, upcoming + rows, k)
        args = (
            rows, nv, k, samples.ahead, n_ahead, shift(source, i * row), row, ONE, weights, nv * width, bias, NONE,
            shift(net.space, layer.z + i * layer.row), layer.row,
        )  # fmt: skip
        call_at(get(net.kernels, MULTIPLY_AHEAD), args)
        i += rows
    done = nv * width
    if done < layer.padded:
        matmul_nn(
            net.kernels, last - first, layer.padded - done, k, shift(source, first * row), row,
            shift(weights, done * layer.rows), layer.rows, shift(bias, done),
            shift(net.space, layer.z + first * layer.row + done), layer.row,
        )  # fmt: skip


@inlined
def forward(net, first, last, multiplied):
    """Compute the activations of rows [first, last), layer by layer (Maren 2020, Eqs. 6.3, 6.4, 6.9, 6.10).

    Where they are `multiplied` already, the first layer's z is there.
    """
    m = last - first
    for index in range(net.n_layers):
        layer = get_layer(net, index)
        source = shift(net.space, layer.source + first * layer.source_row)
        z = shift(net.space, layer.z + first * layer.row)
        weights = weights_of(net, layer)
        bias = shift(net.params, layer.bias)
        if index == 0 and multiplied:
            pass
        elif index == 0 and net.sparse:
            args = (
                m, layer.fan_out, layer.fan_in, source, layer.source_row, net.marks, net.n_marked, first, weights,
                layer.rows, bias, z, layer.row, net.listed,
            )  # fmt: skip
            call_at(get(net.kernels, MATMUL_SPARSE), args)
        else:
            matmul_nn(
                net.kernels, m, layer.fan_out, layer.fan_in, source, layer.source_row, weights, layer.rows, bias, z,
                layer.row,
            )  # fmt: skip
        if layer.value != 0:
            c0, c1 = get(net.coefficients, 2 * index), get(net.coefficients, 2 * index + 1)
            a = shift(net.space, layer.a + first * layer.row)
            set_value(layer.value, layer.by_rows, c0, c1, z, a, layer.fan_out, layer.row, m)


@jit
def output_delta(net, loss, samples, position, first, last, row_loss, eps):
    """Set row losses and delta^L; with sample weights both are multiplied by them."""
    index = net.n_layers - 1
    layer = get_layer(net, index)
    n = layer.fan_out
    c0, c1 = get(net.coefficients, 2 * index), get(net.coefficients, 2 * index + 1)
    for i in range(first, last):
        sample = get(samples.order, position + i)
        z = shift(net.space, layer.z + i * layer.row)
        a = shift(net.space, layer.a + i * layer.row)
        delta = shift(net.space, layer.delta + i * layer.row)
        value = loss_and_residual(loss, layer.by_rows, n, shift(samples.y, sample * n), a, delta, eps)
        if loss == SQUARED_ERROR and layer.slope != 0:
            call_at(layer.slope, (c0, c1, z, a, delta, layer.padded))
        if samples.weighted:
            weight = get(samples.weight, sample)
            value *= weight
            for j in range(n):
                put(delta, j, get(delta, j) * weight)
        put(row_loss, i, value)


@inlined
def _backward(net, first, last):
    """Carry the deltas of rows [first, last) back to the first layer."""
    for index in range(net.n_layers - 1, 0, -1):
        layer = get_layer(net, index)
        below = get_layer(net, index - 1)
        delta = shift(net.space, below.delta + first * below.row)
        matmul_nn(
            net.kernels, last - first, below.fan_out, layer.fan_out,
            shift(net.space, layer.delta + first * layer.row), layer.row, transpose_of(net, layer), layer.padded,
            net.space, delta, below.row,
        )  # fmt: skip
        if below.slope != 0:
            c0, c1 = get(net.coefficients, 2 * index - 2), get(net.coefficients, 2 * index - 1)
            z = shift(net.space, below.z + first * below.row)
            a = shift(net.space, below.a + first * below.row)
            call_at(below.slope, (c0, c1, z, a, delta, (last - first) * below.row))


@inlined
def step(net, training, solver, size, alpha, divisor, offset, grads, n):
    """Update n parameters from `offset` on; return the sum of their squares before."""
    return update(
        solver, training.settings, size, alpha, divisor, n, shift(net.params, offset), grads,
        shift(training.first, offset), shift(training.second, offset),
    )  # fmt: skip


class Part(NamedTuple):
    """What one thread has to do of the matrix that is packed for a layer: its weights, or their transpose."""

    n_columns: np.int64  # of the matrix, with their padding
    panel_rows: np.int64
    first: np.int64  # rows of this thread
    last: np.int64
    left: np.int64  # and columns
    right: np.int64


@jit
def part_of(layer, width, rank, n_threads):
    """Return one thread's part of a layer's weights: blocks of rows, or panels where there are few rows."""
    if layer.flipped:
        left, right = share(layer.rows, NV * width, rank, n_threads)
        return Part(layer.rows, layer.padded, NONE, layer.fan_out, left, right)
    first, last = share(layer.fan_in, BLOCK_ROWS, rank, n_threads)
    return Part(layer.padded, layer.rows, first, last, NONE, layer.padded)


@inlined
def _block_at(layer, part, p, j, width):
    """Return where the block from row p and column j on begins, and its rows and vectors."""
    nv = min(NV, (part.n_columns - j) // width)
    return layer.weights + j * part.panel_rows + p * nv * width, min(BLOCK_ROWS, part.last - p), nv


@jit
def _list_next_block(net, training, ahead, layer, part, p, j):
    """List the cache lines of the block after this one, and of what the optimizer keeps of it; return how many."""
    width = lane_count(net.params)
    j += NV * width
    if j >= part.right:
        p, j = p + BLOCK_ROWS, part.left
    if p >= part.last:
        p, j = part.first, part.left  # there is none: any lines will do
    offset, rows, nv = _block_at(layer, part, p, j, width)
    count = np.int64(0)
    for i in range(offset, offset + rows * nv * width, LINE // itemsize(net.params)):
        put(ahead, count, address(net.params, i))
        put(ahead, count + 1, address(training.first, i))
        if training.n_ahead > 2:
            put(ahead, count + 2, address(training.second, i))
        count += training.n_ahead
    return count


# The most addresses of a block, and the steps in the sums of its gradient that are enough to ask for all.
BLOCK_LINES = 3 * BLOCK_ROWS * NV * VECTOR_BITS // (8 * LINE)
BLOCK_STEPS = -(-BLOCK_LINES // -(-BLOCK_ROWS // MR))


def room_ahead(n_inputs):
    """Return the most addresses that a thread lists at once: a line for each step, or those of one block of weights."""
    return max(n_inputs, BLOCK_LINES)


@inlined
def _descend(net, training, ahead, solver, size, alpha, m, divisor, begins, ends, rank, n_threads):
    """Sum this thread's part of the gradient over m rows, and update with it.

    A batch of more rows than the workspace holds comes in chunks: each continues the sums of the one before,
    and the last one updates.
    """
    width = lane_count(net.params)
    nr = NV * width
    in_place = begins and ends and solver != NO_UPDATE  # the gradient is needed here and now only
    asking = training.n_ahead > 0 and in_place and m >= BLOCK_STEPS
    zeros = net.space  # begins with zeros
    one = training.scratch
    put(one, 0, 1)
    tile = shift(training.scratch, width)
    room = net.n_marked + MARKED
    block = 0
    for index in range(net.n_layers):
        layer = get_layer(net, index)
        sparse = index == 0 and net.sparse
        part = part_of(layer, width, rank, n_threads)
        # The gradient is the sum of products of sources and deltas; flipped, of deltas and sources.
        a, a_row, b, b_row = layer.source, layer.source_row, layer.delta, layer.row
        if layer.flipped:
            a, a_row, b, b_row = layer.delta, layer.row, layer.source, layer.source_row
        n_blocks = ((layer.fan_out if layer.flipped else layer.fan_in) + BLOCK_ROWS - 1) // BLOCK_ROWS
        for p in range(part.first, part.last, BLOCK_ROWS):
            if sparse:
                marks = shift(net.marks, p // MARKED * net.n_marked)
                call_at(get(net.kernels, LIST_BLOCK), (marks, m, min(BLOCK_ROWS, part.last - p), net.listed, room))
            for j in range(part.left, part.right, nr):
                offset, count, nv = _block_at(layer, part, p, j, width)
                row = nv * width
                x, y = shift(net.space, a + p), shift(net.space, b + j)
                out = tile if in_place else shift(training.grads, offset)
                start, start_row = (zeros, 0) if begins else (out, row)
                if sparse:
                    args = (count, nv, x, a_row, y, b_row, start, start_row, out, row, net.listed, room)
                    call_at(get(net.kernels, MULTIPLY_BLOCK), args)
                elif asking:
                    n_ahead = _list_next_block(net, training, ahead, layer, part, p, j)
                    multiply_panel_ahead(
                        net.kernels, count, nv, m, ahead, n_ahead, x, ONE, a_row, y, b_row, start, start_row, out, row
                    )
                else:
                    call_at(
                        get(net.kernels, MULTIPLY),
                        (count, nv, m, x, ONE, a_row, y, b_row, start, start_row, out, row),
                    )
                if ends:
                    if layer.flipped and j + row > layer.fan_in:
                        _clear_padding(out, count, row, layer.fan_in - j)
                    place = block + j // nr * n_blocks + p // BLOCK_ROWS
                    squares = step(net, training, solver, size, alpha, divisor, offset, out, count * row)
                    put(training.squares, place, squares)
        block += n_blocks * ((part.n_columns + nr - 1) // nr)
        # The bias is the weight of an input that is always one.
        left, right = share(layer.padded, width, rank, n_threads)
        for j in range(left, right, nr):
            offset = layer.bias + j
            nv = min(NV, (right - j) // width)
            out = tile if in_place else shift(training.grads, offset)
            args = (
                ONE, nv, m, one, NONE, NONE, shift(net.space, layer.delta + j), layer.row, zeros if begins else out,
                NONE, out, NONE,
            )  # fmt: skip
            call_at(get(net.kernels, MULTIPLY), args)
            if ends:
                step(net, training, solver, size, 0.0, divisor, offset, out, nv * width)
        if ends and solver != NO_UPDATE:
            transpose_layer(net, layer, part)


@inlined
def _clear_padding(rows, count, row, n):
    """Set what pads `count` rows of n numbers to zero: units that are none may give numbers on."""
    width = lane_count(rows)
    last = row - width
    for i in range(count):
        values = load(rows, i * row + last)
        store(rows, i * row + last, select(first_lanes(values, n - last), values, 0.0))


@jit
def transpose_layer(net, layer, part):
    """Renew the transpose of a thread's part of a layer, for the next forward or backward pass."""
    if layer.transposed >= 0:
        width = lane_count(net.params)
        left = part.left
        pack_transposed(
            part.first, (part.last + width - 1) // width * width,
            min(part.right, layer.fan_in if layer.flipped else layer.fan_out) - left,
            shift(net.params, layer.weights + left * part.panel_rows), part.panel_rows,
            shift(net.transposed, layer.transposed + left * part.panel_rows), part.n_columns,
        )  # fmt: skip


@inlined
def batch_weight(samples, start, stop):
    """Return the number of samples in a batch, or the sum of their weights."""
    if not samples.weighted:
        return np.float64(stop - start)
    total = 0.0
    for i in range(start, stop):
        total += get(samples.weight, get(samples.order, i))
    return total


@inlined
def _count_arrays_ahead(state):
    if (state.params.size + state.first.size + state.second.size) * state.params.itemsize < LARGE:
        return 0
    return 3 if state.second.size else 2


@inlined
def point_at(data, state, plan, scratch, rank, wanted):
    """Return the network, the rest of its memory and the samples as pointers, with the parts of one thread."""
    net = Net(
        state.table.shape[0], pointer(state.table, 0), pointer(state.coefficients, 0), pointer(state.params, 0),
        pointer(state.transposed, 0), pointer(state.space, 0), pointer(state.kernels, 0), state.marks.size > 0,
        pointer(state.marks, 0), plan.chunk, pointer(state.listed, rank * (state.listed.size // wanted)),
    )  # fmt: skip
    training = Training(
        pointer(state.first, 0), pointer(state.second, 0), pointer(state.grads, 0), pointer(state.row_loss, 0),
        pointer(state.squares, 0), pointer(plan.settings, 0), pointer(scratch, rank * (scratch.size // wanted)),
        _count_arrays_ahead(state),
    )  # fmt: skip
    samples = Samples(
        pointer(data.x, 0), data.x.shape[1], pointer(data.y, 0), data.y.shape[1], pointer(data.weight, 0),
        data.weight.size > 0, pointer(data.order, 0), data.order.size,
        pointer(state.ahead, rank * (state.ahead.size // wanted)),
    )  # fmt: skip
    return net, training, samples


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
    rank, n_threads = join_team(team, wanted)
    if rank < 0:
        return
    mode = flush_subnormals()
    net, training, samples = point_at(data, state, plan, scratch, rank, wanted)
    n_seen = samples.n_seen
    streamed = is_streamed(net, samples, plan.batch_size)
    n_squares = state.squares.size
    eps = np.float64(np.finfo(state.space.dtype).eps)
    sizes = pointer(plan.sizes, 0)
    results = pointer(losses, 0)
    loss, solver, alpha, batch_size, chunk = plan.loss, plan.solver, plan.alpha, plan.batch_size, plan.chunk
    first_batch = plan.first_batch

    for index in range(1, net.n_layers):
        layer = get_layer(net, index)
        transpose_layer(net, layer, part_of(layer, lane_count(net.params), rank, n_threads))
    wait_for_team(team, n_threads)
    for batch in range(first_batch, plan.last_batch):
        start = batch * batch_size
        stop = min(start + batch_size, n_seen)
        divisor = batch_weight(samples, start, stop)
        if divisor == 0:  # all samples of the batch have the weight 0: nothing to learn from
            put(results, batch, 0.0)
            continue
        total = 0.0
        for position in range(start, stop, chunk):
            m = min(chunk, stop - position)
            first, last = share(m, 1, rank, n_threads)
            if first < last:
                if streamed:
                    take_and_multiply(net, samples, position, first, last, m)
                else:
                    take(net, get_layer(net, 0), samples, position, first, last)
                    ask_for(samples, position + m + first, position + m + last)
                forward(net, first, last, streamed)
                output_delta(net, loss, samples, position, first, last, training.row_loss, eps)
                _backward(net, first, last)
            wait_for_team(team, n_threads)
            if rank == 0:
                for i in range(m):
                    total += get(training.row_loss, i)
            _descend(
                net, training, samples.ahead, solver, get(sizes, batch - first_batch), alpha, m, divisor,
                position == start, position + m == stop, rank, n_threads,
            )  # fmt: skip
            wait_for_team(team, n_threads)
        if rank == 0:
            squares = 0.0
            if alpha != 0:
                for i in range(n_squares):
                    squares += get(training.squares, i)
            put(results, batch, (total + 0.5 * alpha * squares) / divisor)
    if rank == 0:
        state.done[0] = plan.last_batch - first_batch
    restore_subnormals(mode)


@cached_jit(parallel=True)
def train_on_threads(address, data, state, plan, losses, scratch, team, wanted):
    """Call `train`, whose machine code is at `address`, on each thread."""
    for _ in prange(wanted):
        call_at(address, (data, state, plan, losses, scratch, team, wanted))
