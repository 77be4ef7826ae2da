"""The few operations that Numba cannot express, as LLVM IR: pointers, calls by address, the mode of arithmetic.

Matrices are passed between kernels as a typed pointer and strides, counted in
elements: a pointer is one register, an array is seven.

Of the same kind are `simd` (vectors), `tiles` (products in registers) and `concurrency` (what threads need).
"""

import platform

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.core.config import CPU_FEATURES, CPU_NAME
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

INT64 = ir.IntType(64)
INT32 = ir.IntType(32)
X86 = platform.machine().lower() in ("x86_64", "amd64", "x86", "i686")
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
HAS_FMA = not X86 or "fma" in _FEATURES
VECTOR_BITS = 512 if "avx512f" in _FEATURES else 256 if "avx" in _FEATURES else 128


def lanes(itemsize):
    """Count the numbers of `itemsize` bytes in one vector register."""
    return VECTOR_BITS // (8 * itemsize)


def emit_offset(builder, pointer, *terms):
    """Build a pointer moved by the sum of some numbers of elements."""
    total = terms[0]
    for term in terms[1:]:
        total = builder.add(total, term)
    return builder.gep(pointer, [total])


@intrinsic
def pointer(typingctx, array, offset):
    """Point at element `offset` of a contiguous array, counted in its own elements."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return emit_offset(builder, data, args[1])

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
        return builder.ptrtoint(emit_offset(builder, *args), INT64)

    return types.int64(base, types.int64), codegen


@intrinsic
def get(typingctx, base, index):
    """Read the element `index` behind a pointer."""

    def codegen(context, builder, signature, args):
        return builder.load(emit_offset(builder, *args), align=base.dtype.bitwidth // 8)

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
            first = builder.mul(args[1], INT64(n_fields))
            fields = [builder.load(emit_offset(builder, args[0], first, INT64(i))) for i in range(n_fields)]
            return context.make_tuple(builder, kind, fields)

        return kind(base, types.int64), codegen

    return read


@intrinsic
def put(typingctx, base, index, value):
    """Write the element `index` behind a pointer, converted to its type."""

    def codegen(context, builder, signature, args):
        converted = context.cast(builder, args[2], value, base.dtype)
        builder.store(converted, emit_offset(builder, *args[:2]), align=base.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(base, types.int64, value), codegen


def emit_prefetch(builder, place, *, to_write=False):
    """Build the wish for a cache line."""
    kind = ir.FunctionType(ir.VoidType(), [place.type, INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, INT32(int(to_write)), INT32(3), INT32(1)])


def _prefetch(description, **kwargs):
    @intrinsic
    def function(typingctx, base, index):
        def codegen(context, builder, signature, args):
            place = builder.bitcast(emit_offset(builder, *args), ir.IntType(8).as_pointer())
            emit_prefetch(builder, place, **kwargs)
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
        return emit_offset(builder, args[0], args[1])

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
        return INT64(lanes(base.dtype.bitwidth // 8))

    return types.int64(base), codegen


@intrinsic
def itemsize(typingctx, base):
    """Count the bytes of a number behind a pointer: a constant."""

    def codegen(context, builder, signature, args):
        return INT64(base.dtype.bitwidth // 8)

    return types.int64(base), codegen


def emit_splat(builder, value, count):
    """Build a vector with one value in all its places."""
    kind = ir.VectorType(value.type, count)
    undefined = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(undefined, value, INT32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(INT32, count), None))


def emit_first_lanes(builder, count, n):
    """Build the mask of the first n of `count` lanes."""
    numbers = ir.Constant(ir.VectorType(INT64, count), list(range(count)))
    return builder.icmp_signed("<", numbers, emit_splat(builder, n, count))


def emit_masked_load(builder, place, mask):
    """Load a vector where the mask is true, zeros elsewhere; memory under false is not touched."""
    kind = place.type.pointee
    element = {ir.FloatType(): "f32", ir.DoubleType(): "f64", ir.IntType(8): "i8"}[kind.element]
    bits = int(element[1:])
    function_type = ir.FunctionType(kind, [place.type, INT32, mask.type, kind])
    name = f"llvm.masked.load.v{kind.count}{element}.p0"
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, [place, INT32(bits // 8), mask, ir.Constant(kind, None)])


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
def square_like(typingctx, base):
    """Return room on the stack for a square of lanes x lanes numbers, of the type that a pointer points at."""

    def codegen(context, builder, signature, args):
        element = context.get_data_type(base.dtype)
        count = lanes(base.dtype.bitwidth // 8)
        with builder.goto_entry_block():  # once for a call, and not set to zeros
            place = builder.alloca(ir.ArrayType(element, count * count))
        place.align = 64
        return builder.bitcast(place, element.as_pointer())

    return base(base), codegen


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
        if X86:
            mode = _read_mxcsr(builder)
            _write_mxcsr(builder, builder.or_(mode, INT32(_FLUSH_X86)))
            return builder.zext(mode, INT64)
        if _ARM64:
            mode = _read_fpcr(builder)
            _write_fpcr(builder, builder.or_(mode, INT64(_FLUSH_ARM64)))
            return mode
        return INT64(0)

    return types.int64(), codegen


@intrinsic
def restore_subnormals(typingctx, mode):
    """Go back to the mode that `flush_subnormals` returned."""

    def codegen(context, builder, signature, args):
        if X86:
            _write_mxcsr(builder, builder.trunc(args[0], INT32))
        elif _ARM64:
            _write_fpcr(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _read_mxcsr(builder):
    slot = cgutils.alloca_once(builder, INT32)
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    read = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.stmxcsr")
    builder.call(read, [builder.bitcast(slot, ir.IntType(8).as_pointer())])
    return builder.load(slot)


def _write_mxcsr(builder, mode):
    slot = cgutils.alloca_once(builder, INT32)
    builder.store(mode, slot)
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    write = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
    builder.call(write, [builder.bitcast(slot, ir.IntType(8).as_pointer())])


def _read_fpcr(builder):
    kind = ir.FunctionType(INT64, [])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.get.fpcr"), [])


def _write_fpcr(builder, mode):
    kind = ir.FunctionType(ir.VoidType(), [INT64])
    write = cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.set.fpcr")
    builder.call(write, [mode])
