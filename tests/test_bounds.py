"""No kernel touches anything beside its arrays, all of which lie between pages that cannot be used.

The process that runs the kernels ends if one does. Python gives compiled code arrays, whatever function it calls: each
becomes a copy between fences for the time of the call (`Fenced`). What compiled code knows by its address only, or
allocates itself, is fenced by `_fence_addresses`. So this file need not know which arrays there are.
"""

import ctypes
import os
import signal
import sys
import warnings
from contextlib import ExitStack
from itertools import cycle, product
from typing import Any, NamedTuple
from unittest import mock

import llvmlite.binding as llvm
import numpy as np
import pytest
from guards import Fences, run_alone
from numba import njit
from numba.core.dispatcher import Dispatcher
from scipy.sparse import csr_array

from fastbp import BackpropClassifier, BackpropRegressor, compiled, inspection
from fastbp import prediction as predictors
from fastbp.activations import ACTIVATIONS, Threshold, get_activation
from fastbp.codegen.bitmask import MASK_BITS
from fastbp.codegen.jit import _ForgivingCache
from fastbp.codegen.memory import load_scalar, pointer, store_scalar
from fastbp.codegen.target import lanes
from fastbp.codegen.tiles import MR, NV
from fastbp.codegen.vectors import load_converted, store
from fastbp.kernels import embedded, session, threads, workers
from fastbp.kernels.csr import _Table
from fastbp.kernels.csr_matrix import CsrMatrix
from fastbp.kernels.plan import BLOCK_ROWS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]

# --- fences around all that compiled code is given ---


class Fenced:
    """A compiled function that gets copies between fences instead of the arrays in its arguments.

    Attributes
    ----------
    side : {"begin", "end", None}
        Of all fences; None for no fences.
    called : set of str
        The names of the functions that were called.
    """

    side: Any = None
    called: set = set()

    def __init__(self, function):
        self._function = function

    def __getattr__(self, name):
        return getattr(self._function, name)

    def __call__(self, *args):
        if Fenced.side is None:
            return self._function(*args)
        Fenced.called.add(self._function.__name__)
        fences, copies = Fences(Fenced.side), {}

        def fence(value):
            if isinstance(value, np.ndarray):  # the same array may be there twice
                key = value.ctypes.data, value.dtype, value.shape
                if key not in copies:
                    copies[key] = value, fences.array(value)
                return copies[key][1]
            if isinstance(value, tuple):
                parts = map(fence, value)
                return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
            return value

        try:
            return self._function(*map(fence, args))
        finally:
            for array, copy in copies.values():
                if array.tobytes() != copy.tobytes():
                    array[...] = copy
            fences.check()


def _fenced(array):
    """Return a copy between fences, or the array itself where there are none."""
    return array if Fenced.side is None else Fences(Fenced.side).array(array)


class _FencedCsr(session.Csr):
    """What compiled code knows of sparse rows by addresses in a table."""

    def __init__(self, matrix, *args):
        super().__init__(CsrMatrix(*map(_fenced, matrix[:3]), matrix.n_features), *args)
        arrays, matrix = self._keep
        arrays = {name: _fenced(array) for name, array in arrays.items()}
        self._keep, self._clock = (arrays, matrix), arrays["clock"]
        self.waiting = arrays["last"], arrays["clock"]
        addresses = {name: array.ctypes.data for name, array in arrays.items()}
        self.table = np.array(_Table(*map(int, self.table))._replace(**addresses), np.int64)


class _FencedHeap:
    """Takes the place of `malloc` and `free` in compiled code."""

    def __init__(self):
        self.count = 0
        self._given = {}
        self._functions = (
            ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(self._allocate),
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._release),
        )  # fmt: skip
        for name, function in zip(("malloc", "free"), self._functions, strict=True):
            llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)

    def _allocate(self, n_bytes):
        fences = Fences(Fenced.side or "end")
        # `predict_rows` begins at a multiple of 64 bytes, and has asked for so many more. Most of them are not there:
        # it begins 8 bytes further on, and what it uses ends at the fence, but for less than a cache line.
        spare = 56 - -n_bytes % 64 if fences.side == "end" else 0
        memory = fences.memory(n_bytes - spare)
        self._given[memory.ctypes.data] = memory, fences
        self.count += 1
        return memory.ctypes.data

    def _release(self, address):
        _, fences = self._given.pop(address)
        fences.check()


def _compiled_functions():
    """Return the functions of the package that have machine code of their own, with the modules that know them."""
    found = {}
    for name, module in list(sys.modules.items()):
        for place, value in list(vars(module).items()) if name.split(".")[0] == "fastbp" else ():
            if isinstance(value, Dispatcher) and isinstance(value._cache, _ForgivingCache):
                found.setdefault(value, []).append((module, place))
    return found


def _is_called_by_python(function):
    # The last one starts the threads: it is given addresses.
    return not function.targetoptions.get("no_cpython_wrapper") and function.__name__ != "_call_on_each"


def _fence_all():
    """Put fences everywhere; return the compiled functions, and the heap."""
    heap = _FencedHeap()  # before there is machine code that allocates
    functions = _compiled_functions()
    for function, places in functions.items():
        if _is_called_by_python(function):
            fenced = Fenced(function)
            for module, name in places:
                setattr(module, name, fenced)
    _fence_addresses()
    return functions, heap


def _fence_addresses():
    """Put fences around what compiled code knows by its address only."""
    session.Csr = _FencedCsr
    parameters, describe = predictors.Predictor.parameters, embedded.describe

    def fenced_parameters(self):
        coefs, intercepts = parameters(self)
        return list(map(_fenced, coefs)), list(map(_fenced, intercepts))

    predictors.Predictor.parameters = fenced_parameters
    predictors.MAX_KEPT = -1  # no workspace has the copies of a call before
    compiled.aligned_copy = lambda array, dtype: _fenced(np.array(array, dtype, order="C"))
    embedded.describe = lambda *args, **kwargs: _fenced(describe(*args, **kwargs))


# --- networks of many shapes ---

HIDDEN = [name for name in ACTIVATIONS if name != "threshold"]
HIDDEN += [Threshold(surrogate=name) for name in ("logistic", "tanh", "identity")]


class Case(NamedTuple):
    """A way to train and to predict; the shapes of networks and batches go through all remainders."""

    target: str  # "softmax", "binary", "multilabel", or a loss of the regressor
    form: str = "dense"  # of the input: also "float64", "uint8", "zeros" for lists of non-zero inputs, "csr"
    depth: int = 1  # hidden layers
    options: dict = {}
    changes: dict = {}  # of what the package has, by name


CHUNKS = {
    "fastbp.kernels.session.workspace_rows": lambda network, work: 5,
    "fastbp.kernels.network.is_packed": lambda *args: True,
    "fastbp.kernels.session.pass_rows": lambda network: 3,
}
CUTS = {"fastbp.kernels.plan.L2_BYTES": 512, "fastbp.kernels.plan.STREAM_BYTES": 128}
CLIPPED = {"max_grad_norm": 0.1, "dropout": 0.3}
NO_ALPHA = {"alpha": 0.0}
CASES = {
    "adam": Case("softmax"),
    "sgd": Case("squared_error", "float64", 2, {"solver": "sgd"}),
    "adamw": Case("multilabel", "uint8", 1, {"solver": "adamw", "weight_decay": 0.1, **CLIPPED}),
    "lbfgs": Case("huber", "dense", 2, {"solver": "lbfgs"}),
    "one by one": Case("binary", options={"batch_size": 1}),
    "one by one, sgd": Case("poisson", "float64", 0, {"batch_size": 1, "solver": "sgd", "alpha": 0.0}),
    "a few": Case("softmax", "dense", 2, {"batch_size": 3}),
    "a few, sgd": Case("squared_error", "float64", 1, {"batch_size": 2, "solver": "sgd", "momentum": 0.0}),
    "one output": Case("binary", "dense", 0),
    "scores": Case("quantile", options={"early_stopping": True, "validation_fraction": 0.5}),
    "chunks": Case("absolute_error", "dense", 2, {"solver": "sgd"}, CHUNKS | CUTS),
    "chunks, clipped": Case("softmax", "dense", 2, CLIPPED, CHUNKS),
    "zeros": Case("squared_error", "zeros", 1, CLIPPED),
    "zeros, chunks": Case("softmax", "zeros", 2, {}, CHUNKS),
    "csr": Case("softmax", "csr"),
    "csr, waiting": Case("multilabel", "csr", 1, NO_ALPHA, {"fastbp.kernels.lazy.MAX_STEPS": 4}),
    "csr, waiting, sgd": Case("huber", "csr", 0, NO_ALPHA | CLIPPED | {"solver": "sgd", "dropout": 0.0}),
    "csr, chunks": Case("poisson", "csr", 2, {"solver": "sgd", "learning_rate_init": 1e-4}, CHUNKS),
    "csr, clipped": Case("squared_error", "csr", 1, {"solver": "adamw", **CLIPPED}),
    "csr, lbfgs": Case("binary", "csr", 1, {"solver": "lbfgs"}),
}  # fmt: skip
CLASSES = {"softmax", "binary", "multilabel"}
SHARES = (0, 0.1, 0.5, 1)  # of the entries of sparse rows that are there


class Shape(NamedTuple):
    """Numbers of units, and of samples."""

    features: int
    hidden: int
    outputs: int
    batch: int


def _shapes(dtype):
    """Return shapes in which each number goes through all remainders of the register tile."""
    most = 2 * NV * lanes(dtype.itemsize)  # a power of two
    return [
        Shape(1 + i, 1 + (3 * i + 5) % most, 1 + (5 * i + 2) % most, 1 + (7 * i + 3) % (2 * MR)) for i in range(most)
    ]  # fmt: skip


def _samples(case, shape, dtype, rng):
    """Return inputs and targets; no input is zero but in sparse rows, so that lists are as long as they can be."""
    n = 2 * shape.batch + 1 + shape.batch // 2
    if case.target == "softmax":
        n = max(n, shape.outputs)
    if case.options.get("early_stopping"):
        n += 4
    X = rng.uniform(0.5, 2, (n, shape.features))
    if case.form == "csr":
        # Few where rows of weights wait for their features.
        share = 0.1 if case.options.get("alpha") == 0 else SHARES[rng.integers(len(SHARES))]
        X = csr_array((X * (rng.random(X.shape) < share)).astype(dtype))
    else:
        X = (
            (100 * X).astype(np.uint8)
            if case.form == "uint8"
            else X.astype(np.float64 if case.form == "float64" else dtype)
        )
    if case.target == "softmax":
        return X, np.arange(n) % max(3, shape.outputs)
    if case.target == "binary":
        return X, np.arange(n) % 2
    Y = rng.uniform(0, 2, (n, 1 + shape.outputs if case.target == "multilabel" else shape.outputs))
    return X, (Y > 1).astype(int) if case.target == "multilabel" else Y


def _results(case, shape, dtype, seed, n_jobs):
    """Train and predict; return the bits of all that comes out."""
    rng = np.random.default_rng(seed)
    X, y = _samples(case, shape, dtype, rng)
    n = X.shape[0]
    options = {
        "hidden_layer_sizes": [shape.hidden, 1 + shape.hidden // 2][: case.depth], "batch_size": min(shape.batch, n),
        "activation": HIDDEN[seed % len(HIDDEN)], "max_iter": 2, "n_jobs": n_jobs, "dtype": dtype.name,
        "random_state": seed, **case.options,
    }  # fmt: skip
    is_classifier = case.target in CLASSES
    model = BackpropClassifier(**options) if is_classifier else BackpropRegressor(case.target, **options)
    weight = rng.uniform(0.5, 2, n) if seed % 2 else None
    with ExitStack() as stack:
        for name, value in case.changes.items():
            stack.enter_context(mock.patch(name, value))
        if case.form == "zeros":
            stack.enter_context(mock.patch("fastbp.estimator.is_mostly_zero", lambda X: True))
            stack.enter_context(mock.patch.object(predictors, "is_mostly_zero", lambda X: True))
            stack.enter_context(mock.patch.object(predictors, "MANY_ROWS", 1))
        model.fit(X, y, weight)
        if model.solver != "lbfgs" and not model.early_stopping:
            model.partial_fit(X, y, weight)
        predict = model.predict_proba if is_classifier else model.predict
        outputs = [predict(X[:m]) for m in {1, shape.batch, n}]  # one row, few and many
        if case.form == "dense":
            predictor = model.compiled_predictor()
            outputs += [predictor(X[:m]) for m in {1, n}]
            outputs += [np.ravel(part) for part in inspection.loss_and_gradient(model, X, y)]
            if seed % 4 == 1:
                outputs += [value for terms in inspection.gradient_terms(model, X, y) for value in terms.values()]
    curves = [np.array(model.loss_curve_), np.array(model.validation_loss_curve_ or [])]
    arrays = [*model.coefs_, *model.intercepts_, *curves, *outputs]
    assert all(np.isfinite(array).all() for array in arrays)
    return [array.tobytes() for array in arrays]


def _check(case, shape, dtype, seed, most_threads=3):
    """Compare what is the same wherever the arrays lie, and on how many threads."""
    case = CASES[case] if isinstance(case, str) else case
    found = []
    for side, n_jobs in (("begin", 1), ("end", 1 + seed % most_threads)):
        Fenced.side = side
        found.append(_results(case, shape, dtype, seed, n_jobs))
    if seed % 8 == 0:
        Fenced.side = None
        found.append(_results(case, shape, dtype, seed, 1))
    for other in found[1:]:
        assert other == found[0], (case, shape, dtype)


# Where more comes into play than the remainders.
GROUPS = {"fastbp.kernels.session.workspace_rows": lambda network, work: MASK_BITS + 1}
LARGE_CASES = [
    # So many parameters that whole blocks are prefetched: the lists of cache lines.
    (Case("softmax"), Shape(BLOCK_ROWS, 9000, 16, 70)),
    (Case("softmax", "zeros"), Shape(BLOCK_ROWS, 9000, 16, 70)),
    # Chunks, with a row in a group of masks of its own: the masks, and the lists over the rows.
    (Case("squared_error", "zeros", 1, CLIPPED, GROUPS), Shape(5 * BLOCK_ROWS, 48, 16, 2 * (MASK_BITS + 1))),
    # More inputs than rows, one of them in a group of its own: the list over the inputs. Transposed storage.
    (Case("binary", "zeros"), Shape(6 * MASK_BITS + 1, 48, 1, 2)),
    (Case("binary"), Shape(6 * MASK_BITS + 1, 48, 1, 2)),
]  # fmt: skip


class _Alternating:
    """Lets every second prediction be one on several threads, which have all lost their processors."""

    def __init__(self):
        self._turns = cycle((1, 2, 1, 3))

    def begin(self, *_):
        return next(self._turns), None


def _check_kernels(is_whole=False):
    """Runs in a process that ends where anything beside an array is touched."""
    functions, heap = _fence_all()
    teams, sizes = [], set()
    new_team, threads.new_team = threads.new_team, lambda *args: teams.append(new_team(*args)) or teams[-1]
    threads.thread_count = threads.python_thread_count = lambda n_jobs, work, least=0: n_jobs
    alternating = _Alternating()
    predictors.short_calls, predictors.SHARING_CYCLES = lambda: alternating, 0
    workers.Workers.start = lambda *_: True  # they would have other cells, as each argument is copied
    predictors.MAX_PREDICTION_ROWS = 3  # several threads have some, where zeros are left out
    runs = cycle((threads.run, threads.run, workers.run))
    workers.run = lambda *args: next(runs)(*args)
    warnings.simplefilter("ignore")
    count = 0
    for dtype in DTYPES:
        for seed, shape in enumerate(_shapes(dtype)):
            for turn, name in enumerate(CASES):
                if is_whole or (turn + seed) % 11 == 0:
                    _check(name, shape, dtype, seed)
                    count += 1
            sizes.update(int(team[threads._SIZE]) for team in teams)
            teams.clear()
        for case, shape in LARGE_CASES:
            _check(case, shape, dtype, 2 * count + 1, 2)  # on two threads
            count += 1
        _check_conversions(dtype)
        cells = workers._new_cells()
        workers._work(cells, threads.new_team(2), 10_000, 0, 0)
        workers._end(cells)
        for activation in (*HIDDEN, Threshold()):
            activation = get_activation(activation)
            for n, Fenced.side in product(range(1, 2 * lanes(dtype.itemsize) + 1), ("begin", "end")):
                activation(np.ones(n, dtype)), activation.derivative(np.ones(n, dtype))
    # All kernels were there, and threads that worked together: some are too late for a call.
    missed = {function.__name__ for function in functions if not function.overloads} - Fenced.called
    assert missed <= {"_spread"}, missed  # which needs as many cores as threads
    assert {f.__name__ for f in functions if _is_called_by_python(f)} == Fenced.called
    assert {2, 3} <= sizes and heap.count > 100
    print("inside", count)


@njit
def _convert(values, count, out):
    store(pointer(out, 0), 0, load_converted(pointer(values, 0), 0, count, pointer(out, 0)))


def _check_conversions(dtype):
    """Some numbers of another type become a vector."""
    width = lanes(dtype.itemsize)
    for source, count in product((np.float32, np.float64, np.uint8), range(1, width + 1)):
        out = Fences("begin").array(np.zeros(width, dtype))
        _convert(Fences().array(np.arange(count), source), count, out)
        np.testing.assert_array_equal(out[:count], np.arange(count))


def test_kernels_stay_inside_their_arrays(tmp_path):
    assert run_alone("test_bounds._check_kernels()", tmp_path).startswith("inside")


@pytest.mark.slow
def test_kernels_stay_inside_their_arrays_in_all_shapes(tmp_path):
    assert run_alone("test_bounds._check_kernels(True)", tmp_path).startswith("inside")


def _check_few():
    """The same for what is compiled soonest."""
    _, heap = _fence_all()
    warnings.simplefilter("ignore")
    dtype = DTYPES[0]
    _check_conversions(dtype)
    for seed, shape in enumerate(_shapes(dtype)):
        for name in ("adam", "one by one"):
            _check(name, shape, dtype, seed, 1)
    assert heap.count > 10  # machine code calls it, so that it must be there until now
    print("inside")


@pytest.mark.slow
def test_kernels_stay_inside_their_arrays_on_the_least_of_machines(tmp_path):
    """Newer instructions forgive reading numbers that are masked out."""
    assert (
        run_alone("test_bounds._check_few()", tmp_path, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="") == "inside\n"
    )


@pytest.mark.slow
def test_indices_of_arrays_are_inside(tmp_path):
    """Where a kernel indexes an array, Numba checks: that is other machine code, with a cache of its own."""
    folder = str(tmp_path / "cache")
    out = run_alone("test_bounds._check_kernels()", tmp_path, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=folder)
    assert out.startswith("inside")


# --- the fences themselves ---


@njit
def _touch(values, place, writes):
    if writes:
        store_scalar(pointer(values, 0), place, 1.0)
    return load_scalar(pointer(values, 0), place)


def _check_fences():
    """Let children touch what is beside an array."""
    for writes in (False, True):
        for side, beside in (("begin", -1), ("end", 3)):
            array = Fences(side).array(np.ones(3))
            for place, status in ((0, 0), (2, 0), (beside, signal.SIGSEGV)):
                child = os.fork()
                if child == 0:
                    _touch(array, place, writes)
                    os._exit(0)
                assert os.waitpid(child, 0)[1] & 0x7F == status, (side, place)
    print("ended")


def test_fences_end_the_process(tmp_path):
    assert run_alone("test_bounds._check_fences()", tmp_path) == "ended\n"


@pytest.mark.parametrize(("side", "place"), [("begin", 3), ("end", -1)])
def test_canaries_show_what_is_written_at_the_other_side(side, place):
    fences = Fences(side)
    array = fences.array(np.ones(3))
    fences.check()
    _touch(array, place, True)
    with pytest.raises(AssertionError):
        fences.check()
