"""The forward pass alone: for many samples in blocks of rows, or for a few without packing the weights."""

from typing import NamedTuple

from numba import prange

from fastbp.activations import activate
from fastbp.codegen.jit import cached_jit, call_at, inlined
from fastbp.codegen.memory import (
    lane_count,
    load_scalar,
    offset,
    pointer,
    pointer_at,
    record_loader,
    store_scalar,
)
from fastbp.codegen.processor import flush_subnormals, restore_subnormals
from fastbp.codegen.rows import ROW_VECTORS, row_kernel
from fastbp.codegen.vectors import fma, load, splat, total
from fastbp.kernels.backprop import forward
from fastbp.kernels.csr import sum_rows
from fastbp.kernels.gather import gather, gather_and_multiply, gather_row, is_fused
from fastbp.kernels.matmul import ONE
from fastbp.kernels.records import Samples, get_layer, point_at_net
from fastbp.kernels.threads import join_team, next_ticket


@inlined
def _all_finite(row, n):
    """Whether n numbers, padded with zeros to whole vectors, are all finite."""
    sums = splat(row, 0.0)
    for j in range(0, n, lane_count(row)):
        sums = fma(load(row, j), 0.0, sums)  # zero times infinity, or NaN, is NaN
    return total(sums) == 0


@inlined
def _copy_outputs(net, layer, first, m, out):
    """Copy the activations of m rows of the last layer to `out`, without their padding."""
    for i in range(m):
        a = offset(net.space, layer.a + (first + i) * layer.row)
        for j in range(layer.fan_out):
            store_scalar(out, i * layer.fan_out + j, load_scalar(a, j))


@cached_jit
def predict(x, order, arrays, out, bad, block, team_cells, wanted):
    """Compute the outputs for all rows of x, on each thread of a team until all are done.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_features)
        Inputs, C-ordered.
    order : ndarray of int64 of shape (n_samples,)
        0, 1, 2, ...
    arrays : NetArrays
        The network, and workspace of `block` rows for each thread.
    out : ndarray of shape (n_samples, n_outputs)
        Becomes the activations of the last layer.
    bad : ndarray of int64 of shape (n_threads,)
        Becomes the number of rows that are not finite in the network's type; their outputs have no meaning.
    block : int64
        Rows that go through the network together.
    team_cells, wanted
        As in `backprop.train`.
    """
    cells = pointer(team_cells, 0)
    team = join_team(cells, wanted)
    if team.rank < 0:
        return
    mode = flush_subnormals()
    net = point_at_net(arrays, block * wanted, team.rank, wanted)
    samples = Samples(
        pointer(x, 0), x.shape[1], pointer(x, 0), 0, pointer(x, 0), False, pointer(order, 0), x.shape[0],
        pointer(arrays.lines, team.rank * (arrays.lines.size // wanted)),
    )  # fmt: skip
    fused = is_fused(net, samples, block)
    inputs, outputs = get_layer(net, 0), get_layer(net, net.n_layers - 1)
    n_samples, results = samples.n_seen, pointer(out, 0)
    first = team.rank * block
    n_bad = 0
    # A thread that is done takes the next block: one that loses its processor for a while holds up one block only.
    begin = next_ticket(cells) * block
    while begin < n_samples:
        m = min(block, n_samples - begin)
        position = begin - first  # the place in the order of row 0 of the workspace
        if fused:
            gather_and_multiply(net, samples, position, first, first + m, m)
        else:
            gather(net, inputs, samples, position, first, first + m)
        forward(net, first, first + m, fused)
        for i in range(m):
            if not _all_finite(offset(net.space, inputs.input + (first + i) * inputs.input_row), inputs.fan_in):
                n_bad += 1
        _copy_outputs(net, outputs, first, m, offset(results, begin * outputs.fan_out))
        begin = next_ticket(cells) * block
    bad[team.rank] = n_bad
    restore_subnormals(mode)


@cached_jit(parallel=True)
def predict_on_threads(address, x, order, arrays, out, bad, block, team_cells, wanted):
    """Call `predict`, whose machine code is at `address`, on each thread."""
    for _ in prange(wanted):
        call_at(address, (x, order, arrays, out, bad, block, team_cells, wanted))


@cached_jit
def predict_csr(matrix, weights, arrays, out, block, team_cells, wanted):
    """Do what `predict` does, for inputs in sparse rows.

    Parameters
    ----------
    matrix : CsrMatrix
        Inputs.
    weights : ndarray of shape (n_features, n_units)
        Of the first layer, C-ordered.
    arrays : NetArrays
        The network without these weights, as one without inputs, and workspace of `block` rows for each thread.
    out, block, team_cells, wanted
        As in `predict`.
    """
    cells = pointer(team_cells, 0)
    team = join_team(cells, wanted)
    if team.rank < 0:
        return
    mode = flush_subnormals()
    net = point_at_net(arrays, block * wanted, team.rank, wanted)
    inputs, outputs = get_layer(net, 0), get_layer(net, net.n_layers - 1)
    indptr, indices, values = pointer(matrix.indptr, 0), pointer(matrix.indices, 0), pointer(matrix.values, 0)
    n, w, bias, results = weights.shape[1], pointer(weights, 0), offset(net.params, inputs.bias), pointer(out, 0)
    first = team.rank * block
    begin = next_ticket(cells) * block
    while begin < out.shape[0]:
        m = min(block, out.shape[0] - begin)
        for i in range(m):
            entry = load_scalar(indptr, begin + i)
            sum_rows(
                n, load_scalar(indptr, begin + i + 1) - entry, offset(values, entry), offset(indices, entry), w, n,
                bias, offset(net.space, inputs.z + (first + i) * inputs.row),
            )  # fmt: skip
        forward(net, first, first + m, True)
        _copy_outputs(net, outputs, first, m, offset(results, begin * outputs.fan_out))
        begin = next_ticket(cells) * block
    restore_subnormals(mode)


@cached_jit(parallel=True)
def predict_csr_on_threads(address, matrix, weights, arrays, out, block, team_cells, wanted):
    """Call `predict_csr`, whose machine code is at `address`, on each thread."""
    for _ in prange(wanted):
        call_at(address, (matrix, weights, arrays, out, block, team_cells, wanted))


class UnpackedLayer(NamedTuple):
    """What `predict_few` knows of a layer; all are int64."""

    weights: int  # address of the (fan_in, fan_out) weights, row-major
    bias: int  # address of the biases
    fan_in: int
    fan_out: int
    forward: int  # as in `network.Layer`
    by_rows: int


_load_layer = record_loader(UnpackedLayer)


@cached_jit
def predict_few(x, layers, coefficients, space, out):
    """Compute the outputs for a few rows straight from the arrays that the user sees.

    To pack the weights would take longer than to use them for some rows. The results have the same bits.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_features)
        Inputs, C-ordered, of the network's type.
    layers : ndarray of int64 of shape (n_layers, len(UnpackedLayer._fields))
        The rows are `UnpackedLayer`.
    coefficients : ndarray of shape (n_layers, 2)
        Parameters of the activations.
    space : ndarray of shape (2, widest)
        Workspace for two layers, padded to whole vectors.
    out : ndarray of shape (n_samples, n_outputs)
        Becomes the activations of the last layer.

    Returns
    -------
    bool
        Whether all inputs are finite; if not, the outputs have no meaning.
    """
    mode = flush_subnormals()
    first, second = pointer(space, 0), pointer(space, space.shape[1])
    width = lane_count(first)
    n_inputs, n_outputs = x.shape[1], out.shape[1]
    samples, results, table, c = pointer(x, 0), pointer(out, 0), pointer(layers, 0), pointer(coefficients, 0)
    finite = True
    for i in range(x.shape[0]):
        inputs, a = first, second
        gather_row(offset(samples, i * n_inputs), n_inputs, inputs)
        finite &= _all_finite(inputs, n_inputs)
        for l in range(layers.shape[0]):
            layer = _load_layer(table, l)
            weights, bias = pointer_at(inputs, layer.weights), pointer_at(inputs, layer.bias)
            for j in range(0, layer.fan_out, ROW_VECTORS * width):
                n = min(ROW_VECTORS * width, layer.fan_out - j)
                row_kernel(n, layer.fan_in, inputs, offset(weights, j), layer.fan_out, offset(bias, j), offset(a, j))
            if layer.forward != 0:
                padded = (layer.fan_out + width - 1) // width * width
                c0, c1 = load_scalar(c, 2 * l), load_scalar(c, 2 * l + 1)
                activate(layer.forward, layer.by_rows, c0, c1, a, a, layer.fan_out, padded, ONE)
            inputs, a = a, inputs
        for j in range(n_outputs):
            store_scalar(results, i * n_outputs + j, load_scalar(inputs, j))
    restore_subnormals(mode)
    return finite
