"""The first screen of a recommendation: its answer, its table and its what-ifs are runs that can be had again, nothing
recommended exceeds the memory there is, and what a trace that was made says of itself."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sim import catalog, recommend, run
from sim.costs.reserve import buffer_bytes, working_bytes
from sim.outcome.how_sure import overlap
from sim.search.advice import text
from sim.search.judging import Wish
from sim.search.made import made
from sim.search.recommendation import Recommendation
from sim.search.ties import ENGINE, GROUPS, SURE, UNSURE, UNWRITTEN, ranked
from sim.search.what_if import WORTH, helps
from sim.search.within_engine import WithinEngine
from sim.spec import memory_bytes
from sim.sweeps.config import Configuration
from sim.sweeps.rows import Row
from sim.sweeps.session import inspect
from sim.sweeps.worker import Task, Worker
from tests.test_recommend_engines import again
from traces.__main__ import main as traces_main
from traces.command import guarded
from traces.format import npz
from traces.generic import LRU_OFF
from traces.synthetic import PRESETS, generate

GB = 10**9
MIB = 1 << 20


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trace of Mixtral's shape, synthetic, three requests with prompts of 40 tokens."""
    path = tmp_path_factory.mktemp("traces") / "small.npz"
    shape = replace(PRESETS["mixtral-8x7b"], requests=3, prompt=(40, 40), generation=(8, 10))
    npz.write(path, generate(shape, 1))
    return str(path)


def here(runs: Sequence[Configuration]) -> Sequence[Row]:
    """Rows by one worker in this process."""
    return Worker(inspect(runs)[0]).run(Task(runs)).rows


def asked(trace: str, engine: str | None = None, vram: float = 16, candidates: int = 3, **more: Any) -> dict[str, Any]:
    """What is recommended."""
    base = {"trace": trace, "hardware": "rtx4090", "precision": "q4-k-m", **more}
    wish = Wish(
        base | ({"engine": engine} if engine else {}), 4096, int(vram * GB), candidates=candidates, straight=True
    )
    return (Recommendation if engine in (None, "ideal") else WithinEngine)(wish).search(here)


# --- laws ---


@pytest.fixture(scope="module", params=[None, "llama.cpp", "ideal"], ids=["engines", "one engine", "policies"])
def out(request: pytest.FixtureRequest, small: str) -> dict[str, Any]:
    return asked(small, request.param)


def test_the_first_line_is_the_first_row_is_its_command_s_run(out: dict[str, Any]) -> None:
    answer, first, lines = out["answer"], out["table"][0], text(out).splitlines()
    summary = again(lines[1].strip())
    assert lines[1].strip() == answer["command"] == first["command"]
    assert summary["tokens_per_s"] == answer["tokens_per_s"] == first["tokens_per_s"]
    row = next(line for line in lines if re.match(r" 1[ =] ", line))
    assert f": {first['tokens_per_s']:,.2f} tokens/s [" in lines[0] and f" {first['tokens_per_s']:,.2f} " in row
    assert f"VRAM {first['vram_bytes'] / GB:.1f} of 16.0 GB, RAM {first['ram_bytes'] / GB:.1f} of 64.0 GB" in lines[0]
    assert summary["verdict"] == answer["verdict"] and f"held back by  {answer['verdict']}" in lines


def test_the_table_is_sorted_and_fits_100_columns(out: dict[str, Any]) -> None:
    table = out["table"]
    assert [row["rank"] for row in table] == [*range(1, len(table) + 1)]
    assert [GROUPS.index(row["group"]) for row in table] == sorted(GROUPS.index(row["group"]) for row in table)
    for group in GROUPS:
        speeds = [row["tokens_per_s"] for row in table if row["group"] == group and row is not table[0]]
        assert all(later <= earlier * 1.001 for earlier, later in pairwise(speeds))
    lines = text(out).splitlines()
    begin = next(i for i, line in enumerate(lines) if "80 % between" in line)
    rows = lines[begin : lines.index("", begin)]
    assert len(rows) > 2 and max(map(len, rows)) <= 100


def test_ties_are_marked_exactly_where_intervals_overlap(out: dict[str, Any]) -> None:
    sure = [row for row in out["table"] if row["group"] == SURE]
    best = max(sure, key=lambda row: row["tokens_per_s"], default=None)
    for row in out["table"]:
        ties = row in sure and best is not None and (row is best or row["costs_of"] != best["costs_of"])
        ties = ties and overlap(row["tokens_per_s_interval"], best["tokens_per_s_interval"] if best else None)
        others = [r for r in sure if best is not None and r["costs_of"] != best["costs_of"]]
        alone = not any(overlap(r["tokens_per_s_interval"], best["tokens_per_s_interval"]) for r in others if best)
        assert row["tie"] == (bool(ties) and not alone)
    tied = [row for row in sure if row["tie"]]
    assert not tied or sure[0]["away"] == min(row["away"] for row in tied)
    assert ("= a tie" in text(out)) == bool(tied)


def test_each_what_if_is_a_run_of_its_command(out: dict[str, Any]) -> None:
    assert {"more VRAM, 24 GB", "precision q3-k-m"} <= {row["what"] for row in out["would_help"]}
    words = shlex.split(out["answer"]["command"])[3:]
    for row in out["would_help"]:
        assert row["error"] is None
        summary = again(row["command"])
        assert summary["tokens_per_s"] == row["tokens_per_s"] and summary["memory"]["fits"]
        assert row["ratio"] == pytest.approx(row["tokens_per_s"] / out["answer"]["tokens_per_s"], rel=1e-12)
        assert row["outputs_change"] == ("precision" in row["changes"])
        if not row["what"].startswith(("another", "more RAM")):
            fields = run.spec_of(run.parser().parse_args([*words, *shlex.split(row["flags"])]))
            assert fields == run.spec_of(run.parser().parse_args(shlex.split(row["command"])[3:]))
    shown = text(out)
    for row in out["would_help"]:
        useful = any((row[key] or 0) > 1 + WORTH for key in ("ratio", "prompt_ratio"))
        assert useful == helps(row)
        assert (
            f"{row['what']}{' (changes what the model says)' if row['outputs_change'] else ''};" in shown
        ) or not useful


def test_nothing_recommended_exceeds_the_memory(out: dict[str, Any]) -> None:
    for row in out["table"]:
        line = again(row["command"])["memory"]
        assert line["fits"] and row["vram_bytes"] <= 16 * GB
        assert row["ram_bytes"] <= 64 * GB and line["host"]["fits"]


# --- memory ---


def test_more_memory_never_makes_the_answer_slower(small: str) -> None:
    """Of whole layers: one layer more on the GPU is one less for the CPU. A cache that evicts need not obey: LRU with a
    slot more can hit less often where the slots of all layers move."""
    speeds = [asked(small, "llama.cpp", vram, 1)["answer"]["tokens_per_s"] for vram in (8, 12, 16, 24, 40)]
    assert speeds == sorted(speeds) and speeds[0] < speeds[-1]


def test_what_the_host_does_not_hold_is_refused_with_the_number(small: str) -> None:
    """Experts at q4-k-m take 27.3 GB. With 24 GB the engines that keep a copy of all cannot run, llama.cpp can."""
    out = asked(small, ram="24GB")
    assert out["best"] is None and re.search(
        r"page-locked experts 27\.34, the rest 2\.00\), which has 24\.00", out["refusal"]
    )
    refused = {row["name"]: row["error"] for row in out["engines"] if row["error"] is not None}
    assert "needs 29.34 GB of the host's memory" in refused["freetoken"] and "llama.cpp" not in refused
    assert all(row["ram_bytes"] <= 24 * GB for row in out["table"])
    others = [row["with_ram"] for row in out["engines"] if "with_ram" in row and row["kind"] == ENGINE]
    best = max(others, key=lambda row: row["tokens_per_s"])
    summary = again(best["command"])
    assert best["ram"] == "32GB" and (summary["tokens_per_s"], summary["memory"]["host"]["fits"]) == (
        best["tokens_per_s"], True
    )  # fmt: skip
    more = [row["tokens_per_s"] for row in out["would_help"] if row["what"].startswith("more RAM")]
    assert more == ([best["tokens_per_s"]] if best["tokens_per_s"] > out["answer"]["tokens_per_s"] else [])
    with pytest.raises(Exception, match=r"of the engines .* needs least: --ram [\d.]+GB"):
        asked(small, ram="3GB")


def test_where_all_experts_fit_nothing_is_offloaded_and_that_is_said_first(small: str) -> None:
    out = asked(small, vram=60, candidates=9)
    assert out["answer"]["whole"] and text(out).startswith("No offloading needed, all experts fit the GPU. ")
    assert out["search"]["candidates"] == 1  # every policy is the same
    line = next(line for line in text(out).splitlines() if line.startswith("no change"))
    assert "more VRAM" in line and "a link" in line and "RAM 1.5 x" in line


# What llama.cpp said of its compute buffer with flash attention, MiB: of what, (vocabulary, hidden, heads x head size),
# rows, context; how far the count here is off
PUBLISHED = {
    "Qwen3-30B-A3B, a log of llama-server, public code index 28957180799": ((151936, 2048), 512, 65536, 300.75, 0.0),
    "Qwen3-30B-A3B in Ollama, public code index 71489492525": ((151936, 2048), 512, 32768, 300.75, 0.0),
    "TriLM 3.9B, mozilla-ai/llamafile pull request 552": ((50688, 3072), 512, 512, 105.0, 0.0),
    "Qwen3.5-9B, two slots of 262,144 tokens, public code index 57397882540": (
        (248320, 4096),
        512,
        262144,
        808.02,
        -0.39,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_buffers_of_a_step_beside_published_ones(name: str) -> None:
    (vocab, hidden), rows, context, published, off = PUBLISHED[name]
    model = catalog.model("qwen3-30b-a3b").model_copy(update={"vocab": vocab, "hidden": hidden})
    assert buffer_bytes(model, rows, context) / MIB / published - 1 == pytest.approx(off, abs=0.005)


def test_context_and_buffers_by_hand_and_never_twice() -> None:
    model, hardware, ideal = catalog.model("qwen3-30b-a3b"), catalog.hardware("rtx4090"), catalog.engine("ideal")
    assert working_bytes(model, hardware, ideal, 512, 8192) == (475 * MIB) + 512 * 4 * (151936 + 2048)
    # with few words and a long context the mask is larger: 2 bytes an entry, beside queries and outputs
    few = model.model_copy(update={"vocab": 1000})
    assert buffer_bytes(few, 512, 65536) == 512 * (2 * 65536 + 8 * (32 * 128 + 2048))
    assert buffer_bytes(model, 2048, 8192) == 4 * buffer_bytes(model, 512, 8192)
    for name in catalog.names("engine"):
        engine = catalog.engine(name)
        own = engine.reserve_mib or engine.memory_share < 1 or engine.buffered_logits
        assert (working_bytes(model, hardware, engine, 512, 8192) == 0) == bool(own)


# --- a trace that was made ---


def test_the_words_are_those_of_the_kept_study() -> None:
    page = (Path(__file__).parents[1] / "analysis" / "results" / "generic.md").read_text()
    found = re.search(r"Mean distance without the own row: .*? LRU ([\d.]+) \(most ([\d.]+)\)\.", page)
    assert found is not None and (float(found[1]), float(found[2])) == LRU_OFF


def test_a_made_trace_is_what_its_command_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with made("granite-3.0-1b-a400m", 3) as trace:
        assert trace.generic and "0.12 in LRU hit rate on average, 0.23 at most" in trace.said
        mine = npz.content_hash(npz.read(Path(trace.path)))
        words = shlex.split(trace.command)
        assert words[:3] == ["python", "-m", "traces"] and traces_main(words[3:]) == 0
        assert npz.content_hash(npz.read(tmp_path / trace.name)) == mine
        assert trace.named({"a": [f"x {trace.path} y"], "b": 1}) == {"a": [f"x {trace.name} y"], "b": 1}
    assert not Path(trace.path).exists()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search without workers."""

    class Evaluator:
        def __init__(self, *given: Any) -> None: ...

        def __call__(self, runs: Sequence[Configuration]) -> Sequence[Row]:
            return here(runs)

        def close(self) -> None: ...

    monkeypatch.setattr("sim.search.evaluate.Evaluator", Evaluator)


def test_without_a_trace(
    in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both commands that are printed, in their order, give the answer; the text and the object say the same."""
    monkeypatch.chdir(tmp_path)
    flags = "--model granite-3.0-1b-a400m --hardware rtx3060 --ram 64GB --precision q4-k-m --vram 1GB --candidates 1"
    assert recommend.main([*flags.split(), "--json"]) == 0
    printed = capsys.readouterr()
    out = json.loads(printed.out)
    assert out["judged"]["requests"] >= 8 and out["made"]["generic"] and out["notes"][0].startswith("GENERIC SYNTHETIC")
    assert "recommend-" not in printed.out and list(tmp_path.iterdir()) == []
    lines = text(out).splitlines()
    assert [line.strip() for line in lines[1:3]] == [out["made"]["command"], out["answer"]["command"]]
    assert any(line.startswith("! GENERIC SYNTHETIC TRACE") for line in lines[:8])
    assert traces_main(shlex.split(out["made"]["command"])[3:]) == 0
    assert again(out["answer"]["command"])["tokens_per_s"] == out["answer"]["tokens_per_s"]


MODEL = "n_layers = 3\ntop_k = 2\nhidden = 64\nexpert_intermediate = 32\nattn_params_per_layer = 16384\n" + (
    "kv_bytes_per_token_per_layer = 256\nn_heads = 4\nqk_dim = 16\nv_dim = 16\nvocab = 1000\n"
)


def test_a_model_of_one_s_own_file(
    in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(MODEL + "n_experts = 8\n")
    assert recommend.main(["--model", "mine.toml", "--hardware", "rtx4090", "--candidates", "1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("No offloading needed") and "--like mine.toml" in said and "shape of mine," in said


BAD = {
    "neither": ("--hardware rtx4090", "trace: missing; give --trace FILE (mixtral.npz is a sample), or --model NAME"),
    "a model that nobody knows": ("--model qwen3-30b-a33b", "did you mean qwen3-30b-a3b?"),
    "a file without a shape": ("--model none.toml", "model: none.toml: n_experts: missing"),
    "a precision that nobody knows": ("--model qwen3-30b-a3b --precision q7", "precision 'q7': not in the catalog"),
    "a machine that nobody knows": ("--model qwen3-30b-a3b --hardware rtx4099", "did you mean rtx4090?"),
    "less than a card holds": ("--model granite-3.0-1b-a400m --hardware rtx3060 --vram 100MB", "needs least: --vram"),
    "a context below the requests": (
        "--model granite-3.0-1b-a400m --context 10",
        "context: 10: the trace has requests of",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(
    name: str, in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("none.toml").write_text(MODEL)
    flags, hint = BAD[name]
    assert recommend.main(flags.split()) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1 and hint in told.err


def test_ctrl_c_is_one_line_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: list[str]) -> None:
        raise KeyboardInterrupt

    assert guarded(interrupted, []) == 130
    assert capsys.readouterr().err == "interrupted\n"


# --- the order of a table, by hand ---


def line(name: str, speed: float, between: list[float] | None, away: int, kind: str = "engine") -> dict[str, Any]:
    return {
        "name": name, "kind": kind, "error": None, "tokens_per_s": speed, "tokens_per_s_interval": between,
        "catalog_costs": True, "costs_of": name, "away": away,
    }  # fmt: skip


def test_first_the_simplest_of_those_that_cannot_be_told_apart() -> None:
    """A is the fastest but a variant; C ties and is plain; D does not tie; E is not calibrated, however fast."""
    rows = [
        line("E", 30.0, None, 0),
        line("A", 20.0, [15, 25], 1),
        line("B", 18.0, [14, 22], 1),
        line("C", 16.0, [12, 20], 0),
        line("D", 10.0, [9, 11], 0),
        line("P", 40.0, None, 0, "policy"),
        line("no", 1.0, None, 0) | {"error": "no"},
    ]
    table = ranked(rows)
    assert [row["name"] for row in table] == ["C", "A", "B", "D", "E", "P"]
    assert [row["tie"] for row in table] == [True, True, True, False, False, False]
    assert [row["group"] for row in table] == [SURE] * 4 + [UNSURE, UNWRITTEN]
    assert [row["tie"] for row in ranked([rows[1], rows[4]])] == [False, False]
    untyped = line("Z", 19.0, [14, 24], 0) | {"typed": False}  # as plain as C, and faster, but no command runs it
    assert ranked([rows[1], untyped, rows[3]])[0]["name"] == "C" and ranked([untyped, rows[1]])[0]["name"] == "Z"


def test_sizes_of_the_next_card() -> None:
    from sim.search.what_if import CARDS_GB, NOTICED

    assert memory_bytes("24GB") * NOTICED < 32 * GB and [*CARDS_GB] == sorted(CARDS_GB)
