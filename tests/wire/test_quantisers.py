import functools
import math

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedlite.errors import UserError
from fedlite.wire import (
    NNADQ,
    QSGD,
    Levels255,
    Part,
    Sign,
    Slot,
    message_bytes,
    parse_codec,
    read,
    side_bytes,
    write,
)

# What is below counts as zero, what is above as this.
SMALLEST, LARGEST = 2.0**-100, 2.0**120
EPS = float(np.finfo(np.float32).eps)
CODECS = (NNADQ(0.001), NNADQ(0.1, True), QSGD(1), QSGD(15), Levels255(), Sign())
# Few shapes, since each is compiled anew.
SHAPES = st.sampled_from([(), (0,), (7,), (3, 5)])
# All finite float32 values, denormals too, and arrays that are often constant or of one sign.
VALUES = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-2, -1, width=32),
    st.sampled_from([0.0, -0.0, 1e-40, SMALLEST, 1.0, -3.5, LARGEST, -3.4e38]),
)
ARRAYS = SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=VALUES))
FORMS = st.one_of(ARRAYS, st.builds(np.full, SHAPES, VALUES, st.just(np.float32)))


@functools.partial(jax.jit, static_argnums=0)
def _trip(codec, value, seed):
    encoded = codec.encode(value, jax.random.key(seed))
    return encoded, codec.decode(encoded)


def _encode(codec, value, seed=0):
    return _trip(codec, value, seed)[0]


def _part(codec, value, sent=1, seed=0):
    encoded, decoded = _trip(codec, value, seed)
    return Part(decoded, sent=sent, **encoded._asdict())


_meter = jax.jit(message_bytes)


@given(st.sampled_from(CODECS), FORMS, st.sampled_from([0, 1, "mask"]), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_meter_writer_and_reader_agree(codec, value, sent, seed):
    if sent == "mask":
        sent = np.random.default_rng(seed).integers(0, 2, value.shape)
    part = _part(codec, value, sent, seed)
    assert codec.bits(part.side) == int(part.bits)
    assert np.asarray(part.codes).max(initial=0) < 2 ** int(part.bits)
    written = write({"a": part})
    assert len(written) == int(_meter({"a": part}))
    back = read(written, {"a": Slot(value.shape, sent, codec)})["a"]
    mask = np.broadcast_to(np.asarray(sent) > 0, value.shape)
    # Equal codes; decoded in another program, a value may differ in its last bits.
    scale = np.abs(np.asarray(part.value)).max(initial=0)
    np.testing.assert_allclose(back, np.where(mask, part.value, 0), rtol=0, atol=2 * EPS * scale)


@given(st.sampled_from(CODECS[:5]), FORMS, st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_error_is_at_most_a_level(codec, value, seed):
    encoded, decoded = _trip(codec, value, seed)
    error = np.abs(np.float64(decoded) - np.clip(np.float64(value), -LARGEST, LARGEST)).max(
        initial=0
    )
    if isinstance(codec, NNADQ):
        offset, norm, levels = map(float, encoded.side)
        level = norm / levels / (1 if codec.stochastic else 2)
    else:
        offset, norm = 0.0, float(encoded.side[0])
        level = norm / codec.levels
    assert error <= level + 4 * EPS * (norm + abs(offset)) + 2 * SMALLEST


# ------------------------------------------------------------------ NNADQ


def test_nnadq_by_hand():
    # o = -(3 - 1) / 2 = -1, x = (2, -2, 0.4), n = 2, q = floor(sqrt(2 * 32 ln 4 / 10)) = 2.
    encoded = _encode(NNADQ(10.0), np.array([3, -1, 1.4], np.float32))
    offset, norm, levels = encoded.side
    assert (float(offset), float(norm), int(levels)) == (-1, 2, 2)
    # u = (2, 2, 0) with the sign in the lowest bit; two bits for q = 2 and one for the sign.
    assert encoded.codes.tolist() == [0b100, 0b101, 0b000]
    assert int(encoded.bits) == 3
    np.testing.assert_array_equal(NNADQ(10.0).decode(encoded), [3, -1, 1])


@pytest.mark.parametrize("beta, levels, bits", [(1e-2, 21, 5), (1e-3, 66, 7), (1e-4, 210, 8)])
def test_nnadq_levels_of_the_notes(beta, levels, bits):
    encoded = _encode(NNADQ(beta), np.array([0.1, -0.1], np.float32))
    assert int(encoded.side[2]) == levels
    # The sign bit is on the wire and not in the papers' count.
    assert (int(encoded.bits), int(encoded.uncharged)) == (bits + 1, 1)


def test_nnadq_spends_whole_bits_at_powers_of_two():
    for levels in (1, 2, 3, 4, 7, 8, 255, 256):
        # The norm whose q is `levels`, a little above the edge.
        norm = 1.001 * levels**2 * 0.01 / (32 * math.log(4))
        encoded = _encode(NNADQ(0.01), np.array([norm, -norm], np.float32))
        assert int(encoded.side[2]) == levels
        assert int(encoded.bits) == math.ceil(math.log2(levels + 1)) + 1


@given(st.floats(2**-16, 2**10, width=32), st.sampled_from([1e-4, 1e-3, 1e-2, 1.0]))
@settings(max_examples=60, deadline=None)
def test_nnadq_levels_minimise_the_objective(norm, beta):
    def objective(q):
        return norm / q**2 + beta * math.log2(q) / 32

    best = math.sqrt(norm * 32 * math.log(4) / beta)
    assume(best >= 1)
    for neighbour in (best * 0.99, best * 1.01):
        assert objective(best) <= objective(neighbour)
    levels = int(_encode(NNADQ(beta), np.array([norm, -norm], np.float32)).side[2])
    # Rounded down, but for the last bit of a float32 square root.
    assert best * (1 - 1e-6) - 1 < levels <= best * (1 + 1e-6)


@given(hnp.arrays(np.float32, (7,), elements=st.floats(-8, -4, width=32)))
@settings(max_examples=30, deadline=None)
def test_nnadq_centres_negative_arrays(value):
    offset, norm, _ = _encode(NNADQ(0.001), value).side
    centre = (float(value.max()) + float(value.min())) / 2
    assert float(offset) == pytest.approx(-centre, rel=1e-6)
    # Centred, the norm is half the range; the range moved away from zero would have at least 8.
    half = (float(value.max()) - float(value.min())) / 2
    assert float(norm) == pytest.approx(half, abs=8 * EPS)


@given(st.sampled_from([0.0, -0.0, 1.0, -3.3, SMALLEST, LARGEST]), SHAPES)
@settings(max_examples=20, deadline=None)
def test_nnadq_constants_are_exact_and_have_no_codes(constant, shape):
    value = np.full(shape, constant, np.float32)
    part = _part(NNADQ(0.001), value)
    np.testing.assert_array_equal(part.value, value)
    assert len(write({"a": part})) == (12 if value.size else 0)
    assert int(side_bytes({"a": part})) == (12 if value.size else 0)


@given(hnp.arrays(np.int32, (7,), elements=st.integers(-4096, 4096)))
@settings(max_examples=40, deadline=None)
def test_nnadq_of_the_decoded_has_the_same_codes(value):
    codec = NNADQ(0.001)
    first = _encode(codec, np.float32(value) / 1024)
    again = _encode(codec, codec.decode(first))
    # At the edge of q the last bit of the norm decides.
    assume(int(first.side[2]) == int(again.side[2]))
    # At zero, of an even range, the sign may differ.
    level, repeated = np.asarray(first.codes >> 1), np.asarray(again.codes >> 1)
    np.testing.assert_array_equal(level, repeated)


def test_nnadq_paper_count_is_what_the_paper_charges():
    value = np.random.default_rng(0).normal(size=400).astype(np.float32)
    part = _part(NNADQ(0.001), value)
    level_bits = math.ceil(math.log2(int(part.side[2]) + 1))
    paper = int(message_bytes({"a": part})) - int(side_bytes({"a": part}))
    assert paper == 400 * level_bits / 8
    assert int(message_bytes({"a": part})) == 400 * (level_bits + 1) / 8 + 12


# ------------------------------------------------------------------ the others


@pytest.mark.parametrize("codec", [NNADQ(1.0, True), QSGD(3), Levels255()], ids=str)
def test_stochastic_rounding_is_unbiased(codec):
    value = jnp.array([0.3, -0.77, 1.0, 0.001, -1.0])

    @jax.jit
    def draws(keys):
        return jax.vmap(lambda key: codec.decode(codec.encode(value, key)))(keys)

    drawn = np.asarray(draws(jax.random.split(jax.random.key(1), 10_000)), np.float64)
    levels = int(codec.encode(value, jax.random.key(0)).side[2]) if "NNADQ" in str(codec) else None
    norm = float(jnp.linalg.norm(value)) if codec == QSGD(3) else 1.0
    level = norm / (levels or codec.levels)
    # A draw is off by at most a level, so its deviation is at most half of one.
    np.testing.assert_allclose(drawn.mean(0), value, atol=4 * level / 2 / 100 + 1e-6)
    assert len(np.unique(drawn[:, 0])) == 2


def test_bits_by_hand():
    value = np.ones(16, np.float32)
    for codec, bits, paper in [
        (Levels255(), 9, 16),
        (QSGD(15), 5, 10),
        (QSGD(1), 2, 4),
        (QSGD(16), 6, 12),
        (Sign(), 1, 2),
    ]:
        parts = {"a": _part(codec, value)}
        assert len(write(parts)) == 16 * bits // 8 + 4
        assert int(message_bytes(parts)) - int(side_bytes(parts)) == paper


def test_sign_by_hand():
    encoded = _encode(Sign(), np.array([3, -1, 0, -4], np.float32))
    np.testing.assert_array_equal(Sign().decode(encoded), [2, -2, 2, -2])


def test_norms_neither_overflow_nor_vanish():
    for size in (LARGEST, 1e-29):
        value = np.array([size, -size, size], np.float32)
        for codec in (QSGD(15), Sign(), Levels255(), NNADQ(0.001)):
            decoded = np.asarray(codec.decode(_encode(codec, value)))
            assert np.isfinite(decoded).all(), codec
            assert np.sign(decoded).tolist() == [1, -1, 1], codec


@pytest.mark.parametrize("codec", (*CODECS, None), ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(codec, bad):
    value = np.array([1.0, bad, 0.5], np.float32)
    part = _part(codec, value) if codec else Part(value)
    with pytest.raises(UserError, match="'layer/kernel' holds NaN or infinity"):
        write({"layer/kernel": part})


def test_a_value_that_is_not_sent_may_be_anything():
    part = Part(np.array([1.0, math.nan], np.float32), sent=np.array([1, 0]))
    assert len(write({"a": part})) == 4


def test_a_header_is_sent_whatever_else_is():
    header = np.array([0b10100000], np.uint8)
    parts = {
        "a": Part(np.ones(3, np.float32), sent=0, header=header),
        "b": Part(np.ones(2, np.float32)),
    }
    data = write(parts)
    assert data[0] == 0b10100000 and len(data) == 9 == int(message_bytes(parts))
    assert int(side_bytes(parts)) == 1
    back = read(data, {"a": Slot((3,), 0, header=1), "b": Slot((2,))})
    assert back["a"].tolist() == [0, 0, 0] and back["b"].tolist() == [1, 1]


@pytest.mark.parametrize("told", [True, False])
def test_flags_are_on_the_wire_where_they_are_told(told):
    flags = np.array([True, False, True])
    part = Part(np.ones(2, np.float32)).with_flags(flags).with_flags(~flags, told=jnp.bool_(told))
    data = write({"a": part})
    assert data[:-8] == bytes([0b10100000, 0b01000000][: 1 + told])
    assert len(data) == int(jax.jit(message_bytes)({"a": part}))
    assert int(side_bytes({"a": part})) == 1 + told


def test_names():
    assert parse_codec("nnadq0.001") == NNADQ(0.001)
    assert parse_codec("nnadq1s") == NNADQ(1.0, stochastic=True)
    assert parse_codec("fedpaq") == Levels255()
    assert parse_codec("qsgd15") == QSGD(15)
    assert parse_codec("sign") == Sign()
    for bad in ("nnadq", "nnadq0", "nnadq-1", "qsgd", "qsgd0", "qsgd32768", "signs"):
        with pytest.raises(UserError, match=r"nnadq0\.001|qsgd15"):
            parse_codec(bad)
