"""Label images, in and out: one value a pixel. Pillow is imported when needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from intseg import strict_json
from intseg.errors import InputError, UsageError, suggest
from intseg.images.decode import Colour, _guarded, _opened
from intseg.images.overlay import encode

if TYPE_CHECKING:
    from PIL import Image

Array = NDArray[Any]
_MAX_INDEXED = 256


def decode_labels(path: Path) -> Array:
    """The class indices of a label image: its stored values, without palette.

    return  uint8 or uint16 [H, W]
    Raises InputError when the file is not a one-channel image of whole numbers.
    """

    def values() -> Array:
        with _opened(path) as image:
            if image.mode not in ("L", "P", "1", "I;16", "I;16B", "I"):
                raise InputError(
                    f"{path}: label image has mode {image.mode}, expected one channel of class indices; "
                    "convert colours to indices first"
                )
            stored = np.asarray(image)
            if stored.min() < 0 or stored.max() > 65535:
                raise InputError(f"{path}: label image has value {stored.max()}, expected at most 65535")
            return stored.astype(np.uint16 if image.mode.startswith("I") else np.uint8)

    return _guarded(str(path), values)


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
    pairs = _inline_pairs(mapping) if "=" in mapping else _json_pairs(Path(mapping))
    for name in pairs:
        if name != "*" and name not in classes:
            raise UsageError(f"label map: no class {name!r:.80} in the model{suggest(name, classes)}")
    missing = [name for name in classes if name not in pairs]
    if missing and "*" not in pairs:
        raise UsageError(f"label map: no value for {missing[0]!r} ({len(missing)} such); add '*' for every other class")
    return [pairs.get(name, pairs.get("*", 0)) for name in classes]


def _inline_pairs(text: str) -> dict[str, int]:
    pairs = {}
    for pair in text.split(","):
        name, _, value = pair.rpartition("=")
        if not name or not value.strip().isdecimal():
            raise UsageError(f"label map: {pair!r:.60}, expected NAME=VALUE with a whole number")
        pairs[name.strip()] = int(value)
    return pairs


def _json_pairs(path: Path) -> dict[str, int]:
    try:
        pairs = strict_json.parse(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot read the label map: {error.strerror}; check the path") from None
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
