"""The formats that are written, in one place: a new one is a module of this room and a line here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traces.command import one_of
from traces.errors import TraceError
from traces.foreign.formats import oracle_general, sglang_placement
from traces.format import npz, placement, profile
from traces.format.placement import Placement
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace
from traces.writers import eplb, flame, moe_infinity, vllm


@dataclass(frozen=True)
class Writer:
    """write: a source and a path to what was written, in words. takes: kinds of source."""

    write: Callable[[Any, Path], str]
    takes: tuple[type, ...]
    doc: str


COUNTED = (RoutingTrace, Profile)
WRITERS = {
    "sglang": Writer(
        sglang_placement.write,
        (*COUNTED, Placement),
        "SGLang's and KTransformers' initial expert location: .pt or .json",
    ),
    "eplb": Writer(eplb.write, COUNTED, "DeepSeek EPLB's weight tensor: .pt or .npy"),
    "moe-infinity": Writer(moe_infinity.write, COUNTED, "MoE-Infinity's activation matrices: .npy"),
    "flame": Writer(flame.write, (RoutingTrace,), "FLAME-MoE-Traces' layout: a new folder of Parquet"),
    "vllm": Writer(vllm.write, (RoutingTrace,), "vLLM's routed_experts: .npy of one request, .jsonl of responses"),
    "oracle-general": Writer(oracle_general.write, (RoutingTrace,), "libCacheSim's oracleGeneral: a binary file"),
}
NAMES = {RoutingTrace: "a trace", Profile: "a frequency profile", Placement: "a placement"}


def find(name: str) -> Writer:
    """The writer of that name. Raises UserError that lists them, with the nearest."""
    return WRITERS[one_of("format", name, list(WRITERS))]


def source(path: Path, to: str) -> RoutingTrace | Profile | Placement:
    """The trace, profile or placement of a file. Raises TraceError where the writer `to` can do nothing with it."""
    found: RoutingTrace | Profile | Placement
    if placement.is_placement(path):
        found = placement.read(path)
    elif profile.is_profile(path):
        found = profile.read(path)
    else:
        found = npz.read(path)
    takes = find(to).takes
    if not isinstance(found, takes):
        right = " or ".join(NAMES[kind] for kind in takes)
        raise TraceError(f"{path}: is {NAMES[type(found)]}; {to} is written from {right}")
    return found
