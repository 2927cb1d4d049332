"""FLAME-MoE-Traces (CMU-FLAME, Apache-2.0) and its layout: Parquet files of one row per token.

    actives/iter_NNNN/layer_LL.parquet   indices list<int16>[k], scores list<float16>[k], descending
    samples/*.parquet                    token_id int32; row i of all samples together is row i of every layer

iter_NNNN is a checkpoint of the model; the samples are the same for all. Layers are numbered by Megatron, from 1.
scores are the router's softmax probabilities of the chosen experts, kept as weights. Which tokens are one request and
which are a prompt is not said: the model read a stream of training text.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask, place_layers
from traces.foreign.extras import needed
from traces.foreign.spill import Array
from traces.foreign.whole_rows import Rows
from traces.format.members import refusing
from traces.format.trace import RoutingTrace

ACTIVES, SAMPLES, INDICES, SCORES, TOKEN_ID = "actives", "samples", "indices", "scores", "token_id"
ITERATION, LAYER = re.compile(r"iter_([0-9]{1,9})"), re.compile(r"layer_([0-9]{1,4})\.parquet")
BATCH_ROWS = 8192
# A column of equal values packs well; rows beyond both of these per byte of file are taken for a bomb.
BOMB_ROWS, BOMB_ROWS_PER_BYTE = 1 << 20, 100


def layer_file(layer: int) -> str:
    """The name of a layer's file; `layer` is an index from 0."""
    return f"layer_{layer + 1:02d}.parquet"


def detect(path: Path) -> bool:
    """Whether it is the folder of a capture, or of one of its checkpoints."""
    return path.is_dir() and bool(list(path.glob(f"{ACTIVES}/iter_*")) or list(path.glob("layer_*.parquet")))


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of one checkpoint, all layers read side by side, some thousand rows at a time."""
    folder = _checkpoint(path, ask)
    files = _layer_files(folder)
    samples = _samples(path, folder)
    requests = _requests(path, ask)
    layers = place_layers(path, sorted(files), ask)
    ordered = [files[layer] for layer in sorted(files)]
    batches = [_batches(file, (INDICES, SCORES)) for file in ordered]
    ids = _stream(_token_ids(samples)) if samples else None
    rows: Rows | None = None
    while True:
        parts = [next(batch, None) for batch in batches]
        experts, scores = _side_by_side(parts, ordered)
        if experts is None or scores is None:
            break
        if rows is None:
            rows = Rows(path, ask, experts.shape[1:], ("weights", "token_ids") if ids else ("weights",))
        more = {"weights": scores}
        if ids is not None:
            more["token_ids"] = ids(len(experts), folder)
        sequence, position = requests(len(rows) + np.arange(len(experts)))
        rows.add(experts, sequence, position, ask.prefill(path, position), **more)
    if rows is None:
        raise TraceError(f"{folder}: its files have no rows")
    kept = {"tool": "flame-moe", "layout": "FLAME-MoE-Traces", "checkpoint": folder.name, "id_space": "logical"}
    return rows.trace(layers, slots_ordered_by_weight=True, requests_by=f"--requests {ask.requests}", **kept)


def _checkpoint(path: Path, ask: Ask) -> Path:
    """The folder of the layers' files."""
    if not path.is_dir():
        raise TraceError(f"{path}: not a folder; {ACTIVES}/iter_NNNN/layer_LL.parquet is read from one")
    found = {int(m[1]): p for p in path.glob(f"{ACTIVES}/*") if (m := ITERATION.fullmatch(p.name))}
    if not found:
        return path
    if ask.iteration is None and len(found) > 1:
        which = ", ".join(map(str, sorted(found)[:12]))
        raise TraceError(f"{path}: checkpoints {which}: each is another model; required: --iteration N")
    ask.used.add("iteration")
    wanted = ask.iteration if ask.iteration is not None else next(iter(found))
    if wanted not in found:
        raise TraceError(f"{path}: no {ACTIVES}/iter_{wanted}; there are {', '.join(map(str, sorted(found)[:12]))}")
    return found[wanted]


def _layer_files(folder: Path) -> dict[int, Path]:
    files = {int(m[1]): p for p in folder.glob("*") if (m := LAYER.fullmatch(p.name))}
    if not files:
        raise TraceError(f"{folder}: no layer_LL.parquet in it")
    return files


def _samples(path: Path, folder: Path) -> list[Path]:
    """Files of the token ids, in order; none where the capture was moved without them."""
    root = path if (path / SAMPLES).is_dir() else folder.parent.parent
    return sorted((root / SAMPLES).glob("*.parquet"))


def _requests(path: Path, ask: Ask) -> Any:
    """A function from row numbers to (sequence, position)."""
    each = ask.tokens_each
    if ask.rule() == "one":
        start = ask.start() or 0
        return lambda row: (np.zeros(len(row), np.int64), start + row)
    if not each:
        raise TraceError(
            f"{path}: the tokens are one stream, and which are one request is not said; "
            "required: --requests one, or tokens each (the model's training length, for one)"
        )
    return lambda row: (row // each, row % each)


def _open(file: Path, columns: tuple[str, ...]) -> Any:
    """A pyarrow ParquetFile whose columns are there and whose row count its size can bear."""
    parquet = needed("pyarrow.parquet", "a Parquet file")
    with refusing(f"{file}: not a complete Parquet file"):
        opened = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        names = opened.schema_arrow.names
    for column in columns:
        if column not in names:
            opened.close()
            raise TraceError(f"{file}: no column {column}; it has {', '.join(names[:8])[:80]}")
    if opened.metadata.num_rows > BOMB_ROWS + BOMB_ROWS_PER_BYTE * file.stat().st_size:
        opened.close()
        raise TraceError(f"{file}: declares {opened.metadata.num_rows} rows in {file.stat().st_size} bytes")
    return opened


def _batches(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[Array, ...]]:
    """The columns, some rows at a time: lists as [n, k], numbers as [n]."""
    opened = _open(file, columns)
    try:
        batches = opened.iter_batches(BATCH_ROWS, columns=list(columns))
        while True:
            with refusing(f"{file}: not a complete Parquet file"):
                batch = next(batches, None)
            if batch is None:
                return
            yield tuple(_values(batch.column(column), column, file) for column in columns)
    finally:
        opened.close()


def _values(column: Any, name: str, file: Path) -> Array:
    """[n] of a column of numbers, [n, k] of a column of lists, none ragged, none null."""
    types = needed("pyarrow.types", "a Parquet file")
    if not len(column):
        return np.zeros((0, 0))
    if column.null_count:
        raise TraceError(f"{file}: {name} has a row without a value")
    with refusing(f"{file}: {name}"):
        if not (
            types.is_list(column.type) or types.is_fixed_size_list(column.type) or types.is_large_list(column.type)
        ):
            return np.asarray(column.to_numpy(zero_copy_only=False))
        flat = column.flatten()
        if flat.null_count or len(flat) % len(column):
            raise TraceError(f"{file}: {name} has rows of different lengths")
        lengths = column.value_lengths()
        if lengths.null_count or len(set(lengths.to_numpy(zero_copy_only=False).tolist())) != 1:
            raise TraceError(f"{file}: {name} has rows of different lengths")
        return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def _side_by_side(parts: list[Any], files: list[Path]) -> tuple[Array, Array] | tuple[None, None]:
    """(experts [n, L, K], scores [n, L, K]) of the same rows of every layer; (None, None) at the end of all."""
    if all(part is None for part in parts):
        return None, None
    first = parts[0]
    for part, file in zip(parts, files, strict=True):
        if part is None or first is None or len(part[0]) != len(first[0]):
            raise TraceError(f"{file}: another number of rows than {files[0].name}; row i is one token in every layer")
        if part[0].ndim != 2 or part[0].dtype.kind not in "iu" or part[0].shape[1:] != first[0].shape[1:]:
            raise TraceError(f"{file}: {INDICES} is {part[0].dtype.name}; lists of integers, one length, are required")
        if part[1].shape != part[0].shape or part[1].dtype.kind != "f":
            raise TraceError(f"{file}: {SCORES} is not a number for each of {INDICES}")
    return np.stack([part[0] for part in parts], axis=1), np.stack([part[1] for part in parts], axis=1)


def _token_ids(files: list[Path]) -> Iterator[Array]:
    for file in files:
        for (ids,) in _batches(file, (TOKEN_ID,)):
            if ids.ndim != 1 or ids.dtype.kind not in "iu":
                raise TraceError(f"{file}: {TOKEN_ID} is {ids.dtype.name}; integers are required")
            yield ids


def _stream(parts: Iterator[Array]) -> Any:
    """A function that takes the next n values."""
    held: list[Array] = []

    def take(n: int, folder: Path) -> Array:
        while sum(map(len, held)) < n:
            part = next(parts, None)
            if part is None:
                raise TraceError(f"{folder}: {SAMPLES} have fewer tokens than the layers have rows")
            held.append(part)
        joined = np.concatenate(held)
        held[:] = [joined[n:]]
        return joined[:n]

    return take
