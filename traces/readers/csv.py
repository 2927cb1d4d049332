"""Long CSV logs: one line per token, layer and rank, as llama.cpp forks and home-made loggers write them.

The first line names the columns: `phase,token,layer,rank,expert` and, if there are any, `weight` and
`sequence`; others are ignored. phase: prefill (or prompt), decode (or generate). token: position in its
request. layer: index in the model. rank: slot, 0 = highest router weight. sequence: any word per request;
without it the file is one request. Lines may come in any order; a (token, layer, rank) that has no line
becomes -1, weight 0.
"""

import csv
import math
import os
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.check import MAX_EXPERTS, check_meta
from traces.errors import TraceError
from traces.trace import RoutingTrace, validate

Columns = dict[str, npt.NDArray[Any]]

REQUIRED = ("phase", "token", "layer", "rank", "expert")
PHASES = {"prefill": True, "prompt": True, "decode": False, "generate": False}
INTEGER = re.compile(r"-?[0-9]{1,9}", re.ASCII)
MOST = {"token": 999_999_999, "layer": 9_999, "rank": 999}
# Slots without a line become -1; a file that would need many more slots than it has lines is damaged.
MOST_SLOTS, MOST_SLOTS_PER_LINE = 1_000_000, 100


def read_csv(
    path: str | os.PathLike[str],
    *,
    model: str,
    n_experts: int,
    top_k: int | None = None,
    n_layers: int | None = None,
    real: bool = True,
    **meta: Any,
) -> RoutingTrace:
    """A valid trace from a long CSV file.

    model and n_experts are never guessed: a log need not show every expert. top_k: highest rank + 1 where
    None; n_layers: highest layer + 1 where None; the MoE layers are those that occur. meta: further keys of
    the trace's meta. Raises TraceError, one line with the line number where one is to blame.
    """
    path = Path(path)
    if not 1 <= n_experts <= MAX_EXPERTS:
        raise TraceError(f"{path}: n_experts = {n_experts}; an integer from 1 to {MAX_EXPERTS} is required")
    columns, names = _read_columns(path, n_experts)
    layers = np.unique(columns["layer"])
    described = {
        "format_version": 1,
        "model": model,
        "n_experts": n_experts,
        "top_k": int(columns["rank"].max()) + 1 if top_k is None else top_k,
        "n_layers": int(layers[-1]) + 1 if n_layers is None else n_layers,
        "moe_layers": layers.tolist(),
        "real": real,
    }
    _refuse_above(path, columns, "rank", described["top_k"], "--top-k")
    _refuse_above(path, columns, "layer", described["n_layers"], "--n-layers")
    if columns["rank"].min() > 0:
        raise TraceError(f"{path}: no line has rank 0; ranks are counted from 0")
    trace = _build(path, columns, names, check_meta(described | meta, str(path)))
    validate(trace, str(path))
    return trace


def _read_columns(path: Path, n_experts: int) -> tuple[Columns, list[str]]:
    """The file by column (request: number by appearance; line: line number), and the requests' names."""
    names: dict[str, int] = {}
    integers: dict[str, array[int]] = {
        n: array("q") for n in ("prefill", "token", "layer", "rank", "expert", "request", "line")
    }
    weights = array("d")
    with _open(path) as reader:
        header: list[str] = next(reader, [])
        at = {name.strip(): i for i, name in enumerate(header)}
        for name in REQUIRED:
            if name not in at:
                raise TraceError(f"{path}: line 1 has no column {name}; it must name {','.join(REQUIRED)}")
        for row in reader:
            if not row:
                continue
            where = f"{path}: line {reader.line_num}"
            if len(row) != len(header):
                raise TraceError(f"{where} has {len(row)} fields; line 1 has {len(header)}")
            _append(integers, {n: row[i].strip() for n, i in at.items()}, n_experts, names, where)
            integers["line"].append(reader.line_num)
            if "weight" in at:
                weights.append(_weight(row[at["weight"]], where))
    if not integers["line"]:
        raise TraceError(f"{path}: no rows after line 1; a trace needs at least one")
    columns: Columns = {n: np.array(values, np.int64) for n, values in integers.items()}
    if "weight" in at:
        columns["weight"] = np.array(weights, np.float32)
    return columns, list(names)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A csv reader over `path`; what the system, decoder or csv module refuse is a TraceError."""
    if path.exists() and not path.is_file():
        raise TraceError(f"{path}: not a regular file; a CSV file is required")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            yield reader
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not UTF-8 text; a CSV file is required") from error
    except csv.Error as error:
        raise TraceError(f"{path}: line {reader.line_num}: {error}") from error


def _append(
    columns: dict[str, "array[int]"],
    fields: dict[str, str],
    n_experts: int,
    names: dict[str, int],
    where: str,
) -> None:
    phase = fields["phase"].lower()
    if phase not in PHASES:
        raise TraceError(f"{where}: phase = {fields['phase'][:40]!r}; one of {', '.join(PHASES)} is required")
    columns["prefill"].append(PHASES[phase])
    for name, most in MOST.items():
        columns[name].append(_integer(name, fields[name], 0, most, where))
    columns["expert"].append(_integer("expert", fields["expert"], -1, n_experts - 1, where))
    columns["request"].append(names.setdefault(fields.get("sequence", "0"), len(names)))


def _integer(name: str, text: str, least: int, most: int, where: str) -> int:
    if not INTEGER.fullmatch(text) or not least <= int(text) <= most:
        raise TraceError(f"{where}: {name} = {text[:40]!r}; an integer from {least} to {most} is required")
    return int(text)


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= float(np.finfo(np.float32).max):  # false for NaN too
        raise TraceError(f"{where}: weight = {text[:40]!r}; a finite number >= 0 is required")
    return weight


def _refuse_above(path: Path, columns: Columns, name: str, limit: int, flag: str) -> None:
    bad = np.flatnonzero(columns[name] >= limit)
    if len(bad):
        where = f"{path}: line {columns['line'][bad[0]]}: {name} = {columns[name][bad[0]]}"
        raise TraceError(f"{where}; with {flag} {limit} it is at most {limit - 1}")


def _build(path: Path, columns: Columns, names: list[str], meta: dict[str, Any]) -> RoutingTrace:
    """Put every line in its place. Rows: request by request, in order of appearance, then by token."""
    request, token = columns["request"], columns["token"]
    n = len(names)
    low, high = np.full(n, MOST["token"]), np.zeros(n, np.int64)
    np.minimum.at(low, request, token)
    np.maximum.at(high, request, token)
    length = high - low + 1
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(length)])
    total = int(first[-1])
    shape = (total, len(meta["moe_layers"]), meta["top_k"])
    if math.prod(shape) > MOST_SLOTS + MOST_SLOTS_PER_LINE * len(token):
        raise TraceError(f"{path}: {len(token)} lines for {shape} slots; tokens are numbered without gaps")
    row = first[request] + token - low[request]
    layer = np.searchsorted(np.array(meta["moe_layers"]), columns["layer"])
    place = (row * len(meta["moe_layers"]) + layer) * meta["top_k"] + columns["rank"]
    _refuse_twice(path, columns, place)
    experts = np.full(math.prod(shape), -1, np.int16)
    experts[place] = columns["expert"]
    weights = None
    if "weight" in columns:
        weights = np.zeros(math.prod(shape), np.float32)
        weights[place] = columns["weight"]
        weights = weights.reshape(shape)
        meta["slots_ordered_by_weight"] = bool((weights[..., 1:] <= weights[..., :-1]).all())
    return RoutingTrace(
        experts=experts.reshape(shape),
        sequence=np.repeat(_sequence_ids(names), length),
        position=(np.arange(total) - np.repeat(first[:-1] - low, length)).astype(np.int32),
        prefill=_prefill(path, columns, row, request, total, first),
        meta=meta,
        weights=weights,
    )


def _sequence_ids(names: list[str]) -> npt.NDArray[np.int32]:
    """The names where all are different integers, else 0, 1, ... in order of appearance."""
    numbers = [int(name) for name in names if INTEGER.fullmatch(name)]
    if len(set(numbers)) == len(names):
        return np.array(numbers, np.int32)
    return np.arange(len(names), dtype=np.int32)


def _refuse_twice(path: Path, columns: Columns, place: npt.NDArray[np.int64]) -> None:
    """Refuse two lines for one (request, token, layer, rank)."""
    order = np.argsort(place, kind="stable")
    again = order[1:][place[order][1:] == place[order][:-1]]
    if len(again):
        i = int(again.min())
        what = f"token {columns['token'][i]}, layer {columns['layer'][i]}, rank {columns['rank'][i]}"
        hint = "requests need a column sequence, tokens one numbering through prefill and decode"
        raise TraceError(f"{path}: line {columns['line'][i]}: {what} is there already; {hint}")


def _prefill(
    path: Path,
    columns: Columns,
    row: npt.NDArray[np.int64],
    request: npt.NDArray[np.int64],
    total: int,
    first: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """bool [T]: rows up to a request's last prompt line are prompt rows, the rest are not."""
    prompt = columns["prefill"] == 1
    end = first[:-1].copy()  # row after each request's last prompt row
    np.maximum.at(end, request[prompt], row[prompt] + 1)
    bad = np.flatnonzero(~prompt & (row < end[request]))
    if len(bad):
        i = int(bad[0])
        what = f"token {columns['token'][i]} is in phase decode"
        right = "a request's prompt tokens come first"
        raise TraceError(f"{path}: line {columns['line'][i]}: {what} before or in its prompt; {right}")
    prefill: npt.NDArray[np.bool_] = np.arange(total) < np.repeat(end, np.diff(first))
    return prefill
