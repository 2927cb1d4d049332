"""The shipped sample and the generators: same bytes, published figures within tolerance, known answers."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.sample_provenance import (
    ASSUMED_RECALL,
    CAPTURE,
    PAGE,
    PUBLISHED_POPULARITY_CV,
    PUBLISHED_SHARES,
    SAMPLE,
    lru_hit_rate,
    overlap,
    page,
    popularity,
    population,
    recall,
    repeat_shares,
    requests,
)
from traces.errors import TraceError
from traces.format import npz
from traces.format.check import validate
from traces.format.trace import RoutingTrace
from traces.synthetic import PRESETS, _bell, _exp, generate, synthesise


@pytest.fixture(scope="module")
def sample() -> RoutingTrace:
    return npz.read(SAMPLE)


def file_hash(folder: Path, like: str, seed: int) -> str:
    path = folder / f"{like}-{seed}.npz"
    npz.write(path, synthesise(like, seed))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_shipped_sample_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    shipped = hashlib.sha256(SAMPLE.read_bytes()).hexdigest()
    assert file_hash(tmp_path, "mixtral-8x7b", 0) == shipped


def test_another_seed_is_another_trace_of_the_same_size(tmp_path: Path) -> None:
    assert file_hash(tmp_path, "mixtral-8x7b", 1) != file_hash(tmp_path, "mixtral-8x7b", 2)
    one, two = synthesise("mixtral-8x7b", 1), synthesise("mixtral-8x7b", 2)
    assert one.experts.shape == two.experts.shape
    assert (one.experts == two.experts).mean() < 0.3  # 0.125 by chance for one slot of eight


def test_the_sample_is_what_was_asked_for(sample: RoutingTrace) -> None:
    assert (sample.n_moe_layers, sample.n_experts, sample.top_k) == (32, 8, 2)
    assert sample.n_tokens >= 4000 and len(requests(sample)) >= 16
    for one in requests(sample):
        assert one.prefill.any() and not one.prefill.all()
    assert sample.has("weights") and sample.has("logits")
    assert sample.lookahead_distances == (1, 2)
    assert SAMPLE.stat().st_size < 6_000_000


def test_the_sample_says_that_it_is_synthetic_and_what_is_assumed(sample: RoutingTrace) -> None:
    assert sample.real is False
    assert sample.meta["source"].startswith("synthetic")
    assert any("recall" in text and "assumption" in text for text in sample.meta["assumptions"])
    assert any("2401.04088" in text for text in sample.meta["facts"])


@pytest.mark.parametrize("layer", PUBLISHED_SHARES)
def test_repeat_shares_are_the_published_ones(sample: RoutingTrace, layer: int) -> None:
    """The model's mean within 2 points; one layer of 16 requests within 3 (its own draw has an sd of 1)."""
    shares = repeat_shares(sample)
    for published, model, own in zip(PUBLISHED_SHARES[layer], population(layer), shares, strict=True):
        assert abs(model - published) < 0.02
        assert abs(own[layer] - published) < 0.03


def test_popularity_and_recall_are_as_stated(sample: RoutingTrace) -> None:
    assert abs(popularity(sample)[0] - PUBLISHED_POPULARITY_CV) < 0.03
    for distance, assumed in ASSUMED_RECALL.items():
        assert abs(recall(sample, distance) - assumed) < 0.01


def test_no_prediction_before_the_first_layers(sample: RoutingTrace) -> None:
    assert sample.lookahead is not None
    for i, distance in enumerate(sample.lookahead_distances):
        assert (sample.lookahead[i, :, :distance] == -1).all()
        assert (sample.lookahead[i, :, distance:] >= 0).all()


def test_experts_and_weights_follow_from_the_rounded_logits(sample: RoutingTrace) -> None:
    """Against numpy's own ranking and exp: Mixtral's weights are the softmax over the two chosen logits."""
    assert sample.logits is not None and sample.weights is not None
    z = sample.logits.astype(np.float64)
    assert (np.argsort(-z, axis=2, kind="stable")[..., :2] == sample.experts).all()
    chosen = np.exp(np.take_along_axis(z, sample.experts.astype(np.int64), axis=2))
    expected = chosen / chosen.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(sample.weights.astype(np.float64), expected, rtol=2**-10, atol=2**-24)


def test_weights_over_all_experts_where_the_model_does_not_normalise() -> None:
    preset = replace(PRESETS["olmoe-1b-7b"], requests=2, moe_layers=(0, 1), n_layers=2)
    trace = generate(preset, 5)
    assert trace.logits is not None and trace.weights is not None
    powers = np.exp(trace.logits.astype(np.float64))
    expected = np.take_along_axis(powers, trace.experts.astype(np.int64), axis=2)
    expected /= powers.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(trace.weights.astype(np.float64), expected, rtol=2**-10, atol=2**-24)


@pytest.mark.parametrize("like", PRESETS)
def test_every_preset_is_a_valid_synthetic_trace(like: str) -> None:
    trace = synthesise(like, 3)
    validate(trace, like)
    assert trace.real is False and like in trace.meta["source"]


def test_other_presets_meet_their_published_figure() -> None:
    olmoe = synthesise("olmoe-1b-7b", 0)
    assert abs(overlap(olmoe) - 0.403) < 0.01
    lite = requests(synthesise("deepseek-v2-lite", 0))[:4]
    assert abs(np.mean([lru_hit_rate(one, 16) for one in lite]) - 0.477) < 0.02


@pytest.mark.parametrize("slots", [2, 4, 6])
def test_uniform_hits_slots_over_experts(slots: int) -> None:
    """Whatever s of 8 experts are resident, an independent draw is among them with chance s / 8."""
    hits = [lru_hit_rate(one, slots) for one in requests(synthesise("uniform", 0))]
    assert abs(np.mean(hits) - slots / 8) < 0.01


@pytest.mark.parametrize(("slots", "rate"), [(2, 0.0), (5, 0.0), (6, 0.0), (8, 1.0)])
def test_cyclic_defeats_lru_until_everything_fits(slots: int, rate: float) -> None:
    one = requests(synthesise("cyclic", 0))[0]
    assert lru_hit_rate(one, slots) == rate


def test_bell_has_mean_0_variance_1_and_neighbours_unrelated() -> None:
    x = _bell(9, 1, 0, 200_000)
    assert abs(x.mean()) < 0.01 and abs(x.var() - 1) < 0.01
    assert abs((x[1:] * x[:-1]).mean()) < 0.01
    assert abs((x * _bell(9, 1, 1, 200_000)).mean()) < 0.01


def test_exp_without_libm_is_exp() -> None:
    x = np.linspace(-30, 30, 10_001)
    np.testing.assert_allclose(_exp(x), np.exp(x), rtol=1e-10)


@pytest.mark.parametrize(
    ("like", "seed", "said"),
    [
        ("mixtral", 0, "mixtral-8x7b"),
        ("uniform", -1, "2^64"),
        ("uniform", 2**64, "2^64"),
        ("uniform", True, "2^64"),
    ],
)
def test_bad_requests_are_refused_in_one_line(like: str, seed: int, said: str) -> None:
    with pytest.raises(TraceError) as error:
        synthesise(like, seed)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_page_shows_what_the_script_computes() -> None:
    if not CAPTURE.exists():
        pytest.skip(f"no real capture at ../shared/traces/{CAPTURE.name}")
    text = PAGE.read_text()
    assert page(text) == text
