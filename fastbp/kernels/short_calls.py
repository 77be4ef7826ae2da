"""Short calls that follow each other at once: on one thread, or on several that stay awake in between.

A thread that takes part in a call gains something only where it has begun before the call is over, and has a processor
of its own. Whether it has, and what it gains, only a clock tells: so calls are measured, on one thread and on several.
"""

import os
from math import frexp
from threading import Lock, get_ident
from time import perf_counter

from fastbp.kernels.threads import python_thread_count
from fastbp.kernels.workers import give_back, take_workers


class _Calls:
    """What is known of calls of one kind, as long as they follow each other at once."""

    def __init__(self):
        self.is_proven = False  # whether several threads have been faster
        self.gain = 0.0  # the seconds that they have gained of late
        self.measure_alone()

    def measure_alone(self):
        """Begin to measure one thread."""
        self.rates: list[float] = []  # seconds for each operation
        self.alone = 0.0  # their mean, when there are enough of them
        self.n_threads, self.n_measured = 1, 0
        # Until when several threads are taken as faster, and how many seconds they take for each operation.
        self.trusted_until = self.together = 0.0

    def measure_together(self, n_threads, since, busy):
        """Begin to measure several threads."""
        self.n_threads, self.since, self.busy = n_threads, since, busy
        self.n_calls, self.seconds, self.rate = 0, 0.0, 0.0  # the sum of their rates


class ShortCalls:
    """Decides for each of many calls whether threads that are awake take part in it, and measures whether it pays.

    Calls of about the same work that follow each other at once are first made by one thread; then others are started
    for them. Where that is no faster, as where another process has a processor, one thread makes them again for a
    while.

    Parameters
    ----------
    clock : callable, default=time.perf_counter
        Returns the time in seconds.
    """

    # Seconds between two calls that follow each other at once; and the share of the time that calls take at least, as
    # the threads wait in between.
    MAX_GAP, MIN_BUSY = 5e-4, 0.3
    # Seconds of such calls before they are measured. Then threads are woken, which takes 30 microseconds, or started.
    MIN_STREAK = 1e-3
    # How many calls on one thread are measured, and of how many the mean is taken: not of those that were disturbed.
    N_ALONE, N_FASTEST = 20, 18
    # Seconds in which new threads are not measured: their caches are cold.
    WARM_UP = 1.5e-3
    # Seconds of calls on several threads that are measured together: one that had to wait for a processor counts too.
    # And seconds after it in which such calls are not measured, if they were fast.
    MEASURED, TRUSTED = 1e-3, 3e-3
    # How often that is done before one thread is measured again.
    N_MEASURED = 30
    # Which share of the seconds on one thread they may take at most; and how many seconds more they may take once, as a
    # thread may be held up on one thread too.
    MAX_SHARE, MAX_LOSS = 0.95, 5e-4
    # Seconds until the next trial, at first and at most: twice as many each time, and a little less after each success.
    PAUSE, RECOVERY = (0.004, 4.0), 0.95
    # The share of them in which calls are not even measured, and the most seconds.
    SKIPPED, MAX_SKIPPED = 0.9, 0.02
    # Seconds for an operation, at most: weights in float64 that come from memory with 13 GB in a second.
    SLOWEST = 3e-10

    def __init__(self, clock=perf_counter):
        self._clock = clock
        # Who measures has it. Nobody waits for it: other calls at the same time are made by one thread.
        self._lock, self._owner = Lock(), 0
        # By kind of calls: what is known of them; and the time of the next trial, with the seconds from it until the
        # one after it.
        self._kinds: dict[tuple, _Calls] = {}
        self._pauses: dict[tuple, tuple[float, float]] = {}
        self._calls = _Calls()
        self._begin = self._end = self._warm_at = 0.0
        self._measure_from(0.0)

    def begin(self, n_jobs, work, min_work, source):
        """Begin a call.

        Parameters
        ----------
        n_jobs : int or None
            See `threads.thread_count`.
        work, min_work : float
            Floating point operations, and from how many on a thread pays.
        source : hashable
            What tells calls of the same work apart.

        Returns
        -------
        n_threads : int
            On how many threads to make it.
        is_measured : bool
            Whether `end` must be called after it.
        """
        now = self._clock()
        kind = n_jobs, source, frexp(work)[1]
        if now - self._end <= self.MAX_GAP:
            # To measure a call takes more than a microsecond. What threads that come here at once write is right for
            # one of them.
            if now < self._measured_from:
                self._end = now + work * self.SLOWEST
                return 1, False
            calls = self._kinds.get(kind)
            if calls is not None and now < calls.trusted_until:
                seconds = work * calls.together
                self._end = now + seconds
                self._busy += seconds
                return calls.n_threads, False
        if not self._lock.acquire(blocking=False):
            if self._owner != get_ident():
                return 1, False
            self._kinds.clear()  # Ctrl-C has ended the call before
        try:
            self._owner = get_ident()
            if now - self._end > self.MAX_GAP:
                self._end_streak()
                self._measure_from(now + self.MIN_STREAK)
                self._end = now + work * self.SLOWEST
                self._release()
                return 1, False
            self._begin = now
            self._kind, self._work = kind, work
            self._limits = n_jobs, work, min_work
            if kind not in self._kinds:
                self._kinds[kind] = _Calls()
            self._calls = calls = self._kinds[kind]
            if calls.alone and calls.n_threads == 1:
                self._try()
            return calls.n_threads, True
        except BaseException:
            self._kinds.clear()
            self._release()
            raise

    def end(self):
        """End a call that is measured."""
        try:
            self._end = now = self._clock()
            seconds = now - self._begin
            self._busy += seconds
            self._measure(seconds)
        finally:
            self._release()

    def _release(self):
        if self._lock.locked():  # a handler of signals may have made a call within this one
            self._lock.release()

    def _end_streak(self):
        """Forget the calls before. A trial that has not come to its end was not worth its beginning."""
        for kind, calls in self._kinds.items():
            if calls.n_threads > 1 and not calls.is_proven:
                self._postpone(kind)
        self._kinds.clear()

    def _measure_from(self, time):
        """Begin to measure calls at some time, and to count the seconds that they take."""
        self._busy, self._since, self._measured_from = 0.0, time, time

    def _measure(self, seconds):
        calls = self._calls
        if calls.n_threads > 1:
            if self._begin > self._warm_at:
                calls.n_calls += 1
                calls.seconds += seconds
                calls.rate += seconds / self._work
                if calls.seconds > self.MEASURED:
                    self._judge(calls)
        elif not calls.alone:
            calls.rates.append(seconds / self._work)
            if len(calls.rates) == self.N_ALONE:
                calls.alone = sum(sorted(calls.rates)[: self.N_FASTEST]) / self.N_FASTEST

    def _try(self):
        """Start threads, if it is time for it."""
        time, _ = self._pauses.get(self._kind, (0.0, 0.0))
        if self._begin < time:
            self._skip(time)
        elif self._is_busy(self._since, 0.0):
            self._start(python_thread_count(*self._limits))
        else:
            self._give_up()

    def _is_busy(self, since, busy):
        """Whether calls have taken enough of the time since then, when they had taken so many seconds."""
        return self._busy - busy >= self.MIN_BUSY * (self._begin - since)

    def _start(self, n_threads):
        """Start the threads that are missing, or have ended while the one that calls had no processor."""
        workers = take_workers()
        try:
            if n_threads > 1 and not workers.start(n_threads):
                self._warm_at = self._begin + self.WARM_UP
        except RuntimeError:
            n_threads = 1
        finally:
            give_back(workers)
        if n_threads == 1:
            self._give_up()
        else:
            calls = self._calls
            calls.measure_together(n_threads, max(self._begin, calls.trusted_until), self._busy)

    def _judge(self, calls):
        """Decide whether the calls that were measured were fast enough."""
        gain = calls.seconds * (self.MAX_SHARE * calls.alone * calls.n_calls / calls.rate - 1)
        calls.gain = min(calls.gain + gain, self.MAX_LOSS)
        if calls.gain < -self.MAX_LOSS or not self._is_busy(calls.since, calls.busy):
            self._give_up()
            return
        if gain > 0:
            calls.is_proven = True
            calls.trusted_until, calls.together = self._end + self.TRUSTED, calls.rate / calls.n_calls
            if self._kind in self._pauses:
                time, pause = self._pauses[self._kind]
                self._pauses[self._kind] = time, max(self.RECOVERY * pause, self.PAUSE[0])
        calls.n_measured += 1
        if calls.n_measured > self.N_MEASURED:
            calls.measure_alone()
        else:
            self._start(python_thread_count(*self._limits))

    def _give_up(self):
        """Make such calls on one thread for some time; the others end by themselves."""
        self._kinds[self._kind] = _Calls()
        self._postpone(self._kind)
        self._skip(self._pauses[self._kind][0])

    def _postpone(self, kind):
        """Set the time of the next trial of such calls."""
        _, pause = self._pauses.get(kind, (0.0, self.PAUSE[0]))
        self._pauses[kind] = self._begin + pause, min(2 * pause, self.PAUSE[1])

    def _skip(self, time):
        """Do not measure the next calls, for most of the time until then."""
        if not any(calls.is_proven for calls in self._kinds.values()):
            now = self._begin
            self._measure_from(now + min(self.SKIPPED * (time - now), self.MAX_SKIPPED))


_of_this_process = ShortCalls()


def short_calls():
    """Return what is known of the short calls of this process."""
    return _of_this_process


def _forget_calls():
    global _of_this_process
    _of_this_process = ShortCalls()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_calls)  # another thread may have the lock
