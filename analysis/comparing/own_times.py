"""Times that somebody measured of an engine: of steps, tokens or requests, or the few figures that an engine prints.

A CSV file with a column `ms` (or ns, us, s) and one or two of `step` (of the whole run, from 0), `token` (decode
steps, from 0; with `request` of that request) and `request` (from its admission to its last token); or only the times,
or a number of ms a line, of one decode step after another; or columns `metric` and `value` (FIGURES); or what
llama.cpp prints of itself ("eval time = ... ms per token"; llama-bench's table, pp512 and tg128), or the
JSON object of `vllm bench serve --save-result`.
It may have been written by anybody: what is used is checked.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.reading.csv_rows import number_in, rows_of
from sim.timings.rows import DECODE, MS, PREFILL
from traces.command import one_of
from traces.errors import UserError

UNITS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}  # in ms
PLACES = ("step", "token", "request")
SPREADS = ("ttft", "tpot", "itl")
OF_SPREAD = ("mean", "p50", "p95", "p99")
FIGURES = (DECODE, PREFILL, MS, *(f"{name} {of} ms" for name in SPREADS for of in OF_SPREAD))
VLLM = {"mean": "mean", "median": "p50", "p95": "p95", "p99": "p99"}
LLAMA = re.compile(
    r"(prompt )?eval time =\s*[\d.]+ ms /\s*(\d+) (?:tokens|runs)\s*\(\s*([\d.]+) ms per token", re.ASCII
)
BENCH = re.compile(r"\|\s*(pp|tg)\d+[^|+]*\|\s*([\d.]+)\s*±", re.ASCII)  # | pp512 | 80.21 ± 0.50 | of llama-bench
LEAST_MS, MOST_MS, MOST = 1e-6, 1e9, 2**31 - 1

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OwnTimes:
    """ms float64 [n] of what `places` name, int64 [n] each (step; token; request and token; request); or `figures`,
    each of FIGURES with its value, and then n is 0."""

    source: str
    ms: Float
    places: Mapping[str, Int] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


def read(path: str) -> OwnTimes:
    """What a file holds. Raises UserError, one line that names file, line, column and value."""
    text = _text(path)
    if text.lstrip().startswith("{"):
        return OwnTimes(path, np.zeros(0), figures=_vllm(path, text))
    if found := LLAMA.findall(text):
        return OwnTimes(path, np.zeros(0), figures=_llama(found))
    if table := BENCH.findall(text):
        rates = {PREFILL if test == "pp" else DECODE: float(rate) for test, rate in table}
        if len(rates) < len(table):
            raise UserError(f"{path}: several rows of pp or of tg; leave the one of each that the run is like")
        return OwnTimes(path, np.zeros(0), figures=rates)
    numbers = _numbers(text)
    if numbers is not None:
        return _times(path, [(line, {"ms": ms}) for line, ms in numbers])
    rows = rows_of(path)
    if not rows:
        raise UserError(f"{path}: no rows; needs a line of column names, such as token,ms, and a line per time")
    return _figures(path, rows) if "metric" in rows[0][1] else _times(path, rows)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _numbers(text: str) -> list[tuple[int, str]] | None:
    """(line, number) of a file of nothing else."""
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    try:
        return lines if lines and all(math.isfinite(float(word)) for _, word in lines) else None
    except ValueError:
        return None


def _times(path: str, rows: Sequence[tuple[int, dict[str, str]]]) -> OwnTimes:
    columns = [name for name in rows[0][1] if name is not None]
    unit, places = [name for name in columns if name in UNITS], [name for name in PLACES if name in columns]
    if len(unit) != 1:
        raise UserError(f"{path}: columns {', '.join(columns)}: needs one of {', '.join(UNITS)}, the times")
    if "step" in places and len(places) > 1:
        raise UserError(f"{path}: columns {', '.join(columns)}: needs step, token, request, or request and token")
    ms = [_number(path, line, unit[0], row, LEAST_MS / UNITS[unit[0]], MOST_MS / UNITS[unit[0]]) for line, row in rows]
    found = {name: [_whole(path, line, name, row) for line, row in rows] for name in places}
    found = found or {"token": list(range(len(ms)))}
    keys = list(zip(*found.values(), strict=True))
    first: dict[tuple[int, ...], int] = {}
    for (line, _), key in zip(rows, keys, strict=True):
        if first.setdefault(key, line) != line:
            raise UserError(f"{path}: line {line}: {', '.join(places)} {key}: is on line {first[key]}, too")
    return OwnTimes(
        path, np.array(ms) * UNITS[unit[0]], {name: np.array(each, np.int64) for name, each in found.items()}
    )


def _number(path: str, line: int, name: str, row: Mapping[str, str], least: float, most: float) -> float:
    if row.get(name) is None:
        raise UserError(f"{path}: line {line}: has not as many columns as the first line")
    return number_in(f"{path}: line {line}: {name}", row[name], least, most)


def _whole(path: str, line: int, name: str, row: Mapping[str, str]) -> int:
    found = _number(path, line, name, row, 0, MOST)
    if found != int(found):
        raise UserError(f"{path}: line {line}: {name} = {row[name]!r}: must be a whole number from 0")
    return int(found)


def _figures(path: str, rows: Sequence[tuple[int, dict[str, str]]]) -> OwnTimes:
    out: dict[str, float] = {}
    for line, row in rows:
        try:
            name = one_of("metric", (row.get("metric") or DECODE).strip(), FIGURES)
        except UserError as error:
            raise UserError(f"{path}: line {line}: {error}") from None
        if name in out:
            raise UserError(f"{path}: line {line}: metric = {name!r}: is there twice; of several runs give the median")
        out[name] = _number(path, line, "value", row, LEAST_MS, MOST_MS)
    return OwnTimes(path, np.zeros(0), figures=out)


def _llama(found: Sequence[tuple[str, str, str]]) -> dict[str, float]:
    """The last that it printed of each phase."""
    return {PREFILL if prompt else MS: 1e3 / float(ms) if prompt else float(ms) for prompt, _, ms in found}


def _vllm(path: str, text: str) -> dict[str, float]:
    """mean_ttft_ms, median_tpot_ms, p99_itl_ms, ... of its result."""
    try:
        every: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON: {error}") from None
    keys = {f"{theirs}_{name}_ms": f"{name} {ours} ms" for name in SPREADS for theirs, ours in VLLM.items()}
    out = {ours: every[key] for key, ours in keys.items() if every.get(key)}
    for name, value in out.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST_MS <= value <= MOST_MS:
            raise UserError(f"{path}: {name} = {value!r}: must be a number of ms")
    if not out:
        raise UserError(f"{path}: has none of {', '.join(list(keys)[:3])}, ... as `vllm bench serve` saves them")
    return {name: float(value) for name, value in out.items()}
