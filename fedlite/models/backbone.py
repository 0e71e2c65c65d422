"""Backbones: trained parameters on disk, named by a digest of what they hold.

A backbone is a directory with `params.npz` (float32 arrays by path) and `backbone.json` (its
digest, shapes, and where it comes from). The digest is over paths, shapes and values, so a copy
in another container has the same.
"""

import hashlib
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedlite.errors import UserError

_PARAMS, _FACTS = "params.npz", "backbone.json"
# What a backbone need not have: it was trained without adapters.
SKIP = "adapters/.*"


def digest(params: Mapping[str, Any]) -> str:
    """SHA-256 of the parameters' paths, shapes and float32 values, in hexadecimal."""
    total = hashlib.sha256()
    for path in sorted(params):
        value = np.ascontiguousarray(params[path], np.dtype("<f4"))
        total.update(f"{path} {list(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(np.uint8))
    return total.hexdigest()


def check_new(directory: str | os.PathLike):
    """Refuses a directory that already holds a backbone, or that cannot be made.

    Raises:
      UserError: names it.
    """
    directory = pathlib.Path(directory)
    if (directory / _FACTS).exists():
        raise UserError(f"{directory} already holds a backbone; name another directory")
    above = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{directory}: {above} cannot be written; name another directory")


def save(
    directory: str | os.PathLike, params: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes a backbone; `backbone.json` comes last, so what has one is whole.

    Args:
      directory: made if it is not there.
      params: by path.
      facts: JSON values to keep beside the digest: config, accuracy.

    Returns:
      What `backbone.json` holds.

    Raises:
      UserError: the directory already holds a backbone, or cannot be made.
    """
    check_new(directory)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    params = {path: np.asarray(value, np.float32) for path, value in sorted(params.items())}
    contents = {
        **facts,
        "digest": digest(params),
        "shapes": {path: list(value.shape) for path, value in params.items()},
    }
    for name, write in (
        (_PARAMS, lambda file: np.savez(file, **params)),
        (_FACTS, lambda file: file.write(json.dumps(contents, indent=2, sort_keys=True).encode())),
    ):
        temporary = directory / f".{name}.tmp"
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, directory / name)
    return contents


def load(
    directory: str | os.PathLike,
    shapes: Mapping[str, tuple[int, ...]],
    expected_digest: str = "",
    skip: str = SKIP,
) -> dict[str, np.ndarray]:
    """The parameters that a run takes from a backbone.

    Args:
      directory: as `save` wrote it.
      shapes: of the run's parameters by path.
      expected_digest: of the whole backbone, or its first 8 characters or more; "" takes any.
      skip: a pattern; the run's parameters whose whole path it matches are left fresh (the head
        where the classes differ: "adapters/.*|logits/.*"). All others must be in the backbone.

    Returns:
      float32 arrays by path; `merge` puts them in place.

    Raises:
      UserError: nothing is there, it is damaged, or its digest or a shape is another.
    """
    directory = pathlib.Path(directory)
    params, recorded = _read(directory)
    found = digest(params)
    if found != recorded:
        raise UserError(
            f"{directory}: the parameters have the digest {found[:16]}, but {_FACTS} says "
            f"{str(recorded)[:16]}; one of them was changed, take a sound copy"
        )
    if expected_digest and (len(expected_digest) < 8 or not found.startswith(expected_digest)):
        raise UserError(
            f"{directory} has the digest {found}, and not {expected_digest!r}; name the backbone "
            "that is meant, or its digest"
        )
    try:
        skipped = {path for path in shapes if re.fullmatch(skip, path)}
    except re.error as error:
        raise UserError(f"backbone.skip: {skip!r} is not a regular expression ({error})") from error
    taken = {path: shape for path, shape in shapes.items() if path not in skipped}
    for path, shape in sorted(taken.items()):
        if path not in params:
            raise UserError(
                f"{directory} has no parameter {path!r}; use the model that it was trained with, "
                "or leave the parameter fresh by backbone.skip"
            )
        if params[path].shape != tuple(shape):
            raise UserError(
                f"{directory}: {path!r} has the shape {list(params[path].shape)}, in this model "
                f"{list(shape)}; use the model that it was trained with, or leave the parameter "
                "fresh by backbone.skip"
            )
    if not taken:
        raise UserError(f"backbone.skip = {skip!r} leaves nothing to take from {directory}")
    return {path: params[path] for path in taken}


def merge(params: Mapping[str, Any], taken: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Freshly initialised parameters with those of a backbone in their place.

    Raises:
      KeyError: `params` has no such path.
    """
    if missing := sorted(set(taken) - set(params)):
        raise KeyError(missing[0])
    return {path: taken.get(path, value) for path, value in params.items()}


def _read(directory: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
    if not (directory / _FACTS).exists():
        raise UserError(
            f"{directory} holds no backbone ({_FACTS} is not there); make one by python -m "
            "experiments.pretrain"
        )
    try:
        recorded = json.loads((directory / _FACTS).read_text(encoding="utf-8"))["digest"]
        with np.load(directory / _PARAMS, allow_pickle=False) as file:
            return {path: file[path] for path in file.files}, recorded
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).strip() or type(error).__name__
        raise UserError(
            f"{directory}: the backbone cannot be read ({reason.splitlines()[0][:150]}); take a "
            "sound copy, or make it again"
        ) from error
