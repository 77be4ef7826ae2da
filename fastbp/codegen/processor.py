"""The processor and the operating system, as a thread sees them: subnormal numbers, waiting, affinity."""

import os
import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp.codegen.emit import BYTES, INT32, INT64, emit_call
from fastbp.codegen.target import ARM64, X86

# Flush-to-zero: bits 15 and 6 of MXCSR (subnormal results, subnormal inputs), bit 24 of FPCR.
_FLUSH_X86 = 0x8040
_FLUSH_ARM64 = 1 << 24


@intrinsic
def flush_subnormals(typingctx):
    """Flush subnormal numbers to zero in this thread; return its former mode.

    Sums of units that have stopped learning decay into the subnormal numbers, whose
    arithmetic is up to a hundred times slower.
    """

    def codegen(context, builder, signature, args):
        if X86:
            mode = _read_mxcsr(builder)
            _write_mxcsr(builder, builder.or_(mode, INT32(_FLUSH_X86)))
            return builder.zext(mode, INT64)
        if ARM64:
            mode = _read_fpcr(builder)
            _write_fpcr(builder, builder.or_(mode, INT64(_FLUSH_ARM64)))
            return mode
        return INT64(0)

    return types.int64(), codegen


@intrinsic
def restore_subnormals(typingctx, mode):
    """Restore the mode that `flush_subnormals` returned."""

    def codegen(context, builder, signature, args):
        if X86:
            _write_mxcsr(builder, builder.trunc(args[0], INT32))
        elif ARM64:
            _write_fpcr(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _read_mxcsr(builder):
    slot = cgutils.alloca_once(builder, INT32)
    emit_call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), [builder.bitcast(slot, BYTES)])
    return builder.load(slot)


def _write_mxcsr(builder, mode):
    slot = cgutils.alloca_once(builder, INT32)
    builder.store(mode, slot)
    emit_call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [builder.bitcast(slot, BYTES)])


def _read_fpcr(builder):
    return emit_call(builder, "llvm.aarch64.get.fpcr", INT64, [])


def _write_fpcr(builder, mode):
    emit_call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), [mode])


@intrinsic
def spin_pause(typingctx):
    """Tell the processor that the thread spins."""

    def codegen(context, builder, signature, args):
        if X86:
            emit_call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_thread(typingctx):
    """Yield the processor to another thread; do nothing where the system has no such call."""

    def codegen(context, builder, signature, args):
        if os.name == "posix":
            emit_call(builder, "sched_yield", INT32, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def nap(typingctx):
    """Sleep as short as the system lets a thread sleep, some 50 microseconds; do nothing where it has no such call.

    A scheduler may let a thread run to the end of its slice though it yields, which takes milliseconds.
    """

    def codegen(context, builder, signature, args):
        if os.name == "posix":
            duration = cgutils.alloca_once_value(builder, ir.Constant(ir.ArrayType(INT64, 2), [0, 1]))
            emit_call(builder, "nanosleep", INT32, [duration, ir.Constant(BYTES, None)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def nanoseconds(typingctx):
    """Return the time of a clock that never goes back; always 0 where the system is not Linux."""

    def codegen(context, builder, signature, args):
        if not HAS_AFFINITY:
            return INT64(0)
        monotonic = INT32(1)
        place = cgutils.alloca_once(builder, ir.ArrayType(INT64, 2))
        emit_call(builder, "clock_gettime", INT32, [monotonic, place])
        time = builder.load(place)
        seconds, rest = builder.extract_value(time, 0), builder.extract_value(time, 1)
        return builder.add(builder.mul(seconds, INT64(1_000_000_000)), rest)

    return types.int64(), codegen


# Linux tells threads on which processor they run, and lets them choose. A set of processors is 64-bit words with a bit
# for each.
HAS_AFFINITY = sys.platform == "linux" and sys.maxsize > 2**32
MAX_CPUS = 1024


@intrinsic
def current_cpu(typingctx):
    """Return the number of the processor that runs this thread; -1 where the system does not tell."""

    def codegen(context, builder, signature, args):
        if not HAS_AFFINITY:
            return INT64(-1)
        return builder.sext(emit_call(builder, "sched_getcpu", INT32, []), INT64)

    return types.int64(), codegen


def _cpu_set_call(name, description):
    @intrinsic
    def function(typingctx, cpus):
        def codegen(context, builder, signature, args):
            if not HAS_AFFINITY:
                return INT64(-1)
            failed = emit_call(builder, name, INT32, [INT32(0), INT64(MAX_CPUS // 8), args[0]])
            return builder.sext(failed, INT64)

        return types.int64(cpus), codegen

    function.__doc__ = description
    return function


get_affinity = _cpu_set_call(
    "sched_getaffinity", "Get the set, of MAX_CPUS bits, of the processors that this thread may use; not 0 on failure."
)
set_affinity = _cpu_set_call(
    "sched_setaffinity", "Allow this thread a set of processors, to which it moves; not 0 on failure."
)
