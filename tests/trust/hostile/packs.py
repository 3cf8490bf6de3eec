"""Packs of test vectors and golden folders."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from hostile.graphs import linear_graph
from hostile.images import encoded
from hostile.kind import Files, Kind
from hostile.spoil import (
    BY_CODE,
    INTEGERS,
    VALUES,
    copied,
    joined,
    packed,
    split,
    spoil,
    spoil_header,
    spoil_json,
    spoil_tensor,
    text,
)
from hostile.traces import home, trace_parts
from hostile.weights import MODEL, near
from intseg import api, store
from intseg.conformance import vectors, verify
from intseg.graph import Graph
from intseg.ops import OPS, Array
from intseg.workbench import trace as traces


@functools.cache
def pack_bases() -> tuple[Files, ...]:
    """Conformance packs with one op, or one image, each."""
    graph = linear_graph()
    model = api.load(home() / "model0.safetensors")
    weights = (home() / "model0.safetensors").read_bytes()
    found = []
    for op, calls in vectors.op_cases().items():
        few = sorted(calls, key=lambda call: sum(x.nbytes for x in (*call.inputs, *call.params.values())))[:2]
        digest = vectors.Digest()
        files = {MODEL: weights, f"ops/{op}.safetensors": vectors._op_file(op, few, vectors.table("numpy"), digest)}
        files["runner.json"] = json.dumps(vectors._runner(model, files, {op: few}, [], str(digest))).encode()
        found.append(files)
    rgb = np.random.default_rng(1).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    result, digest = vectors.run_image(model, rgb, "numpy", with_coverage=False), vectors.Digest()
    vectors.add_image(digest, "x", result)
    header, body = packed(result.tensors, None)
    files = {MODEL: weights, "images/x.safetensors": joined(header, body)}
    images = [{"name": "x", "file": "images/x.safetensors", "nodes": result.nodes}]
    files["runner.json"] = json.dumps(vectors._runner(model, files, {}, images, str(digest))).encode()
    return (*found, files, _golden_base(graph, rgb))


def _golden_base(graph: Graph, rgb: Array) -> Files:
    """A golden folder with the smallest case of every op and one trace."""
    files: Files = {}
    for op, calls in vectors.op_cases().items():
        if op in OPS:
            few = sorted(calls, key=lambda call: sum(x.nbytes for x in call.inputs))[:1]
            files[f"ops/{op}.safetensors"] = vectors._op_file(op, few, vectors.table("numpy"), vectors.Digest())
    files["models/m.safetensors"] = store.dumps(graph)
    files["images/i.png"] = encoded(Image.fromarray(rgb), "PNG")
    tensors = {name: array for name, array in trace_parts(0)[1].items() if traces.SEPARATOR not in name}
    files["traces/m.i.safetensors"] = joined(*packed(tensors, None))
    listed = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return {**files, "MANIFEST.json": json.dumps({"files": listed}).encode()}


class Packs(Kind):
    """Conformance packs and the golden folder: list, op cases, images; the list is made right again, mostly."""

    name, weight, bases = "pack", 3, 25
    stages = (("_read_json", "list"), ("__init__", "list"), ("read_op_file", "op file"), ("_tensors", "tensors"))

    def build(self, base: int, steps: Sequence[int]) -> Files:
        files = dict(pack_bases()[base])
        manifest = "runner.json" if "runner.json" in files else "MANIFEST.json"
        for seed in steps:
            r = Random(seed)
            name = manifest if r.random() < 0.4 else r.choice([n for n in files if n != manifest])
            if name == manifest:
                _spoil_list(files, name, r)
                continue
            files[name] = _spoil_op_file(files[name], r) if name.startswith("ops/") else spoil(files[name], r)
            if r.random() < 0.9:
                _list_again(files, manifest, name)
        return files

    def read(self, folder: Path, files: Files) -> str:
        both = sum(map(len, files.values())) % 2
        report = verify.verify(folder, ("numpy", "numba") if both else ("numba",))
        return "all equal" if report.ok else "mismatch reported"


def _spoil_list(files: Files, name: str, r: Random) -> None:
    try:
        document = json.loads(files[name])
    except (ValueError, RecursionError):
        return
    inner = document.get(r.choice(("ops", "images", "files", "model"))) if isinstance(document, dict) else None
    words = (*files, "..", "../x", "linear", "ops", "op", "file", "traces/foo", "traces/a.b.c", "sha256")
    if inner and r.random() < 0.6:
        spoil_json(inner, r, words)
    else:
        document = spoil_json(document, r, words)
    files[name] = text(document).encode("utf-8", "surrogatepass")


def _list_again(files: Files, manifest: str, name: str) -> None:
    """State the sha256 that a file has now."""
    try:
        document = json.loads(files[manifest])
        digest = hashlib.sha256(files[name]).hexdigest()
        document["files"][name] = digest if manifest == "runner.json" else {"sha256": digest}
        files[manifest] = json.dumps(document).encode()
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return


def _spoil_op_file(data: bytes, r: Random) -> bytes:
    """One change of attributes, tensors, header or bytes of an op file."""
    try:
        header, body = split(data)
        document = json.loads(header["__metadata__"][store.KEY])
        kind = r.random()
        if kind < 0.45:
            attrs = document["attrs"]
            chosen = r.choice(attrs) if isinstance(attrs, list) and attrs else None
            if isinstance(chosen, dict) and chosen and r.random() < 0.7:
                name = r.choice(list(chosen))
                allowed = OPS[document["op"]].attrs.get(name) if document["op"] in OPS else None
                chosen[name] = (
                    near(allowed, r) if allowed and r.random() < 0.7 else copied(r.choice((*INTEGERS, *VALUES)))
                )
            else:
                document = spoil_json(document, r, ("op", "attrs", *OPS))
            header["__metadata__"][store.KEY] = text(document)
            return joined(header, body)
        if kind < 0.8:
            tensors = {
                name: np.frombuffer(body[slice(*entry["data_offsets"])], BY_CODE[entry["dtype"]]).reshape(
                    entry["shape"]
                )
                for name, entry in header.items()
                if name != "__metadata__"
            }
            name = r.choice(list(tensors))
            tensors[name] = spoil_tensor(tensors[name], r)
            return joined(*packed(tensors, header["__metadata__"][store.KEY]))
        return joined(spoil_header(header, r), body)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return spoil(data, r)
