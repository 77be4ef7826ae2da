"""The forward pass alone: many samples in blocks, or a few of them without any preparation."""

from numba import prange

from fastbp.activations import SOFTMAX, activate, softmax
from fastbp.kernels.backprop import FAN_OUT, ROW, SOURCE, SOURCE_ROW, A, forward, take_sample
from fastbp.kernels.intrinsics import (
    ROW_VECTORS,
    call_at,
    flush_subnormals,
    lane_count,
    part,
    pointer,
    pointer_at,
    restore_subnormals,
    row_kernel,
    shift,
)
from fastbp.kernels.jit import cached_jit, inlined
from fastbp.kernels.simd import fma, load, splat, total
from fastbp.kernels.threads import join_team, next_ticket


@inlined
def _all_finite(row, n):
    """Whether n numbers, padded with zeros to whole vectors, are all finite."""
    sums = splat(row, 0.0)
    for j in range(0, n, lane_count(row)):
        sums = fma(load(row, j), 0.0, sums)  # zero times infinity, or NaN, is NaN
    return total(sums) == 0


@cached_jit
def predict(x, table, coefficients, params, space, marks, listed, out, bad, block, team, wanted):
    """Compute the outputs for all rows of x, on each thread of a team until all are done.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_features)
        Inputs, C-ordered.
    table, coefficients, params, space, marks, listed
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
    first_layer = table[0]
    last_layer = table[table.shape[0] - 1]
    lists = pointer(listed, rank * (listed.size // wanted))
    # Whoever is free takes the next block: a thread that loses its processor for a while holds up one block only.
    begin = next_ticket(team) * block
    while begin < x.shape[0]:
        m = min(block, x.shape[0] - begin)
        for i in range(m):
            take_sample(x, begin + i, space, first_layer, rank * block + i)
            row = pointer(space, first_layer[SOURCE] + (rank * block + i) * first_layer[SOURCE_ROW])
            if not _all_finite(row, x.shape[1]):
                bad[rank] += 1
        n_marked = block * wanted
        forward(table, coefficients, params, space, rank * block, rank * block + m, marks, n_marked, lists)
        for i in range(m):
            a = part(space, last_layer[A] + (rank * block + i) * last_layer[ROW], last_layer[FAN_OUT])
            for j in range(a.size):
                out[begin + i, j] = a[j]
        begin = next_ticket(team) * block
    restore_subnormals(mode)


@cached_jit(parallel=True)
def predict_on_threads(
    address, x, table, coefficients, params, space, marks, listed, out, bad, block, team, wanted
):  # fmt: skip
    """Call `predict`, whose machine code is at `address`, on each thread."""
    for _ in prange(wanted):
        args = (x, table, coefficients, params, space, marks, listed, out, bad, block, team, wanted)
        call_at(address, args)


@cached_jit
def predict_few(x, layers, coefficients, space, out):
    """Compute the outputs for a few rows straight from the arrays that the user sees.

    Packing the weights would take longer than to use them for some rows. The results have the same bits.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_features)
        Inputs, C-ordered, of the network's type.
    layers : ndarray of int64 of shape (n_layers, 5)
        Address of the weights, (fan_in, fan_out) and row-major; address of the biases; fan_in; fan_out; code of
        the activation.
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
    width = lane_count(pointer(space, 0))
    widest = space.shape[1]
    n_inputs = x.shape[1]
    finite = True
    for i in range(x.shape[0]):
        source = pointer(space, 0)
        row = part(space, 0, n_inputs)
        for j in range(n_inputs):
            row[j] = x[i, j]
        for j in range(n_inputs, (n_inputs + width - 1) // width * width):
            space[0, j] = 0
        finite &= _all_finite(source, n_inputs)
        for index in range(layers.shape[0]):
            fan_in, fan_out, code = layers[index, 2], layers[index, 3], layers[index, 4]
            weights = pointer_at(source, layers[index, 0])
            biases = pointer_at(source, layers[index, 1])
            a = pointer(space, (index + 1) % 2 * widest)
            for j in range(0, fan_out, ROW_VECTORS * width):
                n = min(ROW_VECTORS * width, fan_out - j)
                row_kernel(n, fan_in, source, shift(weights, j), fan_out, shift(biases, j), shift(a, j))
            padded = (fan_out + width - 1) // width * width
            if code == SOFTMAX:
                softmax(a, fan_out)
            else:
                activate(code, coefficients[index, 0], coefficients[index, 1], a, a, padded)
            source = a
        result = part(space, layers.shape[0] % 2 * widest, out.shape[1])
        for j in range(result.size):
            out[i, j] = result[j]
    restore_subnormals(mode)
    return finite
