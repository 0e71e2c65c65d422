"""Batch normalisation by hand, and running statistics that no gradient of the loss moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedlite import models
from fedlite.models import units
from fedlite.models.normalization import RATE, BatchNorm, is_statistic

X = np.array([[1, 0], [3, 0], [5, 6], [100, 100]], np.float32).reshape(4, 1, 1, 2)
AFFINE = {"scale": jnp.array([2.0, 1.0]), "bias": jnp.array([0.5, 0.0])}
RUNNING = {"running_mean": jnp.array([1.0, 2.0]), "running_var": jnp.array([4.0, 9.0])}
THREE = jnp.array([1.0, 1.0, 1.0, 0.0])
# Of the first three.
MEAN, VARIANCE = np.array([3, 2]), np.array([8 / 3, 8])
STAGES = {"stage_widths": (4, 6), "stage_blocks": (1, 1), "stage_strides": (1, 2)}
SMALL = {
    "resnet26": {"stem_width": 4, "group_size": 2, **STAGES},
    "resnet18_gn": {"stem": "cifar", "group_size": 2, **STAGES},
    "densenet": {"growth": 2, "block_layers": (1, 1)},
}


def _apply(norm, params, mask=None, train=False):
    return BatchNorm(norm).apply({"params": params}, X, mask, train)


def test_batch_norm_by_hand():
    y = _apply("batch", AFFINE, THREE)
    expected = [[2 * -2 / np.sqrt(8 / 3) + 0.5, -2 / np.sqrt(8)], [0.5, -2 / np.sqrt(8)]]
    np.testing.assert_allclose(y[:2, 0, 0], expected, rtol=1e-4)
    all_counted = _apply("batch", AFFINE)
    np.testing.assert_allclose(np.mean(all_counted, (0, 1, 2)), [0.5, 0], atol=1e-5)
    np.testing.assert_allclose(np.std(all_counted, (0, 1, 2)), [2, 1], rtol=1e-4)


def test_in_training_the_batch_counts_and_at_test_what_ran():
    params = {**AFFINE, **RUNNING}
    by_batch = _apply("batch", AFFINE, THREE)
    np.testing.assert_array_equal(_apply("running", params, THREE, train=True), by_batch)
    # (1 - 1) / 2, (3 - 1) / 2, ... and (0 - 2) / 3, times the scale.
    expected = [[0.5, -2 / 3], [2.5, -2 / 3], [4.5, 4 / 3], [99.5, 98 / 3]]
    for norm, train in (("running", False), ("fixed", False), ("fixed", True)):
        y = _apply(norm, params, train=train)
        np.testing.assert_allclose(y[:, 0, 0], expected, rtol=1e-4)
    noisy = {**params, "running_var": jnp.array([-1.0, 9.0])}
    assert np.isfinite(_apply("running", noisy)).all()


@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_a_statistic_follows_the_batch_whatever_the_loss(factor):
    def loss(params, norm):
        return factor * jnp.sum(_apply(norm, params, THREE, train=True)[:3] ** 2)

    running = jax.grad(loss)({**AFFINE, **RUNNING}, "running")
    np.testing.assert_allclose(running["running_mean"], RATE * (np.array([1, 2]) - MEAN), 1e-5)
    np.testing.assert_allclose(running["running_var"], RATE * (np.array([4, 9]) - VARIANCE), 1e-5)
    by_batch = jax.grad(loss)(AFFINE, "batch")
    for name, gradient in by_batch.items():
        np.testing.assert_array_equal(running[name], gradient)
    fixed = jax.grad(loss)({**AFFINE, **RUNNING}, "fixed")
    assert not any(np.any(fixed[name]) for name in RUNNING)
    assert np.any(fixed["bias"]) == bool(factor)


@pytest.mark.parametrize("name", SMALL)
def test_every_norm_knows_of_training_and_of_padding(name):
    model = models.build(name, num_classes=3, norm="running", convolution="xla", **SMALL[name])
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    mask = jnp.array([1.0, 1.0, 0.0])
    params = units.init_params(model, jax.random.key(0), x)

    @jax.jit
    @jax.grad
    def gradient(params, x):
        y = units.apply(model, params, x, train=True, mask=mask)
        return jnp.sum(y[:2] ** 2)

    found = gradient(params, x)
    for path, value in gradient(params, np.concatenate([x[:2], 9 + x[2:]])).items():
        np.testing.assert_array_equal(value, found[path], err_msg=path)
        assert not is_statistic(path) or np.all(value != 0), path

    @jax.jit
    @jax.grad
    def at_test(params):
        return jnp.sum(units.apply(model, params, x) ** 2)

    tested = at_test(params)
    assert not any(np.any(value) for path, value in tested.items() if is_statistic(path))


@pytest.mark.parametrize("name", SMALL)
def test_statistics_are_parameters_of_the_same_units(name):
    model = models.build(name, num_classes=3, norm="running", **SMALL[name])
    example = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    shapes, axes = units.param_shapes(model, example), units.unit_axes(model, example)
    found = {path for path in shapes if is_statistic(path)}
    scales = {path for path in shapes if path.endswith("/scale")}
    assert found == {
        path.replace("scale", f"running_{moment}") for path in scales for moment in ("mean", "var")
    }
    for path in found:
        # As large as the scale beside it, and cut as that is: a unit is a channel.
        scale = path.rpartition("/")[0] + "/scale"
        assert shapes[path] == shapes[scale] and axes.of(path) == axes.of(scale)
    assert any(axis and axis.size == 1 for path in found for axis in axes.of(path))
    assert is_statistic(f"tag:{min(found)}") and not any(map(is_statistic, scales))


def test_the_paper_s_norms():
    """ResNet-26 with batch normalisation: a mean and a variance for each of 3,872 channels."""
    model = models.build("resnet26", num_classes=10, norm="running")
    shapes = units.param_shapes(model, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    sizes = {path: int(np.prod(shape)) for path, shape in shapes.items()}
    assert sum(sizes.values()) == 5_817_258 + 7_744
    assert sum(size for path, size in sizes.items() if not is_statistic(path)) == 5_817_258
    assert model.normalization == "batch, with running statistics" and model.reads_mask
