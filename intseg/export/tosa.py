"""Nodes as TOSA 1.0 graphs (PRO-INT with EXT-INT16), in the JSON form of the serialization: what it can say exactly.

One more reading of the ops: a machine whose steps are TOSA operators on INT32. A step that TOSA has not, or a register
that the certificate does not place inside of INT32, refuses the node and says which (docs/TOSA.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from intseg import files, prove
from intseg.arith import Machine
from intseg.arith.saturation import held, limits
from intseg.graph import Graph, Node
from intseg.ops import OPS, Array

VERSION = {"_major": 1, "_minor": 0, "_patch": 0, "_draft": False}

_MOST_AXES = 6


class CannotError(Exception):
    """A step that TOSA does not have."""


class Tensor:
    """A value of the TOSA graph; `interval` is what the certificate knows of it."""

    __array_ufunc__ = None  # so that an array on the left leaves the operation to this class

    def __init__(self, machine: TosaMachine, name: str, dtype: str, shape: Sequence[int]) -> None:
        self.machine, self.name, self.dtype, self.shape = machine, name, dtype, tuple(shape)
        self.interval: tuple[int, int] | None = limits(dtype) if dtype != "int32" else None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __add__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("ADD", self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("SUB", self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("SUB", other, self)

    def __rshift__(self, n: int) -> Tensor:
        return self.machine.arithmetic("ARITHMETIC_RIGHT_SHIFT", self, n, round=False)

    def _cannot(self, *_: Any) -> NoReturn:
        raise CannotError("an INT32 product, quotient or left shift is not proved to fit 32 bits")

    __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = __lshift__ = __neg__ = __abs__ = _cannot


class Product:
    """A value times multipliers, which only RESCALE takes further."""

    def __init__(self, x: Tensor, mult: Any) -> None:
        self.x, self.mult = x, mult


class TosaMachine(Machine):
    """Collects the operators of one node.

    registers  intervals of its registers, by name
    """

    def __init__(self, registers: Mapping[str, tuple[int, int]]) -> None:
        self.registers = registers
        self.operators: list[dict[str, Any]] = []
        self.tensors: list[dict[str, Any]] = []
        self.shapes: list[dict[str, Any]] = []

    # ------------------------------------------------------------------------------------------------------- writing

    def tensor(self, name: str, dtype: str, shape: Sequence[int], data: bytes = b"") -> Tensor:
        """A tensor by name. Bytes without sign are INT8 in TOSA: the bits are the same."""
        kind = {"uint8": "INT8"}.get(dtype, dtype.upper())
        self.tensors.append({"name": name, "shape": [int(n) for n in shape], "type": kind, "data": list(data)})
        return Tensor(self, name, dtype, shape)

    def operator(self, op: str, operands: Sequence[Any], dtype: str, shape: Sequence[int], **attributes: Any) -> Tensor:
        """One operator and its result; operands that are arrays are constants, tuples are shapes."""
        if len(shape) > _MOST_AXES:
            raise CannotError(f"{len(shape)} axes, TOSA has {_MOST_AXES}")
        names = [self._name(x) for x in operands]
        out = self.tensor(f"t{len(self.tensors)}", dtype, shape)
        self._write(op, names, out.name, attributes)
        return out

    def _write(self, op: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Any]) -> None:
        attribute = {"ARGMAX": "ArgMax", "MATMUL": "MatMul"}.get(op, "".join(w.title() for w in op.split("_")))
        entry = {"op": op, "attribute_type": f"{attribute}Attribute", "attribute": dict(attributes)}
        self.operators.append({**entry, "inputs": list(inputs), "outputs": [output]})

    def _name(self, x: Any) -> str:
        if isinstance(x, Tensor):
            return x.name
        if isinstance(x, tuple):
            name = f"s{len(self.shapes)}"
            data = list(np.array(x, "<i8").tobytes())
            self.shapes.append({"name": name, "rank": len(x), "data": data})
            self._write("CONST_SHAPE", [], name, {})
            return name
        array = np.ascontiguousarray(x)
        little = array.astype(array.dtype.newbyteorder("<"))
        made = self.tensor(f"c{len(self.tensors)}", array.dtype.name, array.shape, little.tobytes())
        self._write("CONST", [], made.name, {})
        return made.name

    def arithmetic(self, op: str, a: Any, b: Any, **attributes: Any) -> Tensor:
        """An elementwise operator on INT32, both operands with as many axes."""
        a, b = (self.widen(v) if isinstance(v, Tensor) else np.asarray(v, np.int32) for v in (a, b))
        axes = max(a.ndim, b.ndim)
        a, b = (self.reshape(v, *[1] * (axes - v.ndim), *v.shape) for v in (a, b))
        return self.operator(op, [a, b], "int32", np.broadcast_shapes(a.shape, b.shape), **attributes)

    def rescale(self, x: Tensor, mult: Any, shift: Any, dtype: str) -> Tensor:
        """saturate(RSR(x mult, shift)), one scale or one for each entry of the last axis."""
        if x.interval is None:
            raise CannotError("RESCALE of a value without a proved bound")
        mult, shift = (np.atleast_1d(np.asarray(v)) for v in (mult, shift))
        again = (shift == 1) & (mult < 2**30)  # shifts begin at 2
        mult, shift = np.where(again, 2 * mult.astype(np.int64), mult), np.where(again, 2, shift)
        low, high = x.interval
        worst = int(shift.min())
        if worst < 2 or low < -(2 ** (worst - 1)) or high >= 2 ** (worst - 1):
            raise CannotError(f"RESCALE takes values of less than 2^(shift - 1): [{low}, {high}] at a shift of {worst}")
        zeros = np.zeros(1, x.dtype), np.zeros(1, dtype)
        operands = [x, mult.astype(np.int32), shift.astype(np.int8), *zeros]
        flags = {"scale32": True, "rounding_mode": "SINGLE_ROUND", "per_channel": mult.size > 1}
        flags |= {"input_unsigned": False, "output_unsigned": False}
        return self.operator("RESCALE", operands, dtype, x.shape, **flags)

    def file(self, inputs: Sequence[Tensor], output: Tensor) -> dict[str, Any]:
        """The graph of a node."""
        block = {
            "name": "main",
            "operators": self.operators,
            "tensors": self.tensors,
            "inputs": [x.name for x in inputs],
            "outputs": [output.name],
            "shapes": self.shapes,
        }
        return {"version": VERSION, "regions": [{"name": "main", "blocks": [block]}]}

    # ------------------------------------------------------------------------------------------- what is known of it

    def keep(self, name: str, x: Any, bits: int) -> Any:
        if isinstance(x, Tensor):
            low, high = self.registers[name]
            if low < -(2**31) or high >= 2**31:
                raise CannotError(f"register {name} reaches [{low}, {high}], beyond INT32")
            x.interval = low, high
        return x

    # ------------------------------------------------------------------------------------------------- rows and sums

    def widen(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return np.asarray(x).astype(np.int32)
        if x.dtype == "uint8":
            raise CannotError("arithmetic on UINT8")
        return x if x.dtype == "int32" else self._cast(x, "int32")

    def _cast(self, x: Tensor, dtype: str) -> Tensor:
        made = self.operator("CAST", [x], dtype, x.shape)
        made.interval = x.interval
        return made

    def dot(self, x: Any, weight: Any) -> Any:
        return self.matmul(x, np.ascontiguousarray(weight.T))

    def matmul(self, a: Any, b: Any) -> Any:
        if {str(a.dtype), str(b.dtype)} != {"int8"}:
            raise CannotError(f"MATMUL of {a.dtype} and {b.dtype}")
        *batch, rows, depth = a.shape
        count, columns = math.prod(batch), b.shape[-1]
        left, right = self.reshape(a, count, rows, depth), self.reshape(b, count, depth, columns)
        zero = np.zeros(1, np.int8)
        found = self.operator("MATMUL", [left, right, zero, zero.copy()], "int32", (count, rows, columns))
        return self.reshape(found, *batch, rows, columns)

    def accumulate(self, x: Any) -> Any:
        return x

    def row_max(self, x: Any) -> Any:
        axis = x.ndim - 1
        return self.operator("REDUCE_MAX", [x], x.dtype, (*x.shape[:-1], 1), axis=axis, nan_mode="PROPAGATE")

    # ------------------------------------------------------------------------------------------------------- numbers

    def product(self, x: Any, mult: Any) -> Any:
        return Product(x, mult)

    def rsr(self, x: Any, c: Any, via: str = "rounding", case: str = "") -> Any:
        if not isinstance(x, Product):
            raise CannotError("a rounding shift of more than a product by constants")
        return self.rescale(x.x, x.mult, c, "int32")

    def requantize(self, x: Any, mult: Any, shift: Any, kind: str) -> Any:
        """Scales of a batch come to the last axis: columns of all matrices side by side. Fewer bits: a CLAMP more."""
        if held(kind) != kind:
            found, ends = self.requantize(x, mult, shift, held(kind)), limits(kind)
            least, most = (list(np.array([end], np.int8).tobytes()) for end in ends)
            return self.operator("CLAMP", [found], held(kind), found.shape, min_val=least, max_val=most, **_NAN)
        if x.ndim == 2:
            return self.rescale(x, np.reshape(mult, -1), np.reshape(shift, -1), kind)
        *batch, rows, columns = x.shape
        count = math.prod(batch)
        mult, shift = (np.broadcast_to(v, (*batch, 1, columns)).reshape(-1) for v in (mult, shift))
        side = self.transpose(self.reshape(x, count, rows, columns), 1, 0, 2)
        flat = self.reshape(side, rows, count * columns)
        found = self.reshape(self.rescale(flat, mult, shift, kind), rows, count, columns)
        return self.reshape(self.transpose(found, 1, 0, 2), *batch, rows, columns)

    def clip(self, x: Any, low: int, high: int) -> Any:
        found = self.arithmetic("MINIMUM", self.arithmetic("MAXIMUM", x, low, **_NAN), high, **_NAN)
        found.interval = low, high
        return found

    def saturate(self, x: Any, kind: str) -> Any:
        """A result without sign is its bits."""
        low, high = limits(kind)
        if kind == "uint8":
            return self._cast(self.clip(self.clip(x, low, high) - 128, -128, 127), "int8")
        return self._cast(self.clip(x, low, high), held(kind))

    # -------------------------------------------------------------------------------------------------- other places

    def reshape(self, x: Any, *shape: int) -> Any:
        if not isinstance(x, Tensor):
            return x.reshape(shape)
        if x.shape == tuple(shape):
            return x
        return self._same(x, self.operator("RESHAPE", [x, tuple(shape)], x.dtype, shape))

    def transpose(self, x: Any, *axes: int) -> Any:
        if not isinstance(x, Tensor):
            return x.transpose(axes)
        shape = [x.shape[axis] for axis in axes]
        return self._same(x, self.operator("TRANSPOSE", [x], x.dtype, shape, perms=list(axes)))

    def _same(self, x: Tensor, found: Tensor) -> Tensor:
        found.interval = x.interval
        return found

    def _part(self, x: Tensor, axis: int, start: int, stop: int) -> Tensor:
        begin, size = [0] * x.ndim, list(x.shape)
        begin[axis], size[axis] = start, stop - start
        return self._same(x, self.operator("SLICE", [x, tuple(begin), tuple(size)], x.dtype, size))

    def rows(self, x: Any, start: int, stop: int) -> Any:
        return self._part(x, 0, start, stop)

    def pick(self, x: Any, index: int, axis: int) -> Any:
        return self.reshape(self._part(x, axis, index, index + 1), *x.shape[:axis], *x.shape[axis + 1 :])

    def repeat(self, x: Any, count: int, axis: int) -> Any:
        """An axis of one behind it, tiled."""
        shape = (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :])
        times = (*[1] * (axis + 1), count, *[1] * (x.ndim - axis - 1))
        wide = [a * b for a, b in zip(shape, times, strict=True)]
        found = self.operator("TILE", [self.reshape(x, *shape), times], x.dtype, wide)
        return self.reshape(found, *x.shape[:axis], count * x.shape[axis], *x.shape[axis + 1 :])

    def concat(self, *parts: Any) -> Any:
        return self._join(parts, 0)

    def _join(self, parts: Sequence[Any], axis: int) -> Tensor:
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.operator("CONCAT", parts, str(parts[0].dtype), shape, axis=axis)

    def columns(self, x: Any) -> Any:
        return self.reshape(x, *x.shape[:-1], 1, x.shape[-1])

    def lookup(self, table: Any, x: Any, first: int) -> Any:
        """TABLE; of pixels, whose bits it reads with a sign, channel by channel."""
        if (table.dtype.name, first, table.ndim) == ("int8", -128, 1) and x.dtype == "int8":
            return self.operator("TABLE", [x, table], "int8", x.shape)
        if (table.dtype.name, table.ndim, x.dtype) != ("int8", 2, "uint8"):
            raise CannotError(f"TABLE of {x.dtype} to {table.dtype}")
        axis, turned = x.ndim - 1, np.roll(table, 128, axis=-1)
        channels = [self._part(x, axis, c, c + 1) for c in range(len(table))]
        found = [self.operator("TABLE", [v, t], "int8", v.shape) for v, t in zip(channels, turned, strict=True)]
        return self._join(found, axis)

    def entry(self, table: Any, x: Any) -> Any:
        *batch, size = table.shape
        count, inner = math.prod(batch), math.prod(x.shape[len(batch) :])
        values = np.ascontiguousarray(table).reshape(count, size, 1)
        index = self.reshape(x, count, inner)
        found = self.operator("GATHER", [values, index], table.dtype.name, (count, inner, 1))
        return self.widen(self.reshape(found, *x.shape))

    def argmax(self, x: Any) -> Any:
        return self.operator("ARGMAX", [x], "int32", x.shape[:-1], axis=x.ndim - 1, nan_mode="PROPAGATE")


_NAN = {"nan_mode": "PROPAGATE"}

_HERE = frozenset(vars(TosaMachine)) | {"cases", "claim", "sums_to", "quiet", "way", "at_least"}


def _refuse(name: str) -> Any:
    def step(self: TosaMachine, *args: Any, **named: Any) -> NoReturn:
        raise CannotError(f"{name} has no exact form in 32 bits")

    return step


for _name, _method in vars(Machine).items():
    if callable(_method) and not _name.startswith("_") and _name not in _HERE:
        setattr(TosaMachine, _name, _refuse(_name))


def node_file(graph: Graph, node: Node, registers: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The TOSA graph of one node, its inputs and its result under TOSA names. Raises CannotError."""
    machine = TosaMachine(registers)
    shapes = [_value(graph, name) for name in node.inputs]
    inputs = [machine.tensor(f"input_{i}", dtype, shape) for i, (dtype, shape) in enumerate(shapes)]
    params: dict[str, Array] = {role: graph.tensors[name] for role, name in node.params.items()}
    result = OPS[node.op].define(machine, *inputs, **params, **node.attrs)
    return machine.file(inputs, result)


def _value(graph: Graph, name: str) -> tuple[str, tuple[int, ...]]:
    if name == "image":
        return "uint8", (*graph.info.window, 3)
    if name in graph.tensors:
        return graph.tensors[name].dtype.name, graph.tensors[name].shape
    node = graph.node(name)
    return node.dtype, tuple(node.shape)


def nodes(graph: Graph) -> dict[str, dict[str, Any] | str]:
    """The TOSA graph of every node by name, or why there is none."""
    found: dict[str, dict[str, Any] | str] = {}
    for node, _, machine, _ in prove.walk_graph(graph):
        registers = {r.name: (r.low, r.high) for r in machine.registers}
        try:
            found[node.name] = node_file(graph, node, registers)
        except CannotError as error:
            found[node.name] = str(error)
    return found


def write(graph: Graph, folder: Path) -> tuple[int, dict[str, str]]:
    """A file a node into a new folder, and map.json: op, inputs, file or reason. Returns how many, and the reasons."""
    made = nodes(graph)
    entries = []
    with files.new_folder(folder) as place:
        for node in graph.nodes:
            found = made[node.name]
            entry: dict[str, Any] = {"node": node.name, "op": node.op, "inputs": list(node.inputs)}
            if isinstance(found, str):
                entries.append({**entry, "cannot": found})
                continue
            name = f"{len(entries):04d}.json"
            with files.create(place / name) as out:
                out.write(json.dumps(found, separators=(",", ":")).encode())
            entries.append({**entry, "file": name})
        with files.create(place / "map.json") as out:
            out.write(json.dumps({"tosa": VERSION, "nodes": entries}, indent=1).encode())
    reasons = {name: found for name, found in made.items() if isinstance(found, str)}
    return len(made) - len(reasons), reasons
