"""Class names and colours for converted models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from intseg import files, palettes
from intseg.images.overlay import PALETTES

Colour = tuple[int, int, int]


def numbered(count: int) -> dict[str, Colour]:
    """Names "class 0" and so on, with colours spread by the golden angle."""
    return {f"class {i}": PALETTES["distinct"](i, count) for i in range(count)}


def read(file: Path) -> dict[str, Colour]:
    """One class a line, in the order of the scores: a name, optionally followed by three integers after a tab.

    Lines that begin with "//" are comments. Raises ValueError naming the line, InputError for an unreadable file.
    """
    classes: dict[str, Colour] = {}
    for number, line in enumerate(files.read_text(file, "the classes").rstrip("\n").split("\n")):
        if line.startswith("//"):
            continue
        name, _, colour = line.partition("\t")
        distinct = PALETTES["distinct"](len(classes), 0)
        values = [int(v) for v in colour.split() if v.isdecimal()] if colour else distinct
        if not name.strip() or name.strip() in classes or len(values) != 3 or max(values) > 255:
            raise ValueError(f"{file}, line {number + 1}: {line!r}, expected a new name, or name<tab>red green blue")
        classes[name.strip()] = (values[0], values[1], values[2])
    return classes


def named(given: str) -> dict[str, Colour]:
    """Classes of a known data set, or of a file."""
    return read(palettes.files().get(given, Path(given)))


def for_model(
    count: int, dataset: str, given: str | None, stated: Mapping[str, Colour] | None = None
) -> dict[str, Colour]:
    """Classes of a model: those asked for, those its checkpoint states, those of its data set, or numbered ones.

    given   a file, a known data set's name, or None
    stated  by the checkpoint's meta, of `count` classes; None where it says nothing
    Raises ValueError when the file or the named data set has another number of classes.
    """
    if given is None:
        known = stated or (named(dataset) if dataset in palettes.files() else {})
        return dict(known) if len(known) == count else numbered(count)
    classes = named(given)
    if len(classes) != count:
        raise ValueError(f"{given} has {len(classes)} classes, the checkpoint has {count}")
    return classes
