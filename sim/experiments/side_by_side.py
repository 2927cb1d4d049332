"""Policies of one kind over captures and capacities: each cell's runs on the same draws of requests, and ranks.

A *cell* is a capture at a capacity and a batch size. Its policies judge the same requests, which are drawn with
replacement 2,000 times, the same draw for every policy (Efron and Tibshirani 1993): so a figure has an interval, and
the ratio to the base policy one that the difficulty of the requests has no part in. Ranks over captures are
sim.experiments.ranks. What is ranked: policies that ran in every cell, read no future and lose no weight; speed that is
bought with a look ahead or with router weight has no place in one order with the others.
"""

from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sim.core.plan import OUTCOMES
from sim.errors import unknown
from sim.experiments.ranks import ALIKE, Ranked, ranked, ranks
from sim.experiments.tables import Column, More, Report, Row, gain, percent
from sim.flags import hardware_fields
from sim.memo import Kept
from sim.outcome.marks import OPEN_LOOP, machine_words, short_of_ram
from sim.outcome.per_request import LEVEL, drawn, interval, per_request, shares
from sim.policies.policy import Policy
from sim.policies.registry import TABLES, find
from sim.simulation import simulate
from sim.spec import RunSpec, number
from traces.errors import UserError
from traces.format import npz
from traces.progress import counted

if TYPE_CHECKING:
    from sim.machines.record import RunRecord

Float = npt.NDArray[np.float64]
BASES = {"eviction": "lru", "miss": "fetch", "prefetch": "none", "rerank": "none"}  # what a kind is held against
CACHES = ("0.25", "0.375", "0.5", "0.75")
CALIBRATION = "0.5"  # where a policy that is asked for is fitted
FEW = 6  # requests: of fewer even a win on each is likelier than 5 % by chance, 2 / 2^n (sign test)
MEMO_BYTES = 1 << 28
CAPTURED, MADE = "captured", "SYNTHETIC"
WIN, LOSS, TIE = "win", "loss", "tie"
COLUMNS = (
    Column("kind", "kind"),
    Column("trace", "trace"),
    Column("routing", "", csv_only=True),
    Column("cache", "c", 3),
    Column("batch", "batch"),
    Column("policy", "policy"),
    Column("marks", "marks"),
    Column("tokens_per_s", "tokens/s", 2),
    Column("tokens_per_s_range", "95 %", markdown_only=True),
    Column("tokens_per_s_low", "", csv_only=True),
    Column("tokens_per_s_high", "", csv_only=True),
    Column("gain_percent", "vs base %", 1, signed=True),
    Column("gain_range", "95 %", markdown_only=True),
    Column("gain_percent_low", "", csv_only=True),
    Column("gain_percent_high", "", csv_only=True),
    Column("verdict", "verdict"),
    Column("rank", "rank", 1),
    Column("hit_percent", "hits %", 1),
    Column("hit_range", "95 %", markdown_only=True),
    Column("hit_percent_low", "", csv_only=True),
    Column("hit_percent_high", "", csv_only=True),
    Column("h2d_mb_per_token", "H2D MB/token", 1),
    Column("h2d_range", "95 %", markdown_only=True),
    Column("h2d_mb_per_token_low", "", csv_only=True),
    Column("h2d_mb_per_token_high", "", csv_only=True),
    Column("h2d_gb", "H2D GB", 2),
    Column("lost_weight_percent", "lost weight %", 2),
    Column("requests", "judged requests"),
    Column("tokens", "judged tokens", csv_only=True),
    Column("note", "note"),
)
STANDINGS = (
    Column("policy", "policy"),
    Column("marks", "marks"),
    Column("mean_rank", "mean rank", 2),
    Column("best", "as the best"),
    Column("median_gain", "median vs base %", 1, signed=True),
    Column("worst_gain", "worst %", 1, signed=True),
    Column("best_gain", "best %", 1, signed=True),
    Column("record", "wins/ties/losses"),
    Column("sure_record", f"of {FEW} requests or more"),
    Column("cells", "cells"),
)
FOOT = (
    "95 % intervals: percentile bootstrap over the judged requests of a cell, 2,000 draws, the same for all its "
    "policies; they say how far a figure hangs on which requests there were, not how far the model of the machine is "
    "off. tokens/s, hits and MB/token are of decode steps; H2D GB counts prompts, too",
    "verdict: against the base on the same draws; win or loss where the interval of the ratio leaves out 1, else tie; "
    "none of a single request. Each is at 95 % by itself: of forty policies as fast as the base one wins "
    "by luck",
    "ranks are of tokens/s among policies that are lossless and no oracle: in the long table among those of the cell, "
    "in the mean rank among those that ran in every cell; ties share their mean",
    "cells of one capture share its requests, so they are averaged first: captures are what is counted (Demsar 2006 on "
    "independent data sets). Friedman's and Nemenyi's questions are answered by 20,000 permutations within captures, "
    "since tables hold for many captures",
)


@dataclass(frozen=True)
class Asked:
    """A kind and its policies, the base first."""

    kind: str
    names: Sequence[str]

    @property
    def base(self) -> str:
        return BASES[self.kind]


@dataclass(frozen=True)
class Cell:
    """A capture at a capacity and a batch size, as words of the command line."""

    trace: str
    cache: str
    batch: int

    @property
    def shown(self) -> dict[str, Any]:
        share = number(self.cache)
        return {"trace": Path(self.trace).stem, "cache": self.cache if share is None else share, "batch": self.batch}


@dataclass(frozen=True)
class Served:
    """A run request by request, of decode steps: float64 [n] each, ascending by request, those with tokens alone."""

    tokens: Float
    time_ns: Float
    wanted: Float
    hits: Float
    moved: Float  # bytes to the GPU

    @staticmethod
    def of(record: "RunRecord") -> "Served":
        """record: a full one."""
        took, v = per_request(record), record.groups["visits"]
        steps, some = len(record.steps["rows"]), took.tokens > 0
        wanted = np.bincount(v["step"], v["hits"] + v["late"] + v["misses"], steps)
        hits, moved = np.bincount(v["step"], v["hits"], steps), _moved(record, steps)
        each = (shares(record, amount)[some] for amount in (wanted, hits, moved))
        return Served(took.tokens[some].astype(np.float64), took.time_ns[some], *each)

    def figures(self, draws: npt.NDArray[np.int64]) -> dict[str, Float]:
        """Each figure of each draw of requests, [draws]."""
        tokens, time, wanted, hits, moved = (
            each[draws].sum(axis=1) for each in (self.tokens, self.time_ns, self.wanted, self.hits, self.moved)
        )
        return {
            "tokens_per_s": tokens / time * 1e9,
            "hit_percent": 100 * hits / np.maximum(wanted, 1),
            "h2d_mb_per_token": moved / tokens / 1e6,
        }


def _moved(record: "RunRecord", steps: int) -> Float:
    """Bytes that landed, by the step whose visit queued them."""
    t, of_visit = record.groups["transfers"], record.groups["visits"]["step"]
    landed = t["outcome"] == OUTCOMES.index("landed")
    return np.asarray(np.bincount(of_visit[np.maximum(t["visit"][landed], 0)], t["bytes"][landed], steps), np.float64)


def asked_of(words: Iterable[str], arms: Sequence[str]) -> list[Asked]:
    """Of --policies KIND or KIND=NAME,NAME or KIND=all. arms: of miss where it names none. Raises SpecError."""
    out = []
    for word in words:
        kind, _, text = word.partition("=")
        if kind not in BASES:
            raise unknown("policies: kind", kind, BASES)
        default = arms if kind == "miss" and not text else tuple(TABLES[kind])
        names = default if text in ("", "all") else text.split(",")
        for name in names:
            find(kind, name)
        out.append(Asked(kind, list(dict.fromkeys([BASES[kind], *names]))))
    return out


def side_by_side(args: Namespace, asked: Sequence[Asked]) -> Report:
    """Every policy in every cell. Raises UserError for what is wrong with a cell itself."""
    runs = _Runs(args)
    cells = [Cell(t, c, b) for t in args.trace for c in args.cache or CACHES for b in args.batch or (1,)]
    work = [(cell, each) for each in asked for cell in cells]
    told = counted(work, "setting", lambda job: f"{job[1].kind}, {' '.join(map(str, job[0].shown.values()))}")
    rows = [row for cell, each in told for row in runs.cell(cell, each)]
    first = [table for each in asked for table in standings(each, rows, args.seed)]
    foot = [*FOOT, *_requests(rows), *_left_out(rows)]
    ran = [row for row in rows if "left_out" not in row]
    lossy = [OPEN_LOOP] if any(row["lossy"] for row in ran) else []
    head = [*_head(args), *map(runs.aside, asked), *lossy]
    return Report("Policies side by side", head, COLUMNS, ran, foot, first=first)


def _head(args: Namespace) -> list[str]:
    lines = [
        f"{machine_words(hardware_fields(args))}, engine {args.engine}, experts in {args.precision}; where a kind is "
        f"not compared: eviction lru, no prefetch, miss fetch, no re-ranking; placement first, seed {args.seed}",
        "NOT CALIBRATED where speeds are from catalog costs: policies on one machine share the error, so ratios are "
        "surer than speeds",
    ]
    for path in args.trace:
        trace = npz.read(npz.find(path))
        routing = CAPTURED if trace.real else MADE
        lines.append(f"`{Path(path).stem}`: {routing}; {trace.meta.get('source', 'source not given')}")
    return lines


class _Runs:
    """The runs of an experiment, which share what does not depend on their policies."""

    def __init__(self, args: Namespace) -> None:
        self._seed, self._memo, self._calibration = args.seed, Kept(MEMO_BYTES), args.calibration
        common = {name: getattr(args, name) for name in ("engine", "precision", "seed", "max_steps")}
        self._common = {**hardware_fields(args), **common, "engine_as_costs": True}

    def calibration(self, asked: Asked) -> str | None:
        """As given; else the default of a kind of which one that is asked for is fitted."""
        fitted = any(find(asked.kind, name).fitted for name in asked.names)
        return self._calibration or (CALIBRATION if fitted else None)

    def aside(self, asked: Asked) -> str:
        """Which requests its policies judge."""
        calibration = self.calibration(asked)
        some = "all requests are judged" if calibration is None else f"calibration {calibration}: the others are judged"
        return f"{asked.kind}: {some}, the same by every policy of a cell; held against {asked.base}"

    def cell(self, cell: Cell, asked: Asked) -> list[dict[str, Any]]:
        """A row for each policy; of one that cannot run why it is left out."""
        rows: list[dict[str, Any]] = []
        base: Float | None = None
        for name in counted(asked.names, "policy", str, at_once=False):
            row = {"kind": asked.kind, **cell.shown, "policy": name}
            try:
                found, speeds = self._run(cell, asked, name)
                base = speeds if name == asked.base else base
                rows.append(row | found | _against(speeds, base))
            except UserError as error:
                if name == asked.base:
                    raise
                rows.append(row | {"left_out": str(error)})
        _rank(rows)
        return rows

    def _run(self, cell: Cell, asked: Asked, name: str) -> tuple[dict[str, Any], Float]:
        """(figures, tokens/s of the run and then of each draw of requests)."""
        fields = {"trace": cell.trace, "cache": cell.cache, "batch": cell.batch, asked.kind: name}
        fields |= {"calibration": self.calibration(asked)}
        out, record = simulate(RunSpec.of(self._common | fields), full=True, memo=self._memo)
        served = Served.of(record)
        n = len(served.tokens)
        if n == 0:
            raise UserError(f"trace: {cell.trace}: has no generated tokens within these steps; nothing can be compared")
        whole = served.figures(np.arange(n)[None])
        found: dict[str, Any] = {key: float(value[0]) for key, value in whole.items()}
        each = served.figures(drawn(n, self._seed)) if n > 1 else {}
        for key, values in each.items():
            found[f"{key}_low"], found[f"{key}_high"] = interval(values)
        speeds = np.append(whole["tokens_per_s"], each.get("tokens_per_s", []))
        return found | {"requests": n} | _about(find(asked.kind, name), out) | _ranges(found), speeds


def _about(policy: Policy, out: dict[str, Any]) -> dict[str, Any]:
    """What a run's summary says beside the figures of its requests."""
    quality, lossy = out["quality"], out["marks"]["open_loop"]
    lost = [quality["substituted_weight"], quality["dropped_weight"]]
    gpu = ["does not fit the GPU's memory"] if out["memory"]["fits"] is False else []
    return {
        "routing": CAPTURED if out["trace"]["real"] else MADE,
        "oracle": policy.oracle,
        "lossy": lossy,
        "marks": ", ".join([*(["oracle"] if policy.oracle else []), *(["lossy"] if lossy else [])]),
        "h2d_gb": sum(out["h2d_bytes"].values()) / 1e9,
        "lost_weight_percent": None if None in lost or policy.name in TABLES["rerank"] else percent(sum(lost)),
        "tokens": out["tokens"],
        "note": "; ".join([*gpu, *short_of_ram(out["memory"])]),
    }


def _ranges(found: dict[str, Any]) -> dict[str, str]:
    """Intervals as the markdown has them."""
    shown = {"tokens_per_s": ("tokens_per_s_range", 2), "hit_percent": ("hit_range", 1)}
    shown |= {"h2d_mb_per_token": ("h2d_range", 1), "gain_percent": ("gain_range", 1)}
    return {
        name: f"{found[f'{key}_low']:,.{digits}f} .. {found[f'{key}_high']:,.{digits}f}"
        for key, (name, digits) in shown.items()
        if f"{key}_low" in found
    }


def _against(speeds: Float, base: Float | None) -> dict[str, Any]:
    """A run's speeds, whole and by draw, beside those of the base."""
    assert base is not None, "the base is the first"
    found: dict[str, Any] = {"gain_percent": gain(speeds[0], base[0])}
    if len(speeds) == 1:
        return found
    low, high = interval(speeds[1:] / base[1:])
    verdict = WIN if low > 1 + ALIKE else LOSS if high < 1 - ALIKE else TIE
    found |= {"gain_percent_low": 100 * (low - 1), "gain_percent_high": 100 * (high - 1), "verdict": verdict}
    return found | _ranges(found)


def _may_rank(row: dict[str, Any]) -> bool:
    return "left_out" not in row and not row["oracle"] and not row["lossy"]


def _rank(rows: Sequence[dict[str, Any]]) -> None:
    """Each that may, among its cell's."""
    those = [row for row in rows if _may_rank(row)]
    for row, rank in zip(those, ranks([row["tokens_per_s"] for row in those]), strict=True):
        row["rank"] = float(rank)


def standings(asked: Asked, rows: Sequence[dict[str, Any]], seed: int) -> list[More]:
    """The kind's policies over all cells: the ranked by mean rank, the best first; the others behind."""
    mine = [row for row in rows if row["kind"] == asked.kind and "left_out" not in row]
    by_policy = {name: [row for row in mine if row["policy"] == name] for name in asked.names}
    by_policy = {name: own for name, own in by_policy.items() if own}
    found = over_captures(mine, seed)
    place = dict(zip(found.names, found.mean.tolist(), strict=True))
    best = found.as_the_best() if found.names else []
    order = sorted(by_policy, key=lambda name: (place.get(name, np.inf), -_middle(by_policy[name])))
    cells = max((len(own) for own in by_policy.values()), default=0)
    lines = [_standing(by_policy[name], place.get(name), name in best, cells) for name in order]
    title = f"{asked.kind.capitalize()}: {len(found.names)} ranked over {len(found.by_block)} captures; {_sure(found)}"
    return [More(title, STANDINGS, lines)]


def over_captures(rows: Sequence[dict[str, Any]], seed: int) -> Ranked:
    """Ranks of the policies of one kind that may be ranked and ran in every cell; ranked anew among themselves."""
    cells = list(dict.fromkeys((row["trace"], row["cache"], row["batch"]) for row in rows))
    speed = {(row["policy"], (row["trace"], row["cache"], row["batch"])): row for row in rows if _may_rank(row)}
    names = [
        name for name in dict.fromkeys(row["policy"] for row in rows) if all((name, cell) in speed for cell in cells)
    ]
    each = {cell: ranks([speed[name, cell]["tokens_per_s"] for name in names]) for cell in cells}
    traces = dict.fromkeys(cell[0] for cell in cells)
    blocks = [np.mean([each[cell] for cell in cells if cell[0] == trace], axis=0) for trace in traces]
    return ranked(names, np.array(blocks).reshape(len(blocks), len(names)), seed)


def _sure(found: Ranked) -> str:
    if found.p is None or found.critical is None:
        return "no test: it takes two policies and two captures"
    alike = "they differ" if found.p < 0.05 else "no difference is shown"
    return f"{alike} (p = {found.p:.3g}); mean ranks {found.critical:.2f} apart differ at {LEVEL:.0%}"


def _middle(rows: Sequence[Row]) -> float:
    return float(np.median([float(row["gain_percent"] or 0.0) for row in rows]))


def _standing(rows: Sequence[dict[str, Any]], rank: float | None, best: bool, cells: int) -> Row:
    gains = [float(row["gain_percent"] or 0.0) for row in rows]
    return {
        "policy": rows[0]["policy"],
        "marks": ", ".join([*filter(None, [rows[0]["marks"]]), *(["not in every cell"] if len(rows) < cells else [])]),
        "mean_rank": rank,
        "best": "yes" if best else None,
        "median_gain": _middle(rows),
        "worst_gain": min(gains),
        "best_gain": max(gains),
        "record": _record(rows),
        "sure_record": _record([row for row in rows if row["requests"] >= FEW]),
        "cells": len(rows),
    }


def _record(rows: Sequence[Row]) -> str:
    return "/".join(str(sum(row.get("verdict") == word for row in rows)) for word in (WIN, TIE, LOSS))


def _requests(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What so many requests can show."""
    judged = {(row["kind"], row["trace"]): int(row["requests"]) for row in rows if "left_out" not in row}
    few = {kind: [f"`{of[1]}` ({n})" for of, n in judged.items() if of[0] == kind and n < FEW] for kind, _ in judged}
    return [
        f"{kind}: too few requests to show a difference by themselves: {', '.join(traces)}. Who is ahead on each of n "
        f"is so by chance with 2 / 2^n, more than 5 % below {FEW}; these verdicts say how it was on these requests, "
        "and no more"
        for kind, traces in few.items()
        if traces
    ]


def _left_out(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Who did not run, and why, a line for each capture and kind."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "left_out" in row:
            said = row["left_out"]
            reasons.setdefault((row["trace"], row["kind"]), []).append(
                said if said.startswith(row["policy"]) else f"{row['policy']}: {said}"
            )
    return [f"`{trace}`, {kind}, not run: {'; '.join(dict.fromkeys(said))}" for (trace, kind), said in reasons.items()]
