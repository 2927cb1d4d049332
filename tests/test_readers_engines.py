"""Recordings of offloading engines, expert selection traces, importance matrices with gaps, and passes that verify.

Each defect is made here; the files of ../shared/cases are read where they are.
"""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import foreign
from tests.foreign_engines import COLUMNS, bigmoeonedge, expert_selection, head, lru_pool
from tests.gen import random_trace, traces
from tests.test_readers import FIXED, convert, few, ids_agree, refused
from traces.__main__ import main
from traces.foreign.ask import Ask
from traces.foreign.formats import expert_selection as selection
from traces.foreign.models import model
from traces.format import npz, profile
from traces.format.trace import RoutingTrace
from traces.synthetic import PRESETS, generate

pytestmark = pytest.mark.machine
CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases")
POOL = ["--cache-scope", "global", "--placement", "empty", "--warmup-steps", "1", "--set", "lru.touches=listed"]


def recorded(seed: int = 0, slots: int = 12, **options: Any) -> RoutingTrace:
    """A trace of one request whose engine had one LRU pool of so many slots."""
    fixed = {"requests": 1, "prompt": 0.25, "dense_layers": 1} | options
    trace = random_trace(np.random.default_rng(seed), 40, 3, 8, 2, **fixed)
    return replace(trace, resident=lru_pool(trace, slots))


def residency(capsys: pytest.CaptureFixture[str], *flags: object) -> dict[str, Any]:
    from sim import residency as command

    capsys.readouterr()
    assert command.main([*map(str, flags), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# --- BigMoeOnEdge ---


def test_the_file_says_all_of_its_model(tmp_path: Path) -> None:
    trace = recorded()
    bigmoeonedge(tmp_path / "r.csv", trace)
    read = convert(tmp_path / "r.csv", tmp_path / "o.npz", [])
    ids_agree(read, trace)
    assert np.array_equal(read.resident, trace.resident) and np.array_equal(read.weights, trace.weights)
    assert (read.model, read.meta["model_file"], read.meta["arch"]) == ("test-model", "/models/test-model.gguf", "test")
    assert read.meta["expert_bytes"] == [0, 1001, 1002, 1003] and read.meta["dense_bytes"] == [1, 7008, 7015, 7022]
    assert convert(tmp_path / "r.csv", tmp_path / "o.npz", ["--model", "another"]).model == "another"


@few
@given(trace=traces(missing=0.0, lookahead=0, logits=False, max_tokens=12), slots=st.integers(1, 9), seed=st.integers())
def test_a_route_trace_round_trip(
    trace: RoutingTrace, slots: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cells that are not in the file are -1, and nobody had them."""
    folder = tmp_path_factory.mktemp("route")
    lost = np.random.default_rng(abs(seed)).random(trace.experts.shape) < 0.3
    lost[:, :, 0] = False
    trace = replace(trace, experts=np.where(lost, -1, trace.experts).astype(np.int16))
    trace = replace(trace, resident=lru_pool(trace, slots))
    bigmoeonedge(folder / "r.csv", trace)
    read = convert(folder / "r.csv", folder / "o.npz", [])
    assert np.array_equal(read.experts, np.asarray(trace.experts)[:, :, : read.top_k])
    assert read.top_k == trace.top_k and np.array_equal(read.resident, trace.resident)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Qwen3-30B-A3B-Q4_K_M.gguf", "Qwen3-30B-A3B"),
        (r"C:\models\gpt-oss-120b-mxfp4-00001-of-00003.gguf", "gpt-oss-120b"),
        ("/sdcard/my models/gemma-4-26B-A4B-it-UD-IQ2_XXS.gguf", "gemma-4-26B-A4B-it"),
        ("OLMoE-1B-7B-0125-F16.gguf", "OLMoE-1B-7B-0125"),
        ("Q4_K_M.gguf", "Q4_K_M"),
    ],
)
def test_a_model_is_called_by_its_file_without_folder_part_and_quantisation(
    file: str, name: str, tmp_path: Path
) -> None:
    trace = recorded()
    bigmoeonedge(tmp_path / "r.csv", trace)
    lines = (tmp_path / "r.csv").read_text().splitlines()
    (tmp_path / "r.csv").write_text("\n".join([*head(trace, file), *lines[len(head(trace)) :]]))
    assert convert(tmp_path / "r.csv", tmp_path / "o.npz", []).model == name


def test_columns_go_by_name_and_most_may_be_missing(tmp_path: Path) -> None:
    lines = ["# route_trace v1", "# model=m arch= n_layer=1 n_expert=4 n_expert_used=2"]
    lines += ["expert,slot,layer,step,phase,turn", "3,0,0,5,0,7", "1,1,0,5,0,7", "2,0,0,6,1,7", "", "0,1,0,6,1,7"]
    (tmp_path / "r.csv").write_text("\r\n".join(lines))
    trace = convert(tmp_path / "r.csv", tmp_path / "o.npz", [])
    assert trace.experts.tolist() == [[[3, 1]], [[2, 0]]] and trace.position.tolist() == [5, 6]
    assert (trace.sequence.tolist(), trace.prefill.tolist()) == ([7, 7], [True, False])
    assert trace.weights is None and trace.resident is None and "expert_bytes" not in trace.meta


def test_what_is_unlikely_is_said(tmp_path: Path) -> None:
    """A reduced top-k, unknown weights, first touches of prefetched experts, routings left out, rows without a step."""
    lines = ["# route_trace v1", "# model=olmoe-1b-7b-Q8_0.gguf arch=olmoe n_layer=16 n_expert=64 n_expert_used=2"]
    lines += [COLUMNS, "0,1,0,0,0,3,nan,2,0,0", "0,1,0,0,1,1,0.25,0,0,1", "0,1,-1,0,0,1,0.25,0,9,0"]
    (tmp_path / "r.csv").write_text("\n".join(lines))
    trace = convert(tmp_path / "r.csv", tmp_path / "o.npz", [])
    unknown, left_out, ahead, *general = trace.meta["doubts"]
    assert general[0] == "top-2; the catalog's olmoe-1b-7b has top-8: a reduced top-k"
    assert unknown.startswith("1 of 3 weights are nan") and trace.weights is None
    assert left_out.startswith("1 routings were left out") and ahead.startswith("1 of the engine's hits")
    assert trace.resident is not None and trace.resident.tolist() == [[[True, False]]]
    assert trace.meta["dropped"] == {"rows without a step": 1}


BAD_ROUTES = {
    "empty": ("", "--from"),
    "no facts": ("# route_trace v1\n" + COLUMNS, "no line before it says model="),
    "no columns": ("# route_trace v1\n# model=m arch=a n_layer=1 n_expert=4 n_expert_used=2\n", "names the columns"),
    "no rows": ("{head}\n", "no rows"),
    "too many experts": (
        "# route_trace v1\n# model=m arch=a n_layer=1 n_expert=99999 n_expert_used=2\n",
        "n_expert = ",
    ),
    "more used than there are": ("# route_trace v1\n# model=m arch=a n_layer=1 n_expert=2 n_expert_used=3\n", "_used"),
    "a layer beyond": ("{top}\n# layer=1 expert_bytes=3 dense_bytes=4\n", "layer 1; each of the n_layer"),
    "a layer twice": ("{top}\n" + 2 * "# layer=0 expert_bytes=3 dense_bytes=4\n", "comes once"),
    "a column twice": ("{top}\nturn,phase,step,layer,slot,expert,expert\n", "column expert is there 2 times"),
    "a column missing": ("{top}\nturn,phase,step,layer,slot\n", "column expert is there 0 times"),
    "a dense layer": ("{top}\n# layer=0 expert_bytes=0 dense_bytes=4\n# layer=9\n" + COLUMNS, "no rows"),
    "cut": ("{head}\n0,1,0,0,0,3,0.5,0", "line 4 has 8 fields; line 3 has 10"),
    "a word": ("{head}\n0,1,zero,0,0,3,0.5,0,0,0", "step = 'zero'"),
    "a huge number": ("{head}\n0,1,0,0,0,99999999999999999999,0.5,0,0,0", "expert = '99999999999999999999'"),
    "an id beyond": ("{head}\n0,1,0,0,0,4,0.5,0,0,0", "expert = '4'; an integer from 0 to 3"),
    "a negative id": ("{head}\n0,1,0,0,0,-1,0.5,0,0,0", "expert = '-1'"),
    "a slot beyond": ("{head}\n0,1,0,0,2,1,0.5,0,0,0", "slot = '2'; an integer from 0 to 1"),
    "a phase": ("{head}\n0,2,0,0,0,1,0.5,0,0,0", "phase = '2'; 0 (prompt) or 1"),
    "a residency": ("{head}\n0,1,0,0,0,1,0.5,3,0,0", "residency = '3'"),
    "an infinite weight": ("{head}\n0,1,0,0,0,1,inf,0,0,0", "weight = 'inf'"),
    "a negative weight": ("{head}\n0,1,0,0,0,1,-1,0,0,0", "weight = '-1'"),
    "a cell twice": ("{head}\n" + 2 * "0,1,0,0,0,1,0.5,0,0,0\n", "is there already"),
    "a prompt after": ("{head}\n0,1,0,0,0,1,0.5,0,0,0\n0,0,1,0,0,1,0.5,0,0,0", "a request's prompt tokens come first"),
    "an endless line": ("{head}\n" + "0" * 70000, "more than 65536 bytes"),
}


@pytest.mark.parametrize("name", BAD_ROUTES)
def test_a_damaged_route_trace_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = BAD_ROUTES[name]
    top = "# route_trace v1\n# model=m arch=a n_layer=1 n_expert=4 n_expert_used=2"
    (tmp_path / "r.csv").write_text(text.replace("{head}", f"{top}\n{COLUMNS}").replace("{top}", top))
    command = ["convert", "--force", str(tmp_path / "r.csv"), str(tmp_path / "o.npz")]
    assert message in refused(command, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


@needs_cases
def test_the_public_recording_of_qwen3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps 0, 27 (prompt), 28 and 29 of it: 129 and 192 hits of 288 in the generated ones."""
    path = CASES / "real_bigmoeonedge_route_trace_v1.csv"
    trace = convert(path, tmp_path / "o.npz", [])
    rows = [line.split(",") for line in path.read_text().splitlines() if line[0] in "0123456789"]
    assert int((trace.experts >= 0).sum()) == len(rows)
    assert (trace.model, trace.n_layers, trace.n_experts, trace.top_k) == ("Qwen3-30B-A3B", 48, 128, 6)
    assert trace.resident is not None and trace.weights is not None
    assert trace.resident.sum(axis=(1, 2))[-2:].tolist() == [129, 192]
    last = trace.n_tokens - 1  # of the prompt's 28 rows the cut has 2
    for _, _, step, layer, slot, expert, weight, found, _ in rows:
        if step == "29":
            place = last, int(layer), int(slot)
            assert trace.experts[place] == int(expert) and trace.resident[place] == (found == "1")
            assert trace.weights[place] == np.float32(weight)
    sizes = trace.meta["expert_bytes"]
    assert (sizes.count(3059712), sizes.count(2654208)) == (24, 24) and trace.meta["dense_bytes"][6] == 11682816
    assert any("reduced top-k" in line for line in trace.meta["doubts"])
    # Most of the prompt is cut away, so what it had brought is missing here; what the simulation has, the engine had.
    want = lru_pool(trace, 400)[~trace.prefill]
    flags = ["--trace", tmp_path / "o.npz", "--precision", "q4", "--cache", 400, *POOL]
    found = residency(capsys, *flags)
    assert (found["counted"], found["engine_hits"], found["simulated_hits"]) == (576, 321, int(want.sum()))
    assert (found["both_hit"], found["both_miss"], found["engine_only"], found["simulated_only"]) == (187, 255, 134, 0)


# --- what the engine had, and what the simulation has ---


@pytest.mark.parametrize("slots", [8, 9, 12, 17, 24])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_engine_s_hits_are_the_simulation_s(
    seed: int, slots: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One pool, empty at first, the prompt not counted: an LRU written down by hand and the machine find the same."""
    trace = recorded(seed, slots)
    bigmoeonedge(tmp_path / "r.csv", trace)
    convert(tmp_path / "r.csv", tmp_path / "o.npz", [])
    (tmp_path / "h.toml").write_text(FIXED)
    command = ["--trace", tmp_path / "o.npz", "--hardware", tmp_path / "h.toml", "--cache", slots, *POOL]
    found = residency(capsys, *command, "--out", tmp_path / "kinds.npz")
    hits = int(trace.resident[~trace.prefill].sum())  # type: ignore[index]
    assert found["agree"] == 1 and found["engine_hits"] == found["simulated_hits"] == found["both_hit"] == hits > 0
    assert found["counted"] == int((~trace.prefill).sum()) * 6 == hits + found["both_miss"]
    kinds = np.load(tmp_path / "kinds.npz")["kinds"]
    assert (kinds[trace.prefill] == -1).all()
    assert np.array_equal(kinds[~trace.prefill] == 3, trace.resident[~trace.prefill])  # type: ignore[index]


def test_a_recording_as_large_as_a_public_one_of_gpt_oss_120b(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """36 layers of top-4 over 32 steps are 4,608 routings. The pool is 238 slots; a prompt's last layer is computed for
    its last token alone. (The public recording has 2,066 hits; its routing is not here.)"""
    preset = replace(PRESETS["gpt-oss-120b"], requests=1, prompt=(28, 28), generation=(32, 32))
    trace = generate(preset, seed=0)
    experts = np.array(trace.experts)
    experts[:27, -1] = -1
    trace = replace(trace, experts=experts, lookahead=None, logits=None)
    trace = replace(trace, resident=lru_pool(trace, 238))
    bigmoeonedge(tmp_path / "r.csv", trace)
    convert(tmp_path / "r.csv", tmp_path / "o.npz", ["--model", "gpt-oss-120b"])
    found = residency(capsys, "--trace", tmp_path / "o.npz", "--cache", 238, "--precision", "mxfp4", *POOL)
    assert found["counted"] == 4608 and found["agree"] == 1
    assert found["simulated_hits"] == int(trace.resident[28:].sum()) > 1000  # type: ignore[index]


def test_where_they_differ_is_said_slot_by_slot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tokens of expert 0, in a cache that never has it: the engine says hit, then miss; the run the other way."""
    from sim import residency as command

    experts = np.array([[[0]], [[0]], [[1]]], np.int16)
    meta = {"format_version": 1, "model": "m", "n_experts": 2, "top_k": 1, "n_layers": 1, "moe_layers": [0]}
    rows = np.arange(3, dtype=np.int32)
    resident = np.array([[[True]], [[False]], [[False]]])
    trace = RoutingTrace(experts, rows * 0, rows, rows < 0, meta | {"real": True}, resident=resident)
    npz.write(tmp_path / "t.npz", trace)
    (tmp_path / "h.toml").write_text(FIXED)
    flags = ["--trace", tmp_path / "t.npz", "--hardware", tmp_path / "h.toml", "--cache", 1, "--placement", "empty"]
    found = residency(capsys, *flags)
    assert [found[kind] for kind in ("both_miss", "engine_only", "simulated_only", "both_hit")] == [1, 1, 1, 0]
    assert command.main([str(word) for word in flags]) == 0
    said = capsys.readouterr().out
    assert "first to differ: request 0, position 0, layer 0, slot 0, expert 0: engine only" in said
    npz.write(tmp_path / "t.npz", replace(trace, resident=None))
    assert command.main([str(word) for word in flags]) == 2
    assert "has no `resident`" in capsys.readouterr().err


def test_resident_is_an_array_of_the_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written and read back, kept by a choice of requests, refused in another shape or type."""
    trace = recorded(requests=3)
    npz.write(tmp_path / "t.npz", trace)
    assert np.array_equal(npz.read(tmp_path / "t.npz").resident, trace.resident)
    part = trace.take([1])
    first, last = trace.requests()
    assert np.array_equal(part.resident, trace.resident[first[1] : last[1]])  # type: ignore[index]
    assert main(["info", str(tmp_path / "t.npz")]) == 0 and "resident bool" in capsys.readouterr().out
    for wrong in (np.asarray(trace.resident)[:, :, :1], np.asarray(trace.resident).astype(np.int8)):
        np.savez(tmp_path / "w.npz", meta=np.array(json.dumps(trace.meta)), **trace.arrays() | {"resident": wrong})
        assert "resident has" in refused(["info", str(tmp_path / "w.npz")], capsys)


def test_a_trace_of_a_reduced_top_k_runs_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sim import run

    trace = random_trace(np.random.default_rng(0), 6, 16, 64, 2, requests=1)
    npz.write(tmp_path / "t.npz", replace(trace, meta=trace.meta | {"model": "olmoe-1b-7b"}))
    assert run.main(["--trace", str(tmp_path / "t.npz"), "--cache", "8"]) == 0
    assert "! TRACE: reduced top-k: 2 experts a token, the model 8" in capsys.readouterr().out


# --- expert selection traces ---


@few
@given(seed=st.integers(0, 10**6), k=st.integers(1, 4), dense=st.integers(0, 2))
def test_expert_selection_round_trip(seed: int, k: int, dense: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("selection")
    trace = random_trace(np.random.default_rng(seed), 14, 3, 8, k, requests=1, prompt=0.5, dense_layers=dense)
    if trace.prefill[0]:
        flags = expert_selection(folder / "0.json", trace)
        ids_agree(convert(folder / "0.json", folder / "o.npz", flags), trace)


def test_a_folder_is_as_many_requests(tmp_path: Path) -> None:
    parts = [random_trace(np.random.default_rng(seed), 9, requests=1, prompt=0.5, dense_layers=1) for seed in (0, 1, 2)]
    for name, part in zip(("law/0.json", "art/1.json", "law/1.json"), parts, strict=True):
        (tmp_path / "mmlu" / name).parent.mkdir(parents=True, exist_ok=True)
        flags = expert_selection(tmp_path / "mmlu" / name, part)
    read = convert(tmp_path / "mmlu", tmp_path / "o.npz", flags)
    assert read.meta["groups"] == {"file": ["art/1", "law/0", "law/1"], "folder": ["art", "law", "law"]}
    for request, part in enumerate((parts[1], parts[0], parts[2])):
        assert np.array_equal(read.take([request]).experts, part.experts)
        assert np.array_equal(read.take([request]).position, part.position)


def test_dense_layers_at_the_end_are_layers_too(tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text('\ufeff [ {"1": [[3, 0]], "0" : null, "2":null} , {"1":\n[[1,2]]}]\n')
    trace = convert(tmp_path / "0.json", tmp_path / "o.npz", ["--model", "m", "--n-experts", "4"])
    assert (trace.n_layers, trace.meta["moe_layers"]) == (3, [1])
    assert (trace.experts.tolist(), trace.prefill.tolist()) == ([[[3, 0]], [[1, 2]]], [True, False])


BAD_SELECTIONS = {
    "empty": ("", "not JSON: it is cut short"),
    "no passes": ("[]", "no passes in it"),
    "an object": ('{"0": [[1]]}', "'{' where one of '[' is required"),
    "a pass of none": ('[{"0": null}]', "pass 0 has no layer with experts"),
    "cut in a pass": ('[{"0": [[1]]}, {"0": [[2], [', "not JSON"),
    "cut between": ('[{"0": [[1]]}, ', "it is cut short"),
    "more behind": ('[{"0": [[1]]}] [', "'[' after the list"),
    "another dense layer": ('[{"0": null, "1": [[1]]}, {"0": [[1]], "1": [[1]]}]', "they differ in [0]"),
    "a lost layer": ('[{"0": [[2]], "1": [[1]]}, {"0": [[1]]}]', "they differ in [1]"),
    "another top-k": ('[{"0": [[2, 1]]}, {"0": [[1]]}]', "layer 0 has [1, 1] ids; [1, 2]"),
    "ragged": ('[{"0": [[2, 1], [3]]}]', "tokens with different numbers of ids"),
    "tokens lost": ('[{"0": [[2], [1]], "1": [[3]]}]', "layer 1 has [1, 1] ids; [2, 1]"),
    "deeper": ('[{"0": [[[2], [1]]]}]', "int64 [1, 2, 1]"),
    "no list": ('[{"0": 3}]', "layer 0: 3; null (a dense layer) or ids"),
    "an empty list": ('[{"0": []}]', "float64 [0]"),
    "words": ('[{"0": [["a"]]}]', "ids [tokens][k]"),
    "fractions": ('[{"0": [[1.5]]}]', "float64 [1, 1]"),
    "truth": ('[{"0": [[true]]}]', "bool [1, 1]"),
    "NaN": ('[{"0": [[NaN]]}]', "NaN is not a JSON number"),
    "a huge number": ('[{"0": [[99999999999999999999999]]}]', "ids [tokens][k]"),
    "an id beyond": ('[{"0": [[8]]}]', "pass 0: expert 8; ids lie in [0, 8)"),
    "a negative id": ('[{"0": [[-2]]}]', "expert -2"),
    "the same twice": ('[{"0": [[1, 1]]}]', "is already in slot 0"),
    "a key": ('[{"0": [[1]], "all": [[1]]}]', "key 'all'; the number of a layer"),
    "a key twice": ('[{"0": [[1]], "0": [[1]]}]', "layer 0 is there twice"),
    "a layer of millions": ('[{"99999": [[1]]}]', "the number of a layer"),
    "nested": ('[{"0": ' + "[" * 100_000, "JSON"),
    "bytes": (b'[{"0": [[\xff', "not JSON"),
}


@pytest.mark.parametrize("name", BAD_SELECTIONS)
def test_a_damaged_selection_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = BAD_SELECTIONS[name]
    (tmp_path / "0.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    command = ["convert", "--force", "--from", "expert-selection", str(tmp_path / "0.json"), str(tmp_path / "o.npz")]
    assert message in refused([*command, "--model", "m", "--n-experts", "8"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["0.json"]


@few
@given(window=st.integers(1, 40), indent=st.sampled_from([None, 0, 1, 2]), seed=st.integers(0, 10**6))
def test_a_value_may_end_anywhere_in_the_window(
    window: int, indent: int | None, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However few characters are read at a time, the passes are those that json finds in the whole."""
    path = tmp_path_factory.mktemp("window") / "0.json"
    trace = random_trace(np.random.default_rng(seed), 5, 3, 200, 2, requests=1, prompt=0.5, dense_layers=1)
    expert_selection(path, trace)
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "WINDOW", window)
        found = [passed for _, passed in selection._passes(path)]
    lists = [{str(n): None if ids is None else ids.tolist() for n, ids in passed.items()} for passed in found]
    assert lists == whole


def test_memory_does_not_grow_with_a_file_that_is_one_value(tmp_path: Path) -> None:
    """Thousands of passes in one line: no more is held than a window; telling what it is takes none."""
    step = ", ".join(f'"{layer}": [[{layer}, {layer + 1}, {layer + 2}, {layer + 3}]]' for layer in range(1, 60))
    with (tmp_path / "0.json").open("w") as file:
        file.write('[{"0": null, ' + step + "}")
        for _ in range(8000):
            file.write(', {"0": null, ' + step + "}")
        file.write("]")
    size = (tmp_path / "0.json").stat().st_size
    tracemalloc.start()
    try:
        assert selection.read(tmp_path / "0.json", Ask(model("m", n_experts=64))).n_tokens == 8001
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 11 << 20 and most < 8 << 20, (size, most)


@needs_cases
def test_the_public_trace_of_llama_4_maverick(tmp_path: Path) -> None:
    path = CASES / "real_core12345_llama4_maverick.json"
    trace = convert(path, tmp_path / "o.npz", ["--model", "llama-4-maverick"])
    found = json.loads(path.read_text())
    assert trace.meta["moe_layers"] == list(range(1, 48, 2)) and trace.n_layers == 48
    assert trace.prefill.tolist() == [True] * 6 + [False] * 4
    for i, layer in enumerate(trace.meta["moe_layers"]):
        assert trace.experts[:, i].tolist() == [ids for step in found for ids in step[str(layer)]]


# --- importance matrices ---


def imatrix(path: Path, counts: dict[str, Any]) -> list[str]:
    """A GGUF of these counts by tensor name."""
    import gguf

    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    for name, values in counts.items():
        writer.add_tensor(f"{name}.in_sum2", np.ones((len(values), 4), np.float32))
        writer.add_tensor(f"{name}.counts", np.array(values, np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ["convert", "--force", str(path), str(path.with_suffix(".npz")), "--model", "m"]


@pytest.mark.parametrize("parts", [["gate_up", "down"], ["up", "down"], ["down"], ["down", "gate_up"], ["up", "gate"]])
def test_any_tensor_of_a_layer_s_experts_has_its_counts(parts: list[str], tmp_path: Path) -> None:
    """The gate's where there is one: it has 5 less of expert 0 here than down has. Expert 2 was never seen."""
    chosen = next(part for part in ("gate", "gate_up", "up", "down") if part in parts)
    counts = {
        f"blk.{layer}.ffn_{part}_exps.weight": [layer + (9 if part == chosen else 14), 4, 0]
        for layer in (0, 1) for part in parts
    }  # fmt: skip
    assert main(imatrix(tmp_path / "i.gguf", counts)) == 0
    found = profile.read(tmp_path / "i.npz")
    assert found.counts.tolist() == [[9, 4, 0], [10, 4, 0]]
    assert found.meta["layout"] == f"imatrix (ffn_{chosen}_exps)" and found.meta["doubts"] == []


def test_layers_that_no_token_reached_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layer 2 is not in the file, layer 3 has zeros; layer 0 and 5 are dense. The rest is a profile that places."""
    from sim import run

    counts: dict[str, Any] = {f"blk.{layer}.ffn_gate_exps.weight": [1, 7, 3, 0] for layer in (1, 4, 6)}
    counts |= {"blk.3.ffn_gate_exps.weight": [0] * 4}
    counts |= {f"blk.{layer}.ffn_gate.weight": [9] for layer in (0, 5)}
    command = imatrix(tmp_path / "i.gguf", counts)
    assert main(command) == 0
    found = profile.read(tmp_path / "i.npz")
    assert found.meta["moe_layers"] == [1, 4, 6] and "MoE layers 2, 3:" in found.meta["doubts"][0]
    assert main([*command, "--moe-layers", "1-4,6", "--n-layers", "7"]) == 0
    assert "MoE layers 2, 3:" in profile.read(tmp_path / "i.npz").meta["doubts"][0]
    assert "its MoE layers are 1,4,6; m has 1,2,3" in refused([*command, "--moe-layers", "1-3"], capsys)
    trace = random_trace(np.random.default_rng(0), 6, 5, 4, 2, requests=1, dense_layers=2)
    meta = trace.meta | {"n_layers": 7, "moe_layers": [1, 2, 3, 4, 6]}
    npz.write(tmp_path / "t.npz", replace(trace, meta=meta))
    (tmp_path / "h.toml").write_text(FIXED)
    flags = ["--trace", tmp_path / "t.npz", "--hardware", tmp_path / "h.toml", "--cache", 1, "--placement", "profile"]
    flags += ["--set", f"profile.file={tmp_path / 'i.npz'}"]
    assert run.main([str(word) for word in flags]) == 0
    npz.write(tmp_path / "t.npz", replace(trace, meta=meta | {"moe_layers": [1, 2, 3, 4, 5]}))
    capsys.readouterr()
    assert run.main([str(word) for word in flags]) == 2
    assert "counts [3, 4]; the trace has [MoE layers, experts] [5, 4]" in capsys.readouterr().err


def test_who_is_placed_by_a_profile_with_gaps() -> None:
    """The most counted where a layer was, the first ids where it was not."""
    from sim.fit.placement import first_residents

    counts = np.array([[1, 7, 3, 0], [0, 0, 0, 0], [5, 1, 9, 0]])
    placed = first_residents("profile", 3, 4, np.array([2, 2, 2]), False, counts=counts)
    assert placed.tolist() == [2, 1, 4 + 1, 4 + 0, 8 + 0, 8 + 2]


@needs_cases
@pytest.mark.parametrize(
    ("name", "layers", "tensor"),
    [("fused_gate_up", 48, "gate_up"), ("layers_missing", 46, "gate"), ("gate", 48, "gate")],
)
def test_the_importance_matrices(name: str, layers: int, tensor: str, tmp_path: Path) -> None:
    command = [
        "convert",
        "--force",
        str(CASES / f"imatrix_{name}.gguf"),
        str(tmp_path / "o.npz"),
        "--model",
        "qwen3-30b-a3b",
    ]
    assert main(command) == 0
    found = profile.read(tmp_path / "o.npz")
    assert found.counts.shape == (layers, 128) and found.counts[0].sum() == 3343
    assert found.meta["layout"] == f"imatrix (ffn_{tensor}_exps)"
    doubts = found.meta.get("doubts", [])
    assert ["MoE layers 3, 7:" in line for line in doubts] == ([True] if layers == 46 else [])


# --- passes that verify drafts ---


def pairs(path: Path, sizes: list[int], layers: int = 2) -> list[str]:
    """`layer,expert` lines of passes of so many tokens, top-2 of 8."""
    lines = ["layer,expert"]
    for step, n in enumerate(sizes):
        for layer in range(layers):
            lines += [f"{layer},{(step + token + slot + layer) % 8}" for token in range(n) for slot in (0, 1)]
    path.write_text("\n".join(lines) + "\n")
    flags = ["--model", "m", "--n-experts", "8", "--top-k", "2", "--phase", "by-batch"]
    return flags


SIZES = [20, 3, 3, 1, 3, 2, 3, 1, 3]


def test_verification_passes_are_generated_rows(tmp_path: Path) -> None:
    flags = [*pairs(tmp_path / "t.csv", SIZES), "--requests", "prompt"]
    trace = convert(tmp_path / "t.csv", tmp_path / "o.npz", [*flags, "--verify", "3"])
    assert trace.prefill.tolist() == [True] * 20 + [False] * 19
    assert set(trace.sequence.tolist()) == {0} and trace.position.tolist() == list(range(39))
    rejected = "which of their rows were rejected the file does not say"
    assert trace.meta["doubts"] == [f"6 passes verify drafts, their 17 rows are generated ones; {rejected}"]
    again = convert(tmp_path / "t.csv", tmp_path / "o.npz", [*flags, "--verify", "2"])  # passes of 3 are prompts
    assert int(again.prefill.sum()) == 20 + 15
    one = convert(tmp_path / "t.csv", tmp_path / "o.npz", [*flags[:-1], "one", "--verify", "8"])
    assert np.array_equal(one.prefill, trace.prefill)


def test_without_the_flag_small_passes_that_come_again_are_doubted(tmp_path: Path) -> None:
    flags = [*pairs(tmp_path / "t.csv", SIZES), "--requests", "prompt"]
    trace = convert(tmp_path / "t.csv", tmp_path / "o.npz", flags)
    assert trace.meta["doubts"][0].startswith("6 passes of 2 to 3 tokens are taken for prompts; if they verify drafts")
    assert "--verify 3" in trace.meta["doubts"][0] and "rejected" in trace.meta["doubts"][0]
    for sizes in ([20, 1, 1, 9, 1, 1], [4, 1, 1, 1], [512, 512, 3, 1, 1]):
        flags = [*pairs(tmp_path / "t.csv", sizes), "--requests", "prompt"]
        assert convert(tmp_path / "t.csv", tmp_path / "o.npz", flags).meta["doubts"] == [], sizes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--phase", "decode", "--verify", "3"], "needs --phase by-batch"),
        (["--phase", "by-batch", "--verify", "1"], "--verify 1: a number from 2"),
        (["--phase", "by-batch", "--verify", "99999999"], "a number from 2 to"),
    ],
)
def test_bad_verify(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = pairs(tmp_path / "t.csv", SIZES)[:-2]
    command = [
        "convert",
        "--force",
        str(tmp_path / "t.csv"),
        str(tmp_path / "o.npz"),
        *rest,
        "--requests",
        "one",
        *flags,
    ]
    assert message in refused(command, capsys)


def test_passes_of_another_top_k_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [(0, 1, 2, 3, 4), (0, 1, 1, 3)]
    (tmp_path / "t.bin").write_bytes(b"".join(np.array(words, "<i4").tobytes() for words in records))
    flags = ["--from", "llamacpp", "--model", "m", "--n-experts", "8", "--phase", "decode", "--requests", "one"]
    assert "experts [1, 1] a row; [1, 2], as in the first" in refused(
        ["convert", "--force", str(tmp_path / "t.bin"), str(tmp_path / "o.npz"), *flags], capsys
    )


@needs_cases
def test_the_log_of_a_model_that_drafts(tmp_path: Path) -> None:
    """A prompt of 20 tokens, then passes of 3, 3, 1, 3, 2, 3, 1 and 3."""
    flags = ["--model", "qwen3-30b-a3b", "--phase", "by-batch", "--requests", "prompt"]
    path = CASES / "llamacpp_mtp_verify.csv"
    trace = convert(path, tmp_path / "o.npz", [*flags, "--verify", "3"])
    assert (trace.n_tokens, int(trace.prefill.sum()), len(trace.requests()[0])) == (39, 20, 1)
    assert "--verify 3" in convert(path, tmp_path / "o.npz", flags).meta["doubts"][0]


# --- what was right stays right ---


@needs_cases
def test_the_controls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_batch = ["--phase", "by-batch", "--requests", "prompt"]
    out = tmp_path / "o.npz"
    # 26 MoE layers counted from 1; a prompt of 5 tokens and two generated ones
    trace = convert(CASES / "llamacpp_dsv2lite.csv", out, ["--model", "deepseek-v2-lite", *by_batch])
    assert trace.experts.shape == (7, 26, 6) and trace.meta["moe_layers"] == list(range(1, 27))
    assert trace.prefill.tolist() == [True] * 5 + [False] * 2 and trace.meta["doubts"] == []
    # layers 0 to 25 are not those of the model, counted from 0 or from 1
    path = str(CASES / "llamacpp_dsv2lite_0based_moe.csv")
    assert "its MoE layers are 0,1,2" in refused(
        ["convert", "--force", path, str(out), "--model", "deepseek-v2-lite", *by_batch], capsys
    )
    # the last layer of the prompt has one token of three, which is left out
    trace = convert(CASES / "moe_trace_pr28544.csv", out, ["--model", "qwen3-30b-a3b", *by_batch])
    assert trace.experts.shape == (6, 48, 8) and trace.prefill.tolist() == [True] * 3 + [False] * 3
    assert trace.meta["dropped"] == {"tokens of layer 47, which has fewer than the pass": 1}
    assert (trace.experts[:3, 47] == -1).all() and trace.experts[0, 0].tolist() == [15, 76, 8, 62, 75, 54, 86, 14]
    # every other layer of Llama 4 has experts
    trace = convert(CASES / "llama4_interleaved.jsonl", out, ["--model", "llama-4-maverick"])
    assert trace.experts.shape == (5, 24, 1) and trace.meta["moe_layers"] == list(range(1, 48, 2))
    assert not trace.prefill.any() and (trace.experts >= 0).all()
    # [layers, tokens, k] is no layout of vLLM: its tokens stand where layers would
    path = str(CASES / "layer_major.npy")
    command = [
        "convert",
        "--force",
        path,
        str(out),
        "--model",
        "qwen3-30b-a3b",
        "--prompt-tokens",
        "8",
        "--from",
        "vllm",
    ]
    assert "the array has 11 layers; qwen3-30b-a3b has 48" in refused(command, capsys)


def test_an_importance_matrix_of_all_layers_has_no_doubts(tmp_path: Path) -> None:
    trace = random_trace(np.random.default_rng(0), 20, requests=1, dense_layers=1)
    flags = foreign.imatrix(tmp_path / "i.gguf", trace)
    assert main(["convert", "--force", str(tmp_path / "i.gguf"), str(tmp_path / "o.npz"), *flags]) == 0
    assert profile.read(tmp_path / "o.npz").meta["doubts"] == []
