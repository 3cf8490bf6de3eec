"""patchify (SPEC 4.2)."""

from __future__ import annotations

from typing import Any

from intseg.arith.recorder import Recorder

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


EXAMS = (
    Exam(
        "patchify",
        "4.2",
        branches=_BRANCHES,
        mistakes=(
            Mistake("channel_first", "channels first inside a patch", {"result": _channel_first}),
            Mistake("column_patches", "patches column by column", {"result": _column_patches}),
        ),
    ),
)
