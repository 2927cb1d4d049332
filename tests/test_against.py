"""`analysis.against`: a run with one part scaled by a known factor is the measurement; that part and that factor must
come out, and what cannot be it must be said to."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import against
from analysis.comparing import own_times
from analysis.comparing.own_times import OwnTimes
from analysis.comparing.parts import PARTS, set_up_ns
from analysis.comparing.seen import Seen, seen
from analysis.comparing.why import MISSES, left, solved, why
from sim import run
from sim.machines.compiled import run as simulated
from sim.machines.record import RunRecord, load
from sim.prepare import Setting, prepare
from sim.spec import RunSpec
from tests.forked import Forks
from tests.pages import DOCS, DocPage
from traces.errors import UserError

BY_NAME = {part.name: part for part in PARTS}
FIXED = {
    "dense_ns": 400_000, "decide_ns": 30_000, "group_ns": 20_000, "expert_ns": 250_000, "cpu_expert_ns": 900_000,
    "transfer_ns": 1_500_000, "transfer_setup_ns": 500_000, "head_ns": 700_000,
}  # fmt: skip
# the catalog's durations depend on rows and context, so that parts differ in their pattern
CATALOG = {"trace": "mixtral.npz", "hardware": "rtx4090", "precision": "q4-k-m", "max_steps": 240, "batch": 3}


def setting_of(**fields: Any) -> Setting:
    return prepare(RunSpec.of({**CATALOG, **fields}))


def steps(record: RunRecord) -> OwnTimes:
    ms = (record.steps["end_ns"] - record.steps["begin_ns"]) / 1e6
    return OwnTimes("t.csv", ms, {"step": np.arange(len(ms))})


def noisy(own: OwnTimes, seed: int, share: float) -> OwnTimes:
    return replace(own, ms=own.ms * np.random.default_rng(seed).normal(1, share, len(own.ms)))


def hardware(folder: Path, **changed: int) -> str:
    lines = [f"{name} = {ns}" for name, ns in {**FIXED, **changed}.items()]
    path = folder / "fixed.toml"
    path.write_text("[fixed]\n" + "\n".join(lines) + "\n")
    return str(path)


# --- a part scaled is the part scaled ---


@pytest.mark.parametrize(
    ("name", "factor", "changed"),
    [
        ("link rate", 1.5, {"transfer_ns": 2_000_000}),  # 500 us of set-up stay, 1,000 us become 1,500
        ("link set-up", 3.0, {"transfer_ns": 2_500_000, "transfer_setup_ns": 1_500_000}),
        ("host memory rate", 2.0, {"cpu_expert_ns": 1_800_000}),
        ("GPU expert time", 0.5, {"expert_ns": 125_000}),
        ("dense part", 1.25, {"dense_ns": 500_000}),
        ("per layer", 2.0, {"decide_ns": 60_000, "group_ns": 40_000}),
        ("head", 3.0, {"head_ns": 2_100_000}),
        ("per step", 1.4, {"head_ns": 2_100_000}),  # ms that are added
    ],
)
def test_a_scaled_part_is_what_a_file_with_that_duration_gives(
    name: str, factor: float, changed: dict[str, int], tmp_path: Path
) -> None:
    more = {"transfer_chunk": "1MB", "miss": "cpu-admit", "cache": 2, "max_steps": 30}
    fields = {**CATALOG, **more, "hardware": hardware(tmp_path)}
    base = prepare(RunSpec.of(fields))
    hardware(tmp_path, **changed)
    there, here = prepare(RunSpec.of(fields)).plan, BY_NAME[name].plan(base, factor)
    for field in ("dense_ns", "head_ns", "decide_ns", "group_ns", "expert_ns", "cpu_expert_ns", "transfer_ns"):
        assert np.array_equal(getattr(here.costs, field), getattr(there.costs, field)), field
    assert here.on_miss is not None and there.on_miss is not None
    assert np.abs(here.on_miss.chunk_ns - there.on_miss.chunk_ns).max() <= 2  # rounded once more
    assert np.array_equal(simulated(here).steps["end_ns"], simulated(there).steps["end_ns"]) or name.startswith("link")


def test_of_a_transfer_the_catalog_knows_what_is_set_up() -> None:
    setting = setting_of(cache=4)
    link = setting.hardware.link
    assert link is not None and setting.engine.copies_per_expert == 1
    own = round(setting.engine.transfer_ns)
    assert (
        np.abs(
            set_up_ns(setting) - [link.setup_ns + link.per_copy_ns + own, link.follow_setup_ns + link.per_copy_ns + own]
        ).max()
        <= 1
    )


# --- it is found ---

# part, factor on its times, and a run in which it matters
CASES: dict[str, tuple[float, dict[str, Any]]] = {
    "link rate": (1.25, {"cache": 4}),
    "host memory rate": (1.4, {"cache": 4, "miss": "cpu", "batch": 1}),
    "GPU expert time": (1.5, {"cache": 8}),
    "dense part": (1.5, {"cache": 8}),
    "per layer": (1.8, {"cache": 8, "engine": "transformers", "engine_as_costs": True}),
    "head": (3.0, {"cache": 8}),
    "per step": (2.5, {"cache": 4}),
    "link set-up": (4.0, {"cache": 4, "engine": "transformers", "engine_as_costs": True}),
}


# what has the pattern of another part in such a run: once per step or layer is once per step; transfers of one size
NOT_ALONE = {"per layer", "per step", "link set-up"}


@pytest.mark.parametrize("name", CASES)
def test_the_part_that_was_scaled_is_named_first_with_its_factor(name: str) -> None:
    factor, fields = CASES[name]
    setting = setting_of(**fields)
    found = why(setting, steps(simulated(BY_NAME[name].plan(setting, factor))))
    mine = next(one for one in found.parts if one.part.name == name)
    assert mine.factor == pytest.approx(factor, rel=2e-3) and mine.left < 1e-5, found.parts
    assert mine is found.parts[0] or (mine.tied and name in NOT_ALONE), found.parts


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["link rate", "host memory rate", "GPU expert time", "dense part"])
def test_it_is_found_in_noise(name: str, seed: int) -> None:
    """3 % of each step's time: the factor within some percent, and the part first or not told apart from the first."""
    factor, fields = CASES[name]
    setting = setting_of(**fields)
    found = why(setting, noisy(steps(simulated(BY_NAME[name].plan(setting, factor))), seed, 0.03))
    mine = next(one for one in found.parts if one.part.name == name)
    assert mine.factor == pytest.approx(factor, rel=0.03) and mine.left < 0.05
    assert mine is found.parts[0] or mine.tied


def test_a_rate_given_by_a_flag_is_found_as_a_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command: the run of --link-gbps 16, the times of a link of 20 GB/s: x 1.25."""
    common = ["--trace", "mixtral.npz", "--hardware", "rtx4090", "--max-steps", "120"]
    for gbps in (16, 20):
        assert (
            run.main([*common, "--link-gbps", str(gbps), "--out", str(tmp_path / f"{gbps}"), "--record", "full"]) == 0
        )
    record, _ = load(tmp_path / "20" / "record.npz")
    decode = record.steps["prefill"] == 0
    ns = (record.steps["end_ns"] - record.steps["begin_ns"])[decode]
    (tmp_path / "t.csv").write_text("token,ns\n" + "".join(f"{i},{n}\n" for i, n in enumerate(ns)))
    capsys.readouterr()
    assert against.main([str(tmp_path / "t.csv"), str(tmp_path / "16"), str(tmp_path / "20"), "--json"]) == 0
    same, other = json.loads(capsys.readouterr().out)["runs"]  # the nearest first
    assert same["run"] == "20" and same["measured_over_simulated"] == 1
    best = other["parts"][0]
    assert (best["part"], best["of"]) == ("link rate", "rate") and best["factor"] == pytest.approx(1.25, rel=1e-4)
    assert other["compared"] == int(decode.sum()) and other["left_out"] == 0
    assert against.main([str(tmp_path / "t.csv"), str(tmp_path / "16")]) == 0
    told = capsys.readouterr().out
    assert "link rate                 x 1.250" in told and "! SYNTHETIC" in told
    assert "python -m sim.calibrate_engine TIMINGS.csv" in told and "python -m runtime.calibrate" in told


def test_fewer_misses_are_found_between_two_sizes_of_the_cache() -> None:
    """Times of five slots for a run of four: it is the misses, by those of the two runs; no rate has the pattern."""
    four, five = setting_of(cache=4, batch=1), setting_of(cache=5, batch=1)
    records = [simulated(each.plan) for each in (four, five)]
    found = why(four, steps(records[1]))
    best = found.parts[0]
    few, many = (int(each.layer["misses"].sum()) for each in reversed(records))
    assert best.part is MISSES and best.factor == pytest.approx(few / many, rel=1e-3) and best.left < 1e-3
    assert found.parts[1].left > 0.03 and not found.parts[1].tied


def test_what_no_factor_reaches_is_said_not_to_be_it() -> None:
    setting = setting_of(cache=4, batch=1)
    own = steps(simulated(setting.plan))
    found = {one.part.name: one for one in why(setting, replace(own, ms=own.ms * 3)).parts}
    assert found["head"].factor is None and found["head"].why_not.startswith("would have to be more than x 10, which")
    assert found["host memory rate"].factor is None and "has none of it" in found["host memory rate"].why_not
    less = {one.part.name: one for one in why(setting, replace(own, ms=own.ms * 0.9)).parts}
    assert less["per step"].factor is None and "less than nothing" in less["per step"].why_not


@pytest.mark.parametrize(("name", "ms"), [("host visit", 0.5), ("per layer", 0.2), ("link set-up", 0.7)])
def test_what_a_run_has_none_of_is_added_to(name: str, ms: float) -> None:
    """`ideal` takes no time per layer, and going to the host takes none: no factor makes 500 us of nothing."""
    setting = setting_of(cache=4, batch=1, max_steps=120, miss="cpu" if name == "host visit" else "fetch")
    part = BY_NAME[name]
    assert part.more is not None
    found = why(setting, steps(simulated(part.more(setting, ms))))
    mine = next(one for one in found.parts if one.part.name == name)
    assert mine.part.added and mine.factor == pytest.approx(ms, rel=2e-3) and mine.left < 1e-4, found.parts
    assert mine is found.parts[0] or mine.tied


def test_times_that_no_part_explains_and_those_of_another_unit_are_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--trace", "mixtral.npz", "--hardware", "rtx4090", "--max-steps", "80", "--out", str(tmp_path / "r")]
    assert run.main([*flags, "--record", "full"]) == 0
    record, _ = load(tmp_path / "r" / "record.npz")
    us = ((record.steps["end_ns"] - record.steps["begin_ns"]) / 1e3)[record.steps["prefill"] == 0]
    for name, each in (("us", us), ("wild", us / 1e3 * (1 + np.arange(len(us)) % 2 * 3))):
        (tmp_path / name).write_text("".join(f"{value}\n" for value in each))
        capsys.readouterr()
        assert against.main([str(tmp_path / name), str(tmp_path / "r")]) == 0
        told = capsys.readouterr().out
        assert ("are these times in us?" in told) == (name == "us")
        assert ("no part alone explains this" in told) or name == "us"


def test_one_figure_tells_no_parts_apart(tmp_path: Path) -> None:
    setting = setting_of(cache=4, batch=1)
    record = simulated(BY_NAME["link rate"].plan(setting, 1.25))
    ns = int((record.steps["end_ns"] - record.steps["begin_ns"])[record.steps["prefill"] == 0].sum())
    tokens = int((record.steps["prefill"] == 0).sum())
    path = tmp_path / "t.csv"
    path.write_text(f"metric,value\ndecode tok/s,{tokens * 1e9 / ns!r}\n")
    found = why(setting, own_times.read(str(path)))
    link = next(one for one in found.parts if one.part.name == "link rate")
    assert link.factor == pytest.approx(1.25, rel=1e-3)
    assert all(one.tied for one in found.parts[1:] if one.factor is not None)


def test_a_sum_is_met_where_a_line_bends() -> None:
    """max(3, 5 f): 4 at 0.8, within a few tries; 3 is met anywhere up to 0.6."""
    tries: list[float] = []

    def total(factor: float) -> float:
        tries.append(factor)
        return max(3.0, 5 * factor)

    assert solved(total, 4.0, 0.1, 1.0) == pytest.approx(0.8, rel=1e-4) and len(tries) < 20
    assert total(solved(total, 3.0, 0.1, 1.0)) == 3.0


# --- what is compared with what ---


def test_places_are_those_of_the_record() -> None:
    """Of requests and their tokens: a gap ends with the step, and begins with the request's token before."""
    setting = setting_of(cache=4, batch=2)
    record = simulated(setting.plan)
    r, ends = record.requests, record.steps["end_ns"]
    decode = np.flatnonzero(record.steps["prefill"] == 0)
    row = 1
    own = OwnTimes("t", np.ones(3), {"request": np.full(3, r["request"][row]), "token": np.array([0, 1, 10**6])})
    found = seen(own, record)
    first, second = decode[r["first_decode"][row]], decode[r["first_decode"][row] + 1]
    gaps = [ends[first] - ends[r["last_prefill_step"][row]], ends[second] - ends[first]]
    assert found.left_out == 1 and found.of(record).tolist() == [gap / 1e6 for gap in gaps]
    whole = seen(OwnTimes("t", np.ones(1), {"request": r["request"][[row]]}), record)
    assert whole.of(record)[0] == (r["last_ns"][row] - r["admitted_ns"][row]) / 1e6
    with pytest.raises(UserError, match="none of its 1 times is of this run"):
        seen(OwnTimes("t", np.ones(1), {"request": np.array([999])}), record)


def test_what_is_left_is_of_the_mean() -> None:
    """Prompt steps off by 10 of 100 ms on average, decode steps by 1 and -1 of 10: each a tenth of its phase's mean."""
    measured, prefill = np.array([90.0, 110.0, 10.0, 10.0]), np.array([True, True, False, False])
    some = Seen("step", measured, lambda record: measured, None, prefill)
    assert left(some, np.array([100.0, 100.0, 9.0, 11.0])) == pytest.approx(0.1)


LLAMA = """
print: prompt eval time =     120.00 ms /    60 tokens (    2.00 ms per token,   500.00 tokens per second)
print:        eval time =    4000.00 ms /   100 runs   (   40.00 ms per token,    25.00 tokens per second)
"""


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        (LLAMA, {"prefill tok/s": 500.0, "ms/token": 40.0}),
        ("| llama 8x7B | 26 GiB | 99 | pp512 | 80.21 ± 0.50 |\n| llama 8x7B | 26 GiB | 99 | tg128 | 12.50 ± 0.10 |\n",
         {"prefill tok/s": 80.21, "decode tok/s": 12.5}),
        ('{"mean_ttft_ms": 2000, "median_tpot_ms": 41.5, "p99_itl_ms": 60}',
         {"ttft mean ms": 2000.0, "tpot p50 ms": 41.5, "itl p99 ms": 60.0}),
        ("metric,value\nprefill tok/s,80\ntpot p95 ms,50\n", {"prefill tok/s": 80.0, "tpot p95 ms": 50.0}),
    ],
)  # fmt: skip
def test_what_engines_say_of_themselves_is_read(text: str, figures: dict[str, float], tmp_path: Path) -> None:
    (tmp_path / "t").write_text(text)
    assert own_times.read(str(tmp_path / "t")).figures == figures


@pytest.mark.parametrize(
    "text", ["1.5\n2\n", "ms\n1.5\n2\n", "token,us\n0,1500\n1,2000\n", "\ufefftoken,s\n0,0.0015\n1,0.002"]
)
def test_times_of_steps_are_read_in_every_unit(text: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(text)
    found = own_times.read(str(tmp_path / "t"))
    assert found.ms.tolist() == pytest.approx([1.5, 2.0]) and found.places["token"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("token,ms\n0,-1\n", "line 2: ms = '-1': must be a number"),
        ("token,ms\n0,nan\n", "line 2: ms = 'nan'"),
        ("token,ms\n0.5,1\n", "line 2: token = '0.5': must be a whole number from 0"),
        ("token,ms\n3,1\n3,2\n", "line 3: token (3,): is on line 2, too"),
        ("step,token,ms\n1,1,1\n", "needs step, token, request, or request and token"),
        ("token,seconds\n1,1\n", "needs one of ns, us, ms, s"),
        ("token,ms\n1\n", "line 2: has not as many columns"),
        ("metric,value\ndecode tokens/s,3\n", "did you mean decode tok/s"),
        ('{"mean_ttft_ms": "fast"}', "must be a number of ms"),
        ('{"other": 1}', "has none of mean_ttft_ms"),
        ("", "no rows"),
    ],
)
def test_what_is_wrong_with_the_times_is_one_line(text: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(UserError) as error:
        own_times.read(str(tmp_path / "t"))
    assert wrong in str(error.value) and "\n" not in str(error.value)


def test_a_run_that_would_come_out_otherwise_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = hardware(tmp_path)
    flags = ["--trace", "mixtral.npz", "--hardware", file, "--max-steps", "10", "--out", str(tmp_path / "r")]
    assert run.main(flags) == 0
    (tmp_path / "t.csv").write_text("1\n2\n3\n")
    hardware(tmp_path, dense_ns=1)
    for more, wrong in (([], "run it again"), (["--trace", "tiny-moe.npz"], "is not the one that it ran on")):
        capsys.readouterr()
        assert against.main([str(tmp_path / "t.csv"), str(tmp_path / "r"), *more]) == 2
        assert wrong in capsys.readouterr().err


def test_the_page_prints_what_it_shows(tmp_path: Path, commands: Forks) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "against.csv").write_text((DOCS / "against.csv").read_text())
    page = DocPage("against.md")
    assert len(page.blocks) == 1
    page.check(tmp_path, commands)
    for metric in own_times.FIGURES[:3]:
        assert f"`{metric}`" in page.text
