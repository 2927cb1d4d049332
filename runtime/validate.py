"""python -m runtime.validate: how far the simulation is off, on this device, component by component.

Theory of operation. On every link (the device's own; or three paces of a CPU's, so that stall is under 20 %, between,
and over 80 % of the time) there are cases that calibrate and cases that are judged, on other requests. All run in
one process, round after round, each round in a new seeded order, so that whatever else the machine does meets all
alike. From the calibrating cases' records a hardware file is fitted (runtime.measuring.terms); from it every judged
case is simulated; its time per token and the median of its replays are compared, part by part, beside their spread.
On a link whose pace is not chosen capacities go up to all experts, and there are long prompts. A link is calibrated at
capacities of its own (runtime.measuring.cases). A record whose cases are all in one regime cannot show what the others
would: it is inconclusive and says so in its first line.

Decisions are compared in lock-step: the device replays the order of completions that the simulator had; then every
decision, hence every hit, must be the same. Free-running replays may decide otherwise where two things happen almost at
once: their hits are reported, and the core, given their order of completions, must decide as they did.

Exit status 0 within tolerance, 1 outside it by more than twice the run-to-run spread (or the device failed), 3
inconclusive, 2 bad input.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from runtime import calibrate
from runtime.calibrate import listed
from runtime.measuring import durations
from runtime.measuring.agreement import Tolerance, kind
from runtime.measuring.cases import BenchLink, Case, Traces, apart, calibrating, grid, long_prompts, policy_fields
from runtime.measuring.durations import TimedRun
from runtime.measuring.judged import capacity, compared, drift, locked, no_time, statements, status
from runtime.measuring.microbenchmarks import TOKENS, gpu_busy_ns
from runtime.measuring.pacing import TARGETS, pace_of, predicted_s, seconds_of
from runtime.measuring.rounds import MARGIN, After, Budget, Deadline, complete, measured, progress
from runtime.measuring.table import markdown
from runtime.measuring.terms import fitted
from runtime.replaying.lockstep import check
from sim.prepare import Setting
from sim.spec import slots_of
from traces.command import Parser, guarded, out_folder, write_bytes
from traces.errors import UserError
from traces.format import npz
from traces.format.trace import split

V = TypeVar("V")
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
QUICK_S, LONG_S = 270.0, 1200.0  # of everything
FEWEST = 3  # rounds that the steps of a replay are chosen for
LOCKED = 0.25  # of a case's steps are replayed in lock-step
AFTERWARDS = 2  # so often is a case prepared and simulated after the rounds: whole, and for the lock-step
PROBE_GBPS, PROBE_STEPS = 2.0, 8
REPLAY_S = 0.35  # counted steps of a replay on a link whose pace is chosen
REAL_S = {True: 1.0, False: 4.0}  # and on any other link, --quick or not
PLACEHOLDER = "a100-pcie4"  # hardware of settings that are replayed: there durations are the device's


# --- measuring -------------------------------------------------------------------------------------------------------


def replaying(bench: Any, settings: dict[Case, Setting]) -> Callable[[Case], TimedRun]:
    """How a case is replayed: its link at its pace."""

    def replay(case: Case) -> TimedRun:
        if case.link.gbps is not None:
            bench.pace(case.link.gbps, case.link.latency_us)
        return TimedRun(settings[case], bench.replay(settings[case]))

    return replay


@dataclass(frozen=True)
class ReplaySteps:
    """Of a link's replays, but the chained: how many, and seconds of one."""

    count: int
    each_s: float


@dataclass(frozen=True)
class Probe:
    """What a few steps of some cases said of the time. step_s: of a step; each_s: of a replay beside its steps, such as
    the first residents; long_s: of a replay of a chained case, which always has all its steps; prepared_s: of making a
    setting; check_s: of a step through the core alone."""

    runs: dict[Case, TimedRun]
    step_s: float
    each_s: float
    long_s: float
    prepared_s: float
    check_s: float

    @property
    def share(self) -> float:
        """About what comes after the rounds for each second of a replay's steps."""
        return LOCKED + self.check_s / self.step_s

    def round_s(self, cases: Sequence[Case], steps_s: Callable[[Case], float]) -> float:
        """Seconds of one replay of each case, whose steps take so long where it is not chained."""
        return sum(self.long_s if case.chained else self.each_s + steps_s(case) for case in cases)

    def budget(self, cases: Sequence[Case], of: dict[str, ReplaySteps], warm: int, deadline: Deadline) -> Budget:
        """What rounds of so many steps take, by the link, `warm` of which warm up, and what comes behind them: judged
        cases are checked by the core, and part of their steps (of chained ones all) are locked."""
        judged = [case for case in cases if not case.calibrates]
        round_s = self.round_s(cases, lambda case: of[case.link.name].count * of[case.link.name].each_s)
        locked_s = self.round_s(
            judged, lambda case: locked_steps(of[case.link.name].count, warm) * of[case.link.name].each_s
        )
        checked_s = self.check_s * sum(of[case.link.name].count for case in judged if not case.chained)
        share = (1 + MARGIN) * (locked_s + checked_s) / round_s
        return Budget(deadline, round_s, After(share, len(cases) * AFTERWARDS * self.prepared_s))

    def replay_s(self, at_most_s: float, cases: Sequence[Case], deadline: Deadline) -> float:
        """Seconds that the steps of a replay may take, so that FEWEST rounds and what comes after them fit into the
        time that is left."""
        beside_s = (FEWEST + 1) * self.round_s(cases, lambda case: 0.0) + len(cases) * (
            1 + AFTERWARDS
        ) * self.prepared_s
        left_s = (1 - MARGIN) * deadline.left_s - beside_s
        short = sum(not case.chained for case in cases)
        return max(1e-3, min(at_most_s, left_s / short / (FEWEST + self.share)))


def probed(bench: Any, traces: Traces, cases: Sequence[Case], common: dict[str, Any], deadline: Deadline) -> Probe:
    """A few steps of every case, twice: first kernels are loaded and tuned and memory is touched, then they are timed.
    Where there is no time for that, the first have to do."""
    few, began_s = {**common, "max_steps": min(PROBE_STEPS, common["max_steps"])}, deadline.gone_s
    settings = {case: traces.setting(case, few, PLACEHOLDER) for case in cases}
    prepared_s, replay = (deadline.gone_s - began_s) / len(cases), replaying(bench, settings)
    short, long = ([case for case in cases if case.chained is yes] for yes in (False, True))
    runs, short_s, long_s = {}, 0.0, 0.0
    for _ in range(2):
        if runs and (short_s + long_s) * (1 + FEWEST) > deadline.left_s:
            break
        began_s = deadline.gone_s
        complete(long, replay, deadline, "the warm-up")
        long_s, began_s = deadline.gone_s - began_s, deadline.gone_s
        runs = complete(short, replay, deadline, "the warm-up")
        short_s = deadline.gone_s - began_s
    steps_s = sum(float(run.record.steps["end_ns"][-1]) for run in runs.values()) / 1e9
    steps = sum(len(run.setting.steps) for run in runs.values())
    each_s = max(0.0, short_s - steps_s) / len(short)
    return Probe(
        runs, steps_s / steps, each_s, long_s / max(1, len(long)), prepared_s, check_s(runs[short[0]], deadline)
    )


def check_s(run: TimedRun, deadline: Deadline) -> float:
    """Seconds that the core alone takes for a step of a run."""
    began_s = deadline.gone_s
    check(run.setting.plan, run.record)
    return (deadline.gone_s - began_s) / len(run.setting.steps)


# --- which cases ------------------------------------------------------------------------------------------------------


def judged_cases(link: BenchLink, args: argparse.Namespace, experts: int) -> list[Case]:
    """The judged cases of one link, for layers of so many experts. Where all have slots no policy decides anything: one
    is enough there. A link whose pace is not chosen has long prompts too, at the two largest capacities."""
    given = args.caches or CACHES.get(link.regime or "", REAL_CACHES[args.quick])
    caches = distinct(given, lambda cache: slots_of(cache, experts))
    batches = args.batches or BATCH.get(link.regime or "", REAL_BATCHES)
    every = [cache for cache in caches if slots_of(cache, experts) >= experts]
    some = [cache for cache in caches if cache not in every]
    cases = grid(link, args.policies, some, batches) + grid(link, args.policies[:1], every, batches)
    largest = sorted(caches, key=lambda cache: slots_of(cache, experts))[-2:]
    return cases if link.regime else cases + long_prompts(link, largest)


def distinct(values: Sequence[V], same: Callable[[V], Any]) -> list[V]:
    """Without those that come to the same as an earlier one: a case that runs twice is one case."""
    out: dict[Any, V] = {}
    for value in values:
        out.setdefault(same(value), value)
    return list(out.values())


def all_cases(links: Sequence[BenchLink], args: argparse.Namespace, experts: int) -> list[Case]:
    """Calibrating and judged cases of every link, for layers of so many experts."""
    out = []
    for link in links:
        cases = judged_cases(link, args, experts)
        caches = apart([case.fields["cache"] for case in cases], experts)
        batches = list(dict.fromkeys(case.fields["batch"] for case in cases if not case.chained))
        host = any(case.policy.endswith("+cpu") for case in cases)
        out += calibrating(link, caches, batches, host)
        out += [] if link.regime else long_prompts(link, caches[-1:], True)
        out += cases
    return out


def without_room(args: argparse.Namespace, settings: Callable[[], list[Setting]], options: Any) -> list[dict[str, Any]]:
    """Put the capacities that nobody chose into `args.caches`, and take from them, largest first, what the device has
    no room for, but the last; what was taken, and why. settings: of every case that there is at `args.caches`."""
    from runtime.experts.layout import StoreError
    from runtime.replaying.opened import Extent

    args.caches, out = list(REAL_CACHES[args.quick]), []
    with calibrate.port_of(args) as port:
        while len(args.caches) > 1:
            try:
                Extent(settings(), options).refuse(port)
                break
            except StoreError as error:
                out.append({"cache": args.caches.pop(), "why": str(error)})
    return out


def probing(args: argparse.Namespace) -> list[Case]:
    """The cases of the probe."""
    batches = args.batches or sorted({b for batches in BATCH.values() for b in batches})
    return calibrating(BenchLink("probe", PROBE_GBPS, LATENCY_US), [0.3, 0.9], batches)


def paced_links(
    bench: Any, traces: Traces, args: argparse.Namespace, common: dict[str, Any], folder: Path, probe: Probe,
    scale: float, replay_s: float,
) -> tuple[list[BenchLink], dict[str, ReplaySteps]]:  # fmt: skip
    """A pace for each regime, and the steps that its replays have, about `replay_s` long, from one probe of this device
    (runtime.measuring.pacing)."""
    runs = list(probe.runs.values())
    found = calibrate.section_of(fitted([runs]), bench, runs[0].setting, scale)
    hardware = folder / "probe.toml"
    calibrate.write_hardware(hardware, found)
    fixed_ns = max(LATENCY_US * 1e3, found["measured"]["transfer_idle_ns"] - bench.expert_bytes / PROBE_GBPS)
    links, steps, warm = [], {}, common["warmup_steps"]
    for regime in TARGETS:
        cases = judged_cases(BenchLink(regime, 1.0, LATENCY_US, regime), args, runs[0].setting.plan.n_experts)
        of = [traces.setting(case, {**common, "max_steps": 12}, str(hardware)) for case in cases]
        most = common["max_steps"] - warm
        gbps, counted, step_s = pace_of(regime, of, bench.expert_bytes, fixed_ns, replay_s, most)
        links.append(BenchLink(regime, gbps, LATENCY_US, regime))
        steps[regime] = ReplaySteps(counted + warm, step_s)
    return links, steps


# --- the whole -------------------------------------------------------------------------------------------------------


def validated(
    bench: Any,
    traces: Traces,
    cases: Sequence[Case],
    common: dict[str, Any],
    folder: Path,
    args: argparse.Namespace,
    steps: dict[str, ReplaySteps],
    scale: float,
    budget: Budget,
    kernels: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Measure, calibrate, simulate, lock-step, judge. steps: of each link's replays, by its name; the hardware files go
    into the folder; kernels: what an expert takes, by tokens (runtime.measuring.microbenchmarks)."""
    fields = {link: {**common, "max_steps": of.count} for link, of in steps.items()}
    settings = {case: traces.setting(case, fields[case.link.name], PLACEHOLDER) for case in cases}
    links = list(dict.fromkeys(case.link for case in cases))
    rounds = measured(cases, replaying(bench, settings), budget, args.repeats, args.seed)
    sections, rows = {}, {}
    for link in links:
        of_link = [case for case in cases if case.link == link]
        hardware = folder / f"{link.name}.toml"
        sections[link.name] = _calibrated(bench, of_link, settings, rounds, scale, hardware)
        for case in of_link:
            if not case.calibrates:
                runs = [found[case] for found in rounds]
                simulated = durations.simulated(traces.setting(case, fields[link.name], str(hardware)))
                rows[case] = compared(case, runs, simulated) | {"gpu_busy_ns": gpu_busy_ns(runs[0], kernels)}
    _lock_steps(bench, rows, traces, fields, folder, budget.deadline)
    told = [_told(link, [settings[case] for case in cases if case.link == link and case.calibrates]) for link in links]
    judged = list(rows.values())
    stated = statements(judged, Tolerance(), told)
    return {
        "kind": kind([row["regime"] for row in judged]),
        "statements": stated,
        "exit": status(stated),
        "rounds": len(rounds),
        "rounds_asked": args.repeats,
        "deadline_s": budget.deadline.seconds,
        "drift": drift(rounds),
        "links": told,
        "arms": judged,
        "calibration": sections,
        "kernels": list(kernels),
    }


def _told(link: BenchLink, calibrated: Sequence[Setting]) -> dict[str, Any]:
    """A link as the record has it, with the capacities, in slots, that it was calibrated at."""
    return asdict(link) | {"calibrated_at": sorted({capacity(setting) for setting in calibrated})}


def _calibrated(
    bench: Any,
    cases: Sequence[Case],
    settings: dict[Case, Setting],
    rounds: Sequence[dict[Case, TimedRun]],
    scale: float,
    hardware: Path,
) -> dict[str, Any]:
    """Write the hardware file of one link from its calibrating cases; its [measured] section."""
    found = fitted([[runs[case] for case in cases if case.calibrates] for runs in rounds])
    if cases[0].link.gbps is not None:
        bench.pace(cases[0].link.gbps, cases[0].link.latency_us)
    table = calibrate.section_of(found, bench, settings[cases[0]], scale)
    calibrate.write_hardware(hardware, table)
    measured: dict[str, Any] = table["measured"]
    return measured


def _lock_steps(
    bench: Any, rows: dict[Case, dict[str, Any]], traces: Traces, fields: dict[str, dict[str, Any]], folder: Path,
    deadline: Deadline,
) -> None:  # fmt: skip
    """Replay every judged case in lock-step over a part of its steps, as long as there is time for another one."""
    slowest_s, done = 0.0, 0
    for case, row in rows.items():
        if deadline.left_s <= slowest_s:
            row["lock_step"] = no_time()
            continue
        began_s, hardware = deadline.gone_s, str(folder / f"{case.link.name}.toml")
        setting = traces.setting(case, _locked(fields[case.link.name]), hardware)
        row["lock_step"] = locked(bench, case, durations.simulated(setting))
        slowest_s, done = max(slowest_s, deadline.gone_s - began_s), done + 1
    progress(f"{done} of {len(rows)} lock-steps done: {deadline}")


def _locked(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a case with the steps of its lock-step."""
    return {**fields, "max_steps": locked_steps(fields["max_steps"], fields["warmup_steps"])}


def locked_steps(steps: int, warm: int) -> int:
    """How many of a replay's steps are locked; two at least count."""
    return max(warm + 2, int(steps * LOCKED))


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
    with tempfile.TemporaryDirectory() as scratch:
        out = run(args, Path(scratch)) | {"command": "python -m runtime.validate " + " ".join(argv)}
        save(out, folder, Path(scratch))
    print(json.dumps(out) if args.json else markdown(out))
    return int(out["exit"])


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Open the device with room for every case, choose the links, and validate. Raises UserError for what cannot be."""
    deadline = calibrate.deadline_of(args, QUICK_S, LONG_S)
    whole = npz.read(npz.find(args.trace))
    experts = whole.n_experts
    batches = args.batches or [b for some in (REAL_BATCHES, *BATCH.values()) for b in some]
    traces = Traces.of(args.trace, args.calibration, args.seed, scratch, max(batches))
    common, options = calibrate.common_fields(args), calibrate.options_of(args)
    ahead = "gate-lookahead" if whole.has("lookahead") else "transition"
    args.policies = distinct(
        args.policies or [policy.format(ahead=ahead) for policy in POLICIES],
        lambda policy: tuple(policy_fields(policy).items()),
    )
    cpu = calibrate.device_name(args) == "cpu"
    choose = cpu and args.link_gbps is None
    links = [BenchLink(regime, 1.0, LATENCY_US, regime) for regime in TARGETS] if choose else [own_link(args, cpu)]
    if args.batches or not choose:
        there = len(split(whole, args.calibration, args.seed)[1].requests()[0])  # no more run together
        args.batches = distinct(args.batches or REAL_BATCHES, lambda batch: min(batch, there))

    def settings() -> list[Setting]:
        """Of every case at its longest, and of the probe: what the device must have room for."""
        probe = probing(args) if choose else []
        return [traces.setting(case, common, PLACEHOLDER) for case in all_cases(links, args, experts) + probe]

    left_out = [] if choose or args.caches else without_room(args, settings, options)
    room = settings()
    most_rows = max(int(np.diff(setting.steps.offset).max()) for setting in room)
    with calibrate.open_bench(args, room, options) as bench:
        progress(f"the device is open: {deadline}")
        cases = all_cases(links, args, experts)
        probe = probed(bench, traces, probing(args) if choose else _calibrating(cases), common, deadline)
        if not choose:
            say_expected(bench, traces, cases, args, common, deadline)
        kernels = bench.kernels([n for n in TOKENS if n < 4 * most_rows])
        replay_s = probe.replay_s(REPLAY_S if choose else REAL_S[args.quick], cases, deadline)
        if choose:
            links, steps = paced_links(bench, traces, args, common, scratch, probe, options.scale, replay_s)
            cases = all_cases(links, args, experts)
        else:
            steps = {links[0].name: ReplaySteps(steps_of(probe.step_s, replay_s, args, common), probe.step_s)}
        budget = probe.budget(cases, steps, common["warmup_steps"], deadline)
        found = validated(bench, traces, cases, common, scratch, args, steps, options.scale, budget, kernels)
        facts = bench.facts()
    about = {"name": args.trace, "hash": npz.content_hash(whole), "model": whole.model, "real": whole.real}
    given = {"scale": options.scale, "precision": common["precision"], "trace": about, "left_out": left_out}
    return {"device": facts, **given, **found, "seconds": round(deadline.gone_s, 1)}


def own_link(args: argparse.Namespace, cpu: bool) -> BenchLink:
    """The one link whose pace is not chosen: the device's, or a CPU's at the pace that was asked for."""
    return BenchLink("link", args.link_gbps, args.link_latency_us) if cpu else BenchLink("link")


def steps_of(step_s: float, replay_s: float, args: argparse.Namespace, common: dict[str, Any]) -> int:
    """Steps of a replay on a link whose pace is not chosen: as asked for, or what takes about `replay_s`; 4 at least
    count."""
    warm = common["warmup_steps"]
    counted = common["max_steps"] - warm
    if args.steps is None:
        counted = int(np.clip(round(replay_s / step_s), 4, counted))
    return int(counted + warm)


def say_expected(
    bench: Any, traces: Traces, cases: Sequence[Case], args: argparse.Namespace, common: dict[str, Any],
    deadline: Deadline,
) -> None:  # fmt: skip
    """What the plans alone say that everything takes, at the pace of the link's bare copies."""
    gbps = bench.expert_bytes / bench.bare_copy_ns()[1]
    expected = expected_s(traces, cases, args, common, PLACEHOLDER, gbps, bench.expert_bytes)
    progress(
        f"the plans alone, at {gbps:.2f} GB/s, take {expected:.0f} s with {args.repeats or FEWEST} rounds: {deadline}"
    )


def expected_s(
    traces: Traces, cases: Sequence[Case], args: argparse.Namespace, common: dict[str, Any], hardware: str, gbps: float,
    expert_bytes: int,
) -> float:  # fmt: skip
    """Seconds of everything on a link whose pace is not chosen, with transfers at so many GB/s and FEWEST rounds unless
    others are asked for: from the plans alone, with the kernels of a piece of hardware."""

    def settings(of: Sequence[Case], fields: dict[str, Any]) -> list[Setting]:
        return [traces.setting(case, fields, hardware) for case in of]

    few, calibrates = {**common, "max_steps": min(PROBE_STEPS, common["max_steps"])}, _calibrating(cases)
    timed = settings([case for case in calibrates if not case.chained], few)
    step_s = seconds_of(timed, gbps, expert_bytes)[1] / sum(len(setting.steps) for setting in timed)
    fields = {**common, "max_steps": steps_of(step_s, REAL_S[args.quick], args, common)}
    locked = settings([case for case in cases if not case.calibrates], _locked(fields))
    each = settings(cases, fields)
    return predicted_s(settings(calibrates, few), each, locked, gbps, expert_bytes, args.repeats or FEWEST)


def _calibrating(cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case.calibrates]


def save(out: dict[str, Any], folder: Path, scratch: Path) -> None:
    """validation.json, validation.md and the hardware file of each link, in the place of an earlier record's."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _links_of(folder / "validation.json") & {*TARGETS, "link"}:
        (folder / f"{name}.toml").unlink(missing_ok=True)
    for link in out["links"]:
        write_bytes(folder / f"{link['name']}.toml", (scratch / f"{link['name']}.toml").read_bytes())
    write_bytes(folder / "validation.md", (markdown(out) + "\n").encode())
    write_bytes(folder / "validation.json", (json.dumps(out, indent=1, allow_nan=False) + "\n").encode())


def _links_of(record: Path) -> set[str]:
    """The links of an earlier record; none where there is no record of ours."""
    try:
        return {str(link["name"]) for link in json.loads(record.read_text())["links"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


if __name__ == "__main__":
    sys.exit(main())
