"""exp, expm1, log, tanh and erf of vectors, as plain arithmetic.

Numba calls the C library for each number, which is many times slower; `benchmarks/elementary.py` measures errors and
speed.

References
----------
S. Moshier, Cephes mathematical library, for most polynomials; fdlibm for the logarithm in float64.
"""

import numpy as np
from numba import types
from numba.extending import overload

from fastbp.codegen.jit import typed_inlined
from fastbp.codegen.vectors import (
    Vector,
    absolute,
    bits_as_float,
    float_as_bits,
    floor,
    fma,
    from_whole,
    select,
    to_whole,
    with_sign_of,
)


def exp(x):
    """Return e**x of a vector; 0 and inf beyond the range of the type, NaN for NaN."""


@overload(exp, inline="always")
def _overload_exp(x):
    return _by_type(x, _exp32, _exp64)


def log(x):
    """Return the natural logarithm of a vector of normal numbers; NaN for NaN and for x <= 0."""


@overload(log, inline="always")
def _overload_log(x):
    return _by_type(x, _log32, _log64)


def tanh(x):
    """Return the hyperbolic tangent of a vector; -1 and 1 far out, NaN for NaN."""


@overload(tanh, inline="always")
def _overload_tanh(x):
    return _by_type(x, _tanh32, _tanh64)


def expm1(x):
    """Return e**x - 1 of a vector, accurate near 0 too; -1 and inf beyond the range of the type, NaN for NaN."""


@overload(expm1, inline="always")
def _overload_expm1(x):
    return _by_type(x, _expm1_32, _expm1_64)


def erf(x):
    """Return the error function of a vector; -1 and 1 far out, NaN for NaN."""


@overload(erf, inline="always")
def _overload_erf(x):
    return _by_type(x, _erf32, _erf64)


def _by_type(x, single, double):
    if not isinstance(x, Vector) or x.dtype not in (types.float32, types.float64):
        return None
    function = single if x.dtype is types.float32 else double
    return lambda x: function(x)


# exp(x) = 2^n exp(r), n = x / ln 2 rounded to an integer, r = x - n ln 2 in two steps, as ln 2 in one
# number is not exact enough. These return n and exp(r) - 1.
@typed_inlined
def _reduced32(x):
    n = floor(fma(x, 1.442695040888963, 0.5))
    r = fma(n, -0.693359375, x)
    r = fma(n, 2.12194440e-4, r)
    p = fma(r, 1.9875691500e-4, 1.3981999507e-3)
    p = fma(p, r, 8.3334519073e-3)
    p = fma(p, r, 4.1665795894e-2)
    p = fma(p, r, 1.6666665459e-1)
    p = fma(p, r, 5.0000001201e-1)
    return n, fma(p, r * r, r)


@typed_inlined
def _reduced64(x):
    n = floor(fma(x, 1.4426950408889634, 0.5))
    r = fma(n, -6.93147180369123816490e-01, x)
    r = fma(n, -1.90821492927058770002e-10, r)
    # Taylor's series: on |r| <= ln(2)/2 the term of degree 14 is below half a unit of rounding.
    p = fma(r, 1.0 / 6227020800.0, 1.0 / 479001600.0)
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
    return n, fma(p, r * r, r)


# 2^n is made from bits, in two factors: 2^128 and 2^-140 are no normal numbers, but the results that they belong
# to may be.
@typed_inlined
def _exp32(x):
    x = select(x > 104.0, 104.0, x)
    n, p = _reduced32(select(x < -104.0, -104.0, x))
    whole = to_whole(n)
    half = whole >> 1
    return (p + 1.0) * bits_as_float((half + 127) << 23) * bits_as_float((whole - half + 127) << 23)


@typed_inlined
def _exp64(x):
    x = select(x > 746.0, 746.0, x)
    n, p = _reduced64(select(x < -746.0, -746.0, x))
    whole = to_whole(n)
    half = whole >> 1
    return (p + 1.0) * bits_as_float((half + 1023) << 52) * bits_as_float((whole - half + 1023) << 52)


# expm1(x) = 2^n (exp(r) - 1) + (2^n - 1); half of all that at first, as 2^128 is no number.
@typed_inlined
def _half_expm1_32(x):
    n, p = _reduced32(x)
    scale = bits_as_float((to_whole(n) + 126) << 23)
    return fma(p, scale, scale - 0.5)


@typed_inlined
def _half_expm1_64(x):
    n, p = _reduced64(x)
    scale = bits_as_float((to_whole(n) + 1022) << 52)
    return fma(p, scale, scale - 0.5)


@typed_inlined
def _expm1_32(x):
    x = select(x > 89.0, 89.0, x)
    half = _half_expm1_32(select(x < -60.0, -60.0, x))
    return half + half


@typed_inlined
def _expm1_64(x):
    x = select(x > 710.0, 710.0, x)
    half = _half_expm1_64(select(x < -60.0, -60.0, x))
    return half + half


# log(x) = n ln 2 + log(1 + f), with 1 + f between sqrt(1/2) and sqrt(2). The bits of NaN would pass for a number.
@typed_inlined
def _log32(x):
    bits = float_as_bits(x) - 0x3F3504F3  # the bits of sqrt(1/2)
    n = bits >> 23
    f = bits_as_float(float_as_bits(x) - (n << 23)) - 1.0
    n = from_whole(n)
    z = f * f
    p = fma(f, 7.0376836292e-2, -1.1514610310e-1)
    p = fma(p, f, 1.1676998740e-1)
    p = fma(p, f, -1.2420140846e-1)
    p = fma(p, f, 1.4249322787e-1)
    p = fma(p, f, -1.6668057665e-1)
    p = fma(p, f, 2.0000714765e-1)
    p = fma(p, f, -2.4999993993e-1)
    p = fma(p, f, 3.3333331174e-1)
    p = fma(n, -2.12194440e-4, p * f * z)
    return select(x > 0.0, fma(n, 0.693359375, f + fma(z, -0.5, p)), np.nan)


@typed_inlined
def _log64(x):
    bits = float_as_bits(x) - 0x3FE6A09E667F3BCD
    n = bits >> 52
    f = bits_as_float(float_as_bits(x) - (n << 52)) - 1.0
    n = from_whole(n)
    s = f / (f + 2.0)
    z = s * s
    p = fma(z, 1.479819860511658591e-1, 1.531383769920937332e-1)
    p = fma(p, z, 1.818357216161805012e-1)
    p = fma(p, z, 2.222219843214978396e-1)
    p = fma(p, z, 2.857142874366239149e-1)
    p = fma(p, z, 3.999999999940941908e-1)
    p = fma(p, z, 6.666666666666735130e-1)
    half = f * f * 0.5
    p = fma(s, fma(p, z, half), n * 1.90821492927058770002e-10)
    return select(x > 0.0, fma(n, 6.93147180369123816490e-01, f - (half - p)), np.nan)


# tanh |x| = h / (h + 1) with h = (e^2|x| - 1) / 2, which is accurate near zero too. From 10 and 20 on it
# rounds to 1.
@typed_inlined
def _tanh32(x):
    size = absolute(x)
    size = select(size > 10.0, 10.0, size)
    half = _half_expm1_32(size + size)
    return with_sign_of(half / (half + 1.0), x)


@typed_inlined
def _tanh64(x):
    size = absolute(x)
    size = select(size > 20.0, 20.0, size)
    half = _half_expm1_64(size + size)
    return with_sign_of(half / (half + 1.0), x)


# Below 1 erf(x) / x - 1 is a series in x^2 (Taylor's). Above, erf(x) = 1 - exp(-x^2) erfcx(x), where (1 + 2x) erfcx(x)
# is a polynomial in (x - 2) / (x + 2), fitted by Chebyshev interpolation up to where erf rounds to 1.
@typed_inlined
def _erf32(x):
    size = absolute(x)
    z = x * x
    p = fma(z, -1.2290555301717926e-09, 1.4807192815879218e-08)
    p = fma(p, z, -1.6365844691234924e-07)
    p = fma(p, z, 1.6462114365889246e-06)
    p = fma(p, z, -1.492565035840625e-05)
    p = fma(p, z, 0.00012055332981789664)
    p = fma(p, z, -0.0008548327023450852)
    p = fma(p, z, 0.005223977625442188)
    p = fma(p, z, -0.026866170645131252)
    p = fma(p, z, 0.11283791670955126)
    p = fma(p, z, -0.37612638903183754)
    p = fma(p, z, 0.12837916709551256)
    near = fma(p, size, size)
    t = select(size > 4.0, 4.0, size)
    q = (t - 2.0) / (t + 2.0)
    r = fma(q, 0.008406068180684128, -0.007798912021443274)
    r = fma(r, q, -0.05419818117789622)
    r = fma(r, q, 0.16403843813879063)
    r = fma(r, q, -0.1660308806650496)
    r = fma(r, q, -0.09276364973018286)
    r = fma(r, q, 1.2769783832259642)
    far = 1.0 - exp(t * -t) * (r / (t + t + 1.0))
    return with_sign_of(select(size < 1.0, near, far), x)


@typed_inlined
def _erf64(x):
    size = absolute(x)
    z = x * x
    p = fma(z, -9.063970842808673e-17, 1.6342614095367152e-15)
    p = fma(p, z, -2.7835162072109212e-14)
    p = fma(p, z, 4.4632242632864775e-13)
    p = fma(p, z, -6.7113668551641105e-12)
    p = fma(p, z, 9.422759064650411e-11)
    p = fma(p, z, -1.2290555301717926e-09)
    p = fma(p, z, 1.4807192815879218e-08)
    p = fma(p, z, -1.6365844691234924e-07)
    p = fma(p, z, 1.6462114365889246e-06)
    p = fma(p, z, -1.492565035840625e-05)
    p = fma(p, z, 0.00012055332981789664)
    p = fma(p, z, -0.0008548327023450852)
    p = fma(p, z, 0.005223977625442188)
    p = fma(p, z, -0.026866170645131252)
    p = fma(p, z, 0.11283791670955126)
    p = fma(p, z, -0.37612638903183754)
    p = fma(p, z, 0.12837916709551256)
    near = fma(p, size, size)
    t = select(size > 6.0, 6.0, size)
    q = (t - 2.0) / (t + 2.0)
    r = fma(q, -4.0295643325518094e-05, -5.5964276632199325e-06)
    r = fma(r, q, 0.00015283314553984402)
    r = fma(r, q, 0.00020684288097264306)
    r = fma(r, q, -0.0004546197249622435)
    r = fma(r, q, -0.0014568379441050596)
    r = fma(r, q, 0.0012713594140079485)
    r = fma(r, q, 0.008722654288536004)
    r = fma(r, q, -0.00803401581493349)
    r = fma(r, q, -0.054220000989222174)
    r = fma(r, q, 0.16405128004481595)
    r = fma(r, q, -0.16603039761538194)
    r = fma(r, q, -0.09276382658579657)
    r = fma(r, q, 1.276978381552529)
    far = 1.0 - exp(t * -t) * (r / (t + t + 1.0))
    return with_sign_of(select(size < 1.0, near, far), x)
