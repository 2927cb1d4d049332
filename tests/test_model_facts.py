"""What a capture says of its model, held against the model's own parameters and the catalog; runs that take it from
there; and what capture says of routers that give no numbers, of offloaded ones, and of too little text."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import miss_curve
from sim import catalog, model, placement, recommend, run, sweep
from sim.catalog.model_spec import ModelSpec
from tests.tiny_models import FAMILIES, GREEDY, build, prompts, torch, transformers  # skips without them
from traces.__main__ import main as traces_command
from traces.capturing import command
from traces.capturing.facts import model_facts
from traces.capturing.recorder import Recorder
from traces.capturing.routers import find_moe_layers, is_experts
from traces.errors import UserError
from traces.format import npz
from traces.format.trace import RoutingTrace

NORM = {"phimoe": 2 * 64}  # the final norm, which a spec does not count: 64 scales; of a LayerNorm 64 biases, too


def facts_of(built: Any, top_k: int) -> dict[str, Any]:
    return model_facts(built, find_moe_layers(built), built.config.num_hidden_layers, top_k)


def counted(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_come_to_the_models_own_parameters(family: str) -> None:
    built = build(family)
    spec = ModelSpec(**facts_of(built, FAMILIES[family][1]["num_experts_per_tok"]))
    assert spec.total_params == counted(built) - NORM.get(family, 64)
    for i, layer in enumerate(built.model.layers):
        experts = sum(counted(part) for part in layer.modules() if is_experts(part))
        assert spec.layer_params(i in spec.moe_layers, attention=spec.attention_kind(i)) == counted(layer) - experts


def test_what_attention_keeps_by_hand() -> None:
    """Mixtral: 64 / 4 = 16 values a head, 2 KV heads: 2 x 2 x 16 values in bf16. MLA: 16 latent and 8 rotary values."""
    mixtral, mla = (ModelSpec(**facts_of(build(name), k)) for name, k in (("mixtral", 2), ("deepseek-v3", 4)))
    assert (mixtral.kv_bytes_per_token_per_layer, mixtral.n_heads, mixtral.qk_dim, mixtral.v_dim) == (128, 4, 16, 16)
    assert (mla.kv_bytes_per_token_per_layer, mla.attention, mla.qk_dim, mla.v_dim) == (48, "mla", 24, 16)
    assert (mla.moe_layers, mla.shared_intermediate, mla.dense_intermediate) == ((1, 2), 32, built_width("deepseek-v3"))


def built_width(family: str) -> int:
    return int(build(family).config.intermediate_size)


# Real proportions in 8 layers, without weights: family, what differs from transformers' default, the catalog's entry,
# and parameters of attention that the entry leaves out.
REAL: dict[str, tuple[dict[str, Any], str, int]] = {
    "Mixtral": ({}, "mixtral-8x7b", 0),
    "Qwen2Moe": ({}, "qwen1.5-moe-a2.7b", 0),
    "Qwen3Moe": (
        {"num_experts": 128, "head_dim": 128, "moe_intermediate_size": 768, "num_key_value_heads": 4},
        "qwen3-30b-a3b",
        2 * 128,  # the norms of q and k
    ),
    "Olmoe": ({"intermediate_size": 1024, "num_key_value_heads": 16}, "olmoe-1b-7b", 2 * 2048),
    "DeepseekV3": ({}, "deepseek-v3", 1536 + 512),  # the norms of both latents
    "GptOss": ({}, "gpt-oss-120b", 64 + 128),  # sinks of 64 heads; the router's bias
    "Qwen3Next": ({}, "qwen3-next-80b-a3b", 0),
    "Llama4": ({}, "llama-4-scout-17b-16e", 0),
    "MiniMaxM2": ({}, "minimax-m2", 0),
    "MiMoV2Flash": ({}, "mimo-v2-flash", 0),
}
OF_THE_WHOLE = ("n_layers", "moe_first", "moe_step", "attention_pattern", "native_precision")


@pytest.mark.parametrize("family", REAL)
def test_facts_are_what_the_catalog_says_of_a_real_model(family: str) -> None:
    own, name, more = REAL[family]
    kind = getattr(transformers, f"{family}TextConfig" if family == "Llama4" else f"{family}Config", None)
    if kind is None:
        pytest.skip(f"this transformers has no {family}")
    with torch.device("meta"):
        built = getattr(transformers, f"{family}ForCausalLM")._from_config(kind(num_hidden_layers=8, **own))
    entry = catalog.model(name)
    facts = facts_of(built, entry.top_k)
    spec = ModelSpec(**facts)
    assert spec.total_params == counted(built) - entry.hidden
    assert [spec.attention_kind(i) for i in range(8)] == [entry.attention_kind(i) for i in range(8)]
    apart = (*OF_THE_WHOLE, "attn_params_per_layer", "attn_params_by_kind")
    mine = {key: value for key, value in facts.items() if key not in apart}
    assert mine == {key: getattr(entry, key) for key in mine}
    attention = [sum(s.attn_params(s.attention_kind(i)) for i in range(8)) for s in (spec, entry)]
    assert attention[0] - attention[1] == 8 * more


def test_what_is_not_known_is_left_out() -> None:
    """An attention that has no letter: its entries; packed weights: all that shapes would say."""
    built = build("mixtral")
    built.config.layer_types = ["full_attention", "compressed", "full_attention"]
    facts = facts_of(built, 2)
    assert "attn_params_per_layer" in facts and not {"kv_bytes_per_token_per_layer", "attention_pattern"} & facts.keys()
    built.model.layers[0].self_attn.q_proj.register_buffer("qweight", torch.zeros(8, 8, dtype=torch.int32))
    assert facts_of(built, 2) == {}


# ---- a run takes them from the trace


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    """Of a model by a name that is in no catalog."""
    built = build("qwen3-moe")
    with Recorder(built, logits=False, lookahead=0) as recorder:
        built.generate(prompts(2, 6), max_new_tokens=3, **GREEDY)
    return recorder.trace(model="mine-3l")


def saved(folder: Path, trace: RoutingTrace, **meta: Any) -> str:
    out = RoutingTrace(meta=trace.meta | meta, **trace.arrays())
    npz.write(folder / "my.npz", out)
    return str(folder / "my.npz")


def summary(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert run.main([*flags, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_needs_no_entry_for_a_captured_model(
    trace: RoutingTrace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An expert: 3 x 64 x 32 weights of 2 bytes."""
    path = saved(tmp_path, trace)
    out = summary(capsys, "--trace", path, "--cache", "4")
    notes = [note for note in out["notes"] if "in no catalog" in note]
    assert notes == ["mine-3l is in no catalog: its sizes are what the trace's meta says; --model replaces them"]
    assert sum(out["h2d_bytes"].values()) == sum(out["transfers"].values()) * 3 * 64 * 32 * 2
    assert traces_command(["info", path]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  model facts")]
    assert "hidden 64," in line and "expert_intermediate 32," in line and "kv_bytes_per_token_per_layer 128," in line


def test_the_flag_comes_first_then_the_catalog_then_the_trace(
    trace: RoutingTrace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, trace)
    assert model.main([path, str(tmp_path / "my.toml")]) == 0
    wide = (tmp_path / "my.toml").read_text().replace("expert_intermediate = 32", "expert_intermediate = 64")
    (tmp_path / "wide.toml").write_text(wide)
    capsys.readouterr()
    small, large = (
        sum(summary(capsys, "--trace", path, "--cache", "4", *more)["h2d_bytes"].values())
        for more in ([], ["--model", str(tmp_path / "wide.toml")])
    )
    assert large == 2 * small
    named = saved(tmp_path, trace, model="mixtral")
    assert run.main(["--trace", named, "--cache", "4"]) == 2
    assert "mixtral-8x7b has 32 layers" in capsys.readouterr().err


@pytest.mark.parametrize("door", ["sweep", "recommend", "placement", "miss_curve"])
def test_every_command_takes_them(
    door: str, trace: RoutingTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, trace)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.toml").write_text('trace = "my.npz"\ncache = 4\neviction = ["lru", "fifo"]\n')
    calls = {
        "sweep": (sweep.main, ["--config", "s.toml", "--out", "o", "--workers", "1"]),
        "recommend": (
            recommend.main,
            ["--trace", "my.npz", "--vram", "1GB", "--context", "64", "--candidates", "2", "--workers", "1"],
        ),
        "placement": (placement.main, ["--trace", "my.npz", "--cache", "4", "--out", "p.npz"]),
        "miss_curve": (miss_curve.main, ["my.npz", "--check", "none"]),
    }
    command_line, flags = calls[door]
    assert command_line(flags) == 0, capsys.readouterr().err


HOSTILE: list[tuple[Any, str]] = [
    ([1], "meta.model_facts: must be a table with the keys of a model file, not list"),
    (None, "meta.model_facts: must be a table with the keys of a model file, not NoneType"),
    ({"hidden": "64"}, "meta.model_facts: hidden = '64': should be a valid integer"),
    ({"hidden": 10**30}, "meta.model_facts: hidden = 1000"),
    ({"n_layers": 10**15}, "meta.model_facts: n_layers = 1000000000000000: should be less than or equal to 10000"),
    ({"n_heds": 4}, "meta.model_facts: n_heds: unknown key; did you mean n_heads?"),
    ({"routed_scaling_factor": "nan"}, "meta.model_facts: routed_scaling_factor = 'nan': should be a valid number"),
    ({"native_precision": "bf61"}, "meta.model_facts: native_precision: precision 'bf61': not in the catalog"),
    ({"attention_pattern": "fl"}, 'meta.model_facts: linear_state_bytes: missing, and attention_pattern = "fl"'),
    ({"n_experts": 17}, "mine-3l has 17 experts, top-4; the trace has 16 experts, top-4"),
    ({"sources": {"a": 3}}, "meta.model_facts: sources.a = 3: should be a valid string"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE, ids=str)
def test_facts_are_other_peoples_data(
    change: Any, message: str, trace: RoutingTrace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = trace.meta["model_facts"] | change if isinstance(change, dict) else change
    path = saved(tmp_path, trace, model_facts=facts)
    assert run.main(["--trace", path, "--cache", "4", "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert message in line and "my.npz" in line and line.count("\n") == 1 and len(line) < 400
    assert not (tmp_path / "out").exists()
    assert traces_command(["info", path]) == 0
    (tmp_path / "h.toml").write_text("[fixed]\ndense_ns = 6\ndecide_ns = 1\nexpert_ns = 5\ntransfer_ns = 12\n")
    assert run.main(["--trace", path, "--cache", "4", "--hardware", str(tmp_path / "h.toml")]) == 0


def test_a_file_of_what_is_known_names_what_is_not(
    trace: RoutingTrace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {key: value for key, value in trace.meta["model_facts"].items() if key not in ("n_heads", "vocab")}
    path, out = saved(tmp_path, trace, model_facts=facts | {"attention_pattern": "fl"}), tmp_path / "my.toml"
    assert model.main([path, str(out)]) == 0
    assert capsys.readouterr().out.endswith("incomplete; to be said by hand: n_heads, vocab, linear_state_bytes\n")
    with out.open("a") as file:
        file.write("n_heads = 4\nvocab = 128\nlinear_state_bytes = 64\n")
    assert catalog.model(str(out)).attention_kind(1) == "linear"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mixtral.npz", "mixtral.npz: its meta has no model_facts"),
        ("none.json", "none.json: no such file"),
        ("dense.json", "LlamaForCausalLM has no MoE layer"),
        ("empty.json", "empty.json: Unrecognized model"),
        ("text.json", "text.json: "),
        ("bad.npz", "cannot be written as TOML"),
        ("wrong.npz", "hidden = 'wide': should be a valid integer"),
        ("key.npz", "unknown key"),
    ],
)
def test_no_file_is_written_of_what_is_no_model(
    source: str, message: str, trace: RoutingTrace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"dense.json": '{"model_type": "llama"}', "empty.json": "{}", "text.json": "what is this"}
    if source in texts:
        (tmp_path / source).write_text(texts[source])
    said = {"bad.npz": {"hidden": None}, "wrong.npz": {"hidden": "wide"}, "key.npz": {"a = 1\nwindow": 1}}.get(source)
    if said is not None:
        saved(tmp_path, trace, model_facts=trace.meta["model_facts"] | said)
        (tmp_path / "my.npz").rename(tmp_path / source)
    given = source if source == "mixtral.npz" else str(tmp_path / source)
    assert model.main([given, str(tmp_path / "out.toml")]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1 and not (tmp_path / "out.toml").exists()


# ---- routers that give no numbers


def router_of(built: Any) -> Any:
    return find_moe_layers(built)[-1].router


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_router_without_numbers_is_refused_where_it_is(family: str, value: float) -> None:
    built = build(family)
    router_of(built).weight.data[3] = value
    with pytest.raises(UserError) as caught, Recorder(built) as recorder:
        built.generate(prompts(2, 9), max_new_tokens=3, **GREEDY)
    line = str(caught.value)
    assert "layers.2." in line and "its router says" in line and "of forward pass 1, which is no number" in line
    assert "float32: check the weights that were loaded" in line
    with pytest.raises(UserError, match="nothing was recorded"):
        recorder.trace()


def test_the_forward_pass_is_named_and_float16_gets_its_remedy() -> None:
    """Prompt and one token are well; with the third pass a weight overflows."""
    built = build("qwen3-moe").to(torch.float16)
    seen: list[int] = []

    def overflow(module: Any, args: Any) -> None:
        seen.append(len(seen))
        if len(seen) == 3:
            module.weight.data[:] = float("inf")

    router_of(built).register_forward_pre_hook(overflow)
    wanted = r"of forward pass 3, .*float16: float16 overflows, load it in bfloat16"
    with pytest.raises(UserError, match=wanted), Recorder(built):
        built.generate(prompts(1, 9), max_new_tokens=6, **GREEDY)


def test_an_overflow_behind_the_last_router_is_refused_before_a_token_is_drawn_of_it() -> None:
    built = build("mixtral")
    built.model.layers[-1].mlp.experts.down_proj.data[:] = float("inf")
    wanted = r"MixtralModel: its last layer says (nan|inf|-inf) of token 0"
    with pytest.raises(UserError, match=wanted), Recorder(built):
        built.generate(prompts(1, 9), max_new_tokens=6, do_sample=True, pad_token_id=1)


def test_padding_may_be_no_number() -> None:
    built, ids = build("qwen3-moe"), prompts(2, 6)
    ids[0, :2] = 1
    mask = (ids != 1).long()

    def nowhere(_module: Any, args: Any, out: Any) -> Any:
        hidden = out[0] if isinstance(out, tuple) else out
        hidden.view(2, 6, -1)[0, :2] = float("nan")

    hook = router_of(built).register_forward_hook(nowhere)
    with Recorder(built) as recorder, torch.no_grad():
        built(ids, attention_mask=mask)
    hook.remove()
    assert recorder.trace().n_tokens == 10


def test_capture_writes_nothing_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the train extra's tokenizers is not installed")
    built, folder = build("mixtral"), tmp_path / "broken"
    router_of(built).weight.data[:] = float("nan")
    built.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "a": 1, "b": 2}, unk_token="<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(folder)
    (tmp_path / "t.txt").write_text("a b " * 50)
    flags = ["--text", str(tmp_path / "t.txt"), "--prompt-tokens", "4", "--generate", "2", "--requests", "2"]
    out = tmp_path / "o.npz"
    assert traces_command(["capture", "--model", str(folder), *flags, "--device", "cpu", "--out", str(out)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: model.layers.2.") and "its router says nan" in line and not out.exists()


# ---- too little text


@pytest.mark.parametrize("seed", range(60))
def test_what_would_do_is_computed(seed: int) -> None:
    """Against every smaller number tried, and texts made longer token by token."""
    rng = np.random.default_rng(seed)
    texts = rng.integers(1, 120, rng.integers(1, 5)).tolist()
    prompt, generate = int(rng.integers(1, 30)), int(rng.integers(0, 30))

    def have(p: int, g: int, lengths: list[int]) -> int:
        return len(command.windows([np.arange(n) for n in lengths], p, g, 0))

    left = have(prompt, generate, texts)
    needed = left + int(rng.integers(1, 6))
    longer = ([n + m * (i == j) for j, n in enumerate(texts)] for m in range(1, 9999) for i in range(len(texts)))
    more = next(sum(each) - sum(texts) for each in longer if have(prompt, generate, each) >= needed)
    wanted = [f"--requests {left}"] if left else []
    wanted += [f"--prompt-tokens {p}" for p in range(prompt) if p and have(p, generate, texts) >= needed][-1:]
    wanted += [f"--generate {g}" for g in range(generate) if have(prompt, g, texts) >= needed][-1:]
    asked = argparse.Namespace(prompt_tokens=prompt, generate=generate)
    tail = f"{more:,} more tokens of text"
    said = command._would_do(asked, texts, left, needed)
    assert said == (f"{', '.join(wanted)}, or {tail}" if wanted else tail)


def test_too_little_text_is_one_line_with_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """tiny-moe's held-out text does not hold so many prompts; with what the line says, it does."""
    pytest.importorskip("tokenizers", reason="the train extra's tokenizers is not installed")
    flags = ["capture", "--model", "tiny-moe", "--device", "cpu", "--batch", "64", "--lookahead", "0"]
    lengths = ["--prompt-tokens", "100", "--generate", "0", "--skip", "999999"]
    assert traces_command([*flags, *lengths, "--out", str(tmp_path / "t.npz")]) == 2
    line = capsys.readouterr().err
    assert "error: --requests 16 after --skip 999999: " in line and " prompts are there; " in line
    assert line.endswith(" more tokens of text would do\n") and line.count("\n") == 1


# ---- offloaded


@pytest.mark.parametrize("how", ["modules", "layers"])
@pytest.mark.parametrize("family", ["mixtral", "deepseek-v3", "gpt-oss", "phimoe"])
def test_offloaded_routers_are_recorded_as_others_are(family: str, how: str) -> None:
    """Weights come for a module, or a layer, and lie nowhere when its hooks are called."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed (extra: test)")
    plain = recorded(build(family))
    built = build(family)
    whole = [type(built.model.layers[-1]).__name__] if how == "layers" else None
    with tempfile.TemporaryDirectory() as folder:
        accelerate.disk_offload(built, folder, torch.device("cpu"), preload_module_classes=whole)
        assert router_of(built).weight.is_meta
        found = recorded(built)
    assert found.meta == plain.meta
    for name, array in plain.arrays().items():
        np.testing.assert_allclose(found.arrays()[name], array, rtol=5e-3, atol=5e-3, err_msg=name)


def recorded(built: Any) -> RoutingTrace:
    with Recorder(built) as recorder:
        built.generate(prompts(2, 9), attention_mask=torch.ones(2, 9, dtype=torch.long), max_new_tokens=3, **GREEDY)
    return recorder.trace()


def test_weights_that_are_nowhere_are_one_line() -> None:
    built = build("mixtral")
    router = router_of(built)
    forward = router.forward

    def drop(*_: Any) -> None:
        router.weight = torch.nn.Parameter(torch.empty_like(router.weight, device="meta"))

    router.forward = lambda *args: (forward(*args), drop())[0]
    with pytest.raises(UserError, match=r"the weights of its router are nowhere"), Recorder(built):
        built(prompts(1, 5))
