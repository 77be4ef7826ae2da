"""The records that kernels take: as arrays where Python calls them, as pointers inside compiled code.

Numba counts the references to an array with an atomic operation wherever one changes hands, which took more than half
of the time of a small network. So arrays cross the boundary once for many batches, and become pointers at once.
"""

from typing import Any, NamedTuple

import numpy as np

from fastbp.codegen.jit import inlined
from fastbp.codegen.memory import load_scalar, pointer, record_loader
from fastbp.kernels.network import Layer
from fastbp.kernels.plan import count_prefetched_arrays

# --- from Python to compiled code ---


class Data(NamedTuple):
    """Samples, and the order in which they are seen."""

    x: np.ndarray  # (n_samples, n_features), C-ordered; as bytes, (n_samples, bytes of a sample), in compiled code
    y: np.ndarray  # (n_samples, n_outputs), C-ordered
    weight: np.ndarray  # (n_samples,), or empty for equal weights
    order: np.ndarray  # (n_seen,) int64: the samples of an epoch, batch after batch

    def total_weight(self):
        """Return the sum of the weights of the samples of an epoch, or how many there are."""
        return float(self.weight[self.order].sum(dtype=np.float64) if self.weight.size else self.order.size)

    def as_bytes(self):
        """Return it as compiled code takes it: what gathers a sample is all that has to know the type of x."""
        return self._replace(x=self.x.view(np.uint8))


class NetArrays(NamedTuple):
    """The parameters of a network, and the workspace of its forward and backward pass."""

    table: np.ndarray  # (n_layers, fields of Layer) int64, from Network.workspace
    coefficients: np.ndarray  # (n_layers, 2) float64: parameters of the activations
    params: np.ndarray  # packed parameters
    transposes: np.ndarray  # a part for each thread: of a transposed weight matrix; for `online` those of all layers
    space: np.ndarray  # activations and deltas of some rows; begins with zeros
    kernels: np.ndarray  # int64, from kernel_addresses
    masks: np.ndarray  # uint16: bit masks of the non-zero inputs, or empty
    indices: np.ndarray  # int32, a part for each thread: lists of the non-zeros
    lines: np.ndarray  # int64, a part for each thread: addresses of cache lines to prefetch
    csr: np.ndarray  # int64: the table of `csr.Csr`, or empty


class TrainingArrays(NamedTuple):
    """What training needs beside a `NetArrays`: the optimizer's state, and workspace."""

    first: np.ndarray  # velocity, or Adam's m; packed as the parameters are
    second: np.ndarray  # Adam's v, or empty
    grads: np.ndarray  # packed gradients, or empty where each block of them is used at once
    row_loss: np.ndarray  # (chunk,) float64
    squares: np.ndarray  # (n_blocks,) float64: sums of squared weights
    norms: np.ndarray  # (n_blocks,) float64, padded to whole vectors: sums of squared gradients; empty without clipping
    scratch: np.ndarray  # a part for each thread, of `plan.scratch_size` numbers
    done: np.ndarray  # (1,) int64: batches of the last call that are done


class Task(NamedTuple):
    """What one call has to do: some batches, and how."""

    loss: int  # code of the loss
    loss_parameters: np.ndarray  # of the network's type: one for each output, padded to whole vectors
    loss_scale: float  # factor of the mean loss that is returned
    solver: int
    constants: np.ndarray  # float64, see optimizers.update
    sizes: np.ndarray  # (last_batch - first_batch,) float64: step size of each batch
    decays: np.ndarray  # as many: the decay of the weights in each batch, see optimizers.decay_rates
    alpha: float
    max_grad_norm: float  # to which the gradient is clipped; 0 for no clipping
    batch_size: int
    few: int  # samples of a batch that `few.update_few` is for; 0 for none
    chunk: int  # rows of the workspace
    pass_rows: int  # the most rows that go through both passes together
    first_batch: int
    last_batch: int  # one past
    first_row: int  # of the first batch: the rows before, whole chunks, are done
    last_row: int  # of the last batch, one past: where it is not the end, the batch is not done, and nothing follows
    seed: int  # of dropout
    first_step: int  # steps of the optimizer before first_batch
    gather: int  # address of the kernel that gathers samples, from addresses.gather_address


class Epochs(NamedTuple):
    """What one call has to do between batches; its batches are numbered over all epochs."""

    n_batches: int  # of an epoch
    losses: np.ndarray  # (n_epochs,) float64: becomes the mean loss of each epoch
    watch: np.ndarray  # (epochs.N_WATCHED,) float64
    tol: float  # what counts as an improvement of the loss
    patience: float  # the most epochs without one
    twister: np.ndarray  # uint32: the words of a `shuffle.Twister`, or empty to keep the order
    draws: np.ndarray  # uint32, as many: working memory


class _WriteableMemory:
    """The memory of an array, declared as writeable."""

    def __init__(self, array):
        self._array = array
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def declare_writeable(array):
    """Return an array, or a view of it that is declared as writeable, for kernels that do not write to it.

    Numba compiles once more for read-only arrays, such as those that joblib shares with its workers.
    """
    return array if array.flags.writeable else np.asarray(_WriteableMemory(array))


# --- inside compiled code ---


class Net(NamedTuple):
    """A network and its workspace, as pointers."""

    n_layers: int
    table: Any
    coefficients: Any
    params: Any
    transposes: Any  # this thread's part
    space: Any
    kernels: Any
    is_sparse: bool  # whether zero inputs are left out
    masks: Any
    n_rows: int  # of the workspace
    indices: Any  # this thread's part
    is_csr: bool  # whether the inputs are sparse rows
    csr: Any


class Samples(NamedTuple):
    """A `Data`, as pointers."""

    x: Any  # bytes
    x_row: int  # of a sample; 0 where the inputs are sparse rows
    gather: int
    y: Any
    n_outputs: int
    weight: Any
    is_weighted: bool
    order: Any
    n_seen: int
    lines: Any  # this thread's part of `NetArrays.lines`


class Draw(NamedTuple):
    """Where the random numbers of dropout come from, for some rows of a batch."""

    key: np.int64  # of the seed and the step
    first_row: np.int64  # row of the batch that is row 0 of the workspace


# For networks without dropout.
NO_DRAW = Draw(np.int64(0), np.int64(0))


class Training(NamedTuple):
    """A `TrainingArrays` as pointers, and what a `Task` says of the update."""

    first: Any
    second: Any
    grads: Any
    row_loss: Any
    squares: Any
    norms: Any
    n_norms: int
    scratch: Any  # this thread's part
    solver: int
    constants: Any
    alpha: float
    max_norm: float  # 0 for no clipping
    few: int  # as in `Task`
    n_prefetched: int  # arrays whose blocks are prefetched, see plan.count_prefetched_arrays


_load_layer = record_loader(Layer)


@inlined
def get_layer(net, l):
    """Load the record of a layer."""
    return _load_layer(net.table, l)


@inlined
def coefficients_of(net, l):
    """Load the parameters c0, c1 of a layer's activation."""
    return load_scalar(net.coefficients, 2 * l), load_scalar(net.coefficients, 2 * l + 1)


# --- from the first to the second ---


@inlined
def point_at_net(arrays, n_rows, rank, n_threads):
    """Turn a `NetArrays` into pointers, with one thread's part; n_rows are the rows of its workspace."""
    return Net(
        arrays.table.shape[0], pointer(arrays.table, 0), pointer(arrays.coefficients, 0), pointer(arrays.params, 0),
        pointer(arrays.transposes, rank * (arrays.transposes.size // n_threads)), pointer(arrays.space, 0),
        pointer(arrays.kernels, 0), arrays.masks.size > 0, pointer(arrays.masks, 0), n_rows,
        pointer(arrays.indices, rank * (arrays.indices.size // n_threads)), arrays.csr.size > 0, pointer(arrays.csr, 0),
    )  # fmt: skip


@inlined
def point_at_samples(data, arrays, task, rank, n_threads):
    """Turn a `Data` into pointers, with one thread's part of `arrays.lines`."""
    return Samples(
        pointer(data.x, 0), data.x.shape[1], task.gather, pointer(data.y, 0), data.y.shape[1],
        pointer(data.weight, 0), data.weight.size > 0, pointer(data.order, 0), data.order.size,
        pointer(arrays.lines, rank * (arrays.lines.size // n_threads)),
    )  # fmt: skip


_count_prefetched_arrays = inlined(count_prefetched_arrays)


@inlined
def point_at_training(training, arrays, task, rank, n_threads):
    """Turn a `TrainingArrays` and a `Task` into pointers, with one thread's part."""
    return Training(
        pointer(training.first, 0), pointer(training.second, 0), pointer(training.grads, 0),
        pointer(training.row_loss, 0), pointer(training.squares, 0), pointer(training.norms, 0), training.norms.size,
        pointer(training.scratch, rank * (training.scratch.size // n_threads)), task.solver,
        pointer(task.constants, 0), task.alpha, task.max_grad_norm, task.few,
        _count_prefetched_arrays(arrays.params, training.first, training.second, n_threads),
    )  # fmt: skip
