"""FLAME-MoE-Traces (CMU-FLAME, Apache-2.0) and its layout: Parquet files of one row per token.

    actives/iter_NNNN/layer_LL.parquet   indices list<int16>[k], scores list<float16>[k], descending
    samples/*.parquet                    token_id int32; row i of all samples together is row i of every layer

iter_NNNN is a checkpoint of the model; the samples are the same for all. Layers are numbered by Megatron, from 1.
scores are the router's softmax probabilities of the chosen experts, kept as weights. Which tokens are one request and
which are a prompt is not said: the model read a stream of training text. What is written is one checkpoint, iter_0000.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask, place_layers
from traces.foreign.extras import needed
from traces.foreign.format import PASSES, Reader, Writer
from traces.foreign.spill import BLOCK_ROWS, check_full
from traces.foreign.whole_rows import Rows
from traces.format.layout import Array
from traces.format.limits import BOMB_ROWS, BOMB_ROWS_PER_BYTE
from traces.format.members import refusing
from traces.format.trace import RoutingTrace

ACTIVES, SAMPLES, INDICES, SCORES, TOKEN_ID = "actives", "samples", "indices", "scores", "token_id"
ITERATION, LAYER = re.compile(r"iter_([0-9]{1,9})"), re.compile(r"layer_([0-9]{1,4})\.parquet")
PARQUET = "a Parquet file"
BATCH_ROWS = 8192


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
    ids = _stream(_token_ids(samples)) if samples else None
    rows = Rows(path, ask)
    for experts, scores in _side_by_side([files[layer] for layer in sorted(files)]):
        more = {"weights": scores}
        if ids is not None:
            more["token_ids"] = ids(len(experts), folder)
        sequence, position = requests(len(rows) + np.arange(len(experts)))
        rows.add(experts, sequence, position, ask.prefill(path, position), **more)
    if not len(rows):
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
    iteration = ask.asked("iteration")
    wanted = next(iter(found)) if iteration is None else iteration
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
    if ask.asked("requests") == "one":
        start = ask.asked("prompt_start") or 0
        return lambda row: (np.zeros(len(row), np.int64), start + row)
    if not each:
        raise TraceError(
            f"{path}: the tokens are one stream, and which are one request is not said; "
            "required: --requests one, or tokens each (the model's training length, for one)"
        )
    return lambda row: (row // each, row % each)


def _open(file: Path, columns: tuple[str, ...]) -> Any:
    """A pyarrow ParquetFile whose columns are there and whose row count its size can bear."""
    parquet = needed("pyarrow.parquet", PARQUET)
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
    types = needed("pyarrow.types", PARQUET)
    if not len(column):
        return np.zeros((0, 0))
    if column.null_count:
        raise TraceError(f"{file}: {name} has a row without a value")
    with refusing(f"{file}: {name}"):
        if not any(is_one(column.type) for is_one in (types.is_list, types.is_fixed_size_list, types.is_large_list)):
            return np.asarray(column.to_numpy(zero_copy_only=False))
        flat = column.flatten()
        if flat.null_count or len(flat) % len(column):
            raise TraceError(f"{file}: {name} has rows of different lengths")
        lengths = column.value_lengths()
        if lengths.null_count or len(set(lengths.to_numpy(zero_copy_only=False).tolist())) != 1:
            raise TraceError(f"{file}: {name} has rows of different lengths")
        return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def _side_by_side(files: list[Path]) -> Iterator[tuple[Array, Array]]:
    """(experts [n, L, K], scores [n, L, K]) of the same rows of every layer's file, some at a time."""
    for parts in zip_longest(*(_batches(file, (INDICES, SCORES)) for file in files)):
        for part, file in zip(parts, files, strict=True):
            _refuse_unlike(part, parts[0], file, files[0])
        yield np.stack([part[0] for part in parts], axis=1), np.stack([part[1] for part in parts], axis=1)


def _refuse_unlike(part: Any, first: Any, file: Path, first_file: Path) -> None:
    """Refuse the (indices, scores) of a layer that are not those of as many tokens and slots as the first layer's."""
    if part is None or first is None or len(part[0]) != len(first[0]):
        raise TraceError(f"{file}: another number of rows than {first_file.name}; row i is one token in every layer")
    if part[0].ndim != 2 or part[0].dtype.kind not in "iu" or part[0].shape[1:] != first[0].shape[1:]:
        raise TraceError(f"{file}: {INDICES} is {part[0].dtype.name}; lists of integers, one length, are required")
    if part[1].shape != part[0].shape or part[1].dtype.kind != "f":
        raise TraceError(f"{file}: {SCORES} is not a number for each of {INDICES}")


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


# --- written ---


def write(source: RoutingTrace, out: Path) -> str:
    """A new folder, whole or not at all. Needs weights. Returns what was written."""
    if source.weights is None:
        raise TraceError("flame: needs `weights`, which the trace does not have: the layout's scores")
    if out.exists():
        raise TraceError(f"{out}: is there already; a new folder is required")
    draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        _write_layers(source, draft / ACTIVES / "iter_0000")
        if source.token_ids is not None:
            _write_samples(source, draft / SAMPLES / "000.parquet")
        os.chmod(draft, 0o755)
        os.rename(draft, out)
    except BaseException:
        shutil.rmtree(draft)
        raise
    return f"{source.n_moe_layers} layers of {source.n_tokens:,} tokens"


def _write_layers(trace: RoutingTrace, folder: Path) -> None:
    arrow, parquet = needed("pyarrow", PARQUET), needed("pyarrow.parquet", PARQUET)
    folder.mkdir(parents=True)
    schema = arrow.schema([(INDICES, arrow.list_(arrow.int16())), (SCORES, arrow.list_(arrow.float16()))])
    with ExitStack() as stack:
        files = [folder / f"layer_{layer + 1:02d}.parquet" for layer in trace.meta["moe_layers"]]
        writers = [stack.enter_context(parquet.ParquetWriter(file, schema)) for file in files]
        for lo in range(0, trace.n_tokens, BLOCK_ROWS):
            for layer, writer in enumerate(writers):
                writer.write_table(_table(trace, lo, layer, schema, arrow))


def _table(trace: RoutingTrace, lo: int, layer: int, schema: Any, arrow: Any) -> Any:
    """Some rows of one layer."""
    assert trace.weights is not None
    ids = np.asarray(trace.experts[lo : lo + BLOCK_ROWS, layer])
    check_full(ids, lo, "the layout")
    scores = np.asarray(trace.weights[lo : lo + BLOCK_ROWS, layer], np.float16)
    ends = np.arange(len(ids) + 1, dtype=np.int32) * trace.top_k
    columns = [(ids.astype(np.int16), arrow.int16()), (scores, arrow.float16())]
    lists = [
        arrow.ListArray.from_arrays(ends, arrow.array(np.ascontiguousarray(flat).reshape(-1), kind))
        for flat, kind in columns
    ]
    return arrow.Table.from_arrays(lists, schema=schema)


def _write_samples(trace: RoutingTrace, file: Path) -> None:
    arrow, parquet = needed("pyarrow", PARQUET), needed("pyarrow.parquet", PARQUET)
    file.parent.mkdir()
    schema = arrow.schema([(TOKEN_ID, arrow.int32())])
    assert trace.token_ids is not None
    with parquet.ParquetWriter(file, schema) as writer:
        for lo in range(0, trace.n_tokens, BLOCK_ROWS):
            ids = np.array(trace.token_ids[lo : lo + BLOCK_ROWS], np.int32)
            writer.write_table(arrow.Table.from_arrays([arrow.array(ids)], schema=schema))


READER = Reader("flame", read, detect, "FLAME-MoE-Traces, a folder of Parquet", (*PASSES, "iteration"))
WRITER = Writer("flame", write, "FLAME-MoE-Traces' layout: a new folder of Parquet")
