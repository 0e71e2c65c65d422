"""Glyphs: characters written by many hands, made from typefaces; a natural split like EMNIST's.

The 62 classes are EMNIST's: digits, then upper-case, then lower-case letters. A writer is one
of the 21 text faces that come with matplotlib, written with a slant, stretch, size, bend and
stroke of its own, and every example differs a little from the writer's habit. Images are
drawn from the faces' outlines by exact area coverage along each line, with nothing but
additions, multiplications and divisions, so that they are the same on every machine.

Unlike EMNIST's, characters keep their size and place on the line, so case shows. Ink is 255 on
a background of 0, as in MNIST; TensorFlow Federated's EMNIST is the other way round.
"""

import functools
import pathlib
import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedlite.data import bundled, splits
from fedlite.data import partition as partitions
from fedlite.data.federated import FederatedDataset
from fedlite.errors import UserError

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
FACES = (
    *(f"DejaVu{face}" for face in ("Sans", "Sans-Oblique", "Sans-Bold", "Sans-BoldOblique")),
    *(f"DejaVuSansMono{face}" for face in ("", "-Oblique", "-Bold", "-BoldOblique")),
    *(f"DejaVuSerif{face}" for face in ("", "-Italic", "-Bold", "-BoldItalic")),
    *(f"STIXGeneral{face}" for face in ("", "Italic", "Bol", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)

SIZE = 28
_PIXELS_PER_EM = 20
_MIDDLE = 0.27  # em above the baseline; between the reach of "p" and of "d".
_LINES = 4  # lines of a pixel along which coverage is measured.
_CURVE_STEPS = 5
_BATCH = 512
_WRITER = 20  # A generator's purpose, beside those of partition.py and splits.py.

# Ranges of a writer's habits, and how far one example may stray from them, in em: slant,
# stretch and size as factors, horizontal and vertical bend, growth of the stroke's half width.
_LOW = np.array([-0.5, 0.65, 0.75, -0.8, -0.6, -0.005])
_HIGH = np.array([0.5, 1.35, 1.25, 0.8, 0.6, 0.035])
_STRAY = 0.25 * (_HIGH - _LOW)
_SHIFT = 2.5  # pixels


class Outlines(NamedTuple):
    """The outlines of a list of glyphs as closed polygons, in em, y upwards.

    Attributes:
      points: float64 [points, 2], of one glyph after another.
      normals: float64 [points, 2], unit vectors out of the ink.
      successors: int64 [points], from each point to the next of its contour, as a
        difference of indices.
      begins: int64 [glyphs + 1], where the points of each glyph begin.
    """

    points: np.ndarray
    normals: np.ndarray
    successors: np.ndarray
    begins: np.ndarray


def _contours(vertices: np.ndarray, codes: np.ndarray) -> list[np.ndarray]:
    """Flattens a TrueType path (lines and quadratic curves) to polygons, each [points, 2]."""
    move, line, curve = 1, 2, 3
    contours, index = [], 0
    while index < len(codes):
        if codes[index] == move:
            contours.append([vertices[index]])
        elif codes[index] == line:
            contours[-1].append(vertices[index])
        elif codes[index] == curve:
            begin, control, end = contours[-1][-1], vertices[index], vertices[index + 1]
            for step in range(1, _CURVE_STEPS + 1):
                t = step / _CURVE_STEPS
                contours[-1].append(
                    (1 - t) * ((1 - t) * begin + t * control) + t * ((1 - t) * control + t * end)
                )
            index += 1
        index += 1
    polygons = []
    for contour in map(np.array, contours):
        distinct = (contour != np.roll(contour, 1, axis=0)).any(axis=1)
        if distinct.sum() > 2:
            polygons.append(contour[distinct])
    return polygons


def _glyph(polygons: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, normals and successors of one glyph, centred on its width."""
    normals, successors, area = [], [], 0.0
    for polygon in polygons:
        before, after = np.roll(polygon, 1, axis=0), np.roll(polygon, -1, axis=0)
        tangent = after - before
        length = np.sqrt(tangent[:, 0] ** 2 + tangent[:, 1] ** 2)
        length[length == 0] = 1.0
        normals.append(np.stack([tangent[:, 1], -tangent[:, 0]], axis=1) / length[:, None])
        area += np.sum(polygon[:, 0] * after[:, 1] - polygon[:, 1] * after[:, 0])
        successors.append(np.append(np.ones(len(polygon) - 1, int), 1 - len(polygon)))
    points = np.concatenate(polygons)
    points[:, 0] -= (points[:, 0].min() + points[:, 0].max()) / 2
    # Outer contours of a typeface may run either way round; holes run the other.
    return points, np.sign(area) * np.concatenate(normals), np.concatenate(successors)


def _face_file(face: str) -> pathlib.Path:
    return bundled.find("matplotlib", f"mpl-data/fonts/ttf/{face}.ttf", "pip install matplotlib")


@functools.cache
def outlines(faces: Sequence[str] = FACES, characters: str = CHARACTERS) -> Outlines:
    """The outlines of all characters of all faces; glyph `f * len(characters) + c`."""
    from matplotlib import ft2font  # Slow to import, and needed by this set alone.

    glyphs = []
    for face in faces:
        font = ft2font.FT2Font(str(_face_file(face)))
        for character in characters:
            font.load_char(ord(character), flags=ft2font.LoadFlags.NO_SCALE)
            vertices, codes = font.get_path()
            # The path is in 64ths of what FreeType loaded, here of the font's own units.
            glyphs.append(_glyph(_contours(vertices * (64 / font.units_per_EM), codes)))
    points, normals, successors = (np.concatenate(parts) for parts in zip(*glyphs))
    begins = np.cumsum([0] + [len(glyph[0]) for glyph in glyphs])
    return Outlines(points, normals, successors, begins)


def draw(shapes: Outlines, glyphs: np.ndarray, habits: np.ndarray, shifts: np.ndarray):
    """Draws glyphs.

    Args:
      shapes: from `outlines`.
      glyphs: int [images], which glyph each image shows.
      habits: float64 [images, 6]: slant, stretch, size, horizontal bend, vertical bend and
        growth of the stroke.
      shifts: float64 [images, 2], rightwards and downwards in pixels.

    Returns:
      uint8 [images, 28, 28]; 255 is full ink.
    """
    counts = shapes.begins[glyphs + 1] - shapes.begins[glyphs]
    image = np.repeat(np.arange(len(glyphs)), counts)
    first = np.cumsum(counts) - counts
    index = np.arange(len(image)) + np.repeat(shapes.begins[glyphs] - first, counts)
    slant, stretch, size, bend_x, bend_y, stroke = habits[image].T
    x, y = (shapes.points[index] + stroke[:, None] * shapes.normals[index]).T
    x, y = x * stretch, y - _MIDDLE
    x, y = x + slant * y + bend_x * y * y, y + bend_y * x * x
    scale = size * _PIXELS_PER_EM
    x = SIZE / 2 + shifts[image, 0] + scale * x
    y = SIZE / 2 + shifts[image, 1] - scale * y
    after = np.arange(len(image)) + shapes.successors[index]
    return rasterize(x, y, x[after], y[after], image, len(glyphs))


def rasterize(
    x0: np.ndarray,
    y0: np.ndarray,
    x1: np.ndarray,
    y1: np.ndarray,
    image: np.ndarray,
    images: int,
) -> np.ndarray:
    """Fills polygons given by their directed edges; overlaps and holes by winding number.

    Along each of four lines a pixel row, an edge adds its direction to everything right of
    where it crosses the line (to the pixel of the crossing in part). The sum is the winding
    number, whose absolute value up to 1 is ink.

    Args:
      x0: float64 [edges], where each edge begins, in pixels from the left.
      y0: likewise, from the top.
      x1: where it ends.
      y1: likewise.
      image: int [edges], the image that it belongs to.
      images: their number.

    Returns:
      uint8 [images, 28, 28].
    """
    rows = SIZE * _LINES
    # Line k lies at (k + 1/2) / lines; an edge crosses those from `begin` until before `end`.
    ends = np.ceil(np.stack([y0, y1]) * _LINES - 0.5).astype(np.int64).clip(0, rows)
    begin, end = ends.min(axis=0), ends.max(axis=0)
    counts = end - begin
    edge = np.repeat(np.arange(len(x0)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + begin[edge]
    slope = np.divide(x1 - x0, y1 - y0, out=np.zeros_like(x0), where=y0 != y1)
    crossing = x0[edge] + ((row + 0.5) / _LINES - y0[edge]) * slope[edge]
    crossing = crossing.clip(0, SIZE)
    column = np.floor(crossing).astype(np.int64)
    part = crossing - column
    direction = np.where(y1 > y0, 1.0, -1.0)[edge]
    # A line has two columns more than pixels, for what begins at or after its right end.
    cell = (image[edge] * rows + row) * (SIZE + 2) + column
    length = images * rows * (SIZE + 2)
    steps = np.bincount(cell, direction * (1 - part), length)
    steps += np.bincount(cell + 1, direction * part, length)
    winding = np.cumsum(steps.reshape(images, rows, SIZE + 2), axis=2)[:, :, :SIZE]
    ink = np.minimum(np.abs(winding), 1).reshape(images, SIZE, _LINES, SIZE).mean(axis=2)
    return np.rint(255 * ink).astype(np.uint8)


class _Hand(NamedTuple):
    """The examples of one writer before they are drawn; see `draw`."""

    labels: np.ndarray
    habits: np.ndarray
    shifts: np.ndarray


def _hand(writer: int, examples: int, seed: int) -> _Hand:
    """What a writer writes; depends on the arguments alone, not on the other writers."""
    rng = partitions.generator(seed, _WRITER, writer)
    # Between half and one and a half of the mean: natural clients differ in size.
    count = int(rng.integers(examples - examples // 2, examples + examples // 2 + 1))
    habit = rng.uniform(_LOW, _HIGH)
    return _Hand(
        labels=rng.integers(0, len(CHARACTERS), count),
        habits=habit + rng.uniform(-_STRAY, _STRAY, (count, len(habit))),
        shifts=rng.uniform(-_SHIFT, _SHIFT, (count, 2)),
    )


def glyphs(
    *,
    clients: int = 200,
    examples_per_client: int = 100,
    test_clients: str = "same",
    test_fraction: float = 0.2,
    seed: int = 0,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
) -> FederatedDataset:
    """Loads the glyphs: uint8 [examples, 28, 28, 1], 62 classes, one client a writer.

    Args:
      clients: writers. The first writers of a larger set are those of a smaller one.
      examples_per_client: the mean; sizes are uniform from half to one and a half of it.
      test_clients: "same" to test on held-out examples of each writer, "unseen" to test on
        writers that don't train.
      test_fraction: of each writer's examples, or of the writers.
      seed: of writers, examples and splits.
      validation: see `fedlite.data.splits.with_validation`.
      max_examples_per_client: likewise.
    """
    if clients < 1 or examples_per_client < 2:
        raise UserError(
            f"glyphs need clients of 1 or more and examples_per_client of 2 or more, "
            f"got {clients} and {examples_per_client}"
        )
    hands = [_hand(writer, examples_per_client, seed) for writer in range(clients)]
    sizes = [len(hand.labels) for hand in hands]
    labels, habits, shifts = (np.concatenate(parts) for parts in zip(*hands))
    writers = np.repeat(np.arange(clients), sizes)
    shapes = outlines()
    shown = (writers % len(FACES)) * len(CHARACTERS) + labels
    images = np.concatenate(
        [
            draw(shapes, *(part[begin : begin + _BATCH] for part in (shown, habits, shifts)))
            for begin in range(0, len(labels), _BATCH)
        ]
    )
    pooled = {"x": images[..., None], "y": labels.astype(np.int32)}
    names = [
        f"{number}_{FACES[writer % len(FACES)]}"
        for writer, number in enumerate(splits.client_names(clients))
    ]
    train, test = splits.hold_out_test(
        splits.split_by(pooled, writers, names), test_clients, test_fraction, seed
    )
    return FederatedDataset(
        name="glyphs",
        splits=splits.with_validation(
            train,
            test,
            validation=validation,
            max_examples_per_client=max_examples_per_client,
            seed=seed,
        ),
        num_classes=len(CHARACTERS),
    )
