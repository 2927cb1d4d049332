"""The expert store: every expert in one packed buffer of page-locked host memory, some of them in slots on the device.

One expert is one buffer: the up matrix (gate and up in one where there are three), the down matrix, and biases where
the model has them. So one transfer is one copy. The buffers of a layer lie in one slab; so do all slots, a layer's
beside each other, numbered as the core numbers them (`State.x[g, SLOT]`), so that a grouped kernel can run over slots
where they lie.

A copy into a slot waits, on the device, for the last kernel that read that slot; a kernel waits for the copy that
filled it. `fetch` and `reading` / `read` put in these events, whatever the caller has waited for on the host.

`fits` says with numbers what does not fit before anything is allocated.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from runtime.device.cpu import host_bytes
from runtime.device.port import Access, Buffer, Copy, Event, Landed, Port
from runtime.low import LowLayout
from sim.catalog.model_spec import ModelSpec
from traces.errors import UserError

ALIGN = 256  # bytes: what kernels and copy engines like of an address
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SPARE_BYTES = 256 << 20  # left to the system, and to what torch itself needs


def aligned(nbytes: int) -> int:
    """The next multiple of ALIGN."""
    return -(-nbytes // ALIGN) * ALIGN


class StoreError(UserError):
    """Weights that do not fit, are not there, or are not what the model says."""


class Weights(NamedTuple):
    """One expert: up [2 * I, H] (gate, then up; [I, H] where there are two matrices), down [H, I], biases or None."""

    up: torch.Tensor
    down: torch.Tensor
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """How one expert lies in its buffer: sizes of its matrices and the type of their elements."""

    hidden: int
    intermediate: int
    matrices: int = 3
    biases: bool = False
    dtype: torch.dtype = torch.bfloat16

    @staticmethod
    def of(model: ModelSpec, precision: str) -> "Layout":
        """Of a catalog model. Raises StoreError for a precision that no kernel here computes in."""
        if precision not in DTYPES:
            known = ", ".join(DTYPES)
            raise StoreError(f"precision: {precision}: has no kernel here; one of {known} (with sim.run: any)")
        sizes = (model.hidden, model.expert_intermediate, model.expert_matrices, model.expert_biases > 0)
        return Layout(*sizes, DTYPES[precision])

    @property
    def up_rows(self) -> int:
        """Rows of the up matrix, gate included."""
        return (self.matrices - 1) * self.intermediate

    @property
    def elements(self) -> int:
        biases = self.up_rows + self.hidden if self.biases else 0
        return self.matrices * self.hidden * self.intermediate + biases

    @property
    def nbytes(self) -> int:
        """What one transfer moves."""
        return self.elements * self.dtype.itemsize

    @property
    def stride(self) -> int:
        """Bytes from one expert to the next."""
        return aligned(self.nbytes)

    def weights(self, packed: torch.Tensor) -> Weights:
        """Views of experts packed in the last dimension, [..., elements]."""
        rows, h, i = self.up_rows, self.hidden, self.intermediate
        up, down, *rest = torch.split(packed, [rows * h, h * i, *([rows, h] if self.biases else [])], dim=-1)
        matrices = (up.unflatten(-1, (rows, h)), down.unflatten(-1, (h, i)))
        return Weights(*matrices, *rest)


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
        self.slabs = [
            port.alloc_host(self.distinct * stride, f"{self.distinct} experts of layer {layer}")
            for layer in range(layers)
        ]
        rows = [slab.tensor.view(self.distinct, stride)[:, : layout.nbytes] for slab in self.slabs]
        self.host_bytes = [row[e] for row in rows for e in range(self.distinct)]
        for i, row in enumerate(self.host_bytes):
            source.fill(*divmod(i, self.distinct), row.view(layout.dtype))
        self.host_weights = [layout.weights(row.view(layout.dtype)) for row in self.host_bytes]
        self.full = layers * n_experts
        self.low_device: Buffer | None = None
        self.low_slabs: list[Buffer] = []
        if low is not None:
            self._add_low(low, sum(low_slots))
            total += sum(low_slots)
        self.arrived: list[Event | None] = [None] * total
        self.last_read: list[Event | None] = [None] * total

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
        copy = self.port.link.copy(self.target(slot), self.source(g), landed, planned_ns, gap_ns, reads, writes)
        self.arrived[slot] = copy
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
        """First residents, {expert: slot}; at once, and without the link's pace. Forgets every earlier event."""
        self.port.sync()
        self.arrived, self.last_read = [None] * len(self.arrived), [None] * len(self.last_read)
        for g, slot in residents.items():
            reads, writes = [self.host_access(g)], [self.slot_access(slot)]
            self.port.compute.copy(self.target(slot), self.source(g), reads=reads, writes=writes)
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


def fits(needs: Need, port: Port) -> None:
    """Raises StoreError, with the numbers, when it does not. Allocates nothing."""
    shared = port.device.type == "cpu"
    device = sum(needs.device.values()) + (sum(needs.host.values()) if shared else 0)
    parts = dict(needs.device) | (dict(needs.host) if shared else {})
    _refuse("memory" if shared else "device memory", device, port.free_bytes() - SPARE_BYTES, parts)
    if not shared:
        _refuse("page-locked host memory", sum(needs.host.values()), host_bytes() - SPARE_BYTES, needs.host)


def _refuse(what: str, wanted: int, there: int, parts: Mapping[str, int]) -> None:
    if wanted > there:
        listed = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts.items())
        raise StoreError(
            f"{what}: needs {wanted / 1e9:.2f} GB ({listed}), has {max(0, there) / 1e9:.2f} GB; "
            "fewer slots (--cache), a smaller model (--scale) or shared host bytes (--alias-host) need less"
        )


# --- a checkpoint ---

NAME = re.compile(
    r"layers\.(?P<layer>\d+)\.(?:mlp|block_sparse_moe|feed_forward)\.(?:experts\.)?(?:(?P<expert>\d+)\.)?"
    r"(?P<part>gate_up_proj|gate_proj|up_proj|down_proj|w1|w2|w3|input_linear|output_linear)(?:\.weight)?$"
)
PARTS = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
FUSED = {"gate_up_proj": "gate_up", "down_proj": "down", "input_linear": "gate_up", "output_linear": "down"}


class Checkpoint:
    """Experts of a Hugging Face checkpoint in safetensors: one tensor per expert and matrix (Mixtral's w1, w2, w3;
    Qwen's, OLMoE's and DeepSeek's gate_proj, up_proj, down_proj), or one per layer and matrix (transformers 5:
    gate_up_proj [E, 2 I, H] and down_proj [E, H, I]; Granite: input_linear and output_linear).

    moe_layers: index in the model of each MoE layer. Raises StoreError, one line, for a folder that is none, a missing
    tensor or a wrong shape.
    """

    def __init__(self, folder: str | Path, layout: Layout, moe_layers: Sequence[int]) -> None:
        self.folder, self.layout, self.moe_layers = Path(folder), layout, list(moe_layers)
        if layout.matrices != 3 or layout.biases:
            raise StoreError(f"weights: {folder}: only experts of three matrices without biases are read")
        self.files: dict[Path, Any] = {}
        self.tensors: dict[tuple[int, int, str], tuple[Path, str]] = {}
        for name, file in self._names().items():
            found = NAME.search(name)
            if found is None:
                continue
            fused, part = found["expert"] is None, found["part"]
            kind = (FUSED if fused else PARTS).get(part)
            if kind is not None and not (
                fused and "experts" not in name and part not in ("input_linear", "output_linear")
            ):
                self.tensors[int(found["layer"]), -1 if fused else int(found["expert"]), kind] = (file, name)
        if not self.tensors:
            raise StoreError(f"weights: {folder}: holds no experts under the names of a Hugging Face MoE model")

    def _names(self) -> dict[str, Path]:
        """Every tensor's file."""
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                found = json.loads(index.read_text())["weight_map"]
                return {str(name): self.folder / Path(file).name for name, file in found.items()}
            except (ValueError, KeyError, AttributeError, TypeError):
                raise StoreError(f"weights: {index}: is no index of safetensors files") from None
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise StoreError(f"weights: {self.folder}: has no .safetensors files")
        return {name: file for file in files for name in self._open(file).keys()}  # noqa: SIM118 - no mapping

    def _open(self, file: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self.files:
            try:
                self.files[file] = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise StoreError(f"weights: {file}: {error}") from None
        return self.files[file]

    def _tensor(self, layer: int, expert: int, kind: str, shape: tuple[int, int]) -> torch.Tensor | None:
        """A matrix of one expert; None where the checkpoint has none under that name."""
        for e in (expert, -1):
            if (layer, e, kind) in self.tensors:
                file, name = self.tensors[layer, e, kind]
                whole = self._open(file).get_slice(name)
                size = tuple(whole.get_shape())
                if size[e < 0 :] != shape or (e < 0 and expert >= size[0]):
                    raise StoreError(
                        f"weights: {name}: has shape {list(size)}; the model wants {list(shape)} an expert"
                    )
                found: torch.Tensor = whole[expert] if e < 0 else whole[:]
                return found
        return None

    def fill(self, layer: int, expert: int, out: torch.Tensor) -> None:
        h, i, there = self.layout.hidden, self.layout.intermediate, self.moe_layers[layer]
        up, down, *_ = self.layout.weights(out)
        both = self._tensor(there, expert, "gate_up", (2 * i, h))
        parts = [("down", (h, i), down)]
        if both is not None:
            up.copy_(both)
        else:
            parts += [("gate", (i, h), up[:i]), ("up", (i, h), up[i:])]
        for kind, shape, target in parts:
            found = self._tensor(there, expert, kind, shape)
            if found is None:
                raise StoreError(f"weights: {self.folder}: layer {there}, expert {expert}: has no {kind} matrix")
            target.copy_(found)
