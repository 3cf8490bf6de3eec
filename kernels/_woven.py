"""Two strips in one instruction stream: weights times values of one, while the weights of the next are looked up.

Dot products fill one kind of execution unit, permutes and comparisons others. One after the other, each leaves the rest
idle; woven, a lookup of 64 weights takes 5 cycles in place of 18 (Zen 4). LLVM cannot be kept from spilling one of the
24 accumulators here, so this loop is written in assembly: AVX512-VNNI with VBMI, x86-64. Same bits as `row_weights` and
`tile`, which the other paths use one after the other.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from . import _isa
from ._ir import I64, Emit
from ._jit import emitted

CHUNK = 64
"""Keys whose weights one lookup gives, and as many bytes of a row of the other strip."""

_ROWS, _STEPS, _PREFETCH_STEPS = 6, CHUNK // 4, 8


def _has(isa: _isa.Isa) -> bool:
    return isa.name == "vnni" and isa.vbmi


@emitted
def weaves(typingctx: Any) -> Any:
    """Whether the path that is compiled for has this loop, folded during code generation."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(_has(Emit(context, builder).isa)))

    return types.boolean(), codegen


@emitted
def weave(
    typingctx: Any,
    weights: Any,
    stride: Any,
    panel: Any,
    steps: Any,
    sums: Any,
    logits: Any,
    chunks: Any,
    tops: Any,
    table: Any,
    out: Any,
) -> Any:
    """The product of six rows of weights with a panel of values, and the first `chunks` lookups of six other rows.

    weights  address of uint8 [6, stride], 4 steps a byte of which are read;  panel  as of `tile`, INT32 sums from 0 on
    sums     address of int32 [6, 64], in lane order: what becomes of the product
    logits   address of int16 [6, stride], in block order;  chunks  of CHUNK keys, steps >= 16 chunks
    tops     address of [6, 64] bytes, the row maxima in all lanes, then of int32 [6, 16], to which weights are added
    table    address of a head's `pack_table`
    out      address of uint8 [6, stride]: the weights of those rows
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        if _has(e.isa):
            weights, stride, panel, steps, sums, logits, chunks, tops, table, out = args
            rest = builder.sub(steps, builder.mul(chunks, e.i64(_STEPS)))
            three, five = (builder.mul(stride, e.i64(n)) for n in (3, 5))
            moving = [weights, panel, logits, out, chunks, rest]
            fixed = [stride, three, five, tops, table, sums]
            kind = ir.FunctionType(ir.LiteralStructType([I64] * len(moving)), [I64] * (len(moving) + len(fixed)))
            builder.call(ir.InlineAsm(kind, _program(), _CONSTRAINTS, side_effect=True), [*moving, *fixed])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), codegen


_CONSTRAINTS = (
    ",".join(
        ["=r"] * 6 + [str(i) for i in range(6)] + ["r"] * 6 + [f"~{{zmm{i}}}" for i in range(32)] + ["~{k1}", "~{k2}"]
    )
    + ",~{memory},~{dirflag},~{fpsr},~{flags}"
)
_A, _PANEL, _LOGITS, _OUT, _CHUNKS, _REST = (f"${i}" for i in range(6))
_STRIDE, _THREE, _FIVE, _TOPS, _TABLE, _SUMS = (f"${i}" for i in range(12, 18))


def _row(base: str, r: int, twice: int = 1) -> str:
    """Address of row r of bytes, or of words."""
    if r == 0:
        return f"({base})"
    register, scale = {1: (_STRIDE, 1), 2: (_STRIDE, 2), 3: (_THREE, 1), 4: (_STRIDE, 4), 5: (_FIVE, 1)}[r]
    return f"({base},{register},{scale * twice})"


def _step(k: int) -> list[str]:
    """Four keys of six rows: 24 dot products."""
    lines = [f"prefetcht0 {256 * (k + _PREFETCH_STEPS) + 64 * j}({_PANEL})" for j in range(4)]
    lines += [f"vmovdqu64 {256 * k + 64 * j}({_PANEL}), %zmm{28 + j}" for j in range(4)]
    for r in range(_ROWS):
        lines.append(f"vpbroadcastd {4 * k}{_row(_A, r)}, %zmm24")
        lines += [f"vpdpbusd %zmm{28 + j}, %zmm24, %zmm{4 * r + j}" for j in range(4)]
    return lines


def _lookup(r: int) -> list[str]:
    """64 weights of row r, as `exp_weights._Lookup.from_bytes`; zmm25 to 27."""

    def pick(first: int) -> list[str]:
        """Entries by the byte in zmm25, of which k1 has the sign, to zmm26."""
        return [
            f"vmovdqu64 {first}({_TABLE}), %zmm26",
            f"vmovdqu64 {first + 128}({_TABLE}), %zmm27",
            f"vpermt2b {first + 64}({_TABLE}), %zmm25, %zmm26",
            f"vpermt2b {first + 192}({_TABLE}), %zmm25, %zmm27",
            "vmovdqu8 %zmm27, %zmm26 {%k1}",
        ]

    return [
        f"vmovdqu64 {64 * r}({_TOPS}), %zmm25",
        f"vpsubsw {_row(_LOGITS, r, 2)}, %zmm25, %zmm26",
        f"vpsubsw 64{_row(_LOGITS, r, 2)}, %zmm25, %zmm25",
        "vpackuswb %zmm25, %zmm26, %zmm25",
        "vpmovb2m %zmm25, %k1",
        *pick(256),
        f"vpcmpnleub 512({_TABLE}), %zmm26, %k2",
        *pick(0),
        f"vpaddb 576({_TABLE}), %zmm26, %zmm26 {{%k2}}",
        f"vmovdqu64 %zmm26, {_row(_OUT, r)}",
        f"vmovdqu64 {64 * (_ROWS + r)}({_TOPS}), %zmm25",
        f"vpdpbusd 576({_TABLE}), %zmm26, %zmm25",
        f"vmovdqu64 %zmm25, {64 * (_ROWS + r)}({_TOPS})",
    ]


def _spread(most: list[str], some: list[str]) -> list[str]:
    """`some` at even distances among `most`, both in their order."""
    marks = [(len(most) * i // len(some), line) for i, line in enumerate(some)]
    found: list[str] = []
    for i, line in enumerate(most):
        found += [other for at, other in marks if at == i] + [line]
    return found


def _program() -> str:
    products = [line for k in range(_STEPS) for line in _step(k)]
    lookups = [line for r in range(_ROWS) for line in _lookup(r)]
    lines = [f"vpxord %zmm{i}, %zmm{i}, %zmm{i}" for i in range(24)]
    lines += [f"test {_CHUNKS}, {_CHUNKS}", "jle 2f", "1:", *_spread(products, lookups)]
    lines += [f"add $${CHUNK * scale}, {register}" for register, scale in ((_A, 1), (_LOGITS, 2), (_OUT, 1))]
    lines += [f"add $${256 * _STEPS}, {_PANEL}", f"dec {_CHUNKS}", "jnz 1b", "2:"]
    lines += [f"test {_REST}, {_REST}", "jle 4f", "3:", *_step(0)]
    lines += [f"add $$4, {_A}", f"add $$256, {_PANEL}", f"dec {_REST}", "jnz 3b", "4:"]
    lines += [f"vmovdqu64 %zmm{i}, {64 * i}({_SUMS})" for i in range(24)]
    return "\n\t".join(lines)
