"""Whether speculative windows pay with what a search recommends: the same run with windows of a few sizes."""

from collections.abc import Mapping
from typing import Any

from sim.search.judging import Case, Rated, command
from sim.spec import ALL
from traces.errors import UserError

SIZES = (2, 3, 4)


def windows(case: Case, best: Rated, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What `sim.recommend --speculate` says. asked: accept and draft_ns, as far as they are given; without: tokens/s of
    the best itself; rows: of each size, or why it cannot run; pays: the fastest size, None where
    none is faster; command: of its run."""
    rows = [_row(case, best, n, asked) for n in SIZES]
    ran, without = [row for row in rows if row["error"] is None], best.summary["tokens_per_s"]
    fastest = max(ran, key=lambda row: row["tokens_per_s"] or 0.0, default=None)
    faster = fastest is not None and without is not None and fastest["tokens_per_s"] > without
    n = fastest["n"] if fastest is not None and faster else None
    return {
        "accept": asked.get("accept", ALL),
        "draft_ns": asked.get("draft_ns", 0),
        "without": without,
        "rows": rows,
        "pays": n,
        "command": None if n is None else command(best.spec.model_copy(update={"speculate": n, **asked})),
    }


def _row(case: Case, best: Rated, n: int, asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found = case.rate(best.spec.model_copy(update={"speculate": n, **asked}), best.words).summary
    except UserError as error:
        return {"n": n, "error": str(error)}
    part = found.get("speculation") or {}
    each = ("accepted_per_window", "distinct_experts_per_token", "h2d_bytes_per_token")
    return {"n": n, "error": None, "tokens_per_s": found["tokens_per_s"], **{name: part.get(name) for name in each}}


def words(found: Mapping[str, Any]) -> str:
    """The answer in a line."""
    ran = [row for row in found["rows"] if row["error"] is None and row["tokens_per_s"]]
    draft = f"draft {found['draft_ns']:,} ns a row" if found["draft_ns"] else "a draft that takes no time"
    of = f"accept {found['accept']}, {draft}"
    if not ran or not found["without"]:
        why = next((row["error"] for row in found["rows"] if row["error"]), "the trace generates no token")
        return f"no window could be judged: {why}"
    ratios = ", ".join(f"{row['n']} rows {row['tokens_per_s'] / found['without']:.3f} x" for row in ran)
    if found["pays"] is None:
        return f"no window pays ({of}): {ratios} as fast as without"
    best = next(row for row in ran if row["n"] == found["pays"])
    return (
        f"a window of {best['n']} pays ({of}): {best['tokens_per_s']:,.2f} tokens/s; {ratios} as fast as without; "
        f"{best['accepted_per_window']:.2f} accepted, {best['h2d_bytes_per_token'] / 1e6:,.1f} MB to the GPU a token"
    )
