"""The files of a run: config.json, metrics.jsonl, summary.json."""

import fcntl
import json
import math
import os
import pathlib
from typing import Any

from fedlite.errors import UserError


def write_atomically(path: pathlib.Path, text: str):
    """Writes a file that is either the old one or the new one, never a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
        self.path = pathlib.Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.summary = self.path / "summary.json"
        self._config = self.path / "config.json"
        self._metrics = self.path / "metrics.jsonl"

    def check(self, config: dict[str, Any]):
        """Refuses a directory that holds a run of another config, or something else.

        Raises:
          UserError: names the first difference.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir={self.path} is a file; name a directory")
        probe = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not os.access(probe, os.W_OK):
            raise UserError(f"--workdir={self.path} cannot be written; name another directory")
        if not self._config.exists():
            if self._metrics.exists() or self.checkpoints.exists():
                raise UserError(
                    f"--workdir={self.path} has a run but no config.json; name another directory"
                )
            return
        try:
            there = json.loads(self._config.read_text(encoding="utf-8"))
            if not isinstance(there, dict):
                raise ValueError("not an object")
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

    def claim(self, config: dict[str, Any]):
        """Makes the directory this process's own and writes config.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        # Held until the process ends, however it ends.
        self._lock = open(self.path / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"--workdir={self.path} is in use by another process; wait for it, or use another "
                "--workdir"
            ) from error
        if not self._config.exists():
            write_atomically(self._config, to_json(config))

    def append(self, round_number: int, kind: str, values: dict[str, Any]):
        """Adds a line to metrics.jsonl."""
        line = {"round": round_number, "kind": kind, **finite(values)}
        line = json.dumps(line, sort_keys=True, allow_nan=False)
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def rewind(self, round_number: int):
        """Drops the lines after a round, which a resumed run will write again."""
        if self._metrics.exists():
            kept = [line for line in self.metrics() if line["round"] <= round_number]
            write_atomically(
                self._metrics, "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept)
            )

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a line that a kill cut short is left out."""
        lines = []
        if self._metrics.exists():
            for line in self._metrics.read_text(encoding="utf-8").splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    continue
        return lines

    def write_summary(self, summary: dict[str, Any]):
        """Writes summary.json whole."""
        write_atomically(self.summary, to_json(finite(summary)))


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
