"""Tables by name: one module a paper, each with a dictionary `TABLES`.

`load("fedpt/emnist")` is `scripts.tables.fedpt.TABLES["emnist"]`; a table under the key "" is
known by its module's name alone, such as "quickstart".
"""

import importlib
import pkgutil

from fedlite.errors import UserError
from scripts.tables.harness.spec import Scale, Table


def names() -> list[str]:
    """The names of all tables."""
    return [name for name, _ in _tables()]


def load(name: str) -> Table:
    """A table.

    Raises:
      UserError: no table has this name.
    """
    tables = dict(_tables())
    if name not in tables:
        raise UserError(f"--table={name} is unknown: use one of {', '.join(tables)}")
    return tables[name]


def scale_of(table: Table, name: str) -> Scale:
    """One of a table's scales.

    Raises:
      UserError: the table has no such scale.
    """
    if name not in table.scales:
        raise UserError(
            f"--scale={name} is not a scale of {table.title!r}: use {' or '.join(table.scales)}"
        )
    return table.scales[name]


def _tables() -> list[tuple[str, Table]]:
    return [
        (f"{module.name}/{key}".rstrip("/"), table)
        for module in pkgutil.iter_modules(__path__)
        if not module.ispkg
        for key, table in importlib.import_module(f"{__name__}.{module.name}").TABLES.items()
    ]
