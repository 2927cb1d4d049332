"""Second sources of the catalog's figures, spelled another way than the catalog does.

A model is the config of its checkpoint, from which parameters and bytes follow; a GPU is bus and memory clock,
multiprocessors and boost clock; a link is the time of one lone copy; a host its memory channels; an engine's term the
sum that it came from; a precision the bytes of a block; a preset the slot of its card. `tests/test_catalog_facts.py`
compares. A new entry of the catalog needs its row here, written from its source and not from the catalog; or it stands
in the collected facts beside the checkout, from which its figures follow here by other words.
"""

import json
import re
import shlex
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sim import catalog, run
from sim.catalog.engine_spec import Engine
from sim.catalog.files import normal
from sim.catalog.hardware_spec import Gpu, Host
from sim.catalog.link_spec import Link
from sim.catalog.model_spec import ModelSpec
from sim.catalog.parts import Entry, build
from sim.flags import spec_of
from sim.spec import RunSpec

WORDS = {
    "name", "aliases", "source", "sources", "note", "router",
    "version", "does", "command", "sets", "options", "knob", "cpu_moe", "released",
}  # fmt: skip  # for the reader, and what an engine does: tests/test_engines.py
SPECS: dict[str, type[Entry]] = {"model": ModelSpec, "gpu": Gpu, "link": Link, "ssd": Link, "host": Host}
SPECS["engine"] = Engine
COLLECTED = Path(__file__).resolve().parents[2] / "shared" / "catalog_facts.json"

Figures = dict[str, Any]


def spec(kind: str, name: str) -> Any:
    return build(SPECS[kind], name, {"name": name, **catalog.entries(kind)[name]})


def figures(kind: str, name: str) -> Figures:
    """All that an entry says but words, its defaults included; a model's attention as a letter for each layer."""
    found = {key: value for key, value in spec(kind, name).model_dump().items() if key not in WORDS}
    if kind == "model":
        pattern, layers = found["attention_pattern"], found["n_layers"]
        found["attention_pattern"] = (pattern * layers)[:layers]
    return found


@cache
def collected(section: str) -> dict[str, Figures]:
    """The collected records of a section by their names without case, hyphens and what stands in brackets."""
    records = json.loads(COLLECTED.read_text())[section]
    return {normal(record["name"].split(" (")[0]): record for record in records}


def record_of(section: str, name: str, aliases: Collection[str] = ()) -> Figures:
    """The collected record of an entry; skips where the facts are not there. KeyError: it has no second source."""
    if not COLLECTED.is_file():
        pytest.skip(f"{name}: its second source, the collected facts, is not on this machine")
    records = collected(section)
    return next(records[normal(word)] for word in (name, *aliases) if normal(word) in records)


def defaults(kind: str, **given: Any) -> Figures:
    """The figures of an entry that gives these alone."""
    of = SPECS[kind].model_fields.items()
    fields = {name: field.get_default(call_default_factory=True) for name, field in of if name not in WORDS}
    assert given.keys() <= fields.keys()
    return fields | given


def table(text: str) -> dict[str, dict[str, str]]:
    """Rows of words under a row of column names, by their first word."""
    head, *rows = [line.split() for line in text.strip().splitlines()]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def number(word: str) -> float | None:
    return None if word == "-" else float(word)


# ---- models: configs of the checkpoints
# kv: KV heads of dim columns. k: experts of a token. ffn: width of an expert, shared: that of all shared ones in such
# widths. first: first MoE layer. score, norm: of the router. total, active: published, in 1e9 parameters.

CONFIGS = table("""
name                 layers hidden heads kv dim n_exp k  ffn   shared dense first vocab  score        norm total  active
mixtral-8x7b         32     4096   32    8  128 8     2  14336 0      0     0     32000  softmax      yes  46.7   12.9
mixtral-8x22b        56     6144   48    8  128 8     2  16384 0      0     0     32000  softmax      yes  140.6  39
deepseek-v2-lite     27     2048   16    -  -   64    6  1408  2      10944 1     102400 softmax      no   15.7   2.4
deepseek-v2          60     5120   128   -  -   160   6  1536  2      12288 1     102400 softmax      no   236    21
deepseek-v3          61     7168   128   -  -   256   8  2048  1      18432 3     129280 sigmoid      yes  671    37
deepseek-moe-16b     28     2048   16    16 128 64    6  1408  2      10944 1     102400 softmax      no   16.4   2.8
qwen1.5-moe-a2.7b    24     2048   16    16 128 60    4  1408  4      0     0     151936 softmax      no   14.3   2.7
qwen2-57b-a14b       28     3584   28    4  128 64    8  2560  8      0     0     151936 softmax      no   57.4   14.2
qwen3-30b-a3b        48     2048   32    4  128 128   8  768   0      0     0     151936 softmax      yes  30.5   3.3
qwen3-235b-a22b      94     4096   64    4  128 128   8  1536  0      0     0     151936 softmax      yes  235    22
qwen3-next-80b-a3b   48     2048   16    2  256 512   10 512   1      0     0     151936 softmax      yes  80     3
qwen3.6-35b-a3b      40     2048   16    2  256 256   8  512   1      0     0     248320 softmax      yes  35     3
olmoe-1b-7b          16     2048   16    16 128 64    8  1024  0      0     0     50304  softmax      no   6.92   1.3
phi-3.5-moe          32     4096   32    8  128 16    2  6400  0      0     0     32064  other        no   41.9   6.6
gpt-oss-20b          24     2880   64    8  64  32    4  2880  0      0     0     201088 softmax-topk yes  20.9   3.6
gpt-oss-120b         36     2880   64    8  64  128   4  2880  0      0     0     201088 softmax-topk yes  116.8  5.1
glm-4.5-air          46     4096   96    8  128 128   8  1408  1      10944 1     151552 sigmoid      yes  106.8  12
kimi-k2              61     7168   64    -  -   384   8  2048  1      18432 1     163840 sigmoid      yes  1026   32.6
switch-base-128      24     768    12    12 64  128   1  3072  0      3072  1     32128  softmax      -    7.5    -
switch-large-128     48     1024   16    16 64  128   1  4096  0      4096  1     32128  softmax      -    26.4   -
nllb-moe-54b         48     2048   16    16 128 128   2  8192  0      8192  3     256206 softmax      -    54.5   -
granite-3.0-1b-a400m 24     1024   16    8  64  32    8  512   0      0     0     49155  softmax-topk yes  1.3    0.4
tiny-moe             6      160    5     5  32  32    4  48    0      0     0     2048   softmax      yes  0.0054 -
tiny-moe-8           6      160    5     5  32  8     2  192   0      0     0     2048   softmax      yes  0.0054 -
""")
LATENT, ROTARY, HEAD = 512, 64, 128  # kv_lora_rank, qk_rope_head_dim, qk_nope_head_dim = v_head_dim of every MLA model
Q_RANK = {"deepseek-v2-lite": None, "deepseek-v2": 1536, "deepseek-v3": 1536, "kimi-k2": 1536}
ENCODERS = {"switch-base-128": 12, "switch-large-128": 24, "nllb-moe-54b": 24}
MOE_STEP = {"switch-base-128": 2, "switch-large-128": 2, "nllb-moe-54b": 4}
HYBRID = {"qwen3-next-80b-a3b", "qwen3.6-35b-a3b"}  # three layers of gated DeltaNet, then one of gated attention
# (letter of most layers, letter of the others, and which layers these are)
PLACES: dict[str, tuple[str, str, Collection[int]]] = {
    **dict.fromkeys(HYBRID, ("l", "f", range(3, 48, 4))),
    **dict.fromkeys(("gpt-oss-20b", "gpt-oss-120b"), ("w", "f", range(1, 36, 2))),
    **dict.fromkeys(("llama-4-scout-17b-16e", "llama-4-maverick-17b-128e"), ("w", "f", range(3, 48, 4))),
    **dict.fromkeys(("glm-5", "deepseek-v3.2"), ("s", "s", ())),
    "gemma-4-26b-a4b": ("w", "f", range(5, 30, 6)),
    "qwen3.5-122b-a10b": ("l", "f", range(3, 48, 4)),
    "qwen3.8-flash-next": ("l", "s", range(3, 48, 4)),
    "glm-5.3-flash": ("l", "s", range(3, 45, 4)),
    "deepseek-v4-flash": ("w", "s", range(3, 43, 2)),
    "granite-4.0-h-small": ("l", "f", range(5, 40, 10)),
    "lfm2-8b-a1b": ("l", "f", (2, 6, 10, 14, 18, 21)),
    "kimi-linear-48b-a3b": ("l", "f", range(3, 27, 4)),
    "mimo-v2-flash": ("w", "f", (0, *range(5, 48, 6))),
    "ling-3.0-flash": ("l", "f", range(5, 42, 6)),
}
OWN = {"tiny-moe", "tiny-moe-8"}  # this project's
TIED = {*ENCODERS, "granite-3.0-1b-a400m", *OWN}
GATED_SHARED = {"qwen1.5-moe-a2.7b", "qwen2-57b-a14b", *HYBRID}
ONE_WIDE_SHARED = {"qwen1.5-moe-a2.7b", "qwen2-57b-a14b"}  # 4 and 8 times as wide as an expert, but one
BIASES = {"qwen1.5-moe-a2.7b": "qkv", "qwen2-57b-a14b": "qkv", "glm-4.5-air": "qkv", "phi-3.5-moe": "qkvo"}
BIASES |= {"gpt-oss-20b": "qkvo", "gpt-oss-120b": "qkvo"}
NATIVE = {"gpt-oss-20b": "mxfp4", "gpt-oss-120b": "mxfp4", "deepseek-v3": "fp8", "kimi-k2": "fp8"}
NATIVE |= dict.fromkeys(ENCODERS, "fp32")
SCALING = {"deepseek-v2": 16.0, "deepseek-v3": 2.5, "kimi-k2": 2.827}


def attention(name: str, hidden: int, q: int, kv: int, dim: int) -> int:
    """Parameters of attention with separate heads: q and kv columns of queries, and of keys or values."""
    norms = 2 * dim if name in HYBRID | OWN else 0  # of queries and keys, where the catalog counts them
    queries = 2 * q if name in HYBRID else q  # and a gate for every column
    biases = {"qkv": q + 2 * kv, "qkvo": q + 2 * kv + hidden, "": 0}[BIASES.get(name, "")]
    full = hidden * (queries + 2 * kv) + q * hidden + norms + biases
    return (3 * delta_net(hidden) + full) // 4 if name in HYBRID else full


def delta_net(hidden: int, keys: int = 16, values: int = 32, dim: int = 128) -> int:
    """Parameters of a gated DeltaNet layer: queries, keys, values, output gate; beta and alpha; a convolution over four
    tokens; A and dt of every value head; the norm; the output."""
    key, value = keys * dim, values * dim
    return (
        hidden * (2 * key + 2 * value) + hidden * 2 * values + 4 * (2 * key + value) + 2 * values + dim + value * hidden
    )


def latent_attention(hidden: int, heads: int, q_rank: int | None) -> int:
    """Parameters of MLA without its norms."""
    queries = heads * (HEAD + ROTARY)
    of_queries = hidden * queries if q_rank is None else q_rank * (hidden + queries)
    return of_queries + hidden * (LATENT + ROTARY) + LATENT * heads * 2 * HEAD + heads * HEAD * hidden


def pattern(name: str, layers: int) -> str:
    """A letter for each layer."""
    most, other, places = PLACES.get(name, ("f", "f", ()))
    return "".join(other if i in places else most for i in range(layers))


# what the records say in words, or count elsewhere
WINDOWS = {name: 8192 for name in PLACES if name.startswith("llama-4")}  # chunks
WINDOWS |= dict.fromkeys(("glm-5", "deepseek-v3.2", "glm-5.3-flash", "qwen3.8-flash-next"), 2048)  # tokens of an index
WINDOWS["deepseek-v4-flash"] = 128 + 512
INDEX_KEY = 2 * 128  # bytes
# parameters of residual streams in a layer, which count as attention here
MIXERS = {"qwen3.8-flash-next": 2 * 6_604_800 - 2 * 2560}  # 13.2 M
MIXERS |= dict.fromkeys(("glm-5.3-flash", "deepseek-v4-flash"), 794_678 - 2 * 4096)
TABLE = 51_200_245_760  # n-gram table of qwen3.8-flash-next
LETTERS = {"M": "l", "E": "-", "*": "f"}  # of nemotron's pattern
KINDS = {
    **dict.fromkeys(("full_attention", "attention"), "full"), "indexed_attention": "sparse", "mamba": "linear",
    **dict.fromkeys(("chunked_attention", "sliding_attention", "heavily_compressed_attention"), "window"),
    **dict.fromkeys(("linear_attention", "conv"), "linear"), "compressed_sparse_attention": "sparse",
}  # fmt: skip


def collected_model(name: str) -> Figures:
    """From its record: counts of the class built from the checkpoint's configuration."""
    record = record_of("models", name)
    heads, layers, hidden = record["attention"], record["n_layers"], record["hidden"]
    letters = pattern(name, layers)
    more: Figures = {"moe_first": record["first_moe_layer"] or 0, "moe_step": record["moe_step"]}
    if "pattern" in heads and "mamba2" in heads["kind"]:
        letters = "".join(LETTERS[letter] for letter in heads["pattern"].split()[0])
        more = {"moe_layer_list": tuple(i for i, letter in enumerate(letters) if letter == "-")}
    by_kind = record["attn_params_per_layer_by_kind"].items()
    params = {KINDS[kind]: count + MIXERS.get(name, 0) for kind, count in by_kind}
    usual = params.get("full", params.get("sparse", 0))
    latent = heads.get("kv_lora_rank") or (heads["head_dim"] if "mqa" in heads["kind"] else None)
    wide = heads.get("full_head_dim", heads.get("head_dim"))
    if latent is not None:
        more |= {"attention": "mla", "qk_dim": latent + heads.get("qk_rope_head_dim", 0), "v_dim": latent}
    else:
        more |= {"qk_dim": wide, "v_dim": wide if "full_head_dim" in heads else heads.get("v_head_dim", wide)}
    entry = record["kv_bytes_per_token_per_full_layer_bf16"]
    if name == "gemma-4-26b-a4b":  # the record's is that of a window layer
        entry, more["window_kv_bytes_per_token_per_layer"] = 2 * 2 * 2 * 512, entry
    if name == "mimo-v2-flash":
        more["window_kv_bytes_per_token_per_layer"] = 2 * 8 * (192 + 128)
    if "s" in letters:
        more["index_bytes_per_token"] = INDEX_KEY // 4 if name == "deepseek-v4-flash" else INDEX_KEY
    state = 3 * hidden * 2 if name == "lfm2-8b-a1b" else record["linear_state_bytes_per_layer"] or 0
    router = record["router"]
    words = ("top-k on logits, then softmax", "softmax", "sigmoid")
    score = next((word for word in words if word in router), "other").replace(words[0], "softmax-topk")
    total = 125 if name == "qwen3.8-flash-next" else record["published_total_B"]
    return defaults(
        "model",
        **{key: record[key] for key in ("n_layers", "n_experts", "top_k", "hidden", "expert_intermediate", "vocab")},
        **{key: record[key] for key in ("expert_matrices", "expert_biases", "n_shared_experts", "shared_gate")},
        shared_intermediate=record["shared_intermediate_total"] or 0,
        dense_intermediate=(record["dense_intermediate"] or 0) if record["n_moe_layers"] < layers else None,
        attn_params_per_layer=usual,
        attn_params_by_kind={kind: count for kind, count in params.items() if count != usual},
        kv_bytes_per_token_per_layer=entry,
        n_heads=heads["n_heads"],
        attention_pattern=letters,
        window=heads.get("window") if name not in WINDOWS else WINDOWS[name],
        linear_state_bytes=state,
        tied_embeddings=record["tied_embeddings"],
        score_function=score,
        norm_topk=record["norm_topk_prob"],
        routed_scaling_factor=record["routed_scaling_factor"],
        native_precision=(record["native_precision"] or "bf16").split()[0],
        published_total_b=total,
        published_active_b=record["published_active_B"],
        **more,
    )


def model_figures(name: str) -> Figures:
    if name not in CONFIGS:
        return collected_model(name)
    row = CONFIGS[name]
    layers, hidden, heads, width = (int(row[key]) for key in ("layers", "hidden", "heads", "ffn"))
    more: Figures = {}
    if name in Q_RANK:
        more = {"attention": "mla", "qk_dim": LATENT + ROTARY, "v_dim": LATENT}
        params, entry = latent_attention(hidden, heads, Q_RANK[name]), LATENT + ROTARY
    else:
        dim, kv = int(row["dim"]), int(row["kv"]) * int(row["dim"])
        more = {"qk_dim": dim, "v_dim": dim}
        params, entry = attention(name, hidden, heads * dim, kv, dim), 2 * kv
    if name in HYBRID:  # recurrent state in fp32, and three tokens of the convolution in bf16
        more |= {"linear_state_bytes": 32 * 128 * 128 * 4 + 3 * (2 * 2048 + 4096) * 2}
    if name.startswith("gpt-oss"):
        more |= {"expert_biases": 3 * 2880, "window": 128}
    if name in ENCODERS:
        more |= {"encoder_layers": ENCODERS[name], "expert_matrices": 2, "cross_attn_params_per_layer": params}
    shared = int(row["shared"])
    return defaults(
        "model",
        n_layers=layers,
        moe_first=int(row["first"]),
        moe_step=MOE_STEP.get(name, 1),
        n_experts=int(row["n_exp"]),
        top_k=int(row["k"]),
        hidden=hidden,
        expert_intermediate=width,
        n_shared_experts=min(shared, 1) if name in ONE_WIDE_SHARED else shared,
        shared_intermediate=shared * width,
        shared_gate=name in GATED_SHARED,
        dense_intermediate=int(row["dense"]) or None,
        attn_params_per_layer=params,
        kv_bytes_per_token_per_layer=2 * entry,
        n_heads=heads,
        attention_pattern=pattern(name, layers),
        vocab=int(row["vocab"]),
        tied_embeddings=name in TIED,
        score_function=row["score"],
        norm_topk={"yes": True, "no": False, "-": None}[row["norm"]],
        routed_scaling_factor=SCALING.get(name, 1.0),
        native_precision=NATIVE.get(name, "bf16"),
        published_total_b=number(row["total"]),
        published_active_b=number(row["active"]),
        **more,
    )


# ---- GPUs: bus and memory clock, multiprocessors and boost clock
# Gbit: of one pin of the bus. flop: dense fp16 or bf16 operations of a multiprocessor and clock. read: measured, GB/s.

GPUS = table("""
name            GiB mib    cuda   bus  Gbit  SMs flop GHz   slot   read
rtx-3060        12  12288  12022  192  15    28  512  1.777 4.0x16 -
rtx-3080-mobile 16  16384  -      256  14    48  512  1.545 4.0x16 -
rtx-3090        24  24576  24121  384  19.5  82  512  1.695 4.0x16 856
rtx-4060        8   8188   -      128  17    24  512  2.460 4.0x8  -
rtx-4070        12  12282  -      192  21    46  512  2.475 4.0x16 -
rtx-4080        16  16376  -      256  22.4  76  512  2.505 4.0x16 -
rtx-4090        24  24564  24080  384  21    128 512  2.520 4.0x16 -
rtx-5070        12  12227  -      192  28    48  512  2.512 5.0x16 -
rtx-5070-ti     16  16303  15842  256  28    70  512  2.452 5.0x16 -
rtx-5090        32  32607  32089  512  28    170 512  2.407 5.0x16 1690.6
t4              16  15360  14912  256  10    40  1024 1.590 3.0x16 -
a10             24  23028  22589  384  12.5  72  1024 1.695 4.0x16 -
l4              24  23034  22559  192  12.5  58  1024 2.040 4.0x16 -
a5000           24  24564  -      384  16    64  1024 1.695 4.0x16 -
a6000           48  49140  -      384  16    84  1024 1.800 4.0x16 -
rtx-6000-ada    48  49140  -      384  20    142 1024 2.505 4.0x16 -
quadro-rtx-6000 24  24220  -      384  14    72  1024 1.770 3.0x16 -
a100-40gb       40  40960  40326  5120 2.43  108 2048 1.410 4.0x16 -
a100-80gb-pcie  80  81920  -      5120 3.024 108 2048 1.410 4.0x16 -
a100-80gb-sxm   80  81920  81151  5120 3.186 108 2048 1.410 4.0x16 1762
h100-pcie       80  81559  -      5120 3.186 114 4096 1.620 5.0x16 -
h100-sxm        80  81559  81081  5120 5.235 132 4096 1.830 5.0x16 -
h200            141 143771 143073 6144 6.25  132 4096 1.830 5.0x16 -
gh200           96  97871  -      6144 5.21  132 4096 1.830 C2C    3738
l40s            48  46068  45467  384  18    142 1024 2.490 4.0x16 -
rtx-pro-6000    96  97887  97249  512  28    188 1024 2.617 5.0x16 -
gtx-1080-ti     11  11264  11172  352  11    28  256  1.582 3.0x16 -
""")

# of machines with one memory, whose records have no rate: cores or multiprocessors, operations of each, GHz
ONE_MEMORY = {
    "gb10": (48, 512, 2.418), "apple-m1-max": (32, 256, 1.296), "apple-m2-max": (38, 256, 1.398),
    "apple-m2-ultra": (76, 256, 1.398), "apple-m3-max": (40, 256, 1.38), "apple-m3-ultra": (80, 256, 1.38),
    "apple-m4": (10, 256, 1.578), "apple-m4-max": (40, 256, 1.578), "apple-m5-max": (40, 1024, 1.578),
}  # fmt: skip
ALSO = {"r9700": ("radeon-ai-pro-r9700",), "rtx-3080": ("rtx-3080-10gb",)}
ALSO |= {name: (f"{name}-16gb",) for name in ("rtx-4060-ti", "rtx-5060-ti")}


def collected_gpu(name: str) -> Figures:
    record = record_of("gpus", name, ALSO.get(name, ()))
    sold, reported, shown = (
        record.get(f"mem_{key}") for key in ("gb_nominal", "total_mib_reported", "cuda_visible_mib")
    )
    if isinstance(sold, list):
        sold = sold[0 if name == "apple-m4" else 1]
    if name == "p40":
        sold = sold * 15 / 16  # ECC
    mib = reported or round(1024 * sold)
    if name.startswith("apple"):
        of = next(iter((record.get("metal_working_set_mb") or {"": None}).values()))
        shown = 3 * mib // 4 if of is None else int(of * 1e6 / 2**20)
    rate, read = record.get("tflops_bf16_dense"), record.get("hbm_read_measured_gbs")
    if name in ONE_MEMORY:
        cores, operations, ghz = ONE_MEMORY[name]
        rate = cores * operations * ghz / 1000
    return {
        "tflops": {"bf16": pytest.approx(rate or record["fp32_tflops"], rel=0.01)},
        "hbm_gb_per_s": record["hbm_gbs"],
        "slot": record["pcie"],
        "mem_mib": mib,
        "mem_cuda_mib": min(shown) if isinstance(shown, list) else shown,
        "hbm_read_gb_per_s": min(read) if isinstance(read, list) else read,
    }


# ---- links: what one lone small copy takes (t0), and how much of it comes back with each copy

LINKS = table("""
name                            gen lanes memory   GB/s  t0_us copy_us
pcie3x16-pinned                 3   16    pinned   12.15 6.6   1
pcie3x16-pageable               3   16    pageable 5.5   6.6   1
pcie3x16-pageable-curve         3   16    pageable -     0     0
pcie3x16-numa-remote            3   16    pinned   3.78  6.6   1
pcie4x16-pinned                 4   16    pinned   25.5  8     1
pcie4x8-pinned                  4   8     pinned   12.6  8     1
pcie5x16-pinned                 5   16    pinned   56.3  2     1
pcie5x16-5090-desktop-sync      5   16    pinned   -     0     0
pcie5x16-5090-desktop-pipelined 5   16    pinned   57.2  1     1
pcie5x16-wsl2-pageable-864kib   5   16    pageable 9.6   0     0
pcie5x16-wsl2-pinned-864kib     5   16    pinned   32.4  0     0
nvlink-c2c-gh200                -   -     pinned   346   2     1
pcie4x16-pageable               4   16    pageable 10.0  8     1
pcie5x16-pageable               5   16    pageable 10.0  2     1
pcie4x8-pageable                4   8     pageable 5.7   8     1
pcie5x16-wsl2-small-copies      5   16    pinned   32.4  21    21
pcie4x16-one-stream             4   16    pinned   19.0  0     0
pcie4x16-pinned-a10             4   16    pinned   25.17 8     1
pcie3x16-pageable-laptop        3   16    pageable 3.22  6.6   1
pcie5x16-pinned-7-gpus          5   16    pinned   55.6  2     1
gb10-h2d                        -   -     pinned   24.83 2     1
pcie4x4-oculink                 4   4     pinned   6.6   8     1
thunderbolt5-egpu               4   4     pinned   5.6   8     1
thunderbolt4-egpu               3   4     pinned   2.8   6.6   1
pcie3x4-pinned                  3   4     pinned   3.04  6.6   1
pcie5x8-pinned                  5   8     pinned   28.1  2     1
pcie5x8-pageable                5   8     pageable 10.0  2     1
pcie5x16-h100-sm-copy           5   16    pinned   35.2  2     1
wsl2-pinned-small               -   -     pinned   26.7  50    0
wsl2-pageable-small             -   -     pageable 9.5   25    0
""")
KIB, MIB = 1024.0, 1024.0**2
CURVES = {
    "pcie3x16-pageable-curve": {
        4.0: 0.0006, 4 * KIB: 0.593, 64 * KIB: 2.95, 256 * KIB: 5.56, MIB: 6.41, 4 * MIB: 9.87, 16 * MIB: 11.44,
        64 * MIB: 8.67, 1024 * MIB: 8.32,
    },
    "pcie5x16-5090-desktop-sync": {MIB: 31.05, 4 * MIB: 31.73, 16 * MIB: 38.46, 64 * MIB: 46.86, 256 * MIB: 55.02},
}  # fmt: skip
GT_PER_S = {3: 8, 4: 16, 5: 32}
# other figures of the same measurements; "theoretical" is beside the law of the lanes below
FACTS: dict[str, Figures] = {
    "pcie3x16-pinned": {
        "theoretical_gbs": 15.75, "d2h_gbs": 12.89, "range_gbs": [11, 13.2], "n_half_bytes": 80_000, "t0_us": 6.6,
    },
    "pcie3x16-pageable": {"range_gbs": [5.0, 6.0]},
    "pcie3x16-numa-remote": {"d2h_gbs": 2.54},
    "pcie4x16-pinned": {
        "theoretical_gbs": 31.5, "d2h_gbs": 26.7, "range_gbs": [22.9, 26.4], "n_half_bytes": 200_000, "t0_us": 8,
        "bidirectional_h2d_gbs": [11, 16], "bidirectional_d2h_gbs": [24, 25.5],
    },
    "pcie5x16-pinned": {
        "theoretical_gbs": 63, "d2h_gbs": 57.3, "n_half_bytes": 160_000, "t0_us": 2,
        "bidirectional_h2d_gbs": 50.9, "bidirectional_d2h_gbs": 50.9,
    },
    "pcie5x16-5090-desktop-sync": {"d2h_curve_gbs": [55.7, 57.0, 57.3, 57.4, 57.4]},
    "pcie5x16-5090-desktop-pipelined": {
        "t0_us": 1, "chunk_2MB_gbs": 54.2, "zero_copy_gbs": [48.9, 53],
        "fetch_us": {"2.86MB x1/x2/x4": [51.4, 102, 203.3], "13.25MB x1/x2/x4": [231.2, 461.6, 923.3]},
    },
    "pcie5x16-wsl2-pageable-864kib": {"host_us": 76.2, "gpu_us": 92.3},
    "pcie5x16-wsl2-pinned-864kib": {"host_us": 2.8, "gpu_us": 27.3},
    "nvlink-c2c-gh200": {
        "theoretical_gbs": 450, "sm_copy_gbs": 342, "measured_other_gbs": 337, "d2h_note": "about 15 % below H2D",
    },
    "pcie4x16-one-stream": {"range_gbs": [18.3, 19.7], "first_copy_gbs": 14.86},
    "pcie3x16-pageable-laptop": {"d2h_gbs": 3.0},
    "pcie5x16-pinned-7-gpus": {"d2h_gbs": 57.29},
    "pcie4x4-oculink": {"theoretical_gbs": 7.88, "d2h_gbs": 6.7},
    "thunderbolt5-egpu": {"d2h_gbs": 5.8},
    "thunderbolt4-egpu": {"theoretical_gbs": 3.94},
    "pcie3x4-pinned": {"theoretical_gbs": 3.94},
    "pcie5x8-pinned": {"theoretical_gbs": 31.5},
    "pcie5x16-h100-sm-copy": {"d2h_gbs": 52.8},
    "wsl2-pinned-small": {"curve_bytes_us": [[2**18, 63.4], [2**19, 69.7], [2**20, 89.3]]},
    "wsl2-pageable-small": {"curve_bytes_us": [[2**18, 52.6], [2**19, 79.7], [2**20, 135.0]]},
}  # fmt: skip


# ---- hosts: memory channels (of all sockets), MT/s, 8 bytes each (LPDDR: 64 bits are one); GB of memory; sockets, GB/s
# of one of them; cores; one thread beside Zen 4

HOSTS = table("""
name               channels MT/s read   total peak   tflops ram  sockets one   cores thread
desktop-ddr5       2        6000 62.3   75    -      -      64   1       -     -     1
xeon-8452y         8        4800 220    -     -      -      -    1       -     36    0.7
epyc-9374f         12       4800 185    -     -      -      384  1       -     32    0.85
2x-epyc-9654       24       4800 679    -     -      -      768  2       360   192   0.75
2x-epyc-9175f      24       6000 754    -     -      -      768  2       378   32    0.85
epyc-9355          12       6400 500    -     -      -      384  1       -     32    0.8
2x-epyc-9355       24       6400 947    -     1228   -      768  2       473.5 64    0.8
lambda-a10         8        3200 152.2  -     -      -      -    1       -     -     0.7
lambda-a100        8        3200 120    -     204.8  -      -    1       -     -     0.7
grace              -        -    316    -     -      -      480  1       -     72    0.75
ddr4-8ch           8        3200 100    -     -      -      256  1       -     -     0.65
xeon-6454s         8        4800 177    -     307.2  21     1000 1       -     32    0.7
2x-xeon-6454s      16       4800 349    -     614.4  42     1000 2       177   64    0.7
threadripper-7960x 4        5200 95.7   -     166.4  -      128  1       -     24    1
xeon-6126          6        2666 50.3   -     -      0.0503 -    1       -     -     0.55
i9-10900k          2        4000 57     -     64     -      16   1       -     10    0.8
7950x-4-dimms      2        3600 -      -     57.6   -      128  1       -     16    1
core-ultra-270k    2        6400 95     -     102.4  -      32   1       -     24    1
lunar-lake         2        8533 105    -     136.5  -      16   1       -     8     0.8
ddr4-7-of-8ch      7        3200 69.8   -     179.2  -      -    1       -     -     0.65
2x-epyc-7452       16       2666 226.2  -     341.2  -      512  2       113.4 64    0.55
epyc-milan         8        3200 189    -     204.8  -      256  1       -     -     0.65
epyc-genoa         12       4800 378    -     460.8  -      384  1       -     -     0.75
2x-epyc-9135       24       6400 -      -     1228.8 -      1152 2       -     32    0.85
2x-xeon-4510       4        4400 110.78 -     140.8  -      256  2       62.84 24    0.7
2x-xeon-e5-2630-v4 8        2133 93.6   -     136.5  -      -    2       -     20    0.5
gb10-cpu           4        8533 -      -     273    -      128  1       -     20    0.8
strix-halo-cpu     4        8000 -      -     256    -      128  1       -     16    0.8
ddr4-2400-dual     2        2400 -      -     38.4   -      32   1       -     8     0.8
ddr4-2666-dual     2        2666 -      -     42.656 -      32   1       -     8     0.8
ddr4-2933-dual     2        2933 -      -     46.928 -      32   1       -     8     0.8
ddr4-3200-dual     2        3200 -      -     51.2   -      32   1       -     8     0.8
ddr4-3600-dual     2        3600 -      -     57.6   -      32   1       -     8     0.8
ddr5-4800-dual     2        4800 -      -     76.8   -      32   1       -     16    1
ddr5-5200-dual     2        5200 -      -     83.2   -      32   1       -     16    1
ddr5-5600-dual     2        5600 -      -     89.6   -      48   1       -     16    1
ddr5-6000-dual     2        6000 -      -     96     -      64   1       -     16    1
ddr5-6400-dual     2        6400 -      -     102.4  -      32   1       -     16    1
ddr4-3200-4ch      4        3200 -      -     102.4  -      64   1       -     16    0.8
ddr5-4800-4ch      4        4800 -      -     153.6  -      128  1       -     24    1
ddr5-5600-4ch      4        5600 -      -     179.2  -      128  1       -     24    1
ddr4-2666-6ch      6        2666 -      -     127.968 -     192  1       -     16    0.55
ddr4-3200-8ch      8        3200 -      -     204.8  -      256  1       -     32    0.65
ddr5-4800-8ch      8        4800 -      -     307.2  -      256  1       -     32    0.7
ddr5-5600-8ch      8        5600 -      -     358.4  -      256  1       -     32    0.7
ddr5-4800-12ch     12       4800 -      -     460.8  -      384  1       -     48    0.75
ddr5-6400-12ch     12       6400 -      -     614.4  -      384  1       -     64    0.8
""")
COLUMNS = {
    "read_gb_per_s": "read", "total_gb_per_s": "total", "peak_gb_per_s": "peak", "tflops": "tflops", "ram_gb": "ram",
    "sockets": "sockets", "one_socket_gb_per_s": "one", "cores": "cores", "single_thread": "thread",
}  # fmt: skip
# the collected names of hosts that have another here
SAME_HOST = {
    "desktop DDR4-4000 dual": "i9-10900k", "desktop DDR5-3600 dual, 4 DIMMs": "7950x-4-dimms",
    "desktop DDR5-6000 dual": "desktop-ddr5", "desktop DDR5-6400 dual": "core-ultra-270k",
    "laptop LPDDR5X-8533": "lunar-lake", "Threadripper 7960X 4ch DDR5-5200": "threadripper-7960x",
    "8-channel DDR4-3200 workstation/EPYC, all channels": "ddr4-8ch", "same, one channel empty": "ddr4-7-of-8ch",
    "2x EPYC Rome 7452 DDR4-2666": "2x-epyc-7452", "EPYC Milan, 1 socket DDR4-3200": "epyc-milan",
    "EPYC Genoa, 1 socket DDR5-4800": "epyc-genoa", "EPYC Turin 9355, 1 socket": "epyc-9355",
    "2x EPYC Turin 9355": "2x-epyc-9355", "2x EPYC Turin 9135 DDR5-6400": "2x-epyc-9135",
    "2x Xeon Silver 4510, 2 of 8 channels each, DDR5-4400": "2x-xeon-4510",
    "2x Xeon E5-2630 v4 DDR4-2133": "2x-xeon-e5-2630-v4",
}  # fmt: skip


# ---- SSDs: GB/s of direct random reads of 19 MB, or buffered, or sequential

PHISON_US = (134, 247)  # 64 and 256 KiB, one at a time
SSDS: dict[str, tuple[float, int | None]] = {  # GB/s, generation of PCIe
    "samsung-980-pro": ((2.5 + 5.9) / 2, 4), "samsung-990-pro": (6.29, 4), "samsung-9100-pro": (9.77, 5),
    "wd-sn8100": (10.64, 5), "crucial-p3": (1.51, 3), "crucial-p310": (4.4, 4), "optane-905p": (3.27, 3),
    "gb10-internal": (5.58, 4), "phison-e27t": (6.4, 4), "wsl2-vhdx": (2.74, None), "raid-z1-vm": (1, None),
    "laptop-nvme": (1.53, 4), "laptop-nvme-4800h": (1.37, 3), "apple-m1-max": (4.4, None),
    "apple-m1-ultra": (6.89, None), "apple-m3": (3.18, None), "apple-m4-pro": (6.59, None), "apple-m5-max": (4, None),
    "azure-d128ads-v7": (17.9, None), "azure-e64ads-v7": (9, None), "azure-e64pds-v6": (2.5, None),
    "plextor-m9pegn": (1.8, 3),
}  # fmt: skip
QUEUES = [1, 4, 16, 64, 128, 256]
SSD_FACTS: dict[str, Figures] = {
    "samsung-980-pro": {"range_gbs": [2.5, 5.9], "buffered_gbs": 10.02},
    "samsung-990-pro": {"range_gbs": [5.87, 6.7], "buffered_gbs": [4.88, 5.78]},
    "samsung-9100-pro": {"range_gbs": [8.05, 11.48]},
    "phison-e27t": {
        "curve_64k_qd_gbs": [list(p) for p in zip(QUEUES, (0.49, 1.05, 3.06, 3.87, 3.9, 3.64), strict=True)],
        "curve_256k_qd_gbs": [list(p) for p in zip(QUEUES, (1.06, 2.35, 5.22, 5.84, 5.88, 5.77), strict=True)],
    },
    "wsl2-vhdx": {"buffered_gbs": 1.96},
    "laptop-nvme": {"buffered_gbs": 3.32},
    "laptop-nvme-4800h": {"buffered_gbs": 1.65},
    "apple-m1-max": {"buffered_gbs": [7.27, 8.93]},
    "apple-m5-max": {"buffered_gbs": 14.2},
    "azure-e64pds-v6": {"range_gbs": [2.5, 10.2]},
}
SAME_SSD = {
    "Samsung 980 PRO": ["samsung-980-pro"], "Samsung 990 PRO": ["samsung-990-pro"],
    "Samsung 9100 PRO": ["samsung-9100-pro"], "WD Black SN8100": ["wd-sn8100"], "Crucial P3 QLC": ["crucial-p3"],
    "Crucial P310": ["crucial-p310"], "Intel Optane 905p": ["optane-905p"], "GB10 internal": ["gb10-internal"],
    "Phison PS5027-E27T 1 TB": ["phison-e27t"], "WSL2 VHDX on NVMe": ["wsl2-vhdx"],
    "TrueNAS VM RAID-Z1": ["raid-z1-vm"],
    "Laptop NVMe (Ryzen AI 365, Windows)": ["laptop-nvme"], "Laptop NVMe (Ryzen 4800H)": ["laptop-nvme-4800h"],
    "Apple internal M1 Ultra / M3 / M4 Pro / M1 Max": ["apple-m1-max", "apple-m1-ultra", "apple-m3", "apple-m4-pro"],
    "Apple M5 Max internal": ["apple-m5-max"], "plextor M9PeGN 512 GB": ["plextor-m9pegn"],
    "4x NVMe RAID0, Azure D128ads v7": ["azure-d128ads-v7"], "4x NVMe RAID0, Azure E64ads v7": ["azure-e64ads-v7"],
    "4x NVMe RAID0, Azure E64pds v6 Arm": ["azure-e64pds-v6"],
}  # fmt: skip


# ---- engines: what they are, and the constants that published speeds tell

OPERATION = 20  # us of one PyTorch elementwise operation
CONTEXT = 300  # MiB of a CUDA context
WORK = ("layer_ns", "mla_layer_ns", "expert_ns", "transfer_ns", "step_ns")  # of one host thread, in Python
COMPILED: Figures = {"dispatch": "compiled"}
FUSED = COMPILED | {"expert_group": "all", "dense_precision": "experts", "head_precision": "q6"}
LLAMA = FUSED | {
    "copies_per_expert": 3, "page_locked": False, "reserve_mib": 1024 + CONTEXT, "buffered_logits": True,
    "stored_beside": {"mxfp4": "q8"}, "host_copy": False,
}  # fmt: skip
PYTHON: Figures = {"dispatch": "python", "host_work": WORK}
TRANSFORMERS = PYTHON | {  # three matrices, activation, product an expert
    "expert_ns": 1000 * 5 * OPERATION,
    "page_locked": False,
}
HF = TRANSFORMERS | {"host_copy": False, "copies_per_expert": 2, "reserve_mib": CONTEXT, "memory_share": 0.9}
INFINITY = PYTHON | {"reserve_mib": CONTEXT, "memory_share": 0.75}
PLAIN = COMPILED | {"reserve_mib": CONTEXT}
VLLM = PLAIN | {"host_copy": False, "expert_group": "all", "memory_share": 0.92}
TOKEN = PLAIN | {"expert_group": "ready"}
IMP = COMPILED | {"copies_per_expert": 3, "page_locked": False}
ENGINES: dict[str, Figures] = {
    "ideal": {},
    "fused": FUSED,
    "llama.cpp": LLAMA,
    "llama.cpp-no-mmap": LLAMA | {"page_locked": True},
    "ik_llama.cpp": LLAMA | {"page_locked": True, "copies_per_expert": 2},
    "llama.cpp+cache": LLAMA | {"host_copy": True},
    "llama.cpp+pool": LLAMA | {"reserve_mib": 3 * 1024 + CONTEXT, "host_copy": True},
    "hf-v5": HF,
    "hf-v4": HF | {"copies_per_expert": 3},
    "moe-infinity": INFINITY,
    "moe-infinity-paper": INFINITY,
    "pre-gated": COMPILED,
    "mixtral-offloading": PYTHON | {"write_back": True, "staging_experts": 4},
    "mixtral-offloading-without-cache": PYTHON | {"staging_experts": 4},
    "fiddler": TRANSFORMERS | {"memory_share": 0.95},
    "ktransformers": PLAIN | {"expert_group": "all", "dense_precision": "experts"},
    "ollama": LLAMA | {"reserve_mib": 457 + CONTEXT},
    "vllm-uva": VLLM,
    "vllm-prefetch": VLLM | {"copies_per_expert": 2},
    "freetoken": TOKEN | {"memory_share": 0.9},
    "hybrimoe": TOKEN,
    "moe-speed-of-light": LLAMA | {"page_locked": True, "host_copy": True},
    "imp": IMP,
    "imp-wsl2": COMPILED | {"step_ns": 1000 * (12_600 + 16_400) // 2},
}
RESULTS = Path(__file__).parents[1] / "analysis" / "results" / "published.md"


def fitted(entry: str) -> Figures:
    """Constants of an engine or a GPU as the results have them: rows `| entry | constant | before | fitted | ...`."""
    table = RESULTS.read_text().split("## Constants", 1)[1].split("\n## ", 1)[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return {row[1]: float(row[3]) if "." in row[3] else int(row[3]) for row in cells if row[0] == entry}


PAGE = (Path(__file__).parents[1] / "docs" / "engines.md").read_text()
SECTIONS = {text.split("\n", 1)[0]: text for text in PAGE.split("\n## ")[1:]}


def as_written(name: str) -> RunSpec:
    """The run that the flags on the page say an engine's name stands for; of one without a section, none beside it."""
    found = re.search(r"\n\n`(--.*)`\n", SECTIONS.get(name, ""))
    words = shlex.split(found[1]) if found else []
    return spec_of(run.parser().parse_args(["--trace", "t.npz", "--engine", name, "--engine-as-costs", *words]))


# ---- precisions: bytes of a block and its weights

BLOCKS: dict[str, tuple[float, int]] = {
    "fp32": (4, 1),
    "bf16": (2, 1),
    "fp8": (1, 1),
    "int8": (1, 1),
    "q8": (34, 32),
    "q6": (210, 256),
    "q5": (176, 256),
    "q4": (18, 32),
    "q3": (110, 256),
    "q2": (84, 256),
    "mxfp4": (17, 32),
    "q4-k-m": (26.7e6, 3 * 7168 * 2048),  # an expert of DeepSeek-V3
    "hqq3": (84.8e6, 3 * 4096 * 14336),  # experts of Mixtral
    "hqq2": (68.5e6, 3 * 4096 * 14336),
    "q4-1": (20, 32), "q5-1": (24, 32), "iq4-xs": (136, 256), "iq3-s": (110, 256), "iq3-xxs": (98, 256),
    "iq2-s": (82, 256), "iq2-xs": (74, 256), "iq2-xxs": (66, 256), "iq1-m": (56, 256), "iq1-s": (50, 256),
    "nvfp4": (64 // 2 + 4, 64), "tq2-0": (66, 256), "tq1-0": (54, 256), "q1-0": (18, 128),
    # two matrices of one type and the third of another, in blocks of 256
    "q4-k-s": (2 * 48 * 144 + 6 * 176 + 42 * 144, 3 * 48 * 256),
    "q5-k-m": (2 * 48 * 176 + 24 * 210 + 24 * 176, 3 * 48 * 256),
    "q3-k-l": (2 * 110 + 176, 3 * 256),
    "q3-k-m": (2 * 48 * 110 + 3 * 176 + 45 * 144, 3 * 48 * 256),
    "q2-k-file": (2 * 84 + 110, 3 * 256),
    "ud-q4-k-m": (2 * 144 + 176, 3 * 256),
    "awq": (128 * 4 / 8 + 2.5, 128),
    "int4-g64": (64 // 2 + 4, 64),
    "fp8-block": (128 * 128 + 4, 128 * 128),
    "iq3-m": (3.7628, 8), "iq2-m": (2.9294, 8),  # of a whole file, as its table has it
}  # fmt: skip
KERNELS = {  # 1e9 operations a second of one core
    "bf16": 40, "fp32": 20, "q8": 60, "int8": 60, "q6": 35, "q5": 40, "q4": 45, "q4-k-m": 45, "iq4-xs": 35,
    "q3-k-m": 35, "mxfp4": 30, "q3": 30, "q2": 30,
}  # fmt: skip
OTHER_BLOCKS = {"q4_k": (144, 256), "q5_0": (22, 32), "iq4_nl": (18, 32)}  # that an alias stands for


# ---- presets: the link that the card's slot gives, and the machines that were measured

CARDS = {
    "rtx4090-threadripper": "rtx-4090",
    "rtx4090-xeon-6454s": "rtx-4090",
    "rtx4090-2x-xeon-6454s": "rtx-4090",
    "t4-pcie3": "t4",
    "quadro-rtx-6000-pcie3": "quadro-rtx-6000",
    "a100-pcie4": "a100-80gb-pcie",
    "h100-pcie5": "h100-pcie",
    "rtx3060-ddr4": "rtx-3060",
    "rtx3090-ddr4": "rtx-3090",
}
OWN_LINKS = {
    "rtx3080-mobile": ("pcie4x8-pinned", "pcie4x8-pageable"),  # laptops
    "rtx5090": ("pcie5x16-5090-desktop-pipelined", "pcie5x16-pageable"),  # measured on this card
    "gh200": ("nvlink-c2c-gh200", None),
}
ONE_MEMORY_SSD = {
    "gb10": "gb10-internal", "strix-halo": "samsung-990-pro", "apple-m1-max": "apple-m1-max",
    "apple-m2-max": "apple-m1-max", "apple-m2-ultra": "apple-m1-ultra", "apple-m3-max": "apple-m3",
    "apple-m3-ultra": "apple-m1-ultra", "apple-m4": "apple-m3", "apple-m4-max": "apple-m4-pro",
    "apple-m5-max": "apple-m5-max",
}  # fmt: skip
SERVERS = {
    "rtx4090-threadripper": "threadripper-7960x",
    "rtx4090-xeon-6454s": "xeon-6454s",
    "rtx4090-2x-xeon-6454s": "2x-xeon-6454s",
    "quadro-rtx-6000-pcie3": "xeon-6126",
    "a10": "lambda-a10",
    "gh200": "grace",
    **dict.fromkeys(("a100-40gb", "a100-pcie4", "a100-sxm"), "lambda-a100"),
    **dict.fromkeys(("t4-pcie3", "l4", "a5000", "a6000", "p40"), "ddr4-8ch"),
    **dict.fromkeys(("rtx3060-ddr4", "rtx3090-ddr4"), "ddr4-3200-dual"),
    **dict.fromkeys(("l40s", "rtx6000-ada", "h100-pcie5", "h100-sxm", "h200", "b200", "mi300x"), "xeon-8452y"),
}
