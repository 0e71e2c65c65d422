import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlite.errors import UserError
from fedlite.wire import Float32, HalfPrecision, StochasticUniform, parse_codec

floats = st.floats(-1e3, 1e3, width=32)


def _trip(codec, value, seed=0):
    encoded = codec.encode(value, jax.random.key(seed))
    assert int(jnp.max(encoded.codes)) < 2**encoded.bits
    assert codec.bits(encoded.side) == encoded.bits
    assert len(encoded.side) == len(codec.side_dtypes)
    return np.asarray(codec.decode(encoded))


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_float32_keeps_bits(values):
    value = np.array(values, np.float32)
    np.testing.assert_array_equal(_trip(Float32(), value).view(np.uint32), value.view(np.uint32))


@pytest.mark.parametrize("dtype, epsilon", [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_half_precision_rounds_to_nearest(dtype, epsilon):
    value = np.random.default_rng(0).normal(size=200).astype(np.float32)
    back = _trip(HalfPrecision(dtype), value)
    assert np.all(np.abs(back - value) <= epsilon * np.abs(value) + 1e-7)
    # What is representable already stays.
    np.testing.assert_array_equal(_trip(HalfPrecision(dtype), back), back)


@pytest.mark.parametrize("dtype, most", [("float16", 65504), ("bfloat16", (2 - 2**-7) * 2.0**127)])
def test_half_precision_saturates_and_keeps_what_is_bad(dtype, most):
    value = np.array([3.4e38, -3.4e38, np.nan, np.inf, -np.inf], np.float32)
    back = _trip(HalfPrecision(dtype), value)
    np.testing.assert_array_equal(back, np.float32([most, -most, np.nan, np.inf, -np.inf]))


def test_uniform_of_the_greatest_floats():
    """Whose reciprocals are denormal numbers, which XLA takes for 0."""
    back = _trip(StochasticUniform(8), np.array([3.4e38, -3.4e38, 0], np.float32))
    np.testing.assert_array_equal(back, np.float32([2.0**125, -(2.0**125), 0]))
    assert not np.isfinite(_trip(StochasticUniform(8), np.float32([1, np.inf]))).all()


@given(st.lists(floats, min_size=1, max_size=20), st.integers(2, 16), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_uniform_error_is_at_most_one_level(values, width, seed):
    value = np.array(values, np.float32)
    back = _trip(StochasticUniform(width), value, seed)
    norm = np.abs(value).max()
    assert np.abs(back - value).max() <= norm / (2 ** (width - 1) - 1) * (1 + 1e-4)
    assert np.abs(back).max() <= norm * (1 + 1e-6)


def test_uniform_is_unbiased():
    value = jnp.array([0.3, -0.77, 1.0, 0.001])
    codec = StochasticUniform(3)
    draws = jax.vmap(lambda key: codec.decode(codec.encode(value, key)))(
        jax.random.split(jax.random.key(1), 10_000)
    )
    # The standard error is at most (1 / 3) / 2 / 100.
    np.testing.assert_allclose(np.asarray(draws).mean(0), value, atol=4 * 0.0017)
    assert len(np.unique(np.asarray(draws)[:, 0])) == 2


def test_uniform_keeps_zeros_and_extremes():
    np.testing.assert_array_equal(_trip(StochasticUniform(8), np.zeros(3, np.float32)), 0)
    np.testing.assert_array_equal(
        _trip(StochasticUniform(8), np.array([-2.0, 2.0, 0.0], np.float32)), [-2, 2, 0]
    )


def test_names():
    assert parse_codec("") is None and parse_codec("float32") is None
    assert parse_codec("bfloat16") == HalfPrecision("bfloat16")
    assert parse_codec("uniform4") == StochasticUniform(4)
    for bad in ("uniform1", "uniform17", "gzip", "uniform"):
        with pytest.raises(UserError):
            parse_codec(bad)
