"""Class names and colours for converted models."""

from __future__ import annotations

import colorsys
from pathlib import Path

Colour = tuple[int, int, int]

CAMVID: dict[str, Colour] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}

CITYSCAPES: dict[str, Colour] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}

KNOWN = {"camvid": CAMVID, "cityscapes": CITYSCAPES}


def numbered(count: int) -> dict[str, Colour]:
    """Names "class 0" and so on, with colours spread by the golden angle."""
    return {f"class {i}": _colour(i) for i in range(count)}


def _colour(i: int) -> Colour:
    value = (1.0, 0.75, 0.5)[i // 12 % 3]
    red, green, blue = colorsys.hsv_to_rgb(i * 0.381966 % 1, 0.65, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def read(file: Path) -> dict[str, Colour]:
    """One class a line, in the order of the scores: a name, optionally followed by three integers after a tab.

    Raises ValueError naming the line.
    """
    classes: dict[str, Colour] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        name, _, colour = line.partition("\t")
        values = [int(v) for v in colour.split() if v.isdecimal()] if colour else _colour(number)
        if not name.strip() or name.strip() in classes or len(values) != 3 or max(values) > 255:
            raise ValueError(f"{file}, line {number + 1}: {line!r}, expected a new name, or name<tab>red green blue")
        classes[name.strip()] = (values[0], values[1], values[2])
    return classes


def for_model(count: int, dataset: str, given: str | None) -> dict[str, Colour]:
    """Classes of a model with `count` of them: those asked for, those of its data set, or numbered ones.

    given   a file, a known data set's name, or None
    Raises ValueError when the file or the named data set has another number of classes.
    """
    if given is None:
        known = KNOWN.get(dataset, {})
        return known if len(known) == count else numbered(count)
    classes = KNOWN[given] if given in KNOWN else read(Path(given))
    if len(classes) != count:
        raise ValueError(f"{given} has {len(classes)} classes, the checkpoint has {count}")
    return classes
