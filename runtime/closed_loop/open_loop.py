"""How far an open-loop replay lies from the closed loop, and the bracket that every lossy replay prints of it.

The bracket (`sim.outcome.closed_loop`) is fitted on the text of a study that is not judged, and tried on the judged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sim import catalog
from sim.costs.roofline import expert_ns, transfer_ns
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
from sim.spec import CHANGES

COMMAND = "python -m runtime.study --out analysis/results --bracket sim/outcome"
COVER = 0.95  # share of the arms that each end of a bracket leaves inside, where it is fitted
MARGIN = 0.25  # of the width by which each end lies further out, for models and text that nobody has measured
DIGITS = 3  # of the factors
HELD = "Open loop: of how many arms the closed loop lies in the bracket that their replay prints (judged text)"
HELD_COLUMNS = (
    Column("model", "model"), Column("fitted", "bracket of the models"), Column("arms", "arms"),
    *(column for name, said in FIGURES.items()
      for column in (Column(name, f"{said}: inside %", 1), Column(f"{name}_width", "mean width, %", 1))),
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
    """By what a study goes: the ns that an expert is on the idle link, and that it runs; experts that a token wants."""

    link_ns: float
    run_ns: float
    wanted: float


def _charged(result: Result) -> Charged:
    settings, fetch = result["settings"], next(row for row in result["rows"] if row["group"] == "fetch")
    model, precision = catalog.model(settings["charge"]), settings["precision"]
    machine = catalog.hardware(settings["hardware"], **{name: settings.get(name) for name in CHANGES})
    engine = catalog.engine(settings["engine"])
    return Charged(
        float(transfer_ns(machine, engine, model.expert_bytes(precision))[0]),
        float(expert_ns(model, machine, engine, precision, 1)[1]),
        fetch["counts"]["wanted"] / sum(fetch["sums"]["tokens"]),
    )


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
    landed, tokens = counts["misses"] - counts["substituted"] - counts["dropped"], counts["wanted"] / charged.wanted
    return {
        **counts, "slots_wanted": counts["wanted"], "transfers": {"demand": landed}, "h2d_bytes": {"demand": None},
        "link_busy_ns": landed * charged.link_ns / tokens, "time_ns": opened["time_ns_per_token"],
        "breakdown_ns": {"experts": (counts["wanted"] - counts["dropped"]) * charged.run_ns / tokens},
    }  # fmt: skip


# --- the bracket


def fit(results: Sequence[Result]) -> dict[str, dict[str, list[float]]]:
    """The factors of `sim.outcome.closed_loop`, of the text that is not judged."""
    found = offs(results, judged=False)
    arms = {kind: [each for each in found if each.reranks == (kind == RERANKING)] for kind in (ANSWERS, RERANKING)}
    return {kind: {name: _ends([_factor(each, name) for each in mine]) for name in FACTORS}
            for kind, mine in arms.items()}  # fmt: skip


def _factor(each: Off, name: str) -> float:
    """What would put the end of the bracket where the arm is."""
    kind = RERANKING if each.reranks else ANSWERS
    scale = scales(each.replay)[name][name] * amounts(each.replay, each.reranks)[kind]
    return each.percent[name] / scale if scale else 0.0


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
    """How often the bracket holds on the judged text, by model: fitted on all of them, and on the others alone."""
    rows: list[CellRow] = []
    for result in results:
        others = [other for other in results if other is not result]
        arms = offs([result], judged=True)
        for name, some in (("all", results), ("the others", others)):
            if some:
                rows.append({"model": result["model"], "fitted": name, "arms": len(arms), **_held(arms, fit(some))})
    return More(HELD, HELD_COLUMNS, rows)


def _held(arms: Sequence[Off], factors: Factors) -> dict[str, float]:
    """Of each figure the share of the arms inside, and the width of their brackets, both in percent."""
    out = {}
    for name in FIGURES if arms else ():
        pairs = [bracket(each.replay, each.reranks, factors)[name] for each in arms]
        out[name] = 100 * sum(each.inside(factors, name) for each in arms) / len(arms)
        out[f"{name}_width"] = sum(each["high"] - each["low"] for each in pairs) / len(arms)
    return out
