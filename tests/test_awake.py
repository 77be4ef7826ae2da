"""Threads that stay awake between short calls: what they do, and when they are started."""

import os
import subprocess
import sys
import time
from itertools import pairwise, product
from threading import Thread

import numpy as np
import pytest
from numba import njit, types
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

import fastbp.prediction
from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.activations import Logistic, Relu, Softmax, Tanh
from fastbp.codegen.atomics import atomic_add
from fastbp.codegen.jit import called_by_address
from fastbp.codegen.memory import pointer
from fastbp.codegen.processor import nanoseconds
from fastbp.kernels import awake as module
from fastbp.kernels.awake import AwakeThreads, call_on_awake
from fastbp.kernels.plan import can_share_columns
from fastbp.kernels.threads import FEW_SPINS, addresses_for, join_team, new_team, python_thread_count, renew_team
from fastbp.prediction import ArraysMovedError, Predictor

# Nanoseconds that threads wait here: tests take their time between two calls.
LONG = 20_000_000
MIN_WORK = 2e5


def start(awake, n_threads):
    crew = []
    for _ in range(1, n_threads):
        crew.append(Thread(target=module._wait_for_calls, args=(awake._cells, new_team(2), LONG), daemon=True))
        crew[-1].start()
    return crew


# --- in compiled code ---


@called_by_address
def count_ranks(cells, wanted, counts):
    team = join_team(cells, wanted)
    if team.rank >= 0:
        atomic_add(counts, 16 * team.rank, 1)


@njit(nogil=True)
def call_often(awake, addresses, team, wanted, counts, arrivals, n):
    cells = pointer(team, 0)
    for _ in range(n):
        renew_team(cells, wanted, FEW_SPINS)
        call_on_awake(pointer(awake, 0), addresses, (cells, wanted, pointer(counts, 0)))
        arrivals[0] += awake[module._DONE]


@njit
def run_clock():
    return nanoseconds()


@pytest.mark.parametrize("n_others", [0, 1, 3])
def test_each_thread_takes_part_in_a_call_once(n_others):
    place = types.CPointer(types.int64)
    addresses = addresses_for(count_ranks, (place, types.int64, place))
    awake, wanted, n = AwakeThreads(), 2, 2_000
    counts, arrivals = np.zeros(16 * 8, np.int64), np.zeros(1, np.int64)
    calls = 0
    call_often(awake._cells, addresses, new_team(wanted), wanted, counts, arrivals, 10)  # compiles
    crew = start(awake, 1 + n_others)
    for _ in range(500):
        calls += n
        call_often(awake._cells, addresses, new_team(wanted), wanted, counts, arrivals, n)
        if n_others == 0 or counts[16] > n:
            break
    # The thread that calls has begun each team; never are there more than are wanted.
    assert counts[0] == calls + 10 and counts[32:].sum() == 0
    assert counts[16] == 0 if n_others == 0 else n < counts[16] <= calls
    assert counts[16] <= arrivals[0] <= n_others * calls
    for thread in crew:
        thread.join(60)
        assert not thread.is_alive()


def test_threads_end_when_no_call_comes():
    module.prepare()
    awake = AwakeThreads()
    for idle in (module._IDLE, -1):
        thread = Thread(target=module._wait_for_calls, args=(awake._cells, new_team(2), idle), daemon=True)
        thread.start()
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="nanoseconds are those of Linux")
def test_the_clock():
    before, now, after = time.monotonic_ns(), run_clock(), time.monotonic_ns()
    assert before <= now <= after


# --- when they are started ---


class Clock:
    now = 1.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still. To start a thread takes a tenth of a millisecond."""
    clock = Clock()

    class FakeThread:
        def __init__(self, **_):
            pass

        def start(self):
            clock.now += 1e-4

        def is_alive(self):
            return True

    monkeypatch.setattr(module, "Thread", FakeThread)
    monkeypatch.setattr(module, "python_thread_count", lambda n_jobs, work, least: min(2, int(work // least)))
    return clock


def make_calls(awake, clock, n, seconds, work=1e6, n_jobs=None, gap=1e-6, source="f"):
    """Return the numbers of threads of n calls; `seconds` has those of a call for each number of threads."""
    used = []
    for _ in range(n):
        clock.now += gap
        n_threads = awake.begin(n_jobs, work, MIN_WORK, source)
        used.append(max(n_threads, 1))
        clock.now += seconds[used[-1]]
        if n_threads:
            awake.end()
    return used


FASTER, SLOWER = {1: 1e-5, 2: 6e-6}, {1: 1e-5, 2: 1.1e-5}
# Calls, of 1e-5 seconds on one thread, after which they are measured, before threads are started.
BEFORE = int(AwakeThreads.MIN_STREAK / 1.1e-5)


def test_threads_are_started_for_calls_that_follow_each_other(clock):
    awake = AwakeThreads(clock)
    used = make_calls(awake, clock, 5000, FASTER)
    first = used.index(2)
    assert BEFORE < first < BEFORE + 2 * awake.N_ALONE and set(used[first:]) == {2}
    # Not for short loops, nor where there is time between the calls.
    for n in (10, BEFORE // 2, BEFORE):
        for _ in range(100):
            clock.now += 2 * awake.MAX_GAP
            assert set(make_calls(awake, clock, n, FASTER)) == {1}
    assert make_calls(awake, clock, 3000, FASTER, gap=2 * awake.MAX_GAP) == [1] * 3000
    assert make_calls(awake, clock, 3000, FASTER, gap=4e-5) == [1] * 3000
    # Where one thread is all there is, nothing is tried.
    assert make_calls(awake, clock, 3000, FASTER, work=MIN_WORK) == [1] * 3000


def test_calls_of_different_work_take_turns(clock):
    awake = AwakeThreads(clock)
    rng = np.random.default_rng(0)
    used = []
    for _ in range(5000):
        work = rng.uniform(5e5, 8e6)
        seconds = {1: 3e-6 + work * 5e-12, 2: 4e-6 + work * 2.5e-12}
        used += make_calls(awake, clock, 1, seconds, work=work)
    assert np.mean(np.array(used[1000:]) == 2) > 0.95


def test_calls_that_are_not_faster_on_several_threads_are_tried_seldom(clock):
    awake = AwakeThreads(clock)
    used = np.array(make_calls(awake, clock, 1_000_000, SLOWER))
    begins = np.flatnonzero(np.diff(used) > 0)
    # The pauses double, up to four seconds.
    pauses = np.diff(begins) * 1.1e-5
    assert 0.004 < pauses[0] < 0.015 and (np.diff(pauses[:6]) > 0).all()
    assert awake.PAUSE[1] * 0.9 < pauses[-1] < awake.PAUSE[1] * 1.2
    assert (used == 2).mean() < 0.01
    # Larger calls need not wait so long.
    used = make_calls(awake, clock, 1200, {1: 1e-4, 2: 6e-5}, work=1e7)
    assert used[-10:] == [2] * 10
    # When the processor is free again, they are as fast as they can be.
    used = np.array(make_calls(awake, clock, 1_000_000, FASTER))
    assert (used[-10_000:] == 2).mean() > 0.99


def test_loops_that_are_too_short_are_tried_seldom(clock):
    awake = AwakeThreads(clock)
    begin, n = clock.now, 0
    for _ in range(5000):  # each ends just when threads have been started
        used = make_calls(awake, clock, BEFORE + 2 * awake.N_ALONE, {1: 1e-5, 2: 2e-5})
        n += len(used)
        clock.now += 2 * awake.MAX_GAP
    seconds = clock.now - begin - 5000 * 2 * awake.MAX_GAP
    assert seconds < 1.01 * n * 1.1e-5


def test_threads_that_wait_for_a_processor_are_given_up(clock):
    awake = AwakeThreads(clock)
    make_calls(awake, clock, 5000, FASTER)
    used = []
    for _ in range(20_000):  # another process takes the processor every millisecond, for four
        used += make_calls(awake, clock, 100, FASTER)
        if used[-1] == 2:
            used += make_calls(awake, clock, 1, {1: 1e-5, 2: 4e-3})
    seconds = sum(4e-3 if i % 101 == 100 and n == 2 else FASTER[n] for i, n in enumerate(used))
    assert seconds < 1.02 * len(used) * FASTER[1]


def test_one_thread_is_measured_again(clock):
    awake = AwakeThreads(clock)
    make_calls(awake, clock, 5000, {1: 2e-5, 2: 1.7e-5})
    used = make_calls(awake, clock, 200_000, {1: 1e-5, 2: 1.7e-5})
    assert used[0] == 2 and np.mean(np.array(used[20_000:]) == 2) < 0.02
    # It is not, more often than needed.
    used = np.array(make_calls(awake, clock, 1_000_000, FASTER))
    assert 0.97 < (used[-200_000:] == 2).mean() < 1


def test_calls_at_the_same_time_are_made_by_one_thread(clock):
    awake = AwakeThreads(clock)
    make_calls(awake, clock, 1000, FASTER)
    clock.now += 1e-6
    assert awake.begin(None, 1e6, MIN_WORK, "f") == 2
    found = []
    other = Thread(target=lambda: found.append(awake.begin(None, 1e6, MIN_WORK, "f")))  # it has nothing to end
    other.start()
    other.join()
    assert found == [0]
    awake.end()
    assert make_calls(awake, clock, 10, FASTER) == [2] * 10


def test_a_changed_limit_counts_at_once(clock, monkeypatch):
    awake = AwakeThreads(clock)
    make_calls(awake, clock, 5000, FASTER)
    monkeypatch.setattr(module, "python_thread_count", lambda *_: 1)  # as after `numba.set_num_threads(1)`
    assert set(make_calls(awake, clock, 10_000, FASTER)[500:]) == {1}


def test_where_no_thread_can_be_started(clock, monkeypatch):
    class Refused:
        def __init__(self, **_):
            pass

        def start(self):
            raise RuntimeError("can't start new thread")

    awake = AwakeThreads(clock)
    monkeypatch.setattr(module, "Thread", Refused)
    assert make_calls(awake, clock, 5000, FASTER) == [1] * 5000
    assert len(awake._pauses) == 1


@pytest.mark.parametrize("name", ["_try", "_start", "_measure", "_judge", "_end_streak"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_after_an_error_calls_are_measured_as_before(name, error, clock, monkeypatch):
    awake = AwakeThreads(clock)
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(awake, name, lambda *_: (_ for _ in ()).throw(error()))
        make_calls(awake, clock, 5000, FASTER)
    clock.now += 1
    assert not awake._lock.locked()
    assert make_calls(awake, clock, 2000, FASTER)[-10:] == [2] * 10


def test_a_call_that_was_interrupted_before_its_end(clock):
    awake = AwakeThreads(clock)
    make_calls(awake, clock, 1000, FASTER)
    awake.begin(None, 1e6, MIN_WORK, "f")  # Ctrl-C comes between this line and the next
    assert awake._lock.locked()
    assert make_calls(awake, clock, 2000, FASTER)[-10:] == [2] * 10
    assert not awake._lock.locked()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_has_threads_of_its_own():
    code = """if True:
        import os
        from fastbp.kernels import awake
        from fastbp.kernels.threads import numba_threads_are_started, python_thread_count
        before = awake.awake_threads()
        python_thread_count(None, 1e9, 1.0)
        assert not numba_threads_are_started()
        before.begin(None, 1e6, 1.0, "f")
        child = os.fork()
        if child == 0:
            after = awake.awake_threads()
            after.begin(None, 1e6, 1.0, "f"), after.end()
            os._exit(0 if after is not before and python_thread_count(None, 1e9, 1.0) == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# --- predictions ---


class Always:
    """Threads that take part in each call."""

    def __init__(self):
        self._awake, self._crew = AwakeThreads(), []
        self.address = self._awake.address
        self.n_threads, self.n_started = 1, 1

    def begin(self, *_):
        self._crew = [thread for thread in self._crew if thread.is_alive()]
        if len(self._crew) != self.n_started - 1:
            self.join()
            self._crew = start(self._awake, self.n_started)
        return self.n_threads

    def join(self):
        for thread in self._crew:
            thread.join()

    def end(self):
        pass


@pytest.fixture
def on_awake(monkeypatch):
    """Call a function on `n_threads` threads that are awake, of which only `n_started` are there."""
    always = Always()

    def call(n_threads, n_started, function, *args):
        always.n_threads, always.n_started = n_threads, n_started
        with monkeypatch.context() as patch:
            patch.setattr(fastbp.prediction, "awake_threads", lambda: always)
            return function(*args)

    yield call
    always.join()


NETWORKS = [
    ([70, 150, 33, 3], [Tanh(), Relu(), Softmax()]),
    ([20, 256, 1], [Relu(), Logistic()]),
    ([300, 700, 7], [Softmax(), Softmax()]),  # an activation of whole rows in between
    ([5, 3], [Softmax()]),
]
THREADS = [(2, 2), (3, 3), (4, 4), (2, 1), (3, 2), (2, 4)]


def make_predictor(units, activations, dtype, is_pair=False):
    rng = np.random.default_rng(sum(units))
    shapes = list(pairwise(units))
    coefs = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    intercepts = [rng.normal(size=n).astype(dtype) for n in units[1:]]
    predictor = Predictor(coefs, intercepts, activations, units[0], is_pair=is_pair)
    predictor._min_work_awake = 0.0
    return predictor, rng


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("units, activations", NETWORKS, ids=lambda value: "-".join(map(str, value)))
def test_predictions_have_the_same_bits(units, activations, dtype, on_awake):
    predictor, rng = make_predictor(units, activations, dtype, is_pair=units[-1] == 1)
    X = rng.normal(size=(40, units[0])).astype(dtype)
    X[rng.random(X.shape) < 0.6] = 0
    for (n_threads, n_started), n in product(THREADS, [*range(1, 26), 40]):
        expected = predictor.outputs(X[:n], 1)[0].tobytes()
        csr = sparse.csr_matrix(X[:n])
        expected_csr = predictor.outputs(csr, 1)[0].tobytes()
        out, finite = on_awake(n_threads, n_started, predictor.outputs, X[:n], None)
        assert finite and out.tobytes() == expected, (n, n_threads)
        out, finite = on_awake(n_threads, n_started, predictor.outputs, csr, None)
        assert finite and out.tobytes() == expected_csr, (n, n_threads)


def test_columns_are_shared_where_they_are_about_equal():
    assert can_share_columns([784, 512, 512, 10], 4, 2) and can_share_columns([784, 512, 512, 10], 8, 4)
    assert not can_share_columns([784, 10], 4, 2) and not can_share_columns([20, 1024, 1], 4, 64)


@pytest.mark.parametrize("n", [1, 4, 30])
def test_numbers_that_are_not_finite_are_found(n, on_awake):
    predictor, rng = make_predictor([70, 256, 3], [Tanh(), Softmax()], np.float32)
    for (n_threads, n_started), row in product(THREADS, range(n)):
        X = rng.normal(size=(n, 70)).astype(np.float32)
        X[row, rng.integers(70)] = rng.choice([np.nan, np.inf])
        assert not on_awake(n_threads, n_started, predictor.outputs, X, None)[1]
        X[row] = 1
        assert on_awake(n_threads, n_started, predictor.outputs, X, None)[1]


@pytest.mark.parametrize("n", [1, 4, 30])
def test_weights_that_were_moved_are_found(n, on_awake):
    for n_threads, n_started in THREADS:
        predictor, rng = make_predictor([70, 256, 3], [Tanh(), Softmax()], np.float32)
        X = rng.normal(size=(n, 70)).astype(np.float32)
        on_awake(n_threads, n_started, predictor.outputs, X, None)
        predictor._arrays[0].resize((71, 256), refcheck=False)
        with pytest.raises((ArraysMovedError, ValueError)):
            on_awake(n_threads, n_started, predictor.outputs, X, None)


@pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
def test_estimators_predict_the_same_in_a_loop(estimator, monkeypatch):
    """With the threads as they are started for users."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(64, 200)).astype(np.float32)
    y = rng.integers(0, 3, 64) if estimator is BackpropClassifier else rng.normal(size=64)
    model = estimator(hidden_layer_sizes=(256, 128), max_iter=2, random_state=0)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, y)
    predict = model.predict_proba if estimator is BackpropClassifier else model.predict
    started = []

    def note(*args, **kwargs):
        started.append(Thread(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(module, "Thread", note)
    module._forget_threads()
    for n_jobs in (1, None):
        model.n_jobs = n_jobs
        results = {n: {predict(X[:n]).tobytes() for _ in range(2000)} for n in (1, 3, 8, 20)}
        assert all(len(result) == 1 for result in results.values())
        if n_jobs == 1:
            expected = results
            assert started == [], "n_jobs=1 starts no thread"
    assert results == expected
    deadline = time.monotonic() + 60  # on a busy machine there are few calls without a pause
    while not started and python_thread_count(None, 1e9, 1.0) > 1 and time.monotonic() < deadline:
        assert {predict(X[:20]).tobytes()} == expected[20]
    assert started or python_thread_count(None, 1e9, 1.0) == 1
    for thread in started:
        thread.join(60)
        assert not thread.is_alive(), "threads end when no call comes"
