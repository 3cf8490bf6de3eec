"""How the commands of this folder end."""

from __future__ import annotations

import sys
from collections.abc import Callable

from intseg.errors import IntsegError


def ended(program: str, work: Callable[[], object]) -> int:
    """Do it; the exit code, with one line on standard error where it is not 0."""
    try:
        work()
    except IntsegError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    return 0
