"""Configuration of pytest for the benchmarks, and the tables at the end of a run.

This module must be imported before NumPy, because OpenBLAS reads its environment variables when it is loaded.
"""

import os
import sys
from pathlib import Path

# The folder of `common`, and the checkout, so that its fastbp is measured and not an installed one.
_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

# These variables make OpenBLAS use other kernels or block sizes than it would choose for this CPU. They can slow NumPy
# down, and the comparison would not be fair.
_FORCED = {name: os.environ[name] for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if name in os.environ}
_KEPT = "FASTBP_BENCH_KEEP_BLAS" in os.environ or "numpy" in sys.modules
if not _KEPT:
    for _name in _FORCED:
        del os.environ[_name]


def pytest_terminal_summary(terminalreporter):
    """Print the tables of results that the tests have collected."""
    from common import kernel_table, machine, training_table

    lines = [*kernel_table(), *training_table()]
    if not lines:
        return
    terminalreporter.section("fastbp compared with other libraries, measured alternately")
    for line in machine():
        terminalreporter.write_line(line)
    if _FORCED:
        settings = ", ".join(f"{name}={value}" for name, value in _FORCED.items())
        told = "KEPT, they can slow NumPy down" if _KEPT else "removed for this run"
        terminalreporter.write_line(f"BLAS settings in the environment: {settings}; {told}.")
    for line in lines:
        terminalreporter.write_line(line)
