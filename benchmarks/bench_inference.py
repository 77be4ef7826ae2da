"""Inference: time of `predict_proba` for one row and for 10,000 rows, in fastbp and in other libraries.

Run: ``python benchmarks/bench_inference.py`` (about 3 minutes), or a part of it with ``--networks``, ``--threads``.

Each library runs in its own process, and the libraries are timed alternately, as in `race`. All have the same weights,
and their results are compared before anything is timed. A call takes a float32 NumPy array and returns the
probabilities of all classes as a NumPy array. A round yields the median of its calls; the figure is the best round.

- fastbp, scikit-learn: the public method `predict_proba`, including its checks of the input.
- PyTorch: a module with softmax in `inference_mode`, which has less overhead than `no_grad`.
- ONNX Runtime: a graph of Gemm, Relu and Softmax, optimised and run by `InferenceSession`.
- JAX: a jitted function with the weights as constants.

For two classes, fastbp and scikit-learn have one logistic output unit. The others have two outputs and a softmax; the
weights of the first output are 0, which gives the same probabilities.
"""

import argparse
import json
import sys
import time
from importlib.util import find_spec
from statistics import median

from race import machine
from turns import Failed, Worker, in_turns, sayer, serve, start

NETWORKS = {
    "784-128-10": (784, 128, 10),
    "30-64-64-2": (30, 64, 64, 2),
    "784-512-512-10": (784, 512, 512, 10),
}
ROWS = (1, 10_000)
# Target: most microseconds for one row. With 10,000 rows the target is the fastest of the other libraries.
TARGETS = {"30-64-64-2": 20, "784-128-10": 25}
# Seconds of one measurement.
SECONDS = {1: 0.1, 10_000: 0.4}


class Contestant:
    """Base class of the libraries; subclasses define `prepare` and `proba`."""

    def __init__(self, job):
        import numpy as np

        self.units, self.threads = job["units"], job["threads"]
        rng = np.random.default_rng(0)
        self.X = rng.random((max(ROWS), self.units[0]), dtype=np.float32)
        shapes = list(zip(self.units[:-1], self.units[1:], strict=True))
        self.coefs = [rng.uniform(-1, 1, s).astype(np.float32) * np.float32((6 / sum(s)) ** 0.5) for s in shapes]
        self.intercepts = [rng.uniform(-0.1, 0.1, n).astype(np.float32) for n in self.units[1:]]
        if self.units[-1] == 2:
            self.coefs[-1][:, 0] = 0
            self.intercepts[-1][0] = 0
        self.prepare()

    def outputs(self):
        """Return the probabilities of some rows, computed in one call for all rows and in one call for each row."""
        rows = (0, 1, 2, 5_000, 9_999)
        together = self.proba(self.X)
        return [[together[i].tolist() for i in rows], [self.proba(self.X[i : i + 1])[0].tolist() for i in rows]]

    def measure(self, n_rows):
        """Return the median duration of a call with `n_rows` rows, in seconds."""
        calls = []
        chunks = [self.X[i : i + n_rows] for i in range(0, min(len(self.X), 1_000 * n_rows), n_rows)]
        end = time.perf_counter() + SECONDS[n_rows]
        for chunk in chunks[:50]:
            self.proba(chunk)
        while time.perf_counter() < end or len(calls) < 5:
            for chunk in chunks:
                begin = time.perf_counter()
                self.proba(chunk)
                calls.append(time.perf_counter() - begin)
        return median(calls)


class Estimator(Contestant):
    """fastbp or scikit-learn: fitted for one epoch; then the weights are replaced."""

    def prepare(self):
        """Create the estimator."""
        import warnings

        import numpy as np

        y = np.arange(200) % self.units[-1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one epoch does not converge
            self.estimator = self.make(hidden_layer_sizes=self.units[1:-1], max_iter=1).fit(self.X[:200], y)
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
    graph += _field(11, _value(b"X", coefs[0].shape[0])) + _field(12, _value(b"proba", coefs[-1].shape[1]))
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
    # dims, data_type FLOAT, name, raw_data
    dims = b"".join(_field(1, n) for n in values.shape)
    return dims + _field(2, 1) + _field(8, name) + _field(9, values.astype("<f4").tobytes())


def _node(operator, inputs, output):
    return b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, operator)


def _value(name, n_columns):
    # A tensor of FLOAT whose shape is any number of rows by n_columns.
    shape = _field(1, _field(2, b"rows")) + _field(1, _field(1, n_columns))
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, shape)))


# Name -> class, and the package that must be installed.
CONTESTANTS = {
    "fastbp": (Fastbp, "numba"), "scikit-learn": (ScikitLearn, "sklearn"), "PyTorch": (Torch, "torch"),
    "ONNX Runtime": (OnnxRuntime, "onnxruntime"), "JAX": (Jax, "jax"),
}  # fmt: skip


def bench(name, threads, rounds, contestants, loud=False):
    """Return rows -> library -> seconds of a call, without the libraries that failed."""
    import numpy as np

    say = sayer(f"{name}, {threads} thread(s)")
    workers = {
        contestant: Worker(__file__, {"contestant": contestant, "units": NETWORKS[name], "threads": threads}, loud)
        for contestant in contestants
    }
    try:
        failed = start(workers, say)
        outputs = in_turns(workers, 1, ("outputs",), say)
        failed |= {contestant: answer for contestant, answer in outputs.items() if isinstance(answer, Failed)}
        found = {c: np.array(answers[0]) for c, answers in outputs.items() if c not in failed}
        for contestant, proba in found.items():
            np.testing.assert_allclose(proba, next(iter(found.values())), rtol=1e-4, atol=1e-6, err_msg=contestant)
        seconds = {}
        for n_rows in ROWS:
            say(f"{n_rows} rows")
            answers = in_turns(workers, rounds, ("measure", n_rows), say)
            seconds[n_rows] = {c: min(a) for c, a in answers.items() if not isinstance(a, Failed)}
    finally:
        for worker in workers.values():
            worker.close()
    for contestant, reason in failed.items():
        say(f"{contestant} failed: {reason}")
    return seconds


def report(results, contestants):
    """Yield the lines of the table, then those of the targets."""
    yield f"| network | rows | threads | {' | '.join(contestants)} | ratio | fastest other |"
    yield "|---|---:|---:" + "|---:" * (len(contestants) + 1) + "|---|"
    verdicts = []
    for (name, threads), by_rows in results.items():
        for n_rows, seconds in by_rows.items():
            cells = [f"{seconds[c] * 1e6:,.1f}" if c in seconds else "-" for c in contestants]
            peers = {c: value for c, value in seconds.items() if c != "fastbp"}
            peer = min(peers, key=peers.get, default=None)
            both = peer and "fastbp" in seconds
            ratio = f"{peers[peer] / seconds['fastbp']:.2f}" if both else "-"
            yield f"| {name} | {n_rows} | {threads} | {' | '.join(cells)} | {ratio} | {peer or '-'} |"
            limit = TARGETS.get(name, float("inf")) * 1e-6 if n_rows == 1 else peers[peer] if both else float("inf")
            if "fastbp" in seconds and limit < 1:
                wanted = f"at most {limit * 1e6:,.1f} us" + ("" if n_rows == 1 else f" ({peer})")
                met = "met   " if seconds["fastbp"] <= limit else "MISSED"
                took = f"{seconds['fastbp'] * 1e6:,.1f} us"
                verdicts.append(f"{met} {name}, {n_rows} rows, {threads} thread(s): {took}, {wanted}")
    yield ""
    yield from verdicts


def main(arguments=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--verbose", action="store_true", help="show what the libraries print")
    options = parser.parse_args(arguments)
    contestants = [name for name in options.contestants if find_spec(CONTESTANTS[name][1])]
    for name in set(options.contestants) - set(contestants):
        print(f"{name} is not installed: left out", file=sys.stderr)
    results = {
        (name, threads): bench(name, threads, options.rounds, contestants, options.verbose)
        for name in options.networks
        for threads in sorted(set(options.threads))
    }
    print("Microseconds per call: the fastest of", options.rounds, "rounds, each the median of its calls")
    print(*machine(["numpy", "numba", "scikit-learn", "torch", "onnxruntime", "jax", "jaxlib"]), "", sep="\n")
    print(*report(results, contestants), sep="\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        job = json.loads(sys.argv[2])
        serve(job, CONTESTANTS[job["contestant"]][0])
    else:
        main()
