"""The files of a run: config.json, metrics.jsonl, summary.json."""

import errno
import fcntl
import json
import math
import os
import pathlib
from typing import IO, Any

from absl import logging

from fedlite.errors import UserError


def write_atomically(path: pathlib.Path, text: str):
    """Writes a file that is either the old one or the new one, never a part of it.

    One process at a time may write `path`; what a killed one left is written over.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def to_json(value: Any) -> str:
    """Indented JSON with sorted keys; NaN is refused, since JSON has none."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


class Workdir:
    """A run's directory. Nothing is written before `claim`."""

    def __init__(self, path: str | os.PathLike):
        self._given, self.path = path, pathlib.Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.summary = self.path / "summary.json"
        self._config = self.path / "config.json"
        self._metrics = self.path / "metrics.jsonl"
        self._lock: IO | None = None

    def check(self, config: dict[str, Any]):
        """Refuses a directory that holds a run of another config, or something else.

        Raises:
          UserError: names what is wrong, or the first difference.
        """
        try:
            self._check_place()
            if (self.path / ".lock").exists():
                # A probe: shared, so that two of them do not see each other.
                with open(self.path / ".lock") as lock:
                    self._acquire(lock, fcntl.LOCK_SH)
            self._check_config(config)
        except OSError as error:
            raise self._unusable(error) from error

    def claim(self, config: dict[str, Any]):
        """Makes the directory this process's own until `release`, and writes config.json.

        Raises:
          UserError: as `check`.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a")
            # The system drops it when the process ends, however it ends.
            self._acquire(self._lock, fcntl.LOCK_EX)
            self._check_config(config)
            if not self._config.exists():
                write_atomically(self._config, to_json(config))
        except OSError as error:
            self.release()
            raise self._unusable(error) from error
        except UserError:
            self.release()
            raise

    def release(self):
        """Lets other processes in."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def append(self, round_number: int, kind: str, values: dict[str, Any]):
        """Adds a line to metrics.jsonl."""
        line = {"round": round_number, "kind": kind, **finite(values)}
        line = json.dumps(line, sort_keys=True, allow_nan=False)
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def rewind(self, round_number: int):
        """Drops the lines after a round, which a resumed run will write again."""
        if self._metrics.exists():
            kept = [text for text, line in self._lines() if line["round"] <= round_number]
            write_atomically(self._metrics, "".join(text + "\n" for text in kept))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a line that a kill cut short is left out."""
        return [line for _, line in self._lines()] if self._metrics.exists() else []

    def write_summary(self, summary: dict[str, Any]):
        """Writes summary.json whole."""
        write_atomically(self.summary, to_json(finite(summary)))

    def _check_place(self):
        if "://" in os.fspath(self._given):
            raise UserError(f"--workdir={self._given} is no local directory; name one")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir={self.path} is a file; name a directory")
        above = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise UserError(
                f"--workdir={self.path}: {above} cannot be written; name another directory"
            )
        for path, directory in (
            (self._config, False),
            (self._metrics, False),
            (self.summary, False),
            (self.checkpoints, True),
            (self.tensorboard, True),
        ):
            if path.exists() and path.is_dir() != directory:
                kind = "a directory" if directory else "a file"
                raise UserError(f"{path} is not {kind}; use another --workdir")

    def _check_config(self, config: dict[str, Any]):
        if not self._config.exists():
            if self._metrics.exists() or self.checkpoints.exists():
                raise UserError(
                    f"--workdir={self.path} has a run but no config.json; restore it, or use "
                    "another --workdir"
                )
            return
        try:
            there = json.loads(self._config.read_text(encoding="utf-8"))
            if not isinstance(there, dict):
                raise ValueError("it is of another kind")
        except ValueError as error:
            raise UserError(
                f"{self._config} is no JSON object ({error}); restore it, or use another --workdir"
            ) from error
        difference = _first_difference(there, json.loads(to_json(config)))
        if difference:
            raise UserError(
                f"--workdir={self.path} holds a run of another config: {difference}; use another "
                "--workdir, or the same config to resume"
            )

    def _acquire(self, lock: IO, kind: int):
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--workdir={self.path} is in use by another process; wait for it, or use another "
                "--workdir"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            logging.warning("%s: this file system has no locks; start one run at a time", self.path)

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"--workdir={self.path} cannot be used ({error.strerror}: {error.filename}); name "
            "another directory"
        )

    def _lines(self) -> list[tuple[str, dict[str, Any]]]:
        lines = []
        for text in self._metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("round"), int):
                lines.append((text, line))
        return lines


class UnwrittenWorkdir(Workdir):
    """The directory of a run as it is to processes other than 0: they leave it alone."""

    def check(self, config: dict[str, Any]):
        """Process 0 does."""

    def claim(self, config: dict[str, Any]):
        """Process 0 does."""

    def append(self, round_number: int, kind: str, values: dict[str, Any]):
        """Process 0 does."""

    def rewind(self, round_number: int):
        """Process 0 does."""

    def write_summary(self, summary: dict[str, Any]):
        """Process 0 does."""


def finite(value: Any) -> Any:
    """The value with None for each number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _first_difference(there, here, path: str = "") -> str:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            name = f"{path}.{key}" if path else key
            if key not in there:
                return f"{name} = {here[key]!r} is new"
            if key not in here:
                return f"{name} = {there[key]!r} is gone"
            if difference := _first_difference(there[key], here[key], name):
                return difference
        return ""
    return "" if there == here else f"{path} was {there!r} and is {here!r}"
