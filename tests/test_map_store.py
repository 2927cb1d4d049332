"""map-store and popular-per-request: small cases worked by hand, and plain spellings of both."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from sim.errors import SpecError
from sim.fit import prediction
from sim.fit.map_store import MapStore
from sim.fit.prediction import CERTAIN
from sim.fit.predictors import PREDICTORS
from sim.steps import Steps, schedule
from tests.gen import random_trace
from tests.test_predictors import fitted, looking, of, trace_of
from traces.format.trace import RoutingTrace, hash64


def gates(p: Any, k: int = 1, **more: Any) -> RoutingTrace:
    """Requests whose routers have these probabilities [T][L][E], routed to the k best."""
    share = np.array(p, np.float64)
    experts = np.argsort(-share, axis=2, kind="stable")[..., :k]
    return trace_of(experts, share.shape[2], logits=np.log(share).astype(np.float16), **more)


# --- map-store, by hand ---

A, B, C = [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]


def test_the_most_alike_iteration_so_far_foretells_the_layers_behind() -> None:
    # the store: (A | B) and (B | C), of length .812 a layer
    store = MapStore().fit(gates([[A, B], [B, C]]))
    run = gates([[[0.7, 0.2, 0.1], A], [[0.2, 0.6, 0.2], A]])
    p = store.predict(run, schedule(run))
    # token 0, length .735: .56 + .02 + .01 = .59 with A, .99 of what it could be; .07 + .16 + .01 = .24 with B.
    # token 1: .16 + .06 + .02 = .24 with A, .02 + .48 + .02 = .52 with B, of .812 x .663 = .539: .965.
    # The lists have the .01 and .035 that are left over after one entry, which is top-k.
    assert [of(p, 1, t, 1) for t in range(2)] == [[1, -1], [2, -1]]
    assert [of(p, 1, t, 0) for t in range(2)] == [[-1, -1]] * 2  # nobody has a prompt


def test_the_less_alike_the_longer_the_list() -> None:
    # The one map: (.8 .1 .05 .05 | .3 .5 .1 .1), length .809 at layer 0.
    store = MapStore(width=4).fit(gates([[[0.8, 0.1, 0.05, 0.05], [0.3, 0.5, 0.1, 0.1]]]))
    flat = [0.25] * 4
    run = gates([[[0.05, 0.05, 0.85, 0.05], flat], [flat, flat], [[0.7, 0.1, 0.1, 0.1], flat]])
    # token 0: .04 + .005 + .0425 + .0025 = .09 of .809 x .854 = .691: 1 - s = .87 > .5 + .3, so .5 + .3 + .1;
    # token 1: .25 of .809 x .5: 1 - s = .38 < .5; token 2: .56 + .01 + .005 + .005 = .58 of .809 x .721: .006
    p = store.predict(run, schedule(run))
    assert [of(p, 1, t, 1) for t in range(3)] == [[1, 0, 2, -1], [1, -1, -1, -1], [1, -1, -1, -1]]
    short = MapStore(width=2).fit(gates([[[0.8, 0.1, 0.05, 0.05], [0.3, 0.5, 0.1, 0.1]]]))
    assert of(short.predict(run, schedule(run)), 1, 0, 1) == [1, 0]  # no longer than the width


def test_in_front_of_what_is_seen_the_request_with_the_most_alike_prompt_foretells() -> None:
    # Requests a: prompt (A | A), then (C | C); b: prompt (B | B), then (C | C). Their mean maps: (.45 .1 .45) and
    # (.1 .45 .45) at both layers.
    calibration = gates([[A, A], [C, C], [B, B], [C, C]], sequence=[0, 0, 1, 1], prefill=[1, 0, 1, 0])
    run = gates([[[0.7, 0.2, 0.1], B], [C, C], [C, C]], prefill=[1, 0, 0])
    p = MapStore(distance=2).fit(calibration).predict(run, schedule(run))
    # The prompt is over. With a at layer 0: .56 + .02 + .01 = .59, with b: .24. At layers 0 and 1: .59 + .17 = .76
    # with a, .24 + .01 + .64 + .01 = .90 with b, .715 of what it could be.
    # Layer 0 of row 1, one layer ahead, is asked for at layer 1 of the prompt: b. Two ahead, at layer 0: a. Layer 1 two
    # ahead, at layer 1: b. Row 2 is asked for when all of the prompt is known: b.
    assert (of(p, 1, 1, 0), of(p, 2, 1, 0), of(p, 2, 1, 1)) == ([1, -1], [0, -1], [1, -1])
    assert (of(p, 1, 2, 0), of(p, 2, 2, 0), of(p, 2, 2, 1)) == ([1, -1],) * 3
    assert (of(p, 1, 0, 0), of(p, 2, 0, 1)) == ([-1, -1],) * 2  # of the prompt itself nothing is known
    # One layer ahead of layer 1 is in the same step, whose layer 0 has been seen: for rows 1 and 2 (C | C), of whom a's
    # and b's are equal; for row 0 (A | A).
    assert [of(p, 1, t, 1) for t in range(3)] == [[0, -1], [2, -1], [2, -1]]


def test_a_chunk_of_prompt_is_one_iteration_and_counts_as_its_mean() -> None:
    # (A + B) / 2 = (.45 .45 .1) at layer 0 and C at layer 1, beside (C | A)
    calibration = gates([[A, C], [B, C], [C, A]], prefill=[1, 1, 0])
    store = MapStore().fit(calibration)
    assert np.round(store.maps_ / 2**20, 3).tolist() == [
        [[0.45, 0.45, 0.1], [0.1, 0.1, 0.8]],
        [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]],
    ]
    run = gates([[A, A], [B, A]], prefill=[1, 1])
    p = store.predict(
        run, schedule(run)
    )  # a chunk of two rows, (.45 .45 .1): the first map; its first row has the list
    assert p.row.tolist() == [[0, -1]] and of(p, 1, 0, 1) == [2, -1]


def test_it_keeps_the_iterations_of_lowest_hash() -> None:
    calibration = random_trace(np.random.default_rng(3), tokens=60, requests=12, prompt=0.0, logits=True)
    whole, some_of_it = MapStore().fit(calibration).maps_, MapStore(maps=7, seed=5).fit(calibration).maps_
    assert len(whole) == 60
    assert np.array_equal(some_of_it, whole[np.sort(np.argsort(hash64(5, np.arange(60), 0))[:7])])


def test_its_key_is_a_share_of_right_entries_per_layer_ahead() -> None:
    calibration = random_trace(np.random.default_rng(3), tokens=60, requests=6, layers=4, logits=True)
    near = MapStore(maps=5).fit(calibration).rank_key_
    far = MapStore(maps=5, distance=2).fit(calibration)
    assert np.array_equal(far.rank_key_[:1], near)
    part = schedule(calibration, as_decode=True)
    share = CERTAIN - prediction.measured(far._predict(calibration, part), calibration, part)[1]
    assert np.array_equal(far.rank_key_[1], CERTAIN - share // 2) and share.max() > 0


def test_it_learns_from_logits_and_says_who_has_none() -> None:
    bare, full = (random_trace(np.random.default_rng(0), logits=logits) for logits in (False, True))
    with pytest.raises(
        SpecError, match=r"^map-store: the calibration trace has no array logits; it is fitted on that$"
    ):
        MapStore().fit(bare)
    with pytest.raises(SpecError, match=r"^map-store: the trace has no array logits; this predictor needs it$"):
        MapStore().fit(full).predict(bare, schedule(bare))


# --- map-store, in plain Python ---


def softmax(logits: Any) -> np.ndarray:
    power = np.exp(np.asarray(logits, np.float64))
    return power / power.sum(axis=-1, keepdims=True)


def near(seen: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, float]:
    """(those of others [N, layers, E] about as alike as any, the cosine)."""
    cosine = (others * seen).sum(axis=(1, 2)) / np.sqrt((others**2).sum(axis=(1, 2)) * (seen**2).sum())
    return np.flatnonzero(cosine >= cosine.max() - 1e-4), float(cosine.max())


def listed(p: np.ndarray, left_over: float, k: int, m: int) -> list[int]:
    """The fewest of highest probability that have so much, at least k, at most m."""
    order, total, out = np.argsort(-p, kind="stable"), 0.0, list[int]()
    for e in order[:m]:
        if len(out) >= k and total >= left_over:
            break
        out.append(int(e))
        total += p[e]
    return out + [-1] * (m - len(out))


@settings(max_examples=40)
@given(trace=looking(max_tokens=12), batch=some.integers(1, 3), seed=some.integers(0, 99), data=some.data())
def test_map_store_in_plain_python(trace: RoutingTrace, batch: int, seed: int, data: Any) -> None:
    layers, d = trace.n_moe_layers, data.draw(some.integers(1, trace.n_moe_layers))
    store = fitted("map-store", trace, seed, distance=d)
    steps = schedule(trace, batch, data.draw(some.integers(1, 4)), data.draw(some.booleans()))
    step, p, m = steps_of_tokens(steps), store.predict(trace, steps), store.rank_key_.shape[1]
    for at, t in enumerate(steps.row.tolist()):
        own = np.flatnonzero(trace.sequence == trace.sequence[t])
        here, prompt = own[step[own] == step[t]], own[trace.prefill[own]]
        for layer in range(layers):
            asked = step[t] * layers + layer - d  # the visit at which the list is read
            found = of(p, d, at, layer)
            if t != here[0]:
                assert found == []
            elif layer >= d:
                seen = softmax(trace.logits[here]).mean(axis=0)[: layer - d + 1]  # type: ignore[index]
                check(found, seen, store.maps_, store.maps_, layer, trace.top_k, m)
            elif not len(prompt) or step[prompt[-1]] >= step[t] or not len(store.prompts_):
                assert set(found) <= {-1}
            else:  # all layers that every row of the prompt has been routed at
                known = [each for each in range(layers) if step[prompt[-1]] * layers + each <= asked]
                seen = softmax(trace.logits[prompt]).mean(axis=0)[known]  # type: ignore[index]
                check(found, seen, store.prompts_, store.usual_, layer, trace.top_k, m)


def steps_of_tokens(steps: Steps) -> np.ndarray:
    """int64 [T], of steps that run every token once."""
    out = np.empty(len(steps.row), np.int64)
    out[steps.row] = np.repeat(np.arange(len(steps)), np.diff(steps.offset))
    return out


def check(found: list[int], seen: Any, others: Any, foretells: Any, layer: int, k: int, m: int) -> None:
    """The list is one that a map as alike as any gives, at a cosine that is right but for rounding."""
    best, cosine = near(seen, others[:, : len(seen)])
    cuts = (1 - cosine - 1e-4, 1 - cosine + 1e-4)
    assert found in [listed(foretells[i, layer] / 2**20, cut, min(k, m), m) for i in best for cut in cuts]


def test_its_maps_in_plain_python() -> None:
    calibration = random_trace(np.random.default_rng(8), tokens=30, requests=4, prompt=0.5, logits=True)
    store, p, maps, usual, prompts = MapStore().fit(calibration), softmax(calibration.logits), [], [], []
    for r in np.unique(calibration.sequence):
        own = np.flatnonzero(calibration.sequence == r)
        prompt = own[calibration.prefill[own]]
        of_request = [p[prompt].mean(axis=0)] if len(prompt) else []
        of_request += [p[t] for t in own if not calibration.prefill[t]]
        maps += of_request
        if len(prompt):
            prompts.append(p[prompt].mean(axis=0))
            usual.append(np.mean(of_request, axis=0))
    for found, expected in ((store.maps_, maps), (store.prompts_, prompts), (store.usual_, usual)):
        assert np.abs(found / 2**20 - np.array(expected)).max() < 2e-6


# --- popular-per-request ---


def test_popular_per_request_by_hand() -> None:
    # Request a: prompt rows 0 1 2 use 2, 2, 1 at layer 0 and 0, 3, 3 at layer 1; b has no prompt.
    experts = [[[2], [0]], [[2], [3]], [[1], [3]], [[0], [0]], [[0], [0]], [[1], [1]]]
    run = trace_of(experts, 4, sequence=[0, 0, 0, 0, 0, 1], prefill=[1, 1, 1, 0, 0, 0])
    p = PREDICTORS["popular-per-request"](distance=2).predict(run, schedule(run, prefill_chunk=2))
    assert p.row.tolist() == [[-1, -1, -1, 0, -1, -1]] * 2  # its first generated token alone, not its second chunk
    assert p.lists.tolist() == [[[[2, 1], [3, 0]]]]  # twice top-k
    more = PREDICTORS["popular-per-request"](tokens=2, width=1).predict(run, schedule(run))
    assert (more.row.tolist(), more.lists.tolist()) == ([[-1, -1, -1, 0, 0, -1]], [[[[2], [3]]]])


@settings(max_examples=40)
@given(trace=looking(), batch=some.integers(1, 4), chunk=some.integers(1, 4), data=some.data())
def test_popular_per_request_in_plain_python(trace: RoutingTrace, batch: int, chunk: int, data: Any) -> None:
    steps: Steps = schedule(trace, batch, chunk, data.draw(some.booleans()))
    tokens, d = data.draw(some.integers(1, 4)), data.draw(some.integers(1, trace.n_moe_layers))
    p = PREDICTORS["popular-per-request"](distance=d, tokens=tokens).predict(trace, steps)
    for at, t in enumerate(steps.row.tolist()):
        own = np.flatnonzero(trace.sequence == trace.sequence[t])
        prompt = own[trace.prefill[own]]
        since = t - len(prompt) - own[0]  # rows behind the prompt are generated one per step
        for layer in range(trace.n_moe_layers):
            if not len(prompt) or not 0 <= since < tokens:
                assert of(p, d, at, layer) == []
                continue
            used = [e for e in trace.experts[prompt, layer].reshape(-1).tolist() if e >= 0]
            best = sorted(set(used), key=lambda e: (-used.count(e), e))
            m = min(2 * trace.top_k, trace.n_experts)
            assert of(p, d, at, layer) == (best + [-1] * m)[:m]
