"""SGLang's expert counts: recorder mode `stat` ({rank, logical_count [steps, layers, E]}), `per_pass` dumps (physical
counts per pass, mapped to logical ids here), and initial expert locations ({"logical_count"} as `.pt` or JSON)."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign import torch_file
from traces.foreign.ask import Ask
from traces.foreign.counting import of_axis
from traces.foreign.formats.sglang_recorder import COUNTS, IDS, MAP, RECORDS, parts
from traces.foreign.json_lines import first_object
from traces.foreign.spill import Array
from traces.format.members import refusing
from traces.format.profile import Profile

COUNT, PHYSICAL_MAP = "logical_count", "physical_to_logical_map"
MOST_JSON_BYTES = 64 << 20


def detect(path: Path) -> bool:
    """Whether it is a `.pt` or JSON file with logical counts, or passes without ids per token."""
    if not path.is_file():
        return False
    words = torch_file.words(path)
    by_pass = RECORDS.encode() in words and COUNTS.encode() in words and IDS.encode() not in words
    return by_pass or COUNT.encode() in words or COUNT in (first_object(path) or {})


def read(path: Path, ask: Ask) -> Profile:
    """The profile over all steps of the file. Raises TraceError, one line."""
    if path.is_file() and torch_file.words(path) == b"" and (path.suffix == ".json" or first_object(path) is not None):
        counts, layout = _from_json(path), "initial expert location"
    else:
        counts, layout = _from_dump(torch_file.load(path), path)
    while counts.ndim > 2:
        counts = counts.astype(np.float64).sum(axis=0)
    return of_axis(path, counts, ask, COUNT, tool="sglang", layout=layout)


def _from_dump(dump: Any, path: Path) -> tuple[Array, str]:
    if isinstance(dump, dict) and COUNT in dump:
        value = dump[COUNT]
        dims = 2 if getattr(value, "ndim", 0) == 2 else 3
        return torch_file.array(value, COUNT, path, dims, "iuf"), "stat"
    records, physical = parts(dump, path)
    if physical.size == 0 or int(physical.min()) < 0 or int(physical.max()) >= physical.shape[1]:
        found = f"{MAP} {list(physical.shape)}"
        raise TraceError(f"{path}: {found} is no map: each physical expert is one of at most as many logical ones")
    total = np.zeros((len(physical), int(physical.max()) + 1), np.int64)
    layer = np.arange(len(physical))[:, None]
    for i, record in enumerate(records):
        counts = torch_file.array(record.get(COUNTS), f"{RECORDS}[{i}]: {COUNTS}", path, 2)
        if counts.shape != physical.shape:
            found = f"shape {list(counts.shape)}, the map {list(physical.shape)}"
            raise TraceError(f"{path}: {RECORDS}[{i}]: {COUNTS} has {found}; they must be alike")
        np.add.at(total, (layer, physical), counts)
    return total, "per_pass"


def _from_json(path: Path) -> Array:
    with refusing(f"{path}: not JSON"):
        if path.stat().st_size > MOST_JSON_BYTES:
            raise TraceError(f"{path}: more than {MOST_JSON_BYTES} bytes; counts of all experts are far smaller")
        value = json.loads(path.read_bytes())
    counts = value.get(COUNT) if isinstance(value, dict) else None
    if not isinstance(counts, list):
        raise TraceError(f"{path}: no {COUNT}; counts [layers, experts] or [steps, layers, experts] are required")
    with refusing(f"{path}: {COUNT}"):
        array = np.array(counts)
    if array.dtype.kind not in "iuf" or array.ndim not in (2, 3):
        raise TraceError(f"{path}: {COUNT} is {array.dtype.name} {list(array.shape)}; [layers, experts] is required")
    return array
