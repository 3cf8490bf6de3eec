"""What changes where windows are not of the size that a network was trained at.

python tools/measure/off_size.py CHECKPOINT PHOTO --root CamVid [--windows 128 384] [--step 25]

For every window, calibrated on the photo at that size: patches that integers and floats label alike, the same with all
ranges from the training size, the error of the scores, the share of patches whose best float score is ahead of the
second by less than twice the error, values at an end of their INT8 range, and how far the float residual stream and the
position embedding reach, beside the training size. Writes a table to standard output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from intseg.batch import datasets
from intseg.reports.table import table
from intseg.tools.convert import model_info, recipe_for, windows
from intseg.tools.twin import classes
from intseg.tools.twin.calibrate import calibrate, normalise
from intseg.tools.twin.checkpoint import load_checkpoint
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.tools.twin.samples import tapped
from intseg.tools.twin.segmenter import Segmenter

HEAD = ("window", "equal %", "ranges of training %", "error", "close %", "at an end %", "stream", "position")


class Floats:
    """What the float model gives for all windows, and how far its residual stream reaches."""

    def __init__(self, model: Segmenter, seen: Sequence[Tensor], cosine: bool) -> None:
        self.reach, found = 0.0, []
        with torch.no_grad(), tapped(model, self._receive):
            for batch in seen:
                found.append(model.forward_scores(normalise(batch, model.config), cosine).flatten(0, 2))
        self.scores = torch.cat(found).double()

    def _receive(self, node: str, value: Tensor) -> None:
        if node.endswith(".add2"):
            self.reach = max(self.reach, float(value.abs().max()))


def scores_of(twin: FakeQuantSegmenter, seen: Sequence[Tensor]) -> tuple[Tensor, float]:
    """The twin's scores, and the share of values at an end of INT8, GELUs aside: those are cut where they are flat."""
    acts, ends = twin.acts(), [0, 0]

    def count(node: str, q: Tensor) -> None:
        if node in acts and acts[node].bits == 8 and ".mlp." not in node:
            ends[0] += int(((q == -128) | (q == 127)).sum())
            ends[1] += q.numel()

    with torch.no_grad():
        found = [twin(batch, count).real.flatten(0, 2) for batch in seen]
    return torch.cat(found).double(), ends[0] / ends[1]


def with_ranges_of(other: FakeQuantSegmenter, twin: FakeQuantSegmenter) -> FakeQuantSegmenter:
    """`twin` with everything that `other` knows but the position embedding, which is of its own size."""
    twin.load_state_dict({k: v for k, v in other.state_dict().items() if k != "encoder.pos_embed.value"}, strict=False)
    for layer, source in zip(twin.linears().values(), other.linears().values(), strict=True):
        layer.units = source.units
    return twin.eval()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = argparse.ArgumentParser(prog="off_size.py", description=(__doc__ or "").splitlines()[0])
    p.add_argument("checkpoint", type=Path)
    p.add_argument("photo", type=Path)
    p.add_argument("--root", type=Path, required=True, help="CamVid, whose val images are compared")
    p.add_argument("--windows", type=int, nargs="+", default=[384], metavar="PIXELS", help="other sides (384)")
    p.add_argument("--step", type=int, default=25, metavar="K", help="every K-th val image (25)")
    p.add_argument("--recipe", default="intseg")
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    model, recipe = load_checkpoint(args.checkpoint), recipe_for(args.recipe)
    named = classes.for_model(model.config.n_cls, "camvid", None)
    files = [pair.image for pair in datasets.open_dataset("camvid", args.root, "val").pairs[:: args.step]]
    trained: FakeQuantSegmenter | None = None
    first, rows = (1.0, 1.0), [HEAD]
    for side in (model.config.image_size[0], *args.windows):
        info = model_info(model.config, recipe, "off", named, (side, side), (side, side))
        twin, seen = FakeQuantSegmenter(model, info.window, recipe), [windows(file, info) for file in files]
        calibrate(twin, model, [windows(args.photo, info)])
        floats, (found, ends) = Floats(model, seen, recipe.cosine), scores_of(twin.eval(), seen)
        position = float(twin.encoder.pos_embed.value[1:].detach().square().mean().sqrt())
        if trained is None:
            trained, first = twin, (floats.reach, position)
        moved = with_ranges_of(trained, FakeQuantSegmenter(model, info.window, recipe))
        others = scores_of(moved, seen)[0] if twin is not trained else found
        error = float((found - floats.scores).square().mean().sqrt())
        best = floats.scores.topk(2, -1)
        alike = [100 * float((best.indices[:, 0] == x.argmax(-1)).double().mean()) for x in (found, others)]
        close = 100 * float((best.values[:, 0] - best.values[:, 1] < 2 * error).double().mean())
        cells = f"{alike[0]:.2f}", f"{alike[1]:.2f}", f"{error:.3f}", f"{close:.1f}", f"{100 * ends:.3f}"
        rows.append((f"{side} x {side}", *cells, f"{floats.reach / first[0]:.2f}", f"{position / first[1]:.2f}"))
        print(*rows[-1], file=sys.stderr, flush=True)
    print("\n".join(table(rows, gap=2)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
