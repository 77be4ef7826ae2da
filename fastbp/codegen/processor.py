"""The processor and the operating system, as a thread sees them: subnormal numbers, waiting, affinity, sleep."""

import os
import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp.codegen.emit import BYTES, INT32, INT64, emit_call, emit_offset
from fastbp.codegen.target import ARM64, X86

# With 64 bits.
IS_LINUX = sys.platform == "linux" and sys.maxsize > 2**32

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
        if not IS_LINUX:
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
MAX_CPUS = 1024


@intrinsic
def current_cpu(typingctx):
    """Return the number of the processor that runs this thread; -1 where the system does not tell."""

    def codegen(context, builder, signature, args):
        if not IS_LINUX:
            return INT64(-1)
        return builder.sext(emit_call(builder, "sched_getcpu", INT32, []), INT64)

    return types.int64(), codegen


def _cpu_set_call(name, description):
    @intrinsic
    def function(typingctx, cpus, thread):
        def codegen(context, builder, signature, args):
            if not IS_LINUX:
                return INT64(-1)
            number = builder.trunc(args[1], INT32)
            failed = emit_call(builder, name, INT32, [number, INT64(MAX_CPUS // 8), args[0]])
            return builder.sext(failed, INT64)

        return types.int64(cpus, types.int64), codegen

    function.__doc__ = description
    return function


get_affinity = _cpu_set_call(
    "sched_getaffinity",
    "Get the set, of MAX_CPUS bits, of the processors that a thread may use, 0 for this one; not 0 on failure.",
)
set_affinity = _cpu_set_call(
    "sched_setaffinity", "Allow a thread, 0 for this one, a set of processors, to which it moves; not 0 on failure."
)


# The system call "futex" of Linux. Its operations are those between threads of one process.
_FUTEX = (202 if X86 else 98 if ARM64 else 0) if IS_LINUX else 0
_WAIT, _WAKE = 128, 129
# Whether threads can sleep until others wake them.
CAN_SLEEP = _FUTEX != 0


def _emit_futex(builder, place, operation, number):
    numbers = [INT64(_FUTEX), builder.ptrtoint(place, INT64), INT64(operation), number, INT64(0), INT64(0), INT64(0)]
    emit_call(builder, "syscall", INT64, numbers)


@intrinsic
def sleep_while(typingctx, base, index, number):
    """Sleep until `wake_thread`, if the low half of an element of memory has this number; maybe not so long."""

    def codegen(context, builder, signature, args):
        if CAN_SLEEP:
            _emit_futex(builder, emit_offset(builder, *args[:2]), _WAIT, args[2])
        return context.get_dummy_value()

    return types.void(base, types.int64, types.int64), codegen


@intrinsic
def wake_thread(typingctx, base, index):
    """Wake a thread that sleeps at an element of memory."""

    def codegen(context, builder, signature, args):
        if CAN_SLEEP:
            _emit_futex(builder, emit_offset(builder, *args), _WAKE, INT64(1))
        return context.get_dummy_value()

    return types.void(base, types.int64), codegen
