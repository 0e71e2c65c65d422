"""The clients' own state between rounds, keyed by client; on disk.

A client's state is one row of a sparse file, read and written where it lies. Memory holds a
cohort's rows, and a byte a client. The file is not mapped: mapped pages would count as the
process's own, and grow with every client that took part.

Several processes have the same store each: after a round all get the cohort's new rows, which costs
the network a cohort's rows a process and round, and each process's disk the whole store; in turn a
client may be trained anywhere, and process 0 saves them all.
"""

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from fedlite.errors import UserError
from fedlite.methods import Method, View

CHUNK_BYTES = 1 << 24


class ClientStore:
    """State of each client for methods that have any (`Method.init_client`).

    A client's state is kept from the first time that it takes part, so a population of
    millions costs disk space only for those that did.
    """

    def __init__(
        self, method: Method, view: View, population: int, key, directory: str | None = None
    ):
        """Makes an empty store.

        Args:
          method: gives a client's first state.
          view: the server's, before round 0.
          population: number of clients.
          key: of the first states; a client's is folded from it.
          directory: where the file lies, which has no name there and goes with the process;
            None: where temporary files go (TMPDIR).
        """

        def one(client):
            return method.init_client(jax.random.fold_in(key, client), view)

        example = jax.eval_shape(one, jax.ShapeDtypeStruct((), np.int32))
        leaves, self._structure = jax.tree.flatten(example)
        self.stateful = bool(leaves)
        self._names = [f"{i:04d}" for i in range(len(leaves))]
        self._row = np.dtype([(n, leaf.dtype, leaf.shape) for n, leaf in zip(self._names, leaves)])
        self._seen = np.zeros(population if self.stateful else 0, bool)
        self._file = tempfile.TemporaryFile(dir=directory) if self.stateful else None
        self._init = jax.jit(jax.vmap(one))

    def gather(self, ids: np.ndarray) -> Any:
        """The state of clients `ids` (any shape; negative ids fill), leaves [*ids.shape, ...]."""
        if not self.stateful:
            return jax.tree.unflatten(self._structure, [])
        clients = np.maximum(ids, 0).ravel()
        seen = self._seen[clients]
        rows = np.empty(len(clients), self._row)
        rows[seen] = self._read(clients[seen])
        if not seen.all():
            # Filled up to the cohort, so that one program makes them whatever their number.
            new = np.resize(clients[~seen], len(clients)).astype(np.int32)
            count = len(clients) - np.count_nonzero(seen)
            # Cut on the host: on the device each count would be a program of its own.
            state = jax.device_get(jax.tree.leaves(self._init(jax.device_put(new))))
            rows[~seen] = self._rows(leaf[:count] for leaf in state)
        leaves = [
            np.ascontiguousarray(rows[name]).reshape(*ids.shape, *rows[name].shape[1:])
            for name in self._names
        ]
        return jax.tree.unflatten(self._structure, leaves)

    def scatter(self, ids: np.ndarray, state: Any):
        """Writes back what `gather` gave for `ids`, after a round."""
        if self.stateful:
            real = ids >= 0
            leaves = (np.asarray(leaf)[real] for leaf in jax.tree.leaves(state))
            self._write(ids[real], self._rows(leaves))
            self._seen[ids[real]] = True

    def save(self) -> dict[str, "np.ndarray | Rows"]:
        """The state of all clients that took part, by name; rows are read as they are asked for."""
        if not self.stateful:
            return {}
        seen = np.flatnonzero(self._seen)
        return {"seen": seen, "rows": Rows(self, seen)}

    def load(self, saved: Mapping[str, Any]):
        """Restores what `save` returned, or a checkpoint kept of it.

        Raises:
          UserError: the rows are those of another method or model.
        """
        if not self.stateful:
            return
        seen = np.concatenate([np.zeros(0, np.int64), *chunks(saved["seen"])])
        rows = saved["rows"]
        if rows.shape[1] != self._row.itemsize or (seen >= len(self._seen)).any():
            raise UserError(
                f"the saved state of clients has {rows.shape[1]} bytes each, for this method and "
                f"model they need {self._row.itemsize} (of {len(self._seen)} clients); resume "
                "with the config that wrote it, or use another --workdir"
            )
        self._seen[:] = False
        begin = 0
        for block in chunks(rows):
            self._write(seen[begin : begin + len(block)], block.view(self._row)[:, 0])
            begin += len(block)
        self._seen[seen] = True

    def _rows(self, leaves) -> np.ndarray:
        leaves = [np.asarray(leaf) for leaf in leaves]
        rows = np.empty(len(leaves[0]), self._row)
        for name, leaf in zip(self._names, leaves):
            rows[name] = leaf
        return rows

    def _read(self, clients: np.ndarray) -> np.ndarray:
        rows = np.empty(len(clients), self._row)
        for row, client in zip(_bytes(rows), clients):
            self._file.seek(int(client) * self._row.itemsize)
            if self._file.readinto(row) != len(row):
                raise OSError(f"the state of client {client} is cut short on disk")
        return rows

    def _write(self, clients: np.ndarray, rows: np.ndarray):
        for row, client in zip(_bytes(rows), clients):
            self._file.seek(int(client) * self._row.itemsize)
            self._file.write(row)
        self._file.flush()


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a store as an array that is read piece by piece: uint8 [clients, bytes of a row].

    Attributes:
      store: that has them.
      clients: int64 [clients].
    """

    store: ClientStore
    clients: np.ndarray
    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int]:
        """As of an array."""
        return len(self.clients), self.store._row.itemsize

    def chunks(self) -> Iterator[np.ndarray]:
        """The rows in order, up to `CHUNK_BYTES` at a time."""
        for begin, end in pieces(self.shape, 1):
            yield _bytes(self.store._read(self.clients[begin:end]))


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """An array as its bytes in a file, read piece by piece or (by `np.asarray`) as a whole."""

    path: str | os.PathLike
    shape: tuple[int, ...]
    dtype: np.dtype

    def chunks(self) -> Iterator[np.ndarray]:
        """Parts along the first axis in order, up to `CHUNK_BYTES` at a time.

        Raises:
          OSError: the file is shorter than the array.
        """
        with open(self.path, "rb") as file:
            for begin, end in pieces(self.shape, self.dtype.itemsize):
                block = np.empty((end - begin, *self.shape[1:]), self.dtype)
                if file.readinto(block.reshape(-1).view(np.uint8)) != block.nbytes:
                    raise OSError(f"{self.path} is cut short")
                yield block

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        whole = np.concatenate([np.empty((0, *self.shape[1:]), self.dtype), *self.chunks()])
        return whole if dtype is None else whole.astype(dtype)


def chunks(array: Any) -> Iterator[np.ndarray]:
    """The parts of an array in order; one part where it lies in memory."""
    return array.chunks() if hasattr(array, "chunks") else iter([np.ascontiguousarray(array)])


def pieces(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """Where the parts of an array of up to `CHUNK_BYTES` begin and end along its first axis."""
    row = max(1, int(np.prod(shape[1:], dtype=np.int64)) * itemsize)
    size = max(1, CHUNK_BYTES // row)
    for begin in range(0, shape[0], size):
        yield begin, min(begin + size, shape[0])


def _bytes(rows: np.ndarray) -> np.ndarray:
    """uint8 [rows, bytes of a row], the same memory."""
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
