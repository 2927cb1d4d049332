"""The expert store: every expert in one packed buffer of page-locked host memory, some of them in slots on the device.

Beside the slots there may be *stages*, in which experts are executed and not kept; they are numbered behind all slots,
and whatever takes the number of a slot takes theirs. A global id behind those of all experts (and of their
low-precision copies) is that of a copy in a stage (sim.core.rules), whose bytes are the expert's.

One expert is one buffer: the up matrix (gate and up in one where there are three), the down matrix, and biases where
the model has them. So one transfer is one copy. The buffers of a layer lie in one slab; so do all slots, a layer's
beside each other, numbered as the core numbers them (`State.x[g, SLOT]`), so that a grouped kernel can run over slots
where they lie.

A copy into a slot waits, on the device, for the last kernel that read that slot; a kernel waits for the copy that
filled it. `fetch` and `reading` / `read` put in these events, whatever the caller has waited for on the host.

`fits` says with numbers what does not fit before anything is allocated.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

import torch

from runtime.device.host_memory import host_bytes
from runtime.device.port import Access, Buffer, Copy, Declared, Event, Landed, Port
from runtime.experts.layout import Layout, Packed, StoreError, Strided, W
from runtime.experts.quantised import LowLayout

SPARE_BYTES = 256 << 20  # left to the system, and to what torch itself needs


Fill = Callable[[int, int, torch.Tensor], None]


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


class Bank:
    """Experts of one precision: those of each MoE layer in a slab of the host's memory, and slots on the device.

    rows: the host's buffers, uint8 [nbytes] each, `distinct` of a layer behind those of the layer before;
    slots: uint8 [slots, nbytes]; fill(layer, expert, row) writes one of the rows."""

    def __init__(
        self, port: Port, packing: Strided, layers: int, distinct: int, slots: int, what: str, fill: Fill
    ) -> None:
        nbytes, stride = packing.nbytes, packing.stride
        self.device = port.alloc_device(slots * stride, f"{slots} slots of {nbytes / 1e6:.1f} MB")
        self.slots = self.device.tensor.view(slots, stride)[:, :nbytes]
        self.slabs: list[Buffer] = []
        self.rows: list[torch.Tensor] = []
        for layer in range(layers):  # one after the other: a source may give its own memory back as it goes
            self.slabs.append(port.alloc_host(distinct * stride, f"{distinct} {what} of layer {layer}"))
            rows = self.slabs[-1].tensor.view(distinct, stride)[:, :nbytes]
            for expert, row in enumerate(rows):
                fill(layer, expert, row)
            self.rows += list(rows)


class ExpertStore(Generic[W]):
    """Experts on the host, slots on the device.

    slots: of each scope, as in Plan.slots. low, low_slots: layout and slots of low-precision copies, where the plan
    has them (Plan.low): expert g's copy is expert layers * n_experts + g, and its slots follow all others. alias:
    distinct experts that the host holds of each layer (None: all); others share their bytes, which limits host memory
    and falsifies what is computed, not how long it takes. stages: so many, numbered from `first_stage` on.
    """

    def __init__(
        self,
        port: Port,
        layout: Packed[W],
        layers: int,
        n_experts: int,
        slots: Sequence[int],
        source: Source,
        alias: int | None = None,
        low: LowLayout | None = None,
        low_slots: Sequence[int] = (),
        stages: int = 0,
    ) -> None:
        self.port, self.layout, self.n_experts, self.low = port, layout, n_experts, low
        self.distinct = n_experts if alias is None else min(alias, n_experts)
        self.full = layers * n_experts
        sizes = layers, self.distinct

        def fill(layer: int, expert: int, row: torch.Tensor) -> None:
            source.fill(layer, expert, row.view(layout.dtype))

        whole = Bank(port, layout, *sizes, sum(slots), "experts", fill)
        self.banks, self.slot_bytes, self.host_bytes = [whole], whole.slots, whole.rows
        self.slot_weights = [layout.weights(row) for row in self.slot_bytes.view(layout.dtype)]
        self.host_weights = [layout.weights(row.view(layout.dtype)) for row in self.host_bytes]
        if low is not None:

            def quantise(layer: int, expert: int, row: torch.Tensor) -> None:
                low.pack(self.host_bytes[layer * self.distinct + expert].view(layout.dtype), row)

            self.banks.append(Bank(port, low, *sizes, sum(low_slots), "low-precision experts", quantise))
        self.first_stage, self.stages = sum(slots) + sum(low_slots), stages
        self.staging: Buffer | None = None
        self.staged: list[tuple[int, W]] = []  # their number and weights, as in `regions`
        if stages:
            what = f"{stages} stages of {layout.nbytes / 1e6:.1f} MB"
            self.staging = port.alloc_device(stages * layout.stride, what)
            rows = self.staging.tensor.view(stages, layout.stride)[:, : layout.nbytes]
            self.stage_bytes, self.staged = rows, [(self.first_stage, layout.weights(rows.view(layout.dtype)))]
            self.stage_weights = [layout.weights(row) for row in rows.view(layout.dtype)]
        total = self.first_stage + stages
        self.arrived: list[Event | None] = [None] * total
        self.last_read: list[Event | None] = [None] * total
        # of each slot: which of the host's buffers was copied there last
        self.holds: list[int | None] = [None] * total
        self.cut(slots)

    def cut(self, slots: Sequence[int]) -> None:
        """Share the slots out as a plan has them, of all of which there are enough; nothing may run meanwhile."""
        self.slots = list(slots)
        self.first_slot = [sum(slots[:i]) for i in range(len(slots))]
        self.n_slots = sum(slots)  # low-precision ones follow
        packed, weights = self.slot_bytes.view(self.layout.dtype), self.layout.weights
        parts = zip(self.first_slot, self.slots, strict=True)
        self.scopes = [(first, weights(packed[first : first + n])) for first, n in parts]
        if self.low is not None:  # a slot's number may now mean another one
            self.holds = [None] * len(self.holds)

    def where(self, g: int) -> int:
        """Place of expert g (global id) among the host's buffers."""
        layer, expert = divmod(g % self.full, self.n_experts)
        return layer * self.distinct + expert % self.distinct

    def on_host(self, g: int) -> W:
        """The host's own copy of expert g, to compute with."""
        return self.host_weights[self.where(g)]

    def source(self, g: int) -> torch.Tensor:
        """The bytes that a transfer of expert g, or of its low-precision copy, moves."""
        return self._bank(g).rows[self.where(g)]

    def _bank(self, g: int) -> Bank:
        return self.banks[self.low is not None and self.full <= g < 2 * self.full]

    def target(self, slot: int) -> torch.Tensor:
        """The bytes of a slot."""
        if slot >= self.first_stage:
            return self.stage_bytes[slot - self.first_stage]
        return self.slot_bytes[slot] if slot < self.n_slots else self.banks[1].slots[slot - self.n_slots]

    def in_slot(self, slot: int) -> W:
        """The weights in a slot, expanded where they are of low precision."""
        if slot < self.n_slots:
            return self.slot_weights[slot]
        if slot >= self.first_stage:
            return self.stage_weights[slot - self.first_stage]
        assert self.low is not None
        return self.layout.weights(self.low.expand(self.target(slot), self.layout.dtype))

    def regions(self, layer: int) -> list[tuple[int, W]]:
        """The weights of neighbouring slots that a kernel may run over, (number of the first, weights [n, ...]): all of
        the scope of a layer's experts, and all stages."""
        return [self.scopes[0 if len(self.slots) == 1 else layer], *self.staged]

    def host_access(self, g: int) -> Access:
        """What reading the host's copy of expert g touches."""
        layer, expert = divmod(g % self.full, self.n_experts)
        return self._bank(g).slabs[layer], expert % self.distinct

    def slot_access(self, slot: int) -> Access:
        """What using a slot touches."""
        if self.staging is not None and slot >= self.first_stage:
            return self.staging, slot
        return self.banks[slot >= self.n_slots].device, slot

    def fetch(self, g: int, slot: int, landed: Landed | None = None, planned_ns: int = 0, gap_ns: int = 0) -> Copy:
        """Copy expert g into a slot over the link, when the last kernel that read the slot has run."""
        return self.fetch_together([g], [slot], landed, planned_ns, gap_ns)

    def fetch_together(
        self,
        experts: Sequence[int],
        slots: Sequence[int],
        landed: Landed | None = None,
        planned_ns: int = 0,
        gap_ns: int = 0,
        part: tuple[float, float] | None = None,
    ) -> Copy:
        """The same for several as one transfer, each into its own slot: they land together. part: from which share of
        the bytes to which, of a chunk (None: all of them); the chunks of an expert go one after another."""
        for slot in slots:
            read = self.last_read[slot]
            if read is not None:
                self.port.link.wait(read)
                self.last_read[slot] = None
        touched = [self.host_access(g) for g in experts], [self.slot_access(slot) for slot in slots]
        parts = [(self.target(slot), self.source(g)) for g, slot in zip(experts, slots, strict=True)]
        if part is not None:
            parts = [(piece(dst, *part), piece(src, *part)) for dst, src in parts]
        copy = self.port.link.transfer(parts, landed, Declared(planned_ns, gap_ns, *touched))
        for g, slot in zip(experts, slots, strict=True):
            self.arrived[slot] = copy
            self.holds[slot] = self.where(g) if part is None or part[1] == 1 else None
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
            declared = Declared(reads=[self.host_access(g)], writes=[self.slot_access(slot)])
            self.port.compute.copy(self.target(slot), self.source(g), None, declared)
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
        for bank in self.banks:
            for buffer in (bank.device, *bank.slabs):
                self.port.free(buffer)
        if self.staging is not None:
            self.port.free(self.staging)


def piece(data: torch.Tensor, begin: float, end: float) -> torch.Tensor:
    """What of bytes [n] lies between two shares of them; pieces that share a border leave nothing out."""
    first, last = (round(share * len(data)) for share in (begin, end))
    return data[first:last]


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
    stages: int = 0,
) -> Need:
    """Of a store, and of the dense part beside it on the device."""
    distinct = layers * (n_experts if alias is None else min(alias, n_experts))
    device = {"slots": slots * layout.stride, **dense}
    host = {"experts": distinct * layout.stride}
    if stages:
        device["stages"] = stages * layout.stride
    if low is not None:
        device["low-precision slots"] = low_slots * low.stride
        host["low-precision experts"] = distinct * low.stride
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
