"""A loss in branches: `lax.switch`, with the gradient of the branch that runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedlite.tasks.branches import switch


def _loss(power, params, operands):
    x, key = operands
    noise = jax.random.normal(key, x.shape)
    return jnp.sum((params["w"] * x + params["b"] + params["frozen"] * noise) ** power)


BRANCHES = tuple(functools.partial(_loss, power) for power in (1, 2, 3))


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("batched", (False, True))
def test_value_and_gradient_are_those_of_the_branch(index, batched):
    operands = jnp.arange(4.0), jax.random.key(1)
    trained = {"w": jnp.array([0.5, -1.0, 2.0, 3.0]), "b": jnp.float32(0.25)}
    read = {"frozen": jnp.float32(0.1)}

    def through(loss):
        gradient = jax.value_and_grad(lambda trained: loss({**trained, **read}))
        if batched:
            own = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), trained)
            return jax.vmap(gradient)(own)
        return jax.jit(gradient)(trained)

    found = through(lambda params: switch(BRANCHES, index, params, operands))
    plain = through(lambda params: BRANCHES[index](params, operands))
    assert set(found[1]) == {"w", "b"}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, plain)


def test_each_client_has_a_branch_of_its_own():
    operands = jnp.arange(4.0), jax.random.key(1)
    params = {"w": jnp.float32(2), "b": jnp.float32(1), "frozen": jnp.float32(0)}

    def gradient(index):
        return jax.grad(lambda params: switch(BRANCHES, index, params, operands))(params)["b"]

    # The sum over x of power * (2 x + 1) ** (power - 1).
    found = jax.vmap(gradient)(jnp.arange(3))
    np.testing.assert_allclose(found, [4, 2 * 16, 3 * (1 + 9 + 25 + 49)])
