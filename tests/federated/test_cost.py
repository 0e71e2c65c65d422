"""Client cost from the compiled step."""

import jax
import jax.numpy as jnp
import pytest

from fedlite import models, tasks
from fedlite.federated.cost import client_cost
from fedlite.federated.round import init_server
from fedlite.federated.server_optimizer import server_optimizer
from fedlite.models import units
from tests import toy


@pytest.fixture(scope="module")
def emnist():
    example = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    model = models.build("emnist_cnn", num_classes=62)
    return tasks.Classification(model, units.unit_axes(model, example)), example


def _cost(emnist, spec, **sections):
    task, example = emnist
    params = units.init_params(task.model, jax.random.key(0), example)
    context = toy.make_context(toy.make_task())._replace(
        axes=task.axes, shapes=units.param_shapes(task.model, example)
    )
    from fedlite import methods

    method = methods.build_chain(spec, context, sections)
    engine = toy.make_engine(toy.make_task(), method, batch_size=20)
    arrays = {
        "x": jax.ShapeDtypeStruct((9, 28, 28, 1), jnp.uint8),
        "y": jax.ShapeDtypeStruct((9,), jnp.int32),
    }
    server = init_server(method, params, server_optimizer(), jax.random.key(1))
    return client_cost(task, method, engine.local_plan(engine.recipe), server, arrays)


def test_methods_make_the_compiled_step_cheaper(emnist, optimized):
    full = _cost(emnist, "fedavg")
    assert full.params == full.trained_params == 1_206_590
    # Forward, and backward to weights and inputs, of 2 * 72.9 M / 6 multiply-adds.
    assert full.flops_per_example == pytest.approx(72.9e6, rel=0.02)
    # Parameters, gradients and the batch's activations at least.
    assert full.peak_memory_bytes > 2 * 4 * 1_206_590

    half = _cost(emnist, "federated_dropout")
    assert half.params == half.trained_params == 303_806
    assert full.flops_per_example / half.flops_per_example == pytest.approx(3.9, abs=0.1)
    assert half.peak_memory_bytes < 0.5 * full.peak_memory_bytes

    freeze = {"freeze": (("dense1/.*", True),)}
    frozen = _cost(emnist, "partial_training", partial_training=freeze)
    assert frozen.params == 1_206_590
    assert frozen.trained_params == 26_814
    assert frozen.flops_per_example < full.flops_per_example
    assert frozen.peak_memory_bytes < full.peak_memory_bytes
