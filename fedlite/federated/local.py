"""Local training: what one client does in a round."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedlite.methods import Method, Report, View
from fedlite.tasks import Task


class ClientData(NamedTuple):
    """Where one client's examples lie.

    Attributes:
      arrays: flat arrays by name, each [examples of all clients, ...].
      start: index of the client's first example.
      size: its number of examples; 0 for a client that only fills a chunk.
    """

    arrays: Mapping[str, Any]
    start: Any
    size: Any


@dataclasses.dataclass(frozen=True)
class ClientOptimizer:
    """The optimiser of the local steps, without its learning rate, which a recipe gives.

    Attributes:
      momentum: of SGD; 0 for none.
      weight_decay: decoupled from momentum, added to the gradient.
      clip: global norm to which each step's gradient is clipped; 0 for no clipping.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = 0.0

    def make(self, lr) -> optax.GradientTransformation:
        """An optax optimiser; `lr` may be traced."""
        steps = []
        if self.clip:
            steps.append(optax.clip_by_global_norm(self.clip))
        if self.weight_decay:
            steps.append(optax.add_decayed_weights(self.weight_decay))
        return optax.chain(*steps, optax.sgd(lr, self.momentum or None))


@dataclasses.dataclass(frozen=True)
class LocalPlan:
    """The static side of local training.

    Attributes:
      optimizer: of the client.
      epochs: passes over the client's examples.
      batch_size: of a step; the last batch of an epoch may hold fewer examples.
      max_size: no client has more examples.
      unroll: whether steps are unrolled instead of looped; then every client runs as many
        steps as one of `max_size` examples.
    """

    optimizer: ClientOptimizer
    epochs: int
    batch_size: int
    max_size: int
    unroll: bool = False

    @property
    def max_steps(self) -> int:
        """Steps an epoch of the largest client."""
        return -(-self.max_size // self.batch_size)


def make_step(task: Task, optimizer: optax.GradientTransformation, read: Mapping[str, Any]):
    """The plain training step.

    Returns:
      (trained, opt_state, batch, mask, key) -> (trained, opt_state, loss).
    """

    def step(trained, opt_state, batch, mask, key):
        def loss_of(trained):
            return task.loss({**read, **trained}, batch, mask, key)

        loss, gradients = jax.value_and_grad(loss_of)(trained)
        updates, opt_state = optimizer.update(gradients, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, loss

    return step


def values(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters among parts: values by path, without a method's tagged data."""
    return {path: part.value for path, part in parts.items() if ":" not in path}


def train_locally(
    task: Task, method: Method, plan: LocalPlan, view: View, data: ClientData, key, lr, steps
) -> tuple[dict[str, Any], Report]:
    """A client's epochs from the parameters of `view`.

    Args:
      task: gives the loss.
      method: wraps the client's optimiser.
      plan: static.
      view: what the client received.
      data: of this client.
      key: of this client and round; batches and dropout are a function of it alone.
      lr: learning rate, a scalar.
      steps: steps an epoch, the same for all clients of a chunk and enough for each; a
        client's steps beyond its own data change nothing.

    Returns:
      The update (trained minus received) of each trained parameter, and the report.
    """
    optimizer = method.client_optimizer(view, plan.optimizer.make(lr))
    received = values(view.trained)
    step = make_step(task, optimizer, values(view.read))
    shuffle_key, step_key = jax.random.split(key)

    def epoch(index, carry):
        draws = jax.random.uniform(jax.random.fold_in(shuffle_key, index), (plan.max_size,))
        # Sorting puts the client's own examples first, in random order.
        order = jnp.argsort(jnp.where(jnp.arange(plan.max_size) < data.size, draws, 2.0))
        order = jnp.pad(order, (0, plan.max_steps * plan.batch_size - plan.max_size))
        # All at once: the generator runs a small loop for each key.
        epoch_key = jax.random.fold_in(step_key, index)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(epoch_key, jnp.arange(plan.max_steps))

        def body(position, carry):
            trained, opt_state, loss_sum, taken = carry
            begin = position * plan.batch_size
            rows = jax.lax.dynamic_slice(order, (begin,), (plan.batch_size,))
            mask = begin + jnp.arange(plan.batch_size) < data.size
            # A padded row reads the client's first example; its mask is 0.
            rows = data.start + jnp.where(mask, rows, 0)
            batch = {k: jnp.take(a, rows, axis=0, mode="clip") for k, a in data.arrays.items()}
            mask = mask.astype(jnp.float32)
            real = begin < data.size
            moved = step(trained, opt_state, batch, mask, keys[position])
            trained, opt_state = jax.tree.map(
                lambda new, old: jnp.where(real, new, old), moved[:2], (trained, opt_state)
            )
            # A select and not a product: the loss of a batch of nothing may be NaN.
            loss_sum += jnp.where(real, moved[2], 0.0) * jnp.sum(mask)
            return trained, opt_state, loss_sum, taken + real

        if plan.unroll:
            for position in range(plan.max_steps):
                carry = body(position, carry)
            return carry
        return jax.lax.fori_loop(0, steps, body, carry)

    carry = (received, optimizer.init(received), jnp.float32(0), jnp.int32(0))
    if plan.unroll:
        for index in range(plan.epochs):
            carry = epoch(index, carry)
    else:
        carry = jax.lax.fori_loop(0, plan.epochs, epoch, carry)
    trained, _, loss_sum, taken = carry
    update = jax.tree.map(jnp.subtract, trained, received)
    seen = jnp.maximum(data.size * plan.epochs, 1)
    return update, Report(loss_sum / seen, data.size, taken, taken * lr)
