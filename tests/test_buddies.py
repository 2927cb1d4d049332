"""BuddyMoE's offline profile: counts, shares and lists by hand and by law; files; `python -m sim.profile`."""

import io
import json
import os
import subprocess
import sys
import zipfile
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sim.errors import SpecError
from sim.fit import buddies_file, coactivation
from sim.fit.buddies import BuddyLists, BuddyProfile, from_similarity
from sim.fit.coactivation import co_activation, conditional
from sim.profile import main, report
from tests.gen import REUSING_FOLDER, random_trace, traces
from traces.errors import UserError
from traces.format import npz
from traces.format.trace import RoutingTrace

ROOT = Path(__file__).resolve().parents[1]
CAPTURES = ROOT.parent / "shared" / "traces"

# Six tokens, one layer, 4 experts, top-2, requests of 4 and 2 rows; the third token is a prompt's second.
ROUTED = [[0, 1], [1, 0], [0, 2], [1, 2], [0, 1], [3, -1]]


def small(weights: Any = None, prefill: Any = (0, 0, 0, 0, 0, 0), experts: Any = ROUTED, n: int = 4) -> RoutingTrace:
    ids = np.array(experts, np.int16)[:, None, :]
    rows = len(ids)
    meta = {
        "format_version": 1,
        "model": "test-model",
        "n_experts": n,
        "top_k": ids.shape[2],
        "n_layers": 1,
        "moe_layers": [0],
        "real": False,
    }
    return RoutingTrace(
        experts=ids,
        sequence=np.array([0, 0, 0, 0, 1, 1][:rows], np.int32),
        position=np.array([0, 1, 2, 3, 0, 1][:rows], np.int32),
        prefill=np.array(prefill, np.bool_)[:rows],
        meta=meta,
        weights=None if weights is None else np.array(weights, np.float32)[:, None, :],
    )


def lists_of(score: list[list[float]], **options: Any) -> list[list[int]]:
    """Peers of each expert of one layer whose co-activation counts are `score`, without padding."""
    found = from_similarity(np.array([score]) / np.max(score), **options)
    return [[int(j) for j in row if j >= 0] for row in found.peers[0]]


# --- counts by hand ---


def test_binary_counts_by_hand() -> None:
    """{0,1} three times, {0,2} once, {1,2} once, {3} once, alone."""
    counts = co_activation(small())
    assert counts.m[0].tolist() == [[4, 3, 1, 0], [3, 4, 1, 0], [1, 1, 2, 0], [0, 0, 0, 1]]
    assert counts.uses.tolist() == [[4, 4, 2, 1]]
    # 5 pairs, each counted from both ends, over 4 * 3 ordered pairs of experts.
    assert counts.n_tokens == 6 and counts.mean_pairs == pytest.approx(10 / 12)


WEIGHTS = [[0.6, 0.2], [0.5, 0.5], [0.9, 0.3], [0, 0], [1, 1], [0.2, 7]]


def test_weighted_counts_by_hand() -> None:
    """min of the two shares: {0,1}: .2 / .8 + .5 + .5 = 1.25; {0,2}: .3 / 1.2 = .25; {1,2}: weights 0.

    Expert 3's partner is absent, so its share is 1, whatever weight stands beside -1.
    """
    counts = co_activation(small(WEIGHTS), "weighted")
    assert counts.m[0, 0] == pytest.approx([0.75 + 0.5 + 0.75 + 0.5, 1.25, 0.25, 0])
    assert counts.m[0, 1] == pytest.approx([1.25, 0.25 + 0.5 + 0.5, 0, 0])
    assert counts.uses[0] == pytest.approx([2.5, 1.25, 0.25, 1])
    assert counts.mean_pairs == pytest.approx(10 / 12)  # pairs are counted, not weighed, for the sample's size


def test_mixed_counts_by_hand() -> None:
    """Off the diagonal 10 binary and 2 (1.25 + .25) = 3 weighted, so weighted counts are scaled by 10 / 3."""
    counts = co_activation(small(WEIGHTS), "mixed", mix=0.25)
    assert counts.m[0, 0, 1] == pytest.approx(0.75 * 3 + 0.25 * 1.25 * 10 / 3)
    assert counts.m[0, 1, 2] == pytest.approx(0.75 * 1)
    assert counts.m[0].sum() - np.trace(counts.m[0]) == pytest.approx(10)
    for mix, count in ((0.0, "binary"), (1.0, "weighted")):
        q = conditional(co_activation(small(WEIGHTS), "mixed", mix=mix).m)
        assert np.allclose(q, conditional(co_activation(small(WEIGHTS), count).m))


def test_warmup_and_chosen_rows() -> None:
    """First rows of each request at .25: tokens 0 and 4, both {0,1}, so M(0,1) = .25 + 1 + .25."""
    counts = co_activation(small(), warmup=1, warmup_weight=0.25)
    assert counts.m[0, 0].tolist() == [2.5, 1.5, 1, 0] and counts.n_tokens == 4.5
    assert co_activation(small(), warmup=1, warmup_weight=0).m[0, 0].tolist() == [2, 1, 1, 0]
    prompt = small(prefill=[1, 1, 0, 0, 1, 0])
    assert co_activation(prompt, decode_only=True).m[0, 0].tolist() == [1, 0, 1, 0]
    assert co_activation(prompt, rows=[False, True, True, False, False, False]).m[0, 0].tolist() == [
        2,
        1,
        1,
        0,
    ]
    both = co_activation(small(WEIGHTS), "weighted", warmup=1, warmup_weight=0.5)
    assert both.m[0, 0, 1] == pytest.approx(0.5 * 0.25 + 0.5 + 0.5 * 0.5)


def naive(trace: RoutingTrace, weighted: bool, keep: np.ndarray) -> np.ndarray:
    m = np.zeros((trace.n_moe_layers, trace.n_experts, trace.n_experts))
    for t in range(trace.n_tokens):
        for layer in range(trace.n_moe_layers):
            slots = [s for s in range(trace.top_k) if trace.experts[t, layer, s] >= 0]
            p = dict.fromkeys(slots, 1.0)
            if weighted:
                assert trace.weights is not None
                w = {s: float(trace.weights[t, layer, s]) for s in slots}
                p = {s: w[s] / sum(w.values()) if sum(w.values()) else 0.0 for s in slots}
            for a in slots:
                for b in slots:
                    m[layer, trace.experts[t, layer, a], trace.experts[t, layer, b]] += keep[t] * min(p[a], p[b])
    return m


@given(
    trace=traces(),
    warmup=st.integers(0, 3),
    weight=st.sampled_from([0.25, 1.0]),
    block=st.sampled_from([1, 3, 1 << 13]),
)
def test_counts_equal_a_naive_loop(trace: RoutingTrace, warmup: int, weight: float, block: int) -> None:
    assume(trace.n_experts > 1)
    first, last = trace.requests()
    keep = np.ones(trace.n_tokens)
    for lo, hi in zip(first, last, strict=True):
        keep[lo : min(lo + warmup, hi)] = weight
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coactivation, "BLOCK_SLOTS", block * trace.top_k)
        binary = co_activation(trace, warmup=warmup, warmup_weight=weight)
        assert np.array_equal(binary.m, naive(trace, False, keep))
        if trace.weights is not None:
            weighted = co_activation(trace, "weighted", warmup=warmup, warmup_weight=weight)
            assert np.allclose(weighted.m, naive(trace, True, keep), rtol=1e-12, atol=0)
            assert np.array_equal(weighted.m, weighted.m.transpose(0, 2, 1))
            assert weighted.mean_pairs == binary.mean_pairs
    assert binary.n_tokens == keep.sum()


# --- shares ---


def test_conditional_by_hand() -> None:
    m = co_activation(small()).m
    q = conditional(m)[0]
    assert q[0].tolist() == [0, 0.75, 0.25, 0]  # the diagonal, 4, is dropped before normalising
    assert q[2].tolist() == [0.5, 0.5, 0, 0]
    assert q[3] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])  # never with another: uniform
    # 3 + 1, 1 + 1, 0 + 1 of 7
    assert conditional(m, eps=1)[0, 0] == pytest.approx([0, 4 / 7, 2 / 7, 1 / 7])
    assert m[0, 0, 0] == 4  # the counts are left as they were


@given(trace=traces(), eps=st.sampled_from([0.0, 1e-6, 1.0]))
def test_rows_of_q_sum_to_one(trace: RoutingTrace, eps: float) -> None:
    assume(trace.n_experts > 1)
    q = conditional(co_activation(trace).m, eps)
    assert np.allclose(q.sum(axis=2), 1) and (q >= 0).all()
    assert (np.diagonal(q, axis1=1, axis2=2) == 0).all()


# --- lists ---


@pytest.mark.parametrize(
    ("alpha", "k_max", "sizes", "bound"),
    [
        (0.3, 16, [1, 1, 1, 2, 1], [0, 0, 0, 0, 0]),
        (0.7, 16, [2, 2, 2, 3, 1], [0, 0, 0, 0, 0]),
        (0.9, 16, [3, 3, 3, 4, 1], [0, 0, 0, 0, 0]),
        (1.0, 16, [4, 4, 3, 4, 1], [0, 0, 0, 0, 0]),
        (0.9, 2, [2, 2, 2, 2, 1], [1, 1, 1, 1, 0]),
        (0.9, 1, [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]),
    ],
)
def test_lists_by_hand(alpha: float, k_max: int, sizes: list[int], bound: list[int]) -> None:
    """Shares, best first: .4 .3 .2 .1 | .6 .2 .1 .1 | .4 .3 .3 0 | .25 each | 1 0 0 0."""
    tenths = [
        [0, 0.3, 0.1, 0.4, 0.2],
        [0.6, 0, 0.2, 0.1, 0.1],
        [0.3, 0.3, 0, 0, 0.4],
        [0.25, 0.25, 0.25, 0, 0.25],
        [0, 0, 1, 0, 0],
    ]
    lists = from_similarity([tenths], alpha=alpha, k_max=k_max)
    assert lists.sizes[0].tolist() == sizes
    assert lists.bound[0].tolist() == [bool(b) for b in bound]
    assert lists.peers.shape == (1, 5, min(k_max, 4))
    order = [3, 1, 4, 2]
    assert lists.peers[0, 0].tolist() == [*order[: sizes[0]], -1, -1, -1, -1][: min(k_max, 4)]
    assert lists.peers[0, 4, 0] == 2
    assert lists.coverage[0, 0] == pytest.approx(np.cumsum([0.4, 0.3, 0.2, 0.1])[sizes[0] - 1])


def test_a_sum_that_lacks_a_rounding_error_has_reached_alpha() -> None:
    """Expert 0 with the others 3, 3, 3, 1 times: .3 + .3 + .3 is .8999999999999999, and reaches .9."""
    assert 0.3 + 0.3 + 0.3 < 0.9
    pairs = [[0, 1]] * 3 + [[0, 2]] * 3 + [[0, 3]] * 3 + [[0, 4]]
    trace = random_trace(np.random.default_rng(0), 10, 1, 5, 2, requests=1)
    trace = RoutingTrace(**{**trace.arrays(), "experts": np.array(pairs)[:, None]}, meta=trace.meta)
    lists = BuddyProfile(alpha=0.9, eps=0).fit(trace).lists_
    assert lists.sizes[0].tolist() == [3, 1, 1, 1, 1]
    assert set(lists.peers[0, 0, :3].tolist()) == {1, 2, 3}


def test_alpha_per_layer() -> None:
    trace = random_trace(np.random.default_rng(0), 200, 3, 8, 3)
    lists = BuddyProfile(alpha=[0.2, 0.6, 1.0]).fit(trace).lists_
    for layer, alpha in enumerate([0.2, 0.6, 1.0]):
        alone = BuddyProfile(alpha=alpha).fit(trace).lists_
        assert np.array_equal(lists.peers[layer], alone.peers[layer])
    assert lists.alpha.tolist() == lists.meta["alpha"] == [0.2, 0.6, 1.0]
    means = lists.sizes.mean(axis=1)
    assert means[0] < means[1] < means[2]


@given(
    trace=traces(),
    alpha=st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 1.0]),
    k_max=st.integers(1, 9),
    seed=st.integers(-3, 2**64),
)
def test_lists_are_the_shortest_that_cover_alpha(trace: RoutingTrace, alpha: float, k_max: int, seed: int) -> None:
    """By exact fractions: a list covers alpha unless K_max binds; without its last entry it does not."""
    assume(trace.n_experts > 1)
    lists = BuddyProfile(alpha=alpha, k_max=k_max, eps=0, seed=seed).fit(trace).lists_
    buddies_file.validate(lists)
    m = co_activation(trace).m
    goal = Fraction(str(alpha))
    for layer in range(trace.n_moe_layers):
        for i in range(trace.n_experts):
            mass = [Fraction(int(x)) for x in m[layer, i]]
            mass[i] = Fraction(0)
            if not any(mass):
                mass = [Fraction(int(j != i)) for j in range(trace.n_experts)]
            kept = [int(j) for j in lists.peers[layer, i] if j >= 0]
            share = [mass[j] / sum(mass) for j in kept]
            assert i not in kept and all(a >= b for a, b in pairwise(share))
            assert min(share) >= max((mass[j] / sum(mass) for j in range(len(mass)) if j not in [*kept, i]), default=0)
            assert sum(share) >= goal or (len(kept) == k_max and lists.bound[layer, i])
            assert sum(share[:-1]) < goal
            assert lists.coverage[layer, i] == pytest.approx(float(sum(share)))
            assert lists.q[layer, i, : len(kept)] == pytest.approx([float(s) for s in share], rel=1e-6)


def test_equal_peers_are_ordered_by_seed_never_by_index() -> None:
    """40 experts, all pairs equal: first buddies are spread out, and differ by seed and by layer."""
    level = np.ones((2, 40, 40))
    lists = [from_similarity(level, k_max=16, seed=seed).peers for seed in range(3)]
    assert np.array_equal(lists[0], from_similarity(level, k_max=16, seed=0).peers)
    assert not np.array_equal(lists[0], lists[1]) and not np.array_equal(lists[0][0], lists[0][1])
    for peers in lists:
        # By index, 39 of 40 experts would have expert 0 first. At random a count above 9 has chance 40 e-7.
        assert np.bincount(peers[0, :, 0], minlength=40).max() <= 9
        uses = np.bincount(peers.ravel(), minlength=40)  # 2 * 40 * 16 / 40 = 32 each
        assert uses.min() > 10 and uses.max() < 60


def test_ties_alone_depend_on_the_seed() -> None:
    scores = [[0, 5, 3, 3, 3, 1], *[[1] * 6] * 5]
    found = {tuple(lists_of(scores, seed=seed)[0]) for seed in range(40)}
    assert len(found) == 6  # all orders of the three that are equal
    assert {(f[0], f[4], frozenset(f[1:4])) for f in found} == {(1, 5, frozenset({2, 3, 4}))}


def test_experts_without_co_activation_have_random_lists() -> None:
    """Top-1 routing: no pair is ever seen; lists are random, as long as alpha asks of uniform shares."""
    trace = random_trace(np.random.default_rng(0), 50, 2, 8, 1)
    for eps in (0.0, 1e-6):
        lists = BuddyProfile(alpha=0.5, eps=eps).fit(trace).lists_
        assert (lists.sizes == 4).all()  # 3 / 7 < .5 <= 4 / 7
        assert lists.meta["experts_alone"] == 16 and lists.meta["mean_pairs"] == 0
        assert len(set(lists.peers[:, :, 0].ravel().tolist())) > 3
    assert "no token has two" in report(lists)["warning"]


def test_similarity_lists() -> None:
    """By descending similarity, not symmetric; shares of the positive parts; a threshold may leave nobody."""
    s = np.array([[[np.nan, 0.6, 0.2, -0.5], [0.1, 9, 0.3, 0.2], [-0.9, -0.2, 1, -0.1], [0.5, 0.5, 0.5, 1]]])
    lists = from_similarity(s, alpha=1.0, k_max=3)
    assert lists.peers[0, 0].tolist() == [1, 2, -1]  # .6 + .2 is all that is positive
    assert lists.q[0, 0] == pytest.approx([0.75, 0.25, 0])
    assert lists.peers[0, 1].tolist() == [2, 3, 0]
    assert lists.peers[0, 2].tolist() == [3, 1, 0]  # nothing positive: uniform shares, but in this order
    assert lists.q[0, 2] == pytest.approx([1 / 3] * 3)
    assert lists.meta["similarity"]["symmetric"] is False
    cut = from_similarity(s, k_max=3, threshold=0.25)
    assert [[j for j in row if j >= 0] for row in cut.peers[0].tolist()][:3] == [[1], [2], []]
    assert cut.coverage[0].tolist() == pytest.approx([0.75, 0.5, 0, 1])
    buddies_file.validate(cut)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, r"alpha is 0.0; a share in \(0, 1\]"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": [0.5, 0.5]}, "alpha has 2 values; one, or one for each of 1 MoE layers"),
        ({"k_max": 0}, "k_max is 0"),
        ({"count": "sum"}, "count is 'sum'; one of binary, weighted, mixed"),
        ({"count": "weighted"}, "needs router weights, which this trace of test-model lacks"),
        ({"mix": 1.5}, "mix is 1.5"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"eps": float("inf")}, "eps is inf"),
        ({"warmup": -1}, "warmup is -1"),
        ({"warmup_weight": 2.0}, "warmup_weight is 2.0"),
        ({"warmup": 9, "warmup_weight": 0.0}, "no token is left"),
    ],
)
def test_bad_parameters(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        BuddyProfile(**change).fit(small())
    assert "\n" not in str(caught.value)


def test_bad_shapes() -> None:
    with pytest.raises(SpecError, match="at least 2 experts"):
        co_activation(small(experts=[[0]], n=1))
    with pytest.raises(SpecError, match="pairs are not counted"):
        co_activation(small(n=32767))
    with pytest.raises(SpecError, match="rows has dtype int64"):
        co_activation(small(), rows=[0, 1])
    for bad, message in (
        (np.zeros((4, 4)), r"shape \(4, 4\)"),
        (np.zeros((1, 4, 5)), r"shape \(1, 4, 5\)"),
        (np.full((1, 3, 3), np.nan), r"similarity\[0, 0, 1\] = nan; a number from -1 to 1"),
        (np.full((1, 3, 3), 1.1), "= 1.1"),
        (np.zeros((1, 1, 1)), "at least 2 experts"),
    ):
        with pytest.raises(SpecError, match=message):
            from_similarity(bad)
    lists = BuddyProfile().fit(small()).lists_
    lists.require_fit(small(n=4))
    with pytest.raises(SpecError, match="1 MoE layers and 4 experts; the trace of test-model has 1 and 5"):
        lists.require_fit(small(n=5))
    moved = small()
    with pytest.raises(SpecError, match="other MoE layers"):
        lists.require_fit(RoutingTrace(**moved.arrays(), meta={**moved.meta, "n_layers": 2, "moe_layers": [1]}))


# --- the report ---


def test_tokens_that_would_do() -> None:
    """E = 64, k = 6, 10 %: (1 / .1)^2 = 100 = T 6 * 5 / (64 * 63), so T = 13,440."""
    trace = random_trace(np.random.default_rng(0), 300, 2, 64, 6)
    facts = report(BuddyProfile().fit(trace).lists_)
    assert facts["sample"]["tokens_needed"] == 13_440
    assert facts["sample"]["mean_pairs"] == pytest.approx(300 * 30 / 4032)
    assert facts["sample"]["pair_error"] == pytest.approx((300 * 30 / 4032) ** -0.5)
    assert "13,440 tokens would do for 10%" in facts["warning"]
    # 300 tokens have exactly the error that is stated of them.
    exact = facts["sample"]["pair_error"]
    assert report(BuddyProfile().fit(trace).lists_, exact)["warning"] is None
    assert report(BuddyProfile().fit(trace).lists_, exact * 0.99)["warning"] is not None


def test_report_counts_what_k_max_binds() -> None:
    trace = random_trace(np.random.default_rng(0), 2000, 2, 32, 4, skew=0.0)
    facts = report(BuddyProfile(k_max=4).fit(trace).lists_)
    assert facts["list_size"] == {"min": 4, "mean": 4.0, "max": 4} and facts["bound_by_k_max"] == 1.0
    assert 4 / 31 < facts["covered_mass"]["mean"] < 0.3
    wide = report(BuddyProfile(k_max=31).fit(trace).lists_)
    assert wide["bound_by_k_max"] == 0.0 and wide["covered_mass"]["min"] >= 0.9
    assert wide["list_size"]["mean"] > 20  # nearly uniform: .9 * 31 = 27.9 peers
    assert [layer["layer"] for layer in wide["layers"]] == [0, 1]


# --- files ---


def same(a: BuddyLists, b: BuddyLists) -> bool:
    arrays = [(getattr(a, n), getattr(b, n)) for n in ("peers", "q", "coverage")]
    return a.meta == b.meta and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in arrays)


@REUSING_FOLDER
@given(trace=traces(), alpha=st.floats(0.01, 1), k_max=st.integers(1, 9))
def test_written_is_read_back(trace: RoutingTrace, alpha: float, k_max: int, tmp_path: Path) -> None:
    assume(trace.n_experts > 1)
    lists = BuddyProfile(alpha=alpha, k_max=k_max).fit(trace, "calib.npz").lists_
    path = tmp_path / "b.npz"
    buddies_file.write(path, lists)
    read = buddies_file.read(path)
    assert same(lists, read) and not read.peers.flags.writeable
    assert report(read) == report(lists)
    with np.load(path, allow_pickle=False) as plain:
        assert json.loads(str(plain["meta"])) == lists.meta
        np.savez_compressed(tmp_path / "packed.npz", **plain)
    assert same(buddies_file.read(tmp_path / "packed.npz"), lists)


def test_provenance_and_equal_bytes(tmp_path: Path) -> None:
    trace = random_trace(np.random.default_rng(0))
    for name in ("a", "b"):
        buddies_file.write(tmp_path / f"{name}.npz", BuddyProfile().fit(trace, "calib.npz").lists_)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    meta = buddies_file.read(tmp_path / "a.npz").meta
    assert meta["trace"] == {
        "name": "calib.npz",
        "content_hash": npz.content_hash(trace),
        "model": "test-model",
        "real": False,
    }
    assert meta["n_tokens"] == 40 and meta["count"] == "binary" and meta["how"] == "co-activation"
    buddies_file.write(tmp_path / "s.npz", from_similarity(np.eye(4)[None], name="sim.npz", about={"metric": "cka"}))
    kept = buddies_file.read(tmp_path / "s.npz").meta["similarity"]
    assert kept["name"] == "sim.npz" and kept["symmetric"] and kept["about"] == {"metric": "cka"}


def base() -> BuddyLists:
    """2 layers, 6 experts, lists of at most 4."""
    return BuddyProfile(alpha=0.8, k_max=4).fit(random_trace(np.random.default_rng(1), 60, 2, 6, 2)).lists_


def save(path: Path, *, meta: dict[str, Any] | None = None, **changes: Any) -> None:
    lists = base()
    arrays: dict[str, Any] = {"peers": lists.peers, "q": lists.q, "coverage": lists.coverage} | changes
    arrays = {name: array for name, array in arrays.items() if array is not None}
    text = json.dumps(meta if meta is not None else lists.meta)
    if any(array.dtype.hasobject for array in arrays.values()):
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in {"meta": np.array(text), **arrays}.items():
                stream = io.BytesIO()
                np.lib.format.write_array(stream, array, allow_pickle=True)
                archive.writestr(f"{name}.npy", stream.getvalue())
        return
    np.savez(path, meta=np.array(text), **arrays)


def put(name: str, *at: int, value: float) -> dict[str, Any]:
    array = np.array(getattr(base(), name))
    array[at] = value
    return {name: array}


def meta_with(key: str, value: Any) -> dict[str, Any]:
    meta = json.loads(json.dumps(base().meta))
    *parents, last = key.split(".")
    inner = meta
    for part in parents:
        inner = inner[part]
    inner[last] = value
    return {"meta": meta}


OBJECTS = np.empty((2, 6, 4), object)
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "object array": ({"peers": OBJECTS}, "peers holds Python objects"),
    "no peers": ({"peers": None}, "peers is missing"),
    "no coverage": ({"coverage": None}, "coverage is missing"),
    "floats for peers": (
        {"peers": base().peers.astype(float)},
        "peers has dtype float64; integer is required",
    ),
    "integers for q": ({"q": base().peers}, "q has dtype int16; float"),
    "rank": ({"peers": base().peers[0]}, r"peers has shape \(6, 4\)"),
    "no layers": ({"peers": base().peers[:0]}, r"peers has shape \(0, 6, 4\)"),
    "width": ({"peers": base().peers[..., :3]}, r"ask for \[MoE layers, 6, 4\]"),
    "q's shape": ({"q": base().q[:1]}, r"q has shape \(1, 6, 4\); peers asks for \(2, 6, 4\)"),
    "coverage's shape": ({"coverage": base().coverage[:, :5]}, r"coverage has shape \(2, 5\)"),
    "id": (put("peers", 1, 2, 0, value=6), r"peers\[1, 2, 0\] = 6; peers lie in \[-1, 6\)"),
    "id below": (put("peers", 1, 2, 0, value=-2), r"peers\[1, 2, 0\] = -2"),
    "own buddy": (put("peers", 1, 2, 0, value=2), r"peers\[1, 2, 0\] = 2; an expert is not its own buddy"),
    "empty": ({"peers": base().peers * 0 - 1}, "a list has at least one peer"),
    "gap": (put("peers", 0, 3, 0, value=-1), r"peers\[0, 3, 1\] = .; a list has no gap"),
    "twice": (
        put("peers", 0, 3, 1, value=int(base().peers[0, 3, 0])),
        r"peers\[0, 3, 1\] = .; the peers of a list are distinct",
    ),
    "NaN": (put("q", 0, 0, 0, value=np.nan), r"q\[0, 0, 0\] = nan; a share from 0 to 1"),
    "negative q": (put("q", 0, 0, 0, value=-0.1), r"q\[0, 0, 0\] = -0.1"),
    "q above one": (put("q", 0, 0, 0, value=1.5), r"q\[0, 0, 0\] = 1.5"),
    "rising q": (put("q", 0, 0, 1, value=0.99), r"q\[0, 0, 1\] = 0.99.*; q does not rise"),
    "coverage": (put("coverage", 1, 1, value=0.2), r"coverage\[1, 1\] = 0.2; the sum of the list's q"),
    "NaN coverage": (put("coverage", 1, 1, value=np.nan), r"coverage\[1, 1\] = nan"),
    "a list, not an object": ({"meta": []}, "meta is not JSON"),
    "a trace's meta": (
        {"meta": {"format_version": 1, "model": "x"}},
        "meta.schema is None; 'moe-offload-sim buddy lists' is required",
    ),
    "version": (meta_with("format_version", 2), "meta.format_version is 2; version 1 is read"),
    "how": (meta_with("how", ["co-activation"]), "meta.how is .*; one of co-activation, similarity"),
    "n_experts": (meta_with("n_experts", 7), "meta.n_experts and meta.k_max ask for"),
    "huge n_experts": (
        meta_with("n_experts", 10**9),
        "meta.n_experts is 1000000000; an integer from 2 to 32767",
    ),
    "k_max": (meta_with("k_max", True), "meta.k_max is True"),
    "alpha": (meta_with("alpha", 1.01), "meta.alpha is 1.01"),
    "huge alpha": (meta_with("alpha", 10**400), "meta.alpha is 1000"),
    "alphas": (meta_with("alpha", [0.5] * 3), "meta.alpha lists 3 values; peers has 2 MoE layers"),
    "no alphas": (meta_with("alpha", []), "meta.alpha lists 0 values"),
    "moe_layers": (meta_with("moe_layers", [0]), "meta.moe_layers lists 1 values"),
    "tokens": (meta_with("n_tokens", -3), "meta.n_tokens is -3; number is required"),
    "no trace": (meta_with("trace", "calib.npz"), "meta.trace.name is None; text is required"),
    "no hash": (meta_with("trace.content_hash", 7), "meta.trace.content_hash is 7"),
    "seed": (meta_with("seed", "x"), "meta.seed is 'x'"),
    "threshold": (meta_with("threshold", 10**400), "meta.threshold is 1000"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    changes, message = HOSTILE[name]
    save(tmp_path / "b.npz", **changes)
    with pytest.raises(UserError, match=message) as caught:
        buddies_file.read(tmp_path / "b.npz")
    text = str(caught.value)
    assert "\n" not in text and str(tmp_path / "b.npz") in text and len(text) < 400


def test_q_after_the_end_of_a_list(tmp_path: Path) -> None:
    lists = base()
    layer, i = (int(x) for x in np.argwhere(lists.sizes < 4)[0])
    size = int(lists.sizes[layer, i])
    save(tmp_path / "b.npz", **put("q", layer, i, size, value=1e-5))
    with pytest.raises(UserError, match=rf"q\[{layer}, {i}, {size}\] = .*; 0 is required after a list's end"):
        buddies_file.read(tmp_path / "b.npz")


@pytest.mark.parametrize("how", ["cut", "text", "missing", "flipped", "trace"])
def test_damaged_files(how: str, tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    buddies_file.write(path, base())
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[:-100]
    elif how == "text":
        data = bytearray(b"peers, q\n")
    elif how == "flipped":
        data[data.index(base().coverage.tobytes())] ^= 1
    path.write_bytes(data)
    if how == "missing":
        path.unlink()
    if how == "trace":
        npz.write(path, random_trace(np.random.default_rng(0)))
    with pytest.raises(UserError) as caught:
        buddies_file.read(path)
    assert "\n" not in str(caught.value) and "b.npz" in str(caught.value)


def test_invalid_lists_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    buddies_file.write(path, base())
    before = path.read_bytes()
    lists = base()
    with pytest.raises(UserError, match="not its own buddy"):
        bad = put("peers", 0, 0, 0, value=0)["peers"]
        buddies_file.write(path, BuddyLists(bad, lists.q, lists.coverage, lists.meta))
    with pytest.raises(UserError, match="meta is not JSON"):
        buddies_file.write(path, BuddyLists(lists.peers, lists.q, lists.coverage, {**lists.meta, "x": {1}}))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["b.npz"]


# --- the command ---


@pytest.fixture
def calib(tmp_path: Path) -> str:
    npz.write(tmp_path / "calib.npz", random_trace(np.random.default_rng(0), 400, 2, 8, 2, requests=9))
    return str(tmp_path / "calib.npz")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_the_command_writes_and_reports(calib: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "buddies.npz")
    assert main(["--trace", calib, "--out", out, "--alpha", "0.5,1", "--k-max", "5", "--seed", "3"]) == 0
    text, warning = capsys.readouterr()
    # 400 * 2 * 1 / (8 * 7) = 14.3 pairs: 26 %, and 100 * 56 / 2 tokens would do.
    assert (
        warning == "warning: 400 tokens leave a mean pair of experts an error of 26%; 2,800 tokens would do for 10%\n"
    )
    assert "calib.npz: test-model, *** SYNTHETIC" in text and len(text.splitlines()) == 11
    lists = buddies_file.read(out)
    assert same(lists, BuddyProfile(alpha=[0.5, 1.0], k_max=5, seed=3).fit(npz.read(calib), "calib.npz").lists_)
    assert main(["--trace", calib, "--json", "--pair-error", "0.3", "--count", "mixed", "--warmup", "2"]) == 0
    text, warning = capsys.readouterr()
    facts = json.loads(text)
    assert warning == "" and facts["warning"] is None
    assert facts["meta"]["count"] == "mixed" and facts["meta"]["n_tokens"] == 400 - 9
    assert main(["--trace", calib, "--count", "mixed", "--warmup", "2", "--decode-only", "--eps", "1"]) == 0


def test_the_command_reads_samples_and_similarities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--trace", "mixtral"]) == 0
    assert capsys.readouterr().out.startswith("trace            mixtral.npz: mixtral-8x7b, *** SYNTHETIC")
    s = np.corrcoef(np.random.default_rng(0).normal(size=(6, 9)))[None].astype(np.float32)
    meta = np.array(json.dumps({"metric": "correlation of outputs"}))
    np.savez(tmp_path / "s.npz", similarity=s, meta=meta)
    np.savez(tmp_path / "bare.npz", similarity=s)
    out = str(tmp_path / "b.npz")
    assert main(["--similarity", str(tmp_path / "s.npz"), "--out", out, "--threshold", "0.1"]) == 0
    assert capsys.readouterr().out.startswith("similarity       s.npz, symmetric, at least 0.1; K_max 16, seed 0\n")
    lists = buddies_file.read(out)
    assert lists.meta["similarity"]["about"] == {"metric": "correlation of outputs"}
    assert np.array_equal(lists.sizes[0], (s[0] >= 0.1).sum(axis=1) - 1)
    assert main(["--similarity", str(tmp_path / "bare.npz"), "--json", "--alpha", ".5"]) == 0
    assert json.loads(capsys.readouterr().out)["sample"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --trace --similarity is required"),
        (["--trace", "nowhere.npz"], "no such file or shipped sample"),
        (["--trace", "CALIB", "--similarity", "CALIB"], "not allowed with argument"),
        (["--trace", "CALIB", "--alpha", "x"], "'x' is no number"),
        (["--trace", "CALIB", "--alpha", "1.5"], "alpha is 1.5"),
        (["--trace", "CALIB", "--alpha", ".5,.5,.5"], "alpha has 3 values; one, or one for each of 2"),
        (["--trace", "CALIB", "--k-max", "0"], "k_max is 0"),
        (["--trace", "CALIB", "--count", "some"], "--count: 'some' is unknown"),
        (["--trace", "CALIB", "--threshold", "1"], "--threshold is a least similarity"),
        (["--trace", "CALIB", "--pair-error", "0"], "--pair-error is 0.0"),
        (["--trace", "CALIB", "--out", "CALIB"], "is the input"),
        (["--trace", "CALIB", "--out", "CALIB/b.npz"], "its folder is not there"),
        (["--trace", "CALIB", "--warmup", "1000", "--warmup-weight", "0"], "calib.npz: no token is left"),
        (["--similarity", "CALIB"], "similarity is missing"),
        (
            ["--similarity", "CALIB", "--warmup-weight", "1"],
            "--warmup-weight counts tokens; it needs --trace",
        ),
        (["--similarity", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_the_command_refuses(
    arguments: list[str], message: str, calib: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(calib).read_bytes()
    assert message in refused([a.replace("CALIB", calib) for a in arguments], capsys)
    assert os.listdir(tmp_path) == ["calib.npz"] and Path(calib).read_bytes() == before


@pytest.mark.parametrize(
    ("similarity", "message"),
    [
        (np.zeros((4, 4)), "shape (4, 4)"),
        (np.zeros((1, 4, 4), np.int64), "dtype int64; a floating type"),
        (np.full((1, 4, 4), 2.0), "similarity[0, 0, 1] = 2.0; a number from -1 to 1"),
        (np.full((1, 4, 4), np.nan, np.float16), "similarity[0, 0, 1] = nan"),
        (np.zeros((0, 4, 4)), "shape (0, 4, 4)"),
    ],
)
def test_bad_similarity_files(
    similarity: np.ndarray, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "s.npz", similarity=similarity)
    assert message in refused(["--similarity", str(tmp_path / "s.npz")], capsys)


def test_as_a_module_without_heavy_imports(calib: str) -> None:
    command = [sys.executable, "-m", "sim.profile", "--trace", calib]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr.startswith("warning: ")
    code = (
        "import sys, sim.profile\n"
        "heavy = {'numba', 'pandas', 'torch', 'scipy', 'simpy', 'pydantic', 'runtime'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["mixtral-8x7b", "olmoe-1b-7b", "qwen1.5-moe", "gpt-oss-20b"])
def test_real_captures(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a capture the lists cover more than random ones of the same length would."""
    path = CAPTURES / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no capture {path.name} beside the repository")
    out = tmp_path / "b.npz"
    assert main(["--trace", str(path), "--count", "mixed", "--out", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    lists = buddies_file.read(out)
    lists.require_fit(npz.read(path))
    assert facts["covered_mass"]["mean"] > 1.1 * facts["list_size"]["mean"] / (lists.n_experts - 1)
