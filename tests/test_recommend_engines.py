"""Recommendations within one engine, and engines beside policies: what is tried, what is refused, what is said."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim import catalog, engines, on_miss, recommend, run
from sim.costs.memory_split import TooSmall
from sim.engines import behaving
from sim.errors import SpecError
from sim.policies.registry import TABLES
from sim.search.advice import text
from sim.search.engine_space import EngineSpace
from sim.search.judging import Case, Wish, _interval
from sim.search.recommendation import Recommendation
from sim.search.side_by_side import ENGINE, NOT_DONE, POLICY, SideBySide, why_not
from sim.search.space import Candidate
from sim.search.within_engine import WithinEngine
from sim.spec import RunSpec
from sim.sweeps.answer import by_prompts
from sim.sweeps.config import Configuration
from sim.sweeps.rows import Row
from sim.sweeps.session import inspect
from sim.sweeps.worker import Task, Worker
from traces.format import npz
from traces.synthetic import PRESETS, generate

EVERY = [name for name in catalog.names("engine") if behaving(name)]
GIGABYTE = 10**9


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trace of Mixtral's shape, synthetic, three requests with prompts of 40 tokens."""
    path = tmp_path_factory.mktemp("traces") / "small.npz"
    shape = replace(PRESETS["mixtral-8x7b"], requests=3, prompt=(40, 40), generation=(12, 16))
    npz.write(path, generate(shape, 1))
    return str(path)


def here(runs: Sequence[Configuration]) -> Sequence[Row]:
    """Rows by one worker in this process."""
    return Worker(inspect(runs)[0]).run(Task(runs)).rows


def wish(trace: str, engine: str | None = None, lossy: float = 0.0, **more: Any) -> Wish:
    base = {"trace": trace, "hardware": "rtx4090", "precision": "q4-k-m"} | ({"engine": engine} if engine else {})
    return Wish(base, 4096, 16 * GIGABYTE, lossy, **more)


def again(command: str) -> dict[str, Any]:
    """The summary of a command that was printed."""
    return run.simulate(run.spec_of(run.parser().parse_args(shlex.split(command)[3:])))[0]


# --- what is tried ---


def space_of(trace: str, engine: str, fixed: dict[str, Any] | None = None, lossy: bool = False) -> EngineSpace:
    found = behaving(engine)
    assert found is not None
    fields = {"trace": trace, "hardware": "rtx4090", "engine": engine, "engine_as_costs": True, "precision": "q4-k-m"}
    return EngineSpace.within(found, Case(wish(trace), fields).setting, fixed or {}, lossy)


def test_the_settings_of_llama_cpp_by_hand(small: str) -> None:
    """Which end of the model is on the GPU (2), dense parts of the layers left out (2), and the rule of many rows at
    its own 32, at 8, or off: prompts have 40 rows, so 128 and more are as good as off, and chunks all alike."""
    space = space_of(small, "llama.cpp")
    assert space.knobs["layers"] == ("first", "last") and space.knobs["bulk_rows"] == ("32", "8", "none")
    assert space.knobs["prefill_chunk"] == (512,) and space.knobs["dense_on_host"] == (None, "without-slots")
    every = space.every(640)
    assert len(every) == 2 * 2 * 3 == len({repr(sorted(each.items(), key=str)) for each in every})
    off = [sum(each[knob] != values[0] for knob, values in space.knobs.items()) for each in every]
    assert off == sorted(off) and off[0] == 0  # the engine's own first, then ever more knobs
    assert space.every(5) == every[:5]


def test_chunks_that_make_other_steps_are_tried(tmp_path: Path) -> None:
    """Prompts of 1,500 tokens: 512 and 1,024 are two sizes, 2,048 is the whole prompt."""
    shape = replace(PRESETS["mixtral-8x7b"], requests=2, prompt=(1500, 1500), generation=(4, 4))
    npz.write(tmp_path / "t.npz", generate(shape, 1))
    trace = str(tmp_path / "t.npz")
    assert space_of(trace, "llama.cpp").knobs["prefill_chunk"] == (512, 1024, 2048)
    assert space_of(trace, "ktransformers").knobs["prefill_chunk"] == (4096, 512, 1024)
    assert space_of(trace, "llama.cpp").knobs["bulk_rows"] == ("32", "8", "128", "512", "none")
    assert "prefill_chunk" not in space_of(trace, "llama.cpp", {"prefill_chunk": 256}).knobs


def test_what_is_given_is_not_searched(small: str) -> None:
    assert "layers" not in space_of(small, "llama.cpp", {"n_cpu_moe": 3}).knobs
    assert "bulk_rows" not in space_of(small, "llama.cpp", {"bulk": "none"}).knobs
    assert space_of(small, "llama.cpp", {"bulk_rows": "64"}).knobs["bulk_rows"] == ("64",)
    assert space_of(small, "mixtral-offloading", {"eviction": "lfu"}).knobs["eviction"] == ("lfu",)


def test_parameters_of_an_engines_own_policies(small: str) -> None:
    """Its own value first, then those that a search of the policy tries."""
    assert space_of(small, "llama.cpp+cache").parameters["miss"]["cpu-admit"]["inserts"] == (2, 1, 8)
    assert space_of(small, "llama.cpp+pool").parameters["miss"]["cpu-admit"]["inserts"] == (8, 2, 1)
    assert space_of(small, "freetoken").parameters["miss"]["split"] == {}


def test_what_is_lossy_or_lacks_something_is_counted_with_its_reason(small: str, tmp_path: Path) -> None:
    plain = space_of(small, "ktransformers")
    assert plain.knobs["defer"] == (0,)
    assert plain.left_out["defer 1: is lossy, and --max-lossy-weight is 0"] == 1
    assert space_of(small, "ktransformers", lossy=True).knobs["defer"] == (0, 1, 2)
    assert set(plain.knobs["placement"]) == {"first", "popular", "global-popular"}
    bare = generate(replace(PRESETS["mixtral-8x7b"], requests=1, generation=(20, 20)), 1)
    npz.write(tmp_path / "t.npz", replace(bare, weights=None))
    less = space_of(str(tmp_path / "t.npz"), "ktransformers", lossy=True)
    assert less.knobs["placement"] == ("first",) and less.knobs["defer"] == (0,)
    assert less.left_out["placement popular: is fitted, and nothing is set aside"] == 1
    assert less.left_out["defer 2: needs `weights`"] == 1


def test_rules_that_never_fetch_have_one_list() -> None:
    tables = {**TABLES["miss"], **TABLES.get("bulk", {})}
    assert {name for name, policy in tables.items() if policy.kind in on_miss.NEVER_FETCH} == {*engines.NEVER_FETCH}


def test_of_speeds_that_tie_the_prompts_decide() -> None:
    """Within a thousandth of the first: 100, 99.95 and 99.9; 99.8 is slower, and begins a group of its own."""
    found = [(99.8, 9.0), (100.0, 1.0), (99.9, 3.0), (99.95, 2.0), (99.75, 10.0)]
    order = [(99.9, 3.0), (99.95, 2.0), (100.0, 1.0), (99.75, 10.0), (99.8, 9.0)]
    assert by_prompts(found, lambda pair: pair, 0.001) == order
    assert by_prompts(found, lambda pair: pair, 0.0) == sorted(found, reverse=True)


def test_what_is_no_answer() -> None:
    row = {"error": None, "memory.fits": True, "open_loop": False}
    sizes = {"dense": 3, "kv": 1, "slots": 12, "staging": 1, "reserve": None, "gpu": 16}
    big = {"memory.fits": False} | {f"memory.{k}": None if v is None else v * GIGABYTE for k, v in sizes.items()}
    assert why_not(row, False) is None and why_not(None, False) == NOT_DONE
    assert why_not(row | {"error": "no"}, False) == "no"
    assert why_not(row | big, False) == "needs 17.00 GB of the GPU, which has 16.00"
    assert why_not(row | {"open_loop": True}, True) is None
    assert str(why_not(row | {"open_loop": True}, False)).startswith("is lossy")


# --- the answer within one engine ---


@pytest.mark.parametrize("engine", EVERY)
def test_every_setting_runs_fits_and_is_what_its_command_gives(engine: str, small: str) -> None:
    asked = WithinEngine(wish(small, engine, 0.1, candidates=20))
    out = asked.search(here)
    assert out["search"]["failed"] == 0 and out["refused"] == dict(asked.space.left_out)
    assert out["engine"]["words"] == out["best"]["policy"] and out["engine"]["name"] == engine
    assert out["memory"]["fits"] and out["search"]["candidates"] == len(asked.space.every(20)) <= 20
    summary = again(out["command"])
    assert summary["memory"]["fits"] and summary["memory"]["gpu"] == 16 * GIGABYTE
    assert (summary["time_ns"], summary["tokens_per_s"]) == (out["best"]["time_ns"], out["best"]["tokens_per_s"])
    assert summary["engine"]["words"] == out["best"]["policy"]
    for rival in out["beats"].values():
        assert rival["tokens_per_s"] * (1 - 0.001) <= out["best"]["tokens_per_s"]
    figures = [(row["tokens_per_s"], row["prompt_tokens_per_s"]) for row in out["ranked"]]
    assert figures == by_prompts(figures, lambda pair: pair, 0.001)
    told = text(out)
    assert out["command"] in told and out["best"]["policy"] in told and told.startswith(f"{engine}, ")


def test_the_other_end_of_the_model_fits_too(small: str) -> None:
    """llama.cpp's fit keeps the first layers; --n-cpu-moe N, the last: as many, since layers are of one size."""
    asked = WithinEngine(wish(small, "llama.cpp"))
    first = asked.space.every(1)[0]
    assert asked._room(first) == {}
    last: Candidate = {**first, "layers": "last"}
    room = asked._room(last)
    fit = run.simulate(asked._spec(first))[0]["slots"]["total"]
    turned = run.simulate(asked._spec(last))[0]
    assert room == {"n_cpu_moe": 32 - fit // 8} and turned["slots"]["total"] == fit and turned["memory"]["fits"]
    other = WithinEngine(wish(small, "ik_llama.cpp"))  # whose --n-cpu-moe puts the last ones on the CPU, as its fit
    assert str(other._room({**other.space.every(1)[0], "layers": "last"})["cache"]).startswith("layers:")


def test_what_is_given_holds_for_every_setting(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--hardware rtx4090 --precision q4-k-m --vram 16GB --engine llama.cpp --n-cpu-moe 20 --workers 1 --json"
    assert recommend.main(["--trace", small, *flags.split()]) == 0
    out = json.loads(capsys.readouterr().out)
    assert {row["residents"] for row in out["ranked"]} == {"first 20 of 32 MoE layers on the CPU"}
    assert out["engine"]["you_set"]["n_cpu_moe"] == 20 and "--n-cpu-moe 20" in out["command"]


def test_what_comes_a_layer_late_is_said(small: str) -> None:
    out = WithinEngine(wish(small, "ktransformers", 0.1, fixed={"defer": 1})).search(here)
    summary = again(out["command"])
    late = summary["deferred"] / summary["slots_wanted"]
    assert out["best"]["deferred"] == late > 0 == out["best"]["lost_router_weight"]
    assert f"LOSSY, open loop: 0.00% of the router weight, and {late:.2%} of the experts come a layer late" in text(out)


def test_after_the_time_limit_the_answer_is_of_what_was_done(small: str) -> None:
    asked = WithinEngine(wish(small, "llama.cpp", time_limit_s=5.0))
    out = asked.search(lambda runs: here(runs[:2]))
    assert (out["search"]["ended"], out["search"]["compared"]) == ("time-limit", 2)
    assert again(out["command"])["time_ns"] == out["best"]["time_ns"]


BAD: dict[str, tuple[list[str], str]] = {
    "layers without an engine": (["--n-cpu-moe", "3"], "n_cpu_moe: 3: is for one engine's settings; needs --engine"),
    "of costs alone": (
        ["--engine", "llama.cpp", "--engine-as-costs", "-ot", "x=CPU"],
        "override_tensor: x=CPU: is for",
    ),
    "of an engine without": (["--engine", "fused", "--defer", "1"], "defer: 1: is for one engine's settings"),
    "what the engine cannot": (["--engine", "llama.cpp", "--eviction", "lfu"], "eviction: lfu: llama.cpp has"),
    "not this engine's": (["--engine", "moe-infinity", "--n-cpu-moe", "3"], "moe-infinity has no --n-cpu-moe"),
    "lossy without leave": (["--engine", "ktransformers", "--defer", "1"], "defer: 1: is lossy; needs a --max-lossy"),
    "no room": (["--engine", "llama.cpp", "--vram", "1GB"], "it needs --vram"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, small: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags, hint = BAD[name]
    assert recommend.main(["--trace", small, "--hardware", "rtx4090", "--workers", "1", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert hint in captured.err


def test_an_engine_that_does_not_run_as_it_comes_says_why_once(tmp_path: Path) -> None:
    """One request: nothing is set aside, so fiddler has no list of what is most used; its other placements run."""
    npz.write(tmp_path / "t.npz", generate(replace(PRESETS["mixtral-8x7b"], requests=1, generation=(9, 9)), 1))
    out = WithinEngine(wish(str(tmp_path / "t.npz"), "fiddler")).search(here)
    assert "is fitted and needs --calibration" in out["floor_error"]
    told = text(out)
    assert f"fiddler as it comes does not run: {out['floor_error']}" in told and "that was tried beats" not in told
    whys = [why for why in out["refused"] if "global-popular" in why]
    assert whys == ["placement global-popular: is fitted, and nothing is set aside"]


def test_an_only_choice_that_fails_is_refused_in_one_wording(small: str) -> None:
    """fiddler's own placement where it is given no other, and nothing is set aside: its run says so."""
    case = Case(wish(small), {"trace": small, "hardware": "rtx4090", "precision": "q4-k-m"})
    found = behaving("fiddler")
    assert found is not None
    only = found.model_copy(update={"options": {**found.options, "placement": ["global-popular"]}})
    space = EngineSpace.within(only, replace(case.setting, calibration=None), {}, False)
    assert space.knobs["placement"] == ("global-popular",)
    assert not [why for why in space.left_out if why.startswith("placement")]


@pytest.mark.parametrize(("engine", "lossy"), [("llama.cpp", False), ("ktransformers", True)])
def test_leave_to_lose_something_is_said_to_be_of_no_use_where_it_is(engine: str, lossy: bool, small: str) -> None:
    told = f"{engine} has nothing lossy to choose: --max-lossy-weight 0.1 changes nothing"
    assert (told in WithinEngine(wish(small, engine, 0.1, candidates=2)).search(here)["notes"]) != lossy
    assert told not in WithinEngine(wish(small, engine, candidates=2)).search(here)["notes"]


@pytest.mark.parametrize(("batch", "why"), [(1, None), (2, "one batch"), (8, "one batch")])
def test_requests_of_one_batch_have_no_interval(small: str, batch: int, why: str | None) -> None:
    """Two requests are judged, one is set aside. Decoded in the same steps they are no two observations."""
    asked = wish(small, "llama.cpp", candidates=2)
    out = WithinEngine(replace(asked, base={**asked.base, "batch": batch})).search(here)
    assert out["judged"]["no_interval"] == why
    assert (out["best"]["tokens_per_s_over_requests"] is None) == (why is not None)
    assert all((rival["ratio_interval"] is None) == (why is not None) for rival in out["beats"].values())
    assert (f"({why}: no interval over requests)" in text(out)) == (why is not None)


def test_draws_that_make_no_difference_have_no_interval() -> None:
    assert _interval(np.full(9, 85.34)) is None and _interval(np.full(9, 1.0) + np.arange(9) * 1e-15) is None
    assert _interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


# --- side by side ---


def test_every_engine_stands_beside_the_best_policies(small: str) -> None:
    out = Recommendation(wish(small, candidates=8)).search(here)
    rows = out["engines"]
    assert sorted(row["name"] for row in rows if row["kind"] != POLICY) == sorted(EVERY)
    assert next(row["name"] for row in rows if row["kind"] == POLICY) == "best"
    good = [row for row in rows if row["error"] is None]
    assert rows[: len(good)] == good and len(good) > 10
    figures = [(row["tokens_per_s"], row["prompt_tokens_per_s"]) for row in good]
    assert figures == by_prompts(figures, lambda pair: pair, 0.001)
    for row in good:
        summary = again(row["command"])
        assert (summary["tokens_per_s"], summary["memory"]["fits"]) == (row["tokens_per_s"], True)
        assert summary["memory"]["gpu"] == 16 * GIGABYTE
    assert {row["name"]: row["kind"] for row in rows}["llama.cpp"] == ENGINE
    assert {row["name"]: row["kind"] for row in rows}["moe-infinity-paper"] == "unreleased"


def test_the_search_sees_nothing_of_them(small: str) -> None:
    """With an engine's costs asked for there is no table, and everything else is the same."""
    plain = Recommendation(wish(small, candidates=8)).search(here)
    alone = Recommendation(wish(small, "ideal", candidates=8)).search(here)
    assert "engines" not in alone
    screen = ("answer", "table", "would_help")
    theirs = {key: value for key, value in plain.items() if key not in ("engines", "best_engine", "tie", *screen)}
    assert theirs == {key: value for key, value in alone.items() if key not in screen}


def test_of_an_engine_its_costs_alone(small: str) -> None:
    asked = wish(small, "llama.cpp", candidates=8)
    out = Recommendation(replace(asked, base={**asked.base, "engine_as_costs": True})).search(here)
    assert "engines" not in out and "eviction" in out["best"]["policy"]
    assert "--engine-as-costs" in out["command"] and again(out["command"])["time_ns"] == out["best"]["time_ns"]


def test_who_cannot_run_says_why(tmp_path: Path) -> None:
    """One request: nothing is set aside, so fiddler has no list of what is most used."""
    npz.write(tmp_path / "t.npz", generate(replace(PRESETS["mixtral-8x7b"], requests=1, generation=(9, 9)), 1))
    out = Recommendation(wish(str(tmp_path / "t.npz"), candidates=4)).search(here)
    error = {row["name"]: row["error"] for row in out["engines"]}
    assert "is fitted and needs --calibration" in error["fiddler"] and error["llama.cpp"] is None
    assert f"cannot run   fiddler: {error['fiddler']}" in text(out)


def test_the_answer_begins_with_the_fastest_engine_that_exists(small: str) -> None:
    """lru + fetch, on an engine without overhead, is far behind engines that compute on the CPU."""
    out = Recommendation(wish(small, candidates=1)).search(here)
    first = next(row for row in out["engines"] if row["error"] is None and row["kind"] == ENGINE)
    assert out["best_engine"] == first and first["tokens_per_s"] > out["best"]["tokens_per_s"]
    assert out["answer"]["kind"] == ENGINE
    assert "no policy that was tried beats lru + fetch" in text(out) and "nothing" not in text(out)


def test_who_was_not_reached_could_perhaps_run(small: str) -> None:
    """Three of the engines are done when the time is over, and all the candidates."""
    names = EVERY[3:]
    out = Recommendation(wish(small, candidates=2)).search(
        lambda runs: here([run for run in runs if run.spec is None or run.spec.engine not in names])
    )
    assert f"not run      {', '.join(names)}: {NOT_DONE}" in text(out) and "cannot run" not in text(out)


def test_where_no_policy_fits_the_engines_are_the_answer(small: str) -> None:
    """At 6 GB one expert of every layer does not fit beside the dense weights; engines hold fewer."""
    asked = replace(wish(small, candidates=2), vram=6 * GIGABYTE)
    with pytest.raises(TooSmall) as refusal:
        _ = Recommendation(asked).split
    out = Recommendation(asked).search(here)
    assert out["best"] is None and out["refusal"].startswith(f"{refusal.value} (policies count dense weights in bf16; ")
    assert out["best_engine"]["name"] == out["engines"][0]["name"] == out["spec"]["engine"]
    assert again(out["command"])["tokens_per_s"] == out["best_engine"]["tokens_per_s"]
    lines = text(out).splitlines()
    assert lines[0].startswith(f"{out['answer']['name']}: ")
    assert [line for line in lines if line.startswith("policies")] == [f"policies     none: {out['refusal']}"]
    with pytest.raises(TooSmall):
        Recommendation(wish_of(asked, "ideal")).search(here)  # with its costs there are no engines beside it


def wish_of(asked: Wish, engine: str) -> Wish:
    return replace(asked, base={**asked.base, "engine": engine})


def test_where_nobody_fits_the_least_that_one_needs_is_said(small: str) -> None:
    """With so much memory that engine fits, with 0.02 GB less none does."""
    asked = replace(wish(small), vram=GIGABYTE // 100)
    with pytest.raises(SpecError, match=r"of the engines .* needs least: --vram") as refusal:
        Recommendation(asked).search(here)
    _, _, told = str(refusal.value).partition("of the engines ")
    name, needs = told.split()[0], float(told.split()[-1].removesuffix("GB"))
    assert "\n" not in str(refusal.value)
    enough = Recommendation(replace(asked, vram=round(needs * GIGABYTE))).search(here)
    assert [row["name"] for row in enough["engines"] if row["error"] is None] == [name]
    with pytest.raises(SpecError, match="needs least"):
        Recommendation(replace(asked, vram=round((needs - 0.02) * GIGABYTE))).search(here)


def test_each_length_is_run_once_and_what_was_not_done_is_said(small: str) -> None:
    case = Case(wish(small), {"trace": small, "hardware": "rtx4090", "precision": "q4-k-m"})
    asked: list[int] = []

    def evaluate(runs: Sequence[Configuration], most: int) -> Sequence[Row]:
        asked.append(len(runs))
        return here(runs[:most])

    spec = RunSpec.of({"trace": small, "hardware": "rtx4090", "max_steps": 5})
    own = Configuration("x", spec)
    beside = SideBySide(case, partial(evaluate, most=100))
    for _ in range(2):
        assert [row["id"] for row in beside([own])] == ["x"]
    assert asked == [len(EVERY), 1, 1]  # the engines first: of them is the answer
    rated = case.rate(spec, "p")
    assert all(row["error"] is None for row in beside.rows({"p": rated}))
    cut = SideBySide(case, partial(evaluate, most=3))
    assert len(cut([own])) == 1 and [row["error"] for row in cut.rows({"p": rated})].count(NOT_DONE) == len(EVERY) - 3


def test_a_card_larger_than_the_hardware_s_is_said_once(small: str) -> None:
    for asked, search in (
        (wish(small, "llama.cpp", candidates=2), WithinEngine),
        (wish(small, candidates=2), Recommendation),
    ):
        out = search(replace(asked, vram=40 * GIGABYTE)).search(here)
        assert out["notes"].count("40.00 GB is more than the 25.25 GB that rtx4090 has") == 1
