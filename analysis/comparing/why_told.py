"""What `analysis.against` says: how far off, where the difference lies, which part would explain it."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.comparing.own_times import OwnTimes
from analysis.comparing.seen import Seen
from analysis.comparing.why import Explanation, Why
from analysis.reading.run import Run
from analysis.showing.words import plain

Float = npt.NDArray[np.float64]
PERCENTILES = (("median", 50), ("p95", 95))
MUCH = 0.1  # of a mean time: where more is left no part alone explains the times
HINTS = {1e3: "us", 1e6: "ns", 1e-3: "s"}  # times as long as simulated: the unit that was probably meant by ms
FEW = 8  # compared steps below which no part of them is looked at alone
FEATURES = {"misses": "a miss", "H2D GB": "a GB", "context": "1,000 tokens of context", "rows": "a row"}
PER = {"context": 1000.0}
HONEST = (
    "found by scaling one part at a time and simulating again: what agrees need not be what is wrong; two parts may be "
    "wrong at once, and times that were measured with something else running belong to no part"
)


def as_dict(run: Run, found: Why) -> dict[str, Any]:
    """All of it as plain numbers."""
    compared = found.seen
    return {
        "run": run.name,
        "kind": compared.kind,
        "compared": len(compared.ms),
        "left_out": compared.left_out,
        "measured_over_simulated": _ratio(compared, found.ms),
        "rows": table(found),
        "goes_with": goes_with(found),
        "parts": (parts := [_part(one) for one in found.parts]),
        "one_part_explains_it": any(part["left_share"] is not None and part["left_share"] <= MUCH for part in parts),
        "marks": run.marks,
        "notes": run.summary["notes"],
    }


def _part(one: Explanation) -> dict[str, Any]:
    out: dict[str, Any] = {"part": one.part.name, "factor": None, "added_ms": None, "of": "time"}
    if one.factor is not None:
        out["of"] = "rate" if one.part.rate else "count" if one.note else "time"
        out["added_ms" if one.part.added else "factor"] = 1 / one.factor if one.part.rate else one.factor
    left = None if one.factor is None else one.left
    return out | {"left_share": left, "tied_with_the_best": one.tied, "why_not": one.why_not, "note": one.note}


# --- how far off ---


def table(found: Why) -> list[dict[str, Any]]:
    """A row for each part of what is compared: n, and ms measured and simulated, and their ratio."""
    compared, ms = found.seen, found.ms
    if compared.kind == "figure":
        each = zip(compared.names, compared.ms, ms, strict=True)
        return [_row(name, np.array([theirs]), np.array([ours])) for name, theirs, ours in each]
    phases = {"decode": ~compared.prefill, "prefill": compared.prefill}
    named = phases if compared.kind == "step" else {f"{compared.kind}s": np.ones(len(ms), np.bool_)}
    rows = []
    for name, some in named.items():
        if some.any():
            rows.append(_row(f"{name}, mean", compared.ms[some], ms[some]))
            rows += [_row(f"{name}, {word}", compared.ms[some], ms[some], p) for word, p in PERCENTILES]
    return rows + _stretches(found)


def _stretches(found: Why) -> list[dict[str, Any]]:
    """Early and late decode steps, and those of few and of many misses."""
    compared, features = found.seen, features_of(found)
    decode = np.flatnonzero(~compared.prefill)
    if compared.step is None or len(decode) < FEW:
        return []
    quarter = len(decode) // 4
    rows = []
    orders = {"first quarter": compared.step[decode], "fewest misses": features["misses"][decode]}
    for (low, by), high in zip(orders.items(), ("last quarter", "most misses"), strict=True):
        order = decode[np.argsort(by, kind="stable")]
        if by.min() < by.max():
            rows += [_row(name, compared.ms[at], found.ms[at]) for name, at in
                     ((f"{low}, mean", order[:quarter]), (f"{high}, mean", order[-quarter:]))]  # fmt: skip
    return rows


def _row(name: str, theirs: Float, ours: Float, percentile: int | None = None) -> dict[str, Any]:
    of = np.mean if percentile is None else lambda values: np.percentile(values, percentile, method="inverted_cdf")
    measured, simulated = float(of(theirs)), float(of(ours))
    ratio = measured / simulated if simulated else None
    return {"what": name, "n": len(theirs), "measured_ms": measured, "simulated_ms": simulated, "ratio": ratio}


def _ratio(compared: Seen, ms: Float) -> float | None:
    """Of the sums; of figures, which do not add up, of their shares."""
    each = compared.weight if compared.kind == "figure" else np.ones(len(ms))
    return float((each @ compared.ms) / (each @ ms)) if each @ ms else None


# --- where the difference lies ---


def features_of(found: Why) -> dict[str, Float]:
    """What each compared step did, [n]: misses, GB that it asked for, mean context and rows."""
    record, setting, step = found.record, found.setting, found.seen.step
    if step is None:
        return {}
    n, visits, sent = len(record.steps["prefill"]), record.groups["visits"], record.groups["transfers"]
    asked = sent["visit"] >= 0
    offset, row = setting.plan.step_offset, setting.plan.step_row
    context = np.add.reduceat(setting.trace.position[row].astype(np.float64) + setting.spec.context_offset, offset[:-1])
    every = {
        "misses": np.bincount(visits["step"], visits["misses"], n).astype(np.float64),
        "H2D GB": np.bincount(visits["step"][sent["visit"][asked]], sent["bytes"][asked], n) / 1e9,
        "context": context / np.diff(offset),
        "rows": np.diff(offset).astype(np.float64),
    }
    return {name: values[step] for name, values in every.items()}


def goes_with(found: Why) -> list[dict[str, Any]]:
    """Of each feature that varies: its correlation with the difference over decode steps, and ms by one of it."""
    some = ~found.seen.prefill
    off = (found.seen.ms - found.ms)[some]
    if len(off) < FEW or off.std() == 0:
        return []
    out = []
    for name, values in features_of(found).items():
        x = values[some]
        if x.std() > 1e-9 * abs(x.mean()):
            r = float(np.corrcoef(x, off)[0, 1])
            slope = r * float(off.std() / x.std()) * PER.get(name, 1.0)
            out.append({"what": name, "r": r, "ms": slope, "per": FEATURES[name]})
    return sorted(out, key=lambda row: -abs(row["r"]))


# --- as text ---


def text(run: Run, own: OwnTimes, found: Why) -> str:
    """For people."""
    told = as_dict(run, found)
    return "\n".join([*_head(run, own, told), *_table(told), *_goes_with(told), *_parts(told), "", f"! {HONEST}"])


def _head(run: Run, own: OwnTimes, told: Mapping[str, Any]) -> list[str]:
    count = f"{told['compared']:,} {told['kind']}{'s' * (told['compared'] != 1)}"
    left = f" ({told['left_out']:,} more are not of this run)" if told["left_out"] else ""
    ratio = told["measured_over_simulated"]
    lines = [f"{plain(own.source)}: {count}{left}, {ratio:.3f} times as long as {plain(run.name)} simulates"]
    unit = next((unit for off, unit in HINTS.items() if ratio and off / 3 < ratio < off * 3), None)
    if unit and told["kind"] != "figure":
        lines.append(f"! are these times in {unit}? A column says so: a first line `{unit}` above one number a line")
    return [*lines, *(f"! {plain(note)}" for note in run.summary["notes"])]


def _table(told: Mapping[str, Any]) -> list[str]:
    lines = ["", f"{'ms':<24} {'measured':>12} {'simulated':>12} {'ratio':>8} {'n':>8}"]
    for row in told["rows"]:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}"
        measured, simulated = row["measured_ms"], row["simulated_ms"]
        lines.append(f"{row['what']:<24} {measured:>12,.3f} {simulated:>12,.3f} {ratio:>8} {row['n']:>8,}")
    return lines


def _goes_with(told: Mapping[str, Any]) -> list[str]:
    if not told["goes_with"]:
        return []
    lines = ["", f"the difference over decode steps goes with {'r':>8}   (-1 to 1; 0: not at all)"]
    return lines + [
        f"  {row['what']:<38} {row['r']:>8.2f}   {row['ms']:+,.4f} ms by {row['per']}" for row in told["goes_with"]
    ]


def _parts(told: Mapping[str, Any]) -> list[str]:
    lines = ["", "if it were one part alone (sums agree)      left, of a mean time"]
    if told["compared"] == 1:
        lines[-1] = "if it were one part alone; one figure does not tell them apart"
    if not told["one_part_explains_it"]:
        lines.insert(
            1, f"no part alone explains this: more than {MUCH:.0%} of a mean time is left with the best of them"
        )
    for row in told["parts"]:
        if row["why_not"]:
            lines.append(f"  {row['part']:<18} {row['why_not']}")
            continue
        value = f"{row['added_ms']:+.3f} ms" if row["added_ms"] is not None else f"x {row['factor']:.3f}"
        tied = "  not told apart from the first" if row["tied_with_the_best"] else ""
        note = f"  ({row['note']})" if row["note"] else ""
        lines.append(f"  {row['part']:<18} {value:>14} {row['left_share']:>17.2%}{tied}{note}")
    return lines


def commands(run: Run) -> str:
    """What would settle it: more timings of the engine, and the machine itself."""
    spec = run.spec
    of = [
        f"--{name} {shlex.quote(str(spec[name]))}"
        for name in ("engine", "hardware", "model", "precision")
        if spec.get(name)
    ]
    if not spec.get("model"):
        of.append(f"--model {shlex.quote(str(run.trace['model']))}")
    return "\n".join([
        "what would settle it:",
        f"  python -m sim.calibrate_engine TIMINGS.csv {' '.join(of)} --out mine.toml",
        f"  python -m runtime.calibrate --trace {shlex.quote(str(spec['trace']))} --device cuda --out measured.toml",
    ])  # fmt: skip


def ordered(found: Sequence[tuple[Run, Why]]) -> list[tuple[Run, Why]]:
    """Runs, that whose sum is nearest first."""

    def off(one: tuple[Run, Why]) -> float:
        told = as_dict(*one)["measured_over_simulated"]
        return abs(np.log(told)) if told else np.inf

    return sorted(found, key=off)
