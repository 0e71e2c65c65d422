"""The Conformer: its size, what padding may not change, and its attention by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedlite import models
from fedlite.errors import UserError
from fedlite.models import conformer, depthwise, relative_attention, units

TINY = {
    "blocks": 1,
    "d_model": 12,
    "heads": 3,
    "ffn": 5,
    "kernel": 4,
    "group_size": 4,
    "subsampling": 2,
    "max_distance": 2,
    "convolution": "xla",
}
FRAMES = np.array([17, 20, 6], np.int32)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, x, frames):
    return units.apply(model, params, x, frames=frames)


def utterances(length, seed=0):
    """Of `FRAMES` frames and 7 mels; behind them lies what must not be looked at."""
    x = np.random.default_rng(seed).normal(size=(3, 20, 7)).astype(np.float32)
    rest = 10 * np.random.default_rng(length).normal(size=(3, length, 7)).astype(np.float32)
    real = np.arange(length)[:, None] < FRAMES[:, None, None]
    return np.where(real, np.pad(x, ((0, 0), (0, length - 20), (0, 0))), rest)


def count(model, mels=80):
    shapes = units.param_shapes(model, jax.ShapeDtypeStruct((1, 64, mels), jnp.float32))
    blocks = sum(math.prod(s) for path, s in shapes.items() if path.startswith("block"))
    return blocks, sum(map(math.prod, shapes.values()))


def test_the_large_encoder_has_the_papers_parameters():
    large = models.build("conformer", num_classes=29, **conformer.SIZES["L"])
    assert count(large)[0] == 17 * 6_324_224 == 107_511_808


@pytest.mark.parametrize("size", ["S", "M"])
def test_parameters_by_the_formula(size):
    d, blocks = (conformer.SIZES[size][option] for option in ("d_model", "blocks"))
    one = models.build("conformer", num_classes=29, **{**conformer.SIZES[size], "blocks": 1})
    feed_forwards, attention = 2 * (8 * d * d + 5 * d + 2 * d), 5 * d * d + 8 * d
    convolution, norm = 3 * d * d + 32 * d + 8 * d, 2 * d
    assert blocks == 16 and count(one)[0] == feed_forwards + attention + convolution + norm


def test_half_of_the_feed_forwards_is_three_tenths_of_the_bundled_model():
    whole = models.build("conformer", num_classes=29)
    half = models.build("conformer", num_classes=29, ffn=128)
    assert count(half, 40)[1] / count(whole, 40)[1] == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("attention", relative_attention.KINDS)
def test_padding_changes_nothing(attention, random_params):
    model = models.build("conformer", num_classes=4, attention=attention, **TINY)
    params = random_params(model, jax.ShapeDtypeStruct((1, 20, 7), jnp.float32))
    real = model.output_frames(FRAMES)
    assert real.tolist() == [5, 5, 2]
    short, long = (apply(model, params, utterances(n), FRAMES) for n in (20, 31))
    assert long.shape == (3, 8, 4)
    for i, n in enumerate(real):
        np.testing.assert_allclose(long[i, :n], short[i, :n], atol=1e-5)


def test_frames_are_what_is_there(random_params):
    model = models.build("conformer", num_classes=4, **TINY)
    params = random_params(model, jax.ShapeDtypeStruct((1, 20, 7), jnp.float32))
    padded = apply(model, params, utterances(20), FRAMES)
    alone = apply(model, params, utterances(20)[2:, :6], None)
    np.testing.assert_allclose(alone[0], padded[2, :2], atol=1e-5)
    unmasked = apply(model, params, utterances(20), None)
    assert np.abs(unmasked[2, :2] - padded[2, :2]).max() > 1e-2


def test_no_frames_give_finite_gradients(random_params):
    model = models.build("conformer", num_classes=4, **TINY)
    x = utterances(20)
    params = random_params(model, jax.ShapeDtypeStruct((1, 20, 7), jnp.float32))

    @jax.jit
    def loss(params):
        return jnp.sum(units.apply(model, params, x, frames=jnp.array([0, 20, 1])) ** 2)

    gradient = jax.grad(loss)(params)
    assert all(np.isfinite(g).all() for g in gradient.values())


def test_relative_shift():
    scores = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
    shifted = relative_attention.relative_shift(scores)
    for i in range(3):
        for j in range(3):
            np.testing.assert_array_equal(shifted[:, i, j], scores[:, i, 2 - (i - j)])


def test_relative_positions():
    r = relative_attention.relative_positions(3, 4)
    for row, distance in zip(r, (2, 1, 0, -1, -2), strict=True):
        angle = distance * np.array([1, 0.01])
        expected = [np.sin(angle[0]), np.cos(angle[0]), np.sin(angle[1]), np.cos(angle[1])]
        np.testing.assert_allclose(row, expected, atol=1e-6)


@pytest.mark.parametrize("kind", relative_attention.KINDS)
def test_attention_by_its_formula(kind):
    module = relative_attention.RelativeAttention(heads=2, head_size=3, kind=kind, max_distance=2)
    x = np.random.default_rng(0).normal(size=(1, 5, 4)).astype(np.float32)
    params = jax.tree.map(
        lambda a: np.random.default_rng(a.size).normal(size=a.shape).astype(np.float32),
        module.init(jax.random.key(0), x)["params"],
    )
    real = np.array([[True, True, True, True, False]])
    q, k, v = (
        np.einsum("td,dhe->the", x[0], params[name]["kernel"]) + params[name]["bias"]
        for name in ("query", "key", "value")
    )
    scores = np.full((2, 5, 5), -np.inf)
    for h in range(2):
        for i in range(5):
            for j in range(4):
                if kind == "bias":
                    by_distance = params["relative_bias"][np.clip(j - i, -2, 2) + 2, h]
                    scores[h, i, j] = q[i, h] @ k[j, h] / 3**0.5 + by_distance
                else:
                    angle = (i - j) * np.array([1, 0.01])
                    r = np.stack([np.sin(angle), np.cos(angle)], 1).ravel()
                    projected = r @ params["position_projection"][:, h]
                    content = (q[i, h] + params["content_bias"][h]) @ k[j, h]
                    position = (q[i, h] + params["position_bias"][h]) @ projected
                    scores[h, i, j] = (content + position) / 3**0.5
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    y = np.einsum("hij,jhe->ihe", weights, v)
    expected = np.einsum("ihe,hed->id", y, params["out"]["kernel"]) + params["out"]["bias"]
    found = module.apply({"params": params}, x, real)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_depthwise_implementations_agree(size):
    rng = np.random.default_rng(size)
    x = rng.normal(size=(2, 6, 3)).astype(np.float32)
    kernel = rng.normal(size=(size, 3)).astype(np.float32)
    shifts, xla = (depthwise.depthwise_conv(x, kernel, name) for name in ("shifts", "xla"))
    np.testing.assert_allclose(shifts, xla, atol=1e-5)
    at = 2 - (size - 1) // 2
    by_hand = sum(x[:, at + k] * kernel[k] for k in range(size) if 0 <= at + k < 6)
    np.testing.assert_allclose(shifts[:, 2], by_hand, atol=1e-5)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"heads": 5}, "'d_model' (64) is no multiple of 'heads' (5)"),
        ({"group_size": 24}, "'d_model' (64) is no multiple of 'group_size' (24)"),
        ({"attention": "absolute"}, "'attention' is 'absolute'; use one of 'transformer_xl'"),
        ({"dropout": 1.0}, "not in [0, 1)"),
    ],
)
def test_bad_options_are_named(options, says):
    with pytest.raises(UserError) as error:
        models.build("conformer", num_classes=4, **options)
    assert says in str(error.value)


def test_data_of_another_kind_is_refused():
    with pytest.raises(UserError, match="reads features"):
        units.param_shapes(
            models.build("conformer", num_classes=4), jax.ShapeDtypeStruct((1, 8), jnp.int32)
        )
