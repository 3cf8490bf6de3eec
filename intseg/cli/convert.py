"""`intseg convert`: `intseg.tools` does the work, and needs PyTorch."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from intseg import files, palettes
from intseg.cli.parser import Command, Read, add_scale, whole, written
from intseg.cli.printing import Answer
from intseg.errors import MAX_THREADS, UsageError, missing_part

RECIPES = ("i-vit", "intseg", "paper", "paper-aligned")
SCORES = ("sensitivity", "mix-qvit", "lrp", "mix-qsam")

_CONVERT = """\
Convert a float checkpoint, or the folder it is in, into integer weights: a Segmenter of rstrudel/segmenter or of
mmsegmentation, a ViT or DeiT classifier in timm's names, or their float ONNX file. Needs PyTorch.

examples:
  intseg convert checkpoint.pth -o model.safetensors --calibrate photo.png
  intseg convert ck/ -o model.safetensors --calibrate photos --samples 32
  intseg convert ck/ -o small.safetensors --calibrate photos --budget-mb 3.5
"""


class Checkpoint(Read):
    """A checkpoint, or the folder it is in; weights may be written beside it."""

    def paths(self) -> list[Path]:
        """What must not be written."""
        return [path for path in files.held(self) if path.suffix != ".safetensors"]


def _uniform(text: str) -> tuple[int, int]:
    """w4a8 as (4, 8)."""
    found = re.fullmatch("w([2-8])a([4-8])", text.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not w2 to w8 followed by a4 to a8, as in w4a8")
    return int(found[1]), int(found[2])


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "checkpoint",
        type=Checkpoint,
        metavar="CHECKPOINT",
        help="checkpoint.pth, its folder, or a float .onnx file",
    )
    weights = written(".safetensors")
    add("-o", "--output", type=weights, required=True, metavar="FILE", help="weights to write (.safetensors)")
    images = "images or folders of images; one is enough"
    add("--calibrate", type=Read, required=True, nargs="+", metavar="IMAGE", help=images)
    add("--samples", type=whole(1, 10**9), metavar="N", help="use N of these images, evenly spaced (all)")
    text = "for the printed errors of every node, an image that calibration does not see (the first it sees)"
    add("--check", type=Read, metavar="IMAGE", help=text)
    add("--recipe", choices=RECIPES, default="intseg", help="arithmetic (intseg)")
    add("--upsample", choices=("nearest", "bilinear"), help="default: the recipe's")
    text = "windows at any pixel, summed in pixels, as published (pixel), or on the patch grid"
    add("--merge", choices=("pixel", "grid"), help=text)
    add_scale(parser)
    text = "which of the checkpoint's state dicts (model, state_dict, model_ema, ...), where it has several"
    add("--state", metavar="KEY", help=text)
    add("--heads", type=whole(1, 1024), metavar="N", help="attention heads of the encoder; default: checkpoint's")
    text = "mean and std of pixels; default: checkpoint's"
    add("--normalization", choices=("vit", "deit"), help=text)
    add("--l2norm", dest="cosine", choices=("keep", "drop"), help="L2 norm before the masks; default: the recipe's")
    pixels = whole(1, 65535)
    add("--window", type=pixels, nargs=2, metavar=("H", "W"), help="pixels of a window; default: checkpoint's")
    add("--stride", type=pixels, nargs=2, metavar=("H", "W"), help="pixels between windows")
    add("--classes", type=Read, metavar="C", help=f"file with a name a line, or {', '.join(palettes.files())}")
    bit_arguments(parser)
    add("--name", metavar="NAME", help="of the model; default: the output's file name")
    text = "of PyTorch (1); more seldom help, and float sums may differ in their last bits"
    add("--threads", type=whole(1, MAX_THREADS), default=1, metavar="N", help=text)
    text = "also save the fake-quant model's state (.pth)"
    add("--save-twin", type=written(".pth", ".pt"), metavar="FILE", help=text)


def bit_arguments(parser: argparse.ArgumentParser) -> None:
    """How many bits the weights of each layer get."""
    add = parser.add_argument
    text = "bits of all weights and activations: w2a4 to w8a8"
    add("--uniform", type=_uniform, metavar="WxAy", help=text)
    add("--bits", type=Read, metavar="FILE", help="bits of every layer, by --save-bits (.json)")
    text = "choose each layer's bits: all in MB (10^6 bytes)"
    add("--budget-mb", type=positive, metavar="MB", help=text)
    text = "and, or, in so many 10^9 BitOps a window (multiplications x bits of both factors)"
    add("--budget-bitops", type=positive, metavar="G", help=text)
    text = "what makes a layer worth its bits (sensitivity)"
    add("--score", choices=SCORES, default=SCORES[0], help=text)
    add("--beta", type=not_negative, default=0.0, metavar="B", help="how much neighbours should be alike (0)")
    text = "least and most bits of a layer (2 8)"
    add("--bit-range", type=whole(2, 8), nargs=2, default=[2, 8], metavar=("LOW", "HIGH"), help=text)
    add("--save-bits", type=written(".json"), metavar="FILE", help="also write the bits of every layer (.json)")
    text = "rounding sees N random views of each window too (0)"
    add("--views", type=whole(0, 64), default=0, metavar="N", help=text)


def positive(text: str) -> float:
    """A number above 0."""
    if (value := not_negative(text)) > 0:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def not_negative(text: str) -> float:
    """A finite number from 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value < 1e12:
        return value
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from 0 to 10^12")


@contextlib.contextmanager
def needs_tools() -> Iterator[None]:
    """Around the import of a tool. Raises UsageError where its packages are missing."""
    try:
        yield
    except ImportError as error:
        if missing_part(error):
            raise
        raise UsageError(f"this command needs the package {error.name}: pip install 'intseg[tools]'") from None


def _convert(args: argparse.Namespace) -> Answer:
    with needs_tools():
        from intseg.tools import convert
    try:
        answer: Answer = convert.run(args)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return answer


CONVERT = Command("convert", "a float checkpoint into integer weights", _CONVERT, _convert_arguments, _convert)
