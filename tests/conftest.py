"""Long files of tests come first, each in one process: the suite ends when its last test does.

xdist (`--dist worksteal`) deals the list of tests out in pieces, and moves what is at the end of one to whoever has
none left. What is at the beginning of a piece stays there, so a fixture of a file is made once. A random order
(pytest-randomly) is left as it is.
"""

from __future__ import annotations

import gc
import math
import os
from collections import defaultdict
from collections.abc import Iterator

import pytest

from intseg import progress

SECONDS = {
    "test_matrix": 75,
    "test_ray": 40,
    "test_report_tables": 32,
    "test_export": 26,
    "test_docs": 25,
    "test_verify": 16,
    "test_fuzz": 15,
    "test_reader": 14,
    "test_training": 12,
    "test_crash": 10,
    "test_onnx": 12,
    "test_packaging": 10,
    "test_no_float": 9,
    "test_mutate": 9,
    "test_spread": 9,
    "test_jit": 8,
    "test_prove": 7,
    "test_doctor": 7,
    "test_site": 6,
    "test_machines": 5,
}
"""Files that take long, and roughly how long on one core; all others are many short tests."""


@pytest.fixture(autouse=True)
def no_line_by_the_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work of earlier tests does not count, and only the tests of progress see the lines of a slow machine."""
    monkeypatch.setattr(progress.Progress, "_said", -progress.EVERY)
    monkeypatch.setattr(progress.Progress, "_seen", -progress.EVERY)
    if request.path.stem != "test_progress":
        monkeypatch.setattr(progress, "EVERY", math.inf)


@pytest.fixture(autouse=True, scope="session")
def no_wait_for_the_disk() -> Iterator[None]:
    """Power does not fail here: in this process a flush only looks at its descriptor, 5 ms faster.

    That files are flushed, and in which order, is what test_files and test_crash check.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


def pytest_collection_finish() -> None:
    """What is loaded now stays to the end: the collector of garbage need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files to the beginnings of the pieces, the next longest always to the shortest; otherwise as it was."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if count == 1 or config.pluginmanager.hasplugin("randomly"):
        return
    files = defaultdict(list)
    for item in items:
        files[item.path.stem if item.path.stem in SECONDS else ""].append(item)
    short = files.pop("", [])
    pieces: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(files, key=lambda name: -SECONDS[name]):
        min(pieces, key=lambda piece: sum(SECONDS[long] for long in piece)).append(name)
    found, left = [], len(items)
    for i, piece in enumerate(pieces):
        mine = [item for name in files if name in piece for item in files[name]]
        room = max(left // (count - i) - len(mine), 0) if i < count - 1 else len(short)
        found += mine + short[:room]
        del short[:room]
        left = len(items) - len(found)
    items[:] = found
