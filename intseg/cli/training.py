"""The commands that train and compare float models: `intseg.tools` does the work, and needs PyTorch."""

from __future__ import annotations

import argparse

from intseg import palettes
from intseg.cli.convert import RECIPES, Checkpoint, bit_arguments, needs_tools, not_negative, positive
from intseg.cli.parser import LAYOUTS, Command, Read, WrittenFolder, whole
from intseg.cli.printing import Answer

SIZES = ("base", "large", "small", "tiny")
MANY = 10**9

_TRAIN = """\
Train a float Segmenter on a labelled data set: from scratch, from a checkpoint or from a pretrained encoder. Needs
PyTorch. The folder receives checkpoint.pth with variant.yml, as `intseg convert` takes them: the moving average of the
parameters that measured best on --val; state.pth for --resume, log.jsonl and curves.png.

examples:
  intseg train --root CamVid -o runs/tiny --steps 20000 --device cuda
  intseg train --root CamVid -o runs/b --encoder vit_tiny.safetensors
"""
_QAT = """\
Train the fake-quant twin of a checkpoint (quantization-aware training), then write integer weights: model.safetensors
in the folder, with state.pth for --resume, log.jsonl and curves.png. With fewer bits, and without --root, the float
model is the teacher; weights of fewer bits start as `intseg convert` rounds them. Needs PyTorch.

examples:
  intseg qat checkpoint.pth --root CamVid -o runs/qat --calibrate CamVid/train
  intseg qat checkpoint.pth -o runs/w2 --calibrate photos --uniform w2a8
"""
_COMPARE = """\
Measure a checkpoint as float model, as fake-quant twin and as integer engine, through the same windows and metrics.
Needs PyTorch. Exit code 1 if twin and engine differ.

examples:
  intseg compare-float checkpoint.pth --root CamVid --calibrate photo.png
"""


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", choices=SIZES, help="size of the model (that of --from, or tiny)")
    add("--from", dest="start", type=Checkpoint, metavar="CHECKPOINT", help="start from these parameters")
    text = "start from this ViT, DeiT (timm's names) or Segmenter and a fresh decoder"
    add("--encoder", type=Checkpoint, metavar="CHECKPOINT", help=text)
    text = "how pixels enter --encoder; default: as its config.json or variant.yml says"
    add("--normalization", choices=("deit", "vit"), help=text)
    add("--classes", type=Read, metavar="C", help=f"file with a name a line, or {', '.join(palettes.files())}")
    pixels = whole(1, 65535)
    add("--patch", type=pixels, default=16, metavar="N", help="pixels of a patch (16)")
    text = "pixels of crop and window (256 256)"
    add("--window", type=pixels, nargs=2, default=[256, 256], metavar=("H", "W"), help=text)
    add("--stride", type=pixels, nargs=2, metavar=("H", "W"), help="pixels between windows (7/8 of --window)")
    _add_common(parser, steps=5000, lr=1e-3)
    text = "largest probability that a branch is skipped (0.1)"
    add("--drop-path", type=not_negative, default=0.1, metavar="SHARE", help=text)
    text = "learning rate of a block, of that of the next one (1)"
    add("--layer-decay", type=positive, default=1.0, metavar="D", help=text)


def _qat_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_checkpoint(parser)
    add("--recipe", choices=RECIPES, default="intseg", metavar="R", help=f"{', '.join(RECIPES)} (intseg)")
    text = "steps after which symmetric ranges stay (200)"
    add("--freeze", type=whole(0, MANY), default=200, metavar="N", help=text)
    text = "float model's share of the loss (0; as teacher: 1)"
    add("--distill", type=_part, metavar="SHARE", help=text)
    bit_arguments(parser)
    text = "one image in N only judges the averages (none)"
    add("--hold-out", type=whole(2, MANY), default=0, metavar="N", help=text)
    _add_common(parser, steps=1000, lr=1e-4, without="; without, --calibrate and the float model teach")


def _part(text: str) -> float:
    """A number from 0 to 1."""
    if (value := not_negative(text)) <= 1:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_checkpoint(parser)
    _add_data(parser, [name for name in LAYOUTS if name != "pairs"], "val")
    text = "arithmetic, several too (intseg)"
    add("--recipe", nargs="+", choices=RECIPES, default=["intseg"], metavar="R", help=f"{', '.join(RECIPES)}: {text}")
    add("--limit", type=whole(1, MANY), metavar="N", help="only the first N images")
    add("--without-twin", action="store_true", help="leave the fake-quant model out, which takes longest")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The float model and what it is calibrated on."""
    add = parser.add_argument
    add("checkpoint", type=Checkpoint, metavar="CHECKPOINT", help="checkpoint.pth, or the folder it is in")
    text = "images or folders of images"
    add("--calibrate", type=Read, required=True, nargs="+", metavar="IMAGE", help=text)
    add("--samples", type=whole(1, MANY), metavar="N", help="use N of these images, evenly spaced (all)")


def _add_data(parser: argparse.ArgumentParser, layouts: list[str], split: str, without: str = "") -> None:
    """A labelled data set; `without` says what is done where there is none."""
    add = parser.add_argument
    add("--root", type=Read, required=not without, metavar="DIR", help=f"data set folder{without}")
    text = "of the data set (camvid)" + ("; pairs: DIR/SPLIT, DIR/SPLITannot" if "pairs" in layouts else "")
    add("--layout", choices=layouts, default="camvid", metavar="L", help=f"{', '.join(layouts)}: {text}")
    add("--split", default=split, metavar="SPLIT", help=f"part of the data set ({split})")


def _add_common(parser: argparse.ArgumentParser, steps: int, lr: float, without: str = "") -> None:
    """Arguments of training and of QAT."""
    add, some = parser.add_argument, whole(1, MANY)
    _add_data(parser, sorted(LAYOUTS), "train", without)
    add("--ignore", type=whole(0, 65535), metavar="ID", help="stored label that is not counted; default: layout's")
    add("--val", default="val", metavar="SPLIT", help="split to measure, or '' for none (val)")
    add("-o", "--output", type=WrittenFolder, required=True, metavar="DIR", help="folder to write to")
    add("--steps", type=some, default=steps, metavar="N", help=f"in all ({steps})")
    add("--batch", type=some, default=8, metavar="N", help="crops of a step (8)")
    add("--lr", type=positive, default=lr, metavar="R", help=f"learning rate after the warm-up ({lr:g})")
    warm = min(200, steps // 10)
    add("--warmup", type=whole(0, MANY), default=warm, metavar="N", help=f"steps in which it grows ({warm})")
    text = "cosine, poly: how it falls (cosine)"
    add("--schedule", choices=("cosine", "poly"), default="cosine", metavar="HOW", help=text)
    text = "factors of an image before the crop (0.5 1.6)"
    add("--scale", type=positive, nargs=2, default=[0.5, 1.6], metavar=("LOW", "HIGH"), help=text)
    text = "decay of the kept average of parameters (0.999)"
    add("--ema", type=not_negative, default=0.999, metavar="D", help=text)
    add("--seed", type=whole(0, MANY), default=0, metavar="N", help="of everything random (0)")
    add("--every", type=some, default=500, metavar="N", help="steps between checkpoints (500)")
    add("--limit", type=some, metavar="N", help="measure only the first N images")
    add("--sample", type=some, default=1, metavar="N", help="measure only every N-th image (1)")
    add("--device", default="cpu", metavar="D", help="cpu or cuda (cpu)")
    text = "float32, bfloat16: products in training (float32)"
    add("--precision", choices=("float32", "bfloat16"), default="float32", metavar="TYPE", help=text)
    add("--resume", action="store_true", help="go on from state.pth in the output folder")


def _train(args: argparse.Namespace) -> Answer:
    with needs_tools():
        from intseg.tools import train
    answer: Answer = train.run(args)
    return answer


def _qat(args: argparse.Namespace) -> Answer:
    with needs_tools():
        from intseg.tools import qat
    answer: Answer = qat.run(args)
    return answer


def _compare(args: argparse.Namespace) -> Answer:
    with needs_tools():
        from intseg.tools import evaluate
    answer: Answer = evaluate.run(args)
    return answer


TRAIN = Command("train", "train a float Segmenter", _TRAIN, _train_arguments, _train)
QAT = Command("qat", "quantization-aware training", _QAT, _qat_arguments, _qat)
COMPARE_FLOAT = Command("compare-float", "float, twin and engine side by side", _COMPARE, _compare_arguments, _compare)
