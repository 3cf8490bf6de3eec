"""Decoding, windows and pictures."""

from __future__ import annotations

import contextlib
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patterns import png_of
from PIL import Image
from tiny_model import tiny_info

from intseg import palettes
from intseg.errors import InputError, UsageError
from intseg.images import decode as pictures
from intseg.images import labels as label_images
from intseg.images import overlay as overlays
from intseg.windows import Tiling, pad, starts, tile

BACKGROUND = (10, 20, 30)
RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def decode(path: Path) -> pictures.Picture:
    return pictures.decode(path, BACKGROUND)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_formats_decode_to_their_pixels_without_a_note(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if suffix == "webp" else {}))
    picture = decode(path)
    assert picture.rgb.dtype == np.uint8
    assert np.array_equal(picture.rgb, RGB)
    assert picture.notes == ()


def test_jpeg_decodes(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "image.jpg")
    assert decode(tmp_path / "image.jpg").rgb.shape == RGB.shape


@pytest.mark.parametrize(
    ("mode", "note"), [("L", "grayscale"), ("1", "grayscale"), ("P", "palette"), ("CMYK", "CMYK"), ("YCbCr", "YCbCr")]
)
def test_other_modes_work_and_say_so(tmp_path: Path, mode: str, note: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    image.save(tmp_path / "image.tiff")
    # Before version 13 Pillow does not read the YCbCr that it writes.
    for source in (image, tmp_path / "image.tiff")[: 1 if mode == "YCbCr" else 2]:
        picture = pictures.decode(source, BACKGROUND)
        assert np.array_equal(picture.rgb, np.asarray(image.convert("RGB")))
        assert len(picture.notes) == 1
        assert note in picture.notes[0]


def test_alpha_is_composited_over_the_background(tmp_path: Path) -> None:
    alpha = np.zeros((5, 7, 1), np.uint8)
    alpha[0], alpha[1] = 255, 100
    Image.fromarray(np.concatenate([RGB, alpha], axis=2)).save(tmp_path / "image.png")
    picture = decode(tmp_path / "image.png")
    assert np.array_equal(picture.rgb[0], RGB[0])
    assert np.array_equal(picture.rgb[2:], np.broadcast_to(np.array(BACKGROUND, np.uint8), (3, 7, 3)))
    exact = (RGB[1].astype(float) * 100 + np.array(BACKGROUND) * 155) / 255
    assert np.abs(picture.rgb[1] - exact).max() <= 0.5
    assert "transparency" in picture.notes[0]


def test_a_transparent_palette_colour_is_composited(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "image.png", transparency=1)
    assert decode(tmp_path / "image.png").rgb.tolist() == [[[200, 0, 0], list(BACKGROUND)]]


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_sixteen_bits_are_reduced_to_the_high_eight(tmp_path: Path, colour_type: int, channels: int) -> None:
    samples = np.arange(6 * channels, dtype=np.uint16).reshape(2, 3, channels) * 3001
    (tmp_path / "image.png").write_bytes(
        png_of(3, 2, 16, colour_type, [row.tobytes() for row in samples.astype(">u2")])
    )
    picture = decode(tmp_path / "image.png")
    assert np.array_equal(picture.rgb, np.broadcast_to(samples >> 8, (2, 3, 3)))
    assert "16 bits" in picture.notes[0]


def test_sixteen_bit_pgm(tmp_path: Path) -> None:
    (tmp_path / "image.pgm").write_bytes(b"P5 2 1 65535\n\x01\x02\x03\x04")
    picture = decode(tmp_path / "image.pgm")
    assert picture.rgb[..., 0].tolist() == [[1, 3]]
    assert "16 bits" in picture.notes[0]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "image.png", exif=exif)
    picture = decode(tmp_path / "image.png")
    assert picture.rgb.shape == ((5, 7, 3) if orientation <= 4 else (7, 5, 3))
    assert not np.array_equal(picture.rgb, RGB)
    assert f"orientation {orientation}" in picture.notes[0]
    if orientation == 6:  # the stored picture is turned a quarter clockwise to be shown
        assert np.array_equal(picture.rgb, np.rot90(RGB, -1))


def test_only_the_first_frame_is_used(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "image.gif", save_all=True, append_images=frames[1:])
    picture = decode(tmp_path / "image.gif")
    assert picture.rgb[0, 0].tolist() == [255, 0, 0]
    assert picture.notes[0] == "first of 2 frames"


def test_webp_canvas_that_no_frame_fills_is_refused(tmp_path: Path) -> None:
    """A file of a few hundred bytes, which Pillow would decode for seconds: its rows are 33 MB."""
    frames = [Image.new("RGBA", (7, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "small.webp", save_all=True, append_images=frames[1:])
    data = (tmp_path / "small.webp").read_bytes()
    assert data[12:16] == b"VP8X"
    wide = data[:24] + (8_388_615 - 1).to_bytes(3, "little") + data[27:]
    (tmp_path / "wide.webp").write_bytes(wide)
    assert decode(tmp_path / "small.webp").rgb.shape == (5, 7, 3)
    for source in (tmp_path / "wide.webp", wide):
        with pytest.raises(InputError, match="WebP canvas of 8388615 x 5 pixels, expected sides of at most 16383"):
            pictures.decode(source, BACKGROUND)


def test_path_pillow_image_and_array_are_the_same(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "image.png")
    for source in (str(tmp_path / "image.png"), tmp_path / "image.png", Image.fromarray(RGB), RGB):
        assert np.array_equal(pictures.decode(source, BACKGROUND).rgb, RGB)


def test_the_decoded_array_is_not_the_callers() -> None:
    mine = RGB.copy()
    decoded = pictures.decode(mine, BACKGROUND).rgb
    mine[:] = 0
    assert np.array_equal(decoded, RGB)


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        Image.new("F", (2, 2)),
        Image.new("I", (2, 2), 70000),
        Image.new("LAB", (2, 2)),
        12,
    ],
)
def test_other_things_are_refused(source: Any) -> None:
    with pytest.raises(InputError, match="expected"):
        pictures.decode(source, BACKGROUND)


def png_bytes() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


BAD_FILES = {
    "empty": (b"", "0 bytes"),
    "text": (b"hello, world", "not an image"),
    "truncated": (png_bytes()[:300], "truncated"),
    "damaged": (png_bytes()[:60] + b"\0" * 40 + png_bytes()[100:], "cannot decode"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "icon": (b"\0\0\1\0\1\0\1\1\0\0\1\0\x18\0\x30\0\0\0\x16\0\0\0" + b"\0" * 48, "not an image"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_give_one_line(tmp_path: Path, name: str) -> None:
    data, reason = BAD_FILES[name]
    path = tmp_path / f"{name}.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason) as caught:
        decode(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_an_impossible_name(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.png", "No such file"), (tmp_path, "folder"), (Path("a\0b"), "no file can")):
        with pytest.raises(InputError, match=reason):
            decode(path)


@pytest.mark.parametrize("limit", [10, 30])  # Pillow warns above its limit, and raises above twice its limit
def test_pictures_over_pillows_limit_are_refused(tmp_path: Path, monkeypatch: Any, limit: int) -> None:
    Image.fromarray(RGB).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match="exceeds limit"):
        decode(tmp_path / "image.png")


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"P6 ", b"II*\0", b"RIFF"])
)
@settings(max_examples=100, deadline=None)
def test_any_bytes_give_an_image_or_an_input_error(tmp_path_factory: Any, data: bytes, magic: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(magic + data)
    with contextlib.suppress(InputError):
        assert decode(path).rgb.dtype == np.uint8


def test_label_images_keep_their_stored_values(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)
    indexed = Image.fromarray(labels)
    indexed.putpalette(list(range(256)) * 3)
    indexed.save(tmp_path / "p.png")
    Image.fromarray(labels).save(tmp_path / "l.png")
    Image.fromarray(labels.astype(np.uint16) * 200).save(tmp_path / "i16.png")
    assert np.array_equal(label_images.decode_labels(tmp_path / "p.png"), labels)
    assert np.array_equal(label_images.decode_labels(tmp_path / "l.png"), labels)
    assert np.array_equal(label_images.decode_labels(tmp_path / "i16.png"), labels.astype(np.uint16) * 200)
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match="mode RGB"):
        label_images.decode_labels(tmp_path / "rgb.png")


# -------------------------------------------------------------------------------------------------------- windows


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 40))
def test_starts_cover_the_axis(stride: int, more: int, extra: int) -> None:
    window = stride + min(more, stride)  # the stride lies between half the window and the window
    size = window + extra
    origins = starts(size, window, stride)
    assert origins[0] == 0
    assert origins[-1] + window == size
    assert all(0 < b - a <= stride for a, b in itertools.pairwise(origins))
    counts = [sum(origin <= cell < origin + window for origin in origins) for cell in range(size)]
    assert min(counts) >= 1
    assert max(counts) <= 3


@pytest.mark.parametrize(
    ("size", "padded", "tops", "lefts"),
    [
        ((1, 1), (24, 32), (0,), (0,)),
        ((24, 32), (24, 32), (0,), (0,)),
        ((25, 33), (32, 40), (0, 8), (0, 8)),
        ((40, 56), (40, 56), (0, 16), (0, 24)),
        ((41, 20), (48, 32), (0, 16, 24), (0,)),
    ],
)
def test_tile(size: tuple[int, int], padded: tuple[int, int], tops: tuple[int, ...], lefts: tuple[int, ...]) -> None:
    assert tile(tiny_info(), *size) == Tiling(*padded, tops, lefts)


def test_padding_is_at_the_right_and_the_bottom() -> None:
    padded = pad(RGB, Tiling(8, 9, (0,), (0,)), (1, 2, 3))
    assert np.array_equal(padded[:5, :7], RGB)
    assert (padded[5:] == (1, 2, 3)).all()
    assert (padded[:, 7:] == (1, 2, 3)).all()


# ------------------------------------------------------------------------------------------------------- pictures


def test_overlay_mixes_exactly() -> None:
    labels, palette = np.tile(np.arange(7, dtype=np.uint8) % 2, (5, 1)), [(255, 255, 255), (0, 100, 200)]
    colours = np.array(palette, np.uint8)[labels]
    assert np.array_equal(overlays.overlay(RGB, labels, palette, 0), RGB)
    assert np.array_equal(overlays.overlay(RGB, labels, palette, 1), colours)
    grey = (RGB.astype(int) @ [77, 150, 29])[..., None] // 256
    base = (RGB.astype(int) + grey + 1) // 2
    wide = labels[:, :3] * 0 + 1  # of one class: no outline
    assert np.array_equal(
        overlays.overlay(RGB[:, :3], wide, palette, 0.5), (base[:, :3] + np.array(palette[1]) + 1) // 2
    )
    assert np.array_equal(overlays.overlay(RGB, labels, palette, 0.5), colours)  # all is outline
    white = np.full((5, 7, 3), 255, np.uint8)
    assert np.array_equal(overlays.overlay(white, labels * 0, palette, 0.3), white)


def test_outlines_are_where_classes_meet() -> None:
    labels = np.zeros((6, 8), np.uint16)
    labels[2:, 3:] = 7
    rows = ["........", "...#####", "..######", "..##....", "..##....", "..##...."]
    assert ["".join(".#"[int(on)] for on in row) for row in overlays.outlines(labels)] == rows
    thick = overlays.outlines(np.repeat(np.array([[0, 1]], np.uint8), 800, axis=0).repeat(400, axis=1))
    assert thick[0].sum() == 4
    assert not overlays.outlines(np.zeros((1, 1), np.uint8)).any()


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_overlay_refuses_other_opacities(opacity: float) -> None:
    with pytest.raises(UsageError, match="opacity"):
        overlays.overlay(RGB, np.zeros((5, 7), np.uint8), [(0, 0, 0)], opacity)


@pytest.mark.parametrize("size", [(1, 1), (480, 360), (60, 900)])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_legend_keeps_the_picture_and_shows_every_colour(size: tuple[int, int], count: int) -> None:
    picture = Image.new("RGB", size, (1, 1, 1))
    entries = [overlays.LegendEntry((200, 5 * i, 0), f"class {i}") for i in range(count)]
    canvas = np.asarray(overlays.add_legend(picture, entries))
    assert (canvas[: size[1], : size[0]] == 1).all()
    below = {tuple(colour) for colour in canvas[size[1] :].reshape(-1, 3).tolist()}
    assert {entry.colour for entry in entries} <= below


def test_a_legend_has_a_size_whatever_names_and_numbers_a_model_has() -> None:
    picture = Image.new("RGB", (30, 20))
    long = [overlays.LegendEntry((1, 2, 3), "W" * 1000 + "\n\u202e"), overlays.LegendEntry((1, 2, 3), "\0" * 1000)]
    many = [overlays.LegendEntry((1, 2, 3), f"class {i}") for i in range(65_535)]
    for entries, widest, tallest in ((long, 1000, 100), (many, 300, 256 * 22)):
        canvas = overlays.add_legend(picture, entries)
        assert canvas.width < widest
        assert canvas.height < tallest


@pytest.mark.parametrize(("n_cls", "mode"), [(1, "P"), (3, "P"), (256, "P"), (257, "I;16")])
def test_label_png(n_cls: int, mode: str) -> None:
    dtype = np.uint8 if n_cls <= 256 else np.uint16
    labels = np.random.default_rng(n_cls).integers(0, n_cls, (6, 9)).astype(dtype)
    labels[0, 0] = n_cls - 1
    palette = tiny_info(n_cls=n_cls).palette
    image = Image.open(io.BytesIO(label_images.labels_png(labels, palette)))
    assert image.mode == mode
    assert np.array_equal(np.asarray(image), labels)
    if mode == "P":
        assert np.array_equal(np.asarray(image.convert("RGB")), np.array(palette, np.uint8)[labels])


@pytest.mark.parametrize(("share", "text"), [(1, "100.0%"), (0.1234, "12.3%"), (0.0001, "< 0.1%"), (0, "0.0%")])
def test_percent(share: float, text: str) -> None:
    assert overlays.percent(share) == text


# --------------------------------------------------------------------------------------- palettes and stored values

CLASSES = ("sky", "traffic light", "road")
OWN = ((1, 1, 1), (2, 2, 2), (3, 3, 3))


def test_bytes_decode_as_the_file_does(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "image.png")
    picture = pictures.decode((tmp_path / "image.png").read_bytes(), BACKGROUND, "this")
    assert np.array_equal(picture.rgb, RGB)
    for data, reason in BAD_FILES.values():
        with pytest.raises(InputError, match=f"this: .*{reason}"):
            pictures.decode(data, BACKGROUND, "this")


def test_named_palettes() -> None:
    assert overlays.palette("model", CLASSES, OWN) == OWN
    assert overlays.palette("voc", CLASSES, OWN) == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert overlays.palette("gray", CLASSES, OWN) == ((0, 0, 0), (127, 127, 127), (255, 255, 255))
    many = [str(i) for i in range(36)]
    assert len(set(overlays.palette("distinct", many, [(0, 0, 0)] * 36))) == 36
    assert len(set(overlays.palette("voc", [str(i) for i in range(256)], OWN))) == 256
    lines = palettes.files()["cityscapes"].read_text().splitlines()[1:]
    names = [line.split("\t")[0] for line in lines]
    assert overlays.palette("cityscapes", names[::-1], [(0, 0, 0)] * 19)[-1] == (128, 64, 128)


@pytest.mark.parametrize(
    ("text", "colours"),
    [
        ("#0a0B0c\n1 2 3\n// rest as it is\n\n", ((10, 11, 12), (1, 2, 3), (3, 3, 3))),
        ("road\t#ff0000\ntraffic light 4 5 6\n", ((1, 1, 1), (4, 5, 6), (255, 0, 0))),
    ],
)
def test_palette_files(tmp_path: Path, text: str, colours: Any) -> None:
    (tmp_path / "p.txt").write_text(text)
    assert overlays.palette(str(tmp_path / "p.txt"), CLASSES, OWN) == colours


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 2 300\n", "line 1"),
        ("#12345\n", "line 1"),
        ("sky blue\n", "line 1"),
        ("rode 1 2 3\n", "did you mean road"),
        ("1 1 1\n" * 4, "colour 4 for 3 classes"),
    ],
)
def test_bad_palette_files(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(InputError, match=reason):
        overlays.palette(str(tmp_path / "p.txt"), CLASSES, OWN)


def test_unknown_palettes() -> None:
    with pytest.raises(UsageError, match="did you mean gray"):
        overlays.palette("grays", CLASSES, OWN)
    with pytest.raises(InputError, match="cannot read the palette"):
        overlays.palette("none.txt", CLASSES, OWN)


def test_stored_values(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"road": 7, "sky": 23, "*": 255}')
    assert label_images.stored_values(CLASSES, 5).tolist() == [5, 6, 7]
    assert label_images.stored_values(CLASSES, mapping="road=7,sky=23,traffic light=19").tolist() == [23, 19, 7]
    assert label_images.stored_values(CLASSES, mapping=str(tmp_path / "map.json")).tolist() == [23, 255, 7]


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ("road=7", "no value for 'sky'"),
        ("rod=7,*=0", "did you mean road"),
        ("road=-1,*=0", "NAME=VALUE"),
        ("road=65536,*=0", "expected 0 to 65535"),
        ("road=", "NAME=VALUE"),
        (f"road={'9' * 5000}", "NAME=VALUE"),
    ],
)
def test_bad_label_maps(mapping: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        label_images.stored_values(CLASSES, mapping=mapping)


@pytest.mark.parametrize("text", ["[1]", '{"road": 1.5}', '{"road": true}', "{"])
def test_bad_label_map_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(InputError, match="not a label map"):
        label_images.stored_values(CLASSES, mapping=str(tmp_path / "map.json"))


def test_labels_stored_as_other_values() -> None:
    labels = np.array([[0, 1, 2]], np.uint8)
    stored, colours = label_images.store_as(labels, OWN, np.array([2, 0, 2], np.uint16))
    assert (stored.dtype, stored.tolist()) == (np.uint8, [[2, 0, 2]])
    assert colours == ((2, 2, 2), (0, 0, 0), (1, 1, 1))
    stored, colours = label_images.store_as(labels, OWN, np.array([0, 256, 65535], np.uint16))
    assert (stored.dtype, stored.tolist(), len(colours)) == (np.uint16, [[0, 256, 65535]], 65536)
    assert label_images.labels_image(stored, colours).mode == "I;16"
