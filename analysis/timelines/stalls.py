"""Why the GPU stalled, interval by interval.

The record has, for each visit, how long it stalled by cause; the timeline needs to know when. The cause is constant
between two landings and follows from what the record says of the transfers (ARCHITECTURE.md, reading 4):

- `demand` while a serial visit waits for its copies into stages;
- else `late` while an expert that was in flight at the routed instant, and that this visit executes, has not landed;
- else `demand` where all that is left to run is read over the link;
- else `held` while a demand is not committed though the link has room: fewer transfers are in flight than its depth;
- else `demand`.

The depth is not in the record. Either it was reached, and then it is the most that was ever in flight, or it was
not, and then the link always had room: the reading whose sums are those of the visits is taken. Where neither is (a
device, which measures its stalls), a visit's own figures are laid out in the order late, held, demand.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analysis.timelines.asked import Asked
from analysis.timelines.copies import READ, STAGED, kinds, pieces
from sim.core.plan import CAUSES
from sim.machines.record import Group, RunRecord
from sim.outcome.summary import STALLS

Int = npt.NDArray[np.int64]
DEMAND, LATE, HELD = range(3)  # of STALLS
STREAM = CAUSES.index("stream")


class Stalls(NamedTuple):
    """Intervals in which the GPU stalled, in order of time: begin, end ns, the visit's number, which of the gaps
    between two groups it lies in, the cause; int64 [n]."""

    begin: Int
    end: Int
    visit: Int
    gap: Int
    cause: Int


def by_cause(record: RunRecord, begin: Int, end: Int, visit: Int, asked: Asked) -> Stalls:
    """The gaps `begin` to `end` ns in which the GPU stalled, [n] each, cut where the cause changes; per visit and cause
    they add up to the record's figures."""
    visits, transfers, sent = record.groups["visits"], record.groups["transfers"], pieces(record)
    said = np.stack([visits[f"stall_{cause}_ns"] for cause in STALLS], axis=1)
    cut = _cut_at_landings(begin, end, visit, sent)
    late = cut.end <= _last_late_landing(record)[cut.visit]
    waits = (_last_demand_commit(visits, transfers)[cut.visit] > cut.begin) & ~_reads_alone(record, cut)
    serial = cut.end <= _last_owed_landing(visits, transfers, asked)[cut.visit]
    in_flight, most = _in_flight(sent, cut.begin)
    best = cut
    fewest = len(said) + 1
    for room in (in_flight < most, np.ones(len(in_flight), bool)):
        cause = np.where(serial, DEMAND, np.where(late, LATE, np.where(waits & room, HELD, DEMAND)))
        wrong = (_sums(cut, cause, len(said)) != said).any(axis=1)
        if wrong.sum() < fewest:
            best, fewest, odd = cut._replace(cause=cause), int(wrong.sum()), wrong
    return _joined(best if not fewest else _laid_out(best, said, odd))


def _cut_at_landings(begin: Int, end: Int, visit: Int, sent: Group) -> Stalls:
    """Each gap in pieces between which something landed, the cause yet open; empty gaps are left out."""
    keep = end > begin
    begin, end, visit = begin[keep], end[keep], visit[keep]
    landed = np.unique(sent["landed_ns"][sent["landed_ns"] >= 0])
    first, last = np.searchsorted(landed, begin, "right"), np.searchsorted(landed, end, "left")
    pieces = 1 + np.maximum(0, last - first)
    owner = np.repeat(np.arange(len(begin)), pieces)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    cuts = np.append(landed, 0)
    begins = np.where(place == 0, begin[owner], cuts[np.minimum(first[owner] + place - 1, len(landed))])
    ends = np.where(place == pieces[owner] - 1, end[owner], cuts[np.minimum(first[owner] + place, len(landed))])
    return Stalls(begins, ends, visit[owner], owner, np.zeros(len(owner), np.int64))


def _last_late_landing(record: RunRecord) -> Int:
    """[visits]: when the last expert landed that was late (in flight when routed) and that the visit ran; else -1."""
    visits, x, t = (record.groups[name] for name in ("visits", "executions", "transfers"))
    out = np.full(len(visits["event"]), -1, np.int64)
    if not len(t["event"]):
        return out
    # The visit in which each transfer landed; it was late there if the commit is older than the visit.
    rows = np.flatnonzero((t["landed_ns"] >= 0) & (t["low"] == 0))
    v = np.searchsorted(visits["event"], t["event"][rows]) - 1
    rows, v = rows[v >= 0], v[v >= 0]
    late = (t["event_committed"][rows] < visits["event"][v]) & (t["layer"][rows] == visits["layer"][v])
    rows, v = rows[late], v[late]
    width = 1 + max(int(x["expert"].max(initial=0)), int(t["expert"].max(initial=0)))
    on_gpu = (x["cpu"] == 0) & (x["low"] == 0)
    kind, ran_as, n = kinds(t), kinds(x), len(out)
    ran = np.isin(
        (kind[rows] * n + v) * width + t["expert"][rows], ((ran_as * n + x["visit"]) * width + x["expert"])[on_gpu]
    )
    np.maximum.at(out, v[ran], t["landed_ns"][rows[ran]])
    return out


def _last_demand_commit(visits: Group, transfers: Group) -> Int:
    """[visits]: when the last of the demands was committed that had been queued by then, -1 without one. A demand is
    committed in its visit, unless it is a copy that nobody wants."""
    out = np.full(len(visits["event"]), -1, np.int64)
    committed = (transfers["cause"] == 0) & (transfers["committed_ns"] >= 0)
    rows = np.flatnonzero(committed & (kinds(transfers) != READ))
    v = np.searchsorted(visits["event"], transfers["event_committed"][rows]) - 1
    stays = kinds(transfers)[rows] == STAGED  # it may have been left over by an earlier visit
    joined = np.where(stays & (transfers["promoted"][rows] == 0), transfers["visit"][rows], v)
    np.maximum.at(out, joined, transfers["committed_ns"][rows])
    return np.maximum.accumulate(out)


def _last_owed_landing(visits: Group, transfers: Group, asked: Asked) -> Int:
    """[visits]: when the last copy into a stage landed that a serial visit waits for, -1 without one: of its layer, and
    committed by the routed instant or queued for this visit or an earlier one."""
    out = np.full(len(visits["event"]), -1, np.int64)
    if not asked.serial:
        return out
    rows = np.flatnonzero((kinds(transfers) == STAGED) & (transfers["landed_ns"] >= 0))
    v = np.searchsorted(visits["event"], transfers["event"][rows]) - 1
    rows, v = rows[v >= 0], v[v >= 0]
    queued = transfers["visit"][rows]
    target = np.where(queued >= 0, queued + asked.ahead, transfers["layer"][rows])
    ahead = (transfers["cause"][rows] == STREAM) & (target > v)
    ahead &= transfers["event_committed"][rows] > visits["event"][v]
    mine = (transfers["layer"][rows] == visits["layer"][v]) & ~ahead
    np.maximum.at(out, v[mine], transfers["landed_ns"][rows[mine]])
    return out


def _reads_alone(record: RunRecord, cut: Stalls) -> npt.NDArray[np.bool_]:
    """Whether what the visit has left to run at each piece is read over the link where it lies, all of it."""
    x = record.groups["executions"]
    on_gpu, reads = x["cpu"] == 0, kinds(x) == READ
    last = np.full((2, len(record.groups["visits"]["event"])), -1, np.int64)
    for which, mine in enumerate((on_gpu & ~reads, on_gpu & reads)):
        np.maximum.at(last[which], x["visit"][mine], x["begin_ns"][mine])
    others, remote = last[:, cut.visit]
    return np.asarray((remote >= cut.end) & (others < cut.end), np.bool_)


def _in_flight(sent: Group, at: Int) -> tuple[Int, int]:
    """(transfers, or chunks, committed and not landed just after each instant `at`, the most there ever were)."""
    landed = sent["landed_ns"] >= 0
    begins, ends = np.sort(sent["committed_ns"]), np.sort(sent["landed_ns"][landed])
    now = np.searchsorted(begins, at, "right") - np.searchsorted(ends, at, "right")
    events = np.concatenate([sent["event_committed"], sent["event"][landed]])
    steps = np.concatenate([np.ones(len(begins), np.int64), np.full(len(ends), -1)])
    return now, int(np.cumsum(steps[np.argsort(events)]).max(initial=0))


def _sums(stalls: Stalls, cause: Int, visits: int) -> Int:
    """int64 [visits, causes]: ns."""
    out = np.zeros((visits, len(STALLS)), np.int64)
    np.add.at(out, (stalls.visit, cause), stalls.end - stalls.begin)
    return out


def _joined(stalls: Stalls) -> Stalls:
    """Pieces that touch, of one gap and cause, as one."""
    if not len(stalls.begin):
        return stalls
    same = (stalls.gap[1:] == stalls.gap[:-1]) & (stalls.cause[1:] == stalls.cause[:-1])
    first = np.flatnonzero(np.concatenate([[True], ~same]))
    last = np.append(first[1:], len(stalls.begin)) - 1
    return Stalls(stalls.begin[first], stalls.end[last], *(column[first] for column in stalls[2:]))


def _laid_out(stalls: Stalls, said: Int, odd: npt.NDArray[np.bool_]) -> Stalls:
    """The visits marked `odd` by their own figures: late, then held, then demand, as far as their stalls reach."""
    rows = [row for row in zip(*(column.tolist() for column in stalls), strict=True) if not odd[row[2]]]
    pieces = [row for row in zip(*(column.tolist() for column in stalls), strict=True) if odd[row[2]]]
    left: dict[int, list[list[int]]] = {}
    for begin, end, visit, gap, _ in pieces:
        order = (LATE, HELD, DEMAND)
        todo = left.setdefault(visit, [[cause, int(said[visit, cause])] for cause in order])
        while begin < end:
            while len(todo) > 1 and todo[0][1] == 0:
                todo.pop(0)
            cause, ns = todo[0]
            upto = end if len(todo) == 1 else min(end, begin + ns)
            rows.append((begin, upto, visit, gap, cause))
            todo[0][1] -= upto - begin
            begin = upto
    return Stalls(*np.array(sorted(rows), np.int64).reshape(-1, 5).T)
