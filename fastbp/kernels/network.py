"""The layout of one network: where the parameters, activations and deltas of each layer lie in memory.

Two layouts of the same parameters:

- *logical*: `coefs`, a list of (fan_in, fan_out) arrays, and `intercepts`, as users see them;
- *packed*: one flat vector with the weights in panels of columns (see `fastbp.kernels.matmul`), padded with zeros to
  whole vector registers, as the kernels read and update them.

The packed weights of a layer of few units would be mostly padding: an output layer of 2 units fills 2 of 16 lanes.
Training packs their transpose instead (*transposed storage*): 2 rows, as wide as the layer below.

One of the two passes takes the transpose of what is stored: it is made piece by piece on the way.
"""

import math
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fastbp.codegen.target import CACHE_LINE, lanes
from fastbp.codegen.tiles import NV
from fastbp.kernels.plan import (
    BLOCK_ROWS,
    blocks_together,
    cut_transposed,
    is_by_columns,
    is_packed,
)


class Layer(NamedTuple):
    """One row of the table that tells the kernels where a layer's numbers lie.

    All are int64; offsets and strides count elements. Offsets up to `bias` are those of parameters, those from
    `input` on of the workspace. `z` and `a` are the same memory where the backward kernel does not need z.
    """

    fan_in: int
    fan_out: int
    padded_in: int  # fan_in rounded up to whole vectors, but for the first layer
    padded_out: int  # fan_out rounded up to whole vectors
    is_transposed: int  # whether the parameter vector holds the transpose of the weights
    weights: int  # offset in the parameter vector
    bias: int  # offset in the parameter vector
    first_block: int  # blocks of all layers before
    input: int  # offset of the layer's input, the activations of the layer below, after dropout
    input_row: int  # row stride of the input
    z: int  # offset of the pre-activations
    a: int  # offset of the activations
    delta: int  # offset of dC/dz
    row: int  # row stride of z, a and delta
    forward: int  # address of the activation's forward kernel, 0 for none
    backward: int  # address of its backward kernel, 0 for none
    by_rows: int  # whether the forward kernel takes rows, as a softmax
    left: int  # offset of the packed left operand of the weight gradient, -1 where it is not packed
    right: int  # the same of the right one
    piece: int  # panels that are transposed together, where threads share the units of the layer below; else 0
    together: int  # rows of blocks of the stored matrix that take turns, panel after panel
    dropped: int  # offset of the activations after dropout, those of `a` where there is none
    drop: int  # address of the kernel of dropout, 0 for none
    threshold: int  # of dropout, see dropout.Dropout


class StoredMatrix(NamedTuple):
    """The matrix that the parameter vector holds for a layer: its weights, or their transpose."""

    n_rows: int
    n_columns: int
    padded_rows: int  # rows of each panel
    padded_columns: int


class _Parameters(NamedTuple):
    """Where the parameters of a layer lie: the first fields of `Layer`."""

    fan_in: int
    fan_out: int
    padded_in: int
    padded_out: int
    is_transposed: bool
    weights: int
    bias: int
    first_block: int
    panel: int  # columns in a panel of the stored matrix; not in `Layer`

    def stored(self):
        if self.is_transposed:
            return StoredMatrix(self.fan_out, self.fan_in, self.padded_out, self.padded_in)
        return StoredMatrix(self.fan_in, self.fan_out, self.padded_in, self.padded_out)


class Network:
    """The layout of one multilayer perceptron.

    Parameters
    ----------
    units : sequence of int
        Units of each layer, inputs and outputs included.
    activations : sequence of Activation
        One for each layer after the inputs.
    dtype : {float32, float64}
        Type of all numbers.
    lanes : int
        Numbers in a vector register.
    panel : int
        Columns in a panel of packed weights; a multiple of `lanes`.
    transpose_narrow : bool, default=False
        Whether layers of few units may have transposed storage: in training, whose forward pass transposes it.
    csr_input : bool, default=False
        Whether the inputs are sparse rows (see `fastbp.kernels.csr`): the weights of the first layer are stored row by
        row, as one panel, and there is no workspace for inputs.
    dropout : sequence of Dropout, default=()
        One for each hidden layer, or nothing for no dropout.

    Attributes
    ----------
    n_params, n_unpadded : int
        Length of the packed parameter vector, and how many parameters there are.
    n_blocks : int
        Blocks of BLOCK_ROWS rows by one panel into which the stored matrices of all layers are cut.
    widest : int
        Units of the widest layer, with padding.
    coefficients : ndarray of shape (n_layers, 2), float64
        The coefficients of the activations.
    has_transposed : bool
        Whether any layer has transposed storage.
    has_dropout : bool
        Whether any layer has dropout.
    """

    def __init__(self, units, activations, dtype, lanes, panel, transpose_narrow=False, csr_input=False, dropout=()):
        self.units = [int(n) for n in units]
        self.activations = list(activations)
        self.dtype = np.dtype(dtype)
        self.lanes = lanes
        self.panel = panel
        self.csr_input = csr_input
        padded = [_round_up(n, lanes) for n in self.units]
        self.widest = max(padded)
        self.coefficients = np.array([act.coefficients for act in self.activations], dtype=np.float64)
        self._layers = []
        self.n_params = self.n_blocks = 0
        for index, (fan_in, fan_out) in enumerate(pairwise(self.units)):
            padded_in = fan_in if index == 0 else padded[index]
            padded_out = padded[index + 1]
            # Transposed where the weight gradient then takes fewer vectors.
            is_transposed = (
                transpose_narrow and index > 0 and padded_out == lanes and padded_in // lanes * fan_out < fan_in
            )
            size = padded_in * padded_out
            self._layers.append(
                _Parameters(
                    fan_in, fan_out, padded_in, padded_out, is_transposed, self.n_params, self.n_params + size,
                    self.n_blocks, panel if index or not csr_input else padded_out,
                )
            )  # fmt: skip
            self.n_params += size + padded_out
            self.n_blocks += math.prod(self._count_blocks(self._layers[-1]))
        self.n_unpadded = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(self.units))
        self.has_transposed = any(layer.is_transposed for layer in self._layers)
        self._thresholds = [part.threshold for part in dropout] or [0] * (len(self._layers) - 1)
        self._drops = [part.address(self.dtype) for part in dropout] or self._thresholds
        self.has_dropout = any(self._thresholds)

    @cached_property
    def row_bytes(self):
        """Bytes of the workspace for one sample."""
        return self.workspace(1)[1] * self.dtype.itemsize

    def _count_blocks(self, layer):
        """Count the rows of blocks of a stored matrix, and the blocks in each of them."""
        stored = layer.stored()
        return -(-stored.n_rows // BLOCK_ROWS), -(-stored.padded_columns // self.panel)

    def workspace(self, n_rows, *, keep_z=False, pack_from=None, n_threads=1, few_rows=False):
        """Lay out the workspace: the activations and deltas of `n_rows` samples.

        Parameters
        ----------
        n_rows : int
            Rows of each layer.
        keep_z : bool, default=False
            Whether the pre-activations of all layers are kept beside the activations.
        pack_from : int, default=None
            The first layer for whose weight gradient the operands may be packed; None for no layer.
        n_threads : int, default=1
            The most threads of training.
        few_rows : bool, default=False
            Whether batches are of a few samples, see `plan.is_few`.

        Returns
        -------
        table : ndarray of int64 of shape (n_layers, len(Layer._fields))
            The rows are `Layer`.
        size : int
            Length of the workspace. It begins with `widest` zeros.
        """
        strides = [self.row_stride(n) for n in self.units]
        if self.csr_input:
            strides[0] = 0
        end = _round_up(self.widest, 64)

        def reserve(row):
            nonlocal end
            begin, end = end, end + n_rows * row
            return begin

        source = reserve(strides[0])
        table = []
        drops = [*zip(self._drops, self._thresholds, strict=True), (0, 0)]  # none after the last layer
        parts = zip(self._layers, self.activations, drops, strict=True)
        for index, (layer, activation, (drop, threshold)) in enumerate(parts):
            input_row, row = strides[index : index + 2]
            forward, backward = activation.forward_address(self.dtype), activation.backward_address(self.dtype)
            a = z = reserve(row)
            if activation.keeps_z or (keep_z and forward):
                z = reserve(row)
            dropped = reserve(row) if drop else a
            delta = reserve(row)
            places = (source, input_row, z, a, delta, row)
            left = right = -1
            if pack_from is not None and index >= pack_from:
                left, right = (
                    reserve(columns) if columns else -1
                    for columns in self._packed_columns(layer, n_rows, input_row, row)
                )
            is_dense = pack_from is not None and index >= pack_from
            packs_both = left >= 0 and right >= 0
            piece, together = self._turns(index, layer, n_rows, row, n_threads, packs_both, is_dense, few_rows)
            table.append(
                Layer(
                    *layer[:-1], *places, forward, backward, int(activation.by_rows), left, right, piece, together,
                    dropped, drop, threshold,
                )
            )  # fmt: skip
            source = dropped
        return np.array(table, dtype=np.int64), end

    def _turns(self, index, layer, n_rows, row, n_threads, packs_both, is_dense, few_rows):
        """Return the fields `piece` and `together` of `Layer`: in which order the blocks of a layer are updated."""
        size = self.dtype.itemsize
        n_high, n_panels = self._count_blocks(layer)
        # One thread had better read the weights twice for a few samples, each time in the order of memory.
        if index > 0 and not layer.is_transposed and not (few_rows and n_threads == 1):
            weights_bytes = layer.padded_in * layer.padded_out * size
            if is_by_columns(n_high, n_threads, n_rows, weights_bytes, n_rows * row * size):
                return cut_transposed(-(-n_high // n_threads), n_panels, size, few_rows)
        if packs_both:
            return 0, blocks_together(n_rows, size)
        # For a few samples panel after panel, as they lie in memory. But lists of inputs that are not zero are made for
        # all panels of some rows.
        return 0, n_high if few_rows and is_dense else 1

    def _packed_columns(self, layer, n_rows, input_row, row):
        """Return the columns of both operands of a weight gradient, as far as they are packed, in whole panels."""
        left_row, right_row = (row, input_row) if layer.is_transposed else (input_row, row)
        n_high, n_panels = self._count_blocks(layer)
        size = self.dtype.itemsize
        left = n_high * BLOCK_ROWS if is_packed(n_rows, left_row * size, n_panels) else 0
        right = n_panels * self.panel if is_packed(n_rows, right_row * size, n_high) else 0
        return left, right

    def row_stride(self, n):
        """Return the row stride for n units: for wide rows an odd number of 64-byte lines.

        Rows a power of two apart fall into the same few cache sets.
        """
        line = 64 // self.dtype.itemsize
        stride = _round_up(n, max(line, self.lanes))
        lines = stride // line
        return stride + line if lines >= 8 and lines % 2 == 0 else stride

    def pack(self, coefs, intercepts):
        """Pack logical parameters.

        Parameters
        ----------
        coefs : list of ndarray of shape (fan_in, fan_out)
        intercepts : list of ndarray of shape (fan_out,)

        Returns
        -------
        ndarray of shape (n_params,)
        """
        params = aligned_zeros(self.n_params, self.dtype)
        for packed, logical in self.parts(params, coefs, intercepts):
            packed[...] = logical
        return params

    def is_laid_out_as(self, other):
        """Whether packed parameters of the other network are packed as those of this one."""
        return self.dtype == other.dtype and self._layers == other._layers

    def unpack(self, params):
        """Return coefs and intercepts, the logical parameters of a packed vector, as new arrays.

        Predictions read the coefs where they are, and faster where vectors do not cross the borders of cache lines.
        """
        coefs = [aligned_empty(shape, self.dtype) for shape in pairwise(self.units)]
        intercepts = [np.empty(n, self.dtype) for n in self.units[1:]]
        for packed, logical in self.parts(params, coefs, intercepts):
            logical[...] = packed
        return coefs, intercepts

    def split(self, flat):
        """Return coefs and intercepts as views of a flat vector: the weights of all layers, then all biases."""
        shapes = [*pairwise(self.units), *((n,) for n in self.units[1:])]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        arrays = [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
        return arrays[: len(self._layers)], arrays[len(self._layers) :]

    def parts(self, params, coefs, intercepts):
        """Yield views of the parts of a packed vector, each with the same part of the logical parameters."""
        for layer, coef, intercept in zip(self._layers, coefs, intercepts, strict=True):
            matrix = coef.T if layer.is_transposed else coef
            n_rows, n_columns, padded_rows, padded_columns = layer.stored()
            count, rest = divmod(n_columns, layer.panel)
            whole = n_columns - rest
            weights = params[layer.weights : layer.weights + padded_rows * padded_columns]
            if count:
                panels = weights[: padded_rows * whole].reshape(count, padded_rows, layer.panel)
                logical = matrix[:, :whole].reshape(n_rows, count, layer.panel)
                yield panels[:, :n_rows], logical.swapaxes(0, 1)
            if rest:  # a last panel, which may be narrower
                panel = weights[padded_rows * whole :].reshape(padded_rows, -1)
                yield panel[:n_rows, :rest], matrix[:, whole:]
            yield params[layer.bias :][: layer.fan_out], intercept


def make_network(units, activations, dtype, batch_size=None, csr_input=False, dropout=()):
    """Lay out a network for the vector registers of this machine.

    Parameters
    ----------
    units, activations, dtype
        As in `Network`.
    batch_size : int, default=None
        Samples of a batch in training; None for prediction. Batches of several samples allow transposed storage;
        for single samples the kernels `online` and `few` do without.
    csr_input, dropout
        As in `Network`.

    Returns
    -------
    Network
    """
    width = lanes(np.dtype(dtype).itemsize)
    transpose_narrow = batch_size is not None and batch_size > 1
    return Network(units, activations, dtype, width, width * NV, transpose_narrow, csr_input, dropout)


def aligned_zeros(n, dtype):
    """Return n zeros that begin at a multiple of 64 bytes.

    A vector load that crosses the border of two cache lines takes twice as long.
    """
    if n == 0:
        return np.zeros(0, dtype)
    return _aligned_part(np.zeros(n * np.dtype(dtype).itemsize + CACHE_LINE, np.uint8), dtype)


def aligned_empty(shape, dtype):
    """Return an array that begins there, too, of any content."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return _aligned_part(np.empty(size + CACHE_LINE, np.uint8), dtype).reshape(shape)


def aligned_copy(array, dtype):
    """Return a C-ordered copy that begins there, too."""
    copy = aligned_empty(array.shape, dtype)
    copy[...] = array
    return copy


def aligned(array):
    """Return an array that begins there: a copy, unless it does, or is read-only or in a file or shared memory."""
    owner = array
    while type(owner) in (np.ndarray, memoryview):
        owner = owner.base if type(owner) is np.ndarray else owner.obj
    is_private = owner is None or type(owner) in (bytes, bytearray)  # in which there is what is unpickled
    if not is_private or not array.flags.carray or array.ctypes.data % CACHE_LINE == 0:
        return array
    return aligned_copy(array, array.dtype)


def _aligned_part(memory, dtype):
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : len(memory) - CACHE_LINE + start].view(dtype)


def _round_up(n, multiple):
    return -(-n // multiple) * multiple
