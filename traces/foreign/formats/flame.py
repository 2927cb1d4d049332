"""FLAME-MoE-Traces (CMU-FLAME, Apache-2.0) and its layout: Parquet files of one row per token.

    actives/iter_NNNN/layer_LL.parquet   indices list<int16>[k], scores list<float16>[k], descending
    samples/*.parquet                    token_id int32; row i of all samples together is row i of every layer

iter_NNNN is a checkpoint of the model; the samples are the same for all. Layers are numbered by Megatron, from 1.
scores are the router's softmax probabilities of the chosen experts, kept as weights. Which tokens are one request and
which are a prompt is not said: the model read a stream of training text. Megatron holds tokens as [position, sequence
of the micro-batch], so sequences of a micro-batch lie row by row side by side: --interleave. What is written is one
checkpoint, iter_0000. What the training wrote, before it was made into Parquet, is read, too:

    actives/MODEL/RUN/ITERATION/LAYER/SHARD.pt   a pair (scores [rows, k], indices [rows, k]); shards by their number
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
from traces.foreign import torch_file
from traces.foreign.ask import Ask, place_layers
from traces.foreign.format import PASSES, Reader, Writer
from traces.foreign.parquet_file import BATCH_ROWS, batches, library, list_of, lists
from traces.foreign.spill import BLOCK_ROWS, check_full
from traces.foreign.whole_rows import Rows
from traces.format.layout import Array
from traces.format.members import refusing
from traces.format.trace import RoutingTrace

ACTIVES, SAMPLES, INDICES, SCORES, TOKEN_ID = "actives", "samples", "indices", "scores", "token_id"
ITERATION, LAYER = re.compile(r"(?:iter_)?([0-9]{1,9})"), re.compile(r"layer_([0-9]{1,4})\.parquet")
LAYER_FOLDER = re.compile(r"(?:layer_)?([0-9]{1,4})")
ABOVE = 4  # folders above an iteration's: RUN, MODEL, actives and what holds it
Files = dict[int, list[Path]]  # of each layer, in the order of their rows


def detect(path: Path) -> bool:
    """Whether it is the folder of a capture, or of one of its checkpoints."""
    return path.is_dir() and any(_found(path, ABOVE))


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
    return rows.trace(layers, slots_ordered_by_weight=True, requests_by=ask.said_requests, **kept)


def _found(folder: Path, deeper: int) -> Iterator[Path]:
    """Folders of checkpoints in a folder, itself included, at most so many folders deeper."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return
    if _files(folder):
        yield folder
    elif deeper:
        for inner in sorted(p for p in folder.iterdir() if p.is_dir()):
            yield from _found(inner, deeper - 1)


def _files(folder: Path) -> Files:
    """Files of each layer of a checkpoint, by its number; none where the folder is no checkpoint's."""
    parquet = {int(m[1]): [p] for p in folder.glob("layer_*") if (m := LAYER.fullmatch(p.name))}
    inner = [(int(m[1]), p) for p in folder.iterdir() if p.is_dir() and (m := LAYER_FOLDER.fullmatch(p.name))]
    shards = {layer: sorted(p.glob("*.pt"), key=_in_order) for layer, p in inner}
    return parquet or {layer: files for layer, files in shards.items() if files}


def _in_order(file: Path) -> list[tuple[int, str]]:
    """Shards by the numbers in their names: 2 comes before 10."""
    return [(int(part or 0), text) for text, part in re.findall(r"([^0-9]*)([0-9]{0,18})", file.stem)]


def _checkpoint(path: Path, ask: Ask) -> Path:
    """The folder of the layers' files."""
    if not path.is_dir():
        raise TraceError(f"{path}: not a folder; {ACTIVES}/iter_NNNN/layer_LL.parquet is read from one")
    with refusing(f"{path}: not readable"):
        folders = list(_found(path, ABOVE))
    if path in folders or not folders:
        return path
    runs = sorted({str(folder.parent) for folder in folders})
    if len(runs) > 1:
        raise TraceError(f"{path}: checkpoints of several runs; required: IN one of {', '.join(runs[:4])}")
    found = {int(m[1]): p for p in folders if (m := ITERATION.fullmatch(p.name))}
    if not found:
        raise TraceError(f"{folders[0]}: a checkpoint's folder is named by its number, iter_NNNN")
    if ask.iteration is None and len(found) > 1:
        which = ", ".join(map(str, sorted(found)[:12]))
        raise TraceError(f"{path}: checkpoints {which}: each is another model; required: --iteration N")
    iteration = ask.asked("iteration")
    wanted = next(iter(found)) if iteration is None else iteration
    if wanted not in found:
        raise TraceError(f"{path}: no {ACTIVES}/iter_{wanted}; there are {', '.join(map(str, sorted(found)[:12]))}")
    return found[wanted]


def _layer_files(folder: Path) -> Files:
    files = _files(folder)
    if not files:
        raise TraceError(f"{folder}: no layer_LL.parquet in it, and no LAYER/SHARD.pt")
    return files


def _samples(path: Path, folder: Path) -> list[Path]:
    """Files of the token ids, in order; none where the capture was moved without them."""
    above = next((p.parent for p in folder.parents if p.name == ACTIVES), folder.parent.parent)
    root = path if (path / SAMPLES).is_dir() else above
    return sorted((root / SAMPLES).glob("*.parquet"))


def _requests(path: Path, ask: Ask) -> Any:
    """A function from row numbers to (sequence, position)."""
    if ask.asked("requests") == "one":
        start = ask.asked("prompt_start") or 0
        return lambda row: (np.zeros(len(row), np.int64), start + row)
    if not ask.tokens_each:
        raise TraceError(
            f"{path}: the tokens are one stream, and which are one request is not said; "
            "required: --requests one, or tokens each (the model's training length, for one)"
        )
    return ask.places


def _side_by_side(files: list[list[Path]]) -> Iterator[tuple[Array, Array]]:
    """(experts [n, L, K], scores [n, L, K]) of the same rows of every layer's files, some at a time."""
    for shards in zip_longest(*files):
        if None in shards:
            few = next(of[0].parent for of, shard in zip(files, shards, strict=True) if shard is None)
            raise TraceError(f"{few}: fewer shards than another layer; row i is one token in every layer")
        yield from _rows_of(list(shards))


def _rows_of(files: list[Path]) -> Iterator[tuple[Array, Array]]:
    """`_side_by_side` of one file per layer."""
    parts_of = [_pair(file) if file.suffix == ".pt" else batches(file, (INDICES, SCORES)) for file in files]
    for parts in zip_longest(*parts_of):
        for part, file in zip(parts, files, strict=True):
            _refuse_unlike(part, parts[0], file, files[0])
        yield np.stack([part[0] for part in parts], axis=1), np.stack([part[1] for part in parts], axis=1)


def _pair(file: Path) -> Iterator[tuple[Array, Array]]:
    """(indices, scores) of a shard, some rows at a time."""
    value = torch_file.load(file)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise TraceError(f"{file}: a {type(value).__name__}; a pair of tensors, scores and indices, is required")
    scores, indices = (
        torch_file.tensor(part, name, file, (2,), kinds)
        for part, name, kinds in zip(value, (SCORES, INDICES), ("f", "iu"), strict=True)
    )
    if scores.shape != indices.shape:
        raise TraceError(
            f"{file}: {SCORES} {list(scores.shape)} for {INDICES} {list(indices.shape)}; one each is right"
        )
    for lo in range(0, len(indices), BATCH_ROWS):
        hi = lo + BATCH_ROWS
        yield torch_file.numbers(indices[lo:hi]), torch_file.numbers(scores[lo:hi])
        torch_file.give_back(indices)
        torch_file.give_back(scores)


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
        for (ids,) in batches(file, (TOKEN_ID,)):
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
    arrow, parquet = library(), library("parquet")
    folder.mkdir(parents=True)
    schema = arrow.schema([(INDICES, list_of(arrow.int16(), 2)), (SCORES, list_of(arrow.float16(), 2))])
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
    columns = [lists(ids.astype(np.int16), arrow.int16()), lists(scores, arrow.float16())]
    return arrow.Table.from_arrays(columns, schema=schema)


def _write_samples(trace: RoutingTrace, file: Path) -> None:
    arrow, parquet = library(), library("parquet")
    file.parent.mkdir()
    schema = arrow.schema([(TOKEN_ID, arrow.int32())])
    assert trace.token_ids is not None
    with parquet.ParquetWriter(file, schema) as writer:
        for lo in range(0, trace.n_tokens, BLOCK_ROWS):
            ids = np.array(trace.token_ids[lo : lo + BLOCK_ROWS], np.int32)
            writer.write_table(arrow.Table.from_arrays([arrow.array(ids)], schema=schema))


READER = Reader(
    "flame", read, detect, "FLAME-MoE-Traces, a folder of Parquet (or .pt)", (*PASSES, "iteration", "interleave")
)
WRITER = Writer("flame", write, "FLAME-MoE-Traces' layout: a new folder of Parquet")
