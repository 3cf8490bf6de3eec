"""INT8 tensors with 2 to 8 bits an element, as files hold them: low bits first, without gaps (SPEC 6.1).

Eight elements of b bits are b bytes, so they are shifted in and out of one word of 64 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 13
"""Words that are unpacked at a time: they stay in a cache."""


def packed_bytes(count: int, bits: int) -> int:
    """ceil(count bits / 8)."""
    return -(-count * bits // 8)


def pack(values: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Elements in C order as a stream of `bits` each: uint8 [ceil(n bits / 8)].

    values  int8, any shape, in [-2^(bits - 1), 2^(bits - 1) - 1]
    bits    2 to 8
    """
    low = np.zeros((-(-values.size // 8), 8), np.uint64)
    low.reshape(-1)[: values.size] = values.reshape(-1).view(np.uint8) & np.uint8(2**bits - 1)
    words = low[:, 0]
    for i in range(1, 8):
        words |= low[:, i] << np.uint64(i * bits)
    stream = np.ascontiguousarray(words).astype("<u8").view(np.uint8).reshape(-1, 8)[:, :bits]
    return stream.reshape(-1)[: packed_bytes(values.size, bits)].copy()


def unpack(stream: NDArray[np.uint8], shape: Sequence[int], bits: int) -> NDArray[np.int8]:
    """What `pack` packed. Raises ValueError, with what was expected, for a stream that `pack` does not give."""
    count = math.prod(shape)
    if bits not in range(2, 9):
        raise ValueError(f"{bits} bits, expected 2 to 8")
    if stream.dtype != np.uint8 or stream.shape != (packed_bytes(count, bits),):
        raise ValueError(
            f"{stream.dtype.name} {list(stream.shape)}, expected uint8 [{packed_bytes(count, bits)}] for {count} "
            f"elements of {bits} bits"
        )
    used = count * bits % 8
    if used and stream[-1] >> used:
        raise ValueError(f"the last byte is {stream[-1]}, expected its high {8 - used} bits to be zero")
    groups = -(-count // 8)
    padded = np.zeros(groups * bits, np.uint8)
    padded[: len(stream)] = stream
    found = np.empty((groups, 8), np.uint8)
    for start in range(0, groups, _BLOCK):
        block = found[start : start + _BLOCK]
        block[:, :bits] = padded[start * bits : (start + _BLOCK) * bits].reshape(-1, bits)
        block[:, bits:] = 0
        _spread(block.view("<u8").reshape(-1), bits)
        sign = np.uint8(1 << (bits - 1))
        block ^= sign
        block -= sign
    return found.reshape(-1)[:count].view(np.int8).reshape(shape)


def _spread(words: NDArray[np.uint64], bits: int) -> None:
    """Eight elements from the low 8 `bits` of every word to a byte each, in place: halves move apart, three times."""
    for half, lanes in ((4, 1), (2, 0x1_0000_0001), (1, 0x1_0001_0001_0001)):
        low = ((1 << half * bits) - 1) * lanes
        high = words & np.uint64(low << half * bits)
        words &= np.uint64(low)
        words |= high << np.uint64(half * (8 - bits))
