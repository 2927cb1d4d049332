"""What a run comes to: the one JSON object, and the same for people."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim import __version__
from sim.capacity import vram_bytes
from sim.catalog.files import FROM_META
from sim.core.plan import LOSSY, Plan
from sim.costs.roofline import needed
from sim.engines import KNOBS
from sim.flags import flag_words
from sim.machines.record import RunRecord
from sim.memo import Memo, afresh
from sim.outcome import price
from sim.outcome.bounds import LOSSLESS, applicable, bounds, executed_bounds
from sim.outcome.engine_words import engine_told
from sim.outcome.how_sure import NOT_CALIBRATED, any_interval, how_sure, intervals, key_of
from sim.outcome.marks import OPEN_LOOP, SYNTHETIC, machine_words, short_of_ram, starts_free
from sim.outcome.summary import summarise
from sim.outcome.verdict import facts_of, verdict
from sim.policies.registry import find
from sim.prepare import Setting, fitted
from traces.format import npz
from traces.statistics.describe import marked, plain
from traces.statistics.doubts import known_doubts

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


def result(setting: Setting, record: RunRecord, memo: Memo = afresh) -> dict[str, Any]:
    """The summary object: figures, bounds, verdict, memory, and everything the run depended on."""
    spec = setting.spec
    out = summarise(record)
    out["quality"] = _quality(setting, record, out["wanted"], memo)
    out["memory"] = setting.memory
    out["slots"] = _slots(setting.plan)
    out["start"] = _start(setting.plan)
    if record.windows:
        out["speculation"] = _speculation(setting, record, out)
    out["bounds"] = _bounds_of(setting, record, memo)
    out["verdict"] = verdict(facts_of(setting, out, memo))
    marks = _marks(setting, out["memory"]["fits"])
    out["notes"] = _notes(setting, marks, out["memory"], memo)
    out["machine"] = spec.machine
    if (engine := engine_told(setting)) is not None:
        out |= {"engine": engine, "prompt_tokens_per_s": prompt_rate(out)}
    out |= intervals(setting, out) | price.priced(spec, out)
    out["spec"] = spec.saved(("machine",))
    out["trace"] = _trace(setting)
    out["policy_files"] = setting.policy_files
    if setting.policy_from:
        out["policy_from"] = setting.policy_from
    out["version"] = __version__
    return out | {"marks": marks}


def prompt_rate(out: Mapping[str, Any]) -> float | None:
    """Prompt tokens per second of prefill, of a summary or a row; None without any."""
    return out["prompt_tokens"] * 1e9 / out["prefill_ns"] if out["prefill_ns"] else None


def _marks(setting: Setting, fits: bool | None) -> dict[str, bool | None]:
    """What `sim.outcome.summary.Marks` says of the run."""
    return {
        "synthetic": not setting.trace.real,
        "open_loop": not _lossless(setting),
        "oracle": any(find(kind, name).oracle for kind, name in setting.spec.policies.items()),
        "fits": fits,
        "calibrated": setting.hardware.measured is not None,
        "catalog_costs": setting.hardware.durations is None,
    }


def _slots(plan: Plan) -> dict[str, int]:
    slots, low = plan.slots, plan.low
    sizes = {"total": int(slots.sum()), "scopes": len(slots), "least": int(slots.min()), "most": int(slots.max())}
    return sizes | {"low": 0 if low is None else int(low.slots.sum())}


def _start(plan: Plan) -> dict[str, int]:
    n, (first, each) = len(plan.residents), plan.costs.in_a_row_ns
    return {"residents": n, "bytes": n * plan.expert_bytes, "load_ns": first + (n - 1) * each if n else 0}


def _speculation(setting: Setting, record: RunRecord, out: Mapping[str, Any]) -> dict[str, Any]:
    """What the counted windows gave; see summary._Speculation."""
    columns = {name: column[record.windows["step"] >= record.warmup_steps] for name, column in record.windows.items()}
    windows, tokens = len(columns["rows"]), int(columns["accepted"].sum())
    each = {"distinct_experts": out["wanted"], "h2d_bytes": sum(out["h2d_bytes"].values())}
    return {
        "n": setting.spec.speculate,
        "windows": windows,
        "rows": int(columns["rows"].sum()),
        "accepted": tokens,
        "accepted_per_window": tokens / windows if windows else None,
        **{f"{name}_per_token": count / tokens if tokens else None for name, count in each.items()},
    }


def _bounds_of(setting: Setting, record: RunRecord, memo: Memo) -> dict[str, int]:
    """The bounds of the classes that this run belongs to, in ns (loads: transfers). What runs of other policies have in
    common with it, none of whom has rules on a miss, is found once for all of them."""
    plan, names = setting.plan, applicable(setting.plan)
    every = executed_bounds(plan, record)
    if LOSSLESS[0] in names:
        rules = None if plan.on_miss is None else setting.rules
        places = (plan.pooled, *(sha256(array.tobytes()).hexdigest() for array in (plan.slots, plan.residents)))
        key = ("bounds", setting.costed, rules, plan.warmup_steps, plan.group, *places)
        every |= memo(key, lambda: bounds(plan))
    return {name: every[name] for name in names if name in every}


def _trace(setting: Setting) -> dict[str, Any]:
    trace, calibration = setting.trace, setting.calibration
    return {
        "hash": setting.trace_hash,
        "model": trace.model,
        "real": trace.real,
        "source": trace.meta.get("source"),
        "tokens": trace.n_tokens,
        "moe_layers": trace.n_moe_layers,
        "n_experts": trace.n_experts,
        "top_k": trace.top_k,
        "calibration_tokens": None if calibration is None else calibration.n_tokens,
        "assumptions": trace.meta.get("assumptions"),
    }


def _quality(setting: Setting, record: RunRecord, wanted: int, memo: Memo) -> dict[str, Any]:
    c, layer = record.counters, record.layer
    out: dict[str, Any] = {"wanted_before_rerank": c["wanted_before"], "wanted": wanted}
    if _lossless(setting):
        return out | {"substituted_weight": 0.0, "dropped_weight": 0.0}
    total, by_layer = c["weight_wanted"], layer["weight_wanted"]
    known = setting.plan.weights is not None and total > 0
    for name in ("substituted", "dropped"):
        out[f"{name}_weight"] = c[f"weight_{name}"] / total if known else None
        share = np.divide(layer[f"weight_{name}"], by_layer, out=np.zeros_like(by_layer), where=by_layer > 0)
        out[f"{name}_weight_by_layer"] = share.tolist() if known else None
    out["per_token_p95"] = _per_token(setting, record, memo) if known else None
    out["expected_error"] = c["weight_missed"] / total if known and setting.plan.similarity is not None else None
    return out | {"stopped": {name.removeprefix("stopped_"): n for name, n in c.items() if name.startswith("stopped_")}}


def _per_token(setting: Setting, record: RunRecord, memo: Memo) -> float | None:
    """The 95th percentile, over the counted tokens, of the share of a token's router weight that was lost."""
    if not record.tokens:
        return None
    key = ("router weight", setting.costed.steps, setting.plan.warmup_steps)
    rows, wanted = memo(key, lambda: _router_weight(setting))
    share = np.divide(record.tokens["lost_weight"][rows], wanted, out=np.zeros(len(rows)), where=wanted > 0)
    return float(np.percentile(share, 95, method="inverted_cdf", overwrite_input=True))


def _router_weight(setting: Setting) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """(trace rows [n] of the counted tokens, the router weight that each wants [n])."""
    plan = setting.plan
    first = int(plan.step_offset[plan.warmup_steps])
    rows = plan.step_row[first:][plan.accepted[first:]]
    assert setting.trace.weights is not None  # the plan's weights are the trace's
    weights = setting.trace.weights[rows].astype(np.float64)
    return rows, np.where(plan.experts[rows] >= 0, weights, 0.0).sum(axis=(1, 2))


def _lossless(setting: Setting) -> bool:
    plan = setting.plan
    deferring = plan.on_miss is not None and plan.on_miss.defer > 0
    return not plan.miss.marks & LOSSY and plan.rerank is None and not deferring


def _notes(setting: Setting, marks: Mapping[str, Any], m: Mapping[str, Any], memo: Memo) -> list[str]:
    """What must be said wherever these figures are shown. m: bytes of memory."""
    notes = [SYNTHETIC + marked(setting.trace.meta)] if marks["synthetic"] else []
    said = memo(("doubts of", setting.trace_hash, setting.trace.n_tokens), lambda: known_doubts(setting.trace))
    notes += [f"TRACE: {plain(doubt)}" for doubt in said]
    prefetch, miss = find("prefetch", setting.spec.prefetch), find("miss", setting.spec.miss)
    if marks["synthetic"] and "lookahead" in (*prefetch.needs, *miss.needs):
        notes.append("the recall of this trace's lookahead is an assumption of its generator")
    if marks["open_loop"]:
        notes.append(OPEN_LOOP)
    if setting.model is not None and setting.model.source == FROM_META:
        notes.append(f"{setting.trace.model} is in no catalog: its sizes are {FROM_META}; --model replaces them")
    if _fitted_on_the_judged(setting, memo):
        notes.append(f"FITTED ON WHAT IS JUDGED: the lists of {setting.spec.params('miss')['lists']} are of this trace")
    if setting.model is not None and setting.trace.top_k < setting.model.top_k and "doubts" not in setting.trace.meta:
        few = f"{setting.trace.top_k} experts a token, the model {setting.model.top_k}"
        notes.append(f"TRACE: reduced top-k: {few}")
    if setting.repeated:
        notes.append(f"{setting.repeated} requests set aside to fit on have the routing of a request that is judged")
    if str(setting.spec.calibration).removesuffix(".npz") in npz.sample_names() and fitted(setting.spec):
        notes.append(f"fitted on the shipped sample {setting.spec.calibration}, whose requests are not judged")
    measured = setting.hardware.measured
    if measured is not None:
        shrunk = "" if measured.scale == 1 else f" with its sizes x {measured.scale:g}"
        notes.append(f"MEASURED: durations from a calibration on {measured.device}, of {measured.model}{shrunk}")
    notes += [
        f"ORACLE: {name} reads the future{', as it says itself' * policy.user}; no engine can"
        for kind, name in setting.spec.policies.items()
        if (policy := find(kind, name)).oracle
    ]
    room, has = vram_bytes(setting.spec, setting.hardware), setting.hardware.mem_bytes
    if room is not None and has is not None and room > has:
        notes.append(f"{room / 1e9:.2f} GB is more than the {has / 1e9:.2f} GB that {setting.spec.hardware} has")
    if marks["fits"] is False:
        need = needed(m) / 1e9
        sizes = f"needs {need:.1f} GB of GPU memory, has {m['gpu'] / 1e9:.1f} GB"
        notes.append(f"DOES NOT FIT: {sizes}; times as if it did")
    return notes + short_of_ram(m)


def _fitted_on_the_judged(setting: Setting, memo: Memo) -> bool:
    """Whether the miss policy was handed buddy lists that were made from the very trace that the run judges."""
    lists = setting.spec.params("miss").get("lists")
    if not lists:
        return False
    from sim.fit.buddies_file import read

    source = memo(("lists of", lists), lambda: read(Path(str(lists))).meta.get("trace", {}))
    return isinstance(source, dict) and source.get("content_hash") == setting.trace_hash


# --- for people ---


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
