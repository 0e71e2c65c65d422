"""TensorFlow Federated's SQLite files, read without TensorFlow.

TFF publishes its data sets, and `tff.simulation.datasets.save_to_sql_client_data` writes its
own, as one SQLite file with two tables:

  examples         split_name TEXT, client_id TEXT, serialized_example_proto BLOB
  client_metadata  client_id TEXT, split_name TEXT, num_examples INTEGER

Each blob is a `tf.train.Example`: a map from feature names to a list of bytes, floats or
int64s. Shapes are not stored, so a reader must know them. TFF reads a client with one query,
which takes it minutes where the file has no index (those it writes have none); here one
query streams a whole split, client by client. TFF sorts the clients by id and leaves a
client's examples in the order of their insertion, and so does this.
"""

import contextlib
import functools
import itertools
import math
import operator
import pathlib
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedlite.errors import UserError

_COLUMNS = {
    "examples": {"split_name", "client_id", "serialized_example_proto"},
    "client_metadata": {"client_id", "split_name", "num_examples"},
}
_DTYPES = {"float": np.float32, "int64": np.int64}

# Pages held in memory while SQLite sorts a file without an index, in KiB.
_SORT_MEMORY = 65536


class Feature(NamedTuple):
    """What a feature of every example must be.

    Attributes:
      kind: "bytes", "float" or "int64", as in the protocol buffer.
      shape: of its values; () for one value. Bytes have none.
    """

    kind: str
    shape: tuple[int, ...] = ()


def read_clients(
    path: pathlib.Path,
    split: str,
    features: Mapping[str, Feature],
    *,
    max_clients: int = 0,
    max_examples: int = 0,
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The clients of a split one after another, sorted by id, each with its examples.

    Memory is bounded by the examples of the largest client. A file without an index on
    split and client is sorted by SQLite through temporary files, which take as much room
    as the split (in TMPDIR, or in SQLITE_TMPDIR).

    Args:
      path: the SQLite file, which is opened read-only.
      split: a `split_name`.
      features: what to take out of each example; others are left unread.
      max_clients: only the first clients by id; 0 for all.
      max_examples: only the first examples of each client; 0 for all.

    Yields:
      The client's id and its examples in the order of insertion: by feature, bytes for
      "bytes" and else float32 or int64 arrays of the feature's shape.

    Raises:
      UserError: for a file that is no such database, is damaged, or lacks the split or a
        feature; for one whose numbers of examples aren't those in `client_metadata`.
    """
    with _database(path) as connection:
        sizes = _client_sizes(connection, path, split, max_clients)
        expected = iter(sizes.items())
        last = list(sizes)[-1] if max_clients else None
        for client, rows in _rows_by_client(connection, split, last):
            if client not in sizes:
                raise UserError(
                    f"{path}, split {split!r}: client {client!r} has examples but is not "
                    "in client_metadata; write the file again"
                )
            for known, size in expected:
                if known == client:
                    break
                _check_size(path, split, known, 0, size)
                yield known, []
            examples, count = [], 0
            for count, (_, blob) in enumerate(rows, start=1):
                if not max_examples or count <= max_examples:
                    where = f"{path}, split {split!r}, client {client!r}, example {count}"
                    examples.append(parse_example(blob, features, where))
            _check_size(path, split, client, count, size)
            yield client, examples
        for known, size in expected:
            _check_size(path, split, known, 0, size)
            yield known, []


def parse_example(blob: bytes, features: Mapping[str, Feature], where: str) -> dict[str, Any]:
    """The named features of a serialised `tf.train.Example`.

    Args:
      blob: the protocol buffer.
      features: what it must hold.
      where: the beginning of an error's message.
    """
    if not isinstance(blob, bytes):
        raise UserError(f"{where}: serialized_example_proto must be a BLOB, got {blob!r}")
    decode_error, example_class = _protocol_buffers()
    try:
        found = example_class.FromString(blob).features.feature
    except decode_error as error:
        raise UserError(f"{where}: not a tf.train.Example ({error})") from error
    values = {}
    for name, feature in features.items():
        if name not in found:
            raise UserError(
                f"{where}: no feature {name!r}, only {', '.join(sorted(found)) or 'none'}; "
                "is this the file of another data set?"
            )
        kind = found[name].WhichOneof("kind")
        if kind != f"{feature.kind}_list":
            raise UserError(
                f"{where}: feature {name!r} must be a {feature.kind}_list, got {kind or 'nothing'}"
            )
        value = getattr(found[name], kind).value
        if len(value) != math.prod(feature.shape):
            raise UserError(
                f"{where}: feature {name!r} must have {math.prod(feature.shape)} values "
                f"(shape {list(feature.shape)}), got {len(value)}"
            )
        if feature.kind == "bytes":
            values[name] = value[0]
        else:
            values[name] = np.array(value, _DTYPES[feature.kind]).reshape(feature.shape)
    return values


@functools.cache
def _protocol_buffers():
    """The error and the class of `tf.train.Example`; imports no TensorFlow."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_generated_pb2

    return DecodeError, tf_example_generated_pb2.Example


@contextlib.contextmanager
def _database(path: pathlib.Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection to a file with TFF's tables; SQLite's errors become ours."""
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.execute(f"PRAGMA cache_size = -{_SORT_MEMORY}")
            _check_schema(connection, path)
            # SQLite notices missing pages, but takes what is missing of the last as zeros.
            ((page_size,),) = connection.execute("PRAGMA page_size")
            if path.stat().st_size % page_size:
                raise sqlite3.DatabaseError("its last page is incomplete")
            yield connection
    except sqlite3.Error as error:
        if "full" in str(error):
            remedy = "SQLite sorts in temporary files: set SQLITE_TMPDIR to a disk with more room"
        else:
            remedy = "it is damaged, cut short or no SQLite file: fetch or write it again"
        raise UserError(f"cannot read {path} ({error}): {remedy}") from error


def _check_schema(connection: sqlite3.Connection, path: pathlib.Path):
    for table, columns in _COLUMNS.items():
        found = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        missing = sorted(columns - found)
        if missing:
            what = f"no table {table!r}" if not found else f"no column {missing[0]!r} in {table!r}"
            raise UserError(
                f"{path} has {what}, so it is not in TensorFlow Federated's format: "
                "write it with scripts/export_tff.py"
            )


def _client_sizes(
    connection: sqlite3.Connection, path: pathlib.Path, split: str, max_clients: int
) -> dict[str, int]:
    """Examples of each client according to the metadata, by id in sorted order."""
    sizes = dict(
        connection.execute(
            "SELECT client_id, SUM(num_examples) FROM client_metadata WHERE split_name = ? "
            "GROUP BY client_id COLLATE BINARY ORDER BY client_id COLLATE BINARY LIMIT ?",
            (split, max_clients or -1),
        )
    )
    if not sizes:
        names = connection.execute("SELECT DISTINCT split_name FROM client_metadata ORDER BY 1")
        found = ", ".join(repr(name) for (name,) in names) or "none"
        raise UserError(f"{path} has no split {split!r}, only {found}: is it another data set?")
    strange = [client for client in sizes if not isinstance(client, str)]
    if strange:
        raise UserError(f"{path}: client ids must be TEXT, got {strange[0]!r}")
    return sizes


def _rows_by_client(
    connection: sqlite3.Connection, split: str, last: str | None
) -> Iterator[tuple[str, Iterator[tuple[str, bytes]]]]:
    """Rows grouped by client, by id up to `last` where it is given, then as inserted."""
    # BINARY is the order of UTF-8 bytes, which is that of Python's strings and so of TFF.
    limit, values = ("", ()) if last is None else ("AND client_id <= ? COLLATE BINARY ", (last,))
    rows = connection.execute(
        "SELECT client_id, serialized_example_proto FROM examples WHERE split_name = ? "
        f"{limit}ORDER BY client_id COLLATE BINARY, rowid",
        (split, *values),
    )
    return itertools.groupby(rows, key=operator.itemgetter(0))


def _check_size(path: pathlib.Path, split: str, client: str, found: int, told: int):
    if found != told:
        raise UserError(
            f"{path}, split {split!r}: client {client!r} has {found} examples, client_metadata "
            f"says {told}: the file is incomplete, fetch or write it again"
        )
