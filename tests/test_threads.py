import os
import signal
import subprocess
import sys
from contextlib import suppress
from io import StringIO
from itertools import pairwise
from pathlib import Path
from threading import Thread

import numba
import numpy as np
import pytest
from joblib.externals.loky.backend import context
from numba import njit

import fastbp
from fastbp.codegen.memory import pointer
from fastbp.codegen.processor import IS_LINUX, current_cpu
from fastbp.kernels import threads
from fastbp.kernels.threads import MIN_WORK_PER_THREAD, barrier, join_team, next_ticket, share, thread_count


@njit
def run_share(n, unit, rank, size):
    return share(n, unit, rank, size)


@njit(nogil=True)
def run_join(team, wanted):
    return join_team(pointer(team, 0), wanted)


def test_shares_make_up_the_range():
    for size in range(1, 8):
        for unit in (1, 2, 16):
            for n in [*range(1, 70), 1000, 1001]:
                parts = [run_share(n, unit, rank, size) for rank in range(size)]
                assert parts[0][0] == 0 and parts[-1][1] == n
                assert all(before[1] == after[0] for before, after in pairwise(parts))
                assert all(first % unit == 0 or first == n for first, _ in parts)
                counts = [-(-(last - first) // unit) for first, last in parts]
                assert max(counts) - min(counts) <= 1


# --- teams ---


def test_a_team_begins_without_threads_that_do_not_start():
    team = threads.new_team(2)
    assert run_join(team, 2) == (0, 1)
    # A thread that starts later has nothing to do.
    assert run_join(team, 2) == (-1, 0)
    assert run_join(team, 2) == (-1, 0)


def test_a_team_of_one_is_complete():
    assert run_join(threads.new_team(1), 1) == (0, 1)


@njit(nogil=True)
def march(cells, wanted, rounds, steps, seen):
    """Take steps with the team; `seen` counts those of others that were not as far."""
    cells = pointer(cells, 0)
    team = join_team(cells, wanted)
    if team.rank < 0:
        return
    rank, size = team
    for step in range(rounds):
        steps[rank * 16] = step + 1
        barrier(cells, team)
        for other in range(size):
            if steps[other * 16] != step + 1:
                seen[rank * 16] += 1
        barrier(cells, team)
    seen[rank * 16 + 1] = size


@njit(nogil=True)
def draw(team, drawn):
    for i in range(drawn.size):
        drawn[i] = next_ticket(pointer(team, 0))


def test_each_ticket_is_given_once():
    team = threads.new_team(1)
    before = team.copy()
    drawn = np.zeros((3, 200_000), np.int64)
    draw(team, drawn[0, :0])
    crew = [Thread(target=draw, args=(team, row), daemon=True) for row in drawn]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    np.testing.assert_array_equal(np.sort(drawn, axis=None), np.arange(drawn.size))
    # It leaves the other cells alone.
    assert np.flatnonzero(team != before).tolist() == [threads._TICKET]


threads_spread = threads._spread


@njit
def run_spread(team, rank, size):
    here = current_cpu()
    threads_spread(pointer(team, 0), rank, size)
    return here, current_cpu()


@pytest.mark.skipif(not IS_LINUX, reason="only Linux tells and lets threads move")
def test_a_thread_leaves_the_processors_of_its_team():
    def place(team, rank, cpu):
        team[threads._CPUS + threads._PER_THREAD * rank] = cpu + 1

    def check():
        allowed = os.sched_getaffinity(0)  # of this thread
        moves = 0
        for _ in range(20):
            team = threads.new_team(2)
            here = run_cpu()
            place(team, 0, here)
            before, after = run_spread(team, 1, 2)
            moves += before != after
            assert after in allowed and os.sched_getaffinity(0) == allowed
            # Where the team has all processors, or the thread may use only one, nothing happens.
            team = threads.new_team(1 + max(allowed) + 1)
            for rank, cpu in enumerate(sorted(allowed)):
                place(team, rank, cpu)
            run_spread(team, 1 + max(allowed), 2 + max(allowed))
            assert os.sched_getaffinity(0) == allowed
            os.sched_setaffinity(0, {run_cpu()})
            (only,) = os.sched_getaffinity(0)
            team = threads.new_team(2)
            place(team, 0, only)
            assert run_spread(team, 1, 2) == (only, only) and os.sched_getaffinity(0) == {only}
            os.sched_setaffinity(0, allowed)
        assert moves >= 10 or len(allowed) == 1
        done.append(True)

    done = []
    thread = Thread(target=check, daemon=True)
    thread.start()
    thread.join()
    assert done


def test_threads_stay_where_they_are_told_to(monkeypatch):
    monkeypatch.delenv("OMP_PROC_BIND", raising=False)
    monkeypatch.delenv("FASTBP_STAY", raising=False)
    monkeypatch.setattr(threads, "_count_cores", lambda: 2)
    assert [bool(threads.new_team(n)[threads._SPREAD]) for n in (1, 2, 3)] == [False, True, False]
    monkeypatch.setenv("FASTBP_STAY", "1")
    assert threads.new_team(2)[threads._SPREAD] == 0
    monkeypatch.setenv("FASTBP_STAY", "0")
    assert threads.new_team(2)[threads._SPREAD] != 0
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    assert threads.new_team(2)[threads._SPREAD] == 0


@njit
def run_cpu():
    return current_cpu()


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_a_team_keeps_step(wanted):
    march(threads.new_team(1), 1, 0, *np.zeros((2, 16), np.int64))
    full = 0
    for _ in range(20):
        team = threads.new_team(wanted)
        steps, seen = np.zeros((2, 16 * wanted), np.int64)
        crew = [Thread(target=march, args=(team, wanted, 50, steps, seen), daemon=True) for _ in range(wanted)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        size = seen[1]
        # Each thread of the team took all steps, and never saw another at another step.
        assert seen[1::16].tolist() == [size] * size + [0] * (wanted - size)
        assert steps[::16].tolist() == [50] * size + [0] * (wanted - size)
        assert not seen[::16].any()
        full += size == wanted
    assert full > 0


# --- how many ---


@pytest.fixture
def machine(monkeypatch):
    """A process that may use six cores, where Numba has started eight threads."""
    monkeypatch.setattr(threads, "_count_cores", lambda: 6)
    monkeypatch.setattr(threads.numba.config, "NUMBA_NUM_THREADS", 8)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 8)
    monkeypatch.setattr(threads, "_parallel_is_safe", lambda: True)
    return monkeypatch


LARGE = 1e12


@pytest.mark.parametrize(
    ("n_jobs", "expected"),
    [(None, 6), (1, 1), (2, 2), (7, 6), (100, 6), (-1, 6), (-2, 5), (-6, 1), (-100, 1)],
)
def test_thread_count(machine, n_jobs, expected):
    assert thread_count(n_jobs, LARGE) == expected


@pytest.mark.parametrize("n_jobs", [None, 4, -1])
def test_little_work_gets_few_threads(machine, n_jobs):
    assert thread_count(n_jobs, 0.0) == 1
    assert thread_count(n_jobs, 1.99 * MIN_WORK_PER_THREAD) == 1
    assert thread_count(n_jobs, 3.5 * MIN_WORK_PER_THREAD) == 3


def test_no_more_threads_than_numba_has_or_was_told_to_use(machine):
    machine.setattr(threads.numba.config, "NUMBA_NUM_THREADS", 3)
    assert thread_count(None, LARGE) == 3
    machine.setattr(threads.numba, "get_num_threads", lambda: 2)
    assert thread_count(None, LARGE) == thread_count(5, LARGE) == 2


def test_one_thread_where_parallel_regions_are_not_safe(machine):
    machine.setattr(threads, "_parallel_is_safe", lambda: False)
    assert thread_count(None, LARGE) == thread_count(4, LARGE) == 1


def test_no_threads_are_started_to_find_that_one_is_enough(machine):
    def refuse():
        raise AssertionError("looked for threads")

    machine.setattr(threads, "_parallel_is_safe", refuse)
    assert thread_count(1, LARGE) == thread_count(None, 0.0) == thread_count(-100, LARGE) == 1


def test_the_number_of_threads_is_limited_for_one_call_only(monkeypatch):
    try:
        before = numba.get_num_threads()
    except ValueError:
        pytest.skip("Numba has not the layer that NUMBA_THREADING_LAYER names")
    seen = []
    threads.call_limited(1, lambda: seen.append(numba.get_num_threads()))
    assert seen == [1]
    assert numba.get_num_threads() == before
    with pytest.raises(KeyError):
        threads.call_limited(1, dict().pop, "no such key")
    assert numba.get_num_threads() == before
    # Ctrl-C just before the number is restored.
    set_threads, calls = numba.set_num_threads, []

    def interrupted(n):
        calls.append(n)
        if len(calls) == 2:
            raise KeyboardInterrupt
        set_threads(n)

    monkeypatch.setattr(numba, "set_num_threads", interrupted)
    with pytest.raises(KeyboardInterrupt):
        threads.call_limited(1, list)
    assert numba.get_num_threads() == before


@pytest.mark.parametrize(
    ("layer", "forked", "started_before", "safe"),
    [
        ("omp", False, False, True), ("omp", True, False, False), ("omp", True, True, False),
        ("tbb", False, False, True), ("tbb", True, False, True), ("tbb", True, True, False),
        ("workqueue", False, False, False),
    ],
)  # fmt: skip
def test_where_parallel_regions_are_safe(layer, forked, started_before, safe, monkeypatch):
    monkeypatch.setattr(threads, "_is_known_as_safe", False)
    monkeypatch.setattr(threads, "_may_be_forked", forked)
    monkeypatch.setattr(threads, "_was_started_before", started_before)
    monkeypatch.setattr(threads, "numba_threads_are_started", lambda: started_before)
    monkeypatch.setattr(threads, "start_numba_threads", lambda: None)
    monkeypatch.setattr(threads.numba.config, "THREADING_LAYER", layer)
    monkeypatch.setattr(threads.numba, "threading_layer", lambda: layer)
    assert threads._parallel_is_safe() == safe


def test_a_layer_that_is_not_there_means_one_thread(monkeypatch):
    def launch():
        raise ValueError("No threading layer could be loaded.")

    monkeypatch.setattr(threads, "_is_known_as_safe", False)
    monkeypatch.setattr(threads, "start_numba_threads", launch)
    monkeypatch.setattr(threads, "_count_cores", lambda: 4)
    assert thread_count(4, LARGE) == 1


@pytest.mark.skipif(not IS_LINUX, reason="only Linux limits processes so")
@pytest.mark.parametrize(("quota", "expected"), [("50000 100000", 1), ("150000 100000", 2), ("max 100000", 64)])
def test_a_quota_of_the_control_group_counts(quota, expected, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    monkeypatch.setattr(context, "open", lambda path: StringIO(quota), raising=False)
    monkeypatch.setattr(context.os.path, "exists", lambda path: path == "/sys/fs/cgroup/cpu.max")
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    threads._count_cores_within.cache_clear()
    try:
        assert threads.wanted_threads(None) == threads.wanted_threads(-1) == expected
    finally:
        threads._count_cores_within.cache_clear()


# --- processes that must not die, and their results ---

SETUP = """
import multiprocessing, os, sys, threading, warnings
import numba
import numpy as np
from fastbp import BackpropClassifier
from fastbp.kernels import threads

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
DATA = [(rng.normal(size=(400, n)).astype(np.float32), rng.integers(0, 3, 400)) for n in (50, 7, 120, 33)]


def fit(n_jobs, k=0):
    X, y = DATA[k]
    model = BackpropClassifier((64, 10 * k + 5), max_iter=3, batch_size=100 + k, random_state=0, n_jobs=n_jobs)
    model.fit(X, y)
    outputs = [model.predict_proba(rows) for rows in (X[:1], X[:9], X, np.tile(X, (9, 1)))]
    return b"".join(part.tobytes() for part in [*model.coefs_, *model.intercepts_, *outputs])


alone = [fit(1, k) for k in range(4)]


def in_threads(function, arguments):
    results = {}
    crew = [threading.Thread(target=lambda k=k: results.update({k: function(k)})) for k in arguments]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    return [results.get(k) for k in arguments]
"""
FORKS = """
def child_agrees(then=lambda: True):
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if fit(4) == alone[0] and then() else 3)
        finally:
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


assert child_agrees(), "before any thread was started"
assert fit(4) == alone[0]
assert child_agrees(then=child_agrees), "child or grandchild, after threads were started"
assert fit(4) == alone[0], "parent afterwards"
"""
# A server that has loaded all before it forks its workers, which predict and train in threads; also from a thread.
SERVER = """
def work():
    sys.exit(in_threads(lambda k: fit(4, k), range(4)) != alone)


def serve(_=None):
    workers = [multiprocessing.get_context("fork").Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [worker.exitcode for worker in workers]


assert serve() == [0, 0], "workers"
assert in_threads(serve, [0]) == [[0, 0]], "workers that a thread has forked"

# All share the generator of NumPy.
served = threading.Event()
model = BackpropClassifier((64,), max_iter=10**9, tol=0.0, n_iter_no_change=np.inf, max_time=100)
trainer = threading.Thread(target=lambda: model._fit(*DATA[0], None, stop=served))
trainer.start()
found = [child_agrees(lambda: BackpropClassifier((5,), max_iter=2).fit(*DATA[1]) is not None) for _ in range(3)]
served.set()
trainer.join()
assert found == [True] * 3, "forked while another thread trains"
"""
MANY_THREADS = """
assert threads.thread_count(4, 1e9) == EXPECTED, (threads.thread_count(4, 1e9), numba.threading_layer())
found = in_threads(lambda i: [fit(4, (i + k) % 4) for k in range(3)], range(8))
assert found == [[alone[(i + k) % 4] for k in range(3)] for i in range(8)], "many threads"
"""
NESTED = """
from joblib import Parallel, delayed


@numba.njit(parallel=True, nogil=True)
def count(n):
    total = 0
    for _ in numba.prange(n):
        total += 1
    return total


def count_on(done):
    while not done.is_set():
        assert count(1000) == 1000


def pair(k):
    return Parallel(2, prefer="threads")(delayed(fit)(4, j) for j in (k, 3 - k))


done = threading.Event()
counter = threading.Thread(target=count_on, args=[done], daemon=True)
counter.start()
found = [fit(4, k) for k in range(4)], Parallel(2, prefer="threads")(delayed(pair)(k) for k in range(4))
done.set()
counter.join()
assert found == (alone, [[alone[k], alone[3 - k]] for k in range(4)]), "nested, beside a parallel loop of the user"
"""
SEARCHES = """
from joblib import parallel_backend
from sklearn.model_selection import GridSearchCV


def search(backend, n_jobs):
    clf = BackpropClassifier((64,), batch_size=100, max_iter=3, random_state=0)
    grid = GridSearchCV(clf, {"alpha": [1e-4, 1.0]}, cv=2, scoring="neg_log_loss", error_score="raise")
    with parallel_backend(backend, n_jobs=n_jobs):
        grid.set_params(n_jobs=n_jobs).fit(*DATA[0])
    scores = [grid.cv_results_[f"split{i}_test_score"].tolist() for i in range(2)]
    return scores, grid.best_estimator_.coefs_[0].tolist()


serial = search("sequential", 1)
for backend in ("threading", "multiprocessing", "loky"):
    assert search(backend, 2) == serial, backend
"""
# With one core before the import, and later.
ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
"""
CONFINED = """
cores = os.sched_getaffinity(0)
if len(cores) > 1:
    assert threads.thread_count(None, 1e9) > 1
    os.sched_setaffinity(0, {min(cores)})
    assert threads.thread_count(None, 1e9) == threads.thread_count(4, 1e9) == 1
    assert [fit(None), fit(4)] == [alone[0]] * 2, "on one core"
    os.sched_setaffinity(0, cores)
    assert threads.thread_count(None, 1e9) > 1 and fit(None) == alone[0], "on all cores again"
"""
NO_OPENMP = """
import sys
sys.modules["numba.np.ufunc.omppool"] = sys.modules["numba.np.ufunc.tbbpool"] = None
"""
if not hasattr(os, "fork"):
    FORKS = SERVER = ""


def four_cores(expected):
    """Have as many threads as if there were four cores, but for those that are not safe."""
    return f"\nthreads._count_cores, EXPECTED = lambda: 4, {expected}\n"


def run_script(script, folder, layer="omp", n_threads=4):
    """Run a program in a process that must end, and well; none that it has started is left."""
    root = str(Path(fastbp.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root, "NUMBA_NUM_THREADS": str(n_threads), "NUMBA_THREADING_LAYER": layer}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=env, cwd=folder, start_new_session=True, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        _, errors = process.communicate(timeout=200)
    finally:
        with suppress(ProcessLookupError, AttributeError):  # Windows has no such groups
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    assert process.returncode == 0, errors


def has_layer(layer):
    module = {"omp": "omppool", "tbb": "tbbpool", "workqueue": "workqueue"}[layer]
    code = f"import numba.np.ufunc.{module}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100).returncode == 0


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layer", ["omp", "tbb", "workqueue"])
def test_forks_and_many_threads_at_once(layer, rounds, tmp_path):
    if not has_layer(layer):
        pytest.skip(f"Numba has no layer {layer} here")
    confined = CONFINED if layer != "workqueue" and IS_LINUX else ""
    searches = SEARCHES if layer == "omp" or rounds > 1 else ""
    again = four_cores(1 if layer == "workqueue" else 4) + (MANY_THREADS + NESTED + SERVER + searches) * rounds
    run_script(SETUP + FORKS + confined + again, tmp_path, layer)


@pytest.mark.skipif(not IS_LINUX, reason="only Linux tells processes which cores to use")
def test_more_threads_than_cores(tmp_path):
    one_thread = "assert threads.thread_count(None, 1e9) == threads.thread_count(4, 1e9) == 1"
    run_script(ONE_CORE + SETUP + one_thread + four_cores(4) + MANY_THREADS, tmp_path)


def test_where_numba_has_one_thread(tmp_path):
    run_script(SETUP + FORKS + four_cores(1) + MANY_THREADS, tmp_path, n_threads=1)


def test_without_openmp_there_is_one_thread(tmp_path):
    one_thread = "assert threads.thread_count(4, 1e9) == EXPECTED and fit(4) == alone[0]"
    run_script(NO_OPENMP + SETUP + four_cores(1) + one_thread, tmp_path, "default")
