import numpy as np
import pytest
from numba import njit

from fastbp.codegen.processor import flush_subnormals, restore_subnormals
from fastbp.codegen.target import ARM64, X86

DTYPES = [np.float32, np.float64]


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
@pytest.mark.skipif(not (X86 or ARM64), reason="no such mode is known here")
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
