"""GFLOP/s of training and of prediction over sizes, to find sudden drops of speed, and where another library is faster.

Run: ``python benchmarks/sweep.py`` (about 8 minutes), or ``--dense`` for many more sizes (about an hour). ``--tasks``,
``--dtypes`` and ``--threads`` select a part, ``--peers`` the other libraries; ``--plot FILE`` adds a figure (needs
matplotlib).

A network of width w and depth d has w inputs, d hidden layers of w units with relu, and 10 outputs. It is trained with
Adam through `fastbp.kernels.session`, or predicts through `fastbp.prediction`, both without the overhead of the
estimator. With two threads, fastbp may use the second one. The other libraries do the same work: plain NumPy
(`fastbp.plain`) and, if installed, PyTorch and, for predictions in float32, ONNX Runtime. Each figure is the best of
several runs of some milliseconds.

A point is marked with `!` if a neighbour in its column is more than twice as good: the neighbour has less or about the
same work (up to 1.5 times) at more than twice the GFLOP/s, or more work in less than half the time. It is marked with
`<` if another library takes less time. A point is measured again before it is marked, because another program may have
disturbed it. All marked points are listed, and those where two threads are slower than one.
"""

import argparse
import sys
import time
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import numpy as np
from bench_inference import onnx_model

from fastbp import BackpropClassifier
from fastbp.activations import Relu, Softmax
from fastbp.initializers import initial_parameters
from fastbp.kernels.network import make_network
from fastbp.kernels.plan import forward_work, training_work
from fastbp.kernels.records import Data
from fastbp.kernels.session import OptimizerState, Session
from fastbp.plain import PlainNetwork
from fastbp.prediction import Predictor

# Batch sizes and widths of the training, and rows of the prediction: those of the short sweep and of the dense one.
BATCHES = {
    False: [1, 2, 5, 8, 13, 32, 33, 64, 128, 200, 256, 512, 1000],
    True: [
        1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 17, 24, 31, 32, 33, 48, 61, 64, 65, 96, 100, 127, 128, 129, 200, 251, 255,
        256, 257, 384, 509, 512, 513, 768, 1000, 1021, 1024,
    ],
}  # fmt: skip
WIDTHS = {
    False: [1, 4, 8, 9, 16, 17, 32, 33, 64, 65, 100, 128, 129, 256, 512, 1000],
    True: [
        1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 24, 31, 32, 33, 47, 48, 63, 64, 65, 97, 100, 127, 128, 129, 191, 192,
        200, 256, 257, 384, 509, 512, 513, 768, 1000, 1021, 1024,
    ],
}  # fmt: skip
ROWS = {
    False: [1, 2, 3, 4, 8, 13, 32, 47, 48, 100, 192, 1000, 5000],
    True: [*range(1, 9), 11, 12, 13, 16, 24, 31, 32, 33, 47, 48, 49, 64, 100, 128, 191, 192, 193, 256, 512, 1000, 2000,
           5000],
}  # fmt: skip
N_OUTPUTS = 10
# Seconds of one run, of all runs of one library at one point, and of those of a repeated measurement.
RUN, POINT, LONG = 0.003, 0.02, 0.06
TURNS = 2  # in each of which all libraries are measured
MOST_CALLS = 20_000
TRIES = 2
SIMILAR = 1.5


class Point(NamedTuple):
    """One network, and what is measured with it."""

    task: str
    rows: int  # of a batch, or of a call of the prediction
    width: int
    depth: int
    dtype: str
    threads: int

    @property
    def units(self):
        """The units of all layers."""
        return [self.width] * (self.depth + 1) + [N_OUTPUTS]

    @property
    def work(self):
        """Floating point operations of one batch or call."""
        return (training_work if self.task == "training" else forward_work)(self.units) * self.rows

    def __str__(self):
        sizes = f"{self.rows} rows, width {self.width}, depth {self.depth}"
        return f"{self.task}, {sizes}, {self.dtype}, {self.threads} thread(s)"


def columns(task, dense):
    """Return the columns of each table: axis -> name -> list of (rows, width, depth)."""
    rows = (BATCHES if task == "training" else ROWS)[dense]
    widths = (8, 33, 100, 256, 512, 1024) if dense else (33, 100, 512)
    batches = (1, 8, 32, 100, 256, 1024) if dense else (1, 32, 200)
    depths = range(6 if dense else 4)
    networks = [(w, b) for w in (8, 32, 100, 256, 512) for b in (1, 32, 200)] if dense else [(32, 32), (100, 200)]
    return {
        "rows": {f"width {w}": [(n, w, 1) for n in rows] for w in widths},
        "width": {f"rows {b}": [(b, w, 1) for w in WIDTHS[dense]] for b in batches},
        "depth": {f"{w} x {b}": [(b, w, d) for d in depths] for w, b in networks},
    }


class Sweep:
    """All tables of a sweep, and what was measured.

    Parameters
    ----------
    options : argparse.Namespace
        From the command line.
    """

    def __init__(self, options):
        self.peers, self.threads = options.peers, options.threads
        # (task, axis, dtype, threads) -> name -> points of a column
        self.tables = {
            (task, axis, dtype, threads): {
                name: [Point(task, *sizes, dtype, threads) for sizes in column] for name, column in by_name.items()
            }
            for task in options.tasks
            for dtype in options.dtypes
            for axis, by_name in columns(task, options.dense).items()
            for threads in options.threads
        }
        self.seconds = {point: {} for column in self._columns() for point in column}

    def _columns(self):
        return [column for table in self.tables.values() for column in table.values()]

    def measure(self, points, duration):
        """Measure all libraries at some points, and keep the shortest times.

        The order is random, so that other programs do not disturb one part of a table only.
        """
        points = sorted(points)
        for threads in self.threads:
            chosen = [point for point in points if point.threads == threads]
            with common.all_threads_limited(threads):
                for number, index in enumerate(np.random.default_rng().permutation(len(chosen))):
                    seconds = self.seconds[chosen[index]]
                    for library, best in fastest(runs(chosen[index], self.peers), threads, duration).items():
                        seconds[library] = min(best, seconds.get(library, np.inf))
                    if number % 10 == 0:
                        progress = f"\r{threads} thread(s): {number} of {len(chosen)} points "
                        print(progress, end="", file=sys.stderr, flush=True)
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)

    def gflops(self, point):
        """Return the speed of fastbp."""
        return point.work / self.seconds[point]["fastbp"] / 1e9

    def drops(self):
        """Return the points at which a neighbour is more than twice as good."""
        marked = set()
        for column in self._columns():
            for upper, lower in pairwise(column):
                for point, other in ((upper, lower), (lower, upper)):
                    faster = self.gflops(other) > 2 * self.gflops(point) and other.work <= SIMILAR * point.work
                    sooner = self.seconds[other]["fastbp"] < self.seconds[point]["fastbp"] / 2
                    if faster or (sooner and other.work >= point.work):
                        marked.add(point)
        return marked

    def behind(self):
        """Return the points where another library takes less time: its name, and the ratio of its time to fastbp's."""
        found = {}
        for point, seconds in self.seconds.items():
            peer = min(seconds, key=seconds.get)
            if peer != "fastbp":
                found[point] = (seconds[peer] / seconds["fastbp"], peer)
        return found

    def slower_on_two(self):
        """Return the ratio of the times of two threads and of one, at the points where it is above 1.1."""
        ratios = {
            point: seconds["fastbp"] / self.seconds[point._replace(threads=1)]["fastbp"]
            for point, seconds in self.seconds.items()
            if point.threads > 1 and 1 in self.threads
        }
        return {point: ratio for point, ratio in ratios.items() if ratio > 1.1}

    def lines(self):
        """Yield the lines of all tables."""
        drops, behind = self.drops(), self.behind()
        for (task, axis, dtype, threads), table in self.tables.items():
            what = "columns: width x rows" if axis == "depth" else "depth 1"
            yield ""
            yield f"{task}: GFLOP/s over the {axis}, {dtype}, {threads} thread(s), {what}"
            yield f"{axis:>6}" + "".join(f"{name:>13}" for name in table)
            for points in zip(*table.values(), strict=True):
                cells = (
                    f"{self.gflops(p):11.2f}{'!' if p in drops else ' '}{'<' if p in behind else ' '}" for p in points
                )
                yield f"{getattr(points[0], axis):6}" + "".join(cells)

    def plot(self, file):
        """Plot the values of the tables."""
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot as plt

        n_rows = -(-len(self.tables) // 4)
        figure, axes = plt.subplots(n_rows, 4, figsize=(24, 5 * n_rows), squeeze=False, layout="constrained")
        drops = self.drops()
        for ax, ((task, axis, dtype, threads), table) in zip(axes.flat, self.tables.items(), strict=False):
            for name, points in table.items():
                values = [getattr(point, axis) for point in points]
                ax.plot(values, [self.gflops(point) for point in points], ".-", label=name, linewidth=1)
                bad = [point for point in points if point in drops]
                ax.plot([getattr(point, axis) for point in bad], [self.gflops(p) for p in bad], "rx", markersize=10)
            ax.set(xlabel=axis, ylabel="GFLOP/s", yscale="log", title=f"{task}, {dtype}, {threads} thread(s)")
            if axis != "depth":
                ax.set_xscale("log", base=2)
            ax.legend(fontsize="x-small")
        figure.savefig(file)


def fastest(runs, threads, duration):
    """Measure libraries alternately; return the seconds of one call in the fastest of several runs of each.

    Parameters
    ----------
    runs : dict of str to callable
        For each library, a function that makes as many calls as it is told and returns their seconds.
    threads : int
        Number of threads that each may use.
    duration : float
        Seconds of all runs of one library, of which there are at least two in a turn.
    """
    calls, best = {}, dict.fromkeys(runs, np.inf)
    for _ in range(TURNS):
        for library, run in runs.items():
            if threads > 1:
                time.sleep(common.REST)
            if library not in calls:
                calls[library] = _calls_of_a_run(run)
            end, done = time.perf_counter() + duration / TURNS, 0
            while done < 2 or time.perf_counter() < end:
                best[library] = min(best[library], run(calls[library]) / calls[library])
                done += 1
    return best


def _calls_of_a_run(run):
    n = 1
    run(n)
    while n < MOST_CALLS and (spent := run(n)) < RUN / 2:
        n = min(MOST_CALLS, max(2 * n, int(n * RUN / max(spent, 1e-7) / 2)))
    return n


def runs(point, peers):
    """Return library -> run, as `fastest` takes them."""
    rng = np.random.default_rng(0)
    start = initial_parameters(point.units, [6.0] * (point.depth + 1), np.random.RandomState(0), point.dtype)
    made = {"fastbp": FASTBP[point.task], **{name: PEERS[name][point.task] for name in peers if name in PEERS}}
    if point.task == "prediction":
        x = rng.random((point.rows, point.width)).astype(point.dtype)
        made = {name: make(point, start, x) for name, make in made.items() if make}
    else:
        n = max(1024, point.rows)
        x = rng.random((n, point.width)).astype(point.dtype)
        labels = np.arange(n) % N_OUTPUTS
        made = {name: make(point, start, x, labels, rng.permutation(n)) for name, make in made.items() if make}
    return {name: run for name, run in made.items() if run}


def _repeat(function, n):
    begin = time.perf_counter()
    for i in range(n):
        function(i)
    return time.perf_counter() - begin


def _batches(order, size):
    return [order[i : i + size] for i in range(0, len(order) - size + 1, size)]


def train_fastbp(point, start, x, labels, order):
    """Return a `run` that trains for n batches."""
    activations = [Relu()] * point.depth + [Softmax()]
    network = make_network(point.units, activations, np.dtype(point.dtype), point.rows)
    # The estimator fills in the defaults of all other settings.
    estimator = BackpropClassifier(batch_size=point.rows, alpha=0.0, n_jobs=point.threads)
    settings = estimator._step_settings(len(x), N_OUTPUTS)
    optimizer = OptimizerState.empty(network, settings.solver, 1e-3)
    session = Session(network, network.pack(*start), optimizer, settings, len(x))
    y = np.eye(N_OUTPUTS, dtype=point.dtype)[labels]
    order = order[: len(order) // point.rows * point.rows]

    def run(n):
        data = Data(x, y, np.empty(0, point.dtype), np.resize(order, n * point.rows))
        rates = np.full(n, 1e-3)
        begin = time.perf_counter()
        session.run(data, rates)
        return time.perf_counter() - begin

    return run


def predict_fastbp(point, start, x):
    """Return a `run` that predicts n times."""
    predictor = Predictor(*start, [Relu()] * point.depth + [Softmax()], point.width)
    return partial(_repeat, lambda _: predictor.outputs(x, point.threads))


def train_numpy(point, start, x, labels, order):
    """Do as `train_fastbp` in plain NumPy."""
    network, y = PlainNetwork(*start, alpha=0.0), np.eye(N_OUTPUTS, dtype=point.dtype)[labels]
    batches = _batches(order, point.rows)

    def step(i):
        rows = batches[i % len(batches)]
        network.step(x[rows], y[rows])

    return partial(_repeat, step)


def predict_numpy(point, start, x):
    """Do as `predict_fastbp` in plain NumPy."""
    network = PlainNetwork(*start)
    return partial(_repeat, lambda _: network.predict_proba(x))


def _torch_module(point, start):
    import torch

    torch.set_num_threads(point.threads)
    layers = []
    for coef, intercept in zip(*start, strict=True):
        linear = torch.nn.Linear(*coef.shape)
        linear.weight = torch.nn.Parameter(torch.from_numpy(coef.T.copy()))
        linear.bias = torch.nn.Parameter(torch.from_numpy(intercept.copy()))
        layers += [linear, torch.nn.ReLU()]
    return torch, torch.nn.Sequential(*layers[:-1])


def train_torch(point, start, x, labels, order):
    """Do as `train_fastbp` in PyTorch."""
    torch, module = _torch_module(point, start)
    optimizer = torch.optim.Adam(module.parameters(), fused=True)
    x, labels = torch.from_numpy(x), torch.from_numpy(labels)
    batches = [torch.from_numpy(rows) for rows in _batches(order, point.rows)]

    def step(i):
        rows = batches[i % len(batches)]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x.index_select(0, rows)), labels.index_select(0, rows))
        loss.backward()
        optimizer.step()
        loss.item()

    return partial(_repeat, step)


def predict_torch(point, start, x):
    """Do as `predict_fastbp` in PyTorch."""
    torch, module = _torch_module(point, start)

    def predict(_):
        with torch.inference_mode():
            return torch.softmax(module(torch.from_numpy(x)), 1).numpy()

    return partial(_repeat, predict)


def predict_onnx(point, start, x):
    """Do as `predict_fastbp` in ONNX Runtime, in float32 only."""
    if point.dtype != "float32":
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = point.threads, 1
    session = onnxruntime.InferenceSession(onnx_model(*start), options, providers=["CPUExecutionProvider"])
    return partial(_repeat, lambda _: session.run(["proba"], {"X": x}))


FASTBP = {"training": train_fastbp, "prediction": predict_fastbp}
PEERS = {
    "NumPy": {"training": train_numpy, "prediction": predict_numpy},
    "PyTorch": {"training": train_torch, "prediction": predict_torch},
    "ONNX Runtime": {"training": None, "prediction": predict_onnx},
}
PACKAGES = {"NumPy": "numpy", "PyTorch": "torch", "ONNX Runtime": "onnxruntime"}


def main(arguments=None):
    """Run the command line."""
    installed = [name for name, package in PACKAGES.items() if find_spec(package)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", action="store_true", help="measure many more sizes")
    parser.add_argument("--tasks", nargs="+", choices=FASTBP, default=list(FASTBP))
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "float64"], default=["float32", "float64"])
    parser.add_argument("--threads", type=int, nargs="+", default=common.thread_counts())
    parser.add_argument("--peers", nargs="*", choices=installed, default=installed, metavar="NAME")
    parser.add_argument("--plot", metavar="FILE", help="also plot the tables")
    options = parser.parse_args(arguments)
    if options.plot and not find_spec("matplotlib"):
        parser.error("--plot needs matplotlib, which is not installed")
    begin = time.perf_counter()
    sweep = Sweep(options)
    sweep.measure(sweep.seconds, POINT)
    for _ in range(TRIES):
        # Longer, so that the thread tuner of a session that chose one thread on a busy machine tries both again.
        again = {*sweep.drops(), *sweep.behind()}
        again |= {point._replace(threads=n) for point in sweep.slower_on_two() for n in options.threads}
        sweep.measure(again, LONG)
    for dtype in options.dtypes:
        for threads in options.threads:
            peak = common.peak_gflops(dtype, threads, common.register_seconds(dtype, threads)[0])
            print(f"FMA peak, {dtype}, {threads} core(s): {peak:.1f} GFLOP/s")
    print(*sweep.lines(), "", sep="\n")
    drops, behind, slow = sorted(sweep.drops()), sweep.behind(), sweep.slower_on_two()
    print(f"{len(sweep.seconds)} points in {time.perf_counter() - begin:.0f} s.")
    print(f"! {len(drops)} points at which a neighbour is more than twice as good:")
    print(*(f"  {point}" for point in drops), sep="\n")
    print(f"< {len(behind)} points at which another library is faster, the lowest ratio first:")
    for point, (ratio, peer) in sorted(behind.items(), key=lambda item: item[1]):
        print(f"  {ratio:.2f} {point}: {peer}")
    print(f"{len(slow)} points where two threads take at least 10 % longer than one:")
    for point, ratio in sorted(slow.items()):
        print(f"  {ratio:.2f} {point}")
    if options.plot:
        sweep.plot(options.plot)


if __name__ == "__main__":
    main()
