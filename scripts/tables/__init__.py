"""Tables by name: one module a paper, each with a dictionary `TABLES`.

`load("fedpt/emnist")` is `scripts.tables.fedpt.TABLES["emnist"]`; a table under the key "" is
known by its module's name alone, such as "quickstart". Tables that need no runs are in a
dictionary `COMPUTED`, where a module has one.
"""

import importlib
import pkgutil
from collections.abc import Callable

from fedlite.errors import UserError
from scripts.tables.harness.computed import ComputedTable, Section
from scripts.tables.harness.spec import Scale, Table


def names() -> list[str]:
    """The names of all tables of runs."""
    return list(_tables("TABLES"))


def computed_names() -> list[str]:
    """The names of all tables that need no runs."""
    return list(_tables("COMPUTED"))


def load(name: str) -> Table | ComputedTable:
    """A table of either kind.

    Raises:
      UserError: no table has this name.
    """
    tables = {**_tables("TABLES"), **_tables("COMPUTED")}
    if name not in tables:
        raise UserError(f"--table={name} is unknown: use one of {', '.join(tables)}")
    return tables[name]


def scale_of(table: Table | ComputedTable, name: str) -> Scale | Callable[[], list[Section]]:
    """One of a table's scales.

    Raises:
      UserError: the table has no such scale.
    """
    if name not in table.scales:
        raise UserError(
            f"--scale={name} is not a scale of {table.title!r}: use {' or '.join(table.scales)}"
        )
    return table.scales[name]


def _tables(kind: str) -> dict[str, Table | ComputedTable]:
    found = {}
    for info in pkgutil.iter_modules(__path__):
        if not info.ispkg:
            module = importlib.import_module(f"{__name__}.{info.name}")
            tables = module.TABLES if kind == "TABLES" else getattr(module, kind, {})
            found |= {f"{info.name}/{key}".rstrip("/"): table for key, table in tables.items()}
    return found
