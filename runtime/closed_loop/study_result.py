"""The study's result as kept: one file per model, closed_loop_<model>.json, which page and tables are made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any

from runtime.closed_loop.quality import Sums
from runtime.closed_loop.study_statistics import RISE, Study
from traces.command import write_bytes
from traces.errors import UserError

NAME = "closed_loop"
OF_RESULT = {
    "": ("model", "command", "version", "settings", "text", "calibration_tokens", "seconds", "rows"),
    "text": ("source", "windows", "length", "predicted_bytes", "files"),
    "settings": ("hardware", "charge", "precision", "engine", "eviction", "seed"),
}
OF_TEXT: dict[str, tuple[str, ...]] = {  # what was run on it
    "": ("shares", "speed", "counts", "open_loop"),
    "speed": ("time_ns_per_token", "h2d_bytes_per_token"),
    "counts": ("hits", "misses"),
    "open_loop": ("time_ns_per_token", "h2d_bytes_per_token", "counts"),
    "open_loop.counts": ("wanted", "hits", "misses", "substituted", "dropped"),
}
OF_ROW = {
    **OF_TEXT,
    "": ("cache", "arm", "group", "of", "seed", "miss", "rerank", "sums", "tasks", *OF_TEXT[""]),
    "sums": tuple(field.name for field in fields(Sums)),
    "shares": ("substituted_slots", "dropped_slots", "reranked_slots", "substituted_weight", "dropped_weight"),
}
OF_TASK = ("items", "base_right", "right")


def file_name(model: str) -> str:
    """closed_loop_<model>, without an ending; of a folder the last part."""
    return f"{NAME}_{Path(model).name}"


def keep(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write the result, whole or not at all; each row is given `quality`, the rise of bits per byte of its arm (over
    its seeds) as [value, low, high] in %, for who reads rows alone (`sim.search.measured_quality`). Raises UserError,
    one line, for what `read` would refuse."""
    path = folder / f"{file_name(str(result.get('model')))}.json"
    study, rows = Study(_checked(path, result)), []
    for row in result["rows"]:
        rise = study.rises[float(row["cache"]), row["arm"]]
        rows.append({**row, "quality": {RISE: [rise.value, *rise.wider()]}})
    folder.mkdir(parents=True, exist_ok=True)
    about = json.dumps({name: value for name, value in result.items() if name != "rows"}, indent=1)
    lines = ",\n  ".join(map(json.dumps, rows))  # a line each: they are long
    write_bytes(path, f'{about[:-2]},\n "rows": [\n  {lines}\n ]\n}}\n'.encode())
    return path


def read(folder: Path) -> list[Study]:
    """All results in a folder, by the models' names. Raises UserError, one line, where there is none or one is bad."""
    paths = sorted(folder.glob(f"{NAME}_*.json"))
    if not paths:
        raise UserError(f"{folder}: holds no {NAME}_*.json; `python -m runtime.study --out {folder}` writes one")
    return sorted((Study(_checked(path, _read(path))) for path in paths), key=lambda study: study.model)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); a result of runtime.study is required") from None


def _checked(path: Path, result: Any) -> Any:
    """The result, which is or goes to that file. Raises UserError with the first thing that is wrong."""
    for wrong in _wrong(result):
        raise UserError(f"{path}: {wrong}")
    return result


def _wrong(result: Any) -> list[str]:
    """What is wrong with a result, and what would be right; the first is what matters."""
    out = _lacking(result, OF_RESULT)
    if out:
        return out
    rows, files = result["rows"], len(result["text"]["files"])
    for i, row in enumerate(rows):
        elsewhere = [f"elsewhere.{each}" for each in _lacking(row["elsewhere"], OF_TEXT)] if "elsewhere" in row else []
        out += [f"rows[{i}].{each}" for each in _lacking(row, OF_ROW) or elsewhere or _wrong_sums(row, files)]
    return out or _wrong_arms(rows)


def _lacking(found: Any, wanted: Mapping[str, Sequence[str]]) -> list[str]:
    """Which of the wanted fields are not there; wanted: by the object that holds them, the outermost first."""
    for name, fields_ in wanted.items():
        part = reduce(lambda inner, key: inner[key], name.split("."), found) if name else found
        lacks = [field for field in fields_ if not isinstance(part, dict) or field not in part]
        if lacks:
            where = f"{name}.{lacks[0]}" if name else lacks[0]
            return [f"{where}: is not there; a result of runtime.study is required"]
    return []


def _wrong_sums(row: Mapping[str, Any], files: int) -> list[str]:
    """Which sums are not one number of each file."""
    parts = {f"tasks.{task}": {name: sums.get(name) for name in OF_TASK} for task, sums in row["tasks"].items()}
    return [
        f"{part}.{name}: {files} numbers are required, one of each of text.files"
        for part, sums in {"sums": row["sums"], **parts}.items()
        for name, found in sums.items()
        if not isinstance(found, list) or len(found) != files or not all(isinstance(x, int | float) for x in found)
    ]


def _wrong_arms(rows: Sequence[Any]) -> list[str]:
    """Arms that are there twice, capacities without fetch, controls of nobody."""
    there = Counter((row["cache"], row["arm"], row["seed"]) for row in rows)
    names, caches = {(row["cache"], row["arm"]) for row in rows}, dict.fromkeys(row["cache"] for row in rows)
    twice = [f"rows: {arm!r} at {cache} with seed {seed} is there {n} times; once is required"
             for (cache, arm, seed), n in there.items() if n > 1]  # fmt: skip
    alone = [f"rows: no arm 'fetch' at {cache}; it is required, others are measured by it"
             for cache in caches or ["any capacity"] if (cache, "fetch") not in names]  # fmt: skip
    lost = [
        f"rows[{i}].of: no arm {row['of']!r} at {row['cache']}; an arm's name there or null is required"
        for i, row in enumerate(rows)
        if row["of"] is not None and (row["cache"], row["of"]) not in names
    ]
    return twice + alone + lost
