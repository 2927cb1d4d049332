"""Synthetic routing traces: a short model fitted to published statistics, and two known-answer patterns.

The model. In each layer, independently of the others, token t of request r gives expert e the router logit

    z = scale * (offset[e]                                             liked whatever the text
                 + sqrt(c) * G(t)                                      remembered from token to token
                 + sqrt(1 - c) * (w(t) - a * w(t-1)) / sqrt(1 + a^2))  new, or avoided next time

    G(t) = exp(min(sqrt(0.1) * topic[r, e] + sqrt(0.9) * x(t), 2.5)) / 1.851
    x(t) = 0.75 * x(t-1) + sqrt(1 - 0.75^2) * n(t)

with topic, w, n bell-shaped of mean 0 and variance 1. G is log-normal, cut at 2.5 sd: few experts are wanted
strongly, which makes the *first* choice repeat more than the pair does. A tenth of its variance on the log
scale stays for a whole request (topic), the rest fades by 0.75 a token (phrase). c is the strength of memory,
a the alternation between neighbours: two numbers per layer, for the two repeat shares published per layer,
linear between known layers. Logits are rounded to float16, and experts (ties: lower id), weights and
predictions come from the rounded ones. A prediction ranks the target layer's own logits with bell-shaped
noise added, whose size sets the recall. Not modelled: links between layers, experts that go together,
vocabulary, prompt against generation.

Reproducibility. A trace depends on (preset, seed) alone and is the same bit for bit wherever doubles are IEEE
754: random numbers come from a counter-based hash (`hash64`, splitmix64), a bell-shaped one is the sum of a
hash's four 16-bit fields (Irwin-Hall, kurtosis 2.7, within 3.5 sd), and only +, -, *, /, min and square root
are used, one per numpy call, each rounded as the standard says: no libm, no distribution of numpy's, no sum
whose order may change.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace, hash64

Floats = npt.NDArray[np.float64]

FADE = 0.75
PROFILE_TOKENS = 4096  # of a profile's trace, made at a time
CUT = 2.5
CUT_LOG_NORMAL_SD = 1.851  # sd of exp(min(x, CUT)), x normal
BELL_SD = math.sqrt((2.0**32 - 1) / 3)  # of the sum of four uniform 16-bit integers
OFFSET, TOPIC, PHRASE, FRESH, LENGTHS, PATTERN, PREDICTION = range(7)  # random streams; PREDICTION + distance
PROFILE_ORDER, PROFILE_START = 1 << 8, 1 << 9


@dataclass(frozen=True)
class Preset:
    """Shape and statistics of one kind of trace.

    moe_layers   indices of the MoE layers among n_layers.
    memory       (MoE layer ordinal, c, a) at known layers, rising; linear between, constant beyond.
    offset_sd    spread of the popularity offsets, in units of the logit's own sd.
    topic        share of memory that lasts for a whole request.
    scale        size of a logit, which sets how uneven a token's weights are.
    noise        sd of a prediction's error at distance 1, 2, ..., same units; () = no lookahead.
    lookahead_m  length of a lookahead list.
    prompt, generation   shortest and longest, evenly spread over the requests, in tokens.
    pattern      "model", or "uniform" / "cyclic", which use the shape alone.
    logits       whether the trace has them.
    mark         what meta says besides that it is synthetic: "generic" or "uniform" (traces/generic.py), or nothing.
    facts        what was fitted, with sources; assumptions: what was not published and was chosen.
    """

    model: str
    n_experts: int
    top_k: int
    n_layers: int
    moe_layers: tuple[int, ...]
    norm_topk: bool = True
    memory: tuple[tuple[int, float, float], ...] = ((0, 0.0, 0.0),)
    offset_sd: float = 0.0
    topic: float = 0.1
    scale: float = 1.3
    noise: tuple[float, ...] = ()
    lookahead_m: int = 4
    requests: int = 16
    prompt: tuple[int, int] = (24, 144)
    generation: tuple[int, int] = (100, 260)
    pattern: Literal["model", "uniform", "cyclic"] = "model"
    logits: bool = True
    mark: Literal["", "generic", "uniform"] = ""
    facts: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


def synthesise(like: str, seed: int) -> RoutingTrace:
    """The trace of the preset `like` with this seed, meta.real false; the same bytes everywhere.

    Raises TraceError for an unknown preset or a seed that is not an integer in [0, 2^64).
    """
    if like not in PRESETS:
        raise TraceError(f"like: no preset {like!r}; there are {', '.join(sorted(PRESETS))}")
    return generate(PRESETS[like], seed)


def generate(preset: Preset, seed: int) -> RoutingTrace:
    """As `synthesise`, for a preset of your own."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise TraceError(f"seed: {seed!r} is not an integer from 0 to 2^64 - 1")
    prompts, lengths = _lengths(preset, seed)
    sequence = np.repeat(np.arange(preset.requests, dtype=np.int32), lengths)
    position = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    prefill = position < np.repeat(prompts, lengths)
    arrays = _pattern(preset, seed, position) if preset.pattern != "model" else _model(preset, seed, lengths)
    arrays |= {"sequence": sequence, "position": position, "prefill": prefill}
    return RoutingTrace(meta=_meta(preset, seed), **arrays)


def _lengths(preset: Preset, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Prompt tokens and all tokens of each request, int64 [requests]; the seed only shuffles them."""
    i = np.arange(preset.requests)

    def spread(shortest: int, longest: int, stream: int) -> npt.NDArray[np.int64]:
        order = np.argsort(hash64(seed, LENGTHS << 32, stream * preset.requests + i), kind="stable")
        return (shortest + (longest - shortest) * i // max(preset.requests - 1, 1))[order]

    prompts = spread(*preset.prompt, 0)
    return prompts, prompts + spread(*preset.generation, 1)


def _bell(seed: int, stream: int, layer: int, *shape: int) -> Floats:
    """Bell-shaped numbers of mean 0 and variance 1 [shape]: the sum of the four 16-bit fields of a hash."""
    bits = hash64(seed, (stream << 32) + layer, np.arange(math.prod(shape)))
    fields = [(bits >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]
    total: Floats = (fields[0] + fields[1] + fields[2] + fields[3]).astype(np.float64)
    scaled: Floats = (total - 2 * 65535.0) / BELL_SD
    return scaled.reshape(shape)


def _exp(x: Floats) -> Floats:
    """e^x for |x| < 30 to ten digits, from + * / alone: the series at x / 1024, then ten squarings."""
    y = x / 1024.0
    power = np.ones_like(y)
    for term in range(6, 0, -1):
        power = 1.0 + power * (y / term)
    for _ in range(10):
        power = power * power
    return power


def _at_layer(memory: tuple[tuple[int, float, float], ...], layer: int) -> tuple[float, float]:
    """(c, a) of one layer, linear between the known ones."""
    before = [knot for knot in memory if knot[0] <= layer] or [memory[0]]
    after = [knot for knot in memory if knot[0] >= layer] or [memory[-1]]
    (lo, c_lo, a_lo), (hi, c_hi, a_hi) = before[-1], after[0]
    share = (layer - lo) / (hi - lo) if hi > lo else 0.0
    return c_lo + share * (c_hi - c_lo), a_lo + share * (a_hi - a_lo)


def _logits(preset: Preset, seed: int, layer: int, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
    """Router logits of one layer, float16 [tokens, n_experts]; equation in the module's docstring."""
    n, longest, n_experts = (
        preset.requests,
        int(max(preset.prompt)) + int(max(preset.generation)),
        preset.n_experts,
    )
    c, a = _at_layer(preset.memory, layer)
    phrase = _bell(seed, PHRASE, layer, n, longest, n_experts)
    for t in range(1, longest):
        phrase[:, t] = FADE * phrase[:, t - 1] + math.sqrt(1 - FADE * FADE) * phrase[:, t]
    topic = _bell(seed, TOPIC, layer, n, 1, n_experts)
    log_memory = math.sqrt(preset.topic) * topic + math.sqrt(1 - preset.topic) * phrase
    remembered = _exp(np.minimum(log_memory, CUT)) / CUT_LOG_NORMAL_SD
    fresh = _bell(seed, FRESH, layer, n, longest + 1, n_experts)
    alternating = (fresh[:, 1:] - a * fresh[:, :-1]) / math.sqrt(1 + a * a)
    offset = preset.offset_sd * _bell(seed, OFFSET, layer, n_experts)
    z = preset.scale * (offset + math.sqrt(c) * remembered + math.sqrt(1 - c) * alternating)
    there: npt.NDArray[np.bool_] = np.arange(longest) < lengths[:, None]
    return z[there].astype(np.float16)


def _weights(z: Floats, chosen: npt.NDArray[np.int16], norm_topk: bool) -> Floats:
    """Router weights [tokens, top_k]: softmax over all experts, or the chosen ones if normalised."""
    powers = _exp(z - np.take_along_axis(z, chosen[:, :1].astype(np.int64), axis=1))
    own = np.take_along_axis(powers, chosen.astype(np.int64), axis=1)
    summed = np.cumsum(own if norm_topk else powers, axis=1)[:, -1:]  # cumsum, not sum: adds in one fixed order
    return own / summed


def _ranked(scores: npt.NDArray[Any], m: int) -> npt.NDArray[np.int16]:
    """The m experts of highest score, best first, ties to the lower id: int16 [tokens, m]."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :m].astype(np.int16)


def _model(preset: Preset, seed: int, lengths: npt.NDArray[np.int64]) -> dict[str, Any]:
    tokens, layers, k, m = int(lengths.sum()), len(preset.moe_layers), preset.top_k, preset.lookahead_m
    logits = np.empty((tokens, layers, preset.n_experts), np.float16) if preset.logits else None
    experts = np.empty((tokens, layers, k), np.int16)
    weights = np.empty((tokens, layers, k), np.float16)
    lookahead = np.full((len(preset.noise), tokens, layers, m), -1, np.int16)
    for layer in range(layers):
        rounded = _logits(preset, seed, layer, lengths)
        if logits is not None:
            logits[:, layer] = rounded
        z = rounded.astype(np.float64)
        experts[:, layer] = _ranked(z, k)
        weights[:, layer] = _weights(z, experts[:, layer], preset.norm_topk)
        for distance, sd in enumerate(preset.noise[:layer], start=1):
            error = preset.scale * sd * _bell(seed, PREDICTION + distance, layer, tokens, preset.n_experts)
            lookahead[distance - 1, :, layer] = _ranked(z + error, m)
    arrays: dict[str, Any] = {"experts": experts, "weights": weights} | ({"logits": logits} if preset.logits else {})
    return arrays | ({"lookahead": lookahead} if preset.noise else {})


def _pattern(preset: Preset, seed: int, position: npt.NDArray[np.int32]) -> dict[str, Any]:
    """Routing whose cache hits are known, every weight 1 / top_k.

    uniform: independent, every set of top_k experts equally likely: a cache of s slots that does not know the
    future hits s / n_experts of what it is asked for. cyclic: token t asks for experts t * top_k ... modulo
    n_experts: LRU with at most n_experts - top_k slots never hits (n_experts a multiple of top_k).
    """
    tokens, layers, k, n_experts = len(position), len(preset.moe_layers), preset.top_k, preset.n_experts
    experts = np.empty((tokens, layers, k), np.int16)
    ids = np.arange(tokens * n_experts).reshape(tokens, n_experts)
    cycle = (np.arange(tokens)[:, None] * k + np.arange(k)) % n_experts
    for layer in range(layers):
        hashes = hash64(seed, (PATTERN << 32) + layer, ids.ravel()).reshape(ids.shape)
        shuffled = np.argsort(hashes, axis=1, kind="stable")[:, :k]
        experts[:, layer] = cycle if preset.pattern == "cyclic" else shuffled
    return {"experts": experts, "weights": np.full(experts.shape, 1 / k, np.float16)}


def from_profile(profile: Profile, tokens: int, seed: int) -> RoutingTrace:
    """A trace of one request, all tokens generated, whose experts have the popularity of a frequency profile.

    Each token takes top_k experts of a layer by systematic sampling (Madow 1949, Ann. Math. Stat. 20, 333-354): the
    experts, in an order drawn anew, laid end to end with length top_k x share, are hit by the points u, u + 1, ... with
    one u drawn in [0, 1). Expert e is taken with probability top_k x share[e] exactly, and never twice. Tokens and
    layers are independent: a real trace repeats itself more than this. Raises TraceError for a profile without top_k
    and where an expert has more than 1 / top_k of a layer's uses, which no router gives.
    """
    meta = profile.meta
    k = meta.get("top_k")
    if k is None:
        raise TraceError("profile: meta.top_k is missing; convert it with --top-k N, or the name of a known model")
    if not 0 < tokens < 2**31:
        raise TraceError(f"tokens: {tokens}; at least 1 is required")
    share = profile.counts / profile.counts.sum(axis=1, keepdims=True)
    worst = np.argwhere(share * k > 1 + 1e-9)
    if len(worst):
        layer, expert = worst[0].tolist()
        fact = f"expert {expert} has {share[layer, expert]:.1%} of MoE layer {layer}'s uses"
        raise TraceError(f"profile: {fact}; with top-{k} a router gives at most {1 / k:.1%}: is top_k right?")
    experts = np.empty((tokens, len(share), k), np.int16)
    for layer in range(len(share)):
        for lo in range(0, tokens, PROFILE_TOKENS):
            at = np.arange(lo, min(tokens, lo + PROFILE_TOKENS))
            experts[at, layer] = _systematic(share[layer], k, at, seed, layer)
    row = np.arange(tokens, dtype=np.int32)
    keys = ("model", "n_experts", "top_k", "moe_layers", "licence")
    described = {"format_version": 1, "real": False, **{key: meta[key] for key in keys if key in meta}}
    described["n_layers"] = meta.get("n_layers", meta["moe_layers"][-1] + 1)
    of = " ".join(str(meta[key]) for key in ("tool", "source") if key in meta)
    described["source"] = f"synthetic, made by traces.synthetic from a frequency profile ({of}), seed {seed}"
    described["facts"] = ["popularity of each expert in each layer: the profile's"]
    described["assumptions"] = ["tokens and layers are independent of each other; one request, no prompt"]
    described["slots_ordered_by_weight"] = False
    return RoutingTrace(experts, np.zeros(tokens, np.int32), row, np.zeros(tokens, np.bool_), described)


def _systematic(share: Floats, k: int, at: npt.NDArray[Any], seed: int, layer: int) -> npt.NDArray[Any]:
    """[len(at), k]: the experts of tokens `at`."""
    n = len(share)
    ids = at[:, None] * n + np.arange(n)
    order = np.argsort(hash64(seed, (PROFILE_ORDER << 32) + layer, ids.ravel()).reshape(ids.shape), axis=1)
    ends = np.cumsum(share[order] * k, axis=1)
    ends[:, -1] = k  # whatever the sum's last bits say
    # 53 bits of a hash: u in [0, 1), exact
    u = (hash64(seed, (PROFILE_START << 32) + layer, at) >> np.uint64(11)).astype(np.float64) / 2.0**53
    hit = np.stack([(ends <= (u + i)[:, None]).sum(axis=1) for i in range(k)], axis=1)
    return np.take_along_axis(order, hit, axis=1)


def _meta(preset: Preset, seed: int) -> dict[str, Any]:
    name: str = next((key for key, value in PRESETS.items() if value == preset), preset.mark or "own preset")
    meta: dict[str, Any] = {
        "format_version": 1,
        **{key: getattr(preset, key) for key in ("model", "n_experts", "top_k", "n_layers", "norm_topk")},
        "moe_layers": list(preset.moe_layers),
        "real": False,
        "score_function": "softmax" if preset.pattern == "model" else "other",
        "source": f"synthetic, made by traces.synthetic: {name}, seed {seed}; no captured data in it",
        "licence": "Apache-2.0",
        "facts": list(preset.facts),
        "assumptions": list(preset.assumptions),
    }
    meta |= {preset.mark: True} if preset.mark else {}
    return meta | ({"lookahead_distances": list(range(1, len(preset.noise) + 1))} if preset.noise else {})


_MODEL = (
    "a phrase fades by 0.75 a token",
    "logit scale 1.3: the first of two experts carries about two thirds of the weight",
    "layers and experts are independent of each other; prompt and generation are alike",
    "requests: 16 with prompts of 24-144 and generations of 100-260 tokens",
)
_LIKE_MIXTRAL = (
    "popularity and topic share as fitted for mixtral-8x7b",
    "prediction noise as for mixtral-8x7b: predictor recall is an assumption, not a measurement",
    *_MODEL,
)

_COUNTED = (
    "memory, popularity and topic share: one set for all layers, fitted to all of the counted figures together",
    "a request is a text of its own, and the popular experts of a text do not drift",
    "prediction noise as for mixtral-8x7b: predictor recall is an assumption, not a measurement",
    *_MODEL[:-1],
    "requests: 4 with prompts of 24 and generations of 256 tokens",
)
_STUDY = (
    "(harshithkantamneni/moe-speed-of-light@3a74200, prereg/policy_study_outcome.md: the model's own text, a token's "
    "experts one request, decayed frequency of half-life 16 tokens without a margin)"
)
_DEPLOYED = (
    "not fitted: an engine with this eviction, whose CPU computes misses that are admitted behind it, counted {} "
    "(harshithkantamneni/moe-speed-of-light@ccd1a07, prereg/a10_mb/scored.md)"
)

_MIXTRAL = Preset(
    model="mixtral-8x7b",
    n_experts=8,
    top_k=2,
    n_layers=32,
    moe_layers=tuple(range(32)),
    memory=((0, 0.025, 0.0), (15, 0.34, 0.0), (31, 0.35, 0.35)),
    offset_sd=0.12,
    noise=(0.24, 0.45),
    facts=(
        "consecutive-token repeats at layers 0 / 15 / 31, mean of eight datasets: first choice "
        "14.1 / 26.4 / 22.7 %, either choice 48.0 / 63.7 / 50.9 % (arXiv 2401.04088 Table 5)",
        "popularity: sd / mean of an expert's share 0.16 over 7 MMLU subjects, 0.14 rms of one from "
        "all (github.com/efeslab/fiddler@5e5ed673, benchmarks/results/popularity/mixtral_8x7b_instruct)",
    ),
    assumptions=(
        "predictor recall@2 of 0.86 at distance 1, 0.76 at distance 2: an assumption, not a measurement "
        "(published one layer ahead, other models and methods: 71.6 % colibri GLM-5.2, 78.8 % Fate gate, "
        "88-89 % SP-MoE, 96 % HOBBIT top-1)",
        *_MODEL,
    ),
)

_QWEN3 = Preset(
    model="qwen3-30b-a3b",
    n_experts=128,
    top_k=8,
    n_layers=48,
    moe_layers=tuple(range(48)),
    memory=((0, 0.57, 0.7),),
    offset_sd=0.4,
    topic=0.62,
    noise=(0.24, 0.45),
    lookahead_m=16,
    requests=4,
    prompt=(24, 24),
    generation=(256, 256),
    facts=(
        "hit rate at 16 / 32 / 48 slots a layer: decayed frequency 62.8 / 82.3 / 91.5 %, LRU 61.5 / 80.9 / 90.8 %; "
        f"the most popular 16 / 32 / 48 experts of many texts take 26 / 43 / 58 % {_STUDY}",
        _DEPLOYED.format("60.0 / 77.2 / 90.9 % at 16 / 32 / 64"),
    ),
    assumptions=(
        "hit rates at 48 slots come out 2 points below the count; an engine that admits behind hits 1 to 3 points more "
        "than its counters",
        *_COUNTED,
    ),
)

PRESETS: dict[str, Preset] = {
    "mixtral-8x7b": _MIXTRAL,
    "olmoe-1b-7b": Preset(
        model="olmoe-1b-7b",
        n_experts=64,
        top_k=8,
        n_layers=16,
        moe_layers=tuple(range(16)),
        norm_topk=False,
        memory=((0, 0.60, 0.0),),
        offset_sd=0.12,
        noise=(0.24, 0.45),
        lookahead_m=16,
        facts=("overlap of consecutive tokens 40.3 % (JustVugg/colibri experiments/olmoe-tier-caching)",),
        assumptions=("all layers alike", *_LIKE_MIXTRAL),
    ),
    "deepseek-v2-lite": Preset(
        model="deepseek-v2-lite",
        n_experts=64,
        top_k=6,
        n_layers=27,
        moe_layers=tuple(range(1, 27)),
        norm_topk=False,
        memory=((0, 0.335, 0.0),),
        offset_sd=0.12,
        noise=(0.24, 0.45),
        lookahead_m=12,
        facts=("LRU hit rate 47.7 % with a quarter of the experts resident (arXiv 2504.05897)",),
        assumptions=("all layers alike", *_LIKE_MIXTRAL),
    ),
    "qwen3-30b-a3b": _QWEN3,
    "qwen3-235b-a22b": replace(
        _QWEN3,
        model="qwen3-235b-a22b",
        n_layers=94,
        moe_layers=tuple(range(94)),
        facts=(),
        assumptions=("no hit rate is published: routing as fitted for qwen3-30b-a3b", *_COUNTED),
    ),
    "gpt-oss-120b": Preset(
        model="gpt-oss-120b",
        n_experts=128,
        top_k=4,
        n_layers=36,
        moe_layers=tuple(range(36)),
        memory=((0, 0.4, 0.3),),
        offset_sd=0.62,
        topic=0.52,
        noise=(0.24, 0.45),
        lookahead_m=8,
        requests=4,
        prompt=(24, 24),
        generation=(256, 256),
        facts=(
            "hit rate at 16 / 32 / 48 slots a layer: decayed frequency 65.1 / 82.1 / 89.9 %, LRU 62.8 / 80.4 / 89.4 %; "
            f"the most popular 16 / 32 / 48 experts of many texts take 36 / 56 / 71 % {_STUDY}",
            _DEPLOYED.format("62.6 / 78.3 % at 16 / 32"),
        ),
        assumptions=_COUNTED,
    ),
    "gpt-oss-20b": Preset(
        model="gpt-oss-20b",
        n_experts=32,
        top_k=4,
        n_layers=24,
        moe_layers=tuple(range(24)),
        memory=((0, 0.5, 0.0),),
        offset_sd=0.65,
        topic=0.4,
        noise=(0.24, 0.45),
        lookahead_m=8,
        requests=4,
        prompt=(24, 24),
        generation=(256, 256),
        facts=(
            "counted on a public capture (tzpranto/expert_scheduler@e90f5f5): hit rate at 4 / 8 / 16 slots a layer, "
            "decayed frequency of half-life 16 tokens 44.2 / 68.2 / 91.3 %, LRU 44.2 / 64.3 / 89.2 %; overlap of "
            "consecutive tokens 43.9 %; the most popular 4 / 8 / 16 experts take 37 / 58 / 86 %",
        ),
        assumptions=(
            "no hit rate is published; the capture is one question asked three ways, and other texts may differ more",
            *_COUNTED,
        ),
    ),
    "mixtral-8x22b": replace(
        _MIXTRAL,
        model="mixtral-8x22b",
        n_layers=56,
        moe_layers=tuple(range(56)),
        memory=((0, 0.025, 0.0), (27, 0.34, 0.0), (55, 0.35, 0.35)),
        facts=(),
        assumptions=("no statistics are published: first, middle and last layer as mixtral-8x7b's", *_LIKE_MIXTRAL),
    ),
    "deepseek-v3": Preset(
        model="deepseek-v3",
        n_experts=256,
        top_k=8,
        n_layers=61,
        moe_layers=tuple(range(3, 61)),
        memory=((0, 0.35, 0.0),),
        offset_sd=0.3,
        topic=0.12,
        noise=(0.24, 0.45),
        lookahead_m=16,
        requests=4,
        prompt=(24, 24),
        generation=(256, 256),
        facts=(
            "of DeepSeek-V4-Flash, 256 experts, top 6: LRU hit rate 53 / 76 / 80.6 % with 962 / 2408 / 2956 of 5504 "
            "experts of a device in one pool, misses admitted behind the step (ggml-org/llama.cpp#24528)",
        ),
        assumptions=(
            "no hit rate of DeepSeek-V3 is published: as V4-Flash's, as if of 45 / 112 / 138 slots a layer",
            "chosen by softmax over all experts: no sigmoid, no groups, no scaling of the weights",
            *_COUNTED,
        ),
    ),
    "uniform": Preset("uniform-8x2", 8, 2, 4, tuple(range(4)), pattern="uniform"),
    "cyclic": Preset("cyclic-8x2", 8, 2, 4, tuple(range(4)), pattern="cyclic"),
}
