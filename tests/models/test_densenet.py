"""DenseNet: its norms, its widths, and layers by hand; counts are in test_models.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedlite import models
from fedlite.errors import UserError
from fedlite.models import units
from fedlite.models.densenet import Transition

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 8, 8, 3)).astype(np.float32)
SMALL = {"num_classes": 3, "growth": 2, "block_layers": (2, 1), "convolution": "xla"}

apply = jax.jit(units.apply, static_argnums=0)


@pytest.fixture(scope="module")
def small(random_params):
    """A model by norm, with parameters."""

    def make(norm):
        # One block compiles in half the time; transitions are tested apart.
        model = models.build("densenet", norm=norm, group_size=2, **{**SMALL, "block_layers": (2,)})
        return model, random_params(model, IMAGES)

    return make


def test_masked_examples_change_nothing_and_learn_nothing(small):
    model, params = small("batch")
    mask = jnp.array([1.0, 1.0, 1.0, 0.0])

    @jax.jit
    def loss(params, x):
        return jnp.sum(units.apply(model, params, x, train=True, mask=mask)[:3] ** 2)

    other = IMAGES.copy()
    other[3] = 5
    gradient = jax.jit(jax.value_and_grad(loss))
    for one, two in zip(
        jax.tree.leaves(gradient(params, IMAGES)), jax.tree.leaves(gradient(params, other))
    ):
        np.testing.assert_array_equal(one, two)
    alone = apply(model, params, IMAGES[:3])
    masked = apply(model, params, other, mask=mask)[:3]
    np.testing.assert_allclose(masked, alone, rtol=1e-4, atol=1e-5)
    assert np.abs(apply(model, params, other)[:3] - alone).max() > 1e-3


def test_a_batch_of_padding_alone_stays_finite(small):
    model, params = small("batch")

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.sum(units.apply(model, params, IMAGES, mask=jnp.zeros(4)))

    assert all(np.isfinite(g).all() for g in gradient(params).values())


def test_group_norm_depends_on_the_example_alone(small):
    model, params = small("group")
    np.testing.assert_allclose(
        apply(model, params, IMAGES)[:2], apply(model, params, IMAGES[:2]), rtol=1e-5, atol=1e-6
    )
    batch, _ = small("batch")
    assert np.abs(apply(batch, params, IMAGES)[:2] - apply(batch, params, IMAGES[:2])).max() > 1e-3


def test_norms_share_parameters_and_widths_count_their_units(small):
    (batch, params), (group, same) = small("batch"), small("group")
    assert params.keys() == same.keys()
    assert set(batch.widths.values()) == {8} and set(group.widths.values()) == {4}
    kernel = "block1_layer2/conv2/kernel"
    for model, size in ((batch, 1), (group, 2)):
        axes = units.unit_axes(model, IMAGES)
        assert axes.of(kernel) == (None, None, ("block1_layer2/conv1", size), None)
        assert axes.of("final_norm/scale") == (None,)


def test_transition_halves_and_cuts_odd_images():
    x = np.arange(2 * 5 * 3 * 4, dtype=np.float32).reshape(2, 5, 3, 4)
    module = Transition("group", 4, "xla")
    variables = module.init(jax.random.key(0), x, None, False)
    kernel = jnp.zeros((1, 1, 4, 2)).at[0, 0, 1, 0].set(1)
    # Large biases keep all values positive, so that ReLU is the identity.
    variables["params"]["conv"]["kernel"] = kernel
    variables["params"]["norm"]["bias"] = jnp.full(4, 10.0)
    y = module.apply(variables, x, None, False)
    assert y.shape == (2, 2, 1, 2)
    normed = (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True) + 10
    np.testing.assert_allclose(y[:, 1, 0, 0], normed[:, 2:4, 0:2, 1].mean((1, 2)), rtol=1e-4)
    assert not y[..., 1].any()


def test_layers_append_to_their_input():
    model = models.build("densenet", norm="batch", **SMALL)
    shapes = units.param_shapes(model, IMAGES)
    assert shapes["block1_layer2/conv1/kernel"] == (1, 1, 6, 8)
    assert shapes["transition1/conv/kernel"] == (1, 1, 8, 4)
    assert shapes["logits/kernel"] == (6, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"norm": "layer"}, "'norm' is 'layer'; use one of 'group', 'batch', 'running', 'fixed'"),
        ({"block_layers": ()}, "'block_layers' is empty"),
        ({"norm": "group", "group_size": 5}, "'group_size' is 5, .* use a divisor of 12"),
        ({"norm": "group", "block_layers": (1, 1)}, "18, 24, 30, 36, 48 channels"),
    ],
)
def test_wrong_options_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        models.build("densenet", num_classes=2, **options)


def test_small_images_are_refused():
    model = models.build("densenet", num_classes=2)
    with pytest.raises(UserError, match="at least 4x4"):
        units.param_shapes(model, IMAGES[:, :3])
