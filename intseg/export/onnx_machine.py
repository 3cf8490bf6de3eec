"""The machine that writes an op down: standard ONNX integer operators, INT64 between widening and saturation.

Shapes are known, so constants that depend on them are constants of the ONNX graph too. No step needs a float, and none
depends on how a runtime rounds: floors of negative numbers are written with `Mod`, whose result is never negative here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from intseg.arith import Machine
from intseg.arith.saturation import held, limits

DTYPES = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in ("int8", "uint8", "int16", "uint16")}
DTYPES |= {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in ("int32", "int64", "bool")}

_POWERS = np.left_shift(np.int64(1), np.arange(63, dtype=np.int64))


class Tensor:
    """A value of the ONNX graph. Arithmetic is INT64; `>>` and `//` are of numbers that are not negative."""

    __array_ufunc__ = None  # so that an array on the left leaves the operation to this class

    def __init__(self, machine: OnnxMachine, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        self.machine, self.name, self.dtype, self.shape = machine, name, dtype, shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __add__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("Add", self, other)

    def __radd__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("Add", other, self)

    def __sub__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("Sub", self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("Sub", other, self)

    def __mul__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("Mul", self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("Mul", other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("Div", self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("Div", other, self)

    def __rshift__(self, n: int) -> Tensor:
        return self.machine.arithmetic("Div", self, 2**n) if n else self

    def __lshift__(self, n: int) -> Tensor:
        return self.machine.arithmetic("Mul", self, 2**n) if n else self

    def __neg__(self) -> Tensor:
        return self.machine.node("Neg", [self], self.dtype, self.shape)

    def __abs__(self) -> Tensor:
        return self.machine.node("Abs", [self], self.dtype, self.shape)


@dataclass
class Body:
    """The nodes of one function, names that are taken, names of registers by those before, constants by their bytes."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    registers: dict[str, str] = field(default_factory=dict)
    constants: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)


class OnnxMachine(Machine):
    """Collects the nodes of one call of an op; registers keep their names."""

    def __init__(self) -> None:
        self.body = Body()
        self.named = True

    # ------------------------------------------------------------------------------------------------------- writing

    def input(self, name: str, dtype: str, shape: Sequence[int]) -> Tensor:
        """An operand of the function."""
        self.body.names.add(name)
        return Tensor(self, name, dtype, tuple(shape))

    def node(self, kind: str, operands: Sequence[Any], dtype: str, shape: Sequence[int], **attributes: Any) -> Tensor:
        """One operator and its result. Operands that are no tensors are constants: arrays as they are, else INT64."""
        name = self._free("_t")
        inputs = [x.name if isinstance(x, Tensor) else self._constant(x) for x in operands]
        self.body.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return Tensor(self, name, dtype, tuple(shape))

    def finish(self, result: Tensor) -> list[onnx.NodeProto]:
        """The nodes, by the names of registers, of a function that gives `result`."""
        self.node("Identity", [result], result.dtype, result.shape)
        self.body.nodes[-1].output[0] = "result"
        for node in self.body.nodes:
            node.input[:] = [self.body.registers.get(name, name) for name in node.input]
            node.output[:] = [self.body.registers.get(name, name) for name in node.output]
        return self.body.nodes

    def _free(self, name: str) -> str:
        taken, found, count = self.body.names, name, 1
        while found in taken:
            found, count = f"{name}_{count}", count + 1
        taken.add(found)
        return found

    def _constant(self, value: Any) -> str:
        array = value if isinstance(value, np.ndarray) else np.asarray(value, np.int64)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self.body.constants:
            name = self._free("_c")
            tensor = numpy_helper.from_array(array, name)
            self.body.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            self.body.constants[key] = name
        return self.body.constants[key]

    def arithmetic(self, kind: str, a: Any, b: Any, dtype: str = "int64") -> Tensor:
        """An elementwise operator on INT64."""
        a, b = self._wide(a), self._wide(b)
        return self.node(kind, [a, b], dtype, np.broadcast_shapes(np.shape(a), np.shape(b)))

    def _wide(self, x: Any) -> Any:
        return self.widen(x) if isinstance(x, Tensor) else np.asarray(x, np.int64)

    def _cast(self, x: Tensor, dtype: str) -> Tensor:
        return x if x.dtype == dtype else self.node("Cast", [x], dtype, x.shape, to=DTYPES[dtype])

    def _over_rows(self, kind: str, x: Tensor) -> Tensor:
        axis = np.array([-1], np.int64)
        return self.node(kind, [self._wide(x), axis], "int64", (*x.shape[:-1], 1), keepdims=1)

    def _power(self, n: Any) -> Any:
        """2^n for 0 <= n <= 62; a table, since BitShift is for unsigned integers."""
        if not isinstance(n, Tensor):
            return np.left_shift(np.int64(1), np.asarray(n, np.int64))
        return self.node("Gather", [_POWERS, self._wide(n)], "int64", n.shape, axis=0)

    def _floor_div(self, x: Any, divisor: Any) -> Tensor:
        """floor(x / divisor) for a positive divisor, whose sign the remainder has: without it the division is exact."""
        return self.arithmetic("Div", self.arithmetic("Sub", x, self.arithmetic("Mod", x, divisor)), divisor)

    # ------------------------------------------------------------------------------------------- what is known of it

    def keep(self, name: str, x: Any, bits: int) -> Any:
        if self.named and isinstance(x, Tensor) and x.name.startswith("_t"):
            self.body.registers[x.name] = self._free(name)
            x.name = self.body.registers[x.name]
        return x

    @property
    def quiet(self) -> Self:
        other = copy.copy(self)
        other.named = False
        return other

    # ------------------------------------------------------------------------------------------------- rows and sums

    def widen(self, x: Any) -> Any:
        return self._cast(x, "int64")

    def dot(self, x: Any, weight: Any) -> Any:
        return self.matmul(x, self.transpose(weight, 1, 0))

    def matmul(self, a: Any, b: Any) -> Any:
        """In INT32, by the operator for 8 bits where both operands have them."""
        shape = (*a.shape[:-1], b.shape[-1])
        if {a.dtype, b.dtype} <= {"int8", "uint8"}:
            return self.widen(self.node("MatMulInteger", [a, b], "int32", shape))
        return self.widen(self.node("MatMul", [self._cast(a, "int32"), self._cast(b, "int32")], "int32", shape))

    def accumulate(self, x: Any) -> Any:
        return self.widen(x)

    def row_sum(self, x: Any, has: int | None = None, why: str = "") -> Any:
        return self._over_rows("ReduceSum", x)

    def row_max(self, x: Any) -> Any:
        return self._over_rows("ReduceMax", x)

    def row_mean(self, total: Any, count: int) -> Any:
        return self._floor_div(2 * total + count, 2 * count)

    def squares(self, x: Any, about_mean_of: Any = None) -> Any:
        return self._over_rows("ReduceSum", x * x)

    def isqrt(self, v: Any) -> Any:
        root: Any = 0
        for bit in range(30, -1, -1):
            trial = root + 2**bit
            root = self.where(self.arithmetic("LessOrEqual", trial * trial, v, "bool"), trial, root)
        return root

    # ------------------------------------------------------------------------------------------------------- numbers

    def rsr(self, x: Any, c: Any, via: str = "rounding", case: str = "") -> Any:
        power = self._power(c)
        return self._floor_div(x + power // 2, power)

    def floor_shift(self, x: Any, n: int) -> Any:
        return self._floor_div(x, 2**n) if n else x

    def shift_left(self, x: Any, n: Any) -> Any:
        left = x * self._power(self.at_least(n, 0))
        right = self._floor_div(x, self._power(self.clip(-n, 0, 62)))
        return self.where(self.is_negative(n), right, left)

    def low_bits(self, x: Any, n: int) -> Any:
        return self.arithmetic("Mod", x, 2**n)

    def leading(self, d: Any) -> Any:
        length, rest = 0, d
        for step in (32, 16, 8, 4, 2, 1):
            above = self.arithmetic("GreaterOrEqual", rest, 2**step, "bool")
            length = length + self.where(above, step, 0)
            rest = self.where(above, rest >> step, rest)
        length = length + rest
        return length, self.shift_left(d, 31 - length)

    def product(self, x: Any, mult: Any) -> Any:
        return x * mult

    def at_least(self, x: Any, low: int) -> Any:
        return self.arithmetic("Max", x, low)

    def clip(self, x: Any, low: int, high: int) -> Any:
        return self.node("Clip", [x, low, high], x.dtype, x.shape)

    def is_zero(self, x: Any) -> Any:
        return self.arithmetic("Equal", x, 0, "bool")

    def is_negative(self, x: Any) -> Any:
        return self.arithmetic("Less", x, 0, "bool")

    def where(self, condition: Any, yes: Any, no: Any) -> Any:
        yes, no = self._wide(yes), self._wide(no)
        shape = np.broadcast_shapes(condition.shape, np.shape(yes), np.shape(no))
        return self.node("Where", [condition, yes, no], "int64", shape)

    def rising(self, function: Callable[[Any], Any], x: Any) -> Any:
        return function(x)

    def saturate(self, x: Any, kind: str) -> Any:
        return self._cast(self.clip(x, *limits(kind)), held(kind))

    # -------------------------------------------------------------------------------------------------- other places

    def reshape(self, x: Any, *shape: int) -> Any:
        return self.node("Reshape", [x, np.array(shape, np.int64)], x.dtype, shape)

    def transpose(self, x: Any, *axes: int) -> Any:
        return self.node("Transpose", [x], x.dtype, [x.shape[axis] for axis in axes], perm=axes)

    def rows(self, x: Any, start: int, stop: int) -> Any:
        ends = [np.array([end], np.int64) for end in (start, stop, 0)]
        return self.node("Slice", [x, *ends], x.dtype, (stop - start, *x.shape[1:]))

    def pick(self, x: Any, index: int, axis: int) -> Any:
        return self.node("Gather", [x, index], x.dtype, (*x.shape[:axis], *x.shape[axis + 1 :]), axis=axis)

    def gather(self, x: Any, indices: Any, axis: int) -> Any:
        found: NDArray[np.int64] = np.asarray(indices, np.int64)
        shape = (*x.shape[:axis], len(found), *x.shape[axis + 1 :])
        return self.node("Gather", [x, found], x.dtype, shape, axis=axis)

    def repeat(self, x: Any, count: int, axis: int) -> Any:
        return self.gather(x, np.repeat(np.arange(x.shape[axis]), count), axis)

    def concat(self, *parts: Any) -> Any:
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return self.node("Concat", parts, parts[0].dtype, shape, axis=0)

    def columns(self, x: Any) -> Any:
        return self.reshape(x, *x.shape[:-1], 1, x.shape[-1])

    def lookup(self, table: Any, x: Any, first: int) -> Any:
        index = self.widen(x) - first if first else self.widen(x)
        if table.ndim == 2:
            rows, size = table.shape
            index, table = index + size * np.arange(rows), self.reshape(table, rows * size)
        return self.node("Gather", [table, index], table.dtype, index.shape, axis=0)

    def entry(self, table: Any, x: Any) -> Any:
        *batch, size = table.shape
        starts = size * np.arange(math.prod(batch)).reshape(*batch, 1, 1)
        return self.lookup(self.reshape(table, math.prod(table.shape)), x + starts, 0)

    def argmax(self, x: Any) -> Any:
        index = self.node("ArgMax", [self.widen(x)], "int64", x.shape[:-1], axis=-1, keepdims=0)
        return self._cast(index, "uint8" if x.shape[-1] <= 256 else "uint16")

    def blend(self, a: Any, b: Any, weight: Any, total: int, tap: str) -> Any:
        return a * (total - weight) + b * weight
