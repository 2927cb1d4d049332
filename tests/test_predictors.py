"""Predictors: small cases worked by hand, plain spellings of the fitted ones, causality on every trace, no
needless copy."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from sim.errors import SpecError
from sim.fit import activation, map_store, prediction, predictors, transition
from sim.fit.prediction import CERTAIN, Prediction, measured, ranked
from sim.fit.predictors import PREDICTORS
from sim.speculation import Speculation
from sim.steps import Steps, first_steps, schedule
from tests.gen import random_trace, traces
from traces.format.trace import RoutingTrace

CAUSAL = sorted(name for name, each in PREDICTORS.items() if not each.oracle)
AHEAD = sorted(name for name, each in PREDICTORS.items() if not each.drafts)  # how far is theirs to say
FITTED = sorted(name for name, each in PREDICTORS.items() if each.fitted)


def trace_of(experts: Any, n_experts: int, sequence: Any = None, prefill: Any = None, **more: Any) -> RoutingTrace:
    """experts [T][L][K]; one request of generated tokens unless said otherwise."""
    array = np.asarray(experts, np.int16)
    tokens, layers, k = array.shape
    sequence = np.zeros(tokens, np.int32) if sequence is None else np.asarray(sequence, np.int32)
    position = np.array([np.sum(sequence[:t] == sequence[t]) for t in range(tokens)], np.int32)
    meta = {"format_version": 1, "model": "m", "n_experts": n_experts, "top_k": k, "n_layers": layers}
    meta |= {"moe_layers": list(range(layers)), "real": False} | more.pop("meta", {})
    prompt = np.zeros(tokens, bool) if prefill is None else np.asarray(prefill, bool)
    return RoutingTrace(array, sequence, position, prompt, meta, **more)


def of(p: Prediction, d: int, at: int, layer: int) -> list[int]:
    """The list the machine reads for a row of the steps."""
    row = int(p.row[d - 1, at])
    return [] if row < 0 else p.lists[min(d, len(p.lists)) - 1, row, layer].tolist()


def fitted(name: str, trace: RoutingTrace, seed: int, **options: Any) -> Any:
    """A predictor, fitted where it must be on a random trace of the same shape."""
    predictor = PREDICTORS[name](**options)
    if predictor.fitted:
        shape = {"layers": trace.n_moe_layers, "experts": trace.n_experts, "k": trace.top_k}
        predictor.fit(random_trace(np.random.default_rng(seed), tokens=20, requests=4, logits=True, **shape))
    return predictor


# --- by hand ------------------------------------------------------------------------------------------------


def test_popular_ranks_by_use_and_leaves_out_what_is_never_used() -> None:
    # layer 0: expert 2 three times, 0 once; layer 1: 1 and 3 twice each, the lower id first.
    calibration = trace_of([[[2], [3]], [[2], [1]], [[0], [3]], [[2], [1]]], 4)
    run = trace_of(np.zeros((3, 2, 1)), 4, prefill=[1, 1, 0])
    p = PREDICTORS["popular"](distance=2, width=3).fit(calibration).predict(run, schedule(run))
    assert p.lists.tolist() == [[[[2, 0, -1], [1, 3, -1]]]]
    assert p.row.tolist() == [[0, -1, 0]] * 2  # once per step: the chunk's first row, and the decode step's
    # rank 0 is right for 3 of 4 tokens at layer 0 and 2 of 4 at layer 1; rank 1 for 1 and 2; rank 2 is never
    # listed
    assert p.rank_key.tolist() == [[CERTAIN * 3 // 8, CERTAIN * 5 // 8, CERTAIN]] * 2


def test_previous_token_is_the_requests_last_row_of_an_earlier_step() -> None:
    # requests a (rows 0 to 3, two of them prompt) and b (row 4), side by side: steps 0 1 | 2 4 | 3
    run = trace_of([[[t % 4, 3]] for t in range(5)], 4, [0, 0, 0, 0, 1], [1, 1, 0, 0, 0])
    p = PREDICTORS["previous-token"]().predict(run, schedule(run, batch=2))
    assert p.row.tolist() == [[-1, -1, 1, -1, 2]]
    assert [of(p, 1, i, 0) for i in range(5)] == [[], [], [1, 3], [], [2, 3]]
    assert p.rank_key.tolist() == [[0, 1]]


def test_transition_by_hand() -> None:
    calibration = trace_of([[[0], [1]], [[0], [1]], [[0], [2]], [[1], [2]]], 3)
    run = trace_of([[[0], [1]], [[1], [2]], [[2], [0]]], 3)
    p = PREDICTORS["transition"](width=2).fit(calibration).predict(run, schedule(run))
    # layer 0 to 1: n_0 = (0 2 1), n_1 = (0 0 1), q = (0 1/2 1/2). From 0: (2 + .5) / 4 > (1 + .5) / 4;
    # from 1: (0 + .5) / 2 < (1 + .5) / 2; from 2, never seen: q, a tie, the lower id; expert 0: nothing.
    assert [of(p, 1, t, 1) for t in range(3)] == [[1, 2], [2, 1], [1, 2]]
    # layer 1 to 0 of the next token: n_1 = (2 0 0), n_2 = (0 1 0), q = (2/3 1/3 0).
    # From 1: (2 + 2/3) / 3 > (1/3) / 3; from 2: (2/3) / 2 < (1 + 1/3) / 2; before the first token, nothing.
    assert [of(p, 1, t, 0) for t in range(3)] == [[-1, -1], [0, 1], [1, 0]]


def test_transition_without_smoothing_lists_only_what_followed() -> None:
    calibration = trace_of([[[0], [1]], [[0], [1]], [[0], [2]], [[1], [2]]], 3)
    run = trace_of([[[0], [0]], [[1], [0]], [[2], [0]]], 3)
    p = PREDICTORS["transition"](width=3, smoothing=0).fit(calibration).predict(run, schedule(run))
    assert [of(p, 1, t, 1) for t in range(3)] == [[1, 2, -1], [2, -1, -1], [-1, -1, -1]]


def test_activation_matrix_by_hand() -> None:
    # the collection: a request that always uses expert 0, and one that always uses expert 1
    calibration = trace_of([[[0], [0]]] * 3 + [[[1], [1]]] * 2, 2, [0] * 3 + [1] * 2)
    run = trace_of([[[0], [1]], [[1], [1]], [[1], [0]]], 2)
    p = PREDICTORS["activation-matrix"](width=2).fit(calibration).predict(run, schedule(run))
    # token 0: so far (1 0 | 0 0), cosine 1/sqrt 2 with the first and 0 with the second
    # token 1: at its layer 0 so far (1 1 | 0 1): 1/sqrt 6 against 2/sqrt 6; token 2: (1 2 | 0 2), the second
    assert [of(p, 1, t, 1) for t in range(3)] == [[0, -1], [1, -1], [1, -1]]
    # for layer 0, asked at layer 1 of the token before: (1 0 | 0 1), a tie, the earlier; then (1 1 | 0 2),
    # the second
    assert [of(p, 1, t, 0) for t in range(3)] == [[-1, -1], [0, -1], [1, -1]]


def test_activation_matrix_knows_all_of_a_turn_that_lies_more_than_a_step_back() -> None:
    # the collection: (2 0 0 | 2 0 0) and (1 0 2 | 0 3 0)
    calibration = trace_of([[[0], [0]]] * 2 + [[[0], [1]], [[2], [1]], [[2], [1]]], 3, [0] * 2 + [1] * 3)
    predictor = PREDICTORS["activation-matrix"](distance=2, width=2).fit(calibration)
    # Layer 0 of row 1, two layers ahead: asked at layer 0 of the step before.
    at_once = trace_of([[[0], [1]], [[0], [0]]], 3)  # row 0 is in that step: (1 0 0 | 0 0 0), .71 against .27
    assert of(predictor.predict(at_once, schedule(at_once)), 2, 1, 0) == [0, -1]
    # Request b's row 2 takes that step, row 0 is done: (1 0 0 | 0 1 0), .50 against .76.
    none = np.zeros(0, np.int64)
    apart = trace_of([[[0], [1]], [[0], [0]], [[1], [1]]], 3, [0, 0, 1])
    steps = Steps(np.arange(4), np.array([0, 2, 1], np.int32), np.zeros(3, bool), *[none] * 5)
    assert of(predictor.predict(apart, steps), 2, 2, 0) == [2, 0]


def test_activation_matrix_collects_the_requests_of_lowest_hash() -> None:
    calibration = random_trace(np.random.default_rng(3), tokens=60, requests=12)
    whole = PREDICTORS["activation-matrix"]().fit(calibration).collection_
    some_of_it = PREDICTORS["activation-matrix"](capacity=5, seed=7).fit(calibration).collection_
    hashed = predictors.hash64(7, np.arange(12), 0)
    assert np.array_equal(some_of_it, whole[np.sort(np.argsort(hashed)[:5])])


def test_gate_lookahead_is_the_array_itself() -> None:
    run = random_trace(np.random.default_rng(0), lookahead=2, distances=(1, 2, 3), layers=4)
    p = PREDICTORS["gate-lookahead"](distance=2).predict(run, schedule(run))
    assert run.lookahead is not None
    assert np.shares_memory(p.lists, run.lookahead)
    assert np.array_equal(p.lists, run.lookahead[:2])
    assert np.array_equal(p.row, np.tile(np.arange(40), (2, 1)))
    assert p.rank_key.tolist() == [[0, 2], [1, 3]]  # by rank, then by distance


@pytest.mark.parametrize("name", ["oracle", "previous-token"])
def test_lists_of_routing_are_views(name: str) -> None:
    run = random_trace(np.random.default_rng(0), tokens=9, missing=0.2)
    p = PREDICTORS[name](distance=2).predict(run, schedule(run))
    assert np.shares_memory(p.lists, run.experts)
    assert np.array_equal(p.lists[0], run.experts)
    assert PREDICTORS[name](width=1).predict(run, schedule(run)).lists.shape == (1, 9, 3, 1)


def test_other_integers_become_int16() -> None:
    run = trace_of([[[0, 1]], [[1, 0]]], 2)
    wide = RoutingTrace(run.experts.astype(np.int64), run.sequence, run.position, run.prefill, run.meta)
    p = PREDICTORS["oracle"]().predict(wide, schedule(wide))
    assert (p.lists.dtype, p.lists.tolist()) == (np.dtype(np.int16), [run.experts.tolist()])


# --- noisy oracle -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recall", "precision", "missing"),
    [(0.9, 0.9, 0.0), (0.5, 0.8, 0.3), (1.0, 0.4, 0.0), (0.3, 1.0, 0.0), (0.0, 0.5, 0.0)],
)
def test_noisy_oracle_has_the_quality_asked_for(recall: float, precision: float, missing: float) -> None:
    run = random_trace(np.random.default_rng(1), tokens=4000, layers=4, experts=16, k=3, missing=missing)
    p = PREDICTORS["noisy-oracle"](recall=recall, precision=precision, seed=5).predict(run, schedule(run))
    lists = p.lists[0]
    right = (lists[..., None] == run.experts[:, :, None, :]).any(axis=3) & (lists >= 0)
    wanted, listed, hits = (run.experts >= 0).sum(), (lists >= 0).sum(), right.sum()
    # hits ~ Bin(wanted, recall); what is wrong beside them varies by less than one entry a list
    assert abs(hits - recall * wanted) <= 4 * math.sqrt(wanted * recall * (1 - recall))
    wrong = recall * wanted * (1 - precision) / precision
    assert abs((listed - hits) - wrong) <= 4 * math.sqrt(0.25 * lists.shape[0] * lists.shape[1])
    if precision == 1:
        assert hits == listed
    if recall == 1:
        assert hits == wanted


def test_noisy_oracle_lists_nobody_twice_and_mixes_right_with_wrong() -> None:
    run = random_trace(np.random.default_rng(2), tokens=500, layers=2, experts=12, k=3)
    lists = PREDICTORS["noisy-oracle"](recall=1.0, precision=0.5).predict(run, schedule(run)).lists[0]
    assert lists.shape == (500, 2, 6) and (lists >= 0).all()
    assert (np.diff(np.sort(lists, axis=2), axis=2) > 0).all()
    right = (lists[..., None] == run.experts[:, :, None, :]).any(axis=3)
    assert np.abs(right.mean(axis=(0, 1)) - 0.5).max() < 4 * math.sqrt(0.25 / 1000)


def test_noisy_oracle_is_its_documented_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    run = random_trace(np.random.default_rng(4), tokens=11, layers=2, experts=9, k=2, missing=0.2)
    predictor = PREDICTORS["noisy-oracle"](recall=0.7, precision=0.6, seed=3)
    lists = predictor.predict(run, schedule(run)).lists[0]

    def draw(v: int, o: int) -> int:
        return int(predictors.hash64(3, v, o)[0])

    for t in range(11):
        for layer in range(2):
            v, wanted = t * 2 + layer, [e for e in run.experts[t, layer].tolist() if e >= 0]
            kept = [e for e in wanted if draw(v, e) / 2**64 < 0.7]
            x = len(wanted) * (0.7 * (1 - 0.6) / 0.6)
            n = math.floor(x) + (draw(v, 18) / 2**64 < x - math.floor(x))
            wrong = sorted((e for e in range(9) if e not in wanted), key=lambda e: draw(v, e))[:n]
            both = sorted(kept + wrong, key=lambda e: draw(v, 9 + e))
            assert lists[t, layer].tolist() == both + [-1] * (lists.shape[2] - len(both))
    monkeypatch.setattr(predictors, "CHUNK_ELEMENTS", 1)
    assert np.array_equal(predictor.predict(run, schedule(run)).lists[0], lists)


# --- laws ---------------------------------------------------------------------------------------------------


def first_step_of_rows(steps: Steps, tokens: int) -> np.ndarray:
    """int64 [T]: the first step that runs each token, -1 where none does."""
    step, out = np.repeat(np.arange(len(steps)), np.diff(steps.offset)), np.full(tokens, -1, np.int64)
    out[steps.row[::-1]] = step[::-1]
    return out


def looking(**fixed: Any) -> some.SearchStrategy[RoutingTrace]:
    ahead = {"lookahead": 2, "distances": (1, 2, 3, 4), "lookahead_source": "learned: by chance"}
    return traces(logits=True, **ahead, **fixed)


def scrambled(trace: RoutingTrace, step: np.ndarray, visit: int, seed: int) -> RoutingTrace:
    """Another future: routing of visits after `visit` is drawn anew, and so is what routers and gates say after it."""
    layers, rng = trace.n_moe_layers, np.random.default_rng(seed)
    number = step[:, None] * layers + np.arange(layers)
    order = np.argsort(rng.random((trace.n_tokens, layers, trace.n_experts)), axis=2)
    experts = np.where((number > visit)[..., None], order[..., : trace.top_k], trace.experts).astype(np.int16)
    assert trace.lookahead is not None
    lookahead = np.array(trace.lookahead)
    for d in range(1, len(lookahead) + 1):
        after = (number - d > visit) & (np.arange(layers) >= d)
        lookahead[d - 1][after] = rng.integers(-1, trace.n_experts, (int(after.sum()), lookahead.shape[3]))
    assert trace.logits is not None
    drawn = rng.normal(0, 3, trace.logits.shape).astype(np.float16)
    parts = {
        "logits": np.where((number > visit)[..., None], drawn, trace.logits),
        "sequence": trace.sequence,
        "position": trace.position,
        "prefill": trace.prefill,
        "meta": trace.meta,
    }
    return RoutingTrace(experts=experts, lookahead=lookahead, **parts)


def used(p: Prediction, steps: Steps, layers: int, until: int) -> list[list[int]]:
    """Every list the machine reads at visits up to `until`, in order."""
    out = []
    for visit in range(until + 1):
        for d in range(1, len(p.row) + 1):
            step, layer = divmod(visit + d, layers)
            if step < len(steps):
                out += [of(p, d, i, layer) for i in range(steps.offset[step], steps.offset[step + 1])]
    return out


@pytest.mark.parametrize("name", CAUSAL)
@settings(max_examples=60)
@given(
    data=some.data(),
    trace=looking(),
    batch=some.integers(1, 4),
    chunk=some.integers(1, 4),
    seed=some.integers(0, 99),
)
def test_no_list_depends_on_the_future(
    name: str, data: Any, trace: RoutingTrace, batch: int, chunk: int, seed: int
) -> None:
    speculation = None if name == "learned" else data.draw(some.sampled_from([None, Speculation(3, 0.5, seed)]))
    steps = schedule(trace, batch, chunk, data.draw(some.booleans()), speculation)
    layers = trace.n_moe_layers
    distance = data.draw(some.integers(1, layers))
    predictor = fitted(name, trace, seed, distance=distance, width=data.draw(some.sampled_from([None, 1, 3])))
    visit = data.draw(some.integers(0, len(steps) * layers - 1))
    other = scrambled(trace, first_step_of_rows(steps, trace.n_tokens), visit, seed)
    p, q = predictor.predict(trace, steps), predictor.predict(other, steps)
    assert np.array_equal(p.row, q.row)
    assert used(p, steps, layers, visit) == used(q, steps, layers, visit)


def test_an_oracle_breaks_that_law() -> None:
    run = random_trace(np.random.default_rng(0), lookahead=1, logits=True)
    steps = schedule(run)
    other = scrambled(run, first_step_of_rows(steps, run.n_tokens), 5, 1)
    for name in ("oracle", "noisy-oracle"):
        p, q = (PREDICTORS[name]().predict(each, steps) for each in (run, other))
        assert used(p, steps, 3, 4) == used(q, steps, 3, 4)  # one layer ahead of visit 4 is visit 5, unchanged
        assert used(p, steps, 3, 9) != used(q, steps, 3, 9)


@pytest.mark.parametrize("name", AHEAD)
@settings(max_examples=40)
@given(
    trace=looking(max_experts=6),
    batch=some.integers(1, 3),
    seed=some.integers(0, 99),
    width=some.integers(1, 9),
)
def test_lists_are_lists(name: str, trace: RoutingTrace, batch: int, seed: int, width: int) -> None:
    """Shapes and types as the plan wants them, ids in range, nobody twice, keys for every rank."""
    noise = {"recall": 0.5, "precision": 1.0} if name == "noisy-oracle" else {}
    distance = trace.n_moe_layers
    steps = schedule(trace, batch, 3)
    p = fitted(name, trace, seed, distance=distance, width=width, **noise).predict(trace, steps)
    assert (p.lists.dtype, p.row.dtype, p.rank_key.dtype) == (np.int16, np.int32, np.int64)
    m = p.lists.shape[3]
    assert len(p.lists) in (1, distance) and p.lists.shape[2] == distance and m <= min(width, trace.n_experts)
    assert p.row.shape == (distance, len(steps.row)) and p.rank_key.shape == (distance, m)
    assert p.row.min() >= -1 and p.row.max() < p.lists.shape[1]
    assert p.lists.min(initial=-1) >= -1 and p.lists.max(initial=-1) < trace.n_experts
    if name not in ("gate-lookahead", "learned"):  # the trace's own lists are what they are
        line = np.sort(p.lists, axis=3)
        assert not ((np.diff(line, axis=3) == 0) & (line[..., 1:] >= 0)).any()


@pytest.mark.parametrize("name", AHEAD)
def test_predicting_twice_is_the_same_and_chunks_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    run = random_trace(
        *(rng, 90, 4, 6),
        requests=9,
        lookahead=2,
        distances=(1, 2),
        missing=0.1,
        logits=True,
        lookahead_source="learned: by chance",
    )
    steps = first_steps(schedule(run, batch=3, prefill_chunk=4), 40)
    p = fitted(name, run, 1, distance=2).predict(run, steps)
    for module in (prediction, predictors, transition):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1)
    for module in (activation, map_store):
        monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(transition, "_MOST_SETS", 0)
    q = fitted(name, run, 1, distance=2).predict(run, steps)
    assert np.array_equal(p.lists, q.lists) and np.array_equal(p.row, q.row)
    assert np.array_equal(p.rank_key, q.rank_key)


# --- plain spellings ----------------------------------------------------------------------------------------


def earlier_row(steps: Steps, trace: RoutingTrace, t: int) -> tuple[int, int, bool]:
    """(the request's last row of an earlier step or -1, steps between, whether t is its first row in its own
    step)."""
    step = first_step_of_rows(steps, trace.n_tokens)
    own = [u for u in range(trace.n_tokens) if trace.sequence[u] == trace.sequence[t]]
    before = [u for u in own if step[u] < step[t]]
    first = t == min(u for u in own if step[u] == step[t])
    return (before[-1], int(step[t] - step[before[-1]]), first) if before else (-1, 0, first)


@settings(max_examples=40)
@given(trace=looking(max_tokens=10), batch=some.integers(1, 3), seed=some.integers(0, 99), data=some.data())
def test_transition_in_plain_python(trace: RoutingTrace, batch: int, seed: int, data: Any) -> None:
    layers, n = trace.n_moe_layers, trace.n_experts
    d, smoothing = data.draw(some.integers(1, layers)), data.draw(some.sampled_from([0.0, 1.0, 2.5]))
    width = data.draw(some.integers(1, n))
    predictor = fitted("transition", trace, seed, distance=d, smoothing=smoothing, width=width)
    calibration = random_trace(np.random.default_rng(seed), 20, layers, n, trace.top_k, requests=4)
    steps = schedule(trace, batch, 3)
    p = predictor.predict(trace, steps)
    for layer in range(layers):
        source, back = ((layer - d), 0) if layer >= d else (layer - d + layers, 1)
        counts = np.zeros((n, n))
        for t in range(back, 20):
            if calibration.sequence[t] == calibration.sequence[t - back]:
                for i in calibration.experts[t - back, source]:
                    for j in calibration.experts[t, layer]:
                        counts[i, j] += 1
        for t in range(trace.n_tokens):
            row, _, first = earlier_row(steps, trace, t) if back else (t, 0, True)
            named = [i for i in trace.experts[row, source].tolist() if i >= 0] if row >= 0 and first else []
            prior = counts.sum(axis=0) / max(counts.sum(), 1)
            given_i = [max(counts[i].sum() + smoothing, 1e-300) for i in named]
            score = sum(
                ((counts[i] + smoothing * prior) / g for i, g in zip(named, given_i, strict=True)),
                np.zeros(n),
            )
            found = [e for e in of(p, d, steps.row.tolist().index(t), layer) if e >= 0]
            best = np.sort(score[score > 0])[::-1][:width]
            assert len(set(found)) == len(best)
            assert np.abs(score[found] - best).max(initial=0) < 1e-9


@settings(max_examples=40)
@given(trace=looking(max_tokens=12), batch=some.integers(1, 3), seed=some.integers(0, 99), data=some.data())
def test_activation_matrix_in_plain_python(trace: RoutingTrace, batch: int, seed: int, data: Any) -> None:
    layers, n, d = trace.n_moe_layers, trace.n_experts, data.draw(some.integers(1, trace.n_moe_layers))
    predictor = fitted("activation-matrix", trace, seed, distance=d)
    steps = schedule(trace, batch, data.draw(some.integers(1, 4)))
    step = first_step_of_rows(steps, trace.n_tokens)
    p, collection = predictor.predict(trace, steps), predictor.collection_.astype(float)
    for t in range(trace.n_tokens):
        _, _, first = earlier_row(steps, trace, t)
        for layer in range(layers):
            asked = step[t] * layers + layer - d  # the visit at which the list is read
            so_far = np.zeros((layers, n))
            for u in np.flatnonzero(trace.sequence == trace.sequence[t]):
                for at in range(layers):
                    if step[u] * layers + at <= asked:
                        for e in trace.experts[u, at]:
                            so_far[at, e] += e >= 0
            found = of(p, d, steps.row.tolist().index(t), layer)
            if not first or not so_far.any():
                assert set(found) <= {-1}
                continue
            cosine = (collection * so_far).sum(axis=(1, 2)) / np.sqrt((collection**2).sum(axis=(1, 2)))
            near = np.flatnonzero(cosine >= cosine.max() - 1e-6)
            assert found in ranked(predictor.collection_[near, layer], trace.top_k).tolist()


def test_measured_keys_follow_the_shares_of_right_entries() -> None:
    run = trace_of([[[0, 1]], [[1, 2]], [[2, 0]], [[-1, 1]]], 3)
    lists = np.array([[[[0, 1]], [[2, -1]], [[1, 0]], [[2, 1]]]], np.int16)
    row = np.array([[0, 1, 2, -1]], np.int32)
    # rank 0: 0 right, 2 right, 1 wrong; rank 1: 1 right, none, 0 right
    assert measured(Prediction(lists, row), run, schedule(run)).tolist() == [[CERTAIN - CERTAIN * 2 // 3, 0]]


# --- refusals -----------------------------------------------------------------------------------------------


RUN = random_trace(np.random.default_rng(0), logits=True)  # 3 layers, 8 experts, top-2


@pytest.mark.parametrize("name", AHEAD)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": 0}, "distance is 0; a whole number from 1 is required"),
        ({"distance": 1.5}, "distance is 1.5; a whole number from 1 is required"),
        ({"width": 0}, "width is 0; a whole number from 1 is required"),
        ({"width": True}, "width is True; a whole number from 1 is required"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as raised:
        PREDICTORS[name](**options)
    assert str(raised.value) == f"{name}: {message}"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("noisy-oracle", {"recall": 1.1}, "recall is 1.1; a number from 0 to 1 is required"),
        ("noisy-oracle", {"recall": math.nan}, "recall is nan; a number from 0 to 1 is required"),
        ("noisy-oracle", {"precision": 0}, "precision is 0; a number above 0, at most 1 is required"),
        ("noisy-oracle", {"seed": -1}, "seed is -1; a whole number from 0 is required"),
        ("activation-matrix", {"capacity": 0}, "capacity is 0; a whole number from 1 is required"),
        ("map-store", {"maps": 0}, "maps is 0; a whole number from 1 is required"),
        ("map-store", {"seed": -1}, "seed is -1; a whole number from 0 is required"),
        ("popular-per-request", {"tokens": 0}, "tokens is 0; a whole number from 1 is required"),
        ("transition", {"smoothing": -0.5}, "smoothing is -0.5; a number from 0 is required"),
        ("transition", {"smoothing": math.inf}, "smoothing is inf; a number from 0 is required"),
    ],
)
def test_own_options_are_checked(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as raised:
        PREDICTORS[name](**options)
    assert str(raised.value) == f"{name}: {message}"


@pytest.mark.parametrize("name", AHEAD)
def test_no_distance_beyond_the_layers(name: str) -> None:
    run = random_trace(np.random.default_rng(0), lookahead=1, lookahead_source="learned: by chance", logits=True)
    message = f"^{name}: distance 4; the trace has 3 MoE layers$"
    with pytest.raises(SpecError, match=message):
        predictor = PREDICTORS[name](distance=4)
        if predictor.fitted:
            predictor.fit(run)
        predictor.predict(run, schedule(run))


@pytest.mark.parametrize("name", FITTED)
def test_what_is_fitted_says_so(name: str) -> None:
    predictor = PREDICTORS[name]()
    with pytest.raises(SpecError, match=rf"^{name}: not fitted; it needs a calibration trace$"):
        predictor.predict(RUN, schedule(RUN))
    predictor.fit(random_trace(np.random.default_rng(0), experts=9, logits=True))
    with pytest.raises(SpecError, match=r"calibration trace has 3 MoE layers, 9 experts, top-2; the trace has 3 .* 8 "):
        predictor.predict(RUN, schedule(RUN))


def test_lookahead_must_be_there_and_reach_far_enough() -> None:
    message = "^gate-lookahead: the trace has no array lookahead; this predictor needs it$"
    with pytest.raises(SpecError, match=message):
        PREDICTORS["gate-lookahead"]().predict(RUN, schedule(RUN))
    run = random_trace(np.random.default_rng(0), lookahead=1, distances=(1, 3))
    PREDICTORS["gate-lookahead"]().predict(run, schedule(run))
    with pytest.raises(SpecError, match=r"distance 2 needs lookahead distances \[1, 2\]; the trace has \[1, 3\]$"):
        PREDICTORS["gate-lookahead"](distance=2).predict(run, schedule(run))


def test_lookahead_from_nowhere_is_refused() -> None:
    ahead = np.zeros((1, 2, 2, 1), np.int16)
    run = trace_of(np.zeros((2, 2, 1)), 2, lookahead=ahead, meta={"lookahead_distances": [1]})
    with pytest.raises(SpecError, match=r"lookahead at distance 1 has entries at layers below 1; -1 is needed$"):
        PREDICTORS["gate-lookahead"]().predict(run, schedule(run))


def test_noise_needs_experts_to_be_wrong_with() -> None:
    with pytest.raises(
        SpecError, match=r"^noisy-oracle: precision 0.1 asks for 16.2 wrong experts a list; there are 6 "
    ):
        PREDICTORS["noisy-oracle"](precision=0.1).predict(RUN, schedule(RUN))


def test_the_registry_tells_what_each_is() -> None:
    for name, each in PREDICTORS.items():
        assert each.name == name and each.source and each.fitted == hasattr(each, "fit")
        assert (each.__doc__ or "").split("\n")[0].endswith((".", "lookahead`"))
