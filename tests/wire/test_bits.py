import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlite.wire import bits


@settings(deadline=None)
@given(st.integers(1, 32), st.data())
def test_round_trip(width, data):
    codes = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40))
    packed = bits.pack(np.array(codes, np.uint32), width)
    assert len(packed) == -(-len(codes) * width // 8)
    np.testing.assert_array_equal(bits.unpack(packed, len(codes), width), codes)


def test_most_significant_bit_first():
    assert bits.pack(np.array([1, 2, 3], np.uint32), 2) == bytes([0b01101100])


def test_blocks_join(monkeypatch):
    codes = np.arange(100, dtype=np.uint32)
    whole = bits.pack(codes, 7)
    monkeypatch.setattr(bits, "_BLOCK", 16)
    assert bits.pack(codes, 7) == whole
    np.testing.assert_array_equal(bits.unpack(whole, 100, 7), codes)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="does not fit in 3 bits"):
        bits.pack(np.array([8], np.uint32), 3)
    with pytest.raises(ValueError, match="take 2 bytes"):
        bits.unpack(b"x", 3, 4)
    with pytest.raises(ValueError, match="1 to 32"):
        bits.pack(np.array([0], np.uint32), 33)
