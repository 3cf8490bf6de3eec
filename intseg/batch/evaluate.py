"""Accuracy on a labelled data set: an exact confusion matrix, and mIoU, mAcc and aAcc from it.

Floating point appears only in the last step, from counts to percentages.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg import api, backends, strict_json
from intseg.batch import workers
from intseg.errors import InputError, IntsegError, MismatchError, UsageError, one_line
from intseg.images.decode import decode_labels

Array = NDArray[Any]
Counts = NDArray[np.int64]

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")

# -------------------------------------------------------------------------------------------------------- metrics


@dataclass(frozen=True)
class Metrics:
    """Percentages from a confusion matrix.

    miou   mean of `iou` over the classes that occur in labels or predictions
    macc   mean of `acc` over the classes that occur in labels
    aacc   pixels with the right class; NaN, as the others, where nothing was counted
    iou    intersection over union per class; None for a class in neither labels nor predictions
    acc    recall per class; None for a class not in the labels
    """

    miou: float
    macc: float
    aacc: float
    iou: tuple[float | None, ...]
    acc: tuple[float | None, ...]


_CHUNK = 2**22
"""Pixels counted at a time: the int64 copies of a large label image need not fit into memory."""


def confusion(labels: Array, prediction: Array, n_cls: int, ignore: int | None = None) -> Counts:
    """Pixels by true class (rows) and predicted class (columns).

    labels      any integer dtype [...]    in [0, n_cls), or equal to `ignore`
    prediction  any integer dtype, shape of labels; in [0, n_cls)
    ignore      the label that is not counted, whatever was predicted there
    return      int64 [n_cls, n_cls]
    Raises InputError for other shapes or values.
    """
    if labels.shape != prediction.shape:
        raise InputError(f"labels are {_size(labels)}, predictions {_size(prediction)}, expected equal sizes")
    flat = labels.ravel(), prediction.ravel()
    counts: Counts = np.zeros(n_cls * n_cls, np.int64)
    wrong: dict[str, tuple[int, int]] = {}  # the first value out of range, and how many there are
    for start in range(0, labels.size, _CHUNK):
        truth, guess = (array[start : start + _CHUNK].astype(np.int64) for array in flat)
        if ignore is not None:
            counted = truth != ignore
            truth, guess = truth[counted], guess[counted]
        for name, values in (("label", truth), ("predicted class", guess)):
            outside = values[(values < 0) | (values >= n_cls)]
            if outside.size:
                first, before = wrong.get(name, (int(outside[0]), 0))
                wrong[name] = first, before + outside.size
        if not wrong:
            counts += np.bincount(truth * n_cls + guess, minlength=n_cls * n_cls)
    for name in ("label", "predicted class"):
        if name in wrong:
            first, pixels = wrong[name]
            raise InputError(
                f"{name} {first} in {pixels} pixels, expected 0 to {n_cls - 1}"
                + (f" or {ignore} (ignored)" if ignore is not None else "; name a void label with --ignore")
            )
    return counts.reshape(n_cls, n_cls)


def metrics(matrix: Counts) -> Metrics:
    """mIoU, mAcc, aAcc and the values per class, in percent, of a confusion matrix int64 [C, C]."""
    right, truth, guess = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    iou = tuple(_percent(int(r), int(u)) for r, u in zip(right, truth + guess - right, strict=True))
    acc = tuple(_percent(int(r), int(t)) for r, t in zip(right, truth, strict=True))
    overall = _percent(int(right.sum()), int(matrix.sum()))
    return Metrics(_mean(iou), _mean(acc), math.nan if overall is None else overall, iou, acc)


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _mean(values: Sequence[float | None]) -> float:
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else math.nan


def _size(array: Array) -> str:
    return " x ".join(str(n) for n in array.shape[::-1])


# ------------------------------------------------------------------------------------------------------- data sets


@dataclass(frozen=True)
class Pair:
    """An image and its label image."""

    image: Path
    labels: Path


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk and what its label images hold.

    folders   (root, split) -> the folder of the images and the folder of the labels
    key       file -> what an image and its labels have in common; None for a file that is neither
    ignore    the stored label that is not counted
    offset    stored label - offset = class index
    n_cls     number of classes; None for any
    """

    folders: Callable[[Path, str], tuple[Path, Path]]
    key: Callable[[Path], str | None]
    ignore: int | None
    offset: int = 0
    n_cls: int | None = None


def _camvid(root: Path, split: str) -> tuple[Path, Path]:
    return root / split, root / f"{split}annot"


def _ade20k(root: Path, split: str) -> tuple[Path, Path]:
    name = {"val": "validation", "train": "training"}.get(split, split)
    nested = root / "ADEChallengeData2016"
    root = nested if nested.is_dir() else root
    return root / "images" / name, root / "annotations" / name


def _cityscapes(root: Path, split: str) -> tuple[Path, Path]:
    return root / "leftImg8bit" / split, root / "gtFine" / split


def _stem(file: Path) -> str | None:
    return file.stem if file.suffix.lower() in _IMAGE_SUFFIXES else None


def _cityscapes_key(file: Path) -> str | None:
    return _drive(file, "_leftImg8bit.png", "_gtFine_labelTrainIds.png")


def _idd_lite_key(file: Path) -> str | None:
    return _drive(file, "_image.jpg", "_label.png")


def _drive(file: Path, *endings: str) -> str | None:
    """Folder and name without its ending: names are unique within a drive only."""
    for ending in endings:
        if file.name.endswith(ending):
            return f"{file.parent.name}/{file.name.removesuffix(ending)}"
    return None


LAYOUTS = {
    "camvid": Layout(_camvid, _stem, ignore=11, n_cls=11),
    "ade20k": Layout(_ade20k, _stem, ignore=0, offset=1, n_cls=150),
    "cityscapes": Layout(_cityscapes, _cityscapes_key, ignore=255, n_cls=19),
    "idd_lite": Layout(_cityscapes, _idd_lite_key, ignore=255, n_cls=7),
    "pairs": Layout(_camvid, _stem, ignore=None),
}
"""What `--layout` takes; the folders of `pairs` are given one by one."""


def find_pairs(images: Path, labels: Path, key: Callable[[Path], str | None] = _stem) -> tuple[Pair, ...]:
    """Images and their labels, in the order of their names, sub-folders included.

    Raises InputError for a folder that is missing or empty, and when an image or a label image is alone.
    """
    found, wanted = (_by_key(folder, key) for folder in (images, labels))
    for left, right, folder, what in ((found, wanted, labels, "label image"), (wanted, found, images, "image")):
        alone = sorted(set(left) - set(right))
        if alone:
            raise InputError(
                f"{left[alone[0]]}: no {what} of this name in {folder} ({len(alone)} such); complete the folders"
            )
    return tuple(Pair(found[name], wanted[name]) for name in sorted(found))


def _by_key(folder: Path, key: Callable[[Path], str | None]) -> dict[str, Path]:
    try:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; check --root, --split and --layout")
        files = sorted(file for file in folder.rglob("*") if not file.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot read: {error.strerror}; check the permissions") from None
    keyed: dict[str, Path] = {}
    for file in files:
        name = key(file)
        if name is None:
            continue
        if name in keyed:
            raise InputError(f"{file}: {keyed[name]} has the same name, expected one file each; remove one")
        keyed[name] = file
    if not keyed:
        raise InputError(f"{folder}: no image in it, expected {', '.join(_IMAGE_SUFFIXES)}; check --root and --layout")
    return keyed


# ------------------------------------------------------------------------------------------------------ evaluation


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    confusion  int64 [C, C], rows are labels
    images     number of images
    """

    confusion: Counts
    images: int
    model: api.Model

    @property
    def metrics(self) -> Metrics:
        """Percentages from the confusion matrix."""
        return metrics(self.confusion)

    def as_json(self) -> dict[str, Any]:
        """What `intseg eval --json` prints; percentages, null where a class does not occur."""
        found = self.metrics
        return {
            "mIoU": _number(found.miou),
            "mAcc": _number(found.macc),
            "aAcc": _number(found.aacc),
            "IoU": list(found.iou),
            "acc": list(found.acc),
            "classes": list(self.model.info.classes),
            "confusion": self.confusion.tolist(),
            "images": self.images,
            "model": {"name": self.model.info.name, "sha256": self.model.sha256},
        }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know besides the pair."""

    weights: str
    sha256: str
    backend: str
    threads: int | None
    ignore: int | None
    offset: int


def evaluate(
    pairs: Sequence[Pair],
    weights: str | os.PathLike[str] | api.Model | None = None,
    *,
    backend: str = "auto",
    jobs: int = 1,
    ignore: int | None = None,
    offset: int = 0,
    progress: bool = False,
    journal: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Run a model on every image and count.

    jobs      processes; with more than one, a script needs its `if __name__ == "__main__"` (they are spawned)
    ignore, offset   as in `Layout`
    progress  a bar on standard error where that is a terminal
    journal   file that keeps the counts of every finished image: an evaluation that was killed continues from it and
              gives what an unbroken one gives. An image or label file that changed since is counted again
    Raises InputError naming the file for anything wrong with one, UsageError for a journal of another evaluation.
    """
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}, expected at least 1")
    model = api.load(weights)
    jobs = min(jobs, len(pairs)) or 1
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    job = _Job(str(model.path.absolute()), model.sha256, backends.resolve(backend), threads, ignore, offset)
    n_cls = len(model.info.classes)
    total = np.zeros((n_cls, n_cls), np.int64)
    if journal is None:
        for counts in _progress(_counts(pairs, model, job, jobs), len(pairs), 0, progress):
            total += counts
        return Evaluation(total, len(pairs), model)
    keys = [(_file_sha256(pair.image), _file_sha256(pair.labels)) for pair in pairs]
    with _Journal(Path(journal), job, pairs, n_cls) as book:
        for key in keys:
            total += book.done.get(key, 0)
        left = [i for i, key in enumerate(keys) if key not in book.done]
        found = _counts([pairs[i] for i in left], model, job, jobs)
        for i, counts in zip(left, _progress(found, len(pairs), len(pairs) - len(left), progress), strict=True):
            total += counts
            book.add(keys[i], counts)
    return Evaluation(total, len(pairs), model)


def _counts(pairs: Sequence[Pair], model: api.Model, job: _Job, jobs: int) -> Iterator[Counts]:
    """The confusion matrix of every pair, in order."""
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
        _worker = (api.load(Path(job.weights)), job)
    except IntsegError as error:  # raised here, it would be a traceback of the pool
        _worker = error


def _work(pair: Pair) -> Counts:
    assert _worker is not None
    if isinstance(_worker, IntsegError):
        raise _worker
    model, job = _worker
    if model.sha256 != job.sha256:
        raise MismatchError(f"{job.weights}: the file changed during the evaluation; run it again")
    return _count(pair, model, job)


def _count(pair: Pair, model: api.Model, job: _Job) -> Counts:
    """Confusion matrix of one image. The labels are read first: they are what is wrong most often."""
    stored = decode_labels(pair.labels).astype(np.int64)
    result = api.run(pair.image, model, job.backend, job.threads)
    if stored.shape != result.labels.shape:
        raise InputError(
            f"{pair.labels}: labels are {_size(stored)}, {pair.image} is {_size(result.labels)}, expected equal sizes"
        )
    ignore = None if job.ignore is None else job.ignore - job.offset
    try:
        return confusion(stored - job.offset, result.labels, len(model.info.classes), ignore)
    except InputError as error:
        shift = f" (stored label - {job.offset})" if job.offset else ""
        raise InputError(f"{pair.labels}: {error}{shift}") from None


def _progress(counts: Iterator[Counts], total: int, done: int, wanted: bool) -> Iterator[Counts]:
    if not wanted:
        return counts
    from tqdm import tqdm

    return iter(tqdm(counts, total=total, initial=done, unit="image", disable=None, leave=False))


# --------------------------------------------------------------------------------------------------------- journal

_Key = tuple[str, str]
"""sha256 of the image file and of the label file."""


class _Journal:
    """Counts of finished images: a JSON line each, appended once known. The first line says of what evaluation.

    Used as a context; `done` holds what an earlier run left. A last line that was cut off is dropped, and so is one
    that makes no sense: its image is counted again.
    """

    def __init__(self, path: Path, job: _Job, pairs: Sequence[Pair], n_cls: int) -> None:
        names = "\n".join(f"{pair.image.name}\t{pair.labels.name}" for pair in pairs)
        self.path, self.n_cls = path, n_cls
        self.header = {
            "intseg eval": 1,
            "model": job.sha256,
            "data set": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
            "ignored label": job.ignore,
            "label offset": job.offset,
        }
        self.done: dict[_Key, Counts] = {}
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

    def add(self, key: _Key, counts: Counts) -> None:
        """Note that an image is done."""
        cells = np.flatnonzero(counts)
        entries = [[int(cell), int(counts.flat[cell])] for cell in cells]
        try:
            self._append({"image": key[0], "labels": key[1], "counts": entries})
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
            if counts is not None:
                self.done[str(line.get("image")), str(line.get("labels"))] = counts

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


# ------------------------------------------------------------------------------------------------------ comparison


@dataclass(frozen=True)
class Comparison:
    """One evaluation minus another of the same pixels, in points of percent.

    miou, macc, aacc   differences; NaN where either is
    iou, acc   per class; None where either is
    name       of the other model
    """

    miou: float
    macc: float
    aacc: float
    iou: tuple[float | None, ...]
    acc: tuple[float | None, ...]
    name: str

    def as_json(self) -> dict[str, Any]:
        """What `intseg eval --json` prints under "compared"."""
        return {
            "with": self.name,
            "mIoU": _number(self.miou),
            "mAcc": _number(self.macc),
            "aAcc": _number(self.aacc),
            "IoU": list(self.iou),
            "acc": list(self.acc),
        }


@dataclass(frozen=True)
class Earlier:
    """An evaluation read from a file.

    path       of the file
    name       of the model
    confusion  int64 [C, C], rows are labels
    """

    path: Path
    name: str
    confusion: Counts


def read_earlier(path: str | os.PathLike[str], classes: Sequence[str]) -> Earlier:
    """What `intseg eval --json` wrote to a file.

    classes  of the model it will be compared with
    Raises InputError for a file that is not that, UsageError when it has other classes.
    """
    path = Path(path)
    try:
        found = strict_json.parse(path.read_text(encoding="utf-8"))
        names = tuple(str(name) for name in found["classes"])
        rows = [[int(count) for count in row] for row in found["confusion"]]
        matrix = np.array(rows, np.int64).reshape(len(names), len(names))
        name = one_line(str(found["model"]["name"]))
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}; give a file of intseg eval --json") from None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{path}: is not what intseg eval --json prints ({type(error).__name__}); redirect its output to a file"
        ) from None
    if (matrix < 0).any():
        raise InputError(f"{path}: counts {matrix.min()} pixels, expected none below zero; write the file again")
    if names != tuple(classes):
        raise UsageError(
            f"{path}: has {len(names)} classes {_few(names)}, this model {len(classes)} {_few(classes)}, "
            "expected equal ones; compare models of one data set"
        )
    return Earlier(path, name, matrix)


def compare(found: Evaluation, earlier: Earlier) -> Comparison:
    """An evaluation minus an earlier one with the same classes. Raises UsageError when that counted other labels."""
    theirs, ours = earlier.confusion.sum(axis=1), found.confusion.sum(axis=1)
    for i in np.flatnonzero(theirs != ours):
        raise UsageError(
            f"{earlier.path}: counted {theirs[i]} pixels of {found.model.info.classes[i]}, this evaluation {ours[i]}, "
            "expected the same images and labels; run both with the same --root, --split, --ignore and --limit"
        )
    old, new = metrics(earlier.confusion), found.metrics
    return Comparison(
        new.miou - old.miou,
        new.macc - old.macc,
        new.aacc - old.aacc,
        tuple(_minus(a, b) for a, b in zip(new.iou, old.iou, strict=True)),
        tuple(_minus(a, b) for a, b in zip(new.acc, old.acc, strict=True)),
        earlier.name,
    )


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _few(names: Sequence[str]) -> str:
    return f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
