"""The kernels of one layer, and a whole update, against plain NumPy on the same numbers.

Run: ``pytest benchmarks/bench_kernels.py``, or a part of it with ``-k "forward and float32"``.

Each test checks the results, and then times fastbp, NumPy and the FMA peak alternately. The table at the end shows
the ratios. Flops count the mathematical operations; the columns that pad a layer to whole vectors do not count. Both
sides read their operands in the layout that they have in training: row-major arrays in NumPy, weights in packed
panels and padded rows in fastbp. NumPy writes its results to preallocated arrays.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import common
import numpy as np
import pytest
from numba import njit, prange

from fastbp import BackpropClassifier
from fastbp.activations import Relu, Softmax
from fastbp.codegen.jit import call_at
from fastbp.codegen.memory import itemsize, lane_count, offset, pointer
from fastbp.codegen.tiles import NV
from fastbp.initializers import initial_parameters
from fastbp.kernels.addresses import kernel_addresses
from fastbp.kernels.matmul import MULTIPLY, ONE, REPEATED, matmul, matmul_transposed
from fastbp.kernels.network import Layer, aligned_zeros, make_network
from fastbp.kernels.plan import BLOCK_ROWS, training_work, transposed_size
from fastbp.kernels.records import Data
from fastbp.kernels.session import OptimizerState, Session
from fastbp.kernels.threads import share
from fastbp.plain import PlainNetwork

WORKLOADS = ("mnist-128", "mnist-512x2", "mnist-100")
DTYPES = ("float32", "float64")
# The columns of a row of `Network.workspace`'s table.
AT = Layer(*range(len(Layer._fields)))


# Each does one thread's part of one product, as `fastbp.kernels.backprop` does in training. `weights` are
# the packed parameters or the gradients.
@njit(**common.NJIT)
def _forward(kernels, layer, below, m, weights, space, rank, size):
    """Compute the pre-activations Z = A W + b of this thread's samples, as `backprop.forward`."""
    first, last = share(m, 1, rank, size)
    if first < last:
        a = pointer(space, layer[AT.input] + first * layer[AT.input_row])
        z = pointer(space, layer[AT.z] + first * layer[AT.row])
        matmul(
            pointer(kernels, 0), last - first, layer[AT.fan_out], layer[AT.fan_in], a, layer[AT.input_row],
            pointer(weights, layer[AT.weights]), layer[AT.padded_in], pointer(weights, layer[AT.bias]),
            REPEATED, z, layer[AT.row],
        )  # fmt: skip


@njit(**common.NJIT)
def _deltas(kernels, layer, below, m, weights, space, rank, size):
    """Propagate the deltas back, D W^T, for this thread's samples, as `backprop.backward`."""
    first, last = share(m, 1, rank, size)
    if first < last:
        delta = pointer(space, layer[AT.delta] + first * layer[AT.row])
        carried = pointer(space, below[AT.delta] + first * below[AT.row])
        workspace = pointer(space, space.size - (rank + 1) * transposed_size(itemsize(delta)))
        matmul_transposed(
            pointer(kernels, 0), last - first, below[AT.fan_out], layer[AT.fan_out], delta, layer[AT.row],
            pointer(weights, layer[AT.weights]), layer[AT.padded_in], layer[AT.padded_out], pointer(space, 0),
            carried, below[AT.row], workspace,
        )  # fmt: skip


@njit(**common.NJIT)
def _gradient(kernels, layer, below, m, weights, space, rank, size):
    """Compute A^T D for this thread's rows of the weights; `gradient` takes blocks, and updates them."""
    width = lane_count(pointer(space, 0))
    first, last = share(layer[AT.fan_in], BLOCK_ROWS, rank, size)
    source = pointer(space, layer[AT.input])
    for p in range(first, last, BLOCK_ROWS):
        for j in range(0, layer[AT.padded_out], NV * width):
            nv = min(NV, (layer[AT.padded_out] - j) // width)
            panel = pointer(weights, layer[AT.weights] + j * layer[AT.padded_in])
            args = (
                min(BLOCK_ROWS, last - p), nv, m, offset(source, p), ONE, layer[AT.input_row],
                pointer(space, layer[AT.delta] + j), layer[AT.row], pointer(space, 0), REPEATED,
                offset(panel, p * nv * width), nv * width,
            )  # fmt: skip
            call_at(kernels[MULTIPLY], args)


def _on_threads(part):
    @njit(parallel=True, **common.NJIT)
    def run(kernels, layer, below, m, weights, space, size):
        for rank in prange(size):
            part(kernels, layer, below, m, weights, space, rank, size)

    return run


KERNELS = {"forward": _forward, "deltas": _deltas, "gradient": _gradient}
PARALLEL = {name: _on_threads(part) for name, part in KERNELS.items()}
PRODUCTS = [
    (kernel, workload, index)
    for kernel in KERNELS
    for workload in WORKLOADS
    for index in range(len(common.WORKLOADS[workload].units) - 1)
    if kernel != "deltas" or index > 0  # the first layer needs no input delta
]


class Product(NamedTuple):
    """One matrix product, (m, k) by (k, n), in fastbp and in NumPy."""

    m: int
    k: int
    n: int
    arguments: tuple  # of the compiled function
    result: Callable  # returns what the compiled function has computed, row-major
    numpy: Callable  # computes the same and returns it
    magnitude: np.ndarray  # sums of |x y| over the reduction, of the result's shape


class LaidOut:
    """One layer of a workload in the memory layout of training, filled with normal random numbers."""

    def __init__(self, workload, index, dtype):
        units, self.m, *_ = common.WORKLOADS[workload]
        rng = np.random.default_rng(0)
        self.index, self.dtype = index, dtype
        self.network = make_network(units, [Relu()] * (len(units) - 2) + [Softmax()], dtype)
        self.table, size = self.network.workspace(self.m)
        size += max(common.thread_counts()) * transposed_size(np.dtype(dtype).itemsize)
        self.space = aligned_zeros(size, dtype)
        layer = Layer(*self.table[index])
        source = self.rows(layer.input, layer.input_row, layer.fan_in)
        delta = self.rows(layer.delta, layer.row, layer.fan_out)
        source[...], delta[...] = rng.standard_normal(source.shape), rng.standard_normal(delta.shape)
        self.A, self.D = np.ascontiguousarray(source), np.ascontiguousarray(delta)
        coefs = [rng.standard_normal(shape).astype(dtype) for shape in pairwise(units)]
        intercepts = [rng.standard_normal(n).astype(dtype) for n in units[1:]]
        self.W, self.b = coefs[index], intercepts[index]
        self.params = self.network.pack(coefs, intercepts)

    def rows(self, offset, stride, n):
        """View a matrix of the workspace as (m, n)."""
        return self.space[offset : offset + self.m * stride].reshape(self.m, stride)[:, :n]

    def arguments(self, weights):
        """Return the arguments of the compiled functions, but for the threads."""
        layers = self.table[self.index], self.table[max(self.index - 1, 0)]
        return kernel_addresses(self.dtype, transposes=True), *layers, self.m, weights, self.space

    def forward(self):
        """Return the product Z = A W + b."""
        layer = Layer(*self.table[self.index])
        z = self.rows(layer.z, layer.row, layer.fan_out)
        out = np.empty(z.shape, self.dtype)

        def numpy():
            np.matmul(self.A, self.W, out=out)
            return np.add(out, self.b, out=out)

        magnitude = np.abs(self.A) @ np.abs(self.W) + np.abs(self.b)
        return Product(self.m, *self.W.shape, self.arguments(self.params), lambda: z, numpy, magnitude)

    def deltas(self):
        """Return the product D W^T."""
        below = Layer(*self.table[self.index - 1])
        carried = self.rows(below.delta, below.row, below.fan_out)
        out = np.empty(carried.shape, self.dtype)
        return Product(
            self.m, *self.W.shape[::-1], self.arguments(self.params), lambda: carried,
            lambda: np.matmul(self.D, self.W.T, out=out), np.abs(self.D) @ np.abs(self.W.T),
        )  # fmt: skip

    def gradient(self):
        """Return the product A^T D."""
        out = np.empty(self.W.shape, self.dtype)
        grads = aligned_zeros(self.network.n_params, self.dtype)
        return Product(
            self.W.shape[0], self.m, self.W.shape[1], self.arguments(grads),
            lambda: self.network.unpack(grads)[0][self.index],
            lambda: np.matmul(self.A.T, self.D, out=out), np.abs(self.A.T) @ np.abs(self.D),
        )  # fmt: skip


@pytest.mark.parametrize("threads", common.thread_counts())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "workload", "index"), PRODUCTS)
def test_product(benchmark, kernel, workload, index, dtype, threads):
    product = getattr(LaidOut(workload, index, dtype), kernel)()

    def ours():
        if threads == 1:
            KERNELS[kernel](*product.arguments, 0, 1)
        else:
            PARALLEL[kernel](*product.arguments, threads)

    with common.all_threads_limited(threads):
        compiled = common.first_call((kernel, dtype, threads), ours)
        # Rounding errors are nearly independent, so that the error of a sum of k terms grows as sqrt(k)
        # (Higham and Mary 2019). The factor 4 covers the largest of many elements, and the errors of both sides.
        bound = 4 * np.sqrt(product.k) * np.finfo(dtype).eps * product.magnitude.max()
        np.testing.assert_allclose(product.result(), product.numpy(), rtol=0, atol=bound)
        shape = f"{product.m}x{product.k}x{product.n}"
        flops = 2.0 * product.m * product.k * product.n
        measure(benchmark, (kernel, shape, dtype, threads), flops, ours, product.numpy, compiled)


@pytest.mark.parametrize("threads", common.thread_counts())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_step(benchmark, workload, dtype, threads):
    """One update, called from Python: from gathering the rows of the batch to the new parameters.

    The inputs are dense. The number of threads is fixed here, whereas training chooses it by measurement.
    """
    units, m, solver, activation, *_ = common.WORKLOADS[workload]
    rng = np.random.RandomState(0)
    X = rng.standard_normal((20 * m, units[0])).astype(dtype)
    Y = np.eye(units[-1], dtype=dtype)[rng.randint(units[-1], size=len(X))]
    batch = rng.permutation(len(X))[:m]
    start = initial_parameters(units, [Relu.init_factor] * (len(units) - 1), rng, dtype)

    plain = PlainNetwork(*start, activation=activation, solver=solver)
    network = make_network(units, [Relu()] * (len(units) - 2) + [Softmax()], dtype, m)
    settings = BackpropClassifier(solver=solver, batch_size=m, n_jobs=threads)._step_settings(m, units[-1])
    params = network.pack(*start)
    session = Session(network, params, OptimizerState.empty(network, solver, 1e-3), settings, m)
    if session.n_threads != threads:
        pytest.skip("Numba has no OpenMP or TBB threading layer here: training uses one thread")
    data, rates, losses = Data(X, Y, np.empty(0, dtype), batch), np.full(1, 1e-3), np.empty(1)

    def ours():
        session._call(data, rates, 0, 1, losses, threads)

    def numpy():
        plain.step(X[batch], Y[batch])

    with common.all_threads_limited(threads):
        compiled = common.first_call(("step", dtype, threads), ours)
        numpy()
        coefs, intercepts = network.unpack(params)
        # Adam's first update is rate * g / (|g| + e) with e = 3e-7. If a gradient is as small as e, its rounding
        # error of about 1e-8 in float32 changes the update by some percent of the rate, which is 1e-3.
        atol = 1e-4 if dtype == "float32" else 1e-11
        for a, b in zip([*coefs, *intercepts], plain.params, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)
        shape = f"{'-'.join(map(str, units))}, {m}"
        flops = training_work(units) * m
        measure(benchmark, ("step", shape, dtype, threads), flops, ours, numpy, compiled)


def measure(benchmark, what, flops, ours, numpy, compiled):
    """Time fastbp, NumPy and the FMA peak alternately, then fastbp again for the table of pytest-benchmark."""
    kernel, _, dtype, threads = what
    benchmark.group = f"{kernel} {dtype}, {threads} thread(s)"
    if benchmark.disabled:
        return benchmark(ours)
    peak, _ = common.register_work(dtype, threads)
    best, quiet = common.in_turns({"fastbp": ours, "numpy": numpy, "peak": peak}, threads=threads)
    gflops = {name: flops / seconds / 1e9 for name, seconds in best.items()}
    peak_gflops = common.peak_gflops(dtype, threads, best["peak"])
    row = common.KernelRow(*what, gflops["fastbp"], peak_gflops, quiet, gflops["numpy"], *compiled)
    common.kernel_rows.append(row)
    benchmark.extra_info.update(row._asdict(), share_of_peak=row.share_of_peak, ratio_to_numpy=row.ratio)
    iterations = max(1, int(0.002 / best["fastbp"]))
    return benchmark.pedantic(ours, rounds=5, iterations=iterations, warmup_rounds=1)
