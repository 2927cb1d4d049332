"""SGLang's initial expert location (--init-expert-location), which KTransformers takes for its frequency strategy too.

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
from traces.foreign.formats.sglang_stat import COUNT, PHYSICAL_MAP
from traces.foreign.spill import Array
from traces.format.placement import Placement
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace
from traces.writers.counted import counts_of


def write(source: RoutingTrace | Profile | Placement, out: Path) -> str:
    """`.pt` or `.json`. Returns what was written."""
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


def _all_layers(meta: dict[str, Any]) -> int:
    return int(meta.get("n_layers", meta["moe_layers"][-1] + 1))


def _counts(source: RoutingTrace | Profile) -> Array:
    counts, profile = counts_of(source)
    array = np.zeros((_all_layers(profile.meta), counts.shape[1]), counts.dtype)
    array[profile.meta["moe_layers"]] = counts
    return array


def _map(placement: Placement) -> Array:
    n = placement.meta["n_experts"]
    array = np.tile(np.arange(n), (_all_layers(placement.meta), 1))
    for layer, residents in zip(placement.meta["moe_layers"], placement.by_layer(), strict=True):
        array[layer] = residents + sorted(set(range(n)) - set(residents))
    return array
