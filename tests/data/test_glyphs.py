"""Tests of the glyphs and of how they are drawn."""

import hashlib

import numpy as np
import pytest

from fedlite import data
from fedlite.data import glyphs
from fedlite.errors import UserError

PLAIN = np.array([[0.0, 1.0, 1.0, 0.0, 0.0, 0.0]])  # No habit.


@pytest.fixture(scope="module")
def shapes():
    return glyphs.outlines()


def filled(*polygons):
    """One image of polygons, each a list of (x, y)."""
    begins, ends = [], []
    for polygon in map(np.array, polygons):
        begins.append(polygon)
        ends.append(np.roll(polygon, -1, axis=0))
    (x0, y0), (x1, y1) = (
        np.concatenate(begins).T.astype(float),
        np.concatenate(ends).T.astype(float),
    )
    return glyphs.rasterize(x0, y0, x1, y1, np.zeros(len(x0), int), 1)[0]


def rectangle(left, top, right, bottom):
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def test_a_rectangle_on_the_grid_is_full_ink():
    expected = np.zeros((28, 28))
    expected[3:7, 2:5] = 255
    np.testing.assert_array_equal(filled(rectangle(2, 3, 5, 7)), expected)
    np.testing.assert_array_equal(filled(rectangle(2, 3, 5, 7)[::-1]), expected)


def test_partly_covered_pixels_are_grey():
    image = filled(rectangle(2.2, 3, 4.6, 4.5))
    np.testing.assert_array_equal(image[3, 1:6], [0, 204, 255, 153, 0])
    np.testing.assert_array_equal(image[4, 1:6], [0, 102, 128, 76, 0])
    assert not image[5].any()


def test_a_diagonal_covers_half_of_its_pixels():
    image = filled([(0, 0), (28, 28), (0, 28)])
    np.testing.assert_array_equal(np.diag(image), np.full(28, 128))
    np.testing.assert_array_equal(image[np.tril_indices(28, -1)], 255)
    np.testing.assert_array_equal(image[np.triu_indices(28, 1)], 0)


def test_holes_run_the_other_way_and_overlaps_stay_ink():
    outer, inner = rectangle(2, 2, 10, 10), rectangle(4, 4, 6, 6)
    assert not filled(outer, inner[::-1])[4:6, 4:6].any()
    np.testing.assert_array_equal(filled(outer, inner), filled(outer))


def test_what_lies_outside_is_cut_off():
    np.testing.assert_array_equal(filled(rectangle(-9, -9, 40, 40)), np.full((28, 28), 255))
    assert not filled(rectangle(30, 2, 40, 9), rectangle(-9, 2, -3, 9)).any()
    assert not filled(rectangle(2, 30, 9, 40), rectangle(2, -9, 9, -3)).any()


def test_images_do_not_depend_on_their_batch(shapes):
    shown, shifts = np.array([5, 700, 5]), np.array([[0.3, 0.1], [0, 0], [1, 2]])
    together = glyphs.draw(shapes, shown, np.repeat(PLAIN, 3, axis=0), shifts)
    for index in range(3):
        alone = glyphs.draw(shapes, shown[index : index + 1], PLAIN, shifts[index : index + 1])
        np.testing.assert_array_equal(together[index], alone[0])


def test_shift_stretch_and_stroke(shapes):
    letter = np.array([glyphs.CHARACTERS.index("H")])
    still = np.zeros((1, 2))
    plain = glyphs.draw(shapes, letter, PLAIN, still)[0]
    moved = glyphs.draw(shapes, letter, PLAIN, np.array([[2.0, 3.0]]))[0]
    np.testing.assert_array_equal(moved, np.roll(plain, (3, 2), axis=(0, 1)))

    def ink(column, value):
        habits = PLAIN.copy()
        habits[0, column] = value
        return glyphs.draw(shapes, letter, habits, still)[0].sum() / plain.sum()

    assert ink(1, 1.2) == pytest.approx(1.2, rel=0.01)
    assert ink(2, 0.8) == pytest.approx(0.64, rel=0.05)
    assert ink(0, 0.4) == pytest.approx(1.0, rel=0.01)  # A shear keeps areas.
    assert ink(5, 0.02) > 1.2 > 1 > 0.9 > ink(5, -0.02)


def test_plain_glyphs_are_whole_and_distinct(shapes):
    count = len(glyphs.FACES) * len(glyphs.CHARACTERS)
    assert len(shapes.begins) == count + 1
    images = glyphs.draw(
        shapes, np.arange(count), np.repeat(PLAIN, count, axis=0), np.zeros((count, 2))
    )
    edges = np.concatenate([images[:, [0, -1]], images[:, :, [0, -1]].swapaxes(1, 2)], axis=1)
    assert not edges.any()
    for face in images.reshape(len(glyphs.FACES), len(glyphs.CHARACTERS), -1):
        assert len(np.unique(face, axis=0)) == len(glyphs.CHARACTERS)
    # Normals point out of the ink in every face, whichever way round its contours run.
    bold = np.repeat(PLAIN + [0, 0, 0, 0, 0, 0.02], count, axis=0)
    grown = glyphs.draw(shapes, np.arange(count), bold, np.zeros((count, 2)))
    assert (grown.sum(axis=(1, 2), dtype=int) > images.sum(axis=(1, 2), dtype=int)).all()


def test_facts():
    loaded = data.load("glyphs", clients=4, examples_per_client=20)
    train, test = loaded.splits["train"], loaded.splits["test"]
    assert (loaded.num_classes, loaded.kind) == (62, "image")
    assert train.arrays["x"].shape == (train.num_examples, 28, 28, 1)
    assert train.arrays["x"].dtype == np.uint8
    assert train.arrays["y"].dtype == np.int32
    assert train.client_ids == test.client_ids
    assert train.client_ids[:2] == ("0_DejaVuSans", "1_DejaVuSans-Oblique")
    sizes = train.sizes + test.sizes
    assert sizes.min() >= 10 and sizes.max() <= 30 and len(set(sizes)) > 1
    np.testing.assert_allclose(test.sizes / sizes, 0.2, atol=0.05)


def test_the_first_writers_of_a_larger_set_are_those_of_a_smaller_one():
    few, more = (
        data.load("glyphs", clients=clients, examples_per_client=6).splits["train"]
        for clients in (3, 5)
    )
    for client in range(3):
        np.testing.assert_array_equal(few.client(client)["x"], more.client(client)["x"])
    other = data.load("glyphs", clients=3, examples_per_client=6, seed=1).splits["train"]
    assert other.arrays["y"].tobytes() != few.arrays["y"].tobytes()


def test_unseen_writers():
    loaded = data.load("glyphs", clients=10, examples_per_client=4, test_clients="unseen")
    train, test = loaded.splits["train"], loaded.splits["test"]
    assert (train.num_clients, test.num_clients) == (8, 2)
    assert not set(train.client_ids) & set(test.client_ids)


def test_images_stay_what_they_were():
    # Results that were published must be computed on the same images in years to come.
    images = data.load("glyphs", clients=21, examples_per_client=8).splits["train"].arrays["x"]
    assert hashlib.sha256(images.tobytes()).hexdigest()[:16] == "814becea5b36184d"


@pytest.mark.parametrize("options", [{"clients": 0}, {"examples_per_client": 1}])
def test_too_little_is_refused(options):
    with pytest.raises(UserError, match="glyphs need clients of 1 or more"):
        data.load("glyphs", **options)
