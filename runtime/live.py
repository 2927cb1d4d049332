"""Hugging Face models that generate through our expert cache: an experts implementation of transformers >= 5.0.

    with OffloadedExperts(model, cache=0.25, miss="fetch", eviction="lru") as live:
        model.generate(**inputs, max_new_tokens=100)
        print(live.summary()["misses"])

While it is open, the weights of all experts are in host memory, one packed buffer each, and only `slots` of them on the
device. At each MoE layer the router's choice goes to the closed loop (`runtime.closed_loop.loop`), whose decisions are
those of the simulator for the hardware asked for; they are then carried out: experts are copied into the slots of their
victims, in the order of the commits, and computed from slots alone, group by group, so that a visit that wants more
experts than there are slots runs in waves. An expert that the policy gives to the CPU is computed there.

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
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from runtime.closed_loop.driver import shape_of
from runtime.closed_loop.evaluation import LEFT_OUT
from runtime.closed_loop.loop import ClosedLoop
from runtime.closed_loop.mean_outputs import MeanOutputs
from runtime.closed_loop.priced_as import priced_as
from runtime.closed_loop.slotted import NEEDED, SlottedModel, load_model
from runtime.device.port import Port
from runtime.experts.store import ExpertStore
from sim.flags import add_groups, spec_of
from sim.machines.record import RunRecord
from sim.outcome.how_sure import how_sure, intervals
from sim.outcome.marks import machine_words
from sim.outcome.summary import summarise
from sim.prepare import Setting
from sim.spec import RunSpec
from traces.command import Parser, guarded
from traces.errors import UserError
from traces.format import npz
from traces.format.trace import RoutingTrace
from traces.progress import doing


class OffloadedExperts:
    """A Hugging Face model with its experts offloaded, while it is open; `generate` and plain calls are served.

    spec: any fields of sim.spec.RunSpec but `trace` and `model`: cache, miss, eviction, prefetch, rerank, hardware, ...
    device: of the slots and of everything but the experts: a name, an open port of runtime.device (whose link's pace
    then holds), or None, where the model is. calibration: what fitted policies are fitted on. charge: whose sizes are
    charged in simulated time (default: the model's own). means: what --miss mean-output answers by
    (runtime.closed_loop.mean_outputs).
    Raises UserError, one line, for what does not fit.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str | Port | None = None,
        calibration: RoutingTrace | None = None,
        charge: str | None = None,
        means: MeanOutputs | None = None,
        **spec: Any,
    ) -> None:
        if not hasattr(model, "set_experts_implementation"):
            raise UserError(f"{type(model).__name__}: is no model of transformers >= 5.0. {NEEDED}")
        self.model, self.shape = model, shape_of(model)
        run = RunSpec.of({"trace": self.shape.name, **spec})
        self.loop = ClosedLoop(run, self.shape, calibration, priced_as(model, self.shape, charge), means=means)
        self._slotted = SlottedModel(model, self.loop, device)
        self._undo: list[Callable[[], Any]] = []
        self._prompt: int | None = None
        self._first, self._rows = 0, 0

    def __enter__(self) -> OffloadedExperts:
        decoder = self.model.get_decoder()
        self._slotted.__enter__()
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
    def store(self) -> ExpertStore[dict[str, Tensor]]:
        """All experts on the host, some of them in slots, while it is open."""
        return self._slotted.store

    def record(self) -> RunRecord:
        """The record of everything so far, as of a replay. The run ends with it: no step may follow."""
        return self.loop.record()

    def summary(self) -> dict[str, Any]:
        """The figures of `record()`, by the names of `sim.run --json`, and `priced`: by whose costs they are."""
        out, setting = summarise(self.record()), self.loop.setting
        return out | intervals(setting, out) | {"priced": priced(setting)}

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


def priced(setting: Setting) -> dict[str, Any]:
    """What simulated time is charged by: hardware, engine and model, in words; catalog_costs: from rates of the catalog
    (calibrated: from durations measured on a device)."""
    hardware = setting.hardware
    return {
        "hardware": machine_words(setting.spec.saved()),
        "engine": setting.spec.engine,
        "model": None if setting.model is None else setting.model.name,
        "calibrated": hardware.measured is not None,
        "catalog_costs": hardware.durations is None,
    }


# --- the command -----------------------------------------------------------------------------------------------------


def parser() -> Parser:
    out = Parser(prog="python -m runtime.live", description="Generate with the experts of a model offloaded.")
    group = out.add_argument_group("model")
    group.add_argument("--model", dest="judged_model", required=True, metavar="PATH", help="Hugging Face MoE model")
    group.add_argument("--prompt", required=True, help="text to continue")
    group.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="default: 32")
    group.add_argument(
        "--device", metavar="cpu|cuda|...", help="of the slots and all but the experts (default: the model's)"
    )
    group.add_argument("--charge", metavar="NAME|FILE", help="charge layers and experts of this model's width instead")
    add_groups(out, LEFT_OUT)
    out.add_argument("--json", action="store_true", help="print exactly one JSON object")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    args.trace = args.judged_model
    spec = spec_of(args)
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {args.max_new_tokens}; it must be at least 1")
    if isinstance(spec.calibration, float):
        raise UserError("calibration: a fraction is of a trace's requests; give a FILE")
    calibration = None if spec.calibration is None else npz.read(npz.find(spec.calibration))
    doing(f"loading {args.judged_model}", at_once=False)
    model, tokenizer = load_model(args.judged_model)
    fields = {name: getattr(spec, name) for name in spec.model_fields_set if name not in (*LEFT_OUT, "calibration")}
    doing("generating", at_once=False)
    with OffloadedExperts(model, device=args.device, calibration=calibration, charge=args.charge, **fields) as live:
        inputs = tokenizer(args.prompt, return_tensors="pt").to(model.device)
        out = model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False)
        summary = {"text": tokenizer.decode(out[0]), **live.summary()}
    sure = how_sure(summary["tokens_per_s_interval"], summary["priced"]["catalog_costs"])
    print(json.dumps(summary) if args.json else told(summary, sure))


def told(summary: dict[str, Any], sure: str) -> str:
    """The same for people. sure: how sure the speed is, in words."""
    wanted = summary["wanted"] or 1
    return "\n".join((
        summary["text"],
        "",
        f"{summary['prompt_tokens']} prompt and {summary['tokens']} decode tokens; wanted experts {summary['wanted']}: "
        + ", ".join(f"{kind} {summary[kind] / wanted:.1%}" for kind in ("hits", "late", "misses")),
        f"substituted {summary['substituted']}, dropped {summary['dropped']}, on the CPU {summary['cpu']} of "
        f"{summary['slots_wanted']} slots; {sum(summary['h2d_bytes'].values()) / 1e6:.3f} MB copied",
        "simulated on {hardware}, engine {engine}, sizes of {model}: ".format(**summary["priced"])
        + f"{summary['tokens_per_s'] or 0:.1f} tokens/s{sure}; what this machine takes, runtime.replay measures",
    ))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
