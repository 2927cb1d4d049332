"""The page of `runtime.substitutions`: answers, tables; with the figure and the JSON as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.closed_loop import substitution_svg
from runtime.closed_loop.clusters import DRAWS
from runtime.closed_loop.one_at_a_time import WAYS
from runtime.closed_loop.substitution_answers import findings, said, span
from sim.experiments.tables import Cell, Column, More, Report, Row
from traces.command import out_folder, write_bytes

INTERVAL = (
    "95 % interval over files, the wider, end by end, of the cluster bootstrap's percentiles and of t on the "
    "jackknife's standard error (of a median the percentiles alone)"
)
TOLD = Column("predictor", "what is known"), Column("from", "from")
FOOT = (
    "Damage: sum over the token and all later ones of its window of KL(unmodified || modified), in nats; one slot of "
    "one token at one layer is answered otherwise, everything behind it computes on. Behind a late position less is "
    "counted.",
    "keep: the stand-in has the slot's router weight (BuddyMoE). own: the stand-in has its own weight, renormalised "
    "over the set that it is in. drop: nobody answers, nothing is renormalised.",
    "Slots and positions are drawn uniformly; half the stand-ins are uniform over the experts outside the token's set, "
    "half over the first eight ranks behind it.",
    "gap: z_i - z_j, the router's logits of the expert wanted and of its stand-in. TAE: entropy of the top-k weights "
    "over ln k. margin: between the two largest. error: |f_j(x) - f_i(x)| / |f_i(x)| and cosine at this very hidden "
    "state, mean cosine of the pair over the text. moved: w_i |f_j - f_i| over the length of the residual stream.",
    f"In brackets: {INTERVAL}. One set of {DRAWS:,} draws serves all; `-` where all is of one file. Rank correlations "
    "are of the ranks in the whole sample. Fits are least squares on log damage, each file's rows foretold from all "
    "other files. Yes, less, the other way round: at 5 % for all that a sentence, or its cells, count (Holm).",
    "Text is that on which policies are fitted; nothing of the judged files is in this page.",
)


def report(result: dict[str, Any]) -> Report:
    """The whole page."""
    rows: list[Row] = [
        {"predictor": row["predictor"], "from": row["from"], **_said(row, "overall"),
         **_said(row, "within"), **_said(row, "given_weight")}
        for row in result["correlations"]
    ]  # fmt: skip
    columns = (*TOLD, *_columns(overall="rank correlation with the damage", within="within layers",
               given_weight="there, at equal router weight"))  # fmt: skip
    more = [_pairs(result), _fits(result), _formulas(result), _grid(result)]
    titles = {"layer": "layer", "rank": "rank of the stand-in", "weight": "router weight", "tae": "TAE",
              "margin": "margin", "position": "position"}  # fmt: skip
    more += [_bins(f"Damage by {title}", title, result["bins"][name]) for name, title in titles.items()]
    return Report("What one substitution costs, and what tells it", findings(result), columns, rows, FOOT, more)


# --- tables ----------------------------------------------------------------------------------------------------------


def _said(row: dict[str, Any], name: str) -> dict[str, Cell]:
    return {name: said(row[name], signed=True)}


def _columns(**titles: str) -> tuple[Column, ...]:
    return tuple(Column(key, title) for key, title in titles.items())


def _pairs(result: dict[str, Any]) -> More:
    rows: list[Row] = [
        {"layer": row["layer"], "p_cosine": f"{row['p_cosine']:.3f}" if row["p_cosine"] is not None else None,
         "p_error": f"{row['p_error']:.3f}" if row["p_error"] is not None else None,
         **_said(row, "rho_cosine"), **_said(row, "rho_error")}
        for row in result["pairs"]
    ]  # fmt: skip
    columns = _columns(layer="layer", rho_cosine="rho(q, mean cosine)", p_cosine="p (Mantel)",
                       rho_error="rho(q, -mean error)", p_error="p (Mantel)")  # fmt: skip
    return More("Does co-activation tell which experts are alike?", columns, rows)


def _fits(result: dict[str, Any]) -> More:
    rows: list[Row] = [{"fit": row["fit"], **_said(row, "rho"), **_said(row, "explained")} for row in result["fits"]]
    columns = _columns(fit="log damage of keep from", rho="rank correlation, files left out",
                       explained="share of the variance of log damage")  # fmt: skip
    return More("How well is it foretold?", columns, rows)


def _formulas(result: dict[str, Any]) -> More:
    rows: list[Row] = []
    for way, found in result["formulas"].items():
        constants = ", ".join(f"{value:.3f}" for value in found["constants"].values())
        squares = ", ".join(said(each, 2) for each in result["ways"][way]["per_square_by_layer"])
        coefficients = {name: f"{found['coefficients'][name]:.3f}" for name in ("log weight", "gap")}
        rows.append({"way": way, "constants": constants, **coefficients, "smear": f"{found['smear']:.2f}",
                     "squares": squares, **_said(found, "rho")})  # fmt: skip
    columns = (*_columns(way="way", constants="c of each layer"), Column("log weight", "of log w"),
               Column("gap", "of the gap"), *_columns(smear="mean over exp(fit)", rho="rank correlation",
               squares="mean damage / mean w^2 of each layer"))  # fmt: skip
    return More("log damage = c + a log w + b gap", columns, rows)


def _grid(result: dict[str, Any]) -> More:
    rows: list[Row] = [
        {"weight": span(*cell["weight"]), "gap": span(*cell["gap"]), "n": cell["n"], **_means(cell),
         **{name: said(cell["less"][name], 4, True) for name in cell["less"]}}
        for cell in result["grid"]
    ]  # fmt: skip
    columns = (*_columns(weight="router weight", gap="gap", n="n"), *(Column(way, way) for way in WAYS),
               *(Column(name, name) for name in ("own - keep", "drop - keep", "own - drop")))  # fmt: skip
    return More("Mean damage by weight and gap, nats", columns, rows)


def _means(entry: dict[str, Any]) -> dict[str, Cell]:
    return {way: said(entry["mean"][way], 4) for way in WAYS}


def _bins(title: str, what: str, bins: Sequence[dict[str, Any]]) -> More:
    rows: list[Row] = [
        {"bin": span(entry["low"], entry["high"]), "n": entry["n"], **_means(entry),
         "median": said(entry["median"], 4)}
        for entry in bins
    ]  # fmt: skip
    columns = (*_columns(bin=what, n="n"), *(Column(way, f"{way}: mean") for way in WAYS),
               Column("median", "keep: median"))  # fmt: skip
    return More(title, columns, rows)


# --- files -----------------------------------------------------------------------------------------------------------


def write(folder: Path, result: dict[str, Any], command: str) -> None:
    """substitutions_MODEL.json, .md and .svg in `folder`, each whole or not at all."""
    out_folder(folder).mkdir(parents=True, exist_ok=True)
    stem = f"substitutions_{result['model']}"
    kept = json.dumps({"command": command, **result}, indent=1, allow_nan=False) + "\n"
    for suffix, text in (
        ("json", kept),
        ("md", report(result).markdown(command)),
        ("svg", substitution_svg.figure(result)),
    ):
        write_bytes(folder / f"{stem}.{suffix}", text.encode())
