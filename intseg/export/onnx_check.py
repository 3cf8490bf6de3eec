"""An exported model run by other people's runtimes, node by node against the engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from intseg import backends, executor, store
from intseg.errors import InputError
from intseg.export import onnx_model
from intseg.graph import Graph
from intseg.ops import Array

Difference = tuple[str, int, int, tuple[int, ...], int, int]
"""Node, elements that differ, elements, index of the first, its value, the engine's."""

Runtime = Callable[[onnx.ModelProto, Array], Mapping[str, Array]]


@dataclass(frozen=True)
class Found:
    """What one runtime gave for one image.

    runtime   "onnxruntime", "onnxruntime, not optimized" or "onnx.reference"
    compared  nodes
    differ    nodes with differences, in execution order
    """

    runtime: str
    compared: int
    differ: tuple[Difference, ...]


def _onnxruntime(optimize: bool) -> Runtime:
    def run(made: onnx.ModelProto, image: Array) -> Mapping[str, Array]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {"image": image}), strict=True))

    return run


def _reference(made: onnx.ModelProto, image: Array) -> Mapping[str, Array]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(made)
    return dict(zip(evaluator.output_names, evaluator.run(None, {"image": image}), strict=True))


RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": _onnxruntime(True),
    "onnxruntime, not optimized": _onnxruntime(False),
    "onnx.reference": _reference,
}


def read(path: str, data: bytes) -> onnx.ModelProto:
    """A model from a file. Raises InputError."""
    try:
        made = onnx.load_model_from_string(data)
        onnx.checker.check_model(made)
    except Exception as error:  # protobuf, checker and onnx each have their own
        raise InputError(f"{path}: not an ONNX model ({type(error).__name__}); write it with intseg export") from None
    return made


def require_export(path: str, made: onnx.ModelProto, graph: Graph) -> None:
    """Raise InputError where a model is not an export of this graph."""
    facts = {entry.key: entry.value for entry in made.metadata_props}
    calls = {node.name for node in made.graph.node}
    missing = [node.name for node in graph.nodes if node.name not in calls]
    if "tensors_sha256" not in facts:
        raise InputError(f"{path}: not written by intseg export; export the model again")
    if facts["tensors_sha256"] != store.tensors_sha256(graph.tensors) or missing:
        raise InputError(f"{path}: exported from other weights than -w; give the model that it was made of")


def installed(say: Callable[[str], None]) -> list[str]:
    """The runtimes that can be used here; says which cannot."""
    if importlib.util.find_spec("onnxruntime") is not None:
        return list(RUNTIMES)
    say("note: onnxruntime is not installed, only ONNX's own evaluator is compared: pip install 'intseg[onnx]'")
    return ["onnx.reference"]


def describe(difference: Difference) -> str:
    """One line of the first wrong element of a node."""
    node, wrong, size, index, given, expected = difference
    where = f"{list(index)} is {given}, expected {expected}" if index else "another dtype or shape"
    return f"{node}: {wrong} of {size} elements differ, {where}"


def compare(
    made: onnx.ModelProto, graph: Graph, images: Sequence[Array], runtimes: Sequence[str] = tuple(RUNTIMES)
) -> Iterator[Found]:
    """Every node of every image in every runtime. Each image is one window, uint8 [H, W, 3]."""
    whole = onnx_model.with_every_node(made, graph)
    table = backends.table("auto")
    for image in images:
        expected: dict[str, Array] = {}
        executor.execute(graph, image, table, lambda node, value: expected.__setitem__(node.name, value))  # noqa: B023
        for runtime in runtimes:
            given = RUNTIMES[runtime](whole, image)
            differ = [d for name, value in expected.items() if (d := _difference(name, given[name], value)) is not None]
            yield Found(runtime, len(expected), tuple(differ))


def _difference(name: str, given: Array, expected: Array) -> Difference | None:
    if given.dtype != expected.dtype or given.shape != expected.shape:
        return name, expected.size, expected.size, (), 0, 0
    wrong = np.argwhere(given != expected)
    if not len(wrong):
        return None
    first = tuple(int(i) for i in wrong[0])
    return name, len(wrong), expected.size, first, int(given[first]), int(expected[first])
