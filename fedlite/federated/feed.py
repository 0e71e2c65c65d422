"""Where the engine's examples come from: kept on the device, or read for each dispatch."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from fedlite.data.federated import Split
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

    Each device gets the examples of its own clients, padded to a power of two so that few
    programs are compiled. `prefetch` reads in the background while a round runs.
    """

    streams = True

    def __init__(self, split: Split, devices: Sequence[jax.Device]):
        self._split = split
        self._devices = list(devices)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ready: tuple[Any, Future] | None = None

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
        totals = cohort.sizes.sum(axis=(1, 2))
        room = 1 << max(0, int(totals.max()) - 1).bit_length()
        local_starts = np.zeros_like(cohort.starts)
        arrays = {
            name: np.zeros((len(totals), room, *array.shape[1:]), array.dtype)
            for name, array in self._split.arrays.items()
        }
        for device in range(len(totals)):
            position = 0
            for index in np.ndindex(cohort.sizes.shape[1:]):
                begin, size = cohort.starts[device][index], cohort.sizes[device][index]
                local_starts[device][index] = position
                for name, array in self._split.arrays.items():
                    arrays[name][device, position : position + size] = array[begin : begin + size]
                position += int(size)
        layout = layout._replace(cohort=cohort._replace(starts=local_starts))
        if len(self._devices) == 1:
            arrays = jax.device_put({k: a[0] for k, a in arrays.items()}, self._devices[0])
        else:
            arrays = devices_lib.spread(arrays, self._devices)
        return Fed(arrays, [layout])


def make_feed(split: Split, devices: Sequence[jax.Device], resident_bytes: int):
    """Keeps a split of at most `resident_bytes` on the devices, streams a larger one."""
    size = sum(array.nbytes for array in split.arrays.values())
    return (ResidentFeed if size <= resident_bytes else StreamedFeed)(split, devices)


def _signature(layouts: list[Layout]):
    return tuple(layout.cohort.ids.tobytes() for layout in layouts)
