"""GPU memory divided: dense weights, KV cache, staging, what an engine leaves free, and what is left for experts
(figures of sim.costs.roofline.memory)."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sim import catalog
from sim.catalog.files import precision_bits
from sim.costs.reserve import working_bytes
from sim.costs.roofline import memory, needed
from sim.errors import SpecError

if TYPE_CHECKING:
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Hardware
    from sim.catalog.model_spec import ModelSpec


class TooSmall(SpecError):
    """A card that does not hold what it must. vram: bytes of one that would."""

    def __init__(self, message: str, vram: int) -> None:
        super().__init__(message)
        self.vram = vram


@dataclass(frozen=True)
class Card:
    """A GPU of `vram` bytes, of which an engine takes its share, and what is to lie in it: a model at a precision, KV
    entries for `batch` sequences of `context` tokens, buffers for steps of `rows` rows; largest: rows of the largest
    step that is run, by which the buffers of an engine without a reserve of its own are counted (sim.costs.reserve)."""

    model: "ModelSpec"
    hardware: "Hardware"
    engine: "Engine"
    precision: str
    vram: int
    context: int
    batch: int
    rows: int = 0
    largest: int = 0

    @property
    def room(self) -> int:
        """Bytes that the engine takes."""
        return int(self.vram * self.engine.memory_share)

    def line(
        self, slots: int, stages: int, on_host: Collection[int] = (), precision: str | None = None
    ) -> dict[str, Any]:
        """The memory line with so many slots and stages (on_host, and what the line holds: `memory`)."""
        sizes = (precision or self.precision, slots, self.context, self.batch, self.hardware, self.engine)
        working = working_bytes(self.model, self.hardware, self.engine, self.largest, self.context)
        about: dict[str, Any] = {"rows": self.rows, "vram": self.room, "working": working}
        return memory(self.model, *sizes, stages=stages, on_host=on_host, **about)


@dataclass(frozen=True)
class Split:
    """Bytes: vram = dense + kv + staging + reserve + what slots may take. experts: that the model has; slots: of
    expert_bytes each, never more than those."""

    vram: int
    dense: int
    kv: int
    staging: int
    expert_bytes: int
    slots: int
    experts: int
    reserve: int = 0

    def beside(self, stages: int) -> "Split":
        """With so many staging buffers, if it has fewer, in place of slots; at least one slot."""
        staging = max(self.staging, stages * self.expert_bytes)
        slots = (self.vram - self.dense - self.kv - staging - self.reserve) // self.expert_bytes
        return replace(self, staging=staging, slots=max(1, min(slots, self.experts)))

    @property
    def cache(self) -> str:
        """As --cache takes it."""
        return f"{self.slots * self.expert_bytes}B"


def split(card: Card, stages: int = 0, at_least: int | None = None) -> Split:
    """What the card holds beside at least `stages` staging buffers.

    Raises TooSmall where not even `at_least` experts fit (default: one of every MoE layer), saying what would.
    """
    model, taken = card.model, card.line(0, stages)
    fixed, size = needed(taken), model.expert_bytes(card.precision)
    slots, least = (card.room - fixed) // size, model.n_moe_layers if at_least is None else at_least
    if slots < least:
        raise _too_small(card, taken, least, size, _fitting(card, stages, least))
    held = (min(slots, model.n_routed), model.n_routed, taken.get("reserve", 0))
    return Split(card.room, taken["dense"], taken["kv"], taken["staging"], size, *held)


def whole_layers(card: Card, stages: int, layers: Sequence[int], knob: str, dense_too: bool) -> npt.NDArray[np.bool_]:
    """bool [MoE layers]: those all of whose experts fit, as many as can be, the `first` or the `last` of `layers`
    (indices among all of the model) by `knob`, beside `stages` staging buffers where a layer is left out; dense_too:
    such a layer has its dense part and KV entries on the host. Raises TooSmall where not even what stays fits."""
    at = np.arange(len(layers))
    for n in range(len(layers), -1, -1):
        held = at < n if knob == "first" else at >= len(layers) - n
        out = [layer for layer, there in zip(layers, held, strict=True) if not there]
        line = card.line(n * card.model.n_experts, stages if out else 0, out if dense_too else ())
        if needed(line) <= card.room:
            return np.asarray(held, np.bool_)
    raise _too_small(card, line, 0, card.model.expert_bytes(card.precision), "")


def vram_text(size: float) -> str:
    """At least so many bytes, as --vram takes it."""
    return f"{math.ceil(size / 1e7) / 100:.2f}GB"


def _too_small(card: Card, taken: dict[str, Any], least: int, size: int, lower: str) -> TooSmall:
    fixed = needed(taken)
    need = fixed + least * size
    reserve = f", kept free {taken['reserve'] / 1e9:.2f}" if "reserve" in taken else ""
    share = f" ({card.engine.memory_share:g} of {card.vram / 1e9:.2f})" if card.room < card.vram else ""
    at_least = need / card.engine.memory_share
    each = f" in each of {least} layers" if least > 1 else ""
    layers = f", and one expert{each} {(need - fixed) / 1e9:.2f} GB" if least else ""
    message = (
        f"vram: {card.room / 1e9:.2f} GB{share}: {card.model.name} at {card.precision} takes {fixed / 1e9:.2f} GB "
        f"(dense weights {taken['dense'] / 1e9:.2f}, KV {taken['kv'] / 1e9:.2f}, staging "
        f"{taken['staging'] / 1e9:.2f}{reserve}) before the first expert{layers}; "
        f"it needs --vram {vram_text(at_least)} at least{lower}"
    )
    return TooSmall(message, math.ceil(at_least))


def _fitting(card: Card, stages: int, least: int) -> str:
    """`, or --precision P`: the catalog's finest below the card's of which so many experts would fit."""
    for name in sorted(catalog.names("precision"), key=precision_bits, reverse=True):
        smaller = precision_bits(name) < precision_bits(card.precision)
        if smaller and needed(card.line(least, stages, precision=name)) <= card.room:
            return f", or --precision {name}"
    return ", and no lower precision would fit either"
