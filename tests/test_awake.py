"""Threads that stay awake between short calls: what they do, and when they are started."""

import os
from itertools import count, pairwise, product
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
from fastbp.kernels import awake as module
from fastbp.kernels.awake import AwakeThreads, call_on_awake
from fastbp.kernels.plan import can_share_columns
from fastbp.kernels.threads import addresses_for, join_team, new_team, renew_team
from fastbp.prediction import ArraysMovedError, Predictor

# Tests take their time between two calls: some ten milliseconds.
LONG = 30_000


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
def call_often(awake, addresses, team, wanted, counts, n):
    cells = pointer(team, 0)
    for _ in range(n):
        renew_team(cells, wanted, module.JOIN_SPINS)
        call_on_awake(pointer(awake, 0), addresses, (cells, wanted, pointer(counts, 0)), wanted)


@pytest.mark.parametrize("n_others", [0, 1, 3])
def test_each_thread_takes_part_in_a_call_once(n_others):
    place = types.CPointer(types.int64)
    addresses = addresses_for(count_ranks, (place, types.int64, place))
    awake, wanted, n = AwakeThreads(), 2, 20_000
    counts = np.zeros(16 * 8, np.int64)
    call_often(awake._cells, addresses, new_team(wanted), wanted, counts, 1)
    crew = start(awake, 1 + n_others)
    calls = 1
    while calls < 50 * n and (n_others and counts[16] < n):
        call_often(awake._cells, addresses, new_team(wanted), wanted, counts, n)
        calls += n
    assert calls > 1 or n_others == 0
    # The thread that calls has begun each team; never are there more than are wanted.
    assert counts[0] == calls and counts[32:].sum() == 0
    assert counts[16] == 0 if n_others == 0 else 0 < counts[16] <= calls
    for thread in crew:
        thread.join(60)
        assert not thread.is_alive()


# --- when they are started ---


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    class FakeThread:
        started = count()

        def __init__(self, **_):
            pass

        def start(self):
            next(FakeThread.started)

        def is_alive(self):
            return True

    monkeypatch.setattr(module, "Thread", FakeThread)
    monkeypatch.setattr(module, "thread_count", lambda n_jobs, work, least: min(2, int(work // least)))
    return Clock()


def make_calls(awake, clock, n, seconds, work=1e6, n_jobs=None, gap=1e-6):
    """Return the numbers of threads of n calls; `seconds` has those of a call for each number of threads."""
    used = []
    for _ in range(n):
        clock.now += gap
        used.append(awake.begin(n_jobs, work))
        clock.now += seconds[used[-1]]
        awake.end()
    return used


FASTER, SLOWER = {1: 1e-5, 2: 6e-6}, {1: 1e-5, 2: 1.1e-5}


def test_threads_are_started_for_calls_that_follow_each_other(clock):
    awake = AwakeThreads(clock)
    clock.now = 1.0
    used = make_calls(awake, clock, 5000, FASTER)
    assert used == [1] * (1 + awake.N_ALONE) + [2] * (4999 - awake.N_ALONE)
    # Not where there is time between them.
    assert make_calls(awake, clock, 100, FASTER, gap=2 * awake.MAX_GAP) == [1] * 100
    # Nor for other kinds of calls, at first.
    assert make_calls(awake, clock, 30, FASTER, work=3e6) == [1] * 20 + [2] * 10
    assert make_calls(awake, clock, 30, FASTER, work=3e6, n_jobs=2) == [1] * 20 + [2] * 10
    # Where one thread is all there is, nothing is tried.
    assert make_calls(awake, clock, 100, FASTER, work=module.MIN_WORK) == [1] * 100


def test_calls_of_different_work_take_turns(clock):
    awake = AwakeThreads(clock)
    rng = np.random.default_rng(0)
    used = []
    for _ in range(500):
        work = rng.uniform(5e5, 8e6)
        seconds = {1: 3e-6 + work * 5e-12, 2: 4e-6 + work * 2.5e-12}
        used += make_calls(awake, clock, 1, seconds, work=work)
    assert set(used[300:]) == {2}


def test_calls_that_are_not_faster_on_several_threads_are_tried_seldom(clock):
    awake = AwakeThreads(clock)
    used = np.array(make_calls(awake, clock, 1_000_000, SLOWER))
    begins = np.flatnonzero(np.diff(used) > 0)
    # The pauses double, up to four seconds.
    pauses = np.diff(begins) * 1e-5
    assert 0.01 < pauses[0] < 0.03 and (np.diff(pauses[:8]) > 0).all()
    assert awake.PAUSE[1] * 0.9 < np.diff(begins)[-1] * 1.1e-5 < awake.PAUSE[1] * 1.2
    assert (used == 2).mean() < 0.01
    # Another kind has its own.
    assert make_calls(awake, clock, 30, FASTER, work=3e6) == [1] * 20 + [2] * 10
    # When the processor is free again, they are as fast as they can be.
    used = np.array(make_calls(awake, clock, 1_000_000, FASTER))
    assert (used[-1000:] == 2).all() and np.count_nonzero(np.diff(used)) == 1


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


def test_calls_at_the_same_time_are_made_by_one_thread(clock):
    awake = AwakeThreads(clock)
    make_calls(awake, clock, 100, FASTER)
    clock.now += 1e-6
    assert awake.begin(None, 1e6) == 2
    assert awake.begin(None, 1e6) == 0  # another Python thread; it does not end what it has not begun
    awake.end()
    assert make_calls(awake, clock, 10, FASTER) == [2] * 10


def test_where_no_thread_can_be_started(clock, monkeypatch):
    class Refused:
        def __init__(self, **_):
            pass

        def start(self):
            raise RuntimeError("can't start new thread")

    awake = AwakeThreads(clock)
    monkeypatch.setattr(module, "Thread", Refused)
    assert make_calls(awake, clock, 1000, FASTER) == [1] * 1000
    assert len(awake._pauses) == 1


def test_an_error_leaves_everything_as_it_was(clock, monkeypatch):
    awake = AwakeThreads(clock)
    make_calls(awake, clock, 20, FASTER)
    thread_count = module.thread_count

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "thread_count", interrupt)
    with pytest.raises(KeyboardInterrupt):
        awake.begin(None, 1e6)
    monkeypatch.setattr(module, "thread_count", thread_count)
    assert make_calls(awake, clock, 30, FASTER) == [1] * 20 + [2] * 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_has_threads_of_its_own():
    before = module.awake_threads()
    assert module.awake_threads() is before
    module._forget_threads()  # as after a fork
    assert module.awake_threads() is not before and module.awake_threads()._threads == []


# --- predictions ---


class Always:
    """Threads that take part in each call."""

    def __init__(self):
        self._awake, self._crew = AwakeThreads(), []
        self.address = self._awake.address
        self.n_threads, self.n_started = 1, 1

    def begin(self, n_jobs, work):
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
            patch.setattr(fastbp.prediction, "MIN_WORK", 0.0)
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
    return Predictor(coefs, intercepts, activations, units[0], is_pair=is_pair), rng


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
        results = {n: {predict(X[:n]).tobytes() for _ in range(300)} for n in (1, 3, 8, 20)}
        assert all(len(result) == 1 for result in results.values())
        if n_jobs == 1:
            expected = results
            assert started == [], "n_jobs=1 starts no thread"
    assert results == expected
    for thread in started:
        thread.join(60)
        assert not thread.is_alive(), "threads end when no call comes"
