"""The expert store: every expert in one packed buffer of page-locked host memory, some of them in slots on the device.

One expert is one buffer: the up matrix (gate and up in one where there are three), the down matrix, and biases where
the model has them. So one transfer is one copy. The buffers of a layer lie in one slab; so do all slots, a layer's
beside each other, numbered as the core numbers them (`State.x[g, SLOT]`), so that a grouped kernel can run over slots
where they lie.

A copy into a slot waits, on the device, for the last kernel that read that slot; a kernel waits for the copy that
filled it. `fetch` and `reading` / `read` put in these events, whatever the caller has waited for on the host.

`fits` says with numbers what does not fit before anything is allocated.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from runtime.device.host_memory import host_bytes
from runtime.device.port import Access, Buffer, Copy, Declared, Event, Landed, Port
from runtime.experts.checkpoint import Checkpoint
from runtime.experts.layout import Layout, StoreError, Weights, aligned
from runtime.experts.quantised import LowLayout

__all__ = [
    "Checkpoint",
    "ExpertStore",
    "Layout",
    "Need",
    "Source",
    "StoreError",
    "Synthetic",
    "Weights",
    "fits",
    "need",
]

SPARE_BYTES = 256 << 20  # left to the system, and to what torch itself needs


class Source(Protocol):
    """Where the weights come from."""

    def fill(self, layer: int, expert: int, out: torch.Tensor) -> None:
        """Write one expert (layer: MoE layer) into out [elements], as Layout packs it."""


class Synthetic:
    """Seeded weights, small enough that nothing overflows: each expert its own place in one sheet of noise."""

    def __init__(self, layout: Layout, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        sheet = torch.empty(layout.elements + (1 << 16), dtype=torch.float32)
        self.sheet = sheet.normal_(0, 0.02, generator=generator).to(layout.dtype)

    def fill(self, layer: int, expert: int, out: torch.Tensor) -> None:
        first = (layer * 7919 + expert * 104729) % (1 << 16)
        out.copy_(self.sheet[first : first + len(out)])


class ExpertStore:
    """Experts on the host, slots on the device.

    slots: of each scope, as in Plan.slots. low, low_slots: layout and slots of low-precision copies, where the plan
    has them (Plan.low): expert g's copy is expert layers * n_experts + g, and its slots follow all others. alias:
    distinct experts that the host holds of each layer (None: all); others share their bytes, which limits host memory
    and falsifies what is computed, not how long it takes.
    """

    def __init__(
        self,
        port: Port,
        layout: Layout,
        layers: int,
        n_experts: int,
        slots: Sequence[int],
        source: Source,
        alias: int | None = None,
        low: LowLayout | None = None,
        low_slots: Sequence[int] = (),
    ) -> None:
        self.port, self.layout, self.layers, self.n_experts, self.low = port, layout, layers, n_experts, low
        self.distinct = n_experts if alias is None else min(alias, n_experts)
        self.first_slot = [sum(slots[:i]) for i in range(len(slots))]
        self.slots = list(slots)
        total, stride = sum(slots), layout.stride
        self.device = port.alloc_device(total * stride, f"{total} slots of {layout.nbytes / 1e6:.1f} MB")
        self.slot_bytes = self.device.tensor.view(total, stride)[:, : layout.nbytes]
        self.all_slots = layout.weights(self.slot_bytes.view(layout.dtype))
        self.slot_weights = [layout.weights(row) for row in self.slot_bytes.view(layout.dtype)]
        self.slabs: list[Buffer] = []
        self.host_bytes: list[torch.Tensor] = []
        for layer in range(layers):  # one after the other: a source may give its own memory back as it goes
            self.slabs.append(port.alloc_host(self.distinct * stride, f"{self.distinct} experts of layer {layer}"))
            rows = self.slabs[-1].tensor.view(self.distinct, stride)[:, : layout.nbytes]
            for expert, row in enumerate(rows):
                source.fill(layer, expert, row.view(layout.dtype))
            self.host_bytes += list(rows)
        self.host_weights = [layout.weights(row.view(layout.dtype)) for row in self.host_bytes]
        self.full = layers * n_experts
        self.low_device: Buffer | None = None
        self.low_slabs: list[Buffer] = []
        if low is not None:
            self._add_low(low, sum(low_slots))
            total += sum(low_slots)
        self.arrived: list[Event | None] = [None] * total
        self.last_read: list[Event | None] = [None] * total
        self.holds: list[int | None] = [None] * total  # of each slot: which of the host's buffers was copied there last

    def _add_low(self, low: LowLayout, slots: int) -> None:
        """Low-precision copies of every expert on the host, and their slots."""
        stride = aligned(low.nbytes)
        self.low_device = self.port.alloc_device(slots * stride, f"{slots} slots of {low.nbytes / 1e6:.1f} MB")
        self.low_slots = self.low_device.tensor.view(slots, stride)[:, : low.nbytes]
        self.low_host = []
        for layer in range(self.layers):
            what = f"{self.distinct} low-precision experts of layer {layer}"
            self.low_slabs.append(self.port.alloc_host(self.distinct * stride, what))
            rows = self.low_slabs[-1].tensor.view(self.distinct, stride)[:, : low.nbytes]
            for e, row in enumerate(rows):
                low.pack(self.host_bytes[layer * self.distinct + e].view(self.layout.dtype), row)
            self.low_host += list(rows)

    def where(self, g: int) -> int:
        """Place of expert g (global id) among the host's buffers."""
        layer, expert = divmod(g % self.full, self.n_experts)
        return layer * self.distinct + expert % self.distinct

    def on_host(self, g: int) -> Weights:
        """The host's own copy of expert g, to compute with."""
        return self.host_weights[self.where(g)]

    def source(self, g: int) -> torch.Tensor:
        """The bytes that a transfer of expert g, or of its low-precision copy, moves."""
        return (self.host_bytes if g < self.full else self.low_host)[self.where(g)]

    def target(self, slot: int) -> torch.Tensor:
        """The bytes of a slot."""
        n = len(self.slot_bytes)
        return self.slot_bytes[slot] if slot < n else self.low_slots[slot - n]

    def in_slot(self, slot: int) -> Weights:
        """The weights in a slot, expanded where they are of low precision."""
        n = len(self.slot_weights)
        if slot < n:
            return self.slot_weights[slot]
        assert self.low is not None
        return self.layout.weights(self.low.expand(self.low_slots[slot - n], self.layout.dtype))

    def host_access(self, g: int) -> Access:
        """What reading the host's copy of expert g touches."""
        slabs = self.slabs if g < self.full else self.low_slabs
        return slabs[g % self.full // self.n_experts], g % self.n_experts % self.distinct

    def slot_access(self, slot: int) -> Access:
        """What using a slot touches."""
        return (self.device if slot < len(self.slot_bytes) else self.low_device or self.device), slot

    def fetch(self, g: int, slot: int, landed: Landed | None = None, planned_ns: int = 0, gap_ns: int = 0) -> Copy:
        """Copy expert g into a slot over the link, when the last kernel that read the slot has run."""
        read = self.last_read[slot]
        if read is not None:
            self.port.link.wait(read)
            self.last_read[slot] = None
        reads, writes = [self.host_access(g)], [self.slot_access(slot)]
        copy = self.port.link.copy(
            self.target(slot), self.source(g), landed, Declared(planned_ns, gap_ns, reads, writes)
        )
        self.arrived[slot], self.holds[slot] = copy, self.where(g)
        return copy

    def reading(self, slots: Iterable[int]) -> list[Access]:
        """Kernels put into `compute` from now on may read these slots; returns what they touch."""
        accesses = []
        for slot in slots:
            arrived = self.arrived[slot]
            if arrived is not None:
                self.port.compute.wait(arrived)
                self.arrived[slot] = None
            accesses.append(self.slot_access(slot))
        return accesses

    def read(self, slots: Iterable[int], event: Event) -> None:
        """`event` stands behind the last use of these slots on `compute`."""
        for slot in slots:
            self.last_read[slot] = event

    def place(self, residents: Mapping[int, int]) -> None:
        """First residents, {expert: slot}; at once, and without the link's pace. Forgets every earlier event.

        A slot that holds the bytes already, of an earlier run, keeps them: a validation places hundreds of times."""
        self.port.sync()
        self.arrived, self.last_read = [None] * len(self.arrived), [None] * len(self.last_read)
        missing = [(g, slot) for g, slot in residents.items() if self.holds[slot] != self.where(g)]
        for g, slot in missing:
            self.holds[slot] = self.where(g)
            reads, writes = [self.host_access(g)], [self.slot_access(slot)]
            self.port.compute.copy(self.target(slot), self.source(g), None, Declared(0, 0, reads, writes))
        placed = self.port.compute.record()
        self.read(residents.values(), placed)
        placed.wait()

    def wrong_slots(self, residents: Mapping[int, int]) -> list[int]:
        """Experts, of {expert: slot}, whose slot does not hold their bytes. Waits for the device first."""
        self.port.sync()
        held = ((g, self.target(slot).cpu()) for g, slot in residents.items())
        return [g for g, data in held if not torch.equal(data, self.source(g))]

    def close(self) -> None:
        """Give all memory back, when nothing uses it any more."""
        self.port.sync()
        for buffer in (self.device, *self.slabs, *([self.low_device] if self.low_device else []), *self.low_slabs):
            self.port.free(buffer)


# --- does it fit ---


@dataclass(frozen=True)
class Need:
    """Bytes that a run takes: on the device and on the host, by what for."""

    device: Mapping[str, int]
    host: Mapping[str, int]


def need(
    layout: Layout,
    layers: int,
    n_experts: int,
    slots: int,
    alias: int | None,
    dense: Mapping[str, int],
    low: LowLayout | None = None,
    low_slots: int = 0,
) -> Need:
    """Of a store, and of the dense part beside it on the device."""
    distinct = layers * (n_experts if alias is None else min(alias, n_experts))
    device = {"slots": slots * layout.stride, **dense}
    host = {"experts": distinct * layout.stride}
    if low is not None:
        device["low-precision slots"] = low_slots * aligned(low.nbytes)
        host["low-precision experts"] = distinct * aligned(low.nbytes)
    return Need(device, host)


def fits(needs: Need, port: Port, stated: int | None = None) -> None:
    """Raises StoreError, with the numbers, when it does not. Allocates nothing. stated: bytes of host memory that there
    are, whatever the system says (None: what it says)."""
    if port.device.type == "cpu":
        _refuse("memory", {**needs.device, **needs.host}, port.free_bytes() if stated is None else stated)
        return
    _refuse("device memory", needs.device, port.free_bytes())
    _refuse("page-locked host memory", needs.host, host_bytes() if stated is None else stated)


def _refuse(what: str, parts: Mapping[str, int], there: int) -> None:
    wanted, left = sum(parts.values()), there - SPARE_BYTES
    if wanted > left:
        listed = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts.items())
        raise StoreError(
            f"{what}: needs {wanted / 1e9:.2f} GB ({listed}), has {max(0, left) / 1e9:.2f} GB; "
            "fewer slots (--cache), a smaller model (--scale) or shared host bytes (--alias-host) need less; "
            "--host-memory says what the host has where the system does not know"
        )
