"""The first ten minutes with README.md alone, away from the checkout: `./check wheel` runs it with the installed wheel.

    python ten_minutes.py README.md IMAGES

Commands and code are those of README.md. What a reader brings is made here: a photo, a checkpoint of a few steps of
training (without PyTorch this part says that it is left out), a folder of hex files in which one layer rounds wrongly.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import intseg

LIMIT = 90
"""Seconds of processor time that all of it may take, compilation included: a busy machine does not fail it."""

NODE = "encoder.blocks.0.mlp.fc1"


def run(line: str, code: int = 0) -> str:
    """Run a command of the README with this interpreter; what it printed."""
    words = shlex.split(line)
    assert words[0] == "intseg", line
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "intseg.cli", *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{line}\n{done.stdout}\n{done.stderr}"
    print(f"{time.monotonic() - begun:6.1f} s  {line}", flush=True)
    return done.stdout


def commands(text: str) -> list[str]:
    """The intseg commands of the README, in its order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    parts = [part.strip() for block in blocks for part in re.split(r"&&|\n", block)]
    return [part.removeprefix(".venv/bin/") for part in parts if part.removeprefix(".venv/bin/").startswith("intseg ")]


def floor(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, mult: np.ndarray, shift: np.ndarray, **_: object
) -> np.ndarray:
    """A linear layer that rounds down."""
    y = (x.astype(np.int64) @ weight.T + bias) * mult >> shift
    return np.clip(y, -128, 127).astype(np.int8)


def write_hex(folder: Path, image: Path, weights: str) -> None:
    """The first window of an image with the mistake, one file a node, as a simulator dumps it."""
    folder.mkdir()
    (_, outputs), *_ = intseg.trace(image, weights, ops={NODE: floor})
    for name, value in outputs.items():
        words = value.astype(value.dtype.newbyteorder("=")).view(f"uint{8 * value.itemsize}").ravel()
        digits = 2 * value.itemsize
        (folder / f"{name}.hex").write_text("".join(f"{word:0{digits}x}\n" for word in words.tolist()))


def make_checkpoint() -> bool:
    """checkpoint.pth and variant.yml of a small Segmenter, trained for three steps; False without PyTorch."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("yaml") is None:
        return False
    from intseg.tools.twin.checkpoint import save_checkpoint
    from intseg.tools.twin.config import SegmenterConfig
    from intseg.tools.twin.segmenter import random_segmenter

    config = SegmenterConfig(
        image_size=(32, 48), patch=8, d_model=32, n_layers=2, n_heads=2, mlp_dim=64, n_cls=11, window=(32, 48),
        stride=(24, 40), d_decoder=32, dec_layers=1, dec_heads=2, dec_mlp_dim=64,
    )  # fmt: skip
    save_checkpoint(random_segmenter(config, 3), Path("begin"))
    for folder, mode in (("train", "RGB"), ("trainannot", "L")):
        Path("data", folder).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 11, (40, 60, 3) if mode == "RGB" else (40, 60), np.uint8)
            Image.fromarray(pixels * (20 if mode == "RGB" else 1)).save(f"data/{folder}/{i}.png")
    run("intseg train --from begin --root data --val '' --steps 3 --batch 2 -o mine")
    for name in ("checkpoint.pth", "variant.yml"):
        shutil.copy(f"mine/{name}", name)
    return True


def main(readme: Path, images: Path) -> None:
    """Install has been done; segment, convert, find, measure."""
    begun = time.monotonic()
    infer, diff, profile, convert, infer_own = commands(readme.read_text(encoding="utf-8"))
    shutil.copytree(images, "golden/images")
    run(infer)
    assert Path("leuven_labels.png").stat().st_size
    assert Path("leuven_overlay.png").stat().st_size
    Image.open("golden/images/leuven.png").crop((100, 100, 228, 228)).save("photo.png")
    if make_checkpoint():
        run(convert)
        run(infer_own)
        assert Path("photo_labels.png").stat().st_size
    else:
        print("without PyTorch: no checkpoint is converted")
    write_hex(Path("rtl"), Path("photo.png"), "camvid-tiny")
    other = shlex.split(diff)
    found = run(shlex.join([*other[:2], "photo.png", "rtl", *other[4:]]), code=1)
    for words in (
        f"node {NODE} (linear)",
        "the node equals the other side exactly with",
        "round down (floor)",
        "case.safetensors",
    ):
        assert words in found, found
    assert re.search(r"^[0-9.]+ ms in all", run(profile), re.MULTILINE)
    used = sum(os.times()[:4])
    print(f"{time.monotonic() - begun:6.1f} s  all of it, {used:.1f} s of processor time")
    assert used < LIMIT, f"{used:.0f} s of processor time, expected less than {LIMIT}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
