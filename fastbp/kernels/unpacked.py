"""The products of a layer, with weights where the user sees them: row-major, so that edits count at the next call.

Panels of small layers, which stay in the caches, are read there for all rows (`plan.is_near`). Of larger ones, and for
the rows of one tile where a network does not stay there (`plan.is_far`), the register tiles of some rows read the
weights as fast as they come from memory: a few rows at a time, from left to right, or panel by panel
(`plan.STREAMED_ROWS`). Of many rows, the first tile packs them in panels for the others (`plan.MANY_TILES`). The
reduction is cut so that what is packed stays in the L2 cache. The last columns of a layer, which may end within a
panel, are copied before. A row's sums have the same bits in all kernels here.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba import from_dtype, types

from fastbp.codegen.jit import address_of, call_at, called_by_address, inlined, jit
from fastbp.codegen.memory import itemsize, lane_count, offset, pointer_at, record_loader
from fastbp.codegen.rows import ROW_VECTORS, row_kernel
from fastbp.codegen.tiles import MR, NV, STREAM_ROWS, micro_kernel_in_place
from fastbp.codegen.vectors import load_first, store
from fastbp.compat import array_fields
from fastbp.kernels.matmul import NONE, ONE, REPEATED, cut_into_tiles, tile_height
from fastbp.kernels.plan import (
    FEW_TILES,
    MANY_TILES,
    MIN_STREAMED_BYTES,
    STREAMED_ROWS,
    cut_weights,
    is_far,
    is_near,
    is_streamed,
)
from fastbp.kernels.threads import share


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


load_plain_layer = record_loader(PlainLayer)


def describe_layer(coef, intercept, activation, coefficients, network):
    """Return what these kernels know of a layer.

    Parameters
    ----------
    coef, intercept : ndarray
        Weights and biases, C-ordered and of the network's type; they must outlive the result.
    activation : Activation
        The activation.
    coefficients : ndarray of int64 of shape (2,)
        The bits of its coefficients.
    network : Network
        The network.

    Returns
    -------
    PlainLayer
    """
    (fan_in, fan_out), size = coef.shape, network.dtype.itemsize
    c0, c1 = coefficients
    cut = cut_weights(fan_in, fan_out, size)
    return PlainLayer(
        coef.ctypes.data, intercept.ctypes.data, array_fields(coef), array_fields(intercept), fan_in, fan_out,
        cut.n_parts, cut.n_pieces, is_streamed(fan_in, fan_out, size), is_near(fan_in, fan_out, size),
        activation.forward_address(network.dtype), activation.by_rows, c0, c1, network.row_stride(fan_in),
        network.row_stride(fan_out),
    )  # fmt: skip


def buffer_size(network):
    """Return how many numbers the workspace of `set_products` has."""
    cuts = (cut_weights(*shape, network.dtype.itemsize) for shape in pairwise(network.units))
    # The sums of the tiles that read the weights first, or the biases of the last columns; and a copy of weights.
    return max(FEW_TILES * MR * cut.row + cut.size for cut in cuts)


def needed_panels_address(units, network):
    """Return the address of `multiply_panels`, or 0 where no layer of these units needs what takes long to compile."""
    size = network.dtype.itemsize
    far = is_far(units, size)
    is_needed = any(
        fan_out >= network.panel and (far or not is_near(fan_in, fan_out, size)) for fan_in, fan_out in pairwise(units)
    )
    return panels_address(network.dtype) if is_needed else 0


def panels_address(dtype):
    """Return the address of `multiply_panels` for networks of a type."""
    n, values = types.int64, types.CPointer(from_dtype(dtype))
    return address_of(multiply_panels, (n,) * 7 + (values, values, values, n, values, n, values))


class Columns(NamedTuple):
    """Some columns of a layer: whole panels, and the last ones, which may not fill a panel."""

    left: int  # the first column
    n_panels: int  # whole panels
    right: int  # the column after the last


@inlined
def share_columns(layer, panel, team):
    """Return one thread's columns of a layer."""
    left, right = share(layer.fan_out, panel, team.rank, team.size)
    return Columns(left, (right - left) // panel, right)


@inlined
def set_products(plan, layer, m, columns, inputs, a, buffer):
    """Set the pre-activations of some columns of a layer for m rows.

    `plan` has the addresses `multiply` and `multiply_panels`, and `is_far`; see `prediction.Plan`.
    """
    if m == 1 and not layer.is_streamed:
        _multiply_row(layer, columns, inputs, a)
    else:
        _multiply(plan, layer, m, columns, inputs, a, buffer)


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
    tiling, k, width = cut_into_tiles(m), last - first, n_panels * panel
    has_short_rows = n * itemsize(a) < MIN_STREAMED_BYTES
    most = MANY_TILES if has_short_rows else FEW_TILES
    n_tiles = tiling.n_tiles if tiling.n_tiles <= most else ONE
    top = m if n_tiles == tiling.n_tiles else tile_height(tiling, 0)
    is_part = n - width >= panel
    by_panels = m == top and (m > STREAMED_ROWS or is_part) and has_short_rows
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
def _copy_rows(n_rows, n, source, source_row, out, width):
    """Copy rows of n numbers, at most a panel, one after the other, padded with zeros to whole vectors."""
    padded = (n + width - 1) // width * width
    for p in range(n_rows):
        for j in range(0, padded, width):
            store(out, p * padded + j, load_first(source, p * source_row + j, n - j))
