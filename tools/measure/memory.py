"""Time and peak memory of `intseg convert` by size of the network; docs/results/memory.json.

    python tools/measure/memory.py                     base and large
    python tools/measure/memory.py --sizes tiny small base large

Segmenters with random weights in the published sizes, 150 classes, windows of 512 x 512; one calibration image, the
street of golden/. The conversion is a process of its own on one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from intseg.tools.ends import ended
from intseg.tools.make_docs import DOCS
from intseg.tools.measure import bench
from intseg.tools.measure.experiment.memo import Document, read_json, write
from intseg.tools.measure.experiment.quantized import TOOLS, measured
from intseg.tools.twin.checkpoint import save_checkpoint
from intseg.tools.twin.config import SIZES, config_for
from intseg.tools.twin.segmenter import random_segmenter

STREET = DOCS.parent / "golden" / "images" / "street.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = argparse.ArgumentParser(prog="memory.py", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["base", "large"], help="(base large)")
    p.add_argument("--recipe", default="intseg")
    p.add_argument("--docs", type=Path, default=DOCS, help="folder of results/")
    args = p.parse_args(argv)
    return ended("memory.py", lambda: _measure(args))


def _measure(args: argparse.Namespace) -> None:
    """Rows of sizes that are not asked for stay."""
    path = args.docs / "results" / "memory.json"
    known = read_json(path)["results"] if path.exists() else {}
    found: Document = known["sizes"] if known.get("recipe") == args.recipe else {}
    for name in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(random_segmenter(config_for(name), 0), folder)
            output = Path(folder) / "model.safetensors"
            command = [TOOLS / "convert.py", folder, "-o", output, "--recipe", args.recipe, "-q"]
            cost = measured([*command, "--calibrate", STREET])
            found[name] = cost | {"bytes": output.stat().st_size, "shares_weights": True}
        print(f"{name}: {found[name]['peak_bytes'] / 1e9:.2f} GB, {found[name]['cpu_seconds']:.0f} s", flush=True)
        about = {"experiment": "memory", "command": f"python tools/measure/memory.py --sizes {' '.join(found)}"}
        results = {"recipe": args.recipe, "sizes": found, "machine": bench.machine()}
        write({**about, "results": results}, path)


if __name__ == "__main__":
    sys.exit(main())
