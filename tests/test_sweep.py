"""Sweeps: what a file expands to, that nothing is lost or repeated whatever is killed, that rows say all and agree."""

import io
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import run, sweep
from sim.errors import SpecError
from sim.flags import read_toml as read
from sim.memo import Kept
from sim.outcome.marks import OPEN_LOOP, SYNTHETIC
from sim.search.evaluate import Evaluator
from sim.sweeps import dispatch, session, store
from sim.sweeps.answer import COLUMNS_READ, answer
from sim.sweeps.config import Configuration, expand
from sim.sweeps.dispatch import KILLED, Dispatcher, Queue, Seconds, WorkerEvent
from sim.sweeps.local import LocalPool
from sim.sweeps.rows import COLUMNS, Row, pair_of
from sim.sweeps.versions import Versions
from sim.sweeps.worker import Done, Setup, Task, Worker
from tests.gen import random_trace
from traces.format import npz

ROOT = Path(__file__).parent.parent
FIXED = "[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 0\ncpu_expert_ns = 7\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a small trace `t.npz` (with everything) and fixed hardware `h.toml`."""
    rng = np.random.default_rng(3)
    trace = random_trace(rng, tokens=40, layers=3, experts=8, k=2, requests=4, weights=True, logits=True, lookahead=3)
    npz.write(tmp_path / "t.npz", trace)
    (tmp_path / "h.toml").write_text(FIXED)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def specs(text: str, *names: str) -> list[tuple[Any, ...]]:
    """The named fields of every configuration of a file's text."""
    import tomllib

    runs = expand(tomllib.loads(text))
    return [tuple(getattr(r.spec, name) for name in names) for r in runs]


# --- expansion ---


def test_a_grid_by_hand() -> None:
    text = """
        trace = "t.npz"
        eviction = ["lru", "fifo"]
        cache = [2, 0.5]
        [[zip]]
        hardware = ["a", "b"]
        engine = ["x", "y"]
    """
    assert specs(text, "eviction", "cache", "hardware", "engine") == [
        ("lru", 2, "a", "x"), ("lru", 2, "b", "y"), ("lru", 0.5, "a", "x"), ("lru", 0.5, "b", "y"),
        ("fifo", 2, "a", "x"), ("fifo", 2, "b", "y"), ("fifo", 0.5, "a", "x"), ("fifo", 0.5, "b", "y"),
    ]  # fmt: skip


def test_ranges_by_hand() -> None:
    def values(given: str) -> list[Any]:
        return [cache for (cache,) in specs(f'trace = "t"\ncache = {given}', "cache")]

    assert values("{ from = 2, to = 8, step = 3 }") == [2, 5, 8]
    assert values("{ from = 0.1, to = 0.5, step = 0.1 }") == [0.1, 0.2, 0.3, 0.4, 0.5]  # no 0.30000000000000004
    assert values("{ from = 1, to = 20, times = 2 }") == [1, 2, 4, 8, 16]
    assert values("{ from = 0.25, to = 1.0, count = 4 }") == [0.25, 0.5, 0.75, 1.0]
    assert [type(v) for v in values("{ from = 2, to = 4, count = 2 }")] == [int, int]


def test_a_parameter_belongs_to_the_runs_that_use_its_policy() -> None:
    text = 'trace = "t"\neviction = ["lru", "decayed"]\nset.decayed.decay = [0.5, 0.9]\nset.decayed.x = "default"'
    assert specs(text, "eviction", "set") == [
        ("lru", {}), ("decayed", {"decayed.decay": 0.5}), ("decayed", {"decayed.decay": 0.9}),
    ]  # fmt: skip
    quoted = 'trace = "t"\neviction = "decayed"\n[set]\n"decayed.decay" = { from = 0.5, to = 1.0, count = 2 }'
    assert specs(quoted, "set") == [({"decayed.decay": 0.5},), ({"decayed.decay": 1.0},)]


def test_repeats_are_seeds_that_run_fastest() -> None:
    text = 'trace = "t"\nseed = 5\nrepeats = 3\ncache = [2, 3]'
    assert specs(text, "cache", "seed") == [(2, 5), (2, 6), (2, 7), (3, 5), (3, 6), (3, 7)]


def test_a_word_for_the_default() -> None:
    assert specs('trace = "t"\nprefetch-budget = ["default", 2]', "prefetch_budget") == [(None,), (2,)]


AXES = st.dictionaries(
    st.sampled_from(["batch", "prefill_chunk", "context_offset", "warmup_steps", "seed"]),
    st.lists(st.integers(1, 10**6), min_size=1, max_size=4, unique=True),
    max_size=4,
)


@given(AXES, st.integers(1, 3))
def test_every_expansion_is_the_product_once_each_in_order(axes: dict[str, list[int]], zipped: int) -> None:
    pairs = {"cache": list(range(1, zipped + 1)), "max_steps": list(range(11, zipped + 11))}
    runs = expand({"trace": "t", **axes, "zip": [pairs]})
    points = [tuple(getattr(r.spec, name) for name in (*axes, "cache", "max_steps")) for r in runs]
    assert (
        len(set(points))
        == len(points)
        == len({r.id for r in runs})
        == np.prod([len(a) for a in axes.values()]) * zipped
    )
    assert all(steps == cache + 10 for *_, cache, steps in points)
    places = [(*tuple(axes[name].index(v) for name, v in zip(axes, p, strict=False)), p[-2]) for p in points]
    assert places == sorted(places)  # the last axis runs fastest
    again = expand({"trace": "t", **axes, "zip": [pairs]})
    assert [r.id for r in again] == [r.id for r in runs]


BAD = {
    'trace = "t"\ncach = 3': "did you mean cache",
    'trace = "t"\ncache = []': "cache: an empty list",
    "cache = 3": "trace: missing",
    'trace = "t"\ncache = { from = 1, to = 9, stepp = 1 }': "did you mean step",
    'trace = "t"\ncache = { from = 9, to = 1, step = 1 }': "from <= to",
    'trace = "t"\ncache = { from = 1, to = 4, count = 3 }': "not all whole",
    'trace = "t"\ncache = { from = 0.0, to = 1.0, step = 1e-9 }': "at most 1,000,000",
    'trace = "t"\ncache = [[1]]': "cache: [1]",
    'trace = "t"\ncache = nan': "cache: nan",
    'trace = "t"\n[[zip]]\ncache = [1, 2]\nbatch = [1]': "one length; found cache 2, batch 1",
    'trace = "t"\ncache = 3\n[[zip]]\ncache = [1, 2]': "cache: given twice",
    'trace = "t"\nzip = 3': "[[zip]]",
    'trace = "t"\nset.tau = 3': "set.POLICY.PARAM",
    'trace = "t"\n[set]\n"buddy.tau" = [0.1]': "no configuration uses",
    'trace = "t"\ncache = {from = 1, to = 1' + "0" * 400 + ", times = 2}": "a range takes finite numbers",
    'trace = "t"\nrepeats = 0': "repeats: 0",
    'trace = "t"\nseed = [1, 2]\nrepeats = 2': "give one of the two",
    "= 3": "is no TOML",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_file_is_one_line_and_nothing_is_written(
    text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "s.toml").write_text(text)
    before = sorted(folder.rglob("*"))
    assert sweep.main(["--config", "s.toml", "--out", "out"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: config: s.toml") and err.count("\n") == 1 and BAD[text] in err
    assert sorted(folder.rglob("*")) == before


# --- rows ---

GRID = """
    trace = "t.npz"
    hardware = "h.toml"
    calibration = 0.5
    cache = [2, 5]
    eviction = ["lru", "random", "belady"]
    prefetch = ["none", "gate-lookahead", "transition"]
    miss = ["fetch", "buddy", "cpu"]
    repeats = 2
"""


def rows_of(folder: Path, text: str) -> dict[str, Row]:
    """By one worker in this process, by id."""
    (folder / "s.toml").write_text(text)
    runs = expand(read(folder / "s.toml"))
    done = Worker(session.inspect(runs)[0]).run(Task(runs))
    assert [row["id"] for row in done.rows] == [r.id for r in runs]
    return {row["id"]: row for row in done.rows}


def test_rows_are_what_each_run_alone_comes_to(folder: Path) -> None:
    """Whatever is shared between the runs of a worker changes nothing: 108 runs against 108 fresh ones."""
    rows = rows_of(folder, GRID)
    assert len(rows) == 2 * 3 * 3 * 3 * 2
    for each in expand(read(folder / "s.toml")):
        assert each.spec is not None
        summary = run.simulate(each.spec)[0]
        row, flat = rows[each.id], flattened(summary)
        assert row["error"] is None
        assert {name: row[name] for name in flat if name in row} == {n: v for n, v in flat.items() if n in row}
        assert (
            not {name for name in flat if not name.startswith(("spec.", "marks."))}
            - set(COLUMNS)
            - {"trace.assumptions", "machine", "tokens_per_s_interval"}
        )
        assert pair_of(row, "tokens_per_s_interval") == summary["tokens_per_s_interval"]
        assert row["spec.cache"] == str(each.spec.cache) and row["spec.machine"] == "compiled"
        assert row["open_loop"] == (each.spec.miss == "buddy") and row["synthetic"] is not None
        assert row["oracle"] == (each.spec.eviction == "belady")
        held = [ns for name, ns in summary["bounds"].items() if name.endswith("_ns")]
        assert row["bounds.best_ns"] == max(held) <= row["time_ns"] or each.spec.miss == "cpu"


def flattened(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every scalar of a summary by its path; the spec, whose columns are text, left out."""
    out: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict) and key not in ("spec", "policy_files"):
            out |= flattened(inner, f"{prefix}{key}.")
        elif not isinstance(inner, (list, dict)):
            out[prefix + key] = inner
    return out


def test_equal_keys_are_equal_values_and_the_oldest_go() -> None:
    made: list[str] = []

    def make(name: str, size: int) -> Any:
        def it() -> Any:
            made.append(name)
            return (np.zeros(size, np.int8), {"more": np.zeros(size, np.int8)})

        return it

    memo = Kept(100)
    first = memo(("a", 1), make("a", 20))
    assert memo(("a", 1), make("a", 20)) is first and made == ["a"]
    memo(("a", 1.0), make("float", 20))  # 1 == 1.0, but not to a parameter that must be whole
    assert made == ["a", "float"] and memo.bytes == 80
    memo(("a", 1), make("a", 20))
    memo(("b", 1), make("b", 10))
    memo(("c", 1), make("c", 10))  # 120 bytes: the float's go, asked for longest ago
    memo(("a", 1), make("a", 20))
    memo(("a", 1.0), make("float", 20))
    assert made == ["a", "float", "b", "c", "float"]


def test_the_answer_is_the_best_of_each_setting_that_an_engine_could_have(folder: Path) -> None:
    def told(**fields: Any) -> Row:
        plain = {name: None for name in COLUMNS_READ} | {
            "spec.hardware": "a",
            "spec.eviction": "lru",
            "spec.rerank": "none",
        }
        return {**plain, "synthetic": True, "open_loop": False, "oracle": False, "low": 0, **fields}

    rows = [
        told(tokens_per_s=2.0),
        told(tokens_per_s=3.0, **{"spec.eviction": "lfu"}),
        told(tokens_per_s=9.0, oracle=True, **{"spec.eviction": "belady"}),
        told(tokens_per_s=5.0, open_loop=True, **{
            "closed_loop.time_percent.low": -3, "closed_loop.time_percent.high": 1,
            "spec.miss": "drop", "quality.substituted_weight": 0.01, "quality.dropped_weight": 0.02}),
        told(tokens_per_s=1.0, **{"spec.hardware": "b"}),
        told(tokens_per_s=4.0, open_loop=True, **{
            "spec.hardware": "b", "spec.rerank": "adapmoe",
            "quality.substituted_weight": 0, "quality.dropped_weight": 0}),
        told(error="no"),
    ]  # fmt: skip
    assert answer(rows).splitlines() == [
        f"! {SYNTHETIC}",
        f"! {OPEN_LOOP}",
        "hardware a: 3.00 tokens/s  eviction lfu, rerank none",
        "hardware a: 5.00 tokens/s  eviction lru, miss drop, rerank none  LOSSY, open loop: 3.00% of the router weight"
        "; closed loop: time -3 .. +1 %",
        "hardware b: 1.00 tokens/s  eviction lru, rerank none",
        "hardware b: 4.00 tokens/s  eviction lru, rerank adapmoe"
        "  LOSSY, open loop: an unknown share of the router weight",
    ]


# --- who runs what ---


class FakePool:
    """Workers in this process; a run whose seed is in `deadly` kills its worker, those in `once` the first time."""

    def __init__(
        self, setup: Setup, deadly: Sequence[int] = (), once: Sequence[int] = (), stillborn: bool = False
    ) -> None:
        self.setup, self.deadly, self.once, self.stillborn = setup, deadly, list(once), stillborn
        self.started = 0
        self.happened: deque[WorkerEvent] = deque()
        self.tasks: list[list[int]] = []

    def start(self) -> int:
        self.started += 1
        self.happened.append(WorkerEvent(self.started, dead=self.stillborn, why="exit status 9"))
        return self.started

    def give(self, worker: int, task: Task) -> None:
        seeds = [r.spec.seed for r in task.runs if r.spec]
        self.tasks.append(seeds)
        dead = [seed for seed in seeds if seed in self.deadly or seed in self.once]
        self.once = [seed for seed in self.once if seed not in seeds]
        self.happened.append(
            WorkerEvent(worker, dead=True) if dead else WorkerEvent(worker, Worker(self.setup).run(task))
        )

    def events(self, timeout_s: float) -> Sequence[WorkerEvent]:
        return [self.happened.popleft()] if self.happened else []

    def close(self) -> None:
        pass


def seeded(folder: Path, n: int) -> tuple[list[Configuration], Setup]:
    (folder / "s.toml").write_text(f'trace = "t.npz"\nhardware = "h.toml"\nrepeats = {n}\nmax_steps = 3')
    runs = expand(read("s.toml"))
    return runs, session.inspect(runs)[0]


def test_a_run_that_kills_its_worker_is_tried_again_alone_then_a_row_with_an_error(folder: Path) -> None:
    runs, setup = seeded(folder, 60)
    pool = FakePool(setup, deadly=[7], once=[31])
    dispatcher = Dispatcher(pool, 2)
    rows = [row for batch in dispatcher.run(runs) for row in batch]
    assert sorted(row["id"] for row in rows) == sorted(r.id for r in runs)  # each once
    assert {row["spec.seed"]: row["error"] for row in rows if row["error"]} == {7: KILLED}
    assert pool.started == 2 + 3  # a new worker for each that died: twice by 7, once by 31
    assert pool.tasks.count([7]) >= 1 and [31] in pool.tasks
    assert dispatcher.totals.runs == 60


def test_the_time_begins_when_every_worker_is_ready(folder: Path) -> None:
    dispatcher = Dispatcher(FakePool(seeded(folder, 1)[1]), 2)
    dispatcher.warm_up([], ready=2)
    assert len(dispatcher._idle) == 2


def test_workers_that_die_as_they_start_end_the_sweep(folder: Path) -> None:
    runs, setup = seeded(folder, 2)
    with pytest.raises(SpecError, match="as they started: exit status 9"):
        list(Dispatcher(FakePool(setup, stillborn=True), 2).run(runs))


def test_after_the_deadline_nothing_is_given_out(folder: Path) -> None:
    runs, setup = seeded(folder, 8)
    pool = FakePool(setup)
    dispatcher = Dispatcher(pool, 2)
    assert list(dispatcher.run(runs, deadline=time.monotonic())) == [] and pool.tasks == []
    rows = [row for batch in dispatcher.run(runs, deadline=math.inf) for row in batch]
    assert len(rows) == 8


def test_a_run_that_never_ends_is_ended_with_its_worker_when_time_is_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefetcher of a user's own waits for ten minutes: the worker is gone before, and there is no row."""
    (folder / "own.py").write_text("import time\n\n\ndef late(trace, steps):\n    time.sleep(600)\n")
    (folder / "s.toml").write_text('trace = "t.npz"\nhardware = "h.toml"\nprefetch = "own.py:late"\nmax_steps = 3')
    runs = expand(read("s.toml"))
    monkeypatch.setattr("sim.search.evaluate.to_compile", lambda runs: [])
    pools: list[LocalPool] = []
    monkeypatch.setattr("sim.search.evaluate.LocalPool", lambda setup: pools.append(LocalPool(setup)) or pools[0])
    evaluate = Evaluator(1, 0.5, io.StringIO())
    try:
        assert evaluate(runs) == [] and pools[0].pids() == []
        assert evaluate(runs) == []  # and nobody is asked again
    finally:
        evaluate.close()


def test_a_killed_worker_loses_nothing(folder: Path) -> None:
    runs, setup = seeded(folder, 40)
    pool = LocalPool(setup)
    try:
        rows = []
        for batch in Dispatcher(pool, 1).run(runs):
            if not rows:
                os.kill(pool.pids()[0], signal.SIGKILL)
            rows += batch
    finally:
        pool.close()
    assert sorted(row["id"] for row in rows) == sorted(r.id for r in runs)
    assert not [row for row in rows if row["error"]]


def test_tasks_are_of_useful_size_and_what_shares_much_stands_together(folder: Path) -> None:
    (folder / "s.toml").write_text('trace = ["b", "a"]\ncache = [3, 2]\nmiss = ["fetch", "drop"]\nrepeats = 50')
    runs = expand(read("s.toml"))
    seconds, queue = Seconds(), Queue.of(runs, 2, Versions())
    for seen in (runs[0], runs[-1]):
        queue.versions.end(seen, done=True)
    assert [len(stretch) for stretch in queue.stretches] == [200, 200]
    assert {r.spec.trace for r in queue.stretches[0] if r.spec} == {"a"}
    assert len(queue.take(0, seconds)) == 1  # nothing is known yet
    seconds.learn(runs[200:210], 1.0)  # of trace a: 0.1 s each, so five are half a second
    taken = queue.take(0, seconds)
    assert len(taken) == 5 and len({(r.spec.trace, r.spec.seed) for r in taken if r.spec}) <= 2
    while queue.stretches[0]:
        queue.take(0, seconds)
    stolen = queue.take(0, seconds)[0].spec
    assert stolen is not None and stolen.trace == "b" and stolen.seed == 49  # the far end of the other's


# --- the folder ---


def table_of(path: Path) -> list[Row]:
    rows: list[Row] = pyarrow.parquet.read_table(path / "results.parquet").to_pylist()
    return rows


def parts_of(path: Path) -> list[str]:
    """Ids in the part files, with repetitions."""
    found = [pyarrow.parquet.read_table(part)["id"].to_pylist() for part in sorted(path.glob("parts/*.parquet"))]
    return [each for ids in found for each in ids]


def fake(monkeypatch: pytest.MonkeyPatch, **behaviour: Any) -> None:
    """Sweeps in this process, by one worker."""

    def pool(setup: Setup, engine: str, address: str, workers: int | None, runs: int) -> tuple[FakePool, int]:
        return FakePool(setup, **behaviour), 1

    monkeypatch.setattr(session, "_pool", pool)


def test_failing_configurations_are_rows_and_the_others_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch)
    (folder / "s.toml").write_text(
        'trace = ["t.npz", "no.npz"]\nhardware = "h.toml"\n'
        'eviction = ["lru", "lruu"]\ncache = [2, 0, "2B"]\nbatch = [1, "x"]'
    )
    assert sweep.main(["--config", "s.toml"]) == 0
    rows = table_of(folder / "s.sweep")
    assert len(rows) == 24
    good = [row for row in rows if row["error"] is None]
    assert [(row["spec.trace"], row["spec.eviction"], row["spec.cache"]) for row in good] == [("t.npz", "lru", "2")]
    errors = {(row["spec.eviction"], row["spec.cache"], row["spec.batch"]): row["error"] for row in rows[:12]}
    assert "did you mean lru" in errors["lruu", "2", 1]
    assert errors["lru", "2B", 1].startswith("cache: 2B: holds 2 experts")
    assert errors["lru", "0", 1] == "cache: 0: must be at least one slot"
    assert errors["lru", "2", None].startswith("batch: 'x'")
    assert {row["error"][:7] for row in rows[12:] if row["spec.batch"] and row["spec.cache"] != "0"} == {"no.npz:"}
    assert "23 of 24 runs failed" in capsys.readouterr().err
    (folder / "s.toml").write_text('trace = "no.npz"')
    assert sweep.main(["--config", "s.toml", "--out", "other"]) == 2  # nothing but failures


def test_the_same_twice_an_extension_and_another_sweep(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch)
    text = 'trace = "t.npz"\nhardware = "h.toml"\nmiss = "drop"\ncache = [2, 4]\nrepeats = 2'
    (folder / "s.toml").write_text(text)
    assert sweep.main(["--config", "s.toml", "--out", "a"]) == 0
    assert "OPEN LOOP" in capsys.readouterr().out
    first = (folder / "a/results.parquet").read_bytes(), (folder / "a/results.csv").read_bytes()
    assert sweep.main(["--config", "s.toml", "--out", "b"]) == 0
    assert first == ((folder / "b/results.parquet").read_bytes(), (folder / "b/results.csv").read_bytes())
    assert sweep.main(["--config", "s.toml", "--out", "a"]) == 0  # nothing to do
    assert first[0] == (folder / "a/results.parquet").read_bytes() and len(parts_of(folder / "a")) == 4
    (folder / "s.toml").write_text(text.replace("[2, 4]", "[2, 3, 4]"))
    assert sweep.main(["--config", "s.toml", "--out", "a"]) == 0
    assert [row["spec.cache"] for row in table_of(folder / "a")] == ["2", "2", "3", "3", "4", "4"]
    assert len(parts_of(folder / "a")) == len(set(parts_of(folder / "a"))) == 6  # the four were not run again
    (folder / "s.toml").write_text(text.replace("[2, 4]", "[2, 5]"))
    capsys.readouterr()
    assert sweep.main(["--config", "s.toml", "--out", "a"]) == 2
    assert "holds another sweep" in capsys.readouterr().err
    (folder / "s.toml").write_text(text.replace("[2, 4]", "[2, 3, 4]"))
    (folder / "h.toml").write_text(FIXED.replace("100", "101"))
    assert sweep.main(["--config", "s.toml", "--out", "a"]) == 2
    assert "h.toml is not the file that its rows were made from" in capsys.readouterr().err


def test_a_folder_of_something_else_and_a_part_of_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch)
    (folder / "s.toml").write_text('trace = "t.npz"\nhardware = "h.toml"')
    for out, hint in ((".", "is no sweep's folder"), ("h.toml", "is a file")):
        assert sweep.main(["--config", "s.toml", "--out", out]) == 2
        assert hint in capsys.readouterr().err
    assert sweep.main(["--config", "s.toml", "--out", "a"]) == 0
    part = next((folder / "a/parts").iterdir())
    part.write_bytes(part.read_bytes()[:100])
    capsys.readouterr()
    assert sweep.main(["--config", "s.toml", "--out", "a"]) == 2
    assert f"{part.relative_to(folder)}: is no part of a sweep" in capsys.readouterr().err


def test_many_parts_are_joined_and_a_join_cut_short_loses_and_repeats_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch)
    monkeypatch.setattr(store, "MOST_PARTS", 3)
    (folder / "s.toml").write_text('trace = "t.npz"\nhardware = "h.toml"\nrepeats = 7\ncache = [2, 4]')
    monkeypatch.setattr(dispatch, "TASK_S", 0.0)  # one run a task: fourteen parts
    assert sweep.main(["--config", "s.toml", "--out", "a"]) == 0
    names = sorted(path.name for path in folder.glob("a/parts/*"))
    assert names == ["part-000015.parquet", "part-000016.parquet", "part-000017.parquet"]  # 12 rows, 1, 1
    assert len(parts_of(folder / "a")) == len(set(parts_of(folder / "a"))) == 14
    first = (folder / "a/results.parquet").read_bytes()
    shutil.copy(folder / "a/parts/part-000016.parquet", folder / "a/parts/part-000003.parquet")  # not yet removed
    assert sweep.main(["--config", "s.toml", "--out", "a"]) == 0
    assert (folder / "a/results.parquet").read_bytes() == first


def test_one_process_at_a_time_and_failed_ones_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, deadly=[1])
    (folder / "s.toml").write_text('trace = "t.npz"\nhardware = "h.toml"\nrepeats = 3')
    assert sweep.main(["--config", "s.toml", "--out", "a"]) == 0
    assert [row["error"] for row in table_of(folder / "a")] == [None, KILLED, None]
    fake(monkeypatch)
    assert sweep.main(["--config", "s.toml", "--out", "a"]) == 0
    assert [row["error"] for row in table_of(folder / "a")] == [None, KILLED, None]  # a failure is a result
    assert sweep.main(["--config", "s.toml", "--out", "a", "--retry-failed"]) == 0
    assert [row["error"] for row in table_of(folder / "a")] == [None, None, None]
    runs = expand(read("s.toml"))
    holder = session.Session(folder / "a", {}, runs, sys.stderr)
    capsys.readouterr()
    assert sweep.main(["--config", "s.toml", "--out", "a"]) == 2
    assert "another process runs this sweep" in capsys.readouterr().err
    holder.close()


# --- killed ---

LONG = 'trace = "mixtral.npz"\nmax_steps = 300\neviction = ["lru", "fifo", "nope"]\ncache = [2, 4]\nrepeats = 50\n'


def started(folder: Path, out: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sim.sweep", "--config", "s.toml", "--out", out, "--workers", "1"]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Processes whose parent is this one."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps to find the workers")
def test_kill_9_in_the_middle_then_again_is_the_table_of_an_uninterrupted_sweep(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "s.toml").write_text(LONG)
    process = started(folder, "killed")
    until(lambda: len(list(folder.glob("killed/parts/*.parquet"))) >= 3)
    workers = children(process.pid)
    process.kill()
    process.communicate()
    done = parts_of(folder / "killed")
    assert 0 < len(done) < 300 and not (folder / "killed/results.parquet").exists()
    until(lambda: not [pid for pid in workers if alive(pid)])  # nobody is left behind
    (folder / "killed/parts/.part-000099.parquet.x").write_bytes(b"half a fi")
    monkeypatch.setattr(session, "_pool", lambda setup, *_: (FakePool(setup), 1))  # the rest and the other in here
    for out in ("killed", "whole"):
        assert sweep.main(["--config", "s.toml", "--out", out]) == 0
    for name in ("results.parquet", "results.csv"):
        assert (folder / "killed" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    every = parts_of(folder / "killed")
    assert every[: len(done)] == done and len(every) == len(set(every)) == 300  # none lost, none repeated
    assert not list(folder.glob("killed/parts/.*"))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(folder: Path) -> None:
    (folder / "s.toml").write_text(LONG)
    process = started(folder, "a b")
    until(lambda: len(list(folder.glob("a b/parts/*.parquet"))) >= 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == sweep.INTERRUPTED
    last = err.decode().splitlines()[-1]
    assert last.startswith("interrupted: ") and "Traceback" not in err.decode()
    assert last.endswith("go on: python -m sim.sweep --config s.toml --out 'a b' --workers 1")
    assert f"{len(parts_of(folder / 'a b')):,} of 300 runs are safe" in last


# --- Ray ---


def test_a_trace_that_a_worker_does_not_see_comes_over_the_network(folder: Path) -> None:
    runs, setup = seeded(folder, 2)
    here = Worker(setup).run(Task(runs)).rows
    for other in ("elsewhere", "different"):
        os.mkdir(other)
        os.chdir(other)
        if other == "different":
            npz.write("t.npz", random_trace(np.random.default_rng(4), tokens=40, layers=3, experts=8, k=2))
        worker = Worker(replace(setup, folder=os.getcwd(), check_traces=True))
        assert worker.run(Task(runs)) == Done((), unseen="t.npz")
        trace = npz.read(folder / "t.npz")
        worker.receive("t.npz", (trace.meta, trace.arrays()))
        assert worker.run(Task(runs)).rows == here
        os.chdir(folder)


def test_no_cluster_where_there_should_be_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'moe-offload-sim[ray]'")
    (folder / "s.toml").write_text('trace = "t.npz"\nhardware = "h.toml"')
    for address, hint in (("127.0.0.1:1", "no cluster there"), ("nowhere:port", "no cluster there")):
        assert sweep.main(["--config", "s.toml", "--pool", "ray", "--ray-address", address]) == 2
        assert hint in capsys.readouterr().err
    assert sweep.main(["--config", "s.toml", "--ray-address", "auto"]) == 2
    assert "ray-address: needs --pool ray" in capsys.readouterr().err
    assert sweep.main(["--config", "s.toml", "--pool", "rai"]) == 2
    assert "did you mean ray" in capsys.readouterr().err


def test_ray_with_a_node_killed_in_the_middle_gives_the_rows_of_the_local_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'moe-offload-sim[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the nodes' processes, wherever they start
    inspect, add = session.inspect, session.Store.add
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1)]

    def add_and_kill(store: session.Store, rows: Sequence[Row]) -> None:
        add(store, rows)
        if nodes and store.folder.name == "ray":
            cluster.remove_node(nodes.pop(), allow_graceful=False)

    def nowhere(runs: Sequence[Configuration]) -> tuple[Setup, dict[str, str]]:
        setup, files = inspect(runs)
        return replace(setup, folder="/nowhere"), files

    # t.npz is named relative to a folder that the workers do not have: it is put once; mixtral.npz they read themselves
    monkeypatch.setattr(session, "inspect", nowhere)
    monkeypatch.setattr(session.Store, "add", add_and_kill)
    (folder / "s.toml").write_text(
        'trace = ["t.npz", "mixtral.npz"]\nhardware = "h.toml"\nmax_steps = 300\ncache = [2, "9B"]\nrepeats = 40'
    )
    try:
        flags = ["--config", "s.toml", "--pool", "ray", "--ray-address", cluster.address, "--out", "ray"]
        assert sweep.main(flags) == 0
    finally:
        cluster.shutdown()
    assert not nodes  # killed
    monkeypatch.undo()
    os.chdir(folder)
    fake(monkeypatch)
    assert sweep.main(["--config", "s.toml", "--out", "local"]) == 0
    for name in ("results.parquet", "results.csv"):
        assert (folder / "ray" / name).read_bytes() == (folder / "local" / name).read_bytes()
    assert len(parts_of(folder / "ray")) == len(set(parts_of(folder / "ray"))) == 160


def test_a_terminal_is_told_every_few_seconds_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = [100.0], list[tuple[str, bool]]()
    monkeypatch.setattr(dispatch, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(dispatch, "doing", lambda what, at_once: told.append((what, at_once)))
    progress = dispatch.Progress(10, 2)
    for second, done in ((101.0, 1), (104.0, 4), (105.0, 9), (105.5, 10)):
        clock[0] = second
        progress.show(done)
    assert told == [
        ("0/10 runs on 2 workers", False),
        ("1/10 runs on 2 workers, 1.0 runs/s, 9 s left", False),
        ("4/10 runs on 2 workers, 1.0 runs/s, 6 s left", True),
        ("9/10 runs on 2 workers, 1.8 runs/s, 1 s left", False),
        ("10/10 runs on 2 workers, 1.8 runs/s, 0 s left", True),
    ]


# --- the page ---

PAGE = (ROOT / "docs" / "sweeps.md").read_text()


def test_the_example_of_the_page_is_a_sweep() -> None:
    import tomllib

    runs = expand(tomllib.loads(PAGE.split("```toml")[1].split("```")[0]))
    # hardware x cache x (lru, lfu, decayed of 3 decays) x (fetch, cpu, buddy of 2 taus) x budget x seeds x zip
    assert len(runs) == 2 * 3 * 5 * 4 * 2 * 2 * 2
    assert all(each.spec for each in runs)


def test_the_page_names_every_column() -> None:
    table = PAGE.split("### Columns")[1].split("### How fast")[0]
    named = {word for word in table.split("`") if word.replace("_", "").replace(".", "").replace("*", "").isalnum()}
    assert {name for name in COLUMNS if name not in named and f"{name.split('.')[0]}.*" not in named} == set()


def test_a_parameter_multiplies_the_configurations_whose_policy_has_it(tmp_path: Path) -> None:
    """Only the miss policy `random` has `late`: lru + fetch and random + fetch run once, the two with it twice: 6."""
    text = 'trace = "t"\neviction = ["lru", "random"]\nmiss = ["fetch", "random"]\n[set]\n{} = [0, 1]\n'
    for name in ("random.late", '"random.late"', "miss.random.late"):
        (tmp_path / "s.toml").write_text(text.format(name))
        runs = expand(read(tmp_path / "s.toml"))
        given = [run.spec.set for run in runs if run.spec is not None]
        assert len(runs) == 6 and sum(bool(each) for each in given) == 4
    (tmp_path / "s.toml").write_text(text.format("eviction.random.late"))
    runs = expand(read(tmp_path / "s.toml"))  # nobody has it: the runs that it names say so
    assert [run.spec.set for run in runs if run.spec is not None and run.spec.eviction == "lru"] == [{}, {}]
    assert all(run.spec.set for run in runs if run.spec is not None and run.spec.eviction == "random")


def test_the_files_of_a_sweep_stand_in_one_order(folder: Path) -> None:
    """They are written to sweep.json: an order of hashing would be another one in every process."""
    names = [f"{name}.npz" for name in "fbdace"]
    for name in names:
        shutil.copy("t.npz", name)
    _, digests = session.inspect(expand({"trace": names}))
    assert list(digests) == sorted(names)
