"""The race: fastbp against its peers in training, each in its own process, in turns, round by round.

Run: ``python benchmarks/race.py`` (about 20 minutes; writes ``benchmarks/RESULTS.md``), or a part of it:
``python benchmarks/race.py --workloads mnist-128 seed-30 --contestants fastbp jax --threads 1 --rounds 3``.

**What is measured.** Samples per second of training, in float32. Of each workload all contestants are started and
warmed up first: compiled, and their epoch cut to about ``--seconds``. Then each in turn makes one timed
measurement, ``--rounds`` times. The figure is the best round; the ratio of the medians stands beside it. While
one works the others wait for a line on their standard input, and between turns there are 50 ms in which threads
that still spin go to sleep. One thread is one core for all: the affinity of the process, and every library's own
setting, are set before it is imported. Settings of the environment that would hold a BLAS back are taken out.

**Equal work.** The same layers, first weights, batch size, optimizer (Adam with the same betas, or gradient
descent without momentum), no L2 penalty (alpha=0), and a new random order every epoch. All but plain NumPy compute
the loss of each batch. After one epoch the loss on the data, and how far the weights have moved, are compared. Data
are random, dense numbers with random labels, or real images with ``--data DIR``. Two classes are one logistic
output unit for all. scikit-learn has no squared error in its classifier: there it trains with log loss.

**The contestants.** Each measurement begins with fresh weights, and of a choice of ways that users of a library
have, the one that is fastest on the workload is taken.

- fastbp, scikit-learn: the marginal cost of an epoch, a fit of 1 + e epochs minus a fit of one.
- PyTorch: eager, fused Adam; the order applied once per epoch or batch by batch.
- torch.compile: one graph of a whole step: gather, forward, backward, update.
- JAX: one jitted `lax.scan` over an epoch, buffers donated; shuffled inside or by NumPy, unrolled or not.
- NumPy: `fastbp.plain`, which computes no loss.

With two threads the best peer is the best at one or two: nobody has to use both cores.
"""

import argparse
import datetime
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
# Samples in an epoch: whole batches, and 20 to 300 ms for fastbp.
SAMPLES = {
    "mnist-128": 20_480, "mnist-512x2": 10_240, "mnist-100": 20_000, "digits-100": 100_000, "tabular-64x2": 96_000,
    "seed-30": 20_000, "online-16": 60_000, "wide-2048x2": 2_048,
}  # fmt: skip
# Least ratio to the best peer, and least share of the FMA peak, at one and at two threads.
TARGETS = {
    "mnist-128": {1: (1.5, 0), 2: (2.0, 0)}, "mnist-512x2": {1: (1.4, 0), 2: (1.4, 0.75)},
    "mnist-100": {1: (1.5, 0), 2: (2.0, 0)}, "digits-100": {1: (2.5, 0), 2: (3.0, 0)},
    "tabular-64x2": {1: (2.0, 0), 2: (2.5, 0)}, "seed-30": {1: (2.0, 0), 2: (2.5, 0)},
    "online-16": {1: (4.0, 0), 2: (4.0, 0)}, "wide-2048x2": {1: (1.1, 0), 2: (1.1, 0.8)},
}  # fmt: skip
# What each contestant needs installed.
CONTESTANTS = {
    "fastbp": "numba", "PyTorch": "torch", "torch.compile": "torch", "JAX": "jax", "scikit-learn": "sklearn",
    "NumPy": "numpy",
}  # fmt: skip
REST = 0.05
RATES = {"adam": 1e-3, "sgd": 0.1}
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


# --- Processes that wait for their turn -----------------------------------------------------------------------


def cores(n):
    """Return n cores that this process may use, no two of them threads of one core."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    own, taken = [], set()
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text() if siblings.exists() else str(cpu)
        if core not in taken:
            own.append(cpu)
            taken.add(core)
    if len(own) < n:
        raise SystemExit(f"{n} threads need {n} cores; this process may use {len(own)}.")
    return own[-n:]


def environment(threads):
    """Return the environment of a process that computes on so many threads."""
    foreign = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "XLA_FLAGS", "NUMBA_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    for name in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
        env[f"{name}_NUM_THREADS"] = str(threads)
    # Intel's OpenMP keeps threads spinning for 200 ms after the last region: longer than the pause between turns.
    env |= {"KMP_BLOCKTIME": "20", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if threads == 1:
        env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [env.get("PYTHONPATH")])])
    return env


class Failed(Exception):
    """A worker could not do what it was asked for; the message says why."""


class Worker:
    """A contestant in a process of its own.

    Parameters
    ----------
    script : path-like
        Started as ``python script --worker JOB``; it calls `serve`.
    job : dict
        What it is to do; `threads` is set and `cores` is added.
    loud : bool
        Whether its standard error is shown.
    """

    def __init__(self, script, job, loud=False):
        job = {**job, "cores": cores(job["threads"])}
        self._process = subprocess.Popen(
            [sys.executable, str(script), "--worker", json.dumps(job)], text=True, env=environment(job["threads"]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if loud else subprocess.DEVNULL,
        )  # fmt: skip

    def answer(self, timeout=600):
        """Wait for the answer to the last request; the first one says that the worker is ready."""
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise Failed(f"no answer in {timeout} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"the process ended with code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["value"]

    def ask(self, method, *args):
        """Call a method of the contestant and return what it returns."""
        try:
            self._process.stdin.write(json.dumps([method, *args]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` says how the process ended
        return self.answer()

    def close(self):
        """End the process."""
        self._process.kill()
        self._process.communicate()


def serve(job, make):
    """Be a worker: make a contestant, then do what each line of standard input asks for."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that nothing that a library prints is taken for an answer
    if job["cores"]:
        os.sched_setaffinity(0, job["cores"])

    def answer(call):
        try:
            reply = {"value": call()}
        except Exception as error:
            text = " ".join(str(error).split())
            reply = {"error": f"{type(error).__name__}: {text[:200]}"}
        channel.write(json.dumps(reply) + "\n")
        channel.flush()
        return "value" in reply

    made = []
    if answer(lambda: made.append(make(job))):
        for line in sys.stdin:
            method, *args = json.loads(line)
            answer(lambda method=method, args=args: getattr(made[0], method)(*args))


def in_turns(workers, rounds, method, say):
    """Ask all workers in turn, `rounds` times, and return each one's answers.

    A worker that fails is closed and taken out of `workers`; its answer is the exception.
    """
    answers = {name: [] for name in workers}
    for turn in range(rounds):
        if rounds > 1:
            say(f"round {turn + 1} of {rounds}")
        names = list(workers)
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            time.sleep(REST)
            try:
                answers[name].append(workers[name].ask(*method))
            except Failed as failure:
                answers[name] = failure
                workers.pop(name).close()
    return answers


def start(workers, say):
    """Wait until all workers are ready; return those that failed and why."""
    failed = {}
    for name, worker in list(workers.items()):
        try:
            worker.answer()
            say(f"{name} is ready")
        except Failed as failure:
            failed[name] = failure
            workers.pop(name).close()
    return failed


def sayer(prefix):
    """Return a function that shows one line of progress on standard error."""
    return lambda text: print(f"{time.strftime('%H:%M:%S')} {prefix}: {text}", file=sys.stderr, flush=True)


# --- The contestants ------------------------------------------------------------------------------------------


class Contestant:
    """One way to train one workload.

    `run(amount)` trains from fresh weights and returns the seconds of this and of what in it is no training.
    """

    note = ""
    per_amount = 1  # batches in one unit of `amount`

    def __init__(self, job):
        import numpy as np

        self.__dict__.update(job)
        folder = Path(self.folder)
        self.X, self.y, self.Y = (np.load(folder / f"{name}.npy") for name in ("X", "labels", "targets"))
        with np.load(folder / "start.npz") as start:
            self.start = [start[name] for name in start.files]  # weights of each layer, then biases
        self.n_layers = len(self.units) - 1
        self.rate = RATES[self.solver]
        self.prepare()

    def prepare(self):
        """Compile, or do once what need not be timed."""

    def calibrate(self, seconds):
        """Choose how much to train in one measurement, so that it takes about so long."""
        self.amount, spent = self.least, 0.0
        while True:
            long, short = self.run(self.amount)
            spent = max(long - short, 1e-6)
            if spent > seconds / 5:
                break
            self.amount = max(2 * self.amount, round(self.amount * seconds / 4 / max(spent, seconds / 100)))
        epoch = len(self.X) // self.batch_size // self.per_amount
        self.amount = max(self.least, round(self.amount * seconds / spent))
        if self.amount > epoch:
            self.amount = round(self.amount / epoch) * epoch
        return self.note

    @property
    def least(self):
        """The smallest amount that is worth timing."""
        return 1 if self.per_amount > 1 else min(20, len(self.X) // self.batch_size)

    def measure(self):
        """Return samples, seconds of a measurement, and seconds in it that are no training."""
        return [self.amount * self.per_amount * self.batch_size, *self.run(self.amount)]

    def one_epoch(self):
        """Train once on all data."""
        self.run(len(self.X) // self.batch_size // self.per_amount)

    def check(self):
        """Train one epoch; return the loss on some of the data, and how far the weights have moved."""
        import numpy as np

        self.one_epoch()
        params = [np.asarray(p, dtype=np.float64) for p in self.params()]
        a, y = self.X[:2000].astype(np.float64), self.Y[:2000]
        for layer in range(self.n_layers):
            z = a @ params[layer] + params[self.n_layers + layer]
            last = layer == self.n_layers - 1
            a = np.maximum(z, 0) if self.activation == "relu" and not last else 1 / (1 + np.exp(-z))
        if self.loss == "squared_error":
            loss = 0.5 * ((a - y) ** 2).sum() / len(y)
        elif self.units[-1] == 1:
            loss = np.mean(np.logaddexp(0, z) - y * z)
        else:
            loss = np.mean(np.logaddexp.reduce(z, axis=1) - (y * z).sum(axis=1))
        moved = sum(((p - q) ** 2).sum() for p, q in zip(params, self.start, strict=True)) ** 0.5
        return [float(loss), float(moved)]


class Estimator(Contestant):
    """A scikit-learn estimator: the marginal seconds of an epoch."""

    def prepare(self):
        """Compile, or do once what need not be timed."""
        import numpy as np

        self.per_amount = len(self.X) // self.batch_size
        chosen = {
            "hidden_layer_sizes": self.units[1:-1], "activation": self.activation, "solver": self.solver, "alpha": 0.0,
            "batch_size": self.batch_size, "learning_rate_init": self.rate, "tol": 0.0, "n_iter_no_change": np.inf,
            "random_state": 0, "beta_1": BETA_1, "beta_2": BETA_2, "epsilon": EPSILON,
        }  # fmt: skip
        if self.solver == "sgd":
            chosen |= {"momentum": 0.0, "nesterovs_momentum": False}
        self.estimator = self.make(chosen)
        rows = 2 * self.batch_size
        self._fit(1, np.r_[:rows, self._all_classes()])

    def _all_classes(self):
        import numpy as np

        return np.unique(self.y, return_index=True)[1]

    def _fit(self, epochs, rows=slice(None)):
        import warnings

        X, y = self.X[rows], self.y[rows]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is meant to end before it converges
            begin = time.perf_counter()
            self.estimator.set_params(max_iter=epochs).fit(X, y)
            return time.perf_counter() - begin

    def calibrate(self, seconds):
        """Choose how much to train in one measurement, so that it takes about so long."""
        # A slow one gets a shorter epoch: 50 batches tell about how slow it is.
        rows = slice(0, 50 * self.batch_size)
        batches = min(50, self.per_amount)
        rate = 2 * batches / max(self._fit(3, rows) - self._fit(1, rows), 1e-6)
        n_batches = min(self.per_amount, max(2, round(seconds * rate)))
        self.X, self.y = self.X[: n_batches * self.batch_size], self.y[: n_batches * self.batch_size]
        self.per_amount = n_batches
        return super().calibrate(seconds)

    def run(self, amount):
        """Train from fresh weights; return the seconds, and those of it that are no training."""
        short = self._fit(1)
        return self._fit(1 + amount), short

    def one_epoch(self):
        """Train once on all data."""
        self._fit(1)

    def params(self):
        """Return the weights and biases, as those of `start`."""
        return [*self.estimator.coefs_, *self.estimator.intercepts_]


class Fastbp(Estimator):
    """fastbp through its public estimator."""

    def make(self, chosen):
        """Return the estimator with these parameters."""
        from fastbp import BackpropClassifier

        return BackpropClassifier(**chosen, loss=self.loss, n_jobs=self.threads)


class ScikitLearn(Estimator):
    """scikit-learn's MLPClassifier."""

    def make(self, chosen):
        """Return the estimator with these parameters."""
        from sklearn.neural_network import MLPClassifier

        self.note = "log loss" if self.loss == "squared_error" else ""
        return MLPClassifier(**chosen)


class NumPy(Contestant):
    """Plain NumPy."""

    def prepare(self):
        """Compile, or do once what need not be timed."""
        from numpy.random import default_rng

        self.note = "no loss"
        self.rng = default_rng(0)

    def run(self, amount):
        """Train from fresh weights; return the seconds, and those of it that are no training."""
        from fastbp.plain import PlainNetwork

        # Anything but these two losses gives logistic outputs whose delta is a - y.
        self.network = PlainNetwork(
            self.start[: self.n_layers], self.start[self.n_layers :], activation=self.activation, alpha=0.0,
            loss=self.loss if self.units[-1] > 1 else "log loss of one unit", solver=self.solver,
            learning_rate=self.rate, beta_1=BETA_1, beta_2=BETA_2, epsilon=EPSILON,
        )  # fmt: skip
        begin = time.perf_counter()
        rows = amount * self.batch_size
        while rows > 0:
            order = self.rng.permutation(len(self.X))[:rows]
            self.network.epoch(self.X, self.Y, order, self.batch_size)
            rows -= len(order)
        return time.perf_counter() - begin, 0.0

    def params(self):
        """Return the weights and biases, as those of `start`."""
        return self.network.params


class Torch(Contestant):
    """PyTorch, eager."""

    def prepare(self):
        """Compile, or do once what need not be timed."""
        import torch
        import torch.nn.functional as F

        torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)
        self.torch, self.F = torch, F
        self.inputs = torch.from_numpy(self.X)
        # Cross entropy is faster with class numbers than with rows of 0 and 1.
        numbers = self.loss == "log_loss" and self.units[-1] > 1
        self.targets = torch.from_numpy(self.y if numbers else self.Y)
        self.act = torch.relu if self.activation == "relu" else torch.sigmoid
        # As nn.Linear keeps them: weights of shape (fan_out, fan_in).
        self.first = [torch.from_numpy(p.T.copy()) for p in self.start]
        self.weights = [p.clone() for p in self.first]
        self.make_step()
        self.per_epoch = False
        self.run(2)

    def make_step(self):
        """Build the module and warm the step up."""
        torch = self.torch
        layers = []
        for layer, (fan_in, fan_out) in enumerate(zip(self.units[:-1], self.units[1:], strict=True)):
            linear = torch.nn.Linear(fan_in, fan_out)
            linear.weight = torch.nn.Parameter(self.weights[layer])
            linear.bias = torch.nn.Parameter(self.weights[self.n_layers + layer])
            layers += [linear, torch.nn.ReLU() if self.activation == "relu" else torch.nn.Sigmoid()]
        self.module = torch.nn.Sequential(*layers[:-1])
        self.loss_of_batch = lambda x, target: self._loss(self.module(x), target)

    def _loss(self, z, target):
        if self.loss == "squared_error":
            return self.F.mse_loss(self.torch.sigmoid(z), target, reduction="sum") * (0.5 / self.batch_size)
        if self.units[-1] == 1:
            return self.F.binary_cross_entropy_with_logits(z, target)
        return self.F.cross_entropy(z, target)

    def _optimizer(self):
        parameters = self.module.parameters()
        if self.solver == "adam":
            return self.torch.optim.Adam(parameters, lr=self.rate, betas=(BETA_1, BETA_2), eps=EPSILON, fused=True)
        # For so few parameters the plain loop over them is faster than `fused` and `foreach`.
        return self.torch.optim.SGD(parameters, lr=self.rate, foreach=False)

    def reset(self):
        """Go back to the first weights."""
        with self.torch.no_grad():
            for p, q in zip(self.weights, self.first, strict=True):
                p.copy_(q)

    def calibrate(self, seconds):
        """Choose how much to train in one measurement, so that it takes about so long."""
        trial = min(len(self.X) // self.batch_size, 200)
        spent = {}
        for self.per_epoch in (False, True):
            self.run(10)
            spent[self.per_epoch] = min(self.run(trial)[0] for _ in range(3))
        self.per_epoch = spent[True] < spent[False]
        self.note = "order applied per " + ("epoch" if self.per_epoch else "batch")
        return super().calibrate(seconds)

    def _batches(self, amount):
        size = self.batch_size
        while amount > 0:
            order = self.torch.randperm(len(self.inputs))[: amount * size]
            amount -= len(order) // size
            if self.per_epoch:
                inputs = self.inputs.index_select(0, order).split(size)
                yield from zip(inputs, self.targets.index_select(0, order).split(size), strict=True)
            else:
                for rows in order.split(size):
                    yield self.inputs.index_select(0, rows), self.targets.index_select(0, rows)

    def run(self, amount):
        """Train from fresh weights; return the seconds, and those of it that are no training."""
        self.reset()
        optimizer = self._optimizer()
        begin = time.perf_counter()
        total = 0.0
        for x, target in self._batches(amount):
            optimizer.zero_grad()
            loss = self.loss_of_batch(x, target)
            loss.backward()
            optimizer.step()
            total += loss.item()  # on a CPU nothing waits for this; adding tensors up takes longer
        return time.perf_counter() - begin, 0.0

    def params(self):
        """Return the weights and biases, as those of `start`."""
        return [p.detach().numpy().T for p in self.weights]


class TorchCompile(Torch):
    """PyTorch, the whole step compiled as one graph.

    The step is written with `torch.func`: of modules and optimizers, `torch.compile` makes several graphs with Python
    between them, which was two to five times as slow on small networks.
    """

    def make_step(self):
        """Compile the whole step, or what of it can be compiled."""
        torch = self.torch
        self.moments = [[torch.zeros_like(p) for p in self.weights] for _ in range(2)]
        self.steps, self.total = torch.zeros(()), torch.zeros(())
        try:
            torch._inductor.config.cpp_wrapper = True  # calls the kernels from C++
            self.step = torch.compile(self._step, fullgraph=True, dynamic=False)
            self.run(2)
            self.note = "whole step in one graph"
        except Exception as error:
            torch._inductor.config.cpp_wrapper = False
            torch._dynamo.reset()
            self.step = None
            super().make_step()
            self.loss_of_batch = torch.compile(self.loss_of_batch, dynamic=False)
            self.note = f"FALLBACK, loss and gradient compiled, eager fused optimizer ({type(error).__name__})"

    def _step(self, rows):
        torch, n = self.torch, self.n_layers
        x, target = self.inputs.index_select(0, rows), self.targets.index_select(0, rows)

        def loss_of(weights):
            a = x
            for layer in range(n):
                a = self.F.linear(a, weights[layer], weights[n + layer])
                a = self.act(a) if layer < n - 1 else a
            return self._loss(a, target)

        grads, loss = torch.func.grad_and_value(loss_of)(self.weights)
        if self.solver == "sgd":
            for p, g in zip(self.weights, grads, strict=True):
                p.sub_(g, alpha=self.rate)
        else:
            self.steps.add_(1)
            size = self.rate * torch.sqrt(1 - BETA_2**self.steps) / (1 - BETA_1**self.steps)
            for p, g, m, v in zip(self.weights, grads, *self.moments, strict=True):
                m.lerp_(g, 1 - BETA_1)
                v.mul_(BETA_2).addcmul_(g, g, value=1 - BETA_2)
                p.sub_(size * m / (v.sqrt() + EPSILON))
        self.total.add_(loss)

    def calibrate(self, seconds):
        """Choose how much to train in one measurement, so that it takes about so long."""
        return Contestant.calibrate(self, seconds)

    def run(self, amount):
        """Train from fresh weights; return the seconds, and those of it that are no training."""
        if self.step is None:
            return super().run(amount)
        self.reset()
        for moment in self.moments:
            for p in moment:
                p.zero_()
        self.steps.zero_()
        begin = time.perf_counter()
        self.total.zero_()
        while amount > 0:
            order = self.torch.randperm(len(self.inputs))[: amount * self.batch_size]
            amount -= len(order) // self.batch_size
            for rows in order.split(self.batch_size):
                self.step(rows)
        self.total.item()
        return time.perf_counter() - begin, 0.0


class Jax(Contestant):
    """JAX, a whole epoch in one jitted scan."""

    def prepare(self):
        """Compile, or do once what need not be timed."""
        import jax
        import numpy as np

        self.jax, self.rng = jax, np.random.default_rng(0)
        self.per_amount = len(self.X) // self.batch_size
        self.inputs, self.targets = jax.numpy.asarray(self.X), jax.numpy.asarray(self.Y)
        # Sorting random keys, as JAX shuffles, can take longer than the training of a small network. Unrolled
        # steps save the scan's own cost, which is seen in small batches only.
        work = self.batch_size * sum(a * b for a, b in zip(self.units[:-1], self.units[1:], strict=True))
        unrolled = (1, 4, 16) if work < 2e6 else (1,)
        self.ways = {("JAX", 1): self._epoch(True, 1)} | {("NumPy", u): self._epoch(False, u) for u in unrolled}
        for way in self.ways:
            self._try(way)

    def _try(self, way):
        self.way = way
        return self.run(1)[0]

    def _loss(self, params, x, target):
        jax, n = self.jax, self.n_layers
        for layer in range(n):
            z = x @ params[layer] + params[n + layer]
            x = jax.nn.relu(z) if self.activation == "relu" else jax.nn.sigmoid(z)
        if self.loss == "squared_error":
            return 0.5 * ((x - target) ** 2).sum() / self.batch_size
        if self.units[-1] == 1:
            return (jax.nn.softplus(z) - target * z).mean()
        return (jax.nn.logsumexp(z, axis=1) - (target * z).sum(axis=1)).mean()

    def _step(self, state, inputs, targets):
        params, first, second, steps = state
        loss, grads = self.jax.value_and_grad(self._loss)(params, inputs, targets)
        steps = steps + 1
        if self.solver == "sgd":
            return ([p - self.rate * g for p, g in zip(params, grads, strict=True)], first, second, steps), loss
        first = [BETA_1 * m + (1 - BETA_1) * g for m, g in zip(first, grads, strict=True)]
        second = [BETA_2 * v + (1 - BETA_2) * g * g for v, g in zip(second, grads, strict=True)]
        size = self.rate * self.jax.numpy.sqrt(1 - BETA_2**steps) / (1 - BETA_1**steps)
        params = [
            p - size * m / (self.jax.numpy.sqrt(v) + EPSILON) for p, m, v in zip(params, first, second, strict=True)
        ]
        return (params, first, second, steps), loss

    def _epoch(self, shuffle, unroll):
        jax = self.jax
        n = len(self.X)

        def epoch(state, seed, inputs, targets):
            order = jax.random.permutation(jax.random.key(seed), n) if shuffle else seed

            def step(state, rows):
                x, target = (a.at[rows].get(mode="promise_in_bounds") for a in (inputs, targets))
                return self._step(state, x, target)

            state, losses = jax.lax.scan(step, state, order.reshape(-1, self.batch_size), unroll=unroll)
            return state, losses.mean()

        return jax.jit(epoch, donate_argnums=0)

    def run(self, amount):
        """Train from fresh weights; return the seconds, and those of it that are no training."""
        jnp, epoch = self.jax.numpy, self.ways[self.way]
        params = [jnp.array(p) for p in self.start]
        zeros = [jnp.zeros_like(p) for p in params] if self.solver == "adam" else []
        state = self.jax.block_until_ready((params, zeros, [jnp.zeros_like(p) for p in zeros], jnp.float32(0)))
        begin = time.perf_counter()
        for number in range(amount):
            order = number if self.way[0] == "JAX" else self.rng.permutation(len(self.X)).astype("int32")
            state, loss = epoch(state, order, self.inputs, self.targets)
        loss.block_until_ready()
        spent = time.perf_counter() - begin
        self.last = state[0]
        return spent, 0.0

    def calibrate(self, seconds):
        """Choose how much to train in one measurement, so that it takes about so long."""
        spent = {way: min(self._try(way) for _ in range(3)) for way in self.ways}
        self.way = min(spent, key=spent.get)
        self.note = f"order from {self.way[0]}, unrolled {self.way[1]}"
        return super().calibrate(seconds)

    def params(self):
        """Return the weights and biases, as those of `start`."""
        return self.last


class Peak:
    """What the cores can do: fused multiply-adds in registers, nothing else."""

    note = ""

    def __init__(self, job):
        import common

        self.work, self.flops = common.register_work("float32", job["threads"])

    def measure(self):
        """Return the GFLOP/s of the best of several calls."""
        best = float("inf")
        for _ in range(20):
            begin = time.perf_counter()
            self.work()
            best = min(best, time.perf_counter() - begin)
        return self.flops / best / 1e9


MAKE = {
    "fastbp": Fastbp, "PyTorch": Torch, "torch.compile": TorchCompile, "JAX": Jax, "scikit-learn": ScikitLearn,
    "NumPy": NumPy, "peak": Peak,
}  # fmt: skip


# --- The race -------------------------------------------------------------------------------------------------


def write_data(folder, workload, n_samples, real):
    """Write what all contestants of a workload read: inputs, labels, targets, first weights."""
    import numpy as np

    from fastbp.activations import get_activation
    from fastbp.network import initial_parameters

    rng = np.random.default_rng(0)
    n_classes = max(workload.units[-1], 2)
    X = rng.random((n_samples, workload.units[0]), dtype=np.float32)
    y = rng.permutation(np.arange(n_samples) % n_classes)
    if real is not None and workload.units[0] == 784:
        X, y = (real[0][:n_samples] / np.float32(255)).astype(np.float32), real[1][:n_samples].astype(np.int64)
    Y = y[:, None] if n_classes == 2 else np.eye(n_classes)[y]
    factors = [get_activation(workload.activation).init_factor] * (len(workload.units) - 1)
    coefs, intercepts = initial_parameters(workload.units, factors, np.random.RandomState(0), np.float32)
    np.save(folder / "X.npy", X)
    np.save(folder / "labels.npy", y)
    np.save(folder / "targets.npy", Y.astype(np.float32))
    np.savez(folder / "start.npz", *coefs, *intercepts)


def compare_work(workers, workload, bound, say):
    """Have each train one epoch, and return the names of those that did something else than the first.

    The order of samples is another for each: with random labels that alone changes how far the weights move by up
    to a tenth, and the loss by some thousandths, or by a tenth with real labels or few batches in an epoch.
    """
    checks = in_turns(workers, 1, ("check",), say)
    found = {name: answer[0] for name, answer in checks.items() if not isinstance(answer, Failed)}
    shown = ", ".join(f"{name} {loss:.4f} {moved:.3f}" for name, (loss, moved) in found.items())
    say(f"loss after one epoch, and how far the weights have moved: {shown}")
    if workload.loss == "squared_error":
        found.pop("scikit-learn", None)
    first_loss, first_moved = next(iter(found.values()), (1.0, 1.0))
    return [
        name
        for name, (loss, moved) in found.items()
        if abs(loss / first_loss - 1) > bound or abs(moved / first_moved - 1) > 0.2
    ]


def race(name, workload, threads, options, peak, real, failed):
    """Race one workload at one number of threads.

    Returns
    -------
    dict
        Of each contestant: best and median samples per second and a note, or why there are none; under "peak" the
        GFLOP/s that the cores reached in these turns.
    """
    say = sayer(f"{name}, {threads} thread(s)")
    results = dict(failed)
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), workload, SAMPLES[name], real)
        job = {**workload._asdict(), "threads": threads, "folder": folder}
        workers = {
            contestant: Worker(__file__, {**job, "contestant": contestant}, options.verbose)
            for contestant in options.contestants
            if contestant not in failed
        }
        try:
            failures = start(workers, say)
            few = SAMPLES[name] < 20 * workload.batch_size
            different = compare_work(workers, workload, 0.2 if real or few else 0.02, say)
            notes = in_turns(workers, 1, ("calibrate", options.seconds), say)
            measured = in_turns({**workers, "peak": peak}, options.rounds, ("measure",), say)
        finally:
            for worker in workers.values():
                worker.close()
    results["peak"] = max(measured.pop("peak"))
    for contestant, answers in {**notes, **measured, **failures}.items():
        if isinstance(answers, Failed):
            results[contestant] = f"failed: {answers}"
            continue
        best = min(long for _, long, _ in answers) - min(short for _, _, short in answers)
        results[contestant] = {
            "best": answers[0][0] / best,
            "median": answers[0][0] / statistics.median(long - short for _, long, short in answers),
            "note": "; ".join(filter(None, [notes[contestant][0], "OTHER WORK" if contestant in different else ""])),
        }
    for contestant in options.contestants:
        result = results[contestant]
        say(f"{contestant}: " + (result if isinstance(result, str) else f"{result['best']:,.0f}/s  {result['note']}"))
    return results


def best_peer(results, name, threads, figure):
    """Return name and figure of the best peer with no more threads than these."""
    rates = {
        f"{peer}{'' if t == threads else f' on {t}'}": result[figure]
        for t, by_workload in results.items()
        for peer, result in by_workload.get(name, {}).items()
        if t <= threads and peer != "fastbp" and isinstance(result, dict)
    }
    peer = max(rates, key=rates.get, default=None)
    return (peer, rates[peer]) if peer else (None, None)


def count_work(workload):
    """Return the floating point operations of a training step, per sample: the first layer carries no delta back."""
    products = [a * b for a, b in zip(workload.units[:-1], workload.units[1:], strict=True)]
    return 6 * sum(products) - 2 * products[0]


def report(results, workloads, options):
    """Yield the lines of the tables, as Markdown."""
    peaks = {t: max((r["peak"] for r in by.values()), default=float("nan")) for t, by in results.items()}
    yield from (f"FMA peak on {t} core(s): {peak:.1f} GFLOP/s." for t, peak in peaks.items())
    for threads, by_workload in results.items():
        yield ""
        yield f"## {threads} thread(s), samples per second"
        yield ""
        names = options.contestants
        yield f"| workload | {' | '.join(names)} | GFLOP/s | % of peak | ratio | of medians | best peer |"
        yield "|---" + "|---:" * (len(names) + 4) + "|---|"
        for name, result in by_workload.items():
            rates = [f"{result[c]['best']:,.0f}" if isinstance(result[c], dict) else "-" for c in names]
            yield f"| {name} | {' | '.join(rates)} | {_figures(results, workloads, name, threads, peaks)} |"
    yield ""
    yield (
        "GFLOP/s, % of peak and ratio are fastbp's, inputs that are zero counted like others; the ratio is to the "
        "best peer, on as many threads or fewer. "
        "`*`: in these turns the cores reached less than 90 % of their peak, other programs had them."
    )
    yield from _notes(results)
    yield from _targets(results, workloads, peaks)


def _figures(results, workloads, name, threads, peaks):
    fast = results[threads][name].get("fastbp")
    if not isinstance(fast, dict):
        return "- | - | - | - | -"
    gflops = fast["best"] * count_work(workloads[name]) / 1e9
    busy = "*" if results[threads][name]["peak"] < 0.9 * peaks[threads] else ""
    cells = [f"{gflops:.1f}", f"{gflops / peaks[threads]:.0%}{busy}"]
    peer, rate = best_peer(results, name, threads, "best")
    if not peer:
        return " | ".join([*cells, "-", "-", "-"])
    median = fast["median"] / best_peer(results, name, threads, "median")[1]
    return " | ".join([*cells, f"{fast['best'] / rate:.2f}", f"{median:.2f}", peer])


def _notes(results):
    notes = {}
    for threads, by_workload in results.items():
        for name, result in by_workload.items():
            for contestant, found in result.items():
                note = found["note"] if isinstance(found, dict) else found if isinstance(found, str) else ""
                if note:
                    notes.setdefault((contestant, note), []).append(f"{name} ({threads})")
    total = sum(len(by_workload) for by_workload in results.values())
    if notes:
        yield ""
        yield "Notes, with the number of threads in brackets:"
        yield ""
    for (contestant, note), where in sorted(notes.items()):
        yield f"- {contestant}: {note}: {'all' if len(where) == total else ', '.join(where)}."


def _targets(results, workloads, peaks):
    yield ""
    yield "## Targets"
    yield ""
    yield "| workload | threads | ratio wanted | reached | % of peak wanted | reached | |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for name, wanted in TARGETS.items():
        for threads, (ratio, share) in wanted.items():
            fast = results.get(threads, {}).get(name, {}).get("fastbp")
            peer, rate = best_peer(results, name, threads, "best")
            if not isinstance(fast, dict) or not peer:
                continue
            reached = fast["best"] / rate
            reached_share = fast["best"] * count_work(workloads[name]) / 1e9 / peaks[threads]
            met = "met" if reached >= ratio and reached_share >= share else "**missed**"
            yield (
                f"| {name} | {threads} | {ratio} | {reached:.2f} | {f'{share:.0%}' if share else ''} | "
                f"{reached_share:.0%} | {met} |"
            )


def machine(packages):
    """Yield lines that say what the figures depend on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = models[0] if models else model
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"- {model}, {n_cores} cores; {platform.system()}, {platform.machine()}, Python {platform.python_version()}"
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    yield f"- {', '.join(found)}"
    yield f"- {datetime.date.today().isoformat()}"


def main(arguments=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement, about")
    parser.add_argument("--workloads", nargs="+", choices=SAMPLES, default=list(SAMPLES), metavar="NAME")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--data", metavar="DIR", help="folder with real MNIST, for the workloads with 784 inputs")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md even if only a part was run")
    parser.add_argument("--verbose", action="store_true", help="show what the contestants print")
    options = parser.parse_args(arguments)
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from common import WORKLOADS

    real = None
    if options.data:
        from fastbp.datasets import load_mnist

        real = load_mnist(options.data)[:2]
    missing = {name: "not installed" for name in options.contestants if not find_spec(CONTESTANTS[name])}
    for name in missing:
        print(f"{name} is not installed: left out", file=sys.stderr)
    results = {}
    for threads in sorted(set(options.threads)):
        results[threads] = {}
        peak = Worker(__file__, {"contestant": "peak", "threads": threads}, options.verbose)
        try:
            peak.answer()
            for name in options.workloads:
                results[threads][name] = race(name, WORKLOADS[name], threads, options, peak, real, missing)
        finally:
            peak.close()
    packages = ["numpy", "numba", "scikit-learn", "torch", "jax", "jaxlib"]
    lines = [
        "# The race", "",
        f"`python benchmarks/race.py`, {options.rounds} rounds of about {options.seconds:g} s, the best of each; "
        f"{'real MNIST where there are 784 inputs, else ' if options.data else ''}random dense data. "
        "The script says what is compared.", "", *machine(packages), "", *report(results, WORKLOADS, options),
    ]  # fmt: skip
    print("\n".join(lines))
    full = all(
        len(getattr(options, name)) == len(parser.get_default(name)) for name in ("threads", "workloads", "contestants")
    )
    if options.write or (full and not options.data and options.rounds >= parser.get_default("rounds") and not missing):
        RESULTS.write_text("\n".join(lines) + "\n")
        print(f"wrote {RESULTS.name}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        job = json.loads(sys.argv[2])
        serve(job, MAKE[job.pop("contestant")])
    else:
        main()
