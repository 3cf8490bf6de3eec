"""Label images, in and out: one value a pixel, what it means, and the classes it stands for.

Every tool that reads label images reads them by `truth`. Pillow is imported when needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from intseg import files
from intseg.errors import InputError, UsageError, suggest
from intseg.images.decode import Colour, Picture, guarded, opened, orientation_of, read
from intseg.images.overlay import encode

if TYPE_CHECKING:
    from PIL import Image

Array = NDArray[Any]
_MAX_INDEXED = 256
_VALUES = 65536
_LOSSY = ("jpeg", "tiff_jpeg", "webp", "jpeg2000", "jpeg_2000")
_UNKNOWN = -2
_FLIPPED = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
"""Steps through rows and columns for an EXIF orientation; from 5 up after rows and columns are exchanged."""

# -------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Labelling:
    """What the values of label images mean.

    ignore   stored values that are not counted
    offset   stored value - offset = class index
    stored   (stored value, class index) of every class, in place of an offset
    lie      where the labels of an image lie that its EXIF orientation turns: on its pixels as they are "stored", or
             on the "upright" picture; None: as the sizes say, and an error where they do not say it
    """

    ignore: tuple[int, ...] = ()
    offset: int = 0
    stored: tuple[tuple[int, int], ...] | None = None
    lie: str | None = None

    def classes(self, n_cls: int) -> NDArray[np.int32]:
        """Class index of every stored value, int32 [65536]: -1 where it is not counted, -2 where it means nothing."""
        table = np.full(_VALUES, _UNKNOWN, np.int32)
        pairs = self.stored if self.stored is not None else [(i + self.offset, i) for i in range(n_cls)]
        for value, index in (*pairs, *((value, -1) for value in self.ignore)):
            if 0 <= value < _VALUES:
                table[value] = index
        return table

    def __str__(self) -> str:
        return f"ignore {self.ignore}, offset {self.offset}, stored {self.stored}"


def named_labels(classes: Sequence[str], mapping: str, ignore: tuple[int, ...] = ()) -> Labelling:
    """The labelling of a label map as `stored_values` takes it; pixels of its "*" are not counted.

    Raises UsageError also where two classes share a value: which of them a pixel is cannot be told.
    """
    pairs = _map(classes, mapping)
    other = pairs.pop("*", None)
    if other in pairs.values():
        other = None
    stored = tuple((value, classes.index(name)) for name, value in pairs.items())
    if len(dict(stored)) < len(stored):
        raise UsageError("label map: two classes share a value, expected one each: which of them a pixel is, is lost")
    return Labelling(ignore if other is None else (*ignore, other), stored=stored)


def truth(
    path: str | os.PathLike[str],
    picture: Picture,
    n_cls: int,
    labelling: Labelling,
    image: str = "the image",
    data: bytes | None = None,
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """The classes of a label image, and what was done to it, one sentence each.

    path     of the label image
    picture  the image that it belongs to
    image    what errors call that
    data     the bytes of the label image, where they were read before
    return   int32 [H, W] as `picture.rgb`: class index below n_cls, -1 where nothing is counted
    Raises InputError for a label image that is none, has another size, or a value that means nothing.
    """
    name = os.fspath(path)
    stored, own, notes = _stored(read(path) if data is None else data, name)
    stored, more = _lain(stored, own, picture, labelling, (name, image))
    found = labelling.classes(n_cls)[stored]
    if (found == _UNKNOWN).any():
        wrong = stored[found == _UNKNOWN]
        raise InputError(
            f"{name}: label {wrong[0]} in {wrong.size} pixels, expected {_expected(labelling, n_cls)}; "
            "name a void label with --ignore, or say with --label-offset or --label-map what is stored"
        )
    return found, notes + more


def _expected(labelling: Labelling, n_cls: int) -> str:
    if labelling.stored is None:
        known = f"{labelling.offset} to {n_cls - 1 + labelling.offset}"
    else:
        known = ", ".join(str(value) for value, _ in labelling.stored[:8]) + ", ..." * (len(labelling.stored) > 8)
    few = ", ".join(map(str, labelling.ignore[:4])) + ", ..." * (len(labelling.ignore) > 4)
    return known + (f" or {few} (ignored)" if labelling.ignore else "")


def _lain(
    stored: Array, own: int, picture: Picture, labelling: Labelling, names: tuple[str, str]
) -> tuple[Array, tuple[str, ...]]:
    """Stored labels turned to lie on the picture."""
    size, turn = picture.rgb.shape[:2], picture.orientation
    ways = {"upright": stored if own == 1 else turned(stored, own), "stored": turned(stored, turn)}
    if own > 1 or turn == 1:
        fitting = ["upright"]
    elif labelling.lie is not None:
        fitting = [labelling.lie]
    else:
        fitting = [way for way in ways if ways[way].shape == size]
    if len(fitting) > 1:
        raise InputError(
            f"{names[0]}: {names[1]} is turned upright by its EXIF orientation {turn}, and these labels could lie on "
            "either picture; say --orientation stored or --orientation upright, or save the image upright"
        )
    if not fitting or ways[fitting[0]].shape != size:
        raise InputError(
            f"{names[0]}: labels are {stored.shape[1]} x {stored.shape[0]}, {names[1]} is {size[1]} x {size[0]}, "
            "expected equal sizes"
        )
    return ways[fitting[0]], ("labels turned upright with their image",) if fitting[0] == "stored" else ()


def turned(array: Array, orientation: int) -> Array:
    """An array [H, W, ...] as an EXIF orientation from 1 to 8 shows it."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    return array[:: _FLIPPED[orientation][0], :: _FLIPPED[orientation][1]]


def decode_labels(path: str | os.PathLike[str]) -> Array:
    """The values that a label image stores, whatever colours they have; uint8 or uint16 [H, W].

    Raises InputError when the file is not one channel of whole numbers, and when its format loses some of them.
    """
    return _stored(read(path), os.fspath(path))[0]


def _stored(data: bytes, name: str) -> tuple[Array, int, tuple[str, ...]]:
    """Values, EXIF orientation and notes."""

    def values() -> tuple[Array, int, tuple[str, ...]]:
        with opened(data, name) as image:
            _require_labels(image, name)
            undo = _scaling(image)
            found = undo(np.asarray(image))
            if found.min() < 0 or found.max() >= _VALUES:
                raise InputError(f"{name}: label image has value {found.max()}, expected at most {_VALUES - 1}")
            stored = found.astype(np.uint16 if image.mode.startswith("I") else np.uint8)
            return stored, orientation_of(image), undo.notes

    return guarded(name, values)


def _require_labels(image: Image.Image, name: str) -> None:
    if image.format in ("JPEG", "MPO", "WEBP") or image.info.get("compression") in _LOSSY:
        raise InputError(
            f"{name}: label image is {image.format} with loss, which changes classes at their borders, expected PNG or "
            "another format without loss; export the labels again"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{name}: label image has {getattr(image, 'n_frames', 1)} frames, expected one; save one")
    if image.mode not in ("L", "P", "1", "I;16", "I;16B", "I"):
        raise InputError(
            f"{name}: label image has mode {image.mode}, expected one channel of class indices; "
            "convert colours to indices first"
        )


@dataclass(frozen=True)
class _Undo:
    """Undoes what Pillow does to show stored values as grays: value * top // shown, and over where zero is white."""

    top: int = 255
    shown: int = 255
    over: bool = False
    notes: tuple[str, ...] = ()

    def __call__(self, shown: Array) -> Array:
        wide = shown.astype(np.int64)
        wide = (2 * wide * self.top + self.shown) // (2 * self.shown) if self.top != self.shown else wide
        return self.top - wide if self.over else wide


def _scaling(image: Image.Image) -> _Undo:
    """How the values of an opened, not yet decoded image were stored; its decoder may be replaced by a plainer one."""
    if image.mode == "P" or not getattr(image, "tile", ()):
        return _Undo()
    codec, box, offset, args = image.tile[0]  # type: ignore[attr-defined]
    raw, *rest = args if isinstance(args, tuple) else (args,)
    if codec == "ppm":  # the decoder scales, and cuts what is above the stated maximum
        image.tile = [("raw", box, offset, (("L" if image.mode == "L" else "I;16B"), 0, 1))]  # type: ignore[attr-defined]
        return _Undo(notes=(f"{rest[0]} is said to be white: the stored values are taken",))
    if codec == "ppm_plain" and rest:
        top, shown = rest[0], 255 if image.mode == "L" else 65535
        return _Undo(top, shown, notes=(f"{top} is said to be white: the stored values are taken",) * (top != shown))
    found = re.fullmatch(r"([1L])(?:;([24])?(I)?R?)?", str(raw))
    if found is None:
        return _Undo()
    bits, over = 1 if found[1] == "1" else int(found[2] or 8), bool(found[3])
    notes = ("zero is said to be white: the stored values are taken",) if over and bits > 1 else ()
    top = 2**bits - 1
    return _Undo(top, 1 if bits == 1 else 255, over, notes)


# -------------------------------------------------------------------------------------------------------- writing


def labels_image(labels: Array, palette: Sequence[Colour]) -> Image.Image:
    """A label image: mode "P" with the palette for up to 256 colours, "I;16" (16-bit grayscale) above.

    labels  uint8 or uint16 [H, W]
    """
    from PIL import Image

    if len(palette) > _MAX_INDEXED:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([value for colour in palette for value in colour])
    return image


def labels_png(labels: Array, palette: Sequence[Colour]) -> bytes:
    """`labels_image` as the bytes of a PNG file."""
    return encode(labels_image(labels, palette), "PNG")


def stored_values(classes: Sequence[str], offset: int = 0, mapping: str | None = None) -> NDArray[np.uint16]:
    """What a label image stores for every class; uint16 [C].

    offset   added to the class index; not together with a mapping
    mapping  "NAME=VALUE,..." or the name of a JSON file {"NAME": value, ...}, instead of the index; "*" is every class
             that is not named, which without "*" is an error: an index left as it is could be another class's value
    Raises UsageError for an unknown or missing class and for values outside 0..65535, InputError for the file.
    """
    values = [i + offset for i in range(len(classes))] if mapping is None else _mapped(classes, mapping)
    for name, value in zip(classes, values, strict=True):
        if not 0 <= value <= 65535:
            raise UsageError(f"class {name!r} is stored as {value}, expected 0 to 65535; choose other values")
    return np.array(values, np.uint16)


def _mapped(classes: Sequence[str], mapping: str) -> list[int]:
    pairs = _map(classes, mapping)
    missing = [name for name in classes if name not in pairs]
    if missing and "*" not in pairs:
        raise UsageError(f"label map: no value for {missing[0]!r} ({len(missing)} such); add '*' for every other class")
    return [pairs.get(name, pairs.get("*", 0)) for name in classes]


def _map(classes: Sequence[str], mapping: str) -> dict[str, int]:
    """Values by the names of classes, "*" perhaps among them."""
    pairs = _inline_pairs(mapping) if "=" in mapping else _json_pairs(Path(mapping))
    for name, value in pairs.items():
        if name != "*" and name not in classes:
            raise UsageError(f"label map: no class {name!r:.80} in the model{suggest(name, classes)}")
        if not 0 <= value < _VALUES:
            raise UsageError(f"label map: {name!r:.80} is stored as {value:.6g}, expected 0 to {_VALUES - 1}")
    return pairs


def _inline_pairs(text: str) -> dict[str, int]:
    pairs = {}
    for pair in text.split(","):
        name, _, value = (part.strip() for part in pair.rpartition("="))
        if not name or not re.fullmatch("[0-9]{1,9}", value):
            raise UsageError(
                f"label map: {pair!r:.60}, expected NAME=VALUE with a whole number from 0 to {_VALUES - 1}"
            )
        pairs[name] = int(value)
    return pairs


def _json_pairs(path: Path) -> dict[str, int]:
    text = files.read_text(path, "the label map", "give a JSON file", pipes=True)
    try:
        pairs = files.parse_json(text)
    except ValueError:
        pairs = None
    if not isinstance(pairs, dict) or any(type(value) is not int for value in pairs.values()):
        raise InputError(f'{path}: not a label map, expected JSON {{"class name": whole number, ...}}')
    return pairs


def store_as(labels: Array, colours: Sequence[Colour], values: Array) -> tuple[Array, tuple[Colour, ...]]:
    """Labels with other values, and the palette for them.

    labels   uint8 or uint16 [H, W]
    colours  of the classes
    values   uint16 [C]: what is stored for each class; classes may share a value, which has the first one's colour
    return   uint8 [H, W], uint16 where a value is above 255; colours by value, black where there is none
    """
    top = int(values.max())
    palette = [(0, 0, 0)] * (top + 1)
    for colour, value in reversed(list(zip(colours, values.tolist(), strict=True))):
        palette[value] = colour
    return values.astype(np.uint8 if top < _MAX_INDEXED else np.uint16)[labels], tuple(palette)


def mask(labels: Array, index: int) -> Image.Image:
    """One class of a label image [H, W] as a Pillow image of mode "L": 255 where it is, else 0."""
    from PIL import Image

    return Image.fromarray(np.where(labels == index, np.uint8(255), np.uint8(0)))
