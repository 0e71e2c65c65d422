# /// script
# requires-python = "==3.11.*"
# dependencies = ["tensorflow-federated==0.87.0"]
#
# [tool.uv]
# override-dependencies = ["jax==0.4.13", "jaxlib==0.4.13"]
# ///
"""Writes a TensorFlow Federated data set as one SQLite file that fedlite reads.

TFF 0.87 shares no environment with a current JAX, so this script runs in one of its own, which
`uv run` builds from the lines above (20 s and 2.3 GB the first time):

  uv run scripts/export_tff.py --dataset=emnist_synthetic --out=DIR/emnist_all.sqlite
  uv run scripts/export_tff.py --dataset=shakespeare --out=DIR/shakespeare.sqlite
  uv run scripts/export_tff.py --dataset=my_package.data:clients --out=DIR/mine.sqlite

--dataset is one of

  emnist, cifar100, shakespeare, stackoverflow
      TFF's own loader, which downloads what isn't in --data_dir;
  {emnist,cifar100,shakespeare,stackoverflow}_synthetic
      the few examples that TFF has for tests, the same in every split;
  module:function
      a function without arguments (found from the current directory) that returns a
      `tff.simulation.datasets.ClientData`, which becomes the split "train", or a dict from
      split names to ClientData.

Splits are named as in TFF's published files, so `--out=DIR/emnist_all.sqlite` is what
`dataset.data_dir=DIR` finds. All splits go into the one file, with an index on split and client
(without it TFF reads the file client by client in minutes). The file appears when it is
complete. Bad input: one line, exit code 2.

--digest=FILE writes JSON: for every split, client and example the SHA-256 of each feature, as
TFF itself reads it (back from --out, or from the data set where nothing is written).
"""

import argparse
import hashlib
import importlib
import json
import os
import pathlib
import sqlite3
import sys
import tempfile

NAMES = ("emnist", "cifar100", "shakespeare", "stackoverflow")
INDEX = "CREATE INDEX examples_by_client ON examples (split_name, client_id)"


class ExportError(Exception):
    """Bad input; the message is one line for the user."""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ExportError(f"{message} (see --help)")


def parse(arguments):
    """The command line's arguments, checked as far as that needs no TensorFlow."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="which data set, see above")
    parser.add_argument("--out", default="", help="the SQLite file to write")
    parser.add_argument(
        "--split", default="", help="only this split (of a single ClientData: its name)"
    )
    parser.add_argument(
        "--data_dir", default="", help="where TFF's loaders keep downloads (~/.tff)"
    )
    parser.add_argument("--digest", default="", help="the JSON file of digests to write")
    parser.add_argument("--overwrite", action="store_true", help="replace --out where it exists")
    options = parser.parse_args(arguments)
    known = [*NAMES, *(f"{name}_synthetic" for name in NAMES)]
    if options.dataset not in known and ":" not in options.dataset:
        raise ExportError(
            f"unknown --dataset={options.dataset}: use module:function or one of {', '.join(known)}"
        )
    if not (options.out or options.digest):
        raise ExportError("nothing to do: set --out, --digest or both")
    for flag in ("out", "digest"):
        path = pathlib.Path(getattr(options, flag))
        if getattr(options, flag) and (path.is_dir() or not path.parent.is_dir()):
            raise ExportError(f"--{flag}={path} must be a file in a directory that exists")
    if options.out and os.path.exists(options.out) and not options.overwrite:
        raise ExportError(f"--out={options.out} exists: choose another or add --overwrite")
    return options


def load(options, tff):
    """The data set as an ordered dict from split names to ClientData."""
    dataset, split = options.dataset, options.split
    if ":" in dataset:
        splits = _load_function(dataset, tff, split)
    elif dataset.endswith("_synthetic"):
        name = dataset.removesuffix("_synthetic")
        data = getattr(tff.simulation.datasets, name).get_synthetic()
        splits = {split: data for split in _split_names(name)}
    else:
        splits = _load_named(dataset, options.data_dir, tff)
    if split and split not in splits:
        raise ExportError(f"{dataset} has no split {split!r}: use one of {', '.join(splits)}")
    return {split: splits[split]} if split else splits


def _split_names(name):
    """Split names in TFF's published file of a data set, in the order of its loader."""
    return {
        "emnist": ("all_train", "all_test", "digits_only_train", "digits_only_test"),
        "stackoverflow": ("train", "heldout", "test"),
    }.get(name, ("train", "test"))


def _load_named(name, data_dir, tff):
    module = getattr(tff.simulation.datasets, name)
    cache_dir = data_dir or None
    try:
        if name == "emnist":
            data = [
                *module.load_data(only_digits=False, cache_dir=cache_dir),
                *module.load_data(only_digits=True, cache_dir=cache_dir),
            ]
        else:
            data = module.load_data(cache_dir=cache_dir)
    # Whatever the download or the file's reader raises, the remedy is the same.
    except Exception as error:
        raise ExportError(
            f"TFF cannot load {name} ({_first_line(error)}): check the network, or put its "
            f".sqlite file into {data_dir or '~/.tff'} (an incomplete one there must go)"
        ) from error
    return dict(zip(_split_names(name), data))


def _load_function(name, tff, split):
    module_name, _, function_name = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ExportError(f"cannot find {name} ({_first_line(error)})") from error
    try:
        data = function()
    # A user's function may raise anything.
    except Exception as error:
        raise ExportError(
            f"{name}() failed with {type(error).__name__}: {_first_line(error)}"
        ) from error
    client_data = tff.simulation.datasets.ClientData
    if isinstance(data, client_data):
        data = {split or "train": data}
    if not data or not isinstance(data, dict):
        raise ExportError(f"{name}() must return a ClientData or a dict of them, got {data!r:.80}")
    for key, value in data.items():
        if not (isinstance(key, str) and isinstance(value, client_data)):
            raise ExportError(
                f"{name}() must map split names to ClientData, got {key!r}: {value!r:.80}"
            )
    return data


def write(path, splits, tff):
    """Writes all splits to one SQLite file in TFF's format, which appears when complete."""
    path = pathlib.Path(path).resolve()
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.tmp-", dir=path.parent) as directory:
        merged = os.path.join(directory, "merged.sqlite")
        for index, (split, data) in enumerate(splits.items()):
            # TFF writes a client into one split only, so each split is a file at first.
            part = os.path.join(directory, f"part{index}.sqlite")
            try:
                tff.simulation.datasets.save_to_sql_client_data(
                    client_ids=data.client_ids,
                    dataset_fn=data.create_tf_dataset_for_client,
                    database_filepath=part,
                    split_names_by_client_id=dict.fromkeys(data.client_ids, split),
                )
            except (TypeError, ValueError, AttributeError, IndexError) as error:
                raise ExportError(
                    f"TFF cannot write split {split!r} ({_first_line(error)}): elements must be "
                    "flat dicts from names to tensors, alike for all of at least one client"
                ) from error
            if index == 0:
                os.replace(part, merged)
            else:
                _append(merged, part)
                os.remove(part)
        with sqlite3.connect(merged) as connection:
            connection.execute(INDEX)
        connection.close()
        # TFF's temporary file is private; this one is as readable as any that the user makes.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(merged, 0o666 & ~mask)
        with open(merged, "rb") as file:
            os.fsync(file.fileno())
        os.replace(merged, path)


def _append(merged, part):
    connection = sqlite3.connect(merged)
    connection.execute("ATTACH ? AS part", (part,))
    with connection:
        for table in ("examples", "client_metadata"):
            columns = "split_name, client_id, " + (
                "serialized_example_proto" if table == "examples" else "num_examples"
            )
            connection.execute(
                f"INSERT INTO {table} ({columns}) SELECT {columns} FROM part.{table} ORDER BY rowid"
            )
    connection.close()


def read_back(path, splits, tff):
    """The written file as TFF reads it, a dict from split names to ClientData."""
    return {
        split: tff.simulation.datasets.load_and_parse_sql_client_data(
            str(path), data.element_type_structure, split
        )
        for split, data in splits.items()
    }


def digest(splits):
    """SHA-256 of every feature of every example, by split and client.

    A feature is digested as its dtype's name, its shape (as a JSON list) and its bytes in C
    order, little-endian; a string as "bytes", [] and itself.
    """
    return {
        split: {
            client: [
                {name: _feature_digest(value) for name, value in example.items()}
                for example in data.create_tf_dataset_for_client(client).as_numpy_iterator()
            ]
            for client in data.client_ids
        }
        for split, data in splits.items()
    }


def _feature_digest(value):
    if isinstance(value, bytes):
        kind, shape, contents = "bytes", [], value
    else:
        kind, shape, contents = value.dtype.name, list(value.shape), value.tobytes()
    return hashlib.sha256(f"{kind} {json.dumps(shape)} ".encode() + contents).hexdigest()


def _write_text(path, contents):
    path = pathlib.Path(path).resolve()
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(contents, encoding="utf-8")
    os.replace(temporary, path)


def _first_line(error):
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def main(arguments=None):
    """Runs the export; the exit code."""
    try:
        options = parse(arguments)
        # Before the import, which otherwise prints a page about the machine's devices.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        try:
            import tensorflow_federated as tff
        except ImportError as error:
            raise ExportError(
                f"no TensorFlow Federated here ({_first_line(error)}): "
                "run `uv run scripts/export_tff.py ...`, which fetches it"
            ) from error
        splits = load(options, tff)
        if options.out:
            write(options.out, splits, tff)
            told = ", ".join(f"{name}: {len(data.client_ids)}" for name, data in splits.items())
            print(f"wrote {options.out} (clients: {told})")
        if options.digest:
            read = read_back(options.out, splits, tff) if options.out else splits
            _write_text(options.digest, json.dumps(digest(read)))
            print(f"wrote {options.digest}")
    except (ExportError, OSError, sqlite3.Error) as error:
        print(f"export_tff: {_first_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
