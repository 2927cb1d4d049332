"""What is written for other tools: read back by our readers, and by theirs where they can be had."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from sim import placement as sim_placement
from sim.placement import of
from sim.prepare import prepare
from sim.spec import RunSpec
from tests.foreign import WRITTEN, counts_of, over_all_layers, prompt_flags, requests_of, shape_flags
from tests.gen import REUSING_FOLDER, random_trace, traces
from tests.test_against_libcachesim import next_uses, their_misses
from tests.test_readers import FIXED, convert, ids_agree, refused
from traces.__main__ import main
from traces.foreign.formats import oracle_general
from traces.format import npz, placement, profile
from traces.format.placement import Placement
from traces.format.trace import RoutingTrace
from traces.statistics.stats import profile_of

few = settings(REUSING_FOLDER, max_examples=12)
full = traces(missing=0.0, logits=False, lookahead=0, max_tokens=14)


def some_trace(seed: int = 0, **options: object) -> RoutingTrace:
    return random_trace(np.random.default_rng(seed), 30, dense_layers=1, **options)  # type: ignore[arg-type]


def written(trace: RoutingTrace, to: str, out: Path) -> Path:
    npz.write(out.parent / "in.npz", trace)
    assert main(["convert", "--force", "--to", to, str(out.parent / "in.npz"), str(out)]) == 0
    return out


@few
@given(trace=full)
def test_vllm(trace: RoutingTrace, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Responses come back as the trace; so does the array of one request, with its prompt's length."""
    folder = tmp_path_factory.mktemp("vllm")
    out = written(trace, "vllm", folder / "r.jsonl")
    read = convert(out, folder / "o.npz", shape_flags(trace))
    ids_agree(read, trace)
    starts, _ = trace.requests()
    if trace.token_ids is not None and trace.position[starts].max() == 0:
        assert np.array_equal(read.token_ids, trace.token_ids)
    one = trace.select(np.arange(0, requests_of(trace)[0].stop))
    out = written(one, "vllm", folder / "r.npy")
    array = np.load(out)
    assert array.shape == (one.n_tokens, one.n_layers, one.top_k) and array.dtype == np.uint8
    ids_agree(convert(out, folder / "o.npz", [*shape_flags(one), *prompt_flags(one)]), one)


@few
@given(trace=traces(missing=0.0, logits=False, lookahead=0, max_tokens=14, weights=True, requests=1))
def test_flame(trace: RoutingTrace, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("flame")
    out = written(trace, "flame", folder / "capture")
    flags = [*shape_flags(trace), *prompt_flags(trace), "--requests", "one"]
    read = convert(out, folder / "o.npz", flags)
    ids_agree(read, trace)
    assert np.array_equal(read.weights, trace.weights)
    if trace.token_ids is not None:
        assert np.array_equal(read.token_ids, trace.token_ids)


@pytest.mark.parametrize("name", ["sglang", "eplb", "moe-infinity"])
def test_counts_of_a_profile(name: str, tmp_path: Path) -> None:
    """From a profile the counts go out as from its trace, and come back."""
    trace = some_trace()
    profile.write(tmp_path / "in.npz", profile_of(trace))
    for file in WRITTEN[name]:
        assert main(["convert", "--force", "--to", name, str(tmp_path / "in.npz"), str(tmp_path / file)]) == 0
        assert main(["convert", "--force", str(tmp_path / file), str(tmp_path / "p.npz"), *shape_flags(trace)]) == 0
        assert np.array_equal(profile.read(tmp_path / "p.npz").counts, counts_of(trace))


def test_what_sglang_reads(tmp_path: Path) -> None:
    """torch.load(weights_only) gives {"logical_count": int64 [all layers, E]}, JSON the same as lists."""
    import torch

    trace = some_trace()
    expected = over_all_layers(trace, counts_of(trace))
    loaded = torch.load(written(trace, "sglang", tmp_path / "l.pt"), weights_only=True)
    assert list(loaded) == ["logical_count"] and loaded["logical_count"].dtype == torch.int64
    assert np.array_equal(loaded["logical_count"].numpy(), expected)
    assert json.loads(written(trace, "sglang", tmp_path / "l.json").read_text()) == {"logical_count": expected.tolist()}


def test_matrices_by_request(tmp_path: Path) -> None:
    trace = some_trace(requests=4)
    matrices = np.load(written(trace, "moe-infinity", tmp_path / "m.npy"))
    for matrix, rows in zip(matrices, requests_of(trace), strict=True):
        assert np.array_equal(matrix, counts_of(trace.select(np.arange(rows.start, rows.stop))))


# --- placements ---


def test_the_simulator_s_placement_becomes_a_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """python -m sim.placement, then --to sglang: residents first, the most popular before the others."""
    import torch

    trace = some_trace(requests=5, experts=6)
    npz.write(tmp_path / "t.npz", trace)
    (tmp_path / "h.toml").write_text(FIXED)
    run = ["--trace", str(tmp_path / "t.npz"), "--hardware", str(tmp_path / "h.toml"), "--cache", "2"]
    run += ["--placement", "popular", "--calibration", "0.4"]
    assert sim_placement.main([*run, "--out", str(tmp_path / "p.npz")]) == 0
    assert main(["convert", "--force", "--to", "sglang", str(tmp_path / "p.npz"), str(tmp_path / "map.pt")]) == 0
    found = torch.load(tmp_path / "map.pt", weights_only=True)["physical_to_logical_map"].numpy()
    assert found.shape == (4, 6) and found[0].tolist() == list(range(6))
    assert (np.sort(found, axis=1) == np.arange(6)).all()
    spec = {"trace": str(tmp_path / "t.npz"), "hardware": str(tmp_path / "h.toml"), "cache": 2}
    setting = prepare(RunSpec(**spec, placement="popular", calibration=0.4))
    counts = counts_of(setting.calibration)
    for i in range(3):
        ranked = sorted(range(6), key=lambda e, i=i: (-counts[i, e], e))
        assert found[i + 1, :2].tolist() == ranked[:2]
        assert found[i + 1, 2:].tolist() == sorted(ranked[2:])
    assert np.array_equal(placement.read(tmp_path / "p.npz").residents, of(setting).residents)
    capsys.readouterr()
    assert main(["convert", "--force", "--to", "sglang", str(tmp_path / "p.npz"), str(tmp_path / "map.json")]) == 0
    assert json.loads((tmp_path / "map.json").read_text())["physical_to_logical_map"] == found.tolist()
    monkeypatch.chdir(tmp_path)
    assert sim_placement.main(run) == 0 and (tmp_path / "t-popular.npz").is_file()
    assert sim_placement.main(run) == 2
    assert "t-popular.npz: is there already" in capsys.readouterr().err


def test_one_pool_and_bad_placements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = {"kind": "placement", "format_version": 1, "model": "m", "n_experts": 3, "n_layers": 3, "moe_layers": [0, 2]}
    pooled = Placement(np.array([4, 0, 3], np.int64), meta)
    assert pooled.by_layer() == [[0], [0, 1]]
    placement.write(tmp_path / "p.npz", pooled)
    assert main(["convert", "--force", "--to", "sglang", str(tmp_path / "p.npz"), str(tmp_path / "m.json")]) == 0
    found = json.loads((tmp_path / "m.json").read_text())["physical_to_logical_map"]
    assert found == [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
    for residents, change, message in (
        ([6], {}, "an id outside"),
        ([1, 1], {}, "one twice"),
        ([1], {"moe_layers": [0, 3]}, "ascending layer indices"),
        ([1], {"n_experts": 0}, "integers from 1"),
    ):
        npz.write_arrays(tmp_path / "q.npz", meta | change, {"residents": np.array(residents, np.int64)})
        command = ["convert", "--force", "--to", "sglang", str(tmp_path / "q.npz"), str(tmp_path / "n.json")]
        assert message in refused(command, capsys)
    assert not (tmp_path / "n.json").exists()


# --- oracleGeneral ---


def accesses(trace: RoutingTrace) -> list[int]:
    """One at a time: token by token, layer by layer, slot by slot."""
    return [
        layer * trace.n_experts + int(e)
        for row in np.asarray(trace.experts)
        for layer, slots in enumerate(row)
        for e in slots
        if e >= 0
    ]


@few
@given(trace=traces(logits=False, lookahead=0, max_tokens=20))
def test_oracle_general_by_hand(trace: RoutingTrace, tmp_path_factory: pytest.TempPathFactory) -> None:
    """24 packed bytes a request; the next access of each, by brute force, is the same; so it is in blocks of a row."""
    folder = tmp_path_factory.mktemp("oracle")
    out = written(trace, "oracle-general", folder / "t.oracleGeneral")
    records = np.fromfile(out, np.dtype([("t", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")]))
    ids = accesses(trace)
    assert out.stat().st_size == 24 * len(ids) and records["id"].tolist() == ids
    assert [n if n >= 0 else 2**63 - 1 for n in records["next"].tolist()] == next_uses(ids)
    assert (records["size"] == 1).all()
    assert records["t"].tolist() == np.repeat(np.arange(trace.n_tokens), (trace.experts >= 0).sum(axis=(1, 2))).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle_general, "BLOCK_SLOTS", 1)
        assert written(trace, "oracle-general", folder / "u").read_bytes() == out.read_bytes()


@pytest.mark.parametrize("policy", ["lru", "fifo", "belady"])
def test_oracle_general_in_libcachesim(policy: str, tmp_path: Path) -> None:
    """libCacheSim's own reader: the same requests, and the misses that it counts when it is fed them one by one."""
    lcs = pytest.importorskip("libcachesim", reason="the extra `test` is not installed")
    trace = some_trace(7, layers=2, experts=8, missing=0.1)
    out = written(trace, "oracle-general", tmp_path / "t.oracleGeneral")
    ids = accesses(trace)
    reader = lcs.TraceReader(str(out), trace_type=lcs.TraceType.ORACLE_GENERAL_TRACE)
    assert [request.obj_id for request in reader] == ids
    cache = {"lru": lcs.LRU, "fifo": lcs.FIFO, "belady": lcs.Belady}[policy](6)
    reader = lcs.TraceReader(str(out), trace_type=lcs.TraceType.ORACLE_GENERAL_TRACE)
    ratio, _ = cache.process_trace(reader)
    assert round(ratio * len(ids)) == their_misses(policy, 6, [], ids)


# --- refusals ---


@pytest.mark.parametrize(
    ("to", "out", "message"),
    [
        ("sglag", "o.pt", "did you mean sglang?"),
        ("sglang", "o.txt", "a .pt or a .json"),
        ("eplb", "o.json", "a .pt or a .npy"),
        ("moe-infinity", "o.pt", "are a .npy"),
        ("vllm", "o.txt", "responses of several a .jsonl"),
        ("vllm", "o.npy", "a .npy holds one request; the trace has 3"),
        ("vllm", "o.jsonl", "a slot without an expert (-1)"),
        ("flame", "folder", "is there already"),
        ("flame", "new", "a slot without an expert (-1)"),
        ("flame", "o.npz", "another name is required"),
        ("eplb", "none/o.pt", "No such file"),
    ],
)
def test_bad_targets(to: str, out: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz.write(tmp_path / "in.npz", some_trace(missing=0.2))
    (tmp_path / "folder").mkdir()
    command = ["convert", "--force", "--to", to, str(tmp_path / "in.npz"), str(tmp_path / out)]
    assert message in refused(command, capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "in.npz"]


def test_wrong_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile.write(tmp_path / "p.npz", profile_of(some_trace()))
    for to in ("vllm", "flame", "oracle-general"):
        command = ["convert", "--force", "--to", to, str(tmp_path / "p.npz"), str(tmp_path / "o.x")]
        assert f"is a frequency profile; {to} is written from a trace" in refused(command, capsys)
    npz.write(tmp_path / "t.npz", some_trace(weights=False))
    command = ["convert", "--force", "--to", "flame", str(tmp_path / "t.npz"), str(tmp_path / "o")]
    assert "needs `weights`" in refused(command, capsys)
    assert "--model: not with --to" in refused([*command, "--model", "m"], capsys)
    assert "--from: not with --to" in refused([*command, "--from", "csv"], capsys)


def test_without_the_extra_one_line_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    npz.write(tmp_path / "t.npz", some_trace())
    for name, to, out in (("torch", "sglang", "o.pt"), ("pyarrow", "flame", "o")):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        message = refused(["convert", "--force", "--to", to, str(tmp_path / "t.npz"), str(tmp_path / out)], capsys)
        assert f"needs {name}, which is not installed: pip install 'moe-offload-sim[" in message
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]
