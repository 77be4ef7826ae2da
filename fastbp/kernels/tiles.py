"""Products that stay in the vector registers, as LLVM IR: tiles of a matrix, single rows, squares to transpose.

The register tile is what the speed of everything rests on; `matmul` makes the products of matrices from it.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp.kernels.intrinsics import (
    INT32,
    INT64,
    VECTOR_BITS,
    X86,
    emit_first_lanes,
    emit_fma,
    emit_masked_load,
    emit_offset,
    emit_prefetch,
    emit_splat,
    lanes,
)

# The register tile is MR rows of at most NV vectors: 24 accumulators where there are 32
# vector registers (AVX-512, ARM), 12 where there are 16. Few rows and many vectors: all heights
# from MR down to 2 then keep both multipliers busy, so a remainder of rows costs little.
MR = 6
NV = 4 if VECTOR_BITS == 512 or not X86 else 2


@intrinsic
def micro_kernel(typingctx, mr, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Compute one register tile, C = D + A B.

    Each element of C is one chain of `k` fused multiply-adds in the order of the
    reduction index, started from D: the same bits for every tile height and width, and
    for a reduction that is cut in pieces and continued from C.

    Parameters
    ----------
    mr : int64
        Rows of the tile, 1 to MR.
    nv : int64
        Vectors in each row, 1 to NV.
    k : int64
        Length of the reduction, at least 1.
    a, a_row, a_col : pointer, int64, int64
        A is (mr, k), with any strides.
    b, b_row : pointer, int64
        B is (k, nv * lanes), its rows contiguous.
    d, d_row : pointer, int64
        D is (mr, nv * lanes); a `d_row` of 0 repeats one row: a bias, or zeros.
    c, c_row : pointer, int64
        C is (mr, nv * lanes); may be D. No pointer needs an alignment.
    """

    def codegen(context, builder, signature, args):
        return _emit_tiles(context, builder, signature, args[:3], args[3:])

    return _tile_signature(mr, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_row), codegen


@intrinsic
def micro_kernel_listed(typingctx, mr, nv, k, listed, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Do as `micro_kernel`, with a reduction over the `k` indices that the pointer `listed` (int32) points at.

    Left out are indices for which A is zero in all rows: the results are the same, but for the sign of a zero.
    """

    def codegen(context, builder, signature, args):
        return _emit_tiles(context, builder, signature, args[:3], args[4:], listed=args[3])

    return _tile_signature(mr, nv, k, listed, a, a_row, a_col, b, b_row, d, d_row, c, c_row), codegen


def _micro_kernel_ahead(*, to_write):
    @intrinsic
    def kernel(typingctx, mr, nv, k, ahead, n_ahead, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
        def codegen(context, builder, signature, args):
            return _emit_tiles(context, builder, signature, args[:3], args[5:], ahead=(*args[3:5], to_write))

        return _tile_signature(mr, nv, k, ahead, n_ahead, a, a_row, a_col, b, b_row, d, d_row, c, c_row), codegen

    kernel.__doc__ = f"""Do as `micro_kernel`, and ask for memory that will soon be {"written" if to_write else "read"}.

    The pointer `ahead` points at a list of `n_ahead` addresses (int64), at least one, in as many cache lines. They are
    asked for at even distances over the `k` steps, so that they arrive without holding the product up; of more than
    `k` only so many are.
    """
    return kernel


micro_kernel_reading = _micro_kernel_ahead(to_write=False)
micro_kernel_writing = _micro_kernel_ahead(to_write=True)


def _tile_signature(*kinds):
    return types.void(*(kind if isinstance(kind, types.CPointer) else types.int64 for kind in kinds))


def _emit_tiles(context, builder, signature, shape, operands, listed=None, ahead=None):
    """Build one block of code for each tile shape, chosen by a jump."""
    mr, nv, k = shape
    vector = _vector_of(context, signature.args[-2].dtype)

    def emit(number):
        _emit_tile(builder, number // NV + 1, number % NV + 1, vector, k, listed, ahead, *operands)

    number = builder.add(builder.mul(builder.sub(mr, INT64(1)), INT64(NV)), builder.sub(nv, INT64(1)))
    _emit_choice(builder, "tile", number, MR * NV, emit)
    return context.get_dummy_value()


def _emit_tile(builder, rows, vectors, vector, k, listed, ahead, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    element = vector.element
    align = _alignment(element)
    places = [(i, j) for i in range(rows) for j in range(vectors)]

    def address(base, row_stride, i, j=0):
        return emit_offset(builder, base, builder.mul(row_stride, INT64(i)), INT64(j * vector.count))

    def load(base, row_stride, i, j):
        place = builder.bitcast(address(base, row_stride, i, j), vector.as_pointer())
        return builder.load(place, align=align)

    start = [load(d, d_row, i, j) for i, j in places]
    if ahead is not None:
        lines, n_lines, to_write = ahead
        share = builder.udiv(builder.shl(n_lines, INT64(32)), k)  # of a line in a step, counted in 2^-32
    before = builder.block
    loop = builder.append_basic_block("tile.loop")
    end = builder.append_basic_block("tile.end")
    builder.branch(loop)

    builder.position_at_end(loop)
    p = builder.phi(INT64)
    sums = [builder.phi(vector) for _ in places]
    if listed is None:
        a_now, b_now = builder.phi(a.type), builder.phi(b.type)
    p_next = builder.add(p, INT64(1))
    carried = [(p, INT64(0), p_next)]
    if listed is None:
        carried.append((a_now, a, emit_offset(builder, a_now, a_col)))
        carried.append((b_now, b, emit_offset(builder, b_now, b_row)))
    else:
        index = builder.zext(builder.load(builder.gep(listed, [p]), align=4), INT64)
        a_now = emit_offset(builder, a, builder.mul(index, a_col))
        b_now = emit_offset(builder, b, builder.mul(index, b_row))
    if ahead is not None:
        now = builder.lshr(builder.mul(p, share), INT64(32))
        line = builder.inttoptr(builder.load(builder.gep(lines, [now]), align=8), ir.IntType(8).as_pointer())
        emit_prefetch(builder, line, to_write=to_write)
    b_vectors = [load(b_now, b_row, 0, j) for j in range(vectors)]
    added = []
    for i in range(rows):
        value = builder.load(address(a_now, a_row, i), align=align)
        value = emit_splat(builder, value, vector.count)
        added += [emit_fma(builder, value, b_vectors[j], sums[i * vectors + j]) for j in range(vectors)]
    carried += zip(sums, start, added, strict=True)
    for phi, initial, following in carried:
        phi.add_incoming(initial, before)
        phi.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", p_next, k), loop, end)

    builder.position_at_end(end)
    for (i, j), value in zip(places, added, strict=True):
        builder.store(value, builder.bitcast(address(c, c_row, i, j), vector.as_pointer()), align=align)


# Numbers that one mark stands for: a bit each.
MARKED = 16


@intrinsic
def nonzero_bits(typingctx, source):
    """Return MARKED bits, set where the numbers behind a pointer are not zero."""
    scalar = source.dtype

    def codegen(context, builder, signature, args):
        kind = ir.VectorType(context.get_data_type(scalar), MARKED)
        values = builder.load(builder.bitcast(args[0], kind.as_pointer()), align=scalar.bitwidth // 8)
        bits = builder.fcmp_unordered("!=", values, ir.Constant(kind, None))
        return builder.zext(builder.bitcast(bits, ir.IntType(MARKED)), INT64)

    return types.int64(source), codegen


def _append(builder, mask, base, out, count):
    """Append base + i to a list for each i of the mask; return the new length."""
    kind = ir.VectorType(INT32, MARKED)
    numbers = builder.add(
        emit_splat(builder, builder.trunc(base, INT32), MARKED), ir.Constant(kind, list(range(MARKED)))
    )
    function_type = ir.FunctionType(kind, [kind, mask.type, kind])
    compress = f"llvm.experimental.vector.compress.v{MARKED}i32"
    function = cgutils.get_or_insert_function(builder.module, function_type, compress)
    packed = builder.call(function, [numbers, mask, ir.Constant(kind, ir.Undefined)])
    builder.store(packed, builder.bitcast(emit_offset(builder, out, count), kind.as_pointer()), align=4)
    population = builder.ctpop(builder.bitcast(mask, ir.IntType(MARKED)))
    return builder.add(count, builder.zext(population, INT64))


@intrinsic
def append_set_bits(typingctx, bits, base, out, count):
    """Append base + i to the int32 list `out` of `count` entries for each set bit i; return the new count.

    MARKED entries are written, of which those behind the new count are meaningless.
    """

    def codegen(context, builder, signature, args):
        bits, base, out, count = args
        small = builder.trunc(bits, ir.IntType(MARKED))
        mask = builder.bitcast(small, ir.VectorType(ir.IntType(1), MARKED))
        return _append(builder, mask, base, out, count)

    return types.int64(types.int64, types.int64, out, types.int64), codegen


@intrinsic
def append_marked(typingctx, marks, bits, n, base, out, count):
    """Append base + i to the list `out` where marks[i], for i below n and MARKED, has any of the bits."""

    def codegen(context, builder, signature, args):
        marks, bits, n, base, out, count = args
        kind = ir.VectorType(ir.IntType(MARKED), MARKED)
        values = builder.load(builder.bitcast(marks, kind.as_pointer()), align=MARKED // 8)
        wanted = builder.and_(values, emit_splat(builder, builder.trunc(bits, ir.IntType(MARKED)), MARKED))
        mask = builder.icmp_unsigned("!=", wanted, ir.Constant(kind, None))
        mask = builder.and_(mask, emit_first_lanes(builder, MARKED, n))
        return _append(builder, mask, base, out, count)

    return types.int64(marks, types.int64, types.int64, types.int64, out, types.int64), codegen


# Vectors in a row that `row_kernel` computes at once: enough chains of additions to keep the multipliers busy.
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
        Columns, 1 to ROW_VECTORS * lanes. No memory behind them is read.
    k : int64
        Length of the reduction, at least 1.
    x : pointer
        k numbers.
    w, w_row : pointer, int64
        W is (k, n), row-major.
    d, out : pointer
        n numbers each; `out` has room for whole vectors, and zeros go to what is behind the n.
    """

    def codegen(context, builder, signature, args):
        n, *operands = args
        vector = _vector_of(context, x.dtype)

        def emit(last):
            inside = emit_first_lanes(builder, vector.count, builder.sub(n, INT64(last * vector.count)))
            _emit_row(builder, last + 1, vector, 1, inside, *operands)

        last = builder.sdiv(builder.sub(n, INT64(1)), INT64(vector.count))
        _emit_choice(builder, "row", last, ROW_VECTORS, emit)
        return context.get_dummy_value()

    return _tile_signature(n, k, x, w, w_row, d, out), codegen


@intrinsic
def short_row_kernel(typingctx, n, k, x, w, d, out):
    """Compute a short row, out = d + x W, with as little delay as can be: each sum is made in ROW_PARTS parts.

    Parameters
    ----------
    n : int64
        Columns, whole vectors of them, at most NV.
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
        vector = _vector_of(context, x.dtype)
        last = builder.sdiv(builder.sub(n, INT64(1)), INT64(vector.count))
        _emit_choice(
            builder, "short", last, NV,
            lambda last: _emit_row(builder, last + 1, vector, ROW_PARTS, None, k, x_, w, n, d, out),
        )  # fmt: skip
        return context.get_dummy_value()

    return _tile_signature(n, k, x, w, d, out), codegen


def _vector_of(context, scalar):
    return ir.VectorType(context.get_data_type(scalar), lanes(scalar.bitwidth // 8))


def _emit_choice(builder, name, number, count, emit):
    """Build code for each of the numbers below `count`, and a jump to that for a number."""
    done = builder.append_basic_block(f"{name}.done")
    choice = builder.switch(number, done)
    for i in range(count):
        block = builder.append_basic_block(f"{name}.{i}")
        choice.add_case(INT64(i), block)
        builder.position_at_end(block)
        emit(i)
        builder.branch(done)
    builder.position_at_end(done)


def _emit_row(builder, vectors, vector, parts, inside, k, x, w, w_row, d, out):
    """Build out = d + x W in so many parts; of the last vector only the lanes `inside`, if there is such a mask."""
    align = _alignment(vector.element)

    def load(base, j):
        place = builder.bitcast(emit_offset(builder, base, INT64(j * vector.count)), vector.as_pointer())
        if inside is not None and j == vectors - 1:
            return emit_masked_load(builder, place, inside)
        return builder.load(place, align=align)

    def add_products(p, sums, count):
        for part in range(count):
            index = builder.add(p, INT64(part))
            value = emit_splat(builder, builder.load(emit_offset(builder, x, index), align=align), vector.count)
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
    """Build a loop over whole steps of a reduction from p on; return where it ends, and the sums."""
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


def _alignment(element):
    return 4 if isinstance(element, ir.FloatType) else 8


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
        vector = _vector_of(context, scalar)
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

    rows = [builder.load(place(source, source_row, i), align=_alignment(vector.element)) for i in range(width)]
    half = width // 2
    while half:
        # Swap the off-diagonal quarters of each square of 2*half rows.
        for i in range(width):
            if not i & half:
                x, y = rows[i], rows[i + half]
                rows[i] = _shuffle(builder, x, y, [_source_lane(j, half, width, 0) for j in range(width)])
                rows[i + half] = _shuffle(builder, x, y, [_source_lane(j, half, width, half) for j in range(width)])
        half //= 2
    for i, row in enumerate(rows[:n]):
        builder.store(row, place(out, out_row, i), align=_alignment(vector.element))


def _source_lane(j, half, width, part):
    """Lane of concat(x, y) that becomes lane j of the upper (part 0) or lower row."""
    lane = (j & ~half) | part
    return lane + width if j & half else lane


def _shuffle(builder, x, y, order):
    mask = ir.Constant(ir.VectorType(INT32, len(order)), order)
    return builder.shuffle_vector(x, y, mask)
