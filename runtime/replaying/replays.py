"""Whole replays: a device opened, warmed up, run as often as is asked, checked, and told as simulated runs are.

The routing is the trace's, whatever the router of the replayed model says; its ids are read back all the same. Bounds
are left out: they hold for the plan's hardware, not for this device.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from runtime.device.choose import choose
from runtime.device.flags import failed
from runtime.device.port import Port
from runtime.replaying.decisions import Outcome
from runtime.replaying.lockstep import LockStep, check, in_lock_step
from runtime.replaying.opened import Opened, Options, at_scale
from sim.errors import SpecError
from sim.flags import spec_of
from sim.machines.record import RunRecord, load
from sim.outcome.how_sure import PHASES, key_of
from sim.outcome.report import result
from sim.outcome.table import table as simulated
from sim.prepare import Setting, prepare
from sim.simulation import write
from traces.progress import counted, doing


def replay(setting: Setting, port: Port, options: Options) -> list[RunRecord]:
    """Replay a setting `repeat` times after a warm-up; the records. Closes the port."""
    with Opened(port, [setting], options) as device:
        device.warm_up(setting)
        return [device.machine(setting).run() for _ in range(options.repeat)]


def options_of(args: argparse.Namespace) -> Options:
    """How the flags say that the trace is replayed."""
    return Options(args.scale, args.alias_host, args.weights, args.expert_kernel, args.repeat, args.host_memory)


def run(args: argparse.Namespace) -> int:
    """The replay that the flags of runtime.replay ask for, told and written; the exit status."""
    setting, options = prepare(spec_of(args)), options_of(args)
    recorded = None if args.lock_step is None else recorded_run(Path(args.lock_step), setting)
    checked: dict[str, Outcome] = {}
    doing("opening the device, filling host memory with experts", at_once=False)
    with Opened(choose(args.device, args.paced_gbps, args.link_latency_us), [setting], options) as device:
        doing("warming up", at_once=False)
        device.warm_up(setting)
        doing("", at_once=False)
        if recorded is None:
            repeats = counted(range(options.repeat), "replaying, run")
            records = [device.machine(setting).run() for _ in repeats]
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
    spec, theirs = setting.spec.saved(("machine",)), meta.get("spec", {})
    other = [name for name in {**spec, **theirs} if theirs.get(name) != spec.get(name)]
    for name in other:
        if name not in ("trace", "hardware"):
            raise SpecError(f"lock-step: {folder}: has {name} {theirs.get(name)!r}; this run has {spec.get(name)!r}")
    if meta.get("trace", {}).get("hash") != setting.trace_hash:
        raise SpecError(f"lock-step: {folder}: was recorded from another trace")
    return record


def summary_of(
    setting: Setting, record: RunRecord, facts: dict[str, Any], options: Options, times: Sequence[int] = ()
) -> dict[str, Any]:
    """The simulator's summary object, with machine "torch", no bounds, and `device`: the port's facts, the options,
    what the link moved while it was busy, and the time of every repeat."""
    out = result(setting, record)
    out |= {"machine": "torch", "bounds": {}, **{key: None for key in map(key_of, PHASES) if key in out}}
    out["marks"]["catalog_costs"] = False
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
