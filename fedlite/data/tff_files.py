"""Where TensorFlow Federated's files lie, and how their archives are opened.

TFF downloads `NAME.sqlite.lzma` and keeps the decompressed `NAME.sqlite` in `~/.tff`; Keras
keeps Stack Overflow's word counts for it in `~/.keras/datasets`. Nothing is downloaded here.
"""

import contextlib
import lzma
import os
import pathlib
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from fedlite.data import text, tff_preprocessing
from fedlite.errors import UserError

_ADDRESS = "https://storage.googleapis.com/tff-datasets-public/"

# What is known of each archive. TFF itself checks the digest of the word counts; the others
# are quoted by other projects, and nobody has compared them here.
_ARCHIVES = {
    "emnist_all.sqlite.lzma": (
        "170,507,172 bytes, SHA-256 (unchecked) "
        "c3aaf91b4cf4e69d53d81627ad119eccdc878ff906f68e66063ff10f67faad48"
    ),
    "cifar100.sqlite.lzma": (
        "153,019,920 bytes, SHA-256 (unchecked) "
        "23d3916c9caa33395737ee560cc7cb77bbd05fc7b73647ee7be3a7e764172939"
    ),
    "shakespeare.sqlite.lzma": (
        "1,329,828 bytes, SHA-256 (unchecked) "
        "d3d11fceb9e105439ac6f4d52af6efafed5a2a1e1eb24c5bd2dd54ced242f5c4"
    ),
    "stackoverflow.sqlite.lzma": "SHA-256 unknown; several GB, tens of GB decompressed",
    "stackoverflow.word_count.tar.bz2": (
        "SHA-256 1dc00256d6e527c54b9756d968118378ae14e6692c0b3b6cad470cdd3f0c519c"
    ),
}


def _home(data_dir: str) -> pathlib.Path:
    return pathlib.Path(data_dir or "~/.tff").expanduser()


def _missing(file: str, archive: str, home: pathlib.Path, remedy: str = "") -> UserError:
    return UserError(
        f"{home / file} is not there: download {_ADDRESS}{archive} ({_ARCHIVES[archive]}) into "
        f"{home}, or set data_dir{remedy}"
    )


def find_database(file: str, data_dir: str) -> pathlib.Path:
    """The SQLite file, decompressed from its archive where only that is there.

    Args:
      file: its name, such as "emnist_all.sqlite".
      data_dir: where it lies; "" for `~/.tff`.

    Raises:
      UserError: where neither is there (it names the download), or the archive is damaged.
    """
    home = _home(data_dir)
    path, archive = home / file, home / f"{file}.lzma"
    if path.is_file():
        return path
    if not archive.is_file():
        raise _missing(file, archive.name, home)
    try:
        with _replacing(path) as target, lzma.open(archive) as source:
            shutil.copyfileobj(source, target, 1 << 20)
    except (lzma.LZMAError, EOFError) as error:
        raise UserError(f"cannot decompress {archive} ({error}): download it again") from error
    except OSError as error:
        raise UserError(
            f"cannot decompress {archive} ({error}): make room in {home} and make it writable, "
            "or set data_dir to a directory that is"
        ) from error
    return path


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file that takes `path`'s place once it has been written to the end."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_words(data_dir: str, size: int) -> text.Vocabulary:
    """The first (most frequent) `size` words of Stack Overflow's word counts.

    Args:
      data_dir: where `stackoverflow.word_count`, or its archive, lies; "" looks in `~/.tff`
        and in `~/.keras/datasets`.
      size: of the vocabulary.

    Raises:
      UserError: where neither is there (it names the download) or it is damaged.
    """
    path = _find_word_counts(data_dir)
    try:
        if path.name.endswith(".tar.bz2"):
            with tarfile.open(path) as archive:
                member = archive.extractfile(path.name.removesuffix(".tar.bz2"))
                return tff_preprocessing.read_word_counts(member, size, path)
        with open(path, "rb") as file:
            return tff_preprocessing.read_word_counts(file, size, path)
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise UserError(f"cannot read {path} ({error}): download it again") from error


def _find_word_counts(data_dir: str) -> pathlib.Path:
    file, archive = "stackoverflow.word_count", "stackoverflow.word_count.tar.bz2"
    home = _home(data_dir)
    places = [home] if data_dir else [home, pathlib.Path("~/.keras/datasets").expanduser()]
    for place in places:
        for candidate in (place / file, place / archive):
            if candidate.is_file():
                return candidate
    raise _missing(file, archive, home, ", or set vocabulary='train' to count words yourself")
