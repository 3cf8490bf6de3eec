"""A conformance pack: inputs, expected results and a description by which any implementation can test itself.

Three parts. *Op cases* call every op of SPEC.md section 4 and the steps of section 7; they are the same for every
model and reach every branch that `coverage` lists. *Images* are corner cases for one model: sizes around
the window, flat and alternating pixels. `runner.json` says how to read them and what to do. All of it is integers, and
the same model gives the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from intseg import api, backends, store
from intseg._version import __version__
from intseg.conformance import coverage
from intseg.errors import InputError, MismatchError
from intseg.exam import EXAMS, Numbers
from intseg.executor import execute
from intseg.files import create, new_folder
from intseg.graph import ModelInfo, Node
from intseg.ops import Array, Attr, Call, Run
from intseg.windows import GEOMETRY, STEPS, cut_windows, info_of, merge_scores, run_step, step, tile, working_size

FORMAT = 1
KEY = "intseg"


def op_cases() -> dict[str, list[Call]]:
    """Every op case of a pack, by op: the ops of section 4 in its order, then the steps of section 7."""
    return {op: exam.calls() for op, exam in EXAMS.items()}


# ------------------------------------------------------------------------------------------------------- running


def section7(backend: str) -> dict[str, Run]:
    """The steps around the graph, as ops."""

    def class_map(x: Array, *, upsample: str, patch: int, height: int, width: int) -> Array:
        return backends.class_map(x, upsample, patch, height, width, backend, 1)

    def pixel_map(x: Array, *, height: int, width: int, **attrs: Attr) -> Array:
        info = info_of(attrs, x.shape[-1])
        return backends.labels(merge_scores(list(x), tile(info, height, width), info), info, height, width, backend, 1)

    def resize(x: Array, *, height: int, width: int) -> Array:
        return backends.resize(x, height, width, backend, 1)

    steps: dict[str, Run] = {name: lambda x, step=name, **attrs: run_step(step, x, attrs) for name in STEPS}
    return steps | {"class_map": class_map, "pixel_map": pixel_map, "resize": resize}


def table(backend: str) -> dict[str, Run]:
    """The op table of a backend with the steps of section 7."""
    return {**backends.table(backend), **section7(backend)}


def run_call(call: Call, ops: Mapping[str, Run]) -> Array:
    """The result of a call."""
    return np.ascontiguousarray(ops[call.op](*call.inputs, **call.params, **call.attrs))


def array_sha256(array: Array) -> str:
    """sha256 of the line "dtype [extents]" and of the little-endian bytes in C order."""
    digest = hashlib.sha256(f"{array.dtype.name} {list(array.shape)}\n".encode())
    digest.update(store.little(array).tobytes())
    return digest.hexdigest()


class Digest:
    """One sha256 over named results, in the order in which they come."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, name: str, sha256: str) -> None:
        """A result, by the sha256 of its array."""
        self._sha256.update(f"{name} {sha256}\n".encode())

    def __str__(self) -> str:
        return self._sha256.hexdigest()


# -------------------------------------------------------------------------------------------------------- images


def corner_images(info: ModelInfo) -> dict[str, Array]:
    """Images uint8 [H, W, 3] around the sizes and the contents where implementations break."""
    height, width = info.window
    numbers = Numbers(7)
    checker = np.zeros((height, width, 3), np.uint8)
    checker[::2, ::2], checker[1::2, 1::2] = 255, 255
    impulse = np.zeros((height, width, 3), np.uint8)
    impulse[height // 2, width // 2] = (255, 128, 1)
    tall, wide = height + info.patch + 1, width + info.stride[1] + info.patch + 1
    return {
        "black": np.zeros((height, width, 3), np.uint8),
        "white": np.full((height, width, 3), 255, np.uint8),
        "checker": checker,
        "impulse": impulse,
        "noise": numbers.array("uint8", height, width, 3),
        "pixel": np.full((1, 1, 3), (255, 0, 128), np.uint8),
        "smaller": _ramp(max(height - info.patch - 3, 1), max(width // 2 - 1, 1)),
        "overlap": _ramp(tall, wide),
    }


def _ramp(height: int, width: int) -> Array:
    """Three different gradients with a grid of steps."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, (x * 7 + y * 3) % 256, y * 255 // height], axis=-1).astype(np.uint8)


@dataclass(frozen=True)
class ImageResult:
    """What an image gives.

    tensors  image, corners of the windows, window{i}.scores, merged scores, labels
    nodes    sha256 of the output of every node of window 0
    reached  (node, branches) of window 0, and of the steps of section 7
    """

    tensors: dict[str, Array]
    nodes: dict[str, str]
    reached: list[tuple[str, coverage.Found]]


def run_image(model: api.Model, rgb: Array, backend: str, with_coverage: bool) -> ImageResult:
    """Run an image, keeping what a conformance pack says about it."""
    info, forward = model.info, model.compiled(backend, 1)
    cut = list(cut_windows(rgb, info))
    scores = [np.ascontiguousarray(forward(window)) for _, window in cut]
    merged = merge_scores(scores, tile(info, *rgb.shape[:2]), info)
    height, width, _ = rgb.shape
    labels = backends.labels(merged, info, height, width, backend, 1)
    tensors = {"image": rgb, "corners": np.array([corner for corner, _ in cut], np.int32)}
    tensors |= {f"window{i}.scores": score for i, score in enumerate(scores)}
    tensors |= {"merged": merged, "labels": labels}
    nodes, reached = trace_window(model, cut[0][1], backend, with_coverage)
    if with_coverage:
        reached += _section7_reached(info, tensors)
    return ImageResult(tensors, nodes, reached)


def trace_window(
    model: api.Model, window: Array, backend: str, with_coverage: bool = False
) -> tuple[dict[str, str], list[tuple[str, coverage.Found]]]:
    """sha256 of every node's output, and the branches that every node reaches, if asked for."""
    graph, values = model.graph, {"image": window}
    nodes: dict[str, str] = {}
    reached: list[tuple[str, coverage.Found]] = []

    def on_node(node: Node, value: Array) -> None:
        nodes[node.name] = array_sha256(value)
        if with_coverage:
            inputs, params = graph.arguments(node, values)
            reached.append((node.name, coverage.branches(Call(node.op, tuple(inputs), params, node.attrs))))
            values[node.name] = value
            for name in {*node.inputs} & {*values}:
                if graph.last_use[name] < len(nodes):
                    del values[name]

    execute(graph, window, backends.table(backend), on_node)
    return nodes, reached


def _section7_reached(info: ModelInfo, tensors: Mapping[str, Array]) -> list[tuple[str, coverage.Found]]:
    height, width, _ = tensors["image"].shape
    working = working_size(info, height, width)
    window: dict[str, Attr] = dict(zip(GEOMETRY, (*info.window, *info.stride, info.patch), strict=True))
    size: dict[str, Attr] = {"height": height, "width": width}
    own = working == (height, width)
    at: dict[str, Attr] = {"height": working[0], "width": working[1]}
    image = run_step("resize", tensors["image"], at)
    calls = [] if own else [Call("resize", (tensors["image"],), {}, at)]
    if info.classifies:
        pads = dict(zip(STEPS["center_crop"][0][2:], info.pad, strict=True))
        sizes = {"window_height": info.window[0], "window_width": info.window[1]}
        calls.append(Call("center_crop", (image,), {}, {**sizes, **pads}))
        return [(call.op, coverage.branches(call)) for call in calls]
    calls.append(Call("cut_windows", (image,), {}, window | {"patch": step(info)}))
    if info.merge == "pixel":
        short, long = info.working_size or (0, 0)
        attrs = window | size | {"upsample": info.upsample, "short": short, "long": long}
        calls.append(Call("pixel_map", (tensors["merged"],), {}, attrs))
    else:
        calls.append(Call("merge_scores", (tensors["window0.scores"],), {}, window | at))
        if own:
            attrs = size | {"patch": info.patch, "upsample": info.upsample}
            calls.append(Call("class_map", (tensors["merged"],), {}, attrs))
    return [(call.op, coverage.branches(call)) for call in calls]


# ---------------------------------------------------------------------------------------------------------- pack

_HOW = (
    "All tensors are integers in safetensors files: little-endian, C order. SPEC.md is the definition.",
    "Op cases: ops/OP.safetensors holds case{i}.in{j}, case{i}.param.{role}, case{i}.expected; the attributes of case "
    "i are entry i of attrs in the JSON text under the metadata key intseg. Run OP and compare dtype, shape and every "
    "element with expected. Comparison is equality, without tolerance.",
    "resize, cut_windows, merge_scores and class_map are steps 0, 1 and 2, 3, 4 and 5 of SPEC.md section 7; pixel_map "
    "is 3 to 5 where merge is pixel, short and long (0: none) the working size; center_crop is steps 1 and 2 of "
    "section 7.4; windows are stacked.",
    "Images: load the model, run images/NAME.safetensors: image is uint8 [H, W, 3]; corners are (top, left) of the "
    "windows, window{i}.scores their scores, merged their sum, labels the class map; of a classifier merged is its "
    "logits, labels its class. Compare as above.",
    "nodes of an image gives, for every node of window 0, the sha256 of the line 'dtype [d0, d1, ...]' with a line "
    "feed (extents joined by comma and space) followed by the tensor's little-endian bytes.",
    "digest is the sha256 over the lines 'ops/OP/{i} SHA' of the op cases in the order of ops, then for every image, "
    "in order, 'images/NAME/{tensor} SHA' of its tensors but image in the order of names (by code point), and "
    "'images/NAME/nodes/{node} SHA' in execution order; each line ends in a line feed, SHA as for nodes.",
)


@dataclass(frozen=True)
class Pack:
    """A conformance pack in memory.

    files     bytes by path inside the pack
    coverage  one entry a branch, as `coverage.report` gives it
    digest    of all expected results
    """

    files: dict[str, bytes]
    coverage: list[dict[str, Any]]
    digest: str

    @property
    def unreached(self) -> list[str]:
        """Names of the branches that nothing in the pack reaches."""
        return [entry["name"] for entry in self.coverage if not entry["count"]]


def make_pack(model: api.Model, backend: str = "numpy", say: Callable[[str], None] = lambda line: None) -> Pack:
    """A conformance pack for a model: the same bytes for the same model, on every backend.

    Raises MismatchError naming the branches of SPEC.md that nothing in the pack reaches.
    """
    digest = Digest()
    found: list[tuple[str, coverage.Found]] = []
    files = {"model.safetensors": store.dumps(model.graph)}
    cases = op_cases()
    for op, calls in cases.items():
        say(f"{op}: {len(calls)} case{'s' * (len(calls) != 1)}")
        files[f"ops/{op}.safetensors"] = _op_file(op, calls, table(backend), digest)
        found += [(f"ops/{op}/{i}", coverage.branches(call)) for i, call in enumerate(calls)]
    images = []
    for name, rgb in corner_images(model.info).items():
        say(f"image {name}: {rgb.shape[0]} x {rgb.shape[1]}")
        result = run_image(model, rgb, backend, with_coverage=True)
        found += [(f"images/{name}/{node}", names) for node, names in result.reached]
        files[f"images/{name}.safetensors"] = safetensors.numpy.save(
            {k: store.little(v) for k, v in sorted(result.tensors.items())}
        )
        add_image(digest, name, result)
        images.append({"name": name, "file": f"images/{name}.safetensors", "nodes": result.nodes})
    rows = list(coverage.report(found))
    files["coverage.json"] = _json({"branches": rows})
    files["runner.json"] = _json(_runner(model, files, cases, images, str(digest)))
    pack = Pack(files, rows, str(digest))
    if pack.unreached:
        raise MismatchError(f"{len(pack.unreached)} branches of SPEC.md are not reached: {', '.join(pack.unreached)}")
    return pack


def add_image(digest: Digest, name: str, result: ImageResult) -> None:
    """Add an image's results in the order that runner.json states."""
    for key in sorted(set(result.tensors) - {"image"}):
        digest.add(f"images/{name}/{key}", array_sha256(result.tensors[key]))
    for node, sha256 in result.nodes.items():
        digest.add(f"images/{name}/nodes/{node}", sha256)


def _op_file(op: str, calls: Iterable[Call], ops: Mapping[str, Run], digest: Digest) -> bytes:
    """A file of op cases, in the format of golden/ops."""
    tensors: dict[str, Array] = {}
    attrs = []
    for i, call in enumerate(calls):
        expected = run_call(call, ops)
        tensors |= {f"case{i}.in{j}": x for j, x in enumerate(call.inputs)}
        tensors |= {f"case{i}.param.{role}": x for role, x in call.params.items()}
        tensors[f"case{i}.expected"] = expected
        attrs.append(dict(call.attrs))
        digest.add(f"ops/{op}/{i}", array_sha256(expected))
    text = json.dumps({"attrs": attrs, "op": op}, sort_keys=True, separators=(",", ":"))
    contiguous = {name: store.little(array) for name, array in sorted(tensors.items())}
    data: bytes = safetensors.numpy.save(contiguous, metadata={KEY: text})
    return data


def _runner(
    model: api.Model, files: Mapping[str, bytes], cases: Mapping[str, list[Call]], images: list[Any], digest: str
) -> dict[str, Any]:
    info = model.info
    return {
        "format": FORMAT,
        "kind": "intseg conformance pack",
        "intseg": __version__,
        "how": list(_HOW),
        "model": {"file": "model.safetensors", "name": info.name, "recipe": info.recipe},
        "ops": [{"op": op, "file": f"ops/{op}.safetensors", "cases": len(calls)} for op, calls in cases.items()],
        "images": images,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
        "digest": digest,
    }


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def write_pack(pack: Pack, folder: str | os.PathLike[str]) -> None:
    """Write a pack to a new or empty folder, whole or not at all. Raises InputError."""
    target = Path(folder)
    require_new(target)
    with new_folder(target) as made:
        for name, data in pack.files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            with create(made / name) as file:
                file.write(data)


def require_new(target: Path) -> None:
    """A folder that does not exist, or is empty, in a folder that exists. Raises InputError."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(f"{target}: exists, expected a new or empty folder; choose another with -o")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target}: no folder {target.parent}; create it, or choose another with -o")


def summary(pack: Pack) -> dict[str, Any]:
    """What a pack holds, in numbers."""
    runner = json.loads(pack.files["runner.json"])
    return {
        "digest": pack.digest,
        "cases": sum(entry["cases"] for entry in runner["ops"]),
        "images": len(runner["images"]),
        "bytes": sum(map(len, pack.files.values())),
        "branches": len(pack.coverage),
        "reached": len(pack.coverage) - len(pack.unreached),
        "by_model": sum(bool(entry["images"]) for entry in pack.coverage),
        "files": len(pack.files),
    }
