"""Write the generated part of docs/: CLI.md from the parsers, API.md from docstrings, the pictures of ARITHMETIC.md.

    python tools/make_docs.py              write
    python tools/make_docs.py --check      compare; exit code 1 and the names of what differs
    python tools/make_docs.py --check pictures

The pictures are SVG drawn from the ops themselves: what they show is what the engine computes.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intseg import arith
from intseg.cli import main as cli
from intseg.files import write_atomically
from intseg.ops import RUN
from intseg.reports.markup import escape, number
from intseg.windows import starts

DOCS = Path(__file__).resolve().parents[1] / "docs"

# ------------------------------------------------------------------------------------------------------------ CLI

_CLI = """\
# Command line

Generated from the parsers by `python tools/make_docs.py`; `intseg COMMAND --help` says the same.

"""


def cli_page() -> str:
    """docs/CLI.md."""
    parser = cli.parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    summaries = {choice.dest: choice.help for choice in commands._choices_actions}
    parts = [_CLI, "| command | |\n|---|---|\n"]
    parts += [
        f"| [`intseg {name}`](#intseg-{name}) | {_cell(summaries.get(name) or '')} |\n" for name in commands.choices
    ]
    parts += [f"\n```text\n{(parser.epilog or '').strip()}\n```\n"]
    for name, command in commands.choices.items():
        parts += [f"\n## intseg {name}\n", f"\n```text\n{(command.description or '').strip()}\n```\n"]
        rows = [
            _argument(command, action)
            for action in command._actions
            if action.dest != "help" and action.help != argparse.SUPPRESS
        ]
        if rows:
            parts += ["\n| argument | |\n|---|---|\n", *rows]
    return "".join(parts)


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    takes = action.nargs != 0
    names = [f"{name} {value}" if takes else name for name in action.option_strings[-1:]] or [str(value)]
    short = action.option_strings[:-1]
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    needed = ", required" if action.required and action.option_strings else ""
    return f"| {', '.join(f'`{_cell(name)}`' for name in (*short, *names))} | {_cell(text)}{needed} |\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# ------------------------------------------------------------------------------------------------------------ API

PUBLIC: Mapping[str, tuple[str, ...]] = {
    "intseg.batch.evaluate": ("evaluate",),
    "intseg.batch.datasets": ("find_pairs",),
    "intseg.batch.metrics": ("confusion", "metrics"),
    "intseg.reports.inspect": ("rows", "totals"),
    "intseg.reports.graph_drawing": ("dot", "svg"),
    "intseg.reports.profile": ("profile", "chrome_trace"),
    "intseg.reports.page": ("look", "page"),
    "intseg.reports.card": ("write", "Facts"),
    "intseg.reports.doctor": ("examine", "pattern", "digest"),
    "intseg.store": ("load", "save"),
    "intseg.graph": ("Graph", "Node", "ModelInfo", "validate"),
    "intseg.executor": ("execute",),
    "intseg.backends": ("table", "compile"),
    "intseg.errors": ("IntsegError", "MismatchError", "UsageError", "ModelError", "InputError"),
}
"""What docs/API.md describes beside `intseg.__all__`."""

_API = """\
# Python API

Generated from signatures and docstrings by `python tools/make_docs.py`.

`import intseg` gives what most programs need; the modules below it are for those that look inside.
"""


def api_page() -> str:
    """docs/API.md."""
    top = importlib.import_module("intseg")
    parts = [_API, _module("intseg", [name for name in top.__all__ if not name.startswith("_")])]
    parts += [_module(name, members) for name, members in PUBLIC.items()]
    return "".join(parts)


def _module(name: str, members: Sequence[str]) -> str:
    module = importlib.import_module(name)
    head = f"\n## {name}\n\n{(inspect.getdoc(module) or '').split(chr(10) * 2)[0]}\n"
    return head + "".join(_member(f"{name}.{member}", getattr(module, member)) for member in members)


def _member(name: str, found: Any) -> str:
    if inspect.isclass(found):
        call = "" if issubclass(found, Exception) else _signature(found)
        inner = "".join(_attribute(name, key, value) for key, value in vars(found).items() if not key.startswith("_"))
        return f"\n### {name}\n\n```python\n{name}{call}\n```\n\n{_doc(found)}{inner}"
    return f"\n### {name}\n\n```python\n{name}{_signature(found)}\n```\n\n{_doc(found)}"


def _attribute(owner: str, key: str, value: Any) -> str:
    name = f"{owner.rpartition('.')[2]}.{key}"
    if isinstance(value, property):
        return f"\n#### {name}\n\n{_doc(value)}"
    value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
    return f"\n#### {name}{_signature(value)}\n\n{_doc(value)}" if inspect.isfunction(value) else ""


def _doc(found: Any) -> str:
    return f"```text\n{inspect.getdoc(found) or ''}\n```\n"


def _signature(found: Any) -> str:
    """The parameters as they are written in the source."""
    signature = inspect.signature(found)
    shown, bare = [], False
    for parameter in signature.parameters.values():
        if parameter.name == "self" or parameter.name.startswith("_"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not bare:
            shown.append("*")
            bare = True
        shown.append(_parameter(parameter))
    returned = (
        "" if inspect.isclass(found) or signature.return_annotation is signature.empty else signature.return_annotation
    )
    return f"({', '.join(shown)})" + (f" -> {returned}" if returned and returned != "None" else "")


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    kind = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
    if parameter.default is parameter.empty:
        return f"{stars}{parameter.name}{kind}"
    plain = isinstance(parameter.default, str | int | float | bool | tuple | None)
    return f"{stars}{parameter.name}{kind} = {parameter.default!r}" if plain else f"{stars}{parameter.name}{kind} = ..."


# ------------------------------------------------------------------------------------------------------- pictures

_STYLE = """
svg { background: #ffffff; font: 13px system-ui, sans-serif; }
text { fill: #1b1f24; } .soft { fill: #4b5560; }
.axis { stroke: #59636e; fill: none; } .rule { stroke: #d5dae0; fill: none; }
.a { stroke: #1f6fb8; fill: none; stroke-width: 2; } .b { stroke: #a4500f; fill: none; stroke-width: 2; }
.c { stroke: #59636e; fill: none; stroke-width: 1.5; stroke-dasharray: 5 4; }
.fa { fill: #1f6fb8; } .fb { fill: #a4500f; } .box { fill: #eef3f8; stroke: #59636e; }
.window { fill: #1f6fb8; fill-opacity: 0.22; stroke: #1f6fb8; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
svg { background: #14181d; } text { fill: #eef1f4; } .soft { fill: #b6c0ca; }
.axis { stroke: #98a3af; } .rule { stroke: #39424c; }
.a { stroke: #74b6f2; } .b { stroke: #f0a868; } .c { stroke: #98a3af; } .fa { fill: #74b6f2; } .fb { fill: #f0a868; }
.box { fill: #232b33; stroke: #98a3af; } .window { fill: #74b6f2; stroke: #74b6f2; } }
"""

Point = tuple[float, float]


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """An SVG document."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> str:
    """A line of text."""
    return f'<text class="{kind}" x="{number(x)}" y="{number(y)}" text-anchor="{anchor}">{escape(content)}</text>'


class Chart:
    """Axes in a rectangle of the picture, and lines in their coordinates."""

    def __init__(self, box: tuple[float, float, float, float], x: Point, y: Point) -> None:
        self.left, self.top, self.width, self.height = box
        self.x, self.y = x, y

    def at(self, x: float, y: float) -> Point:
        """Where a point of the chart is in the picture."""
        across, up = (x - self.x[0]) / (self.x[1] - self.x[0]), (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * self.width, self.top + (1 - up) * self.height

    def axes(self, xs: Sequence[float], ys: Sequence[float], label: str) -> Iterator[str]:
        """Rules with numbers, and a label above."""
        for x in xs:
            (a, b), (_, c) = self.at(x, self.y[0]), self.at(x, self.y[1])
            yield f'<path class="rule" d="M{number(a)} {number(b)}V{number(c)}"/>' + text(
                a, b + 18, f"{x:g}", "middle", "soft"
            )
        for y in ys:
            (a, b), (c, _) = self.at(self.x[0], y), self.at(self.x[1], y)
            yield f'<path class="rule" d="M{number(a)} {number(b)}H{number(c)}"/>' + text(
                a - 6, b + 4, f"{y:g}", "end", "soft"
            )
        yield text(self.left, self.top - 10, label)

    def line(self, points: Sequence[Point], kind: str) -> str:
        """Points joined by straight lines."""
        places = (self.at(*point) for point in points)
        return f'<path class="{kind}" d="M{"L".join(f"{number(a)} {number(b)}" for a, b in places)}"/>'

    def dots(self, points: Sequence[Point], kind: str, radius: float = 3) -> str:
        """Points."""
        places = (self.at(*p) for p in points)
        return "".join(f'<circle class="{kind}" cx="{number(a)}" cy="{number(b)}" r="{radius}"/>' for a, b in places)


def key(x: float, y: float, entries: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A legend: class of the line, what it is."""
    for i, (kind, content) in enumerate(entries):
        yield f'<path class="{kind}" d="M{number(x)} {number(y + 20 * i)}h28"/>' + text(x + 36, y + 4 + 20 * i, content)


def quantization() -> str:
    """Real values on a grid of integers."""
    chart = Chart((60, 40, 560, 230), (-1.5, 1.5), (-10, 10))
    scale = 1 / 7
    xs = np.linspace(-1.5, 1.5, 601)
    q = np.clip(np.floor(xs / scale + 0.5), -8, 7)
    label = "integer q for a real value x, scale 1/7: four bits, so that the steps can be seen"
    parts = [*chart.axes([-1.5, -1, -0.5, 0, 0.5, 1, 1.5], [-8, -4, 0, 4, 7], label)]
    parts += [chart.line([(-1.4, -1.4 / scale), (1.4, 1.4 / scale)], "c")]
    parts += [chart.line(list(zip(xs.tolist(), q.tolist(), strict=True)), "a")]
    return picture(660, 320, "Quantization", [*parts, *key(80, 60, [("a", "q, saturated"), ("c", "x / scale")])])


def rounding() -> str:
    """RSR against a floor and against the real quotient."""
    chart = Chart((50, 40, 560, 260), (-10, 10), (-3, 3))
    xs = list(range(-10, 11))
    rsr = [int(arith.rsr(np.int64(x), 2)) for x in xs]
    parts = [*chart.axes([-10, -6, -2, 0, 2, 6, 10], [-3, -2, -1, 0, 1, 2, 3], "RSR(x, 2) against x / 4")]
    parts += [chart.line([(-10, -2.5), (10, 2.5)], "c"), chart.dots(list(zip(xs, rsr, strict=True)), "fa", 4)]
    ties = [(x, r) for x, r in zip(xs, rsr, strict=True) if x % 4 == 2]
    parts += [
        chart.dots(ties, "fb", 5),
        text(70, 62, "● RSR", kind="fa"),
        text(70, 82, "● ties: up, towards +∞", kind="fb"),
    ]
    return picture(650, 340, "The rounding shift right", parts)


def pipeline() -> str:
    """The widths a number has inside of a linear layer."""
    boxes = [
        ("x, weight", "INT8 × INT8", 8),
        ("sum + bias", "INT32", 32),
        ("× mult", "INT64", 64),
        ("RSR by shift", "INT64", 64),
        ("saturate", "INT8 or INT16", 8),
    ]
    parts = []
    for i, (name, kind, bits) in enumerate(boxes):
        x = 20 + 150 * i
        parts += [f'<rect class="box" x="{x}" y="40" width="120" height="60" rx="4"/>']
        parts += [text(x + 60, 65, name, "middle"), text(x + 60, 87, kind, "middle", "soft")]
        parts += [f'<rect class="fa" x="{x + 60 - bits}" y="112" width="{2 * bits}" height="8"/>']
        if i:
            parts.append(f'<path class="axis" d="M{x - 30} 70h26m-6 -5l6 5l-6 5"/>')
    parts.append(text(20, 24, "linear: one rounding, at the end"))
    parts.append(text(20, 142, "bars: bits of the value", kind="soft"))
    return picture(760, 155, "Widths inside of a linear layer", parts)


def power() -> str:
    """2^-f in softmax2: the quadratic, the straight line of the paper, and their errors."""
    f = np.arange(0, 2**15, 128)
    exact = 2.0 ** -(f / 2**15)

    def approximate(a1: int, a2: int) -> Any:
        return (32767 - ((f * (a1 - ((a2 * f) >> 15))) >> 15)) / 2**15

    quadratic, straight = approximate(21955, 5571), approximate(2**14, 0)
    xs = (f / 2**15).tolist()
    left = Chart((50, 40, 270, 220), (0, 1), (0.5, 1))
    right = Chart((420, 40, 270, 220), (0, 1), (-1, 5))
    parts = [
        *left.axes([0, 0.5, 1], [0.5, 0.75, 1], "2^-f"),
        *right.axes([0, 0.5, 1], [-1, 0, 1, 2, 3, 4, 5], "error, % of 1"),
    ]
    for values, kind in ((straight, "b"), (quadratic, "a")):
        parts.append(left.line(list(zip(xs, values.tolist(), strict=True)), kind))
        parts.append(right.line(list(zip(xs, (100 * (values - exact)).tolist(), strict=True)), kind))
    parts.append(left.line(list(zip(xs, exact.tolist(), strict=True)), "c"))
    entries = [("a", "quadratic (21955, 5571)"), ("b", "straight line (16384, 0)"), ("c", "2^-f")]
    return picture(720, 360, "The exponential of softmax2", [*parts, *key(60, 300, entries)])


def softmax() -> str:
    """A row of logits and its probabilities, integers and reals."""
    logits = np.array([[300, -200, 900, 100, 760, -1000, 500, 0]], np.int16)
    found = RUN["softmax2"](logits, frac_bits=8, a1=21955, a2=5571)[0] / 2**15
    real = 2.0 ** (logits[0] / 256)
    real = real / real.sum()
    chart = Chart((50, 40, 560, 200), (-0.5, 7.5), (0, 0.6))
    parts = [*chart.axes([], [0, 0.2, 0.4, 0.6], "softmax2 of a row of INT16 logits, 8 fraction bits")]
    for i, (q, p, r) in enumerate(zip(logits[0].tolist(), found.tolist(), real.tolist(), strict=True)):
        (x, y), (_, base) = chart.at(i, p), chart.at(i, 0)
        parts.append(f'<rect class="fa" x="{number(x - 18)}" y="{number(y)}" width="36" height="{number(base - y)}"/>')
        parts += [chart.line([(i - 0.35, r), (i + 0.35, r)], "b"), text(x, base + 18, str(q), "middle", "soft")]
    return picture(
        650, 310, "Integer softmax", [*parts, *key(70, 285, [("b", "real softmax; bars are the integers / 2^15")])]
    )


def gelu() -> str:
    """The three GELUs on every INT8 value, real value = q / 32."""
    q = np.arange(-128, 128, dtype=np.int8)
    xs = q / 32
    exact = [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in xs.tolist()]
    table = np.clip(np.floor(np.array(exact) * 32 + 0.5), -128, 127).astype(np.int8)
    by_table = RUN["gelu_table"](q, table=table) / 32
    arguments = {"i0": 32, "k_inter": 10, "int_div_kind": "normalized", "k_out": 8, "mult": 2**30, "shift": 37}
    by_shift = RUN["sigmoid_gelu"](q[None], lam=6, **arguments)[0] / 32
    left, right = Chart((50, 40, 270, 220), (-4, 4), (-1, 4)), Chart((420, 40, 270, 220), (-4, 4), (-0.1, 0.1))
    parts = [
        *left.axes([-4, -2, 0, 2, 4], [-1, 0, 1, 2, 3, 4], "GELU"),
        *right.axes([-4, -2, 0, 2, 4], [-0.1, -0.05, 0, 0.05, 0.1], "error"),
    ]
    for values, kind in ((by_shift, "b"), (by_table, "a")):
        parts.append(left.line(list(zip(xs.tolist(), values.tolist(), strict=True)), kind))
        parts.append(right.line(list(zip(xs.tolist(), (values - exact).tolist(), strict=True)), kind))
    parts.append(left.line(list(zip(xs.tolist(), exact, strict=True)), "c"))
    entries = [("a", "gelu_table"), ("b", "sigmoid_gelu, from shifts and adds"), ("c", "x Φ(x)")]
    return picture(720, 360, "Integer GELU", [*parts, *key(60, 300, entries)])


def windows() -> str:
    """Overlapping windows of an image of 480 x 360 pixels, and how many cover a row and a column."""
    width, height, window, stride = 480, 368, 256, 224
    tops, lefts = starts(height, window, stride), starts(width, window, stride)
    parts = [text(40, 26, "480 × 360 pixels, padded to 480 × 368, windows of 256, stride 224")]
    parts += [f'<rect class="box" x="40" y="40" width="{width}" height="{height}"/>']
    parts += [
        f'<rect class="window" x="{40 + x}" y="{40 + y}" width="{window}" height="{window}"/>'
        for y in tops
        for x in lefts
    ]
    for origins, size, across in ((lefts, width, True), (tops, height, False)):
        marks = sorted({0, size, *origins, *(origin + window for origin in origins)})
        for a, b in itertools.pairwise(marks):
            count = sum(origin <= a < origin + window for origin in origins)
            place = (40 + (a + b) / 2, 40 + height + 20) if across else (40 + width + 14, 44 + (a + b) / 2)
            parts.append(text(*place, str(count), "middle", "soft"))
    parts.append(text(40, 40 + height + 42, "numbers: how many windows cover the column, the row", kind="soft"))
    return picture(570, 465, "Windows", parts)


PICTURES: Mapping[str, Callable[[], str]] = {
    f"pictures/{draw.__name__}.svg": draw for draw in (quantization, rounding, pipeline, power, softmax, gelu, windows)
}

# ------------------------------------------------------------------------------------------------------------ main

PARTS: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "cli": {"CLI.md": cli_page},
    "api": {"API.md": api_page},
    "pictures": PICTURES,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write or compare; the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated part of docs/.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.parts) - set(PARTS))
    if unknown:
        parser.error(f"{unknown[0]!r} is unknown, expected {', '.join(PARTS)}")
    wrong = 0
    for part in args.parts or PARTS:
        for name, make in PARTS[part].items():
            path, made = DOCS / name, make()
            if not args.check:
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, made.encode())
            elif not path.is_file() or path.read_text(encoding="utf-8") != made:
                print(f"{path}: is not what its source gives; run python tools/make_docs.py")
                wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
