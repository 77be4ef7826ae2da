"""Memory that shows what is written, or read, beside an array; and processes that may die of it."""

import ctypes
import mmap
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np

import fastbp

# Around all arrays; what they hold is never it.
CANARY = 12345
GUARD = 64


class Guards:
    """Arrays that lie between canaries."""

    def __init__(self):
        self.wholes = []

    def array(self, values, dtype=None):
        values = np.asarray(values, dtype)
        whole = np.full(values.size + 2 * GUARD, np.array(CANARY).astype(values.dtype))
        whole[GUARD:-GUARD] = values.ravel()
        self.wholes.append((whole, whole[:GUARD].tobytes()))
        return whole[GUARD:-GUARD].reshape(values.shape)

    def zeros(self, n, dtype):
        return self.array(np.zeros(n, dtype))

    def check(self):
        for whole, canaries in self.wholes:
            assert whole[:GUARD].tobytes() == whole[-GUARD:].tobytes() == canaries


# --- memory beside which there is none ---

PAGE = mmap.PAGESIZE
_PROT_NONE = 0


@cache
def _mprotect():
    function = ctypes.CDLL(None, use_errno=True).mprotect
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function


class Fences:
    """Arrays between two pages that cannot be used: a read or a write there ends the process.

    Parameters
    ----------
    side : {"begin", "end"}
        Where an array touches such a page. Between it and the other page there are canaries, of less than a page.
    """

    def __init__(self, side="end"):
        self.side = side
        self._wholes = []

    def memory(self, n_bytes):
        """Return an array of `n_bytes` bytes, zeros."""
        length = -(-n_bytes // PAGE) * PAGE
        pages = np.frombuffer(mmap.mmap(-1, length + 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
        for place in (0, PAGE + length):
            assert _mprotect()(pages.ctypes.data + place, PAGE, _PROT_NONE) == 0, ctypes.get_errno()
        whole = pages[PAGE : PAGE + length]
        begin = 0 if self.side == "begin" else length - n_bytes
        whole[:begin] = whole[begin + n_bytes :] = CANARY % 251
        self._wholes.append((whole, begin, begin + n_bytes))
        return whole[begin : begin + n_bytes]

    def array(self, values, dtype=None):
        """Return a copy of an array."""
        values = np.asarray(values, dtype)
        copy = self.memory(values.nbytes).view(values.dtype).reshape(values.shape)
        copy[...] = values
        return copy

    def check(self):
        """Check that the canaries are there."""
        for whole, begin, end in self._wholes:
            assert (whole[:begin] == CANARY % 251).all() and (whole[end:] == CANARY % 251).all()


def run_alone(call, folder, **changes):
    """Run a function of a test file, as "test_file.function()", in a process of its own, which has four threads."""
    paths = [str(Path(fastbp.__file__).parents[1]), str(Path(__file__).parent)]
    env = {**os.environ, "NUMBA_NUM_THREADS": "4", "PYTHONPATH": os.pathsep.join(paths), **changes}
    command = [sys.executable, "-c", f"import {call.split('.')[0]}; {call}"]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout
