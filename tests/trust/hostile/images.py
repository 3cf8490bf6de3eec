"""Images and label images."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from hostile.kind import Disagreement, Files, Kind
from hostile.spoil import spoil
from intseg.batch import metrics
from intseg.images import decode as pictures
from intseg.images.labels import decode_labels
from intseg.ops import Array


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def _png(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in chunks:
        parts.append(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
    return b"".join(parts)


_SIZES = (0, 1, 2, 7, 9, 100, 5000, 16384, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)


@functools.cache
def _bombs() -> tuple[bytes, ...]:
    """Compressed data that grows: ten million zeros."""
    zeros = zlib.compress(bytes(10_000_000), 9)
    return zeros, b"icc\0\0" + zeros, b"text\0\0" + zeros, b"text\0\1\0\0\0" + zeros


def _spoil_png(data: bytes, r: Random) -> bytes:
    """One change of chunks, with right checksums."""
    chunks = _png_chunks(data)
    if not chunks:
        return spoil(data, r)
    i = r.randrange(len(chunks))
    name, body = chunks[i]
    kind = r.randrange(8)
    if kind < 2:
        width, height, rest = *struct.unpack(">II", chunks[0][1][:8].ljust(8, b"\0")), chunks[0][1][8:]
        changed = (r.choice(_SIZES), height) if r.random() < 0.5 else (width, r.choice(_SIZES))
        chunks[0] = (chunks[0][0], struct.pack(">II", *changed) + rest)
    elif kind == 2:
        head = bytearray(chunks[0][1].ljust(13, b"\0"))
        head[8:13] = bytes(
            r.choice(((1, 2, 4, 8, 16, 3), (0, 2, 3, 4, 6, 1), (0, 1), (0, 1), (0, 1, 2))[k]) for k in range(5)
        )
        chunks[0] = (chunks[0][0], bytes(head))
    elif kind == 3:
        del chunks[i]
    elif kind == 4:
        chunks.insert(r.randrange(len(chunks) + 1), (name, body))
    elif kind == 5:
        known = (
            b"iCCP",
            b"eXIf",
            b"tEXt",
            b"zTXt",
            b"iTXt",
            b"acTL",
            b"fcTL",
            b"fdAT",
            b"PLTE",
            b"tRNS",
            b"gAMA",
            b"cHRM",
        )
        extra = r.choice(_bombs()) if r.random() < 0.01 else r.randbytes(r.choice((0, 1, 4, 8, 26, 768)))
        chunks.insert(r.randrange(1, len(chunks) + 1), (r.choice(known), extra))
    else:
        chunks[i] = (name, spoil(body, r))
    return _png(chunks)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "text"
    return exif.tobytes()


@functools.cache
def image_bases() -> tuple[tuple[str, bytes], ...]:
    """(kind, bytes) of small images in every format and mode that is decoded."""
    r = np.random.default_rng(5)
    rgb = Image.fromarray(r.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    gray, alpha = rgb.convert("L"), rgb.convert("RGBA")
    alpha.putalpha(gray)
    indexed = rgb.quantize(5)
    deep = Image.fromarray(r.integers(0, 65536, (5, 7), dtype=np.uint16))
    found = [("png", encoded(i, "PNG")) for i in (rgb, gray, alpha, indexed, rgb.convert("1"), rgb.convert("LA"), deep)]
    raw = b"".join(b"\0" + r.bytes(7 * 6) for _ in range(5))
    head = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    found.append(("png", _png([(b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")])))
    seven = b"".join(b"\0" + r.bytes(3 * ((n + 1) // 2)) for n in range(9))
    head = struct.pack(">IIBBBBB", 7, 5, 8, 2, 0, 0, 1)
    found.append(("png", _png([(b"IHDR", head), (b"IDAT", zlib.compress(seven * 3)), (b"IEND", b"")])))
    found.append(("png", encoded(indexed, "PNG", transparency=0)))
    found.append(("png", encoded(rgb, "PNG", exif=_exif(6), icc_profile=bytes(200))))
    found.append(("png", encoded(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)], duration=10)))
    found += [("jpeg", encoded(i, "JPEG")) for i in (rgb, gray, rgb.convert("CMYK"))]
    found.append(("jpeg", encoded(rgb, "JPEG", exif=_exif(8), icc_profile=bytes(200), progressive=True)))
    found += [("bmp", encoded(i, "BMP")) for i in (rgb, gray, indexed, rgb.convert("1"))]
    found += [("webp", encoded(rgb, "WEBP")), ("webp", encoded(alpha, "WEBP", lossless=True, exif=_exif(3)))]
    found.append(("webp", encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)])))
    for kind in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        found.append(("tiff", encoded(rgb, "TIFF", compression=kind)))
    found += [("tiff", encoded(i, "TIFF")) for i in (deep, alpha, indexed, rgb.convert("CMYK"))]
    found.append(("tiff", encoded(rgb.convert("1"), "TIFF", compression="group4")))
    found.append(("tiff", encoded(rgb, "TIFF", save_all=True, append_images=[gray])))
    found += [("ppm", encoded(i, "PPM")) for i in (rgb, gray, rgb.convert("1"), deep)]
    found += [("ppm", b"P3 2 2 255\n1 2 3 4 5 6 7 8 9 10 11 12\n"), ("ppm", b"P1\n# c\n2 2\n1 0 0 1\n")]
    found += [("ppm", b"P6 2 1 65535\n" + bytes(range(12))), ("ppm", b"PF 1 1 -1.0\n" + bytes(12))]
    found += [("gif", encoded(indexed, "GIF")), ("gif", encoded(gray, "GIF", interlace=1))]
    found.append(("gif", encoded(indexed, "GIF", save_all=True, append_images=[indexed.rotate(180)])))
    return tuple(found)


class Spoiled(Kind):
    """Pictures with changes of bytes, and of the chunks of a PNG with right checksums."""

    file = "image.png"

    def base(self, base: int) -> tuple[str, bytes]:
        """The format of a base, and its bytes."""
        return image_bases()[base]

    def build(self, base: int, steps: Sequence[int]) -> Files:
        kind, data = self.base(base)
        for seed in steps:
            r = Random(seed)
            data = _spoil_png(data, r) if kind == "png" and r.random() < 0.7 else spoil(data, r)
        return {self.file: data}

    def patience(self, files: Files) -> float:
        return _patience(files[self.file])


def checked(rgb: Array) -> None:
    """Raise Disagreement for what is no picture."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        raise Disagreement(f"decoded to {rgb.dtype} {rgb.shape}")


class Images(Spoiled):
    """Images in every format of the list."""

    name, weight, bases = "image", 18, 43
    stages = (("opened", "not opened"), ("_convert", "not decoded"))

    def read(self, folder: Path, files: Files) -> str:
        path, data = folder / self.file, files[self.file]
        checked(pictures.decode(path if len(data) % 2 else data, (1, 2, 3)).rgb)
        return "decoded"


def _patience(data: bytes) -> float:
    """A large image takes its time, and a small file may hold one: the limit is for every four million pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=pictures.FORMATS) as image:
            return math.ceil(image.width * image.height / 2**22)
    return 1.0


class Labels(Spoiled):
    """Label images, read and counted."""

    name, weight, bases, file = "labels", 6, 6, "labels.png"
    stages = (("opened", "not opened"), ("decode_labels", "not decoded"), ("confusion", "labels out of range"))

    def base(self, base: int) -> tuple[str, bytes]:
        return image_bases()[(1, 3, 4, 6, 27, 35)[base]]

    def read(self, folder: Path, files: Files) -> str:
        labels = decode_labels(folder / self.file)
        if labels.dtype not in (np.uint8, np.uint16) or labels.ndim != 2 or not labels.size:
            raise Disagreement(f"decoded to {labels.dtype} {labels.shape}")
        metrics.confusion(labels, np.zeros(labels.shape, np.uint8), 8, 255)
        return "counted"
