"""What is kept for each of a million clients: little, and nothing is read at the start."""

import dataclasses
import os
import pathlib
import time

import jax.numpy as jnp
import numpy as np

from fedlite import methods
from fedlite.data.federated import ClientNumbers, FederatedDataset, Split
from fedlite.federated.checkpoint import fingerprint
from fedlite.federated.meter import Meter
from tests import toy

POPULATION = 1_000_000


def sparse(path: pathlib.Path, shape, dtype=np.uint8) -> np.ndarray:
    """A memory-mapped array of zeros that takes no room."""
    np.lib.format.open_memmap(path, "w+", dtype, shape)
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


@dataclasses.dataclass(frozen=True)
class Remember(methods.Method):
    """A client's state is 4 KB; it counts how often the client took part."""

    def init_client(self, key, view):
        return jnp.zeros(1000)

    def deselect(self, context, update, report):
        return update, context + 1


def test_rounds_of_a_million_clients_with_state(tmp_path):
    """Of 4 GB that all states would take, the file holds those of the clients that took part."""
    arrays = {
        "x": sparse(tmp_path / "x.npy", (4 * POPULATION, 8, 8, 1)),
        "y": sparse(tmp_path / "y.npy", (4 * POPULATION,), np.int32),
    }
    split = Split(arrays, 4 * np.arange(POPULATION + 1), ClientNumbers(POPULATION))
    task = toy.make_task()
    engine = toy.make_engine(task, Remember(), split=split, clients=20, resident_bytes=0)
    _, results = toy.run(engine, toy.make_params(task), rounds=3)
    meter = Meter(POPULATION)
    for result in results:
        meter.add(result)
    ids = np.unique(np.concatenate([result.ids for result in results]))
    assert meter.client_rounds == 60 and len(ids) > 55 and ids[-1] > POPULATION / 2
    assert (engine.store.gather(ids) == np.ones((len(ids), 1000))).sum() > 0.9 * 1000 * len(ids)
    status = os.fstat(engine.store._file.fileno())
    assert status.st_size > 1000 * POPULATION
    assert 512 * status.st_blocks < 20 * 4000 * len(ids)
    # What a checkpoint has of it, and of the meter.
    assert engine.store.save()["rows"].shape == (len(ids), 4000)
    assert len(meter.save()["seen"]) < POPULATION / 4
    again = Meter(POPULATION)
    again.load(meter.save())
    again.add(results[0])
    assert again.once == meter.once


def test_data_larger_than_memory_is_told_from_other_data_at_once(tmp_path):
    """256 GB, which nothing could read in this time."""
    shape = (64 * POPULATION, 64, 64)
    x = sparse(tmp_path / "x.npy", shape)
    offsets = np.array([0, len(x) // 2, len(x)])
    begin = time.monotonic()
    found = {
        fingerprint(FederatedDataset("x", {"train": Split({"x": part}, offsets, ("a", "b"))}, 2))
        for part in (x, x.view(np.int8))
    }
    assert time.monotonic() - begin < 20
    assert len(found) == 2
