"""Finished runs and backbones of other tables' directories, where this table has the same."""

import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fedlite.errors import UserError
from fedlite.federated.workdir import write_atomically
from scripts.tables.harness import plan
from scripts.tables.harness.plan import Run
from scripts.tables.harness.spec import BACKBONES, Backbone, Scale


def take_backbones(scale: Scale, out: pathlib.Path, others: Iterable[pathlib.Path]) -> list[str]:
    """Copies the scale's backbones that another table has trained in the same way.

    Args:
      scale: of the table.
      out: its directory.
      others: directories of tables.

    Returns:
      The names of those that were copied.

    Raises:
      UserError: one of the others is not there.
    """
    taken = []
    for backbone in scale.backbones:
        target = plan.backbone_directory(out, backbone.name)
        for file in _found(others, "backbones/*/backbone.json"):
            if not target.exists() and _is(backbone, _read(file)):
                _copy(file.parent, target, lambda copy: None)
                taken.append(backbone.name)
    return taken


def take_runs(runs: Sequence[Run], out: pathlib.Path, others: Iterable[pathlib.Path]) -> list[str]:
    """Copies finished runs of the same config, for what was not begun yet.

    Args:
      runs: of the table.
      out: its directory, with its backbones.
      others: directories of tables.

    Returns:
      The names of the runs that were copied.

    Raises:
      UserError: one of the others is not there.
    """
    there = {}
    for file in _found(others, "runs/*/*/row.json"):
        if (file.parent / "summary.json").exists():
            there.setdefault(_identity(_read(file).get("config"), file.parents[3]), file.parent)
    taken = []
    for run in runs:
        source = there.get(_identity(run.config, out))
        if source is None or run.directory.exists():
            continue
        _copy(source, run.directory, functools.partial(_own, source.parents[2], out))
        taken.append(run.name)
    return taken


def _found(others: Iterable[pathlib.Path], pattern: str) -> Iterable[pathlib.Path]:
    for other in others:
        if not other.is_dir():
            raise UserError(f"--reuse: {other} is no directory; name that of another table")
        yield from sorted(other.resolve().glob(pattern))


def _identity(config: Any, out: pathlib.Path) -> str:
    """A config as text, in which a backbone is its digest, wherever it lies."""
    prefix = f"{plan.backbone_directory(out)}/"

    def portable(text: str) -> str:
        if not text.startswith(prefix):
            return text
        facts = pathlib.Path(text) / "backbone.json"
        return f"{BACKBONES}{_read(facts).get('digest', text)}" if facts.exists() else text

    return json.dumps(_map_strings(portable, config), sort_keys=True)


def _own(there: pathlib.Path, out: pathlib.Path, copy: pathlib.Path):
    """A copied run names the backbones of its own table."""
    prefix, own = (f"{plan.backbone_directory(directory)}/" for directory in (there, out))

    def moved(text: str) -> str:
        return own + text.removeprefix(prefix) if text.startswith(prefix) else text

    for name in ("row.json", "config.json"):
        if (file := copy / name).exists():
            contents = _map_strings(moved, _read(file))
            write_atomically(file, json.dumps(contents, indent=2, sort_keys=True) + "\n")
    # The flags name it within a longer string.
    row = _read(copy / "row.json")
    row["flags"] = [flag.replace(f"={prefix}", f"={own}") for flag in row["flags"]]
    write_atomically(copy / "row.json", json.dumps(row, indent=2, sort_keys=True) + "\n")


def _is(backbone: Backbone, facts: dict[str, Any]) -> bool:
    """Whether facts are those of a backbone that `prepare` would train."""
    config = plan.load_config(backbone.config)
    config.update_from_flattened_dict(dict(backbone.overrides))
    wanted = json.loads(json.dumps(config.to_dict()))
    found, training = facts.get("config", {}), facts.get("training", {})
    return (
        all(
            training.get(option) == getattr(backbone, option)
            for option in ("epochs", "learning_rate", "batch_size")
        )
        and bool(found)
        and all(found[name] == wanted.get(name) for name in found)
    )


def _copy(source: pathlib.Path, target: pathlib.Path, finish: Callable[[pathlib.Path], None]):
    """Copies a directory, which appears under its name when it is whole."""
    temporary = target.parent / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, temporary)
    finish(temporary)
    os.replace(temporary, target)


def _map_strings(function: Callable[[str], str], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map_strings(function, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(function, inner) for inner in value]
    return function(value) if isinstance(value, str) else value


def _read(file: pathlib.Path) -> dict[str, Any]:
    try:
        contents = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): delete {file.parent}") from error
    if not isinstance(contents, dict):
        raise UserError(f"{file} is damaged: delete {file.parent}")
    return contents
