"""Forward and backward passes, and training over many batches in one call.

A batch goes through in two phases. In the first each thread takes rows of the batch from
the input to the deltas of all layers; in the second each thread takes blocks of the weights,
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
from fastbp.kernels.columns import to_columns
from fastbp.kernels.intrinsics import (
    VECTOR_BITS,
    address,
    call_at,
    flush_subnormals,
    get,
    itemsize,
    lane_count,
    pointer,
    prefetch,
    prefetch_to_write,
    put,
    reader_of,
    restore_subnormals,
    shift,
    square_like,
)
from fastbp.kernels.jit import cached_jit, inlined, jit
from fastbp.kernels.matmul import (
    LIST_BLOCK,
    MATMUL_SPARSE,
    MULTIPLY,
    MULTIPLY_BLOCK,
    MULTIPLY_READING,
    NONE,
    ONE,
    matmul_nn,
    multiply_panel_writing,
    pack_transposed,
    tile_heights,
)
from fastbp.kernels.simd import first_lanes, load, load_converted, load_first, progression, select, store
from fastbp.kernels.threads import join_team, share, wait_for_team
from fastbp.kernels.tiles import MARKED, MR, NV
from fastbp.losses import SQUARED_ERROR, loss_of_row, losses_of_columns, set_residual
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
# second level of the cache from one batch to the next. On several threads the parameters are asked for in any case, as
# other threads have read them. From MEDIUM on that goes on during the product for the block before, else just before
# the block's own; the first layer's are not where zeros are left out.
LARGE, MEDIUM = 2**21, 2**19


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
    ahead: np.ndarray  # int64, a part for each thread: addresses that will soon be read or written
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
    n_ahead: int  # see count_arrays_ahead


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


# The most cache lines of a block of weights, and the register tiles that its gradient is made of.
BLOCK_LINES = BLOCK_ROWS * NV * VECTOR_BITS // (8 * LINE)
BLOCK_TILES = -(-BLOCK_ROWS // MR)


def room_ahead(n_inputs):
    """Return the room for the addresses that a thread lists at once.

    That is a line for each step of the first layer's sums, or those of a block and of what the optimizer keeps of it;
    and a vector more, as they are written so.
    """
    return max(n_inputs, 3 * BLOCK_LINES) + VECTOR_BITS // 64


@inlined
def _list_lines(begins, n_bytes, lines, count, room):
    """Append the cache lines of so many bytes to a list of addresses, as long as there is room; return its length."""
    n_lines = min((begins % LINE + n_bytes + LINE - 1) // LINE, room - count)
    for j in range(0, n_lines, lane_count(lines)):
        store(lines, count + j, progression(lines, begins + LINE * j, LINE))
    return count + n_lines


@inlined
def _list_samples(samples, begin, end, room):
    """List up to `room` cache lines of the inputs of samples [begin, end) of the order; return how many."""
    n_bytes = samples.n_inputs * itemsize(samples.x)
    count = np.int64(0)  # not the literal 0, for which what takes it would be compiled once more
    for i in range(begin, end):
        sample = get(samples.order, min(i, samples.n_seen - 1))
        _ask_for_targets(samples, sample)
        count = _list_lines(address(samples.x, sample * samples.n_inputs), n_bytes, samples.ahead, count, room)
    return count


@jit
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
        n_ahead = _list_samples(samples, upcoming, upcoming + rows, k)
        args = (
            rows, nv, k, samples.ahead, n_ahead, shift(source, i * row), row, ONE, weights, nv * width, bias, NONE,
            shift(net.space, layer.z + i * layer.row), layer.row,
        )  # fmt: skip
        call_at(get(net.kernels, MULTIPLY_READING), args)
        i += rows
    done = nv * width
    if done < layer.padded:
        matmul_nn(
            net.kernels, last - first, layer.padded - done, k, shift(source, first * row), row,
            shift(weights, done * layer.rows), layer.rows, shift(bias, done),
            shift(net.space, layer.z + first * layer.row + done), layer.row,
        )  # fmt: skip


@jit
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
def set_output_delta(net, loss, samples, position, first, last):
    """Set delta^L of rows [first, last); with sample weights it is multiplied by them."""
    index = net.n_layers - 1
    layer = get_layer(net, index)
    n = layer.fan_out
    for i in range(first, last):
        y = shift(samples.y, get(samples.order, position + i) * n)
        set_residual(n, y, shift(net.space, layer.a + i * layer.row), shift(net.space, layer.delta + i * layer.row))
    delta = shift(net.space, layer.delta + first * layer.row)
    if loss == SQUARED_ERROR and layer.slope != 0:
        c0, c1 = get(net.coefficients, 2 * index), get(net.coefficients, 2 * index + 1)
        z, a = shift(net.space, layer.z + first * layer.row), shift(net.space, layer.a + first * layer.row)
        call_at(layer.slope, (c0, c1, z, a, delta, (last - first) * layer.row))
    if samples.weighted:
        for i in range(last - first):
            weight = get(samples.weight, get(samples.order, position + first + i))
            for j in range(i * layer.row, i * layer.row + n):
                put(delta, j, get(delta, j) * weight)


@jit
def set_losses(net, loss, samples, position, first, last, row_loss, eps):
    """Set the losses of rows [first, last); with sample weights they are multiplied by them."""
    layer = get_layer(net, net.n_layers - 1)
    n, width = layer.fan_out, lane_count(net.space)
    if n <= width:
        square, y, a = square_like(net.space), square_like(net.space), square_like(net.space)
        for begin in range(first, last, width):
            m = min(width, last - begin)
            for i in range(m):
                sample = get(samples.order, position + begin + i)
                store(square, i * width, load_first(samples.y, sample * n, n))
            to_columns(square, width, m, n, y)
            to_columns(shift(net.space, layer.a + begin * layer.row), layer.row, m, n, a)
            store(square, 0, losses_of_columns(loss, layer.by_rows, n, y, a, eps))
            for i in range(m):
                put(row_loss, begin + i, get(square, i))
    else:
        for i in range(first, last):
            y = shift(samples.y, get(samples.order, position + i) * n)
            put(row_loss, i, loss_of_row(loss, layer.by_rows, n, y, shift(net.space, layer.a + i * layer.row), eps))
    if samples.weighted:
        for i in range(first, last):
            put(row_loss, i, get(row_loss, i) * get(samples.weight, get(samples.order, position + i)))


@jit
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
    """The blocks of a layer that are one thread's: BLOCK_ROWS rows of one panel of what is packed.

    Packed are its weights, or, flipped, their transpose.
    """

    n_rows: int
    n_columns: int  # with their padding
    panel_rows: int
    n_panels: int
    n_blocks: int  # of all threads
    first: int  # blocks of this thread: all panels of some rows, then of the next
    last: int


class Block(NamedTuple):
    """Where one block is."""

    p: int  # its first row
    j: int  # and column
    rows: int
    row: int  # numbers in each, with their padding
    offset: int  # in the parameter vector


@jit
def part_of(layer, width, rank, n_threads):
    """Return one thread's part of a layer's weights."""
    n_rows, n_columns, panel_rows = layer.fan_in, layer.padded, layer.rows
    if layer.flipped:
        n_rows, n_columns, panel_rows = layer.fan_out, layer.rows, layer.padded
    n_panels = (n_columns + NV * width - 1) // (NV * width)
    n_blocks = (n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS * n_panels
    first, last = share(n_blocks, ONE, rank, n_threads)
    return Part(n_rows, n_columns, panel_rows, n_panels, n_blocks, first, last)


@inlined
def _block_at(layer, part, index, width):
    """Return the block of an index."""
    p, panel = divmod(index, part.n_panels)
    p, j = p * BLOCK_ROWS, panel * NV * width
    row = min(NV * width, part.n_columns - j)
    return Block(p, j, min(BLOCK_ROWS, part.n_rows - p), row, layer.weights + j * part.panel_rows + p * row)


@jit
def _list_block(net, training, lines, block):
    """List the cache lines of a block, and what comes from afar of the optimizer's memory of it; return how many."""
    n = block.rows * block.row
    n_bytes, room = n * itemsize(net.params), 3 * BLOCK_LINES
    count = _list_lines(address(net.params, block.offset), n_bytes, lines, NONE, room)
    if training.n_ahead > 1:
        count = _list_lines(address(training.first, block.offset), n_bytes, lines, count, room)
    if training.n_ahead > 2:
        count = _list_lines(address(training.second, block.offset), n_bytes, lines, count, room)
    return count


@inlined
def _ask_to_write(net, block):
    """Ask for the cache lines of a block that other threads have read."""
    last = block.offset + block.rows * block.row - 1
    for i in range(block.offset, last, LINE // itemsize(net.params)):
        prefetch_to_write(net.params, i)
    prefetch_to_write(net.params, last)


@jit
def _transpose_block(net, layer, part, block):
    """Renew the transpose of a block, for the next forward or backward pass."""
    width = lane_count(net.params)
    right = min(block.j + block.row, layer.fan_in if layer.flipped else layer.fan_out)
    pack_transposed(
        block.p, (block.p + block.rows + width - 1) // width * width, block.j, right,
        shift(net.params, layer.weights), part.panel_rows, part.n_columns, shift(net.transposed, layer.transposed),
    )  # fmt: skip


@inlined
def _transpose_all(net, rank, n_threads):
    """Set the transposes of this thread's part of all layers."""
    width = lane_count(net.params)
    for index in range(1, net.n_layers):
        layer = get_layer(net, index)
        part = part_of(layer, width, rank, n_threads)
        for i in range(part.first, part.last):
            _transpose_block(net, layer, part, _block_at(layer, part, i, width))


@jit
def _descend(net, training, ahead, solver, size, alpha, m, divisor, begins, ends, rank, n_threads):
    """Sum this thread's part of the gradient over m rows, and update with it.

    A batch of more rows than the workspace holds comes in chunks: each continues the sums of the one before,
    and the last one updates.
    """
    width = lane_count(net.params)
    nr = NV * width
    updates = ends and solver != NO_UPDATE
    in_place = begins and updates  # the gradient is needed here and now only
    asking = training.n_ahead > 0 and in_place and m * BLOCK_TILES >= training.n_ahead * BLOCK_LINES
    zeros = net.space  # begins with zeros
    one = training.scratch
    put(one, 0, 1)
    tile = shift(training.scratch, width)
    room = net.n_marked + MARKED
    done = 0
    for index in range(net.n_layers):
        layer = get_layer(net, index)
        sparse = index == 0 and net.sparse
        part = part_of(layer, width, rank, n_threads)
        # The gradient is the sum of products of sources and deltas; flipped, of deltas and sources.
        a, a_row, b, b_row = layer.source, layer.source_row, layer.delta, layer.row
        if layer.flipped:
            a, a_row, b, b_row = layer.delta, layer.row, layer.source, layer.source_row
        for i in range(part.first, part.last):
            block = _block_at(layer, part, i, width)
            count, row, nv = block.rows, block.row, block.row // width
            x, y = shift(net.space, a + block.p), shift(net.space, b + block.j)
            out = tile if in_place else shift(training.grads, block.offset)
            start, start_row = (zeros, 0) if begins else (out, row)
            if n_threads > 1 and updates and not sparse and (i == part.first or not asking):
                _ask_to_write(net, block)
            if sparse:
                if block.j == 0 or i == part.first:
                    marks = shift(net.marks, block.p // MARKED * net.n_marked)
                    call_at(get(net.kernels, LIST_BLOCK), (marks, m, count, net.listed, room))
                args = (count, nv, x, a_row, y, b_row, start, start_row, out, row, net.listed, room)
                call_at(get(net.kernels, MULTIPLY_BLOCK), args)
            elif asking:
                following = _block_at(layer, part, min(i + 1, part.last - 1), width)
                n_ahead = _list_block(net, training, ahead, following)
                multiply_panel_writing(
                    net.kernels, count, nv, m, ahead, n_ahead, x, ONE, a_row, y, b_row, start, start_row, out, row
                )
            else:
                args = (count, nv, m, x, ONE, a_row, y, b_row, start, start_row, out, row)
                call_at(get(net.kernels, MULTIPLY), args)
            if ends:
                if layer.flipped and block.j + row > layer.fan_in:
                    _clear_padding(out, count, row, layer.fan_in - block.j)
                squares = step(net, training, solver, size, alpha, divisor, block.offset, out, count * row)
                put(training.squares, done + i, squares)
                if layer.transposed >= 0 and updates:
                    _transpose_block(net, layer, part, block)
        done += part.n_blocks
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


@inlined
def _clear_padding(rows, count, row, n):
    """Set what pads `count` rows of n numbers to zero: units that are none may give numbers on."""
    width = lane_count(rows)
    last = row - width
    for i in range(count):
        values = load(rows, i * row + last)
        store(rows, i * row + last, select(first_lanes(values, n - last), values, 0.0))


@inlined
def batch_weight(samples, start, stop):
    """Return the number of samples in a batch, or the sum of their weights."""
    if not samples.weighted:
        return np.float64(stop - start)
    total = 0.0
    for i in range(start, stop):
        total += get(samples.weight, get(samples.order, i))
    return total


def count_arrays_ahead(params, first, second, n_threads):
    """Count the arrays, of parameters and the optimizer's memory, of which blocks are asked for before their update."""
    n_bytes = (params.size + first.size + second.size) * params.itemsize
    if n_bytes >= LARGE:
        return 3 if second.size else 2
    return 1 if n_threads > 1 and n_bytes >= MEDIUM else 0


_count_arrays_ahead = inlined(count_arrays_ahead)


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
        _count_arrays_ahead(state.params, state.first, state.second, wanted),
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

    _transpose_all(net, rank, n_threads)
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
                set_output_delta(net, loss, samples, position, first, last)
                set_losses(net, loss, samples, position, first, last, training.row_loss, eps)
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
