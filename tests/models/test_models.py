"""What every registered model owes: counts, sub-models, determinism, one clear line on bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from fedlite import models
from fedlite.errors import UserError
from fedlite.models import units

IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 8, 2))
TOKENS = jnp.array([[3, 1, 4, 1, 5, 0], [2, 6, 5, 3, 5, 2]])

# A new model adds one row: its example batch and options that make it tiny, with several units
# in every width.
TINY = {
    "emnist_cnn": (IMAGES, {"conv1": 3, "conv2": 5, "dense1": 4}),
    "emnist_fedavg_cnn": (IMAGES, {"conv1": 3, "conv2": 5, "dense1": 4}),
    "mlp": (IMAGES, {"hidden": (5, 4, 3)}),
    "resnet18_gn": (
        IMAGES,
        {"stage_widths": (6, 8), "stage_blocks": (1, 2), "stage_strides": (1, 2), "group_size": 2},
    ),
    "char_lstm": (TOKENS, {"embed": 3, "lstm1": 5, "lstm2": 4}),
    "word_lstm": (TOKENS, {"embed": 3, "lstm1": 5}),
    "char_transformer": (TOKENS, {"embed": 4, "d_model": 12, "heads": 3, "ffn": 5}),
    "word_transformer": (TOKENS, {"embed": 4, "d_model": 12, "heads": 3, "ffn": 5}),
}
RANDOM = {"emnist_cnn", "char_transformer", "word_transformer"}


def tiny(name, **options):
    example, defaults = TINY[name]
    return models.build(name, num_classes=7, **{**defaults, **options}), example


def jitter(params):
    """Random parameters: zero biases and unit scales would hide a wrongly taken entry."""
    keys = jax.random.split(jax.random.key(2), len(params))
    return {
        k: v + 0.3 * jax.random.normal(key, v.shape) for key, (k, v) in zip(keys, params.items())
    }


def entries(axis, kept):
    """Indices along an axis of the kept units' entries."""
    return (kept[axis.width][:, None] * axis.size + np.arange(axis.size)).ravel()


def take(params, axes, kept):
    sub = {}
    for path, array in params.items():
        for i, axis in enumerate(axes.of(path)):
            if axis is not None:
                array = np.take(array, entries(axis, kept), axis=i)
        sub[path] = array
    return sub


def silence(params, axes, kept):
    """Zeroes what a kernel reads from units that are not kept."""
    quiet = {}
    for path, array in params.items():
        array = np.array(array)
        for i in axes.input_axes(path):
            keep = np.zeros(array.shape[i], bool)
            keep[entries(axes.of(path)[i], kept)] = True
            array = np.where(
                np.expand_dims(keep, [j for j in range(array.ndim) if j != i]), array, 0
            )
        quiet[path] = array
    return quiet


def test_every_model_has_a_row():
    assert set(TINY) == set(models.NAMES)


@pytest.mark.parametrize("name", models.NAMES)
def test_submodel_equals_full_model_with_silent_units(name):
    model, example = tiny(name)
    assert min(model.widths.values()) > 1
    axes = units.unit_axes(model, example)
    params = jitter(units.init_params(model, jax.random.key(1), example))
    rng = np.random.default_rng(3)
    # An odd number is kept of each width, so that widths are told apart.
    kept = {
        width: np.sort(rng.choice(n, max(1, n - 1 - i % 2), replace=False))
        for i, (width, n) in enumerate(model.widths.items())
    }
    small = model.clone(widths=FrozenDict({width: len(k) for width, k in kept.items()}))

    sub = take(params, axes, kept)
    shapes = {path: array.shape for path, array in sub.items()}
    assert shapes == units.param_shapes(small, example)
    assert axes.widths(shapes) == dict(small.widths)

    quiet = silence(params, axes, kept)
    apply = jax.jit(units.apply, static_argnums=0)
    full, silent, narrow = (
        apply(model, params, example),
        apply(model, quiet, example),
        apply(small, sub, example),
    )
    np.testing.assert_allclose(narrow, silent, atol=1e-5, rtol=1e-5)
    assert np.abs(full - silent).max() > 1e-3  # the dropped units did speak


@pytest.mark.parametrize("name", models.NAMES)
def test_values_are_equal_and_only_inner_widths_are_droppable(name):
    model, example = tiny(name)
    again, _ = tiny(name)
    assert model == again and hash(model) == hash(again)
    first = next(iter(model.widths))
    smaller = model.clone(widths=FrozenDict({**model.widths, first: 1}))
    assert smaller != model
    axes = units.unit_axes(model, example)
    assert axes == units.unit_axes(again, example)
    assert hash(axes) == hash(units.unit_axes(again, example))
    traces = []
    count = jax.jit(lambda model: traces.append(model) or 0, static_argnums=0)
    count(model), count(again), count(smaller)
    assert len(traces) == 2
    # The classes belong to no width.
    logits = [path for path in axes.table if path.startswith("logits/")]
    assert all(axes.of(path)[-1] is None for path in logits)
    assert bool(logits) != ("transformer" in name)  # whose output is the embedding


@pytest.mark.parametrize("name", models.NAMES)
def test_dropout_acts_in_training_only(name):
    model, example = tiny(name)
    params = units.init_params(model, jax.random.key(1), example)
    apply = jax.jit(
        lambda key, train: units.apply(model, params, example, train=train, rngs={"dropout": key}),
        static_argnums=1,
    )
    keys = jax.random.split(jax.random.key(5))
    still = units.apply(model, params, example)  # needs no rng
    np.testing.assert_allclose(apply(keys[0], False), still, atol=1e-5)
    first, second = apply(keys[0], True), apply(keys[1], True)
    assert (np.abs(first - second).max() > 1e-4) == (name in RANDOM)
    np.testing.assert_array_equal(first, apply(keys[0], True))


@pytest.mark.parametrize("name", ["emnist_cnn", "resnet18_gn", "char_lstm", "char_transformer"])
def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(name):
    model, example = tiny(name)
    half, _ = tiny(name, dtype="bfloat16")
    params = units.init_params(half, jax.random.key(1), example)
    assert {a.dtype for a in params.values()} == {jnp.dtype("float32")}
    exact, rounded = (units.apply(m, params, example) for m in (model, half))
    assert rounded.dtype == jnp.float32
    difference = np.abs(exact - rounded).max()
    assert 0 < difference < 0.05 * np.abs(exact).max()


IMAGE28 = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
IMAGE32 = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
SENTENCE = jax.ShapeDtypeStruct((1, 20), jnp.int32)


@pytest.mark.parametrize(
    "name, num_classes, options, example, count",
    [
        ("emnist_cnn", 62, {}, IMAGE28, 1_206_590),
        ("emnist_cnn", 10, {}, IMAGE28, 1_199_882),
        ("emnist_fedavg_cnn", 62, {}, IMAGE28, 1_690_046),
        ("mlp", 10, {}, IMAGE28, 199_210),
        ("resnet18_gn", 10, {}, IMAGE32, 11_181_642),
        ("char_lstm", 90, {}, SENTENCE, 820_522),
        ("word_lstm", 10_004, {}, SENTENCE, 4_050_748),
        ("char_transformer", 90, {}, SENTENCE, 407_776),
        ("word_transformer", 10_004, {}, SENTENCE, 4_211_680),
        ("word_transformer", 10_004, {"layers": 2}, SENTENCE, 7_364_064),
        ("word_transformer", 10_004, {"layers": 3}, SENTENCE, 10_516_448),
    ],
)
def test_parameter_counts(name, num_classes, options, example, count):
    model = models.build(name, num_classes=num_classes, **options)
    assert sum(map(math.prod, units.param_shapes(model, example).values())) == count


def test_options_are_the_defaults():
    options = models.model_options("emnist_cnn")
    assert options["conv2"] == 64 and "num_classes" not in options
    assert models.build("mlp", num_classes=2) == models.build(
        "mlp", num_classes=np.int64(2), **models.model_options("mlp")
    )
    assert models.build("mlp", num_classes=2, hidden=[3, 4]) == models.build(
        "mlp", num_classes=2, hidden=(3, 4)
    )
    off = models.build("emnist_cnn", num_classes=2, dropout=False)
    assert off == models.build("emnist_cnn", num_classes=2, dropout=0)


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("lenet", {}, "'lenet' is unknown; use one of emnist_cnn"),
        ("mlp", {"depth": 3}, "no option 'depth'; it has hidden"),
        ("mlp", {"hidden": ()}, "'hidden' is empty"),
        ("mlp", {"hidden": (3, 0)}, "'hidden' is 0; use at least 1"),
        ("mlp", {"hidden": 3}, "'hidden' is 3; its default (200, 200)"),
        ("mlp", {"num_classes": 0}, "'num_classes' is 0"),
        ("mlp", {"dtype": "float8"}, "'dtype' is 'float8'; use one of 'float32', 'bfloat16'"),
        ("emnist_cnn", {"conv1": 1.5}, "'conv1' is 1.5"),
        ("emnist_cnn", {"conv1": True}, "'conv1' is True"),
        ("emnist_cnn", {"dropout": 2}, "not in [0, 2)"),
        ("emnist_cnn", {"convolution": "fft"}, "'convolution' is 'fft'; use one of 'auto'"),
        ("resnet18_gn", {"stem": "none"}, "'stem' is 'none'; use one of 'imagenet', 'cifar'"),
        ("resnet18_gn", {"group_size": 24}, "64 channels, which are no whole groups"),
        ("resnet18_gn", {"stage_blocks": (2,)}, "one entry a stage"),
        ("word_transformer", {"heads": 7}, "'d_model' (512) is no multiple of 'heads' (7)"),
        ("char_transformer", {"dropout": 1.0}, "not in [0, 1)"),
    ],
)
def test_bad_options_are_named(name, options, says):
    with pytest.raises(UserError) as error:
        models.build(name, **{"num_classes": 2, **options})
    assert says in str(error.value)


@pytest.mark.parametrize(
    "name, example, says",
    [
        ("emnist_cnn", TOKENS, "reads float images"),
        ("emnist_cnn", IMAGES[:, :5], "at least 6x6, got 5x8"),
        ("emnist_fedavg_cnn", IMAGES[:, :3], "at least 4x4"),
        ("mlp", IMAGES[0], "reads float images"),
        ("resnet18_gn", IMAGES.astype(jnp.int32), "reads float images"),
        ("char_lstm", IMAGES, "reads integer tokens"),
        ("char_transformer", TOKENS.astype(jnp.float32), "reads integer tokens"),
    ],
)
def test_data_of_another_kind_is_refused(name, example, says):
    model, _ = tiny(name)
    with pytest.raises(UserError, match=says):
        units.param_shapes(model, example)
