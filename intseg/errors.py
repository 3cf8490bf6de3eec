"""One family of exceptions; the command line turns each into one line and an exit code.

0 ok, 1 mismatch, 2 usage, 3 bad model, 4 bad input or IO, 5 internal.
"""

import difflib
from collections.abc import Iterable


class IntsegError(Exception):
    """Base of every error intseg raises on purpose: one line naming the found, the expected and the next step."""

    exit_code = 5


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


def suggest(word: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' where a known word is close to the one given, else nothing."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""
