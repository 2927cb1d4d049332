"""What a sweep comes to: the best policies of each setting, in words."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sim.outcome.how_sure import how_sure, key_of
from sim.outcome.marks import OPEN_LOOP, SYNTHETIC, UNSURE
from sim.outcome.report import prompt_rate
from sim.sweeps.rows import COLUMNS, Row, pair_of

SPEC = [name for name in COLUMNS if name.startswith("spec.")]
POLICY = (
    "eviction", "prefetch", "prefetch_budget", "miss", "rerank", "placement", "transfer_order", "cache_scope",
    "cache_spread", "set", "seed",
)  # fmt: skip
COLUMNS_READ = [
    "error", "synthetic", "open_loop", "oracle", "catalog_costs", "tokens_per_s", "total_tokens_per_s", "low",
    "tokens_per_s_interval.low", "tokens_per_s_interval.high",
    "quality.substituted_weight", "quality.dropped_weight", *SPEC,
]  # fmt: skip
MOST_LINES = 24
T = TypeVar("T")


def answer(rows: Sequence[Row]) -> str:
    """For each setting (whatever varies beside the policies) the fastest policy that an engine could have, and the
    fastest lossy one where that is faster still. Oracles compete only where there is nothing else."""
    good = [row for row in rows if row["error"] is None]
    lines = []
    if any(row["synthetic"] for row in good):
        lines.append(f"! {SYNTHETIC}")
    if any(row["open_loop"] for row in good):
        lines.append(f"! {OPEN_LOOP}")
    if any(row["catalog_costs"] and _sure(row) is None for row in good):
        lines.append(f"! {UNSURE}")
    varying = [name for name in SPEC if len({row[name] for row in good}) > 1]
    setting = [name for name in varying if name.removeprefix("spec.") not in POLICY]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in good:
        groups.setdefault(tuple(row[name] for name in setting), []).append(row)
    found = [line for group in groups.values() for line in _best(group, setting, varying)]
    lines += [*found[:MOST_LINES], *(["..."] if len(found) > MOST_LINES else [])]
    return "\n".join(lines)


def speed(row: Mapping[str, Any]) -> float:
    """Generated tokens per second, or with prompts where none is generated."""
    return row["tokens_per_s"] or row["total_tokens_per_s"] or 0.0


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
    lossless = [row for row in causal if not row["open_loop"]]
    best = max(lossless, key=speed, default=None)
    lossy = max((row for row in causal if row["open_loop"]), key=speed, default=None)
    where = _fields(group[0], setting) or "best"
    lines = [] if best is None else [_line(where, best, setting, varying, "")]
    if lossy is not None and (best is None or speed(lossy) > speed(best)):
        lost = lost_weight(lossy)
        share = "an unknown share" if math.isinf(lost) else f"{lost:.2%}"
        lines.append(_line(where, lossy, setting, varying, f"  LOSSY, open loop: {share} of the router weight"))
    return lines


def _line(where: str, row: Row, setting: Sequence[str], varying: Sequence[str], tail: str) -> str:
    policies = _fields(row, [name for name in varying if name not in setting])
    oracle = "  ORACLE" if row["oracle"] else ""
    return f"{where}: {speed(row):,.2f} tokens/s{how_sure(_sure(row), None)}  {policies}{oracle}{tail}"


def _fields(row: Mapping[str, Any], names: Sequence[str]) -> str:
    shown = {name.removeprefix("spec."): row[name] for name in names}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value not in (None, "{}"))
