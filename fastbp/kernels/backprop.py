"""Forward and backward pass, and training over many batches in one call.

A batch goes through two phases. In the first, each thread takes rows of the batch from the inputs to the deltas of the
last layer (this file); in the second, each thread takes blocks of the weights, layer by layer back to the first, sums
their gradient over the whole batch and updates them (`gradient`). Before it updates the rows of weights that belong to
some units of the layer below, it propagates the deltas to these units: the weights are then read once for both.
Between the phases, and between such layers, the threads wait for each other. Layers with too few units for that
propagate the deltas by rows of the batch, as in the first phase.

Clipping needs the norm of the whole gradient: with it the threads wait once more, before they update.

Notation (Lopez Davila, secs. 2 to 5; Maren 2020): ::

    z^l = a^(l-1) W^l + b^l,  a^l = f_l(z^l)
    delta^L = dC/da^L f_L'(z^L)
    delta^l = (delta^(l+1) (W^(l+1))^T) f_l'(z^l)
    dC/dW^l = (a^(l-1))^T delta^l / n,  dC/db^l = sum of delta^l / n
"""

import numpy as np

from fastbp.activations import activate
from fastbp.codegen.jit import cached_jit, call_at, inlined, jit, typed_inlined
from fastbp.codegen.memory import (
    lane_count,
    load_scalar,
    machine_epsilon,
    offset,
    pointer,
    stack_square,
    store_scalar,
)
from fastbp.codegen.processor import flush_subnormals, restore_subnormals
from fastbp.codegen.random_bits import split
from fastbp.codegen.transpose import to_columns
from fastbp.codegen.vectors import load_first, store
from fastbp.kernels.csr import COLLECT_CSR, MULTIPLY_CSR
from fastbp.kernels.epochs import begin_epoch, end_epoch
from fastbp.kernels.gather import gather, gather_and_multiply, is_fused, prefetch_samples
from fastbp.kernels.gradient import (
    make_step,
    pack_deltas,
    pack_inputs,
    part_of,
    update_clipped,
    update_layer,
)
from fastbp.kernels.matmul import NONE, REPEATED, matmul, matmul_transposed
from fastbp.kernels.plan import BLOCK_ROWS
from fastbp.kernels.records import (
    Draw,
    coefficients_of,
    get_layer,
    point_at_net,
    point_at_samples,
    point_at_training,
)
from fastbp.kernels.sparse import MATMUL_SPARSE
from fastbp.kernels.threads import barrier, join_team, share
from fastbp.losses import CompiledLoss, is_canonical, loss_of_row, losses_of_columns, set_derivative


@inlined
def point_at_loss(task, arrays):
    """Turn what a `Task` says of the loss into a `CompiledLoss`."""
    return CompiledLoss(task.loss, pointer(task.loss_parameters, 0), machine_epsilon(pointer(arrays.space, 0)))


# --- the passes, over rows [first, last) of the workspace; row 0 is the sample at `position` of the order ---


@typed_inlined
def drop_units(net, l, layer, draw, first, last, left, right, source, target):
    """Take activations, or deltas, from one place of the workspace to another by dropout.

    They are those of rows [first, last) and columns [left, right).
    """
    if layer.drop != 0:
        args = (
            split(draw.key, l), draw.first_row + first, layer.threshold, last - first, left, right,
            offset(net.space, source + first * layer.row), offset(net.space, target + first * layer.row), layer.row,
        )  # fmt: skip
        call_at(layer.drop, args)


@jit
def forward(net, first, last, has_first_z, draw):
    """Compute the activations, layer by layer (Maren 2020, Eqs. 6.3, 6.4, 6.9, 6.10).

    `has_first_z` says that the pre-activations of the first layer are there already; `draw` is for dropout.
    """
    m = last - first
    for l in range(net.n_layers):
        layer = get_layer(net, l)
        inputs = offset(net.space, layer.input + first * layer.input_row)
        z = offset(net.space, layer.z + first * layer.row)
        weights, bias = offset(net.params, layer.weights), offset(net.params, layer.bias)
        if l == 0 and has_first_z:
            pass
        elif l == 0 and net.is_sparse:
            args = (
                m, layer.fan_out, layer.fan_in, inputs, layer.input_row, net.masks, net.n_rows, first, weights,
                layer.padded_in, bias, z, layer.row, net.indices,
            )  # fmt: skip
            call_at(load_scalar(net.kernels, MATMUL_SPARSE), args)
        elif layer.is_transposed:
            matmul_transposed(
                net.kernels, m, layer.fan_out, layer.fan_in, inputs, layer.input_row, weights, layer.padded_out,
                layer.padded_in, bias, z, layer.row, net.transposes,
            )  # fmt: skip
        else:
            matmul(
                net.kernels, m, layer.fan_out, layer.fan_in, inputs, layer.input_row, weights, layer.padded_in, bias,
                REPEATED, z, layer.row,
            )  # fmt: skip
        if layer.forward != 0:
            c0, c1 = coefficients_of(net, l)
            a = offset(net.space, layer.a + first * layer.row)
            activate(layer.forward, layer.by_rows, c0, c1, z, a, layer.fan_out, layer.row, m)
        drop_units(net, l, layer, draw, first, last, NONE, layer.fan_out, layer.a, layer.dropped)


@typed_inlined
def multiply_by_derivative(net, l, layer, begin, n):
    """Multiply n numbers of a layer's deltas, whole vectors from `begin` on, by f'(z): its backward kernel."""
    if layer.backward != 0:
        c0, c1 = coefficients_of(net, l)
        z, a = offset(net.space, layer.z + begin), offset(net.space, layer.a + begin)
        delta = offset(net.space, layer.delta + begin)
        call_at(layer.backward, (c0, c1, z, a, delta, n))


@jit
def set_output_delta(net, loss, samples, position, first, last):
    """Set delta^L; sample weights multiply it."""
    l = net.n_layers - 1
    layer = get_layer(net, l)
    n = layer.fan_out
    for i in range(first, last):
        y = offset(samples.y, load_scalar(samples.order, position + i) * n)
        a, delta = offset(net.space, layer.a + i * layer.row), offset(net.space, layer.delta + i * layer.row)
        set_derivative(loss, n, y, a, delta)
    if not is_canonical(loss):
        multiply_by_derivative(net, l, layer, first * layer.row, (last - first) * layer.row)
    if samples.is_weighted:
        for i in range(first, last):
            weight = load_scalar(samples.weight, load_scalar(samples.order, position + i))
            delta = offset(net.space, layer.delta + i * layer.row)
            for j in range(n):
                store_scalar(delta, j, load_scalar(delta, j) * weight)


@jit
def set_losses(net, loss, samples, position, first, last, row_loss):
    """Set the loss of each row; sample weights multiply it."""
    layer = get_layer(net, net.n_layers - 1)
    n, width = layer.fan_out, lane_count(net.space)
    if n <= width:
        square, y, a = stack_square(net.space), stack_square(net.space), stack_square(net.space)
        for begin in range(first, last, width):
            m = min(width, last - begin)
            for i in range(m):
                sample = load_scalar(samples.order, position + begin + i)
                store(square, i * width, load_first(samples.y, sample * n, n))
            to_columns(square, width, m, n, y)
            to_columns(offset(net.space, layer.a + begin * layer.row), layer.row, m, n, a)
            store(square, 0, losses_of_columns(loss, layer.by_rows, n, y, a))
            for i in range(m):
                store_scalar(row_loss, begin + i, load_scalar(square, i))
    else:
        for i in range(first, last):
            y = offset(samples.y, load_scalar(samples.order, position + i) * n)
            a = offset(net.space, layer.a + i * layer.row)
            store_scalar(row_loss, i, loss_of_row(loss, layer.by_rows, n, y, a))
    if samples.is_weighted:
        for i in range(first, last):
            weight = load_scalar(samples.weight, load_scalar(samples.order, position + i))
            store_scalar(row_loss, i, load_scalar(row_loss, i) * weight)


@jit
def finish_deltas(net, l, first, last, left, right, draw):
    """Multiply products of deltas and weights by f'(z): rows [first, last), columns [left, right) of a layer's deltas.

    `left` is a multiple of the rows of a block, and so is `right` or it is not below the number of units.
    """
    layer = get_layer(net, l)
    if left == 0 and right >= layer.fan_out:
        multiply_by_derivative(net, l, layer, first * layer.row, (last - first) * layer.row)
    elif layer.backward != 0:
        for i in range(first, last):
            multiply_by_derivative(net, l, layer, i * layer.row + left, min(right, layer.padded_out) - left)
    right = min(right, layer.fan_out)
    drop_units(net, l, layer, draw, first, last, left, right, layer.delta, layer.delta)
    pack_deltas(net, layer, first, last, left, right)


@jit
def backward(net, top, first, last, draw):
    """Propagate the deltas of rows [first, last) back, from the layer `top` to one that `update_layer` propagates."""
    for l in range(top, 0, -1):
        layer, below = get_layer(net, l), get_layer(net, l - 1)
        if layer.piece > 0:
            break
        m, weights, zeros = last - first, offset(net.params, layer.weights), net.space
        delta = offset(net.space, layer.delta + first * layer.row)
        out = offset(net.space, below.delta + first * below.row)
        if layer.is_transposed:
            matmul(
                net.kernels, m, below.fan_out, layer.fan_out, delta, layer.row, weights, layer.padded_out, zeros,
                REPEATED, out, below.row,
            )  # fmt: skip
        else:
            matmul_transposed(
                net.kernels, m, below.fan_out, layer.fan_out, delta, layer.row, weights, layer.padded_in,
                layer.padded_out, zeros, out, below.row, net.transposes,
            )  # fmt: skip
        finish_deltas(net, l - 1, first, last, NONE, below.fan_out, draw)


@typed_inlined
def batch_weight(samples, start, stop):
    """Return the number of samples in a batch, or the sum of their weights."""
    if not samples.is_weighted:
        return np.float64(stop - start)
    total = 0.0
    for i in range(start, stop):
        total += load_scalar(samples.weight, load_scalar(samples.order, i))
    return total


# --- training ---


@typed_inlined
def _multiply_csr(net, samples, position, first, last):
    """Compute the pre-activations of the first layer from inputs in sparse rows."""
    layer = get_layer(net, 0)
    args = (
        net.csr, net.indices, samples.order, position, first, last, offset(net.params, layer.weights),
        layer.padded_out, offset(net.params, layer.bias), offset(net.space, layer.z), layer.row,
    )  # fmt: skip
    call_at(load_scalar(net.kernels, MULTIPLY_CSR), args)


@typed_inlined
def _collect_csr(net, training, samples, position, m, team):
    """Collect the entries of a chunk for this thread's features; the rows of their weights are then up to date."""
    layer = get_layer(net, 0)
    args = (
        net.csr, net.indices, net.coefficients, samples.order, position, m, team.rank, team.size, training.solver,
        training.constants, layer.padded_out, offset(net.params, layer.weights),
        offset(training.first, layer.weights), offset(training.second, layer.weights),
    )  # fmt: skip
    call_at(load_scalar(net.kernels, COLLECT_CSR), args)


@inlined
def _pass_rows(net, loss, samples, position, first, last, m, rows, fused, row_loss, draw):
    """Take rows [first, last) of a chunk of m samples through both passes: the first phase of a batch.

    At most `rows` of them, and about as many each time, go through together.
    """
    n_parts = (last - first + rows - 1) // rows
    for part in range(n_parts):
        begin, end = first + (last - first) * part // n_parts, first + (last - first) * (part + 1) // n_parts
        if fused:
            gather_and_multiply(net, samples, position, begin, end, first, last, m)
        elif net.is_csr:
            _multiply_csr(net, samples, position, begin, end)
        else:
            gather(net, get_layer(net, 0), samples, position, begin, end)
            prefetch_samples(samples, position + m + begin, position + m + end)
        forward(net, begin, end, fused or net.is_csr, draw)
        set_output_delta(net, loss, samples, position, begin, end)
        set_losses(net, loss, samples, position, begin, end, row_loss)
        pack_inputs(net, begin, end)
        outputs = get_layer(net, net.n_layers - 1)
        pack_deltas(net, outputs, begin, end, NONE, outputs.fan_out)
        backward(net, net.n_layers - 1, begin, end, draw)


@jit
def _update_layers(net, training, samples, step, first, last, draw, cells, team):
    """Update all layers, from the last to the first, and propagate the deltas on the way: the second phase of a batch.

    `first` and `last` are the rows of the batch that belong to this thread.
    """
    for l in range(net.n_layers - 1, -1, -1):
        layer = get_layer(net, l)
        part = part_of(layer, lane_count(net.params), team.rank, team.size)
        update_layer(net, training, samples, step, l, layer, part, team)
        if layer.piece > 0:
            left, right = part.top * BLOCK_ROWS, (part.top + part.n_high) * BLOCK_ROWS
            if left < right:
                finish_deltas(net, l - 1, NONE, step.m, left, right, draw)
            barrier(cells, team)  # until all deltas of the layer below are there
            if l > 1 and get_layer(net, l - 1).piece == 0:
                if first < last:
                    backward(net, l - 1, first, last, draw)
                barrier(cells, team)  # until no thread needs the weights before their update
    barrier(cells, team)


@inlined
def _sum(values, n):
    total = 0.0
    for i in range(n):
        total += load_scalar(values, i)
    return total


@inlined
def _train_batch(
    net, training, samples, task, loss, i, start, stop, begin, end, is_last, total, fused, n_squares, cells, team, clip
):  # fmt: skip
    """Take the ith step of a task with samples [start, stop) of the order; return their mean loss before it.

    Only chunks [begin, end) of them are new, and `total` is the sum of the losses before. Where others follow, the step
    comes with the last, and the new sum is returned. `is_last` says that it may be the last step of the call. `clip` is
    what follows if the gradient is clipped: `update_clipped`, or nothing.
    """
    divisor = batch_weight(samples, start, stop)
    if divisor == 0:  # all samples of the batch have the weight 0: nothing to learn from
        return 0.0
    size, decay = load_scalar(pointer(task.sizes, 0), i), load_scalar(pointer(task.decays, 0), i)
    key = split(task.seed, task.first_step + i)
    for position in range(begin, end, task.chunk):
        m = min(task.chunk, end - position)
        if net.is_csr:
            _collect_csr(net, training, samples, position, m, team)
            barrier(cells, team)
        first, last = share(m, 1, team.rank, team.size)
        draw = Draw(key, position - start)
        if first < last:
            _pass_rows(
                net, loss, samples, position, first, last, m, task.pass_rows, fused, training.row_loss, draw
            )  # fmt: skip
        barrier(cells, team)
        if team.rank == 0:
            for row in range(m):
                total += load_scalar(training.row_loss, row)
        step = make_step(training, m, size, decay, divisor, position == start, position + m == stop, is_last)
        _update_layers(net, training, samples, step, first, last, draw, cells, team)
        if step.ends and step.clips:
            clip(net, training, step, team)
            barrier(cells, team)
    if end < stop:
        return total
    squares = 0.0
    if team.rank == 0 and task.alpha != 0:
        squares = _sum(training.squares, n_squares)
    return (total * task.loss_scale + 0.5 * task.alpha * squares) / divisor


@inlined
def _train(data, arrays, training_arrays, task, epochs, losses, team_cells, wanted, clip):
    """Do what `train` does; `clip` as in `_train_batch`."""
    cells = pointer(team_cells, 0)
    team = join_team(cells, wanted)
    if team.rank < 0:
        return
    mode = flush_subnormals()
    net = point_at_net(arrays, task.chunk, team.rank, wanted)
    samples = point_at_samples(data, arrays, task, team.rank, wanted)
    training = point_at_training(training_arrays, arrays, task, team.rank, wanted)
    results = pointer(losses, 0)
    fused = is_fused(net, task.batch_size)
    loss = point_at_loss(task, arrays)
    done = 0

    store_scalar(training.scratch, 0, 1)  # the input of the biases; the gradient of a block begins one vector later
    for batch in range(task.first_batch, task.last_batch):
        first_row = task.first_row if batch == task.first_batch else 0
        last_row = task.last_row if batch == task.last_batch - 1 else task.batch_size
        start = batch % epochs.n_batches * task.batch_size
        if start == 0 and first_row == 0:
            begin_epoch(epochs, data.order, cells, team)
        stop = min(start + task.batch_size, samples.n_seen)
        end = min(start + last_row, stop)
        value = _train_batch(
            net, training, samples, task, loss, batch - task.first_batch, start, stop, start + first_row, end,
            batch == task.last_batch - 1 or stop == samples.n_seen or samples.is_weighted,
            load_scalar(results, batch) if first_row > 0 else 0.0, fused, training_arrays.squares.size, cells, team,
            clip,
        )  # fmt: skip
        if team.rank == 0:
            store_scalar(results, batch, value)
        if end < stop:
            break
        done += 1
        if stop == samples.n_seen and end_epoch(batch, epochs, results, task.batch_size, stop, cells, team):
            break
    if team.rank == 0:
        training_arrays.done[0] = done
    restore_subnormals(mode)


@jit
def _no_clipping(net, training, step, team):
    pass


@cached_jit
def train(data, arrays, training_arrays, task, epochs, losses, team_cells, wanted):
    """Train on batches [first_batch, last_batch); on each thread of a team this does the thread's share.

    Parameters
    ----------
    data : Data
        Samples and their order, which changes from epoch to epoch.
    arrays : NetArrays
        The network and its workspace; changed in place.
    training_arrays : TrainingArrays
        The optimizer's state and workspace; changed in place.
    task : Task
        What to do; no norm that clips the gradient.
    epochs : Epochs
        What to do between batches; changed in place.
    losses : ndarray of shape (n_epochs * n_batches,), float64
        Becomes the mean loss of each batch before its update, with the L2 term; the sum so far of one that is not done.
    team_cells : ndarray of int64
        From `threads.new_team`, new for each call.
    wanted : int64
        Threads in the team.
    """
    _train(data, arrays, training_arrays, task, epochs, losses, team_cells, wanted, _no_clipping)


@cached_jit
def train_clipped(data, arrays, training_arrays, task, epochs, losses, team_cells, wanted):
    """Do what `train` does, and clip the gradient of each batch: most networks do not, and need not compile it."""
    _train(data, arrays, training_arrays, task, epochs, losses, team_cells, wanted, update_clipped)
