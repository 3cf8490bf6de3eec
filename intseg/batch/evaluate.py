"""Accuracy on a labelled data set: a model runs on every image, and its labels are counted."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg import api, backends, strict_json
from intseg.batch import workers
from intseg.batch.datasets import Pair
from intseg.batch.metrics import Counts, Metrics, confusion, metrics, number, shifted
from intseg.errors import InputError, IntsegError, MismatchError, UsageError
from intseg.images import decode as pictures
from intseg.images.labels import Labelling, truth
from intseg.images.notes import Notes

Array = NDArray[Any]
_Key = tuple[str, str]
"""sha256 of the image file and of the label file."""


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    confusion  int64 [C, C], rows are labels
    images     number of images
    notes      what was done to decode them
    """

    confusion: Counts
    images: int
    model: api.Model
    notes: Notes = field(default_factory=Notes)

    @property
    def metrics(self) -> Metrics:
        """Percentages from the confusion matrix."""
        return metrics(self.confusion)

    def warnings(self) -> Iterator[str]:
        """What looks wrong in the counts, one sentence each."""
        if offset := shifted(self.confusion):
            yield (
                f"most labels are {'one above' if offset == 1 else 'one below'} the class found there: are they "
                f"counted from {'1' if offset == 1 else 'another number'}? --label-offset says what is stored"
            )

    def as_json(self) -> dict[str, Any]:
        """What `intseg eval --json` prints; percentages, null where a class does not occur."""
        found = self.metrics
        return {
            "mIoU": number(found.miou),
            "mAcc": number(found.macc),
            "aAcc": number(found.aacc),
            "IoU": list(found.iou),
            "acc": list(found.acc),
            "classes": list(self.model.info.classes),
            "confusion": self.confusion.tolist(),
            "images": self.images,
            "notes": self.notes.as_json(),
            "model": {"name": self.model.info.name, "sha256": self.model.sha256},
        }


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know besides the pair."""

    weights: str
    sha256: str
    backend: str
    threads: int | None
    labelling: Labelling
    scale: int | str | None = None


@dataclass(frozen=True)
class _Counted:
    """What was found in a pair: its confusion matrix, sha256 of image and label file, notes."""

    counts: Counts
    key: _Key
    notes: tuple[str, ...]


def evaluate(
    pairs: Sequence[Pair],
    weights: str | os.PathLike[str] | api.Model | None = None,
    *,
    backend: str = "auto",
    jobs: int = 1,
    labelling: Labelling | None = None,
    progress: bool = False,
    journal: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Run a model on every image and count.

    jobs       processes; with more than one, a script needs its `if __name__ == "__main__"` (they are spawned)
    labelling  what the label images hold; None: class indices
    progress   a bar on standard error where that is a terminal
    journal    file that keeps the counts of every finished image: an evaluation that was killed continues from it and
               gives what an unbroken one gives. An image or label file that changed since is counted again
    Raises InputError naming the file for anything wrong with one, UsageError for a journal of another evaluation.
    """
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}, expected at least 1")
    model = api.load(weights)
    jobs = min(jobs, len(pairs)) or 1
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    job = _Job(str(model.path.absolute()), model.sha256, backends.resolve(backend), threads, labelling or Labelling())
    job = replace(job, scale=model.scale)
    n_cls = len(model.info.classes)
    total, notes = np.zeros((n_cls, n_cls), np.int64), Notes()
    if journal is None:
        for pair, found in zip(
            pairs, _progress(_counts(pairs, model, job, jobs), len(pairs), 0, progress), strict=True
        ):
            total += found.counts
            notes.add(str(pair.image), *found.notes)
        return Evaluation(total, len(pairs), model, notes)
    keys = [(_file_sha256(pair.image), _file_sha256(pair.labels)) for pair in pairs]
    with _Journal(Path(journal), job, pairs, n_cls) as book:
        for pair, key in zip(pairs, keys, strict=True):
            if key in book.done:
                total += book.done[key].counts
                notes.add(str(pair.image), *book.done[key].notes)
        left = [pair for pair, key in zip(pairs, keys, strict=True) if key not in book.done]
        counted = _progress(_counts(left, model, job, jobs), len(pairs), len(pairs) - len(left), progress)
        for pair, found in zip(left, counted, strict=True):
            total += found.counts
            notes.add(str(pair.image), *found.notes)
            book.add(found)
    return Evaluation(total, len(pairs), model, notes)


def _counts(pairs: Sequence[Pair], model: api.Model, job: _Job, jobs: int) -> Iterator[_Counted]:
    """What is found in every pair, in order."""
    jobs = min(jobs, len(pairs))
    if jobs <= 1:
        yield from (_count(pair, model, job) for pair in pairs)
        return
    with workers.pool(jobs, _start_worker, job) as pool:
        yield from pool.map(_work, pairs)


_worker: tuple[api.Model, _Job] | IntsegError | None = None


def _start_worker(job: _Job) -> None:
    global _worker
    try:
        _worker = (api.load(Path(job.weights)).at_scale(job.scale), job)
    except IntsegError as error:  # raised here, it would be a traceback of the pool
        _worker = error


def _work(pair: Pair) -> _Counted:
    assert _worker is not None
    if isinstance(_worker, IntsegError):
        raise _worker
    model, job = _worker
    if model.sha256 != job.sha256:
        raise MismatchError(f"{job.weights}: the file changed during the evaluation; run it again")
    return _count(pair, model, job)


def _count(pair: Pair, model: api.Model, job: _Job) -> _Counted:
    """What is found in one pair. The labels are read before the work: they are what is wrong most often."""
    image, labels = pictures.read(pair.image), pictures.read(pair.labels)
    n_cls = len(model.info.classes)
    picture = pictures.decode(image, model.info.pad, str(pair.image))
    found, notes = truth(pair.labels, picture, n_cls, job.labelling, str(pair.image), labels)
    result = api.run_picture(picture, model, job.backend, job.threads)
    counts = confusion(found, result.labels, n_cls, ignore=-1)
    key = hashlib.sha256(image).hexdigest(), hashlib.sha256(labels).hexdigest()
    return _Counted(counts, key, (*result.notes, *notes))


def _progress(found: Iterator[_Counted], total: int, done: int, wanted: bool) -> Iterator[_Counted]:
    if not wanted:
        return found
    from tqdm import tqdm

    return iter(tqdm(found, total=total, initial=done, unit="image", disable=None, leave=False))


# --------------------------------------------------------------------------------------------------------- journal


class _Journal:
    """Counts of finished images: a JSON line each, appended once known. The first line says of what evaluation.

    Used as a context; `done` holds what an earlier run left. A last line that was cut off is dropped, and so is one
    that makes no sense: its image is counted again.
    """

    def __init__(self, path: Path, job: _Job, pairs: Sequence[Pair], n_cls: int) -> None:
        names = "\n".join(f"{pair.name}\t{pair.labels.name}" for pair in pairs)
        self.path, self.n_cls = path, n_cls
        self.header = {
            "intseg eval": 1,
            "model": job.sha256 if job.scale is None else f"{job.sha256} at scale {job.scale}",
            "data set": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
            "meaning of labels": str(job.labelling),
        }
        self.done: dict[_Key, _Counted] = {}
        self._file: io.FileIO | None = None

    def __enter__(self) -> _Journal:
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            self._read(data, whole)
            self._file = self.path.open("ab", buffering=0)
            os.truncate(self.path, len(whole))
            if not whole:
                self._append(self.header)
        except OSError as error:
            raise InputError(f"{self.path}: cannot keep the journal: {error.strerror}; choose another file") from None
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, found: _Counted) -> None:
        """Note that an image is done."""
        cells = np.flatnonzero(found.counts)
        entries = [[int(cell), int(found.counts.flat[cell])] for cell in cells]
        key = found.key
        try:
            self._append({"image": key[0], "labels": key[1], "counts": entries, "notes": found.notes})
        except OSError as error:
            raise InputError(f"{self.path}: cannot write: {error.strerror}; free space and run it again") from None

    def _append(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        data = _line(line)
        if self._file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _read(self, data: bytes, whole: bytes) -> None:
        """Fill `done`. Raises UsageError for a file that is no journal, or one of another evaluation."""
        if not whole and _line(self.header).startswith(data):  # new, or killed before the first line was whole
            return
        lines = [_parsed(text) for text in whole.split(b"\n")[:-1]]
        first = lines[0] if lines else {}
        if first.get("intseg eval") != 1:
            raise UsageError(f"{self.path}: is not a journal of intseg eval; choose another file")
        other = [key for key, value in self.header.items() if first.get(key) != value]
        if other:
            raise UsageError(
                f"{self.path}: was begun with another {' and '.join(other)}; "
                "give the same model and images to resume, or another file"
            )
        for line in lines[1:]:
            counts = self._restored(line.get("counts"))
            notes = line.get("notes")
            if counts is not None and isinstance(notes, list) and all(isinstance(note, str) for note in notes):
                key = str(line.get("image")), str(line.get("labels"))
                self.done[key] = _Counted(counts, key, tuple(notes))

    def _restored(self, entries: object) -> Counts | None:
        """The matrix of [cell, count] pairs; None if they are not that."""
        counts = np.zeros(self.n_cls**2, np.int64)
        if not isinstance(entries, list):
            return None
        for entry in entries:
            if not (isinstance(entry, list) and len(entry) == 2 and all(type(n) is int for n in entry)):
                return None
            if not (0 <= entry[0] < counts.size and 0 < entry[1] < 2**63):
                return None
            counts[entry[0]] = entry[1]
        return counts.reshape(self.n_cls, self.n_cls)


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _parsed(text: bytes) -> dict[str, Any]:
    """The object on a line; an empty one for anything else."""
    try:
        value = strict_json.parse(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}; check the file") from None
