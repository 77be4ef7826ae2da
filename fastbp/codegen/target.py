"""The target: what the processor can do that Numba compiles for.

Numba compiles for the processor at hand, or for that of `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES`, by which its users
share a cache between machines. The name of a processor implies features, which only LLVM knows: so LLVM compiles a
vector operation for the target, and the registers in its assembly answer.
"""

import re

import llvmlite.binding as llvm

from fastbp.compat import cpu_features, cpu_name

# Of this process: a Python of 32 bits or under emulation runs on a machine of another kind.
_TRIPLE = llvm.get_process_triple()
_ARCHITECTURE = _TRIPLE.split("-")[0]
X86 = re.fullmatch(r"x86_64h?|i[3-6]86", _ARCHITECTURE) is not None
ARM64 = re.fullmatch(r"arm64e?|aarch64", _ARCHITECTURE) is not None
CACHE_LINE = 64  # bytes

_PROBE = """
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
define <16 x float> @probe(<16 x float> %x, <16 x float> %y, <16 x float> %z) {
  %result = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %y, <16 x float> %z)
  ret <16 x float> %result
}
"""

# One instruction on each x86-64 processor, a call of a library on one that LLVM does not know.
_PROBE_OF_NAME = """
define void @probe(ptr %place, i64 %old, i64 %new) {
  %result = cmpxchg ptr %place, i64 %old, i64 %new seq_cst seq_cst
  ret void
}
"""


def _assembly(code, name, features):
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(_TRIPLE).create_target_machine(cpu=name, features=features)
    return machine.emit_assembly(llvm.parse_assembly(code))


def check_target(name, features):
    """Check what the user may have chosen: LLVM ends the process for what it cannot read.

    Parameters
    ----------
    name, features : str
        As in `vector_unit`.

    Raises
    ------
    ValueError
        If LLVM cannot read the features, or does not know an x86-64 processor of this name.
    """
    if not all(re.fullmatch(r"([+-][^\s,]+)?", feature) for feature in features.split(",")):
        raise ValueError(
            f"NUMBA_CPU_FEATURES={features!r} is no list of features such as '+avx2,-fma': each begins with + or -, "
            "and commas without spaces separate them."
        )
    if _ARCHITECTURE == "x86_64" and "cmpxchg" not in _assembly(_PROBE_OF_NAME, name, "+64bit"):
        raise ValueError(
            f"NUMBA_CPU_NAME={name!r} is no x86-64 processor that LLVM knows, such as 'haswell', 'znver3' or "
            "'x86-64-v3'. Without this variable Numba compiles for the processor at hand."
        )


def vector_unit(name, features):
    """Find out the width of the vector registers, and whether multiply and add are one instruction.

    Parameters
    ----------
    name : str
        A processor as LLVM knows it, such as "znver3" or "x86-64-v4".
    features : str
        What it has or lacks beside what its name implies, such as "+avx2,-fma".

    Returns
    -------
    bits : int
        128, 256 or 512.
    has_fma : bool
        False only for x86-64 processors of before 2013: their multiply-add rounds twice.
    """
    if not X86:
        return 128, True  # NEON, and what else has no wider one that is known here
    # For LLVM "-avx,+fma" has AVX, as FMA implies it, and such a list is what Numba makes of NUMBA_ENABLE_AVX=0. Who
    # switches a feature off wants none that needs it: so it is switched off once more at the end. What is left, Numba's
    # code may use. In loops that LLVM vectorises by itself it may use more.
    last = {feature[1:]: feature[0] for feature in features.split(",") if feature}
    off = [f"-{feature}" for feature, sign in last.items() if sign == "-"]
    assembly = _assembly(_PROBE, name, ",".join([features, *off]))
    return 512 if "zmm" in assembly else 256 if "ymm" in assembly else 128, "vfmadd" in assembly


check_target(cpu_name(), cpu_features())
VECTOR_BITS, HAS_FMA = vector_unit(cpu_name(), cpu_features())


def lanes(itemsize):
    """Count the numbers of `itemsize` bytes in one vector register."""
    return VECTOR_BITS // (8 * itemsize)
