"""The first lines of the page of `runtime.substitutions`: each question with its answer, made of the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.closed_loop.clusters import LEVEL, holm
from runtime.closed_loop.one_at_a_time import WAYS
from runtime.closed_loop.substitution_figures import FORMULA

Figure = dict[str, Any]
LIKENESS = {"q": "q(j|i)", "mean cosine": "the pair's mean cosine", "cosine": "cosine at this very hidden state"}
FORETOLD = {
    "q": "buddy lists alone (q)",
    "weight": "router weight",
    FORMULA: "router weight, gap and layer, which is all that a router says",
    f"{FORMULA}, q": "these and q",
    f"{FORMULA}, error": "these and how far the stand-in errs here, for which it must be run",
    "moved, layer": "how far the layer's output moves, for which both must be run, and layer",
}
BESIDE = {"tae": "TAE", "margin": "margin", "position": "position", "rank": "rank of the stand-in"}
FOR_THOSE = {
    1: "Where the slot weighs little",
    0: "Its weight does not tell",
    -1: "Where the slot weighs much",
}
DIFFERENCES = ("own - keep", "drop - keep", "own - drop")


def said(found: Figure, digits: int = 3, signed: bool = False) -> str:
    """`+0.123 (+0.100 .. +0.140)`; `-` where there is none."""
    if found["value"] is None:
        return "-"
    form = f"{{:{'+' if signed else ''}.{digits}f}}"
    value, low, high = ("-" if found[name] is None else form.format(found[name]) for name in ("value", "low", "high"))
    return f"{value} ({low} .. {high})"


def span(low: float, high: float) -> str:
    """`3`, `.1 .. .2`: the values of a bin."""
    return f"{low:.3g}" if low == high else f"{low:.3g} .. {high:.3g}"


def signs(family: Sequence[Figure]) -> list[int]:
    """Of each figure of a family 1: above 0, -1: below it, 0: not decided, at 5 % for all of them (Holm)."""
    adjusted = holm([1.0 if found["p"] is None else found["p"] for found in family])
    return [0 if p >= 1 - LEVEL else 1 if found["value"] > 0 else -1 for p, found in zip(adjusted, family, strict=True)]


def findings(result: dict[str, Any]) -> list[str]:
    """All questions, and of what the answers are."""
    text = result["text"]
    return [
        _co_activation(result["pairs"]),
        _likeness(result["correlations"]),
        _layers(result["bins"]["layer"]),
        _tokens(result["bins"]["weight"], result["correlations"]),
        _foretold(result["fits"]),
        _formula(result),
        _ways(result),
        f"`{result['model']}`; {result['substitutions']:,} substitutions in {text['windows']} windows of "
        f"{text['length']} tokens, of {len(text['files'])} files (as uneven as they are, as good as "
        f"{text['effective_files']:.1f}), {text['source']}, none judged; seed {result['seed']}",
    ]


def _co_activation(pairs: list[dict[str, Any]]) -> str:
    parts, n = [], len(pairs)
    kinds = {"rho_cosine": "points the same way (mean cosine)", "rho_error": "errs least (mean error)"}
    found = signs([row[name] for name in kinds for row in pairs])
    for (name, words), of in zip(kinds.items(), (found[:n], found[n:]), strict=True):
        known = [row[name]["value"] for row in pairs if row[name]["value"] is not None]
        between = f"; rank correlation {min(known):+.2f} .. {max(known):+.2f}" if known else ""
        parts.append(
            f"who {words}: yes in {of.count(1)} of {n} layers, the other way round in {of.count(-1)}, not decided in "
            f"{of.count(0)}{between}"
        )
    return f"**Does co-activation, q(j|i), tell which experts are alike?** It tells {'. It tells '.join(parts)}"


def _likeness(correlations: list[dict[str, Any]]) -> str:
    of = {row["predictor"]: row for row in correlations}
    answers = {-1: "yes", 0: "no sign of it", 1: "the other way round"}
    found = [of[name]["given_weight"] for name in LIKENESS]
    parts = [
        f"{words}: {answers[sign]}, {said(each, signed=True)}"
        for words, sign, each in zip(LIKENESS.values(), signs(found), found, strict=True)
    ]
    return (
        "**Does likeness tell what a substitution costs?** Rank correlation with the damage, within layers, at equal "
        f"router weight, below 0 where the like cost less: {'; '.join(parts)}. The router weight itself tells: "
        f"{said(of['weight']['within'], signed=True)}"
    )


def _foretold(fits: list[dict[str, Any]]) -> str:
    of = {row["fit"]: said(row["rho"], signed=True) for row in fits}
    parts = [f"{words} {of[name]}" for name, words in FORETOLD.items()]
    return f"**How well is the damage foretold?** Rank correlation on files left out, from {'; from '.join(parts)}"


def _formula(result: dict[str, Any]) -> str:
    found = result["formulas"]["keep"]
    weight, gap = (found["coefficients"][name] for name in ("log weight", "gap"))
    constants = ", ".join(f"{value:.2f}" for value in found["constants"].values())
    squares = "; ".join(f"{way} {said(result['ways'][way]['per_square'], 2)}" for way in WAYS)
    return (
        f"**What can a policy go by?** The router ({FORMULA}): log damage of keep = c + {weight:.2f} log w {gap:+.2f} "
        f"gap, c = {constants} by layer; share of the variance on files left out {said(found['explained'])}. As if it "
        f"went by the square of the weight: mean damage over mean w^2, nats, {squares}"
    )


def _mean(entry: dict[str, Any]) -> str:
    return said(entry["mean"]["keep"], 4)


def _layers(bins: list[dict[str, Any]]) -> str:
    order = sorted(bins, key=lambda entry: float(entry["mean"]["keep"]["value"]))
    parts = [f"{entry['low']:.0f}: {_mean(entry)}" for entry in order]
    return f"**At which layers is a substitution cheap?** Mean damage of keep, nats, cheapest first: {'; '.join(parts)}"


def _tokens(bins: list[dict[str, Any]], correlations: list[dict[str, Any]]) -> str:
    """By router weight, and what else tells beyond it."""
    of = {row["predictor"]: row for row in correlations}
    ends = [f"{_mean(entry)} in its {words} tenth ({span(entry['low'], entry['high'])})"
            for words, entry in (("lowest", bins[0]), ("highest", bins[-1]))]  # fmt: skip
    parts = [f"{words} {said(of[name]['within'], signed=True)}, {said(of[name]['given_weight'], signed=True)}"
             for name, words in BESIDE.items()]  # fmt: skip
    where = FOR_THOSE[signs([of["weight"]["within"]])[0]]
    return (
        f"**For which tokens is a substitution cheap?** {where}: mean damage of "
        f"keep by router weight, nats, {', '.join(ends)}. What else tells: rank correlation with the damage within "
        f"layers, and what is left of it at equal weight: {'; '.join(parts)}"
    )


def _ways(result: dict[str, Any]) -> str:
    verbs = {-1: "costs less than", 0: "is not told apart from", 1: "costs more than"}
    parts, n = [], len(result["grid"])
    overall = signs([result["less"][name] for name in DIFFERENCES])
    cells = signs([cell["less"][name] for name in DIFFERENCES for cell in result["grid"]])
    for place, name in enumerate(DIFFERENCES):
        (one, other), less, here = name.split(" - "), result["less"][name], cells[place * n : (place + 1) * n]
        parts.append(
            f"{one} {verbs[overall[place]]} {other}, {said(less, 4, True)} nats (of {n} cells of weight and gap less "
            f"in {here.count(-1)}, more in {here.count(1)})"
        )
    means = "; ".join(f"{way} {said(result['ways'][way]['mean'], 4)}" for way in WAYS)
    return (
        "**Should a stand-in have the slot's weight (keep), its own, or should nobody answer (drop)?** "
        f"{'; '.join(parts)}. Mean damage, nats: {means}"
    )
