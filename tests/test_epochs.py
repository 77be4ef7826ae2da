"""Epochs in compiled code: what happens between batches is what Python would do."""

from dataclasses import replace

import numpy as np
import pytest

from fastbp.activations import Identity, Tanh
from fastbp.initializers import initial_parameters
from fastbp.kernels.network import make_network
from fastbp.kernels.records import Data
from fastbp.kernels.session import OptimizerState, Session, StepSettings, Watch
from fastbp.kernels.shuffle import twister_of
from fastbp.losses import Loss

N = 40
RATES = 0.01, 0.02, 0.005, 0.01, 0.03, 0.01, 0.02


class Trained:
    """A small network in training."""

    def __init__(self, batch_size, n_threads=1, weighted=False, units=(3, 8, 2), solver="adam"):
        rng = np.random.default_rng(0)
        activations = [Tanh()] * (len(units) - 2) + [Identity()]
        network = make_network(units, activations, np.float64, batch_size)
        start = initial_parameters(units, [6.0] * len(activations), np.random.RandomState(0), np.float64)
        self.params = network.pack(*start)
        self.optimizer = OptimizerState.empty(network, solver, 0.01)
        loss = Loss("squared_error", (0.0,) * units[-1])
        settings = StepSettings(loss, solver, alpha=0.1, batch_size=batch_size, n_jobs=n_threads)
        self.session = Session(network, self.params, self.optimizer, settings, N)
        weight = rng.integers(0, 2, N).astype(float) if weighted else np.empty(0)
        X, Y = rng.normal(size=(N, units[0])), rng.normal(size=(N, units[-1]))
        self.data = Data(X, Y, weight, np.arange(N))
        self.n_batches = -(-N // batch_size)
        self.random_state = np.random.RandomState(7)

    def run(self, rates, **how):
        self.session.run(self.data, np.repeat(rates, self.n_batches), **how)
        return self.session.losses.tolist()

    def state(self):
        parts = self.params, self.optimizer.first, self.optimizer.second, self.data.order
        return [part.tobytes() for part in parts], self.optimizer.steps, self.random_state.random_sample()


@pytest.fixture(autouse=True)
def any_work(monkeypatch):
    monkeypatch.setattr("fastbp.kernels.threads.MIN_WORK_PER_THREAD", 1.0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_many_at_once_are_as_many_one_by_one(batch_size, n_threads, shuffle, weighted):
    together, alone = (Trained(batch_size, n_threads, weighted) for _ in range(2))
    assert together.session.n_threads == (n_threads if batch_size > 1 else 1)
    losses = together.run(RATES, twister=twister_of(together.random_state) if shuffle else None)
    expected = []
    for rate in RATES:
        if shuffle:
            alone.random_state.shuffle(alone.data.order)
        expected += alone.run([rate])
    assert len(losses) == len(RATES) and losses == expected
    assert together.state() == alone.state()


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_the_rule_stops_after_an_epoch(batch_size, n_threads):
    rates = np.full(30, 0.01)
    losses = Trained(batch_size).run(rates)
    for watch in (
        Watch(tol=0.05, patience=2),
        Watch(best=0.0, count=3, tol=0.0, patience=5),
        Watch(tol=10, patience=0),
    ):
        trained, alone = Trained(batch_size, n_threads), Trained(batch_size)
        before = replace(watch)
        found = trained.run(rates, watch=watch)
        assert watch == before  # not changed
        best, count, n = watch.best, watch.count, 0
        for loss in losses:  # scikit-learn's rule
            n += 1
            count = count + 1 if loss > best - watch.tol else 0
            best = min(best, loss)
            if count > watch.patience:
                break
        assert 1 <= n < len(losses) and found == losses[:n]
        alone.run(rates[:n])
        assert trained.state() == alone.state()


def test_the_rule_stops_where_the_loss_is_no_number():
    trained = Trained(10, solver="sgd")
    with np.errstate(all="ignore"):
        losses = trained.run(np.full(30, 1e200), watch=Watch())
    assert len(losses) < 30 and not np.isfinite(losses[-1]) and np.isfinite(losses[:-1]).all()


def test_ctrl_c_leaves_the_epochs_that_are_done(monkeypatch):
    trained, alone = Trained(7), Trained(7)
    calls, call = [], Session._call

    def interrupted(self, data, rates, first, last, *others):
        calls.append((first, last))
        call(self, data, rates, first, min(last, first + 4), *others)
        if len(calls) == 5:
            raise KeyboardInterrupt

    trained.run([0.01])
    alone.run([0.01])
    monkeypatch.setattr(Session, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.run(RATES, twister=twister_of(trained.random_state))
    monkeypatch.undo()
    # Five calls of four batches: three epochs of six, and two batches of the fourth.
    assert trained.optimizer.steps == 6 + 20 and len(trained.session.losses) == 3
    alone.run(RATES[:3], twister=twister_of(alone.random_state))
    assert trained.session.losses.tolist() == alone.session.losses.tolist()
