"""Start-up time of a new process: the import, the first fit and the first predict, with an empty and a filled cache.

Run: ``python benchmarks/bench_import.py``, with ``--rounds N`` for the number of processes of each kind, and
``--cpu`` for CPU seconds, which other programs disturb less. ``--dtype float32`` and ``--n-jobs 1`` choose what is
compiled. ``--split`` shows instead, for one process with an empty cache, which stages and functions take the time.

Each figure is the median of several new processes; the kinds of processes alternate. A fit is one epoch of a network
64-100-10 on scikit-learn's digits, without loading the data; predict takes all of its samples. The second fit runs in
the same process and shows the time without compiling or loading code. The cache is in a temporary folder.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_IMPORT = """
import os, time
clock = getattr(time, os.environ["BENCH_CLOCK"])
begin = clock()
{statement}
print(clock() - begin)
"""

_FITS = """
import warnings
from sklearn.datasets import load_digits
X, y = load_digits(return_X_y=True)
X = X.astype(os.environ["BENCH_DTYPE"])
warnings.simplefilter("ignore")
for _ in range(2):
    begin = clock()
    model = {estimator}(max_iter=1, random_state=0{options}).fit(X, y)
    print(clock() - begin)
    begin = clock()
    model.predict(X)
    print(clock() - begin)
"""

# Seconds of Numba's passes, without those of the passes that run meanwhile for other functions.
_SPLIT = """
import time
from collections import Counter
from numba.core import event

STAGES = {{"nopython_type_inference": "types", "native_lowering": "LLVM IR and machine code"}}
STAGES["native_parfor_lowering"] = STAGES["native_lowering"]
stages, functions, running = Counter(), Counter(), []

class Passes(event.Listener):
    def on_start(self, found):
        running.append([time.process_time(), 0.0])

    def on_end(self, found):
        begin, inner = running.pop()
        whole = time.process_time() - begin
        if running:
            running[-1][1] += whole
        stages[STAGES.get(found.data["name"].split()[0], "bytecode, inlining, SSA")] += whole - inner
        functions[found.data["qualname"]] += whole - inner

event.register("numba:run_pass", Passes())
"""
_SHOW = """
for title, found in (("stage", stages), ("function", functions)):
    print(f"CPU seconds  {{title}}")
    for name, seconds in found.most_common(15):
        print(f"{{seconds:11.2f}}  {{name}}")
"""

_SKLEARN = _IMPORT.format(statement="from sklearn.neural_network import MLPClassifier")
_FASTBP = _IMPORT.format(statement="from fastbp import BackpropClassifier")
_SKLEARN_FITS = _SKLEARN + _FITS.format(estimator="MLPClassifier", options="")
_FASTBP_FITS = _FASTBP + _FITS.format(
    estimator="BackpropClassifier", options=', n_jobs=int(os.environ["BENCH_N_JOBS"]) or None'
)
_NOTHING = _IMPORT.format(statement="import numpy, scipy")


def run(program, cache):
    """Run a program in a fresh process; return what it prints."""
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def measure(rounds):
    """Return the rows of the table: name -> seconds of the import, and of fit and predict, twice."""
    programs = {
        "numpy, scipy": _NOTHING,
        "scikit-learn": _SKLEARN_FITS,
        "fastbp, empty cache": _FASTBP_FITS,
        "fastbp, filled cache": _FASTBP_FITS,
    }
    found = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as warm:
        run(_FASTBP_FITS, warm)
        run(_SKLEARN_FITS, warm)  # so that the first round reads the files from memory, too
        for _ in range(rounds):
            for name, program in programs.items():
                with tempfile.TemporaryDirectory() as empty:
                    found[name].append(list(map(float, run(program, empty if "empty" in name else warm).split())))
    return {name: list(zip(*runs, strict=True)) for name, runs in found.items()}


def main():
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind (default: 5)")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds instead of seconds of the clock")
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"], help="of X (default: float64)")
    parser.add_argument("--n-jobs", type=int, default=0, help="threads of fastbp (default: all)")
    parser.add_argument("--split", action="store_true", help="where the seconds of an empty cache go")
    options = parser.parse_args()
    os.environ["BENCH_CLOCK"] = "process_time" if options.cpu else "perf_counter"
    os.environ["BENCH_DTYPE"], os.environ["BENCH_N_JOBS"] = options.dtype, str(options.n_jobs)
    if options.split:
        with tempfile.TemporaryDirectory() as empty:
            output = run(_SPLIT.format() + _FASTBP_FITS + _SHOW.format(), empty)
        print(output[output.index("CPU seconds") :], end="")
        return
    rows = measure(options.rounds)
    kind = "CPU seconds" if options.cpu else "Seconds"
    print(f"{kind}, median of {options.rounds} processes (minimum to maximum)")
    titles = ("import", "first fit", "first predict", "second fit", "second predict")
    print(f"{'':22}" + "".join(f"{title:>26}" for title in titles))
    for name, columns in rows.items():
        cells = [f"{statistics.median(c):.3f} ({min(c):.3f} to {max(c):.3f})" for c in columns]
        print(f"{name:22}" + "".join(f"{cell:>26}" for cell in cells))


if __name__ == "__main__":
    main()
