"""Semantic blocks: the counts of the paper's models, each rule by hand, a partition always."""

import collections

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlite import models
from fedlite.errors import UserError
from fedlite.models import units
from fedlite.models.blocks import semantic_blocks

IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((1, 5), jnp.int32)


def blocks_of(name, example, overrides=(), **options):
    model = models.build(name, num_classes=2, **options)
    return semantic_blocks(units.param_shapes(model, example), overrides)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_densenet40_has_41_blocks(norm):
    blocks = blocks_of("densenet", IMAGE, norm=norm)
    names = set(blocks.values())
    layers = {f"block{i}_layer{j}" for i in (1, 2, 3) for j in range(1, 7)}
    convolutions = {f"{layer}/conv{k}" for layer in layers for k in (1, 2)}
    assert names == convolutions | {
        "stem",
        "transition1/conv",
        "transition2/conv",
        "final_norm",
        "logits",
    }
    assert len(names) == 41
    inside = [path for path, block in blocks.items() if block == "block2_layer3/conv1"]
    layer = "block2_layer3"
    assert inside == [f"{layer}/conv1/kernel", f"{layer}/norm1/bias", f"{layer}/norm1/scale"]


def test_text_classifier_is_embedding_layers_and_head():
    blocks = blocks_of("transformer_classifier", TOKENS)
    assert collections.Counter(blocks.values()) == {
        "embed": 1,
        "layer1": 16,
        "layer2": 16,
        "logits": 2,
    }


def test_convolution_takes_the_norm_before_or_after_it():
    stages = {"stage_widths": (16,), "stage_blocks": (2,), "stage_strides": (1,)}
    names = set(blocks_of("resnet18_gn", IMAGE, **stages).values())
    assert names == {
        "stem_conv",
        "stage1_block1/conv1",
        "stage1_block1/conv2",
        "stage1_block2/conv1",
        "stage1_block2/conv2",
        "final_norm",
        "logits",
    }


def test_layers_without_norms_are_blocks():
    names = set(blocks_of("emnist_cnn", IMAGE).values())
    assert names == {"conv1", "conv2", "dense1", "logits"}


def test_bottleneck_is_a_block():
    modules = ("norm1", "conv1", "norm2", "conv2", "norm3", "conv3", "shortcut_conv")
    paths = [f"stage1/block1/{module}/kernel" for module in modules]
    assert set(semantic_blocks([*paths, "stage1/norm/scale"]).values()) == {
        "stage1/block1",
        "stage1/norm",
    }
    without = semantic_blocks([path for path in paths if "conv2" not in path])
    assert without["stage1/block1/norm2/kernel"] == "stage1/block1/norm2"
    assert without["stage1/block1/norm3/kernel"] == "stage1/block1/conv3"


def test_parameter_outside_of_modules_is_a_block():
    assert semantic_blocks(["scale", "a/b"]) == {"a/b": "a", "scale": "scale"}


def test_first_override_wins():
    overrides = ((r"(layer\d)/ffn\d/.*", r"\1/ffn"), (r"layer1/.*", "rest"))
    blocks = blocks_of("transformer_classifier", TOKENS, overrides)
    assert set(blocks.values()) == {"embed", "layer1/ffn", "rest", "layer2", "layer2/ffn", "logits"}
    assert blocks["layer1/ffn2/bias"] == "layer1/ffn"
    assert blocks["layer1/norm1/bias"] == "rest"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (("(", "a"), "pattern '\\(' .* is wrong"),
        (("a/b", r"\1"), "invalid group reference"),
        (("a", "b"), "'a' matches the whole of no parameter's path; the first are a/b"),
    ],
)
def test_wrong_overrides_are_refused(override, says):
    with pytest.raises(UserError, match=says):
        semantic_blocks(["a/b"], (override,))


def test_path_given_twice_is_refused():
    with pytest.raises(ValueError, match="must differ"):
        semantic_blocks(["a/b", "a/b"])


NAMES = st.sampled_from(["norm1", "conv1", "conv2", "conv3", "query", "key", "value", "kernel"])
PATHS = st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), unique=True)


@given(PATHS, st.randoms())
def test_blocks_are_a_partition_whatever_the_order(paths, random):
    blocks = semantic_blocks(paths)
    assert list(blocks) == sorted(paths) and all(blocks.values())
    shuffled = random.sample(paths, len(paths))
    assert list(semantic_blocks(shuffled).items()) == list(blocks.items())
