"""The few operations that Numba cannot express, as LLVM IR; `simd` beside it has the vectors.

Matrices are passed between kernels as a typed pointer and strides, counted in
elements: a pointer is one register, an array is seven.
"""

import os
import platform
import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.core.config import CPU_FEATURES, CPU_NAME
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

_INT64 = ir.IntType(64)
_INT32 = ir.IntType(32)
_X86 = platform.machine().lower() in ("x86_64", "amd64", "x86", "i686")
_ARM64 = platform.machine().lower() in ("arm64", "aarch64")


def _features():
    """Names of the vector instruction sets that the compiler may use here."""
    if CPU_FEATURES is not None:
        text = CPU_FEATURES
    elif CPU_NAME == "generic":
        text = ""
    else:
        text = get_host_cpu_features()
    return {name[1:] for name in text.split(",") if name.startswith("+")}


_FEATURES = _features()
# x86-64 without FMA, a machine of before 2013: multiply and add are two roundings there.
HAS_FMA = not _X86 or "fma" in _FEATURES
VECTOR_BITS = 512 if "avx512f" in _FEATURES else 256 if "avx" in _FEATURES else 128
# The register tile is MR rows of at most NV vectors: 24 accumulators where there are 32
# vector registers (AVX-512, ARM), 12 where there are 16. Few rows and many vectors: all heights
# from MR down to 2 then keep both multipliers busy, so a remainder of rows costs little.
MR = 6
NV = 4 if VECTOR_BITS == 512 or not _X86 else 2


def lanes(itemsize):
    """Count the numbers of `itemsize` bytes in one vector register."""
    return VECTOR_BITS // (8 * itemsize)


def _offset(builder, pointer, *terms):
    total = terms[0]
    for term in terms[1:]:
        total = builder.add(total, term)
    return builder.gep(pointer, [total])


@intrinsic
def pointer(typingctx, array, offset):
    """Point at element `offset` of a contiguous array, counted in its own elements."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return _offset(builder, data, args[1])

    return types.CPointer(array.dtype)(array, types.int64), codegen


@intrinsic
def pointer_at(typingctx, like, address):
    """Point at an address, at numbers of the type that another pointer points at."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[1], args[0].type)

    return like(like, types.int64), codegen


@intrinsic
def address(typingctx, base, index):
    """Return the address of the element `index` behind a pointer."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(_offset(builder, *args), _INT64)

    return types.int64(base, types.int64), codegen


@intrinsic
def get(typingctx, base, index):
    """Read the element `index` behind a pointer."""

    def codegen(context, builder, signature, args):
        return builder.load(_offset(builder, *args), align=base.dtype.bitwidth // 8)

    return base.dtype(base, types.int64), codegen


def reader_of(record):
    """Make the function that reads the record `index` behind a pointer: a named tuple whose fields are all of its type.

    Reading field by field, inlined many times, took most of the time of compiling.
    """
    n_fields = len(record._fields)

    @intrinsic
    def read(typingctx, base, index):
        kind = types.NamedUniTuple(base.dtype, n_fields, record)

        def codegen(context, builder, signature, args):
            first = builder.mul(args[1], _INT64(n_fields))
            fields = [builder.load(_offset(builder, args[0], first, _INT64(i))) for i in range(n_fields)]
            return context.make_tuple(builder, kind, fields)

        return kind(base, types.int64), codegen

    return read


@intrinsic
def put(typingctx, base, index, value):
    """Write the element `index` behind a pointer, converted to its type."""

    def codegen(context, builder, signature, args):
        converted = context.cast(builder, args[2], value, base.dtype)
        builder.store(converted, _offset(builder, *args[:2]), align=base.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(base, types.int64, value), codegen


def _emit_prefetch(builder, place, *, to_write=False):
    kind = ir.FunctionType(ir.VoidType(), [place.type, _INT32, _INT32, _INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, _INT32(int(to_write)), _INT32(3), _INT32(1)])


def _prefetch(description, **kwargs):
    @intrinsic
    def function(typingctx, base, index):
        def codegen(context, builder, signature, args):
            place = builder.bitcast(_offset(builder, *args), ir.IntType(8).as_pointer())
            _emit_prefetch(builder, place, **kwargs)
            return context.get_dummy_value()

        return types.void(base, types.int64), codegen

    function.__doc__ = description
    return function


prefetch = _prefetch("Ask for the cache line of an element that will soon be read.")
prefetch_to_write = _prefetch("Ask for the cache line of an element that will soon be written.", to_write=True)


@intrinsic
def shift(typingctx, base, offset):
    """Move a pointer by `offset` elements."""

    def codegen(context, builder, signature, args):
        return _offset(builder, args[0], args[1])

    return base(base, types.int64), codegen


def _make_view(context, builder, kind, data, n):
    view = context.make_array(kind)(context, builder)
    itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    populate_array(view, data=data, shape=[n], strides=[itemsize], itemsize=itemsize, meminfo=None)
    return view._getvalue()


@intrinsic
def view(typingctx, base, n):
    """Take `n` elements from a pointer as an array."""
    kind = types.Array(base.dtype, 1, "C")

    def codegen(context, builder, signature, args):
        return _make_view(context, builder, kind, *args)

    return kind(base, types.int64), codegen


@intrinsic
def lane_count(typingctx, base):
    """Count the numbers behind a pointer that one vector register holds: a constant."""

    def codegen(context, builder, signature, args):
        return _INT64(lanes(base.dtype.bitwidth // 8))

    return types.int64(base), codegen


@intrinsic
def itemsize(typingctx, base):
    """Count the bytes of a number behind a pointer: a constant."""

    def codegen(context, builder, signature, args):
        return _INT64(base.dtype.bitwidth // 8)

    return types.int64(base), codegen


def emit_splat(builder, value, count):
    """Build a vector with one value in all its places."""
    kind = ir.VectorType(value.type, count)
    undefined = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(undefined, value, _INT32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_INT32, count), None))


def emit_first_lanes(builder, count, n):
    """Build the mask of the first n of `count` lanes."""
    numbers = ir.Constant(ir.VectorType(_INT64, count), list(range(count)))
    return builder.icmp_signed("<", numbers, emit_splat(builder, n, count))


def emit_masked_load(builder, place, mask):
    """Load a vector where the mask is true, zeros elsewhere; memory under false is not touched."""
    kind = place.type.pointee
    element = {ir.FloatType(): "f32", ir.DoubleType(): "f64", ir.IntType(8): "i8"}[kind.element]
    bits = int(element[1:])
    function_type = ir.FunctionType(kind, [place.type, _INT32, mask.type, kind])
    name = f"llvm.masked.load.v{kind.count}{element}.p0"
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, [place, _INT32(bits // 8), mask, ir.Constant(kind, None)])


def emit_fma(builder, x, y, z):
    """Build x*y + z: rounded once where the machine has FMA, else twice."""
    if not HAS_FMA:
        return builder.fadd(builder.fmul(x, y), z)
    scalar = x.type.element if isinstance(x.type, ir.VectorType) else x.type
    suffix = "f32" if isinstance(scalar, ir.FloatType) else "f64"
    if isinstance(x.type, ir.VectorType):
        suffix = f"v{x.type.count}{suffix}"
    kind = ir.FunctionType(x.type, [x.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.{suffix}"), [x, y, z])


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
    return _tile_signature(mr, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_row), _generate_tiles


@intrinsic
def micro_kernel_listed(typingctx, mr, nv, k, listed, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Do as `micro_kernel`, with a reduction over the `k` indices that the pointer `listed` (int32) points at.

    Left out are indices for which A is zero in all rows: the results are the same, but for the sign of a zero.
    """
    return _tile_signature(mr, nv, k, listed, a, a_row, a_col, b, b_row, d, d_row, c, c_row), _generate_tiles


@intrinsic
def micro_kernel_ahead(
    typingctx, mr, nv, k, read, n_read, written, n_written, a, a_row, a_col, b, b_row, d, d_row, c, c_row
):  # fmt: skip
    """Do as `micro_kernel`, and ask for memory that will be needed soon.

    The pointers `read` and `written` point at lists of at least one address each (int64), in cache lines that will be
    read, and written. They are asked for at even distances over the `k` steps, so that they arrive without holding
    the product up; of more than `k` only so many are.
    """
    operands = a, a_row, a_col, b, b_row, d, d_row, c, c_row
    return _tile_signature(mr, nv, k, read, n_read, written, n_written, *operands), _generate_tiles


def _tile_signature(*kinds):
    return types.void(*(kind if isinstance(kind, types.CPointer) else types.int64 for kind in kinds))


def _generate_tiles(context, builder, signature, args):
    """Emit one block of code for each tile shape, chosen by a jump."""
    mr, nv, k, *operands = args
    listed, ahead = None, []
    if len(operands) == 10:
        listed, *operands = operands
    elif len(operands) == 13:
        read, n_read, written, n_written, *operands = operands
        ahead = [(read, n_read, False), (written, n_written, True)]
    scalar = signature.args[-2].dtype
    vector = ir.VectorType(context.get_data_type(scalar), lanes(scalar.bitwidth // 8))
    done = builder.append_basic_block("tile.done")
    shape = builder.add(builder.mul(builder.sub(mr, _INT64(1)), _INT64(NV)), builder.sub(nv, _INT64(1)))
    choice = builder.switch(shape, done)
    for rows in range(1, MR + 1):
        for vectors in range(1, NV + 1):
            block = builder.append_basic_block(f"tile.{rows}x{vectors}")
            choice.add_case(_INT64((rows - 1) * NV + vectors - 1), block)
            builder.position_at_end(block)
            _emit_tile(builder, rows, vectors, vector, k, listed, ahead, *operands)
            builder.branch(done)
    builder.position_at_end(done)
    return context.get_dummy_value()


def _emit_tile(builder, rows, vectors, vector, k, listed, ahead, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    element = vector.element
    align = _alignment(element)
    places = [(i, j) for i in range(rows) for j in range(vectors)]

    def address(base, row_stride, i, j=0):
        return _offset(builder, base, builder.mul(row_stride, _INT64(i)), _INT64(j * vector.count))

    def load(base, row_stride, i, j):
        place = builder.bitcast(address(base, row_stride, i, j), vector.as_pointer())
        return builder.load(place, align=align)

    start = [load(d, d_row, i, j) for i, j in places]
    # Which line is next: a fraction of the steps, counted in 2^-32.
    ahead = [(lines, builder.udiv(builder.shl(n, _INT64(32)), k), to_write) for lines, n, to_write in ahead]
    before = builder.block
    loop = builder.append_basic_block("tile.loop")
    end = builder.append_basic_block("tile.end")
    builder.branch(loop)

    builder.position_at_end(loop)
    p = builder.phi(_INT64)
    sums = [builder.phi(vector) for _ in places]
    if listed is None:
        a_now, b_now = builder.phi(a.type), builder.phi(b.type)
    p_next = builder.add(p, _INT64(1))
    carried = [(p, _INT64(0), p_next)]
    if listed is None:
        carried.append((a_now, a, _offset(builder, a_now, a_col)))
        carried.append((b_now, b, _offset(builder, b_now, b_row)))
    else:
        index = builder.zext(builder.load(builder.gep(listed, [p]), align=4), _INT64)
        a_now = _offset(builder, a, builder.mul(index, a_col))
        b_now = _offset(builder, b, builder.mul(index, b_row))
    for lines, share, to_write in ahead:
        now = builder.lshr(builder.mul(p, share), _INT64(32))
        line = builder.inttoptr(builder.load(builder.gep(lines, [now]), align=8), ir.IntType(8).as_pointer())
        _emit_prefetch(builder, line, to_write=to_write)
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
        return builder.zext(builder.bitcast(bits, ir.IntType(MARKED)), _INT64)

    return types.int64(source), codegen


def _append(builder, mask, base, out, count):
    """Append base + i to a list for each i of the mask; return the new length."""
    kind = ir.VectorType(_INT32, MARKED)
    numbers = builder.add(
        emit_splat(builder, builder.trunc(base, _INT32), MARKED), ir.Constant(kind, list(range(MARKED)))
    )
    function_type = ir.FunctionType(kind, [kind, mask.type, kind])
    compress = f"llvm.experimental.vector.compress.v{MARKED}i32"
    function = cgutils.get_or_insert_function(builder.module, function_type, compress)
    packed = builder.call(function, [numbers, mask, ir.Constant(kind, ir.Undefined)])
    builder.store(packed, builder.bitcast(_offset(builder, out, count), kind.as_pointer()), align=4)
    population = builder.ctpop(builder.bitcast(mask, ir.IntType(MARKED)))
    return builder.add(count, builder.zext(population, _INT64))


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

        def emit(vectors):
            inside = emit_first_lanes(builder, vector.count, builder.sub(n, _INT64((vectors - 1) * vector.count)))
            _emit_row(builder, vectors, vector, 1, inside, *operands)

        last = builder.sdiv(builder.sub(n, _INT64(1)), _INT64(vector.count))
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
        last = builder.sdiv(builder.sub(n, _INT64(1)), _INT64(vector.count))
        _emit_choice(
            builder, "short", last, NV,
            lambda vectors: _emit_row(builder, vectors, vector, ROW_PARTS, None, k, x_, w, n, d, out),
        )  # fmt: skip
        return context.get_dummy_value()

    return _tile_signature(n, k, x, w, d, out), codegen


def _vector_of(context, scalar):
    return ir.VectorType(context.get_data_type(scalar), lanes(scalar.bitwidth // 8))


def _emit_choice(builder, name, number, count, emit):
    """Build code for 1 to `count` vectors, and a jump to that for number + 1."""
    done = builder.append_basic_block(f"{name}.done")
    choice = builder.switch(number, done)
    for vectors in range(1, count + 1):
        block = builder.append_basic_block(f"{name}.{vectors}")
        choice.add_case(_INT64(vectors - 1), block)
        builder.position_at_end(block)
        emit(vectors)
        builder.branch(done)
    builder.position_at_end(done)


def _emit_row(builder, vectors, vector, parts, inside, k, x, w, w_row, d, out):
    """Build out = d + x W in so many parts; of the last vector only the lanes `inside`, if there is such a mask."""
    align = _alignment(vector.element)

    def load(base, j):
        place = builder.bitcast(_offset(builder, base, _INT64(j * vector.count)), vector.as_pointer())
        if inside is not None and j == vectors - 1:
            return emit_masked_load(builder, place, inside)
        return builder.load(place, align=align)

    def add_products(p, sums, count):
        for part in range(count):
            index = builder.add(p, _INT64(part))
            value = emit_splat(builder, builder.load(_offset(builder, x, index), align=align), vector.count)
            row = _offset(builder, w, builder.mul(index, w_row))
            sums[part] = [emit_fma(builder, value, load(row, j), total) for j, total in enumerate(sums[part])]

    zero = ir.Constant(vector, None)
    sums = [[load(d, j) for j in range(vectors)], *([zero] * vectors for _ in range(parts - 1))]
    p = _INT64(0)
    if parts > 1:
        p, sums = _emit_steps(builder, p, parts, k, sums, add_products)
    _, sums = _emit_steps(builder, p, 1, k, sums, add_products)
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [[builder.fadd(*pair) for pair in zip(sums[i], sums[i + half], strict=True)] for i in range(half)]
    for j, result in enumerate(sums[0]):
        place = builder.bitcast(_offset(builder, out, _INT64(j * vector.count)), vector.as_pointer())
        builder.store(result, place, align=align)


def _emit_steps(builder, p, step, k, sums, add_products):
    """Build a loop over whole steps of a reduction from p on; return where it ends, and the sums."""
    before = builder.block
    head = builder.append_basic_block("row.head")
    body = builder.append_basic_block("row.body")
    end = builder.append_basic_block("row.end")
    builder.branch(head)
    builder.position_at_end(head)
    now = builder.phi(_INT64)
    flat = [total for part in sums for total in part]
    phis = [builder.phi(total.type) for total in flat]
    following = builder.add(now, _INT64(step))
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
        with builder.if_else(builder.icmp_signed("<=", n, _INT64(few))) as (then, otherwise):
            with then:
                _emit_transposition(builder, few, vector, *operands)
            with otherwise:
                _emit_transposition(builder, vector.count, vector, *operands)
        return context.get_dummy_value()

    return types.void(types.int64, source, types.int64, out, types.int64), codegen


@intrinsic
def square_like(typingctx, base):
    """Return room on the stack for a square of lanes x lanes numbers, of the type that a pointer points at."""

    def codegen(context, builder, signature, args):
        element = context.get_data_type(base.dtype)
        count = lanes(base.dtype.bitwidth // 8)
        place = cgutils.alloca_once(builder, ir.ArrayType(element, count * count))
        place.align = 64
        return builder.bitcast(place, element.as_pointer())

    return base(base), codegen


def _emit_transposition(builder, n, vector, source, source_row, out, out_row):
    """Build the transposition of the first n columns; LLVM leaves out shuffles that are not used."""
    width = vector.count

    def place(base, stride, i):
        return builder.bitcast(_offset(builder, base, builder.mul(stride, _INT64(i))), vector.as_pointer())

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
    mask = ir.Constant(ir.VectorType(_INT32, len(order)), order)
    return builder.shuffle_vector(x, y, mask)


@intrinsic
def atomic_add(typingctx, array, index, value):
    """Add to an element of an int64 array at once for all threads; return what was there."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", _offset(builder, data, args[1]), args[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx, array, index):
    """Read an element of an int64 array that other threads write."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(_offset(builder, data, args[1]), "seq_cst", 8)

    return types.int64(array, types.int64), codegen


@intrinsic
def atomic_store(typingctx, array, index, value):
    """Write an element of an int64 array that other threads read."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.store_atomic(args[2], _offset(builder, data, args[1]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), codegen


@intrinsic
def spin_pause(typingctx):
    """Tell the processor that this is a waiting loop."""

    def codegen(context, builder, signature, args):
        if _X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            pause = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause")
            builder.call(pause, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_thread(typingctx):
    """Let another thread have the processor; nothing where the system has no such call."""

    def codegen(context, builder, signature, args):
        if os.name == "posix":
            kind = ir.FunctionType(_INT32, [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen


# Where threads are told, and may choose, on which processors they run: a set is 64-bit words with a bit for each.
MOVES_THREADS = sys.platform == "linux" and sys.maxsize > 2**32
MOST_CPUS = 1024


@intrinsic
def current_cpu(typingctx):
    """Return the number of the processor that this thread runs on; -1 where the system does not tell."""

    def codegen(context, builder, signature, args):
        if not MOVES_THREADS:
            return _INT64(-1)
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_INT32, []), "sched_getcpu")
        return builder.sext(builder.call(function, []), _INT64)

    return types.int64(), codegen


def _cpu_set_call(name, description):
    @intrinsic
    def function(typingctx, cpus):
        def codegen(context, builder, signature, args):
            if not MOVES_THREADS:
                return _INT64(-1)
            kind = ir.FunctionType(_INT32, [_INT32, _INT64, args[0].type])
            called = cgutils.get_or_insert_function(builder.module, kind, name)
            failed = builder.call(called, [_INT32(0), _INT64(MOST_CPUS // 8), args[0]])
            return builder.sext(failed, _INT64)

        return types.int64(cpus), codegen

    function.__doc__ = description
    return function


get_cpus = _cpu_set_call(
    "sched_getaffinity", "Get the set, of MOST_CPUS bits, of the processors that this thread may use; not 0 on failure."
)
set_cpus = _cpu_set_call(
    "sched_setaffinity", "Allow this thread a set of processors, to which it moves; not 0 on failure."
)


@intrinsic
def call_at(typingctx, address, args):
    """Call the compiled function at an address with the elements of a tuple; it returns nothing.

    A function that is called by its name is compiled once more into its caller.
    """

    def codegen(context, builder, signature, values):
        kind = context.call_conv.get_function_type(types.none, args.types)
        function = builder.inttoptr(values[0], kind.as_pointer())
        unpacked = [builder.extract_value(values[1], i) for i in range(len(args))]
        context.call_conv.call_function(builder, function, types.none, args.types, unpacked)
        return context.get_dummy_value()

    return types.void(address, args), codegen


# Flush-to-zero: bits 15 and 6 of MXCSR (subnormal results, subnormal inputs), bit 24 of FPCR.
_FLUSH_X86 = 0x8040
_FLUSH_ARM64 = 1 << 24


@intrinsic
def flush_subnormals(typingctx):
    """Make this thread take subnormal numbers as zero; return the former mode.

    Sums of units that have stopped learning decay into the subnormal numbers, whose
    arithmetic is up to a hundred times slower.
    """

    def codegen(context, builder, signature, args):
        if _X86:
            mode = _read_mxcsr(builder)
            _write_mxcsr(builder, builder.or_(mode, _INT32(_FLUSH_X86)))
            return builder.zext(mode, _INT64)
        if _ARM64:
            mode = _read_fpcr(builder)
            _write_fpcr(builder, builder.or_(mode, _INT64(_FLUSH_ARM64)))
            return mode
        return _INT64(0)

    return types.int64(), codegen


@intrinsic
def restore_subnormals(typingctx, mode):
    """Go back to the mode that `flush_subnormals` returned."""

    def codegen(context, builder, signature, args):
        if _X86:
            _write_mxcsr(builder, builder.trunc(args[0], _INT32))
        elif _ARM64:
            _write_fpcr(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _read_mxcsr(builder):
    slot = cgutils.alloca_once(builder, _INT32)
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    read = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.stmxcsr")
    builder.call(read, [builder.bitcast(slot, ir.IntType(8).as_pointer())])
    return builder.load(slot)


def _write_mxcsr(builder, mode):
    slot = cgutils.alloca_once(builder, _INT32)
    builder.store(mode, slot)
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    write = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
    builder.call(write, [builder.bitcast(slot, ir.IntType(8).as_pointer())])


def _read_fpcr(builder):
    kind = ir.FunctionType(_INT64, [])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.get.fpcr"), [])


def _write_fpcr(builder, mode):
    kind = ir.FunctionType(ir.VoidType(), [_INT64])
    write = cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.set.fpcr")
    builder.call(write, [mode])
