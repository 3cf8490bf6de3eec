"""Which instructions the compile target has, and the data layout that follows from them.

The choice is made from Numba's own target (triple, CPU name, features), never from the machine this runs on: an
instruction the target lacks aborts the process inside LLVM. All paths accumulate exactly in INT32, so all give the
same bits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from numba.core.registry import cpu_target

Target = tuple[str, str, str]
"""Triple, CPU name, feature string ("+avx2,-avx512f"), as `magic_tuple` of Numba's code generator gives them."""


@dataclass(frozen=True)
class Isa:
    """One instruction path.

    name     vnni, avx512bw, avx2, sse2, dotprod or generic
    lanes    INT32 lanes of a vector register
    group    operands that one INT32 lane of the INT8 dot product sums: 4 bytes, or 2 widened to INT16
    rows     rows of the register tile
    vectors  vectors of columns of the register tile
    vbmi     whether the byte permute of AVX512-VBMI exists
    """

    name: str
    lanes: int
    group: int
    rows: int
    vectors: int
    vbmi: bool = False

    @property
    def columns(self) -> int:
        """Columns of the register tile, the width of a packed panel."""
        return self.lanes * self.vectors

    @property
    def zmm(self) -> bool:
        """Whether the 512-bit instructions of AVX512BW exist."""
        return self.name in ("vnni", "avx512bw")


_VNNI = Isa("vnni", 16, 4, 6, 4)
_VNNI_VBMI = Isa("vnni", 16, 4, 6, 4, vbmi=True)
_AVX512BW = Isa("avx512bw", 16, 2, 6, 4)
_AVX2 = Isa("avx2", 8, 2, 6, 2)
_SSE2 = Isa("sse2", 4, 2, 6, 2)
_DOTPROD = Isa("dotprod", 4, 4, 6, 4)
_GENERIC = Isa("generic", 4, 2, 4, 2)

# CPU names whose features a target may imply without spelling them out (NUMBA_CPU_NAME with empty
# NUMBA_CPU_FEATURES). A name that is not here falls back to what its architecture guarantees.
_NAMED = {
    **dict.fromkeys(("x86-64-v3", "haswell", "broadwell", "skylake", "znver1", "znver2", "znver3"), _AVX2),
    **dict.fromkeys(("x86-64-v4", "skylake-avx512", "skx"), _AVX512BW),
    "cascadelake": _VNNI,
    "cooperlake": _VNNI,
    **dict.fromkeys(
        ("icelake-client", "icelake-server", "tigerlake", "rocketlake", "sapphirerapids", "znver4", "znver5"),
        _VNNI_VBMI,
    ),
}


_ARM_WITH_DOTPROD = {
    *(
        "cortex-a55",
        "cortex-a65",
        "cortex-a65ae",
        "cortex-a75",
        "cortex-a76",
        "cortex-a76ae",
        "cortex-a77",
        "cortex-a78",
    ),
    *(
        "cortex-a78ae",
        "cortex-a78c",
        "cortex-a510",
        "cortex-a520",
        "cortex-a710",
        "cortex-a715",
        "cortex-a720",
        "tsv110",
    ),
}


def _has_dotprod(cpu: str) -> bool:
    """Whether a CPU name of LLVM implies the dot products of Armv8.4, which llvmlite does not spell out on hosts."""
    return cpu.startswith(("neoverse-", "apple-m", "ampere1", "oryon", "cortex-x")) or cpu in _ARM_WITH_DOTPROD


def choose(target: Target) -> Isa:
    """The fastest path that the target surely has."""
    triple, cpu, features = target
    have = set(features.split(","))
    if triple.startswith(("x86_64", "amd64")):
        if not features and cpu in _NAMED:
            return _NAMED[cpu]
        if {"+avx512f", "+avx512bw", "+avx512vl", "+avx512dq"} <= have:
            if "+avx512vnni" in have:
                return _VNNI_VBMI if "+avx512vbmi" in have else _VNNI
            return _AVX512BW
        return _AVX2 if "+avx2" in have else _SSE2
    if triple.startswith(("aarch64", "arm64")) and (
        "+dotprod" in have or (_has_dotprod(cpu) and "-dotprod" not in have)
    ):
        return _DOTPROD
    return _GENERIC


def current_target() -> Target:
    """Numba's target in this process."""
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    return str(triple), str(cpu), str(features)


@functools.cache
def select() -> Isa:
    """The path of this process: what code generation emits and what operands are packed for."""
    return choose(current_target())
