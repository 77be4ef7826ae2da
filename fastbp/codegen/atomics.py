"""Atomic operations on int64 numbers in memory that threads share."""

from numba import types
from numba.extending import intrinsic

from fastbp.codegen.emit import emit_offset


@intrinsic
def atomic_add(typingctx, base, index, value):
    """Add to the element `index` of the memory that a pointer points at; return its value before."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", emit_offset(builder, *args[:2]), args[2], "seq_cst")

    return types.int64(base, types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx, base, index):
    """Load the element `index` of memory to which other threads store."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(emit_offset(builder, *args[:2]), "seq_cst", 8)

    return types.int64(base, types.int64), codegen


@intrinsic
def atomic_store(typingctx, base, index, value):
    """Store the element `index` of memory from which other threads load."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[2], emit_offset(builder, *args[:2]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(base, types.int64, types.int64), codegen


@intrinsic
def atomic_replace(typingctx, base, index, expected, value):
    """Store the element `index` of memory if it is as expected; return whether it was."""

    def codegen(context, builder, signature, args):
        place = emit_offset(builder, *args[:2])
        return builder.extract_value(builder.cmpxchg(place, args[2], args[3], "seq_cst", "seq_cst"), 1)

    return types.boolean(base, types.int64, types.int64, types.int64), codegen
