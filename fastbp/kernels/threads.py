"""Threads: how many, when none, and how those of one call work together.

A parallel call is run by a team: each thread runs the same function from end to end, computes its share of the rows,
and waits at barriers where it needs the results of the others. The results do not depend on the number of threads, so
the team waits some milliseconds for a thread that starts late, then begins without it. A barrier costs a fraction of a
microsecond, a parallel region of OpenMP more than one.
"""

import multiprocessing
import os
from functools import cache
from typing import NamedTuple

import joblib
import numba
import numpy as np
from numba import prange, types

from fastbp.codegen.atomics import atomic_add, atomic_load, atomic_store
from fastbp.codegen.jit import (
    address_of,
    cached_jit,
    call_at,
    call_with_stored,
    called_by_address,
    inlined,
    jit,
    store_arguments,
)
from fastbp.codegen.memory import load_scalar, offset, store_scalar
from fastbp.codegen.processor import (
    MAX_CPUS,
    current_cpu,
    get_affinity,
    nap,
    set_affinity,
    spin_pause,
    yield_thread,
)
from fastbp.compat import numba_threads_are_started, start_numba_threads

# --- in compiled code: a team, its barriers, and shares of the work ---

# Cells of the team's array, 128 bytes apart, so that no two share a cache line. They hold the number of threads that
# have arrived; the size of the team, 0 before it begins; the threads that wait at a barrier, and the barriers passed;
# the next ticket; the address of `_spread`, 0 where threads stay on their processors (`is_pinned`), and beside it how
# often the first thread looks for the others before the team begins without them.
SPACING = 16
_ARRIVED, _SIZE, _WAITING, _BARRIERS, _TICKET, _SPREAD, _CPUS = (SPACING * i for i in range(7))
_PATIENCE = _SPREAD + 1
# From _CPUS on each thread has: its processor, the set of those that it may use, and the set of those that it moves to.
CPU_SET_WORDS = MAX_CPUS // 64
_PER_THREAD = SPACING + 2 * CPU_SET_WORDS
# Added to the number of arrivals when the team begins: a thread that arrives later finds a large number.
CLOSED = 1 << 32
# The patience with threads that may sleep: some milliseconds, as one may have to wait for its processor. With threads
# that are awake, or need not come at all: two microseconds, in which the processor is not yielded. Another process
# would have it for milliseconds.
JOIN_SPINS, FEW_SPINS = 6_000, 50
# After so many spins a thread that waits for others to begin, or to end, takes a nap: they may need its processor.
SPINS_BEFORE_NAP = 64
# After so many spins a waiting thread yields its processor at each: where there are more threads than processors, the
# thread that it waits for may need it. Threads that join a team yield soon: one that was woken may have been put on the
# processor of one that waits for it.
SPINS_BEFORE_YIELD, _SPINS_OF_JOIN = 4_000, 50


class Team(NamedTuple):
    """The place of a thread in the team of a call."""

    rank: np.int64  # 0 to size - 1; -1 for a thread that started too late, and has nothing to do
    size: np.int64


def new_team(wanted, patience=JOIN_SPINS):
    """Return the cells by which the threads of one call communicate."""
    cells = np.zeros(_CPUS + _PER_THREAD * wanted, dtype=np.int64)
    cells[_PATIENCE] = patience
    if wanted > 1 and not is_pinned() and wanted <= _count_cores():
        cells[_SPREAD] = _address_of_spread()
    return cells


def is_pinned():
    """Whether threads must stay on the processors where the system, or the user, has put them.

    The environment says so: OMP_PROC_BIND, by which OpenMP places them, with any value; or FASTBP_STAY=1, for users
    who would leave the placement to the system. FASTBP_STAY=0 is as if it were not set. Both are read at each
    call of training, and where prediction makes a workspace, which it keeps.
    """
    return "OMP_PROC_BIND" in os.environ or os.environ.get("FASTBP_STAY", "0") != "0"


@inlined
def renew_team(cells, wanted):
    """Prepare the cells of a team whose call has ended for the next call."""
    for i in range(_SPREAD):
        store_scalar(cells, i, 0)
    for i in range(_CPUS, _CPUS + _PER_THREAD * wanted):
        store_scalar(cells, i, 0)


@inlined
def spin_or_yield(spins):
    """Wait a moment, for the time number `spins`; return the next number."""
    if spins < SPINS_BEFORE_YIELD:
        spin_pause()
    else:
        yield_thread()
    return spins + 1


@inlined
def _leave_others(cells, rank, size):
    """Leave a processor that another thread of a team of this size has."""
    if size > 1 and atomic_load(cells, _SPREAD) != 0:
        call_at(atomic_load(cells, _SPREAD), (cells, rank, size))


@inlined
def _arrive(cells, wanted):
    """Return the rank of a thread in a team: -1 if the team is complete, or has begun. The first one waits a while."""
    rank = atomic_add(cells, _ARRIVED, 1)
    if rank >= wanted:
        return np.int64(-1)
    if wanted > 1:  # before the team begins, so that `_spread` finds it
        atomic_store(cells, _CPUS + _PER_THREAD * rank, current_cpu() + 1)
    if rank == 0:
        start = SPINS_BEFORE_YIELD - _SPINS_OF_JOIN
        spins, patience = start, start + load_scalar(cells, _PATIENCE)
        while atomic_load(cells, _ARRIVED) < wanted and spins < patience:
            spins = spin_or_yield(spins)
            if (spins - start) % SPINS_BEFORE_NAP == 0:
                nap()
    else:
        _leave_others(cells, rank, wanted)
    return rank


@jit
def join_team(cells, wanted):
    """Join the team of this call.

    Parameters
    ----------
    cells : pointer to int64
        From `new_team`, new for each call, or renewed by `renew_team`.
    wanted : int64
        Number of threads that were started.

    Returns
    -------
    Team
    """
    rank = _arrive(cells, wanted)
    if rank < 0:
        return Team(rank, np.int64(0))
    if rank == 0:
        atomic_store(cells, _SIZE, min(atomic_add(cells, _ARRIVED, CLOSED), wanted))
    spins = SPINS_BEFORE_YIELD - _SPINS_OF_JOIN
    while atomic_load(cells, _SIZE) == 0:
        spins = spin_or_yield(spins)
    size = atomic_load(cells, _SIZE)
    _leave_others(cells, rank, size)
    return Team(rank, size)


@jit
def join_loose_team(cells, wanted):
    """Join a team whose threads take tickets, and do not wait for each other: one may come at any time.

    Parameters are those of `join_team`.

    Returns
    -------
    int64
        The rank of the thread; -1 if the team is complete.
    """
    return _arrive(cells, wanted)


@inlined
def copy_cpus(cpus, out):
    """Copy a set of processors."""
    for word in range(CPU_SET_WORDS):
        store_scalar(out, word, load_scalar(cpus, word))


@inlined
def forbid_cpu(cpus, cpu):
    """Take a processor out of a set; none, where the number is that of no processor."""
    if 0 <= cpu < MAX_CPUS:
        store_scalar(cpus, cpu >> 6, load_scalar(cpus, cpu >> 6) & ~(1 << (cpu & 63)))


@called_by_address
def _spread(cells, rank, size):
    """Leave a processor that another thread of the team has.

    The scheduler may wake a thread on the processor of the thread that called it, and leave it there for a tenth of a
    second though another processor is idle. For so long two threads would be no faster than one. A thread that is
    forbidden the processors of its team moves at once; then it may use those that it could use before. Where there is
    no other processor the system refuses, and nothing changes. The processors in the cells may be out of date: at worst
    a thread stays, or moves twice.
    """
    mine = _CPUS + _PER_THREAD * rank
    allowed = offset(cells, mine + SPACING)
    others = offset(allowed, CPU_SET_WORDS)
    for _ in range(2):
        cpu = current_cpu()
        atomic_store(cells, mine, cpu + 1)
        alone = True
        for other in range(rank):
            if atomic_load(cells, _CPUS + _PER_THREAD * other) == cpu + 1:
                alone = False
        if alone or cpu < 0 or get_affinity(allowed, 0) != 0:
            return
        copy_cpus(allowed, others)
        for other in range(size):
            forbid_cpu(others, atomic_load(cells, _CPUS + _PER_THREAD * other) - 1)
        if set_affinity(others, 0) == 0:
            set_affinity(allowed, 0)


@inlined
def leave_processor(cells, cpu):
    """Leave a processor, if this thread is there; the cells are those of a team of two that nobody else uses."""
    spread = load_scalar(cells, _SPREAD)
    if spread != 0:
        store_scalar(cells, _CPUS, cpu + 1)
        call_at(spread, (cells, np.int64(1), np.int64(2)))


@cache  # `address_of` takes a microsecond to find it again
def _address_of_spread():
    return address_of(_spread, (types.CPointer(types.int64), types.int64, types.int64))


@jit
def barrier(cells, team):
    """Wait until all threads of the team are here; then each sees what the others wrote."""
    if team.size == 1:
        return
    current = atomic_load(cells, _BARRIERS)
    if atomic_add(cells, _WAITING, 1) == team.size - 1:
        atomic_store(cells, _WAITING, 0)
        atomic_store(cells, _BARRIERS, current + 1)
    else:
        spins = 0
        while atomic_load(cells, _BARRIERS) == current:
            spins = spin_or_yield(spins)


@inlined
def next_ticket(cells):
    """Return 0, 1, 2, ...: each number to one thread of the team only."""
    return atomic_add(cells, _TICKET, 1)


@inlined
def share(n, unit, rank, size):
    """Return the bounds of one thread's part of range(n), cut at multiples of `unit`."""
    if size == 1:
        return np.int64(0), n
    units = (n + unit - 1) // unit
    return min(n, units * rank // size * unit), min(n, units * (rank + 1) // size * unit)


# --- in compiled code: a call on several threads ---


@called_by_address
def _call(address, arguments):
    """Call the function at an address with the arguments at another: what each thread does."""
    call_with_stored(address, arguments)


@cached_jit(parallel=True)
def _call_on_each(call, address, arguments, wanted):
    """Run `_call`, whose machine code is at `call`, on each thread.

    Numba takes seconds to compile a parallel loop that passes arrays on, for each combination of their types. This one
    passes addresses, and is compiled once.
    """
    for _ in prange(wanted):
        call_at(call, (address, arguments))


class Addresses(NamedTuple):
    """The machine code for a call on several threads."""

    function: int
    call: int  # of `_call` for the arguments of the function


@cached_jit
def _call_on_threads(addresses, call_on_each, arguments, wanted):
    call_at(call_on_each, (addresses.call, addresses.function, store_arguments(arguments), wanted))


# --- in Python: how many threads, and calls on them ---

# Below this much work a thread's share is done before the others could begin theirs: about a microsecond
# on one core (`benchmarks/choices.py`).
MIN_WORK_PER_THREAD = 100_000.0
# In prediction and in the solver "lbfgs": the threads may have gone to sleep since the last call, and must be woken.
MIN_WORK_AFTER_PAUSE = 2_500_000.0


def wanted_threads(n_jobs):
    """Return how many threads `n_jobs` means: None is all cores that this process may use, -1 too, -2 all but one."""
    if n_jobs is None:
        return _count_cores()
    return n_jobs if n_jobs > 0 else max(_count_cores() + 1 + n_jobs, 1)


def thread_count(n_jobs, work, min_work=MIN_WORK_PER_THREAD):
    """Choose the number of threads for one call.

    Parameters
    ----------
    n_jobs : int or None
        The most threads. None for all cores that this process may use, which are never exceeded; negative as in
        joblib, -1 for all, -2 for all but one.
    work : float
        Floating point operations of a batch in training, of all samples in prediction.
    min_work : float, default=MIN_WORK_PER_THREAD
        Operations from which on a thread pays.

    Returns
    -------
    int
        At least 1; more only where a parallel region is safe and pays.
    """
    n_threads = _limit(n_jobs, work, min_work)
    if n_threads == 1 or not _parallel_is_safe():
        return 1
    return min(n_threads, numba.get_num_threads())


def _limit(n_jobs, work, min_work):
    """Return how many threads pay, at most as many as there are cores: more would wait for each other."""
    useful = int(work // min_work)
    if n_jobs == 1 or useful <= 1:
        return 1
    return max(1, min(wanted_threads(n_jobs), _count_cores(), useful, numba.config.NUMBA_NUM_THREADS))


def python_thread_count(n_jobs, work, min_work):
    """Do as `thread_count` for threads that are not Numba's, which are not started for it."""
    n_threads = _limit(n_jobs, work, min_work)
    if n_threads == 1 or _may_be_forked:  # one process of several
        return 1
    return min(n_threads, numba.get_num_threads()) if numba_threads_are_started() else n_threads


# Whether this process was forked: of libraries that use OpenMP, or of Numba itself, one may have started its threads
# before, and a forked child must not use that OpenMP again. And whether Numba had started its own: where another thread
# has forked than the one that has started them, Numba does not promise that TBB works. Numba's threads that were there
# before this module was imported may have come with a fork too.
_may_be_forked = numba_threads_are_started() and multiprocessing.parent_process() is not None
_was_started_before = _may_be_forked


# What `_parallel_is_safe` has said: only a fork can make it untrue.
_is_known_as_safe = False


def _note_fork():
    global _may_be_forked, _was_started_before, _is_known_as_safe
    _may_be_forked, _was_started_before, _is_known_as_safe = True, numba_threads_are_started(), False
    _count_cores_within.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


# OpenMP may bind each thread to a core, that which calls it too. Nobody else has confined it then.
_OPENMP_BINDS = any(name in os.environ for name in ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"))
_AFFINITY_COUNTS = hasattr(os, "sched_getaffinity") and not _OPENMP_BINDS


def _count_cores():
    """Count the cores that this thread may use, by affinity and control group."""
    return _count_cores_within(len(os.sched_getaffinity(0)) if _AFFINITY_COUNTS else 0)


@cache
def _count_cores_within(n_allowed):
    """Ask joblib, which reads files: once for each number of cores that the affinity allows."""
    return joblib.cpu_count()


def _parallel_is_safe():
    """Whether a parallel region is sure not to abort the process.

    Numba's threading layer "workqueue" aborts it when two threads enter a parallel region (numba issues 8563,
    9288), and the OpenMP layer aborts, or hangs, a child that was forked after OpenMP's threads had started. With TBB
    such a child works if the thread that has started TBB has forked it, which nobody knows here.
    """
    global _is_known_as_safe
    if _is_known_as_safe:
        return True
    if _was_started_before:
        return False
    try:
        if _may_be_forked and not numba_threads_are_started() and numba.config.THREADING_LAYER != "tbb":
            return False  # to know which layer it is would mean to start it
        start_numba_threads()
        layer = numba.threading_layer()
    except ValueError:  # the layer that the user asked for is not there
        return False
    _is_known_as_safe = layer == "tbb" or (layer == "omp" and not _may_be_forked)
    return _is_known_as_safe


def addresses_for(function, kinds):
    """Compile or load what a call on several threads with arguments of some types needs; return `Addresses`."""
    return Addresses(
        address_of(function, kinds),
        address_of(_call, (types.int64, types.CPointer(types.BaseTuple.from_types(kinds)))),
    )


_known_addresses: dict[tuple, Addresses] = {}


def run(function, args, n_threads, kind=None):
    """Call a compiled function, on one thread or on several.

    Parameters
    ----------
    function : numba.core.dispatcher.Dispatcher
        Its last two parameters are the cells of a team and the number of threads wanted.
    args : tuple
        Its other arguments.
    n_threads : int
        With 1 this thread runs it, and no other is started.
    kind : tuple, default=None
        The same for all calls of the function whose arguments have the same types: to look at the types of them all
        takes longer than a small fit. None to look at them.
    """
    if n_threads == 1:
        function(*args, new_team(1), 1)
        return
    args = (*args, new_team(n_threads), n_threads)
    addresses = _known_addresses.get((function, kind)) if kind else None
    if addresses is None:
        addresses = addresses_for(function, tuple(numba.typeof(args)))
        if kind:
            _known_addresses[function, kind] = addresses
    call_on_each = address_of(_call_on_each, (types.int64,) * 4)
    call_limited(n_threads, _call_on_threads, addresses, call_on_each, args, n_threads)


def call_limited(n_threads, function, *args):
    """Call a function while Numba may use `n_threads` threads, and as many as before after it."""
    before = numba.get_num_threads()
    if before == n_threads:
        function(*args)
        return
    try:
        numba.set_num_threads(n_threads)
        function(*args)
    finally:
        try:
            numba.set_num_threads(before)
        except KeyboardInterrupt:  # which came just now
            numba.set_num_threads(before)
            raise
