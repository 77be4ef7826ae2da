import numpy as np
import pytest
from numba import njit

from fastbp.codegen.memory import (
    lane_count,
    load_scalar,
    offset,
    pointer,
    pointer_at,
    prefetch,
    prefetch_for_write,
    store_scalar,
)
from fastbp.codegen.target import VECTOR_BITS, lanes
from fastbp.compat import cpu_features

DTYPES = [np.float32, np.float64]


@njit
def run_pointers(values, index, address):
    base = pointer(values, index)
    there = pointer_at(base, address)
    return lane_count(base), base[0], offset(base, 2)[0], offset(base, -1)[0], there[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_pointers_count_elements(dtype):
    values = np.arange(10, dtype=dtype)
    expected = (VECTOR_BITS // (8 * values.itemsize), 3, 5, 2, 7)
    assert run_pointers(values, 3, values[7:].ctypes.data) == expected
    assert lanes(values.itemsize) * values.itemsize * 8 == VECTOR_BITS


@njit
def run_load_and_store(values):
    base = pointer(values, 2)
    prefetch(base, 1)
    store_scalar(base, 0, load_scalar(base, -1) + load_scalar(base, 3))
    store_scalar(base, 1, 7)
    store_scalar(base, 2, 1.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_load_and_store_scalars(dtype):
    values = np.arange(10, dtype=dtype)
    run_load_and_store(values)
    np.testing.assert_array_equal(values, np.array([0, 1, 1 + 5, 7, 1.5, *range(5, 10)]).astype(dtype))


@njit
def run_prefetch(values):
    prefetch(pointer(values, 0), 1)


@njit
def run_prefetch_for_write(values):
    prefetch_for_write(pointer(values, 0), 1)


@pytest.mark.skipif("+prfchw" not in cpu_features().split(","), reason="this machine has one kind of prefetch only")
@pytest.mark.parametrize(("run", "instruction"), [(run_prefetch, "prefetcht0"), (run_prefetch_for_write, "prefetchw")])
def test_prefetch(run, instruction):
    run(np.zeros(3))
    (code,) = run.inspect_asm().values()
    assert instruction in code
