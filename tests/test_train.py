"""The trained decoder: its text, its parts, and that training is seeded, resumable and learns."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime's torch is not installed")
pytest.importorskip("tokenizers", reason="the runtime's tokenizers is not installed")
pytest.importorskip("safetensors", reason="the runtime's safetensors is not installed")

from hypothesis import given, settings  # noqa: E402 - after the skips
from hypothesis import strategies as st  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from runtime import train  # noqa: E402
from runtime.small_model import heldout, model, optimise, text  # noqa: E402

SMALL = model.ModelConfig(
    vocab_size=300,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_experts=16,
    num_experts_per_tok=4,
    moe_intermediate_size=16,
    max_position_embeddings=32,
)
OPTIONS = optimise.TrainOptions(steps=150, batch=4, warmup=10, corpus_bytes=60_000)
SMALL_FLAGS = [
    flag
    for name, value in {**train.asdict(SMALL), **train.asdict(OPTIONS)}.items()
    for flag in (f"--{name.replace('_', '-')}", str(value))
]
CPU = torch.device("cpu")


def run_in(folder: Path, options: optimise.TrainOptions = OPTIONS) -> train.Training:
    return train.start(SMALL, options, folder, CPU)


def weights_of(run: train.Training) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> train.Training:
    """One uninterrupted run of 150 steps, saved."""
    run = run_in(tmp_path_factory.mktemp("trained") / "run")
    train.advance(run)
    return run


# --- the text


def test_the_split_is_by_path_and_disjoint() -> None:
    corpus = text.read_corpus()
    train_paths, heldout_paths = ({f.path for f in part} for part in (corpus.train, corpus.heldout))
    assert not train_paths & heldout_paths
    assert all(text.is_heldout(p) for p in heldout_paths) and not any(map(text.is_heldout, train_paths))
    assert not {f.sha256 for f in corpus.train} & {f.sha256 for f in corpus.heldout}
    assert 0.01 < len(heldout_paths) / len(train_paths) < 0.15
    assert not any("site-packages" in p or "/test/" in p for p in train_paths)


def test_no_file_is_in_both_parts_of_a_limited_corpus_either() -> None:
    corpus = text.read_corpus(limit_bytes=60_000)
    assert 0 < sum(len(f.data) for f in corpus.train) <= 60_000
    assert all(f.heldout for f in corpus.heldout) and not any(f.heldout for f in corpus.train)


def test_an_empty_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(text.UserError, match="0 training and 0 held-out"):
        text.read_corpus(tmp_path)


def test_the_vocabulary_is_lossless_and_repeatable() -> None:
    corpus = text.read_corpus(limit_bytes=60_000)
    tokenizer = text.train_tokenizer(corpus.train, 300)
    assert tokenizer.to_str() == text.train_tokenizer(corpus.train, 300).to_str()
    for file in corpus.heldout:
        ids = text.encode(tokenizer, [file])
        assert ids[0] == text.FILE_ID and tokenizer.decode(ids[1:].tolist()).encode() == file.data


def test_a_source_that_spells_the_file_token_does_not_make_one() -> None:
    tokenizer = text.train_tokenizer(text.read_corpus(limit_bytes=60_000).train, 300)
    ids = text.encode(tokenizer, [text.SourceFile("a.py", f"x = '{text.FILE_TOKEN}'".encode())])
    assert (ids == text.FILE_ID).sum() == 1


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=3),
    st.lists(st.integers(0, 3), min_size=1, max_size=8),
)
def test_order2_equals_the_formula_spelt_out(train_part: list[list[int]], heldout: list[int]) -> None:
    grams = [[0, 0, *s][i : i + 3] for s in train_part for i in range(len(s))]
    counts = Counter(tuple(g[k:]) for g in grams for k in range(3))

    def p(context: tuple[int, ...], symbol: int) -> float:
        shorter = p(context[1:], symbol) if context else 0.25
        seen = [counts[(*context, s)] for s in range(4)]
        types = sum(n > 0 for n in seen)
        return (seen[symbol] + types * shorter) / (sum(seen) + types) if types else shorter

    padded = [0, 0, *heldout]
    bits = -sum(math.log2(p((a, b), c)) for a, b, c in zip(padded, padded[1:], heldout, strict=False))
    arrays = [np.array(s, dtype=np.int64) for s in train_part]
    assert text.order2_bits(arrays, [np.array(heldout)], 4, pad=0) == pytest.approx(bits)


# --- the model


def test_shapes_and_slices() -> None:
    decoder = model.MoeDecoder(SMALL)
    logits, balance = decoder(torch.zeros(3, 20, dtype=torch.int64))
    assert logits.shape == (3, 20, 300) and balance.shape == ()
    experts = decoder.moe_blocks[0].experts
    assert experts.gate_up_proj.shape == (16, 32, 32) and experts.down_proj.shape == (16, 32, 16)
    with pytest.raises(model.UserError, match="33 positions"):
        decoder(torch.zeros(1, 33, dtype=torch.int64))


def test_a_token_sees_nothing_after_it() -> None:
    decoder = model.MoeDecoder(SMALL).eval()
    tokens = torch.arange(32).unsqueeze(0)
    changed = tokens.clone()
    changed[0, 20:] = 7
    with torch.no_grad():
        before, after = decoder(tokens)[0], decoder(changed)[0]
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])


@settings(max_examples=25)
@given(st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_experts_equal_the_sum_spelt_out_and_skip_dropped_slots(n: int, seed: int) -> None:
    decoder = model.MoeDecoder(SMALL, seed)
    experts = decoder.moe_blocks[0].experts
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 32, generator=generator)
    ids = torch.randint(-1, 16, (n, 4), generator=generator)
    weights = torch.rand(n, 4, generator=generator)
    expected = torch.zeros(n, 32)
    for row, slot in itertools.product(range(n), range(4)):
        if (e := int(ids[row, slot])) >= 0:
            gate, up = (experts.gate_up_proj[e] @ hidden[row]).chunk(2)
            expected[row] += weights[row, slot] * (experts.down_proj[e] @ (F.silu(gate) * up))
    torch.testing.assert_close(experts(hidden, ids, weights), expected)


def test_router_weights_are_the_renormalised_best_probabilities() -> None:
    gate = model.MoeDecoder(SMALL).moe_blocks[0].gate
    logits, weights, ids = gate(torch.randn(50, 32, generator=torch.Generator().manual_seed(1)))
    chosen = logits.gather(1, ids)
    torch.testing.assert_close(weights, chosen.softmax(-1))
    assert (chosen.diff(dim=1) <= 0).all()
    assert (chosen[:, -1:] >= logits.scatter(1, ids, -math.inf)).all()


def test_balance_loss_is_one_when_even_and_all_experts_when_one_takes_it_all() -> None:
    even = torch.arange(16).repeat(2).unsqueeze(1)
    assert model.load_balancing_loss(torch.zeros(32, 16), even).item() == pytest.approx(1.0)
    one_sided = torch.zeros(32, 16)
    one_sided[:, 3] = 50.0
    assert model.load_balancing_loss(one_sided, torch.full((32, 1), 3)).item() == pytest.approx(16.0)


def test_the_decoder_equals_hugging_faces_qwen3_moe() -> None:
    """The same tensors under the same names give the same logits in an independent implementation."""
    transformers = pytest.importorskip("transformers", reason="Hugging Face transformers is not installed")
    decoder = model.MoeDecoder(SMALL).eval()
    config = transformers.Qwen3MoeConfig(
        **train.asdict(SMALL),
        num_key_value_heads=SMALL.num_attention_heads,
        head_dim=SMALL.head_dim,
        norm_topk_prob=True,
        tie_word_embeddings=True,
    )
    other = transformers.Qwen3MoeForCausalLM(config).eval()
    other.model.load_state_dict(decoder.state_dict())
    tokens = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(decoder(tokens)[0], other(tokens).logits, atol=1e-5, rtol=1e-4)


def test_a_pre_hook_sees_the_routing_and_can_change_it() -> None:
    decoder = model.MoeDecoder(SMALL).eval()
    tokens = torch.arange(10).unsqueeze(0)
    seen = []

    def drop_all(_module: object, routed: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, ids, weights = routed
        seen.append((hidden.shape, ids.shape, weights.shape))
        return hidden, torch.full_like(ids, -1), weights

    with torch.no_grad():
        usual = decoder(tokens)[0]
        for block in decoder.moe_blocks:
            block.experts.register_forward_pre_hook(drop_all)
        dropped = decoder(tokens)[0]
    assert seen == [((10, 32), (10, 4), (10, 4))] * 2
    assert not torch.allclose(usual, dropped)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts": 0}, "num_experts is 0"),
        ({"num_experts_per_tok": 17}, "at most num_experts = 16"),
        ({"hidden_size": 30}, "multiple of 2 x num_attention_heads = 4"),
        ({"hidden_size": 32.0}, "hidden_size is 32.0"),
        ({"rope_theta": math.nan}, "rope_theta is nan"),
    ],
)
def test_a_model_that_cannot_be_is_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(model.UserError, match=words):
        train.replace(SMALL, **changes)


# --- training


def test_an_epoch_visits_every_window_once() -> None:
    stream = np.arange(32 * 11 + 1, dtype=np.int64)
    options = train.replace(OPTIONS, batch=2)
    rows = torch.cat([optimise.batch_at(stream, step, options, 32) for step in range(5)])
    inputs = rows[:, :-1].flatten().sort().values
    assert len(rows) == 10 and torch.equal(inputs, inputs[0] + torch.arange(320))
    assert torch.equal(rows[:, 1:], rows[:, :-1] + 1)
    assert not torch.equal(rows, torch.cat([optimise.batch_at(stream, s, options, 32) for s in range(5, 10)]))


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    options = train.replace(OPTIONS, steps=100, warmup=10, decay_share=0.5, learning_rate=1.0)
    rates = [optimise.learning_rate_at(step, options) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[10:51] == [1.0] * 41 and rates[100] == 0.0
    assert all(a > b for a, b in itertools.pairwise(rates[50:]))


def test_a_seed_gives_one_result_and_another_seed_another(tmp_path: Path) -> None:
    options = train.replace(OPTIONS, steps=5)
    runs = [run_in(tmp_path, o) for o in (options, options, train.replace(options, seed=1))]
    for run in runs:
        train.advance(run)
    first, again, other = map(weights_of, runs)
    assert same(first, again) and not same(first, other)


def test_resumed_equals_uninterrupted(trained: train.Training, tmp_path: Path) -> None:
    paused = run_in(tmp_path)
    train.advance(paused, minutes=0)
    assert paused.progress.step == train.CURVE_EVERY and not paused.finished
    resumed = run_in(tmp_path)
    train.resume(resumed)
    train.advance(resumed)
    assert same(weights_of(resumed), weights_of(trained))
    assert resumed.progress.curve == trained.progress.curve
    assert resumed.progress.heldout_curve == trained.progress.heldout_curve


def test_a_finished_run_is_written_out_again(trained: train.Training) -> None:
    names = ("config.json", "model.safetensors", "record.json", "tokenizer.json")
    before = {name: (trained.out / name).read_bytes() for name in names}
    for name in names:
        (trained.out / name).unlink()
    again = run_in(trained.out)
    train.resume(again)
    train.advance(again)
    assert {name: (trained.out / name).read_bytes() for name in names} == before


def test_another_runs_state_is_refused(trained: train.Training) -> None:
    with pytest.raises(train.UserError, match="it must be of this run"):
        train.resume(run_in(trained.out, train.replace(OPTIONS, seed=1)))


def test_the_smoke_training_learns_and_uses_its_experts(trained: train.Training) -> None:
    fresh = model.MoeDecoder(trained.config)
    untrained, _ = heldout.evaluate(fresh, trained.data.heldout, trained.data.heldout_bytes)
    (_, first), *_, (_, last) = trained.progress.heldout_curve
    assert last < first < untrained and last < 0.75 * untrained
    load = trained.progress.expert_load
    assert sum(map(sum, load)) == pytest.approx(2 * 16, abs=0.01) and min(map(min, load)) > 0


def test_the_record_says_what_was_done(trained: train.Training) -> None:
    record = json.loads((trained.out / "record.json").read_text())
    assert record["finished"] and record["steps_done"] == 150 and record["tokens_seen"] == 150 * 4 * 32
    assert record["heldout"]["bits_per_byte"] == trained.progress.heldout_curve[-1][1]
    assert record["heldout"]["order2"]["order2_bytes"] == text.order2_bits_per_byte(trained.data.corpus)
    assert record["data"]["licence"] == text.LICENCE and set(record["data"]["heldout"].values())
    given = train.arguments().parse_args(record["command"].split()[3:])
    assert {n: getattr(given, n) for n in record["options"]} == record["options"]
    assert {n: getattr(given, n) for n in record["config"]} == record["config"]


def test_the_checkpoint_is_half_precision_and_loads(trained: train.Training) -> None:
    tensors = model.read_tensors(trained.out / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    loaded = model.load_checkpoint(trained.out)
    bits, _ = heldout.evaluate(loaded, trained.data.heldout, trained.data.heldout_bytes)
    assert bits == pytest.approx(trained.progress.heldout_curve[-1][1], abs=0.01)


def test_evaluation_charges_every_token_but_file_tokens_once() -> None:
    class Uniform(model.MoeDecoder):
        def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(*tokens.shape, 300), torch.zeros(())

    stream = np.ones(1000, dtype=np.int64)
    stream[[0, 500]] = text.FILE_ID
    bits, _ = heldout.evaluate(Uniform(SMALL), stream, n_bytes=998)
    assert bits == pytest.approx(math.log2(300))


def _damage(folder: Path, name: str, change: str) -> None:
    path = folder / name
    if change == "gone":
        path.unlink()
    elif change == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.write_text(path.read_text().replace(*change.split(">")))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("config.json", "gone", "config.json"),
        ("config.json", '"num_experts": 16>"num_experts": 8', r"\(16, 32, 16\); it must be \(8, 32, 16\)"),
        ("config.json", '"num_hidden_layers": 2>"num_hidden_layers": 1', "it must be None"),
        ("config.json", '"num_hidden_layers": 2>"num_hidden_layers": 1000000000', "1000000000 layers"),
        ("config.json", '"vocab_size": 300>"vocab_size": 1000000000000', "must be .1000000000000, 32."),
        ("config.json", '"hidden_size">"hidden"', "KeyError.*hidden_size"),
        ("model.safetensors", "gone", "model.safetensors"),
        ("model.safetensors", "truncated", "it must be a safetensors file"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, name: str, change: str, words: str) -> None:
    model.save_checkpoint(tmp_path, model.MoeDecoder(SMALL))
    _damage(tmp_path, name, change)
    with pytest.raises(model.UserError, match=words):
        model.load_checkpoint(tmp_path)


# --- the command line


def test_the_command_pauses_refuses_to_start_over_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*SMALL_FLAGS, "--out", str(tmp_path), "--device", "cpu"]
    assert train.main([*flags, "--minutes", "0"]) == 0
    assert not json.loads((tmp_path / "record.json").read_text())["finished"]
    assert train.main(flags) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: --out {tmp_path} holds a run")
    assert train.main([*flags, "--resume"]) == 0
    assert json.loads((tmp_path / "record.json").read_text())["finished"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "record.json",
        "resume.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "0"], "error: steps is 0; it must be positive"),
        (["--num-experts-per-tok", "99"], "error: model config: num_experts_per_tok is 99"),
        (["--device", "abacus"], "error: --device is 'abacus'"),
        (["--vocab-size", "100"], "error: vocab_size is 100; it must be at least 257"),
        (["--resume"], "resume.safetensors"),
        (["--corpus-bytes", "1", "--max-position-embeddings", "100000"], "it must have at least 200001"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_status_2(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*SMALL_FLAGS, "--out", str(tmp_path / "new"), *flags]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and words in last
    assert not (tmp_path / "new").exists()
