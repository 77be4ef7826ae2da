from dataclasses import asdict, dataclass, replace
from itertools import cycle, pairwise, product

import numpy as np
import pytest
import reference
from guards import Guards, run_alone

import fastbp
from fastbp import BackpropClassifier
from fastbp.activations import (
    ACTIVATIONS,
    Activation,
    Exp,
    Gaussian,
    Identity,
    Logistic,
    Relu,
    Softmax,
    Tanh,
    Threshold,
)
from fastbp.codegen.bitmask import MASK_BITS
from fastbp.codegen.target import CACHE_LINE, lanes
from fastbp.codegen.tiles import MR, NV
from fastbp.dropout import Dropout
from fastbp.kernels import backprop, plan, prediction, session, threads, workers
from fastbp.kernels.addresses import gather_address, kernel_addresses
from fastbp.kernels.epochs import N_WATCHED
from fastbp.kernels.few import update_few
from fastbp.kernels.network import make_network
from fastbp.kernels.online import is_small, train_online
from fastbp.kernels.plan import (
    BLOCK_LINES,
    BLOCK_ROWS,
    BLOCK_TILES,
    LARGE,
    MAX_CHUNK_ROWS,
    MEDIUM,
    THREAD_ROWS,
    chunk_rows,
    piece_columns,
    scratch_size,
)
from fastbp.kernels.records import Data, Epochs, NetArrays, Task, TrainingArrays
from fastbp.kernels.session import OptimizerState, Session
from fastbp.kernels.workspace import allocate_net, read_layers
from fastbp.losses import LOSSES
from fastbp.optimizers import ADAM, SOLVERS, decay_rates, step_sizes
from fastbp.prediction import Predictor

DTYPES = [np.float32, np.float64]
HIDDEN = [Identity(), Logistic(slope=2.0), Tanh(), Relu()]
# Loss and output activation.
OUTPUTS = [
    ("log_loss", Softmax()),
    ("log_loss", Logistic()),
    *(("squared_error", activation) for activation in HIDDEN),
    ("poisson", Exp()),
    ("absolute_error", Identity()),
    ("huber", Tanh()),
    ("quantile", Logistic(slope=2.0)),
]
# Where the derivative jumps.
KINKS = {"piecewise_linear": (-1.0, 1.0), **dict.fromkeys(["relu", "leaky_relu", "elu", "selu"], (0.0,))}
UNITS = [[5, 3], [5, 7, 3], [5, 7, 4, 3], [5, 7, 4, 6, 3]]
# Solver; momentum and Nesterov, or beta_1, beta_2 and epsilon.
OPTIMIZERS = {
    "plain": ("sgd", (0.0, 0.0, 0.0)),
    "momentum": ("sgd", (0.9, 0.0, 0.0)),
    "nesterov": ("sgd", (0.9, 1.0, 0.0)),
    "adam": ("adam", (0.9, 0.999, 1e-8)),
    "adamw": ("adamw", (0.9, 0.999, 1e-8)),
}
WEIGHT_DECAY = 0.3  # of adamw
SEED = 0x0123_4567_89AB_CDEF  # of dropout


@dataclass
class Problem:
    """A network and samples for it."""

    activations: list[Activation]
    loss: str
    coefs: list[np.ndarray]
    intercepts: list[np.ndarray]
    X: np.ndarray
    Y: np.ndarray
    weight: np.ndarray
    alpha: float = 0.0
    loss_parameters: np.ndarray | float = 0.0  # for each output
    transpose_narrow: bool = True
    dropout: tuple = ()  # the rate of each hidden layer

    @property
    def dtype(self):
        return self.coefs[0].dtype

    @property
    def network(self):
        units = [self.X.shape[1], *(coef.shape[1] for coef in self.coefs)]
        batch_size = 2 if self.transpose_narrow else None
        return make_network(
            units, self.activations, self.dtype, batch_size, dropout=[Dropout(rate) for rate in self.dropout]
        )

    @property
    def pairs(self):
        """The activations as tests/reference.py takes them."""
        return [(f.name, asdict(f)) for f in self.activations]

    def naive(self, samples=slice(None), step=0):
        """Loss and gradients of one batch in float64."""
        weight = self.weight[samples] if self.weight.size else None
        X, Y = self.X[samples].astype(np.float64), self.Y[samples].astype(np.float64)
        network = self.coefs, self.intercepts, self.pairs
        masks = None
        if self.dropout:
            sizes = [len(b) for b in self.intercepts[:-1]]
            masks = [
                reference.mask_naive(SEED, step, l, len(X), n, rate)
                for l, (n, rate) in enumerate(zip(sizes, self.dropout, strict=True))
            ]
        return reference.backprop_naive(*network, self.loss, X, Y, self.alpha, weight, self.loss_parameters, masks)

    def distance_from_kinks(self):
        """How near to a kink of its activation or of the loss any unit comes."""
        layers, pre_activations = reference.forward_naive(self.coefs, self.intercepts, self.pairs, self.X)
        smallest = np.inf
        for z, activation in zip(pre_activations, self.activations, strict=True):
            for kink in KINKS.get(activation.name, ()):
                smallest = min(smallest, np.abs(z - kink).min())
        if self.loss in ("absolute_error", "huber", "quantile"):
            kinks = self.loss_parameters if self.loss == "huber" else 0.0
            smallest = min(smallest, np.abs(np.abs(layers[-1] - self.Y) - kinks).min())
        return smallest


def make(
    units, hidden=None, loss="log_loss", output=None, *,
    n=9, dtype=np.float64, weighted=False, alpha=0.0, seed=0,
):  # fmt: skip
    """A problem with random numbers; tanh and softmax by default."""
    output = output or Softmax()
    hidden = hidden if isinstance(hidden, list) else [hidden or Tanh()] * (len(units) - 2)
    rng = np.random.default_rng(seed)
    shapes = list(pairwise(units))
    bounds = [np.sqrt(6 / sum(shape)) for shape in shapes]
    coefs = [rng.uniform(-b, b, shape).astype(dtype) for b, shape in zip(bounds, shapes, strict=True)]
    intercepts = [rng.uniform(-b, b, shape[1]).astype(dtype) for b, shape in zip(bounds, shapes, strict=True)]
    X = rng.normal(size=(n, units[0])).astype(dtype)
    if loss == "poisson":
        Y = rng.poisson(1.5, (n, units[-1])).astype(dtype)
    elif loss != "log_loss":
        Y = rng.uniform(0, 1, (n, units[-1])).astype(dtype)
    elif isinstance(output, Softmax):
        Y = np.eye(units[-1], dtype=dtype)[rng.integers(0, units[-1], n)]
    else:
        Y = rng.integers(0, 2, (n, units[-1])).astype(dtype)
    weight = rng.uniform(0.2, 3, n if weighted else 0).astype(dtype)
    # Exact in both types; some errors are above the bounds of huber, and some below.
    loss_parameters = np.linspace(0.25, 0.75, units[-1]).astype(np.float16) if loss in ("huber", "quantile") else 0.0
    return Problem([*hidden, output], loss, coefs, intercepts, X, Y, weight, alpha, loss_parameters)


def guarded_net(problem, n_rows, n_threads, sparse, guards, *, trains=False, update=None, keep_transposes=False):
    """The arrays of a network, between canaries; `update` is a kernel of `few`, for batches of a few samples."""
    few = update is not None
    kernels = kernel_addresses(
        problem.dtype, index_lists=sparse, one_output=problem.network.units[1] == 1, few_rows=few,
        transposes=True, update_few=update,
    )  # fmt: skip
    arrays = allocate_net(
        problem.network, _packed(problem), n_rows, n_threads, kernels, sparse=sparse, trains=trains,
        keep_transposes=keep_transposes, few_rows=few,
    )  # fmt: skip
    return NetArrays(*map(guards.array, arrays))


class Trainer:
    """A problem in training by the kernels, all memory between canaries."""

    def __init__(
        self, problem, *, optimizer=None, rate=0.1, batch_size=None, chunk=None, order=None, sparse=False,
        n_threads=1, kernel=backprop.train, pass_rows=10**6, max_norm=0.0,
        few=0,
    ):  # fmt: skip
        problem = replace(problem, transpose_narrow=problem.transpose_narrow and kernel is not train_online)
        if max_norm > 0:
            kernel = backprop.train_clipped
        network, dtype = problem.network, problem.dtype
        solver, constants = OPTIMIZERS[optimizer] if optimizer else ("sgd", (0.0, 0.0, 0.0))
        order = np.arange(len(problem.X)) if order is None else order
        self.problem, self.network, self.optimizer = problem, network, optimizer
        self.rate = rate if optimizer else 1.0
        self.solver, self.n_threads, self.kernel = solver, n_threads, kernel
        self.batch_size = len(order) if batch_size is None else batch_size
        self.chunk = self.batch_size if chunk is None else chunk
        self.pass_rows = pass_rows
        self.max_norm = max_norm
        self.few = few
        self.n_batches = -(-len(order) // self.batch_size)
        self.guards = guards = Guards()
        self.data = Data(*map(guards.array, (problem.X, problem.Y, problem.weight, order))).as_bytes()
        keeps_grads = self.chunk < self.batch_size or max_norm > 0
        n_blocks = network.n_blocks
        n_norms = -(-n_blocks // network.lanes) * network.lanes if max_norm > 0 else 0
        kind = few, SOLVERS[solver], constants[0] != 0, problem.alpha != 0, n_threads > 1  # whether it prefetches
        update = update_few(*kind) if few else None
        self.net = guarded_net(
            problem,
            self.chunk,
            n_threads,
            sparse,
            guards,
            trains=True,
            update=update,
            keep_transposes=kernel is train_online,
        )
        self.state = TrainingArrays(
            first=guards.zeros(network.n_params, dtype),
            second=guards.zeros(network.n_params if SOLVERS[solver] == ADAM else 0, dtype),
            grads=guards.zeros(network.n_params if keeps_grads else 0, dtype),
            row_loss=guards.zeros(self.chunk, np.float64),
            squares=guards.zeros(n_blocks, np.float64),
            norms=guards.zeros(n_norms, np.float64),
            scratch=guards.zeros(n_threads * scratch_size(network.lanes, network.widest), dtype),
            done=guards.zeros(1, np.int64),
        )
        self.constants = guards.array(constants)
        self.loss_parameters = guards.array(self._loss_parameters())
        self.losses = guards.zeros(self.n_batches, np.float64)

    def run(self, first=0, last=None):
        """Train on a range of batches, all if not given; without an optimizer the parameters stay what they are."""
        last = self.n_batches if last is None else last
        params = self.net.params.copy()
        rates = np.full(last - first, self.rate)
        task = Task(
            loss=LOSSES[self.problem.loss],
            loss_parameters=self.loss_parameters,
            loss_scale=1.0,
            solver=SOLVERS[self.solver],
            constants=self.constants,
            sizes=step_sizes(self.solver, rates, first, 0.9, 0.999),
            decays=decay_rates(self.solver, rates, WEIGHT_DECAY),
            alpha=self.problem.alpha,
            max_grad_norm=self.max_norm,
            batch_size=self.batch_size,
            few=self.few,
            chunk=self.chunk,
            pass_rows=self.pass_rows,
            gather=gather_address(self.problem.X.dtype, self.problem.dtype),
            first_batch=first,
            last_batch=last,
            first_row=0,
            last_row=self.batch_size,
            seed=SEED,
            first_step=first,
        )
        epochs = Epochs(
            n_batches=self.n_batches,
            losses=self.guards.zeros(1, np.float64),
            watch=self.guards.zeros(N_WATCHED, np.float64),
            tol=0.0,
            patience=np.inf,
            twister=np.empty(0, np.uint32),
            draws=np.empty(0, np.uint32),
        )
        args = (self.data, self.net, self.state, task, epochs, self.losses)
        threads.run(self.kernel, args, self.n_threads)
        self.guards.check()
        if self.optimizer is None:
            self.net.params[:] = params
        return self

    def _loss_parameters(self):
        """One number for each output; what pads them to whole vectors may be anything."""
        n, width = self.network.units[-1], self.network.lanes
        padded = np.full(-(-n // width) * width, np.nan, self.problem.dtype)
        padded[:n] = self.problem.loss_parameters
        return padded

    def gradients(self):
        """The mean gradient of the last batch without an optimizer: the velocity of a step of size 1, negated."""
        coef_grads, intercept_grads = self.network.unpack(-self.state.first)
        return [*coef_grads, *intercept_grads]

    def parameters(self):
        coefs, intercepts = self.network.unpack(self.net.params)
        return [*coefs, *intercepts]

    def bits(self):
        """All that training leaves, to be compared bit by bit."""
        return [part.tobytes() for part in (self.net.params, self.state.first, self.state.second, self.losses)]


def assert_close(got, expected, tolerance):
    """Compare lists of arrays, relative to the largest number in each."""
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-3)


# --- gradients ---


@pytest.mark.parametrize(("loss", "output"), OUTPUTS, ids=str)
@pytest.mark.parametrize(("units", "hidden"), [(UNITS[0], None), *product(UNITS[1:], HIDDEN)], ids=str)
def test_gradient(units, hidden, loss, output):
    for weighted, alpha in [(False, 0.0), (True, 0.7)]:
        for seed in range(20):
            problem = make(units, hidden, loss, output, weighted=weighted, alpha=alpha, seed=seed)
            if problem.distance_from_kinks() > 1e-3:
                break
        trainer = Trainer(problem).run()
        value, coef_grads, intercept_grads = problem.naive()
        np.testing.assert_allclose(trainer.losses, [value], rtol=1e-12)
        grads = trainer.gradients()
        assert_close(grads, [*coef_grads, *intercept_grads], 1e-12)
        if weighted:  # without weights: in some directions, below
            assert_close(grads, _central_differences(trainer), 1e-6)


EVERY = [*ACTIVATIONS.values(), Threshold("logistic"), Threshold("tanh"), Threshold("identity")]
EVERY_OUTPUT = [
    *OUTPUTS[:2], *(("squared_error", f) for f in EVERY),
    ("poisson", Exp()), *((loss, Identity()) for loss in ("absolute_error", "huber", "quantile")),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "output"), EVERY_OUTPUT, ids=str)
@pytest.mark.parametrize("hidden", EVERY, ids=str)
def test_gradient_of_everything(hidden, loss, output):
    """Every activation, loss and output, one to four hidden layers, with and without L2 and weights of samples.

    All numbers of the gradient against the naive twin; and, but for thresholds, whose gradient is that of another
    function, the change of the loss in some directions against central differences.
    """
    rng = np.random.default_rng(0)
    smooth = not {"threshold"} & {hidden.name, output.name}
    for depth, weighted, alpha in product(range(1, 5), (False, True), (0.0, 0.7)):
        units = [*[5, 7, 4, 6, 5][: depth + 1], 3]
        for seed in range(40):
            problem = make(units, hidden, loss, output, n=6, weighted=weighted, alpha=alpha, seed=seed)
            if problem.distance_from_kinks() > 1e-4:
                break
        trainer = Trainer(problem).run()
        value, coef_grads, intercept_grads = problem.naive()
        np.testing.assert_allclose(trainer.losses, [value], rtol=1e-12)
        grads = trainer.gradients()
        assert_close(grads, [*coef_grads, *intercept_grads], 1e-11)
        if smooth:
            gradient = trainer.network.pack(grads[: depth + 1], grads[depth + 1 :])
            places = trainer.network.pack(*_ones(trainer.network))
            params, start = trainer.net.params, trainer.net.params.copy()
            for _ in range(3):
                direction = rng.normal(size=params.size) * places
                losses = []
                for h in (1e-5, -1e-5):
                    params[:] = start + h * direction
                    losses.append(trainer.run().losses[0])
                params[:] = start
                slope = (losses[0] - losses[1]) / 2e-5
                # Relative to the max_derivative direction: in this one the loss may hardly change.
                max_derivative = np.linalg.norm(gradient) * np.linalg.norm(direction)
                assert abs(slope - gradient @ direction) <= 1e-6 * max(max_derivative, 1e-3)


def _central_differences(trainer):
    h = 1e-5
    params = trainer.net.params
    # Only where a parameter is, not where padding is.
    places = np.flatnonzero(trainer.network.pack(*_ones(trainer.network)))
    differences = np.zeros_like(params)
    for place in places:
        before = params[place]
        params[place] = before + h
        above = trainer.run().losses[0]
        params[place] = before - h
        below = trainer.run().losses[0]
        params[place] = before
        differences[place] = (above - below) / (2 * h)
    coefs, intercepts = trainer.network.unpack(differences)
    return [*coefs, *intercepts]


def _ones(network):
    return [np.ones(shape) for shape in pairwise(network.units)], [np.ones(n) for n in network.units[1:]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_for_batches_with_every_remainder(dtype):
    nr = NV * lanes(np.dtype(dtype).itemsize)
    units = [3, nr + 5, 2 * BLOCK_ROWS + 1, 4]
    hidden = [Relu(), Logistic(slope=0.5)]
    for n in [*range(1, 2 * MR + 2), 31, 32, 33, 100]:
        problem = make(units, hidden, n=n, dtype=dtype, weighted=n % 2 == 0, alpha=0.1 * (n % 3), seed=n)
        trainer = Trainer(problem).run()
        value, coef_grads, intercept_grads = problem.naive()
        # In float32 sums of up to 100 terms, through three layers.
        tolerance = 1e-12 if dtype == np.float64 else 2e-5
        np.testing.assert_allclose(trainer.losses, [value], rtol=tolerance)
        assert_close(trainer.gradients(), [*coef_grads, *intercept_grads], tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_for_outputs_and_batches_with_every_remainder(dtype):
    width = lanes(np.dtype(dtype).itemsize)
    for n_outputs, n in product((5, width - 1, width, width + 1), (width, width + 1, 3 * width - 1)):
        problem = make([3, 7, n_outputs], Tanh(), n=n, dtype=dtype, weighted=n % 2 == 0, alpha=0.1)
        trainer = Trainer(problem).run()
        value, coef_grads, intercept_grads = problem.naive()
        tolerance = 1e-12 if dtype == np.float64 else 2e-5
        np.testing.assert_allclose(trainer.losses, [value], rtol=tolerance)
        assert_close(trainer.gradients(), [*coef_grads, *intercept_grads], tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [MR, MR + 1, 13, 64])
def test_long_samples_that_are_prefetched_during_the_product(n, dtype):
    line = CACHE_LINE // np.dtype(dtype).itemsize
    for n_inputs in (2 * MR - 1, 2 * MR, 2 * MR + 1, 4 * line + 1, 200):
        for n_hidden in (3, NV * line + 1):
            problem = make([n_inputs, n_hidden, 3], n=n, dtype=dtype, seed=n)
            order = np.random.default_rng(n).permutation(n)
            trainer = Trainer(problem, order=order).run()
            value, coef_grads, intercept_grads = problem.naive()
            tolerance = 1e-12 if dtype == np.float64 else 2e-5
            np.testing.assert_allclose(trainer.losses, [value], rtol=tolerance)
            assert_close(trainer.gradients(), [*coef_grads, *intercept_grads], tolerance)
            # In chunks, and by two threads: the same bits.
            for kwargs in ({"chunk": 7}, {"n_threads": 2}):
                assert Trainer(problem, order=order, **kwargs).run().bits() == trainer.bits()


ODD_SHAPES = [
    [1, 1],
    [1, 1, 1],
    [1, 1, 1, 1],
    [9, 1],
    [1, 9],
    [17, 1, 17],
    [2, 129, 1, 3],
    [3, 4096, 2],
    [4096, 3],
    [2, 4096],
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("units", ODD_SHAPES, ids=str)
def test_gradient_for_odd_shapes(units, dtype):
    for n in (1, 4):
        problem = make(units, Tanh(), "squared_error", Tanh(), n=n, dtype=dtype, alpha=0.3)
        trainer = Trainer(problem).run()
        value, coef_grads, intercept_grads = problem.naive()
        tolerance = 1e-11 if dtype == np.float64 else 2e-5
        np.testing.assert_allclose(trainer.losses, [value], rtol=tolerance)
        assert_close(trainer.gradients(), [*coef_grads, *intercept_grads], tolerance)


def test_weights_count_as_repetitions():
    problem = make([5, 7, 3], n=8)
    times = np.array([0, 1, 2, 3, 1, 0, 2, 1])
    weighted = Trainer(replace(problem, weight=times.astype(np.float64))).run()
    repeated = Trainer(problem, order=np.repeat(np.arange(8), times)).run()
    assert_close(weighted.gradients(), repeated.gradients(), 1e-13)
    np.testing.assert_allclose(weighted.losses, repeated.losses, rtol=1e-13)


def test_a_batch_that_counts_nothing_changes_nothing():
    problem = make([5, 7, 3], n=9, alpha=0.5)
    weight = np.array([1, 1, 1, 0, 0, 0, 1, 1, 1], dtype=np.float64)
    trainer = Trainer(replace(problem, weight=weight), optimizer="plain", batch_size=3).run()
    without = Trainer(problem, optimizer="plain", batch_size=3, order=np.array([0, 1, 2, 6, 7, 8])).run()
    assert trainer.losses[1] == 0
    for a, b in zip(trainer.parameters(), without.parameters(), strict=True):
        np.testing.assert_array_equal(a, b)


# --- training ---


def _train_naive(problem, optimizer, rate, batch_size, order, n_batches, max_norm=np.inf):
    """Parameters and loss of each batch."""
    problem = replace(
        problem,
        coefs=[W.astype(np.float64) for W in problem.coefs],
        intercepts=[b.astype(np.float64) for b in problem.intercepts],
    )
    params = [*problem.coefs, *problem.intercepts]
    n = len(problem.coefs)  # what decays
    memory = [[np.zeros_like(p) for p in params] for _ in range(2)]
    losses = []
    for batch in range(n_batches):
        samples = order[batch * batch_size : (batch + 1) * batch_size]
        value, coef_grads, intercept_grads = problem.naive(samples, batch)
        losses.append(value)
        grads = reference.clip_naive([*coef_grads, *intercept_grads], max_norm)
        solver, constants = OPTIMIZERS[optimizer]
        if SOLVERS[solver] == ADAM:
            for part, decay in ((slice(n), WEIGHT_DECAY if solver == "adamw" else 0.0), (slice(n, None), 0.0)):
                lists = (params[part], grads[part], memory[0][part], memory[1][part])
                reference.adam_naive(*lists, batch + 1, rate, weight_decay=decay)
        else:
            reference.sgd_naive(params, grads, memory[0], rate, constants[0], constants[1])
    return params, losses


TRAINED = [
    ([6, 9, 4], Relu(), "log_loss", Softmax()),
    ([6, 9, 5, 2], [Logistic(slope=2.0), Tanh()], "log_loss", Logistic()),
    ([6, 70, 3], Logistic(), "squared_error", Logistic()),
    ([6, 4], Tanh(), "squared_error", Identity()),
    ([6, 9, 19], Tanh(), "huber", Identity()),
    ([6, 5, 3], Relu(), "poisson", Exp()),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("units", "hidden", "loss", "output"), TRAINED, ids=str)
def test_ten_steps(units, hidden, loss, output, optimizer, dtype):
    n, batch_size = 68, 7  # the last batch has 5 samples
    order = np.random.default_rng(1).permutation(n)
    for weighted, alpha in [(False, 0.0), (True, 0.2)]:
        problem = make(units, hidden, loss, output, n=n, dtype=dtype, weighted=weighted, alpha=alpha)
        rate = 0.01 if optimizer.startswith("adam") else 0.1
        expected, losses = _train_naive(problem, optimizer, rate, batch_size, order, 10)
        trainer = Trainer(problem, optimizer=optimizer, rate=rate, batch_size=batch_size, order=order).run()
        if dtype == np.float64:
            rtol, atol = 1e-10, 1e-12
        else:
            # Rounding errors of 1e-7 in each of ten steps, some ten times as large after sums that cancel.
            # Adam divides by the size of the gradient, and so magnifies the errors of small ones.
            rtol, atol = 1e-5, 1e-5
        np.testing.assert_allclose(trainer.losses, losses, rtol=rtol)
        for got, want in zip(trainer.parameters(), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_session_does_the_same(optimizer, sparse):
    n, batch_size = 40, 7
    problem = make([36, 9, 4], n=n, weighted=True, alpha=0.2)
    order = np.random.default_rng(1).permutation(n)
    trainer = Trainer(problem, optimizer=optimizer, rate=0.01, batch_size=batch_size, order=order).run()
    network = problem.network
    solver, (first, second, third) = OPTIMIZERS[optimizer]
    how = {"momentum": first, "nesterovs_momentum": bool(second)} if solver == "sgd" else {}
    how |= {"beta_1": first, "beta_2": second, "epsilon": third} if SOLVERS[solver] == ADAM else {}
    how |= {"weight_decay": WEIGHT_DECAY} if solver == "adamw" else {}
    model = BackpropClassifier(
        solver=solver, alpha=problem.alpha, batch_size=batch_size, learning_rate_init=0.01, max_iter=1, **how
    )
    params = _packed(problem)
    state = OptimizerState.empty(network, solver, 0.01)
    session = Session(network, params, state, model._step_settings(n, 4), n, sparse=sparse)
    session.run(Data(problem.X, problem.Y, problem.weight, order), np.full(trainer.n_batches, 0.01))
    (loss,) = session.losses
    assert params.tobytes() == trainer.net.params.tobytes()
    assert state.first.tobytes() == trainer.state.first.tobytes()
    assert state.second.tobytes() == trainer.state.second.tobytes()
    assert state.steps == trainer.n_batches
    np.testing.assert_allclose(loss, np.dot(trainer.losses, [7, 7, 7, 7, 7, 5]) / n, rtol=1e-14)


# --- the same bits ---


def test_chunks_are_of_about_the_same_size():
    for batch_size, most, n_threads in product((1, 200, 1024, 1025, 2489, 5000, 100_000), (1, 300, 10**6), (1, 2, 16)):
        chunk = chunk_rows(batch_size, most, n_threads)
        assert 1 <= chunk <= min(batch_size, most, max(MAX_CHUNK_ROWS, THREAD_ROWS * n_threads))
        n_chunks = -(-batch_size // chunk)
        assert n_chunks * chunk - batch_size < n_chunks
        assert chunk == batch_size or 2 * chunk > min(most, MAX_CHUNK_ROWS)
        assert chunk_rows(batch_size, most, n_threads, in_cache=False) >= chunk
    assert chunk_rows(5000, 10**6, 1, in_cache=False) == 5000


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "sgd", "momentum": 0.0},
        {"max_grad_norm": 0.1, "dropout": 0.2, "alpha": 0.01},
        {"solver": "lbfgs"},
        {"solver": "adamw", "hidden_layer_sizes": (), "weight_decay": 0.1},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("share", [0.1, 1.0])  # of the inputs that are not zero
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_same_bits_of_large_batches_in_chunks(options, share, monkeypatch):
    chunks = []

    def note(*args, **kwargs):
        chunks.append(chunk_rows(*args, **kwargs))
        return chunks[-1]

    monkeypatch.setattr(session, "chunk_rows", note)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2 * MAX_CHUNK_ROWS + 500, 40)) * (rng.random((2 * MAX_CHUNK_ROWS + 500, 40)) < share)
    y = X[:, :30].reshape(len(X), 3, 10).sum(axis=2).argmax(axis=1)
    options = {"hidden_layer_sizes": (33,), "max_iter": 3, "batch_size": len(X) - 70, "random_state": 0} | options
    found = []
    for most in (MAX_CHUNK_ROWS, 10**9):
        monkeypatch.setattr(plan, "MAX_CHUNK_ROWS", most)
        for n_jobs in (1, 2):
            clf = BackpropClassifier(**options, n_jobs=n_jobs).fit(X, y)
            found.append([array.tobytes() for array in clf.coefs_ + clf.intercepts_] + clf.loss_curve_)
    assert all(bits == found[0] for bits in found)
    assert {chunk <= MAX_CHUNK_ROWS for chunk in chunks[:2]} == {True} and chunks[-1] > MAX_CHUNK_ROWS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", [None, "nesterov", "adam"])
def test_same_bits_in_chunks_of_any_size(optimizer, dtype):
    n, batch_size = 50, 23
    problem = make([20, 40, 9, 3], [Relu(), Tanh()], n=n, dtype=dtype, weighted=True, alpha=0.1)
    if optimizer is None:
        batch_size = n
    whole = Trainer(problem, optimizer=optimizer, batch_size=batch_size).run().bits()
    for chunk in (1, 2, 3, 7, 16, 22):
        assert Trainer(problem, optimizer=optimizer, batch_size=batch_size, chunk=chunk).run().bits() == whole


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", [None, "nesterov", "adam"])
def test_same_bits_with_packed_operands_and_in_passes_of_any_size(optimizer, dtype, monkeypatch):
    """With a cache of some hundred bytes, what is done for wide layers and large batches is done for small ones."""
    nr = NV * lanes(np.dtype(dtype).itemsize)
    few = max(1, nr // NV // 2)
    shapes = (
        [9 * BLOCK_ROWS + 3, 8 * nr + 5, 4], [20, 8 * nr + 1, few], [130, 140, 3 * nr + 1, 150, 1], [5, 200, 9 * nr, 2],
    )  # fmt: skip
    seen = set()
    for units in shapes:
        problem = make(units, Logistic(), n=45, dtype=dtype, weighted=True, alpha=0.1)
        kwargs = {"optimizer": optimizer, "batch_size": 45 if optimizer is None else 17}
        with monkeypatch.context() as patch:
            patch.setattr(plan, "L2_BYTES", 10**9)
            trainer = Trainer(problem, **kwargs)
            assert all(layer.left == layer.right == -1 for layer in read_layers(trainer.net.table))
            whole = trainer.run().bits()
        for l2_bytes, chunk, pass_rows, n_threads in product((200, 12_000), (17, 5), (1, 7), (1, 2)):
            monkeypatch.setattr(plan, "L2_BYTES", l2_bytes)
            trainer = Trainer(problem, chunk=chunk, pass_rows=pass_rows, n_threads=n_threads, **kwargs)
            layers = read_layers(trainer.net.table)
            seen |= {(x.is_transposed, x.left >= 0, x.right >= 0, x.together > 1) for x in layers}
            assert trainer.run().bits() == whole, (units, l2_bytes, chunk, pass_rows, n_threads)
    # Operands packed and not, in all combinations; several blocks of rows for each panel, and one.
    assert {(left, right) for _, left, right, _ in seen} == set(product((False, True), repeat=2))
    assert {together for _, left, right, together in seen if left and right} == {False, True}
    assert (1, True, False) in {(transposed, left, right) for transposed, left, right, _ in seen}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
def test_transposed_storage_has_the_same_bits(optimizer, dtype):
    """Layers of few units, below activations that are not zero for units that are none."""
    nr = NV * lanes(np.dtype(dtype).itemsize)
    few = max(1, nr // NV // 2)  # units in half a vector
    for units in ([4, 9, 1], [6, 37, few], [3, 2 * nr, few, 50, 1], [3, 2 * nr + 1, few], [2, 3 * nr - 1, 7, 1]):
        hidden = [Logistic(), Gaussian(0.1, 1.0), Logistic()][: len(units) - 2]
        problem = make(units, hidden, "squared_error", Logistic(), n=40, dtype=dtype, alpha=0.1)
        assert problem.network.has_transposed
        assert not replace(problem, transpose_narrow=False).network.has_transposed
        kwargs = {"optimizer": optimizer, "batch_size": 13}
        expected = Trainer(replace(problem, transpose_narrow=False), **kwargs).run()
        for chunk, n_threads in ((13, 1), (13, 2), (5, 1)):
            trainer = Trainer(problem, chunk=chunk, n_threads=n_threads, **kwargs).run()
            for got, wanted in zip(trainer.parameters(), expected.parameters(), strict=True):
                np.testing.assert_array_equal(got, wanted)
            # The squares in the L2 term are added up in another order.
            np.testing.assert_allclose(trainer.losses, expected.losses, rtol=1e-5 if dtype == np.float32 else 1e-12)
            packed = trainer.network.pack(*trainer.network.unpack(trainer.net.params))
            np.testing.assert_array_equal(trainer.net.params, packed)  # what pads the rows has stayed zero


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("n_bytes", [MEDIUM, LARGE])
def test_same_bits_where_parameters_are_prefetched(n_bytes, optimizer, dtype):
    units = [300, 64 * (n_bytes // (2 * 4 * 300 * 64) + 1), 3]
    batch_size = 3 * BLOCK_LINES // BLOCK_TILES + 3
    problem = make(units, Relu(), n=2 * batch_size - 5, dtype=dtype)
    kwargs = {"optimizer": optimizer, "batch_size": batch_size}
    trainer = Trainer(problem, **kwargs)
    state = trainer.state
    size = trainer.net.params.nbytes + state.first.nbytes + state.second.nbytes
    assert size >= n_bytes and (size >= LARGE) == (n_bytes == LARGE)
    whole = trainer.run().bits()
    # In chunks the gradient is summed in memory, and the last one prefetches.
    assert Trainer(problem, chunk=batch_size - 2, **kwargs).run().bits() == whole
    assert Trainer(problem, n_threads=2, **kwargs).run().bits() == whole
    kwargs["batch_size"] = 2 * batch_size - 5  # whose last chunk has as many samples as a product with prefetches
    whole = Trainer(problem, **kwargs).run().bits()
    for n_threads in (1, 2):
        assert Trainer(problem, chunk=batch_size - 2, n_threads=n_threads, **kwargs).run().bits() == whole


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", [None, "nesterov", "adam"])
def test_same_bits_with_one_output(optimizer, dtype):
    """Its gradient is a row; in chunks it is summed as that of other layers."""
    nr = NV * lanes(np.dtype(dtype).itemsize)
    for n_inputs in (1, nr - 1, BLOCK_ROWS + 1, 8 * nr, 9 * nr + BLOCK_ROWS + 3):
        problem = make([n_inputs, 1], None, "squared_error", Logistic(), n=30, dtype=dtype, weighted=True, alpha=0.1)
        kwargs = {"optimizer": optimizer, "batch_size": 30 if optimizer is None else 19}
        whole = Trainer(problem, chunk=18, **kwargs).run().bits()
        for n_threads in (1, 2):
            assert Trainer(problem, n_threads=n_threads, **kwargs).run().bits() == whole


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_same_training_with_a_few_samples(optimizer, dtype):
    """Gradient and update at once: in batches of a few samples and the shorter one that is last."""
    nr = NV * lanes(np.dtype(dtype).itemsize)
    shapes = ([2 * BLOCK_ROWS + 3, 2 * nr + 3, BLOCK_ROWS + 1, 3], [5, 3], [1, 9 * nr, 4 * nr + 1], [3, 4, 1])
    shapes += ([3 * BLOCK_ROWS + 2, 1], [3 * BLOCK_ROWS + 2, 1])
    for (size, units), alpha in product(zip((1, 2, 5, 12, 8, 9), shapes, strict=True), (0.0, 0.1)):
        problem = make(units, Logistic(), "squared_error", Logistic(), n=5 * size + size // 2, dtype=dtype, alpha=alpha)
        problem = replace(problem, transpose_narrow=size > 1)
        whole = Trainer(problem, optimizer=optimizer, batch_size=size).run()
        for n_threads, cut in ((1, 2), (2, 3)):
            trainer = Trainer(problem, optimizer=optimizer, batch_size=size, n_threads=n_threads, few=size)
            trainer.run(0, cut).run(cut)
            assert_same_training(trainer, whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("size", [1, 4])
def test_the_state_after_a_few_samples_is_that_of_the_last_batch_that_counts(size, optimizer, dtype):
    problem = make([20, 9, 3], Logistic(), n=7 * size, dtype=dtype, weighted=True)
    problem = replace(problem, transpose_narrow=size > 1)
    problem.weight[2 * size : 3 * size] = 0
    problem.weight[5 * size :] = 0
    kwargs = {"optimizer": optimizer, "batch_size": size}
    whole = Trainer(problem, **kwargs).run()
    assert whole.losses[4] != 0 and (whole.losses[5:] == 0).all() and (whole.state.first != 0).any()
    for cuts in ([0, 7], [0, 3, 6, 7]):
        trainer = Trainer(problem, few=size, **kwargs)
        for first, last in pairwise(cuts):
            trainer.run(first, last)
        assert_same_training(trainer, whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("few", [0, 3])
@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
def test_same_bits_however_threads_share_the_backward_pass(optimizer, few, dtype, monkeypatch):
    """Each has some units of the layer below, or some samples; layers of both kinds, and transposed storage, mixed."""
    nr = NV * lanes(np.dtype(dtype).itemsize)
    piece = piece_columns(np.dtype(dtype).itemsize)
    narrow = max(1, nr // NV // 2)
    hidden = [5 * BLOCK_ROWS + 1, 2 * nr + 3, narrow, 9 * BLOCK_ROWS, piece + nr + 1, 2 * BLOCK_ROWS]
    problem = make(
        [7, *hidden, 1], Logistic(), "squared_error", Logistic(), n=25, dtype=dtype, weighted=True, alpha=0.1
    )
    problem = _with_zeros(problem)
    assert problem.network.has_transposed
    for dropped, max_norm, l2_bytes in ((False, 0.0, 10**9), (True, 0.05, 10**9), (True, 0.0, 200)):
        if few and max_norm:
            continue
        monkeypatch.setattr(plan, "L2_BYTES", l2_bytes)
        tried = replace(problem, dropout=(0.5, 0.3, 0.0, 0.7, 0.2, 0.4)) if dropped else problem
        how = {"optimizer": optimizer, "batch_size": few or 9, "max_norm": max_norm, "few": few}
        shared, seen = [], set()
        kinds = ("samples", "units", "some", "as usual")
        for (kind, n_threads), chunk in zip(product(kinds, (1, 2)), cycle((None, 4, 4)), strict=False):
            chunk = None if few else chunk
            with monkeypatch.context() as patch:
                if kind != "as usual":
                    decide = {"samples": lambda *_: False, "units": lambda *_: True, "some": lambda n, *_: n % 2}[kind]
                    patch.setattr("fastbp.kernels.network.is_by_columns", decide)
                trainer = Trainer(tried, n_threads=n_threads, chunk=chunk, **how)
            seen.add(tuple(layer.piece > 0 for layer in read_layers(trainer.net.table)))
            trainer.n_threads -= n_threads > 1 and kind == "some"  # a smaller team than is planned for
            shared.append(trainer.run().bits())
        assert all(bits == shared[0] for bits in shared) and len(seen) >= 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
def test_same_bits_in_any_number_of_calls(optimizer, dtype):
    problem = make([20, 40, 9, 3], [Relu(), Tanh()], n=50, dtype=dtype, alpha=0.1)
    whole = Trainer(problem, optimizer=optimizer, batch_size=4).run().bits()
    for cuts in ([0, 13], [0, 1, 13], [0, 4, 5, 5, 12, 13], range(14)):
        trainer = Trainer(problem, optimizer=optimizer, batch_size=4)
        for first, last in pairwise(cuts):
            trainer.run(first, last)
        assert trainer.bits() == whole


def _with_zeros(problem, seed=0):
    """The same problem with most inputs zero: samples, features, and any."""
    rng = np.random.default_rng(seed)
    X = problem.X.copy()
    X[rng.random(X.shape) < 0.6] = 0
    X[rng.random(len(X)) < 0.2] = 0
    X[:, rng.random(X.shape[1]) < 0.4] = 0
    return replace(problem, X=X)


def assert_same_training(trainer, other):
    """Compare bit by bit, but for the sign of zeros."""
    for a, b in zip(trainer.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(trainer.losses, other.losses)
    for name in ("first", "second"):
        np.testing.assert_array_equal(getattr(trainer.state, name), getattr(other.state, name))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", [None, "nesterov", "adam"])
def test_same_training_without_the_inputs_that_are_zero(optimizer, dtype):
    for n_inputs in (1, MASK_BITS - 1, MASK_BITS, MASK_BITS + 1, 2 * MASK_BITS + 7, 70):
        for n, batch_size, chunk in [(50, 23, 23), (50, 23, 6), (30, 1, 1), (40, 17, 16)]:
            size = n if optimizer is None else batch_size
            problem = make([n_inputs, 40, 9, 3], [Relu(), Tanh()], n=n, dtype=dtype, weighted=True, alpha=0.1)
            problem = _with_zeros(problem)
            how = {"optimizer": optimizer, "batch_size": size, "chunk": chunk}
            assert_same_training(Trainer(problem, sparse=True, **how).run(), Trainer(problem, **how).run())
    # Where nothing is zero, nothing is left out.
    problem = make([20, 9, 3], n=30, dtype=dtype)
    how = {"optimizer": optimizer, "batch_size": 30}
    assert Trainer(problem, sparse=True, **how).run().bits() == Trainer(problem, **how).run().bits()


def test_a_gradient_does_not_depend_on_what_was_in_the_workspace():
    problem = make([20, 40, 9, 3], [Logistic(), Relu()], n=30)
    order = np.array([*range(20), *range(20, 27)])
    trainer = Trainer(problem, batch_size=20, order=order).run(0, 1)
    trainer.state.first[:] = 0
    # The second batch is shorter, and finds the numbers of the first.
    trainer.run(1, 2)
    alone = Trainer(problem, order=np.arange(20, 27)).run()
    assert trainer.state.first.tobytes() == alone.state.first.tobytes()
    assert trainer.losses[1] == alone.losses[0]


# --- dropout and clipping ---


def _dropped(problem, seed=0):
    """The same problem with dropout: rates of all kinds, 0 among them."""
    n = len(problem.coefs) - 1
    return replace(problem, dropout=tuple(np.random.default_rng(seed).permutation([0.5, 0.3, 0.0, 0.7])[:n].tolist()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("loss", "output"), OUTPUTS[:4] + OUTPUTS[6:8], ids=str)
def test_gradient_with_dropout(loss, output, dtype):
    """Against the naive twin; in float64 the change of the loss against central differences, too."""
    nr = NV * lanes(np.dtype(dtype).itemsize)
    shapes = [5, 7, 3], [5, 7, 4, 6, 3], [3, nr + 5, 2 * BLOCK_ROWS + 1, 4], [20, 9, 1], [2, 1, 2]
    for n, units in enumerate(shapes, 5):
        for hidden in (Tanh(), Logistic(slope=2.0), Identity()):
            if hidden == Identity() and loss == "log_loss" and dtype == np.float32:
                continue  # outputs so near to 1 that 1 - a has lost its digits
            problem = _dropped(make(units, hidden, loss, output, n=n, dtype=dtype, weighted=n % 2 == 0, alpha=0.2), n)
            trainer = Trainer(problem).run()
            value, coef_grads, intercept_grads = problem.naive()
            tolerance = 1e-11 if dtype == np.float64 else 2e-5
            np.testing.assert_allclose(trainer.losses, [value], rtol=tolerance)
            assert_close(trainer.gradients(), [*coef_grads, *intercept_grads], tolerance)
            if dtype == np.float64 and len(units) == 3 and loss in ("log_loss", "squared_error"):
                assert_close(trainer.gradients(), _central_differences(trainer), 1e-6)


REGULARIZED = [(True, 0.0), (False, 0.05), (True, 0.05), (False, 1e9)]  # dropout, norm; the last clips nothing


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("dropout", "max_norm"), REGULARIZED)
def test_ten_steps_with_dropout_and_clipping(dropout, max_norm, optimizer, dtype):
    n, batch_size = 68, 7
    order = np.random.default_rng(1).permutation(n)
    for units, hidden, loss, output in TRAINED[:4]:
        problem = make(units, hidden, loss, output, n=n, dtype=dtype, weighted=True, alpha=0.2)
        problem = _dropped(problem) if dropout else problem
        rate = 0.01 if optimizer.startswith("adam") else 0.1
        how = {"optimizer": optimizer, "rate": rate, "batch_size": batch_size, "order": order}
        expected, losses = _train_naive(problem, *how.values(), 10, max_norm or np.inf)
        trainer = Trainer(problem, max_norm=max_norm, **how).run()
        tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == np.float64 else {"rtol": 2e-5, "atol": 2e-5}
        np.testing.assert_allclose(trainer.losses, losses, rtol=tolerance["rtol"])
        for got, want in zip(trainer.parameters(), expected, strict=True):
            np.testing.assert_allclose(got, want, **tolerance)
        if max_norm == 1e9:  # a gradient that is short enough keeps its bits
            assert trainer.bits() == Trainer(problem, **how).run().bits()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
@pytest.mark.parametrize(("dropout", "max_norm"), REGULARIZED[:3])
def test_same_bits_with_dropout_and_clipping(dropout, max_norm, optimizer, dtype, monkeypatch):
    """In chunks and passes of any size, in any number of calls, with packed operands, without zero inputs."""
    nr = NV * lanes(np.dtype(dtype).itemsize)
    for units in ([20, 40, 9, 3], [9 * BLOCK_ROWS + 3, 8 * nr + 5, 4], [3, 2 * nr, 2]):
        problem = make(units, [Logistic(), Tanh()][: len(units) - 2], n=50, dtype=dtype, weighted=True, alpha=0.1)
        problem = _with_zeros(_dropped(problem) if dropout else problem)
        how = {"optimizer": optimizer, "batch_size": 23, "max_norm": max_norm}
        expected = Trainer(problem, **how).run()
        whole = expected.bits()
        for chunk, pass_rows in ((1, 1), (7, 3), (22, 5), (23, 4)):
            assert Trainer(problem, chunk=chunk, pass_rows=pass_rows, **how).run().bits() == whole
        assert_same_training(Trainer(problem, sparse=True, **how).run(), expected)
        trainer = Trainer(problem, **how)
        for first, last in ((0, 1), (1, 1), (1, 3)):
            trainer.run(first, last)
        assert trainer.bits() == whole
        with monkeypatch.context() as patch:
            patch.setattr(plan, "L2_BYTES", 200)
            assert Trainer(problem, **how).run().bits() == whole


def test_clipped_gradients_with_negative_weights_and_without_weight():
    problem = make([5, 7, 3], n=9, alpha=0.5)
    weight = np.array([1, 1, -3, 0, 0, 0, 1, -1, 1], dtype=np.float64)  # the first batch has a negative sum
    problem = replace(problem, weight=weight)
    how = {"optimizer": "plain", "rate": 0.1, "batch_size": 3, "order": np.arange(9)}
    before = Trainer(problem, max_norm=0.01, **how).run(0, 1)
    expected, _ = _train_naive(problem, *how.values(), 1, 0.01)
    assert_close(before.parameters(), expected, 1e-12)
    after = Trainer(problem, max_norm=0.01, **how).run(0, 2)
    assert before.net.params.tobytes() == after.net.params.tobytes()


THREADED = [
    ([70, 150, 33, 3], 90, 40, 40),
    ([9, 130, 90, 64, 3], 90, 40, 17),
    ([70, 20, 3], 90, 40, 11),
    ([2, 1], 9, 3, 3),
]


def _check_threads():
    """Runs in a process that has four threads."""
    teams, sizes = [], set()
    new_team = threads.new_team
    threads.new_team = lambda wanted: teams.append(new_team(wanted)) or teams[-1]
    for dtype in DTYPES:
        for (units, n, batch_size, chunk), optimizer in product(THREADED, ("nesterov", "adam", None)):
            n = batch_size if optimizer is None else n
            problem = _with_zeros(make(units, Tanh(), n=n, dtype=dtype, weighted=n != 9, alpha=0.1))
            sparse = optimizer == "adam"
            how = {"optimizer": optimizer, "batch_size": batch_size, "chunk": chunk, "sparse": sparse}
            alone = Trainer(problem, **how).run().bits()
            for n_threads in [2, 3, 4] * 2:
                trainer = Trainer(problem, n_threads=n_threads, **how).run()
                assert trainer.bits() == alone, (dtype, units, optimizer, n_threads)
                sizes.add((n_threads, int(teams[-1][threads._SIZE])))
            if optimizer is not None:
                problem, how = _dropped(problem), how | {"max_norm": 0.05}
                alone = Trainer(problem, **how).run().bits()
                for n_threads in (2, 3, 4):
                    trainer = Trainer(problem, n_threads=n_threads, **how).run()
                    assert trainer.bits() == alone, (dtype, units, optimizer, n_threads)
        problem = _with_zeros(make([70, 150, 33, 3], Relu(), n=500, dtype=dtype))
        for sparse, n_threads in product((False, True), (2, 4)):
            alone = _predict(problem, problem.X, 16, sparse=sparse).tobytes()
            assert _predict(problem, problem.X, 16, n_threads, sparse).tobytes() == alone
        for n, n_threads in product((1, 2, 5, 11), (2, 4)):
            alone = _predict(problem, problem.X[:n], n).tobytes()
            assert _predict(problem, problem.X[:n], n, n_threads, by_columns=True).tobytes() == alone
    # Threads that come late are not waited for, but some must have been in time, or nothing was tested.
    assert {(2, 2), (3, 3), (4, 4)} <= sizes, sizes
    print("the same bits")


def test_same_bits_with_any_number_of_threads(tmp_path):
    assert run_alone("test_backprop._check_threads()", tmp_path) == "the same bits\n"


# --- prediction ---


def _predict(problem, X, block, n_threads=1, sparse=False, by_columns=False):
    """Outputs of the kernel for all inputs, or of that for inputs that are mostly zero."""
    problem = replace(problem, transpose_narrow=False)
    network, guards = problem.network, Guards()
    out = guards.array(np.full((len(X), network.units[-1]), np.nan, problem.dtype))
    bad = guards.zeros(n_threads, np.int64)
    if sparse:
        arrays = guarded_net(problem, block * n_threads, n_threads, True, guards)
        x, order = guards.array(X).view(np.uint8), guards.array(np.arange(len(X)))
        args = (x, order, arrays, out, bad, block, gather_address(X.dtype, problem.dtype))
        threads.run(prediction.predict_indexed, args, n_threads)
    else:
        coefs, intercepts = map(guards.array, problem.coefs), map(guards.array, problem.intercepts)
        coefs, intercepts = list(coefs), list(intercepts)
        kernels = kernel_addresses(problem.dtype, prefetch_write=False)
        table = guards.array(prediction.table_of(network, coefs, intercepts, kernels, X.dtype.char, n_threads))
        size = prediction.lay_out(table, block, network)
        table[prediction.BLOCK] = 0 if by_columns else block
        space = guards.array(np.full(n_threads * size, np.nan, problem.dtype))
        crew = workers.take_workers()
        crew.start(n_threads)
        prediction.predict(guards.array(X), out, table, space, threads.new_team(n_threads), n_threads, crew.address)
        workers.give_back(crew)
        assert table[prediction.STATUS] == 0
    guards.check()
    assert not bad.any()
    return out


def _packed(problem):
    return problem.network.pack(problem.coefs, problem.intercepts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("output", [Softmax(), *HIDDEN], ids=lambda activation: activation.name)
def test_predict(output, dtype):
    for units in [*UNITS, [70, 1, 200, 2], [3, 4096, 2]]:
        problem = make(units, HIDDEN[1 : len(units) - 1], output=output, n=50, dtype=dtype)
        expected = reference.forward_naive(problem.coefs, problem.intercepts, problem.pairs, problem.X)[0][-1]
        out = _predict(problem, problem.X, 16)
        assert out.dtype == dtype
        assert_close([out], [expected], 1e-12 if dtype == np.float64 else 2e-5)
        predictor = Predictor(problem.coefs, problem.intercepts, problem.activations, problem.X.shape[1])
        for n in (1, 3, 5, 50):
            got, finite = predictor.outputs(problem.X[:n], 1)
            assert finite and got.tobytes() == out[:n].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_predicted_with_the_same_bits_anywhere(dtype):
    for output in (Softmax(), Logistic()):
        problem = make([20, 40, 37, 3], [Logistic(), Tanh()], output=output, n=60, dtype=dtype)
        X = problem.X
        alone = np.vstack([_predict(problem, X[i : i + 1], 1) for i in range(len(X))]).tobytes()
        for block in (1, 2, 3, 4, 5, 6, 7, 13, 60, 96):
            assert _predict(problem, X, block).tobytes() == alone
        order = np.random.default_rng(0).permutation(len(X))
        shuffled = _predict(problem, X[order], 7)
        assert shuffled[np.argsort(order)].tobytes() == alone
        large = np.concatenate([X * 1000, X, -X])
        assert _predict(problem, large, 11)[60:120].tobytes() == alone


def test_calls_of_different_sizes_use_one_workspace(monkeypatch):
    """Few rows on several threads, and many on one: neither needs more than the other in both."""
    problem = make([30, 60, 3], n=300)
    predictor = Predictor(problem.coefs, problem.intercepts, problem.activations, 30)
    new, made = fastbp.prediction._Workspace, []
    monkeypatch.setattr("fastbp.prediction._Workspace", lambda *args: made.append(new(*args)) or made[-1])
    free = []
    for block, n_threads in [(4, 3), (50, 1), (4, 3), (50, 1), (4, 3)]:
        free.append(predictor._take_workspace(free, block, n_threads, "d"))
        assert free[0].rows >= block and free[0].n_threads >= n_threads
    assert len(made) == 2 and len(free) == 1
    # Where one for both is larger than what is kept, the other one waits.
    monkeypatch.setattr("fastbp.prediction.MAX_KEPT", made[1].space.nbytes)
    large = predictor._take_workspace(free, 50, 4, "d")
    assert len(made) == 3 and free == [made[1]] and large.n_threads == 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_prediction_where_the_weights_are_cut(dtype):
    problem = make([700, 1030, 3], [Relu()], n=40, dtype=dtype)
    itemsize = problem.dtype.itemsize
    cut = plan.cut_weights(700, 1030, itemsize)
    assert cut.n_parts > 1
    assert cut.n_pieces > 1
    assert plan.is_streamed(700, 1030, itemsize)
    expected = reference.forward_naive(problem.coefs, problem.intercepts, problem.pairs, problem.X)[0][-1]
    alone = _predict(problem, problem.X, 1)
    assert_close([alone], [expected], 1e-12 if dtype == np.float64 else 2e-5)
    for block in (2, 3, 4, 5, 6, 7, 12, 13, 40):
        assert _predict(problem, problem.X, block).tobytes() == alone.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_prediction_where_only_all_weights_together_leave_the_cache(dtype):
    itemsize = np.dtype(dtype).itemsize
    n = int((plan.L2_BYTES / 2 / itemsize) ** 0.5)
    units = [n, n, n + 7, 3]
    assert plan.is_far(units, itemsize) and not plan.is_streamed(n, n + 7, itemsize)
    problem = make(units, [Relu(), Relu()], n=13, dtype=dtype)
    expected = reference.forward_naive(problem.coefs, problem.intercepts, problem.pairs, problem.X)[0][-1]
    alone = _predict(problem, problem.X, 1)
    assert_close([alone], [expected], 1e-12 if dtype == np.float64 else 2e-5)
    for block in range(2, 14):
        assert _predict(problem, problem.X, block).tobytes() == alone.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_prediction_without_the_inputs_that_are_zero(dtype):
    for n_inputs in (1, MASK_BITS, MASK_BITS + 1, 70):
        problem = _with_zeros(make([n_inputs, 40, 3], Tanh(), n=60, dtype=dtype))
        expected = _predict(problem, problem.X, 7)
        for block in (1, 7, 16, 60):
            np.testing.assert_array_equal(_predict(problem, problem.X, block, sparse=True), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_noticed(bad):
    problem = make([20, 7, 3], n=120)
    predictor = Predictor(problem.coefs, problem.intercepts, problem.activations, problem.X.shape[1])
    for n, row, column in product((1, 8, 9, 120), (0, -1), (0, 19)):
        X = problem.X[:n].copy()
        assert predictor.outputs(X, 1)[1]
        X[row, column] = bad
        assert not predictor.outputs(X, 1)[1]
    # Too large for float32.
    problem = make([20, 7, 3], n=12, dtype=np.float32)
    predictor = Predictor(problem.coefs, problem.intercepts, problem.activations, problem.X.shape[1])
    X = problem.X.astype(np.float64)
    assert predictor.outputs(X, 1)[1]
    X[3, 4] = 1e300
    assert not predictor.outputs(X, 1)[1]


# --- the processor's mode, and what must be seen ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_dead_units_leave_no_subnormal_numbers(batch_size, dtype):
    """The moments of units that have stopped learning decay; rounded to nearest, they would never come to zero."""
    n_dead, n_steps = min(16, NV * lanes(np.dtype(dtype).itemsize) // 2), 5000
    problem = make([3, 2 * n_dead, 2], Relu(), n=2, dtype=dtype)
    problem.X[:] = [[1, 1, 1], [-1, -1, -1]]
    W, b = problem.coefs[0], problem.intercepts[0]
    W[:, :n_dead], b[:n_dead] = np.abs(W[:, :n_dead]), 0  # alive for the first sample only
    # In float64 it takes longer: a faster decay brings it about.
    decay = (0.9, 0.999, 1e-8) if dtype == np.float32 else (0.5, 0.7, 1e-8)
    order = np.repeat([0, 1], [batch_size, batch_size * n_steps])
    online = batch_size == 1 and is_small(replace(problem, transpose_narrow=False).network)
    for kernel in (backprop.train, train_online)[: 2 if online else 1]:
        trainer = Trainer(problem, optimizer="adam", rate=1e-4, batch_size=batch_size, order=order, kernel=kernel)
        trainer.constants[:] = decay
        trainer.run(0, 1)
        assert all((part[0][:, :n_dead] != 0).all() for part, _ in map(trainer.network.unpack, trainer.state[:2]))
        trainer.run(1)
        for part in (trainer.state.first, trainer.state.second):
            assert not ((part != 0) & (np.abs(part) < np.finfo(dtype).tiny)).any()
        moments, _ = trainer.network.unpack(trainer.state.first)
        assert (moments[0][:, :n_dead] == 0).all()


def test_subnormals_work_as_before_after_training_and_prediction():
    problem = make([5, 7, 3])
    tiny = np.array([np.finfo(np.float64).tiny])
    Trainer(problem, optimizer="adam").run()
    assert (tiny / 2)[0] > 0
    _predict(problem, problem.X, 4)
    assert (tiny / 2)[0] > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_divergence_is_seen(dtype):
    problem = make([5, 7, 3], Relu(), "squared_error", Identity(), n=40, dtype=dtype)
    trainer = Trainer(problem, optimizer="plain", rate=1e6, batch_size=1).run()
    assert not np.isfinite(trainer.losses[-1])
    assert not all(np.isfinite(p).all() for p in trainer.parameters())


# --- one sample at a time ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize(("loss", "output"), OUTPUTS, ids=str)
def test_online_training_is_that_of_batches_of_one(loss, output, optimizer, dtype):
    width = lanes(np.dtype(dtype).itemsize)
    panel = NV * width
    for units in (
        [3, 2],
        [8, 16, 3],
        [5, width, width + 1, 4],
        [17, 1, 2],
        [2, panel + 1, 3],
        [panel + width + 1, 3, 2],
    ):
        hidden = [Relu(), Logistic(slope=0.5)][: len(units) - 2]
        for weighted, alpha in [(False, 0.0), (True, 0.3)]:
            problem = make(units, hidden, loss, output, n=30, dtype=dtype, weighted=weighted, alpha=alpha)
            problem = replace(problem, transpose_narrow=False)
            assert is_small(problem.network)
            kwargs = {"optimizer": optimizer, "batch_size": 1, "rate": 0.003}
            online = Trainer(problem, kernel=train_online, **kwargs).run()
            batches = Trainer(problem, **kwargs).run()
            # The sums are added up in another order.
            tolerance = 1e-5 if dtype == np.float32 else 1e-12
            # The logarithm of a probability near 1 has the absolute error of the probability.
            np.testing.assert_allclose(online.losses, batches.losses, rtol=tolerance, atol=np.finfo(dtype).eps)
            assert_close(online.parameters(), batches.parameters(), tolerance)
            assert_close([online.state.first], [batches.state.first], tolerance)
            assert online.state.done[0] == 30


@pytest.mark.parametrize("optimizer", ["plain", "momentum", "nesterov"])  # Adam counts steps that are not taken, too
@pytest.mark.parametrize("weight", [[1, 1, 1, 0, 0, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1, 1, 0, 0]])
def test_online_training_leaves_out_samples_that_count_nothing(weight, optimizer):
    problem = make([5, 7, 3], n=9, alpha=0.5)
    weight = np.array(weight, dtype=np.float64)
    kwargs = {"optimizer": optimizer, "batch_size": 1, "kernel": train_online}
    whole = Trainer(replace(problem, weight=weight), **kwargs).run()
    part = Trainer(problem, order=np.flatnonzero(weight), **kwargs).run()
    assert (whole.losses[weight == 0] == 0).all()
    np.testing.assert_array_equal(whole.losses[weight > 0], part.losses)
    for a, b in zip(whole.parameters(), part.parameters(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole.state.first, part.state.first)
