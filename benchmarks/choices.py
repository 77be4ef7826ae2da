"""Measurements behind the constants that select an algorithm.

Run: ``python benchmarks/choices.py [zeros] [threads] [few] [predictions]`` (all by default).

- zeros: an epoch with dense inputs and one with index lists of the non-zeros, for random inputs of decreasing density
  and for MNIST (FASTBP_DATA); the fraction of remaining products is what `is_mostly_zero` compares with
  `plan.MAX_SPARSE_SHARE`.
- threads: an epoch on one and on two threads, for networks with increasing work per batch, around
  `threads.MIN_WORK_PER_THREAD` for each thread.
- few: an epoch with the gradient of a block stored, and one with the gradient summed where the weights are updated, for
  small batches, around `plan.MAX_FEW`.
- predictions: predictions of a few rows on one thread, and on two that stay awake and share the rows or the columns
  (`plan.SHARING_CYCLES`, `plan.shares_columns`); and after a pause on two threads that sleep (`plan.WAKING_CYCLES`).

The alternatives are timed alternately, and the fastest of several rounds counts.
"""

import sys
import time
from contextlib import ExitStack
from functools import partial
from unittest import mock

import numpy as np

from fastbp import prediction
from fastbp.activations import ACTIVATIONS, Softmax
from fastbp.datasets import load_mnist
from fastbp.initializers import initial_parameters
from fastbp.kernels import network as layout
from fastbp.kernels import session as kernel_session
from fastbp.kernels import threads, tuner
from fastbp.kernels.plan import forward_work, is_few, is_mostly_zero, training_work
from fastbp.kernels.records import Data
from fastbp.kernels.session import OptimizerState, Session, StepSettings
from fastbp.kernels.workers import give_back, take_workers
from fastbp.losses import Loss


def make_network(units, batch_size):
    """Return the layout of a relu network with softmax outputs, and its initial parameters."""
    activations = [*[ACTIVATIONS["relu"]] * (len(units) - 2), Softmax()]
    network = layout.make_network(units, activations, np.float32, batch_size)
    return network, initial_parameters(units, [6.0] * len(activations), np.random.RandomState(0), np.float32)


def session(units, batch_size, n_samples, n_jobs, sparse=False, solver="adam", momentum=0.9):
    """Return a training session."""
    settings = StepSettings(
        loss=Loss("log_loss", (0.0,) * units[-1]), solver=solver, momentum=momentum, alpha=0.0, batch_size=batch_size,
        n_jobs=n_jobs,
    )  # fmt: skip
    network, parameters = make_network(units, batch_size)
    optimizer = OptimizerState.empty(network, solver, 1e-3)
    return Session(network, network.pack(*parameters), optimizer, settings, n_samples, sparse=sparse)


def random_data(units, n):
    """Return n random samples for a network, in their order."""
    random_state = np.random.RandomState(0)
    X = random_state.uniform(size=(n, units[0])).astype(np.float32)
    Y = np.eye(units[-1], dtype=np.float32)[random_state.randint(0, units[-1], n)]
    return Data(X, Y, np.empty(0, np.float32), np.arange(n))


def epoch(session, data):
    """Return the function that trains for one epoch."""
    rates = np.full(-(-data.order.size // session.settings.batch_size), 1e-3)
    return lambda: session.run(data, rates)


def in_turns(functions, rounds=7):
    """Return the shortest time of each function, in seconds."""
    best = [np.inf] * len(functions)
    for round_ in range(rounds):
        for index, function in enumerate(functions):
            begin = time.perf_counter()
            function()
            if round_:  # the first round is for warming up
                best[index] = min(best[index], time.perf_counter() - begin)
    return best


def measure_zeros():
    """Compare a dense first layer with one that has index lists of the non-zero inputs."""
    n = 12_000
    random_state = np.random.RandomState(0)
    Y = np.eye(10, dtype=np.float32)[random_state.randint(0, 10, n)]
    inputs = {}
    for density in (1.0, 0.5, 0.35, 0.25, 0.15, 0.05):
        X = random_state.uniform(0.1, 1, (n, 784)).astype(np.float32)
        inputs[f"random, {density:.2f}"] = X * (random_state.uniform(size=X.shape) < density)
    try:
        X = load_mnist()[0]
        inputs["MNIST"] = (X[random_state.permutation(len(X))[:n]] / 255).astype(np.float32)
    except FileNotFoundError as error:
        print(f"without MNIST: {error}")
    print(f"{'784-128-10, batch 128':>24}{'lists':>8}{'gain on 1 thread':>18}")
    for name, X in inputs.items():
        data = Data(X, Y, np.empty(0, np.float32), random_state.permutation(n))
        sessions = [session([784, 128, 10], 128, n, 1, sparse) for sparse in (False, True)]
        dense, indexed = in_turns([epoch(s, data) for s in sessions])
        print(f"{name:>24}{is_mostly_zero(X)!s:>8}{dense / indexed:>18.2f}")


def measure_threads():
    """Compare one thread with all threads, for increasing work between two barriers."""
    print(f"{'network, batch':>24}{'work':>12}{'threads':>9}{'gain':>7}")
    for units, batch_size in (
        ([8, 16, 3], 16), ([8, 16, 3], 64), ([30, 64, 2], 8), ([30, 64, 2], 16), ([30, 64, 2], 32),
        ([30, 64, 64, 2], 32), ([64, 100, 10], 32), ([64, 100, 10], 200), ([784, 30, 10], 10), ([784, 100, 10], 200),
    ):  # fmt: skip
        n = batch_size * 400
        data = random_data(units, n)
        work = training_work(units) * batch_size
        chosen = threads.thread_count(None, work)
        with mock.patch.object(threads, "MIN_WORK_PER_THREAD", 1.0), mock.patch.object(tuner, "MAX_CALL", 10.0):
            one, every = session(units, batch_size, n, 1), session(units, batch_size, n, None)
            if every.n_threads == 1:
                raise SystemExit("only one thread is available")
            # The thread tuner is switched off: each session keeps its number of threads.
            with mock.patch.object(tuner.ThreadTuner, "choose", lambda self: (max(self.options), 10**9)):
                alone, together = in_turns([epoch(s, data) for s in (one, every)], 15)
        name = f"{'-'.join(map(str, units))}, {batch_size}"
        print(f"{name:>24}{work:>12,.0f}{chosen:>9}{alone / together:>7.2f}")


def measure_few():
    """Compare a stored gradient with one that is summed where the weights are updated, for batches of a few samples."""
    print(f"{'network, batch, optimizer':>44}{'few':>8}{'gain on 1 thread':>18}")
    for units in ([784, 30, 10], [200, 200, 200, 10], [784, 512, 512, 10], [64, 1800, 1000, 10]):
        for n_arrays, (solver, momentum) in enumerate((("sgd", 0.0), ("sgd", 0.9), ("adam", 0.9)), 1):
            for batch_size in (2, 4, 6, 8, 12, 16):
                n = batch_size * 50
                data, both = random_data(units, n), []
                for choice in (False, True):
                    with mock.patch.object(kernel_session, "is_few", lambda *_, choice=choice: choice):
                        both.append(session(units, batch_size, n, 1, solver=solver, momentum=momentum))
                stored, summed = in_turns([epoch(s, data) for s in both])
                name = f"{'-'.join(map(str, units))}, {batch_size}, {solver}{', momentum' if n_arrays == 2 else ''}"
                n_bytes = both[0].params.nbytes
                print(f"{name:>44}{is_few(batch_size, n_bytes, n_arrays)!s:>8}{stored / summed:>18.2f}", flush=True)


class OnTwo:
    """Two threads take part in each short call."""

    def __init__(self):
        workers = take_workers()
        workers.start(2)
        give_back(workers)

    def begin(self, n_jobs, work, min_work, source):
        """Begin a call."""
        return 2, None


def repeat(call, n_jobs, choices=()):
    """Make a hundred calls under some patches."""
    with ExitStack() as stack:
        for choice in choices:
            stack.enter_context(choice)
        for _ in range(100):
            call(n_jobs)


def after_pauses(functions, n=21):
    """Return the median time of each function, in seconds, when threads sleep."""
    times = np.empty((n, len(functions)))
    for round_ in range(n):
        for index, function in enumerate(functions):
            time.sleep(0.03)
            begin = time.perf_counter()
            function()
            times[round_, index] = time.perf_counter() - begin
    return np.median(times, axis=0)


def measure_predictions():
    """Compare predictions of a few rows on one thread and on two, which are awake or asleep."""
    two = OnTwo()
    print(f"{'network, rows':>24}{'work':>12}{'us':>8}{'by rows':>9}{'by columns':>12}{'after a pause':>15}")
    for units in ([64, 100, 10], [784, 128, 10], [784, 512, 512, 10], [1000, 1000, 10]):
        activations = [*[ACTIVATIONS["relu"]] * (len(units) - 2), Softmax()]
        _, (coefs, intercepts) = make_network(units, 200)
        predictor = prediction.Predictor(coefs, intercepts, activations, units[0])
        X = np.random.RandomState(0).uniform(size=(200, units[0])).astype(np.float32)
        for n in (1, 2, 4, 6, 9, 12, 16, 24, 48, 96, 200):
            call = partial(predictor.outputs, X[:n])
            functions = [partial(repeat, call, 1)]
            for by_columns in (False, True):
                choices = (
                    mock.patch.object(prediction, "short_calls", lambda: two),
                    mock.patch.object(predictor, "_min_work_awake", 0.0),
                    mock.patch.object(predictor, "_min_work", np.inf),
                    mock.patch.object(prediction, "shares_columns", lambda *_, choice=by_columns: choice),
                )  # fmt: skip
                functions.append(partial(repeat, call, None, choices))
            alone, rows, columns = in_turns(functions)
            with mock.patch.object(predictor, "_min_work", 1.0):
                one, both = after_pauses([partial(call, 1), partial(call, None)])
            name = f"{'-'.join(map(str, units))}, {n}"
            print(
                f"{name:>24}{forward_work(units) * n:>12,.0f}{alone * 1e4:>8.1f}{alone / rows:>9.2f}"
                f"{alone / columns:>12.2f}{one / both:>15.2f}", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    known = {"zeros": measure_zeros, "threads": measure_threads, "few": measure_few, "predictions": measure_predictions}
    for wanted in sys.argv[1:] or known:
        known[wanted]()
