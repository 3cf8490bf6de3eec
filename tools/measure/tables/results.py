"""The files that experiments.py and bench.py wrote, and what their rows say in percent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intseg.batch import metrics as measures
from intseg.errors import InputError
from intseg.tools.measure.experiment.memo import read_json

Document = Mapping[str, Any]

MISSING = "not measured"
KNOWN = {
    "tiny": "trained from scratch on CamVid",
    "bundled": "the same network on a pretrained encoder, `camvid` in CONTRIBUTING.md: what intseg/models holds",
    "idd": "as `bundled`, trained on IDD-Lite, `idd` in CONTRIBUTING.md",
    "tinyhard": "`tiny` with outlier channels (tools/measure/make_hard.py, --outliers 100)",
    "tiny24": "`tiny` made twice as deep and trained for 300 steps (tools/measure/make_hard.py)",
    "tiny24hard": "`tiny24` constructed to quantize badly (tools/measure/make_hard.py)",
}
"""Checkpoints of the project, in the order of the tables."""

RECIPES = ("i-vit", "paper", "paper-aligned", "intseg")
PARTS = ("upsampling", "activations", "simplifications", "calibration", "ptq", "qat", "bits")
PAPER_TRAFFIC = {"tiny": (1.01, 0.43), "small": (3.08, 1.13), "base": (10.36, 3.31), "large": (32.00, 9.74)}
"""Table 7 of the paper: 10^12 bits of Segmenter and I-Segmenter."""

PEERS = (
    ("torch fp32 sdpa", "PyTorch FP32"),
    ("ort fp32", "ONNX Runtime FP32"),
    ("ort dynamic int8", "ONNX Runtime dynamic INT8"),
    ("ort static qdq int8", "ONNX Runtime static QDQ INT8"),
    ("openvino fp32", "OpenVINO FP32"),
    ("openvino bf16", "OpenVINO bf16"),
    ("openvino int8", "OpenVINO INT8 (NNCF)"),
    ("openvino int8 + bf16", "OpenVINO INT8 and bf16"),
)


class Results:
    """The files of a folder: `found[experiment][checkpoint]`, `sizes`, `bench`, and those of classifiers by name."""

    def __init__(self, folder: Path) -> None:
        self.found: dict[str, dict[str, Document]] = {part: {} for part in PARTS}
        self.sizes: Document | None = None
        self.memory: Document | None = None
        self.bench: Document | None = None
        self.classifiers: dict[str, Document] = {}
        self.few_bits: dict[str, Document] = {}
        for file in sorted(folder.glob("*.json")):
            document = read_json(file, "run tools/measure/experiments.py again")
            experiment = document.get("experiment")
            if file.name == "bench.json":
                self.bench = document
            elif experiment == "classification":
                self.classifiers[document["checkpoint"]["name"]] = document
            elif experiment == "classification_bits":
                self.few_bits[document["checkpoint"]["name"]] = document
            elif experiment == "sizes":
                self.sizes = document
            elif experiment == "memory":
                self.memory = document
            elif experiment in self.found:
                self.found[experiment][document["checkpoint"]["name"]] = document
            else:
                raise InputError(f"{file}: experiment is {experiment!r}, expected {', '.join(PARTS)}; delete the file")

    @property
    def names(self) -> list[str]:
        """Measured checkpoints, the project's own first."""
        measured = {name for group in self.found.values() for name in group}
        return [*(name for name in KNOWN if name in measured), *sorted(measured - set(KNOWN))]

    def each(self, experiment: str) -> Iterator[tuple[str, Document]]:
        """(checkpoint, results) of an experiment."""
        return ((name, found) for name in self.names if (found := self.of(experiment, name)) is not None)

    def missing(self, experiment: str) -> Iterator[str]:
        """A line that names the checkpoints without this experiment, if there are any."""
        missing = [name for name in self.names if self.of(experiment, name) is None]
        if missing or not self.names:
            yield f"{MISSING.capitalize()}: {', '.join(missing) or 'no checkpoint at all'}."
            yield ""

    def of(self, experiment: str, name: str) -> Document | None:
        """The results of an experiment on a checkpoint."""
        document = self.found[experiment].get(name)
        return None if document is None else document["results"]

    def any(self, name: str) -> Document | None:
        """Some file of a checkpoint."""
        return next((group[name] for group in self.found.values() if name in group), None)

    def commands(self, experiment: str) -> list[str]:
        """How the files of an experiment were made."""
        return [self.found[experiment][name]["command"] for name, _ in self.each(experiment)]


def metrics(row: Document) -> measures.Metrics:
    """Percentages of a row."""
    return measures.metrics(np.array(row["confusion"], np.int64))


def miou(row: Document) -> float:
    """mIoU of a row in percent."""
    return metrics(row).miou


def same(row: Document) -> float:
    """Percent of the pixels equal to the float prediction."""
    return 100 * float(row["same_as_float"]) / float(row["pixels"])


def latencies(results: Results) -> dict[str, dict[str, float]]:
    """Milliseconds of one image with one thread: model -> program -> time, this program last."""
    found: dict[str, dict[str, float]] = {}
    for name in PAPER_TRAFFIC:
        entry = results.bench["results"].get(name, {}).get("1") if results.bench else None
        if entry:
            found[name] = {title: entry["peers_ms"][peer] for peer, title in PEERS if peer in entry["peers_ms"]}
            found[name]["intseg"] = entry["intseg_ms"]
    return found
