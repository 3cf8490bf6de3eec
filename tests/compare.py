"""The one comparison of arrays: exact equality of dtype, shape and every element. tests/test_compare.py checks it."""

from __future__ import annotations

import numpy as np


def assert_equal(actual: np.ndarray, expected: np.ndarray, what: str = "result") -> None:
    """Raise AssertionError naming the first difference unless both are integer arrays that agree in everything."""
    assert isinstance(actual, np.ndarray), f"{what} is a {type(actual).__name__}, expected an array"
    assert isinstance(expected, np.ndarray), f"expected value is a {type(expected).__name__}, not an array"
    assert expected.dtype.kind in "iu", f"expected value is {expected.dtype}, not an integer array"
    assert actual.dtype == expected.dtype, f"{what} has dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{what} has shape {actual.shape}, expected {expected.shape}"
    different = np.argwhere(actual != expected)
    if len(different):
        first = tuple(int(i) for i in different[0])
        raise AssertionError(
            f"{what} at {first} is {actual[first]}, expected {expected[first]}; "
            f"{len(different)} of {expected.size} differ"
        )
