"""The study and the harness's adapter: what they print follows from the runs."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: runtime)")
pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra: train)")
pytest.importorskip("safetensors", reason="safetensors is not installed (extra: runtime)")

from runtime import lm_eval_adapter, study  # noqa: E402
from runtime.closed_loop import arms  # noqa: E402
from runtime.closed_loop.judged_model import TINY, JudgedModel, judged_model  # noqa: E402
from runtime.closed_loop.loop import ClosedLoop  # noqa: E402
from runtime.closed_loop.priced_as import priced_as  # noqa: E402
from runtime.lm_eval_adapter import Scorer  # noqa: E402
from sim.spec import RunSpec  # noqa: E402
from traces.errors import UserError  # noqa: E402

ROOT = Path(__file__).parent.parent


FEW = ("fetch", "buddy, reading B", "matched-mean, reading B", "similarity", "random, no gate", "cache-prior 0.3")


def test_a_look_at_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run by two processes; one that goes on from half of its rows; both give the same files."""
    few = [arm for arm in arms.arms(4, 32, 2) if arm.name in FEW]
    monkeypatch.setattr(study, "arms", lambda *_: few)
    first, again = tmp_path / "first", tmp_path / "again"
    flags = ["--quick", "--calibration-tokens", "512", "--seeds", "2", "--workers", "2", "--parts", str(tmp_path / "p")]
    assert study.main([*flags, "--out", str(first)]) == 0
    printed = capsys.readouterr().out
    assert (
        printed == (first / "closed_loop.md").read_text() and "Does the paper's claim hold" in printed.splitlines()[4]
    )
    for part in sorted((tmp_path / "p").iterdir())[::2]:
        part.unlink()
    assert study.main([*flags, "--out", str(again)]) == 0
    result, other = (json.loads((out / "closed_loop_tiny-moe.json").read_text()) for out in (first, again))
    for each in (result, other):
        assert each.pop("seconds") > 0 and each.pop("command").startswith("python -m runtime.study --quick")
        assert all(row.pop("seconds") > 0 for row in each["rows"])
    assert result == other
    rows = {(row["arm"], row["seed"]): row for row in result["rows"]}
    assert {arm for arm, _ in rows} == set(FEW) and len(rows) == len(FEW) + 1 and result["text"]["windows"] == 4
    fetch, mean, drawn = rows["fetch", None], rows["matched-mean, reading B", None], rows["random, no gate", 1]
    assert sum(fetch["sums"]["kl"]) == 0 and fetch["sums"]["nats"] == fetch["sums"]["base_nats"]
    assert fetch["open_loop"] == {**fetch["speed"], "counts": fetch["counts"]} and fetch["elsewhere"]
    assert mean["shares"]["dropped_slots"] > 0 == mean["shares"]["substituted_slots"]
    assert sum(mean["sums"]["nats"]) < sum(rows["buddy, reading B", None]["sums"]["nats"])
    assert drawn["speed"]["h2d_bytes_per_token"] == 0 and sum(drawn["sums"]["kl"]) > 1 and "elsewhere" not in drawn
    assert drawn["sums"] != rows["random, no gate", 0]["sums"]
    assert rows["cache-prior 0.3", None]["shares"]["reranked_slots"] > 0
    assert rows["similarity", None]["params"]["matrix"] == "of the model"
    assert set(fetch["tasks"]) == {"closing bracket", "indentation", "repeated identifier", "copying"}
    assert fetch["tasks"]["copying"]["right"] == fetch["tasks"]["copying"]["base_right"]


def test_every_arm_can_be_asked_for() -> None:
    """Names are unique at a capacity but for seeds, controls have their arm, and the core takes every setting."""
    for shape in ((4, 32), (2, 8)):
        every = arms.arms(*shape)
        assert len({(arm.name, arm.seed) for arm in every}) == len(every) and every[0].name == "fetch"
        names = {arm.name for arm in every}
        controls = [arm for arm in every if arm.of is not None]
        assert {arm.of for arm in controls} <= names and len(controls) == 4 * (3 + arms.SEEDS)
        files = {arms.MATRIX: "m.npz", arms.LISTS: "l.npz"}
        specs = {json.dumps(arm.spec(files, trace="x").saved(()), sort_keys=True) for arm in every}
        assert len(specs) == len(every), "two arms ask for the same"


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["--sequences", "1"], "--sequences is 1; it must be at least 2"),
        (["--quick", "--length", "3"], "--length is 3; it must be at least 16"),
        (["--quick", "--length", "300"], "--length is 300; the model has 256 positions"),
        (["--calibration-tokens", "0"], "--calibration-tokens is 0; it must be at least 1"),
        (["--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["--workers", "-1"], "--workers is -1; it must be at least 1"),
        (["--out", str(tmp_path / "file")], "is a file; must be a folder"),
        (["--charge", "nobody", "--quick"], "not in the catalog"),
        (["--model", str(tmp_path)], "must be tiny-moe, tiny-moe-8 or a folder that runtime.train wrote"),
    ):
        assert study.main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and message in err and err.count("\n") == 1


# --- the harness


@pytest.fixture(scope="module")
def tiny() -> JudgedModel:
    return judged_model(TINY)


def test_scores_are_the_models_own(tiny: JudgedModel) -> None:
    scorer = Scorer(tiny, None)
    context, continuation = scorer.encoded("def f(x):\n    return ", "x + 1")
    assert tiny.tokens.decode(context[1:]) == "def f(x):\n    return" and tiny.tokens.decode(continuation) == " x + 1"
    whole = torch.tensor(context + continuation)
    logits = tiny.forward(whole[:-1], tiny.fresh())[len(context) - 1 :].double().log_softmax(-1)
    got, greedy = scorer.score(context, continuation)
    assert got == pytest.approx(logits[torch.arange(len(continuation)), continuation].sum().item(), abs=1e-3)
    assert greedy == (logits.argmax(-1).tolist() == continuation)
    out = scorer.generate(context, ["\n"], 8)
    assert "\n" not in out and scorer.score(*scorer.encoded("def f(x):\n    return", out))[1]
    with pytest.raises(UserError, match="positions"):
        scorer.score(context, [5] * 300)


def test_in_the_loop_scores_change_with_the_policy_alone(tiny: JudgedModel) -> None:
    pair = Scorer(tiny, None).encoded("import os\n\ndef main(", "argv):\n    return 0")
    want = Scorer(tiny, None).score(*pair)
    got = {}
    for miss in ("fetch", "next-ranked"):
        loop = ClosedLoop(
            RunSpec.of({"trace": TINY, "cache": 4, "miss": miss}), tiny.shape, None, priced_as(tiny.model, tiny.shape)
        )
        with tiny.looped(loop) as driver:
            scorer = Scorer(tiny, driver)
            got[miss] = [scorer.score(*pair) for _ in range(2)]
        record = loop.record()
        assert record.counters["substituted"] > 0 or miss == "fetch"
        assert (record.steps["prefill"] == 1).sum() == 2 and len(record.requests["request"]) == 2
    assert got["fetch"] == [want, want] and got["next-ranked"][0][0] != want[0]


def test_the_harness_is_asked_for_by_name(tiny: JudgedModel, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        assert lm_eval_adapter.main(["--tasks", "arc_easy"]) == 2
        assert "pip install 'moe-offload-sim[lm-eval]'" in capsys.readouterr().err
        pytest.skip("lm-evaluation-harness is not installed (extra: lm-eval)")
    model = lm_eval_adapter.language_model(Scorer(tiny, None))
    ask = [SimpleNamespace(args=("def f(x):", " return x"))]
    assert model.loglikelihood(ask) == [Scorer(tiny, None).score(*Scorer(tiny, None).encoded("def f(x):", " return x"))]
    (rolled,) = model.loglikelihood_rolling([SimpleNamespace(args=("import os\nimport sys\n",))])
    assert rolled == pytest.approx(
        Scorer(tiny, None).score(*Scorer(tiny, None).encoded("", "import os\nimport sys\n"))[0]
    )
    (text,) = model.generate_until([SimpleNamespace(args=("import ", {"until": ["\n"], "max_gen_toks": 6}))])
    assert "\n" not in text
