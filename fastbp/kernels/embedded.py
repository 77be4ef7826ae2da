"""The forward pass for other compiled code, which calls it by its address; it runs in the thread that calls.

It allocates its workspace, and only reads what describes the network. The rows go the way of `prediction`.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fastbp.codegen.jit import cached_jit, call_at, called_by_address, inlined
from fastbp.codegen.memory import (
    address,
    allocate,
    itemsize,
    load_scalar,
    offset,
    pointer,
    record_loader,
    release,
    store_scalar,
)
from fastbp.codegen.processor import flush_subnormals, restore_subnormals
from fastbp.kernels.matmul import NONE, ONE
from fastbp.kernels.plan import MAX_PREDICTION_ROWS, is_streamed
from fastbp.kernels.prediction import (
    BLOCK,
    TABLE_HEAD,
    begin_rows,
    gather_finite,
    lay_out,
    load_plan,
    pass_rows,
    table_of,
)
from fastbp.kernels.threads import Team
from fastbp.kernels.unpacked import load_plain_layer

# What remains to be done with the outputs: nothing, to clip them to [0, 1], or also to divide them by their sum.
RULES = (None, "clip", "shares")
_NONE, _CLIP, _SHARES = range(3)


class Head(NamedTuple):
    """What `predict_rows` knows of a network besides its table, which follows; all are int64."""

    kernel: int  # address of `predict_rows`
    n_features: int
    n_columns: int  # of the outputs
    rule: int  # index in `RULES`
    buffers_row: int  # whether a single row needs the buffer
    first_row: int  # row stride of the inputs, and of every second layer
    second_row: int  # that of the other layers


KERNEL, N_FEATURES, N_COLUMNS = map(Head._fields.index, ("kernel", "n_features", "n_columns"))
_load_head, _HEAD_SIZE = record_loader(Head), len(Head._fields)


def describe(network, coefs, intercepts, kernels, kernel, *, is_pair, rule):
    """Describe a network for `predict_rows`.

    Parameters
    ----------
    network, coefs, intercepts, kernels, is_pair
        As in `table_of`.
    kernel : int
        Address of `predict_rows`.
    rule : {None, "clip", "shares"}
        See `RULES`.

    Returns
    -------
    ndarray of int64
        A `Head`, and the table.
    """
    table = table_of(network, coefs, intercepts, kernels, is_pair=is_pair)
    lay_out(table, MAX_PREDICTION_ROWS, network)
    table[BLOCK] = MAX_PREDICTION_ROWS
    strides = [network.row_stride(n) for n in network.units]
    streams = any(is_streamed(*shape, network.dtype.itemsize) for shape in pairwise(network.units))
    n_columns = 2 if is_pair else network.units[-1]
    head = Head(kernel, network.units[0], n_columns, RULES.index(rule), streams, max(strides[::2]), max(strides[1::2]))
    return np.concatenate([head, table])


@called_by_address
def predict_rows(description, x, n_samples, out):
    """Compute the outputs for some rows, as they are predicted, in the thread that calls.

    Parameters
    ----------
    description : pointer to int64
        From `describe`. It is only read: any number of threads may use it at once.
    x : pointer
        The rows, one after the other, of the network's type.
    n_samples : int64
        Rows.
    out : pointer
        Becomes the outputs, one row after the other: NaN for a row whose inputs are not finite.
    """
    if n_samples <= 0:
        return
    head, table = _load_head(description, 0), offset(description, _HEAD_SIZE)
    plan, layers = load_plan(table, 0), offset(table, TABLE_HEAD)
    inputs = load_plain_layer(layers, 0)
    block = min(n_samples, plan.block)
    buffer_size = plan.buffer if block > 1 or head.buffers_row else np.int64(0)
    line = 64 // itemsize(out)
    memory = allocate(out, line + buffer_size + block * (head.first_row + head.second_row))
    if address(memory, 0) == 0:
        for i in range(n_samples * head.n_columns):
            store_scalar(out, i, np.nan)
        return
    mode = flush_subnormals()
    buffer = offset(memory, (-address(memory, 0) & 63) // itemsize(out))
    first = offset(buffer, buffer_size)
    second = offset(first, block * head.first_row)
    for begin in range(0, n_samples, block):
        m = min(block, n_samples - begin)
        rows, results = offset(x, begin * head.n_features), offset(out, begin * head.n_columns)
        n_bad = begin_rows(rows, head.n_features, inputs, m, first)
        pass_rows(
            plan, layers, NONE, m, first, second, buffer, results, head.n_columns, table, Team(NONE, ONE)
        )  # fmt: skip
        _apply_rule(head.rule, m, head.n_columns, results)
        if n_bad:
            for i in range(m):
                if not gather_finite(offset(rows, i * head.n_features), head.n_features, first):
                    for j in range(head.n_columns):
                        store_scalar(results, i * head.n_columns + j, np.nan)
    restore_subnormals(mode)
    release(memory)


@inlined
def _apply_rule(rule, m, n, out):
    """Turn m rows of outputs into probabilities, as `BackpropClassifier.predict_proba` does."""
    if rule != _NONE:
        for i in range(m * n):
            if load_scalar(out, i) < 0:
                store_scalar(out, i, 0)
            elif load_scalar(out, i) > 1:
                store_scalar(out, i, 1)
    if rule == _SHARES:
        for i in range(0, m * n, n):
            sums = load_scalar(out, i)
            for j in range(i + 1, i + n):
                sums += load_scalar(out, j)
            for j in range(i, i + n):
                if sums == 0:
                    store_scalar(out, j, 1 / n)
                else:
                    store_scalar(out, j, load_scalar(out, j) / sums)


@cached_jit
def call_rows(description, x, n_samples, out):
    """Call `predict_rows` with arrays."""
    head = pointer(description, 0)
    call_at(load_scalar(head, KERNEL), (head, pointer(x, 0), n_samples, pointer(out, 0)))
