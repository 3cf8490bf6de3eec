"""What calibration images of several kinds say and cost: excitation, and pixels equal to the float model.

python tools/measure/poor_images.py CHECKPOINT PHOTO --root CamVid [--step 16]

From one photo: as it is, dark, of low contrast, blurred; and noise and gray of its size. Where the image says nothing,
with and without the drawn scene that `intseg convert` adds. Writes a table to standard output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from intseg import api
from intseg.batch import datasets
from intseg.images import decode as pictures
from intseg.reports.table import table
from intseg.tools.convert import model_info, recipe_for
from intseg.tools.evaluate import float_labels
from intseg.tools.twin import classes
from intseg.tools.twin.calibrate import calibrate
from intseg.tools.twin.checkpoint import load_checkpoint
from intseg.tools.twin.excitation import drawn_scene, excitation
from intseg.tools.twin.export import export
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.windows import cut_windows

Pixels = NDArray[np.uint8]


def images(photo: Pixels) -> Iterator[tuple[str, Pixels]]:
    """The kinds, by name."""
    height, width, _ = photo.shape
    yield "photo", photo
    yield "dark: times 0.2", (photo * 0.2).astype(np.uint8)
    yield "flat: times 0.2, plus 100", (photo * 0.2 + 100).astype(np.uint8)
    small = Image.fromarray(photo).resize((max(1, width // 40), max(1, height // 40)))
    yield "blurred", np.array(small.resize((width, height)))
    yield "noise", np.random.default_rng(0).integers(0, 256, photo.shape).astype(np.uint8)
    yield "gray", np.full_like(photo, 128)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = argparse.ArgumentParser(prog="poor_images.py", description=(__doc__ or "").splitlines()[0])
    p.add_argument("checkpoint", type=Path)
    p.add_argument("photo", type=Path)
    p.add_argument("--root", type=Path, required=True, help="CamVid, whose val images are compared")
    p.add_argument("--step", type=int, default=16, metavar="K", help="every K-th of them (16)")
    p.add_argument("--recipe", default="intseg")
    p.add_argument("--kinds", nargs="+", metavar="WORD", help="those that begin with these words (all)")
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    model, recipe = load_checkpoint(args.checkpoint), recipe_for(args.recipe)
    named = classes.for_model(model.config.n_cls, "camvid", None)
    info = model_info(model.config, recipe, "poor", named)
    pairs = datasets.open_dataset("camvid", args.root, "val").pairs[:: args.step]
    decoded = [pictures.decode(pair.image, info.pad).rgb for pair in pairs]

    def cut(rgb: Pixels) -> torch.Tensor:
        return torch.from_numpy(np.stack([window for _, window in cut_windows(rgb, info)]))

    expected = [float_labels(model, cut(rgb), rgb.shape[:2], info, upsample=recipe.upsample) for rgb in decoded]

    def equal(batches: list[torch.Tensor]) -> str:
        twin = FakeQuantSegmenter(model, info.window, recipe)
        calibrate(twin, model, batches)
        engine = api.Model(export(twin, info), "", Path("poor"))
        same = [float((api.run(rgb, engine).labels == e).mean()) for rgb, e in zip(decoded, expected, strict=True)]
        return f"{100 * np.mean(same):.2f}"

    rows = [("calibration image", "dead %", "contrast", "correlation", "equal %", "with a drawn scene, equal %")]
    for name, rgb in images(pictures.decode(args.photo, info.pad).rgb):
        if args.kinds and not name.startswith(tuple(args.kinds)):
            continue
        found = excitation(model, [cut(rgb)])
        more = equal([drawn_scene(info.window), cut(rgb)]) if found.poor else ""
        numbers = f"{100 * found.dead:.0f}", str(found.contrast), f"{found.correlation:.2f}"
        rows.append((name, *numbers, equal([cut(rgb)]), more))
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    print("\n".join(table(rows, gap=2)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
