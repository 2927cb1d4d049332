"""GPU memory divided: dense weights, KV cache, staging, and what is left for experts (figures of
sim.costs.roofline.memory)."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sim import catalog
from sim.catalog.files import precision_bits
from sim.costs.roofline import memory
from sim.errors import SpecError

if TYPE_CHECKING:
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Hardware
    from sim.catalog.model_spec import ModelSpec


@dataclass(frozen=True)
class Split:
    """Bytes: vram = dense + kv + staging + what slots may take. experts: that the model has; slots: of expert_bytes
    each, never more than those."""

    vram: int
    dense: int
    kv: int
    staging: int
    expert_bytes: int
    slots: int
    experts: int

    def beside(self, stages: int) -> "Split":
        """With so many staging buffers, if it has fewer, in place of slots; at least one slot."""
        staging = max(self.staging, stages * self.expert_bytes)
        slots = (self.vram - self.dense - self.kv - staging) // self.expert_bytes
        return replace(self, staging=staging, slots=max(1, min(slots, self.experts)))

    @property
    def cache(self) -> str:
        """As --cache takes it."""
        return f"{self.slots * self.expert_bytes}B"


def split(
    model: "ModelSpec",
    hardware: "Hardware",
    engine: "Engine",
    precision: str,
    vram: int,
    context: int,
    batch: int,
    stages: int = 0,
) -> Split:
    """What `vram` bytes hold at a precision, with KV entries for `batch` sequences of `context` tokens and at least
    `stages` staging buffers.

    Raises SpecError where not even one expert of every MoE layer fits, saying what would.
    """
    taken = memory(model, precision, 0, context, batch, hardware, engine, stages=stages)
    fixed = taken["dense"] + taken["kv"] + taken["staging"]
    size = model.expert_bytes(precision)
    slots = (vram - fixed) // size
    if slots < model.n_moe_layers:
        needed = fixed + model.n_moe_layers * size
        lower = _fitting(model, hardware, engine, precision, vram, context, batch, stages)
        raise SpecError(
            f"vram: {vram / 1e9:.2f} GB: {model.name} at {precision} takes {fixed / 1e9:.2f} GB (dense weights "
            f"{taken['dense'] / 1e9:.2f}, KV {taken['kv'] / 1e9:.2f}, staging {taken['staging'] / 1e9:.2f}) before the "
            f"first expert, and one expert in each of {model.n_moe_layers} layers {(needed - fixed) / 1e9:.2f} GB; "
            f"it needs --vram {math.ceil(needed / 1e7) / 100:.2f}GB at least{lower}"
        )
    return Split(vram, taken["dense"], taken["kv"], taken["staging"], size, min(slots, model.n_routed), model.n_routed)


def _fitting(
    model: "ModelSpec",
    hardware: "Hardware",
    engine: "Engine",
    precision: str,
    vram: int,
    context: int,
    batch: int,
    stages: int,
) -> str:
    """`, or --precision P`: the catalog's finest below `precision` of which one expert a layer would fit."""
    names = sorted(catalog.names("precision"), key=precision_bits, reverse=True)
    for name in names:
        if precision_bits(name) < precision_bits(precision):
            need = memory(model, name, model.n_moe_layers, context, batch, hardware, engine, stages=stages)
            if sum(need[part] for part in ("dense", "kv", "slots", "staging")) <= vram:
                return f", or --precision {name}"
    return ", and no lower precision would fit either"
