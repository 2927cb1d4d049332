"""Small routing traces for tests: a seeded generator and a hypothesis strategy."""

from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from traces.format.trace import RoutingTrace

# For a test with `tmp_path`, which every example of it gets the same: each writes its files anew.
REUSING_FOLDER = settings(
    suppress_health_check=[*settings.default.suppress_health_check, HealthCheck.function_scoped_fixture]
)


def trace_of(experts: Any, n_experts: int, weights: Any = None, prefill: Any = None) -> RoutingTrace:
    """experts [T][L][K] of one request."""
    array = np.asarray(experts, np.int16)
    tokens, layers, k = array.shape
    meta = {"format_version": 1, "model": "m", "n_experts": n_experts, "top_k": k, "n_layers": layers}
    meta |= {"moe_layers": list(range(layers)), "real": False}
    prompt = np.zeros(tokens, bool) if prefill is None else np.asarray(prefill, bool)
    weights = None if weights is None else np.asarray(weights, np.float32)
    rows = np.arange(tokens, dtype=np.int32)
    return RoutingTrace(array, np.zeros(tokens, np.int32), rows, prompt, meta, weights)


def random_trace(
    rng: np.random.Generator,
    tokens: int = 40,
    layers: int = 3,
    experts: int = 8,
    k: int = 2,
    *,
    requests: int = 3,
    prompt: float | None = None,
    missing: float = 0.0,
    skew: float = 0.5,
    weights: bool = True,
    logits: bool = False,
    lookahead: int = 0,
    distances: tuple[int, ...] = (1,),
    token_ids: bool = False,
    dense_layers: int = 0,
    first_position: int = 0,
    shuffle_ids: bool = False,
    **meta: Any,
) -> RoutingTrace:
    """A valid trace of `tokens` rows in min(requests, tokens) requests of at least one row.

    prompt: share of each request's rows that are prompt rows (None: a random share, 0 and 1 included);
    missing: chance of a slot to be -1 (weight 0); skew: how far popularity differs between experts;
    lookahead: length m of the lookahead lists (0: none), each list right with chance 1/2;
    dense_layers: dense layers before the MoE layers; meta: further keys.
    """
    scores = rng.gumbel(size=(tokens, layers, experts)) + skew * rng.normal(size=(layers, experts))
    scores = scores.astype(np.float16).astype(np.float64)
    chosen = np.argsort(-scores, axis=2, kind="stable")[:, :, :k]
    weight = np.take_along_axis(np.exp(scores), chosen, axis=2)
    weight /= weight.sum(axis=2, keepdims=True)
    gone = rng.random(chosen.shape) < missing
    chosen, weight = np.where(gone, -1, chosen), np.where(gone, 0.0, weight)
    sequence, position, prefill = _rows(rng, tokens, requests, prompt, first_position, shuffle_ids)
    named: dict[str, Any] = {
        "format_version": 1,
        "model": "test-model",
        "n_experts": experts,
        "top_k": k,
        "n_layers": layers + dense_layers,
        "moe_layers": list(range(dense_layers, dense_layers + layers)),
        "real": False,
        "norm_topk": True,
        "score_function": "softmax",
    }
    if lookahead:
        named["lookahead_distances"] = list(distances)
    return RoutingTrace(
        experts=chosen.astype(np.int16),
        sequence=sequence,
        position=position,
        prefill=prefill,
        meta=named | meta,
        weights=weight.astype(np.float16) if weights else None,
        logits=scores.astype(np.float16) if logits else None,
        lookahead=_lookahead(rng, chosen, experts, lookahead, distances) if lookahead else None,
        token_ids=rng.integers(0, 1000, tokens).astype(np.int32) if token_ids else None,
    )


def _rows(
    rng: np.random.Generator, tokens: int, requests: int, prompt: float | None, start: int, shuffle: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = min(requests, tokens)
    cuts = np.sort(rng.choice(np.arange(1, tokens), n - 1, replace=False)) if n > 1 else np.zeros(0, np.int64)
    lengths = np.diff(np.concatenate([[0], cuts, [tokens]]))
    ids = rng.permutation(10 * n)[:n] if shuffle else np.arange(n)
    sequence = np.repeat(ids, lengths).astype(np.int32)
    row = np.concatenate([np.arange(length) for length in lengths])
    share = rng.choice([0.0, 1.0, rng.random()], n) if prompt is None else np.full(n, prompt)
    prefill = row < np.repeat(np.floor(share * lengths), lengths)
    return sequence, (row + start).astype(np.int32), prefill


def _lookahead(
    rng: np.random.Generator, chosen: np.ndarray, experts: int, m: int, distances: tuple[int, ...]
) -> np.ndarray:
    tokens, layers, k = chosen.shape
    lists = np.full((len(distances), tokens, layers, m), -1, np.int16)
    width = min(m, experts)
    for i, distance in enumerate(distances):
        guess = np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :width]
        guess = np.where(np.arange(width) < rng.integers(0, width + 1, (tokens, layers, 1)), guess, -1)
        right = rng.random((tokens, layers)) < 0.5
        n = min(width, k)
        guess[right] = -1
        guess[..., :n][right] = chosen[..., :n][right]
        guess[:, :distance] = -1
        lists[i, :, :, :width] = guess
    return lists


@st.composite
def traces(
    draw: st.DrawFn,
    max_tokens: int = 24,
    max_layers: int = 4,
    max_experts: int = 8,
    max_k: int = 3,
    max_requests: int = 4,
    **fixed: Any,
) -> RoutingTrace:
    """Small valid traces: with and without -1, prompts, decodes, weights, logits, lookahead.

    fixed: arguments of random_trace that are not drawn.
    """
    experts = draw(st.integers(1, max_experts))
    layers = draw(st.integers(1, max_layers))
    options: dict[str, Any] = {
        "tokens": draw(st.integers(1, max_tokens)),
        "layers": layers,
        "experts": experts,
        "k": draw(st.integers(1, min(max_k, experts))),
        "requests": draw(st.integers(1, max_requests)),
        "prompt": draw(st.sampled_from([None, 0.0, 0.5, 1.0])),
        "missing": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        "skew": draw(st.sampled_from([0.0, 1.0, 4.0])),
        "weights": draw(st.booleans()),
        "logits": draw(st.booleans()),
        "lookahead": draw(st.integers(0, 3)),
        "distances": draw(st.sampled_from([(1,), (1, 2), (2,)])),
        "token_ids": draw(st.booleans()),
        "dense_layers": draw(st.integers(0, 2)),
        "first_position": draw(st.sampled_from([0, 0, 7])),
        "shuffle_ids": draw(st.booleans()),
    }
    return random_trace(np.random.default_rng(draw(st.integers(0, 2**32 - 1))), **(options | fixed))
