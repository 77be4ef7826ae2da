import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import config, njit

import fastbp
from fastbp import compat
from fastbp.codegen.target import HAS_FMA, VECTOR_BITS, X86, check_target, lanes, vector_unit
from fastbp.codegen.tiles import NV

ROOT = Path(fastbp.__file__).parents[1]
REPORT = "from fastbp.codegen.target import *; from fastbp.codegen.tiles import NV; print(VECTOR_BITS, HAS_FMA, NV)"


def report(folder, **changes):
    """The width, FMA and NV of a process with other variables in its environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CPU")}
    env |= {"PYTHONPATH": str(ROOT), **changes}
    done = subprocess.run(
        [sys.executable, "-c", REPORT], env=env, cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    bits, has_fma, nv = done.stdout.split()
    return int(bits), has_fma == "True", int(nv)


@pytest.mark.skipif(not X86, reason="names of x86-64 processors")
@pytest.mark.parametrize(
    ("name", "features", "bits", "has_fma"),
    [
        ("generic", "", 128, False),
        ("x86-64-v2", "", 128, False),
        ("sandybridge", "", 256, False),
        ("x86-64-v3", "", 256, True),
        ("haswell", "", 256, True),
        ("haswell", "-fma", 256, False),
        ("znver3", "-avx", 128, False),
        # What is switched off stays off, whatever of the rest implies it; of two words on one feature the last counts.
        ("znver3", "-avx,-avx2,+f16c,+fma,+vaes", 128, False),
        ("x86-64-v4", "-avx512f,,+avx512bw", 256, True),
        ("x86-64-v3", "-avx,+avx", 256, False),  # FMA, which AVX does not imply, is gone
        ("x86-64-v4", "", 512, True),
        ("x86-64-v4", "-avx512f", 256, True),
        ("x86-64", "+avx512f", 512, True),
    ],
)
def test_vector_unit_of_a_processor_by_its_name(name, features, bits, has_fma):
    assert vector_unit(name, features) == (bits, has_fma)


@pytest.mark.skipif(not X86, reason="names of x86-64 processors")
@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("x86-64-v2", 128),
        pytest.param("x86-64-v3", 256, marks=pytest.mark.slow),
        pytest.param("x86-64-v4", 512, marks=pytest.mark.slow),
    ],
)
def test_a_name_without_features_counts_as_numba_takes_it(name, bits, tmp_path):
    # Numba users pin the name to share a cache between machines. Nothing is run here, only asked.
    has_fma = bits > 128
    nv = 4 if bits == 512 else 2
    assert report(tmp_path, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES="") == (bits, has_fma, nv)


@pytest.mark.skipif(not X86, reason="names of x86-64 processors")
def test_a_name_alone_gets_the_features_of_the_machine_at_hand(tmp_path):
    name = "x86-64-v2"
    assert report(tmp_path, NUMBA_CPU_NAME=name)[:2] == vector_unit(name, compat._get_host_cpu_features())


@pytest.mark.skipif(not X86, reason="AVX is of x86-64 processors")
def test_narrow_vectors_without_avx(tmp_path):
    # Numba lists "-avx", and then "+fma" and others that imply it.
    assert report(tmp_path, NUMBA_ENABLE_AVX="0") == (128, False, 2)


@pytest.mark.parametrize("features", ["garbage", "avx2", "+avx2, +fma", "+avx2 +fma", "+avx2,fma", " ", "+", "+avx2,-"])
def test_features_that_would_end_the_process(features):
    with pytest.raises(ValueError, match=rf"NUMBA_CPU_FEATURES='{re.escape(features)}' is no list"):
        check_target("generic", features)


@pytest.mark.parametrize("features", ["", "+avx2", "-avx2,+sse4.1,", "+avx2,,-avx10.1", compat.cpu_features()])
def test_features_that_are_a_list(features):
    check_target(compat.cpu_name(), features)


@pytest.mark.skipif(not X86, reason="names of x86-64 processors")
@pytest.mark.parametrize("name", ["nonsense", "haswel", "cortex-a72", "two words"])
def test_a_name_that_would_end_the_process(name, tmp_path):
    with pytest.raises(ValueError, match=f"NUMBA_CPU_NAME='{name}' is no x86-64 processor"):
        check_target(name, "")


@pytest.mark.skipif(not X86, reason="names of x86-64 processors")
@pytest.mark.parametrize("name", ["", "generic", "x86-64", "nocona", "k8", "atom", "core2", "btver1", "znver4"])
def test_names_that_are_known(name):
    check_target(name, "")


def test_a_choice_is_checked_at_import(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CPU_FEATURES": "garbage"}
    done = subprocess.run([sys.executable, "-c", REPORT], env=env, cwd=tmp_path, capture_output=True, timeout=100)
    assert done.returncode == 1 and b"ValueError: NUMBA_CPU_FEATURES='garbage'" in done.stderr


def test_a_machine_without_vector_extensions_gets_the_least(tmp_path):
    bits, has_fma, nv = report(tmp_path, NUMBA_CPU_NAME="generic")
    # ARM processors of 64 bits all have fused multiply-adds and 32 registers.
    assert (bits, has_fma, nv) in [(128, False, 2), (128, True, 4)]


@njit
def axpy(a, x, y):
    for i in range(x.size):
        y[i] += a * x[i]


# Without AVX, LLVM still uses it in the loops that it vectorises itself, if a feature is listed that implies it.
@pytest.mark.skipif(not (X86 and config.ENABLE_AVX), reason="names of x86-64 registers")
def test_the_width_is_that_of_the_code_that_numba_makes():
    axpy(np.float32(2), np.ones(3, np.float32), np.ones(3, np.float32))
    (code,) = axpy.inspect_asm().values()
    # LLVM may prefer narrower vectors in loops than the registers are wide, but never wider ones.
    widest = 512 if "zmm" in code else 256 if "ymm" in code else 128
    assert widest <= VECTOR_BITS and (widest == 128) == (VECTOR_BITS == 128)


def test_registers_are_filled():
    assert (lanes(4) * 32, lanes(8) * 64) == (VECTOR_BITS, VECTOR_BITS)
    assert (4 if VECTOR_BITS == 512 or not X86 else 2) == NV
    assert isinstance(HAS_FMA, bool)
