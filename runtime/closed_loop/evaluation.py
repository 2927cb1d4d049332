"""The figures of one closed-loop run, and the text that what is fitted in it is fitted on."""

from __future__ import annotations

from typing import Any

from runtime.closed_loop.judged_model import JudgedModel
from runtime.closed_loop.loop import ClosedLoop
from runtime.closed_loop.mean_outputs import MeanOutputs, measured
from runtime.closed_loop.priced_as import priced_as
from runtime.closed_loop.quality import figures
from runtime.closed_loop.runs import Baseline, JudgedRun, calibrate, judge
from runtime.closed_loop.text_windows import TextWindows, text_windows
from sim.machines.record import RunRecord
from sim.outcome.summary import summarise
from sim.policies.registry import find
from sim.prepare import fitted
from sim.spec import RunSpec
from traces.errors import UserError
from traces.format import npz
from traces.format.trace import RoutingTrace

# fields of RunSpec that a closed loop of one sequence at a time has no use for
LEFT_OUT = (
    "trace", "model", "requests", "reset", "batch", "prefill_chunk", "as_decode", "skip_prompts", "speculate", "accept",
    "draft_ns", "warmup_share", "max_steps", "machine", "price_per_hour", "watts", "idle_watts", "config",
)  # fmt: skip
CALIBRATION_TOKENS = 16384


def evaluated(
    model: JudgedModel,
    spec: RunSpec,
    text: TextWindows,
    base: Baseline,
    calibration: RoutingTrace | None = None,
    like: str | None = None,
    means: MeanOutputs | None = None,
) -> tuple[dict[str, Any], JudgedRun]:
    """(the figures of one teacher-forced closed-loop run, the run). Raises UserError, one line."""
    loop = ClosedLoop(spec, model.shape, calibration, priced_as(model.model, model.shape, like), means=means)
    run = judge(model, text, loop, base)
    summary, tokens = summarise(run.record), run.trace.n_tokens
    out = {
        "quality": figures(run.sums, spec.seed),
        "shares": shares(run.record, run.trace, run.reranked),
        "speed": {
            "time_ns_per_token": summary["time_ns"] / summary["tokens"],
            "tokens_per_s": summary["tokens_per_s"],
            "h2d_bytes": sum(summary["h2d_bytes"].values()),
            "h2d_bytes_per_token": sum(summary["h2d_bytes"].values()) / tokens,
            "breakdown_ns": summary["breakdown_ns"],
        },
        "counts": {name: summary[name] for name in ("wanted", "hits", "late", "misses", "evictions", "transfers")},
        "charged": loop.setting.model.name if loop.setting.model else None,
    }
    return out, run


def shares(record: RunRecord, trace: RoutingTrace, reranked: tuple[int, float]) -> dict[str, float]:
    """Shares of all slots that the router filled (trace), and of their router weight. Re-ranking comes first: what it
    replaced (slots, weight) is no miss any more."""
    c = record.counters
    assert trace.weights is not None
    slots, weight = int((trace.experts >= 0).sum()), float(trace.weights.sum())
    return {
        "substituted_slots": c["substituted"] / slots,
        "dropped_slots": c["dropped"] / slots,
        "cpu_slots": c["cpu"] / slots,
        "low_slots": c["low"] / slots,
        "substituted_weight": c["weight_substituted"] / weight,
        "dropped_weight": c["weight_dropped"] / weight,
        "reranked_slots": reranked[0] / slots,
        "reranked_weight": reranked[1] / weight,
    }


def needs_calibration(spec: RunSpec) -> bool:
    """Whether something in the run is fitted, or takes a threshold from other text."""
    percentile = {**find("miss", spec.miss).prepared, **spec.params("miss")}.get("percentile", -1)
    return bool(fitted(spec) or float(percentile) >= 0)


def calibration_of(model: JudgedModel, spec: RunSpec, tokens: int, text: str | None) -> RoutingTrace | None:
    """The trace that the spec names, or one captured now from text that is not judged; None where nothing is fitted."""
    if isinstance(spec.calibration, float):
        raise UserError("calibration: a fraction is of a trace's requests; give a FILE, or leave it out")
    if spec.calibration is not None:
        return npz.read(npz.find(spec.calibration))
    return captured(model, tokens, spec.seed, text) if needs_calibration(spec) else None


def captured(model: JudgedModel, tokens: int, seed: int, text: str | None) -> RoutingTrace:
    """A calibration trace of about so many tokens, from text that is not judged."""
    return calibrate(model, _other_text(model, tokens, seed, text))


def means_of(model: JudgedModel, spec: RunSpec, tokens: int, text: str | None) -> MeanOutputs | None:
    """The mean outputs of the model's experts on that text, None where the miss policy has no use for them."""
    if not find("miss", spec.miss).mean:
        return None
    return means_on(model, _other_text(model, tokens, spec.seed, text))


def means_on(model: JudgedModel, text: TextWindows) -> MeanOutputs:
    """The mean outputs of the model's experts on windows of text."""
    return measured(model.model, lambda tokens: model.forward(tokens, model.fresh()), text.tokens)


def _other_text(model: JudgedModel, tokens: int, seed: int, text: str | None) -> TextWindows:
    """Windows of about so many tokens that are not judged."""
    length = min(model.context, 256)
    return text_windows(model.tokens, max(1, tokens // length), length, seed, text, False, model.lead)
