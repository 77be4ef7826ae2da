"""The thread tuner."""

import numpy as np
import pytest

from fastbp import BackpropClassifier, estimator
from fastbp.kernels import threads
from fastbp.kernels.session import Session
from fastbp.kernels.tuner import MAX_CALL, ThreadTuner


def run(tuner, seconds_per_batch, n_calls):
    """Let a function of the threads and the call say how long calls take; return the threads and batches of each."""
    chosen = []
    for call in range(n_calls):
        n_threads, n_batches = tuner.choose()
        tuner.measure(n_threads, n_batches, n_batches * seconds_per_batch(n_threads, call))
        chosen.append((n_threads, n_batches))
    return chosen


def threads_of(chosen):
    return [n_threads for n_threads, _ in chosen]


@pytest.mark.parametrize(("speed_up", "expected"), [(1.8, 2), (1.0, 2), (0.95, 2), (0.8, 1), (0.1, 1)])
def test_takes_the_faster_and_more_threads_at_about_the_same_speed(speed_up, expected):
    chosen = run(ThreadTuner({1, 2}, 1e-5), lambda n, _: 1e-4 / speed_up if n == 2 else 1e-4, 100)
    assert set(threads_of(chosen[:8])) == {1, 2}  # both are measured first
    others = [n_batches for n, n_batches in chosen[8:] if n != expected]
    # The other one is tried again, seldom and for a short time.
    seconds = 1e-4 / speed_up if expected == 2 else 1e-4
    assert 1 <= len(others) <= 10 and max(others) <= ThreadTuner.MEASURED[0] / seconds
    assert any(n == expected and abs(n_batches - MAX_CALL / seconds) <= 1 for n, n_batches in chosen[-4:])


def test_threads_that_share_a_processor_at_first_are_used_when_they_do_not():
    chosen = run(ThreadTuner({1, 2}, 1e-4), lambda n, call: 1e-4 if n == 1 else 1.03e-4 if call < 10 else 0.6e-4, 30)
    assert chosen[-1][0] == 2


def test_a_disturbed_first_trial_is_made_up_for_soon():
    spent = 0.0

    def seconds(n_threads, call):
        return 1e-4 if n_threads == 1 else 5e-4 if call < 3 else 0.6e-4

    tuner, chosen = ThreadTuner({1, 2}, 1e-4), []
    while spent < 0.25:
        n_threads, n_batches = tuner.choose()
        duration = min(n_batches, 50) * seconds(n_threads, len(chosen))
        tuner.measure(n_threads, min(n_batches, 50), duration)
        spent += duration
        chosen.append((spent, n_threads))
    assert {n_threads for end, n_threads in chosen if end > 0.15} == {2}


def test_takes_the_other_again_when_another_program_has_ended():
    chosen = run(ThreadTuner({1, 2}, 1e-4), lambda n, call: 1e-4 if n == 1 else 5e-4 if call < 30 else 0.6e-4, 150)
    assert threads_of(chosen[8:30]).count(1) > 15
    assert threads_of(chosen[-10:]).count(2) >= 9


@pytest.mark.parametrize("n_batches", [1, 3, 400])
def test_threads_that_must_be_woken_are_not_slow(n_batches):
    """Each fit calls for a few batches first, and threads are slow for their first millisecond."""
    tuner = ThreadTuner({1, 2}, 5e-5)
    chosen = []
    for _ in range(200):
        awake, left = 0.0, 40
        while left > 0:
            n_threads, most = tuner.choose()
            count = min(most, left, n_batches)
            seconds = count * (1e-4 if n_threads == 1 else 0.6e-4)
            if n_threads == 2 and awake < 0.001:
                seconds += 0.0002
            awake = awake + seconds if n_threads == 2 else 0.0
            tuner.measure(n_threads, count, seconds)
            left -= count
            chosen.append(n_threads)
    assert chosen[-1000 // n_batches :].count(2) > 0.8 * len(chosen[-1000 // n_batches :])


@pytest.mark.parametrize("n_batches", [1, 40])
def test_trials_take_little_time_where_a_processor_is_busy(n_batches):
    """Small fits call for a few batches; with two threads one of them waits for its processor, for a long time."""
    tuner, spent = ThreadTuner({1, 2}, 1e-4), {1: 0.0, 2: 0.0}
    for _ in range(40_000 // n_batches):
        n_threads, most = tuner.choose()
        count = min(most, n_batches)
        seconds = count * 1e-4 if n_threads == 1 else 0.02
        tuner.measure(n_threads, count, seconds)
        spent[n_threads] += seconds
    assert 0.02 < spent[2] < 0.1 * spent[1]


def test_one_thread_only():
    assert all(n == 1 for n, _ in run(ThreadTuner({1}, 1e-4), lambda n, _: 1e-4, 10))


def test_a_tuner_that_another_thread_uses_is_not_waited_for():
    tuner = ThreadTuner({1, 2}, 1e-4)
    tuner._lock.acquire()
    n_threads, count = tuner.choose()
    tuner.measure(2, 10, 1.0)
    assert (n_threads, count) == (1, 50)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_short_epoch_has_one_thread(monkeypatch):
    """In `partial_fit`, whose threads may sleep."""
    found = []

    class Noted(Session):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.append(self.n_threads)

    monkeypatch.setattr(estimator, "Session", Noted)
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(100_000, 20)), rng.integers(0, 2, 100_000)
    clf = BackpropClassifier((50,), n_jobs=2, batch_size=200, max_iter=1, random_state=0)
    clf.fit(X[:400], y[:400]).partial_fit(X[:400], y[:400]).partial_fit(X, y)
    several = threads.thread_count(2, 1e9)
    assert found == [several, 1, several]
