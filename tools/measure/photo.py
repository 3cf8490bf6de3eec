"""The classes that a float checkpoint gives the photo of README.md: docs/results/leuven_float.png, for its picture,
where they are compared with the bundled model's.

    python tools/measure/photo.py runs/camvid
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from intseg import api, store
from intseg.images.decode import decode
from intseg.images.labels import labels_png
from intseg.tools.evaluate import batch_of, float_labels
from intseg.tools.readme import FLOAT, PHOTO
from intseg.tools.twin.checkpoint import load_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="photo.py", description="Classes of the photo of README.md in float.")
    parser.add_argument("checkpoint", type=Path, help="of the bundled model: checkpoint.pth, or its folder")
    args = parser.parse_args(argv)
    model, info = load_checkpoint(args.checkpoint), api.load().info
    rgb = decode(PHOTO, info.pad).rgb
    found = float_labels(model, batch_of(rgb, info), rgb.shape[:2], info, "bilinear").astype("uint8")
    store.write_atomically(FLOAT, labels_png(found, info.palette))
    print(f"wrote {FLOAT}: {int((found != api.run(PHOTO).labels).sum())} pixels differ from the bundled model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
