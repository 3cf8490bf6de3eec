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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

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

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
"""Endings of the files that are taken for images in a folder."""

_WEBP_SIDE = 16383
"""Of a frame. The canvas of an animation may be 2^24 wide, and Pillow's time for it grows with the square of that."""

_ORIENTATION = 0x0112
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
