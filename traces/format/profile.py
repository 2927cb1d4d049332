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
from traces.format.check import MAX_EXPERTS
from traces.format.members import find_members, load, open_zip
from traces.format.npz import read_meta
from traces.format.trace import RoutingTrace
from traces.statistics.stats import expert_counts

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
    """Whether the file is a zip that holds counts and no experts: the look before `read`."""
    try:
        with open_zip(path) as archive:
            found = {info.filename.removesuffix(".npy") for info in archive.infolist()}
    except TraceError:
        return False
    return "counts" in found and "experts" not in found


def read(path: Path) -> Profile:
    """The profile of a file, checked. Raises TraceError, one line."""
    with open_zip(path) as archive:
        members = find_members(archive, path, ("meta", "counts"))
        meta = read_meta(archive, path, members.get("meta"), "a frequency profile")
        if meta.get("kind") != KIND or "counts" not in members:
            raise TraceError(f"{path}: meta.kind is {ascii(meta.get('kind'))[:40]}; {KIND} with counts is required")
        member = members["counts"]
        if member.dtype != np.float64 or len(member.shape) != 2:
            found = f"{member.dtype.name} {list(member.shape)}"
            raise TraceError(f"{path}: counts is {found}; float64 [MoE layers, experts] is required")
        profile = Profile(np.array(load(archive, path, "counts", member)), meta)
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
    layers = meta.get("moe_layers")
    good = isinstance(layers, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in layers)
    if not good or sorted(set(layers or [])) != layers or len(layers) != shape[0] or layers[0] < 0:
        found = ascii(layers)[:60]
        raise TraceError(f"{name}: meta.moe_layers is {found}; {shape[0]} ascending layer indices are required")
    for key, least in (("top_k", 1), ("n_layers", layers[-1] + 1)):
        value = meta.get(key, least)
        most = shape[1] if key == "top_k" else 10**6
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise TraceError(
                f"{name}: meta.{key} is {ascii(value)[:40]}; an integer from {least} to {most} is required"
            )


def of_trace(trace: RoutingTrace) -> Profile:
    """The profile of a trace: what it used, each token and slot once."""
    keys = ("model", "n_experts", "top_k", "n_layers", "moe_layers", "real", "source", "licence")
    meta = {key: trace.meta[key] for key in keys if key in trace.meta}
    meta |= {"kind": KIND, "format_version": VERSION, "id_space": "logical", "tool": "counted from a trace"}
    return Profile(expert_counts(trace).astype(np.float64), meta)


def describe(profile: Profile, name: str) -> str:
    """A profile in words, for people."""
    counts, meta = profile.counts, profile.meta
    share = counts / counts.sum(axis=1, keepdims=True)
    used = (counts > 0).sum(axis=1)
    kind = "from real routing" if meta["real"] else "*** SYNTHETIC ***"
    source = ", ".join(str(meta[key]) for key in ("tool", "layout", "source") if meta.get(key))
    top_k = f", top-{meta['top_k']}" if "top_k" in meta else ", top-k not known"
    lines = [
        f"{name}: frequency profile of {profile.model}, {kind} (counts, no trace: it cannot be replayed)",
        f"  {'source':18} {source or 'not said'}",
        f"  {'layers':18} {profile.n_moe_layers} MoE; {profile.n_experts} experts{top_k}",
        f"  {'uses':18} {counts.sum():,.0f}, {counts.sum() / profile.n_moe_layers:,.0f} a layer",
        f"  {'top share':18} mean {share.max(axis=1).mean():.3f} of a layer's uses go to its first expert"
        f" (even: {1 / profile.n_experts:.3f})",
        f"  {'used':18} {used.min()} to {used.max()} of a layer's {profile.n_experts} experts",
    ]
    return "\n".join("".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in line) for line in lines)


def facts(profile: Profile) -> dict[str, Any]:
    """A profile as a JSON object: meta, and figures by layer."""
    share = profile.counts / profile.counts.sum(axis=1, keepdims=True)
    by_layer = {
        "uses": profile.counts.sum(axis=1).tolist(),
        "top_share": share.max(axis=1).tolist(),
        "unused": (profile.counts == 0).sum(axis=1).tolist(),
    }
    return {"meta": profile.meta, "by_layer": by_layer}
