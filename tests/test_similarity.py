"""Expert-output similarity against the sums spelt out, its report, and the files that others read."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_models import FAMILIES, build, prompts, torch  # skips without torch and transformers

pytest.importorskip("scipy", reason="the runtime's scipy is not installed")
pytest.importorskip("tokenizers", reason="the train extra's tokenizers is not installed")

from scipy.stats import spearmanr

from runtime import similarity
from runtime.closed_loop import expert_similarity
from runtime.closed_loop.expert_similarity import measure
from sim.fit.buddies_file import read_similarity
from sim.fit.coactivation import co_activation, conditional
from sim.run import main as simulate
from traces.capturing.recorder import Recorder
from traces.capturing.routers import find_moe_layers
from traces.format import npz

SHIPPED = Path(similarity.__file__).parent / "tiny_moe" / "similarity.npz"


class Plain:
    """A source around any model: prompts in one forward pass."""

    context = None

    def __init__(self, model: Any) -> None:
        self.model, self.meta = model, {"model": "plain"}

    def heldout(self) -> list[Any]:
        return []

    def encode(self, text: str) -> Any:
        raise NotImplementedError(text)

    def run(self, recorder: Any, prompts: Any, generate: int, temperature: float, seed: int, first: int) -> None:
        with recorder, torch.no_grad():
            self.model(torch.from_numpy(prompts))


@pytest.mark.parametrize("family", ["qwen3-moe", "gpt-oss", "deepseek-v3"])
@pytest.mark.parametrize("states", ["routed", "all"])
def test_it_equals_the_means_spelt_out(family: str, states: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = build(family), prompts(3, 10)
    monkeypatch.setattr(expert_similarity, "BLOCK_BYTES", 1 << 14)  # several blocks
    found = measure(Plain(model), list(tokens.numpy()), batch=2, states=states)
    for place, layer in enumerate(find_moe_layers(model)):
        seen: list[Any] = []
        hook = layer.experts.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args))
        with torch.no_grad():
            model(tokens)
            hook.remove()
            (hidden, ids, _), n = seen[0], layer.n_experts
            one = torch.ones(len(hidden), 1)
            out = np.stack([layer.experts(hidden, one.long() * e, one).numpy() for e in range(n)]).astype(np.float64)
        for i in range(n):
            rows = (ids == i).any(dim=1).numpy()
            rows = rows if rows.any() and states == "routed" else np.ones_like(rows)
            mine = out[i, rows]
            for j in range(n):
                dot = (mine * out[j, rows]).sum(1)
                cosine = dot / np.linalg.norm(mine, axis=1) / np.linalg.norm(out[j, rows], axis=1)
                error = np.linalg.norm(out[j, rows] - mine, axis=1) / np.linalg.norm(mine, axis=1)
                assert found.cosine[place, i, j] == pytest.approx(cosine.mean(), abs=1e-4)
                assert found.error[place, i, j] == pytest.approx(error.mean(), abs=2e-3)
    with Recorder(model, logits=False, lookahead=0) as recorder, torch.no_grad():
        model(tokens)
    np.testing.assert_allclose(found.q, conditional(co_activation(recorder.trace()).m))


def test_every_family_can_be_measured() -> None:
    for family in FAMILIES:
        found = measure(Plain(build(family)), list(prompts(2, 8).numpy()))
        diagonal = np.einsum("lii->li", found.cosine)
        np.testing.assert_allclose(diagonal, 1, atol=1e-5)
        assert (np.abs(found.cosine) <= 1 + 1e-5).all() and (found.error >= 0).all()


def test_rank_correlation_is_spearmans_and_its_p_knows_chance() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((12, 12))
    off = ~np.eye(12, dtype=bool)
    near = a + 0.3 * rng.random((12, 12))
    rho, p = similarity.rank_correlation(a, near)
    assert rho == pytest.approx(spearmanr(a[off], near[off]).statistic) and p == 0.001
    chance = [similarity.rank_correlation(a, rng.random((12, 12)), seed)[1] for seed in range(20)]
    assert 0.2 < np.mean(chance) < 0.8
    assert similarity.rank_correlation(a, np.ones((12, 12))) == (None, None)


def test_the_command_writes_what_the_policies_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sim.npz"
    flags = ["--model", "tiny-moe", "--requests", "2", "--prompt-tokens", "64", "--device", "cpu", "--out", str(out)]
    assert similarity.main([*flags, "--report", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "similarity.md").read_text() == text and "rho(q, cosine)" in text
    matrix, about = read_similarity(out)
    assert matrix.shape == (6, 32, 32) and about["model"] == "tiny-moe" and about["tokens"] == 128
    with open(tmp_path / "similarity.csv") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert [r["layer"] for r in rows] == [str(i) for i in range(6)] and all(
        -1 <= float(r["rho_cosine"]) <= 1 for r in rows
    )
    again = tmp_path / "again.npz"
    assert similarity.main([*flags[:-1], str(again)]) == 0 and again.read_bytes() == out.read_bytes()


def test_the_shipped_file_is_of_the_shipped_sample() -> None:
    matrix, about = read_similarity(SHIPPED)
    sample = npz.read(npz.find("tiny-moe"))
    assert matrix.shape == (sample.n_moe_layers, sample.n_experts, sample.n_experts)
    assert about["moe_layers"] == sample.meta["moe_layers"] and about["tokens"] == 32768
    with np.load(SHIPPED) as arrays:
        found = {name: arrays[name] for name in ("relative_error", "co_activation")}
    assert all(a.shape == matrix.shape and np.isfinite(a).all() for a in found.values())
    run = ["--trace", "tiny-moe.npz", "--max-steps", "100", "--set", f"similarity.matrix={SHIPPED}"]
    assert simulate([*run, "--miss", "similarity"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt-tokens", "300"], "the model's context is 256"),
        (["--requests", "0"], "'0' is no whole number from 1 up"),
        (["--requests", "99999"], "fewer, or more text is needed"),
        (["--states", "some"], "'some' is unknown; one of routed, all is required"),
        (["--out", "no/such/folder/x.npz"], "its folder is not there"),
    ],
)
def test_refusals(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert similarity.main(["--model", "tiny-moe", *flags]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and message in line and line.count("\n") == 1
