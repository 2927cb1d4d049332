"""What a timeline counts beside its slices, from a full record alone: slots used, transfers queued and in flight,
wanted experts so far, and how busy the link was in each step."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analysis.timelines.tracks import Tracks
from sim.core.plan import OUTCOMES
from sim.machines.record import RunRecord

Int = npt.NDArray[np.int64]
WITHDRAWN, REJECTED = OUTCOMES.index("withdrawn"), OUTCOMES.index("rejected")


class Counter(NamedTuple):
    """at int64 [n] ns, rising; values: name of a series -> [n], what it is from then on."""

    name: str
    at: Int
    values: dict[str, npt.NDArray[np.generic]]


def counters(record: RunRecord, tracks: Tracks, first_slots: int) -> list[Counter]:
    """The counters of a run. first_slots: slots in use before time 0, which the record does not say. Low-precision
    copies have slots of their own, empty at first."""
    t = record.groups["transfers"]
    on_link, landed = t["committed_ns"] >= 0, t["landed_ns"] >= 0
    new_slot = on_link & (t["victim"] < 0)
    gone = (t["outcome"] == WITHDRAWN) | (t["outcome"] == REJECTED)
    at = t["committed_ns"]
    full, low = ([(at[new_slot & (t["low"] == which)], 1)] for which in (0, 1))
    return [
        _running("slots used", full, first_slots),
        *([_running("slots of low-precision copies used", low)] if record.low_bytes else []),
        _running("transfers in flight", [(at[on_link], 1), (t["landed_ns"][landed], -1)]),
        _running("transfers queued", [(t["queued_ns"], 1), (at[on_link], -1), (_when(record, t["event"][gone]), -1)]),
        _wanted(record),
        _utilisation(record, tracks),
    ]


def _running(name: str, changes: list[tuple[Int, int]], start: int = 0) -> Counter:
    """The running sum of changes, from time 0 on."""
    at = np.concatenate([np.zeros(1, np.int64), *(times for times, _ in changes)])
    by = np.concatenate([[start], *(np.full(len(times), change) for times, change in changes)])
    order = np.argsort(at, kind="stable")
    return _last_of_each(name, at[order], {name: np.cumsum(by[order])})


def _last_of_each(name: str, at: Int, values: dict[str, npt.NDArray[np.generic]]) -> Counter:
    """One value per instant, the last, and only where a series changes."""
    last = np.append(at[1:] != at[:-1], True)
    at, values = at[last], {series: column[last] for series, column in values.items()}
    new = np.append(True, np.any([column[1:] != column[:-1] for column in values.values()], axis=0))
    return Counter(name, at[new], {series: column[new] for series, column in values.items()})


def _when(record: RunRecord, events: Int) -> Int:
    """ns of events that carry no time of their own: what is withdrawn or rejected goes at the instant of the event
    before it that has one (a decision, a commit, a landing, the end of a group)."""
    groups, steps = record.groups, record.steps
    v, x, t = groups["visits"], groups["executions"], groups["transfers"]
    on_gpu, on_link, landed = x["cpu"] == 0, t["committed_ns"] >= 0, t["landed_ns"] >= 0
    numbers = (v["event"], x["event"][on_gpu], t["event_committed"][on_link], t["event"][landed], steps["event"])
    times = (
        v["routed_ns"],
        _group_ends(record)[on_gpu],
        t["committed_ns"][on_link],
        t["landed_ns"][landed],
        steps["end_ns"],
    )
    number, ns = np.concatenate(numbers), np.concatenate(times)
    order = np.argsort(number)
    return ns[order][np.searchsorted(number[order], events) - 1]


def _group_ends(record: RunRecord) -> Int:
    """For each execution, when its group ended: that is when all of it took effect."""
    x = record.groups["executions"]
    new = np.append(True, (x["visit"][1:] != x["visit"][:-1]) | (x["group"][1:] != x["group"][:-1]))
    if not len(x["visit"]):
        return x["end_ns"]
    first = np.flatnonzero(new)
    return np.repeat(np.maximum.reduceat(x["end_ns"], first), np.diff(np.append(first, len(new))))


def _wanted(record: RunRecord) -> Counter:
    """Hits, late and misses so far, as the summary counts them: from the end of the warm-up on."""
    v = record.groups["visits"]
    counted = v["step"] >= record.warmup_steps
    values = {name: np.cumsum(np.where(counted, v[name], 0)) for name in ("hits", "late", "misses")}
    return _last_of_each("wanted experts", v["routed_ns"], values)


def _utilisation(record: RunRecord, tracks: Tracks) -> Counter:
    """Share of each step in which the link moved data, %."""
    begin, end = record.steps["begin_ns"], record.steps["end_ns"]
    busy = _busy_until(tracks, end) - _busy_until(tracks, begin)
    spent = end - begin
    percent = np.round(100 * busy / np.maximum(spent, 1), 3)
    return _last_of_each("link utilisation %", begin, {"%": percent})


def _busy_until(tracks: Tracks, at: Int) -> Int:
    """ns that the link had moved data by each instant; copies do not overlap."""
    begin, end = tracks.copies.begin, tracks.copies.end
    sums = np.append(0, np.cumsum(end - begin))
    started = np.searchsorted(begin, at, "right")
    under_way = np.maximum(0, np.append(end, 0)[np.maximum(started - 1, 0)] - at)
    return sums[started] - np.where(started > 0, under_way, 0)
