"""The thread tuner: how many batches the next call takes, and on how many threads."""

from functools import lru_cache
from threading import Lock

from fastbp.kernels.plan import training_work

# Seconds that compiled code runs before Python looks for Ctrl-C.
MAX_CALL = 0.04


class ThreadTuner:
    """Measures calls of training on one thread and on several, and chooses the faster for the next.

    Threads that wait for each other several times in each batch are no help where another process holds one of the
    processors: a barrier then lasts until the scheduler gives that processor back. Results do not depend on the number
    of threads, so that it may change between calls: the tuner takes the faster one, or more threads at about the same
    speed, and tries the other again now and then, for a short time.

    Threads may share one processor at first, where `threads._spread` cannot help it. Together they are then about
    as fast as one, and the scheduler moves them apart after a while.

    Parameters
    ----------
    options : iterable of int
        Numbers of threads.
    guess : float
        Seconds of a batch, before anything is measured.
    """

    # How much slower more threads may be than one and still be taken.
    TOLERANCE = 1.1
    # Seconds over which calls are measured together, in a trial and later: the first call of a fit may be one batch,
    # for which the threads must be woken.
    MEASURED = 0.005, 0.02
    # Seconds before a number of threads is measured in a trial, until the threads are awake, each on its processor.
    WARM_UP = 0.002
    # Seconds of training between two trials of the other number of threads, at first and at most.
    PAUSE = 0.16, 1.3
    # The first trial of several threads may have been disturbed, by threads of a BLAS that spin after a product for
    # example: if they have lost, they are tried once more after so many seconds.
    SECOND_LOOK = 0.02
    # The most time that trials may take. Where a processor is busy, one can last ten times as long as it should.
    MAX_SHARE = 0.03

    def __init__(self, options, guess):
        self.options = sorted(options, reverse=True)
        self._guess = guess
        self._seconds = {}
        self._pause = self._until_trial = self.PAUSE[0]
        self._trial = None  # the number of threads on trial
        self._warm_up = self._trial_seconds = 0.0
        self._chosen = None  # the number of threads that is measured, and its seconds and batches so far
        self._sum, self._count = 0.0, 0
        # Python threads that train such networks share a tuner. None waits for the lock: a child that is forked while
        # another thread has it would wait forever.
        self._lock = Lock()

    def choose(self):
        """Return the number of threads and of batches for the next call; a fraction for a part of a batch."""
        if not self._lock.acquire(blocking=False):
            return 1, _whole_batches(self.MEASURED[0] / self._guess)
        try:
            return self._choose()
        finally:
            self._lock.release()

    def _choose(self):
        best = min(self._seconds, key=self._cost, default=None)
        if self._trial is None:
            others = [n_threads for n_threads in self.options if n_threads != best]
            unknown = [n_threads for n_threads in others if n_threads not in self._seconds]
            if unknown or (others and self._until_trial <= 0):
                self._trial = (unknown or sorted(others, key=self._cost))[0]
                self._warm_up = self.WARM_UP if self._trial > 1 else 0.0
                self._trial_seconds = 0.0
        chosen = best if self._trial is None else self._trial
        if chosen != self._chosen:
            self._chosen, self._sum, self._count = chosen, 0.0, 0
        guess = self._guess if best is None else self._seconds[best]
        most = MAX_CALL if self._trial is None else self.MEASURED[0]
        return chosen, _whole_batches(most / guess)

    def _cost(self, n_threads):
        return self._seconds[n_threads] * (self.TOLERANCE if n_threads < max(self.options) else 1)

    def measure(self, n_threads, n_batches, seconds):
        """Take note of the seconds of a call."""
        if self._lock.acquire(blocking=False):
            try:
                self._measure(n_threads, n_batches, seconds)
            finally:
                self._lock.release()

    def _measure(self, n_threads, n_batches, seconds):
        if n_threads != self._chosen:  # another Python thread has chosen meanwhile
            return
        if self._trial is None:
            self._until_trial -= seconds
        else:
            self._trial_seconds += seconds
            if self._warm_up > 0:
                self._warm_up -= seconds
                return
        self._sum, self._count = self._sum + seconds, self._count + n_batches
        if self._sum < self.MEASURED[self._trial is None]:
            return
        is_first = n_threads not in self._seconds
        self._seconds[n_threads] = max(self._sum / self._count, 1e-9)
        self._sum, self._count = 0.0, 0
        if self._trial is not None:
            self._trial = None
            self._until_trial = max(self._pause, self._trial_seconds / self.MAX_SHARE)
            self._pause = min(2 * self._pause, self.PAUSE[1])
            has_lost = min(self._seconds, key=self._cost) < max(self.options)
            if is_first and len(self._seconds) == len(self.options) and has_lost:
                self._until_trial = max(self.SECOND_LOOK, 4 * self._seconds[max(self.options)])


def _whole_batches(count):
    return int(count) if count >= 1 else count


@lru_cache(maxsize=256)
def tuner_for(units, batch_size, itemsize, solver, n_threads, kind):
    """Return the tuner for such networks, with what earlier calls of this process have measured.

    `kind` tells steps apart that take very different times for the same network, as those that update a few rows only.
    """
    # A first guess of the seconds of a batch: 50 GFLOP/s, and half a microsecond for itself.
    return ThreadTuner({1, n_threads}, training_work(units) * batch_size / 50e9 + 5e-7)
