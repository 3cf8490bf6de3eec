"""The graph as data: frozen dataclasses, and `validate`, which refuses whatever could not run exactly.

A graph is straight-line code: nodes in execution order, each with one output. A node's inputs name the image,
an earlier node, or a constant tensor; its parameters name tensors by role (SPEC.md, section 5).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg.errors import ModelError
from intseg.ops import MAX_DIM, OPS, Array, Attr, Op, Value

IMAGE = "image"
"""Name of the graph input: uint8 [H, W, 3]."""

UPSAMPLES = ("nearest", "bilinear")
MERGES = ("grid", "pixel")
TASKS = ("segmentation", "classification")
MAX_WORKING = 16_384
"""Pixels of the long side that an image may be brought to: with it the memory of a run is bounded for every image."""

PACKED_BITS = range(2, 9)
"""Of an element of a packed tensor (SPEC 6.1)."""

MAX_CLASSES = MAX_DIM
MAX_NODES = 4096
MAX_ELEMENTS = 2**30
"""Elements of a node's output: a valid graph may ask for 2^48, which no machine holds."""

MAX_WORK = 2**44
"""Elements of all outputs of a window, those of linear and matmul times their inner size: some hours, not years."""

MAX_TEXT = 1000
MAX_SOURCE = 100_000
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")


@dataclass(frozen=True)
class Node:
    """One operation.

    name    unique; Segmenter's own names, e.g. "encoder.blocks.0.attn.qkv"
    op      key of `intseg.ops.OPS`
    inputs  names of the image, earlier nodes or constant tensors
    params  role -> tensor name
    attrs   attribute -> integer or string
    dtype, shape   of the output; the loader infers both and refuses a file that says otherwise
    scale   name of an int32 tensor [3, ...] (mult, offset, shift) broadcast over the output:
            real = (q * mult + offset) * 2^-shift. It explains values; no arithmetic uses it.
            None for the ops that only move values: these mean what their input means
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    params: Mapping[str, str]
    attrs: Mapping[str, Attr]
    dtype: str
    shape: tuple[int, ...]
    scale: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What the arithmetic does not need but a user does, and how windows make an image.

    name      of the model
    recipe    of the exporter: "i-vit", "paper", "intseg" or another word
    classes   class names, in the order of the scores
    palette   (red, green, blue) per class, 0..255
    window    (height, width) of the graph input in pixels, multiples of patch
    stride    (rows, columns) between windows in pixels, multiples of patch, at least half the window
    patch     side of a patch in pixels: scores have one cell per patch
    pad       (red, green, blue) of the pixels added at the right and bottom
    upsample  "nearest" or "bilinear"
    source    free text: where the weights came from
    merge     "grid": windows lie on the patch grid and are summed there; "pixel": they lie at any pixel and are summed
              in pixels, each upsampled by itself
    working_size   (short, long): images are brought to a short side of `short` pixels, or to a long one of `long` where
              it would be above; None: windows are cut from the image as it is
    task      "segmentation": every pixel has a class; "classification": the image has one, seen through one window in
              its middle (SPEC.md, 7.4)
    """

    name: str
    recipe: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    window: tuple[int, int]
    stride: tuple[int, int]
    patch: int
    pad: tuple[int, int, int]
    upsample: str
    source: str = ""
    merge: str = "grid"
    working_size: tuple[int, int] | None = None
    task: str = "segmentation"

    @property
    def classifies(self) -> bool:
        """Whether an image has one class, not one for every pixel."""
        return self.task == "classification"


@dataclass(frozen=True)
class Graph:
    """A model: nodes in order, tensors by name, the name of the node that gives the scores.

    Scores are int8 or int16 [h, w, classes], those of a classifier int32 [classes]: its logits.

    packed  bits of an element, 2 to 8, of the INT8 tensors that the file holds packed (SPEC 6.1)
    """

    nodes: tuple[Node, ...]
    tensors: Mapping[str, NDArray[Any]]
    output: str
    info: ModelInfo
    packed: Mapping[str, int] = field(default_factory=dict)
    last_use: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        last = {name: i for i, node in enumerate(self.nodes) for name in (*node.inputs, node.name)}
        object.__setattr__(self, "last_use", last | {self.output: len(self.nodes)})

    def node(self, name: str) -> Node:
        """The node of this name; KeyError if there is none."""
        return next(node for node in self.nodes if node.name == name)

    def arguments(self, node: Node, values: Mapping[str, Array]) -> tuple[list[Array], dict[str, Array]]:
        """Positional inputs and parameters of a node, given the values of the image and of earlier nodes."""
        inputs = [values[name] if name in values else self.tensors[name] for name in node.inputs]
        return inputs, {role: self.tensors[name] for role, name in node.params.items()}


def types(graph: Graph) -> dict[str, str]:
    """What image, tensors and nodes hold, by name: a dtype, or int2 to int7 where INT8 has fewer bits.

    Of a node that is what its `out` says, of a table the narrowest that holds it, of an op that only moves values the
    widest of its inputs.
    """
    found = {name: tensor.dtype.name for name, tensor in graph.tensors.items()}
    found |= {name: f"int{bits}" for name, bits in graph.packed.items()}
    found[IMAGE] = "uint8"
    for node in graph.nodes:
        table = node.params.get("table")
        if OPS[node.op].moves:
            widest = max((found[name] for name in node.inputs), key=bits_of)
            found[node.name] = widest if bits_of(widest) > 3 else "int4"
        elif table is not None and node.dtype == graph.tensors[table].dtype.name:
            low, high = int(graph.tensors[table].min()), int(graph.tensors[table].max())
            found[node.name] = f"int{max(4, max(high, ~low).bit_length() + 1)}"
        else:
            found[node.name] = str(node.attrs.get("out", node.dtype))
    return found


def bits_of(kind: str) -> int:
    """Of an element of a type."""
    return int(kind.lstrip("uint"))


def validate(graph: Graph) -> None:
    """Refuse a graph that is not well formed or whose arithmetic is not proved to stay in range.

    Raises ModelError naming the node, what was found and what was expected.
    """
    validate_info(graph.info)
    for name, bits in graph.packed.items():
        _validate_packed(name, bits, _tensor(name, graph.tensors))
    height, width = graph.info.window
    values = {IMAGE: Value("uint8", (height, width, 3))}
    used: set[str] = set()
    if len(graph.nodes) > MAX_NODES:
        raise ModelError(f"{len(graph.nodes)} nodes, expected at most {MAX_NODES}")
    work = 0
    for node in graph.nodes:
        try:
            values[node.name] = _infer(node, graph.tensors, values)
            work += _work(node, graph.tensors, values)
            if work > MAX_WORK:
                raise ModelError(f"a window takes {work} operations up to here, expected at most 2^44")
        except ModelError as error:
            raise ModelError(f"node {node.name!r} ({node.op}): {error}") from None
        used.update(node.inputs, node.params.values(), [node.scale] if node.scale else [])
    unused = sorted(set(graph.tensors) - used)
    if unused:
        raise ModelError(f"tensor {unused[0]!r} is used by no node ({len(unused)} such); export the model again")
    _validate_output(graph, values)


def _infer(node: Node, tensors: Mapping[str, Array], values: Mapping[str, Value]) -> Value:
    """The Value of a node's output, after every check of its op; ModelError without the node's name."""
    if node.op not in OPS:
        raise ModelError(f"unknown op, this version of intseg has: {', '.join(OPS)}")
    op = OPS[node.op]
    if node.name in values or node.name in tensors or node.name == IMAGE:
        raise ModelError("name is taken already, expected unique names")
    _require_keys("input", len(node.inputs), len(op.inputs))
    inputs = [_input_value(name, tensors, values) for name in node.inputs]
    _require_names("parameter", node.params, op.params)
    params = {role: _tensor(name, tensors) for role, name in node.params.items()}
    value = check_call(op, node.inputs, inputs, params, node.attrs)
    if (node.dtype, tuple(node.shape)) != (value.dtype, value.shape):
        raise ModelError(
            f"declares {node.dtype} {list(node.shape)}, but its op gives {value.dtype} {list(value.shape)}"
        )
    if node.scale is not None:
        _validate_scale(_tensor(node.scale, tensors), value.shape)
    return value


def check_call(
    op: Op, names: Sequence[str], inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, object]
) -> Value:
    """What an op gives for operands of unknown origin, whatever they are; an op may run on what passes.

    names  of the inputs, for messages
    Raises ModelError.
    """
    for i, (value, allowed) in enumerate(zip(inputs, op.inputs, strict=True)):
        if value.dtype not in allowed:
            raise ModelError(f"input {i} ({names[i]}) is {value.dtype}, expected {' or '.join(allowed)}")
        if not value.shape or not all(1 <= n <= MAX_DIM for n in value.shape):
            raise ModelError(f"input {i} ({names[i]}) has shape {list(value.shape)}, expected axes of 1 to {MAX_DIM}")
    _require_names("parameter", params, op.params)
    for role, array in params.items():
        if array.dtype.name != op.params[role]:
            raise ModelError(f"parameter {role} is {array.dtype.name}, expected {op.params[role]}")
        if 0 in array.shape:
            raise ModelError(f"parameter {role} has shape {list(array.shape)}, expected at least 1 element an axis")
    _require_names("attribute", {**dict.fromkeys(op.optional), **attrs}, op.attrs)
    known: dict[str, Attr] = {}
    for name, attr in attrs.items():
        choice = op.attrs[name]
        # The exact type first: looking for anything but an int in a range takes a step per element.
        if type(attr) is not (int if isinstance(choice, range) else str) or attr not in choice:
            raise ModelError(f"attribute {name} is {attr!r:.80}, expected {_allowed(choice)}")
        known[name] = attr
    value = op.check(inputs, params, known)
    if math.prod(value.shape) > MAX_ELEMENTS:
        raise ModelError(f"gives {value.dtype} {list(value.shape)}, expected at most 2^30 elements")
    return value


def _work(node: Node, tensors: Mapping[str, Array], values: Mapping[str, Value]) -> int:
    """Operations of a node, roughly: products where it multiplies matrices, else elements of its output."""
    depth = _input_value(node.inputs[0], tensors, values).shape[-1] if OPS[node.op].multiplies else 1
    return depth * math.prod(values[node.name].shape)


def _allowed(choice: range | tuple[str, ...]) -> str:
    return f"an integer in [{choice[0]}, {choice[-1]}]" if isinstance(choice, range) else " or ".join(choice)


def _require_keys(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise ModelError(f"has {found} {what}s, expected {expected}")


def _require_names(what: str, found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing:
        raise ModelError(f"lacks {what} {missing[0]!r}")
    if extra:
        raise ModelError(f"has unknown {what} {extra[0]!r}, expected {', '.join(expected) or 'none'}")


def _tensor(name: str, tensors: Mapping[str, Array]) -> Array:
    if name not in tensors:
        raise ModelError(f"names tensor {name!r}, which the file does not hold")
    return tensors[name]


def _input_value(name: str, tensors: Mapping[str, Array], values: Mapping[str, Value]) -> Value:
    if name in values:
        return values[name]
    if name not in tensors:
        raise ModelError(f"input {name!r} is neither an earlier node nor a tensor")
    return Value(tensors[name].dtype.name, tensors[name].shape)


def _validate_packed(name: str, bits: int, tensor: Array) -> None:
    if type(bits) is not int or bits not in PACKED_BITS:
        raise ModelError(f"tensor {name!r} is packed in {bits!r:.80} bits, expected 2 to 8")
    low, high = (int(tensor.min()), int(tensor.max())) if tensor.size else (0, 0)
    most = 2 ** (bits - 1) - 1
    if tensor.dtype != np.int8 or low < -most - 1 or high > most:
        raise ModelError(
            f"tensor {name!r} is {tensor.dtype.name} in [{low}, {high}], expected int8 in [{-most - 1}, {most}] for "
            f"{bits} bits; give it more, or quantize it for these"
        )


def _validate_scale(scale: Array, shape: tuple[int, ...]) -> None:
    fits = scale.dtype == np.int32 and scale.ndim == len(shape) + 1 and scale.shape[0] == 3
    if not fits or any(n not in (1, m) for n, m in zip(scale.shape[1:], shape, strict=True)):
        raise ModelError(
            f"scale is {scale.dtype.name} {list(scale.shape)}, expected int32 [3, ...] that broadcasts to {list(shape)}"
        )


def _validate_output(graph: Graph, values: Mapping[str, Value]) -> None:
    if graph.output not in values:
        raise ModelError(f"output {graph.output!r} is not a node")
    info, found = graph.info, values[graph.output]
    dtypes: tuple[str, ...] = ("int8", "int16")
    expected: tuple[int, ...] = (info.window[0] // info.patch, info.window[1] // info.patch, len(info.classes))
    if info.classifies:
        dtypes, expected = ("int32",), (len(info.classes),)
    if found.dtype not in dtypes or found.shape != expected:
        raise ModelError(
            f"output {graph.output!r} is {found.dtype} {list(found.shape)}, expected {' or '.join(dtypes)} "
            f"{list(expected)} for {info.task}"
        )


def _info_problems(info: ModelInfo) -> Iterator[str]:
    if not 1 <= len(info.classes) <= MAX_CLASSES:
        yield f"{len(info.classes)} classes, expected 1 to {MAX_CLASSES}"
    if len(set(info.classes)) != len(info.classes):
        last = {name: i for i, name in enumerate(info.classes)}
        first = next(i for i, name in enumerate(info.classes) if last[name] != i)
        name = info.classes[first]
        yield f"classes {first} and {last[name]} are both {name[:40]!r}, expected unique names"
    if len(info.palette) != len(info.classes):
        yield f"palette has {len(info.palette)} colours for {len(info.classes)} classes"
    named = [*((f"colour {i} of the palette", colour) for i, colour in enumerate(info.palette)), ("pad", info.pad)]
    for what, colour in named:
        if len(colour) != 3 or any(not 0 <= v <= 255 for v in colour):
            yield f"{what} is {list(colour)!r:.80}, expected three integers in [0, 255]"
    if not 1 <= info.patch <= 64:
        yield f"patch is {info.patch}, expected 1 to 64"
    elif any(n < info.patch or n % info.patch for n in (*info.window, *(info.stride if info.merge == "grid" else ()))):
        yield f"window {info.window} and stride {info.stride} must be multiples of the patch size {info.patch}"
    elif any(s > w or 2 * s < w for s, w in zip(info.stride, info.window, strict=True)):
        yield f"stride {info.stride} must lie between half the window and the window {info.window}"
    elif info.window[0] // info.patch * (info.window[1] // info.patch) > MAX_DIM:
        yield f"window {info.window} has more than {MAX_DIM} patches"
    texts = [(info.source, MAX_SOURCE), *((text, MAX_TEXT) for text in (info.name, info.recipe, *info.classes))]
    for text, longest in texts:
        if len(text) > longest:
            yield f"text of {len(text)} characters ({text[:40]!r}...), expected at most {longest}"
        if _SURROGATE.search(text):
            yield f"text {text[:80]!r} has half a surrogate pair, expected Unicode text"
        if _CONTROL.search(text):
            yield f"text {text[:80]!r} has a control character, expected one line of text"
    if info.upsample not in UPSAMPLES:
        yield f"upsample is {info.upsample!r}, expected {' or '.join(UPSAMPLES)}"
    if info.merge not in MERGES:
        yield f"merge is {info.merge!r}, expected {' or '.join(MERGES)}"
    if info.task not in TASKS:
        yield f"task is {info.task!r}, expected {' or '.join(TASKS)}"
    elif info.classifies and (info.stride, info.upsample, info.merge) != (info.window, "nearest", "grid"):
        found = f"stride {info.stride}, upsample {info.upsample}, merge {info.merge}"
        yield f"a classifier has {found}, expected its window {info.window}, nearest, grid: it labels no pixels"
    if info.working_size is not None:
        short, long = info.working_size
        if not min(info.window) <= short <= long <= MAX_WORKING:
            yield f"working size {info.working_size}, expected {min(info.window)} <= short <= long <= {MAX_WORKING}"


def validate_info(info: ModelInfo) -> None:
    """Refuse information about a model that makes no sense. Raises ModelError."""
    for problem in _info_problems(info):
        raise ModelError(f"model: {problem}")
