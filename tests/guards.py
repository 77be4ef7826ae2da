"""Memory that shows what is written, or read, beside an array; and processes that may die of it."""

import ctypes
import mmap
import os
import subprocess
import sys
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


class Fences(Guards):
    """Arrays that end where the memory ends: a read or write after them ends the process."""

    PROTECT_NONE = 0

    def array(self, values, dtype=None):
        values = np.asarray(values, dtype)
        length = -(-values.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, length + mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        fence = ctypes.c_void_p(address + length), ctypes.c_size_t(mmap.PAGESIZE)
        assert protect(*fence, self.PROTECT_NONE) == 0
        array = np.frombuffer(memory, values.dtype, values.size, length - values.nbytes).reshape(values.shape)
        array[...] = values
        return array


def run_alone(call, folder, **changes):
    """Run a function of a test file, as "test_file.function()", in a process of its own, which has four threads."""
    paths = [str(Path(fastbp.__file__).parents[1]), str(Path(__file__).parent)]
    env = {**os.environ, "NUMBA_NUM_THREADS": "4", "PYTHONPATH": os.pathsep.join(paths), **changes}
    command = [sys.executable, "-c", f"import {call.split('.')[0]}; {call}"]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout
