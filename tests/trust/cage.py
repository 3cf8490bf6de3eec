"""Code that may be wrong, such as a mutant that removes the wrong file, changes nothing outside of one folder.

Put into a checkout as sitecustomize.py, it holds for every Python process that is started there with CAGE set.
"""

from __future__ import annotations

import os
import sys
from typing import Any

PATHS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.utime"), (0,)),
    **dict.fromkeys(("os.rename", "os.link"), (0, 1)),
    **dict.fromkeys(("os.symlink",), (1,)),
    **dict.fromkeys(("shutil.rmtree", "shutil.move", "os.mknod", "os.mkfifo"), (0,)),
}
"""Audit events that change a path, and which of their arguments are paths."""

FOLDERS: dict[str, int] = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.rename": 2, "shutil.rmtree": 1}
"""Where the descriptor of a folder stands that a path is relative to."""

_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def enter(folder: str) -> None:
    """From now on nothing outside of a folder is written, removed or renamed: PermissionError."""
    inside = os.path.realpath(folder) + os.sep
    busy = False

    def check(path: Any, near: object) -> None:
        nonlocal busy
        if not isinstance(path, str | bytes | os.PathLike):
            return  # an open file: opening it was checked
        busy = True  # realpath asks the file system
        try:
            text = os.fsdecode(path)
            if isinstance(near, int) and near >= 0 and not os.path.isabs(text):
                text = os.path.join(os.readlink(f"/proc/self/fd/{near}"), text)
            real = os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text)) + os.sep
        finally:
            busy = False
        if not real.startswith((inside, "/dev/null/", "/dev/full/", "/dev/tty/")):
            raise PermissionError(f"outside of the cage: {text}")

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if busy:
            return
        if event == "open" and isinstance(args[2], int) and args[2] & _WRITE:
            check(args[0], None)
        elif event == "os.kill" and args[0] <= 1:
            raise PermissionError("outside of the cage: every process")
        for place in PATHS.get(event, ()):
            near = args[FOLDERS[event]] if event in FOLDERS and len(args) > FOLDERS[event] else None
            check(args[place], near)

    sys.addaudithook(audit)


if __name__ == "sitecustomize" and "CAGE" in os.environ:
    enter(os.environ["CAGE"])
