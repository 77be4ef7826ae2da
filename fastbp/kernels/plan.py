"""What is computed how: the work of a network, the sizes of its workspace, and which kernel pays.

All of it is decided by the network and the batch before training; `benchmarks/choices.py` measures what the constants
are made of.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fastbp.codegen.bitmask import MASK_BITS
from fastbp.codegen.caches import L2_BYTES
from fastbp.codegen.target import CACHE_LINE, VECTOR_BITS
from fastbp.codegen.tiles import MR, NV

# --- work ---


def forward_work(units):
    """Count the floating point operations of the forward pass of one sample."""
    return 2.0 * _weight_count(units)


def _weight_count(units):
    return sum(fan_in * fan_out for fan_in, fan_out in pairwise(units))


def training_work(units):
    """Count those of a training step for one sample: the first layer needs no input delta."""
    return 3 * forward_work(units) - 2.0 * units[0] * units[1]


# Operations of the update of one parameter, about.
UPDATE_WORK = 10.0

# --- chunks of a batch ---

# Bytes of the workspace: a larger batch goes through the network in chunks of rows.
MAX_WORKSPACE = 32 * 2**20
# The most rows of a chunk; of many threads, so many for each. The memory of a larger one is not in the cache when it is
# used again, and a panel of its deltas, which each block of the weight gradient goes through, not in the L2 cache.
MAX_CHUNK_ROWS, THREAD_ROWS = 1024, 256
# Operations of a chunk, some tenths of a second: between two of them Ctrl-C is answered.
MAX_CHUNK_WORK = 2e10
# The least rows of a workspace: each chunk goes through all weights, their gradient and its sums.
MIN_CHUNK_ROWS = 128


def chunk_rows(batch_size, most, n_threads, *, in_cache=True):
    """Return how many rows each chunk of a batch has. The last one has fewer, if the batch has not a multiple of them.

    Parameters
    ----------
    batch_size : int
        Samples of the batch.
    most : int
        The most rows of the workspace.
    n_threads : int
        Threads that share the rows of a chunk.
    in_cache : bool, default=True
        Whether a chunk has at most MAX_CHUNK_ROWS rows too, or THREAD_ROWS for each thread.
    """
    if in_cache:
        most = min(most, max(MAX_CHUNK_ROWS, THREAD_ROWS * n_threads))
    return -(-batch_size // -(-batch_size // most))


def workspace_rows(network, work):
    """Return how many rows the workspace may have at most, for so much work of each sample."""
    return max(MIN_CHUNK_ROWS, min(max(256, MAX_WORKSPACE // network.row_bytes), int(MAX_CHUNK_WORK / max(work, 1.0))))


# For so many rows a panel of weights is used, which may come from memory: the multiply-adds for each of its cache lines
# take 16 * MR cycles, at two vectors in a cycle. Not fewer with vectors of 128 bits.
PANEL_USERS = 16 * MR * max(1, VECTOR_BITS // (4 * CACHE_LINE))
# Rows that go through the network together in prediction.
MAX_PREDICTION_ROWS = PANEL_USERS
# The least rows for each thread: all weights are read for them, which takes about as long for fewer.
MIN_PREDICTION_ROWS = 4
# One row takes as long as so many at least: the weights are read for it, at best one vector in a cycle.
READING_ROWS = 2


# Cycles until a sleeping thread has begun, has its weights in its cache, and is waited for in the end: some 150
# microseconds. And what it takes to share the work with one that is awake.
WAKING_CYCLES, SHARING_CYCLES = 500_000, 5_000


def work_of_cycles(cycles, itemsize):
    """Return how many floating point operations take so long: the register tile has two multiply-adds in a cycle."""
    return cycles * 4.0 * (VECTOR_BITS // 8 // itemsize)


# How much more than its part of the work one thread may have where threads share columns, which are whole panels; and
# how much slower they may be where they wait for each other at each layer.
MAX_IMBALANCE, WAITING = 1.3, 1.25


def sharing_threads(units, itemsize, n_threads):
    """Return how many threads can share the columns of all layers about equally: the most, 1 if no two can."""
    works = [fan_in * fan_out for fan_in, fan_out in pairwise(units)]
    panels = [-(-n * itemsize // PANEL_BYTES) for n in units[1:]]
    for n_sharing in range(n_threads, 1, -1):
        most = sum(work * -(-n // n_sharing) / n for work, n in zip(works, panels, strict=True))
        if most * n_sharing <= MAX_IMBALANCE * sum(works):
            return n_sharing
    return 1


def shares_columns(n, n_threads, n_sharing, n_bytes):
    """Decide whether threads that are awake share the columns of each layer, not the rows.

    Each then reads a part of the weights only. A tile has MR rows, whether they are there or not.

    Parameters
    ----------
    n, n_threads : int
        Rows, and threads that could share them.
    n_sharing : int
        Threads that can share the columns, see `sharing_threads`.
    n_bytes : int
        Bytes of the weights.
    """
    if n < n_threads * MR and n_sharing == n_threads:
        return True
    rows = -(-n // n_threads)
    is_large = n < n_threads * MR or n_bytes > L2_BYTES // 2
    return is_large and WAITING * -(-n // MR) < n_sharing * -(-rows // MR)


def prediction_rows(n, n_threads):
    """Return how many of n rows go through the network together: about as many each time, and for each thread."""
    n_blocks = -(-n // MAX_PREDICTION_ROWS)
    return -(-n // (-(-n_blocks // n_threads) * n_threads))


def prediction_capacity(block):
    """Return for how many rows a workspace is made, which later calls may use: one tile, or the most rows."""
    return MR if block <= MR else MAX_PREDICTION_ROWS


# --- blocks of a weight matrix ---

# Bytes in each row of the widest panel.
PANEL_BYTES = NV * VECTOR_BITS // 8
# Rows of a weight matrix whose gradient is summed and used at once. With the widest panel the gradient,
# the parameters and two moments fill 16 KiB, so that all are in the L1 cache when they are updated. A
# multiple of every number of lanes, and fixed, as the sums of squares are taken over these blocks.
BLOCK_ROWS = 16
# The most cache lines of a block, and the register tiles that its gradient is made of.
BLOCK_LINES = BLOCK_ROWS * PANEL_BYTES // CACHE_LINE
BLOCK_TILES = -(-BLOCK_ROWS // MR)
# How many blocks before its own update a block is prefetched, where batches have too few samples for one block ahead.
BLOCKS_AHEAD = 2


def scratch_size(lanes, row=0):
    """Return the numbers of workspace that a thread needs for the gradient of a block, and of a row after it."""
    return lanes + BLOCK_ROWS * NV * lanes + row


# The most samples of a batch whose gradient is not stored (`few`), by the number of arrays that an update reads and
# writes: the more it has to do, the later the processor begins the sums for the next weights. MEDIUM bytes of
# parameters or more take longer to move.
MAX_FEW, MAX_FEW_MEDIUM = {1: 12, 2: 8, 3: 4}, 8
# The same for the first layer where it has one output, of which a vector of weights holds one.
MAX_FEW_ONE_OUTPUT = 8


def is_few(n_rows, n_bytes, n_arrays):
    """Decide whether a batch has so few samples.

    Parameters
    ----------
    n_rows : int
        Samples of the batch.
    n_bytes : int
        Bytes of the parameters.
    n_arrays : int
        1 for sgd without momentum, which reads and writes the parameters alone; 2 with momentum, 3 for Adam.
    """
    return n_rows <= max(MAX_FEW[n_arrays], MAX_FEW_MEDIUM if n_bytes >= MEDIUM else 0)


# --- transposed weights ---

# Bytes of the transpose that are made at once, and used in the L1 cache: weights of so many rows of blocks.
TRANSPOSED_BYTES, TRANSPOSED_BLOCKS = 2**15, 4
# The most samples for which a square of weights is transposed and used at once. With two loads in a cycle, as of
# vectors of 512 bits, more would wait for them.
FEW_TRANSPOSED = 2 if VECTOR_BITS == 512 else 8
# To transpose weights takes about as long as to multiply them with so many rows, to update them as with so many.
ROWS_OF_TRANSPOSE, ROWS_OF_UPDATE = 8, 32


def piece_columns(itemsize):
    """Return how many columns of a weight matrix are transposed at once: whole panels of any width."""
    return TRANSPOSED_BYTES // itemsize // (TRANSPOSED_BLOCKS * BLOCK_ROWS)


def transposed_size(itemsize):
    """Return the numbers of workspace that a thread needs for transposed weights."""
    return TRANSPOSED_BYTES // itemsize


def is_by_columns(n_high, n_threads, n_rows, weights_bytes, deltas_bytes):
    """Decide whether each thread propagates the deltas of a batch to some units, or some samples' deltas to all units.

    In the first case it takes the rows of the weights that it then updates, but some threads may have more of them than
    others, and it reads the deltas of all samples for each piece. In the second case it transposes all weights, and not
    its part, for each of the parts in which its samples go through the network.

    Parameters
    ----------
    n_high : int
        Rows of blocks of the weight matrix, which the threads share in the first case.
    n_threads : int
        The most threads.
    n_rows : int
        Samples of the batch.
    weights_bytes, deltas_bytes : int
        Bytes of the weights, and of the deltas that are multiplied with them.
    """
    if weights_bytes <= L2_BYTES // 2 < deltas_bytes:  # which stay in the cache, and which do not
        return False
    excess = -(-n_high // n_threads) * n_threads / n_high - 1  # of the time for two products and the update
    return excess * (2 * n_rows + ROWS_OF_UPDATE) <= ROWS_OF_TRANSPOSE * (n_threads - 1)


class Piece(NamedTuple):
    """Weights that are transposed, multiplied and updated together."""

    n_panels: int
    n_high: int  # rows of blocks


def cut_transposed(n_high, n_panels, itemsize, few_rows):
    """Cut `n_high` rows of blocks of a weight matrix with `n_panels` panels into pieces of about the same height.

    For a few samples, where to move the weights takes most of the time, it is one panel, as high as half of the L2
    cache lets it be: they are read and written in the order of memory.
    """
    most = max(1, reduction_block(PANEL_BYTES) // BLOCK_ROWS) if few_rows else TRANSPOSED_BLOCKS
    width = 1 if few_rows else piece_columns(itemsize) * itemsize // PANEL_BYTES
    return Piece(min(width, n_panels), -(-n_high // -(-n_high // most)))


# --- blocks for the caches ---

# After Low et al., "Analytical modeling is enough for high-performance BLIS", ACM TOMS 43(2), 2016, with one
# difference. BLIS cuts the reduction so that a panel of B stays in the L1 cache: its KC is some 256. C is then read and
# written once more for each piece. Here the panel is one stream, which arrives from the L2 cache as fast as it is used:
# it is that cache in which a panel must stay.


def reduction_block(row):
    """Return into pieces of which length a reduction is cut: KC of BLIS.

    Parameters
    ----------
    row : int
        Bytes in each row of a panel of B, which then fills half of the L2 cache.
    """
    return L2_BYTES // 2 // row


def pass_rows(network):
    """Return how many rows of a batch go through both passes together: MC of BLIS.

    Their activations and deltas fill half of the L2 cache, but for wide networks.
    """
    return max(PANEL_USERS, L2_BYTES // 2 // network.row_bytes // MR * MR)


# --- row-major weights, in prediction ---

# Bytes of a row of weights that are read one after the other: more would not leave the sums of a tile in the L1 cache.
STREAM_BYTES = 2048
# The most tiles of rows that all read the weights where they are; the second number is for those that do it panel by
# panel, see below. More read those that the first has packed.
FEW_TILES, MANY_TILES = 2, 16
# The most rows of a tile that go through a few rows of weights at a time, from left to right, as these lie in memory,
# where all columns are read. More rows, and those that read a part of the columns, go through one panel after the
# other: their sums then stay in registers. But not where a row of weights has so many bytes that each row of a panel is
# on another page of memory; and not where a row of a panel is a single cache line.
STREAMED_ROWS, MIN_STREAMED_BYTES = 4, 4096 if PANEL_BYTES > CACHE_LINE else 0


def is_near(fan_in, fan_out, itemsize):
    """Decide whether all tiles of rows read the panels of a layer where they are.

    They stay in the L2 cache, with the inputs. Where a row of a panel is several cache lines, they arrive in time from
    the next cache, too; but not for a single tile, which reads the weights of a network that `is_far` in other ways.
    """
    return fan_in * fan_out * itemsize <= L2_BYTES // 2 * max(1, PANEL_BYTES // CACHE_LINE)


class Cut(NamedTuple):
    """How the weights of a layer are cut: parts and pieces are of about the same size."""

    n_parts: int  # of the panels of columns
    n_pieces: int  # of the rows, for each part
    row: int  # the most numbers in a row of a part
    size: int  # and in a piece


def is_far(units, itemsize):
    """Decide whether the weights come from beyond the L2 cache at each call: the rows of a tile then prefetch them."""
    return _weight_count(units) * itemsize > L2_BYTES


def is_streamed(fan_in, fan_out, itemsize):
    """Decide whether a single row reads the weights of a layer as a few rows do: where the layer alone is larger."""
    return is_far([fan_in, fan_out], itemsize)


def cut_weights(fan_in, fan_out, itemsize):
    """Cut the weights of a layer so that a piece, packed in panels, fills at most half of the L2 cache."""
    n_panels = -(-fan_out * itemsize // PANEL_BYTES)
    n_parts = -(-n_panels * PANEL_BYTES // STREAM_BYTES)
    row = -(-n_panels // n_parts) * PANEL_BYTES
    n_pieces = -(-fan_in // reduction_block(row))
    return Cut(n_parts, n_pieces, row // itemsize, -(-fan_in // n_pieces) * row // itemsize)


# --- operands of the weight gradient ---

# How often an operand is read, from where on packing pays: it takes as long as half of a reading.
MIN_READINGS = 8


def is_packed(n_rows, row, n_readings):
    """Decide whether an operand of the weight gradient, activations or deltas, is packed in panels.

    A block of the gradient takes a few columns of each operand: one cache line of each row. Where these lie far apart,
    the processor cannot fetch them ahead.

    Parameters
    ----------
    n_rows : int
        Rows of the workspace.
    row : int
        Bytes from one row to the next.
    n_readings : int
        How often each number is read.
    """
    return n_rows * row > L2_BYTES // 2 and n_readings >= MIN_READINGS


def blocks_together(n_rows, itemsize):
    """Return how many blocks of BLOCK_ROWS rows use a panel of packed deltas one after the other.

    The packed activations for them fill half of the L2 cache, so that both operands come from there.
    """
    return max(1, L2_BYTES // 2 // (BLOCK_ROWS * n_rows * itemsize))


# --- prefetch ---

# Bytes of parameters and the optimizer's state from which on their blocks are prefetched: less than that stays in the
# L2 cache from one batch to the next. With several threads the parameters always are, as other threads have read them;
# from MEDIUM on during the product for the block before, else just before the block's own. The first layer's are not
# prefetched where zero inputs are left out.
LARGE, MEDIUM = 2**21, 2**19


def count_prefetched_arrays(params, first, second, n_threads):
    """Count the arrays, of parameters and the optimizer's state, whose blocks are prefetched before their update."""
    n_bytes = (params.size + first.size + second.size) * params.itemsize
    if n_bytes >= LARGE:
        return 3 if second.size else 2
    return 1 if n_threads > 1 and n_bytes >= MEDIUM else 0


def few_prefetch(n_bytes, n_arrays):
    """Decide whether the update for a few samples prefetches blocks, for parameters of so many bytes; see `is_few`.

    A block is a page or less of each array, and at its end the prefetch of the processor stops.
    """
    return n_arrays > 1 and n_bytes >= LARGE


def prefetch_capacity(n_inputs):
    """Return the most addresses in the prefetch list of a thread.

    That is one for each step of the first layer's sums, or those of a block and of the optimizer's state for it; and a
    vector more, as they are written in whole vectors.
    """
    return max(n_inputs, 3 * BLOCK_LINES) + VECTOR_BITS // 64


# --- inputs that are mostly zero ---

# Index lists cost about a tenth of the first layer's work.
MAX_SPARSE_SHARE = 0.75


def mask_size(n_inputs, n_rows):
    """Return the length of the array of bit masks for the inputs of some rows."""
    # MASK_BITS masks are read at a time, those after the last row too.
    return -(-n_inputs // MASK_BITS) * n_rows + MASK_BITS


def index_capacity(n_inputs, n_rows):
    """Return the length of the workspace for the index lists of a thread."""
    # One list over the inputs; or for a block their lengths, and a list over the rows for each of its tiles.
    return max(n_inputs + MASK_BITS, MASK_BITS + -(-MASK_BITS // MR) * (n_rows + MASK_BITS))


def is_mostly_zero(x):
    """Decide whether it pays to leave out zero inputs.

    The first layer's products go through the inputs in tiles: MR samples in the forward pass, about as many
    neighbouring features in the weight gradient. A tile saves the steps in which all its numbers are zero.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_features)
        Inputs, of which some hundred rows are looked at.

    Returns
    -------
    bool
        Whether less than `MAX_SPARSE_SHARE` of the steps remain in both products.
    """
    n, k = x.shape
    if n < MR or k < MASK_BITS:
        return False
    # A few rows are enough to recognise dense data.
    few = x[:: max(1, n // 8)][:8]
    if np.count_nonzero(few) > 0.9 * few.size:
        return False
    some = x[:: max(1, n // 240)][:240] != 0
    rows = some[: len(some) // MR * MR].reshape(-1, MR, k).any(axis=1).mean()
    columns = some[:, : k // MR * MR].reshape(len(some), -1, MR).any(axis=2).mean()
    return max(rows, columns) < MAX_SPARSE_SHARE
