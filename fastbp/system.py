"""Compilation ahead of time, and the versions of what is installed."""

import platform
import time
import warnings

import joblib
import llvmlite
import numba
import numpy as np
import scipy
import sklearn
from scipy.sparse import csr_array
from sklearn.exceptions import ConvergenceWarning

from fastbp.activations import SHARED
from fastbp.classifier import BackpropClassifier
from fastbp.codegen.jit import no_compilation_notice
from fastbp.codegen.target import HAS_FMA, VECTOR_BITS
from fastbp.compat import cpu_name
from fastbp.dropout import Dropout
from fastbp.kernels import workers
from fastbp.kernels.addresses import kernel_addresses
from fastbp.kernels.backprop import train
from fastbp.kernels.unpacked import panels_address

# Types of input, and the type of the network that they are compiled for: float32 and float64 data, images, and float64
# data for the float32 networks of `initialize`.
_VARIANTS = (("float32", "float32"), ("float64", "float64"), ("uint8", "float32"), ("float64", "float32"))


def warmup(report=None):
    """Compile the kernels for the usual types of input, or load them from the disk cache.

    These are float32 and float64 data, dense and sparse, bytes (uint8) for float32 networks, and float64 data for
    float32 networks. Other combinations, such as float32 data with ``dtype="float64"``, compile at their first use.

    Run it in a service or a container image whose first prediction must be fast.

    Parameters
    ----------
    report : callable, default=None
        Called with a line of text after each step; `print` for example.

    Returns
    -------
    float
        Seconds that it took.
    """
    begin = time.perf_counter()
    random_state = np.random.RandomState(0)
    values = random_state.randint(0, 256, (2000, 64))
    y = random_state.randint(0, 10, len(values))
    with no_compilation_notice(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        workers.prepare()
        for source, dtype in _VARIANTS:
            before = time.perf_counter()
            X = values.astype(source)
            # Large enough for all threads, small enough to take no time.
            clf = BackpropClassifier(max_iter=1, dtype=dtype).fit(X, y)
            clf.predict(X)
            clf.predict(X[:1])
            clf.predict(np.where(values > 250, X, 0).astype(source))  # mostly zeros
            if source == dtype:
                sparse = csr_array(X)
                BackpropClassifier(max_iter=1).fit(sparse, y).predict(sparse)
            kernel_addresses(dtype, index_lists=True)
            panels_address(np.dtype(dtype))
            for activation in SHARED.values():
                activation.forward_address(dtype), activation.backward_address(dtype)
            Dropout(0.5).address(dtype)
            if report is not None:
                report(f"{source} input, {dtype} network: {time.perf_counter() - before:.1f} s")
    return time.perf_counter() - begin


def show_versions():
    """Print the versions of fastbp and its dependencies, and what fastbp uses of this machine, for bug reports."""
    import fastbp

    versions = {
        "fastbp": fastbp.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
    }
    machine = {
        "system": platform.platform(),
        "processor": cpu_name(),
        "cores": joblib.cpu_count(),
        "vector bits": VECTOR_BITS,
        "fused multiply-add": HAS_FMA,
        "compiled code": train.stats.cache_path or "in memory only",
    }
    for title, entries in (("Versions", versions), ("Machine", machine)):
        print(f"{title}:")
        for name, value in entries.items():
            print(f"  {name:>20}: {value}")
