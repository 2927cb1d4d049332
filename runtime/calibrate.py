"""python -m runtime.calibrate: a hardware file from what this device really takes.

Every term is measured in place: calibration cases are replayed through the replay's own code, with its readback, its
decisions and its waits, round after round in a new seeded order, and the terms are fitted to the full records
(runtime.measuring.terms). A kernel timed alone lets the host run ahead, which an offloading engine cannot; such
microbenchmarks stand beside the terms as a cross-check only.

Exit status 0 done, 1 the device failed, 2 bad input. The file is written whole or not at all.
"""

import argparse
import datetime
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtime.measuring.cases import BATCHES, BenchLink, Case, Traces, calibrating, enough_requests, synthetic
from runtime.measuring.durations import TimedRun
from runtime.measuring.rounds import After, Budget, Deadline, complete, measured
from runtime.measuring.terms import Fitted, fitted, refuse_impossible, toml
from sim.catalog.hardware_spec import Hardware
from sim.catalog.parts import build
from sim.errors import SpecError
from sim.prepare import Setting
from sim.spec import parse_cache, slots_of
from traces.command import Parser, guarded, write_bytes
from traces.errors import UserError
from traces.format import npz

CACHES = (0.375, 0.75)
QUICK_S, LONG_S = 90.0, 600.0  # of everything
CHECKS = 0.15  # of it, for what comes after the rounds: the fits, bare copies, the cross-check
SOURCE = "measured in place by runtime.calibrate: medians over rounds of replays"


def section_of(found: Fitted, bench: Any, setting: Setting, scale: float, bare: Any = None) -> dict[str, Any]:
    """The hardware file's table: provenance, the fitted terms, and the link's `bare` copies where they were measured.
    Raises DeviceError for a term that no device can have, CatalogError should the table not be valid."""
    assert setting.model is not None
    refuse_impossible(found.section, bench.bare_copy_ns())
    facts = bench.facts()
    about = {
        "device": plain(facts.get("what", "unknown")),
        "torch": plain(facts.get("torch", "")),
        "date": datetime.date.today().isoformat(),
        "model": setting.model.name,
        "precision": setting.spec.precision,
        "scale": scale,
        "expert_bytes": bench.expert_bytes,
    }
    if facts.get("mem_gb"):
        about["mem_gb"] = facts["mem_gb"]
    table = {"source": SOURCE, "measured": {**about, **found.section, **({"link": bare} if bare else {})}}
    build(Hardware, "calibration", table)
    return table


def plain(value: object) -> str:
    """At most 200 printable ASCII characters."""
    return "".join(c if " " <= c <= "~" else "?" for c in str(value))[:200]


def write_hardware(path: str | Path, table: dict[str, Any], about: Sequence[str] = ()) -> None:
    """The table as TOML, behind comment lines."""
    comments = "".join(f"# {plain(line)}\n" for line in about)
    write_bytes(path, (comments + toml(table) + "\n").encode())


# --- the command ------------------------------------------------------------------------------------------------------


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


def device_flags(out: argparse.ArgumentParser) -> None:
    """The flags that say which device, and how the model is made to fit it."""
    from runtime.replay import host_memory_flag

    group = out.add_argument_group("the device")
    group.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda|xpu|mps", help="where it runs (default: auto)"
    )
    group.add_argument("--precision", metavar="bf16|fp32", help="of the experts (default: bf16; --device cpu: fp32)")
    group.add_argument(
        "--scale", type=float, metavar="F", help="times the model's widths (default: 1; --device cpu: 0.0625)"
    )
    group.add_argument(
        "--alias-host", type=int, metavar="N", help="distinct experts per layer on the host; others share"
    )
    host_memory_flag(group)
    group.add_argument("--link-gbps", type=float, metavar="N", help="pace of --device cpu's link")
    group.add_argument("--link-latency-us", type=float, default=10.0, metavar="N", help="its set-up (default: 10)")
    group.add_argument("--expert-kernel", default="auto", metavar="auto|loop|grouped", help="how a group's experts run")


def measuring_flags(out: argparse.ArgumentParser) -> None:
    """The flags that say how long and how often."""
    group = out.add_argument_group("measuring")
    group.add_argument("--steps", type=int, metavar="N", help="steps of a replay (default: 64; --quick: 24)")
    most = "rounds, as far as the time does (default: calibrate 5, --quick: 3; validate as many as there is time for)"
    group.add_argument("--repeats", type=int, metavar="N", help=most)
    whole = "seconds for everything (default: calibrate 600, --quick: 90; validate 1200, --quick: 270)"
    group.add_argument("--seconds", type=positive, metavar="N", help=whole)
    group.add_argument("--as-decode", action="store_true", help="run prompt rows as decode steps (--quick does)")
    group.add_argument("--expert-group", metavar="one|ready|all", help="how the GPU takes experts (default: one)")
    group.add_argument("--prefill-chunk", type=int, metavar="N", help="tokens of a prefill step")
    group.add_argument("--context-offset", type=int, metavar="N", help="added to every position")
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the order of replays and of the requests set aside"
    )
    group.add_argument("--quick", action="store_true", help="minutes instead of longer")


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A type for argparse: values with commas between."""

    def parse(text: str) -> list[Any]:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: {error}") from None

    return parse


def capacity(text: str) -> int | float:
    """A type for argparse: slots per layer, or a fraction of the experts; bytes would depend on --scale."""
    value = parse_cache(text)
    if isinstance(value, str):
        raise ValueError("must be slots (24) or a fraction of the experts (0.5)")
    return value


def requests(text: str) -> int:
    """A type for argparse: a number above 0."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError("must be whole numbers above 0")
    return int(text)


def positive(text: str) -> float:
    """A type for argparse: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return value


def common_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of RunSpec that every case has, with the defaults of the device."""
    cpu = device_name(args) == "cpu"
    out: dict[str, Any] = {
        "precision": args.precision or ("fp32" if cpu else "bf16"),
        "max_steps": args.steps or (24 if args.quick else 64),
        "warmup_steps": 1,
        "as_decode": args.as_decode or args.quick,
        "seed": args.seed,
    }
    if out["max_steps"] <= out["warmup_steps"]:
        raise SpecError(f"steps: {args.steps}: must be above {out['warmup_steps']}, which warm up")
    for name in ("model", "expert_group", "prefill_chunk", "context_offset"):
        if getattr(args, name) is not None:
            out[name] = getattr(args, name)
    return out


def deadline_of(args: argparse.Namespace, quick_s: float, long_s: float) -> Deadline:
    """From now on; as asked for, or what a command allows itself."""
    return Deadline(args.seconds or (quick_s if args.quick else long_s))


def device_name(args: argparse.Namespace) -> str:
    """The device that `auto` stands for."""
    from runtime.device.accelerator import current

    if args.device != "auto":
        return str(args.device)
    found = current()
    return "cpu" if found is None else str(found.type)


def options_of(args: argparse.Namespace) -> Any:
    """How the bench is made. Raises SpecError for numbers that cannot be."""
    from runtime.replaying.opened import Options

    cpu = device_name(args) == "cpu"
    scale = (0.0625 if cpu else 1.0) if args.scale is None else args.scale
    named = (("scale", scale), ("repeats", args.repeats), ("alias-host", args.alias_host), ("steps", args.steps))
    for name, value in named:
        if value is not None and not value > 0:
            raise SpecError(f"{name}: {value}: must be above 0")
    if scale > 1:
        raise SpecError(f"scale: {scale:g}: must be at most 1")
    return Options(scale=scale, alias=args.alias_host, kernel=args.expert_kernel, host_bytes=args.host_memory)


def open_bench(args: argparse.Namespace, settings: Sequence[Setting], options: Any) -> Any:
    """The device with room for the settings, as a context manager."""
    from runtime.measuring.bench import PortBench

    return PortBench(port_of(args), settings, options)


def port_of(args: argparse.Namespace) -> Any:
    """The port that the flags name; whoever opens it closes it."""
    from runtime.device.choose import choose

    return choose(device_name(args), args.link_gbps, args.link_latency_us)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(lambda found: with_device(_command, found), argv)


def with_device(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """A command on a device: what the device does wrong is one line and exit status 1, an interrupt 130."""
    from runtime.device.port import DeviceError

    try:
        return command(argv)
    except DeviceError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def _command(argv: list[str]) -> int:
    from sim.run import announce_compiling

    args = parser().parse_args(argv)
    if not args.out.endswith(".toml"):
        raise UserError(f"out: {args.out}: must end in .toml, by which sim.run knows a file")
    if not Path(args.out).resolve().parent.is_dir():
        raise UserError(f"out: {args.out}: its folder does not exist")
    if args.trace is None and args.model is None:
        raise UserError("trace: missing; give --trace FILE, or --model NAME to calibrate on a synthetic trace")
    announce_compiling()
    with tempfile.TemporaryDirectory() as folder:
        return _calibrate(args, Path(folder))


def _calibrate(args: argparse.Namespace, folder: Path) -> int:
    deadline = deadline_of(args, QUICK_S, LONG_S)
    common, options = common_fields(args), options_of(args)
    link = BenchLink("link", args.link_gbps, args.link_latency_us)
    cases = calibrating(link, args.caches, args.batches, args.host_experts)
    traces = requests_of(args, folder)
    settings = {case: traces.setting(case, common, "a100-pcie4") for case in cases}
    experts = settings[cases[0]].plan.n_experts
    if min(slots_of(cache, experts) for cache in args.caches) >= experts:
        raise SpecError(
            f"caches: all {experts} experts of a layer are there, and none would cross the link; give fewer"
        )
    asked = args.repeats or (3 if args.quick else 5)
    with open_bench(args, list(settings.values()), options) as bench:
        runs = rounds_of(bench, settings, deadline, asked, args.seed)
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
    cases = list(settings)
    replay: Callable[[Case], TimedRun] = lambda case: TimedRun(settings[case], bench.replay(settings[case]))  # noqa: E731
    before_s = deadline.gone_s
    complete(cases[:1], replay, deadline, "the warm-up")
    round_s = (deadline.gone_s - before_s) * len(cases)
    budget = Budget(deadline, round_s, After(fixed_s=CHECKS * deadline.seconds))
    rounds = measured(cases, replay, budget, asked, seed)
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
    if port is None:
        return {}, {}
    from runtime.measuring.microbenchmarks import microbenchmarks

    found = microbenchmarks(port, bench, run, deadline)
    return found.words, found.link


if __name__ == "__main__":
    sys.exit(main())
