"""python -m runtime.validate: how far the simulation is off, on this device, component by component.

Theory of operation. On every link (a real one; or three paces of a CPU's, so that stall is under 20 %, between, and
over 80 % of the time) there are arms that calibrate and arms that are judged, on other requests. All of them run in one
process, round after round, each round in a new seeded order, so that whatever else the machine does meets all alike.
From the calibrating arms' records a hardware file is fitted (runtime.terms); from it every judged arm is simulated; its
median time per token and that of its replays are compared, part by part, beside the spread of the replays.

Decisions are compared in lock-step: the device replays the order of completions that the simulator had; then every
decision, hence every hit, must be the same. Free-running replays may decide otherwise where two things happen almost at
once: their hits are reported.

Exit status 0 within tolerance, 1 outside it by more than twice the run-to-run spread (or the device failed), 3
inconclusive, 2 bad input.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime import agreement, calibrate, observe
from runtime.agreement import COMPONENTS, Judged, Tolerance, Verdict
from runtime.arms import Arm, Link, Traces, calibrating, grid
from runtime.observe import Run
from runtime.pacing import TARGETS, pace_of
from runtime.terms import fitted
from sim.plan import Setting
from sim.record import RunRecord
from traces import npz
from traces.command import Parser, guarded, write_bytes
from traces.errors import UserError

POLICIES = ("lru", "belady", "lru+{ahead}")
CACHES: dict[str | None, tuple[float, ...]] = {"compute": (0.75, 0.9), "mixed": (0.3, 0.5), "stall": (0.25, 0.4)}
REAL_CACHES, REAL_BATCHES = (0.25, 0.5, 0.75, 0.9), (1, 4)
LATENCY_US = 10.0
FRACTION = 0.25
QUICK_S, LONG_S = 150, 900  # of rounds, when --repeats does not say how many
FEWEST, MOST = 3, 15  # rounds
PROBE_GBPS = 2.0
REPLAY_S = 0.5  # counted steps of a replay on a link whose pace is chosen
PLACEHOLDER = "a100-pcie4"  # hardware of settings that are replayed: durations there are the device's


# --- what happens on the device --------------------------------------------------------------------------------------


def sweep(bench: Any, settings: dict[Arm, Setting], order: Sequence[Arm]) -> dict[Arm, Run]:
    """One replay of each arm, each link at its pace."""
    out = {}
    for arm in order:
        if arm.link.gbps is not None:
            bench.pace(arm.link.gbps, arm.link.latency_us)
        out[arm] = Run(settings[arm], bench.replay(settings[arm]))
    return out


def measure(
    bench: Any, settings: dict[Arm, Setting], repeats: int | None, seconds: float, seed: int
) -> list[dict[Arm, Run]]:
    """Rounds of all arms, each in its own seeded order: `repeats` of them, or as many as `seconds` allow."""
    rng, arms, rounds = np.random.default_rng(seed), list(settings), []
    began = time.monotonic()
    while not _enough(len(rounds), repeats, time.monotonic() - began, seconds):
        calibrate.progress(f"round {len(rounds) + 1}, {time.monotonic() - began:.0f} s")
        rounds.append(sweep(bench, settings, [arms[i] for i in rng.permutation(len(arms))]))
    return rounds


def _enough(done: int, repeats: int | None, spent: float, seconds: float) -> bool:
    if repeats is not None:
        return done >= repeats
    return done >= MOST or (done >= FEWEST and spent * (done + 1) / done > seconds)


def locked(bench: Any, arm: Arm, simulated: Run) -> dict[str, Any]:
    """One replay in the simulator's order of completions, and whether every decision was the same."""
    if arm.link.gbps is not None:
        bench.pace(arm.link.gbps, arm.link.latency_us)
    record, outcome = bench.lock_step(simulated.setting, simulated.record)
    same = {"hits": None if record is None else hits(record), "simulated_hits": hits(simulated.record)}
    return outcome.as_dict() | same


def hits(record: RunRecord) -> int:
    """Hits of the counted steps."""
    return int(record.layer["hits"].sum())


# --- judging ---------------------------------------------------------------------------------------------------------


def compared(arm: Arm, replays: Sequence[Run], simulated: Run) -> dict[str, Any]:
    """One arm: medians of its replays beside its simulation, per token in ns, and the errors."""
    rows = observe.rows_done(simulated)
    parts = [observe.components(run) for run in replays]
    totals = [p["total"] / rows for p in parts]
    measured = {name: statistics.median(p[name] for p in parts) / rows for name in (*COMPONENTS, "copies", "total")}
    found = {name: ns / rows for name, ns in observe.components(simulated).items()}
    share = statistics.median(p["stall"] / p["total"] for p in parts)
    awake = [(p["total"] - p["stall"]) / rows for p in parts]
    return {
        "arm": arm.name,
        "link": arm.link.name,
        "policy": arm.policy,
        "cache": arm.fields["cache"],
        "batch": arm.fields["batch"],
        "steps": len(simulated.setting.steps),
        "tokens": rows,
        "stall_share": share,
        "regime": agreement.regime(share),
        "measured_ns": measured,
        "simulated_ns": found,
        "repeats_ns": totals,
        "spread": agreement.spread(totals),
        "error": agreement.signed_error(found["total"], measured["total"]),
        "error_without_link": agreement.signed_error(found["total"] - found["stall"], statistics.median(awake)),
        "component_error": {n: agreement.signed_error(found[n], measured[n]) for n in (*COMPONENTS, "copies")},
        "component_share": {n: (found[n] - measured[n]) / measured["total"] for n in COMPONENTS},
        "hits": {"simulated": hits(simulated.record), "measured": [hits(run.record) for run in replays]},
    }


def judged(row: dict[str, Any]) -> Judged:
    """A row in short; arms are ranked within one link and batch."""
    group = f"{row['link']} {row['batch']}"
    return Judged(row["error"], row["spread"], row["measured_ns"]["total"], row["simulated_ns"]["total"], group)


def statements(rows: Sequence[dict[str, Any]], tolerance: Tolerance) -> dict[str, dict[str, Any]]:
    """What is claimed of the arms, each with its value, what is asked and the verdict."""
    arms = [judged(row) for row in rows]
    equal = all(row["lock_step"]["equal"] for row in rows)
    same_hits = all(row["lock_step"]["hits"] == row["lock_step"]["simulated_hits"] for row in rows)
    found = agreement.verdicts(arms, equal and same_hits, tolerance)
    errors = [abs(arm.error) for arm in arms]
    tau, pairs = agreement.tau(arms)
    values: dict[str, dict[str, Any]] = {
        "median": {"value": statistics.median(errors), "asked": tolerance.median},
        "worst": {"value": max(errors), "asked": tolerance.worst},
        "tau": {"value": tau, "asked": tolerance.tau, "pairs": pairs},
        "equal": {"value": equal and same_hits, "asked": True, "arms": len(rows)},
    }
    return {name: values[name] | {"verdict": verdict.name.lower()} for name, verdict in found.items()}


def drift(rounds: Sequence[dict[Arm, Run]]) -> list[float]:
    """For each round the median, over all arms, of an arm's time over that arm's median: what the machine did."""
    times = np.array([[observe.components(run)["total"] for _, run in sorted(r.items(), key=_name)] for r in rounds])
    return [float(v) for v in np.median(times / np.median(times, axis=0), axis=1)]


def _name(pair: tuple[Arm, Run]) -> str:
    return pair[0].name


# --- the whole -------------------------------------------------------------------------------------------------------


def validated(
    bench: Any,
    traces: Traces,
    arms: Sequence[Arm],
    common: dict[str, Any],
    folder: Path,
    options: dict[str, Any],
    steps: dict[str, int],
) -> dict[str, Any]:
    """Measure, calibrate, simulate, lock-step, judge. options: repeats, seconds, seed, scale, tolerance. steps: of each
    link's replays, by name."""
    settings = {arm: traces.setting(arm, {**common, "max_steps": steps[arm.link.name]}, PLACEHOLDER) for arm in arms}
    rounds = measure(bench, settings, options["repeats"], options["seconds"], options["seed"])
    sections, rows = {}, []
    for link in dict.fromkeys(arm.link for arm in arms):
        of_link = [arm for arm in arms if arm.link == link]
        found = fitted([[r[arm] for arm in of_link if arm.calibrates] for r in rounds])
        if link.gbps is not None:
            bench.pace(link.gbps, link.latency_us)
        table = calibrate.section_of(found, bench.facts(), settings[of_link[0]], options["scale"], bench.expert_bytes)
        path = folder / f"{link.name}.toml"
        calibrate.write_hardware(path, table)
        sections[link.name] = table["measured"]
        for arm in of_link:
            if not arm.calibrates:
                rows.append(_row(bench, arm, traces, {**common, "max_steps": steps[link.name]}, rounds, str(path)))
    stated = statements(rows, options["tolerance"])
    return {
        "statements": stated,
        "exit": int(agreement.worst_of([Verdict[s["verdict"].upper()] for s in stated.values()])),
        "rounds": len(rounds),
        "drift": drift(rounds),
        "links": [
            {"name": link.name, "gbps": link.gbps, "latency_us": link.latency_us, "regime": link.regime}
            for link in dict.fromkeys(arm.link for arm in arms)
        ],
        "arms": rows,
        "calibration": sections,
    }


def _row(
    bench: Any, arm: Arm, traces: Traces, common: dict[str, Any], rounds: Sequence[dict[Arm, Run]], hardware: str
) -> dict[str, Any]:
    simulated = observe.simulated(traces.setting(arm, common, hardware))
    row = compared(arm, [r[arm] for r in rounds], simulated)
    few = {**common, "max_steps": max(common["warmup_steps"] + 1, common["max_steps"] // 4)}
    return row | {"lock_step": locked(bench, arm, observe.simulated(traces.setting(arm, few, hardware)))}


def paced_links(
    bench: Any, traces: Traces, args: argparse.Namespace, common: dict[str, Any], folder: Path, scale: float
) -> tuple[list[Link], dict[str, int]]:
    """A pace for each regime and the steps that its replays have, from one probe of this device (runtime.pacing)."""
    probe = probing(args)
    settings = {arm: traces.setting(arm, {**common, "max_steps": 8}, PLACEHOLDER) for arm in probe}
    sweep(bench, settings, probe[:1])
    runs = list(sweep(bench, settings, probe).values())
    found = calibrate.section_of(fitted([runs]), bench.facts(), runs[0].setting, scale, bench.expert_bytes)
    hardware = folder / "probe.toml"
    calibrate.write_hardware(hardware, found)
    fixed_ns = max(LATENCY_US * 1e3, found["measured"]["transfer_idle_ns"] - bench.expert_bytes / PROBE_GBPS)
    links, steps, warm = [], {}, common["warmup_steps"]
    for regime in TARGETS:
        arms = regime_arms(Link(regime, 1.0, LATENCY_US, regime), args)
        of = [traces.setting(arm, {**common, "max_steps": 12}, str(hardware)) for arm in arms]
        most = common["max_steps"] - warm
        gbps, counted = pace_of(regime, of, bench.expert_bytes, fixed_ns, REPLAY_S, most)
        links.append(Link(regime, gbps, LATENCY_US, regime))
        steps[regime] = counted + warm
    return links, steps


def probing(args: argparse.Namespace) -> list[Arm]:
    """The arms of the probe."""
    return calibrating(Link("probe", PROBE_GBPS, LATENCY_US), [0.3, 0.9], args.batches or [1, 4])


def regime_arms(link: Link, args: argparse.Namespace) -> list[Arm]:
    """The judged arms of one link."""
    caches = args.caches or CACHES.get(link.regime, REAL_CACHES)
    batches = args.batches or ([4] if link.regime == "compute" else [1])
    if link.regime is None:
        caches, batches = args.caches or REAL_CACHES, args.batches or REAL_BATCHES
    return grid(link, args.policies, caches, batches)


def all_arms(links: Sequence[Link], args: argparse.Namespace) -> list[Arm]:
    """Calibrating and judged arms of every link."""
    out = []
    for link in links:
        arms = regime_arms(link, args)
        caches = list(dict.fromkeys(arm.fields["cache"] for arm in arms))
        batches = list(dict.fromkeys(arm.fields["batch"] for arm in arms))
        host = any(arm.policy.endswith("+cpu") for arm in arms)
        out += calibrating(link, caches, batches, host) + arms
    return out


# --- the command -----------------------------------------------------------------------------------------------------


def parser() -> Parser:
    """The flags."""
    out = Parser(prog="python -m runtime.validate", description="Measure how far the simulation is off on this device.")
    out.add_argument("--trace", required=True, metavar="FILE|SAMPLE", help="routing trace, of two requests at least")
    out.add_argument("--model", metavar="NAME|FILE", help="model that runs (default: the trace's)")
    out.add_argument(
        "--policies",
        type=calibrate.listed(str),
        metavar="A,B+C",
        help="EVICTION, EVICTION+PREFETCH or EVICTION+cpu (default: lru, belady, and lru with a prefetcher)",
    )
    out.add_argument(
        "--caches", type=calibrate.listed(calibrate._cache), metavar="A,B", help="capacities of every link"
    )
    out.add_argument("--batches", type=calibrate.listed(int), metavar="A,B", help="requests together, of every link")
    out.add_argument(
        "--calibration",
        type=float,
        default=FRACTION,
        metavar="FRACTION",
        help=f"requests set aside to calibrate on (default: {FRACTION})",
    )
    out.add_argument(
        "--out", default="validation", metavar="DIR", help="validation.json, validation.md, hardware files"
    )
    out.add_argument("--json", action="store_true", help="print the JSON record instead of the table")
    calibrate.device_flags(out)
    calibrate.measuring_flags(out)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(lambda found: calibrate.with_device(_command, found), argv)


def _command(argv: list[str]) -> int:
    from sim.run import announce_compiling

    args = parser().parse_args(argv)
    folder = Path(args.out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out: {args.out}: is a file; must be a folder")
    if not 0 < args.calibration < 1:
        raise UserError(f"calibration: {args.calibration:g}: must be a fraction between 0 and 1")
    announce_compiling()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        traces = Traces.of(args.trace, args.calibration, args.seed, Path(scratch))
        out = run(args, traces, Path(scratch))
        out |= {
            "command": "python -m runtime.validate " + " ".join(argv),
            "seconds": round(time.monotonic() - began, 1),
        }
        save(out, folder, Path(scratch))
    print(json.dumps(out) if args.json else table(out))
    return int(out["exit"])


def run(args: argparse.Namespace, traces: Traces, scratch: Path) -> dict[str, Any]:
    """Open the device with room for every arm, choose the links, and validate."""
    common, options = calibrate.common_fields(args), calibrate.options_of(args)
    whole = npz.read(npz.find(args.trace))
    ahead = "gate-lookahead" if whole.has("lookahead") else "transition"
    args.policies = args.policies or [policy.format(ahead=ahead) for policy in POLICIES]
    cpu = calibrate.device_name(args) == "cpu"
    choose = cpu and args.link_gbps is None
    links = [Link(regime, 1.0, LATENCY_US, regime) for regime in TARGETS] if choose else [_one_link(args, cpu)]
    # every arm at its longest, and the probe's: what the device must have room for
    arms = all_arms(links, args) + probing(args)
    room = [traces.setting(arm, common, PLACEHOLDER) for arm in arms]
    args.link_gbps = links[0].gbps
    with calibrate.open_bench(args, room, options) as bench:
        steps = {link.name: common["max_steps"] for link in links}
        if choose:
            links, steps = paced_links(bench, traces, args, common, scratch, options.scale)
        found = {
            "repeats": args.repeats,
            "seconds": QUICK_S if args.quick else LONG_S,
            "seed": args.seed,
            "scale": options.scale,
            "tolerance": Tolerance(),
        }
        out = validated(bench, traces, all_arms(links, args), common, scratch, found, steps)
        facts = bench.facts()
    about = {"name": args.trace, "hash": npz.content_hash(whole), "model": whole.model, "real": whole.real}
    return {"device": facts, "scale": options.scale, "precision": common["precision"], "trace": about, **out}


def _one_link(args: argparse.Namespace, cpu: bool) -> Link:
    return Link("link", args.link_gbps if cpu else None, args.link_latency_us if cpu else 0.0)


def save(out: dict[str, Any], folder: Path, scratch: Path) -> None:
    """validation.json, validation.md and the hardware file of each link."""
    folder.mkdir(parents=True, exist_ok=True)
    for link in out["links"]:
        write_bytes(folder / f"{link['name']}.toml", (scratch / f"{link['name']}.toml").read_bytes())
    write_bytes(folder / "validation.md", (table(out) + "\n").encode())
    write_bytes(folder / "validation.json", (json.dumps(out, indent=1) + "\n").encode())


def table(out: dict[str, Any]) -> str:
    """For people, as Markdown."""
    from runtime.validate_table import markdown

    return markdown(out)


if __name__ == "__main__":
    sys.exit(main())
