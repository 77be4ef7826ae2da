"""What surrounds the estimators on a machine: compiling ahead of time, and what is installed."""

import platform
import time
import warnings

import joblib
import llvmlite
import numba
import numpy as np
import scipy
import sklearn

from fastbp.activations import ACTIVATIONS, Softmax
from fastbp.classifier import BackpropClassifier
from fastbp.kernels import intrinsics
from fastbp.kernels.backprop import train
from fastbp.kernels.matmul import kernel_addresses
from fastbp.kernels.shuffle import FEW, shuffle

# Which types of input are compiled for which type of network: those of float32 and float64 data, and images.
_VARIANTS = (("float32", "float32"), ("float64", "float64"), ("uint8", "float32"))


def warmup(report=None):
    """Compile the kernels for the usual types of input, or load them from the disk cache.

    For a service or a container image that must answer its first call at once.

    Parameters
    ----------
    report : callable, default=None
        Called with a line of text after each step, as `print`.

    Returns
    -------
    float
        Seconds that it took.
    """
    begin = time.perf_counter()
    random_state = np.random.RandomState(0)
    values = random_state.randint(0, 256, (2000, 64))
    y = random_state.randint(0, 10, len(values))
    shuffle(np.arange(FEW), random_state)
    for source, dtype in _VARIANTS:
        before = time.perf_counter()
        X = values.astype(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Large enough to be given to all threads, small enough to take no time.
            clf = BackpropClassifier(max_iter=1, dtype=dtype).fit(X, y)
        clf.predict(X)
        clf.predict(X[:1])
        kernel_addresses(dtype, sparse=True)
        for activation in (*ACTIVATIONS.values(), Softmax()):
            activation.value_address(dtype), activation.slope_address(dtype)
        if report is not None:
            report(f"{source} input, {dtype} network: {time.perf_counter() - before:.1f} s")
    return time.perf_counter() - begin


def show_versions():
    """Print the versions of what fastbp runs on, and what it makes of this machine, for reports of faults."""
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
        "processor": numba.core.config.CPU_NAME or llvmlite.binding.get_host_cpu_name(),
        "cores": joblib.cpu_count(),
        "vector bits": intrinsics.VECTOR_BITS,
        "fused multiply-add": intrinsics.HAS_FMA,
        "compiled code": train._cache.cache_path,
    }
    for title, entries in (("Versions", versions), ("Machine", machine)):
        print(f"{title}:")
        for name, value in entries.items():
            print(f"  {name:>20}: {value}")
