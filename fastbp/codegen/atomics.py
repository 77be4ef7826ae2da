"""Atomic operations on the elements of int64 arrays, which threads share."""

from numba import types
from numba.extending import intrinsic

from fastbp.codegen.emit import emit_offset


@intrinsic
def atomic_add(typingctx, array, index, value):
    """Add to an element of an int64 array; return what it was before."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", emit_offset(builder, data, args[1]), args[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx, array, index):
    """Load an element of an int64 array that other threads store."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(emit_offset(builder, data, args[1]), "seq_cst", 8)

    return types.int64(array, types.int64), codegen


@intrinsic
def atomic_store(typingctx, array, index, value):
    """Store an element of an int64 array that other threads load."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.store_atomic(args[2], emit_offset(builder, data, args[1]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), codegen
