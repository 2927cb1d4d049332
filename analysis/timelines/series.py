"""A full record over time: what filled the slots and what the link carried, in bins, however long the run.

Not sampled: each column is the mean over its bin of a step function, taken as the difference of the function's
integral at the bin's two edges, so that bins add up to the record's own totals.
"""

import numpy as np
import numpy.typing as npt

from analysis.timelines.asked import NOTHING, Asked
from analysis.timelines.copies import STAGED, begun_again, copy_of, first_uses, heads, ids, kinds, latest
from sim.core.plan import ANSWERS, CAUSES, OUTCOMES
from sim.machines.record import RunRecord, left_ns

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

BINS = 400
LANDED, UNFINISHED = OUTCOMES.index("landed"), OUTCOMES.index("unfinished")
DEMAND, ADMISSION = CAUSES.index("demand"), CAUSES.index("admission")


def edges(record: RunRecord, bins: int = BINS) -> Float:
    """Edges of equal bins, float64 [bins + 1] in ns, from the begin of the first counted step to the end."""
    begin, end = record.steps["begin_ns"][record.warmup_steps], record.steps["end_ns"][-1]
    return np.linspace(float(begin), float(max(end, begin + 1)), bins + 1)


def link_use(record: RunRecord, at: Float) -> dict[str, Float]:
    """Share of each bin in which the link moves data, by cause: float64 [bins] each.

    With `at` from `edges`, shares times bin widths add up to the summary's `link_busy_ns`.
    """
    t = record.groups["transfers"]
    moved = heads(t) & (t["started_ns"] >= 0) & ((t["outcome"] == LANDED) | (t["outcome"] == UNFINISHED))
    stop = np.where(t["outcome"] == LANDED, t["landed_ns"], left_ns(record))
    out = {}
    for code, cause in enumerate(CAUSES):
        mine = moved & (t["cause"] == code)
        out[cause] = np.clip(_mean(t["started_ns"][mine], at) - _mean(stop[mine], at), 0.0, 1.0)
    return out


def _mean(times: Int, at: Float) -> Float:
    """Mean over each bin of how many of `times` have come: float64 [bins]."""
    when = np.sort(times).astype(np.float64)
    moment = np.append(0.0, np.cumsum(when))
    came = np.searchsorted(when, at, side="right")
    integral = at * came - moment[came]
    mean: Float = np.diff(integral) / np.diff(at)
    return mean


def occupancy(record: RunRecord, n_experts: int, first: int, at: Float, asked: Asked = NOTHING) -> dict[str, Float]:
    """Slots in use by what is in them, mean over each bin: float64 [bins] each.

    first: slots that placement filled before time 0, and does at each reset. An expert is resident from its landing to
    the commit of the transfer that takes its slot; a prefetched one is used from its first execution on the GPU.
    Low-precision copies, which have slots of their own, are counted with them.
    """
    t, end = record.groups["transfers"], int(record.steps["end_ns"][-1])
    in_slot = kinds(t) < STAGED
    landed, low = (t["outcome"] == LANDED) & in_slot, t["low"] == 1
    on_link = (t["committed_ns"] >= 0) & in_slot
    begun = begun_again(record, asked)
    gone, first_gone, first_back = _evictions(record, n_experts, end, begun)
    used, copy = gone.copy(), copy_of(record)
    first_used = first_uses(copy)
    begins = record.groups["executions"]["begin_ns"][first_used]
    used[copy[first_used]] = np.minimum(begins, gone[copy[first_used]])
    fetched = landed & (t["cause"] == DEMAND) & ~low
    admitted = landed & (t["cause"] == ADMISSION)
    prefetched = landed & (t["cause"] != DEMAND) & ~admitted & ~low
    arrives = np.where(landed, t["landed_ns"], np.where(t["outcome"] == UNFINISHED, left_ns(record), end))
    out = {
        "first residents": np.full(len(at) - 1, float(first)) - _mean(first_gone, at) + _mean(first_back, at),
        "fetched on demand": _between(t["landed_ns"], gone, fetched, at),
        "prefetched, used": _between(used, gone, prefetched, at),
        "prefetched, not used yet": _between(t["landed_ns"], used, prefetched, at),
        "admitted behind the CPU": _between(t["landed_ns"], gone, admitted, at),
        "low-precision copies": _between(t["landed_ns"], gone, landed & low, at),
        "on its way": _between(t["committed_ns"], arrives, on_link, at),
    }
    return {name: np.maximum(values, 0.0) for name, values in out.items()}


def _between(begin: Int, end: Int, mine: Bool, at: Float) -> Float:
    return _mean(begin[mine], at) - _mean(end[mine], at)


def _evictions(record: RunRecord, n_experts: int, end: int, begun: Int) -> tuple[Int, Int, Int]:
    """(when each transfer's expert left its slot again, int64 [transfers], at the latest at the next reset or the run's
    end; when first residents left theirs; when these came back, at a reset). begun: steps that begin with a reset."""
    t, brings, steps = record.groups["transfers"], ids(record, n_experts), record.steps
    landed = np.flatnonzero(t["outcome"] == LANDED)
    takes = np.flatnonzero((t["victim"] >= 0) & (t["committed_ns"] >= 0))
    undone = latest(brings[landed], t["event"][landed], t["victim"][takes], t["event_committed"][takes])
    resets, until = steps["event"][begun - 1], np.append(steps["end_ns"][begun - 1], end)
    before = np.searchsorted(resets, t["event_committed"][takes])  # resets before each eviction,
    since = np.searchsorted(resets, t["event"][landed])  # and before each landing
    own = (undone >= 0) & (since[undone] == before)
    gone = np.full(len(brings), end)
    gone[landed] = until[since]
    gone[landed[undone[own]]] = t["committed_ns"][takes][own]
    back = until[before[~own]]
    return gone, t["committed_ns"][takes][~own], back[before[~own] < len(resets)]


def answers_by_layer(record: RunRecord) -> dict[str, Int]:
    """What the miss policy answered in counted steps: int64 [L] (token, slot) entries for each answer."""
    visits, answers = record.groups["visits"], record.groups["answers"]
    counted = visits["step"][answers["visit"]] >= record.warmup_steps
    layer = visits["layer"][answers["visit"]][counted]
    n, code = len(record.layer["hits"]), answers["answer"][counted]
    return {name: np.bincount(layer[code == i], minlength=n) for i, name in enumerate(ANSWERS)}


def decode_step_ms(record: RunRecord) -> Float:
    """How long each counted decode step took: float64 [decode steps] in ms."""
    counted = np.arange(len(record.steps["prefill"])) >= record.warmup_steps
    mine = counted & (record.steps["prefill"] == 0)
    spent: Float = (record.steps["end_ns"] - record.steps["begin_ns"])[mine] / 1e6
    return spent
