"""What attention loses with weights of a byte: error of the features and labels, by tokens.

python tools/measure/byte_weights.py CHECKPOINT --root CamVid [--sides 256 512 1024] [--images 2]

The float model with the softmax of every attention replaced, all else float: weights of a byte rounded to nearest, with
the dither of `exp_weights` (SPEC 4.21), and probabilities of 16 bits. For every side, images are scaled to that square.
Writes a table to standard output: the error of the encoder's features over all layers, with --layers that of the worst
layer alone (one replaced at a time), and the patches labelled otherwise than in float.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from intseg.batch import datasets
from intseg.ops.exp_weights import DITHER
from intseg.reports.table import table
from intseg.tools.twin.calibrate import normalise
from intseg.tools.twin.checkpoint import load_checkpoint
from intseg.tools.twin.primitives import LOG2_E
from intseg.tools.twin.segmenter import Attention

STEPS = 16
"""Steps of an octave: the exporter takes between 10 and 20."""


class Weights(nn.Module):
    """A softmax of real logits whose weights are integers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, logits: Tensor) -> Tensor:
        """Shares [B, heads, T, T]."""
        down = (logits.amax(-1, keepdim=True) - logits) * LOG2_E
        if self.kind == "16 bits":
            shares = torch.exp2(-down)
            return (shares / shares.sum(-1, keepdim=True) * 2**15).round() / 2**15
        power = (255 * 2**7 * torch.exp2(-(down * STEPS).round().clamp(max=255) / STEPS)).round()
        dither = torch.tensor(DITHER if self.kind == "dithered" else [64] * 8)
        weights = ((power + dither.repeat(-(-down.shape[-1] // 8))[: down.shape[-1]]) / 2**7).floor()
        return weights / weights.sum(-1, keepdim=True)


def run(model: Any, pixels: Tensor, kind: str, layers: Sequence[Attention]) -> tuple[Tensor, Tensor]:
    """Features of the encoder and labels of patches with the softmax of some layers replaced."""
    for layer in layers:
        layer.softmax = Weights(kind) if kind else nn.Softmax(dim=-1)
    with torch.no_grad():
        features, labels = model.encoder(pixels), model.forward_scores(pixels, False).argmax(-1)
    for layer in layers:
        layer.softmax = nn.Softmax(dim=-1)
    return features, labels


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = argparse.ArgumentParser(prog="byte_weights.py", description=(__doc__ or "").splitlines()[0])
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--root", type=Path, required=True, help="CamVid, of whose val images are taken")
    p.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024], metavar="PIXELS", help="(256 512 1024)")
    p.add_argument("--images", type=int, default=2)
    p.add_argument("--layers", action="store_true", help="replace the layers of the encoder one by one, too")
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    model = load_checkpoint(args.checkpoint).eval()
    every = [module for module in model.modules() if isinstance(module, Attention)]
    files = [pair.image for pair in datasets.open_dataset("camvid", args.root, "val").pairs][: args.images]
    rows = [("tokens", "weights", "error of features %", "of the worst layer alone %", "patches labelled otherwise %")]
    for side in args.sides:
        images = [np.array(Image.open(file).convert("RGB").resize((side, side))) for file in files]
        pixels = normalise(torch.from_numpy(np.stack(images)), model.config)
        exact, expected = run(model, pixels, "", every)

        def error(found: Tensor, exact: Tensor = exact) -> float:
            return 100 * float((found - exact).norm() / exact.norm())

        for kind in ("rounded", "dithered", "16 bits"):
            features, labels = run(model, pixels, kind, every)
            own = [block.attn for block in model.encoder.blocks] if args.layers else []
            alone = [error(run(model, pixels, kind, [layer])[0]) for layer in own]
            worst = f"{max(alone):.2f}" if alone else "-"
            other = 100 * float((labels != expected).double().mean())
            tokens = str((side // model.config.patch) ** 2 + model.config.n_extra)
            rows.append((tokens, kind, f"{error(features):.2f}", worst, f"{other:.2f}"))
    sys.stdout.writelines(line + "\n" for line in table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
