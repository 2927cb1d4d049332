"""One substitution at a time: its damage is that of a whole forward pass, and the figures are those of its rows."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed (extra: runtime)")
pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra: train)")
pytest.importorskip("safetensors", reason="safetensors is not installed (extra: runtime)")


from runtime import similarity, substitutions  # noqa: E402
from runtime.closed_loop import (  # noqa: E402
    one_at_a_time,
    substitution_answers,
    substitution_figures,
    substitution_report,
    substitution_statistics,
    substitution_svg,
)
from runtime.closed_loop.expert_similarity import DecoderRuns, measure  # noqa: E402
from runtime.closed_loop.judged_model import TINY, judged_model  # noqa: E402
from runtime.closed_loop.one_at_a_time import NEAR, WAYS, Substitutions, draw_places, experiment, swap  # noqa: E402
from runtime.closed_loop.substitution_figures import all_figures, pairs, pooled  # noqa: E402
from runtime.closed_loop.text_windows import TextWindows, is_judged, text_windows  # noqa: E402
from runtime.small_model.model import FOLDERS, ModelConfig, MoeDecoder  # noqa: E402

E, K, LAYERS, WINDOWS, LENGTH = 6, 3, 3, 4, 10


@pytest.fixture(scope="module")
def model() -> Any:
    """A decoder whose experts matter."""
    made = MoeDecoder(ModelConfig(40, 16, LAYERS, 2, E, K, 8, 16), seed=1).eval()
    with torch.no_grad():
        for block in made.moe_blocks:
            block.experts.down_proj *= 6
            block.gate.weight *= 30
    return made


@pytest.fixture(scope="module")
def text() -> TextWindows:
    tokens = np.random.default_rng(0).integers(0, 40, (WINDOWS, LENGTH))
    return TextWindows(tokens, np.ones(WINDOWS, np.int64), "drawn", ("a", "b", "c"), np.array([0, 0, 1, 2]))


@pytest.fixture(scope="module")
def matrices() -> tuple[Any, Any]:
    return tuple(np.random.default_rng(1).random((2, LAYERS, E, E)))


@pytest.fixture(scope="module")
def rows(model: Any, text: TextWindows, matrices: tuple[Any, Any]) -> Substitutions:
    return experiment(model, text, *matrices, draws=4, seed=5, batch=3)


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (substitution_statistics, substitution_figures):
        monkeypatch.setattr(module, "DRAWS", 20)
    monkeypatch.setattr(similarity, "PERMUTATIONS", 9)


# --- the experiment


def changed(model: Any, text: TextWindows, row: dict[str, float], way: str) -> tuple[Any, Any]:
    """(log p, log q) [M, V] of one window, the substitution made by a hook on the experts in a whole forward pass."""
    tokens = torch.from_numpy(text.tokens[int(row["window"])][None])
    block = model.moe_blocks[int(row["layer"])]
    at, slot, i, j = (int(row[name]) for name in ("position", "slot", "expert", "stand_in"))

    def hook(_module: Any, routed: Any) -> Any:
        hidden, ids, weights = routed[0], routed[1].clone(), routed[2].clone()
        assert ids[at, slot] == i and j not in ids[at]
        if way == "drop":
            ids[at, slot] = -1
        else:
            ids[at, slot] = j
        if way == "own":
            p = block.gate(hidden)[0].softmax(-1)[at, ids[at]]
            weights[at] = p / p.sum()
        return hidden, ids, weights

    with torch.no_grad():
        before = model(tokens)[0][0].double().log_softmax(-1)
        handle = block.experts.register_forward_pre_hook(hook)
        after = model(tokens)[0][0].double().log_softmax(-1)
        handle.remove()
    return before[:-1], after[:-1]


def test_the_damage_is_that_of_a_whole_forward_pass(model: Any, text: TextWindows, rows: Substitutions) -> None:
    assert len(rows) == WINDOWS * LAYERS * 4
    for s in range(0, len(rows), 3):
        row = {name: float(column[s]) for name, column in rows.columns.items()}
        came = torch.from_numpy(text.tokens[int(row["window"])][1:])[:, None]
        for way in WAYS:
            log_p, log_q = changed(model, text, row, way)
            kl = (log_p.exp() * (log_p - log_q)).sum(-1)
            rise = (log_p - log_q).gather(1, came).sum()
            at = int(row["position"])
            assert kl[:at].abs().max() < 1e-9 if at else True
            assert row[f"{way} damage"] == pytest.approx(kl.sum().item(), rel=1e-3, abs=1e-8) and kl.sum() > 0
            assert row[f"{way} here"] == pytest.approx(kl[at].item(), rel=1e-3, abs=1e-8)
            assert row[f"{way} nats"] == pytest.approx(rise.item(), rel=1e-3, abs=1e-4)


def test_behind_the_last_layer_nothing_is_carried_on(rows: Substitutions) -> None:
    last = rows["layer"] == LAYERS - 1
    for way in WAYS:
        assert np.array_equal(rows[f"{way} damage"][last], rows[f"{way} here"][last])
        assert (rows[f"{way} damage"] >= rows[f"{way} here"]).all()
    early = (rows["layer"] == 0) & (rows["position"] < LENGTH - 2)
    assert (rows["keep damage"] > rows["keep here"])[early].all()


def test_what_the_router_says_of_a_place(rows: Substitutions, matrices: tuple[Any, Any]) -> None:
    assert np.allclose(rows["gap"], np.log(rows["p_i"] / rows["p_j"])) and (rows["gap"] > 0).all()
    assert ((rows["rank"] >= 1) & (rows["rank"] <= E - K)).all() and (rows["slot"] < K).all()
    assert (rows["position"] < LENGTH - 1).all() and ((rows["tae"] > 0) & (rows["tae"] <= 1 + 1e-9)).all()
    at = tuple(rows[name].astype(int) for name in ("layer", "expert", "stand_in"))
    assert np.array_equal(rows["q"], matrices[0][at]) and np.array_equal(rows["mean cosine"], matrices[1][at])
    assert np.array_equal(rows["file"], np.array([0, 0, 1, 2])[rows["window"].astype(int)])


def test_a_swap_by_hand() -> None:
    """Logits ln 4, ln 2, ln 1, ln 1 of four experts, top 2: p = 1/2, 1/4, 1/8, 1/8, weights 2/3 and 1/3. The second
    slot's stand-in is of rank 2 (the first behind): with its own weight 4/5 and 1/5."""
    block = MoeDecoder(ModelConfig(8, 4, 1, 1, 4, 2, 4, 8), seed=0).moe_blocks[0]
    x, logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[4.0, 2, 1, 0.999]]).log()
    places = one_at_a_time.Places(*(torch.tensor([v]) for v in (0, 1, 2)))
    with torch.no_grad():
        f = [block.experts(x, torch.tensor([[e]]), torch.ones(1, 1)) for e in range(4)]
        found = swap(block, x, logits, places)
    expected = {
        "keep": (f[2] - f[1]) / 3,
        "drop": -f[1] / 3,
        "own": (4 / 5 - 2 / 3) * f[0] - f[1] / 3 + f[2] / 5,
    }
    for way in WAYS:
        assert torch.allclose(found.moved[way], expected[way], rtol=1e-3, atol=1e-7)
    told = one_at_a_time.predictors(found, places, torch.ones(1, 4), *torch.zeros(2, 4, 4))
    entropy = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)) / np.log(2)
    assert told["weight"].item() == pytest.approx(1 / 3) and told["gap"].item() == pytest.approx(np.log(2))
    assert told["tae"].item() == pytest.approx(entropy) and told["margin"].item() == pytest.approx(1 / 3)
    assert told["rank"].item() == 1 and told["stand_in"].item() == 2
    length = (f[2] - f[1]).norm().item()
    assert told["error"].item() == pytest.approx(length / f[1].norm().item(), rel=1e-5)
    assert told["moved"].item() == pytest.approx(length / 3 / 2, rel=1e-5)  # |(1, 1, 1, 1)| = 2


def test_equal_experts_stand_in_for_nothing(text: TextWindows, matrices: tuple[Any, Any]) -> None:
    model = MoeDecoder(ModelConfig(40, 16, LAYERS, 2, E, K, 8, 16), seed=2).eval()
    with torch.no_grad():
        for block in model.moe_blocks:
            for weights in (block.experts.gate_up_proj, block.experts.down_proj):
                weights.copy_(weights[:1].expand_as(weights) * 3)
    found = experiment(model, text, *matrices, draws=1, seed=0)
    assert np.allclose(found["cosine"], 1) and np.allclose(found["error"], 0, atol=1e-5)
    assert found["keep damage"].max() < 1e-9 and found["own damage"].max() < 1e-9 < found["drop damage"].min()


def test_a_seed_gives_the_same_rows(
    model: Any, text: TextWindows, matrices: tuple[Any, Any], rows: Substitutions
) -> None:
    again, other = (experiment(model, text, *matrices, draws=4, seed=seed, batch=3) for seed in (5, 6))
    assert all(np.array_equal(again[name], column) for name, column in rows.columns.items())
    assert not np.array_equal(other["position"], rows["position"])


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.data(), st.booleans(), st.integers(0, 99))
def test_places_lie_where_they_may(n_experts: int, data: st.DataObject, near: bool, seed: int) -> None:
    top_k = data.draw(st.integers(1, n_experts - 1))
    places = draw_places(np.random.default_rng(seed), 50, 7, n_experts, top_k, near)
    assert places.position.min() >= 0 and places.position.max() <= 5  # something follows
    assert places.slot.min() >= 0 and places.slot.max() < top_k
    assert places.rank.min() >= top_k and places.rank.max() < min(n_experts, top_k + NEAR if near else n_experts)


# --- figures, page, command


@pytest.mark.usefixtures("few_draws")
def test_files_pool_to_what_all_text_gives(model: Any, text: TextWindows) -> None:
    source = DecoderRuns(model, {"model": "small"})
    each = [measure(source, list(text.tokens[text.file == file])) for file in range(3)]
    whole = measure(source, list(text.tokens))
    got = pooled(each, np.ones(3))
    for name, matrix in zip(("q", "cosine", "error"), got, strict=True):
        known = np.isfinite(matrix) & ~np.eye(E, dtype=bool)  # an expert's distance to itself is rounding
        assert known.any() and matrix[known] == pytest.approx(getattr(whole, name)[known], abs=1e-6)
    assert len(pairs(each, 0)) == LAYERS


def test_every_row_is_in_one_bin_and_the_parts_make_the_whole(rows: Substitutions) -> None:
    found = all_figures(rows, 0)
    for kind in (*found["bins"].values(), found["grid"]):
        assert sum(entry["n"] for entry in kind) == len(rows)
        for way in WAYS:
            total = sum(entry["n"] * entry["mean"][way]["value"] for entry in kind if entry["n"])
            assert total == pytest.approx(rows[f"{way} damage"].sum())
    ways = {way: found["ways"][way]["mean"]["value"] for way in WAYS}
    assert found["less"]["own - drop"]["value"] == pytest.approx(ways["own"] - ways["drop"])
    keep = found["ways"]["keep"]
    assert keep["per_square"]["value"] == pytest.approx(rows["keep damage"].sum() / (rows["weight"] ** 2).sum())
    assert len(keep["per_square_by_layer"]) == LAYERS


def told(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "p": 1e-6 if low * high > 0 else 0.2}


@pytest.mark.usefixtures("few_draws")
def test_a_router_of_one_expert_has_a_page_too(text: TextWindows) -> None:
    """Every weight is 1 and nothing is co-activated: what cannot be told is `-`, and a stand-in's own weight is 1."""
    model = MoeDecoder(ModelConfig(40, 16, 2, 2, 4, 1, 8, 16), seed=3).eval()
    found = experiment(model, text, *np.zeros((2, 2, 4, 4)), draws=2, seed=0)
    assert np.array_equal(found["keep damage"], found["own damage"]) and (found["weight"] == 1).all()
    each = [measure(DecoderRuns(model, {}), list(text.tokens[text.file == file])) for file in range(3)]
    about = {"windows": 4, "length": LENGTH, "files": ["a", "b", "c"], "effective_files": 2.7, "source": "drawn"}
    likeness = [{"layer": at, "p_cosine": None, "p_error": None, **row} for at, row in enumerate(pairs(each, 0))]
    result = {"model": "one", "text": about, "substitutions": len(found), "seed": 0, "pairs": likeness,
              **all_figures(found, 0)}  # fmt: skip
    json.dumps(result, allow_nan=False)
    page = substitution_report.report(result).markdown("command")
    assert page.count("yes in 0 of 2 layers, the other way round in 0, not decided in 2") == 2
    assert "| weight | router | - | - | - |" in page
    assert ET.fromstring(substitution_svg.figure(result)) is not None


def test_answers_follow_from_the_figures() -> None:
    def row(cosine: Any, error: Any) -> dict[str, Any]:
        return {"rho_cosine": cosine, "rho_error": error}

    up, down, open_ = told(0.5, 0.4, 0.6), told(-0.5, -0.6, -0.4), told(0.1, -0.1, 0.3)
    said = substitution_answers._co_activation([row(up, down), row(open_, down)])
    assert "(mean cosine): yes in 1 of 2 layers, the other way round in 0, not decided in 1; rank corr" in said
    assert (
        "+0.10 .. +0.50. It tells who errs least (mean error): yes in 0 of 2 layers, the other way round in 2" in said
    )
    names = ("q", "mean cosine", "cosine", "weight", "tae", "margin", "position", "rank")
    given = {"mean cosine": open_, "cosine": down}
    of = [{"predictor": n, "within": up, "given_weight": given.get(n, up)} for n in names]
    said = substitution_answers._likeness(of)
    assert "q(j|i): the other way round, +0.500" in said and "mean cosine: no sign of it, +0.100" in said
    assert "state: yes, -0.500 (-0.600 .. -0.400)" in said
    unknown = {"value": 2.0, "low": None, "high": None, "p": None}
    weak = {**up, "p": 0.02}  # enough alone, not of three: 3 x .02 > .05
    assert substitution_answers.signs([weak]) == [1] and substitution_answers.signs([weak, unknown, open_]) == [0] * 3
    assert substitution_answers.signs([down, unknown, up]) == [-1, 0, 1]
    assert substitution_answers.said(unknown) == "2.000 (- .. -)"
    tenths = [{"low": at, "high": at + 1, "mean": {"keep": told(at, 0, 2)}} for at in (0.0, 1.0)]
    for within, words in ((up, "slot weighs little"), (down, "weighs much"), (open_, "does not tell")):
        of[3]["within"] = within
        said = substitution_answers._tokens(tenths, of)
        assert f"{words}: mean" in said and "1.0000 (0.0000 .. 2.0000) in its highest tenth (1 .. 2)" in said
    cell = {"less": dict.fromkeys(substitution_answers.DIFFERENCES, up)}
    less = dict(zip(substitution_answers.DIFFERENCES, (down, up, open_), strict=True))
    means = {way: {"mean": up} for way in WAYS}
    said = substitution_answers._ways({"less": less, "grid": [cell, cell], "ways": means})
    assert "own costs less than keep, -0.5000" in said and "drop costs more than keep, +0.5000" in said
    assert "own is not told apart from drop, +0.1000 (-0.1000 .. +0.3000) nats (of 2 cells" in said
    assert "less in 0, more in 2)" in said


@pytest.mark.usefixtures("few_draws")
def test_the_command_keeps_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--windows", "4", "--length", "12", "--draws", "1", "--out", str(tmp_path)]
    assert substitutions.main(words) == 0
    printed = capsys.readouterr().out
    page, data, picture = ((tmp_path / f"substitutions_tiny-moe.{end}").read_text() for end in ("md", "json", "svg"))
    assert printed == page and page.splitlines()[4].startswith("- **Does co-activation, q(j|i), tell")
    result = json.loads(data)
    command = result.pop("command")
    assert command == " ".join(["python -m runtime.substitutions", *words])
    assert substitution_report.report(result).markdown(command) == page
    assert substitution_svg.figure(result) == picture
    assert result["substitutions"] == 4 * 6 and not any(map(is_judged, result["text"]["files"]))
    titles = [each.text or "" for each in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}title")]
    assert any(text.startswith("keep, ") for text in titles) and any(text.startswith("layer 0") for text in titles)


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for words, message in (
        (["--length", "2"], "--length 2: 3 .. 256 tokens are required"),
        (["--windows", "1"], "--windows 1: at least 2 is required"),
        (["--draws", "0"], "--draws 0: at least 1 is required"),
        (["--seed", "-1"], "--seed -1: at least 0 is required"),
        (["--out", str(tmp_path / "file")], "is a file; must be a folder"),
        (["--model", "nobody"], "--model nobody: must be tiny-moe, tiny-moe-8 or a folder that"),
    ):
        assert substitutions.main(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_windows_say_which_file_they_are_of() -> None:
    tiny = judged_model(TINY)
    text = text_windows(tiny.tokens, 12, 40, 3, judged=False, lead=tiny.lead)
    assert len(text.file) == 12 and len(np.unique(text.file)) > 2
    from runtime.closed_loop.text_windows import _heldout

    files = {f.path: f.data.decode() for f in _heldout()}
    for tokens, file in zip(text.tokens.tolist(), text.file, strict=True):
        assert tiny.tokens.decode([t for t in tokens if t != tiny.lead]) in files[text.files[file]]


@pytest.mark.parametrize("model", FOLDERS)
def test_a_kept_page_is_what_its_json_gives(model: str) -> None:
    results = Path(__file__).parents[1] / "analysis" / "results"
    page, data, picture = ((results / f"substitutions_{model}.{end}").read_text() for end in ("md", "json", "svg"))
    result = json.loads(data)
    command = result.pop("command")
    assert result["model"] == model and command.startswith(f"python -m runtime.substitutions --model {model} ")
    assert substitution_report.report(result).markdown(command) == page
    assert substitution_svg.figure(result) == picture
    assert not any(map(is_judged, result["text"]["files"]))
