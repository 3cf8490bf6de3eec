"""Images in and out: decoding to uint8 RGB, label PNGs, overlays. Pillow is imported when needed.

The bit-exact contract starts at the decoded uint8 array: JPEG decoders differ between versions. Whatever is done to
reach it (rotation, transparency, bit depth) is said in `Picture.notes`.
"""

from __future__ import annotations

import colorsys
import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

from intseg import palettes, strict_json
from intseg.errors import InputError, UsageError, suggest

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
Array = NDArray[Any]
Colour = tuple[int, int, int]
T = TypeVar("T")
ImageLike: TypeAlias = Union[str, "os.PathLike[str]", bytes, "Image.Image", Array]
"""What `decode` takes."""

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
"""What is decoded: nothing else is tried, whatever Pillow could open."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
"""Endings of the files that are taken for images in a folder."""

_WEBP_SIDE = 16383
"""Of a frame. The canvas of an animation may be 2^24 wide, and Pillow's time for it grows with the square of that."""

_ORIENTATION = 0x0112
_MAX_INDEXED = 256
_WARNINGS_LOCK = threading.Lock()

# ------------------------------------------------------------------------------------------------------- decoding


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    rgb    uint8 [H, W, 3]
    notes  one sentence per conversion that was needed; empty for an ordinary RGB image
    """

    rgb: Pixels
    notes: tuple[str, ...] = ()


def decode(image: ImageLike, background: Colour, name: str = "image") -> Picture:
    """An image of any accepted kind as uint8 RGB.

    image       a path, the bytes of an image file, a Pillow image, or an array uint8 [H, W, 3]
    background  what shows through transparent pixels: transparency is composited, not dropped, because the colour
                hidden under a transparent pixel is arbitrary
    name        how errors call bytes
    Raises InputError for anything that is not an image, naming the found, the expected and the next step.
    """
    if isinstance(image, np.ndarray):
        return Picture(_checked_array(image).copy())
    if isinstance(image, (str, os.PathLike)):
        return _decode_file(Path(image), background)
    if isinstance(image, bytes):
        return _decode_opened(name, lambda: _opened_bytes(name, image), background)
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise InputError(f"image is a {type(image).__name__}, expected a path, bytes, a Pillow image or a uint8 array")
    return _guarded("image", lambda: _convert(image, background))


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


def _checked_array(image: Array) -> Pixels:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3] in the order red, green, blue"
        )
    return image


def _decode_file(path: Path, background: Colour) -> Picture:
    return _decode_opened(str(path), lambda: _opened(path), background)


def _decode_opened(name: str, opened: Callable[[], Image.Image], background: Colour) -> Picture:
    def convert() -> Picture:
        with opened() as image:
            if image.format == "WEBP" and max(image.size) > _WEBP_SIDE:
                raise InputError(
                    f"{name}: WebP canvas of {image.width} x {image.height} pixels, expected sides of at most "
                    f"{_WEBP_SIDE}, as a frame can have; save it as PNG"
                )
            frames = int(getattr(image, "n_frames", 1))
            picture = _convert(image, background)
        first = (f"first of {frames} frames",) if frames > 1 else ()
        return Picture(picture.rgb, first + picture.notes)

    return _guarded(name, convert)


def _opened_bytes(name: str, data: bytes) -> Image.Image:
    """The image file in `data`, opened and not yet decoded. Raises InputError or what Pillow raises."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise InputError(f"{name}: 0 bytes, expected an image; get the file again")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise InputError(f"{name}: not an image of a known format, expected {', '.join(FORMATS)}; convert it") from None


def _opened(path: Path) -> Image.Image:
    """The opened, not yet decoded file. Raises InputError or what Pillow raises."""
    from PIL import Image, UnidentifiedImageError

    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, expected one image file")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: 0 bytes, expected an image; get the file again")
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image of a known format, expected {', '.join(FORMATS)}; convert it") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected an image; check the path") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot read: {error.strerror or error}; check that it is a file you may read"
        ) from None


def _guarded(name: str, work: Callable[[], T]) -> T:
    """Run Pillow on untrusted bytes: every failure becomes one InputError, warnings are dropped, bombs are refused."""
    from PIL import Image

    with _WARNINGS_LOCK, warnings.catch_warnings():  # the warning filters are global to the process
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return work()
        except InputError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise InputError(f"{name}: {str(error).split(',')[0]}; scale the picture down or cut it") from None
        except MemoryError:
            raise InputError(f"{name}: the picture does not fit into memory; scale it down or cut it") from None
        except Exception as error:  # Pillow raises many types for a damaged file
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{name}: cannot decode ({reason:.150}), expected a whole image; it may be truncated, get it again"
            ) from None


def _convert(image: Image.Image, background: Colour) -> Picture:
    """Rotate, reduce to 8 bits, composite, expand to RGB; with a note for each."""
    from PIL import ImageOps

    deep = _is_deep(image)
    image.load()
    notes = ["16 bits per channel: the high 8 are used"] if deep else []
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation in range(2, 9):
        image = ImageOps.exif_transpose(image)
        notes.append(f"turned upright as its EXIF orientation {orientation} says")
    if deep and image.mode.startswith("I"):
        rgb = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        notes.append("grayscale: the three channels are equal")
    elif image.has_transparency_data:
        rgb = _composite(np.asarray(image.convert("RGBA")), background)
        notes.append(f"transparency: composited over {background}")
    else:
        rgb = np.asarray(image.convert("RGB"))
        notes.extend(_mode_note(image.mode))
    return Picture(_checked_array(rgb), tuple(notes))


def _is_deep(image: Image.Image) -> bool:
    """Whether the file stores 16 bits per channel; known before decoding only, Pillow reduces colour images itself."""
    if image.mode.startswith("I;16"):
        return True
    for codec, _, _, args in getattr(image, "tile", ()):
        args = args if isinstance(args, tuple) else (args,)
        if any(isinstance(arg, str) and ";16" in arg for arg in args) or (codec == "ppm" and args[-1] == 65535):
            return True
    return False


def _composite(rgba: Pixels, background: Colour) -> Pixels:
    """round((colour * alpha + background * (255 - alpha)) / 255), half up, in integers."""
    colour, alpha = rgba[..., :3].astype(np.int32), rgba[..., 3:].astype(np.int32)
    mixed = (2 * (colour * alpha + np.array(background, np.int32) * (255 - alpha)) + 255) // 510
    return mixed.astype(np.uint8)


def _mode_note(mode: str) -> Iterator[str]:
    if mode in ("L", "1"):
        yield "grayscale: the three channels are equal"
    elif mode == "P":
        yield "palette: replaced by its colours"
    elif mode == "CMYK":
        yield "CMYK: converted to RGB without a colour profile"
    elif mode in ("YCbCr", "HSV", "RGBX"):
        yield f"{mode}: converted to RGB"
    elif mode != "RGB":
        raise InputError(f"image has mode {mode}, expected 8- or 16-bit RGB, gray, palette or CMYK; convert it to RGB")


# ------------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend."""

    colour: Colour
    text: str


def overlay(rgb: Pixels, labels: Array, palette: Sequence[Colour], opacity: float) -> Pixels:
    """The image with the class colours over it.

    rgb      uint8 [H, W, 3]
    labels   uint8 or uint16 [H, W]
    opacity  in [0, 1]; rounded to steps of 1/256, the mixing itself is in integers
    return   uint8 [H, W, 3]
    """
    if not 0 <= opacity <= 1:
        raise UsageError(f"opacity is {opacity}, expected a number from 0 to 1")
    alpha = round(opacity * 256)
    colours = (np.array(palette, np.uint16) * alpha).astype(np.uint16)
    mixed: NDArray[np.uint16] = rgb * np.uint16(256 - alpha)  # at most 255 * 256, and so is the sum with the colours
    mixed += colours[labels]
    mixed += 128
    mixed >>= 8
    return mixed.astype(np.uint8)


def add_legend(picture: Image.Image, entries: Sequence[LegendEntry]) -> Image.Image:
    """The picture above its legend: as many columns as fit, at a size that grows with the picture."""
    from PIL import Image, ImageDraw, ImageFont

    size = min(max(14, picture.width // 32), 64)
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
    files = palettes.files()
    path = files.get(spec, Path(spec))
    if not path.exists() and not path.suffix:
        known = ("model", *dict.fromkeys((*PALETTES, *files)))
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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"{path}: cannot read the palette: {reason}; give a text file with a colour a line") from None
    for number, line in enumerate(text.splitlines(), 1):
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


def encode(image: Image.Image, kind: str) -> bytes:
    """The bytes of an image file; kind "PNG" or "JPEG".

    zlib's usual level 6 takes longer for an overlay than segmenting it; level 1 is 6 times faster and 10 % larger.
    """
    file = io.BytesIO()
    level = 1 if image.mode == "RGB" else 3
    image.save(file, kind, **({"quality": 92} if kind == "JPEG" else {"compress_level": level}))
    return file.getvalue()
