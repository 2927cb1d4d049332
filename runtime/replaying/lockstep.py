"""Lock-step: the completions of a recorded run in their recorded order, and whether every decision is the same again.

What a run decides depends on its plan and on the order in which things complete (visits, landings, ends of groups and
of the host's experts), not on time. So a record of one machine can be replayed on another: the order is taken from the
record, the decisions are made anew, and must be equal, every one. Two ways:

    check(plan, record)    through the core alone: no device, no clock. Proves of a real run that its decisions are
                           those of the simulator's policies
    LockStep               the order of a torch machine: each completion takes effect on the device when it is its turn;
                           a copy that lands too early waits. Proves it the other way: of a simulated run

A *decision* is a row of the record without its times: a visit's hits, late and misses; an answer with its stand-in and
its gate; a transfer's expert, cause, place in the queue and in the order of commits, victim and outcome; an
execution's expert, tokens and group. Event numbers are compared with them, so the order of everything is.

A phase of commits has no completion of its own. It stands in the order where the record has it, and is replayed as the
machines do it: commit until the core has no more to commit. Where the order leaves an instant without one (the next
completion is later), the core is asked, too, and must have nothing. A group must be what the core offered at some
moment since the visit's decisions or the last group's end: how many are ready then is a choice, the moment is a time.

The end of a visit is none of the events either, but with plan.OnMiss it gives stages back. Where the host computed
something it is when that counts; else it stands where its time has it: landings of an instant before it, commits
behind (`Ends`).
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from runtime.replaying.decisions import DecisionCheck, Outcome, Unequal, global_ids
from runtime.replaying.machine import Machine, refuse
from runtime.replaying.order import END, GROUP, HOST, STEP, VISIT
from sim.core import state as st
from sim.core.hooks import explained
from sim.core.inputs import inputs
from sim.core.link import land, next_commit, waiting
from sim.core.plan import Plan
from sim.core.rules import Rules
from sim.core.stages import end_visit
from sim.core.visit import decide, finish_group, finish_host, take_group, visit_lasts
from sim.errors import SpecError
from sim.machines.clock import begin_run, close, forget, reset
from sim.machines.record import RunRecord

LAND, COMMITS = 5, 6  # beside the kinds of turn
NAMES = ("visit", "group", "host", "step", "end of a visit", "landing", "commits")


class Entry(NamedTuple):
    """One thing that takes effect. n: experts of a group; g: first id of what lands; ns: when, in the record."""

    event: int
    kind: int
    n: int = 0
    g: int = -1
    ns: int = 0


def entries(record: RunRecord, plan: Plan) -> list[Entry]:
    """The order of a full record. Raises SpecError for one without its groups."""
    if not record.groups or "event" not in record.steps:
        raise SpecError("lock-step: the record holds no order of events; it must be written with --record full")
    visits, runs, sent = (record.groups[name] for name in ("visits", "executions", "transfers"))
    out = [Entry(int(e), VISIT, ns=int(ns)) for e, ns in zip(visits["event"], visits["routed_ns"], strict=True)]
    out += _executions(runs, visits["end_ns"])
    ids = global_ids(plan, record, "transfers")
    out += [Entry(int(sent["event"][i]), LAND, g=int(ids[i]), ns=int(sent["landed_ns"][i])) for i in _landings(sent)]
    for i in np.flatnonzero(sent["event_committed"] >= 0):
        out.append(Entry(int(sent["event_committed"][i]), COMMITS, ns=int(sent["committed_ns"][i])))
    out += _chunks(record, sent, ids)
    out += [Entry(int(e), COMMITS, ns=-1) for e in sent["event"][sent["outcome"] == 2]]  # rejected: tried in a phase
    out += [
        Entry(int(e), STEP, ns=int(ns)) for e, ns in zip(record.steps["event"], record.steps["end_ns"], strict=True)
    ]
    return _phases(sorted(out), plan.on_miss is None)


def _chunks(record: RunRecord, sent: dict[str, Any], ids: Any) -> Iterator[Entry]:
    """Commits and landings of chunks, but for the first commit and the last landing of each transfer, which are its
    own."""
    cut = record.groups.get("chunks", {})
    for i, transfer in enumerate(cut.get("transfer", ())):
        if cut["number"][i] > 0:
            yield Entry(int(cut["event_committed"][i]), COMMITS, ns=int(cut["committed_ns"][i]))
        if cut["landed_ns"][i] >= 0 and cut["event"][i] != sent["event"][transfer]:
            yield Entry(int(cut["event"][i]), LAND, g=int(ids[transfer]), ns=int(cut["landed_ns"][i]))


def _landings(sent: dict[str, Any]) -> Any:
    """Rows of the transfers that landed; of several experts in one the first that did."""
    landed = np.flatnonzero(sent["outcome"] == 0)
    if "run" not in sent:
        return landed
    landed = landed[np.argsort(sent["event"][landed])]
    return landed[np.unique(sent["run"][landed], return_index=True)[1]]


def _executions(runs: dict[str, Any], visit_end_ns: Any) -> Iterator[Entry]:
    """One entry per group, and one per visit for what the host computed, which counts when the visit ends."""
    begins = np.ones(len(runs["event"]), np.bool_)
    begins[1:] = (np.diff(runs["visit"]) != 0) | (np.diff(runs["group"]) != 0) | (np.diff(runs["cpu"]) != 0)
    bounds = [*np.flatnonzero(begins), len(begins)]
    for i, end in pairwise(bounds):
        on_host = bool(runs["cpu"][i])
        ns = visit_end_ns[runs["visit"][i]] if on_host else runs["end_ns"][end - 1]
        yield Entry(int(runs["event"][i]), HOST if on_host else GROUP, int(end - i), ns=int(ns))


def _phases(found: list[Entry], one: bool) -> list[Entry]:
    """Commits that follow one another are `one` phase, unless a visit may end between them; and no time falls (a
    landing is learnt of after it happened)."""
    out: list[Entry] = []
    for entry in found:
        if out and entry.ns < out[-1].ns:
            entry = entry._replace(ns=out[-1].ns)
        if not (one and entry.kind == COMMITS and out and out[-1].kind == COMMITS):
            out.append(entry)
    return out


class Ends:
    """Where the visits of a record end, of a plan with rules, for which the host computed nothing."""

    def __init__(self, record: RunRecord, rules: Rules | None) -> None:
        self.ns, self.rules = record.groups["visits"]["end_ns"], rules

    def come_before(self, entry: Entry, s: st.State) -> bool:
        """Whether the visit being served ends before this takes effect."""
        if self.rules is None or s.visit.n_host > 0 or s.run.routed == 0:
            return False
        visit = s.run.routed - 1
        if self.rules.layer[visit % s.run.n_layers].ended == visit or visit_lasts(s, self.rules):
            return False
        if entry.kind == LAND:
            return bool(entry.ns > self.ns[visit])
        return entry.kind in (VISIT, STEP) or (entry.kind == COMMITS and entry.ns >= self.ns[visit])

    def with_an_instant(self, entry: Entry, s: st.State) -> bool:
        """Whether the core must have nothing to commit behind the end of the visit being served, `entry` being next."""
        return entry.kind != COMMITS and bool(entry.ns > self.ns[s.run.routed - 1])


# --- through the core alone -------------------------------------------------------------------------------------------


class _Core:
    """The core without a machine: whatever is next takes effect."""

    def __init__(self, plan: Plan) -> None:
        refuse(plan)
        self.plan, self.layers = plan, plan.experts.shape[1]
        self.s, log, self.clock, self.rules = begin_run(plan, True)
        assert log is not None
        self.log = log
        self.route, self.miss, self.ahead, self.hooks = inputs(plan, self.s)
        self.visits = self.steps = self.group = 0

    def apply(self, entry: Entry) -> None:
        """Raises Unequal, or what the core raises."""
        s, log = self.s, self.log
        if entry.kind == VISIT:
            step, layer = divmod(self.visits, self.layers)
            self.visits, self.group = self.visits + 1, 0
            decide(s, log, self.route, self.miss, self.ahead, step, layer, self.hooks, self.rules)
        elif entry.kind == GROUP:
            self._run(entry.n)
        elif entry.kind == HOST:
            finish_host(s, log, self.rules)
            self._number(s.visit.n_host, -1)
            self.end_visit()
        elif entry.kind == LAND:
            if not s.link.n_flight:
                raise Unequal(f"expert {entry.g} lands, but nothing is under way")
            g = int(land(s, log, self.rules))
            if g != entry.g:
                raise Unequal(f"expert {entry.g} landed in the record, {g} in the replay")
        elif entry.kind == STEP:
            self._end_step()
        else:
            self.commit()

    def end_visit(self) -> None:
        """What nobody ran leaves its stage."""
        if self.rules is not None:
            end_visit(self.s, self.rules)

    def _run(self, n: int) -> None:
        finish_group(self.s, self.log, self.route, n, self.rules)
        self._number(n, self.group)
        self.group += 1

    def _number(self, n: int, group: int) -> None:
        """The last n executions are of this group."""
        last = self.s.rows.executions
        for row in self.log.executions[last - n : last]:
            row.group = group

    def _end_step(self) -> None:
        self.s.run.events += 1
        self.steps += 1
        if self.steps == self.plan.warmup_steps:
            forget(self.s, self.clock, self.rules)
        if self.plan.resets is not None and self.plan.resets[self.steps :][:1].any():
            reset(self.s, self.log, self.clock, self.hooks, self.rules, len(self.plan.step_prefill))

    def commit(self) -> None:
        """Until there is no more to commit."""
        while waiting(self.s, self.rules) and next_commit(self.s, self.log, self.hooks, self.rules) >= 0:
            pass


class Offers:
    """What the core offered the free GPU since it last took something: group sizes, in the order they came up."""

    def __init__(self, mode: int, rules: Rules | None) -> None:
        self.mode, self.rules = mode, rules
        self.seen: set[int] = set()

    def after(self, kind: int, s: st.State) -> None:
        """Something took effect."""
        if kind in (VISIT, GROUP):
            self.seen.clear()
        if kind in (VISIT, GROUP, LAND) or (kind == COMMITS and self.rules is not None):  # it may take the last stage
            self.seen.add(int(take_group(s, self.mode, self.rules)))

    def refuse_another(self, n: int) -> None:
        """Raises Unequal when a group of n was never offered."""
        if n not in self.seen:
            raise Unequal(f"a group of {n} ran in the record; the replay's core offered {sorted(self.seen)}")


def check(plan: Plan, record: RunRecord) -> Outcome:
    """Replay the completion order of a full record through the core; compare every decision.

    Raises SpecError when the record has no order of events, and UserError like any machine."""
    order, core = entries(record, plan), _Core(plan)
    offers, ends = Offers(plan.group, core.rules), Ends(record, core.rules)
    comparison = DecisionCheck(plan, record)
    with explained(plan, core.hooks), comparison.noting():
        for i, entry in enumerate(order):
            if ends.come_before(entry, core.s):
                core.end_visit()
                if ends.with_an_instant(entry, core.s):
                    core.commit()
            if entry.kind == GROUP:
                offers.refuse_another(entry.n)
            core.apply(entry)
            offers.after(entry.kind, core.s)
            if ends_an_instant(order, i):
                core.commit()
            comparison.look(core.s, core.log)
        core.clock.time.now_ns = order[-1].ns if order else 0
        close(core.s, core.log, core.clock, core.rules)
        comparison.finish(core.s, core.log)
    return comparison.outcome


def ends_an_instant(order: list[Entry], i: int) -> bool:
    """Whether the core must have nothing to commit behind entry i: time goes on before anything else completes."""
    entry, after = order[i], order[i + 1] if i + 1 < len(order) else None
    if entry.kind in (COMMITS, STEP) or after is None or after.kind == COMMITS:
        return False
    return after.ns > entry.ns


# --- on a device ------------------------------------------------------------------------------------------------------


class LockStep:
    """An order for runtime.replaying.machine.Machine: completions take effect as in a record, and every decision is
    compared.

    Machine(..., order=LockStep.of(record)): raises Unequal from the machine's run when something differs; `outcome`
    says what was compared and what was not equal.
    """

    def __init__(self, machine: Machine, record: RunRecord) -> None:
        self.machine, plan = machine, machine.plan
        self.order, self.at = entries(record, plan), 0
        self.comparison, self.offers = DecisionCheck(plan, record), Offers(plan.group, machine.rules)
        self.ends = Ends(record, machine.rules)
        self.arrived: dict[int, list[tuple[int, int]]] = {}  # of each expert what has ended, and not landed
        self.why: str | None = None

    @staticmethod
    def of(record: RunRecord) -> Callable[[Machine], "LockStep"]:
        """As an argument of Machine."""
        return lambda machine: LockStep(machine, record)

    @property
    def outcome(self) -> Outcome:
        return self.comparison.outcome

    def begin(self) -> None:
        """Time 0: what the record has before its first visit."""
        self._go_on()

    def arrive(self, g: int, started_ns: int, landed_ns: int) -> None:
        """A copy has ended; it lands when it is its turn."""
        self.arrived.setdefault(g, []).append((started_ns, landed_ns))
        self._go_on()
        self.machine.port.notify()

    def begin_again(self) -> None:
        """A reset: what has arrived and has not landed is nobody's."""
        self.arrived.clear()

    def _next(self) -> Entry:
        if self.at == len(self.order):
            raise Unequal("the record ends before the run")
        return self.order[self.at]

    def _go_on(self) -> None:
        """Whatever needs nobody else: landings that are here, and commits."""
        with self.comparison.noting(again=True):
            while self.at < len(self.order):
                entry = self.order[self.at]
                if self.ends.come_before(entry, self.machine.s):
                    return
                if entry.kind == LAND and self.arrived.get(entry.g):
                    self.machine.landed(entry.g, *self.arrived[entry.g].pop(0))
                elif entry.kind == COMMITS:
                    self.machine.commit()
                else:
                    return
                self._took_effect(entry.kind)

    def _took_effect(self, kind: int) -> None:
        self.offers.after(kind, self.machine.s)
        if ends_an_instant(self.order, self.at):
            self.machine.commit()
        self.at += 1
        self.comparison.look(self.machine.s, self.machine.log)

    def turn(self, kind: int) -> None:
        """The host waits until its completion is the next one."""
        self.machine.port.wait_until(lambda: self._is(kind))

    def _is(self, kind: int) -> bool:
        with self.comparison.noting(again=True):
            entry = self._next()
            if kind == END and self.ends.come_before(entry, self.machine.s):
                return True
            if entry.kind != kind and entry.kind in (VISIT, GROUP, HOST, STEP):
                raise Unequal(f"a {NAMES[entry.kind]} is next in the record, a {NAMES[kind]} in the replay")
            if entry.kind == GROUP:
                self.offers.refuse_another(entry.n)
        return entry.kind == kind

    def done(self, kind: int) -> None:
        """It has taken effect; so does what follows it by itself."""
        with self.comparison.noting(again=True):
            if kind != END:
                self._took_effect(kind)
            elif self.ends.with_an_instant(self._next(), self.machine.s):
                self.machine.commit()
        self._go_on()

    def take(self) -> int:
        """The record's next group, once the core has offered it."""
        ahead = next((entry for entry in self.order[self.at :] if entry.kind not in (LAND, COMMITS)), None)
        if ahead is None or ahead.kind != GROUP:
            with self.comparison.noting(again=True):
                raise Unequal("the replay has work for the GPU where the record has none")
        return ahead.n if ahead.n in self.offers.seen else 0

    def finish(self) -> None:
        """The run has ended: nothing may be missing."""
        with self.comparison.noting(again=True):
            self.comparison.finish(self.machine.s, self.machine.log)


def in_lock_step(machine: Machine) -> tuple[RunRecord | None, Outcome]:
    """Run a machine whose order is a LockStep: its record (None where it had to stop) and what was compared. Raises
    what the machine raises where no decision differed."""
    order, record = machine.order, None
    assert isinstance(order, LockStep)
    try:
        record = machine.run()
        order.finish()
    except RuntimeError:  # a difference, perhaps by way of the link's thread, which then is no more
        if order.outcome.equal:
            raise
    return record, order.outcome
