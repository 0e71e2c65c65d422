"""Rows that are read from files without mapping them."""

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlite.data.mapped import RowReader
from fedlite.errors import UserError

DTYPES = (np.uint8, np.int32, np.float64)


def save(path, shape=(40, 3, 2), dtype=np.int32, mode="r"):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.save(path, array)
    return array, np.load(path, mmap_mode=mode, allow_pickle=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mapped")
    return {dtype: save(directory / f"{dtype.__name__}.npy", dtype=dtype) for dtype in DTYPES}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.integers(0, 10),
    st.integers(0, 20),
    st.integers(0, 9),
    st.sampled_from(["memmap", "view", "memory", "strided"]),
)
def test_rows_are_those_of_the_array(saved, dtype, cut, begin, count, form):
    """Also of a slice, which begins elsewhere in the file."""
    array, mapped = saved[dtype]
    step = 2 if form == "strided" else 1
    source = array if form == "memory" else mapped if form == "memmap" else mapped.view(np.ndarray)
    source, expected = source[cut::step], array[cut::step]
    count = min(count, max(len(expected) - begin, 0))
    # Two pieces, an empty one between them, and room that is not needed.
    out = np.full((count + 3, 3, 2), 99, dtype)
    RowReader(source).gather([begin, 5, 1], [count, 0, 2], out)
    assert np.array_equal(out[:count], expected[begin : begin + count])
    assert np.array_equal(out[count : count + 2], expected[1:3])
    assert (out[count + 2] == 99).all()


def test_scattered_rows(saved):
    array, mapped = saved[np.int32]
    for source in (array, mapped):
        rows = np.array([39, 0, 7, 7])
        taken = RowReader(source).take(rows)
        assert taken.dtype == array.dtype and np.array_equal(taken, array[rows])
        assert RowReader(source).take(rows[:0]).shape == (0, 3, 2)


def test_changes_of_a_private_mapping_are_read(tmp_path):
    _, mapped = save(tmp_path / "x.npy", mode="c")
    mapped[5] = -1
    assert (RowReader(mapped).take(np.array([5])) == -1).all()


def test_a_file_that_was_cut_is_one_line(tmp_path):
    path = tmp_path / "x.npy"
    _, mapped = save(path)
    reader = RowReader(mapped)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 24)
    assert reader.take(np.array([38])).size
    with pytest.raises(UserError, match="cut short"):
        reader.take(np.array([39]))


def mapped_kilobytes(path: pathlib.Path) -> int:
    """How much of a mapped file is in this process's memory."""
    lines = pathlib.Path("/proc/self/smaps").read_text().splitlines()
    begins = [i for i, line in enumerate(lines) if line.endswith(str(path))]
    assert begins
    return sum(
        int(next(line for line in lines[begin:] if line.startswith("Rss:")).split()[1])
        for begin in begins
    )


@pytest.mark.skipif(not pathlib.Path("/proc/self/smaps").exists(), reason="no /proc here")
def test_a_mapped_file_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "x.npy"
    array, mapped = save(path, (1 << 12, 1 << 8))
    before = mapped_kilobytes(path)
    assert np.array_equal(RowReader(mapped).take(np.arange(1 << 12)), array)
    assert mapped_kilobytes(path) == before
    # As it would be else.
    assert np.array_equal(mapped, array) and mapped_kilobytes(path) > before + 1000
