"""Who leads: of runs that are alternatives of each other the fastest that can be had, and who cannot be told from it.

An oracle reads the future and a run that does not fit its memory is none: neither leads, whatever its speed. Two runs
tie where their speeds differ by no more than TIE, where the interval of their ratio, paired over requests, holds 1, or,
of two engines, where the intervals of their costs overlap: each engine's costs are off in their own way, so requests
alone do not tell the two apart. Where no interval is known they tie within UNSURE.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.comparing.pairing import Paired, against
from analysis.reading.run import Run
from sim.outcome.how_sure import TIE, overlap

UNSURE = 0.05  # two speeds that differ by no more, and by nobody knows how surely, have no winner
NO_CHOICE = ("oracle", "does not fit", "does not fit the host")  # marks of what leads nobody


def leading(runs: Sequence[Run], groups: Sequence[int], seed: int, resamples: int) -> list[dict[str, Any]]:
    """Of each run: against_best, its tokens/s relative to the fastest of its group that can be had (-0.02: 2 % slower),
    with the interval paired over requests and their number, None where not known; leads: whether it is that one
    or ties with it. groups: a number for each run, equal for alternatives."""
    out = [_row(None, None, None, False) for _ in runs]
    for group in dict.fromkeys(groups):
        mine = [i for i, run in enumerate(runs) if groups[i] == group and _can_lead(run)]
        if not mine:
            continue
        best = max((runs[i] for i in mine), key=lambda run: (run.summary["tokens_per_s"], not run.lossy))
        for i, pair in zip(mine, against([runs[i] for i in mine], best, seed, resamples), strict=True):
            ratio = runs[i].summary["tokens_per_s"] / best.summary["tokens_per_s"]
            interval, n = (pair.ratio_interval, pair.n) if isinstance(pair, Paired) else (None, None)
            out[i] = _row(ratio, interval, n, runs[i] is best or _tied(runs[i], best, ratio, interval))
    return out


def alike(ratio: float, interval: tuple[float, float] | None) -> bool:
    """Whether two speeds of one engine, of this ratio and its interval (None: not known), have no winner."""
    least = min(ratio, 1 / ratio)
    if interval is None or least * (1 + TIE) >= 1:
        return least * (1 + TIE) >= 1 or least >= 1 - UNSURE
    return interval[0] <= 1 if ratio > 1 else interval[1] >= 1


def against_baseline(row: Mapping[str, Any]) -> str:
    """A row of a comparison of one engine against its baseline, in words: `+2.1% (+1.3% .. +2.9%): faster`, or
    `slower`, or `a tie`, by the rule above."""
    change, low, high = (row[f"tokens_per_s_change{end}"] for end in ("", "_low", "_high"))
    known = low is not None and low == low  # a frame has NaN for None
    said = f"{change:+.1%} ({low:+.1%} .. {high:+.1%})" if known else f"{change:+.1%} (no interval)"
    tie = alike(1 + change, (1 + low, 1 + high) if known else None)
    return f"{said}: {'a tie' if tie else 'faster' if change > 0 else 'slower'}"


def _row(ratio: float | None, interval: tuple[float, float] | None, n: int | None, leads: bool) -> dict[str, Any]:
    return {
        "against_best": None if ratio is None else ratio - 1,
        "against_best_low": interval[0] - 1 if interval else None,
        "against_best_high": interval[1] - 1 if interval else None,
        "against_best_requests": n,
        "leads": leads,
    }


def _can_lead(run: Run) -> bool:
    return bool(run.summary["tokens_per_s"]) and not set(run.marks) & set(NO_CHOICE)


def _tied(run: Run, best: Run, ratio: float, interval: tuple[float, float] | None) -> bool:
    """A speed of which nobody knows how far it is off ties with another engine's whose interval it lies in."""
    if run.spec.get("engine") == best.spec.get("engine") or ratio * (1 + TIE) >= 1:
        return alike(ratio, interval)
    mine, theirs = (each.summary.get("tokens_per_s_interval") for each in (run, best))
    speed = run.summary["tokens_per_s"]
    return alike(ratio, None) if mine is theirs is None else overlap(mine or (speed, speed), theirs)
