"""Checkpoints of a run: orbax directories that are whole or not there.

A checkpoint holds the leaves of a tree as flat arrays, the clients' own state, and a small JSON
of progress with the name, shape, type and checksum of every array. Orbax writes to a temporary
name and renames at the end.
"""

import contextlib
import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from fedlite.data.federated import FederatedDataset
from fedlite.errors import UserError

_FORMAT = 2
_NONE = "none"


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns; `tree` is on the host."""

    round: int
    tree: Any
    clients: dict[str, np.ndarray]
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one work directory, by the number of finished rounds."""

    def __init__(self, directory: pathlib.Path, keep: int = 3):
        self._directory = directory
        with _quiet():
            self._manager = ocp.CheckpointManager(
                directory.absolute(),
                item_names=("arrays", "clients", "progress"),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    create=True,
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=False,
                ),
            )

    def save(
        self,
        round_number: int,
        tree: Any,
        clients: Mapping[str, np.ndarray],
        progress: Mapping[str, Any],
    ):
        """Writes a checkpoint; when it returns, the checkpoint is there.

        Args:
          round_number: of finished rounds.
          tree: arrays on the host or a device.
          clients: arrays by name, any of which may grow from one checkpoint to the next.
          progress: JSON values.
        """
        leaves = {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
        contents = {
            "format": _FORMAT,
            "leaves": _describe(tree),
            "empty": [_empty(leaves), _empty(clients)],
            "checksums": _checksums({**leaves, **clients}),
            "progress": progress,
        }
        self._manager.save(
            round_number,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(_full(leaves)),
                clients=ocp.args.StandardSave(_full(clients)),
                progress=ocp.args.JsonSave(contents),
            ),
            force=True,
        )
        self._manager.wait_until_finished()

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

    def _read(self, number: int) -> tuple[dict, list[np.ndarray], dict[str, np.ndarray]]:
        loaded = self._manager.restore(
            number,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(),
                clients=ocp.args.StandardRestore(),
                progress=ocp.args.JsonRestore(),
            ),
        )
        contents = loaded["progress"]
        if contents["format"] != _FORMAT:
            return contents, [], {}
        leaves, clients = (
            {
                **{
                    name: np.asarray(value) for name, value in loaded[item].items() if name != _NONE
                },
                **{name: np.zeros(shape, dtype) for name, (shape, dtype) in empty.items()},
            }
            for item, empty in zip(("arrays", "clients"), contents["empty"])
        )
        if _checksums({**leaves, **clients}) != contents["checksums"]:
            raise ValueError("its checksums differ")
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
            crc = zlib.crc32(np.ascontiguousarray(array[rows]).tobytes(), crc)
    return f"{crc:08x}"


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
    # As bytes: a bfloat16 array has no buffer of its own.
    return {
        name: zlib.crc32(np.ascontiguousarray(array).ravel().view(np.uint8))
        for name, array in arrays.items()
    }


def _show(described: list) -> str:
    name, shape, dtype = described
    return json.dumps(f"{name} {dtype}{shape}")
