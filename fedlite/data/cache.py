"""Converted data sets: memory-mapped arrays on disk that are written once and then believed.

An entry is a directory of `.npy` files with a manifest of their sizes and digests. It is built
in a temporary directory beside its place and renamed at the end, so that a conversion that
was killed leaves nothing that looks finished; an entry whose files are missing, cut or changed
is built again, and so is one whose source has changed. A lock makes concurrent converters of
one entry wait for the first instead of doing the work twice.

Entries lie in `cache_dir`, else in the environment variable FEDLITE_CACHE, else in
`~/.cache/fedlite`. Any of them may be deleted at any time.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedlite.errors import UserError

_LAYOUT = 1
_MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A converted data set.

    Attributes:
      arrays: by name, read-only and memory-mapped.
      facts: what the converter returned, as JSON gives it back.
    """

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


class Writer:
    """Grows named arrays along their first axis, on disk, one batch after another."""

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        self._files = {}
        self._shapes = {}
        self._dtypes = {}

    def append(self, name: str, batch: np.ndarray):
        """Appends to array `name`.

        Args:
          name: letters, digits, dots and underscores; it becomes a file name.
          batch: [examples, ...]; of one dtype and one shape but for the first axis.
        """
        batch = np.ascontiguousarray(batch)
        if name not in self._files:
            self._files[name] = open(self._directory / f"{name}.npy", "wb")
            self._shapes[name] = (0, *batch.shape[1:])
            self._dtypes[name] = batch.dtype
            self._write_header(name)
        shape = self._shapes[name]
        if batch.shape[1:] != shape[1:] or batch.dtype != self._dtypes[name]:
            raise ValueError(
                f"array {name} is {self._dtypes[name]} {shape}, "
                f"cannot append {batch.dtype} {batch.shape}"
            )
        self._files[name].write(batch.data if batch.size else b"")
        self._shapes[name] = (shape[0] + len(batch), *shape[1:])

    def _write_header(self, name: str):
        # NumPy pads the header so that its first axis may grow in place.
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtypes[name]),
            "fortran_order": False,
            "shape": self._shapes[name],
        }
        np.lib.format.write_array_header_1_0(self._files[name], header)

    def finish(self) -> dict[str, dict[str, Any]]:
        """Completes the files; what the manifest says of each array."""
        records = {}
        for name, file in self._files.items():
            file.seek(0)
            self._write_header(name)
            file.flush()
            os.fsync(file.fileno())
            file.close()
            path = self._directory / f"{name}.npy"
            status = path.stat()
            records[name] = {
                "bytes": status.st_size,
                "mtime_ns": status.st_mtime_ns,
                "sha256": _sha256(path),
            }
        return records

    def close(self):
        """Closes the files of a conversion that failed."""
        for file in self._files.values():
            file.close()


def directory(cache_dir: str | os.PathLike = "") -> pathlib.Path:
    """Where entries lie: `cache_dir`, else FEDLITE_CACHE, else `~/.cache/fedlite`."""
    chosen = os.fspath(cache_dir) or os.environ.get("FEDLITE_CACHE", "") or "~/.cache/fedlite"
    return pathlib.Path(chosen).expanduser()


def stamp(path: str | os.PathLike) -> dict[str, Any]:
    """What tells one version of a source file from another: its path, size and time."""
    resolved = pathlib.Path(path).resolve()
    status = resolved.stat()
    return {"path": str(resolved), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def load(
    name: str,
    *,
    options: Mapping[str, Any],
    sources: Sequence[Mapping[str, Any]],
    convert: Callable[[Writer], Mapping[str, Any]],
    cache_dir: str | os.PathLike = "",
) -> Entry:
    """The entry for a data set, converted first where there is no sound one.

    Args:
      name: of the data set, the beginning of the entry's directory name.
      options: all that the conversion depends on besides the contents of the sources, its
        own version among them; plain JSON. Other options are another entry.
      sources: a `stamp` of each source file; where one differs from those of the entry,
        it is converted again and replaced.
      convert: writes the arrays and returns facts, plain JSON, to be kept with them.
      cache_dir: see `directory`.

    Raises:
      UserError: if the cache cannot be written, or from `convert`.
    """
    wanted = json.loads(
        json.dumps({"layout": _LAYOUT, "options": options, "sources": list(sources)})
    )
    identity = json.dumps(wanted["options"], sort_keys=True).encode()
    root = directory(cache_dir)
    target = root / f"{name}-{hashlib.sha256(identity).hexdigest()[:16]}"
    entry = _open(target, wanted)
    if entry is not None:
        return entry
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{target.name}.lock"):
            entry = _open(target, wanted)
            if entry is None:
                _build(target, wanted, convert)
                entry = _open(target, wanted)
    except OSError as error:
        raise UserError(
            f"cannot write {name} to the cache in {root} ({error}): set FEDLITE_CACHE or cache_dir "
            "to a directory that is writable and has room"
        ) from error
    if entry is None:
        raise UserError(f"{target} was changed while it was written: start again")
    return entry


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Waits for, and holds, a lock that the system drops when its process dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(target: pathlib.Path, wanted: Mapping[str, Any], convert):
    """Converts into a temporary directory and renames it to `target`; needs the lock."""
    prefix = f".{target.name}.tmp-"
    for abandoned in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    temporary = target.with_name(f"{prefix}new")
    temporary.mkdir()
    writer = Writer(temporary)
    try:
        facts = convert(writer)
        manifest = {**wanted, "arrays": writer.finish(), "facts": facts}
        with open(temporary / _MANIFEST, "w", encoding="utf-8") as file:
            json.dump(manifest, file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            # Renamed away first: a reader of the old files keeps them until it closes them.
            old = target.with_name(f"{prefix}old")
            os.rename(target, old)
            shutil.rmtree(old, ignore_errors=True)
        os.rename(temporary, target)
    finally:
        writer.close()
        shutil.rmtree(temporary, ignore_errors=True)


def _open(target: pathlib.Path, wanted: Mapping[str, Any]) -> Entry | None:
    """The entry, or None where it isn't there, isn't sound or is of something else."""
    try:
        manifest = json.loads((target / _MANIFEST).read_text(encoding="utf-8"))
        if any(manifest[key] != value for key, value in wanted.items()):
            return None
        arrays = {}
        for name, record in manifest["arrays"].items():
            path = target / f"{name}.npy"
            if not _intact(path, record):
                return None
            arrays[name] = _map(path)
        return Entry(arrays, manifest["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _intact(path: pathlib.Path, record: Mapping[str, Any]) -> bool:
    status = path.stat()
    if status.st_size != record["bytes"]:
        return False
    # A digest of the largest sets takes minutes, so it is only taken of files that were
    # touched (or copied) since they were written.
    return status.st_mtime_ns == record["mtime_ns"] or _sha256(path) == record["sha256"]


def _map(path: pathlib.Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    # As a plain array: indexing a `memmap` makes further memmaps, which is slow.
    return array.view(np.ndarray)


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
