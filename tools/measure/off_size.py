"""Why fewer pixels equal the float model where windows are not of the size that it was trained at.

python tools/measure/off_size.py CHECKPOINT PHOTO --root CamVid [--windows 256 384] [--step 25]

For every window, calibrated on the photo: patches that integers and floats label alike, the error of the scores, how
far the float model's best score is ahead of its second, and the share of patches where it is ahead by less than twice
the error. Writes a table to standard output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from intseg.batch import datasets
from intseg.reports.table import table
from intseg.tools.convert import model_info, recipe_for, windows
from intseg.tools.twin import classes
from intseg.tools.twin.calibrate import calibrate, normalise
from intseg.tools.twin.checkpoint import load_checkpoint
from intseg.tools.twin.model import FakeQuantSegmenter


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = argparse.ArgumentParser(prog="off_size.py", description=(__doc__ or "").splitlines()[0])
    p.add_argument("checkpoint", type=Path)
    p.add_argument("photo", type=Path)
    p.add_argument("--root", type=Path, required=True, help="CamVid, whose val images are compared")
    p.add_argument("--windows", type=int, nargs="+", default=[256, 384], metavar="PIXELS", help="sides (256 384)")
    p.add_argument("--step", type=int, default=25, metavar="K", help="every K-th val image (25)")
    p.add_argument("--recipe", default="intseg")
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    model, recipe = load_checkpoint(args.checkpoint), recipe_for(args.recipe)
    named = classes.for_model(model.config.n_cls, "camvid", None)
    files = [pair.image for pair in datasets.open_dataset("camvid", args.root, "val").pairs[:: args.step]]
    rows = [("window", "equal %", "error of scores", "SQNR dB", "median lead", "lead below 2 errors, %")]
    for side in args.windows:
        info = model_info(model.config, recipe, "off", named, (side, side), (side, side))
        twin = FakeQuantSegmenter(model, info.window, recipe)
        calibrate(twin, model, [windows(args.photo, info)])
        twin.eval()
        floats, integers = [], []
        with torch.no_grad():
            for batch in (windows(file, info) for file in files):
                floats.append(model.forward_scores(normalise(batch, model.config), recipe.cosine).flatten(0, 2))
                integers.append(twin(batch).real.flatten(0, 2))
        real, found = torch.cat(floats).double(), torch.cat(integers).double()
        error = float((found - real).square().mean().sqrt())
        best = real.topk(2, -1).values
        lead = best[:, 0] - best[:, 1]
        equal = float((real.argmax(-1) == found.argmax(-1)).double().mean())
        sqnr = 10 * float((real.square().mean() / error**2).log10())
        close = float((lead < 2 * error).double().mean())
        cells = f"{100 * equal:.2f}", f"{error:.3f}", f"{sqnr:.1f}", f"{float(lead.median()):.2f}", f"{100 * close:.1f}"
        rows.append((f"{side} x {side}", *cells))
    print("\n".join(table(rows, gap=2)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
