"""Engines side by side: rows are plain runs, reasons are read off their parts, ratios are those of the machine."""

import csv
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.comparing.by_ratio import by_ratio
from analysis.comparing.ratio_svg import ratio_svg
from analysis.engines import main as figure
from analysis.pages.engine_section import engines as section
from analysis.pages.page import render
from analysis.reading.load import load
from sim import catalog
from sim.experiments.__main__ import main
from sim.experiments.engines import NO_ENGINE
from sim.experiments.fastest import LITTLE, TIE, Known, why_fastest
from sim.experiments.phases import PARTS, Phase, phase
from sim.simulation import simulate
from sim.spec import RunSpec
from tests.gen import random_trace
from tests.test_report import Page
from traces.format import npz

FIVE = "llama.cpp,llama.cpp+cache,vllm-uva,hf-v5,fiddler"
COMMON: dict[str, Any] = {"hardware": "rtx4090", "precision": "q4", "vram": "8GB", "context": 40, "calibration": 0.3}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six requests of Mixtral's shape, `t.npz`; 8 GB hold a part of its experts. `one.npz`: a single request."""
    folder = tmp_path_factory.mktemp("traces")
    for name, requests in (("t", 6), ("one", 1)):
        shape: dict[str, Any] = {"tokens": 160, "layers": 32, "experts": 8, "k": 2, "prompt": 0.6, "skew": 1.5}
        made = random_trace(np.random.default_rng(3), requests=requests, model="mixtral-8x7b", **shape)
        npz.write(folder / f"{name}.npz", made)
    return folder / "t.npz"


@pytest.fixture(scope="module")
def kept(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one command keeps: five engines, two ratios beside the machine's own."""
    out = tmp_path_factory.mktemp("out")
    words = ["--trace", trace, "--hardware", "rtx4090", "--precision", "q4", "--vram", "8GB", "--engines", FIVE]
    assert main(["engines", *map(str, words), "--context", "200", "--ratios", "0.25", "2", "--out", str(out)]) == 0
    return out


def rows_of(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "engines.csv").read_text().splitlines()
    return list(csv.DictReader(io.StringIO("\n".join(lines[1:]))))


def plain(trace: Path, engine: str, **more: Any) -> tuple[dict[str, Any], dict[str, Phase]]:
    fields = {**COMMON, "context": 200, "trace": str(trace), "engine": engine, **more}
    out, record = simulate(RunSpec.of(fields), full=True)
    return out, {"decode": phase(record, False), "prompts": phase(record, True)}


@pytest.mark.parametrize("engine", FIVE.split(","))
def test_a_row_is_a_plain_run(engine: str, trace: Path, kept: Path) -> None:
    row = next(row for row in rows_of(kept) if row["engine"] == engine)
    out, phases = plain(trace, engine)
    assert float(row["tokens_per_s"]) == pytest.approx(out["tokens_per_s"], rel=1e-5)
    assert float(row["prompt_tokens_per_s"]) == pytest.approx(out["prompt_tokens_per_s"], rel=1e-5)
    assert row["residents"] == out["engine"]["residents"] and row["words"] == out["engine"]["words"]
    assert float(row["h2d_gb_demand"]) == pytest.approx(out["h2d_bytes"]["demand"] / 1e9, rel=1e-5, abs=1e-9)
    decode = phases["decode"]
    assert float(row["decode_cpu_wait_percent"]) == pytest.approx(100 * (decode.share("cpu_wait") or 0), rel=1e-4)
    assert float(row["ratio"]) == pytest.approx(25.5 / 62.3, rel=1e-5)  # rtx4090: PCIe 4 x16, desktop-ddr5


@pytest.mark.parametrize("engine", FIVE.split(","))
def test_the_two_phases_are_the_run(engine: str, trace: Path) -> None:
    out, phases = plain(trace, engine)
    both, whole = list(phases.values()), out["breakdown_ns"]
    assert [each.tokens for each in both] == [out["tokens"], out["prompt_tokens"]]
    for part in ("stall", "cpu_wait", "experts"):
        assert sum(each.parts_ns[part] for each in both) == whole[part], part
    assert sum(each.parts_ns["rest"] for each in both) == sum(whole[part] for part in ("dense", "decide", "head"))
    assert sum(each.h2d_bytes for each in both) == sum(size or 0 for size in out["h2d_bytes"].values())
    assert (sum(each.wanted for each in both), sum(each.hits for each in both)) == (out["wanted"], out["hits"])
    assert sum(each.on_host for each in both) == out["host"]["experts"]
    assert sum(each.remote for each in both) == out["remote_reads"]["experts"]


def test_rows_are_sorted_and_the_reference_is_no_engine(kept: Path) -> None:
    own = [row for row in rows_of(kept) if float(row["ratio"]) == pytest.approx(25.5 / 62.3, rel=1e-5)]
    speeds = [float(row["tokens_per_s"]) for row in own]
    assert speeds == sorted(speeds, reverse=True)
    assert {row["engine"] for row in own} == {*FIVE.split(","), NO_ENGINE}
    assert {row["tokens"] for row in own} == {own[0]["tokens"]}  # all judge the same requests
    text = (kept / "engines.md").read_text()
    assert "SYNTHETIC" in text and "NOT CALIBRATED" in text and "calibration 0.3, set aside for every engine" in text
    assert not re.search(rf"{re.escape(NO_ENGINE)} (is|are) fastest", text)


def test_the_reason_is_read_off_the_parts(trace: Path, kept: Path) -> None:
    found = {engine: plain(trace, engine)[1]["decode"] for engine in FIVE.split(",")}
    ranked = sorted(found, key=lambda name: found[name].time_ns / found[name].tokens)
    best = found[ranked[0]]
    slower = [name for name in ranked if found[name].ms() > best.ms() * (1 + TIE)]
    other = found[slower[0]]
    line = next(line for line in (kept / "engines.md").read_text().splitlines() if "in decode, " in line)
    assert line.startswith(f"- `t`: {ranked[0]} is fastest in decode, {best.tokens * 1e9 / best.time_ns:,.2f} tokens/s")
    ratio = (other.time_ns / other.tokens) / (best.time_ns / best.tokens)
    lead = other.ms() - best.ms()
    assert f", {ratio:.2f} x {slower[0]}, {lead:,.2f} ms a token less: " in line
    assert signed(line.split(". What the others")[0]) == pytest.approx(lead, rel=LITTLE)
    assert all(name in line for name in slower)


def signed(line: str) -> float:
    """The sum of the parts that a reason names, ms of a token."""
    parts = line.split(" ms a token less: ")[1].split("; together ")[0]
    found = re.findall(r"([\d.,]+) ms (less|more) (?:waiting for|of) ", parts)
    return sum(float(ms.replace(",", "")) * (1 if word == "less" else -1) for ms, word in found)


def by_hand(**more: Any) -> Phase:
    """Ten tokens. parts: ms of all of them."""
    parts = {"stall": 0, "cpu_wait": 40, "experts": 10, "rest": 50} | more.pop("parts", {})
    parts = {part: round(ms * 1_000_000) for part, ms in parts.items()}
    counts = {"tokens": 10, "wanted": 100, "hits": 50, "on_host": 50, "on_gpu": 50, "remote": 0, "h2d_bytes": 0} | more
    return Phase(time_ns=sum(parts.values()), parts_ns=parts, **counts)


def test_a_reason_by_hand() -> None:
    # b: 100 ms, so 10 ms a token, 4 of them waiting; a: 7.5 ms, 1.5 of waiting for 2 instead of 5 experts: 2/5 is near
    # 1.5/4; c: 30 ms, 20 of stall
    a = by_hand(parts={"cpu_wait": 15}, on_host=20, hits=80)
    found = {"b": by_hand(), "a": a, "c": by_hand(parts={"stall": 200})}
    assert why_fastest(found, "decode") == (
        "a is fastest in decode, 133.33 tokens/s, 1.33 x b, 2.50 ms a token less: 2.50 ms less waiting for the host "
        "(1.50 instead of 4.00), because of 2.00 instead of 5.00 experts a token on the host; resident is 80.0 instead "
        "of 50.0 % of what is wanted. What the others lose against a they lose most of all in waiting for the link (c)"
    )
    assert why_fastest({"a": by_hand()}, "decode") == "a is fastest in decode, 100.00 tokens/s; nobody else ran"
    assert why_fastest({"a": by_hand(tokens=0)}, "decode") is None


def test_a_reason_accounts_for_the_lead() -> None:
    # a against b: 26 ms less of stall and 25 more of waiting for the host come to 1, experts to 2 more: the lead is 3
    a, b = by_hand(parts={"cpu_wait": 250, "experts": 40}), by_hand(parts={"stall": 260, "cpu_wait": 0, "experts": 60})
    assert why_fastest({"a": a, "b": b}, "decode") == (
        "a is fastest in decode, 29.41 tokens/s, 1.09 x b, 3.00 ms a token less: 2.00 ms less of the GPU's time for "
        "experts (4.00 instead of 6.00), with as much to do; 1.00 ms less waiting for the link and the host together "
        "(link 0.00 instead of 26.00; host 25.00 instead of 0.00); together 3.00 ms less"
    )


SMALL_PARTS = st.fixed_dictionaries({part: st.integers(0, 500) for part in PARTS})


@settings(deadline=None)
@given(SMALL_PARTS, SMALL_PARTS)
def test_the_parts_that_are_named_come_to_the_lead(mine: dict[str, int], theirs: dict[str, int]) -> None:
    found = {name: by_hand(parts=parts) for name, parts in (("a", mine), ("b", theirs)) if any(parts.values())}
    line = why_fastest(found, "decode")
    if line is None or len(found) < 2:
        return
    (fast, slow) = sorted(each.ms() for each in found.values())
    assert ("no winner" in line) == (slow <= fast * (1 + TIE))
    if "no winner" in line:
        assert " ms " not in line
    else:
        assert signed(line) == pytest.approx(slow - fast, rel=LITTLE, abs=0.03)  # figures of two digits


def test_a_tie_has_no_winner() -> None:
    # 10 and 10.05 ms a token; the next has 12
    tied = {"a": by_hand(), "b": by_hand(parts={"rest": 50.5}), "c": by_hand(parts={"rest": 70})}
    assert why_fastest(tied, "decode") == (
        "no winner in decode: a (100.00 tokens/s) and b (99.50 tokens/s) are within 1 %. a is 1.20 x c, 2.00 ms a "
        "token less: 2.00 ms less of dense parts and the engine's own work (5.00 instead of 7.00)"
    )
    assert "ms" not in str(why_fastest({"a": tied["a"], "b": tied["b"]}, "decode"))


def test_figures_that_differ_print_differently() -> None:
    found = {"a": by_hand(parts={"cpu_wait": 2.404, "rest": 0}), "b": by_hand(parts={"cpu_wait": 2.44, "rest": 2})}
    line = str(why_fastest(found, "decode"))
    assert "(0.00 instead of 0.20)" in line
    assert not re.search(r"\b(\d[\d.]*) instead of \1\b", line)
    close = {"a": by_hand(parts={"cpu_wait": 2.38, "experts": 0, "rest": 0})}
    close["b"] = by_hand(parts={"cpu_wait": 2.42, "experts": 0, "rest": 0})
    assert "(0.238 instead of 0.242)" in str(why_fastest(close, "decode"))


def test_work_is_a_reason_only_where_it_explains() -> None:
    known = {"rule": "cpu", "parameters": "", "beside": False, "overlapped": True, "slots": 8, "reserve_bytes": 0}
    a, b = by_hand(parts={"cpu_wait": 13}, on_host=49), by_hand()  # 68 % less waiting for 2 % less work
    unexplained = "(1.30 instead of 4.00), which 4.90 instead of 5.00 experts a token on the host do not explain"
    assert unexplained in str(why_fastest({"a": a, "b": b}, "decode"))
    two = {"a": Known(**known | {"beside": True}), "b": Known(**known)}
    beside = ", with a GPU that works beside the host instead of a GPU that waits for the host"
    assert str(why_fastest({"a": a, "b": b}, "decode", two)).endswith(f"(1.30 instead of 4.00){beside}")
    # who waits less although its GPU waits for the host does not do so because of that
    other = {"a": two["b"], "b": two["a"]}
    assert unexplained in str(why_fastest({"a": a, "b": b}, "decode", other))
    # the link, of page-locked memory and 3 ms less; memory is told of residents where it differs
    a, b = by_hand(parts={"stall": 10}, h2d_bytes=10**9, hits=60), by_hand(parts={"stall": 40}, h2d_bytes=10**9)
    two = {
        "a": Known(**known, page_locked=True),
        "b": Known(**known | {"slots": 6, "reserve_bytes": 10**9}, page_locked=False),
    }
    assert str(why_fastest({"a": a, "b": b}, "decode", two)).endswith(
        "(1.00 instead of 4.00), with experts in page-locked memory instead of experts in pageable memory; resident is "
        "60.0 instead of 50.0 % of what is wanted (8 slots instead of 6, 0.00 instead of 1.00 GB kept free)"
    )


def test_what_cannot_run_says_so_in_its_row(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trace", trace.with_name("one.npz"), "--vram", "8GB", "--engines", "fiddler,llama.cpp", "--max-steps", 8]
    assert main(["engines", *map(str, words)]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("| one | fiddler |"))
    assert row.endswith(" --calibration FILE\\|FRACTION, such as 0.3; engine fiddler has it |")
    assert "nothing set aside: what is fitted cannot run" in text
    assert re.search(r"llama.cpp is fastest in \w+, [\d.]+ tokens/s; nobody else ran", text)


def test_a_ratio_is_the_machines_link_scaled_and_its_winner_is_the_fastest(trace: Path, kept: Path) -> None:
    rows = [row for row in rows_of(kept) if row["engine"] != NO_ENGINE]
    ratios = list(dict.fromkeys(float(row["ratio"]) for row in rows))
    assert ratios == [pytest.approx(25.5 / 62.3, rel=1e-5), 0.25, 2]
    own, fast = catalog.hardware("rtx4090"), catalog.hardware(str(kept / "hardware" / "t-link-2.toml"))
    by = 2 * 62.3 / 25.5
    for mine, theirs in ((own.link, fast.link), (own.pageable_link, fast.pageable_link)):
        assert mine is not None and theirs is not None
        assert theirs.rate(1e8) == pytest.approx(by * mine.rate(1e8)) and theirs.setup_ns == mine.setup_ns
    assert fast.host == own.host and fast.gpu == own.gpu
    out, _ = plain(trace, "vllm-uva", hardware=str(kept / "hardware" / "t-link-2.toml"))
    at_2 = next(row for row in rows if row["engine"] == "vllm-uva" and row["ratio"] == "2")
    assert float(at_2["tokens_per_s"]) == pytest.approx(out["tokens_per_s"], rel=1e-5)
    tables = (kept / "engines.md").read_text().split("\n## ")[1:]
    for table, key in zip(tables, ("tokens_per_s", "prompt_tokens_per_s"), strict=True):
        named = next(line for line in table.splitlines() if line.startswith("| fastest |")).split(" | ")[1:]
        for ratio, said in zip(sorted(ratios), named, strict=True):
            speed = {row["engine"]: float(row[key]) for row in rows if float(row["ratio"]) == ratio}
            fastest = {name for name, value in speed.items() if value * (1 + TIE) >= max(speed.values())}
            names = said.removesuffix(" |")
            assert names.endswith(" (within 1 %)") == (len(fastest) > 1)
            assert set(names.removesuffix(" (within 1 %)").split(", ")) == fastest


def test_the_kept_runs_are_a_section_of_the_report_and_a_figure(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = load(sorted((kept / "runs").iterdir()))
    assert len(runs) == 3 * 6  # with the reference, which is no engine
    made = section(runs)
    assert made is not None and [panel.key for panel in made.panels] == [
        "engines-0",
        "engines-by-ratio-0",
        "engine-sets",
    ]
    page = Page(render([made], [], "a page"))
    text = "".join(page.texts["main"])
    assert "last" in text and "b9000" in text and len(page.figures) == 1
    (found,) = by_ratio(runs)
    for phase_ in ("tokens_per_s", "prompt_tokens_per_s"):
        for ratio, names in found.fastest(phase_).items():
            at = {name: speeds[ratio] for name, speeds in found.speeds[phase_].items()}
            assert set(names) == {name for name in at if at[name] * (1 + TIE) >= max(at.values())} and len(at) == 5
    # at the machine's own rates alone, which runs there beside a faster and a slower link
    table = made.panels[0].table
    own = {row["engine"]: row for row in rows_of(kept)[:6] if row["engine"] != NO_ENGINE}
    assert table is not None and table[0][:3] == ["engine", "decode tokens/s", "prompts tokens/s"]
    shown = {row[0]: row[1].partition(" ")[0] for row in table[1]}
    assert shown == {engine: f"{float(row['tokens_per_s']):,.2f}" for engine, row in own.items()}
    best = max(own, key=lambda name: float(own[name]["tokens_per_s"]))
    title = made.panels[0].title
    assert title.startswith("t (synthetic), 8GB of rtx4090, experts in q4: ")
    assert f"no winner in decode: {best} and llama.cpp cannot be told apart" in title  # by the intervals of their costs
    plotted = made.panels[1].figure
    assert plotted is not None
    axes = [plotted.layout[axis].type for axis in ("xaxis", "xaxis2", "yaxis", "yaxis2")]
    assert axes == ["log"] * 4
    assert figure([str(path) for path in sorted((kept / "runs").iterdir())]) == 0
    drawn = capsys.readouterr().out
    assert drawn == ratio_svg([found]) + "\n"
    root = ElementTree.fromstring(drawn)
    left, top, wide, high = map(float, root.attrib["viewBox"].split())
    texts = [each for each in root.iter("{http://www.w3.org/2000/svg}text") if each.get("x")]
    assert {name for each in texts for name in ["".join(each.itertext()).removeprefix("● ")]} >= set(FIVE.split(","))
    assert "t (synthetic): 8GB of rtx4090, experts in q4" in ["".join(each.itertext()) for each in texts]
    for i, at in enumerate(found.speeds.values()):  # names in the order of the lines' ends, each panel in its half
        names = ["".join(each.itertext()).removeprefix("● ") for each in texts if (float(each.attrib["x"]) > 470) == i]
        assert [name for name in names if name in at] == sorted(at, key=lambda name: -at[name][max(found.ratios)])
    for each in texts:  # nothing clipped: seven pixels a letter from where it begins
        if each.get("text-anchor") is None:
            assert float(each.attrib["x"]) + 6.5 * len("".join(each.itertext())) < left + wide
        assert top < float(each.attrib["y"]) < top + high


def test_without_several_ratios_there_is_no_figure(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figure([str(kept / "runs" / "t-llama.cpp")]) == 2
    assert capsys.readouterr().err.startswith("error: no runs of engines at several link/host ratios")
    made = section(load([kept / "runs" / "t-llama.cpp"]))
    assert made is not None and [panel.key for panel in made.panels] == ["engines-0", "engine-sets"]


def test_traces_are_not_ranked_against_each_other(trace: Path, tmp_path: Path) -> None:
    words = ["--trace", trace, trace.with_name("one.npz"), "--vram", "8GB", "--engines", "llama.cpp,vllm-uva"]
    assert main(["engines", *map(str, words), "--max-steps", "40", "--out", str(tmp_path / "out")]) == 0
    made = section(load(sorted((tmp_path / "out" / "runs").iterdir())))
    assert made is not None and [panel.key for panel in made.panels] == ["engines-0", "engines-1", "engine-sets"]
    assert [panel.title.split(" (")[0] for panel in made.panels[:2]] == ["one", "t"]


def test_a_folder_holds_the_runs_of_one_command(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["engines", "--trace", str(trace), "--vram", "8GB", "--max-steps", "8", "--out", str(tmp_path / "out")]
    assert main([*words, "--engines", "llama.cpp,fiddler", "--ratios", "1"]) == 0
    assert main([*words, "--engines", "llama.cpp", "--ratios", "2"]) == 0
    runs = {path.name for path in (tmp_path / "out" / "runs").iterdir()}
    assert runs == {f"t-{name}{tail}" for name in ("llama.cpp", "lru-+-fetch-no-engine") for tail in ("", "-link-2")}
    assert [path.name for path in (tmp_path / "out" / "hardware").iterdir()] == ["t-link-2.toml"]
    (tmp_path / "out" / "engines.csv").unlink()  # runs, but of whom?
    capsys.readouterr()
    assert main([*words, "--engines", "llama.cpp"]) == 2
    assert "holds runs that are not of this command; give another DIR" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out" / "runs").iterdir()} == runs


def test_where_nobody_fits_a_sentence_says_so(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trace", str(trace), "--vram", "2GB", "--engines", "llama.cpp,moe-infinity", "--ratios", "1"]
    assert main(["engines", *words]) == 0
    text = capsys.readouterr().out
    assert "- `t`: no engine ran: what each lacks stands in its note" in text
    assert "| fastest |" not in text and "\n## " not in text


def test_what_durations_are_made_of_is_said_of_the_machine(trace: Path, tmp_path: Path, capsys: Any) -> None:
    fixed = tmp_path / "f.toml"
    fixed.write_text(
        "[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 40\ndecide_ns = 1\ncpu_expert_ns = 20\n"
        "expert_bytes = 1000\n"
    )
    words = ["--trace", str(trace), "--vram", "8GB", "--engines", "llama.cpp,mixtral-offloading", "--max-steps", "8"]
    assert main(["engines", *words, "--hardware", str(fixed)]) == 0
    assert f"durations are those that [fixed] of {fixed} gives outright; no engine's costs" in capsys.readouterr().out
    own = tmp_path / "own.toml"
    own.write_text('gpu = "rtx-4090"\nlink = "pcie4x16-pinned"\nhost = "desktop-ddr5"\n')
    assert main(["engines", *words, "--hardware", str(own)]) == 0
    text = capsys.readouterr().out
    assert f"computed from the rates that {own} gives" in text and "catalog's rates" not in text


BAD = {
    "unknown engine": (["--engines", "lama.cpp"], "did you mean"),
    "costs alone": (["--engines", "ideal"], "engines: ideal: has no behaviour, it is costs alone"),
    "no engine": (["--engines", ""], "engines: '': an engine without a name; must be"),
    "an engine too few": (["--engines", "vllm-uva,"], "engines: 'vllm-uva,': an engine without a name"),
    "vram without a unit": (["--vram", "16"], "vram: '16'"),
    "vram of two": (["--vram", "16GB", "8GB"], "one for each of the 1"),
    "ratio 0": (["--ratios", "0"], "ratios: 0: must be"),
    "ratio of none": (["--ratios", "nan"], "ratios: nan: must be"),
    "context too short": (["--context", "3"], "context: 3:"),
    "unknown precision": (["--precision", "q44"], "q44"),
    "unknown hardware": (["--hardware", "rtx409"], "rtx4090"),
    "calibration": (["--calibration", "2"], "calibration"),
    "no steps": (["--max-steps", "0"], "max_steps"),
    "one trace twice": (["--trace", "mixtral.npz", "mixtral.npz"], "mixtral, too"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, hint = BAD[name]
    trace = [] if "--trace" in args else ["--trace", "mixtral.npz"]
    assert main(["engines", *trace, *args, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ") and hint in captured.err
    assert not (tmp_path / "out").exists()
