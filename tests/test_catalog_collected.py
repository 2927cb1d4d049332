"""The catalog against the collected facts, every figure that both have; they lie beside the checkout, or this skips."""

import json
from pathlib import Path
from typing import Any

import pytest

from sim import catalog
from sim.catalog.files import precision_bits, weight_bytes
from sim.catalog.hardware_spec import Gpu
from sim.catalog.model_spec import ModelSpec
from sim.errors import CatalogError
from tests.second_sources import CONFIGS, SAME_HOST, SAME_SSD, TABLE, spec

SHARED = Path(__file__).resolve().parents[2] / "shared"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the collected facts are not on this machine")
ROUNDED = 0.002  # as the sources round each other


def read(name: str) -> Any:
    return json.loads((SHARED / f"{name}.json").read_text())


def ours(kind: str, name: str) -> str | None:
    """The entry that a collected name stands for: its first word group, `SXM` of the only H200 left out."""
    try:
        return catalog.find(kind, name.split(" / ")[0].split(" (")[0].replace("H200 SXM", "H200"))
    except CatalogError:
        return None


def pairs(source: str, section: str, kind: str, least: int) -> list[tuple[str, dict[str, Any]]]:
    """(entry, collected record) of all that both have; at least so many."""
    found = [(name, record) for record in read(source)[section] if (name := ours(kind, record["name"]))]
    assert len(found) >= least
    return found


def agree(found: Any, value: Any, where: str, rel: float = ROUNDED) -> None:
    """A collected value: none, a range, a number (whole ones exactly), or anything else."""
    if value is None:
        return
    if isinstance(value, list):
        assert min(value) <= found <= max(value), where
    elif isinstance(value, float):
        assert found == pytest.approx(value, rel=rel), where
    else:
        assert found == value, where


# ---- models

SAME = ("n_layers", "n_moe_layers", "n_experts", "top_k", "hidden", "expert_intermediate", "n_shared_experts")
SAME += ("dense_intermediate", "expert_matrices", "expert_biases", "expert_params", "vocab", "shared_gate")
SAME += ("tied_embeddings", "native_precision", "routed_scaling_factor", "moe_step")
RENAMED = {  # ours: theirs, in the first collection or in the second
    "moe_first": ("first_k_dense", "first_moe_layer"),
    "norm_topk": ("norm_topk_prob",),
    "shared_intermediate": ("shared_intermediate_total",),
    "kv_bytes_per_token_per_layer": ("kv_bytes_per_token_per_layer_bf16", "kv_bytes_per_token_per_full_layer_bf16"),
    "linear_state_bytes": ("linear_state_bytes_per_layer",),
    "published_total_b": ("published_total_B",),
}
# what hardware.json counts otherwise: a hybrid's attention as if all of it were full, phi's without the last bias
RECOUNTED = {"qwen3-next-80b-a3b", "qwen3.6-35b-a3b", "phi-3.5-moe"}
# what the catalog leaves out of attention: norms of queries and keys (MLA: of both latents), attention sinks
LEFT_OUT = {"qwen3-30b-a3b": 2 * 128, "kimi-k2": 1536 + 512, "gpt-oss-20b": 64, "gpt-oss-120b": 64}


def agree_in_shape(model: ModelSpec, record: dict[str, Any]) -> None:
    words = {key: (key,) for key in SAME} | RENAMED
    for key, theirs in words.items():
        for word in theirs:
            agree(getattr(model, key), record.get(word), f"{model.name}: {word}")
    agree(model.n_routed * model.expert_params, record["routed_params"], f"{model.name}: routed_params")


def test_models_of_the_first_collection() -> None:
    for name, record in pairs("hardware", "models", "model", 21):
        model = catalog.model(name)
        agree_in_shape(model, record)
        agree(model.published_active_b, record.get("published_active_B"), f"{name}: published_active_B")
        assert model.router == record["router"]
        for precision, word in {"bf16": "bf16", "q8": "q8_0", "q4": "q4_4p5bpw", "fp32": "fp32"}.items():
            agree(model.expert_bytes(precision), record.get(f"expert_bytes_{word}"), f"{name}: {word}")
        if name not in RECOUNTED:
            agree(model.attn_params_per_layer, record["attn_params_per_layer"], f"{name}: attn_params_per_layer")


def test_models_of_the_second_collection() -> None:
    """Those with a configuration of their own here; of the others test_catalog_facts compares every figure."""
    for name, record in pairs("catalog_facts", "models", "model", 37):
        model, heads = catalog.model(name), record["attention"]
        table = TABLE if name == "qwen3.8-flash-next" else 0
        assert model.total_params == pytest.approx(record["total_params_computed"] - table, rel=4e-4)
        assert model.active_params == pytest.approx(record["active_params_computed"], rel=6e-3 if table else 3e-4)
        if name not in CONFIGS:
            continue
        agree_in_shape(model, record)
        latent = heads.get("kv_lora_rank")
        width = heads["head_dim"] if latent is None else latent + heads["qk_rope_head_dim"]
        assert (model.n_heads, model.qk_dim, model.v_dim) == (heads["n_heads"], width, latent or width), name
        left_out = LEFT_OUT.get(name, 0) * model.n_layers
        assert model.n_layers * model.attn_params_per_layer == sum_of_attention(model, record) - left_out, name


def sum_of_attention(model: ModelSpec, record: dict[str, Any]) -> int:
    """Attention of all layers: kinds that a model mixes differ only where some are linear."""
    by_kind = record["attn_params_per_layer_by_kind"]
    words = {"full": "full_attention", "window": "full_attention", "linear": "linear_attention"}
    return sum(by_kind[words[model.attention_kind(layer)]] for layer in range(model.n_layers))


# ---- GPUs


def test_gpus_of_the_first_collection() -> None:
    for name, record in pairs("hardware", "gpus", "gpu", 27):
        gpu: Gpu = spec("gpu", name)
        # the card was measured better where it says that it is another figure than the collected one
        agree(gpu.hbm_gb_per_s, None if "hbm_gb_per_s" in gpu.sources else float(record["hbm_gbs"]), f"{name}: hbm_gbs")
        agree(gpu.tflops["bf16"], record["tflops_bf16_dense"], f"{name}: tflops")
        agree(gpu.hbm_read_gb_per_s, record.get("read_measured_gbs"), f"{name}: read_measured_gbs")
        agree(gpu.slot, record["pcie"], f"{name}: pcie")
        middle = sum(record.get("launch_measured_us", record["kernel_launch_us"])) / 2
        assert gpu.kernel_launch_ns == 1000 * middle
        assert gpu.mem_mib is not None and 0.93 <= gpu.mem_mib / (1024 * record["mem_gb"]) <= 1


def test_gpus_of_the_second_collection() -> None:
    for name, record in pairs("catalog_facts", "gpus", "gpu", 44):
        gpu: Gpu = spec("gpu", name)
        agree(gpu.mem_mib, record.get("mem_total_mib_reported"), f"{name}: mem_total_mib_reported")
        visible = record.get("mem_cuda_visible_mib")
        agree(gpu.mem_cuda_mib, min(visible) if isinstance(visible, list) else visible, f"{name}: cuda")
        agree(gpu.hbm_gb_per_s, float(record["hbm_gbs"]), f"{name}: hbm_gbs")
        if record.get("tflops_bf16_dense") is not None:
            agree(gpu.tflops["bf16"], float(record.get("tflops_bf16_dense")), f"{name}: tflops", rel=0.01)
        if gpu.hbm_read_gb_per_s is not None:
            agree(gpu.hbm_read_gb_per_s, record.get("hbm_read_measured_gbs"), f"{name}: read")
        assert gpu.slot.startswith(record["pcie"])


def test_what_is_well_known_is_in_the_catalog() -> None:
    """Grades A and B all, but for links that have no rate, or are not a host's."""
    facts = read("catalog_facts")
    for section, kind in (("models", "model"), ("gpus", "gpu")):
        assert [r["name"] for r in facts[section] if r["confidence"] != "C" and ours(kind, r["name"]) is None] == []
    links = [r for r in facts["links"] if r["kind"] == "host" and r.get("h2d_gbs") and r["confidence"] != "C"]
    assert [r["name"] for r in links if ours("link", LINKS.get(r["name"], r["name"])) is None] == []
    known = {*SAME_HOST, *SAME_SSD}
    for section in ("hosts", "ssds"):
        rated = (r for r in facts[section] if any(r.get(key) is not None for key in RATES))
        assert [r["name"] for r in rated if r["confidence"] != "C" and not known & {r["name"], bare(r["name"])}] == []
    named = [
        r
        for r in facts["precisions"]
        if r.get("bits") and not set(r["name"].split()) & {"experts", "experts,", "whole"}
    ]
    assert [r["name"] for r in named if ours("precision", TYPES.get(r["name"], r["name"])) is None] == []


RATES = ("read_gbs", "peak_gbs", "random_19mb_direct_gbs", "buffered_gbs")
LINKS = {"pcie4x16_one_stream_sync": "pcie4x16-one-stream"}
TYPES = {
    "awq g128": "awq", "gptq int4 g128 (sym)": "gptq", "int4 gs64 (colibri)": "int4-g64",
    "fp8 block 128x128": "fp8-block", "ud-q4_k_m Qwen3.6-35B-A3B (unsloth)": "ud-q4-k-m",
}  # fmt: skip


def bare(name: str) -> str:
    return name.split(" (")[0]


def test_hosts_of_the_second_collection() -> None:
    found = [r for r in read("catalog_facts")["hosts"] if bare(r["name"]) in SAME_HOST]
    assert len(found) == len(SAME_HOST)
    for record in found:
        name = SAME_HOST[bare(record["name"])]
        host = spec("host", name)
        agree(host.sockets, record["sockets"], f"{name}: sockets")
        agree(host.read_gb_per_s, record["read_gbs"], f"{name}: read_gbs")
        agree(host.peak_gb_per_s, None if host.peak_gb_per_s is None else record["peak_gbs"], f"{name}: peak_gbs")
        if record.get("typical_capacity_gb") is not None:
            agree(host.ram_gb, float(min(record["typical_capacity_gb"])), f"{name}: typical_capacity_gb")
        if host.one_socket_gb_per_s is not None and record.get("numa"):
            assert str(host.one_socket_gb_per_s) in record["numa"]


def test_ssds() -> None:
    records = {(r["name"] if r["name"] in SAME_SSD else bare(r["name"])): r for r in read("catalog_facts")["ssds"]}
    for collected, names in SAME_SSD.items():
        record = records[collected]
        for name in names:
            rate = next(record[key] for key in RATES if record.get(key) is not None)
            agree(spec("ssd", name).h2d_gb_per_s, rate if isinstance(rate, list) else float(rate), name)
            assert record["pcie"] in ("n/a", f"{spec('ssd', name).gen}.0 x4")


# ---- links, hosts, engines, precisions


def test_links_of_the_first_collection() -> None:
    said = {"name", "gen", "lanes", "memory", "source", "h2d_gbs", "curve_bytes_gbs"}
    for name, record in pairs("hardware", "links", "link", 12):
        link = spec("link", name)
        assert (link.gen, link.lanes) == (record.get("gen"), record.get("lanes"))
        assert link.memory == record["memory"].split(",")[0].split("/")[0]
        agree(link.h2d_gb_per_s, record.get("h2d_gbs"), f"{name}: h2d_gbs")
        points = record.get("curve_bytes_gbs")
        assert link.curve == (points and tuple(tuple(map(float, point)) for point in points))
        assert link.facts == {key: value for key, value in record.items() if key not in said}
        if "t0_us" in record:
            assert link.setup_ns + link.per_copy_ns == 1000 * record["t0_us"]
    call = next(record for record in read("hardware")["links"] if record["name"] == "wsl2_small_memcpy_call")
    assert spec("link", "pcie5x16-wsl2-small-copies").per_copy_ns == 1000 * call["host_us"]


def test_links_of_the_second_collection() -> None:
    for name, record in pairs("catalog_facts", "links", "link", 16):
        link = spec("link", name)
        agree(link.gen, record.get("gen"), f"{name}: gen")
        agree(link.lanes, record.get("lanes"), f"{name}: lanes")
        agree(link.h2d_gb_per_s, record["h2d_gbs"], f"{name}: h2d_gbs")


def test_hosts() -> None:
    collected = {record["name"]: record for record in read("hardware")["host_memory"]}
    noted = {name: spec("host", name) for name in catalog.names("host")}
    for name, host in noted.items():
        if host.note not in collected:  # of the second collection, or Fiddler's constants
            continue
        record = collected.pop(host.note)
        assert (host.read_gb_per_s, host.peak_gb_per_s) == (record["read_gbs"], record["peak_gbs"]), name
    assert not collected
    constants = {record["model"]: record for record in read("hardware")["cpu_expert"]}
    fiddler, amx = constants["Mixtral bf16 expert, Fiddler code constants"], constants["KTransformers AMX peak"]
    size = weight_bytes(3 * 4096 * 14336, "bf16")
    assert noted["xeon-6126"].read_gb_per_s == pytest.approx(size / fiddler["cpu_ms"] / 1e6, rel=ROUNDED)
    assert noted["xeon-6454s"].tflops == noted["2x-xeon-6454s"].tflops / 2 == amx["tflops_bf16"]


def test_engines() -> None:
    said = {(record["runtime"], record["what"]): record["value"] for record in read("hardware")["runtime_overheads"]}
    llama, ktransformers = catalog.engine("llama.cpp"), catalog.engine("ktransformers")
    # these are all in all, weights included, so that the engine's own part lies below the largest
    assert llama.layer_ns < 1000 * max(said["llama.cpp all-in-VRAM", "per layer fixed, GQA models"])
    assert 61 * (ktransformers.mla_layer_ns or 0) < 1e6 * said["KTransformers DS-V3", "fixed per token"]
    of_layer = said["MoE-Infinity", "per layer Python/HF dispatch"]  # of DeepSeek-V2-Lite
    assert (catalog.engine("moe-infinity").mla_layer_ns or 0) < 1e6 * of_layer
    launches = said["imp (WSL2)", "per token launches/memcpys"]
    assert catalog.engine("imp-wsl2").step_ns == 1e6 * sum(launches) / 2


def test_a_layer_with_mla_takes_less_than_was_published_all_in_all() -> None:
    said = {(record["runtime"], record["what"]): record["value"] for record in read("hardware")["runtime_overheads"]}
    all_in_all = said["llama.cpp all-in-VRAM", "per layer, MLA model (DS-V2-Lite Q8)"]
    assert (catalog.engine("llama.cpp").mla_layer_ns or 0) < 1000 * max(all_in_all)


def test_precisions() -> None:
    for name, record in pairs("catalog_facts", "precisions", "precision", 26):
        if "block" in record:
            assert precision_bits(record["name"]) == record["bits"] == 8 * record["block"][1] / record["block"][0], name
    mixed = next(r for r in read("catalog_facts")["precisions"] if r["name"] == "q4_k_m experts")
    assert precision_bits("q4-k-m") == pytest.approx(mixed["bits"], rel=0.002)


def test_expert_sizes_and_rates_of_published_cases() -> None:
    cases = {case["id"]: case for case in read("published")["cases"]}
    mb = {name: catalog.model("mixtral-8x7b").expert_bytes(name) / 1e6 for name in ("hqq2", "hqq3", "bf16")}
    assert [mb["hqq2"], mb["hqq3"]] == pytest.approx(
        list(cases["eliseev-mazur-table2"]["expert_mb"].values()), rel=0.001
    )
    assert mb["bf16"] == pytest.approx(cases["fiddler-v3"]["expert_mb"], rel=0.001)
    kt = catalog.model("deepseek-v3").expert_bytes("q4-k-m") / 1e6
    assert kt == pytest.approx(cases["ktransformers-dsv3"]["expert_mb"], rel=0.001)
    assert spec("host", "xeon-6454s").peak_gb_per_s == pytest.approx(307, rel=ROUNDED)
    assert catalog.hardware("a5000").link.h2d_gb_per_s == pytest.approx(cases["moe-infinity"]["link_gbs"], rel=0.07)
