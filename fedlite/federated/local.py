"""Local training: what one client does in a round."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedlite.errors import UserError
from fedlite.federated import statistics
from fedlite.methods import Method, Report, View
from fedlite.models import compact
from fedlite.tasks import Scores, Task

SCHEDULES = ("constant", "cosine")
# Divides a client's examples for its validation, the same way in every round of every run.
_VALIDATION_SEED = 0x7A11D


class ClientData(NamedTuple):
    """Where one client's examples lie.

    Attributes:
      arrays: flat arrays by name, each [examples of all clients, ...].
      start: index of the client's first example.
      size: its number of examples; 0 for a client that only fills a chunk.
      client: its index in the population.
    """

    arrays: Mapping[str, Any]
    start: Any
    size: Any
    client: Any


@dataclasses.dataclass(frozen=True)
class ClientOptimizer:
    """The optimiser of the local steps, without its learning rate, which a recipe gives.

    Attributes:
      momentum: of SGD; 0 for none.
      weight_decay: decoupled from momentum, added to the gradient.
      clip: global norm to which each step's gradient is clipped; 0 for no clipping.
      schedule: of the learning rate over a round's epochs, one of `SCHEDULES`: "cosine" falls
        from its value in the first epoch towards 0, a step an epoch, anew in each round.
      decay_over_examples: whether the weight decay is divided by the client's examples.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = 0.0
    schedule: str = "constant"
    decay_over_examples: bool = False

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise UserError(
                f"client_optimizer.schedule must be one of {', '.join(SCHEDULES)}, not "
                f"{self.schedule!r}"
            )

    def make(self, lr, examples=1) -> optax.GradientTransformation:
        """An optax optimiser for a client with so many examples; both may be traced."""
        steps = []
        if self.clip:
            steps.append(optax.clip_by_global_norm(self.clip))
        if self.weight_decay:
            over = jnp.maximum(examples, 1) if self.decay_over_examples else 1
            steps.append(optax.add_decayed_weights(self.weight_decay / over))
        return statistics.apart(optax.chain(*steps, optax.sgd(lr, self.momentum or None)))

    def factor(self, epoch, epochs: int):
        """What the learning rate is multiplied by in an epoch of a round; 1.0 if constant."""
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + jnp.cos(math.pi * epoch / epochs))


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
      validation: share of each client's examples that it does not train on but chooses its
        best epoch by, the one of least loss (FedOBD; papers.md 6.2); 0 takes the last epoch.
      choose_epoch: whether it does so, or takes the last epoch all the same.
    """

    optimizer: ClientOptimizer
    epochs: int
    batch_size: int
    max_size: int
    unroll: bool = False
    validation: float = 0.0
    choose_epoch: bool = True

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
    """What the model reads of parts: no other data of a method than compact kernels' indices."""
    return {
        name: part.value
        for name, part in parts.items()
        if ":" not in name or compact.is_index(name)
    }


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
      The update (trained minus received) of each trained parameter, and the report, whose examples
      are those that the loss is made of.
    """
    received, read = values(view.trained), values(view.read)
    shuffle_key, step_key = jax.random.split(key)
    train_size = data.size - _held_out(plan, data)
    division = _division(plan, data) if plan.validation else None
    choose = plan.choose_epoch and plan.validation > 0

    def make_optimizer(epoch):
        rate = lr * plan.optimizer.factor(epoch, plan.epochs)
        return method.client_optimizer(view, plan.optimizer.make(rate, data.size))

    def epoch(index, carry):
        trained, opt_state, best, loss_sum, left_out, taken = carry
        step = make_step(task, make_optimizer(index), read)
        draws = jax.random.uniform(jax.random.fold_in(shuffle_key, index), (plan.max_size,))
        # Sorting puts the client's own examples first, in random order.
        order = jnp.argsort(jnp.where(jnp.arange(plan.max_size) < train_size, draws, 2.0))
        order = jnp.pad(order, (0, plan.max_steps * plan.batch_size - plan.max_size))
        # All at once: the generator runs a small loop for each key.
        epoch_key = jax.random.fold_in(step_key, index)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(epoch_key, jnp.arange(plan.max_steps))

        def body(position, carry):
            trained, opt_state, loss_sum, left_out, taken = carry
            batch, mask, real = _batch(plan, data, division, order, position, train_size)
            moved = step(trained, opt_state, batch, mask, keys[position])
            trained, opt_state = jax.tree.map(
                lambda new, old: jnp.where(real, new, old), moved[:2], (trained, opt_state)
            )
            counted = jnp.sum(task.usable(batch, mask))
            left_out += jnp.sum(mask) - counted
            # A select and not a product: the loss of a batch of nothing may be NaN.
            loss_sum += jnp.where(real, moved[2], 0.0) * counted
            return trained, opt_state, loss_sum, left_out, taken + real

        carry = (trained, opt_state, loss_sum, left_out, taken)
        carry = _loop(plan, plan.max_steps, steps, body, carry)
        trained, opt_state, loss_sum, left_out, taken = carry
        if choose:
            best = better(best, trained)
        return trained, opt_state, best, loss_sum, left_out, taken

    def better(best, trained):
        loss, weight = held_out_scores(task, plan, {**read, **trained}, data, steps)[:2]
        # A client too small to hold anything out keeps its last epoch; so does NaN, to be seen.
        loss = jnp.where(weight > 0, loss / jnp.maximum(weight, 1), -jnp.inf)
        least, kept = best
        won = ~(loss > least) | (weight == 0)
        return jnp.where(won, loss, least), jax.tree.map(
            lambda new, old: jnp.where(won, new, old), trained, kept
        )

    best = (jnp.float32(jnp.inf), received) if choose else ()
    opt_state = make_optimizer(0).init(received)
    carry = (received, opt_state, best, jnp.float32(0), jnp.float32(0), jnp.int32(0))
    carry = _loop(plan, plan.epochs, plan.epochs, epoch, carry)
    trained, _, best, loss_sum, left_out, taken = carry
    if choose:
        trained = best[1]
    update = jax.tree.map(jnp.subtract, trained, received)
    # Every epoch leaves out the same examples.
    left_out = (left_out / plan.epochs).astype(jnp.int32)
    seen = jnp.maximum((train_size - left_out) * plan.epochs, 1)
    factors = [plan.optimizer.factor(index, plan.epochs) for index in range(plan.epochs)]
    lr_sum = (
        taken * lr
        if plan.optimizer.schedule == "constant"
        else (taken * lr * sum(factors) / plan.epochs)
    )
    return update, Report(loss_sum / seen, data.size - left_out, taken, lr_sum)


def held_out_scores(task: Task, plan: LocalPlan, params, data: ClientData, steps) -> Scores:
    """A client's scores on the examples that it holds out, summed over them.

    Args:
      task: scores the model.
      plan: static; its `validation` is the share.
      params: of the client's model, by path.
      data: of this client.
      steps: enough to see all its examples.
    """
    size = _held_out(plan, data)
    order = jnp.roll(jnp.arange(plan.max_size), size - data.size)
    order = jnp.pad(order, (0, plan.max_steps * plan.batch_size - plan.max_size))
    division = _division(plan, data)

    def body(position, sums):
        batch, mask, _ = _batch(plan, data, division, order, position, size)
        more = task.evaluate(params, batch, mask)
        return Scores(*(a + jnp.sum(jnp.where(mask > 0, b, 0)) for a, b in zip(sums, more)))

    return _loop(plan, plan.max_steps, steps, body, Scores(*[jnp.float32(0)] * 4))


def _batch(plan: LocalPlan, data: ClientData, division, order, position, size):
    """A batch of the first `size` of a client's examples in an order.

    Returns:
      The arrays, float32 [batch] that is 1 for what is no padding, and whether anything is none.
    """
    begin = position * plan.batch_size
    rows = jax.lax.dynamic_slice(order, (begin,), (plan.batch_size,))
    mask = begin + jnp.arange(plan.batch_size) < size
    rows = rows if division is None else jnp.take(division, rows, mode="clip")
    # A padded row reads the client's first example; its mask is 0.
    rows = data.start + jnp.where(mask, rows, 0)
    batch = {k: jnp.take(a, rows, axis=0, mode="clip") for k, a in data.arrays.items()}
    return batch, mask.astype(jnp.float32), begin < size


def _loop(plan: LocalPlan, longest: int, count, body, carry):
    """`body` for 0 to `count` - 1; unrolled it runs `longest` times."""
    if not plan.unroll:
        return jax.lax.fori_loop(0, count, body, carry)
    for index in range(longest):
        carry = body(index, carry)
    return carry


def _held_out(plan: LocalPlan, data: ClientData):
    """How many of its examples a client holds out."""
    return jnp.int32(data.size * plan.validation) if plan.validation else 0


def _division(plan: LocalPlan, data: ClientData):
    """The client's examples in a fixed random order: the last ones are held out."""
    key = jax.random.fold_in(jax.random.key(_VALIDATION_SEED), jnp.maximum(data.client, 0))
    draws = jax.random.uniform(key, (plan.max_size,))
    return jnp.argsort(jnp.where(jnp.arange(plan.max_size) < data.size, draws, 2.0))
