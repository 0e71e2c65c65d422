"""Tests of the TFDS data sets, on ArrayRecord files in the true format and on mock data."""

import io
import itertools
import json
import os
import pathlib

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as real_tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_generated_pb2

import fedlite.data
from fedlite.data import tfds
from fedlite.errors import UserError

REVIEWS = [
    ("The film isn't bad.<br /><br />It is GOOD!", 1),
    ("bad, bad film: 3/10", 0),
    ("", 0),
    ("good good good film", 1),
]


def _example(features) -> bytes:
    message = tf_example_generated_pb2.Example()
    for name, value in features.items():
        if isinstance(value, bytes):
            message.features.feature[name].bytes_list.value.append(value)
        else:
            message.features.feature[name].int64_list.value.append(value)
    return message.SerializeToString()


def _png(image) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(image.squeeze()).save(stream, "PNG")
    return stream.getvalue()


def prepare(name, data_dir, splits, file_format="array_record"):
    """Writes what TFDS's `download_and_prepare` leaves, from lists of examples by split."""
    builder = real_tfds.builder(name, data_dir=data_dir, file_format=file_format)
    folder = pathlib.Path(builder.data_dir)
    folder.mkdir(parents=True)
    infos = []
    for split, examples in splits.items():
        file = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
        for example in examples:
            writer.write(_example(example))
        writer.close()
        infos.append(
            {
                "name": split,
                "shardLengths": [str(len(examples))],
                "numBytes": str(file.stat().st_size),
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    builder.info.features.save_config(str(folder))
    info = {"name": name, "version": str(builder.version), "fileFormat": file_format}
    (folder / "dataset_info.json").write_text(json.dumps({**info, "splits": infos}))
    return folder


def images(count, shape, classes, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), np.uint8), rng.integers(0, classes, count)


def prepare_images(name, data_dir, shape, classes, sizes=(40, 12)):
    """Random images as `name`; what was written, by split."""
    written, splits = {}, {}
    for seed, (split, count) in enumerate(zip(("train", "test"), sizes)):
        x, y = written[split] = images(count, shape, classes, seed)
        splits[split] = [{"image": _png(a), "label": int(b), "id": b""} for a, b in zip(x, y)]
    prepare(name, data_dir, splits)
    return written


@pytest.fixture
def options(tmp_path):
    return {"data_dir": str(tmp_path / "tfds"), "cache_dir": str(tmp_path / "cache")}


def keys(x, y):
    """Examples as comparable values, in sorted order."""
    return sorted((image.tobytes(), int(label)) for image, label in zip(x, y))


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("cifar10", (32, 32, 3), 10),
        ("cifar100", (32, 32, 3), 100),
        ("fashion_mnist", (28, 28, 1), 10),
    ],
)
def test_every_image_belongs_to_one_client(name, shape, classes, options):
    written = prepare_images(name, options["data_dir"], shape, classes)
    dataset = fedlite.data.load(name, clients=4, partition="iid", **options)
    assert (dataset.name, dataset.kind, dataset.num_classes) == (name, "image", classes)
    for split, (x, y) in written.items():
        found = dataset.splits[split]
        assert found.num_clients == 4 and set(found.sizes) == {len(y) // 4}
        assert found.arrays["x"].dtype == np.uint8 and found.arrays["y"].dtype == np.int32
        assert keys(found.arrays["x"], found.arrays["y"]) == keys(x, y)


def test_the_options_reach_the_partition(options):
    prepare_images("cifar10", options["data_dir"], (32, 32, 3), 10)

    def load(**more):
        return tfds.cifar10(clients=4, **options, **more).splits

    shards = load(partition="shards", shards_per_client=1)["train"]
    labels = sorted(sorted(shards.client(i)["y"].tolist()) for i in range(4))
    assert list(itertools.chain(*labels)) == sorted(shards.arrays["y"])
    again, other = load(seed=1)["train"], load(seed=2)["train"]
    np.testing.assert_array_equal(load(seed=1)["train"].arrays["x"], again.arrays["x"])
    assert (again.arrays["x"] != other.arrays["x"]).any()
    cut = load(partition="iid", validation=0.2, max_examples_per_client=5)
    assert cut["validation"].sizes.tolist() == [2] * 4
    assert cut["train"].sizes.tolist() == [5] * 4


def test_the_files_are_read_once_until_they_change(options, monkeypatch):
    x, _ = prepare_images("cifar10", options["data_dir"], (32, 32, 3), 10)["train"]
    first = tfds.cifar10(clients=2, **options).splits["train"].arrays["x"]
    source = "tensorflow_datasets.core.dataset_builder.DatasetBuilder.as_data_source"
    with monkeypatch.context() as patch:
        patch.setattr(source, None)
        again = tfds.cifar10(clients=2, **options).splits["train"].arrays["x"]
    np.testing.assert_array_equal(first, again)
    folder = next(pathlib.Path(options["data_dir"]).glob("cifar10/*"))
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    prepare_images("cifar10", options["data_dir"], (32, 32, 3), 10, sizes=(20, 12))
    assert tfds.cifar10(clients=2, **options).splits["train"].num_examples == 20 < len(x)


def prepare_reviews(data_dir):
    rows = [{"text": text.encode(), "label": label} for text, label in REVIEWS]
    prepare("imdb_reviews", data_dir, {"train": rows, "test": rows[:2], "unsupervised": []})


def test_imdb_reviews(options):
    prepare_reviews(options["data_dir"])
    dataset = fedlite.data.load(
        "imdb_reviews", clients=1, sequence_length=6, vocabulary_size=4, **options
    )
    assert (dataset.name, dataset.kind, dataset.num_classes) == ("imdb_reviews", "text", 2)
    # good 4 times, bad and film 3 times; of the rest, "!" is the first in the alphabet.
    assert dataset.vocabulary == ("<pad>", "good", "bad", "film", "!", "<oov>", "<bos>", "<eos>")
    train = dataset.splits["train"].arrays
    assert train["x"].dtype == train["y"].dtype == np.int32
    found = {tuple(x): int(y) for x, y in zip(train["x"].tolist(), train["y"])}
    assert found == {
        # the film isn't bad . it (is good !)
        (5, 3, 5, 2, 5, 5): 1,
        # bad , bad film : 3 (/ 10)
        (2, 5, 2, 3, 5, 5): 0,
        (0, 0, 0, 0, 0, 0): 0,
        (1, 1, 1, 3, 0, 0): 1,
    }
    whole = tfds.imdb_reviews(clients=1, **options)
    assert whole.splits["test"].arrays["x"].shape == (2, 300)
    assert set(whole.splits) == {"train", "test"}
    with pytest.raises(UserError, match="sequence_length and vocabulary_size must be 1 or more"):
        tfds.imdb_reviews(sequence_length=0, **options)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "imdb_reviews"])
def test_tfds_own_mock_data_loads(name, options):
    with real_tfds.testing.mock_data(num_examples=30):
        dataset = fedlite.data.load(name, clients=3, partition="iid", **options)
    assert dataset.splits["train"].sizes.tolist() == [10, 10, 10]
    rank = 2 if name == "imdb_reviews" else 4
    assert dataset.splits["test"].arrays["x"].ndim == rank


@pytest.mark.parametrize("name", ["cifar10", "imdb_reviews"])
def test_missing_data_name_the_preparation(name, options):
    with pytest.raises(UserError) as error:
        fedlite.data.load(name, **options)
    message = str(error.value)
    assert options["data_dir"] in message
    assert f"tfds.builder('{name}', data_dir='DIR', file_format='array_record')" in message
    assert "tensorflow-cpu" in message
    assert "\n" not in message


def test_files_of_another_format_name_the_preparation(options):
    prepare("cifar10", options["data_dir"], {"train": [], "test": []}, "tfrecord")
    with pytest.raises(UserError, match=r"TFRECORD.*prepare it in a new directory DIR"):
        tfds.cifar10(**options)


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_file_is_named(options, size):
    prepare_images("cifar10", options["data_dir"], (32, 32, 3), 10)
    (file,) = pathlib.Path(options["data_dir"]).glob("cifar10/*/cifar10-test*")
    os.truncate(file, size)
    with pytest.raises(UserError, match=r"no cifar10 that can be read"):
        tfds.cifar10(clients=2, **options)


def test_labels_out_of_range_are_refused(options):
    image = _png(np.zeros((28, 28, 1), np.uint8))
    rows = [{"image": image, "label": 10}]
    prepare("fashion_mnist", options["data_dir"], {"train": rows, "test": rows})
    with pytest.raises(UserError, match="labels must lie in 0 to 9, got 10 to 10"):
        tfds.fashion_mnist(clients=1, **options)
