"""Accuracy on a labelled data set: an exact confusion matrix, and mIoU, mAcc and aAcc from it.

Floating point appears only in the last step, from counts to percentages.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg import api, backends
from intseg.errors import InputError, MismatchError, UsageError
from intseg.image import decode_labels

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
    truth, guess = labels.ravel().astype(np.int64), prediction.ravel().astype(np.int64)
    if ignore is not None:
        counted = truth != ignore
        truth, guess = truth[counted], guess[counted]
    for name, values in (("label", truth), ("predicted class", guess)):
        wrong = values[(values < 0) | (values >= n_cls)]
        if wrong.size:
            raise InputError(
                f"{name} {wrong[0]} in {wrong.size} pixels, expected 0 to {n_cls - 1}"
                + (f" or {ignore} (ignored)" if ignore is not None else "; name a void label with --ignore")
            )
    counts: Counts = np.bincount(truth * n_cls + guess, minlength=n_cls * n_cls).astype(np.int64)
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
    for ending in ("_leftImg8bit.png", "_gtFine_labelTrainIds.png"):
        if file.name.endswith(ending):
            return f"{file.parent.name}/{file.name.removesuffix(ending)}"
    return None


LAYOUTS = {
    "camvid": Layout(_camvid, _stem, ignore=11, n_cls=11),
    "ade20k": Layout(_ade20k, _stem, ignore=0, offset=1, n_cls=150),
    "cityscapes": Layout(_cityscapes, _cityscapes_key, ignore=255, n_cls=19),
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
) -> Evaluation:
    """Run a model on every image and count.

    jobs      processes; with more than one, a script needs its `if __name__ == "__main__"` (they are spawned)
    ignore, offset   as in `Layout`
    progress  a bar on standard error where that is a terminal
    Raises InputError naming the file for anything wrong with one.
    """
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}, expected at least 1")
    model = api.load(weights)
    jobs = min(jobs, len(pairs)) or 1
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    job = _Job(str(model.path.absolute()), model.sha256, backends.resolve(backend), threads, ignore, offset)
    n_cls = len(model.info.classes)
    total = np.zeros((n_cls, n_cls), np.int64)
    for counts in _progress(_counts(pairs, model, job, jobs), len(pairs), progress):
        total += counts
    return Evaluation(total, len(pairs), model)


def _counts(pairs: Sequence[Pair], model: api.Model, job: _Job, jobs: int) -> Iterator[Counts]:
    """The confusion matrix of every pair, in order."""
    if jobs == 1:
        yield from (_count(pair, model, job) for pair in pairs)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_start_worker, initargs=(job,)) as pool:
        try:
            yield from pool.map(_work, pairs)
        finally:
            pool.shutdown(cancel_futures=True)


_worker: tuple[api.Model, _Job] | None = None


def _start_worker(job: _Job) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles it and stops the workers
    _worker = (api.load(Path(job.weights)), job)


def _work(pair: Pair) -> Counts:
    assert _worker is not None
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


def _progress(counts: Iterator[Counts], total: int, wanted: bool) -> Iterator[Counts]:
    if not wanted:
        return counts
    from tqdm import tqdm

    return iter(tqdm(counts, total=total, unit="image", disable=None, leave=False))
