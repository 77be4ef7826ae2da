"""The order of an epoch, as `numpy.random.RandomState.shuffle` would draw it, in a third of the time.

References
----------
M. Matsumoto and T. Nishimura, "Mersenne Twister", ACM TOMACS 8(1), 1998. D. Knuth, *The Art of Computer
Programming*, vol. 2, sec. 3.4.2, algorithm P.
"""

import numpy as np

from fastbp.codegen.jit import cached_jit, inlined
from fastbp.codegen.memory import load_scalar, pointer, store_scalar
from fastbp.compat import mersenne_twister_of, mersenne_twister_state

# Words of the generator's state, and the distance of the two that make a new one.
N_WORDS, DISTANCE = 624, 397
# With fewer numbers than this, the gain would not pay for compiling.
MIN_SIZE = 5_000


def shuffle(order, random_state):
    """Shuffle in place; the result, and the state of the generator after it, are those of NumPy.

    Parameters
    ----------
    order : ndarray of int64, contiguous
        Numbers to shuffle.
    random_state : numpy.random.RandomState
        Source of randomness.
    """
    generator = mersenne_twister_of(random_state)
    state = None
    if generator is not None and MIN_SIZE <= order.size <= 2**32:
        state = mersenne_twister_state(generator, N_WORDS)
    if state is None:
        random_state.shuffle(order)
        return
    with generator.lock:
        shuffle_with(order, state, np.empty(N_WORDS, np.uint32))


@inlined
def _twist(key, i, following, far):
    """Renew word i of the state."""
    bits = (load_scalar(key, i) & np.uint32(0x80000000)) | (load_scalar(key, following) & np.uint32(0x7FFFFFFF))
    odd = load_scalar(key, following) & np.uint32(1)
    store_scalar(key, i, load_scalar(key, far) ^ (bits >> np.uint32(1)) ^ (np.uint32(0x9908B0DF) * odd))


@inlined
def _renew(key):
    for i in range(N_WORDS - DISTANCE):
        _twist(key, i, i + 1, i + DISTANCE)
    for i in range(N_WORDS - DISTANCE, N_WORDS - 1):
        _twist(key, i, i + 1, i + DISTANCE - N_WORDS)
    _twist(key, N_WORDS - 1, 0, DISTANCE - 1)


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
    position = np.int64(load_scalar(words, N_WORDS))
    last = order.size - 1
    while last > 0:
        if position >= N_WORDS:
            _renew(words)
            position = np.int64(0)
        mask = 1
        while mask < last:
            mask = 2 * mask + 1
        # Draws above `last` are rejected: two in seven, which no processor can predict. So each is stored, and counted
        # only if it is accepted; the exchanges follow, which need not wait for each other.
        n = np.int64(0)
        while position < N_WORDS and last - n > mask >> 1:
            draw = np.int64(_temper(load_scalar(words, position))) & mask
            store_scalar(accepted, n, draw)
            n += np.int64(draw <= last - n)
            position += 1
        for i in range(n):
            j = np.int64(load_scalar(accepted, i))
            item = load_scalar(items, last)
            store_scalar(items, last, load_scalar(items, j))
            store_scalar(items, j, item)
            last -= 1
    store_scalar(words, N_WORDS, position)
