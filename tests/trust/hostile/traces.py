"""Traces, dumps, and single tensors as other tools write them."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from hostile.graphs import BLOCK, block_graph, linear_graph
from hostile.kind import Files, Kind
from hostile.spoil import joined, packed, spoil, spoil_header, spoil_json, spoil_npy, spoil_tensor, text
from hostile.weights import rename_tensors
from intseg import api, store
from intseg.ops import Array
from intseg.reports import diff_text
from intseg.workbench import diff, dump, sides
from intseg.workbench import trace as traces


@functools.cache
def home() -> Path:
    """A folder with the valid files that readers compare with; it lives as long as the process."""
    global _home
    _home = tempfile.TemporaryDirectory(prefix="bases.")
    folder = Path(_home.name)
    for i, graph in enumerate((linear_graph(), block_graph(*BLOCK))):
        model = folder / f"model{i}.safetensors"
        store.save(graph, model)
        rgb = np.random.default_rng(i).integers(0, 256, (9, 5, 3), dtype=np.uint8)
        traces.write(folder / f"trace{i}.safetensors", rgb, api.load(model), with_registers=i == 0)
    return folder


_home: tempfile.TemporaryDirectory[str] | None = None


@functools.cache
def _golden(i: int) -> traces.Trace:
    """A valid trace with its tensors in memory."""
    path = home() / f"trace{i}.safetensors"
    file = traces.TensorFile(path)
    held = {name: file.read(name) for name in file.names()}
    return traces.Trace(sides._Held(file, held), api.load(home() / f"model{i}.safetensors"))


@functools.cache
def trace_parts(i: int) -> tuple[str, dict[str, Array]]:
    golden = _golden(i)
    metadata = json.dumps(golden.file.metadata)
    return metadata, {name: golden.file.read(name) for name in golden.file.names()}


class Traces(Kind):
    """Trace files, on both sides of a comparison, with and without their model, and dumped."""

    name, weight, bases = "trace", 5, 3
    stages = (
        ("_parse_header", "header"),
        ("__init__", "header"),
        ("_require_same_origin", "metadata"),
        ("compare", "comparison"),
        ("write_folder", "dump"),
    )

    def build(self, base: int, steps: Sequence[int]) -> Files:
        metadata, held = trace_parts(base % 2)
        document, tensors = json.loads(metadata), dict(held)
        late = []
        for seed in steps:
            r = Random(seed)
            kind = r.random()
            if kind < 0.3:
                document = spoil_json(document, r, ("kind", "nodes", "head", "registers", "format"))
            elif kind < 0.7:
                scales = [name for name in tensors if name.startswith("scale.")]
                name = r.choice(scales if scales and r.random() < 0.4 else list(tensors))
                tensors[name] = spoil_tensor(tensors[name], r)
            elif kind < 0.8:
                rename_tensors(tensors, r)
            else:
                late.append(r)
        header, body = packed(tensors, text(document))
        if base == 2 and isinstance(header.get("__metadata__"), dict):
            del header["__metadata__"]
        data = None
        for r in late:
            changed = spoil_header(header, r) if data is None and r.random() < 0.5 else header
            data = joined(changed, body) if changed is not header else spoil(data or joined(header, body), r, 16)
        return {"trace.safetensors": data or joined(header, body)}

    def read(self, folder: Path, files: Files) -> str:
        path, size = folder / "trace.safetensors", len(files["trace.safetensors"])
        settings = diff.Settings(seconds=0.0, partial=bool(size % 2))
        which = size % 5
        if which == 0:
            dump.write_folder(path, folder / "out", ("npy", "hex", "c", "json", "npz")[size % 3])
            return "dumped"
        if which < 3:
            golden = _golden(1 if size > 9000 else 0)
            report = diff.compare(golden, sides.open_other(path, golden), settings)
        else:
            weights = str(home() / f"model{1 if size > 9000 else 0}.safetensors")
            trace = traces.open_trace(path, weights)
            for name in trace.nodes:
                trace.registers(name)
                trace.scale(name)
            report = diff.compare(trace, _golden(1 if size > 9000 else 0).file, settings)
        return "equal" if not list(diff_text.lines(report)) or report.equal else "different"


@functools.cache
def dump_bases() -> tuple[Files, ...]:
    """Folders of `intseg dump` in every format, and some with odd words, tiles and orders."""
    r = np.random.default_rng(3)
    found = []
    plain = dump.Options()
    odd = dump.Options(width=12, per_word=3, endian="big", order="1,0", tile=(2, 2))
    kinds = [(kind, plain) for kind in dump.FORMATS] + [("hex", odd), ("bin", odd), ("mem", odd)]
    with tempfile.TemporaryDirectory() as place:
        for i, (kind, options) in enumerate(kinds):
            with traces.Writer(Path(place) / "t", {"format": 1}, ["a", "window0.b", "scale.b"]) as writer:
                writer.put("a", r.integers(-128, 128, (3, 4)).astype(np.int8))
                writer.put(
                    "window0.b", r.integers(-2048, 2048, (2, 5)).astype(np.int64 if options is odd else np.int16)
                )
            dump.write_folder(Path(place) / "t", Path(place) / str(i), kind, options)
            found.append({file.name: file.read_bytes() for file in sorted((Path(place) / str(i)).iterdir())})
    return tuple(found)


class Dumps(Kind):
    """Folders of `intseg dump`: manifest and data, read back and compared."""

    name, weight, bases = "dump", 10, 13
    stages = (("open_folder", "manifest"), ("_check", "digest"), ("read", "data"))

    def build(self, base: int, steps: Sequence[int]) -> Files:
        files = dict(dump_bases()[base])
        for seed in steps:
            r = Random(seed)
            name = dump.MANIFEST if r.random() < 0.5 else r.choice(list(files))
            if name == dump.MANIFEST and r.random() < 0.8:
                try:
                    document = json.loads(files[name])
                except (ValueError, RecursionError):
                    continue
                _spoil_manifest(document, r, list(files))
                files[name] = text(document).encode("utf-8", "surrogatepass")
            else:
                files[name] = spoil(files[name], r)
        return files

    def read(self, folder: Path, files: Files) -> str:
        opened = dump.open_folder(folder)
        for name in opened.tensors:
            opened.read(name)
        dump.read_folder(folder, folder / "back.safetensors")
        return "read back"


def _spoil_manifest(document: Any, r: Random, names: Sequence[str]) -> None:
    """One change of the manifest of a dump."""
    tensors = document.get("tensors") if isinstance(document, dict) else None
    entries = [entry for entry in tensors.values() if isinstance(entry, dict)] if isinstance(tensors, dict) else []
    if not entries or r.random() < 0.5:
        spoil_json(document, r, (*names, "little", "big", "F", "0,1", "1,0", "hex", "npy", "int64"))
        return
    entry = r.choice(entries)
    shape = r.choice(([2**32], [2**31, 2], [0, 2**70], [1] * 70, [3, 4], {}, "34", [True], [0], [4, 3], [12], [-1]))
    options: dict[str, Any] = document.get("options") if isinstance(document.get("options"), dict) else {}
    entry |= r.choice(
        (
            {"shape": shape},
            {"dtype": r.choice(("int64", "uint8", "float32", [], None, "object"))},
            {"file": r.choice(("..", ".", "a\0b", "\ud800", "x" * 300, "/etc/passwd", "../x", 5, None, *names))},
        )
    )
    if r.random() < 0.5 and options:
        options |= r.choice(
            (
                {"width": r.choice((1, 8.0, 1024, True, "8", 65, 64))},
                {"per_word": r.choice((2, 1024, 1.0, 0))},
                {"order": r.choice(("F", "1,0", "0,0", "9" * 5000, 5, None, "C", "٣"))},
                {"tile": r.choice(([2**40, 2**40], [1, 2], [1], [0, 1], "12", [1.5, 2], [2**31, 1]))},
            )
        )


@functools.cache
def table_bases() -> tuple[tuple[str, bytes], ...]:
    """Single tensors as other tools write them: (file name, bytes)."""
    head = trace_parts(0)[1]["window0.head"]
    plain = io.BytesIO()
    np.save(plain, head)
    real = io.BytesIO()
    np.save(real, head.astype(np.float32))
    column = io.BytesIO()
    np.save(column, np.asfortranarray(head))
    many, small = io.BytesIO(), io.BytesIO()
    np.savez(many, head=head, scores=head)
    np.savez_compressed(small, **{"window0.head": head})
    found = [("head.npy", plain.getvalue()), ("head.npy", real.getvalue()), ("head.npy", column.getvalue())]
    found += [("head.npz", many.getvalue()), ("head.npz", small.getvalue())]
    for kind in ("hex", "mem", "bin", "coe", "mif", "ihex"):
        found.append((f"head.{'hex' if kind == 'ihex' else kind}", dump._encode("head", head, kind, dump.Options())))
    return tuple(found)


class Tables(Kind):
    """npy, npz, hex, mem, bin, coe and mif files, as the other side of a comparison."""

    name, weight, bases = "table", 5, 11
    stages = (("open_other", "reading"), ("compare", "comparison"))

    def build(self, base: int, steps: Sequence[int]) -> Files:
        name, data = table_bases()[base]
        for seed in steps:
            r = Random(seed)
            lie = name == "head.npy" and r.random() < 0.4
            data = spoil_npy(data, r) if lie else spoil(data, r, 128)
        return {name: data}

    def read(self, folder: Path, files: Files) -> str:
        (name,) = files
        golden = _golden(0)
        path = folder if len(files[name]) % 3 == 0 and name.endswith("npy") else folder / name
        report = diff.compare(golden, sides.open_other(path, golden), diff.Settings(seconds=0.0, partial=True))
        return "equal" if report.equal else "different"
