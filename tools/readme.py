"""The parts of README.md, docs/PERFORMANCE.md and docs/QUANTIZATION.md that are measured: between their comments
`begin NAME` and `end NAME`; and docs/leuven.png.

Accuracy and speed come from docs/results, the transcript from running the README's own commands.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from intseg import api
from intseg.cli import main as cli
from intseg.images import overlay as overlays
from intseg.reports import quantization as quant_report
from intseg.reports import quantization_text
from intseg.tools.measure.tables import speed
from intseg.tools.measure.tables.opening import accuracy
from intseg.tools.measure.tables.results import Results

ROOT = Path(__file__).resolve().parents[1]
STREET = ROOT / "golden" / "images" / "street.png"
PHOTO = ROOT / "golden" / "images" / "leuven.png"
FLOAT = ROOT / "docs" / "results" / "leuven_float.png"
"""The classes that the float checkpoint behind the bundled model gives the photo (tools/measure/photo.py)."""


def _results() -> Results:
    return Results(ROOT / "docs" / "results")


def transcript(text: str) -> str:
    """What `intseg diff` says of the broken accelerator of the README."""
    (code,) = re.findall(r"```python\n(import intseg, numpy.*?)```", text, re.DOTALL)
    (line,) = re.findall(r"^intseg (diff .*)$", text, re.MULTILINE)
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        Path("golden").symlink_to(ROOT / "golden")
        exec(compile(code, "README.md", "exec"), {})
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert cli.main(line.split()) == 1
    return f"```text\n{printed.getvalue()}```"


def photo() -> str:
    """The picture, and how many pixels of it the float model gives another class."""
    differ = (api.run(PHOTO).labels != np.asarray(Image.open(FLOAT))).mean()
    text = f"A street in Leuven; its classes; in red the {differ:.1%} of the pixels that the float model sees otherwise"
    return f"![{text}](docs/leuven.png)"


def quantization(name: str) -> str:
    """What `intseg quant-report` prints of a bundled model on the street, without its time, long tables cut."""
    found = list(quantization_text.lines(quant_report.measure([quant_report.Source(STREET)], name)))
    command = f"$ intseg quant-report {name} golden/images/street.png"
    head = [command, found[0].rpartition(",")[0], found[1], found[2], "..."]
    tables = [list(lines) for full, lines in itertools.groupby(found[found.index("") :], bool) if full]
    cuts = [*[99] * _WHOLE, *[_ROWS] * len(tables)]
    shown = ([*lines[:most], *["  ..."] * (len(lines) > most)] for lines, most in zip(tables, cuts, strict=False))
    return "\n".join(["```", *head, "\n\n".join("\n".join(lines) for lines in shown), "```"])


_WHOLE, _ROWS = 2, 8
"""Tables of a quantization report that its page shows whole, approximations and kinds; lines of the others."""

PARTS: Mapping[str, Callable[[str], str]] = {
    "photo": lambda text: photo(),
    "accuracy": lambda text: "\n".join(accuracy(_results())).rstrip(),
    "speed": lambda text: speed.sentence(_results()),
    "transcript": transcript,
    "paper": lambda text: quantization("camvid-tiny-paper"),
    "intseg": lambda text: quantization("camvid-tiny"),
    "bench": lambda text: speed.side_by_side(_results()),
    "ops": lambda text: speed.where_it_goes(_results()),
}


def filled(text: str) -> str:
    """A page with its parts as they are measured now."""
    for name in re.findall(r"<!-- begin (\w+) -->", text):
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{PARTS[name](text)}\n{end}{after}"
    return text


def picture() -> Image.Image:
    """The photo, its classes, and where the float model has others; a legend below."""
    result = api.run(PHOTO)
    overlay = np.asarray(result.overlay(0.65).convert("RGB"))
    grey = np.repeat(np.asarray(Image.fromarray(result.image).convert("L"))[..., None] // 3 + 150, 3, axis=2)
    grey[result.labels != np.asarray(Image.open(FLOAT))] = (216, 20, 20)
    panels = np.concatenate([result.image, overlay, grey], axis=1).astype(np.uint8)
    shares = result.shares().items()
    colours = dict(zip(result.classes, result.palette, strict=True))
    legend = [overlays.LegendEntry(colours[name], f"{name} {overlays.percent(share)}") for name, share in shares]
    return overlays.add_legend(Image.fromarray(panels), legend, 20)


def picture_bytes() -> bytes:
    """The same as a PNG."""
    data = io.BytesIO()
    picture().save(data, "PNG", optimize=True)
    return data.getvalue()
