"""What the GPU did when no expert ran, for each visit of a full record: decision, stall, overhead, wait for the host.

Between its routed instant and its end a visit is its executions and the gaps before, between and after them. The
record has, for each visit, how long it stalled and how long it waited for the host; that wait comes last (or first,
where the host goes first), and stalls come in front of a group, or of the end of a visit that waits for copies that it
does not run. What else is in the gaps is **overhead**: a group's set-up, and on a device whatever passes between
kernels. On the virtual machines every group has the same overhead but one that is read over the link, which has none:
`experts_ns` less what the experts ran, shared equally; the rest of the gap in front of it is stall, to the nanosecond.

A device's overhead differs from group to group. There a visit's stall is laid into the gaps in front of its groups in
proportion to them: the visit's sums are right, the border between stall and overhead in one gap is an estimate. And
its decisions end after the routed instant, when the work has been given out: that part of `decide_ns` is laid in front
of the first group, in proportion again.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.machines.record import RunRecord
from sim.outcome.summary import STALLS

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
SMALL = 2**31  # ns: products of two such durations fit int64


@dataclass(frozen=True)
class Gaps:
    """In order of time, int64 [n]: begin and end ns, the visit, and how the gap divides: first `decide`, then stall,
    then `overhead` ns. `leads`: it is in front of a group, or all there is of its visit, so that it may hold stall;
    `first`: in front of the first group; `pays`: in front of one that has a set-up.
    """

    begin: Int
    end: Int
    visit: Int
    leads: Bool
    first: Bool
    pays: Bool
    decide: Int
    overhead: Int

    @property
    def stall(self) -> tuple[Int, Int]:
        """(begin, end) of the stall of each gap."""
        return self.begin + self.decide, self.end - self.overhead


class Ran(NamedTuple):
    """The executions on the GPU, in order, [n] each; remote: read over the link while they ran."""

    visit: Int
    group: Int
    begin: Int
    end: Int
    remote: Bool


def gaps(record: RunRecord, ran: Ran, free: tuple[Int, Int], decide_ns: int) -> Gaps:
    """The gaps of every visit. free: from when to when, ns [visits], the GPU did not wait for the host; decide_ns: what
    of the counted decisions comes after the routed instant."""
    visits, (visit, _, begin, end, _) = record.groups["visits"], ran
    found = _between(*free, ran)
    spans = found.end - found.begin
    counted = visits["step"] >= record.warmup_steps
    computed = int((end - begin)[counted[visit]].sum())
    stalled = np.sum([visits[f"stall_{cause}_ns"] for cause in STALLS], axis=0)
    overhead = _equal(found, spans, counted, record.counters["experts_ns"] - computed)
    left = _sums(found.visit, spans - overhead, len(stalled))
    odd = left != stalled
    if odd.any() or decide_ns:
        may = np.where(found.leads, spans, 0)
        room = np.minimum(_sums(found.visit, may, len(stalled)), stalled)
        overhead = np.where(odd[found.visit], spans - _within(found.visit, may, room), overhead)
    decide = _decide(found, overhead, counted[found.visit], decide_ns)
    return replace(found, decide=decide, overhead=overhead - decide)


def _decide(found: Gaps, overhead: Int, counted: Bool, decide_ns: int) -> Int:
    """What of the overhead is decision: that of first gaps as far as it goes, then that of the others."""
    out = np.zeros_like(overhead)
    for mine in (found.first, ~found.first) if decide_ns else ():
        out += shared(np.where(mine, overhead, 0), counted & mine, decide_ns - int(out[counted].sum()))
    return out


def _between(begins: Int, until: Int, ran: Ran) -> Gaps:
    """The gap before each execution and, without the wait for the host, behind the last of each visit."""
    visit, n = ran.visit, len(begins)
    per_visit = np.bincount(visit, minlength=n)
    new = changes(visit)
    before = np.where(new, begins[visit], np.append(0, ran.end)[:-1])
    last = np.cumsum(per_visit) - 1
    behind = np.where(per_visit > 0, np.append(ran.end, 0)[last], begins)
    tail = np.maximum(until, behind)
    every = np.arange(n)
    order = np.argsort(
        np.concatenate([2 * visit, 2 * every + 1]), kind="stable"
    )  # a visit's last gap behind its others
    leads, none = new | changes(ran.group), np.zeros(n, bool)
    columns = (
        (before, behind), (ran.begin, tail), (visit, every),
        (leads, per_visit == 0), (new, none), (leads & ~ran.remote, none),
    )  # fmt: skip
    at, ends, of, leads, first, pays = (np.concatenate(pair)[order] for pair in columns)
    nothing = np.zeros(len(order), np.int64)
    return Gaps(at, np.maximum(ends, at), of, leads, first, pays, nothing, nothing)


def changes(values: Int) -> Bool:
    """Whether each value differs from the one before it; the first does."""
    return np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]])


def _sums(owner: Int, values: Int, n: int) -> Int:
    out = np.zeros(n, np.int64)
    np.add.at(out, owner, values)
    return out


# --- what is known only as a sum -----------------------------------------------------------------------------------


def _equal(found: Gaps, spans: Int, counted: Bool, total: int) -> Int:
    """The same overhead in front of every group, none elsewhere, if the counted ones can add up to `total`; else 0."""
    n = int(found.pays[counted[found.visit]].sum())
    each = total // n if n and total % n == 0 and total >= 0 else 0
    return np.where(found.pays & (spans >= each), each, 0)


def shared(spans: Int, counted: Bool, total: int) -> Int:
    """Parts of `spans` [n] that add up to `total` over those `counted` [n]: equal ones where that is possible to the
    nanosecond, else in proportion to the spans (those not counted get the same share)."""
    n = int(counted.sum())
    if n and total % n == 0 and 0 <= total // n <= spans.min():
        return np.full(len(spans), total // n, np.int64)
    whole = int(spans[counted].sum())
    total = max(0, min(total, whole))
    out = np.zeros(len(spans), np.int64)
    if whole:
        out[counted] = _in_proportion(spans[counted], total)
        rest = spans[~counted]
        out[~counted] = _in_proportion(rest, int(rest.sum()) * total // whole)
    return out


def _in_proportion(spans: Int, total: int) -> Int:
    """Parts of `spans`, none larger than its span, that add up to `total` (at most their sum)."""
    upto = np.cumsum(spans)
    if not len(spans) or not upto[-1]:
        return np.zeros(len(spans), np.int64)
    whole = int(upto[-1])
    parts = [at * total // whole for at in upto.tolist()]  # Python's integers: ns * ns does not fit 64 bits
    upto[:] = parts
    return np.diff(upto, prepend=0)


def _within(owner: Int, spans: Int, totals: Int) -> Int:
    """The same for each owner's own spans; owner [n] rising, totals [owners]."""
    whole = _sums(owner, spans, len(totals))
    if whole.max(initial=0) >= SMALL:
        parts = [_in_proportion(spans[owner == one], int(totals[one])) for one in np.unique(owner)]
        return np.concatenate([np.zeros(0, np.int64), *parts])
    upto = np.cumsum(spans)
    start = upto - spans
    base = start[np.flatnonzero(changes(owner))][np.cumsum(changes(owner)) - 1] if len(owner) else start
    total, every = totals[owner], np.maximum(whole[owner], 1)
    return (upto - base) * total // every - (start - base) * total // every
