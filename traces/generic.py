"""A synthetic trace of any model of the catalog: what to expect of its shape where nothing of its own is published.

A *generic* preset of `traces.synthetic` has the model's own layers, experts and top-k, and routing interpolated from
ROWS: how far experts of consecutive tokens overlap, and how far popularity alone makes them, of nine models. The first
is taken as the share of what chance leaves over, (overlap - K/E) / (1 - K/E), the second as sd / mean of how often a
layer's experts are used, sqrt(popularity / (K/E) - 1); each is a mean of the rows' with the weight 1 / (1 + d)^2, where
d = octaves of top-k + octaves of experts between row and model (`octaves`: log2, linear between powers of two: only
+, -, *, / and square root, so that everything is the same everywhere). A model of ROWS itself gets its own figures.

FITTED and OWN are memory c and spread of popularity by which the generator meets these figures, in traces as long as a
generic one. `python -m analysis.fit_generic` finds them, and says how far such interpolation is off where it can be
told (analysis/results/generic.md): a tenth of a token's experts. A shape that is not in FITTED gets the nearest's.

*Uniform* is the control beside any preset: same shape and lengths, every token's experts drawn independently. What a
policy gains on a trace and not on its control, it gains by popularity or by memory.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

from traces.errors import TraceError
from traces.foreign.models import entry_of, facts_of, from_file, names
from traces.format.trace import RoutingTrace
from traces.slips import did_you_mean
from traces.synthetic import PRESETS, Preset, generate

TOPIC = 0.25  # share of memory that lasts for a whole request: analysis/results/generic.md says why
LENGTHS: dict[str, Any] = {"requests": 4, "prompt": (24, 24), "generation": (256, 256)}
LRU_OFF = (0.117, 0.234)  # LRU hit rate of five captured models, each interpolated from the others: mean, most
MOST_LOGITS = 1 << 26  # in a trace: 128 MiB of float16
MOST_AT_ONCE = 1 << 22  # logits of one layer, made in float64: some 400 MB


class Row(NamedTuple):
    """Of one model: share of a token's experts that the token before used, and what that were if both drew by
    popularity alone (`python -m traces info`); where both are from."""

    model: str
    top_k: int
    n_experts: int
    overlap: float
    popularity: float
    source: str


_COUNTED = "counted on a public capture, "
_MADE = "as the fitted preset of that name makes it, 4 requests of 280 tokens: "
_V4 = "as the preset deepseek-v3 makes it with top-6, fitted to V4-Flash's "
_STUDY = "harshithkantamneni/moe-speed-of-light@3a74200, prereg/policy_study_outcome.md"
ROWS = (
    Row("mixtral-8x7b", 2, 8, 0.379, 0.262, _COUNTED + "Mario928/speculative-moe@0146fef, 720 tokens"),
    Row("gpt-oss-20b", 4, 32, 0.439, 0.253, _COUNTED + "tzpranto/expert_scheduler@e90f5f5, 1,456 tokens"),
    Row("granite-3.0-1b-a400m", 8, 32, 0.420, 0.346, _COUNTED + "justinchuby/onnx-genai@ac9c7dd, 304 tokens"),
    Row("qwen1.5-moe-a2.7b", 4, 60, 0.162, 0.075, _COUNTED + "jinlong-huo/moe_ocs_learning@49da265, 1,096 tokens"),
    Row("olmoe-1b-7b", 8, 64, 0.415, 0.196, _COUNTED + "tzpranto/expert_scheduler@e90f5f5, 1,452 tokens"),
    Row("deepseek-v2-lite", 6, 64, 0.274, 0.102, _MADE + "LRU hit rate (arXiv 2504.05897)"),
    Row("qwen3-30b-a3b", 8, 128, 0.415, 0.128, _MADE + f"hit rates and popularity ({_STUDY})"),
    Row("gpt-oss-120b", 4, 128, 0.311, 0.086, _MADE + f"hit rates and popularity ({_STUDY})"),
    Row("deepseek-v4-flash", 6, 256, 0.267, 0.033, _V4 + "LRU hit rates (ggml-org/llama.cpp#24528)"),
)

# (c, offset_sd) of traces.synthetic by (top_k, n_experts), and of models of ROWS without a preset
FITTED: dict[tuple[int, int], tuple[float, float]] = {
    (1, 16): (0.42, 0.31),
    (1, 128): (0.77, 0.01),
    (2, 16): (0.39, 0.35),
    (2, 128): (0.41, 0.28),
    (4, 32): (0.42, 0.54),
    (4, 64): (0.3, 0.29),
    (4, 128): (0.37, 0.51),
    (6, 64): (0.36, 0.3),
    (6, 128): (0.38, 0.44),
    (6, 160): (0.37, 0.43),
    (8, 64): (0.42, 0.43),
    (8, 128): (0.46, 0.51),
    (8, 160): (0.43, 0.5),
    (8, 192): (0.4, 0.43),
    (8, 256): (0.36, 0.36),
    (8, 288): (0.36, 0.32),
    (8, 384): (0.36, 0.22),
    (8, 512): (0.37, 0.01),
    (10, 72): (0.42, 0.46),
    (10, 512): (0.35, 0.16),
}
OWN: dict[str, tuple[float, float]] = {
    "granite-3.0-1b-a400m": (0.27, 0.53),
    "qwen1.5-moe-a2.7b": (0.16, 0.11),
    "deepseek-v4-flash": (0.31, 0.03),
}


def octaves(n: int) -> float:
    """log2(n), linear between powers of two: exact."""
    whole = n.bit_length() - 1
    return whole + n / (1 << whole) - 1


def apart(one: tuple[int, int], other: tuple[int, int]) -> float:
    """Octaves between two shapes (top_k, n_experts)."""
    return sum(abs(octaves(a) - octaves(b)) for a, b in zip(one, other, strict=True))


def interpolated(top_k: int, n_experts: int, rows: tuple[Row, ...] = ROWS) -> tuple[float, float]:
    """(overlap, popularity) to expect of a shape by the rows."""
    chance, weight, over, spread = top_k / n_experts, 0.0, 0.0, 0.0
    for row in rows:
        octave, by_chance = 1 + apart((top_k, n_experts), (row.top_k, row.n_experts)), row.top_k / row.n_experts
        near = 1 / (octave * octave)
        weight += near
        over += near * (row.overlap - by_chance) / (1 - by_chance)
        spread += near * math.sqrt(row.popularity / by_chance - 1)
    over, spread = over / weight, spread / weight
    return chance + (1 - chance) * over, chance * (1 + spread * spread)


def aim(name: str, top_k: int, n_experts: int) -> tuple[float, float]:
    """(overlap, popularity) that a model's generic preset is to have: its own row's, or interpolated."""
    own = next((row for row in ROWS if row.model == name), None)
    return (own.overlap, own.popularity) if own else interpolated(top_k, n_experts)


def find(name: str) -> str | None:
    """The preset or model of the catalog that a name or an alias means; a file of a model (docs/models.md) is its own
    name; None: there is none."""
    if name in PRESETS or name.lower().endswith(".toml"):
        return name
    entry = entry_of(name)
    return None if entry is None else str(entry["name"])


def listing() -> str:
    """What `--like` takes, as lines."""
    rest = [name for name in names() if name not in PRESETS]
    kinds = {"fitted": [n for n in PRESETS if n in names()], "patterns": [n for n in PRESETS if n not in names()]}
    return "\n".join(f"{kind:9} {', '.join(found)}" for kind, found in (kinds | {"generic": rest}).items())


def synthesise(
    like: str,
    seed: int,
    requests: int | None = None,
    uniform: bool = False,
    prompt: int | None = None,
    generated: int | None = None,
) -> RoutingTrace:
    """The trace of a preset, of a model of the catalog by name or alias, or of a model's file; the same bytes
    everywhere.

    requests, prompt, generated: how many there are, and tokens of each, in place of the preset's. Raises TraceError for
    an unknown name, a bad seed or file, and for more than can be made at a time.
    """
    name = find(like)
    if name is None:
        near = did_you_mean(like.lower(), [*PRESETS, *names()])
        raise TraceError(f"--like {like[:60]!r}: no preset, and no model of the catalog{near}; --list shows both")
    preset = PRESETS[name] if name in PRESETS else generic(name)
    if uniform:
        preset = control(preset)
    if (requests, prompt, generated) != (None, None, None):
        preset = _of_lengths(preset, requests, prompt, generated)
    return generate(preset, seed)


def generic(name: str) -> Preset:
    """The generic preset of a model: by its name in the catalog, or of its file."""
    entry = from_file(name) if name.lower().endswith(".toml") else entry_of(name)
    assert entry is not None  # `find` has seen to it
    known, name = facts_of(entry), entry["name"]
    k, n = known["top_k"], known["n_experts"]
    nearest = min(FITTED, key=lambda shape: apart(shape, (k, n)))
    c, offset_sd = OWN.get(name) or FITTED[nearest]
    return Preset(
        name,
        n,
        k,
        known["n_layers"],
        known["moe_layers"],
        norm_topk=entry.get("norm_topk", False),
        memory=((0, c, 0.0),),
        offset_sd=offset_sd,
        topic=TOPIC,
        noise=(0.24, 0.45),
        lookahead_m=min(2 * k, n),
        mark="generic",
        facts=tuple(f"{row.model}, top-{row.top_k} of {row.n_experts}: {_said(row)}; {row.source}" for row in ROWS),
        assumptions=tuple(_assumed(name, (k, n), nearest)),
        **LENGTHS,
    )


def _said(row: Row) -> str:
    return f"overlap of consecutive tokens {row.overlap:.3f}, by popularity alone {row.popularity:.3f}"


def _assumed(name: str, shape: tuple[int, int], nearest: tuple[int, int]) -> list[str]:
    """What a generic preset takes for granted."""
    overlap, popularity = aim(name, *shape)
    aims = f"overlap {overlap:.3f} (chance {shape[0] / shape[1]:.3f}), by popularity alone {popularity:.3f}"
    how = "its row of the facts" if name in OWN else "interpolated over top-k and experts from the facts"
    lines = [f"GENERIC: nothing was fitted to this model's own text but {aims}: {how}"]
    if name not in OWN and nearest != shape:
        lines.append(f"memory and popularity as fitted for top-{nearest[0]} of {nearest[1]}, the nearest shape")
    if name not in OWN:
        lines.append("interpolated likewise, five captured models were off by 0.10 in overlap and 0.12 in LRU hit rate")
    return [
        *lines,
        "memory, popularity and topic share (0.25): one set for all layers; a phrase fades by 0.75 a token",
        "chosen by softmax over all experts, whatever the router: no sigmoid, no groups, no scaling of the weights",
        "prediction noise as for mixtral-8x7b: predictor recall is an assumption, not a measurement",
        "layers and experts are independent of each other; prompt, generation, encoder and decoder are alike",
    ]


def control(preset: Preset) -> Preset:
    """The uniform control of a preset."""
    k, n = preset.top_k, preset.n_experts
    drawn = f"every token draws {k} of {n} experts, all sets alike: overlap {k / n:.3f}, whatever is popular"
    said = (f"UNIFORM: {drawn}; a control, no guess at the model",)
    return replace(preset, pattern="uniform", mark="uniform", noise=(), facts=(), assumptions=said)


def _of_lengths(preset: Preset, requests: int | None, prompt: int | None, generated: int | None) -> Preset:
    """The preset with so many requests, of so many tokens; without logits, where they would be too many."""
    for flag, value in (("prompt", prompt), ("generated", generated)):
        if value is not None and value < 1:
            raise TraceError(f"--{flag}: {value}; must be at least 1 token")
    made = preset if prompt is None else replace(preset, prompt=(prompt, prompt))
    made = made if generated is None else replace(made, generation=(generated, generated))
    each = max(made.prompt) + max(made.generation)
    most = MOST_AT_ONCE // (each * preset.n_experts)
    made = replace(made, requests=preset.requests if requests is None else requests)
    if not 0 < made.requests <= most:
        of = f"of {each} tokens " if max(preset.prompt) + max(preset.generation) != each else ""
        raise TraceError(f"--requests: {made.requests}; from 1 to {most} {of}of {preset.model}")
    said = () if preset.mark else (f"but here {made.requests} requests of up to {each} tokens, not those of the fit",)
    size = made.requests * each * len(made.moe_layers) * made.n_experts
    if made.pattern == "model" and size > MOST_LOGITS:
        made, said = replace(made, logits=False), (*said, f"no logits: they would take {2 * size / 1e6:,.0f} MB")
    return replace(made, assumptions=(*preset.assumptions, *said))
