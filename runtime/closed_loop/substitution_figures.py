"""The figures that answer why a substitution costs what it costs, from the substitutions measured one at a time.

Everything is a plain dictionary, as the JSON file has it; a figure is {value, low, high} (substitution_statistics).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from runtime.closed_loop.clusters import DRAWS, Files
from runtime.closed_loop.expert_similarity import Similarity
from runtime.closed_loop.one_at_a_time import WAYS, Float, Substitutions
from runtime.closed_loop.substitution_statistics import (
    Sample,
    doubling_bins,
    explained,
    figure,
    fitted,
    foretold,
    log_damage,
    quantile_bins,
)

# what each predictor is known from: the router as it routes, lists made before, or a run of the stand-in itself
PREDICTORS = {
    "weight": "router",
    "p_i": "router",
    "p_j": "router",
    "gap": "router",
    "rank": "router",
    "tae": "router",
    "margin": "router",
    "slot": "router",
    "position": "router",
    "q": "lists",
    "mean cosine": "lists",
    "cosine": "stand-in",
    "error": "stand-in",
    "moved": "stand-in",
}
LOGARITHMS = ("weight", "error", "moved", "p_i", "p_j")  # enter a fit as these: a product is a sum there
FITS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("q", ("q",), False),
    ("mean cosine", ("mean cosine",), False),
    ("layer", (), True),
    ("weight", ("weight",), False),
    ("weight, gap", ("weight", "gap"), False),
    ("weight, layer", ("weight",), True),
    ("weight, gap, layer", ("weight", "gap"), True),
    ("weight, gap, layer, TAE", ("weight", "gap", "tae"), True),
    ("weight, gap, layer, q", ("weight", "gap", "q"), True),
    ("weight, gap, layer, mean cosine", ("weight", "gap", "mean cosine"), True),
    ("weight, gap, layer, error", ("weight", "gap", "error"), True),
    ("moved, layer", ("moved",), True),
)
FORMULA = "weight, gap, layer"  # of router data alone; what a policy can have
TOLD = ("weight", "gap", "tae", "margin", "position")  # binned by their deciles
TENTHS, CELLS = 10, 4


def all_figures(rows: Substitutions, seed: int) -> dict[str, Any]:
    """Correlations, fits, bins and the grid of weight x gap."""
    sample = Sample.of(rows["file"], seed)
    return {
        "ways": {way: _of_way(rows, sample, way) for way in WAYS},
        "less": _less(rows, sample, np.ones(len(rows), np.bool_)),
        "correlations": correlations(rows, sample),
        "fits": fits(rows, sample),
        "formulas": {way: _formula(rows, sample, way) for way in WAYS},
        "bins": bins(rows, sample),
        "grid": grid(rows, sample),
    }


def _of_way(rows: Substitutions, sample: Sample, way: str) -> dict[str, Any]:
    damage, here = rows[f"{way} damage"], rows[f"{way} here"]
    every = np.ones(len(rows), np.bool_)
    return {
        "mean": sample.figure(sample.mean(damage)),
        "median": sample.median(damage, every),
        "nats": sample.figure(sample.mean(rows[f"{way} nats"])),
        "share_here": sample.figure(sample.sums(here) / sample.sums(damage)),
        "per_square": _per_square(rows, sample, damage, every),
        "per_square_by_layer": [_per_square(rows, sample, damage, rows["layer"] == at)
                                for at in np.unique(rows["layer"])],
    }  # fmt: skip


def _per_square(rows: Substitutions, sample: Sample, damage: Float, keep: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """C of damage = C w^2, so that the mean comes out right."""
    return sample.figure(sample.mean(damage, keep) / sample.mean(rows["weight"] ** 2, keep))


def correlations(rows: Substitutions, sample: Sample) -> list[dict[str, Any]]:
    """Of each predictor with the damage of `keep`, over all substitutions, within layers, and there at equal weight."""
    damage = rows["keep damage"]
    return [
        {
            "predictor": name,
            "from": source,
            "overall": sample.figure(sample.rho(rows[name], damage)),
            "within": sample.figure(sample.rho_within(rows[name], damage, rows["layer"])),
            "given_weight": sample.figure(sample.rho_within(rows[name], damage, rows["layer"], rows["weight"])),
        }
        for name, source in PREDICTORS.items()
    ]


def _terms(rows: Substitutions, names: tuple[str, ...]) -> dict[str, Float]:
    """The terms of a fit by name."""
    return {
        f"log {n}" if n in LOGARITHMS else n: np.log(np.maximum(rows[n], 1e-12)) if n in LOGARITHMS else rows[n]
        for n in names
    }


def _said(rows: Substitutions, names: tuple[str, ...], by_layer: bool, y: Float, sample: Sample) -> dict[str, Any]:
    """How well a fit says the log damage of files that it was not fitted on."""
    said = foretold(_terms(rows, names), rows["layer"] if by_layer else None, y, sample.file)
    return {"rho": sample.figure(sample.rho(said, y)), "explained": sample.figure(explained(sample, said, y))}


def fits(rows: Substitutions, sample: Sample) -> list[dict[str, Any]]:
    y = log_damage(rows["keep damage"])
    return [{"fit": name, **_said(rows, terms, by_layer, y, sample)} for name, terms, by_layer in FITS]


def _formula(rows: Substitutions, sample: Sample, way: str) -> dict[str, Any]:
    """The formula of router data alone, for each way, with how well it does on files left out."""
    names, by_layer = next((terms, layer) for name, terms, layer in FITS if name == FORMULA)
    y = log_damage(rows[f"{way} damage"])
    fit = fitted(_terms(rows, names), rows["layer"] if by_layer else None, y)
    return {**asdict(fit), **_said(rows, names, by_layer, y, sample)}


def _bin(rows: Substitutions, sample: Sample, keep: npt.NDArray[np.bool_]) -> dict[str, Any]:
    mean = {way: sample.figure(sample.mean(rows[f"{way} damage"], keep)) for way in WAYS}
    return {"n": int(keep.sum()), "mean": mean, "median": sample.median(rows["keep damage"], keep)}


def _less(rows: Substitutions, sample: Sample, keep: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """By how much one way's mean damage exceeds another's at the same places: `own - keep` and so on."""
    return {
        f"{a} - {b}": sample.figure(sample.mean(rows[f"{a} damage"] - rows[f"{b} damage"], keep))
        for a, b in (("own", "keep"), ("drop", "keep"), ("own", "drop"))
    }


def bins(rows: Substitutions, sample: Sample) -> dict[str, list[dict[str, Any]]]:
    """Damage by layer, by rank of the stand-in and by tenths of what tells it."""
    out = {"layer": [{"low": float(at), "high": float(at), **_bin(rows, sample, rows["layer"] == at)}
                     for at in np.unique(rows["layer"])]}  # fmt: skip
    found, edges = doubling_bins(rows["rank"])
    out["rank"] = [{"low": edges[b], "high": edges[b + 1] - 1, **_bin(rows, sample, found == b)}
                   for b in range(len(edges) - 1)]  # fmt: skip
    for name in TOLD:
        found, edges = quantile_bins(rows[name], TENTHS)
        out[name] = [{"low": edges[b], "high": edges[b + 1], **_bin(rows, sample, found == b)}
                     for b in range(len(edges) - 1)]  # fmt: skip
    return out


def grid(rows: Substitutions, sample: Sample) -> list[dict[str, Any]]:
    """Mean damage of each way by quarters of the weight and of the gap, and paired differences to `keep`."""
    (of_weight, weights), (of_gap, gaps) = (quantile_bins(rows[name], CELLS) for name in ("weight", "gap"))
    out = []
    for a in range(len(weights) - 1):
        for b in range(len(gaps) - 1):
            here = (of_weight == a) & (of_gap == b)
            cell = {"weight": [*map(float, weights[a : a + 2])], "gap": [*map(float, gaps[b : b + 2])]}
            out.append({**cell, **_bin(rows, sample, here), "less": _less(rows, sample, here)})
    return out


# --- do buddy lists know who is alike?


def pooled(found: list[Similarity], times: Float) -> tuple[Float, Float, Float]:
    """(q, cosine, error) [L, E, E] of several files' text, each file so many `times` [F].

    A row of each matrix is a mean over the tokens routed to its expert (of q, to its k - 1 companions each), so that
    files weigh as many as they have of them; NaN where there are none."""
    weight = np.stack([f.tokens for f in found]) * times[:, None, None]
    total = weight.sum(0)
    with np.errstate(invalid="ignore"):
        q, cosine, error = (
            np.asarray(sum(w[:, :, None] * getattr(f, name) for w, f in zip(weight, found, strict=True)))
            / total[:, :, None]
            for name in ("q", "cosine", "error")
        )
    q, cosine, error = (matrix.round(12) for matrix in (q, cosine, error))  # equal is equal, whatever the sums' order
    return q, cosine, error


def _rho(a: Float, b: Float) -> float:
    """Spearman's, off the diagonal, of rows that have tokens."""
    off = ~np.eye(len(a), dtype=np.bool_) & np.isfinite(a) & np.isfinite(b)
    left, right = (rankdata(m[off]) for m in (a, b))
    return float(np.corrcoef(left, right)[0, 1]) if np.ptp(left) and np.ptp(right) else float("nan")


def pairs(found: list[Similarity], seed: int) -> list[dict[str, Any]]:
    """For each layer, how q(j|i) ranks the pairs as the mean cosine and as the (negative) mean error do.

    Intervals are over files, as all here: the statement is of this model's own experts, which are all there, on other
    text. That pairs share experts is what Mantel's p is for (`runtime.similarity`)."""
    files = Files(len(found), seed, DRAWS)
    rho = np.array([_ranked(*pooled(found, times)) for times in files.times])  # [texts, layers, 2]
    return [
        {name: figure(files.of(rho[:, at, n])) for n, name in enumerate(("rho_cosine", "rho_error"))}
        for at in range(rho.shape[1])
    ]


def _ranked(q: Float, cosine: Float, error: Float) -> list[tuple[float, float]]:
    """Of each layer, how q ranks pairs as cosine and as -error do."""
    return [(_rho(q[at], cosine[at]), _rho(q[at], -error[at])) for at in range(len(q))]
