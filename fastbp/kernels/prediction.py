"""The forward pass alone, from the arrays that the user sees: rows of inputs, layer after layer (`unpacked`).

Blocks of rows go through the network one after the other, and threads take one each. Of a few rows, threads that are
awake share the columns of each layer, so that each reads a part of the weights only. A row's outputs have the same bits
whatever the other rows, and on any number of threads.
"""

from typing import NamedTuple

import numpy as np
from numba import from_dtype, types

from fastbp.activations import activate
from fastbp.codegen.atomics import atomic_add, atomic_load
from fastbp.codegen.jit import address_of, cached_jit, call_at, called_by_address, inlined, jit, store_arguments
from fastbp.codegen.memory import (
    address,
    float_of_bits,
    lane_count,
    load_scalar,
    offset,
    pointer,
    pointer_at,
    record_loader,
    store_scalar,
)
from fastbp.codegen.processor import flush_subnormals, restore_subnormals
from fastbp.codegen.tiles import NV
from fastbp.codegen.vectors import fma, load, load_converted, splat, store, total
from fastbp.kernels.backprop import forward
from fastbp.kernels.csr import sum_rows
from fastbp.kernels.gather import gather
from fastbp.kernels.matmul import MULTIPLY, NONE, ONE
from fastbp.kernels.plan import is_far
from fastbp.kernels.records import NO_DRAW, Samples, get_layer, point_at_net
from fastbp.kernels.threads import (
    Team,
    addresses_for,
    barrier,
    join_loose_team,
    join_team,
    next_ticket,
    renew_team,
    share,
)
from fastbp.kernels.unpacked import (
    buffer_size,
    describe_layer,
    load_plain_layer,
    needed_panels_address,
    set_products,
    share_columns,
)
from fastbp.kernels.workers import address_of_call


class Plan(NamedTuple):
    """How a call computes: the head of the table of the kernels; all are int64."""

    n_layers: int
    block: int  # rows that go through the network together; 0 for all of them, where threads share the columns
    multiply: int  # address of `matmul.multiply_panel`
    multiply_panels: int  # address of `multiply_panels`, 0 where no layer needs it
    is_far: int  # whether the weights do not stay in the L2 cache, see `plan.is_far`
    is_pair: int  # whether the one output is the probability of the second of two classes, and both are wanted
    size: int  # numbers in a thread's workspace
    buffer: int  # of these, for weights and biases
    half: int  # and for the rows of the inputs and of every second layer
    begin: int  # address of `begin_dense` or `begin_csr`
    run: int  # that of `predict_rows_of_thread`; with the next, `threads.Addresses`
    call: int
    call_on_workers: int  # address of `workers.call_on_workers`, 0 for one thread


# Cells of the table, and how many come before the layers.
BLOCK, STATUS = Plan._fields.index("block"), len(Plan._fields)
TABLE_HEAD = STATUS + 1
# What the kernels say in the cell STATUS, added for all threads; CHANGED where weights are no longer where they were.
CHANGED = 1 << 40


load_plan = record_loader(Plan)


def table_of(network, coefs, intercepts, kernels, source=None, n_threads=1, *, is_pair=False):
    """Describe a network for the kernels.

    Parameters
    ----------
    network : Network
        Units, activations and type.
    coefs, intercepts : list of ndarray
        Weights and biases, C-ordered and of the network's type; they must outlive the result.
    kernels : ndarray of int64
        From `kernel_addresses`.
    source : str, default=None
        The character of the dtype of the inputs of `predict`; "csr" for `predict_csr`, None for `predict_rows`.
    n_threads : int, default=1
        The most threads of `predict` or `predict_csr`.
    is_pair : bool, default=False
        See `Plan`.

    Returns
    -------
    ndarray of int64
        A `Plan`, the cell STATUS, and a `PlainLayer` for each layer; `lay_out` and the caller set what is 0.
    """
    addresses = (0, 0, 0, 0) if source is None else _plan_addresses(source, network.dtype, n_threads)
    multiplied = network.units[source == "csr" :]  # `begin_csr` multiplies the first layer
    panels, far = needed_panels_address(multiplied, network), is_far(multiplied, network.dtype.itemsize)
    table = [*Plan(len(coefs), 0, kernels[MULTIPLY], panels, far, is_pair, 0, 0, 0, *addresses), 0]
    bits = network.coefficients.view(np.int64)
    for layer in zip(coefs, intercepts, network.activations, bits, strict=True):
        table += describe_layer(*layer, network)
    return np.array(table, dtype=np.int64)


def lay_out(table, rows, network, *, csr=False):
    """Lay out the workspace of a thread.

    Parameters
    ----------
    table : ndarray of int64
        From `table_of`; changed in place.
    rows : int
        The most rows that go through the network together.
    network : Network
        The network.
    csr : bool, default=False
        Whether the inputs are sparse rows, which take no workspace.

    Returns
    -------
    int
        Length of the workspace.
    """
    strides = [network.row_stride(n) for n in network.units[csr:]]
    half = rows * max(strides[::2])
    buffer = buffer_size(network)
    size = buffer + half + rows * max(strides[1::2], default=0)
    for name, number in (("size", size), ("buffer", buffer), ("half", half)):
        table[Plan._fields.index(name)] = number
    return size


@inlined
def _is_unchanged(table, n_layers):
    """Whether NumPy still has the arrays where they were: `ndarray.resize` moves the memory of an array."""
    same = True
    for l in range(n_layers):
        layer = load_plain_layer(offset(table, TABLE_HEAD), l)
        weights, bias = pointer_at(table, layer.weights_fields), pointer_at(table, layer.bias_fields)
        same &= load_scalar(weights, 0) == layer.weights and load_scalar(bias, 0) == layer.bias
        # The fields are the address, the number of dimensions, and the address of the lengths.
        shape, length = pointer_at(table, load_scalar(weights, 2)), pointer_at(table, load_scalar(bias, 2))
        same &= load_scalar(shape, 0) == layer.fan_in and load_scalar(shape, 1) == layer.fan_out
        same &= load_scalar(length, 0) == layer.fan_out
    return same


@inlined
def gather_finite(x, n, row):
    """Copy n inputs as `gather.gather_rows` does; return whether all are finite in the network's type."""
    step = 4 * lane_count(row)
    first = splat(row, 0.0)
    second, third, fourth = first, first, first
    j = 0
    while j + step <= n:  # several sums, as each addition waits for the one before
        width = lane_count(row)
        a, b = load_converted(x, j, width, row), load_converted(x, j + width, width, row)
        c, d = load_converted(x, j + 2 * width, width, row), load_converted(x, j + 3 * width, width, row)
        store(row, j, a)
        store(row, j + width, b)
        store(row, j + 2 * width, c)
        store(row, j + 3 * width, d)
        # Zero times infinity, or NaN, is NaN.
        first, second, third, fourth = fma(a, 0.0, first), fma(b, 0.0, second), fma(c, 0.0, third), fma(d, 0.0, fourth)
        j += step
    while j < n:
        a = load_converted(x, j, n - j, row)
        store(row, j, a)
        first = fma(a, 0.0, first)
        j += lane_count(row)
    return total((first + second) + (third + fourth)) == 0


@inlined
def _all_finite(row, n):
    """Whether n numbers, padded with zeros to whole vectors, are all finite."""
    sums = splat(row, 0.0)
    for j in range(0, n, lane_count(row)):
        sums = fma(load(row, j), 0.0, sums)
    return total(sums) == 0


@inlined
def _apply(layer, m, a):
    """Apply the activation of a layer to m rows."""
    if layer.forward != 0:
        c0, c1 = float_of_bits(layer.c0), float_of_bits(layer.c1)
        activate(layer.forward, layer.by_rows, c0, c1, a, a, layer.fan_out, layer.row, m)


@inlined
def _apply_to_columns(layer, m, columns, a):
    """Apply an activation of single units to some columns of m rows."""
    if layer.forward != 0:
        c0, c1 = float_of_bits(layer.c0), float_of_bits(layer.c1)
        width = (columns.right - columns.left + lane_count(a) - 1) // lane_count(a) * lane_count(a)
        for i in range(m):
            z = offset(a, i * layer.row + columns.left)
            activate(layer.forward, False, c0, c1, z, z, width, width, ONE)


@inlined
def _store_outputs(plan, layer, m, a, out):
    """Copy m rows of outputs, without their padding."""
    n, row, width = layer.fan_out, layer.row, lane_count(a)
    if plan.is_pair:
        for i in range(m):
            y = load_scalar(a, i * row)
            store_scalar(out, 2 * i, 1 - y)
            store_scalar(out, 2 * i + 1, y)
        return
    padded = (n + width - 1) // width * width
    i = 0
    while i * n + padded <= m * n:  # the next row overwrites the padding
        for j in range(0, n, width):
            store(out, i * n + j, load(a, i * row + j))
        i += 1
    while i < m:
        for j in range(n):
            store_scalar(out, i * n + j, load_scalar(a, i * row + j))
        i += 1


@jit
def pass_rows(plan, layers, first_layer, m, inputs, a, buffer, out, n_columns, cells, team):
    """Take m rows through the layers from `first_layer` on; `inputs` and `a` take turns as memory for outputs.

    Each thread of the team has some columns of each layer, to which it applies an activation of single units. One of
    whole rows it applies to some rows, when all threads are done with their columns.
    """
    begin, end = share(m, ONE, team.rank, team.size)
    for l in range(first_layer, plan.n_layers):
        layer = load_plain_layer(layers, l)
        columns = share_columns(layer, NV * lane_count(a), team)
        by_columns = team.size > 1 and not layer.by_rows
        barrier(cells, team)
        if columns.left < columns.right:
            set_products(plan, layer, m, columns, inputs, a, buffer)
            if by_columns:
                _apply_to_columns(layer, m, columns, a)
        if not by_columns:
            barrier(cells, team)
            if begin < end:  # of a few rows some threads have none
                _apply(layer, end - begin, offset(a, begin * layer.row))
        inputs, a = a, inputs
    layer = load_plain_layer(layers, plan.n_layers - 1)
    if not layer.by_rows:  # else each thread stores the rows that it has activated
        barrier(cells, team)
    _store_outputs(plan, layer, end - begin, offset(inputs, begin * layer.row), offset(out, begin * n_columns))


@called_by_address
def predict_rows_of_thread(table, space, source, first_layer, out, n_samples, n_columns, cells, wanted):
    """Do a thread's part of `predict` or `predict_csr`.

    Parameters
    ----------
    table, space : pointer to int64, pointer
        As `predict` takes them.
    source : three addresses
        The first three parameters of `begin_dense` or `begin_csr`.
    first_layer : int64
        The layer whose inputs these set.
    out, n_samples, n_columns : pointer, int64, int64
        The array of outputs, and its shape.
    cells, wanted
        As in `backprop.train`.
    """
    plan, layers, status = load_plan(table, 0), offset(table, TABLE_HEAD), offset(table, STATUS)
    by_columns = plan.block == 0
    takes_tickets = wanted > 1 and not by_columns
    team, rank = Team(NONE, ONE), NONE
    if takes_tickets:
        rank = join_loose_team(cells, wanted)
    elif by_columns:
        team = join_team(cells, wanted)
        rank = team.rank
    if rank < 0:
        return
    if (not by_columns or rank == 0) and not _is_unchanged(table, plan.n_layers):
        atomic_add(status, 0, CHANGED)
    if by_columns:  # threads that wait for each other must all find the same
        barrier(cells, team)
    if atomic_load(status, 0) >= CHANGED:
        return
    mode = flush_subnormals()
    buffer = offset(space, rank * plan.size)
    first = offset(space if by_columns else buffer, plan.buffer)
    second = offset(first, plan.half)
    block = n_samples if by_columns else plan.block
    inputs = load_plain_layer(layers, 0)
    row = inputs.input_row if first_layer == 0 else inputs.row
    # A thread that is done takes the next block: one that loses its processor for a while holds up one block only.
    begin = next_ticket(cells) * block if takes_tickets else NONE
    while begin < n_samples:
        m = min(block, n_samples - begin)
        top, bottom = share(m, ONE, team.rank, team.size)
        call_at(plan.begin, (*source, layers, begin + top, bottom - top, offset(first, top * row), status))
        results = offset(out, begin * n_columns)
        pass_rows(plan, layers, first_layer, m, first, second, buffer, results, n_columns, cells, team)
        begin = next_ticket(cells) * block if takes_tickets else begin + m
    restore_subnormals(mode)


@called_by_address
def begin_dense(x, _indptr, _values, layers, begin, m, first, status):
    """Set the inputs of the first layer for m rows of x from `begin` on; add to `status` how many are not finite."""
    layer = load_plain_layer(layers, 0)
    n_bad = begin_rows(offset(x, begin * layer.fan_in), layer.fan_in, layer, m, first)
    if n_bad:
        atomic_add(status, 0, n_bad)


@inlined
def begin_rows(rows, n_inputs, layer, m, first):
    """Set the inputs of the first layer for m rows; return how many are not finite."""
    n_bad = 0
    for i in range(m):
        if not gather_finite(offset(rows, i * n_inputs), n_inputs, offset(first, i * layer.input_row)):
            n_bad += 1
    return n_bad


@called_by_address
def begin_csr(indices, indptr, values, layers, begin, m, first, _status):
    """Set the inputs of the second layer for m rows of a `CsrMatrix` from `begin` on."""
    layer = load_plain_layer(layers, 0)
    weights, bias = pointer_at(first, layer.weights), pointer_at(first, layer.bias)
    for i in range(m):
        entry = load_scalar(indptr, begin + i)
        count = load_scalar(indptr, begin + i + 1) - entry
        sum_rows(
            layer.fan_out, count, offset(values, entry), offset(indices, entry), weights, layer.fan_out, bias,
            offset(first, i * layer.row),
        )  # fmt: skip
    _apply(layer, m, first)


def _plan_addresses(source, dtype, n_threads):
    """Return the last addresses of a `Plan`."""
    n, values, places = types.int64, types.CPointer(from_dtype(dtype)), types.CPointer(types.int64)
    x = types.CPointer(types.int32 if source == "csr" else from_dtype(np.dtype(source)))
    begin = address_of(begin_csr if source == "csr" else begin_dense, (x, places, values, places, n, n, values, places))
    kinds = (places, values, types.UniTuple(n, 3), n, values, n, n, places, n)
    if n_threads > 1:
        return begin, *addresses_for(predict_rows_of_thread, kinds), address_of_call()
    return begin, address_of(predict_rows_of_thread, kinds), 0, 0


@inlined
def _run(source, first_layer, out, table, space, team_cells, wanted, workers):
    """Run `predict_rows_of_thread`, here or on several threads."""
    head, cells = pointer(table, 0), pointer(team_cells, 0)
    plan = load_plan(head, 0)
    args = (
        head, pointer(space, 0), source, first_layer, pointer(out, 0), out.shape[0], out.shape[1], cells, wanted
    )  # fmt: skip
    if wanted == 1:
        call_at(plan.run, args)
        return
    renew_team(cells, wanted)
    call_at(plan.call_on_workers, (pointer_at(head, workers), plan.call, plan.run, store_arguments(args), wanted))


@cached_jit
def predict(x, out, table, space, team_cells, wanted, workers):
    """Compute the outputs for all rows of x, on one thread or on several.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_features)
        Inputs, C-ordered.
    out : ndarray of shape (n_samples, n_outputs)
        Becomes the activations of the last layer.
    table : ndarray of int64
        From `table_of`. To its cell STATUS, 0 before, each thread adds the number of rows that are not finite in the
        network's type, whose outputs have no meaning. CHANGED is added where nothing is computed.
    space : ndarray of the network's type
        Workspace, of the length from `lay_out` for each thread.
    team_cells : ndarray of int64
        From `threads.new_team`; they may have been used before.
    wanted : int64
        Number of threads.
    workers : int64
        `Workers.address`; 0 for one thread.
    """
    _run((address(pointer(x, 0), 0), NONE, NONE), NONE, out, table, space, team_cells, wanted, workers)


@cached_jit
def predict_csr(matrix, out, table, space, team_cells, wanted, workers):
    """Do what `predict` does, for the rows of a `CsrMatrix`, which are finite."""
    source = (
        address(pointer(matrix.indices, 0), 0), address(pointer(matrix.indptr, 0), 0),
        address(pointer(matrix.values, 0), 0),
    )  # fmt: skip
    _run(source, ONE, out, table, space, team_cells, wanted, workers)


# --- inputs that are mostly zero ---


@cached_jit
def predict_indexed(x, order, arrays, out, bad, block, gather_rows, team_cells, wanted):
    """Do what `predict` does with a packed network, leaving out zero inputs (see `fastbp.kernels.sparse`).

    Parameters
    ----------
    x : ndarray of uint8 of shape (n_samples, bytes of a sample)
        Inputs, C-ordered.
    order : ndarray of int64 of shape (n_samples,)
        0, 1, 2, ...
    arrays : NetArrays
        The network, and workspace of `block` rows for each thread.
    out, team_cells, wanted
        As in `predict`.
    bad : ndarray of int64 of shape (n_threads,)
        Becomes the number of rows that are not finite.
    block : int64
        Rows that go through the network together.
    gather_rows : int64
        From `addresses.gather_address`.
    """
    cells = pointer(team_cells, 0)
    rank = join_loose_team(cells, wanted)
    if rank < 0:
        return
    mode = flush_subnormals()
    net = point_at_net(arrays, block * wanted, rank, wanted)
    samples = Samples(
        pointer(x, 0), x.shape[1], gather_rows, pointer(x, 0), 0, pointer(x, 0), False, pointer(order, 0), x.shape[0],
        pointer(arrays.lines, rank * (arrays.lines.size // wanted)),
    )  # fmt: skip
    inputs, outputs = get_layer(net, 0), get_layer(net, net.n_layers - 1)
    results, first, n_samples = pointer(out, 0), rank * block, samples.n_seen
    n_bad = 0
    begin = next_ticket(cells) * block
    while begin < n_samples:
        m = min(block, n_samples - begin)
        gather(net, inputs, samples, begin - first, first, first + m)
        forward(net, first, first + m, False, NO_DRAW)
        for i in range(first, first + m):
            if not _all_finite(offset(net.space, inputs.input + i * inputs.input_row), inputs.fan_in):
                n_bad += 1
        a = offset(net.space, outputs.a + first * outputs.row)
        for i in range(m):
            for j in range(outputs.fan_out):
                store_scalar(results, (begin + i) * outputs.fan_out + j, load_scalar(a, i * outputs.row + j))
        begin = next_ticket(cells) * block
    bad[rank] = n_bad
    restore_subnormals(mode)
