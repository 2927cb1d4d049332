"""The shipped capture of the small model: what it holds, that it is the model's, and that runs work on it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.run import main
from sim.simulation import simulate
from sim.spec import RunSpec
from traces.format import npz
from traces.format.trace import RoutingTrace

SLOTS_AGREE = 0.99  # of a recomputation elsewhere: a tie between two experts may fall the other way


@pytest.fixture(scope="module")
def sample() -> RoutingTrace:
    return npz.read(npz.find("tiny-moe"))


@pytest.fixture(scope="module")
def calibration() -> RoutingTrace:
    return npz.read(npz.find("tiny-moe-calibration"))


def test_it_is_real_and_has_everything(sample: RoutingTrace) -> None:
    assert sample.real and sample.n_tokens >= 4000 and len(sample.requests()[0]) >= 24
    assert (sample.n_moe_layers, sample.n_experts, sample.top_k) == (6, 32, 4)
    assert all(sample.has(name) for name in ("weights", "logits", "lookahead", "token_ids"))
    assert sample.lookahead_distances == (1, 2, 3) and 0 < sample.prefill.sum() < sample.n_tokens
    assert "PSF-2.0" in sample.meta["licence"] and "held-out" in sample.meta["data"]
    assert npz.find("tiny-moe").stat().st_size <= 4_000_000


def test_slots_and_weights_follow_from_the_logits(sample: RoutingTrace) -> None:
    """softmax, the four best, renormalised: what meta says, within what float16 keeps."""
    assert sample.meta["score_function"] == "softmax" and sample.meta["norm_topk"]
    chosen = np.take_along_axis(sample.logits, sample.experts.astype(np.int64), axis=2).astype(np.float64)
    assert (np.diff(chosen, axis=2) <= 0).mean() > 0.999
    left = sample.logits.astype(np.float64)
    np.put_along_axis(left, sample.experts.astype(np.int64), -np.inf, axis=2)
    assert (left.max(axis=2) <= chosen.min(axis=2)).mean() > 0.999
    odds = np.exp(chosen - chosen.max(axis=2, keepdims=True))
    np.testing.assert_allclose(sample.weights, odds / odds.sum(axis=2, keepdims=True), rtol=0.02, atol=2e-3)


def test_its_lookahead_foretells_better_nearer(sample: RoutingTrace) -> None:
    recall = []
    for d in (1, 2, 3):
        lists, wanted = sample.lookahead[d - 1][:, d:], sample.experts[:, d:]
        recall.append(float((lists[..., :, None] == wanted[..., None, :]).any(axis=2).mean()))
        assert (sample.lookahead[d - 1][:, :d] == -1).all()
    assert recall[0] > recall[1] > recall[2] > 2 * 4 / 32


def test_the_calibration_shares_no_prompt_with_it(sample: RoutingTrace, calibration: RoutingTrace) -> None:
    def prompts(trace: RoutingTrace) -> set[bytes]:
        return {trace.token_ids[a:b][trace.prefill[a:b]].tobytes() for a, b in zip(*trace.requests(), strict=True)}

    assert len(prompts(sample)) == 28 and len(prompts(calibration)) == len(calibration.requests()[0])
    assert not prompts(sample) & prompts(calibration)
    assert sample.meta["tokenizer"] == calibration.meta["tokenizer"]


# --- runs, as from a fresh clone


def ran(**fields: Any) -> dict[str, Any]:
    return simulate(RunSpec.of({"trace": "tiny-moe.npz", "max_steps": 300, **fields}))[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"eviction": "belady"},
        {"prefetch": "gate-lookahead", "set": {"gate-lookahead.distance": 3}},
        {"rerank": "cache-prior"},
        {"prefetch": "transition", "placement": "popular"},
        {"miss": "drop"},
    ],
    ids=str,
)
def test_policies_run_on_it(fields: dict[str, Any]) -> None:
    out = ran(**fields)
    assert out["hits"] + out["late"] + out["misses"] == out["wanted"] > 0
    assert out["trace"]["real"] and out["trace"]["model"] == "tiny-moe"


def test_buddy_runs_without_naming_a_calibration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--trace", "tiny-moe.npz", "--miss", "buddy", "--max-steps", "300"]) == 0
    assert "! fitted on the shipped sample tiny-moe-calibration" in capsys.readouterr().out
    out = ran(miss="buddy")
    assert out["substituted"] > 0 and out["spec"]["calibration"] == "tiny-moe-calibration"
    assert out == ran(miss="buddy", calibration="tiny-moe-calibration")
    assert ran()["spec"]["calibration"] is None and ran()["trace"]["hash"] == out["trace"]["hash"]


def test_other_traces_still_ask_for_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sample: RoutingTrace
) -> None:
    """The synthetic sample, and a copy of this one under the same name elsewhere."""
    npz.write(tmp_path / "tiny-moe.npz", sample)
    for trace in ("mixtral.npz", str(tmp_path / "tiny-moe.npz")):
        assert main(["--trace", trace, "--miss", "buddy"]) == 2
        assert "buddy: is fitted and needs --calibration" in capsys.readouterr().err


def test_a_calibration_that_is_named_wins() -> None:
    assert ran(miss="buddy", calibration="0.25")["spec"]["calibration"] == 0.25


# --- that it is what the model does (the capture extra)


def test_the_model_routes_as_the_sample_says(sample: RoutingTrace) -> None:
    """Two requests computed again from their tokens."""
    pytest.importorskip("torch", reason="the capture extra's torch is not installed")
    pytest.importorskip("tokenizers", reason="the train extra's tokenizers is not installed")
    import torch

    from runtime.small_model.capture_source import TinyMoe
    from traces.capturing.recorder import Recorder

    source = TinyMoe("tiny-moe", "cpu")
    rows = sample.sequence < 2
    tokens = sample.token_ids[rows].reshape(2, -1).astype(np.int64)
    with Recorder(source.model) as recorder, torch.no_grad():
        recorder.begin(prompt_lengths=64)
        source.model(torch.from_numpy(tokens))
    again = recorder.trace()
    assert (again.experts == sample.experts[rows]).mean() >= SLOTS_AGREE
    assert (again.lookahead == sample.lookahead[:, rows]).mean() >= SLOTS_AGREE
    np.testing.assert_allclose(again.logits.astype(float), sample.logits[rows].astype(float), atol=0.02, rtol=0.02)
    np.testing.assert_array_equal(again.prefill, sample.prefill[rows])


def test_its_prompts_can_be_run_again(tmp_path: Path, sample: RoutingTrace) -> None:
    """Whatever held-out files this Python has: the prompts are in the trace, and sampling is seeded by request."""
    pytest.importorskip("torch", reason="the capture extra's torch is not installed")
    pytest.importorskip("tokenizers", reason="the train extra's tokenizers is not installed")
    from traces.__main__ import main as traces_main

    flags = ["capture", "--model", "tiny-moe", "--prompts-from", "tiny-moe", "--requests", "2", "--skip", "3"]
    flags += ["--generate", "6", "--device", "cpu", "--out"]
    for name in ("a.npz", "b.npz"):
        assert traces_main([*flags, str(tmp_path / name)]) == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = npz.read(tmp_path / "a.npz")
    prompt = np.concatenate([sample.token_ids[sample.sequence == r][:64] for r in (3, 4)])
    np.testing.assert_array_equal(again.token_ids[again.prefill], prompt)
    wanted = np.concatenate([sample.experts[sample.sequence == r][:64] for r in (3, 4)])
    assert (again.experts[again.prefill] == wanted).mean() >= SLOTS_AGREE
    assert again.meta["licence"] == sample.meta["licence"] and again.meta["capture"]["skip"] == 3
