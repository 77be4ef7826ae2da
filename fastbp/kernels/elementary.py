"""exp and tanh as plain arithmetic, so that loops over them run in vector registers.

Numba calls the C library once per number, which is many times slower (`benchmarks/` shows it).
These take one float32 or float64 and give the same bits alone, in a vector, or in the
remainder of one.

References
----------
S. Moshier, Cephes mathematical library, for the polynomials.
"""

import numpy as np
from numba import types
from numba.extending import overload

from fastbp.kernels.intrinsics import float_from_bits, fma

F32 = np.float32


def exp(x):
    """Return e**x; 0 and inf beyond the range of the type, NaN for NaN."""
    return np.exp(x)


@overload(exp)
def _overload_exp(x):
    return {types.float32: _exp32, types.float64: _exp64}.get(x)


def tanh(x):
    """Return the hyperbolic tangent; -1 and 1 far out, NaN for NaN."""
    return np.tanh(x)


@overload(tanh)
def _overload_tanh(x):
    return {types.float32: _tanh32, types.float64: _tanh64}.get(x)


# exp(x) = 2^n exp(r), n = x / ln 2 rounded to an integer, r = x - n ln 2 in two steps, as ln 2 in one
# number is not exact enough. 2^n is made from bits, in two factors: 2^128 and 2^-140 are no
# normal numbers, but the results that they belong to may be.
def _exp32(x):
    x = F32(104.0) if x > F32(104.0) else x
    x = F32(-104.0) if x < F32(-104.0) else x
    n = np.floor(fma(x, F32(1.442695040888963), F32(0.5)))
    r = fma(n, F32(-0.693359375), x)
    r = fma(n, F32(2.12194440e-4), r)
    p = fma(F32(1.9875691500e-4), r, F32(1.3981999507e-3))
    p = fma(p, r, F32(8.3334519073e-3))
    p = fma(p, r, F32(4.1665795894e-2))
    p = fma(p, r, F32(1.6666665459e-1))
    p = fma(p, r, F32(5.0000001201e-1))
    p = fma(p, r * r, r) + F32(1.0)
    whole = np.int32(n)
    half = whole >> np.int32(1)
    rest = np.int32(whole - half)
    return (
        p
        * float_from_bits(np.int32((half + np.int32(127)) << np.int32(23)))
        * float_from_bits(np.int32((rest + np.int32(127)) << np.int32(23)))
    )


def _exp64(x):
    x = 746.0 if x > 746.0 else x
    x = -746.0 if x < -746.0 else x
    n = np.floor(fma(x, 1.4426950408889634, 0.5))
    r = fma(n, -6.93147180369123816490e-01, x)
    r = fma(n, -1.90821492927058770002e-10, r)
    # Taylor's series: on |r| <= ln(2)/2 the term of degree 14 is below half a unit of rounding.
    p = fma(1.0 / 6227020800.0, r, 1.0 / 479001600.0)
    p = fma(p, r, 1.0 / 39916800.0)
    p = fma(p, r, 1.0 / 3628800.0)
    p = fma(p, r, 1.0 / 362880.0)
    p = fma(p, r, 1.0 / 40320.0)
    p = fma(p, r, 1.0 / 5040.0)
    p = fma(p, r, 1.0 / 720.0)
    p = fma(p, r, 1.0 / 120.0)
    p = fma(p, r, 1.0 / 24.0)
    p = fma(p, r, 1.0 / 6.0)
    p = fma(p, r, 0.5)
    p = fma(p, r * r, r) + 1.0
    whole = np.int64(n)
    half = whole >> 1
    return p * float_from_bits((half + 1023) << 52) * float_from_bits((whole - half + 1023) << 52)


# Near zero a polynomial keeps the relative accuracy that 1 - 2 / (e^2|x| + 1) loses. Both are computed
# and one is taken: a branch could not be vectorised.
def _tanh32(x):
    size = abs(x)
    z = x * x
    p = fma(F32(-5.70498872745e-3), z, F32(2.06390887954e-2))
    p = fma(p, z, F32(-5.37397155531e-2))
    p = fma(p, z, F32(1.33314422036e-1))
    p = fma(p, z, F32(-3.33332819422e-1))
    near = fma(p * z, size, size)
    far = F32(1.0) - F32(2.0) / (exp(size + size) + F32(1.0))
    return np.copysign(near if size < F32(0.625) else far, x)


def _tanh64(x):
    size = abs(x)
    z = x * x
    p = fma(-9.64399179425052238628e-1, z, -9.92877231001918586564e1)
    p = fma(p, z, -1.61468768441708447952e3)
    q = z + 1.12811678491632931402e2
    q = fma(q, z, 2.23548839060100448583e3)
    q = fma(q, z, 4.84406305325125486048e3)
    near = fma(size * z, p / q, size)
    far = 1.0 - 2.0 / (exp(size + size) + 1.0)
    return np.copysign(near if size < 0.625 else far, x)
