"""Accuracy of a classifier: images with one class each, in a list or in a folder for every class; top-1 and top-5."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intseg import api, backends, files
from intseg.batch import executors
from intseg.batch import journal as journals
from intseg.batch.executors import Executor, Task
from intseg.batch.metrics import number
from intseg.batch.shards import Shard
from intseg.batch.sources import lines, walk
from intseg.errors import InputError, UsageError
from intseg.images import decode as pictures
from intseg.images.notes import Notes
from intseg.progress import shown

TOP = 5
KIND = "eval classes"
"""Of its journals."""

DIGITS = 16
"""Of a digest of logits in JSON."""


@dataclass(frozen=True)
class Example:
    """An image and the number of its class; `name` is its path in the data set."""

    image: Path
    label: int
    name: str


# -------------------------------------------------------------------------------------------------------- data sets


def open_imagenet(
    root: Path, split: str, classes: Sequence[str], listed: Path | None = None
) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """Images with their classes, in the order of their names, and notes on what was left out.

    root, split  folder of the images, or of its part of this name where there is one
    classes      of the model
    listed       file of "image class" lines, class a number or as a folder is named; None: root has a folder for every
                 class, named as the class or as the first word of its name (n01440764), or as many folders as classes,
                 which are counted in the order of their names. root/labels.txt beside root/images is taken too
    Raises InputError.
    """
    if listed is None and (root / "labels.txt").is_file():
        listed = root / "labels.txt"
    part = next((root / name for name in (split, "images") if (root / name).is_dir()), root)
    if listed is not None:
        return tuple(_of_list(listed, part, classes)), ()
    if not part.is_dir():
        raise InputError(f"{part}: no such folder; check --root and --split")
    found = walk(part)
    folders = sorted({name.split("/")[0] for name in found.files if "/" in name})
    if not folders:
        raise InputError(f"{part}: no folder with images in it, expected one for every class, or --labels LIST")
    numbers = _numbers_of(folders, classes, part)
    examples = [Example(part / name, numbers[name.split("/")[0]], name) for name in found.files if "/" in name]
    notes = (f"left out in {part}: {found.left_out.short()}",) if found.left_out else ()
    return tuple(examples), notes


def _by_word(classes: Sequence[str]) -> dict[str, int]:
    """Numbers of classes by the first words of their names, and by the names."""
    words = {name.split()[0]: i for i, name in reversed(list(enumerate(classes))) if name.split()}
    return words | {name: i for i, name in enumerate(classes)}


def _numbers_of(folders: Sequence[str], classes: Sequence[str], part: Path) -> dict[str, int]:
    """Numbers of classes by folder. Raises InputError."""
    named = _by_word(classes)
    if all(folder in named for folder in folders):
        return {folder: named[folder] for folder in folders}
    if len(folders) == len(classes):
        return {folder: i for i, folder in enumerate(folders)}
    stranger = next(folder for folder in folders if folder not in named)
    raise InputError(
        f"{part / stranger}: is no class of the model, and {len(folders)} folders are not {len(classes)}; "
        "give the model these names (intseg convert --classes), or name the classes in a list with --labels"
    )


def _of_list(path: Path, folder: Path, classes: Sequence[str]) -> Iterator[Example]:
    named, seen = _by_word(classes), set[str]()
    for line in lines(path):
        name, _, word = line.rpartition(" ")
        known = int(word) if word.isdecimal() and len(word) < 6 else named.get(word, -1)
        if not name or not 0 <= known < len(classes):
            raise InputError(
                f"{path}: {line!r:.80} is no image and class, expected 'name.jpg 17' with a number below {len(classes)}"
            )
        name = name.strip()
        if name in seen:
            raise InputError(f"{path}: has {name!r:.80} twice, expected every image once; leave one out")
        seen.add(name)
        files.require_inside(folder / name, folder)
        yield Example(folder / name, known, name)


# ------------------------------------------------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Found:
    """What was found in an image: the class, the place of the right one in the order of the logits, from 1 on.

    image   sha256 of its file
    logits  sha256 of the INT32 logits, little-endian
    """

    image: str
    label: int
    index: int
    rank: int
    logits: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Accuracy:
    """A finished evaluation.

    images         how many
    first, within  how many have the right class first, and among the best 5
    name, sha256   of the model
    found          by the name of the image in the data set
    """

    images: int
    first: int
    within: int
    name: str
    sha256: str
    found: Mapping[str, Found]
    notes: Notes = field(default_factory=Notes)

    @property
    def top1(self) -> float:
        """Percent; NaN where no image was seen, as in a shard that has none."""
        return 100 * self.first / self.images if self.images else math.nan

    @property
    def top5(self) -> float:
        """Percent; NaN likewise."""
        return 100 * self.within / self.images if self.images else math.nan

    def as_json(self) -> dict[str, Any]:
        """What `intseg eval --json` prints."""
        counts = {"top1": number(self.top1), "top5": number(self.top5), "images": self.images, "right": self.first}
        each = {name: [one.label, one.index, one.logits[:DIGITS]] for name, one in self.found.items()}
        about = {"notes": self.notes.as_json(), "model": {"name": self.name, "sha256": self.sha256}}
        return {**counts, "right in 5": self.within, **about, "each": each}


@dataclass(frozen=True)
class Item:
    """An example for a worker; the bytes of its image, where they travel."""

    example: Example
    data: bytes | None = None


def evaluate(
    examples: Sequence[Example],
    model: api.Model,
    *,
    backend: str = "auto",
    progress: bool = False,
    journal: Path | None = None,
    shard: Shard | None = None,
    executor: Executor | None = None,
    each: Callable[[Example, Found], None] = lambda example, found: None,
) -> Accuracy:
    """Run a classifier on every image and count. Arguments and errors as of `intseg.batch.evaluate.evaluate`.

    each  is told what was found in every image
    """
    require_classifier(model)
    if not examples:
        raise InputError("no image to classify; check --root and --labels")
    executor = executor or executors.local(1, len(examples))
    task: Task[Item, Found] = Task(_start, model, backends.resolve(backend), executor.threads)
    part = [example for example in examples if shard is None or shard.has(example.name)]
    if journal is None:
        found = _ranked(part, task, executor, len(part), progress)
        return _accuracy(_told(found, each), model)
    names = "\n".join(f"{example.name}\t{example.label}" for example in examples)
    header = {
        "model": model.identity,
        "model name": model.info.name,
        "data set": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
        "images": len(examples),
    }
    with journals.Journal(journal, KIND, header | ({"shard": str(shard)} if shard else {})) as book:
        known = {e.name: line for e in part if (line := _restored(book.lines.get(journals.item_of(e.name), {}), e))}
        left = [example for example in part if example.name not in known]
        for example, one in _ranked(left, task, executor, len(part), progress):
            book.add(journals.item_of(example.name), vars(one) | {"notes": list(one.notes)})
            known[example.name] = one
    return _accuracy(_told(((e, known[e.name]) for e in part), each), model)


def require_classifier(model: api.Model) -> None:
    """Raise UsageError for a model that labels pixels."""
    if not model.info.classifies:
        raise UsageError(
            f"model {model.info.name} is for segmentation, layout imagenet needs a classifier; "
            "give another model with -w, or another --layout"
        )


def _told(
    found: Iterable[tuple[Example, Found]], each: Callable[[Example, Found], None]
) -> Iterator[tuple[str, Found]]:
    for example, one in found:
        each(example, one)
        yield journals.item_of(example.name), one


def _accuracy(found: Iterable[tuple[str, Found]], model: api.Model) -> Accuracy:
    return _summed(dict(found), model.info.name, model.sha256)


def _summed(found: Mapping[str, Found], name: str, sha256: str) -> Accuracy:
    notes = Notes()
    for file, one in found.items():
        notes.add(file, *one.notes)
    ranks = [one.rank for one in found.values()]
    return Accuracy(len(ranks), ranks.count(1), sum(rank <= TOP for rank in ranks), name, sha256, found, notes)


def _ranked(
    examples: Sequence[Example], task: Task[Item, Found], executor: Executor, total: int, progress: bool
) -> Iterator[tuple[Example, Found]]:
    items = (Item(example, pictures.read(example.image)) for example in examples)
    found: Iterable[Found] = executor.run(task, items if executor.ships else map(Item, examples))
    found = shown(found, "evaluating", total, "image", total - len(examples), quiet=not progress)
    yield from zip(examples, found, strict=True)


def _start(model: api.Model, backend: str, threads: int | None) -> Callable[[Item], Found]:
    """A worker."""
    return functools.partial(rank, model=model, backend=backend, threads=threads)


def rank(item: Item, model: api.Model, backend: str, threads: int | None) -> Found:
    """What is found in one image. Raises InputError naming it."""
    example = item.example
    data = item.data or pictures.read(example.image)
    picture = pictures.decode(data, model.info.pad, str(example.image))
    result = api.run_picture(picture, model, backend, threads)
    order = [best.index for best in result.top(len(model.info.classes))]
    digest = hashlib.sha256(data).hexdigest()
    logits = hashlib.sha256(result.logits.astype("<i4").tobytes()).hexdigest()
    return Found(digest, example.label, order[0], 1 + order.index(example.label), logits, result.notes)


def _restored(line: Mapping[str, Any], example: Example | None) -> Found | None:
    """What a line of a journal tells of; None if it makes no sense, or the image is not the one that was seen."""
    numbers, notes = [line.get(key, -1) for key in ("label", "index", "rank")], line.get("notes")
    if not all(type(n) is int and 0 <= n <= 2**16 for n in numbers) or not isinstance(notes, list):
        return None
    if not all(isinstance(note, str) for note in notes):
        return None
    label, index, place = map(int, numbers)
    found = Found(str(line.get("image")), label, index, place, str(line.get("logits")), tuple(notes))
    if example is not None and (found.label != example.label or found.image != files.sha256(example.image)):
        return None
    return found


def merge(paths: Sequence[str]) -> Accuracy:
    """What the journals of one evaluation's shards give together.

    Raises UsageError for journals of different evaluations, InputError when images are missing.
    """
    first: dict[str, Any] = {}
    found: dict[str, Found] = {}
    for path in map(Path, paths):
        header, held = journals.read(path, KIND)
        header.pop("shard", None)
        first = first or header
        if header != first:
            other = [key for key in header if header[key] != first.get(key)]
            raise UsageError(
                f"{path}: has another {' and '.join(other)} than {paths[0]}; merge parts of one evaluation"
            )
        found |= {name: one for name, line in held.items() if (one := _restored(line, None))}
    if not found or len(found) != first.get("images"):
        raise InputError(
            f"{', '.join(paths)}: hold {len(found)} of {first.get('images')} images; finish every shard, "
            "and name all journals"
        )
    ordered = {name: found[name] for name in sorted(found)}
    return _summed(ordered, str(first.get("model name")), str(first.get("model"))[:64])
