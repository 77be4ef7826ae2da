"""The contestants of the race: one class for each library, which is imported only when it is used.

The docstring of `race` describes what they have in common and what is measured.
"""

import time
from functools import partial
from pathlib import Path

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
# Activations of the hidden layers that all contestants have; scikit-learn and plain NumPy lack the others.
COMMON_ACTIVATIONS = ("identity", "logistic", "tanh", "relu")
ACTIVATIONS = (*COMMON_ACTIVATIONS, "elu", "gelu", "leaky_relu", "selu", "silu")


def activate(name, z):
    """Return the activations of a hidden layer, by which the results are checked."""
    import numpy as np
    from scipy.special import expit, ndtr

    if name in ("elu", "selu"):
        alpha, scale = (1.0, 1.0) if name == "elu" else (1.6732632423543772, 1.0507009873554805)
        return scale * np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0)))
    return {
        "identity": lambda: z, "logistic": lambda: expit(z), "tanh": lambda: np.tanh(z),
        "relu": lambda: np.maximum(z, 0), "gelu": lambda: z * ndtr(z), "silu": lambda: z * expit(z),
        "leaky_relu": lambda: np.where(z > 0, z, 0.01 * z),
    }[name]()  # fmt: skip


class Contestant:
    """Base class: a library that trains one workload.

    The attributes are those of `common.Workload`, and the learning rate `rate`. `run(amount)` trains from the initial
    weights. It returns the seconds that this took, and how many of them are not training.
    """

    note = ""
    per_amount = 1  # number of batches in one unit of `amount`

    def __init__(self, job):
        import numpy as np

        self.__dict__.update(job)
        folder = Path(self.folder)
        self.X, self.y, self.Y = (np.load(folder / f"{name}.npy") for name in ("X", "labels", "targets"))
        with np.load(folder / "start.npz") as start:
            self.start = [start[name] for name in start.files]  # weights of each layer, then biases
        self.n_layers = len(self.units) - 1
        self.prepare()

    def prepare(self):
        """Compile, and do everything else that is not timed."""

    def calibrate(self, seconds):
        """Choose the amount of training of one measurement, so that it takes about `seconds`."""
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
        """Smallest amount that is long enough to be timed."""
        return 1 if self.per_amount > 1 else min(20, len(self.X) // self.batch_size)

    def measure(self):
        """Return the number of samples, the seconds, and how many of the seconds are not training."""
        return [self.amount * self.per_amount * self.batch_size, *self.run(self.amount)]

    def one_epoch(self):
        """Train for one epoch."""
        self.run(len(self.X) // self.batch_size // self.per_amount)

    def check(self):
        """Train for one epoch; return the loss on part of the data, and the distance from the initial parameters."""
        import numpy as np

        self.one_epoch()
        params = [np.asarray(p, dtype=np.float64) for p in self.params()]
        a, y = self.X[:2000].astype(np.float64), self.Y[:2000]
        for layer in range(self.n_layers):
            z = a @ params[layer] + params[self.n_layers + layer]
            a = activate(self.activation if layer < self.n_layers - 1 else "logistic", z)
        if self.loss == "squared_error":
            loss = 0.5 * ((a - y) ** 2).sum() / len(y)
        elif self.units[-1] == 1:
            loss = np.mean(np.logaddexp(0, z) - y * z)
        else:
            loss = np.mean(np.logaddexp.reduce(z, axis=1) - (y * z).sum(axis=1))
        moved = sum(((p - q) ** 2).sum() for p, q in zip(params, self.start, strict=True)) ** 0.5
        return [float(loss), float(moved)]


class Estimator(Contestant):
    """A scikit-learn estimator: a fit of several epochs minus a fit of one epoch."""

    def prepare(self):
        """Compile, and do everything else that is not timed."""
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
            warnings.simplefilter("ignore")  # the number of epochs is fixed
            begin = time.perf_counter()
            self.estimator.set_params(max_iter=epochs).fit(X, y)
            return time.perf_counter() - begin

    def calibrate(self, seconds):
        """Choose the amount of training of one measurement, so that it takes about `seconds`."""
        # A slow estimator gets a shorter epoch, of all classes. 50 batches are enough to estimate its speed.
        fewest = max(2, -(-self.units[-1] // self.batch_size))
        batches = min(max(50, fewest), self.per_amount)
        rows = slice(0, batches * self.batch_size)
        rate = 2 * batches / max(self._fit(3, rows) - self._fit(1, rows), 1e-6)
        n_batches = min(self.per_amount, max(fewest, round(seconds * rate)))
        self.X, self.y = self.X[: n_batches * self.batch_size], self.y[: n_batches * self.batch_size]
        self.per_amount = n_batches
        return super().calibrate(seconds)

    def run(self, amount):
        """Train from the initial weights; return the seconds, and how many of them are not training."""
        short = self._fit(1)
        return self._fit(1 + amount), short

    def one_epoch(self):
        """Train for one epoch."""
        self._fit(1)

    def params(self):
        """Return the weights of all layers, then the biases, in the shapes of `start`."""
        return [*self.estimator.coefs_, *self.estimator.intercepts_]


class Fastbp(Estimator):
    """fastbp, with its public estimator."""

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
        """Compile, and do everything else that is not timed."""
        from numpy.random import default_rng

        self.note = "no loss"
        self.rng = default_rng(0)

    def run(self, amount):
        """Train from the initial weights; return the seconds, and how many of them are not training."""
        from fastbp.plain import PlainNetwork

        # Any other name than these two losses gives logistic outputs with delta a - y.
        logistic = self.loss == "log_loss" and self.units[-1] == 1
        self.network = PlainNetwork(
            self.start[: self.n_layers], self.start[self.n_layers :], activation=self.activation, alpha=0.0,
            loss="log loss of one unit" if logistic else self.loss, solver=self.solver, learning_rate=self.rate,
            beta_1=BETA_1, beta_2=BETA_2, epsilon=EPSILON,
        )  # fmt: skip
        begin = time.perf_counter()
        rows = amount * self.batch_size
        while rows > 0:
            order = self.rng.permutation(len(self.X))[:rows]
            self.network.epoch(self.X, self.Y, order, self.batch_size)
            rows -= len(order)
        return time.perf_counter() - begin, 0.0

    def params(self):
        """Return the weights of all layers, then the biases, in the shapes of `start`."""
        return self.network.params


class Torch(Contestant):
    """PyTorch, eager."""

    def prepare(self):
        """Compile, and do everything else that is not timed."""
        import torch
        import torch.nn.functional as F

        torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)
        self.torch, self.F = torch, F
        self.inputs = torch.from_numpy(self.X)
        # Cross entropy is faster with class indices than with one-hot rows.
        numbers = self.loss == "log_loss" and self.units[-1] > 1
        self.targets = torch.from_numpy(self.y if numbers else self.Y)
        names = {
            "identity": "Identity", "logistic": "Sigmoid", "tanh": "Tanh", "relu": "ReLU", "elu": "ELU", "gelu": "GELU",
            "leaky_relu": "LeakyReLU", "selu": "SELU", "silu": "SiLU",
        }  # fmt: skip
        self.act = getattr(torch.nn, names[self.activation])()
        # The layout of nn.Linear: weights of shape (fan_out, fan_in).
        self.first = [torch.from_numpy(p.T.copy()) for p in self.start]
        self.weights = [p.clone() for p in self.first]
        self.make_step()
        self.per_epoch = False
        self.run(2)

    def make_step(self):
        """Create the module and the function that computes the loss of a batch."""
        torch = self.torch
        layers = []
        for layer, (fan_in, fan_out) in enumerate(zip(self.units[:-1], self.units[1:], strict=True)):
            linear = torch.nn.Linear(fan_in, fan_out)
            linear.weight = torch.nn.Parameter(self.weights[layer])
            linear.bias = torch.nn.Parameter(self.weights[self.n_layers + layer])
            layers += [linear, self.act]
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
        # For so few parameters a plain loop is faster than `fused` and `foreach`.
        return self.torch.optim.SGD(parameters, lr=self.rate, foreach=False)

    def reset(self):
        """Restore the initial weights."""
        with self.torch.no_grad():
            for p, q in zip(self.weights, self.first, strict=True):
                p.copy_(q)

    def calibrate(self, seconds):
        """Choose the amount of training of one measurement, so that it takes about `seconds`."""
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
        """Train from the initial weights; return the seconds, and how many of them are not training."""
        self.reset()
        optimizer = self._optimizer()
        begin = time.perf_counter()
        total = 0.0
        for x, target in self._batches(amount):
            optimizer.zero_grad()
            loss = self.loss_of_batch(x, target)
            loss.backward()
            optimizer.step()
            total += loss.item()  # needs no synchronization on a CPU, and is faster than a sum of tensors
        return time.perf_counter() - begin, 0.0

    def params(self):
        """Return the weights of all layers, then the biases, in the shapes of `start`."""
        return [p.detach().numpy().T for p in self.weights]


class TorchCompile(Torch):
    """PyTorch, with the whole training step compiled as one graph.

    The step is written with `torch.func`. From modules and optimizers, `torch.compile` builds several graphs with
    Python code between them, which was two to five times as slow on small networks.
    """

    def make_step(self):
        """Compile the whole step, or only loss and gradient if that fails."""
        torch = self.torch
        self.moments = [[torch.zeros_like(p) for p in self.weights] for _ in range(2)]
        self.steps, self.total = torch.zeros(()), torch.zeros(())
        try:
            torch._inductor.config.cpp_wrapper = True  # kernels are called from C++
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
        """Choose the amount of training of one measurement, so that it takes about `seconds`."""
        return Contestant.calibrate(self, seconds)

    def run(self, amount):
        """Train from the initial weights; return the seconds, and how many of them are not training."""
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
    """JAX, with a whole epoch as one jitted scan."""

    def prepare(self):
        """Compile, and do everything else that is not timed."""
        import jax
        import numpy as np

        self.jax, self.rng = jax, np.random.default_rng(0)
        self.per_amount = len(self.X) // self.batch_size
        self.act = getattr(jax.nn, {"logistic": "sigmoid"}.get(self.activation, self.activation))
        if self.activation == "gelu":
            self.act = partial(self.act, approximate=False)
        self.inputs, self.targets = jax.numpy.asarray(self.X), jax.numpy.asarray(self.Y)
        # JAX shuffles by sorting random keys, which can take longer than the training of a small network. Unrolling
        # reduces the overhead of the scan, which matters only for small batches.
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
            x = self.act(z)
        if self.loss == "squared_error":
            return 0.5 * ((jax.nn.sigmoid(z) - target) ** 2).sum() / self.batch_size
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
        """Train from the initial weights; return the seconds, and how many of them are not training."""
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
        """Choose the amount of training of one measurement, so that it takes about `seconds`."""
        spent = {way: min(self._try(way) for _ in range(3)) for way in self.ways}
        self.way = min(spent, key=spent.get)
        self.note = f"order from {self.way[0]}, unrolled {self.way[1]}"
        return super().calibrate(seconds)

    def params(self):
        """Return the weights of all layers, then the biases, in the shapes of `start`."""
        return self.last


class Peak:
    """The FMA peak of the cores, with fused multiply-adds in registers only."""

    note = ""

    def __init__(self, job):
        import common

        self.threads = job["threads"]
        common.register_work("float32", self.threads)

    def measure(self):
        """Return the GFLOP/s of the fastest and of the median of many short calls."""
        import common

        seconds = common.register_seconds("float32", self.threads)
        return [common.peak_gflops("float32", self.threads, s) for s in (seconds[0], seconds[len(seconds) // 2])]


MAKE = {
    "fastbp": Fastbp, "PyTorch": Torch, "torch.compile": TorchCompile, "JAX": Jax, "scikit-learn": ScikitLearn,
    "NumPy": NumPy, "peak": Peak,
}  # fmt: skip
