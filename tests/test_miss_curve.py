"""The miss curve: equal to the simulator's misses at every capacity, its prediction to the ns where it says so, and the
command line."""

import csv
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import miss_curve
from analysis.curves import stack_distances
from analysis.curves.curve import PLACEMENTS, Curve, curve, residents, rows, setting_of, simulated
from analysis.curves.stack_distances import lru_misses
from sim.core import jit
from sim.core.plan import Choice, Plan
from sim.machines import compiled
from sim.outcome.packing import Wants
from sim.prepare import Setting
from tests.captures import FOLDER, capture_names
from tests.gen import REUSING_FOLDER, random_trace, traces
from tests.plans import plan, random_plan
from traces.errors import UserError
from traces.format import npz
from traces.statistics.reuse import reuse_histogram

FIXED = "[fixed]\ndense_ns = 10\nexpert_ns = {expert}\ntransfer_ns = 100\ndecide_ns = 3\nhead_ns = 4\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trace `t.npz` with prompts, hardware `h.toml` with fixed durations."""
    npz.write(
        tmp_path / "t.npz", random_trace(np.random.default_rng(5), tokens=60, layers=3, experts=9, k=3, prompt=0.4)
    )
    (tmp_path / "h.toml").write_text(FIXED.format(expert=5))
    return tmp_path


def fields(folder: Path, **more: Any) -> dict[str, Any]:
    return {"trace": str(folder / "t.npz"), "hardware": str(folder / "h.toml"), **more}


# --- misses ----------------------------------------------------------------------------------------------------------


def lru_plan(seed: int) -> Plan:
    """A random plan (batches, prefill steps, scopes, groups, depths, durations) with lru, fetch and no prefetch."""
    return replace(random_plan(seed), eviction=Choice("lru", 0), miss=Choice("fetch", 0), prefetch=None)


def landing_order(base: Plan, placement: str, rng: np.random.Generator) -> Any:
    """Global ids [scopes, experts of a scope]: at c slots the first c of a row are resident, in this order."""
    layers, n = base.experts.shape[1], base.n_experts
    ids = np.arange(layers * n).reshape(layers, n)
    if placement == "random":
        ids = rng.permuted(ids, axis=1) if not base.pooled else rng.permutation(ids.reshape(-1)).reshape(layers, n)
        return ids.reshape(1, -1) if base.pooled else ids
    return ids.T.reshape(1, -1) if base.pooled else ids


def ranks(order: Any, placement: str) -> Any:
    rank = np.full(order.size, -1, np.int64)
    if placement != "empty":
        rank[order] = np.arange(order.shape[1])
    return rank


def counted(base: Plan, slots: int, residents: Any) -> tuple[Any, Any]:
    """The simulator's (misses, visits that miss), int64 [2, scopes] and [2]: in decode and in prefill steps."""
    scopes = len(base.slots)
    record = compiled.run(replace(base, slots=np.full(scopes, slots), residents=residents), full=True)
    v = record.groups["visits"]
    kind, scope = base.step_prefill[v["step"]].astype(int), v["layer"] if scopes > 1 else 0 * v["layer"]
    misses = np.bincount(kind * scopes + scope, v["misses"], 2 * scopes).astype(np.int64)
    return misses.reshape(2, scopes), np.bincount(kind, v["misses"] > 0, 2).astype(np.int64)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_capacity_misses_what_the_simulator_misses(placement: str) -> None:
    """Layer by layer, in prefill and in decode steps, on plans of every kind that lru and fetch can have."""
    compared = 0
    for seed in range(120):
        base = lru_plan(seed)
        layers, visits = base.experts.shape[1], len(base.step_prefill) * base.experts.shape[1]
        order = landing_order(base, placement, np.random.default_rng(seed))
        wants, kind = Wants.of(base), np.repeat(base.step_prefill.astype(np.int64), layers)
        one = np.ones(visits, np.int64)
        shape = (base.n_experts, layers, base.pooled)
        found = lru_misses(wants.offset, wants.expert, kind, one, *shape, ranks(order, placement))
        kinds = len(found.uses)
        for slots in range(1, order.shape[1] + 1):
            residents = order[:, : 0 if placement == "empty" else slots].reshape(-1)
            misses, missing = counted(base, slots, residents)
            assert found.uses[:, :, slots].tolist() == misses[:kinds].tolist(), (seed, slots)
            assert found.weight[:, :, slots].sum(axis=1).tolist() == missing[:kinds].tolist(), (seed, slots)
            compared += kinds
    assert compared > 1000


@given(
    trace=traces(max_tokens=60, max_layers=3, max_experts=12, max_k=4),
    how=st.fixed_dictionaries(
        {
            "cache_scope": st.sampled_from(["global", "global", "layer"]),
            "placement": st.sampled_from(PLACEMENTS),
            "batch": st.integers(1, 5),
            "as_decode": st.booleans(),
            "seed": st.integers(0, 99),
        },
        optional={"prefill_chunk": st.integers(1, 9)},
    ),
)
@settings(REUSING_FOLDER, max_examples=60)
def test_every_capacity_of_a_run_misses_what_the_simulator_misses(folder: Path, trace: Any, how: Any) -> None:
    """From the trace and the flags on: batches, prompts in pieces, slots without an expert, each placement."""
    npz.write(folder / "t.npz", trace)
    how = {**how, "as_decode": how["as_decode"] or bool(trace.prefill.all())}
    setting = setting_of(fields(folder, **how))
    found = curve(setting)
    for slots in found.slots.tolist():
        misses, _ = counted(setting.plan, slots, residents(setting, slots))
        assert found.misses[:, :, slots - 1].tolist() == misses.tolist(), slots


@pytest.mark.parametrize("seed", range(5))
def test_wide_visits_miss_what_the_simulator_misses(seed: int) -> None:
    """8 to 40 of 48 experts a visit: many that stay turn at once, and back (which takes a few visits to come about)."""
    rng, n = np.random.default_rng(seed), 48
    chosen = [rng.permutation(n)[:wide] for wide in rng.integers(8, 41, 60)]
    steps = np.split(np.arange(sum(map(len, chosen))), np.cumsum([len(part) for part in chosen])[:-1])
    base = plan(np.concatenate(chosen)[:, None, None].tolist(), n, 1, [step.tolist() for step in steps])
    wants, zeros, rank = Wants.of(base), np.zeros(60, np.int64), rng.permutation(n)
    found = lru_misses(wants.offset, wants.expert, zeros, zeros + 1, n, 1, False, rank)
    for slots in range(1, n + 1):
        misses, missing = counted(base, slots, np.argsort(rank)[:slots])
        assert found.uses[0, :, slots].tolist() == misses[0].tolist(), slots
        assert found.weight[0, :, slots].sum() == missing[0], slots


@pytest.mark.parametrize("name", capture_names())
def test_captures_miss_what_the_simulator_misses(name: str) -> None:
    setting = setting_of({"trace": str(FOLDER / f"{name}.npz"), "as_decode": True, "max_steps": 150})
    found = curve(setting)
    for slots in {found.cliff, len(found.slots) // 2, len(found.slots) - 1}:
        assert simulated(setting, slots)["misses"] == found.misses[:, :, slots - 1].sum()


def test_a_visit_can_miss_more_with_a_slot_more() -> None:
    """Why LRU on this machine is no stack algorithm: the last visit misses twice with one slot, thrice with two.

    Wanted, one visit a step, by four tokens, the cache empty: 0 4 | 4 1 3 0 | 0 4 2. With one slot 4 stays of the first
    visit; it hits in the second, the others are fetched, and 0 stays, the last. With two slots 0 and 4 hit and run
    first, 1 and 3 are fetched and stay.
    """
    wanted = [[[0]], [[4]], [[4]], [[1]], [[3]], [[0]], [[0]], [[4]], [[2]]]
    steps = [[0, 1], [2, 3, 4, 5], [6, 7, 8]]
    found = []
    for slots in (1, 2):
        record = compiled.run(plan(wanted, 5, slots, steps, residents=[]), full=True)
        found.append(record.groups["visits"]["misses"].tolist())
    wants = Wants.of(plan(wanted, 5, 1, steps))
    curves = lru_misses(wants.offset, wants.expert, np.arange(3), np.ones(3, np.int64), 5, 1, False, np.full(5, -1))
    assert found == [[2, 3, 2], [2, 2, 3]] == curves.uses[:, 0, 1:3].T.tolist()


def test_with_one_expert_a_visit_it_is_the_reuse_distance() -> None:
    """Mattson's stack distances, counted by another spelling (traces.statistics.reuse) in an empty cache."""
    trace = random_trace(np.random.default_rng(8), tokens=200, layers=2, experts=12, k=1, requests=1)
    offset, expert = np.arange(401), (trace.experts.reshape(-1) + 12 * np.tile([0, 1], 200)).astype(np.int32)
    zeros = np.zeros(400, np.int64)
    found = lru_misses(offset, expert, zeros, zeros, 12, 2, False, np.full(24, -1))
    histogram = reuse_histogram(trace)
    for slots in range(13):
        assert found.uses[0, :, slots].tolist() == histogram[:, slots:].sum(axis=1).tolist()


# --- work -------------------------------------------------------------------------------------------------------------


def wants_of(steps: int, layers: int, experts: int, wide: int, prompts: int) -> tuple[Any, ...]:
    """Arguments of lru_misses: one pool; each visit of the first `prompts` steps wants all experts of its layer, every
    other `wide` of them."""
    rng, visits = np.random.default_rng(1), steps * layers
    width = np.where(np.arange(visits) < prompts * layers, experts, wide)
    chosen = [rng.permutation(experts)[:n] + v % layers * experts for v, n in enumerate(width)]
    offset, zeros = np.append(0, np.cumsum(width)), np.zeros(visits, np.int64)
    expert, rank = np.concatenate(chosen).astype(np.int32), rng.permutation(layers * experts)
    return offset, expert, zeros, zeros + 1, experts, layers, True, rank


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """analysis.curves.stack_distances as plain Python."""
    for name in ("choice", "inner", "inlined"):
        monkeypatch.setattr(jit, name, lambda function: function)
    spec = importlib.util.spec_from_file_location("plain_stack_distances", stack_distances.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines_run(path: str, call: Callable[[], Any]) -> tuple[int, Any]:
    """How many lines of that file the call runs, and what it returns."""
    lines, before = 0, sys.gettrace()

    def each(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return each

    sys.settrace(lambda frame, event, _: each if frame.f_code.co_filename == path else None)
    try:
        found = call()
    finally:
        sys.settrace(before)
    return lines, found


@pytest.mark.parametrize(
    "twice",
    [
        lambda n: wants_of(4, 2, n, 4, 4),  # experts, all wanted by every visit
        lambda n: wants_of(24, 2, n, 4, 2),  # experts, all wanted at first, few later
        lambda n: wants_of(20, 2, n, 4, 0),  # experts, few wanted
        lambda n: wants_of(n, 2, 32, 4, 1),  # steps
    ],
)
def test_twice_as_much_is_twice_the_work_and_a_little(plain: Any, twice: Callable[[int], Any]) -> None:
    """n log n from 16 to 32 to 64: at most 2 x 5 / 4 and 2 x 6 / 5; n squared would be 4."""
    work = []
    for n in (16, 32, 64):
        given = twice(n)
        lines, found = lines_run(plain.__file__, lambda given=given: plain.lru_misses(*given))
        work.append(lines)
        assert np.array_equal(found, lru_misses(*given))
    assert work[1] / work[0] < 3 > work[2] / work[1], work


def test_rows_look_at_a_curve_as_often_however_long_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, looks = setting_of(fields(folder)), []
    for n in (20, 200):
        seen: list[Curve] = []
        monkeypatch.setattr(Curve, "decode_misses", property(lambda c, seen=seen: seen.append(c) or c.misses[0, 0]))
        assert len(rows(setting, made(list(range(n, 0, -1))), [])) == n
        looks.append(len(seen))
    assert looks[0] == looks[1] > 0


def test_a_pool_of_ten_thousand_experts(folder: Path) -> None:
    """256 experts in 40 layers, 8 a token: prompts of 60 rows, of which a visit wants most experts, then decode steps
    of two requests."""
    rng = np.random.default_rng(3)
    trace = random_trace(rng, tokens=140, layers=40, experts=256, k=8, requests=2, prompt=0.8, weights=False)
    npz.write(folder / "t.npz", trace)
    setting = setting_of(fields(folder, cache_scope="global", batch=2))
    found = curve(setting)
    assert len(found.slots) == 10_240 and found.cliff > 320
    for slots in (1, found.cliff, 2_000, 5_120, 7_500, 10_239):
        misses, _ = counted(setting.plan, slots, residents(setting, slots))
        assert found.misses[:, :, slots - 1].tolist() == misses.tolist(), slots


# --- time ------------------------------------------------------------------------------------------------------------


def decode_ns(setting: Setting, slots: int) -> int:
    first = residents(setting, slots)
    steps = compiled.run(replace(setting.plan, slots=np.full(len(setting.plan.slots), slots), residents=first)).steps
    return int((steps["end_ns"] - steps["begin_ns"])[steps["prefill"] == 0].sum())


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("group", ["one", "ready", "all"])
def test_the_prediction_is_exact_where_it_says_so(folder: Path, scope: str, group: str) -> None:
    """One token a step, a visit's experts together (3 x 5) no longer than a transfer (100)."""
    setting = setting_of(fields(folder, cache_scope=scope, expert_group=group))
    found = curve(setting)
    for slots in range(found.cliff, len(found.slots) + 1):
        predicted = found.fixed_ns + found.decode_misses[slots - 1] * found.transfer_ns - found.beside_ns[slots - 1]
        assert predicted == decode_ns(setting, slots)


def test_the_error_is_shown_where_experts_outlast_a_transfer(folder: Path) -> None:
    (folder / "h.toml").write_text(FIXED.format(expert=150))
    setting = setting_of(fields(folder))
    found = curve(setting)
    line = rows(setting, found, [4])[3]
    said = simulated(setting, 4)["tokens_per_s"]
    assert line["simulated_tokens_per_s"] == said
    assert line["error"] == pytest.approx(line["tokens_per_s"] / said - 1)
    assert 0 < abs(line["error"]) < 0.2


def test_a_curve_of_another_policy_is_refused(folder: Path) -> None:
    setting = setting_of(fields(folder))
    for change in ({"eviction": Choice("fifo", 2)}, {"miss": Choice("drop", 1)}, {"warmup_steps": 1}):
        with pytest.raises(UserError, match="eviction lru, miss fetch"):
            curve(replace(setting, plan=replace(setting.plan, **change)))


def test_a_miss_too_many_is_our_failure(folder: Path) -> None:
    setting = setting_of(fields(folder))
    found = curve(setting)
    with pytest.raises(RuntimeError, match="the simulator missed"):
        rows(setting, replace(found, misses=found.misses + 1), [4])


# --- knee and cliff --------------------------------------------------------------------------------------------------


def made(misses: list[int], cliff: int = 1) -> Curve:
    n = len(misses)
    both = np.array([[misses], [[0] * n]])
    zeros = np.zeros(n, np.int64)
    return Curve(np.arange(1, n + 1), both, np.array([100, 0]), 10, 100, 5, zeros, cliff, None)


def test_the_knee_is_furthest_above_the_straight_line() -> None:
    """Hits 0 60 80 90 100 over slots 1 .. 5: above the line by 0, .35, .30, .15, 0."""
    assert made([100, 40, 20, 10, 0]).knee() == (2, pytest.approx(0.35))
    assert made([100, 75, 50, 25, 0]).knee()[1] == pytest.approx(0)
    assert made([100, 40, 20, 10, 0], cliff=2).knee() == (3, pytest.approx(20 / 40 - 1 / 3))
    assert made([5, 5, 5]).knee() == (1, 0.0) and made([5, 0]).knee() == (1, 0.0)


def test_the_cliff_is_what_a_step_wants(folder: Path) -> None:
    trace = npz.read(folder / "t.npz")
    assert curve(setting_of(fields(folder))).cliff == 3
    assert curve(setting_of(fields(folder, cache_scope="global"))).cliff == 9
    pairs = curve(setting_of(fields(folder, batch=2, as_decode=True)))
    assert 3 < pairs.cliff <= 6 and pairs.tokens == trace.n_tokens


# --- the command -----------------------------------------------------------------------------------------------------


def call(capsys: pytest.CaptureFixture[str], folder: Path, *flags: Any) -> str:
    assert miss_curve.main([str(folder / "t.npz"), "--hardware", str(folder / "h.toml"), *map(str, flags)]) == 0
    return capsys.readouterr().out


def test_the_formats_say_the_same(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    text = call(capsys, folder)
    # the curve is nearly a straight line: its knee is none, and no row is marked with it
    assert "SYNTHETIC" in text and "cliff  3 slots" in text and "hardly one" in text and text.count("knee") == 1
    whole = json.loads(call(capsys, folder, "--format", "json"))
    assert miss_curve.main([str(folder / "t.npz"), "--hardware", str(folder / "h.toml"), "--format", "csv"]) == 0
    said = capsys.readouterr()
    assert "SYNTHETIC" in said.err
    lines = list(csv.DictReader(io.StringIO(said.out)))
    assert [int(line["slots"]) for line in lines] == [row["slots"] for row in whole["rows"]] == list(range(1, 10))
    assert [float(line["hit_rate"]) for line in lines] == [row["hit_rate"] for row in whole["rows"]]
    assert whole["rows"][-1]["misses"] == 0 and whole["rows"][-1]["hit_rate"] == 1
    assert np.sum(whole["misses_by_layer"], axis=0).tolist() == [row["misses"] for row in whole["rows"]]
    assert [row["slots"] for row in whole["rows"] if row["simulated_tokens_per_s"]] == sorted({3, whole["knee"], 4, 8})
    assert whole["trace"]["real"] is False and any("SYNTHETIC" in note for note in whole["notes"])


def test_what_is_checked_can_be_chosen(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    for flag, expected in (("none", []), ("9,2", [2, 9])):
        whole = json.loads(call(capsys, folder, "--format", "json", "--check", flag))
        assert [row["slots"] for row in whole["rows"] if row["simulated_tokens_per_s"]] == expected


def test_the_page_asks_nobody(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    for name in ("a.html", "b.html"):
        call(capsys, folder, "--out", folder / name)
    text = (folder / "a.html").read_text()
    assert text == (folder / "b.html").read_text()
    assert "SYNTHETIC" in text and "cliff 3 slots" in text and "default-src 'none'" in text
    assert "<script src" not in text and "<link" not in text and len(text) < 8_000_000


def test_the_shipped_sample_says_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert miss_curve.main(["mixtral.npz", "--max-steps", "40", "--format", "json", "--check", "none"]) == 0
    whole = json.loads(capsys.readouterr().out)
    # 81920 MiB = 85.90 GB less 3.26 of dense weights and KV hold 7 slots in each of 32 layers (78.92 GB), not 8 (90.19)
    assert (whole["cliff"], whole["fits"]) == (2, 7)
    assert "fits" in whole["rows"][6]["marks"]


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    npz.write(folder / "p.npz", random_trace(np.random.default_rng(5), tokens=20, prompt=1.0))
    for args, wrong in (
        (["t.npz", "--placement", "popular"], "must be one of first, random, empty"),
        (["t.npz", "--check", "4,x"], "must be slots such as 4,8"),
        (["t.npz", "--check", "10"], "must lie in 1 .. 9"),
        (["t.npz", "--format", "tabel"], "did you mean table?"),
        (["t.npz", "--prefetch", "popular"], "unknown argument"),
        (["t.npz", "--batch", "0"], "batch: 0: "),
        (["t.npz", "--max-steps", "0"], "max_steps: 0: "),
        (["t.npz", "--out", "no/such/folder.html"], "No such file"),
        (["p.npz"], "--as-decode runs its prompts"),
        ([], "TRACE"),
    ):
        flags = [str(folder / arg) if arg.endswith(".npz") else arg for arg in args]
        assert miss_curve.main([*flags, "--hardware", str(folder / "h.toml")]) == 2
        err = capsys.readouterr().err
        assert wrong in err and err.startswith("error: ") and err.count("\n") == 1, err
