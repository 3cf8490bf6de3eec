"""patchify (SPEC 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from intseg.arith.recorder import Recorder
from intseg.ops import RUN, Call, Value

from ._draw import Draw, Drawn, call, size
from ._exam import Branch, Exam, Mistake

_BRANCHES = (
    Branch("one-pixel", "patch = 1", lambda f: f["patch"] == 1),
    Branch("patch", "patch > 1", lambda f: f["patch"] > 1),
    Branch(
        "grid",
        "several rows and columns of patches, not square",
        lambda f: f["patch"] < f["in0"].shape[0] != f["in0"].shape[1] > f["patch"],
    ),
)


def _channel_first(patches: Any, m: Recorder) -> Any:
    """The order (channel, row, column) inside a patch, as a convolution's weights have it."""
    patch, channels = m.call.attrs["patch"], m.call.inputs[0].shape[2]
    return patches.reshape(-1, patch * patch, channels).transpose(0, 2, 1).reshape(patches.shape)


def _column_patches(patches: Any, m: Recorder) -> Any:
    height, width = (n // m.call.attrs["patch"] for n in m.call.inputs[0].shape[:2])
    return patches.reshape(height, width, -1).transpose(1, 0, 2).reshape(patches.shape)


def _inputs(numbers: Draw) -> Iterator[Call]:
    for patch, rows, columns, channels in ((1, 2, 3, 3), (2, 3, 2, 3), (8, 1, 2, 3), (3, 1, 1, 1)):
        yield call("patchify", numbers.array("int8", patch * rows, patch * columns, channels), patch=patch)


def _draw(d: Draw) -> Drawn:
    patch, rows, columns = size(d), d.within(1, 3), d.within(1, 3)
    return Drawn((Value("int8", (patch * rows, patch * columns, size(d))),), {}, {"patch": patch})


EXAMS = (
    Exam(
        "patchify",
        digest="1af1fd002026115f9953c4752918be40ef7ce965c9a9f64a6bc723a468f1eb96",
        inputs=_inputs,
        draw=_draw,
        real=RUN["patchify"],
        branches=_BRANCHES,
        mistakes=(
            Mistake("channel_first", "channels first inside a patch", {"result": _channel_first}),
            Mistake("column_patches", "patches column by column", {"result": _column_patches}),
        ),
    ),
)
