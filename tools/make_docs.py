"""Write what is generated: CLI.md from the parsers, API.md from docstrings, the pictures of ARITHMETIC.md, and the
measured parts of README.md (`readme`, after new results, new times or a new bundled model).

    python tools/make_docs.py              write
    python tools/make_docs.py --check      compare; exit code 1 and the names of what differs
    python tools/make_docs.py --check pictures

The pictures (tools/pictures.py) need matplotlib, the rest does not.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from intseg.cli import main as cli
from intseg.files import write_atomically

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
        f"| [`intseg {name}`](#intseg-{name}) | {_words(summaries.get(name) or '')} |\n" for name in commands.choices
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
    value = (
        " ".join(action.metavar)
        if isinstance(action.metavar, tuple)
        else action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    )
    takes = action.nargs != 0
    names = [f"{name} {value}" if takes else name for name in action.option_strings[-1:]] or [str(value)]
    short = action.option_strings[:-1]
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    needed = ", required" if action.required and action.option_strings else ""
    return f"| {', '.join(f'`{_cell(name)}`' for name in (*short, *names))} | {_words(text)}{needed} |\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _words(text: str) -> str:
    """A cell of plain words: what a terminal shows as it is, Markdown must not take for emphasis, links or tags."""
    return re.sub(r"([*<\[`])", r"\\\1", _cell(text))


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


# ------------------------------------------------------------------------------------------------------------ main


def pictures() -> Mapping[str, Callable[[], str]]:
    """The pictures by file name."""
    from intseg.tools.pictures import PICTURES

    return PICTURES


def page(name: str) -> Callable[[], str]:
    """A page that is written by hand, its measured parts filled."""
    from intseg.tools import readme

    return lambda: readme.filled((DOCS / name).read_text(encoding="utf-8"))


def readme() -> Mapping[str, Callable[[], str | bytes]]:
    """README.md and its picture, and PERFORMANCE.md."""
    from intseg.tools import readme

    return {name: page(name) for name in ("../README.md", "PERFORMANCE.md")} | {"leuven.png": readme.picture_bytes}


PARTS: Mapping[str, Callable[[], Mapping[str, Callable[[], str | bytes]]]] = {
    "cli": lambda: {"CLI.md": cli_page},
    "api": lambda: {"API.md": api_page},
    "pictures": pictures,
    "readme": readme,
    "quantization": lambda: {"QUANTIZATION.md": page("QUANTIZATION.md")},
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
        for name, make in PARTS[part]().items():
            path, made = DOCS / name, make()
            data = made.encode() if isinstance(made, str) else made
            if not args.check:
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, data)
            elif not path.is_file() or not same(path.read_bytes(), data):
                print(f"{path}: is not what its source gives; run python tools/make_docs.py")
                wrong += 1
    return 1 if wrong else 0


def same(stored: bytes, made: bytes) -> bool:
    """Equal bytes; of a PNG equal pixels above the legend, whose font is Pillow's."""
    if not made.startswith(b"\x89PNG"):
        return stored == made
    one, other = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[:360] for data in (stored, made))
    return np.array_equal(one, other)


if __name__ == "__main__":
    sys.exit(main())
