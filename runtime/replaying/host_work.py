"""Experts that the CPU computes beside the GPU: given at the routed instant, waited for at the end of a layer.

Those that a visit defers (plan.OnMiss.defer) run behind its others, into the next visit; the end of that visit's layer
waits for them, and what they computed is added there. So their times are known later than their rows of the record.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from runtime.device.port import Declared, Event
from runtime.replaying.work import Job

if TYPE_CHECKING:
    from runtime.replaying.machine import Machine


class OnHost(NamedTuple):
    """What one visit gave the CPU: events in front of everything and around each expert, in the core's order; row: of
    the first among the record's executions, -1 as long as it has none."""

    begin: Event
    experts: list[tuple[Event, Event]]
    routed_ns: int
    row: int = -1


class HostWork:
    """Of one run. visit: what the visit being served gave; left: what the last one deferred is among it."""

    def __init__(self, machine: "Machine") -> None:
        self.machine = machine
        on = machine.plan.on_miss
        self.visit_ns = 0 if on is None else on.cpu_visit_ns
        self.visit: OnHost | None = None
        self.left: OnHost | None = None

    @property
    def n_later(self) -> int:
        """Experts that the visit being served defers."""
        rules = self.machine.rules
        return 0 if rules is None else int(rules.visit.n_later)

    def planned_ns(self, busy: int) -> list[int]:
        """How long each expert lasts by the plan; busy: the row of Costs.cpu_expert_ns."""
        s, ns = self.machine.s, self.machine.costs.cpu_expert_ns[busy]
        return [int(ns[s.expert[g].host]) for g in s.on_host[: s.visit.n_host]]

    def give(self, jobs: Sequence[Job], planned_ns: Sequence[int]) -> None:
        """The CPU's part of a visit, in order."""
        if not jobs:
            self.visit = None
            return
        host, experts, begin = self.machine.port.host, [], None
        if self.visit_ns:
            begin = host.record()
            host.launch(_nothing, Declared(self.visit_ns))
        for job, ns in zip(jobs, planned_ns, strict=True):
            before = host.record()
            access = self.machine.store.host_access(job.expert)
            host.launch(lambda job=job: self.machine.work.on_host(job), Declared(ns, reads=[access]))  # type: ignore[misc]
            experts.append((before, host.record()))
        self.visit = OnHost(begin or experts[0][0], experts, self.machine.routed_ns)

    def awaited(self) -> Event | None:
        """What the layer waits for: the last of the visit's own, else of those that the last one deferred."""
        if self.visit is not None and len(self.visit.experts) > self.n_later:
            return self.visit.experts[-1 - self.n_later][1]
        return None if self.left is None else self.left.experts[-1][1]

    def ended(self, row: int) -> None:
        """The layer has ended, and the visit's rows of the record begin at `row`: times of what has run."""
        if self.left is not None:
            self._note(self.left, len(self.left.experts))
        self.left = None
        if self.visit is not None:
            visit = self.visit._replace(row=row)
            for each in self.machine.log.executions[row : row + len(visit.experts)]:
                each.group = -1
            self._note(visit, len(visit.experts) - self.n_later)
            self.left = visit if self.n_later else None

    def _note(self, of: OnHost, n: int) -> None:
        """When the first n experts ran."""
        origin, log, rules = self.machine.origin, self.machine.log, self.machine.rules
        for i, (begin, end) in enumerate(of.experts[:n]):
            row = log.executions[of.row + i]
            row.begin_ns, row.end_ns = max(begin.time_ns() - origin, of.routed_ns), end.time_ns() - origin
        if rules is not None and n == len(of.experts):
            begin_ns = max(of.begin.time_ns() - origin, of.routed_ns)
            rules.host_ns[0] += of.experts[-1][1].time_ns() - origin - begin_ns


def _nothing() -> None:
    """What a visit costs the host before its first expert: on a device that time passes by itself."""
