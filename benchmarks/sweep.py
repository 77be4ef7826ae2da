"""GFLOP/s of training for batch sizes 1 to 1024, widths 1 to 1024 and depths 0 to 5, to find sudden drops of speed.

Run: ``python benchmarks/sweep.py`` (about a minute), with ``--plot FILE`` for a figure (needs matplotlib).

A network of width w and depth d has w inputs, d hidden layers of w units with relu, and 10 outputs. It is trained with
Adam in float32 through `fastbp.kernels.session`, without the overhead of the estimator. Each figure is the best of
several epochs of some milliseconds, for one and for two threads. With two, the session may use the second thread.

A point is marked with `!` if a neighbour in its column is more than twice as good: the neighbour has about the same
work (up to 1.5 times) at more than twice the GFLOP/s, or more work in less than half the time. A point is measured
again before it is marked, because another program may have disturbed it. Points where two threads are slower than
one are listed.
"""

import argparse
import sys
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import numpy as np

from fastbp import BackpropClassifier
from fastbp.activations import Relu, Softmax
from fastbp.initializers import initial_parameters
from fastbp.kernels.network import make_network
from fastbp.kernels.plan import training_work
from fastbp.kernels.records import Data
from fastbp.kernels.session import OptimizerState, Session

BATCHES = [
    1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 17, 24, 31, 32, 33, 48, 61, 64, 65, 96, 100, 127, 128, 129, 200, 251, 255,
    256, 257, 384, 509, 512, 513, 768, 1000, 1021, 1024,
]  # fmt: skip
WIDTHS = [
    1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 24, 31, 32, 33, 47, 48, 63, 64, 65, 97, 100, 127, 128, 129, 191, 192, 200,
    256, 257, 384, 509, 512, 513, 768, 1000, 1021, 1024,
]  # fmt: skip
# For each table: the quantity of its rows, the values of the rows, and the points (batch, width, depth) of the columns.
SWEEPS = {
    "batch": (BATCHES, {f"width {w}": lambda b, w=w: (b, w, 1) for w in (8, 33, 100, 256, 512, 1024)}),
    "width": (WIDTHS, {f"batch {b}": lambda w, b=b: (b, w, 1) for b in (1, 8, 32, 100, 256, 1024)}),
    "depth": (
        range(6),
        {f"{w} x {b}": lambda d, w=w, b=b: (b, w, d) for w in (8, 32, 100, 256, 512) for b in (1, 32, 200)},
    ),
}
THREADS = (1, 2)
N_OUTPUTS = 10
# Seconds of one epoch, and of all epochs of one point.
EPOCH, POINT = 0.004, 0.03
TRIES = 3


class Point:
    """Training of one network with one batch size on one number of threads."""

    def __init__(self, batch, width, depth, threads):
        rng = np.random.default_rng(0)
        units = [width] * (depth + 1) + [N_OUTPUTS]
        activations = [Relu()] * depth + [Softmax()]
        rows = max(1024, batch)
        x = rng.random((rows, width), dtype=np.float32)
        y = np.eye(N_OUTPUTS, dtype=np.float32)[np.arange(rows) % N_OUTPUTS]
        start = initial_parameters(units, [6.0] * (depth + 1), np.random.RandomState(0), np.float32)
        network = make_network(units, activations, np.float32, batch)
        # The estimator fills in the defaults of all other settings.
        settings = BackpropClassifier(batch_size=batch, alpha=0.0, n_jobs=threads)._step_settings(rows, units[-1])
        optimizer = OptimizerState.empty(network, settings.solver, 1e-3)
        self.session = Session(network, network.pack(*start), optimizer, settings, rows)
        self.flops = training_work(units) * batch
        self.n_batches = 1
        self.data = lambda: Data(x, y, np.empty(0, np.float32), order[: self.n_batches * batch])
        most = max(1, min(20_000, int(EPOCH / (self.flops / 400e9 + 2e-7))))
        order = rng.integers(0, rows, most * batch)
        self._epoch()
        while self.n_batches < most and (spent := self._epoch()) < EPOCH / 2:
            self.n_batches = min(most, max(2 * self.n_batches, int(self.n_batches * EPOCH / spent / 2)))

    def _epoch(self):
        data, rates = self.data(), np.full(self.n_batches, 1e-3)
        begin = time.perf_counter()
        self.session.run(data, rates)
        return time.perf_counter() - begin

    def seconds(self, duration):
        """Return the seconds of one batch in the fastest of several epochs, at least two, within `duration` seconds."""
        best, end, done = np.inf, time.perf_counter() + duration, 0
        while done < 2 or time.perf_counter() < end:
            best = min(best, self._epoch())
            done += 1
        return best / self.n_batches


def measure(points, found, duration):
    """Measure networks (batch, width, depth) and keep the shortest time per batch of each in `found`.

    The order is random, so that other programs do not disturb one part of a table only. One and two threads are
    measured one after the other.
    """
    for number, network in enumerate(np.random.default_rng().permutation(sorted(points)).tolist()):
        for threads in THREADS:
            key = (*network, threads)
            point = Point(*key)
            work, best = found.get(key, (point.flops, np.inf))
            found[key] = work, min(best, point.seconds(duration))
        if number % 20 == 0:
            print(f"\r{number} of {len(points)} networks ", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)


def columns():
    """Yield the points of each column, in order, for each number of threads."""
    for values, by_name in SWEEPS.values():
        for column in by_name.values():
            for threads in THREADS:
                yield [(*column(value), threads) for value in values]


def cliffs(found):
    """Return the points at which a neighbour is more than twice as good."""
    marked = set()
    for column in columns():
        for upper, lower in pairwise(column):
            for key, other in ((upper, lower), (lower, upper)):
                (work, seconds), (other_work, other_seconds) = found[key], found[other]
                similar = max(work, other_work) <= 1.5 * min(work, other_work)
                faster = other_work / other_seconds > 2 * work / seconds
                if (similar and faster) or (other_work >= work and other_seconds < seconds / 2):
                    marked.add(key)
    return marked


def slower_on_two(found):
    """Return the ratio of the times of two threads and of one, at the points where it is above 1.1."""
    return {
        key: found[key][1] / found[(*key[:3], 1)][1] for key in found if found[key][1] > 1.1 * found[(*key[:3], 1)][1]
    }


def tables(found, marked):
    """Yield the lines of all tables."""
    for axis, (values, by_name) in SWEEPS.items():
        for threads in THREADS:
            what = "columns: width x batch" if axis == "depth" else "depth 1"
            yield ""
            yield f"GFLOP/s over the {axis}, {threads} thread(s), {what}"
            yield f"{axis:>6}" + "".join(f"{name:>11}" for name in by_name)
            for value in values:
                keys = [(*column(value), threads) for column in by_name.values()]
                cells = (f"{_gflops(found, key):10.2f}{'!' if key in marked else ' '}" for key in keys)
                yield f"{value:6}" + "".join(cells)


def _gflops(found, key):
    work, seconds = found[key]
    return work / seconds / 1e9


def plot(found, marked, file):
    """Plot the values of the tables."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(SWEEPS), len(THREADS), figsize=(12, 12), sharey="row", layout="constrained")
    for row, (axis, (values, by_name)) in zip(axes, SWEEPS.items(), strict=True):
        for ax, threads in zip(row, THREADS, strict=True):
            for name, column in by_name.items():
                keys = [(*column(value), threads) for value in values]
                rates = [_gflops(found, key) for key in keys]
                ax.plot(values, rates, ".-", label=name, linewidth=1)
                bad = [(v, r) for v, r, key in zip(values, rates, keys, strict=True) if key in marked]
                ax.plot(*(zip(*bad, strict=True) if bad else ([], [])), "rx", markersize=10)
            ax.set(xlabel=axis, ylabel="GFLOP/s", yscale="log", title=f"{threads} thread(s)")
            if axis != "depth":
                ax.set_xscale("log", base=2)
            ax.legend(fontsize="x-small")
    figure.savefig(file)


def main(arguments=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="FILE", help="also plot the tables")
    options = parser.parse_args(arguments)
    if options.plot and not find_spec("matplotlib"):
        parser.error("--plot needs matplotlib, which is not installed")
    begin = time.perf_counter()
    found = {}
    measure({key[:3] for column in columns() for key in column}, found, POINT)
    marked = cliffs(found)
    for _ in range(TRIES):
        # Longer, so that the thread tuner of a session that chose one thread on a busy machine tries both again.
        measure({key[:3] for key in marked | set(slower_on_two(found))}, found, 5 * POINT)
        marked = cliffs(found)
    for threads in THREADS:
        work, flops = common.register_work("float32", threads)
        peak = flops / min(common.timed(work) for _ in range(20)) / 1e9
        print(f"FMA peak on {threads} core(s): {peak:.1f} GFLOP/s")
    print(*tables(found, marked), "", sep="\n")
    print(f"{len(found)} points in {time.perf_counter() - begin:.0f} s, {len(marked)} marked:")
    for batch, width, depth, threads in sorted(marked):
        print(f"  batch {batch}, width {width}, depth {depth}, {threads} thread(s)")
    slow = slower_on_two(found)
    print(f"{len(slow)} points where two threads take at least 10 % longer than one:")
    for (batch, width, depth, _), ratio in sorted(slow.items()):
        print(f"  batch {batch}, width {width}, depth {depth}: {ratio:.2f} times as long")
    if options.plot:
        plot(found, marked, options.plot)


if __name__ == "__main__":
    main()
