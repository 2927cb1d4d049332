"""Traces that cannot be true are said to be: each defect, made in a trace that has none, and real captures."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.run import main as run
from tests.captures import capture, capture_names
from traces.__main__ import main
from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.models import model
from traces.foreign.recorded import NOT_RECORDED, recorded
from traces.format import npz
from traces.format.check import validate
from traces.format.profile import KIND, Profile
from traces.format.trace import RoutingTrace
from traces.statistics.doubts import doubts, known_doubts, lost_cells
from traces.synthetic import PRESETS, generate

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


@cache
def clean() -> RoutingTrace:
    """OLMoE-like routing (K = 8 of E = 64) of 4 layers that says it is real: 3 requests of 20 + 40 rows."""
    shape = {"n_layers": 4, "moe_layers": (0, 1, 2, 3), "requests": 3, "prompt": (20, 20), "generation": (40, 40)}
    made = generate(replace(PRESETS["olmoe-1b-7b"], **shape), 3)  # type: ignore[arg-type]
    return changed(made, meta=made.meta | {"real": True})


def changed(trace: RoutingTrace, **fields: Any) -> RoutingTrace:
    return replace(trace, **{"logits": None, "weights": None, "lookahead": None} | fields)


def spoilt(rows: Any, layers: Any, value: Any = -1) -> RoutingTrace:
    experts = np.array(clean().experts)
    experts[rows, layers] = value
    return changed(clean(), experts=experts)


def only(trace: RoutingTrace | Profile) -> str:
    """The one doubt that there is."""
    (line,) = doubts(trace)
    return line


def test_a_clean_trace_raises_none() -> None:
    assert doubts(clean()) == []


@pytest.mark.parametrize("name", capture_names())
def test_real_captures_raise_none(name: str) -> None:
    assert doubts(capture(name)) == []


def test_lost_cells_by_phase_and_layer() -> None:
    """The upper two of four layers of every generated row: 120 rows x 2 of 180 x 4 cells, half of the generated."""
    line = only(spoilt(np.flatnonzero(~clean().prefill)[:, None], np.array([2, 3])))
    assert line.startswith("240 of 720 cells (a token in a layer) are lost, 33.3%: prompt 0.0%, generated 50.0%")
    assert line.endswith("most in layer 2-3")


def test_few_lost_cells_are_no_doubt() -> None:
    """7 of 720 cells are less than 1 %, 8 are more."""
    rows = np.arange(30, 38)
    assert doubts(spoilt(rows[:7], 1)) == []
    assert "8 of 720" in only(spoilt(rows, 1))


def test_a_layer_lost_in_a_short_phase() -> None:
    """A layer of the prompts alone, of a trace so long that 1 % of its cells are more: 60 of 24,720."""
    long = generate(replace(PRESETS["olmoe-1b-7b"], n_layers=4, moe_layers=(0, 1, 2, 3), requests=3, prompt=(20, 20),
                            generation=(2040, 2040)), 3)  # fmt: skip
    experts = np.array(long.experts)
    experts[long.prefill, 3] = -1
    assert "60 of 24,720 cells" in only(changed(long, experts=experts))


@given(lost=st.lists(st.tuples(st.integers(0, 179), st.integers(0, 3)), unique=True, max_size=40))
def test_lost_cells_are_counted(lost: list[tuple[int, int]]) -> None:
    trace = spoilt([row for row, _ in lost], [layer for _, layer in lost])
    cells, rows = lost_cells(trace)
    gone = {row for row, _ in lost if all((row, layer) in lost for layer in range(4))}
    expected = np.zeros((2, 4), int)
    for row, layer in lost:
        if row not in gone:
            expected[int(clean().prefill[row]), layer] += 1
    assert np.array_equal(cells, expected) and rows.sum() == 180 - len(gone)


def test_rows_without_an_expert() -> None:
    assert only(spoilt([5, 6], slice(None))) == "2 of 180 rows have no expert in any layer"


def test_equal_rows() -> None:
    """Rows 70 to 76 are row 69 again: 7 pairs of 3 x 59 inside requests."""
    experts = np.array(clean().experts)
    experts[70:77] = experts[69]
    assert only(changed(clean(), experts=experts)).startswith("7 of 177 rows equal the row before them")


def test_one_layer_that_repeats_itself_is_no_stale_buffer() -> None:
    """In a single layer equal rows are what overlap makes: no more than such layers have by chance."""
    experts = np.sort(np.array(clean().experts[:, :1, :1]), axis=2)
    meta = clean().meta | {"top_k": 1, "moe_layers": [0]}
    assert doubts(changed(clean(), experts=experts, meta=meta)) == []


@pytest.mark.parametrize("n", [2, 4, 8])
def test_rows_side_by_side_and_the_stride(n: int) -> None:
    """n sequences written position by position: neighbours are of different sequences, rows n apart of one."""
    shape = {"n_layers": 4, "moe_layers": (0, 1, 2, 3), "requests": n, "prompt": (10, 10), "generation": (90, 90)}
    made = generate(replace(PRESETS["olmoe-1b-7b"], **shape), 5)  # type: ignore[arg-type]
    order = np.argsort(np.asarray(made.position), kind="stable")
    one = {"sequence": np.zeros(100 * n, np.int32), "position": np.arange(100 * n, dtype=np.int32)}
    prefill = np.ones(100 * n, np.bool_)
    meta = made.meta | {"real": True}
    mixed = changed(made, experts=np.asarray(made.experts)[order], prefill=prefill, meta=meta, **one)
    line = only(mixed)
    assert f"with the one {n} rows before" in line and f"--interleave {n}, of formats" in line


def test_ids_that_mean_nothing() -> None:
    rng = np.random.default_rng(1)
    experts = np.argsort(rng.random((180, 4, 64)), axis=2)[:, :, :8].astype(np.int16)
    assert "rows out of order, several requests in one, or ids" in only(changed(clean(), experts=experts))
    assert doubts(changed(clean(), experts=experts, meta=clean().meta | {"real": False})) == []


def test_counts_of_one_rank() -> None:
    """64 experts on 4 ranks, and what rank 2 saw."""
    counts = np.zeros((3, 64))
    counts[:, 32:48] = 20.0
    facts = {"kind": KIND, "format_version": 1, "model": "m", "n_experts": 64, "moe_layers": [0, 1, 2], "real": True}
    assert only(Profile(counts, facts)).startswith("only experts 32 to 47 of 64 occur, in every layer: one rank of 4")
    counts[1, 3] = 1.0
    assert doubts(Profile(counts, facts)) == []


def test_no_prompts_and_prompts_that_begin_late() -> None:
    none = changed(clean(), prefill=np.zeros(180, np.bool_))
    assert only(none) == "no prompt rows: all tokens of its 3 requests count as generated"
    later = np.array(clean().position)
    later[60:120] += 64
    assert only(changed(clean(), position=later)).startswith("1 of 3 requests begin late: 64 tokens before")


def test_a_whole_prompt_from_a_cache() -> None:
    """A request has no prompt row at all: its 20 prompt tokens stand before its first row."""
    kept = changed(clean().take([0]))
    late = changed(kept, position=np.asarray(kept.position) + 20, prefill=np.zeros(60, np.bool_))
    assert [line.split(":")[0] for line in doubts(late)] == ["no prompt rows", "1 of 1 requests begin late"]


def test_a_reduced_top_k_of_every_token() -> None:
    experts = np.array(clean().experts)
    experts[:, :, 5:] = -1
    assert only(changed(clean(), experts=experts)).startswith("every token has 5 experts where 8 are routed")


def test_variable_top_k() -> None:
    experts = np.array(clean().experts)
    experts[:90, :, 6:] = -1
    line = only(changed(clean(), experts=experts))
    assert line.startswith("top-k varies, 6 to 8 experts a token: 50.0% of the cells are padded")


# --- after a reader ---


def kept(trace: RoutingTrace, name: str = "m") -> RoutingTrace:
    out = recorded(Path("log"), replace(trace, meta=trace.meta | {"model": name}), Ask(model(name)))
    assert isinstance(out, RoutingTrace)
    validate(out)
    return out


def test_rows_not_recorded_are_left_out_and_counted() -> None:
    """Rows 0 and 1 (the begin of the first prompt) and 30: the first request begins at 2, what follows 30 moves up."""
    trace = spoilt([0, 1, 30], slice(None))
    out = kept(changed(trace, token_ids=np.arange(180, dtype=np.int32)))
    assert out.meta["dropped"] == {NOT_RECORDED: 3} and out.n_tokens == 177
    assert out.position[:3].tolist() == [2, 3, 4] and out.position[56] == 58
    assert out.token_ids is not None and out.token_ids[27:30].tolist() == [29, 31, 32]
    assert out.meta["doubts"][0].startswith("3 rows were not recorded and left out; 29 behind them")
    assert np.array_equal(out.experts, np.delete(clean().experts, [0, 1, 30], axis=0))


def test_nothing_recorded_is_refused() -> None:
    with pytest.raises(TraceError, match="log: all 180 rows are without an expert"):
        kept(spoilt(slice(None), slice(None)))


def test_a_reduced_top_k_is_said() -> None:
    trace = changed(clean(), experts=clean().experts[:, :, :6], meta=clean().meta | {"top_k": 6})
    assert kept(trace, "olmoe-1b-7b").meta["doubts"] == ["top-6; the catalog's olmoe-1b-7b has top-8: a reduced top-k"]
    assert kept(clean(), "olmoe-1b-7b").meta["doubts"] == []


def test_what_is_said_once_stays() -> None:
    """A trace keeps what was said of it, whatever is selected of it; one that nobody converted is looked at."""
    said = changed(clean(), meta=clean().meta | {"doubts": ["so it is"]})
    assert known_doubts(said.take([0])) == ["so it is"]
    assert known_doubts(spoilt([5], slice(None))) == ["1 of 180 rows have no expert in any layer"]


@pytest.mark.parametrize("said", ["a line", [1], {"a": 1}])
def test_a_files_doubts_are_lines(said: Any) -> None:
    with pytest.raises(TraceError, match=r"trace: meta\.doubts is "):
        validate(changed(clean(), meta=clean().meta | {"doubts": said}))


def test_info_and_run_repeat_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, fixed = tmp_path / "t.npz", tmp_path / "fixed.toml"
    fixed.write_text("[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 0\ncpu_expert_ns = 7\n")
    npz.write(file, spoilt(np.flatnonzero(~clean().prefill)[:, None], np.array([2, 3])))
    assert main(["info", str(file)]) == 0
    assert "\n! 240 of 720 cells" in capsys.readouterr().out
    assert main(["info", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["doubts"][0].startswith("240 of 720")
    assert run(["--trace", str(file), "--hardware", str(fixed), "--engine", "ideal"]) == 0
    assert "\n! TRACE: 240 of 720 cells" in capsys.readouterr().out


# --- the files of the shared folder ---

CASE_DOUBTS = {
    "jsonl_upper_layers_lost.jsonl": "768 of 1,920 cells (a token in a layer) are lost",
    "sgl_minus1_rows.jsonl": "2 rows were not recorded and left out",
    "sgl_stale_rows.jsonl": "16 of 29 rows equal the row before them in every layer",
    "flame_interleaved": "with the one 8 rows before",
}
FLAME = "--n-experts 64 --n-layers 9 --moe-layers 1-2 --iteration 5473 --phase prefill --requests 1024"


@pytest.mark.parametrize("file", CASE_DOUBTS)
def test_cases_are_doubted(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (CASES / file).exists():
        pytest.skip(f"no {file} beside the checkout: its defect is made above")
    more = FLAME.split() if file == "flame_interleaved" else []
    assert (
        main(["convert", "--force", str(CASES / file), str(tmp_path / "o.npz"), "--model", "qwen3-30b-a3b", *more]) == 0
    )
    (line,) = (line for line in npz.read(tmp_path / "o.npz").meta["doubts"] if CASE_DOUBTS[file] in line)
    assert f"\n  ! {line}\n" in capsys.readouterr().out


def test_a_few_lost_cells_are_counted_and_no_doubt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1 of 400 cells: token 7 has no line of layer 2."""
    lines = [
        {"token": t, "layer": n, "experts": [t % 7, 7], "phase": "prefill" if t < 9 else "decode"}
        for t in range(100)
        for n in range(4)
        if (t, n) != (7, 2)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ["--model", "m", "--n-experts", "8", "--synthetic"]
    assert main(["convert", "--force", str(tmp_path / "t.jsonl"), str(tmp_path / "o.npz"), *flags]) == 0
    assert "\n  1 of 400 cells (a token in a layer) are lost, 0.2%" in capsys.readouterr().out
    assert npz.read(tmp_path / "o.npz").meta["doubts"] == []
