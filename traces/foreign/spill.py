"""Arrays of unknown length that grow on disk, so that a log of any size is read in bounded memory."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.format.layout import Array, give_back

BLOCK_ROWS, BLOCK_BYTES = 1 << 16, 1 << 22


class Spill:
    """Rows of one dtype and shape, appended to a nameless temporary file and then mapped.

    scratch: the folder of that file (None: the system's). The file goes when the array does.
    """

    def __init__(self, dtype: npt.DTypeLike, tail: tuple[int, ...], scratch: Path | None) -> None:
        self.dtype, self.tail = np.dtype(dtype), tail
        self.rows = 0
        self.block = max(1, BLOCK_BYTES // (self.dtype.itemsize * math.prod(tail)))  # rows at a time
        self._scratch = None if scratch is None else str(scratch)
        self._file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - closed in __del__

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()  # what was mapped stays mapped

    def append(self, rows: Array) -> None:
        """Add rows [n, *tail]; their values must fit the dtype."""
        block = np.ascontiguousarray(rows, self.dtype)
        if block.shape[1:] != self.tail:
            raise AssertionError(f"{block.shape[1:]} for {self.tail}")
        self._file.write(block.reshape(-1).view(np.uint8).data)
        self.rows += len(block)

    def fill(self, rows: int, value: Any) -> None:
        """Add rows that all hold `value`."""
        block = np.full((min(rows, self.block), *self.tail), value, self.dtype)
        for lo in range(0, rows, self.block):
            self.append(block[: rows - lo])

    def array(self) -> Array:
        """All rows, writable, mapped from the file."""
        self._file.flush()
        if self.rows == 0:
            return np.zeros((0, *self.tail), self.dtype)
        mapped: Array = np.memmap(self._file, self.dtype, "r+", shape=(self.rows, *self.tail))
        return mapped

    def gathered(self, order: Array) -> Array:
        """The rows in another order, a copy of their own on disk."""
        source, out = self.array(), Spill(self.dtype, self.tail, None if self._scratch is None else Path(self._scratch))
        for lo in range(0, len(order), self.block):
            out.append(source[order[lo : lo + self.block]])
            give_back(source)
        return out.array()


def check_full(ids: Array, first: int, layout: str) -> None:
    """Refuse -1 in ids [n, ...] of rows from `first` on, for a layout that cannot say it."""
    none = np.argwhere(ids < 0)
    if len(none):
        raise TraceError(f"experts[{first + none[0][0]}] has a slot without an expert (-1), which {layout} cannot say")


def check_ids(ids: Array, n_experts: int, where: str) -> None:
    """Refuse ids outside [-1, n_experts) before they are narrowed to int16. where: file and row, for the message."""
    if ids.size and (int(ids.min()) < -1 or int(ids.max()) >= n_experts):
        bad = ids[(ids < -1) | (ids >= n_experts)].flat[0]
        raise TraceError(f"{where}: expert {bad}; ids lie in [0, {n_experts}), -1 = none")
