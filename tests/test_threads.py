import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from threading import Thread

import numba
import numpy as np
import pytest
from numba import njit

import fastbp
from fastbp.codegen.memory import pointer
from fastbp.codegen.processor import HAS_AFFINITY, current_cpu
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
    drawn = np.zeros((3, 200_000), np.int64)
    draw(team, drawn[0, :0])
    crew = [Thread(target=draw, args=(team, row), daemon=True) for row in drawn]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    np.testing.assert_array_equal(np.sort(drawn, axis=None), np.arange(drawn.size))
    # It leaves the other cells alone.
    assert np.flatnonzero(team).tolist() == [threads._TICKET]


threads_spread = threads._spread


@njit
def run_spread(team, rank, size):
    here = current_cpu()
    threads_spread(pointer(team, 0), rank, size)
    return here, current_cpu()


@pytest.mark.skipif(not HAS_AFFINITY, reason="only Linux tells and lets threads move")
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
    [(None, 6), (1, 1), (2, 2), (7, 7), (100, 8), (-1, 6), (-2, 5), (-6, 1), (-100, 1)],
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


def test_the_number_of_threads_is_limited_for_one_call_only():
    try:
        before = numba.get_num_threads()
    except ValueError:
        pytest.skip("Numba has not the layer that NUMBA_THREADING_LAYER names")
    with threads._limited_threads(1):
        assert numba.get_num_threads() == 1
    assert numba.get_num_threads() == before
    with pytest.raises(KeyError), threads._limited_threads(1):
        raise KeyError
    assert numba.get_num_threads() == before


# --- processes that must not die ---

FIT = """
import os, sys, threading, warnings
import numpy as np
import numba
from fastbp import BackpropClassifier
from fastbp.codegen.memory import pointer
from fastbp.kernels import threads

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
X = rng.normal(size=(400, 50)).astype(np.float32)
y = rng.integers(0, 3, 400)


def fit(n_jobs):
    model = BackpropClassifier(64, max_iter=3, batch_size=100, random_state=0, n_jobs=n_jobs).fit(X, y)
    model.predict_proba(X)
    return b"".join(part.tobytes() for part in [*model.coefs_, *model.intercepts_, model.predict_proba(X)])


alone = fit(1)
"""
MANY_THREADS = """
n_threads = threads.thread_count(4, 1e9)
assert (n_threads > 1) == (numba.threading_layer() != "workqueue"), (n_threads, numba.threading_layer())
results = []
crew = [threading.Thread(target=lambda: results.extend(fit(4) for _ in range(3))) for _ in range(8)]
for thread in crew:
    thread.start()
for thread in crew:
    thread.join()
assert results == [alone] * 24, "many threads"
"""
FORKS = """
def child_agrees(then=lambda: True):
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if fit(4) == alone and then() else 3)
        finally:
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


assert child_agrees(), "before any thread was started"
assert fit(4) == alone
assert child_agrees(then=child_agrees), "child or grandchild, after threads were started"
assert fit(4) == alone, "parent afterwards"
"""


def run_script(script, layer, folder):
    root = str(Path(fastbp.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root, "NUMBA_NUM_THREADS": "4", "NUMBA_THREADING_LAYER": layer}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def has_layer(layer):
    module = {"omp": "omppool", "tbb": "tbbpool", "workqueue": "workqueue"}[layer]
    code = f"import numba.np.ufunc.{module}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100).returncode == 0


@pytest.mark.parametrize("layer", ["omp", "tbb", "workqueue"])
def test_fit_after_forks_and_in_many_threads_at_once(layer, tmp_path):
    if not has_layer(layer):
        pytest.skip(f"Numba has no layer {layer} here")
    run_script(FIT + (FORKS if hasattr(os, "fork") else "") + MANY_THREADS, layer, tmp_path)


def test_a_layer_that_is_not_there_means_one_thread(tmp_path):
    if has_layer("tbb"):
        pytest.skip("no layer is missing here")
    run_script(FIT + "assert threads.thread_count(4, 1e9) == 1 and fit(4) == alone", "tbb", tmp_path)
