"""Code that the benchmarks share: workloads, alternating measurements, the FMA peak, the tables of results.

One test measures all figures of one row. It runs the libraries alternately, in many short blocks, and keeps the
fastest block of each. So other programs and changes of the clock frequency affect all libraries alike. Rounds
during which other programs used the cores do not count.
"""

import os
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import joblib
import numba
import numpy as np
from numba import njit, prange, types
from numba.extending import intrinsic
from threadpoolctl import threadpool_info, threadpool_limits

from fastbp.codegen.emit import INT64, alignment, emit_fma, emit_loop, emit_offset, vector_type
from fastbp.codegen.memory import pointer
from fastbp.codegen.target import HAS_FMA, VECTOR_BITS, lanes
from fastbp.codegen.tiles import MR, NV
from fastbp.kernels import backprop

# The options of `fastbp.codegen.jit`, but with a Python wrapper and without the cache on disk: each run compiles.
NJIT = {"error_model": "numpy", "nogil": True}
# Threads of OpenBLAS keep their cores busy for up to 103 ms after the last product (2^28 cycles of 2.6 GHz), threads of
# OpenMP for some milliseconds. With several threads, a library is timed only after a pause in which those of the others
# fall asleep.
REST = 0.12
# The system may run two threads on one core for some milliseconds after they wake up.
WARM_UP = 0.02
# A block is well under the time slice of the system, so that some blocks are not interrupted.
BLOCK_SECONDS = 0.0005
TURN_SECONDS = 0.009
BLOCKS_PER_TURN = 3  # at least
PAUSE = 0.1  # after a round that does not count, so that the other program can finish


class Workload(NamedTuple):
    """A network, and the parameters of its training."""

    units: tuple[int, ...]
    batch_size: int
    solver: str
    activation: str
    loss: str
    n_samples: int  # in an epoch of the benchmark; more samples would not change the rate


# For two classes there is one logistic output unit, in fastbp as in scikit-learn.
WORKLOADS = {
    "mnist-128": Workload((784, 128, 10), 128, "adam", "relu", "log_loss", 20_000),
    "mnist-512x2": Workload((784, 512, 512, 10), 256, "adam", "relu", "log_loss", 20_000),
    "mnist-100": Workload((784, 100, 10), 200, "adam", "relu", "log_loss", 20_000),
    "digits-100": Workload((64, 100, 10), 200, "adam", "relu", "log_loss", 1_797),
    "tabular-64x2": Workload((30, 64, 64, 1), 32, "adam", "relu", "log_loss", 5_000),
    "seed-30": Workload((784, 30, 10), 10, "sgd", "logistic", "squared_error", 5_000),
    "online-16": Workload((8, 16, 3), 1, "sgd", "logistic", "squared_error", 1_000),
    "wide-2048x2": Workload((784, 2048, 2048, 10), 512, "adam", "relu", "log_loss", 5_000),
}


def thread_counts():
    """Return the numbers of threads to measure: 1, and 2 on a machine with two cores or more."""
    return [n for n in (1, 2) if n <= min(joblib.cpu_count(), numba.config.NUMBA_NUM_THREADS)]


@contextmanager
def all_threads_limited(n):
    """Context manager: limit NumPy's BLAS and Numba to `n` threads."""
    before = numba.get_num_threads()
    numba.set_num_threads(n)
    try:
        with threadpool_limits(n):
            yield
    finally:
        numba.set_num_threads(before)


def timed(function):
    """Return the duration of one call in seconds."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def best_of_turns(measurements, *, threads, turns, patience):
    """Take several measurements alternately and return the fastest of each.

    Parameters
    ----------
    measurements : dict of str to callable
        Functions that measure once and return seconds.
    threads : int
        Number of cores that the measurements need.
    turns : int
        Number of rounds that count: those during which other programs left enough cores free.
    patience : float
        Seconds after which no further round begins.

    Returns
    -------
    best : dict of str to float
        Shortest time of each measurement, in seconds.
    quiet : bool
        True if at least half of `turns` rounds counted; `best` is taken from them. False otherwise; `best` is then
        taken from all rounds and is unreliable.
    """
    best = {quiet: dict.fromkeys(measurements, np.inf) for quiet in (False, True)}
    counting, end = 0, time.perf_counter() + patience
    while counting < turns and time.perf_counter() < end:
        begin, others = time.perf_counter(), _others_seconds()
        seconds = {name: measure() for name, measure in measurements.items()}
        wall, others = time.perf_counter() - begin, _others_seconds() - others
        # The system reports these times in steps of 10 ms, for each core.
        quiet = others <= (os.cpu_count() - threads + 0.1) * wall + 0.02
        for name in measurements:
            best[quiet][name] = min(best[quiet][name], seconds[name])
        counting += quiet
        if not quiet:
            time.sleep(PAUSE)
    if counting >= turns / 2:
        return best[True], True
    return {name: min(best[True][name], best[False][name]) for name in measurements}, False


def _others_seconds():
    """Return the CPU seconds that other processes have used since the system started, or 0 if they are unknown."""
    try:
        text = Path("/proc/stat").read_text()
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, *rest = map(int, text.splitlines()[0].split()[1:9])
    return sum([user, nice, system, *rest]) / os.sysconf("SC_CLK_TCK") - time.process_time()


def in_turns(functions, *, threads, turns=8):
    """Run functions alternately in short blocks, and return the shortest time of a call of each.

    Parameters
    ----------
    functions : dict of str to callable
        Functions without arguments. Each must have been called before, so that it is compiled.
    threads : int
        Number of threads that each function uses.
    turns : int, default=8
        Number of rounds, as in `best_of_turns`.

    Returns
    -------
    best : dict of str to float
        Shortest time of a call, in seconds.
    quiet : bool
        As in `best_of_turns`.
    """
    calls = {
        name: max(1, int(BLOCK_SECONDS / min(timed(function) for _ in range(3))))
        for name, function in functions.items()
    }

    def measure(name):
        function, best = functions[name], np.inf
        time.sleep(REST if threads > 1 else REST / 4)
        begin = time.perf_counter()
        function()
        while threads > 1 and time.perf_counter() - begin < WARM_UP:
            function()
        blocks, end = 0, time.perf_counter() + TURN_SECONDS
        while blocks < BLOCKS_PER_TURN or time.perf_counter() < end:
            begin = time.perf_counter()
            for _ in range(calls[name]):
                function()
            best = min(best, (time.perf_counter() - begin) / calls[name])
            blocks += 1
        return best

    measurements = {name: lambda name=name: measure(name) for name in functions}
    return best_of_turns(measurements, threads=threads, turns=turns, patience=5.0)


@intrinsic
def _multiply_add_in_registers(typingctx, steps, numbers):
    """Update as many vectors as a register tile of the matrix kernel has, `steps` times: v = v x + y.

    Nothing else is in the loop, and all operands stay in registers. The pointer points at the vectors, then x and y.
    """

    def codegen(context, builder, signature, args):
        steps, numbers = args
        kind = vector_type(context, signature.args[1].dtype)
        places = [
            builder.bitcast(emit_offset(builder, numbers, INT64(i * kind.count)), kind.as_pointer())
            for i in range(MR * NV + 2)
        ]
        *start, x, y = (builder.load(place, align=alignment(kind.element)) for place in places)

        def step(carried):
            count, *vectors = carried
            following = builder.add(count, INT64(1))
            updated = [emit_fma(builder, vector, x, y) for vector in vectors]
            return [following, *updated], builder.icmp_signed("<", following, steps)

        _, *vectors = emit_loop(builder, "peak", [INT64(0), *start], step)
        for vector, place in zip(vectors, places, strict=False):
            builder.store(vector, place, align=alignment(kind.element))
        return context.get_dummy_value()

    return types.void(types.int64, numbers), codegen


@njit(**NJIT)
def _work_in_registers(steps, numbers):
    _multiply_add_in_registers(steps, pointer(numbers, 0))


@njit(parallel=True, **NJIT)
def _work_in_registers_on_threads(n, steps, numbers):
    for i in prange(n):
        _work_in_registers(steps, numbers[i])


@cache
def register_work(dtype, threads):
    """Return a function that performs only fused multiply-adds in registers, and its number of flops.

    Each thread has MR x NV independent sums, enough to hide the latency of the FMA units. The rate of the fastest of
    many calls is taken as the FMA peak of the cores. A call takes less than half a millisecond, so that some are not
    interrupted.
    """
    steps = 150_000
    width = lanes(np.dtype(dtype).itemsize)
    # The numbers of two threads are far apart, so that they share no cache line. They converge to 2 x 0.5 + 1 = 2.
    numbers = np.ones((threads, (MR * NV + 3) * width + 64), dtype)
    numbers[:, MR * NV * width : (MR * NV + 1) * width] = 0.5

    def work():
        if threads == 1:
            _work_in_registers(steps, numbers[0])
        else:
            _work_in_registers_on_threads(threads, steps, numbers)

    work()
    return work, 2.0 * threads * steps * MR * NV * width


# (dtype, threads) -> GFLOP/s: the highest FMA peak that was measured in this run.
highest_peak: dict[tuple[str, int], float] = {}


def register_seconds(dtype, threads):
    """Return the durations of up to 300 calls of `register_work` within half a second, the shortest first."""
    work, _ = register_work(dtype, threads)
    seconds, end = [timed(work)], time.perf_counter() + 0.5
    while len(seconds) < 300 and time.perf_counter() < end:
        seconds.append(timed(work))
    return sorted(seconds)


def peak_gflops(dtype, threads, seconds):
    """Return the FMA peak for a duration of `register_work`, and update the highest one."""
    gflops = register_work(dtype, threads)[1] / seconds / 1e9
    highest_peak[dtype, threads] = max(gflops, highest_peak.get((dtype, threads), 0.0))
    return gflops


_first_calls: dict[tuple, tuple[float, bool]] = {}


def first_call(key, function):
    """Call a function, and return the duration of the first call with this key in this run.

    Parameters
    ----------
    key : tuple
        Everything that determines which machine code is needed.
    function : callable
        Compiles, or loads machine code from the cache on disk, in its first call.

    Returns
    -------
    seconds : float
        Duration of the first call.
    from_disk : bool
        Whether it loaded all machine code of fastbp from disk and compiled nothing.
    """
    misses, hits = _cache_counts()
    seconds = timed(function)
    misses_now, hits_now = _cache_counts()
    return _first_calls.setdefault(key, (seconds, hits_now > hits and misses_now == misses))


def _cache_counts():
    stats = [value.stats for value in vars(backprop).values() if hasattr(value, "stats")]
    return sum(sum(s.cache_misses.values()) for s in stats), sum(sum(s.cache_hits.values()) for s in stats)


class KernelRow(NamedTuple):
    """One line of the kernel table."""

    kernel: str
    shape: str
    dtype: str
    threads: int
    gflops: float
    peak_gflops: float  # of the same number of threads, measured alternately with the kernel
    quiet: bool  # as in best_of_turns
    numpy_gflops: float
    first_call: float
    from_disk: bool

    @property
    def share_of_peak(self):
        """Fraction of the FMA peak that the kernel reaches."""
        return self.gflops / self.peak_gflops

    @property
    def ratio(self):
        """Speed relative to NumPy."""
        return self.gflops / self.numpy_gflops


class TrainingRow(NamedTuple):
    """One line of the training table; rates in samples per second."""

    workload: str
    dtype: str
    threads: int
    peak_gflops: float  # as in KernelRow
    quiet: bool
    fastbp: float
    plain: float
    sklearn: float
    first_call: float
    from_disk: bool
    note: str


kernel_rows: list[KernelRow] = []
training_rows: list[TrainingRow] = []

# (kernel, shape, dtype, threads) -> required fraction of the FMA peak; all must also be as fast as NumPy.
TARGETS = {
    (kernel, shape, "float32", threads): 0.85 if threads == 1 else 0.0
    for kernel, shape in (("forward", "128x784x128"), ("gradient", "784x128x128"))
    for threads in (1, 2)
}


def machine():
    """Yield lines on the versions and the machine, on which the figures depend."""
    blas = sorted(
        f"{pool['internal_api']} {pool['version']} with kernels for {pool.get('architecture', '?')}"
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    )
    yield (
        f"NumPy {np.__version__} on {', '.join(blas) or 'an unknown BLAS'}; Numba {numba.__version__}, "
        f"vectors of {VECTOR_BITS} bits{'' if HAS_FMA else ', no FMA'}; {joblib.cpu_count()} cores."
    )
    for (dtype, threads), gflops in sorted(highest_peak.items()):
        yield f"FMA peak measured, {dtype}, {threads} thread(s): {gflops:.1f} GFLOP/s."


def kernel_table():
    """Yield the lines of the kernel table, then those of the targets.

    Rows are marked with "cores busy" if other programs used the cores: less than half of the rounds counted, or the
    FMA peak in these rounds was below 90 % of the highest one. Both figures are then unreliable, so that neither a
    ratio nor a verdict on the target is shown.
    """
    if not kernel_rows:
        return
    yield ""
    yield (
        f"{'kernel':10}{'shape (m x k x n)':22}{'dtype':9}{'threads':>7}{'GFLOP/s':>9}{'% peak':>8}"
        f"{'NumPy':>8}{'ratio':>7}{'first call':>13}"
    )
    for row in sorted(kernel_rows, key=lambda row: (row.kernel, row.dtype, row.threads)):
        yield (
            f"{row.kernel:10}{row.shape:22}{row.dtype:9}{row.threads:7}{row.gflops:9.1f}"
            f"{_unless_busy(row, f'{row.share_of_peak:.0%}'):>8}{row.numpy_gflops:8.1f}"
            f"{_unless_busy(row, f'{row.ratio:.2f}'):>7}{_compile_time(row):>13}{'  cores busy' * _busy(row)}"
        )
    found = {(row.kernel, row.shape, row.dtype, row.threads): row for row in kernel_rows}
    for key, least in TARGETS.items():
        if key in found:
            row = found[key]
            met = "met   " if row.share_of_peak >= least and row.ratio >= 1 else "MISSED"
            seen = f"{row.share_of_peak:.1%}, ratio {row.ratio:.2f}"
            if _busy(row):
                met, seen = "?     ", "cores busy"
            what = f"{row.kernel} {row.shape} {row.dtype}, {row.threads} thread(s)"
            demand = f"{least:.0%} of the peak and NumPy's speed" if least else "NumPy's speed"
            yield f"{met} {what}, at least {demand}: {seen}"


def _busy(row):
    expected = max(highest_peak[row.dtype, row.threads], row.threads * highest_peak.get((row.dtype, 1), 0.0))
    return not row.quiet or row.peak_gflops < 0.9 * expected


def _unless_busy(row, text):
    return "-" if _busy(row) else text


def training_table():
    """Yield the lines of the training table."""
    if not training_rows:
        return
    yield ""
    yield (
        f"{'workload':14}{'threads':>7}{'fastbp':>12}{'NumPy':>12}{'sklearn':>12}{'x NumPy':>9}"
        f"{'x sklearn':>11}{'first call':>13}   (samples/s)"
    )
    for row in training_rows:
        yield (
            f"{row.workload:14}{row.threads:7}{row.fastbp:12,.0f}{row.plain:12,.0f}{row.sklearn:12,.0f}"
            f"{_unless_busy(row, f'{row.fastbp / row.plain:.2f}'):>9}"
            f"{_unless_busy(row, f'{row.fastbp / row.sklearn:.2f}'):>11}{_compile_time(row):>13}"
            f"   {row.note}{'  cores busy' * _busy(row)}"
        )


def _compile_time(row):
    return f"{row.first_call:.2f} s{' disk' if row.from_disk else '     '}"
