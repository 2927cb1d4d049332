"""When events happened that carry no time of their own: a full record's groups joined by event."""

import numpy as np
import numpy.typing as npt

from sim.machines.record import RunRecord

Int = npt.NDArray[np.int64]


def when(record: RunRecord, events: Int) -> Int:
    """ns of events that carry no time of their own: what is withdrawn or rejected goes at the instant of the event
    before it that has one (a decision, a commit, a landing, the end of a group)."""
    groups, steps = record.groups, record.steps
    v, x, t = groups["visits"], groups["executions"], record.on_link()
    on_gpu, landed = x["cpu"] == 0, t["landed_ns"] >= 0
    numbers = (v["event"], x["event"][on_gpu], t["event_committed"], t["event"][landed], steps["event"])
    times = (
        v["routed_ns"],
        group_ends(record)[on_gpu],
        t["committed_ns"],
        t["landed_ns"][landed],
        steps["end_ns"],
    )
    number, ns = np.concatenate(numbers), np.concatenate(times)
    order = np.argsort(number)
    return ns[order][np.searchsorted(number[order], events) - 1]


def group_ends(record: RunRecord) -> Int:
    """For each execution, when its group ended: that is when all of it took effect."""
    x = record.groups["executions"]
    new = np.append(True, (x["visit"][1:] != x["visit"][:-1]) | (x["group"][1:] != x["group"][:-1]))
    if not len(x["visit"]):
        return x["end_ns"]
    first = np.flatnonzero(new)
    return np.repeat(np.maximum.reduceat(x["end_ns"], first), np.diff(np.append(first, len(new))))
