"""Operators of a TOSA 1.0 graph (PRO-INT with EXT-INT16), in the JSON form of the serialization."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = {"_major": 1, "_minor": 0, "_patch": 0, "_draft": False}
MOST_AXES = 6
NAN: dict[str, Any] = {"nan_mode": "PROPAGATE"}

_TYPES = ("int8", "uint8", "int16", "int32", "bool")
_ATTRIBUTES = {"ARGMAX": "ArgMax", "MATMUL": "MatMul", "INTDIV": "IntDiv"}
_FOLDED: dict[str, Callable[..., Any]] = {
    "ADD": np.add,
    "SUB": np.subtract,
    "MUL": np.multiply,
    "BITWISE_AND": np.bitwise_and,
    "ARITHMETIC_RIGHT_SHIFT": np.right_shift,
}
"""Of constants alone: computed here."""


class CannotError(Exception):
    """A step that TOSA does not have."""


@dataclass(frozen=True)
class Cell:
    """A tensor of the TOSA graph."""

    name: str
    dtype: str
    shape: tuple[int, ...]


Operand = Cell | NDArray[Any]
"""A tensor, or a constant."""


class Block:
    """Collects operators, tensors and shapes; equal constants once."""

    def __init__(self) -> None:
        self.operators: list[dict[str, Any]] = []
        self.tensors: list[dict[str, Any]] = []
        self.shapes: list[dict[str, Any]] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Cell] = {}

    def tensor(self, name: str, dtype: str, shape: Sequence[int], data: bytes = b"") -> Cell:
        """A tensor by name. Bytes without sign are INT8 in TOSA, which has no others."""
        if len(shape) > MOST_AXES:
            raise CannotError(f"{len(shape)} axes, TOSA has {MOST_AXES}")
        if dtype not in _TYPES:
            raise CannotError(f"{dtype} is no type of PRO-INT")
        kind = {"uint8": "int8"}.get(dtype, dtype)
        self.tensors.append({"name": name, "shape": [int(n) for n in shape], "type": kind.upper(), "data": list(data)})
        return Cell(name, kind, tuple(shape))

    def operator(
        self, op: str, operands: Sequence[Any], dtype: str, shape: Sequence[int], name: str = "", **attributes: Any
    ) -> Cell:
        """One operator and its result; operands that are arrays are constants, tuples are shapes."""
        names = [self._name(x) for x in operands]
        out = self.tensor(name or f"t{len(self.tensors)}", dtype, shape)
        self._write(op, names, out.name, attributes)
        return out

    def _write(self, op: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Any]) -> None:
        attribute = _ATTRIBUTES.get(op, "".join(w.title() for w in op.split("_")))
        entry = {"op": op, "attribute_type": f"{attribute}Attribute", "attribute": dict(attributes)}
        self.operators.append({**entry, "inputs": list(inputs), "outputs": [output]})

    def _name(self, x: Any) -> str:
        if isinstance(x, Cell):
            return x.name
        if isinstance(x, tuple):
            name = f"s{len(self.shapes)}"
            self.shapes.append({"name": name, "rank": len(x), "data": list(np.array(x, "<i8").tobytes())})
            self._write("CONST_SHAPE", [], name, {})
            return name
        array = np.asarray(x, order="C")
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        key = (array.dtype.name, array.shape, data)
        if key not in self._constants:
            self._constants[key] = self.tensor(f"c{len(self.tensors)}", *key)
            self._write("CONST", [], self._constants[key].name, {})
        return self._constants[key].name

    def file(self, inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
        """The graph as a document."""
        block = {
            "name": "main",
            "operators": self.operators,
            "tensors": self.tensors,
            "inputs": list(inputs),
            "outputs": list(outputs),
            "shapes": self.shapes,
        }
        return {"version": VERSION, "regions": [{"name": "main", "blocks": [block]}]}

    # ------------------------------------------------------------------------------------------------ elementwise

    def elementwise(self, op: str, *operands: Operand, dtype: str = "int32", **attributes: Any) -> Operand:
        """Of INT32 and conditions, all with as many axes."""
        if all(isinstance(x, np.ndarray) for x in operands) and op in _FOLDED:
            return np.asarray(_FOLDED[op](*operands), np.int32)
        axes = max(len(x.shape) for x in operands)
        same = [self.reshape(x, (1,) * (axes - len(x.shape)) + x.shape) for x in operands]
        shape = np.broadcast_shapes(*(x.shape for x in same))
        more = [np.zeros(1, np.int8)] if op == "MUL" else []  # its shift
        return self.operator(op, [*same, *more], dtype, shape, **attributes)

    def add(self, a: Operand, b: Operand) -> Operand:
        """a + b; zeros are passed over."""
        return b if _is_zero(a) else a if _is_zero(b) else self.elementwise("ADD", a, b)

    def times(self, a: Operand, b: Operand | int) -> Operand:
        """a b."""
        return self.elementwise("MUL", a, _int32(b))

    def low(self, x: Operand, bits: int) -> Operand:
        """x mod 2^bits."""
        return self.elementwise("BITWISE_AND", x, _int32(2**bits - 1))

    def down(self, x: Operand, count: Operand | int) -> Operand:
        """floor(x / 2^count), 0 <= count <= 31."""
        if isinstance(count, int) and not count:
            return x
        return self.elementwise("ARITHMETIC_RIGHT_SHIFT", x, _int32(count), round=False)

    def at_least(self, x: Operand, y: Operand | int) -> Operand:
        """The larger."""
        return self.elementwise("MAXIMUM", x, _int32(y), **NAN)

    def at_most(self, x: Operand, y: Operand | int) -> Operand:
        """The smaller."""
        return self.elementwise("MINIMUM", x, _int32(y), **NAN)

    def not_below(self, a: Operand | int, b: Operand | int) -> Operand:
        """The condition a >= b."""
        return self.elementwise("GREATER_EQUAL", _int32(a), _int32(b), dtype="bool")

    def select(self, condition: Operand, yes: Operand | int, no: Operand | int) -> Operand:
        """One or the other."""
        return self.elementwise("SELECT", condition, _int32(yes), _int32(no))

    # ------------------------------------------------------------------------------------------------ other places

    def reshape(self, x: Operand, shape: Sequence[int]) -> Operand:
        """The same elements in C order."""
        if isinstance(x, np.ndarray):
            return x.reshape(shape)
        return x if x.shape == tuple(shape) else self.operator("RESHAPE", [x, tuple(shape)], x.dtype, shape)

    def transpose(self, x: Operand, axes: Sequence[int]) -> Operand:
        """Axes in another order."""
        if isinstance(x, np.ndarray):
            return x.transpose(axes)
        return self.operator("TRANSPOSE", [x], x.dtype, [x.shape[axis] for axis in axes], perms=list(axes))

    def part(self, x: Operand, axis: int, start: int, stop: int) -> Operand:
        """Entries start to stop - 1 of an axis."""
        begin, size = [0] * len(x.shape), list(x.shape)
        begin[axis], size[axis] = start, stop - start
        return self.operator("SLICE", [x, tuple(begin), tuple(size)], str(x.dtype), size)

    def join(self, parts: Sequence[Operand], axis: int) -> Operand:
        """Side by side along an axis."""
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.operator("CONCAT", parts, str(parts[0].dtype), shape, axis=axis)


def _int32(x: Operand | int) -> Operand:
    return x if isinstance(x, Cell) else np.asarray(x, np.int32)


def _is_zero(x: Operand) -> bool:
    return isinstance(x, np.ndarray) and not x.any()
