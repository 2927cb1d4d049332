"""Long CSV logs: one line per token, layer and rank, as llama.cpp forks and home-made loggers write them.

The first line names the columns: `phase,token,layer,rank,expert` and, if there are any, `weight` and
`sequence`; others are ignored. phase: prefill (or prompt), decode (or generate). token: position in its
request. layer: index in the model. rank: slot, 0 = highest router weight. sequence: any word per request;
without it the file is one request. Lines may come in any order; a (token, layer, rank) that has no line
becomes -1, weight 0.
"""

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.format import Reader
from traces.foreign.long_rows import INTEGER, MOST, Long
from traces.format.limits import MOST_LINE_BYTES
from traces.format.members import refuse_irregular
from traces.format.trace import RoutingTrace

REQUIRED = ("phase", "token", "layer", "rank", "expert")
PHASES = {"prefill": 1, "prompt": 1, "decode": 0, "generate": 0}


def detect(path: Path) -> bool:
    """Whether its first line names all columns."""
    try:
        with _open(path) as reader:
            return {name.strip() for name in next(reader, [])} >= set(REQUIRED)
    except TraceError:
        return False


def read(path: Path, ask: Ask, **meta: Any) -> RoutingTrace:
    """A valid trace; `meta` are further keys of its meta.

    How many experts there are is never guessed: a log need not show every one. Top-k is the highest rank + 1 and
    layers are the highest + 1 where `ask` says nothing; the MoE layers are those that occur. Raises TraceError, one
    line with the line number where one is to blame.
    """
    n_experts = ask.n_experts(path)
    with _open(path) as reader:
        header: list[str] = next(reader, [])
        at = {name.strip(): i for i, name in enumerate(header)}
        for name in REQUIRED:
            if name not in at:
                raise TraceError(f"{path}: line 1 has no column {name}; it must name {','.join(REQUIRED)}")
        cells = Long(path, ask, 1, "weight" in at)
        for row in reader:
            if not row:
                continue
            where = f"{path}: line {reader.line_num}"
            if len(row) != len(header):
                raise TraceError(f"{where} has {len(row)} fields; line 1 has {len(header)}")
            _add(cells, {n: row[i].strip() for n, i in at.items()}, n_experts, reader.line_num, where)
    return cells.build(**({"tool": "csv"} | meta))


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A csv reader over `path`; what the system, decoder or csv module refuse is a TraceError."""
    refuse_irregular(path, "a CSV file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_lines(file, path), strict=True)
            yield reader
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not UTF-8 text; a CSV file is required") from error
    except csv.Error as error:
        raise TraceError(f"{path}: line {reader.line_num}: {error}") from error


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """Its lines. Raises TraceError for an endless one: a file of another kind, which detection must not read whole."""
    for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_BYTES + 1), ""), 1):
        if len(line) > MOST_LINE_BYTES:
            raise TraceError(f"{path}: line {number}: more than {MOST_LINE_BYTES} characters")
        yield line


def _add(cells: Long, fields: dict[str, str], n_experts: int, line: int, where: str) -> None:
    phase = fields["phase"].lower()
    if phase not in PHASES:
        raise TraceError(f"{where}: phase = {fields['phase'][:40]!r}; one of {', '.join(PHASES)} is required")
    token, layer, rank = (_integer(name, fields[name], 0, most, where) for name, most in MOST.items())
    expert = _integer("expert", fields["expert"], -1, n_experts - 1, where)
    weight = (_weight(fields["weight"], where),) if cells.weights else None
    cells.add(line, fields.get("sequence", "0"), token, layer, rank, PHASES[phase], (expert,), weight)


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


READER = Reader("csv", read, detect, "phase,token,layer,rank,expert[,weight][,sequence]: one line per slot")
