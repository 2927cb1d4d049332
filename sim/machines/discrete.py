"""The reference machine: the same run as simpy processes, to read and to extend with new resources.

Two actors share one environment: the GPU, a process that walks through steps and layers, and the link, which lands and
commits by callbacks. The order of one instant is the priority of its events: landings, ends of GPU work, commits. simpy
processes an event of a smaller priority first, also when it was made at this very instant, so nothing is committed
while anything else is due.
"""

from collections.abc import Callable, Generator
from typing import Any

import simpy

from sim.core.hooks import explained
from sim.core.inputs import inputs
from sim.core.link import count_stall, land, next_commit, waiting, why_stalled
from sim.core.plan import PLAIN, Plan
from sim.core.remote import next_remote
from sim.core.rules import NOBODY
from sim.core.stages import end_visit
from sim.core.visit import decide, finish_group, finish_host, finish_remote, take_group, visit_lasts
from sim.machines.clock import (
    begin_run,
    busy,
    close,
    forget,
    last_place,
    log_commit,
    log_landing,
    reset,
    slow_the_link,
    slowed,
)
from sim.machines.record import RunRecord

LANDING, GPU, COMMIT = range(3)  # one instant, one order
Process = Generator[simpy.Event, Any, Any]


class Machine:
    """One run: the core's state, the plan's durations, and simpy's clock."""

    def __init__(self, plan: Plan, full: bool) -> None:
        self.env: Any = simpy.Environment()  # Any: to simpy time may be a float, here every delay is a whole ns
        self.plan, self.costs = plan, plan.costs
        self.on_miss = plan.on_miss or PLAIN
        low = plan.low or plan.costs
        self.expert_ns = (plan.costs.expert_ns, low.expert_ns)  # by whether it is a low-precision copy
        self.transfer_ns = (plan.costs.transfer_ns, low.transfer_ns)
        self.s, self.log, self.clock, self.rules = begin_run(plan, full)
        self.route, self.miss, self.ahead, self.hooks = inputs(plan, self.s)
        self.depth = int(self.s.run.depth)
        self.commit_due = False
        self.wake: simpy.Event | None = None  # what a stalled GPU waits for
        self.stalled_since = 0
        self.layer = 0
        self.dense: list[int] = []  # of the step that runs
        self.head = 0

    def at(
        self, ns: int, priority: int, call: Callable[[Any], None] | None = None, event: simpy.Event | None = None
    ) -> simpy.Event:
        """An event `ns` from now (a new one, or one that is waited for), in its place among those of that instant."""
        event = simpy.Event(self.env) if event is None else event
        event._ok, event._value = True, None
        if call is not None:
            event.callbacks.append(call)
        self.env.schedule(event, priority=priority, delay=ns)
        return event

    # --- the link ------------------------------------------------------------------------------------------------

    def kick(self) -> None:
        """Something was queued, landed or released: look at the link when everything else of this instant is done."""
        if not self.commit_due and self.may_commit():
            self.commit_due = True
            self.at(0, COMMIT, self.commit)

    def may_commit(self) -> bool:
        """Something waits for the link; a full link is seen here, because a call of compiled code takes its time."""
        return self.s.link.n_flight < self.depth and bool(waiting(self.s, self.rules))

    def commit(self, _: Any) -> None:
        """Commit as much as the depth and the slots allow."""
        self.commit_due = False
        s, clock, now = self.s, self.clock, self.env.now
        while self.may_commit():
            last = int(last_place(s)) if s.link.n_flight else None
            g = int(next_commit(s, self.log, self.hooks, self.rules))
            if g < 0:
                break
            place = int(last_place(s))
            starts = now + self.costs.commit_gap_ns if last is None else int(clock.lands[last])
            if self.rules is None:
                lands = starts + int(self.transfer_ns[self.is_low(g)][0 if last is None else 1])
                self.at(lands - now, LANDING, self.landed if self.plan.resets is None else self.landing)
            else:
                lands = self.timed(g, place, starts, last)
            clock.starts[place], clock.lands[place] = starts, lands
            if self.log is not None:
                self.note(log_commit, place)
        if self.rules is None or self.wake is None or self.wake.triggered:
            return
        if take_group(s, self.plan.group, self.rules) > 0:
            self.at(0, GPU, event=self.wake)  # what is committed now leaves it nothing to wait for

    def timed(self, g: int, place: int, starts: int, last: int | None) -> int:
        """When what was committed last lands, at that place of State.flight: a chunk, or a transfer that may bring
        several experts, and may share the host's memory; `last`: the place of what was committed before it."""
        assert self.rules is not None
        part = self.rules.part[place]
        ns_of = self.on_miss.run_ns[:, self.rules.visit.run] if g >= self.s.run.stage_base else None
        ns_of = self.on_miss.chunk_ns[:, part.last] if part.number >= 0 else ns_of
        ns = int((self.transfer_ns[self.is_low(g)] if ns_of is None else ns_of)[0 if last is None else 1])
        begin = self.env.now if last is None else starts
        lands = begin + self.slowed(starts + ns - begin, begin)
        self.clock.full_ns[place] = ns
        if last is None:
            self.at(lands - self.env.now, LANDING, self.landing)
        return lands

    def slowed(self, ns: int, begin: int) -> int:
        """How long a transfer takes from `begin` on that needs ns with the link to itself."""
        share = self.on_miss.link_share
        return ns if share == (1, 1) else int(slowed(ns, self.clock.host.until_ns - begin, *share))

    def next_landing(self) -> int:
        """When the oldest committed transfer, or chunk, lands; -1 where none is under way."""
        return int(self.clock.lands[self.s.link.flight_head]) if self.s.link.n_flight else -1

    def landing(self, _: Any) -> None:
        """The oldest transfer lands if it is due; since it was announced a busy host may have put that off, or a reset
        have ended it."""
        if self.next_landing() == self.env.now:
            self.landed()

    def note(self, what: Callable[..., None], place: int) -> None:
        """The time of a commit or a landing, into the record."""
        self.clock.time.now_ns = self.env.now
        what(self.s, self.log, self.clock, self.rules, place)

    def is_low(self, g: int) -> bool:
        """Whether a global id is that of a low-precision copy."""
        return bool(self.s.run.n_full <= g < self.s.run.stage_base)

    def landed(self, _: Any = None) -> None:
        """The oldest committed transfer has landed, and the next one begins."""
        if self.wake is not None:
            self.count_stall()
        head = self.s.link.flight_head
        g = int(land(self.s, self.log, self.rules))
        if self.rules is None:
            self.clock.spend("link_busy_ns", self.env.now - self.clock.starts[head])
        else:
            busy(self.s, self.clock, self.rules, g, self.env.now - self.clock.starts[head])
        if self.log is not None:
            self.note(log_landing, head)
        if self.rules is not None and self.s.link.n_flight:
            self.at(self.next_landing() - self.env.now, LANDING, self.landing)
        if self.wake is not None and not self.wake.triggered:
            self.at(0, GPU, event=self.wake)
        self.kick()

    def count_stall(self) -> None:
        """What the GPU has waited for since it last looked: the state of the link has not changed since then."""
        ns, s = self.env.now - self.stalled_since, self.s
        self.stalled_since = self.env.now
        count_stall(s, self.log, self.layer, why_stalled(s, self.rules), ns)
        self.clock.time.stall_ns += ns

    # --- the GPU ---------------------------------------------------------------------------------------------------

    def busy(self, ns: int, what: str) -> Process:
        """The GPU (or the host it waits for) is busy for ns."""
        self.clock.spend(what, ns)
        if ns > 0:
            yield self.at(ns, GPU)

    def run(self) -> Process:
        """Every step, every layer."""
        self.kick()
        for step in range(len(self.plan.step_prefill)):
            self.begin_step(step)
            for layer in range(self.plan.experts.shape[1]):
                yield from self.layer_of(step, layer)
            yield from self.end_step(step)
        self.end_run()

    def durations(self, step: int) -> tuple[list[int], int]:
        """(the dense parts of a step, its head) in ns."""
        of_step = int(self.costs.cost_class[step])
        return self.costs.dense_ns[of_step].tolist(), int(self.costs.head_ns[of_step])

    def begin_step(self, step: int) -> None:
        if step == self.plan.warmup_steps and step > 0:
            self.clock.time.now_ns = self.env.now
            forget(self.s, self.clock, self.rules)
        if self.plan.resets is not None and self.plan.resets[step]:
            self.reset()
        self.clock.begin[step] = self.env.now
        self.dense, self.head = self.durations(step)

    def reset(self) -> None:
        """A request begins as the first one did; landings that were announced are nobody's (`landing`)."""
        self.clock.time.now_ns = self.env.now
        reset(self.s, self.log, self.clock, self.hooks, self.rules, len(self.plan.step_prefill))
        self.kick()

    def layer_of(self, step: int, layer: int) -> Process:
        """The dense part in front of an MoE layer (before the first one's, what the draft model takes), the decision,
        the visit."""
        if layer == 0 and len(self.costs.draft_ns):
            yield from self.busy(int(self.costs.draft_ns[step]), "draft_ns")
        yield from self.busy(self.dense[layer], "dense_ns")
        yield from self.busy(self.costs.decide_ns, "decide_ns")
        yield from self.visit(step, layer)

    def end_step(self, step: int) -> Process:
        """What follows the last MoE layer, and the end of step."""
        yield from self.busy(self.dense[-1], "dense_ns")
        yield from self.busy(self.head, "head_ns")
        self.clock.end[step] = self.env.now
        if self.log is not None:
            self.clock.event[step] = self.s.run.events
            self.s.run.events += 1

    def end_run(self) -> None:
        self.clock.time.now_ns = self.env.now
        close(self.s, self.log, self.clock, self.rules)

    def visit(self, step: int, layer: int) -> Process:
        """One visit, from its routed instant to the end of its layer."""
        s, log, rules, routed = self.s, self.log, self.rules, self.env.now
        self.layer, first = layer, s.rows.transfers
        decide(s, log, self.route, self.miss, self.ahead, step, layer, self.hooks, rules)
        on_host = rules is not None or s.visit.n_host > 0
        if on_host:
            row = int(s.link.n_flight > 0 or (rules is not None and rules.visit.busy == 1))  # of cpu_expert_ns
            begin, done = self.host_work(row)
        if log is not None:
            log.visits[s.rows.visits - 1].routed_ns = routed
        self.queued(first)
        if rules is not None and not self.on_miss.beside and s.visit.n_host > self.deferred():
            yield from self.wait_for_host(done)
        group = 0
        while s.visit.n_run < s.visit.n_work if rules is None else visit_lasts(s, rules):
            n, there = int(take_group(s, self.plan.group, rules)), NOBODY
            if rules is not None:
                there = int(next_remote(s, log, rules, n))
                self.kick()  # what a waiting remote kept back
            if n > 0:
                yield from self.run_group(n, group)
            elif there >= 0:
                yield from self.run_remote(there, group)
            else:
                yield from self.stall()
            group += n > 0 or there >= 0
        if on_host:
            yield from self.wait_for_host(done)
            finish_host(s, log, rules)
            self.time_executions((self.costs.cpu_expert_ns[row],) * 2, begin, int(s.visit.n_host), -1)
        if rules is not None:
            end_visit(s, rules)
            self.kick()
        if log is not None:
            log.visits[s.rows.visits - 1].end_ns = self.env.now

    def queued(self, first: int) -> None:
        """Transfers from row `first` of the log on were queued now, if any were."""
        if self.log is not None:
            for each in self.log.transfers[first : self.s.rows.transfers]:
                each.queued_ns = self.env.now
        self.kick()

    def stall(self) -> Process:
        """The GPU finds nothing to take and waits for the next landing."""
        self.wake, self.stalled_since = simpy.Event(self.env), self.env.now
        yield self.wake
        self.wake = None

    def run_group(self, n: int, group: int) -> Process:
        """The next n ready experts, one after another behind one group set-up."""
        s, run = self.s, self.s.visit.n_run
        group_of = s.ready[run : run + n].tolist()
        begin = self.env.now + self.costs.group_ns
        ns = sum(int(self.expert_ns[self.is_low(g)][s.expert[g].work]) for g in group_of)
        yield from self.busy(self.costs.group_ns + ns, "experts_ns")
        first = s.rows.transfers
        finish_group(s, self.log, self.route, n, self.rules)
        self.time_executions(self.expert_ns, begin, n, group)
        self.queued(first)

    def wait_for_host(self, until: int) -> Process:
        """The GPU waits until the host is done."""
        wait = max(0, until - self.env.now)
        yield from self.busy(wait, "cpu_wait_ns")
        if self.log is not None:
            self.log.visits[self.s.rows.visits - 1].cpu_wait_ns += wait

    def deferred(self) -> int:
        """Experts of this visit that the host computes when the layer is over."""
        return 0 if self.rules is None else int(self.rules.visit.n_later)

    def host_work(self, row: int) -> tuple[int, int]:
        """(when the host begins this visit's first expert, when it is done with what the layer waits for): first what
        the last visit deferred, then this visit's experts, then those that it defers."""
        s, host, now = self.s, self.clock.host, self.env.now
        before, host.deferred_ns = max(now, host.deferred_ns), 0
        ns = [int(self.costs.cpu_expert_ns[row, s.expert[g].host]) for g in s.on_host[: s.visit.n_host]]
        if not ns:
            return now, before
        begin, at_once = before + self.on_miss.cpu_visit_ns, len(ns) - self.deferred()
        last = begin + sum(ns)
        if self.rules is not None:
            host.deferred_ns = last if at_once < len(ns) else 0
            self.rules.host_ns[0] += last - before
            self.slow_the_link(last)
        return begin, begin + sum(ns[:at_once]) if at_once else before

    def slow_the_link(self, until: int) -> None:
        """The host computes until then: transfers take longer."""
        if self.on_miss.link_share == (1, 1):
            return
        self.clock.time.now_ns, was = self.env.now, self.next_landing()
        slow_the_link(self.s, self.clock, until, *self.on_miss.link_share)
        if self.next_landing() != was:
            self.at(self.next_landing() - self.env.now, LANDING, self.landing)

    def run_remote(self, there: int, group: int) -> Process:
        """The GPU reads an expert over the idle link while it computes it."""
        s, rules, now = self.s, self.rules, self.env.now
        assert rules is not None
        tokens = s.expert[rules.remote[rules.visit.remote_run]].tokens
        ns = max(int(self.costs.expert_ns[tokens]), self.slowed(int(self.costs.transfer_ns[0]), now))
        place = last_place(s)
        self.clock.starts[place], self.clock.lands[place] = now, now + ns
        if self.log is not None:
            self.note(log_commit, place)
        self.at(ns, LANDING, self.landing)
        self.clock.spend("experts_ns", ns)
        rules.remote_ns[0] += ns
        yield self.at(ns, GPU)  # behind the landing of the same instant
        finish_remote(s, self.log, rules, there)
        if self.log is not None:
            row = self.log.executions[s.rows.executions - 1]
            row.begin_ns, row.end_ns, row.group = now, now + ns, group
        self.kick()

    def time_executions(self, expert_ns: Any, begin: int, n: int, group: int) -> None:
        """When each of the last n executions began and ended."""
        if self.log is None:
            return
        last = self.s.rows.executions
        for row in self.log.executions[last - n : last]:
            row.begin_ns, row.group = begin, group
            begin += expert_ns[row.low][row.tokens]
            row.end_ns = begin


def run(plan: Plan, full: bool = False) -> RunRecord:
    """Simulate a plan with simpy; the record equals the compiled machine's, event by event.

    Raises RuntimeError when the GPU waits and nothing is under way.
    """
    machine = Machine(plan, full)
    process = machine.env.process(machine.run())
    with explained(plan, machine.hooks):
        machine.env.run(until=process)
    return RunRecord.of(plan, machine.s, machine.log, machine.clock, machine.rules)
