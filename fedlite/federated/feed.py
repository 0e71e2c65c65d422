"""Where the engine's examples come from: kept on the device, or read for each dispatch."""

import math
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from fedlite.data.federated import Split
from fedlite.data.mapped import RowReader
from fedlite.federated import devices as devices_lib
from fedlite.federated.cohort import Layout

# Examples that are read for one dispatch of several rounds.
_DISPATCH_BYTES = 32 << 20


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

    def most_rounds(self, clients: int) -> int:
        """Rounds of so many clients that one dispatch may have: any number."""
        return sys.maxsize

    def fetch(self, layouts: list[Layout], rounds: int) -> Fed:
        """The arrays are there already."""
        return Fed(self._arrays, layouts)


class StreamedFeed:
    """Reads the examples of the coming cohorts from memory-mapped files.

    Each device gets the examples of its own clients, read by the process that has the device and
    padded so that all cohorts of one size share one program. `prefetch` reads in the background
    while rounds run. Memory holds the examples of two dispatches, whatever the population.
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

    def most_rounds(self, clients: int) -> int:
        """Rounds of so many clients that one dispatch may have, at least one.

        What a dispatch costs besides its rounds shows where these are short, so where their
        examples are few: as many rounds as `_DISPATCH_BYTES` hold.
        """
        total = sum(array.nbytes for array in self._split.arrays.values())
        cohort = total / len(self._sizes) * min(clients, len(self._sizes))
        return max(1, int(_DISPATCH_BYTES / max(cohort, 1)))

    def fetch(self, layouts: list[Layout], rounds: int) -> Fed:
        """The rounds' examples: read now, unless these rounds, or more, were prefetched.

        Args:
          layouts: one a round.
          rounds: for how many there is room in the arrays.
        """
        signature = _signature(layouts)
        ready, self._ready = self._ready, None
        if ready and ready[0][: len(signature)] == signature:
            fed = ready[1].result()
            return fed._replace(layouts=fed.layouts[: len(layouts)])
        return self._read(layouts, rounds)

    def prefetch(self, layouts: list[Layout], rounds: int):
        """Begins to read what the next `fetch` will ask for."""
        self._ready = (_signature(layouts), self._pool.submit(self._read, layouts, rounds))

    def _read(self, layouts: list[Layout], rounds: int) -> Fed:
        own = devices_lib.own_positions(self._devices)
        totals = [layout.cohort.sizes.sum(axis=(1, 2)).max() for layout in layouts]
        room = self._room(layouts[0].cohort.sizes.shape[1:], int(max(totals)))
        arrays = {
            name: np.zeros((len(own), rounds * room, *array.shape[1:]), array.dtype)
            for name, array in self._split.arrays.items()
        }
        found = []
        for number, layout in enumerate(layouts):
            cohort, begin = layout.cohort, number * room
            local_starts = np.zeros_like(cohort.starts)
            for row, device in enumerate(own):
                sizes = cohort.sizes[device].ravel()
                local_starts[device].flat = begin + np.cumsum(sizes) - sizes
                starts = cohort.starts[device].ravel().tolist()
                for name, reader in self._readers.items():
                    reader.gather(starts, sizes.tolist(), arrays[name][row, begin:])
            found.append(layout._replace(cohort=cohort._replace(starts=local_starts)))
        if len(self._devices) == 1:
            arrays = jax.device_put({k: a[0] for k, a in arrays.items()}, self._devices[0])
        else:
            arrays = devices_lib.spread(arrays, self._devices)
        return Fed(arrays, found)

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
    if devices[0].platform == "cpu":
        size *= len(devices_lib.own_positions(devices))
    return (ResidentFeed if size <= resident_bytes else StreamedFeed)(split, devices)


def _signature(layouts: list[Layout]):
    return tuple(layout.cohort.ids.tobytes() for layout in layouts)
