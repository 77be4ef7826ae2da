"""The vectorised elementary functions: their largest errors, and their speed compared with NumPy.

Run: ``python benchmarks/elementary.py`` (about a minute).

Errors are in units in the last place (ulp) of the exact result, which is computed with NumPy's long double. They are
the largest over a sample of all float32 numbers, and over a sample of the float64 range in which the function is not
constant. Speed is in millions of numbers per second, on one core, with numbers in the L1 cache, the best of many
alternating measurements. NumPy has no erf, so that SciPy's is used.
"""

import time

import numpy as np
from numba import njit
from scipy.special import erf as scipy_erf
from scipy.special import erfcx

from fastbp.codegen.elementary import erf, exp, expm1, log, tanh
from fastbp.codegen.memory import lane_count, pointer
from fastbp.codegen.vectors import load, store

N = 4096


def _over(function):
    @njit
    def kernel(x, out, repeats):
        a, b, n = pointer(x, 0), pointer(out, 0), x.size
        for _ in range(repeats):
            for i in range(0, n, lane_count(a)):
                store(b, i, function(load(a, i)))

    return kernel


def exact_erf(x):
    """Return the error function in long double: a series near 0, and erfcx, precise enough there, far from 0."""
    size = np.abs(x)
    total = term = size.copy()
    square = np.minimum(size, 3) ** 2
    for k in range(1, 80):
        term = term * -square / k
        total = total + term / (2 * k + 1)
    series = 2 / np.sqrt(np.longdouble("3.14159265358979323846264338327950288")) * total
    far = 1 - np.exp(-(size**2)) * erfcx(np.minimum(size, 30).astype(np.float64))
    return np.copysign(np.where(size < 2, series, far), x)


# Kernel, exact function, function of NumPy or SciPy to compare with, range of the numbers for the speed.
FUNCTIONS = {
    "exp": (_over(exp), np.exp, np.exp, (-10, 10)),
    "expm1": (_over(expm1), np.expm1, np.expm1, (-10, 10)),
    "log": (_over(log), np.log, np.log, (1e-6, 1)),
    "tanh": (_over(tanh), np.tanh, np.tanh, (-4, 4)),
    "erf": (_over(erf), exact_erf, scipy_erf, (-4, 4)),
}


def error(kernel, exact, x):
    """Return the largest error in ulp."""
    x = np.resize(x, -(-x.size // 16) * 16)
    out = np.empty_like(x)
    kernel(x, out, 1)
    with np.errstate(all="ignore"):
        right = exact(x.astype(np.longdouble))
        nearest = np.abs(right).astype(x.dtype)
    inside = np.isfinite(nearest)
    return float((np.abs(out[inside] - right[inside]) / np.spacing(nearest[inside])).max())


def numbers(name, dtype):
    """Return the numbers for which errors are computed."""
    rng = np.random.default_rng(0)
    if dtype == np.float32:
        x = np.arange(0, 2**32, 1997, dtype=np.uint32).view(np.float32)
        x = np.concatenate([x, rng.uniform(-20, 20, 500_000).astype(np.float32)])
        return x[x >= np.finfo(np.float32).tiny] if name == "log" else x[np.isfinite(x)]
    if name == "log":
        return np.concatenate([rng.uniform(0, 2, 500_000), np.exp(rng.uniform(-700, 700, 500_000))])
    return np.concatenate([rng.uniform(-1, 1, 400_000), rng.uniform(-25, 25, 400_000), rng.uniform(-740, 709, 400_000)])


def rates(kernel, peer, x):
    """Return millions of numbers per second of fastbp and of the other function, measured alternately."""
    out = np.empty_like(x)
    repeats = 50
    best = [np.inf, np.inf]
    kernel(x, out, 1)
    for _ in range(200):
        begin = time.perf_counter()
        kernel(x, out, repeats)
        middle = time.perf_counter()
        for _ in range(repeats):
            peer(x, out=out)
        end = time.perf_counter()
        best = [min(best[0], middle - begin), min(best[1], end - middle)]
    return [x.size * repeats / seconds / 1e6 for seconds in best]


def main():
    """Print the table."""
    print("| function | type | largest error, ulp | million/s | NumPy (SciPy) | ratio |")
    print("|---|---|---:|---:|---:|---:|")
    for name, (kernel, exact, peer, (low, high)) in FUNCTIONS.items():
        for dtype in (np.float32, np.float64):
            largest = error(kernel, exact, numbers(name, dtype))
            ours, theirs = rates(kernel, peer, np.random.default_rng(0).uniform(low, high, N).astype(dtype))
            print(f"| {name} | {dtype.__name__} | {largest:.2f} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.1f} |")


if __name__ == "__main__":
    main()
