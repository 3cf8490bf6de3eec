"""Images at another size: antialiased bilinear with fixed-point weights, the bits of Pillow's BILINEAR (SPEC.md, 7).

A pixel of the new image is the weighted mean of those under a tent around its centre; the tent is as wide as two pixels
of the coarser image. Columns first, then rows, with uint8 between.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

BITS = 22
"""Of the weights of a pixel, which sum to nearly 2^22."""


class Weights(NamedTuple):
    """Of one axis: what every new pixel takes from the old ones.

    first   int64 [size]: the first old pixel
    taken   int64 [size]: how many, at least 1
    weight  int32 [size, most]: in parts of 2^22, zeros behind `taken`
    """

    first: NDArray[np.int64]
    taken: NDArray[np.int64]
    weight: NDArray[np.int32]


def weights_of(old: int, new: int) -> Weights:
    """The weights of an axis of `old` pixels that gets `new` ones, both at least 1.

    In halves of a pixel over old * new, the centre of old pixel i lies at (2 i + 1) new, that of new pixel x at
    (2 x + 1) old. The tent is 2 max(old, new) - |distance|; the quotient by the sum of a pixel is rounded half up.
    """
    tent, pixel = 2 * max(old, new), np.arange(new, dtype=np.int64)
    centre = (2 * pixel + 1) * old
    # (2 i + 1) new > centre - tent, (2 i + 1) new < centre + tent
    first = np.maximum((centre - tent - new) // (2 * new) + 1, 0)
    last = np.minimum(-((new - centre - tent) // (2 * new)) - 1, old - 1)
    index = first[:, None] + np.arange(int((last - first).max()) + 1)
    height = np.where(index <= last[:, None], tent - np.abs((2 * index + 1) * new - centre[:, None]), 0)
    total = height.sum(axis=1, keepdims=True)
    weight = ((height << BITS + 1) + total) // (2 * total)
    return Weights(first, last - first + 1, weight.astype(np.int32))


def resize(rgb: Pixels, height: int, width: int) -> Pixels:
    """The image uint8 [H, W, 3] at another size, uint8 [height, width, 3]; the same array where that is its own.

    result = min((sum of weight * pixel + 2^21) >> 22, 255) along the columns, then along the rows. The weights of a
    pixel sum to 2^22 + 2^16 at most (2^17 of them, each rounded by a half), so the sum stays below 2^31.
    """
    if width != rgb.shape[1]:
        rgb = _along_rows(rgb.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return np.ascontiguousarray(rgb if height == rgb.shape[0] else _along_rows(rgb, height))


def _along_rows(rgb: Pixels, size: int) -> Pixels:
    """The first axis of [n, m, 3] at another size."""
    first, count, weight = weights_of(rgb.shape[0], size)
    result = np.empty((size, *rgb.shape[1:]), np.uint8)
    for i, (start, n) in enumerate(zip(first.tolist(), count.tolist(), strict=True)):
        total = np.einsum("i,ijk->jk", weight[i, :n], rgb[start : start + n].astype(np.int32))
        result[i] = np.minimum((total + (1 << BITS - 1)) >> BITS, 255)
    return result
