"""The scene generator: same seed same pixels, sound labels, any size, clean failures, and the committed example."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intseg.errors import InputError
from intseg.tools import make_scenes

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "make_scenes.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script as a user would."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def files_below(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def street() -> tuple[np.ndarray, np.ndarray]:
    """The example scene, drawn once."""
    return make_scenes.scene(make_scenes.STREET_SEED)


def test_committed_street_is_the_drawn_scene(street: tuple[np.ndarray, np.ndarray]) -> None:
    for name, drawn in zip(("street.png", "street_truth.png"), street, strict=True):
        with Image.open(make_scenes.STREET_DIR / name) as image:
            np.testing.assert_array_equal(np.asarray(image), drawn, err_msg=name)


def test_street_is_small_and_shows_the_main_classes(street: tuple[np.ndarray, np.ndarray]) -> None:
    assert (make_scenes.STREET_DIR / "street.png").stat().st_size < 350_000
    share = np.bincount(street[1].ravel(), minlength=len(make_scenes.CLASSES)) / street[1].size
    for name in ("Sky", "Building", "Road", "Pavement", "Tree", "Car"):
        assert share[make_scenes.CLASSES.index(name)] > 0.03, name
    for name in ("Pole", "SignSymbol", "Pedestrian", "Bicyclist"):
        assert share[make_scenes.CLASSES.index(name)] > 0.0005, name


def test_same_seed_same_pixels_other_seed_other_pixels() -> None:
    first, again, other = (make_scenes.scene(seed, 96, 128) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).mean() > 0.2
    assert (first[1] != other[1]).any()


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 200), (200, 40), (90, 120)])
def test_any_size(size: tuple[int, int]) -> None:
    rgb, labels = make_scenes.scene(11, *size)
    assert rgb.shape == (*size, 3)
    assert labels.shape == size
    assert rgb.dtype == labels.dtype == np.uint8
    assert labels.max() < len(make_scenes.CLASSES)
    for wanted in (make_scenes.SKY, make_scenes.ROAD):
        assert (labels == wanted).any()


def test_many_seeds_draw_every_class() -> None:
    found: set[int] = set()
    for seed in range(6):
        rgb, labels = make_scenes.scene(seed, 72, 96)
        found |= set(np.unique(labels).tolist())
        assert rgb.std() > 20
    assert found == set(range(len(make_scenes.CLASSES)))


@pytest.mark.parametrize("size", [(31, 480), (360, 31), (0, 0), (360, 5000)])
def test_scene_refuses_impossible_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="both sides must lie in"):
        make_scenes.scene(0, *size)


def test_numbers_are_the_documented_ones() -> None:
    """SplitMix64's published first outputs for seed 0."""
    rng = make_scenes.Rng(0)
    assert [rng.bits() for _ in range(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_polygon_fill_covers_pixel_centres() -> None:
    mask = make_scenes.polygon_mask([(1.0, 1.0), (4.0, 1.0), (4.0, 3.0), (1.0, 3.0)], np.arange(5), np.arange(6))
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(mask, expected)


def test_cli_writes_images_and_labels(tmp_path: Path) -> None:
    done = run("-o", tmp_path, "--count", 2, "--seed", 5, "--size", "48x64")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert files_below(tmp_path) == [f"{part}/scene_000{k}.png" for part in ("images", "labels") for k in (0, 1)]
    rgb, labels = make_scenes.scene(6, 48, 64)
    with Image.open(tmp_path / "images" / "scene_0001.png") as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), rgb)
    with Image.open(tmp_path / "labels" / "scene_0001.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), labels)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required"),
        (["-o", "x", "--street", "y"], "not allowed with"),
        (["-o", "x", "--count", "0"], "'0' is not a whole number in 1..10000"),
        (["-o", "x", "--count", "two"], "'two' is not a whole number"),
        (["-o", "x", "--seed", "-1"], "--seed"),
        (["-o", "x", "--size", "360"], "'360' is not a size such as 360x480"),
        (["-o", "x", "--size", "16x480"], "'16x480': both sides must lie in 32..4096"),
        (["-o", "x", "--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_arguments_end_in_one_line_and_status_2(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        make_scenes.main(arguments)
    printed = capsys.readouterr().err
    assert caught.value.code == 2
    assert complaint in printed
    assert printed.count("\n") == 1
    assert files_below(tmp_path) == []


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        make_scenes.main(["--help"])
    assert caught.value.code == 0
    assert "example: python tools/make_scenes.py -o" in " ".join(capsys.readouterr().out.split())


def test_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    done = run("-o", tmp_path / "taken", "--size", "32x32")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "taken" in done.stderr
    assert (tmp_path / "taken").read_text() == "mine"


def test_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        make_scenes.save_png(target, np.zeros((32, 32, 3), np.uint8))
    assert target.read_bytes() == b"old"
    assert files_below(tmp_path) == ["a.png"]


def test_check_accepts_the_example_and_names_a_changed_or_missing_file(
    tmp_path: Path,
    street: tuple[np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(make_scenes, "scene", lambda seed: street)
    assert make_scenes.main(["--street", str(tmp_path)]) == 0
    assert make_scenes.main(["--check", str(tmp_path)]) == 0
    assert make_scenes.main(["--check"]) == 0
    assert capsys.readouterr().err == ""

    changed = street[1].copy()
    changed[7, 9] ^= 1
    make_scenes.save_png(tmp_path / "street_truth.png", changed)
    assert make_scenes.main(["--check", str(tmp_path)]) == 1
    assert "street_truth.png: 1 of 172800 values differ" in capsys.readouterr().err

    (tmp_path / "street.png").unlink()
    assert make_scenes.main(["--check", str(tmp_path)]) == 1
    assert "street.png: cannot be read" in capsys.readouterr().err
