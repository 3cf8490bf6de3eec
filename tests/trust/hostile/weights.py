"""Weights files. What is accepted is run on two backends."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from hostile.graphs import graphs
from hostile.kind import Disagreement, Files, Kind
from hostile.spoil import INTEGERS, copied, joined, sealed, split, spoil, spoil_header, spoil_json, spoil_tensor, text
from intseg import backends, store
from intseg.executor import execute
from intseg.graph import IMAGE, Graph
from intseg.ops import OPS, Array, Value

MODEL = "model.safetensors"
RUN_ELEMENTS = 2**20
"""Accepted graphs with more elements or products than this in one window are not run: they may take minutes."""


class Weights(Kind):
    """Weights: header bytes, header, metadata, graph, tensors. What is accepted is run on two backends."""

    name, weight, bases = "weights", 36, 12
    stages = (("validate", "graph validation"), ("_check_header", "header"), ("loads", "metadata"))

    def build(self, base: int, steps: Sequence[int]) -> Files:
        document, tensors = _document(base)
        header, body = None, b""
        late: list[Random] = []
        for seed in steps:
            r = Random(seed)
            kind = r.random()
            if kind < 0.30:
                _spoil_node(document, r)
            elif kind < 0.42:
                document = spoil_json(document, r, _NAMES)
                if not isinstance(document, dict):
                    return {MODEL: joined({"__metadata__": {store.KEY: text(document)}}, b"")}
            elif kind < 0.50:
                _spoil_info(document, r)
            elif kind < 0.75:
                name = r.choice(list(tensors))
                tensors[name] = spoil_tensor(tensors[name], r)
            elif kind < 0.78:
                rename_tensors(tensors, r)
            else:
                late.append(r)
        r = Random(steps[0] if steps else 0)
        if steps and r.random() < 0.6:
            _declare(document, tensors)
        header, body = sealed(document, tensors, r)
        data: bytes | None = None
        for r in late:
            if data is None and r.random() < 0.4:
                changed = spoil_header(header, r)
                header, data = header, joined(changed, body) if not isinstance(changed, dict) else None
            else:
                data = spoil(joined(header, body) if data is None else data, r, 16)
        return {MODEL: joined(header, body) if data is None else data}

    def read(self, folder: Path, files: Files) -> str:
        graph = store.load(folder / MODEL)
        return run_everywhere(graph, len(files[MODEL]))


_NAMES = ("image", "scores", "head", "input", "patches", "cls", "pos", "int8", "int16", "int64", "uint8", *OPS)


def _document(base: int) -> tuple[dict[str, Any], dict[str, Array]]:
    written, tensors = _documents()[base]
    return json.loads(written), dict(tensors)


@functools.cache
def _documents() -> list[tuple[str, dict[str, Array]]]:
    found = []
    for graph in graphs():
        header, _ = split(store.dumps(graph))
        found.append((header["__metadata__"][store.KEY], dict(sorted(graph.tensors.items()))))
    return found


def _spoil_node(document: dict[str, Any], r: Random) -> None:
    """One change of a node that keeps it nearly right."""
    nodes = document.get("nodes")
    if not isinstance(nodes, list) or not nodes or not all(isinstance(node, dict) for node in nodes):
        return
    i = r.randrange(len(nodes))
    node = nodes[i]
    names = [str(other.get("name")) for other in nodes]
    kind = r.randrange(10)
    if kind < 4 and isinstance(node.get("attrs"), dict) and node["attrs"]:
        name = r.choice(list(node["attrs"]))
        op = OPS.get(str(node.get("op")))  # by now it may be anything
        choice = op.attrs.get(name, range(2)) if op else range(2)
        node["attrs"][name] = near(choice, r)
    elif kind == 4 and isinstance(node.get("inputs"), list) and node["inputs"]:
        node["inputs"][r.randrange(len(node["inputs"]))] = r.choice((*names, IMAGE, names[i], names[-1], "cls", "none"))
    elif kind == 5:
        node["name"] = r.choice((*names, IMAGE, "cls", "x" * 200, "x" * 201, "", "..", "a--b"))
    elif kind == 6:
        node["op"] = r.choice((*OPS, "conv", "", "a\nb"))
    elif kind == 7 and isinstance(node.get("shape"), list) and node["shape"]:
        node["shape"][r.randrange(len(node["shape"]))] = r.choice(INTEGERS)
    elif kind == 8:
        nodes.insert(r.randrange(len(nodes) + 1), copied(node) | {"name": r.choice((node.get("name"), f"n{i}"))})
    else:
        nodes[i], nodes[r.randrange(len(nodes))] = nodes[r.randrange(len(nodes))], node


def near(choice: range | tuple[str, ...], r: Random) -> int | str:
    """A value inside a range, at its ends, or just outside."""
    if isinstance(choice, tuple):
        return r.choice((*choice, "none"))
    ends = (choice[0], choice[-1], choice[0] - 1, choice[-1] + 1)
    return r.choice((*ends, r.choice(choice), r.choice(choice[:64]), r.choice(choice[:8])))


def _spoil_info(document: dict[str, Any], r: Random) -> None:
    info = document.get("info")
    if not isinstance(info, dict):
        return
    sizes = (0, 1, 2, 3, 4, 8, 12, 16, 64, 1024, 65535, 65536, 2**31, -4)
    patch = r.choice((1, 2, 4, 8, 64, 65))
    info |= r.choice(
        (
            {"window": [r.choice(sizes), r.choice(sizes)]},
            {"stride": [r.choice(sizes), r.choice(sizes)]},
            {"patch": patch},
            {"patch": patch, "window": [2 * patch] * 2, "stride": [patch] * 2},
            {"upsample": r.choice(("nearest", "bilinear", "cubic", ""))},
            {"classes": ["a"] * 3},
            {"classes": [f"c{i}" for i in range(70_000)] if r.random() < 0.02 else ["a\nb", "\x1b[2J", "x" * 2000]},
            {"palette": [[0, 0, 256]] * 3},
            {"pad": [-1, 0, 0]},
            {"name": r.choice(("\0", "\ud800", "x" * 5000, ""))},
        )
    )


def rename_tensors(tensors: dict[str, Array], r: Random) -> None:
    """Delete, rename, add, exchange."""
    name, other = r.choice(list(tensors)), r.choice(list(tensors))
    kind = r.randrange(4)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[r.choice(("x", "a b", "image", "scores", "x" * 201))] = tensors.pop(name)
    elif kind == 2:
        tensors[name], tensors[other] = tensors[other], tensors[name]
    else:
        tensors["spare"] = np.zeros(r.choice((0, 1, 5)), np.int8)


def _declare(document: dict[str, Any], tensors: Mapping[str, Array]) -> None:
    """Write what the ops give as dtypes and shapes of the nodes, as far as they can run: a change then goes deeper."""
    try:
        values = {IMAGE: Value("uint8", (*document["info"]["window"], 3))}
        for node in document["nodes"]:
            inputs = [values.get(n) or Value(tensors[n].dtype.name, tensors[n].shape) for n in node["inputs"]]
            params = {role: tensors[name] for role, name in node["params"].items()}
            value = OPS[node["op"]].check(inputs, params, node["attrs"])
            values[node["name"]] = value
            node["dtype"], node["shape"] = value.dtype, list(value.shape)
    except Exception:  # this is a mutation of what may be spoiled already: as far as it goes
        return


def work(graph: Graph) -> int:
    """Elements of all intermediates of a window, each counted as often as it is multiplied."""
    total = 0
    for node in graph.nodes:
        depth = 1
        if node.op in ("linear", "matmul"):
            shape = next((n.shape for n in graph.nodes if n.name == node.inputs[0]), None)
            depth = (shape if shape is not None else graph.tensors[node.inputs[0]].shape)[-1]
        total += math.prod(node.shape) * depth
    height, width = graph.info.window
    return total + height * width * (3 + len(graph.info.classes))


def run_everywhere(graph: Graph, seed: int) -> str:
    """Run an accepted graph on the NumPy and the numba backend, the compiled one too. Raises Disagreement."""
    if work(graph) > RUN_ELEMENTS:
        return "accepted, too large to run here"
    image = np.random.default_rng(seed).integers(0, 256, (*graph.info.window, 3), dtype=np.uint8)
    outputs: dict[str, list[Array]] = {}
    for name in ("numpy", "numba"):
        outputs[name] = []
        execute(graph, image, backends.table(name), lambda _, value, found=outputs[name]: found.append(value))
    for node, left, right in zip(graph.nodes, outputs["numpy"], outputs["numba"], strict=True):
        _require_equal(f"node {node.name} ({node.op})", left, right)
        if (left.dtype.name, left.shape) != (node.dtype, node.shape):
            raise Disagreement(f"node {node.name} gives {left.dtype} {left.shape}, declared {node.dtype} {node.shape}")
    scores = next(v for n, v in zip(graph.nodes, outputs["numpy"], strict=True) if n.name == graph.output)
    _require_equal("compiled graph", scores, np.asarray(backends.compile(graph, "numba", 1)(image)))
    merged = scores.astype(np.int32)
    info, (height, width) = graph.info, graph.info.window
    labels = [backends.class_map(merged, info.upsample, info.patch, height, width, n, 1) for n in ("numpy", "numba")]
    _require_equal("class map", *labels)
    return "accepted and run"


def _require_equal(what: str, left: Array, right: Array) -> None:
    if left.dtype != right.dtype or left.shape != right.shape or not np.array_equal(left, right):
        raise Disagreement(f"{what}: numpy and numba differ")
