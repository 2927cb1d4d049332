"""The study's result as files: table (markdown, CSV), figure (SVG, drawn here), everything (JSON)."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from sim.experiments.tables import Column, Report
from sim.outcome.marks import machine_words
from traces.command import write_bytes

NAME = "closed_loop"
COLUMNS = (
    Column("cache", "c", 3),
    Column("arm", "arm"),
    Column("delta_percent", "bits/byte, % over unmodified", 2, signed=True),
    Column("delta_interval", "95 % interval"),
    Column("kl", "KL, nats/token", 4),
    Column("accuracy_delta", "next-token accuracy, points", 2, signed=True),
    Column("accuracy_interval", "95 % interval"),
    Column("agreement", "same best guess %", 1),
    Column("substituted", "substituted slots %", 1),
    Column("dropped", "dropped slots %", 1),
    Column("reranked", "re-ranked slots %", 1),
    Column("h2d_mb", "H2D MB/token", 2),
    Column("ms", "ms/token", 3),
    Column("gain_percent", "tokens/s vs fetch %", 1, signed=True),
    Column("open_h2d", "replay's H2D, % off", 1, signed=True),
    Column("open_ms", "replay's ms, % off", 1, signed=True),
    Column("open_substituted", "replay's substituted slots %", 1),
    Column("bits_per_byte", "bits/byte", 5, csv_only=True),
    Column("perplexity_ratio", "perplexity ratio", 5, csv_only=True),
    Column("substituted_weight", "substituted weight %", 2, csv_only=True),
    Column("dropped_weight", "dropped weight %", 2, csv_only=True),
)
FOOT = (
    "CLOSED LOOP: the model computed what the policy gave it, so routing, bytes and time are those of the changed "
    "model. The last three columns are the OPEN-LOOP replay of the unmodified model's routing under the same policy: "
    "what a replay would have said, as a difference to the closed loop.",
    "Intervals: over passages, paired with the unmodified model; draws of `random` arms are one seed's.",
    "A gated arm fetches what its gates or budget keep from substitution; `next-ranked`, `random`, `drop` and first "
    "fit fetch nothing while somebody is there to stand in: their residents stay the first c of each layer, whatever "
    "the text wants. All arms are lru from there; where nothing is fetched there is nothing to evict.",
    "matched-*: the gates and budget of reading B (rho 3), a stand-in only where a buddy was there, chosen another "
    "way; the ungated arms are that to first fit. A buddy list is worth what separates its row from its controls.",
    "Time and bytes are simulated: layers and experts as wide as those of the model charged, as many as the live one "
    "has.",
)


def command_line(argv: Sequence[str]) -> str:
    """The command as one would type it."""
    return shlex.join(["python", "-m", "runtime.study", *argv])


def flat(row: dict[str, Any], fetch_ns: float) -> dict[str, Any]:
    """One row of the table."""
    quality, shares, speed, replay = (row[name] for name in ("quality", "shares", "speed", "open_loop"))
    base = quality["base_bits_per_byte"]["value"]
    delta, accuracy = quality["bits_per_byte_delta"], quality["accuracy_delta"]
    low, high = (100 * delta[end] / base for end in ("low", "high"))
    ns, h2d = speed["time_ns_per_token"], speed["h2d_bytes"]
    return {
        "cache": row["cache"],
        "arm": row["arm"],
        "group": row["group"],
        "delta_percent": 100 * delta["value"] / base,
        "delta_interval": f"{low:+.2f} .. {high:+.2f}",
        "low": low,
        "high": high,
        "kl": quality["kl_nats"]["value"],
        "accuracy_delta": 100 * accuracy["value"],
        "accuracy_interval": f"{100 * accuracy['low']:+.2f} .. {100 * accuracy['high']:+.2f}",
        "agreement": 100 * quality["agreement"]["value"],
        "substituted": 100 * shares["substituted_slots"],
        "dropped": 100 * shares["dropped_slots"],
        "reranked": 100 * shares["reranked_slots"],
        "substituted_weight": 100 * shares["substituted_weight"],
        "dropped_weight": 100 * shares["dropped_weight"],
        "h2d_mb": speed["h2d_bytes_per_token"] / 1e6,
        "ms": ns / 1e6,
        "gain_percent": 100 * (fetch_ns / ns - 1),
        "open_h2d": 100 * (replay["h2d_bytes"] / h2d - 1) if h2d else 0.0 if not replay["h2d_bytes"] else None,
        "open_ms": 100 * (replay["time_ns_per_token"] / ns - 1),
        "open_substituted": 100 * replay["substituted_slots"],
        "bits_per_byte": quality["bits_per_byte"]["value"],
        "perplexity_ratio": quality["perplexity_ratio"]["value"],
    }


def flattened(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the table."""
    fetch = {row["cache"]: row["speed"]["time_ns_per_token"] for row in result["rows"] if row["arm"] == "fetch"}
    return [flat(row, fetch[row["cache"]]) for row in result["rows"]]


def report(result: dict[str, Any]) -> Report:
    """The whole report."""
    rows, text, settings = flattened(result), result["text"], result["settings"]
    base = result["rows"][0]["quality"]
    head = [
        *findings(rows),
        f"model {result['model']}; {text['sequences']} passages x {text['length']} tokens of {text['source']}, "
        f"{text['predicted_bytes']} bytes predicted; {result['loop']}",
        f"unmodified: {base['base_bits_per_byte']['value']:.4f} bits per byte, next-token accuracy "
        f"{100 * base['base_accuracy']['value']:.2f} %",
        f"fitted on {result['calibration_tokens']:,} tokens of other files; seed {settings['seed']}; "
        f"{result['interval']}",
        f"charged as {settings['charge']} in {settings['precision']} on {machine_words(settings)}, engine "
        f"{settings['engine']}; eviction {settings['eviction']}, no prefetch, first residents: {settings['placement']}",
    ]
    return Report("Closed loop: what a policy costs in quality", head, COLUMNS, rows, FOOT)


def findings(rows: list[dict[str, Any]]) -> list[str]:
    """What is true on this model, in sentences made of the figures."""
    made = (_on_the_claim(rows), _gated(rows), _against_controls(rows), [_cheapest(rows), _open_against_closed(rows)])
    return [line for lines in made for line in lines]


CLAIM_PERCENT = 0.3


def _on_the_claim(rows: list[dict[str, Any]]) -> list[str]:
    """The paper's "negligible loss", and a web summary's "< 0.3 %"."""
    buddies = [row for row in rows if row["group"] == "buddy" and row["substituted"] > 0]
    if not buddies:
        return ["no buddy stood in for anything: nothing can be said of the paper's claim"]
    below = sum(row["high"] < CLAIM_PERCENT for row in buddies)
    above = sum(row["low"] > CLAIM_PERCENT for row in buddies)
    verdict = "does not hold" if above > len(buddies) / 2 else "holds" if below == len(buddies) else "is not settled"
    parts = [
        f"**The claim of a negligible loss (a web summary: < {CLAIM_PERCENT} %) {verdict} on this model.** Of "
        f"{len(buddies)} buddy settings the rise of bits per byte lies above {CLAIM_PERCENT} % in {above}, below it in "
        f"{below}, and the interval holds {CLAIM_PERCENT} % in {len(buddies) - above - below}"
    ]
    for what, row in (
        ("least", min(buddies, key=lambda row: row["delta_percent"])),
        ("most", max(buddies, key=lambda row: row["delta_percent"])),
    ):
        parts.append(
            f"{what}: {row['arm']}, c = {row['cache']:g}: bits per byte {row['delta_percent']:+.2f} % "
            f"({row['delta_interval']}), next-token accuracy {row['accuracy_delta']:+.2f} points "
            f"({row['accuracy_interval']}), {row['substituted']:.1f} % of the slots substituted, "
            f"{row['gain_percent']:+.1f} % tokens/s"
        )
    return parts


def _gated(rows: list[dict[str, Any]]) -> list[str]:
    """The strictest reading of the paper's tables, at each cache size: it loses little because it does little."""
    strict = [row for row in rows if row["arm"] == "buddy, reading A"]
    parts = [
        f"c = {row['cache']:g}: {row['substituted']:.1f} % of the slots, bits per byte {row['delta_percent']:+.2f} % "
        f"({row['delta_interval']}), accuracy {row['accuracy_delta']:+.2f} points ({row['accuracy_interval']}), "
        f"{row['gain_percent']:+.1f} % tokens/s"
        for row in strict
    ]
    return (
        ["reading A (tau = .95 is the TAE gate), which lets few tokens through: " + "; ".join(parts)] if parts else []
    )


def _cheapest(rows: list[dict[str, Any]]) -> str:
    """The best speed to be had for a given loss, whatever the policy."""
    parts = []
    for limit in (1, 5, 20):
        within = [row for row in rows if row["high"] <= limit]
        best = max(within, key=lambda row: row["gain_percent"])
        parts.append(
            f"within {limit} %: {best['arm']}, c = {best['cache']:g} ({best['delta_percent']:+.2f} %, "
            f"{best['gain_percent']:+.1f} % tokens/s)"
        )
    return "the most speed over fetch whose rise of bits per byte lies, interval and all, " + "; ".join(parts)


def _open_against_closed(rows: list[dict[str, Any]]) -> str:
    """How far a replay would have been off."""
    fetch = [row for row in rows if row["group"] == "fetch"]
    lossy = [row for row in rows if row["group"] != "fetch"]
    if any(abs(row["open_ms"]) > 1e-9 or row["open_h2d"] for row in fetch):
        return "open and closed loop differ even with fetch: something is wrong"
    worst = max(lossy, key=lambda row: abs(row["open_ms"]))
    middle = sorted(abs(row["open_ms"]) for row in lossy)[len(lossy) // 2]
    moved = [abs(row["open_h2d"]) for row in lossy if row["open_h2d"] is not None and row["h2d_mb"] > 0]
    bytes_off = f", its bytes by {sorted(moved)[len(moved) // 2]:.1f} %" if moved else ""
    return (
        f"open loop against closed loop: with fetch a replay is exact; over the lossy arms its time per token is off "
        f"by {middle:.1f} % (median){bytes_off}, at worst {worst['open_ms']:+.1f} % ({worst['arm']}, "
        f"c = {worst['cache']:g})"
    )


CONTROLS = {
    "buddy, reading B, rho 3": [f"matched-{name}, reading B" for name in ("next-ranked", "random", "drop")],
    "buddy, first fit": ["next-ranked, no gate", "random, no gate", "drop"],
}


def _against_controls(rows: list[dict[str, Any]]) -> list[str]:
    """Each buddy variant beside the controls that differ from it in the choice of the stand-in alone."""
    out = []
    for variant, controls in CONTROLS.items():
        parts = []
        for cache in dict.fromkeys(row["cache"] for row in rows):
            here = {row["arm"]: row for row in rows if row["cache"] == cache}
            if variant in here and all(name in here for name in controls):
                others = ", ".join(f"{name} {here[name]['delta_percent']:+.1f} %" for name in controls)
                parts.append(f"c = {cache:g}: {here[variant]['delta_percent']:+.1f} % against {others}")
        if parts:
            out.append(f"{variant} and its controls, rise of bits per byte: " + "; ".join(parts))
    return out


def write(folder: Path, result: dict[str, Any], command: str) -> None:
    """closed_loop.md, .csv, .json and .svg in `folder`, each whole or not at all."""
    made = report(result)
    made.write(folder, NAME, command)
    write_bytes(folder / f"{NAME}.json", (json.dumps({"command": command, **result}, indent=1) + "\n").encode())
    write_bytes(folder / f"{NAME}.svg", figure(result).encode())


# --- the figure ------------------------------------------------------------------------------------------------------

COLOURS = {"fetch": "#444444", "buddy": "#d62728", "matched": "#1f77b4", "similarity": "#9467bd", "ungated": "#8c564b",
           "re-ranking": "#2ca02c"}  # fmt: skip
PANEL, HEIGHT, LEFT, TOP, GAP = 330, 330, 64, 70, 30


def figure(result: dict[str, Any]) -> str:
    """One panel for each cache size: H2D MB per token against the rise of bits per byte, with intervals."""
    rows = flattened(result)
    caches = list(dict.fromkeys(row["cache"] for row in rows))
    tall, wide = (_ticks(max(row[name] for row in rows)) for name in ("high", "h2d_mb"))
    width = LEFT + len(caches) * (PANEL + GAP) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TOP + HEIGHT + 45}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(result["model"])}, closed loop: what the bytes that are not '
        "moved cost in quality</text>",
    ]
    for i, (group, colour) in enumerate(COLOURS.items()):
        x = LEFT + i * 105
        parts.append(f'<circle cx="{x + 5}" cy="38" r="4" fill="{colour}"/><text x="{x + 13}" y="42">{group}</text>')
    for i, cache in enumerate(caches):
        left = LEFT + i * (PANEL + GAP)
        here = [row for row in rows if row["cache"] == cache]
        parts += _panel(here, cache, left, tall, wide, first=i == 0)
    return "\n".join([*parts, "</svg>\n"])


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to at least `most`, five to eleven of them."""
    step = 10.0 ** math.floor(math.log10(max(most, 1e-9)))
    step *= next(part for part in (0.1, 0.2, 0.5, 1.0) if most <= 10 * step * part)
    return [step * k for k in range(math.ceil(most / step - 1e-9) + 1)]


def _panel(
    rows: list[dict[str, Any]], cache: float, left: int, tall: list[float], wide: list[float], first: bool
) -> list[str]:
    def at(mb: float, percent: float) -> tuple[float, float]:
        return left + PANEL * mb / wide[-1], TOP + HEIGHT * (1 - max(0.0, percent) / tall[-1])

    floor = TOP + HEIGHT
    parts = [
        f'<rect x="{left}" y="{TOP}" width="{PANEL}" height="{HEIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{left + 6}" y="{TOP - 6}">cache {cache:g}</text>',
        f'<text x="{left + PANEL / 2}" y="{floor + 34}" text-anchor="middle">H2D MB per token</text>',
    ]
    for tick in wide:
        parts.append(f'<text x="{at(tick, 0)[0]:.1f}" y="{floor + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in tall:
        y = at(0, tick)[1]
        parts.append(f'<line x1="{left}" x2="{left + PANEL}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        if first:
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g} %</text>')
    if first:
        middle = TOP + HEIGHT / 2
        parts.append(f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
                     "rise of bits per byte</text>")  # fmt: skip
    for row in rows:
        parts += _point(row, at)
    return parts


def _point(row: dict[str, Any], at: Any) -> list[str]:
    x, y = at(row["h2d_mb"], row["delta_percent"])
    (_, low), (_, high) = at(row["h2d_mb"], row["low"]), at(row["h2d_mb"], row["high"])
    colour = COLOURS[row["group"]]
    told = f"{row['arm']}: {row['delta_percent']:+.2f} % ({row['delta_interval']}), {row['h2d_mb']:.2f} MB"
    return [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-opacity="0.5"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity="0.85">'
        f"<title>{escape(told)}</title></circle>",
    ]
