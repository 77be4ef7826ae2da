import os
import subprocess
import sys
from fractions import Fraction
from itertools import product
from math import frexp, ldexp
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from numba import njit, typeof
from numba.core.errors import TypingError

import fastbp
from fastbp.kernels import intrinsics
from fastbp.kernels.intrinsics import (
    FEW_COLUMNS,
    HAS_FMA,
    MARKED,
    MR,
    NV,
    ROW_VECTORS,
    VECTOR_BITS,
    append_marked,
    append_set_bits,
    atomic_add,
    atomic_load,
    atomic_store,
    call_at,
    flush_subnormals,
    get,
    lane_count,
    lanes,
    micro_kernel,
    micro_kernel_ahead,
    micro_kernel_listed,
    nonzero_bits,
    pointer,
    pointer_at,
    prefetch,
    put,
    restore_subnormals,
    row_kernel,
    shift,
    short_row_kernel,
    transpose_tile,
    view,
)
from fastbp.kernels.simd import (
    absolute,
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
DIGITS = {np.float32: 24, np.float64: 53}
# What lies around the outputs: no kernel computes it.
CANARY = -12345.0


def rounded(value, dtype):
    """Round an exact number to the nearest of a type, ties to even."""
    if value == 0:
        return 0.0
    places = DIGITS[dtype] - frexp(float(value))[1]
    return ldexp(round(value * Fraction(2) ** places), -places)


def fma_naive(x, y, z, dtype):
    product = Fraction(float(x)) * Fraction(float(y))
    if not HAS_FMA:
        product = Fraction(rounded(product, dtype))
    return rounded(product + Fraction(float(z)), dtype)


def tile_naive(a, b, d):
    """C = D + A B, each element one chain of fused multiply-adds."""
    c = d.copy()
    for i, j in np.ndindex(c.shape):
        for p in range(a.shape[1]):
            c[i, j] = fma_naive(a[i, p], b[p, j], c[i, j], c.dtype.type)
    return c


@njit
def run_tile(mr, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_at, c_row):
    a, b, d, c = pointer(a, 0), pointer(b, 0), pointer(d, 0), pointer(c, c_at)
    micro_kernel(mr, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


def tile(mr, nv, a, b, d, *, transposed=False, gap=3):
    """Run the kernel on padded copies, check that it writes only its tile, and return that."""
    dtype = b.dtype
    n = nv * lanes(dtype.itemsize)
    k = a.shape[1]
    a = np.pad(a[:mr].T if transposed else a[:mr], ((0, 1), (0, gap)), constant_values=np.nan)
    a_row, a_col = (1, a.shape[1]) if transposed else (a.shape[1], 1)
    b = np.pad(b[:, :n], ((0, 1), (0, gap)), constant_values=np.nan)
    d_row = 0 if d.ndim == 1 else n + gap + 1
    d = d[:n] if d.ndim == 1 else np.pad(d[:mr, :n], ((0, 0), (0, gap + 1)), constant_values=np.nan)
    c = np.full((mr + 2, n + gap), CANARY, dtype)
    place = (c.ravel(), n + gap, n + gap)
    run_tile(mr, nv, k, a.ravel(), a_row, a_col, b.ravel(), n + gap, d.ravel(), d_row, *place)
    inside = c[1:-1, :n].copy()
    c[1:-1, :n] = CANARY
    assert (c == CANARY).all()
    return inside


def operands(dtype, k, seed=0):
    rng = np.random.default_rng(seed)
    n = NV * lanes(np.dtype(dtype).itemsize)
    return [rng.normal(size=shape).astype(dtype) for shape in [(MR, k), (k, n), (MR, n)]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_tile_is_a_chain_of_fused_multiply_adds(dtype, k):
    a, b, d = operands(dtype, k)
    expected = tile_naive(a, b, d)
    for mr in range(1, MR + 1):
        for nv in range(1, NV + 1):
            n = nv * lanes(b.itemsize)
            for transposed in (False, True):
                np.testing.assert_array_equal(tile(mr, nv, a, b, d, transposed=transposed), expected[:mr, :n])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_the_same_bits_in_tiles_of_any_shape(dtype):
    a, b, d = operands(dtype, 300)
    alone = np.vstack([tile(1, NV, a[i:], b, d[i:]) for i in range(MR)])
    for mr in range(1, MR + 1):
        for nv in range(1, NV + 1):
            n = nv * lanes(b.itemsize)
            for gap in (0, 5):
                np.testing.assert_array_equal(tile(mr, nv, a, b, d, gap=gap), alone[:mr, :n])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reduction_may_be_cut_and_continued(dtype):
    a, b, d = operands(dtype, 41)
    whole = tile(MR, NV, a, b, d)
    for cut in (1, 16, 40):
        begun = tile(MR, NV, a[:, :cut], b[:cut], d)
        np.testing.assert_array_equal(tile(MR, NV, a[:, cut:], b[cut:], begun), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tile_starts_from_one_row_or_from_itself(dtype):
    a, b, d = operands(dtype, 7)
    n = d.shape[1]
    expected = tile(MR, NV, a, b, np.tile(d[0], (MR, 1)))
    np.testing.assert_array_equal(tile(MR, NV, a, b, d[0]), expected)
    c = np.tile(d[0], (MR, 1))
    run_tile(MR, NV, 7, a.ravel(), 7, 1, b.ravel(), n, c.ravel(), n, c.ravel(), 0, n)
    np.testing.assert_array_equal(c, expected)


@njit
def run_listed(mr, nv, listed, a, a_row, a_col, b, b_row, d, d_row, c, c_at, c_row):
    k, listed = listed.size, pointer(listed, 0)
    a, b, d, c = pointer(a, 0), pointer(b, 0), pointer(d, 0), pointer(c, c_at)
    micro_kernel_listed(mr, nv, k, listed, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tile_over_listed_indices(dtype):
    a, b, d = operands(dtype, 50)
    row = b.shape[1]
    for listed in ([0], [49], [3, 4, 20, 41], range(50)):
        numbers = np.array(listed, np.int32)
        for mr in range(1, MR + 1):
            for nv in range(1, NV + 1):
                n = nv * lanes(b.itemsize)
                expected = np.full((mr + 2, n + 3), CANARY, dtype)
                expected[1:-1, :n] = tile(mr, nv, a[:, numbers], b[numbers], d)
                for values, a_row, a_col in [(a, 50, 1), (np.ascontiguousarray(a.T), 1, MR)]:
                    c = np.full_like(expected, CANARY)
                    place = (c.ravel(), n + 3, n + 3)
                    args = (numbers, values.ravel(), a_row, a_col, b.ravel(), row, d.ravel(), row)
                    run_listed(mr, nv, *args, *place)
                    np.testing.assert_array_equal(c, expected)


@njit
def run_ahead(mr, nv, k, read, written, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    n_read, n_written, read, written = read.size, written.size, pointer(read, 0), pointer(written, 0)
    a, b, d, c = pointer(a, 0), pointer(b, 0), pointer(d, 0), pointer(c, 0)
    micro_kernel_ahead(mr, nv, k, read, n_read, written, n_written, a, a_row, a_col, b, b_row, d, d_row, c, c_row)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tile_that_asks_for_memory(dtype):
    a, b, d = operands(dtype, 50)
    row = b.shape[1]
    for n_read, n_written in ((1, 1), (7, 1), (1, 7), (50, 12), (20, 60)):
        # What is asked for is neither read nor written: any address will do.
        read, written = np.arange(n_read) * 64, np.arange(n_written) * 64
        for mr in range(1, MR + 1):
            for nv in range(1, NV + 1):
                c = np.zeros((mr, nv * lanes(b.itemsize)), dtype)
                args = (read, written, a.ravel(), 50, 1, b.ravel(), row, d.ravel(), row)
                run_ahead(mr, nv, 50, *args, c.ravel(), c.shape[1])
                np.testing.assert_array_equal(c, tile(mr, nv, a, b, d))


@njit
def run_row(n, k, x, w, w_row, d, out, out_at):
    row_kernel(n, k, pointer(x, 0), pointer(w, 0), w_row, pointer(d, 0), pointer(out, out_at))


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_kernel_has_the_bits_of_the_tile(dtype):
    width = lanes(np.dtype(dtype).itemsize)
    rng = np.random.default_rng(4)
    most = ROW_VECTORS * width
    x = rng.normal(size=(1, 50)).astype(dtype)
    w = rng.normal(size=(50, most)).astype(dtype)
    d = rng.normal(size=(1, most)).astype(dtype)
    for k in (1, 50):
        expected = np.hstack([tile(1, 1, x[:, :k], w[:k, j:], d[:, j:]) for j in range(0, most, width)])[0]
        for n in range(1, most + 1):
            written = -(-n // width) * width
            out = np.full(written + 2, CANARY, dtype)
            run_row(n, k, x.ravel(), w[:, :n].ravel(), n, d[0, :n].copy(), out, 1)
            np.testing.assert_array_equal(out, [CANARY, *expected[:n], *[0] * (written - n), CANARY])


@njit
def run_short_row(n, k, x, w, d, out, out_at):
    short_row_kernel(n, k, pointer(x, 0), pointer(w, 0), pointer(d, 0), pointer(out, out_at))


@pytest.mark.parametrize("dtype", DTYPES)
def test_short_row_kernel(dtype):
    width = lanes(np.dtype(dtype).itemsize)
    rng = np.random.default_rng(4)
    for vectors, k in product(range(1, NV + 1), range(1, 23)):
        n = vectors * width
        # Sums of whole numbers are exact in any order.
        x, w, d = (rng.integers(-9, 10, shape).astype(dtype) for shape in (k, (k, n), n))
        out = np.full(n + 2, CANARY, dtype)
        run_short_row(n, k, x, w.ravel(), d, out, 1)
        np.testing.assert_array_equal(out, [CANARY, *(d + x @ w), CANARY])


# --- lists of what is not zero ---


@njit
def run_nonzero_bits(values, at):
    return nonzero_bits(pointer(values, at))


@njit
def run_append_set_bits(bits, base, out, count):
    return append_set_bits(bits, base, pointer(out, 0), count)


@njit
def run_append_marked(marks, bits, n, base, out, count):
    return append_marked(pointer(marks, 0), bits, n, base, pointer(out, 0), count)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nonzero_bits(dtype):
    values = np.zeros(MARKED + 2, dtype)
    assert run_nonzero_bits(values, 1) == 0
    values[0] = values[-1] = 1  # outside
    values[[3, MARKED, 5, 6, 7]] = -1, np.nan, -0.0, np.inf, np.finfo(dtype).tiny
    assert run_nonzero_bits(values, 1) == sum(1 << i for i in (2, 5, 6, MARKED - 1))
    assert run_nonzero_bits(np.ones(MARKED, dtype), 0) == (1 << MARKED) - 1


def test_append_set_bits():
    rng = np.random.default_rng(0)
    for bits in [0, 1, 1 << (MARKED - 1), (1 << MARKED) - 1, *rng.integers(0, 1 << MARKED, 50)]:
        out = np.full(3 + MARKED + 1, CANARY, np.int32)
        count = run_append_set_bits(bits, 100, out, 3)
        assert out[3:count].tolist() == [100 + i for i in range(MARKED) if bits >> i & 1]
        assert (out[:3] == CANARY).all() and out[-1] == CANARY


def test_append_marked():
    rng = np.random.default_rng(0)
    for n in (1, 5, MARKED - 1, MARKED, 100):
        marks = rng.integers(0, 1 << MARKED, MARKED).astype(np.uint16)
        marks[::3] = 0
        for bits in (1, 1 << (MARKED - 1), 0b1010, (1 << MARKED) - 1):
            out = np.full(3 + MARKED + 1, CANARY, np.int32)
            count = run_append_marked(marks, bits, n, 100, out, 3)
            assert out[3:count].tolist() == [100 + i for i in range(min(n, MARKED)) if marks[i] & bits]
            assert (out[:3] == CANARY).all() and out[-1] == CANARY


# --- vectors ---


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


# --- memory ---


@njit
def run_transpose(n, source, at, source_row, out, out_at, out_row):
    transpose_tile(n, pointer(source, at), source_row, pointer(out, out_at), out_row)


@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose_tile(dtype):
    width = lanes(np.dtype(dtype).itemsize)
    rows = [(width, width), (width + 3, width), (width, width + 5), (4 * width, 3 * width)]
    for (source_row, out_row), n in product(rows, range(1, width + 3)):
        source = np.arange(1.0, source_row * (width + 1) + 1, dtype=dtype).reshape(width + 1, source_row)
        out = np.full((width + 2, out_row), CANARY, dtype)
        run_transpose(n, source.ravel(), 0, source_row, out.ravel(), out_row, out_row)
        expected = np.full_like(out, CANARY)
        written = min(FEW_COLUMNS, width) if n <= FEW_COLUMNS else width
        expected[1 : 1 + written, :width] = source[:width, :written].T
        np.testing.assert_array_equal(out, expected)


@njit
def run_pointers(values, offset, address):
    base = pointer(values, offset)
    there = pointer_at(base, address)
    return lane_count(base), base[0], shift(base, 2)[0], shift(base, -1)[0], there[0]


@njit
def run_views(values):
    for array in (view(pointer(values, 2), 3), view(pointer(values, 6), 2)):
        for i in range(array.size):
            array[i] = -array[i]


@pytest.mark.parametrize("dtype", DTYPES)
def test_pointers_and_views_count_in_elements(dtype):
    values = np.arange(10, dtype=dtype)
    expected = (VECTOR_BITS // (8 * values.itemsize), 3, 5, 2, 7)
    assert run_pointers(values, 3, values[7:].ctypes.data) == expected
    assert lanes(values.itemsize) * values.itemsize * 8 == VECTOR_BITS
    run_views(values)
    np.testing.assert_array_equal(values, [0, 1, -2, -3, -4, 5, -6, -7, 8, 9])


@njit
def run_get_and_put(values):
    base = pointer(values, 2)
    prefetch(base, 1)
    put(base, 0, get(base, -1) + get(base, 3))
    put(base, 1, 7)
    put(base, 2, 1.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_get_and_put(dtype):
    values = np.arange(10, dtype=dtype)
    run_get_and_put(values)
    np.testing.assert_array_equal(values, np.array([0, 1, 1 + 5, 7, 1.5, *range(5, 10)]).astype(dtype))


@njit
def to_be_called(values, pair, factor):
    values[0] = factor * pair[0][1] + pair[1]


@njit
def run_call_at(address, values, pair, factor):
    call_at(address, (values, pair, factor))


def test_call_at():
    values, pair = np.zeros(2), (np.array([5, 7]), 0.5)
    kinds = tuple(map(typeof, (values, pair, 3)))
    to_be_called.compile(kinds)
    compiled = to_be_called.overloads[kinds]
    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    run_call_at(address, values, pair, 3)
    assert values.tolist() == [21.5, 0]


# --- threads and modes ---


@njit(nogil=True)
def add_often(cells, times, seen):
    for i in range(times):
        seen[i] = atomic_add(cells, 1, 1)


def test_atomic_add_loses_nothing():
    cells = np.zeros(3, dtype=np.int64)
    seen = np.zeros((4, 50_000), dtype=np.int64)
    add_often(cells, 0, seen[0])
    threads = [Thread(target=add_often, args=(cells, seen.shape[1], row)) for row in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cells.tolist() == [0, seen.size, 0]
    np.testing.assert_array_equal(np.sort(seen, axis=None), np.arange(seen.size))


@njit(nogil=True)
def pass_the_ball(cells, data, side, rounds, patience):
    """Add to data[0] in turns with another thread; return how many turns came.

    Nothing in the loop but the load itself keeps the compiler from loading once and for all.
    """
    for turn in range(rounds):
        looks = 0
        while atomic_load(cells, 1) != 2 * turn + side:
            looks += 1
            if looks > patience:
                return turn
        data[0] += 1
        atomic_store(cells, 1, 2 * turn + side + 1)
    return rounds


def test_atomic_stores_are_seen_in_order_by_other_threads():
    cells = np.zeros(3, dtype=np.int64)
    data = np.zeros(1, dtype=np.int64)
    rounds, patience = 200, 10**9
    pass_the_ball(cells, data, 0, 0, 0)
    other = []
    thread = Thread(target=lambda: other.append(pass_the_ball(cells, data, 1, rounds, patience)))
    thread.start()
    mine = pass_the_ball(cells, data, 0, rounds, patience)
    thread.join()
    assert (mine, other, data[0], cells.tolist()) == (rounds, [rounds], 2 * rounds, [0, 2 * rounds, 0])


@njit
def halve(values, out):
    for i in range(values.size):
        out[i] = values[i] * values.dtype.type(0.5)


@njit
def enter():
    return flush_subnormals()


@njit
def leave(mode):
    restore_subnormals(mode)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.skipif(not (intrinsics._X86 or intrinsics._ARM64), reason="no such mode is known here")
def test_subnormals_are_flushed_and_come_back(dtype):
    info = np.finfo(dtype)
    values = np.array([info.tiny, info.smallest_subnormal * 8, 1.0], dtype=dtype)
    kept = values / 2
    assert kept.all()
    flushed = np.array([0.0, 0.0, 0.5], dtype=dtype)
    out = np.empty_like(values)
    outer = enter()
    try:
        halve(values, out)
        inside = out.copy()
        leave(enter())  # an inner pair leaves the outer mode as it is
        halve(values, out)
        nested = out.copy()
    finally:
        leave(outer)
    halve(values, out)
    np.testing.assert_array_equal([inside, nested, out], [flushed, flushed, kept])


def test_a_machine_without_vector_extensions_gets_the_least(tmp_path):
    root = Path(fastbp.__file__).parents[1]
    code = "from fastbp.kernels.intrinsics import *; print(HAS_FMA, VECTOR_BITS, NV)"
    env = {**os.environ, "PYTHONPATH": str(root), "NUMBA_CPU_NAME": "generic"}
    env.pop("NUMBA_CPU_FEATURES", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    has_fma, bits, vectors = done.stdout.split()
    assert bits == "128"
    # ARM processors of 64 bits all have fused multiply-adds and 32 registers.
    assert (has_fma, vectors) in [("False", "2"), ("True", "4")]
