"""Tests of reading and preprocessing TFF's SQLite files, written here in the true format."""

import bz2
import io
import lzma
import os
import pathlib
import sqlite3
import subprocess
import sys
import tarfile
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_generated_pb2

import fedlite.data
from fedlite.data import tff, tff_preprocessing, tff_sqlite
from fedlite.data.tff_sqlite import Feature
from fedlite.errors import UserError

ODD_IDS = [
    "",
    " ",
    "O'Brien",
    '"; DROP TABLE examples; --',
    "%_?",
    "Ünïcødé 漢字 🙂",
    "A",
    "a",
    "B",
]
NUMBER = {"n": Feature("int64")}


def example(**features) -> bytes:
    """A serialised tf.train.Example: bytes, floats and ints go to the list of their type."""
    message = tf_example_generated_pb2.Example()
    for name, value in features.items():
        feature = message.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif np.asarray(value).dtype.kind == "f":
            feature.float_list.value.extend(np.ravel(value))
        else:
            feature.int64_list.value.extend(np.ravel(value))
    return message.SerializeToString()


def write(path, rows, *, metadata=None, index=False) -> pathlib.Path:
    """A file of (split, client, blob) rows, in their order, in TFF's schema."""
    if metadata is None:
        metadata = [
            (client, split, sum((s, c) == (split, client) for s, c, _ in rows))
            for split, client in dict.fromkeys((s, c) for s, c, _ in rows)
        ]
    path = pathlib.Path(path)
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL, "
            "serialized_example_proto BLOB NOT NULL)"
        )
        connection.execute(
            "CREATE TABLE client_metadata (client_id TEXT NOT NULL, split_name TEXT NOT NULL, "
            "num_examples INTEGER NOT NULL)"
        )
        connection.executemany("INSERT INTO examples VALUES (?, ?, ?)", rows)
        connection.executemany("INSERT INTO client_metadata VALUES (?, ?, ?)", metadata)
        if index:
            connection.execute("CREATE INDEX by_client ON examples (split_name, client_id)")
    connection.close()
    return path


def numbers(path, split="train", **limits):
    """What `read_clients` says of a file whose examples are single numbers."""
    clients = tff_sqlite.read_clients(path, split, NUMBER, **limits)
    return [(client, [int(e["n"]) for e in examples]) for client, examples in clients]


@pytest.mark.parametrize("index", [False, True])
def test_interleaved_clients_are_grouped_and_sorted(tmp_path, index):
    rows = [("train", "b", 1), ("train", "a", 2), ("test", "b", 3), ("train", "b", 0)]
    rows = [(split, client, example(n=n)) for split, client, n in rows]
    path = write(tmp_path / "a.sqlite", rows, index=index)
    assert numbers(path) == [("a", [2]), ("b", [1, 0])]
    assert numbers(path, "test") == [("b", [3])]


@pytest.mark.parametrize("index", [False, True])
def test_ids_are_data(tmp_path, index):
    rows = [("it's; --", client, example(n=n)) for n, client in enumerate(ODD_IDS)]
    path = write(tmp_path / "what? #1 100%.sqlite", rows, index=index)
    assert numbers(path, "it's; --") == [(c, [ODD_IDS.index(c)]) for c in sorted(ODD_IDS)]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.tuples(st.text(max_size=3), st.integers(-(2**63), 2**63 - 1)), min_size=1),
    index=st.booleans(),
    max_clients=st.integers(0, 3),
    max_examples=st.integers(0, 3),
)
def test_any_rows_come_back_by_client(rows, index, max_clients, max_examples):
    # SQLite ends a text at its first NUL, and so does every reader of these files.
    rows = [(client.replace("\0", ""), n) for client, n in rows]
    expected = {client: [] for client in sorted({client for client, _ in rows})}
    for client, n in rows:
        expected[client].append(n)
    with tempfile.TemporaryDirectory() as directory:
        path = write(
            pathlib.Path(directory) / "a.sqlite",
            [("train", client, example(n=n)) for client, n in rows],
            index=index,
        )
        found = numbers(path, max_clients=max_clients, max_examples=max_examples)
    clients = list(expected)[: max_clients or None]
    assert found == [(client, expected[client][: max_examples or None]) for client in clients]


def test_clients_without_examples_are_kept(tmp_path):
    metadata = [(client, "train", int(client == "b")) for client in "abc"]
    path = write(tmp_path / "a.sqlite", [("train", "b", example(n=7))], metadata=metadata)
    assert numbers(path) == [("a", []), ("b", [7]), ("c", [])]


def test_features_take_shape_and_type():
    blob = example(f=np.float32([[1, 2, 3], [4, 5, 6.1]]), i=[-(2**63)], b="é".encode(), more=[1.0])
    features = {"f": Feature("float", (2, 3)), "i": Feature("int64"), "b": Feature("bytes")}
    values = tff_sqlite.parse_example(blob, features, "")
    assert set(values) == set(features)
    np.testing.assert_array_equal(values["f"], np.float32([[1, 2, 3], [4, 5, 6.1]]))
    assert values["f"].dtype == np.float32
    assert values["i"] == -(2**63) and values["i"].shape == ()
    assert values["b"] == "é".encode()


GOOD = [("train", "a", example(n=1)), ("train", "b", example(n=2))]


def _metadata(*counts):
    return {"metadata": [(client, "train", count) for client, count in zip("abc", counts)]}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("train", "a", example(m=1))], {}, r"client 'a', example 1: no feature 'n', only m"),
        ([("train", "a", b"")], {}, r"no feature 'n', only none"),
        ([("train", "a", example(n=[1, 2]))], {}, r"'n' must have 1 values .*, got 2"),
        ([("train", "a", example(n=[0.5]))], {}, r"'n' must be a int64_list, got float_list"),
        ([*GOOD, ("train", "b", b"\xff\xff")], {}, r"'b', example 2: not a tf.train.Example"),
        ([("train", "a", "text")], {}, r"serialized_example_proto must be a BLOB"),
        ([("val", "a", example(n=1))], {}, r"no split 'train', only 'val'"),
        ([], {}, r"no split 'train', only none"),
        (GOOD, _metadata(1, 2), r"client 'b' has 1 examples, client_metadata says 2"),
        (GOOD, _metadata(0, 1), r"client 'a' has 1 examples, client_metadata says 0"),
        (GOOD, _metadata(1, 1, 5), r"client 'c' has 0 examples, client_metadata says 5"),
        (GOOD, _metadata(1), r"client 'b' has examples but is not in client_metadata"),
    ],
)
def test_bad_contents_are_named(tmp_path, rows, options, message):
    path = write(tmp_path / "a.sqlite", rows, **options)
    with pytest.raises(UserError, match=f"a.sqlite.*{message}"):
        numbers(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("DROP TABLE client_metadata", r"no table 'client_metadata'.*export_tff"),
        (
            "ALTER TABLE examples RENAME split_name TO split",
            r"no column 'split_name' in 'examples'",
        ),
        ("ALTER TABLE client_metadata DROP num_examples", r"no column 'num_examples'"),
    ],
)
def test_another_schema_is_named(tmp_path, change, message):
    path = write(tmp_path / "a.sqlite", GOOD)
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(UserError, match=message):
        numbers(path)


@pytest.mark.parametrize("contents", [b"", b"no database", lzma.compress(b"x" * 9999)])
def test_another_kind_of_file_is_named(tmp_path, contents):
    path = tmp_path / "a.sqlite"
    path.write_bytes(contents)
    with pytest.raises(UserError, match=r"a.sqlite.*(no table 'examples'|no SQLite file)"):
        numbers(path)


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("cut", [1, 4096, 5000, 100_000, 250_000])
def test_a_truncated_file_is_an_error(tmp_path, index, cut):
    # By a byte: SQLite itself would take what is missing of the last page as zeros.
    rows = [("train", f"{i % 7}", emnist_example(i % 62, 1.0)) for i in range(90)]
    path = write(tmp_path / "a.sqlite", rows, index=index)
    contents = path.read_bytes()
    path.write_bytes(contents[:-cut])
    features = tff_preprocessing.emnist(62, False).features
    with pytest.raises(UserError, match=r"cannot read .*a.sqlite .*: it is damaged, cut short"):
        list(tff_sqlite.read_clients(path, "train", features))


def emnist_example(label, value=0.0):
    return example(pixels=np.full(784, value, np.float32), label=label)


def write_emnist(directory, rows):
    """`rows` of (client, label, pixel) as the train and, by halves, the test split."""
    splits = {"all_train": rows, "all_test": rows[: len(rows) // 2]}
    rows = [
        (split, client, emnist_example(label, value))
        for split, part in splits.items()
        for client, label, value in part
    ]
    return write(pathlib.Path(directory) / "emnist_all.sqlite", rows)


EMNIST = [("w2", 0, 1.0), ("w1", 61, 0.0), ("w2", 35, 0.25), ("w3", 1, 0.5)]


@pytest.fixture
def options(tmp_path):
    return {"data_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}


def test_emnist(tmp_path, options):
    write_emnist(tmp_path, EMNIST)
    dataset = fedlite.data.load("emnist", **options)
    train = dataset.splits["train"]
    assert (dataset.name, dataset.kind, dataset.num_classes) == ("emnist", "image", 62)
    assert train.client_ids == ("w1", "w2", "w3")
    assert train.offsets.tolist() == [0, 1, 3, 4]
    assert train.arrays["y"].tolist() == [61, 0, 35, 1] and train.arrays["y"].dtype == np.int32
    assert train.arrays["x"].shape == (4, 28, 28, 1) and train.arrays["x"].dtype == np.uint8
    # White stays white: 1.0 is background in the file and 255 here; 0.5 rounds to even.
    assert train.arrays["x"][:, 0, 0, 0].tolist() == [0, 255, 64, 128]
    assert dataset.splits["test"].client_ids == ("w1", "w2")
    inverted = tff.emnist(inverted=True, **options)
    assert inverted.splits["train"].arrays["x"][:, 9, 9, 0].tolist() == [255, 0, 191, 128]


def test_emnist_pixels_are_exact():
    pixels = np.resize(np.arange(256, dtype=np.float32) / np.float32(255), (28, 28))
    for inverted in (False, True):
        encode = tff_preprocessing.emnist(62, inverted).encode
        images = encode([{"pixels": pixels, "label": np.int64(3)}])["x"]
        whole = np.resize(np.arange(256), (1, 28, 28, 1))
        np.testing.assert_array_equal(images, 255 - whole if inverted else whole)


def test_emnist_orientation_is_that_of_the_file():
    pixels = np.zeros((28, 28), np.float32)
    pixels[3, 20] = 1
    blob = example(pixels=pixels, label=0)
    preprocessing = tff_preprocessing.emnist(62, False)
    image = preprocessing.encode([tff_sqlite.parse_example(blob, preprocessing.features, "")])["x"]
    assert np.argwhere(image).tolist() == [[0, 3, 20, 0]]


def test_digits_only_has_ten_classes(tmp_path, options):
    rows = [(f"digits_only_{part}", "w", emnist_example(9)) for part in ("train", "test")]
    write(tmp_path / "emnist_all.sqlite", rows)
    assert tff.emnist(digits_only=True, **options).num_classes == 10
    with pytest.raises(UserError, match=r"no split 'all_train', only 'digits_only_test'"):
        tff.emnist(**options)


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        (62, 0.0, r"labels must lie in 0 to 61, got 62 to 62"),
        (-1, 0.0, r"labels must lie"),
        (0, 1.01, r"pixels must lie in \[0, 1\]"),
        (0, float("nan"), r"pixels must lie in \[0, 1\]"),
    ],
)
def test_emnist_of_another_range_is_refused(tmp_path, options, label, value, message):
    write_emnist(tmp_path, [("w", label, value)])
    with pytest.raises(UserError, match=f"split 'all_train', client 'w': .*{message}"):
        tff.emnist(**options)
    # Nothing of it is believed later.
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"]


def test_limits_and_validation(tmp_path, options):
    rows = [(f"w{i % 4}", i % 62, 0.0) for i in range(40)]
    write_emnist(tmp_path, rows)
    dataset = tff.emnist(max_clients=3, validation=0.2, max_examples_per_client=5, **options)
    assert dataset.splits["train"].client_ids == ("w0", "w1", "w2")
    assert dataset.splits["train"].sizes.tolist() == [5, 5, 5]
    assert dataset.splits["validation"].sizes.tolist() == [2, 2, 2]
    assert dataset.splits["test"].sizes.tolist() == [5, 5, 5]
    with pytest.raises(UserError, match="max_clients must be 0"):
        tff.emnist(max_clients=-1, **options)


def test_cifar100(tmp_path, options):
    image = np.arange(3072) % 256
    rows = [
        (split, client, example(image=image, label=label, coarse_label=1))
        for split, client, label in [("train", "0", 99), ("train", "10", 5), ("test", "0", 7)]
    ]
    write(tmp_path / "cifar100.sqlite", rows)
    dataset = fedlite.data.load("cifar100_tff", **options)
    assert (dataset.name, dataset.num_classes) == ("cifar100_tff", 100)
    train = dataset.splits["train"]
    assert train.client_ids == ("0", "10") and train.arrays["y"].tolist() == [99, 5]
    np.testing.assert_array_equal(train.arrays["x"][1], image.reshape(32, 32, 3))
    assert train.arrays["x"].dtype == np.uint8


def test_cifar100_pixels_beyond_a_byte_are_refused():
    bad = {"image": np.full((32, 32, 3), 256), "label": np.int64(0)}
    with pytest.raises(UserError, match="0 to 255"):
        tff_preprocessing.cifar100().encode([bad])


# Texts and what `create_preprocess_fn` of TFF 0.87 makes of them: its Shakespeare baseline with
# a sequence length of 5, its Stack Overflow one with 4 and the words a, b, the, é.
TEXTS = [b"", b" ", b"a", b"a  b", b"a b c", b"a b c d e", "é a".encode(), b" a", b"a "]
TEXTS += [b"\ta\n b", b"the a the"]
# fmt: off
TFF_CHARACTERS = (
    [[88, 89, 0, 0, 0], [88, 14, 89, 0, 0], [88, 64, 89, 0, 0], [88, 64, 14, 14, 42],
     [88, 64, 14, 42, 14], [89, 0, 0, 0, 0], [88, 64, 14, 42, 14], [14, 1, 14, 65, 89],
     [88, 87, 87, 14, 64], [88, 14, 64, 89, 0], [88, 64, 14, 89, 0], [88, 87, 64, 63, 14],
     [89, 0, 0, 0, 0], [88, 5, 2, 65, 14], [14, 5, 2, 65, 89]],
    [[89, 0, 0, 0, 0], [14, 89, 0, 0, 0], [64, 89, 0, 0, 0], [64, 14, 14, 42, 89],
     [64, 14, 42, 14, 21], [0, 0, 0, 0, 0], [64, 14, 42, 14, 21], [1, 14, 65, 89, 0],
     [87, 87, 14, 64, 89], [14, 64, 89, 0, 0], [64, 14, 89, 0, 0], [87, 64, 63, 14, 42],
     [0, 0, 0, 0, 0], [5, 2, 65, 14, 64], [5, 2, 65, 89, 0]],
)
TFF_WORDS = (
    [[6, 5, 7, 0], [6, 5, 5, 7], [6, 1, 7, 0], [6, 1, 5, 2], [6, 1, 2, 5], [6, 1, 2, 5],
     [6, 4, 1, 7], [6, 5, 1, 7], [6, 1, 5, 7], [6, 5, 2, 7], [6, 3, 1, 3]],
    [[5, 7, 0, 0], [5, 5, 7, 0], [1, 7, 0, 0], [1, 5, 2, 7], [1, 2, 5, 7], [1, 2, 5, 5],
     [4, 1, 7, 0], [5, 1, 7, 0], [1, 5, 7, 0], [5, 2, 7, 0], [3, 1, 3, 7]],
)
# fmt: on


def test_shakespeare_is_tokenised_as_in_tff(tmp_path, options):
    rows = [("train", f"role{i // 6}", example(snippets=text)) for i, text in enumerate(TEXTS)]
    rows += [("test", "role0", example(snippets=b"Hark!"))]
    write(tmp_path / "shakespeare.sqlite", rows)
    dataset = fedlite.data.load("shakespeare_tff", sequence_length=5, **options)
    train = dataset.splits["train"]
    assert train.arrays["x"].tolist() == TFF_CHARACTERS[0]
    assert train.arrays["y"].tolist() == TFF_CHARACTERS[1]
    assert train.arrays["x"].dtype == np.int32
    assert train.offsets.tolist() == [0, 8, 15]
    assert (dataset.kind, dataset.num_classes, dataset.ignored_tokens) == ("language", 90, (0,))
    assert len(dataset.vocabulary) == 90 and dataset.vocabulary[64] == "a"
    # The same characters in windows of the default length.
    whole = tff.shakespeare(**options).splits["test"]
    assert whole.arrays["x"].shape == (1, 80)
    spelled = "".join(dataset.vocabulary[i] for i in whole.arrays["x"][0, :7])
    assert spelled == "<bos>Hark!<eos>"


def write_stackoverflow(directory, texts):
    rows = [
        (split, f"user{i // 6}", example(tokens=text, score=i))
        for split in ("train", "heldout", "test")
        for i, text in enumerate(texts)
    ]
    return write(pathlib.Path(directory) / "stackoverflow.sqlite", rows)


COUNTS = "a 10\nb 7\nthe 3\né 3\nlater 1\n".encode()


def write_archive(directory):
    member = tarfile.TarInfo("stackoverflow.word_count")
    member.size = len(COUNTS)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(member, io.BytesIO(COUNTS))
    path = pathlib.Path(directory) / "stackoverflow.word_count.tar.bz2"
    path.write_bytes(bz2.compress(stream.getvalue()))
    return path


@pytest.mark.parametrize("archived", [False, True])
def test_stackoverflow_is_tokenised_as_in_tff(tmp_path, options, archived):
    write_stackoverflow(tmp_path, TEXTS)
    if archived:
        write_archive(tmp_path)
    else:
        (tmp_path / "stackoverflow.word_count").write_bytes(COUNTS)
    dataset = fedlite.data.load("stackoverflow", vocabulary_size=4, sequence_length=4, **options)
    assert set(dataset.splits) == {"train", "validation", "test"}
    for split in dataset.splits.values():
        assert split.arrays["x"].tolist() == TFF_WORDS[0]
        assert split.arrays["y"].tolist() == TFF_WORDS[1]
        assert split.offsets.tolist() == [0, 6, 11]
    assert dataset.vocabulary == ("<pad>", "a", "b", "the", "é", "<oov>", "<bos>", "<eos>")
    assert (dataset.num_classes, dataset.ignored_tokens) == (8, (0, 5, 7))


def test_stackoverflow_caps_training_clients_alone(tmp_path, options):
    write_stackoverflow(tmp_path, TEXTS)
    (tmp_path / "stackoverflow.word_count").write_bytes(COUNTS)
    dataset = tff.stackoverflow(max_examples_per_client=2, **options)
    assert dataset.splits["train"].sizes.tolist() == [2, 2]
    assert dataset.splits["test"].sizes.tolist() == [6, 5]
    assert dataset.splits["train"].arrays["x"].shape == (4, 20)
    dataset = tff.stackoverflow(max_clients=1, **options)
    assert [split.num_clients for split in dataset.splits.values()] == [1, 1, 1]


def test_words_are_counted_by_the_clients_that_use_them(tmp_path, options):
    # user0 says "x" six times; both say "b" and "a", one each "c" and "x".
    texts = [b"x x"] * 5 + [b"b a"] + [b"a c"] + [b"b  "]
    write_stackoverflow(tmp_path, texts)
    for _ in range(2):
        dataset = tff.stackoverflow(vocabulary="train", vocabulary_size=3, **options)
        assert dataset.vocabulary[1:4] == ("a", "b", "c")
    one = tff.stackoverflow(vocabulary="train", max_clients=1, **options)
    assert one.vocabulary[1:-3] == ("a", "b", "x")


def test_bad_word_counts_are_named(tmp_path, options):
    write_stackoverflow(tmp_path, TEXTS)
    counts = tmp_path / "stackoverflow.word_count"
    with pytest.raises(
        UserError, match=r"word_count.tar.bz2 .*1dc00256.* or set vocabulary='train'"
    ):
        tff.stackoverflow(**options)
    counts.write_bytes(b"a 10\nb seven\n")
    with pytest.raises(UserError, match=r"line 2: expected a word and its count, got b'b seven"):
        tff.stackoverflow(**options)
    counts.unlink()
    archive = write_archive(tmp_path)
    archive.write_bytes(archive.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cannot read .*tar.bz2"):
        tff.stackoverflow(**options)
    with pytest.raises(UserError, match="vocabulary must be 'tff' or 'train', got 'all'"):
        tff.stackoverflow(vocabulary="all", **options)


@pytest.mark.parametrize(
    ("name", "digest"),
    [("emnist", "c3aaf91b"), ("cifar100_tff", "23d3916c"), ("shakespeare_tff", "d3d11fce")],
)
def test_a_missing_file_is_named_with_its_download(tmp_path, options, name, digest):
    with pytest.raises(UserError) as error:
        fedlite.data.load(name, **options)
    message = str(error.value)
    assert str(tmp_path) in message and "\n" not in message
    assert f"tff-datasets-public/{name.removesuffix('_tff')}" in message
    assert f"SHA-256 (unchecked) {digest}" in message and ".sqlite.lzma" in message


def test_the_default_directory_is_tffs(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".tff").mkdir()
    write_emnist(tmp_path / ".tff", EMNIST)
    assert tff.emnist(cache_dir=str(tmp_path / "cache")).splits["train"].num_clients == 3


def test_an_archive_is_decompressed_once(tmp_path, options):
    path = write_emnist(tmp_path, EMNIST)
    contents = path.read_bytes()
    archive = pathlib.Path(f"{path}.lzma")
    for form in (lzma.FORMAT_ALONE, lzma.FORMAT_XZ):
        path.unlink(missing_ok=True)
        archive.write_bytes(lzma.compress(contents, form))
        assert tff.emnist(**options).num_classes == 62
        assert path.read_bytes() == contents
    # The archive isn't looked at again.
    archive.write_bytes(b"broken")
    assert tff.emnist(**options).num_classes == 62


@pytest.mark.parametrize("harm", [lambda c: c[:-30], lambda c: b"broken" + c])
def test_a_damaged_archive_leaves_nothing(tmp_path, options, harm):
    path = write_emnist(tmp_path, EMNIST)
    archive = pathlib.Path(f"{path}.lzma")
    archive.write_bytes(harm(lzma.compress(path.read_bytes())))
    path.unlink()
    with pytest.raises(UserError, match=r"cannot decompress .*: download it again"):
        tff.emnist(**options)
    assert list(tmp_path.iterdir()) == [archive]


def test_the_file_is_read_once_until_it_changes(tmp_path, options, monkeypatch):
    path = write_emnist(tmp_path, EMNIST)
    first = tff.emnist(**options).splits["train"].arrays["x"]
    with monkeypatch.context() as patch:
        patch.setattr(tff_sqlite, "read_clients", None)
        again = tff.emnist(**options).splits["train"].arrays["x"]
    np.testing.assert_array_equal(first, again)
    path.unlink()
    write_emnist(tmp_path, [("w9", 3, 0.0)] * 2)
    os.utime(path, ns=(0, 0))
    assert tff.emnist(**options).splits["train"].client_ids == ("w9",)


def test_neither_import_nor_reading_needs_tensorflow(tmp_path):
    write_emnist(tmp_path, EMNIST)
    program = f"""
import sys
import fedlite.data.tff, fedlite.data.tfds
heavy = {{"tensorflow", "tensorflow_datasets"}}
assert not heavy & set(sys.modules), "imported early"
fedlite.data.tff.emnist(data_dir={str(tmp_path)!r}, cache_dir={str(tmp_path / "cache")!r})
assert "tensorflow" not in sys.modules, "imported by reading"
"""
    subprocess.run([sys.executable, "-c", program], check=True)
