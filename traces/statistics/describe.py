"""The statistics of a trace, or of a frequency profile, in words, for people."""

from collections.abc import Iterable, Mapping
from typing import Any

from traces.format.profile import Profile
from traces.format.trace import RoutingTrace
from traces.statistics.doubts import known_doubts

LONGEST_FACTS = 1000  # characters: a model has about 25 facts
LOUD = "*** SYNTHETIC: generated, not captured from a model ***"
MARKS = {  # of meta, by its key: what must be said of a synthetic trace besides
    "generic": "GENERIC: of a model of that shape, not fitted to that model",
    "uniform": "the UNIFORM control: every token draws anew, no expert is liked",
}


def marked(meta: Mapping[str, Any]) -> str:
    """` (GENERIC: ...)`, or nothing: to be said behind the loud words."""
    return "".join(f" ({words})" for key, words in MARKS.items() if meta.get(key) is True)


def size(trace: RoutingTrace) -> str:
    """How long a trace is: what commands say of what they have written."""
    return f"{len(trace.requests()[0]):,} requests, {trace.n_tokens:,} tokens"


def describe(facts: dict[str, Any], name: str) -> str:
    """What `traces.statistics.stats.info` returned, as lines without a final newline. name: of the file."""
    kind = "a real capture" if facts["real"] else LOUD + marked(facts)
    rows = dict(facts["provenance"]) | {"content hash": facts["content_hash"]}
    rows |= {"model facts": _facts(facts["model_facts"])} if "model_facts" in facts else {}
    rows |= _shape(facts["shape"]) | _left_out(facts["left_out"]) | _groups(facts.get("groups", {}))
    return _lines(f"{name}: {facts['model']}, {kind}", rows | _statistics(facts), facts["doubts"])


def describe_profile(profile: Profile, name: str) -> str:
    """A frequency profile, likewise."""
    counts, meta = profile.counts, profile.meta
    share = counts / counts.sum(axis=1, keepdims=True)
    used = (counts > 0).sum(axis=1)
    kind = "from real routing" if meta["real"] else "*** SYNTHETIC ***"
    source = ", ".join(str(meta[key]) for key in ("tool", "layout", "source") if meta.get(key))
    top_k = f"top-{meta['top_k']}" if "top_k" in meta else "top-k not known"
    rows = {
        "source": source or "not said",
        "layers": f"{profile.n_moe_layers} MoE; {profile.n_experts} experts, {top_k}",
        "uses": f"{counts.sum():,.0f}, {counts.sum() / profile.n_moe_layers:,.0f} a layer",
        "top share": f"mean {share.max(axis=1).mean():.3f} of a layer's uses go to its first expert"
        f" (even: {1 / profile.n_experts:.3f})",
        "used": f"{used.min()} to {used.max()} of a layer's {profile.n_experts} experts",
    }
    title = f"{name}: frequency profile of {profile.model}, {kind} (counts, no trace: it cannot be replayed)"
    return _lines(title, rows, known_doubts(profile))


def _lines(title: str, rows: Mapping[str, object], doubts: Iterable[str]) -> str:
    said = (f"! {plain(doubt)}" for doubt in doubts)
    return "\n".join([plain(title), *said, *(f"  {key:18} {plain(value)}" for key, value in rows.items())])


def _shape(size: dict[str, Any]) -> dict[str, str]:
    tokens = f"{size['tokens']:,} in {size['requests']:,} requests"
    layers = f"{size['moe_layers']} MoE of {size['layers']}"
    return {
        "tokens": f"{tokens} ({size['prompt_tokens']:,} prompt, {size['generated_tokens']:,} generated)",
        "layers": f"{layers}; {size['experts']} experts, top-{size['top_k']}",
        "arrays": ", ".join(f"{name} {dtype}" for name, dtype in size["arrays"].items()),
        "missing slots": f"{size['missing_slots']:,}",
    }


def _left_out(rows: Mapping[str, int]) -> dict[str, str]:
    """What its reader left out."""
    return {"left out": "; ".join(f"{n:,} {what}" for what, n in rows.items())} if rows else {}


def _facts(facts: object) -> str:
    """What the meta says of the model, which nobody has checked, on one line."""
    said = facts.items() if isinstance(facts, dict) else [("no table:", facts)]
    text = ", ".join(f"{key} {value}" for key, value in said)
    return text if len(text) <= LONGEST_FACTS else text[: LONGEST_FACTS - 3] + "..."


def _groups(groups: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """How many requests are of which group."""
    return {key: ", ".join(f"{value} {n:,}" for value, n in of.items()) + " requests" for key, of in groups.items()}


def _statistics(facts: dict[str, Any]) -> dict[str, str]:
    spread, common = facts["popularity"]["mean"], facts["overlap"]
    first = facts["co_activation"]
    windows = {f"{n} tokens": mean for n, mean in facts["working_set"]["mean"].items()}
    return {
        "popularity": _named(spread),
        "overlap": f"{_figure(common['recorded'])} of a token's experts were used by the token before it"
        f" (random {_figure(common['random'])}; from popularity alone {_figure(common['popularity'])})",
        "reuse distance": _named(facts["reuse_distance"]["quantiles"]) + " (other experts of the layer)",
        "working set": _named(windows) + " (experts of the layer)",
        "router entropy": _entropy(facts["router_entropy"]),
        "co-activation": f"{_figure(first['top_companion'])} of an expert's uses have its first companion"
        f" (random {_figure(first['random'])})",
    }


def _entropy(entropy: dict[str, Any]) -> str:
    of = {"weights": "of the chosen experts' weights", "logits": "over all experts"}
    parts = [f"{_figure(e['bits'])} bits {of[name]}" for name, e in entropy.items() if e is not None]
    return ", ".join(parts) or "- (no weights, no logits)"


def _named(values: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_figure(value)}" for name, value in values.items())


def _figure(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def plain(value: object) -> str:
    """One line of printable ASCII: meta is the file's author's."""
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in str(value))
