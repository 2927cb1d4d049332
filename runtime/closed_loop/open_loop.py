"""How far an open-loop replay lies from the closed loop, and the bracket that every lossy replay prints of it.

The bracket (`sim.outcome.closed_loop`) is fitted on the text of a study that is not judged, and tried on the judged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sim.experiments.tables import Column, More
from sim.experiments.tables import Row as CellRow
from sim.outcome.closed_loop import (
    ANSWERS,
    FACTORS,
    FIGURES,
    RERANKING,
    Factors,
    amounts,
    bracket,
    scales,
    share_of,
)

COMMAND = "python -m runtime.study --out analysis/results --bracket sim/outcome"
COVER = 0.95  # share of the arms that each end of a bracket leaves inside, where it is fitted
MARGIN = 0.25  # of the width by which each end lies further out, for models and text that nobody has measured
DIGITS = 3  # of the factors
HELD = "Open loop: of how many arms the closed loop lies in the bracket that their replay prints (judged text)"
HELD_COLUMNS = (
    Column("model", "model"), Column("fitted", "bracket of the models"), Column("arms", "arms"),
    *(column for name, said in FIGURES.items()
      for column in (Column(name, f"{said}: inside %", 1), Column(f"{name}_width", "median width, %", 1))),
)  # fmt: skip
Row = Mapping[str, Any]
Result = Mapping[str, Any]  # of a model, as runtime.study keeps it


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


class Off(NamedTuple):
    """One arm at one capacity, on one text. replay: what of its replay's summary a bracket is made of; percent: by how
    much the closed loop has more of each figure, of the replay's."""

    model: str
    row: Mapping[str, Any]
    replay: dict[str, Any]
    percent: dict[str, float]

    @property
    def reranks(self) -> bool:
        return bool(self.row["rerank"] != "none")

    def inside(self, factors: Factors, figure: str) -> bool:
        """Whether the closed loop lies in the bracket that its replay prints."""
        found = bracket(self.replay, self.reranks, factors)[figure]
        return found["low"] <= self.percent[figure] <= found["high"]


def offs(results: Sequence[Result], judged: bool) -> list[Off]:
    """All lossy arms on the judged text, or on the other."""
    out = []
    for result in results:
        charged = _charged(result)
        lossy = [row for row in result["rows"] if row["group"] != "fetch"]
        texts = [(row, row if judged else row["elsewhere"]) for row in lossy if judged or "elsewhere" in row]
        out += [_off(result["model"], row, text, charged) for row, text in texts]
    return out


class Charged(NamedTuple):
    """By what a study's time goes, ns: an expert that lands, one that is executed; wanted: experts of a token."""

    landed_ns: float
    executed_ns: float
    wanted: float


def _charged(result: Result) -> Charged:
    """By least squares of its replays: their time per token is linear in the experts that land and that are dropped."""
    fetch = next(row for row in result["rows"] if row["group"] == "fetch")
    wanted = fetch["counts"]["wanted"] / sum(fetch["sums"]["tokens"])
    opened = [row["open_loop"] for row in result["rows"]]
    per_token = [wanted / each["counts"]["wanted"] for each in opened]
    terms = [[1.0, _landed(each["counts"]) * share, each["counts"]["dropped"] * share]
             for each, share in zip(opened, per_token, strict=True)]  # fmt: skip
    found = np.linalg.lstsq(np.array(terms), np.array([each["time_ns_per_token"] for each in opened]))[0]
    return Charged(max(0.0, float(found[1])), max(0.0, -float(found[2])), wanted)


def _landed(counts: Row) -> int:
    return int(counts["misses"] - counts["substituted"] - counts["dropped"])


def _off(model: str, row: Row, text: Row, charged: Charged) -> Off:
    """text: the part of the row that is of it."""
    pairs = {"hits": [each["counts"]["hits"] for each in (text, text["open_loop"])]}
    for name, key in (("bytes", "h2d_bytes_per_token"), ("time", "time_ns_per_token")):
        pairs[name] = [text["speed"][key], text["open_loop"][key]]
    percent = {name: 100 * (closed / replayed - 1) if replayed else math.inf if closed else 0.0
               for name, (closed, replayed) in pairs.items()}  # fmt: skip
    return Off(model, row, _replay(text["open_loop"], charged), percent)


def _replay(opened: Row, charged: Charged) -> dict[str, Any]:
    """What a bracket is made of, as a summary has it; times are per token."""
    counts = opened["counts"]
    landed, tokens = _landed(counts), counts["wanted"] / charged.wanted
    return {
        **counts, "slots_wanted": counts["wanted"], "transfers": {"demand": landed}, "h2d_bytes": {"demand": None},
        "link_busy_ns": landed * charged.landed_ns / tokens, "time_ns": opened["time_ns_per_token"],
        "breakdown_ns": {"experts": (counts["wanted"] - counts["dropped"]) * charged.executed_ns / tokens},
    }  # fmt: skip


# --- the bracket


def fit(results: Sequence[Result]) -> dict[str, dict[str, list[float]]]:
    """The factors of `sim.outcome.closed_loop`, of the text that is not judged."""
    found = offs(results, judged=False)
    arms = {kind: [each for each in found if each.reranks == (kind == RERANKING)] for kind in (ANSWERS, RERANKING)}
    return {kind: {name: _ends([each.percent[name] / scale for each in mine if (scale := _scale(each, kind, name))])
                   for name in FACTORS} for kind, mine in arms.items()}  # fmt: skip


def _scale(each: Off, kind: str, name: str) -> float:
    """How many times the factor is what the figure moves by; 0: by nothing."""
    return scales(each.replay)[name][name] * amounts(each.replay, each.reranks)[kind]


def _ends(factors: Sequence[float]) -> list[float]:
    """[low, high]: COVER of the arms within either, then MARGIN further; 0 lies between."""
    low, high = (float(end) for end in np.quantile(factors or [0.0], [1 - COVER, COVER]))
    further = MARGIN * (high - low)
    return [round(min(0.0, low - further), DIGITS), round(max(0.0, high + further), DIGITS)]


def toml(results: Sequence[Result]) -> str:
    """closed_loop.toml."""
    fitted, factors = offs(results, judged=False), fit(results)
    most = max((share_of(each.replay) for each in fitted if not each.reranks), default=0.0)
    lines = [
        "# How far the closed loop lies from an open-loop replay (sim/outcome/closed_loop.py), on text of the study",
        "# that is not judged; how often it holds on the judged: analysis/results/closed_loop.md. Made by",
        f"# `{COMMAND}`.",
        f"fitted_on = {json.dumps([result['model'] for result in results])}",
        f"arms = {len(fitted)}  # by capacity",
        f"measured_to = {math.ceil(1000 * most) / 1000}  # the largest share of slots that an arm answered otherwise",
    ]
    for kind, ends in factors.items():
        lines += ["", f"[{kind}]", *(f"{name} = {pair}" for name, pair in ends.items())]
    return "\n".join(lines) + "\n"


def held(results: Sequence[Result]) -> More:
    """How often the bracket holds on the judged text, by model and of all: fitted on all, and on the others alone."""
    groups = [(str(result["model"]), [result]) for result in results]
    groups += [("all", list(results))] if len(results) > 1 else []
    rows: list[CellRow] = []
    for model, mine in groups:
        arms = offs(mine, judged=True)
        for name, some in (("all", results), ("the others", [each for each in results if each not in mine])):
            if some:
                rows.append({"model": model, "fitted": name, "arms": len(arms), **_held(arms, fit(some))})
    return More(HELD, HELD_COLUMNS, rows)


def _held(arms: Sequence[Off], factors: Factors) -> dict[str, float]:
    """Of each figure the share of the arms inside, and the width of their brackets, both in percent."""
    out = {}
    for name in FIGURES if arms else ():
        pairs = [bracket(each.replay, each.reranks, factors)[name] for each in arms]
        out[name] = 100 * sum(each.inside(factors, name) for each in arms) / len(arms)
        out[f"{name}_width"] = float(np.median([each["high"] - each["low"] for each in pairs]))
    return out
