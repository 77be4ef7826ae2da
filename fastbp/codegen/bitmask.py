"""Bit masks of non-zeros, and lists of the indices of their set bits."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbp.codegen.emit import INT32, INT64, emit_call, emit_first_lanes, emit_offset, emit_splat

# Bits of a mask: one for each of as many neighbouring numbers.
MASK_BITS = 16
_MASK = ir.IntType(MASK_BITS)


@intrinsic
def nonzero_mask(typingctx, source):
    """Return the bit mask of the non-zeros among the first MASK_BITS numbers of a pointer."""
    scalar = source.dtype

    def codegen(context, builder, signature, args):
        kind = ir.VectorType(context.get_data_type(scalar), MASK_BITS)
        values = builder.load(builder.bitcast(args[0], kind.as_pointer()), align=scalar.bitwidth // 8)
        bits = builder.fcmp_unordered("!=", values, ir.Constant(kind, None))
        return builder.zext(builder.bitcast(bits, _MASK), INT64)

    return types.int64(source), codegen


def _emit_append(builder, lanes, base, out, count):
    """Append base + i to a list for each true lane i; return the new length."""
    kind = ir.VectorType(INT32, MASK_BITS)
    numbers = builder.add(
        emit_splat(builder, builder.trunc(base, INT32), MASK_BITS), ir.Constant(kind, list(range(MASK_BITS)))
    )
    compress = f"llvm.experimental.vector.compress.v{MASK_BITS}i32"
    packed = emit_call(builder, compress, kind, [numbers, lanes, ir.Constant(kind, ir.Undefined)])
    builder.store(packed, builder.bitcast(emit_offset(builder, out, count), kind.as_pointer()), align=4)
    population = builder.ctpop(builder.bitcast(lanes, _MASK))
    return builder.add(count, builder.zext(population, INT64))


@intrinsic
def append_set_bits(typingctx, mask, base, out, count):
    """Append base + i to the int32 list `out` of `count` entries for each set bit i; return the new count.

    MASK_BITS entries are written, of which those behind the new count are meaningless.
    """

    def codegen(context, builder, signature, args):
        mask, base, out, count = args
        lanes = builder.bitcast(builder.trunc(mask, _MASK), ir.VectorType(ir.IntType(1), MASK_BITS))
        return _emit_append(builder, lanes, base, out, count)

    return types.int64(types.int64, types.int64, out, types.int64), codegen


@intrinsic
def append_where_any(typingctx, masks, bits, n, base, out, count):
    """Append base + i to the list `out` where masks[i], for i below n and MASK_BITS, has any of the bits."""

    def codegen(context, builder, signature, args):
        masks, bits, n, base, out, count = args
        kind = ir.VectorType(_MASK, MASK_BITS)
        values = builder.load(builder.bitcast(masks, kind.as_pointer()), align=MASK_BITS // 8)
        found = builder.and_(values, emit_splat(builder, builder.trunc(bits, _MASK), MASK_BITS))
        lanes = builder.icmp_unsigned("!=", found, ir.Constant(kind, None))
        lanes = builder.and_(lanes, emit_first_lanes(builder, MASK_BITS, n))
        return _emit_append(builder, lanes, base, out, count)

    return types.int64(masks, types.int64, types.int64, types.int64, out, types.int64), codegen
