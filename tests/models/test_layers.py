"""Shared layers and the image models, against plain formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from jax import lax

from fedlite import models
from fedlite.models import layers, units
from fedlite.models.resnet import BasicBlock

apply = jax.jit(units.apply, static_argnums=0)


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("use_bias", [True, False])
def test_conv_is_the_formula(use_bias, random_params):
    x = normal(0, (2, 6, 5, 3))
    conv = layers.Conv(4, (3, 2), (2, 1), "VALID", use_bias)
    params = random_params(conv, x)
    assert set(params) == ({"kernel", "bias"} if use_bias else {"kernel"})
    y = apply(conv, params, x)
    corner = np.einsum("hwc,hwcd->d", x[1, 2:5, 1:3], params["kernel"])
    np.testing.assert_allclose(y[1, 1, 1], corner + params.get("bias", 0), atol=1e-5)
    assert y.shape == (2, 2, 4, 4)


def test_group_norm_has_fixed_channels_per_group():
    x = normal(0, (2, 3, 3, 6)) * 5 + 1
    norm = layers.group_norm(2, name=None, dtype="float32")
    y = apply(norm, {"scale": np.ones(6), "bias": np.zeros(6)}, x)
    groups = np.asarray(y).reshape(2, 9, 3, 2)
    np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(groups.var((1, 3)), 1, atol=1e-3)
    # Without the middle group the others are what they were.
    kept = np.array([0, 1, 4, 5])
    narrow = apply(norm, {"scale": np.ones(4), "bias": np.zeros(4)}, x[..., kept])
    np.testing.assert_allclose(narrow, y[..., kept], atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.5])
def test_dropout_keeps_the_mean_and_drops_its_share(rate):
    x = np.full((101, 99), 3.0, np.float32)  # an odd size, so that the last word is cut
    dropout = layers.Dropout(rate)
    rngs = {"dropout": jax.random.key(0)}
    y = np.asarray(dropout.apply({}, x, train=True, rngs=rngs))
    np.testing.assert_allclose(np.unique(y), [0, 3 / (1 - rate)] if rate else [3], rtol=1e-6)
    assert abs((y == 0).mean() - rate) < 0.015  # three standard deviations at rate 0.5
    # Entries a half or a quarter of the array apart share a random word, of 16 or of 8 bits for
    # each, and must still be independent.
    dropped = (y == 0).ravel()
    for apart in (5000, 2500):
        assert abs((dropped[:-apart] & dropped[apart:]).mean() - rate**2) < 0.02
    np.testing.assert_array_equal(dropout.apply({}, x, train=False), x)


def reference_conv(params, name, x, padding):
    y = lax.conv_general_dilated(
        x, params[f"{name}/kernel"], (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.maximum(y + params[f"{name}/bias"], 0)


def reference_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def reference_head(params, x):
    flat = x.reshape(len(x), -1)
    hidden = flat @ params["dense1/kernel"].reshape(flat.shape[1], -1) + params["dense1/bias"]
    return jnp.maximum(hidden, 0) @ params["logits/kernel"] + params["logits/bias"]


@pytest.mark.parametrize("name", ["emnist_cnn", "emnist_fedavg_cnn"])
def test_emnist_networks_are_tffs(name, random_params):
    model = models.build(name, num_classes=5, conv1=2, conv2=3, dense1=4, convolution="patches")
    x = normal(0, (2, 8, 8, 1))
    params = random_params(model, x)

    @jax.jit
    def reference(params):
        if name == "emnist_cnn":
            y = reference_conv(params, "conv1", x, "VALID")
            y = reference_pool(reference_conv(params, "conv2", y, "VALID"))
        else:
            y = reference_pool(reference_conv(params, "conv1", x, "SAME"))
            y = reference_pool(reference_conv(params, "conv2", y, "SAME"))
        return reference_head(params, y)

    np.testing.assert_allclose(apply(model, params, x), reference(params), rtol=1e-4, atol=1e-4)


def test_dropout_scale_sets_both_rates():
    model = models.build("emnist_cnn", num_classes=2, dropout=0.5, conv1=2, conv2=2, dense1=2)
    rates = []

    def record(next_call, args, kwargs, context):
        if isinstance(context.module, layers.Dropout):
            rates.append(context.module.rate)
        return next_call(*args, **kwargs)

    with nn.intercept_methods(record):
        units.param_shapes(model, jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))
    assert rates == [0.125, 0.25]


def test_mlp_is_the_formula(random_params):
    model = models.build("mlp", num_classes=2, hidden=(3,))
    x = normal(0, (2, 2, 2, 1))
    params = random_params(model, x)
    np.testing.assert_allclose(
        apply(model, params, x), reference_head(params, x), rtol=1e-5, atol=1e-5
    )


def test_block_is_the_identity_where_its_last_convolution_is_zero(random_params):
    block = BasicBlock(channels=4, hidden=6, group_size=2)
    x = normal(0, (2, 5, 5, 4))
    params = random_params(block, x)
    assert not any(path.startswith("shortcut") for path in params)
    assert params["conv1/kernel"].shape == (3, 3, 4, 6)
    params["conv2/kernel"] *= 0
    np.testing.assert_array_equal(apply(block, params, x), x)


def test_projected_shortcut_is_normalised_and_strided(random_params):
    block = BasicBlock(channels=4, hidden=2, group_size=2, stride=2)
    x = normal(0, (2, 5, 5, 2))
    params = random_params(block, x)
    params["conv2/kernel"] *= 0
    y = apply(block, params, x)
    assert y.shape == (2, 3, 3, 4)
    z = np.einsum("nhwc,cd->nhwd", x[:, ::2, ::2], params["shortcut_conv/kernel"][0, 0])
    z = z.reshape(2, 9, 2, 2)
    z = (z - z.mean((1, 3), keepdims=True)) / np.sqrt(z.var((1, 3), keepdims=True) + 1e-5)
    z = z.reshape(y.shape) * params["shortcut_norm/scale"] + params["shortcut_norm/bias"]
    np.testing.assert_allclose(y, z, atol=1e-4)


def test_resnet18_has_tffs_norms_and_stems():
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = units.param_shapes(models.build("resnet18_gn", num_classes=10), x)
    scales = {path[:-6]: shape[0] for path, shape in shapes.items() if path.endswith("/scale")}
    assert sum(scales.values()) == 4800
    assert "stage1_block1/norm1" not in scales and "stage1_block1/shortcut_norm" not in scales
    assert scales["stem_norm"] == 64 and scales["final_norm"] == 512
    assert [k for k in scales if "shortcut" in k] == [
        f"stage{i}_block1/shortcut_norm" for i in (2, 3, 4)
    ]
    assert shapes["stem_conv/kernel"] == (7, 7, 3, 64)
    cifar = units.param_shapes(models.build("resnet18_gn", num_classes=10, stem="cifar"), x)
    assert cifar["stem_conv/kernel"] == (3, 3, 3, 64)
    assert {k: v for k, v in cifar.items() if k != "stem_conv/kernel"} == {
        k: v for k, v in shapes.items() if k != "stem_conv/kernel"
    }


@pytest.mark.parametrize(
    "stem, strides, sides", [("imagenet", (1, 1), [6, 6]), ("cifar", (1, 2), [24, 12])]
)
def test_resnet_resolutions(stem, strides, sides):
    model = models.build(
        "resnet18_gn",
        num_classes=2,
        stem=stem,
        stage_widths=(2, 4),
        stage_blocks=(1, 1),
        stage_strides=strides,
        group_size=2,
    )
    assert model.widths == FrozenDict({"stage1_block1/conv1": 1, "stage2_block1/conv1": 2})
    seen = []

    def record(next_call, args, kwargs, context):
        y = next_call(*args, **kwargs)
        if isinstance(context.module, BasicBlock):
            seen.append(y.shape[1])
        return y

    with nn.intercept_methods(record):
        units.param_shapes(model, jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32))
    assert seen == sides
