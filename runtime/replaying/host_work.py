"""Experts that the CPU computes beside the GPU: given at the routed instant, waited for at the end of a layer.

Those that a visit defers (plan.OnMiss.defer) run behind its others, into the next visit; the end of that visit's layer
waits for them, and what they computed is added there. So their times are known later than their rows of the record.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from runtime.device.port import Declared, Event, Port
from runtime.experts.store import ExpertStore
from runtime.replaying.work import Job, Work
from sim.core.log import Log
from sim.core.plan import PLAIN, Plan
from sim.core.rules import Rules
from sim.core.state import State


class OnHost(NamedTuple):
    """What one visit gave the CPU: events in front of everything and around each expert, in the core's order; row: of
    the first among the record's executions, -1 as long as it has none."""

    begin: Event
    experts: list[tuple[Event, Event]]
    routed_ns: int
    row: int = -1


class HostWork:
    """Of one run. visit: what the visit being served gave; left: what the last one gave, where it deferred some."""

    def __init__(self, plan: Plan, port: Port, store: ExpertStore[Any], work: Work) -> None:
        self.cpu_expert_ns, self.visit_ns = plan.costs.cpu_expert_ns, (plan.on_miss or PLAIN).cpu_visit_ns
        self.port, self.store, self.work = port, store, work
        self.visit: OnHost | None = None
        self.left: OnHost | None = None
        self.n_later = 0  # experts that the visit being served defers

    def routed(self, s: State, rules: Rules | None, busy: int) -> list[int]:
        """A visit is decided: how long each of its experts lasts by the plan. busy: the row of Costs.cpu_expert_ns."""
        self.n_later = 0 if rules is None else int(rules.visit.n_later)
        return [int(self.cpu_expert_ns[busy, s.expert[g].host]) for g in s.on_host[: s.visit.n_host]]

    def give(self, jobs: Sequence[Job], planned_ns: Sequence[int], routed_ns: int) -> None:
        """The CPU's part of the visit, in order."""
        if not jobs:
            self.visit = None
            return
        host, experts, begin = self.port.host, [], None
        if self.visit_ns:
            begin = host.record()
            host.launch(_nothing, Declared(self.visit_ns))
        for job, ns in zip(jobs, planned_ns, strict=True):
            before, declared = host.record(), Declared(ns, reads=[self.store.host_access(job.expert)])
            host.launch(lambda job=job: self.work.on_host(job), declared)  # type: ignore[misc]
            experts.append((before, host.record()))
        self.visit = OnHost(begin or experts[0][0], experts, routed_ns)

    def awaited(self) -> Event | None:
        """What the layer waits for: the last of the visit's own, else of those that the last one deferred."""
        if self.visit is not None and len(self.visit.experts) > self.n_later:
            return self.visit.experts[-1 - self.n_later][1]
        return None if self.left is None else self.left.experts[-1][1]

    def ended(self, log: Log, rules: Rules | None, row: int, origin: int) -> None:
        """The layer has ended, and the visit's rows of the log begin at `row`: times of what has run. origin: time 0 on
        the port's clock."""
        if self.left is not None:
            _note(self.left, len(self.left.experts), log, rules, origin)
        self.left = None
        if self.visit is not None:
            visit = self.visit._replace(row=row)
            for each in log.executions[row : row + len(visit.experts)]:
                each.group = -1
            _note(visit, len(visit.experts) - self.n_later, log, rules, origin)
            self.left = visit if self.n_later else None


def _note(of: OnHost, n: int, log: Log, rules: Rules | None, origin: int) -> None:
    """When the first n experts ran; and of all, for how long the host was at work."""
    for i, (begin, end) in enumerate(of.experts[:n]):
        row = log.executions[of.row + i]
        row.begin_ns, row.end_ns = max(begin.time_ns() - origin, of.routed_ns), end.time_ns() - origin
    if rules is not None and n == len(of.experts):
        rules.host_ns[0] += of.experts[-1][1].time_ns() - origin - max(of.begin.time_ns() - origin, of.routed_ns)


def _nothing() -> None:
    """What a visit costs the host before its first expert: on a device that time passes by itself."""
