"""SGLang's expert counts: recorder mode `stat` ({rank, logical_count [steps, layers, E]}), `per_pass` dumps (physical
counts per pass, mapped to logical ids here), and initial expert locations ({"logical_count"} as `.pt` or JSON).

Such a location (--init-expert-location) is what is written, and KTransformers takes it for its frequency strategy too.
From counts: {"logical_count": [layers, experts]}. From a placement: {"physical_to_logical_map": [layers, experts]},
in which the residents stand first, the most valuable before the others, then the rest by id. Both have a row for every
layer of the model; those of dense layers are zeros, or the ids in order.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from traces.command import write_bytes
from traces.errors import TraceError
from traces.foreign import torch_file
from traces.foreign.ask import Ask
from traces.foreign.counting import counts_of, of_axis
from traces.foreign.format import COUNTED, Reader, Writer
from traces.foreign.formats.sglang_recorder import COUNTS, IDS, MAP, RECORDS, parts
from traces.foreign.json_lines import first_object, small_json
from traces.format.layout import Array
from traces.format.limits import MOST_COUNTS_BYTES
from traces.format.members import refusing
from traces.format.placement import Placement
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace

COUNT, PHYSICAL_MAP = "logical_count", "physical_to_logical_map"


def detect(path: Path) -> bool:
    """Whether it is a `.pt` or JSON file with logical counts, or passes without ids per token."""
    words = torch_file.words(path)
    by_pass = RECORDS.encode() in words and COUNTS.encode() in words and IDS.encode() not in words
    return by_pass or COUNT.encode() in words or COUNT in first_object(path)


def read(path: Path, ask: Ask) -> Profile:
    """The profile over all steps of the file. Raises TraceError, one line."""
    if path.is_file() and torch_file.words(path) == b"" and (path.suffix == ".json" or first_object(path)):
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
    value = small_json(path, MOST_COUNTS_BYTES, "; counts of all experts are far smaller")
    counts = value.get(COUNT) if isinstance(value, dict) else None
    if not isinstance(counts, list):
        raise TraceError(f"{path}: no {COUNT}; counts [layers, experts] or [steps, layers, experts] are required")
    with refusing(f"{path}: {COUNT}"):
        array = np.array(counts)
    if array.dtype.kind not in "iuf" or array.ndim not in (2, 3):
        raise TraceError(f"{path}: {COUNT} is {array.dtype.name} {list(array.shape)}; [layers, experts] is required")
    return array


def write(source: RoutingTrace | Profile | Placement, out: Path) -> str:
    """An initial expert location, `.pt` or `.json`. Returns what was written."""
    if isinstance(source, Placement):
        key, array = PHYSICAL_MAP, _map(source)
    else:
        key, array = COUNT, _counts(source)
    if out.suffix == ".pt":
        torch_file.save(out, {key: array})
    elif out.suffix == ".json":
        write_bytes(out, json.dumps({key: array.tolist()}).encode())
    else:
        raise TraceError(f"{out}: an initial expert location is a .pt or a .json")
    return f"{key} {list(array.shape)} [layers, experts]"


def _counts(source: RoutingTrace | Profile) -> Array:
    counts, profile = counts_of(source)
    layers = profile.meta["moe_layers"]
    array = np.zeros((profile.meta.get("n_layers", layers[-1] + 1), counts.shape[1]), counts.dtype)
    array[layers] = counts
    return array


def _map(placement: Placement) -> Array:
    n = placement.meta["n_experts"]
    array = np.tile(np.arange(n), (placement.meta["n_layers"], 1))
    for layer, residents in zip(placement.meta["moe_layers"], placement.by_layer(), strict=True):
        array[layer] = residents + sorted(set(range(n)) - set(residents))
    return array


READER = Reader("sglang-stat", read, detect, "SGLang recorder stat and per_pass, initial expert location")
WRITER = Writer(
    "sglang",
    write,
    "SGLang's and KTransformers' initial expert location: .pt or .json",
    (*COUNTED, Placement),
)
