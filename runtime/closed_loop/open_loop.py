"""How far an open-loop replay lies from the closed loop."""

from __future__ import annotations

from typing import Any


def costs(summary: dict[str, Any]) -> dict[str, Any]:
    """What a run costs, of its summary: `speed` per token, `counts`, and shares of the slots wanted."""
    tokens = summary["tokens"]
    moved = sum(summary["h2d_bytes"].values())
    return {
        "speed": {
            "time_ns_per_token": summary["time_ns"] / tokens,
            "h2d_bytes_per_token": moved / tokens,
        },
        "counts": {name: summary[name] for name in ("wanted", "hits", "misses", "evictions", "substituted", "dropped")},
    }


def figures(made: dict[str, Any]) -> dict[str, Any]:
    """Of a closed run what a replay is compared with."""
    return {name: made[name] for name in ("shares", "speed", "counts")}
