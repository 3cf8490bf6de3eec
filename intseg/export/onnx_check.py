"""An exported model run by other people's runtimes, node by node against the engine."""

from __future__ import annotations

import importlib.util
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import save_file

from intseg import api, backends, executor, store
from intseg.errors import InputError
from intseg.export import onnx_model
from intseg.graph import IMAGE, Graph, ModelInfo
from intseg.ops import Array
from intseg.windows import class_map
from intseg.workbench import diff, sides, trace

Run = Callable[[Array], Mapping[str, Array]]
"""An image to the values of the nodes."""

SLOW, SLOW_SECONDS = 3, 90
"""Images that the reference evaluator gets in any case, and the processor time after which it gets no more: it takes a
hundred times as long."""


@dataclass
class Difference:
    """A node whose value differs, over all images.

    elements   compared
    wrong      that differ
    largest    largest difference
    first      index, found and expected value of the first; an empty index where dtype or shape differ
    """

    node: str
    elements: int = 0
    wrong: int = 0
    largest: int = 0
    first: tuple[tuple[int, ...], int, int] | None = None

    def add(self, given: Array, expected: Array) -> None:
        """One more image."""
        self.elements += expected.size
        if given.dtype != expected.dtype or given.shape != expected.shape:
            self.wrong += expected.size
            self.first = self.first or ((), 0, 0)
        elif not np.array_equal(given, expected):
            far = np.abs(given.astype(np.int64) - expected)
            index = tuple(int(i) for i in np.argwhere(far)[0])
            self.wrong += int(np.count_nonzero(far))
            self.largest = max(self.largest, int(far.max()))
            self.first = self.first or (index, int(given[index]), int(expected[index]))

    def __str__(self) -> str:
        index, given, expected = self.first or ((), 0, 0)
        where = f"{list(index)} is {given}, expected {expected}" if index else "another dtype or shape"
        return f"{self.node}: {self.wrong} of {self.elements} elements differ, {where}"


@dataclass(frozen=True)
class Found:
    """What one runtime gave for all images.

    runtime   "onnxruntime", "onnxruntime, not optimized" or "onnx.reference"
    images    that it was given
    compared  nodes
    differ    nodes with differences, in execution order
    pixels    whose labels were compared; images of a classifier
    labels    that differ
    seconds   of one image, the fastest
    example   the image and the nodes' values, expected and found, of the first image that differs
    """

    runtime: str
    images: int
    compared: int
    differ: tuple[Difference, ...]
    pixels: int
    labels: int
    seconds: float
    example: tuple[Mapping[str, Array], Mapping[str, Array]] | None


def _onnxruntime(optimize: bool) -> Callable[[onnx.ModelProto], Run]:
    def start(made: onnx.ModelProto) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda image: dict(zip(names, session.run(names, {"image": image}), strict=True))

    return start


def _reference(made: onnx.ModelProto) -> Run:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(made)
    return lambda image: dict(zip(evaluator.output_names, evaluator.run(None, {"image": image}), strict=True))


RUNTIMES: dict[str, Callable[[onnx.ModelProto], Run]] = {
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
    calls = {name for node in made.graph.node for name in node.output}
    missing = [node.name for node in graph.nodes if node.name not in calls]
    if "tensors_sha256" not in facts:
        raise InputError(f"{path}: not written by intseg export; export the model again")
    if facts["tensors_sha256"] != store.tensors_sha256(graph.tensors) or missing:
        raise InputError(f"{path}: exported from other weights than -w; give the model that it was made of")


def form(made: onnx.ModelProto) -> str:
    """That an export says it has."""
    return next((entry.value for entry in made.metadata_props if entry.key == "form"), "exact")


def installed(say: Callable[[str], None]) -> list[str]:
    """The runtimes that can be used here; says which cannot."""
    if importlib.util.find_spec("onnxruntime") is not None:
        return list(RUNTIMES)
    say("note: onnxruntime is not installed, only ONNX's own evaluator is compared: pip install 'intseg[onnx]'")
    return ["onnx.reference"]


def compare(
    made: onnx.ModelProto,
    graph: Graph,
    images: Sequence[Array],
    runtimes: Sequence[str] = tuple(RUNTIMES),
    seconds: float = SLOW_SECONDS,
) -> list[Found]:
    """Every node of every image in every runtime. Each image is one window, uint8 [H, W, 3].

    seconds  processor time after which the reference evaluator gets no more images
    """
    whole = onnx_model.with_every_node(made, graph)
    comparisons = [_Comparison(graph, runtime, _started(runtime, whole)) for runtime in runtimes]
    for image in images:
        wanted = expected_values(graph, image)
        for one in comparisons:
            if one.runtime != "onnx.reference" or one.images < SLOW or one.processor <= seconds:
                one.add(image, wanted)
    return [one.found() for one in comparisons]


class _Comparison:
    """What one runtime gives, image after image."""

    def __init__(self, graph: Graph, runtime: str, run: Run) -> None:
        self.graph, self.runtime, self.run = graph, runtime, run
        self.nodes = {node.name: Difference(node.name) for node in graph.nodes}
        self.images = self.pixels = self.labels = 0
        self.fastest, self.processor = math.inf, 0.0
        self.example: tuple[Mapping[str, Array], Mapping[str, Array]] | None = None

    def add(self, image: Array, wanted: Mapping[str, Array]) -> None:
        """Run one image, whose nodes have these values."""
        start, used = time.perf_counter(), time.process_time()
        values = self.run(image)
        self.fastest = min(self.fastest, time.perf_counter() - start)
        self.processor += time.process_time() - used
        self.images += 1
        for name, expected in wanted.items():
            self.nodes[name].add(values[name], expected)
        if self.example is None and any(node.wrong for node in self.nodes.values()):
            self.example = {IMAGE: image, **wanted}, values
        info, output = self.graph.info, self.graph.output
        self.pixels += 1 if info.classifies else image.shape[0] * image.shape[1]
        self.labels += _labels_that_differ(values[output], wanted[output], info)

    def found(self) -> Found:
        """All of it."""
        differ = tuple(node for node in self.nodes.values() if node.wrong)
        count = len(self.nodes)
        return Found(self.runtime, self.images, count, differ, self.pixels, self.labels, self.fastest, self.example)


def explained(model: api.Model, expected: Mapping[str, Array], found: Mapping[str, Array]) -> diff.Report:
    """What `intseg diff` says of a window: the first wrong bit and its cause."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "window.safetensors")
        save_file({f"window0.{name}": np.ascontiguousarray(x) for name, x in expected.items()}, path)
        other = sides.Arrays({f"window0.{name}": x for name, x in found.items()})
        return diff.compare(trace.Trace(trace.TensorFile(path), model), other, diff.Settings(partial=True))


def _started(runtime: str, made: onnx.ModelProto) -> Run:
    """A runtime with a model; what it raises is one line."""

    def refused(error: Exception) -> InputError:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return InputError(f"{runtime} cannot run it ({reason}); write it with intseg export")

    def run(image: Array) -> Mapping[str, Array]:
        try:
            return started(image)
        except Exception as error:  # every runtime has its own
            raise refused(error) from None

    try:
        started = RUNTIMES[runtime](made)
    except Exception as error:
        raise refused(error) from None
    return run


def _labels_that_differ(given: Array, expected: Array, info: ModelInfo) -> int:
    if info.classifies:
        return int(given.shape != expected.shape or given.argmax() != expected.argmax())
    if given.shape != expected.shape or np.array_equal(given, expected):
        return 0 if given.shape == expected.shape else info.window[0] * info.window[1]
    found = [class_map(scores, info.upsample, info.patch, *info.window) for scores in (given, expected)]
    return int(np.count_nonzero(found[0] != found[1]))


def expected_values(graph: Graph, image: Array) -> dict[str, Array]:
    """The engine's value of every node."""
    found: dict[str, Array] = {}
    executor.execute(graph, image, backends.table("auto"), lambda node, value: found.__setitem__(node.name, value))
    return found
