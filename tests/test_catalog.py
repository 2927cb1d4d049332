"""The catalog: totals against what was published, a source for everything, names, and refusals in one
line."""

import functools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim import catalog
from sim.catalog import files
from sim.catalog.files import precision_bits, weight_bytes
from sim.catalog.hardware_spec import Gpu, Host, Link
from sim.catalog.model_spec import ModelSpec
from sim.catalog.parts import build
from sim.errors import CatalogError

TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces"
MODELS = catalog.names("model")
FIXED = "dense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 0\n"


# ---- what the entries say


NOT_PUBLISHED = {"ling-3.0-flash"}  # no total was found
OTHER_TOTALS = {"ernie-4.5-21b-a3b": "its name truncates 21.83"}
# what published active parameters count beside ours: the embedding, too (1), or not even the head (-1)
COUNTED = dict.fromkeys(("deepseek-moe-16b", "qwen1.5-moe-a2.7b", "qwen3-30b-a3b", "olmoe-1b-7b", "glm-5.3-flash"), 1)
COUNTED |= dict.fromkeys(("qwen3.5-122b-a10b", "nemotron-3-nano-30b-a3b", "ling-mini-2.0", "ling-flash-2.0"), 1)
COUNTED |= dict.fromkeys(("ling-coder-lite", "flame-moe-290m"), 1)
COUNTED |= dict.fromkeys(("glm-4.5-air", "qwen3.8-flash-next", "granite-3.0-1b-a400m", "ernie-4.5-21b-a3b"), -1)
CLASS = {"qwen3-next-80b-a3b", "glm-4.7-flash"}  # "A3B" of a name, of 3.56 and 3.58


@pytest.mark.parametrize("name", MODELS)
def test_total_parameters_are_within_3_percent_of_the_published_figure(name: str) -> None:
    model = catalog.model(name)
    if name in NOT_PUBLISHED:
        assert model.published_total_b is None
        return
    assert model.published_total_b is not None
    near = abs(model.total_params / 1e9 / model.published_total_b - 1)
    assert near <= 0.04 if name in OTHER_TOTALS else near <= 0.03


@pytest.mark.parametrize("name", [name for name in MODELS if catalog.model(name).published_active_b is not None])
def test_active_parameters_are_within_6_percent_of_the_published_figure_or_it_counts_otherwise(name: str) -> None:
    model = catalog.model(name)
    published, active = (model.published_active_b or 0) * 1e9, model.active_params
    if name in CLASS:
        assert int(published / 1e9) == int(active / 1e9)
    else:
        assert active + COUNTED.get(name, 0) * model.head_params == pytest.approx(published, rel=0.06)
    assert (abs(active / published - 1) > 0.06) == (name in CLASS or name in COUNTED)  # where it is needed, only there


def test_totals_worked_by_hand() -> None:
    # Mixtral-8x7B: 32 layers x (attention 2 x 4096^2 + 2 x 4096 x 1024, router 8 x 4096, norms 2 x 4096,
    # 8 experts of 3 x 4096 x 14336) + embedding and head of 32000 x 4096 each
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 8 * 4096 + 2 * 4096 + 8 * 3 * 4096 * 14336
    assert catalog.model("mixtral-8x7b").total_params == 32 * layer + 2 * 32000 * 4096
    # Switch-Base-128: 24 layers of self-attention, the last 12 with cross-attention too (4 x 768^2 each),
    # half of them sparse (128 experts of 2 x 768 x 3072 and a router), the others dense, embedding = head
    layers = 24 * (4 * 768**2 + 2 * 768) + 12 * 4 * 768**2 + 12 * 2 * 768 * 3072
    sparse = 12 * (128 * 2 * 768 * 3072 + 768 * 128)
    switch = catalog.model("switch-base-128")
    assert switch.total_params == layers + sparse + 32128 * 768
    assert switch.moe_layers == tuple(range(1, 24, 2))
    assert catalog.model("nllb-moe-54b").moe_layers == tuple(range(3, 48, 4))


def test_active_parameters_count_the_head_but_not_the_embedding() -> None:
    # DeepSeek-V2-Lite: first layer dense, two shared experts in the other 26
    model = catalog.model("deepseek-v2-lite")
    attention = 27 * (13_762_560 + 2 * 2048)
    moe = 26 * (64 * 2048 + 3 * 2048 * 2816 + 6 * 3 * 2048 * 1408)
    assert model.active_params == attention + moe + 3 * 2048 * 10944 + 102400 * 2048
    assert model.moe_layers == tuple(range(1, 27))


def test_expert_bytes() -> None:
    mixtral, gpt = catalog.model("mixtral-8x7b"), catalog.model("gpt-oss-20b")
    assert mixtral.expert_bytes("bf16") == 352_321_536
    assert mixtral.expert_bytes("q8_0") == 187_170_816  # 8.5 bits
    assert mixtral.expert_bytes("int8") == 176_160_768
    assert mixtral.expert_bytes("q4") == 99_090_432  # 4.5 bits
    assert catalog.model("switch-base-128").expert_bytes("fp32") == 18_874_368
    assert gpt.expert_bytes("mxfp4") == pytest.approx(13.25e6, rel=0.003)  # measured
    assert gpt.n_routed == 24 * 32
    assert weight_bytes(3, "q4") == 2  # 13.5 bits, rounded up


def test_lm_head_is_18_percent_of_the_bytes_of_a_qwen3_30b_token() -> None:
    # experts at 4.5 bits: 48 x 8 x 2.654 MB = 1019 MB; the rest in bf16: 2459 MB,
    # of which the head 151936 x 2048 x 2 = 622 MB
    model = catalog.model("qwen3-30b-a3b")
    head = weight_bytes(model.head_params, "bf16")
    token = weight_bytes(model.read_dense_params, "bf16") + 48 * 8 * model.expert_bytes("q4")
    assert head == 622_329_856
    assert head / token == pytest.approx(0.18, abs=0.005)


def test_kv_bytes_count_windows_and_linear_layers() -> None:
    assert catalog.model("mixtral-8x7b").kv_bytes(1000) == 32 * 4096 * 1000
    assert catalog.model("gpt-oss-20b").kv_bytes(1000) == 2048 * (12 * 1000 + 12 * 128)
    assert catalog.model("qwen3-next").kv_bytes(1000) == 12 * 2048 * 1000 + 36 * 2_146_304
    assert catalog.model("gemma-4-26b-a4b").kv_bytes(2000) == 5 * 4096 * 2000 + 25 * 8192 * 1024
    assert catalog.model("glm-5").kv_bytes(5000) == 78 * (1152 + 256) * 5000


def test_attention_of_each_kind_by_hand() -> None:
    model = build(ModelSpec, "tiny", TINY_MODEL | {"n_layers": 6, "attention_pattern": "fwsl-", "window": 3} | KINDS_OF)
    assert [model.attention_kind(i) for i in range(6)] == ["full", "window", "sparse", "linear", "none", "full"]
    # KV of 10 tokens: 2 x 10 x 32 (full), 3 x 16 (window), 10 x (32 + 4) (sparse), 5 (linear)
    assert model.kv_bytes(10) == 2 * 320 + 48 + 360 + 5
    assert model.kv_bytes(10, (1, 2)) == 48 + 360
    assert model.with_kv("fp8").kv_bytes(10) == 2 * 160 + 24 + 10 * (16 + 4) + 5  # index keys and states stay
    # attention: 256 in two full layers and the window's, 100 (sparse), 7 (linear); norms 16 and router 32 each
    rest = 6 * (16 + 4 * 8) + 2 * 800
    assert model.dense_params == 3 * 256 + 100 + 7 + rest


def test_moe_layers_as_a_list() -> None:
    listed = TINY_MODEL | {"n_layers": 6, "moe_layer_list": [1, 2, 5], "dense_intermediate": 0}
    model = build(ModelSpec, "tiny", listed)
    assert (model.moe_layers, model.n_moe_layers, model.dense_ffn_params) == ((1, 2, 5), 3, 0)
    assert model.total_params == 6 * (256 + 16) + 3 * (32 + 4 * 3 * 8 * 16) + 2 * 800
    nano = catalog.model("nemotron-3-nano")
    assert [nano.attention_kind(i) for i in nano.moe_layers] == ["none"] * 23


@pytest.mark.parametrize("kind", list(catalog.KINDS))
def test_every_entry_has_a_source_and_names_its_exceptions_rightly(kind: str) -> None:
    for name, entry in catalog.entries(kind).items():
        assert len(entry["source"]) > 5, name
        assert all(len(text) > 1 for text in entry.get("sources", {}).values()), name


def numbers(table: dict[str, Any]) -> list[str]:
    """Keys of numbers, those in tables by the table's key and theirs."""
    out = []
    for key, value in table.items():
        if isinstance(value, dict):
            out += [f"{key}.{inner}" for inner in numbers(value)]
        elif any(type(each) in (int, float, list) for each in (value if isinstance(value, list) else [value])):
            out.append(key)
    return out


UNITS = ("_ns", "_mib", "_gb", "_gb_per_s", "_bytes", "_params", "_b", "_gbs", "_us", "_gops_per_core")
WITHIN = (
    "_bytes_per_token_per_layer",
    "_bytes_per_token",
    "_params_per_layer",
    "_params_by_kind",
    "_gbs_",
    "_us_",
    "fetch_us",
)
# counts, shares, ratios; widths in columns, windows in tokens; sets and options of engines are a run's own fields
DIMENSIONLESS = {
    "n_layers", "encoder_layers", "moe_first", "moe_step", "moe_layer_list", "n_experts", "top_k", "hidden", "bits",
    "expert_intermediate", "expert_matrices", "expert_biases", "n_shared_experts", "shared_intermediate", "n_heads",
    "dense_intermediate", "qk_dim", "v_dim", "window", "vocab", "routed_scaling_factor", "gen", "lanes", "sockets",
    "cores", "single_thread", "tflops", "curve", "copies_per_expert", "staging_experts", "memory_share",
    "memory_efficiency", "hbm_efficiency", "cpu_read_share", "cpu_compute_share", "cpu_batch_gain", "kv_read_share",
    "link_share",
}  # fmt: skip


@pytest.mark.parametrize("kind", list(catalog.KINDS))
def test_no_figure_is_without_a_source_or_a_unit(kind: str) -> None:
    for name, entry in catalog.entries(kind).items():
        for key in numbers({key: value for key, value in entry.items() if key not in ("sets", "options")}):
            first, last = key.split(".")[0], key.split(".")[-1]
            assert entry.get("sources", {}).get(first) or entry["source"], f"{kind} {name}: {key}: no source"
            named = last.endswith(UNITS) or any(part in key for part in WITHIN) or set(key.split(".")) & DIMENSIONLESS
            assert named or first.startswith("launches_per_"), f"{kind} {name}: {key}: which unit?"


@pytest.mark.parametrize(("kind", "spec"), [("gpu", Gpu), ("link", Link), ("ssd", Link), ("host", Host)])
def test_every_part_is_valid(kind: str, spec: type[Gpu | Link | Host]) -> None:
    for name, entry in catalog.entries(kind).items():
        part = build(spec, name, entry)
        assert set(part.sources) <= set(entry), name


def test_every_preset_engine_and_precision_is_valid() -> None:
    presets = [catalog.hardware(name) for name in catalog.names("hardware")]
    assert all(p.gpu and p.link and p.host and p.decide_ns == 10_000 for p in presets)
    assert all(catalog.engine(name).name == name for name in catalog.names("engine"))
    assert all(0 < precision_bits(name) <= 32 for name in catalog.names("precision"))


# ---- names


@pytest.mark.parametrize("kind", list(catalog.KINDS))
def test_entries_read_one_by_one_are_those_of_the_file_read_at_once(kind: str) -> None:
    at_once = tomllib.loads((files.FOLDER / files.KINDS[kind]).read_text())
    entries = files.Written(files.FOLDER / files.KINDS[kind])
    assert list(entries) == list(at_once) and len(entries) == len(at_once)
    for name in reversed(at_once):
        assert entries[name] == at_once[name], name
        assert list(entries) == list(at_once)  # whatever has been read
    assert dict(entries) == at_once


def test_no_name_or_alias_means_two_things() -> None:
    for kind in catalog.KINDS:
        entries = catalog.entries(kind)
        for name, entry in entries.items():
            for word in (name, *entry.get("aliases", ())):
                assert catalog.find(kind, word) == name


@pytest.mark.parametrize("word", ["rtx4090", "RTX-4090", "rtx_4090", "Rtx 4090"])
def test_names_ignore_case_and_separators(word: str) -> None:
    assert catalog.hardware(word).name == "rtx4090"


@pytest.mark.parametrize(
    "name",
    ["rtx3090", "rtx4090", "rtx5090", "a100-pcie4", "a100-40gb", "h100-pcie5", "t4-pcie3", "gh200", "a6000"],
)
def test_presets_that_must_be_there(name: str) -> None:
    assert catalog.hardware(name).name == name


def test_model_names_of_checkpoints_resolve() -> None:
    assert catalog.model("mistralai/Mixtral-8x7B-Instruct-v0.1").name == "mixtral-8x7b"
    assert catalog.model("openai/gpt-oss-20b").name == "gpt-oss-20b"
    assert catalog.model("deepseek-ai/DeepSeek-R1").name == "deepseek-v3"


@pytest.mark.skipif(not TRACES.is_dir(), reason="the real captures are not on this machine")
def test_models_of_the_captures_resolve_and_fit() -> None:
    for path in sorted(TRACES.glob("*.npz")):
        meta = json.loads(str(np.load(path)["meta"]))
        shape = (meta["n_layers"], tuple(meta["moe_layers"]), meta["n_experts"], meta["top_k"])
        assert catalog.model(meta["model"]).mismatch(*shape) is None, path.name


def test_mismatch_says_what_differs() -> None:
    mixtral, switch = catalog.model("mixtral-8x7b"), catalog.model("switch-large-128")
    assert "32 layers" in (mixtral.mismatch(24, tuple(range(24)), 8, 2) or "")
    assert "top-1" in (mixtral.mismatch(32, tuple(range(32)), 8, 1) or "")
    assert switch.mismatch(24, tuple(range(1, 24, 2)), 128, 1) is None  # its decoder alone


@pytest.mark.parametrize(
    ("kind", "word", "near"),
    [
        ("model", "mixtral-8x7", "mixtral-8x7b"),
        ("hardware", "rtx40900", "rtx4090"),
        ("engine", "moe-infinite", "moe-infinity"),
        ("precision", "mxfp", "mxfp4"),
    ],
)
def test_unknown_names_suggest(kind: str, word: str, near: str) -> None:
    with pytest.raises(CatalogError, match=rf"^{kind} '{word}': not in the catalog; did you mean {near}\?$"):
        getattr(catalog, kind)(word)


def test_an_unknown_name_without_a_near_one_lists_what_there_is() -> None:
    with pytest.raises(CatalogError, match=r"known: ideal, fused, llama\.cpp"):
        catalog.engine("zzz")
    with pytest.raises(CatalogError, match="not one of model, gpu"):
        catalog.names("colour")


def test_importing_the_catalog_and_listing_names_does_not_import_pydantic() -> None:
    code = "import sys, sim.catalog as c; c.names('model'); c.find('gpu', 't4')"
    code += "; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- one bad entry


@pytest.fixture
def own_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the catalog's, and nothing read yet."""
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    for name, cached in vars(files).copy().items():
        if hasattr(cached, "cache_info"):
            monkeypatch.setattr(files, name, functools.cache(cached.__wrapped__))
    return tmp_path


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('like = "nobody"', "link bad: like = 'nobody': must be another entry of the same file"),
        ('like = "bad"', "link bad: like = 'bad': must be another entry of the same file"),
        ('like = "round"', "link bad: like = 'bad': must be another entry of the same file"),
        ('aliases = "good"', "link bad: aliases = 'good': must be a list of names"),
        ("setup_ns = 1\nh2d_gb_per_s = 1\ncolour = 3", "link bad: colour: unknown key"),
    ],
)
def test_a_bad_entry_stops_itself_alone(own_catalog: Path, bad: str, message: str) -> None:
    good = '[good]\naliases = ["fine"]\nsetup_ns = 1\nh2d_gb_per_s = 2\n'
    rest = '[round]\nlike = "bad"\n' if "round" in bad else ""
    (own_catalog / "links.toml").write_text(f"{good}[bad]\n{bad}\n{rest}")
    assert files.find("link", "Fine") == "good"
    assert build(Link, "good", files.shipped("link")["good"]).rate(1) == 2
    with pytest.raises(CatalogError, match="^" + re.escape(message)):
        build(Link, "link bad", files.shipped("link")[files.find("link", "bad")])


def test_what_is_no_table_stops_itself_alone(own_catalog: Path) -> None:
    (own_catalog / "links.toml").write_text("bad = 3\n[good]\nsetup_ns = 1\nh2d_gb_per_s = 2\n")
    assert files.find("link", "good") == "good"
    with pytest.raises(CatalogError, match=r"^link bad: bad = 3: must be a table$"):
        files.find("link", "bad")


# ---- machines of one memory


def test_a_link_from_an_ssd_and_one_memory(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('gpu = "gb10"\nlink = "ssd:990-pro"\nhost = "gb10-cpu"\nunified = true\n')
    mine = catalog.hardware(str(path))
    assert mine.link is not None and (mine.link.name, mine.link.h2d_gb_per_s) == ("samsung-990-pro", 6.29)
    path.write_text('gpu = "gb10"\nlink = "ssd:991"\nhost = "gb10-cpu"\nunified = true\n')
    with pytest.raises(CatalogError, match=r"link: ssd '991': not in the catalog"):
        catalog.hardware(str(path))


# ---- files of the user


def test_a_hardware_file_names_parts_gives_parts_or_changes_parts(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'gpu = "RTX 4090"\npolicy_ns = 80000\n[link]\nlike = "pcie4x16-pinned"\nh2d_gb_per_s = 20\n'
        "[host]\nread_gb_per_s = 50.0\n"
    )
    mine = catalog.hardware(str(path))
    assert (mine.name, mine.decide_ns, mine.mem_bytes) == ("mine", 89_000, 24_080 << 20)
    assert mine.link is not None and (mine.link.rate(1e6), mine.link.setup_ns) == (20.0, 7000)
    assert mine.link_for(page_locked=False) is mine.link  # there is no second one


def test_a_rate_of_ones_own_replaces_a_curve(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('gpu = "t4"\nhost = "grace"\nlink = {like = "pcie3x16-pageable-curve", h2d_gb_per_s = 7}\n')
    link = catalog.hardware(str(path)).link
    assert link is not None and link.curve is None and link.rate(4) == 7


@pytest.mark.parametrize(
    ("gpu", "mem_bytes"),
    [
        ('like = "rtx-4090"', 24_080 << 20),  # what CUDA shows of 24564 MiB
        ('like = "a100"', 81_920 << 20),  # what CUDA shows is not known: all that nvidia-smi reports
        ('like = "rtx-4090"\nmem_gb = 48', 48_000_000_000),  # a size of one's own replaces both
        ('like = "rtx-4090"\nmem_mib = 49140', 49_140 << 20),
        ('like = "rtx-4090"\nmem_cuda_mib = 24000', 24_000 << 20),
        ("hbm_gb_per_s = 1\ntflops = { bf16 = 1 }\nmem_gb = 0.5", 500_000_000),
    ],
)
def test_gpu_memory_that_a_run_may_use(tmp_path: Path, gpu: str, mem_bytes: int) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'link = "pcie4x16-pinned"\nhost = "grace"\n[gpu]\n{gpu}\n')
    assert catalog.hardware(str(path)).mem_bytes == mem_bytes


KINDS_OF = {
    "attn_params_by_kind": {"sparse": 100, "linear": 7},
    "window_kv_bytes_per_token_per_layer": 16,
    "index_bytes_per_token": 4,
    "linear_state_bytes": 5,
}
TINY_MODEL: dict[str, Any] = {
    "n_layers": 3,
    "n_experts": 4,
    "top_k": 2,
    "hidden": 8,
    "expert_intermediate": 16,
    "attn_params_per_layer": 256,
    "kv_bytes_per_token_per_layer": 32,
    "n_heads": 1,
    "qk_dim": 8,
    "v_dim": 8,
    "vocab": 100,
}


def test_a_model_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text("\n".join(f"{key} = {value}" for key, value in TINY_MODEL.items()))
    assert catalog.model(str(path)).total_params == 3 * (256 + 16 + 32 + 4 * 3 * 8 * 16) + 2 * 800


def test_a_fixed_file(tmp_path: Path) -> None:
    path = tmp_path / "fixed.toml"
    path.write_text("[fixed]\n" + FIXED)
    hardware = catalog.hardware(str(path))
    assert hardware.fixed is not None
    assert (hardware.decide_ns, hardware.mem_bytes, hardware.answers_cpu) == (0, None, False)
    assert (hardware.fixed.commit_depth, hardware.fixed.head_ns, hardware.fixed.expert_bytes) == (1, 0, 1)
    path.write_text("[fixed]\nmem_gb = 2\ncpu_expert_ns = 0\n" + FIXED)
    assert catalog.hardware(str(path)).mem_bytes == 2_000_000_000
    assert catalog.hardware(str(path)).answers_cpu
    path.write_text("[fixed]\nmem_mib = 2\n" + FIXED)
    assert catalog.hardware(str(path)).mem_bytes == 2 * 1024 * 1024


PARTS = 'gpu = "rtx-4090"\nlink = "pcie4x16-pinned"\nhost = "grace"\n'
OWN_GPU = 'link = "pcie4x16-pinned"\nhost = "grace"\n[gpu]\nhbm_gb_per_s = 1\ntflops = { bf16 = 1 }\n'
OWN_LINK = 'gpu = "rtx-4090"\nhost = "grace"\n[link]\nsetup_ns = 0\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[fixed]\n" + FIXED.replace("dense_ns = 10", "dense_ns = -10"),
            "fixed.dense_ns = -10: should be greater",
        ),
        ("[fixed]\n" + FIXED.replace("10", "10.5"), "fixed.dense_ns = 10.5: should be a valid integer"),
        ("[fixed]\n" + FIXED.replace("10\n", "true\n"), "fixed.dense_ns = True: should be a valid integer"),
        (
            "[fixed]\n" + FIXED.replace("dense_ns", "densens"),
            "fixed.densens: unknown key; did you mean dense_ns?",
        ),
        ("[fixed]\n" + FIXED.replace("dense_ns = 10", ""), "fixed.dense_ns: missing"),
        ("[fixed]\n" + FIXED.replace("100", "10000000000000000000000"), "fixed.transfer_ns = 1000"),
        ("[fixed]\ncommit_depth = 0\n" + FIXED, "fixed.commit_depth = 0: should be greater than 0"),
        ("fixed = 3\n", "fixed = 3: should be a table"),
        ("[fixd]\n" + FIXED, "fixd: unknown key; did you mean fixed?"),
        ("readback_ns = 1\n[fixed]\n" + FIXED, "readback_ns: not beside [fixed]"),
        ("", "gpu: missing; give gpu, link and host, or [fixed] or [measured] alone"),
        (PARTS + "colour = 3\n", "colour: unknown key"),
        (
            PARTS.replace("rtx-4090", "rtx-409"),
            "gpu: gpu 'rtx-409': not in the catalog; did you mean rtx-4090?",
        ),
        (OWN_GPU, "gpu: mem_gb or mem_mib: missing; give one of the two"),
        (OWN_GPU + "mem_gb = 8\nmem_mib = 8188\n", "gpu: mem_gb = 8, mem_mib = 8188: give one of the two"),
        (OWN_GPU + "mem_mib = 8188\nmem_cuda_mib = 8189\n", "gpu: mem_cuda_mib = 8189: must stand beside mem_mib"),
        (OWN_GPU + "mem_gb = 8\nmem_cuda_mib = 8000\n", "gpu: mem_cuda_mib = 8000: must stand beside mem_mib"),
        (OWN_GPU + "mem_mib = 23.5\n", "gpu.mem_mib = 23.5: should be a valid integer"),
        ("[fixed]\nmem_gb = 1\nmem_mib = 1\n" + FIXED, "fixed: mem_gb = 1, mem_mib = 1: give one of the two"),
        (OWN_LINK + "h2d_gb_per_s = 0.0\n", "link.h2d_gb_per_s = 0.0: should be greater than"),
        (OWN_LINK + "h2d_gb_per_s = 0\n", "link.h2d_gb_per_s = 0: should be greater than"),
        (OWN_LINK + "h2d_gb_per_s = -1.5\n", "link.h2d_gb_per_s = -1.5: should be greater than"),
        (OWN_LINK + "h2d_gb_per_s = inf\n", "link.h2d_gb_per_s = inf: should be a finite number"),
        (OWN_LINK + "h2d_gb_per_s = nan\n", "link.h2d_gb_per_s = nan: should be a finite number"),
        (OWN_LINK, "link: h2d_gb_per_s or curve: give one of the two"),
        (OWN_LINK + "curve = [[10, 5], [5, 7]]\n", "link: curve: at 5 bytes: size must rise"),
        (
            OWN_LINK + "curve = [[10, 1], [20, 9]]\n",
            "link: curve: at 20 bytes: size must rise, and time must not fall",
        ),
        (OWN_LINK + "curve = [[10, 0]]\n", "link.curve.0.1 = 0: should be greater than"),
        ("what is this", "not a TOML file"),
        ("\udcff", "not a TOML file"),
        ("#" * 1_000_001, "more than 1000000 bytes"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(CatalogError) as caught:
        catalog.hardware(str(path))
    line = str(caught.value)
    assert line.startswith(f"{path}: {message}"), line
    assert "\n" not in line and len(line) < 400


def test_a_file_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"none\.toml: no such file or directory"):
        catalog.hardware(str(tmp_path / "none.toml"))
    (tmp_path / "dir.toml").mkdir()
    with pytest.raises(CatalogError, match="is a directory"):
        catalog.model(str(tmp_path / "dir.toml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("top_k = 9", "top_k = 9: more than n_experts = 4"),
        ("moe_first = 3", "moe_first = 3: must be below n_layers = 3"),
        ("moe_first = 1", "dense_intermediate: missing, and some layers are not MoE layers"),
        ("encoder_layers = 3", "encoder_layers = 3: must be below n_layers = 3"),
        (
            'native_precision = "bf61"',
            "native_precision: precision 'bf61': not in the catalog; did you mean bf16?",
        ),
        ("expert_matrices = 4", "expert_matrices = 4: should be 2 or 3"),
        ('attention_pattern = "fx"', "attention_pattern = 'fx': String should match pattern '^[fwsl-]+$'"),
        ('attention_pattern = "fw"', 'window: missing, and attention_pattern = "fw" has such layers'),
        ("moe_layer_list = [0, 3]", "moe_layer_list = [0, 3]: must be rising layers below n_layers = 3"),
        ("moe_layer_list = [1, 0]", "moe_layer_list = [1, 0]: must be rising layers below n_layers = 3"),
    ],
)
def test_a_bad_model_file_is_refused(tmp_path: Path, change: str, message: str) -> None:
    key, value = change.split(" = ")
    path = tmp_path / "bad.toml"
    path.write_text("\n".join(f"{k} = {v}" for k, v in (TINY_MODEL | {key: value}).items()))
    with pytest.raises(CatalogError) as caught:
        catalog.model(str(path))
    assert str(caught.value) == f"{path}: {message}"
