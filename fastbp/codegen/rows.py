"""Products of a single row with a matrix, in the vector registers: for one sample, or for a few, at a time."""

from llvmlite import ir
from numba.extending import intrinsic

from fastbp.codegen.emit import (
    INT64,
    alignment,
    emit_first_lanes,
    emit_fma,
    emit_masked_load,
    emit_offset,
    emit_splat,
    emit_switch,
    vector_type,
)
from fastbp.codegen.tiles import NV, kernel_signature

# Vectors of a row that `row_kernel` computes at once: enough chains of additions to keep the FMA units busy.
ROW_VECTORS = 8
# Parts of the sums in `short_row_kernel`, a power of two: enough to hide the time that one addition takes.
ROW_PARTS = 4


@intrinsic
def row_kernel(typingctx, n, k, x, w, w_row, d, out):
    """Compute a few columns of one row, out = d + x W, for a W that is not packed.

    The same chains as in `micro_kernel`, and so the same bits.

    Parameters
    ----------
    n : int64
        Columns, 1 to ROW_VECTORS * lanes. No memory after them is read.
    k : int64
        Length of the reduction, at least 1.
    x : pointer
        k numbers.
    w, w_row : pointer, int64
        W is (k, n), row-major.
    d, out : pointer
        n numbers each; `out` holds whole vectors, and its numbers after the n become 0.
    """

    def codegen(context, builder, signature, args):
        _emit_row_kernel(context, builder, x.dtype, *args)
        return context.get_dummy_value()

    return kernel_signature(n, k, x, w, w_row, d, out), codegen


@intrinsic
def row_kernel_indexed(typingctx, n, k, x, indices, w, w_row, d, out):
    """Compute out = d + sum over p of x[p] W[indices[p]]: what `row_kernel` does, with a list of the rows of W.

    Parameters
    ----------
    n : int64
        As in `row_kernel`.
    k : int64
        Length of the list, at least 0.
    x, indices : pointer, pointer to int32
        k numbers, and the rows of W that they belong to. Where they are the numbers of a row that are not zero, in
        their order, the result has the bits of `row_kernel` for the whole row, but for the sign of a zero.
    w, w_row, d, out
        As in `row_kernel`.
    """

    def codegen(context, builder, signature, args):
        n, k, x_, indices, w, w_row, d, out = args
        _emit_row_kernel(context, builder, x.dtype, n, k, x_, w, w_row, d, out, indices)
        return context.get_dummy_value()

    return kernel_signature(n, k, x, indices, w, w_row, d, out), codegen


def _emit_row_kernel(context, builder, scalar, n, k, x, w, w_row, d, out, indices=None):
    vector = vector_type(context, scalar)

    def emit(last):
        inside = emit_first_lanes(builder, vector.count, builder.sub(n, INT64(last * vector.count)))
        _emit_row(builder, last + 1, vector, 1, inside, k, x, w, w_row, d, out, indices)

    last = builder.sdiv(builder.sub(n, INT64(1)), INT64(vector.count))
    emit_switch(builder, "row", last, ROW_VECTORS, emit)


@intrinsic
def short_row_kernel(typingctx, n, k, x, w, d, out):
    """Compute a short row, out = d + x W, with the shortest latency: each sum is computed in ROW_PARTS parts.

    Parameters
    ----------
    n : int64
        Columns, a multiple of the lanes: 1 to NV vectors.
    k : int64
        Length of the reduction.
    x : pointer
        k numbers.
    w : pointer
        W is (k, n), row-major.
    d, out : pointer
        n numbers each.
    """

    def codegen(context, builder, signature, args):
        n, k, x_, w, d, out = args
        vector = vector_type(context, x.dtype)
        last = builder.sdiv(builder.sub(n, INT64(1)), INT64(vector.count))
        emit_switch(
            builder, "short", last, NV,
            lambda last: _emit_row(builder, last + 1, vector, ROW_PARTS, None, k, x_, w, n, d, out),
        )  # fmt: skip
        return context.get_dummy_value()

    return kernel_signature(n, k, x, w, d, out), codegen


def _emit_row(builder, vectors, vector, parts, inside, k, x, w, w_row, d, out, indices=None):
    """Compute out = d + x W in `parts` parts; with a mask `inside`, only its lanes of the last vector.

    With `indices`, x belongs to these rows of W.
    """
    align = alignment(vector.element)

    def load(base, j):
        place = builder.bitcast(emit_offset(builder, base, INT64(j * vector.count)), vector.as_pointer())
        if inside is not None and j == vectors - 1:
            return emit_masked_load(builder, place, inside)
        return builder.load(place, align=align)

    def add_products(p, sums, count):
        for part in range(count):
            index = builder.add(p, INT64(part))
            value = emit_splat(builder, builder.load(emit_offset(builder, x, index), align=align), vector.count)
            if indices is not None:
                index = builder.sext(builder.load(emit_offset(builder, indices, index)), INT64)
            row = emit_offset(builder, w, builder.mul(index, w_row))
            sums[part] = [emit_fma(builder, value, load(row, j), total) for j, total in enumerate(sums[part])]

    zero = ir.Constant(vector, None)
    sums = [[load(d, j) for j in range(vectors)], *([zero] * vectors for _ in range(parts - 1))]
    p = INT64(0)
    if parts > 1:
        p, sums = _emit_steps(builder, p, parts, k, sums, add_products)
    _, sums = _emit_steps(builder, p, 1, k, sums, add_products)
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [[builder.fadd(*pair) for pair in zip(sums[i], sums[i + half], strict=True)] for i in range(half)]
    for j, result in enumerate(sums[0]):
        place = builder.bitcast(emit_offset(builder, out, INT64(j * vector.count)), vector.as_pointer())
        builder.store(result, place, align=align)


def _emit_steps(builder, p, step, k, sums, add_products):
    """Build a loop over whole steps of a reduction from p on; return the end and the sums."""
    before = builder.block
    head = builder.append_basic_block("row.head")
    body = builder.append_basic_block("row.body")
    end = builder.append_basic_block("row.end")
    builder.branch(head)
    builder.position_at_end(head)
    now = builder.phi(INT64)
    flat = [total for part in sums for total in part]
    phis = [builder.phi(total.type) for total in flat]
    following = builder.add(now, INT64(step))
    builder.cbranch(builder.icmp_signed("<=", following, k), body, end)
    builder.position_at_end(body)
    vectors = len(sums[0])
    added = [phis[i : i + vectors] for i in range(0, len(phis), vectors)]
    add_products(now, added, step)
    builder.branch(head)
    carried = zip([now, *phis], [p, *flat], [following, *(total for part in added for total in part)], strict=True)
    for phi, initial, later in carried:
        phi.add_incoming(initial, before)
        phi.add_incoming(later, body)
    builder.position_at_end(end)
    return now, [phis[i : i + vectors] for i in range(0, len(phis), vectors)]
