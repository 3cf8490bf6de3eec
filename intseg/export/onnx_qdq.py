"""The form that vendor tools fuse: float operators between DequantizeLinear and QuantizeLinear. It is not exact.

Every tensor between nodes is the graph's own, integers under the node's name; inside of a node they are real numbers,
with one scale a tensor and no zero point. What a scale tensor says of channels and offsets is in the weights already,
so a node computes what its integers stand for, rounded half to even by the runtime. Of an op without parameters that is
its real twin (`intseg.exam`), written down. Weights stay INT8, biases INT32.
Ops that move values and tables that no float function is known for stay as they are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from intseg.arith import NARROW, limits
from intseg.exam import EXAMS
from intseg.graph import Graph, Node
from intseg.ops import MOVERS, Array

OPSET = 21
"""The first in which QuantizeLinear has INT16."""

_WEIGHT = 255
"""What exp_weights gives the largest element of a row (SPEC.md, section 4.21)."""


class Lowering:
    """Nodes and initializers of a graph, node after node in its order."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.scale: dict[str, float] = defaultdict(lambda: 1.0)  # of what is no node: the integers themselves
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.exact: list[str] = []
        self._node = graph.nodes[0]

    def lower(self, node: Node) -> bool:
        """Write a node down; False where it has no float form and stays an integer function."""
        self._node = node
        self.scale[node.name] = self._stated(node.name)
        write, exam = _LOWER.get(node.op), EXAMS[node.op]
        if write is not None and write(self, node):
            return True
        if exam.real is not None and exam.approximates and not node.params:
            found: _Twin = exam.real(_Twin(self, node.inputs[0]), **node.attrs)
            return self.finish(found.name, 1 / found.factor)
        if node.op in MOVERS:
            self.scale[node.name] = self.scale[node.inputs[0]]
        self.exact.append(node.name)
        return False

    # ---------------------------------------------------------------------------------------------------- the pieces

    def _stated(self, name: str) -> float:
        """The step that the scale tensor states; the geometric mean where it states one a channel; 1 without one."""
        step = self.step(name)
        return 1.0 if step is None else float(np.exp(np.log(step[0]).mean()))

    def step(self, name: str) -> tuple[Array, Array] | None:
        """(step, offset) of a node's values in real numbers."""
        node = next((node for node in self.graph.nodes if node.name == name), None)
        if node is None or node.scale is None:
            return None
        mult, offset, shift = self.graph.tensors[node.scale].astype(np.float64)
        return mult * 2.0**-shift, offset * 2.0**-shift

    def node(self, kind: str, *operands: str, **attributes: Any) -> str:
        """One operator; the name of its result."""
        name = f"{self._node.name}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, operands, [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """An initializer."""
        name = f"{self._node.name}/c_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def real(self, name: str, scale: Any = None, axis: int | None = None) -> str:
        """Integers as real numbers; in their tensor's scale by default."""
        found = self.constant(self.scale[name] if scale is None else scale)
        return self.node("DequantizeLinear", name, found, **({} if axis is None else {"axis": axis}))

    def finish(self, value: str, scale: float | None = None) -> bool:
        """The real numbers of a node as its integers. Always True."""
        node = self._node
        if scale is not None:
            self.scale[node.name] = scale
        if (kind := str(node.attrs.get("out"))) in NARROW:  # QuantizeLinear saturates at 8 bits
            ends = (end * self.scale[node.name] for end in limits(kind))
            value = self.node("Clip", value, *map(self.constant, ends))
        zero = self.constant(0, node.dtype)
        self.node("QuantizeLinear", value, self.constant(self.scale[node.name]), zero)
        self.nodes[-1].output[0] = node.name
        return True

    def times(self, value: str, factor: Array) -> str:
        """Times a factor, without an operator where it is one."""
        one = np.allclose(factor, 1, rtol=2**-24, atol=0)
        return value if one else self.node("Mul", value, self.constant(factor))

    def tensor(self, role: str) -> Array:
        """A param of the node at hand."""
        return self.graph.tensors[self._node.params[role]]

    def dyadic(self, source: Mapping[str, Any] | None = None, suffix: str = "") -> Any:
        """mult 2^-shift of the node at hand, from its attributes where they are given."""
        if source is not None:
            return math.ldexp(source[f"mult{suffix}"], -source[f"shift{suffix}"])
        return np.ldexp(self.tensor("mult").astype(np.float64), -self.tensor("shift").astype(np.int64))


@dataclass(frozen=True)
class _Twin:
    """What stands for the numbers of a real twin (`intseg.exam`) while it is written down: a tensor times a factor."""

    to: Lowering
    name: str
    factor: float = 1.0
    dtype = np.dtype(np.float64)
    __array_ufunc__ = None

    def __mul__(self, factor: Any) -> _Twin:
        return replace(self, factor=self.factor * float(factor))

    def __truediv__(self, divisor: Any) -> _Twin:
        return replace(self, factor=self.factor / float(divisor))

    def softmax(self) -> _Twin:
        """See exam/_real.py."""
        return self._by("Softmax", axis=-1)

    def gelu(self) -> _Twin:
        """See exam/_real.py."""
        return self._by("Gelu")

    def unit_rows(self) -> _Twin:
        """See exam/_real.py."""
        return self._by("LpNormalization", axis=-1, p=2)

    def _by(self, kind: str, **attributes: Any) -> _Twin:
        return _Twin(self.to, self.to.node(kind, self.to.real(self.name, self.factor), **attributes))


# -------------------------------------------------------------------------------------------------------------- the ops


def _linear(to: Lowering, node: Node) -> bool:
    scale = to.scale[node.name] * to.dyadic()
    source = to.scale[node.inputs[0]]
    weight = to.real(node.params["weight"], scale / source, 0)
    bias = to.real(node.params["bias"], scale, 0)
    return to.finish(to.node("Gemm", to.real(node.inputs[0]), weight, bias, transB=1))


def _add(to: Lowering, node: Node) -> bool:
    scale = to.scale[node.name]
    a, b = (
        to.real(name, scale * to.dyadic(node.attrs, suffix))
        for name, suffix in zip(node.inputs, ("_a", "_b"), strict=True)
    )
    return to.finish(to.node("Add", a, b))


def _layernorm(to: Lowering, node: Node) -> bool:
    """real = gamma (sqrt(D) z 2^-30) + beta. The variance of a row that is not constant is far above epsilon."""
    width, source = node.shape[-1], to.scale[node.inputs[0]]
    unit = to.scale[node.name] * 2.0 ** -int(node.attrs["shift"])
    gamma = to.constant(to.tensor("mult") * unit * 2.0**30 / math.sqrt(width))
    beta = to.constant(to.tensor("bias") * unit)
    x = to.real(node.inputs[0])
    return to.finish(to.node("LayerNormalization", x, gamma, beta, axis=-1, epsilon=(source / width) ** 2 * 2**-10))


def _product(to: Lowering, node: Node, transposed: bool = False) -> tuple[str, str, Array]:
    """Real first operand, product, and the factor that makes it the node's real numbers."""
    a, b = (to.real(name) for name in node.inputs)
    if transposed:
        rank = len(node.shape)
        b = to.node("Transpose", b, perm=[*range(rank - 2), rank - 1, rank - 2])
    return a, to.node("MatMul", a, b), to.scale[node.name] * to.dyadic()[..., None, :] / to.scale[node.inputs[1]]


def _matmul(to: Lowering, node: Node) -> bool:
    _, product, factor = _product(to, node, bool(node.attrs["transpose_b"]))
    return to.finish(to.times(product, factor / to.scale[node.inputs[0]]))


def _weighted_mean(to: Lowering, node: Node) -> bool:
    a, product, factor = _product(to, node)
    total = to.node("ReduceSum", a, to.constant([-1], "int64"), keepdims=1)
    return to.finish(to.times(to.node("Div", product, total), factor))


def _exp_weights(to: Lowering, node: Node) -> bool:
    """Where the table is an exponential."""
    table = to.tensor("table").astype(np.float64)
    at = np.abs(table - table[..., :1] / math.e).argmin(axis=-1)[..., None]
    step = np.log(table[..., :1] / np.maximum(np.take_along_axis(table, at, -1), 1)) / np.maximum(at, 1)
    if np.abs(table[..., :1] * np.exp(-step * np.arange(256)) - table).max() > 2**-7 * table.max():
        return False
    x = to.real(node.inputs[0], 1.0)
    top = to.node("ReduceMax", x, to.constant([-1], "int64"), keepdims=1)
    exponent = to.node("Mul", to.node("Sub", x, top), to.constant(step[..., None]))
    return to.finish(to.node("Exp", exponent), 1 / _WEIGHT)


def _gelu_table(to: Lowering, node: Node) -> bool:
    """Where the scale tensors say of which numbers the table is."""
    known = [to.step(name) for name in (node.inputs[0], node.name)]
    if any(step is None or step[0].size > 1 for step in known):
        return False
    (source, before), (target, after) = ([float(part.item()) for part in step] for step in known if step is not None)
    x = to.node("Add", to.real(node.inputs[0], source), to.constant(before))
    return to.finish(to.node("Sub", to.node("Gelu", x), to.constant(after)), target)


_LOWER: dict[str, Callable[[Lowering, Node], bool]] = {
    "linear": _linear,
    "add": _add,
    "layernorm": _layernorm,
    "matmul": _matmul,
    "weighted_mean": _weighted_mean,
    "exp_weights": _exp_weights,
    "gelu_table": _gelu_table,
}
