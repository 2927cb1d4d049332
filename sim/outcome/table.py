"""What a run comes to, for people: the summary object as text."""

from collections.abc import Mapping
from typing import Any

from sim.engines import KNOBS
from sim.flags import flag_words
from sim.outcome import price
from sim.outcome.how_sure import NOT_CALIBRATED, any_interval, how_sure, key_of
from sim.outcome.marks import machine_words, starts_free

# What each bound is about, wherever it is shown; and the one figure beside them that bounds no other run.
BOUNDS = {
    "lossless_ns": "any lossless policy on the GPU, oracles included",
    "demand_ns": "any lossless policy on the GPU without prefetch",
}
KEEPING = ", that keeps what it fetches"
LIMITS = BOUNDS | {
    "executed_ns": "this run's own transfers and kernels, perfectly overlapped; another policy may need less"
}
COUNTING = ("requests", "reset", "warmup_share", "transfer_chunk")
WINDOWS = ("speculate", "accept", "draft_ns")
ANSWERED = ("substituted", "dropped", "cpu", "low", "streamed", "remote", "deferred")  # shown where there are any
FITS = {True: "fits", False: "DOES NOT FIT", None: "unknown whether it fits"}


def table(out: dict[str, Any]) -> str:
    """The same object as text."""
    spec, trace = out["spec"], out["trace"]
    rerank = "" if spec["rerank"] == "none" else f", rerank {spec['rerank']}"
    lines = [
        f"{spec['trace']}: {trace['model']}, {trace['moe_layers']} MoE layers x {trace['n_experts']} experts, "
        f"top-{trace['top_k']}; {out['requests']} requests, "
        f"{out['prompt_tokens']} prompt + {out['tokens']} generated tokens",
        f"{machine_words(spec)}, engine {spec['engine']}{' (its costs alone)' * bool(spec.get('engine_as_costs'))}, "
        f"{spec['precision']}; "
        f"cache {cache_words(out)}, eviction {spec['eviction']}, "
        f"prefetch {spec['prefetch']}, miss {spec['miss']}{rerank}, batch {spec['batch']}; {out['machine']} machine",
        *([out["engine"]["words"]] if "engine" in out else []),
        *_counting(spec),
        *(f"! {note}" for note in out["notes"]),
        "",
        *_speed(out),
        *_windows(out),
        "",
        *_time(out),
        *price.told(out),
        "",
        *_cache(out),
        "",
        *_memory(out),
        *_bounds(out),
        f"{'verdict':<12} {out['verdict']}",
    ]
    return "\n".join(lines)


def _counting(spec: Mapping[str, Any]) -> list[str]:
    """What else makes a run count otherwise than another of the same choices."""
    names = COUNTING + WINDOWS * (spec.get("speculate") is not None)
    fields = {name: spec[name] for name in names if spec.get(name) not in (None, "none")}
    said = flag_words(fields | {"set": spec.get("set") or {}})
    return [f"with {' '.join(said)}"] if said else []


def cache_words(out: Mapping[str, Any]) -> str:
    """The cache as it was asked for and what that came to: `24 slots per layer`, `0.5 (4 of 8 experts per layer)`,
    `60GB (170 slots over 32 layers, 5 to 6 per layer)`, `pool of 128 slots`."""
    asked, slots, trace = _cache_asked(out["spec"]), out["slots"], out["trace"]
    total, least, most = (f"{slots[name]:,}" for name in ("total", "least", "most"))
    pooled = out["spec"]["cache_scope"] == "global"
    low = f", and {slots['low']:,} slots of low-precision copies" if slots["low"] else ""
    if isinstance(asked, int) and asked == slots["least"] == slots["most"]:
        return (
            f"pool of {total} slot{'s' * (asked > 1)}" if pooled else f"{least} slot{'s' * (asked > 1)} per layer"
        ) + low
    if pooled:
        came_to = f"pool of {total} slots for {trace['moe_layers'] * trace['n_experts']:,} experts"
    elif least == most:
        came_to = f"{least} of {trace['n_experts']:,} experts per layer"
    else:
        came_to = f"{total} slots over {slots['scopes']:,} layers, {least} to {most} per layer"
    return f"{asked} ({came_to}){low}"


def _cache_asked(spec: Mapping[str, Any]) -> Any:
    """The cache, or the flag that says it in llama.cpp's words."""
    told = [name for name in KNOBS[1:] if spec.get(name) is not None]
    return f"{told[0].replace('_', '-')} {spec[told[0]]}" if told else spec["cache"]


def _figure(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _speed(out: dict[str, Any]) -> list[str]:
    lines = [f"{'tokens/s':<12} {_speeds(out)}, {_figure(out['total_tokens_per_s'])} with prompts{_unsure(out)}"]
    lines.append(f"{'ms':<12} {'mean':>12} {'p50':>12} {'p95':>12} {'p99':>12} {'n':>8}")
    for name in ("tpot", "itl", "ttft"):
        row = out[f"{name}_ms"]
        values = " ".join(f"{_figure(row[key], 3):>12}" for key in ("mean", "p50", "p95", "p99"))
        lines.append(f"{name.upper():<12} {values} {row['n']:>8}")
    return lines + _free_start(out)


def _speeds(out: dict[str, Any]) -> str:
    """Each with its interval; where none has one that is said once, behind them."""
    words = {"tokens_per_s": "generated", "prompt_tokens_per_s": "of prompts"}
    said = [speed for speed in words if speed in out]
    unsure = bool(out["marks"].get("catalog_costs")) and not _unsure(out)
    sure = [how_sure(out.get(key_of(speed)), unsure and out[speed] is not None) for speed in said]
    return ", ".join(f"{_figure(out[speed])} {words[speed]}{how}" for speed, how in zip(said, sure, strict=True))


def _unsure(out: dict[str, Any]) -> str:
    """Of a run of catalog costs of which no speed has an interval."""
    return f"; {NOT_CALIBRATED}" if out["marks"].get("catalog_costs") and not any_interval(out) else ""


def _windows(out: dict[str, Any]) -> list[str]:
    """Of a run that speculates."""
    if (found := out.get("speculation")) is None:
        return []
    per = ", {accepted_per_window:.2f} a window".format(**found) if found["windows"] else ""
    each = f"{_figure(found['distinct_experts_per_token'])} distinct experts and "
    sent = "-" if found["h2d_bytes_per_token"] is None else f"{found['h2d_bytes_per_token'] / 1e6:,.1f} MB"
    prompts = ", prompts included" if out["prompt_tokens"] else ""
    return [
        f"{'speculation':<12} windows of {found['n']}: {found['rows']:,} rows in {found['windows']:,} windows, "
        f"{found['accepted']:,} accepted{per}",
        f"{'':<12} a token: {each}{sent} to the GPU{prompts}; what rejected rows would have been routed to nobody "
        "recorded: the trace's own next rows stand for it",
    ]


def _free_start(out: dict[str, Any]) -> list[str]:
    if not starts_free(out):
        return []
    start = out["start"]
    there = f"{start['residents']:,} experts ({start['bytes'] / 1e9:.2f} GB, placement {out['spec']['placement']})"
    load = f"the {start['load_ns'] / 1e9:.3f} s of loading them"
    return [f"{'start':<12} {there} are there at time 0; TTFT and hits do not pay {load}"]


def _time(out: dict[str, Any]) -> list[str]:
    total = out["time_ns"] or 1
    parts = " ".join(f"{name} {ns / total:.1%}" for name, ns in out["breakdown_ns"].items())
    stall = out["breakdown_ns"]["stall"] or 1
    causes = " ".join(f"{name} {ns / stall:.1%}" for name, ns in out["stall_ns_by_cause"].items())
    return [f"{'time':<12} {out['time_ns'] / 1e9:.3f} s: {parts}", f"{'stall by':<12} {causes}"]


def _cache(out: dict[str, Any]) -> list[str]:
    wanted = out["wanted"] or 1
    counts = ", ".join(f"{name} {out[name]:,} ({out[name] / wanted:.1%})" for name in ("hits", "late", "misses"))
    usual = ("demand", "prefetch", "background")
    sent = ", ".join(f"{name} {size / 1e9:,.1f} GB" for name, size in out["h2d_bytes"].items() if size or name in usual)
    lines = [
        f"{'wanted':<12} {out['wanted']:,}: {counts}; {out['evictions']:,} evictions",
        f"{'H2D':<12} {sent}; link busy {out['link_busy_ns'] / (out['time_ns'] or 1):.1%}",
    ]
    if out["spec"]["prefetch"] != "none":
        found, t = out["prefetched"], out["transfers"]
        landed = sum(found.values()) or 1
        ends = ", ".join(f"{name} {n:,} ({n / landed:.1%})" for name, n in found.items())
        others = ", ".join(f"{name} {t[name]:,}" for name in ("promoted", "withdrawn", "rejected"))
        lines.append(f"{'prefetched':<12} {ends}; {others}")
    slots = out["slots_wanted"] or 1
    answered = [(name, out[name]) for name in ANSWERED if out.get(name)]
    if answered:
        shares = ", ".join(f"{name} {n:,} ({n / slots:.2%} of slots)" for name, n in answered)
        lines.append(f"{'answers':<12} {shares}")
    lines += _by_rules(out)
    quality = out["quality"]
    if quality.get("stopped") is not None:
        lost = ", ".join(f"{name} {_share(quality[f'{name}_weight'])}" for name in ("substituted", "dropped"))
        lines.append(f"{'router weight':<12} {lost}; a token's p95 {_share(quality['per_token_p95'])}")
        stopped = ", ".join(f"{name} {n:,}" for name, n in quality["stopped"].items() if n)
        if stopped:
            lines.append(f"{'stopped by':<12} {stopped}")
    return lines


def _by_rules(out: dict[str, Any]) -> list[str]:
    """Of runs that do more on a miss: what went into stages, what was admitted, what the host did."""
    if out.get("stages") is None:
        return []
    stages, admission, host, lines = out["stages"], out["admission"], out["host"], list[str]()
    if stages["copies"]:
        most = f"at most {stages['most']:,} stages at once, {out['link_transfers']:,} transfers in all"
        lines.append(f"{'streamed':<12} {stages['copies']:,} experts ({stages['unwanted']:,} unwanted); {most}")
    if (reads := out["remote_reads"])["experts"]:
        share = f"{reads['ns'] / (out['time_ns'] or 1):.1%} of the time"
        lines.append(f"{'remote':<12} {reads['experts']:,} experts read where they lie in host memory, {share}")
    if out.get("chunks"):
        lines.append(f"{'chunks':<12} {out['chunks']:,} parts of transfers that a demand may pass")
    if any(admission.values()):
        lines.append(f"{'admission':<12} " + ", ".join(f"{name} {n:,}" for name, n in admission.items()))
    if host["experts"]:
        busy = f"busy {host['ns'] / (out['time_ns'] or 1):.1%} of the time"
        lines.append(f"{'host':<12} computed {host['experts']:,} experts, {busy}")
    return lines


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _memory(out: dict[str, Any]) -> list[str]:
    gpu, host = out["memory"]["gpu"], out["memory"].get("host")
    card = "" if gpu is None else f" ({gpu / 2**20:,.0f} MiB)"  # as the driver names it
    lines = [f"{'memory':<12} {_sizes(out['memory'])}{card}: {FITS[out['memory']['fits']]}"]
    return lines if host is None else [*lines, f"{'host memory':<12} {_sizes(host)}: {FITS[host['fits']]}"]


def _sizes(line: Mapping[str, Any]) -> str:
    parts = {name.replace("_", "-"): size for name, size in line.items() if name not in ("fits", "host")}
    return ", ".join(f"{name} {'-' if size is None else f'{size / 1e9:.2f} GB'}" for name, size in parts.items())


def _bounds(out: dict[str, Any]) -> list[str]:
    time = out["time_ns"] or 1
    return [
        f"{'bound' if name in BOUNDS else 'own work':<12} {out['bounds'][name] / 1e9:.3f} s "
        f"({out['bounds'][name] / time:.1%} of the time) for {what}{keeping(name, out['bounds'])}"
        for name, what in LIMITS.items()
        if name in out["bounds"]
    ]


def keeping(name: str, bounds: Mapping[str, Any]) -> str:
    """What else a bound's class has where the machine has no stages (runs with them say what the host did): to run an
    expert is to keep it for a while."""
    return KEEPING if name in BOUNDS and "executed_host_ns" not in bounds else ""
