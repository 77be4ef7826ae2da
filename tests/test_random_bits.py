import numpy as np
import pytest
import reference
from numba import njit

from fastbp.codegen.memory import lane_count, pointer
from fastbp.codegen.random_bits import random_at_least, split
from fastbp.codegen.vectors import load, select, store

DTYPES = [np.float32, np.float64]
KEYS = [0, 1, -1, 2**63 - 1, -(2**63), 0x0123_4567_89AB_CDEF, -0x0123_4567_89AB_CDEF]
COUNTERS = [0, 1, 2, 127, 2**31 - 1, 2**31, 2**32, 2**63 - 1]


@njit
def split_of(key, counter):
    return split(key, counter)


@njit
def above(key, threshold, out):
    """Set the numbers of `out` to 1 where the bits of their places are at least a threshold, else to 0."""
    n, out = out.size, pointer(out, 0)
    for j in range(0, n, lane_count(out)):
        store(out, j, select(random_at_least(out, key, j, threshold), load(out, j) * 0.0 + 1.0, 0.0))


def test_split_is_splitmix():
    # The first numbers of splitmix64 with the seed 1234567, of Java's SplittableRandom and many others.
    assert [split_of(1234567, i) % 2**64 for i in range(3)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423
    ]  # fmt: skip
    for key in KEYS:
        for counter in COUNTERS:
            assert split_of(key, counter) % 2**64 == reference.splitmix_naive(key % 2**64, counter)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_against_naive(dtype):
    n = 64
    for key in KEYS:
        bits = [reference.bits_naive(key % 2**64, unit) for unit in range(n)]
        # Thresholds that are met exactly, too: of the bits of some units, and one more.
        for threshold in (0, 1, 2**31, 2**32 - 1, *bits[:8], *(x + 1 for x in bits[:8])):
            out = np.full(n, 7, dtype)
            above(key, min(threshold, 2**32 - 1), out)
            np.testing.assert_array_equal(out, [x >= min(threshold, 2**32 - 1) for x in bits])


def _keys(n):
    return [reference.splitmix_naive(reference.splitmix_naive(5, 0), row) for row in range(n)]


def test_bits_look_random():
    """Shares, and pairs of neighbours of any kind, are within what chance explains; the numbers are always the same."""
    n_rows, n_units = 4096, 512
    for rate in (0.1, 0.5, 0.9):
        masks = []
        for step in range(2):
            kept = np.zeros((n_rows, n_units), np.float32)
            for row, key in enumerate(_keys(n_rows * (step + 1))[-n_rows:]):
                above(np.int64(key - 2**64 if key >= 2**63 else key), int(rate * 2**32), kept[row])
            masks.append(kept.astype(np.float64) - (1 - rate))
        mask, other = masks
        variance = rate * (1 - rate)
        for z in (
            mask.sum() / np.sqrt(mask.size * variance),
            *(mask.sum(axis=0) / np.sqrt(n_rows * variance)),
            *(mask.sum(axis=1) / np.sqrt(n_units * variance)),
            (mask * other).sum() / (np.sqrt(mask.size) * variance),
            *((mask[:, d:] * mask[:, :-d]).sum() / (np.sqrt(mask[:, d:].size) * variance) for d in (1, 2, 8, 16, 256)),
            *((mask[d:] * mask[:-d]).sum() / (np.sqrt(mask[d:].size) * variance) for d in (1, 2, 64, 128)),
        ):
            assert abs(z) < 5
