"""Vectors as a type of compiled code: arithmetic on one whole register at a time.

LLVM vectorizes a plain loop where it sees fit, and computes the remainder one by one: for layers of a few units that is
most of the work. With this type a formula is written as if for one number, and computed for a register of them:
``1 / (1 + exp(-slope * z))`` with `z` a vector.

A `Vector` is a local variable of a kernel. `load` or `splat` makes it. Operators ``+ - * /``, comparisons and the
functions below combine it with other vectors of its type, or with scalars, which are converted to its type. `store`
writes it to memory.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, register_model

from fastbp.codegen.emit import (
    INT32,
    emit_call,
    emit_first_lanes,
    emit_fma,
    emit_masked_load,
    emit_shuffle,
    emit_splat,
)
from fastbp.codegen.target import lanes


class Vector(types.Type):
    """As many numbers of one type as a vector register of this machine holds."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.count = lanes(dtype.bitwidth // 8)
        super().__init__(name=f"Vector({dtype} x {self.count})")


class Mask(types.Type):
    """The result of a comparison of two vectors: true or false for each lane."""

    def __init__(self, count):
        self.count = count
        super().__init__(name=f"Mask({count})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        element = dmm.lookup(fe_type.dtype).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.count))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(ir.IntType(1), fe_type.count))


def _as_vector(context, builder, value, kind, vector):
    """Return `value` as a vector; a scalar is copied to all lanes."""
    if isinstance(kind, Vector):
        return value
    return emit_splat(builder, context.cast(builder, value, kind, vector.dtype), vector.count)


def _common(args):
    """Return the one vector type among the arguments, if all others are scalars."""
    vectors = {arg for arg in args if isinstance(arg, Vector)}
    others = [arg for arg in args if not isinstance(arg, Vector)]
    if len(vectors) == 1 and all(isinstance(arg, types.Number) for arg in others):
        return vectors.pop()
    return None


_ARITHMETIC: dict = {
    operator.add: ("fadd", "add"),
    operator.sub: ("fsub", "sub"),
    operator.mul: ("fmul", "mul"),
    operator.truediv: ("fdiv", None),
    operator.lshift: (None, "shl"),
    operator.rshift: (None, "ashr"),
}
_COMPARISONS = {operator.lt: "<", operator.gt: ">", operator.le: "<=", operator.ge: ">="}


class _Template(AbstractTemplate):
    """Says the type of an operator's result. Numba tries what is for the CPU first, then thirty of its own."""

    metadata = {"target": "cpu"}


def _register_binary(function):
    class Typing(_Template):
        def generic(self, args, kws):
            vector = _common(args) if len(args) == 2 else None
            if vector is None:
                return None
            result = Mask(vector.count) if function in _COMPARISONS else vector
            return signature(result, *args)

    infer_global(function)(Typing)

    def lower(context, builder, sig, args):
        vector = _common(sig.args)
        x, y = (_as_vector(context, builder, v, t, vector) for v, t in zip(args, sig.args, strict=True))
        real = isinstance(vector.dtype, types.Float)
        if function in _COMPARISONS:
            compare = builder.fcmp_ordered if real else builder.icmp_signed
            return compare(_COMPARISONS[function], x, y)
        return getattr(builder, _ARITHMETIC[function][0 if real else 1])(x, y)

    for pair in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(function, *pair)(lower)


for _function in (*_ARITHMETIC, *_COMPARISONS):
    _register_binary(_function)


@infer_global(operator.neg)
class _Negation(_Template):
    def generic(self, args, kws):
        return signature(args[0], args[0]) if isinstance(args[0], Vector) else None


@lower_builtin(operator.neg, Vector)
def _negate(context, builder, sig, args):
    return builder.fneg(args[0])


def _call(builder, name, *args):
    """Call an LLVM intrinsic of vectors of floats."""
    kind = args[0].type
    suffix = f"v{kind.count}f{32 if isinstance(kind.element, ir.FloatType) else 64}"
    return emit_call(builder, f"{name}.{suffix}", kind, args)


def _place(builder, kind, pointer, offset):
    return builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer())


@intrinsic
def load(typingctx, pointer, offset):
    """Load the vector that begins at the element `offset` of the memory that a pointer points at."""
    vector = Vector(pointer.dtype)

    def codegen(context, builder, sig, args):
        kind = context.get_value_type(vector)
        return builder.load(_place(builder, kind, *args), align=vector.dtype.bitwidth // 8)

    return vector(pointer, types.int64), codegen


@intrinsic
def store(typingctx, pointer, offset, value):
    """Store a vector from the element `offset` on."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], _place(builder, args[2].type, *args[:2]), align=value.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, value), codegen


@intrinsic
def load_first(typingctx, pointer, offset, count):
    """Load the first `count` numbers of a vector; the other lanes are zero, and their memory is not touched."""
    vector = Vector(pointer.dtype)

    def codegen(context, builder, sig, args):
        place = _place(builder, context.get_value_type(vector), *args[:2])
        return emit_masked_load(builder, place, emit_first_lanes(builder, vector.count, args[2]))

    return vector(pointer, types.int64, types.int64), codegen


@intrinsic
def load_converted(typingctx, pointer, offset, count, like):
    """Load up to `count` floats or unsigned integers, converted to the type of the pointer `like`.

    The other lanes are zero, and their memory is not touched.
    """
    vector = Vector(like.dtype)

    def codegen(context, builder, sig, args):
        source = ir.VectorType(context.get_data_type(pointer.dtype), vector.count)
        inside = emit_first_lanes(builder, vector.count, args[2])
        values = emit_masked_load(builder, _place(builder, source, *args[:2]), inside)
        target = context.get_value_type(vector)
        if source == target:
            return values
        if isinstance(pointer.dtype, types.Integer):
            return builder.uitofp(values, target)
        return (builder.fpext if pointer.dtype.bitwidth < like.dtype.bitwidth else builder.fptrunc)(values, target)

    return vector(pointer, types.int64, types.int64, like), codegen


@intrinsic
def splat(typingctx, pointer, value):
    """Return a vector of the pointer's type with one value in all lanes."""
    vector = Vector(pointer.dtype)

    def codegen(context, builder, sig, args):
        return _as_vector(context, builder, args[1], value, vector)

    return vector(pointer, value), codegen


@intrinsic
def progression(typingctx, pointer, first, step):
    """Return the vector first, first + step, first + 2 step, ... of the pointer's type of integers."""
    vector = Vector(pointer.dtype)

    def codegen(context, builder, sig, args):
        kind = context.get_value_type(vector)
        steps = builder.mul(ir.Constant(kind, list(range(vector.count))), emit_splat(builder, args[2], vector.count))
        return builder.add(emit_splat(builder, args[1], vector.count), steps)

    return vector(pointer, pointer.dtype, pointer.dtype), codegen


@intrinsic
def first_lanes(typingctx, value, n):
    """Return the mask of the first n lanes of a vector of the type of `value`."""

    def codegen(context, builder, sig, args):
        return emit_first_lanes(builder, value.count, args[1])

    return Mask(value.count)(value, types.int64), codegen


@intrinsic
def any_lane(typingctx, mask):
    """Whether a mask is true in any lane."""

    def codegen(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.IntType(mask.count))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask), codegen


@intrinsic
def select(typingctx, mask, x, y):
    """Return x where the mask is true, else y; at least one of them is a vector."""
    vector = _common((x, y))

    def codegen(context, builder, sig, args):
        chosen = (_as_vector(context, builder, v, t, vector) for v, t in zip(args[1:], sig.args[1:], strict=True))
        return builder.select(args[0], *chosen)

    return vector(mask, x, y), codegen


@intrinsic
def fma(typingctx, x, y, z):
    """Return x * y + z, with one rounding where the target has FMA."""
    vector = _common((x, y, z))

    def codegen(context, builder, sig, args):
        return emit_fma(
            builder, *(_as_vector(context, builder, v, t, vector) for v, t in zip(args, sig.args, strict=True))
        )

    return vector(x, y, z), codegen


@intrinsic(prefer_literal=True)
def load_rows(typingctx, base, row, n):
    """Load a vector from each of n rows, `row` numbers apart: a tuple for `sum_products`; n is a constant."""
    vector = Vector(base.dtype)
    rows = types.UniTuple(vector, n.literal_value)

    def codegen(context, builder, sig, args):
        kind = context.get_value_type(vector)
        places = (_place(builder, kind, args[0], builder.mul(args[1], args[1].type(i))) for i in range(rows.count))
        values = [builder.load(place, align=base.dtype.bitwidth // 8) for place in places]
        return context.make_tuple(builder, rows, values)

    return rows(base, types.int64, n), codegen


@intrinsic
def sum_products(typingctx, base, row, vectors):
    """Multiply the vectors of a tuple by scalars, each `row` numbers from the one before, and add up from zero on."""
    vector = vectors.dtype

    def codegen(context, builder, sig, args):
        kind = context.get_value_type(vector)
        result = ir.Constant(kind, None)
        for i in range(vectors.count):
            place = builder.gep(args[0], [builder.mul(args[1], args[1].type(i))])
            value = emit_splat(builder, builder.load(place, align=base.dtype.bitwidth // 8), vector.count)
            result = emit_fma(builder, value, builder.extract_value(args[2], i), result)
        return result

    return vector(base, types.int64, vectors), codegen


def _unary(name, description):
    @intrinsic
    def function(typingctx, x):
        def codegen(context, builder, sig, args):
            return _call(builder, name, args[0])

        return x(x), codegen

    function.__doc__ = description
    return function


floor = _unary("llvm.floor", "Round down.")
sqrt = _unary("llvm.sqrt", "Return the square root, correctly rounded.")
absolute = _unary("llvm.fabs", "Return the absolute value.")


@intrinsic
def with_sign_of(typingctx, x, y):
    """Return x with the sign of y."""

    def codegen(context, builder, sig, args):
        return _call(builder, "llvm.copysign", *args)

    return x(x, y), codegen


_WHOLE = {types.float32: types.int32, types.float64: types.int64}
_REAL = {whole: real for real, whole in _WHOLE.items()}


def _conversion(kinds, build, description):
    @intrinsic
    def function(typingctx, x):
        result = Vector(kinds[x.dtype])

        def codegen(context, builder, sig, args):
            return getattr(builder, build)(args[0], context.get_value_type(result))

        return result(x), codegen

    function.__doc__ = description
    return function


to_whole = _conversion(_WHOLE, "fptosi", "Convert floats that are whole numbers to integers of as many bits.")
from_whole = _conversion(_REAL, "sitofp", "Convert integers to floats of as many bits.")
bits_as_float = _conversion(_REAL, "bitcast", "Reinterpret the bits of integers as floats.")
float_as_bits = _conversion(_WHOLE, "bitcast", "Reinterpret the bits of floats as integers.")


def _halving(combine, description):
    @intrinsic
    def function(typingctx, x):
        def codegen(context, builder, sig, args):
            value = args[0]
            half = x.count // 2
            while half:
                order = [(i + half) % x.count for i in range(x.count)]
                other = emit_shuffle(builder, value, value, order)
                value = combine(builder, value, other)
                half //= 2
            return builder.extract_element(value, INT32(0))

        return x.dtype(x), codegen

    function.__doc__ = description
    return function


def _larger(builder, x, y):
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


total = _halving(lambda builder, x, y: builder.fadd(x, y), "Add up the numbers of a vector, always in the same order.")
largest = _halving(_larger, "Return the largest number of a vector.")
