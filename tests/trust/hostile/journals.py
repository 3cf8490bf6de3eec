"""Journals of batches, results of evaluations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from hostile.kind import Files, Kind
from hostile.spoil import copied, spoil, spoil_json, text
from hostile.traces import home
from intseg import api
from intseg.batch import compare, evaluate, journal, sources
from intseg.batch import infer as batch
from intseg.reports import card


class Journals(Kind):
    """The journal that `intseg batch --resume` continues from."""

    name, weight, bases = "journal", 3, 1
    stages = (("read", "settings"),)

    def build(self, base: int, steps: Sequence[int]) -> Files:
        model = api.load(home() / "model0.safetensors")
        header = {"intseg batch": journal.FORMAT, "model": model.sha256, **batch.Options().settings()}
        record = {
            "width": 1,
            "height": 1,
            "pixels_sha256": "0",
            "labels_sha256": "1",
            "classes": {"road": 1},
            "notes": [],
        }
        line = {
            "of": journal._mark(header),
            "item": "a.png",
            "input": hashlib.sha256(b"a").hexdigest(),
            "written": {},
            "record": record,
        }
        journal_lines = _spoil_lines([header, line, line | {"item": "b.png"}], steps)
        return {batch.JOURNAL: journal_lines, "a.png": b"a", "b.png": b"a"}

    def read(self, folder: Path, files: Files) -> str:
        model = api.load(home() / "model0.safetensors")
        with journal.Journal(
            folder / batch.JOURNAL, "batch", {"model": model.sha256} | batch.Options().settings()
        ) as book:
            lines = book.lines
        found = 0
        for name in ("a.png", "b.png"):
            source = sources.Source(str(folder / name), name)
            outcome = batch._restored(lines.get(name, {}), source, model, batch.Options())
            if outcome is not None:
                found += 1
                batch._json_line(outcome.record)
        return f"{found} of 2 images taken over"


def _spoil_lines(lines: list[Any], steps: Sequence[int]) -> bytes:
    """JSON lines with changes of a line's document or of bytes."""
    lines = copied(lines)
    late = []
    for seed in steps:
        r = Random(seed)
        i = r.randrange(len(lines))
        if r.random() < 0.7 and isinstance(lines[i], (dict, list)):
            lines[i] = spoil_json(lines[i], r)
        else:
            late.append(r)
    data = "".join(text(line) + "\n" for line in lines).encode("utf-8", "surrogatepass")
    for r in late:
        data = spoil(data, r)
    return data


class Evaluations(Kind):
    """What `intseg eval` writes and reads: its JSON, compared with and put on a card, and its journal."""

    name, weight, bases = "evaluation", 3, 2
    stages = (
        ("read_earlier", "reading"),
        ("_read_metrics", "metrics"),
        ("merge", "journal"),
        ("compare", "comparison"),
    )

    def build(self, base: int, steps: Sequence[int]) -> Files:
        model = api.load(home() / "model0.safetensors")
        if base == 0:
            matrix = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]], np.int64)
            document: Any = evaluate.Evaluation(matrix, 1, evaluate._measured(model)).as_json()
            late = []
            for seed in steps:
                r = Random(seed)
                if r.random() < 0.8 and isinstance(document, (dict, list)):
                    document = spoil_json(document, r, ("confusion", "classes", "model", "road"))
                else:
                    late.append(r)
            data = text(document).encode("utf-8", "surrogatepass")
            for r in late:
                data = spoil(data, r)
            return {"eval.json": data}
        header = {"intseg eval": journal.FORMAT, "model": "0", "model name": "m", "classes": list("abc"), "images": 2}
        line = {
            "of": journal._mark(header),
            "image": "0" * 64,
            "labels": "1" * 64,
            "counts": [[0, 5], [8, 1]],
            "notes": [],
        }
        return {"journal": _spoil_lines([header, line | {"item": "a"}, line | {"item": "b"}], steps)}

    def read(self, folder: Path, files: Files) -> str:
        model = api.load(home() / "model0.safetensors")
        if "journal" in files:
            return f"{evaluate.merge([folder / 'journal']).images} images merged"
        path = folder / "eval.json"
        if len(files["eval.json"]) % 2:
            card._accuracy(model, card.Facts(), card._read_metrics(model, str(path)))
            return "on a card"
        earlier = compare.read_earlier(path, model.info.classes)
        compare.compare(evaluate.Evaluation(earlier.confusion, 1, evaluate._measured(model)), earlier).as_json()
        return "compared"
