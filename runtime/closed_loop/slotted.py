"""The experts of a Hugging Face model computed from slots: what `runtime.live` rests on.

Copies and groups are carried out in the machine's order on a port of `runtime.device`: copies on its link, experts on
its compute stream, each waiting for the other by events alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime.closed_loop.driver import Driver, answered
from runtime.closed_loop.loop import ClosedLoop
from runtime.closed_loop.visit_by_visit import CPU, LOW, Committed, Computed, Served
from runtime.device.choose import choose
from runtime.device.cpu import OneStreamPort
from runtime.device.port import Declared, Port
from runtime.experts.hugging_face import ModelExperts, combined, expert_output
from runtime.experts.quantised import LowLayout
from runtime.experts.store import ExpertStore
from traces.errors import UserError

NAME = "moe_offload"
NEEDED = "transformers >= 5.0 is needed: pip install 'moe-offload-sim[hf]'"
ATTACHED = "_moe_offload"  # of an experts module: (SlottedModel, its MoE layer)


def registry() -> Any:
    """transformers' table of experts implementations, ours in it. Raises UserError without transformers >= 5.0."""
    try:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    except ImportError:
        raise UserError(NEEDED) from None
    ALL_EXPERTS_FUNCTIONS.register(NAME, moe_offload_experts_forward)
    return ALL_EXPERTS_FUNCTIONS


def load_model(path: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a Hugging Face folder or name. Raises UserError, one line."""
    registry()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from traces.capturing.hf import reach

    logging.disable_progress_bar()
    how = reach(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", **how)
        return model.eval(), AutoTokenizer.from_pretrained(path, **how)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"model: {path}: {' '.join(str(error).split())[:300]}") from None


def moe_offload_experts_forward(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The experts implementation `moe_offload`; only models that are open in `OffloadedExperts` can run it."""
    attached = self.__dict__.get(ATTACHED)
    if attached is None:
        raise UserError(f"experts implementation {NAME}: the model is not open in OffloadedExperts")
    model, place = attached
    out: Tensor = model.experts_forward(self, place, hidden_states, top_k_index, top_k_weights)
    return out


class SlottedModel:
    """A Hugging Face model whose experts are computed from slots, as a closed loop says, while it is open.

    device: of the slots and of everything but the experts: a name, an open port of runtime.device (which stays open),
    or None, the device where the model is.
    """

    def __init__(self, model: Any, loop: ClosedLoop, device: str | Port | None = None) -> None:
        self.model, self.loop, self.device = model, loop, device
        self.driver = Driver(model, loop)

    def __enter__(self) -> SlottedModel:
        registry()
        self._before = self.model.config._experts_implementation
        self.eager = self._before == "eager"
        self.port = _port_of(self.model, self.device)
        try:
            self._open()
        except BaseException:
            self._give_back(failed=True)
            raise
        return self

    def _open(self) -> None:
        """Experts into the store, everything else to the device, and the model's forward passes come here."""
        self.source = ModelExperts(self.driver.layers)
        self.store = self._store(self.port)
        _move(self.model, {id(layer.experts) for layer in self.driver.layers}, self.port.device)
        for layer in self.driver.layers:
            layer.experts.__dict__[ATTACHED] = (self, layer.place)
        self.model.set_experts_implementation(NAME)
        self.driver.__enter__()

    def _store(self, port: Port) -> ExpertStore[dict[str, Tensor]]:
        """All experts on the host, the first residents in their slots; an empty slot is no number."""
        plan, layers = self.loop.setting.plan, self.driver.layers
        layout = self.source.layout
        low = None if plan.low is None else LowLayout.of(layout.elements, self.loop.low_precision)
        slots = {"low": low, "low_slots": [] if plan.low is None else plan.low.slots.tolist()}
        n_experts = layers[0].n_experts
        store = ExpertStore(port, layout, len(layers), n_experts, plan.slots.tolist(), self.source, **slots)
        store.slot_bytes.view(layout.dtype).fill_(torch.nan)
        self.place = {expert: slot for expert, slot in self.loop.first_residents()}
        self._holds = {slot: expert for expert, slot in self.place.items()}
        store.place(self.place)
        return store

    def __exit__(self, *error: object) -> None:
        try:
            self.driver.__exit__(*error)
        except BaseException:
            self._give_back(failed=True)
            raise
        self._give_back(failed=error[0] is not None)

    def _give_back(self, failed: bool) -> None:
        """The model has its experts again; what was the port's goes back to it. All of it is tried, whatever fails; the
        first failure is told, unless something was raised already (failed), which is why these fail, too."""
        first: Exception | None = None
        for step in (self._detach, self.port.sync, self._restore, self._leave):
            try:
                step()
            except Exception as error:
                first = first or error
        if first is not None and not failed:
            raise first

    def _detach(self) -> None:
        for layer in self.driver.layers:
            layer.experts.__dict__.pop(ATTACHED, None)
        self.model.set_experts_implementation(self._before)

    def _restore(self) -> None:
        if hasattr(self, "source"):
            self.source.restore()

    def _leave(self) -> None:
        if self.port is not self.device:
            self.port.close()
        elif hasattr(self, "store"):
            self.store.close()

    @torch.no_grad()
    def experts_forward(self, experts: nn.Module, place: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """One layer's routed experts: from the slots within a step, else from host memory, unmodified."""
        served = self.driver.visit(place, ids, weights) if self.driver.active else None
        used, used_weights = (ids, weights) if served is None else answered(served, ids, weights)
        kind = torch.result_type(hidden, weights)
        out = hidden.new_zeros((*used.shape, hidden.shape[-1]), dtype=kind)
        work = _Work(experts, hidden, used.cpu().numpy(), used_weights, out)
        if served is None:
            for e in np.unique(work.ids[work.ids >= 0]).tolist():
                whole = self.store.source(self._global(place, e)).view(self.source.layout.dtype).to(hidden.device)
                work.run(e, work.ids == e, self.source.layout.weights(whole))
        else:
            self._carry_out(served, work, place)
        result = combined(out, used.to(hidden.device), hidden.dtype, self.eager)
        if served is None or self.loop.means is None:
            return result
        means = self.loop.means.term(place, ids, weights, served.answers)
        return result if means is None else result + means.to(result)

    def _global(self, place: int, expert: int) -> int:
        return place * self.store.n_experts + expert

    def _carry_out(self, served: Served, work: _Work, place: int) -> None:
        """Copies and groups in the machine's order; then what the CPU computes."""
        port, low = self.port, served.answers == LOW
        for op in served.ops:
            if isinstance(op, Committed):
                self._copy(*op)
            else:
                self._run(op, work, served.answers != CPU, low)
        on_host = (served.answers == CPU) & (work.ids >= 0)
        for e in np.unique(work.ids[on_host]).tolist():
            work.run(e, (work.ids == e) & on_host, self.store.on_host(self._global(place, e)), torch.device("cpu"))
        if port.name == "virtual":  # its kernels are not in the stream of what follows
            port.compute.record().wait()
        if not work.done.all():
            raise UserError(f"MoE layer {place}: slots {np.argwhere(~work.done)[:3].tolist()} were not computed")

    def _copy(self, expert: int, slot: int) -> None:
        """The expert takes the slot; whoever was there is gone."""
        gone = self._holds.pop(slot, None)
        if gone is not None:
            del self.place[gone]
        self.place[expert], self._holds[slot] = slot, expert
        self.store.fetch(expert, slot)

    def _run(self, op: Computed, work: _Work, on_gpu: Any, low: Any) -> None:
        """A group of experts is computed, each from its slot. Raises UserError for one that is in none."""
        port, store, slots = self.port, self.store, []
        for expert in op.experts:
            if expert not in self.place:
                raise UserError(f"expert {expert} is to be computed and is in no slot: a decision was not followed")
            slot, e = self.place[expert], expert % store.full % store.n_experts
            where = (work.ids == e) & on_gpu & (low if expert >= store.full else ~low)
            slots.append(slot)
            reads = store.reading([slot])
            port.compute.launch(partial(work.run_from, e, where, store, slot), Declared(reads=reads))
            work.done |= where
        store.read(slots, port.compute.record())


class _Work:
    """The slots of one visit, and which of them are computed, or will be by what was launched."""

    def __init__(self, experts: nn.Module, hidden: Tensor, ids: Any, weights: Tensor, out: Tensor) -> None:
        self.experts, self.hidden, self.ids, self.weights, self.out = experts, hidden, ids, weights, out
        self.done = ids < 0

    def run_from(self, expert: int, where: Any, store: ExpertStore[dict[str, Tensor]], slot: int) -> None:
        """An expert computes its slots from a slot's memory."""
        self.run(expert, where, store.in_slot(slot))

    @torch.no_grad()
    def run(self, expert: int, where: Any, weights: dict[str, Tensor], on: torch.device | None = None) -> None:
        """An expert computes its slots (bool [N, K]), where its weights are (`on`: not where the hidden states are).

        Rows go in the order of the eager implementation, slot by slot: so a matrix product sees the same rows."""
        if not where.any():
            return
        slot, token = (torch.from_numpy(i).to(self.hidden.device) for i in np.nonzero(where.T))
        hidden = self.hidden[token]
        found = expert_output(self.experts, weights, hidden if on is None else hidden.to(on)).to(hidden.device)
        self.out[token, slot] = (found * self.weights[token, slot, None]).to(self.out.dtype)
        self.done |= where


def _port_of(model: Any, device: str | Port | None) -> Port:
    """The port of a device; a CPU copies where it is told to, without a pace. Raises UserError."""
    if device is None:
        device = str(next(model.get_input_embeddings().parameters()).device.type)
    if not isinstance(device, str):
        return device
    return OneStreamPort(torch.device("cpu")) if device == "cpu" else choose(device)


def _move(model: nn.Module, experts: set[int], device: torch.device) -> None:
    """Everything but the experts to the device."""
    for module in model.modules():
        if id(module) in experts:
            continue
        for p in module.parameters(recurse=False):
            p.data = p.data.to(device)
        for name, b in module.named_buffers(recurse=False):
            module._buffers[name] = b.to(device)


@contextmanager
def slotted(model: Any, loop: ClosedLoop, device: str | None = None) -> Iterator[Driver]:
    """While open, the model's forward passes within the driver's steps run from slots."""
    with SlottedModel(model, loop, device) as opened:
        yield opened.driver
