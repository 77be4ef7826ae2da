"""Gathering samples: their inputs are copied into the workspace in the order of the epoch, and prefetched before."""

import numpy as np

from fastbp.codegen.jit import call_at, called_by_address, inlined, jit, typed_inlined
from fastbp.codegen.memory import address, itemsize, lane_count, load_scalar, offset, prefetch
from fastbp.codegen.target import CACHE_LINE
from fastbp.codegen.tiles import MR, NV
from fastbp.codegen.vectors import load_converted, store
from fastbp.kernels.matmul import MULTIPLY_PREFETCH, ONE, REPEATED, cut_into_tiles, matmul, tile_height
from fastbp.kernels.prefetch import append_lines
from fastbp.kernels.records import get_layer

# The first cache lines of a sample's inputs are prefetched where the product is not fused with the gathering.
FEW_LINES = 4
# Rows between the sample that is gathered and the one that is prefetched: time enough for it to arrive, and not so much
# that the cache evicts it again.
PREFETCH_ROWS = 2 * MR
# The most cache lines of targets that are prefetched: in longer rows the processor fetches enough ahead by itself.
MAX_TARGET_LINES = 64


@called_by_address
def gather_rows(x, n, order, count, out, row):
    """Copy n inputs of each of `count` samples, converted to the network's type, padded with zeros to whole vectors."""
    for i in range(count):
        sample, place = load_scalar(order, i) * n, i * row
        for j in range(0, n, lane_count(out)):
            store(out, place + j, load_converted(x, sample + j, n - j, out))


@inlined
def gather(net, layer, samples, position, first, last):
    """Copy the inputs of samples [position + first, position + last) of the order to rows [first, last)."""
    args = (
        samples.x, layer.fan_in, offset(samples.order, position + first), last - first,
        offset(net.space, layer.input + first * layer.input_row), layer.input_row,
    )  # fmt: skip
    call_at(samples.gather, args)


@inlined
def _prefetch_targets(samples, sample):
    """Prefetch the cache lines of the targets of a sample; of very many, the first and the last."""
    begin, n = sample * samples.n_outputs, samples.n_outputs
    step = CACHE_LINE // itemsize(samples.y)
    if n > MAX_TARGET_LINES * step:
        step = n
    for j in range(0, n, step):
        prefetch(samples.y, begin + j)
    prefetch(samples.y, begin + n - 1)


@typed_inlined
def prefetch_samples(samples, begin, end):
    """Prefetch samples [begin, end) of the order: targets, the first FEW_LINES lines of the inputs and the last."""
    for i in range(begin, end):
        sample = load_scalar(samples.order, min(i, samples.n_seen - 1))
        _prefetch_targets(samples, sample)
        for j in range(0, min(samples.x_row, FEW_LINES * CACHE_LINE), CACHE_LINE):
            prefetch(samples.x, sample * samples.x_row + j)
        prefetch(samples.x, (sample + 1) * samples.x_row - 1)


@inlined
def _list_samples(samples, begin, end, capacity):
    """List up to `capacity` cache lines of the inputs of samples [begin, end) of the order; return how many."""
    count = np.int64(0)  # not a literal, for which its users would be compiled once more
    for i in range(begin, end):
        sample = load_scalar(samples.order, min(i, samples.n_seen - 1))
        _prefetch_targets(samples, sample)
        x = address(samples.x, sample * samples.x_row)
        count = append_lines(x, samples.x_row, samples.lines, count, capacity)
    return count


@inlined
def is_fused(net, n_rows):
    """Whether to gather and multiply at once: the product must have steps enough, about one for each cache line."""
    return not net.is_sparse and not net.is_csr and n_rows >= MR and get_layer(net, 0).fan_in >= 2 * MR


@jit
def gather_and_multiply(net, samples, position, begin, end, first, last, stride):
    """Gather inputs to rows [begin, end) and compute z^1, tile by tile, and prefetch the samples of later rows.

    Parameters
    ----------
    net, samples : Net, Samples
        The network, and what it learns from.
    position : int64
        Place of row 0 in the order.
    begin, end : int64
        Rows to compute.
    first, last : int64
        All rows of this thread.
    stride : int64
        Distance in the order to the same rows of the next chunk.
    """
    layer = get_layer(net, 0)
    width = lane_count(net.space)
    k, row = layer.fan_in, layer.input_row
    inputs = offset(net.space, layer.input)
    weights, bias = offset(net.params, layer.weights), offset(net.params, layer.bias)
    # The first panel; the others follow without gathering.
    nv = min(NV, layer.padded_out // width)
    tiling = cut_into_tiles(end - begin)
    i = begin
    for tile in range(tiling.n_tiles):
        rows = tile_height(tiling, tile)
        gather(net, layer, samples, position, i, i + rows)
        # Past the last row of this thread, its rows of the next chunks follow; a tile across the border may prefetch a
        # few rows of another thread.
        batches, upcoming_row = divmod(i - first + PREFETCH_ROWS, last - first)
        upcoming = position + first + batches * stride + upcoming_row
        n_lines = _list_samples(samples, upcoming, upcoming + rows, k)
        args = (
            rows, nv, k, samples.lines, n_lines, offset(inputs, i * row), row, ONE, weights, nv * width, bias, REPEATED,
            offset(net.space, layer.z + i * layer.row), layer.row,
        )  # fmt: skip
        call_at(load_scalar(net.kernels, MULTIPLY_PREFETCH), args)
        i += rows
    done = nv * width
    if done < layer.padded_out:
        matmul(
            net.kernels, end - begin, layer.padded_out - done, k, offset(inputs, begin * row), row,
            offset(weights, done * layer.padded_in), layer.padded_in, offset(bias, done), REPEATED,
            offset(net.space, layer.z + begin * layer.row + done), layer.row,
        )  # fmt: skip
