"""Statistics of traces: cases worked by hand, spellings with sets, the published table of the captures."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from tests.gen import random_trace, trace_of, traces
from traces.format import npz
from traces.format.trace import RoutingTrace
from traces.statistics import stats
from traces.statistics.counts import expert_counts
from traces.statistics.describe import LOUD, describe
from traces.statistics.reuse import reuse_distance, reuse_histogram

CAPTURES = Path(__file__).resolve().parents[2] / "shared" / "traces"


def one_layer(rows: list[list[int]], n_experts: int, sequence: list[int] | None = None, **arrays: Any) -> RoutingTrace:
    experts = np.array(rows, np.int16)[:, None, :]
    ids = np.array(sequence or [0] * len(rows), np.int32)
    position = np.array([list(ids[:i]).count(ids[i]) for i in range(len(ids))], np.int32)
    meta = {
        "format_version": 1,
        "model": "hand",
        "n_experts": n_experts,
        "top_k": experts.shape[2],
        "n_layers": 1,
        "moe_layers": [0],
        "real": True,
    }
    return RoutingTrace(experts, ids, position, np.zeros(len(ids), bool), meta, **arrays)


def test_overlap_by_hand() -> None:
    """Pairs inside requests: (0 1)-(1 2) share 1 of 2, (1 2)-(2 1) 2 of 2; the next crosses requests: 3 / 4.

    Popularity: of 4 rows 0 is in 1, 1 in 3, 2 in 2, 3 in 1: (1 + 9 + 4 + 1) / 16 over (1 + 3 + 2 + 1) / 4 = 15 / 28.
    """
    facts = stats.overlap(one_layer([[0, 1], [1, 2], [2, 1], [3, -1]], 4, [0, 0, 0, 1]))
    assert facts["mean"] == facts["recorded"] == 3 / 4
    assert facts["popularity"] == 15 / 28
    assert facts["random"] == 2 / 4
    assert facts["pairs"] == 2


def test_overlap_counts_absent_slots_as_no_overlap() -> None:
    """(0 1)-(0 -1): 1 of 2 slots, 1 of 1 recorded; (0 -1)-(-1 -1): 0 of 2, nothing recorded."""
    facts = stats.overlap(one_layer([[0, 1], [0, -1], [-1, -1]], 4))
    assert facts["mean"] == 1 / 4
    assert facts["recorded"] == 1
    assert stats.overlap(one_layer([[0, 1]], 4))["mean"] is None


def test_popularity_by_hand() -> None:
    """Uses 2, 1, 1, 0 of 4: entropy 1.5 of 2 bits; Gini of (0, 1, 1, 2) / 4: (-3*0 - 1 + 1 + 3*2) / 4 / 4."""
    facts = stats.popularity(one_layer([[0, 1], [0, 2]], 4))
    assert math.isclose(facts["mean"]["normalised_entropy"], 1.5 / 2)
    assert facts["mean"]["top_share"] == 2 / 4
    assert facts["mean"]["gini"] == 6 / 16
    assert facts["by_layer"]["unused"] == [1]


def test_reuse_distance_by_hand() -> None:
    """0 1 2 0 0 2: the second 0 comes after 1 and 2 (2), the third at once (0), the second 2 after 0 (1)."""
    histogram = reuse_histogram(one_layer([[0], [1], [2], [0], [0], [2]], 4))
    assert histogram.tolist() == [[1, 1, 1, 0, 3]]
    facts = reuse_distance(one_layer([[0], [1], [2], [0], [0], [2]], 4))
    assert facts["quantiles"]["p50"] == 1
    assert (facts["first_uses"], facts["reuses"]) == (3, 3)


def test_working_set_by_hand() -> None:
    """16 tokens that alternate between two experts: one per token, two per window of 16, no window of 64."""
    facts = stats.working_set(one_layer([[t % 2] for t in range(20)], 4))
    assert facts["mean"] == {"1": 1.0, "16": 2.0, "64": None, "256": None}


def test_router_entropy_by_hand() -> None:
    """Weights 1/2 1/2 are 1 bit however scaled, (1 0) is 0; equal logits of 4 experts are 2 bits."""
    weights = np.array([[[0.5, 0.5]], [[0.1, 0.1]], [[1, 0]], [[0, 0]]], np.float32)
    trace = one_layer([[0, 1]] * 4, 4, weights=weights, logits=np.zeros((4, 1, 4), np.float16))
    facts = stats.router_entropy(trace)
    assert math.isclose(facts["weights"]["bits"], 2 / 3, rel_tol=1e-6)
    assert math.isclose(facts["logits"]["bits"], 2)
    assert math.isclose(facts["logits"]["normalised"], 1)
    masked = np.full((4, 1, 4), -np.inf, np.float16)
    masked[:, :, :2] = 30_000
    assert math.isclose(stats.router_entropy(one_layer([[0, 1]] * 4, 4, logits=masked))["logits"]["bits"], 1)


def test_router_entropy_of_sigmoid_scores_by_hand() -> None:
    """Logits ln 3, 0, -ln 3 are scores 3/4, 1/2, 1/4, which are shares 1/2, 1/3, 1/6 of their sum: 1/2 + log2(3) / 3 +
    log2(6) / 6 bits, of log2(3) for three experts. A softmax of the same would give 9, 3, 1 of 13."""
    logits = np.log([[[3.0, 1.0, 1 / 3]]])
    trace = one_layer([[0, 1]], 3, logits=logits.astype(np.float32))
    trace.meta["score_function"] = "sigmoid"
    bits = 1 / 2 + math.log2(3) / 3 + math.log2(6) / 6
    facts = stats.router_entropy(trace)["logits"]
    assert math.isclose(facts["bits"], bits, rel_tol=1e-6) and math.isclose(
        facts["normalised"], bits / math.log2(3), rel_tol=1e-6
    )
    trace.meta["score_function"] = "softmax"
    softmax = -sum(share * math.log2(share) for share in (9 / 13, 3 / 13, 1 / 13))
    assert math.isclose(stats.router_entropy(trace)["logits"]["bits"], softmax, rel_tol=1e-6)


def test_each_layer_by_itself_and_their_mean() -> None:
    """Layer 0: 0 1, 0 2, as above. Layer 1: 3 0, 3 0: uses 2, 0, 0, 2, of which each token shares both with the one
    before, and each expert has one companion always."""
    trace = trace_of([[[0, 1], [3, 0]], [[0, 2], [3, 0]]], 4)
    assert expert_counts(trace).tolist() == [[2, 1, 1, 0], [2, 0, 0, 2]]
    popularity = stats.popularity(trace)
    assert popularity["by_layer"]["top_share"] == [0.5, 0.5] and popularity["by_layer"]["unused"] == [1, 2]
    assert np.allclose(popularity["by_layer"]["normalised_entropy"], [0.75, 0.5])
    # of (0, 0, 1, 1) / 2: (-3 * 0 - 0 + 1 + 3) / 2 / 4
    assert popularity["by_layer"]["gini"] == [6 / 16, 1 / 2] and popularity["mean"]["gini"] == 7 / 16
    overlap = stats.overlap(trace)
    assert (overlap["by_layer"], overlap["mean"], overlap["pairs"]) == ([0.5, 1.0], 0.75, 1)
    # two tokens drawn by popularity: layer 0 (1 + 1/4 + 1/4) / 2, layer 1 (1 + 1) / 2
    assert overlap["popularity"] == (0.75 + 1) / 2
    companions = stats.co_activation(trace)
    # layer 0: 0 with 1 (or 2) in 1 of its 2 uses, 1 and 2 with 0 always: 3 of 4; chance would give 1 of the other 3
    assert (companions["by_layer"], companions["top_companion"]) == ([0.75, 1.0], 7 / 8)
    assert companions["random"] == 1 / 3
    assert stats.working_set(trace)["by_layer"]["1"] == [2, 2]


def test_co_activation_by_hand() -> None:
    """0's companion is 1 in 2 of 3 uses, 1's is 0 in 2 of 2, 2's is 0 in 1 of 1: 5 of 6."""
    trace = one_layer([[0, 1], [0, 1], [0, 2]], 4)
    assert stats.co_activation_counts(trace, 0).tolist() == [
        [3, 2, 1, 0],
        [2, 2, 0, 0],
        [1, 0, 1, 0],
        [0] * 4,
    ]
    assert stats.co_activation(trace)["top_companion"] == 5 / 6


@given(trace=traces(max_tokens=40))
def test_reuse_histogram_against_an_lru_stack(trace: RoutingTrace) -> None:
    histogram = reuse_histogram(trace)
    for layer in range(trace.n_moe_layers):
        stack: list[int] = []
        expected = [0] * (trace.n_experts + 1)
        for expert in trace.experts[:, layer].reshape(-1).tolist():
            if expert < 0:
                continue
            expected[stack.index(expert) if expert in stack else trace.n_experts] += 1
            stack = [expert, *(e for e in stack if e != expert)]
        assert histogram[layer].tolist() == expected


@given(trace=traces(max_tokens=40))
def test_overlap_and_working_set_against_sets(trace: RoutingTrace) -> None:
    sets = [[{e for e in slots if e >= 0} for slots in row] for row in trace.experts.tolist()]
    pairs = [t for t in range(1, trace.n_tokens) if trace.sequence[t] == trace.sequence[t - 1]]
    layers = range(trace.n_moe_layers)
    shared = sum(len(sets[t][layer] & sets[t - 1][layer]) for t in pairs for layer in layers)
    facts = stats.overlap(trace)
    if pairs:
        assert math.isclose(facts["mean"], shared / (len(pairs) * len(layers) * trace.top_k))
    means = stats.working_set(trace)["by_layer"]["16"]
    windows = [range(lo, lo + 16) for lo in range(0, trace.n_tokens - 15, 16)]
    for layer in layers if windows else ():
        counts = [len(set.union(*(sets[t][layer] for t in window))) for window in windows]
        assert math.isclose(means[layer], sum(counts) / len(counts))


@given(trace=traces())
def test_info_is_json_and_text_for_every_trace(trace: RoutingTrace) -> None:
    facts = stats.info(trace)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    described = describe(facts, "t.npz")
    assert LOUD in described
    assert described.isascii() and all(len(line) > 3 for line in described.split("\n"))


def test_small_chunks_give_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = random_trace(np.random.default_rng(3), 300, 3, 16, 4, missing=0.05, logits=True)
    whole = stats.info(trace)
    for module in ("format.layout", "statistics.stats", "statistics.reuse"):
        monkeypatch.setattr(f"traces.{module}.CHUNK_ELEMENTS", 700)
    pieces = stats.info(trace)
    assert pieces["router_entropy"]["logits"].pop("bits") == pytest.approx(
        whole["router_entropy"]["logits"].pop("bits")
    )
    for facts in (whole, pieces):  # sums of floats depend on the pieces; every other figure is made of counts
        del facts["router_entropy"]
    assert pieces == whole


def test_foreign_meta_cannot_break_the_text() -> None:
    trace = random_trace(np.random.default_rng(0))
    meta = {
        **trace.meta,
        "source": "a\n\x1b[31mb\ud800",
        "licence": {"x": [1]},
        "data": None,
        "model": "m\nn",
    }
    described = describe(stats.info(RoutingTrace(meta=meta, **trace.arrays())), "f\n.npz")
    assert described.isascii()
    assert "\x1b" not in described
    assert described.startswith("f\\n.npz: m\\nn, ")


TABLE = {
    "mixtral-8x7b": (0.374, 0.250, 0.262),
    "gpt-oss-20b": (0.439, 0.125, 0.253),
    "olmoe-1b-7b": (0.415, 0.125, 0.196),
    "qwen1.5-moe": (0.162, 0.067, 0.075),
    "granite-3.0-1b": (0.420, 0.250, 0.346),
}


@pytest.mark.parametrize("name", TABLE)
def test_overlap_of_the_captures(name: str) -> None:
    """The table in the captures' README: all rows, prompt rows too; absent slots count as no overlap."""
    path = CAPTURES / f"{name}.npz"
    if not path.exists():
        pytest.skip("the real captures are not beside this project")
    facts = stats.overlap(npz.read(path))
    assert tuple(round(facts[key], 3) for key in ("mean", "random", "popularity")) == TABLE[name]
