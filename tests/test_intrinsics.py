import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit, typeof

import fastbp
from fastbp.kernels import intrinsics
from fastbp.kernels.intrinsics import (
    VECTOR_BITS,
    call_at,
    flush_subnormals,
    load_scalar,
    lane_count,
    lanes,
    pointer,
    pointer_at,
    prefetch,
    prefetch_for_write,
    store_scalar,
    restore_subnormals,
    offset,
    view,
)

DTYPES = [np.float32, np.float64]
# What lies around the outputs: no kernel computes it.
CANARY = -12345.0


@njit
def run_pointers(values, offset, address):
    base = pointer(values, offset)
    there = pointer_at(base, address)
    return lane_count(base), base[0], offset(base, 2)[0], offset(base, -1)[0], there[0]


@njit
def run_views(values):
    for array in (view(pointer(values, 2), 3), view(pointer(values, 6), 2)):
        for i in range(array.size):
            array[i] = -array[i]


@pytest.mark.parametrize("dtype", DTYPES)
def test_pointers_and_views_count_in_elements(dtype):
    values = np.arange(10, dtype=dtype)
    expected = (VECTOR_BITS // (8 * values.itemsize), 3, 5, 2, 7)
    assert run_pointers(values, 3, values[7:].ctypes.data) == expected
    assert lanes(values.itemsize) * values.itemsize * 8 == VECTOR_BITS
    run_views(values)
    np.testing.assert_array_equal(values, [0, 1, -2, -3, -4, 5, -6, -7, 8, 9])


@njit
def run_get_and_put(values):
    base = pointer(values, 2)
    prefetch(base, 1)
    store_scalar(base, 0, load_scalar(base, -1) + load_scalar(base, 3))
    store_scalar(base, 1, 7)
    store_scalar(base, 2, 1.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_get_and_put(dtype):
    values = np.arange(10, dtype=dtype)
    run_get_and_put(values)
    np.testing.assert_array_equal(values, np.array([0, 1, 1 + 5, 7, 1.5, *range(5, 10)]).astype(dtype))


@njit
def to_be_called(values, pair, factor):
    values[0] = factor * pair[0][1] + pair[1]


@njit
def run_call_at(address, values, pair, factor):
    call_at(address, (values, pair, factor))


def test_call_at():
    values, pair = np.zeros(2), (np.array([5, 7]), 0.5)
    kinds = tuple(map(typeof, (values, pair, 3)))
    to_be_called.compile(kinds)
    compiled = to_be_called.overloads[kinds]
    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    run_call_at(address, values, pair, 3)
    assert values.tolist() == [21.5, 0]


@njit
def run_prefetch(values):
    prefetch(pointer(values, 0), 1)


@njit
def run_prefetch_to_write(values):
    prefetch_for_write(pointer(values, 0), 1)


@pytest.mark.skipif("prfchw" not in intrinsics._FEATURES, reason="this machine has one kind of prefetch only")
@pytest.mark.parametrize(("run", "instruction"), [(run_prefetch, "prefetcht0"), (run_prefetch_to_write, "prefetchw")])
def test_prefetch(run, instruction):
    run(np.zeros(3))
    (code,) = run.inspect_asm().values()
    assert instruction in code


# --- modes ---


@njit
def halve(values, out):
    for i in range(values.size):
        out[i] = values[i] * values.dtype.type(0.5)


@njit
def enter():
    return flush_subnormals()


@njit
def leave(mode):
    restore_subnormals(mode)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.skipif(not (intrinsics.X86 or intrinsics._ARM64), reason="no such mode is known here")
def test_subnormals_are_flushed_and_come_back(dtype):
    info = np.finfo(dtype)
    values = np.array([info.tiny, info.smallest_subnormal * 8, 1.0], dtype=dtype)
    kept = values / 2
    assert kept.all()
    flushed = np.array([0.0, 0.0, 0.5], dtype=dtype)
    out = np.empty_like(values)
    outer = enter()
    try:
        halve(values, out)
        inside = out.copy()
        leave(enter())  # an inner pair leaves the outer mode as it is
        halve(values, out)
        nested = out.copy()
    finally:
        leave(outer)
    halve(values, out)
    np.testing.assert_array_equal([inside, nested, out], [flushed, flushed, kept])


def test_a_machine_without_vector_extensions_gets_the_least(tmp_path):
    root = Path(fastbp.__file__).parents[1]
    code = (
        "from fastbp.kernels.intrinsics import *; from fastbp.codegen.tiles import NV; print(HAS_FMA, VECTOR_BITS, NV)"
    )
    env = {**os.environ, "PYTHONPATH": str(root), "NUMBA_CPU_NAME": "generic"}
    env.pop("NUMBA_CPU_FEATURES", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    has_fma, bits, vectors = done.stdout.split()
    assert bits == "128"
    # ARM processors of 64 bits all have fused multiply-adds and 32 registers.
    assert (has_fma, vectors) in [("False", "2"), ("True", "4")]
