"""Memory: typed pointers, scalar loads and stores, prefetch.

Kernels pass a matrix as a typed pointer and strides, which count elements: a pointer is one register, a NumPy array is
seven, and Numba counts its references with an atomic operation wherever one changes hands.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.numpy_support import as_dtype

from fastbp.codegen.emit import BYTES, INT64, emit_call, emit_offset, emit_prefetch
from fastbp.codegen.target import lanes


@intrinsic
def pointer(typingctx, array, index):
    """Point at the element `index` of a contiguous array."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return emit_offset(builder, data, args[1])

    return types.CPointer(array.dtype)(array, types.int64), codegen


@intrinsic
def pointer_at(typingctx, like, address):
    """Make a pointer of the same type as `like` from an address."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[1], args[0].type)

    return like(like, types.int64), codegen


@intrinsic
def integers_at(typingctx, address):
    """Make a pointer to int64 from an address."""
    kind = types.CPointer(types.int64)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.int64), codegen


@intrinsic
def allocate(typingctx, like, n):
    """Allocate memory for n numbers of a pointer's type; it begins at no special multiple. The address 0 on failure."""

    def codegen(context, builder, signature, args):
        n_bytes = builder.mul(args[1], INT64(like.dtype.bitwidth // 8))
        return builder.bitcast(emit_call(builder, "malloc", BYTES, [n_bytes]), args[0].type)

    return like(like, types.int64), codegen


@intrinsic
def release(typingctx, base):
    """Give back memory from `allocate`."""

    def codegen(context, builder, signature, args):
        emit_call(builder, "free", ir.VoidType(), [builder.bitcast(args[0], BYTES)])
        return context.get_dummy_value()

    return types.void(base), codegen


@intrinsic
def float_of_bits(typingctx, bits):
    """Reinterpret the bits of an int64 as a float64."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_data_type(types.float64))

    return types.float64(types.int64), codegen


@intrinsic
def address(typingctx, base, index):
    """Return the address of the element `index` of the memory that a pointer points at."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(emit_offset(builder, *args), INT64)

    return types.int64(base, types.int64), codegen


@intrinsic
def load_scalar(typingctx, base, index):
    """Load the element `index` of the memory that a pointer points at."""

    def codegen(context, builder, signature, args):
        return builder.load(emit_offset(builder, *args), align=base.dtype.bitwidth // 8)

    return base.dtype(base, types.int64), codegen


def record_loader(record):
    """Make the function that loads record `index` of a table: a named tuple whose fields have the pointer's type.

    Loads of single fields, inlined many times, took most of the time of compiling.
    """
    n_fields = len(record._fields)

    @intrinsic
    def load_record(typingctx, base, index):
        kind = types.NamedUniTuple(base.dtype, n_fields, record)

        def codegen(context, builder, signature, args):
            first = builder.mul(args[1], INT64(n_fields))
            fields = [builder.load(emit_offset(builder, args[0], first, INT64(i))) for i in range(n_fields)]
            return context.make_tuple(builder, kind, fields)

        return kind(base, types.int64), codegen

    return load_record


@intrinsic
def store_scalar(typingctx, base, index, value):
    """Store a scalar at the element `index` of the memory that a pointer points at, converted to its type."""

    def codegen(context, builder, signature, args):
        converted = context.cast(builder, args[2], value, base.dtype)
        builder.store(converted, emit_offset(builder, *args[:2]), align=base.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(base, types.int64, value), codegen


def _prefetch(description, **kwargs):
    @intrinsic
    def function(typingctx, base, index):
        def codegen(context, builder, signature, args):
            place = builder.bitcast(emit_offset(builder, *args), BYTES)
            emit_prefetch(builder, place, **kwargs)
            return context.get_dummy_value()

        return types.void(base, types.int64), codegen

    function.__doc__ = description
    return function


prefetch = _prefetch("Prefetch the cache line of the element `index`.")
prefetch_for_write = _prefetch("Prefetch the cache line of the element `index`, to write to it.", for_write=True)


@intrinsic
def offset(typingctx, base, n):
    """Move a pointer by n elements."""

    def codegen(context, builder, signature, args):
        return emit_offset(builder, args[0], args[1])

    return base(base, types.int64), codegen


@intrinsic
def lane_count(typingctx, base):
    """Count the numbers of a pointer's type in one vector register; a constant in compiled code."""

    def codegen(context, builder, signature, args):
        return INT64(lanes(base.dtype.bitwidth // 8))

    return types.int64(base), codegen


@intrinsic
def itemsize(typingctx, base):
    """Count the bytes of a number of a pointer's type; a constant in compiled code."""

    def codegen(context, builder, signature, args):
        return INT64(base.dtype.bitwidth // 8)

    return types.int64(base), codegen


@intrinsic
def machine_epsilon(typingctx, base):
    """Return the machine epsilon of a pointer's type of floats; a constant in compiled code."""

    def codegen(context, builder, signature, args):
        eps = np.finfo(as_dtype(base.dtype)).eps
        return context.get_constant(types.float64, float(eps))

    return types.float64(base), codegen


@intrinsic
def stack_square(typingctx, like):
    """Reserve stack memory for a square of lanes x lanes numbers of the pointer's type."""

    def codegen(context, builder, signature, args):
        element = context.get_data_type(like.dtype)
        count = lanes(like.dtype.bitwidth // 8)
        with builder.goto_entry_block():  # once for a call, and not set to zeros
            place = builder.alloca(ir.ArrayType(element, count * count))
        place.align = 64
        return builder.bitcast(place, element.as_pointer())

    return like(like), codegen
