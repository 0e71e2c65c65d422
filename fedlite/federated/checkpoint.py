"""Checkpoints of a run: orbax directories that are whole or not there.

A checkpoint holds the leaves of a tree as flat arrays, their names and shapes, and a small
JSON of progress. Orbax writes to a temporary name and renames at the end.
"""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from fedlite.errors import UserError

_FORMAT = 1


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
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            item_names=("arrays", "clients", "progress"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, enable_async_checkpointing=False
            ),
        )

    def save(self, round_number: int, tree: Any, clients: dict[str, np.ndarray], progress: dict):
        """Writes a checkpoint; when it returns, the checkpoint is on disk."""
        leaves = {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
        progress = {"format": _FORMAT, "leaves": _describe(tree), **progress}
        # Orbax refuses an empty tree.
        clients = {"none": np.zeros(1), **clients}
        self._manager.save(
            round_number,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(leaves),
                clients=ocp.args.StandardSave(clients),
                progress=ocp.args.JsonSave(progress),
            ),
            force=True,
        )
        self._manager.wait_until_finished()

    def restore(self, template: Any) -> Restored | None:
        """The newest checkpoint that can be read, or None where there is none.

        Args:
          template: a tree of the shapes that the run has.

        Raises:
          UserError: the checkpoint is of another model or method, or none can be read.
        """
        rounds = sorted(self._manager.all_steps(), reverse=True)
        for number in rounds:
            try:
                loaded = self._manager.restore(
                    number,
                    args=ocp.args.Composite(
                        arrays=ocp.args.StandardRestore(),
                        clients=ocp.args.StandardRestore(),
                        progress=ocp.args.JsonRestore(),
                    ),
                )
                progress = dict(loaded["progress"])
                names = progress.pop("leaves")
                leaves = [np.asarray(loaded["arrays"][f"{i:05d}"]) for i in range(len(names))]
            except Exception as error:  # Orbax raises many kinds, for a truncated file among them.
                first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
                logging.warning(
                    "The checkpoint of round %d cannot be read (%s); trying the one before.",
                    number,
                    first_line[:200],
                )
                continue
            self._check(number, names, _describe(template))
            clients = {k: np.asarray(v) for k, v in loaded["clients"].items() if k != "none"}
            tree = jax.tree.unflatten(jax.tree.structure(template), leaves)
            if progress.pop("format") != _FORMAT:
                raise UserError(
                    f"{self._directory}: the checkpoint of round {number} has another format; "
                    "resume it with the version that wrote it, or use another --workdir"
                )
            return Restored(number, tree, clients, progress)
        if rounds:
            raise UserError(
                f"{self._directory}: none of the {len(rounds)} checkpoints can be read; restore "
                "them from a copy, or use another --workdir to begin anew"
            )
        return None

    def close(self):
        """Lets go of orbax's threads."""
        self._manager.close()

    def _check(self, number: int, found: list, expected: list):
        for there, here in zip(found, expected):
            if list(there) != list(here):
                raise UserError(
                    f"{self._directory}: the checkpoint of round {number} is of another model or "
                    f"method: it has {_show(there)} where this run has {_show(here)}; use another "
                    "--workdir"
                )
        if len(found) != len(expected):
            raise UserError(
                f"{self._directory}: the checkpoint of round {number} is of another model or "
                f"method: it has {len(found)} arrays where this run has {len(expected)}; use "
                "another --workdir"
            )


def _describe(tree: Any) -> list[list]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        [jax.tree_util.keystr(path), list(np.shape(leaf)), str(np.asarray(leaf).dtype)]
        for path, leaf in leaves
    ]


def _show(described) -> str:
    name, shape, dtype = described
    return json.dumps(f"{name} {dtype}{list(shape)}")
