"""Training on one sample at a time, for small networks: products of vectors and matrices.

Both papers begin with this mode of learning. For a network like 8-16-3 the arithmetic of one sample is some
hundred instructions, fewer than the general kernel needs to find its way, and each has to wait for one before it.
Formulas and arrays are those of `backprop`; the sums over units are made in several parts, which are ready sooner.
"""

import numpy as np

from fastbp.activations import activate
from fastbp.codegen.jit import cached_jit, inlined
from fastbp.codegen.memory import lane_count, load_scalar, offset, pointer, store_scalar
from fastbp.codegen.processor import flush_subnormals, restore_subnormals
from fastbp.codegen.rows import short_row_kernel
from fastbp.codegen.tiles import NV
from fastbp.codegen.transpose import transpose_tile
from fastbp.codegen.vectors import fma, load, splat, total
from fastbp.kernels.backprop import batch_weight, multiply_by_derivative, point_at_loss, set_output_delta
from fastbp.kernels.epochs import begin_epoch, end_epoch
from fastbp.kernels.gather import gather, prefetch_samples
from fastbp.kernels.matmul import ONE
from fastbp.kernels.records import (
    coefficients_of,
    get_layer,
    point_at_net,
    point_at_samples,
    point_at_training,
)
from fastbp.kernels.threads import Team
from fastbp.losses import loss_of_row
from fastbp.optimizers import rule_of, update_vector

# Samples between the one that is prefetched and the one that is trained on.
PREFETCH_SAMPLES = 32
# The most parameters with which this is done: they, the gradient and the optimizer's state stay in the L1 cache.
MAX_PARAMS = 2_048


def is_small(network):
    """Whether `train_online` can train a network, and pays."""
    return network.n_params <= MAX_PARAMS and not network.has_transposed


@inlined
def _multiply_row(n, k, x, panels, panel_rows, d, out):
    """Compute a row of n numbers, whole vectors, out = d + x W, for a packed W of k rows."""
    nr = NV * lane_count(out)
    for j in range(0, n, nr):
        short_row_kernel(min(nr, n - j), k, x, offset(panels, j * panel_rows), offset(d, j), offset(out, j))


@inlined
def _forward(net):
    for l in range(net.n_layers):
        layer = get_layer(net, l)
        z, a = offset(net.space, layer.z), offset(net.space, layer.a)
        _multiply_row(
            layer.padded_out, layer.fan_in, offset(net.space, layer.input), offset(net.params, layer.weights),
            layer.padded_in, offset(net.params, layer.bias), z,
        )  # fmt: skip
        if layer.forward != 0:
            c0, c1 = coefficients_of(net, l)
            activate(layer.forward, layer.by_rows, c0, c1, z, a, layer.fan_out, layer.padded_out, ONE)


@inlined
def _backward(net):
    for l in range(net.n_layers - 1, 0, -1):
        layer, below = get_layer(net, l), get_layer(net, l - 1)
        _multiply_row(
            below.padded_out, layer.fan_out, offset(net.space, layer.delta), offset(net.transposes, layer.weights),
            layer.padded_out, net.space, offset(net.space, below.delta),
        )  # fmt: skip
        multiply_by_derivative(net, l - 1, below, 0, below.padded_out)


@inlined
def _update_rows(net, training, rule, alpha, is_last, x, delta, n_rows, row, begin):
    """Update `n_rows` rows of a panel, whose gradient are the products of inputs and deltas.

    Returns
    -------
    float64
        The sum of their squares before, if `alpha` is not 0.
    """
    squares = splat(net.params, 0.0)
    for j in range(0, row, lane_count(net.params)):
        d = load(delta, j)
        for p in range(n_rows):
            i = begin + p * row + j
            w = load(net.params, i)
            squares = fma(w, w, squares)
            # The product is added to zero: the sign of a zero is then that of a sum over a batch.
            g = fma(w, alpha, fma(d, load_scalar(x, p), 0.0))
            update_vector(
                training.solver, rule.first != 0, is_last, rule, i, w, g, net.params, training.first, training.second
            )  # fmt: skip
    return np.float64(total(squares)) if alpha != 0 else 0.0


@inlined
def _update(net, training, size, decay, divisor, is_last):
    """Update all parameters; return the sum of squared weights before, for the L2 term."""
    rule = rule_of(training.constants, size, decay, divisor)
    rule_of_bias = rule_of(training.constants, size, 0.0, divisor)
    squares = 0.0
    for l in range(net.n_layers):
        layer = get_layer(net, l)
        delta = offset(net.space, layer.delta)
        for panel in range(0, layer.padded_out, NV * lane_count(net.params)):
            row = min(NV * lane_count(net.params), layer.padded_out - panel)
            squares += _update_rows(
                net, training, rule, training.alpha, is_last, offset(net.space, layer.input), offset(delta, panel),
                layer.fan_in, row, layer.weights + panel * layer.padded_in,
            )  # fmt: skip
        # A bias is the weight of an input that is always one.
        _update_rows(
            net, training, rule_of_bias, 0.0, is_last, training.scratch, delta, ONE, layer.padded_out, layer.bias
        )
    return squares


@inlined
def _transpose_all(net):
    """Renew the transposes. In the L1 cache the order of `matmul.pack_transpose` gains nothing, and takes longer."""
    width = lane_count(net.params)
    nr = NV * width
    for l in range(1, net.n_layers):
        layer = get_layer(net, l)
        source, out = offset(net.params, layer.weights), offset(net.transposes, layer.weights)
        for j in range(0, layer.fan_out, width):
            panel = j // nr * nr
            row = min(nr, layer.padded_out - panel)
            for p in range(0, layer.padded_in, width):
                place = p // nr * nr
                out_row = min(nr, layer.padded_in - place)
                transpose_tile(
                    layer.fan_out - j, offset(source, panel * layer.padded_in + p * row + j - panel), row,
                    offset(out, place * layer.padded_out + j * out_row + p - place), out_row,
                )  # fmt: skip


@inlined
def _train_sample(net, training, samples, task, loss, position, size, decay, is_last):
    """Take a step of the optimizer with one sample of the order; return its loss before it."""
    inputs, outputs = get_layer(net, 0), get_layer(net, net.n_layers - 1)
    weight = batch_weight(samples, position, position + 1)
    if weight == 0:
        return 0.0
    gather(net, inputs, samples, position, 0, 1)
    _forward(net)
    set_output_delta(net, loss, samples, position, 0, 1)
    y = offset(samples.y, load_scalar(samples.order, position) * outputs.fan_out)
    value = loss_of_row(loss, outputs.by_rows, outputs.fan_out, y, offset(net.space, outputs.a)) * weight
    value *= task.loss_scale
    _backward(net)
    value += 0.5 * task.alpha * _update(net, training, size, decay, weight, is_last)
    _transpose_all(net)
    return value / weight


@cached_jit
def train_online(data, arrays, training_arrays, task, epochs, losses, team_cells, wanted):
    """Do what `backprop.train` does, in batches of one sample, on one thread.

    `is_small` is true for the network.
    """
    cells, team = pointer(team_cells, 0), Team(np.int64(0), np.int64(1))
    mode = flush_subnormals()
    net = point_at_net(arrays, task.chunk, 0, 1)
    samples = point_at_samples(data, arrays, task, 0, 1)
    training = point_at_training(training_arrays, arrays, task, 0, 1)
    sizes, decays, results = pointer(task.sizes, 0), pointer(task.decays, 0), pointer(losses, 0)
    loss = point_at_loss(task, arrays)
    store_scalar(training.scratch, 0, 1)  # the input of the biases
    done, position = 0, task.first_batch % epochs.n_batches

    _transpose_all(net)
    for batch in range(task.first_batch, task.last_batch):
        if position == 0:
            begin_epoch(epochs, data.order, cells, team)
        prefetch_samples(samples, position + PREFETCH_SAMPLES, position + PREFETCH_SAMPLES + 1)
        step = batch - task.first_batch
        size, decay = load_scalar(sizes, step), load_scalar(decays, step)
        position += 1
        is_last = batch == task.last_batch - 1 or position == samples.n_seen or samples.is_weighted
        value = _train_sample(net, training, samples, task, loss, position - 1, size, decay, is_last)
        store_scalar(results, batch, value)
        done += 1
        if position == samples.n_seen:
            position = 0
            if end_epoch(batch, epochs, results, 1, samples.n_seen, cells, team):
                break
    training_arrays.done[0] = done
    restore_subnormals(mode)
