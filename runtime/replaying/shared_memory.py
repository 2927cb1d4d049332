"""How long transfers last by the plan while the host computes, and slows the link (plan.OnMiss.link_share).

A device shares its memory by itself; a port whose time is simulated is told. The arithmetic is the virtual machines'
(sim.machines.clock), on a clock of what is planned.
"""

from collections.abc import Iterator, Sequence

from sim.core.plan import OnMiss
from sim.core.state import State
from sim.machines.clock import new_clock, slow_the_link, slowed


class SharedMemory:
    """The transfers under way, as planned; ns since time 0."""

    def __init__(self, on: OnMiss, s: State) -> None:
        self.s, self.visit_ns, self.share, self.last = s, on.cpu_visit_ns, on.link_share, -1
        self.clock = new_clock(len(s.flight), 0)

    def committed(self, place: int, ns: int, gap_ns: int, follows: int, now_ns: int) -> int:
        """What is committed at a place of State.flight needs ns with the link to itself: how long it lasts from its
        start on."""
        clock = self.clock
        begin = int(clock.lands[self.last]) if follows else now_ns
        clock.full_ns[place], clock.starts[place], self.last = ns, begin + gap_ns, place
        clock.lands[place] = begin + slowed(gap_ns + ns, clock.host.until_ns - begin, *self.share)
        return self._lasts(place)

    def _lasts(self, place: int) -> int:
        return int(self.clock.lands[place] - self.clock.starts[place])

    def host_begins(self, now_ns: int, experts_ns: Sequence[int], n_later: int) -> Iterator[tuple[int, int]]:
        """A visit gives the host experts of such durations, the last `n_later` of them deferred. Of each transfer under
        way (by its place in State.flight) how long it now lasts."""
        host, flight = self.clock.host, self.s.link
        last = max(now_ns, host.deferred_ns) + self.visit_ns + sum(experts_ns)
        self.clock.time.now_ns, host.deferred_ns = now_ns, last if n_later else 0
        slow_the_link(self.s, self.clock, last, *self.share)
        for i in range(flight.n_flight):
            place = (flight.flight_head + i) % len(self.s.flight)
            yield place, self._lasts(place)
