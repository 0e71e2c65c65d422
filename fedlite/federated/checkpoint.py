"""Checkpoints of a run: orbax directories that are whole or not there.

A checkpoint holds the leaves of a tree as flat arrays, the clients' own state, and a small JSON
of progress with the name, shape, type and checksum of every array. The clients' state, which may
be larger than memory, is written and read piece by piece, a file an array. Orbax writes to a
temporary name and renames at the end.

Of several processes, process 0 alone writes and reads; `shared` hands the others what it read, so
they need not see its directory.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from fedlite.data.federated import FederatedDataset
from fedlite.data.mapped import RowReader
from fedlite.errors import UserError
from fedlite.federated import processes
from fedlite.federated.store import ArrayFile, chunks, pieces

_FORMAT = 3
_CLIENTS, _MANIFEST = "clients", "arrays.json"
_NONE = "none"


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns; `tree` is on the host, `clients` in files."""

    round: int
    tree: Any
    clients: dict[str, Any]
    progress: dict[str, Any]


class _ArrayFiles(ocp.CheckpointHandler):
    """Writes arrays in pieces, as orbax's own handlers cannot; `_read_files` is the inverse."""

    def save(self, directory, *, args: "_Arrays"):
        manifest = {}
        for name, array in args.arrays.items():
            crc = 0
            with open(pathlib.Path(directory) / f"{name}.bin", "wb") as file:
                for block in chunks(array):
                    crc = _crc(block, crc)
                    file.write(block.reshape(-1).view(np.uint8))
                file.flush()
                os.fsync(file.fileno())
            manifest[name] = [list(array.shape), array.dtype.name, crc]
        with open(pathlib.Path(directory) / _MANIFEST, "w", encoding="utf-8") as file:
            json.dump(manifest, file)

    def restore(self, directory, *, args: Any = None):
        raise NotImplementedError("read by _read_files")


@ocp.args.register_with_handler(_ArrayFiles, for_save=True, for_restore=True)
@dataclasses.dataclass
class _Arrays(ocp.args.CheckpointArgs):
    arrays: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one work directory, by the number of finished rounds."""

    def __init__(self, directory: pathlib.Path, keep: int = 3, read_only: bool = False):
        """With `read_only` nothing is changed, so that a run may be writing there."""
        self._directory, self._read_only = directory, read_only
        multiprocessing = ocp.options.MultiprocessingOptions()
        if processes.count() > 1:
            # Orbax would wait for the others, which have no checkpoints of their own.
            multiprocessing = ocp.options.MultiprocessingOptions(
                primary_host=processes.index(), active_processes={processes.index()}
            )
            if not read_only:
                # It refuses to make the directory then.
                directory.mkdir(exist_ok=True)
        with _quiet():
            self._manager = ocp.CheckpointManager(
                directory.absolute(),
                item_names=("arrays", _CLIENTS, "progress"),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=None if read_only else keep,
                    create=not read_only and processes.count() == 1,
                    multiprocessing_options=multiprocessing,
                    cleanup_tmp_directories=not read_only,
                    read_only=read_only,
                    enable_async_checkpointing=False,
                ),
            )

    def save(
        self,
        round_number: int,
        tree: Any,
        clients: Mapping[str, Any],
        progress: Mapping[str, Any],
    ):
        """Writes a checkpoint; when it returns, the checkpoint is there.

        Args:
          round_number: of finished rounds.
          tree: arrays on the host or a device.
          clients: arrays by name, any of which may grow from one checkpoint to the next;
            those with `chunks` (`fedlite.federated.store.Rows`) are read piece by piece.
          progress: JSON values.

        Raises:
          OSError: it could not be written, for want of room for example; older ones are whole.
        """
        leaves = {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
        contents = {
            "format": _FORMAT,
            "leaves": _describe(tree),
            "empty": _empty(leaves),
            "checksums": _checksums(leaves),
            "progress": progress,
        }
        try:
            with _quiet():
                self._manager.save(
                    round_number,
                    args=ocp.args.Composite(
                        arrays=ocp.args.StandardSave(_full(leaves)),
                        clients=_Arrays(clients),
                        progress=ocp.args.JsonSave(contents),
                    ),
                    force=True,
                )
                self._manager.wait_until_finished()
        except ValueError as error:
            # Tensorstore has no OSError; the system's reason stands in its text.
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                if (reason := os.strerror(number)) in str(error):
                    raise OSError(number, reason, str(self._directory)) from error
            raise

    def restore(self, template: Any) -> Restored | None:
        """The newest checkpoint that can be read, or None where there is none.

        Newer ones that cannot be read are removed, since the run will write them again.

        Args:
          template: a tree of the shapes that the run has.

        Raises:
          UserError: the checkpoint is of another model or method, or none can be read.
        """
        unreadable: list[int] = []
        reason = ""
        for number in sorted(self._manager.all_steps(), reverse=True):
            try:
                with _quiet():
                    contents, leaves, clients = self._read(number)
            except Exception as error:  # Orbax raises many kinds, for a truncated file among them.
                reason = reason or (str(error).strip() or type(error).__name__).splitlines()[0]
                unreadable.append(number)
                continue
            self._check(number, contents, template)
            for broken in unreadable:
                logging.warning(
                    "The checkpoint of round %d cannot be read (%s): resuming from that of round "
                    "%d.",
                    broken,
                    reason[:200],
                    number,
                )
                if not self._read_only:
                    self._manager.delete(broken)
            tree = jax.tree.unflatten(jax.tree.structure(template), leaves)
            return Restored(number, tree, clients, contents["progress"])
        if unreadable:
            raise UserError(
                f"{self._directory}: none of the {len(unreadable)} checkpoints can be read "
                f"({reason[:200]}); restore them from a copy, or use another --workdir to begin "
                "anew"
            )
        return None

    def close(self):
        """Lets go of orbax's threads."""
        self._manager.close()

    def _read(self, number: int) -> tuple[dict, list[np.ndarray], dict[str, ArrayFile]]:
        loaded = self._manager.restore(
            number,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore()
            ),
        )
        contents = loaded["progress"]
        if contents["format"] != _FORMAT:
            return contents, [], {}
        leaves = {
            **{name: np.asarray(value) for name, value in loaded["arrays"].items()},
            **{name: np.zeros(shape, dtype) for name, (shape, dtype) in contents["empty"].items()},
        }
        leaves.pop(_NONE, None)
        if _checksums(leaves) != contents["checksums"]:
            raise ValueError("its checksums differ")
        clients = _read_files(self._directory / str(number) / _CLIENTS)
        return contents, [leaves[name] for name in sorted(leaves)], clients

    def _check(self, number: int, contents: Mapping[str, Any], template: Any):
        what = f"{self._directory}: the checkpoint of round {number}"
        if contents["format"] != _FORMAT:
            raise UserError(
                f"{what} has another format; resume it with the version that wrote it, or use "
                "another --workdir"
            )
        found, expected = contents["leaves"], _describe(template)
        difference = next(
            (
                f"{_show(a)} where this run has {_show(b)}"
                for a, b in zip(found, expected)
                if a != b
            ),
            f"{len(found)} arrays where this run has {len(expected)}",
        )
        if found != expected:
            raise UserError(
                f"{what} is of another model or method: it has {difference}; use another --workdir"
            )


def fingerprint(dataset: FederatedDataset) -> str:
    """A checksum of the clients and of up to 4,096 examples of each split."""
    crc = 0
    for name, split in sorted(dataset.splits.items()):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(np.asarray(split.offsets, np.int64).tobytes(), crc)
        rows = np.linspace(0, split.num_examples - 1, min(split.num_examples, 4096)).astype(int)
        for key, array in sorted(split.arrays.items()):
            crc = zlib.crc32(f"{key} {array.dtype} {array.shape}".encode(), crc)
            crc = zlib.crc32(RowReader(array).take(rows).tobytes(), crc)
    return f"{crc:08x}"


def shared(restored: Restored | None, template: Any) -> Restored | None:
    """What process 0 restored, in all processes; a collective operation.

    The clients' arrays are sent when their `chunks` are asked for, which all processes must do in
    the same order.

    Args:
      restored: in process 0; the others' is not looked at.
      template: a tree of the shapes that the run has, as of `Checkpoints.restore`.
    """
    if processes.count() == 1:
        return restored
    header = None
    if restored is not None:
        described = {k: [list(a.shape), a.dtype.name] for k, a in restored.clients.items()}
        header = [restored.round, described, restored.progress]
    header = processes.broadcast_json(header)
    if header is None:
        return None
    number, described, progress = header
    source = template if restored is None else restored.tree
    tree = jax.tree.map(processes.broadcast_array, source)
    clients = {
        name: _Sent(tuple(shape), np.dtype(dtype), restored and restored.clients[name])
        for name, (shape, dtype) in described.items()
    }
    return Restored(number, tree, clients, progress)


@dataclasses.dataclass(frozen=True, eq=False)
class _Sent:
    """An array that process 0 reads piece by piece, and sends to the others."""

    shape: tuple[int, ...]
    dtype: np.dtype
    source: ArrayFile | None

    def chunks(self) -> Iterator[np.ndarray]:
        blocks = None if self.source is None else self.source.chunks()
        for begin, end in pieces(self.shape, self.dtype.itemsize):
            empty = np.zeros((end - begin, *self.shape[1:]), self.dtype)
            yield processes.broadcast_array(empty if blocks is None else next(blocks))


@contextlib.contextmanager
def _quiet():
    """Keeps orbax from reporting what is reported here in one line."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _describe(tree: Any) -> list[list]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        [jax.tree_util.keystr(path), list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves
    ]


def _full(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # Orbax refuses arrays of no entries, and trees of no arrays.
    return {name: array for name, array in arrays.items() if array.size} or {_NONE: np.zeros(1)}


def _empty(arrays: Mapping[str, np.ndarray]) -> dict[str, list]:
    return {name: [list(a.shape), str(a.dtype)] for name, a in arrays.items() if not a.size}


def _checksums(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {name: _crc(array) for name, array in arrays.items()}


def _crc(array: np.ndarray, before: int = 0) -> int:
    # As bytes: a bfloat16 array has no buffer of its own.
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), before)


def _read_files(directory: pathlib.Path) -> dict[str, ArrayFile]:
    """What `_ArrayFiles` wrote, checked, and still in its files.

    Raises:
      OSError, ValueError: a file is missing, cut or changed.
    """
    arrays = {}
    manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
    for name, (shape, dtype, expected) in manifest.items():
        arrays[name] = ArrayFile(directory / f"{name}.bin", tuple(shape), np.dtype(dtype))
        crc = 0
        for block in arrays[name].chunks():
            crc = _crc(block, crc)
        if crc != expected:
            raise ValueError(f"the checksum of {name!r} differs")
    return arrays


def _show(described: list) -> str:
    name, shape, dtype = described
    return json.dumps(f"{name} {dtype}{shape}")
