"""What a timeline counts beside its slices, from a full record: slots and stages used, transfers queued and in flight,
wanted experts so far, and how busy the link was in each step."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analysis.timelines.asked import Asked
from analysis.timelines.copies import STAGED, begun_again, copy_of, heads, kinds
from analysis.timelines.host import by_rules
from analysis.timelines.instants import group_ends, when
from analysis.timelines.tracks import Tracks
from sim.core.plan import CAUSES, OUTCOMES
from sim.machines.record import RunRecord, left_ns

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
WITHDRAWN, REJECTED, UNFINISHED = (OUTCOMES.index(name) for name in ("withdrawn", "rejected", "unfinished"))
ADMISSION, AHEAD = CAUSES.index("admission"), CAUSES.index("stream")


class Counter(NamedTuple):
    """at int64 [n] ns, rising; values: name of a series -> [n], what it is from then on."""

    name: str
    at: Int
    values: dict[str, npt.NDArray[np.generic]]


def counters(record: RunRecord, tracks: Tracks, first_slots: int, asked: Asked) -> list[Counter]:
    """The counters of a run. first_slots: slots in use before time 0, which the record does not say. Low-precision
    copies have slots of their own, empty at first."""
    t = record.groups["transfers"]
    on_link, landed, one = t["committed_ns"] >= 0, t["landed_ns"] >= 0, heads(t)
    new_slot = on_link & (t["victim"] < 0) & (kinds(t) < STAGED)
    left = left_ns(record)
    cut = (t["outcome"] == UNFINISHED) & (left < record.steps["end_ns"][-1])  # by a reset
    gone = (t["outcome"] == WITHDRAWN) | (t["outcome"] == REJECTED) | (cut & ~on_link)
    full, low = (_new_slots(record, new_slot & (t["low"] == which), begun_again(record, asked)) for which in (0, 1))
    over = [(t["landed_ns"][landed & one], -1), (left[cut & on_link & one], -1)]
    return [
        _running("slots used", full, first_slots),
        *([_running("slots of low-precision copies used", low)] if record.low_bytes else []),
        _running("transfers in flight", [(t["committed_ns"][on_link & one], 1), *over]),
        _queue(record, "transfers queued", np.ones(len(left), bool), on_link, gone),
        *(_by_rules(record, asked, on_link, gone, cut) if by_rules(record) else []),
        _wanted(record),
        _utilisation(record, tracks),
    ]


def _new_slots(record: RunRecord, taken: Bool, begun: Int) -> list[tuple[Int, int]]:
    """Slots taken by the transfers `taken`, and given back at each reset (begun: steps that begin with one)."""
    t, steps = record.groups["transfers"], record.steps
    before = np.searchsorted(steps["event"][begun - 1], t["event_committed"][taken])
    back = steps["end_ns"][begun - 1][before[before < len(begun)]]
    return [(t["committed_ns"][taken], 1), (back, -1)]


def _queue(record: RunRecord, name: str, mine: Bool, on_link: Bool, gone: Bool) -> Counter:
    """How many of the transfers `mine` have joined a queue and not left it, by the link or otherwise."""
    t = record.groups["transfers"]
    left = when(record, t["event"][gone & mine])
    return _running(name, [(t["queued_ns"][mine], 1), (t["committed_ns"][on_link & mine], -1), (left, -1)])


def _by_rules(record: RunRecord, asked: Asked, on_link: Bool, gone: Bool, cut: Bool) -> list[Counter]:
    """Stages, and queued admissions (one that a demand took over is a demand from the begin: the record does not say
    what it was), where there are any."""
    t, out = record.groups["transfers"], []
    staged, admitted = on_link & (kinds(t) == STAGED), t["cause"] == ADMISSION
    if staged.any():
        landed, begun = np.flatnonzero(staged & (t["landed_ns"] >= 0)), begun_again(record, asked)
        resets = np.append(record.steps["end_ns"][begun - 1], np.iinfo(np.int64).max)
        before = np.searchsorted(record.steps["event"][begun - 1], t["event"][landed])
        freed = np.minimum(_freed(record, landed, asked), resets[before])
        changes = [(t["committed_ns"][staged], 1), (freed, -1), (left_ns(record)[staged & cut], -1)]
        out.append(_running("stages in use", changes))
    return out + ([_queue(record, "admissions queued", admitted, on_link, gone)] if admitted.any() else [])


def _freed(record: RunRecord, landed: Int, asked: Asked) -> Int:
    """When each of the copies in stages left it: at the end of its group, and one that nobody ran at the end of the
    visit of its layer that it landed in or that was prepared for; else (it was left over) when it landed."""
    visits, t = record.groups["visits"], record.groups["transfers"]
    layers, n = len(record.layer["hits"]), len(visits["step"])
    layer, event, out = t["layer"][landed], t["event"][landed], t["landed_ns"][landed]
    decided = np.searchsorted(visits["event"], event)  # visits decided before it landed
    last = layer + layers * ((decided - 1 - layer) // layers)  # the last of them that is of its layer
    here = (decided > layer) & (visits["end_ns"][np.minimum(last, n - 1)] >= out)
    coming = np.where(decided > layer, last + layers, layer)
    prepared = _prepared(record, asked)[np.minimum(coming, n - 1)]
    ahead = ~here & prepared & (coming < n) & (coming - asked.ahead < decided)
    out = np.where(here, visits["end_ns"][np.minimum(last, n - 1)], out)
    out = np.where(ahead, visits["end_ns"][np.minimum(coming, n - 1)], out)
    copy = copy_of(record)
    ran = np.full(len(t["event"]), -1)
    ran[copy[copy >= 0]] = group_ends(record)[copy >= 0]
    return np.where(ran[landed] >= 0, ran[landed], out)


def _prepared(record: RunRecord, asked: Asked) -> Bool:
    """bool [visits]: those that layers ahead were streamed for, as far as it shows. Whether a visit streams depends on
    its layer and on how many rows it has: something was queued for one that is alike."""
    visits, t = record.groups["visits"], record.groups["transfers"]
    rows = record.steps["rows"][visits["step"]]
    alike = visits["layer"] * (1 + rows.max(initial=0)) + rows
    if not asked.ahead:
        return np.zeros(len(alike), bool)
    mine = (kinds(t) == STAGED) & ((t["cause"] == AHEAD) | (t["promoted"] == 1))
    target = np.where(t["visit"] >= 0, t["visit"] + asked.ahead, t["layer"])[mine]
    return np.isin(alike, alike[target])


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
