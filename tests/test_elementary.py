import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError
from scipy.special import erf as erf_of
from scipy.special import erfcx

from fastbp.codegen.elementary import erf, exp, expm1, log, tanh
from fastbp.codegen.memory import lane_count, pointer
from fastbp.codegen.target import HAS_FMA, lanes
from fastbp.codegen.vectors import load, store

DTYPES = [np.float32, np.float64]


def over(function):
    """A kernel that applies a function of vectors to all numbers of an array."""

    @njit
    def kernel(x, out):
        x, out, n = pointer(x, 0), pointer(out, 0), x.size
        for i in range(0, n, lane_count(x)):
            store(out, i, function(load(x, i)))

    return kernel


def exact_erf(x):
    """The error function; in long double a series near zero, then by erfcx, whose own error does not count there."""
    if x.dtype == np.float64:
        return erf_of(x)
    size = np.abs(x)
    near = size[size < 2]
    total = term = near
    square = near**2
    for k in range(1, 80):
        term = term * -square / k
        total = total + term / (2 * k + 1)
    out = 1 - np.exp(-(size**2)) * erfcx(np.minimum(size, 30).astype(np.float64))
    out[size < 2] = 2 / np.sqrt(np.longdouble("3.14159265358979323846264338327950288")) * total
    return np.copysign(out, x)


KERNELS = {
    "exp": (over(exp), np.exp),
    "expm1": (over(expm1), np.expm1),
    "log": (over(log), np.log),
    "tanh": (over(tanh), np.tanh),
    "erf": (over(erf), exact_erf),
}
# Largest errors, in units in the last place, in float32 and in float64. Without FMA each multiply-add rounds twice.
BOUNDS = {
    "exp": (1.1, 1.1), "expm1": (1.6, 1.9), "log": (1.0, 1.0), "tanh": (2.3 if HAS_FMA else 2.4, 2.6),
    "erf": (1.3 if HAS_FMA else 1.4, 3.0),
}  # fmt: skip


def apply(name, x):
    """Apply the kernel to whole vectors, the last one filled up with numbers that do not count."""
    width = lanes(x.itemsize)
    whole = np.resize(x, -(-x.size // width) * width)
    out = np.full_like(whole, -7)
    KERNELS[name][0](whole, out)
    return out[: x.size]


def largest_error(name, x):
    """The largest distance from the exact values, in units in the last place of these."""
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    out = apply(name, x)
    with np.errstate(over="ignore", under="ignore"):
        exact = KERNELS[name][1](x.astype(wide))
        nearest = np.abs(exact).astype(x.dtype)
    inside = np.isfinite(nearest)
    # Beyond the largest number the only right result is infinity.
    np.testing.assert_array_equal(np.isinf(out), ~inside)
    error = np.abs(out[inside] - exact[inside]) / np.spacing(nearest[inside]).astype(wide)
    return float(error.max())


@pytest.mark.parametrize("name", KERNELS)
def test_error_in_float32(name):
    # Every 997th of all bit patterns, but infinity and NaN.
    x = np.arange(0, 2**32, 997, dtype=np.uint32).view(np.float32)
    x = x[x >= np.finfo(np.float32).tiny] if name == "log" else x
    x = x[np.isfinite(x)]
    assert x.size > 2_000_000
    assert largest_error(name, x) <= BOUNDS[name][0]
    # All numbers where exp overflows, underflows and is split differently, where tanh changes its formula and
    # log its exponent, and where that is zero.
    for center in (88.722839, -87.33655, -103.97208, 0.34657359, 0.625, 0.70710678, 1.0, 1.41421356, 2.0, 4.0):
        if name != "log" or center > 0:
            bits = np.float32(center).view(np.uint32) + np.arange(-5000, 5000)
            assert largest_error(name, bits.astype(np.uint32).view(np.float32)) <= BOUNDS[name][0]


@pytest.mark.parametrize("name", KERNELS)
def test_error_in_float64(name):
    # Where long double is no longer than double, the reference errs by up to one unit itself.
    bound = BOUNDS[name][1] + (np.finfo(np.longdouble).nmant < 60)
    rng = np.random.default_rng(0)
    ranges = [(-1, 1), (-25, 25), (-746, 710), (-746, -707), (709, 710), (0.62, 0.65)]
    if name == "log":
        ranges = [(0, 1), (0.5, 1.5), (0.7, 0.71), (0.99, 1.01), (1.41, 1.42), (0, 1e300)]
    for low, high in ranges:
        assert largest_error(name, rng.uniform(low, high, 300_000)) <= bound
    sizes = np.exp(rng.uniform(np.log(3e-308 if name == "log" else 1e-320), np.log(1e308), 300_000))
    assert largest_error(name, sizes if name == "log" else np.concatenate([sizes, -sizes])) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_at_the_ends(dtype):
    info = np.finfo(dtype)
    x = np.array([0.0, -0.0, info.smallest_subnormal, np.inf, info.max, -np.inf, info.min, np.nan], dtype)
    np.testing.assert_array_equal(apply("exp", x), np.array([1, 1, 1, np.inf, np.inf, 0, 0, np.nan], dtype))
    # The largest x with a finite result, the next one, and the same for the smallest results.
    top = np.nextafter(np.log(info.max.astype(np.longdouble)).astype(dtype), dtype(0))
    assert np.isfinite(apply("exp", np.array([top]))[0])
    assert np.isinf(apply("exp", np.array([top * dtype(1.001)]))[0])
    least = np.log(info.smallest_subnormal.astype(np.longdouble)).astype(dtype)
    out = apply("exp", np.array([least, least - 1], dtype))
    np.testing.assert_array_equal(out, [info.smallest_subnormal, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_at_the_ends(dtype):
    info = np.finfo(dtype)
    tiny = info.smallest_subnormal
    small = [0.0, -0.0, tiny, -tiny, info.tiny]
    x = np.array([*small, 30, -30, info.max, info.min, np.inf, -np.inf, np.nan], dtype)
    expected = np.array([*small, 1, -1, 1, -1, 1, -1, np.nan], dtype)
    out = apply("tanh", x)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(np.signbit(out[:-1]), np.signbit(expected[:-1]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_is_odd_and_bounded(dtype):
    x = np.linspace(0, 30, 100_001).astype(dtype)
    out = apply("tanh", x)
    np.testing.assert_array_equal(apply("tanh", -x), -out)
    assert out.max() == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_at_the_ends(dtype):
    info = np.finfo(dtype)
    x = np.array([1, np.nan, 0, -0.0, -1, -np.inf], dtype)
    np.testing.assert_array_equal(apply("log", x), np.array([0] + [np.nan] * 5, dtype))
    # What the loss takes the logarithm of.
    x = np.array([info.eps, 1 - info.eps, info.tiny, info.max], dtype)
    np.testing.assert_allclose(apply("log", x), np.log(x.astype(np.longdouble)).astype(dtype), rtol=info.eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_same_bits_in_any_place_of_a_vector(name, dtype):
    rng = np.random.default_rng(1)
    width = lanes(np.dtype(dtype).itemsize)
    x = rng.normal(scale=3, size=13 * width).astype(dtype)
    x[::17] *= 40
    x[5::31] *= 1e-3
    x = np.abs(x) if name == "log" else x
    expected = apply(name, x).tobytes()
    for places in range(width):
        assert np.roll(apply(name, np.roll(x, places)), -places).tobytes() == expected
    alone = [apply(name, np.full(width, number)) for number in x]
    assert all(len(set(numbers)) == 1 for numbers in alone)
    assert np.array([numbers[0] for numbers in alone]).tobytes() == expected


@njit
def exp_of_a_number(x):
    return exp(x)


def test_only_vectors_are_taken():
    with pytest.raises(TypingError):
        exp_of_a_number(1.0)
