from itertools import product

import numpy as np
import pytest
from exact import fma_naive
from numba import njit
from numba.core.errors import TypingError

from fastbp.codegen.memory import lane_count, pointer
from fastbp.codegen.target import lanes
from fastbp.codegen.vectors import (
    absolute,
    any_lane,
    bits_as_float,
    first_lanes,
    float_as_bits,
    floor,
    fma,
    from_whole,
    largest,
    load,
    load_converted,
    load_first,
    progression,
    select,
    splat,
    sqrt,
    store,
    to_whole,
    total,
    with_sign_of,
)

DTYPES = [np.float32, np.float64]
# What lies around the outputs: no kernel computes it.
CANARY = -12345.0


@njit
def run_vectors(x, y, z, out):
    """One row of `out` for each operation; the last rows hold 0 and 1 for masks."""
    n = lane_count(pointer(x, 0))
    a, b, c = load(pointer(x, 0), 0), load(pointer(y, 0), 0), load(pointer(z, 0), 0)
    base = pointer(out, 0)
    store(base, 0 * n, a + b)
    store(base, 1 * n, a - b)
    store(base, 2 * n, a * b)
    store(base, 3 * n, a / b)
    store(base, 4 * n, -a)
    store(base, 5 * n, 2 - a * 3.0)
    store(base, 6 * n, fma(a, b, c))
    store(base, 7 * n, fma(a, 2.0, 1))
    store(base, 8 * n, floor(a))
    store(base, 9 * n, sqrt(absolute(a)))
    store(base, 10 * n, absolute(a))
    store(base, 11 * n, with_sign_of(a, b))
    store(base, 12 * n, splat(pointer(x, 0), 0.1))
    store(base, 13 * n, splat(pointer(x, 0), total(a)))
    store(base, 14 * n, splat(pointer(x, 0), largest(a)))
    store(base, 15 * n, from_whole(to_whole(floor(a)) + 3 - (to_whole(floor(b)) << 2)))
    store(base, 16 * n, from_whole(to_whole(floor(a * 8)) >> 1))
    store(base, 17 * n, bits_as_float(float_as_bits(a) + 1))
    store(base, 18 * n, select(a < b, 1.0, splat(pointer(x, 0), 0)))
    store(base, 19 * n, select(a <= b, splat(pointer(x, 0), 1), 0.0))
    store(base, 20 * n, select(a > 0.5, a, b))
    store(base, 21 * n, select(b < a, a, b))
    for i in range(n + 2):
        store(base, (22 + i) * n, select(first_lanes(a, i), a, b))


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors(dtype):
    rng = np.random.default_rng(0)
    n = lanes(np.dtype(dtype).itemsize)
    for _ in range(20):
        x, y = rng.normal(size=(2, n)).astype(dtype)
        y[rng.integers(n)] = x[0] if rng.integers(2) else -3
        x[rng.integers(n)] = y[0]
        z = -(x * y)  # nearly all digits cancel in x y + z: a product rounded before shows
        out = np.full((22 + n + 2, n), CANARY, dtype)
        run_vectors(x, y, z, out.ravel())
        with np.errstate(invalid="ignore", divide="ignore"):
            expected = [
                x + y, x - y, x * y, x / y, -x, 2 - x * 3,
                [fma_naive(*args, dtype) for args in zip(x, y, z, strict=True)],
                [fma_naive(number, 2, 1, dtype) for number in x],
                np.floor(x), np.sqrt(np.abs(x)), np.abs(x), np.copysign(x, y),
                np.full(n, dtype(0.1)), out[13], np.full(n, x.max()),
                np.floor(x) + 3 - 4 * np.floor(y), np.floor(np.floor(x * 8) / 2),
                (x.view(f"i{x.itemsize}") + 1).view(dtype),
                x < y, x <= y, np.where(x > 0.5, x, y), np.maximum(x, y),
                *(np.where(np.arange(n) < i, x, y) for i in range(n + 2)),
            ]  # fmt: skip
        for row, (got, want) in enumerate(zip(out, expected, strict=True)):
            np.testing.assert_array_equal(got, want, err_msg=f"{row=}")
        # In an order of its own, but the same sum in all places.
        assert len(set(out[13])) == 1
        np.testing.assert_allclose(out[13], x.sum(dtype=np.float64), atol=10 * np.finfo(dtype).eps)


@njit
def run_comparisons(x, out):
    a, one = load(pointer(x, 0), 0), splat(pointer(x, 0), 1.0)
    n = lane_count(pointer(x, 0))
    for i, mask in enumerate((a < 0.0, a > 0.0, a <= 0.0, a >= 0.0)):
        store(pointer(out, 0), i * n, select(mask, one, 0.0))
    store(pointer(out, 0), 4 * n, splat(pointer(x, 0), total(a)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_comparisons_with_nan_are_false(dtype):
    n = lanes(np.dtype(dtype).itemsize)
    x = np.zeros(n, dtype)
    x[1] = np.nan
    out = np.full((5, n), CANARY, dtype)
    run_comparisons(x, out.ravel())
    assert out[:4, 1].tolist() == [0, 0, 0, 0]
    assert out[:4, 0].tolist() == [0, 0, 1, 1]
    assert np.isnan(out[4]).all()


@njit
def run_progression(first, step, out):
    store(pointer(out, 0), 0, progression(pointer(out, 0), first, step))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_progression(dtype):
    out = np.zeros(lanes(np.dtype(dtype).itemsize), dtype)
    run_progression(dtype(1000), dtype(-64), out)
    np.testing.assert_array_equal(out, 1000 - 64 * np.arange(out.size))


@njit
def run_load_first(values, at, count, out):
    store(pointer(out, 0), 0, load_first(pointer(values, at), 0, count))


@pytest.mark.parametrize("dtype", DTYPES)
def test_load_first(dtype):
    n = lanes(np.dtype(dtype).itemsize)
    values = np.arange(1, 2 * n + 1).astype(dtype)
    for count in range(n + 3):
        out = np.full(n, CANARY, dtype)
        run_load_first(values, n, count, out)
        np.testing.assert_array_equal(out, np.where(np.arange(n) < count, values[n:], 0))


@njit
def run_load_converted(values, at, count, out):
    out = pointer(out, 0)
    store(out, 0, load_converted(pointer(values, 1), at - 1, count, out))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", [np.float32, np.float64, np.uint8])
def test_load_converted(source, dtype):
    n = lanes(np.dtype(dtype).itemsize)
    numbers = [0, 255, 128, 1, 127, 3] if source == np.uint8 else [0.1, -1e300, np.nan, -0.0, 1e-40, np.inf]
    with np.errstate(over="ignore", under="ignore"):
        values = np.resize(np.array(numbers).astype(source), 3 * n)
        expected = values.astype(dtype)
    for at, count in product((1, 2, n), (0, 1, n - 1, n, n + 5)):
        out = np.full(n, CANARY, dtype)
        run_load_converted(values, at, count, out)
        wanted = np.where(np.arange(n) < count, expected[at : at + n], dtype(0))
        np.testing.assert_array_equal(out, wanted)
        np.testing.assert_array_equal(np.signbit(out), np.signbit(wanted))


@njit
def add_vectors(x, y):
    return total(load(pointer(x, 0), 0) + load(pointer(y, 0), 0))


def test_vectors_of_different_types_do_not_mix():
    with pytest.raises(TypingError):
        add_vectors(np.ones(16, np.float32), np.ones(16, np.float64))


@njit
def has_positive(x):
    return any_lane(load(pointer(x, 0), 0) > 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_lane(dtype):
    n = lanes(np.dtype(dtype).itemsize)
    for value, expected in ((0.0, False), (-0.0, False), (-1.0, False), (np.nan, False), (1e-30, True), (np.inf, True)):
        for i in range(n):
            x = np.zeros(n, dtype)
            x[i] = value
            assert has_positive(x) == expected
    assert has_positive(np.ones(n, dtype)) and not has_positive(np.full(n, -1, dtype))
