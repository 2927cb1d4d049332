"""What formats of counts share: from an array of counts to a checked frequency profile, and back."""

from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask, pick_layers, place_layers
from traces.format.layout import Array
from traces.format.profile import KIND, VERSION, Profile, validate
from traces.format.trace import RoutingTrace
from traces.statistics.stats import profile_of


def of_axis(path: Path, counts: Array, ask: Ask, what: str, **meta: Any) -> Profile:
    """From counts [layers, E] whose first axis is the MoE layers, or all layers with zeros for the dense ones."""
    axis = pick_layers(path, counts.shape[0], ask, what)
    used = [layer for layer in axis.dense if counts[layer].any()]
    if used:
        raise TraceError(f"{path}: {what} counts uses of layer {used[0]}, which is no MoE layer")
    return _profile(path, counts[axis.take], axis.layers, ask, meta)


def of_layers(path: Path, counts: dict[int, Array], ask: Ask, **meta: Any) -> Profile:
    """From counts [E] by the number of their layer."""
    found = sorted(counts)
    layers = place_layers(path, found, ask)
    return _profile(path, np.stack([counts[layer] for layer in found]), layers, ask, meta)


def _profile(path: Path, counts: Array, layers: list[int], ask: Ask, more: dict[str, Any]) -> Profile:
    model = ask.model
    if model.n_experts is not None and model.n_experts != counts.shape[1]:
        raise TraceError(f"{path}: {counts.shape[1]} experts a layer; {model.name} has {model.n_experts}")
    known = {key: getattr(model, key) for key in ("top_k", "n_layers") if getattr(model, key) is not None}
    meta = {"kind": KIND, "format_version": VERSION, "model": model.name, "n_experts": int(counts.shape[1])}
    meta |= {"moe_layers": layers, "real": ask.real, "id_space": "logical"} | known | more | ask.meta
    profile = Profile(np.ascontiguousarray(counts, np.float64), meta)
    validate(profile, str(path))
    return profile


def counts_of(source: RoutingTrace | Profile) -> tuple[Array, Profile]:
    """(counts [L, E], the profile): int64 where every count is whole, as the tools themselves write, else float64."""
    profile = profile_of(source) if isinstance(source, RoutingTrace) else source
    whole = bool((profile.counts == np.floor(profile.counts)).all() and profile.counts.max() < 2**53)
    return (profile.counts.astype(np.int64) if whole else profile.counts), profile
