"""Where a live model's experts are: all of them packed on the host, `slots` of them on the device.

On an accelerator copies run on a stream of their own, from page-locked memory, and both directions of danger are
ordered by events: a kernel waits for the copy that filled its slot, and a copy waits for the kernels that still read
the slot's former resident. Without an accelerator copies are plain and happen where they are asked for. An empty slot is
all NaN: whoever computes from one shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from runtime.expert_weights import Layout, LiveError
from traces.capturing.routers import MoeLayer


class HostExperts:
    """All experts of a model, one packed row each [L x E, size], in page-locked memory where there is an accelerator.

    The modules' own parameters become views of it, so that nothing is held twice; `restore` gives them memory of
    their own again.
    """

    def __init__(self, layers: Sequence[MoeLayer], pinned: bool) -> None:
        self.layers, self.n_experts = layers, layers[0].n_experts
        layouts = [Layout.of(layer.experts, layer.n_experts, layer.name) for layer in layers]
        if len(set(layouts)) > 1:
            raise LiveError("experts of different layers differ in shape or dtype; slots serve all alike")
        self.layout = layouts[0]
        self._devices = [next(layer.experts.parameters()).device for layer in layers]
        self.packed = [self._pack(layer, pinned) for layer in layers]

    def _pack(self, layer: MoeLayer, pinned: bool) -> Tensor:
        """One layer after the other: at most one layer is held twice."""
        shape = (self.n_experts, self.layout.size)
        packed = torch.zeros(shape, dtype=self.layout.dtype, pin_memory=pinned)
        self.layout.pack(layer.experts, packed)
        self._assign(layer.experts, self.layout.views(packed))
        return packed

    def row(self, expert: int) -> Tensor:
        """The packed row [size] of an expert by global id."""
        return self.packed[expert // self.n_experts][expert % self.n_experts]

    def restore(self) -> None:
        """Every module has parameters of its own again, where they were."""
        for layer, packed, device in zip(self.layers, self.packed, self._devices, strict=True):
            own = {name: view.to(device, copy=True).contiguous() for name, view in self.layout.views(packed).items()}
            self._assign(layer.experts, own)
        self.packed = []

    @staticmethod
    def _assign(experts: nn.Module, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            getattr(experts, name).data = tensor


class Slots:
    """`n` slots on a device, and which expert (global id) each holds."""

    def __init__(self, host: HostExperts, n: int, device: torch.device) -> None:
        self.host, self.device = host, device
        try:
            self.memory = torch.full((n, host.layout.size), torch.nan, dtype=host.layout.dtype, device=device)
        except RuntimeError as error:
            size = n * host.layout.bytes
            raise LiveError(
                f"{n} slots of {host.layout.bytes} bytes = {size / 1e9:.2f} GB: {device}: {_line(error)}"
            ) from None
        self.place: dict[int, int] = {}
        self.copied = 0
        self._holds: dict[int, int] = {}
        streams = device.type != "cpu" and hasattr(torch, device.type)
        self._link: Any = torch.Stream(device=device) if streams and device.type != "mps" else None
        self._landed: dict[int, Any] = {}
        self._read: dict[int, Any] = {}

    def copy(self, expert: int, slot: int) -> None:
        """The expert takes the slot; whoever was there is gone."""
        gone = self._holds.pop(slot, None)
        if gone is not None:
            del self.place[gone]
        self.place[expert], self._holds[slot] = slot, expert
        self.copied += 1
        if self._link is None:
            self.memory[slot].copy_(self.host.row(expert))
            return
        if slot in self._read:
            self._link.wait_event(self._read.pop(slot))
        with self._link:
            self.memory[slot].copy_(self.host.row(expert), non_blocking=True)
        self._landed[slot] = self._link.record_event()

    @contextmanager
    def reading(self, expert: int) -> Iterator[dict[str, Tensor]]:
        """The expert's weights in its slot, for kernels launched within. Raises LiveError where it is in none."""
        if expert not in self.place:
            raise LiveError(f"expert {expert} is to be computed and is in no slot: a decision was not followed")
        slot = self.place[expert]
        if self._link is not None and slot in self._landed:
            self._stream().wait_event(self._landed.pop(slot))
        yield self.host.layout.views(self.memory[slot])
        if self._link is not None:
            self._read[slot] = self._stream().record_event()

    def _stream(self) -> Any:
        return torch.accelerator.current_stream(self.device)

    def drain(self) -> None:
        """Nothing is on its way any more."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
