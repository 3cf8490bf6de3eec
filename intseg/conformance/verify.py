"""Replay golden vectors and conformance packs on this machine, on every backend; one digest for all machines.

Three sources: a folder written by `intseg vectors` (it has runner.json), the golden folder of a checkout (it has
MANIFEST.json), and, where there is neither, a self-test: the op cases of a conformance pack, the truth tables and the
bundled models, whose sha256 are constants of this module.

The digest covers the results of the NumPy backend, in a fixed order; the other backends have to give the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from intseg import api, backends, files, models, store
from intseg.conformance import truth_table, vectors
from intseg.errors import InputError, IntsegError, ModelError
from intseg.exam import EXAMS
from intseg.executor import execute
from intseg.graph import ModelInfo, Node, check_call
from intseg.images import decode as pictures
from intseg.ops import OPS, Array, Call, Value
from intseg.windows import check_step, cut_windows

Checks = Iterator[tuple[str, Array | str, Array | str | None]]
"""Name of a result, what was found, what is expected (None: not known, the backends are compared with each other).
Arrays, or the sha256 of arrays."""


@dataclass
class Report:
    """What `verify` found.

    source    what was replayed
    backends  on which
    counts    results compared, by kind and all backends together
    digest    of the results of the NumPy backend: the same on every machine
    mismatch  the first result that differs, None when all are equal
    failed    how many results differ
    notes     what could not be compared with a reference
    """

    source: str
    backends: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    mismatch: str | None = None
    failed: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything was equal, and there was something."""
        return self.mismatch is None and bool(self.counts)


def installed_backends() -> tuple[str, ...]:
    """The backends that can run here, the definition first."""
    return tuple(name for name in backends.names() if name != "numba" or backends.has_numba())


def find_golden(start: Path) -> Path | None:
    """The golden folder of the checkout that a folder lies in."""
    for folder in (start, *start.parents):
        if (folder / "golden" / "MANIFEST.json").is_file() and (folder / "intseg").is_dir():
            return folder / "golden"
    return None


def verify(folder: Path | None, names: tuple[str, ...] = (), say: Callable[[str], None] = lambda line: None) -> Report:
    """Replay a folder, or the self-test when it is None.

    names  backends; all that are installed when empty
    say    is told what is being done
    Raises InputError when the folder is not one, or its files are damaged.
    """
    names = names or installed_backends()
    if folder is None:
        return _replay("self-test", names, _self_test, say)
    if (folder / "runner.json").is_file():
        pack = _Pack(folder)
        report = _replay(str(folder), names, pack.checks, say)
        if report.mismatch is None and "numpy" in names and report.digest != pack.digest:
            report.mismatch, report.failed = f"digest {report.digest}, runner.json says {pack.digest}", 1
        return report
    if (folder / "MANIFEST.json").is_file():
        return _replay(str(folder), names, _Golden(folder).checks, say)
    raise InputError(f"{folder}: has neither runner.json nor MANIFEST.json; give a folder that intseg vectors wrote")


def _replay(
    source: str, names: tuple[str, ...], checks: Callable[[str, Report], Checks], say: Callable[[str], None]
) -> Report:
    """Compare everything, on every backend; go on after a mismatch, so that the count is known."""
    report, digests = Report(source, names), {name: vectors.Digest() for name in names}
    first: dict[str, str] = {}
    for backend in names:
        say(f"{backend} ...")
        for name, found, expected in checks(backend, report):
            digest = _sha256(found)
            digests[backend].add(name, digest)
            kind = name.split("/")[0]
            report.counts[kind] = report.counts.get(kind, 0) + 1
            wanted = first.setdefault(name, digest) if expected is None else _sha256(expected)
            if digest != wanted:
                report.failed += 1
                report.mismatch = report.mismatch or f"{backend}: {name}: {_difference(found, expected)}"
    report.digest = str(digests[names[0]])
    return report


def _sha256(value: Array | str) -> str:
    return value if isinstance(value, str) else vectors.array_sha256(value)


def _difference(found: Array | str, expected: Array | str | None) -> str:
    """In words: the first element that differs, or the dtype or shape."""
    if expected is None:
        return "differs from the first backend's"
    if isinstance(found, str) or isinstance(expected, str):
        return f"sha256 {_sha256(found)[:12]}, expected {_sha256(expected)[:12]}"
    if found.dtype != expected.dtype or found.shape != expected.shape:
        left, right = (f"{x.dtype.name} {list(x.shape)}" for x in (found, expected))
        return f"{left}, expected {right}"
    different = np.argwhere(found != expected)
    at = tuple(int(i) for i in different[0])
    return f"{list(at)} is {found[at]}, expected {expected[at]} ({len(different)} of {found.size} differ)"


# --------------------------------------------------------------------------------------------------------- files


def _read(path: Path) -> bytes:
    return files.read(path, "", "the folder is incomplete, write it again")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = files.parse_json(_read(path))
    except ValueError:
        raise InputError(f"{path}: is not JSON; the folder is damaged, write it again") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: is not a JSON object; the folder is damaged, write it again")
    return document


def _checked(folder: Path, name: object, sha256: object) -> bytes:
    """A file of a folder. Raises InputError unless its sha256 is the one that the folder's list states."""
    if not isinstance(name, str) or not files.is_inside(name):
        raise InputError(f"{folder}: lists the file {name!r}, expected a path inside the folder")
    data = _read(folder / name)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{folder / name}: sha256 is not the listed one: damaged or edited; write the folder again")
    return data


def _tensors(path: Path, data: bytes) -> dict[str, Array]:
    try:
        loaded: dict[str, Array] = store.from_file(safetensors.numpy.load(data))
    except Exception as error:  # safetensors raises several types for a malformed file
        raise InputError(f"{path}: not a safetensors file ({error}); write the folder again") from None
    floats = [name for name, array in loaded.items() if array.dtype.kind not in "iu"]
    if floats:
        raise InputError(f"{path}: {floats[0]} is {loaded[floats[0]].dtype}, expected integers only")
    return loaded


def read_op_file(path: Path, data: bytes) -> list[tuple[Call, Array]]:
    """Calls and expected results of an op file, as golden/ops and conformance packs have them. Raises InputError."""
    tensors = _tensors(path, data)
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        document = files.parse_json(header["__metadata__"][vectors.KEY])
        op, attrs = document["op"], document["attrs"]
        return [_case(op, entry, tensors, f"case{i}.") for i, entry in enumerate(attrs)]
    except (KeyError, ValueError, TypeError, ModelError) as error:
        raise InputError(f"{path}: not a file of op cases ({error!r}); write the folder again") from None


def _case(op: str, attrs: dict[str, Any], tensors: dict[str, Array], prefix: str) -> tuple[Call, Array]:
    if op not in EXAMS:
        raise ValueError(f"unknown op {op}")
    count = len(OPS[op].inputs) if op in OPS else 1
    roles = OPS[op].params if op in OPS else ()
    inputs = tuple(tensors[f"{prefix}in{j}"] for j in range(count))
    params = {role: tensors[f"{prefix}param.{role}"] for role in roles}
    if not isinstance(attrs, dict):
        raise ValueError(f"attributes are {attrs!r:.80}")
    if op in OPS:  # kernels do not check what they are given
        values = [Value(x.dtype.name, x.shape) for x in inputs]
        check_call(OPS[op], [f"in{j}" for j in range(count)], values, params, attrs)
    else:
        check_step(op, inputs[0], attrs)
    return Call(op, inputs, params, attrs), tensors[f"{prefix}expected"]


def _op_checks(op: str, cases: Iterable[tuple[Call, Array]], backend: str) -> Checks:
    ops = vectors.table(backend)
    for i, (call, expected) in enumerate(cases):
        yield f"ops/{op}/{i}", _attempt(call, ops), expected


def _attempt(call: Call, ops: Any) -> Array:
    try:
        return vectors.run_call(call, ops)
    except IntsegError:
        raise
    except Exception as error:
        raise InputError(f"{call.op} cannot run on a case ({error}); the file is not of this version") from None


# ---------------------------------------------------------------------------------------------------------- pack


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    return value


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.80} is no object")
    return {name: _text(text) for name, text in value.items()}


class _Pack:
    """A folder that `intseg vectors` wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        document = _read_json(folder / "runner.json")
        if document.get("format") != vectors.FORMAT:
            raise InputError(
                f"{folder}: format of runner.json is {document.get('format')!r}, expected {vectors.FORMAT}; "
                "write the pack again with intseg vectors"
            )
        try:
            self.digest = _text(document["digest"])
            self.files = _texts(document["files"])
            self.ops = [(_text(entry["op"]), _text(entry["file"]), entry["cases"]) for entry in document["ops"]]
            self.images = [
                (_text(entry["name"]), _text(entry["file"]), _texts(entry["nodes"])) for entry in document["images"]
            ]
            self.model_file = _text(document["model"]["file"])
            for entries in (self.ops, self.images):
                if len({entry[1] for entry in entries}) < len(entries):
                    raise ValueError("a file is named twice")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder}: runner.json is malformed ({error!r}); write the pack again") from None
        for name in self.files:
            self._data(name)

    def _data(self, name: str) -> bytes:
        if name not in self.files:
            raise InputError(f"{self.folder}: runner.json names {name!r} but does not list it; write the pack again")
        return _checked(self.folder, name, self.files[name])

    def checks(self, backend: str, report: Report) -> Checks:
        """Op cases, then images."""
        for op, name, count in self.ops:
            cases = read_op_file(self.folder / name, self._data(name))
            if len(cases) != count:
                raise InputError(f"{self.folder / name}: {len(cases)} cases, runner.json says {count}")
            yield from _op_checks(op, cases, backend)
        self._data(self.model_file)
        model = api.load(self.folder / self.model_file)
        for name, file, nodes in self.images:
            yield from _image_checks(name, _tensors(self.folder / file, self._data(file)), nodes, model, backend)


def _image_checks(
    name: str, expected: dict[str, Array], nodes: dict[str, str], model: api.Model, backend: str
) -> Checks:
    found = vectors.run_image(model, _image(name, expected), backend, with_coverage=False)
    for key in sorted({*expected, *found.tensors} - {"image"}):
        missing = "missing"
        yield f"images/{name}/{key}", found.tensors.get(key, missing), expected.get(key, missing)
    for node in found.nodes:
        yield f"images/{name}/nodes/{node}", found.nodes[node], nodes.get(node, "missing")
    for node in nodes.keys() - found.nodes.keys():
        yield f"images/{name}/nodes/{node}", "missing", nodes[node]


def _image(name: str, expected: dict[str, Array]) -> Array:
    if "image" not in expected or expected["image"].dtype != np.uint8 or expected["image"].shape[2:] != (3,):
        raise InputError(f"images/{name}: has no image uint8 [H, W, 3]; write the pack again")
    if not expected["image"].size:
        raise InputError(f"images/{name}: the image has no pixel; write the pack again")
    return expected["image"]


def windows_of(folder: Path, info: ModelInfo) -> list[Array]:
    """Every window of the images of a conformance pack or a golden folder, as a model cuts them. Raises InputError."""
    found = [pictures.decode(path, info.pad).rgb for path in sorted(folder.glob("images/*.png"))]
    for path in sorted(folder.glob("images/*.safetensors")):
        found.append(_image(path.stem, _tensors(path, files.read(path))))
    if not found:
        raise InputError(f"{folder}: has no images; give a folder that intseg vectors wrote, or golden")
    return [window for rgb in found for _, window in cut_windows(rgb, info)]


# -------------------------------------------------------------------------------------------------------- golden


class _Golden:
    """The golden folder of a checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = _read_json(folder / "MANIFEST.json").get("files")
        if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
            raise InputError(f"{folder}: MANIFEST.json lists no files; run tools/make_golden.py")
        self.files: dict[str, dict[str, Any]] = files
        for name in files:
            self._data(name)

    def _data(self, name: str) -> bytes:
        if name not in self.files:
            raise InputError(f"{self.folder}: {name} is not in MANIFEST.json; run tools/make_golden.py")
        return _checked(self.folder, name, self.files[name].get("sha256"))

    def checks(self, backend: str, report: Report) -> Checks:
        """Op cases, then traces."""
        names = sorted(self.files)
        for op in OPS:
            name = f"ops/{op}.safetensors"
            yield from _op_checks(op, read_op_file(self.folder / name, self._data(name)), backend)
        for name in names:
            if name.startswith("traces/"):
                yield from self._trace_checks(name, backend)

    def _trace_checks(self, name: str, backend: str) -> Checks:
        """Every node of every window unfused, the scores of the compiled graph, merged scores and labels."""
        match = re.fullmatch(r"traces/([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.safetensors", name)
        if match is None:
            raise InputError(f"{self.folder}: {name!r:.200} is no name of a trace; run tools/make_golden.py")
        model_name, image = match.groups()
        expected = _tensors(self.folder / name, self._data(name))
        self._data(f"models/{model_name}.safetensors")
        self._data(f"images/{image}.png")
        model = api.load(self.folder / "models" / f"{model_name}.safetensors")
        picture = self.folder / "images" / f"{image}.png"
        rgb = pictures.decode(picture, model.info.pad).rgb
        label = f"traces/{model_name}.{image}"
        for i, (_, window) in enumerate(cut_windows(rgb, model.info)):
            for node, value in _node_outputs(model, window, backend):
                yield f"{label}/window{i}.{node}", value, expected.get(f"window{i}.{node}", "missing")
            scores = np.ascontiguousarray(model.compiled(backend, 1)(window))
            yield f"{label}/window{i} compiled", scores, expected.get(f"window{i}.{model.graph.output}", "missing")
        result = api.run(rgb, model, backend, 1)
        yield f"{label}/merged", result.scores, expected.get("merged", "missing")
        yield f"{label}/labels", result.labels, expected.get("labels", "missing")


def _node_outputs(model: api.Model, window: Array, backend: str) -> list[tuple[str, Array]]:
    found: list[tuple[str, Array]] = []

    def keep(node: Node, value: Array) -> None:
        found.append((node.name, np.ascontiguousarray(value)))

    execute(model.graph, window, backends.table(backend), keep)
    return found


# ----------------------------------------------------------------------------------------------------- self-test

MODELS: dict[str, str] = {
    "f6b48d02faf2d5b6": "8c4c42b5ba52b7a3c4c76dfe38e37617a4425a2194c4486e8ed826949fa19ec3",
    "b37d4ccf8ad09b68": "4e85014bc23624139889318e8ea1d35ea7bea70bfe6fbbaae3e4dc7827c8c8bd",
}
"""sha256 over the results of a corner image, by the first 16 digits of the sha256 of a model's file."""

_SELF_TEST_IMAGES = ("smaller",)


def _self_test(backend: str, report: Report) -> Checks:
    """Everything the package can check without files beside it."""
    ops = vectors.table(backend)
    for op, calls in vectors.op_cases().items():
        digest = vectors.Digest()
        for i, call in enumerate(calls):
            digest.add(str(i), vectors.array_sha256(vectors.run_call(call, ops)))
        yield f"ops/{op}", str(digest), EXAMS[op].digest or "missing"
    if backend == "numpy":  # truth tables are those of the definition
        for name, table, sha256 in truth_table.self_test_tables():
            yield f"tables/{name}", table.sha256, sha256
    for name in models.names():
        model = api.load(name)
        if model.sha256[:16] not in MODELS:
            note = f"model {name}: no reference digest in this version, only the backends are compared"
            report.notes += [note] if note not in report.notes else []
        yield f"models/{name}", _model_digest(model, backend), MODELS.get(model.sha256[:16])


def _model_digest(model: api.Model, backend: str) -> str:
    digest, images = vectors.Digest(), vectors.corner_images(model.info)
    for name in _SELF_TEST_IMAGES:
        vectors.add_image(digest, name, vectors.run_image(model, images[name], backend, with_coverage=False))
    return str(digest)


def references() -> tuple[dict[str, str], dict[str, str]]:
    """What the exams, the truth tables and MODELS have to hold, from the NumPy backend, after a change of any."""
    found = {name: str(value) for name, value, _ in _self_test("numpy", Report("", ()))}
    by_model = {api.load(name).sha256[:16]: found.pop(f"models/{name}") for name in models.names()}
    return found, by_model
