"""Which files there are: the images of folders, patterns and lists, found by one walk wherever a folder is read."""

from __future__ import annotations

import glob
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from intseg import files
from intseg.errors import InputError, UsageError
from intseg.images.decode import SUFFIXES
from intseg.images.notes import Notes

ENDINGS = {"labels": "_labels.png", "overlay": "_overlay.png", "classes": "_classes.json"}
"""What `infer` adds to the name of an image for its outputs."""


@dataclass(frozen=True)
class Source:
    """One image.

    file  its path as the user gave it or as it was found
    name  of its outputs without their ending, relative to the output folder: "street", "day/street"
    """

    file: str
    name: str


# --------------------------------------------------------------------------------------------------------- folders


@dataclass
class Found:
    """The images of a folder, relative to it with "/" between, sorted; and what was left out, with its reason."""

    files: list[str] = field(default_factory=list)
    left_out: Notes = field(default_factory=Notes)


def walk(
    folder: str | os.PathLike[str], recursive: bool = True, without: Iterable[Path] = (), *, outputs: bool = True
) -> Found:
    """The image files of a folder.

    recursive  its folders too, links to folders among them: each folder once, those that are no link first
    without    folders and files that are left out without a word: those that this command writes
    outputs    whether what `intseg infer` wrote beside its images is left out
    Hidden files and folders, files of other endings and what is no regular file are left out.
    Raises InputError for a folder that cannot be read.
    """
    found = Found()
    top = os.fspath(folder)
    skipped = {identity for path in without if (identity := _identity(path))}
    seen = {_identity(top)}
    places, links = [""], deque[str]()
    while places or links:
        place = places.pop() if places else links.popleft()
        if place and (identity := _identity(os.path.join(top, place))) in seen | skipped:
            if identity in seen:
                found.left_out.add(os.path.join(top, place), "link to a folder that is read already")
            continue
        seen.add(_identity(os.path.join(top, place)))
        folders = _take(found, top, place, recursive, outputs, skipped)
        places += [name for name, linked in reversed(folders) if not linked]
        links += [name for name, linked in folders if linked]
    found.files.sort(key=lambda file: PurePosixPath(file).parts)
    return found


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _take(
    found: Found, top: str, place: str, recursive: bool, outputs: bool, skipped: set[tuple[int, int]]
) -> list[tuple[str, bool]]:
    """Take in the files of one folder; its folders, and whether they are links."""
    try:
        with os.scandir(os.path.join(top, place)) as entries:
            here = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"{os.path.join(top, place)}: cannot read the folder: {error.strerror}; check the permissions"
        ) from None
    stems = {entry.name.rpartition(".")[0] for entry in here}
    folders = []
    for entry in here:
        name = f"{place}/{entry.name}" if place else entry.name
        if reason := _reason(entry, recursive, stems if outputs else set()):
            if not skipped or _identity(entry.path) not in skipped:
                found.left_out.add(entry.path, reason)
        elif _is_folder(entry):
            folders.append((name, entry.is_symlink()))
        else:
            found.files.append(name)
    return folders


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; False for links that go round."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _reason(entry: os.DirEntry[str], recursive: bool, stems: set[str]) -> str | None:
    """Why an entry of a folder is left out; None for one that is not. A link to nothing is taken: it is an error."""
    if entry.name.startswith("."):
        return "hidden"
    if _is_folder(entry):
        return None if recursive else "not looked into without -r"
    _, dot, ending = entry.name.rpartition(".")
    if f".{ending}".lower() not in SUFFIXES:
        return f"ending in .{ending:.20}" if dot else "without an ending"
    written = [entry.name.removesuffix(end) for end in ENDINGS.values() if entry.name.endswith(end)]
    if written and written[0] in stems:
        return "written by intseg infer"
    return None if os.path.isfile(entry.path) or not os.path.exists(entry.path) else "not a regular file"


# --------------------------------------------------------------------------------------------------------- arguments


def is_pattern(argument: str) -> bool:
    """Whether an argument is a pattern for several files, not the name of one that exists."""
    return glob.has_magic(argument) and not os.path.lexists(argument)


def is_one_image(arguments: Sequence[str]) -> bool:
    """Whether the arguments name a single file directly: no folder, pattern, list, or standard input."""
    one = arguments[0]
    return len(arguments) == 1 and not (one == "-" or is_list(one) or os.path.isdir(one) or is_pattern(one))


def is_list(argument: str) -> bool:
    """Whether an argument is a file of names, not the name of one that exists."""
    return argument.startswith("@") and not os.path.lexists(argument)


@dataclass
class Search:
    """How sources are looked for, and what was left out on the way.

    recursive  look into the folders of a folder; their names become part of the outputs' names
    output     the output folder, which is no source
    without    more that is written, and not looked into
    """

    recursive: bool = False
    output: Path | None = None
    without: tuple[Path, ...] = ()
    left_out: Notes = field(default_factory=Notes)

    def find(self, arguments: Sequence[str]) -> tuple[Source, ...]:
        """The images that arguments name, in their order; those of a folder or a pattern sorted by name.

        arguments  files, folders, patterns ("**" is any folders), "@list.txt" (a file or folder a line, "#" comments)
        Raises InputError for a folder, pattern or list without an image, UsageError when a folder is the output too.
        """
        found = [source for argument in arguments for source in self._of(argument)]
        if not found:
            raise InputError(
                f"{' '.join(arguments)}: no image named; give files, folders, or a list with a file a line"
            )
        return tuple(found)

    def _of(self, argument: str) -> Iterator[Source]:
        if argument == "-":
            raise UsageError("'-' is one image on standard input, expected no other source with it")
        if is_list(argument):
            for line in lines(Path(argument[1:])):
                yield from self._named(line)
        elif is_pattern(argument):
            matches = [match for match in sorted(glob.glob(argument, recursive=True)) if not os.path.isdir(match)]
            if not matches:
                raise InputError(
                    f"{argument}: no file matches this pattern; check it, and quote it if the shell expands it"
                )
            beside = {os.path.splitext(match)[0] for match in matches}
            for match in matches:
                if any(match.endswith(end) and match.removesuffix(end) in beside for end in ENDINGS.values()):
                    self.left_out.add(match, "written by intseg infer")
                else:
                    yield Source(match, Path(match).stem)
        else:
            yield from self._named(argument)

    def _named(self, path: str) -> Iterator[Source]:
        """One file, or the images of one folder."""
        if not os.path.isdir(path):
            yield Source(path, Path(path).stem)
            return
        if self.output is not None and _identity(path) == (_identity(self.output) or ()):
            raise UsageError(f"{path}: holds the images and is the output folder, expected different ones; change -o")
        found = walk(path, self.recursive, filter(None, (self.output, *self.without)))
        if not found.files:
            hint = "check the folder" if self.recursive else "-r looks into its folders too"
            held = f", but {found.left_out.short()}" if found.left_out else ""
            raise InputError(f"{path}: no image in this folder{held}; expected {', '.join(SUFFIXES)}; {hint}")
        self.left_out.merge(found.left_out)
        for file in found.files:
            yield Source(os.path.join(path, file), PurePosixPath(file).with_suffix("").as_posix())


def find_sources(arguments: Sequence[str], recursive: bool = False, output: Path | None = None) -> tuple[Source, ...]:
    """As `Search`, without the account of what was left out."""
    return Search(recursive, output).find(arguments)


def lines(path: Path) -> Iterator[str]:
    """The entries of a list file; "-" as its name is standard input."""
    hint = "give a text file with an image a line"
    if str(path) == "-":
        text = files.text_of(sys.stdin.buffer.read(files.MAX_TEXT), "standard input", "the list", hint)
    else:
        text = files.read_text(path, "the list", hint, pipes=True)
    stripped = [line.strip() for line in text.split("\n")]  # splitlines() also splits at other characters
    entries = [line for line in stripped if line and not line.startswith("#")]
    if not entries:
        raise InputError(f"{path}: the list is empty, expected an image a line")
    yield from entries
