"""An evaluation against an earlier one of the same pixels, or of the same images of a classifier."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intseg import files
from intseg.batch.classified import DIGITS, Accuracy
from intseg.batch.evaluate import Evaluation
from intseg.batch.metrics import MAX_COUNT, Counts, metrics, number
from intseg.errors import InputError, UsageError, one_line


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
            "mIoU": number(self.miou),
            "mAcc": number(self.macc),
            "aAcc": number(self.aacc),
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
        found = files.parse_json(_text(path))
        names = tuple(str(name) for name in found["classes"])
        rows = [[int(count) for count in row] for row in found["confusion"]]
        matrix = np.array(rows, np.int64).reshape(len(names), len(names))
        name = one_line(str(found["model"]["name"]))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise _not_that(path, error) from None
    if (matrix < 0).any() or sum(map(sum, rows)) > MAX_COUNT:
        found = matrix.min() if (matrix < 0).any() else sum(map(sum, rows))
        raise InputError(f"{path}: counts {found} pixels, expected 0 to 2^62; write the file again")
    if names != tuple(classes):
        raise UsageError(
            f"{path}: has {len(names)} classes {_few(names)}, this model {len(classes)} {_few(classes)}, "
            "expected equal ones; compare models of one data set"
        )
    return Earlier(path, name, matrix)


def _text(path: Path) -> str:
    return files.read_text(path, "", "give a file of intseg eval --json", pipes=True)


def _not_that(path: Path, error: Exception) -> InputError:
    name = type(error).__name__
    return InputError(f"{path}: is not what intseg eval --json prints ({name}); redirect its output to a file")


def compare(found: Evaluation, earlier: Earlier) -> Comparison:
    """An evaluation minus an earlier one with the same classes. Raises UsageError when that counted other labels."""
    theirs, ours = earlier.confusion.sum(axis=1), found.confusion.sum(axis=1)
    for i in np.flatnonzero(theirs != ours):
        raise UsageError(
            f"{earlier.path}: counted {theirs[i]} pixels of {found.model.classes[i]}, this evaluation {ours[i]}, "
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


@dataclass(frozen=True)
class ClassComparison:
    """One evaluation of a classifier beside another of the same images.

    top1, top5  differences, in points of percent
    same        images in which both find the same class first
    equal       images in which all logits are equal
    images      how many there are
    name        of the other model
    """

    top1: float
    top5: float
    same: int
    equal: int
    images: int
    name: str

    def as_json(self) -> dict[str, Any]:
        """What `intseg eval --json` prints under "compared"."""
        points = {"top1": number(self.top1), "top5": number(self.top5)}
        return {"with": self.name, **points, "same first": self.same, "equal logits": self.equal}


def compare_classes(found: Accuracy, path: str | os.PathLike[str]) -> ClassComparison:
    """An evaluation of a classifier beside the one that `intseg eval --json` wrote to a file.

    Raises InputError for a file that is not that, UsageError when it has other images or other classes of them.
    """
    path = Path(path)
    try:
        earlier = files.parse_json(_text(path))
        each = {
            str(name): (int(label), int(index), str(logits)) for name, (label, index, logits) in earlier["each"].items()
        }
        top1, top5 = (100 * int(earlier[key]) / len(each) for key in ("right", "right in 5"))
        name = one_line(str(earlier["model"]["name"]))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise _not_that(path, error) from None
    for image in sorted(each.keys() ^ found.found.keys()):
        here, there = ("has no", "has it") if image in found.found else ("has", "has not")
        raise UsageError(
            f"{path}: {here} {image!r:.80}, this evaluation {there}, expected the same images; run both with the same "
            "--root, --split, --labels and --limit"
        )
    for image, one in found.found.items():
        if one.label != each[image][0]:
            raise UsageError(
                f"{path}: has class {each[image][0]} for {image!r:.80}, this evaluation {one.label}, expected the "
                "same; run both with the same --labels"
            )
    pairs = [(one, each[image]) for image, one in found.found.items()]
    same = sum(one.index == index for one, (_, index, _) in pairs)
    equal = sum(one.logits[:DIGITS] == logits for one, (_, _, logits) in pairs)
    return ClassComparison(found.top1 - top1, found.top5 - top5, same, equal, len(pairs), name)


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _few(names: Sequence[str]) -> str:
    return f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
