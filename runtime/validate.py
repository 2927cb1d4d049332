"""python -m runtime.validate: how far the simulation is off, on this device, component by component.

Theory of operation. On every link (the device's own; or three paces of a CPU's, so that stall is under 20 %, between,
and over 80 % of the time) there are arms that calibrate and arms that are judged, on other requests. All of them run in
one process, round after round, each round in a new seeded order, so that whatever else the machine does meets all
alike. From the calibrating arms' records a hardware file is fitted (runtime.terms); from it every judged arm is
simulated; its time per token and the median of its replays are compared, part by part, beside the replays' spread.
On a link whose pace is not chosen capacities go up to all experts, and there are long prompts. A link is calibrated at
capacities of its own (runtime.arms). A record whose arms are all in one regime cannot show what the others would: it is
inconclusive and says so in its first line.

Decisions are compared in lock-step: the device replays the order of completions that the simulator had; then every
decision, hence every hit, must be the same. Free-running replays may decide otherwise where two things happen almost at
once: their hits are reported, and the core, given their order of completions, must decide as they did.

Exit status 0 within tolerance, 1 outside it by more than twice the run-to-run spread (or the device failed), 3
inconclusive, 2 bad input.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from runtime import calibrate, observe
from runtime.agreement import Tolerance, kind
from runtime.arms import Arm, Link, Traces, apart, calibrating, grid, long_prompts
from runtime.calibrate import listed, progress
from runtime.compare import capacity, compared, drift, locked, statements, status
from runtime.observe import Run
from runtime.pacing import TARGETS, pace_of
from runtime.terms import fitted
from runtime.validate_table import markdown
from sim.plan import Setting
from sim.spec import slots_of
from traces import npz
from traces.command import Parser, guarded, out_folder, write_bytes
from traces.errors import UserError

POLICIES = ("lru", "belady", "lru+{ahead}")  # a prefetcher that the trace allows
# of 8 experts 6, 3 and 5, 3 and 4 slots. What calibrates (5 and 7, 4 and 6, 2 and 5) has about as many copies in the
# mean, and on a CPU copies slow the kernels beside them: for that reason there is none at all experts here
CACHES: dict[str, tuple[float, ...]] = {"compute": (0.75,), "mixed": (0.4, 0.65), "stall": (0.4, 0.5)}
BATCH = {"compute": (4,), "mixed": (1,), "stall": (1,)}
# on a link whose pace is not chosen, --quick or not: from where the link is most of the time up to all experts, where
# kernels and host are alone, and so few that three rounds of Mixtral at 55 GB/s leave time for the rest
REAL_CACHES, REAL_BATCHES = {True: (0.25, 0.9, 1.0), False: (0.25, 0.5, 0.9, 1.0)}, (1, 4)
LATENCY_US = 10.0
FRACTION = 0.25
QUICK_S, LONG_S = 270.0, 1200.0  # of everything, when --repeats does not say how many rounds
FEWEST, MOST = 3, 25  # rounds
AFTER = 0.4  # what comes after the rounds, lock-steps above all, in rounds
PROBE_GBPS, PROBE_STEPS = 2.0, 8
REPLAY_S = 0.35  # counted steps of a replay on a link whose pace is chosen
REAL_S = {True: 1.0, False: 4.0}  # and on any other link, --quick or not
PLACEHOLDER = "a100-pcie4"  # hardware of settings that are replayed: there durations are the device's


# --- measuring -------------------------------------------------------------------------------------------------------


def sweep(bench: Any, settings: dict[Arm, Setting], order: Sequence[Arm]) -> dict[Arm, Run]:
    """One replay of each arm, each link at its pace."""
    out = {}
    for arm in order:
        if arm.link.gbps is not None:
            bench.pace(arm.link.gbps, arm.link.latency_us)
        out[arm] = Run(settings[arm], bench.replay(settings[arm]))
    return out


def measure(
    bench: Any, settings: dict[Arm, Setting], repeats: int | None, deadline: float, seed: int
) -> list[dict[Arm, Run]]:
    """Rounds of all arms, each in its own seeded order: `repeats` of them, or as many as leave time for what comes
    after them before the deadline (of time.monotonic)."""
    rng, arms = np.random.default_rng(seed), list(settings)
    rounds: list[dict[Arm, Run]] = []
    began = time.monotonic()
    while not enough(len(rounds), repeats, time.monotonic() - began, deadline - time.monotonic()):
        progress(f"round {len(rounds) + 1}, {time.monotonic() - began:.0f} s")
        rounds.append(sweep(bench, settings, [arms[i] for i in rng.permutation(len(arms))]))
    return rounds


def enough(done: int, repeats: int | None, spent: float, left: float) -> bool:
    """Whether so many rounds, which took so many seconds, will do: another one would not leave time for the rest."""
    if repeats is not None:
        return done >= repeats
    return done >= MOST or (done >= FEWEST and (1 + AFTER) * spent / done > left)


# --- which arms ------------------------------------------------------------------------------------------------------


def judged_arms(link: Link, args: argparse.Namespace, experts: int) -> list[Arm]:
    """The judged arms of one link, for layers of so many experts. Where all have slots no policy decides anything: one
    is enough there. A link whose pace is not chosen has long prompts too, at the two largest capacities."""
    caches = args.caches or CACHES.get(link.regime or "", REAL_CACHES[args.quick])
    batches = args.batches or BATCH.get(link.regime or "", REAL_BATCHES)
    every = [cache for cache in caches if slots_of(cache, experts) >= experts]
    some = [cache for cache in caches if cache not in every]
    arms = grid(link, args.policies, some, batches) + grid(link, args.policies[:1], every, batches)
    largest = sorted(caches, key=lambda cache: slots_of(cache, experts))[-2:]
    return arms if link.regime else arms + long_prompts(link, largest)


def all_arms(links: Sequence[Link], args: argparse.Namespace, experts: int) -> list[Arm]:
    """Calibrating and judged arms of every link, for layers of so many experts."""
    out = []
    for link in links:
        arms = judged_arms(link, args, experts)
        caches = apart([arm.fields["cache"] for arm in arms], experts)
        batches = list(dict.fromkeys(arm.fields["batch"] for arm in arms if not arm.chained))
        host = any(arm.policy.endswith("+cpu") for arm in arms)
        out += calibrating(link, caches, batches, host)
        out += [] if link.regime else long_prompts(link, caches[-1:], True)
        out += arms
    return out


def without_room(args: argparse.Namespace, settings: Callable[[], list[Setting]], options: Any) -> list[dict[str, Any]]:
    """Put the capacities that nobody chose into `args.caches`, and take from them, largest first, what the device has
    no room for, but the last; what was taken, and why. settings: of every arm that there is at `args.caches`."""
    from runtime.rig import Extent
    from runtime.store import StoreError

    args.caches, out = list(REAL_CACHES[args.quick]), []
    with calibrate.port_of(args) as port:
        while len(args.caches) > 1:
            try:
                Extent(settings(), options).refuse(port)
                break
            except StoreError as error:
                out.append({"cache": args.caches.pop(), "why": str(error)})
    return out


def probing(args: argparse.Namespace) -> list[Arm]:
    """The arms of the probe."""
    batches = args.batches or sorted({b for batches in BATCH.values() for b in batches})
    return calibrating(Link("probe", PROBE_GBPS, LATENCY_US), [0.3, 0.9], batches)


def paced_links(
    bench: Any, traces: Traces, args: argparse.Namespace, common: dict[str, Any], folder: Path, scale: float
) -> tuple[list[Link], dict[str, int]]:
    """A pace for each regime and the steps that its replays have, from one probe of this device (runtime.pacing)."""
    few = {**common, "max_steps": min(PROBE_STEPS, common["max_steps"])}
    settings = {arm: traces.setting(arm, few, PLACEHOLDER) for arm in probing(args)}
    sweep(bench, settings, list(settings)[:1])
    runs = list(sweep(bench, settings, list(settings)).values())
    found = calibrate.section_of(fitted([runs]), bench.facts(), runs[0].setting, scale, bench.expert_bytes)
    hardware = folder / "probe.toml"
    calibrate.write_hardware(hardware, found)
    fixed_ns = max(LATENCY_US * 1e3, found["measured"]["transfer_idle_ns"] - bench.expert_bytes / PROBE_GBPS)
    links, steps, warm = [], {}, common["warmup_steps"]
    for regime in TARGETS:
        arms = judged_arms(Link(regime, 1.0, LATENCY_US, regime), args, runs[0].setting.plan.n_experts)
        of = [traces.setting(arm, {**common, "max_steps": 12}, str(hardware)) for arm in arms]
        most = common["max_steps"] - warm
        gbps, counted = pace_of(regime, of, bench.expert_bytes, fixed_ns, REPLAY_S, most)
        links.append(Link(regime, gbps, LATENCY_US, regime))
        steps[regime] = counted + warm
    return links, steps


# --- the whole -------------------------------------------------------------------------------------------------------


def validated(
    bench: Any,
    traces: Traces,
    arms: Sequence[Arm],
    common: dict[str, Any],
    folder: Path,
    args: argparse.Namespace,
    steps: dict[str, int],
    scale: float,
    deadline: float,
) -> dict[str, Any]:
    """Measure, calibrate, simulate, lock-step, judge. steps: of each link's replays, by its name; the hardware files go
    into the folder; deadline: see `measure`."""
    fields = {link: {**common, "max_steps": n} for link, n in steps.items()}
    settings = {arm: traces.setting(arm, fields[arm.link.name], PLACEHOLDER) for arm in arms}
    links = list(dict.fromkeys(arm.link for arm in arms))
    rounds = measure(bench, settings, args.repeats, deadline, args.seed)
    sections, rows = {}, []
    for link in links:
        of_link = [arm for arm in arms if arm.link == link]
        hardware = folder / f"{link.name}.toml"
        sections[link.name] = _calibrated(bench, of_link, settings, rounds, scale, hardware)
        for arm in of_link:
            if not arm.calibrates:
                rows.append(_row(bench, arm, traces, fields[link.name], rounds, str(hardware)))
    told = [_told(link, [settings[arm] for arm in arms if arm.link == link and arm.calibrates]) for link in links]
    stated = statements(rows, Tolerance(), told)
    return {
        "kind": kind([row["regime"] for row in rows]),
        "statements": stated,
        "exit": status(stated),
        "rounds": len(rounds),
        "drift": drift(rounds),
        "links": told,
        "arms": rows,
        "calibration": sections,
    }


def _told(link: Link, calibrated: Sequence[Setting]) -> dict[str, Any]:
    """A link as the record has it, with the capacities, in slots, that it was calibrated at."""
    return asdict(link) | {"calibrated_at": sorted({capacity(setting) for setting in calibrated})}


def _calibrated(
    bench: Any,
    arms: Sequence[Arm],
    settings: dict[Arm, Setting],
    rounds: Sequence[dict[Arm, Run]],
    scale: float,
    hardware: Path,
) -> dict[str, Any]:
    """Write the hardware file of one link from its calibrating arms; its [measured] section."""
    found = fitted([[runs[arm] for arm in arms if arm.calibrates] for runs in rounds])
    if arms[0].link.gbps is not None:
        bench.pace(arms[0].link.gbps, arms[0].link.latency_us)
    table = calibrate.section_of(found, bench.facts(), settings[arms[0]], scale, bench.expert_bytes)
    calibrate.write_hardware(hardware, table)
    measured: dict[str, Any] = table["measured"]
    return measured


def _row(
    bench: Any, arm: Arm, traces: Traces, fields: dict[str, Any], rounds: Sequence[dict[Arm, Run]], hardware: str
) -> dict[str, Any]:
    """One judged arm: compared, and replayed in lock-step over a quarter of its steps."""
    row = compared(arm, [runs[arm] for runs in rounds], observe.simulated(traces.setting(arm, fields, hardware)))
    few = {**fields, "max_steps": max(fields["warmup_steps"] + 2, fields["max_steps"] // 4)}
    return row | {"lock_step": locked(bench, arm, observe.simulated(traces.setting(arm, few, hardware)))}


# --- the command -----------------------------------------------------------------------------------------------------


def parser() -> Parser:
    """The flags."""
    out = Parser(prog="python -m runtime.validate", description="Measure how far the simulation is off on this device.")
    add = out.add_argument
    add("--trace", required=True, metavar="FILE|SAMPLE", help="routing trace, of two requests at least")
    add("--model", metavar="NAME|FILE", help="model that runs (default: the trace's)")
    policies = "EVICTION, EVICTION+PREFETCH or EVICTION+cpu (default: lru, belady, and lru with a prefetcher)"
    add("--policies", type=listed(str), metavar="A,B+C", help=policies)
    add("--caches", type=listed(calibrate.capacity), metavar="A,B", help="capacities, on every link")
    add("--batches", type=listed(calibrate.requests), metavar="A,B", help="requests together, on every link")
    share = f"requests set aside to calibrate on (default: {FRACTION})"
    add("--calibration", type=float, default=FRACTION, metavar="FRACTION", help=share)
    add("--out", default="validation", metavar="DIR", help="validation.json, .md and the hardware files (validation)")
    add("--json", action="store_true", help="print the JSON record instead of the table")
    calibrate.device_flags(out)
    calibrate.measuring_flags(out)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(lambda found: calibrate.with_device(_command, found), argv)


def _command(argv: list[str]) -> int:
    from sim.run import announce_compiling

    args = parser().parse_args(argv)
    folder = out_folder(args.out)
    if not 0 < args.calibration < 1:
        raise UserError(f"calibration: {args.calibration:g}: must be a fraction between 0 and 1")
    announce_compiling()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        out = run(args, Path(scratch))
        command = "python -m runtime.validate " + " ".join(argv)
        out |= {"command": command, "seconds": round(time.monotonic() - began, 1)}
        save(out, folder, Path(scratch))
    print(json.dumps(out) if args.json else markdown(out))
    return int(out["exit"])


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Open the device with room for every arm, choose the links, and validate. Raises UserError for what cannot be."""
    deadline = time.monotonic() + (QUICK_S if args.quick else LONG_S)
    whole = npz.read(npz.find(args.trace))
    experts = whole.n_experts
    batches = args.batches or [b for some in (REAL_BATCHES, *BATCH.values()) for b in some]
    traces = Traces.of(args.trace, args.calibration, args.seed, scratch, max(batches))
    common, options = calibrate.common_fields(args), calibrate.options_of(args)
    ahead = "gate-lookahead" if whole.has("lookahead") else "transition"
    args.policies = args.policies or [policy.format(ahead=ahead) for policy in POLICIES]
    cpu = calibrate.device_name(args) == "cpu"
    choose = cpu and args.link_gbps is None
    links = [Link(regime, 1.0, LATENCY_US, regime) for regime in TARGETS] if choose else [own_link(args, cpu)]

    def settings() -> list[Setting]:
        """Of every arm at its longest, and of the probe: what the device must have room for."""
        probe = probing(args) if choose else []
        return [traces.setting(arm, common, PLACEHOLDER) for arm in all_arms(links, args, experts) + probe]

    left_out = [] if choose or args.caches else without_room(args, settings, options)
    with calibrate.open_bench(args, settings(), options) as bench:
        if choose:
            links, steps = paced_links(bench, traces, args, common, scratch, options.scale)
        else:
            steps = warm_up(bench, traces, all_arms(links, args, experts), args, common)
        arms = all_arms(links, args, experts)
        found = validated(bench, traces, arms, common, scratch, args, steps, options.scale, deadline)
        facts = bench.facts()
    about = {"name": args.trace, "hash": npz.content_hash(whole), "model": whole.model, "real": whole.real}
    given = {"scale": options.scale, "precision": common["precision"], "trace": about, "left_out": left_out}
    return {"device": facts, **given, **found}


def own_link(args: argparse.Namespace, cpu: bool) -> Link:
    """The one link whose pace is not chosen: the device's, or a CPU's at the pace that was asked for."""
    return Link("link", args.link_gbps, args.link_latency_us) if cpu else Link("link")


def warm_up(
    bench: Any, traces: Traces, every: Sequence[Arm], args: argparse.Namespace, common: dict[str, Any]
) -> dict[str, int]:
    """A few steps of each of these arms that calibrates: first kernels are loaded and tuned and memory is touched, then
    a step is timed. The steps of a replay, by link: what was asked for, or what takes about REAL_S seconds."""
    arms = [arm for arm in every if arm.calibrates]
    few = {**common, "max_steps": min(PROBE_STEPS, common["max_steps"])}
    settings = {arm: traces.setting(arm, few, PLACEHOLDER) for arm in arms}
    sweep(bench, settings, arms)
    runs, warm = sweep(bench, settings, arms), common["warmup_steps"]
    out = {}
    for link in dict.fromkeys(arm.link for arm in arms):
        own = [run for arm, run in runs.items() if arm.link == link and not arm.chained]
        of = [observe.components(run)["total"] for run in own]
        per_step = statistics.mean(of) / (few["max_steps"] - warm) / 1e9
        counted = common["max_steps"] - warm
        if args.steps is None:
            counted = int(np.clip(round(REAL_S[args.quick] / per_step), 4, counted))
        out[link.name] = counted + warm
    return out


def save(out: dict[str, Any], folder: Path, scratch: Path) -> None:
    """validation.json, validation.md and the hardware file of each link."""
    folder.mkdir(parents=True, exist_ok=True)
    for link in out["links"]:
        write_bytes(folder / f"{link['name']}.toml", (scratch / f"{link['name']}.toml").read_bytes())
    write_bytes(folder / "validation.md", (markdown(out) + "\n").encode())
    write_bytes(folder / "validation.json", (json.dumps(out, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
