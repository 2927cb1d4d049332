"""python -m runtime.replay: replay a trace on a real device, with the policies of the simulator.

Takes every flag of sim.run. The summary is the simulator's, with machine "torch" and an entry `device`; the record has
the simulator's schema. Exit status 0 done, 1 the device failed or decisions differ, 2 bad input, 130 interrupted.

The routing is the trace's, whatever the router of the replayed model says; its ids are read back all the same. Bounds
are left out: they hold for the plan's hardware, not for this device.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.device.port import DeviceError
from sim.core.plan import ANSWERS_CPU
from sim.errors import SpecError
from sim.flags import spec_of
from sim.run import LISTS, parser
from sim.run import main as simulate
from sim.simulation import announce_compiling, check_out, write
from sim.spec import memory_bytes
from traces.command import guarded

if TYPE_CHECKING:
    from runtime.device.port import Port
    from runtime.replaying.machine import Machine
    from sim.machines.record import RunRecord
    from sim.prepare import Setting

KERNELS = ("auto", "loop", "grouped")
SAMPLE = 64  # slots that are compared with the host's bytes after a run


@dataclass(frozen=True)
class Options:
    """How a trace is replayed, beside its spec. scale: times the model's widths; alias: distinct experts on the host
    per layer (None: all); weights: folder of a checkpoint (None: seeded noise); kernel: how several experts of a group
    run; repeat: how often; host_bytes: host memory as stated (None: as the system has it)."""

    scale: float = 1.0
    alias: int | None = None
    weights: str | None = None
    kernel: str = "auto"
    repeat: int = 1
    host_bytes: int | None = None


@dataclass
class Prepared:
    """A port with a store, the kernels, and the setting at the scale that is replayed."""

    setting: "Setting"
    port: "Port"
    store: Any
    work: Any
    last: "Machine | None" = None

    def machine(self, plan: Any = None, **options: Any) -> "Machine":
        """A fresh run of the setting's plan, or of another one with the same sizes."""
        from runtime.replaying.machine import Machine

        self.last = Machine(self.setting.plan if plan is None else plan, self.port, self.store, self.work, **options)
        return self.last

    def in_lock_step(self, recorded: "RunRecord") -> "tuple[RunRecord | None, list[tuple[str, Any]]]":
        """Run the device in the order of a record, and that order through the core alone: the record of the run (None
        when it had to stop) and what was compared."""
        from runtime.replaying.lockstep import LockStep, Unequal, check

        machine = self.machine(order=LockStep.of(recorded))
        assert isinstance(machine.order, LockStep)
        done = None
        try:
            done = machine.run()
            machine.order.finish()
        except (Unequal, DeviceError):
            if machine.order.outcome.equal:
                raise
        alone = ("the recorded order, through the core", check(self.setting.plan, recorded))
        return done, [("the recorded order, on the device", machine.order.outcome), alone]

    def wrong_slots(self) -> list[int]:
        """Experts, of a sample of those resident after the last run, whose slot does not hold their bytes."""
        there = sorted(self.last.residents().items()) if self.last else []
        return [] if not there else self.store.wrong_slots(dict(there[:: -(-len(there) // SAMPLE)]))

    def warm_up(self) -> None:
        """Run the first steps once, unmeasured: kernels are loaded, tuned and cached."""
        from sim.steps import first_steps

        prefill = self.setting.plan.step_prefill
        enough = 1 + max(int(np.argmax(prefill)), int(np.argmax(~prefill)))
        steps = first_steps(self.setting.steps, min(max(enough, 2), len(prefill), 24))
        few = replace(
            self.setting.plan,
            step_offset=steps.offset,
            step_row=steps.row,
            step_prefill=steps.prefill,
            requests=steps.requests,
            warmup_steps=0,
        )
        self.machine(few).run()


def at_scale(setting: "Setting", scale: float) -> "Setting":
    """The setting with the model's widths times `scale`. Raises SpecError when the model is not known."""
    from runtime.replaying.layers import scaled

    if setting.model is None:
        raise SpecError(
            "model: the catalog does not know the trace's; the replay needs one, --model NAME|FILE names it"
        )
    model = scaled(setting.model, scale)
    size, low = model.expert_bytes(setting.spec.precision), setting.plan.low
    if low is not None:
        low = replace(low, bytes=model.expert_bytes(low_precision(setting)))
    return replace(setting, model=model, plan=replace(setting.plan, expert_bytes=size, low=low))


def low_precision(setting: "Setting") -> str:
    """The precision of the low-precision copies of a miss policy that has them."""
    from sim.catalog import precision
    from sim.policies.registry import find

    miss = find("miss", setting.spec.miss)
    return precision(str(miss.values(setting.spec.params("miss"))["precision"]))


@contextmanager
def prepared(setting: "Setting", port: "Port", options: Options = Options()) -> Iterator[Prepared]:
    """Memory, weights and kernels of a setting on a port, given back at the end.

    Raises StoreError when it does not fit (before anything is allocated) or the checkpoint is wrong.
    """
    try:
        yield _prepare(at_scale(setting, options.scale), port, options)
    finally:
        port.close()


def _prepare(setting: "Setting", port: "Port", options: Options) -> Prepared:
    from runtime.device.worker import failing
    from runtime.experts import store
    from runtime.experts.quantised import LowLayout
    from runtime.replaying import layers
    from sim.catalog import precision

    plan, model = setting.plan, setting.model
    assert model is not None
    layout = store.Layout.of(model, precision(setting.spec.precision))
    moe_layers, n_layers = setting.trace.meta["moe_layers"], setting.trace.n_layers
    batches = layers.Batches(
        setting.trace, plan.step_offset, plan.step_row, plan.step_prefill, setting.spec.context_offset
    )
    dense = layers.dense_bytes(model, layout, batches, n_layers, moe_layers)
    sizes = (len(moe_layers), plan.n_experts)
    low = None if plan.low is None else LowLayout.of(layout.elements, low_precision(setting))
    low_slots = [] if plan.low is None else plan.low.slots.tolist()
    needs = store.need(layout, *sizes, int(plan.slots.sum()), options.alias, dense, low, sum(low_slots))
    store.fits(needs, port, options.host_bytes)
    source: store.Source = store.Synthetic(layout, setting.spec.seed)
    if options.weights is not None:
        source = store.Checkpoint(options.weights, layout, moe_layers)
    group = groups(options.kernel, layout, port)
    with failing("weights and caches"):
        experts = store.ExpertStore(port, layout, *sizes, plan.slots.tolist(), source, options.alias, low, low_slots)
        work = layers.CatalogWork(port, model, experts, batches, moe_layers, n_layers, uses_host(plan), group)
    return Prepared(setting, port, experts, work)


def uses_host(plan: Any) -> bool:
    """Whether the miss policy may have the CPU compute an expert."""
    return bool(plan.miss.marks & ANSWERS_CPU)


def groups(kernel: str, layout: Any, port: "Port") -> bool:
    """Whether the experts of a group run in one kernel. `auto`: on an accelerator in bf16, where torch can."""
    from runtime.replaying.layers import has_grouped

    if kernel not in KERNELS:
        raise SpecError(f"expert-kernel: {kernel}: must be one of {', '.join(KERNELS)}")
    possible = has_grouped() and not layout.biases
    if kernel == "grouped" and not possible:
        raise SpecError("expert-kernel: grouped: needs torch.nn.functional.grouped_mm and experts without biases")
    return kernel == "grouped" or (
        kernel == "auto" and possible and port.device.type == "cuda" and layout.dtype.itemsize == 2
    )


def replay(setting: "Setting", port: "Port", options: Options = Options()) -> "list[RunRecord]":
    """Replay a setting `repeat` times after a warm-up; the records. Closes the port."""
    with prepared(setting, port, options) as here:
        here.warm_up()
        return [here.machine().run() for _ in range(options.repeat)]


# --- the command -----------------------------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    """The flags of sim.run and of the device."""
    out = parser()
    out.prog, out.description = "python -m runtime.replay", "Replay a trace on a device."
    group = out.add_argument_group("the device")
    group.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda|xpu|mps", help="where it runs (default: auto)"
    )
    group.add_argument("--link-gbps", type=float, metavar="N", help="pace of --device cpu's link (default: 25)")
    group.add_argument("--link-latency-us", type=float, default=10.0, metavar="N", help="its set-up (default: 10)")
    group.add_argument("--scale", type=float, default=1.0, metavar="F", help="times the model's widths (default: 1)")
    group.add_argument(
        "--alias-host", type=int, metavar="N", help="distinct experts per layer on the host; others share"
    )
    host_memory_flag(group)
    group.add_argument("--weights", metavar="DIR", help="experts of a Hugging Face checkpoint (default: seeded noise)")
    group.add_argument("--expert-kernel", choices=KERNELS, default="auto", help="how the experts of a group run")
    group.add_argument("--repeat", type=int, default=1, metavar="N", help="run so often, report the median")
    group.add_argument("--lock-step", metavar="DIR", help="take the order of completions from the full record there")
    group.add_argument("--check", action="store_true", help="run the order of completions through the core alone, too")
    return out


def host_memory_flag(group: Any) -> None:
    """--host-memory, of every command that holds experts on the host."""
    what = "host memory that there is (default: what the system says, which may begin small)"
    group.add_argument("--host-memory", type=_memory, metavar="100GB", help=what)


def _memory(text: str) -> int:
    try:
        return memory_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> int:
    args = arguments().parse_args(argv)
    for what in LISTS:
        if getattr(args, f"list_{what}"):
            return simulate([f"--list-{what}"])
    if args.machine is not None:
        raise SpecError(f"machine: {args.machine}: the replay is the torch machine; leave it out")
    for name, value, low in (("scale", args.scale, 0), ("repeat", args.repeat, 0), ("alias-host", args.alias_host, 0)):
        if value is not None and not value > low:
            raise SpecError(f"{name}: {value}: must be above {low}")
    if args.lock_step and args.repeat != 1:
        raise SpecError(f"repeat: {args.repeat}: a lock-step runs once")
    check_out(args)
    announce_compiling()
    try:
        return _run(args)
    except DeviceError as error:
        return _failed(str(error), 1)
    except KeyboardInterrupt:
        return _failed("interrupted", 130)


def _failed(why: str, status: int) -> int:
    print(f"error: {' '.join(why.split())}", file=sys.stderr)
    return status


def _run(args: argparse.Namespace) -> int:
    from runtime.device.port import choose
    from sim.prepare import prepare

    setting = prepare(spec_of(args))
    recorded = None if args.lock_step is None else recorded_run(Path(args.lock_step), setting)
    options = Options(args.scale, args.alias_host, args.weights, args.expert_kernel, args.repeat, args.host_memory)
    checked: list[tuple[str, Any]] = []
    with prepared(setting, choose(args.device, args.link_gbps, args.link_latency_us), options) as here:
        here.warm_up()
        if recorded is None:
            records = [here.machine().run() for _ in range(options.repeat)]
        else:
            found, outcomes = here.in_lock_step(recorded)
            records, checked = [found] if found else [], outcomes
        facts = here.port.facts() | {"wrong_slots": here.wrong_slots()}
    if records and args.check:
        checked.append(("this run's order, through the core", check_here(here.setting, _median(records))))
    if records:
        summary = summary_of(here.setting, _median(records), facts, options, _times(records))
        summary["device"]["lock_step"] = {what: outcome.as_dict() for what, outcome in checked}
        if args.out:
            write(Path(args.out), summary, _median(records), args.record or "summary")
        print(json.dumps(summary) if args.json else table(summary))
    unequal = [f"{what}: {outcome.difference or outcome.error}" for what, outcome in checked if not outcome.equal]
    if unequal:
        return _failed(f"decisions differ: {'; '.join(unequal)}", 1)
    if facts["wrong_slots"]:
        return _failed(f"slots hold other bytes than their experts: {facts['wrong_slots']}", 1)
    return 0


def _times(records: "Sequence[RunRecord]") -> list[int]:
    return [int(r.steps["end_ns"][-1] - r.steps["begin_ns"][r.warmup_steps]) for r in records]


def _median(records: "Sequence[RunRecord]") -> "RunRecord":
    return records[int(np.argsort(_times(records))[(len(records) - 1) // 2])]


def recorded_run(folder: Path, setting: "Setting") -> "RunRecord":
    """The full record in a folder. Raises SpecError when there is none, or when it is of another spec or trace."""
    from sim.machines.record import load

    record, meta = load(folder / "record.npz" if folder.is_dir() else folder)
    if not record.groups:
        raise SpecError(f"lock-step: {folder}: holds no full record; write it with --record full")
    spec, theirs = setting.spec.model_dump(exclude={"machine"}), meta.get("spec", {})
    other = [name for name, value in spec.items() if theirs.get(name) != value and name not in ("trace", "hardware")]
    if other:
        name = other[0]
        raise SpecError(f"lock-step: {folder}: has {name} {theirs.get(name)!r}; this run has {spec[name]!r}")
    if meta.get("trace", {}).get("hash") != setting.trace_hash:
        raise SpecError(f"lock-step: {folder}: was recorded from another trace")
    return record


def check_here(setting: "Setting", record: "RunRecord") -> Any:
    """A record's order of completions through the core alone (runtime.replaying.lockstep.check)."""
    from runtime.replaying.lockstep import check

    return check(setting.plan, record)


def summary_of(
    setting: "Setting", record: "RunRecord", facts: dict[str, Any], options: Options, times: Sequence[int] = ()
) -> dict[str, Any]:
    """The simulator's summary object, with machine "torch", no bounds, and `device`: the port's facts, the options,
    what the link moved while it was busy, and the time of every repeat."""
    from sim.outcome.report import result

    out = result(setting, record)
    out |= {"machine": "torch", "bounds": {}}
    spread = (max(times) - min(times)) / sorted(times)[len(times) // 2] if times else None
    moved, busy = sum(out["h2d_bytes"].values()), out["link_busy_ns"]
    measured = {"h2d_gb_per_s": moved / busy if busy else None, "repeat_time_ns": list(times), "spread": spread}
    out["device"] = facts | asdict(options) | measured
    if options.alias is not None:
        out["notes"].append(
            f"ALIASED HOST: only {options.alias} experts per layer are distinct; outputs are not the model's"
        )
    if options.scale != 1:
        out["notes"].append(f"SCALED: the model's widths times {options.scale:g}; times are those of the smaller model")
    return out


def table(out: dict[str, Any]) -> str:
    """The same for people: sim.run's table, and the device."""
    from sim.outcome.report import table as simulated

    device = out["device"]
    times = ", ".join(f"{ns / 1e9:.3f}" for ns in device["repeat_time_ns"])
    return "\n".join(
        [
            simulated(out),
            f"{'device':<12} {device['what']}; torch {device['torch']}",
            f"{'runs':<12} {times} s, spread {device['spread']:.1%}; the median is shown",
            *(_compared(what, outcome) for what, outcome in device["lock_step"].items()),
        ]
    )


def _compared(what: str, outcome: dict[str, Any]) -> str:
    kinds = ", ".join(f"{name} {n:,}" for name, n in outcome["compared"].items())
    verdict = "equal" if outcome["equal"] else "DIFFERENT"
    return f"{'lock-step':<12} {what}: {outcome['decisions']:,} decisions {verdict} ({kinds})"


if __name__ == "__main__":
    sys.exit(main())
