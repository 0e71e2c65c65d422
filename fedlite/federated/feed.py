"""Where the engine's examples come from: kept on the device, or read for each dispatch."""

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from fedlite.data.federated import Split
from fedlite.data.mapped import RowReader
from fedlite.federated import devices as devices_lib
from fedlite.federated.cohort import Layout


class Fed(NamedTuple):
    """Arrays on the devices, and the rounds' layouts whose `starts` point into them."""

    arrays: dict[str, Any]
    layouts: list[Layout]


class ResidentFeed:
    """All examples on every device: batches are gathers inside the compiled round."""

    streams = False

    def __init__(self, split: Split, devices: Sequence[jax.Device]):
        arrays = {name: np.asarray(array) for name, array in split.arrays.items()}
        if len(devices) == 1:
            self._arrays = jax.device_put(arrays, devices[0])
        else:
            self._arrays = devices_lib.replicate(arrays, devices)

    def fetch(self, layouts: list[Layout]) -> Fed:
        """The arrays are there already."""
        return Fed(self._arrays, layouts)


class StreamedFeed:
    """Reads the examples of the coming cohort from memory-mapped files.

    Each device gets the examples of its own clients, read by the process that has the device and
    padded so that all cohorts of one size share one program. `prefetch` reads in the background
    while a round runs. Memory holds the examples of two cohorts, whatever the population.
    """

    streams = True

    def __init__(self, split: Split, devices: Sequence[jax.Device]):
        self._split = split
        self._devices = list(devices)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ready: tuple[Any, Future] | None = None
        self._readers = {name: RowReader(array) for name, array in split.arrays.items()}
        self._sizes = split.sizes
        self._rooms: dict[tuple[int, ...], int] = {}

    def fetch(self, layouts: list[Layout]) -> Fed:
        """Reads the one round's examples, unless they were prefetched."""
        signature = _signature(layouts)
        ready, self._ready = self._ready, None
        if ready and ready[0] == signature:
            return ready[1].result()
        return self._read(layouts)

    def prefetch(self, layouts: list[Layout]):
        """Begins to read what the next `fetch` will ask for."""
        self._ready = (_signature(layouts), self._pool.submit(self._read, layouts))

    def _read(self, layouts: list[Layout]) -> Fed:
        (layout,) = layouts
        cohort = layout.cohort
        own = devices_lib.own_positions(self._devices)
        totals = cohort.sizes.sum(axis=(1, 2))
        room = self._room(cohort.sizes.shape[1:], int(totals.max()))
        local_starts = np.zeros_like(cohort.starts)
        arrays = {
            name: np.zeros((len(own), room, *array.shape[1:]), array.dtype)
            for name, array in self._split.arrays.items()
        }
        for row, device in enumerate(own):
            sizes = cohort.sizes[device].ravel()
            local_starts[device].flat = np.cumsum(sizes) - sizes
            begins = cohort.starts[device].ravel().tolist()
            for name, reader in self._readers.items():
                reader.gather(begins, sizes.tolist(), arrays[name][row])
        layout = layout._replace(cohort=cohort._replace(starts=local_starts))
        if len(self._devices) == 1:
            arrays = jax.device_put({k: a[0] for k, a in arrays.items()}, self._devices[0])
        else:
            arrays = devices_lib.spread(arrays, self._devices)
        return Fed(arrays, [layout])

    def _room(self, grid: tuple[int, ...], total: int) -> int:
        """For how many examples a device has room: a number that hardly ever changes.

        Args:
          grid: (chunks, clients_per_chunk) of a device.
          total: examples that must fit.

        Returns:
          What `chunks * clients_per_chunk` clients drawn at random have at most, but for one
          draw in a billion (6 standard deviations, and a chunk for the division over devices);
          twice, four times ... as much where that does not do.
        """
        if grid not in self._rooms:
            clients, sizes = min(math.prod(grid), len(self._sizes)), self._sizes
            most = int(np.partition(sizes, len(sizes) - clients)[len(sizes) - clients :].sum())
            likely = clients * sizes.mean() + 6 * math.sqrt(clients) * sizes.std()
            self._rooms[grid] = max(1, min(most, math.ceil(likely) + grid[1] * int(sizes.max())))
        room = self._rooms[grid]
        while room < total:
            room *= 2
        return room


def make_feed(split: Split, devices: Sequence[jax.Device], resident_bytes: int):
    """Keeps a split of at most `resident_bytes` on the devices, streams a larger one."""
    size = sum(array.nbytes for array in split.arrays.values())
    return (ResidentFeed if size <= resident_bytes else StreamedFeed)(split, devices)


def _signature(layouts: list[Layout]):
    return tuple(layout.cohort.ids.tobytes() for layout in layouts)
