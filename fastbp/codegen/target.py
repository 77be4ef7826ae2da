"""The target: what the processor can do that Numba compiles for.

Numba compiles for the processor at hand, or for that of `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES`, by which its users
share a cache between machines. The name of a processor implies features, which only LLVM knows: so LLVM compiles a
vector operation for the target, and the registers in its assembly answer.
"""

import platform

import llvmlite.binding as llvm

from fastbp.compat import cpu_features, cpu_name

X86 = platform.machine().lower() in ("x86_64", "amd64", "x86", "i686")
ARM64 = platform.machine().lower() in ("arm64", "aarch64")
CACHE_LINE = 64  # bytes

_PROBE = """
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
define <16 x float> @probe(<16 x float> %x, <16 x float> %y, <16 x float> %z) {
  %result = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %y, <16 x float> %z)
  ret <16 x float> %result
}
"""


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
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features)
    assembly = machine.emit_assembly(llvm.parse_assembly(_PROBE))
    return 512 if "zmm" in assembly else 256 if "ymm" in assembly else 128, "vfmadd" in assembly


VECTOR_BITS, HAS_FMA = vector_unit(cpu_name(), cpu_features())


def lanes(itemsize):
    """Count the numbers of `itemsize` bytes in one vector register."""
    return VECTOR_BITS // (8 * itemsize)
