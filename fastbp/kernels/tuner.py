"""The thread tuner: how many batches the next call takes, and on how many threads."""

from functools import lru_cache

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

    # Seconds of a try, and seconds of training between two tries of the other number of threads, at first and at most.
    TRY_SECONDS = 0.002
    TRY_AFTER = 0.16, 1.3
    # The most time that tries may take. Where a processor is busy, one can last ten times as long as it should.
    MAX_SHARE = 0.03

    def __init__(self, options, guess):
        self.options = sorted(options, reverse=True)
        self._guess = guess
        self._seconds = {}
        self._pause = self._until_try = self.TRY_AFTER[0]
        self._tries = False

    def choose(self):
        """Return the number of threads and of batches for the next call."""
        self._tries = False
        unknown = [option for option in self.options if option not in self._seconds]
        if unknown:
            return unknown[0], max(1, int(self.TRY_SECONDS / self._guess))
        best, *others = sorted(self.options, key=self._cost)
        if others and self._until_try <= 0:
            self._tries = True
            return others[0], max(1, int(self.TRY_SECONDS / self._seconds[best]))
        return best, max(1, int(MAX_CALL / self._seconds[best]))

    def _cost(self, n_threads):
        return self._seconds[n_threads] * (self.TOLERANCE if n_threads < max(self.options) else 1)

    def measure(self, n_threads, n_batches, seconds):
        """Take note of the seconds of a call."""
        self._until_try -= seconds
        if self._tries:
            self._pause = min(2 * self._pause, self.TRY_AFTER[1])
            self._until_try = max(self._pause, seconds / self.MAX_SHARE)
        self._seconds[n_threads] = max(seconds / n_batches, 1e-9)


@lru_cache(maxsize=256)
def tuner_for(units, batch_size, itemsize, solver, n_threads, kind):
    """Return the tuner for such networks, with what earlier calls of this process have measured.

    `kind` tells steps apart that take very different times for the same network, as those that update a few rows only.
    """
    # A first guess of the seconds of a batch: 50 GFLOP/s, and half a microsecond for itself.
    return ThreadTuner({1, n_threads}, training_work(units) * batch_size / 50e9 + 5e-7)
