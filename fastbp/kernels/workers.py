"""Threads of predictions: they take part in calls that go on without them where they do not come in time.

A parallel region of OpenMP takes some microseconds to begin and to end, and its end waits for each of its threads, also
for one that sleeps. The threads here look for the next call for a millisecond after each, and begin it in a fraction of
a microsecond. Then they sleep until a call wakes them. A thread that is late finds that the call is over, or that its
team has begun without it. Only one that has begun its part is waited for.
"""

import _thread
import os
import weakref
from functools import cache
from time import perf_counter

import numba
import numpy as np
from numba import types

from fastbp.codegen.atomics import atomic_add, atomic_load, atomic_replace, atomic_store
from fastbp.codegen.jit import address_of, cached_jit, call_at, called_by_address, inlined, jit, store_arguments
from fastbp.codegen.memory import load_scalar, offset, pointer, store_scalar
from fastbp.codegen.processor import (
    CAN_SLEEP,
    current_cpu,
    get_affinity,
    nanoseconds,
    nap,
    set_affinity,
    sleep_while,
    wake_thread,
    yield_thread,
)
from fastbp.kernels.threads import (
    CLOSED,
    CPU_SET_WORDS,
    FEW_SPINS,
    SPACING,
    SPINS_BEFORE_NAP,
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
# added when it ends, and those that are done with it; what the current call is: machine code, arguments, the number of
# threads, the processor of the one that makes it, how many nanoseconds that one took for its part, and for how many it
# has waited for the others; whether threads may be moved to other processors, and whether they shall end; how many have
# ended; the set of processors that the thread that calls may use, and the set of those that it leaves to the others.
_CALLS, _ARRIVED, _DONE, _CURRENT, _FIXED, _ENDED, _ALLOWED = (SPACING * i for i in range(7))
_CALL, _FUNCTION, _ARGUMENTS, _WANTED, _CPU, _TOOK, _WAITED = (_CURRENT + i for i in range(7))
_MOVES, _END = _FIXED, _FIXED + 1
_OTHERS = _ALLOWED + CPU_SET_WORDS
# From here on: where each thread sleeps. There is the system's number of a thread that sleeps, _WOKEN while another
# thread wakes it, and 0 if it is awake.
_SLEEP = _OTHERS + CPU_SET_WORDS
_WOKEN = -1
# The most threads beside the one that calls.
_MAX_THREADS = 255
_N_CELLS = _SLEEP + _MAX_THREADS
# How long a thread looks for the next call, in nanoseconds, and most of it yields the processor; and how often it does
# where there is no clock.
_IDLE, _IDLE_SPINS = 1_000_000, 6_000
# A thread that the system does not let sleep takes naps, after so many trials.
_MAX_TRIALS = 100


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
    while atomic_load(cells, _END) == 0:
        calls = atomic_load(cells, _CALLS)
        if calls != seen and place < load_scalar(cells, _WANTED) - 1:
            if atomic_add(cells, _ARRIVED, 1) < CLOSED:
                call_at(load_scalar(cells, _CALL), (load_scalar(cells, _FUNCTION), load_scalar(cells, _ARGUMENTS)))
                # It may have been a later call than the one that was seen above. The next one begins only after this
                # thread is done. (One that arrives before the calls are counted may arrive twice: its team is complete
                # then.)
                calls = atomic_load(cells, _CALLS)
                atomic_add(cells, _DONE, 1)
            spins = 0
        seen = calls
        if spins == 0 or spins >= SPINS_BEFORE_YIELD:
            # The scheduler may have put this thread where the calls are made.
            leave_processor(pointer(team, 0), atomic_load(cells, _CPU))
        if spins == 0:
            since = nanoseconds()
        elif spins >= SPINS_BEFORE_YIELD:
            now = nanoseconds()
            if now - since > idle or (now == 0 and spins >= _IDLE_SPINS):
                if number == 0:
                    break
                _sleep(cells, seen, place, number)
                seen, spins = np.int64(-1), 0
                continue
        spins = spin_or_yield(spins)
    atomic_add(cells, _ENDED, 1)


@inlined
def _sleep(cells, calls, place, number):
    """Sleep until a call wakes this thread, if there were only so many so far."""
    here = _SLEEP + place
    atomic_store(cells, here, number)
    if atomic_load(cells, _CALLS) != calls or atomic_load(cells, _END) != 0:
        atomic_replace(cells, here, number, 0)
    trials = 0
    while atomic_load(cells, here) != 0:  # it is moved before it is awake, never after
        if atomic_load(cells, here) == _WOKEN:
            yield_thread()
        elif trials < _MAX_TRIALS:
            sleep_while(cells, here, number)
            trials += 1
        else:
            nap()
    if load_scalar(cells, _MOVES):
        set_affinity(offset(cells, _ALLOWED), 0)


@jit
def _wake(cells, n_threads):
    """Wake those of the first threads that sleep, on other processors than this one.

    The scheduler may wake a thread on the processor of the one that wakes it, and leave it there for milliseconds
    though another processor is idle. So a thread that sleeps is forbidden it, until it is awake.
    """
    cpu, allowed, others = current_cpu(), offset(cells, _ALLOWED), offset(cells, _OTHERS)
    moves = load_scalar(cells, _MOVES) and cpu >= 0 and get_affinity(allowed, 0) == 0
    if moves:
        copy_cpus(allowed, others)
        forbid_cpu(others, cpu)
    for place in range(n_threads):
        number = atomic_load(cells, _SLEEP + place)
        if number > 0 and atomic_replace(cells, _SLEEP + place, number, _WOKEN):
            if moves:
                set_affinity(others, number)
            atomic_store(cells, _SLEEP + place, 0)
            wake_thread(cells, _SLEEP + place)


@inlined
def _any_sleeps(cells, n_threads):
    """Whether one of the first threads sleeps."""
    sleeps = False
    for place in range(n_threads):
        sleeps |= atomic_load(cells, _SLEEP + place) > 0
    return sleeps


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
        The number of threads, with this one.
    """
    store_scalar(cells, _CALL, call)
    store_scalar(cells, _FUNCTION, function)
    store_scalar(cells, _ARGUMENTS, place)
    store_scalar(cells, _WANTED, wanted)
    atomic_store(cells, _CPU, current_cpu())
    atomic_store(cells, _DONE, 0)
    atomic_store(cells, _ARRIVED, 0)
    atomic_add(cells, _CALLS, 1)
    n_threads = min(wanted - 1, _MAX_THREADS)
    if _any_sleeps(cells, n_threads):
        _wake(cells, n_threads)
    begin = nanoseconds()
    call_at(call, (function, place))
    end = nanoseconds()
    arrived = atomic_add(cells, _ARRIVED, CLOSED)
    spins = 0
    while atomic_load(cells, _DONE) < arrived:
        spins = spin_or_yield(spins)
        if spins >= SPINS_BEFORE_YIELD and spins % SPINS_BEFORE_NAP == 0:
            nap()
    store_scalar(cells, _TOOK, end - begin)
    store_scalar(cells, _WAITED, nanoseconds() - end)


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
    atomic_store(cells, _END, 1)
    _wake(cells, _MAX_THREADS)


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
        self.unused_since = 0.0
        self._n_started, self._at_end = 0, None

    @property
    def n_threads(self):
        """How many threads a call has, with the one that calls."""
        return 1 + self._n_started - (0 if CAN_SLEEP else int(self.cells[_ENDED]))

    def start(self, n_threads):
        """Start what is missing for calls on so many threads; fewer, where the system starts no more.

        Returns
        -------
        bool
            Whether all were there, and awake.
        """
        if self.n_threads >= n_threads:
            return not self.cells[_SLEEP : _SLEEP + n_threads - 1].any()
        prepare()
        if self._at_end is None:
            self._at_end = weakref.finalize(self, _end, self.cells)
            self._at_end.atexit = False  # at the end of the process they may not return to Python: they sleep, or look
        while self.n_threads < min(n_threads, _MAX_THREADS + 1):
            place = self.n_threads - 1 if CAN_SLEEP else 0
            self._n_started += 1
            try:  # not a `threading.Thread`, which waits for its thread
                _thread.start_new_thread(_start, (self.cells, place, _thread.get_native_id()))
            except RuntimeError:
                self._n_started -= 1
                break
        return False


def _start(cells, place, starter):
    number = _thread.get_native_id()
    if number != starter:  # where threads are replaced by coroutines, as by gevent, there are none
        _work(cells, new_team(2), _IDLE, place, number if CAN_SLEEP else 0)


@cache
def prepare():
    """Compile what the threads run, or load it: once, and not by each of them."""
    cells = _new_cells()
    _end(cells)
    _work(cells, new_team(1), 0, 0, 0)


# Those that no call uses at the moment. Each call that is made at the same time as others has its own.
_free: list[Workers] = []
# Seconds after which those that were needed only then end.
_MAX_UNUSED = 10.0


def take_workers():
    """Take workers that no other call uses.

    `give_back` them. Where an error comes between, they are dropped, and end: what it has left undone is not known.
    """
    try:
        return _free.pop()  # which Python does in one step, whatever other threads do
    except IndexError:
        return Workers()


def give_back(workers):
    """Let other calls use these workers."""
    workers.unused_since = perf_counter()
    _free.append(workers)
    if len(_free) > 1 and workers.unused_since - _free[0].unused_since > _MAX_UNUSED:
        _free.pop(0)


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
    workers.start(n_threads)
    _call_on_workers(address_of_call(), workers.cells, addresses, args, n_threads)
    long_calls.note(workers)
    give_back(workers)


class Pause:
    """The time until something is tried again: twice as long after each failure, a little less after each success.

    Attributes
    ----------
    end : float
        When it may be tried, in seconds.
    """

    def __init__(self, first, most, recovery):
        self._first, self._most, self._recovery = first, most, recovery
        self.end, self._seconds = 0.0, first

    def begin(self, now):
        """Begin one, after a failure."""
        self.end = now + self._seconds
        self._seconds = min(2 * self._seconds, self._most)

    def shorten(self):
        """Make the next one shorter, after a success."""
        self._seconds = max(self._recovery * self._seconds, self._first)


class LongCalls:
    """When calls that are worth to wake threads for do without them: where others use the processors.

    A thread that has begun its part, and then loses its processor, is waited for, some milliseconds each time.

    Parameters
    ----------
    clock : callable, default=time.perf_counter
        Returns the time in seconds.
    """

    # From how many nanoseconds of waiting on, and from which share of the calling thread's own part on, another one has
    # lost its processor.
    MAX_WAITED, MAX_SHARE = 1_000_000, 0.75
    # Seconds until the next call on several threads, at first and at most, and what a success leaves of them.
    PAUSE, RECOVERY = (0.004, 1.0), 0.9

    def __init__(self, clock=perf_counter):
        self._clock = clock
        self._pause = Pause(*self.PAUSE, self.RECOVERY)

    def are_shared(self):
        """Whether it is time for a call on several threads."""
        return self._clock() >= self._pause.end

    def note(self, workers):
        """Note how long the last call of these workers has waited."""
        took, waited = workers.cells[[_TOOK, _WAITED]].tolist()
        if waited > max(self.MAX_WAITED, self.MAX_SHARE * took):
            self._pause.begin(self._clock())
        else:
            self._pause.shorten()


long_calls = LongCalls()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _free.clear())  # their threads are not there
