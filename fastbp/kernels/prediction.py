"""The forward pass alone, from the arrays that the user sees.

Weights are used where they are, row-major: the register tile can read a panel from there, only less evenly than from
packed memory. So a call pays for packing only where it has many rows. The last panel of a layer, which may end within a
vector, is packed always, as are the biases. A row's outputs have the same bits in all kernels of this file.
"""

from typing import NamedTuple

import numpy as np

from fastbp.activations import activate
from fastbp.codegen.jit import cached_jit, call_at, inlined, jit
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
from fastbp.codegen.tiles import NV
from fastbp.codegen.vectors import fma, load, load_first, splat, store, total
from fastbp.kernels.backprop import forward
from fastbp.kernels.csr import sum_rows
from fastbp.kernels.gather import gather, gather_row
from fastbp.kernels.matmul import MULTIPLY, ONE, REPEATED
from fastbp.kernels.records import Samples, get_layer, point_at_net
from fastbp.kernels.threads import barrier, join_team, next_ticket, share


class PlainLayer(NamedTuple):
    """What these kernels know of a layer; all are int64."""

    weights: int  # address of the (fan_in, fan_out) weights, row-major
    bias: int  # address of the biases
    fan_in: int
    fan_out: int
    forward: int  # as in `network.Layer`
    by_rows: int
    input_row: int  # row stride of its inputs in the workspace
    row: int  # row stride of its outputs
    panels: int  # offset of panel 0 in the packed memory, where it is packed; a panel has fan_in rows
    padded_bias: int  # offset of its biases there, padded to whole vectors


_load_layer = record_loader(PlainLayer)


def plain_layers(network, coefs, intercepts, *, packs, csr=False):
    """Describe the layers of a network for `predict`.

    Parameters
    ----------
    network : Network
        Units, activations and type.
    coefs, intercepts : list of ndarray
        Weights and biases, C-ordered and of the network's type; they must outlive the result.
    packs : bool
        Whether all panels are packed, or the last of each layer only, where it is not a whole panel.
    csr : bool, default=False
        Whether the inputs are sparse rows, for which the weights of the first layer are not packed.

    Returns
    -------
    table : ndarray of int64 of shape (n_layers, len(PlainLayer._fields))
        The rows are `PlainLayer`.
    size : int
        Length of the packed memory.
    """
    table: list[PlainLayer] = []
    end = 0
    for coef, intercept, activation in zip(coefs, intercepts, network.activations, strict=True):
        fan_in, fan_out = coef.shape
        first = 0 if packs else fan_out // network.panel * network.panel  # first column that is packed
        first = fan_out if csr and not table else first
        padded = -(-fan_out // network.lanes) * network.lanes
        n_packed = fan_in * (padded - first) if first < fan_out else 0
        strides = network.row_stride(fan_in), network.row_stride(fan_out)
        table.append(
            PlainLayer(
                coef.ctypes.data, intercept.ctypes.data, fan_in, fan_out, activation.forward_address(network.dtype),
                activation.by_rows, *strides, end - first * fan_in, end + n_packed,
            )
        )  # fmt: skip
        end += n_packed + padded
    return np.array(table, dtype=np.int64), end


class _Pass(NamedTuple):
    """A forward pass as pointers."""

    layers: object
    n_layers: int
    coefficients: object
    kernels: object
    packed: object
    packs: bool  # whether all panels are packed, or the last of each layer only


@inlined
def _all_finite(row, n):
    """Whether n numbers, padded with zeros to whole vectors, are all finite."""
    sums = splat(row, 0.0)
    for j in range(0, n, lane_count(row)):
        sums = fma(load(row, j), 0.0, sums)  # zero times infinity, or NaN, is NaN
    return total(sums) == 0


# --- many rows ---


@inlined
def _is_in_place(net, layer, j, width):
    """Whether the panel that begins at column j is used where the user's array is."""
    return not net.packs and j + NV * width <= layer.fan_out


@inlined
def _copy_rows(n_rows, n, source, source_row, out, width):
    """Copy rows of n numbers, at most a panel, one after the other, padded with zeros to whole vectors."""
    padded = (n + width - 1) // width * width
    for p in range(n_rows):
        for j in range(0, padded, width):
            store(out, p * padded + j, load_first(source, p * source_row + j, n - j))


@jit
def _pack(net, first_layer, like, team):
    """Pack this thread's part of what is not used in place."""
    width = lane_count(like)
    for l in range(net.n_layers):
        layer = _load_layer(net.layers, l)
        weights, bias = pointer_at(like, layer.weights), pointer_at(like, layer.bias)
        if team.rank == 0:
            for j in range(0, layer.fan_out, width):
                store(net.packed, layer.padded_bias + j, load_first(bias, j, layer.fan_out - j))
        n_panels = (layer.fan_out + NV * width - 1) // (NV * width)
        first, last = share(n_panels, ONE, team.rank, team.size)
        for j in range(first * NV * width, last * NV * width, NV * width):
            if l >= first_layer and not _is_in_place(net, layer, j, width):
                n = min(NV * width, layer.fan_out - j)
                out = offset(net.packed, layer.panels + j * layer.fan_in)
                _copy_rows(layer.fan_in, n, offset(weights, j), layer.fan_out, out, width)


@jit
def _apply(net, l, z, a, m):
    """Apply the activation of a layer to m rows."""
    layer = _load_layer(net.layers, l)
    if layer.forward != 0:
        c0, c1 = load_scalar(net.coefficients, 2 * l), load_scalar(net.coefficients, 2 * l + 1)
        activate(layer.forward, layer.by_rows, c0, c1, z, a, layer.fan_out, layer.row, m)


@jit
def _forward_layer(net, l, m, inputs, a):
    """Compute the activations of a layer for m rows."""
    layer = _load_layer(net.layers, l)
    width = lane_count(a)
    for j in range(0, layer.fan_out, NV * width):
        nv = min(NV, (layer.fan_out - j + width - 1) // width)
        panel, panel_row = offset(net.packed, layer.panels + j * layer.fan_in), nv * width
        if _is_in_place(net, layer, j, width):
            panel, panel_row = offset(pointer_at(a, layer.weights), j), layer.fan_out
        args = (
            m, nv, layer.fan_in, inputs, layer.input_row, ONE, panel, panel_row,
            offset(net.packed, layer.padded_bias + j), REPEATED, offset(a, j), layer.row,
        )  # fmt: skip
        call_at(load_scalar(net.kernels, MULTIPLY), args)
    _apply(net, l, a, a, m)


@inlined
def _copy_outputs(m, n, a, row, out):
    """Copy m rows of n numbers to `out`, without their padding."""
    for i in range(m):
        for j in range(n):
            store_scalar(out, i * n + j, load_scalar(a, i * row + j))


@cached_jit
def predict(x, layers, coefficients, kernels, packed, space, out, bad, block, packs, team_cells, wanted):
    """Compute the outputs for all rows of x, on each thread of a team until all are done.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_features)
        Inputs, C-ordered.
    layers : ndarray of int64 of shape (n_layers, len(PlainLayer._fields))
        The rows are `PlainLayer`.
    coefficients : ndarray of shape (n_layers, 2)
        Parameters of the activations.
    kernels : ndarray of int64
        From `kernel_addresses`.
    packed : ndarray
        Memory for panels and biases, as `layers` say.
    space : ndarray of shape (n_threads, 2, size)
        Workspace: the inputs, or outputs, of `block` rows of any layer, twice for each thread.
    out : ndarray of shape (n_samples, n_outputs)
        Becomes the activations of the last layer.
    bad : ndarray of int64 of shape (n_threads,)
        Becomes the number of rows that are not finite in the network's type; their outputs have no meaning.
    block : int64
        Rows that go through the network together.
    packs : bool
        Whether to pack all weights.
    team_cells, wanted
        As in `backprop.train`.
    """
    cells = pointer(team_cells, 0)
    team = join_team(cells, wanted)
    if team.rank < 0:
        return
    mode = flush_subnormals()
    net = _Pass(
        pointer(layers, 0), layers.shape[0], pointer(coefficients, 0), pointer(kernels, 0), pointer(packed, 0), packs
    )  # fmt: skip
    first = pointer(space, 2 * team.rank * space.shape[2])
    second = offset(first, space.shape[2])
    samples, results, n_samples, n_inputs, n_outputs = (
        pointer(x, 0),
        pointer(out, 0),
        x.shape[0],
        x.shape[1],
        out.shape[1],
    )
    _pack(net, 0, first, team)
    barrier(cells, team)
    input_row, output_row = _load_layer(net.layers, 0).input_row, _load_layer(net.layers, net.n_layers - 1).row
    n_bad = 0
    # A thread that is done takes the next block: one that loses its processor for a while holds up one block only.
    begin = next_ticket(cells) * block
    while begin < n_samples:
        m = min(block, n_samples - begin)
        for i in range(m):
            row = offset(first, i * input_row)
            gather_row(offset(samples, (begin + i) * n_inputs), n_inputs, row)
            if not _all_finite(row, n_inputs):
                n_bad += 1
        inputs, a = first, second
        for l in range(net.n_layers):
            _forward_layer(net, l, m, inputs, a)
            inputs, a = a, inputs
        _copy_outputs(m, n_outputs, inputs, output_row, offset(results, begin * n_outputs))
        begin = next_ticket(cells) * block
    bad[team.rank] = n_bad
    restore_subnormals(mode)


# --- rows of sparse inputs ---


@cached_jit
def predict_csr(matrix, layers, coefficients, kernels, packed, space, out, bad, block, packs, team_cells, wanted):
    """Do what `predict` does, for the rows of a `CsrMatrix`, which are finite."""
    cells = pointer(team_cells, 0)
    team = join_team(cells, wanted)
    if team.rank < 0:
        return
    mode = flush_subnormals()
    net = _Pass(
        pointer(layers, 0), layers.shape[0], pointer(coefficients, 0), pointer(kernels, 0), pointer(packed, 0), packs
    )  # fmt: skip
    first = pointer(space, 2 * team.rank * space.shape[2])
    second = offset(first, space.shape[2])
    indptr, indices, values = pointer(matrix.indptr, 0), pointer(matrix.indices, 0), pointer(matrix.values, 0)
    results, n_samples, n_outputs = pointer(out, 0), out.shape[0], out.shape[1]
    _pack(net, 1, first, team)
    barrier(cells, team)
    layer, output_row = _load_layer(net.layers, 0), _load_layer(net.layers, net.n_layers - 1).row
    weights, bias = pointer_at(first, layer.weights), offset(net.packed, layer.padded_bias)
    begin = next_ticket(cells) * block
    while begin < n_samples:
        m = min(block, n_samples - begin)
        for i in range(m):
            entry = load_scalar(indptr, begin + i)
            count = load_scalar(indptr, begin + i + 1) - entry
            sum_rows(
                layer.fan_out, count, offset(values, entry), offset(indices, entry), weights, layer.fan_out, bias,
                offset(first, i * layer.row),
            )  # fmt: skip
        _apply(net, 0, first, first, m)
        inputs, a = first, second
        for l in range(1, net.n_layers):
            _forward_layer(net, l, m, inputs, a)
            inputs, a = a, inputs
        _copy_outputs(m, n_outputs, inputs, output_row, offset(results, begin * n_outputs))
        begin = next_ticket(cells) * block
    restore_subnormals(mode)


# --- a few rows ---


@cached_jit
def predict_few(x, layers, coefficients, space, out):
    """Compute the outputs for a few rows, one after the other.

    Tiles of so few rows would be too few sums for the FMA units.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_features)
        Inputs, C-ordered, of the network's type.
    layers, coefficients, out
        As in `predict`.
    space : ndarray of shape (2, widest)
        Workspace for two layers, padded to whole vectors.

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


# --- inputs that are mostly zero ---


@cached_jit
def predict_indexed(x, order, arrays, out, bad, block, team_cells, wanted):
    """Do what `predict` does with a packed network, leaving out zero inputs (see `fastbp.kernels.sparse`).

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_features)
        Inputs, C-ordered.
    order : ndarray of int64 of shape (n_samples,)
        0, 1, 2, ...
    arrays : NetArrays
        The network, and workspace of `block` rows for each thread.
    out, bad, block, team_cells, wanted
        As in `predict`.
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
    inputs, outputs = get_layer(net, 0), get_layer(net, net.n_layers - 1)
    first, n_samples = team.rank * block, samples.n_seen
    n_bad = 0
    begin = next_ticket(cells) * block
    while begin < n_samples:
        m = min(block, n_samples - begin)
        gather(net, inputs, samples, begin - first, first, first + m)
        forward(net, first, first + m, False)
        for i in range(first, first + m):
            if not _all_finite(offset(net.space, inputs.input + i * inputs.input_row), inputs.fan_in):
                n_bad += 1
        a = offset(net.space, outputs.a + first * outputs.row)
        _copy_outputs(m, outputs.fan_out, a, outputs.row, pointer(out, begin * outputs.fan_out))
        begin = next_ticket(cells) * block
    bad[team.rank] = n_bad
    restore_subnormals(mode)
