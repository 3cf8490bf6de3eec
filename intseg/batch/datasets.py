"""Labelled data sets: where images and their label images lie, and what the label images hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from intseg import files
from intseg.batch.sources import Found, walk
from intseg.errors import InputError, UsageError
from intseg.images.decode import SUFFIXES
from intseg.images.labels import Labelling

Key = Callable[[str], str | None]
"""A file's path in its folder -> what an image and its labels have in common; None for a file that is neither."""


@dataclass(frozen=True)
class Pair:
    """An image and its label image.

    name  what both have in common: the path of the image in its folder, without its ending
    """

    image: Path
    labels: Path
    name: str = ""


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk and what its label images hold.

    folders  (root, split) -> the folder of the images and the folder of the labels
    n_cls    number of classes; None for any
    image    key of an image
    labels   keys of label images, each with what these hold: the first kind that is there is taken
    parts    (root, split) -> the file that lists the folders of a split; None where the split is a folder itself
    """

    folders: Callable[[Path, str], tuple[Path, Path]]
    n_cls: int | None
    image: Key
    labels: tuple[tuple[Key, Labelling], ...]
    parts: Callable[[Path, str], Path] | None = None

    @property
    def labelling(self) -> Labelling:
        """What the usual label images hold."""
        return self.labels[0][1]


@dataclass(frozen=True)
class Dataset:
    """The labelled images of a split.

    notes  what was left out or is unusual, one sentence each
    """

    pairs: tuple[Pair, ...]
    labelling: Labelling
    n_cls: int | None = None
    notes: tuple[str, ...] = ()

    def first(self, limit: int | None, every: int = 1) -> Dataset:
        """The first `limit` of every `every`-th pair. Raises UsageError for numbers below one."""
        for name, value in (("limit", limit), ("sample", every)):
            if value is not None and value < 1:
                raise UsageError(f"--{name} is {value}, expected at least 1")
        return replace(self, pairs=self.pairs[::every][:limit])

    def with_labels(self, ignore: tuple[int, ...] | None = None, **changes: object) -> Dataset:
        """With other ignored values, where given, and other changes of the labelling."""
        if ignore is not None:
            changes["ignore"] = ignore
        return replace(self, labelling=replace(self.labelling, **changes))  # type: ignore[arg-type]


def _camvid(root: Path, split: str) -> tuple[Path, Path]:
    return root / split, root / f"{split}annot"


def _ade20k(root: Path, split: str) -> tuple[Path, Path]:
    name = {"val": "validation", "train": "training"}.get(split, split)
    nested = root / "ADEChallengeData2016"
    root = nested if nested.is_dir() else root
    return root / "images" / name, root / "annotations" / name


def _cityscapes(root: Path, split: str) -> tuple[Path, Path]:
    return root / "leftImg8bit" / split, root / "gtFine" / split


def _davis(root: Path, split: str) -> tuple[Path, Path]:
    return root / "JPEGImages" / "480p", root / "Annotations" / "480p"


def _vspw(root: Path, split: str) -> tuple[Path, Path]:
    return root / "data", root / "data"


def _inside(folder: str) -> Key:
    """Of `video/folder/frame.png`, video and frame."""

    def key(file: str) -> str | None:
        path = PurePosixPath(file)
        return f"{path.parts[0]}/{path.stem}" if len(path.parts) == 3 and path.parts[1] == folder else None

    return key


def _whole(file: str) -> str:
    """Folders and name without its ending."""
    return PurePosixPath(file).with_suffix("").as_posix()


def _ending(ending: str) -> Key:
    """The same without the end of the name, for files that end so."""

    def key(file: str) -> str | None:
        name = _whole(file)
        return name.removesuffix(ending) if name.endswith(ending) else None

    return key


_TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CITYSCAPES_IDS = Labelling(
    ignore=(*(i for i in range(34) if i not in _TRAINED), 255),
    stored=tuple((value, index) for index, value in enumerate(_TRAINED)),
)
"""The label numbers of Cityscapes as they are published; the 19 classes that are trained have train ids."""

LAYOUTS = {
    "camvid": Layout(_camvid, 11, _whole, ((_whole, Labelling((11,))),)),
    "ade20k": Layout(_ade20k, 150, _whole, ((_whole, Labelling((0,), offset=1)),)),
    "cityscapes": Layout(
        _cityscapes,
        19,
        _ending("_leftImg8bit"),
        ((_ending("_gtFine_labelTrainIds"), Labelling((255,))), (_ending("_gtFine_labelIds"), _CITYSCAPES_IDS)),
    ),
    "idd_lite": Layout(_cityscapes, 7, _ending("_image"), ((_ending("_label"), Labelling((255,))),)),
    "davis": Layout(
        _davis, None, _whole, ((_whole, Labelling((255,))),), lambda root, split: root / f"ImageSets/2017/{split}.txt"
    ),
    "vspw": Layout(
        _vspw,
        124,
        _inside("origin"),
        ((_inside("mask"), Labelling((0, 255), offset=1)),),
        lambda root, split: root / f"{split}.txt",
    ),
    "pairs": Layout(_camvid, None, _whole, ((_whole, Labelling()),)),
}
"""What `--layout` takes; the folders of `pairs` may be given one by one."""


def open_dataset(name: str, root: Path, split: str) -> Dataset:
    """A split of a data set in a layout of LAYOUTS. Raises as `open_folders`, and without the list of its parts."""
    layout = LAYOUTS[name]
    parts = _listed(layout.parts(root, split)) if layout.parts else None
    return open_folders(*layout.folders(root, split), layout, parts)


def _listed(path: Path) -> frozenset[str]:
    """The folders of a split."""
    text = files.read_text(path, "", "check --root, --split and --layout")
    return frozenset(line.strip() for line in text.splitlines() if line.strip())


def open_folders(
    images: Path, labels: Path, layout: Layout = LAYOUTS["pairs"], parts: frozenset[str] | None = None
) -> Dataset:
    """Images and their labels in the order of their names, sub-folders included.

    parts  the folders that count; None for all
    Raises InputError for a folder that is missing or empty, and when an image or a label image is alone.
    """
    found, held = _walked(images), _walked(labels, outputs=False)
    if parts is not None:
        for walked in (found, held):
            walked.files = [file for file in walked.files if file.partition("/")[0] in parts]
    keyed = _by_key(images, found, layout.image, "image")
    kind = next((i for i, (key, _) in enumerate(layout.labels) if any(map(key, held.files))), 0)
    key, labelling = layout.labels[kind]
    wanted = _by_key(labels, held, key, "label image")
    for left, right, folder, walked, what in (
        (keyed, wanted, labels, held, "label image"),
        (wanted, keyed, images, found, "image"),
    ):
        alone = sorted(set(left) - set(right))
        if alone:
            others = f"; left out there: {walked.left_out.short()}" if walked.left_out else ""
            raise InputError(
                f"{left[alone[0]]}: no {what} of this name in {folder} ({len(alone)} such); "
                f"complete the folders{others}"
            )
    notes = [
        f"left out in {place}: {walk.left_out.short()}"
        for place, walk in ((images, found), (labels, held))
        if walk.left_out
    ]
    if kind:
        notes.append(f"{labels}: label images hold the published numbers, which are mapped to the trained classes")
    pairs = tuple(Pair(keyed[name], wanted[name], name) for name in sorted(keyed, key=lambda n: PurePosixPath(n).parts))
    return Dataset(pairs, labelling, layout.n_cls, tuple(notes))


def find_pairs(images: Path, labels: Path) -> tuple[Pair, ...]:
    """Images and label images of equal names in two folders, as `open_folders`."""
    return open_folders(images, labels).pairs


def _walked(folder: Path, outputs: bool = True) -> Found:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check --root, --split and --layout")
    return walk(folder, outputs=outputs)


def _by_key(folder: Path, found: Found, key: Key, what: str) -> dict[str, Path]:
    keyed: dict[str, Path] = {}
    for file in found.files:
        name = key(file)
        if name is None:
            continue
        if name in keyed:
            raise InputError(
                f"{folder / file}: {keyed[name]} has the same name but for its ending, expected one file each; "
                "remove one"
            )
        keyed[name] = folder / file
    if not keyed:
        others = f"{len(found.files)} others, such as {found.files[0]}" if found.files else ""
        held = " and ".join(filter(None, (others, found.left_out.short()))) or "nothing"
        raise InputError(
            f"{folder}: no {what} in it, found {held}, expected {', '.join(SUFFIXES)}; check --root and --layout"
        )
    return keyed
