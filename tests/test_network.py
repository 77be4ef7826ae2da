import pickle
import warnings
from dataclasses import dataclass
from itertools import pairwise
from mmap import mmap

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from fastbp.activations import Activation, Relu, Softmax, Tanh, get_activation
from fastbp.codegen.target import CACHE_LINE
from fastbp.initializers import initial_parameters
from fastbp.kernels.network import Layer, Network, aligned, aligned_zeros, make_network
from fastbp.kernels.plan import BLOCK_ROWS, TRANSPOSED_BLOCKS

SHAPES = [
    [1, 1],
    [3, 1, 2],
    [7, 5],
    [4, 16, 16, 4],
    [17, 33, 15, 1, 64, 3],
    [1, 129, 1],
    [65, 128, 31, 10],
    [40, 300, 7],
]
LAYOUTS = [
    (*layout, transpose_narrow)
    for layout in [(np.float64, 2, 4), (np.float64, 8, 32), (np.float32, 4, 8), (np.float32, 16, 64)]
    for transpose_narrow in (False, True)
]


@dataclass(frozen=True)
class KeepsZ(Activation):
    name = "keeps_z"
    keeps_z = True

    @property
    def coefficients(self):
        return (2.0, 3.0)


def make(units, layout):
    activations = [(KeepsZ() if i % 2 else Relu()) for i in range(len(units) - 1)]
    return Network(units, activations, *layout)


def numbered(network):
    """Parameters 1, 2, 3, ..."""
    count = 0
    coefs, intercepts = [], []
    for fan_in, fan_out in pairwise(network.units):
        coefs.append(count + 1 + np.arange(fan_in * fan_out, dtype=network.dtype).reshape(fan_in, fan_out))
        count += coefs[-1].size
        intercepts.append(count + 1 + np.arange(fan_out, dtype=network.dtype))
        count += fan_out
    return coefs, intercepts, count


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("units", SHAPES)
def test_pack_and_unpack(units, layout):
    network = make(units, layout)
    coefs, intercepts, count = numbered(network)
    params = network.pack(coefs, intercepts)
    assert params.shape == (network.n_params,) and params.dtype == network.dtype
    # Each parameter has one place of its own, and everything else is zero.
    np.testing.assert_array_equal(np.sort(params[params != 0]), np.arange(1, count + 1))
    again = network.unpack(params)
    for got, expected in zip([*again[0], *again[1]], [*coefs, *intercepts], strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == network.dtype and got.flags.c_contiguous
        assert not np.shares_memory(got, params)
    assert all(coef.ctypes.data % CACHE_LINE == 0 for coef in again[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("units", SHAPES)
def test_packed_weights_lie_where_the_table_says(units, layout):
    network = make(units, layout)
    coefs, intercepts, _ = numbered(network)
    params = network.pack(coefs, intercepts)
    table, _ = network.workspace(1)
    assert table.shape == (len(units) - 1, len(Layer._fields)) and table.dtype == np.int64
    end = 0
    for row, coef, intercept in zip(table, coefs, intercepts, strict=True):
        layer = Layer(*row)
        assert (layer.fan_in, layer.fan_out) == coef.shape
        assert layer.padded_out % network.lanes == 0
        assert 0 <= layer.padded_out - layer.fan_out < network.lanes
        assert layer.weights == end
        end = layer.bias + layer.padded_out
        stored, rows, columns = (coef.T, *layer[3:1:-1]) if layer.is_transposed else (coef, *layer[2:4])
        for p, j in np.ndindex(stored.shape):
            left = j // network.panel * network.panel
            width = min(network.panel, columns - left)
            assert params[layer.weights + left * rows + p * width + j - left] == stored[p, j]
        np.testing.assert_array_equal(params[layer.bias :][: layer.fan_out], intercept)
        if layer.weights > 0:  # a whole number of registers, so that the weights can be transposed in squares
            assert layer.padded_in % network.lanes == 0
    assert end == network.n_params


def test_layers_of_few_units_have_transposed_storage():
    def transposed(*units, lanes=16, transpose_narrow=True):
        network = Network(units, [Relu()] * (len(units) - 1), np.float32, lanes, 4 * lanes, transpose_narrow)
        layers = [bool(Layer(*row).is_transposed) for row in network.workspace(1)[0]]
        assert network.has_transposed == any(layers)
        return layers

    assert transposed(64, 100, 10) == [False, True]
    assert transposed(64, 100, 10, transpose_narrow=False) == [False, False]
    assert transposed(64, 100, 14) == [False, True] and transposed(64, 100, 15) == [False, False]
    # Not the first layer, whose inputs may be mostly zero; not where it would take more vectors.
    assert transposed(100, 2) == [False]
    assert transposed(5, 8, 10) == [False, False] and transposed(5, 8, 2) == [False, True]
    assert transposed(5, 40, 4, 40, 1, lanes=4) == [False, False, False, True]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("units", SHAPES)
@pytest.mark.parametrize("n_rows", [1, 6, 37])
def test_regions_of_the_workspace_do_not_overlap(units, layout, n_rows):
    network = make(units, layout)
    table, size = network.workspace(n_rows)
    layers = [Layer(*row) for row in table]
    assert network.widest >= max(layer.padded_out for layer in layers)
    regions = {(0, network.widest), (layers[0].input, n_rows * layers[0].input_row)}
    for layer, activation in zip(layers, network.activations, strict=True):
        assert (layer.z != layer.a) == activation.keeps_z
        assert layer.forward == activation.forward_address(network.dtype)
        assert layer.backward == activation.backward_address(network.dtype)
        assert layer.by_rows == activation.by_rows
        assert layer.row >= layer.padded_out
        regions |= {(begin, n_rows * layer.row) for begin in (layer.z, layer.a, layer.delta)}
    end = 0
    for begin, length in sorted(regions):
        assert begin >= end
        end = begin + length
    assert end == size
    assert len(regions) == 2 + sum(2 + activation.keeps_z for activation in network.activations)
    for below, layer in pairwise(layers):
        assert (layer.input, layer.input_row) == (below.a, below.row)
    assert layers[0].input_row >= layers[0].fan_in


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_wide_rows_do_not_share_cache_sets(dtype):
    line = 64 // np.dtype(dtype).itemsize
    for n in [*range(1, 40), 128, 256, 512, 784, 1000, 4096]:
        table, _ = Network([n, n], [Relu()], dtype, line, 4 * line).workspace(3)
        for row in (Layer(*table[0]).input_row, Layer(*table[0]).row):
            assert row % line == 0 and row - n < 2 * line
            assert row < 8 * line or row // line % 2 == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("units", SHAPES)
def test_blocks(units, layout):
    network = make(units, layout)
    count = 0
    for row in network.workspace(1)[0]:
        layer = Layer(*row)
        assert layer.first_block == count
        n_rows, n_columns = (layer.fan_out, layer.fan_in) if layer.is_transposed else (layer.fan_in, layer.fan_out)
        for _ in range(0, n_rows, BLOCK_ROWS):
            count += len(range(0, n_columns, network.panel))
    assert network.n_blocks == count


@pytest.mark.parametrize("n_rows", [1, 32, 1000])
@pytest.mark.parametrize("n_threads", [1, 2, 3, 5, 16])
def test_threads_have_about_as_many_rows_of_weights(n_threads, n_rows):
    """Or they share the samples: where there are many of these, or few units."""
    kinds = set()
    for n_high in range(1, 70):
        units = [3, BLOCK_ROWS * n_high - 1, 100]
        network = Network(units, [Relu()] * 2, np.float32, 8, 16)
        layer = Layer(*network.workspace(n_rows, n_threads=n_threads, few_rows=n_rows == 1)[0][1])
        kinds.add(layer.piece > 0)
        if layer.piece > 0:
            most = -(-n_high // n_threads)
            assert 1 <= layer.together <= most and (n_rows == 1 or layer.together <= TRANSPOSED_BLOCKS)
            assert most * n_threads - n_high <= n_high * 8 * (n_threads - 1) / (2 * n_rows + 32)
        else:
            least = 8 * (n_threads - 1) / (2 * n_rows + 32)  # of the excess; samples are few where they are one
            assert -n_high % n_threads > least * n_high or n_threads == n_rows == 1
    assert kinds == ({n_rows > 1} if n_threads == 1 else {False, True})


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_aligned_zeros(dtype):
    for n in (0, 1, 7, 1000):
        zeros = aligned_zeros(n, dtype)
        assert zeros.shape == (n,) and zeros.dtype == dtype and not zeros.any()
        assert zeros.flags.writeable and (n == 0 or zeros.ctypes.data % 64 == 0)


def test_aligned_copies_only_what_is_not(tmp_path):
    own = aligned_zeros(999, np.float64)[1:].reshape(2, -1)
    own[...] = np.arange(998).reshape(2, -1)
    for array in (own, *(pickle.loads(pickle.dumps(own, protocol)) for protocol in (2, 4, 5) for _ in range(9))):
        copy = aligned(array)
        assert copy.ctypes.data % 64 == 0 and (copy is array) == (array.ctypes.data % 64 == 0)
        assert copy.shape == own.shape and copy.dtype == own.dtype and copy.flags.carray
        np.testing.assert_array_equal(copy, own)
    np.save(tmp_path / "a.npy", own)
    file = np.load(tmp_path / "a.npy", mmap_mode="r+")
    shared = np.ndarray((3, 9), buffer=mmap(-1, 4096), offset=8)
    read_only = own[:1]
    read_only.flags.writeable = False
    for array in (copy, np.asfortranarray(own), own[:, 3:], file, np.asarray(file)[:1, 1:], shared, read_only):
        assert aligned(array) is array


def test_coefficients_and_units():
    network = Network(np.array([3, 2, 1]), [KeepsZ(), Tanh()], "float32", 4, 16)
    np.testing.assert_array_equal(network.coefficients, [[2, 3], [0, 0]])
    assert network.coefficients.dtype == np.float64
    assert network.units == [3, 2, 1] and network.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layout_of_this_machine(dtype):
    network = make_network([5, 4, 3], [Tanh(), Softmax()], dtype)
    assert network.lanes * network.dtype.itemsize in (16, 32, 64)
    assert network.panel % network.lanes == 0


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_first_parameters_are_those_of_scikit_learn(activation, dtype):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(12, 5)).astype(dtype)
    y = np.arange(12) % 3
    # With so small a step, what is fitted is what was drawn.
    how = {"solver": "sgd", "learning_rate_init": 1e-300, "max_iter": 1, "random_state": 3}
    mlp = MLPClassifier((7, 4), activation, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mlp.fit(X, y)
    factor = get_activation(activation).init_factor
    coefs, intercepts = initial_parameters([5, 7, 4, 3], [factor] * 3, np.random.RandomState(3), dtype)
    for got, expected in zip([*coefs, *intercepts], [*mlp.coefs_, *mlp.intercepts_], strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype == dtype


def test_first_parameters_follow_the_factor_of_their_layer():
    coefs, intercepts = initial_parameters([200, 100, 50], [6.0, 2.0], np.random.RandomState(0), np.float64)
    for coef, intercept, bound in zip(coefs, intercepts, np.sqrt([6 / 300, 2 / 150]), strict=True):
        assert 0.99 * bound < np.abs(coef).max() <= bound
        assert 0.8 * bound < np.abs(intercept).max() <= bound
