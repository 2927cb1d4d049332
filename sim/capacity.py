"""How many slots each scope has: what --cache, --n-cpu-moe, --override-tensor or a card's memory come to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sim.catalog.engine_spec import LAYERS
from sim.core.plan import KEEPS_OUT, Choice
from sim.costs.memory_split import Card, split, whole_layers
from sim.costs.roofline import needed
from sim.engines import FIT, KNOBS
from sim.errors import SpecError
from sim.layers import layer_numbers, overridden, without_slots
from sim.on_miss import Rules
from sim.policies.registry import find
from sim.spec import WITHOUT_SLOTS, RunSpec, cache_bytes, memory_bytes, per_layer, slots_of
from sim.steps import Steps
from traces.format.trace import RoutingTrace

if TYPE_CHECKING:
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Hardware
    from sim.catalog.model_spec import ModelSpec

Int = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fits:
    """What `--cache fit` is told from: the run but for its slots. miss: the rule of visits of few rows."""

    spec: RunSpec
    trace: RoutingTrace
    steps: Steps
    model: "ModelSpec | None"
    hardware: "Hardware"
    engine: "Engine"
    rules: Rules
    miss: Choice
    eviction: Choice

    def slots(self) -> Int:
        """int64 [scopes]: as many as the card holds of the engine's knob, with the stages that the run may need; all of
        them where all fit, for then nothing streams. Raises SpecError where nothing fits, or sizes are not known."""
        spec, trace, card = self.spec, self.trace, self._card()
        pooled, layers, most = spec.cache_scope == "global", trace.n_moe_layers, trace.n_experts
        knob = "slots" if spec.engine_as_costs else self.engine.knob
        if needed(card.line(layers * most, 0)) <= card.room:
            return np.full(1 if pooled else layers, layers * most if pooled else most, np.int64)
        if knob in ("slots", "per-layer"):
            dealt = deals_out(spec)  # some layers may be left without
            found = split(card, self._stages(dealt), 1 if pooled or dealt else layers)
            if knob == "per-layer" and not pooled and found.slots >= layers:
                return np.full(layers, found.slots // layers, np.int64)
            return shares("cache", found.cache, spec, trace, found.expert_bytes)
        dense_too = spec.dense_on_host == WITHOUT_SLOTS
        held = whole_layers(card, self._stages(True), trace.meta["moe_layers"], knob, dense_too)
        return np.where(held, most, 0).astype(np.int64)

    def _stages(self, layers_without_slots: bool) -> int:
        lacks = np.array([layers_without_slots or bool(self.eviction.marks & KEEPS_OUT)])
        few, many = self.rules.streaming(self.miss, lacks)
        sizes = (self.trace.n_experts, self.trace.top_k, largest_step(self.spec, self.steps))
        return self.rules.stages_for(*sizes) if (few | many).any() else 0

    def _card(self) -> Card:
        spec, vram = self.spec, vram_bytes(self.spec, self.hardware)
        if self.model is None or self.hardware.shrunk:
            raise SpecError(
                f"cache: {FIT}: the sizes of {self.trace.model} are not known; must be slots, a share or bytes"
            )
        if vram is None:
            raise SpecError(
                f"vram: missing: {spec.hardware} does not say how much it has; give --vram 24GB, or --cache"
            )
        context = spec.context or longest_context(spec, self.trace, self.steps)
        rows = largest_step(spec, self.steps), largest_run(self.steps)
        return Card(self.model, self.hardware, self.engine, spec.precision, vram, context, spec.batch, *rows)


def deals_out(spec: RunSpec) -> bool:
    """Whether the placement says how many slots each layer has, none of which it need have."""
    return find("placement", spec.placement).spreads


def vram_bytes(spec: RunSpec, hardware: "Hardware") -> int | None:
    """Memory of the GPU: as asked, else the hardware's."""
    return hardware.mem_bytes if spec.vram is None else memory_bytes(spec.vram)


def largest_step(spec: RunSpec, steps: Steps) -> int:
    """Rows that memory is kept for: of an engine all that a step of it may have, else those of the run's largest."""
    if spec.behaves is not None:
        return max(spec.prefill_chunk, spec.batch * (spec.speculate or 1))
    return largest_run(steps)


def largest_run(steps: Steps) -> int:
    """Rows of the run's largest step."""
    return int(np.diff(steps.offset).max())


def longest_context(spec: RunSpec, trace: RoutingTrace, steps: Steps) -> int:
    """Tokens, of any request at any step."""
    return int(trace.position[steps.row].max()) + 1 + spec.context_offset


def slots_by_layer(spec: RunSpec, trace: RoutingTrace, engine: "Engine") -> tuple[str, Int] | None:
    """(the field that says the slots of each layer, they int64 [L]); None where none does."""
    layers, most, cache = trace.n_moe_layers, trace.n_experts, str(spec.cache)
    told = [name for name in KNOBS[1:] if getattr(spec, name) is not None]
    told += ["cache"] if per_layer(cache) or (told and spec.cache is not None) else []
    if not told:
        return None
    if len(told) > 1:
        raise SpecError(
            f"{told[0]}: {getattr(spec, told[0])}: says the slots of each layer, as {told[1]} does; give one"
        )
    (field,) = told
    if spec.cache_scope == "global":
        raise SpecError(
            f"{field}: {getattr(spec, field)}: is of slots of each layer's own; --cache-scope layer is required"
        )
    if field == "n_cpu_moe":
        assert spec.n_cpu_moe is not None
        last = engine.cpu_moe == "last" and not spec.engine_as_costs
        return field, without_slots(spec.n_cpu_moe, layers, most, last)
    if field == "override_tensor":
        return field, overridden(str(spec.override_tensor), trace.meta["moe_layers"], trace.n_layers, most)
    slots = layer_numbers(field, cache, layers, most)
    part = np.flatnonzero((slots > 0) & (slots < most))
    if spec.behaves is not None and engine.options.get(field) == LAYERS and len(part):
        wrong = f"{slots[part[0]]} slots in MoE layer {part[0]}; {engine.name} holds whole layers, 0 or {most}"
        raise SpecError(f"{field}: {cache}: {wrong}")
    return field, slots


def shares(field: str, cache: int | float | str, spec: RunSpec, trace: RoutingTrace, size: int) -> Int:
    """int64 [scopes]. Bytes: as many whole experts as fit, in equal shares, what is left over one each to the first
    layers, at most all there are. Raises SpecError where a scope would have none, unless the placement deals the slots
    out anew, and for more slots than experts."""
    pooled, layers = spec.cache_scope == "global", trace.n_moe_layers
    most = trace.n_experts * (layers if pooled else 1)
    scopes = 1 if pooled else layers
    if isinstance(cache, str):
        total = min(cache_bytes(cache) // size, most * scopes)
        least = 1 if deals_out(spec) else scopes
        if total < least:
            raise SpecError(f"{field}: {cache}: holds {total} experts of {size} bytes; needs at least {least}")
        shares = total // scopes + (np.arange(scopes) < total % scopes)
        return np.asarray(np.minimum(shares, most), np.int64)
    if cache > most:
        has = f"the pool is of {most} experts" if pooled else f"a layer has {most} experts"
        raise SpecError(f"{field}: {cache}: {has}; must be at most {most} slots, a fraction (0.5) or bytes (20GB)")
    return np.full(scopes, slots_of(cache, most), np.int64)
