"""Measure a checkpoint as float model, as fake-quant twin and as integer engine, through the same windows and metrics.

    intseg compare-float checkpoint.pth --root CamVid --split val --calibrate photo.png --recipe paper intseg

Prints one row per recipe: mIoU and pixel accuracy of the twin and of the engine, the pixels where these two differ
(expected: 0), and the share of pixels equal to the float prediction (bilinear, L2 norm kept).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from intseg import api, backends, store
from intseg.batch import datasets, metrics
from intseg.cli.printing import Answer, say
from intseg.errors import MismatchError
from intseg.graph import ModelInfo
from intseg.images import decode as pictures
from intseg.images.labels import truth as read_truth
from intseg.images.notes import Notes
from intseg.progress import shown
from intseg.reports.table import table
from intseg.tools.convert import dataset_of, find_images, model_info, recipe_for, windows
from intseg.tools.twin import classes
from intseg.tools.twin.calibrate import calibrate, normalise
from intseg.tools.twin.checkpoint import load_checkpoint
from intseg.tools.twin.export import export
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.tools.twin.segmenter import Segmenter
from intseg.windows import cut_windows, merge_scores, step, tile, working_size

Labels = NDArray[np.integer[Any]]


@dataclass
class Row:
    """Counts of one way to run one recipe; `same` and `pixels` compare it with the float prediction."""

    recipe: str
    way: str
    confusion: NDArray[np.int64]
    same: int = 0
    pixels: int = 0
    differing: int = 0
    worst: float = 100.0
    """Percent of the pixels equal to float in the image with fewest."""

    def as_json(self) -> dict[str, Any]:
        """Percentages, as `intseg eval` prints them, and the comparison counts."""
        found = metrics.metrics(self.confusion)
        return {
            "recipe": self.recipe,
            "way": self.way,
            "mIoU": found.miou,
            "mAcc": found.macc,
            "aAcc": found.aacc,
            "IoU": list(found.iou),
            "same_as_float": 100 * self.same / self.pixels,
            "worst_image": self.worst,
            "differing_from_twin": self.differing,
        }


@dataclass
class Subject:
    """A recipe's twin and engine."""

    recipe: str
    twin: FakeQuantSegmenter
    model: api.Model
    rows: dict[str, Row] = field(default_factory=dict)


def float_labels(model: Segmenter, batch: Tensor, size: tuple[int, int], info: ModelInfo, upsample: str) -> Labels:
    """Labels [H, W] of the float model from all windows of an image: mean score per cell or pixel, argmax.

    batch   uint8 [B, H, W, 3], the windows in the order of `intseg.windows.cut_windows`
    info    with `merge` "pixel" this is what rstrudel/segmenter's inference does: every window is upsampled by itself,
            the mean is that of pixels
    """
    with torch.no_grad():
        scores = model.forward_scores(normalise(batch, model.config)).double().cpu().permute(0, 3, 1, 2)
    if info.merge == "grid":
        return _class_of(_upsampled(_mean(scores, info, size)[None], info.patch, upsample)[0], info, size)
    return _class_of(_mean(_upsampled(scores, info.patch, upsample), info, size), info, size)


def _upsampled(scores: Tensor, patch: int, upsample: str) -> Tensor:
    """[B, C, h, w] to [B, C, h patch, w patch]."""
    options = {"mode": "bilinear", "align_corners": False} if upsample == "bilinear" else {"mode": "nearest"}
    return F.interpolate(scores, scale_factor=patch, **options)


def _mean(scores: Tensor, info: ModelInfo, size: tuple[int, int]) -> Tensor:
    """Mean of the windows [B, C, ...] that hold a cell, on the whole padded image; [C, ...]."""
    tiling, cell = tile(info, *size), step(info)
    total = torch.zeros(scores.shape[1], tiling.height // cell, tiling.width // cell, dtype=scores.dtype)
    count = torch.zeros_like(total[:1])
    for score, (top, left) in zip(scores, tiling.corners(), strict=True):
        rows = slice(top // cell, top // cell + score.shape[1])
        columns = slice(left // cell, left // cell + score.shape[2])
        total[:, rows, columns] += score
        count[:, rows, columns] += 1
    return total / count


def _class_of(planes: Tensor, info: ModelInfo, size: tuple[int, int]) -> Labels:
    """Labels of an image from scores [C, ...] of the padded one at its working size."""
    height, width = working_size(info, *size)
    planes = planes[:, :height, :width]
    if (height, width) != size:
        planes = F.interpolate(planes[None], size=size, mode="bilinear", align_corners=False)[0]
    labels: Labels = planes.argmax(0).numpy()
    return labels


def batch_of(rgb: NDArray[np.uint8], info: ModelInfo) -> Tensor:
    """All windows of an image, uint8 [B, H, W, 3]."""
    return torch.from_numpy(np.stack([window for _, window in cut_windows(rgb, info)]))


def twin_labels(twin: FakeQuantSegmenter, batch: Tensor, size: tuple[int, int], info: ModelInfo) -> Labels:
    """Labels [H, W] of the fake-quant twin: its integers, merged and upsampled by SPEC section 7."""
    with torch.no_grad():
        scores = twin(batch).q.cpu().numpy().astype(np.int16)
    merged = merge_scores(list(scores), tile(info, *size), info)
    labels: Labels = backends.labels(merged, info, *size, "numpy")
    return labels


def measure(
    model: Segmenter, info: ModelInfo, subjects: Sequence[Subject], data: datasets.Dataset, twins: bool = True
) -> Iterator[Row]:
    """Run everything on every image; yields the float rows, then twin (unless without) and engine of every subject.

    The float rows follow the published inference, with windows at any pixel, whatever the engine does.
    """
    published = replace(info, merge="pixel")
    count = model.config.n_cls
    empty = np.zeros((count, count), np.int64)
    floats = {way: Row("-", f"float {way}", empty.copy()) for way in ("bilinear", "nearest")}
    for subject in subjects:
        subject.rows = {way: Row(subject.recipe, way, empty.copy()) for way in ("fake-quant", "engine")[1 - twins :]}
    said = Notes()
    for pair in shown(data.pairs, "evaluating", len(data.pairs), "image"):
        picture = pictures.decode(pair.image, info.pad)
        rgb, (truth, notes) = picture.rgb, read_truth(pair.labels, picture, count, data.labelling, str(pair.image))
        said.add(str(pair.image), *picture.notes, *notes)
        batch = batch_of(rgb, published)
        size = (rgb.shape[0], rgb.shape[1])
        reference = float_labels(model, batch, size, published, "bilinear")
        found = {id(floats["bilinear"]): reference}
        found[id(floats["nearest"])] = float_labels(model, batch, size, published, "nearest")
        for subject in subjects:
            own = subject.model.info
            engine = api.run(rgb, subject.model).labels
            found[id(subject.rows["engine"])] = engine
            if "fake-quant" in subject.rows:
                twin = twin_labels(subject.twin, batch if own.merge == "pixel" else batch_of(rgb, own), size, own)
                subject.rows["engine"].differing += int((engine != twin).sum())
                found[id(subject.rows["fake-quant"])] = twin
        for row in (*floats.values(), *(row for subject in subjects for row in subject.rows.values())):
            row.confusion += metrics.confusion(truth, found[id(row)], count, ignore=-1)
            same = int((found[id(row)] == reference).sum())
            row.same += same
            row.worst = min(row.worst, 100 * same / reference.size)
            row.pixels += reference.size
    for note in (*data.notes, *said.lines()):
        say(f"note: {note}")
    yield from floats.values()
    for subject in subjects:
        yield from subject.rows.values()


def main(argv: Sequence[str] | None = None) -> int:
    """Run `intseg compare-float`; returns the exit code."""
    from intseg.cli.main import main as cli

    return cli(["compare-float", *(sys.argv[1:] if argv is None else argv)])


def run(args: argparse.Namespace) -> Answer:
    """Carry out `intseg compare-float`; the exit code is 1 when twin and engine differ."""
    rows = _evaluate(args)
    code = int(any(row.differing for row in rows))
    return Answer(_lines(rows, not args.without_twin), [row.as_json() for row in rows], code)


def _lines(rows: Sequence[Row], twins: bool) -> Iterator[str]:
    cells = [("recipe", "way", "mIoU", "aAcc", "same as float", "worst image", "differs from twin")]
    for row in rows:
        n = row.as_json()
        shares = (f"{n['mIoU']:.2f}", f"{n['aAcc']:.2f}", f"{n['same_as_float']:.2f}%", f"{row.worst:.2f}%")
        cells.append((row.recipe, row.way, *shares, str(row.differing) if row.way == "engine" and twins else ""))
    return table(cells, left=2)


def _evaluate(args: argparse.Namespace) -> list[Row]:
    model = load_checkpoint(Path(args.checkpoint))
    named = classes.for_model(model.config.n_cls, dataset_of(Path(args.checkpoint)), None)
    data = datasets.open_dataset(args.layout, Path(args.root), args.split).first(args.limit)
    if data.n_cls not in (None, model.config.n_cls):
        raise MismatchError(
            f"layout {args.layout} has {data.n_cls} classes, the checkpoint has {model.config.n_cls}; "
            "expected as many, choose another --layout"
        )
    files = find_images([Path(name) for name in args.calibrate], args.samples)
    subjects = []
    for name in args.recipe:
        recipe = recipe_for(name)
        info = model_info(model.config, recipe, name, named)
        twin = FakeQuantSegmenter(model, info.window, recipe)
        calibrate(twin, model, [windows(file, info) for file in files])
        stored = store.dumps(export(twin, info))
        engine = api.Model(store.loads(stored), hashlib.sha256(stored).hexdigest(), Path(f"{name}.safetensors"))
        subjects.append(Subject(name, twin, engine))
    return list(measure(model, info, subjects, data, not args.without_twin))


if __name__ == "__main__":
    sys.exit(main())
