"""The order of an epoch: draw for draw that of NumPy."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import njit
from sklearn.exceptions import ConvergenceWarning

from fastbp import BackpropClassifier
from fastbp.codegen.memory import pointer
from fastbp.kernels import shuffle as module
from fastbp.kernels.shuffle import N_WORDS, borrowed, shuffle, twister_of


@njit
def run_shuffle(order, words, draws):
    shuffle(pointer(order, 0), order.size, pointer(words, 0), pointer(draws, 0))


def assert_same(n, ours, numpys, times=3):
    for _ in range(times):
        order, expected = np.arange(n), np.arange(n)
        run_shuffle(order, twister_of(ours).words, np.empty(N_WORDS, np.uint32))
        numpys.shuffle(expected)
        np.testing.assert_array_equal(order, expected)
    # The generators continue alike.
    np.testing.assert_array_equal(ours.random_sample(5), numpys.random_sample(5))
    np.testing.assert_array_equal(ours.normal(size=3), numpys.normal(size=3))


@pytest.mark.parametrize("others", [0, 3])
def test_words_are_borrowed(others):
    """They are put back unless another thread has drawn meanwhile: no number is drawn twice."""
    ours, numpys = np.random.RandomState(7), np.random.RandomState(7)
    twister, words = twister_of(ours), np.empty(N_WORDS + 1, np.uint32)
    with borrowed(twister, words):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(twister.lock.acquire, False).result()
            pool.submit(twister.lock.release).result()
        order = np.arange(100)
        run_shuffle(order, words, np.empty(N_WORDS, np.uint32))
        ours.random_sample(others)
    if others:
        numpys.random_sample(others)
    else:
        numpys.shuffle(np.arange(100))
    np.testing.assert_array_equal(ours.random_sample(5), numpys.random_sample(5))


# Around powers of two the mask changes, around the number of words the generator is renewed.
@pytest.mark.parametrize(
    "n", [0, 1, 2, 3, 4, 5, 31, 32, 33, N_WORDS - 1, N_WORDS, N_WORDS + 1, 4096, 4097, 4098, 70_000]
)
def test_is_that_of_numpy(n):
    for seed in (0, 1, 2):
        assert_same(n, np.random.RandomState(seed), np.random.RandomState(seed))


def test_continues_from_any_state():
    for used in (1, 623, 624, 625):
        ours, numpys = np.random.RandomState(5), np.random.RandomState(5)
        for generator in (ours, numpys):
            generator.randint(0, 2**32, size=used, dtype=np.uint32)
            generator.normal()  # of a pair; the other is kept
        assert_same(100, ours, numpys)


def test_left_to_numpy(monkeypatch):
    assert twister_of(np.random.RandomState(np.random.PCG64(3))) is None
    assert twister_of(np.random.RandomState(3)) is not None
    monkeypatch.setattr(module, "mersenne_twister_state", lambda *_: None)
    assert twister_of(np.random.RandomState(3)) is None


@pytest.mark.parametrize("n", [7, 5_000])
def test_training_sees_the_order_of_numpy(n, monkeypatch):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(n, 3)).astype(np.float32), np.arange(n) % 2
    how = {"hidden_layer_sizes": 2, "max_iter": 5, "random_state": 0, "tol": 0.0, "batch_size": 6}
    with pytest.warns(ConvergenceWarning):
        ours = BackpropClassifier(**how).fit(X, y)
    monkeypatch.setattr(module, "mersenne_twister_state", lambda *_: None)
    with pytest.warns(ConvergenceWarning):
        numpys = BackpropClassifier(**how).fit(X, y)
    for a, b in zip(ours.coefs_, numpys.coefs_, strict=True):
        np.testing.assert_array_equal(a, b)
    assert ours.loss_curve_ == numpys.loss_curve_
