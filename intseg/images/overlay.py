"""Pictures out: palettes, overlays with their legend, files. Pillow is imported when needed."""

from __future__ import annotations

import colorsys
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from intseg import files, palettes
from intseg.errors import InputError, UsageError, clip, suggest
from intseg.images.decode import Colour, Pixels

if TYPE_CHECKING:
    from PIL import Image

Array = NDArray[Any]


_BAND = 512
"""Rows that are mixed at a time: what is needed beside the picture does not grow with it."""


def overlay(rgb: Pixels, labels: Array, palette: Sequence[Colour], opacity: float) -> Pixels:
    """The image with the class colours over it, and an outline around every area.

    Below the colours the image turns grey as they get stronger, so that its own colours do not change theirs. The
    outline is the class colour at twice the opacity.

    rgb      uint8 [H, W, 3]
    labels   uint8 or uint16 [H, W]
    opacity  in [0, 1]; rounded to steps of 1/256, the mixing itself is in integers
    return   uint8 [H, W, 3]
    """
    if not 0 <= opacity <= 1:
        raise UsageError(f"opacity is {opacity}, expected a number from 0 to 1")
    alpha, colours = round(opacity * 256), np.array(palette, np.uint8)
    edges = outlines(labels)
    mixed = np.empty_like(rgb)
    for top in range(0, len(rgb), _BAND):
        rows = slice(top, top + _BAND)
        grey = (rgb[rows] * np.array([77, 150, 29], np.uint16)).sum(axis=-1, keepdims=True, dtype=np.uint16) >> 8
        base, classes = _mixed(rgb[rows], grey, alpha), colours[labels[rows]]
        outlined = _mixed(base, classes, min(2 * alpha, 256))
        mixed[rows] = np.where(edges[rows, :, None], outlined, _mixed(base, classes, alpha))
    return mixed


def _mixed(below: Array, above: Array, alpha: int) -> Pixels:
    """Both in [0, 255]; alpha in 256ths of the second. At most 255 * 256 + 128 on the way."""
    found: Array = below * np.uint16(256 - alpha) + above * np.uint16(alpha) + np.uint16(128)
    mixed: Pixels = (found >> 8).astype(np.uint8)
    return mixed


def outlines(labels: Array) -> NDArray[np.bool_]:
    """Pixels near another class, above, below, left or right: 1 pixel wide per 360 of the short side."""
    found, width = np.zeros(labels.shape, np.bool_), max(1, min(labels.shape) // 360)
    for turned, marked in ((labels, found), (labels.T, found.T)):
        differ = turned[width:] != turned[:-width]
        marked[width:] |= differ
        marked[:-width] |= differ
    return found


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend."""

    colour: Colour
    text: str


_LONGEST, _MOST = 40, 256
"""Characters of a line of a legend, and its lines: names of classes are anybody's, and so is how many are found."""


def add_legend(picture: Image.Image, entries: Sequence[LegendEntry], size: int = 0) -> Image.Image:
    """The picture above its legend: as many columns as fit, at a size that grows with the picture, or pixels of it.

    Of more than 256 entries the first 255 are shown, and how many there are.
    """
    from PIL import Image, ImageDraw, ImageFont

    if len(entries) > _MOST:
        more = LegendEntry((255, 255, 255), f"and {len(entries) - _MOST + 1:,} more")
        entries = [*entries[: _MOST - 1], more]
    entries = [LegendEntry(entry.colour, clip(entry.text, _LONGEST)) for entry in entries]
    size = size or min(max(14, picture.width // 32), 64)
    font = ImageFont.load_default(size)
    gap, box = size // 2, size
    text_width = max((int(font.getlength(entry.text)) + 1 for entry in entries), default=0)
    cell, line = box + text_width + 3 * gap, size + gap
    columns = max(1, min(picture.width // cell, len(entries)))
    rows = -(-len(entries) // columns)
    canvas = Image.new("RGB", (max(picture.width, cell), picture.height + rows * line + gap), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, entry in enumerate(entries):
        x, y = gap + i // rows * cell, picture.height + gap + i % rows * line
        draw.rectangle((x, y, x + box - 1, y + box - 1), fill=entry.colour, outline="black")
        draw.text((x + box + gap, y + box // 2), entry.text, fill="black", font=font, anchor="lm")
    return canvas


def percent(share: float) -> str:
    """A share from 0 to 1 for people; what is found never reads as zero."""
    return f"{share:.1%}" if share >= 0.0005 or share == 0 else "< 0.1%"


def palette(spec: str, classes: Sequence[str], own: Sequence[Colour]) -> tuple[Colour, ...]:
    """The colours of every class by the name of a palette or from a file.

    spec     "model" (the model's own), "voc" (the colours of PASCAL VOC), "distinct" (hues spread by the golden angle),
             "gray" (black to white), a data set of intseg.palettes whose classes the model has, or a file: one colour a
             line as "#rrggbb" or "red green blue", after a class name or in the order of the classes; lines that begin
             with "//" are comments
    classes  class names
    own      the model's colours
    Raises UsageError for an unknown name, InputError for a file that cannot be read or is malformed.
    """
    if spec == "model":
        return tuple(own)
    if spec in PALETTES:
        return tuple(PALETTES[spec](i, len(classes)) for i in range(len(classes)))
    bundled = palettes.files()
    path = bundled.get(spec, Path(spec))
    if not path.exists() and not path.suffix:
        known = ("model", *dict.fromkeys((*PALETTES, *bundled)))
        raise UsageError(f"palette {spec!r} is unknown, expected a file or {', '.join(known)}{suggest(spec, known)}")
    colours = list(own)
    for row, (line, name, colour) in enumerate(_colour_lines(path)):
        if name and name not in classes:
            raise InputError(f"{path}, line {line}: no class {name!r:.80} in the model{suggest(name, classes)}")
        if not name and row >= len(classes):
            raise InputError(f"{path}, line {line}: colour {row + 1} for {len(classes)} classes; remove it")
        colours[classes.index(name) if name else row] = colour
    return tuple(colours)


def _colour_lines(path: Path) -> Iterator[tuple[int, str, Colour]]:
    """(line number, class name or "", colour) of every line of a palette file."""
    text = files.read_text(path, "the palette", "give a text file with a colour a line", pipes=True)
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("//"):
            continue
        name, values = _colour_of(line)
        if not values or max(values) > 255:
            raise InputError(f"{path}, line {number}: {line!r:.60}, expected '#rrggbb' or three numbers from 0 to 255")
        yield number, name.strip(), (values[0], values[1], values[2])


def _colour_of(line: str) -> tuple[str, list[int]]:
    """Name and numbers of a line, no numbers where it has no colour; no regular expression backtracks over a name."""
    words = line.rsplit(None, 1)
    if re.fullmatch("#[0-9a-fA-F]{6}", words[-1]):
        return "".join(words[:-1]), list(bytes.fromhex(words[-1][1:]))
    words = line.rsplit(None, 3)
    if len(words) < 3 or not all(re.fullmatch("[0-9]{1,3}", word) for word in words[-3:]):
        return "", []
    return "".join(words[:-3]), [int(word) for word in words[-3:]]


def _voc(i: int, count: int) -> Colour:
    """PASCAL VOC: the bits of i, dealt to red, green and blue, the most significant first."""
    red, green, blue = (sum((i >> 3 * k + c & 1) << 7 - k for k in range(8)) for c in range(3))
    return red, green, blue


def _distinct(i: int, count: int) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(i * 0.381966 % 1, 0.65, (1.0, 0.75, 0.5)[i // 12 % 3])
    return round(red * 255), round(green * 255), round(blue * 255)


def _gray(i: int, count: int) -> Colour:
    value = 255 * i // max(1, count - 1)
    return value, value, value


PALETTES: dict[str, Callable[[int, int], Colour]] = {"voc": _voc, "distinct": _distinct, "gray": _gray}
"""Name -> colour of class i of `count`. "model" is another name: the model's own colours."""


def encode(image: Image.Image, kind: str) -> bytes:
    """The bytes of an image file; kind "PNG" or "JPEG".

    zlib's usual level 6 takes longer for an overlay than segmenting it; level 1 is 6 times faster and 10 % larger.
    """
    file = io.BytesIO()
    level = 1 if image.mode == "RGB" else 3
    image.save(file, kind, **({"quality": 92} if kind == "JPEG" else {"compress_level": level}))
    return file.getvalue()
