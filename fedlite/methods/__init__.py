"""Federated methods: one file each, readable beside its paper, and the algebra they share.

Every module of this package is imported, so that a new method is one new file.
"""

import importlib
import pkgutil

from fedlite.methods.algebra import (
    Chain,
    Context,
    Keys,
    Method,
    Recipe,
    Report,
    Sums,
    Update,
    View,
    chain,
    server_view,
)
from fedlite.methods.registry import build, build_chain, names, options, split_spec

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Chain",
    "Context",
    "Keys",
    "Method",
    "Recipe",
    "Report",
    "Sums",
    "Update",
    "View",
    "build",
    "build_chain",
    "chain",
    "names",
    "options",
    "server_view",
    "split_spec",
]
