"""Set-up of the pytest benchmarks, and the tables at the end of a run.

This must come before NumPy is imported: OpenBLAS reads its environment when it is loaded.
"""

import os
import sys
from pathlib import Path

# This folder for `common`, and the checkout, so that its own fastbp is measured and no installed one.
_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

# These make OpenBLAS use other kernels or block sizes than it would choose for this CPU. To compare with less
# than NumPy's best would be no comparison.
_FORCED = {name: os.environ[name] for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if name in os.environ}
_KEPT = "FASTBP_BENCH_KEEP_BLAS" in os.environ or "numpy" in sys.modules
if not _KEPT:
    for _name in _FORCED:
        del os.environ[_name]


def pytest_terminal_summary(terminalreporter):
    """Print what the tests have collected: ratios of timings that were taken in turns."""
    from common import kernel_table, machine, training_table

    lines = [*kernel_table(), *training_table()]
    if not lines:
        return
    terminalreporter.section("fastbp against its peers, measured in turns")
    for line in machine():
        terminalreporter.write_line(line)
    if _FORCED:
        settings = ", ".join(f"{name}={value}" for name, value in _FORCED.items())
        told = "KEPT, NumPy is not at its own choice" if _KEPT else "taken out for this run"
        terminalreporter.write_line(f"BLAS settings found in the environment: {settings}; {told}.")
    for line in lines:
        terminalreporter.write_line(line)
