"""Write docs/RESULTS.md and its pictures from the files that experiments.py and bench.py wrote.

    python tools/measure/report.py              write
    python tools/measure/report.py --check      compare; exit code 1 and the names of what differs

Every number comes from docs/results/*.json; what is not there is named as not measured. Numbers of the paper, for
comparison, are called so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intseg.batch import metrics as measures
from intseg.errors import InputError
from intseg.files import write_atomically
from intseg.tools.make_docs import DOCS

Document = Mapping[str, Any]

MISSING = "not measured"
KNOWN = {
    "tiny": "trained from scratch on CamVid",
    "bundled": "`tiny` trained further, what intseg/models holds; calibrated before estimators were chosen per node",
    "tiny24": "`tiny` made twice as deep and trained for 300 steps (tools/measure/make_hard.py)",
    "tiny24hard": "`tiny24` constructed to quantize badly (tools/measure/make_hard.py)",
}
"""Checkpoints of the project, in the order of the tables."""

RECIPES = ("i-vit", "paper", "intseg")
PARTS = ("upsampling", "activations", "simplifications", "calibration", "ptq", "qat")
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

# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


class Results:
    """The files of a folder: `found[experiment][checkpoint]`, `sizes`, `bench`."""

    def __init__(self, folder: Path) -> None:
        self.found: dict[str, dict[str, Document]] = {part: {} for part in PARTS}
        self.sizes: Document | None = None
        self.bench: Document | None = None
        for file in sorted(folder.glob("*.json")):
            document = _read(file)
            experiment = document.get("experiment")
            if file.name == "bench.json":
                self.bench = document
            elif experiment == "sizes":
                self.sizes = document
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


def _read(file: Path) -> Document:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot read ({error}); run tools/measure/experiments.py again") from None
    if not isinstance(document, dict):
        raise InputError(f"{file}: is not an object; run tools/measure/experiments.py again")
    return document


def metrics(row: Document) -> measures.Metrics:
    """Percentages of a row."""
    return measures.metrics(np.array(row["confusion"], np.int64))


def miou(row: Document) -> float:
    """mIoU of a row in percent."""
    return metrics(row).miou


def same(row: Document) -> float:
    """Percent of the pixels equal to the float prediction."""
    return 100 * float(row["same_as_float"]) / float(row["pixels"])


# ---------------------------------------------------------------------------------------------------------------------
# Markdown
# ---------------------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def filled(lines: Sequence[str]) -> Iterator[str]:
    """Lines of prose joined and filled to 120 columns; tables, code, headings and pictures as they are."""
    code = False
    for prose, group in itertools.groupby(
        lines, lambda line: bool(line) and not line.startswith(("|", "#", "```", "!"))
    ):
        found = list(group)
        code = code != (sum(line.startswith("```") for line in found) % 2 == 1)
        plain = not prose or (code and not found[0].startswith("```"))
        yield from found if plain else textwrap.wrap(" ".join(found), 120, break_long_words=False)


def prose(words: str) -> Iterator[str]:
    """Paragraphs, as `filled` takes them."""
    yield from (line.strip() for line in words.strip().splitlines())
    yield ""


def command(commands: Sequence[str]) -> Iterator[str]:
    """How a table was made."""
    if commands:
        yield from ("```sh", *commands, "```", "")


def accuracy(row: Document, base: Document) -> list[str]:
    """mIoU, its change against the float row, pixel accuracy, pixels equal to float."""
    found = metrics(row)
    change = "" if row is base else f"{found.miou - miou(base):+.2f}"
    return [f"{found.miou:.2f}", change, f"{found.aacc:.2f}", f"{same(row):.2f}"]


def rmse(errors: Mapping[str, Document], variant: str) -> float:
    """Of all blocks together (eq. 15)."""
    squares = sum(entry["rmse"][variant] ** 2 * entry["elements"] for entry in errors.values())
    return math.sqrt(squares / sum(entry["elements"] for entry in errors.values()))


def significant(value: float) -> str:
    """Three significant digits, never an exponent."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{value:.{max(0, digits)}f}"


def introduction(results: Results) -> Iterator[str]:
    """What was measured, with what."""
    yield "# Results"
    yield ""
    yield from prose("""
        The tables of the I-Segmenter paper, measured with this engine. Written by `python tools/measure/report.py`
        from `docs/results/*.json`, which `tools/measure/experiments.py` and `tools/measure/bench.py` wrote; nothing
        here is typed by hand except the words and what is said to be the paper's. The paper measures ADE20K and
        Cityscapes on a GPU; here it is the CamVid validation set on a CPU, so that differences between rows can be
        compared with the paper's, not values.

        `python tools/measure/experiments.py all --root CamVid --checkpoint tiny=DIR --qat tiny:intseg=FILE` measures
        everything again that is not up to date. How the checkpoints and the QAT models were made: CONTRIBUTING.md.
    """)
    rows = []
    for name in results.names:
        document = results.any(name)
        assert document is not None
        about = document["checkpoint"]
        blocks = f"{about['blocks']} + {about['decoder_blocks']}"
        window = " x ".join(str(n) for n in about["window"])
        sha256 = document["inputs"]["checkpoint_sha256"][:12]
        rows.append([name, KNOWN.get(name, ""), blocks, str(about["width"]), window, sha256])
    yield from table(("checkpoint", "", "encoder + decoder blocks", "width", "window", "sha256"), rows)
    some = next((document for name in results.names if (document := results.any(name))), None)
    if some:
        yield from prose(f"""
            {some["images"]} labelled images, void ignored; calibration takes images from the
            {some["training_images"]} of the training set, S of them evenly spaced. *Equal* is the share of all pixels,
            void included, that the float model (bilinear, L2 norm) labels the same. Recipes: `i-vit` is Shiftmax and
            ShiftGELU as published by I-ViT, `paper` has lambda-ShiftGELU instead, both with symmetric min/max ranges,
            nearest upsampling and without L2 norm; `intseg` is this project's. Engine and fake-quant model give the
            same bits (tests/tools), so one number stands for both.
        """)


# ------------------------------------------------------------------------------------------------------------ Table 1

GELUS = ("ShiftGELU", "lambda-ShiftGELU", "sigmoid GELU", "table", "table, fitted ranges")
SOFTMAXES = ("Shiftmax", "Shiftmax, normalized division", "softmax2", "exp_weights")


def table_1(results: Results) -> Iterator[str]:
    """Errors of the integer operators."""
    yield "## Table 1: the integer GELU and softmax against float"
    yield ""
    yield from command(results.commands("activations"))
    yield from prose("""
        Root mean square of (integer operator - float operator), eq. 15, in units of the activation; both get the float
        model's own inputs, the integer one quantized to INT8 with the ranges of `paper` from one image, the last column
        with those of `intseg`. `table` is the exact GELU on the same quantized input: what remains is quantization.
        lambda is 1 for ShiftGELU, 6 for lambda-ShiftGELU and the sigmoid.
    """)
    rows = []
    for name, found in results.each("activations"):
        networks = {name: found["checkpoint"]}
        networks |= {f"{name}, tail x {factor}": errors for factor, errors in found["long-tailed"].items()}
        for title, errors in networks.items():
            largest = max(entry["largest_input"] for entry in errors["gelu"].values())
            values = [significant(rmse(errors["gelu"], variant)) for variant in GELUS]
            rows.append([title, f"{largest:.0f}", *values])
    yield from table(("network", "largest input", *GELUS), rows)
    yield from results.missing("activations")
    yield from _table_1_words(results)
    yield from _long_tail(results)
    for name, found in results.each("activations"):
        yield from _per_block(name, found)
    yield from _softmax(results)


def _table_1_words(results: Results) -> Iterator[str]:
    yield "The paper has 4.52 against 4.35 for Tiny and 293.94 against 3.75 for Large (ADE20K), in units it"
    yield "does not state."
    for name, found in results.each("activations"):
        one, six, exact, fitted = (
            rmse(found["checkpoint"]["gelu"], variant)
            for variant in ("ShiftGELU", "lambda-ShiftGELU", "table", "table, fitted ranges")
        )
        yield f"On {name} lambda = 6 changes the error of lambda = 1 by {100 * (six / one - 1):+.0f} %, the exact table"
        yield f"that by {100 * (exact / six - 1):+.0f} %, fitted ranges that by {100 * (fitted / exact - 1):+.0f} %."
    yield from prose("""
        ShiftGELU and lambda-ShiftGELU compare every value with the largest of its row, and their exponentials of 23
        bits end about 10 below it. Beyond that, lambda = 1 clamps both exponentials and gives x / 2; lambda = 6 lets
        both vanish and gives 0, which is right for most negative values and wrong for the positive ones. The sigmoid
        and the table look at one value and have no such limit.
    """)


def _long_tail(results: Results) -> Iterator[str]:
    tailed = [(name, found) for name, found in results.each("activations") if found["long-tailed"]]
    if not tailed:
        return
    yield from prose(f"""
        No checkpoint here has the long tails of the paper's larger models, so they were constructed: *tail x 8* has one
        of 96 outputs of every `fc1` 8 times larger and the weights of `fc2` that read it 8 times smaller, which changes
        the float model little (its own prediction is the reference here). Post-training quantization from one image,
        measured on {tailed[0][1]["checkpoint"]["images"]} images, evenly spaced:
    """)
    rows = []
    for name, found in tailed:
        for factor, errors in found["long-tailed"].items():
            ways = errors["rows"]
            cells = [f"{miou(ways[way]):.2f} ({same(ways[way]):.1f} %)" for way in RECIPES]
            rows.append([f"{name}, tail x {factor}", f"{miou(ways['float']):.2f}", *cells])
    yield from table(("network, mIoU % (equal to its float model)", "float", *RECIPES), rows)


def _per_block(name: str, found: Document) -> Iterator[str]:
    errors = found["checkpoint"]["gelu"]
    rows = [
        [block, f"{entry['largest_input']:.1f}", *(significant(entry["rmse"][variant]) for variant in GELUS)]
        for block, entry in errors.items()
    ]
    yield f"GELU of {name}, per block, on {found['checkpoint']['images']} images:"
    yield ""
    yield from table(("block", "largest input", *GELUS), rows)


def _softmax(results: Results) -> Iterator[str]:
    yield from prose("""
        The softmax likewise: root mean square error of the probabilities times 10^5, and the mean sum of a row, which
        should be 1. The logits are INT16 in both.
    """)
    for name, found in results.each("activations"):
        rows, errors = [], found["checkpoint"]["softmax"]
        measured = [v for v in SOFTMAXES if all(v in entry["rmse"] for entry in errors.values())]
        for block, entry in errors.items():
            values = [significant(1e5 * entry["rmse"][variant]) for variant in measured]
            sums = [f"{entry['row_sum'][variant]:.4f}" for variant in measured]
            rows.append([block, f"{entry['largest_input']:.1f}", *values, *sums])
        overall = [significant(1e5 * rmse(errors, variant)) for variant in measured]
        rows.append([f"**all of {name}**", "", *overall, *[""] * len(measured)])
        heads = ("block", "largest logit", *measured, *(f"row sum, {variant}" for variant in measured))
        yield from table(heads, rows)
        ratio = rmse(errors, "Shiftmax") / rmse(errors, "softmax2")
        yield f"On {name} the error of softmax2 is {ratio:.0f} times smaller than that of Shiftmax."
        yield ""


# ------------------------------------------------------------------------------------------------------------ Table 2

COMBINATIONS = ("nearest, no L2", "nearest, L2", "bilinear, no L2", "bilinear, L2")


def table_2(results: Results) -> Iterator[str]:
    """Interpolation and L2 norm."""
    yield "## Table 2: interpolation and L2 norm"
    yield ""
    yield from command(results.commands("upsampling"))
    yield from prose("""
        mIoU in percent, in brackets the pixels equal to float. All integer columns are integer to the end, bilinear and
        L2 norm included; one calibration image. (The paper's rows with L2 norm or bilinear are not integer-only.)
    """)
    for name, found in results.each("upsampling"):
        rows = []
        for combination in COMBINATIONS:
            cells = [found["rows"][way][combination] for way in ("float", "intseg", "paper")]
            rows.append([f"{name}: {combination}", *(f"{miou(row):.2f} ({same(row):.2f})" for row in cells)])
        yield from table(("interpolation, L2 norm", "float", "intseg otherwise", "paper otherwise"), rows)
    yield from results.missing("upsampling")
    for name, found in results.each("upsampling"):
        for way in ("float", "intseg", "paper"):
            near, up = (
                np.mean([miou(found["rows"][way][f"{kind}, {l2}"]) for l2 in ("L2", "no L2")])
                for kind in ("nearest", "bilinear")
            )
            dropped, kept = (
                np.mean([miou(found["rows"][way][f"{kind}, {l2}"]) for kind in ("nearest", "bilinear")])
                for l2 in ("no L2", "L2")
            )
            yield f"{name}, {way}: bilinear instead of nearest {up - near:+.2f}, L2 norm {kept - dropped:+.2f}"
            yield "points on average."
    yield from prose("""
        The paper has +1.7 and +0.9 over its models. `mask_norm` undoes any factor that the classes of a patch share, so
        that of the L2 norm only the lengths of the class embeddings can change a label.
    """)


# --------------------------------------------------------------------------------------------------- Tables 3 and 4


def table_3(results: Results) -> Iterator[str]:
    """Accuracy of PTQ and QAT."""
    yield "## Tables 3 and 4: accuracy"
    yield ""
    yield from command([*results.commands("ptq"), *results.commands("qat")])
    for name, found in results.each("ptq"):
        base = found["float"]["bilinear, L2"]
        rows = [["float", "-", "bilinear, L2 norm", *accuracy(base, base)]]
        rows.append(["float", "-", "nearest, no L2 norm", *accuracy(found["float"]["nearest, no L2"], base)])
        for row in sorted(found["rows"], key=lambda row: (row["images"], RECIPES.index(row["recipe"]))):
            rows.append(["PTQ", str(row["images"]), row["recipe"], *accuracy(row, base)])
        trained = (results.of("qat", name) or {"rows": {}})["rows"]
        rows += [["QAT", "-", recipe, *accuracy(trained[recipe], base)] for recipe in RECIPES if recipe in trained]
        yield from table((f"{name}", "S", "recipe", "mIoU %", "change", "pixel accuracy %", "equal %"), rows)
    yield from results.missing("ptq")
    yield "The paper loses 3.9 to 6.2 points by PTQ from one image with lambda-ShiftGELU, and 0.6 to 5.0 by QAT."
    yield ""


def simplifications(results: Results) -> Iterator[str]:
    """One change at a time."""
    yield "## What each simplification costs"
    yield ""
    yield from command(results.commands("simplifications"))
    yield from prose("""
        From `intseg` to `paper`, one calibration image; mIoU in percent with the change, in brackets the pixels equal
        to float. *In float*: only this in the float model. *Alone*: only this in `intseg`. *Together*: this and all
        above it.
    """)

    def cell(row: Document | None) -> str:
        return "-" if row is None else f"{miou(row):.2f} ({same(row):.2f})"

    for name, found in results.each("simplifications"):
        base = found["alone"]["intseg"]
        rows = [[f"{name}: nothing", cell(found["float"]), cell(base), cell(base)]]
        for step, row in found["together"].items():
            rows.append([step, cell(found["in float"].get(step)), cell(found["alone"][step]), cell(row)])
        yield from table(("change", "in float", "alone", "together"), rows)
        others = {step: row for step, row in found["in float"].items() if step not in found["together"]}
        yield f"Other operators alone in the float model of {name}, on the ranges of `paper` unless fitted:"
        yield ""
        yield from table(("operator", "mIoU % (equal %)"), [[step, cell(row)] for step, row in others.items()])
        changes = [(same(row) - same(base), step) for step, row in found["alone"].items() if step != "intseg"]
        worst, least = min(changes), max(changes)
        yield f"On {name} the costliest change alone is {worst[1]} ({worst[0]:+.2f} points of equal pixels),"
        yield f"the cheapest {least[1]} ({least[0]:+.2f})."
        yield ""
    yield from results.missing("simplifications")


def calibration(results: Results) -> Iterator[str]:
    """What calibration chooses, and what that wins."""
    yield "## What calibration chooses"
    yield ""
    yield from command(results.commands("calibration"))
    measured = list(results.each("calibration"))
    images = measured[0][1]["images"] if measured else 0
    yield from prose(f"""
        Percent of the pixels equal to the float model, on {images} training images, for three calibration images (one
        at a time; the mean first). `extremes x 1.6` is what was seen, 1.6 times as wide; an estimator is chosen for
        every node by what it loses on views that it was not fitted to, after the weights that read the node. The last
        row lets this choice also say how much room is left for other images: the views of one image are too much
        alike for that.
    """)
    for name, found in measured:
        rows = []
        for way, parts in found["ways"].items():
            equal = [100 * part["same"] / part["pixels"] for part in parts]
            rows.append([way, f"{np.mean(equal):.3f}", *(f"{value:.3f}" for value in equal)])
        yield from table((name, "mean", *(f"image {i + 1}" for i in range(len(rows[0]) - 2))), rows)
        chosen: dict[str, int] = {}
        for part in found["chosen"]:
            for estimator, nodes in part.items():
                chosen[estimator] = chosen.get(estimator, 0) + nodes
        words = ", ".join(f"`{estimator}` {nodes}" for estimator, nodes in chosen.items())
        mean = {
            way: np.mean([100 * part["same"] / part["pixels"] for part in parts])
            for way, parts in found["ways"].items()
        }
        plain, corrected, chosen_only, both, room = mean.values()
        yield f"Chosen for {name}, nodes of all models: {words}. On average biases change {corrected - plain:+.3f}"
        yield f"points, the estimators {chosen_only - plain:+.3f}, both {both - plain:+.3f}, and a chosen room besides"
        yield f"{room - plain:+.3f}."
        yield ""
    yield from results.missing("calibration")


# ------------------------------------------------------------------------------------------------------------ Table 5


def table_5(results: Results) -> Iterator[str]:
    """Time and memory of PTQ and QAT."""
    yield "## Table 5: time and memory of calibration and training"
    yield ""
    yield from command(results.commands("ptq"))
    yield from prose("""
        `tools/convert.py` as a process of its own on one thread, from start to the written file: processor seconds and
        peak memory, measured by the command above; of QAT one training step of 8 crops. The paper's PTQ takes 1 s and
        1.76 GB (Tiny, S = 1) to 82 s and 12.88 GB (Large, S = 500) on an A100, its QAT 8 to 70 hours.
    """)
    rows = []
    for name, found in results.each("ptq"):
        for row in sorted(found["rows"], key=lambda row: (RECIPES.index(row["recipe"]), row["images"])):
            rows.append([name, "PTQ", row["recipe"], str(row["images"]), *_cost(row["cost"], "cpu_seconds", 0)])
        if step := found.get("training"):
            rows.append([name, "QAT, one step", "intseg", "-", *_cost(step, "cpu_seconds_per_step", 1)])
    yield from table(("checkpoint", "", "recipe", "S", "seconds", "GB"), rows)
    for name, found in results.each("ptq"):
        machine = found["machine"]
        yield f"{name} on {machine['cpu']}, PyTorch {machine.get('torch', '?')}, Python {machine['python']}."
        if found.get("training"):
            hours = 1000 * found["training"]["cpu_seconds_per_step"] / 3600
            yield f"A QAT run of 1000 such steps (the default) would take {hours:.1f} hours of one core;"
            yield "that is not measured."
    yield from prose("""
        Starting Python and PyTorch is part of the seconds. `intseg` runs seven views of each image when there are 8 or
        fewer of them (calibrate.py).
    """)


def _cost(cost: Document, seconds: str, digits: int) -> tuple[str, str]:
    return f"{cost[seconds]:.{digits}f}", f"{cost['peak_bytes'] / 1e9:.2f}"


# ----------------------------------------------------------------------------------------------------- Tables 6 and 7


def table_6(results: Results) -> Iterator[str]:
    """Size and latency."""
    yield "## Table 6: size and latency"
    yield ""
    sizes = results.sizes["results"]["sizes"] if results.sizes else {}
    yield from command([results.sizes["command"]] if results.sizes else [])
    names = list(PAPER_TRAFFIC)
    rows = []
    for title, key in (("FP32 parameters, MB", "float_bytes"), ("intseg, MB", "integer_bytes")):
        rows.append([title, *(f"{sizes[name][key] / 1e6:.2f}" if name in sizes else MISSING for name in names)])
    ratios = [
        f"{sizes[name]['float_bytes'] / sizes[name]['integer_bytes']:.2f}" if name in sizes else MISSING
        for name in names
    ]
    rows.append(["times smaller (paper: 3.2 to 3.8)", *ratios])
    yield "150 classes, 512 x 512; MB = 10^6 bytes. The converted checkpoints, scales and header included:"
    yield ""
    files = []
    for name, found in results.each("ptq"):
        row = next((row for row in found["rows"] if row["recipe"] == "intseg"), None)
        if row is None:
            continue
        ratio = found["float_bytes"] / row["bytes"]
        files.append([name, f"{found['float_bytes'] / 1e6:.2f}", f"{row['bytes'] / 1e6:.2f}", f"{ratio:.2f}"])
    yield from table(("checkpoint", "FP32, MB", "intseg, MB", "times smaller"), files)
    yield from table(("size", *names), rows)
    yield from _latency(results)


def _latency(results: Results) -> Iterator[str]:
    bench = results.bench["results"] if results.bench else {}
    names = [name for name in PAPER_TRAFFIC if name in bench] or list(PAPER_TRAFFIC)
    yield "Latency of one image, whole image to labels, one thread of one CPU, in ms (`python tools/measure/bench.py"
    yield "--models tiny,small,base --threads 1,2 --numpy --json docs/results/bench.json`;"
    yield "[PERFORMANCE.md](PERFORMANCE.md) says how):"
    yield ""

    def entry(name: str) -> Document:
        found: Document = bench.get(name, {}).get("1", {})
        return found

    def cell(value: float | None) -> str:
        return MISSING if value is None else f"{value:.1f}"

    measured = {peer for name in names for peer in entry(name).get("peers_ms", {})}
    shown = [(peer, title) for peer, title in PEERS if peer in measured or not bench]
    rows = [[title, *(cell(entry(n).get("peers_ms", {}).get(peer)) for n in names)] for peer, title in shown]
    rows += [["intseg, numba", *(cell(entry(name).get("intseg_ms")) for name in names)]]
    rows += [["intseg, numpy (the definition)", *(cell(entry(name).get("numpy_ms")) for name in names)]]
    yield from table(("backend", *names), rows)
    if results.bench:
        machine = results.bench["machine"]
        yield from prose(f"""
            On {machine["cpu"]} ({machine["path"]}), PyTorch {machine.get("torch", "?")}, ONNX Runtime
            {machine.get("onnxruntime", "?")}. The paper's integer-only row (TVM on an A100) is 1.14 times slower than
            FP32 for Tiny and 1.25 times faster for Large.
        """)
        absent = [title for peer, title in PEERS if peer not in measured]
        if absent:
            yield from prose(f"Not measured in that run: {', '.join(absent)}.")


def table_7(results: Results) -> Iterator[str]:
    """Memory traffic."""
    yield "## Table 7: memory traffic"
    yield ""
    if results.sizes is None:
        yield f"{MISSING.capitalize()}."
        yield ""
        return
    yield from command([results.sizes["command"]])
    document = results.sizes["results"]
    bits, found = document["bits_per_mac"], document["sizes"]
    names = [name for name in PAPER_TRAFFIC if name in found]
    yield from prose(f"""
        10^12 bits for one image of 512 x 512 with 150 classes. The paper's numbers are those of a machine without any
        reuse: {bits["fp32"]} bits for every multiply-accumulate in FP32, {bits["int8 linear"]} in INT8 linear layers
        and about {bits["int8 attention"]} in the products of attention give its four sizes.
    """)
    rows = [["GMAC, linear", *(f"{found[n]['linear_macs'] / 1e9:.2f}" for n in names)]]
    rows += [["GMAC, attention and masks", *(f"{found[n]['product_macs'] / 1e9:.2f}" for n in names)]]
    rows += [["FP32, paper", *(f"{PAPER_TRAFFIC[n][0]:.2f}" for n in names)]]
    formula = {n: _formula(found[n], bits) for n in names}
    rows += [["FP32, the formula", *(f"{formula[n][0]:.2f}" for n in names)]]
    rows += [["INT8, paper", *(f"{PAPER_TRAFFIC[n][1]:.2f}" for n in names)]]
    rows += [["INT8, the formula", *(f"{formula[n][1]:.2f}" for n in names)]]
    rows += [["INT8, node by node", *(f"{8e-12 * found[n]['traffic']['node_by_node']:.5f}" for n in names)]]
    fused = {n: sum(found[n]["traffic"][key] for key in ("weights", "read", "written")) for n in names}
    rows += [["**the engine's plan**", *(f"**{8e-12 * fused[n]:.5f}**" for n in names)]]
    rows += [["times less than the paper's INT8", *(f"{PAPER_TRAFFIC[n][1] / (8e-12 * fused[n]):.0f}" for n in names)]]
    yield from table(("", *names), rows)
    yield from _needs({name: found[name]["traffic"] for name in names})


NEEDS = {
    "weights": "weights",
    "activations read": "read",
    "activations written": "written",
    "all buffers at once": "workspace",
    "scratch of a thread": "scratch",
}
"""What the engine's plan is counted by."""


def _needs(traffic: Mapping[str, Document]) -> Iterator[str]:
    """What one window needs, by size of the model."""
    rows = [[title, *(f"{its[key] / 1e6:.2f}" for its in traffic.values())] for title, key in NEEDS.items()]
    yield "What the engine needs, in MB for one window:"
    yield ""
    yield from table(("", *traffic), rows)
    scratch = max(its["scratch"] for its in traffic.values()) / 1e6
    small = [name for name, its in traffic.items() if its["workspace"] < 32e6] or ["none"]
    yield from prose(f"""
        *Node by node* reads every input and writes every output of every node once, and every weight once. The engine's
        plan has fewer buffers: a strip of attention (scores, probabilities, context) stays in the scratch of a thread,
        at most {scratch:.2f} MB, which is to lie in a cache of the second level. All buffers together fit a cache of 32
        MB for: {", ".join(small)}; then little but weights and image comes from memory. The counts are of the graph and
        its plan, not of a machine: an image of several windows reads the weights once per window, and a matrix product
        reads its operands again from a cache as often as its tiles need them.
    """)


def _formula(entry: Document, bits: Document) -> tuple[float, float]:
    """10^12 bits in FP32 and INT8."""
    linear, products = entry["linear_macs"], entry["product_macs"]
    integer = bits["int8 linear"] * linear + bits["int8 attention"] * products
    return 1e-12 * bits["fp32"] * (linear + products), 1e-12 * integer


# -------------------------------------------------------------------------------------------------------------- figures


def compared(results: Results, name: str) -> dict[str, Document]:
    """The rows that the figures of a checkpoint show: float, PTQ with the most images, QAT."""
    found = results.of("ptq", name)
    if found is None:
        return {}
    rows = {"float": found["float"]["bilinear, L2"]}
    most = max(row["images"] for row in found["rows"])
    for recipe in ("paper", "intseg"):
        row = next((r for r in found["rows"] if r["recipe"] == recipe and r["images"] == most), None)
        rows |= {f"PTQ {recipe}": row} if row else {}
        trained = results.of("qat", name)
        rows |= {f"QAT {recipe}": trained["rows"][recipe]} if trained and recipe in trained["rows"] else {}
    return rows


def normalised(row: Document) -> Any:
    """Percent of the pixels of a label by predicted class, rows without pixels all zero."""
    matrix = np.array(row["confusion"], np.float64)
    return 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def latencies(results: Results) -> dict[str, dict[str, float]]:
    """Milliseconds of one image with one thread: model -> program -> time, this program last."""
    found: dict[str, dict[str, float]] = {}
    for name in PAPER_TRAFFIC:
        entry = results.bench["results"].get(name, {}).get("1") if results.bench else None
        if entry:
            found[name] = {title: entry["peers_ms"][peer] for peer, title in PEERS if peer in entry["peers_ms"]}
            found[name]["intseg"] = entry["intseg_ms"]
    return found


def figures(results: Results) -> dict[str, str]:
    """Pictures by file name."""
    from intseg.tools.measure.figures import bars, matrices, speed  # needs matplotlib

    drawn = {}
    if results.bench:
        drawn["results_speed.svg"] = speed("Milliseconds of one image, one thread", latencies(results))
    for name in results.names:
        rows = compared(results, name)
        document = results.found["ptq"].get(name)
        if not rows or document is None:
            continue
        classes = document["classes"]
        shown = {way: normalised(row) for way, row in rows.items() if way in ("float", "PTQ intseg", "QAT intseg")}
        base = normalised(rows["float"])
        deltas = {f"{way} - float": normalised(row) - base for way, row in rows.items() if way != "float"}
        drawn[f"results_confusion_{name}.svg"] = matrices(f"Confusion of {name}", shown, classes, False)
        drawn[f"results_difference_{name}.svg"] = matrices(f"Changes of confusion of {name}", deltas, classes, True)
        drawn[f"results_iou_{name}.svg"] = bars(
            f"IoU per class of {name}", {way: metrics(row).iou for way, row in rows.items()}, classes
        )
    return drawn


def figure_section(results: Results) -> Iterator[str]:
    """Figures B.6 to B.8."""
    yield "## Figures B.6 to B.8: confusion and IoU per class"
    yield ""
    for name, found in results.each("ptq"):
        rows = compared(results, name)
        most = max(row["images"] for row in found["rows"])
        yield f"Row-normalised confusion of {name}; post-training quantization from {most} image(s):"
        yield ""
        yield f"![Confusion matrices of {name}](pictures/results_confusion_{name}.svg)"
        yield ""
        yield "What quantization changes. On the diagonal a positive number is a gain, elsewhere a loss:"
        yield ""
        yield f"![Changes of the confusion matrix of {name}](pictures/results_difference_{name}.svg)"
        yield ""
        yield f"![IoU per class of {name}](pictures/results_iou_{name}.svg)"
        yield ""
        yield from _figure_words(results, name, rows)
    yield from results.missing("ptq")


def _figure_words(results: Results, name: str, rows: Mapping[str, Document]) -> Iterator[str]:
    classes, base = results.found["ptq"][name]["classes"], metrics(rows["float"]).iou
    for way, row in rows.items():
        deltas = [
            (b - a, label)
            for a, b, label in zip(base, metrics(row).iou, classes, strict=True)
            if a is not None and b is not None
        ]
        if way != "float" and deltas:
            low, high = min(deltas), max(deltas)
            yield f"{way}: IoU changes from {low[0]:+.2f} ({low[1]}) to {high[0]:+.2f} ({high[1]}) points."
    never = [label for label, value in zip(classes, base, strict=True) if value is not None and value < 1]
    if never:
        yield f"The float model itself hardly finds {', '.join(never)}: no quantization can lose much there."
    yield ""


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------

SECTIONS = (
    *(introduction, table_1, table_2, table_3, simplifications, calibration),
    *(table_5, table_6, table_7, figure_section),
)


def pages(folder: Path) -> dict[str, str]:
    """Everything written, by its name under docs/."""
    results = Results(folder)
    lines = [line for section in SECTIONS for line in section(results)]
    found = {"RESULTS.md": "\n".join(filled(lines)).rstrip() + "\n"}
    return found | {f"pictures/{name}": drawing for name, drawing in figures(results).items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Write or compare; the exit code."""
    parser = argparse.ArgumentParser(prog="report.py", description="Write docs/RESULTS.md from docs/results/*.json.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of RESULTS.md, pictures/ and results/")
    args = parser.parse_args(argv)
    try:
        made = pages(args.docs / "results")
    except InputError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return error.exit_code
    wrong = 0
    for name in sorted({f"pictures/{file.name}" for file in (args.docs / "pictures").glob("results_*")} - set(made)):
        wrong += 1
        if args.check:
            print(f"{args.docs / name}: no result gives this picture; run python tools/measure/report.py")
        else:
            (args.docs / name).unlink()
    for name, content in made.items():
        path = args.docs / name
        if not args.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content.encode())
        elif not path.is_file() or path.read_text(encoding="utf-8") != content:
            print(f"{path}: is not what docs/results gives; run python tools/measure/report.py")
            wrong += 1
    return int(bool(wrong) and args.check)


if __name__ == "__main__":
    sys.exit(main())
