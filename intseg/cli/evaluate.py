"""`intseg eval`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from intseg.cli import classify
from intseg.cli.labelled import add_labelling, opened, relabelled
from intseg.cli.parser import LAYOUTS, Command, Read, Written, add_scale, add_weights, whole
from intseg.cli.printing import Answer, count, say
from intseg.cli.spread import add_spread, executor_of, shard_of
from intseg.errors import UsageError
from intseg.reports.table import table

if TYPE_CHECKING:
    from intseg.batch import compare, evaluate

_EVAL = """\
Measure a model on labelled images: IoU per class, mIoU, mAcc, aAcc; of a classifier top-1, top-5.

layouts under --root, for --split val, with their classes:
  camvid      val, valannot                                    11, 11 is void
  ade20k      images/validation, annotations/validation        150, 0 is void
  cityscapes  leftImg8bit/val, gtFine/val *_labelTrainIds.png  19, 255 is void
              or *_labelIds.png
  idd_lite    leftImg8bit/val, gtFine/val *_label.png          7, 255 is void
  davis       JPEGImages/480p, Annotations/480p and            any, 255 is void
              ImageSets/2017/val.txt, a clip a line
  vspw        data/*/origin, data/*/mask and val.txt           124, 0 is void
  pairs       --images DIR --labels DIR, equal names           any, --ignore
  imagenet    a folder a class; or --labels LIST 'x.jpg 17'    any, classified

examples:
  intseg eval --root CamVid --split val --jobs 4
  intseg eval --images photos --labels truth --ignore 255 --json > before.json
  intseg eval --root CamVid -w new.safetensors --compare-with before.json
"""


VIEWS = (50, 75, 100, 125, 150, 175)
"""Of `--tta` alone: what the published evaluation looks at."""


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Read, metavar="DIR", help="folder of the data set")
    parser.add_argument("--split", default="val", help="part of the data set (val)")
    parser.add_argument("--layout", choices=(*LAYOUTS, "imagenet"), help="default: camvid, or pairs with --images")
    parser.add_argument("--images", type=Read, metavar="DIR", help="layout pairs: folder of the images")
    parser.add_argument(
        "--labels", type=Read, metavar="DIR", help="layout pairs: folder of the label images; imagenet: list"
    )
    add_weights(parser)
    add_scale(parser)
    add_labelling(parser)
    add_spread(parser)
    text = "look at every image at these percentages of its size, as it is and mirrored; scores are averaged exactly"
    views = " ".join(map(str, VIEWS))
    parser.add_argument("--tta", nargs="*", type=whole(1, 1000), metavar="PERCENT", help=f"{text} ({views})")
    parser.add_argument("--limit", type=whole(1, 10**9), metavar="N", help="only the first N images")
    text = "keep counts per image there, and continue from them"
    parser.add_argument("--resume", type=Written, metavar="FILE", help=text)
    text = "join the journals of all --shard parts and count no images"
    parser.add_argument("--merge", nargs="+", type=Read, metavar="FILE", help=text)
    text = "what --json printed before: show the changes"
    parser.add_argument("--compare-with", type=Read, metavar="JSON", help=text)


def _eval(args: argparse.Namespace) -> Answer:
    from intseg import api
    from intseg.batch import compare, evaluate

    if args.layout == "imagenet":
        return classify.evaluate(args)
    if args.merge:
        merged = evaluate.merge(args.merge)
        earlier = compare.read_earlier(args.compare_with, merged.model.classes) if args.compare_with else None
        return _answer(merged, (), earlier)
    if args.shard and not args.resume:
        raise UsageError("--shard needs --resume FILE, the journal that --merge joins with those of the other parts")
    name = args.layout or ("pairs" if args.images or args.labels else "camvid")
    _require_place(args, name)
    found = opened(args, name)
    model = api.load(args.weights).at_scale(args.scale)
    if model.info.classifies:
        raise UsageError(f"model {model.info.name} classifies images, layout {name} has pixels; use --layout imagenet")
    data = relabelled(args, found, model)
    earlier = compare.read_earlier(args.compare_with, model.info.classes) if args.compare_with else None
    measured = evaluate.evaluate(
        data.pairs,
        model,
        backend=args.backend,
        labelling=data.labelling,
        progress=not args.quiet,
        journal=args.resume,
        shard=shard_of(args),
        executor=executor_of(args, len(data.pairs)),
        views=() if args.tta is None else args.tta or VIEWS,
    )
    return _answer(measured, data.notes, earlier)


def _answer(measured: evaluate.Evaluation, left_out: Sequence[str], earlier: compare.Earlier | None) -> Answer:
    from intseg.batch.compare import compare

    for note in (*left_out, *measured.notes.lines(), *measured.warnings()):
        say(f"note: {note}")
    compared = compare(measured, earlier) if earlier else None
    more = {"left out": list(left_out)} | ({"compared": compared.as_json()} if compared else {})
    return Answer(_lines(measured, compared), measured.as_json() | more)


def _require_place(args: argparse.Namespace, layout: str) -> None:
    """Refuse arguments that do not say where the images are."""
    if layout == "pairs" and not args.root:
        if not (args.images and args.labels):
            raise UsageError("layout pairs needs --images DIR and --labels DIR, or --root; see intseg eval --help")
    elif not args.root or args.images or args.labels:
        raise UsageError(f"layout {layout} needs --root DIR, and neither --images nor --labels; see intseg eval --help")


def _lines(found: evaluate.Evaluation, compared: compare.Comparison | None) -> Iterator[str]:
    measured, pixels = found.metrics, found.confusion.sum(axis=1)
    columns = [("class", *found.model.classes), ("IoU %", *map(_percent, measured.iou))]
    columns += [("change", *map(_change, compared.iou))] if compared else []
    columns += [("acc %", *map(_percent, measured.acc))]
    columns += [("change", *map(_change, compared.acc))] if compared else []
    yield from table(list(zip(*columns, ("pixels", *map(str, pixels)), strict=True)))
    changes = [f" ({_change(n)})" for n in (compared.miou, compared.macc, compared.aacc)] if compared else [""] * 3
    means = zip(("mIoU", "mAcc", "aAcc"), (measured.miou, measured.macc, measured.aacc), changes, strict=True)
    yield "   ".join(f"{name} {value:.2f} %{change}" for name, value, change in means)
    yield f"{count(found.images, 'image')}, {found.model.name}, sha256 {found.model.sha256[:12]}"
    if compared:
        yield f"changes since {compared.name}, in points of percent"


def _change(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


EVAL = Command("eval", "measure a model on labelled images", _EVAL, _eval_arguments, _eval)
