"""Weight gradient and update for batches of a few samples.

The gradient of a weight is then a sum of a few products, and the update mostly moves memory: both are done at once, in
the order of memory, and no gradient is stored.
"""

from functools import cache

import numpy as np

from fastbp.codegen.jit import called_by_address
from fastbp.codegen.memory import itemsize, lane_count, offset, prefetch_for_write, store_scalar
from fastbp.codegen.target import CACHE_LINE
from fastbp.codegen.vectors import fma, load, load_rows, splat, sum_products, total
from fastbp.kernels.plan import BLOCK_ROWS
from fastbp.optimizers import ADAM, rule_of, update_vector

# Place in the table of `kernel_addresses`, after those of `csr`.
UPDATE_FEW = 12


@cache
def update_few(m, solver, has_velocity, has_penalty, prefetches):
    """Return the kernel that sums the gradient of some rows of a panel over m samples, and updates them.

    Its results have the bits of `MULTIPLY` and `optimizers.update` for one block after the other. Without momentum the
    velocity is not read, and only written in the last step of a call.

    Parameters
    ----------
    m : int
        Samples.
    solver : int
        A value of `optimizers.SOLVERS`, which updates.
    has_velocity, has_penalty : bool
        Whether the momentum of sgd, and alpha, may be other than zero.
    prefetches : bool
        Whether each block is prefetched during the one before.
    """

    @called_by_address
    def kernel(
        constants, size, decay, alpha, divisor, is_last, x, x_row, y, y_row, n_rows, row, params, first, second,
        squares, squares_step,
    ):  # fmt: skip
        width = lane_count(params)
        rule = rule_of(constants, size, decay, divisor)
        for top in range(0, n_rows, BLOCK_ROWS):
            bottom = min(top + BLOCK_ROWS, n_rows)
            if has_penalty and alpha != 0:
                sums = splat(params, 0.0)
                for i in range(top * row, bottom * row, width):
                    w = load(params, i)
                    sums = fma(w, w, sums)
                store_scalar(squares, top // BLOCK_ROWS * squares_step, np.float64(total(sums)))
            for j in range(0, row, width):
                deltas = load_rows(offset(y, j), y_row, m)
                begins_line = j * itemsize(params) % CACHE_LINE == 0
                for p in range(top, bottom):
                    i = p * row + j
                    if prefetches and begins_line:
                        prefetch_for_write(params, i + BLOCK_ROWS * row)
                        prefetch_for_write(first, i + BLOCK_ROWS * row)
                        if solver == ADAM:
                            prefetch_for_write(second, i + BLOCK_ROWS * row)
                    w = load(params, i)
                    g = fma(w, alpha, sum_products(offset(x, p), x_row, deltas))
                    update_vector(solver, has_velocity, is_last, rule, i, w, g, params, first, second)

    return kernel
