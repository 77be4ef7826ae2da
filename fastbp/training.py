"""Training in Python: epochs, the order of samples, stopping rules, history, interrupts.

Compiled code is entered for many batches at a time, and left at least every `MAX_CALL`
seconds, for Ctrl-C.
"""

import time
import warnings
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from fastbp.kernels import backprop, matmul, online, threads
from fastbp.kernels.intrinsics import lanes
from fastbp.kernels.shuffle import shuffle
from fastbp.kernels.tiles import MARKED, MR, NV
from fastbp.losses import LOSSES
from fastbp.network import Layer, Network, aligned_zeros
from fastbp.optimizers import SOLVERS, step_sizes
from fastbp.schedules import SGD_SCHEDULES, after_epoch, after_standstill, step_rates

# Seconds that compiled code runs between two looks at what happens outside.
MAX_CALL = 0.04
# Bytes of activations and deltas kept at once: a larger batch goes through in chunks of rows.
MAX_WORKSPACE = 32 * 2**20
# Making the lists costs about a tenth of the first layer's work (`benchmarks/choices.py`).
WORTH_LISTING = 0.75


def make_network(units, activations, dtype, batch_size=None):
    """Lay out a network for the vector registers of this machine, for training on batches if `batch_size` is given.

    Layers of few units are flipped for batches only. With single samples it takes longer to renew the transposes,
    which are then needed early in the next forward pass.
    """
    flip = batch_size is not None and batch_size > 1
    width = lanes(np.dtype(dtype).itemsize)
    return Network(units, activations, dtype, width, width * NV, flip)


@dataclass
class Settings:
    """What training needs to know; names and meanings are those of `BackpropClassifier`."""

    loss: str
    solver: str
    alpha: float
    batch_size: int
    learning_rate: str
    learning_rate_init: float
    power_t: float
    max_iter: int
    shuffle: bool
    tol: float
    momentum: float
    nesterovs_momentum: bool
    beta_1: float
    beta_2: float
    epsilon: float
    n_iter_no_change: int
    verbose: bool
    n_jobs: int | None

    @property
    def schedule(self):
        """The schedule in force: scikit-learn's own apply to "sgd" only."""
        return "constant" if self.solver != "sgd" and self.learning_rate in SGD_SCHEDULES else self.learning_rate

    @property
    def coefficients(self):
        """The constants that `optimizers.update` takes."""
        if self.solver == "sgd":
            return np.array([self.momentum, self.nesterovs_momentum, 0.0])
        return np.array([self.beta_1, self.beta_2, self.epsilon])


@dataclass
class Progress:
    """How far training has come; `partial_fit` and `warm_start` go on from it.

    Attributes
    ----------
    loss_curve : list of float
        Mean loss of each epoch, over the batches as they were trained on.
    best_loss : float
        Lowest of them.
    no_improvement : int
        Epochs since the loss last fell by more than `tol`.
    samples_seen, epochs : int
        In all calls, and in the last call.
    """

    loss_curve: list = field(default_factory=list)
    best_loss: float = np.inf
    no_improvement: int = 0
    samples_seen: int = 0
    epochs: int = 0

    def copy(self):
        """Return an independent copy."""
        return replace(self, loss_curve=list(self.loss_curve))


@dataclass
class Memory:
    """The optimizer's memory: velocity, or Adam's two moments, packed as the parameters are; and its rate."""

    first: np.ndarray
    second: np.ndarray
    rate: float
    steps: int = 0

    @classmethod
    def empty(cls, network, solver, rate):
        """Return the memory before the first step."""
        n_second = network.n_params if solver == "adam" else 0
        return cls(aligned_zeros(network.n_params, network.dtype), aligned_zeros(n_second, network.dtype), rate)

    def store(self, network, solver):
        """Return the memory in the layout of `coefs_`, which does not depend on the machine."""
        parts = [network.unpack(part) for part in (self.first, self.second) if part.size]
        return {"solver": solver, "steps": self.steps, "rate": self.rate, "parts": parts}

    @classmethod
    def restore(cls, stored, network, solver):
        """Return what `store` gave; None where it belongs to another solver."""
        if stored["solver"] != solver:
            return None
        first, *rest = [network.pack(*part) for part in stored["parts"]]
        return cls(first, rest[0] if rest else aligned_zeros(0, network.dtype), stored["rate"], stored["steps"])


class _Pace:
    """How many batches the next call takes, and on how many threads.

    Threads that meet several times in each batch are no help where another process holds one of the
    processors: a meeting then lasts until the scheduler comes round. The results do not depend on the
    number of threads, so that it may change between calls: the faster one is taken, or more threads at
    about the same speed, and the other is tried again now and then, for a short time.

    Threads may share one processor at first, where `threads._spread` cannot help it. Together they are then about
    as fast as one, and worth some patience.
    """

    # How much slower more threads may be than one and still be taken.
    PATIENCE = 1.1

    # Calls from one try of the other number of threads to the next, at first and at most; its length in seconds.
    EVERY = 4, 32
    SHORT = 0.002

    def __init__(self, options, guess):
        self.options = sorted(options, reverse=True)
        self._guess = guess
        self._seconds = {}
        self._every = self._until_try = self.EVERY[0]

    def choose(self):
        """Return the number of threads and of batches for the next call."""
        unknown = [option for option in self.options if option not in self._seconds]
        if unknown:
            return unknown[0], max(1, int(self.SHORT / self._guess))
        best, *others = sorted(self.options, key=self._cost)
        if others and self._until_try <= 0:
            self._every = self._until_try = min(2 * self._every, self.EVERY[1])
            return others[0], max(1, int(self.SHORT / self._seconds[best]))
        return best, max(1, int(MAX_CALL / self._seconds[best]))

    def _cost(self, n_threads):
        return self._seconds[n_threads] * (self.PATIENCE if n_threads < max(self.options) else 1)

    def note(self, n_threads, n_batches, seconds):
        """Remember how long a call took."""
        self._until_try -= 1
        self._seconds[n_threads] = max(seconds / n_batches, 1e-9)


@lru_cache(maxsize=256)
def _pace_of(units, batch_size, dtype, solver, n_threads):
    """Return what this process has learned of the pace of such work in earlier calls."""
    # A first guess of the seconds for one batch: 50 GFLOP/s, and half a microsecond for itself.
    return _Pace({1, n_threads}, training_work(units) * batch_size / 50e9 + 5e-7)


class Session:
    """One network in training: its arrays, and the calls into compiled code.

    Parameters
    ----------
    network : Network
        The layout.
    params : ndarray
        Packed parameters; changed in place.
    memory : Memory
        The optimizer's memory; changed in place.
    settings : Settings
        How to train.
    n_samples : int
        Samples in an epoch.
    sparse : bool
        Whether to leave out inputs that are zero; see `mostly_zero`.
    keep : bool
        Whether z, activations and deltas of a whole batch are kept, for a look at them: see `layers`.
    """

    def __init__(self, network, params, memory, settings, n_samples, sparse=False, *, keep=False):
        self.settings = settings
        self.memory = memory
        batch_size = settings.batch_size
        work = training_work(network.units) * min(batch_size, n_samples)
        self.n_threads = threads.thread_count(settings.n_jobs, work)
        chunk = batch_size if keep else min(batch_size, workspace_rows(network))
        table, size = network.workspace(chunk, keep_z=keep)
        one_by_one = batch_size == 1 < n_samples and not sparse and not keep and online.is_small(network)
        self._train = online.train_online if one_by_one else backprop.train
        n_grads = network.n_params if chunk < batch_size or one_by_one else 0
        marks, listed = room_for_lists(network.units[0], chunk, self.n_threads) if sparse else (0, 0)
        writing = backprop.count_arrays_ahead(params, memory.first, memory.second, self.n_threads) > 0
        self.state = backprop.State(
            table=table,
            coefficients=network.coefficients,
            params=params,
            transposed=aligned_zeros(network.n_transposed, network.dtype),
            first=memory.first,
            second=memory.second,
            grads=aligned_zeros(n_grads, network.dtype),
            space=aligned_zeros(size, network.dtype),
            row_loss=np.zeros(chunk),
            squares=np.zeros(network.count_blocks(backprop.BLOCK_ROWS)),
            kernels=matmul.kernel_addresses(network.dtype, dense=not one_by_one, writing=writing, sparse=sparse),
            marks=np.zeros(marks, np.uint16),
            listed=np.zeros(listed, np.int32),
            ahead=np.zeros(self.n_threads * backprop.room_ahead(network.units[0]), np.int64),
            done=np.zeros(1, np.int64),
        )
        self.layers = [Layer(*map(int, row)) for row in table]
        self.chunk = chunk
        scratch = (1 + backprop.BLOCK_ROWS * NV) * network.lanes
        self._scratch = aligned_zeros(self.n_threads * scratch, network.dtype)
        self._ready = False
        self._address = None
        self._pace = _pace_of(tuple(network.units), batch_size, str(network.dtype), settings.solver, self.n_threads)

    def run(self, data):
        """Train on the samples of `data` once, in its order, batch after batch.

        Returns
        -------
        float
            Mean loss of the samples, each batch before its own update.
        """
        first, last = self.layers[0], self.layers[-1]
        if data.x.shape[1] != first.fan_in or data.y.shape[1] != last.fan_out:
            raise ValueError(
                f"Samples of {data.x.shape[1]} inputs and {data.y.shape[1]} targets do not fit a network from "
                f"{first.fan_in} to {last.fan_out} units."
            )
        batch_size = self.settings.batch_size
        n = data.order.size
        n_batches = -(-n // batch_size)
        losses = np.empty(n_batches)
        if not self._ready:
            for n_threads in self._pace.options:  # so that the time of compiling is not taken for work
                self._call(data, 0, 0, losses, n_threads)
            self._ready = True
        done = 0
        while done < n_batches:
            n_threads, count = self._pace.choose()
            stop = min(n_batches, done + count)
            begin = time.perf_counter()
            self._call(data, done, stop, losses, n_threads)
            self._pace.note(n_threads, stop - done, time.perf_counter() - begin)
            done = stop
        rows = np.full(n_batches, batch_size)
        rows[-1] = n - (n_batches - 1) * batch_size
        return float(np.dot(losses, rows) / n)

    def _call(self, data, first, last, losses, n_threads):
        settings = self.settings
        steps_in_all = settings.max_iter * -(-data.order.size // settings.batch_size)
        rates = step_rates(settings.schedule, self.memory.rate, self.memory.steps, last - first, steps_in_all)
        constants = settings.coefficients
        # In the network's type epsilon must not vanish: weights that only pad a vector would become 0 / 0.
        constants[2] = max(constants[2], np.finfo(self.state.params.dtype).tiny)
        plan = backprop.Plan(
            loss=LOSSES[settings.loss],
            solver=SOLVERS[settings.solver],
            settings=constants,
            sizes=step_sizes(settings.solver, rates, self.memory.steps, settings.beta_1, settings.beta_2),
            alpha=float(settings.alpha),
            batch_size=settings.batch_size,
            chunk=self.chunk,
            first_batch=first,
            last_batch=last,
        )
        args = (data, self.state, plan, losses, self._scratch)
        if n_threads > 1 and self._address is None:
            self._address = threads.address_for(self._train, args)
        self.state.done[0] = 0
        try:
            threads.run(self._train, backprop.train_on_threads, args, n_threads, self._address)
        finally:  # Ctrl-C is raised when compiled code returns: what it has done counts all the same
            self.memory.steps += int(self.state.done[0])


def room_for_lists(n_inputs, n_rows, n_threads):
    """Return the lengths of the arrays of marks and of lists, where inputs that are zero are left out."""
    # One list over the inputs, or one over the rows for each tile of a block.
    longest = max(n_inputs + MARKED, -(-MARKED // MR) * (n_rows + MARKED))
    # Marks are read MARKED at a time, those behind the last row too.
    return -(-n_inputs // MARKED) * n_rows + MARKED, n_threads * (MARKED + longest)


def mostly_zero(x):
    """Find out whether it pays to leave out inputs that are zero.

    The first layer's products go through the inputs in tiles: MR samples in the forward pass, about as many
    neighbouring features in the weight gradient. A step is saved where all of a tile are zero.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_features)
        Inputs, of which some hundred rows are looked at.

    Returns
    -------
    bool
        Whether fewer than `WORTH_LISTING` of the steps remain in both.
    """
    n, k = x.shape
    if n < MR or k < MARKED:
        return False
    # A step is saved only where inputs are zero: a glance tells dense data.
    if (x[:: max(1, n // 8)][:8] != 0).mean() > 0.9:
        return False
    some = x[:: max(1, n // 240)][:240] != 0
    rows = some[: len(some) // MR * MR].reshape(-1, MR, k).any(axis=1).mean()
    columns = some[:, : k // MR * MR].reshape(len(some), -1, MR).any(axis=2).mean()
    return max(rows, columns) < WORTH_LISTING


def batch_size(wanted, n_samples):
    """Return the number of samples in a batch, clipped to what there is.

    Warns
    -----
    UserWarning
        If `wanted` is more than `n_samples`.
    """
    if wanted == "auto":
        return min(200, n_samples)
    if wanted > n_samples:
        warnings.warn(
            "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=5
        )
    return min(int(wanted), n_samples)


def fit(session, x, y, weight, settings, progress, random_state, *, one_epoch=False):
    """Train until a stopping rule ends it; the parameters of the session are changed in place.

    Parameters
    ----------
    session : Session
        The network.
    x, y : ndarray of shape (n_samples, n_features), (n_samples, n_outputs)
        C-ordered.
    weight : ndarray of shape (n_samples,) or (0,)
        Sample weights; empty where all count the same.
    settings : Settings
        How to train.
    progress : Progress
        Changed in place.
    random_state : numpy.random.RandomState
        Shuffles as scikit-learn does.
    one_epoch : bool, default=False
        Whether to stop after one epoch without a warning, as `partial_fit` does.

    Warns
    -----
    ConvergenceWarning
        If `max_iter` epochs were not enough.
    UserWarning
        On Ctrl-C, which keeps what has been learned.
    """
    n = x.shape[0]
    order = np.arange(n)
    progress.epochs = 0
    try:
        for _ in range(settings.max_iter):
            if settings.shuffle:
                shuffle(order, random_state)  # the order that sklearn.utils.shuffle would give
            loss = session.run(backprop.Data(x, y, weight, order))
            progress.epochs += 1
            progress.samples_seen += n
            _note_loss(progress, loss, settings.tol)
            if settings.verbose:
                print(f"Iteration {progress.epochs}, loss = {loss:.8f}")
            if not np.isfinite(loss) and not np.isfinite(session.state.params).all():
                break  # nothing can be learned any more; the estimator says so
            memory = session.memory
            memory.rate = after_epoch(
                settings.schedule, memory.rate, settings.learning_rate_init, progress.samples_seen, settings.power_t
            )
            if progress.no_improvement > settings.n_iter_no_change:
                rate = after_standstill(settings.schedule, memory.rate)
                if settings.verbose:
                    print(_standstill_message(settings, memory.rate, rate))
                if rate is None:
                    break
                memory.rate = rate
                progress.no_improvement = 0
            if one_epoch:
                break
            if progress.epochs == settings.max_iter:
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({settings.max_iter}) reached and the "
                    "optimization hasn't converged yet.",
                    ConvergenceWarning,
                    stacklevel=4,
                )
    except KeyboardInterrupt:
        warnings.warn("Training interrupted by user.", stacklevel=4)


def _standstill_message(settings, before, after):
    message = (
        f"Training loss did not improve more than tol={settings.tol:f} for {settings.n_iter_no_change} consecutive "
        "epochs."
    )
    if after is not None:
        return f"{message} Setting learning rate to {after:f}"
    if settings.schedule == "adaptive":
        return f"{message} Learning rate too small. Stopping."
    return f"{message} Stopping."


def _note_loss(progress, loss, tol):
    progress.loss_curve.append(loss)
    if loss > progress.best_loss - tol:
        progress.no_improvement += 1
    else:
        progress.no_improvement = 0
    progress.best_loss = min(progress.best_loss, loss)


def forward_work(units):
    """Count the floating point operations of the forward pass of one sample."""
    return 2.0 * sum(fan_in * fan_out for fan_in, fan_out in pairwise(units))


def training_work(units):
    """Count those of a training step for one sample: the first layer needs no input delta."""
    return 3 * forward_work(units) - 2.0 * units[0] * units[1]


def workspace_rows(network):
    """Return how many rows the workspace may hold."""
    one_row = network.workspace(1)[1] * network.dtype.itemsize
    return max(256, MAX_WORKSPACE // one_row)
