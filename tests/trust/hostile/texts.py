"""Palettes, lists, maps, folders of models, and entries of the kernel cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from hostile.graphs import linear_graph
from hostile.kind import Disagreement, Files, Kind
from hostile.spoil import spoil, spoil_json, text
from hostile.traces import home
from hostile.weights import MODEL
from intseg import api
from intseg import model as loaded
from intseg.batch import infer as batch
from intseg.batch import sources
from intseg.images import labels as label_images
from intseg.images import overlay as overlays
from intseg.kernels import _jit

_PALETTE = "// colours\nroad #010203\nsky 0 0 255\n\nä\t#ffffff\n".encode()
_LIST = b"# images\na.png\n\nday/b.png\n"
_MAP = b'{"road": 1, "sky": 65535, "*": 0}'


class Texts(Kind):
    """Palettes, label maps and lists of images."""

    name, weight, bases = "text", 6, 3
    stages = (
        ("palette", "palette"),
        ("stored_values", "label map"),
        ("find_sources", "list"),
        ("check_targets", "list"),
    )

    def build(self, base: int, steps: Sequence[int]) -> Files:
        name, data = (("palette.txt", _PALETTE), ("map.json", _MAP), ("list.txt", _LIST))[base]
        for seed in steps:
            r = Random(seed)
            if base == 1 and r.random() < 0.6:
                try:
                    data = text(spoil_json(json.loads(data), r, ("road", "sky", "ä", "*"))).encode(
                        "utf-8", "surrogatepass"
                    )
                except (ValueError, RecursionError):
                    data = spoil(data, r)
            elif r.random() < 0.02:
                gap = r.choice((b" ", b"\t", b"#", b"0 ", b"a #", "\u2003".encode())) * r.choice((3000, 30_000))
                at = r.randrange(len(data) + 1)
                data = data[:at] + gap + data[at:]
            else:
                data = spoil(data, r)
        return {name: data}

    def read(self, folder: Path, files: Files) -> str:
        (name,) = files
        path, classes = str(folder / name), ("road", "sky", "ä")
        if name == "palette.txt":
            overlays.palette(path, classes, ((0, 0, 0),) * 3)
        elif name == "map.json":
            label_images.stored_values(classes, mapping=path)
        else:
            # A list names files and folders of its user's choice; chance must not make it leave the folder of the case.
            if any(os.path.isabs(line) or ".." in line for line in sources.lines(Path(path))):
                return "accepted"
            with contextlib.chdir(folder):
                images = sources.find_sources([f"@{path}"])
                batch.check_targets(images, batch.Options(output=folder / "out"))
        return "accepted"


class Folders(Kind):
    """A model folder with config.json."""

    name, weight, bases = "folder", 2, 1
    stages = (("_configured_names", "config.json"), ("_renamed", "class names"), ("_weights_in", "folder"))

    def build(self, base: int, steps: Sequence[int]) -> Files:
        document: Any = {"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 3}
        late = []
        for seed in steps:
            r = Random(seed)
            if r.random() < 0.85 and isinstance(document, (dict, list)):
                document = spoil_json(document, r, ("id2label", "0", "1", "2", "3", "a"))
            else:
                late.append(r)
        data = text(document).encode("utf-8", "surrogatepass")
        for r in late:
            data = spoil(data, r)
        return {MODEL: (home() / "model0.safetensors").read_bytes(), "config.json": data}

    def read(self, folder: Path, files: Files) -> str:
        loaded._models.clear()
        model = api.load(folder)
        return "other names" if model.info.classes != linear_graph().info.classes else "own names"


class CacheEntries(Kind):
    """Entries of the cache of compiled kernels: what is not whole is never unpickled."""

    name, weight, bases = "cache", 3, 2

    def build(self, base: int, steps: Sequence[int]) -> Files:
        payload = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94."
        data = _jit._MAGIC + hashlib.sha256(payload).digest() + payload
        for seed in steps:
            data = spoil(data, Random(seed), 64)
        whole = len(data) > 48 and hashlib.sha256(data[48:]).digest() == data[16:48]
        return {"entry.bin": data[:-1] if whole else data}  # a whole entry is trusted: it is one of this user's

    def read(self, folder: Path, files: Files) -> str:
        cache = _jit.Cache(folder, "entry")
        cache._path = lambda signature: folder / "entry.bin"  # type: ignore[method-assign]
        if cache.load_overload(None, _Context()) is not None:
            raise Disagreement("a damaged entry was loaded")
        return "compiled again"


class _Context:
    """In place of Numba's target context: a damaged entry must not come so far."""

    def refresh(self) -> None:
        """Nothing to do."""
