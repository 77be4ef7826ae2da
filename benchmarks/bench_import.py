"""Start-up time of a new process: the import, and the first fit with an empty and with a filled cache on disk.

Run: ``python benchmarks/bench_import.py``, with ``--rounds N`` for the number of processes of each kind.

Each figure is the median of several new processes; the kinds of processes alternate. A fit is one epoch of a network
64-100-10 on scikit-learn's digits, without loading the data. The second fit runs in the same process and shows the
time without compiling or loading code. The cache is in a temporary folder.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_IMPORT = """
import time
begin = time.perf_counter()
{statement}
print(time.perf_counter() - begin)
"""

_FITS = """
import warnings
from sklearn.datasets import load_digits
X, y = load_digits(return_X_y=True)
warnings.simplefilter("ignore")
for _ in range(2):
    begin = time.perf_counter()
    {estimator}(max_iter=1, random_state=0).fit(X, y)
    print(time.perf_counter() - begin)
"""

_SKLEARN = _IMPORT.format(statement="from sklearn.neural_network import MLPClassifier")
_FASTBP = _IMPORT.format(statement="from fastbp import BackpropClassifier")
_SKLEARN_FITS = _SKLEARN + _FITS.format(estimator="MLPClassifier")
_FASTBP_FITS = _FASTBP + _FITS.format(estimator="BackpropClassifier")
_NOTHING = _IMPORT.format(statement="import numpy, scipy")


def run(program, cache):
    """Run a program in a fresh process; return the seconds that it prints."""
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [float(line) for line in done.stdout.split()]


def measure(rounds):
    """Return the rows of the table: name -> seconds of the import, of the first fit and of the second fit."""
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
                    found[name].append(run(program, empty if "empty" in name else warm))
    return {name: list(zip(*runs, strict=True)) for name, runs in found.items()}


def main():
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind (default: 5)")
    rounds = parser.parse_args().rounds
    rows = measure(rounds)
    print(f"Seconds, median of {rounds} processes (minimum to maximum)")
    print(f"{'':26}{'import':>26}{'first fit':>26}{'second fit':>26}")
    for name, columns in rows.items():
        cells = [f"{statistics.median(c):.3f} ({min(c):.3f} to {max(c):.3f})" for c in columns]
        print(f"{name:26}" + "".join(f"{cell:>26}" for cell in cells))


if __name__ == "__main__":
    main()
