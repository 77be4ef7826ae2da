"""Transposition in the vector registers, and rows of a few numbers turned into columns and back.

A vector register that holds one row of 10 outputs is only partly used, and their sum takes a chain of shuffles. One
that holds the same output of several samples is used fully, and no sum goes across it.
"""

from numba import types
from numba.extending import intrinsic

from fastbp.codegen.emit import INT64, alignment, emit_offset, emit_shuffle, vector_type
from fastbp.codegen.jit import jit
from fastbp.codegen.memory import lane_count, stack_square
from fastbp.codegen.vectors import load, splat, store

# Columns of which `transpose_tile` makes rows at least: outputs are often as few, and cost a quarter then.
FEW_COLUMNS = 4


@intrinsic
def transpose_tile(typingctx, n, source, source_row, out, out_row):
    """Transpose a square of lanes x lanes numbers: out[j, i] = source[i, j].

    In log2(lanes) rounds of shuffles between registers: a loop over single numbers
    takes several times as long. Of the columns of the source only the first n need
    to become rows; FEW_COLUMNS do where those are enough.
    """
    scalar = source.dtype

    def codegen(context, builder, signature, args):
        n, *operands = args
        vector = vector_type(context, scalar)
        few = min(FEW_COLUMNS, vector.count)
        with builder.if_else(builder.icmp_signed("<=", n, INT64(few))) as (then, otherwise):
            with then:
                _emit_transposition(builder, few, vector, *operands)
            with otherwise:
                _emit_transposition(builder, vector.count, vector, *operands)
        return context.get_dummy_value()

    return types.void(types.int64, source, types.int64, out, types.int64), codegen


def _emit_transposition(builder, n, vector, source, source_row, out, out_row):
    """Build the transposition of the first n columns; LLVM leaves out shuffles that are not used."""
    width = vector.count

    def place(base, stride, i):
        return builder.bitcast(emit_offset(builder, base, builder.mul(stride, INT64(i))), vector.as_pointer())

    rows = [builder.load(place(source, source_row, i), align=alignment(vector.element)) for i in range(width)]
    half = width // 2
    while half:
        # Swap the off-diagonal quarters of each square of 2*half rows.
        for i in range(width):
            if not i & half:
                x, y = rows[i], rows[i + half]
                rows[i] = emit_shuffle(builder, x, y, [_source_lane(j, half, width, 0) for j in range(width)])
                rows[i + half] = emit_shuffle(builder, x, y, [_source_lane(j, half, width, half) for j in range(width)])
        half //= 2
    for i, row in enumerate(rows[:n]):
        builder.store(row, place(out, out_row, i), align=alignment(vector.element))


def _source_lane(j, half, width, part):
    """Lane of concat(x, y) that becomes lane j of the upper (part 0) or lower row."""
    lane = (j & ~half) | part
    return lane + width if j & half else lane


@jit
def to_columns(rows, row, m, n, columns):
    """Set n columns of a square, a vector each, from m rows; no more of either than the square has.

    Parameters
    ----------
    rows, row : pointer, int64
        The rows, padded to whole vectors, and their stride.
    m, n : int64
        Samples, and numbers of each.
    columns : pointer
        From `stack_square`. The places of samples that are not there become zero; other columns may be written.
    """
    width = lane_count(rows)
    if m == width:
        transpose_tile(n, rows, row, columns, width)
        return
    whole = stack_square(rows)
    for i in range(width):
        store(whole, i * width, load(rows, i * row) if i < m else splat(rows, 0.0))
    transpose_tile(n, whole, width, columns, width)


@jit
def to_rows(columns, m, n, rows, row):
    """Set m rows from n columns; what pads the rows to whole vectors becomes zero, and so do the other columns."""
    width = lane_count(rows)
    for j in range(n, width):
        store(columns, j * width, splat(rows, 0.0))
    if m == width:
        transpose_tile(width, columns, width, rows, row)
        return
    whole = stack_square(rows)
    transpose_tile(m, columns, width, whole, width)
    for i in range(m):
        store(rows, i * row, load(whole, i * width))
