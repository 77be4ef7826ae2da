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
        self.measure_alone()

    def measure_alone(self):
        """Begin to measure one thread."""
        self.rates: list[float] = []  # seconds for each operation
        self.alone = 0.0  # their mean, when there are enough of them
        self.n_threads, self.n_measured = 1, 0

    def measure_together(self, n_threads, now, busy):
        """Begin to measure several threads."""
        self.n_threads, self.since, self.busy = n_threads, now, busy
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
    # Seconds of such calls before they are measured, and threads are started, which takes a tenth of a millisecond.
    MIN_STREAK = 2e-3
    # How many calls on one thread are measured, and of how many the mean is taken: not of those that were disturbed.
    N_ALONE, N_FASTEST = 20, 18
    # Seconds in which new threads are not measured: their caches are cold.
    WARM_UP = 1.5e-3
    # Seconds of calls on several threads that are measured together: one that had to wait for a processor counts too.
    MEASURED = 1e-3
    # How often that is done before one thread is measured again.
    N_MEASURED = 100
    # Which share of the seconds on one thread they may take at most.
    MAX_SHARE = 0.95
    # Seconds until the next trial, at first and at most: twice as many each time, and a little less after each success.
    PAUSE, RECOVERY = (0.004, 4.0), 0.95
    # The share of them in which calls are not even measured, and how many of these follow each other at most.
    SKIPPED, MAX_SKIPPED = 0.9, 1000

    def __init__(self, clock=perf_counter):
        self._clock = clock
        # Who measures has it. Nobody waits for it: other calls at the same time are made by one thread.
        self._lock, self._owner = Lock(), 0
        # By kind of calls: what is known of them; and the time of the next trial, with the seconds from it until the
        # one after it.
        self._kinds: dict[tuple, _Calls] = {}
        self._pauses: dict[tuple, tuple[float, float]] = {}
        self._calls = _Calls()
        self._n_skipped, self._is_measured = 0, False
        self._count_calls(0.0, 0.0)
        self._begin = self._end = self._warm_at = 0.0

    def begin(self, n_jobs, work, min_work, source):
        """Begin a call; return on how many threads, 0 for one thread and a call that `end` is not told of.

        Parameters
        ----------
        n_jobs : int or None
            See `threads.thread_count`.
        work, min_work : float
            Floating point operations, and from how many on a thread pays.
        source : hashable
            What tells calls of the same work apart.
        """
        if self._n_skipped > 0:
            self._n_skipped -= 1
            if self._n_skipped == 0:
                self._end = self._clock()
                self._count_calls(self._end, self._end)
            return 0
        if not self._lock.acquire(blocking=False):
            if self._owner != get_ident():
                return 0
            self._kinds.clear()  # Ctrl-C has ended the call before
        try:
            self._owner = get_ident()
            self._begin = now = self._clock()
            if now - self._end > self.MAX_GAP:
                self._end_streak()
                self._count_calls(now, now + self.MIN_STREAK)
            self._is_measured = now > self._measured_from
            if not self._is_measured:
                return 1
            self._kind, self._work = (n_jobs, source, frexp(work)[1]), work
            self._limits = n_jobs, work, min_work
            if self._kind not in self._kinds:
                self._kinds[self._kind] = _Calls()
            self._calls = calls = self._kinds[self._kind]
            if calls.alone and calls.n_threads == 1:
                self._try()
            return calls.n_threads
        except BaseException:
            self._kinds.clear()
            self._release()
            raise

    def end(self):
        """End a call for which `begin` has not returned 0."""
        try:
            self._end = now = self._clock()
            seconds = now - self._begin
            self._n_calls += 1
            self._busy += seconds
            if self._is_measured:
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

    def _count_calls(self, since, measured_from):
        """Begin to count calls, and the seconds that they take; and to measure them from some time on."""
        self._n_calls, self._busy, self._since, self._measured_from = 0, 0.0, since, measured_from

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
            self._calls.measure_together(n_threads, self._begin, self._busy)

    def _judge(self, calls):
        """Decide whether the calls that were measured were fast enough."""
        if calls.rate > self.MAX_SHARE * calls.alone * calls.n_calls or not self._is_busy(calls.since, calls.busy):
            self._give_up()
            return
        calls.is_proven = True
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
        """Do not measure the next calls, for most of the time until then: to measure one takes a microsecond."""
        if not any(calls.is_proven for calls in self._kinds.values()):
            per_second = self._n_calls / max(self._begin - self._since, 1e-9)
            self._n_skipped = int(min(self.SKIPPED * (time - self._begin) * per_second, self.MAX_SKIPPED))


_of_this_process = ShortCalls()


def short_calls():
    """Return what is known of the short calls of this process."""
    return _of_this_process


def _forget_calls():
    global _of_this_process
    _of_this_process = ShortCalls()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_calls)  # another thread may have the lock
