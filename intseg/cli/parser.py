"""How a command is declared, and the arguments that several commands take. Nothing here needs NumPy."""

from __future__ import annotations

import argparse
import os
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from intseg import files, models
from intseg.cli.printing import Answer
from intseg.errors import MAX_JOBS, MAX_THREADS, InputError, UsageError, number, suggest

COMMAND = "COMMAND"
BACKENDS = ("auto", "numpy", "numba")
LAYOUTS = ("camvid", "ade20k", "cityscapes", "idd_lite", "davis", "vspw", "pairs")


@dataclass(frozen=True)
class Command:
    """A subcommand.

    summary      its line of `intseg --help`
    description  the text of its own help
    arguments    declares its arguments; --json and --quiet are added to every command
    run          carries it out

    Before the work, what is to be written is compared with what is read, and whether it can be written is checked: the
    arguments say which they are by their types, `Read`, `Written` and `WrittenFolder`.
    """

    name: str
    summary: str
    description: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Answer]

    def __call__(self, args: argparse.Namespace) -> Answer:
        """Check what is written, then run."""
        given = list(_values(args))
        read = [path for value in given if isinstance(value, Read) for path in value.paths()]
        written = [value for value in given if type(value) is Written]
        files.require_apart(written, read)
        folders = [Path(value) for value in given if isinstance(value, WrittenFolder)]
        for folder in folders:
            files.require_apart([folder], read)  # two may be one
        for path in written:
            if Path(path).parent not in folders:  # these are made
                require_writable(Path(path))
        return self.run(args)


class Read(str):
    """An argument that is read: a file, or a folder of pictures."""

    def paths(self) -> list[Path]:
        """What must not be written."""
        return [Path(self)]


class ReadHeld(Read):
    """An argument that is read: a file, the folder of a model or a dump, or the name of a bundled model."""

    def paths(self) -> list[Path]:
        """The files of a folder too."""
        return files.held(self)


class Written(str):
    """An argument that is written: a file."""


class WrittenFolder(Written):
    """An argument that is a folder to write."""


def _values(args: argparse.Namespace) -> Iterator[object]:
    for value in vars(args).values():
        yield from value if isinstance(value, list) else [value]


def written(*endings: str) -> Callable[[str], Written]:
    """The type of an argument that is a file to write, of a name with one of these endings.

    A slip must not replace an image or weights by something else.
    """

    def made(text: str) -> Written:
        try:
            return require_ending(text, *endings)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return made


def require_ending(text: str, *endings: str) -> Written:
    """The name of a file to write. Raises UsageError for another ending."""
    if not text.lower().endswith(endings):
        raise UsageError(f"{text}: this file is written as {' or '.join(endings)}; rename it")
    return Written(text)


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number in a range."""

    def made(text: str) -> int:
        try:
            return number(text, low, high)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return made


class Help(argparse.RawDescriptionHelpFormatter):
    """Prose of a description is filled to the width of the terminal; paragraphs with indented lines stay."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(p if "\n " in p else textwrap.fill(p, width) for p in paragraphs) + "\n"


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line, with a suggestion.

    hidden  names of commands that help does not list
    words   what other programs call a command or a file given in its place ends with, and its name here
    """

    hidden: Collection[str] = ()
    words: Mapping[str, str] = {}

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        found = re.search(r"^argument (.*): invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message)
        if found:
            known = re.findall(r"[\w-]+", found[3])
            ending = os.path.splitext(found[2])[1].lower()
            hint = suggest(ending if ending in self.words else found[2], [*known, *self.hidden], self.words)
            if found[1] == COMMAND:
                message = f"no command {found[2]!r}{hint}"
            else:
                message = f"argument {found[1]}: {found[2]!r}{hint}, expected {', '.join(known)}"
        raise UsageError(f"{message}; see {self.prog} --help")


def add_command(subparsers: argparse._SubParsersAction[Parser], command: Command) -> None:
    """The parser of a command."""
    sub = subparsers.add_parser(
        command.name,
        help=command.summary,
        description=command.description,
        formatter_class=Help,
    )
    command.arguments(sub)
    add_common(sub, argparse.SUPPRESS)
    sub.usage = usage(sub)
    sub.set_defaults(run=command, parser=sub)


def add_common(parser: argparse.ArgumentParser, default: object) -> None:
    """What every command takes, after its name or before it."""
    add, common = parser.add_argument, "store_true"
    add("--json", action=common, default=default, help="print JSON for programs instead of text")
    add("-q", "--quiet", action=common, default=default, help="print nothing but errors and JSON")


def usage(parser: argparse.ArgumentParser) -> str:
    """What must be given; the options are listed below it anyway."""
    words = [parser.prog]
    for action in parser._actions:
        name = str(action.metavar or action.dest)
        if not action.option_strings:
            several = {"+": f"{name}...", "*": f"[{name}...]", "?": f"[{name}]"}
            words.append(several.get(str(action.nargs), name))
        elif action.required:
            words.append(f"{action.option_strings[0]} {name}")
    return " ".join([*words, "[options]"])


# ------------------------------------------------------------------------------------------------------- arguments


def add_weights(parser: argparse.ArgumentParser, backend: bool = True, threads: bool = False) -> None:
    """-w, and how to run the model."""
    text = f"weights file or bundled model ({models.DEFAULT})"
    parser.add_argument("-w", "--weights", type=ReadHeld, metavar="W", help=text)
    if backend:
        parser.add_argument("--backend", choices=BACKENDS, default="auto", help="same bits (auto)")
    if threads:
        add_threads(parser)


def add_scale(parser: argparse.ArgumentParser) -> None:
    """--scale."""
    text = "short side at which images are run, labels come at their own size (the model's; native: as they are)"
    parser.add_argument("--scale", type=_scale, metavar="SIDE", help=text)


def _scale(text: str) -> int | str:
    from intseg.graph import MAX_WORKING  # NumPy comes with it

    return text if text == "native" else whole(1, MAX_WORKING // 4)(text)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model that a command is about."""
    text = f"weights file or bundled model ({models.DEFAULT})"
    parser.add_argument("weights", nargs="?", type=ReadHeld, metavar="W", help=text)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """--threads."""
    many = whole(1, MAX_THREADS)
    parser.add_argument("--threads", type=many, metavar="N", help="of the numba backend; default: every core")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """--jobs."""
    parser.add_argument("--jobs", type=whole(1, MAX_JOBS), default=1, metavar="N", help="processes (1)")


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def require_writable(path: Path) -> None:
    """Fail before the work, not after it."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file name")
    files.require_replaceable(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: no folder {path.parent}; create it, or choose another with -o")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: folder {path.parent} is read-only; choose another with -o")
