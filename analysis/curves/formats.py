"""A miss curve as text: a table for people, CSV, one JSON object."""

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.curves.curve import DECODE, FLAGS, HARDLY, Curve, Row
from sim.catalog.intervals import DECODE as DECODING
from sim.catalog.intervals import LEVEL, stated
from sim.outcome.marks import START, SYNTHETIC, UNSURE, machine_words, short_of_ram
from traces.statistics.describe import marked

if TYPE_CHECKING:
    from sim.prepare import Setting

SHOWN = 24  # lines of the table
SAID = ("trace", "eviction", "miss", "prefetch", *FLAGS)  # of the spec


def notes(setting: "Setting") -> list[str]:
    """What must be said wherever these figures are shown."""
    starts_full = [] if setting.spec.placement == "empty" else [START]
    made = [] if setting.trace.real else [SYNTHETIC + marked(setting.trace.meta)]
    always = [*made, *starts_full]
    return [*always, *short_of_ram(setting.memory), *_how_sure(setting)]


def _how_sure(setting: "Setting") -> list[str]:
    """Of an engine's costs alone, beside which every size of one LRU runs: what a file states, or that nobody knows."""
    found = stated(setting.spec.engine, setting.hardware, DECODING)
    if found is not None:
        return [f"{100 * LEVEL:g} %: between {found.low:g} and {found.high:g} times these tokens/s"]
    return [UNSURE] if setting.hardware.durations is None else []


def headlines(setting: "Setting") -> list[str]:
    """What was looked at."""
    plan, spec = setting.plan, setting.spec
    what = "of the pool" if plan.pooled else "per layer"
    return [
        f"{spec.trace}: {setting.trace.model}, {plan.experts.shape[1]} MoE layers x {plan.n_experts} experts, "
        f"top-{plan.experts.shape[2]}; {plan.generated:,} generated tokens",
        f"{machine_words(spec.model_dump())}, engine {spec.engine}, {spec.precision}; LRU, slots {what}, "
        f"batch {spec.batch}",
    ]


def findings(found: Curve) -> list[str]:
    """What the curve says, in words."""
    knee, sharpness = found.knee()
    hardly = " (hardly one: every slot pays alike)" if sharpness < HARDLY else ""
    lines = [
        f"cliff  {found.cliff} slots: as many as one step wants; below, its own experts do not fit",
        f"knee   {knee} slots: sharpness {sharpness:.2f}{hardly}",
    ]
    if found.fits is not None:
        lines.append(f"fits   {found.fits} slots: the most that the GPU's memory holds beside the rest")
    return [*lines, "misses are exact; tokens/s are predicted from them, the error is against the simulator"]


def table(setting: "Setting", found: Curve, lines: Sequence[Row]) -> str:
    """The curve as text: every marked or checked capacity, and evenly spread ones between."""
    spread = set(np.linspace(0, len(lines) - 1, min(len(lines), SHOWN)).round().astype(int).tolist())
    heads = ("slots", "share", "GB", "hit rate", "misses/token", "tokens/s", "simulated", "error")
    loud = [f"! {note}" for note in notes(setting)]
    text = [*headlines(setting), *loud, "", *findings(found), "", " ".join(f"{head:>12}" for head in heads)]
    for i, row in enumerate(lines):
        if i not in spread and not row["marks"] and row["simulated_tokens_per_s"] is None:
            continue
        simulated, error = row["simulated_tokens_per_s"], row["error"]
        cells = (
            f"{row['slots']}", f"{row['share']:.1%}", f"{row['gb']:,.2f}", f"{row['hit_rate']:.2%}",
            f"{row['misses_per_token']:.2f}", f"{row['tokens_per_s']:,.2f}",
            "" if simulated is None else f"{simulated:,.2f}", "" if error is None else f"{error:+.1%}",
        )  # fmt: skip
        text.append((" ".join(f"{cell:>12}" for cell in cells) + "  " + ", ".join(row["marks"])).rstrip())
    return "\n".join(text)


def as_csv(setting: "Setting", found: Curve, lines: Sequence[Row]) -> str:
    """A line per capacity; marks joined by a blank."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "marks": " ".join(row["marks"])} for row in lines)
    return out.getvalue().rstrip("\n")


def as_json(setting: "Setting", found: Curve, lines: Sequence[Row]) -> str:
    """One object: the rows and what they depend on."""
    knee, sharpness = found.knee()
    trace = setting.trace
    out = {
        "trace": {"name": setting.spec.trace, "hash": setting.trace_hash, "model": trace.model, "real": trace.real},
        "spec": {name: value for name, value in setting.spec.saved().items() if name in SAID},
        "notes": notes(setting),
        "tokens": found.tokens,
        "wanted": int(found.wanted[DECODE]),
        "cliff": found.cliff,
        "knee": knee,
        "sharpness": sharpness,
        "fits": found.fits,
        "rows": list(lines),
        "misses_by_layer": None if setting.plan.pooled else found.misses[DECODE].tolist(),
    }
    return json.dumps(out)


FORMATS = {"table": table, "csv": as_csv, "json": as_json}
