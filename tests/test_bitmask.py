import numpy as np
import pytest
from numba import njit

from fastbp.codegen.bitmask import MASK_BITS, append_set_bits, append_where_any, nonzero_mask
from fastbp.codegen.memory import pointer

DTYPES = [np.float32, np.float64]
# Around the outputs; no kernel computes it.
CANARY = -12345


@njit
def run_nonzero_mask(values, at):
    return nonzero_mask(pointer(values, at))


@njit
def run_append_set_bits(bits, base, out, count):
    return append_set_bits(bits, base, pointer(out, 0), count)


@njit
def run_append_where_any(masks, bits, n, base, out, count):
    return append_where_any(pointer(masks, 0), bits, n, base, pointer(out, 0), count)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nonzero_mask(dtype):
    values = np.zeros(MASK_BITS + 2, dtype)
    assert run_nonzero_mask(values, 1) == 0
    values[0] = values[-1] = 1  # outside
    values[[3, MASK_BITS, 5, 6, 7]] = -1, np.nan, -0.0, np.inf, np.finfo(dtype).tiny
    assert run_nonzero_mask(values, 1) == sum(1 << i for i in (2, 5, 6, MASK_BITS - 1))
    assert run_nonzero_mask(np.ones(MASK_BITS, dtype), 0) == (1 << MASK_BITS) - 1


def test_append_set_bits():
    rng = np.random.default_rng(0)
    for bits in [0, 1, 1 << (MASK_BITS - 1), (1 << MASK_BITS) - 1, *rng.integers(0, 1 << MASK_BITS, 50)]:
        out = np.full(3 + MASK_BITS + 1, CANARY, np.int32)
        count = run_append_set_bits(bits, 100, out, 3)
        assert out[3:count].tolist() == [100 + i for i in range(MASK_BITS) if bits >> i & 1]
        assert (out[:3] == CANARY).all() and out[-1] == CANARY


def test_append_where_any():
    rng = np.random.default_rng(0)
    for n in (1, 5, MASK_BITS - 1, MASK_BITS, 100):
        masks = rng.integers(0, 1 << MASK_BITS, MASK_BITS).astype(np.uint16)
        masks[::3] = 0
        for bits in (1, 1 << (MASK_BITS - 1), 0b1010, (1 << MASK_BITS) - 1):
            out = np.full(3 + MASK_BITS + 1, CANARY, np.int32)
            count = run_append_where_any(masks, bits, n, 100, out, 3)
            assert out[3:count].tolist() == [100 + i for i in range(min(n, MASK_BITS)) if masks[i] & bits]
            assert (out[:3] == CANARY).all() and out[-1] == CANARY
