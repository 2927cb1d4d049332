"""python -m runtime.replay: replay a trace on a real device, with the policies of the simulator.

Takes every flag of sim.run. The summary is the simulator's, with machine "torch" and an entry `device`; the record has
the simulator's schema. Exit status 0 done, 1 the device failed or decisions differ, 2 bad input, 130 interrupted.

The routing is the trace's, whatever the router of the replayed model says; its ids are read back all the same. Bounds
are left out: they hold for the plan's hardware, not for this device.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from runtime.device.choose import choose
from runtime.device.flags import failed, host_memory_flag, with_device
from runtime.device.port import Port
from runtime.replaying.decisions import Outcome
from runtime.replaying.lockstep import LockStep, check, in_lock_step
from runtime.replaying.opened import KERNELS, Opened, Options, at_scale
from sim.errors import SpecError
from sim.machines.record import RunRecord, load
from sim.outcome.report import result
from sim.outcome.report import table as simulated
from sim.prepare import Setting, prepare
from sim.run import LISTS, announce_compiling, check_out, parser, spec_of, write
from sim.run import main as simulate
from traces.command import guarded


def replay(setting: Setting, port: Port, options: Options) -> list[RunRecord]:
    """Replay a setting `repeat` times after a warm-up; the records. Closes the port."""
    with Opened(port, [setting], options) as device:
        device.warm_up(setting)
        return [device.machine(setting).run() for _ in range(options.repeat)]


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
    return with_device(lambda: _run(args))


def options_of(args: argparse.Namespace) -> Options:
    """How the flags say that the trace is replayed."""
    return Options(args.scale, args.alias_host, args.weights, args.expert_kernel, args.repeat, args.host_memory)


def _run(args: argparse.Namespace) -> int:
    setting, options = prepare(spec_of(args)), options_of(args)
    recorded = None if args.lock_step is None else recorded_run(Path(args.lock_step), setting)
    checked: dict[str, Outcome] = {}
    with Opened(choose(args.device, args.link_gbps, args.link_latency_us), [setting], options) as device:
        device.warm_up(setting)
        if recorded is None:
            records = [device.machine(setting).run() for _ in range(options.repeat)]
        else:
            found, outcome = in_lock_step(device.machine(setting, order=LockStep.of(recorded)))
            records, checked["the recorded order, on the device"] = [found] if found else [], outcome
            checked["the recorded order, through the core"] = check(setting.plan, recorded)
        facts = device.port.facts() | {"wrong_slots": device.wrong_slots()}
    if records and args.check:
        checked["this run's order, through the core"] = check(setting.plan, _median(records))
    if records:
        summary = summary_of(at_scale(setting, options.scale), _median(records), facts, options, _times(records))
        summary["device"]["lock_step"] = {what: outcome.as_dict() for what, outcome in checked.items()}
        if args.out:
            write(Path(args.out), summary, _median(records), args.record or "summary")
        print(json.dumps(summary) if args.json else table(summary))
    unequal = [f"{what}: {found.difference or found.error}" for what, found in checked.items() if not found.equal]
    if unequal:
        return failed(f"decisions differ: {'; '.join(unequal)}", 1)
    if facts["wrong_slots"]:
        return failed(f"slots hold other bytes than their experts: {facts['wrong_slots']}", 1)
    return 0


def _times(records: Sequence[RunRecord]) -> list[int]:
    return [int(r.steps["end_ns"][-1] - r.steps["begin_ns"][r.warmup_steps]) for r in records]


def _median(records: Sequence[RunRecord]) -> RunRecord:
    return records[int(np.argsort(_times(records))[(len(records) - 1) // 2])]


def recorded_run(folder: Path, setting: Setting) -> RunRecord:
    """The full record in a folder. Raises SpecError when there is none, or when it is of another spec or trace."""
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


def summary_of(
    setting: Setting, record: RunRecord, facts: dict[str, Any], options: Options, times: Sequence[int] = ()
) -> dict[str, Any]:
    """The simulator's summary object, with machine "torch", no bounds, and `device`: the port's facts, the options,
    what the link moved while it was busy, and the time of every repeat."""
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
