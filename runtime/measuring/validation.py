"""A validation from its arguments to its record: which cases, at what pace, for how many steps, and what came of them
(`runtime.validate` says what for)."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from runtime.experts.layout import StoreError
from runtime.measuring import durations, flags
from runtime.measuring.agreement import kind
from runtime.measuring.cases import (
    BenchLink,
    Case,
    Traces,
    apart,
    calibrating,
    grid,
    long_prompts,
    policy_fields,
    replaying,
)
from runtime.measuring.durations import TimedRun
from runtime.measuring.hardware_file import section_of, write_hardware
from runtime.measuring.judged import capacity, compared, drift, locked, no_time, statements, status
from runtime.measuring.microbenchmarks import TOKENS, gpu_busy_ns
from runtime.measuring.pacing import TARGETS, pace_of, predicted_s, seconds_of
from runtime.measuring.probe import FEWEST, Probe, ReplaySteps, locked_steps, probed
from runtime.measuring.rounds import Budget, measured, progress
from runtime.measuring.terms import fitted
from runtime.replaying.opened import Extent
from sim.prepare import Setting
from sim.spec import slots_of
from traces.format import npz
from traces.format.trace import split
from traces.progress import counted, doing

V = TypeVar("V")
POLICIES = ("lru", "belady", "lru+{ahead}")  # a prefetcher that the trace allows
# of 8 experts 6, 3 and 5, 3 and 4 slots. What calibrates (5 and 7, 4 and 6, 2 and 5) has about as many copies in the
# mean, and on a CPU copies slow the kernels beside them: for that reason there is none at all experts here
CACHES: dict[str | None, Sequence[float]] = {"compute": (0.75,), "mixed": (0.4, 0.65), "stall": (0.4, 0.5)}
BATCH: dict[str | None, Sequence[int]] = {"compute": (4,), "mixed": (1,), "stall": (1,)}
# on a link whose pace is not chosen, --quick or not: from where the link is most of the time up to all experts, where
# kernels and host are alone, and so few that three rounds of Mixtral at 55 GB/s leave time for the rest
REAL_CACHES, REAL_BATCHES = {True: (0.25, 0.9, 1.0), False: (0.25, 0.5, 0.9, 1.0)}, (1, 4)
LATENCY_US = 10.0
QUICK_S, LONG_S = 270.0, 1200.0  # of everything
PROBE_GBPS, PROBE_STEPS, PACED_STEPS = 2.0, 8, 12
REPLAY_S = 0.35  # counted steps of a replay on a link whose pace is chosen
REAL_S = {True: 1.0, False: 4.0}  # and on any other link, --quick or not
PLACEHOLDER = "a100-pcie4"  # hardware of settings that are replayed: there durations are the device's


class Validation:
    """One validation: of what, on which links, until when.

    links: the device's own; or one for each regime, whose paces are `chosen`. caches, batches: of the judged cases;
    None: each link's. common: fields of RunSpec that all cases have. folder: for files while it runs, such as the
    hardware file of each link.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        """Raises UserError for what cannot be."""
        self.args, self.folder = args, folder
        self.deadline = flags.deadline_of(args, QUICK_S, LONG_S)
        self.trace = npz.read(npz.find(args.trace))
        together = max(args.batches or (*REAL_BATCHES, *(b for some in BATCH.values() for b in some)))
        self.traces = Traces.of(args.trace, args.calibration, args.seed, folder, together)
        self.common, self.options = flags.common_fields(args), flags.options_of(args)
        self.warm, self.most = self.common["warmup_steps"], self.common["max_steps"]
        ahead = "gate-lookahead" if self.trace.has("lookahead") else "transition"
        policies = args.policies or [policy.format(ahead=ahead) for policy in POLICIES]
        self.policies = distinct(policies, lambda policy: tuple(policy_fields(policy).items()))
        self.chosen = flags.device_name(args) == "cpu" and args.link_gbps is None
        paced = [BenchLink(regime, 1.0, LATENCY_US, regime) for regime in TARGETS]
        self.links = paced if self.chosen else [flags.own_link(args)]
        self.caches: Sequence[float] | None = args.caches
        self.batches: Sequence[int] | None = args.batches
        if args.batches or not self.chosen:
            there = len(split(self.trace, args.calibration, args.seed)[1].requests()[0])  # no more run together
            self.batches = distinct(args.batches or REAL_BATCHES, lambda batch: min(batch, there))

    # --- which cases -------------------------------------------------------------------------------------------------

    def cases(self) -> list[Case]:
        """Calibrating and judged cases of every link."""
        out = []
        for link in self.links:
            judged = self.judged(link)
            caches = apart([case.fields["cache"] for case in judged], self.trace.n_experts)
            batches = list(dict.fromkeys(case.fields["batch"] for case in judged if not case.chained))
            out += calibrating(link, caches, batches, any(case.policy.endswith("+cpu") for case in judged))
            out += [] if link.regime else long_prompts(link, caches[-1:], True)
            out += judged
        return out

    def judged(self, link: BenchLink) -> list[Case]:
        """The judged cases of one link. Where all experts have slots no policy decides anything: one is enough there.
        A link whose pace is not chosen has long prompts too, at the two largest capacities."""
        slots: Callable[[float], int] = lambda cache: slots_of(cache, self.trace.n_experts)  # noqa: E731 - of a layer
        given = self.caches or CACHES.get(link.regime, REAL_CACHES[self.args.quick])
        caches = distinct(given, slots)
        batches = self.batches or BATCH.get(link.regime, REAL_BATCHES)
        every = [cache for cache in caches if slots(cache) >= self.trace.n_experts]
        some = [cache for cache in caches if cache not in every]
        out = grid(link, self.policies, some, batches) + grid(link, self.policies[:1], every, batches)
        return out if link.regime else out + long_prompts(link, sorted(caches, key=slots)[-2:])

    def probe_cases(self, cases: Sequence[Case]) -> list[Case]:
        """What is probed: where paces are chosen cases of their own, else those that calibrate."""
        if not self.chosen:
            return _calibrating(cases)
        batches = self.batches or sorted({b for batches in BATCH.values() for b in batches})
        return calibrating(BenchLink("probe", PROBE_GBPS, LATENCY_US), [0.3, 0.9], batches)

    def setting(self, case: Case, steps: int | None = None, hardware: str = PLACEHOLDER) -> Setting:
        """Of a case, with so many steps (None: as many as it may have; a chained case always has all)."""
        return self.traces.setting(case, {**self.common, "max_steps": steps or self.most}, hardware)

    def probing(self, case: Case) -> Setting:
        """Of a case in the probe."""
        return self.setting(case, min(PROBE_STEPS, self.most))

    def hardware(self, link: BenchLink) -> Path:
        """The hardware file of a link."""
        return self.folder / f"{link.name}.toml"

    # --- the whole ---------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Open the device with room for every case, measure, judge: the record."""
        left_out = [] if self.chosen or self.caches else self.leave_out()
        cases = self.cases()
        probe_cases = self.probe_cases(cases)
        room = [self.setting(case) for case in (cases + probe_cases if self.chosen else cases)]
        most_rows = max(int(np.diff(setting.steps.offset).max()) for setting in room)
        doing(f"opening the device, with room for {len(room)} cases")
        with flags.open_bench(self.args, room, self.options) as bench:
            progress(f"the device is open: {self.deadline}")
            probe = probed(bench, self.probing, probe_cases, self.deadline)
            if not self.chosen:
                self.say_expected(bench, cases)
            doing("timing kernels")
            kernels = bench.kernels([n for n in TOKENS if n < 4 * most_rows])
            replay_s = probe.replay_s(REPLAY_S if self.chosen else REAL_S[self.args.quick], cases, self.deadline)
            doing("choosing the steps of replays", at_once=False)
            if self.chosen:
                steps = self.choose_paces(bench, probe, replay_s)
                cases = self.cases()
            else:
                steps = {self.links[0].name: ReplaySteps(self.steps_of(probe.step_s, replay_s), probe.step_s)}
            budget = probe.budget(cases, steps, self.warm, self.deadline)
            found = self.measure(bench, cases, steps, budget, kernels)
            facts = bench.facts()
        name, trace = self.args.trace, self.trace
        about = {"name": name, "hash": npz.content_hash(trace), "model": trace.model, "real": trace.real}
        given = {"scale": self.options.scale, "precision": self.common["precision"], "trace": about}
        seconds = round(self.deadline.gone_s, 1)
        return {"device": facts, **given, "left_out": left_out, **found, "seconds": seconds}

    def leave_out(self) -> list[dict[str, Any]]:
        """Of the capacities that nobody chose those, largest first, that the device has no room for, but the last: what
        was left out, and why."""
        out, caches = [], list(REAL_CACHES[self.args.quick])
        with flags.port_of(self.args) as port:
            while len(caches) > 1:
                self.caches = caches
                try:
                    Extent([self.setting(case) for case in self.cases()], self.options).refuse(port)
                    break
                except StoreError as error:
                    out.append({"cache": caches.pop(), "why": str(error)})
        self.caches = caches
        return out

    def choose_paces(self, bench: Any, probe: Probe, replay_s: float) -> dict[str, ReplaySteps]:
        """A pace for each regime, and the steps that its replays have, about `replay_s` long, from one probe of this
        device (runtime.measuring.pacing)."""
        hardware, steps = self.folder / "probe.toml", {}
        found = section_of(fitted([probe.runs]), bench, probe.runs[0].setting, self.options.scale)
        write_hardware(hardware, found)
        fixed_ns = max(LATENCY_US * 1e3, found["measured"]["transfer_idle_ns"] - bench.expert_bytes / PROBE_GBPS)
        for i, link in enumerate(self.links):
            of = [self.setting(case, PACED_STEPS, str(hardware)) for case in self.judged(link)]
            most = self.most - self.warm
            gbps, counted, step_s = pace_of(link.name, of, bench.expert_bytes, fixed_ns, replay_s, most)
            self.links[i] = BenchLink(link.name, gbps, LATENCY_US, link.name)
            steps[link.name] = ReplaySteps(counted + self.warm, step_s)
        return steps

    def measure(
        self,
        bench: Any,
        cases: Sequence[Case],
        steps: dict[str, ReplaySteps],
        budget: Budget,
        kernels: Sequence[dict[str, Any]],
    ) -> dict[str, Any]:
        """Measure, calibrate, simulate, lock-step, judge. steps: of each link's replays, by its name; kernels: what an
        expert takes, by tokens (runtime.measuring.microbenchmarks)."""
        settings = {case: self.setting(case, steps[case.link.name].count) for case in cases}
        rounds = measured(cases, replaying(bench, settings), budget, self.args.repeats, self.args.seed)
        sections, told, rows = {}, [], {}
        for link in counted(self.links, "fitting and simulating: link", lambda link: link.name, at_once=False):
            of_link = [case for case in cases if case.link == link]
            sections[link.name] = self.calibrate(bench, of_link, rounds)
            for case in of_link:
                if not case.calibrates:
                    runs, hardware = [found[case] for found in rounds], str(self.hardware(link))
                    simulated = durations.simulated(self.setting(case, steps[link.name].count, hardware))
                    rows[case] = compared(case, runs, simulated) | {"gpu_busy_ns": gpu_busy_ns(runs[0], kernels)}
            slots = {capacity(settings[case]) for case in _calibrating(of_link)}
            told.append(asdict(link) | {"calibrated_at": sorted(slots)})
        self.lock_steps(bench, rows, steps)
        judged = list(rows.values())
        stated = statements(judged, told)
        return {
            "kind": kind([row["regime"] for row in judged]),
            "statements": stated,
            "exit": status(stated),
            "rounds": len(rounds),
            "rounds_asked": self.args.repeats,
            "deadline_s": self.deadline.seconds,
            "drift": drift(rounds),
            "links": told,
            "arms": judged,
            "calibration": sections,
            "kernels": list(kernels),
        }

    def calibrate(self, bench: Any, cases: Sequence[Case], rounds: Sequence[dict[Case, TimedRun]]) -> dict[str, Any]:
        """Write the hardware file of one link from its calibrating cases; its [measured] section."""
        link, runs = cases[0].link, [[found[case] for case in _calibrating(cases)] for found in rounds]
        found = fitted(runs)
        link.pace(bench)
        table = section_of(found, bench, runs[0][0].setting, self.options.scale)
        write_hardware(self.hardware(link), table)
        section: dict[str, Any] = table["measured"]
        return section

    def lock_steps(self, bench: Any, rows: dict[Case, dict[str, Any]], steps: dict[str, ReplaySteps]) -> None:
        """Replay every judged case in lock-step over a part of its steps, as long as there is time for another one."""
        slowest_s, done = 0.0, 0
        for case, row in counted([*rows.items()], "lock-step", lambda each: str(each[0]), at_once=False):
            if self.deadline.left_s <= slowest_s:
                row["lock_step"] = no_time()
                continue
            began_s, count = self.deadline.gone_s, locked_steps(steps[case.link.name].count, self.warm)
            setting = self.setting(case, count, str(self.hardware(case.link)))
            row["lock_step"] = locked(bench, case, durations.simulated(setting))
            slowest_s, done = max(slowest_s, self.deadline.gone_s - began_s), done + 1
        progress(f"{done} of {len(rows)} lock-steps done: {self.deadline}")

    # --- seconds -----------------------------------------------------------------------------------------------------

    def steps_of(self, step_s: float, replay_s: float) -> int:
        """Steps of a replay on a link whose pace is not chosen: as asked for, or what takes about `replay_s`; 4 at
        least count."""
        counted = self.most - self.warm
        if self.args.steps is None:
            counted = int(np.clip(round(replay_s / step_s), 4, counted))
        return int(counted + self.warm)

    def say_expected(self, bench: Any, cases: Sequence[Case]) -> None:
        """What the plans alone say that everything takes, at the pace of the link's bare copies."""
        gbps = bench.expert_bytes / bench.bare_copy_ns()[1]
        expected = self.expected_s(cases, PLACEHOLDER, gbps, bench.expert_bytes)
        plans = f"the plans alone, at {gbps:.2f} GB/s, take {expected:.0f} s"
        progress(f"{plans} with {self.args.repeats or FEWEST} rounds: {self.deadline}")

    def expected_s(self, cases: Sequence[Case], hardware: str, gbps: float, expert_bytes: int) -> float:
        """Seconds of everything on a link whose pace is not chosen, with transfers at so many GB/s and FEWEST rounds
        unless others are asked for: from the plans alone, with the kernels of a piece of hardware."""

        def settings(of: Sequence[Case], steps: int) -> list[Setting]:
            return [self.setting(case, steps, hardware) for case in of]

        few, calibrates = min(PROBE_STEPS, self.most), _calibrating(cases)
        timed = settings([case for case in calibrates if not case.chained], few)
        step_s = seconds_of(timed, gbps, expert_bytes)[1] / sum(len(setting.steps) for setting in timed)
        steps = self.steps_of(step_s, REAL_S[self.args.quick])
        judged = [case for case in cases if not case.calibrates]
        each, locked = settings(cases, steps), settings(judged, locked_steps(steps, self.warm))
        rounds = self.args.repeats or FEWEST
        return predicted_s(settings(calibrates, few), each, locked, gbps, expert_bytes, rounds)


def _calibrating(cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case.calibrates]


def distinct(values: Sequence[V], same: Callable[[V], Any]) -> list[V]:
    """Without those that come to the same as an earlier one: a case that runs twice is one case."""
    out: dict[Any, V] = {}
    for value in values:
        out.setdefault(same(value), value)
    return list(out.values())
