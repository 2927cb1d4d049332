"""The reference machine: the same run as simpy processes, to read and to extend with new resources.

Two actors share one environment: the GPU, a process that walks through steps and layers, and the link, which lands and
commits by callbacks. The order of one instant is the priority of its events: landings, ends of GPU work, commits. simpy
processes an event of a smaller priority first, also when it was made at this very instant, so nothing is committed
while anything else is due.
"""

from collections.abc import Callable, Generator
from typing import Any

import simpy

from sim.core.hooks import explained, new_hooks
from sim.core.inputs import inputs
from sim.core.link import count_stall, next_commit, waiting, why_stalled
from sim.core.plan import Plan
from sim.core.residency import land
from sim.core.visit import decide, finish_group, finish_host, take_group
from sim.machines.clock import begin_run, close, forget
from sim.machines.record import RunRecord

LANDING, GPU, COMMIT = range(3)  # one instant, one order
Process = Generator[simpy.Event, Any, Any]


class Machine:
    """One run: the core's state, the plan's durations, and simpy's clock."""

    def __init__(self, plan: Plan, full: bool) -> None:
        self.env: Any = simpy.Environment()  # Any: to simpy time may be a float, here every delay is a whole ns
        self.plan, self.costs = plan, plan.costs
        low = plan.low or plan.costs
        self.expert_ns = (plan.costs.expert_ns, low.expert_ns)  # by whether it is a low-precision copy
        self.transfer_ns = (plan.costs.transfer_ns, low.transfer_ns)
        self.s, self.log, self.clock = begin_run(plan, full)
        self.route, self.miss, self.ahead = inputs(plan, self.s, full)
        self.hooks = None if self.miss is None else new_hooks(plan)
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
        if not self.commit_due and waiting(self.s):
            self.commit_due = True
            self.at(0, COMMIT, self.commit)

    def commit(self, _: Any) -> None:
        """Commit as much as the depth and the slots allow."""
        self.commit_due = False
        s, now = self.s, self.env.now
        while waiting(s):
            behind = self.last_committed() if s.link.n_flight else None
            g = next_commit(s, self.log, self.hooks)
            if g < 0:
                return
            starts = now + self.costs.commit_gap_ns if behind is None else int(self.clock.lands[behind])
            lands = starts + int(self.transfer_ns[self.is_low(g)][0 if behind is None else 1])
            self.clock.starts[g], self.clock.lands[g] = starts, lands
            if self.log is not None:
                row = self.log.transfers[s.expert[g].transfer]
                row.committed_ns, row.started_ns = now, starts
            self.at(lands - now, LANDING, self.landed)

    def is_low(self, g: int) -> bool:
        """Whether a global id is that of a low-precision copy."""
        return bool(g >= self.s.run.n_full)

    def last_committed(self) -> int:
        place = (self.s.link.flight_head + self.s.link.n_flight - 1) % len(self.s.expert)
        return int(self.s.flight[place])

    def landed(self, _: Any) -> None:
        """The oldest committed transfer has landed."""
        if self.wake is not None:
            self.count_stall()
        g = land(self.s, self.log)
        self.clock.time.link_busy_ns += self.env.now - self.clock.starts[g]
        if self.log is not None:
            self.log.transfers[self.s.expert[g].transfer].landed_ns = self.env.now
        if self.wake is not None and not self.wake.triggered:
            self.at(0, GPU, event=self.wake)
        self.kick()

    def count_stall(self) -> None:
        """What the GPU has waited for since it last looked: the state of the link has not changed since then."""
        ns, s = self.env.now - self.stalled_since, self.s
        self.stalled_since = self.env.now
        count_stall(s, self.log, self.layer, why_stalled(s), ns)
        self.clock.time.stall_ns += ns

    # --- the GPU ---------------------------------------------------------------------------------------------------

    def busy(self, ns: int, what: str) -> Process:
        """The GPU (or the host it waits for) is busy for ns."""
        self.clock.spend(what, ns)
        if ns > 0:
            yield self.at(ns, GPU)

    def run(self) -> Process:
        """Every step, every layer."""
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
            forget(self.s, self.clock)
        self.clock.begin[step] = self.env.now
        self.dense, self.head = self.durations(step)

    def layer_of(self, step: int, layer: int) -> Process:
        """The dense part in front of an MoE layer, the decision, the visit."""
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
        close(self.s, self.log, self.clock)

    def visit(self, step: int, layer: int) -> Process:
        """One visit, from its routed instant to the end of its layer."""
        s, log, routed = self.s, self.log, self.env.now
        self.layer, first = layer, s.rows.transfers
        decide(s, log, self.route, self.miss, self.ahead, step, layer, self.hooks)
        busy = int(s.link.n_flight > 0)
        if log is not None:
            log.visits[s.rows.visits - 1].routed_ns = routed
            for row in log.transfers[first : s.rows.transfers]:
                row.queued_ns = routed
        self.kick()
        group = 0
        while s.visit.n_run < s.visit.n_work:
            n = yield from self.next_group()
            yield from self.run_group(n, group)
            group += 1
        if s.visit.n_host > 0:
            yield from self.wait_for_host(routed, busy)
        if log is not None:
            log.visits[s.rows.visits - 1].end_ns = self.env.now

    def next_group(self) -> Process:
        """Wait until the GPU can take a group; returns how many experts are in it."""
        while (n := take_group(self.s, self.plan.group)) == 0:
            self.wake, self.stalled_since = simpy.Event(self.env), self.env.now
            yield self.wake
            self.wake = None
        return n

    def run_group(self, n: int, group: int) -> Process:
        """The next n ready experts, one after another behind one group set-up."""
        s, run = self.s, self.s.visit.n_run
        group_of = s.ready[run : run + n].tolist()
        begin = self.env.now + self.costs.group_ns
        ns = sum(int(self.expert_ns[self.is_low(g)][s.expert[g].work]) for g in group_of)
        yield from self.busy(self.costs.group_ns + ns, "experts_ns")
        finish_group(s, self.log, n)
        self.time_executions(self.expert_ns, begin, n, group)
        self.kick()

    def wait_for_host(self, routed: int, busy: int) -> Process:
        """The layer ends when the experts computed on the CPU are done too."""
        s, n = self.s, int(self.s.visit.n_host)
        expert_ns = self.costs.cpu_expert_ns[busy]
        ns = sum(int(expert_ns[s.expert[g].host]) for g in s.on_host[:n])
        wait = max(0, routed + ns - self.env.now)
        yield from self.busy(wait, "cpu_wait_ns")
        finish_host(s, self.log)
        self.time_executions((expert_ns, expert_ns), routed, n, -1)
        if self.log is not None:
            self.log.visits[s.rows.visits - 1].cpu_wait_ns = wait

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
    return RunRecord.of(plan, machine.s, machine.log, machine.clock)
