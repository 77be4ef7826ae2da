"""The order of an epoch, as `numpy.random.RandomState.shuffle` would draw it, in a third of the time.

References
----------
M. Matsumoto and T. Nishimura, "Mersenne Twister", ACM TOMACS 8(1), 1998. D. Knuth, *The Art of Computer
Programming*, vol. 2, sec. 3.4.2, algorithm P.
"""

import ctypes
from functools import cache

import numpy as np

from fastbp.kernels.intrinsics import get, pointer, put
from fastbp.kernels.jit import cached_jit, inlined

# Words of the generator's state, and how far apart the two are that make a new one.
N_WORDS, APART = 624, 397
# With fewer numbers than this there is nothing to gain that would pay for compiling.
FEW = 5_000


@cache
def _memory_is_known():
    """Whether this NumPy keeps the state of a Mersenne Twister as its words and, behind them, the position."""
    generator = np.random.MT19937(1)
    generator.random_raw(5)
    expected = generator.state["state"]
    found = _memory_of(generator)
    return np.array_equal(found[:N_WORDS], expected["key"]) and found[N_WORDS] == expected["pos"]


def _memory_of(generator):
    address = generator.ctypes.state_address
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint32)), (N_WORDS + 1,))


def shuffle(order, random_state):
    """Shuffle in place; the result, and the state of the generator after it, are those of NumPy.

    Parameters
    ----------
    order : ndarray of int64, contiguous
        What to shuffle.
    random_state : numpy.random.RandomState
        Where the random numbers come from.
    """
    generator = random_state._bit_generator
    # NumPy shuffles what is short, and with any other generator.
    if not FEW <= order.size <= 2**32 or type(generator) is not np.random.MT19937 or not _memory_is_known():
        random_state.shuffle(order)
        return
    with generator.lock:
        shuffle_with(order, _memory_of(generator), np.empty(N_WORDS, np.uint32))


@inlined
def _twist(high, low, far):
    bits = (high & np.uint32(0x80000000)) | (low & np.uint32(0x7FFFFFFF))
    return far ^ (bits >> np.uint32(1)) ^ (np.uint32(0x9908B0DF) * (low & np.uint32(1)))


@inlined
def _renew(key):
    for i in range(N_WORDS - APART):
        put(key, i, _twist(get(key, i), get(key, i + 1), get(key, i + APART)))
    for i in range(N_WORDS - APART, N_WORDS - 1):
        put(key, i, _twist(get(key, i), get(key, i + 1), get(key, i + APART - N_WORDS)))
    put(key, N_WORDS - 1, _twist(get(key, N_WORDS - 1), get(key, 0), get(key, APART - 1)))


@inlined
def _temper(y):
    y ^= y >> np.uint32(11)
    y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    return y ^ (y >> np.uint32(18))


@cached_jit
def shuffle_with(order, state, draws):
    """Shuffle with a Mersenne Twister.

    Parameters
    ----------
    order : ndarray of int64
        At most 2^32 numbers.
    state : ndarray of uint32 of shape (N_WORDS + 1,)
        The words of the generator, and how many of them have been used; changed in place.
    draws : ndarray of uint32 of shape (N_WORDS,)
        Working memory.
    """
    items, words, accepted = pointer(order, 0), pointer(state, 0), pointer(draws, 0)
    position = np.int64(get(words, N_WORDS))
    last = order.size - 1
    while last > 0:
        if position >= N_WORDS:
            _renew(words)
            position = np.int64(0)
        mask = 1
        while mask < last:
            mask = 2 * mask + 1
        # Draws above `last` are rejected: two in seven, in no order that a processor could guess. So each is
        # written, and counted only if it is accepted; the exchanges follow, which need not wait for each other.
        n = np.int64(0)
        while position < N_WORDS and last - n > mask >> 1:
            draw = np.int64(_temper(get(words, position))) & mask
            put(accepted, n, draw)
            n += np.int64(draw <= last - n)
            position += 1
        for i in range(n):
            j = np.int64(get(accepted, i))
            item = get(items, last)
            put(items, last, get(items, j))
            put(items, j, item)
            last -= 1
    put(words, N_WORDS, position)
