"""Accuracy on a labelled data set: a model runs on every image, and its labels are counted."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg import api, backends, files
from intseg import views as test_views
from intseg.batch import executors, journal
from intseg.batch.datasets import Pair
from intseg.batch.executors import Executor, Task
from intseg.batch.metrics import Counts, Metrics, confusion, metrics, number, shifted
from intseg.batch.shards import Shard
from intseg.errors import InputError, UsageError
from intseg.images import decode as pictures
from intseg.images.labels import Labelling, truth
from intseg.images.notes import Notes
from intseg.progress import shown

Array = NDArray[Any]
_CLASSES = 4096
_MOST = 2**31
"""Pixels of one image at most, in a journal: Pillow opens a tenth of that."""


@dataclass(frozen=True)
class Measured:
    """What an evaluation says of its model."""

    name: str
    sha256: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    confusion  int64 [C, C], rows are labels
    images     number of images
    model      what was measured
    notes      what was done to decode them
    """

    confusion: Counts
    images: int
    model: Measured
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
            "classes": list(self.model.classes),
            "confusion": self.confusion.tolist(),
            "images": self.images,
            "notes": self.notes.as_json(),
            "model": {"name": self.model.name, "sha256": self.model.sha256},
        }


@dataclass(frozen=True)
class Counted:
    """What was found in a pair: its confusion matrix, sha256 of the image file and of the label file, notes."""

    counts: Counts
    image: str
    labels: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """A pair for a worker; the bytes of its files, where they travel."""

    pair: Pair
    data: tuple[bytes, bytes] | None = None


def evaluate(
    pairs: Sequence[Pair],
    weights: str | os.PathLike[str] | api.Model | None = None,
    *,
    backend: str = "auto",
    jobs: int = 1,
    labelling: Labelling | None = None,
    progress: bool = False,
    journal: str | os.PathLike[str] | None = None,
    shard: Shard | None = None,
    executor: Executor | None = None,
    views: Sequence[int] = (),
) -> Evaluation:
    """Run a model on every image and count.

    jobs       processes; with more than one, a script needs its `if __name__ == "__main__"` (they are spawned)
    labelling  what the label images hold; None: class indices
    progress   how far it is, on standard error
    journal    file that keeps the counts of every finished image: an evaluation that was killed continues from it and
               gives what an unbroken one gives. An image or label file that changed since is counted again
    shard      count only this part of the pairs; `merge` joins the journals of all parts
    executor   where, in place of `jobs`
    views      percentages of the size that an image is looked at, as it is and mirrored (SPEC 7.3); none: as it is
    Raises InputError naming the file for anything wrong with one, UsageError for a journal of another evaluation.
    """
    model = api.load(weights)
    executor = executor or executors.local(jobs, len(pairs))
    labelling, n_cls = labelling or Labelling(), len(model.info.classes)
    looks = tuple(views)
    task: Task[Item, Counted] = Task(_start, model, backends.resolve(backend), executor.threads, labelling, looks)
    part = [pair for pair in pairs if shard is None or shard.has(pair.name)]
    total = _Total(n_cls)
    if journal is None:
        for pair, found in _counted(part, task, executor, len(part), progress):
            total.add(str(pair.image), found)
        return total.evaluation(_measured(model))
    with _book(Path(journal), model, pairs, labelling, shard, looks) as book:
        left = []
        for pair in part:
            known = _restored(book.lines.get(_name(pair), {}), n_cls)
            if known is not None and _is_of(known, pair):
                total.add(str(pair.image), known)
            else:
                left.append(pair)
        for pair, found in _counted(left, task, executor, len(part), progress):
            total.add(str(pair.image), found)
            book.add(_name(pair), _entry(found))
    return total.evaluation(_measured(model))


class _Total:
    """The sum over images."""

    def __init__(self, n_cls: int) -> None:
        self.counts, self.notes, self.images = np.zeros((n_cls, n_cls), np.int64), Notes(), 0

    def add(self, file: str, found: Counted) -> None:
        self.counts += found.counts
        self.images += 1
        self.notes.add(file, *found.notes)

    def evaluation(self, model: Measured) -> Evaluation:
        return Evaluation(self.counts, self.images, model, self.notes)


def _measured(model: api.Model) -> Measured:
    return Measured(model.info.name, model.sha256, model.info.classes)


def _counted(
    pairs: Sequence[Pair], task: Task[Item, Counted], executor: Executor, total: int, progress: bool
) -> Iterator[tuple[Pair, Counted]]:
    """What is found in every pair, in order."""
    items = (Item(pair, (pictures.read(pair.image), pictures.read(pair.labels))) for pair in pairs)
    found: Iterable[Counted] = executor.run(task, items if executor.ships else map(Item, pairs))
    found = shown(found, "evaluating", total, "image", total - len(pairs), quiet=not progress)
    yield from zip(pairs, found, strict=True)


def _start(
    model: api.Model, backend: str, threads: int | None, labelling: Labelling, views: tuple[int, ...]
) -> Callable[[Item], Counted]:
    """A worker."""
    return functools.partial(count, model=model, backend=backend, threads=threads, labelling=labelling, views=views)


def count(
    item: Item,
    model: api.Model,
    backend: str,
    threads: int | None,
    labelling: Labelling,
    views: tuple[int, ...] = (),
) -> Counted:
    """What is found in one pair. The labels are read before the work: they are what is wrong most often."""
    pair, n_cls = item.pair, len(model.info.classes)
    image, labels = item.data or (pictures.read(pair.image), pictures.read(pair.labels))
    picture = pictures.decode(image, model.info.pad, str(pair.image))
    found, notes = truth(pair.labels, picture, n_cls, labelling, str(pair.image), labels)
    if views:
        seen = test_views.labels(picture.rgb, model.info, views, model.compiled(backend, threads))
        said: tuple[str, ...] = (*picture.notes, f"seen in {2 * len(views)} views")
    else:
        result = api.run_picture(picture, model, backend, threads)
        seen, said = result.labels, result.notes
    counts = confusion(found, seen, n_cls, ignore=-1)
    digests = hashlib.sha256(image).hexdigest(), hashlib.sha256(labels).hexdigest()
    return Counted(counts, *digests, (*said, *notes))


# --------------------------------------------------------------------------------------------------------- journal


def _book(
    path: Path,
    model: api.Model,
    pairs: Sequence[Pair],
    labelling: Labelling,
    shard: Shard | None,
    views: tuple[int, ...],
) -> journal.Journal:
    names = "\n".join(f"{pair.name}\t{pair.labels.name}" for pair in pairs)
    header = {
        "model": model.identity,
        "model name": model.info.name,
        "classes": list(model.info.classes),
        "data set": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
        "images": len(pairs),
        "meaning of labels": str(labelling),
    }
    header |= {"views": list(views)} if views else {}
    return journal.Journal(path, "eval", header | ({"shard": str(shard)} if shard else {}))


def _name(pair: Pair) -> str:
    return journal.item_of(pair.name)


def _entry(found: Counted) -> dict[str, Any]:
    """The line of an image in the journal: the cells of its matrix that are not zero."""
    cells = [[int(cell), int(found.counts.flat[cell])] for cell in np.flatnonzero(found.counts)]
    return {"image": found.image, "labels": found.labels, "counts": cells, "notes": list(found.notes)}


def _restored(line: Mapping[str, Any], n_cls: int) -> Counted | None:
    """What a line tells of; None if it makes no sense."""
    cells, notes = line.get("counts"), line.get("notes")
    if not isinstance(cells, list) or not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        return None
    counts = np.zeros(n_cls**2, np.int64)
    for entry in cells:
        if not (isinstance(entry, list) and len(entry) == 2 and all(type(n) is int for n in entry)):
            return None
        if not (0 <= entry[0] < counts.size and 0 < entry[1] <= _MOST):
            return None
        counts[entry[0]] = entry[1]
    if int(counts.sum()) > _MOST:
        return None
    return Counted(counts.reshape(n_cls, n_cls), str(line.get("image")), str(line.get("labels")), tuple(notes))


def _is_of(known: Counted, pair: Pair) -> bool:
    """Whether a pair's files are those that were counted. Raises InputError for a file that cannot be read."""
    return known.image == files.sha256(pair.image) and known.labels == files.sha256(pair.labels)


def merge(paths: Sequence[str | os.PathLike[str]]) -> Evaluation:
    """What the journals of one evaluation's shards give together: the same as the evaluation in one piece.

    Raises UsageError for journals of different evaluations, InputError when images are missing.
    """
    first: dict[str, Any] = {}
    lines: dict[str, dict[str, Any]] = {}
    for path in map(Path, paths):
        header, found = journal.read(path, "eval")
        header.pop("shard", None)
        first = first or header
        if header != first:
            other = [key for key in header if header[key] != first.get(key)]
            raise UsageError(
                f"{path}: has another {' and '.join(other)} than {paths[0]}; merge parts of one evaluation"
            )
        lines |= found
    classes = first.get("classes")
    if not isinstance(classes, list) or not 1 <= len(classes) <= _CLASSES:
        raise InputError(
            f"{paths[0]}: names {classes!r:.40} as classes, expected 1 to {_CLASSES} names; evaluate again"
        )
    total = _Total(len(classes))
    for name in sorted(lines):
        known = _restored(lines[name], len(classes))
        if known is not None:
            total.add(name, known)
    if total.images != first.get("images"):
        raise InputError(
            f"{', '.join(map(str, paths))}: hold {total.images} of {first.get('images')} images; finish every shard, "
            "and name all journals"
        )
    return total.evaluation(
        Measured(str(first.get("model name")), str(first.get("model"))[:64], tuple(map(str, classes)))
    )
