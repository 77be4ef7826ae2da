"""Shapes and memory of one network: where each layer's numbers lie, and the first weights.

Two layouts of the same parameters:

- *logical*: `coefs`, a list of (fan_in, fan_out) arrays, and `intercepts`, as users see them;
- *packed*: one flat vector with the weights in panels of columns (see
  `fastbp.kernels.matmul`) and padded with zeros to whole vector registers, as the kernels
  read and update them.

The weights of a layer of few units would be mostly padding: an output of 2 units fills 2 of 16
places. To train them, their transposes are packed instead, *flipped*: 2 rows, as wide as the layer below.
"""

from typing import NamedTuple

import numpy as np


class Layer(NamedTuple):
    """One row of the table that tells the kernels where a layer's numbers lie.

    All are int64. Rows are counted in elements; `z` and `a` are the same place where the
    derivative needs only the output of the activation.
    """

    fan_in: int
    fan_out: int
    rows: int  # rows in each panel of the packed weights: fan_in and its padding
    padded: int  # fan_out rounded up to whole vectors
    flipped: int  # whether the transpose of the weights is what the parameter vector holds
    weights: int  # offset in the parameter vector
    bias: int  # offset in the parameter vector
    transposed: int  # offset of the packed transpose of that; -1 for the first layer, which needs none
    source: int  # offset of the layer's input in the workspace
    source_row: int  # and its row stride
    z: int  # offset of what the units receive, in the workspace
    a: int  # offset of what they give on
    delta: int  # offset of dC/dz
    row: int  # row stride of z, a and delta
    value: int  # addresses of the activation's kernels, 0 for none
    slope: int
    by_rows: int  # whether `value` has to know the rows


class Network:
    """The layout of one multilayer perceptron.

    Parameters
    ----------
    units : sequence of int
        Units of each layer, inputs and outputs included.
    activations : sequence
        Activation object of each layer after the inputs.
    dtype : {float32, float64}
        Type of all numbers.
    lanes : int
        Numbers in a vector register.
    panel : int
        Columns in a panel of packed weights; a multiple of `lanes`.
    flip : bool, default=False
        Whether weights may be flipped: for training, which has room for both them and their transposes.

    Attributes
    ----------
    n_params, n_transposed : int
        Length of the packed parameter vector, and of the packed transposes.
    widest : int
        Widest layer, padding included.
    flipped : bool
        Whether any layer is flipped.
    """

    def __init__(self, units, activations, dtype, lanes, panel, flip=False):
        self.units = [int(n) for n in units]
        self.activations = list(activations)
        self.dtype = np.dtype(dtype)
        self.lanes = lanes
        self.panel = panel
        padded = [_round_up(n, lanes) for n in self.units]
        self.widest = max(padded)
        self.coefficients = np.array([act.coefficients for act in self.activations], dtype=np.float64)
        self._blocks = []
        offset = transposed = 0
        for index, (fan_in, fan_out) in enumerate(zip(self.units[:-1], self.units[1:], strict=True)):
            rows = fan_in if index == 0 else padded[index]
            width = padded[index + 1]
            # Flipped where the gradient then takes fewer vectors.
            flipped = flip and index > 0 and width == lanes and rows // lanes * fan_out < fan_in
            self._blocks.append(
                _Block(fan_in, fan_out, rows, width, flipped, offset, offset + rows * width, transposed)
            )
            offset += (rows + 1) * width
            if index:
                transposed += rows * width
        self.flipped = any(block.flipped for block in self._blocks)
        self.n_params = offset
        self.n_transposed = transposed

    def count_blocks(self, rows):
        """Count the blocks of `rows` rows by one panel that the weights of all layers are cut into."""
        return sum(
            -(-stored.n_rows // rows) * -(-stored.padded // self.panel)
            for stored in (block.stored() for block in self._blocks)
        )

    def workspace(self, n_rows, *, keep_z=False):
        """Lay out the activations and deltas of `n_rows` samples; z of all layers too if it is to be kept.

        Returns
        -------
        table : ndarray of int64 of shape (n_layers, len(Layer._fields))
            The rows are `Layer`.
        size : int
            Length of the workspace. It begins with `widest` zeros.
        """
        strides = [self._stride(n) for n in self.units]
        offset = _round_up(self.widest, 64)
        source = offset
        offset += n_rows * strides[0]
        table = []
        for index, block in enumerate(self._blocks):
            activation = self.activations[index]
            row = strides[index + 1]
            a = z = offset
            offset += n_rows * row
            if activation.keeps_z or (keep_z and activation.value_address(self.dtype)):
                z = offset
                offset += n_rows * row
            delta = offset
            offset += n_rows * row
            table.append(
                Layer(
                    *block[:-1], block.transposed if index else -1, source, strides[index], z, a, delta, row,
                    activation.value_address(self.dtype), activation.slope_address(self.dtype), int(activation.by_rows),
                )
            )  # fmt: skip
            source = a
        return np.array(table, dtype=np.int64), offset

    def _stride(self, n):
        """Row stride for n units: wide rows are an odd number of 64-byte lines.

        Rows a power of two apart fall into the same few cache sets.
        """
        line = 64 // self.dtype.itemsize
        stride = _round_up(n, max(line, self.lanes))
        lines = stride // line
        return stride + line if lines >= 8 and lines % 2 == 0 else stride

    def pack(self, coefs, intercepts):
        """Return the packed vector of logical parameters."""
        params = aligned_zeros(self.n_params, self.dtype)
        for block, coef, intercept in zip(self._blocks, coefs, intercepts, strict=True):
            stored = coef.T if block.flipped else coef
            for columns, view in self._panels(params, block):
                view[...] = stored[:, columns]
            params[block.bias :][: block.fan_out] = intercept
        return params

    def unpack(self, params):
        """Return coefs and intercepts, the logical parameters of a packed vector, as new arrays."""
        coefs, intercepts = [], []
        for block in self._blocks:
            coef = np.empty((block.fan_in, block.fan_out), dtype=self.dtype)
            stored = coef.T if block.flipped else coef
            for columns, view in self._panels(params, block):
                stored[:, columns] = view
            coefs.append(coef)
            intercepts.append(params[block.bias :][: block.fan_out].copy())
        return coefs, intercepts

    def _panels(self, params, block):
        """Yield the columns of each panel of a layer, and a view of what it holds of them."""
        n_rows, n_columns, panel_rows, padded = block.stored()
        for left in range(0, n_columns, self.panel):
            width = min(self.panel, padded - left)
            begin = block.weights + left * panel_rows
            view = params[begin : begin + panel_rows * width].reshape(panel_rows, width)
            columns = slice(left, min(left + width, n_columns))
            yield columns, view[:n_rows, : columns.stop - left]


class _Stored(NamedTuple):
    """The matrix that is packed for a layer: its weights, or their transpose."""

    n_rows: int
    n_columns: int
    panel_rows: int  # n_rows and its padding
    padded: int  # n_columns and its padding


class _Block(NamedTuple):
    """What `Layer` says of a layer's parameters."""

    fan_in: int
    fan_out: int
    rows: int
    padded: int
    flipped: bool
    weights: int
    bias: int
    transposed: int

    def stored(self):
        if self.flipped:
            return _Stored(self.fan_out, self.fan_in, self.padded, self.rows)
        return _Stored(self.fan_in, self.fan_out, self.rows, self.padded)


def initial_parameters(units, factors, random_state, dtype):
    """Draw the first weights and biases from U(-b, b), b = sqrt(factor / (fan_in + fan_out)).

    Parameters
    ----------
    units : sequence of int
        Units of each layer, inputs and outputs included.
    factors : sequence of float
        The factor of each layer after the inputs: `init_factor` of an activation.
    random_state : numpy.random.RandomState
        Drawn from in scikit-learn's order, so that the same seed gives the same weights.
    dtype : {float32, float64}
        Type of the result.

    Returns
    -------
    coefs, intercepts : list of ndarray

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010, Eq. 16.
    """
    coefs, intercepts = [], []
    for fan_in, fan_out, factor in zip(units[:-1], units[1:], factors, strict=True):
        bound = np.sqrt(factor / (fan_in + fan_out))
        coefs.append(random_state.uniform(-bound, bound, (fan_in, fan_out)).astype(dtype, copy=False))
        intercepts.append(random_state.uniform(-bound, bound, fan_out).astype(dtype, copy=False))
    return coefs, intercepts


def aligned_zeros(n, dtype):
    """Return n zeros that begin at a multiple of 64 bytes.

    A vector load that crosses the border of two cache lines takes twice as long.
    """
    itemsize = np.dtype(dtype).itemsize
    memory = np.zeros(n * itemsize + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n * itemsize].view(dtype)


def _round_up(n, multiple):
    return -(-n // multiple) * multiple
