"""Parquet files, some thousand rows at a time: read with what they declare compared with their size, and written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.extras import needed
from traces.format.layout import Array
from traces.format.limits import BOMB_ROWS, BOMB_ROWS_PER_BYTE
from traces.format.members import refusing

PARQUET = "a Parquet file"
BATCH_ROWS = 8192


def library(module: str = "") -> Any:
    """pyarrow, or a module of it. Raises UserError where it is not installed."""
    if module == "parquet":
        return needed("pyarrow.parquet", PARQUET)
    return needed("pyarrow.types", PARQUET) if module == "types" else needed("pyarrow", PARQUET)


def opened(file: Path, columns: tuple[str, ...]) -> Any:
    """A pyarrow ParquetFile whose columns are there and whose row count its size can bear; whoever asks closes it."""
    parquet = library("parquet")
    with refusing(f"{file}: not a complete Parquet file"):
        found = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        names = found.schema_arrow.names
    for column in columns:
        if column not in names:
            found.close()
            raise TraceError(f"{file}: no column {column}; it has {', '.join(names[:8])[:80]}")
    if found.metadata.num_rows > BOMB_ROWS + BOMB_ROWS_PER_BYTE * file.stat().st_size:
        found.close()
        raise TraceError(f"{file}: declares {found.metadata.num_rows} rows in {file.stat().st_size} bytes")
    return found


def batches(file: Path, columns: tuple[str, ...], rows: int = BATCH_ROWS) -> Iterator[tuple[Array, ...]]:
    """The columns, some rows at a time: numbers as [n], lists as [n, k], lists of lists as [n, l, k] and so on."""
    found = opened(file, columns)
    try:
        parts = found.iter_batches(rows, columns=list(columns))
        while True:
            with refusing(f"{file}: not a complete Parquet file"):
                batch = next(parts, None)
            if batch is None:
                return
            yield tuple(_values(batch.column(column), column, file) for column in columns)
    finally:
        found.close()


def _values(column: Any, name: str, file: Path) -> Array:
    """An array of a column of numbers or of lists, none ragged, none null."""
    types = library("types")
    if not len(column):
        return np.zeros((0, 0))
    if column.null_count:
        raise TraceError(f"{file}: {name} has a row without a value")
    with refusing(f"{file}: {name}"):
        if not any(is_one(column.type) for is_one in (types.is_list, types.is_fixed_size_list, types.is_large_list)):
            return np.asarray(column.to_numpy(zero_copy_only=False))
        flat, lengths = column.flatten(), column.value_lengths()
        if flat.null_count or len(flat) % len(column) or lengths.null_count:
            raise TraceError(f"{file}: {name} has rows of different lengths")
        if len(set(lengths.to_numpy(zero_copy_only=False).tolist())) != 1:
            raise TraceError(f"{file}: {name} has rows of different lengths")
        inner = _values(flat, name, file)
        return inner.reshape(len(column), -1, *inner.shape[1:])


def lists(values: Array, kind: Any) -> Any:
    """A pyarrow array of numbers [n], or of lists of lists of them, as deep as values [n, ...] has dimensions."""
    pa = library()
    out = pa.array(np.ascontiguousarray(values).reshape(-1), kind)
    for depth in range(values.ndim - 1, 0, -1):
        ends = np.arange(int(np.prod(values.shape[:depth])) + 1, dtype=np.int32) * values.shape[depth]
        out = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), out)
    return out


def list_of(kind: Any, depth: int) -> Any:
    """The type of `lists` of so many dimensions."""
    for _ in range(depth - 1):
        kind = library().list_(kind)
    return kind
