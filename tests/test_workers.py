"""The threads of predictions: what they do, when they sleep and end, and that predictions stay the same."""

import _thread
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise, product
from unittest import mock

import numpy as np
import pytest
from numba import njit, types
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

import fastbp.prediction
from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.activations import Logistic, Relu, Softmax, Tanh
from fastbp.codegen.atomics import atomic_add
from fastbp.codegen.jit import called_by_address, store_arguments
from fastbp.codegen.memory import pointer
from fastbp.codegen.processor import CAN_SLEEP, nanoseconds
from fastbp.codegen.tiles import MR
from fastbp.kernels import short_calls
from fastbp.kernels import workers as module
from fastbp.kernels.plan import L2_BYTES, MAX_PREDICTION_ROWS, PANEL_BYTES, is_far, shares_columns, sharing_threads
from fastbp.kernels.threads import (
    FEW_SPINS,
    JOIN_SPINS,
    addresses_for,
    join_team,
    new_team,
    python_thread_count,
    renew_team,
)
from fastbp.kernels.workers import LongCalls, Workers, call_on_workers
from fastbp.prediction import ArraysMovedError, Predictor

# Nanoseconds that threads look for a call here, where tests take their time between two of them.
LONG = 20_000_000


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1e-3)


@pytest.fixture
def long_awake(monkeypatch):
    monkeypatch.setattr(module, "_IDLE", LONG)


# --- calls ---


@called_by_address
def count_ranks(cells, wanted, counts):
    team = join_team(cells, wanted)
    if team.rank >= 0:
        atomic_add(counts, 16 * team.rank, 1)


@njit(nogil=True)
def call_often(workers, addresses, team, wanted, counts, arrivals, n, n_threads=2):
    cells = pointer(team, 0)
    for _ in range(n):
        renew_team(cells, wanted)
        place = store_arguments((cells, wanted, pointer(counts, 0)))
        call_on_workers(pointer(workers, 0), addresses.call, addresses.function, place, n_threads)
        arrivals[0] += workers[module._DONE]


def addresses_of_count():
    place = types.CPointer(types.int64)
    return addresses_for(count_ranks, (place, types.int64, place))


@njit
def run_clock():
    return nanoseconds()


@pytest.mark.parametrize("n_others", [0, 1, 3])
def test_each_thread_takes_part_in_a_call_once(n_others, long_awake):
    workers, wanted, n = Workers(), 2, 2_000
    counts, arrivals = np.zeros(16 * 8, np.int64), np.zeros(1, np.int64)
    team, calls = new_team(wanted, FEW_SPINS), 0
    workers.start(1 + n_others)
    for _ in range(500):
        calls += n
        call_often(workers.cells, addresses_of_count(), team, wanted, counts, arrivals, n, 1 + n_others)
        if n_others == 0 or counts[16] > n:
            break
    # The thread that calls has begun each team; never are there more than are wanted.
    assert counts[0] == calls and counts[32:].sum() == 0
    assert counts[16] == 0 if n_others == 0 else n < counts[16] <= calls
    assert counts[16] <= arrivals[0] <= n_others * calls


def asleep(cells, n):
    return cells[module._SLEEP : module._SLEEP + n]


@pytest.mark.skipif(not CAN_SLEEP, reason="threads sleep on Linux only")
@pytest.mark.parametrize("n_others", [1, 3])
def test_threads_sleep_until_a_call_wakes_them(n_others):
    workers, wanted = Workers(), 1 + n_others
    assert not workers.start(wanted) and workers.n_threads == wanted
    counts, arrivals = np.zeros(16 * 8, np.int64), np.zeros(1, np.int64)
    n_rounds, together = 20, 0
    for _ in range(n_rounds):
        wait_until(lambda: asleep(workers.cells, n_others).all())
        assert not workers.start(wanted), "none is awake"
        before = counts[16 * n_others]
        team = new_team(wanted, 100 * JOIN_SPINS)
        call_often(workers.cells, addresses_of_count(), team, wanted, counts, arrivals, 1, wanted)
        together += counts[16 * n_others] - before
    assert counts[0] == n_rounds and together >= n_rounds // 2, "the call waits for those that were woken"
    assert workers.n_threads == wanted
    # They had to leave the processor of the call, and now may use all that it may use.
    wait_until(lambda: asleep(workers.cells, n_others).all())
    allowed = os.sched_getaffinity(0)
    assert all(os.sched_getaffinity(number) == allowed for number in asleep(workers.cells, n_others).tolist())


@pytest.mark.skipif(not CAN_SLEEP or len(os.sched_getaffinity(0)) == 1, reason="needs Linux, and two processors")
def test_threads_that_are_woken_leave_the_processor_of_the_call():
    """One sleeps here that does not know of it."""
    workers, counts, ends = Workers(), np.zeros(16 * 8, np.int64), threading.Event()
    sleepers = [threading.Thread(target=ends.wait) for _ in range(2)]
    try:
        for place, sleeper in enumerate(sleepers):
            sleeper.start()
            workers.cells[module._SLEEP + place] = sleeper.native_id
        call_often(workers.cells, addresses_of_count(), new_team(2, FEW_SPINS), 2, counts, np.zeros(1, np.int64), 1)
        allowed = os.sched_getaffinity(0)
        moved, other = (os.sched_getaffinity(sleeper.native_id) for sleeper in sleepers)
        assert moved < allowed and len(moved) == len(allowed) - 1
        assert other == allowed, "the call wants two threads"
        assert asleep(workers.cells, 2).tolist() == [0, sleepers[1].native_id]
    finally:
        ends.set()


@pytest.mark.skipif(not CAN_SLEEP, reason="threads sleep on Linux only")
def test_threads_that_calls_do_not_want_go_to_sleep():
    workers, wanted = Workers(), 2
    counts, arrivals = np.zeros(16 * 8, np.int64), np.zeros(1, np.int64)
    team = new_team(wanted, FEW_SPINS)
    workers.start(4)
    deadline = time.monotonic() + 60
    while not asleep(workers.cells, 3)[1:].all():
        assert time.monotonic() < deadline
        call_often(workers.cells, addresses_of_count(), team, wanted, counts, arrivals, 1000)
    assert counts[32:].sum() == 0 and arrivals[0] <= counts[0]


@pytest.mark.skipif(not CAN_SLEEP, reason="threads sleep on Linux only")
@pytest.mark.parametrize("is_awake", [False, True])
def test_threads_end_with_their_workers(is_awake, monkeypatch):
    if is_awake:
        monkeypatch.setattr(module, "_IDLE", 10**12)
    workers = Workers()
    workers.start(3)
    cells = workers.cells
    if is_awake:
        time.sleep(0.01)
    else:
        wait_until(lambda: asleep(cells, 2).all())
    del workers
    wait_until(lambda: cells[module._ENDED] == 2)


def test_threads_that_cannot_sleep_end_when_no_call_comes(monkeypatch):
    monkeypatch.setattr(module, "CAN_SLEEP", False)
    workers = Workers()
    for n in range(1, 4):
        assert not workers.start(3), "the others have ended"
        wait_until(lambda n=n: workers.cells[module._ENDED] == 2 * n)
        assert workers.n_threads == 1


def test_workers_that_are_not_used_end(monkeypatch):
    monkeypatch.setattr(module, "_free", [])
    monkeypatch.setattr(module, "_IDLE", 10**6)
    first, second = module.take_workers(), module.take_workers()
    for workers in (first, second):
        workers.start(2)
        module.give_back(workers)
    cells = first.cells
    del first, second, workers
    module.give_back(module.take_workers())
    assert len(module._free) == 2
    monkeypatch.setattr(module, "_MAX_UNUSED", 0.0)
    for _ in range(3):
        module.give_back(module.take_workers())
    assert len(module._free) == 1
    wait_until(lambda: cells[module._ENDED] == 1)


def refuse(*_):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("start", [refuse, lambda function, args: function(*args)], ids=["refused", "coroutine"])
def test_predictions_where_no_thread_can_be_started(start, monkeypatch):
    """Or where it would be none, as under gevent."""
    predictor, rng = make_predictor([70, 150, 3], [Tanh(), Softmax()], np.float32)
    predictor._min_work = 1.0
    X = rng.normal(size=(3000, 70)).astype(np.float32)
    X[rng.random(X.shape) < 0.95] = 0
    monkeypatch.setattr(fastbp.prediction.threads, "python_thread_count", lambda *_: 2)
    monkeypatch.setattr(module._thread, "start_new_thread", start)
    monkeypatch.setattr(module, "_free", [])
    for n in (100, 3000):  # few rows, and many with zeros
        assert predictor.outputs(X[:n], 2)[0].tobytes() == predictor.outputs(X[:n], 1)[0].tobytes()
    assert module._free and not module._free[0].cells[module._ENDED]


def test_an_interrupted_start_does_not_come_back(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    predictor, rng = make_predictor([70, 150, 3], [Tanh(), Softmax()], np.float32)
    predictor._min_work = 1.0
    X = rng.normal(size=(100, 70)).astype(np.float32)
    monkeypatch.setattr(fastbp.prediction.threads, "python_thread_count", lambda *_: 2)
    monkeypatch.setattr(module, "_free", [])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module._thread, "start_new_thread", interrupt)
        predictor.outputs(X, 2)
    assert module._free == []
    assert predictor.outputs(X, 2)[0].tobytes() == predictor.outputs(X, 1)[0].tobytes()


def test_long_calls_pause_where_threads_lose_their_processors():
    now = 1.0
    calls, workers = LongCalls(lambda: now), Workers()

    def call(took, waited):
        workers.cells[[module._TOOK, module._WAITED]] = round(1e9 * took), round(1e9 * waited)
        calls.note(workers)

    for took, waited in ((1e-3, 9e-4), (1e-2, 5e-3)):
        call(took, waited)
        assert calls.are_shared()
    pauses = []
    for _ in range(12):
        call(1e-3, 4e-3)
        begin = now
        while not calls.are_shared():
            now += 1e-4
        pauses.append(now - begin)
    assert pauses[0] == pytest.approx(calls.PAUSE[0], rel=0.1) and pauses[-1] == pytest.approx(calls.PAUSE[1], rel=0.1)
    for _ in range(100):
        call(1e-3, 0)
    call(1e-3, 4e-3)
    now += 1.1 * calls.PAUSE[0]
    assert calls.are_shared()


@pytest.mark.skipif(sys.platform != "linux", reason="nanoseconds are those of Linux")
def test_the_clock():
    before, now, after = time.monotonic_ns(), run_clock(), time.monotonic_ns()
    assert before <= now <= after


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_predicts_on_one_thread():
    code = """if True:
        import os
        from fastbp.kernels import short_calls, workers
        from fastbp.kernels.threads import numba_threads_are_started, python_thread_count
        before = short_calls.short_calls()
        workers.give_back(workers.take_workers())
        assert workers._free
        python_thread_count(None, 1e9, 1.0)
        assert not numba_threads_are_started()
        before.begin(None, 1e6, 1.0, "f")
        child = os.fork()
        if child == 0:
            after = short_calls.short_calls()
            assert after.begin(None, 1e6, 1.0, "f") == (1, None)
            assert after._free == [after._streak]
            is_new = after is not before and not workers._free
            os._exit(0 if is_new and python_thread_count(None, 1e9, 1.0) == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_process_ends_while_threads_sleep_or_look_for_calls():
    code = """if True:
        import sys, time
        import numpy as np
        from fastbp import BackpropClassifier
        from fastbp.kernels import workers
        from fastbp.kernels.threads import python_thread_count
        rng = np.random.default_rng(0)
        X = rng.normal(size=(9000, 200)).astype(np.float32)
        model = BackpropClassifier(hidden_layer_sizes=200, max_iter=1).fit(X[:200], rng.integers(0, 3, 200))
        model.predict(X)
        time.sleep(float(sys.argv[1]))
        assert python_thread_count(None, 1e9, 1.0) == 1 or workers._free[0].n_threads > 1
        print("done")
    """
    for seconds in ("0", "0.0005", "0.05"):
        command = [sys.executable, "-W", "ignore", "-c", code, seconds]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and done.stdout == "done\n", done.stderr


# --- predictions ---


class Always:
    """Short calls on as many threads as `n_threads` says."""

    def begin(self, *_):
        return self.n_threads, None


@pytest.fixture
def on_workers(monkeypatch, long_awake):
    """Call a function on `n_threads` threads, of which only `n_started` are there."""
    always, crews = Always(), {n: Workers() for n in range(1, 5)}

    def call(n_threads, n_started, function, *args):
        always.n_threads = n_threads
        crews[n_started].start(n_started)
        with monkeypatch.context() as patch:
            patch.setattr(fastbp.prediction, "short_calls", lambda: always)
            patch.setattr(module, "_free", [crews[n_started]])
            return function(*args)

    call.crews = crews
    return call


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
def test_predictions_have_the_same_bits(units, activations, dtype, on_workers):
    predictor, rng = make_predictor(units, activations, dtype, is_pair=units[-1] == 1)
    X = rng.normal(size=(40, units[0])).astype(dtype)
    X[rng.random(X.shape) < 0.6] = 0
    for (n_threads, n_started), n in product(THREADS, [*range(1, 26), 40]):
        expected = predictor.outputs(X[:n], 1)[0].tobytes()
        csr = sparse.csr_matrix(X[:n])
        expected_csr = predictor.outputs(csr, 1)[0].tobytes()
        out, finite = on_workers(n_threads, n_started, predictor.outputs, X[:n], None)
        assert finite and out.tobytes() == expected, (n, n_threads)
        out, finite = on_workers(n_threads, n_started, predictor.outputs, csr, None)
        assert finite and out.tobytes() == expected_csr, (n, n_threads)


@pytest.mark.parametrize("share", [0.5, 1.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predictions_have_the_same_bits_where_weights_come_from_memory(dtype, share, on_workers):
    """Layers that are smaller than the cache, together larger, and layers that are each larger."""
    n = int((share * L2_BYTES / np.dtype(dtype).itemsize) ** 0.5)
    units = [n, n, n + 7, 3]
    assert is_far(units, np.dtype(dtype).itemsize)
    predictor, rng = make_predictor(units, [Relu(), Tanh(), Softmax()], dtype)
    X = rng.normal(size=(14, n)).astype(dtype)
    for n_rows in range(1, 15):
        expected = predictor.outputs(X[:n_rows], 1)[0].tobytes()
        for n_threads, n_started in ((2, 2), (3, 3), (3, 2)):
            out, finite = on_workers(n_threads, n_started, predictor.outputs, X[:n_rows], None)
            assert finite and out.tobytes() == expected, (n_rows, n_threads)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predictions_of_many_rows_have_the_same_bits(dtype, monkeypatch):
    """On threads that are started, awake or asleep; with zeros, too."""
    predictor, rng = make_predictor([70, 150, 33, 3], [Tanh(), Relu(), Softmax()], dtype)
    predictor._min_work = 1.0
    monkeypatch.setattr(fastbp.prediction.threads, "python_thread_count", lambda n_jobs, *_: n_jobs)
    monkeypatch.setattr(fastbp.prediction.threads, "MIN_WORK_AFTER_PAUSE", 1.0)
    monkeypatch.setattr(module, "_free", [])
    X = rng.normal(size=(3000, 70)).astype(dtype)
    zeros = np.where(rng.random(X.shape) < 0.95, 0, X)
    for n in (12, 30, 97, 500, 3000):
        for inputs in (X[:n], zeros[:n], sparse.csr_matrix(zeros[:n])):
            expected = predictor.outputs(inputs, 1)[0].tobytes()
            for n_jobs in (2, 3, 5):
                assert all(predictor.outputs(inputs, n_jobs)[0].tobytes() == expected for _ in range(5))
            time.sleep(2e-3)
            assert predictor.outputs(inputs, 2)[0].tobytes() == expected
    bad = X.copy()
    bad[2990, 3] = np.inf
    assert not predictor.outputs(bad, 2)[1] and predictor.outputs(X, 2)[1]
    (workers,) = module._free
    assert workers.n_threads == 5


@pytest.mark.parametrize("n, wanted", [(1, 2), (1, 4), (2, 4), (40, 3)])
def test_all_threads_take_part(n, wanted, on_workers):
    """Also where there are fewer rows than threads."""
    predictor, rng = make_predictor([70, 512, 512, 3], [Tanh(), Relu(), Softmax()], np.float32)
    X = rng.normal(size=(n, 70)).astype(np.float32)

    def all_took_part():
        on_workers(wanted, wanted, predictor.outputs, X, None)
        return on_workers.crews[wanted].cells[module._DONE] == wanted - 1

    wait_until(all_took_part)


def test_more_rows_than_a_workspace_has_are_shared_by_rows(on_workers):
    """Also where there are so many threads that columns would be shared."""
    predictor, rng = make_predictor([8, 200, 200], [Relu(), Softmax()], np.float32)
    predictor._sharing_threads = lambda n_threads: n_threads
    X = rng.normal(size=(MAX_PREDICTION_ROWS + 40, 8)).astype(np.float32)
    expected = predictor.outputs(X, 1)[0]
    for n in range(MAX_PREDICTION_ROWS - 1, len(X), 13):
        assert shares_columns(n, 60, 60, predictor._n_bytes)
        assert on_workers(60, 2, predictor.outputs, X[:n], None)[0].tobytes() == expected[:n].tobytes()


def test_columns_are_shared_where_they_are_about_equal():
    panel = PANEL_BYTES // 4
    units = [10 * panel, 8 * panel, 8 * panel, 3]
    assert [sharing_threads(units, 4, n) for n in (1, 2, 4, 6, 7, 8)] == [1, 2, 4, 5, 5, 8]
    assert sharing_threads([784, 10], 4, 2) == 1 and sharing_threads([20, 4 * panel, 1], 4, 64) == 4


def test_columns_are_shared_where_rows_would_leave_tiles_half_empty():
    large = 4 * L2_BYTES
    assert [n for n in range(1, 40) if shares_columns(n, 2, 2, large)] == [
        *range(1, 2 * MR),
        *range(2 * MR + 1, 3 * MR + 1),
    ]
    assert [n for n in range(1, 40) if shares_columns(n, 2, 2, 1000)] == [*range(1, 2 * MR)]
    assert shares_columns(4 * MR + 1, 4, 4, large) and not shares_columns(8 * MR, 4, 4, large)
    assert not shares_columns(1, 6, 1, large)
    # Where fewer threads share the columns than could share the rows.
    assert [n for n in range(1, 60) if shares_columns(n, 6, 2, large)] == [*range(1, MR + 1)]
    assert shares_columns(3 * MR, 6, 5, 1000) and not shares_columns(4 * MR, 6, 5, 1000)


@pytest.mark.parametrize("n", [1, 2, MR])
def test_fewer_threads_than_there_are_share_columns(n, on_workers):
    predictor, rng = make_predictor([70, 8 * PANEL_BYTES // 4, 3], [Tanh(), Softmax()], np.float32)
    X = rng.normal(size=(n, 70)).astype(np.float32)
    expected = predictor.outputs(X, 1)[0].tobytes()
    predictor._sharing[4] = 3
    with mock.patch.object(predictor, "_take_workspace", wraps=predictor._take_workspace) as take:
        for _ in range(20):
            assert on_workers(4, 4, predictor.outputs, X, None)[0].tobytes() == expected
    assert {call.args[2] for call in take.call_args_list} == {3}


@pytest.mark.parametrize("n", [1, 4, 30])
def test_numbers_that_are_not_finite_are_found(n, on_workers):
    predictor, rng = make_predictor([70, 256, 3], [Tanh(), Softmax()], np.float32)
    for (n_threads, n_started), row in product(THREADS, range(n)):
        X = rng.normal(size=(n, 70)).astype(np.float32)
        X[row, rng.integers(70)] = rng.choice([np.nan, np.inf])
        assert not on_workers(n_threads, n_started, predictor.outputs, X, None)[1]
        X[row] = 1
        assert on_workers(n_threads, n_started, predictor.outputs, X, None)[1]


@pytest.mark.parametrize("n", [1, 4, 30])
def test_weights_that_were_moved_are_found(n, on_workers):
    for n_threads, n_started in THREADS:
        predictor, rng = make_predictor([70, 256, 3], [Tanh(), Softmax()], np.float32)
        X = rng.normal(size=(n, 70)).astype(np.float32)
        on_workers(n_threads, n_started, predictor.outputs, X, None)
        predictor._arrays[0].resize((71, 256), refcheck=False)
        with pytest.raises((ArraysMovedError, ValueError)):
            on_workers(n_threads, n_started, predictor.outputs, X, None)


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

    def note(*args):
        started.append(start(*args))
        return started[-1]

    start = _thread.start_new_thread
    monkeypatch.setattr(module._thread, "start_new_thread", note)
    monkeypatch.setattr(module, "_free", [])
    short_calls._forget_calls()
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
