"""A graph as an ONNX model: every op a local function, every node a call of it under its own name (SPEC.md, section 5).

Nothing in it is a float, and nothing but standard operators is needed: the functions' bodies are in the model.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from intseg import packing, store
from intseg._version import __version__
from intseg.export.onnx_machine import DTYPES, OnnxMachine, Tensor
from intseg.export.onnx_qdq import OPSET as QDQ_OPSET
from intseg.export.onnx_qdq import Lowering
from intseg.graph import IMAGE, Graph
from intseg.ops import OPS, Array, Attr
from intseg.windows import label_steps

OPSET = 18
IR_VERSION = 9
QDQ_IR_VERSION = 10
FORMS = ("exact", "qdq")
DOMAIN = "intseg"
"""Of the local functions."""

LABELS = "labels"
Operand = tuple[str, tuple[int, ...]]
"""dtype and shape."""


class Functions:
    """The functions of a model: one for every way in which an op is called, equal ones once."""

    def __init__(self, opset: int = OPSET) -> None:
        self.opset = opset
        self.protos: list[onnx.FunctionProto] = []
        self._names: dict[bytes, str] = {}

    def add(
        self, op: str, inputs: Sequence[Operand], params: Mapping[str, Operand], attrs: Mapping[str, Attr]
    ) -> tuple[str, Operand]:
        """Name of the function of a call, and what it gives. It takes the inputs, then the params, in this order."""
        machine, define = OnnxMachine(), OPS[op].define
        names = [*inspect.signature(define).parameters][1 : 1 + len(inputs)]
        given = [machine.input(name, *operand) for name, operand in zip(names, inputs, strict=True)]
        roles = {role: machine.input(role, *operand) for role, operand in params.items()}
        found: Tensor = define(machine, *given, **roles, **attrs)
        about = f"{inspect.getdoc(define)}\n\nattributes: {json.dumps(dict(attrs))}"
        return self._known(op, [*names, *roles], machine.finish(found), about), (found.dtype, found.shape)

    def unpack(self, bits: int, shape: tuple[int, ...]) -> str:
        """Name of the function from the bytes of a packed tensor to its elements INT8 (SPEC 6.1).

        Eight elements are `bits` bytes; one begins in a byte and may end in the next.
        """
        machine, count = OnnxMachine(), math.prod(shape)
        groups, starts = -(-count // 8), bits * np.arange(8)
        given = machine.input("packed", "uint8", (groups * bits,))
        stream = machine.widen(machine.reshape(given, groups, bits))
        ends = starts // 8 + 1 < bits  # of the last byte there is no next one, and none of its elements needs it
        first, second = (machine.gather(stream, n, 1) for n in (starts // 8, np.where(ends, starts // 8 + 1, 0)))
        value = machine.arithmetic("Div", first + second * np.where(ends, 256, 0), 2 ** (starts % 8))
        value = machine.low_bits(value, bits)
        negative = machine.arithmetic("GreaterOrEqual", value, 2 ** (bits - 1), "bool")
        found = machine.saturate(machine.where(negative, value - 2**bits, value), "int8")
        flat = machine.rows(machine.reshape(found, 8 * groups), 0, count)
        body = machine.finish(machine.reshape(flat, *shape))
        return self._known("unpack", ["packed"], body, f"int{bits} {list(shape)}, low bits first (SPEC 6.1)")

    def _known(self, op: str, inputs: Sequence[str], body: Sequence[onnx.NodeProto], about: str) -> str:
        """Name of a function, which is added if there is no equal one."""
        opset = helper.make_opsetid("", self.opset)
        made = helper.make_function(DOMAIN, op, inputs, ["result"], body, [opset], [])
        made.doc_string = about
        key = made.SerializeToString(deterministic=True)
        if key not in self._names:
            count = sum(name.split("_of_")[0] == op for name in self._names.values())
            made.name = f"{op}_of_{count}" if count else op
            self._names[key] = made.name
            self.protos.append(made)
        return self._names[key]


def model(graph: Graph, labels: bool = False, form: str = "exact") -> onnx.ModelProto:
    """A validated graph: `image` uint8 [H, W, 3] of one window to the scores, under the name of the output node.

    labels  also gives `labels`, the class of every pixel of the window (SPEC.md, section 7); of a classifier the class,
            [1]
    form    "exact": every node an integer function; "qdq": float operators between integer tensors (onnx_qdq)
    """
    functions = Functions(QDQ_OPSET if form == "qdq" else OPSET)
    known: dict[str, Operand] = {IMAGE: ("uint8", (*graph.info.window, 3))}
    known |= {name: (array.dtype.name, array.shape) for name, array in graph.tensors.items()}
    lowering = Lowering(graph)
    for node in graph.nodes:
        if form == "exact" or not lowering.lower(node):
            params = {role: known[tensor] for role, tensor in node.params.items()}
            function, _ = functions.add(node.op, [known[i] for i in node.inputs], params, node.attrs)
            operands = [*node.inputs, *node.params.values()]
            lowering.nodes.append(helper.make_node(function, operands, [node.name], name=node.name, domain=DOMAIN))
        known[node.name] = (node.dtype, node.shape)
    outputs = [_info(graph.output, known[graph.output])]
    if labels:
        lowering.nodes += _labels(graph, functions, known)
        outputs.append(_info(LABELS, known[LABELS]))
    used = {name for node in lowering.nodes for name in node.input}
    unpacking = [_unpacking(graph, functions, name) for name in sorted(graph.packed) if name in used]
    held = {node.input[0]: _padded(graph, node.output[0]) for node in unpacking}
    held |= {name: array for name, array in graph.tensors.items() if name in used - graph.packed.keys()}
    made = helper.make_graph(
        [*unpacking, *lowering.nodes],
        graph.info.name or "intseg",
        [_info(IMAGE, known[IMAGE])],
        outputs,
        [*(numpy_helper.from_array(held[name], name) for name in sorted(held)), *lowering.initializers],
        value_info=[_info(node.name, known[node.name]) for node in graph.nodes if node.name != graph.output],
    )
    facts = {"form": form} | ({"exact_nodes": json.dumps(lowering.exact)} if form == "qdq" else {})
    return _finished(made, functions, graph, facts)


def _padded(graph: Graph, name: str) -> Array:
    """The bytes of a packed tensor, with zeros to whole groups of eight elements."""
    array, bits = graph.tensors[name], graph.packed[name]
    stream = packing.pack(array, bits)
    return np.pad(stream, (0, -(-array.size // 8) * bits - len(stream)))


def _unpacking(graph: Graph, functions: Functions, name: str) -> onnx.NodeProto:
    """The node that gives a packed tensor: its bytes are what the model holds."""
    function = functions.unpack(graph.packed[name], graph.tensors[name].shape)
    return helper.make_node(function, [f"{name}/packed"], [name], name=name, domain=DOMAIN)


def _labels(graph: Graph, functions: Functions, known: dict[str, Operand]) -> list[onnx.NodeProto]:
    """The steps of SPEC 7 after the sum, for an image of one window."""
    if graph.info.classifies:
        row = f"{LABELS}.row"
        known[row] = ("int32", (1, len(graph.info.classes)))
        function, known[LABELS] = functions.add("argmax", [known[row]], {}, {})
        axis = helper.make_node("Constant", [], [f"{LABELS}.axis"], value_ints=[0])
        wide = helper.make_node("Unsqueeze", [graph.output, axis.output[0]], [row], name=row)
        return [axis, wide, helper.make_node(function, [row], [LABELS], name=LABELS, domain=DOMAIN)]
    steps, nodes, value = label_steps(graph.info), [], graph.output
    for i, (op, attrs) in enumerate(steps):
        name = LABELS if i == len(steps) - 1 else f"{LABELS}.{op}"
        function, known[name] = functions.add(op, [known[value]], {}, attrs)
        nodes.append(helper.make_node(function, [value], [name], name=name, domain=DOMAIN))
        value = name
    return nodes


def _info(name: str, operand: Operand) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, DTYPES[operand[0]], operand[1])


def _finished(graph: onnx.GraphProto, functions: Functions, source: Graph, facts: dict[str, str]) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", functions.opset), helper.make_opsetid(DOMAIN, 1)]
    version = IR_VERSION if functions.opset == OPSET else QDQ_IR_VERSION
    made = helper.make_model(
        graph, functions=functions.protos, opset_imports=opsets, ir_version=version, producer_name="intseg"
    )
    made.producer_version = __version__
    about = {"recipe": source.info.recipe, "tensors_sha256": store.tensors_sha256(source.tensors)}
    helper.set_model_props(made, about | facts | {"classes": json.dumps(source.info.classes)})
    return made


def op_model(
    op: str, inputs: Sequence[Operand], params: Mapping[str, Operand], attrs: Mapping[str, Attr]
) -> onnx.ModelProto:
    """One op as a model of its own: inputs and params are its inputs, `result` its output."""
    functions = Functions()
    function, result = functions.add(op, inputs, params, attrs)
    names = [*functions.protos[0].input]
    infos = [_info(name, operand) for name, operand in zip(names, [*inputs, *params.values()], strict=True)]
    node = helper.make_node(function, names, ["result"], name=op, domain=DOMAIN)
    graph = helper.make_graph([node], op, infos, [_info("result", result)])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, functions=functions.protos, opset_imports=opsets, ir_version=IR_VERSION)


def with_every_node(made: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    """The model with the value of every node as an output."""
    found = onnx.ModelProto()
    found.CopyFrom(made)
    known = {info.name: info for info in found.graph.value_info}
    found.graph.output.extend(known[node.name] for node in graph.nodes if node.name in known)
    return found
