"""A validation record as Markdown."""

from typing import Any

from runtime.agreement import COMPONENTS
from traces.describe import LOUD

SAID = {
    "median": "median |error| of the time per token",
    "worst": "worst |error| of the time per token",
    "tau": "Kendall's tau over pairs told apart",
    "equal": "hits and decisions equal in lock-step",
}


def markdown(out: dict[str, Any]) -> str:
    """The whole record in one page."""
    lines = [f"# Simulated against measured: {out['trace']['name']} on {out['device'].get('what', 'a device')}", ""]
    lines += [] if out["trace"]["real"] else [LOUD, ""]
    lines += [
        f"`{out.get('command', '')}`",
        "",
        f"{out['trace']['model']} with widths x {out['scale']:g} in {out['precision']}; torch {out['device'].get('torch')}; "
        f"{len(out['arms'])} arms, {out['rounds']} rounds, {out.get('seconds', 0):.0f} s. "
        f"Drift of the machine by round: {', '.join(f'{d:.2f}' for d in out['drift'])}.",
        "",
        *_statements(out),
        "",
        *_arms(out),
        "",
        "Error = (simulated - measured) / measured. Spread: half the range of the replays over their median. Without link: "
        "of the time that is not stall. Components: (simulated - measured) of the part, over the measured total; copies: of "
        "the link's own time. Hits: simulated, and the range of the free-running replays; in lock-step they are equal.",
        "",
        *_links(out),
    ]
    return "\n".join(lines)


def _statements(out: dict[str, Any]) -> list[str]:
    lines = ["| statement | found | asked | verdict |", "|---|---|---|---|"]
    for name, s in out["statements"].items():
        value = s["value"]
        found = "-" if value is None else str(value) if isinstance(value, bool) else _figure(name, value)
        asked = "all" if name == "equal" else (">= " if name == "tau" else "<= ") + _figure(name, s["asked"])
        more = f" ({s['pairs']} pairs)" if "pairs" in s else ""
        lines.append(f"| {SAID[name]} | {found}{more} | {asked} | {s['verdict']} |")
    return lines


def _figure(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "tau" else f"{value:.1%}"


def _arms(out: dict[str, Any]) -> list[str]:
    parts = [
        name for name in COMPONENTS if any(row["measured_ns"][name] or row["simulated_ns"][name] for row in out["arms"])
    ]
    head = [
        "arm",
        "stall",
        "measured ms",
        "spread",
        "simulated ms",
        "error",
        "without link",
        *parts,
        "copies",
        "hits",
        "lock-step",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in out["arms"]:
        measured, simulated = row["measured_ns"]["total"] / 1e6, row["simulated_ns"]["total"] / 1e6
        low, high = min(row["hits"]["measured"]), max(row["hits"]["measured"])
        cells = [
            row["arm"],
            f"{row['stall_share']:.0%}",
            f"{measured:.2f}",
            f"{row['spread']:.1%}",
            f"{simulated:.2f}",
            _signed(row["error"]),
            _signed(row["error_without_link"]),
            *(_signed(row["component_share"][name]) for name in parts),
            _signed(row["component_error"]["copies"]),
            f"{row['hits']['simulated']}; {low}" + (f"-{high}" if high > low else ""),
            _locked(row["lock_step"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _locked(found: dict[str, Any]) -> str:
    if found["equal"]:
        return f"{found['decisions']:,} equal"
    return str(found["error"] or found["difference"])


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


def _links(out: dict[str, Any]) -> list[str]:
    lines = ["| link | GB/s | transfer us | gap us | dense us | expert us | decide us | head us |", "|" + "---|" * 8]
    for link in out["links"]:
        m = out["calibration"][link["name"]]
        dense = next(t for t in m["dense"] if t["phase"] == "decode" or len(m["dense"]) == 1)
        numbers = (
            m["transfer_idle_ns"], m["commit_gap_ns"], dense["ns"][0], m["expert"]["ns"][0], m["decide_ns"], m["head"]["ns"][0]
        )  # fmt: skip
        gbps = "its own" if link["gbps"] is None else f"{link['gbps']:g}"
        lines.append(f"| {link['name']} | {gbps} | " + " | ".join(f"{ns / 1e3:.0f}" for ns in numbers) + " |")
    return lines
