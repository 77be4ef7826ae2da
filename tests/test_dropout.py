from itertools import pairwise

import numpy as np
import pytest
import reference
from numba import njit

from fastbp.codegen.jit import call_at
from fastbp.codegen.memory import pointer
from fastbp.codegen.target import lanes
from fastbp.dropout import Dropout

DTYPES = [np.float32, np.float64]
CANARY = -12345.0


@njit
def run_drop(address, key, first_row, threshold, m, left, right, x, out, row):
    call_at(address, (key, first_row, threshold, m, left, right, pointer(x, 0), pointer(out, 0), row))


def layer_key(seed, step, layer):
    key = reference.splitmix_naive(reference.splitmix_naive(seed, step), layer)
    return np.int64(key - 2**64 if key >= 2**63 else key)


@pytest.mark.parametrize("dtype", DTYPES)
def test_drop_against_naive(dtype):
    width, m = lanes(np.dtype(dtype).itemsize), 5
    rng = np.random.default_rng(0)
    for n in [*range(1, 2 * width + 2), 100]:
        row = -(-n // width) * width + width
        for rate, in_place in ((0.5, False), (0.3, True), (0.999, False), (1e-3, True)):
            mask = reference.mask_naive(3, 7, 1, 11 + m, n, rate)[11:]
            values = np.full(m * row, CANARY, dtype).reshape(m, row)
            values[:, : row - width] = rng.normal(size=(m, row - width))
            x = values.copy().ravel()
            out = x if in_place else np.full(m * row, CANARY, dtype)
            for left, right in pairwise((0, *range(width, n, 2 * width), n)):
                args = (layer_key(3, 7, 1), 11, Dropout(rate).threshold, m, left, right)
                run_drop(Dropout(rate).address(dtype), *args, x, out, row)
            expected = values[:, :n] * mask.astype(dtype)
            np.testing.assert_array_equal(out.reshape(m, row)[:, :n], expected)
            assert (out.reshape(m, row)[:, row - width :] == CANARY).all()


def test_thresholds():
    assert [Dropout(rate).threshold for rate in (0.0, 0.25, 0.5)] == [0, 2**30, 2**31]
    assert Dropout(np.nextafter(1, 0)).threshold == 2**32 - 1  # no division by zero
