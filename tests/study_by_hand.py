"""Rows of a closed-loop study made by hand: losses per file as one likes them."""

from typing import Any

import numpy as np

FILES = 6
SIZES = np.array([4000.0, 3000, 2500, 2000, 1500, 1000])  # tokens of each file; 14,000 in all


def sums(percent: Any, right: float = 0.0) -> dict[str, list[float]]:
    """2 nats a token and a byte of the unmodified model, `percent` more (one number, or one of each file) of the arm;
    of 2 tokens 1 is right, and `right` points fewer."""
    base = 2 * SIZES
    return {
        "tokens": [*SIZES], "n_bytes": [*SIZES], "base_nats": [*base],
        "nats": [*(base * (1 + np.asarray(percent) / 100))],
        "kl": [*(0.01 * SIZES * np.mean(percent))], "base_right": [*(SIZES / 2)],
        "right": [*(SIZES * (0.5 - right / 100))], "agree": [*(0.9 * SIZES)],
    }  # fmt: skip


def row(arm: str, group: str, percent: Any, mb: float = 10.0, ms: float = 2.0, cache: float = 0.5, miss: str = "",
        of: str | None = None, seed: int | None = None, rerank: str = "none", share: float = 0.1,
        **more: Any) -> dict[str, Any]:  # fmt: skip
    """A row; share: of the slots that another expert answers; ms and mb: per token."""
    copied = {"items": [100.0] * FILES, "base_right": [80.0] * FILES, "right": [78.0 if share else 80.0] * FILES}
    return {
        "cache": cache, "arm": arm, "group": group, "of": of, "seed": seed, "miss": miss or arm, "rerank": rerank,
        "params": {}, "sums": sums(percent, 1.0 if share else 0.0),
        "tasks": {"copying": copied},
        "shares": {"substituted_slots": share, "dropped_slots": 0.0, "reranked_slots": 0.0, "substituted_weight": share,
                   "dropped_weight": 0.0},
        "speed": {"time_ns_per_token": 1e6 * ms, "h2d_bytes_per_token": 1e6 * mb},
        "open_loop": {"time_ns_per_token": 1e6 * ms * (1.02 if share else 1), "h2d_bytes_per_token": 1e6 * mb,
                      "counts": counts(share, mb)},
        "counts": counts(share, mb), **more,
    }  # fmt: skip


def counts(share: float, mb: float) -> dict[str, int]:
    """Of 14,000 tokens that want ten experts of 4 MB each; mb: fetched per token."""
    wanted, otherwise = 140_000, round(140_000 * share)
    misses = round(14_000 * mb / 4) + otherwise
    return {"wanted": wanted, "hits": wanted - misses, "misses": misses, "substituted": otherwise, "dropped": 0}


def fetch(**more: Any) -> dict[str, Any]:
    """Nothing lost: 20 MB and 4 ms a token."""
    return row("fetch", "fetch", 0.0, **{"mb": 20.0, "ms": 4.0, "share": 0.0, **more})


def result(rows: list[dict[str, Any]], model: str = "small", **more: Any) -> dict[str, Any]:
    text = {"source": "made up", "windows": 60, "length": 256, "predicted_bytes": 14000,
            "files": [f"{i}.py" for i in range(FILES)], "windows_by_file": [10] * FILES}  # fmt: skip
    settings = {"hardware": "a100-pcie4", "charge": "deepseek-v2-lite", "precision": "q4", "engine": "fused",
                "eviction": "lru", "seed": 0}  # fmt: skip
    return {"model": model, "command": f"python -m runtime.study --model {model}", "version": "0", "settings": settings,
            "text": text, "calibration_tokens": 1000, "seconds": 90.0, "rows": rows, **more}  # fmt: skip
