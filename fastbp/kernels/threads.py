"""Threads: how many, when none, and how those of one call keep step.

A parallel call is a team: each thread runs the same function from end to end, takes its
share of the rows, and waits for the others where it needs their results. The results do not
depend on how many threads there are, so that the team is whoever turns up: a thread that
comes late, or never, is not waited for. A barrier costs a fraction of a microsecond, a
parallel region of OpenMP more than one.
"""

import multiprocessing
import os
from contextlib import contextmanager
from functools import cache

import joblib
import numba
import numpy as np
from numba.np.ufunc import parallel as numba_parallel

from fastbp.kernels.concurrency import (
    MOST_CPUS,
    atomic_add,
    atomic_load,
    atomic_store,
    current_cpu,
    get_cpus,
    set_cpus,
    spin_pause,
    yield_thread,
)
from fastbp.kernels.intrinsics import get, pointer, put, shift
from fastbp.kernels.jit import address_of, inlined, jit

# Cells of the team's array, 128 bytes apart, so that no two share a cache line.
_APART = 16
_ARRIVED, _SIZE, _WAITING, _ROUND, _TICKET, _STAY, _PLACES = (_APART * i for i in range(7))
# From _PLACES on each thread has its place, the processors that it may use, and those of them that it moves to.
_WORDS = MOST_CPUS // 64
_EACH = _APART + 2 * _WORDS
_CLOSED = 1 << 32
# How often the first thread looks for the others before it begins without them: some milliseconds, as a sleeping thread
# may have to wait for its processor.
_PATIENCE = 20_000


def new_team(wanted):
    """Return the cells through which so many threads of one call find each other."""
    team = np.zeros(_PLACES + _EACH * wanted, dtype=np.int64)
    if wanted > 1 and (_stay() or wanted > _count_cores()):
        team[_STAY] = 1
    return team


def _stay():
    """Whether threads are to stay where the system, or the user, has put them."""
    return "OMP_PROC_BIND" in os.environ or os.environ.get("FASTBP_STAY", "0") != "0"


# After so many looks a waiting thread gives its processor away at each: where there are more threads than
# processors, the one that is waited for may need it.
_LOOKS_BEFORE_YIELD = 4_000


@inlined
def _rest(looks):
    if looks < _LOOKS_BEFORE_YIELD:
        spin_pause()
    else:
        yield_thread()
    return looks + 1


@inlined
def join_team(team, wanted):
    """Enter the team of this call.

    Parameters
    ----------
    team : ndarray of int64
        Cells from `new_team`, fresh for each call.
    wanted : int64
        Number of threads that were started.

    Returns
    -------
    rank, size : int64
        Number of this thread, 0 to size - 1, and how many take part. The rank is -1 for a thread that
        came after the team had begun: it has nothing to do.
    """
    rank = atomic_add(team, _ARRIVED, 1)
    if rank >= _CLOSED:
        return -1, 0
    if wanted > 1:  # before the team begins, so that `_spread` finds it
        atomic_store(team, _PLACES + _EACH * rank, current_cpu() + 1)
    if rank == 0:
        looks = 0
        while atomic_load(team, _ARRIVED) < wanted and looks < _PATIENCE:
            looks = _rest(looks)
        atomic_store(team, _SIZE, atomic_add(team, _ARRIVED, _CLOSED))
    looks = 0
    while atomic_load(team, _SIZE) == 0:
        looks = _rest(looks)
    size = atomic_load(team, _SIZE)
    if size > 1 and atomic_load(team, _STAY) == 0:
        _spread(team, rank, size)
    return rank, size


@jit
def _spread(team, rank, size):
    """Leave a processor that another thread of the team has.

    The scheduler may wake a thread on the processor of the one that called it, and leave it there for a tenth
    of a second, though another is idle: so long the two would be no faster than one. A thread that is forbidden
    the processors of its team moves at once; then it is allowed what it was before. Where there is no other
    processor the system refuses, and nothing changes. Places may be stale: at worst a thread stays, or moves twice.
    """
    mine = _PLACES + _EACH * rank
    allowed = pointer(team, mine + _APART)
    others = shift(allowed, _WORDS)
    for _ in range(2):
        cpu = current_cpu()
        atomic_store(team, mine, cpu + 1)
        alone = True
        for other in range(rank):
            if atomic_load(team, _PLACES + _EACH * other) == cpu + 1:
                alone = False
        if alone or cpu < 0 or get_cpus(allowed) != 0:
            return
        for word in range(_WORDS):
            put(others, word, get(allowed, word))
        for other in range(size):
            place = atomic_load(team, _PLACES + _EACH * other) - 1
            if 0 <= place < MOST_CPUS:
                put(others, place >> 6, get(others, place >> 6) & ~(1 << (place & 63)))
        if set_cpus(others) == 0:
            set_cpus(allowed)


@inlined
def wait_for_team(team, size):
    """Go on when all threads of the team have come here; what they wrote is then visible."""
    if size == 1:
        return
    current = atomic_load(team, _ROUND)
    if atomic_add(team, _WAITING, 1) == size - 1:
        atomic_store(team, _WAITING, 0)
        atomic_store(team, _ROUND, current + 1)
    else:
        looks = 0
        while atomic_load(team, _ROUND) == current:
            looks = _rest(looks)


@inlined
def next_ticket(team):
    """Return 0, 1, 2, ...: each number once, to whichever thread asks."""
    return atomic_add(team, _TICKET, 1)


@inlined
def share(n, unit, rank, size):
    """Return the bounds of one thread's part of range(n), cut at multiples of `unit`."""
    if size == 1:
        return np.int64(0), n
    units = (n + unit - 1) // unit
    return min(n, units * rank // size * unit), min(n, units * (rank + 1) // size * unit)


def thread_count(n_jobs, work):
    """Choose the number of threads for one call.

    Parameters
    ----------
    n_jobs : int or None
        None for all cores that this process may use; negative as in joblib, -1 for all, -2 for
        all but one.
    work : float
        Floating point operations between two points at which the threads meet.

    Returns
    -------
    int
        At least 1. More than 1 only where a parallel region is safe and pays.
    """
    useful = int(work // MIN_WORK_PER_THREAD)
    if n_jobs == 1 or useful <= 1:
        return 1
    cores = _count_cores()
    if n_jobs is None:
        wanted = cores
    elif n_jobs < 0:
        wanted = cores + 1 + n_jobs
    else:
        wanted = n_jobs
    wanted = min(wanted, useful, numba.config.NUMBA_NUM_THREADS)
    if wanted <= 1 or not _parallel_is_safe():
        return 1
    return min(wanted, numba.get_num_threads())


# Below this much work a thread's share is done before the others could begin theirs: about a microsecond
# on one core (`benchmarks/choices.py`).
MIN_WORK_PER_THREAD = 100_000.0

# Whether this process was forked: of libraries that use OpenMP, or of Numba itself, one may have started its threads
# before, and a forked child must not use that OpenMP again. Numba's threads that were there before this module was
# imported may have come with a fork too.
_may_be_forked = numba_parallel._is_initialized and multiprocessing.parent_process() is not None


def _note_fork():
    global _may_be_forked
    _may_be_forked = True
    _count_cores.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


@cache
def _count_cores():
    """Count the cores that this process may use, by affinity and control group."""
    return joblib.cpu_count()


def _parallel_is_safe():
    """Whether a parallel region cannot end the process.

    Numba's layer "workqueue" ends it when two threads enter a parallel region (numba issues 8563,
    9288), and the OpenMP layer ends, or hangs, a child that was forked after OpenMP's threads had started.
    """
    try:
        if _may_be_forked and not numba_parallel._is_initialized and numba.config.THREADING_LAYER != "tbb":
            return False  # which layer it would be is found out by starting it
        numba_parallel._launch_threads()
        layer = numba.threading_layer()
    except ValueError:  # the layer that the user asked for is not there
        return False
    return layer == "tbb" or (layer == "omp" and not _may_be_forked)


def address_for(function, args):
    """Compile a function for the arguments of `run`, or load it, and return where its machine code is."""
    return address_of(function, tuple(numba.typeof(arg) for arg in (*args, new_team(1), 1)))


def run(function, on_threads, args, n_threads, address=None):
    """Call a compiled function, on several threads at once where asked for.

    Parameters
    ----------
    function : numba.core.dispatcher.Dispatcher
        Its last two parameters are the team and the number of threads wanted.
    on_threads : numba.core.dispatcher.Dispatcher
        Takes the address of `function` and its arguments, and calls it on each thread.
    args : tuple
        The others.
    n_threads : int
        1 calls it on this thread.
    address : int, default=None
        From `address_for`, which takes longer than a call; None to find it out.
    """
    if n_threads > 1 and address is None:
        address = address_for(function, args)
    args = (*args, new_team(n_threads), n_threads)
    if n_threads == 1:
        function(*args)
        return
    with _limited_threads(n_threads):
        on_threads(address, *args)


@contextmanager
def _limited_threads(n):
    """Have Numba start `n` threads in this block, and as many as before after it."""
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(n)
        yield
    finally:
        numba.set_num_threads(before)
