"""The comparison helper raises on every kind of wrong answer, and the oracle asserts its ranges."""

import naive
import numpy as np
import pytest
from compare import assert_equal


def test_equal_arrays_pass():
    assert_equal(np.array([[1, -2]], np.int8), np.array([[1, -2]], np.int8))
    assert_equal(np.zeros((0, 3), np.int16), np.zeros((0, 3), np.int16))


def test_one_wrong_element_is_named():
    expected = np.arange(12, dtype=np.int16).reshape(3, 4)
    actual = expected.copy()
    actual[1, 2] += 1
    with pytest.raises(AssertionError, match=r"at \(1, 2\) is 7, expected 6; 1 of 12 differ"):
        assert_equal(actual, expected)


@pytest.mark.parametrize("position", range(6))
def test_an_error_of_one_anywhere_is_found(position):
    expected = np.array([-128, 127, 0, 1, -1, 5], np.int8).reshape(2, 3)
    actual = expected.copy()
    actual.flat[position] ^= 1
    with pytest.raises(AssertionError, match="1 of 6 differ"):
        assert_equal(actual, expected)


def test_every_difference_is_counted():
    with pytest.raises(AssertionError, match="4 of 4 differ"):
        assert_equal(np.zeros(4, np.int8), np.ones(4, np.int8))


def test_wrong_dtype():
    with pytest.raises(AssertionError, match="dtype int16, expected int8"):
        assert_equal(np.zeros(3, np.int16), np.zeros(3, np.int8))


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (4,), (), (0,)])
def test_wrong_shape_even_where_it_would_broadcast(shape):
    with pytest.raises(AssertionError, match="shape"):
        assert_equal(np.zeros(shape, np.int8), np.zeros(3, np.int8))


def test_lists_scalars_and_floats_are_refused():
    with pytest.raises(AssertionError, match="is a list"):
        assert_equal([1, 2], np.array([1, 2], np.int8))
    with pytest.raises(AssertionError, match="is a int8"):
        assert_equal(np.int8(1), np.array(1, np.int8))
    with pytest.raises(AssertionError, match="not an array"):
        assert_equal(np.zeros(2, np.int8), [0, 0])
    with pytest.raises(AssertionError, match="not an integer array"):
        assert_equal(np.zeros(2), np.zeros(2))


def test_the_oracle_asserts_ranges():
    assert naive.fits(-128, "int8") == -128
    with pytest.raises(AssertionError, match="128 does not fit int8"):
        naive.fits(128, "int8")
    with pytest.raises(AssertionError, match="does not fit int32"):
        naive.dot([127] * 2, [127] * 2, 2**31 - 127 * 127)
    with pytest.raises(AssertionError, match="300 does not fit int8"):
        naive.evaluate("gelu_table", [np.array([0], np.int8)], {"table": np.full(256, 300)}, {})
