"""Trees on several devices: a leading axis [devices], as `jax.pmap` wants them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def spread(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Puts slice i of each leaf's leading axis on device i."""
    sharding = NamedSharding(Mesh(np.array(devices), ("devices",)), PartitionSpec("devices"))
    return jax.device_put(tree, sharding)


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Puts a copy of each leaf on every device."""

    def copies(leaf):
        leaf = np.asarray(leaf)
        # A view: the copies are made on the devices.
        return np.broadcast_to(leaf, (len(devices), *leaf.shape))

    return spread(jax.tree.map(copies, tree), devices)


def unreplicate(tree: Any) -> Any:
    """The first device's copy of each leaf, on that device."""
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree)
