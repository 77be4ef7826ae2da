"""Memory for the kernels: what a network needs for the passes over some rows."""

import numpy as np

from fastbp.kernels.network import Layer, aligned_zeros
from fastbp.kernels.plan import index_capacity, mask_size, prefetch_capacity, transposed_size
from fastbp.kernels.records import NetArrays


def allocate_net(
    network, params, n_rows, n_threads, kernels, *, sparse=False, trains=False, keep_z=False, keep_transposes=False,
    few_rows=False, csr=None,
):  # fmt: skip
    """Allocate the arrays of a network.

    Parameters
    ----------
    network : Network
        The layout.
    params : ndarray
        Packed parameters; not copied.
    n_rows : int
        Rows of the workspace, of all threads together.
    n_threads : int
        The most threads.
    kernels : ndarray of int64
        From `kernel_addresses`.
    sparse : bool, default=False
        Whether zero inputs are left out.
    trains : bool, default=False
        Whether there is a backward pass.
    keep_z : bool, default=False
        Whether the pre-activations of all layers are kept.
    keep_transposes : bool, default=False
        Whether the backward pass keeps the transposes of all weights, as `online` does, at the offsets of the weights.
    few_rows : bool, default=False
        Whether batches are of a few samples, see `plan.is_few`.
    csr : Csr, default=None
        The inputs, where they are sparse rows.

    Returns
    -------
    NetArrays
    """
    first_dense = 0 if csr is None and not sparse else 1
    table, size = network.workspace(
        n_rows, keep_z=keep_z, pack_from=first_dense if trains else None, n_threads=n_threads, few_rows=few_rows
    )  # fmt: skip
    n_transposes = network.n_params if keep_transposes else n_threads * transposed_size(network.dtype.itemsize)
    n_inputs = network.units[0] if csr is None else 0
    return NetArrays(
        table=table,
        coefficients=network.coefficients,
        params=params,
        transposes=aligned_zeros(n_transposes if trains else 0, network.dtype),
        space=aligned_zeros(size, network.dtype),
        kernels=kernels,
        masks=np.zeros(mask_size(n_inputs, n_rows) if sparse else 0, np.uint16),
        indices=np.zeros(n_threads * index_capacity(n_inputs, n_rows) if sparse else 0, np.int32),
        lines=np.zeros(n_threads * prefetch_capacity(n_inputs), np.int64),
        csr=np.zeros(0, np.int64) if csr is None else csr.table,
    )


def read_layers(table):
    """Return the `Layer` records of a table."""
    return [Layer(*map(int, row)) for row in table]
