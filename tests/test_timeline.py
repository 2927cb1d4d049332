"""The timeline: laws of the file on random plans and on long runs, exact times, windows, and what it refuses."""

import gzip
import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import timeline
from analysis.reading.load import load as load_runs
from analysis.timeline import steps_of
from analysis.timelines import stalls
from analysis.timelines.asked import Asked
from analysis.timelines.events import Context, events
from analysis.timelines.text import picture
from analysis.timelines.tracks import tracks, window
from sim import run
from sim.core.link import why_stalled
from sim.core.plan import Plan
from sim.machines import compiled, discrete
from sim.machines.record import RunRecord
from tests.groups import as_groups
from tests.on_miss_plans import plan_in_chunks_of, plan_of, rule
from tests.plans import plan, random_lossy_plan, random_plan
from tests.timeline_laws import SLOWED, Timeline, check_whole, last, load, parse
from traces.errors import UserError

RUN = "--trace mixtral.npz --cache 6 --prefetch gate-lookahead --prefetch-budget 2 --miss buddy --set buddy.tau=0.6"
LONG = [*RUN.split(), "--calibration", "0.3", "--max-steps", "400", "--warmup-steps", "5"]


PARTS = ("dense", "decide", "experts", "stall", "cpu_wait", "head")
LEFT_OVER = (264, 283, 318, 598, 676, 782)  # of plans of `left_over` some in which that changes why the GPU stalled
LOW_SLOTS = "slots of low-precision copies used"


def context(of: Plan) -> Context:
    on = of.on_miss
    asked = Asked() if on is None else Asked(on.serial, on.ahead, on.link_share[0] / on.link_share[1])
    return Context(len(of.residents), of.experts.shape[1], of.n_experts, asked=asked)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 steps with prefetch and buddies, five of them warm-up."""
    folder = tmp_path_factory.mktemp("runs") / "long"
    assert run.main([*LONG, "--record", "full", "--out", str(folder), "--json"]) == 0
    return folder


# --- laws -----------------------------------------------------------------------------------------------------------


def test_a_long_run_with_prefetch_and_buddies_holds_every_law(long_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.json.gz"
    assert timeline.main([str(long_run), "--out", str(out)]) == 0
    read = load_runs([long_run], detail=1)[0]
    record, summary = read.record, read.summary
    assert record is not None
    whole = load(out)
    t = check_whole(whole["traceEvents"], record)
    assert len(t.slices["steps"]) == 400
    counted = [s for s in t.slices["compute"] if s[2]["args"]["step"] >= 5]
    for part, said in summary["breakdown_ns"].items():
        assert sum(end - begin for begin, end, e in counted if e["args"]["part"] == part) == said
    kinds = {e["args"]["as"] for *_, e in counted if e["name"].startswith("L")}
    assert kinds == {"itself", "stand-in", "itself and stand-in"} or kinds == {"itself", "stand-in"}
    assert {e["args"]["cause"] for *_, e in t.slices["H2D link 0"]} == {"demand", "prefetch"}
    assert any("SYNTHETIC" in note for note in whole["otherData"]["notes"])


@pytest.mark.parametrize("chunk", range(6))
def test_random_plans_hold_every_law(chunk: int) -> None:
    for seed in range(chunk * 50, chunk * 50 + 50):
        for made in (random_plan(seed), random_lossy_plan(seed)):
            warm = len(made.step_prefill) // 3 if seed % 4 == 0 else 0
            check(replace(made, warmup_steps=warm))


def check(made: Plan) -> None:
    record = compiled.run(made, full=True)
    t = check_whole(parse(events(record, context(made))), record)
    check_costs(t, made)
    left = as_groups(made, record)["totals"]["residents"]
    copies = last(t, LOW_SLOTS) if made.low else 0
    assert last(t, "slots used") + copies == len(left) + last(t, "transfers in flight")


@pytest.fixture
def nothing_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a virtual machine every stall's cause follows from the record: no visit's are laid out by its sums."""

    def estimated(*_: Any) -> None:
        raise AssertionError("the causes found are not those of the visits")

    monkeypatch.setattr(stalls, "_laid_out", estimated)


@pytest.mark.usefixtures("nothing_estimated")
@pytest.mark.parametrize("machine", [compiled, discrete], ids=["compiled", "simpy"])
@pytest.mark.parametrize("chunk", range(4))
def test_plans_of_what_comes_on_a_miss_hold_every_law(chunk: int, machine: Any) -> None:
    for seed in range(chunk * 75, chunk * 75 + 75):
        made = plan_in_chunks_of(seed) if seed % 3 == 0 else plan_of(seed)
        made = replace(made, warmup_steps=len(made.step_prefill) // 3 if seed % 4 == 0 else 0)
        record = machine.run(made, full=True)
        t = check_whole(parse(events(record, context(made))), record)
        check_costs(t, made)
        check_slowing(t, made, record)


def test_a_slowed_link_is_seen_where_the_spec_does_not_say_it() -> None:
    """Nothing is shown of a run whose link is not slowed, and what is shown is what the spec would have said."""
    seen = 0
    for seed in range(150):
        made = plan_of(seed)
        record, said = compiled.run(made, full=True), context(made)
        found = Timeline(parse(events(record, replace(said, asked=replace(said.asked, link_share=None)))))
        slices = [(begin, end) for begin, end, _ in found.slices[SLOWED]]
        assert {e["args"]["sure"] for *_, e in found.slices[SLOWED]} <= {"seen: copies last longer beside the host"}
        if slices:
            assert slices == [(begin, end) for begin, end, _ in Timeline(parse(events(record, said))).slices[SLOWED]]
            seen += 1
    assert seen >= 5


def check_slowing(t: Timeline, made: Plan, record: RunRecord) -> None:
    """Where nothing else bears on it, a copy lasts its time, less what it lost in the pieces shown as slowed; each
    visit that begins meanwhile may cost a rounding."""
    on, costs = made.on_miss, made.costs
    assert on is not None
    n, d = on.link_share
    if costs.commit_gap_ns or on.defer or made.low:
        return
    pieces = [(begin, end, e["args"]["correlation"]) for begin, end, e in t.slices[SLOWED]]
    assert n < d or not pieces
    routed = record.groups["visits"]["routed_ns"]
    for begin, end, e in t.slices["H2D link 0"]:
        own = (piece for piece in pieces if piece[2] == e["args"]["correlation"])
        lost = [last - first for first, last, _ in own if begin <= first and last <= end]
        lasts = on.run_ns[:, e["args"].get("experts", 1)]
        if "chunk" in e["args"]:
            lasts = on.chunk_ns[:, int(e["args"]["chunk"] == made.chunks - 1)]
        if e["args"]["outcome"] == "landed" and not e["name"].startswith("remote"):
            whole = end - begin - sum(lost) * (1 - n / d)
            rounded = int(((routed >= begin) & (routed <= end)).sum()) + 1 if lost else 0
            assert min(abs(whole - int(ns)) for ns in lasts) <= rounded, (made, e)


def check_costs(t: Timeline, made: Plan) -> None:
    """Where the record tells the parts apart, each slice lasts what the plan says."""
    costs, layers = made.costs, made.experts.shape[1]
    tail = int(costs.dense_ns[:, -1].max())
    for begin, end, e in t.slices["compute"]:
        args = e["args"]
        if args["part"] == "dense" and args["layer"] < layers:
            assert end - begin == costs.dense_ns[costs.cost_class[args["step"]], args["layer"]]
        elif args["part"] == "decide":
            assert end - begin == costs.decide_ns
        elif e["name"] == "overhead":
            assert end - begin == costs.group_ns
        elif args["part"] == "head" and not tail:
            assert end - begin == costs.head_ns[costs.cost_class[args["step"]]]


class Watched(discrete.Machine):
    """The simpy machine, which also notes when it stalled and why: what the timeline must find from the record."""

    def __init__(self, made: Plan) -> None:
        super().__init__(made, True)
        self.stalls: list[tuple[int, int, str]] = []

    def count_stall(self) -> None:
        begin, s = self.stalled_since, self.s
        cause = ("demand", "late", "held")[why_stalled(s, self.rules)]
        super().count_stall()
        if self.env.now > begin:
            self.stalls.append((begin, self.env.now, cause))


def joined(stalls: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    out: list[tuple[int, int, str]] = []
    for begin, end, cause in stalls:
        if out and out[-1][1] == begin and out[-1][2] == cause:
            begin = out.pop()[0]
        out.append((begin, end, cause))
    return out


def left_over(seed: int) -> Plan:
    """Whole layers are streamed in some steps, others read where experts lie; the link is slow and takes several: what
    nobody wanted of one layer stands in front of what the next ones wait for."""
    made, rng = plan_of(seed), np.random.default_rng(seed)
    ahead, n = int(rng.integers(0, 3)), made.n_experts
    bulk = rng.random(len(made.step_prefill)) < 0.5
    depth, slower = int(rng.integers(2, 5)), int(rng.integers(1, 200))
    costs = replace(made.costs, commit_depth=depth, transfer_ns=made.costs.transfer_ns + slower)
    assert made.on_miss is not None
    on = replace(
        made.on_miss, bulk=rule("remote"), step_bulk=bulk, whole_layer=True, serial=False, ahead=ahead, defer=0,
        stages=(ahead + 1) * n, run_ns=np.tile(np.arange(n + 1) * costs.transfer_ns[0], (2, 1)),
    )  # fmt: skip
    return replace(made, miss=rule("stream"), on_miss=on, costs=costs, late_counts_as_missing=False)


@pytest.mark.usefixtures("nothing_estimated")
def test_stalls_stand_where_the_machine_stalled() -> None:
    causes = set()
    drawn = (make(seed) for make in (random_plan, plan_of, plan_in_chunks_of) for seed in range(150))
    for made in chain(drawn, map(left_over, LEFT_OVER)):
        machine = Watched(made)
        machine.env.run(until=machine.env.process(machine.run()))
        record = RunRecord.of(made, machine.s, machine.log, machine.clock, machine.rules)
        t = Timeline(parse(events(record, context(made))))
        found = [
            (begin, end, e["args"]["cause"])
            for begin, end, e in t.slices["compute"]
            if e["cat"] == "stall" and "cause" in e["args"]
        ]
        assert joined(found) == joined(machine.stalls), made
        causes |= {cause for *_, cause in found}
    assert causes == {"demand", "late", "held"}


# --- a hand-worked case -----------------------------------------------------------------------------------------------


def test_the_worked_check_of_the_design() -> None:
    """Layers 1, experts 3, slots {0, 1}, dense 10, expert 5, transfer 100; tokens want 0, 2, 1."""
    made = plan([[[0]], [[2]], [[1]]], 3, 2)
    t = check_whole(parse(events(compiled.run(made, full=True), context(made))), compiled.run(made, full=True))
    seen = [(begin, end, e["name"]) for begin, end, e in t.slices["compute"]]
    assert seen == [
        (0, 10, "dense"), (10, 15, "L0.E0"),
        (15, 25, "dense"), (25, 125, "stall: demand"), (125, 130, "L0.E2"),
        (130, 140, "dense"), (140, 240, "stall: demand"), (240, 245, "L0.E1"),
    ]  # fmt: skip
    copies = [(begin, end, e["name"], e["args"]["victim"]) for begin, end, e in t.slices["H2D link 0"]]
    assert copies == [(25, 125, "L0.E2", "L0.E1"), (140, 240, "L0.E1", "L0.E0")]
    assert [(copy["name"], use["args"]["wanted"]) for copy, use in t.arrows] == [("L0.E2", "miss"), ("L0.E1", "miss")]
    assert t.counts["slots used"] == [(0, {"slots used": 2})]
    assert t.counts["wanted experts"][-1] == (140, {"hits": 1, "late": 0, "misses": 2})


def test_times_are_exact_where_a_float_would_not_be() -> None:
    made = plan([[[0]], [[1]]], 2, 1, dense=2**52 + 1, expert=7)
    record = compiled.run(made, full=True)
    text = [line for line in events(record, context(made)) if '"L0.E1"' in line and "kernel" in line]
    begins = 2 * (2**52 + 1) + 7 + 100
    assert f'"ts":{begins // 1000}.{begins % 1000:03d},' in text[0]


def test_as_text() -> None:
    """The same case, 245 ns in columns of 3: what lasts from 25 to 125 stands from column 8 to 41. What begins and ends
    in one column is left out, as the second dense part."""
    made = plan([[[0]], [[2]], [[1]]], 3, 2)
    lines = picture(tracks(compiled.run(made, full=True)), 0, 245).splitlines()
    rows = {line.split()[0]: line[7:] for line in lines[1:]}
    assert lines[0].split() == ["3", "ns", *(str(30 * i) for i in range(9))]
    assert sorted(rows) == ["GPU", "link"], "nothing is computed on the host"
    assert [rows["link"].index("|0.2"), rows["link"].index("|0.1")] == [25 // 3, 140 // 3]
    assert rows["link"][125 // 3] == "|" and rows["link"][: 25 // 3].strip() == ""
    assert rows["GPU"][25 // 3 : 125 // 3] == "|demand" + "." * (125 // 3 - 25 // 3 - 7)
    steps = tracks(compiled.run(made, full=True)).steps
    second = window(tracks(compiled.run(made, full=True)), compiled.run(made, full=True), 1, 2)
    text = picture(second, int(steps.begin[1]), int(steps.end[1])).splitlines()
    assert text[0].split()[:2] == ["ns", "15"] and "0.1" not in text[1], "another step's"


# --- a device's record: nothing is constant --------------------------------------------------------------------------


def stretched(made: Plan, seed: int) -> RunRecord:
    """A run as a device would have recorded it: the same events in the same order, every duration another one.

    Every instant is moved by a rising function, and counters and visits are summed over the moved intervals. Experts of
    a group ran in one kernel. A visit is routed a little before its decision ends; what is left of the decision counts
    as such in front of a stall, else as experts.
    """
    record = compiled.run(made, full=True)
    every, rng = tracks(record), np.random.default_rng(seed)
    moved = np.cumsum(rng.integers(1, 2000, int(record.steps["end_ns"][-1]) + 1))
    moved -= moved[0]

    def lasts(part: Any) -> Any:
        return moved[part.end] - moved[part.begin]

    def at(group: dict[str, Any], *names: str) -> dict[str, Any]:
        return {name: np.where(group[name] >= 0, moved[group[name]], -1) for name in names}

    g, layers = record.groups, len(record.layer["hits"])
    x = g["executions"] | at(g["executions"], "begin_ns", "end_ns")
    v = g["visits"] | at(g["visits"], "routed_ns", "end_ns")
    t = g["transfers"] | at(g["transfers"], "committed_ns", "started_ns", "landed_ns")
    for cause, name in enumerate(("demand", "late", "held")):
        part, v[f"stall_{name}_ns"] = every.stall.where(every.stall.of["cause"] == cause), np.zeros(len(v["step"]), int)
        np.add.at(v[f"stall_{name}_ns"], part.of["step"] * layers + part.of["layer"], lasts(part))
    v["cpu_wait_ns"] = lasts(every.cpu_wait)
    counters = record.counters | {f"{name}_ns": int(lasts(getattr(every, name)).sum()) for name in PARTS}
    counters["experts_ns"] += int(lasts(every.overhead).sum())
    counters["link_busy_ns"] = int(lasts(every.copies).sum())
    one_kernel(x)
    early = (lasts(every.decide) * rng.random(len(v["step"]))).astype(np.int64)
    stalls_first = np.isin(
        g["visits"]["routed_ns"], every.stall.begin
    )  # of equal instants all, or the sum is not known
    early[~stalls_first] = 0
    v["routed_ns"] = v["routed_ns"] - early
    t["queued_ns"] = v["routed_ns"][t["visit"]]
    steps = record.steps | at(record.steps, "begin_ns", "end_ns")
    groups = g | {"executions": x, "visits": v, "transfers": t}
    return replace(record, groups=groups, counters=counters, steps=steps)


def one_kernel(x: dict[str, Any]) -> None:
    """Give the experts of each group on the GPU the interval of all of them."""
    of_group: dict[tuple[int, int], list[int]] = {}
    for i in np.flatnonzero(x["cpu"] == 0).tolist():
        of_group.setdefault((int(x["visit"][i]), int(x["group"][i])), []).append(i)
    for rows in of_group.values():
        x["begin_ns"][rows], x["end_ns"][rows] = x["begin_ns"][rows].min(), x["end_ns"][rows].max()


def test_a_device_whose_durations_all_differ_gives_the_same_tracks_and_sums() -> None:
    for seed in range(120):
        made = random_plan(seed) if seed % 2 else random_lossy_plan(seed)
        record = stretched(made, seed)
        check_whole(parse(events(record, context(made))), record)


# --- windows and files -----------------------------------------------------------------------------------------------


def test_a_window_holds_what_belongs_to_its_steps(long_run: Path, tmp_path: Path) -> None:
    for name, flags in (("all", ()), ("some", ("--steps", "10:20"))):
        assert timeline.main([str(long_run), *flags, "--out", str(tmp_path / name)]) == 0
    every, some = (Timeline(load(tmp_path / name)["traceEvents"]) for name in ("all", "some"))
    assert [e["name"] for *_, e in some.slices["steps"]] == [f"step {i}" for i in range(10, 20)]
    begin, end = some.slices["steps"][0][0], some.slices["steps"][-1][1]
    for track in ("layers", "compute", "CPU experts"):
        assert some.slices[track] == [s for s in every.slices[track] if 10 <= s[2]["args"]["step"] < 20]
    link = [s for s in every.slices["H2D link 0"] if s[1] > begin and s[0] < end]
    assert some.slices["H2D link 0"] == link and link[0][0] < begin, "a copy under way is whole"
    shown = {s[2]["args"]["correlation"] for s in link}
    assert some.arrows and all(arrow in every.arrows for arrow in some.arrows)
    assert all(copy["args"]["correlation"] in shown for copy, _ in some.arrows)
    for name, values in some.counts.items():
        before = [args for at, args in every.counts[name] if at <= begin]
        assert values[0] == (begin, before[-1]) and values[-1][0] <= end


@pytest.mark.parametrize(
    ("group", "column"),
    [("visits", "end_ns"), ("visits", "routed_ns"), ("executions", "begin_ns"), ("executions", "visit")],
)
def test_a_record_whose_time_falls_is_refused(group: str, column: str) -> None:
    made = plan([[[0]], [[2]], [[1]]], 3, 2)
    record = compiled.run(made, full=True)
    broken = record.groups[group] | {column: record.groups[group][column][::-1]}
    with pytest.raises(UserError, match=rf"record: {group}\..*{column}.*: falls from"):
        list(events(replace(record, groups=record.groups | {group: broken}), context(made)))


def test_a_record_with_a_visit_too_few_is_refused() -> None:
    made = plan([[[0]], [[2]], [[1]]], 3, 2)
    record = compiled.run(made, full=True)
    short = {name: column[:-1] for name, column in record.groups["visits"].items()}
    with pytest.raises(UserError, match="record: visits: has 2 rows; steps x MoE layers are 3"):
        list(events(replace(record, groups=record.groups | {"visits": short}), context(made)))


def test_equal_input_gives_equal_bytes(long_run: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        assert timeline.main([str(long_run), "--steps", "3", "--out", str(folder / "t.json.gz")]) == 0
    one, other = ((folder / "t.json.gz").read_bytes() for folder in folders)
    assert one == other and one[4:8] == bytes(4), "the time in a gzip header is left out"


def test_the_head_is_that_of_kineto(long_run: Path, tmp_path: Path) -> None:
    assert timeline.main([str(long_run), "--steps", "0:1", "--out", str(tmp_path / "t.json.gz")]) == 0
    whole = json.loads(gzip.decompress((tmp_path / "t.json.gz").read_bytes()))
    assert whole["schemaVersion"] == 1 and whole["displayTimeUnit"] == "ms"
    assert whole["deviceProperties"][0]["totalGlobalMem"] == 81_920 * 1024**2
    assert whole["otherData"]["machine"] == "compiled (simulated)"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "no draft is left"


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, (0, 9)), ("2:5", (2, 5)), ("2:", (2, 9)), (":5", (0, 5)), ("7", (7, 8)), ("0:9", (0, 9))],
)
def test_steps(text: str | None, expected: tuple[int, int]) -> None:
    assert steps_of(text, 9) == expected


@pytest.mark.parametrize("text", ["", "a", "1:b", "5:5", "5:3", "0:10", "9", "-1:3", "1:2:3", "1.5"])
def test_steps_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"steps: .* must"):
        steps_of(text, 9)


def test_bad_input_is_one_line(long_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--trace", "mixtral.npz", "--max-steps", "2", "--out", str(tmp_path / "thin"), "--json"]) == 0
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("[1, 2]")
    (tmp_path / "broken" / "record.npz").write_bytes((long_run / "record.npz").read_bytes())
    capsys.readouterr()
    for args, wrong in (
        ([tmp_path / "nowhere"], "no such file or folder"),
        ([tmp_path / "thin"], "run it again with --out and --record full"),
        ([tmp_path / "broken"], "is no summary of a run: a JSON object is required"),
        ([long_run, "--steps", "5000"], "must lie in 0:400"),
        ([long_run, "--step", "5"], "did you mean --steps?"),
        ([long_run, "--text", "--out", tmp_path / "t"], "nothing is written with --text"),
        ([long_run, "--steps", "1", "--out", tmp_path / "no" / "t.json.gz"], "No such file"),
    ):
        assert timeline.main([str(arg) for arg in args]) == 2
        err = capsys.readouterr().err
        assert wrong in err and err.startswith("error: ") and err.count("\n") == 1, err
    assert sorted(path.name for path in (tmp_path / "thin").iterdir()) == ["record.npz", "summary.json"]
