"""Labelled data sets: where images and their label images lie, and what the label images hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from intseg.errors import InputError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


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
