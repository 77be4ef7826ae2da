"""Scaling: time per epoch against the numbers of samples and parameters, and peak memory.

Run: ``python benchmarks/growth.py`` (about a minute), or a part of it: ``python benchmarks/growth.py time``,
``python benchmarks/growth.py memory``.

**Time.** Seconds of an epoch of the public estimator in float32 with Adam, against the number of samples and against
the number of parameters. The time of an epoch is the time of a fit of 1 + e epochs minus the time of a fit of one
epoch, divided by e; each fit is repeated, and the fastest counts. The time should be proportional to both numbers:
the nanoseconds per sample, and the picoseconds per parameter and sample, should be constant.

**Memory.** The memory that training on an input of the size of MNIST (60000 x 784) needs: the peak resident memory of
a new process, minus that of a process that has imported the same modules and fitted a few rows, so that both have
loaded the compiled code. The input itself counts. The limit is input and labels + 4 x parameters + 64 MiB: the
parameters, two moments, and one further copy.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from fastbp import BackpropClassifier

BATCH = 128
SAMPLES = [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000]
HIDDEN = [8, 16, 32, 64, 128, 256, 512, 1024, 2048]
N_INPUTS, N_CLASSES = 784, 10
# Seconds of the epochs that are timed, and the number of repetitions.
SECONDS, TURNS = 0.3, 3
MEMORY_NETWORKS = [(128,), (1024, 1024)]
DTYPES = ("uint8", "float32", "float64")
N_IMAGES = 60_000
SPARE = 64 * 2**20


def make_data(n_samples, dtype):
    """Return random inputs, generated in this dtype without a conversion, and labels."""
    rng = np.random.default_rng(0)
    shape = (n_samples, N_INPUTS)
    X = rng.integers(0, 256, shape, dtype=np.uint8) if dtype == "uint8" else rng.random(shape, dtype=dtype)
    return X, np.arange(n_samples) % N_CLASSES


def fit(X, y, hidden, epochs, threads):
    """Return the seconds of a fit."""
    clf = BackpropClassifier(
        hidden_layer_sizes=hidden, batch_size=BATCH, max_iter=epochs, tol=0.0, n_iter_no_change=np.inf,
        dtype="float32", random_state=0, n_jobs=threads,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one epoch does not converge
        begin = time.perf_counter()
        clf.fit(X, y)
        return time.perf_counter() - begin


def epoch_seconds(X, y, hidden, threads):
    """Return the seconds of one epoch, without what a fit does only once."""
    one, two = (min(fit(X, y, hidden, epochs, threads) for _ in range(2)) for epochs in (1, 2))
    more = min(200, max(1, round(SECONDS / max(two - one, 1e-4))))
    long, short = np.inf, np.inf
    for _ in range(TURNS):
        short = min(short, fit(X, y, hidden, 1, threads))
        long = min(long, fit(X, y, hidden, 1 + more, threads))
    return (long - short) / more


def growth_of_time():
    """Yield the lines of the two tables of times."""
    X, y = make_data(max(SAMPLES), "float32")
    for threads in (1, 2):
        fit(X[:1000], y[:1000], (128,), 1, threads)  # compiles, or loads compiled code from disk
        yield ""
        yield f"Samples: 784-128-10, batch {BATCH}, {threads} thread(s)"
        yield f"{'samples':>10}{'ms per epoch':>14}{'ns per sample':>15}"
        costs = []
        for n in SAMPLES:
            seconds = epoch_seconds(X[:n], y[:n], (128,), threads)
            costs.append(seconds / n * 1e9)
            yield f"{n:10}{seconds * 1e3:14.2f}{costs[-1]:15.1f}"
        yield _spread(costs)
        yield ""
        yield f"Parameters: 784-h-10, batch {BATCH}, {threads} thread(s)"
        yield (
            f"{'h':>10}{'parameters':>12}{'samples':>9}{'ms per epoch':>14}{'ns per sample':>15}"
            f"{'ps per par. & sample':>22}"
        )
        costs = []
        for hidden in HIDDEN:
            n = 2_048 if hidden > 512 else 8_192
            n_params = (N_INPUTS + 1) * hidden + (hidden + 1) * N_CLASSES
            seconds = epoch_seconds(X[:n], y[:n], (hidden,), threads)
            costs.append(seconds / n / n_params * 1e12)
            yield f"{hidden:10}{n_params:12}{n:9}{seconds * 1e3:14.2f}{seconds / n * 1e9:15.1f}{costs[-1]:22.2f}"
        yield _spread(costs)


def _spread(costs):
    return f"highest / lowest: {max(costs) / min(costs):.2f}; last / lowest: {costs[-1] / min(costs):.2f}"


def peak_memory():
    """Return the peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `ru_maxrss`: on Linux its initial value is that of the parent process.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def child(dtype, hidden, n_samples):
    """Print the peak memory of a fit as JSON. With `n_samples=0` it is the memory of modules and compiled code."""
    for threads in (1, 2):
        fit(*make_data(200, dtype), (8,), 1, threads)
    data = 0
    if n_samples:
        X, y = make_data(n_samples, dtype)
        data = X.nbytes + y.nbytes
        fit(X, y, hidden, 1, 2)
    print(json.dumps([peak_memory(), data]))


def _run_child(*job):
    command = [sys.executable, __file__, "child", json.dumps(job)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def growth_of_memory():
    """Yield the lines of the table of peak memory."""
    mib = 2**20
    yield ""
    yield f"Peak memory of a fit on {N_IMAGES} x {N_INPUTS}, in MiB, more than a process that has fitted a few rows"
    yield f"{'input':>8}{'network':>20}{'data':>8}{'4 x par.':>10}{'peak':>8}{'limit':>8}"
    for dtype in DTYPES:
        _run_child(dtype, (8,), 0)  # compiles, if the cache is empty
        base = min(_run_child(dtype, (8,), 0)[0] for _ in range(2))
        for hidden in MEMORY_NETWORKS:
            units = [N_INPUTS, *hidden, N_CLASSES]
            n_params = sum((a + 1) * b for a, b in pairwise(units))
            peak, data = _run_child(dtype, hidden, N_IMAGES)
            limit = data + 4 * 4 * n_params + SPARE
            yield (
                f"{dtype:>8}{'-'.join(map(str, units)):>20}{data / mib:8.1f}{4 * 4 * n_params / mib:10.1f}"
                f"{(peak - base) / mib:8.1f}{limit / mib:8.1f}  {'met' if peak - base <= limit else 'MISSED'}"
            )


def main(arguments=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["all", "time", "memory"], default="all")
    options = parser.parse_args(arguments)
    if options.what in ("all", "time"):
        for line in growth_of_time():
            print(line, flush=True)
    if options.what in ("all", "memory"):
        for line in growth_of_memory():
            print(line, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*json.loads(sys.argv[2]))
    else:
        main()
