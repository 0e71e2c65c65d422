import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlite.wire import (
    HalfPrecision,
    Part,
    Slot,
    StochasticUniform,
    message_bytes,
    once_bytes,
    part_bytes,
    read,
    side_bytes,
    write,
)

CODECS = (None, HalfPrecision("bfloat16"), StochasticUniform(8), StochasticUniform(5))


@st.composite
def messages(draw):
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    parts, layout = {}, {}
    for index in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
        value = rng.normal(size=shape).astype(np.float32)
        sent = draw(st.sampled_from([0, 1, "mask"]))
        sent = rng.integers(0, 2, shape) if sent == "mask" else sent
        codec = draw(st.sampled_from(CODECS))
        part = Part(value, sent=sent)
        if codec:
            encoded = codec.encode(value, jax.random.key(index))
            part = part._replace(
                value=np.asarray(codec.decode(encoded)),
                codes=encoded.codes,
                bits=encoded.bits,
                side=encoded.side,
            )
        if draw(st.booleans()):
            layout[f"p{index}"] = Slot(shape, sent, codec or Slot(()).codec)
        else:
            part = part._replace(bits=0)
        parts[f"p{index}"] = part
    return parts, layout


@given(messages())
@settings(max_examples=60, deadline=None)
def test_meter_and_reader_agree_with_the_writer(message):
    parts, layout = message
    data = write(parts)
    assert int(message_bytes(parts)) == len(data)
    back = read(data, layout)
    assert back.keys() == layout.keys()
    for name, value in back.items():
        sent = np.broadcast_to(np.asarray(parts[name].sent) > 0, value.shape)
        np.testing.assert_array_equal(value, np.where(sent, parts[name].value, 0))


def test_by_hand():
    parts = {
        "a": Part(np.zeros((3, 5), np.float32)),
        "b": Part(np.zeros(9, np.float32), bits=3, side=(np.float32(1),), codes=np.zeros(9, int)),
        "c": Part(np.zeros(7, np.float32), bits=0, once=28),
        "d": Part(np.zeros(7, np.float32), sent=0, bits=8, side=(np.float32(1),)),
    }
    assert int(message_bytes(parts)) == 60 + (4 + 4) == len(write(parts))
    assert int(side_bytes(parts)) == 4
    assert once_bytes(parts) == 28


def test_meter_is_exact_for_large_parts_and_traced_bits():
    large = Part(jax.ShapeDtypeStruct((300, 10**6), jnp.float32))
    assert int(part_bytes(large)) == 1_200_000_000

    def traced(bits):
        return part_bytes(Part(jnp.zeros(11), bits=bits))

    for bits in (1, 3, 8, 13):
        assert int(jax.jit(traced)(bits)) == -(-11 * bits // 8)


def test_reader_refuses_another_layout():
    data = write({"a": Part(np.ones(3, np.float32))})
    with pytest.raises(ValueError, match="12 bytes, its layout 8"):
        read(data, {"a": Slot((2,))})
