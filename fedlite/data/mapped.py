"""Rows of memory-mapped arrays, read without mapping them.

What is touched through a mapping counts as the process's own memory, and Linux maps the neighbours
of every page that is touched, too: a few thousand scattered reads map a file of gigabytes as a
whole. Read from the file, rows take the memory that they fill. And a file that was cut gives an
error in place of SIGBUS, the end of the process.
"""

import os

import numpy as np

from fedlite.errors import UserError


class RowReader:
    """Reads rows of an array: of a read-only `numpy.memmap`, or a view of one, from its file."""

    def __init__(self, array: np.ndarray):
        """Opens the file of `array`, [rows, ...]; any other array is read where it lies."""
        self._array, self._file = array, None
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        # What was written to a private mapping is not in the file.
        readable = array.flags.c_contiguous and not array.flags.writeable
        if isinstance(root, np.memmap) and root.filename is not None and readable:
            self._file = open(root.filename, "rb", buffering=0)
            self._begin = root.offset + array.ctypes.data - root.ctypes.data

    def read(self, begin: int, out: np.ndarray):
        """Fills `out`, contiguous [count, ...], with the rows from `begin` on.

        Raises:
          UserError: the file has become shorter.
        """
        if self._file is None:
            out[...] = self._array[begin : begin + len(out)]
            return
        if not out.size:
            return
        place = self._begin + int(begin) * (out.nbytes // len(out))
        if os.preadv(self._file.fileno(), [out.reshape(-1).view(np.uint8)], place) != out.nbytes:
            raise UserError(
                f"{self._file.name} was cut short while it was in use: delete its directory, and "
                "run the same command again"
            )

    def take(self, rows: np.ndarray) -> np.ndarray:
        """A copy of some rows, by their indices."""
        taken = np.empty((len(rows), *self._array.shape[1:]), self._array.dtype)
        for place, row in enumerate(rows):
            self.read(row, taken[place : place + 1])
        return taken
