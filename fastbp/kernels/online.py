"""Training on one sample at a time, for small networks: vectors times matrices, and no matrix products.

Both papers begin with this mode of learning. For a network like 8-16-3 the arithmetic of one sample is some
hundred instructions, fewer than the general kernel needs to find its way, and each has to wait for one before it.
Formulas and arrays are those of `backprop`; the sums over units are made in several parts, which are ready sooner.
"""

import numpy as np

from fastbp.activations import set_value
from fastbp.kernels.backprop import (
    ask_for,
    batch_weight,
    get_layer,
    point_at,
    set_output_delta,
    step,
    take,
)
from fastbp.kernels.intrinsics import (
    call_at,
    flush_subnormals,
    get,
    lane_count,
    pointer,
    put,
    restore_subnormals,
    shift,
)
from fastbp.kernels.jit import cached_jit, inlined
from fastbp.kernels.matmul import ONE, pack_transposed
from fastbp.kernels.simd import fma, load, store
from fastbp.kernels.tiles import short_row_kernel
from fastbp.losses import loss_of_row

# Samples between the one that is asked for and the one that is in work.
AHEAD = 32
# The most parameters with which this is done: they, the gradient and the optimizer's memory stay in the L1 cache.
MOST_PARAMS = 2_048


def is_small(network):
    """Whether `train_online` can train a network, and pays: no layer flipped, of one panel each, all in the cache."""
    return network.widest <= network.panel and network.n_params <= MOST_PARAMS and not network.flipped


@inlined
def _forward(net):
    for index in range(net.n_layers):
        layer = get_layer(net, index)
        z, a = shift(net.space, layer.z), shift(net.space, layer.a)
        short_row_kernel(
            layer.padded, layer.fan_in, shift(net.space, layer.source), shift(net.params, layer.weights),
            shift(net.params, layer.bias), z,
        )  # fmt: skip
        if layer.value != 0:
            c0, c1 = get(net.coefficients, 2 * index), get(net.coefficients, 2 * index + 1)
            set_value(layer.value, layer.by_rows, c0, c1, z, a, layer.fan_out, layer.padded, ONE)


@inlined
def _backward(net):
    for index in range(net.n_layers - 1, 0, -1):
        layer = get_layer(net, index)
        below = get_layer(net, index - 1)
        z, a, delta = shift(net.space, below.z), shift(net.space, below.a), shift(net.space, below.delta)
        short_row_kernel(
            below.padded, layer.fan_out, shift(net.space, layer.delta), shift(net.transposed, layer.transposed),
            net.space, delta,
        )  # fmt: skip
        if below.slope != 0:
            c0, c1 = get(net.coefficients, 2 * index - 2), get(net.coefficients, 2 * index - 1)
            call_at(below.slope, (c0, c1, z, a, delta, below.padded))


@inlined
def _gradient(net, grads):
    """Set the gradient of all parameters: the products of what each weight receives and its unit's delta."""
    width = lane_count(net.space)
    # To sums that begin with zero: the sign of a zero is then that of a sum over a batch.
    for index in range(net.n_layers):
        layer = get_layer(net, index)
        source = shift(net.space, layer.source)
        for j in range(0, layer.padded, width):
            delta = load(net.space, layer.delta + j)
            for p in range(layer.fan_in):
                store(grads, layer.weights + p * layer.padded + j, fma(delta, get(source, p), 0.0))
            store(grads, layer.bias + j, delta + 0.0)


@inlined
def _transpose(net, layer):
    pack_transposed(
        0, layer.rows, 0, layer.fan_out, shift(net.params, layer.weights), layer.rows, layer.padded,
        shift(net.transposed, layer.transposed),
    )  # fmt: skip


@cached_jit
def train_online(data, state, plan, losses, scratch, team, wanted):
    """Do as `backprop.train`, in batches of one sample, on one thread.

    The network is one for which `is_small` is true, and `state.grads` has room for all parameters.
    """
    mode = flush_subnormals()
    net, training, samples = point_at(data, state, plan, scratch, 0, 1)
    grads = training.grads
    eps = np.float64(np.finfo(state.space.dtype).eps)
    sizes, results = pointer(plan.sizes, 0), pointer(losses, 0)
    n_params = state.params.size
    inputs, outputs = get_layer(net, 0), get_layer(net, net.n_layers - 1)
    for index in range(1, net.n_layers):
        _transpose(net, get_layer(net, index))
    for batch in range(plan.first_batch, plan.last_batch):
        ask_for(samples, batch + AHEAD, batch + AHEAD + 1)
        divisor = batch_weight(samples, batch, batch + 1)
        if divisor == 0:
            put(results, batch, 0.0)
            continue
        take(net, inputs, samples, batch, 0, 1)
        _forward(net)
        set_output_delta(net, plan.loss, samples, batch, 0, 1)
        y = shift(samples.y, get(samples.order, batch) * outputs.fan_out)
        value = loss_of_row(plan.loss, outputs.by_rows, outputs.fan_out, y, shift(net.space, outputs.a), eps)
        value *= divisor  # the sample's weight
        _backward(net)
        _gradient(net, grads)
        size = get(sizes, batch - plan.first_batch)
        if plan.alpha == 0:
            step(net, training, plan.solver, size, 0.0, divisor, 0, grads, n_params)
        else:
            squares = 0.0
            for index in range(net.n_layers):
                layer = get_layer(net, index)
                n, weights, bias = layer.rows * layer.padded, layer.weights, layer.bias
                squares += step(
                    net, training, plan.solver, size, plan.alpha, divisor, weights, shift(grads, weights), n
                )
                step(net, training, plan.solver, size, 0.0, divisor, bias, shift(grads, bias), layer.padded)
            value += 0.5 * plan.alpha * squares
        for index in range(1, net.n_layers):
            _transpose(net, get_layer(net, index))
        put(results, batch, value / divisor)
    state.done[0] = plan.last_batch - plan.first_batch
    restore_subnormals(mode)
