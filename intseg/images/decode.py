"""Images in: decoding to uint8 RGB. Pillow is imported when needed.

The bit-exact contract starts at the decoded uint8 array: JPEG decoders differ between versions. Whatever is done to
reach it (rotation, transparency, bit depth) is said in `Picture.notes`.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

from intseg import files
from intseg.errors import InputError

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

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".gif"),
)
"""Endings of the files that are taken for images in a folder: all that Pillow knows for FORMATS, but floats (.pfm)."""

_WEBP_SIDE = 16383
"""Of a frame. The canvas of an animation may be 2^24 wide, and Pillow's time for it grows with the square of that."""

_ORIENTATION, _PHOTOMETRIC = 0x0112, 0x0106
_WARNINGS_LOCK = threading.RLock()

if hasattr(os, "register_at_fork"):  # a child does not inherit it from a thread that it does not have
    os.register_at_fork(
        before=_WARNINGS_LOCK.acquire,
        after_in_parent=_WARNINGS_LOCK.release,
        after_in_child=_WARNINGS_LOCK.release,
    )

# ------------------------------------------------------------------------------------------------------- decoding


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    rgb          uint8 [H, W, 3]
    notes        one sentence per conversion that was needed; empty for an ordinary RGB image
    orientation  EXIF orientation by which the stored pixels were turned; 1 where they were not
    """

    rgb: Pixels
    notes: tuple[str, ...] = ()
    orientation: int = 1


def decode(image: ImageLike, background: Colour, name: str = "image") -> Picture:
    """An image of any accepted kind as uint8 RGB.

    image       a path, the bytes of an image file, a Pillow image, or an array uint8 [H, W, 3]
    background  what shows through transparent pixels: transparency is composited, not dropped, because the colour
                hidden under a transparent pixel is arbitrary
    name        how errors call what is no path
    Raises InputError for anything that is not an image, naming the found, the expected and the next step.
    """
    if isinstance(image, np.ndarray):
        return Picture(_checked_array(image, name).copy())
    if isinstance(image, (str, os.PathLike)):
        return decode(read(image), background, os.fspath(image))
    if isinstance(image, bytes):
        return _decode_bytes(image, background, name)
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise InputError(
            f"image of type {type(image).__name__}, expected a path, bytes, a Pillow image or a uint8 array"
        )
    return guarded(name, lambda: _convert(image, background, name))


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file. Raises InputError."""
    return files.read(path, "the image", limit=files.MAX_PICTURE, pipes=True)


def _checked_array(image: Array, name: str) -> Pixels:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"{name} is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3] in the order red, green, blue"
        )
    return image


def _decode_bytes(data: bytes, background: Colour, name: str) -> Picture:
    def convert() -> Picture:
        with opened(data, name) as image:
            if image.format == "WEBP" and max(image.size) > _WEBP_SIDE:
                raise InputError(
                    f"{name}: WebP canvas of {image.width} x {image.height} pixels, expected sides of at most "
                    f"{_WEBP_SIDE}, as a frame can have; save it as PNG"
                )
            frames = int(getattr(image, "n_frames", 1))
            picture = _convert(image, background, name)
        first = (f"first of {frames} frames",) if frames > 1 else ()
        return Picture(picture.rgb, first + picture.notes, picture.orientation)

    return guarded(name, convert)


def opened(data: bytes, name: str) -> Image.Image:
    """The image file in `data`, opened and not yet decoded. Raises InputError or what Pillow raises: see `guarded`."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise InputError(f"{name}: 0 bytes, expected an image; get the file again")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise InputError(f"{name}: {_unread(data)}, expected {', '.join(FORMATS)}; convert it") from None


_OTHERS = {
    b"ftypheic": "HEIC", b"ftypheix": "HEIC", b"ftypmif1": "HEIF", b"ftypavif": "AVIF", b"ftypavis": "AVIF",
    b"ftypjp2 ": "JPEG 2000", b"ftypjxl ": "JPEG XL", b"ftypcrx ": "Canon raw",
}  # fmt: skip
_STARTS = {b"%PDF": "PDF", b"8BPS": "Photoshop", b"\xff\x0a": "JPEG XL", b"\x76\x2f\x31\x01": "OpenEXR"}


def _unread(data: bytes) -> str:
    """What a file is that Pillow does not take."""
    known = [name for start, name in _STARTS.items() if data.startswith(start)]
    if kind := _OTHERS.get(data[4:12]) or next(iter(known), None):
        return f"is {kind}, not an image of a known format"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return f"is a TIFF {_kind_of_tiff(data)}, not an image of a known kind"
    return "not an image of a known format"


def _kind_of_tiff(data: bytes) -> str:
    """Samples and bits of a TIFF as its first directory states them."""
    from PIL import TiffImagePlugin

    bits_tag, samples_tag, format_tag = 258, 277, 339
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    file = io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    bits, formats = (np.ravel(directory.get(tag, 1)).tolist() for tag in (bits_tag, format_tag))
    kind = {1: "unsigned", 2: "signed", 3: "floating-point"}.get(formats[0], "other")
    return f"of {directory.get(samples_tag, 1)} {kind} samples of {bits[0]} bits a pixel"


def guarded(name: str, work: Callable[[], T]) -> T:
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


def _convert(image: Image.Image, background: Colour, name: str) -> Picture:
    """Rotate, reduce to 8 bits, composite, expand to RGB; with a note for each."""
    from PIL import ImageOps

    bits = _bits(image)
    image.load()
    notes = [f"{bits} bits per channel: the high 8 are used"] if bits > 8 else []
    orientation = orientation_of(image)
    if orientation > 1:
        image = ImageOps.exif_transpose(image)
        notes.append(f"turned upright as its EXIF orientation {orientation} says")
    if bits > 8 and image.mode.startswith("I"):
        gray = (np.asarray(image) >> bits - 8).astype(np.uint8)
        gray = ~gray if _is_white_zero(image) else gray  # Pillow turns 8 bits over itself, and these not
        rgb = np.repeat(gray[..., None], 3, axis=2)
        notes.append("grayscale: the three channels are equal")
    elif image.has_transparency_data:
        rgb = _composite(np.asarray(image.convert("RGBA")), background)
        notes.append(f"transparency: composited over {background}")
    else:
        rgb = np.asarray(image.convert("RGB"))
        notes.extend(_mode_note(image.mode, name))
    return Picture(_checked_array(rgb, name), tuple(notes), orientation)


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation of a loaded image, 1 to 8; 1 where there is none."""
    found = image.getexif().get(_ORIENTATION, 1)
    return int(found) if found in range(2, 9) else 1


def _bits(image: Image.Image) -> int:
    """Bits per channel in the file: 8, 12 or 16. Known before decoding only, Pillow reduces colour images itself."""
    for codec, _, _, args in getattr(image, "tile", ()):
        args = args if isinstance(args, tuple) else (args,)
        if "I;12" in args:
            return 12
        if any(isinstance(arg, str) and ";16" in arg for arg in args) or (codec == "ppm" and args[-1] == 65535):
            return 16
    return 16 if image.mode.startswith("I;16") else 8


def _is_white_zero(image: Image.Image) -> bool:
    """Whether a TIFF says that zero is white."""
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0


def _composite(rgba: Pixels, background: Colour) -> Pixels:
    """round((colour * alpha + background * (255 - alpha)) / 255), half up, in integers."""
    colour, alpha = rgba[..., :3].astype(np.int32), rgba[..., 3:].astype(np.int32)
    mixed = (2 * (colour * alpha + np.array(background, np.int32) * (255 - alpha)) + 255) // 510
    return mixed.astype(np.uint8)


def _mode_note(mode: str, name: str) -> Iterator[str]:
    if mode in ("L", "1"):
        yield "grayscale: the three channels are equal"
    elif mode == "P":
        yield "palette: replaced by its colours"
    elif mode == "CMYK":
        yield "CMYK: converted to RGB without a colour profile"
    elif mode in ("YCbCr", "HSV", "RGBX"):
        yield f"{mode}: converted to RGB"
    elif mode != "RGB":
        raise InputError(f"{name} has mode {mode}, expected 8- or 16-bit RGB, gray, palette or CMYK; convert it to RGB")
