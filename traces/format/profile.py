"""Frequency profile: how often each expert was used, for sources that count and do not trace.

A `.npz` of the traces' family (uncompressed, aligned, no objects) with

    counts  float64 [MoE layers, experts]   uses, finite and >= 0; a whole number unless the source had shares
    meta    JSON: kind "frequency-profile", format_version 1, model, n_experts, moe_layers, real; optional: top_k,
            n_layers, source, licence, tool, layout, id_space. Unknown keys are kept

It can place experts (`--placement profile`) and shape a synthetic trace (`python -m traces synth --like-profile`). It
cannot be replayed: it does not say which experts a token used together, nor in which order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.format import npz
from traces.format.layout import MAX_EXPERTS, ascending, is_int

KIND, VERSION = "frequency-profile", 1
Counts = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Profile:
    """counts float64 [L, E] and meta, as the module says. Building one checks nothing: see `validate`."""

    counts: Counts
    meta: dict[str, Any]

    @property
    def n_moe_layers(self) -> int:
        return int(self.counts.shape[0])

    @property
    def n_experts(self) -> int:
        return int(self.counts.shape[1])

    @property
    def model(self) -> str:
        return str(self.meta["model"])


def is_profile(path: Path) -> bool:
    """Whether a file holds counts and no experts: the look before `read`."""
    names = npz.array_names(path)
    return "counts" in names and "experts" not in names


def read(path: Path) -> Profile:
    """The profile of a file, checked. Raises TraceError, one line."""
    what, right = "a frequency profile", f"{KIND} with counts"
    meta, counts = npz.read_relative(path, KIND, what, right, "counts", np.float64, "[MoE layers, experts]")
    profile = Profile(counts, meta)
    validate(profile, str(path))
    return profile


def write(path: Path, profile: Profile) -> None:
    """Write a valid profile, whole or not at all. Raises TraceError for one that is not."""
    validate(profile, str(path))
    npz.write_arrays(path, profile.meta, {"counts": profile.counts})


def validate(profile: Profile, name: str) -> None:
    """Refuse wrong shapes, counts and meta with one line that begins with `name`."""
    counts, meta = profile.counts, profile.meta
    if meta.get("format_version") != VERSION or isinstance(meta["format_version"], bool):
        found = ascii(meta.get("format_version"))[:40]
        raise TraceError(f"{name}: meta.format_version is {found}; this reader knows version {VERSION}")
    if counts.ndim != 2 or 0 in counts.shape or counts.shape[1] > MAX_EXPERTS:
        raise TraceError(f"{name}: counts has shape {counts.shape}; [MoE layers, experts] is required")
    bad = ~((counts >= 0) & (counts < np.inf))
    if bad.any():
        at = np.argwhere(bad)[0].tolist()
        raise TraceError(f"{name}: counts{at} = {counts[tuple(at)]}; a finite number >= 0 is required")
    empty = np.flatnonzero(counts.sum(axis=1) == 0)
    if len(empty):
        raise TraceError(f"{name}: counts[{empty[0]}] are all 0; every MoE layer must have been used")
    _check_meta(meta, counts.shape, name)


def _check_meta(meta: Mapping[str, Any], shape: tuple[int, ...], name: str) -> None:
    if not isinstance(meta.get("model"), str) or not meta["model"]:
        raise TraceError(f"{name}: meta.model is {ascii(meta.get('model'))[:40]}; a name is required")
    if not isinstance(meta.get("real"), bool):
        raise TraceError(f"{name}: meta.real is {ascii(meta.get('real'))[:40]}; true or false is required")
    if meta.get("n_experts") != shape[1]:
        raise TraceError(f"{name}: meta.n_experts is {ascii(meta.get('n_experts'))[:40]}; counts has {shape[1]}")
    layers: Any = meta.get("moe_layers")
    if not ascending(layers) or len(layers) != shape[0] or layers[0] < 0:
        found = ascii(layers)[:60]
        raise TraceError(f"{name}: meta.moe_layers is {found}; {shape[0]} ascending layer indices are required")
    for key, least in (("top_k", 1), ("n_layers", layers[-1] + 1)):
        value = meta.get(key, least)
        most = shape[1] if key == "top_k" else 10**6
        if not is_int(value) or not least <= value <= most:
            right = f"an integer from {least} to {most}"
            raise TraceError(f"{name}: meta.{key} is {ascii(value)[:40]}; {right} is required")
