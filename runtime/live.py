"""Hugging Face models that generate through our expert cache: an experts implementation of transformers >= 5.0.

    with OffloadedExperts(model, cache=0.25, miss="fetch", eviction="lru") as live:
        model.generate(**inputs, max_new_tokens=100)
        print(live.summary()["misses"])

While it is open, the weights of all experts are in host memory, one packed buffer each, and only `slots` of them on the
device. At each MoE layer the router's choice goes to the closed loop (`runtime.loop`), whose decisions are those of the
simulator for the hardware asked for; they are then carried out: experts are copied into the slots of their victims, in
the order of the commits, and computed from slots alone, group by group, so that a visit that wants more experts than
there are slots runs in waves. An expert that the policy gives to the CPU is computed there.

**Same result.** Each slot's output is computed by the very operations of the module's `eager` implementation and summed
in the order of the implementation that the model had before. With everything fetched, a model that ran `eager` gives
equal logits to the last bit; one that ran `grouped_mm` does on the CPU, and elsewhere as near as the two kernels are.

**Padding** is routed and served as the model itself routes and computes it. **Steps**: one call of the decoder is one
step; it is a prefill step while it holds columns of the prompt that `generate` was given (outside of `generate`: when
the cache is empty or more than one column comes). Lossy answers are off in prefill steps unless the policy says
otherwise. Beams are served, but a prefetcher that goes by the last token follows the row, not the beam.

The clock is the simulated one, the copies are real: how fast they are here is another matter (`runtime.replay`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime.charge import charged
from runtime.device.one_stream import OneStreamPort
from runtime.device.port import Port, choose
from runtime.driver import Driver, answered, shape_of
from runtime.expert_weights import LiveError, ModelExperts, combined, expert_output
from runtime.loop import CPU, LOW, ClosedLoop, Copy, Run, Served
from runtime.low import LowLayout
from runtime.store import ExpertStore
from sim.record import RunRecord
from sim.run import add_flags, announce_compiling, spec_of
from sim.spec import RunSpec
from sim.summary import summarise
from traces import npz
from traces.command import Parser, guarded
from traces.errors import UserError
from traces.trace import RoutingTrace

NAME = "moe_offload"
NEEDED = "transformers >= 5.0 is needed: pip install 'moe-offload-sim[hf]'"
ATTACHED = "_moe_offload"  # of an experts module: (SlottedModel, its MoE layer)


def _registry() -> Any:
    """transformers' table of experts implementations, ours in it. Raises LiveError without transformers >= 5.0."""
    try:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    except ImportError:
        raise LiveError(NEEDED) from None
    ALL_EXPERTS_FUNCTIONS.register(NAME, moe_offload_experts_forward)
    return ALL_EXPERTS_FUNCTIONS


def moe_offload_experts_forward(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The experts implementation `moe_offload`; only models that are open in `OffloadedExperts` can run it."""
    attached = self.__dict__.get(ATTACHED)
    if attached is None:
        raise LiveError(f"experts implementation {NAME}: the model is not open in OffloadedExperts")
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
        _registry()
        self._before = self.model.config._experts_implementation
        self.eager = self._before == "eager"
        self.port = _port_of(self.model, self.device)
        self.source = ModelExperts(self.driver.layers)
        try:
            self.store = self._store(self.port)
            _move(self.model, {id(layer.experts) for layer in self.driver.layers}, self.port.device)
        except BaseException:
            self._give_back()
            raise
        for layer in self.driver.layers:
            layer.experts.__dict__[ATTACHED] = (self, layer.place)
        self.model.set_experts_implementation(NAME)
        self.driver.__enter__()
        return self

    def _store(self, port: Port) -> ExpertStore:
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
        self.driver.__exit__(*error)
        self.model.set_experts_implementation(self._before)
        for layer in self.driver.layers:
            layer.experts.__dict__.pop(ATTACHED, None)
        self._give_back()

    def _give_back(self) -> None:
        """The model has its experts again; what was the port's goes back to it."""
        self.port.sync()
        self.source.restore()
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
        return combined(out, used.to(hidden.device), hidden.dtype, self.eager)

    def _global(self, place: int, expert: int) -> int:
        return place * self.store.n_experts + expert

    def _carry_out(self, served: Served, work: _Work, place: int) -> None:
        """Copies and groups in the machine's order; then what the CPU computes."""
        port, low = self.port, served.answers == LOW
        for op in served.ops:
            if isinstance(op, Copy):
                self._copy(*op)
            else:
                self._run(op, work, served.answers != CPU, low)
        on_host = (served.answers == CPU) & (work.ids >= 0)
        for e in np.unique(work.ids[on_host]).tolist():
            work.run(e, (work.ids == e) & on_host, self.store.on_host(self._global(place, e)), torch.device("cpu"))
        if port.name == "virtual":  # its kernels are not in the stream of what follows
            port.compute.record().wait()
        if not work.done.all():
            raise LiveError(f"MoE layer {place}: slots {np.argwhere(~work.done)[:3].tolist()} were not computed")

    def _copy(self, expert: int, slot: int) -> None:
        """The expert takes the slot; whoever was there is gone."""
        gone = self._holds.pop(slot, None)
        if gone is not None:
            del self.place[gone]
        self.place[expert], self._holds[slot] = slot, expert
        self.store.fetch(expert, slot)

    def _run(self, op: Run, work: _Work, on_gpu: Any, low: Any) -> None:
        """A group of experts is computed, each from its slot. Raises LiveError for one that is in none."""
        port, store, slots = self.port, self.store, []
        for expert in op.experts:
            if expert not in self.place:
                raise LiveError(f"expert {expert} is to be computed and is in no slot: a decision was not followed")
            slot, e = self.place[expert], expert % store.full % store.n_experts
            where = (work.ids == e) & on_gpu & (low if expert >= store.full else ~low)
            slots.append(slot)
            reads = store.reading([slot])
            port.compute.launch(partial(work.run_from, e, where, store, slot), reads=reads)
            work.done |= where
        store.read(slots, port.compute.record())


class _Work:
    """The slots of one visit, and which of them are computed, or will be by what was launched."""

    def __init__(self, experts: nn.Module, hidden: Tensor, ids: Any, weights: Tensor, out: Tensor) -> None:
        self.experts, self.hidden, self.ids, self.weights, self.out = experts, hidden, ids, weights, out
        self.done = ids < 0

    def run_from(self, expert: int, where: Any, store: ExpertStore, slot: int) -> None:
        """An expert computes its slots from a slot's memory."""
        self.run(expert, where, store.in_slot(slot))  # type: ignore[arg-type]

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
    """The port of a device; a CPU copies where it is told to, without a pace. Raises DeviceMissing."""
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


class OffloadedExperts:
    """A Hugging Face model with its experts offloaded, while it is open; `generate` and plain calls are served.

    spec: any fields of sim.spec.RunSpec but `trace` and `model`: cache, miss, eviction, prefetch, rerank, hardware, ...
    device: of the slots and of everything but the experts: a name, an open port of runtime.device (whose link's pace
    then holds), or None, where the model is. calibration: what fitted policies are fitted on. charge: whose sizes are
    charged in simulated time (default: the model's own).
    Raises LiveError, SpecError or CatalogError, one line, for what does not fit.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str | Port | None = None,
        calibration: RoutingTrace | None = None,
        charge: str | None = None,
        **spec: Any,
    ) -> None:
        if not hasattr(model, "set_experts_implementation"):
            raise LiveError(f"{type(model).__name__}: is no model of transformers >= 5.0. {NEEDED}")
        self.model, self.shape = model, shape_of(model)
        run = RunSpec.of({"trace": self.shape.name, **spec})
        self.loop = ClosedLoop(run, self.shape, calibration, charged(model, self.shape, charge))
        self._slotted = SlottedModel(model, self.loop, device)
        self._undo: list[Callable[[], Any]] = []
        self._prompt: int | None = None
        self._first, self._rows = 0, 0

    def __enter__(self) -> OffloadedExperts:
        self._slotted.__enter__()
        decoder = self.model.get_decoder()
        self._undo = [
            decoder.register_forward_pre_hook(self._begin, with_kwargs=True).remove,
            decoder.register_forward_hook(self._end).remove,
            self._wrap_generate(),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for undo in self._undo:
            undo()
        self._slotted.__exit__(*error)

    @property
    def store(self) -> ExpertStore:
        """All experts on the host, some of them in slots, while it is open."""
        return self._slotted.store

    def record(self) -> RunRecord:
        """The record of everything so far, as of a replay. The run ends with it: no step may follow."""
        return self.loop.record()

    def summary(self) -> dict[str, Any]:
        """The figures of `record()`, by the names of `sim.run --json`."""
        return summarise(self.record())

    def trace(self) -> RoutingTrace:
        """What the routers said: replayed by sim.run with the same policies it gives the same decisions."""
        return self.loop.trace()

    # --- steps ---------------------------------------------------------------------------------------------------

    def _begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input_ids", args[0] if args else None)
        given = kwargs.get("inputs_embeds") if given is None else given
        assert given is not None
        rows, columns = int(given.shape[0]), int(given.shape[1])
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        if past == 0 or rows != self._rows:
            self._first, self._rows = self._first + self._rows, rows
        prefill = past < self._prompt if self._prompt is not None else past == 0 or columns > 1
        requests = [self._first + b for b in range(rows) for _ in range(columns)]
        self._slotted.driver.begin(requests, list(range(past, past + columns)) * rows, prefill)

    def _end(self, *_: Any) -> None:
        self._slotted.driver.end()

    def _wrap_generate(self) -> Callable[[], Any]:
        """Learn the prompt's length from `generate`, which is told not to compile: hooks are not compiled."""
        model, original = self.model, self.model.generate

        def generate(inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
            given = [kwargs.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask")]
            self._prompt = max([int(t.shape[1]) for t in (inputs, *given) if t is not None], default=1)
            try:
                return original(inputs, *args, **{"disable_compile": True, **kwargs})
            finally:
                self._prompt = None

        model.generate = generate
        return lambda: model.__dict__.pop("generate", None)


# --- the command -----------------------------------------------------------------------------------------------------

LEFT_OUT = ("trace", "model", "batch", "prefill_chunk", "as_decode", "max_steps", "machine", "config")


def load_model(path: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a Hugging Face folder or name. Raises LiveError, one line."""
    _registry()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
        return model.eval(), AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise LiveError(f"model: {path}: {' '.join(str(error).split())[:300]}") from None


def parser() -> Parser:
    out = Parser(prog="python -m runtime.live", description="Generate with the experts of a model offloaded.")
    group = out.add_argument_group("model")
    group.add_argument("--model", dest="subject", required=True, metavar="PATH", help="Hugging Face MoE model")
    group.add_argument("--prompt", required=True, help="text to continue")
    group.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="default: 32")
    group.add_argument(
        "--device", metavar="cpu|cuda|...", help="of the slots and all but the experts (default: the model's)"
    )
    group.add_argument("--charge", metavar="NAME|FILE", help="charge layers and experts of this model's width instead")
    add_flags(out, LEFT_OUT)
    out.add_argument("--json", action="store_true", help="print exactly one JSON object")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    args.trace = args.subject
    spec = spec_of(args)
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {args.max_new_tokens}; it must be at least 1")
    if isinstance(spec.calibration, float):
        raise UserError("calibration: a fraction is of a trace's requests; give a FILE")
    calibration = None if spec.calibration is None else npz.read(npz.find(spec.calibration))
    model, tokenizer = load_model(args.subject)
    announce_compiling()
    fields = {name: getattr(spec, name) for name in spec.model_fields_set if name not in (*LEFT_OUT, "calibration")}
    with OffloadedExperts(model, device=args.device, calibration=calibration, charge=args.charge, **fields) as live:
        inputs = tokenizer(args.prompt, return_tensors="pt").to(model.device)
        out = model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False)
        summary = {"text": tokenizer.decode(out[0]), **live.summary()}
    print(json.dumps(summary) if args.json else told(summary))


def told(summary: dict[str, Any]) -> str:
    """The same for people."""
    wanted = summary["wanted"] or 1
    return "\n".join((
        summary["text"],
        "",
        f"{summary['prompt_tokens']} prompt and {summary['tokens']} decode tokens; wanted experts {summary['wanted']}: "
        + ", ".join(f"{kind} {summary[kind] / wanted:.1%}" for kind in ("hits", "late", "misses")),
        f"substituted {summary['substituted']}, dropped {summary['dropped']}, on the CPU {summary['cpu']} of "
        f"{summary['slots_wanted']} slots; {sum(summary['h2d_bytes'].values()) / 1e6:.3f} MB copied",
        f"simulated: {summary['tokens_per_s'] or 0:.1f} tokens/s",
    ))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
