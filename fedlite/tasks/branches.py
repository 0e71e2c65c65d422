"""A loss that is computed in one of several ways, with its gradient."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

Branch = Callable[[Mapping[str, Any], Any], jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def switch(branches: tuple[Branch, ...], index, params: Mapping[str, Any], operands) -> jax.Array:
    """`lax.switch` whose gradient is computed within the branch that runs.

    The gradient of `lax.switch` itself hands the intermediate values of every branch out of the
    conditional, as zeros for those that did not run: with three lengths of an utterance that is a
    third of a training step on a CPU.

    Args:
      branches: each maps (params, operands) to a scalar; they close over no traced value.
      index: of the branch, an int32 scalar.
      params: arrays by name, for which alone there is a gradient.
      operands: any tree of arrays.
    """
    return jax.lax.switch(index, branches, params, operands)


def _forward(branches, index, params, operands):
    moved = {name: primal.value for name, primal in params.items() if primal.perturbed}
    still = {name: primal.value for name, primal in params.items() if not primal.perturbed}
    index, operands = jax.tree.map(lambda primal: primal.value, (index, operands), is_leaf=_primal)

    def graded(branch):
        def value_and_gradient(moved, still, operands):
            return jax.value_and_grad(lambda moved: branch({**still, **moved}, operands))(moved)

        return value_and_gradient

    value, gradient = jax.lax.switch(
        index, [graded(branch) for branch in branches], moved, still, operands
    )
    return value, {**dict.fromkeys(still), **gradient}


def _backward(branches, gradient, cotangent):
    # None is the gradient of what has none.
    return None, {k: None if g is None else g * cotangent for k, g in gradient.items()}, None


def _primal(node) -> bool:
    return hasattr(node, "perturbed")


switch.defvjp(_forward, _backward, symbolic_zeros=True)
