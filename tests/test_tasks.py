"""Tasks: what padding may not change where the examples of a batch see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedlite import models, tasks
from fedlite.models import units

EXAMPLE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)


@pytest.fixture(scope="module")
def task():
    model = models.build("densenet", num_classes=4, growth=2, block_layers=(1, 1))
    return tasks.Classification(model, units.unit_axes(model, EXAMPLE))


def test_padded_examples_do_not_enter_the_statistics_of_a_batch(task):
    params = units.init_params(task.model, jax.random.key(0), EXAMPLE)
    x = np.asarray(jax.random.normal(jax.random.key(1), (5, 8, 8, 1)))
    y = np.array([0, 1, 2, 3, 0])
    padded = {"x": np.concatenate([x, 100 * np.ones((3, 8, 8, 1))]).astype(np.float32)}
    padded["y"] = np.concatenate([y, [1, 1, 1]])
    mask = jnp.array([1.0] * 5 + [0.0] * 3)
    plain = task.evaluate(params, {"x": x, "y": y})
    scores = task.evaluate(params, padded, mask)
    np.testing.assert_allclose(scores.loss[:5], plain.loss, rtol=1e-5)
    assert not np.allclose(task.evaluate(params, padded).loss[:5], plain.loss, rtol=1e-2)
    key = jax.random.key(2)
    loss = task.loss(params, {"x": x, "y": y}, jnp.ones(5), key)
    assert float(task.loss(params, padded, mask, key)) == pytest.approx(float(loss), rel=1e-5)
