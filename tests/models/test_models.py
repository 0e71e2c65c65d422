"""What every registered model owes: counts, sub-models, equality, one clear line on bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from fedlite import models
from fedlite.errors import UserError
from fedlite.models import units

IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype(np.float32)
TOKENS = np.array([[3, 1, 4, 1, 5, 0], [2, 6, 5, 3, 5, 2]], np.int32)
FRAMES = np.random.default_rng(1).normal(size=(2, 12, 5)).astype(np.float32)
EXACT = {"convolution": "xla"}  # others round up to ten times as much

# A new model adds one row: its example batch and options that make it tiny, with several units
# in every width.
TINY = {
    "emnist_cnn": (IMAGES, {"conv1": 3, "conv2": 5, "dense1": 4, **EXACT}),
    "emnist_fedavg_cnn": (IMAGES, {"conv1": 3, "conv2": 5, "dense1": 4, **EXACT}),
    "mlp": (IMAGES, {"hidden": (5, 4, 3)}),
    "resnet18_gn": (
        IMAGES,
        {
            "stage_widths": (6, 8),
            "stage_blocks": (1, 1),
            "stage_strides": (1, 2),
            "group_size": 2,
            **EXACT,
        },
    ),
    "densenet": (IMAGES, {"growth": 2, "block_layers": (2, 1), **EXACT}),
    "resnet26": (
        IMAGES,
        {
            "stem_width": 4,
            "stage_widths": (6, 8),
            "stage_blocks": (1, 2),
            "stage_strides": (2, 1),
            "group_size": 2,
            **EXACT,
        },
    ),
    "char_lstm": (TOKENS, {"embed": 3, "lstm1": 5, "lstm2": 4}),
    "word_lstm": (TOKENS, {"embed": 3, "lstm1": 5}),
    "char_transformer": (TOKENS, {"layers": 2, "embed": 4, "d_model": 12, "heads": 3, "ffn": 5}),
    "word_transformer": (TOKENS, {"layers": 1, "embed": 4, "d_model": 12, "heads": 3, "ffn": 5}),
    "transformer_classifier": (
        TOKENS,
        {
            "vocabulary_size": 8,
            "layers": 2,
            "embed": 12,
            "heads": 3,
            "ffn": 5,
            "single_logit": False,
        },
    ),
    "conformer": (
        FRAMES,
        {
            **{"blocks": 1, "d_model": 12, "heads": 3, "ffn": 5, "kernel": 3, "group_size": 4},
            **{"subsampling": 2, "attention": "transformer_xl", **EXACT},
        },
    ),
}
RANDOM = {"emnist_cnn", "char_transformer", "word_transformer", "transformer_classifier"}


apply = jax.jit(units.apply, static_argnums=0, static_argnames="train")


def tiny(name, **options):
    example, defaults = TINY[name]
    return models.build(name, num_classes=7, **{**defaults, **options}), example


def entries(axis, kept):
    """Indices along an axis of the kept units' entries."""
    return (kept[axis.width][:, None] * axis.size + np.arange(axis.size)).ravel()


def take(params, axes, kept):
    """The sub-model's parameters."""
    sub = dict(params)
    for path in params:
        for i, axis in enumerate(axes.of(path)):
            if axis is not None:
                sub[path] = np.take(sub[path], entries(axis, kept), axis=i)
    return sub


def silence(params, axes, kept):
    """The full model's parameters, with zero where a kernel reads a unit that is not kept."""
    quiet = {path: array.copy() for path, array in params.items()}
    for path, array in quiet.items():
        for i in axes.input_axes(path):
            axis = axes.of(path)[i]
            dropped = np.setdiff1d(np.arange(array.shape[i]), entries(axis, kept))
            np.moveaxis(array, i, 0)[dropped] = 0
    return quiet


def test_every_model_has_a_row():
    assert set(TINY) == set(models.NAMES)


@pytest.mark.parametrize("name", models.NAMES)
def test_submodel_equals_full_model_with_silent_units(name, random_params):
    model, example = tiny(name)
    assert min(model.widths.values()) > 1
    axes = units.unit_axes(model, example)
    params = random_params(model, example)
    rng = np.random.default_rng(3)
    # One or two units are dropped in turn, so that neighbouring widths differ.
    kept = {
        width: np.sort(rng.choice(n, max(1, n - 1 - i % 2), replace=False))
        for i, (width, n) in enumerate(model.widths.items())
    }
    small = model.clone(widths=FrozenDict({width: len(k) for width, k in kept.items()}))

    sub = take(params, axes, kept)
    shapes = {path: array.shape for path, array in sub.items()}
    assert shapes == units.param_shapes(small, example)
    assert axes.widths(shapes) == dict(small.widths)

    full = apply(model, params, example)
    silent = apply(model, silence(params, axes, kept), example)
    narrow = apply(small, sub, example)
    np.testing.assert_allclose(narrow, silent, atol=1e-5, rtol=1e-5)
    assert np.abs(full - silent).max() > 1e-3  # the dropped units did speak


@pytest.mark.parametrize("name", models.NAMES)
def test_models_are_equal_by_value(name):
    (model, example), (again, _) = tiny(name), tiny(name)
    assert model == again and hash(model) == hash(again)
    axes, axes_again = units.unit_axes(model, example), units.unit_axes(again, example)
    assert axes == axes_again and hash(axes) == hash(axes_again)
    first = next(iter(model.widths))
    smaller = model.clone(widths=FrozenDict({**model.widths, first: 1}))
    assert smaller != model
    traced = []
    count = jax.jit(lambda model: traced.append(model), static_argnums=0)
    for each in (model, again, smaller):
        count(each)
    assert len(traced) == 2


@pytest.mark.parametrize("name", models.NAMES)
def test_classes_belong_to_no_width(name):
    model, example = tiny(name)
    shapes = units.param_shapes(model, example)
    axes = units.unit_axes(model, example)
    classes = [path for path, shape in shapes.items() if 7 in shape]
    assert classes
    for path in classes:
        assert axes.of(path)[shapes[path].index(7)] is None


@pytest.mark.parametrize("name", models.NAMES)
def test_dropout_acts_in_training_only(name, random_params):
    model, example = tiny(name)
    params = random_params(model, example)
    keys = jax.random.split(jax.random.key(5))
    still = apply(model, params, example)  # needs no key
    first, again, second = (
        apply(model, params, example, train=True, rngs={"dropout": key})
        for key in (keys[0], keys[0], keys[1])
    )
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - second).max() > 1e-3) == (name in RANDOM)
    assert (np.abs(first - still).max() > 1e-3) == (name in RANDOM)


@pytest.mark.parametrize(
    "name",
    [
        "emnist_cnn",
        "resnet18_gn",
        "densenet",
        "char_lstm",
        "char_transformer",
        "transformer_classifier",
    ],
)
def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(name, random_params):
    (model, example), (half, _) = tiny(name), tiny(name, dtype="bfloat16")
    fresh = jax.eval_shape(lambda key: units.init_params(half, key, example), jax.random.key(0))
    assert {a.dtype for a in fresh.values()} == {jnp.dtype("float32")}
    params = random_params(model, example)
    exact, rounded = apply(model, params, example), apply(half, params, example)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()


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
        ("densenet", 10, {}, IMAGE32, 176_122),
        ("densenet", 100, {}, IMAGE32, 188_092),
        ("densenet", 100, {"norm": "group"}, IMAGE32, 188_092),
        (
            "resnet18_gn",
            10,
            {"stem": "cifar", "stage_strides": (1, 2, 2, 2)},
            IMAGE32,
            11_173_962,
        ),
        ("resnet26", 10, {}, IMAGE32, 5_817_258),
        ("char_lstm", 90, {}, SENTENCE, 820_522),
        ("word_lstm", 10_004, {}, SENTENCE, 4_050_748),
        ("char_transformer", 90, {}, SENTENCE, 407_776),
        ("word_transformer", 10_004, {}, SENTENCE, 4_211_680),
        ("word_transformer", 10_004, {"layers": 2}, SENTENCE, 7_364_064),
        ("word_transformer", 10_004, {"layers": 3}, SENTENCE, 10_516_448),
        ("transformer_classifier", 2, {"vocabulary_size": 1}, SENTENCE, 905_297),
        ("transformer_classifier", 2, {}, SENTENCE, 905_197 + 100 * 20_004),
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
        ("resnet26", {"stem_width": 24}, "'stem_width' has 24 channels, which are no whole"),
        ("resnet26", {"stage_widths": (64, 32, 64)}, "shrink"),
        ("resnet26", {"stem_width": 128}, "shrink"),
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
        ("resnet26", TOKENS, "reads float images"),
        ("char_lstm", IMAGES, "reads integer tokens"),
        ("char_transformer", TOKENS.astype(jnp.float32), "reads integer tokens"),
    ],
)
def test_data_of_another_kind_is_refused(name, example, says):
    model, _ = tiny(name)
    with pytest.raises(UserError, match=says):
        units.param_shapes(model, example)


@pytest.mark.parametrize("name", models.NAMES)
def test_a_model_tells_of_its_norms(name):
    """Exactly where it has any: a parameter called scale is a norm's."""
    model, example = tiny(name)
    normal = any(path.endswith("/scale") for path in units.param_shapes(model, example))
    assert hasattr(model, "normalization") == normal
