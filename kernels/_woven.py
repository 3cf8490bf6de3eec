"""Two strips in one instruction stream: weights times values of one, while the weights of the next are looked up.

Dot products fill one kind of execution unit, permutes and comparisons run on others. One after the other, each leaves
the rest idle; woven, 64 weights take 5 cycles in place of 18 (Zen 4). LLVM cannot be kept from spilling some of the 24
accumulators, so this loop is written in assembly: x86-64 with AVX512-VNNI and VBMI. Same bits as `exp_weights` and
`_tile`, which other paths use by turns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llvmlite import ir
from numba.core import types

from . import _isa
from ._ir import I1, I64, Emit, Value
from ._jit import emitted

CHUNK = 64
"""Keys whose weights one lookup gives, and as many bytes of a row of the other strip."""

_ROWS, _PREFETCH_STEPS = 6, 8


def _has(isa: _isa.Isa) -> bool:
    return isa.name == "vnni" and isa.vbmi


@emitted
def weaves(typingctx: Any) -> Any:
    """Whether the path that is compiled for has this loop, folded during code generation."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(I1, int(_has(Emit(context, builder).isa)))

    return types.boolean(), codegen


def _assemble(builder: Any, lines: list[str], moving: Mapping[str, Value], fixed: Mapping[str, Value]) -> None:
    """Lines of assembly in which @name is the register of a value; those of `moving` may change. All of zmm is free."""
    count, values = len(moving), [*moving.values(), *fixed.values()]
    numbers = {name: i for i, name in enumerate(moving)} | {name: 2 * count + i for i, name in enumerate(fixed)}
    text = re.sub(r"@(\w+)", lambda found: f"${{{numbers[found[1]]}}}", "\n\t".join(lines).replace("$", "$$"))
    constraints = ["=r"] * count + [str(i) for i in range(count)] + ["r"] * len(fixed)
    constraints += [f"~{{zmm{i}}}" for i in range(32)] + ["~{k1}", "~{k2}", "~{memory}", "~{flags}"]
    kind = ir.FunctionType(ir.LiteralStructType([I64] * count), [I64] * len(values))
    builder.call(ir.InlineAsm(kind, text, ",".join(constraints), side_effect=True), values)


def _step(k: int, rows: list[str], load: str) -> list[str]:
    """24 dot products: step k of six rows at these addresses with four vectors at @panel; zmm0 to 23 are the sums."""
    lines = [f"prefetcht0 {256 * (k + _PREFETCH_STEPS) + 64 * j}(@panel)" for j in range(4)]
    lines += [f"vmovdqu64 {256 * k + 64 * j}(@panel), %zmm{28 + j}" for j in range(4)]
    for r, row in enumerate(rows):
        lines.append(load.format(f"{4 * k}({row})"))
        lines += [f"vpdpbusd %zmm{28 + j}, %zmm24, %zmm{4 * r + j}" for j in range(4)]
    return lines


def _spread(most: list[str], some: list[str]) -> list[str]:
    """`some` at even distances among `most`, both in their order."""
    found, done = [], 0
    for i, line in enumerate(most):
        due = len(some) * (i + 1) // len(most)
        found += [line, *some[done:due]]
        done = due
    return found


def _loop(label: int, counter: str, body: list[str]) -> list[str]:
    """`body` as often as a register says, which ends at zero."""
    head, tail = (
        [f"test {counter}, {counter}", f"jle {label + 1}f", ".p2align 6", f"{label}:"],
        [f"dec {counter}", f"jnz {label}b"],
    )
    return [*head, *body, *tail, f"{label + 1}:"]


def _store_sums() -> list[str]:
    return [f"vmovdqu64 %zmm{i}, {64 * i}(@sums)" for i in range(24)]


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
    tops     of `spread_tops`; weights are added to the sums behind
    table    address of a head's `pack_table`;  out  of uint8 [6, stride]: the weights of those rows
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        if _has(e.isa):
            a, stride, panel, steps, sums, logits, chunks, tops, table, out = args
            rest = builder.sub(steps, builder.mul(chunks, e.i64(CHUNK // 4)))
            three, five = (builder.mul(stride, e.i64(n)) for n in (3, 5))
            moving = {"a": a, "panel": panel, "logits": logits, "out": out, "chunks": chunks, "rest": rest}
            fixed = {"stride": stride, "three": three, "five": five, "tops": tops, "table": table, "sums": sums}
            _assemble(builder, _weights_program(), moving, fixed)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), codegen


def _rows(base: str, times: int = 1) -> list[str]:
    """Addresses of six rows, `times` @stride bytes from one to the next."""
    offsets = [("@stride", 1), ("@stride", 2), ("@three", 1), ("@stride", 4), ("@five", 1)]
    return [base, *(f"{base},{register},{scale * times}" for register, scale in offsets)]


def _lookup(r: int) -> list[str]:
    """64 weights of row r, as `exp_weights._Lookup.from_bytes`; zmm25 to 27."""

    def pick(first: int) -> list[str]:
        """Entries by the byte in zmm25, of which k1 has the sign, to zmm26."""
        return [
            f"vmovdqu64 {first}(@table), %zmm26",
            f"vmovdqu64 {first + 128}(@table), %zmm27",
            f"vpermt2b {first + 64}(@table), %zmm25, %zmm26",
            f"vpermt2b {first + 192}(@table), %zmm25, %zmm27",
            "vmovdqu8 %zmm27, %zmm26 {%k1}",
        ]

    logits, out = _rows("@logits", 2)[r], _rows("@out")[r]
    return [
        f"vmovdqu64 {64 * r}(@tops), %zmm25",
        f"vpsubsw ({logits}), %zmm25, %zmm26",
        f"vpsubsw 64({logits}), %zmm25, %zmm25",
        "vpackuswb %zmm25, %zmm26, %zmm25",
        "vpmovb2m %zmm25, %k1",
        *pick(256),
        "vpcmpnleub 512(@table), %zmm26, %k2",
        *pick(0),
        "vpaddb 576(@table), %zmm26, %zmm26 {%k2}",
        f"vmovdqu64 %zmm26, ({out})",
        f"vmovdqu64 {64 * (_ROWS + r)}(@tops), %zmm25",
        "vpdpbusd 576(@table), %zmm26, %zmm25",
        f"vmovdqu64 %zmm25, {64 * (_ROWS + r)}(@tops)",
    ]


def _weights_program() -> list[str]:
    rows, load = _rows("@a"), "vpbroadcastd {}, %zmm24"
    products = [line for k in range(CHUNK // 4) for line in _step(k, rows, load)]
    lookups = [line for r in range(_ROWS) for line in _lookup(r)]
    moves = [f"add ${CHUNK}, @a", f"add ${2 * CHUNK}, @logits", f"add ${CHUNK}, @out", f"add ${64 * CHUNK}, @panel"]
    return [
        *(f"vpxord %zmm{i}, %zmm{i}, %zmm{i}" for i in range(24)),
        *_loop(1, "@chunks", [*_spread(products, lookups), *moves]),
        *_loop(3, "@rest", [*_step(0, rows, load), "add $4, @a", "add $256, @panel"]),
        *_store_sums(),
    ]
