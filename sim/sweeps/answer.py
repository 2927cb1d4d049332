"""What a sweep comes to: the best policies of each setting, in words. Settings that are no alternatives of each other
(another trace, machine, model, batch, cache) are never set against each other."""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sim.outcome.closed_loop import between
from sim.outcome.how_sure import TIE, how_sure, key_of
from sim.outcome.marks import OPEN_LOOP, SYNTHETIC, UNSURE
from sim.outcome.report import prompt_rate
from sim.spec import came_later, defaults
from sim.sweeps.rows import COLUMNS, Row, pair_of

SPEC = [name for name in COLUMNS if name.startswith("spec.")]
SEED = "spec.seed"
CHOICES = (
    "eviction", "prefetch", "prefetch_budget", "miss", "rerank", "placement", "transfer_order", "transfer_chunk",
    "expert_group", "cache_scope", "cache_spread", "set", "seed", "bulk", "bulk_rows", "bulk_touch", "stages", "serial",
    "merge", "whole_layer", "ahead", "beside", "defer", "n_cpu_moe", "override_tensor", "dense_on_host", "speculate",
)  # fmt: skip  # what an engine does; every other field is the work, the machine or what memory there is
SPEEDS = ["tokens_per_s", "total_tokens_per_s"]
CLOSED = ["closed_loop.time_percent.low", "closed_loop.time_percent.high"]
LOST = ["quality.substituted_weight", "quality.dropped_weight"]
FITS = ["memory.fits", "memory.host.fits"]
SURE = ["tokens_per_s_interval.low", "tokens_per_s_interval.high"]
COLUMNS_READ = [
    "error", "synthetic", "open_loop", "oracle", "catalog_costs", "low", *FITS, *SPEEDS, *SURE, *CLOSED, *LOST, *SPEC,
]  # fmt: skip
MOST_LINES = 24
T = TypeVar("T")


def answer(rows: Sequence[Row], swept: Container[str] | None = None) -> str:
    """For each setting (whatever varies beside CHOICES) the fastest policy that an engine could have, and the fastest
    lossy one where that is faster still, by the mean over seeds; who is within a hundredth of it ties. Oracles, and
    what does not fit, compete only where there is nothing else. swept: the fields that are named (None: all that
    vary); what an engine sets goes without saying."""
    good = [row for row in rows if row["error"] is None]
    lines = []
    if any(row["synthetic"] for row in good):
        lines.append(f"! {SYNTHETIC}")
    if any(row["open_loop"] for row in good):
        lines.append(f"! {OPEN_LOOP}")
    if any(row["catalog_costs"] and _sure(row) is None for row in good):
        lines.append(f"! {UNSURE}")
    varying = [name for name in SPEC if len({row[name] for row in good}) > 1]
    setting = [name for name in varying if name.removeprefix("spec.") not in CHOICES]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in good:
        groups.setdefault(tuple(row[name] for name in setting), []).append(row)
    if swept is not None:
        setting, varying = (
            [name for name in some if name.removeprefix("spec.") in swept] for some in (setting, varying)
        )
    found = [line for group in groups.values() for line in _best(_joined(group), setting, varying)]
    left = len(found) - MOST_LINES
    lines += [*found[:MOST_LINES], *([f"... and {left:,} more: python -m analysis.report DIR"] if left > 0 else [])]
    return "\n".join(lines)


def _joined(rows: Sequence[Row]) -> list[Row]:
    """Rows that differ in their seed alone as one: the mean of them, so that no draw of luck is the best."""
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault(tuple(row[name] for name in SPEC if name != SEED), []).append(row)
    return [mine[0] if len(mine) == 1 else _mean(mine) for mine in alike.values()]


def _mean(rows: Sequence[Row]) -> Row:
    out = {**rows[0], SEED: None, "repeats": len(rows)}
    for name in (*SPEEDS, *SURE, *LOST):
        values = [row[name] for row in rows]
        out[name] = None if None in values else sum(values) / len(values)
    return out


def speed(row: Mapping[str, Any]) -> float:
    """Generated tokens per second, or with prompts where none is generated."""
    return row["tokens_per_s"] or row["total_tokens_per_s"] or 0.0


def _fits(row: Row) -> bool:
    return not any(row[name] is False for name in FITS)


def _sure(row: Row) -> list[float] | None:
    return pair_of(row, key_of("tokens_per_s"))


def speeds(row: Mapping[str, Any]) -> tuple[float, float]:
    """(speed, prompt tokens per second) of a row."""
    return speed(row), prompt_rate(row) or 0.0


def by_prompts(found: Iterable[T], speeds_of: Callable[[T], tuple[float, float]], ties: float) -> list[T]:
    """The fastest first; but what is slower than the fastest by no more than the share `ties` of it goes by the speed
    of its prompts; then the same of the rest. Of equals, who stood first."""
    left, out = sorted(found, key=lambda each: -speeds_of(each)[0]), []
    while left:
        least = speeds_of(left[0])[0] * (1 - ties)
        equal = [each for each in left if speeds_of(each)[0] >= least]
        out += sorted(equal, key=lambda each: -speeds_of(each)[1])
        left = left[len(equal) :]
    return out


def lost_weight(row: Row) -> float:
    """Share of the wanted router weight that a stand-in answered for, or nobody. Infinite where it is not known: of
    runs that failed, that re-rank, or that answered with low-precision copies."""
    lost = (row["quality.substituted_weight"], row["quality.dropped_weight"])
    unknown = row["error"] is not None or None in lost or row["spec.rerank"] != "none" or row["low"]
    return math.inf if unknown else float(sum(lost))


def _best(group: Sequence[Row], setting: Sequence[str], varying: Sequence[str]) -> list[str]:
    causal = [row for row in group if not row["oracle"]] or list(group)
    causal = [row for row in causal if _fits(row)] or causal
    lossless = [row for row in causal if not row["open_loop"]]
    lossy = [row for row in causal if row["open_loop"]]
    where = _fields(group[0], setting) or "best"
    lines = [_line(where, lossless, setting, varying, "")] if lossless else []
    if lossy and (not lossless or max(map(speed, lossy)) > max(map(speed, lossless))):
        fastest = max(lossy, key=speed)
        lost, ends = lost_weight(fastest), [fastest[name] for name in CLOSED]
        share = "an unknown share" if math.isinf(lost) else f"{lost:.2%}"
        closed = "" if None in ends else f"; closed loop: time {between(*ends)}"
        lines.append(_line(where, lossy, setting, varying, f"  LOSSY, open loop: {share} of the router weight{closed}"))
    return lines


def _line(where: str, rows: Sequence[Row], setting: Sequence[str], varying: Sequence[str], tail: str) -> str:
    """The fastest of the rows, and what must be said with it."""
    row = max(rows, key=speed)
    policies = _fields(row, [name for name in varying if name not in setting])
    ties = sum(speed(each) * (1 + TIE) >= speed(row) for each in rows) - 1
    said = {
        "  ORACLE": row["oracle"],
        "  DOES NOT FIT": not _fits(row),
        f"  mean of {row.get('repeats')} seeds": "repeats" in row,
        f"  TIE: {ties:,} more within {100 * TIE:g} %": ties,
    }
    marks = "".join(text for text, holds in said.items() if holds)
    return f"{where}: {speed(row):,.2f} tokens/s{how_sure(_sure(row), None)}  {policies}{marks}{tail}".rstrip()


def _fields(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """Each with its value; of one that a spec is saved without, the default's."""
    shown = {name.removeprefix("spec."): row[name] for name in names}
    unsaid = {name: defaults()[name] for name, value in shown.items() if value is None and came_later(name)}
    said = {name: unsaid.get(name, value) for name, value in shown.items()}
    return ", ".join(f"{name} {value}" for name, value in said.items() if value not in (None, "{}"))
