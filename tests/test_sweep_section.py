"""Sweeps in a report: lines, facets, who is best where, by hand; what is left out is said; laws on made-up sweeps."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from analysis.comparing.comparison import compare
from analysis.pages import sweep_figures
from analysis.pages.page import render
from analysis.pages.report import report
from analysis.pages.sweep_figures import drawn, sweep
from analysis.pages.sweep_section import swept, who_wins
from analysis.pages.sweep_tables import Facet, axes, best_by, by_facet, lines, sweep_table
from analysis.reading.load import load
from analysis.reading.run import Run
from sim.errors import SpecError
from sim.simulation import simulate
from sim.sweeps.config import expand
from sim.sweeps.rows import error_row, row_of, table
from tests.gen import random_trace
from tests.runs_by_hand import FIXED, made
from tests.test_report import HOSTILE, Page
from traces.format import npz


def ran(speed: float | None, low: float | None = None, high: float | None = None, **spec: Any) -> Run:
    """A run of this speed; of what is not its spec by name: marks, quality, memory."""
    more = {name: spec.pop(name) for name in ("quality", "substituted", "memory") if name in spec}
    given = spec.pop("set", {})
    pair = None if low is None else [low, high]
    made_of = made("", tokens_per_s=speed, tokens_per_s_interval=pair, spec={**spec, "set": given}, **more)
    return replace(made_of, name=" ".join(str(value) for value in (*spec.values(), *given.values())))


LOSSY: dict[str, Any] = {"miss": "drop", "substituted": 1, "quality": {"dropped_weight": 0.25}}
CACHES = [
    ran(10.0, cache=2, eviction="lru"), ran(20.0, cache=4, eviction="lru"), ran(30.0, cache=8, eviction="lru"),
    ran(9.0, cache=2, eviction="lfu"), ran(22.0, cache=4, eviction="lfu"), ran(29.9, cache=8, eviction="lfu"),
    ran(15.0, cache=2, eviction="belady"), ran(40.0, cache=4, eviction="belady"), ran(41.0, cache=8, eviction="belady"),
]  # fmt: skip


def test_lines_and_winners_by_hand() -> None:
    table = sweep_table(CACHES)
    assert table.attrs["settings"] == ["cache", "eviction"] and list(axes(table)) == ["cache"]
    found = lines(table, "cache")
    assert [(line.label, line.x) for line in found] == [
        ("lru", [2, 4, 8]), ("lfu", [2, 4, 8]), ("belady (oracle)", [2, 4, 8]),
    ]  # fmt: skip
    assert found[1].speeds == [9.0, 22.0, 29.9]
    (mine,) = by_facet(found)
    assert [(line.name, ties) for line, ties in mine.winners] == [("lru", 0), ("lfu", 0), ("lru", 1)]
    # the oracle is faster everywhere and wins nowhere; 29.9 and 30 are a tie
    assert who_wins(mine, "cache") == "the fastest by cache: lru at 2, lfu at 4, lru (tied) at 8"
    assert who_wins(Facet("", found[:1]), "cache") == "lru is the fastest at every cache"


def test_the_best_of_each_group_by_hand() -> None:
    lossy = ran(35.0, cache=8, eviction="lru", **LOSSY)
    table = sweep_table([*CACHES, lossy])
    every, by_cache = best_by(table)[0], best_by(table, "cache")
    assert every.best["miss"] == "drop" and every.best["lost_weight"] == 0.25 and every.ties == 0
    assert every.lossless is not None and every.lossless["tokens_per_s"] == 30.0
    assert every.oracle is not None and every.oracle["tokens_per_s"] == 41.0
    assert [(one.value, one.best["eviction"], one.best["tokens_per_s"], one.ties) for one in by_cache] == [
        (2, "lru", 10.0, 0), (4, "lfu", 22.0, 0), (8, "lru", 35.0, 0),
    ]  # fmt: skip
    following = by_cache[0].following
    assert following is not None and following["eviction"] == "lfu"


def test_oracles_alone_and_what_does_not_fit_alone_are_still_the_best_of_their_group() -> None:
    no = {"slots": 12, "fits": False}
    runs = [ran(5.0, cache=2), ran(50.0, cache=4, memory=no), ran(40.0, cache=4, eviction="belady")]
    assert [one.best["tokens_per_s"] for one in best_by(sweep_table(runs), "cache")] == [5.0, 50.0]
    assert best_by(sweep_table(runs[:2]))[0].best["tokens_per_s"] == 5.0


def test_unlike_conditions_are_never_set_against_each_other() -> None:
    unlike: list[dict[str, Any]] = [{}, {"hardware": "x.toml"}, {"batch": 4}, {"precision": "int4"}, {"link_gbps": 9.0}]
    runs = [ran(10.0 * i + cache, cache=cache, **fields) for i, fields in enumerate(unlike, 1) for cache in (1, 2)]
    runs += [replace(run, summary=run.summary | {"trace": run.trace | {"hash": "b" * 64}}) for run in runs[:2]]
    table = sweep_table(runs)
    found = by_facet(lines(table, "cache"))
    assert len(found) == len(best_by(table)) == 6 and all(len(mine.lines) == 1 for mine in found)
    section = swept(runs)
    assert section is not None
    titles = [panel.title for panel in section.panels]
    assert all("is the fastest at every cache" in title for title in titles[:6])
    assert "6 sets of conditions, which are no alternatives of each other" in titles[-1]
    assert "tokens/s" not in "".join(titles)  # a speed of one beside a speed of another says nothing
    # the conditions that compare() keeps apart are kept apart here
    assert len({row["conditions"] for row in compare(runs).rows}) <= len(found)


def test_a_condition_that_is_swept_is_the_axis_and_no_facet() -> None:
    runs = [ran(speed, batch=batch) for batch, speed in ((1, 5.0), (2, 9.0), (32, 30.0))]
    table = sweep_table(runs)
    assert list(axes(table)) == ["batch"] and [mine.name for mine in by_facet(lines(table, "batch"))] == [""]
    fig = sweep(table)
    assert fig.layout.xaxis.type == "log" and list(fig.data[0].x) == [1, 2, 32]


def test_what_went_in_step_is_one_axis() -> None:
    runs = [ran(speed, cache=cache, prefetch_budget=n) for speed, cache, n in ((1.0, 2, 1), (2.0, 4, 2), (3.0, 8, 3))]
    assert axes(sweep_table(runs)) == {"cache": ["prefetch_budget"]}


def test_policies_that_cannot_differ_in_a_number_are_no_axis() -> None:
    runs = [ran(1.0, cache=2, eviction="lru"), ran(2.0, cache=4, eviction="fifo")]
    assert axes(sweep_table(runs)) == {} and swept(runs) is None
    assert swept([ran(1.0), ran(2.0, eviction="fifo")]) is None


def test_runs_without_the_number_are_level_lines() -> None:
    tau: list[dict[str, Any]] = [{"set": {"buddy.tau": tau}, "miss": "buddy"} for tau in (0.2, 0.9)]
    runs = [ran(10.0, **tau[0]), ran(4.0, **tau[1]), ran(6.0)]
    table = sweep_table(runs)
    found = lines(table, "buddy.tau")
    assert [(line.name, line.x) for line in found] == [("buddy", [0.2, 0.9]), ("fetch", None)]
    assert who_wins(Facet("", found), "buddy.tau") == "the fastest by buddy.tau: buddy (lossy) at 0.2, fetch at 0.9"
    level = sweep(table).data[-1]
    assert (list(level.x), list(level.y), level.line.dash) == ([0.2, 0.9], [6.0, 6.0], "dot")


def test_seeds_are_repeats_of_one_run() -> None:
    runs = [ran(speed, cache=cache, seed=seed) for cache in (2, 4) for seed, speed in enumerate((8.0, 10.0, 15.0))]
    table = sweep_table(runs)
    assert table["tokens_per_s"].tolist() == [11.0, 11.0] and table["repeats"].tolist() == [3, 3]
    assert list(axes(table)) == ["cache"]
    line = sweep(table).data[0]
    assert list(line.error_y.array) == [4.0, 4.0] and list(line.error_y.arrayminus) == [3.0, 3.0]
    section = swept(runs)
    assert section is not None and "4 repeats with another seed" in section.remarks[0]


def test_slots_beside_shares_are_one_axis_of_slots() -> None:
    runs = [ran(1.0, cache=2), ran(2.0, cache=0.5)]
    runs = [replace(run, summary=run.summary | {"slots": {"total": n}}) for run, n in zip(runs, (4, 9), strict=True)]
    table = sweep_table(runs)
    assert list(axes(table)) == ["slots in all"] and lines(table, "slots in all")[0].x == [4, 9]


def test_an_interval_is_a_band_of_the_best_line_alone() -> None:
    runs = [ran(10.0 * cache + i, 9.0 * cache, 11.0 * cache, cache=cache, eviction=name) for cache in (1, 2)
            for i, name in enumerate(("lru", "fifo"))]  # fmt: skip
    bands = [trace for trace in sweep(sweep_table(runs)).data if trace.fill == "tonexty"]
    assert [(trace.name, list(trace.y)) for trace in bands] == [("80 % of fifo", [11.0, 22.0])]


@pytest.mark.parametrize("seed", range(4))
def test_laws_of_a_large_sweep(seed: int) -> None:
    """Whatever was run: few lines, whoever wins somewhere among them, and every run in a line or said to be in none."""
    rng = np.random.default_rng(seed)
    runs = [
        ran(float(rng.uniform(1, 50)), cache=cache, eviction=name, prefetch=ahead, batch=batch, hardware=gpu)
        for cache in range(1, 7) for name in ("lru", "lfu", "fifo", "belady") for batch in (1, 8)
        for ahead in ("none", "transition", "popular") for gpu in ("a.toml", "b.toml") if rng.random() < 0.9
    ]  # fmt: skip
    table = sweep_table(runs)
    for axis in axes(table):
        found = lines(table, axis)
        assert sum(len(line.rows) for line in found) == len(runs)
        for mine in by_facet(found):
            shown = drawn(mine)
            assert len(shown) <= sweep_figures.MOST_LINES
            for x, (best, _) in zip(mine.points, mine.winners, strict=True):
                assert any(line is best for line in shown) and not best.oracle
                here = [(line, i) for line in mine.lines if not line.oracle and (i := line.at(x)) is not None]
                at = best.at(x)
                assert at is not None and best.speeds[at] == max(line.speeds[i] for line, i in here)
    section = swept(runs)
    assert section is not None
    for panel in section.panels[:-1]:
        left = re.search(r"(\d+) more lines", panel.caption)
        assert panel.table is not None and panel.figure is not None
        assert len(panel.table[1]) - int(left[1] if left else 0) == len(panel.figure.data)
    best = section.panels[-1].table
    assert best is not None and not [cell for row in best[1] for cell in row if cell in ("nan", "None")]


def test_a_thousand_rows_make_a_small_page() -> None:
    rng = np.random.default_rng(0)
    runs = [
        ran(float(rng.uniform(1, 50)), cache=cache, eviction=name, batch=batch, prefetch_budget=n)
        for cache in range(1, 11) for name in ("lru", "lfu", "fifo", "belady", "random") for batch in (1, 2, 4, 8)
        for n in range(1, 6)
    ]  # fmt: skip
    assert len(runs) == 1000
    section = swept(runs)
    assert section is not None
    page = render([section], [], "sweep")
    assert len(page) < 6_000_000 and {panel.among for panel in section.panels if panel.among} == {
        ("sweep", "Tokens/s over", axis) for axis in ("cache", "batch", "prefetch_budget")
    }


def test_text_of_files_stays_text() -> None:
    runs = [ran(speed, hardware=HOSTILE, set={HOSTILE: x, "a.b": HOSTILE}) for speed, x in ((1.0, 1), (2.0, 2))]
    section = swept([*runs, ran(3.0, hardware="b", set={HOSTILE: 1})])
    assert section is not None and len(section.panels) == 2
    page = Page(render([section], [], "sweep"))
    assert len(page.with_tag("script")) == 3 and not page.with_tag("img") and not page.with_tag("b")
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    texts = json.dumps(page.figures)
    assert "<script" not in texts and "<img" not in texts


def test_a_figure_of_no_such_axis_is_refused() -> None:
    with pytest.raises(SpecError, match="axis: 'eviction' is unknown"):
        sweep(sweep_table(CACHES), "eviction")
    with pytest.raises(SpecError, match="no number was swept"):
        sweep(sweep_table(CACHES[:1]))


def test_a_sweeps_folder_makes_a_page_that_counts_what_failed(tmp_path: Path) -> None:
    npz.write(tmp_path / "t.npz", random_trace(np.random.default_rng(1), 60, 2, 8, 2, requests=4, prompt=0.3))
    (tmp_path / "h.toml").write_text(FIXED)
    files = {"trace": str(tmp_path / "t.npz"), "hardware": str(tmp_path / "h.toml")}
    rows = []
    for each in expand({**files, "cache": [2, 4], "eviction": ["lru", "no"]}):
        assert each.spec is not None
        try:
            rows.append(row_of(each, simulate(each.spec)[0]))
        except SpecError as error:
            rows.append(error_row(each, str(error)))
    pq.write_table(table(rows), tmp_path / "results.parquet")
    page = Page(report(load([tmp_path])))
    assert "2 of 4 configurations failed: 2 x eviction: 'no' is unknown" in "".join(page.texts["main"])
    assert "is the fastest at every cache" in "".join(page.texts["h3"])
