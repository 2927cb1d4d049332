"""Memory of logs that nobody holds any more, kept for the next: touching a page for the first time takes longer than
all that is written to it."""

from typing import Any

import numpy as np
import numpy.typing as npt

LEAST, MOST = 2**20, 2**31  # bytes of a table: below, malloc is as quick; above, other programs may need it
_spare: dict[str, npt.NDArray[np.uint8]] = {}  # of each table one piece, which belongs to nobody


class _Lent:
    """A piece of memory that somebody has: every array made of it keeps this alive, so when this goes all have gone."""

    def __init__(self, table: str, memory: npt.NDArray[np.uint8]) -> None:
        self.table, self.memory, self.back = table, memory, _spare
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        had = self.back.get(self.table)
        if len(self.memory) <= MOST and (had is None or len(had) < len(self.memory)):
            self.back[self.table] = self.memory


def lent(table: str, rows: int, dtype: Any) -> npt.NDArray[Any]:
    """An array of so many rows, whatever is in them; once it and every view of it have gone a later one of that table
    may have its memory."""
    size = rows * np.dtype(dtype).itemsize
    if size < LEAST:
        return np.empty(rows, dtype)
    memory = _spare.pop(table, None)
    if memory is None or len(memory) < size:
        memory = np.empty(size, np.uint8)
    return np.asarray(_Lent(table, memory))[:size].view(dtype)
