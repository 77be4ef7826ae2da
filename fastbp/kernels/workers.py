"""Threads that take part in calls for which nobody waits for them: those of prediction.

A parallel region of OpenMP takes some microseconds to begin and to end, and its end waits for each of its threads, also
for one that sleeps, or has no processor. The threads here look for the next call for a millisecond after each, and
begin it in a fraction of a microsecond. Then they sleep until a call wakes them. A thread that is late finds that the
call is over, or that its team has begun without it.
"""

import os
import threading
import weakref
from contextlib import suppress
from functools import cache
from threading import Thread

import numba
import numpy as np
from numba import types

from fastbp.codegen.atomics import atomic_add, atomic_load, atomic_store
from fastbp.codegen.jit import address_of, cached_jit, call_at, called_by_address, inlined, jit, store_arguments
from fastbp.codegen.memory import load_scalar, offset, pointer, store_scalar
from fastbp.codegen.processor import (
    CAN_SLEEP,
    current_cpu,
    get_affinity,
    nanoseconds,
    set_affinity,
    sleep_while,
    wake_threads,
)
from fastbp.kernels.threads import (
    CLOSED,
    CPU_SET_WORDS,
    FEW_SPINS,
    SPACING,
    SPINS_BEFORE_YIELD,
    addresses_for,
    copy_cpus,
    forbid_cpu,
    is_pinned,
    leave_processor,
    new_team,
    spin_or_yield,
)

# --- in compiled code ---

# Cells as those of a team: the number of calls so far; the threads that have begun the current call, to which CLOSED is
# added when it ends, and those that are done with it; what the current call is, and the processor of the thread that
# makes it; whether threads may be moved to other processors; whether they shall end; how many of them sleep; the set of
# processors that the thread that calls may use, and the set of those that it leaves to the others; and from _IDS on the
# system's numbers of the threads, 0 for one that does not sleep.
_CALLS, _ARRIVED, _DONE, _CALL, _ASLEEP, _ALLOWED = (SPACING * i for i in range(6))
_FUNCTION, _ARGUMENTS, _CPU, _MOVES, _END = (_CALL + i for i in range(1, 6))
_OTHERS = _ALLOWED + CPU_SET_WORDS
_IDS = _OTHERS + CPU_SET_WORDS
# The most threads that one call takes.
_MAX_THREADS = 256
_N_CELLS = _IDS + _MAX_THREADS
# How long a thread looks for the next call, in nanoseconds, and most of it yields the processor; and how often it does
# where there is no clock.
_IDLE, _IDLE_SPINS = 1_000_000, 6_000


@cached_jit
def _work(array, team, idle, place, number):
    """Take part in calls.

    Parameters
    ----------
    array : ndarray of int64
        The cells.
    team : ndarray of int64
        From `new_team(2)`.
    idle : int64
        Nanoseconds without a call after which the thread sleeps, or ends.
    place, number : int64
        Which of the threads it is, and the system's number of it: 0 for one that ends.
    """
    cells = pointer(array, 0)
    seen = np.int64(-1)  # a thread that is started, or woken, may still take part in the call that wants it
    spins, since = 0, 0
    while load_scalar(cells, _END) == 0:
        calls = atomic_load(cells, _CALLS)
        if calls == seen:
            if spins == 0 or spins >= SPINS_BEFORE_YIELD:
                # The scheduler may have put this thread where the calls are made.
                leave_processor(pointer(team, 0), atomic_load(cells, _CPU))
            if spins == 0:
                since = nanoseconds()
            elif spins >= SPINS_BEFORE_YIELD:
                now = nanoseconds()
                if now - since > idle or (now == 0 and spins >= _IDLE_SPINS):
                    if number == 0:
                        return
                    _sleep(cells, calls, place, number)
                    spins = 0
                    continue
            spins = spin_or_yield(spins)
            continue
        if atomic_add(cells, _ARRIVED, 1) < CLOSED:
            call_at(load_scalar(cells, _CALL), (load_scalar(cells, _FUNCTION), load_scalar(cells, _ARGUMENTS)))
            # It may have been a later call than the one that was seen above. The next one begins only after this thread
            # is done. (One that arrives before the calls are counted may arrive twice: its team is complete then.)
            calls = atomic_load(cells, _CALLS)
            atomic_add(cells, _DONE, 1)
        seen, spins = calls, 0


@inlined
def _sleep(cells, calls, place, number):
    """Sleep until a call wakes this thread, if there were only so many so far."""
    atomic_store(cells, _IDS + place, number)
    atomic_add(cells, _ASLEEP, 1)
    sleep_while(cells, _CALLS, calls)
    atomic_add(cells, _ASLEEP, -1)
    atomic_store(cells, _IDS + place, 0)
    if load_scalar(cells, _MOVES):
        set_affinity(offset(cells, _ALLOWED), 0)


@jit
def _wake(cells, n_threads):
    """Wake threads, so many at most, on other processors than this one.

    The scheduler may wake a thread on the processor of the one that wakes it, and leave it there for milliseconds
    though another processor is idle. So those that sleep are forbidden it, until they are awake.
    """
    cpu, allowed, others = current_cpu(), offset(cells, _ALLOWED), offset(cells, _OTHERS)
    if load_scalar(cells, _MOVES) and cpu >= 0 and get_affinity(allowed, 0) == 0:
        copy_cpus(allowed, others)
        forbid_cpu(others, cpu)
        for place in range(min(n_threads, _MAX_THREADS)):
            number = atomic_load(cells, _IDS + place)
            if number != 0:
                set_affinity(others, number)
    wake_threads(cells, _CALLS, n_threads)


@called_by_address
def call_on_workers(cells, call, function, place, wanted):
    """Call a function here, and on the threads that come in time.

    Parameters
    ----------
    cells : pointer to int64
        From `Workers.address`.
    call, function : int64
        `threads.Addresses`. The function joins a team first, whose patience is FEW_SPINS: a thread that lost its
        processor may not come.
    place : int64
        Where its arguments are, from `store_arguments`.
    wanted : int64
        The number of threads, with this one. More of them may come.
    """
    store_scalar(cells, _CALL, call)
    store_scalar(cells, _FUNCTION, function)
    store_scalar(cells, _ARGUMENTS, place)
    atomic_store(cells, _CPU, current_cpu())
    atomic_store(cells, _DONE, 0)
    atomic_store(cells, _ARRIVED, 0)
    atomic_add(cells, _CALLS, 1)
    if atomic_load(cells, _ASLEEP) > 0:
        _wake(cells, wanted - 1)
    call_at(call, (function, place))
    arrived = atomic_add(cells, _ARRIVED, CLOSED)
    spins = 0
    while atomic_load(cells, _DONE) < arrived:
        spins = spin_or_yield(spins)


def address_of_call():
    """Return the address of `call_on_workers`."""
    return address_of(call_on_workers, (types.CPointer(types.int64), *(types.int64,) * 4))


@cached_jit
def _call_on_workers(call_on, array, addresses, arguments, wanted):
    call_at(
        call_on, (pointer(array, 0), addresses.call, addresses.function, store_arguments(arguments), wanted)
    )  # fmt: skip


@cached_jit
def _end(array):
    """End all threads."""
    cells = pointer(array, 0)
    store_scalar(cells, _END, 1)
    atomic_add(cells, _CALLS, 1)
    wake_threads(cells, _CALLS, _MAX_THREADS)


# --- in Python ---


def _new_cells():
    cells = np.zeros(_N_CELLS, np.int64)
    cells[_ARRIVED] = CLOSED
    cells[_MOVES] = not is_pinned()
    return cells


class Workers:
    """Threads that take part in the calls of one thread at a time. They end when this object does.

    Attributes
    ----------
    address : int
        Of the cells by which they are called.
    """

    def __init__(self):
        self.cells = _new_cells()
        self.address = self.cells.ctypes.data
        self._threads: list[Thread] = []

    def start(self, n_threads):
        """Start what is missing, for calls on so many threads.

        Parameters
        ----------
        n_threads : int
            With the one that calls.

        Returns
        -------
        bool
            Whether all were there, and awake.

        Raises
        ------
        RuntimeError
            If the system, or Python at its end, starts no more threads.
        """
        if not CAN_SLEEP:  # and has ended
            self._threads = [thread for thread in self._threads if thread.is_alive()]
        n_missing = min(n_threads, _MAX_THREADS) - 1 - len(self._threads)
        if n_missing > 0:
            prepare()
            if CAN_SLEEP and not self._threads:
                # At the end of the process they may not return to Python: they sleep then, or look for calls.
                weakref.finalize(self, _end, self.cells).atexit = False
        for _ in range(n_missing):
            thread = Thread(target=_start, args=(self.cells, len(self._threads)), name="fastbp", daemon=CAN_SLEEP)
            thread.start()
            self._threads.append(thread)
        return n_missing <= 0 and not self.cells[_ASLEEP]


def _start(cells, place):
    _work(cells, new_team(2), _IDLE, place, threading.get_native_id() if CAN_SLEEP else 0)


@cache
def prepare():
    """Compile what the threads run, or load it: once, and not by each of them."""
    cells = _new_cells()
    _end(cells)
    _work(cells, new_team(1), 0, 0, 0)


# Those that no call uses at the moment. Each call that is made at the same time as others has its own.
_free: list[Workers] = []


def take_workers():
    """Take workers that no other call uses; `give_back` them."""
    try:
        return _free.pop()  # which Python does in one step, whatever other threads do
    except IndexError:
        return Workers()


def give_back(workers):
    """Let other calls use these workers."""
    _free.append(workers)


def run(function, args, n_threads):
    """Call a compiled function, on one thread or on several that do not wait for each other.

    Parameters
    ----------
    function, args, n_threads
        As in `threads.run`. The function joins a loose team.
    """
    team = new_team(n_threads, FEW_SPINS)
    if n_threads == 1:
        function(*args, team, 1)
        return
    args = (*args, team, n_threads)
    addresses = addresses_for(function, tuple(numba.typeof(args)))
    workers = take_workers()
    try:
        with suppress(RuntimeError):  # this thread does their part then
            workers.start(n_threads)
        _call_on_workers(address_of_call(), workers.cells, addresses, args, n_threads)
    finally:
        give_back(workers)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _free.clear())  # their threads are not there
