"""What commands on labelled images take: where these lie, and what their label images hold. Needs no NumPy."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from intseg.cli.parser import Read, whole
from intseg.errors import UsageError

if TYPE_CHECKING:
    from intseg import api
    from intseg.batch import datasets


def add_labelling(parser: argparse.ArgumentParser) -> None:
    """What the label images hold, where that is not what the layout says."""
    add = parser.add_argument
    add("--ignore", type=_values, metavar="ID,...", help="stored labels that are not counted")
    values = parser.add_mutually_exclusive_group()
    values.add_argument("--label-offset", type=whole(0, 65535), metavar="N", help="stored label of the first class")
    values.add_argument(
        "--label-map", type=Read, metavar="M", help="of every class: JSON file, or 'road=7,*=0' (* is not counted)"
    )
    values.add_argument("--reduce-zero-label", action="store_true", help="--label-offset 1 --ignore 0,255")
    add("--orientation", choices=("stored", "upright"), help="where labels lie of images that EXIF turns")


def _values(text: str) -> tuple[int, ...]:
    """Stored labels, joined by commas."""
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,5}", word) and int(word) < 65536 for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a label from 0 to 65535, or several joined by commas")
    return tuple(map(int, words))


def opened(args: argparse.Namespace, name: str) -> datasets.Dataset:
    """The data set that --root, --split and --limit name in a layout, or --images and --labels."""
    from intseg.batch import datasets

    if name == "pairs" and not args.root:
        found = datasets.open_folders(Path(args.images), Path(args.labels))
    else:
        found = datasets.open_dataset(name, Path(args.root), args.split)
    return found.first(args.limit)


def relabelled(args: argparse.Namespace, found: datasets.Dataset, model: api.Model) -> datasets.Dataset:
    """The data set with the meaning of labels that the arguments give. Raises UsageError where the model differs."""
    from intseg.images.labels import named_labels

    classes = model.info.classes
    if found.n_cls not in (None, len(classes)) and args.label_map is None:
        raise UsageError(
            f"model {model.info.name} has {len(classes)} classes, layout {args.layout or 'camvid'} needs "
            f"{found.n_cls}; give another model with -w, or say with --label-map which classes are labelled"
        )
    if args.label_map is not None:
        named = named_labels(classes, args.label_map, found.labelling.ignore)
        found = found.with_labels(named.ignore, stored=named.stored)
    elif args.reduce_zero_label:
        found = found.with_labels((0, 255), offset=1, stored=None)
    elif args.label_offset is not None:
        found = found.with_labels(offset=args.label_offset, stored=None)
    return found.with_labels(args.ignore, lie=args.orientation)
