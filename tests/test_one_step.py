"""One step, piece by piece: laws on generated runs, fewer pieces of a large one, and a case by hand."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from analysis.pages import step_figures
from analysis.pages.step_section import chosen, steps
from analysis.reading.run import Run
from analysis.timelines.asked import Asked
from analysis.timelines.fewer_pieces import fewer
from analysis.timelines.one_step import PARTS, WAITS, Step, one_step
from analysis.timelines.tracks import Slices, tracks
from sim.core.plan import CAUSES, Plan
from sim.machines import compiled
from sim.machines.record import RunRecord
from sim.outcome.summary import STALLS
from tests.on_miss_plans import plan_in_chunks_of, plan_of
from tests.plans import plan, random_lossy_plan, random_plan
from tests.runs_by_hand import made, record
from tests.window_plans import window_plan


def drafted(seed: int) -> Plan:
    """Drafts take as long for each row that is guessed, as in a run that is asked for."""
    of = window_plan(seed)
    if of.windows is None:
        return of
    guessed = np.bincount(of.windows.step, of.windows.rows - 1, len(of.step_prefill)).astype(np.int64)
    return replace(of, costs=replace(of.costs, draft_ns=3 * guessed))


MADE = {
    "prefetch": random_plan,
    "lossy": random_lossy_plan,
    "rules": plan_of,  # the CPU, streams, remote reads, admissions
    "chunks": plan_in_chunks_of,
    "speculation": drafted,
}
IN_THE_RECORD = {"draft": "draft", "dense": "dense", "experts": "experts", "decide": "decide", "head": "head"}


def asked(of: Plan) -> Asked:
    on = of.on_miss
    return Asked() if on is None else Asked(on.serial, on.ahead, on.link_share[0] / on.link_share[1])


def every_step(of: Plan) -> tuple[RunRecord, list[Step]]:
    ran = compiled.run(of, full=True)
    every = tracks(ran, asked(of))
    return ran, [one_step(every, ran, i) for i in range(len(ran.steps["begin_ns"]))]


def cases(make: Callable[[int], Plan], n: int = 40) -> Iterator[tuple[RunRecord, list[Step]]]:
    for seed in range(n):
        of = make(seed)
        warm = len(of.step_prefill) // 3 if seed % 4 == 0 and of.windows is None else 0
        yield every_step(replace(of, warmup_steps=warm))


@pytest.mark.parametrize("kind", MADE)
def test_the_gpus_pieces_tile_each_step_and_are_its_breakdown(kind: str) -> None:
    for ran, found in cases(MADE[kind]):
        total: Counter[str] = Counter()
        for step in found:
            assert_tiles(step)
            visits = ran.groups["visits"]
            mine = visits["step"] == step.number
            for cause in STALLS:
                assert step.parts()[cause] == visits[f"stall_{cause}_ns"][mine].sum()
            assert step.parts()["cpu_wait"] == visits["cpu_wait_ns"][mine].sum()
            total.update(step.parts() if step.number >= ran.warmup_steps else {})
        said = {part: ran.counters.get(f"{part}_ns", 0) for part in IN_THE_RECORD}
        assert {part: total[part] for part in IN_THE_RECORD} == said
        assert sum(total[cause] for cause in STALLS) == ran.counters["stall_ns"]


def assert_tiles(step: Step) -> None:
    edges = list(zip(step.gpu.begin.tolist(), step.gpu.end.tolist(), strict=True))
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    assert not edges or (edges[0][0], edges[-1][1]) == (step.begin, step.end)
    assert sum(step.parts().values()) == step.end - step.begin


@pytest.mark.parametrize("kind", MADE)
def test_copies_are_the_transfers_that_overlap_the_step(kind: str) -> None:
    for ran, found in cases(MADE[kind], 30):
        sent, t = ran.on_link(), ran.groups["transfers"]
        run = t.get("run", np.arange(len(t["event"])))[sent["transfer"]]
        last = int(ran.steps["end_ns"][-1])
        for step in found:
            until = np.where(sent["landed_ns"] >= 0, sent["landed_ns"], last)
            mine = (sent["started_ns"] >= 0) & (sent["started_ns"] < step.end)
            mine &= np.maximum(until, sent["started_ns"] + 1) > step.begin
            wanted = set(zip(run[mine].tolist(), sent["number"][mine].tolist(), strict=True))
            shown = set(zip(step.link.of["run"].tolist(), step.link.of["chunk"].tolist(), strict=True))
            assert shown <= wanted
            landed = sent["landed_ns"] >= 0  # what is cut off by a reset ends there, before `last`
            assert {
                pair for pair, one in zip(zip(run, sent["number"], strict=True), mine & landed, strict=True) if one
            } <= shown
            assert (step.link.of["committed"] <= step.link.begin).all()


@pytest.mark.parametrize("kind", ["prefetch", "rules"])
def test_a_stall_ends_when_the_copy_lands_that_it_waits_for(kind: str) -> None:
    seen = 0
    for _, found in cases(MADE[kind], 30):
        for step in found:
            gpu, stalled = step.gpu, np.isin(step.gpu.of["part"], [PARTS.index(cause) for cause in STALLS])
            over = stalled & np.append(~stalled[1:], True)[: len(stalled)]
            known = over & (gpu.of["for_expert"] >= 0)
            early = known & (gpu.of["for_landed"] < gpu.end)
            assert not early.any(), (step, gpu.where(early))
            seen += int((known & (gpu.of["for_landed"] == gpu.end)).sum())
            assert kind == "rules" or known.sum() == over.sum() == (gpu.of["for_landed"] == gpu.end)[over].sum()
    assert seen > 100


@pytest.mark.parametrize("kind", MADE)
def test_fewer_pieces_are_the_same_step(kind: str) -> None:
    for _, found in cases(MADE[kind], 15):
        for step in found:
            for most in (step.pieces, step.pieces * 2 // 3, step.pieces // 3, 1):
                less = fewer(step, most)
                assert_tiles(less)
                assert less.parts() == step.parts() and less.pieces <= step.pieces
                assert bool(less.merged) == (most < step.pieces)
                assert less.gpu.of["tokens"].sum() == step.gpu.of["tokens"].sum()
                left_out = "left out" in less.merged
                assert left_out or less.link.of["bytes"].sum() == step.link.of["bytes"].sum()
                assert left_out or less.link.of["pieces"].sum() == len(step.link)
                assert spent(less.host) >= spent(step.host)


def spent(part: Slices) -> int:
    return int((part.end - part.begin).sum())


def test_by_hand() -> None:
    """Layers 1, experts 3, slots {0, 1}, dense 10, expert 5, transfer 100; tokens want 0, 2, 1."""
    _, found = every_step(plan([[[0]], [[2]], [[1]]], 3, 2))
    step = found[1]
    assert (step.begin, step.end) == (15, 130)
    gpu = step.gpu
    seen = [
        (begin, end, PARTS[part], expert, waits, landed)
        for begin, end, part, expert, waits, landed in zip(
            gpu.begin, gpu.end, *(gpu.of[name] for name in ("part", "expert", "for_expert", "for_landed")), strict=True
        )
    ]
    assert seen == [(15, 25, "dense", -1, -1, -1), (25, 125, "demand", -1, 2, 125), (125, 130, "experts", 2, -1, -1)]
    assert step.link.of["expert"].tolist() == [2] and CAUSES[step.link.of["cause"][0]] == "demand"
    bars = {bar.name: bar for bar in step_figures.step({"a": step}).data}
    stall = bars["stall: fetch under way"]
    assert (list(stall.base), list(stall.x)) == ([10], [100]) and stall.customdata.tolist() == [[0, 2, 110]]
    assert stall.hovertemplate.endswith("%{base:,.0f} to %{x:,.0f} ns<extra></extra>")


def test_which_steps_are_chosen() -> None:
    # twenty decode steps of 1 to 20 ns, the longest first; nearest ranks: median 10, p95 19
    found = chosen(record([list(range(20, 0, -1))]))
    assert found == {10: "median", 19: "fastest", 1: "p95", 0: "slowest, first"}
    assert chosen(record([[5]], prefill_ns=[9])) == {1: "median, fastest, p95, slowest, first"}
    assert chosen(record([[7, 5, 9]], warmup=1)) == {1: "median, fastest, first", 2: "p95, slowest"}


def run_of(name: str, of: Plan, **changes: object) -> Run:
    ran = compiled.run(of, full=True)
    return replace(made(name, ran, **changes), full=True)


TWO = [[[0]], [[2]], [[1]], [[0]]]


def test_runs_of_one_work_share_a_figure_and_others_do_not() -> None:
    slow, fast = plan(TWO, 3, 2, transfer=100), plan(TWO, 3, 2, transfer=50)
    oracle = run_of("c", plan(TWO, 3, 2, transfer=1), spec={"eviction": "belady"})
    other = run_of("d", plan([*TWO, [[2]]], 3, 2), trace={"hash": "b" * 64})
    found = steps([run_of("a", slow), run_of("b", fast), oracle, other], "a")
    first = found.panels[0]
    assert first.figure is not None and first.table is not None
    assert [row[0] for row in first.table[1]] == ["a", "b", "c (oracle)"]
    # step 1 takes 10 + 100 + 5; the fastest that no oracle is is b, 50 ns of stall less
    assert first.title == "Step 1: a takes 115 ns, b 65 ns: 50 ns less stall: fetch under way"
    assert first.among == ("steps-0", "Decode step", "median, slowest of a: step 1") or "median" in first.among[2]
    assert [panel.table[1][0][0] for panel in found.panels if panel.table and panel.key.startswith("steps-1")] == [
        "d"
    ] * 3


def test_what_is_not_drawn_is_said() -> None:
    full = run_of("full", plan(TWO, 3, 2))
    bare, left = made("bare"), replace(run_of("left", plan(TWO, 3, 2)))
    assert left.record is not None
    left = replace(left, record=replace(left.record, groups={}))
    found = steps([full, bare, left], "full")
    assert [text.split(" is ")[0] + text[-70:] for text in found.remarks] and len(found.remarks) == 2
    assert "not for left" in found.remarks[1] and "for bare" in found.remarks[0]
    assert len(found.panels) >= 2


def test_parts_are_the_breakdowns_words() -> None:
    assert set(PARTS) == {*IN_THE_RECORD, *STALLS, "cpu_wait"} and set(WAITS) < set(PARTS)
