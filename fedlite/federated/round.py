"""A round as one pure function: select, train, deselect, aggregate, server step.

The functions know no method; whatever differs between methods lies in `plan.method`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedlite.federated.local import ClientData, LocalPlan, train_locally
from fedlite.methods import Keys, Method, Recipe, Report, Sums, Update, View, server_view
from fedlite.tasks import Task
from fedlite.wire import Part, message_bytes, side_bytes

AXIS = "devices"
# What a client's key is folded with for its local training; methods fold small numbers.
_TRAINING = 0x7EA1
# The server's turns: no client has so high a number, with which its key is folded.
_COMBINATION, _REVISION = 0xF000C0B1, 0xF0004E71


class Server(NamedTuple):
    """What the server remembers: parameters by path, optimiser state, the method's state."""

    params: dict[str, Any]
    opt_state: Any
    state: Any


class Cohort(NamedTuple):
    """The clients of one round on one device, laid out in chunks.

    Attributes:
      ids: int32 [chunks, clients_per_chunk]; -1 fills a chunk.
      starts: int32, like `ids`: where the client's examples begin.
      sizes: int32, like `ids`: its number of examples.
      steps: int32 [chunks]: steps an epoch of the chunk's largest client.
    """

    ids: Any
    starts: Any
    sizes: Any
    steps: Any


class Metrics(NamedTuple):
    """What a round reports.

    Attributes:
      loss: mean training loss over the cohort's examples.
      examples: number of the cohort's examples.
      nonfinite: clients whose update was not finite and was left out.
      down, up: int32 like `Cohort.ids`: bytes on the wire of each client.
      down_side, up_side: int32 like `Cohort.ids`: how many of them are side information.
    """

    loss: Any
    examples: Any
    nonfinite: Any
    down: Any
    up: Any
    down_side: Any
    up_side: Any


@dataclasses.dataclass(frozen=True)
class RoundPlan:
    """The static side of a round.

    Attributes:
      task: the model and its loss.
      method: the static answer of `Method.at` for these rounds.
      local: local training.
      server_optimizer: one object for the whole run, since optax transformations are equal
        only to themselves.
      uniform: whether clients weigh the same, not by their examples.
      axis: name of the device axis, None on one device.
    """

    task: Task
    method: Method
    local: LocalPlan
    server_optimizer: optax.GradientTransformation
    uniform: bool = False
    axis: str | None = None


def init_server(
    method: Method, params: dict[str, Any], optimizer: optax.GradientTransformation, key
) -> Server:
    """The server before round 0; optimiser state exists for returned parameters alone."""
    view = server_view(params)
    state = method.init(key, view)
    first, _ = method.at(0, state, Recipe(clients=1, epochs=1, lr=0.0))

    def returned(params):
        view, context = first.select(
            state, method.init_client(key, server_view(params)), Keys(key, key), server_view(params)
        )
        parts = {path: Part(part.value) for path, part in view.trained.items()}
        report = Report(jnp.float32(0), jnp.int32(1), jnp.int32(1), jnp.float32(1))
        update, _ = first.deselect(context, Update(parts, jnp.float32(1)), report)
        return {path: part.value for path, part in update.parts.items() if path in params}

    paths = jax.eval_shape(returned, params)
    return Server(params, optimizer.init({path: params[path] for path in sorted(paths)}), state)


def look_at_received(method: Method, server: Server, look: Callable[[View], Any]) -> Any:
    """What `look` finds that is static in the view which a client receives."""
    found = []

    def received(server):
        key, view = jax.random.key(0), server_view(server.params)
        mine = method.init_client(key, view)
        found.append(look(method.select(server.state, mine, Keys(key, key), view)[0]))
        return 0

    jax.eval_shape(received, server)
    return found[0]


def run_round(
    plan: RoundPlan, server: Server, mine, arrays: Mapping[str, Any], cohort: Cohort, lr, key
) -> tuple[Server, Any, Metrics]:
    """One round.

    Args:
      plan: static.
      server: before the round.
      mine: the clients' own state, each leaf [chunks, clients_per_chunk, ...].
      arrays: the examples, flat.
      cohort: of this device.
      lr: the clients' learning rate.
      key: of the round.

    Returns:
      The server and the clients' state after the round, and the metrics.
    """
    method = plan.method
    view = server_view(server.params)

    def receive(client, own):
        keys = Keys(key, jax.random.fold_in(key, jnp.maximum(client, 0)))
        return keys, *method.select(server.state, own, keys, view)

    def train(client, own, start, size, steps):
        keys, received, _ = receive(client, own)
        update, report = train_locally(
            plan.task,
            method,
            plan.local,
            received,
            ClientData(arrays, start, size, client),
            jax.random.fold_in(keys.client, _TRAINING),
            lr,
            steps,
        )
        message = {**received.trained, **received.read}
        down = jnp.stack([message_bytes(message), side_bytes(message)])
        return update, report, jnp.where(client >= 0, down, 0)

    def give(client, own, update, report):
        # `select` is pure: calling it again gives the context, whose static values could not
        # cross vmap.
        _, _, context = receive(client, own)
        # The least flag: `jnp.all` becomes a chain of `&` that XLA copies into each of the many
        # operations that read it, a quarter of the compilation of a model of 50 arrays.
        checked = (report.loss, *update.values())
        flags = jnp.stack([jnp.all(jnp.isfinite(value)) for value in checked])
        finite = flags[jnp.argmin(flags)]
        parts = {path: Part(jnp.where(finite, value, 0)) for path, value in update.items()}
        weight = jnp.float32(1) if plan.uniform else report.examples.astype(jnp.float32)
        upload, new = method.deselect(context, Update(parts, weight), report)
        present = client >= 0
        kept = present & finite & (report.examples > 0)
        weight = jnp.where(kept, upload.weight, 0)
        total = {k: weight * part.cover * part.value for k, part in upload.parts.items()}
        claim = {k: weight * part.cover for k, part in upload.parts.items()}
        seen = jnp.where(kept, report.examples, 0).astype(jnp.float32)
        sums = (
            jnp.where(kept, report.loss, 0) * seen,
            seen,
            jnp.where(kept, report.steps, 0).astype(jnp.float32),
            jnp.where(kept, report.lr_sum, 0).astype(jnp.float32),
            kept.astype(jnp.float32),
            (present & ~finite).astype(jnp.int32),
        )
        new = jax.tree.map(lambda after, before: jnp.where(kept, after, before), new, own)
        up = jnp.stack([message_bytes(upload.parts), side_bytes(upload.parts)])
        up = jnp.where(present, up, 0)
        return (total, claim, sums), (new, up)

    def chunk(accumulated, clients):
        own, ids, starts, sizes, steps = clients

        def add(accumulated, client):
            contribution, kept = give(*client)
            return jax.tree.map(jnp.add, accumulated, contribution), kept

        if ids.shape[0] == 1:
            own = jax.tree.map(lambda leaf: leaf[0], own)
            update, report, down = train(ids[0], own, starts[0], sizes[0], steps)
            accumulated, kept = add(accumulated, (ids[0], own, update, report))
            kept, down = jax.tree.map(lambda leaf: leaf[None], (kept, down))
        else:
            update, report, down = jax.vmap(train, (0, 0, 0, 0, None))(
                ids, own, starts, sizes, steps
            )
            # One client at a time: vmap would hold clients_per_chunk full-size updates.
            accumulated, kept = jax.lax.scan(add, accumulated, (ids, own, update, report))
        return accumulated, (kept[0], down, kept[1])

    clients = (mine, cohort.ids, cohort.starts, cohort.sizes, cohort.steps)
    first = jax.tree.map(lambda leaf: leaf[0], clients)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(lambda clients: _one_contribution(train, give, clients), first),
    )
    if plan.local.unroll:
        accumulated, outputs = zeros, []
        for index in range(cohort.ids.shape[0]):
            row = jax.tree.map(lambda leaf, index=index: leaf[index], clients)
            accumulated, output = chunk(accumulated, row)
            outputs.append(output)
        outputs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
    else:
        accumulated, outputs = jax.lax.scan(chunk, zeros, clients)
    mine, down, up = outputs

    if plan.axis:
        accumulated = jax.lax.psum(accumulated, plan.axis)
    total, claim, (loss, examples, steps_sum, lr_sum, count, nonfinite) = accumulated
    clients_kept = jnp.maximum(count, 1)
    report = Report(
        loss / jnp.maximum(examples, 1),
        examples / clients_kept,
        steps_sum / clients_kept,
        lr_sum / clients_kept,
    )
    total, claim = method.combine(
        server.state, jax.random.fold_in(key, _COMBINATION), Sums(total, claim), report
    )
    aggregate = {
        k: jnp.where(claim[k] > 0, total[k] / jnp.where(claim[k] > 0, claim[k], 1), 0)
        for k in total
    }
    params, opt_state = _server_step(plan.server_optimizer, server, aggregate, claim)
    state = method.revise(
        server.state, jax.random.fold_in(key, _REVISION), params, aggregate, report
    )
    metrics = Metrics(
        report.loss, examples, nonfinite, down[..., 0], up[..., 0], down[..., 1], up[..., 1]
    )
    return Server(params, opt_state, state), mine, metrics


def run_rounds(
    plan: RoundPlan,
    server: Server,
    mine,
    arrays: Mapping[str, Any],
    cohorts: Cohort,
    lrs,
    first_round,
    count,
    seed_key,
) -> tuple[Server, Any, Metrics]:
    """`count` rounds from `first_round` in one program.

    Args:
      plan: static.
      server: before the first round.
      mine: the clients' own state, leaves [rounds, chunks, clients_per_chunk, ...]; a method
        that has any runs one round at a time.
      arrays: the examples, flat.
      cohorts: leaves [rounds, ...]; those from `count` on are not run.
      lrs: float32 [rounds].
      first_round, count: int32 scalars.
      seed_key: of the run; a round's key is folded from it.

    Returns:
      The server, the clients' state and the metrics, leaves [rounds, ...].
    """

    # Jitted, the round is traced once, though its shapes are asked for before it runs.
    jitted = jax.jit(run_round, static_argnums=0)

    def one(index, server):
        cohort, own = jax.tree.map(lambda leaf: leaf[index], (cohorts, mine))
        key = jax.random.fold_in(seed_key, first_round + index)
        return jitted(plan, server, own, arrays, cohort, lrs[index], key)

    if plan.local.unroll:
        server, own, metrics = one(0, server)
        return server, *jax.tree.map(lambda leaf: leaf[None], (own, metrics))

    buffers = jax.tree.map(
        lambda leaf: jnp.zeros((len(lrs), *leaf.shape), leaf.dtype),
        jax.eval_shape(lambda: one(0, server)[1:]),
    )

    def body(index, carry):
        server, buffers = carry
        server, *outputs = one(index, server)
        buffers = jax.tree.map(lambda b, o: b.at[index].set(o), buffers, tuple(outputs))
        return server, buffers

    server, (own, metrics) = jax.lax.fori_loop(0, count, body, (server, buffers))
    return server, own, metrics


def _one_contribution(train, give, clients):
    own, ids, starts, sizes, steps = clients
    own = jax.tree.map(lambda leaf: leaf[0], own)
    update, report, _ = train(ids[0], own, starts[0], sizes[0], steps)
    return give(ids[0], own, update, report)[0]


def _server_step(optimizer, server: Server, aggregate, claim):
    moved = {path: server.params[path] for path in sorted(aggregate) if path in server.params}
    gradients = {path: -aggregate[path] for path in moved}
    updates, opt_state = optimizer.update(gradients, server.opt_state, moved)
    # Entries that nobody claims would drift under server momentum.
    stepped = {
        path: jnp.where(claim[path] > 0, value + updates[path], value)
        for path, value in moved.items()
    }
    return {**server.params, **stepped}, opt_state
