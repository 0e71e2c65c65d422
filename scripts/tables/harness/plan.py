"""From a table's rows to runs: checked before anything starts, and against what was run before."""

import dataclasses
import importlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from experiments import provenance
from fedlite.errors import UserError
from fedlite.federated.workdir import write_atomically
from scripts.tables.harness import tiny
from scripts.tables.harness.spec import BACKBONES, Row, Scale

# The programs find configs relative to here.
ROOT = pathlib.Path(__file__).resolve().parents[3]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One row with one seed.

    Attributes:
      row: of the table.
      seed: the config's `seed`.
      directory: the run's working directory, DIR/runs/ROW/seedN.
      flags: of `experiments.train` besides --workdir.
      config: the whole config, as JSON values.
    """

    row: Row
    seed: int
    directory: pathlib.Path
    flags: tuple[str, ...]
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.row.label}, seed {self.seed}"

    @property
    def command(self) -> list[str]:
        """The program and its arguments, to be started in `ROOT`."""
        return [
            sys.executable,
            "-m",
            "experiments.train",
            *self.flags,
            f"--workdir={self.directory.resolve()}",
        ]

    @property
    def log(self) -> pathlib.Path:
        """What the program prints."""
        return self.directory / "log.txt"

    @property
    def finished(self) -> bool:
        """Whether the summary is there."""
        return (self.directory / "summary.json").exists()

    def made_by(self, fact: str) -> tuple[str, ...]:
        """The "code" or "machine" that ran it, several where another one resumed it.

        Returns:
          As `experiments.provenance` has them; () if unknown.
        """
        file = self.directory / "row.json"
        return tuple(self._claimed().get(fact, ())) if file.exists() else ()

    def claim(self):
        """Makes the directory, with the config that `check` compares later, code and machine."""
        here = {"code": provenance.code(), "machine": provenance.machine()}
        facts = {name: list(dict.fromkeys((*self.made_by(name), here[name]))) for name in here}
        self.directory.mkdir(parents=True, exist_ok=True)
        row = {"flags": self.flags, "config": self.config, **facts}
        text = json.dumps(row, indent=2, sort_keys=True)
        write_atomically(self.directory / "row.json", text + "\n")

    def check(self):
        """Refuses a directory whose run began with another config.

        Raises:
          UserError: names the first difference.
        """
        if not (self.directory / "row.json").exists():
            return
        there, here = dict(_flat(self._claimed()["config"])), dict(_flat(self.config))
        for key in sorted({*there, *here}):
            if there.get(key) != here.get(key):
                raise UserError(
                    f"row {self.row.label!r} was begun with {key} = {there.get(key)!r}, and now "
                    f"it is {here.get(key)!r}: delete {self.directory}, or use another --out"
                )

    def _claimed(self) -> dict[str, Any]:
        """What `claim` wrote."""
        file = self.directory / "row.json"
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
            return {**row, "config": row["config"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged ({error}): delete {self.directory}") from error


def plan(scale: Scale, out: pathlib.Path, *, seeds: int = 0, small: bool = False) -> list[Run]:
    """The runs of a table, the first seed of every row first.

    Args:
      scale: of the table.
      out: the table's directory.
      seeds: runs of a row; 0 for as many as the scale says.
      small: whether rows run at the size of `tiny`.

    Raises:
      UserError: a row's config is wrong, or `out` holds a run of another one.
    """
    runs = [
        _run(row, seed, out, small) for seed in range(seeds or scale.seeds) for row in scale.rows
    ]
    for run in runs:
        run.check()
    return runs


def select(runs: Sequence[Run], labels: str) -> list[Run]:
    """The runs of some rows.

    Args:
      runs: of a table.
      labels: of rows, joined by ";"; "" for all.

    Raises:
      UserError: the table has no such row.
    """
    wanted = [label.strip() for label in labels.split(";") if label.strip()]
    known = [run.row.label for run in runs]
    for label in wanted:
        if label not in known:
            raise UserError(
                f"--rows: no row is called {label!r}; use {'; '.join(dict.fromkeys(known))}"
            )
    return [run for run in runs if not wanted or run.row.label in wanted]


def shown(runs: Sequence[Run], wanted: Sequence[Run]) -> list[Run]:
    """The runs that a table shows: of rows that were asked for, or that ran before."""
    asked = {run.row.label for run in wanted}
    return [run for run in runs if run.row.label in asked or run.finished]


def backbone_directory(out: pathlib.Path, name: str = "") -> pathlib.Path:
    """Where a table in `out` keeps a backbone."""
    return out.resolve() / "backbones" / name


def _run(row: Row, seed: int, out: pathlib.Path, small: bool) -> Run:
    config = load_config(row.config)
    given = {key: _placed(value, out) for key, value in row.overrides.items()}
    given["seed"] = seed
    _update(config, given, row)
    if small:
        shrunk = tiny.overrides(config)
        _update(config, shrunk, row)
        given |= shrunk
    return Run(
        row=row,
        seed=seed,
        directory=out / "runs" / row.slug / f"seed{seed}",
        flags=(f"--config={row.config}", *(f"--config.{k}={v}" for k, v in given.items())),
        config=json.loads(json.dumps(config.to_dict())),
    )


def _placed(value: Any, out: pathlib.Path) -> Any:
    if isinstance(value, str) and value.startswith(BACKBONES):
        return str(backbone_directory(out, value.removeprefix(BACKBONES)))
    return value


def load_config(path: str) -> ml_collections.ConfigDict:
    """The config of a row: "configs/X.py", or "configs/X.py:VARIANT"."""
    file, _, variant = path.partition(":")
    if not (ROOT / file).is_file():
        raise UserError(f"{file} is not there: mend the table's row")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    return module.get_config(variant) if variant else module.get_config()


def _update(config: ml_collections.ConfigDict, values: Mapping[str, Any], row: Row):
    config.lock()
    for key, value in values.items():
        try:
            config.update_from_flattened_dict({key: value})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"row {row.label!r}: {row.config} takes no {key} = {value!r}: mend the table's row"
            ) from error


def _flat(value: Any, path: str = ""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value
