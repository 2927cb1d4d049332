"""python -m runtime.calibrate: a hardware file from what this device really takes.

Every term is measured in place: calibration cases are replayed through the replay's own code, with its readback, its
decisions and its waits, round after round in a new seeded order, and the terms are fitted to the full records
(runtime.measuring.terms). A kernel timed alone lets the host run ahead, which an offloading engine cannot; such
microbenchmarks stand beside the terms as a cross-check only.

Exit status 0 done, 1 the device failed, 2 bad input. The file is written whole or not at all.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.device.flags import with_device
from runtime.measuring import flags
from runtime.measuring.cases import BATCHES, Case, Traces, calibrating, enough_requests, replaying, synthetic
from runtime.measuring.durations import TimedRun
from runtime.measuring.flags import (
    capacity,
    common_fields,
    deadline_of,
    device_flags,
    listed,
    measuring_flags,
    options_of,
    own_link,
    requests,
)
from runtime.measuring.hardware_file import section_of, write_hardware
from runtime.measuring.microbenchmarks import microbenchmarks
from runtime.measuring.rounds import Budget, Deadline, complete, measured
from runtime.measuring.terms import fitted
from sim.errors import SpecError
from sim.prepare import Setting
from sim.spec import slots_of
from traces.command import Parser, guarded
from traces.errors import UserError
from traces.format import npz
from traces.progress import doing

CACHES = (0.375, 0.75)
QUICK_S, LONG_S = 90.0, 600.0  # of everything
CHECKS = 0.15  # of it, for what comes after the rounds: the fits, bare copies, the cross-check


def parser() -> Parser:
    """The flags."""
    out = Parser(prog="python -m runtime.calibrate", description="Measure a device; write a hardware file for sim.run.")
    out.add_argument("--out", required=True, metavar="FILE.toml", help="the hardware file to write")
    out.add_argument("--model", metavar="NAME|FILE", help="model that runs (default: the trace's)")
    out.add_argument(
        "--trace", metavar="FILE|SAMPLE", help="what is replayed (default: synthetic, in the model's shape)"
    )
    out.add_argument(
        "--caches", type=listed(capacity), default=list(CACHES), metavar="A,B", help="capacities (0.375,0.75)"
    )
    out.add_argument(
        "--batches", type=listed(requests), default=list(BATCHES), metavar="A,B", help="requests together (1,4)"
    )
    out.add_argument("--host-experts", action="store_true", help="also time experts on the CPU (for miss policy cpu)")
    out.add_argument("--json", action="store_true", help="print one JSON object: the terms, and the cross-check")
    device_flags(out)
    measuring_flags(out)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(lambda found: with_device(lambda: _command(found)), argv)


def _command(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if not args.out.endswith(".toml"):
        raise UserError(f"out: {args.out}: must end in .toml, by which sim.run knows a file")
    if not Path(args.out).resolve().parent.is_dir():
        raise UserError(f"out: {args.out}: its folder does not exist")
    if args.trace is None and args.model is None:
        raise UserError("trace: missing; give --trace FILE, or --model NAME to calibrate on a synthetic trace")
    with tempfile.TemporaryDirectory() as folder:
        return _calibrate(args, Path(folder))


def _calibrate(args: argparse.Namespace, folder: Path) -> int:
    deadline = deadline_of(args, QUICK_S, LONG_S)
    common, options = common_fields(args), options_of(args)
    cases = calibrating(own_link(args), args.caches, args.batches, args.host_experts)
    traces = requests_of(args, folder)
    settings = {case: traces.setting(case, common, "a100-pcie4") for case in cases}
    experts = settings[cases[0]].plan.n_experts
    if min(slots_of(cache, experts) for cache in args.caches) >= experts:
        raise SpecError(
            f"caches: all {experts} experts of a layer are there, and none would cross the link; give fewer"
        )
    asked = args.repeats or (3 if args.quick else 5)
    doing("opening the device")
    with flags.open_bench(args, list(settings.values()), options) as bench:
        runs = rounds_of(bench, settings, deadline, asked, args.seed)
        doing("fitting, and copying without anything else")
        found = fitted(runs)
        words, bare = cross_check(bench, runs[-1][0], deadline)
        table = section_of(found, bench, settings[cases[0]], options.scale, bare)
    took = f"{len(runs)} of {asked} rounds, {deadline.gone_s:.0f} s of {deadline.seconds:g} s"
    about = [
        f"made by python -m runtime.calibrate, {took}, on: {table['measured']['device']}",
        f"requests: {args.trace or 'synthetic, in the shape of the model'}",
        *(f"{name}: {text}" for name, text in words.items()),
    ]
    write_hardware(args.out, table, about)
    spent = {"rounds": len(runs), "rounds_asked": asked, "deadline_s": deadline.seconds}
    out = {"hardware": table, "cross_check": words, **spent, "seconds": round(deadline.gone_s, 1)}
    print(json.dumps(out) if args.json else f"{report(args.out, table, words)}\n{took}")
    return 0


def rounds_of(
    bench: Any, settings: dict[Case, Setting], deadline: Deadline, asked: int, seed: int
) -> list[list[TimedRun]]:
    """The records of every round, in the order of the settings; before them one replay that is not measured: kernels
    are loaded, memory is touched."""
    cases, replay = list(settings), replaying(bench, settings)
    before_s = deadline.gone_s
    complete(cases[:1], replay, deadline, "the warm-up")
    round_s = (deadline.gone_s - before_s) * len(cases)
    rounds = measured(cases, replay, Budget(deadline, round_s, fixed_s=CHECKS * deadline.seconds), asked, seed)
    return [[found[case] for case in cases] for found in rounds]


def requests_of(args: argparse.Namespace, folder: Path) -> Traces:
    """The requests of the given trace, or of a synthetic one, enough to run the largest batch; none is judged."""
    trace = npz.read(npz.find(args.trace)) if args.trace is not None else synthetic(args.model, args.seed + 1)
    path = folder / "requests.npz"
    npz.write(path, enough_requests(trace, max(args.batches)))
    return Traces(str(path), 0.5, str(path))


def report(path: str, table: dict[str, Any], check: dict[str, str]) -> str:
    """For people: every term with its spread and residual, and the cross-check."""
    measured = table["measured"]
    rows = [
        f"{path}: {measured['model']} x {measured['scale']:g} in {measured['precision']} on {measured['device']}",
        "",
    ]
    rows.append(f"{'term':<24} {'us':>12} {'spread':>8} {'residual':>9} {'rounds':>7} {'samples':>8}")
    for name, known in measured["uncertainty"].items():
        value = f"{_first(measured[name]) / 1e3:,.1f}"
        numbers = f"{known['spread']:>8.1%} {known['residual']:>9.1%} {known['repeats']:>7} {known['samples']:>8}"
        rows.append(f"{name:<24} {value:>12} {numbers}")
    rows += [
        "",
        "one token (expert, cpu_expert), one row (dense, head); spread: of the rounds' levels; residual: median",
    ]
    rows += [f"cross-check, {name}: {text}" for name, text in check.items()]
    return "\n".join(rows)


def _first(value: Any) -> float:
    """The number of a term at one token."""
    if isinstance(value, list):
        value = value[0]
    return float(value["ns"][0] if isinstance(value, dict) else value)


def cross_check(bench: Any, run: TimedRun, deadline: Deadline) -> tuple[dict[str, str], dict[str, Any]]:
    """Microbenchmarks beside the terms: in words, and the link's bare copies; nothing of a bench without a port."""
    port = getattr(bench, "port", None)
    return ({}, {}) if port is None else microbenchmarks(port, bench, run, deadline)


if __name__ == "__main__":
    sys.exit(main())
