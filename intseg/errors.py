"""One family of exceptions; the command line turns each into one line and an exit code.

0 ok, 1 mismatch, 2 usage, 3 bad model, 4 bad input or IO, 5 internal.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

MAX_MESSAGE = 10_000
"""Characters of a message at most."""

MAX_THREADS, MAX_JOBS = 1024, 256
"""What --threads and --jobs may ask for: a thread costs 70 kB, a process what a model takes."""


class IntsegError(Exception):
    """Base of every error intseg raises on purpose: one line naming the found, the expected and the next step."""

    exit_code = 5

    def __str__(self) -> str:
        return one_line(super().__str__())


class MismatchError(IntsegError):
    """Two things that must be equal are not."""

    exit_code = 1


class UsageError(IntsegError):
    """A call or a command line that cannot be carried out as written."""

    exit_code = 2


class ModelError(IntsegError):
    """A weights file or a graph that is not a valid intseg model."""

    exit_code = 3


class InputError(IntsegError):
    """An image, a folder or a file that cannot be read or written."""

    exit_code = 4


def missing_part(error: ImportError) -> str:
    """What to do where intseg.kernels or intseg.tools, symbolic links in a checkout, is not there; else nothing."""
    name = (error.name or "").removeprefix("intseg.").partition(".")[0]
    if name not in ("kernels", "tools") or not Path(__file__).with_name(name).is_file():
        return ""
    return (
        f"intseg/{name} is a file, expected a link: git made this checkout without symbolic links; "
        "run pip install . in it, or git config core.symlinks true and git checkout -f"
    )


def one_line(text: str) -> str:
    """Text for a terminal: one line, at most MAX_MESSAGE characters, what cannot be printed escaped.

    Messages quote files, and a file may hold whatever moves a cursor or fills a disk.
    """
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE - 200]} ... {text[-150:]}"
    return printable(text)[:MAX_MESSAGE]


def clip(text: str, longest: int) -> str:
    """Text of at most so many characters, printable; what is left out shows as an ellipsis."""
    text = printable(text[: longest + 1])
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def printable(text: str) -> str:
    """Text for a terminal or a page, of any length: what cannot be printed escaped, line ends too.

    That is control characters (of C1 too), what changes the direction of text, and halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def number(text: str, low: int, high: int) -> int:
    """A whole number that somebody typed or a file holds. Raises UsageError that states the range."""
    digits = text.removeprefix("-") if low < 0 else text
    if digits.isascii() and digits.isdigit() and len(digits) <= 20 and low <= int(text) <= high:
        return int(text)
    raise UsageError(f"{text[:40]!r} is not a whole number from {low} to {high}")


def suggest(word: str, known: Iterable[str], words: Mapping[str, str] | None = None) -> str:
    """' (did you mean ...?)' where a known word is close to the one given, else nothing.

    words  other words, and the known one that each means
    """
    if len(word) > 100:  # comparing takes the square of the length, and a file may hold any word
        return ""
    meant = {name: name for name in known} | dict(words or {})
    close = difflib.get_close_matches(word, meant, 1)
    return f" (did you mean {meant[close[0]]}?)" if close else ""
