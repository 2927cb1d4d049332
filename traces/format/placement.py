"""First residents that the simulator chose, as a file: what `python -m sim.placement` writes and writers read.

A `.npz` of the traces' family with `residents` int64 [n], global ids (MoE layer * experts + expert) in the order in
which they land, the most valuable of a layer last, and `meta`: kind "placement", format_version 1, model, n_experts,
n_layers, moe_layers, and how it was chosen.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.format import npz
from traces.format.layout import MAX_EXPERTS, ascending, is_int

KIND, VERSION = "placement", 1
Int = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Placement:
    """residents int64 [n] and meta, as the module says."""

    residents: Int
    meta: dict[str, Any]

    def by_layer(self) -> list[list[int]]:
        """Resident experts of each MoE layer, the most valuable (the last to land) first."""
        n = self.meta["n_experts"]
        lists: list[list[int]] = [[] for _ in self.meta["moe_layers"]]
        for place in self.residents[::-1].tolist():
            lists[place // n].append(place % n)
        return lists


def read(path: Path) -> Placement:
    """The placement of a file, checked. Raises TraceError, one line."""
    right = f"{KIND} of version {VERSION}"
    meta, residents = npz.read_relative(path, KIND, "a placement", right, "residents", np.int64, "[n]")
    if meta.get("format_version") != VERSION:
        raise TraceError(f"{path}: meta.kind is {KIND!r}; {right} is required")
    placement = Placement(residents, meta)
    _check(placement, str(path))
    return placement


def _check(placement: Placement, name: str) -> None:
    meta, residents = placement.meta, placement.residents
    layers: Any = meta.get("moe_layers")
    counts = [meta.get(key) for key in ("n_experts", "n_layers")]
    if not all(is_int(count) and 1 <= count <= MAX_EXPERTS for count in counts):
        raise TraceError(f"{name}: meta.n_experts and n_layers are {ascii(counts)[:60]}; integers from 1 are required")
    if not ascending(layers) or not layers or layers[0] < 0 or layers[-1] >= meta["n_layers"]:
        raise TraceError(f"{name}: meta.moe_layers is {ascii(layers)[:60]}; ascending layer indices are required")
    total = len(layers) * meta["n_experts"]
    if ((residents < 0) | (residents >= total)).any() or np.unique(residents).size < len(residents):
        raise TraceError(f"{name}: residents has an id outside [0, {total}), or one twice")


def write(path: Path, placement: Placement) -> None:
    """Write a placement, whole or not at all."""
    _check(placement, str(path))
    npz.write_arrays(path, placement.meta, {"residents": placement.residents})
