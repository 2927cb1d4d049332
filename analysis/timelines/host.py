"""What the host did for each visit of a full record, how long the GPU waited for it, and when it slowed the link.

A visit's host work begins at its routed instant, or when the deferred work of the visit before it ends, if that is
later: a while for the visit itself (`cpu_visit_ns`), then its experts, those that its layer waits for first.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core.plan import PLACES
from sim.machines.record import Group, RunRecord

Int = npt.NDArray[np.int64]
DEFERRED = PLACES.index("deferred")
NONE = -1


class HostWork(NamedTuple):
    """Of each visit, int64 [visits] ns, NONE where there is none: when its host work began, when its first expert did,
    when those ended that its layer waits for, and when all did."""

    begin: Int
    first: Int
    at_once: Int
    last: Int


class Spans(NamedTuple):
    """begin, end: int64 [n] ns, in order of time, none touching another."""

    begin: Int
    end: Int


def by_rules(record: RunRecord) -> bool:
    """Whether the run was one with plan.on_miss: then its rows say where experts went and ran."""
    return "place" in record.groups["transfers"]


def host_work(record: RunRecord) -> HostWork:
    """Of every visit."""
    visits, x = record.groups["visits"], record.groups["executions"]
    n, on_host = len(visits["step"]), x["cpu"] == 1
    later = on_host & (x["place"] == DEFERRED) if by_rules(record) else np.zeros(len(on_host), bool)
    first = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(first, x["visit"][on_host], x["begin_ns"][on_host])
    works = first < np.iinfo(np.int64).max
    at_once, deferred = _latest(x, on_host & ~later, n), _latest(x, later, n)
    before = np.append(NONE, deferred[:-1])
    begin = np.where(works, np.maximum(visits["routed_ns"], before), NONE)
    return HostWork(begin, np.where(works, first, NONE), at_once, np.maximum(at_once, deferred))


def _latest(x: Group, mine: npt.NDArray[np.bool_], visits: int) -> Int:
    out = np.full(visits, NONE)
    np.maximum.at(out, x["visit"][mine], x["end_ns"][mine])
    return out


def waits(record: RunRecord, work: HostWork) -> tuple[Int, Int]:
    """(ns that the GPU waited for the host before anything of the visit ran on it, ns at the end of the layer), int64
    [visits] each: together the record's `cpu_wait_ns`. It waits before only where the host goes first (`beside=no`):
    then it waits for all that the layer waits for, and no expert of the visit runs earlier."""
    visits, x = record.groups["visits"], record.groups["executions"]
    waited, on_gpu = visits["cpu_wait_ns"], x["cpu"] == 0
    if not by_rules(record):
        return np.zeros_like(waited), waited
    whole = work.at_once - visits["routed_ns"]
    begins = np.full(len(waited), np.iinfo(np.int64).max)
    np.minimum.at(begins, x["visit"][on_gpu], x["begin_ns"][on_gpu])
    first = (work.at_once >= 0) & (waited >= whole) & (begins >= work.at_once)
    before = np.where(first, whole, 0)
    return before, waited - before


def slow_spans(record: RunRecord, work: HostWork) -> Spans:
    """When the host computed, as far as the link is concerned: from a routed instant to the end of the visit's last
    host work, deferred work too."""
    mine = work.last >= 0
    begin = record.groups["visits"]["routed_ns"][mine]
    end = np.maximum(begin, np.maximum.accumulate(work.last[mine])) if mine.any() else begin
    if not len(begin):
        return Spans(begin, end)
    new = np.append(True, begin[1:] > end[:-1])
    return Spans(begin[new], end[np.append(np.flatnonzero(new)[1:] - 1, len(end) - 1)])


def beside(spans: Spans, begin: Int, end: Int) -> tuple[Int, Int, Int]:
    """(which interval, begin, end) of each piece of the intervals [n] that lies in a span, in order."""
    lo = np.searchsorted(spans.end, begin, "right")
    hi = np.maximum(lo, np.searchsorted(spans.begin, end, "left"))
    owner = np.repeat(np.arange(len(begin)), hi - lo)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(hi - lo) - (hi - lo), hi - lo) + lo[owner]
    return owner, np.maximum(begin[owner], spans.begin[place]), np.minimum(end[owner], spans.end[place])
