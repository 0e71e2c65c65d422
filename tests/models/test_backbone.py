"""Backbones on disk: the same bits back, and one line where something is another."""

import json
import shutil

import numpy as np
import pytest

from fedlite.errors import UserError
from fedlite.models import backbone

RNG = np.random.default_rng(0)
PARAMS = {
    "conv/kernel": RNG.normal(size=(3, 3, 1, 2)).astype(np.float32),
    "logits/bias": np.zeros(4, np.float32),
    "scale": np.float32(1.5) * np.ones((), np.float32),
}
SHAPES = {path: value.shape for path, value in PARAMS.items()}


@pytest.fixture
def saved(tmp_path):
    backbone.save(tmp_path / "b", PARAMS, {"test": {"accuracy": 0.5}})
    return tmp_path / "b"


def test_round_trip(saved):
    facts = json.loads((saved / "backbone.json").read_text())
    assert facts["digest"] == backbone.digest(PARAMS) and facts["test"] == {"accuracy": 0.5}
    assert facts["shapes"]["conv/kernel"] == [3, 3, 1, 2]
    assert sorted(path.name for path in saved.iterdir()) == ["backbone.json", "params.npz"]
    for wanted in ("", facts["digest"], facts["digest"][:8]):
        taken = backbone.load(saved, SHAPES, wanted)
        assert taken.keys() == PARAMS.keys()
        for path, value in PARAMS.items():
            np.testing.assert_array_equal(taken[path], value)
            assert taken[path].dtype == np.float32


def test_the_digest_is_of_paths_shapes_and_values():
    same = backbone.digest(dict(reversed(PARAMS.items())))
    assert same == backbone.digest(PARAMS) and len(same) == 64
    kernel = PARAMS["conv/kernel"].copy()
    kernel[0, 0, 0, 0] = np.nextafter(kernel[0, 0, 0, 0], 9, dtype=np.float32)
    for change in (
        {"conv/kernel": kernel},
        {"conv/kernel": PARAMS["conv/kernel"].reshape(9, 1, 1, 2)},
        {"more": np.zeros(0, np.float32)},
    ):
        assert backbone.digest({**PARAMS, **change}) != same


def test_what_is_skipped_is_left_fresh(saved):
    """A head of other classes and adapters that the backbone does not know."""
    fresh = {
        **{path: np.full(shape, 7, np.float32) for path, shape in SHAPES.items()},
        "logits/bias": np.full(9, 7, np.float32),
        "adapters/conv/kernel": np.full(2, 7, np.float32),
    }
    shapes = {path: value.shape for path, value in fresh.items()}
    taken = backbone.load(saved, shapes, skip="adapters/.*|logits/.*")
    merged = backbone.merge(fresh, taken)
    assert merged.keys() == fresh.keys()
    np.testing.assert_array_equal(merged["conv/kernel"], PARAMS["conv/kernel"])
    assert (merged["logits/bias"] == 7).all() and (merged["adapters/conv/kernel"] == 7).all()
    with pytest.raises(KeyError):
        backbone.merge({"a": 1}, taken)


@pytest.mark.parametrize(
    ("shapes", "options", "says"),
    [
        (SHAPES, {"expected_digest": "0" * 64}, "and not '0000"),
        (SHAPES, {"expected_digest": backbone.digest(PARAMS)[:4]}, "has the digest"),
        ({**SHAPES, "logits/bias": (5,)}, {}, r"'logits/bias' has the shape \[4\], .* \[5\]"),
        ({**SHAPES, "conv2/kernel": (5,)}, {}, "has no parameter 'conv2/kernel'"),
        (SHAPES, {"skip": "("}, "not a regular expression"),
        (SHAPES, {"skip": ".*"}, "leaves nothing to take"),
    ],
)
def test_another_digest_or_shape_is_refused(saved, shapes, options, says):
    with pytest.raises(UserError, match=says) as error:
        backbone.load(saved, shapes, **options)
    assert "\n" not in str(error.value)


def _swap(directory):
    with open(directory / "params.npz", "wb") as file:
        np.savez(file, **{**PARAMS, "scale": np.ones((), np.float32)})


def _pickled(directory):
    with open(directory / "params.npz", "wb") as file:
        np.savez(file, **{**PARAMS, "scale": np.array([{}], object)})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: shutil.rmtree(d), "holds no backbone"),
        (lambda d: (d / "backbone.json").write_text("{"), "cannot be read"),
        (lambda d: (d / "backbone.json").write_text("[]"), "cannot be read"),
        (lambda d: (d / "params.npz").unlink(), "cannot be read"),
        (lambda d: (d / "params.npz").write_bytes(b""), "cannot be read"),
        (lambda d: (d / "params.npz").write_bytes(b"PK\3\4 and then"), "cannot be read"),
        (_pickled, "cannot be read"),
        (_swap, "one of them was changed"),
    ],
)
def test_damage_is_one_line(saved, damage, says):
    damage(saved)
    with pytest.raises(UserError, match=says) as error:
        backbone.load(saved, SHAPES)
    assert "\n" not in str(error.value)


def test_is_never_written_over(saved, tmp_path):
    with pytest.raises(UserError, match="already holds a backbone"):
        backbone.save(saved, PARAMS, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        backbone.save(tmp_path / "file" / "b", PARAMS, {})
