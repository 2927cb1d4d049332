"""One step of a run, piece by piece: what the GPU, the link and the host did, from its tracks.

The pieces of the GPU tile the step: each begins where the one before it ends, and by their parts they add up to the
step's share of the run's breakdown. Copies are those that moved data in the step, whole, wherever they began or ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.showing.palette import TIME
from analysis.timelines.tracks import RESIDENT, Slices, Tracks, window
from sim.machines.record import RunRecord
from sim.outcome.summary import STALLS

Int = npt.NDArray[np.int64]

PARTS = tuple(TIME)  # of the GPU's time, stalls by cause
EXPERTS = PARTS.index("experts")
WAITS = (*STALLS, "cpu_wait")
ON_HOST = ("expert", "visit", "decide")  # what the host does
NONE = -1
GPU = {"part": 0, "layer": NONE, "expert": NONE, "tokens": 0, "cause": RESIDENT, "wanted": NONE, "low": 0}
GPU |= {"n": 1, "for_expert": NONE, "for_landed": NONE}
HOST = {"what": 0, "layer": NONE, "expert": NONE, "tokens": 0, "n": 1}


@dataclass(frozen=True)
class Step:
    """Times int64 ns. gpu {part: of PARTS, layer: L behind the last MoE layer, -1: of no layer, expert: -1 where it is
    none, tokens, cause: of CAUSES, of the copy that brought the expert, or RESIDENT, wanted: HIT, LATE or MISS, low, n:
    pieces that it stands for; of a stall for_expert: that of its layer whose copy it waits for, and for_landed: when
    that landed, -1 where the record does not tell}; link: Tracks.copies and `pieces`, how many it stands for; host
    {what: of ON_HOST, layer, expert, tokens, n}; layers: Tracks.layers. merged: what pieces stand for, in words.
    """

    number: int
    begin: int
    end: int
    gpu: Slices
    link: Slices
    host: Slices
    layers: Slices
    merged: str = ""

    @property
    def pieces(self) -> int:
        """How many there are to be drawn."""
        return sum(map(len, (self.gpu, self.link, self.host, self.layers)))

    def parts(self) -> dict[str, int]:
        """ns of each of PARTS: together the step's."""
        ns = np.bincount(self.gpu.of["part"], self.gpu.end - self.gpu.begin, len(PARTS)).astype(np.int64)
        return dict(zip(PARTS, ns.tolist(), strict=True))


def one_step(every: Tracks, record: RunRecord, number: int) -> Step:
    """Step `number` (from 0) of the run whose tracks are `every`."""
    shown = window(every, record, number, number + 1)
    begin, end = (int(record.steps[name][number]) for name in ("begin_ns", "end_ns"))
    link = replace(shown.copies, of=shown.copies.of | {"pieces": np.ones(len(shown.copies), np.int64)})
    return Step(number, begin, end, _gpu(shown, record), link, _host(shown), shown.layers)


def _gpu(shown: Tracks, record: RunRecord) -> Slices:
    found = {"draft": shown.draft, "dense": shown.dense, "decide": shown.decide, "head": shown.head}
    parts = [_as(each, GPU, part=PARTS.index(name)) for name, each in found.items()]
    parts += [_as(shown.cpu_wait, GPU, part=PARTS.index("cpu_wait"))]
    parts += [_as(each, GPU, part=EXPERTS) for each in (shown.overhead, shown.experts)]
    causes = np.array([PARTS.index(cause) for cause in STALLS])[shown.stall.of["cause"]]
    stall = Slices(shown.stall.begin, shown.stall.end, {name: shown.stall.of[name] for name in ("step", "layer")})
    return _in_order([*parts, _as(stall, GPU, part=causes, **_awaited(shown, record))])


def _host(shown: Tracks) -> Slices:
    parts = {"expert": shown.host, "visit": shown.host_visits, "decide": shown.decide}
    return _in_order([_as(each, HOST, what=ON_HOST.index(name)) for name, each in parts.items()])


def _as(found: Slices, columns: dict[str, int], **given: Any) -> Slices:
    """Slices of exactly `columns`: as given, or as the slices have them, or the default."""
    n = len(found)
    of = {name: np.broadcast_to(given.get(name, found.of.get(name, usual)), n) for name, usual in columns.items()}
    return Slices(found.begin, found.end, of)


def _in_order(parts: Sequence[Slices]) -> Slices:
    """All of them in order of time, without those that take none."""
    begin, end = (np.concatenate([getattr(each, name) for each in parts]) for name in ("begin", "end"))
    order = np.lexsort((end, begin))
    order = order[end[order] > begin[order]]
    of = {name: np.concatenate([each.of[name] for each in parts])[order] for name in parts[0].of}
    return Slices(begin[order], end[order], of)


def _awaited(shown: Tracks, record: RunRecord) -> dict[str, Int]:
    """Which copy each stall waits for: one of its layer that landed when it ended; where none did (a read that begins
    then, a device's clock), of the group that runs next the one that landed last."""
    stall, x, t = shown.stall, shown.experts, record.groups["transfers"]
    out = {name: np.full(len(stall), NONE) for name in ("for_expert", "for_landed")}
    group = np.cumsum(np.append(True, _changes(x, "visit", "group"))[: len(x)])
    after = np.searchsorted(x.begin, stall.end, "left").tolist()
    near = np.flatnonzero(np.isin(t["landed_ns"], stall.end))
    for i, (begin, end, layer) in enumerate(zip(stall.begin, stall.end, stall.of["layer"], strict=True)):
        ready = _next_group(x, group, after[i], layer)
        rows = near[(t["landed_ns"][near] == end) & (t["layer"][near] == layer)]
        first = rows[np.isin(rows, ready)]
        rows = next((found for found in (first, rows, ready[t["landed_ns"][ready] > begin]) if len(found)), rows)
        if len(rows):
            last = rows[np.argmax(t["landed_ns"][rows])]
            out["for_expert"][i], out["for_landed"][i] = t["expert"][last], t["landed_ns"][last]
    return out


def _next_group(x: Slices, group: Int, first: int, layer: int) -> Int:
    """Rows of the transfers that brought the experts of the group that begins at `first`, in that layer."""
    if first >= len(x) or x.of["layer"][first] != layer:
        return np.zeros(0, np.int64)
    copies = x.of["copy"][first : np.searchsorted(group, group[first], "right")]
    found: Int = copies[copies >= 0]
    return found


def _changes(part: Slices, *names: str) -> npt.NDArray[np.bool_]:
    """Whether each but the first differs from the one before it in one of these columns."""
    found: npt.NDArray[np.bool_] = np.logical_or.reduce([part.of[name][1:] != part.of[name][:-1] for name in names])
    return found
