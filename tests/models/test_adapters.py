"""Adapters: counts of the papers, outputs by hand, sub-models, refusals."""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from fedlite import models, tasks
from fedlite.errors import UserError
from fedlite.federated.server_optimizer import server_optimizer
from fedlite.models import layers, units
from fedlite.models.adapters import wrap
from tests import toy
from tests.models.test_models import IMAGES, TOKENS, apply, silence, take, tiny

CONVS = ((r"stem_conv|.*/conv[12]", 0),)
BLOCKS = ((r"layer\d/attention", 2), (r"layer\d/ffn1>ffn2", 3))
MODULES = ((r"block\d/attention", 2), (r"block\d/ffn\d/in>out", 3))
# name, kind, places
CASES = {
    "resnet26-parallel": ("resnet26", "parallel", CONVS),
    "resnet18_gn-series": ("resnet18_gn", "series", ((r".*/norm2|.*/conv2", 0),)),
    "resnet18_gn-lora": ("resnet18_gn", "lora", ((r".*/conv[12]", 2), ("logits", 3))),
    "emnist_cnn-parallel": ("emnist_cnn", "parallel", (("conv1", 0), ("conv2", 2), ("dense1", 2))),
    "transformer-parallel": ("char_transformer", "parallel", BLOCKS),
    "transformer-lora": ("char_transformer", "lora", ((r".*/(query|out|ffn1)", 2),)),
    "conformer-parallel": ("conformer", "parallel", MODULES),
    "transformer-series": ("char_transformer", "series", ((r".*/(query|ffn2|norm2)", 2),)),
}


@pytest.fixture(scope="module", autouse=True)
def unfused():
    """Compiles in half the time; and without fusions, which round in another order."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


IMAGE32 = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


def make(case, init="zero"):
    name, kind, places = CASES[case]
    model, example = tiny(name)
    return model, wrap(model, kind, places, init), example


@pytest.mark.parametrize(
    ("name", "options", "backbone", "kernels", "shortcuts", "adapters", "sent"),
    [
        ("resnet26", {}, 5_817_258, 5_806_944, 0, 645_216, 655_530),
        (
            "resnet18_gn",
            {"stem": "cifar", "stage_strides": (1, 2, 2, 2)},
            11_173_962,
            10_987_200,
            172_032,
            1_220_800,
            1_235_530,
        ),
    ],
)
def test_counts_of_the_papers(name, options, backbone, kernels, shortcuts, adapters, sent):
    model = models.build(name, num_classes=10, **options)
    shapes = units.param_shapes(wrap(model, "parallel", CONVS), IMAGE32)

    def count(*marks):
        return sum(
            math.prod(s) for path, s in shapes.items() if any(mark in path for mark in marks)
        )

    assert count("") - count("adapters/") == backbone
    assert count("adapters/") == adapters
    assert count("shortcut_conv") == shortcuts
    assert count("norm", "logits", "adapters/") == sent
    assert backbone - shortcuts - count("norm", "logits") == kernels
    # "Roughly 90 %" fewer bytes.
    assert 0.887 < 1 - sent / backbone < 0.8895


@pytest.mark.parametrize("case", ["resnet26-parallel", "transformer-parallel", "transformer-lora"])
def test_zero_adapters_change_nothing_and_the_backbone_keeps_its_bits(case):
    model, adapted, example = make(case)
    params = units.init_params(adapted, jax.random.key(1), example)
    backbone = {path: value for path, value in params.items() if not path.startswith("adapters/")}
    fresh = units.init_params(model, jax.random.key(1), example)
    assert backbone.keys() == fresh.keys() and len(params) > len(fresh)
    for path, value in fresh.items():
        np.testing.assert_array_equal(backbone[path], value)
    plain = apply(model, fresh, example)
    np.testing.assert_array_equal(apply(adapted, params, example), plain)


def test_zero_adapters_change_nothing_of_speech_within_its_frames():
    model, adapted, example = make("conformer-parallel")
    params = units.init_params(adapted, jax.random.key(1), example)
    fresh = {path: value for path, value in params.items() if not path.startswith("adapters/")}
    frames = np.array([12, 7], np.int32)
    logits = apply(adapted, params, example, frames=frames)
    np.testing.assert_array_equal(logits, apply(model, fresh, example, frames=frames))
    # They got there: without them the second utterance is a longer one.
    whole = apply(adapted, params, example)
    assert np.abs(whole - logits)[1].max() > 1e-3 and not np.abs(whole - logits)[0].max() > 1e-5
    assert adapted.output_frames(frames).tolist() == [3, 2]


@pytest.mark.parametrize("case", CASES)
def test_submodels_slice_adapters_too(case, random_params):
    _, adapted, example = make(case)
    axes = units.unit_axes(adapted, example)
    params = random_params(adapted, example, 0.3)
    rng = np.random.default_rng(3)
    kept = {
        width: np.sort(rng.choice(n, max(1, n - 1 - i % 2), replace=False))
        for i, (width, n) in enumerate(adapted.widths.items())
    }
    small = adapted.clone(widths=FrozenDict({width: len(k) for width, k in kept.items()}))
    sub = take(params, axes, kept)
    shapes = {path: array.shape for path, array in sub.items()}
    assert shapes == units.param_shapes(small, example)
    silent = apply(adapted, silence(params, axes, kept), example)
    np.testing.assert_allclose(apply(small, sub, example), silent, atol=1e-5, rtol=1e-5)


def test_equal_by_value():
    for case in CASES:
        (_, one, _), (_, two, _) = make(case), make(case)
        assert one == two and hash(one) == hash(two)
        assert one != make(case, "normal")[1]
    model, _ = tiny("mlp")
    assert wrap(model) is model


class Net(nn.Module):
    """A convolution by itself."""

    size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: str = "SAME"
    pool: int = 1
    widths: FrozenDict = FrozenDict()
    convolution: str = "xla"

    @nn.compact
    def __call__(self, x, *, train=False):
        return layers.Conv(
            4,
            self.size,
            self.strides,
            self.padding,
            pool=self.pool,
            implementation=self.convolution,
            name="conv",
        )(x)


@pytest.mark.parametrize(
    ("size", "strides", "padding", "pool"),
    [
        ((3, 3), (1, 1), "SAME", 1),
        ((5, 3), (1, 1), "VALID", 1),
        ((3, 3), (2, 2), "VALID", 1),
        ((3, 3), (1, 1), "SAME", 2),
        ((3, 3), (1, 1), "VALID", 2),
    ],
)
def test_a_parallel_1x1_convolution_is_a_change_of_the_middle_tap(
    size, strides, padding, pool, random_params
):
    net = Net(size, strides, padding, pool)
    adapted = wrap(net, "parallel", (("conv", 0),))
    params = random_params(adapted, IMAGES)
    merged = {"conv/kernel": params["conv/kernel"].copy(), "conv/bias": params["conv/bias"]}
    merged["conv/kernel"][size[0] // 2, size[1] // 2] += params["adapters/conv/kernel"][0, 0]
    np.testing.assert_allclose(
        apply(adapted, params, IMAGES), apply(net, merged, IMAGES), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("strides", "pool"), [((2, 2), 1), ((1, 1), 2)])
def test_lora_is_a_change_of_the_kernel_of_low_rank(strides, pool, random_params):
    net = Net(strides=strides, pool=pool)
    adapted = wrap(net, "lora", (("conv", 2),))
    params = random_params(adapted, IMAGES)
    down, up = (params[f"adapters/conv/{name}/kernel"] for name in ("down", "up"))
    assert down.shape == (3, 3, 2, 2) and up.shape == (1, 1, 2, 4)
    merged = {
        "conv/kernel": params["conv/kernel"] + np.einsum("hwcr,rd->hwcd", down, up[0, 0]),
        "conv/bias": params["conv/bias"],
    }
    np.testing.assert_allclose(
        apply(adapted, params, IMAGES), apply(net, merged, IMAGES), atol=1e-5, rtol=1e-5
    )


def test_a_bottleneck_stands_beside_the_whole_feed_forward(random_params):
    """Layer 1 by hand: norm2(x + ffn2(relu(ffn1(x))) + up(relu(down(x))))."""

    class Layer(nn.Module):
        widths: FrozenDict = FrozenDict()

        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(4, name="ffn2")(nn.relu(nn.Dense(6, name="ffn1")(x)))

    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    parallel = wrap(Layer(), "parallel", (("ffn1>ffn2", 3),))
    series = wrap(Layer(), "series", (("ffn2", 3),))
    for model, place in ((parallel, "ffn1"), (series, "ffn2")):
        p = random_params(model, x)
        y = np.maximum(x @ p["ffn1/kernel"] + p["ffn1/bias"], 0)
        y = y @ p["ffn2/kernel"] + p["ffn2/bias"]
        at = f"adapters/{place}"
        z = x if model is parallel else y
        z = np.maximum(z @ p[f"{at}/down/kernel"] + p[f"{at}/down/bias"], 0)
        y = y + z @ p[f"{at}/up/kernel"] + p[f"{at}/up/bias"]
        np.testing.assert_allclose(apply(model, p, x), y, atol=1e-5, rtol=1e-5)


def test_normal_init_has_the_deviation_of_the_paper():
    images = jnp.zeros((1, 4, 4, 4000))
    for init, deviation in (("normal", math.sqrt(2 / 4)), ("zero", 0)):
        wide = wrap(Net(), "parallel", (("conv", 0),), init)
        kernel = units.init_params(wide, jax.random.key(0), images)["adapters/conv/kernel"]
        assert kernel.shape == (1, 1, 4000, 4)
        assert abs(float(kernel.std()) - deviation) <= 0.02 * deviation


def test_the_first_matching_place_gives_the_rank():
    model, example = tiny("resnet26")
    adapted = wrap(model, "parallel", (("stage1.*/conv1", 2), (".*/conv1", 3)))
    shapes = units.param_shapes(adapted, example)
    assert shapes["adapters/stage1_block1/conv1/down/kernel"][-1] == 2
    assert shapes["adapters/stage2_block1/conv1/down/kernel"][-1] == 3


def test_the_convolution_may_be_replaced(random_params):
    net = Net()
    adapted = wrap(net, "parallel", (("conv", 0),))
    params = random_params(adapted, IMAGES)
    patches = adapted.clone(convolution="patches")
    text = str(jax.make_jaxpr(lambda p: units.apply(patches, p, IMAGES))(params))
    assert "conv_general_dilated" not in text
    model, _ = tiny("char_transformer")
    wrapped = wrap(model, "parallel", BLOCKS).clone(convolution="xla")
    assert units.param_shapes(wrapped, TOKENS)


def test_bfloat16(random_params):
    model, example = tiny("resnet26", dtype="bfloat16")
    adapted = wrap(model, "parallel", CONVS, "normal")
    params = jax.eval_shape(lambda: units.init_params(adapted, jax.random.key(0), example))
    assert {value.dtype for value in params.values()} == {jnp.dtype("float32")}
    params = random_params(adapted, example)
    assert apply(adapted, params, example).dtype == jnp.float32


@pytest.mark.parametrize(
    ("kind", "places", "init", "says"),
    [
        ("side", (("conv1", 0),), "zero", "adapters.kind is 'side'; use one of none, parallel"),
        ("parallel", (("conv1", 0),), "one", "adapters.init is 'one'; use one of zero, normal"),
        ("parallel", (), "zero", "'parallel' with 0 adapters.places"),
        ("none", (("conv1", 0),), "zero", "'none' with 1 adapters.places"),
        ("parallel", ("conv1",), "zero", "pairs"),
        ("parallel", (("conv1", -1),), "zero", "pairs"),
        ("parallel", (("conv1", 1.0),), "zero", "pairs"),
        ("parallel", (("(", 1),), "zero", "not a regular expression"),
        ("lora", (("conv1", 0),), "zero", "lora needs at least 1"),
        ("series", (("conv1>conv2", 1),), "zero", "spans two layers"),
        ("parallel", (("conv9", 0),), "zero", "'conv9' matches the whole path of no submodule"),
        ("parallel", (("conv.", 0), ("conv1", 0)), "zero", "'conv1' matches the whole path of no"),
        ("parallel", (("conv1>conv9", 1),), "zero", "no 'conv9' is called after 'conv1'"),
        ("parallel", (("conv1>conv2", 1),), "zero", "no branch can stand beside it"),
        ("lora", (("Dropout_0", 1),), "zero", "is a Dropout; name convolutions and dense"),
    ],
)
def test_bad_arguments_are_named(kind, places, init, says):
    model, example = tiny("emnist_cnn")
    with pytest.raises(UserError) as error:
        units.param_shapes(wrap(model, kind, places, init), example)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_tokens_are_no_input_of_an_adapter():
    model, example = tiny("char_transformer")
    with pytest.raises(UserError, match="'embed' does not map floats to floats"):
        units.param_shapes(wrap(model, "parallel", (("embed", 2),)), example)


TECHNIQUES = {
    "FedAvg": ("", "sgd", {}),
    "FedProx": ("fedprox", "sgd", {"fedprox": {"mu": 0.1}}),
    "SCAFFOLD": ("scaffold", "sgd", {}),
    "FedNova": ("fednova", "momentum", {}),
    "FedAdam": ("", "adam", {}),
    "FedYogi": ("", "yogi", {}),
    "FedBN": ("local_parameters", "sgd", {"local_parameters": {"local": (("logits/bias", True),)}}),
    "FedOBD": ("quantize+fedobd", "sgd", {"quantize": {"up": "nnadq0.001", "down": "nnadq0.001"}}),
    # Dropped from and quantised around.
    "all together": ("fednova+scaffold+federated_dropout+quantize+fedprox", "momentum", {}),
}


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_frozen_backbones_keep_their_bits_under_every_technique(technique):
    """A backbone that is sent once, while adapters train."""
    spec, server, sections = TECHNIQUES[technique]
    model = wrap(toy.make_task().model, "parallel", (("dense1", 2), ("dense2", 0)))
    task = tasks.Classification(model, units.unit_axes(model, toy.EXAMPLE))
    params = toy.make_params(task)
    trained = "adapters/.*|logits/.*"
    method = toy.make_method(
        task,
        "partial_training" + (spec and f"+{spec}"),
        partial_training={"freeze": ((trained, False), (".*", True)), "origin": "sent"},
        **sections,
    )
    engine = toy.make_engine(task, method, server=server_optimizer(server, learning_rate=0.7))
    server, results = toy.run(engine, params, 2)
    frozen = [path for path in params if not re.fullmatch(trained, path)]
    assert len(frozen) == 4
    moved = {path for path in params if not np.array_equal(server.params[path], params[path])}
    assert not moved & set(frozen)
    # A block may not be sent, and what a client keeps to itself never moves on the server.
    expected = {"FedOBD": {"logits/kernel"}, "FedBN": set(params) - {*frozen, "logits/bias"}}
    assert moved >= expected.get(technique, set(params) - set(frozen))
    assert results[0].once == 4 * sum(params[path].size for path in frozen)


def test_an_adapted_backbone_still_masks_its_statistics():
    options = {"growth": 2, "block_layers": (2,), "group_size": 2, "convolution": "xla"}
    backbone = models.build("densenet", num_classes=3, **options)
    model = wrap(backbone, "parallel", ((r"stem", 0),))
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    example = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    task = tasks.Classification(model, units.unit_axes(model, example))
    params = units.init_params(model, jax.random.key(0), example)
    logits = jax.jit(lambda x, mask: task.apply(params, x, mask=mask))
    mask, other = jnp.array([1.0, 1, 1, 0]), x.at[3].set(5)
    np.testing.assert_array_equal(logits(x, mask)[:3], logits(other, mask)[:3])
    everyone = jnp.ones(4)
    assert jnp.abs(logits(x, everyone)[:3] - logits(other, everyone)[:3]).max() > 1e-3
