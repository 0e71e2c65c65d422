"""Trees on several devices, as `jax.pmap` has them: a leading axis [devices of this process].

Of several processes each has what lies on its own devices, in the order of `by_process`.
"""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedlite.errors import UserError
from fedlite.federated.cohort import Layout
from fedlite.federated.round import AXIS, Cohort


def by_process(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """The devices as `jax.pmap` needs them: those of a process beside each other.

    Raises:
      UserError: a process has more of them than another one.
    """
    counts = collections.Counter(device.process_index for device in devices)
    few, many = min(counts, key=counts.get), max(counts, key=counts.get)
    if counts[few] < counts[many]:
        raise UserError(
            f"process {few} has {counts[few]} devices and process {many} has {counts[many]}: give "
            "all the same number, by JAX_LOCAL_DEVICE_IDS where a machine has more"
        )
    return sorted(devices, key=lambda device: device.process_index)


def enough(available: int, clients: int) -> int:
    """The fewest devices on which none trains more clients than with all that are available."""
    return -(-clients // -(-clients // available))


def own_positions(devices: Sequence[jax.Device]) -> np.ndarray:
    """Which of the devices are this process's, int64."""
    here = jax.process_index()
    return np.array([i for i, device in enumerate(devices) if device.process_index == here], int)


def balanced(layout: Layout) -> Layout:
    """Divides a cohort's work over the devices, which have the same number of chunks each.

    `lay_out` gives the first device the largest client of every row of chunks. Here the heaviest
    chunk of a row goes to the device with the fewest steps so far: a round lasts as long as its
    busiest device.
    """
    steps = layout.cohort.steps
    if len(steps) == 1:
        return layout
    source, load = np.zeros(steps.shape, int), np.zeros(len(steps), int)
    for chunk in range(steps.shape[1]):
        idlest, heaviest = (
            np.argsort(load, kind="stable"),
            np.argsort(-steps[:, chunk], kind="stable"),
        )
        source[idlest, chunk] = heaviest
        load[idlest] += steps[heaviest, chunk]
    chunks = np.arange(steps.shape[1])
    return layout._replace(cohort=Cohort(*(leaf[source, chunks] for leaf in layout.cohort)))


def spread(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Puts slice i of each leaf's leading axis on this process's device i.

    Args:
      tree: leaves [own devices, ...], in the order of `own_positions`.
      devices: of all processes.
    """
    own = np.array([devices[position] for position in own_positions(devices)])
    return jax.device_put(tree, NamedSharding(Mesh(own, (AXIS,)), PartitionSpec(AXIS)))


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Puts a copy of each leaf, which is the same in all processes, on every device."""
    count = len(own_positions(devices))

    def copies(leaf):
        leaf = np.asarray(leaf)
        # A view: the copies are made on the devices.
        return np.broadcast_to(leaf, (count, *leaf.shape))

    return spread(jax.tree.map(copies, tree), devices)


def unreplicate(tree: Any) -> Any:
    """The first own device's copy of each leaf, on that device."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0)[0], tree)


def gather(tree: Any) -> Any:
    """Within `jax.pmap`: what several processes need of all devices, of which each sees its own."""
    return jax.lax.all_gather(tree, AXIS) if jax.process_count() > 1 else tree


def fetch(tree: Any) -> Any:
    """What `gather` gave, on the host: leaves [devices of all processes, ...]."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    # All devices have the same.
    tree = jax.device_get(jax.tree.map(lambda leaf: leaf.addressable_data(0), tree))
    return jax.tree.map(lambda leaf: leaf[0], tree)
