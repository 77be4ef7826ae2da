"""Inference: time of `predict_proba` for 1 to 10,000 rows, in fastbp and in other libraries: the whole curve.

Run: ``python benchmarks/bench_inference.py`` (about 10 minutes), or a part of it with ``--shape``, ``--rows``,
``--threads``, ``--dtype``, ``--contestants``. The exit status is 1 where fastbp misses a target.

Each library runs in its own process, and the libraries are timed alternately, as in `race`. All have the same weights,
and their results are compared before anything is timed. A call takes a NumPy array of the network's type and returns
the probabilities of all classes as a NumPy array. A turn yields the mean of the fastest of some short blocks of calls;
the figure is the best turn.

- fastbp, scikit-learn: the public method `predict_proba`, including its checks of the input.
- ONNX Runtime: a graph of Gemm, Relu and Softmax, optimised and run by `InferenceSession`.
- PyTorch: a module with softmax in `inference_mode`, which has less overhead than `no_grad`.
- JAX: a jitted function with the weights as constants.

For two classes, fastbp and scikit-learn have one logistic output unit. The others have two outputs and a softmax; the
weights of the first output are 0, which gives the same probabilities.
"""

import argparse
import json
import math
import sys
import time
from importlib.util import find_spec

from race import machine
from turns import Failed, Worker, in_turns, sayer, serve, start

SHAPES = ((784, 128, 10), (30, 64, 64, 2), (784, 512, 512, 10), (20, 100, 3))
ROWS = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 16, 20, 24, 32, 40, 47, 48, 64, 80, 96, 128, 150, 200, 256, 400, 512, 700,
    1_000, 2_000, 5_000, 10_000,
)  # fmt: skip
# Targets in float32: the speed of ONNX Runtime in the geometric mean over the rows, so much of it for each number of
# rows; and everywhere the speed of scikit-learn.
LEAST_OF_ONNX = 0.8
# Seconds of a block of calls, and of a turn.
BLOCK, TURN = 0.001, 0.012


class Contestant:
    """Base class of the libraries; subclasses define `prepare` and `proba`."""

    def __init__(self, job):
        import numpy as np

        self.units, self.threads, self.dtype = job["units"], job["threads"], np.dtype(job["dtype"])
        rng = np.random.default_rng(0)
        self.X = rng.random((max(job["rows"]), self.units[0]), dtype=np.float32).astype(self.dtype, copy=False)
        shapes = list(zip(self.units[:-1], self.units[1:], strict=True))
        self.coefs = [(rng.uniform(-1, 1, s) * (6 / sum(s)) ** 0.5).astype(self.dtype) for s in shapes]
        self.intercepts = [rng.uniform(-0.1, 0.1, n).astype(self.dtype) for n in self.units[1:]]
        if self.units[-1] == 2:
            self.coefs[-1][:, 0] = 0
            self.intercepts[-1][0] = 0
        self.prepare()

    def outputs(self):
        """Return the probabilities of some rows, computed in one call for all rows and in one call for each row."""
        rows = sorted({0, len(self.X) // 2, len(self.X) - 1})
        together = self.proba(self.X)
        return [[together[i].tolist() for i in rows], [self.proba(self.X[i : i + 1])[0].tolist() for i in rows]]

    def measure(self, n_rows):
        """Return the shortest time of a call with `n_rows` rows, in seconds, each the mean of a block."""
        chunks = [self.X[i : i + n_rows] for i in range(0, min(len(self.X), 16 * n_rows) - n_rows + 1, n_rows)]
        best, n_blocks, turn = math.inf, 0, time.perf_counter()
        while n_blocks < 3 or time.perf_counter() - turn < TURN:
            calls, begin = 0, time.perf_counter()
            while (now := time.perf_counter()) - begin < BLOCK:
                for chunk in chunks:
                    self.proba(chunk)
                calls += len(chunks)
            if n_blocks:  # the first one is for warming up
                best = min(best, (now - begin) / calls)
            n_blocks += 1
        return best


class Estimator(Contestant):
    """fastbp or scikit-learn: fitted for one epoch; then the weights are replaced."""

    def prepare(self):
        """Create the estimator."""
        import warnings

        import numpy as np

        X = self.X[np.arange(200) % len(self.X)]
        y = np.arange(200) % self.units[-1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one epoch does not converge
            self.estimator = self.make(hidden_layer_sizes=self.units[1:-1], max_iter=1).fit(X, y)
        last = slice(1, 2) if self.units[-1] == 2 else slice(None)
        self.estimator.coefs_ = [*self.coefs[:-1], self.coefs[-1][:, last].copy()]
        self.estimator.intercepts_ = [*self.intercepts[:-1], self.intercepts[-1][last].copy()]
        self.proba = self.estimator.predict_proba


class Fastbp(Estimator):
    """fastbp."""

    def make(self, **chosen):
        """Return the estimator with these parameters."""
        from fastbp import BackpropClassifier

        return BackpropClassifier(**chosen, n_jobs=self.threads)


class ScikitLearn(Estimator):
    """scikit-learn."""

    def make(self, **chosen):
        """Return the estimator with these parameters."""
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier(**chosen)


class Torch(Contestant):
    """PyTorch."""

    def prepare(self):
        """Create the module."""
        import torch

        torch.set_num_threads(self.threads)
        self.torch = torch
        layers = []
        for coef, intercept in zip(self.coefs, self.intercepts, strict=True):
            linear = torch.nn.Linear(*coef.shape)
            linear.weight = torch.nn.Parameter(torch.from_numpy(coef.T.copy()))
            linear.bias = torch.nn.Parameter(torch.from_numpy(intercept))
            layers += [linear, torch.nn.ReLU()]
        self.module = torch.nn.Sequential(*layers[:-1], torch.nn.Softmax(dim=1)).eval()

    def proba(self, X):
        """Return the probabilities of all classes."""
        with self.torch.inference_mode():
            return self.module(self.torch.from_numpy(X)).numpy()


class OnnxRuntime(Contestant):
    """ONNX Runtime."""

    def prepare(self):
        """Create the session."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        model = onnx_model(self.coefs, self.intercepts)
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def proba(self, X):
        """Return the probabilities of all classes."""
        return self.session.run(["proba"], {"X": X})[0]


class Jax(Contestant):
    """JAX."""

    def prepare(self):
        """Compile the function."""
        import jax
        import numpy as np

        self.asarray = np.asarray

        def forward(x):
            for coef, intercept in zip(self.coefs[:-1], self.intercepts[:-1], strict=True):
                x = jax.nn.relu(x @ coef + intercept)
            return jax.nn.softmax(x @ self.coefs[-1] + self.intercepts[-1])

        self.forward = jax.jit(forward)

    def proba(self, X):
        """Return the probabilities of all classes."""
        return self.asarray(self.forward(X))


def onnx_model(coefs, intercepts):
    """Return the bytes of an ONNX file of a multilayer perceptron with relu in the hidden layers and softmax outputs.

    The format is protobuf: a sequence of fields with a number, a type and a value. The numbers are those in
    `onnx.proto`. The file is written here, so that the package `onnx` is not needed. The input is named "X", the
    output "proba".
    """
    nodes, tensors, name = b"", b"", b"X"
    for i, (coef, intercept) in enumerate(zip(coefs, intercepts, strict=True)):
        names = [f"{what}{i}".encode() for what in ("W", "b", "z", "a")]
        tensors += _field(5, _tensor(names[0], coef)) + _field(5, _tensor(names[1], intercept))
        nodes += _field(1, _node(b"Gemm", [name, *names[:2]], names[2]))
        last = i == len(coefs) - 1
        name = b"proba" if last else names[3]
        nodes += _field(1, _node(b"Softmax" if last else b"Relu", [names[2]], name))
    graph = nodes + _field(2, b"perceptron") + tensors
    for number, tensor, n_columns in ((11, b"X", coefs[0].shape[0]), (12, b"proba", coefs[-1].shape[1])):
        graph += _field(number, _value(tensor, n_columns, coefs[0].dtype))
    # ir_version 8, the graph, and operators of version 13.
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 13))


def _field(number, value):
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(n):
    parts = []
    while n > 127:
        parts.append(n & 127 | 128)
        n >>= 7
    return bytes([*parts, n])


def _tensor(name, values):
    # dims, data_type, name, raw_data
    dims = b"".join(_field(1, n) for n in values.shape)
    raw = values.astype(values.dtype.newbyteorder("<")).tobytes()
    return dims + _field(2, _ONNX_TYPES[values.dtype.name]) + _field(8, name) + _field(9, raw)


def _node(operator, inputs, output):
    return b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, operator)


def _value(name, n_columns, dtype):
    # A tensor whose shape is any number of rows by n_columns.
    shape = _field(1, _field(2, b"rows")) + _field(1, _field(1, n_columns))
    return _field(1, name) + _field(2, _field(1, _field(1, _ONNX_TYPES[dtype.name]) + _field(2, shape)))


# Numbers of FLOAT and DOUBLE in `onnx.proto`.
_ONNX_TYPES = {"float32": 1, "float64": 11}


# Name -> class, and the package that must be installed.
CONTESTANTS = {
    "fastbp": (Fastbp, "numba"), "scikit-learn": (ScikitLearn, "sklearn"), "ONNX Runtime": (OnnxRuntime, "onnxruntime"),
    "PyTorch": (Torch, "torch"), "JAX": (Jax, "jax"),
}  # fmt: skip


def bench(job, rounds, contestants, loud=False):
    """Return rows -> library -> seconds of a call, without the libraries that failed."""
    import numpy as np

    say = sayer(title(job))
    workers = {contestant: Worker(__file__, {"contestant": contestant, **job}, loud) for contestant in contestants}
    try:
        failed = start(workers, say)
        outputs = in_turns(workers, 1, ("outputs",), say)
        failed |= {contestant: answer for contestant, answer in outputs.items() if isinstance(answer, Failed)}
        found = {c: np.array(answers[0]) for c, answers in outputs.items() if c not in failed}
        for contestant, proba in found.items():
            np.testing.assert_allclose(proba, next(iter(found.values())), rtol=1e-4, atol=1e-6, err_msg=contestant)
        seconds = {}
        for n_rows in job["rows"]:
            answers = in_turns(workers, rounds, ("measure", n_rows), lambda _: None)
            seconds[n_rows] = {c: min(a) for c, a in answers.items() if not isinstance(a, Failed)}
    finally:
        for worker in workers.values():
            worker.close()
    for contestant, reason in failed.items():
        say(f"{contestant} failed: {reason}")
    return seconds


def title(job):
    """Return the network, type and threads of a job as text."""
    return f"{'-'.join(map(str, job['units']))}, {job['dtype']}, {job['threads']} thread(s)"


def report(job, results, contestants):
    """Print the curve, with the speed of fastbp relative to the others; return whether all targets are met."""
    peers = [c for c in contestants if c != "fastbp"]
    print(f"\n{title(job)}: microseconds, and the speed of fastbp as a multiple of the other's")
    print(f"{'rows':>7}" + "".join(f"{c:>14}" for c in contestants) + "".join(f"{'/ ' + c:>16}" for c in peers))
    ratios = {c: [] for c in peers}
    for n_rows, seconds in results.items():
        line = f"{n_rows:7}" + "".join(f"{seconds.get(c, math.nan) * 1e6:14,.1f}" for c in contestants)
        for c in peers:
            ratio = seconds.get(c, math.nan) / seconds.get("fastbp", math.nan)
            ratios[c].append(ratio)
            mark = " *" if ratio < least(c, job) else "  "
            line += f"{ratio:14.2f}{mark}"
        print(line)
    met = True
    for c in peers:
        mean, worst = math.exp(sum(map(math.log, ratios[c])) / len(ratios[c])), min(ratios[c])
        wanted = (1.0 if c == "ONNX Runtime" and job["dtype"] == "float32" else 0.0), least(c, job)
        verdict = "" if not wanted[1] else "met" if mean >= wanted[0] and worst >= wanted[1] else "MISSED"
        met &= verdict != "MISSED"
        print(f"  {c}: geometric mean {mean:.2f}, worst {worst:.2f}  {verdict}")
    sys.stdout.flush()
    return met


def least(contestant, job):
    """Return the least speed of fastbp that is a target, as a multiple of a contestant's; 0 if there is none."""
    if contestant == "scikit-learn":
        return 1.0
    return LEAST_OF_ONNX if contestant == "ONNX Runtime" and job["dtype"] == "float32" else 0.0


def _shape(text):
    return tuple(map(int, text.split("-")))


def main(arguments=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=_shape, nargs="+", default=SHAPES, metavar="784-128-10")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "float64"], default=["float32", "float64"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS)[:3], metavar="NAME"
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="show what the libraries print")
    options = parser.parse_args(arguments)
    contestants = [name for name in options.contestants if find_spec(CONTESTANTS[name][1])]
    for name in set(options.contestants) - set(contestants):
        print(f"{name} is not installed: left out", file=sys.stderr)
    print(*machine(["numpy", "numba", "scikit-learn", "onnxruntime", "torch", "jax", "jaxlib"]), sep="\n")
    met = True
    for dtype in options.dtype:
        for units in options.shape:
            for threads in options.threads:
                job = {"units": units, "threads": threads, "dtype": dtype, "rows": options.rows}
                met &= report(job, bench(job, options.rounds, contestants, options.verbose), contestants)
    return 0 if met else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        job = json.loads(sys.argv[2])
        serve(job, CONTESTANTS[job["contestant"]][0])
    else:
        sys.exit(main())
