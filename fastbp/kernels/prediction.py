"""The forward pass alone: many samples in blocks, or a few of them without any preparation."""

from numba import prange

from fastbp.activations import set_value
from fastbp.kernels.backprop import (
    Net,
    Samples,
    forward,
    get_layer,
    is_streamed,
    take,
    take_and_multiply,
    take_sample,
)
from fastbp.kernels.intrinsics import (
    call_at,
    flush_subnormals,
    get,
    lane_count,
    pointer,
    pointer_at,
    put,
    restore_subnormals,
    shift,
)
from fastbp.kernels.jit import cached_jit, inlined
from fastbp.kernels.matmul import ONE
from fastbp.kernels.simd import fma, load, splat, total
from fastbp.kernels.threads import join_team, next_ticket
from fastbp.kernels.tiles import ROW_VECTORS, row_kernel

# What `predict_few` knows of each layer.
N_FACTS = 6


@inlined
def _all_finite(row, n):
    """Whether n numbers, padded with zeros to whole vectors, are all finite."""
    sums = splat(row, 0.0)
    for j in range(0, n, lane_count(row)):
        sums = fma(load(row, j), 0.0, sums)  # zero times infinity, or NaN, is NaN
    return total(sums) == 0


@cached_jit
def predict(
    x, order, table, coefficients, params, space, kernels, marks, listed, ahead, out, bad, block, team, wanted
):  # fmt: skip
    """Compute the outputs for all rows of x, on each thread of a team until all are done.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_features)
        Inputs, C-ordered.
    order : ndarray of int64 of shape (n_samples,)
        0, 1, 2, ...
    table, coefficients, params, space, kernels, marks, listed, ahead
        As in `backprop.State`; they have room for `block` rows for each thread.
    out : ndarray of shape (n_samples, n_outputs)
        Filled with the activations of the last layer.
    bad : ndarray of int64 of shape (n_threads,)
        Counts the rows that are not finite numbers, in the network's type; their outputs have no meaning.
    block : int64
        Rows that go through the network together.
    team, wanted
        As in `backprop.train`.
    """
    rank, _ = join_team(team, wanted)
    if rank < 0:
        return
    mode = flush_subnormals()
    net = Net(
        table.shape[0], pointer(table, 0), pointer(coefficients, 0), pointer(params, 0), pointer(params, 0),
        pointer(space, 0), pointer(kernels, 0), marks.size > 0, pointer(marks, 0), block * wanted,
        pointer(listed, rank * (listed.size // wanted)),
    )  # fmt: skip
    samples = Samples(
        pointer(x, 0), x.shape[1], pointer(x, 0), 0, pointer(x, 0), False, pointer(order, 0), x.shape[0],
        pointer(ahead, rank * (ahead.size // wanted)),
    )  # fmt: skip
    streamed = is_streamed(net, samples, block)
    inputs = get_layer(net, 0)
    outputs = get_layer(net, net.n_layers - 1)
    n_samples, results = samples.n_seen, pointer(out, 0)
    first = rank * block
    n_bad = 0
    # Whoever is free takes the next block: a thread that loses its processor for a while holds up one block only.
    begin = next_ticket(team) * block
    while begin < n_samples:
        m = min(block, n_samples - begin)
        position = begin - first  # where in the order row 0 of the workspace would be
        if streamed:
            take_and_multiply(net, samples, position, first, first + m, m)
        else:
            take(net, inputs, samples, position, first, first + m)
        forward(net, first, first + m, streamed)
        for i in range(m):
            if not _all_finite(shift(net.space, inputs.source + (first + i) * inputs.source_row), inputs.fan_in):
                n_bad += 1
            a = shift(net.space, outputs.a + (first + i) * outputs.row)
            for j in range(outputs.fan_out):
                put(results, (begin + i) * outputs.fan_out + j, get(a, j))
        begin = next_ticket(team) * block
    bad[rank] = n_bad
    restore_subnormals(mode)


@cached_jit(parallel=True)
def predict_on_threads(
    address, x, order, table, coefficients, params, space, kernels, marks, listed, ahead, out, bad, block,
    team, wanted,
):  # fmt: skip
    """Call `predict`, whose machine code is at `address`, on each thread."""
    for _ in prange(wanted):
        args = (
            x, order, table, coefficients, params, space, kernels, marks, listed, ahead, out, bad, block, team,
            wanted,
        )  # fmt: skip
        call_at(address, args)


@cached_jit
def predict_few(x, layers, coefficients, space, out):
    """Compute the outputs for a few rows straight from the arrays that the user sees.

    Packing the weights would take longer than to use them for some rows. The results have the same bits.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_features)
        Inputs, C-ordered, of the network's type.
    layers : ndarray of int64 of shape (n_layers, N_FACTS)
        Address of the weights, (fan_in, fan_out) and row-major; address of the biases; fan_in; fan_out; `value`
        and `by_rows` as in `network.Layer`.
    coefficients : ndarray of shape (n_layers, 2)
        Parameters of the activations.
    space : ndarray of shape (2, widest)
        Room for two layers, padded to whole vectors.
    out : ndarray of shape (n_samples, n_outputs)
        Filled with the activations of the last layer.

    Returns
    -------
    bool
        Whether all inputs are finite; if not, the outputs have no meaning.
    """
    mode = flush_subnormals()
    first = pointer(space, 0)
    second = pointer(space, space.shape[1])
    width = lane_count(first)
    n_inputs, n_outputs, n_layers = x.shape[1], out.shape[1], layers.shape[0]
    samples, results, table, c = pointer(x, 0), pointer(out, 0), pointer(layers, 0), pointer(coefficients, 0)
    finite = True
    for i in range(x.shape[0]):
        source, a = first, second
        take_sample(shift(samples, i * n_inputs), n_inputs, source)
        finite &= _all_finite(source, n_inputs)
        for index in range(n_layers):
            layer = shift(table, index * N_FACTS)
            weights, biases = pointer_at(source, get(layer, 0)), pointer_at(source, get(layer, 1))
            fan_in, fan_out, value, by_rows = get(layer, 2), get(layer, 3), get(layer, 4), get(layer, 5)
            for j in range(0, fan_out, ROW_VECTORS * width):
                n = min(ROW_VECTORS * width, fan_out - j)
                row_kernel(n, fan_in, source, shift(weights, j), fan_out, shift(biases, j), shift(a, j))
            padded = (fan_out + width - 1) // width * width
            c0, c1 = get(c, 2 * index), get(c, 2 * index + 1)
            if value != 0:
                set_value(value, by_rows, c0, c1, a, a, fan_out, padded, ONE)
            source, a = a, source
        for j in range(n_outputs):
            put(results, i * n_outputs + j, get(source, j))
    restore_subnormals(mode)
    return finite
