"""Which instructions the compile target has, and the data layout that follows from them.

The choice is made from Numba's own target (triple, CPU name, features), never from the machine this runs on: an
instruction the target lacks aborts the process inside LLVM. All paths accumulate exactly in INT32, so all give the
same bits.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from numba.core.registry import cpu_target

Target = tuple[str, str, str]
"""Triple, CPU name, feature string ("+avx2,-avx512f"), as `magic_tuple` of Numba's code generator gives them."""

ARM = ("aarch64", "arm64")
"""How triples of 64-bit ARM begin."""


def step_bytes(group: int) -> int:
    """Bytes of a group of operands, of a row or of one column of a panel: a group of 2 holds INT16."""
    return 4 if group == 2 else group


@dataclass(frozen=True)
class Isa:
    """One instruction path.

    name     vnni, avx512bw, avx2, sse2, i8mm, dotprod or generic
    lanes    INT32 lanes of a vector register
    group    operands of a row that one instruction of the INT8 product sums: 4 or 8 bytes, or 2 widened to INT16
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
    def step(self) -> int:
        """Bytes of a group."""
        return step_bytes(self.group)

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
_I8MM = Isa("i8mm", 4, 8, 6, 4)
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


# The same of AArch64, where llvmlite lists neither feature for the machine that it runs on.
_I8MM_NAMES = re.compile(
    r"neoverse-(512tvb|v[1-9].*|n[2-9].*)|cortex-(a320|a510|a520|a710|a715|a720|a725|x[2-9].*)|apple-m[2-9].*"
    r"|ampere1.*|oryon-.*|grace|cobalt-100|gb10|olympus"
)
_DOTPROD_NAMES = re.compile(
    r"neoverse-(n1|e1)|cortex-(a55|a65|a65ae|a75|a76|a76ae|a77|a78|a78ae|a78c|x1|x1c)|apple-m1|tsv110"
)


def _has(feature: str, names: re.Pattern[str], cpu: str, have: set[str]) -> bool:
    """Whether a target has a feature: listed, or implied by the name and not taken away."""
    return f"+{feature}" in have or (names.fullmatch(cpu) is not None and f"-{feature}" not in have)


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
    if triple.startswith(ARM):
        if _has("i8mm", _I8MM_NAMES, cpu, have):
            return _I8MM
        if _has("dotprod", _DOTPROD_NAMES, cpu, have) or _has("dotprod", _I8MM_NAMES, cpu, have):
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
