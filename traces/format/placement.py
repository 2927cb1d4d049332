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
from traces.format.check import MAX_EXPERTS
from traces.format.members import find_members, load, open_zip
from traces.format.npz import read_meta

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


def is_placement(path: Path) -> bool:
    """Whether the file is a zip that holds residents: the look before `read`."""
    try:
        with open_zip(path) as archive:
            return "residents.npy" in {info.filename for info in archive.infolist()}
    except TraceError:
        return False


def read(path: Path) -> Placement:
    """The placement of a file, checked. Raises TraceError, one line."""
    with open_zip(path) as archive:
        members = find_members(archive, path, ("meta", "residents"))
        meta = read_meta(archive, path, members.get("meta"), "a placement")
        if meta.get("kind") != KIND or meta.get("format_version") != VERSION or "residents" not in members:
            raise TraceError(f"{path}: meta.kind is {ascii(meta.get('kind'))[:40]}; {KIND} of version 1 is required")
        member = members["residents"]
        if member.dtype != np.int64 or len(member.shape) != 1:
            raise TraceError(f"{path}: residents is {member.dtype.name} {list(member.shape)}; int64 [n] is required")
        placement = Placement(np.array(load(archive, path, "residents", member)), meta)
    _check(placement, str(path))
    return placement


def _check(placement: Placement, name: str) -> None:
    meta, residents = placement.meta, placement.residents
    layers, counts = meta.get("moe_layers"), [meta.get(key) for key in ("n_experts", "n_layers")]
    if not all(isinstance(c, int) and not isinstance(c, bool) and 1 <= c <= MAX_EXPERTS for c in counts):
        raise TraceError(f"{name}: meta.n_experts and n_layers are {ascii(counts)[:60]}; integers from 1 are required")
    good = isinstance(layers, list) and layers and all(isinstance(v, int) for v in layers)
    if not good or sorted(set(layers or [])) != layers or layers[0] < 0 or layers[-1] >= meta["n_layers"]:
        raise TraceError(f"{name}: meta.moe_layers is {ascii(layers)[:60]}; ascending layer indices are required")
    total = len(layers) * meta["n_experts"]
    if residents.size and (
        residents.min() < 0 or residents.max() >= total or np.unique(residents).size < len(residents)
    ):
        raise TraceError(f"{name}: residents has an id outside [0, {total}), or one twice")


def write(path: Path, placement: Placement) -> None:
    """Write a placement, whole or not at all."""
    _check(placement, str(path))
    npz.write_arrays(path, placement.meta, {"residents": placement.residents})
