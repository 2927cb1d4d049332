"""The study and the harness's adapter: what they print follows from the runs."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: runtime)")
pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra: train)")
pytest.importorskip("safetensors", reason="safetensors is not installed (extra: runtime)")

from runtime import lm_eval_adapter, study  # noqa: E402
from runtime.closed_loop.judged_model import TINY, JudgedModel, judged_model  # noqa: E402
from runtime.closed_loop.loop import ClosedLoop  # noqa: E402
from runtime.closed_loop.priced_as import priced_as  # noqa: E402
from runtime.lm_eval_adapter import Scorer  # noqa: E402
from sim.spec import RunSpec  # noqa: E402
from traces.errors import UserError  # noqa: E402

ROOT = Path(__file__).parent.parent


FEW = ("fetch", "buddy, reading B, rho 3", "similarity, gates of B", "next-ranked, no gate", "cache-prior 0.3")


def test_a_look_at_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "VARIANTS", [variant for variant in study.VARIANTS if variant.name in FEW])
    assert study.main(["--quick", "--sequences", "9", "--calibration-tokens", "512", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "closed_loop.md").read_text()
    lines = printed.splitlines()
    assert lines[2] == f"    python -m runtime.study --quick --sequences 9 --calibration-tokens 512 --out {tmp_path}"
    assert "claim of a negligible loss" in lines[4]
    result = json.loads((tmp_path / "closed_loop.json").read_text())
    rows = {row["arm"]: row for row in result["rows"]}
    assert set(rows) == set(FEW) and result["text"]["sequences"] == 2
    fetch, ranked = rows["fetch"], rows["next-ranked, no gate"]
    assert fetch["quality"]["kl_nats"]["value"] == 0
    assert fetch["open_loop"]["h2d_bytes"] == fetch["speed"]["h2d_bytes"] > 0
    assert fetch["open_loop"]["time_ns_per_token"] == fetch["speed"]["time_ns_per_token"]
    assert ranked["speed"]["h2d_bytes"] == 0 and ranked["quality"]["kl_nats"]["value"] > 0.01
    assert rows["cache-prior 0.3"]["shares"]["reranked_slots"] > 0
    assert rows["similarity, gates of B"]["params"]["matrix"] == "of the model"
    table = (tmp_path / "closed_loop.csv").read_text().splitlines()
    assert table[0].startswith("# python -m runtime.study") and len(table) == 2 + len(FEW)
    picture = ET.parse(tmp_path / "closed_loop.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    told = [title.text for title in picture.iter(f"{space}title")]
    assert len(told) == len(FEW) and any(text.startswith("fetch: +0.00 %") for text in told if text)


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["--sequences", "1"], "at least 2 of 3 .. 256 are required"),
        (["--out", str(tmp_path / "file")], "is a file; must be a folder"),
        (["--charge", "nobody", "--quick"], "not in the catalog"),
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
