"""How far the closed loop, in which the model goes on with what it was answered, lies from an open-loop replay.

A replay keeps the trace's routing, so its bytes, time and misses are off once experts are left out or replaced: by
nothing where none is, by more the more there are. Of small models both loops are known (`runtime.study`), and
closed_loop.toml has how far apart they are, [low, high] in bytes or hits:

    ANSWERS     of what stood in for a missing expert, or nobody: percent of the misses, times the share of all slots
    RERANKING   of policies that re-rank, added to it: percent of the experts wanted; how many slots such a policy
                changed a replay does not count

Where most misses are answered without a transfer, a percent of them is many percent of the few bytes that are left;
time moves with bytes as far as it is the link's, and with hits as far as what misses is not executed (`scales`).
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sim.catalog.files import read_toml

FIGURES = {"bytes": "H2D bytes", "time": "time", "hits": "hits"}
FACTORS = ("bytes", "hits")  # have some of their own
ANSWERS, RERANKING = "answers", "reranking"
OTHERWISE = ("substituted", "dropped", "low", "deferred")  # counts of slots that were answered otherwise
FILE = Path(__file__).parent / "closed_loop.toml"
Percents = dict[str, int]  # low, high
Factors = Mapping[str, Mapping[str, Sequence[float]]]  # by ANSWERS or RERANKING, then bytes or hits: [low, high]


def otherwise(out: Mapping[str, Any]) -> int:
    """Slots of a summary that were answered otherwise; a low-precision copy, or an answer that comes late, is one."""
    return sum(int(out.get(name) or 0) for name in OTHERWISE)


def share_of(out: Mapping[str, Any]) -> float:
    """The same, of all slots."""
    return otherwise(out) / max(1, int(out["slots_wanted"]))


def scales(out: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By how many percent a figure moves where the bytes, or the hits, move by a percent of the misses; out: the
    replay's summary."""
    landed = sum(out["transfers"].get(cause) or 0 for cause in out["h2d_bytes"])
    of_bytes = (landed + otherwise(out)) / landed if landed else 0.0  # what moves nothing moves nothing there either
    of_executed = out["dropped"] / max(1, out["slots_wanted"] - out["dropped"])
    linked, executing = (ns / max(1, out["time_ns"]) for ns in (out["link_busy_ns"], out["breakdown_ns"]["experts"]))
    return {
        "bytes": {"bytes": of_bytes},
        "time": {"bytes": of_bytes * linked, "hits": of_executed * executing},
        "hits": {"hits": out["misses"] / out["hits"] if out["hits"] else 0.0},
    }


def amounts(out: Mapping[str, Any], reranks: bool) -> dict[str, float]:
    """How many times its factors each kind moves the misses, in percent of them."""
    return {ANSWERS: share_of(out), RERANKING: reranks * out["wanted"] / max(1, out["misses"])}


def bracket(out: Mapping[str, Any], reranks: bool, factors: Factors) -> dict[str, Percents]:
    """Of each figure low and high in whole percent of the replay's, rounded outward, not below -100."""
    times, found = amounts(out, reranks), {}
    for name, moved in scales(out).items():
        parts = [(scale * times[kind], factors[kind][by]) for by, scale in moved.items() for kind in times]
        low, high = (sum(amount * ends[i] for amount, ends in parts) for i in (0, 1))
        found[name] = {"low": max(-100, math.floor(low)), "high": math.ceil(high)}
    return found


def told(out: Mapping[str, Any], reranks: bool) -> dict[str, Any]:
    """What a lossy run's summary says of the closed loop; out: the rest of it."""
    found = {f"{name}_percent": pair for name, pair in bracket(out, reranks, kept()).items()}
    return {"share": share_of(out), **found, "fitted_on": ", ".join(kept()["fitted_on"])}


def words(told: Mapping[str, Any], reranks: bool) -> str:
    """The same in a line."""
    share = told["share"]
    if not share and not reranks:
        return "CLOSED LOOP: the same figures, for nothing was answered otherwise"
    because = [f"{100 * share:.1f} % of the slots answered otherwise"] if share else []
    because += ["re-ranked"] if reranks else []
    far = ", more than was measured" if share > kept()["measured_to"] else ""
    return (
        f"CLOSED LOOP: {ranges(told)} of these ({' and '.join(because)}{far}; fitted at batch 1 on {told['fitted_on']})"
    )


def ranges(told: Mapping[str, Any]) -> str:
    """`H2D bytes -9 .. +4 %, time -3 .. +1 %, hits 0 %`."""
    ends = {said: told[f"{name}_percent"] for name, said in FIGURES.items()}
    return ", ".join(f"{said} {between(pair['low'], pair['high'])}" for said, pair in ends.items())


def between(low: int, high: int) -> str:
    """`-9 .. +4 %`."""
    return f"{low:+,d} .. {high:+,d} %" if low or high else "0 %"


@cache
def kept() -> Any:
    """closed_loop.toml."""
    return read_toml(FILE)
