"""`python -m traces capture`: what it writes, from a Hugging Face folder and our own model; what it refuses."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_models import build  # skips without torch and transformers
from traces.__main__ import main
from traces.capturing.batch import score_function
from traces.capturing.command import windows
from traces.format import npz

tokenizers = pytest.importorskip("tokenizers", reason="the train extra's tokenizers is not installed")
TEXT = "the quick brown fox jumps over the lazy dog " * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSeek-V3 of three layers with a tokenizer of its own, as `save_pretrained` leaves them."""
    from transformers import PreTrainedTokenizerFast

    where = tmp_path_factory.mktemp("models") / "tiny-v3"
    model = build("deepseek-v3")
    model.generation_config.eos_token_id = None
    model.save_pretrained(where)
    vocabulary = tokenizers.Tokenizer(tokenizers.models.BPE())
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=100, special_tokens=["<s>", "<pad>"], show_progress=False)
    vocabulary.train_from_iterator([TEXT], trainer)
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>").save_pretrained(where)
    (where / "text.txt").write_text(TEXT)
    return where


def captured(folder: Path, out: Path, *flags: str) -> Any:
    given = ["--model", str(folder), "--text", str(folder / "text.txt"), "--device", "cpu", "--out", str(out)]
    assert (
        main(["capture", *given, "--prompt-tokens", "10", "--generate", "6", "--requests", "5", "--batch", "2", *flags])
        == 0
    )
    return npz.read(out)


def test_a_hugging_face_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = captured(folder, tmp_path / "a.npz", "--licence", "CC0", "--lookahead", "1")
    assert "5 requests, 75 tokens of tiny-v3" in capsys.readouterr().out
    assert trace.model == "tiny-v3" and trace.meta["licence"] == "CC0" and trace.meta["data"] == "text.txt"
    assert trace.meta["moe_layers"] == [1, 2] and trace.lookahead_distances == (1,) and trace.real
    assert trace.meta["capture"]["transformers"] and trace.meta["capture"]["temperature"] == 1.0
    assert [int(trace.prefill[a:b].sum()) for a, b in zip(*trace.requests(), strict=True)] == [10] * 5
    captured(folder, tmp_path / "b.npz", "--licence", "CC0", "--lookahead", "1")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_prompts_from_a_trace_and_greedy(folder: Path, tmp_path: Path) -> None:
    first = captured(folder, tmp_path / "a.npz", "--temperature", "0", "--name", "mine", "--no-logits")
    assert first.model == "mine" and first.logits is None
    flags = ["--model", str(folder), "--prompts-from", str(tmp_path / "a.npz"), "--generate", "6", "--temperature", "0"]
    assert main(["capture", *flags, "--batch", "3", "--device", "cpu", "--out", str(tmp_path / "b.npz")]) == 0
    again = npz.read(tmp_path / "b.npz")
    np.testing.assert_array_equal(again.token_ids, first.token_ids)
    np.testing.assert_array_equal(again.experts, first.experts)


def test_prompts_alone(folder: Path, tmp_path: Path) -> None:
    trace = captured(folder, tmp_path / "a.npz", "--generate", "0")
    assert trace.n_tokens == 50 and trace.prefill.all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "tiny-moe", "--prompt-tokens", "200", "--generate", "100"], "the model's context is 256"),
        (["--model", "tiny-moe", "--requests", "100000"], "prompts are there; --requests "),
        (["--model", "tiny-moe", "--prompts-from", "mixtral"], "mixtral.npz: has no token_ids"),
        (["--model", "tiny-moe", "--text", "a", "--prompts-from", "b"], "--text and --prompts-from both give prompts"),
        (["--model", "tiny-moe", "--text", "no-such-file"], "no-such-file"),
        (["--model", "tiny-moe", "--device", "warp"], "--device is 'warp'"),
        (["--model", "tiny-moe", "--batch", "0"], "at least 1"),
        (["--model", "tiny-moe", "--generate", "-3"], "'-3' is no whole number"),
        (["--model", "tiny-moe", "--temperature", "nan"], "'nan' is no temperature"),
        (["--model", "tiny-moe", "--promt-tokens", "3"], "did you mean --prompt-tokens?"),
        ([], "--model"),
    ],
    ids=str,
)
def test_refusals(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capture", *flags, "--out", str(tmp_path / "t.npz")]) == 2
    line = capsys.readouterr().err
    assert message in line and line.startswith("error: ") and line.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["capture", "--model", str(tmp_path / "empty"), "--out", str(tmp_path / "t.npz")]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: --model {tmp_path / 'empty'}: ") and line.count("\n") == 1


def test_a_missing_folder_is_refused_before_the_model_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capture", "--model", "tiny-moe", "--out", str(tmp_path / "no" / "t.npz")]) == 2
    assert "its folder is not there" in capsys.readouterr().err


def test_windows_do_not_meet_their_continuations() -> None:
    streams = [np.arange(100), np.arange(1000, 1037)]
    found = windows(streams, 8, 12, seed=3)
    assert sorted(int(w[0]) for w in found) == [0, 20, 40, 60, 80, 1000, 1020]
    assert all(len(w) == 8 and (np.diff(w) == 1).all() for w in found)
    assert [w.tolist() for w in found] != [w.tolist() for w in windows(streams, 8, 12, seed=4)]


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
@pytest.mark.parametrize("norm", [True, False])
def test_score_functions_are_told_apart(name: str, norm: bool) -> None:
    logits = np.random.default_rng(0).normal(size=(40, 12))
    scores = 1 / (1 + np.exp(-logits)) if name == "sigmoid" else np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    experts = np.argsort(-logits, axis=1)[:, :3]
    weights = np.take_along_axis(scores, experts, axis=1)
    weights = 2.5 * (weights / weights.sum(1, keepdims=True) if norm else weights)
    assert score_function(logits.astype(np.float16), experts, weights.astype(np.float16)) == (name, norm)
    assert score_function(logits, experts, np.ones_like(weights) * [1, 0.5, 0.1]) == ("other", None)


@pytest.mark.parametrize("room", ["traces.__main__", "runtime.live"])
def test_a_model_that_is_nowhere_is_asked_for_once(
    room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading would try for half a minute, with a line for each try."""
    import huggingface_hub
    import transformers

    asked: list[str] = []

    def offline(self: object, name: str, **how: object) -> None:
        asked.append(name)
        raise ConnectionError("no route to the hub")

    def never(name: str, **how: object) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    for auto in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM):
        monkeypatch.setattr(auto, "from_pretrained", never)
    words = ["capture", "--out", str(tmp_path / "t.npz")] if room == "traces.__main__" else ["--prompt", "x"]
    assert importlib.import_module(room).main([*words, "--model", "team/no-such-moe"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "team/no-such-moe: is no folder" in line and "no route to the hub" in line
    assert asked == ["team/no-such-moe"]
