"""What training and Hugging Face's models leave: micro-batches undone, FLAME's shards, router outputs; data sets."""

import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import foreign
from tests.foreign import shape_flags
from tests.gen import REUSING_FOLDER, random_trace, traces
from tests.test_readers import convert, ids_agree, refused
from tests.test_readers_hostile import Touch
from traces.__main__ import main
from traces.foreign.models import _entries, model
from traces.foreign.registry import detected
from traces.format import npz
from traces.format.trace import RoutingTrace
from traces.statistics.stats import overlap

torch = pytest.importorskip("torch")
CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="no cases in ../shared/cases")
few = settings(REUSING_FOLDER, max_examples=12)


def equal_requests(each: int, side: int, blocks: int, seed: int = 0) -> RoutingTrace:
    """blocks x side requests of `each` tokens, all prompt."""
    trace = random_trace(
        np.random.default_rng(seed), each * side * blocks, 2, 8, 2, requests=1, prompt=1.0, token_ids=True
    )
    rows = np.arange(trace.n_tokens, dtype=np.int32)
    columns = trace.arrays() | {"sequence": rows // each, "position": rows % each}
    return RoutingTrace(**columns, meta=trace.meta)


def interleaved(trace: RoutingTrace, each: int, side: int) -> RoutingTrace:
    """The rows as a training writes them: of every `side` requests the first tokens, then the second ones ..."""
    order = np.arange(trace.n_tokens).reshape(-1, side, each).swapaxes(1, 2).reshape(-1)
    rows = np.arange(trace.n_tokens, dtype=np.int32)
    columns = {name: np.array(array)[order] for name, array in trace.arrays().items()}
    return RoutingTrace(**columns | {"sequence": 0 * rows, "position": rows}, meta=trace.meta)


def told(trace: RoutingTrace, each: int, side: int) -> list[str]:
    return [*shape_flags(trace), "--phase", "prefill", "--requests", str(each), "--interleave", str(side)]


# --- micro-batches ---


@pytest.mark.parametrize("build", [foreign.flame, foreign.flame_pt])
@few
@given(each=st.integers(1, 5), side=st.integers(1, 4), blocks=st.integers(1, 3))
def test_flame_interleaved(
    build: foreign.Builder, each: int, side: int, blocks: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Requests come back whole, token ids with them, whichever files their rows are in."""
    folder, trace = tmp_path_factory.mktemp("flame"), equal_requests(each, side, blocks)
    build(folder / "f", interleaved(trace, each, side))
    read = convert(folder / "f", folder / "o.npz", told(trace, each, side))
    ids_agree(read, trace)
    assert np.array_equal(read.weights, trace.weights)
    if build is foreign.flame:
        assert np.array_equal(read.token_ids, trace.token_ids)
    assert read.meta["requests_by"] == f"--requests {each} --interleave {side}"


def test_rows_that_do_not_fill_a_block_are_shorter_requests(tmp_path: Path) -> None:
    """Two requests of 4 side by side are a block of 8; of 13 rows five are left: three of one request, two of another.

    Row 8 is position 0 of request 2, row 9 of request 3, row 12 is position 2 of request 2.
    """
    trace = random_trace(np.random.default_rng(3), 13, 2, 8, 2, requests=1, prompt=1.0)
    foreign.flame(tmp_path / "f", trace)
    read = convert(tmp_path / "f", tmp_path / "o.npz", told(trace, 4, 2))
    assert np.bincount(read.sequence).tolist() == [4, 4, 3, 2]
    assert np.array_equal(read.experts, trace.experts[[0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 9, 11]])
    assert read.position.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 0, 1]


@few
@given(each=st.integers(1, 4), side=st.integers(1, 4), blocks=st.integers(1, 3), by_step=st.booleans())
def test_megatron_interleaved(
    each: int, side: int, blocks: int, by_step: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A step holds a micro-batch: its requests are told by their length, or by the step alone."""
    folder, trace = tmp_path_factory.mktemp("megatron"), equal_requests(each, side, blocks)
    mixed = interleaved(trace, each, side)
    steps = (np.arange(trace.n_tokens) // (each * side)).astype(np.int32)  # the builder writes a request in one step
    columns = mixed.arrays() | {
        "sequence": steps,
        "position": np.arange(trace.n_tokens, dtype=np.int32) % (each * side),
    }
    foreign.megatron(folder / "router_trace_rank0.jsonl", RoutingTrace(**columns, meta=trace.meta))
    flags = [*shape_flags(trace), "--phase", "prefill", "--requests", "step" if by_step else str(each)]
    read = convert(folder / "router_trace_rank0.jsonl", folder / "o.npz", [*flags, "--interleave", str(side)])
    ids_agree(read, trace, ordered=False)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--requests", "4", "--interleave", "0"], "--interleave 0: a number from 1"),
        (["--requests", "one", "--interleave", "2"], "needs --requests step or tokens each, not one"),
        (["--interleave", "2"], "required: --requests one, or tokens each"),
    ],
)
def test_interleave_is_told_well(flags: list[str], words: str, tmp_path: Path, capsys: Any) -> None:
    trace = equal_requests(4, 2, 1)
    foreign.flame(tmp_path / "f", trace)
    command = [
        "convert",
        "--force",
        str(tmp_path / "f"),
        str(tmp_path / "o.npz"),
        *shape_flags(trace),
        "--phase",
        "prefill",
        *flags,
    ]
    assert words in refused(command, capsys)
    assert not (tmp_path / "o.npz").exists()


@needs_cases
def test_the_interleaved_case_is_undone(tmp_path: Path) -> None:
    """Rows one after another share no more than popularity makes them; those of one request do, half as much again."""
    flags = ["--model", "m", "--n-experts", "64", "--n-layers", "9", "--moe-layers", "1-2", "--iteration", "5473"]
    flags += ["--phase", "prefill", "--requests", "1024"]
    mixed = overlap(convert(CASES / "flame_interleaved", tmp_path / "a.npz", flags))
    trace = convert(CASES / "flame_interleaved", tmp_path / "b.npz", [*flags, "--interleave", "8"])
    undone = overlap(trace)
    assert np.bincount(trace.sequence).tolist() == [128] * 8
    assert mixed["mean"] < 1.1 * mixed["popularity"] < 1.5 * undone["popularity"] < undone["mean"]


# --- FLAME's shards ---


def test_a_run_and_an_iteration_are_asked_for(tmp_path: Path, capsys: Any) -> None:
    trace = equal_requests(6, 1, 1)
    flags = foreign.flame_pt(tmp_path / "f", trace)
    run = tmp_path / "f" / "actives" / "flame-moe-290m" / "31066"
    for folder in (tmp_path / "f", run.parent.parent, run.parent, run, run / "540"):
        assert detected(folder) == "flame"
        ids_agree(convert(folder, tmp_path / "o.npz", flags), trace)
    (run / "1080").mkdir()
    (run / "540" / "2").rename(run / "1080" / "2")
    command = ["convert", "--force", str(tmp_path / "f"), str(tmp_path / "o.npz"), *flags]
    assert "checkpoints 540, 1080" in refused(command, capsys)
    assert "no actives/iter_7" in refused([*command, "--iteration", "7"], capsys)
    (run.parent / "9").mkdir()
    (run / "1080").rename(run.parent / "9" / "1080")
    assert f"required: IN one of {run}, {run.parent / '9'}" in refused(command, capsys)


Damage = Callable[[Path], None]
SHARDS: dict[str, tuple[Any, str]] = {
    "one tensor": (torch.zeros(3, 2), "a pair of tensors, scores and indices, is required"),
    "three": ((torch.zeros(3, 2),) * 3, "a pair of tensors"),
    "a dict": ({"scores": torch.zeros(3, 2)}, "a dict; a pair"),
    "turned round": ((torch.zeros(3, 2).long(), torch.zeros(3, 2)), "scores is integer"),
    "scores of other rows": ((torch.zeros(4, 2), torch.zeros(3, 2).long()), "scores [4, 2] for indices [3, 2]"),
    "other rows": ((torch.zeros(3, 2), torch.zeros(3, 2).long()), "another number of rows"),
    "a number": ((torch.zeros(9), torch.zeros(9).long()), "2 dimensions are required"),
    "words": (("a", "b"), "scores is a str; a tensor is required"),
    "too many": ((torch.zeros(1).expand(9, 10**12), torch.zeros(9, 2).long()), "the file has"),
    "an id beyond": ((torch.zeros(9, 2), torch.full((9, 2), 8)), "expert 8; ids lie in [0, 8)"),
    "a huge id": ((torch.zeros(9, 2), torch.full((9, 2), 2**62)), "ids lie in [0, 8)"),
    "no score": ((torch.full((9, 2), torch.nan), torch.tensor([[1, 2]] * 9)), "a finite weight"),
    "twice": ((torch.zeros(9, 2), torch.zeros(9, 2).long()), "is already in slot 0"),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_damaged_shard_is_refused(name: str, tmp_path: Path, capsys: Any) -> None:
    trace = equal_requests(18, 1, 1)
    flags = foreign.flame_pt(tmp_path / "f", trace)
    value, words = SHARDS[name]
    torch.save(value, tmp_path / "f" / "actives" / "flame-moe-290m" / "31066" / "540" / "1" / "2.pt")
    found = refused(["convert", "--force", str(tmp_path / "f"), str(tmp_path / "o.npz"), *flags], capsys)
    assert words.split(" is ")[0] in found and (words in found or name == "turned round"), found
    assert not (tmp_path / "o.npz").exists()


def test_a_layer_without_a_shard_is_refused(tmp_path: Path, capsys: Any) -> None:
    trace = equal_requests(18, 1, 1)
    flags = foreign.flame_pt(tmp_path / "f", trace)
    (tmp_path / "f" / "actives" / "flame-moe-290m" / "31066" / "540" / "2" / "10.pt").unlink()
    assert "fewer shards" in refused(
        ["convert", "--force", str(tmp_path / "f"), str(tmp_path / "o.npz"), *flags], capsys
    )


# --- router outputs ---

SHAPE = ["--model", "m", "--moe-layers", "0-2", "--top-k", "2"]
ONE = ["--requests", "one", "--phase", "prefill"]
B, S, L, E, K = 2, 5, 3, 8, 2


def scores(seed: int = 0, rows: int = B * S) -> np.ndarray:
    """float32 [rows, L, E], each a whole number of eighths, so that float16 and bf16 hold them; all different."""
    rng = np.random.default_rng(seed)
    return (np.argsort(rng.random((rows, L, E)), axis=2) / 8 - 0.5).astype(np.float32)


def best(logits: np.ndarray) -> np.ndarray:
    """int [.., K], the ids of the highest, by hand."""
    return np.array([[sorted(range(E), key=lambda e: (-x[e], e))[:K] for x in row] for row in logits.tolist()])


def per_layer(logits: np.ndarray, kind: Any = torch.float32) -> tuple[Any, ...]:
    return tuple(torch.from_numpy(logits[:, i].copy()).to(kind) for i in range(L))


X = scores()
IDS = torch.arange(100, 100 + B * S).reshape(B, S)
# Forms that say which rows are a request: flags beyond the shape's are the phase alone.
WITH_BATCH: dict[str, Any] = {
    "[B, S, E] each": tuple(x.reshape(B, S, E) for x in per_layer(X)),
    "with ids": {"router_logits": per_layer(X), "input_ids": IDS, "logits": torch.zeros(B, S, 50)},
    "with a mask": {"router_logits": list(per_layer(X)), "attention_mask": torch.ones(B, S, dtype=torch.int64)},
    "[L, B, S, E]": torch.stack(per_layer(X)).reshape(L, B, S, E),
    "prompt by prompt": [{"router_logits": per_layer(X[i * S : i * S + S]), "input_ids": IDS[i]} for i in range(B)],
}
FLAT: dict[str, Any] = {
    "tuple": per_layer(X),
    "bf16": per_layer(X, torch.bfloat16),
    "float16": list(per_layer(X, torch.float16)),
    "float64": list(per_layer(X, torch.float64)),
    "in a dict": {"router_logits": per_layer(X)},
    "by layer": {f"model.layers.{i}.mlp.gate": x for i, x in enumerate(per_layer(X))},
    "by layer, out of order": {f"layer_{i}": per_layer(X)[i] for i in (2, 0, 1)},
    "by number": dict(enumerate(per_layer(X))),
    "by layer in a dict": {"router_logits": {f"layers.{i}": x for i, x in enumerate(per_layer(X))}},
    "[L, T, E]": torch.stack(per_layer(X)),
    "[T, L, E]": torch.from_numpy(X),
    "another name": {"anything": torch.from_numpy(X)},
}


def saved(value: Any, folder: Path) -> Path:
    torch.save(value, folder / "r.pt")
    return folder / "r.pt"


@pytest.mark.parametrize("name", FLAT)
def test_forms_of_logits(name: str, tmp_path: Path) -> None:
    path = saved(FLAT[name], tmp_path)
    assert detected(path) == "hf"
    trace = convert(path, tmp_path / "o.npz", [*SHAPE, *ONE])
    assert np.array_equal(trace.experts, best(X)) and np.array_equal(trace.logits, X.astype(np.float16))
    assert trace.weights is None and trace.prefill.all() and trace.position.tolist() == list(range(B * S))
    assert trace.n_experts == E and trace.meta["slots_ordered_by_weight"] and trace.meta["layout"] == "router logits"
    again = convert(path, tmp_path / "o.npz", [*SHAPE, "--requests", str(S), "--prompt-tokens", "2"])
    assert (
        again.sequence.tolist() == [0] * S + [1] * S and again.prefill.tolist() == [True, True, False, False, False] * 2
    )


@pytest.mark.parametrize("name", WITH_BATCH)
def test_a_batch_says_its_requests(name: str, tmp_path: Path, capsys: Any) -> None:
    path = saved(WITH_BATCH[name], tmp_path)
    assert detected(path) == "hf"
    trace = convert(path, tmp_path / "o.npz", [*SHAPE, "--phase", "prefill"])
    assert np.array_equal(trace.experts, best(X)) and trace.sequence.tolist() == [0] * S + [1] * S
    assert trace.position.tolist() == [*range(S)] * 2
    with_ids = name in ("with ids", "prompt by prompt")
    assert (trace.token_ids.tolist() if with_ids else trace.token_ids) == (
        IDS.reshape(-1).tolist() if with_ids else None
    )
    command = ["convert", "--force", str(path), str(tmp_path / "p.npz"), *SHAPE, *ONE]
    assert "says by itself what --requests says" in refused(command, capsys)


@pytest.mark.parametrize("packed", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["router_logits", "[L, T, E]", "layer_0", "arr_0"])
def test_logits_in_npz(packed: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    if name == "arr_0":
        packed(path, *(X[:, i] for i in range(L)))
    elif name == "layer_0":
        packed(path, **{f"layer_{i}": X[:, i] for i in range(L)})
    else:
        packed(path, **{"router_logits" if name == "router_logits" else "x": X.swapaxes(0, 1) if name[0] == "[" else X})
    assert detected(path) == "hf"
    assert np.array_equal(convert(path, tmp_path / "o.npz", [*SHAPE, *ONE]).experts, best(X))


@pytest.mark.parametrize("order", ["C", "F"])
def test_logits_in_npy(order: Any, tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "r.npy", np.array(X, order=order))
    assert detected(tmp_path / "r.npy") == "hf"
    assert np.array_equal(convert(tmp_path / "r.npy", tmp_path / "o.npz", [*SHAPE, *ONE]).experts, best(X))
    np.save(tmp_path / "r.npy", best(X))
    assert "--from vllm" in refused(
        ["convert", "--force", "--from", "hf", str(tmp_path / "r.npy"), "o.npz", *SHAPE, *ONE], capsys
    )


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("file", ["r.pt", "r.npz"])
def test_ids_of_the_top_k(file: str, axis: int, tmp_path: Path) -> None:
    """[T, L, K] or [L, T, K]: the model's number of layers says which."""
    ids = best(X) if axis else best(X).swapaxes(0, 1)
    weights = np.arange(ids.size, dtype=np.float32).reshape(ids.shape)
    if file == "r.pt":
        torch.save(
            {"topk_ids": torch.from_numpy(ids.copy()), "topk_weights": torch.from_numpy(weights)}, tmp_path / file
        )
    else:
        np.savez(tmp_path / file, expert_ids=ids.astype(np.int16), expert_weights=weights)
    trace = convert(tmp_path / file, tmp_path / "o.npz", ["--n-experts", "8", *SHAPE, *ONE])
    assert np.array_equal(trace.experts, best(X)) and not trace.meta["slots_ordered_by_weight"]
    assert np.array_equal(trace.weights, weights if axis else weights.swapaxes(0, 1)) and trace.logits is None


def test_ids_beside_logits_are_the_choice(tmp_path: Path) -> None:
    """Where both are there, what the model chose goes before what its logits would choose."""
    path = saved(
        {"router_logits": per_layer(X), "expert_ids": [i[:, :K] for i in per_layer(X * 0 + np.arange(E))]}, tmp_path
    )
    value = torch.load(path)
    value["expert_ids"] = [torch.tensor([[6, 1]] * B * S)] * L
    trace = convert(saved(value, tmp_path), tmp_path / "o.npz", [*SHAPE, *ONE])
    assert (trace.experts == [6, 1]).all() and np.array_equal(trace.logits, X.astype(np.float16))
    assert not trace.meta["slots_ordered_by_weight"]


def test_two_axes_of_as_many_ask(tmp_path: Path, capsys: Any) -> None:
    path = saved(torch.from_numpy(X[:L]), tmp_path)
    command = ["convert", "--force", str(path), str(tmp_path / "o.npz"), *SHAPE, *ONE]
    assert "required: --columns layers=0 or layers=1" in refused(command, capsys)
    for axis in (0, 1):
        trace = convert(path, tmp_path / "o.npz", [*SHAPE, *ONE, "--columns", f"layers={axis}"])
        assert np.array_equal(trace.experts, best(X[:L] if axis else X[:L].swapaxes(0, 1)))


def test_padding_is_left_out(tmp_path: Path, capsys: Any) -> None:
    """Left padding of two in the first prompt: its rows are the last three, counted from 0."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    value = {"router_logits": per_layer(X), "input_ids": IDS, "attention_mask": mask}
    trace = convert(saved(value, tmp_path), tmp_path / "o.npz", [*SHAPE, "--phase", "prefill"])
    kept = [2, 3, 4, 5, 6, 7, 8]
    assert np.array_equal(trace.experts, best(X)[kept]) and trace.position.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert trace.token_ids.tolist() == [100 + row for row in kept]
    assert trace.meta["dropped"] == {"rows of padding (attention_mask is 0)": 3}
    assert "dropped 3 rows of padding" in capsys.readouterr().out


@pytest.mark.parametrize("masked", [False, True])
def test_a_generation(masked: bool, tmp_path: Path) -> None:
    """A prompt of 5 for each of 2 requests, then 3 passes of a token each: 8 rows a request, the first 5 prompt."""
    later = [scores(seed, B) for seed in (1, 2, 3)]
    value: dict[str, Any] = {"router_logits": (per_layer(X), *map(per_layer, later))}
    if masked:
        value["attention_mask"] = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
        value["sequences"] = torch.arange(B * (S + 4)).reshape(B, S + 4)
    trace = convert(saved(value if masked else value["router_logits"], tmp_path), tmp_path / "o.npz", SHAPE)
    gone = 1 if masked else 0
    whole = [
        np.concatenate([X[b * S : b * S + S], *(x[b : b + 1] for x in later)])[gone * (b == 0) :] for b in range(B)
    ]
    assert np.array_equal(trace.experts, best(np.concatenate(whole)))
    assert trace.position.tolist() == [*range(8 - gone), *range(8)]
    assert trace.prefill.tolist() == [True] * (S - gone) + [False] * 3 + [True] * S + [False] * 3
    assert "2 requests were generated together" in trace.meta["doubts"][0]
    if masked:
        assert trace.token_ids.tolist() == [*range(1, 8), *range(9, 17)]


def test_layers_without_experts_are_none_or_absent(tmp_path: Path, capsys: Any) -> None:
    flags = ["--model", "m", "--n-layers", "4", "--moe-layers", "1-3", "--top-k", "2", *ONE]
    for value in ((None, *per_layer(X)), per_layer(X), {f"layers.{i + 1}.gate": x for i, x in enumerate(per_layer(X))}):
        trace = convert(saved(value, tmp_path), tmp_path / "o.npz", flags)
        assert np.array_equal(trace.experts, best(X)) and trace.meta["moe_layers"] == [1, 2, 3]
    path = saved((per_layer(X)[0], *per_layer(X)), tmp_path)
    assert "has no experts there" in refused(["convert", "--force", str(path), str(tmp_path / "p.npz"), *flags], capsys)


# --- what the numbers are, and the weights ---


def softmax(logits: np.ndarray) -> np.ndarray:
    wide = np.exp(logits.astype(np.float64))
    return (wide / wide.sum(axis=-1, keepdims=True)).astype(np.float32)


def test_values_are_told_or_asked_for(tmp_path: Path, capsys: Any) -> None:
    """Negative numbers are logits; sums of one in [0, 1] probabilities; of the rest no guess is made."""
    trace = convert(saved(per_layer(softmax(X)), tmp_path), tmp_path / "o.npz", [*SHAPE, *ONE])
    assert np.array_equal(trace.experts, best(X)) and trace.logits is None
    assert trace.meta["layout"] == "router probabilities"
    path = saved(per_layer(X + 0.5), tmp_path)
    command = ["convert", "--force", str(path), str(tmp_path / "p.npz"), *SHAPE, *ONE]
    assert "required: --values logits|probabilities" in refused(command, capsys)
    assert "--values 'scores': one of logits, probabilities" in refused([*command, "--values", "scores"], capsys)
    for kind in ("logits", "probabilities"):
        trace = convert(path, tmp_path / "o.npz", [*SHAPE, *ONE, "--values", kind])
        assert np.array_equal(trace.experts, best(X)) and (trace.logits is None) == (kind == "probabilities")
    path = saved(per_layer(X + 1.5), tmp_path)
    command = ["convert", "--force", str(path), str(tmp_path / "p.npz"), *SHAPE, *ONE]
    assert "probabilities lie in [0, 1]" in refused([*command, "--values", "probabilities"], capsys)
    path = saved(per_layer(X), tmp_path)
    command = ["convert", "--force", str(path), str(tmp_path / "p.npz"), *SHAPE, *ONE]
    assert "says by itself what --values says" in refused([*command, "--values", "logits"], capsys)


def like(name: str, rows: int = 3, seed: int = 0) -> np.ndarray:
    """float32 logits [rows, L, E] of a model of the catalog."""
    known = model(name)
    assert known.moe_layers is not None and known.n_experts is not None
    return np.random.default_rng(seed).normal(size=(rows, len(known.moe_layers), known.n_experts)).astype(np.float32)


def listed(logits: np.ndarray) -> list[Any]:
    return [torch.from_numpy(logits[:, i].copy()) for i in range(logits.shape[1])]


def test_weights_by_the_rule_of_the_model(tmp_path: Path) -> None:
    """Mixtral and Qwen3 renormalise softmax over the chosen, OLMoE does not, gpt-oss takes softmax over the chosen."""
    for name, normalised in (("mixtral-8x7b", True), ("olmoe-1b-7b", False), ("gpt-oss-20b", True)):
        logits = like(name)
        trace = convert(saved(listed(logits), tmp_path), tmp_path / "o.npz", ["--model", name, *ONE])
        chances = np.take_along_axis(softmax(logits), trace.experts.astype(np.int64), axis=2)
        wanted = chances / chances.sum(axis=2, keepdims=True) if normalised else chances
        np.testing.assert_allclose(trace.weights, wanted, rtol=1e-4)
        assert trace.meta["score_function"] == model(name).score_function and trace.meta["doubts"] == []
        same = convert(saved(listed(softmax(logits)), tmp_path), tmp_path / "p.npz", ["--model", name, *ONE])
        assert np.array_equal(same.experts, trace.experts)
        np.testing.assert_allclose(same.weights, trace.weights, rtol=1e-3)


def test_what_gpt_oss_gave_before(tmp_path: Path) -> None:
    """Up to transformers 4.57: the weights of the chosen four among zeros, which are no experts of a token."""
    logits = like("gpt-oss-20b")
    ids = np.argsort(-logits, axis=2)[..., :4]
    given = np.zeros_like(logits)
    np.put_along_axis(given, ids, softmax(np.take_along_axis(logits, ids, axis=2)), axis=2)
    given[0, 0] = np.eye(32)[7]  # one expert has it all: the other slots are nobody's
    trace = convert(saved(listed(given), tmp_path), tmp_path / "o.npz", ["--model", "gpt-oss-20b", *ONE])
    assert np.array_equal(trace.experts[1:], ids[1:]) and trace.experts[0, 0].tolist() == [7, -1, -1, -1]
    np.testing.assert_allclose(trace.weights[1:], np.take_along_axis(given, ids, axis=2)[1:], rtol=1e-5)
    assert trace.weights[0, 0].tolist() == [1, 0, 0, 0] and trace.logits is None


def test_a_model_that_chooses_by_more_than_logits_is_said(tmp_path: Path, capsys: Any) -> None:
    """DeepSeek-V3 adds a bias that the file does not hold; with its ids the weights are sigmoid / sum x 2.5."""
    logits = like("deepseek-v3", rows=2)
    trace = convert(saved(listed(logits), tmp_path), tmp_path / "o.npz", ["--model", "deepseek-v3", *ONE])
    assert "deepseek-v3 chooses by more than its router logits" in trace.meta["doubts"][0] and trace.weights is None
    ids = np.argsort(logits, axis=2)[..., :8]
    value = {"router_logits": listed(logits), "topk_ids": torch.from_numpy(ids.copy())}
    trace = convert(saved(value, tmp_path), tmp_path / "o.npz", ["--model", "deepseek-v3", *ONE])
    gates = 1 / (1 + np.exp(-np.take_along_axis(logits, ids, axis=2)))
    np.testing.assert_allclose(trace.weights, 2.5 * gates / gates.sum(axis=2, keepdims=True), rtol=1e-5)
    assert np.array_equal(trace.experts, ids) and trace.meta["doubts"] == []


def test_which_models_choose_by_their_logits() -> None:
    """Sigmoid ones do not, but for a top-1, nor what the catalog calls other; the words of its routers say the same."""
    for entry in _entries().values():
        plain = entry["score_function"].startswith("softmax") or entry["top_k"] == 1
        if entry["name"] not in ("deepseek-v2", "ernie-4.5-21b-a3b"):  # groups, and a bias on softmax
            assert model(entry["name"]).chooses_by_score == plain, entry["name"]


def test_equal_scores_go_to_the_lower_id_and_are_counted(tmp_path: Path) -> None:
    """Of token 1 in layer 0 experts 2, 3 and 5 are equal at the top two places: 2 and 3, and one cell is said."""
    logits = X.copy()
    logits[1, 0] = [-1, -1, 2, 2, 0, 2, 0, 0]
    trace = convert(saved(per_layer(logits), tmp_path), tmp_path / "o.npz", [*SHAPE, *ONE])
    assert trace.experts[1, 0].tolist() == [2, 3]
    assert trace.meta["doubts"] == [
        "1 of 30 tokens and layers have equal scores at the last slot: the lower id was taken"
    ]


# --- hostile router outputs ---


def bad(change: Callable[[np.ndarray], Any]) -> Any:
    logits = X.copy()
    out = change(logits)
    return per_layer(logits) if out is None else out


def nan(logits: np.ndarray) -> None:
    logits[4, 1, 3] = np.nan


def infinite(logits: np.ndarray) -> None:
    logits[4, 1, 3] = np.inf


def great(logits: np.ndarray) -> None:
    logits[4, 1, 3] = 1e6


def nested(depth: int) -> Any:
    return torch.zeros(2, 3) if depth == 0 else [nested(depth - 1)]


HOSTILE: dict[str, tuple[Any, str]] = {
    "NaN": (bad(nan), "row 4, layer 1, expert 3: nan; a number is required"),
    "infinity": (bad(infinite), "expert 3: inf"),
    "too great": (bad(great), "fits float16"),
    "nothing": ((), "a tuple; a tensor, or one for each layer, is required"),
    "None": (None, "nothing; a tensor"),
    "words": (["a", "b", "c"], "a str; floats"),
    "a number": (3, "a int; a tensor"),
    "nesting": (nested(40), "required: --model NAME, or --moe-layers LIST"),
    "another layer": ((*per_layer(X), per_layer(X)[0]), "4 layers, with routing in layer 3"),
    "ragged": ((*per_layer(X)[:2], per_layer(X)[2][:4]), "layers have [4, 10] tokens"),
    "other experts": ((*per_layer(X)[:2], per_layer(X)[2][:, :4]), "4 numbers a token; the ones before have 8"),
    "no experts": (tuple(torch.zeros(4, 0) for _ in range(L)), "0 numbers a token"),
    "no rows": (tuple(torch.zeros(0, E) for _ in range(L)), "no rows"),
    "a layer is None": ((*per_layer(X)[:2], None), "nothing; floats"),
    "flat": (torch.zeros(9), "shape [9]; [layers, tokens, numbers] is required"),
    "neither axis": (torch.zeros(5, 6, E), "shape [5, 6, 8]; m has 3 MoE layers"),
    "sparse": (tuple(torch.eye(E).to_sparse() for _ in range(L)), "a tensor is required"),
    "too much": (tuple(torch.zeros(1).expand(10**9, E) for _ in range(L)), "the file has"),
    "complex": (tuple(torch.zeros(3, E, dtype=torch.complex64) for _ in range(L)), "numbers are required"),
    "ids beyond": ({"expert_ids": torch.full((4, L, K), 2**40)}, "ids lie in [0, 8)"),
    "ids negative": ({"expert_ids": torch.full((4, L, K), -7)}, "ids lie in [0, 8)"),
    "ids twice": ({"expert_ids": torch.full((4, L, K), 3)}, "is already in slot 0"),
    "three ids": ({"expert_ids": torch.zeros(4, L, 3).long()}, "3 experts a token; m has 2"),
    "weights of others": (
        {"expert_ids": torch.tensor([[[0, 1]] * L] * 4), "weights": torch.zeros(5, L, K)}, "not of the same tokens"
    ),
    "weights, wider": (
        {"expert_ids": torch.tensor([[[0, 1]] * L] * 4), "weights": torch.zeros(4, L, 3)}, "3 weights for 2 experts"
    ),
    "other ids": ({"router_logits": per_layer(X), "input_ids": torch.zeros(2, 7).long()}, "10 rows for input_ids"),
    "ids of no batch": ({"router_logits": per_layer(X), "input_ids": torch.zeros(3, 7).long()}, "they disagree"),
    "ids are words": ({"router_logits": per_layer(X), "input_ids": ["a", "b"]}, "integers [batch, n] are required"),
    "mask and ids": (
        {"router_logits": per_layer(X), "input_ids": IDS, "attention_mask": torch.ones(5, 2)[:, :2].long()}, "disagree"
    ),
    "no routing": ({"hidden_states": torch.zeros(3), "x": 1}, "required: --columns logits=NAME or experts=NAME"),
    "an encoder": (
        {"encoder_router_logits": per_layer(X), "decoder_router_logits": per_layer(X)},
        "required: --columns logits=decoder_router_logits",
    ),
    "passes of no batch": ((per_layer(X), per_layer(X[:3])), "they disagree"),
    "unlike elements": (
        [{"router_logits": per_layer(X)}, {"expert_ids": torch.zeros(4, L, K).long()}], "not every element"
    ),
    "a layer's number is huge": (dict(zip(("h.0", "h.1", "h.99999"), per_layer(X), strict=True)), "number"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_router_outputs(name: str, tmp_path: Path, capsys: Any) -> None:
    value, words = HOSTILE[name]
    path = saved(value, tmp_path)
    command = [
        "convert",
        "--force",
        "--from",
        "hf",
        str(path),
        str(tmp_path / "o.npz"),
        "--n-experts",
        "8",
        *SHAPE,
        *ONE,
    ]
    found = refused(command, capsys)
    assert words in found and str(path) in found, found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.pt"]


def test_columns_name_what_is_meant(tmp_path: Path, capsys: Any) -> None:
    value = {"encoder_router_logits": per_layer(-X), "decoder_router_logits": per_layer(X)}
    path = saved(value, tmp_path)
    flags = [*SHAPE, *ONE, "--columns", "logits=decoder_router_logits"]
    assert np.array_equal(convert(path, tmp_path / "o.npz", flags).experts, best(X))
    command = ["convert", "--force", "--from", "hf", str(path), str(tmp_path / "p.npz"), *SHAPE, *ONE, "--columns"]
    assert "no 'x' (--columns logits=x)" in refused([*command, "logits=x"], capsys)
    assert "--columns colour: one of" in refused([*command, "colour=x"], capsys)


def test_objects_are_never_unpickled(tmp_path: Path, capsys: Any) -> None:
    mark = tmp_path / "mark"
    np.savez(tmp_path / "r.npz", router_logits=np.array([Touch(mark)], dtype=object))
    torch.save({"router_logits": [Touch(mark)]}, tmp_path / "r.pt")
    (tmp_path / "s.pt").write_bytes(pickle.dumps([Touch(mark)]))
    for name, words in (("r.npz", "never unpickled"), ("r.pt", "weights_only"), ("s.pt", "zip")):
        command = ["convert", "--force", "--from", "hf", str(tmp_path / name), str(tmp_path / "o.npz"), *SHAPE, *ONE]
        assert words in refused(command, capsys)
    assert not mark.exists()


def test_an_npz_of_this_project_is_none(tmp_path: Path, capsys: Any) -> None:
    npz.write(tmp_path / "t.npz", equal_requests(4, 1, 1))
    assert "a file of this project" in refused(
        ["convert", "--force", "--from", "hf", str(tmp_path / "t.npz"), "o.npz", *SHAPE], capsys
    )


@needs_cases
@pytest.mark.parametrize("name", ["hf_router_logits.pt", "hf_topk.npz", "hf_topk_tensor.pt"])
def test_the_cases_are_read_or_ask(name: str, tmp_path: Path, capsys: Any) -> None:
    """12 tokens, 16 layers, 64 experts, top-8: OLMoE's, and not those of Qwen3."""
    command = ["convert", "--force", str(CASES / name), str(tmp_path / "o.npz"), "--model"]
    found = refused([*command, "qwen3-30b-a3b"], capsys)
    assert "required: --model NAME, or --moe-layers LIST" in found
    assert "required: --requests one" in refused([*command, "olmoe-1b-7b"], capsys)
    trace = convert(CASES / name, tmp_path / "o.npz", ["--model", "olmoe-1b-7b", *ONE])
    assert trace.experts.shape == (12, 16, 8) and (trace.logits is not None) == (name == "hf_router_logits.pt")
    assert trace.meta["doubts"] == []


# --- data sets ---


@few
@given(trace=traces(max_tokens=14), recorded=st.booleans())
def test_parquet_is_the_trace(trace: RoutingTrace, recorded: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any trace, with whatever arrays, comes back byte for byte, without a flag."""
    folder = tmp_path_factory.mktemp("parquet")
    trace = replace(trace, resident=trace.experts % 2 == 0) if recorded else trace
    npz.write(folder / "in.npz", trace)
    assert main(["convert", "--force", "--to", "parquet", str(folder / "in.npz"), str(folder / "t.parquet")]) == 0
    assert detected(folder / "t.parquet") == "parquet"
    assert main(["convert", "--force", str(folder / "t.parquet"), str(folder / "out.npz")]) == 0
    assert (folder / "out.npz").read_bytes() == (folder / "in.npz").read_bytes()


def table(path: Path, trace: RoutingTrace, change: Callable[[Any, Any, dict[str, Any]], Any]) -> None:
    """The Parquet of a trace, changed: change(pyarrow, table, meta) gives a table, whose meta may have been changed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    foreign.parquet(path, trace)
    held = pq.read_table(path)
    meta = json.loads(held.schema.metadata[b"routing_trace_meta"])
    changed = change(pa, held, meta)
    pq.write_table(changed.replace_schema_metadata({"routing_trace_meta": json.dumps(meta)}), path)


def swapped(column: str, value: Callable[[Any, Any], Any]) -> Callable[[Any, Any, dict[str, Any]], Any]:
    return lambda pa, held, meta: held.set_column(
        held.schema.names.index(column), column, [value(pa, held.column(column))]
    )


BROKEN: dict[str, tuple[Callable[[Any, Any, dict[str, Any]], Any], str]] = {
    "no experts": (lambda pa, held, meta: held.drop_columns(["experts"]), "no column experts"),
    "no rows": (lambda pa, held, meta: held.slice(0, 0), "no rows"),
    "no meta": (lambda pa, held, meta: meta.clear() or held, "meta.format_version is missing"),
    "other experts": (lambda pa, held, meta: meta.update(n_experts=2) or held, "ids lie in [0, 2)"),
    "n_experts is huge": (lambda pa, held, meta: meta.update(n_experts=10**30) or held, "n_experts is 1000"),
    "a word": (swapped("position", lambda pa, c: pa.array(["a"] * len(c))), "position is object"),
    "flat experts": (swapped("experts", lambda pa, c: pa.array([1] * len(c))), "experts is int64, 1 deep"),
    "ragged": (swapped("experts", lambda pa, c: pa.array([[[1]], [[1], [2]]] * 6)), "different lengths"),
    "ragged slots": (swapped("experts", lambda pa, c: pa.array([[[1], [1, 2]]] * len(c))), "different lengths"),
    "empty lists": (swapped("experts", lambda pa, c: pa.array([[]] * len(c), c.type)), "experts"),
    "null": (swapped("experts", lambda pa, c: pa.array([None, *c.to_pylist()[1:]])), "without a value"),
    "null slots": (swapped("experts", lambda pa, c: pa.array([[None] * 3] * len(c), c.type)), "experts"),
    "ids beyond": (swapped("experts", lambda pa, c: pa.array([[[99, 1]] * 3] * len(c))), "ids lie in [0, 8)"),
    "NaN": (swapped("weights", lambda pa, c: pa.array([[[np.nan, 1.0]] * 3] * len(c), c.type)), "finite weight"),
    "positions": (swapped("position", lambda pa, c: pa.array([5] * len(c), pa.int32())), "rise by one"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_parquet_is_refused(name: str, tmp_path: Path, capsys: Any) -> None:
    change, words = BROKEN[name]
    table(tmp_path / "t.parquet", random_trace(np.random.default_rng(0), 12), change)
    found = refused(
        ["convert", "--force", "--from", "parquet", str(tmp_path / "t.parquet"), str(tmp_path / "o.npz")], capsys
    )
    assert words in found and str(tmp_path) in found, found
    assert not (tmp_path / "o.npz").exists()


def test_another_parquet_and_other_flags_are_refused(tmp_path: Path, capsys: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "a.parquet")
    assert "no routing_trace_meta" in refused(
        ["convert", "--force", "--from", "parquet", str(tmp_path / "a.parquet"), "o.npz"], capsys
    )
    assert "in no format" in refused(["convert", "--force", str(tmp_path / "a.parquet"), "o.npz"], capsys)
    foreign.parquet(tmp_path / "t.parquet", random_trace(np.random.default_rng(0), 12))
    command = ["convert", "--force", str(tmp_path / "t.parquet"), str(tmp_path / "o.npz")]
    assert "top_k is 2; without --top-k" in refused([*command, "--top-k", "3"], capsys)
    assert "model is 'test-model'; without --model" in refused([*command, "--model", "m"], capsys)
    assert "--requests: parquet does not take it" in refused([*command, "--requests", "one"], capsys)
    assert main([*command, "--synthetic", "--licence", "CC0-1.0"]) == 0
    assert not npz.read(tmp_path / "o.npz").real and npz.read(tmp_path / "o.npz").meta["licence"] == "CC0-1.0"


def front_of(folder: Path) -> str:
    return (folder / "README.md").read_text().split("---\n")[1]


@pytest.mark.parametrize("to", ["parquet", "npz"])
def test_a_card(to: str, tmp_path: Path, capsys: Any) -> None:
    """The hub's words, what is unlikely, the licence and how to load it stand in it; the data are the trace."""
    trace = random_trace(np.random.default_rng(0), 40, licence="Apache-2.0", capture="by <b>hand</b>|x", real=True,
                         doubts=["it | rained"], dropped={"rows of padding": 3})  # fmt: skip
    npz.write(tmp_path / "t.npz", trace)
    assert main(["card", str(tmp_path / "t.npz"), "--out", str(tmp_path / "d"), "--to", to]) == 0
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["README.md", f"trace.{to}"]
    front, card = front_of(tmp_path / "d"), (tmp_path / "d" / "README.md").read_text()
    assert "license: apache-2.0\n" in front and "- n<1K\n" in front and "- routing-traces\n" in front
    assert ("path: trace.parquet" in front) == (to == "parquet") and "synthetic" not in front
    assert "it \\| rained" in card and "left out: 3 rows of padding" in card and "| by \\<b\\>" in card
    assert "overlap" in card and ('load_dataset("FOLDER"' in card) == (to == "parquet")
    assert "unknown" not in capsys.readouterr().out
    if to == "parquet":
        assert main(["convert", "--force", str(tmp_path / "d"), str(tmp_path / "o.npz")]) == 0
        assert (tmp_path / "o.npz").read_bytes() == (tmp_path / "t.npz").read_bytes()
    else:
        assert (tmp_path / "d" / "trace.npz").read_bytes() == (tmp_path / "t.npz").read_bytes()


def test_a_card_is_loud(tmp_path: Path, capsys: Any) -> None:
    """No licence, or no capture: said on the terminal and first thing in the card; a licence of its own is `other`."""
    npz.write(tmp_path / "t.npz", random_trace(np.random.default_rng(0), 40))
    assert main(["card", str(tmp_path / "t.npz"), "--out", str(tmp_path / "d")]) == 0
    out = capsys.readouterr().out
    assert "! licence: unknown" in out and "SYNTHETIC" in out
    card = (tmp_path / "d" / "README.md").read_text()
    assert "license: unknown\n" in card and "> **Licence: unknown.**" in card and "- synthetic\n" in card
    assert "**SYNTHETIC: generated, not captured from a model.**" in card
    npz.write(tmp_path / "t.npz", random_trace(np.random.default_rng(0), 40, licence='My "own": 1'))
    assert main(["card", str(tmp_path / "t.npz"), "--out", str(tmp_path / "e")]) == 0
    assert 'license: other\nlicense_name: "My \\"own\\": 1"\n' in front_of(tmp_path / "e")


def test_a_card_takes_no_place_of_others(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    npz.write(tmp_path / "t.npz", random_trace(np.random.default_rng(0), 40))
    (tmp_path / "d").mkdir()
    command = ["card", str(tmp_path / "t.npz"), "--out", str(tmp_path / "d")]
    assert main(command) == 0  # an empty folder is as good as none
    (tmp_path / "d" / "mine").write_text("mine")
    assert "holds results already (README.md, mine, trace.parquet); give another DIR, or --force" in refused(
        command, capsys
    )
    assert main([*command, "--force", "--to", "npz"]) == 0
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["README.md", "mine", "trace.npz"]
    assert "format 'arrow' is unknown" in refused([*command, "--to", "arrow"], capsys)
    assert "no such file" in refused(["card", str(tmp_path / "none"), "--out", str(tmp_path / "n")], capsys)
    monkeypatch.setattr("traces.foreign.card.text", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["card", str(tmp_path / "t.npz"), "--out", str(tmp_path / "new")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "t.npz"]  # nothing half written


def test_arrays_are_told_where_torch_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a .npz is a tensor: a reader of .pt files does not ask for what they need."""
    np.savez(tmp_path / "r.npz", topk_ids=np.arange(24).reshape(3, 4, 2), seq_id=np.zeros(3, int))
    np.savez(tmp_path / "h.npz", router_logits=np.zeros((3, 4, 8), np.float32))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert (detected(tmp_path / "r.npz"), detected(tmp_path / "h.npz")) == ("npz", "hf")
