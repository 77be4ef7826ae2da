"""Random bits of counters: a function of the place where they are needed, not of those that were drawn before.

So they are the same in any order and for any number of threads (Salmon et al. 2011), and, being made of integers of 32
bits, for any width of the vector registers.

References
----------
J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
G. L. Steele, D. Lea and C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
C. Wellons, "Prospecting for hash functions", nullprogram.com, 2018: the function "lowbias32".
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbp.codegen.emit import INT32, INT64, emit_splat
from fastbp.codegen.target import lanes
from fastbp.codegen.vectors import Mask

# The golden ratio in 64 and in 32 bits: multiples of it are far apart.
_GOLDEN_64, _GOLDEN_32 = 0x9E3779B97F4A7C15, 0x9E3779B9


def _signed(value, bits):
    """Return an unsigned number as LLVM's assembly takes it."""
    return value - (1 << bits) if value >> (bits - 1) else value


def _constant(kind, value):
    """Return a constant of a type of integers, or a vector with it in all lanes."""
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    value = _signed(value, element.width)
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _emit_fold(builder, x, shift):
    """Compute x ^ (x >> shift)."""
    return builder.xor(x, builder.lshr(x, _constant(x.type, shift)))


def _emit_product(builder, x, factor):
    return builder.mul(x, _constant(x.type, factor))


@intrinsic
def split(typingctx, key, counter):
    """Return the number `counter` of the sequence of a key, both int64: itself a key.

    That is the output `counter` + 1 of splitmix64 with the seed `key` (Steele et al. 2014, Fig. 17).
    """

    def codegen(context, builder, signature, args):
        following = builder.add(args[1], INT64(1))
        z = builder.add(args[0], _emit_product(builder, following, _GOLDEN_64))
        z = _emit_product(builder, _emit_fold(builder, z, 30), 0xBF58476D1CE4E5B9)
        z = _emit_product(builder, _emit_fold(builder, z, 27), 0x94D049BB133111EB)
        return _emit_fold(builder, z, 31)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def random_at_least(typingctx, like, key, first, threshold):
    """Return for which of the counters first, first + 1, ... 32 random bits are `threshold` or more.

    The bits are lowbias32(low + counter * golden ratio), with the key's high half mixed in after the first product: two
    keys with overlapping low halves have unlike bits.

    Parameters
    ----------
    like : pointer
        The mask has as many lanes as a vector of its type.
    key, first, threshold : int64
        The threshold is below 2^32.
    """
    count = lanes(like.dtype.bitwidth // 8)

    def codegen(context, builder, signature, args):
        _, key, first, threshold = args
        kind = ir.VectorType(INT32, count)

        def spread(value):
            return emit_splat(builder, builder.trunc(value, INT32), count)

        x = builder.add(spread(first), ir.Constant(kind, list(range(count))))
        x = builder.add(spread(key), _emit_product(builder, x, _GOLDEN_32))
        x = _emit_product(builder, _emit_fold(builder, x, 16), 0x7FEB352D)
        x = builder.xor(x, spread(builder.lshr(key, INT64(32))))
        x = _emit_product(builder, _emit_fold(builder, x, 15), 0x846CA68B)
        return builder.icmp_unsigned(">=", _emit_fold(builder, x, 16), spread(threshold))

    return Mask(count)(like, types.int64, types.int64, types.int64), codegen
