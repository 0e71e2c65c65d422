"""Rows of memory-mapped arrays, read without mapping them.

What is touched through a mapping counts as the process's own memory, and Linux maps the neighbours
of every page that is touched, too: a few thousand scattered reads map a file of gigabytes as a
whole. Read from the file, rows take the memory that they fill. And a file that was cut gives an
error in place of SIGBUS, the end of the process.
"""

import math
import os
from collections.abc import Sequence

import numpy as np

from fedlite.errors import UserError

# Where the system takes advice on how a file is read.
_ADVICE = hasattr(os, "posix_fadvise")


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
            if _ADVICE:
                # Pieces are scattered: what follows each would be read for nothing.
                os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def gather(self, begins: Sequence[int], counts: Sequence[int], out: np.ndarray):
        """Copies pieces of the array, one after the other.

        Args:
          begins, counts: of each piece, rows; Python ints are fastest.
          out: contiguous, [at least the sum of `counts`, ...]; what is beyond stays as it is.

        Raises:
          UserError: the file has become shorter.
        """
        place = 0
        if self._file is None:
            for begin, count in zip(begins, counts):
                out[place : place + count] = self._array[begin : begin + count]
                place += count
            return
        row = math.prod(self._array.shape[1:]) * self._array.itemsize
        descriptor = self._file.fileno()
        pieces = [(self._begin + b * row, n * row) for b, n in zip(begins, counts)]
        if _ADVICE:
            # A disk is much faster when it knows of all of them than when it is asked one by one.
            for begin, size in pieces:
                # A size of 0 would mean the rest of the file.
                if size:
                    os.posix_fadvise(descriptor, begin, size, os.POSIX_FADV_WILLNEED)
        room = memoryview(out.reshape(-1).view(np.uint8))
        for begin, size in pieces:
            # Linux reads at most 2 GiB a call.
            while size:
                read = os.preadv(descriptor, [room[place : place + size]], begin)
                if not read:
                    raise UserError(
                        f"{self._file.name} was cut short while it was in use: delete its "
                        "directory, and run the same command again"
                    )
                place, begin, size = place + read, begin + read, size - read

    def take(self, rows: np.ndarray) -> np.ndarray:
        """A copy of some rows, by their indices."""
        taken = np.empty((len(rows), *self._array.shape[1:]), self._array.dtype)
        self.gather(rows.tolist(), [1] * len(rows), taken)
        return taken
