"""What a run's tokens cost and use, where somebody says what an hour and a watt are. It changes nothing that runs.

    cost of 1,000 tokens = price of an hour x hours of the run / generated tokens x 1,000
    Wh of 1,000 tokens   = (busy hours x watts + idle hours x idle watts) / generated tokens x 1,000

All counted time is of the run, prompts included; the GPU is idle while it waits for the link or the host or is told
what comes next (stall, cpu_wait, decide), and busy else. Without idle watts it uses as much idle as busy: an upper end.
"""

from collections.abc import Mapping
from typing import Any

from sim.spec import RunSpec

NS_PER_HOUR = 3600 * 10**9
IDLE = ("stall", "cpu_wait", "decide")


def priced(spec: RunSpec, out: Mapping[str, Any]) -> dict[str, Any]:
    """`cost` and `energy` of a summary, each where it is asked for; None per token where there is none."""
    found: dict[str, Any] = {}
    if spec.price_per_hour is not None:
        found["cost"] = {"per_1k_tokens": _per_1k(spec.price_per_hour * out["time_ns"], out)}
    if spec.watts is not None:
        idle_ns = sum(out["breakdown_ns"][part] for part in IDLE)
        idle_watts = spec.watts if spec.idle_watts is None else spec.idle_watts
        watt_ns = (out["time_ns"] - idle_ns) * spec.watts + idle_ns * idle_watts
        found["energy"] = {"wh_per_1k_tokens": _per_1k(watt_ns, out), "idle_ns": idle_ns}
    return found


def _per_1k(of_ns: float, out: Mapping[str, Any]) -> float | None:
    """What is counted in ns of an hour's amount, by 1,000 generated tokens."""
    return of_ns / NS_PER_HOUR / out["tokens"] * 1000 if out["tokens"] else None


def told(out: Mapping[str, Any]) -> list[str]:
    """The lines of a table; no currency is anybody's but the reader's."""
    spec, lines = out["spec"], list[str]()
    if out.get("cost"):
        each = out["cost"]["per_1k_tokens"]
        lines.append(f"{'cost':<12} {_figure(each)} per 1,000 generated tokens, at {spec['price_per_hour']:g} an hour")
    if out.get("energy"):
        each, busy = out["energy"]["wh_per_1k_tokens"], 1 - out["energy"]["idle_ns"] / (out["time_ns"] or 1)
        idle = spec.get("idle_watts")
        else_ = "as much while it waits" if idle is None else f"else {idle:g} W"
        how = f"GPU busy {busy:.1%} of the time at {spec['watts']:g} W, {else_}"
        lines.append(f"{'energy':<12} {_figure(each)} Wh per 1,000 generated tokens: {how}")
    return lines


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"
