"""What every timeline must hold, checked on the file's own JSON: a reader that knows nothing of how it was made.

Times are read as decimals, so that a microsecond with three places is a whole number of ns.
"""

import gzip
import json
from collections import Counter, defaultdict
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

from sim.machines.record import RunRecord

Event = dict[str, Any]
BREAKDOWN = ("dense", "decide", "experts", "stall", "cpu_wait", "head")
TRACKS = {"steps": (0, 1), "layers": (0, 2), "compute": (0, 7), "H2D link 0": (0, 8), "CPU experts": (1000, 1)}


def ns(microseconds: Decimal) -> int:
    whole = microseconds * 1000
    assert whole == int(whole), f"{microseconds} us is no whole number of ns"
    return int(whole)


def load(path: Path) -> dict[str, Any]:
    return json.loads(gzip.decompress(path.read_bytes()), parse_float=Decimal)


def parse(lines: Any) -> list[Event]:
    return [json.loads(line, parse_float=Decimal) for line in lines]


class Timeline:
    """slices: track -> [(begin, end, event)] in order of time; arrows: [(s, f)]; counts: name -> [(ns, args)]."""

    def __init__(self, events: list[Event]) -> None:
        names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
        assert {name: place for place, name in names.items()} == TRACKS
        self.slices: dict[str, list[tuple[int, int, Event]]] = {name: [] for name in TRACKS}
        self.counts: dict[str, list[tuple[int, Event]]] = defaultdict(list)
        ends: dict[str, list[Event]] = {"s": [], "f": []}
        for e in events:
            assert e["ph"] in "XCMsf", e
            if e["ph"] == "X":
                begin = ns(Decimal(e["ts"]))
                assert e["dur"] >= 0
                self.slices[names[e["pid"], e["tid"]]].append((begin, begin + ns(Decimal(e["dur"])), e))
            elif e["ph"] == "C":
                self.counts[e["name"]].append((ns(Decimal(e["ts"])), e["args"]))
            elif e["ph"] in "sf":
                ends[e["ph"]].append(e | {"track": names[e["pid"], e["tid"]], "at": ns(Decimal(e["ts"]))})
        for found in self.slices.values():
            found.sort(key=lambda slice: slice[:2])
        self.check_overlap()
        self.arrows = self.pairs(ends)
        self.check_counts()

    def check_overlap(self) -> None:
        """Slices of one track never overlap."""
        for track, found in self.slices.items():
            for (_, end, one), (begin, _, other) in pairwise(found):
                assert end <= begin, f"{track}: {one} overlaps {other}"

    def pairs(self, ends: dict[str, list[Event]]) -> list[tuple[Event, Event]]:
        """Every arrow leaves a copy and arrives, not earlier than it landed, at an execution of the same expert."""
        starts = {e["id"]: e for e in ends["s"]}
        assert len(starts) == len(ends["s"]) == len(ends["f"])
        at: dict[tuple[str, int], list[tuple[int, int, Event]]] = defaultdict(list)
        for track in ("H2D link 0", "compute"):
            for slice in self.slices[track]:
                at[track, slice[0]].append(slice)
        out = []
        for target in ends["f"]:
            source = starts.pop(target["id"])
            assert target["bp"] == "e" and source["track"] == "H2D link 0" and target["track"] == "compute"
            copies = [s for s in at[source["track"], source["at"]] if s[2]["args"]["correlation"] == target["id"]]
            assert len(copies) == 1
            name = copies[0][2]["name"]
            uses = [s for s in at[target["track"], target["at"]] if s[2]["name"] == name]
            assert uses and copies[0][1] <= target["at"]
            out.append((copies[0][2], uses[0][2]))
        assert not starts
        return out

    def check_counts(self) -> None:
        for name, values in self.counts.items():
            assert all(a[0] < b[0] and a[1] != b[1] for a, b in pairwise(values)), name
            assert all(value >= 0 for _, args in values for value in args.values()), name

    def by_step(self, track: str) -> dict[int, list[tuple[int, int, Event]]]:
        out: dict[int, list[tuple[int, int, Event]]] = defaultdict(list)
        for slice in self.slices[track]:
            out[slice[2]["args"]["step"]].append(slice)
        return out


def check_whole(events: list[Event], record: RunRecord) -> Timeline:
    """Every law of a timeline of all steps of a run on a virtual machine."""
    t = Timeline(events)
    check_sums(t, record)
    check_tiling(t, record)
    check_link(t, record)
    check_uses(t, record)
    check_curves(t, record)
    return t


def check_sums(t: Timeline, record: RunRecord) -> None:
    """By part, by cause, by visit and by layer the slices add up to what the summary says."""
    parts: Counter[str] = Counter()
    stalls: Counter[tuple[int, int, str]] = Counter()
    waits: Counter[tuple[int, int]] = Counter()
    for begin, end, e in t.slices["compute"]:
        args = e["args"]
        if args["step"] >= record.warmup_steps:
            parts[args["part"]] += end - begin
        if args["part"] == "stall":
            stalls[args["step"], args["layer"], args["cause"]] += end - begin
        elif args["part"] == "cpu_wait":
            waits[args["step"], args["layer"]] += end - begin
    assert {part: parts[part] for part in BREAKDOWN} == {part: record.counters[f"{part}_ns"] for part in BREAKDOWN}
    visits = record.groups["visits"]
    for i, (step, layer) in enumerate(zip(visits["step"].tolist(), visits["layer"].tolist(), strict=True)):
        for cause in ("demand", "late", "held"):
            assert stalls[step, layer, cause] == visits[f"stall_{cause}_ns"][i]
        assert waits[step, layer] == visits["cpu_wait_ns"][i]


def check_tiling(t: Timeline, record: RunRecord) -> None:
    """The compute track leaves no gap, nor do steps; every layer lies in its step."""
    end_ns = int(record.steps["end_ns"][-1])
    for track in ("steps", "compute"):
        found = [s for s in t.slices[track] if s[1] > s[0]]
        assert all(a[1] == b[0] for a, b in pairwise(found)), track
        assert (found[0][0], found[-1][1]) == (0, end_ns) if found else end_ns == 0
    assert len(t.slices["layers"]) == len(record.groups["visits"]["step"])
    for step, layers in t.by_step("layers").items():
        assert record.steps["begin_ns"][step] == layers[0][0] and layers[-1][1] <= record.steps["end_ns"][step]


def check_link(t: Timeline, record: RunRecord) -> None:
    """Copies are the transfers that started; what they last is the time that the link was busy."""
    warm = record.warmup_steps
    first = int(record.steps["begin_ns"][warm]) if warm < len(record.steps["begin_ns"]) else 0
    busy = sum(max(0, end - max(begin, first)) for begin, end, _ in t.slices["H2D link 0"])
    assert busy == record.counters["link_busy_ns"]
    transfers = record.groups["transfers"]
    copies = {e["args"]["correlation"]: e for *_, e in t.slices["H2D link 0"]}
    assert sorted(copies) == [i for i, at in enumerate(transfers["started_ns"]) if at >= 0]
    for i, e in copies.items():
        low = " low" * int(transfers["low"][i])
        assert e["name"] == f"L{transfers['layer'][i]}.E{transfers['expert'][i]}{low}"
        assert e["args"]["bytes"] == (record.low_bytes if low else record.expert_bytes)
        assert e["args"]["outcome"] in ("landed", "unfinished")


def check_uses(t: Timeline, record: RunRecord) -> None:
    """Executions say what brought their expert; exactly the first one after each landing has an arrow."""
    x, transfers, visits = (record.groups[name] for name in ("executions", "transfers", "visits"))
    moments = [
        (int(transfers["event"][i]), tuple(int(transfers[name][i]) for name in ("low", "layer", "expert")), "landed", i)
        for i in range(len(transfers["event"]))
        if transfers["landed_ns"][i] >= 0
    ]
    for i in range(len(x["event"])):
        if not x["cpu"][i]:
            expert = (int(x["low"][i]), int(visits["layer"][x["visit"][i]]), int(x["expert"][i]))
            moments.append((int(x["event"][i]), expert, "ran", i))
    brought: dict[tuple[int, ...], int] = {}
    fresh: dict[tuple[int, ...], int] = {}
    causes, uses = Counter(), []
    for _, expert, what, i in sorted(moments):
        if what == "landed":
            brought[expert] = fresh[expert] = i
        else:
            causes[
                ("demand", "prefetch", "background", "resident")[
                    transfers["cause"][brought[expert]] if expert in brought else 3
                ]
            ] += 1
            if expert in fresh:
                uses.append(fresh.pop(expert))
    found = [e for *_, e in t.slices["compute"] if e["args"]["part"] == "experts" and e["name"] != "overhead"]
    assert Counter(e["args"]["cause"] for e in found) == causes
    assert sorted(copy["args"]["correlation"] for copy, _ in t.arrows) == sorted(uses)
    assert sum(e["args"]["tokens"] for e in found) == x["tokens"][x["cpu"] == 0].sum()
    assert sum(e["args"]["stand_in_tokens"] for e in found) == x["stand_in_tokens"][x["cpu"] == 0].sum()
    host = [(begin, end, e["args"]["tokens"]) for begin, end, e in t.slices["CPU experts"]]
    rows = [x[name][x["cpu"] == 1].tolist() for name in ("begin_ns", "end_ns", "tokens")]
    assert sorted(host) == sorted(zip(*rows, strict=True))


def check_curves(t: Timeline, record: RunRecord) -> None:
    """The counters' integrals and last values are the record's."""
    transfers, end_ns = record.groups["transfers"], int(record.steps["end_ns"][-1])
    on_link = [i for i, at in enumerate(transfers["committed_ns"]) if at >= 0]
    until = [int(transfers["landed_ns"][i]) if transfers["landed_ns"][i] >= 0 else end_ns for i in on_link]
    spent = sum(end - int(transfers["committed_ns"][i]) for i, end in zip(on_link, until, strict=True))
    assert integral(t.counts["transfers in flight"], end_ns) == spent
    queued = sum(1 for i, at in enumerate(transfers["committed_ns"]) if at < 0 and transfers["outcome"][i] == 3)
    assert last(t, "transfers queued") == queued
    wanted = t.counts["wanted experts"][-1][1]
    assert wanted == {name: record.layer[name].sum() for name in ("hits", "late", "misses")}
    if not record.warmup_steps and end_ns:
        busy = integral(t.counts["link utilisation %"], end_ns) / 100
        assert abs(busy - record.counters["link_busy_ns"]) <= 5e-6 * end_ns + 1


def last(t: Timeline, name: str) -> Any:
    return t.counts[name][-1][1][name]


def integral(values: list[tuple[int, Event]], end: int) -> Any:
    """Of a counter with one series, over time."""
    ends = [at for at, _ in values[1:]] + [end]
    return sum(next(iter(args.values())) * (to - at) for (at, args), to in zip(values, ends, strict=True))
