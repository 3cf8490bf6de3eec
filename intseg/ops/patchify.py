"""patchify: cut an image into square patches, one row of the result each (SPEC 4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intseg.arith import Machine

from ._op import Array, Attr, Op, Value, int_attr, require, require_rank


def patchify(m: Machine, x: Any, *, patch: int) -> Any:
    """Patches in row-major order; inside a patch the order is (row, column, channel).

    x       int8 [H, W, C]   H and W multiples of patch
    return  int8 [(H / patch) (W / patch), patch * patch * C]
    """
    height, width, channels = x.shape
    grid = m.transpose(m.reshape(x, height // patch, patch, width // patch, patch, channels), 0, 2, 1, 3, 4)
    return m.reshape(grid, height // patch * (width // patch), patch * patch * channels)


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    require_rank(inputs[0], 3)
    height, width, channels = inputs[0].shape
    patch = int_attr(attrs, "patch")
    require(
        height % patch == 0 and width % patch == 0,
        f"image of {height} x {width} does not divide into patches of {patch} x {patch}",
    )
    return Value("int8", (height // patch * (width // patch), patch * patch * channels))


OPS = {
    "patchify": Op(2, patchify, (("int8",),), check, attrs={"patch": range(1, 65)}, moves=True),
}
