"""What must be said of a run wherever its figures are shown: the words, and when they hold."""

from collections.abc import Mapping
from typing import Any

from sim.spec import CHANGES

SYNTHETIC = "SYNTHETIC TRACE: made by a generator, not captured from a model"
OPEN_LOOP = (
    "OPEN LOOP: the policy is lossy, but the routing stays the trace's; a real model would route differently afterwards"
)
START = "START: the cache is full at time 0, free of charge; TTFT and hits do not pay for loading it"
HOST_PARTS = ("experts", "page_locked", "rest")  # of memory.host, what must fit into ram
UNSURE = (
    "NOT CALIBRATED: tokens/s from catalog costs, nobody knows how far off; runs of one engine and machine share the "
    "error, so their ratios are surer"
)
NOTICEABLE = 0.01  # of TTFT or of the hits: what the first residents save is said from here on


def machine_words(spec: Mapping[str, Any]) -> str:
    """`rtx4090`, or `rtx4090 (host epyc-9355 at 300 GB/s, link at 12.5 GB/s)`, of a run's saved spec."""
    host, reads, sends = (spec.get(name) for name in CHANGES)
    parts = {f"host {host}" if host else "host": reads, "link": sends}
    said = [part if rate is None else f"{part} at {rate:g} GB/s" for part, rate in parts.items() if rate or " " in part]
    return str(spec["hardware"]) + f" ({', '.join(said)})" * bool(said)


def short_of_ram(memory: Mapping[str, Any]) -> list[str]:
    """Where what lies on the host does not fit into its memory, a line that says so. memory: a summary's."""
    host = memory.get("host") or {}
    if host.get("fits") is not False:
        return []
    need = sum(host[part] for part in HOST_PARTS) / 1e9
    sizes = f"needs {need:.1f} GB of the host's memory, has {host['ram'] / 1e9:.1f} GB"
    return [f"DOES NOT FIT: {sizes}; times as if it did"]


def short_of_host(host: Mapping[str, Any]) -> str:
    """Why what lies on the host is no answer, part by part; host: a summary's memory.host."""
    need = sum(host[part] for part in HOST_PARTS) / 1e9
    experts, locked = host["experts"] + host["page_locked"], "page-locked " if host["page_locked"] else ""
    parts = f"{locked}experts {experts / 1e9:.2f}, the rest {host['rest'] / 1e9:.2f}"
    ram = f"which has {host['ram'] / 1e9:.2f} (--ram; reading from disk is not modelled)"
    return f"needs {need:.2f} GB of the host's memory ({parts}), {ram}"


def starts_free(out: Mapping[str, Any]) -> bool:
    """Whether the first residents, which came free of charge, are a noticeable part of TTFT or of the hits."""
    start, ttft = out["start"], out["ttft_ms"]
    waited_ns = (ttft["mean"] or 0.0) * 1e6 * ttft["n"]
    flatters = start["load_ns"] >= NOTICEABLE * waited_ns > 0 or start["residents"] >= NOTICEABLE * out["hits"] > 0
    return bool(
        start["residents"] and flatters and not (out["spec"].get("warmup_steps") or out["spec"].get("warmup_share"))
    )


def marks_without(summary: Mapping[str, Any]) -> dict[str, bool | None]:
    """Marks, as far as they can be told, of a checked summary that was written before there were any: a miss policy of
    a user's own may be lossy."""
    from sim.policies.policy import is_user  # late: with it comes the core
    from sim.policies.registry import TABLES

    spec, replaced = summary["spec"], summary["substituted"] + summary["dropped"]
    chosen = [table.get(spec[kind]) for kind, table in TABLES.items() if kind in spec]
    lossy = (
        spec.get("rerank", "none") != "none"
        or is_user(spec["miss"])
        or any(policy is not None and policy.lossy for policy in chosen)
    )
    return {
        "synthetic": summary["trace"]["real"] is not True,
        "open_loop": lossy or replaced > 0,
        "oracle": any(policy is not None and policy.oracle for policy in chosen),
        "fits": summary["memory"].get("fits"),
        "calibrated": None,
        "catalog_costs": None,
    }
