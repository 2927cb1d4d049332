"""What a run comes to: the one JSON object (for people: sim.outcome.table)."""

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
from sim.machines.record import RunRecord
from sim.memo import Memo, afresh
from sim.outcome import closed_loop, price
from sim.outcome.bounds import LOSSLESS, applicable, bounds, executed_bounds
from sim.outcome.engine_words import engine_told
from sim.outcome.how_sure import intervals
from sim.outcome.marks import OPEN_LOOP, SYNTHETIC, short_of_ram
from sim.outcome.summary import summarise
from sim.outcome.verdict import facts_of, verdict
from sim.policies.registry import find
from sim.prepare import Setting, fitted
from traces.format import npz
from traces.statistics.describe import marked, plain
from traces.statistics.doubts import known_doubts


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
    if marks["open_loop"]:
        out["closed_loop"] = closed_loop.told(out, setting.plan.rerank is not None)
    out["notes"] = _notes(setting, marks, out, memo)
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


def _notes(setting: Setting, marks: Mapping[str, Any], out: Mapping[str, Any], memo: Memo) -> list[str]:
    """What must be said wherever these figures are shown. out: the summary so far."""
    m = out["memory"]
    notes = [SYNTHETIC + marked(setting.trace.meta)] if marks["synthetic"] else []
    said = memo(("doubts of", setting.trace_hash, setting.trace.n_tokens), lambda: known_doubts(setting.trace))
    notes += [f"TRACE: {plain(doubt)}" for doubt in said]
    prefetch, miss = find("prefetch", setting.spec.prefetch), find("miss", setting.spec.miss)
    if marks["synthetic"] and "lookahead" in (*prefetch.needs, *miss.needs):
        notes.append("the recall of this trace's lookahead is an assumption of its generator")
    if marks["open_loop"]:
        notes += [OPEN_LOOP, closed_loop.words(out["closed_loop"], setting.plan.rerank is not None)]
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
