"""A session: one network in training, with its arrays and the calls into compiled code."""

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fastbp.interrupts import Interrupts
from fastbp.kernels import backprop, online, threads
from fastbp.kernels.addresses import gather_address, kernel_addresses
from fastbp.kernels.csr import Csr, catch_up_all
from fastbp.kernels.epochs import STOPPED
from fastbp.kernels.few import update_few
from fastbp.kernels.network import aligned_copy, aligned_zeros
from fastbp.kernels.plan import (
    UPDATE_WORK,
    WAKING_CYCLES,
    chunk_rows,
    count_prefetched_arrays,
    few_prefetch,
    is_few,
    pass_rows,
    scratch_size,
    training_work,
    work_of_cycles,
    workspace_rows,
)
from fastbp.kernels.records import Epochs, Task, TrainingArrays
from fastbp.kernels.shuffle import N_WORDS, borrowed
from fastbp.kernels.tuner import tuner_for
from fastbp.kernels.workspace import allocate_net, read_layers
from fastbp.losses import LOSSES, Loss
from fastbp.optimizers import N_MOMENTS, SOLVERS, decay_rates, step_sizes


@dataclass
class StepSettings:
    """What a training step depends on; names and meanings are those of `BackpropClassifier`."""

    loss: Loss
    solver: str
    alpha: float
    batch_size: int
    momentum: float = 0.9
    nesterovs_momentum: bool = True
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    n_jobs: int | None = None

    def constants(self, dtype):
        """Return the constants of `optimizers.update`."""
        if self.solver == "lbfgs":
            return np.zeros(3)
        if self.solver == "sgd":
            return np.array([self.momentum, self.nesterovs_momentum, 0.0])
        # epsilon must not vanish in the network's type: weights that only pad a vector would become 0 / 0. Nor must it
        # be infinite there, for rows that are caught up.
        least, most = float(np.finfo(dtype).tiny), float(np.finfo(dtype).max)
        return np.array([self.beta_1, self.beta_2, min(max(self.epsilon, least), most)])


@dataclass
class OptimizerState:
    """The state of an optimizer.

    Attributes
    ----------
    first, second : ndarray
        Velocity, or Adam's two moments; packed as the parameters are. `second` is empty for sgd, both are for lbfgs,
        whose state scipy has.
    rate : float
        The learning rate of the schedule.
    steps : int
        Steps so far.
    seed : int or None
        Of the random numbers of dropout; None before they are needed.
    """

    first: np.ndarray
    second: np.ndarray
    rate: float
    steps: int = 0
    seed: int | None = None

    @classmethod
    def empty(cls, network, solver, rate):
        """Return the state before the first step."""
        n_moments = N_MOMENTS[SOLVERS[solver]]
        first, second = (aligned_zeros(network.n_params if k < n_moments else 0, network.dtype) for k in range(2))
        return cls(first, second, rate)

    def copy(self):
        """Return an independent copy."""
        first, second = (aligned_copy(vector, vector.dtype) for vector in (self.first, self.second))
        return replace(self, first=first, second=second)

    def store(self, network, solver):
        """Return the state as a dict, whose parts are read in the layout of `coefs_`, on any machine.

        Its arrays are not copied: the state must not change after this.
        """
        parts: PackedParts | list = PackedParts(network, [part for part in (self.first, self.second) if part.size])
        if network.n_params > 2 * network.n_unpadded:  # layers of a few units: fitted estimators are to stay small
            parts = list(parts)
        return {"solver": solver, "steps": self.steps, "rate": self.rate, "parts": parts, "seed": self.seed}

    @classmethod
    def restore(cls, stored, network, solver):
        """Return the state from what `store` returned; None where it belongs to another solver or network."""
        parts = stored["parts"]
        if stored["solver"] != solver or not memory_fits(stored, network.units):
            return None
        if isinstance(parts, PackedParts) and network.is_laid_out_as(parts.network):
            packed = [aligned_copy(vector, vector.dtype) for vector in parts.vectors]
        else:
            packed = [network.pack(*part) for part in parts]
        packed += [aligned_zeros(0, network.dtype)] * (2 - len(packed))
        return cls(packed[0], packed[1], stored["rate"], stored["steps"], stored["seed"])


class PackedParts:
    """Packed vectors that are pairs of coefs and intercepts, new ones each time, for who goes through them.

    Training that goes on takes the vectors as they are.

    Parameters
    ----------
    network : Network
        Their layout.
    vectors : list of ndarray
        Packed as the parameters are.
    """

    def __init__(self, network, vectors):
        self.network, self.vectors = network, vectors

    def __iter__(self):
        return map(self.network.unpack, self.vectors)


def memory_fits(stored, units):
    """Whether what `OptimizerState.store` returned is the memory of a network of these units.

    The user may have set weights of another shape; files can be without memory.
    """
    parts, n_parts = stored["parts"], N_MOMENTS[SOLVERS[stored["solver"]]]
    if isinstance(parts, PackedParts):
        return len(parts.vectors) == n_parts and parts.network.units == units
    shapes = [*pairwise(units), *((n,) for n in units[1:])]
    return (
        parts is not None
        and len(parts) == n_parts
        and all([np.shape(array) for array in (*coefs, *intercepts)] == shapes for coefs, intercepts in parts)
    )


@dataclass
class Watch:
    """The rule that stops training after an epoch; see `stopping.watch_loss`.

    Attributes
    ----------
    best, count : float
        The lowest loss, and the epochs without improvement, so far.
    tol, patience : float
        What counts as an improvement, and the most epochs without one.
    """

    best: float = np.inf
    count: float = 0.0
    tol: float = 0.0
    patience: float = np.inf


class _Flat(NamedTuple):
    """Parameters and gradient without padding, and the parts of packed vectors with theirs."""

    params: np.ndarray
    gradient: np.ndarray
    n_weights: int
    to_params: list
    from_grads: list


# What this process has compiled or loaded: the kernel, whether for several threads, and the types.
_COMPILED: set[tuple] = set()


class Session:
    """One network in training.

    Parameters
    ----------
    network : Network
        The layout.
    params : ndarray
        Packed parameters; changed in place.
    optimizer : OptimizerState
        Changed in place.
    settings : StepSettings
        How to train.
    n_samples : int
        Samples in an epoch.
    one_epoch : bool, default=False
        Whether `run` takes one epoch only: of a few samples, it is over before sleeping threads have woken.
    sparse : bool, default=False
        Whether to leave out zero inputs; see `plan.is_mostly_zero`.
    keep : bool, default=False
        Whether z, activations and deltas of a whole batch are kept, for `values`.
    csr : CsrMatrix, default=None
        The inputs, where they are sparse rows; those of `Data` then have no columns.
    interrupts : Interrupts, default=None
        Asked for Ctrl-C after each call into compiled code.

    Attributes
    ----------
    n_threads : int
        The most threads that it uses.
    losses : ndarray
        Mean loss of the samples in each epoch that the last `run` has done, also where Ctrl-C has ended it: each batch
        before its own update.
    """

    def __init__(
        self, network, params, optimizer, settings, n_samples, *, one_epoch=False, sparse=False, keep=False, csr=None,
        interrupts=None,
    ):  # fmt: skip
        self.interrupts = interrupts or Interrupts()
        self.settings = settings
        self.optimizer = optimizer
        self.params = params
        self._network = network
        batch_size = settings.batch_size
        n_inputs = network.units[0] if csr is None else csr.indices.size / csr.shape[0]
        sample_work = training_work([n_inputs, *network.units[1:]])
        work = sample_work * min(batch_size, n_samples)
        if csr is not None and (settings.alpha != 0 or settings.weight_decay != 0):
            work += UPDATE_WORK * network.n_params  # in every step, for the rows of absent features too
        clips = settings.max_grad_norm is not None
        general = sparse or keep or clips or csr is not None or network.has_dropout
        one_by_one = batch_size == 1 < n_samples and not general and online.is_small(network)
        least = threads.MIN_WORK_AFTER_PAUSE if settings.solver == "lbfgs" else threads.MIN_WORK_PER_THREAD
        is_short = one_epoch and sample_work * n_samples < 2 * work_of_cycles(WAKING_CYCLES, network.dtype.itemsize)
        self.n_threads = n_threads = (
            1 if one_by_one or is_short else threads.thread_count(settings.n_jobs, work, least)
        )  # fmt: skip
        one_output = network.units[1] == 1 and csr is None
        most = batch_size if keep else workspace_rows(network, sample_work)
        # Whole batches have shorter ways: rows of absent features wait, and the gradient for one output is a row.
        self._chunk = chunk_rows(batch_size, most, n_threads, in_cache=not (keep or one_output or csr is not None))
        self._pass_rows = pass_rows(network)
        self._train = online.train_online if one_by_one else backprop.train_clipped if clips else backprop.train
        prefetch = count_prefetched_arrays(params, optimizer.first, optimizer.second, n_threads) > 0
        n_arrays = 1 + (settings.momentum != 0) if settings.solver == "sgd" else 3
        few_rows = is_few(batch_size, params.nbytes, n_arrays) and not one_by_one
        self._few = batch_size if few_rows else 0
        updates_few = few_rows and not clips and settings.solver != "lbfgs"
        kind_of_update = (
            batch_size, SOLVERS[settings.solver], settings.momentum != 0, settings.alpha != 0,
            few_prefetch(params.nbytes, n_arrays),
        )  # fmt: skip
        kernels = kernel_addresses(
            network.dtype, dense=not one_by_one, prefetch_write=prefetch, index_lists=sparse,
            csr_input=csr is not None, one_output=one_output, few_rows=few_rows,
            transposes=len(network.units) > 2 and not one_by_one,
            update_few=update_few(*kind_of_update) if updates_few else None,
        )  # fmt: skip
        self._csr = None if csr is None else Csr(csr, settings, self._chunk, n_threads)
        self._arrays = allocate_net(
            network, params, self._chunk, n_threads, kernels, sparse=sparse, trains=True, keep_z=keep,
            keep_transposes=one_by_one, few_rows=few_rows, csr=self._csr,
        )  # fmt: skip
        keeps_grads = self._chunk < batch_size or clips or settings.solver == "lbfgs"
        n_grads = network.n_params if keeps_grads else 0
        n_blocks = network.n_blocks
        n_scratch = scratch_size(network.lanes, 0 if csr is None and not one_output else network.widest)
        self._training_arrays = TrainingArrays(
            first=optimizer.first,
            second=optimizer.second,
            grads=aligned_zeros(n_grads, network.dtype),
            row_loss=np.zeros(self._chunk),
            squares=np.zeros(n_blocks),
            norms=np.zeros(-(-n_blocks // network.lanes) * network.lanes if clips else 0),
            scratch=aligned_zeros(n_threads * n_scratch, network.dtype),
            done=np.zeros(1, np.int64),
        )
        self._loss_parameters = aligned_zeros(len(settings.loss.parameters) + network.lanes, network.dtype)
        self._loss_parameters[: len(settings.loss.parameters)] = settings.loss.parameters
        self._layers = read_layers(self._arrays.table)
        self._constants = settings.constants(network.dtype)
        self.losses = np.empty(0)
        self._is_ready = False
        kind = "dense" if self._csr is None else "lazy" if self._csr.is_lazy else "csr"
        self._tuner = tuner_for(
            tuple(network.units), batch_size, network.dtype.itemsize, settings.solver, n_threads, kind
        )  # fmt: skip

    def run(self, data, rates, *, twister=None, watch=None, deadline=math.inf):
        """Train on the samples of `data` for whole epochs, batch after batch.

        Their losses are in `losses`.

        Parameters
        ----------
        data : Data
            Samples and their order; a twister changes the order.
        rates : ndarray of shape (n_epochs * n_batches,)
            Learning rate of each batch.
        twister : Twister, default=None
            Draws a new order before each epoch; None keeps the order.
        watch : Watch, default=None
            The rule that stops after some epoch, not changed; None to train for all.
        deadline : float, default=inf
            The time of `time.perf_counter` at which training stops; not before the first batch of the session is done.
            A batch that is not done then, or when Ctrl-C comes, changes nothing.

        Raises
        ------
        ValueError
            If the samples have not as many inputs and targets as the network.
        """
        self.losses = np.empty(0)
        inputs, outputs = self._layers[0], self._layers[-1]
        n_inputs = inputs.fan_in if self._csr is None else 0
        if data.x.shape[1] != n_inputs or data.y.shape[1] != outputs.fan_out:
            raise ValueError(
                f"Samples of {data.x.shape[1]} inputs and {data.y.shape[1]} targets do not fit a network from "
                f"{n_inputs} to {outputs.fan_out} units."
            )
        n_batches = -(-data.order.size // self.settings.batch_size)
        watch = watch or Watch()
        epochs = Epochs(
            n_batches=n_batches,
            losses=np.empty(len(rates) // n_batches),
            watch=np.array([watch.best, watch.count, 0.0]),
            tol=float(watch.tol),
            patience=float(watch.patience),
            twister=np.empty(0 if twister is None else N_WORDS + 1, np.uint32),
            draws=np.empty(0 if twister is None else N_WORDS, np.uint32),
        )
        losses = np.empty(len(rates))
        signature = self._train, self.n_threads > 1, data.x.dtype, *self._types(data)
        if not self._is_ready and (self.n_threads > 1 or signature not in _COMPILED):
            with self.interrupts.let_through():
                # So that the tuner does not measure how long it takes to compile, and to wake threads.
                for n_threads in self._tuner.options:
                    self._call(data, rates, 0, 0, epochs, losses, n_threads, (0, 0))
            _COMPILED.add(signature)
        self._is_ready = True
        done, begun, size = 0, self.optimizer.steps, self.settings.batch_size
        row = 0  # of the next batch: where the call before has left it
        try:
            while done < len(rates) and not epochs.watch[STOPPED]:
                n_threads, count = self._tuner.choose()
                if self._csr is not None:
                    if self._csr.steps_left() == 0:
                        self._catch_up()
                    count = min(count, self._csr.steps_left())
                # A call that takes less than a batch ends between two chunks.
                n_chunks = max(1, int(count * size / self._chunk))
                rows = row, size if count >= 1 else min(row + n_chunks * self._chunk, size)
                stop = min(len(rates), done + max(int(count), 1))
                begin = time.perf_counter()
                with borrowed(twister, epochs.twister):
                    self._call(data, rates, done, stop, epochs, losses, n_threads, rows)
                before, done = done, self.optimizer.steps - begun
                row = 0 if done > before else rows[1]
                end = time.perf_counter()
                self._tuner.measure(n_threads, done - before + (row - rows[0]) / size, end - begin)
                self.interrupts.check()
                if end >= deadline and self.optimizer.steps > 0:
                    break
        finally:
            self.losses = epochs.losses[: (self.optimizer.steps - begun) // n_batches]

    def _call(self, data, rates, first_batch, last_batch, epochs, losses, n_threads, rows):
        """Enter compiled code for batches [first_batch, last_batch), from one row of the first to one of the last."""
        settings, optimizer, done = self.settings, self.optimizer, self._training_arrays.done
        task = Task(
            loss=LOSSES[settings.loss.name],
            loss_parameters=self._loss_parameters,
            loss_scale=float(settings.loss.scale),
            solver=SOLVERS[settings.solver],
            constants=self._constants,
            sizes=step_sizes(
                settings.solver, rates[first_batch:last_batch], optimizer.steps, settings.beta_1, settings.beta_2
            ),
            decays=decay_rates(settings.solver, rates[first_batch:last_batch], settings.weight_decay),
            alpha=float(settings.alpha),
            max_grad_norm=float(settings.max_grad_norm or 0.0),
            batch_size=settings.batch_size,
            few=self._few,
            chunk=self._chunk,
            pass_rows=self._pass_rows,
            first_batch=first_batch,
            last_batch=last_batch,
            first_row=rows[0],
            last_row=rows[1],
            seed=optimizer.seed or 0,
            first_step=optimizer.steps,
            gather=gather_address(data.x.dtype, self.params.dtype),
        )
        args = (data.as_bytes(), self._arrays, self._training_arrays, task, epochs, losses)
        done[0] = 0
        try:
            threads.run(self._train, args, n_threads, self._types(data))
        finally:  # Ctrl-C is raised when compiled code returns: the batches that it has done count
            optimizer.steps += int(done[0])

    def _types(self, data):
        """Return what tells apart the types of the arguments of compiled code, in which x is of bytes."""
        return self.params.dtype, data.y.dtype, data.weight.dtype

    def loss_and_gradient(self, data, params, total_weight, deadline=math.inf):
        """Compute the mean loss of a batch of all samples with its L2 term, and the gradient; for the solver "lbfgs".

        Parameters
        ----------
        data : Data
            Samples.
        params : ndarray
            As in `set_parameters`.
        total_weight : float
            That of `data`.
        deadline : float, default=inf
            As in `run`.

        Returns
        -------
        loss : float
            None if the time was over before.
        gradient : ndarray
            In the order of `params`.
        """
        self.set_parameters(params)
        self.run(data, np.zeros(1), deadline=deadline)
        if not self.losses.size:
            return None, None
        loss = float(self.losses[0])
        flat = self._flat
        for packed, part in flat.from_grads:
            part[...] = packed
        gradient = flat.gradient / total_weight
        if self.settings.alpha != 0:
            weights = flat.params[: flat.n_weights]  # needed no more
            weights *= self.settings.alpha / total_weight
            gradient[: flat.n_weights] += weights
        return loss, gradient

    def set_parameters(self, params):
        """Set all parameters from one vector: the weights of all layers, then all biases, without padding."""
        flat = self._flat
        flat.params[:] = params
        for packed, part in flat.to_params:
            packed[...] = part

    @cached_property
    def _flat(self):
        coefs, intercepts = self.parameters()
        n = sum(array.size for array in (*coefs, *intercepts))
        params, gradient = np.empty((2, n), self._network.dtype)
        return _Flat(
            params, gradient, sum(coef.size for coef in coefs),
            list(self._network.parts(self.params, *self._network.split(params))),
            list(self._network.parts(self._training_arrays.grads, *self._network.split(gradient))),
        )  # fmt: skip

    def parameters(self):
        """Return coefs and intercepts, as new arrays."""
        self._catch_up()
        return self._network.unpack(self.params)

    def peek(self):
        """Return coefs and intercepts, as new arrays, and leave all as it is: training goes on with the same bits."""
        if self._csr is None or not self._csr.has_waiting_rows():
            return self._network.unpack(self.params)
        arrays = self.params, self.optimizer.first, self.optimizer.second, *self._csr.waiting
        before = [array.copy() for array in arrays]
        parameters = self.parameters()
        for array, values in zip(arrays, before, strict=True):
            array[...] = values
        return parameters

    def _catch_up(self):
        """Bring the weights of absent features up to date."""
        if self._csr is None or not self._csr.has_waiting_rows():
            return
        settings, first = self.settings, self._layers[0]
        catch_up_all(
            self._csr.table, np.zeros(1, np.int32), np.zeros(1), SOLVERS[settings.solver],
            settings.constants(self.params.dtype), first.padded_out, self.params, self.optimizer.first,
            self.optimizer.second,
        )  # fmt: skip

    def values(self, l, name, n_rows):
        """Return "z", "a" or "delta" of the layer l, of shape (n_rows, units), after a batch with `keep`."""
        layer = self._layers[l]
        begin = getattr(layer, name)
        rows = self._arrays.space[begin : begin + n_rows * layer.row].reshape(n_rows, layer.row)
        return rows[:, : layer.fan_out].copy()
