#!/usr/bin/env python3
"""Hostile neighbours: what shares the folder with a command, and models whose names draw; contents are for fuzz.py.

    python tests/trust/neighbours.py --seconds 60 --seed 1      so long; counts of what was planted and done, the rate
    python tests/trust/neighbours.py --count 10000              so many
    python tests/trust/neighbours.py --kind drawing             one kind

    planted     links to a victim, pipes, devices, folders, hard links and unreadable files in the place of what a
                command reads or writes: images, weights, lists, palettes, journals, outputs, temporaries, folders
    drawing     accepted models with names and classes of anybody's choice: legend, report, card, inspect
    two         two commands at work in one folder, with different models: one is told so, or both sets are whole

A failure is a code other than 0 to 4, more or less than one line of error where there is one, text that moves what is
near it, a victim that changed, a device or a link that is gone, more than 2 s for a command (not those in which it had
no processor), a mixture of two runs. Exit code 0 without failures, 1 with.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from unittest import mock
from xml.etree import ElementTree

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hostile.graphs import linear_graph

from intseg import api, files, store
from intseg.cli import main as cli
from intseg.errors import ModelError
from intseg.images import overlay as overlays
from intseg.reports import card, graph_drawing, page
from intseg.reports import inspect as inspect_model

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 2.0
"""Seconds that a command may take."""

MOVES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""What no page, no drawing and no line of a terminal may hold."""

_COMMON = ["-w", "w.safetensors", "--backend", "numpy"]
COMMANDS: dict[str, list[str]] = {
    "infer": ["infer", "in/a.png", "-o", "out/a_labels.png", "--overlay", "out/a_overlay.png", "--palette", "p.txt"],
    "batch": ["infer", "in", "-r", "-o", "out", "--jsonl", "out/all.jsonl", "--resume", "--label-map", "map.json"],
    "list": ["infer", "@list.txt", "-o", "out", "--force"],
    "eval": ["eval", "--images", "in", "--labels", "truth", "--resume", "out/j.jsonl", "--compare-with", "before.json"],
    "trace": ["trace", "in/a.png", "-o", "out/t.safetensors"],
    "report": ["report", "in/a.png", "-o", "out/r.html"],
    "diff": ["diff", "t.safetensors", "d", "--html", "out/d.html"],
    "inspect": ["inspect", "w.safetensors", "--svg", "out/g.svg", "--dot", "out/g.dot"],
    "flatten": ["flatten", "w.safetensors", "-o", "out/w.flat"],
    "card": ["card", "folder", "-o", "out/card", "--metrics", "before.json"],
    "dump": ["dump", "t.safetensors", "-o", "out/dump", "--format", "hex"],
    "undump": ["dump", "--read", "d", "-o", "out/u.safetensors"],
}
"""Commands in the folder that `furnish` makes, without -w where they have it."""

PLACES: dict[str, tuple[str, ...]] = {
    "infer": ("in/a.png", "out/a_labels.png", "out/a_overlay.png", "p.txt", "w.safetensors", "out/.a_labels.png.PART"),
    "batch": (
        *("in/a.png", "in/b.png", "out/a_labels.png", "out/.intseg-journal.jsonl", "out/all.jsonl", "map.json"),
        *(
            "out/errors.jsonl",
            "out",
            "out/sub",
            "out/sub/c_labels.png",
            "in/sub",
            "w.safetensors",
            "out/.a_labels.png.PART",
        ),
    ),
    "list": ("list.txt", "in/a.png", "out/b_labels.png", "out/errors.jsonl"),
    "eval": ("truth/a.png", "in/b.png", "out/j.jsonl", "before.json", "truth", "w.safetensors"),
    "trace": ("in/a.png", "out/t.safetensors", "w.safetensors", "out/.t.safetensors.PART"),
    "report": ("in/a.png", "out/r.html", "w.safetensors"),
    "diff": ("t.safetensors", "d/manifest.json", "d/merged.npy", "out/d.html", "d"),
    "inspect": ("w.safetensors", "out/g.svg", "out/g.dot"),
    "flatten": ("w.safetensors", "out/w.flat"),
    "card": ("folder/config.json", "folder/model.safetensors", "before.json", "out/card", "folder"),
    "dump": ("t.safetensors", "out/dump", "out/.dump.PART"),
    "undump": ("d/manifest.json", "d/merged.npy", "out/u.safetensors"),
}
"""What may be planted for a command; PART stands for the rest of a temporary's name."""


class Failure(Exception):
    """What must not happen."""


# ------------------------------------------------------------------------------------------------------------- planted


def furnish(folder: Path) -> None:
    """A working folder with one of everything that the commands read."""
    shutil.copytree(_furnished(), folder, symlinks=True, dirs_exist_ok=True)


_MADE: list[Path] = []


def _furnished() -> Path:
    if not _MADE:
        folder = Path(tempfile.mkdtemp(prefix="neighbours-"))
        for name in ("in", "in/sub", "truth", "truth/sub", "out", "folder"):
            (folder / name).mkdir()
        store.save(linear_graph(), folder / "w.safetensors")
        shutil.copy(folder / "w.safetensors", folder / "folder" / "model.safetensors")
        (folder / "folder" / "config.json").write_text('{"id2label": {"0": "a", "1": "b", "2": "c"}}')
        for name in "ab":
            pixels = np.random.default_rng(ord(name)).integers(0, 3, (9, 11), np.uint8)
            for place in ("in", "truth"):
                Image.fromarray(pixels).save(folder / place / f"{name}.png")
        for place in ("in", "truth"):
            shutil.copy(folder / place / "a.png", folder / place / "sub" / "c.png")
        (folder / "p.txt").write_text("road #010203\n")
        (folder / "map.json").write_text('{"*": 3}')
        (folder / "list.txt").write_text("in/a.png\nin/b.png\n")
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
            made = [cli.main(["trace", "in/a.png", "-o", "t.safetensors", *_COMMON, "-q"])]
            made += [cli.main(["dump", "t.safetensors", "-o", "d", "-q"])]
            made += [cli.main(["eval", "--images", "in", "--labels", "truth", *_COMMON, "--json", "-q"])]
        (folder / "before.json").write_text(printed.getvalue())
        assert made == [0, 0, 0], made
        _MADE.append(folder)
    return _MADE[0]


def _plants(victim: Path) -> dict[str, Callable[[Path], object]]:
    return {
        "link to a file": lambda path: path.symlink_to(victim),
        "link to nothing": lambda path: path.symlink_to(victim.parent / "nothing"),
        "link to a folder": lambda path: path.symlink_to(victim.parent),
        "link to itself": lambda path: path.symlink_to(path.name),
        "link to a device": lambda path: path.symlink_to("/dev/zero"),
        "hard link": lambda path: os.link(victim, path),
        "pipe": lambda path: os.mkfifo(path),
        "folder": lambda path: path.mkdir(),
        "empty": lambda path: path.write_bytes(b""),
        "noise": lambda path: path.write_bytes(Random(1).randbytes(300)),
        "sparse": lambda path: os.truncate(os.open(path, os.O_RDWR | os.O_CREAT), 2**40),
        "gone": lambda path: None,
    }


def planted(r: Random, work: Path) -> str:
    """One command with one to three things planted. Returns what was."""
    name = r.choice(list(COMMANDS))
    folder, victims = work / "folder", work / "victims"
    for path in (folder, victims):
        shutil.rmtree(path, ignore_errors=True)
    victims.mkdir()
    (victims / "victim").write_bytes(b"not yours\n" * 20)
    furnish(folder)
    plants = _plants(victims / "victim")
    done = []
    for place in r.sample(PLACES[name], r.randint(1, 2)):
        path = folder / place.replace("PART", f"{r.getrandbits(32):08x}.part")
        if not path.parent.is_dir() or path.parent.is_symlink():
            continue
        kind = r.choice(list(plants))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        plants[kind](path)
        done.append((path, kind))
    before = {path: _state(path) for path, _ in done if not path.name.endswith(".part")}
    code = _command([*COMMANDS[name], *(_COMMON if name not in _BARE else [])], folder)
    _judge(victims, done, before)
    return f"planted {name}, code {code}"


_BARE = ("inspect", "flatten", "card", "dump", "undump", "diff")
"""Commands that take neither -w nor --backend here."""


def _state(path: Path) -> tuple[str, str]:
    """What stands at a name, without following it."""
    if path.is_symlink():
        return "link", os.readlink(path)
    return ("pipe", "") if path.is_fifo() else ("", "")


def _judge(victims: Path, done: Sequence[tuple[Path, str]], before: dict[Path, tuple[str, str]]) -> None:
    if sorted(os.listdir(victims)) != ["victim"] or (victims / "victim").read_bytes() != b"not yours\n" * 20:
        raise Failure(f"the victim changed: {sorted(os.listdir(victims))}, planted {done}")
    for path, state in before.items():
        if state[0] and _state(path) != state:
            raise Failure(f"{path.name}: was {state}, is {_state(path)}, planted {done}")


def _clock() -> float:
    """Seconds that this process worked or waited for something; not those that it waited for a processor."""
    try:
        waited = int(Path("/proc/self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError):  # not Linux
        waited = 0.0
    return time.monotonic() - waited


def _command(argv: list[str], folder: Path) -> int:
    """Run a command line here. Raises Failure for what it must not do."""
    out, err, start = io.StringIO(), io.StringIO(), _clock()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(argv)
    seconds = _clock() - start
    errors = [line for line in err.getvalue().splitlines() if line.startswith("intseg: ")]
    told = len(errors) == 1 if argv[0] != "infer" or code != 4 else len(errors) >= 1
    if code not in range(5) or (code > 1 and not told and "errors.jsonl" not in err.getvalue()):
        raise Failure(f"{argv}: code {code}, {err.getvalue()!r:.400}")
    if found := MOVES.search(out.getvalue().replace("\n", "")) or MOVES.search(err.getvalue().replace("\n", "")):
        raise Failure(f"{argv}: printed {found[0]!r}")
    if seconds > PATIENCE:
        raise Failure(f"{argv}: took {seconds:.1f} s")
    return code


# ------------------------------------------------------------------------------------------------------------- drawing

_REFUSED = ("\x00", "\n", "\x1b[2J", "\x9b", "\ud800", "W" * 1000)
_PIECES = ("\u202e", "\u2066", "\u200b", "\ufeff", "\U000e0041", "\U0001f600", "\u2028", "e\u0301", "歩", "W" * 60, " ")
_PIECES += ("<b>", "&", '"', "'", "|", "`", "-->", "</svg>", "\\", "$(x)", "%s", "{0}", "---\\n", "[x](y)", "#")


def _name(r: Random) -> str:
    words = [r.choice(_PIECES) for _ in range(r.choice((1, 2, 5, 30)))]
    return "".join([*words, r.choice(_REFUSED)] if r.random() < 0.02 else words)


def drawing(r: Random, work: Path) -> str:
    """A model with names of anybody's choice: refused, or drawn in every way."""
    graph = linear_graph()
    classes = tuple(_name(r) + str(i) * r.randint(0, 1) for i in range(3))
    info = dataclasses.replace(graph.info, name=_name(r), recipe=_name(r), source=_name(r), classes=classes)
    path = work / "m.safetensors"
    try:
        path.write_bytes(store.dumps(dataclasses.replace(graph, info=info)))
        model = api.load(path)
    except ModelError:
        return "drawing refused"
    texts = ["\n".join(inspect_model.lines(model)), graph_drawing.dot(model.graph), repr(model).replace("\n", "")]
    drawn = graph_drawing.svg(model)
    ElementTree.fromstring(drawn)
    with mock.patch.object(card, "golden_digest", return_value="0" * 64):
        texts += [drawn, card.readme(model, card.Facts(data=_name(r), license=_name(r)))]
    look = page.look(np.full((9, 8, 3), r.randrange(256), np.uint8), model, "numpy")
    texts += [page.page(model, [dataclasses.replace(look, name=_name(r))]).decode()]
    legend = overlays.add_legend(Image.new("RGB", (9, 8)), [overlays.LegendEntry((1, 2, 3), c) for c in classes])
    if legend.width > 2000 or legend.height > 1000:
        raise Failure(f"legend of {legend.size} for {classes!r:.300}")
    for i, text in enumerate(texts[1:]):
        if found := MOVES.search(text):
            raise Failure(f"text {i + 1} holds {found[0]!r}: {text[max(0, found.start() - 60) : found.end() + 20]!r}")
    return "drawing drawn"


# ---------------------------------------------------------------------------------------------------------------- two


def two(r: Random, work: Path) -> str:
    """Two processes that write into one folder, with different models and options."""
    folder = work / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    furnish(folder)
    other = dataclasses.replace(linear_graph(), info=dataclasses.replace(linear_graph().info, name="x"))
    other.tensors["head.bias"][:] = [0, 10**6, -(10**6)]
    store.save(other, folder / "x.safetensors")
    argv = [sys.executable, "-m", "intseg.cli", "infer", "in", "-o", "out", "--backend", "numpy", "-q", "-w"]
    how = r.choice((["--force"], ["--resume"], []))
    start = [subprocess.Popen(
        [*argv, weights, *how], cwd=folder, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) for weights in ("w.safetensors", "x.safetensors")]  # fmt: skip
    codes = [(process.communicate(timeout=900)[1], process.returncode)[1] for process in start]
    if not set(codes) <= {0, 2, 4} or 0 not in codes:
        raise Failure(f"two runs with {how} ended with {codes}")
    sets = []
    for weights in ("w.safetensors", "x.safetensors"):
        model = api.load(folder / weights)
        found = [api.run(folder / "in" / f"{name}.png", model, "numpy").png() for name in "ab"]
        sets.append([hashlib.sha256(data).hexdigest() for data in found])
    there = [hashlib.sha256((folder / "out" / f"{name}_labels.png").read_bytes()).hexdigest() for name in "ab"]
    if there not in sets:
        raise Failure(f"two runs with {how} ended with {codes} and a mixture")
    return f"two runs, codes {sorted(codes)}"


KINDS: dict[str, tuple[Callable[[Random, Path], str], int]] = {
    "planted": (planted, 30),
    "drawing": (drawing, 60),
    "two": (two, 1),
}
"""What is done, and its share of the cases."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="neighbours.py", description="Hostile neighbours.")
    parser.add_argument("--seconds", type=float, default=60, help="of real time (60)")
    parser.add_argument("--count", type=int, default=10**9, help="cases at most")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (0)")
    parser.add_argument("--kind", choices=KINDS, help="only these")
    args = parser.parse_args(argv)
    files.NO_WRITER, files.SILENCE = 0.1, 1.0
    names = [args.kind] if args.kind else list(KINDS)
    weights = [KINDS[name][1] for name in names]
    counts: Counter[str] = Counter()
    failures = 0
    slowest = dict.fromkeys(names, 0.0)
    start, index = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        _furnished()
        while time.monotonic() - start < args.seconds and index < args.count and failures < 20:
            r = Random((args.seed << 40) + index)
            (name,) = r.choices(names, weights)
            began = _clock()
            try:
                counts[KINDS[name][0](r, Path(folder))] += 1
            except Exception as error:
                failures += 1
                print(f"failure: case {index}, {name}: {type(error).__name__}: {error!s:.600}", flush=True)
            slowest[name] = max(slowest[name], _clock() - began)
            index += 1
    shutil.rmtree(_MADE.pop())
    seconds, memory = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for what, count in sorted(counts.items()):
        print(f"{what:40} {count:8}")
    print(
        f"{index} cases in {seconds:.0f} s, {index / seconds:.1f} a second, {memory:.0f} MiB; the slowest: "
        + ", ".join(f"{name} {longest:.2f} s" for name, longest in slowest.items())
    )
    print(f"{failures} failures")
    found = {"cases": index, "seconds": seconds, "rate": index / seconds, "slowest": slowest, "MiB": memory}
    print(json.dumps({**found, "failures": failures, "counts": counts}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
