"""The forward pass alone, from the arrays that the user sees.

The weights are used where they are, row-major, so that edits count at the next call. Panels of small layers, which stay
in the caches, are read there for all rows (`plan.is_near`). Of larger ones, and for the rows of one tile where a
network does not stay there (`plan.is_far`), the register tile of the first rows reads the weights as fast as they come
from memory: a few rows at a time, from left to right, or panel by panel (`plan.STREAMED_ROWS`). It packs them in panels
for the tiles of the other rows. The reduction is cut so that what is packed stays in the L2 cache. The last columns of
a layer, which may end within a panel, are copied before. A row's outputs have the same bits in all kernels here.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba import from_dtype, types

from fastbp.activations import activate
from fastbp.codegen.atomics import atomic_add, atomic_load
from fastbp.codegen.jit import address_of, cached_jit, call_at, called_by_address, inlined, jit, store_arguments
from fastbp.codegen.memory import (
    address,
    float_of_bits,
    itemsize,
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
from fastbp.codegen.tiles import MR, NV, STREAM_ROWS, micro_kernel_in_place
from fastbp.codegen.vectors import fma, load, load_converted, load_first, splat, store, total
from fastbp.compat import array_fields
from fastbp.kernels.backprop import forward
from fastbp.kernels.csr import sum_rows
from fastbp.kernels.gather import gather
from fastbp.kernels.matmul import MULTIPLY, NONE, ONE, REPEATED, cut_into_tiles, tile_height
from fastbp.kernels.plan import (
    FEW_TILES,
    MIN_STREAMED_BYTES,
    STREAMED_ROWS,
    cut_weights,
    is_far,
    is_near,
    is_streamed,
)
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


class PlainLayer(NamedTuple):
    """What these kernels know of a layer; all are int64."""

    weights: int  # address of the (fan_in, fan_out) weights, row-major
    bias: int  # address of the biases
    weights_fields: int  # address of what NumPy knows of these arrays, see `compat.array_fields`
    bias_fields: int
    fan_in: int
    fan_out: int
    n_parts: int  # of whole panels of columns, see `plan.Cut`
    n_pieces: int
    is_streamed: int  # see `plan.is_streamed`
    is_near: int  # see `plan.is_near`; a network that `is_far` has no such layers for the rows of a single tile
    forward: int  # as in `network.Layer`
    by_rows: int
    c0: int  # bits of the coefficients of the activation
    c1: int
    input_row: int  # row stride of its inputs in the workspace
    row: int  # row stride of its outputs


load_plan, load_plain_layer = record_loader(Plan), record_loader(PlainLayer)


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
    size = network.dtype.itemsize
    multiplied = network.units[source == "csr" :]  # `begin_csr` multiplies the first layer
    far = is_far(multiplied, size)
    needs_panels = any(
        fan_out >= network.panel and (far or not is_near(fan_in, fan_out, size))
        for fan_in, fan_out in pairwise(multiplied)
    )
    panels = panels_address(network.dtype) if needs_panels else 0
    table = [*Plan(len(coefs), 0, kernels[MULTIPLY], panels, far, is_pair, 0, 0, 0, *addresses), 0]
    bits = network.coefficients.view(np.int64)
    layers = zip(coefs, intercepts, network.activations, bits, strict=True)
    for coef, intercept, activation, (c0, c1) in layers:
        fan_in, fan_out = coef.shape
        cut = cut_weights(fan_in, fan_out, size)
        table += PlainLayer(
            coef.ctypes.data, intercept.ctypes.data, array_fields(coef), array_fields(intercept), fan_in, fan_out,
            cut.n_parts, cut.n_pieces, is_streamed(fan_in, fan_out, size), is_near(fan_in, fan_out, size),
            activation.forward_address(network.dtype), activation.by_rows, c0, c1, network.row_stride(fan_in),
            network.row_stride(fan_out),
        )  # fmt: skip
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
    cuts = (cut_weights(*shape, network.dtype.itemsize) for shape in pairwise(network.units))
    # The sums of the tiles that read the weights first, or the biases of the last columns; and a copy of weights.
    buffer = max(FEW_TILES * MR * cut.row + cut.size for cut in cuts)
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
def _copy_rows(n_rows, n, source, source_row, out, width):
    """Copy rows of n numbers, at most a panel, one after the other, padded with zeros to whole vectors."""
    padded = (n + width - 1) // width * width
    for p in range(n_rows):
        for j in range(0, padded, width):
            store(out, p * padded + j, load_first(source, p * source_row + j, n - j))


class Columns(NamedTuple):
    """Some columns of a layer: whole panels, and the last ones, which may not fill a panel."""

    left: int  # the first column
    n_panels: int  # whole panels
    right: int  # the column after the last


@inlined
def _share_columns(layer, panel, team):
    """Return one thread's columns of a layer."""
    left, right = share(layer.fan_out, panel, team.rank, team.size)
    return Columns(left, (right - left) // panel, right)


@jit
def _multiply(plan, layer, m, columns, inputs, a, buffer):
    """Multiply m rows with some columns of the weights of a layer, and add the biases."""
    panel = NV * lane_count(a)
    n_panels = columns.n_panels
    is_near = layer.is_near and (m > MR or not plan.is_far)
    if is_near:
        _multiply_near_panels(plan, layer, m, columns.left, n_panels, inputs, a)
    for part in range(0 if is_near else layer.n_parts):
        left, right = n_panels * part // layer.n_parts, n_panels * (part + 1) // layer.n_parts
        for piece in range(layer.n_pieces if left < right else 0):
            first, last = _piece_of(layer, piece)
            args = (
                plan.multiply, layer.fan_out, m, columns.left + left * panel, right - left, first, last,
                pointer_at(a, layer.weights), pointer_at(a, layer.bias), inputs, layer.input_row, a, layer.row, buffer,
            )  # fmt: skip
            call_at(plan.multiply_panels, args)
    rest = columns.left + n_panels * panel
    for piece in range(layer.n_pieces if rest < columns.right else 0):
        first, last = _piece_of(layer, piece)
        _multiply_last_columns(plan, layer, m, rest, first, last, inputs, a, buffer)


@inlined
def _piece_of(layer, piece):
    """Return the first row of a piece of the weights, and that of the next."""
    return layer.fan_in * piece // layer.n_pieces, layer.fan_in * (piece + 1) // layer.n_pieces


@inlined
def _multiply_near_panels(plan, layer, m, left, n_panels, inputs, a):
    """Set the products with whole panels of weights, which are read where they are."""
    panel, n = NV * lane_count(a), layer.fan_out
    weights, bias = pointer_at(a, layer.weights), pointer_at(a, layer.bias)
    for j in range(left, left + n_panels * panel, panel):
        args = (
            m, np.int64(NV), layer.fan_in, inputs, layer.input_row, ONE, offset(weights, j), n, offset(bias, j),
            REPEATED, offset(a, j), layer.row,
        )  # fmt: skip
        call_at(plan.multiply, args)


@called_by_address
def multiply_panels(multiply, n, m, left, n_panels, first, last, weights, bias, inputs, input_row, a, row, buffer):
    """Add the products of rows with rows [first, last) of some panels of weights, after the biases or what is in `a`.

    Parameters
    ----------
    multiply : int64
        The address of `matmul.multiply_panel`.
    n, m : int64
        Units of the layer, and rows of the inputs.
    left, n_panels : int64
        The first column of the panels, and their number.
    first, last : int64
        The rows of the weights, and columns of the inputs.
    weights, bias : pointer
        Those of the layer. Where `first` is 0, the sums begin with the biases.
    inputs, input_row : pointer, int64
        The inputs of the layer and their row stride.
    a, row : pointer, int64
        The outputs and their row stride.
    buffer : pointer
        Workspace for these weights.
    """
    panel = NV * lane_count(a)
    here, weights = offset(a, left), offset(weights, left)
    d, d_row = here, row
    if first == 0:
        d, d_row = offset(bias, left), REPEATED
    tiling = cut_into_tiles(m)
    n_tiles = tiling.n_tiles if tiling.n_tiles <= FEW_TILES else ONE
    top = m if n_tiles == tiling.n_tiles else tile_height(tiling, 0)
    k, width = last - first, n_panels * panel
    is_part = n - width >= panel
    by_panels = m <= MR and (m > STREAMED_ROWS or is_part) and n * itemsize(a) < MIN_STREAMED_BYTES
    together = k if by_panels else np.int64(STREAM_ROWS)
    # Sums that are loaded and stored for all these rows lie apart from those of another thread: the processor, which
    # fetches ahead, would take these away from it each time.
    sums, copy = buffer, offset(buffer, top * width)
    copy_panel = k * panel if m > top else NONE
    for p in range(first, last, together):
        start, start_row = (d, d_row) if p == first else (sums, width)
        end, end_row = (sums, width) if p + together < last else (here, row)
        i = np.int64(0)
        for tile in range(n_tiles):
            rows = tile_height(tiling, tile)
            micro_kernel_in_place(
                rows, n_panels, min(together, last - p), offset(inputs, p + i * input_row), input_row,
                offset(weights, p * n), n, offset(start, i * start_row), start_row, offset(end, i * end_row), end_row,
                offset(copy, (p - first) * panel), copy_panel,
            )  # fmt: skip
            i += rows
    if m == top:
        return
    others, others_start = offset(here, top * row), offset(d, top * d_row)
    for j in range(0, width, panel):
        args = (
            m - top, np.int64(NV), k, offset(inputs, first + top * input_row), input_row, ONE,
            offset(copy, j * k), panel, offset(others_start, j), d_row, offset(others, j), row,
        )  # fmt: skip
        call_at(multiply, args)


def panels_address(dtype):
    """Return the address of `multiply_panels` for networks of a type; small ones do without."""
    n, values = types.int64, types.CPointer(from_dtype(dtype))
    return address_of(multiply_panels, (n,) * 7 + (values, values, values, n, values, n, values))


@inlined
def _multiply_last_columns(plan, layer, m, left, first, last, inputs, a, buffer):
    """Do that for the last columns, which do not fill a panel."""
    width, n, row = lane_count(a), layer.fan_out, layer.row
    d, d_row, packed = offset(a, left), row, offset(buffer, NV * width)
    if first == 0:
        d, d_row = buffer, REPEATED
        _copy_rows(1, n - left, offset(pointer_at(a, layer.bias), left), 0, d, width)
    _copy_rows(last - first, n - left, offset(pointer_at(a, layer.weights), first * n + left), n, packed, width)
    nv = (n - left + width - 1) // width
    args = (
        m, nv, last - first, offset(inputs, first), layer.input_row, ONE, packed, nv * width, d, d_row,
        offset(a, left), row,
    )  # fmt: skip
    call_at(plan.multiply, args)


@jit
def _multiply_row(layer, columns, inputs, a):
    """Multiply one row, as `_multiply` does."""
    n, right, step = layer.fan_out, columns.right, ROW_VECTORS * lane_count(a)
    weights, bias = pointer_at(a, layer.weights), pointer_at(a, layer.bias)
    for j in range(columns.left, right, step):
        row_kernel(min(step, right - j), layer.fan_in, inputs, offset(weights, j), n, offset(bias, j), offset(a, j))


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


@inlined
def _compute_layer(plan, layer, m, columns, inputs, a, buffer):
    """Set the pre-activations of some columns of a layer for m rows."""
    if m == 1 and not layer.is_streamed:
        _multiply_row(layer, columns, inputs, a)
    else:
        _multiply(plan, layer, m, columns, inputs, a, buffer)


@jit
def pass_rows(plan, layers, first_layer, m, inputs, a, buffer, out, n_columns, cells, team):
    """Take m rows through the layers from `first_layer` on; `inputs` and `a` take turns as memory for outputs.

    Each thread of the team has some columns of each layer, to which it applies an activation of single units. One of
    whole rows it applies to some rows, when all threads are done with their columns.
    """
    begin, end = share(m, ONE, team.rank, team.size)
    for l in range(first_layer, plan.n_layers):
        layer = load_plain_layer(layers, l)
        columns = _share_columns(layer, NV * lane_count(a), team)
        by_columns = team.size > 1 and not layer.by_rows
        barrier(cells, team)
        if columns.left < columns.right:
            _compute_layer(plan, layer, m, columns, inputs, a, buffer)
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
