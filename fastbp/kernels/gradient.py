"""Weight gradient and update: the second phase of a batch.

Each thread has some blocks of the weights. It sums their gradient over the whole batch, and updates them while both are
in the L1 cache. No sum is split between threads, so that the result has the same bits for any number of them.
"""

from typing import NamedTuple

import numpy as np

from fastbp.codegen.bitmask import MASK_BITS
from fastbp.codegen.jit import call_at, inlined, jit, typed_inlined
from fastbp.codegen.memory import (
    address,
    itemsize,
    lane_count,
    load_scalar,
    offset,
    prefetch_for_write,
    store_scalar,
)
from fastbp.codegen.target import CACHE_LINE
from fastbp.codegen.tiles import NV
from fastbp.codegen.vectors import first_lanes, load, select, splat, store, total
from fastbp.kernels.csr import SUM, SUM_AND_UPDATE, UPDATE, UPDATE_CSR
from fastbp.kernels.few import UPDATE_FEW
from fastbp.kernels.matmul import (
    MULTIPLY,
    MULTIPLY_PREFETCH_WRITE,
    MULTIPLY_ROW,
    MULTIPLY_TRANSPOSED,
    NONE,
    ONE,
    REPEATED,
)
from fastbp.kernels.plan import BLOCK_LINES, BLOCK_ROWS, BLOCK_TILES, BLOCKS_AHEAD, MAX_FEW_ONE_OUTPUT
from fastbp.kernels.prefetch import append_lines
from fastbp.kernels.records import get_layer
from fastbp.kernels.sparse import INDEX_BLOCK, MULTIPLY_INDEXED_BLOCK
from fastbp.kernels.threads import share
from fastbp.optimizers import NO_UPDATE, clipped_divisor, square_norm, update


class Step(NamedTuple):
    """The share of one chunk of a batch in a step of the optimizer.

    A batch of more rows than the workspace holds comes in chunks: each continues the sums of the one before, and the
    last one updates.
    """

    m: int  # rows of the chunk
    size: float  # step size, see optimizers.step_sizes
    decay: float  # of the weights, see optimizers.decay_rates
    divisor: float  # samples of the batch, or the sum of their weights
    begins: bool  # whether this is the first chunk of its batch
    ends: bool  # whether this is the last one
    in_place: bool  # whether the gradient of a block is used at once: it lives in `scratch`, not in `grads`
    clips: bool  # whether the update waits for the norm of the gradient, see `update_clipped`
    is_few: bool  # whether `few.update_few` does it, but for transposed storage and sparse inputs
    is_last: int  # whether it may be the last step of a call


class Part(NamedTuple):
    """One thread's part of a layer's stored matrix: some of its blocks, which are BLOCK_ROWS rows of one panel."""

    n_rows: int
    padded_columns: int
    panel_rows: int
    n_panels: int
    top: np.int64  # the first row of blocks, where threads have whole rows of them; else 0
    n_high: int  # rows of blocks of this thread, where threads have whole rows of them; else of all
    together: int  # rows of blocks that take turns, see `Layer`
    first: np.int64  # turns of this thread, in these rows
    last: int


class Block(NamedTuple):
    """The place of one block."""

    p: int  # its first row
    j: int  # its first column
    rows: int
    row: int  # row stride: the numbers in each row, with padding
    begin: int  # offset in the parameter vector
    number: int  # among all blocks of the layer, row by row
    n_left: int  # blocks of this panel, from this one on, whose turns come next
    high: int  # how many they were at the first of them


@jit
def part_of(layer, width, rank, n_threads):
    """Return one thread's part of a layer."""
    n_rows, padded_columns, panel_rows = layer.fan_in, layer.padded_out, layer.padded_in
    if layer.is_transposed:
        n_rows, padded_columns, panel_rows = layer.fan_out, layer.padded_in, layer.padded_out
    n_panels = (padded_columns + NV * width - 1) // (NV * width)
    n_high = (n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS
    top = NONE
    if layer.piece > 0:
        top, bottom = share(n_high, ONE, rank, n_threads)
        n_high = bottom - top
        first, last = NONE, n_high * n_panels
    else:
        first, last = share(n_high * n_panels, ONE, rank, n_threads)
    return Part(n_rows, padded_columns, panel_rows, n_panels, top, n_high, layer.together, first, last)


@inlined
def block_at(layer, part, turn, width):
    """Return the block whose turn it is: each panel of some rows, `part.together` blocks high, then of the next."""
    above, turn = divmod(turn, part.together * part.n_panels)
    above *= part.together
    high = min(part.together, part.n_high - above)
    panel, below = divmod(turn, high)
    return _make_block(layer, part, part.top + above + below, panel, high - below, high, width)


@inlined
def block_after(layer, part, block, width):
    """Do as `block_at` for the turn after that of a block, without divisions, which take as long as a small block."""
    y, panel, high, n_left = block.p // BLOCK_ROWS + 1, block.j // (NV * width), block.high, block.n_left - 1
    if n_left == 0:
        panel += 1
        if panel < part.n_panels:
            y -= high
        else:
            panel = NONE
            high = min(part.together, part.top + part.n_high - y)
        n_left = high
    return _make_block(layer, part, y, panel, n_left, high, width)


@inlined
def _make_block(layer, part, y, panel, n_left, high, width):
    """Return the block of one row of blocks and one panel."""
    p, j = y * BLOCK_ROWS, panel * NV * width
    row = min(NV * width, part.padded_columns - j)
    return Block(
        p, j, min(BLOCK_ROWS, part.n_rows - p), row, layer.weights + j * part.panel_rows + p * row,
        y * part.n_panels + panel, n_left, high,
    )  # fmt: skip


@inlined
def update_params(net, training, step, decay, alpha, begin, grads, n):
    """Update n parameters from the offset `begin` on; return the sum of their squares before."""
    return update(
        training.solver, training.constants, step.size, decay, alpha, step.divisor, n, offset(net.params, begin), grads,
        offset(training.first, begin), offset(training.second, begin),
    )  # fmt: skip


# --- prefetch for write ---


@jit
def _list_block(net, training, lines, block):
    """List the cache lines of a block's parameters and optimizer state, as far as they are prefetched."""
    n_bytes, capacity = block.rows * block.row * itemsize(net.params), 3 * BLOCK_LINES
    count = append_lines(address(net.params, block.begin), n_bytes, lines, NONE, capacity)
    if training.n_prefetched > 1:
        count = append_lines(address(training.first, block.begin), n_bytes, lines, count, capacity)
    if training.n_prefetched > 2:
        count = append_lines(address(training.second, block.begin), n_bytes, lines, count, capacity)
    return count


@typed_inlined
def _prefetch_block(array, block):
    """Prefetch, to write to them, the cache lines of a block of the parameters, or of the optimizer's state for it."""
    last = block.begin + block.rows * block.row - 1
    for i in range(block.begin, last, CACHE_LINE // itemsize(array)):
        prefetch_for_write(array, i)
    prefetch_for_write(array, last)


# --- operands ---


@inlined
def _operands(layer):
    """Return where the operands of the gradient of a stored matrix begin, and their row strides.

    They are inputs and deltas, or in transposed storage deltas and inputs.
    """
    if layer.is_transposed:
        return layer.delta, layer.row, layer.input, layer.input_row
    return layer.input, layer.input_row, layer.delta, layer.row


@typed_inlined
def _pack(net, source, row, panel, out, first, last, left, right):
    """Pack some rows and columns of an operand in panels of `panel` columns, which hold all rows of the workspace.

    `left` is a multiple of the rows of a block, and so is `right` or it is the end.
    """
    for j in range(left // panel * panel, right, panel):
        begin, end = max(left - j, 0), min(right - j, panel)
        for i in range(first, last):
            place = out + j * net.n_rows + i * panel
            for v in range(begin, end, lane_count(net.space)):
                store(net.space, place + v, load(net.space, source + i * row + j + v))


@jit
def pack_inputs(net, first, last):
    """Pack rows [first, last) of the inputs of all layers, where the weight gradient takes them from packed memory."""
    width = NV * lane_count(net.space)
    for l in range(net.n_layers):
        layer = get_layer(net, l)
        place, panel = (layer.right, width) if layer.is_transposed else (layer.left, np.int64(BLOCK_ROWS))
        if place >= 0:
            _pack(net, layer.input, layer.input_row, panel, place, first, last, NONE, layer.fan_in)


@jit
def pack_deltas(net, layer, first, last, left, right):
    """Pack rows [first, last) and columns [left, right) of deltas, if the gradient takes them from packed memory."""
    width = NV * lane_count(net.space)
    place, panel = (layer.left, np.int64(BLOCK_ROWS)) if layer.is_transposed else (layer.right, width)
    if place >= 0:
        _pack(net, layer.delta, layer.row, panel, place, first, last, left, right)


@inlined
def _columns(net, packed, panel, begin, row, j):
    """Return a pointer to the columns from j on, of a panel at most, of an operand, and their row stride."""
    if packed >= 0:
        return offset(net.space, packed + j * net.n_rows), np.int64(panel)
    return offset(net.space, begin + j), row


# --- weight gradient and update ---


@inlined
def _updates(training, ends):
    """Whether each block is updated once its gradient is summed: in the last chunk of a batch, without clipping."""
    return ends and training.solver != NO_UPDATE and training.max_norm <= 0


@inlined
def make_step(training, m, size, decay, divisor, begins, ends, is_last):
    """Return the step for a chunk of m rows."""
    in_place = begins and _updates(training, ends)
    is_few = in_place and m == training.few
    return Step(m, size, decay, divisor, begins, ends, in_place, training.max_norm > 0, is_few, int(is_last))


@typed_inlined
def update_layer(net, training, samples, step, l, layer, part, team):
    """Sum this thread's part of a layer's gradient over a chunk, and update the parameters with it.

    Equations (Lopez Davila, sec. 5): dC/dW^l = (a^(l-1))^T delta^l / n, dC/db^l = sum of delta^l / n.

    Where each thread propagates the deltas to some units of the layer below, it multiplies them with the weights before
    these are updated.
    """
    squares, norms = offset(training.squares, layer.first_block), offset(training.norms, layer.first_block)
    is_sparse = l == 0 and net.is_sparse
    is_few = step.is_few and not is_sparse and not layer.is_transposed
    has_row = l == 0 and layer.fan_out == 1 and step.in_place and not is_sparse  # the gradient is a row
    if l == 0 and net.is_csr:
        stage = np.int64(SUM if step.clips else SUM_AND_UPDATE)
        _update_csr(net, training, step, layer, squares, norms, stage, team)
    elif has_row and (step.m > MAX_FEW_ONE_OUTPUT or not is_few):
        _update_one_output(net, training, step, layer, part, squares)
    else:
        turn = part.first
        while turn < part.last:
            end = part.last
            if layer.piece > 0:
                end = _propagate(net, step, layer, get_layer(net, l - 1), part, turn)
            if is_few:
                _update_few(net, training, step, layer, part, turn, end, squares)
            else:
                _update_weights(
                    net, training, samples.lines, step, layer, part, turn, end, squares, norms, is_sparse, team.size
                )  # fmt: skip
            turn = end
    _update_biases(net, training, step, layer, team)


@typed_inlined
def _propagate(net, step, layer, below, part, turn):
    """Multiply the deltas with the transpose of the next piece of the weights; return the turn after its blocks."""
    width = lane_count(net.params)
    block = block_at(layer, part, turn, width)  # the first of its panel
    n_panels = min(layer.piece, part.n_panels - block.j // (NV * width))
    args = (
        net.kernels, step.m, min(block.n_left * BLOCK_ROWS, part.n_rows - block.p), block.j,
        min(block.j + n_panels * NV * width, layer.fan_out), offset(net.space, layer.delta), layer.row,
        offset(net.params, layer.weights), part.panel_rows, part.padded_columns, block.p, net.space,
        offset(net.space, below.delta + block.p), below.row, net.transposes,
    )  # fmt: skip
    call_at(load_scalar(net.kernels, MULTIPLY_TRANSPOSED), args)
    return turn + n_panels * block.n_left


@inlined
def _grads_of(training, step, begin, width):
    """Return memory for the gradient of the parameters from the offset `begin` on."""
    return offset(training.scratch, width) if step.in_place else offset(training.grads, begin)


@typed_inlined
def _update_weights(net, training, lines, step, layer, part, first, last, squares, norms, is_sparse, n_threads):
    """Compute the gradient of blocks [first, last) of this thread's part of a layer, and update them."""
    width = lane_count(net.params)
    # Whether the product for a block prefetches the next one: its reduction must have steps enough. Of some ten
    # samples the products are short, and a block is prefetched before those of others.
    fetches = training.n_prefetched > 0 and _updates(training, step.ends) and not is_sparse
    fetches_next = fetches and step.m * BLOCK_TILES >= training.n_prefetched * BLOCK_LINES
    fetches_later = fetches and not fetches_next and training.n_prefetched > 1
    following = block_at(layer, part, first, width)
    for turn in range(first, last):
        block = following
        if turn < part.last - 1:
            following = block_after(layer, part, block, width)
        grads = _grads_of(training, step, block.begin, width)
        n_lines = NONE
        if fetches_next:
            n_lines = _list_block(net, training, lines, following)
        elif fetches_later:
            later = block_at(layer, part, min(turn + BLOCKS_AHEAD, part.last - 1), width)
            _prefetch_block(net.params, later)
            _prefetch_block(training.first, later)
            if training.n_prefetched > 2:
                _prefetch_block(training.second, later)
        is_fetched = (fetches_next or fetches_later) and turn > part.first
        if n_threads > 1 and step.ends and not is_sparse and not is_fetched:  # other threads have read it
            _prefetch_block(net.params, block)
        if is_sparse:
            _multiply_indexed(net, step, layer, block, grads, block.j == 0 or turn == part.first)
        else:
            _multiply(net, step, layer, block, grads, lines, n_lines)
        if step.ends:
            if layer.is_transposed and block.j + block.row > layer.fan_in:
                _clear_padding(grads, block.rows, block.row, layer.fan_in - block.j)
            if step.clips:
                n = block.rows * block.row
                square = square_norm(training.alpha, n, offset(net.params, block.begin), grads)
                store_scalar(norms, block.number, square)
            else:
                _update_block(net, training, step, block, grads, squares)


@typed_inlined
def _update_few(net, training, step, layer, part, first, last, squares):
    """Do as `_update_weights` for a few samples: for all blocks of a panel whose turns come next together."""
    width = lane_count(net.params)
    turn = first
    while turn < last:
        block = block_at(layer, part, turn, width)
        n = min(block.n_left, last - turn)
        args = (
            training.constants, step.size, step.decay, training.alpha, step.divisor, step.is_last,
            offset(net.space, layer.input + block.p), layer.input_row, offset(net.space, layer.delta + block.j),
            layer.row, min(n * BLOCK_ROWS, part.n_rows - block.p), block.row, offset(net.params, block.begin),
            offset(training.first, block.begin), offset(training.second, block.begin),
            offset(squares, block.number), part.n_panels,
        )  # fmt: skip
        call_at(load_scalar(net.kernels, UPDATE_FEW), args)
        turn += n


@typed_inlined
def _update_one_output(net, training, step, layer, part, squares):
    """Do as `_update_weights` for the first layer if it has one output: of each vector only the first number counts.

    The gradient is a row, and the inputs are read along their rows. Its numbers are then laid out block by block.
    """
    width = lane_count(net.params)
    first = part.first * BLOCK_ROWS
    n = min(part.last * BLOCK_ROWS, part.n_rows) - first
    grads = offset(training.scratch, width)
    row = offset(grads, BLOCK_ROWS * NV * width)
    args = (
        (n + width - 1) // width * width, step.m, offset(net.space, layer.delta), layer.row,
        offset(net.space, layer.input + first), layer.input_row, row, load_scalar(net.kernels, MULTIPLY),
    )  # fmt: skip
    call_at(load_scalar(net.kernels, MULTIPLY_ROW), args)
    for i in range(BLOCK_ROWS):
        store(grads, i * width, splat(grads, 0.0))
    for number in range(part.first, part.last):
        p = number * BLOCK_ROWS - first
        rows = min(BLOCK_ROWS, n - p)
        for i in range(rows):
            store_scalar(grads, i * width, load_scalar(row, p + i))
        begin = layer.weights + number * BLOCK_ROWS * width
        square = update_params(net, training, step, step.decay, training.alpha, begin, grads, rows * width)
        store_scalar(squares, number, square)


@typed_inlined
def _update_block(net, training, step, block, grads, squares):
    """Update a block of the weights."""
    n = block.rows * block.row
    square = update_params(net, training, step, step.decay, training.alpha, block.begin, grads, n)
    store_scalar(squares, block.number, square)


@typed_inlined
def _multiply(net, step, layer, block, grads, lines, n_lines):
    """Sum the gradient of a block over the rows of a chunk, and prefetch `n_lines` cache lines to write to them."""
    left, left_row, right, right_row = _operands(layer)
    x, x_row = _columns(net, layer.left, BLOCK_ROWS, left, left_row, block.p)
    y, y_row = _columns(net, layer.right, NV * lane_count(grads), right, right_row, block.j)
    start, start_row = (net.space, REPEATED) if step.begins else (grads, block.row)
    rows, row, nv = block.rows, block.row, block.row // lane_count(grads)
    if n_lines > 0:
        call_at(
            load_scalar(net.kernels, MULTIPLY_PREFETCH_WRITE),
            (rows, nv, step.m, lines, n_lines, x, ONE, x_row, y, y_row, start, start_row, grads, row),
        )
    else:
        call_at(
            load_scalar(net.kernels, MULTIPLY),
            (rows, nv, step.m, x, ONE, x_row, y, y_row, start, start_row, grads, row),
        )


@typed_inlined
def _multiply_indexed(net, step, layer, block, grads, is_new_row):
    """Do as `_multiply` for the first layer, over the samples only whose inputs are not zero.

    The index lists are those of the block before, but for the first block of a row of blocks, and of a thread.
    """
    capacity = net.n_rows + MASK_BITS
    if is_new_row:
        masks = offset(net.masks, block.p // MASK_BITS * net.n_rows)
        call_at(load_scalar(net.kernels, INDEX_BLOCK), (masks, step.m, block.rows, net.indices, capacity))
    x, y = offset(net.space, layer.input + block.p), offset(net.space, layer.delta + block.j)
    start, start_row = (net.space, REPEATED) if step.begins else (grads, block.row)
    args = (
        block.rows, block.row // lane_count(grads), x, layer.input_row, y, layer.row, start, start_row, grads,
        block.row, net.indices, capacity,
    )  # fmt: skip
    call_at(load_scalar(net.kernels, MULTIPLY_INDEXED_BLOCK), args)


@typed_inlined
def _update_csr(net, training, step, layer, squares, norms, stage, team):
    """Do as `_update_weights` for the first layer, with inputs in sparse rows; or one of its halves."""
    weights = layer.weights
    args = (
        net.csr, net.indices, net.coefficients, team.rank, team.size, offset(net.space, layer.delta), layer.row,
        stage, np.int64(step.begins), np.int64(step.ends), np.int64(step.in_place), training.solver,
        training.constants, step.size, step.decay, training.alpha, step.divisor, layer.padded_out,
        offset(net.params, weights), offset(training.first, weights), offset(training.second, weights),
        offset(training.grads, weights), squares, norms, net.space, offset(training.scratch, lane_count(net.params)),
    )  # fmt: skip
    call_at(load_scalar(net.kernels, UPDATE_CSR), args)


@inlined
def _clear_padding(rows, n_rows, row, n):
    """Set what pads `n_rows` rows of n numbers to zero: activations f(0) of padding units need not be zero."""
    width = lane_count(rows)
    last = row - width
    for i in range(n_rows):
        values = load(rows, i * row + last)
        store(rows, i * row + last, select(first_lanes(values, n - last), values, 0.0))


@typed_inlined
def _update_biases(net, training, step, layer, team):
    """Compute the gradient of this thread's biases of a layer, and update them."""
    width = lane_count(net.params)
    left, right = share(layer.padded_out, width, team.rank, team.size)
    if step.is_few:
        begin = layer.bias + left
        few_args = (  # alpha is zero: no sum of squares is stored
            training.constants, step.size, 0.0, 0.0, step.divisor, step.is_last, training.scratch, REPEATED,
            offset(net.space, layer.delta + left), layer.row, ONE, right - left, offset(net.params, begin),
            offset(training.first, begin), offset(training.second, begin), training.squares, ONE,
        )  # fmt: skip
        call_at(load_scalar(net.kernels, UPDATE_FEW), few_args)
        return
    for j in range(left, right, NV * width):
        begin = layer.bias + j
        nv = min(NV, (right - j) // width)
        grads = _grads_of(training, step, begin, width)
        start = net.space if step.begins else grads
        # A bias is the weight of an input that is always one. The result is one row: its strides do not count.
        args = (
            ONE, nv, step.m, training.scratch, REPEATED, REPEATED, offset(net.space, layer.delta + j), layer.row, start,
            REPEATED, grads, REPEATED,
        )  # fmt: skip
        call_at(load_scalar(net.kernels, MULTIPLY), args)
        if step.ends and not step.clips:
            update_params(net, training, step, 0.0, 0.0, begin, grads, nv * width)


# --- clipping ---


@inlined
def _sum(values, n):
    """Add up n float64 numbers, whole vectors, always in the same order."""
    sums = splat(values, 0.0)
    for i in range(0, n, lane_count(values)):
        sums = sums + load(values, i)
    return np.float64(total(sums))


@jit
def update_clipped(net, training, step, team):
    """Update this thread's part of the parameters, when all threads have summed their parts of the gradient.

    Each thread computes the norm itself, from the sums of squares of all blocks: in the same order for any number of
    threads.
    """
    square = _sum(training.norms, training.n_norms)
    for l in range(net.n_layers):
        layer = get_layer(net, l)
        grads = offset(training.grads, layer.bias)
        square += square_norm(0.0, layer.padded_out, grads, grads)
    divisor = clipped_divisor(square, step.divisor, training.max_norm)
    step = Step(
        step.m, step.size, step.decay, divisor, step.begins, step.ends, step.in_place, step.clips, step.is_few,
        step.is_last,
    )  # fmt: skip
    width = lane_count(net.params)
    for l in range(net.n_layers):
        layer = get_layer(net, l)
        part = part_of(layer, width, team.rank, team.size)
        squares = offset(training.squares, layer.first_block)
        if l == 0 and net.is_csr:
            _update_csr(net, training, step, layer, squares, training.norms, np.int64(UPDATE), team)
        else:
            for turn in range(part.first, part.last):
                block = block_at(layer, part, turn, width)
                _update_block(net, training, step, block, offset(training.grads, block.begin), squares)
        left, right = share(layer.padded_out, width, team.rank, team.size)
        begin = layer.bias + left
        update_params(net, training, step, 0.0, 0.0, begin, offset(training.grads, begin), right - left)
