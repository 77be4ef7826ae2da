"""The kernels that other kernels call by their addresses."""

from functools import cache

import numpy as np
from numba import from_dtype, types

from fastbp.codegen.jit import address_of
from fastbp.kernels import csr, few, gather, matmul, sparse


@cache
def kernel_addresses(
    dtype, *, dense=True, prefetch_write=True, index_lists=False, csr_input=False, one_output=False, few_rows=False,
    transposes=False, update_few=None,
):  # fmt: skip
    """Return the addresses of the kernels of matrix products, which are compiled or loaded now.

    If they were compiled into each of their callers, the register tiles would take a quarter of the time of a first
    fit.

    Parameters
    ----------
    dtype : {float32, float64}
        Type of the network's numbers.
    dense : bool, default=True
        Whether matrix products are needed.
    prefetch_write : bool, default=True
        Whether the product that prefetches memory to write to is needed.
    index_lists : bool, default=False
        Whether the kernels for inputs that are mostly zero are needed.
    csr_input : bool, default=False
        Whether the kernels for inputs in sparse rows are needed.
    one_output : bool, default=False
        Whether the first layer has one output.
    few_rows : bool, default=False
        Whether the products for a few rows are needed.
    transposes : bool, default=False
        Whether the product that transposes weights on the way is needed.
    update_few : function, default=None
        The kernel of `few.update_few`, where one is needed.

    Returns
    -------
    ndarray of int64
        Addresses at the places `matmul.MULTIPLY` to `few.UPDATE_FEW`; 0 for what is not needed. Calls
        with the same arguments return the same array, which must not be changed.
    """
    values = types.CPointer(from_dtype(np.dtype(dtype)))
    masks, indices, lines = types.CPointer(types.uint16), types.CPointer(types.int32), types.CPointer(types.int64)
    floats, n, real = types.CPointer(types.float64), types.int64, types.float64
    operands = (values, n, n, values, n, values, n, values, n)
    prefetch = (n, n, n, lines, n, *operands)
    sparse_operands = (values, n, masks, n, n, values, n, values, values, n, indices)
    # Place in the table: whether it is needed, the kernel, the types of its arguments.
    table = {
        matmul.MULTIPLY: (dense, matmul.multiply_panel, (n, n, n, *operands)),
        matmul.MULTIPLY_PREFETCH: (dense, matmul.multiply_tile_prefetch, prefetch),
        matmul.MULTIPLY_PREFETCH_WRITE: (dense and prefetch_write, matmul.multiply_panel_prefetch_write, prefetch),
        sparse.MATMUL_SPARSE: (index_lists, sparse.matmul_sparse, (n, n, n, *sparse_operands)),
        sparse.INDEX_BLOCK: (index_lists, sparse.index_block, (masks, n, n, indices, n)),
        sparse.MULTIPLY_INDEXED_BLOCK: (
            index_lists, sparse.multiply_indexed_block,
            (n, n, values, n, values, n, values, n, values, n, indices, n),
        ),
        csr.MULTIPLY_CSR: (
            csr_input, csr.multiply_csr, (lines, indices, lines, n, n, n, values, n, values, values, n),
        ),
        csr.COLLECT_CSR: (
            csr_input, csr.collect_csr,
            (lines, indices, floats, lines, n, n, n, n, n, floats, n, values, values, values),
        ),
        csr.UPDATE_CSR: (
            csr_input, csr.update_csr,
            (
                lines, indices, floats, n, n, values, n, n, n, n, n, n, floats, real, real, real, real, n, values,
                values, values, values, floats, floats, values, values,
            ),
        ),
        matmul.MULTIPLY_FEW: (few_rows, matmul.multiply_few, (n, n, n, values, n, values, n, values, n, values, n, n)),
        matmul.MULTIPLY_TRANSPOSED: (
            transposes, matmul.multiply_transposed,
            (lines, n, n, n, n, values, n, values, n, n, n, values, values, n, values),
        ),
        matmul.MULTIPLY_ROW: (one_output, matmul.multiply_row, (n, n, values, n, values, n, values, n)),
        few.UPDATE_FEW: (
            update_few is not None, update_few,
            (floats, real, real, real, real, n, values, n, values, n, n, n, values, values, values, floats, n),
        ),
    }  # fmt: skip
    addresses = np.zeros(len(table), dtype=np.int64)
    for place, (needed, kernel, kinds) in table.items():
        if needed:
            addresses[place] = address_of(kernel, kinds)
    return addresses


@cache
def gather_address(source, dtype):
    """Return the address of `gather.gather_rows` for inputs of one type and a network of another."""
    x, out = (types.CPointer(from_dtype(np.dtype(kind))) for kind in (source, dtype))
    n = types.int64
    return address_of(gather.gather_rows, (x, n, types.CPointer(n), n, out, n))
