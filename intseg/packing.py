"""INT8 tensors with 2 to 8 bits an element, as files hold them: low bits first, without gaps (SPEC 6.1).

Eight elements of b bits are b bytes, so they are shifted in and out of one word of 64 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


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
    bytes_ = np.zeros((groups, 8), np.uint8)
    bytes_[:, :bits] = padded.reshape(groups, bits)
    words = bytes_.view("<u8").reshape(-1)
    found = np.empty((groups, 8), np.uint8)
    for i in range(8):
        found[:, i] = (words >> np.uint64(i * bits)).astype(np.uint8)
    # The sign of an element goes to the highest bit of its byte and is shifted back from there.
    signed = (found << np.uint8(8 - bits)).view(np.int8) >> np.int8(8 - bits)
    return signed.reshape(-1)[:count].reshape(shape)
