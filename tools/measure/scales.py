"""mIoU of images scaled before, as they are and brought to the short side that the model was trained at.

python tools/measure/scales.py --root CamVid [-w camvid-tiny] [--step 5] [--sizes 20 50 200]

A size is a percentage of the data set's: the image by Pillow's Lanczos, its labels to the nearest. Writes a table to
standard output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from intseg import api
from intseg.batch import datasets, metrics
from intseg.images import decode as pictures
from intseg.images.labels import truth
from intseg.reports.table import table

SIZES = (20, 33.33, 50, 100, 200, 400)


def miou(
    models: Sequence[api.Model], pairs: Sequence[datasets.Pair], data: datasets.Dataset, percent: int
) -> list[str]:
    """Of every model on the scaled images, in percent; first the size of the last of them."""
    count, where = len(models[0].info.classes), ""
    total = [np.zeros((count, count), np.int64) for _ in models]
    for pair in pairs:
        picture = pictures.decode(pair.image, models[0].info.pad)
        labels, _ = truth(pair.labels, picture, count, data.labelling, str(pair.image))
        height, width = (max(1, round(side * percent / 100)) for side in labels.shape)
        rgb = np.asarray(Image.fromarray(picture.rgb).resize((width, height), Image.Resampling.LANCZOS))
        wanted = np.asarray(Image.fromarray(labels.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST))
        where = f"{width} x {height}"
        for sums, model in zip(total, models, strict=True):
            sums += metrics.confusion(wanted, api.run(rgb, model).labels, count, ignore=-1)
    return [where, *(f"{metrics.metrics(sums).miou:.2f}" for sums in total)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = argparse.ArgumentParser(prog="scales.py", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--root", type=Path, required=True, help="CamVid")
    p.add_argument("-w", "--weights", default="camvid-tiny", help="weights file or name (camvid-tiny)")
    p.add_argument("--step", type=int, default=5, metavar="K", help="every K-th val image (5)")
    p.add_argument("--sizes", type=float, nargs="+", default=SIZES, metavar="PERCENT", help="of the image")
    args = p.parse_args(argv)
    model, data = api.load(args.weights), datasets.open_dataset("camvid", args.root, "val")
    if model.info.working_size is None:
        p.error(f"{args.weights} states no working size, expected weights that do")
    rows: list[tuple[str, ...]] = [("image", "as it is", f"at a short side of {model.info.working_size[0]}")]
    for percent in args.sizes:
        rows.append(tuple(miou((model.at_scale("native"), model), data.pairs[:: args.step], data, percent)))
        print(*rows[-1], file=sys.stderr, flush=True)
    print("\n".join(table(rows, gap=2)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
