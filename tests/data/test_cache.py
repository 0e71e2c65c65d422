"""Tests of the cache of converted data sets."""

import concurrent.futures
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from fedlite.data import cache
from fedlite.errors import UserError

X = np.arange(24, dtype=np.int32).reshape(4, 3, 2)


class Conversion:
    """A conversion of `X` and an empty array that counts how often it was asked for."""

    def __init__(self, directory, source):
        self.directory = directory
        self.source = source
        self.count = 0

    def load(self, **options):
        def convert(writer):
            self.count += 1
            writer.append("train.x", X[:3])
            writer.append("train.x", X[3:])
            writer.append("none", np.zeros((0, 5), np.uint8))
            return {"ids": ["a", "ü'\""]}

        return cache.load(
            "set",
            options={"size": 1, **options},
            sources=[cache.stamp(self.source)],
            convert=convert,
            cache_dir=self.directory,
        )

    def entries(self):
        return sorted(p.name for p in self.directory.iterdir() if not p.name.endswith(".lock"))

    def file(self, name):
        (entry,) = self.entries()
        return self.directory / entry / name


@pytest.fixture
def conversion(tmp_path):
    source = tmp_path / "source"
    source.write_text("1")
    return Conversion(tmp_path / "cache", source)


def check(entry):
    assert set(entry.arrays) == {"train.x", "none"}
    np.testing.assert_array_equal(entry.arrays["train.x"], X)
    assert entry.arrays["train.x"].dtype == np.int32
    assert entry.arrays["none"].shape == (0, 5)
    assert entry.facts == {"ids": ["a", "ü'\""]}


def test_converts_once_and_maps_the_files(conversion):
    check(conversion.load())
    entry = conversion.load()
    check(entry)
    assert conversion.count == 1
    assert isinstance(entry.arrays["train.x"].base, np.memmap)
    assert not entry.arrays["train.x"].flags.writeable
    # A plain .npy file, for whoever wants to look into it.
    np.testing.assert_array_equal(np.load(conversion.file("train.x.npy")), X)


def test_other_options_are_another_entry(conversion):
    conversion.load()
    conversion.load(size=2)
    conversion.load()
    assert conversion.count == 2
    assert len(conversion.entries()) == 2


def test_a_changed_source_is_converted_again_in_place(conversion):
    conversion.load()
    conversion.source.write_text("22")
    check(conversion.load())
    status = conversion.source.stat()
    conversion.source.write_text("33")
    os.utime(conversion.source, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    check(conversion.load())
    assert conversion.count == 3
    assert len(conversion.entries()) == 1


def _truncate(path: pathlib.Path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: pathlib.Path):
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(bytes(contents))


@pytest.mark.parametrize("harm", [pathlib.Path.unlink, _truncate, _flip])
@pytest.mark.parametrize("name", ["train.x.npy", "manifest.json"])
def test_a_damaged_entry_is_built_again(conversion, harm, name):
    conversion.load()
    file = conversion.file(name)
    harm(file)
    # The clock of a file system may be too coarse to tell a write from the one before.
    if file.exists():
        os.utime(file, ns=(0, 0))
    check(conversion.load())
    assert conversion.count == 2


def test_a_copied_entry_is_believed_by_its_digest(conversion):
    conversion.load()
    copy = conversion.directory.with_name("copy")
    shutil.copytree(conversion.directory, copy, copy_function=shutil.copy)
    os.utime(next(copy.glob("set-*")) / "train.x.npy", ns=(0, 0))
    conversion.directory = copy
    check(conversion.load())
    assert conversion.count == 1


def test_a_manifest_of_another_layout_is_not_believed(conversion):
    conversion.load()
    manifest = json.loads(conversion.file("manifest.json").read_text())
    conversion.file("manifest.json").write_text(json.dumps({**manifest, "layout": 0}))
    check(conversion.load())
    assert conversion.count == 2


def test_what_a_killed_conversion_left_is_removed_and_not_believed(conversion):
    conversion.load()
    (entry,) = conversion.entries()
    # As a kill leaves them: everything but the last rename, or a part of the files.
    (conversion.directory / entry).rename(conversion.directory / f".{entry}.tmp-new")
    check(conversion.load())
    assert conversion.count == 2
    assert conversion.entries() == [entry]


def test_a_failing_conversion_leaves_nothing(conversion):
    def convert(writer):
        writer.append("train.x", X)
        raise UserError("bad pixels")

    with pytest.raises(UserError, match=r"^bad pixels$"):
        cache.load("set", options={}, sources=[], convert=convert, cache_dir=conversion.directory)
    assert conversion.entries() == []


def test_concurrent_loads_convert_once(conversion):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for entry in pool.map(lambda _: conversion.load(), range(8)):
            check(entry)
    assert conversion.count == 1


def test_arrays_keep_one_shape_and_dtype(tmp_path):
    writer = cache.Writer(tmp_path)
    writer.append("x", X)
    with pytest.raises(ValueError, match=r"cannot append int32 \(4, 2\)"):
        writer.append("x", X[:, 0])
    with pytest.raises(ValueError, match="cannot append int64"):
        writer.append("x", X.astype(np.int64))
    writer.close()


def test_a_cache_that_cannot_be_written_is_a_clear_error(conversion):
    conversion.directory.write_text("a file where the directory should be")
    with pytest.raises(UserError, match=r"cannot write set to the cache in .*FEDLITE_CACHE"):
        conversion.load()


def test_the_directory_is_option_then_environment_then_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FEDLITE_CACHE", raising=False)
    assert cache.directory() == tmp_path / ".cache" / "fedlite"
    monkeypatch.setenv("FEDLITE_CACHE", "~/elsewhere")
    assert cache.directory() == tmp_path / "elsewhere"
    assert cache.directory(tmp_path / "here") == tmp_path / "here"
