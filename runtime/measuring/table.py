"""A validation record as Markdown."""

from typing import Any

from runtime.measuring.agreement import CASES, COMPONENTS, REGIMES
from traces.statistics.describe import LOUD

SAID = {
    "median": "median error of the time per token, without sign",
    "worst": "worst error of the time per token, without sign",
    "tau": "Kendall's tau over pairs that measurement tells apart",
    "equal": "hits and decisions equal, lock-step and through the core",
    "without_link": "median error of the time that is not stall, without sign",
    "regimes": "arms with stall under 20 %, between, over 80 % of the time",
    "capacities": "judged capacities, in slots of a layer, that no calibrating arm of the link had",
}
SHOWS_NOT = {  # by the one regime that there is
    "compute": "wait for the link under 20 % of the time: as good as link-free, an error of transfers would not show",
    "mixed": "wait for the link 20 to 80 % of the time; errors of transfers and kernels may hide each other",
    "stall": "wait for the link over 80 % of the time: as good as compute-free, an error of kernels would not show",
}
NOTE = """\
Error = (simulated - measured) / measured, of the time per token; spread: robust standard deviation of the replays over
their median. Without link: of the time that is not stall. Slots: of a layer. Chained prompt: one long request, made of
the rows of several, its prompt in prefill steps. The parts: (simulated - measured) of the part over the measured total.
Copies: of the link's own time. Hits: simulated; range of the free-running replays. Lock-step: decisions that were equal
when the device replayed the simulator's order of completions."""


def markdown(out: dict[str, Any]) -> str:
    """The whole record in one page."""
    device, trace = out["device"], out["trace"]
    about = (
        f"{trace['model']} with widths x {out['scale']:g} in {out['precision']}; torch {device.get('torch')}; "
        f"{len(out['arms'])} arms, {_rounds(out)}. "
        f"Drift of the machine by round: {', '.join(f'{d:.2f}' for d in out['drift'])}. "
        f"Longest prompt in prefill steps: {_most(out, 'longest_prompt')} tokens; "
        f"longest context: {_most(out, 'longest_context')}."
    )
    lines = [*_loud(out), f"# Simulated against measured: {trace['name']} on {device.get('what', 'a device')}", ""]
    lines += [] if trace["real"] else [LOUD, ""]
    lines += [f"    {out.get('command', '')}", "", about, "", *_left_out(out)]
    lines += [*_statements(out), "", *_arms(out), "", NOTE, "", *_kernels(out), ""]
    return "\n".join(lines + _links(out))


def _rounds(out: dict[str, Any]) -> str:
    """How many, and what of the time they took."""
    asked = "" if out["rounds_asked"] is None else f" of the {out['rounds_asked']} that were asked for"
    return f"{out['rounds']} rounds{asked}, {out['seconds']:.0f} s of {out['deadline_s']:g} s"


def _kernels(out: dict[str, Any]) -> list[str]:
    """What an expert takes of the device and of the host: a replay in Python may be bound by the host."""
    lines = [f"* one expert, {tokens_of(k)}: {said(k)}" for k in out["kernels"]]
    if not any(k["ahead"] for k in out["kernels"]):
        return lines
    shares = [row["gpu_busy_ns"] / row["measured_ns"]["experts"] for row in out["arms"]]
    busy = f"By that, experts keep the device busy for {min(shares):.0%} to {max(shares):.0%} of what the arms spend on"
    return [*lines, "", f"{busy} them."]


def tokens_of(found: dict[str, Any]) -> str:
    """`1 token`, `4 tokens`."""
    return f"{found['tokens']} token{'s' * (found['tokens'] > 1)}"


def said(found: dict[str, Any]) -> str:
    """A runtime.measuring.microbenchmarks.Kernel in words."""
    device, host, seen = (found[name] / 1e3 for name in ("device_ns", "host_ns", "seen_ns"))
    if not found["ahead"]:
        return f"{seen:.1f} us until the host has seen its end; the host was not ahead of its kernels"
    bound = ": HOST-BOUND" if host > device else ""
    return f"GPU busy {device:.1f} us of the {seen:.1f} us that the host takes to launch it and see its end{bound}"


def _loud(out: dict[str, Any]) -> list[str]:
    """What a record cannot show that has cases of one regime alone; nothing of another."""
    if out["kind"] == "full":
        return []
    cases = [row["regime"] for row in out["arms"]]
    if out["kind"] == "thin":
        said = ", ".join(f"{cases.count(name)} {name}" for name in REGIMES)
        return [f"*** THIN: {said} arms; less than {CASES} in a second regime show little of it ***", ""]
    return [f"*** {out['kind'].upper()}: all {len(cases)} arms {SHOWS_NOT[cases[0]]} ***", ""]


def _most(out: dict[str, Any], name: str) -> str:
    """The largest of what the cases have under a name."""
    return f"{max(row[name] for row in out['arms']):,}"


def _left_out(out: dict[str, Any]) -> list[str]:
    """Capacities that nobody asked for and that there is no room for."""
    return [line for left in out["left_out"] for line in (f"Left out, cache {left['cache']}: {left['why']}", "")]


def _statements(out: dict[str, Any]) -> list[str]:
    lines = ["| statement | found | asked | verdict |", "|---|---|---|---|"]
    for name, stated in out["statements"].items():
        found, asked = _found(name, stated)
        lines.append(f"| {SAID[name]} | {found} | {asked} | {stated['verdict']} |")
    return lines


def _found(name: str, stated: dict[str, Any]) -> tuple[str, str]:
    value, asked = stated["value"], stated["asked"]
    if name == "equal":
        return {True: "all", False: "not all", None: "all that were replayed"}[value], "all"
    if name == "regimes":
        return ", ".join(str(n) for n in value.values()), f">= {asked} in {stated['regimes']} of them"
    if name == "capacities":
        found = [f"{link}: {', '.join(map(str, slots)) or 'none'}" for link, slots in value.items()]
        return "; ".join(found), f">= {asked} each, or all"
    if name == "without_link":
        worst = "" if value is None else f"; worst {stated['worst']:.1%} ({stated['arm']})"
        return ("-" if value is None else f"{value:.1%}") + worst, f"<= {asked:.0%}"
    if name == "tau":
        return ("-" if value is None else f"{value:.2f}") + f" ({stated['pairs']} pairs)", f">= {asked}"
    return f"{value:.1%}", f"<= {asked:.0%}"


def _arms(out: dict[str, Any]) -> list[str]:
    rows = out["arms"]
    parts = [name for name in COMPONENTS if any(r["measured_ns"][name] or r["simulated_ns"][name] for r in rows)]
    head = ["arm", "slots", "stall", "measured ms", "spread", "simulated ms", "error", "without link"]
    head += [*parts, "copies", "hits", "lock-step"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(_cells(row, parts))} |" for row in rows]


def _cells(row: dict[str, Any], parts: list[str]) -> list[str]:
    low, high = min(row["hits"]["measured"]), max(row["hits"]["measured"])
    return [
        row["arm"],
        str(row["capacity"]),
        f"{row['stall_share']:.0%}",
        f"{row['measured_ns']['total'] / 1e6:.2f}",
        "-" if row["spread"] is None else f"{row['spread']:.1%}",
        f"{row['simulated_ns']['total'] / 1e6:.2f}",
        _signed(row["error"]),
        _signed(row["error_without_link"]),
        *(_signed(row["component_share"][name]) for name in parts),
        _signed(row["component_error"]["copies"]),
        f"{row['hits']['simulated']}; {low}" + (f"-{high}" if high > low else ""),
        _locked(row["lock_step"]),
    ]


def _locked(found: dict[str, Any]) -> str:
    if found["equal"]:
        return f"{found['decisions']:,} equal"
    return str(found["error"] or found["difference"])


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


TERMS = ("transfer_idle_ns", "commit_gap_ns", "decide_ns")


def _links(out: dict[str, Any]) -> list[str]:
    """The calibrations in short: the hardware files say more."""
    head = "| link | GB/s | slots | transfer us | gap us | decide us | dense us | expert us | head us | widest spread |"
    lines = [head, "|" + "---|" * 10]
    for link in out["links"]:
        m = out["calibration"][link["name"]]
        ns = [m[name] for name in TERMS] + [table["ns"][0] for table in (m["dense"][0], m["expert"], m["head"])]
        gbps = "its own" if link["gbps"] is None else f"{link['gbps']:g}"
        widest = max(m["uncertainty"].items(), key=lambda term: float(term[1]["spread"]))
        known = f"{widest[1]['spread']:.0%} ({widest[0]})"
        gbps += " | " + ", ".join(map(str, link["calibrated_at"]))
        lines.append(f"| {link['name']} | {gbps} | " + " | ".join(f"{v / 1e3:.0f}" for v in ns) + f" | {known} |")
    return lines
