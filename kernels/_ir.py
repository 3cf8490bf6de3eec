"""A thin layer over llvmlite that makes emitted code readable: integer vectors, loads and stores by address, loops.

Only integer types exist here: no kernel can contain a floating-point instruction. Addresses are plain INT64 values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from . import _isa

Value = Any
"""An LLVM value. llvmlite has no types of its own to offer."""

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_UNDEFINED = ir.Undefined


class Emit:
    """Emits into the current block of `builder`, for the target of `context`."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.builder = builder
        triple, cpu, features = (str(part) for part in context.codegen().magic_tuple())
        self.isa = _isa.choose((triple, cpu, features))
        self._arm = triple.startswith(_isa.ARM)

    def const(self, kind: Value, value: int | Sequence[int]) -> Value:
        """A constant; one integer for a vector type fills every lane."""
        if isinstance(kind, ir.VectorType) and isinstance(value, int):
            value = [value] * kind.count
        return ir.Constant(kind, value)

    def i64(self, value: int) -> Value:
        """A scalar INT64 constant."""
        return ir.Constant(I64, value)

    def load(self, address: Value, kind: Value) -> Value:
        """An unaligned load."""
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = 1
        return value

    def store(self, address: Value, value: Value) -> None:
        """An unaligned store."""
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer())).align = 1

    def offset(self, address: Value, amount: int) -> Value:
        """address + amount."""
        return self.builder.add(address, self.i64(amount)) if amount else address

    def prefetch(self, address: Value) -> None:
        """Hint that this address is read soon; never faults."""
        pointer = self.builder.inttoptr(address, I8.as_pointer())
        hints = [self.const(I32, n) for n in (0, 3, 1)]  # read, keep in every level, data
        self.call("llvm.prefetch.p0", ir.VoidType(), [pointer, *hints])

    def splat(self, scalar: Value, lanes: int) -> Value:
        """A vector of equal lanes."""
        kind = ir.VectorType(scalar.type, lanes)
        first = self.builder.insert_element(ir.Constant(kind, _UNDEFINED), scalar, self.const(I32, 0))
        return self.shuffle(first, first, [0] * lanes)

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """Lanes of a, then of b, by index."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))

    def interleave(self, a: Value, b: Value, upper: int) -> Value:
        """Lower or upper halves of all 128-bit blocks of a and b, alternating: punpckl / punpckh."""
        block = 128 // a.type.element.width
        picks = [start + upper * block // 2 + i for start in range(0, a.type.count, block) for i in range(block // 2)]
        return self.shuffle(a, b, [n for p in picks for n in (p, p + a.type.count)])

    def halves(self, a: Value) -> tuple[Value, Value]:
        """Lower and upper half of a vector."""
        half = a.type.count // 2
        return self.shuffle(a, a, range(half)), self.shuffle(a, a, range(half, 2 * half))

    def concat(self, parts: Sequence[Value]) -> Value:
        """Vectors of one type side by side; their number is a power of two."""
        while len(parts) > 1:
            lanes = range(2 * parts[0].type.count)
            parts = [self.shuffle(a, b, lanes) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    def call(self, name: str, result: Value, args: Sequence[Value]) -> Value:
        """A call of an LLVM intrinsic."""
        kind = ir.FunctionType(result, [a.type for a in args])
        declare: Any = cgutils.get_or_insert_function
        return self.builder.call(declare(self.builder.module, kind, name), list(args))

    def same(self, name: str, *args: Value) -> Value:
        """An overloaded elementwise intrinsic such as smin: result and operands of one type."""
        kind = args[0].type
        suffix = f"v{kind.count}i{kind.element.width}" if isinstance(kind, ir.VectorType) else f"i{kind.width}"
        return self.call(f"llvm.{name}.{suffix}", kind, args)

    def clamp(self, a: Value, low: int, high: int) -> Value:
        """min(max(a, low), high), signed."""
        return self.same("smin", self.same("smax", a, self.const(a.type, low)), self.const(a.type, high))

    def within(self, a: Value, high: Value) -> Value:
        """min(max(a, -high - 1), high), signed, for a scalar INT64 that fits the lanes."""
        top = self.splat(self.builder.trunc(high, a.type.element), a.type.count)
        return self.same("smin", self.same("smax", a, self.builder.not_(top)), top)

    def sum_lanes(self, a: Value) -> Value:
        """The sum of all lanes, in the lane type."""
        return self.call(f"llvm.vector.reduce.add.v{a.type.count}i{a.type.element.width}", a.type.element, [a])

    def max_lanes(self, a: Value) -> Value:
        """The largest lane, signed."""
        return self.call(f"llvm.vector.reduce.smax.v{a.type.count}i{a.type.element.width}", a.type.element, [a])

    def loop(
        self,
        start: Value,
        stop: Value,
        step: int,
        carried: Sequence[Value],
        body: Callable[[Value, list[Value]], Sequence[Value]],
    ) -> list[Value]:
        """for i in range(start, stop, step): carried = body(i, carried). Returns the final carried values."""
        builder = self.builder
        before = builder.block
        inside, after = builder.append_basic_block("loop"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed("<", start, stop), inside, after)
        builder.position_at_end(inside)
        index = builder.phi(I64)
        index.add_incoming(start, before)
        phis = [builder.phi(value.type) for value in carried]
        for phi, value in zip(phis, carried, strict=True):
            phi.add_incoming(value, before)
        results = list(body(index, list(phis)))
        following = builder.add(index, self.i64(step))
        end = builder.block
        index.add_incoming(following, end)
        for phi, value in zip(phis, results, strict=True):
            phi.add_incoming(value, end)
        builder.cbranch(builder.icmp_signed("<", following, stop), inside, after)
        builder.position_at_end(after)
        return [self.merge((value, before), (result, end)) for value, result in zip(carried, results, strict=True)]

    def signed_low(self, v: Value) -> Value:
        """The lower half of every element, with its sign, as the whole element."""
        half = self.const(v.type, v.type.element.width // 2)
        return self.builder.ashr(self.builder.shl(v, half), half)

    def merge(self, *incoming: tuple[Value, Value]) -> Value:
        """A phi of (value, block) pairs."""
        phi = self.builder.phi(incoming[0][0].type)
        for value, block in incoming:
            phi.add_incoming(value, block)
        return phi

    # ---- the dot products: the only place where instruction paths differ in arithmetic ----------------------------

    def dot8(self, acc: Value, a: Value, b: Value) -> Value:
        """acc + sum over the group of a b in every INT32 lane; a is uint8 on the vnni path, otherwise signed. Not i8mm.

        Exact: vpdpbusd does not saturate, pmaddwd cannot (only (-2^15)^2 twice reaches 2^31, bytes are far below).
        """
        lanes = acc.type.count
        if self.isa.name == "vnni":
            return self.call(f"llvm.x86.avx512.vpdpbusd.{lanes * 32}", acc.type, [acc, a, b])
        if self.isa.name == "dotprod":
            return self._bytes_by_arm("sdot", acc, a, b)
        return self.dot16(acc, a, b)

    def pairs8(self, acc: Value, a: Value, b: Value) -> Value:
        """acc [2, 2] + a [2, 8] times b [2, 8] transposed, INT32 and signed bytes in registers of 128 bits (i8mm)."""
        return self._bytes_by_arm("smmla", acc, a, b)

    def _bytes_by_arm(self, name: str, acc: Value, a: Value, b: Value) -> Value:
        """`sdot` or `smmla`, and on other processors, where tests force these paths, the same in plain IR."""
        bytes_ = ir.VectorType(I8, 16)
        a, b = self.builder.bitcast(a, bytes_), self.builder.bitcast(b, bytes_)
        if self._arm:
            return self.call(f"llvm.aarch64.neon.{name}.v4i32.v16i8", acc.type, [acc, a, b])
        count, left, right = {"sdot": (4, (0, 4, 8, 12), (0, 4, 8, 12)), "smmla": (8, (0, 0, 8, 8), (0, 8, 0, 8))}[name]
        for k in range(count):
            one, other = (
                self.builder.sext(self.shuffle(v, v, [n + k for n in starts]), acc.type)
                for v, starts in ((a, left), (b, right))
            )
            acc = self.builder.add(acc, self.builder.mul(one, other))
        return acc

    def dot16(self, acc: Value, a: Value, b: Value) -> Value:
        """acc + a0 b0 + a1 b1 for the two INT16 in every INT32 lane; wraps like INT32."""
        name, lanes = self.isa.name, acc.type.count
        if name == "vnni":
            return self.call(f"llvm.x86.avx512.vpdpwssd.{lanes * 32}", acc.type, [acc, a, b])
        words = ir.VectorType(I16, 2 * lanes)
        a, b = self.builder.bitcast(a, words), self.builder.bitcast(b, words)
        pmaddwd = {"avx512bw": "avx512.pmaddw.d.512", "avx2": "avx2.pmadd.wd", "sse2": "sse2.pmadd.wd"}
        if name in pmaddwd:
            return self.builder.add(acc, self.call(f"llvm.x86.{pmaddwd[name]}", acc.type, [a, b]))
        even, odd = ([self._words(v, start, acc.type) for v in (a, b)] for start in (0, 1))
        return self.builder.add(acc, self.builder.add(self.builder.mul(*even), self.builder.mul(*odd)))

    def _words(self, a: Value, start: int, kind: Value) -> Value:
        return self.builder.sext(self.shuffle(a, a, range(start, a.type.count, 2)), kind)
