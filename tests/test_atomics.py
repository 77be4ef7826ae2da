from threading import Thread

import numpy as np
from numba import njit

from fastbp.codegen.atomics import atomic_add, atomic_load, atomic_store


@njit(nogil=True)
def add_often(cells, times, seen):
    for i in range(times):
        seen[i] = atomic_add(cells, 1, 1)


def test_atomic_add_loses_nothing():
    cells = np.zeros(3, dtype=np.int64)
    seen = np.zeros((4, 50_000), dtype=np.int64)
    add_often(cells, 0, seen[0])
    threads = [Thread(target=add_often, args=(cells, seen.shape[1], row)) for row in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cells.tolist() == [0, seen.size, 0]
    np.testing.assert_array_equal(np.sort(seen, axis=None), np.arange(seen.size))


@njit(nogil=True)
def pass_the_ball(cells, data, side, rounds, patience):
    """Add to data[0] in turns with another thread; return how many turns came.

    Nothing in the loop but the load itself keeps the compiler from loading once and for all.
    """
    for turn in range(rounds):
        looks = 0
        while atomic_load(cells, 1) != 2 * turn + side:
            looks += 1
            if looks > patience:
                return turn
        data[0] += 1
        atomic_store(cells, 1, 2 * turn + side + 1)
    return rounds


def test_atomic_stores_are_seen_in_order_by_other_threads():
    cells = np.zeros(3, dtype=np.int64)
    data = np.zeros(1, dtype=np.int64)
    rounds, patience = 200, 10**9
    pass_the_ball(cells, data, 0, 0, 0)
    other = []
    thread = Thread(target=lambda: other.append(pass_the_ball(cells, data, 1, rounds, patience)))
    thread.start()
    mine = pass_the_ball(cells, data, 0, rounds, patience)
    thread.join()
    assert (mine, other, data[0], cells.tolist()) == (rounds, [rounds], 2 * rounds, [0, 2 * rounds, 0])
