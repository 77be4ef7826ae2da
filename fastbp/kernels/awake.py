"""Threads that stay awake between short calls.

A parallel region of OpenMP takes some microseconds to begin and to end, and tens of them where its threads sleep. That
is longer than the prediction of a few rows. Where short calls follow each other at once, the threads here wait for the
next one without sleeping, and begin it in a fraction of a microsecond. They end when no call comes for a millisecond.

Nobody depends on them: a thread that is late finds that the call is over, or that its team has begun without it.
"""

import os
from math import frexp
from threading import Lock, Thread
from time import perf_counter

import numpy as np

from fastbp.codegen.atomics import atomic_add, atomic_load, atomic_store
from fastbp.codegen.jit import cached_jit, call_at, inlined, store_arguments
from fastbp.codegen.memory import load_scalar, pointer, store_scalar
from fastbp.codegen.processor import current_cpu, yield_thread
from fastbp.kernels.threads import SPINS_BEFORE_YIELD, leave_processor, new_team, spin_or_yield, thread_count

# --- in compiled code ---

# Cells, 128 bytes apart, so that no two share a cache line: the number of calls so far; the threads that have begun the
# current call, and those that are done with it. Then what the current call is, and the processor of the thread that
# makes it.
_SPACING = 16
_CALLS, _ARRIVED, _DONE, _CALL, _N_CELLS = (_SPACING * i for i in range(5))
_FUNCTION, _ARGUMENTS, _CPU = (_CALL + i for i in range(1, 4))
# Added to the number of arrivals when a call ends: a thread that arrives later finds a large number.
_CLOSED = 1 << 32
# How often a thread looks for the next call before it ends: about a millisecond, most of it in yielding the processor.
_IDLE_SPINS = 6_000
# How often the first thread of a team looks for threads that are awake (`threads.join_team`): some microseconds. One
# that has lost its processor does not come sooner.
JOIN_SPINS = 200


@cached_jit
def _wait_for_calls(array, team, idle_spins):
    """Take part in each call until no other comes."""
    cells = pointer(array, 0)
    seen = atomic_load(cells, _CALLS)
    spins = 0
    while spins < idle_spins:
        calls = atomic_load(cells, _CALLS)
        if calls == seen:
            if spins == 0 or spins >= SPINS_BEFORE_YIELD:
                # The scheduler may have put this thread where the calls are made.
                leave_processor(pointer(team, 0), atomic_load(cells, _CPU))
            spins = spin_or_yield(spins)
            continue
        if atomic_add(cells, _ARRIVED, 1) < _CLOSED:
            call_at(load_scalar(cells, _CALL), (load_scalar(cells, _FUNCTION), load_scalar(cells, _ARGUMENTS)))
            # It may be a later call than the one that was seen above; that the next one begins only after this
            # thread is done makes sure that it takes part in each of them once.
            calls = atomic_load(cells, _CALLS)
            atomic_add(cells, _DONE, 1)
        seen, spins = calls, 0


@inlined
def call_on_awake(cells, addresses, arguments, wanted):
    """Call a function here, and on the threads that are awake.

    Parameters
    ----------
    cells : pointer to int64
        From `AwakeThreads.address`.
    addresses : threads.Addresses
        The function joins a team first; JOIN_SPINS is its patience.
    arguments : tuple
        Its arguments.
    wanted : int64
        The threads of the team.
    """
    place = store_arguments(arguments)
    store_scalar(cells, _CALL, addresses.call)
    store_scalar(cells, _FUNCTION, addresses.function)
    store_scalar(cells, _ARGUMENTS, place)
    store_scalar(cells, _CPU, current_cpu())
    atomic_store(cells, _DONE, 0)
    atomic_store(cells, _ARRIVED, 0)
    atomic_add(cells, _CALLS, 1)
    call_at(addresses.call, (addresses.function, place))
    arrived = atomic_add(cells, _ARRIVED, _CLOSED)
    if arrived < wanted - 1:
        yield_thread()  # to one that the scheduler has put here: it leaves then
    spins = 0
    while atomic_load(cells, _DONE) < arrived:
        spins = spin_or_yield(spins)


# --- in Python ---

# Floating point operations from which on one more thread that is awake pays.
MIN_WORK = 200_000.0


class _Calls:
    """What is known of calls of about the same work, as long as they follow each other at once."""

    def __init__(self):
        self.rates: list[float] = []  # seconds for each operation, on one thread
        self.alone = 0.0  # their mean, when there are enough of them
        self.n_threads = 1
        self.forget()

    def forget(self):
        """Begin to measure several threads."""
        self.n_calls, self.seconds, self.rate = 0, 0.0, 0.0  # the sum of their rates


class AwakeThreads:
    """Decides for each of many calls whether threads that are awake take part in it, and measures whether it pays.

    Calls of about the same work that follow each other at once are first made by one thread; then others are started
    for them. Where that is no faster, as where another process has a processor, one thread makes them again for a
    while.

    Parameters
    ----------
    clock : callable, default=time.perf_counter
        Returns the time in seconds.
    """

    # Seconds between two calls that follow each other at once.
    MAX_GAP = 5e-4
    # How many calls on one thread are measured, and of how many the mean is taken: not of those that were disturbed.
    N_ALONE, N_FASTEST = 20, 18
    # Seconds in which new threads are not measured: their caches are cold.
    WARM_UP = 3e-3
    # Seconds of calls on several threads that are measured together: one that had to wait for a processor counts too.
    MEASURED = 1e-3
    # Which share of the seconds on one thread they may take at most.
    MAX_SHARE = 0.95
    # Seconds until the next trial, at first and at most: twice as many each time, and a little less after each success.
    PAUSE, RECOVERY = (0.01, 4.0), 0.95

    def __init__(self, clock=perf_counter):
        self._clock = clock
        self._cells = np.zeros(_N_CELLS, np.int64)
        self._cells[_ARRIVED] = _CLOSED
        self.address = self._cells.ctypes.data
        self._threads: list[Thread] = []
        # Who measures has it. Nobody waits for it: other calls at the same time are made by one thread.
        self._lock = Lock()
        # By the parameter n_jobs and the power of two below their work: what is known of the calls; and the time of the
        # next trial, with the seconds from it until the one after it.
        self._kinds: dict[tuple, _Calls] = {}
        self._pauses: dict[tuple, tuple[float, float]] = {}
        self._begin = self._end = self._warm_at = 0.0
        self._is_measured, self._calls = False, _Calls()

    def begin(self, n_jobs, work):
        """Begin a call; return on how many threads, 0 for one that is not measured as another call is.

        Parameters
        ----------
        n_jobs : int or None
            See `threads.thread_count`.
        work : float
            Floating point operations.
        """
        if not self._lock.acquire(blocking=False):
            return 0
        self._begin = now = self._clock()
        if now - self._end > self.MAX_GAP:
            self._is_measured = False  # the first of others, or the only one
            self._kinds.clear()
            return 1
        self._is_measured = True
        try:
            self._kind, self._work = (n_jobs, frexp(work)[1]), work
            if self._kind not in self._kinds:
                self._kinds[self._kind] = _Calls()
            self._calls = calls = self._kinds[self._kind]
            if calls.alone and calls.n_threads == 1:
                self._try(n_jobs, work)
        except BaseException:
            self._kinds.clear()
            self._lock.release()
            raise
        return calls.n_threads

    def end(self):
        """End a call for which `begin` has not returned 0."""
        self._end = now = self._clock()
        if self._is_measured:
            self._measure(now - self._begin)
        self._lock.release()

    def _measure(self, seconds):
        calls = self._calls
        if calls.n_threads > 1:
            if self._begin > self._warm_at:
                calls.n_calls += 1
                calls.seconds += seconds
                calls.rate += seconds / self._work
                if calls.seconds > self.MEASURED:
                    self._judge()
        elif not calls.alone:
            calls.rates.append(seconds / self._work)
            if len(calls.rates) == self.N_ALONE:
                calls.alone = sum(sorted(calls.rates)[: self.N_FASTEST]) / self.N_FASTEST

    def _try(self, n_jobs, work):
        """Start threads, if it is time for it."""
        time, _ = self._pauses.get(self._kind, (0.0, 0.0))
        if self._begin >= time:
            prepare()
            self._start(thread_count(n_jobs, work, MIN_WORK))

    def _start(self, n_threads):
        """Start as many threads as are missing, or have ended while the one that calls had no processor."""
        self._calls.forget()
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        try:
            while len(self._threads) < n_threads - 1:
                args = self._cells, new_team(2), _IDLE_SPINS
                thread = Thread(target=_wait_for_calls, args=args, name="fastbp")
                thread.start()
                self._threads.append(thread)
                self._warm_at = self._begin + self.WARM_UP
        except RuntimeError:  # the system, or Python at its end, starts no more threads
            n_threads = 1
        self._calls.n_threads = n_threads
        if n_threads == 1:
            self._postpone()

    def _judge(self):
        """Decide whether the calls that were measured were fast enough."""
        calls = self._calls
        if calls.rate > self.MAX_SHARE * calls.alone * calls.n_calls:
            self._postpone()
            return
        if self._kind in self._pauses:
            time, pause = self._pauses[self._kind]
            self._pauses[self._kind] = time, max(self.RECOVERY * pause, self.PAUSE[0])
        self._start(calls.n_threads)

    def _postpone(self):
        """Make such calls on one thread for some time; the others end by themselves."""
        self._kinds[self._kind] = _Calls()
        _, pause = self._pauses.get(self._kind, (0.0, self.PAUSE[0]))
        self._pauses[self._kind] = self._begin + pause, min(2 * pause, self.PAUSE[1])


def prepare():
    """Compile what the threads run, or load it: once, and not by each of them."""
    _wait_for_calls(np.zeros(_N_CELLS, np.int64), new_team(1), 0)


_threads_of_process = AwakeThreads()


def awake_threads():
    """Return the threads that are awake in this process."""
    return _threads_of_process


def _forget_threads():
    global _threads_of_process
    _threads_of_process = AwakeThreads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
