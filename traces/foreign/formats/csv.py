"""CSV logs of home-made kinds: a line per token, layer and slot, or per token and layer with all of its experts.

The first line names the columns, by our names or by those that public logs use (traces.foreign.columns), or `--columns`
says which is which; others are ignored. A line has one expert (`expert`, with its slot in `rank`, or one line after the
other), a list of them in one cell ("[8, 26]", "8 26", "8;26"), or a column for each (e0, e1, ...).

layer: index in the model. token: position in its request; without it (or where it holds the token's text) the order of
the lines says it. phase: prefill (or prompt), decode (or generate). rank: slot, 0 = highest router weight. sequence:
any word per request; without it the file is one request. A (token, layer, slot) that is in no line becomes -1, weight
0. Lines that begin with # are comments.
"""

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.cells import Cell, Cells
from traces.foreign.columns import KNOWN, find, listed, normal, numbered
from traces.foreign.format import PASSES, Reader
from traces.foreign.json_lines import BOM
from traces.foreign.long_rows import INTEGER, MOST, NOT_SAID
from traces.format.limits import MOST_LINE_BYTES
from traces.format.members import refuse_irregular
from traces.format.trace import RoutingTrace

REQUIRED = ("phase", "token", "layer", "rank", "expert")
PHASES = {"prefill": 1, "prompt": 1, "decode": 0, "generate": 0}
ALSO = {"prefilling": 1, "decoder_prompt": 1, "decoding": 0, "generated": 0, "generation": 0, "decoder_generated": 0}
YES = {"true": 1, "1": 1, "false": 0, "0": 0}
EXPERTS, WEIGHTS = ("e", "expert", "expertid"), ("w", "weight", "score", "prob", "p")
PAIR = ["layer", "expert"]  # llama.cpp's, which has a reader of its own
OF_OTHERS = b"# route_trace"  # the same
LOOK = 64  # lines that tell lists from single ids, and numbers of tokens from their texts
INSIDE = r"([-0-9,;|\s]*)"
LIST = re.compile(rf"\[{INSIDE}\]|\({INSIDE}\)|{INSIDE}", re.ASCII)


def detect(path: Path) -> bool:
    """Whether its first line names a layer, experts, and more than those two; not where it counts them."""
    try:
        header = names(path)
    except TraceError:
        return False
    known = {field for field in KNOWN if any(normal(name) in KNOWN[field] for name in header)}
    if "layer" not in known or ("count" in known and "token" not in known):
        return False
    lower = [name.lower() for name in header]
    if numbered(header, *EXPERTS):  # pos,layer,e0,e1,... is llama.cpp's; layer,e0,e1,... counts
        return "token" in known and lower[:3] != ["pos", "layer", "e0"]
    return "experts" in known and lower != PAIR


def names(path: Path) -> list[str]:
    """The names in the first line that is no comment. Raises TraceError where the file is no text, or another's log."""
    with opened(path) as reader:
        header: list[str] = next((row for row in reader if row), [])
    with path.open("rb") as file:
        if file.read(64).removeprefix(BOM).startswith(OF_OTHERS):
            raise TraceError(f"{path}: begins with {OF_OTHERS.decode()!r}: another format")
    return [name.strip() for name in header]


def read(path: Path, ask: Ask, **meta: Any) -> RoutingTrace:
    """A valid trace; `meta` are further keys of its meta.

    How many experts there are is never guessed: a log need not show every one. Top-k is the widest line's (the highest
    rank + 1) and layers are the highest + 1 where `ask` says nothing; the MoE layers are those that occur. Raises
    TraceError, one line with the line number where one is to blame.
    """
    columns = Columns(path, ask)
    cells = Cells(path, ask, columns.at, columns.single)
    for line, row in rows(path):
        if line > columns.line:
            cells.add(columns.cell(line, row))
    kept: dict[str, Any] = {"tool": "csv"} | meta
    if not columns.single and "weights" not in columns.at:
        kept = {"slots_ordered_by_weight": False} | kept
    return cells.trace("line", [], {}, **kept)


def rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, its fields) of every line that is neither empty nor a comment."""
    with opened(path) as reader:
        for row in reader:
            if row:
                yield reader.line_num, row


class Columns:
    """Which column is which, and how a line says its experts. Its first lines are looked at, for what names leave open:
    a cell with one id or with a list, a column `token` with numbers or with texts."""

    def __init__(self, path: Path, ask: Ask) -> None:
        self.path, self.n_experts = path, ask.n_experts(path)
        looked = list(islice(rows(path), LOOK + 1))
        self.line, header = looked[0] if looked else (1, [])
        self.header = [name.strip() for name in header]
        if len(set(self.header)) < len(self.header):
            twice = next(name for name in self.header if self.header.count(name) > 1)
            raise TraceError(f"{path}: line {self.line} names the column {twice[:40]!r} twice")
        where = f"{path}: line {self.line}"
        self.at = find(self.header, ask.asked("columns"), where)
        self.experts = [] if "experts" in self.at else numbered(self.header, *EXPERTS)
        self.weights = numbered(self.header, *WEIGHTS) if self.experts else []
        self._refuse_missing(where)
        if "rank" in self.at and (self.experts or self._lists(looked[1:])):
            del self.at["rank"]
        self.single = not self.experts and not self._lists(looked[1:])
        if self.weights:
            self.at["weights"] = self.weights[0]
        if self._texts(looked[1:]) and "token" not in (ask.columns or {}):
            del self.at["token"]
        self.place = {name: i for i, name in enumerate(self.header)}

    def _refuse_missing(self, where: str) -> None:
        if [name.lower() for name in self.header] == PAIR:
            raise TraceError(f"{where} is {','.join(PAIR)}: a log of llama.cpp; required: --from llamacpp")
        if "token" not in self.at and any(normal(name) in KNOWN["count"] for name in self.header):
            raise TraceError(f"{where}: {listed(self.header)}: uses are counted here; required: --from counts-csv")
        if "layer" in self.at and ("experts" in self.at or self.experts):
            return
        what = "experts (or one for each: e0, e1, ...)" if "layer" in self.at else "layer"
        name = "expert" if "layer" in self.at else "layer"
        hint = f"its columns are {listed(self.header)}; required: {what} by a known name, or --columns {name}=NAME"
        raise TraceError(f"{where} has no column {name}; {hint}")

    def _cells(self, looked: Sequence[tuple[int, list[str]]], field: str) -> list[str]:
        """What the first lines have in a column."""
        if field not in self.at:
            return []
        i = self.header.index(self.at[field])
        return [row[i].strip() for _, row in looked if i < len(row)]

    def _lists(self, looked: Sequence[tuple[int, list[str]]]) -> bool:
        found = self._cells(looked, "experts")
        return any(not INTEGER.fullmatch(text) and LIST.fullmatch(text) for text in found if text)

    def _texts(self, looked: Sequence[tuple[int, list[str]]]) -> bool:
        found = self._cells(looked, "token")
        return 2 * sum(not INTEGER.fullmatch(text) for text in found) > len(found) and "rank" not in self.at

    def cell(self, line: int, row: list[str]) -> Cell:
        """A line's cell. Raises TraceError that names line, column and value."""
        where = f"{self.path}: line {line}"
        if len(row) != len(self.header):
            raise TraceError(f"{where} has {len(row)} fields; line {self.line} has {len(self.header)}")
        text = {field: row[self.place[name]].strip() for field, name in self.at.items()}
        number = {f: integer(self.at[f], text[f], 0, MOST[f], where) for f in ("token", "layer", "rank") if f in text}
        experts = self._experts(row, text, where)
        return Cell(
            line, where, number["layer"], experts, self._weights(row, text, len(experts), where), number.get("token"),
            number.get("rank"), phase(text, where), text.get("sequence"), self._token_id(text, where),
        )  # fmt: skip

    def _experts(self, row: list[str], text: Mapping[str, str], where: str) -> tuple[int, ...]:
        if self.single:
            return (integer(self.at["experts"], text["experts"], -1, self.n_experts - 1, where),)
        if self.experts:
            found = [row[self.place[name]].strip() for name in self.experts]
            pairs = zip(self.experts, found, strict=True)
            return tuple(integer(n, t, -1, self.n_experts - 1, where) if t else -1 for n, t in pairs)
        name = self.at["experts"]
        return tuple(integer(name, t, -1, self.n_experts - 1, where) for t in _split(text["experts"], name, where))

    def _weights(self, row: list[str], text: Mapping[str, str], many: int, where: str) -> tuple[float, ...] | None:
        if "weights" not in self.at:
            return None
        if self.weights:
            found = [row[self.place[name]].strip() or "0" for name in self.weights]
        else:
            found = [text["weights"]] if self.single else text["weights"].strip("[]() ").replace(",", " ").split()
        if len(found) != many:
            raise TraceError(f"{where}: {self.at['weights']} has {len(found)} numbers; {many} experts are there")
        return tuple(_weight(self.at["weights"], weight, where) for weight in found)

    def _token_id(self, text: Mapping[str, str], where: str) -> int:
        return integer("token_id", text["token_id"], 0, 10**9, where) if text.get("token_id") else -1


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A csv reader over `path`, comments (lines that begin with #) being empty lines; what the system, decoder or csv
    module refuse is a TraceError."""
    refuse_irregular(path, "a CSV file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_lines(path, file), strict=True)
            yield reader
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not UTF-8 text; a CSV file is required") from error
    except csv.Error as error:
        raise TraceError(f"{path}: line {reader.line_num}: {error}") from error


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    """Lines, of which none is so long that it is no log's; comments as empty ones."""
    for line in iter(lambda: file.readline(MOST_LINE_BYTES + 1), ""):
        if len(line) > MOST_LINE_BYTES:
            raise TraceError(f"{path}: a line of over {MOST_LINE_BYTES} characters; a CSV file is required")
        yield "\n" if line.startswith("#") else line


def phase(found: Mapping[str, Any], where: str) -> int:
    """1, 0 or NOT_SAID, of a record's phase or of its flag prefill. Raises TraceError for another word."""
    word = found.get("phase")
    if word not in (None, ""):
        known = PHASES | ALSO
        if not isinstance(word, str) or word.lower() not in known:
            raise TraceError(f"{where}: phase = {ascii(word)[:40]}; one of {', '.join(PHASES)} is required")
        return known[word.lower()]
    word = found.get("prefill")
    if word is None:
        return NOT_SAID
    if str(word).lower() not in YES:
        raise TraceError(f"{where}: prefill = {ascii(word)[:40]}; true or false is required")
    return YES[str(word).lower()]


def _split(text: str, name: str, where: str) -> list[str]:
    """The ids of a cell: "[8, 26]", "8 26", "8;26"."""
    inside = LIST.fullmatch(text)
    if inside is None:
        raise TraceError(f"{where}: {name} = {text[:40]!r}; a list of expert ids such as [8, 26] is required")
    return [part for part in re.split(r"[,;|\s]+", "".join(filter(None, inside.groups()))) if part]


def integer(name: str, text: str, least: int, most: int, where: str) -> int:
    """The number of a field. Raises TraceError where it is none in that range."""
    if not INTEGER.fullmatch(text) or not least <= int(text) <= most:
        raise TraceError(f"{where}: {name} = {text[:40]!r}; an integer from {least} to {most} is required")
    return int(text)


def _weight(name: str, text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= float(np.finfo(np.float32).max):  # false for NaN too
        raise TraceError(f"{where}: {name} = {text[:40]!r}; a finite number >= 0 is required")
    return weight


READER = Reader(
    "csv", read, detect, "a line per token, layer and slot (or list of slots), columns by name", (*PASSES, "columns")
)
