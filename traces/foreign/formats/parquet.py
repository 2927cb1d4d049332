"""Routing traces as Parquet, one row per token: for data sets that others load (`python -m traces card`).

    sequence int32, position int32, prefill bool, [token_id int32]
    experts list<list<int16>> [MoE layers][top_k]; weights, resident and logits likewise, where the trace has them;
    lookahead [distances][MoE layers][m]

The trace's meta, as JSON, is in the schema's metadata under routing_trace_meta, so that what is read back is the trace.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from traces.command import replace
from traces.errors import TraceError, UserError
from traces.foreign.ask import Ask
from traces.foreign.format import SHAPE, Reader, Writer
from traces.foreign.parquet_file import batches, library, list_of, lists, opened
from traces.foreign.spill import Spill, check_ids
from traces.format.check import check_meta, validate
from traces.format.layout import ARRAYS, CHUNK_ELEMENTS, Array
from traces.format.limits import MAX_META_BYTES
from traces.format.members import refuse_constant, refusing
from traces.format.trace import RoutingTrace

META = b"routing_trace_meta"
MAGIC = b"PAR1"
ID, IDS = "token_id", "token_ids"  # of one row, of all
ORDER = ("sequence", "position", "prefill", IDS, "experts", "weights", "resident", "logits", "lookahead")
KINDS = {"integer": "iu", "int32": "i", "bool": "b", "float16 or float32": "f", "float16": "f"}


def data_file(path: Path) -> Path:
    """The Parquet file of a folder that holds one, else the path."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else []
    return files[0] if len(files) == 1 else path


def detect(path: Path) -> bool:
    """Whether it is a Parquet file, or a folder of one, that brings the meta of a trace."""
    file = data_file(path)
    try:
        with file.open("rb") as stream:
            return stream.read(4) == MAGIC and META in _metadata(file)
    except (OSError, UserError):
        return False


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace that was written. Raises TraceError, one line, and where a flag says something else than the file."""
    file = data_file(path)
    if not file.is_file():
        raise TraceError(f"{path}: not a regular file; a Parquet file, or a folder of one, is required")
    meta = _meta(file)
    _refuse_other(path, ask, meta)
    spills: dict[str, Spill] = {}
    for parts in batches(file, tuple(map(column, names := _names(file))), _rows(meta)):
        for name, values in zip(names, parts, strict=True):
            _check(name, values, file, meta)
            kept = np.int16 if name in ("experts", "lookahead") else values.dtype
            spill = spills.setdefault(name, Spill(kept, values.shape[1:], ask.scratch))
            if values.shape[1:] != spill.tail:
                raise TraceError(f"{file}: {column(name)} has rows of different lengths")
            spill.append(values)
    if not spills:
        raise TraceError(f"{file}: no rows; a trace needs at least one")
    arrays = {name: spill.array() for name, spill in spills.items()}
    if "lookahead" in arrays:
        arrays["lookahead"] = np.moveaxis(arrays["lookahead"], 1, 0)
    trace = RoutingTrace(meta=meta | {"real": bool(meta["real"] and ask.real)} | ask.meta, **arrays)
    validate(trace, str(file))
    return trace


def _metadata(file: Path) -> dict[bytes, bytes]:
    found = opened(file, ())
    try:
        return dict(found.schema_arrow.metadata or {})
    finally:
        found.close()


def _meta(file: Path) -> dict[str, Any]:
    text = _metadata(file).get(META)
    if text is None or len(text) > MAX_META_BYTES:
        found = "no" if text is None else f"{len(text)} bytes of"
        raise TraceError(f"{file}: {found} {META.decode()} in its schema; --to parquet writes the trace's meta there")
    with refusing(f"{file}: {META.decode()} is not JSON"):
        meta = json.loads(text, parse_constant=refuse_constant)
    return check_meta(meta, str(file))


def _names(file: Path) -> list[str]:
    """The arrays that are there; those that must be come first, whether or not they are."""
    found = opened(file, ())
    there = set(found.schema_arrow.names)
    found.close()
    return [name for name, (_, _, required) in ARRAYS.items() if required or column(name) in there]


def column(name: str) -> str:
    """What an array is called as a column."""
    return ID if name == IDS else name


def _rows(meta: dict[str, Any]) -> int:
    """Rows at a time: bounded memory, whatever a row holds."""
    return max(1, CHUNK_ELEMENTS // (len(meta["moe_layers"]) * int(meta["n_experts"] + meta["top_k"])))


def _refuse_other(path: Path, ask: Ask, meta: dict[str, Any]) -> None:
    """Refuse flags, or a model of the catalog, that are not the file's."""
    said = {"model": ask.model.name or None} | {key: getattr(ask.model, key) for key in SHAPE}
    for key, value in said.items():
        value = list(value) if key == "moe_layers" and value is not None else value
        if value is not None and value != meta[key]:
            flag = f"--{key.replace('_', '-')}"
            raise TraceError(f"{path}: {key} is {ascii(meta[key])[:60]}; without {flag} it is read as it is")


def _check(name: str, values: Array, file: Path, meta: dict[str, Any]) -> None:
    words, rank, _ = ARRAYS[name]
    if values.dtype.kind not in KINDS[words] or values.ndim != rank:
        found = f"{values.dtype.name}, {values.ndim} deep"
        raise TraceError(f"{file}: {column(name)} is {found}; {words}, {rank} deep, is required")
    if name in ("experts", "lookahead"):
        check_ids(values, meta["n_experts"], f"{file}: {name}")


# --- written ---


def write(source: RoutingTrace, out: Path) -> str:
    """A `.parquet`, whole or not at all. Returns what was written."""
    if out.suffix != ".parquet":
        raise TraceError(f"{out}: another name is required: it is a .parquet")
    arrow, parquet = library(), library("parquet")
    values = {name: getattr(source, name) for name in ORDER if source.has(name)}
    if source.lookahead is not None:
        values["lookahead"] = np.moveaxis(source.lookahead, 0, 1)
    kinds = {name: _kind(name, array) for name, array in values.items()}
    text = json.dumps(source.meta, sort_keys=True, allow_nan=False)
    fields = [(column(name), list_of(kind, values[name].ndim)) for name, kind in kinds.items()]
    schema = arrow.schema(fields, metadata={META: text.encode()})

    def fill(file: Any) -> None:
        step = _rows(source.meta)
        with parquet.ParquetWriter(file, schema) as writer:
            for lo in range(0, source.n_tokens, 8 * step):  # a row group
                part = [lists(np.asarray(a[lo : lo + 8 * step]), kinds[name]) for name, a in values.items()]
                writer.write_table(arrow.Table.from_arrays(part, schema=schema))

    replace(out, fill)
    return f"{source.n_tokens:,} rows, {', '.join(name for name, _ in fields)}"


def _kind(name: str, array: Array) -> Any:
    """The type of a column's numbers."""
    arrow = library()
    if name == "weights":
        return arrow.float16() if array.dtype.itemsize == 2 else arrow.float32()
    if name in ("prefill", "resident"):
        return arrow.bool_()
    return {"logits": arrow.float16(), "experts": arrow.int16(), "lookahead": arrow.int16()}.get(name, arrow.int32())


DOC = "a routing trace as Parquet, one row per token"
READER = Reader("parquet", read, detect, DOC, SHAPE, names_model=True, exact=True)
WRITER = Writer("parquet", write, DOC)
