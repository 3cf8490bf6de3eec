"""What label images store and mean, wherever they are read, and which files a folder holds."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patterns import png_of
from PIL import Image, ImageOps
from PIL.Image import registered_extensions
from tiny_model import tiny_graph

import intseg
from intseg import store
from intseg.batch import datasets, metrics, sources
from intseg.cli import main as cli
from intseg.errors import InputError, UsageError
from intseg.images import decode as pictures
from intseg.images import labels as label_images
from intseg.images.decode import Picture
from intseg.images.labels import Labelling

Capture = pytest.CaptureFixture[str]
STORED = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 3, 2]], np.uint8)

# -------------------------------------------------------------------------------------------------- stored values


def rows_of(values: Any, bits: int) -> list[bytes]:
    """Rows of values, the first in the high bits."""
    words = ["".join(f"{value:0{bits}b}" for value in row) for row in values.tolist()]
    return [int(word, 2).to_bytes(len(word) // 8, "big") for word in words]


def tiff(bits: int, photometric: int, values: Any, samples: int = 1) -> bytes:
    """An uncompressed gray TIFF of 4 columns, as Pillow does not write it."""
    data = np.asarray(values, "<u2").tobytes() if bits == 16 else b"".join(rows_of(values, bits))
    tags = [(256, 4), (257, len(values)), (258, bits), (259, 1), (262, photometric), (273, 8), (277, samples)]
    tags += [(278, len(values)), (279, len(data))]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


FILES = {
    "png of 2 bits": (png_of(4, 3, 2, 0, rows_of(STORED, 2)), STORED, 0),
    "png of 4 bits": (png_of(4, 3, 4, 0, rows_of(STORED, 4)), STORED, 0),
    "tiff of 2 bits": (tiff(2, 1, STORED), STORED, 0),
    "tiff of 4 bits": (tiff(4, 1, STORED), STORED, 0),
    "tiff, white is 0": (tiff(8, 0, STORED), STORED, 1),
    "tiff of 4 bits, white is 0": (tiff(4, 0, STORED), STORED, 1),
    "tiff of 16 bits, white is 0": (tiff(16, 0, STORED * np.uint16(300)), STORED * np.uint16(300), 0),
    "pgm up to 10": (b"P5 4 3 10\n" + STORED.tobytes(), STORED, 1),
    "pgm, 255 above its 10": (b"P5 4 3 10\n" + (STORED * 85).tobytes(), STORED * 85, 1),
    "pgm up to 1000": (b"P5 4 3 1000\n" + STORED.astype(">u2").tobytes(), STORED, 1),
    "plain pgm up to 10": (b"P2 4 3 10\n" + b" ".join(b"%d" % v for v in STORED.flat), STORED, 1),
    "plain pbm": (b"P1 4 3\n" + b" ".join(b"%d" % (v % 2) for v in STORED.flat), STORED % 2, 0),
}


@pytest.mark.parametrize("name", FILES)
def test_the_stored_values_whatever_their_depth_and_colour(tmp_path: Path, name: str) -> None:
    data, expected, notes = FILES[name]
    (tmp_path / "labels").write_bytes(data)
    assert np.array_equal(label_images.decode_labels(tmp_path / "labels"), expected)
    picture = Picture(np.zeros((3, 4, 3), np.uint8))
    found, said = label_images.truth(tmp_path / "labels", picture, 1000, Labelling())
    assert np.array_equal(found, expected)
    assert len(said) == notes


def test_label_images_with_loss_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(STORED)
    kinds: list[tuple[str, dict[str, Any]]] = [("a.jpg", {}), ("a.tif", {"compression": "jpeg"})]
    for name, options in kinds:
        image.save(tmp_path / name, **options)
        with pytest.raises(InputError, match=f"{name}: label image is .* with loss"):
            label_images.decode_labels(tmp_path / name)
    image.save(tmp_path / "a.gif", save_all=True, append_images=[Image.fromarray(STORED[::-1].copy())])
    with pytest.raises(InputError, match="has 2 frames"):
        label_images.decode_labels(tmp_path / "a.gif")


def test_images_of_12_bits_and_with_white_at_zero(tmp_path: Path) -> None:
    values = np.array([[0, 300, 65535, 4096]], np.uint16)
    for photometric, expected in ((1, values >> 8), (0, 255 - (values >> 8))):
        picture = pictures.decode(tiff(16, photometric, values), (0, 0, 0))
        assert picture.rgb[..., 0].tolist() == expected.tolist()
    picture = pictures.decode(tiff(12, 1, np.array([[0, 16, 4095, 2048]])), (0, 0, 0))
    assert picture.rgb[..., 0].tolist() == [[0, 1, 255, 128]]
    assert picture.notes[0].startswith("12 bits")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(8, 1, STORED, samples=7), "7 unsigned samples"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "is HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "is AVIF"),
    ],
)
def test_other_kinds_say_what_they_are(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(InputError, match=words) as caught:
        pictures.decode(tmp_path / "x.tif", (0, 0, 0))
    assert str(tmp_path / "x.tif") in str(caught.value)
    Image.new("F", (2, 2)).save(tmp_path / "f.tif")
    with pytest.raises(InputError, match=r"f\.tif has mode F"):
        pictures.decode(tmp_path / "f.tif", (0, 0, 0))


# ---------------------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_turn_as_pillow_turns_pictures(orientation: int) -> None:
    image = Image.fromarray(STORED)
    image.getexif()[0x0112] = orientation
    assert np.array_equal(label_images.turned(STORED, orientation), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_labels_of_a_turned_image(tmp_path: Path, orientation: int) -> None:
    """By their size where it tells, by --orientation where not, by their own EXIF where they have one."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(tmp_path / "i.png", exif=exif)
    picture = pictures.decode(tmp_path / "i.png", (0, 0, 0))
    upright = label_images.turned(STORED, orientation)
    Image.fromarray(STORED).save(tmp_path / "s.png")
    Image.fromarray(np.ascontiguousarray(upright)).save(tmp_path / "u.png")
    Image.fromarray(STORED).save(tmp_path / "e.png", exif=exif)
    assert np.array_equal(label_images.truth(tmp_path / "e.png", picture, 4, Labelling())[0], upright)
    for name, lie in (("s.png", "stored"), ("u.png", "upright")):
        assert np.array_equal(label_images.truth(tmp_path / name, picture, 4, Labelling(lie=lie))[0], upright)
        if orientation < 5:
            with pytest.raises(InputError, match=f"{name}: .*orientation {orientation}.*--orientation stored"):
                label_images.truth(tmp_path / name, picture, 4, Labelling())
        else:
            assert np.array_equal(label_images.truth(tmp_path / name, picture, 4, Labelling())[0], upright)


# -------------------------------------------------------------------------------------------------------- meaning


def test_offset_map_and_ignored_values() -> None:
    table = Labelling((0, 255), offset=1).classes(3)
    assert (table[:5].tolist(), table[255]) == ([-1, 0, 1, 2, -2], -1)
    named = label_images.named_labels(("a", "b", "c"), "b=7,*=9", (3,))
    assert named.classes(3)[[3, 7, 9, 0]].tolist() == [-1, 1, -1, -2]
    with pytest.raises(UsageError, match="two classes share"):
        label_images.named_labels(("a", "b"), "a=1,b=1")


def test_labels_counted_from_one_are_noticed() -> None:
    matrix = np.zeros((4, 4), np.int64)
    matrix[1, 0] = matrix[2, 1] = matrix[3, 2] = 10
    assert metrics.shifted(matrix) == 1
    assert metrics.shifted(matrix.T) == -1
    assert metrics.shifted(matrix + 10 * np.eye(4, dtype=np.int64)) is None
    assert metrics.shifted(np.zeros((4, 4), np.int64)) is None


@pytest.fixture
def own_labels(tmp_path: Path) -> tuple[Path, Any]:
    """A data set whose labels are a model's predictions, images/ and labels/, and these predictions."""
    store.save(tiny_graph(n_cls=5), tmp_path / "w.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    return tmp_path, intseg.run(pixels, tmp_path / "w.safetensors", "numpy").labels


OPTIONS = {
    "index": (lambda found: found, []),
    "offset": (lambda found: found + 1, ["--label-offset", "1"]),
    "zero reduced": (lambda found: np.where(found == 1, 0, found + 1), ["--reduce-zero-label"]),
    "map": (lambda found: np.array([9, 200, 7, 7, 8])[found], ["--label-map", "class 0=9,class 1=200,class 4=8,*=7"]),
    "ignored": (lambda found: np.where(found == 2, 254, found), ["--ignore", "254,255"]),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_eval_of_a_models_own_labels_is_perfect(own_labels: Any, name: str, capsys: Capture) -> None:
    folder, predicted = own_labels
    change, options = OPTIONS[name]
    Image.fromarray(change(predicted).astype(np.uint8)).save(folder / "labels" / "a.png")
    places = ["--images", str(folder / "images"), "--labels", str(folder / "labels")]
    assert cli.main(["eval", *places, "-w", str(folder / "w.safetensors"), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["aAcc"] == 100.0


def test_eval_says_that_labels_look_counted_from_one(own_labels: Any, capsys: Capture) -> None:
    folder, predicted = own_labels
    Image.fromarray((predicted + 1).astype(np.uint8)).save(folder / "labels" / "a.png")
    places = ["--images", str(folder / "images"), "--labels", str(folder / "labels"), "--ignore", "5"]
    assert cli.main(["eval", *places, "-w", str(folder / "w.safetensors")]) == 0
    assert "--label-offset" in capsys.readouterr().err


def test_notes_of_decoded_images_are_counted(own_labels: Any, capsys: Capture) -> None:
    folder, predicted = own_labels
    for name in ("a", "b"):
        Image.fromarray(predicted).convert("L").save(folder / "images" / f"{name}.png")
        Image.fromarray(predicted).save(folder / "labels" / f"{name}.png")
    (folder / "images" / "c.heic").write_bytes(b"")
    (folder / "images" / "._a.png").write_bytes(b"")
    where = [str(folder / "images"), "-w", str(folder / "w.safetensors")]
    places = ["--images", str(folder / "images"), "--labels", str(folder / "labels"), *where[1:]]
    commands = [["eval", *places], ["infer", *where, "-o", str(folder / "out")]]
    for command in commands:
        assert cli.main(command) == 0
        said = capsys.readouterr().err
        assert "2 files, first " in said
        assert "grayscale" in said
        assert "1 hidden" in said
        assert "1 ending in .heic" in said
    single = str(folder / "images" / "a.png")
    for command in (["quant-report", where[2], single], ["profile", single], ["diff", single, "none.npz"]):
        weights = [] if command[0] == "quant-report" else where[1:]
        code = cli.main([*command, *weights])
        said = capsys.readouterr()
        assert code == (4 if command[0] == "diff" else 0), said.err
        assert "grayscale" in said.err or command[0] == "diff"


# ------------------------------------------------------------------------------------------------------------ walker


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(name, "PNG")


def test_endings_are_those_of_the_decoder() -> None:
    Image.init()
    known = {ending for ending, kind in registered_extensions().items() if kind in pictures.FORMATS}
    assert known - {".pfm"} == set(pictures.SUFFIXES)


def test_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch("in/b.JFIF", "in/a.png/x.pnm", "in/day/1.jpg", "in/night/1.jpg", "in/.ipynb_checkpoints/b.png", "far/2.gif")
    touch("in/day/1_labels.png", "in/day/1_overlay.png", "in/day/lone_labels.png", "in/._b.png", "in/out/1.png")
    Path("in/photo.heic").write_bytes(b"")
    Path("in/loop").symlink_to("../in")
    Path("in/day/far").symlink_to("../../far")
    Path("in/again").symlink_to("day")
    Path("in/gone.png").symlink_to("nothing")
    os.mkfifo("in/pipe.png")
    found = sources.walk("in", without=[Path("in/out")])
    expected = ["a.png/x.pnm", "b.JFIF", "day/1.jpg", "day/far/2.gif", "day/lone_labels.png", "gone.png", "night/1.jpg"]
    assert found.files == expected
    said = {entry["note"]: entry["files"] for entry in found.left_out.as_json()}
    assert said == {
        "hidden": 2,
        "ending in .heic": 1,
        "link to a folder that is read already": 2,
        "written by intseg infer": 2,
        "not a regular file": 1,
    }
    assert sources.walk("in", recursive=False).files == ["b.JFIF", "gone.png"]
    link = Path("link")
    link.symlink_to("in/day")
    assert sources.walk(link).files == ["1.jpg", "far/2.gif", "lone_labels.png"]


def test_equal_names_in_folders_are_matched_by_their_path(tmp_path: Path) -> None:
    for clip in ("bear", "camel"):
        touch(f"{tmp_path}/JPEGImages/{clip}/0.jpg", f"{tmp_path}/Annotations/{clip}/0.png")
    pairs = datasets.find_pairs(tmp_path / "JPEGImages", tmp_path / "Annotations")
    assert [(pair.name, pair.labels.parent.name) for pair in pairs] == [("bear/0", "bear"), ("camel/0", "camel")]


def test_published_cityscapes_numbers_are_mapped(tmp_path: Path, capsys: Capture) -> None:
    store.save(tiny_graph(n_cls=19), tmp_path / "w.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    predicted = intseg.run(pixels, tmp_path / "w.safetensors", "numpy").labels
    image, labels = (tmp_path / folder / "val" / "town" for folder in ("leftImg8bit", "gtFine"))
    image.mkdir(parents=True)
    labels.mkdir(parents=True)
    Image.fromarray(pixels).save(image / "town_0_leftImg8bit.png")
    arguments = [
        "eval",
        "--root",
        str(tmp_path),
        "--layout",
        "cityscapes",
        "-w",
        str(tmp_path / "w.safetensors"),
        "--json",
    ]
    Image.fromarray(pixels).save(labels / "town_0_gtFine_color.png")
    assert cli.main(arguments) == 4
    error = capsys.readouterr().err
    assert "found 1 others, such as town/town_0_gtFine_color.png" in error
    ids = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], np.uint8)[predicted]
    ids[0, 0], ids[0, 1] = 0, 9
    Image.fromarray(ids).save(labels / "town_0_gtFine_labelIds.png")
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["aAcc"], sum(map(sum, found["confusion"]))) == (100.0, predicted.size - 2)


def test_outputs_do_not_become_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    store.save(tiny_graph(), "w.safetensors")
    touch("photos/a.png", "photos/b.png")
    run = ["-w", "w.safetensors", "--backend", "numpy"]
    assert cli.main(["infer", "photos/a.png", *run]) == 0
    assert sorted(os.listdir("photos")) == ["a.png", "a_labels.png", "a_overlay.png", "b.png"]
    below = ["infer", "photos", "-r", "-o", "out", "--overlay", "photos/over", *run]
    for more in (["--resume"], ["--resume"], ["--force"]):
        assert cli.main([*below, *more]) == 0
        assert sorted(path.name for path in Path("out").glob("*.png")) == ["a_labels.png", "b_labels.png"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_and_maps_of_other_systems(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch("a.png")
    for name, text in (("l.txt", "a.png\r\n\r\n"), ("m.json", '{"a": 3}\r\n'), ("p.txt", "a\t1 2 3\r\n\r\n")):
        Path(name).write_text(text, encoding=encoding, newline="")
    assert [source.file for source in sources.find_sources(["@l.txt"])] == ["a.png"]
    assert label_images.stored_values(("a",), mapping="m.json").tolist() == [3]
    from intseg.images.overlay import palette

    assert palette("p.txt", ("a",), ((0, 0, 0),)) == ((1, 2, 3),)
