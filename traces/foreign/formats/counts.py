"""Counts of uses per layer and expert, in text: `layer,expert,count` CSV, the same with a column per expert, and JSON.

    layer,expert,count        layer,e0,e1,e2,...        {"0": {"3": 1482, ...}, ...} or {"0": [12, 0, ...], ...}

Columns go by any of the names of traces.foreign.columns, or `--columns` says which is which; others are ignored. Lines
that begin with # are comments; the header may be one of them; a `total` line in the end is compared with the sum.
Pairs that are not listed were not used: 0. Lines of expert -1 count a shared expert: left out, counted.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from traces.command import replace
from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.columns import KNOWN, find, listed, normal, numbered
from traces.foreign.counting import counts_of, of_layers
from traces.foreign.format import COUNTED, SHAPE, Reader, Writer
from traces.foreign.formats import csv
from traces.foreign.json_lines import BOM, small_json
from traces.foreign.long_rows import INTEGER
from traces.format.layout import MAX_EXPERTS, Array, is_int
from traces.format.limits import MOST_COUNTS_BYTES, MOST_LAYERS
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace

FIELDS = ("layer", "experts", "count")
HEADER = "layer,expert,count"
TOTAL = re.compile(r"#?\s*total\b[^0-9]*([0-9]+(?:\.[0-9]+)?)\D*", re.ASCII | re.IGNORECASE)
PLACES = ("e", "expert", "expertid", "")
LOOK_BYTES = 8 << 20  # of counts, to tell the format: a model of 100 layers of 512 experts has a tenth
NOTHING = "counts nothing"
WRAPPED = frozenset(("counts", "expertcounts", "layers", "activations", "frequencies", "usage", "profile"))


def detect(path: Path) -> bool:
    """Whether its first line names a layer and experts (or an expert per column) and counts, and no token."""
    try:
        header = _header(path)
    except TraceError:
        return False
    known = {field for field in KNOWN if any(normal(name) in KNOWN[field] for name in header)}
    if "layer" not in known or "token" in known or "rank" in known:
        return False
    return {"experts", "count"} <= known or len(numbered(header, *PLACES)) > 1


def _header(path: Path) -> list[str]:
    """The names that the first line has, be it a comment. Raises TraceError where the file is no text."""
    header = csv.names(path)
    if header and not all(INTEGER.fullmatch(name) for name in header):
        return header
    with path.open(encoding="utf-8-sig") as file:
        comments = [line.strip("# \t\r\n").split(",") for line in _comments(file)]
    named = [c for c in comments if any(normal(name) in KNOWN["layer"] for name in c)]
    return [name.strip() for name in named[-1]] if named else header


def _comments(file: Any) -> Iterator[str]:
    """Comment lines before the first other one."""
    for line in file:
        if line.strip():
            if not line.startswith("#"):
                return
            yield line


def read(path: Path, ask: Ask) -> Profile:
    """The profile of a CSV of counts. Raises TraceError, one line with the line at fault: for a pair that is there
    twice, and for what is no count."""
    header = _header(path)
    where = f"{path}: line 1"
    at = find(header, ask.asked("columns"), where, FIELDS)
    table = _Table(path, ask)
    wide = [] if {"experts", "count"} <= at.keys() else numbered(header, *PLACES)
    missing = [field for field in FIELDS if field not in at and not (wide and field != "layer")]
    if missing:
        wrong = f"no column {missing[0]}; its columns are {listed(header)}"
        raise TraceError(f"{where} has {wrong}; required: {HEADER}, or --columns {missing[0]}=NAME")
    for line, row in csv.rows(path):
        if [name.strip() for name in row] != header:
            table.line(line, row, header, at, wide)
    return table.profile(_total(path))


class _Table:
    """Counts by layer, as lines bring them."""

    def __init__(self, path: Path, ask: Ask) -> None:
        self.path, self.ask = path, ask
        self.counts: dict[int, Array] = {}
        self.seen: dict[int, Array] = {}
        self.dropped: Counter[str] = Counter()
        self.shared = 0.0
        self.total: float | None = None

    def line(self, number: int, row: list[str], header: list[str], at: dict[str, str], wide: list[str]) -> None:
        where = f"{self.path}: line {number}"
        if row[0].strip().lower() == "total":
            last = TOTAL.fullmatch(" ".join(row))
            self.total = float(last[1]) if last else None
            return
        if len(row) != len(header):
            raise TraceError(f"{where} has {len(row)} fields; its header has {len(header)}")
        value = dict(zip(header, (text.strip() for text in row), strict=True))
        layer = csv.integer(at["layer"], value[at["layer"]], 0, MOST_LAYERS - 1, where)
        if wide:
            for expert, name in enumerate(wide):
                self.add(layer, expert, value[name], name, where, len(wide))
            return
        n = self.ask.n_experts(self.path)
        expert = csv.integer(at["experts"], value[at["experts"]], -1, n - 1, where)
        self.add(layer, expert, value[at["count"]], at["count"], where, n)

    def add(self, layer: int, expert: int, text: str, name: str, where: str, n: int) -> None:
        count = _count(text, name, where)
        if expert < 0:
            self.dropped["lines of expert -1 (a shared expert)"] += 1
            self.shared += count
            return
        if layer not in self.counts:
            self.counts[layer], self.seen[layer] = np.zeros(n), np.zeros(n, np.bool_)
        if self.seen[layer][expert]:
            raise TraceError(f"{where}: layer {layer}, expert {expert} is there already; a pair has one line")
        self.counts[layer][expert], self.seen[layer][expert] = count, True

    def profile(self, total: float | None) -> Profile:
        """total: what the file says that its counts add up to."""
        if not self.counts:
            raise TraceError(f"{self.path}: {NOTHING}; a profile needs at least one line of {HEADER}")
        meta: dict[str, Any] = {"dropped": dict(self.dropped)} if self.dropped else {}
        total, found = total if total is not None else self.total, sum(float(c.sum()) for c in self.counts.values())
        if total is not None and not any(math.isclose(total, sum_) for sum_ in (found, found + self.shared)):
            wrong = f"the counts add up to {found:,.10g}; its total says {total:,.10g}: cut short, or of something else"
            meta["doubts"] = [wrong]
        return of_layers(self.path, self.counts, self.ask, tool="counts-csv", **meta)


def _total(path: Path) -> float | None:
    """What a comment `# total` says, the last of them."""
    found = None
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if line.startswith("#") and (last := TOTAL.fullmatch(line.strip())):
                found = float(last[1])
    return found


def _count(text: str, name: str, where: str) -> float:
    try:
        count = float(text)
    except ValueError:
        count = math.nan
    if not 0 <= count < math.inf:
        raise TraceError(f"{where}: {name} = {text[:40]!r}; a number of uses, finite and >= 0, is required")
    return count


# --- JSON ---


def _first_layer(value: object) -> object:
    """What a JSON value has for its first layer, None where it is no object by layers."""
    if isinstance(value, dict) and value and all(INTEGER.fullmatch(_layer(key)) for key in value):
        return next(iter(value.values()))
    return None


def _layer(key: str) -> str:
    """`layer_3` as `3`."""
    return re.sub(r"^(layer|blk|block)[\s_.-]*", "", key.strip().lower())


def _expert(key: str) -> str:
    return re.sub(r"^(expert|e)[\s_.-]*", "", key.strip().lower())


def _by_layer(value: Any) -> dict[str, Any] | None:
    """The object by layers that a JSON value is, or has under a word such as counts."""
    if isinstance(value, dict) and _first_layer(value) is None:
        inner = [v for key, v in value.items() if normal(key) in WRAPPED and _first_layer(v) is not None]
        value = inner[0] if len(inner) == 1 else None
    return value if isinstance(value, dict) else None


def detect_json(path: Path) -> bool:
    """Whether it is one object by layers: of numbers by expert, or of lists of numbers."""
    try:
        with path.open("rb") as file:
            if file.read(64).removeprefix(BOM).lstrip()[:1] != b"{":
                return False
        layers = _by_layer(small_json(path, LOOK_BYTES))
    except (OSError, ValueError):
        return False
    first = _first_layer(layers)
    values = list(first.values()) if isinstance(first, dict) else first
    if not isinstance(values, list) or not values:
        return False
    if isinstance(first, dict) and not all(INTEGER.fullmatch(_expert(key)) for key in first):
        return False
    return all(is_int(value) or isinstance(value, float) for value in values)


def read_json(path: Path, ask: Ask) -> Profile:
    """The profile of a JSON object by layers. Raises TraceError, one line that names layer and expert."""
    layers = _by_layer(small_json(path, MOST_COUNTS_BYTES))
    if layers is None or not layers:
        wrong = "no object by layers"
        raise TraceError(f"{path}: {wrong}; {{layer: {{expert: count}}}} or {{layer: [counts]}} is required")
    table = _Table(path, ask)
    for key, of in layers.items():
        where = f"{path}: layer {ascii(key)[1:-1][:40]}"
        layer = csv.integer("layer", _layer(key), 0, MOST_LAYERS - 1, where)
        if not isinstance(of, list | dict):
            raise TraceError(f"{where} has {ascii(of)[:40]}; {{expert: count}} or a list of counts is required")
        n = len(of) if isinstance(of, list) else ask.n_experts(path)
        if n > MAX_EXPERTS:
            raise TraceError(f"{where} has {n} counts; at most {MAX_EXPERTS} are read")
        for name, value in of.items() if isinstance(of, dict) else enumerate(of):
            expert = name if isinstance(name, int) else csv.integer("expert", _expert(name), -1, n - 1, where)
            text = "nothing" if isinstance(value, bool) or not isinstance(value, int | float) else repr(value)
            table.add(layer, expert, text, f"expert {expert}", where, n)
    widths = {len(counts) for counts in table.counts.values()}
    if len(widths) > 1:
        raise TraceError(f"{path}: layers of {min(widths)} and of {max(widths)} counts; as many each are required")
    return table.profile(None)


def write(source: RoutingTrace | Profile, out: Path) -> str:
    """A line for every expert of every MoE layer, used or not. Returns what was written."""
    if out.suffix != ".csv":
        raise TraceError(f"{out}: {HEADER} lines are a .csv")
    counts, profile = counts_of(source)
    lines = [HEADER]
    for layer, row in zip(profile.meta["moe_layers"], counts.tolist(), strict=True):
        lines += [f"{layer},{expert},{count!r}" for expert, count in enumerate(row)]
    replace(out, lambda file: file.write(("\n".join(lines) + "\n").encode("ascii")))
    return f"{len(lines) - 1:,} lines of {HEADER}"


READER = Reader("counts-csv", read, detect, f"counts of uses: {HEADER}, or a column per expert", (*SHAPE, "columns"))
READER_JSON = Reader("counts-json", read_json, detect_json, "counts of uses: {layer: {expert: count}} or lists")
WRITER = Writer("counts-csv", write, f"{HEADER} lines: .csv", COUNTED)
