"""Short calls that follow each other at once: on one thread, or on several that stay awake in between.

A thread that takes part in a call gains something only where it has begun before the call is over, and has a processor
of its own. Whether it has, and what it gains, only a clock tells: so calls are measured, on one thread and on several.
"""

import os
from math import frexp
from time import perf_counter

from fastbp.kernels.threads import python_thread_count
from fastbp.kernels.workers import Pause, give_back, take_workers


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


class _Streak:
    """Calls that follow each other at once. Only who has taken it changes it."""

    def __init__(self):
        self.kinds: dict[tuple, _Calls] = {}
        self.busy, self.since = 0.0, 0.0  # the seconds that calls have taken since then
        self.warm_at = 0.0  # when new threads are as fast as the others
        # The call that is measured now.
        self.kind: tuple = ()
        self.calls = _Calls()
        self.limits = None, 0.0, 0.0
        self.begin = 0.0


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
    # Seconds of such calls before they are measured. Then threads are woken, which takes some 30 microseconds.
    MIN_STREAK = 1e-3
    # How many calls on one thread are measured, and of how many the mean is taken: not of those that were disturbed.
    N_ALONE, N_FASTEST = 20, 18
    # Seconds in which threads that were woken are not measured: their caches are cold.
    WARM_UP = 1.5e-3
    # Seconds of calls on several threads that are measured together: one that had to wait for a processor counts too.
    # And seconds after it in which such calls are not measured, if they were fast.
    MEASURED, TRUSTED = 1e-3, 3e-3
    # How often that is done before one thread is measured again.
    N_MEASURED = 30
    # Which share of the seconds on one thread they may take at most; and how many seconds more they may take once, as a
    # thread may be held up on one thread too.
    MAX_SHARE, MAX_LOSS = 0.95, 5e-4
    # Seconds until the next trial, at first and at most, and what a success leaves of them.
    PAUSE, RECOVERY = (0.004, 4.0), 0.95
    # The share of them in which calls are not even measured, and the most seconds.
    SKIPPED, MAX_SKIPPED = 0.9, 0.02
    # Seconds for an operation, at most: weights in float64 that come from memory with 13 GB in a second.
    SLOWEST = 3e-10
    # Seconds after which a measured call without an end was interrupted, as by Ctrl-C.
    MAX_CALL = 1.0

    def __init__(self, clock=perf_counter):
        self._clock = clock
        # It is here while no call is measured. Who finds none makes a call on one thread.
        self._streak = _Streak()
        self._free, self._taken = [self._streak], 0.0
        self._pauses: dict[tuple, Pause] = {}  # until the next trial, by kind of calls
        # When the last call has ended, or will have ended at most; and from when on calls are measured.
        self._last = self._measured_from = 0.0

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
        streak : object or None
            What to call `end` with after it; None if it is not measured.
        """
        now = self._clock()
        kind = n_jobs, source, frexp(work)[1]
        is_next = now - self._last <= self.MAX_GAP
        if is_next:
            # To measure a call takes more than a microsecond. What threads that come here at once write is right for
            # one of them.
            if now < self._measured_from:
                self._last = now + work * self.SLOWEST
                return 1, None
            streak = self._streak
            calls = streak.kinds.get(kind)
            if calls is not None and now < calls.trusted_until:
                seconds = work * calls.together
                self._last = now + seconds
                streak.busy += seconds
                return calls.n_threads, None
        try:
            streak = self._free.pop()  # which Python does in one step, whatever other threads do
        except IndexError:
            if now - self._taken < self.MAX_CALL:
                return 1, None
            streak = self._streak = _Streak()
        try:
            self._taken = now
            if not is_next:
                self._end_streak(streak, now)
                self._last = now + work * self.SLOWEST
                self._give_back(streak)
                return 1, None
            streak.begin, streak.kind, streak.limits = now, kind, (n_jobs, work, min_work)
            if kind not in streak.kinds:
                streak.kinds[kind] = _Calls()
            streak.calls = calls = streak.kinds[kind]
            if calls.alone and calls.n_threads == 1:
                self._try(streak)
            return streak.calls.n_threads, streak
        except BaseException:
            self._begin_anew()
            raise

    def end(self, streak):
        """End a call that is measured."""
        try:
            self._last = now = self._clock()
            seconds = now - streak.begin
            streak.busy += seconds
            self._measure(streak, seconds)
            self._give_back(streak)
        except BaseException:
            self._begin_anew()
            raise

    def _give_back(self, streak):
        if streak is self._streak:  # else another one has taken its place
            self._free.append(streak)

    def _begin_anew(self):
        """Forget all calls: what an error has left undone is not known."""
        self._streak = _Streak()
        self._free = [self._streak]

    def _end_streak(self, streak, now):
        """Forget the calls before. A trial that has not come to its end was not worth its beginning."""
        for kind, calls in streak.kinds.items():
            if calls.n_threads > 1 and not calls.is_proven:
                self._postpone(kind, now)
        streak.kinds = {}
        self._measure_from(streak, now + self.MIN_STREAK)

    def _measure_from(self, streak, time):
        """Begin to measure calls at some time, and to count the seconds that they take."""
        streak.busy, streak.since, self._measured_from = 0.0, time, time

    def _measure(self, streak, seconds):
        calls, (_, work, _) = streak.calls, streak.limits
        if calls.n_threads > 1:
            if streak.begin > streak.warm_at:
                calls.n_calls += 1
                calls.seconds += seconds
                calls.rate += seconds / work
                if calls.seconds > self.MEASURED:
                    self._judge(streak, calls)
        elif not calls.alone:
            calls.rates.append(seconds / work)
            if len(calls.rates) == self.N_ALONE:
                calls.alone = sum(sorted(calls.rates)[: self.N_FASTEST]) / self.N_FASTEST

    def _try(self, streak):
        """Start threads, if it is time for it."""
        pause = self._pauses.get(streak.kind)
        if pause is not None and streak.begin < pause.end:
            self._skip(streak, pause.end)
        elif self._is_busy(streak, streak.since, 0.0):
            self._start(streak)
        else:
            self._give_up(streak)

    def _is_busy(self, streak, since, busy):
        """Whether calls have taken enough of the time since then, when they had taken so many seconds."""
        return streak.busy - busy >= self.MIN_BUSY * (streak.begin - since)

    def _start(self, streak):
        """Wake or start threads, and begin to measure them."""
        n_threads = python_thread_count(*streak.limits)
        if n_threads > 1:
            workers = take_workers()
            if not workers.start(n_threads):
                streak.warm_at = streak.begin + self.WARM_UP
            n_threads = min(n_threads, workers.n_threads)
            give_back(workers)
        if n_threads == 1:
            self._give_up(streak)
        else:
            calls = streak.calls
            calls.measure_together(n_threads, max(streak.begin, calls.trusted_until), streak.busy)

    def _judge(self, streak, calls):
        """Decide whether the calls that were measured were fast enough."""
        gain = calls.seconds * (self.MAX_SHARE * calls.alone * calls.n_calls / calls.rate - 1)
        calls.gain = min(calls.gain + gain, self.MAX_LOSS)
        if calls.gain < -self.MAX_LOSS or not self._is_busy(streak, calls.since, calls.busy):
            self._give_up(streak)
            return
        if gain > 0:
            calls.is_proven = True
            calls.trusted_until, calls.together = self._last + self.TRUSTED, calls.rate / calls.n_calls
            if streak.kind in self._pauses:
                self._pauses[streak.kind].shorten()
        calls.n_measured += 1
        if calls.n_measured > self.N_MEASURED:
            calls.measure_alone()
        else:
            self._start(streak)

    def _give_up(self, streak):
        """Make such calls on one thread for some time; the others go to sleep by themselves."""
        streak.calls = streak.kinds[streak.kind] = _Calls()
        self._postpone(streak.kind, streak.begin)
        self._skip(streak, self._pauses[streak.kind].end)

    def _postpone(self, kind, now):
        """Set the time of the next trial of such calls."""
        if kind not in self._pauses:
            self._pauses[kind] = Pause(*self.PAUSE, self.RECOVERY)
        self._pauses[kind].begin(now)

    def _skip(self, streak, time):
        """Do not measure the next calls, for most of the time until then."""
        if not any(calls.is_proven for calls in streak.kinds.values()):
            now = streak.begin
            self._measure_from(streak, now + min(self.SKIPPED * (time - now), self.MAX_SKIPPED))


_of_this_process = ShortCalls()


def short_calls():
    """Return what is known of the short calls of this process."""
    return _of_this_process


def _forget_calls():
    global _of_this_process
    _of_this_process = ShortCalls()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_calls)  # another thread may have the streak
