import contextlib
import os
import shutil

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fedlite.data.federated import FederatedDataset, Split
from fedlite.errors import UserError
from fedlite.federated.checkpoint import Checkpoints, fingerprint
from tests import toy

RNG = np.random.default_rng(0)
CLIENTS = {"seen": np.array([2, 5]), "0000": RNG.normal(size=(2, 3)).astype(np.float32)}


def _tree(number: int):
    """A server's kinds of leaves: matrices, scalars, nothing, halves."""
    return {
        "a": np.full((40, 3), number + 0.1, np.float32),
        "b": (np.int32(number), np.zeros((0, 2), np.float32)),
        "c": jnp.full((7,), number, jnp.bfloat16),
        "d": np.array([True, False]),
    }


@pytest.fixture
def checkpoints(tmp_path):
    """Of rounds 4, 8 and 12."""
    with _open(tmp_path) as checkpoints:
        for number in (4, 8, 12):
            checkpoints.save(number, _tree(number), CLIENTS, {"number": number, "nan": [0.1, "x"]})
    return tmp_path / "checkpoints"


def _open(path):
    return contextlib.closing(Checkpoints(path / "checkpoints"))


def _restore(path, template=None):
    with _open(path.parent) as checkpoints:
        return checkpoints.restore(_tree(0) if template is None else template)


def test_none(tmp_path):
    assert _restore(tmp_path / "checkpoints") is None


def test_round_trip_keeps_every_bit(checkpoints):
    restored = _restore(checkpoints)
    assert restored.round == 12
    toy.assert_same_bits(restored.tree, _tree(12))
    assert restored.tree["c"].dtype == jnp.bfloat16 and restored.tree["b"][0].dtype == np.int32
    assert restored.clients.keys() == CLIENTS.keys()
    toy.assert_same_bits(restored.clients, CLIENTS)
    assert restored.progress == {"number": 12, "nan": [0.1, "x"]}


def test_the_oldest_go(checkpoints):
    with _open(checkpoints.parent) as opened:
        opened.save(16, _tree(16), {}, {})
    assert sorted(int(path.name) for path in checkpoints.iterdir()) == [8, 12, 16]
    assert _restore(checkpoints).clients == {}


def _truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def _files(step, pattern="**/*"):
    return [path for path in step.glob(pattern) if path.is_file()]


DAMAGES = {
    "all_cut": lambda step: [_truncate(file) for file in _files(step)],
    "array_cut": lambda step: _truncate(max(_files(step, "arrays/**/d/*"), key=os.path.getsize)),
    "arrays_flipped": lambda step: [_flip(file) for file in _files(step, "arrays/**/d/*")],
    "clients_flipped": lambda step: [_flip(file) for file in _files(step, "clients/*.bin")],
    "progress_empty": lambda step: (step / "progress" / "metadata").write_text("{}"),
    "no_progress": lambda step: shutil.rmtree(step / "progress"),
    "no_arrays": lambda step: shutil.rmtree(step / "arrays"),
    "nothing": lambda step: [shutil.rmtree(step), step.mkdir()],
}


# Where tensorstore finds damage, orbax leaves futures behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_one_is_passed_over(checkpoints, damage):
    damage(checkpoints / "12")
    restored = _restore(checkpoints)
    assert restored.round == 8
    toy.assert_same_bits(restored.tree, _tree(8))
    # The run will write it again.
    with _open(checkpoints.parent) as opened:
        opened.save(12, _tree(12), CLIENTS, {})
    assert _restore(checkpoints).round == 12


def test_silent_corruption_is_seen_by_the_checksum(checkpoints, monkeypatch):
    restore = ocp.CheckpointManager.restore

    def corrupted(self, step, *args, **kwargs):
        loaded = restore(self, step, *args, **kwargs)
        if step == 12:
            array = np.array(loaded["arrays"]["00000"])
            array[3, 1] += 1e-6
            loaded["arrays"]["00000"] = array
        return loaded

    monkeypatch.setattr(ocp.CheckpointManager, "restore", corrupted)
    assert _restore(checkpoints).round == 8


def test_all_damaged(checkpoints):
    for file in checkpoints.rglob("*"):
        if file.is_file():
            _truncate(file)
    with pytest.raises(UserError, match="none of the 3 checkpoints can be read"):
        _restore(checkpoints)
    # Nothing is removed where nothing can be resumed from.
    assert len(list(checkpoints.iterdir())) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.zeros((40, 4), np.float32)}, r"float32\[40, 3\].*float32\[40, 4\]"),
        ({"d": np.zeros(2, np.int32)}, r"bool\[2\].*int32\[2\]"),
        ({"e": np.zeros(1)}, "5 arrays where this run has 6"),
    ],
)
def test_another_model_is_refused(checkpoints, change, message):
    with pytest.raises(UserError, match=f"round 12 is of another model or method: .*{message}"):
        _restore(checkpoints, {**_tree(0), **change})


def test_leftovers_of_a_killed_save_are_removed(checkpoints):
    for number in (14, 16):
        left = checkpoints / f"{number}.orbax-checkpoint-tmp"
        shutil.copytree(checkpoints / "12", left)
        shutil.rmtree(left / "progress")
    with _open(checkpoints.parent) as opened:
        assert opened.restore(_tree(0)).round == 12
        opened.save(16, _tree(16), {}, {})
    assert _restore(checkpoints).round == 16
    assert sorted(path.name for path in checkpoints.iterdir()) == ["12", "16", "8"]


def _dataset(**changes) -> FederatedDataset:
    split = toy.make_split()
    arrays = {"x": split.arrays["x"].copy(), "y": split.arrays["y"].copy()}
    parts = {"arrays": arrays, "offsets": split.offsets, "client_ids": split.client_ids, **changes}
    return FederatedDataset("toy", {"train": Split(**parts), "test": split}, toy.CLASSES)


def test_fingerprint_sees_changes():
    split, same = toy.make_split(), fingerprint(_dataset())
    assert fingerprint(_dataset()) == same
    assert fingerprint(_dataset(offsets=split.offsets.astype(np.int32))) == same
    shifted = split.offsets + np.array([0, 1] + [0] * (len(split.offsets) - 2))
    flipped = split.arrays["x"].copy()
    flipped[-1, 7, 7] ^= 1
    for changes in (
        {"offsets": shifted},
        {"arrays": {**split.arrays, "x": flipped}},
        {"arrays": {**split.arrays, "x": split.arrays["x"].astype(np.int8)}},
        {"arrays": {**split.arrays, "x": split.arrays["x"].reshape(-1, 64)}},
        {"arrays": {**split.arrays, "z": split.arrays["y"]}},
    ):
        assert fingerprint(_dataset(**changes)) != same
