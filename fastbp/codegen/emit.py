"""Pieces of LLVM IR that several modules of this package build. `builder` is llvmlite's `IRBuilder` in all of them."""

from llvmlite import ir
from numba.core import cgutils

from fastbp.codegen.target import HAS_FMA, lanes

INT64 = ir.IntType(64)
INT32 = ir.IntType(32)
BYTES = ir.IntType(8).as_pointer()


def emit_call(builder, name, returned, arguments):
    """Call an LLVM intrinsic or a C function by its name; `returned` is the type of its result."""
    kind = ir.FunctionType(returned, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def emit_offset(builder, pointer, *terms):
    """Move a pointer by the sum of some numbers of elements."""
    total = terms[0]
    for term in terms[1:]:
        total = builder.add(total, term)
    return builder.gep(pointer, [total])


def emit_prefetch(builder, place, *, for_write=False):
    """Prefetch the cache line of a pointer to bytes into the first level of the cache."""
    emit_call(builder, "llvm.prefetch.p0", ir.VoidType(), [place, INT32(int(for_write)), INT32(3), INT32(1)])


def emit_splat(builder, value, count):
    """Copy a scalar to all lanes of a vector."""
    kind = ir.VectorType(value.type, count)
    undefined = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(undefined, value, INT32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(INT32, count), None))


def emit_shuffle(builder, x, y, order):
    """Permute the lanes of two vectors: `order` counts those of x, then those of y."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(INT32, len(order)), order))


def emit_first_lanes(builder, count, n):
    """Make the mask of the first n of `count` lanes."""
    numbers = ir.Constant(ir.VectorType(INT64, count), list(range(count)))
    return builder.icmp_signed("<", numbers, emit_splat(builder, n, count))


def emit_masked_load(builder, place, mask):
    """Load a vector where the mask is true, zeros elsewhere; memory under false is not touched."""
    kind = place.type.pointee
    element = {ir.FloatType(): "f32", ir.DoubleType(): "f64", ir.IntType(8): "i8"}[kind.element]
    arguments = [place, INT32(int(element[1:]) // 8), mask, ir.Constant(kind, None)]
    return emit_call(builder, f"llvm.masked.load.v{kind.count}{element}.p0", kind, arguments)


def emit_fma(builder, x, y, z):
    """Compute x*y + z: rounded once where the target has FMA, else twice."""
    if not HAS_FMA:
        return builder.fadd(builder.fmul(x, y), z)
    scalar = x.type.element if isinstance(x.type, ir.VectorType) else x.type
    suffix = "f32" if isinstance(scalar, ir.FloatType) else "f64"
    if isinstance(x.type, ir.VectorType):
        suffix = f"v{x.type.count}{suffix}"
    return emit_call(builder, f"llvm.fma.{suffix}", x.type, [x, y, z])


def emit_switch(builder, name, number, count, emit):
    """Jump to the code that `emit(i)` builds for i = `number`, which is below `count`."""
    done = builder.append_basic_block(f"{name}.done")
    switch = builder.switch(number, done)
    for i in range(count):
        block = builder.append_basic_block(f"{name}.{i}")
        switch.add_case(INT64(i), block)
        builder.position_at_end(block)
        emit(i)
        builder.branch(done)
    builder.position_at_end(done)


def emit_loop(builder, name, start, body):
    """Build a loop that runs at least once.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
        Where to build it.
    name : str
        Of its blocks.
    start : list of llvmlite values
        What it carries, before the first pass.
    body : callable
        Builds one pass: takes the carried values, returns those of the next pass, and whether there is one.

    Returns
    -------
    list of llvmlite values
        The carried values after the last pass.
    """
    before = builder.block
    loop = builder.append_basic_block(f"{name}.loop")
    end = builder.append_basic_block(f"{name}.end")
    builder.branch(loop)
    builder.position_at_end(loop)
    carried = [builder.phi(value.type) for value in start]
    following, again = body(carried)
    for phi, first, later in zip(carried, start, following, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, builder.block)
    builder.cbranch(again, loop, end)
    builder.position_at_end(end)
    return following


def vector_type(context, scalar):
    """Return the LLVM type of a whole vector register of a Numba type of numbers."""
    return ir.VectorType(context.get_data_type(scalar), lanes(scalar.bitwidth // 8))


def alignment(element):
    """Return the bytes to which memory of a floating point type is aligned at least."""
    return 4 if isinstance(element, ir.FloatType) else 8
