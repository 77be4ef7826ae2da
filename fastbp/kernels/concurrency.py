"""What threads need of the processor and the system, as LLVM IR; `threads` makes teams from it."""

import os
import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp.kernels.intrinsics import INT32, INT64, X86, emit_offset


@intrinsic
def atomic_add(typingctx, array, index, value):
    """Add to an element of an int64 array at once for all threads; return what was there."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", emit_offset(builder, data, args[1]), args[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx, array, index):
    """Read an element of an int64 array that other threads write."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(emit_offset(builder, data, args[1]), "seq_cst", 8)

    return types.int64(array, types.int64), codegen


@intrinsic
def atomic_store(typingctx, array, index, value):
    """Write an element of an int64 array that other threads read."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.store_atomic(args[2], emit_offset(builder, data, args[1]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), codegen


@intrinsic
def spin_pause(typingctx):
    """Tell the processor that this is a waiting loop."""

    def codegen(context, builder, signature, args):
        if X86:
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
            kind = ir.FunctionType(INT32, [])
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
            return INT64(-1)
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(INT32, []), "sched_getcpu")
        return builder.sext(builder.call(function, []), INT64)

    return types.int64(), codegen


def _cpu_set_call(name, description):
    @intrinsic
    def function(typingctx, cpus):
        def codegen(context, builder, signature, args):
            if not MOVES_THREADS:
                return INT64(-1)
            kind = ir.FunctionType(INT32, [INT32, INT64, args[0].type])
            called = cgutils.get_or_insert_function(builder.module, kind, name)
            failed = builder.call(called, [INT32(0), INT64(MOST_CPUS // 8), args[0]])
            return builder.sext(failed, INT64)

        return types.int64(cpus), codegen

    function.__doc__ = description
    return function


get_cpus = _cpu_set_call(
    "sched_getaffinity", "Get the set, of MOST_CPUS bits, of the processors that this thread may use; not 0 on failure."
)
set_cpus = _cpu_set_call(
    "sched_setaffinity", "Allow this thread a set of processors, to which it moves; not 0 on failure."
)
