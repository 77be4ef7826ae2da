"""Short calls that follow each other at once: when threads take part in them."""

from threading import Thread

import numpy as np
import pytest

from fastbp.kernels import short_calls as module
from fastbp.kernels.short_calls import ShortCalls

MIN_WORK = 2e5


class Clock:
    now = 1.0

    def __call__(self):
        return self.now


class FakeWorkers:
    """To start a thread takes a tenth of a millisecond."""

    most = 64

    def __init__(self, clock):
        self._clock, self.n_threads = clock, 1

    def start(self, n_threads):
        if n_threads == self.n_threads:
            return True
        self.n_threads = min(n_threads, self.most)
        self._clock.now += 1e-4
        return False


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still."""
    clock = Clock()
    workers = [FakeWorkers(clock)]
    monkeypatch.setattr(module, "take_workers", workers.pop)
    monkeypatch.setattr(module, "give_back", workers.append)
    monkeypatch.setattr(module, "python_thread_count", lambda n_jobs, work, least: min(2, int(work // least)))
    return clock


def make_calls(calls, clock, n, seconds, work=1e6, n_jobs=None, gap=1e-6, source="f"):
    """Return the numbers of threads of n calls; `seconds` has those of a call for each number of threads."""
    used = []
    for _ in range(n):
        clock.now += gap
        n_threads, streak = calls.begin(n_jobs, work, MIN_WORK, source)
        used.append(n_threads)
        clock.now += seconds[n_threads]
        if streak is not None:
            calls.end(streak)
    return used


FASTER, SLOWER = {1: 1e-5, 2: 6e-6}, {1: 1e-5, 2: 1.1e-5}
# Calls, of 1e-5 seconds on one thread, after which they are measured, before threads are started.
BEFORE = int(ShortCalls.MIN_STREAK / 1.1e-5)


def test_threads_are_started_for_calls_that_follow_each_other(clock):
    calls = ShortCalls(clock)
    used = make_calls(calls, clock, 5000, FASTER)
    first = used.index(2)
    assert BEFORE < first < BEFORE + 2 * calls.N_ALONE and set(used[first:]) == {2}
    # Not for short loops, nor where there is time between the calls.
    for n in (10, BEFORE // 2, BEFORE):
        for _ in range(100):
            clock.now += 2 * calls.MAX_GAP
            assert set(make_calls(calls, clock, n, FASTER)) == {1}
    assert make_calls(calls, clock, 3000, FASTER, gap=2 * calls.MAX_GAP) == [1] * 3000
    assert make_calls(calls, clock, 3000, FASTER, gap=4e-5) == [1] * 3000
    # Where one thread is all there is, nothing is tried.
    assert make_calls(calls, clock, 3000, FASTER, work=MIN_WORK) == [1] * 3000


def test_calls_of_different_work_take_turns(clock):
    calls = ShortCalls(clock)
    rng = np.random.default_rng(0)
    used = []
    for _ in range(5000):
        work = rng.uniform(5e5, 8e6)
        seconds = {1: 3e-6 + work * 5e-12, 2: 4e-6 + work * 2.5e-12}
        used += make_calls(calls, clock, 1, seconds, work=work)
    assert np.mean(np.array(used[1000:]) == 2) > 0.95


def test_calls_that_are_not_faster_on_several_threads_are_tried_seldom(clock):
    calls = ShortCalls(clock)
    used = np.array(make_calls(calls, clock, 1_000_000, SLOWER))
    begins = np.flatnonzero(np.diff(used) > 0)
    # The pauses double, up to four seconds.
    pauses = np.diff(begins) * 1.1e-5
    assert 0.004 < pauses[0] < 0.015 and (np.diff(pauses[:6]) > 0).all()
    assert calls.PAUSE[1] * 0.9 < pauses[-1] < calls.PAUSE[1] * 1.2
    assert (used == 2).mean() < 0.01
    # Larger calls need not wait so long.
    used = make_calls(calls, clock, 1200, {1: 1e-4, 2: 6e-5}, work=1e7)
    assert used[-10:] == [2] * 10
    # When the processor is free again, they are as fast as they can be.
    used = np.array(make_calls(calls, clock, 1_000_000, FASTER))
    assert (used[-10_000:] == 2).mean() > 0.99


def test_loops_that_are_too_short_are_tried_seldom(clock):
    calls = ShortCalls(clock)
    begin, n = clock.now, 0
    for _ in range(5000):  # each ends just when threads have been started
        used = make_calls(calls, clock, BEFORE + 2 * calls.N_ALONE, {1: 1e-5, 2: 2e-5})
        n += len(used)
        clock.now += 2 * calls.MAX_GAP
    seconds = clock.now - begin - 5000 * 2 * calls.MAX_GAP
    assert seconds < 1.01 * n * 1.1e-5


def test_threads_that_wait_for_a_processor_are_given_up(clock):
    calls = ShortCalls(clock)
    make_calls(calls, clock, 5000, FASTER)
    used = []
    for _ in range(20_000):  # another process takes the processor every millisecond, for four
        used += make_calls(calls, clock, 100, FASTER)
        if used[-1] == 2:
            used += make_calls(calls, clock, 1, {1: 1e-5, 2: 4e-3})
    seconds = sum(4e-3 if i % 101 == 100 and n == 2 else FASTER[n] for i, n in enumerate(used))
    assert seconds < 1.02 * len(used) * FASTER[1]


def test_one_call_that_was_held_up_is_not_the_end(clock):
    calls = ShortCalls(clock)
    make_calls(calls, clock, 5000, FASTER)
    used = []
    for _ in range(100):
        used += make_calls(calls, clock, 1, {1: 4e-4, 2: 4e-4})
        used += make_calls(calls, clock, 500, FASTER)
    assert np.mean(np.array(used) == 2) > 0.99


def test_most_calls_on_several_threads_are_not_measured(clock, monkeypatch):
    calls = ShortCalls(clock)
    make_calls(calls, clock, 5000, FASTER)
    measured = []
    end = calls.end
    monkeypatch.setattr(calls, "end", lambda streak: measured.append(clock.now) or end(streak))
    assert set(make_calls(calls, clock, 10_000, FASTER)) == {2}
    assert 1000 < len(measured) < 4000


def test_one_thread_is_measured_again(clock):
    calls = ShortCalls(clock)
    make_calls(calls, clock, 5000, {1: 2e-5, 2: 1.7e-5})
    used = make_calls(calls, clock, 200_000, {1: 1e-5, 2: 1.7e-5})
    assert used[0] == 2 and np.mean(np.array(used[20_000:]) == 2) < 0.02
    # It is not, more often than needed.
    used = np.array(make_calls(calls, clock, 1_000_000, FASTER))
    assert 0.97 < (used[-200_000:] == 2).mean() < 1


def begin_measured(calls, clock):
    """Begin a call that is measured."""
    clock.now = max(clock.now, calls._measured_from, calls._streak.calls.trusted_until)
    calls._last = clock.now
    n_threads, streak = calls.begin(None, 1e6, MIN_WORK, "f")
    assert n_threads == 2 and streak is calls._streak
    return streak


def test_calls_at_the_same_time_are_made_by_one_thread(clock):
    calls = ShortCalls(clock)
    make_calls(calls, clock, 1000, FASTER)
    streak = begin_measured(calls, clock)
    found = []
    other = Thread(target=lambda: found.append(calls.begin(None, 1e6, MIN_WORK, "f")))  # it has nothing to end
    other.start()
    other.join()
    assert found == [(1, None)]
    # A handler of signals may predict, too.
    assert calls.begin(None, 1e6, MIN_WORK, "f") == (1, None)
    calls.end(streak)
    assert make_calls(calls, clock, 10, FASTER) == [2] * 10


def test_a_changed_limit_counts_at_once(clock, monkeypatch):
    calls = ShortCalls(clock)
    make_calls(calls, clock, 5000, FASTER)
    monkeypatch.setattr(module, "python_thread_count", lambda *_: 1)  # as after `numba.set_num_threads(1)`
    assert set(make_calls(calls, clock, 10_000, FASTER)[500:]) == {1}


def test_where_no_thread_can_be_started(clock, monkeypatch):
    calls = ShortCalls(clock)
    monkeypatch.setattr(FakeWorkers, "most", 1)
    assert make_calls(calls, clock, 5000, FASTER) == [1] * 5000
    assert len(calls._pauses) == 1


@pytest.mark.parametrize("name", ["_try", "_start", "_measure", "_judge", "_end_streak"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_after_an_error_calls_are_measured_as_before(name, error, clock, monkeypatch):
    calls = ShortCalls(clock)
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(calls, name, lambda *_: (_ for _ in ()).throw(error()))
        make_calls(calls, clock, 5000, FASTER)
    clock.now += 1
    assert calls._free == [calls._streak]
    assert make_calls(calls, clock, 2000, FASTER)[-10:] == [2] * 10


def test_a_call_that_was_interrupted_before_its_end(clock):
    calls = ShortCalls(clock)
    make_calls(calls, clock, 1000, FASTER)
    lost = begin_measured(calls, clock)  # Ctrl-C comes between this line and the next
    assert make_calls(calls, clock, 100, FASTER, gap=1e-3) == [1] * 100
    used = []
    other = Thread(target=lambda: used.extend(make_calls(calls, clock, 300_000, FASTER)))  # three seconds of calls
    other.start()
    other.join()
    assert used[-10:] == [2] * 10
    calls.end(lost)  # it had not ended, after all
    assert calls._free == [calls._streak] and calls._streak is not lost
