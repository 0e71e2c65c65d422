"""What a round costs one client: parameters, FLOPs and peak memory of its compiled step.

The plain training step is compiled by itself with XLA's own convolution, whatever way the
engine runs it: a loop's body would be counted once, and vmap or patches would add memory that
a single device does not need. It is compiled for a CPU wherever there is one, so that runs on any
machine tell the same costs: on a GPU XLA leaves out what libraries compute.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedlite.federated.local import LocalPlan, make_step, values
from fedlite.federated.round import Server, look_at_received
from fedlite.methods import Method, View
from fedlite.tasks import Task
from fedlite.wire import Part
from fedlite.wire.message import on_wire


class ClientCost(NamedTuple):
    """Of one client of a round.

    Attributes:
      params: parameters of the client's model, trained or only read.
      trained_params: those that it trains and returns.
      flops_per_example: of a training step, forward, backward and update, per example, as
        XLA's cost analysis of the compiled step counts them.
      peak_memory_bytes: of a training step at the batch size: arguments + outputs +
        temporaries - aliases of the compiled step (parameters, optimiser state, batch,
        activations, gradients).
      backend: that the step was compiled for.
    """

    params: int
    trained_params: int
    flops_per_example: float
    peak_memory_bytes: int
    backend: str


def client_cost(
    task: Task, method: Method, plan: LocalPlan, server: Server, example: dict[str, Any]
) -> ClientCost:
    """Compiles one training step of a client.

    Args:
      task: of the experiment.
      method: the static answer of `Method.at` for the round.
      plan: of local training.
      server: host or device, for shapes alone.
      example: arrays (or shapes) by name, each [examples, ...].
    """
    task = with_xla_convolution(task)

    def look(view):
        trained, read = (
            {k: jax.ShapeDtypeStruct(p.value.shape, p.value.dtype) for k, p in side.items()}
            for side in view
        )
        # What stays with the client is never on the wire.
        return trained, read, {k for k, p in view.trained.items() if on_wire(p)}

    trained, read, returned = look_at_received(method, server, look)

    def view_of(trained, read):
        return View({k: Part(v) for k, v in trained.items()}, {k: Part(v) for k, v in read.items()})

    def optimizer_of(trained, read):
        return method.client_optimizer(view_of(trained, read), plan.optimizer.make(0.1))

    def step(trained, opt_state, read, anchor, batch, mask, key):
        # The optimiser's anchor is what was received, not what is being trained.
        optimizer = optimizer_of(anchor, read)
        frozen = values(view_of({}, read).read)
        return make_step(task, optimizer, frozen)(trained, opt_state, batch, mask, key)

    place = _place()
    size = plan.batch_size
    opt_state = jax.eval_shape(
        lambda trained, read: optimizer_of(trained, read).init(trained), trained, read
    )
    batch = {k: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for k, a in example.items()}
    mask = jax.ShapeDtypeStruct((size,), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (trained, opt_state, read, trained, batch, mask, key)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(place)
        ),
        arguments,
    )
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    analysis = compiled.cost_analysis()
    count = {k: int(np.prod(v.shape)) for k, v in {**read, **trained}.items() if ":" not in k}
    return ClientCost(
        params=sum(count.values()),
        trained_params=sum(count[k] for k in trained if k in returned),
        flops_per_example=float(analysis["flops"]) / size,
        peak_memory_bytes=int(
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        ),
        backend=place.platform,
    )


def _place() -> jax.Device:
    """A CPU, or where JAX was told to leave it alone, what there is."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def with_xla_convolution(task: Task) -> Task:
    """The task with its model's convolutions (if it has any) left to XLA."""
    if any(field.name == "convolution" for field in dataclasses.fields(task.model)):
        return dataclasses.replace(task, model=task.model.clone(convolution="xla"))
    return task
