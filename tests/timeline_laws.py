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

from sim.core.plan import CAUSES, OUTCOMES, PLACES
from sim.machines.record import RunRecord

Event = dict[str, Any]
BREAKDOWN = ("dense", "decide", "experts", "stall", "cpu_wait", "head")
HOST = PLACES.index("host")
SLOWED = "H2D link 0, slowed by the host"
TRACKS = {"steps": (0, 1), "layers": (0, 2), "compute": (0, 7), "H2D link 0": (0, 8), "CPU experts": (1000, 1)}


def ns(microseconds: Decimal) -> int:
    whole = microseconds * 1000
    assert whole == int(whole), f"{microseconds} us is no whole number of ns"
    return int(whole)


def load(path: Path) -> dict[str, Any]:
    return json.loads(gzip.decompress(path.read_bytes()), parse_float=Decimal)


def parse(lines: Any) -> list[Event]:
    return [json.loads(line, parse_float=Decimal) for line in lines]


def brings(copy: Event) -> set[str]:
    """What the executions are called that a slice of the link may serve."""
    args = copy["args"]
    several = range(args["expert"], args["expert"] + args.get("experts", 1))
    return {f"L{args['layer']}.E{e}" + " low" * copy["name"].endswith(" low") for e in several}


class Timeline:
    """slices: track -> [(begin, end, event)] in order of time; arrows: [(s, f)]; counts: name -> [(ns, args)]."""

    def __init__(self, events: list[Event]) -> None:
        names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
        places = {name: place for place, name in names.items()}
        assert places in (TRACKS, TRACKS | {SLOWED: (0, 9)})
        self.slices: dict[str, list[tuple[int, int, Event]]] = {name: [] for name in (*TRACKS, SLOWED)}
        self.marks: list[tuple[int, Event]] = []
        self.counts: dict[str, list[tuple[int, Event]]] = defaultdict(list)
        ends: dict[str, list[Event]] = {"s": [], "f": []}
        for e in events:
            assert e["ph"] in "XCMsfi", e
            if e["ph"] == "X":
                begin = ns(Decimal(e["ts"]))
                assert e["dur"] >= 0
                self.slices[names[e["pid"], e["tid"]]].append((begin, begin + ns(Decimal(e["dur"])), e))
            elif e["ph"] == "C":
                self.counts[e["name"]].append((ns(Decimal(e["ts"])), e["args"]))
            elif e["ph"] == "i":
                assert e["s"] == "t" and names[e["pid"], e["tid"]] == "H2D link 0"
                self.marks.append((ns(Decimal(e["ts"])), e))
            elif e["ph"] in "sf":
                ends[e["ph"]].append(e | {"track": names[e["pid"], e["tid"]], "at": ns(Decimal(e["ts"]))})
        for found in self.slices.values():
            found.sort(key=lambda slice: slice[:2])
        self.brought: list[int] = []  # the transfers' rows, of each arrow
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
            begun = at[source["track"], source["at"]]
            copies = [s[2] for s in begun if s[2]["args"]["correlation"] == target["id"] and s[1] <= target["at"]]
            runs = [s[2] for s in begun if s[2]["args"].get("experts", 1) > 1 and s[1] <= target["at"]]
            uses = [s[2] for s in at[target["track"], target["at"]] if s[2]["name"].startswith("L")]
            pairs = [(copy, use) for copy in copies or runs for use in uses if use["name"] in brings(copy)]
            chunks = [copy for copy in copies if "chunk" in copy["args"]]  # the last, or others that took no time
            assert pairs and (len(copies) == 1 or runs or len(chunks) == len(copies))
            out.append(pairs[0])
            self.brought.append(target["id"])
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
    check_host(t, record)
    check_slowed(t, record)
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


def rows_of(record: RunRecord, group: str) -> list[dict[str, int]]:
    columns = record.groups[group]
    return [dict(zip(columns, line, strict=True)) for line in zip(*(c.tolist() for c in columns.values()), strict=True)]


def by_rules(record: RunRecord) -> bool:
    return "run" in record.groups["transfers"]


def over_the_link(record: RunRecord) -> list[list[tuple[int, dict[str, int]]]]:
    """(row, line) of what was committed, by transfer over the link, in the order of commits."""
    out: dict[int, list[tuple[int, dict[str, int]]]] = defaultdict(list)
    transfers = [(i, row) for i, row in enumerate(rows_of(record, "transfers")) if row["committed_ns"] >= 0]
    for i, row in sorted(transfers, key=lambda one: one[1]["event_committed"]):
        out[row.get("run", i)].append((i, row))
    return list(out.values())


def kind(row: dict[str, int]) -> str:
    """Of a line of transfers or executions: in which kind of place the expert lies."""
    return ("low" if row["low"] else "slot", "stage", "remote", "host", "deferred")[
        row.get("place", 3 * row.get("cpu", 0))
    ]


def check_link(t: Timeline, record: RunRecord) -> None:
    """Copies are the transfers that started, experts that went together as one; what they last is the time that the
    link was busy. Each says what it is: a copy into a slot, an admission, into a stage, read where it lies."""
    warm = record.warmup_steps
    first = int(record.steps["begin_ns"][warm]) if warm < len(record.steps["begin_ns"]) else 0
    busy: Counter[str] = Counter()
    for begin, end, e in t.slices["H2D link 0"]:
        busy[e["args"]["cause"]] += max(0, end - max(begin, first))
    assert busy.total() == record.counters["link_busy_ns"]
    if by_rules(record):
        assert {cause: busy[cause] for cause in CAUSES} == {c: record.counters[f"busy_{c}_ns"] for c in CAUSES}
    copies: dict[int, list[Event]] = defaultdict(list)
    for *_, e in t.slices["H2D link 0"]:
        copies[e["args"]["correlation"]].append(e)
    started = [rows for rows in over_the_link(record) if rows[0][1]["started_ns"] >= 0]
    assert sorted(copies) == sorted(rows[0][0] for rows in started)
    ran = {row for _, row in uses_of(record)}
    for rows in started:
        own = copies[rows[0][0]]
        for e in own:
            check_copy(e, rows, record, ran)
        check_pieces(own, len(rows) * (record.low_bytes if rows[0][1]["low"] else record.expert_bytes))


def check_pieces(own: list[Event], size: int) -> None:
    """A transfer is one slice, or one for each of its chunks that started; they bring all its bytes where it landed."""
    numbers = [e["args"]["chunk"] for e in own if "chunk" in e["args"]]
    assert len(own) == 1 or numbers == list(range(len(own)))
    brought = sum(e["args"]["bytes"] for e in own)
    assert brought == size or (numbers and brought < size and own[0]["args"]["outcome"] == "unfinished")


def check_copy(e: Event, rows: list[tuple[int, dict[str, int]]], record: RunRecord, ran: set[int]) -> None:
    first, last = rows[0][1], rows[-1][1]
    unwanted = sum(row["landed_ns"] >= 0 and i not in ran for i, row in rows)
    front = {"stage": "stream ", "remote": "remote "}.get(
        kind(first), "admit " * (CAUSES[first["cause"]] == "admission")
    )
    tail = f"..E{last['expert']}" * (len(rows) > 1) + " low" * first["low"]
    tail += " remote" * (kind(first) == "remote") + " unwanted" * (kind(first) == "stage" and unwanted == len(rows))
    assert e["name"] == f"{front}L{first['layer']}.E{first['expert']}{tail}"
    assert e["args"]["outcome"] in ("landed", "unfinished")
    if kind(first) == "stage":
        assert (e["args"]["experts"], e["args"]["unwanted"]) == (len(rows), unwanted)


def uses_of(record: RunRecord) -> list[tuple[dict[str, int], int]]:
    """(execution on the GPU, row of the transfer that brought its expert), -1 where it was there all along."""
    visits = record.groups["visits"]["layer"].tolist()
    moments = [
        (row["event"], (kind(row), row["layer"], row["expert"]), i, None)
        for i, row in enumerate(rows_of(record, "transfers"))
        if row["landed_ns"] >= 0
    ]
    for row in rows_of(record, "executions"):
        if not row["cpu"]:
            moments.append((row["event"], (kind(row), visits[row["visit"]], row["expert"]), -1, row))
    brought: dict[tuple[str, int, int], int] = {}
    out = []
    for _, expert, i, row in sorted(moments, key=lambda moment: moment[0]):
        if row is None:
            brought[expert] = i
        else:
            out.append((row, brought.get(expert, -1)))
    return out


def check_uses(t: Timeline, record: RunRecord) -> None:
    """Executions say what brought their expert; exactly the first one after each landing has an arrow, but of what was
    read while it ran."""
    x, transfers = record.groups["executions"], rows_of(record, "transfers")
    uses = uses_of(record)
    causes = Counter(CAUSES[transfers[i]["cause"]] if i >= 0 else "resident" for _, i in uses)
    found = [e for *_, e in t.slices["compute"] if e["args"]["part"] == "experts" and e["name"] != "overhead"]
    assert Counter(e["args"]["cause"] for e in found) == causes
    assert sorted(t.brought) == sorted({i for row, i in uses if i >= 0 and kind(row) != "remote"})
    assert sum(e["args"]["tokens"] for e in found) == x["tokens"][x["cpu"] == 0].sum()
    assert sum(e["args"]["stand_in_tokens"] for e in found) == x["stand_in_tokens"][x["cpu"] == 0].sum()
    assert sum(e["name"].endswith(" remote") for e in found) == sum(kind(row) == "remote" for row, _ in uses)


def check_host(t: Timeline, record: RunRecord) -> None:
    """The host runs what the record says, deferred experts too; with what it pays for visits it is its counted time."""
    x = [row for row in rows_of(record, "executions") if row["cpu"]]
    experts = [s for s in t.slices["CPU experts"] if s[2]["name"].startswith("L")]
    found = Counter((begin, end, e["args"]["tokens"], e["name"].endswith(" deferred")) for begin, end, e in experts)
    assert found == Counter((row["begin_ns"], row["end_ns"], row["tokens"], kind(row) == "deferred") for row in x)
    visits = [s for s in t.slices["CPU experts"] if s[2]["name"].startswith("cpu visit")]
    assert len(visits) + len(experts) == len(t.slices["CPU experts"])
    if by_rules(record):
        counted = [s for s in t.slices["CPU experts"] if s[2]["args"]["step"] >= record.warmup_steps]
        assert sum(end - begin for begin, end, _ in counted) == record.counters["host_ns"]


def check_slowed(t: Timeline, record: RunRecord) -> None:
    """The link is slowed only while it carries something, beside the host."""
    copies = defaultdict(list)
    for begin, end, e in t.slices["H2D link 0"]:
        copies[e["args"]["correlation"]].append((begin, end))
    for begin, end, e in t.slices[SLOWED]:
        own = copies[e["args"]["correlation"]]
        assert begin < end and any(first <= begin and end <= last for first, last in own)


def check_curves(t: Timeline, record: RunRecord) -> None:
    """The counters' integrals and last values are the record's."""
    transfers, end_ns = rows_of(record, "transfers"), int(record.steps["end_ns"][-1])
    heads = [rows[0][1] for rows in over_the_link(record)]
    until = [row["landed_ns"] if row["landed_ns"] >= 0 else end_ns for row in heads]
    spent = sum(end - row["committed_ns"] for row, end in zip(heads, until, strict=True))
    assert integral(t.counts["transfers in flight"], end_ns) == spent
    queued = [row for row in transfers if row["committed_ns"] < 0 and OUTCOMES[row["outcome"]] == "unfinished"]
    assert last(t, "transfers queued") == len(queued)
    if "admissions queued" in t.counts:
        assert last(t, "admissions queued") == sum(CAUSES[row["cause"]] == "admission" for row in queued)
    if "stages in use" in t.counts and not record.warmup_steps:
        assert max(args["stages in use"] for _, args in t.counts["stages in use"]) <= record.counters["stage_peak"]
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
