"""The order of an epoch, as `numpy.random.RandomState.shuffle` would draw it, in compiled code.

References
----------
M. Matsumoto and T. Nishimura, "Mersenne Twister", ACM TOMACS 8(1), 1998. D. Knuth, *The Art of Computer
Programming*, vol. 2, sec. 3.4.2, algorithm P.
"""

from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from fastbp.codegen.jit import inlined, jit, typed_inlined
from fastbp.codegen.memory import load_scalar, store_scalar
from fastbp.compat import mersenne_twister_of, mersenne_twister_state

# Words of the generator's state, and the distance of the two that make a new one.
N_WORDS, DISTANCE = 624, 397


class Twister(NamedTuple):
    """The Mersenne Twister of a RandomState."""

    lock: Any  # who changes the words holds it
    words: np.ndarray  # its memory: uint32 of shape (N_WORDS + 1,)


def twister_of(random_state):
    """Return what `shuffle` needs of a random state.

    Parameters
    ----------
    random_state : numpy.random.RandomState
        Source of randomness.

    Returns
    -------
    Twister or None
        None where it has another generator, or this NumPy keeps it in another way.
    """
    generator = mersenne_twister_of(random_state)
    words = None if generator is None else mersenne_twister_state(generator, N_WORDS)
    return None if words is None else Twister(generator.lock, words)


@contextmanager
def borrowed(twister, words):
    """Copy the words of a twister to others, from which this block draws, and the new words back at its end.

    Nobody holds the lock meanwhile: a child that was forked in this block would wait for it forever, and most networks
    share the one generator of NumPy. Where another thread has drawn from it meanwhile, its words remain.
    """
    if twister is None:
        yield
        return
    with twister.lock:
        taken = twister.words.copy()
    words[...] = taken
    try:
        yield
    finally:
        with twister.lock:
            if np.array_equal(twister.words, taken):
                twister.words[...] = words


@typed_inlined
def _twist(key, i, following, far):
    """Renew word i of the state."""
    bits = (load_scalar(key, i) & np.uint32(0x80000000)) | (load_scalar(key, following) & np.uint32(0x7FFFFFFF))
    odd = load_scalar(key, following) & np.uint32(1)
    store_scalar(key, i, load_scalar(key, far) ^ (bits >> np.uint32(1)) ^ (np.uint32(0x9908B0DF) * odd))


@typed_inlined
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


@jit
def shuffle(items, n, words, accepted):
    """Shuffle in place; the result, and the words after it, are those of NumPy.

    Parameters
    ----------
    items, n : pointer to int64, int64
        At most 2^32 numbers.
    words : pointer to uint32
        The words of the generator, and how many of them have been used; changed in place.
    accepted : pointer to uint32
        Working memory for N_WORDS numbers.
    """
    position = np.int64(load_scalar(words, N_WORDS))
    last = n - 1
    while last > 0:
        if position >= N_WORDS:
            _renew(words)
            position = np.int64(0)
        mask = 1
        while mask < last:
            mask = 2 * mask + 1
        # Draws above `last` are rejected: two in seven, which no processor can predict. So each is stored, and counted
        # only if it is accepted; the exchanges follow, which need not wait for each other.
        count = np.int64(0)
        while position < N_WORDS and last - count > mask >> 1:
            draw = np.int64(_temper(load_scalar(words, position))) & mask
            store_scalar(accepted, count, draw)
            count += np.int64(draw <= last - count)
            position += 1
        for i in range(count):
            j = np.int64(load_scalar(accepted, i))
            item = load_scalar(items, last)
            store_scalar(items, last, load_scalar(items, j))
            store_scalar(items, j, item)
            last -= 1
    store_scalar(words, N_WORDS, position)
